"""The line as it is now: what the light shows and why, what needs a person, the newest plates.

Pure: a look at the station goes in, what a page says of it comes out. Nothing is good because it is
not known to be bad: what does not answer is a call for a person, and its figures are none.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from drivers.stacklight import LightState
from drivers.stacklight.settings import Element, LightPattern, Mode
from station.config import LightSettings
from station.ipc import Json
from station.record import rfc3339
from station.state import StationState
from station.web.line_log import ShownPlate, StripPlate, Yield
from station.web.live import Live

Level = Literal["fault", "fail", "undecided", "attention", "halted", "starting", "open"]
"""How urgent a call is, the most urgent first. `fault`: nothing is inspected, or nobody knows what
the light shows; `fail` and `undecided`: a plate is held; `attention`: plates will be lost unless
somebody comes; `open`: plates wait that nobody has seen to."""
LEVELS: tuple[Level, ...] = get_args(Level)
_PLACES: tuple[Element, ...] = get_args(Element)
_HELD = {LightState.FAIL: "fail", LightState.UNDECIDED: "undecided"}
_MOST_CALLS = 64
NOTHING = "none"
"""In place of a plate's id: who acknowledges saw none that is held."""
_SEEN_BY_STATION = {"lamp": "light", "journal": "writing"}
"""Problems that the station has with processes that may well answer."""
_NOT_IN_THE_WAY = {"pictures"}
"""Parts whose problem calls nobody by the light and keeps no plate from being judged."""


class Part(BaseModel):
    """Frozen; of another station's answer, maybe a later program's, what is not known is left
    out."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class ElementView(Part):
    """One element of the tower."""

    element: Element
    mode: Literal["on", "blink", "off", "unknown"]


class LightView(Part):
    """The tower as the lamp process says that it is lit."""

    state: str
    """Of the light; `unknown` where the lamp process does not answer or does not know."""
    elements: tuple[ElementView, ...]
    """From the top; those that this site's patterns use."""
    buzzer: Literal["on", "blink", "off", "unknown"] | None
    """None where no state sounds it."""
    since_at: str | None
    result_id: str = ""
    part_id: str | None = None
    committed_at: str | None = None
    """Of this plate's record; None: it has none yet."""
    until_at: str | None = None
    """It ends then at the latest; None: when it is acknowledged, or is not known."""
    is_held: bool = False
    """A station keeps it alive."""
    confirmation: Literal["read_back", "not_readable", "doubt", "unknown"]
    doubt: str = ""
    lease_s: float
    """A pass that nobody renews goes out after so long."""
    device: str = ""


class ProcessView(Part):
    """Whether a process answers."""

    name: Literal["station", "lamp", "journal"]
    is_up: bool
    since_at: str | None = None
    """Of its last answer, where it does not."""
    why: str = ""


class CallView(Part):
    """Something that needs a person."""

    level: Level
    part: str
    """What it is about; there are words for what to do for each."""
    text: str = ""
    """What the station says, in its own words."""
    since_at: str | None = None
    result_id: str = ""
    count: int | None = None


class PlateView(Part):
    """One of the newest plates."""

    result_id: str
    written_at: str
    part_id: str | None
    verdict: str
    reviewed_verdict: str | None
    reason: str | None
    defects: int
    has_picture: bool


class YieldView(Part):
    """First-pass yield since a moment; `value` None where no plate came."""

    since_at: str
    shift: str
    plates: int
    passed: int
    value: float | None
    low: float
    high: float


class Figures(Part):
    """What is counted. None: not known."""

    rate_per_minute: float | None
    shift: YieldView | None
    today: YieldView | None
    lost_frames: int | None
    """Since the station began."""
    lost_since_at: str | None
    last_verdict_at: str | None
    """When a verdict last became durable."""
    waiting_since_at: str | None
    """When the oldest plate left that has been without a durable verdict for over 2 s."""
    open_plates: int | None
    plates: int | None
    """Since the station began."""


class LineSummary(Part):
    """A line as another station sees it: no plates but the one that the light speaks of."""

    station_id: str
    at: str
    """When the station was looked at last."""
    is_current: bool
    """False: nobody has looked for a while, and what follows may be over."""
    light: LightView
    state: str
    """Of the station; `unknown` where it does not answer."""
    state_since_at: str | None
    is_ready: bool | None
    not_ready: tuple[str, ...]
    provenance: str | None
    recipe: str
    calls: tuple[CallView, ...] = Field(max_length=_MOST_CALLS)
    """The most urgent first, of one urgency the longest first."""
    figures: Figures


