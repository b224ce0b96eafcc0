"""How the station is, with the cause named; its last log lines, its configuration, lamp and outputs
by hand, and the archive for support."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, Field
from starlette.background import BackgroundTask
from starlette.responses import Response, StreamingResponse

from models.card import ModelError
from station.commissioned import CommissioningFile, read_commissioned
from station.commissioning_report import REPORT_HTML
from station.config import ConfigError
from station.hand_test import LAMP_TEST, SHOWN
from station.ipc import Json, PeerGone
from station.lamp import LampClient, LampError
from station.log_tail import LEVELS, Wanted, details, tail
from station.precision import read_record
from station.processes import temperatures_c
from station.recipes import RecipeFolder
from station.record import ChangeBody
from station.redaction import redact
from station.roles import Person, Role
from station.state import JUDGED_ALL_THE_SAME, NotCommissioned, StationState
from station.web.context import Web
from station.web.errors import PageError, conflict, not_found
from station.web.line_view import NOTHING, seen_held
from station.web.pages import WebRouter

router = WebRouter("/engineer")

Level = Literal["ok", "attention", "bad", "unknown"]
_TICK_LIMIT_S = 2.0
_PROCESSES: Final = ("station", "journal", "lamp")
_ARCHIVE_LIMIT_S = 600.0
_CHUNK_BYTES = 65_536


class CheckShown(BaseModel):
    """One thing that must be right, what is wrong with it in the station's own words, and the key
    of the text that says what to do."""

    part: str
    level: Level
    cause: str = ""
    advice: str = ""


class ProcessShown(BaseModel):
    """A process of the station; without a pid it does not answer."""

    name: str
    is_up: bool
    pid: int | None = None
    version: str = ""
    memory_mb: float | None = None
    cpu_s: float | None = None
    threads: int | None = None


class DepthShown(BaseModel):
    """How full something is that can fill."""

    name: str
    filled: int
    capacity: int | None = None


class LogShown(BaseModel):
    """The record's store and the disk below it."""

    rows: int | None = None
    database_mb: float | None = None
    wal_mb: float | None = None
    disk_free_mb: float | None = None
    disk_mb: float | None = None
    snapshot_age_s: float | None = None
    backup_at: str | None = None
    checkpoint_at: str | None = None


class ClockShown(BaseModel):
    """The wall clock, which only labels."""

    is_synchronized: bool | None = None
    steps: int | None = None
    doubt: str = ""


class ModelShown(BaseModel):
    """What judges."""

    id: str
    sha256: str
    runtime: str
    precision: str
    gate_at: str | None = None
    """When the precision gate ran for it; None where it has not."""
    gate_passed: list[str] = Field(default_factory=list)
    gate_refused: list[str] = Field(default_factory=list)


class ShadowShown(BaseModel):
    """A candidate that scores plates in the shadow; counted since the station began. What it says
    of plates is in `vqi model shadow report` alone."""

    model_id: str
    share: float
    """Of one core, at most."""
    is_there: bool
    """Its process is connected."""
    problem: str
    lent: int
    """Plates."""
    scored: int
    taken_back: int
    """From a shadow that was silent."""


class CommissioningShown(BaseModel):
    """Whether plates are production, and why."""

    provenance: str
    why: str
    run: str = ""
    who: str = ""
    signed_at: str | None = None
    camera_serial: str = ""
    recipe: str = ""
    report: bool = False
    """The report that was signed lies where it was written."""


class HealthPage(BaseModel):
    """How the station is."""

    at: float
    is_stale: bool
    state: str
    is_ready: bool
    not_ready: list[str]
    checks: list[CheckShown]
    processes: list[ProcessShown]
    tick_age_s: float | None
    verdict_age_s: float | None
    waiting_s: float | None
    depths: list[DepthShown]
    log: LogShown
    clock: ClockShown
    temperatures_c: dict[str, float]
    recipe: str
    model: ModelShown | None
    shadow: ShadowShown | None
    """None where no candidate is in the shadow, or the station does not answer."""
    commissioning: CommissioningShown


class LineShown(BaseModel):
    """A line of a log."""

    time: str
    level: str
    process: str
    event: str
    result_id: str
    details: dict[str, str]


class LinesPage(BaseModel):
    """The newest log lines of all processes."""

    lines: list[LineShown]
    source: str
    problem: str
    level: str
    process: str
    result_id: str
    text: str
    levels: list[str]
    processes: list[str]


class KeyShown(BaseModel):
    """A key of the configuration; secrets are left out."""

    key: str
    value: str


