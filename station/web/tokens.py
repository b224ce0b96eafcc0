"""Tokens that only a page of this process can have put into a form (OWASP, Signed Double-Submit
Cookie): an HMAC over the browser's visit, which a cookie names, and the session."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass, field

_VISIT = re.compile(r"[A-Za-z0-9_-]{22}")


def new_visit() -> str:
    """128 bits, for the cookie of a browser that has none."""
    return secrets.token_urlsafe(16)


def is_visit(text: str) -> bool:
    return _VISIT.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class Tokens:
    """Good for the life of this process: after a restart pages are loaded anew."""

    key: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)

    def make(self, visit: str, session: str) -> str:
        said = f"csrf|{len(session)}|{session}|{visit}".encode()
        return hmac.new(self.key, said, hashlib.sha256).hexdigest()

    def is_right(self, token: str, visit: str, session: str) -> bool:
        is_known = is_visit(visit)
        return is_known and hmac.compare_digest(self.make(visit, session).encode(), token.encode())
