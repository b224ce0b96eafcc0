"""Browsers in which somebody signed in before, told by a signed cookie (OWASP, Slow Down Online
Guessing Attacks with Device Cookies): guesses made elsewhere do not keep their people out."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass, field
from typing import Final

from station.reviews import person as folded

MOST_PEOPLE: Final = 40
"""At one screen; who signed in there least lately is forgotten."""
_COOKIE = re.compile(rf"[A-Za-z0-9_-]{{22}}(\.[0-9a-f]{{32}}){{1,{MOST_PEOPLE + 1}}}")


@dataclass(frozen=True, slots=True)
class Devices:
    """Of one station. A cookie is the browser's random name and what only this key can have made of
    it, for the browser itself and for each person; it opens nothing."""

    key: bytes = field(repr=False)

    def is_known(self, cookie: str) -> bool:
        """Whether somebody signed in there before."""
        return bool(self.of_person(cookie, ""))

    def of_person(self, cookie: str, name: str) -> str:
        """The browser's name, if this person signed in there before; else empty."""
        if not _COOKIE.fullmatch(cookie):
            return ""
        device, *signs = cookie.split(".")
        wanted = self._sign(device, name)
        return device if any(hmac.compare_digest(sign, wanted) for sign in signs) else ""

    def with_person(self, cookie: str, name: str) -> str:
        """The cookie of the same browser, or of a new one, after this person signed in there."""
        device, *signs = cookie.split(".") if self.is_known(cookie) else [secrets.token_urlsafe(16)]
        own = (self._sign(device, ""), self._sign(device, name))
        others = [sign for sign in signs if sign not in own]
        return ".".join([device, *own, *others[: MOST_PEOPLE - 1]])

    def _sign(self, device: str, name: str) -> str:
        said = f"{device}|{folded(name)}".encode()
        return hmac.new(self.key, said, hashlib.sha256).hexdigest()[:32]