class ConfigurationPage(BaseModel):
    """The configuration that this page was started with."""

    source: str
    sha256: str
    running_sha256: str
    """Of the one that the station runs with; another, where the file was changed since."""
    keys: list[KeyShown]
    commissioning: CommissioningShown


class TestShown(BaseModel):
    """What was tried out last, and what the lamp process said; `problem` is None until it does."""

    what: str
    at: str
    problem: str | None


class LampPage(BaseModel):
    """Lamp and outputs by hand: whether that may be now, and if not, why."""

    at: float
    is_stale: bool
    """Then nobody knows the state, nor what is shown."""
    state: str
    refusal: str
    """Key of the text that says why nothing may be tried out; empty if it may."""
    is_halted: bool
    shown: str
    device: str
    confirmation: str
    states: list[str]
    outputs: list[str]
    last: TestShown | None
    held: str
    """What an acknowledgement speaks of: the plate that the light holds, or `none`."""


class CommandForm(BaseModel):
    """A command to the station."""

    op: Literal["halt", "resume", "ack", "relearn"]
    seen: str = Field(NOTHING, min_length=1, max_length=64)
    """With `ack`: `held` as it was shown; refused where another plate is held by now."""
    back: str = ""


class LightForm(BaseModel):
    """`test` lights everything for a moment; a state shows for some seconds."""

    what: Literal["test", "fail", "undecided", "attention", "idle", "fault"]
    back: str = ""


class OutputForm(BaseModel):
    """An output that is switched on for a second."""

    name: Literal["accept", "busy", "error", "attention"]
    back: str = ""


class Told(BaseModel):
    """What the station was told, and its state then."""

    op: str
    state: str


# --- health ---------------------------------------------------------------------------------------


@router.page("", template="engineer/health.html", role=Role.VIEWER, menu="engineer.menu")
def engineer(web: Web) -> HealthPage:
    """How every part of the station is, with the cause of what is wrong and what to do."""
    live = web.live
    station, journal = live.station or {}, live.journal or {}
    return HealthPage(
        at=live.at,
        is_stale=live.is_stale,
        state=str(station.get("state") or ""),
        is_ready=bool(station.get("ready")) and not live.is_stale,
        not_ready=list(station.get("not_ready") or []),
        checks=list(_checks(web)),
        processes=[_process(name, getattr(live, name)) for name in _PROCESSES],
        tick_age_s=station.get("tick_age_s"),
        verdict_age_s=station.get("verdict_age_s"),
        waiting_s=station.get("waiting_s"),
        depths=_depths(station),
        log=_log(journal),
        clock=_clock(journal),
        temperatures_c=_temperatures(station),
        recipe=_recipe_name(station),
        model=_model(web, station),
        shadow=_shadow(station),
        commissioning=_commissioning(web, station),
    )


def _checks(web: Web) -> Iterator[CheckShown]:
    """What is wrong first; then what was looked at and is right."""
    live = web.live
    for name in _PROCESSES:
        if getattr(live, name) is None:
            advice = "engineer.advice_process"
            yield CheckShown(part=name, level="bad", cause="", advice=advice)
    station, journal = live.station or {}, live.journal or {}
    problems = dict(station.get("problems") or {})
    if journal.get("problem"):
        problems.setdefault("journal", str(journal["problem"]))
    for part, cause in problems.items():
        yield _problem(part, str(cause))
    said = set(problems.values())
    for cause in station.get("calls") or []:
        if cause not in said:
            yield CheckShown(
                part="attention",
                level="attention",
                cause=str(cause),
                advice="engineer.advice_attention",
            )
    silent = {name for name in _PROCESSES if getattr(live, name) is None}
    for check in _looked_at(station, {*problems, *silent}):
        # What was in order when it was last heard is not known to be so now.
        is_known = check.level != "ok" or not live.is_stale
        yield check if is_known else check.model_copy(update={"level": "unknown"})


def _problem(part: str, cause: str) -> CheckShown:
    is_known = part in _ADVICE
    return CheckShown(
        part=part if is_known else "other",
        level="attention" if part in JUDGED_ALL_THE_SAME else "bad",
        cause=cause,
        advice=f"engineer.advice_{part}" if is_known else "",
    )


_ADVICE: Final = frozenset(
    (
        *("camera", "journal", "lamp", "liveness", "inspection", "log", "recording", "plc"),
        *("accept", "late", "pictures", "disk", "upkeep", "scanner", "serials", "recipe"),
        *("parity", "limit_samples", "samples_due", "drift"),
    )
)
"""Parts of the station that can have a problem, for each of which a text says what to do."""


