"""What the other processes say, heard by one thread for everybody who looks: four times a second,
whatever the number of clients. The log is read only when the journal process has new rows."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from station.config import Configuration
from station.ipc import SOCKETS
from station.log_lines import get_logger
from station.processes import ask
from station.record import rfc3339
from station.web.line_log import LineLog, LogLook

Json = dict[str, Any]

TURN_S = 0.25
_ASK_S = 0.3
"""A process that hangs holds up the others' news by so much, in each turn."""
SILENT_S = 1.0
"""A process that took a question and has not answered for so long is silent. With a turn in which
all three hang, a reader knows within 2 s."""
STALE_S = 1.5
"""Who has not been asked for so long: what is known of them is old."""
_LOG_S = 0.2
"""A log that takes longer to read is shown as it was read last: it holds up nobody's news."""
LOG_OLD_S = 2.0
"""One that is read for so long: what was read last is old."""
WAITS_S = 2.0
"""A plate that left the camera so long ago and has no durable verdict: that is said."""
_TOOK_IT = "timed out"
"""What `ask` says where somebody listens but does not answer; else nobody is there."""
_LOG = get_logger("web")


@dataclass(frozen=True, slots=True)
class Silence:
    """A process that does not answer."""

    since: float
    """Its last answer, or the first look where it never gave one; seconds since 1970."""
    why: str


@dataclass(frozen=True, slots=True)
class Live:
    """One look at the station. What does not answer now is None, and in `silent`."""

    at: float = field(default_factory=time.time)
    """When the first question was asked, seconds since 1970."""
    station: Json | None = None
    lamp: Json | None = None
    journal: Json | None = None
    is_stale: bool = True
    """Nobody has looked for a while, or yet: whatever this says may be over."""
    newest_seq: int = 0
    """Of the newest result; 0 if there is none."""
    heard_ns: int = 0
    """The same on CLOCK_MONOTONIC; 0: nothing was heard yet."""
    silent: Mapping[str, Silence] = field(default_factory=dict)
    """Processes that do not answer, by name."""
    began: Mapping[str, float] = field(default_factory=dict)
    """Since when what stands now has been seen so: `light`, `doubt`, `state`, `life` of the
    station process, `waiting`, `problem PART`, `attention TEXT`; seconds since 1970."""
    log: LineLog = field(default_factory=LineLog)

    def since(self, what: str) -> str | None:
        """The same as RFC 3339 text; None where it does not stand."""
        at = self.began.get(what)
        return None if at is None else rfc3339(datetime.fromtimestamp(at, UTC))


class LiveSource(Protocol):
    """Where the page hears how the station is."""

    @property
    def live(self) -> Live: ...
    def listen(self, listener: Callable[[Live], None]) -> None:
        """`listener` hears of every look, on another thread: it must not wait."""

    def start(self) -> None: ...
    def stop(self) -> None: ...


class Poller:
    """Asks until it is stopped, on a thread of its own."""

    def __init__(self, configuration: Configuration) -> None:
        self._live = Live()
        self._runtime_dir = configuration.station.runtime_dir
        self._look = LogLook(configuration)
        self._log_thread = ThreadPoolExecutor(1, "live-log")
        self._looking: Future[LineLog] | None = None
        self._looking_since_s = 0.0
        self._ears = {name: _Ear(name) for name in SOCKETS}
        self._standing: Mapping[str, _Value] = {}
        self._listeners: list[Callable[[Live], None]] = []
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def live(self) -> Live:
        """What was heard last, and whether that is old by now."""
        live = self._live
        return replace(live, is_stale=time.monotonic_ns() - live.heard_ns > STALE_S * 1e9)

    def listen(self, listener: Callable[[Live], None]) -> None:
        """See `LiveSource`; before `start`."""
        self._listeners.append(listener)

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="live", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
        self._log_thread.shutdown()

    def _run(self) -> None:
        while not self._stopping.is_set():
            began_s = time.monotonic()
            try:
                self.turn()
            except Exception as error:  # noqa: BLE001  else nobody would ever hear anything again
                _LOG.error("a look at the station failed", error=repr(error))
            self._stopping.wait(max(0.0, began_s + TURN_S - time.monotonic()))

    def turn(self) -> None:
        """Ask everybody once, and tell who listens."""
        at, began_ns = time.time(), time.monotonic_ns()
        heard = {name: ear.ask(self._runtime_dir) for name, ear in self._ears.items()}
        silent = {name: ear.silence for name, ear in self._ears.items() if ear.silence is not None}
        log = self._log(heard["journal"], heard["lamp"], heard["station"])
        new = Live(
            at=at,
            station=heard["station"],
            lamp=heard["lamp"],
            journal=heard["journal"],
            is_stale=False,
            newest_seq=log.newest_seq,
            heard_ns=began_ns,
            silent=silent,
            log=log,
        )
        self._live = new = replace(new, began=self._began(new))
        for listener in self._listeners:
            listener(new)

    def _log(self, journal: Json | None, lamp: Json | None, station: Json | None) -> LineLog:
        """As it is now, or as it was read last while that takes long."""
        if self._looking is None:
            self._looking_since_s = time.monotonic()
            self._looking = self._log_thread.submit(self._look.look, journal, lamp, station)
        done, _ = wait([self._looking], _LOG_S)
        if not done:
            # A disk that hangs lets no deadline within the question fire.
            is_old = time.monotonic() - self._looking_since_s > LOG_OLD_S
            problem = f"the log has given no answer for more than {LOG_OLD_S:g} s"
            return replace(self._live.log, problem=problem) if is_old else self._live.log
        self._looking = None
        return done.pop().result()

    def _began(self, new: Live) -> Mapping[str, float]:
        before, standing = self._standing, _standing(new)
        self._standing = standing
        return {
            what: self._live.began[what] if before.get(what) == value else new.at - value.age_s
            for what, value in standing.items()
        }


class _Ear:
    """Listens to one process."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._said: Json | None = None
        self._heard_s = self._heard_at = 0.0
        self.silence: Silence | None = None

    def ask(self, runtime_dir: Path) -> Json | None:
        """What it says, or has said within `SILENT_S` where it is only slow; None if it is
        silent."""
        said, why = ask(runtime_dir, self._name, _ASK_S)
        now_s = time.monotonic()
        if said is not None:
            self._said, self._heard_s, self._heard_at = said, now_s, time.time()
            self.silence = None
        elif why != _TOOK_IT or now_s - self._heard_s > SILENT_S:
            self._heard_at = self._heard_at or time.time()
            self._said, self.silence = None, Silence(self._heard_at, why)
        return self._said


@dataclass(frozen=True, slots=True)
class _Value:
    """What something is, and how long it had been so when it was first seen."""

    value: object = True
    age_s: float = field(default=0.0, compare=False)


def _standing(live: Live) -> dict[str, _Value]:
    found = {}
    if (lamp := live.lamp) is not None:
        found["light"] = _Value((lamp["state"], lamp["result_id"]))
        if lamp["problem"] or lamp["doubt"]:
            found["doubt"] = _Value()
    if (station := live.station) is not None:
        found["state"] = _Value(station["state"])
        found["life"] = _Value(station["pid"], station["uptime_s"])
        if station["waiting_s"] > WAITS_S:
            found["waiting"] = _Value(True, station["waiting_s"])
        found |= {f"problem {part}": _Value() for part in station["problems"]}
        found |= {f"attention {text}": _Value() for text in station["attentions"]}
    return found
