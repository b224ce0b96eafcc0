"""Who looks at the page, and what each kind of person may do."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class Role(IntEnum):
    """Each may do what the ones before it may."""

    VIEWER = 0
    REVIEWER = 1
    ENGINEER = 2
    ADMIN = 3

    @property
    def word(self) -> str:
        """As it is written in files, rows and texts."""
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Person:
    """Who sends a request. One without a name did not sign in."""

    name: str
    full_name: str
    role: Role
    languages: tuple[str, ...] = ()
    """What was chosen for this person, first choice first; empty: the browser says."""
    signs_out_after_s: int | None = None
    """On a shared screen: without anything done for so long the session ends."""

    @property
    def is_signed_in(self) -> bool:
        return bool(self.name)

    def may(self, role: Role) -> bool:
        return self.role >= role


ANONYMOUS = Person("", "", Role.VIEWER)
"""Whoever sits at the station itself, where nobody has to sign in to look."""
