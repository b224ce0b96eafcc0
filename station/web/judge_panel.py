"""The judging part of a plate's page: what was said of it, and what one touch may say now."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel

from station import open_plates
from station.config import ConfigError, Loaded, Recipe, ReviewRecipe
from station.log_reader import NoTables, Reader
from station.recipes import active_recipe
from station.record import Disposition, NamedDefectBody, Reason, Verdict
from station.reviews import Judgement, effective_verdict, last_judged, taking_back_problem
from station.reviews import person as one_spelling
from station.roles import Person, Role
from station.unsettled import State
from station.web.blind import is_blind_of, is_drawn
from station.web.context import Web

Json = dict[str, Any]
CONFIRMING, MISSED, OTHER = "confirmed", "missed", "other"
"""Codes of the default recipe that say by themselves what they are for."""
_TAKES_BACK = "takes back row "
MOST_DEFECTS = 40
"""That are offered to be named."""


class OfferedReason(BaseModel):
    """A reason of the recipe's list."""

    code: str
    text: str


class Offer(BaseModel):
    """What one touch says of the plate; without a reason, a second touch chooses that."""

    name: str
    key: str
    """Of the keyboard."""
    verdict: Verdict
    disposition: Disposition
    reason: str
    reason_text: str = ""
    reasons: list[OfferedReason] = []
    """Among which the second touch chooses."""
    note: str = ""
    takes_back: bool = False
    """Nobody has judged the plate then."""
    is_danger: bool = False


class PanelDefect(BaseModel):
    """A defect that may be named, numbered from 0 as in the record."""

    number: int
    kind: str | None
    """What a reviewer called it last."""
    x_mm: float
    y_mm: float


class HistoryRow(BaseModel):
    """Who said what: the station's result, then every review."""

    seq: int
    written_at: str
    by: str
    """Empty for the station."""
    verdict: Verdict
    reason: str = ""
    reason_text: str = ""
    note: str = ""
    disposition: str = ""
    defects: list[NamedDefectBody] = []
    takes_back: bool = False
    """The review before; then `verdict` says nothing."""
    is_waiting: bool = False
    """For a second person."""
    superseded_by: int | None = None
    """The row that took its place; None of what stands."""


class Attempt(BaseModel):
    """Another time that the part came by."""

    result_id: str
    attempt: int | None
    written_at: str
    verdict: str | None
    """That stands; None where it is kept from who looks."""
    is_later: bool


class Panel(BaseModel):
    """The judging part of a plate's page. What is hidden of a blind sample is not in it at all."""

    result_id: str
    is_blind: bool
    is_sample: bool
    supersedes: int
    """The row that a review of now supersedes: its version."""
    nonce: str
    """Of the review that this panel may send: sent again, it is one row."""
    verdict: Verdict | None = None
    """That stands."""
    own_verdict: Verdict | None = None
    own_score: float | str | None = None
    disposition: str = ""
    state: State | None = None
    """Whether somebody must still see to the plate."""
    offers: list[Offer] = []
    kinds: list[str] = []
    defects: list[PanelDefect] = []
    history: list[HistoryRow] = []
    waiting: HistoryRow | None = None
    """The review that waits for a second person."""
    is_own_waiting: bool = False
    """It is this person's: somebody else must agree."""
    undo: Offer | None = None
    attempts: list[Attempt] = []
    """The one before this, and the newest after it."""
    attempts_in_all: int = 0
    """This one included; 0 without a serial."""
    notes: list[str] = []
    """What is said here may lack, and why."""
    may_judge: bool
    why_not: Literal["", "sign_in", "role", "gap", "recipe"] = ""
    needs_secret: bool
    judged: HistoryRow | None = None
    """What was just committed, and may be taken back at once."""


# --- the panel ------------------------------------------------------------------------------------


