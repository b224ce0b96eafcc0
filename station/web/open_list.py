"""Lists of what waits for a person: plates to see to, and samples to be judged blind."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

from fastapi import Query
from pydantic import BaseModel

from station import open_plates
from station.config import ReviewRecipe
from station.log_reader import Reader
from station.next_plates import asked_lines
from station.questions import Selection, open_samples_select
from station.record import Verdict, rfc3339
from station.reviews import Judgement, effective_verdict, last_judged
from station.roles import Person, Role
from station.unsettled import State
from station.web.context import Web
from station.web.judge_panel import (
    HistoryRow,
    Offer,
    confirming_reason,
    history,
    is_same,
    is_signed,
    recipe_of,
    undo_of,
    verdict_seen,
    verdict_to_confirm,
)
from station.web.pages import WebRouter

Json = dict[str, Any]
router = WebRouter()
_PAGE = 24
_MOST_SAMPLES = 48
_PENDING_DAYS = 30
"""Reviews that wait for longer are found by `vqi log reviews --pending`."""


class LaterAttempt(BaseModel):
    """The part came by again."""

    result_id: str
    attempt: int | None
    verdict: str | None
    """That stands; None where it is kept from who looks."""


class ListedPlate(BaseModel):
    """A plate that somebody must see to."""

    result_id: str
    seq: int
    written_at: str
    age_s: float
    verdict: Verdict
    """That stands."""
    confirmed: Verdict
    """What one touch gives; otherwise than `verdict` where a review was taken back."""
    own_verdict: Verdict
    reason: str | None
    part_id: str | None
    attempt: int | None
    picture_url: str
    """A small picture; empty without one."""
    place: Literal["reject", "belt"]
    """`reject`: it was not let through at the accept point, `distance_mm` after the camera."""
    distance_mm: float | None
    plates_since: int | None
    """Plates that came after it; None where that is not known."""
    waiting: HistoryRow | None
    """A review that waits for a second person."""
    later: LaterAttempt | None = None
    supersedes: int
    nonce: str
    disposition: str


class JustJudged(BaseModel):
    """A review that was committed, and may be taken back at once."""

    result_id: str
    row: HistoryRow
    undo: Offer
    supersedes: int
    nonce: str


class OpenPage(BaseModel):
    """Plates that somebody must see to, the oldest first."""

    state: Literal["open", "rework", "pending"]
    counts: dict[str, int | None]
    """None while the log's tables are being filled: there may be more."""
    notes: list[str]
    """What the lists may lack, and why."""
    plates: list[ListedPlate]
    next_after: int | None
    """The next page begins after this row."""
    reason: str
    """What one touch gives."""
    reason_text: str
    may_judge: bool
    needs_secret: bool
    judged: JustJudged | None


@router.page("/open", template="judge/open.html", menu="judge.menu_open")
def open_list(
    web: Web,
    person: Person,
    state: Literal["open", "rework", "pending"] = "open",
    after: Annotated[int, Query(ge=0)] = 0,
    judged: Annotated[str, Query(max_length=64)] = "",
    row: int | None = None,
) -> OpenPage:
    """Plates that did not pass and of which nobody said what becomes of them; those out for rework;
    those whose review waits for a second person. `judged`: one that was just
    removed, by the review of row `row`."""
    recipe = recipe_of(web) or ReviewRecipe()
    with web.reader() as reader:
        lines = _lines(reader, state, after)
        reason = confirming_reason(recipe)
        return OpenPage(
            state=state,
            counts=_counts(reader),
            notes=reader.notes,
            plates=_listed(web, reader, lines[:_PAGE], recipe, person),
            next_after=lines[_PAGE - 1].seq if len(lines) > _PAGE else None,
            reason=reason,
            reason_text=recipe.reasons[reason],
            may_judge=person.is_signed_in and person.may(Role.REVIEWER),
            needs_secret=is_signed(web),
            judged=_just_judged(reader, judged, row, recipe, person),
        )


def _lines(reader: Reader, state: str, after: int) -> Sequence[Any]:
    """One more than a page has."""
    if state == "pending":
        return open_plates.pending(reader, _since(), _PAGE + 1, after)
    return open_plates.page(reader, _PAGE + 1, State(state), after)


def _since() -> str:
    return rfc3339(datetime.now(UTC) - timedelta(days=_PENDING_DAYS))


def _counts(reader: Reader) -> dict[str, int | None]:
    if reader.lag_note:
        return dict.fromkeys(map(str, State))
    return {str(state): open_plates.count(reader, state) for state in State}


