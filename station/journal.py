"""The journal process: the only writer of the log. Rows and pictures in, one chain out.

Everything that waits is committed at once, immediately when idle. Pictures are encoded on threads,
beginning while their plate arrives, and durable before the row that names them. A failed sync or
commit ends the process: what it has not acknowledged is sent again to its successor.
"""

from __future__ import annotations

import contextlib
import errno
import json
import mmap
import os
import select
import selectors
import signal
import sqlite3
import subprocess
import threading
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from types import FrameType
from weakref import WeakKeyDictionary

import cv2
import numpy as np
from pydantic import TypeAdapter, ValidationError

from station import comparisons, drift_log, model_store, page_door, promotion, reviews, shadows
from station.audit import UNREVEALED
from station.clock import Clock
from station.config import EX_CONFIG, ConfigError, Configuration, exit_status_of
from station.counters import Histogram
from station.idle import start_idle
from station.images import Draft, ImageFolder, Pictures, Pixels, SyncFailed
from station.ipc import (
    Channel,
    Json,
    Listener,
    NotAMessage,
    PacketTooLarge,
    PeerGone,
    user_name,
)
from station.journal_client import InOrder, journal_path
from station.lock import JOURNAL_LOCK, take_lock
from station.log_lines import get_logger
from station.maintenance import Upkeep
from station.model_store import model_register
from station.page_door import open_door
from station.processes import said_figures
from station.product import configured_judging
from station.qms import (
    DATABASE,
    IMAGES,
    SNAPSHOT,
    ContradictionError,
    LogLost,
    Store,
    StoreError,
    StoreRefused,
)
from station.recipes import (
    ACTIVATED,
    CHANGES,
    PROPOSED,
    RecipeError,
    RecipeFolder,
    Register,
    activation_of,
    active_recipe,
    objection,
    register,
)
from station.record import (
    AnyBody,
    Body,
    ChangeBody,
    ImageBody,
    ResultBody,
    ReviewBody,
    ShadowBody,
    rfc3339,
    utc_now,
)
from station.release import program_version
from station.snapshot import unfinished
from station.systemd import exit_with_starter, notify

_LOG = get_logger("journal")
_BODIES: TypeAdapter[AnyBody] = TypeAdapter(AnyBody)
_LAST_TICK = "last-tick"
_ENCODERS = 2
_OPS_OF_PAGE = ("status", "submit")
_MAX_WAITING = 64
"""Submissions in work; a client with more finds its socket full."""
_STUCK_S = 2.0
_TICK_FILE_EVERY_S = 0.5
_REFUSED_PAUSE_S = 1.0
"""Before the derived tables are tried again."""
_SNAPSHOT_PAUSES = 20
_SNAPSHOT_LIMIT_S = 3600.0
_LAST_SNAPSHOT_LIMIT_S = 6.0
"""At the end, well within what the unit has to stop; where it is too short the old copy stays."""
_MIN_FREE_FILES = 20
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT}


def serve(configuration: Configuration) -> int:
    """Run until told to stop. Exit status 0; 1 after a failed write, or if another one runs; 78 if
    the folder cannot be used as configured, or the log that was there is gone."""
    exit_with_starter()
    directory = configuration.journal.directory
    try:
        lock = take_lock(directory / JOURNAL_LOCK)
    except OSError as error:
        _LOG.error(f"journal.directory {directory} cannot be used: {error.strerror}")
        return exit_status_of(error)
    if lock is None:
        _LOG.error(
            f"journal.directory {directory}: another station's journal process writes this log; "
            "give each station a folder of its own"
        )
        return 1
    try:
        return _Journal(configuration).run()
    except LogLost as error:
        _LOG.error(str(error))
        return EX_CONFIG
    except (StoreError, SyncFailed, OSError) as error:
        _LOG.error("cannot write", directory=str(directory), error=str(error))
        return 1
    finally:
        os.close(lock)


@dataclass(slots=True, eq=False)
class _Waiting:
    """A submission whose pictures are being encoded, or that waits for its commit."""

    client: Channel
    number: int
    rows: list[Body]
    encoded: Future[Pictures] | None
    since: float
    received_ns: int = field(default_factory=time.monotonic_ns)
    is_of_page: bool = False
    is_in_order: bool = False
    durable_ns: int | None = None
    """When its pictures were."""
    pictures: Json = field(default_factory=dict)
    """What this process filled into the result's row."""

    def fill_in(self, made: Pictures) -> None:
        self.durable_ns = time.monotonic_ns()
        images = tuple(picture.body for picture in made.written)
        self.rows = [_with_pictures(row, made.pixels_sha256, images) for row in self.rows]
        self.pictures = {
            "pixels_sha256": made.pixels_sha256,
            "images": [image.model_dump() for image in images],
        }


