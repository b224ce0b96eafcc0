"""What other stations say of their lines, asked from here: one task each, so that one that is down
or slow holds up no other."""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import httpx
from pydantic import ValidationError

from station.config import OtherStation
from station.log_lines import get_logger
from station.web.certificates import placed
from station.web.line_view import LineSummary

SUMMARY_PATH = "/line/summary"
POLL_S = 1.0
_LIMIT_S = 1.5
"""For all of an answer."""
DOWN_S = 3.0
"""A station that is only slow is down when it has not answered for so long."""
_MOST_BYTES = 262_144
_LOG = get_logger("web")

Why = Literal["", "refused", "timeout", "refuses", "certificate", "nonsense", "settings"]
"""Why a station does not answer: nobody there, too slow, asks for a sign-in, its certificate is not
trusted, its answer is none of a station; or a file of its settings here cannot be read."""


@dataclass(frozen=True, slots=True)
class Heard:
    """What is known of another station."""

    name: str
    url: str
    summary: LineSummary | None = None
    """What it said last; None: nothing yet."""
    heard_at: float | None = None
    """Seconds since 1970."""
    heard_s: float = 0.0
    """The same on CLOCK_MONOTONIC; from the beginning on, where it never answered."""
    why: Why = ""
    given_id: str = ""
    """Of the configuration."""

    @property
    def station_id(self) -> str:
        """As it says; before its first answer as the configuration does, or what that calls it."""
        return self.summary.station_id if self.summary else self.given_id or self.name

    @property
    def is_down(self) -> bool:
        """Refused once is down; one late answer is none yet."""
        is_late = self.why in ("", "timeout")
        return not is_late or time.monotonic() - self.heard_s > DOWN_S


class OtherStations:
    """Asks while it runs; on the event loop. `heard` may be read by any thread."""

    def __init__(self, stations: Sequence[OtherStation]) -> None:
        self._stations = stations
        now_s = time.monotonic()
        self._heard = {
            one.name: Heard(
                one.name, one.url.rstrip("/"), heard_s=now_s, given_id=one.station_id or ""
            )
            for one in stations
        }
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def heard(self) -> list[Heard]:
        """In the order of the configuration."""
        return list(self._heard.values())

    def start(self) -> None:
        logging.getLogger("httpx").setLevel(logging.WARNING)  # else it logs each request
        self._tasks = [asyncio.create_task(self._watch(one)) for one in self._stations]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _watch(self, station: OtherStation) -> None:
        """For ever; whatever goes wrong is what is known of that station."""
        while True:
            try:
                async with _client(station) as client:
                    while True:
                        await self._ask(station, client)
                        await asyncio.sleep(POLL_S)
            except (OSError, ValueError) as error:
                self._note(station, "settings", repr(error))
            await asyncio.sleep(POLL_S)

    async def _ask(self, station: OtherStation, client: httpx.AsyncClient) -> None:
        try:
            async with asyncio.timeout(_LIMIT_S):
                summary = LineSummary.model_validate_json(await _answer(client))
        except (httpx.HTTPError, TimeoutError, ValidationError) as error:
            self._note(station, _why(error), repr(error))
            return
        self._heard[station.name] = replace(
            self._heard[station.name],
            summary=summary,
            heard_at=time.time(),
            heard_s=time.monotonic(),
            why="",
        )

    def _note(self, station: OtherStation, why: Why, error: str) -> None:
        known = self._heard[station.name]
        if why != known.why:
            _LOG.info("another station does not answer", other=station.name, error=error[:300])
        self._heard[station.name] = replace(known, why=why)


def _client(station: OtherStation) -> httpx.AsyncClient:
    """Raises OSError, ValueError: a file that its settings name."""
    headers = {"accept": "application/json"}
    if station.token_file is not None:
        headers["authorization"] = f"Bearer {placed(station.token_file).read_text().strip()}"
    trusted: ssl.SSLContext | bool = True
    if station.ca_file is not None:
        trusted = ssl.create_default_context(cafile=str(placed(station.ca_file)))
    return httpx.AsyncClient(
        base_url=station.url, headers=headers, verify=trusted, timeout=_LIMIT_S, trust_env=False
    )


async def _answer(client: httpx.AsyncClient) -> bytes:
    """Raises `httpx.HTTPError`; one that is too long, or comes packed, is no answer."""
    async with client.stream("GET", SUMMARY_PATH) as response:
        response.raise_for_status()
        body = b""
        async for part in response.aiter_raw():
            body += part
            if len(body) > _MOST_BYTES:
                raise httpx.DecodingError("too long")
        return body


def _why(error: Exception) -> Why:
    if isinstance(error, TimeoutError | httpx.TimeoutException):
        return "timeout"
    if isinstance(error, httpx.HTTPStatusError):
        return "refuses" if error.response.status_code in (401, 403) else "nonsense"
    if isinstance(error, httpx.TransportError):
        is_distrust = "CERTIFICATE_VERIFY_FAILED" in repr(error)
        return "certificate" if is_distrust else "refused"
    return "nonsense"
