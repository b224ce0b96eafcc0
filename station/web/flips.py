"""Comparisons of models on the page: which plates a candidate would pass that the model that judges
does not, with their pictures; a person looks at each and signs it."""

from __future__ import annotations

import contextlib
from typing import Literal

from pydantic import BaseModel, Field

from station.comparisons import (
    LEAST_SAMPLE,
    Comparison,
    ComparisonError,
    Side,
    register,
    signed_change,
)
from station.log_reader import Reader, judged
from station.roles import Person, Role
from station.web.context import Web
from station.web.errors import PageError, conflict, not_found
from station.web.pages import WebRouter

router = WebRouter("/engineer/models")

_PAGE = 25
"""Plates on one page, each with its picture."""
_LARGEST = 10**6


class ModelShown(BaseModel):
    """One of the two."""

    id: str
    sha256: str
    threshold: float


class ComparisonShown(BaseModel):
    """A comparison, and what it still lacks."""

    sha256: str
    a: ModelShown
    b: ModelShown
    since: str
    until: str
    plates: int
    flips: dict[str, int]
    to_sign: int
    unsigned: int
    escapes: int
    who: str
    at: str
    is_complete: bool
    missing: list[str]


class ComparisonsPage(BaseModel):
    """Every comparison, newest first."""

    comparisons: list[ComparisonShown]


class FlipShown(BaseModel):
    """A plate that only the candidate passes."""

    result_id: str
    part_id: str | None = None
    written_at: str = ""
    verdict: str = ""
    score: float | str | None = None
    reviewed: str = ""
    """By people, by now."""
    is_confirmed: bool = False
    """A person had judged it defective when it was compared: it is signed by itself."""
    is_of_sample: bool = False
    """Of the smallest sample that is enough."""
    opinion: str = ""
    who: str = ""
    at: str = ""
    reason: str = ""


class FlipsPage(BaseModel):
    """The plates of one comparison, in order of risk."""

    comparison: ComparisonShown
    flips: list[FlipShown]
    start: int
    """Number of the first of them, from 0."""
    before: int | None
    """Where the page before begins."""
    after: int | None
    sample: int
    """Size of the smallest sample that is enough."""
    is_sample: bool
    """`flips` are of that one, not of all."""
    may_sign: bool
    may_sign_sample: bool
    """At its end, to which the pages before lead."""


class SignForm(BaseModel):
    """What a person says of one plate, or of the sample of a size, after looking at it."""

    result_id: str = Field("", max_length=100)
    sample: int = Field(0, ge=0, le=_LARGEST)
    opinion: Literal["accepted", "escape"] = "accepted"
    seen: str = Field("", max_length=40)
    """When that was said of the plate which the page showed; empty for nothing."""
    reason: str = Field(min_length=1, max_length=1000)
    back: str = ""


class Signed(BaseModel):
    """What was signed, and the row that says so."""

    comparison: str
    result_ids: list[str]
    opinion: str
    row: int
    is_complete: bool | None
    """None where the log could not be read again just then."""


@router.page("", template="engineer/models.html", role=Role.VIEWER)
def comparisons(web: Web) -> ComparisonsPage:
    """Comparisons of models, and whether every flip is signed."""
    with web.reader() as reader:
        known = register(reader.comparison_changes()).known
    return ComparisonsPage(comparisons=[_comparison(one) for one in list(known.values())[::-1]])


@router.page("/{sha256}", template="engineer/flips.html", role=Role.VIEWER)
def flips(web: Web, person: Person, sha256: str, start: int = 0, sample: bool = False) -> FlipsPage:
    """Plates that only the candidate passes, the riskiest first; `sample`: those to look at where
    not all of them are."""
    with web.reader() as reader:
        one = _known(reader, sha256)
        drawn = _least_sample(one)
        names = drawn if sample else one.to_sign
        start = max(0, min(start, max(0, len(names) - 1)))
        shown = names[start : start + _PAGE]
        rows = [_flip(reader, one, name, name in drawn) for name in shown]
    is_last, may_sign = start + _PAGE >= len(names), person.may(Role.REVIEWER)
    return FlipsPage(
        comparison=_comparison(one),
        flips=rows,
        start=start,
        before=max(0, start - _PAGE) if start else None,
        after=None if is_last else start + _PAGE,
        sample=len(drawn),
        is_sample=sample,
        may_sign=may_sign,
        may_sign_sample=may_sign and sample and is_last and bool(drawn),
    )


@router.action("/{sha256}/sign", role=Role.REVIEWER, to="/engineer/models/{comparison}")
def sign_flip(web: Web, person: Person, sha256: str, form: SignForm) -> Signed:
    """Sign that a plate which only the candidate passes may pass, or that it is an escape."""
    with web.reader() as reader:
        one = _known(reader, sha256)
    try:
        names = one.sample(form.sample) if form.sample else (form.result_id,)
    except ComparisonError as error:
        raise conflict("errors.refused", why=str(error)) from error
    row = signed_change(
        web.station_id,
        one,
        names,
        form.opinion,
        person.name,
        " ".join(form.reason.split()),
        form.sample,
        None if form.sample else form.seen,
    )
    (number,) = web.submit([row], person)
    return Signed(
        comparison=one.sha256,
        result_ids=list(names),
        opinion=form.opinion,
        row=number,
        is_complete=_is_complete(web, one.sha256),
    )


def _is_complete(web: Web, sha256: str) -> bool | None:
    """After a commit, which nothing that goes wrong here takes back."""
    try:
        with web.reader() as reader:
            return _known(reader, sha256).is_complete
    except PageError:
        return None


def _known(reader: Reader, sha256: str) -> Comparison:
    try:
        return register(reader.comparison_changes()).of(sha256)
    except ComparisonError as error:
        raise not_found("models.no_comparison", name=sha256[:64]) from error


def _least_sample(one: Comparison) -> tuple[str, ...]:
    """Nothing where no flip may be signed by a sample."""
    drawable = len(one.to_sign) - len(one.confirmed)
    with contextlib.suppress(ComparisonError):
        return one.sample(min(LEAST_SAMPLE, drawable))
    return ()


def _comparison(one: Comparison) -> ComparisonShown:
    return ComparisonShown(
        sha256=one.sha256,
        a=_side(one.before),
        b=_side(one.after),
        since=one.since,
        until=one.until,
        plates=one.plates,
        flips=dict(one.flips),
        to_sign=len(one.to_sign),
        unsigned=len(one.unsigned),
        escapes=len(one.escapes),
        who=one.who,
        at=one.at,
        is_complete=one.is_complete,
        missing=list(one.missing),
    )


def _side(side: Side) -> ModelShown:
    return ModelShown(id=side.id, sha256=side.sha256, threshold=side.threshold)


def _flip(reader: Reader, one: Comparison, name: str, is_of_sample: bool) -> FlipShown:
    shown = FlipShown(result_id=name, is_confirmed=name in one.confirmed, is_of_sample=is_of_sample)
    said = one.by_result.get(name)
    if said is not None:
        update = {"opinion": said.opinion, "who": said.who, "at": said.at, "reason": said.reason}
        shown = shown.model_copy(update=update)
    rows = [row for row in reader.of_result(name) if row["kind"] in ("result", "review")]
    if not rows:
        return shown
    review, result = judged(rows), rows[0]
    return shown.model_copy(
        update={
            "part_id": result.get("part_id"),
            "written_at": result["written_at"],
            "verdict": result["verdict"],
            "score": result["score"],
            "reviewed": review["verdict"] or "" if review else "",
        }
    )
