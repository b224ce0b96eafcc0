"""Where every process logs to, set up in one place: stderr, without waiting for its reader.

Where stderr takes nothing, lines are lost and counted, for neither lamp nor station may stand still
because nobody reads. An event that floods is written a few times, then counted. What a line looks
like is in station/log_lines.py.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
import stat
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final

FLOOD_LINES: Final = 20
FLOOD_S: Final = 10.0
"""So many lines of one event in this time are written; the others are counted."""
_MOST_EVENTS = 256
_EVENT_CHARACTERS = 200
_APART: Final = {"action": ("who", "path"), "refused": ("who",)}
"""Events that are another one for each of these fields: what many people do all day long does not
push one's own action out. Of what is refused a stranger can make up any number of paths."""
_STATION_VARIABLE = "VQI_STATION_ID"
LOG_FOLDER_VARIABLE: Final = "VQI_LOG_FOLDER"
"""Names the folder in which each process also keeps its last lines, where no journald does."""
_MOST_FILE_BYTES = 1_000_000
"""Of a process's file; what is older lies in a second one."""


def set_up_logging(process: str, station_id: str = "", descriptor: int = 2) -> None:
    """Let this process log to `descriptor`: JSON from INFO, at a terminal text from WARNING. The
    station's id is that of whoever started this process, where none is given."""
    if station_id:
        os.environ[_STATION_VARIABLE] = station_id
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    station_id, is_terminal = os.environ.get(_STATION_VARIABLE, ""), os.isatty(descriptor)
    form = Form(process, station_id, is_terminal, is_journal(descriptor))
    handler = _Handler(form, _writer(descriptor))
    handler.setLevel(logging.WARNING if is_terminal else logging.INFO)
    root.addHandler(handler)
    folder = os.environ.get(LOG_FOLDER_VARIABLE, "")
    with contextlib.suppress(OSError):
        if folder and not form.is_journal:
            file = LogFile(Path(folder) / f"{process}.jsonl")
            root.addHandler(_Handler(Form(process, station_id, False, False), file.write))
    root.setLevel(min(one.level for one in root.handlers))
    # Python's own way to say it would wait for a reader.
    sys.excepthook = _log_uncaught
    threading.excepthook = lambda args: _log_uncaught(
        args.exc_type, args.exc_value, args.exc_traceback
    )


@dataclass(frozen=True, slots=True)
class Form:
    """Whose lines, and for whom."""

    process: str
    station_id: str
    is_terminal: bool
    is_journal: bool


class LogFile:
    """The last lines of one process; two files, so that there is always some of them. Raises
    OSError where it cannot be opened."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._open()

    def write(self, data: bytes) -> bool:
        """False if it was not taken."""
        try:
            if self._bytes + len(data) > _MOST_FILE_BYTES:
                os.close(self._descriptor)
                self._path.replace(self._path.with_suffix(".1.jsonl"))
                self._open()
            self._bytes += len(data)
            return os.write(self._descriptor, data) == len(data)
        except OSError:
            return False

    def _open(self) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._descriptor = os.open(self._path, flags, 0o640)
        self._bytes = os.fstat(self._descriptor).st_size


def prepare_lines() -> None:
    """Import now what the first line would import: for a process in which nothing may wait then."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, _Handler):
            handler.prepare()


def is_journal(descriptor: int) -> bool:
    """Whether what is written there goes to journald (systemd.exec(5), $JOURNAL_STREAM)."""
    found = os.fstat(descriptor)
    return os.environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


def _log_uncaught(
    kind: type[BaseException], error: BaseException | None, trace: TracebackType | None
) -> None:
    if error is not None and not issubclass(kind, KeyboardInterrupt | SystemExit):
        log = logging.getLogger("python")
        log.critical("uncaught exception", exc_info=(kind, error, trace))