def panel_of(
    web: Web, reader: Reader, rows: Sequence[Json], person: Person, judged: int | None = None
) -> Panel:
    """For the page of a plate with these rows, the result first. `judged` is the row that was just
    committed."""
    result, recipe = rows[0], recipe_of(web)
    why_not = _why_not(result, recipe, person)
    common: Json = {
        "result_id": result["result_id"],
        "supersedes": last_judged(rows) or result["seq"],
        "nonce": secrets.token_hex(16),
        "may_judge": not why_not,
        "why_not": why_not,
        "needs_secret": is_signed(web),
        "is_sample": is_drawn(result),
        "notes": reader.notes,
    }
    rule = recipe or ReviewRecipe()
    if is_blind_of(rows, person):
        return Panel(**common, is_blind=True, offers=blind_offers(rule))
    return Panel(**common, is_blind=False, **_seen(reader, rows, person, rule, judged))


def _seen(
    reader: Reader, rows: Sequence[Json], person: Person, recipe: ReviewRecipe, judged: int | None
) -> Json:
    result, stands = rows[0], effective_verdict(rows)
    past = history(rows, stands, recipe)
    waiting = next((row for row in past if row.is_waiting), None)
    return {
        "verdict": stands.verdict,
        "own_verdict": result["verdict"],
        "own_score": result.get("score"),
        "disposition": _disposition(stands),
        "state": _state(reader, result["seq"]),
        "offers": offers(rows, stands, recipe, person),
        "kinds": list(recipe.kinds),
        "defects": _defects(rows),
        "history": past,
        "waiting": waiting,
        "is_own_waiting": waiting is not None and is_same(waiting.by, person),
        "undo": undo_of(rows, recipe),
        **_attempts(reader, result, person),
        "judged": next((row for row in past if row.seq == judged and row.by), None),
    }


def _why_not(result: Json, recipe: ReviewRecipe | None, person: Person) -> str:
    if result.get("reason") == Reason.GAP:
        return "gap"
    if recipe is None:
        return "recipe"
    if not person.is_signed_in:
        return "sign_in"
    return "" if person.may(Role.REVIEWER) else "role"


def recipe_of(web: Web) -> ReviewRecipe | None:
    """As the journal process reads it for each review; None where it cannot be read."""
    loaded = loaded_recipe(web)
    return None if loaded is None else loaded.value.review


def loaded_recipe(web: Web) -> Loaded[Recipe] | None:
    """The active one; None where it cannot be read."""
    try:
        return active_recipe(web.configuration.value)
    except ConfigError:
        return None


def is_signed(web: Web) -> bool:
    """Whether each review wants the reviewer's password or PIN again."""
    return web.settings.sign_reviews


def is_same(name: str, person: Person) -> bool:
    """Whether a name in the log is this person's, however it is spelt."""
    return one_spelling(name) == one_spelling(person.name)


def _disposition(stands: Judgement) -> str:
    return str((stands.review or {}).get("disposition", ""))


def _state(reader: Reader, seq: int) -> State | None:
    try:
        return open_plates.state_of(reader, seq)
    except NoTables:  # a log that no journal process of this release has opened yet
        return None


def _defects(rows: Sequence[Json]) -> list[PanelDefect]:
    named = {
        one["number"]: one["kind"]
        for row in rows
        if row["kind"] == "review"
        for one in row.get("defects") or ()
    }
    found = list(enumerate(rows[0].get("defects") or ()))[:MOST_DEFECTS]
    return [
        PanelDefect(number=number, kind=named.get(number), x_mm=one["x_mm"], y_mm=one["y_mm"])
        for number, one in found
    ]


def _attempts(reader: Reader, result: Json, person: Person) -> Json:
    """The time before that its part came by, the newest one, and how many there are."""
    if result.get("part_id") is None:
        return {}
    beside = open_plates.attempts(reader, result["part_id"], result["seq"])
    found = [
        Attempt(
            result_id=line.result_id,
            attempt=line.attempt,
            written_at=line.written_at,
            verdict=verdict_seen(reader, line, person),
            is_later=line.seq > result["seq"],
        )
        for line in (beside.previous, beside.newest)
        if line is not None
    ]
    return {"attempts": found, "attempts_in_all": beside.in_all}


