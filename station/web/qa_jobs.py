"""Work that takes longer than a page may: exports of many plates, the whole log's verification.
Each is done by a process of its own that gives way to the line; one of a kind at a time."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import threading
import time
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import IO, Any

from station.idle import start_idle
from station.roles import Person, Role
from station.web.context import Web
from station.web.errors import PageError, conflict, not_found

Json = dict[str, Any]
_KEPT = 10
"""Jobs of a kind that have ended."""
_KEPT_BYTES = 4 * 10**9
"""Of all files that jobs left; the oldest go first, never the newest."""
_ID = re.compile(r"[0-9a-f]{16}")
_SAID = "job.json"
_STOP_LIMIT_S = 5.0


class Kind(StrEnum):
    EXPORT = "export"
    VERIFY = "verify"


class State(StrEnum):
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"
    """The page's process ended before it did."""


@dataclass(frozen=True, slots=True)
class Job:
    """Something that was asked for."""

    id: str
    kind: Kind
    order: Json
    who: str
    begun_at: float
    """Seconds since 1970."""
    state: State = State.RUNNING
    done: int = 0
    total: int = 0
    """Rows; 0: not known yet."""
    said: str = ""
    """Why it failed."""
    result: Json = field(default_factory=dict)
    ended_at: float | None = None


def state_folder(web: Web) -> Path:
    """Where the page's process keeps what it makes: its unit's folder, or beside its people."""
    given = os.environ.get("STATE_DIRECTORY", "").partition(":")[0]
    return Path(given or web.configuration.value.people_dir) / "qa"