class LinePage(LineSummary):
    """The line view."""

    held: str
    """What an acknowledgement speaks of: the plate that the light holds, or `none`."""
    processes: tuple[ProcessView, ...]
    plates: tuple[PlateView, ...]
    log_problem: str = ""
    """Why the log cannot be read; then plates and figures are as of `log_read_at`."""
    log_read_at: str | None = None
    log_notes: tuple[str, ...] = ()
    """What plates and figures may lack although the log can be read, and why."""


@dataclass(frozen=True, slots=True)
class WrongLog:
    """The last verification of the whole log found something; stands until another one does not."""

    ended_at: float
    """Seconds since 1970."""
    findings: int


def line_page(
    station_id: str, settings: LightSettings, live: Live, wrong_log: WrongLog | None = None
) -> LinePage:
    """What the page says at this moment."""
    station, log = live.station or {}, live.log
    return LinePage(
        station_id=station_id,
        at=_text(live.at),
        is_current=not live.is_stale,
        light=light_view(settings, live),
        state=station.get("state", "unknown"),
        state_since_at=live.since("state"),
        is_ready=station.get("ready"),
        not_ready=tuple(station.get("not_ready", ())),
        provenance=station.get("provenance"),
        recipe=_recipe(station),
        held=seen_held(live),
        processes=tuple(_processes(live)),
        calls=_by_urgency(chain(_calls(live), _calls_of_log(wrong_log))),
        plates=tuple(_plate(plate) for plate in log.plates),
        figures=_figures(live),
        log_problem=log.problem,
        log_read_at=_text(log.read_at) if log.problem and log.read_at else None,
        log_notes=log.notes,
    )


def _text(at: float) -> str:
    return rfc3339(datetime.fromtimestamp(at, UTC))


def _recipe(station: Json) -> str:
    recipe = station.get("recipe")
    return f"{recipe['id']} v{recipe['version']}" if recipe else ""


# --- the light ------------------------------------------------------------------------------------


def light_view(settings: LightSettings, live: Live) -> LightView:
    """The tower by the configured patterns, and what is known of it."""
    lamp, table = None if live.is_stale else live.lamp, settings.pattern_table
    said = lamp["state"] if lamp else "unknown"
    pattern = None if said == "unknown" else table[LightState(said)]
    used = {element for other in table.values() for element in other}
    plate = _shown_plate(live) if lamp else None
    return LightView(
        state=said,
        elements=tuple(
            ElementView(element=element, mode=_mode(pattern, element))
            for element in _PLACES
            if element in used and element != "buzzer"
        ),
        buzzer=_mode(pattern, "buzzer") if "buzzer" in used else None,
        since_at=live.since("light"),
        result_id=lamp["result_id"] if lamp else "",
        part_id=plate.part_id if plate else None,
        committed_at=_committed_at(plate),
        until_at=_until(settings, said, plate, live.began.get("light")),
        is_held=bool(lamp and lamp["is_held"]),
        confirmation=_confirmation(lamp),
        doubt=(lamp["problem"] or lamp["doubt"]) if lamp else "",
        lease_s=settings.lease_s,
        device=lamp["device"] if lamp else "",
    )


def _mode(pattern: LightPattern | None, element: Element) -> Mode | Literal["off", "unknown"]:
    return "unknown" if pattern is None else pattern.get(element, "off")


def _shown_plate(live: Live) -> ShownPlate | None:
    """The plate of which the light speaks, if the log has its record."""
    plate = live.log.shown
    is_it = live.lamp and plate and plate.result_id == live.lamp["result_id"]
    return plate if is_it else None


def _committed_at(plate: ShownPlate | None) -> str | None:
    """The lamp is told at once after the commit; the result itself says when it was decided."""
    if plate is None:
        return None
    return _text(plate.commanded_at) if plate.commanded_at else plate.written_at


def _until(
    settings: LightSettings, said: str, plate: ShownPlate | None, seen_at: float | None
) -> str | None:
    """When the station lets a plate's result end by itself."""
    since = plate.commanded_at if plate and plate.commanded_at else seen_at
    if said == "unknown" or since is None:
        return None
    state = LightState(said)
    hold_s = settings.pass_hold_s if state.is_pass else settings.fail_hold_s
    is_result = state.is_pass or state in _HELD
    return _text(since + hold_s) if is_result and hold_s is not None else None


def _confirmation(lamp: Json | None) -> Literal["read_back", "not_readable", "doubt", "unknown"]:
    if lamp is None:
        return "unknown"
    if lamp["problem"] or lamp["doubt"]:
        return "doubt"
    if lamp["is_confirmed"]:
        return "read_back"
    return "unknown" if lamp["can_confirm"] else "not_readable"


# --- who is needed --------------------------------------------------------------------------------


def _processes(live: Live) -> Iterator[ProcessView]:
    for name in get_args(ProcessView.model_fields["name"].annotation):
        silence = live.silent.get(name)
        if silence is None:
            yield ProcessView(name=name, is_up=live.heard_ns > 0)
        else:
            since_at = _text(silence.since)
            yield ProcessView(name=name, is_up=False, since_at=since_at, why=silence.why)