def _looked_at(station: Json, problems: set[str]) -> Iterator[CheckShown]:
    if not station:
        return
    tick_s = station.get("tick_age_s")
    is_ticking = tick_s is not None and tick_s < _TICK_LIMIT_S
    if not is_ticking and "liveness" not in problems:
        advice = "engineer.advice_liveness"
        yield CheckShown(part="liveness", level="bad", cause="", advice=advice)
    for part in ("camera", "lamp", "journal", "liveness"):
        if part not in problems and (part != "liveness" or is_ticking):
            yield CheckShown(part=part, level="ok")


def _process(name: str, status: Json | None) -> ProcessShown:
    if status is None:
        return ProcessShown(name=name, is_up=False)
    figures = status.get("process") or {}
    return ProcessShown(
        name=name,
        is_up=True,
        pid=status.get("pid"),
        version=str(status.get("version") or ""),
        memory_mb=_mb(figures.get("rss_bytes")),
        cpu_s=figures.get("cpu_s"),
        threads=figures.get("threads"),
    )


def _depths(station: Json) -> list[DepthShown]:
    capacities = station.get("capacities") or {}
    return [
        DepthShown(name=name, filled=filled, capacity=capacities.get(name))
        for name, filled in (station.get("queues") or {}).items()
    ]


def _log(journal: Json) -> LogShown:
    return LogShown(
        rows=journal.get("rows"),
        database_mb=_mb(journal.get("database_bytes")),
        wal_mb=_mb(journal.get("wal_bytes")),
        disk_free_mb=_mb(journal.get("disk_free_bytes")),
        disk_mb=_mb(journal.get("disk_bytes")),
        snapshot_age_s=journal.get("snapshot_age_s"),
        backup_at=(journal.get("backup") or {}).get("last_ok_at"),
        checkpoint_at=(journal.get("proof") or {}).get("last_at"),
    )


def _clock(journal: Json) -> ClockShown:
    said = journal.get("clock") or {}
    return ClockShown(
        is_synchronized=said.get("is_synchronized"),
        steps=said.get("steps"),
        doubt=str(said.get("doubt") or ""),
    )


def _mb(size: Any) -> float | None:
    return None if size is None else round(size / 1e6, 1)


def _temperatures(station: Json) -> dict[str, float]:
    """Of this machine, and of the camera where it says."""
    camera_c = (station.get("camera") or {}).get("temperature_c")
    return temperatures_c() | ({} if camera_c is None else {"camera": camera_c})


def _recipe_name(station: Json) -> str:
    said = station.get("recipe")
    return f"{said['id']}@{said['version']}" if said else ""


def _model(web: Web, station: Json) -> ModelShown | None:
    said, recipe = station.get("model"), station.get("recipe")
    if not said or not recipe:
        return None
    shown = ModelShown(**{key: str(said[key]) for key in ("id", "sha256", "runtime", "precision")})
    with contextlib.suppress(ModelError, OSError):
        directory = web.configuration.value.precision_dir
        record = read_record(directory, recipe["id"], shown.sha256, recipe["sha256"])
        if record is not None:
            shown.gate_at = record.made_at
            shown.gate_passed = [one.precision for one in record.candidates if one.is_passed]
            shown.gate_refused = [
                f"{one.precision}: {one.refused}" for one in record.candidates if not one.is_passed
            ]
    return shown


def _shadow(station: Json) -> ShadowShown | None:
    said = station.get("shadow") or {}
    return ShadowShown.model_validate(said) if said.get("is_set") else None


def _commissioning(web: Web, station: Json) -> CommissioningShown:
    """As the running station judged it, and what the signed file says."""
    provenance = str(station.get("provenance") or "")
    shown = CommissioningShown(
        provenance=provenance, why=str(station.get("provenance_why") or _unsigned(web))
    )
    file = _signed_file(web)
    if file is None:
        return shown
    return shown.model_copy(
        update={
            "run": file.run,
            "who": file.who,
            "signed_at": file.signed_at,
            "camera_serial": file.camera_serial,
            "recipe": f"{file.recipe_id}@{file.recipe_version}",
            "report": _report(web, file.run).is_file(),
        }
    )


def _unsigned(web: Web) -> str:
    """Why nothing that was signed holds here; empty if it does, or this cannot be known now."""
    settings = web.configuration.value
    with contextlib.suppress(PageError), web.reader() as reader:
        judged = read_commissioned(
            settings.commissioning_file, settings.station.id, reader.signed_files()
        )
        return judged.why if isinstance(judged, NotCommissioned) else ""
    return ""


