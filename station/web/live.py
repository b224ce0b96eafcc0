"""What the other processes said last, heard by one poller for everybody who looks."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, Protocol

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Live:
    """One look at the station. What did not answer is None."""

    at: float = field(default_factory=time.time)
    """When it was heard, seconds since 1970."""
    station: Json | None = None
    lamp: Json | None = None
    journal: Json | None = None
    is_stale: bool = True
    newest_seq: int = 0
    """Of the newest result; 0 if there is none."""


class LiveSource(Protocol):
    """Where the page hears how the station is."""

    @property
    def live(self) -> Live: ...
    def start(self) -> None: ...
    def stop(self) -> None: ...


class SilentSource:
    """Hears nothing."""

    live = Live()

    def start(self) -> None: ...
    def stop(self) -> None: ...
