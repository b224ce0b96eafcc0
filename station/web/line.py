"""The line view: what the light shows and why, what needs a person, readable from three metres.

Its parts are rendered once for each language that somebody reads, when they change, and sent to
all who look; who has no script loads the page anew.
"""

from __future__ import annotations

from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import Response

from station.roles import Person, Role
from station.web.context import Web
from station.web.feed import NEWS, Shown, line_as_heard, stream
from station.web.line_view import NOTHING, LinePage
from station.web.pages import WebRouter
from station.web.render import language_of

router = WebRouter()
REGIONS = ("light", "station", "calls", "figures", "strip")


@router.page("/", template="line/line.html", menu="line.menu")
def line(web: Web) -> LinePage:
    """The line as it is now."""
    return page_of(web)


def page_of(web: Web) -> LinePage:
    """What the page says at this moment."""
    return line_as_heard(web, web.live)


# --- news -----------------------------------------------------------------------------------------


@router.data("/line/live", media_type="text/event-stream")
async def line_live(web: Web, request: Request) -> Response:
    """Events `news`: changed parts of the line view as HTML, in the reader's language; `beat`:
    that somebody still looks at the station."""
    return stream(web, request, f"line {language_of(request)}")


@router.data("/live", media_type="text/event-stream")
async def live(web: Web, request: Request) -> Response:
    """Events `news`: the newest result, light, state and most urgent call as JSON; `beat`."""
    return stream(web, request, NEWS)


SHOWN = Shown(
    line_as_heard,
    {name: f"line/_{name}.html" for name in REGIONS},
)


# --- acknowledge ----------------------------------------------------------------------------------


class AcknowledgeForm(BaseModel):
    """Somebody has seen what the light holds."""

    seen: str = Field(NOTHING, min_length=1, max_length=64)
    """Its plate; the station refuses where another one is held by now."""
    back: str = ""


class Acknowledged(BaseModel):
    """What the station did."""

    state: str


@router.action("/line/acknowledge", role=Role.REVIEWER)
def acknowledge(web: Web, person: Person, form: AcknowledgeForm) -> Acknowledged:
    """Acknowledge a FAIL or UNDECIDED that the light holds; judges no plate."""
    return Acknowledged(state=str(web.command("ack", form.seen, person)["state"]))
