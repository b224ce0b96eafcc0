"""Several lines, one inspector: who calls, the most urgent first, also when one of them is down."""

from __future__ import annotations

import hmac
import time
from collections.abc import Sequence
from datetime import UTC, datetime

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from station.log_lines import get_logger
from station.record import Verdict, rfc3339
from station.web.certificates import placed
from station.web.context import Web
from station.web.errors import SignInNeeded
from station.web.feed import Shown, stream
from station.web.line import page_of
from station.web.line_view import LEVELS, CallView, Level, LightView, LineSummary, YieldView
from station.web.others import SUMMARY_PATH, Heard, Why
from station.web.pages import WebRouter
from station.web.plant_lines import POLL_S, PlantLine, PlantNews
from station.web.render import language_of

router = WebRouter()
_OF_VERDICT: dict[str, Level] = {Verdict.FAIL: "fail", Verdict.UNDECIDED: "undecided"}
_SHORTEST_TOKEN = 32
"""Letters; anybody may try as often as this machine answers."""
_PLANT_OLD_S = 4 * POLL_S
"""A database that has not answered for so long: what it knows of a line is old."""
_ROWS_OLD_S = 600.0
"""A line of which no row came in for so long: nobody knows how it is."""
_LOG = get_logger("web")


class PlantPlate(BaseModel):
    """The last plate of a line that the plant's database has."""

    result_id: str
    written_at: str
    verdict: str
    reviewed_verdict: str | None
    arrived_at: str


class LineRow(BaseModel):
    """One line."""

    name: str
    url: str
    """Of its page, without a slash at the end; empty for this station and where none is known."""
    is_here: bool = False
    is_down: bool = False
    """It does not answer: what is said of it is what it said last."""
    down_since_at: str | None = None
    """Of its last answer; None where it never gave one."""
    why: Why = ""
    is_current: bool = True
    """False: it answers, but has no news of its own processes."""
    said_at: str | None = None
    """When it looked at itself, by its own clock."""
    level: Level | None = None
    """Of its most urgent call; None: it calls nobody."""
    call: CallView | None = None
    """None also where nobody knows: then `level` says how urgent that is."""
    calls: int = 0
    since_at: str | None = None
    light: LightView | None = None
    rate_per_minute: float | None = None
    today: YieldView | None = None
    open_plates: int | None = None
    plant: PlantPlate | None = None


class LinesPage(BaseModel):
    """All lines."""

    at: str
    is_current: bool
    """False: this station's own page has no news of its processes."""
    lines: tuple[LineRow, ...]
    """The most urgent first, then the one that has called longest."""
    calling: int
    has_plant: bool
    plant_problem: str = ""
    plant_asked_at: str | None = None


@router.page("/lines", template="line/lines.html", menu="lines.menu")
def lines(web: Web) -> LinesPage:
    """All lines, who calls first."""
    return lines_page(web)


@router.data("/lines/live", media_type="text/event-stream")
async def lines_live(web: Web, request: Request) -> Response:
    """Events `news`: the list as HTML, in the reader's language, when it changes; `beat`."""
    return stream(web, request, f"lines {language_of(request)}")


@router.data(SUMMARY_PATH, role=None, media_type="application/json")
def summary(web: Web, request: Request) -> Response:
    """The line in short, for other stations: with the read token, or where anybody may look."""
    if not _may_read(web, request):
        raise SignInNeeded
    said = page_of(web).model_dump(include=set(LineSummary.model_fields))
    return Response(
        LineSummary.model_validate(said).model_dump_json(), media_type="application/json"
    )


def _may_read(web: Web, request: Request) -> bool:
    if web.people.person_of(request) is not None:
        return True
    file = web.settings.read_token_file
    given = request.headers.get("authorization", "").removeprefix("Bearer ")
    if file is None or not given:
        return False
    try:
        wanted = placed(file).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        _LOG.error("web.read_token_file cannot be read", file=str(file), error=str(error))
        return False
    if len(wanted) < _SHORTEST_TOKEN:
        _LOG.error("web.read_token_file holds no long word", wanted=_SHORTEST_TOKEN)
        return False
    return hmac.compare_digest(given.encode(), wanted.encode())


# --- the list -------------------------------------------------------------------------------------


