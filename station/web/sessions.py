"""Who is signed in: kept in this process alone, so that nothing on the disk opens a page. A restart
signs everybody out."""

from __future__ import annotations

import hashlib
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Literal

from station.record import utc_now
from station.roles import Role

Means = Literal["password", "pin", "badge"]
MOST_EACH: Final = 20
"""Of one person; the one that was used least lately ends."""
_MOST_TEXT = 120


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a session lasts, in seconds."""

    idle_s: float
    shared_idle_s: float
    """On a screen that several people use."""
    absolute_s: float


@dataclass(slots=True)
class Session:
    """One browser of one person."""

    key: str
    """sha256 of its token, which only the browser has."""
    name: str
    epoch: int
    """Of the account when it began; another one ends the session."""
    most: Role
    """What is proven is good for no more than this."""
    means: Means
    is_shared: bool
    address: str
    agent: str
    began_at: str
    began_s: float
    seen_s: float

    @property
    def id(self) -> str:
        """Names it to its owner, and opens nothing."""
        return self.key[:16]


def _boot_s() -> float:
    """Goes on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass(slots=True)
class Sessions:
    """All of this process; its threads share it."""

    limits: Limits
    clock: Callable[[], float] = _boot_s
    _open: dict[str, Session] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(
        self,
        name: str,
        epoch: int,
        most: Role,
        means: Means,
        *,
        is_shared: bool,
        address: str,
        agent: str,
    ) -> str:
        """The token of a new session, 256 random bits."""
        token, now_s = secrets.token_urlsafe(32), self.clock()
        session = Session(
            key=_key(token),
            name=name,
            epoch=epoch,
            most=most,
            means=means,
            is_shared=is_shared,
            address=address,
            agent=agent[:_MOST_TEXT],
            began_at=utc_now(),
            began_s=now_s,
            seen_s=now_s,
        )
        with self._lock:
            self._open = {key: one for key, one in self._open.items() if self._is_alive(one)}
            own = sorted((o for o in self._open.values() if o.name == name), key=lambda o: o.seen_s)
            for old in own[: max(0, len(own) - MOST_EACH + 1)]:
                del self._open[old.key]
            self._open[session.key] = session
        return token

    def find(self, token: str) -> Session | None:
        """The session of a token; None if there is none, or it is over."""
        if not token:
            return None
        with self._lock:
            session = self._open.get(_key(token))
            if session is not None and not self._is_alive(session):
                del self._open[session.key]
                return None
        return session

    def touch(self, session: Session) -> None:
        """Its person did something."""
        session.seen_s = self.clock()

    def of(self, name: str) -> list[Session]:
        """A person's sessions, the one that was used last first."""
        with self._lock:
            own = [one for one in self._open.values() if one.name == name and self._is_alive(one)]
        return sorted(own, key=lambda one: -one.seen_s)

    def end(self, session: Session) -> None:
        with self._lock:
            self._open.pop(session.key, None)

    def end_of(self, name: str, keep: Session | None = None) -> None:
        """All of a person, but for one."""
        for session in self.of(name):
            if session is not keep:
                self.end(session)

    def idle_limit_s(self, session: Session) -> float:
        """Without anything done for so long it is over."""
        return self.limits.shared_idle_s if session.is_shared else self.limits.idle_s

    def _is_alive(self, session: Session) -> bool:
        now_s = self.clock()
        is_idle = now_s - session.seen_s >= self.idle_limit_s(session)
        return not is_idle and now_s - session.began_s < self.limits.absolute_s


def _key(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