def _signed_file(web: Web) -> CommissioningFile | None:
    path = web.configuration.value.commissioning_file
    if path is None:
        return None
    with contextlib.suppress(OSError, ValueError):
        return CommissioningFile.model_validate_json(path.read_bytes())
    return None


def _report(web: Web, run: str) -> Path:
    return web.configuration.value.journal.directory / "commissioning" / run / REPORT_HTML


# --- log lines ------------------------------------------------------------------------------------


@router.page("/log", template="engineer/log.html", role=Role.ENGINEER)
def log_lines(
    web: Web,
    level: Literal["debug", "info", "warning", "error", "critical"] = "info",
    process: str = "",
    result_id: str = "",
    text: str = "",
) -> LinesPage:
    """The newest log lines of all processes, without secrets."""
    wanted = Wanted(level, process[:40], result_id[:80], text[:80])
    found = tail(web.configuration.value.station.runtime_dir, wanted)
    return LinesPage(
        lines=[_line(line) for line in found.lines],
        source=found.source,
        problem=found.problem,
        level=level,
        process=wanted.process,
        result_id=wanted.result_id,
        text=wanted.text,
        levels=list(LEVELS),
        processes=["supervisor", *_PROCESSES, "camera", "metrics", "web"],
    )


def _line(line: Json) -> LineShown:
    said = {key: str(value) for key, value in details(line).items() if value not in ("", None)}
    named = ("time", "level", "process", "event")
    return LineShown(
        **{key: str(line.get(key, "")) for key in named},
        result_id=said.pop("result_id", ""),
        details=said,
    )


@router.data("/doctor.tar.gz", role=Role.ENGINEER, media_type="application/gzip")
def doctor_archive(web: Web) -> Response:
    """The archive for support, without pictures and secrets; one at a time."""
    process = _archives.begin(web.configuration.source)
    name = f"vqi-doctor-{web.station_id}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}.tar.gz"
    headers = {"content-disposition": f'attachment; filename="{name}"', "cache-control": "no-store"}
    # The background task also comes to pass where nobody has asked for the first chunk.
    end = BackgroundTask(_end_archive, process)
    kind = "application/gzip"
    return StreamingResponse(_chunks(process), media_type=kind, headers=headers, background=end)