def lines_page(web: Web) -> LinesPage:
    """As they are known at this moment."""
    own = page_of(web)
    plant = web.plant.news if web.plant else PlantNews()
    rows = rows_of(own, web.others.heard, plant, time.time())
    return LinesPage(
        at=own.at,
        is_current=own.is_current,
        lines=tuple(rows),
        calling=sum(row.level is not None for row in rows),
        has_plant=web.plant is not None,
        plant_problem=plant.problem,
        plant_asked_at=_text(plant.asked_at),
    )


def rows_of(
    own: LineSummary, others: Sequence[Heard], plant: PlantNews, now: float
) -> list[LineRow]:
    """Each line once, the most urgent first; `now` in seconds since 1970."""
    known = {line.station_id: line for line in plant.lines}
    rows = [_own(own), *(_other(heard, known) for heard in others)]
    named = {own.station_id, *(heard.station_id for heard in others)}
    is_old = plant.asked_at is None or now - plant.asked_at > _PLANT_OLD_S
    rows += [_of_plant(line, is_old, now) for name, line in known.items() if name not in named]
    return sorted(rows, key=_urgency)


SHOWN = Shown(lambda web, _: lines_page(web), {"lines": "line/_lines.html"})


def _text(at: float | None) -> str | None:
    return None if at is None else rfc3339(datetime.fromtimestamp(at, UTC))


def _own(page: LineSummary) -> LineRow:
    return _of_summary(LineRow(name=page.station_id, url="", is_here=True), page)


def _other(heard: Heard, known: dict[str, PlantLine]) -> LineRow:
    """Unknown is never good: a line that does not answer is as urgent as a fault."""
    row = LineRow(name=heard.name, url=heard.url)
    if heard.summary is not None and not heard.is_down:
        return _of_summary(row, heard.summary)
    plate = known.get(heard.station_id)
    since_at = _text(heard.heard_at)
    silence = {"is_down": True, "down_since_at": since_at, "since_at": since_at, "why": heard.why}
    return row.model_copy(
        update={**silence, "level": "fault", "plant": _plant_plate(plate) if plate else None}
    )


def _of_summary(row: LineRow, said: LineSummary) -> LineRow:
    call = said.calls[0] if said.calls and said.is_current else None
    since_at = call.since_at if call else None
    return row.model_copy(
        update={
            "is_current": said.is_current,
            "said_at": said.at,
            "level": call.level if call else (None if said.is_current else "fault"),
            "call": call,
            "calls": len(said.calls),
            "since_at": since_at if said.is_current else said.at,
            "light": said.light,
            "rate_per_minute": said.figures.rate_per_minute,
            "today": said.figures.today,
            "open_plates": said.figures.open_plates,
        }
    )


def _of_plant(line: PlantLine, is_plant_old: bool, now: float) -> LineRow:
    """Of a line that nobody here asks: its last plate calls until a person has judged it, and so
    does its silence. Unknown is never good."""
    silence = _silence(line, is_plant_old, now)
    held = None if line.reviewed_verdict is not None else _OF_VERDICT.get(line.verdict)
    calls = [level for level in (silence, held) if level is not None]
    level = min(calls, key=LEVELS.index, default=None)
    return LineRow(
        name=line.station_id,
        url="",
        is_current=silence is None,
        said_at=line.arrived_at,
        level=level,
        since_at=(line.written_at if level is held else line.arrived_at) if level else None,
        plant=_plant_plate(line),
    )


def _silence(line: PlantLine, is_plant_old: bool, now: float) -> Level | None:
    """How urgent it is that nobody knows of this line; None where somebody does."""
    if is_plant_old:
        return "fault"
    arrived_at = datetime.fromisoformat(line.arrived_at).timestamp()
    return "attention" if now - arrived_at > _ROWS_OLD_S else None


def _plant_plate(line: PlantLine) -> PlantPlate:
    return PlantPlate(
        result_id=line.result_id,
        written_at=line.written_at,
        verdict=line.verdict,
        reviewed_verdict=line.reviewed_verdict,
        arrived_at=line.arrived_at,
    )


def _urgency(row: LineRow) -> tuple[int, str]:
    """The most urgent first, then who has called longest; one that never answered before all."""
    if row.level is None:
        return len(LEVELS), ""
    return LEVELS.index(row.level), row.since_at or ""