def verdict_seen(reader: Reader, line: Any, person: Person) -> str | None:
    """That stands by a line of `plate`; None where it is kept from this person."""
    if line.is_audit_sample and is_blind_of(reader.of_result(line.result_id), person):
        return None
    return str(line.reviewed_verdict or line.verdict)


# --- what is offered ------------------------------------------------------------------------------


def confirming_reason(recipe: ReviewRecipe) -> str:
    """What one touch gives where a verdict is confirmed: the recipe's `confirmed`, else its
    first."""
    return CONFIRMING if CONFIRMING in recipe.reasons else next(iter(recipe.reasons))


def _offered(recipe: ReviewRecipe) -> list[OfferedReason]:
    """Reasons for who says otherwise than what stands."""
    codes = [code for code in recipe.reasons if code != CONFIRMING] or list(recipe.reasons)
    return [OfferedReason(code=code, text=recipe.reasons[code]) for code in codes]


def _offer(
    name: str,
    key: str,
    verdict: Verdict,
    disposition: Disposition,
    recipe: ReviewRecipe,
    reason: str = "",
) -> Offer:
    """With a choice of reasons where none is given."""
    return Offer(
        name=name,
        key=key,
        verdict=verdict,
        disposition=disposition,
        reason=reason,
        reason_text=recipe.reasons.get(reason, ""),
        reasons=[] if reason else _offered(recipe),
        is_danger=verdict is Verdict.FAIL,
    )


def _missed(recipe: ReviewRecipe) -> str:
    return MISSED if MISSED in recipe.reasons else ""


def blind_offers(recipe: ReviewRecipe) -> list[Offer]:
    """For who must not know what was said before."""
    return [
        _offer("good", "g", Verdict.PASS, "use", recipe, confirming_reason(recipe)),
        _offer("defective", "d", Verdict.FAIL, "", recipe, _missed(recipe)),
        _offer("undecided", "u", Verdict.UNDECIDED, "", recipe),
    ]


def offers(
    rows: Sequence[Json], stands: Judgement, recipe: ReviewRecipe, person: Person
) -> list[Offer]:
    """What is most often said of such a plate, first."""
    found = _second_opinion(stands, recipe, person)
    verdict = verdict_to_confirm(rows, stands)
    if verdict is Verdict.PASS:
        return [*found, *_offers_of_pass(recipe)]
    return [*found, *_offers_of_others(verdict, _disposition(stands), recipe)]


def _second_opinion(stands: Judgement, recipe: ReviewRecipe, person: Person) -> list[Offer]:
    waiting = stands.pending
    if waiting is None or is_same(waiting["reviewer"], person):
        return []
    reason = waiting["reason"] if waiting["reason"] in recipe.reasons else ""
    said: Disposition = waiting.get("disposition", "")
    return [_offer("agree", "a", Verdict(waiting["verdict"]), said, recipe, reason)]


def _offers_of_pass(recipe: ReviewRecipe) -> list[Offer]:
    return [
        _offer("good", "g", Verdict.PASS, "use", recipe, confirming_reason(recipe)),
        _offer("defective_removed", "d", Verdict.FAIL, "removed", recipe, _missed(recipe)),
        _offer("undecided", "u", Verdict.UNDECIDED, "", recipe),
    ]


def _offers_of_others(verdict: Verdict, said: str, recipe: ReviewRecipe) -> list[Offer]:
    reason = confirming_reason(recipe)
    other = (
        _offer("undecided", "u", Verdict.UNDECIDED, "", recipe)
        if verdict is Verdict.FAIL
        else _offer("defective_removed", "d", Verdict.FAIL, "removed", recipe)
    )
    found = [
        _offer("confirm_removed", "c", verdict, "removed", recipe, reason),
        _offer("overrule", "o", Verdict.PASS, "use", recipe),
        other,
        _offer("rework", "r", verdict, "rework", recipe, reason),
        _offer("scrap", "x", verdict, "scrap", recipe, reason),
        _offer("confirm", "k", verdict, "", recipe, reason),
    ]
    return [one for one in found if (one.verdict, one.disposition) != (verdict, said) or not said]


