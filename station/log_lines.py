"""What a line of a log looks like, by structlog: JSON for machines, text for people.

Apart from station/logs.py, because structlog's import takes longer than a lamp process may take to
be back.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import structlog
from structlog.stdlib import BoundLogger, ProcessorFormatter
from structlog.typing import EventDict, Processor, WrappedLogger

from station.record import rfc3339
from station.redaction import redact
from station.visible import visible

MOST_BYTES: Final = 4096
"""Of a line: a pipe takes as much in one piece or not at all (PIPE_BUF)."""
_MOST_CHARACTERS = 1500
"""Of one field; of the parts of a line that does not fit, `_FEW_CHARACTERS`."""
_FEW_CHARACTERS = 200
_PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}
"""Of syslog(3), as journald reads them before a line."""


def get_logger(name: str) -> BoundLogger:
    """A logger whose events are constant text; what varies is named beside it."""
    logger: BoundLogger = structlog.stdlib.get_logger(name)
    return logger


def line_formatter(
    process: str, station_id: str, is_terminal: bool, is_journal: bool
) -> logging.Formatter:
    """Makes records of structlog and of the standard library into lines."""
    head: Processor = _Head(process, station_id)
    render = _as_text if is_terminal else _as_json(is_journal)
    return ProcessorFormatter(processors=[head, _without_meta, render], foreign_pre_chain=[])


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
        trouble = event.pop("exc_info", None)
        if isinstance(trouble, tuple) and trouble[1] is not None:
            event["exception"] = logging.Formatter().formatException(trouble)
        left_out = getattr(record, "left_out", 0)
        return {**head, **event, **({"left_out": left_out} if left_out else {})}


def _without_meta(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    cleaned = {key: value for key, value in event.items() if not key.startswith("_")}
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
    tail = "".join(f"\n{visible(part)}" for part in str(trace).splitlines())
    return (visible(line) + tail)[: MOST_BYTES - 1]


_SAID_FIRST = ("time", "level", "process", "station_id", "logger", "event")


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
