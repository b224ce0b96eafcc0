"""Who sends a request."""

from __future__ import annotations

from typing import Protocol

from starlette.requests import Request

from station.web.roles import ANONYMOUS, Person


class People(Protocol):
    """Who the people of this station are, and whose session a request belongs to."""

    def person_of(self, request: Request) -> Person | None:
        """Whose session it is; `ANONYMOUS` where nobody has to sign in to look, None where one has
        to. Answers from memory: it is asked on the event loop."""

    def session_of(self, request: Request) -> str:
        """What a CSRF token is bound to beside the browser's visit; empty without a session."""

    def has_users(self) -> bool:
        """Whether anybody can sign in."""


class Nobody:
    """A station without people: who sits at it may look."""

    def person_of(self, request: Request) -> Person | None:
        return ANONYMOUS

    def session_of(self, request: Request) -> str:
        return ""

    def has_users(self) -> bool:
        return False