@dataclass(slots=True)
class _Counts:
    """Since this process began."""

    commits: int = 0
    pictures: int = 0
    picture_bytes: int = 0
    orphans: int = 0


class _Journal:
    def __init__(self, configuration: Configuration, clock: Clock | None = None) -> None:
        self._settings = configuration.journal
        self._configuration = configuration
        self._directory = configuration.journal.directory
        self._store = Store(self._directory)
        self._images = ImageFolder(self._directory / IMAGES)
        self._last_tick_at = self._read_last_tick()
        self._last_tick_s = 0.0
        self._tick_written = 0.0
        self._counts, self._commit_times = _Counts(), Histogram()
        self._clean_images()
        self._selector = selectors.DefaultSelector()
        self._listener = Listener(journal_path(configuration.station.runtime_dir))
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        door = open_door(self._listener.path)
        if door is not None:
            self._selector.register(door, selectors.EVENT_READ, lambda: self._accept_page(door))
        self._of_page: set[Channel] = set()
        """Clients of the page's own user."""
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._selector.register(self._wake, selectors.EVENT_READ, self._on_wake)
        self._encoders = ThreadPoolExecutor(_ENCODERS, "encode")
        self._upkeep = Upkeep(
            configuration,
            self._store,
            self._images,
            self._encoders,
            lambda: os.eventfd_write(self._wake, 1),
            clock,
        )
        self._shadows = shadows.register(self._store.shadow_changes())
        self._waiting: deque[_Waiting] = deque()
        self._clients: set[Channel] = set()
        self._refused: WeakKeyDictionary[Channel, str] = WeakKeyDictionary()
        """Why a client's submissions in order are refused until it resumes; held as long as one of
        them waits here."""
        self._drafts: dict[tuple[Channel, str], Draft] = {}
        """Pictures of plates that arrive."""
        self._sync_failure: SyncFailed | None = None
        self._is_stopping = False
        self._snapshot_due = time.monotonic()
        self._snapshot: threading.Thread | None = None
        self._snapshot_problem = ""
        self._copying: subprocess.Popen[str] | None = None
        self._catch_up_due = 0.0

    def run(self) -> int:
        # A thread of its own spins while it waits, on the cores that the tiles need.
        cv2.setNumThreads(1)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        self._upkeep.step(is_idle=False)
        notify("READY=1")
        heartbeat = 0.0
        while not (self._is_stopping and not self._waiting):
            if len(self._waiting) < _MAX_WAITING:
                for key, _ in self._selector.select(timeout=0.25):
                    key.data()
            else:
                # Bounded: nothing more is taken until a picture is encoded.
                select.select([self._wake], [], [], 0.25)
                self._on_wake()
            if self._sync_failure is not None:
                raise self._sync_failure
            self._commit()
            self._upkeep.step(is_idle=not self._waiting)
            self._catch_up()
            self._renew_snapshot()
            if time.monotonic() - heartbeat > 0.25 and not self._is_stuck():
                heartbeat = time.monotonic()
                notify("WATCHDOG=1")
        self._close()
        return 0

    def _close(self) -> None:
        while self._snapshot is not None and self._snapshot.is_alive():
            if self._copying is not None:
                self._copying.kill()  # what it copies is not the end of the log
            self._snapshot.join(0.05)
        self._upkeep.close()
        for client in list(self._clients):
            self._drop(client)
        self._encoders.shutdown()
        self._write_last_tick()
        self._publish(_LAST_SNAPSHOT_LIMIT_S)
        self._store.close()
        self._listener.close()

    def _catch_up(self) -> None:
        """A batch of what an older program wrote, while no row waits."""
        if self._store.lag <= 0 or self._waiting or time.monotonic() < self._catch_up_due:
            return
        try:
            self._store.catch_up()
            os.eventfd_write(self._wake, 1)
        except StoreRefused:
            self._catch_up_due = time.monotonic() + _REFUSED_PAUSE_S

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._is_stopping = True
        os.eventfd_write(self._wake, 1)

    def _on_wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake)

    # --- clients --------------------------------------------------------------------------------

    def _accept(self) -> None:
        client = self._listener.accept()
        if client.peer_uid() not in (0, os.getuid()):
            client.close()
            return
        self._admit(client)

    def _accept_page(self, door: Listener) -> None:
        client = door.accept()
        if len(self._of_page) >= page_door.MAX_CLIENTS:
            client.close()
            return
        self._of_page.add(client)
        self._admit(client)

    def _admit(self, client: Channel) -> None:
        self._clients.add(client)
        self._selector.register(client, selectors.EVENT_READ, lambda: self._serve(client))

    def _drop(self, client: Channel) -> None:
        if client in self._clients:
            self._clients.discard(client)
            self._of_page.discard(client)
            self._selector.unregister(client)
            client.close()
            for key in [key for key in self._drafts if key[0] is client]:
                self._encoders.submit(self._drafts.pop(key).discard)

    def _serve(self, client: Channel) -> None:
        """Take what this client has sent, but no more than is bounded."""
        while client in self._clients and len(self._waiting) < _MAX_WAITING:
            try:
                packet = client.receive(timeout_s=0)
            except BlockingIOError:
                return
            except PeerGone:
                self._drop(client)
                return
            except NotAMessage as error:
                self._answer(client, {"ok": False, "error": str(error)})
                continue
            try:
                self._handle(client, packet.body, packet.descriptors)
            except (LookupError, TypeError, ValueError) as error:
                _LOG.warning("a client sent nonsense and was dropped", error=repr(error))
                self._drop(client)
            finally:
                packet.close()
            if client in self._of_page:
                return  # one a turn: who sends without end holds nobody up

    def _handle(self, client: Channel, body: Json, descriptors: tuple[int, ...]) -> None:
        if client in self._of_page:
            _see_that_page_may(body, descriptors)
        match body.get("op"):
            case "hello":
                self._answer(client, self._hello())
            case "drift":
                self._answer(client, {"ok": True, "drift": self._drift_page(int(body["first"]))})
            case "status":
                self._answer(client, {"ok": True, "status": self._status()})
            case "tick":
                self._tick(client, body)
            case "submit":
                self._submit(client, body, descriptors)
            case "arriving":
                self._begin_pictures(client, body, descriptors)
            case "prune":
                self._answer(client, {"ok": True, "sweep": self._upkeep.sweep_now()})
            case "checkpoint":
                self._answer(client, {"ok": True, "tried": self._upkeep.checkpoint_now()})
            case "clock_is_right":
                self._accept_clock(client, str(body["who"]), str(body["why"]))
            case other:
                self._answer(client, {"ok": False, "error": f"unknown operation {other!r}"})

    def _accept_clock(self, client: Channel, who: str, why: str) -> None:
        try:
            self._upkeep.accept_clock(who, why)
        except ValueError as error:
            self._answer(client, {"ok": False, "error": str(error)})
            return
        self._answer(client, {"ok": True})

    def _answer(self, client: Channel, answer: Json) -> None:
        try:
            client.send(answer, timeout_s=0.0 if client in self._of_page else 1.0)
        except (PeerGone, TimeoutError, OSError):
            self._drop(client)
        except PacketTooLarge:
            self._answer(client, {"ok": False, "error": "the answer is too large"})

    def _hello(self) -> Json:
        self._commit_all()
        seq, chain = self._store.head()
        return {
            "ok": True,
            "last_sequence": self._store.last_sequence(),
            "open_plates": self._store.open_plates(),
            "without_actuation": [
                body["result_id"] for body in self._store.results_without_actuation()
            ],
            "without_accept": self._store.passes_without_accept(),
            "held": self._store.held_result(),
            "has_late_plates": self._store.has_late_plates(),
            "last_plate_ordinal": self._store.last_plate_ordinal(),
            "attentions": self._store.open_attentions(),
            "references": self._store.references(),
            "last_tick_at": self._last_tick_at,
            "signed_files": self._store.signed_files(),
            "given": self._store.given(),
            "audit_seeds": self._store.unrevealed_seeds(UNREVEALED),
            "recipes": self._recipes(),
            "shadow": self._shadows.brief(),
            "drift": self._drift_page(0),
            "head": {"seq": seq, "chain_sha256": chain},
        }

    def _drift_page(self, first: int) -> Json:
        return drift_log.register(self._store.drift_changes()).page(first)

    def _recipes(self) -> Json:
        """As much of them as a start needs; approved is what evidence lets judge, too."""
        known = register(self._store.recipe_changes())
        brief = known.brief()
        shown = {
            version.sha256
            for version in known.versions.values()
            if version.approved is not None
            and not self._evidence_objection(
                activation_of(self._configuration.station.id, version), known
            )
        }
        return brief | {"approved": [sha for sha in brief["approved"] if sha in shown]}

    def _status(self) -> Json:
        """How this process and what it writes are now; nothing here waits."""
        disk, upkeep = os.statvfs(self._directory), self._upkeep.status()
        database = self._directory / DATABASE
        return {
            "pid": os.getpid(),
            "process": said_figures(os.getpid()),
            "version": program_version(),
            "sqlite": sqlite3.sqlite_version,
            "problem": self._refusal() or "",
            "tick_age_s": time.monotonic() - self._last_tick_s if self._last_tick_s else None,
            "waiting": len(self._waiting),
            "waiting_s": time.monotonic() - self._waiting[0].since if self._waiting else 0.0,
            "drafts": len(self._drafts),
            "clients": len(self._clients),
            "rows": self._store.head()[0],
            "unsettled": self._store.unsettled(),
            **asdict(self._counts),
            "orphans": self._counts.orphans + upkeep["retention"]["orphans"],
            "commit_times": self._commit_times.as_json(),
            "database_bytes": _size(database),
            "wal_bytes": _size(database.with_name(f"{DATABASE}-wal")),
            "snapshot_age_s": _file_age_s(self._directory / SNAPSHOT),
            "disk_free_bytes": disk.f_bavail * disk.f_frsize,
            "disk_bytes": disk.f_blocks * disk.f_frsize,
            "disk_free_files": disk.f_favail,
            "last_tick_at": self._last_tick_at,
            "snapshot_problem": self._snapshot_problem,
            **upkeep,
        }

    def _tick(self, client: Channel, body: Json) -> None:
        error = self._refusal()
        if error is None and self._is_stuck():
            error = "pictures have been waiting too long"
        if error is None:
            self._last_tick_at, self._last_tick_s = utc_now(), time.monotonic()
            if time.monotonic() - self._tick_written > _TICK_FILE_EVERY_S:
                self._write_last_tick()
            answer = {"ok": True, "n": body["n"]}
        else:
            answer = {"ok": False, "n": body["n"], "error": error}
        said = {"upkeep": self._upkeep.brief(), "shadow": self._shadows.brief()}
        self._answer(client, answer | said)

    def _refusal(self) -> str | None:
        """Why nothing may be written now; None if it may."""
        status = os.statvfs(self._directory)
        if status.f_files and status.f_favail < _MIN_FREE_FILES:
            return f"{self._directory}: the file system has no room for more files; remove some"
        free_mb = status.f_bavail * status.f_frsize / 1e6
        if free_mb < self._settings.min_free_mb:
            return (
                f"{self._directory}: {free_mb:.0f} MB free, {self._settings.min_free_mb} MB "
                "needed; free some"
            )
        return None

    def _is_stuck(self) -> bool:
        return bool(self._waiting) and time.monotonic() - self._waiting[0].since > _STUCK_S

    # --- rows -----------------------------------------------------------------------------------

    def _submit(self, client: Channel, body: Json, descriptors: tuple[int, ...]) -> None:
        is_of_page, in_order = client in self._of_page, body.get("in_order")
        if in_order == InOrder.RESUMES:
            self._refused.pop(client, None)
        refusal = self._refused.get(client) if in_order else None
        refusal = refusal or self._refusal() or (self._page_refusal() if is_of_page else None)
        if refusal is not None:
            self._refuse(client, body["id"], refusal, bool(in_order))
            return
        try:
            rows: list[Body] = [_BODIES.validate_python(row) for row in body["rows"]]
            self._see_that_it_may(client, rows)
            rows = [self._completed(client, row) for row in rows]
            wanted = body.get("pixels") if descriptors else None
            draft = self._draft(client, rows[0], wanted, descriptors[0]) if wanted else None
            self._keep_recipes(rows)  # last: from here on nothing speaks against the rows
        except (ValidationError, LookupError, ValueError, TypeError) as error:
            reason = str(error).replace("\n", " ")
            self._answer(client, {"ok": False, "id": body.get("id"), "error": reason})
            return
        encoded = None
        if draft is not None and wanted is not None:
            keep = self._upkeep.kept(rows[0], wanted["keep"])
            encoded = self._encoders.submit(draft.finish, wanted["rows"], keep)
            encoded.add_done_callback(lambda _: os.eventfd_write(self._wake, 1))
        item = _Waiting(client, body["id"], rows, encoded, time.monotonic())
        item.is_of_page, item.is_in_order = is_of_page, bool(in_order)
        self._waiting.append(item)

    def _page_refusal(self) -> str | None:
        """Why the page has to wait with what it says; None if it need not."""
        if sum(item.is_of_page for item in self._waiting) < page_door.MAX_WAITING:
            return None
        return "too much that the page sent waits for its commit"

    def _see_that_it_may(self, client: Channel, rows: list[Body]) -> None:
        """Raises ValueError if a client may not write one of these."""
        of_page = map(page_door.objection, rows if client in self._of_page else ())
        problem = next(filter(None, of_page), "") or self._upkeep.objection(rows)
        problem = problem or self._recipe_objection(rows) or self._model_objection(rows)
        problem = problem or self._shadow_objection(rows) or self._comparison_objection(rows)
        problem = problem or self._drift_objection(rows)
        if problem:
            raise ValueError(problem)

    def _recipe_objection(self, rows: list[Body]) -> str:
        """A step of a recipe that may not follow on those before it, as an approval by its author;
        empty if there is none."""
        steps = [row for row in rows if isinstance(row, ChangeBody) and row.what in CHANGES]
        if not steps:
            return ""
        known = self._known_recipes()
        problem = objection(known, steps[0].as_json()) if len(steps) == 1 else "one step at a time"
        return problem or self._evidence_objection(steps[0], known)

    def _evidence_objection(self, row: ChangeBody, known: Register) -> str:
        """What is not shown of another model that is to judge; empty if all is."""

        def rows() -> list[Json]:
            waiting = [one.as_json() for item in self._waiting for one in item.rows]
            return self._store.model_changes() + [one for one in waiting if one.get("what")]

        try:
            return promotion.objection(
                known, row.as_json(), lambda: configured_judging(self._configuration), rows
            )
        except (ConfigError, LookupError, ValueError) as error:
            return f"what is asked of another model cannot be read: {error}"

    def _shadow_objection(self, rows: list[Body]) -> str:
        """A beginning or an end of a shadow that may not follow, or what none that began says."""
        steps = [row for row in rows if isinstance(row, ChangeBody) and row.what in shadows.CHANGES]
        said = [row for row in rows if isinstance(row, ShadowBody)]
        if not steps and not said:
            return ""
        known = self._shadows
        for row in (row for item in self._waiting for row in item.rows):
            if isinstance(row, ChangeBody):
                known = shadows.after(known, row.as_json())
        for row in steps:
            problem = shadows.objection(known, row.as_json())
            if problem:
                return problem
            known = shadows.after(known, row.as_json())
        return next(filter(None, (shadows.row_objection(known, row) for row in said)), "")

    def _comparison_objection(self, rows: list[Body]) -> str:
        """A comparison of models, or a signature below one, that may not follow on the rows before
        it; empty if there is none."""
        steps = [r for r in rows if isinstance(r, ChangeBody) and r.what in comparisons.CHANGES]
        if not steps:
            return ""
        waiting = [row.as_json() for item in self._waiting for row in item.rows]
        before = [row for row in waiting if row.get("what") in comparisons.CHANGES]
        for step in steps:
            known = comparisons.register([*self._store.comparison_changes(), *before])
            if problem := comparisons.objection(known, step.as_json()):
                return problem
            before.append(step.as_json())
        return ""

    def _drift_objection(self, rows: list[Body]) -> str:
        """Limits of drift over others, without a person's command between; empty if there are
        none."""
        steps = [row for row in rows if isinstance(row, ChangeBody) and _is_of_drift(row.what)]
        if not steps:
            return ""
        waiting = [row.as_json() for item in self._waiting for row in item.rows]
        before = [row for row in waiting if _is_of_drift(row.get("what"))]
        before = [*self._store.drift_changes(), *before, *(row.as_json() for row in steps[:-1])]
        return drift_log.objection(drift_log.register(before), steps[-1].as_json())

    def _model_objection(self, rows: list[Body]) -> str:
        """A row of the store of models that may not follow on those before it; empty if there is
        none."""
        steps = [row.as_json() for row in rows if isinstance(row, ChangeBody)]
        if not any(step["what"] in model_store.CHANGES for step in steps):
            return ""
        waiting = [row.as_json() for item in self._waiting for row in item.rows]
        before = [row for row in waiting if row["kind"] == "change"]
        known = model_register([*self._store.model_changes(), *before])
        return next(filter(None, map(known.objection, steps)), "")

    def _keep_recipes(self, rows: list[Body]) -> None:
        """The file of a version, and the one that says which version judges, are durable before
        their rows. Raises ValueError if one is not; then both are as before."""
        folder = RecipeFolder.of(self._configuration)
        for row in rows:
            if not isinstance(row, ChangeBody) or row.what not in (PROPOSED, ACTIVATED):
                continue
            try:
                folder.keep_proposed(row, self._known_recipes())
                folder.keep_active(row)
            except (OSError, ConfigError, RecipeError) as error:
                raise ValueError(f"{folder.path}: {error}") from error

    def _known_recipes(self) -> Register:
        """With what waits for its commit."""
        waiting = [row.as_json() for item in self._waiting for row in item.rows]
        before = [row for row in waiting if row.get("what") in CHANGES]
        return register([*self._store.recipe_changes(), *before])

    def _completed(self, client: Channel, row: Body) -> Body:
        """What a person says, with the account that it came from; a review with all that its
        reviewer does not say. Raises ValueError if none may say it."""
        is_of_page = client in self._of_page
        account = page_door.ACCOUNT if is_of_page else user_name(client.peer_uid())
        if isinstance(row, ChangeBody) and (is_of_page or page_door.is_of_person(row)):
            return row.model_copy(update={"account": account})
        if not isinstance(row, ReviewBody):
            return row
        try:
            recipe = active_recipe(self._configuration).value.review
        except ConfigError as error:
            raise ValueError(f"the recipe says what a review may: {error}") from error
        return reviews.accepted(row, recipe, account)

    def _draft(self, client: Channel, row: Body, wanted: Json, descriptor: int) -> Draft:
        """The pictures that were begun when the plate arrived, or a new beginning."""
        memory = _map_pixels(descriptor, wanted)
        begun = self._drafts.pop((client, getattr(row, "result_id", "")), None)
        return begun or Draft(self._images, memory, wanted["band_rows"])

    def _begin_pictures(self, client: Channel, body: Json, descriptors: tuple[int, ...]) -> None:
        """Do what can be done of a plate's pictures before its result is known. Nothing depends on
        it: what finds no room here is done, and answered for, when the result comes."""
        key, wanted = (client, str(body["result_id"])), body["pixels"]
        memory = _map_pixels(descriptors[0], wanted)
        if key not in self._drafts:
            if self._refusal() or len(self._drafts) >= _MAX_WAITING:
                return
            self._drafts[key] = Draft(self._images, memory, wanted["band_rows"])
        advance, keep = self._drafts[key].advance, self._upkeep.begun(wanted["keep"])
        begun = self._encoders.submit(advance, wanted["rows"], keep, body["is_complete"])
        begun.add_done_callback(self._on_begun)

    def _on_begun(self, begun: Future[None]) -> None:
        problem = begun.exception()
        if isinstance(problem, SyncFailed):
            self._sync_failure = problem
            os.eventfd_write(self._wake, 1)

    def _refuse(self, client: Channel, number: int, error: str, is_in_order: bool) -> None:
        """Nothing was written; the client keeps the rows and sends them again."""
        if is_in_order:
            self._refused.setdefault(client, error)
        self._answer(client, {"ok": False, "id": number, "error": error, "is_full": True})

    def _commit_all(self) -> None:
        """Commit everything that waits, pictures too."""
        for item in self._waiting:
            if item.encoded is not None:
                item.encoded.exception()
        self._commit()

    def _commit(self) -> None:
        """Commit, in order, what waits up to the first whose pictures are not encoded yet."""
        ready: list[_Waiting] = []
        while self._waiting and (
            self._waiting[0].encoded is None or self._waiting[0].encoded.done()
        ):
            ready.append(self._waiting.popleft())
        if not ready:
            return
        began_ns = time.monotonic_ns()
        accepted = [item for item in ready if self._has_pictures(item)]
        made = [item.encoded.result() for item in accepted if item.encoded is not None]
        try:
            self._images.make_durable([item for pictures in made for item in pictures.written])
        except OSError as error:
            raise StoreError(f"{self._images.directory}: {error.strerror}") from error
        for item in accepted:
            if item.encoded is not None:
                item.fill_in(item.encoded.result())
        self._append(accepted)
        self._count(made, began_ns)

    def _count(self, made: list[Pictures], began_ns: int) -> None:
        counts, written = self._counts, [item for pictures in made for item in pictures.written]
        counts.commits += 1
        self._commit_times.observe(time.monotonic_ns() - began_ns)
        counts.pictures += len(written)
        counts.picture_bytes += sum(item.body.bytes for item in written)

    def _has_pictures(self, item: _Waiting) -> bool:
        """False if they could not be made: it is refused, and nobody else. Raises `SyncFailed`."""
        problem = item.encoded.exception() if item.encoded is not None else None
        if problem is None:
            return True
        if isinstance(problem, SyncFailed):
            raise problem
        _LOG.error("pictures could not be made", error=repr(problem))
        if isinstance(problem, OSError | MemoryError):
            self._refuse_item(item, _what_is_missing(problem))
        else:
            error = f"its pictures could not be made: {problem!r}"
            self._answer(item.client, {"ok": False, "id": item.number, "error": error})
        return False

    def _append(self, items: list[_Waiting]) -> None:
        """One transaction for all; one by one if a row contradicts the log."""
        items = [item for item in items if not self._follows_refused(item)]
        try:
            numbers = iter(self._store.append([row for item in items for row in item.rows]))
        except ContradictionError:
            for item in items:
                self._append_alone(item)
            return
        except StoreRefused as error:
            for item in items:
                self._refuse_item(item, str(error))
            return
        committed_ns = time.monotonic_ns()
        for item in items:
            self._acknowledge(item, [next(numbers) for _ in item.rows], committed_ns)

    def _append_alone(self, item: _Waiting) -> None:
        if self._follows_refused(item):
            return
        try:
            seqs = self._store.append(item.rows)
            self._acknowledge(item, seqs, time.monotonic_ns())
        except ContradictionError as error:
            self._answer(item.client, {"ok": False, "id": item.number, "error": str(error)})
        except StoreRefused as error:
            self._refuse_item(item, str(error))

    def _refuse_item(self, item: _Waiting, error: str) -> None:
        self._refuse(item.client, item.number, error, item.is_in_order)

    def _follows_refused(self, item: _Waiting) -> bool:
        """True, and it is refused, where one that belongs before it was."""
        error = self._refused.get(item.client) if item.is_in_order else None
        if error is not None:
            self._refuse_item(item, error)
        return error is not None

    def _acknowledge(self, item: _Waiting, seqs: list[int], committed_ns: int) -> None:
        self._upkeep.noted(item.rows)
        if any(isinstance(row, ChangeBody) and row.what in shadows.CHANGES for row in item.rows):
            self._shadows = shadows.register(self._store.shadow_changes())
        answer = {"ok": True, "id": item.number, "seq": seqs, "pictures": item.pictures}
        times = {
            "received_ns": item.received_ns,
            "durable_ns": item.durable_ns,
            "committed_ns": committed_ns,
        }
        self._answer(item.client, answer | times)

    # --- what is left behind --------------------------------------------------------------------

    def _renew_snapshot(self) -> None:
        """Have the log copied for other readers; a thread waits for the process that does it."""
        is_busy = self._snapshot is not None and self._snapshot.is_alive()
        if is_busy or time.monotonic() < self._snapshot_due or self._is_stopping:
            return
        self._snapshot_due = time.monotonic() + self._settings.snapshot_interval_s
        snapshot = threading.Thread(target=self._publish, name="snapshot", daemon=True)
        try:
            snapshot.start()
        except RuntimeError as error:  # the process table is full; the log itself is not affected
            self._snapshot_problem = str(error)
            _LOG.warning("the snapshot could not be renewed", error=self._snapshot_problem)
        else:
            self._snapshot = snapshot

    def _publish(self, limit_s: float = _SNAPSHOT_LIMIT_S) -> None:
        started = time.monotonic()
        self._snapshot_problem = self._copied(limit_s)
        is_cut = self._is_stopping and limit_s == _SNAPSHOT_LIMIT_S
        if self._snapshot_problem and not is_cut:  # the log itself is not affected
            _LOG.warning("the snapshot could not be renewed", error=self._snapshot_problem)
        # A long log is copied less often, so that copying stays a small part of the work.
        pause_s = _SNAPSHOT_PAUSES * (time.monotonic() - started)
        self._snapshot_due = max(self._snapshot_due, time.monotonic() + pause_s)

    def _copied(self, limit_s: float) -> str:
        """Why the log could not be copied; empty if it was."""
        files = [self._directory / name for name in (DATABASE, SNAPSHOT)]
        try:
            self._copying = start_idle(
                *("-m", "station.snapshot", *map(str, files)),
                is_awaited=True,
                stderr=subprocess.PIPE,
            )
        except OSError as error:
            return str(error)
        try:
            _, said = self._copying.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            self._copying.kill()
            _, said = self._copying.communicate()
            said = said or f"copying the log took over {limit_s:g} s"
        if self._copying.returncode == 0:
            return ""
        with contextlib.suppress(OSError):
            unfinished(files[1]).unlink(missing_ok=True)
        return said.strip() or f"status {self._copying.returncode}"

    def _write_last_tick(self) -> None:
        if self._last_tick_at is None:
            return
        self._tick_written = time.monotonic()
        temporary = self._directory / f"{_LAST_TICK}.new"
        temporary.write_text(self._last_tick_at)
        temporary.rename(self._directory / _LAST_TICK)

    def _read_last_tick(self) -> str | None:
        """The last moment that is known to have been watched; None where no file says one."""
        with contextlib.suppress(FileNotFoundError, ValueError):
            at = datetime.fromisoformat((self._directory / _LAST_TICK).read_text().strip())
            return rfc3339(at)
        return None

    def _clean_images(self) -> None:
        """Put aside what a death left unfinished."""
        moved = self._images.clean()
        self._counts.orphans += moved
        if moved:
            _LOG.warning("unfinished pictures moved to quarantine", count=moved)


