"""What proves the log: its head to hold beside a printed report, checkpoints, anchors, the last
verification; certificates and shift reports for those who do not sit at this page."""

from __future__ import annotations

import base64
import hashlib
import re
import tempfile
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

from fastapi import Query
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import select, text
from starlette.responses import Response

from station.anchors import AnchorError, anchors_in, check_anchors, head_anchor
from station.answers import Json
from station.certificate import CertificateError, make_certificates
from station.checkpoint import CheckpointError, keys_of
from station.export_source import Source
from station.log_reader import Reader
from station.qms import StoreError
from station.record import CheckpointBody, rfc3339
from station.roles import Person, Role
from station.shift_report import Span, report, span_named, spans
from station.signed_note import NoteError, fingerprint, parsed
from station.tables import PLATE
from station.web.context import Web
from station.web.errors import PageError, conflict, not_found
from station.web.pages import WebRouter
from station.web.plate_log import not_blind
from station.web.qa_choice import Clock, Word
from station.web.qa_exports import NoFields
from station.web.qa_jobs import Job, Kind, State, jobs_of
from station.web.qa_pages import csv_file
from station.web.turns import Turns

router = WebRouter()
_CHECKPOINTS = 24
_MOST_ATTEMPTS = 100
_REPORT_DAYS = 14
_DOCUMENT_LIMIT_S = 10.0
"""A certificate of a long log takes longer than a page may."""
_LAST_CHECKPOINTS = text(
    "SELECT seq, body FROM row WHERE kind = 'checkpoint' ORDER BY written_at DESC LIMIT :count"
)
_STYLE = re.compile(r"<style>(.*?)</style>", re.DOTALL)
_one_document = threading.Lock()
"""Certificates and reports are made one at a time: the machine is the line's."""
_turns = Turns()


# --- verification -------------------------------------------------------------------------------


class ProofQuery(BaseModel):
    """What stands on a printed report, to be held against the log."""

    model_config = ConfigDict(extra="forbid")

    printed: Annotated[str, Field(max_length=2000)] = Field(
        "", description="The line that begins with vqi-anchor, as printed or typed."
    )


class CheckpointRow(BaseModel):
    """A checkpoint of the log."""

    seq: int
    size: int = Field(description="Rows that it is of.")
    plates: int
    written_at: str
    key: str | None = Field(description="Fingerprint of the key that signed it; null: nobody did.")


class Verified(BaseModel):
    """A verification of the whole log that runs, or ran."""

    id: str
    state: State
    who: str
    begun_at: float = Field(description="Seconds since 1970.")
    ended_at: float | None
    done: int = Field(description="Rows that were read.")
    total: int
    said: str = Field(description="Why it failed.")
    result: Json | None = Field(description="As `vqi log verify --json`, and the first bad row.")


class ProofPage(BaseModel):
    """What proves the log."""

    head_row: int
    head_chain: str
    anchor: str = Field(description="The head as it is printed.")
    printed: str
    compared: list[str] | None = Field(description="What differs; null: nothing was compared.")
    checkpoints: list[CheckpointRow] = Field(description="The newest first.")
    running: Verified | None
    last: Verified | None = Field(description="The last one that came to its end.")
    last_problem: Verified | None = Field(
        description="A later one that did not come to its end; what the last one found stands."
    )
    is_last_of_this_log: bool | None = Field(
        description="Whether the row that it ended with stands in the log as it was then; null: it "
        "found something wrong, or there is none."
    )
    last_age_s: float | None


@router.page("/proof", template="qa/proof.html")
def proof(web: Web, query: Annotated[ProofQuery, Query()]) -> ProofPage:
    """Head of the chain, checkpoints, anchors and the last verification."""
    with web.reader() as reader:
        head = head_anchor(reader, web.station_id, rfc3339(datetime.now(UTC)))
        found = _checkpoints(reader)
        compared = _compared(reader, query.printed) if query.printed.strip() else None
        known = jobs_of(web)
        jobs = [_verified(job) for job in known.of(Kind.VERIFY)]
        last = None if (done := known.verified) is None else _verified(done)
        is_of_this_log = _is_of_this_log(reader, last)
    ended = (State.DONE, State.FAILED, State.INTERRUPTED)
    newest = next((job for job in jobs if job.state in ended), None)
    return ProofPage(
        head_row=head.seq, head_chain=head.chain_sha256, anchor=head.printed(),
        printed=query.printed, compared=compared, checkpoints=found,
        running=next((job for job in jobs if job.state is State.RUNNING), None),
        last=last, last_problem=None if newest == last else newest,
        is_last_of_this_log=is_of_this_log, last_age_s=_age_s(last),
    )  # fmt: skip


def _age_s(last: Verified | None) -> float | None:
    return None if last is None or last.ended_at is None else time.time() - last.ended_at