class Jobs:
    """Those of one page's process, and what those before it left."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        """Never held while files are written or deleted: the line view's news waits for it."""
        self._processes: dict[str, subprocess.Popen[str]] = {}
        self._jobs = {job.id: job for job in map(_read, folder.glob(f"*/{_SAID}")) if job}

    def of(self, kind: Kind) -> list[Job]:
        """The newest first."""
        with self._lock:
            found = [job for job in self._jobs.values() if job.kind is kind]
        return sorted(found, key=lambda job: -job.begun_at)

    @property
    def verified(self) -> Job | None:
        """The last verification that came to its end: what it found stands."""
        return next((job for job in self.of(Kind.VERIFY) if job.state is State.DONE), None)

    def get(self, job_id: str) -> Job:
        """Raises `PageError` 404."""
        with self._lock:
            job = self._jobs.get(job_id)
        if job is None:
            raise not_found("qa.no_such_job")
        return job

    def folder_of(self, job: Job) -> Path:
        return self._folder / job.id

    def start(self, kind: Kind, order: Json, who: Person, total: int = 0) -> Job:
        """Raises `PageError`: 409 while another of its kind runs, 503 where nothing can be kept."""
        job = Job(secrets.token_hex(8), kind, order, who.name, time.time(), total=total)
        with self._lock:
            if any(one.kind is kind and one.state is State.RUNNING for one in self._jobs.values()):
                raise conflict(f"qa.runs_already_{kind}")
            self._jobs[job.id] = job
        try:
            self._make_room(kind)
            self.folder_of(job).mkdir(parents=True)
            self._write(job)
        except OSError as error:
            with self._lock:
                del self._jobs[job.id]
            raise PageError(503, "qa.no_state", why=f"{self._folder}: {error.strerror}") from error
        threading.Thread(
            target=self._run, args=(job,), name=f"{kind} {job.id}", daemon=True
        ).start()
        return job

    def cancel(self, job_id: str, who: Person) -> Job:
        """By who began it, or an engineer. Raises `PageError`."""
        job = self.get(job_id)
        if job.who != who.name and not who.may(Role.ENGINEER):
            raise PageError(403, "qa.not_yours")
        with self._lock:
            if self._jobs[job_id].state is State.RUNNING:
                self._jobs[job_id] = replace(self._jobs[job_id], state=State.CANCELLED)
            if (process := self._processes.get(job_id)) is not None:
                process.terminate()
        return self.get(job_id)

    # --- in a thread of its own -------------------------------------------------------------------

    def _run(self, job: Job) -> None:
        """This thread stays until the process has ended, which dies with it."""
        try:
            process = start_idle(
                *("-m", "station.web.qa_worker"), is_awaited=job.kind is Kind.EXPORT,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            self._settle(job.id, {"error": str(error)})
            return
        with self._lock:
            self._processes[job.id] = process
            if self._jobs[job.id].state is State.CANCELLED:
                process.terminate()
        self._finish(job, process)

    def _finish(self, job: Job, process: subprocess.Popen[str]) -> None:
        """Whatever it says, the job ends."""
        try:
            said = self._talk(job, process)
        except (OSError, ValueError, TypeError, KeyError) as error:
            said = {"error": f"its process said nothing that can be understood: {error}"}
        self._end(job.id, process, said)

    def _talk(self, job: Job, process: subprocess.Popen[str]) -> Json:
        """What it says last."""
        assert process.stdin is not None
        assert process.stdout is not None
        order = {**job.order, "kind": job.kind, "folder": str(self.folder_of(job))}
        with contextlib.suppress(OSError):
            json.dump(order, process.stdin)
            process.stdin.close()
        with process.stdout:
            return self._hear(job.id, process.stdout)

    def _hear(self, job_id: str, lines: IO[str]) -> Json:
        """How far it is, until it says how it ended."""
        said: Json = {}
        for line in lines:
            said = json.loads(line)
            if "done" in said:
                with self._lock:
                    job = self._jobs[job_id]
                    self._jobs[job_id] = replace(job, done=said["done"], total=said["total"])
        return said

    def _end(self, job_id: str, process: subprocess.Popen[str], said: Json) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_LIMIT_S)
        # Also what it started itself.
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
        status = process.wait()
        if status < 0 and "result" not in said:
            said = {"error": f"its process was killed by signal {-status}; is memory short?"}
        elif not said.keys() & {"result", "error"}:
            said = {"error": f"its process ended with status {status}"}
        self._settle(job_id, said)

    def _settle(self, job_id: str, said: Json) -> None:
        """Its files first: who sees that a job has ended finds them as they stay."""
        with self._lock:
            begun = self._jobs.get(job_id)
            if begun is None:  # given up, and its room taken since
                self._processes.pop(job_id, None)
                return
        job = _ended(begun, said)
        with contextlib.suppress(OSError):
            if job.state is not State.DONE:
                _empty(self.folder_of(job))
            self._write(job)
        with self._lock:
            self._processes.pop(job_id, None)
            if job_id in self._jobs:
                self._jobs[job_id] = job

    # --- what is kept -----------------------------------------------------------------------------

    def _write(self, job: Job) -> None:
        path = self.folder_of(job) / _SAID
        temporary = path.with_suffix(".new")
        temporary.write_text(json.dumps(asdict(job)))
        temporary.replace(path)

    def _make_room(self, kind: Kind) -> None:
        """For one more."""
        ended = [job for job in self.of(kind) if job.state is not State.RUNNING]
        kept_bytes = 0
        # What a verification found stands until another one comes to its end.
        if kind is Kind.VERIFY and (found := [job for job in ended if job.state is State.DONE]):
            ended.remove(found[0])
        for number, job in enumerate(ended, start=1):
            kept_bytes += _bytes_in(self.folder_of(job))
            if number >= _KEPT or (number > 1 and kept_bytes > _KEPT_BYTES):
                with self._lock:
                    self._jobs.pop(job.id, None)
                shutil.rmtree(self.folder_of(job), ignore_errors=True)


def _bytes_in(folder: Path) -> int:
    """Of its files; those of a job that was just given up may go meanwhile."""
    found = 0
    for path in folder.glob("*"):
        with contextlib.suppress(OSError):
            found += path.stat().st_size
    return found


def _ended(job: Job, said: Json) -> Job:
    job = replace(job, ended_at=time.time())
    if job.state is State.CANCELLED:
        return job
    if "result" in said:
        return replace(job, state=State.DONE, result=said["result"])
    return replace(job, state=State.FAILED, said=str(said.get("error", "")))


def _empty(folder: Path) -> None:
    for path in folder.glob("*"):
        if path.name != _SAID:
            path.unlink(missing_ok=True)


def _read(path: Path) -> Job | None:
    """What a process before this one left; None if that is nothing that can be read."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        job = Job(**json.loads(path.read_text()))
        job = replace(job, kind=Kind(job.kind), state=State(job.state))
        if path.parent.name == job.id and _ID.fullmatch(job.id):
            is_lost = job.state is State.RUNNING
            return replace(job, state=State.INTERRUPTED, ended_at=job.begun_at) if is_lost else job
    return None


_known: dict[Path, Jobs] = {}
_known_lock = threading.Lock()


def jobs_of(web: Web) -> Jobs:
    """The jobs of this page's process."""
    folder = state_folder(web)
    with _known_lock:
        if folder not in _known:
            _known[folder] = Jobs(folder)
        return _known[folder]