class _Handler(logging.Handler):
    """Bounds floods, and writes without waiting."""

    def __init__(self, form: Form, write: Callable[[bytes], bool]) -> None:
        super().__init__(logging.INFO)
        self._form = form
        self._write = write
        self._floods = Floods()
        self._lost = 0

    def prepare(self) -> None:
        """Raises ImportError."""
        if self.formatter is None:
            from station.log_lines import line_formatter

            form = self._form
            self.formatter = line_formatter(
                form.process,
                form.station_id,
                is_terminal=form.is_terminal,
                is_journal=form.is_journal,
            )

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self.prepare()
            self._say_counts(self._floods.over(time.monotonic()))
            left_out = self._floods.take(_event_of(record), time.monotonic())
            if left_out is not None:
                self._say(record, left_out)
        except Exception:  # noqa: BLE001  a log must not end what it tells about
            self._lost += 1

    def close(self) -> None:
        """What was left out and not said yet is said at the end."""
        try:
            self._say_counts(self._floods.over(float("inf")))
        except Exception:  # noqa: BLE001
            self._lost += 1
        super().close()

    def _say_counts(self, over: dict[str, int]) -> None:
        for event, count in over.items():
            self._say(_record("an event was too frequent", of=event), count)

    def _say(self, record: logging.LogRecord, left_out: int) -> None:
        record.left_out = left_out
        if self._lost and isinstance(record.msg, dict):
            record.msg["lines_lost"] = self._lost
        if self._write(self.format(record).encode(errors="backslashreplace") + b"\n"):
            self._lost = 0
        else:
            self._lost += 1


def _event_of(record: logging.LogRecord) -> str:
    if not isinstance(record.msg, dict):
        return f"{record.name}: {record.msg}"[:_EVENT_CHARACTERS]
    event = str(record.msg.get("event"))
    apart = [str(record.msg.get(name, "")) for name in _APART.get(event, ())]
    return " ".join((f"{record.name}: {event}", *apart))[:_EVENT_CHARACTERS]


def _record(event: str, **fields: object) -> logging.LogRecord:
    record = logging.LogRecord("logs", logging.WARNING, "", 0, "", (), None)
    record.msg = {"event": event, **fields}
    record._logger, record._name = None, "warning"
    return record


class Floods:
    """Counts lines of each event within a time; bounded, whatever is logged."""

    def __init__(self) -> None:
        self._seen: dict[str, list[float]] = {}
        """Begin of the window, lines written and lines left out in it, by event."""

    def take(self, event: str, now_s: float) -> int | None:
        """How many lines of this event were left out before this one; None: leave it out too."""
        seen = self._seen.get(event)
        if seen is None or now_s - seen[0] >= FLOOD_S:
            left_out = int(seen[2]) if seen else 0
            self._seen.pop(event, None)
            if len(self._seen) >= _MOST_EVENTS:
                self._seen.pop(next(iter(self._seen)))
            self._seen[event] = [now_s, 1, 0]
            return left_out
        if seen[1] < FLOOD_LINES:
            seen[1] += 1
            return 0
        seen[2] += 1
        return None

    def over(self, now_s: float) -> dict[str, int]:
        """Events whose time is over, and how many lines were left out of each; forgets them."""
        over = [event for event, seen in self._seen.items() if now_s - seen[0] >= FLOOD_S]
        counts = {event: int(self._seen.pop(event)[2]) for event in over}
        return {event: count for event, count in counts.items() if count}


def _writer(descriptor: int) -> Callable[[bytes], bool]:
    """A function that writes a line and never waits; False if it was not taken."""
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISSOCK(mode):
        connection = socket.socket(fileno=os.dup(descriptor))
        return lambda data: _sent(connection, data)
    if stat.S_ISREG(mode):
        return lambda data: os.write(descriptor, data) == len(data)
    try:
        # An open file of our own: not waiting is a matter of the file, and others share that one.
        own = os.open(
            f"/proc/self/fd/{descriptor}",
            os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC,
        )
    except OSError:
        return lambda data: _written_if_room(descriptor, data)
    return lambda data: _written(own, data)


def _sent(connection: socket.socket, data: bytes) -> bool:
    try:
        return connection.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL) == len(data)
    except OSError:
        return False


def _written(descriptor: int, data: bytes) -> bool:
    try:
        return os.write(descriptor, data) == len(data)
    except OSError:
        return False


def _written_if_room(descriptor: int, data: bytes) -> bool:
    """Where the file may not be opened again, being another user's."""
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return bool(poll.poll(0)) and _written(descriptor, data)