def _calls(live: Live) -> Iterator[CallView]:
    for process in _processes(live):
        if not process.is_up:
            yield CallView(
                level="fault", part=process.name, text=process.why, since_at=process.since_at
            )
    if live.station is not None:
        yield from _calls_of_station(live, live.station)
    if live.lamp is not None:
        yield from _calls_of_light(live, live.lamp)
    if live.log.problem:
        yield CallView(level="attention", part="reading", text=live.log.problem)
    if count := _open_plates(live):
        yield CallView(level="open", part="open", count=count)


def _calls_of_station(live: Live, station: Json) -> Iterator[CallView]:
    since_at = live.since("state")
    if station["state"] == StationState.HALTED:
        yield CallView(level="halted", part="halted", since_at=since_at)
    if station["state"] == StationState.PREOPERATIONAL:
        yield CallView(level="starting", part="starting", since_at=since_at)
    for part, text in station["problems"].items():
        if part == "lamp" and live.lamp and (live.lamp["problem"] or live.lamp["doubt"]):
            continue  # the lamp process says it itself
        is_call = text in station["calls"] or part in _NOT_IN_THE_WAY
        level: Level = "attention" if is_call else "fault"
        name, since_at = _SEEN_BY_STATION.get(part, part), live.since(f"problem {part}")
        yield CallView(level=level, part=name, text=text, since_at=since_at)
    for text in station["attentions"]:
        begun_at = live.log.begun_at.get(text) or live.since(f"attention {text}")
        yield CallView(level="attention", part="attention", text=text, since_at=begun_at)


def _calls_of_light(live: Live, lamp: Json) -> Iterator[CallView]:
    since_at = live.since("light")
    if lamp["problem"] or lamp["doubt"]:
        text = lamp["problem"] or lamp["doubt"]
        yield CallView(level="fault", part="light", text=text, since_at=live.since("doubt"))
        return
    level = _HELD.get(lamp["state"])
    if level is not None:
        plate = _shown_plate(live)
        if plate is not None and plate.commanded_at:
            since_at = _text(plate.commanded_at)
        yield CallView.model_validate(
            {"level": level, "part": level, "since_at": since_at, "result_id": lamp["result_id"]}
        )


def _calls_of_log(wrong: WrongLog | None) -> Iterator[CallView]:
    if wrong is not None:
        at, count = _text(wrong.ended_at), wrong.findings
        yield CallView(level="attention", part="wrong_log", since_at=at, count=count)


def seen_held(live: Live) -> str:
    """What an acknowledgement speaks of: the plate that the light holds, or `NOTHING`."""
    lamp = None if live.is_stale else live.lamp
    held_id = lamp["result_id"] if lamp and lamp["state"] in _HELD else ""
    return str(held_id or NOTHING)


def _by_urgency(calls: Iterator[CallView]) -> tuple[CallView, ...]:
    return tuple(sorted(calls, key=urgency)[:_MOST_CALLS])


def urgency(call: CallView) -> tuple[int, str]:
    """The most urgent first, then the one that has waited longest."""
    return LEVELS.index(call.level), call.since_at or "9999"


# --- plates and figures ---------------------------------------------------------------------------


def _plate(plate: StripPlate) -> PlateView:
    return PlateView(
        result_id=plate.result_id,
        written_at=plate.written_at,
        part_id=plate.part_id,
        verdict=plate.verdict,
        reviewed_verdict=plate.reviewed_verdict,
        reason=plate.reason,
        defects=plate.defects,
        has_picture=plate.has_picture,
    )


def _figures(live: Live) -> Figures:
    station, log = live.station, live.log
    newest_at = log.plates[0].written_at if log.plates else None
    return Figures(
        rate_per_minute=log.rate_per_minute,
        shift=_yield(log.shift),
        today=_yield(log.today),
        lost_frames=station.get("lost_frames") if station else None,
        lost_since_at=live.since("life"),
        last_verdict_at=(station and station["last_verdict_at"]) or newest_at,
        waiting_since_at=live.since("waiting"),
        open_plates=_open_plates(live),
        plates=station.get("plates") if station else None,
    )


def _open_plates(live: Live) -> int | None:
    """Plates that somebody must still see to, as the journal process counts them; None: it does not
    know them all yet."""
    counted: Json = (live.journal or {}).get("unsettled") or {}
    return counted.get("open")


def _yield(found: Yield | None) -> YieldView | None:
    if found is None:
        return None
    interval = found.rate.interval
    return YieldView(
        since_at=_text(found.since),
        shift=found.shift,
        plates=found.plates,
        passed=found.passed,
        value=found.rate.value,
        low=interval.low,
        high=interval.high,
    )