def _is_of_this_log(reader: Reader, last: Verified | None) -> bool | None:
    """Where it found nothing wrong, so that its rows are the log's first ones; else None."""
    found = last.result if last else None
    if not found or not found["ok"] or not found["rows"]:
        return None
    try:
        return reader.chain_at(found["rows"]) == str(found["head"])
    except StoreError:
        return False


@router.data("/proof/checkpoints.csv", media_type="text/csv")
def checkpoints_csv(web: Web) -> Response:
    """The newest checkpoints as a table."""
    with web.reader() as reader:
        rows = [row.model_dump() for row in _checkpoints(reader)]
    return csv_file(rows, web, "checkpoints")


@router.data("/proof/anchors.csv", media_type="text/csv")
def anchors_csv(web: Web) -> Response:
    """Where anchors lie, as the last verification found them, as a table."""
    last = jobs_of(web).verified
    return csv_file(last.result["anchor_states"] if last else [], web, "anchors")


def _checkpoints(reader: Reader) -> list[CheckpointRow]:
    rows = reader.ask(_LAST_CHECKPOINTS.bindparams(count=_CHECKPOINTS))
    return [_checkpoint(row.seq, CheckpointBody.model_validate_json(row.body)) for row in rows]


def _checkpoint(seq: int, body: CheckpointBody) -> CheckpointRow:
    key = fingerprint(base64.b64decode(body.public_key)) if body.public_key else None
    return CheckpointRow(
        seq=seq,
        size=body.size,
        plates=parsed(body.note).plates,
        written_at=body.written_at,
        key=key,
    )


def _compared(reader: Reader, printed: str) -> list[str]:
    """What of a printed anchor the log does not have; what is none is said, too."""
    try:
        anchors = anchors_in(printed, "the printed line")
        return check_anchors(reader, anchors, keys_of(reader))
    except (AnchorError, CheckpointError) as error:
        return [str(error)]


def _verified(job: Job) -> Verified:
    return Verified(
        id=job.id, state=job.state, who=job.who, begun_at=job.begun_at, ended_at=job.ended_at,
        done=job.done, total=job.total, said=job.said, result=job.result or None,
    )  # fmt: skip


class VerifyForm(BaseModel):
    """How much is verified."""

    pictures: bool = Field(False, description="Also read every picture.")
    back: str = "/proof"


@router.action("/proof/verify", role=Role.ENGINEER, to="/proof")
def begin_verify(web: Web, person: Person, form: VerifyForm) -> Verified:
    """Have the whole log verified by a process that gives way to the line; one at a time."""
    order = {"config": web.configuration.source, "pictures": form.pictures}
    return _verified(jobs_of(web).start(Kind.VERIFY, order, person))


@router.action("/proof/{verify_id}/cancel", role=Role.ENGINEER, to="/proof")
def cancel_verify(web: Web, person: Person, verify_id: str, form: NoFields) -> Verified:
    """Give a verification up."""
    if jobs_of(web).get(verify_id).kind is not Kind.VERIFY:
        raise not_found("qa.no_such_job")
    return _verified(jobs_of(web).cancel(verify_id, person))


# --- certificates -------------------------------------------------------------------------------


class CertificateQuery(BaseModel):
    """Whose certificates."""

    model_config = ConfigDict(extra="forbid")

    serial: Word = Field("", description="Part serial; each of its attempts has a certificate.")


class Attempt(BaseModel):
    """A result that there may be a certificate of."""

    result_id: str
    written_at: str
    attempt: int | None
    page: str = Field(description="Address of the certificate for people.")
    file: str = Field(description="Address of the certificate for the checker.")


class CertificatesPage(BaseModel):
    """The attempts of a serial, with their certificates."""

    serial: str
    attempts: list[Attempt]


@router.page("/certificates", template="qa/certificates.html")
def certificates(web: Web, query: Annotated[CertificateQuery, Query()]) -> CertificatesPage:
    """Where the certificates of a serial's attempts are."""
    found = []
    if query.serial:
        columns = (PLATE.c.result_id, PLATE.c.written_at, PLATE.c.attempt)
        wanted = select(*columns).where(PLATE.c.part_id == query.serial).order_by(PLATE.c.seq)
        with web.reader() as reader:
            found = list(reader.ask(wanted.limit(_MOST_ATTEMPTS)))
    rows = [
        Attempt(
            **row._mapping,
            page=f"/plates/{row.result_id}/certificate.html",
            file=f"/plates/{row.result_id}/certificate.json",
        )
        for row in found
    ]
    return CertificatesPage(serial=query.serial, attempts=rows)


@router.data("/certificates.csv", media_type="text/csv")
def certificates_csv(web: Web, query: Annotated[CertificateQuery, Query()]) -> Response:
    """The attempts of a serial as a table."""
    rows = [row.model_dump() for row in certificates(web, query).attempts]
    return csv_file(rows, web, "certificates")


