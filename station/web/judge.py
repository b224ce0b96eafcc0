"""What a person says of a plate, on its page: judged by one touch, committed or clearly not."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from station.ingress import name_problem
from station.record import (
    Disposition,
    MarkedPlaceBody,
    NamedDefectBody,
    ReviewBody,
    Verdict,
)
from station.reviews import ReviewRefused, effective_verdict, sent_before
from station.roles import Person, Role
from station.web.context import Web
from station.web.errors import PageError, conflict
from station.web.judge_panel import MOST_DEFECTS, Panel, is_signed, panel_of
from station.web.pages import WebRouter
from station.web.plate_log import found_plate

Json = dict[str, Any]
router = WebRouter()


class JudgePage(BaseModel):
    """The judging part of a plate's page, alone."""

    judge: Panel


@router.page("/plates/{result_id}/judge", template="judge/judge.html")
def judge(web: Web, person: Person, result_id: str, judged: int | None = None) -> JudgePage:
    """What was said of a plate, and what may be said now. `judged` is the row of a review that was
    just committed."""
    with web.reader() as reader:
        rows = found_plate(reader, result_id).all
        return JudgePage(judge=panel_of(web, reader, rows, person, judged))


# --- judging --------------------------------------------------------------------------------------


class ReviewForm(BaseModel):
    """What a person says of a plate. `act` is verdict, disposition and reason as a button says
    them at once: `FAIL|removed|confirmed`."""

    model_config = ConfigDict(extra="forbid")

    verdict: Verdict
    reason: str = Field(max_length=64)
    disposition: Disposition = ""
    note: str = Field("", max_length=1000)
    kinds: list[str] = Field([], max_length=MOST_DEFECTS)
    """What defects are called, as `0=scratch`."""
    places: list[Annotated[str, Field(max_length=120)]] = Field([], max_length=MOST_DEFECTS)
    """Defects that the station did not list, as `X,Y,W,H=scratch` in px of the picture."""
    supersedes: int = Field(ge=1, lt=2**63)
    """The row that was seen last."""
    nonce: str = Field(pattern=r"^[A-Za-z0-9_-]{8,64}$")
    """Chosen once for this review: sent again, it is one row."""
    takes_back: bool = False
    """The review that was seen last counts no more, and nobody has judged the plate."""
    secret: str = Field("", max_length=200)
    """Password or PIN, where reviews are signed."""
    then: Literal["plate", "open"] = "plate"
    """Where a form leads to."""

    @model_validator(mode="before")
    @classmethod
    def _takes_button(cls, given: Any) -> Any:
        if not isinstance(given, dict) or "act" not in given:
            return given
        parts = str(given["act"]).split("|")
        if len(parts) != 3:
            raise ValueError("act is verdict|disposition|reason")
        said = dict(zip(("verdict", "disposition", "reason"), parts, strict=True))
        return {name: value for name, value in given.items() if name != "act"} | said


class Committed(BaseModel):
    """A review that is in the log."""

    result_id: str
    seq: int
    """Its row."""
    verdict: Verdict | None
    """That stands now; None where the log could not be read again just then."""
    is_pending: bool
    """The review waits for a second person."""
    address: str
    """Of the page that says so."""


@router.action("/plates/{result_id}/review", role=Role.REVIEWER, to="{address}")
def review(web: Web, person: Person, result_id: str, form: ReviewForm) -> Committed:
    """Judge a plate: answers once the review is committed, and says it clearly where it is not."""
    with web.reader() as reader:
        found_plate(reader, result_id)
    if is_signed(web):
        web.people.confirm(person, form.secret)
    seq = _submitted(web, person, _body(web, person, result_id, form))
    address = f"/open?judged={result_id}&row={seq}" if form.then == "open" else ""
    return Committed(
        result_id=result_id,
        seq=seq,
        address=address or f"/plates/{result_id}/judge?judged={seq}",
        **_stands(web, result_id, seq),
    )


def _stands(web: Web, result_id: str, seq: int) -> Json:
    """After a commit, which nothing that goes wrong here takes back."""
    try:
        with web.reader() as reader:
            stands = effective_verdict(found_plate(reader, result_id).all)
    except PageError:
        return {"verdict": None, "is_pending": False}
    is_pending = stands.pending is not None and stands.pending["seq"] == seq
    return {"verdict": stands.verdict, "is_pending": is_pending}


def _body(web: Web, person: Person, result_id: str, form: ReviewForm) -> ReviewBody:
    """Raises `PageError` 422: a defect is named as none is, or the name is none for the log."""
    if problem := name_problem("reviewer", person.name):
        raise PageError(422, "errors.invalid", what=problem)
    try:
        return ReviewBody(
            station_id=web.station_id,
            result_id=result_id,
            verdict=form.verdict,
            reviewer=person.name,
            reason=form.reason,
            note=form.note,
            defects=tuple(_named(one) for one in form.kinds),
            places=tuple(_marked(one) for one in form.places),
            disposition=form.disposition,
            supersedes=form.supersedes,
            nonce=form.nonce,
            takes_back=form.takes_back,
        )
    except ValidationError as error:
        raise PageError(422, "errors.invalid", what=error.errors()[0]["msg"]) from error


def _named(given: str) -> NamedDefectBody:
    number, _, kind = given.partition("=")
    if not (number.isascii() and number.isdecimal() and len(number) < 7) or not kind:
        raise PageError(422, "errors.invalid", what="kinds: as 0=scratch")
    return NamedDefectBody(number=int(number), kind=kind)


def _marked(given: str) -> MarkedPlaceBody:
    try:
        return MarkedPlaceBody.of_text(given)
    except ValueError as error:
        raise PageError(422, "errors.invalid", what="places: as 410,96,30,8=dent") from error


def _submitted(web: Web, person: Person, body: ReviewBody) -> int:
    """Number of its row. Raises `PageError`: 409 refused, 503 not written or not known to be."""
    try:
        return web.submit([body], person)[0]
    except PageError as error:
        if error.key == "errors.commit_unknown":
            return _found_after_all(web, body)
        if error.status == 409 and (meanwhile := _meanwhile(web, body)) is not None:
            raise conflict("judge.stale", **meanwhile) from error
        raise


def _found_after_all(web: Web, body: ReviewBody) -> int:
    """The journal did not answer; what the log says counts. Not there, it may still be on its
    way: only the journal's own answer would say no. A log that cannot be read says nothing."""
    try:
        rows = _rows_now(web, body)
    except PageError as error:
        raise PageError(503, "judge.unknown", retry_s=5) from error
    try:
        found = sent_before(rows, body)
    except ReviewRefused as error:
        raise conflict("errors.refused", why=str(error)) from error
    if found is None:
        raise PageError(503, "judge.unknown", retry_s=5)
    return found


def _meanwhile(web: Web, body: ReviewBody) -> Json | None:
    """Who judged between what this person saw and now; None if nobody did, or the log cannot be
    read: that it was refused stays true."""
    try:
        rows = _rows_now(web, body)
    except PageError:
        return None
    last = max((row for row in rows if row["kind"] == "review"), key=_seq, default=None)
    if last is None or last["seq"] == body.supersedes or last.get("nonce") == body.nonce:
        return None
    return {"row": last["seq"], "who": last["reviewer"], "seen": body.supersedes}


def _rows_now(web: Web, body: ReviewBody) -> list[Json]:
    with web.reader() as reader:
        return reader.of_result(body.result_id)


def _seq(row: Json) -> int:
    return int(row["seq"])
