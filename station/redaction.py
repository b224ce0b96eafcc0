"""What must not leave this machine by a log or an archive for support."""

from __future__ import annotations

import re
from typing import Any, Final

REDACTED: Final = "[redacted]"
_SECRET_NAME = re.compile(
    r"pass(word|phrase|wd)|secret|token|credential|api_?key|private_?key|(^|_)(pin|key|auth)$|cookie",
    re.IGNORECASE,
)
_USER_IN_URL = re.compile(r"(?<=://)[^/\s:@]+:[^/\s@]+(?=@)")
_NAMED_IN_TEXT = re.compile(
    r"(?P<name>[\w.-]*(?:pass(?:word|phrase|wd)|secret|token|credential|api_?key|private_?key)"
    r"[\w.-]*[\"']?\s*[=:]\s*)(?P<value>\"\"\".*?\"\"\"|'''.*?'''|\"[^\"\n]*\"|'[^'\n]*'|[^\s,;}\]]+)",
    re.IGNORECASE | re.DOTALL,
)


def is_secret_name(name: str) -> bool:
    """Whether a key of this name holds what only its owner may know."""
    return _SECRET_NAME.search(name) is not None


def redact_text(text: str) -> str:
    """Text without the values of secret names and without a user's password in an address."""
    text = _USER_IN_URL.sub(REDACTED, text)
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
    return passwords | ({value} if is_secret_name(name) else set())
