"""What people say of a plate after its verdict: which reviews may be written, and what holds then.

Pure: rows in, a judgement out. A review supersedes the one before it and edits nothing; one that
was written without knowledge of the last is refused. Where the recipe asks for four eyes, a plate
that ever failed passes by two people only.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from station.config import ReviewRecipe
from station.ingress import name_problem, words_problem
from station.record import Reason, ReviewBody, Verdict

Row = Mapping[str, Any]
"""A row's body with its number, `seq`."""

_NONCE = re.compile(r"[A-Za-z0-9_-]{8,64}")
_GIVEN = (
    "result_id",
    "verdict",
    "reviewer",
    "reason",
    "note",
    "defects",
    "places",
    "disposition",
    "supersedes",
    "takes_back",
)
"""What the reviewer says; the rest is when, and what the journal process fills in."""


class ReviewRefused(ValueError):
    """The review was not written; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What holds of a result, its reviews included."""

    verdict: Verdict
    review: Row | None = None
    """The review that gave it; None where the station's own verdict stands."""
    reviewers: tuple[str, ...] = ()
    """Who gave it: two people where four eyes were asked."""
    pending: Row | None = None
    """The last review, if it waits for a second person."""
    ever: frozenset[Verdict] = frozenset()
    """Every verdict given by now, by the station or a person."""
    agreeing: tuple[Row, ...] = ()
    """The last reviews, as far back as all of them say PASS."""
    four_eyes: frozenset[Verdict] = frozenset()
    """Every verdict that the recipe asked four eyes for at one of the reviews."""


def effective_verdict(rows: Sequence[Row]) -> Judgement:
    """What holds of a result by all its rows, in their order. Raises `ReviewRefused` if none of
    them is the result."""
    result = _result(rows)
    if result is None:
        raise ReviewRefused("it has no result")
    own = Verdict(result["verdict"])
    judged = Judgement(own, ever=frozenset({own}))
    for row in rows:
        if row["kind"] == "review":
            judged = _after(judged, row) if not row.get("takes_back") else _nobody(own, judged, row)
    return judged


def _nobody(own: Verdict, before: Judgement, review: Row) -> Judgement:
    """No person's judgement holds any more; what was said stays said."""
    four_eyes = before.four_eyes.union(map(Verdict, review.get("four_eyes", ())))
    return Judgement(own, ever=before.ever, four_eyes=four_eyes)


def _after(before: Judgement, review: Row) -> Judgement:
    verdict = Verdict(review["verdict"])
    agreeing = (*before.agreeing, review) if verdict is Verdict.PASS else ()
    # A recipe that stops asking frees no plate whose review is under way.
    four_eyes = before.four_eyes.union(map(Verdict, review.get("four_eyes", ())))
    ever = before.ever | {verdict}
    heard = replace(before, ever=ever, agreeing=agreeing, four_eyes=four_eyes)
    if not agreeing or not ever & four_eyes:
        return _held(heard, review, (review["reviewer"],))
    people = {person(row["reviewer"]): row["reviewer"] for row in agreeing}
    if len(people) < 2:
        return replace(heard, pending=review)
    return _held(heard, review, tuple(people.values()))


def _held(heard: Judgement, review: Row, reviewers: tuple[str, ...]) -> Judgement:
    verdict = Verdict(review["verdict"])
    return replace(heard, verdict=verdict, review=review, reviewers=reviewers, pending=None)


def person(name: str) -> str:
    """One spelling of a name: who writes it otherwise is nobody else."""
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())


def accepted(review: ReviewBody, recipe: ReviewRecipe, account: str) -> ReviewBody:
    """The review with the recipe's rule and who sent it. Raises `ReviewRefused` if it says what no
    review may."""
    problem = _problem(review, recipe)
    if problem:
        raise ReviewRefused(problem)
    filled = {"four_eyes": recipe.four_eyes, "is_pending": False, "account": account}
    return review.model_copy(update=filled)


def _problem(review: ReviewBody, recipe: ReviewRecipe) -> str:
    if review.supersedes is None or not _NONCE.fullmatch(review.nonce):
        return "a review says which row it supersedes, and has a nonce of 8 to 64 letters or digits"
    if review.reason not in recipe.reasons:
        known = "; ".join(f"{code}: {text}" for code, text in recipe.reasons.items())
        return f"reason {review.reason!r} is not in the recipe's list ({known})"
    named = [*(one.kind for one in review.defects), *(one.kind for one in review.places)]
    unknown = [kind for kind in named if kind not in recipe.kinds]
    if unknown:
        return f"{unknown[0]!r} is no kind of defect of the recipe's ({', '.join(recipe.kinds)})"
    if review.places and review.verdict is Verdict.PASS:
        return "a plate that passes has no defect to mark: leave the place out, or the verdict"
    if review.disposition == "use" and review.verdict is not Verdict.PASS:
        return "a plate that is used is one that passes: give the verdict PASS"
    return name_problem("reviewer", review.reviewer) or words_problem("note", review.note)


