"""The station process: what its threads report becomes records, and records become light.

Threads: `acquire` (station/feed.py) cuts frames into plates; `inspect-N` (station/inspection.py)
score tile rows; the main thread, here, judges plates, submits rows to the journal process, and only
after a row's commit tells the lamp process what to show. The main thread never waits for another
process: every answer arrives through one selector.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import queue
import resource
import selectors
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections import Counter, deque
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import cv2
import numpy as np

from drivers.camera import CameraInfo
from drivers.camera.recorder import Bounds, StripRecorder
from drivers.camera.recording import RecordingError
from drivers.stacklight import LightState
from station.acquisition import CameraProcess, Tick
from station.actuation import Actuated, Actuation, Committed, Meaning
from station.audit import AuditDraw
from station.commissioned import read_commissioned
from station.config import (
    DEFAULT_RECORD_GB,
    ConfigError,
    Configuration,
    Loaded,
    Recipe,
    exit_status_of,
)
from station.control import SAYINGS, ControlServer
from station.counters import StageTimes
from station.drift import Drift
from station.drift_log import LIMITS, DriftRegister, follow
from station.drift_log import objection as drift_objection
from station.feed import (
    BeltBegan,
    BeltMoved,
    CameraState,
    Feed,
    FeedEnded,
    FeedFailed,
    GapSeen,
    PlateGrew,
    PlateLeft,
    PlatesMissed,
    PlateStarted,
)
from station.flat_field import FlatField
from station.given import VALUE, Given
from station.hand_test import HandTest
from station.health import CameraHealth, Health, HealthRow, Seen, look_at, reference_key
from station.identity import UNSEEN
from station.ingress import Refused, admit, words_problem
from station.inspection import BufferPool, FailingTile, Inspector, PlateScored, PlateWork
from station.ipc import Json, PeerGone
from station.judge import LoadedJudge, give_back_memory, load_judge
from station.lamp import LampClient, LampError
from station.lending import Lending
from station.light_policy import LightPolicy
from station.limit_samples import LimitSamples, Run, SamplesShown
from station.line_side import LineSide, Word
from station.lock import STATION_LOCK, take_lock
from station.log_lines import get_logger
from station.outbox import Outbox
from station.parity_aside import parity_aside
from station.plate_features import plate_features
from station.processes import said_figures
from station.product import check_strip, geometry_of, load_flat_field
from station.recipe_switch import RecipeChecked, RecipeSwitch
from station.recipes import (
    ACTIVATED,
    DIFFERS,
    EQUAL,
    NOTHING,
    PARITY,
    Named,
    RecipeFolder,
    is_rollback,
    refused_change,
    settle_start,
)
from station.record import (
    HAS_ACCEPT,
    AcceptBody,
    ActuationBody,
    AttentionBody,
    AuditSeedBody,
    Body,
    ChangeBody,
    DowntimeBody,
    Identity,
    OpenedBody,
    Provenance,
    Reason,
    ReferenceBody,
    ResultBody,
    Verdict,
    current_boot_id,
    utc_now,
)
from station.release import program_version
from station.results import (
    Context,
    gap_body,
    interrupted_body,
    opened_body,
    scored_body,
)
from station.retention import READY_LEVEL
from station.scanner_feed import Scanned, ScannerState
from station.serials import Serials
from station.state import JUDGED_ALL_THE_SAME, Origin, StationState, provenance
from station.strip import Joined, StripCutter, buffer_lines
from station.systemd import exit_with_starter, notify
from station.tied import tied

_LOG = get_logger("station")
_CONNECT_TIMEOUT_S = 15.0
_BUSY_LIMIT_S = 2.0
"""An inspect thread that is at one tile row for longer hangs; no tick passes it."""
_NOT_BLOCKING = JUDGED_ALL_THE_SAME | {"lamp"}
"""What a light that cannot be believed shows is no matter of the plates: they are judged, too."""
_DROPS_READY = {"lamp", "accept", "late", "disk", "recipe", "parity", "samples_due"}
"""Problems that keep no plate from being judged, but must keep the next one from coming."""
_LATE = "a plate passed, but was past its accept point first; acknowledge it"
_UNCLAIMED = "a serial was read that no plate took; see `vqi log serials`, acknowledge it"
_LIGHT_UNKNOWN = "the station died: whether the light was told is not known"
_ACCEPT_UNKNOWN = "the lamp process, or the station, ended before it said what became of the plate"
_PATIENCE_S = 5.0
_SPOILS_LIMITS = {"dirt", "light", "exposure", "length"}
"""Attentions under which no limits of drift are learned."""
_WITHOUT_END = {Reason.INTERRUPTED, Reason.BELT_STOPPED}
"""Why a plate's last scan line was never seen."""
_LATENCIES = 10_000
"""Plates whose latency is kept: a station that runs for months says how it does now."""