@router.data("/plates/{result_id}/certificate.html", media_type="text/html")
def certificate_page(web: Web, person: Person, result_id: str) -> Response:
    """Everything the log says of a plate, with the proof, for people."""
    return document(_certificate(web, person, result_id, "html"))


@router.data("/plates/{result_id}/certificate.json", media_type="application/json")
def certificate_file(web: Web, person: Person, result_id: str) -> Response:
    """The same for deploy/check-certificate."""
    headers = {"content-disposition": f'attachment; filename="{_plain(result_id)}.json"'}
    content = _certificate(web, person, result_id, "json")
    return Response(content, media_type="application/json", headers=headers)


def _certificate(web: Web, person: Person, result_id: str, suffix: str) -> bytes:
    with (
        _turns.of(_one_document),
        web.reader(_DOCUMENT_LIMIT_S) as reader,
        tempfile.TemporaryDirectory() as folder,
    ):
        known = reader.ask(select(PLATE.c.seq).where(PLATE.c.result_id == result_id))
        if not known:
            raise not_found("qa.no_such_result", id=_plain(result_id))
        not_blind(reader, result_id, person)
        try:
            (made,) = make_certificates(reader, result_id, None, Path(folder))
        except (CertificateError, CheckpointError, NoteError) as error:
            # Where the log lies is the engineer's to know.
            why = str(error).replace(f"{reader.images}/", "").replace(f"{reader.path.parent}/", "")
            raise conflict("qa.no_certificate", why=why) from error
        return (made.page if suffix == "html" else made.file).read_bytes()


def _plain(text_: str) -> str:
    """For a header."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", text_)[:100]


def document(content: bytes) -> Response:
    """A page of the log's own, whole in itself: nothing of it runs, and its one style element is
    named by its hash (CSP 3, 6.7.3)."""
    styles = _STYLE.findall(content.decode())
    digests = [base64.b64encode(hashlib.sha256(one.encode()).digest()).decode() for one in styles]
    hashes = " ".join(f"'sha256-{digest}'" for digest in digests)
    policy = f"default-src 'none'; style-src {hashes}; img-src data:; base-uri 'none'; "
    policy += "form-action 'none'; frame-ancestors 'none'"
    headers = {"content-security-policy": policy}
    return Response(content, media_type="text/html; charset=utf-8", headers=headers)


# --- shift reports ------------------------------------------------------------------------------


class ReportRow(BaseModel):
    """A shift, and where its report is."""

    title: str
    since: str
    until: str
    is_running: bool = Field(description="The shift has not ended yet.")
    page: str


class ReportsPage(BaseModel):
    """Shifts of the last days, the newest first."""

    has_shifts: bool
    reports: list[ReportRow]


class ReportQuery(BaseModel):
    """Which shift."""

    model_config = ConfigDict(extra="forbid")

    shift: Word = Field(description="As in the record: 2026-11-24 early.")


@router.page("/reports", template="qa/reports.html")
def reports(web: Web) -> ReportsPage:
    """Shifts of the last days, with their reports."""
    clock = Clock.of(web)
    if clock.shifts is None:
        return ReportsPage(has_shifts=False, reports=[])
    today = clock.now.astimezone(clock.zone).date()
    found = spans(clock.shifts, today - timedelta(days=_REPORT_DAYS), today)
    rows = [_report_row(span, clock) for span in reversed(found) if span.since <= clock.now]
    return ReportsPage(has_shifts=True, reports=rows)


@router.data("/reports.csv", media_type="text/csv")
def reports_csv(web: Web) -> Response:
    """Shifts of the last days as a table."""
    return csv_file([row.model_dump() for row in reports(web).reports], web, "shifts")


def _report_row(span: Span, clock: Clock) -> ReportRow:
    return ReportRow(
        title=span.title,
        since=rfc3339(span.since),
        until=rfc3339(span.until),
        is_running=span.until > clock.now,
        page=f"/reports/shift?shift={span.title.replace(' ', '+')}",
    )


@router.data("/reports/shift", media_type="text/html")
def shift_report(web: Web, query: Annotated[ReportQuery, Query()]) -> Response:
    """A shift on a sheet of paper, as `vqi log report` writes it, as of now."""
    span = _span_of(web, query.shift)
    with (
        _turns.of(_one_document),
        web.reader(_DOCUMENT_LIMIT_S) as reader,
        _source(reader) as source,
    ):
        if note := reader.lag_note:
            raise PageError(503, "qa.report_lags", why=note, retry_s=5)
        return document(report(reader, source, web.station_id, span).encode())


def _source(reader: Reader) -> Source:
    return Source(reader.path, _DOCUMENT_LIMIT_S)


def _span_of(web: Web, name: str) -> Span:
    shifts = web.configuration.value.journal.shifts
    try:
        if shifts is not None:
            return span_named(shifts, name)
    except ValueError as error:
        raise not_found("qa.no_such_shift", why=str(error)) from error
    raise not_found("qa.no_shifts")