def taking_back_problem(rows: Sequence[Row], asks: Collection[Verdict]) -> str:
    """Why the last review may not be taken back as if nobody had judged the result, by a recipe
    that asks four eyes for these verdicts; empty if it may."""
    result = _result(rows)
    reviews = [place for place, row in enumerate(rows) if row["kind"] == "review"]
    if result is None or not reviews:
        return "nobody has judged it: there is nothing to take back"
    if effective_verdict(rows[: reviews[-1]]).review is not None:
        return "somebody had judged it before: say again what that was"
    stands = effective_verdict(rows)
    said = (stands.ever & stands.four_eyes.union(asks)) - {Verdict.PASS}
    if Verdict(result["verdict"]) is Verdict.PASS and said:
        return f"a person said {' or '.join(sorted(said))}: it passes only by two people"
    return ""


def place(rows: Sequence[Row], review: ReviewBody) -> tuple[int | None, ReviewBody]:
    """The number of the row that this review is already, None if it is new, and the review as it is
    written after these rows of its result. Raises `ReviewRefused` if it may not be."""
    known = sent_before(rows, review)
    if known is None and (problem := _objection(rows, review)):
        raise ReviewRefused(problem)
    after = [*rows, {"seq": 0, **review.as_json()}]
    is_pending = known is None and effective_verdict(after).pending is not None
    return known, review.model_copy(update={"is_pending": is_pending})


def sent_before(rows: Sequence[Row], review: ReviewBody) -> int | None:
    """The number of the row that this review is already; None if it is new. Raises `ReviewRefused`
    if another one came with its nonce."""
    for row in rows:
        if row["kind"] == "review" and review.nonce and row.get("nonce") == review.nonce:
            if _given(row) != _given(review.as_json()):
                raise ReviewRefused("another review was sent with this nonce; use a new one")
            return int(row["seq"])
    return None


def _given(row: Row) -> list[Any]:
    return [row.get(name) or None for name in _GIVEN]


def _objection(rows: Sequence[Row], review: ReviewBody) -> str:
    result = _result(rows)
    if result is None:
        is_open = any(row["kind"] == "opened" for row in rows)
        return f"{review.result_id}: {'has no result yet' if is_open else 'no such result'}"
    if result["reason"] == Reason.GAP:
        return f"{review.result_id} is a gap: frames were lost, and there is no plate to judge"
    last = last_judged(rows)
    if review.supersedes != last:
        return (
            f"{review.result_id} was reviewed meanwhile: row {last} stands, this review knows row "
            f"{review.supersedes}; look at it with `vqi log show` and judge again"
        )
    known = len(result.get("defects") or ())
    numbers = [one.number for one in review.defects]
    if len(set(numbers)) < len(numbers):
        return "a defect is named twice"
    if numbers and max(numbers) >= known:
        return f"{review.result_id} has {known} defects, numbered from 0; {max(numbers)} is none"
    if review.takes_back:
        if numbers or review.places or review.disposition:
            return "who takes a review back says nothing else of the plate"
        return taking_back_problem(rows, review.four_eyes)
    return _place_objection(result, review)


def _place_objection(result: Row, review: ReviewBody) -> str:
    """A mark beside the plate says where nothing is."""
    left, width, length = (result.get(key) for key in ("left_px", "width_px", "length_px"))
    if not review.places:
        return ""
    if left is None or width is None or length is None:
        return f"{review.result_id} has no outline in its record: nothing of it can be marked"
    for place in review.places:
        is_beside = place.x_px >= left + width or place.x_px + place.w_px <= left
        if is_beside or place.y_px >= length:
            return (
                f"the mark at {place.x_px},{place.y_px} px lies beside the plate, which is at "
                f"{left} to {left + width} px crossweb and {length} px long"
            )
    return ""


def last_judged(rows: Sequence[Row]) -> int | None:
    """Number of the row that a new review supersedes: the last review's, or the result's; None
    without a result."""
    judged = [row["seq"] for row in rows if row["kind"] in ("result", "review")]
    return max(judged, default=None) if _result(rows) is not None else None


def inconsistency(before: Sequence[Row], row: Row) -> str:
    """What no journal process writes in a review after these rows of its result, for who checks the
    log; empty if nothing."""
    if "supersedes" not in row:
        return ""
    if row["supersedes"] != last_judged(before):
        return f"supersedes row {row['supersedes']}, which is not the last of {row['result_id']}"
    if row.get("takes_back") and (problem := taking_back_problem(before, row.get("four_eyes", ()))):
        return f"takes back what it may not: {problem}"
    is_waiting = effective_verdict([*before, row]).pending is not None
    if is_waiting != row.get("is_pending", False):
        return "says otherwise whether a second person is needed"
    return ""


def _result(rows: Sequence[Row]) -> Row | None:
    return next((row for row in rows if row["kind"] == "result"), None)
