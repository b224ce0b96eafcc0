"""Models in the shadow: what the log says of each. One at most at a time.

A shadow begins and ends with a chained change row that says who and why; the plates that it scored
between are rows of their own (`ShadowBody`). A restart of the station ends none.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

from station.ingress import name_problem, words_problem
from station.ipc import SHADOW_SOCKET, PeerGone, connect
from station.record import ChangeBody, ShadowBody
from station.systemd import notify

STARTED = "model_shadow_started"
STOPPED = "model_shadow_stopped"
CHANGES = (STARTED, STOPPED)
LEAST_SHARE, MOST_SHARE = 0.01, 1.0
"""Of one core."""
_RETRY_S = 0.5

Row = Mapping[str, Any]


class ShadowError(ValueError):
    """It cannot be done; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Shadow:
    """One model in the shadow."""

    started_at: str
    """`written_at` of its row, by which other rows name it."""
    who: str
    reason: str
    folder: str
    model_id: str
    sha256: str
    threshold: float
    share: float
    """Processor time that its process may take, of one core."""
    unsure_above: float | None = None
    """A plate with a tile above it does not pass; None where the recipe and the card say none."""
    stopped_at: str | None = None
    stopped_by: str = ""
    stop_reason: str = ""


@dataclass(frozen=True, slots=True)
class Register:
    """What rows of shadows come to."""

    shadows: tuple[Shadow, ...] = ()
    """In the order in which they began."""

    @property
    def active(self) -> Shadow | None:
        last = self.shadows[-1] if self.shadows else None
        return last if last is not None and last.stopped_at is None else None

    def brief(self) -> dict[str, Any] | None:
        """The active one, as the station's processes tell each other."""
        return None if self.active is None else asdict(self.active)


def register(rows: Iterable[Row]) -> Register:
    """Fold change rows, in their order; one that breaks a rule counts for nothing."""
    found = Register()
    for row in rows:
        found = after(found, row)
    return found


def objection(known: Register, row: Row) -> str:
    """Why this change row may not follow; empty if it may, or is none of shadows."""
    if row["what"] not in CHANGES:
        return ""
    reason = str(row["detail"].get("reason", ""))
    problem = name_problem("person", row["who"]) or words_problem("reason", reason)
    if problem or not reason:
        return problem or "who begins or ends a shadow says why"
    if row["what"] == STARTED:
        return _no_start(known, row)
    active = known.active
    if active is None:
        return "no model is in the shadow"
    if row["detail"].get("sha256") != active.sha256:
        return f"in the shadow is {active.model_id} ({active.sha256[:12]}), not the one named"
    return ""


def _no_start(known: Register, row: Row) -> str:
    if known.active is not None:
        name = known.active.model_id
        return f"{name} is in the shadow since {known.active.started_at}; stop it first"
    try:
        shadow = _started(row)
    except (KeyError, ValueError):
        return f"a {STARTED} row names folder, id, sha256, threshold and share"
    if not LEAST_SHARE <= shadow.share <= MOST_SHARE:
        return f"a share of {shadow.share:g} of a core; {LEAST_SHARE} to {MOST_SHARE} may be given"
    if not 0.0 <= shadow.threshold <= 1.0:
        return f"a threshold of {shadow.threshold:g}; it lies from 0 to 1"
    unsure = shadow.unsure_above
    if unsure is not None and not 0.0 <= unsure <= shadow.threshold:
        return f"unsure above {unsure:g}; it lies from 0 to the threshold"
    if any(shadow.started_at == other.started_at for other in known.shadows):
        return f"one began at {shadow.started_at} already"
    return ""


def after(before: Register, row: Row) -> Register:
    """With one more change row."""
    if row["what"] not in CHANGES or objection(before, row):
        return before
    if row["what"] == STARTED:
        return Register((*before.shadows, _started(row)))
    stopped = replace(
        before.shadows[-1],
        stopped_at=row["written_at"],
        stopped_by=row["who"],
        stop_reason=str(row["detail"]["reason"]),
    )
    return Register((*before.shadows[:-1], stopped))


def row_objection(known: Register, row: ShadowBody) -> str:
    """Why these plates are of no shadow that began; empty if they are. One that has just ended
    still says what it had scored by then."""
    said = (row.started_at, row.model_id, row.model_sha256)
    if any(said == (each.started_at, each.model_id, each.sha256) for each in known.shadows):
        return ""
    return f"no shadow of {row.model_id} ({row.model_sha256[:12]}) began at {row.started_at}"


def _started(row: Row) -> Shadow:
    """Raises KeyError, ValueError."""
    detail = row["detail"]
    return Shadow(
        started_at=row["written_at"],
        who=row["who"],
        reason=str(detail["reason"]),
        folder=detail["folder"],
        model_id=detail["id"],
        sha256=detail["sha256"],
        threshold=float(detail["threshold"]),
        share=float(detail["share"]),
        unsure_above=float(detail["unsure_above"]) if detail.get("unsure_above") else None,
    )


def started_change(
    station_id: str,
    *,
    folder: str,
    model_id: str,
    sha256: str,
    threshold: float,
    share: float,
    who: str,
    reason: str,
    unsure_above: float | None = None,
) -> ChangeBody:
    detail = {
        "folder": folder,
        "id": model_id,
        "sha256": sha256,
        "threshold": repr(threshold),
        "share": repr(share),
        "reason": reason,
        **({} if unsure_above is None else {"unsure_above": repr(unsure_above)}),
    }
    return ChangeBody(station_id=station_id, what=STARTED, who=who, detail=detail)


def stopped_change(station_id: str, shadow: Shadow, who: str, reason: str) -> ChangeBody:
    detail = {"id": shadow.model_id, "sha256": shadow.sha256, "reason": reason}
    return ChangeBody(station_id=station_id, what=STOPPED, who=who, detail=detail)


# --- its process, while there is nothing to do ----------------------------------------------------


def shadow_path(runtime_dir: Path) -> Path:
    return runtime_dir / SHADOW_SOCKET


class Life:
    """Of the shadow's process: gives way to everything else, and is told when to end."""

    def __init__(self) -> None:
        self.is_ending = False
        self.began_s = time.monotonic()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        # Threads that come later inherit both. The processor is taken where nobody else wants it.
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, 19)
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.is_ending = True


def wait_for_shadow(runtime_dir: Path, life: Life) -> Shadow | None:
    """What the station says is in the shadow, once there is one; None if told to end first."""
    notify("READY=1")
    while not life.is_ending:
        notify("WATCHDOG=1")
        try:
            with connect(shadow_path(runtime_dir)) as channel:
                while not life.is_ending:
                    notify("WATCHDOG=1")
                    with contextlib.suppress(TimeoutError):
                        packet = channel.receive(1.0)
                        packet.close()
                        if packet.body.get("shadow") is not None:
                            return Shadow(**packet.body["shadow"])
        except PeerGone:
            time.sleep(_RETRY_S)
    return None
