"""Exports of exactly what a search shows: small ones at once, large ones by a process of their
own."""

from __future__ import annotations

import io
import secrets
from dataclasses import asdict
from typing import Annotated, Literal
from urllib.parse import parse_qsl

from fastapi import Query
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field, ValidationError
from starlette.responses import FileResponse, Response

from station.answers import Json
from station.export import MANIFEST, Wish, chosen_for_people, stream
from station.export_rows import ExportError
from station.export_source import Source
from station.roles import Person, Role
from station.web.context import READ_LIMIT_S, Web
from station.web.errors import PageError, conflict, not_found
from station.web.pages import WebRouter
from station.web.qa_choice import Choice, Clock
from station.web.qa_jobs import Job, Kind, State, jobs_of
from station.web.qa_search import count_of, open_sample_count

router = WebRouter()
MOST_AT_ONCE = 2000
"""Results that are exported while somebody waits."""
MOST_IN_ALL = 2_000_000
_MEDIA = {
    "csv": "text/csv; charset=utf-8",
    "jsonl": "application/jsonl",
    "parquet": "application/vnd.apache.parquet",
    "xlsx": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
}
Format = Literal["csv", "jsonl", "parquet", "xlsx"]


@router.data("/plates.csv", media_type="text/csv")
def plates_csv(web: Web, query: Annotated[Choice, Query()]) -> Response:
    """All plates that meet the filters, as `vqi log export`; a few at once, more by /exports."""
    return _at_once(web, query, "csv")


@router.data("/plates.jsonl", media_type="application/jsonl")
def plates_jsonl(web: Web, query: Annotated[Choice, Query()]) -> Response:
    """The same, a JSON object a line."""
    return _at_once(web, query, "jsonl")


def _at_once(web: Web, query: Choice, format_: str) -> Response:
    shifts = web.configuration.value.journal.shifts
    with web.reader() as reader, Source(reader.path, READ_LIMIT_S) as source:
        selection = query.selection(Clock.of(web))
        count = count_of(reader, selection)
        if count > MOST_AT_ONCE:
            raise PageError(413, "qa.too_many_at_once", count=count, most=MOST_AT_ONCE)
        taken = io.StringIO(newline="")
        timezone = shifts.timezone if shifts else None
        stream(source, Wish(format_, chosen_for_people(reader, selection), timezone), taken)
    headers = {"content-disposition": f'attachment; filename="plates.{format_}"'}
    # A spreadsheet takes what has no mark for the machine's old code page.
    content = ("\ufeff" if format_ == "csv" else "") + taken.getvalue()
    return Response(content.encode(), media_type=_MEDIA[format_], headers=headers)


class ExportForm(BaseModel):
    """What is exported."""

    filters: str = Field("", max_length=3000, description="As the query of /plates.")
    format: Format = "csv"
    back: str = "/exports"


class Export(BaseModel):
    """An export that is being made, or was."""

    id: str
    state: State
    who: str
    begun_at: float = Field(description="Seconds since 1970.")
    ended_at: float | None
    format: Format
    filters: str
    done: int = Field(description="Results that are written.")
    total: int = Field(description="Results that were to be written when it began.")
    said: str = Field(description="Why it failed.")
    file: str | None = Field(description="Where it is fetched, once it is whole.")
    manifest: Json | None


class ExportsPage(BaseModel):
    """The last exports, the newest first."""

    exports: list[Export]
    is_running: bool


@router.page("/exports", template="qa/exports.html")
def exports(web: Web) -> ExportsPage:
    """Exports that are being made, and the last ones that were."""
    found = [_said(job) for job in jobs_of(web).of(Kind.EXPORT)]
    return ExportsPage(exports=found, is_running=any(one.state is State.RUNNING for one in found))


@router.action("/exports", role=Role.VIEWER, to="/exports")
def begin_export(web: Web, person: Person, form: ExportForm) -> Export:
    """Have a selection exported; one at a time."""
    clock = Clock.of(web)
    query = _choice_of(form.filters)
    selection = query.selection(clock)
    with web.reader() as reader:
        total = count_of(reader, selection) - open_sample_count(reader, selection)
        # It is settled now, not when the process is ready, whether it can be.
        try:
            chosen_for_people(reader, selection)
        except ExportError as error:
            raise conflict("qa.cannot_export", why=str(error)) from error
    if total > MOST_IN_ALL:
        raise PageError(413, "qa.too_many", count=total, most=MOST_IN_ALL)
    name = f"plates-{secrets.token_hex(4)}.{form.format}"
    order = {
        "config": web.configuration.source,
        "selection": asdict(selection),
        "filters": query.query(clock),
        "format": form.format,
        "name": name,
        "total": total,
    }
    return _said(jobs_of(web).start(Kind.EXPORT, order, person, total))


def _choice_of(filters: str) -> Choice:
    """Raises `RequestValidationError`."""
    try:
        return Choice.model_validate(dict(parse_qsl(filters)))
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from error


class NoFields(BaseModel):
    """Nothing but where to go back to."""

    back: str = ""


@router.action("/exports/{export_id}/cancel", role=Role.VIEWER, to="/exports")
def cancel_export(web: Web, person: Person, export_id: str, form: NoFields) -> Export:
    """Give an export up."""
    return _said(_get(web, export_id, cancel_by=person))


@router.data("/exports/{export_id}/file", media_type="application/octet-stream")
def export_file(web: Web, export_id: str) -> Response:
    """The file, once it is whole."""
    return _file(web, export_id, "")


@router.data("/exports/{export_id}/manifest", media_type="application/json")
def export_manifest(web: Web, export_id: str) -> Response:
    """What ties the file to the log, for `vqi log verify --export`."""
    return _file(web, export_id, MANIFEST)


def _file(web: Web, export_id: str, suffix: str) -> Response:
    job = _get(web, export_id)
    name = job.order["name"] + suffix
    path = jobs_of(web).folder_of(job) / name
    if job.state is not State.DONE or not path.is_file():
        raise not_found("qa.no_such_job")
    media = "application/json" if suffix else _MEDIA[job.order["format"]]
    return FileResponse(path, media_type=media, filename=name)


def _get(web: Web, export_id: str, cancel_by: Person | None = None) -> Job:
    jobs = jobs_of(web)
    job = jobs.get(export_id)
    if job.kind is not Kind.EXPORT:
        raise not_found("qa.no_such_job")
    return job if cancel_by is None else jobs.cancel(export_id, cancel_by)


def _said(job: Job) -> Export:
    is_done = job.state is State.DONE
    return Export(
        id=job.id, state=job.state, who=job.who, begun_at=job.begun_at, ended_at=job.ended_at,
        format=job.order["format"], filters=job.order["filters"],
        done=job.result["rows"] if is_done else job.done, total=job.total, said=job.said,
        file=f"/exports/{job.id}/file" if is_done else None,
        manifest=job.result if is_done else None,
    )  # fmt: skip
