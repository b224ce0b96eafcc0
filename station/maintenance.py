"""What the journal process does for itself: disk, pictures that may go, backups, the clock.

All of it runs in the journal's own loop, in steps of a few milliseconds and only while no row
waits: here is the only writer of the log and the only one that removes pictures. What takes long
(the catalogue, the search for strays, the copy of the log) is done by processes that give way to
every other one; what they find is looked at again here, against the log as it is by then.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, TypeVar

from pydantic import ValidationError

from station.clock import Clock, ClockWatch, SystemClock
from station.config import ConfigError, Configuration, KeepRecipe
from station.heap import give_back_freed
from station.idle import start_idle
from station.images import ImageError, ImageFolder, Quarantine
from station.ingress import name_problem, words_problem
from station.log_lines import get_logger
from station.qms import DATABASE, Store, StoreRefused
from station.recipes import active_recipe
from station.record import (
    BackupBody,
    Body,
    CheckpointBody,
    ClockBody,
    DiskBody,
    HoldBody,
    ReleaseBody,
    RetentionBody,
    TombstoneBody,
    Verdict,
    rfc3339,
)
from station.retention import (
    FOLDERS,
    PASSES_GO_LEVEL,
    Order,
    Picture,
    Plan,
    Room,
    Step,
    objection,
    pictures_of,
)

_LOG = get_logger("journal.maintenance")
Json = dict[str, Any]
_B = TypeVar("_B", RetentionBody, ClockBody, DiskBody, CheckpointBody)

OWN_KINDS = ("tombstone", "retention", "disk", "clock", "checkpoint")
"""Rows that only the journal process itself writes."""
_HYSTERESIS = 1.1
_LOOK_EVERY_S = 0.25
_SWEEP_EVERY_S = 60.0
_COUNT_EVERY_S = 3600.0
"""All pictures are counted anew; between, what is written and removed is added up."""
_FIRST_SWEEP_S = 10.0
_FOLDERS_A_PASS = 16
_TOMBSTONES_A_STEP = 8
_FILES_A_STEP = 16
_PATIENCE_S = 1.0
"""A line that is never idle lets one step through so often."""
_PLANS_MAY_FAIL = 3
_PLAN_LIMIT_S = 3600.0
_BACKUP_LIMIT_S = 12 * 3600.0
_RETRY_BACKUP_S = 3600.0
_CHECKPOINT_LIMIT_S = 3600.0
_FIRST_CHECKPOINT_S = 600.0
_MOST_NEW_PATHS = 100_000


def disk_level(level: int, free_mb: float, limits_mb: Sequence[float]) -> int:
    """The level of the disk after `level`: as many limits as the free space is below. The way back
    needs a tenth more, but for the last: where rows fit again, they are written."""
    entered = sum(free_mb < limit for limit in limits_mb)
    leave = [*(limit * _HYSTERESIS for limit in limits_mb[:-1]), limits_mb[-1]]
    left = sum(free_mb < limit for limit in leave)
    return max(entered, min(level, left))


_LEVEL_TEXTS = {
    1: "previews of passed plates are not kept",
    2: "no picture of a passed plate is kept and the oldest are removed",
    3: "the station is not ready",
    4: "nothing is written",
}


@dataclass(slots=True)
class _Work:
    """A plan that is being carried out."""

    plan: Plan
    doomed: deque[Step]
    leftovers: deque[str]
    orphans: deque[str]

    @classmethod
    def of(cls, plan: Plan) -> _Work:
        return cls(plan, deque(plan.doomed), deque(plan.leftovers), deque(plan.orphans))

    @property
    def is_done(self) -> bool:
        return not (self.doomed or self.leftovers or self.orphans)


@dataclass(slots=True)
class _Child:
    """A process of low priority, and a thread that waits for what it says."""

    process: subprocess.Popen[str] | None = None
    thread: threading.Thread | None = None
    answer: tuple[int, str, str] | None = None
    """Exit status, stdout, stderr."""
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _is_stopped: bool = False

    @property
    def is_running(self) -> bool:
        """Until what it said has been taken."""
        return self.thread is not None or self.answer is not None

    def start(
        self,
        arguments: Sequence[str],
        given: str,
        limit_s: float,
        wake: Callable[[], None],
        is_awaited: bool = False,
    ) -> None:
        thread = threading.Thread(
            target=self._run, args=(arguments, given, limit_s, wake, is_awaited), daemon=True
        )
        try:
            thread.start()
        except RuntimeError as error:  # the process table is full
            self.answer = (-1, "", str(error))
        else:
            self.thread = thread

    def take(self) -> tuple[int, str, str] | None:
        """What it said, once it has ended."""
        if self.answer is None:
            return None
        if self.thread is not None:
            self.thread.join()
        answer, self.answer, self.thread, self.process = self.answer, None, None, None
        return answer

    def stop(self) -> None:
        with self._lock:
            self._is_stopped = True
            if self.process is not None:
                self.process.kill()
        if self.thread is not None:
            self.thread.join()

    def _run(
        self,
        arguments: Sequence[str],
        given: str,
        limit_s: float,
        wake: Callable[[], None],
        is_awaited: bool,
    ) -> None:
        pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        try:
            with self._lock:
                if self._is_stopped:
                    return
                self.process = start_idle(*arguments, is_awaited=is_awaited, **pipes)
            out, said = self.process.communicate(given, timeout=limit_s)
            self.answer = (self.process.returncode, out, said)
        except Exception as error:  # noqa: BLE001  without an answer none would ever follow it
            if self.process is not None:
                self.process.kill()
            self.answer = (-1, "", str(error) or repr(error))
        wake()


@dataclass(slots=True)
class _Counts:
    sweeps: int = 0
    tombstones: int = 0
    removed: int = 0
    removed_mb: float = 0.0
    orphans: int = 0
    sweep_ended_s: float | None = None
    kept_mb: float | None = None
    """Of all pictures; None before they were counted."""
    kept_since_mb: float = 0.0
    """Written less removed since they were last to be counted."""
    count_due: float = 0.0


@dataclass(slots=True)
class _Backup:
    ok_at: str | None = None
    problem: str = ""
    tried_s: float | None = None
    generation: str = ""
    is_lacking: bool = False
    """The newest copy was made, and lacks pictures."""
    unsaid: BackupBody | None = None
    """A row that the disk had no room for yet."""
    child: _Child = field(default_factory=_Child)


@dataclass(slots=True)
class _Checkpoints:
    tried: int = 0
    """Since this process began, whatever came of it."""
    due: float = 0.0
    """In monotonic time."""
    last_at: str | None = None
    size: int = 0
    is_signed: bool = False
    is_asked: bool = False
    problem: str = ""
    unsaid: CheckpointBody | None = None
    child: _Child = field(default_factory=_Child)


class Upkeep:
    """The journal's maintenance. `step` is called at every turn of the journal's loop."""

    def __init__(
        self,
        configuration: Configuration,
        store: Store,
        images: ImageFolder,
        helpers: Executor,
        wake: Callable[[], None],
        clock: Clock | None = None,
    ) -> None:
        """`helpers` runs what may take some milliseconds; `wake` ends the loop's wait."""
        self._settings = configuration
        self._station_id = configuration.station.id
        self._directory = configuration.journal.directory
        self._store = store
        self._images = images
        self._helpers = helpers
        self._wake = wake
        self._holds = {body["hold_id"]: HoldBody.model_validate(body) for body in store.holds()}
        self._hold_ids = store.hold_ids()
        self._rules: RetentionBody | None = _last(store, RetentionBody)
        self._clock = ClockWatch(
            clock or SystemClock(),
            self._station_id,
            3600.0 * configuration.retention.clock_jump_limit_h,
            _last(store, ClockBody),
            store.newest_label(),
        )
        last_disk = _last(store, DiskBody)
        self.level = self._said_level = last_disk.level if last_disk else 0
        self.free_mb = 0.0
        self._problems: dict[str, str] = {}
        self._failed_plans = 0
        self._counts = _Counts()
        self._planner = _Child()
        self._work: _Work | None = None
        self._new_paths: dict[str, int] = {}
        """Files that rows of this life name, and the newest such row, as far as no catalogue is
        known to have seen it."""
        self._paths_since = store.head()[0]
        self._folder = 0
        self._done_in_plan = 0
        self._is_asked = False
        """Another sweep is wanted after this one."""
        self._is_awaited = False
        """Somebody waits for this one."""
        self._quarantine = Quarantine(0, 0)
        self._min_pass_days = KeepRecipe().min_pass_days
        self._read_recipe()
        backup = configuration.retention.backup
        self._backups_at = str(backup.directory.absolute()) if backup else ""
        ok = store.last_backup(self._backups_at)
        self._backup = _Backup(ok_at=ok["written_at"] if ok else None)
        now = time.monotonic()
        self._checkpoints = _Checkpoints()
        last_checkpoint = _last(store, CheckpointBody)
        if last_checkpoint is not None:
            self._on_checkpoint(last_checkpoint)
        self._checkpoints.due = now + self._checkpoint_wait_s()
        self._look_due = self._stepped_at = now
        self._sweep_due = now + _FIRST_SWEEP_S

    # --- every turn -----------------------------------------------------------------------------

    def step(self, is_idle: bool) -> None:
        """Do a little; nothing that could wait while a row does. Raises `StoreError`."""
        now = time.monotonic()
        if now >= self._look_due:
            self._look_due = now + _LOOK_EVERY_S
            self._look()
            self._take_plan()
            self._take_backup()
            self._begin_sweep(now)
            self._begin_backup(now)
            self._take_checkpoint()
            self._begin_checkpoint(now)
        if self._work is not None and (is_idle or now - self._stepped_at > _PATIENCE_S):
            self._stepped_at = now
            self._carry_out(self._work)

    def close(self) -> None:
        self._planner.stop()
        self._backup.child.stop()
        self._checkpoints.child.stop()

    def _look(self) -> None:
        status = os.statvfs(self._directory)
        self.free_mb = status.f_bavail * status.f_frsize / 1e6
        limits = self._settings.journal.disk_limits_mb
        self.level = disk_level(self.level, self.free_mb, limits)
        rows: list[Body] = [*self._clock.look()]
        if self.level != self._said_level:
            rows.append(
                DiskBody(
                    **self._said(),
                    level=self.level,
                    before=self._said_level,
                    free_mb=self.free_mb,
                    limits_mb=limits,
                )
            )
        rules = self._wanted_rules()
        if self._rules is None or _says(rules) != _says(self._rules):
            rows.append(rules)
        if rows and self._append(rows):
            self._clock.said()
            self._said_level = self.level
            self._rules = next((row for row in rows if row is rules), self._rules)

    def _append(self, rows: Sequence[Body]) -> bool:
        """False if the disk has no room for them now; they are tried again."""
        try:
            self._store.append(rows)
        except StoreRefused as error:
            self._problems["log"] = str(error)
            return False
        self._problems.pop("log", None)
        self.noted(rows)
        return True

    def _said(self) -> dict[str, Any]:
        """By whom, and when by the clock that is watched."""
        return {"station_id": self._station_id, "written_at": rfc3339(self._clock.now())}

    def _wanted_rules(self) -> RetentionBody:
        rules = self._settings.retention.rules.items()
        return RetentionBody(
            **self._said(),
            rules={kind: rule.model_dump(exclude_none=True) for kind, rule in rules},
            min_pass_days=self._min_pass_days,
            clock_jump_limit_h=self._settings.retention.clock_jump_limit_h,
        )

    def _read_recipe(self) -> None:
        """The recipe says how long passed plates' pictures stay at least; it may have changed."""
        with contextlib.suppress(ConfigError):
            recipe = active_recipe(self._settings).value
            self._min_pass_days = recipe.keep.min_pass_days

    # --- what the journal asks ------------------------------------------------------------------

    def kept(self, row: Body, keep: Collection[str]) -> list[str]:
        """Which of the wanted pictures the disk has room for."""
        verdict = getattr(row, "verdict", None)
        if verdict is not Verdict.PASS:
            return list(keep)
        if self.level >= PASSES_GO_LEVEL:
            return []
        return [role for role in keep if not (self.level and role == "preview")]

    def begun(self, keep: Collection[str]) -> list[str]:
        """Which pictures are worth beginning before the verdict."""
        return [role for role in keep if not (self.level and role == "preview")]

    def objection(self, rows: Sequence[Body]) -> str:
        """Why a client may not write these rows; empty if it may."""
        for row in rows:
            kind = getattr(row, "kind", "")
            if kind in OWN_KINDS:
                return f"a {kind} row is written by the journal process alone"
            if isinstance(row, ReleaseBody) and row.hold_id not in self._holds:
                return f"no hold {row.hold_id} is in force"
            if isinstance(row, HoldBody) and self._is_used(row):
                return f"there was a hold {row.hold_id} already; give it another name"
            if isinstance(row, HoldBody | ReleaseBody):
                problem = _said_problem(row.who, row.why)
                if problem:
                    return problem
        return ""

    def _is_used(self, hold: HoldBody) -> bool:
        """Another hold had its name; one that is sent again has not."""
        return hold.hold_id in self._hold_ids and self._holds.get(hold.hold_id) != hold

    def noted(self, rows: Sequence[Body]) -> None:
        """These rows are in the log."""
        seq = self._store.head()[0]
        for row in rows:
            self._clock.labelled(row.written_at)
            if isinstance(row, HoldBody):
                self._holds[row.hold_id] = row
                self._hold_ids.add(row.hold_id)
            elif isinstance(row, ReleaseBody):
                self._holds.pop(row.hold_id, None)
            elif isinstance(row, BackupBody) and row.generation:
                self._on_copied(row)
            for image in getattr(row, "images", ()):
                self._new_paths[image.path] = seq
                self._counts.kept_since_mb += image.bytes / 1e6
        if len(self._new_paths) > _MOST_NEW_PATHS:
            self._new_paths.clear()
            self._paths_since = seq

    def _on_copied(self, row: BackupBody) -> None:
        """A copy elsewhere, by hand, says nothing of the one that is wanted."""
        known = self._backup
        if row.directory != self._backups_at:
            return
        known.generation, known.is_lacking, known.problem = row.generation, not row.is_ok, ""
        if row.is_ok:
            known.ok_at = row.written_at
        else:
            known.problem = f"the backup in {row.directory} lacks pictures: {row.problem}"

    def sweep_now(self) -> int:
        """Look for what may go at once; the number of sweeps after which it has been done."""
        is_busy = self._planner.is_running or self._work is not None
        self._sweep_due = self._look_due = 0.0
        self._is_asked, self._is_awaited = is_busy, True
        return self._counts.sweeps + (2 if is_busy else 1)

    def accept_clock(self, who: str, why: str) -> None:
        """A person says that the clock is right; written at the next turn. Raises ValueError."""
        if problem := _said_problem(who, why):
            raise ValueError(problem)
        self._clock.accept(who, why)
        self._look_due = 0.0

    def attentions(self) -> list[str]:
        """What a person has to see to, apart from the disk."""
        known = (self._clock.doubt, self._backup.problem, self._checkpoints.problem)
        texts = (*known, self._store.derived_problem, *self._problems.values())
        return [text for text in texts if text]

    def brief(self) -> Json:
        """What the station is told with every tick."""
        return {
            "disk_level": self.level,
            "disk": self.disk_text,
            "attentions": self.attentions(),
            "is_clock_synchronized": self._clock.is_synchronized,
        }

    @property
    def disk_text(self) -> str:
        """What the disk's level means now; empty with room enough."""
        if not self.level:
            return ""
        limit = self._settings.journal.disk_limits_mb[self.level - 1]
        what = _LEVEL_TEXTS[self.level]
        return f"{what}: less than {limit} MB are free in {self._directory}; free some"

    def status(self) -> Json:
        """Everything, for `status` and metrics."""
        counts, clock, now = self._counts, self._clock, time.monotonic()
        ended, backup = counts.sweep_ended_s, self._settings.retention.backup
        return {
            "disk": {
                "free_mb": round(self.free_mb, 1),
                "level": self.level,
                "limits_mb": list(self._settings.journal.disk_limits_mb),
                "text": self.disk_text,
            },
            "retention": {
                "sweeps": counts.sweeps,
                "is_sweeping": self._planner.is_running or self._work is not None,
                "sweep_age_s": None if ended is None else round(now - ended, 1),
                "tombstones": counts.tombstones,
                "removed": counts.removed,
                "removed_mb": round(counts.removed_mb, 3),
                "pictures_bytes": self._pictures_bytes(),
                "orphans": counts.orphans,
                "quarantined": self._quarantine.files,
                "quarantined_mb": round(self._quarantine.bytes / 1e6, 3),
                "holds": len(self._holds),
                "problem": "; ".join(self._problems.values()),
            },
            "backup": {
                "directory": str(backup.directory) if backup else None,
                "is_running": self._backup.child.is_running,
                "last_ok_at": self._backup.ok_at,
                "age_s": self._backup_age_s(),
                "generation": self._backup.generation,
                "problem": self._backup.problem,
            },
            "proof": {
                "tried": self._checkpoints.tried,
                "last_at": self._checkpoints.last_at,
                "size": self._checkpoints.size,
                "is_signed": self._checkpoints.is_signed,
                "problem": self._checkpoints.problem,
            },
            "clock": {
                "is_synchronized": clock.is_synchronized,
                "steps": clock.steps,
                "last_step_s": clock.last_step_s,
                "ahead_s": clock.ahead_s,
                "doubt": clock.doubt,
            },
            "attentions": self.attentions(),
        }

    def _pictures_bytes(self) -> int | None:
        """Of all pictures, nearly: they are counted by the hour. None before the first count."""
        if self._counts.kept_mb is None:
            return None
        return int(1e6 * max(0.0, self._counts.kept_mb + self._counts.kept_since_mb))

    # --- pictures -------------------------------------------------------------------------------

    def _begin_sweep(self, now: float) -> None:
        if now < self._sweep_due or self._planner.is_running or self._work is not None:
            return
        self._read_recipe()
        order = self.order()
        if order.is_counting:
            self._counts.kept_since_mb = 0.0
        self._planner.start(
            ["-m", "station.retention"],
            order.model_dump_json(),
            _PLAN_LIMIT_S,
            self._wake,
            is_awaited=self._is_awaited or self.level >= PASSES_GO_LEVEL,
        )

    def order(self) -> Order:
        """What a plan is made from now."""
        folders = [(self._folder + n) % FOLDERS for n in range(_FOLDERS_A_PASS)]
        self._folder = (self._folder + _FOLDERS_A_PASS) % FOLDERS
        room = None
        if self.level >= PASSES_GO_LEVEL:
            limit_mb = self._settings.journal.disk_limits_mb[PASSES_GO_LEVEL - 1]
            room = Room(
                free_mb=self.free_mb,
                wanted_mb=limit_mb * _HYSTERESIS,
            )
        return Order(
            log=self._directory / DATABASE,
            images=self._images.directory,
            rules=self._settings.retention.rules,
            min_pass_days=self._min_pass_days,
            now=self._clock.now(),
            room=room,
            is_removing=not self._clock.doubt,
            folders=folders,
            is_counting=time.monotonic() >= self._counts.count_due,
        )

    def _take_plan(self) -> None:
        answer = self._planner.take()
        if answer is None:
            return
        status, out, said = answer
        try:
            plan = Plan.model_validate_json(out)
        except ValidationError:
            self._on_no_plan(said.strip()[-300:] or f"status {status}")
            return
        self._failed_plans = 0
        self._problems.pop("plan", None)
        self.use(plan)

    def use(self, plan: Plan) -> None:
        """Carry out a plan, a little at every step."""
        if plan.kept_mb is not None:
            self._counts.kept_mb = plan.kept_mb
            self._counts.count_due = time.monotonic() + _COUNT_EVERY_S
        self._new_paths = {path: seq for path, seq in self._new_paths.items() if seq > plan.as_of}
        if plan.as_of < self._paths_since:
            plan = Plan(as_of=plan.as_of)
        self._work, self._done_in_plan = _Work.of(plan), 0

    def _on_no_plan(self, said: str) -> None:
        _LOG.warning("pictures that may go were not found", said=said)
        self._sweep_due = time.monotonic() + _SWEEP_EVERY_S
        self._failed_plans += 1
        if self._failed_plans >= _PLANS_MAY_FAIL:
            self._problems["plan"] = f"no picture is removed: {said}"

    def _carry_out(self, work: _Work) -> None:
        """A small part of the plan."""
        if work.doomed:
            steps = [
                work.doomed.popleft() for _ in range(min(_TOMBSTONES_A_STEP, len(work.doomed)))
            ]
            self._bury(steps)
        for _ in range(_FILES_A_STEP):
            if work.leftovers:
                self._remove(work.leftovers.popleft())
            elif work.orphans:
                self._put_aside(work.orphans.popleft())
        if work.is_done:
            self._end_plan(work)

    def _end_plan(self, work: _Work) -> None:
        """A plan that did something is followed by another at once; else the sweep is over."""
        self._work = None
        self._helpers.submit(self._bound_quarantine)
        if not self._done_in_plan:
            self._counts.sweeps += 1
            self._counts.sweep_ended_s = time.monotonic()
            self._helpers.submit(give_back_freed)
            self._sweep_due = 0.0 if self._is_asked else time.monotonic() + _SWEEP_EVERY_S
            self._is_awaited, self._is_asked = self._is_asked, False

    def _bury(self, steps: Sequence[Step]) -> None:
        """Tombstones; their files go with a later plan, once no result names them."""
        if self._clock.doubt:
            return
        stones = [stone for step in steps if (stone := self._stone(step)) is not None]
        if stones and self._append(stones):
            self._counts.tombstones += len(stones)
            self._done_in_plan += len(stones)

    def _stone(self, step: Step) -> TombstoneBody | None:
        """By the log as it is now: what was found may be on hold by now, or judged anew."""
        rows = self._store.of_result(step.result_id)
        found = (one for one in pictures_of(rows) if one.path == step.path)
        picture = next(found, None)
        if picture is None:
            return None
        picture = replace(picture, aged_from=step.aged_from)
        stone = TombstoneBody(
            **self._said(),
            result_id=step.result_id,
            role=picture.role,
            path=picture.path,
            sha256=picture.sha256,
            bytes=picture.bytes,
            picture_class=picture.picture_class,
            rule=step.rule,
            measured=step.measured,
            limit=step.limit,
            why=_why(step, picture),
        )
        if objection(stone, picture, self._rules, self._holds.values(), self._said_level):
            return None
        return stone

    def _remove(self, path: str) -> None:
        """A file that no result names any more. The pictures of a row that waits get their names
        only when it is committed, in the same turn: what is named is known here."""
        if path in self._new_paths or self._clock.doubt:
            return
        with self._no_reason_to_end():
            size, leaving = self._images.take_out(path)
            self._helpers.submit(leaving.unlink, missing_ok=True)
            self._counts.removed += 1
            self._counts.removed_mb += size / 1e6
            self._counts.kept_since_mb -= size / 1e6
            self._done_in_plan += 1

    def _put_aside(self, path: str) -> None:
        if path in self._new_paths:
            return
        with self._no_reason_to_end():
            self._images.put_aside(path)
            self._counts.orphans += 1
            self._done_in_plan += 1

    @contextlib.contextmanager
    def _no_reason_to_end(self) -> Iterator[None]:
        """A file that is gone, has a strange name or cannot be moved keeps no record from being
        written."""
        try:
            yield
            self._problems.pop("files", None)
        except (FileNotFoundError, ImageError) as error:
            _LOG.warning("a file was passed over", error=str(error))
        except OSError as error:
            self._problems["files"] = f"pictures cannot be removed: {error.strerror}"

    def _bound_quarantine(self) -> None:
        self._quarantine = self._images.bound_quarantine(
            is_full=self.level >= PASSES_GO_LEVEL, is_dated=not self._clock.doubt
        )

    # --- backups --------------------------------------------------------------------------------

    def _begin_backup(self, now: float) -> None:
        wanted = self._settings.retention.backup
        if wanted is None or self._backup.child.is_running or now < self._backup_due():
            return
        self._backup.tried_s = now
        arguments = ["--journal", str(self._directory), "--to", str(wanted.directory)]
        arguments += ["--keep", str(wanted.keep), "--timer", "--json"]
        command = ["-m", "station.cli", "log", "backup", *arguments]
        self._backup.child.start(command, "", _BACKUP_LIMIT_S, self._wake)

    def _take_backup(self) -> None:
        answer = self._backup.child.take()
        if answer is not None:
            self._on_backup(*answer)
        if self._backup.unsaid is not None and self._append([self._backup.unsaid]):
            self._backup.unsaid = None

    def _on_backup(self, status: int, out: str, said: str) -> None:
        """What it came to counts also while its row finds no room."""
        with contextlib.suppress(ValueError, TypeError):
            made = json.loads(out)
            row = BackupBody(**self._said(), is_ok=not made.get("problem"), **made)
            self._backup.unsaid = row
            self._on_copied(row)
            return
        problem = said.strip().removeprefix("vqi: ")[-300:] or f"it ended with status {status}"
        if not self._backup.problem or self._backup.is_lacking:
            self._backup.unsaid = BackupBody(
                **self._said(),
                directory=self._backups_at,
                generation="",
                is_ok=False,
                problem=problem,
            )
        self._backup.problem = f"no backup to {self._backups_at}: {problem}"
        self._backup.is_lacking = False

    def _backup_due(self) -> float:
        """In monotonic time."""
        wanted = self._settings.retention.backup
        assert wanted is not None
        age_s, tried_s = self._backup_age_s(), self._backup.tried_s
        if age_s is not None and not self._backup.problem:
            return time.monotonic() + 3600 * wanted.every_h - age_s
        every_s = 3600 * wanted.every_h
        wait_s = every_s if self._backup.is_lacking else min(_RETRY_BACKUP_S, every_s)
        return 0.0 if tried_s is None else tried_s + wait_s

    def _backup_age_s(self) -> float | None:
        """Since the last good one; by labels, for it may be of another boot. None without one, and
        where its label is ahead of the clock: then nobody knows how old it is."""
        if self._backup.ok_at is None:
            return None
        made = datetime.fromisoformat(self._backup.ok_at)
        age_s = (self._clock.now() - made).total_seconds()
        return age_s if age_s >= 0 else None

    # --- checkpoints ----------------------------------------------------------------------------

    def checkpoint_now(self) -> int:
        """Make one at once; how many will have been tried when it has been done."""
        known = self._checkpoints
        known.is_asked, self._look_due = True, 0.0
        return known.tried + (2 if known.child.is_running else 1)

    def _begin_checkpoint(self, now: float) -> None:
        known = self._checkpoints
        # But for the row of the last one itself.
        is_new = self._store.head()[0] > known.size + 1
        is_wanted = known.is_asked or (now >= known.due and is_new)
        if not is_wanted or known.child.is_running or known.unsaid is not None:
            return
        order = {
            "directory": str(self._directory),
            **self._said(),
            "proof": self._settings.proof.model_dump(mode="json"),
        }
        is_asked, known.is_asked = known.is_asked, False
        command = ["-m", "station.checkpoint"]
        given = json.dumps(order)
        known.child.start(command, given, _CHECKPOINT_LIMIT_S, self._wake, is_awaited=is_asked)

    def _checkpoint_wait_s(self) -> float:
        """At a start, by the last one's label; a new log's first is not made in the first minutes,
        in which a line starts."""
        every_s, last_at = 3600 * self._settings.proof.every_h, self._checkpoints.last_at
        if last_at is None:
            return min(_FIRST_CHECKPOINT_S, every_s)
        age_s = (self._clock.now() - datetime.fromisoformat(last_at)).total_seconds()
        return min(max(0.0, every_s - age_s), every_s)

    def _take_checkpoint(self) -> None:
        known, answer = self._checkpoints, self._checkpoints.child.take()
        if answer is not None:
            known.due = time.monotonic() + 3600 * self._settings.proof.every_h
            status, out, said = answer
            try:
                made = json.loads(out)
                known.unsaid = CheckpointBody.model_validate(made["body"])
                known.problem = "; ".join(made["problems"])
            except (ValueError, LookupError, TypeError):
                reason = said.strip()[-300:] or f"it ended with status {status}"
                known.problem = f"no checkpoint of the log: {reason}"
                known.tried += 1
        if known.unsaid is not None and self._append([known.unsaid]):
            self._on_checkpoint(known.unsaid)
            known.unsaid = None
            known.tried += 1

    def _on_checkpoint(self, row: CheckpointBody) -> None:
        known = self._checkpoints
        known.last_at, known.size = row.written_at, row.size
        known.is_signed = row.public_key is not None


def _said_problem(who: str, why: str) -> str:
    return name_problem("name", who) or words_problem("reason", why)


def _why(step: Step, picture: Picture) -> str:
    kind = picture.picture_class
    match step.rule:
        case "days":
            return f"{kind} is kept for {step.limit:g} days, this was {step.measured:.2f} days old"
        case "size":
            return f"{kind} took {step.measured:.1f} MB, {step.limit:g} MB are kept"
        case "watermark":
            return f"{step.measured:.0f} MB of disk were free, {step.limit:.0f} MB are wanted"


def _says(rules: RetentionBody) -> Json:
    return rules.model_dump(include={"rules", "min_pass_days", "clock_jump_limit_h"})


def _last(store: Store, body: type[_B]) -> _B | None:
    """The newest row of a kind."""
    found = store.last_body(body.model_fields["kind"].default)
    return None if found is None else body.model_validate(found)
