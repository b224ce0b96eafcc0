"""The search for plates: filters whose state is the address, page by page, and small pictures."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import Query
from pydantic import BaseModel, Field
from sqlalchemy import func, select

from station.answers import Json, bodies, without_arrays
from station.log_reader import Reader
from station.questions import PAGE_ROWS, Key, Questions, Selection, open_samples_select
from station.roles import Person
from station.web.blind import for_person
from station.web.context import Web
from station.web.errors import not_found
from station.web.pages import WebRouter
from station.web.qa_choice import Asked, Choice, Clock, asked

router = WebRouter()
MOST_WAITING = 1_000_000
"""Samples that are counted."""


class Order(StrEnum):
    """Of the plates on a page."""

    NEWEST = "newest"
    OLDEST = "oldest"


class PlatesQuery(Choice):
    """Which plates, and which part of them."""

    order: Order = Field(Order.NEWEST, description="Which come first.")
    limit: int = Field(50, ge=1, le=PAGE_ROWS, description="Plates on a page.")
    after: int | None = Field(None, ge=0, le=2**62, description="Go on after this row, by its seq.")


class PlatesPage(BaseModel):
    """Plates; rows of `vqi log list --json`."""

    asked: Asked
    order: Order
    limit: int
    plates: int = Field(description="All that are chosen.")
    rows: list[Json]
    next: str | None = Field(description="Address of the page that follows.")


@router.page("/plates", template="qa/plates.html", menu="qa.menu_plates")
def plates(web: Web, person: Person, query: Annotated[PlatesQuery, Query()]) -> PlatesPage:
    """The plates that meet the filters, the newest first."""
    clock = Clock.of(web)
    with web.reader() as reader:
        said, selection = asked(web, reader, query, clock)
        found = _page(reader, query, selection)
        rows = [
            without_arrays(row) for row in for_person(reader, list(bodies(reader, found)), person)
        ]
        count = count_of(reader, selection)
    return PlatesPage(
        asked=said, order=query.order, limit=query.limit, plates=count, rows=rows,
        next=_next(query, rows, clock),
    )  # fmt: skip


def count_of(reader: Reader, selection: Selection) -> int:
    """Plates of a selection."""
    return int(Questions(reader.ask).counts(selection)[0].plates or 0)


def open_sample_count(reader: Reader, selection: Selection) -> int:
    """Those of them that wait to be judged blind: no file that is given away has them."""
    waiting = open_samples_select(selection, MOST_WAITING).subquery()
    return int(reader.ask(select(func.count()).select_from(waiting))[0][0])


def _page(reader: Reader, query: PlatesQuery, selection: Selection) -> list[Any]:
    questions, before = Questions(reader.ask), None
    if query.after is not None:
        before = _key(questions, query.after)
    pages = questions.pages(selection, query.limit, before, query.order is Order.OLDEST)
    return [line for page in pages for line in page]


def _key(questions: Questions, seq: int) -> Key:
    key = questions.key_of(seq)
    if key is None:
        raise not_found("qa.no_such_row", row=seq)
    return key


def _next(query: PlatesQuery, rows: list[Json], clock: Clock) -> str | None:
    """None where the page is not full: nothing follows."""
    if len(rows) < query.limit:
        return None
    given = query.canonical(clock) | {"after": str(rows[-1]["seq"])}
    return f"/plates?{urlencode(given)}"