def _listed(
    web: Web, reader: Reader, lines: Sequence[Any], recipe: ReviewRecipe, person: Person
) -> list[ListedPlate]:
    newest = open_plates.newest_sequence(reader)
    return [
        _plate(web, reader, line, newest, recipe).model_copy(
            update={"later": _later(reader, line, person)}
        )
        for line in lines
    ]


def _plate(
    web: Web, reader: Reader, line: Any, newest: int | None, recipe: ReviewRecipe
) -> ListedPlate:
    rows = reader.of_result(line.result_id)
    stands, result = effective_verdict(rows), rows[0]
    waiting = next((r for r in history(rows, stands, recipe) if r.is_waiting), None)
    accept = web.configuration.value.accept
    return ListedPlate(
        result_id=line.result_id,
        seq=line.seq,
        written_at=line.written_at,
        age_s=max(0.0, time.time() - datetime.fromisoformat(line.written_at).timestamp()),
        verdict=stands.verdict,
        confirmed=_confirmed(rows, stands),
        own_verdict=line.verdict,
        reason=line.reason,
        part_id=line.part_id,
        attempt=line.attempt,
        picture_url=picture_url(result),
        place="belt" if accept is None else "reject",
        distance_mm=None if accept is None else accept.distance_mm,
        plates_since=None if newest is None else max(0, newest - result["sequence"]),
        waiting=waiting,
        supersedes=last_judged(rows) or line.seq,
        nonce=secrets.token_hex(16),
        disposition=str((stands.review or {}).get("disposition", "")),
    )


def _confirmed(rows: Sequence[Json], stands: Judgement) -> Verdict:
    """With a removal: a plate that passed is not confirmed by taking it away."""
    verdict = verdict_to_confirm(rows, stands)
    return stands.verdict if verdict is Verdict.PASS else verdict


def _later(reader: Reader, line: Any, person: Person) -> LaterAttempt | None:
    """The last time that its part came by, if that was after it."""
    if line.part_id is None:
        return None
    last = open_plates.attempts(reader, line.part_id, line.seq).newest
    if last is None:
        return None
    verdict = verdict_seen(reader, last, person)
    return LaterAttempt(result_id=last.result_id, attempt=last.attempt, verdict=verdict)


def picture_url(result: Json) -> str:
    """Of a small picture; empty where none was kept."""
    return f"/plates/{result['result_id']}/thumbnail.jpg" if result.get("images") else ""


def _just_judged(
    reader: Reader, result_id: str, row: int | None, recipe: ReviewRecipe, person: Person
) -> JustJudged | None:
    """None where that review is not this person's, or somebody has judged since."""
    rows = reader.of_result(result_id) if result_id else []
    if not rows or rows[0]["kind"] != "result":
        return None
    undo, last = undo_of(rows, recipe), history(rows, effective_verdict(rows), recipe)[-1]
    if undo is None or last.seq != row or not is_same(last.by, person):
        return None
    return JustJudged(
        result_id=result_id, row=last, undo=undo, supersedes=last.seq, nonce=secrets.token_hex(16)
    )


# --- samples --------------------------------------------------------------------------------------


class SamplePlate(BaseModel):
    """A drawn plate that nobody has judged: nothing that says how it was judged by the station."""

    result_id: str
    written_at: str
    part_id: str | None
    picture_url: str


class SamplesPage(BaseModel):
    """The audit's samples that wait to be judged, in the order in which they were drawn; and passed
    plates that `vqi model next --ask` asks people to look at, the most doubtful first."""

    samples: list[SamplePlate]
    is_more: bool
    asked: list[SamplePlate]


@router.page("/samples", template="judge/samples.html", menu="judge.menu_samples")
def audit_samples(web: Web) -> SamplesPage:
    """Plates that were drawn for the audit and wait for a judgement; verdicts are hidden."""
    with web.reader() as reader:
        lines = reader.ask(open_samples_select(Selection(), _MOST_SAMPLES + 1))
        asked = asked_lines(reader, _MOST_SAMPLES)
        bodies = reader.bodies_at([line.seq for line in (*lines, *asked)])

    def listed(line: Any) -> SamplePlate:
        return SamplePlate(
            result_id=line.result_id,
            written_at=line.written_at,
            part_id=line.part_id,
            picture_url=picture_url(bodies[line.seq]),
        )

    return SamplesPage(
        samples=[listed(line) for line in lines[:_MOST_SAMPLES]],
        is_more=len(lines) > _MOST_SAMPLES,
        asked=[listed(line) for line in asked],
    )