class _Archives:
    """One at a time: gathering it takes its toll of the disk. One that nobody fetches is ended."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def begin(self, source: str) -> subprocess.Popen[bytes]:
        """Raises `PageError`."""
        with self._lock:
            if self._process is not None and self._process.poll() is None:
                raise PageError(429, "engineer.archive_busy", retry_s=30)
            try:
                self._process = _begin_archive(source)
            except OSError as error:
                raise PageError(503, "engineer.archive_failed", why=str(error)) from error
            watch = threading.Timer(_ARCHIVE_LIMIT_S, self._process.kill)
            watch.daemon = True
            watch.start()
            return self._process


_archives = _Archives()


def _begin_archive(source: str) -> subprocess.Popen[bytes]:
    """In a process that gives way to all others. Raises OSError."""
    command = [sys.executable, "-P", "-m", "station.cli", "doctor", "--config", source]
    return subprocess.Popen(
        ["nice", "-n", "19", *command, "--out", "-"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )


def _chunks(process: subprocess.Popen[bytes]) -> Iterator[bytes]:
    """What it writes, until it ends; it is ended when nobody waits for it any more."""
    try:
        assert process.stdout is not None
        while data := process.stdout.read(_CHUNK_BYTES):
            yield data
    finally:
        _end_archive(process)


def _end_archive(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    with process:
        pass  # its pipe is closed, and its status taken


# --- configuration --------------------------------------------------------------------------------


@router.page("/configuration", template="engineer/configuration.html", role=Role.ENGINEER)
def configuration(web: Web) -> ConfigurationPage:
    """Every key of the configuration, without secrets, and what was signed."""
    loaded = web.configuration
    table = redact(loaded.value.model_dump(mode="json", exclude_none=True))
    station = web.live.station or {}
    return ConfigurationPage(
        source=loaded.source,
        sha256=loaded.sha256,
        running_sha256=str(station.get("configuration_sha256") or ""),
        keys=[KeyShown(key=key, value=value) for key, value in _flat(table)],
        commissioning=_commissioning(web, station),
    )


def _flat(table: Json, before: str = "") -> Iterator[tuple[str, str]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", "" if value is None else str(value)


@router.data("/commissioning-report.html", role=Role.ENGINEER, media_type="text/html")
def commissioning_report(web: Web) -> Response:
    """The report that was signed, to be kept: a page of its own, with styles of its own."""
    file = _signed_file(web)
    if file is None:
        raise not_found("engineer.no_report")
    try:
        data = _report(web, file.run).read_bytes()
    except OSError as error:
        raise not_found("engineer.no_report") from error
    name = f"commissioning-{web.station_id}-{file.run}.html"
    headers = {"content-disposition": f'attachment; filename="{name}"'}
    return Response(data, media_type="text/html", headers=headers)


# --- lamp and outputs -----------------------------------------------------------------------------


@router.page("/lamp", template="engineer/lamp.html", role=Role.ENGINEER)
def lamp(web: Web) -> LampPage:
    """Lamp and outputs by hand; refused while plates run."""
    live = web.live
    station, said = live.station or {}, live.lamp or {}
    last = station.get("hand_test")
    return LampPage(
        at=live.at,
        is_stale=live.is_stale,
        state="" if live.is_stale else str(station.get("state") or ""),
        refusal=_test_refusal(web, station, said),
        is_halted=station.get("state") == StationState.HALTED,
        shown="" if live.is_stale else str(said.get("state") or ""),
        device=str(said.get("device") or ""),
        confirmation="" if live.is_stale else str(station.get("light_confirmation") or ""),
        states=list(map(str, SHOWN)),
        outputs=list(said.get("testable") or []),
        last=TestShown(**last) if last else None,
        held=seen_held(live),
    )


def _test_refusal(web: Web, station: Json, lamp: Json) -> str:
    """Key of the text that says why the lamp may not be tried out now; empty if it may."""
    if not lamp:
        return "engineer.no_lamp"
    state = station.get("state")
    if not station and _restart_is_due(web):
        return "engineer.restart_due"
    if not station or state == StationState.PREOPERATIONAL:
        return "engineer.lamp_held" if lamp.get("is_held") else ""
    if state != StationState.HALTED:
        is_running = state == StationState.OPERATIONAL
        return "engineer.plates_run" if is_running else "engineer.not_halted"
    is_open = (station.get("queues") or {}).get("plates_open")
    return "engineer.plate_open" if is_open else ""


def _restart_is_due(web: Web) -> bool:
    """No station answers, but one is, or may be, started again at once: plates run meanwhile."""
    try:
        switch = RecipeFolder.of(web.configuration.value).switch
        is_asked = switch is not None and switch.state != "failed"
        with web.reader() as reader:
            return is_asked or not reader.ended_in_order()
    except (ConfigError, PageError):
        return True


@router.action("/command", role=Role.ENGINEER, to="/engineer/lamp")
def send_station_command(web: Web, person: Person, form: CommandForm) -> Told:
    """Halt, resume, acknowledge, learn the light anew."""
    answer = web.command(form.op, form.seen if form.op == "ack" else "", person)
    return Told(op=form.op, state=str(answer.get("state") or ""))


@router.action("/light", role=Role.ENGINEER, to="/engineer/lamp")
def try_light(web: Web, person: Person, form: LightForm) -> Told:
    """The lamp test, or one state of the light; the station refuses it while plates run."""
    if web.live.station is None and form.what == LAMP_TEST:
        return _test_without_station(web, person)
    answer = web.command("light", form.what, person)
    return Told(op=form.what, state=str(answer.get("state") or ""))


@router.action("/output", role=Role.ENGINEER, to="/engineer/lamp")
def try_output(web: Web, person: Person, form: OutputForm) -> Told:
    """One output for a second; the station refuses it while plates run."""
    answer = web.command("output", form.name, person)
    return Told(op=form.name, state=str(answer.get("state") or ""))


def _test_without_station(web: Web, person: Person) -> Told:
    """The lamp process tests it itself, unless a station holds it or comes back; recorded first."""
    if _restart_is_due(web):
        raise conflict("engineer.restart_due")
    settings = web.configuration.value
    detail = {"tested": LAMP_TEST}
    row = ChangeBody(
        station_id=settings.station.id, what="lamp_test", who=person.name, detail=detail
    )
    web.submit([row], person)
    try:
        with LampClient(settings.station.runtime_dir, is_page=True) as client:
            client.connect(timeout_s=1.0)
            client.test()
    except LampError as error:
        raise conflict("errors.refused", why=str(error)) from error
    except (PeerGone, TimeoutError, OSError) as error:
        raise PageError(503, "engineer.no_lamp", retry_s=5) from error
    return Told(op=LAMP_TEST, state="")
