"""From what the poller hears to news in browsers: a page's parts are rendered when they change,
once for each language that somebody reads, and sent to all who look."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from station.web.context import Web
from station.web.hub import EventStream
from station.web.line_view import LinePage, WrongLog, line_page
from station.web.live import Live
from station.web.qa_jobs import jobs_of
from station.web.render import environment
from station.web.texts import Formatter, Translator

NEWS = "news"
"""The topic of what is new in short, as JSON; others are a page's name and a language."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A page that changes by itself."""

    make: Callable[[Web, Live], BaseModel]
    templates: Mapping[str, str]
    """Of its parts, which know it as `page`."""


def stream(web: Web, request: Request, topic: str) -> Response:
    """The events of a topic, for as long as this request's sender may look."""
    if request.method == "HEAD":
        return Response(media_type="text/event-stream")
    known = request.headers.get("last-event-id", "")
    return EventStream(
        web.hub, web.hub.topic(topic), known, lambda: web.people.person_of(request) is not None
    )


class Feed:
    """Makes news of what the poller hears, on its thread."""

    def __init__(self, web: Web, shown: Mapping[str, Shown]) -> None:
        self._web, self._shown = web, shown
        self._rendered: dict[str, tuple[object, Mapping[str, str]]] = {}

    def turn(self, heard: Live) -> None:
        """One look at the station."""
        states = {topic: self._state(topic, heard) for topic in self._web.hub.wanted}
        self._web.hub.publish(states, self._beat(heard))

    def _state(self, topic: str, heard: Live) -> Mapping[str, str]:
        """Each part as JSON; rendered only if the page says something else than before, or times
        of today are yesterday's."""
        if topic == NEWS:
            return _news(self._web, heard)
        name, _, language = topic.partition(" ")
        page = self._shown[name].make(self._web, heard)
        fmt = Formatter(language, self._web.zone)
        said = page.model_dump_json(exclude={"at"}), fmt.today
        if self._rendered.get(topic, (None,))[0] != said:
            parts = _parts(self._shown[name], page, fmt)
            self._rendered[topic] = said, parts
        return self._rendered[topic][1]

    def _beat(self, heard: Live) -> Mapping[str, Any]:
        """What changes all the time."""
        at = datetime.fromtimestamp(heard.at, self._web.zone)
        lease_s = heard.lamp.get("lease_left_s") if heard.lamp else None
        station = heard.station or {}
        verdict_age_s = station.get("verdict_age_s")
        return {
            "ms": heard.heard_ns // 1_000_000,
            "at": round(heard.at, 3),
            "day": f"{at:%Y-%m-%d}",
            "clock": f"{at:%H:%M:%S}",
            "lease_s": None if lease_s is None else round(lease_s, 1),
            "verdict_at": station.get("last_verdict_at"),
            "verdict_age_s": None if verdict_age_s is None else round(verdict_age_s, 1),
        }


def _parts(shown: Shown, page: BaseModel, fmt: Formatter) -> Mapping[str, str]:
    context = {"t": Translator(fmt.language), "fmt": fmt, "page": page}
    return {
        name: json.dumps(environment().get_template(template).render(context))
        for name, template in shown.templates.items()
    }


def line_as_heard(web: Web, heard: Live) -> LinePage:
    """The line view of one look at the station."""
    last, wrong = jobs_of(web).verified, None
    if last is not None and not last.result["ok"]:
        wrong = WrongLog(last.ended_at or 0.0, last.result["findings_in_all"])
    return line_page(web.station_id, web.configuration.value.light, heard, wrong)


def _news(web: Web, heard: Live) -> Mapping[str, str]:
    page = line_as_heard(web, heard)
    newest = page.plates[0] if page.plates else None
    found = {
        "newest": newest and {"seq": heard.newest_seq, **newest.model_dump()},
        "light": {"state": page.light.state, "result_id": page.light.result_id},
        "state": page.state,
        "call": page.calls[0].model_dump() if page.calls else None,
    }
    return {name: json.dumps(value) for name, value in found.items()}
