"""What must not leave this machine by a log or an archive for support."""

from __future__ import annotations

import re
from typing import Any, Final

REDACTED: Final = "[redacted]"
_SECRET_NAME = re.compile(
    r"pass(word|phrase|wd|code)|pwd|secret|token|credential|api_?key|private_?key|psk|community"
    r"|authorization|(^|_)(pin|key|auth)$|cookie",
    re.IGNORECASE,
)
# Up to the last @ of the host: a password may hold one, too.
_USER_IN_URL = re.compile(r"(?<=://)[^/\s\"'<>]+(?=@)")
_WORD = (
    r"(?:pass(?:word|phrase|wd|code)|pwd|secret|token|credential|api[_-]?key|private[_-]?key|psk"
    r"|community)"
)
_QUOTED = r"\"[^\"\n]*\"|'[^'\n]*'"
_OPTION = re.compile(
    rf"(?P<name>(?<!\S)(?:--?[\w-]*{_WORD}[\w-]*\s+(?!-)|-[uU]\s*(?=\S*[:%])|-p(?=\S)))"
    rf"(?P<value>{_QUOTED}|\S+)",
    re.IGNORECASE,
)
"""As commands take them: --password X, -pX, -u user:X, -U user%X."""
_AUTHORIZATION = re.compile(
    r"(?P<name>\bauthorization[\"']?\s*[:=]\s*[\"']?(?:[a-z]+\s+)?|\bbearer\s+(?=\S{8}))"
    r"(?P<value>[^\"'\r\n]+)",
    re.IGNORECASE,
)
_NAMED_IN_TEXT = re.compile(
    rf"(?P<name>[\w.-]*{_WORD}[\w.-]*[\"']?\s*[=:]\s*)"
    rf"(?P<value>\"\"\".*?\"\"\"|'''.*?'''|{_QUOTED}|[^\s,;}}\]]+)",
    re.IGNORECASE | re.DOTALL,
)


def is_secret_name(name: str) -> bool:
    """Whether a key of this name holds what only its owner may know."""
    return _SECRET_NAME.search(name) is not None


def redact_text(text: str) -> str:
    """Text without the values of secret names and options, and without users in addresses."""
    text = _USER_IN_URL.sub(REDACTED, text)
    for pattern in (_AUTHORIZATION, _OPTION):
        text = pattern.sub(lambda found: found["name"] + REDACTED, text)
    return _NAMED_IN_TEXT.sub(_named, text)


def _named(found: re.Match[str]) -> str:
    """The name without its value; what was JSON or TOML still is."""
    name, value = found["name"], found["value"]
    is_quoted = value[0] in "\"'" or '"' in name
    return f'{name}"{REDACTED}"' if is_quoted else name + REDACTED


def redact(value: Any) -> Any:
    """The same of JSON: what a secret name holds is left out whole."""
    if isinstance(value, dict):
        return {
            key: REDACTED if is_secret_name(str(key)) and item is not None else redact(item)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [redact(item) for item in value]
    return redact_text(value) if isinstance(value, str) else value


def secrets_in(value: Any, name: str = "") -> set[str]:
    """The texts that secret names hold, so that they can be taken out wherever they occur."""
    if isinstance(value, dict):
        return set[str]().union(
            *(secrets_in(item, name if is_secret_name(name) else str(key))
              for key, item in value.items())
        )  # fmt: skip
    if isinstance(value, list | tuple):
        return set[str]().union(*(secrets_in(item, name) for item in value))
    if not isinstance(value, str) or not value:
        return set()
    passwords = {found.partition(":")[2] for found in _USER_IN_URL.findall(value)}
    # A user without a password may be a word of every day.
    return passwords - {""} | ({value} if is_secret_name(name) else set())
