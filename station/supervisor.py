"""`vqi run`: starts the station's processes and replaces those that die or hang.

What the service manager does for the units: sd_notify heartbeats, a watchdog for each process, a
restart at once for the lamp and with growing pauses for the others. Its own death closes the
lifeline, a pipe that every child watches: nobody outlives it.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import FrameType

from station.config import EX_CONFIG, ConfigError, Configuration, load_configuration
from station.fault import put_out_unheld, remembered
from station.ipc import Json
from station.systemd import LIFELINE_VARIABLE, pauses_after

_STOP_LIMIT_S = 15.0
_STOP_LIMITS_S = {"lamp": 2.0, "shadow": 3.0}
"""Of others. Lamp: until its light is put out from here: the stated limit of a pass that nobody
keeps alive. Shadow: it loses what it has not written yet, which is no plate's record."""
_DEATH_LIMIT_S = 2.0
"""What was killed and is not dead by then, the kernel holds: it is left behind."""
_RETRY_S = 0.5
"""A process that cannot even be started is tried again after so long."""
_AWAY_S = 0.5
"""After a pause of this process itself, what it did not hear says nothing."""


@dataclass(frozen=True, slots=True)
class Role:
    """A kind of process. Order of starting: lamp first, so that FAULT shows before anything."""

    name: str
    watchdog_s: float
    start_limit_s: float = 120.0
    is_replaced_at_once: bool = False
    nice: int = 0
    """Against the run's own; as in the units, where the page is in the idle class besides. The lamp
    must be back at once on a busy machine."""
    is_needed: bool = True
    """Without it no plate is inspected: a run ends if it cannot start."""


LAMP = Role("lamp", watchdog_s=1.0, start_limit_s=15.0, is_replaced_at_once=True, nice=-15)
"""A second run's lamp waits for the lock first and must come to say so: exit 1, not a kill. The
light was put out before it is started, so that nothing shows meanwhile."""
JOURNAL = Role("journal", watchdog_s=10.0, nice=-5)
STATION = Role("station", watchdog_s=10.0)
METRICS = Role("metrics", watchdog_s=10.0, nice=10, is_needed=False)
WEB = Role("web", watchdog_s=30.0, nice=10, is_needed=False)
SHADOW = Role("shadow", watchdog_s=30.0, nice=19, is_needed=False)
"""Runs while the station says that a model is in the shadow. On busy cores it may get no turn for
many seconds, nor may the page as a unit, which is no hang."""


@dataclass(slots=True, eq=False)
class _Child:
    role: Role
    process: subprocess.Popen[bytes]
    descriptor: int
    """pidfd: readable once the process has ended."""
    notifications: socket.socket
    started_at: float
    heard_at: float
    is_ready: bool = False
    tail: bytes = b""


_SUMS = ("frames", "lost_frames", "incomplete_frames", "camera_restarts", "tiles")
_VERDICTS = ("PASS", "FAIL", "UNDECIDED")
_TRUTHS = ("truly_defective", "truly_good", "escapes", "false_rejects")
"""Figures of a life of the station that add up."""


@dataclass(slots=True)
class Report:
    """What a run came to, in one or several lives of its station."""

    summary: Json | None = None
    plates: int = 0
    verdicts: Counter[str] = field(default_factory=Counter)
    gaps: int = 0
    restarts: dict[str, int] = field(default_factory=dict)

    def add(self, record: Json) -> None:
        is_gap = record["reason"] == "gap"
        self.verdicts[record["verdict"]] += 1
        self.gaps += is_gap
        self.plates += not is_gap

    def add_life(self, figures: Json) -> None:
        before = self.summary or {}
        sums = {key: before.get(key, 0) + figures[key] for key in _SUMS}
        sums |= {
            key: before.get(key, 0) + figures.get(key, 0)
            for key in _TRUTHS
            if key in before or key in figures
        }
        if "accept" in figures:
            accepts = figures["accept"], before.get("accept", {})
            sums["accept"] = {key: sum(part.get(key, 0) for part in accepts) for key in accepts[0]}
        counts = {verdict.lower(): self.verdicts[verdict] for verdict in _VERDICTS}
        self.summary = {
            **figures,
            **sums,
            "plates": self.plates,
            **counts,
            "gaps": self.gaps,
            "process_restarts": dict(self.restarts),
        }