def _see_that_page_may(body: Json, descriptors: tuple[int, ...]) -> None:
    """Raises ValueError if it asks for what is not the page's. Pictures are not: others could be
    made to wait while they are encoded, and the memory under them could be taken away."""
    if body.get("op") not in _OPS_OF_PAGE:
        raise ValueError(f"the page may not ask for {body.get('op')!r:.40}")
    if descriptors or body.get("pixels") is not None:
        raise ValueError("the page sends no pictures")
    if body["op"] == "submit" and len(body["rows"]) > page_door.MAX_ROWS:
        raise ValueError(f"the page sends {page_door.MAX_ROWS} rows at once at most")


def _what_is_missing(problem: BaseException) -> str:
    """For which the client waits and sends its pictures again."""
    if not isinstance(problem, OSError):
        return "no memory for its pictures"
    is_full = problem.errno in _DISK_FULL
    return f"{problem.strerror}; free some space" if is_full else str(problem)


def _is_of_drift(what: str | None) -> bool:
    return what in drift_log.CHANGES


def _size(path: Path) -> int:
    """Bytes of a file; 0 if there is none."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _file_age_s(path: Path) -> float | None:
    """Seconds since a file was written, by wall time; None if there is none."""
    try:
        return max(0.0, time.time() - path.stat().st_mtime)
    except FileNotFoundError:
        return None


def _map_pixels(descriptor: int, wanted: Json) -> Pixels:
    """A plate's buffer in the station's memory, uint8 (scan lines, width). Raises ValueError if
    what is wanted of it does not lie in it."""
    rows, width, band_rows = (int(wanted[key]) for key in ("rows", "width", "band_rows"))
    size = os.fstat(descriptor).st_size
    if min(rows, width, band_rows) < 1 or rows * width > size:
        raise ValueError(f"pixels {json.dumps(wanted)[:200]} do not lie in {size} bytes")
    if not {"evidence", "preview"}.issuperset(wanted["keep"]):
        raise ValueError(f"there are no such pictures: {json.dumps(wanted)[:200]}")
    try:
        memory = np.frombuffer(mmap.mmap(descriptor, size, prot=mmap.PROT_READ), np.uint8)
    except OSError as error:
        raise ValueError(f"pixels of {size} bytes cannot be read: {error.strerror}") from error
    return memory[: size // width * width].reshape(-1, width)


def _with_pictures(row: Body, sha256: str, images: tuple[ImageBody, ...]) -> Body:
    if not isinstance(row, ResultBody):
        return row
    return row.model_copy(update={"pixels_sha256": sha256, "images": images})