class StationError(Exception):
    """The station cannot go on; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class LogDamaged:
    """The log does not say what was written; plates are inspected all the same."""

    problem: str


@dataclass(frozen=True, slots=True)
class RecordingProblem:
    """The strip is not, or not wholly, recorded; plates are inspected all the same."""

    problem: str


@dataclass(frozen=True, slots=True)
class ParityChecked:
    """Stored plates were judged again by the model that was gone back to."""

    detail: dict[str, str]


@dataclass(frozen=True, slots=True)
class Options:
    """How this run differs from an endless one."""

    plates: int | None = None
    seconds: float | None = None
    record: Path | None = None
    record_gb: float = DEFAULT_RECORD_GB
    is_restart: bool = False
    """Started again after a failure: the confirmed FAULT write stands for the lamp test."""


@dataclass(slots=True)
class _Statistics:
    verdicts: dict[Verdict, int] = field(default_factory=lambda: dict.fromkeys(Verdict, 0))
    gaps: int = 0
    escapes: int = 0
    false_rejects: int = 0
    truly_defective: int = 0
    truly_good: int = 0
    tiles: int = 0
    accepts: Counter[str] = field(default_factory=Counter)
    """Plates that passed, by what the accept output was told of them."""
    latencies_ms: deque[float] = field(default_factory=lambda: deque(maxlen=_LATENCIES))
    reasons: Counter[tuple[Verdict, Reason | None]] = field(default_factory=Counter)

    def add(self, body: ResultBody) -> None:
        self.verdicts[body.verdict] += 1
        self.reasons[body.verdict, body.reason] += 1
        self.gaps += body.reason is Reason.GAP
        self.tiles += body.tiles
        if body.truth_is_defective is None or body.verdict is Verdict.UNDECIDED:
            return
        self.truly_defective += body.truth_is_defective
        self.truly_good += not body.truth_is_defective
        self.escapes += body.truth_is_defective and body.verdict is Verdict.PASS
        self.false_rejects += not body.truth_is_defective and body.verdict is Verdict.FAIL


class Station:
    """One running station. `emit` receives events for whoever watches; it must not wait."""

    def __init__(
        self,
        configuration: Loaded[Configuration],
        recipe: Loaded[Recipe],
        options: Options,
        emit: Callable[[Json], None],
    ) -> None:
        self._configuration = configuration
        self._recipe = recipe
        self._options = options
        self._emit = emit
        self._settings = configuration.value
        self._state = StationState.PREOPERATIONAL
        self._problems: dict[str, str] = {}
        self._selector = selectors.DefaultSelector()
        self._inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._selector.register(self._wake, selectors.EVENT_READ, self._drain_inbox)
        light = self._settings.light
        self._policy = LightPolicy(light.fail_hold_s, light.pass_hold_s)
        self._actuation = Actuation(
            self._policy, light.lease_s, self._send_show, self._write_actuation
        )
        self._outbox = Outbox(
            self._settings.station.runtime_dir,
            self._selector,
            self._on_journal_tick,
            lambda problem: self._set_problem("journal", problem),
        )
        self._audit = AuditDraw(self._settings.journal.directory, self._settings.station.id, recipe)
        self._lamp: LampClient | None = None
        self._upkeep: Json = {}
        """What the journal process last said of its disk, backups and clock."""
        self._in_work: set[str] = set()
        """Results of plates that were opened and whose scores are not all in."""
        self._line_side = LineSide(self._settings)
        self._plc_counts: Json = {}
        """As the lamp process told them last."""
        self._serials = Serials(
            self._settings,
            recipe.value.plate,
            self._post,
            lambda name: self._say_given("operator", name, "badge"),
        )
        self._given = Given()
        self._switch = RecipeSwitch(configuration, recipe, self._post)
        self._parity: dict[str, str] = {}
        """What the last roll-back's check said."""
        self._hand_test = HandTest()
        self._samples = LimitSamples(recipe, self._post)
        self._starts_halted = False
        self._is_gone_back = False
        """This start took up what judged before: its stored plates are judged again."""
        self._has_begun = False
        """The log took the start."""
        self._is_watching = False
        """Plates are seen: what must be known before any may pass is known."""
        self._stages: dict[str, Json] = {}
        """Of results whose actuation row is not written yet: its stage times."""
        self._statistics = _Statistics()
        self._times = StageTimes()
        self._open: dict[str, int] = {}
        """Results of plates that were opened and have no durable record, oldest first, each with
        when its trailing edge was seen; 0: it was not yet."""
        self._last_verdict_ns = 0
        self._camera_tick: Tick | None = None
        self._is_ending = False
        self._is_told_to_end = False
        """Not by the number of plates or the end of the source: plates may come that nobody sees.
        """
        self._failure: BaseException | None = None
        self._joined_since: str | None = None
        self._started_at = time.monotonic()
        self._last_verdict_at: str | None = None
        self._last_tick_ns = 0
        self._last_figures_ns = 0

    # --- a life ---------------------------------------------------------------------------------

    def run(self) -> int:
        """Start, inspect until told to stop, end cleanly. Exit status 0 or 1."""
        exit_with_starter()
        # A thread of its own spins while it waits, on the cores that the tiles need.
        cv2.setNumThreads(1)
        lock = self._take_lock()
        try:
            self._start()
            # Until here nothing is in flight, and a signal may end this process as it stands.
            signal.signal(signal.SIGTERM, self._on_signal)
            signal.signal(signal.SIGINT, self._on_signal)
            self._loop()
        finally:
            self._stop()
            os.close(lock)
        if self._failure is not None:
            raise StationError(f"stopped by an error: {self._failure!r}") from self._failure
        return 0

    def _take_lock(self) -> int:
        """One station in a runtime folder. Raises `ConfigError`, `StationError`."""
        path = self._settings.station.runtime_dir / STATION_LOCK
        try:
            lock = take_lock(path)
        except OSError as error:
            raise ConfigError(
                f"{self._configuration.source}: station.runtime_dir: {path} cannot be used: "
                f"{error.strerror}",
                exit_status_of(error),
            ) from error
        if lock is None:
            raise StationError(
                f"{self._configuration.source}: station.runtime_dir: another station runs in "
                f"{path.parent}; stop it, or give this one a folder of its own"
            )
        return lock

    def _start(self) -> None:
        settings = self._settings
        tested = load_judge(self._configuration, self._recipe)
        self._judge = tested.judge
        hello = self._outbox.open(_CONNECT_TIMEOUT_S)
        self._control = ControlServer(
            settings.station.runtime_dir, self._selector, self._control_command
        )
        self._lending = Lending(settings.station.runtime_dir, self._selector)
        self._open_lamp(_CONNECT_TIMEOUT_S)
        self._test_lamp(is_restart=self._options.is_restart or bool(hello["open_plates"]))
        self._given = Given.of_log(hello["given"])
        self._serials.open(self._options.is_restart)
        camera = CameraProcess(settings.camera, settings.station.ring_s)
        check_strip(self._configuration, camera.info)
        commissioned = read_commissioned(
            settings.commissioning_file, settings.station.id, hello["signed_files"]
        )
        self._commissioned = commissioned
        self._origin = provenance(camera.info, commissioned, tested.vouched)
        self._context = self._make_context(camera)
        self._health = self._make_health(hello)
        self._drift_log = DriftRegister(**hello["drift"])
        self._drift = self._make_drift(self._drift_log)
        self._feed = self._make_feed(camera, hello)
        self._on_shadow(hello.get("shadow"))
        # Last: what was only asked for is active once all of it has been seen to work.
        taken_up = self._settle_recipe(hello)
        self._say_start(hello, taken_up, tested)

    def _settle_recipe(self, hello: Json) -> list[Body]:
        """Hold the recipe against the log; the row of one that is taken up, or was not. Raises
        `ConfigError`."""
        switch = RecipeFolder.of(self._settings).switch
        self._starts_halted = switch is not None and switch.is_halted
        row = settle_start(self._settings, self._recipe, hello["recipes"])
        is_taken_up = row is not None and row.what == ACTIVATED
        known = hello["recipes"]
        goes_back = row is not None and is_rollback(row.as_json())
        self._is_gone_back = goes_back or (known["lacks_parity"] and not is_taken_up)
        self._set_problem("parity", "" if is_taken_up else known["parity_problem"])
        if switch is not None and switch.state == "failed":
            self._switch.refuse(f"{switch.wanted.name}: {switch.problem}")
        return [] if row is None else [row]

    def _make_context(self, camera: CameraProcess) -> Context:
        pitch_mm = self._settings.camera.pixel_pitch_mm
        return Context(
            configuration=self._configuration,
            geometry=geometry_of(self._recipe, pitch_mm, camera.info.width),
            deadline_s=self._recipe.value.deadline_s,
            belt_stop_timeout_s=self._recipe.value.plate.belt_stop_timeout_s,
            camera=camera.info,
            provenance=self._origin.provenance,
            flat_field=load_flat_field(self._configuration, camera.info),
        )

    def _make_feed(self, camera: CameraProcess, hello: Json) -> Feed:
        context, settings = self._context, self._settings.station
        geometry = context.geometry
        self._pool = BufferPool(
            settings.plate_buffers, buffer_lines(geometry), geometry.scan_line_px
        )
        self._inspector = Inspector(geometry, settings.inspect_threads, self._post)
        # A belt does not wait, a recording does: only the belt's plates can be overrun.
        patience_s = _PATIENCE_S if camera.info.is_patient else 0.0
        cutter = StripCutter(
            geometry,
            camera.info.frame_height,
            lambda: self._pool.take(patience_s),
            accounted_ordinal=hello["last_plate_ordinal"],
        )
        self._recorder = self._open_recorder(camera.info)
        return Feed(
            camera,
            self._settings.camera,
            context,
            self._judge,
            cutter,
            self._pool,
            self._inspector,
            self._post,
            next_sequence=hello["last_sequence"] + 1,
            plates=self._options.plates,
            recorder=self._recorder,
            watches_belt=self._line_side.has_accept or self._serials.is_expected,
        )

    def _open_recorder(self, info: CameraInfo) -> StripRecorder | None:
        """A recording that cannot begin ends a start by hand, and never one after a failure."""
        directory = self._options.record
        if directory is None:
            return None
        # Twice, so that the log has room to go on when others fill the rest.
        reserve = 2 * 10**6 * self._settings.journal.min_free_mb
        bounds = Bounds(int(self._options.record_gb * 1e9), reserve)
        try:
            return StripRecorder(
                directory, info, bounds, lambda text: self._post(RecordingProblem(text))
            )
        except (RecordingError, OSError) as error:
            if not self._options.is_restart:
                raise StationError(f"--record: {error}") from error
            self._post(RecordingProblem(f"nothing is recorded: {error}"))
            return None

    def _make_health(self, hello: Json) -> Health:
        """With what the log knows: a restart forgets neither dirt nor how bright the light was."""
        context, recipe, key = self._context, self._recipe.value, self._light_key
        known = [ReferenceBody.of_log(body) for body in hello["references"]]
        return Health(
            recipe,
            context.geometry,
            self._settings.station.id,
            key,
            next((body for body in known if body.key == key), None),
            [AttentionBody.of_log(body) for body in hello["attentions"]],
        )

    def _make_drift(self, known: DriftRegister) -> Drift:
        judge, directory = self._judge, self._settings.journal.directory
        classifier = judge.classifier
        names = {
            "recipe": judge.name,
            "model_id": classifier.model_id,
            "model_sha256": classifier.model_sha256,
        }
        key = f"{self._light_key} {classifier.model_sha256} {classifier.precision}"
        recipe, station_id = judge.recipe.value.drift, self._settings.station.id
        return Drift(recipe, station_id, key, names, directory, known)

    @property
    def _light_key(self) -> str:
        """What levels of plates may be compared by."""
        flat_field = self._context.flat_field
        recipe_id = self._recipe.value.id
        return reference_key(recipe_id, self._context.camera, flat_field.id if flat_field else None)

    def _say_start(self, hello: Json, taken_up: list[Body], tested: LoadedJudge) -> None:
        """Write what the last life left open, and that a new one begins."""
        self._joined_since = hello["last_tick_at"]
        for result_id in hello["without_actuation"]:
            self._write_actuation(Actuated(result_id, "unknown", 0, detail=_LIGHT_UNKNOWN))
        self._line_side.inherit(hello["without_accept"])
        if hello["held"] is not None:
            self._hold_again(ResultBody.of_log(hello["held"]))
        if hello["has_late_plates"]:
            self._set_problem("late", _LATE)
        for body in hello["open_plates"]:
            opened = OpenedBody.of_log(body)
            body = interrupted_body(self._context, self._judge, opened, self._given)
            self._write_result(body, None)
        detail = {
            "recipe_sha256": self._recipe.sha256,
            "configuration_sha256": self._configuration.sha256,
            **tested.detail,
            "camera_serial": self._context.camera.serial,
            **_commissioning_name(self._origin, hello),
            "provenance": self._origin.provenance,
            "provenance_why": self._origin.why,
            **_feature_detail(self._context.camera),
            **_flat_field_names(self._context.flat_field),
            **({HAS_ACCEPT: "yes"} if self._line_side.has_accept else {}),
        }
        if self._recorder is not None:
            detail["recording"] = str(self._options.record)
        self._say_attentions({})
        started = self._change("start", "station", detail)
        for row in taken_up:
            self._outbox.submit([row])
        self._outbox.submit([started, *self._begin_audit(hello)], done=lambda _: self._on_started())

    def _begin_audit(self, hello: Json) -> list[Body]:
        """Raises `StationError`: without its secret, the draw could not be proven later."""
        unrevealed = [AuditSeedBody.model_validate(body) for body in hello["audit_seeds"]]
        try:
            return self._audit.begin(self._audit_shift(), unrevealed)
        except OSError as error:
            raise StationError(
                f"journal.directory: the audit's secret cannot be kept: {error}"
            ) from error

    def _audit_shift(self) -> str:
        """What one seed draws: the plates of a shift, or of a day by UTC where no shifts are
        configured."""
        now = utc_now()
        return self._context.shift_at(now) or now[: len("2026-11-26")]

    def _hold_again(self, body: ResultBody) -> None:
        """A restart is no acknowledgement: what nobody took out yet is held on."""
        # Another boot has another clock: then the hold time begins anew.
        is_same_clock = body.boot_id == current_boot_id()
        since_ns = body.decided_ns if is_same_clock else time.monotonic_ns()
        self._policy.decided(body.verdict, body.result_id, is_production=False, now_ns=since_ns)

    def _on_started(self) -> None:
        """The log took the start: only now is it known that it can be written (I12)."""
        if self._is_ending:  # told so meanwhile: the camera is closed
            return
        self._has_begun = True
        RecipeFolder.of(self._settings).forget_switch()
        # Halted by a person, who expects no plate to be judged.
        self._set_state(StationState.HALTED if self._starts_halted else self._working_state)
        self._set_fault()
        if self._samples.may_judge:
            self._begin_to_watch()
        else:
            self._begin_samples()

    def _begin_to_watch(self) -> None:
        """From here on plates are seen."""
        self._is_watching = True
        self._feed.start()
        notify("READY=1")
        threading.Thread(target=self._verify_log, name="verify", daemon=True).start()
        if self._is_gone_back:
            self._begin_parity()

    def _verify_log(self) -> None:
        """The whole log and its anchors, in a process that gives way to every other one (I12)."""
        log, config = self._settings.journal.directory, self._configuration.source
        command = [sys.executable, "-P", "-m", "station.cli", "log", "verify"]
        # It goes when this process does: a log that is being read is not closed.
        reader = subprocess.Popen(
            tied(
                [
                    *("nice", "-n", "19"),
                    *(*command, "--no-pictures", "--no-file"),
                    *("--config", config, "--journal", str(log), "--json"),
                ]
            ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        # Even the nicest process keeps a core for some milliseconds from whoever wakes up.
        with contextlib.suppress(OSError):
            os.sched_setscheduler(reader.pid, os.SCHED_IDLE, os.sched_param(0))
        answer, _ = reader.communicate()
        findings = json.loads(answer)["findings"] if answer else ["it cannot be read"]
        if findings:
            self._post(LogDamaged(f"{log}: {findings[0]}; see `vqi log verify`"))

    def _loop(self) -> None:
        deadline = None
        if self._options.seconds is not None:
            deadline = time.monotonic() + self._options.seconds
        while not (self._is_ending and self._is_idle()):
            for key, _ in self._selector.select(timeout=0.05):
                key.data()
            self._keep_connections()
            self._actuation.update(time.monotonic_ns())
            self._tell_outputs()
            self._say_serials()
            self._turn_samples()
            if deadline is not None and time.monotonic() >= deadline:
                deadline = None
                self._end_now("time is up")

    def _is_idle(self) -> bool:
        in_flight = self._in_work or self._actuation.is_waiting or not self._outbox.is_empty
        return not in_flight or self._failure is not None

    def _end(self, why: str) -> None:
        """Stop taking plates; rows in flight are still written."""
        if not self._is_ending and hasattr(self, "_feed"):
            self._is_ending = True
            self._tell_outputs()
            self._feed.stop()
            self._drain_inbox()
            self._drop_recipe(f"the station ended first: {why}")
            self._serials.end()
            self._outbox.submit([*self._audit.end(), self._change("stop", "station", {"why": why})])

    def _end_now(self, why: str) -> None:
        """Not at the end of the plates: light and outputs leave what they say before anything else,
        and no pass that is still to be written shows."""
        self._show_no_more()
        self._end(why)

    def _show_no_more(self) -> None:
        self._is_told_to_end = True
        self._set_fault()
        self._actuation.update(time.monotonic_ns())

    def _stop(self) -> None:
        if self._lamp is not None:
            # First: the lamp process sees end-of-file and leaves any pass at once.
            self._selector.unregister(self._lamp)
            self._lamp.close()
            self._lamp = None
        if hasattr(self, "_feed"):
            self._feed.stop()
            self._inspector.stop()
            self._emit({"summary": self.summary()})
        if hasattr(self, "_drift"):
            self._drift.save()
        if hasattr(self, "_control"):
            self._control.close()
        if hasattr(self, "_lending"):
            self._lending.close()
        self._serials.close()
        self._outbox.close()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._post(signal.Signals(number))

    # --- what the threads say -------------------------------------------------------------------

    def _post(self, message: object) -> None:
        """Hand a message to the main thread; called from any thread."""
        self._inbox.put(message)
        os.eventfd_write(self._wake, 1)

    def _drain_inbox(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake)
        while True:
            try:
                message = self._inbox.get_nowait()
            except queue.Empty:
                return
            self._dispatch(message)

    def _dispatch(self, message: object) -> None:
        match message:
            case PlateStarted(work):
                self._on_opened(work)
            case FailingTile(work) if work.is_limit_sample:
                pass
            case PlateScored(work) if work.is_limit_sample:
                self._samples.scored(work)
            case SamplesShown():
                self._on_samples_shown(message)
            case FailingTile(work):
                self._actuation.failing_tile(work.result_id, time.monotonic_ns())
                self._on_grew(work)
            case PlateGrew(work):
                self._on_grew(work)
            case PlateScored(work):
                self._on_scored(work)
            case PlateLeft(result_id, belt_place):
                self._on_left(result_id, belt_place)
            case BeltMoved(place, is_measured):
                self._line_side.belt_moved(place)
                self._serials.belt_moved(place, is_measured)
            case PlatesMissed(scan_line):
                self._line_side.plates_missed(scan_line)
            case BeltBegan(frame_height):
                self._line_side.belt_began(frame_height)
                self._serials.belt_began(frame_height)
            case Scanned(scan):
                self._serials.scanned(scan)
            case ScannerState(problem):
                self._set_problem("scanner", problem)
                self._set_attention()
            case GapSeen(sequence, gap):
                body = gap_body(self._context, self._judge, sequence, gap, self._given)
                self._write_result(body, None)
            case Joined():
                self._on_joined(message)
            case Tick():
                self._on_tick(message)
            case CameraState(problem):
                self._set_problem("camera", problem)
            case LogDamaged(problem):
                self._set_problem("log", problem)
                self._set_attention()
            case RecordingProblem(problem):
                self._set_problem("recording", problem)
                self._set_attention()
                self._outbox.submit([self._change("recording", "station", {"problem": problem})])
            case RecipeChecked():
                self._on_recipe_checked(message)
            case ParityChecked(detail):
                self._on_parity_checked(detail)
            case FeedEnded() if self._switch.is_waiting and not self._is_complete:
                if not self._is_ending:
                    self._take_up_recipe()
            case FeedEnded():
                self._end("the source has ended")
            case FeedFailed(error):
                self._failure = error
                self._end_now("an error")
            case signal.Signals():
                self._end_now(message.name)

    def _on_recipe_checked(self, message: RecipeChecked) -> None:
        if self._is_ending:  # its row says that it was not taken up
            return
        message = self._may_judge(message)
        problem = self._switch.checked(message)
        if problem:
            self._say_recipe_refused(message.wanted, problem)
        elif message.tested is not None:
            self._activate_judge(message.wanted, message.tested, message.samples)
        else:
            self._set_problem("recipe", self._switch.not_ready)
            self._feed.end_between_plates()

    def _may_judge(self, message: RecipeChecked) -> RecipeChecked:
        """A model that nobody signed does not judge production. One that was may begin to, with a
        restart: its plates are no longer what they were."""
        if message.tested is None:
            return message
        origin = self._origin_with(message.tested)
        if origin.provenance is self._origin.provenance:
            return message
        is_lost = self._origin.provenance is Provenance.PRODUCTION
        problem = f"may not judge production: {origin.why}" if is_lost else ""
        return replace(message, tested=None, problem=problem)

    def _origin_with(self, loaded: LoadedJudge) -> Origin:
        return provenance(self._context.camera, self._commissioned, loaded.vouched)

    def _take_up_recipe(self) -> None:
        """No plate is on the belt. Ends in order; whoever started this station starts it again."""
        self._show_no_more()  # the belt may bring a plate that nobody sees
        why = self._switch.not_ready
        wanted = self._switch.wanted
        problem = self._switch.commit(is_halted=self._state is StationState.HALTED)
        if problem and wanted is not None:
            self._say_recipe_refused(wanted, problem)
        self._emit({"restart": why})
        self._end(why)

    def _activate_judge(self, wanted: Named, tested: LoadedJudge, samples: Run) -> None:
        """Loaded and tested: it has the plates that come once its row is in the log."""
        samples = replace(samples, shift=self._audit_shift())
        rows: list[Body] = [self._switch.activation(self._settings.station.id, tested.detail)]
        if tested.judge.recipe.value.limit_samples.folder is not None:
            rows.append(self._samples.row(samples, self._context, tested.judge))

        def refused(answer: Json) -> None:
            self._switch.refuse(answer["error"])
            self._say_recipe_refused(wanted, answer["error"])

        self._outbox.submit(
            rows, done=lambda _: self._take_up_judge(tested, samples), refused=refused
        )

    def _take_up_judge(self, tested: LoadedJudge, samples: Run) -> None:
        """Between two plates: one whose leading edge was seen keeps the judge that it has."""
        former = weakref.ref(self._judge.classifier)
        self._judge = self._feed.judge = tested.judge
        self._origin = self._origin_with(tested)
        threading.Thread(target=give_back_memory, args=(former,), daemon=True).start()
        goes_back = self._switch.is_rollback
        self._switch.taken_up(tested.judge.recipe)
        self._samples.adopt(tested.judge.recipe, samples)
        self._say_drift(self._drift.leave())
        self._drift = self._make_drift(self._drift_log)
        self._set_problem("limit_samples", self._samples.problem)
        self._parity = {}
        self._set_problem("parity", "")
        self._set_attention()
        self._emit({"judge": tested.detail | {"recipe": self._judge.name}})
        if goes_back and not self._is_ending:
            self._begin_parity()

    def _begin_parity(self) -> None:
        name = self._judge.name
        threading.Thread(target=self._check_parity, args=(name,), daemon=True).start()

    def _check_parity(self, name: str) -> None:
        """What the restored model makes of stored plates that it judged before (I9), in a process
        that gives way to this one; some seconds' work that somebody waits for."""
        try:
            said = parity_aside(name, self._configuration.source)
        except Exception as error:  # noqa: BLE001  a model that was not checked is not as it was
            problem = f"{name}: stored plates could not be judged again: {error}"
            said = {"result": DIFFERS, "recipe": name, "problem": problem}
        self._post(ParityChecked(said))

    def _on_parity_checked(self, detail: dict[str, str]) -> None:
        is_of_this = detail["recipe"] == self._judge.name
        self._parity = detail if is_of_this else self._parity
        if is_of_this and detail["result"] != NOTHING:  # which says nothing of what differed
            is_equal = detail["result"] == EQUAL
            self._set_problem("parity", "" if is_equal else detail.get("problem", DIFFERS))
            self._set_attention()
        if not self._is_ending:
            self._outbox.submit([self._change(PARITY, "station", detail)])

    def _drop_recipe(self, problem: str) -> None:
        wanted = self._switch.drop(problem)
        if wanted is not None:
            self._say_recipe_refused(wanted, problem)

    def _say_recipe_refused(self, wanted: Named, problem: str) -> None:
        station_id = self._settings.station.id
        row, hot = refused_change(station_id, wanted.name, wanted.who, problem), self._switch.hot
        self._outbox.submit([row], done=lambda _: self._switch.forget(hot))

    @property
    def _is_complete(self) -> bool:
        """As many plates as were asked for have come."""
        wanted = self._options.plates
        return wanted is not None and self._feed.counts.plates >= wanted

    def _on_opened(self, work: PlateWork) -> None:
        self._in_work.add(work.result_id)
        self._open[work.result_id] = 0
        work.given = self._given
        # In the order of the rows: the plate is drawn by the seed that the log knows by then.
        if rows := self._audit.turn(self._audit_shift(), work.judge.recipe):
            self._outbox.submit(rows)
        work.is_audit_sample = self._audit.draw(work.result_id)
        self._line_side.plate_began(work.result_id, work.sequence, work.belt_place)
        self._serials.plate_began(work.result_id, work.belt_place)
        self._actuation.plate_opened(work.sequence, time.monotonic_ns())
        self._outbox.submit([opened_body(self._context, work)])

    def _on_left(self, result_id: str, belt_place: int | None) -> None:
        if result_id in self._open:
            self._open[result_id] = time.monotonic_ns()
        if belt_place is not None:
            self._line_side.plate_ended(result_id, belt_place)
            self._serials.plate_ended(result_id, belt_place)

    def _on_grew(self, work: PlateWork) -> None:
        """Let the journal begin what it would keep of the plate as it looks now."""
        if work.buffer is None or work.result_id not in self._in_work:
            return
        # First: once it is set, the length is the last one.
        is_complete = work.is_closed
        seems_passed = work.problem is None and not work.is_failing
        pixels = self._pixels(work, seems_passed)
        if pixels is not None:
            descriptor = work.buffer.descriptor
            self._outbox.arriving(work.result_id, pixels, descriptor, is_complete)

    def _on_scored(self, work: PlateWork) -> None:
        self._in_work.discard(work.result_id)
        if self._state is not StationState.OPERATIONAL and work.problem is None:
            work.problem, work.detail = Reason.HALTED, f"the station was {self._state}"
        work.association = self._serials.decide(work.result_id)
        self._write_result(scored_body(self._context, work), work)

    def _write_result(self, body: ResultBody, work: PlateWork | None) -> None:
        buffer = work.buffer if work else None
        self._line_side.decided(body.sequence)
        self._outbox.submit(
            [body],
            pixels=self._pixels(work, body.verdict is Verdict.PASS, body.score) if work else None,
            descriptor=buffer.descriptor if buffer else None,
            done=lambda answer: self._on_committed(body, work, answer),
        )
        if work is not None:
            work.submitted_ns = time.monotonic_ns()

    def _pixels(self, work: PlateWork, is_passed: bool, score: float | None = None) -> Json | None:
        """What the journal process reads from the plate's buffer, and what it keeps of it. `score`
        is the plate's, once it is known."""
        rows, keep = work.plate.length_px, self._recipe.value.keep
        if work.buffer is None or rows == 0:
            return None
        kept = []
        doubtful_from = math.inf if keep.whole_from_score is None else keep.whole_from_score
        is_doubtful = score is not None and score >= doubtful_from
        if not is_passed or work.is_audit_sample or is_doubtful:
            kept.append("evidence")
        if not is_passed or keep.is_pass_preview:
            kept.append("preview")
        return {
            "rows": rows,
            "width": self._context.geometry.scan_line_px,
            "band_rows": self._context.geometry.step_px,
            "keep": kept,
        }

    def _on_committed(self, body: ResultBody, work: PlateWork | None, answer: Json) -> None:
        """The record is durable: only from here on may the lamp show a pass."""
        self._last_verdict_ns = time.monotonic_ns()
        self._open.pop(body.result_id, None)
        is_late = self._context.is_late(body.last_scan_line_ns)
        self._stages[body.result_id] = _stage_times(body, work, answer)
        self._line_side.result(body, lambda: self._context.is_late(body.last_scan_line_ns))
        committed = Committed(
            body.result_id,
            body.sequence,
            body.verdict,
            is_production=body.provenance is Provenance.PRODUCTION,
            is_late=is_late,
        )
        is_told = self._actuation.committed(committed, time.monotonic_ns())
        latency_ms = _latency_ms(body, time.monotonic_ns()) if is_told else None
        self._tell_outputs()
        if latency_ms is not None:
            self._statistics.latencies_ms.append(latency_ms)
        if latency_ms is not None and work is not None:
            self._count_times(body, work, latency_ms)
        self._statistics.add(body)
        self._last_verdict_at = utc_now()
        if body.verdict is not Verdict.PASS:
            said = {"verdict": str(body.verdict), "reason": body.reason, "detail": body.detail}
            _LOG.info("result", result_id=body.result_id, **said)
        arrays = ("tile_grid", "tile_scores")
        record = {key: value for key, value in body.as_json().items() if key not in arrays}
        self._emit({"record": record | answer["pictures"], "latency_ms": latency_ms})
        if work is not None:
            # After the lamp's command: no light waits for what a plate says of the station.
            seen = look_at(body, work, self._context.geometry)
            self._say_health(self._health.plate(seen))
            self._watch_drift(body, work, seen)
            if not self._lending.lend(body, work, self._context):
                self._pool.give_back(work.buffer)

    def _count_times(self, body: ResultBody, work: PlateWork, latency_ms: float) -> None:
        last_ns = body.last_scan_line_ns or 0
        commanded_ns = last_ns + round(latency_ms * 1e6)
        took = self._times.took
        took("scored", last_ns, work.scored_ns)
        took("verdict", work.scored_ns, body.decided_ns)
        took("submitted", body.decided_ns, work.submitted_ns)
        took("committed", work.submitted_ns, self._last_verdict_ns)
        took("commanded", self._last_verdict_ns, commanded_ns)
        self._times.commanded(last_ns, commanded_ns)

    def _on_joined(self, joined: Joined) -> None:
        until = utc_now()
        body = DowntimeBody(
            station_id=self._settings.station.id,
            since_at=self._joined_since,
            until_at=until,
            reason="restart" if self._options.is_restart else "start",
            triggers=joined.triggers,
            from_ordinal=joined.from_ordinal,
            to_ordinal=joined.to_ordinal,
            is_counter_new=joined.is_counter_new,
        )
        self._outbox.submit([body])

    def _on_tick(self, tick: Tick) -> None:
        """A tick came through camera, ring and inspection: on to the journal. Not past a thread
        that hangs: the others let it through, but the plate that it holds gets a record only from
        this process's successor."""
        self._camera_tick = tick
        if "inspection" not in self._problems:
            self._outbox.tick(tick.number)
        self._say_health(self._health.camera(CameraHealth(tick.temperature_c)))

    def _on_journal_tick(self, answer: Json) -> None:
        self._on_upkeep(answer["upkeep"])
        self._on_shadow(answer.get("shadow"))
        self._set_problem("journal", "" if answer["ok"] else answer["error"])
        if answer["ok"]:
            self._on_durable_tick()

    def _on_upkeep(self, upkeep: Json) -> None:
        """What the journal says of disk, backups and clock: plates are judged all the same."""
        if upkeep == self._upkeep:
            return
        self._upkeep = upkeep
        is_ready = upkeep["disk_level"] < READY_LEVEL
        self._set_problem("pictures", upkeep["disk"] if is_ready else "")
        self._set_problem("disk", "" if is_ready else upkeep["disk"])
        self._set_problem("upkeep", "; ".join(upkeep["attentions"]))
        self._set_attention()

    def _on_shadow(self, wanted: Json | None) -> None:
        """What the log says is in the shadow; who started this process starts that one."""
        if wanted != self._lending.wanted:
            self._lending.want(wanted, self._pool, self._context)
            self._emit({"shadow": wanted})

    def _on_durable_tick(self) -> None:
        """The tick has been everywhere: the lease is renewed and the watchdog fed, also while the
        lamp process is being replaced: its starter sees to that, and plates are recorded."""
        self._last_tick_ns = time.monotonic_ns()
        self._set_problem("liveness", "")
        if not self._is_ending:  # else no more plates are seen: what is shown may lapse
            self._actuation.renew(self._last_tick_ns)
            self._renew_hand_test()
            self._tell_outputs(is_tick=True)
        notify("WATCHDOG=1")
        if self._last_tick_ns - self._last_figures_ns > 1e9:
            self._last_figures_ns = self._last_tick_ns
            self._emit({"figures": self.summary()})

    # --- health ---------------------------------------------------------------------------------

    def _say_health(self, rows: list[HealthRow]) -> None:
        for row in rows:
            self._outbox.submit([row])
            if isinstance(row, AttentionBody):
                word = "attention" if row.is_begin else "attention ended"
                _LOG.warning(word, result_id=row.result_id, name=row.name, text=row.text)
                self._say_attentions({"attention": row.as_json()})

    def _watch_drift(self, body: ResultBody, work: PlateWork, seen: Seen) -> None:
        context = self._context
        if work.judge is not self._judge:  # of the one before: its charts are closed
            return
        width = context.geometry.scan_line_px
        features = plate_features(work, seen.profile, work.judge.threshold, width)
        begun = {attention.name for attention in self._health.attentions}
        is_calm = body.verdict is not Verdict.UNDECIDED and not begun & _SPOILS_LIMITS
        rows = self._drift.plate(body.result_id, features, is_calm, "dirt" in begun)
        self._say_drift(rows)

    def _say_drift(self, rows: list[ChangeBody]) -> None:
        """The drift watch never ends a station: a row that may not follow is said, and what it
        says does not hold."""
        written = []
        for row in rows:
            if problem := drift_objection(self._drift_log, row.as_json()):
                self._on_drift_refused(row, {"error": problem})
                break  # those after it rest on it
            follow(self._drift_log, [row.as_json()])
            self._outbox.submit([row], refused=partial(self._on_drift_refused, row))
            said = {name: row.detail[name] for name in ("cause", "text") if name in row.detail}
            _LOG.warning(row.what, result_id=row.detail.get("result_id"), **said)
            written.append(row.as_json())
        if written:
            self._set_problem("drift", "")
            self._say_attentions({"drift": written})

    def _on_drift_refused(self, row: ChangeBody, answer: Json) -> None:
        if row.what == LIMITS and self._drift_log.limits.get(row.detail["key"]) == row.detail:
            del self._drift_log.limits[row.detail["key"]]
        self._drift = self._make_drift(self._drift_log)
        self._set_problem("drift", f"drift: the log does not take {row.what}: {answer['error']}")
        self._set_attention()

    def _say_attentions(self, event: Json) -> None:
        """Tell whoever watches, and the light."""
        self._emit({**event, "attentions": self._attentions})
        self._set_attention()

    @property
    def _attentions(self) -> list[str]:
        return [body.text for body in self._health.attentions] + self._drift.attentions

    @property
    def _attention_texts(self) -> list[str]:
        parts = (
            "log",
            "recording",
            "plc",
            "accept",
            "late",
            "disk",
            "upkeep",
            "scanner",
            "serials",
            "parity",
            "drift",
        )
        texts = [self._problems[part] for part in parts if part in self._problems]
        return texts + (self._attentions if hasattr(self, "_drift") else [])

    def _set_attention(self) -> None:
        """The light calls a person, where no plate's result is shown, until nothing is left."""
        texts = self._attention_texts
        if texts:
            self._policy.set_attention("; ".join(texts))
        else:
            self._policy.clear_attention()

    # --- limit samples --------------------------------------------------------------------------

    def _turn_samples(self) -> None:
        """With a new shift, or when a person asks: READY drops, and between two plates the station
        leaves OPERATIONAL until known plates got their verdicts."""
        if self._samples.state == "none" or not self._has_begun or self._is_ending:
            return
        self._samples.turn(self._audit_shift())
        self._set_problem("samples_due", self._samples.waiting)
        if self._samples.is_to_begin(is_belt_empty=not self._in_work):
            self._begin_samples()

    def _begin_samples(self) -> None:
        shift = self._audit_shift()
        self._samples.begin(self._context, self._judge, self._inspector, shift)
        self._set_problem("samples_due", "")
        self._settle_state()

    def _on_samples_shown(self, message: SamplesShown) -> None:
        if self._is_ending or not self._samples.is_current(message.showing):
            return
        run = message.run
        for finding in run.findings:
            _LOG.error("limit sample", cause=run.cause, finding=finding)
        row = self._samples.row(run, self._context, message.showing.judge)
        self._outbox.submit([row], done=lambda _: self._on_samples_written(message))

    def _on_samples_written(self, message: SamplesShown) -> None:
        """The log has it: only from here on may plates be judged."""
        if self._is_ending or not self._samples.is_current(message.showing):
            return
        self._samples.settle(message.run)
        self._set_problem("limit_samples", self._samples.problem)
        self._settle_state()
        if not self._is_watching:
            self._begin_to_watch()

    def _ask_for_samples(self, who: str, account: str) -> Json:
        refusal = self._samples.ask(f"asked for by {who}")
        if refusal:
            return {"ok": False, "error": refusal}
        self._outbox.submit([self._change("limit_samples_asked", who, {}, account)])
        self._turn_samples()
        return {"ok": True, "state": str(self._state)}

    # --- lamp -----------------------------------------------------------------------------------

    def _open_lamp(self, timeout_s: float) -> None:
        lamp = LampClient(self._settings.station.runtime_dir)
        lamp.connect(timeout_s)
        self._lamp = lamp
        self._selector.register(lamp, selectors.EVENT_READ, self._read_lamp)

    def _test_lamp(self, is_restart: bool) -> None:
        """Light every element once; after a failure the confirmed FAULT write stands for it."""
        assert self._lamp is not None
        try:
            if not is_restart:
                self._lamp.test()
                return
            status = self._lamp.status()
        except (LampError, PeerGone, TimeoutError) as error:
            raise StationError(f"the lamp test failed: {error}") from error
        if status["state"] != LightState.FAULT or status["doubt"]:
            # Plates are inspected and recorded; no pass shows until the light is believed.
            self._actuation.distrust(status["doubt"] or f"it shows {status['state']}, not fault")
            self._say_doubt()

    def _send_show(self, wanted: Meaning) -> int | None:
        """The command's number; None if no lamp process takes it."""
        is_starting = self._state is StationState.PREOPERATIONAL and not self._has_begun
        if self._lamp is None or is_starting:
            return None
        if self._hand_test.is_on(time.monotonic_ns()):
            return None
        state, result_id = wanted
        provenance, lease_s = self._context.provenance, self._settings.light.lease_s
        try:
            return self._lamp.send_show(state, result_id, provenance, lease_s)
        except PeerGone:
            self._lose_lamp()
        except BlockingIOError:
            pass
        return None

    def _read_lamp(self) -> None:
        if self._lamp is None:  # lost while an event before this one was handled
            return
        try:
            answers = self._lamp.receive_ready()
        except PeerGone:
            self._lose_lamp()
            return
        for answer in answers:
            self._hand_test.shown(answer)
            self._actuation.answered(answer)
        self._say_doubt()
        for event in self._lamp.take_events():
            self._on_output_event(event)

    def _say_doubt(self) -> None:
        self._set_problem("lamp", self._actuation.doubt)

    def _write_actuation(self, actuated: Actuated) -> None:
        if actuated.is_confirmed and actuated.shown_ns is not None:
            self._times.took("confirmed", actuated.commanded_ns, actuated.shown_ns)
        if actuated.shown_ns is None and actuated.command != "withheld":
            _LOG.warning("light", **asdict(actuated))
        stages = self._stages.pop(actuated.result_id, {})
        body = ActuationBody(station_id=self._settings.station.id, **asdict(actuated), **stages)
        self._outbox.submit([body])

    # --- PLC and accept ---------------------------------------------------------------------------

    def _tell_outputs(self, is_tick: bool = False) -> None:
        """How the station is, what became of plates, where the belt is; before the first tick,
        nothing: the outputs say that nobody is there."""
        if not (self._line_side.is_used and self._last_tick_ns) or self._lamp is None:
            return
        word = Word(
            ready=not self._not_ready,
            busy=bool(self._open),
            error=bool(self._blocking),
            attention=bool(self._attention_texts),
        )
        try:
            self._line_side.flush(self._lamp, word, self._last_tick_ns, is_tick)
        except PeerGone:
            self._lose_lamp()
        except BlockingIOError:  # it does not read; the next turn tries again
            return

    def _on_output_event(self, event: Json) -> None:
        match event["op"]:
            case "plc":
                self._set_problem("plc", event["problem"])
                self._plc_counts = {f"plc_{name}": event[name] for name in ("overruns", "triggers")}
            case "plc_ack":
                self._acknowledge("plc")
            case "serial" if self._serials.is_expected:
                self._serials.said(
                    str(event["text"]).encode("latin-1", "replace"), Identity.PLC, event["at_ns"]
                )
            case "accept_problem":
                self._set_problem("accept", event["problem"])
            case "test" | "output":
                self._hand_test.answered(event)
            case "accept":
                self._on_accept({key: value for key, value in event.items() if key != "op"})
        self._set_attention()

    def _on_accept(self, told: Json) -> None:
        """The accept output was told what to do about a plate that passed, and why."""
        body = AcceptBody(station_id=self._settings.station.id, **told)
        if not self._line_side.is_news(body.result_id):
            _LOG.warning("accept", said_too_late=body.command, result_id=body.result_id)
            return
        self._write_accept(body)
        if body.command == "withheld_late":
            detail = {"result_id": body.result_id}
            self._outbox.submit([self._change("withheld_late", "station", detail)])
            self._set_problem("late", _LATE)

    def _write_accept(self, body: AcceptBody) -> None:
        self._statistics.accepts[body.command] += 1
        self._outbox.submit([body])

    def _settle_accepts(self) -> None:
        """One row for each plate that passed, also where nobody knows what became of it."""
        given_up = self._line_side.without_answer(time.monotonic_ns())
        for result_id, was_sent in given_up.items():
            self._write_accept(
                AcceptBody(
                    station_id=self._settings.station.id,
                    result_id=result_id,
                    command="unknown" if was_sent else "withheld",
                    is_confirmed=None,
                    commanded_ns=None,
                    shown_ns=None,
                    detail=_ACCEPT_UNKNOWN if was_sent else "no lamp process was told of it",
                )
            )

    def _acknowledge(self, who: str, account: str = "") -> None:
        """A person has seen what was held, and what came too late."""
        self._policy.acknowledge()
        self._set_problem("late", "")
        self._set_problem("serials", "")
        self._set_attention()
        self._outbox.submit([self._change("ack", who, {}, account)])

    # --- part serials, operator, lot, job ---------------------------------------------------------

    def _say_serials(self) -> None:
        """What was read and became no plate's serial: its row, and a person is called."""
        for row in self._serials.take_rows():
            self._outbox.submit([row])
            if row.why == "unclaimed" and row.detail not in UNSEEN:
                self._set_problem("serials", _UNCLAIMED)
                self._set_attention()

    def _say_given(self, what: str, text: str, who: str, account: str = "") -> str:
        """Something holds for the plates from here on; why it is refused, empty if it is not."""
        name = admit(text) if text else ""
        if isinstance(name, Refused):
            return f"{what} {name.shown!r}: {name.why}"
        if what == "serial":
            if not name:
                return "serial: empty"
            self._serials.given(name)
        else:
            self._given = self._given.saying(what, name)
        self._outbox.submit([self._change(what, who, {VALUE: name}, account)])
        return ""

    # --- the lamp process goes and comes ----------------------------------------------------------

    def _lose_lamp(self) -> None:
        if self._lamp is None:
            return
        self._selector.unregister(self._lamp)
        self._lamp.close()
        self._lamp = None
        self._line_side.forget_lamp()
        self._actuation.lamp_lost()
        self._say_doubt()

    def _keep_connections(self) -> None:
        """Look for a journal or lamp process that has been replaced."""
        self._read_lamp()  # what it answered while something else was done is no silence
        self._actuation.check(time.monotonic_ns())
        self._say_doubt()
        self._check_liveness()
        self._settle_accepts()
        self._lending.keep()
        self._outbox.keep_connected()
        if self._lamp is None:
            with contextlib.suppress(PeerGone, TimeoutError):
                self._open_lamp(timeout_s=0.0)
        is_opened_again = "camera" in self._problems and "inspection" not in self._problems
        if is_opened_again and not self._feed.hangs:
            # No tick comes while a camera opens; the light shows FAULT, and a restart would only
            # open it anew. The acquire thread itself ends a camera that never opens, and is not
            # waited for where it does not turn.
            notify("WATCHDOG=1")

    def _check_liveness(self) -> None:
        """What hangs is a problem before the watchdog acts, and a pass that lapsed stays off."""
        if hasattr(self, "_inspector"):
            hangs = self._inspector.busiest_s() > _BUSY_LIMIT_S
            self._set_problem("inspection", "an inspect thread hangs" if hangs else "")
        silent_s = (time.monotonic_ns() - self._last_tick_ns) / 1e9
        if self._last_tick_ns and not self._is_ending and silent_s > self._settings.light.lease_s:
            self._set_problem(
                "liveness", f"no tick has come through for {self._settings.light.lease_s:g} s"
            )

    # --- state and commands ---------------------------------------------------------------------

    def _set_state(self, state: StationState) -> None:
        if state is not self._state:
            _LOG.info("state", state=str(state), problems=dict(self._problems))
            self._state = state
            self._emit({"state": str(state), "problems": dict(self._problems)})

    def _set_problem(self, part: str, problem: str) -> None:
        """A part of the station has a problem (or none, with an empty text)."""
        if self._problems.get(part, "") == problem:
            return
        _LOG.log(
            logging.WARNING if problem else logging.INFO, "problem", part=part, problem=problem
        )
        if problem:
            self._problems[part] = problem
            self._emit({"problem": {"part": part, "text": problem}})
        else:
            self._problems.pop(part, None)
        self._settle_state()

    def _settle_state(self) -> None:
        """What problems and limit samples allow, unless a person halted it or it has not begun."""
        is_working = self._state in (StationState.OPERATIONAL, StationState.ERROR)
        if is_working or (self._has_begun and self._state is StationState.PREOPERATIONAL):
            self._set_state(self._working_state)
        self._set_fault()

    @property
    def _working_state(self) -> StationState:
        """Of a station that nobody halted; the only place that says OPERATIONAL."""
        if self._blocking:
            return StationState.ERROR
        if self._samples.may_judge or self._samples.waiting:
            return StationState.OPERATIONAL
        return StationState.PREOPERATIONAL

    @property
    def _blocking(self) -> list[str]:
        """Problems that keep plates from being judged or recorded."""
        return [text for part, text in self._problems.items() if part not in _NOT_BLOCKING]

    @property
    def _not_ready(self) -> list[str]:
        """Why no plate should come now; empty if one may. The one place that says so."""
        reasons = [] if self._state is StationState.OPERATIONAL else [f"the state is {self._state}"]
        if self._is_ending:
            reasons.append("the station is ending")
        drops = _DROPS_READY | (self._problems.keys() - _NOT_BLOCKING)
        return reasons + [
            f"{part}: {self._problems[part]}" for part in self._problems.keys() & drops
        ]

    def _set_fault(self) -> None:
        """The light shows FAULT while anything blocks, and after a person's halt or stop."""
        reasons = [*self._blocking, *(["halted"] if self._state is StationState.HALTED else [])]
        reasons += ["the station is ending"] if self._is_told_to_end else []
        if self._has_begun and self._state is StationState.PREOPERATIONAL:
            reasons.append("limit samples are judged")
        if reasons:
            self._policy.set_fault("; ".join(reasons))
        else:
            self._policy.clear_fault()

    def _control_command(self, op: str, who: str, account: str, text: str) -> Json:
        if op == "status":
            return {"ok": True, "status": self.status()}
        if op == "look":
            if hasattr(self, "_feed"):
                self._feed.look()
            return {"ok": True, "state": str(self._state)}
        if self._is_ending:
            # Said now, it would hold for nothing: what is started next does not know of it.
            return {"ok": False, "error": f"{op}: the station is ending; say it to the next one"}
        if op == "drift":
            return self._relearn_drift(text, who, account)
        if op in ("recipe", "rollback") and not self._is_watching:
            # The end of the start's own samples begins the watch: they count for what started.
            return {"ok": False, "error": f"{op}: the station is starting; ask again"}
        if op == "recipe":
            return self._ask_for_recipe(text, who, account)
        if op == "rollback":
            return self._ask_for_rollback(text, who, account)
        if op == "limit_samples":
            return self._ask_for_samples(who, account)
        if op in ("light", "output"):
            return self._try_out(op, text, who, account)
        if op in SAYINGS:
            refusal = self._say_given(op, text, who, account)
            state = {"ok": True, "state": str(self._state)}
            return {"ok": False, "error": refusal} if refusal else state
        if op in ("halt", "resume") and not self._has_begun:
            self._halt_start(op == "halt")
        elif op == "halt":
            self._set_state(StationState.HALTED)
        elif op == "resume" and self._state is StationState.HALTED:
            self._hand_test.end(self._lamp)
            self._set_state(self._working_state)
        elif op == "ack":
            held = self._policy.held(time.monotonic_ns())
            if text and held not in ("", text):
                return {
                    "ok": False,
                    "error": f"{held} is held by now: look at it, then acknowledge",
                }
            self._acknowledge(who, account)
        elif op == "relearn":
            self._say_health(self._health.relearn())
        self._set_fault()
        self._actuation.update(time.monotonic_ns())
        if op != "ack":
            self._outbox.submit([self._change(op, who, {}, account)])
        return {"ok": True, "state": str(self._state)}

    def _halt_start(self, is_halted: bool) -> None:
        """Halted or resumed before the log took the start: it begins so, or its successor does."""
        self._starts_halted = is_halted
        self._hand_test.end(self._lamp)
        self._set_state(StationState.HALTED if is_halted else StationState.PREOPERATIONAL)
        try:
            RecipeFolder.of(self._settings).keep_halted(is_halted)
        except (OSError, ConfigError) as error:
            _LOG.warning("halt not kept for another start", problem=str(error))

    def _relearn_drift(self, reason: str, who: str, account: str) -> Json:
        if not hasattr(self, "_drift"):
            return {"ok": False, "error": "the station is starting; ask again"}
        problem = words_problem("reason", reason) or ("" if reason else "say why: a reason")
        if problem:
            return {"ok": False, "error": problem}
        self._say_drift(self._drift.relearn(who, reason, account))
        return {"ok": True, "state": str(self._state)}

    def _ask_for_recipe(self, name: str, who: str, account: str) -> Json:
        refusal = self._switch.ask(name, who, self._context.camera)
        if refusal:
            return {"ok": False, "error": refusal}
        self._outbox.submit([self._change("recipe", who, {"recipe": name}, account)])
        return {"ok": True, "state": str(self._state)}

    def _ask_for_rollback(self, text: str, who: str, account: str) -> Json:
        """`text`: the version that judged before, a blank, and why."""
        name, _, reason = text.partition(" ")
        if problem := words_problem("reason", reason) or ("" if reason else "a roll-back says why"):
            return {"ok": False, "error": problem}
        refusal = self._switch.ask(name, who, self._context.camera, True, reason)
        if refusal:
            return {"ok": False, "error": refusal}
        detail = {"recipe": name, "from": self._judge.name, "reason": reason}
        self._outbox.submit([self._change("model_rollback", who, detail, account)])
        return {"ok": True, "state": str(self._state)}

    def _try_out(self, op: str, text: str, who: str, account: str) -> Json:
        """Lamp or an output, by hand: recorded first, then shown."""
        refusal = self._untestable(op, text)
        if refusal:
            return {"ok": False, "error": refusal}
        self._hand_test.ask(op, text)
        row = self._change(op, who, {"tested": text[:40]}, account)
        self._outbox.submit([row], done=lambda _: self._begin_hand_test(op, text))
        return {"ok": True, "state": str(self._state)}

    def _untestable(self, op: str, text: str) -> str:
        refusal = self._hand_test.refusal(self._state, len(self._open), op, text)
        return refusal or ("no lamp process answers" if self._lamp is None else "")

    def _begin_hand_test(self, op: str, text: str) -> None:
        """Its row is durable; what was true when it was asked for is looked at again."""
        refusal = "the station is ending" if self._is_ending else self._untestable(op, text)
        if refusal or self._lamp is None:
            self._hand_test.refuse(refusal)
            return
        try:
            self._hand_test.begin(self._lamp, op, text, time.monotonic_ns())
        except (PeerGone, BlockingIOError) as error:
            self._hand_test.refuse(f"the lamp process does not take it: {error}")

    def _renew_hand_test(self) -> None:
        if self._lamp is not None:
            with contextlib.suppress(PeerGone, BlockingIOError):
                self._hand_test.renew(self._lamp, time.monotonic_ns())

    def _change(self, what: str, who: str, detail: dict[str, str], account: str = "") -> ChangeBody:
        said = {"what": what, "who": who, "detail": detail, "account": account}
        return ChangeBody.model_validate({"station_id": self._settings.station.id, **said})

    def status(self) -> Json:
        """What the station is doing now."""
        state, shown_id = self._actuation.shown or (LightState.FAULT, "")
        oldest_ns = next(filter(None, self._open.values()), 0)
        camera_pid = self._feed.camera_pid if hasattr(self, "_feed") else None
        return {
            "station_id": self._settings.station.id,
            "state": str(self._state),
            "problems": self._problems,
            "ready": not self._not_ready,
            "not_ready": self._not_ready,
            **self._origin_words(),
            "attentions": self._attentions if hasattr(self, "_drift") else [],
            "drift": self._drift.status() if hasattr(self, "_drift") else None,
            "calls": self._attention_texts,
            "upkeep": self._upkeep,
            "given": asdict(self._given),
            "recipe_switch": self._switch.status,
            "parity": self._parity,
            "hand_test": self._hand_test.status,
            "limit_samples": self._samples.status,
            "serials": dict(self._serials.counts),
            "light": str(state),
            "light_result_id": shown_id,
            "light_confirmation": self._actuation.confirmation,
            "last_verdict_at": self._last_verdict_at,
            "tick_age_s": _age_s(self._last_tick_ns),
            "verdict_age_s": _age_s(self._last_verdict_ns),
            "waiting_s": _age_s(oldest_ns) or 0.0,
            "pid": os.getpid(),
            "camera_pid": camera_pid,
            "process": said_figures(os.getpid()),
            "camera_process": said_figures(camera_pid),
            "version": program_version(),
            "uptime_s": round(time.monotonic() - self._started_at, 3),
            "results": self._results_by_reason(),
            "lamp_commands": asdict(self._actuation.counts),
            "times": self._times.as_json(),
            **(self._parts() | self._depths() | self.summary() if hasattr(self, "_feed") else {}),
        }

    def _results_by_reason(self) -> list[Json]:
        found = sorted(self._statistics.reasons.items(), key=str)
        return [
            {"verdict": str(verdict), "reason": reason and str(reason), "count": count}
            for (verdict, reason), count in found
        ]

    def _parts(self) -> Json:
        """What judges, and what it is judged by."""
        recipe, classifier = self._judge.recipe, self._judge.classifier
        return {
            "recipe": {
                "id": recipe.value.id,
                "version": recipe.value.version,
                "sha256": recipe.sha256,
            },
            "configuration_sha256": self._configuration.sha256,
            "shadow": self._lending.status,
            "model": {
                "id": classifier.model_id,
                "sha256": classifier.model_sha256,
                "runtime": classifier.runtime,
                "precision": classifier.precision,
                "threshold": self._judge.threshold,
            },
        }

    def _depths(self) -> Json:
        """The camera, and how full everything is that can fill."""
        camera, tick = self._context.camera, self._camera_tick
        unsent, unanswered = self._outbox.depths
        return {
            "camera": {
                "serial": camera.serial,
                "vendor": camera.vendor,
                "model": camera.model,
                "temperature_c": tick and tick.temperature_c,
                "overrun_frames": tick.overrun if tick else 0,
            },
            "queues": {
                "ring": tick.ring_filled if tick else 0,
                "inspect": self._inspector.waiting,
                "plate_buffers": self._pool.in_use - self._lending.lent,
                "outbox_unsent": unsent,
                "outbox_unanswered": unanswered,
                "lamp_answers": self._actuation.waiting,
                "plates_open": len(self._open),
            },
            "capacities": {
                "ring": self._feed.ring_slots,
                "plate_buffers": self._settings.station.plate_buffers,
            },
        }

    def _origin_words(self) -> Json:
        """What the plates' light may mean, and why."""
        if not hasattr(self, "_origin"):
            return {"provenance": None, "provenance_why": "no camera is open yet"}
        return {"provenance": str(self._origin.provenance), "provenance_why": self._origin.why}

    def summary(self) -> Json:
        """Figures of this run."""
        statistics, counts = self._statistics, self._feed.counts
        verdicts = statistics.verdicts
        seconds = time.monotonic() - self._started_at
        figures: Json = {
            "plates": sum(verdicts.values()) - statistics.gaps,
            "pass": verdicts[Verdict.PASS],
            "fail": verdicts[Verdict.FAIL],
            "undecided": verdicts[Verdict.UNDECIDED],
            "gaps": statistics.gaps,
            "frames": counts.frames,
            "lost_frames": counts.lost_frames,
            "incomplete_frames": counts.incomplete_frames,
            "camera_restarts": counts.camera_restarts,
            "tiles": statistics.tiles,
            "seconds": round(seconds, 3),
            "mb_per_s": round(counts.bytes / 1e6 / seconds, 3),
            "latency_ms": _percentiles(statistics.latencies_ms),
            "attentions": self._attentions,
            "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        }
        figures |= self._plc_counts
        if self._line_side.has_accept:
            names = ("accept", "withheld_late", "withheld", "unknown")
            figures["accept"] = {name: statistics.accepts[name] for name in names}
        if self._recorder is not None:
            figures["recording"] = asdict(self._recorder.counts)
        if statistics.truly_good + statistics.truly_defective:
            figures["truly_defective"] = statistics.truly_defective
            figures["truly_good"] = statistics.truly_good
            figures["escapes"] = statistics.escapes
            figures["false_rejects"] = statistics.false_rejects
        return figures


def _feature_detail(camera: CameraInfo) -> dict[str, str]:
    """A camera's features as it read them back; what it rounded is said, never just accepted."""
    if not camera.features:
        return {}
    detail = {
        "camera_features": json.dumps(camera.features),
        "camera_features_sha256": camera.features_sha256,
    }
    if camera.rounded:
        detail["camera_rounded"] = json.dumps(camera.rounded)
    return detail


def _commissioning_name(origin: Origin, hello: Json) -> dict[str, str]:
    """The file by which plates are production: that which was signed last."""
    if origin.provenance is not Provenance.PRODUCTION:
        return {}
    return {"commissioning_sha256": hello["signed_files"][0]}


def _flat_field_names(flat_field: FlatField | None) -> dict[str, str]:
    if flat_field is None:
        return {}
    return {"flat_field_id": flat_field.id, "flat_field_sha256": flat_field.sha256}


def _stage_times(body: ResultBody, work: PlateWork | None, answer: Json) -> Json:
    """Stages of a result that lie after its row was made, or beside it: microseconds after
    `decided_ns`."""
    at_ns = {
        "scored_us": work.scored_ns if work else 0,
        "received_us": answer["received_ns"],
        "durable_us": answer["durable_ns"],
        "committed_us": answer["committed_ns"],
    }
    return {name: round((ns - body.decided_ns) / 1000) for name, ns in at_ns.items() if ns}


def _age_s(since_ns: int) -> float | None:
    """Seconds since a moment on CLOCK_MONOTONIC; None if it has not come (0)."""
    return (time.monotonic_ns() - since_ns) / 1e9 if since_ns else None


def _latency_ms(body: ResultBody, commanded_ns: int) -> float | None:
    """From the last scan line in memory to the lamp command; None if that line was never seen."""
    if body.last_scan_line_ns is None or body.reason in _WITHOUT_END:
        return None
    return (commanded_ns - body.last_scan_line_ns) / 1e6


def _percentiles(latencies_ms: Collection[float]) -> Json:
    """p50, p99 and max of the time from the last scan line in memory to the lamp command, of the
    last plates."""
    if not latencies_ms:
        return {"p50": None, "p99": None, "max": None}
    p50, p99 = np.percentile(list(latencies_ms), [50, 99]).tolist()
    return {"p50": round(p50, 2), "p99": round(p99, 2), "max": round(max(latencies_ms), 2)}