def undo_of(rows: Sequence[Json], recipe: ReviewRecipe) -> Offer | None:
    """A further row that says again what stood before the last review; None without one. Where no
    person's judgement held before, it says that none does: the station's verdict in a person's
    name would count as one that was confirmed."""
    reviews = [row for row in rows if row["kind"] == "review"]
    if not reviews:
        return None
    before = effective_verdict([row for row in rows if row["seq"] < reviews[-1]["seq"]])
    note = f"{_TAKES_BACK}{reviews[-1]['seq']}"
    if before.review is None:
        offer = _offer("undo", "z", _not_judged(rows[0]), "", recipe, _other_reason(recipe))
        may_be_none = not taking_back_problem(rows, recipe.four_eyes)
        told = {"note": f"{note}: nobody has judged it", "takes_back": may_be_none}
        return offer.model_copy(update=told)
    said: Mapping[str, Any] = before.review
    reason = said.get("reason", "")
    reason = reason if reason in recipe.reasons else confirming_reason(recipe)
    offer = _offer("undo", "z", before.verdict, said.get("disposition", ""), recipe, reason)
    return offer.model_copy(update={"note": note})


def _not_judged(result: Json) -> Verdict:
    """For programs that do not know `takes_back`, and where four eyes are asked before a plate
    passes: what no rate counts as a judgement. No rate asks about a PASS that was not drawn, and
    UNDECIDED would have somebody look for a plate that has left."""
    is_counted = is_drawn(result) or result["verdict"] != Verdict.PASS
    return Verdict.UNDECIDED if is_counted else Verdict.PASS


def _other_reason(recipe: ReviewRecipe) -> str:
    """Which says that the note tells, where the recipe knows one."""
    return OTHER if OTHER in recipe.reasons else confirming_reason(recipe)


def verdict_to_confirm(rows: Sequence[Json], stands: Judgement) -> Verdict:
    """That stands; the station's own where a review was taken back by a row that had to say
    UNDECIDED, and nobody judged since."""
    is_taken_back = str((stands.review or {}).get("note", "")).startswith(_TAKES_BACK)
    if is_taken_back and stands.verdict is Verdict.UNDECIDED:
        return Verdict(rows[0]["verdict"])
    return stands.verdict


# --- what was said --------------------------------------------------------------------------------


def history(rows: Sequence[Json], stands: Judgement, recipe: ReviewRecipe) -> list[HistoryRow]:
    """Everything that was said, the first first."""
    reviews = [row for row in rows if row["kind"] == "review"]
    standing = _standing(rows[0], stands)
    held = [row["seq"] for row in reviews if not row.get("is_pending")]
    found = [_history_row(rows[0], "", recipe)]
    found += [_history_row(row, row["reviewer"], recipe) for row in reviews]
    for place, row in enumerate(found):
        row.is_waiting = stands.pending is not None and row.seq == stands.pending["seq"]
        if row.seq in standing or row.is_waiting:
            continue
        later = [one.seq for one in found[place + 1 :]] if row.by else held
        row.superseded_by = next(iter(later), None)
    return found


def _standing(result: Json, stands: Judgement) -> set[int]:
    """Numbers of the rows that give what holds: two reviews where two people had to agree."""
    if stands.review is None:
        return {result["seq"]}
    if len(stands.reviewers) > 1:
        return {row["seq"] for row in stands.agreeing}
    return {stands.review["seq"]}


def _history_row(row: Json, by: str, recipe: ReviewRecipe) -> HistoryRow:
    said = {name: row.get(name) or "" for name in ("note", "disposition")} if by else {}
    reason = str(row.get("reason") or "")
    return HistoryRow(
        seq=row["seq"],
        written_at=row["written_at"],
        by=by,
        verdict=row["verdict"],
        reason=reason,
        reason_text=recipe.reasons.get(reason, "") if by else "",
        defects=row.get("defects") or [] if by else [],
        takes_back=bool(row.get("takes_back")),
        **said,
    )