class Supervisor:
    """Runs lamp, journal and station, and `others` beside them, until the station ends. `show` gets
    the station's events, and {"web": the page's address}."""

    def __init__(
        self,
        config: str,
        plates: int | None,
        station_options: list[str],
        show: Callable[[Json], None],
        log: Callable[[str], None],
        others: Sequence[Role] = (),
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """`check` raises if there is nothing to inspect with; the lamp shows FAULT by then."""
        self._check = check
        self._roles = (LAMP, JOURNAL, STATION, *others)
        self._config = config
        self._settings: Configuration | None = None
        """As the file was at the start: it may be anything when the light has to be put out."""
        self._plates = plates
        self._station_options = station_options
        self._show = show
        self._log = log
        self.report = Report()
        self._selector = selectors.DefaultSelector()
        self._children: dict[str, _Child] = {}
        self._pauses: dict[str, float] = {}
        self._due: dict[str, float] = {}
        self._lifeline, self._lifeline_held = os.pipe2(os.O_CLOEXEC)
        self._figures: Json | None = None
        """What the present station said last of itself."""
        self._status: int | None = None
        self._nice = os.getpriority(os.PRIO_PROCESS, 0)
        self._was_operational = False
        self._is_stopping = False
        self._station_ends_by: float | None = None
        """It was told to."""
        self._is_shadow_wanted = False
        self._is_restart_wanted = False
        """The station ends, and is to be started again: it takes up another recipe."""

    def run(self) -> int:
        """Exit status: the station's, 78 for a bad configuration, 1 if a process cannot start.
        Raises what `check` raises."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)
        # It replaces the lamp: what holds for that holds for itself.
        _set_nice(0, self._nice + LAMP.nice)
        with contextlib.suppress(ConfigError):  # the lamp process says what is wrong
            self._settings = load_configuration(self._config).value
        try:
            self._put_out()  # why it may not show, too
            self._start(LAMP)
            self._check_first()
            for role in self._roles[1:]:
                self._start(role)
            while self._status is None:
                turned_at = time.monotonic()
                self._take_events()
                if time.monotonic() - turned_at < _AWAY_S:
                    self._watch()
        finally:
            self._stop_all()
        return self._status

    def _check_first(self) -> None:
        """A start that is refused leaves FAULT on a light that latches, not what was there."""
        try:
            self._check()
        except Exception:
            deadline = time.monotonic() + LAMP.start_limit_s
            while self._is_starting(LAMP) and time.monotonic() < deadline:
                self._take_events()
            raise

    def _take_events(self) -> None:
        for key, _ in self._selector.select(timeout=0.05):
            self._take_event(key)

    def _take_event(self, key: selectors.SelectorKey) -> None:
        """One of a batch: what came before it may have ended its process."""
        if self._selector.get_map().get(key.fd) is key:
            key.data()

    def _is_starting(self, role: Role) -> bool:
        child = self._children.get(role.name)
        return child is not None and not child.is_ready

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._is_stopping = True

    # --- one process ----------------------------------------------------------------------------

    def _start(self, role: Role) -> None:
        try:
            self._launch(role)
        except OSError as error:  # the process table, the memory or the descriptors are full
            if not self._was_operational:
                raise
            self._log(f"the {role.name} process cannot be started: {error}; trying again")
            self._due[role.name] = time.monotonic() + _RETRY_S

    def _put_out(self) -> str:
        """Write FAULT where no lamp process lives: the light latches what the last one showed, and
        the next one needs a while to start, or cannot. Why it may not show; empty if it does."""
        if self._settings is None:
            return ""
        settings = remembered(self._settings.station.runtime_dir) or self._settings
        problems = put_out_unheld(settings, wait_s=0.0)
        return "; ".join(problems or [])  # None: another run's lamp process keeps the light

    def _put_out_or_say(self) -> None:
        problem = self._put_out()
        if problem:
            self._log(f"the light may show anything: {problem}")

    def _launch(self, role: Role) -> None:
        """Raises OSError."""
        name = f"vqi/{os.getpid()}/{role.name}/{secrets.token_hex(4)}"
        notifications = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        notifications.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        notifications.bind("\0" + name)
        try:
            process = self._run(role, name)
        except OSError:
            notifications.close()
            raise
        _set_nice(process.pid, self._nice + role.nice)
        now = time.monotonic()
        child = _Child(role, process, os.pidfd_open(process.pid), notifications, now, now)
        self._children[role.name] = child
        self._selector.register(child.descriptor, selectors.EVENT_READ, lambda: self._on_end(child))
        self._selector.register(notifications, selectors.EVENT_READ, lambda: _hear(child))
        if process.stdout is not None:
            os.set_blocking(process.stdout.fileno(), False)
            self._selector.register(
                process.stdout, selectors.EVENT_READ, lambda: self._read_events(child)
            )

    def _run(self, role: Role, name: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "station.cli", *self._arguments(role)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if role in (LAMP, STATION, WEB) else subprocess.DEVNULL,
            pass_fds=(self._lifeline,),
            env={
                **os.environ,
                "NOTIFY_SOCKET": "@" + name,
                LIFELINE_VARIABLE: str(self._lifeline),
            },
            # Ctrl-C at the terminal reaches this process only, which ends the others in order. No
            # session of its own: the kernel may share the processor among sessions first
            # (sched(7), autogroup), and what gives way would do so within its own only.
            process_group=0,
        )

    def _arguments(self, role: Role) -> list[str]:
        arguments = ["serve", role.name, "--config", self._config]
        if role is STATION:
            arguments += self._station_options
            if self._plates is not None:
                arguments += ["--plates", str(max(1, self._plates - self.report.plates))]
        is_restart = role in (LAMP, STATION) and self.report.restarts.get(role.name)
        return arguments + (["--restart"] if is_restart else [])

    def _read_events(self, child: _Child) -> None:
        assert child.process.stdout is not None
        data = child.process.stdout.read()
        if not data:
            if data is not None:
                self._selector.unregister(child.process.stdout)
                child.process.stdout.close()
                child.process.stdout = None
            return
        *lines, child.tail = (child.tail + data).split(b"\n")
        for line in lines:
            self._on_event(json.loads(line))

    def _on_event(self, event: Json) -> None:
        if event.get("state") == "OPERATIONAL":
            self._was_operational = True
        if "summary" in event or "figures" in event:
            self._figures = event.get("summary") or event["figures"]
        self._is_restart_wanted |= "restart" in event
        if "shadow" in event:
            self._want_shadow(event["shadow"] is not None)
            return
        if "record" in event:
            self.report.add(event["record"])
        if "summary" not in event:
            self._show(event)

    def _want_shadow(self, is_wanted: bool) -> None:
        """It ends by itself where it is no longer wanted: the station tells it."""
        self._is_shadow_wanted = is_wanted
        self._due.pop(SHADOW.name, None)
        if is_wanted and SHADOW.name not in self._children and self._status is None:
            self._due[SHADOW.name] = time.monotonic()

    def _end_life(self) -> None:
        """The station ended; one that was killed told its figures up to a second before."""
        if self._figures is not None:
            self.report.add_life(self._figures)
            self._figures = None

    def _on_end(self, child: _Child) -> None:
        status = child.process.wait()
        if child.process.stdout is not None:
            self._read_events(child)
        if child.role is LAMP:
            self._put_out_or_say()
            # Whatever it showed, nobody keeps it alive; its successor says what it shows.
            self._show({"lamp": {"state": "fault", "result_id": ""}})
        if child.role is STATION:
            self._end_life()
            self._want_shadow(False)  # until the next one says so
        self._release(child)
        name = child.role.name
        if self._status is not None:
            return
        if self._is_to_start_again(child, status):
            self._log(f"the {name} process is started again")
            self._due[name] = time.monotonic()
            self._start_due()
        elif child.role is STATION and (status == 0 or self._is_stopping):
            # SIGTERM ends one that had nothing in flight yet.
            is_in_order = status in (0, -signal.SIGTERM)
            self._status = 0 if is_in_order else max(status, 1)
        elif not child.role.is_needed:
            self._end_unneeded(child, status)
        elif status == EX_CONFIG or (child.role is STATION and not self._was_operational):
            self._status = status if status > 0 else 1
        elif not child.is_ready and not self._was_operational:
            if status < 0:  # else it has said itself what is wrong
                self._log(f"the {name} process could not start ({_how(status)})")
            self._status = 1
        else:
            self._plan_restart(child, status)

    def _is_to_start_again(self, child: _Child, status: int) -> bool:
        """It ended in order, and said that it is to be started again."""
        is_wanted = child.role is STATION and self._is_restart_wanted
        self._is_restart_wanted &= not is_wanted
        return is_wanted and status == 0 and not self._is_stopping

    def _end_unneeded(self, child: _Child, status: int) -> None:
        """It never ends the run; one that cannot do its work as configured is not tried again."""
        if child.role is SHADOW and (status == 0 or not self._is_shadow_wanted):
            # It ended in order: what is in the shadow is another model, or none.
            self._want_shadow(self._is_shadow_wanted)
            return
        if status == EX_CONFIG:
            self._log(f"the {child.role.name} process cannot run as configured; going on without")
        else:
            self._plan_restart(child, status)

    def _plan_restart(self, child: _Child, status: int) -> None:
        role, now = child.role, time.monotonic()
        self.report.restarts[role.name] = self.report.restarts.get(role.name, 0) + 1
        planned_s = self._pauses.get(role.name, 0.0)
        pauses = pauses_after(now - child.started_at, planned_s, role.is_replaced_at_once)
        self._pauses[role.name] = pauses.next_s
        self._due[role.name] = now + pauses.pause_s
        self._log(f"the {role.name} process ended ({_how(status)}); starting it again")
        self._start_due()

    def _start_due(self) -> None:
        for role in (*self._roles, SHADOW):
            if role.name in self._due and self._due[role.name] <= time.monotonic():
                del self._due[role.name]
                self._start(role)

    def _release(self, child: _Child) -> None:
        self._children.pop(child.role.name, None)
        for item in (child.descriptor, child.notifications, child.process.stdout):
            if item is not None:
                with contextlib.suppress(KeyError):
                    self._selector.unregister(item)
        os.close(child.descriptor)
        child.notifications.close()
        if child.process.stdout is not None:
            child.process.stdout.close()

    # --- all of them ----------------------------------------------------------------------------

    def _watch(self) -> None:
        for child in list(self._children.values()):
            self._kill_if_it_hangs(child)
        self._start_due()
        if self._is_stopping and self._status is None:
            self._stop_station()

    def _kill_if_it_hangs(self, child: _Child) -> None:
        now = time.monotonic()
        limit_s = child.role.watchdog_s if child.is_ready else child.role.start_limit_s
        if now - child.heard_at > limit_s:
            self._log(f"the {child.role.name} process hangs; killing it")
            child.process.kill()
            child.heard_at = now

    def _stop_station(self) -> None:
        """Let the station write what is in flight; its end ends the run. A log that takes nothing
        is not waited for: a next start answers for the plates that are open."""
        station = self._children.get(STATION.name)
        if station is None:
            self._status = 0
        elif self._station_ends_by is None:
            self._station_ends_by = time.monotonic() + _STOP_LIMIT_S
            station.process.terminate()
        elif time.monotonic() > self._station_ends_by:
            self._kill(station)
            if station.process.returncode is None:
                self._status = 1

    def _stop_all(self) -> None:
        """Station, journal, lamp: each ends before what it reports to. The last word to the light
        is FAULT, however the lamp process ended."""
        self._status = 1 if self._status is None else self._status
        for role in (WEB, METRICS, SHADOW, STATION, JOURNAL, LAMP):
            child = self._children.get(role.name)
            if child is not None:
                self._stop(child)
        if self._was_operational:  # before that, no pass can have shown
            self._put_out_or_say()
        os.close(self._lifeline)
        os.close(self._lifeline_held)
        self._selector.close()

    def _stop(self, child: _Child) -> None:
        limit_s = _STOP_LIMITS_S.get(child.role.name, _STOP_LIMIT_S)
        deadline = time.monotonic() + limit_s
        child.process.terminate()
        while child.process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.process.wait(0.05)
            if child.role is not LAMP:
                self._mind_lamp()
        if child.process.poll() is None:
            self._kill(child)
        self._release(child)

    def _kill(self, child: _Child) -> None:
        self._log(f"the {child.role.name} process does not end; killing it")
        child.process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.process.wait(_DEATH_LIMIT_S)

    def _mind_lamp(self) -> None:
        """While another process ends: nobody else would see that the light stays as it is."""
        lamp = self._children.get(LAMP.name)
        if lamp is None:
            return
        if lamp.process.poll() is None:
            _hear(lamp)
            self._kill_if_it_hangs(lamp)
        else:
            self._release(lamp)
            self._put_out_or_say()


def _hear(child: _Child) -> None:
    """Take sd_notify messages that the child itself, or a process of its user, sent."""
    while True:
        try:
            data, ancillary, _, _ = child.notifications.recvmsg(4096, socket.CMSG_SPACE(12))
        except BlockingIOError:
            return
        uid = int.from_bytes(ancillary[0][2][4:8], "little") if ancillary else -1
        if uid != os.getuid():
            continue
        child.heard_at = time.monotonic()
        if b"READY=1" in data:
            child.is_ready = True


def _set_nice(pid: int, nice: int) -> None:
    """Where this user may not, everybody runs alike."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, pid, nice)


def _how(status: int) -> str:
    return f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
