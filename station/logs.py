"""Logs of every process: structlog over the standard library's logging, set up in one place.

A line of JSON for machines, text for people at a terminal. Nothing here waits: where stderr takes
nothing, lines are lost and counted, for neither lamp nor station may stand still because nobody
reads. An event that floods is written a few times, then counted.
"""

from __future__ import annotations

import json
import logging
import os
import re
import select
import socket
import stat
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final

import structlog
from structlog.stdlib import BoundLogger, ProcessorFormatter
from structlog.typing import EventDict, Processor, WrappedLogger

from station.record import rfc3339
from station.redaction import redact

MOST_BYTES: Final = 4096
"""Of a line: a pipe takes as much in one piece or not at all (PIPE_BUF)."""
_STATION_VARIABLE = "VQI_STATION_ID"
_MOST_CHARACTERS = 1500
"""Of one field; of the parts of a line that does not fit, `_FEW_CHARACTERS`."""
_FEW_CHARACTERS = 200
FLOOD_LINES: Final = 20
FLOOD_S: Final = 10.0
"""So many lines of one event in this time are written; the others are counted."""
_MOST_EVENTS = 256
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}
"""Of syslog(3), as journald reads them before a line."""


def get_logger(name: str) -> BoundLogger:
    """A logger whose events are constant text; what varies is named beside it."""
    logger: BoundLogger = structlog.stdlib.get_logger(name)
    return logger


def set_up_logging(process: str, station_id: str = "", descriptor: int = 2) -> None:
    """Let this process log to `descriptor`: JSON from INFO, at a terminal text from WARNING. The
    station's id is that of whoever started this process, where none is given."""
    if station_id:
        os.environ[_STATION_VARIABLE] = station_id
    station_id = os.environ.get(_STATION_VARIABLE, "")
    is_terminal = os.isatty(descriptor)
    handler = _Handler(descriptor)
    render = _as_text if is_terminal else _as_json(is_journal(descriptor))
    head: Processor = _Head(process, station_id)
    handler.setFormatter(
        ProcessorFormatter(processors=[head, _without_meta, render], foreign_pre_chain=[])
    )
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(logging.WARNING if is_terminal else logging.INFO)
    # Python's own way to say it would wait for a reader.
    sys.excepthook = _log_uncaught
    threading.excepthook = lambda args: _log_uncaught(
        args.exc_type, args.exc_value, args.exc_traceback
    )


def is_journal(descriptor: int) -> bool:
    """Whether what is written there goes to journald (systemd.exec(5), $JOURNAL_STREAM)."""
    found = os.fstat(descriptor)
    return os.environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


def _log_uncaught(
    kind: type[BaseException], error: BaseException | None, trace: TracebackType | None
) -> None:
    if error is None or issubclass(kind, KeyboardInterrupt | SystemExit):
        return
    get_logger("python").critical("uncaught exception", exc_info=(kind, error, trace))


# --- lines --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Head:
    """Puts in front of each event when, how bad and who."""

    process: str
    station_id: str

    def __call__(self, logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
        record: logging.LogRecord = event["_record"]
        head = {
            "time": rfc3339(datetime.fromtimestamp(record.created, UTC)),
            "level": record.levelname.lower(),
            "process": self.process,
            "station_id": self.station_id,
            "logger": record.name,
            "event": event.pop("event", ""),
        }
        if not event["_from_structlog"] and record.exc_info:
            event["exception"] = logging.Formatter().formatException(record.exc_info)
        left_out = getattr(record, "left_out", 0)
        return {**head, **event, **({"left_out": left_out} if left_out else {})}


def _without_meta(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    cleaned = {k: v for k, v in event.items() if not k.startswith("_") and k != "exc_info"}
    redacted: EventDict = redact(_bounded(cleaned, _MOST_CHARACTERS))
    return redacted


def _bounded(event: EventDict, characters: int) -> EventDict:
    return {key: _short(value, characters) for key, value in event.items()}


def _short(value: Any, characters: int) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    if len(text) > characters:
        # The end of a traceback says what went wrong.
        text = f"{text[: characters // 2]} … {text[-characters // 2 :]}"
    return text if isinstance(value, str) or len(text) > characters else value


def _as_json(is_journal: bool) -> Callable[[WrappedLogger, str, EventDict], str]:
    def render(logger: WrappedLogger, method: str, event: EventDict) -> str:
        prefix = f"<{_PRIORITIES.get(event['level'], 6)}>" if is_journal else ""
        line = prefix + json.dumps(event, default=str)
        if len(line) >= MOST_BYTES:
            line = prefix + json.dumps(_shrunk(event), default=str)
        return line

    return render


def _shrunk(event: EventDict) -> EventDict:
    """An event with too many or too long fields, so short that it fits."""
    short = _bounded(event, _FEW_CHARACTERS)
    while len(json.dumps(short, default=str)) >= MOST_BYTES - 10:
        short.popitem()
    return short


def _as_text(logger: WrappedLogger, method: str, event: EventDict) -> str:
    """For people: no byte of an event moves the terminal's cursor."""
    said = {key: value for key, value in event.items() if key not in _SAID_FIRST}
    trace = said.pop("exception", "")
    words = "".join(f" {key}={value}" for key, value in said.items() if value != "")
    line = f"{event['level'].upper()} {event['process']}: {event['event']}{words}"
    tail = "".join(f"\n{_visible(part)}" for part in str(trace).splitlines())
    return (_visible(line) + tail)[: MOST_BYTES - 1]


_SAID_FIRST = ("time", "level", "process", "station_id", "logger", "event")


def _visible(text: str) -> str:
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


# --- writing ------------------------------------------------------------------------------------


class _Handler(logging.Handler):
    """Bounds floods, and writes without waiting."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._write = _writer(descriptor)
        self._floods = Floods()
        self._lost = 0

    def emit(self, record: logging.LogRecord) -> None:
        try:
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
    said = record.msg.get("event") if isinstance(record.msg, dict) else record.msg
    return f"{record.name}: {said}"[:_FEW_CHARACTERS]


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


structlog.configure(
    processors=[
        structlog.stdlib.filter_by_level,
        structlog.processors.format_exc_info,
        ProcessorFormatter.wrap_for_formatter,
    ],
    logger_factory=structlog.stdlib.LoggerFactory(),
    wrapper_class=BoundLogger,
    cache_logger_on_first_use=False,
)
