"""Server-sent events to any number of clients: what is news is made once, for all of them.

A client is a number of what it was sent last, and nothing else: no queue. One that reads slowly
gets the newest state when it reads again, not what was true meanwhile. What all clients have in
common is joined once; while nothing changes, a beat says that somebody still looks.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

BEAT_S = 0.5
"""A reader that hears no beat knows within 2 s that what it shows may be over."""
_BEAT_DUE_S = 0.8 * BEAT_S
COMMENT_S = 10.0
"""When nobody looks there is no beat; a comment keeps the connection through proxies."""
RETRY_MS = 1000
_ASK_EVERY_S = 1.0
_LIFE = secrets.token_hex(4)
"""Of this process: numbers of another life mean nothing here."""
_COMMENT = b": still here\n\n"


@dataclass(frozen=True, slots=True)
class Piece:
    """One part of the state, and with which news it became so."""

    number: int
    encoded: str
    """JSON."""


@dataclass(slots=True)
class Topic:
    """A state that some clients look at; changed and read on the event loop only."""

    name: str
    pieces: dict[str, Piece] = field(default_factory=dict)
    number: int = 0
    clients: int = 0
    _joined: dict[int, bytes] = field(default_factory=dict)
    """Events by the number that a client had before; most clients have the same."""

    def publish(self, parts: Mapping[str, str]) -> bool:
        """New state, each part as JSON; whether any of it is news."""
        fresh = {name: text for name, text in parts.items() if self._is_news(name, text)}
        if not fresh:
            return False
        self.number += 1
        self.pieces |= {name: Piece(self.number, text) for name, text in fresh.items()}
        self._joined.clear()
        return True

    def forget(self) -> None:
        """Nobody looks, so nobody keeps it true: who comes next must not be shown it."""
        self.pieces.clear()
        self._joined.clear()

    def _is_news(self, name: str, text: str) -> bool:
        known = self.pieces.get(name)
        return known is None or known.encoded != text

    def event_after(self, number: int) -> bytes:
        """What has changed since news of that number; all of it for 0."""
        event = self._joined.get(number)
        if event is None:
            parts = ((name, p) for name, p in self.pieces.items() if p.number > number)
            data = ",".join(f"{json.dumps(name)}:{p.encoded}" for name, p in parts)
            head = f"retry: {RETRY_MS}\nid: {_LIFE}-{self.number}\nevent: news\n"
            event = f"{head}data: {{{data}}}\n\n".encode()
            self._joined[number] = event
        return event


class Hub:
    """All topics of this process."""

    def __init__(self) -> None:
        self._topics: dict[str, Topic] = {}
        self._beat: tuple[float, bytes] = (0.0, _COMMENT)
        self._changed = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ticker: asyncio.Task[None] | None = None
        self.is_closed = False
        self.clients = 0

    @property
    def wanted(self) -> list[str]:
        """Topics that somebody looks at; any thread."""
        return [name for name, topic in list(self._topics.items()) if topic.clients]

    def start(self) -> None:
        """On the event loop."""
        self._loop = asyncio.get_running_loop()
        self._ticker = asyncio.create_task(self._tick())

    def close(self) -> None:
        """Every stream ends; on the event loop."""
        self.is_closed = True
        self._wake()
        if self._ticker is not None:
            self._ticker.cancel()

    def publish(self, states: Mapping[str, Mapping[str, str]], beat: Mapping[str, Any]) -> None:
        """State of each topic, part by part as JSON, and what the next beats say; any thread.
        Where the loop has ended nobody is left to hear it."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._take, states, beat)

    def _take(self, states: Mapping[str, Mapping[str, str]], beat: Mapping[str, Any]) -> None:
        text = f"event: beat\ndata: {json.dumps(beat, separators=(',', ':'))}\n\n"
        self._beat = time.monotonic(), text.encode()
        # Who asked for it may have gone meanwhile.
        looked_at = ((self.topic(name), parts) for name, parts in states.items())
        changes = [topic.publish(parts) for topic, parts in looked_at if topic.clients]
        if any(changes):
            self._wake()

    def topic(self, name: str) -> Topic:
        return self._topics.setdefault(name, Topic(name))

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(BEAT_S)
            self._wake()

    async def wait(self) -> None:
        """Until something changes or a beat is due."""
        await self._changed.wait()

    @property
    def beat(self) -> bytes:
        """That somebody looks, and what else changes all the time; empty where nobody has looked
        of late."""
        heard_s, text = self._beat
        return text if time.monotonic() - heard_s < 2 * BEAT_S else b""


class EventStream(Response):
    """One client's stream, until it goes, does not read, or this process ends."""

    media_type = "text/event-stream"

    def __init__(
        self, hub: Hub, topic: Topic, last_event_id: str, is_allowed: Callable[[], bool]
    ) -> None:
        """It ends when `is_allowed` says no: a session does not outlive its end."""
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._hub, self._topic = hub, topic
        self._known = _number_of(last_event_id, topic)
        self._is_allowed = is_allowed
        self._beaten_s = self._asked_s = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._hub.clients += 1
        self._topic.clients += 1
        sending = asyncio.create_task(self._send_all(send))
        going = asyncio.create_task(_gone(receive))
        try:
            await asyncio.wait((sending, going), return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._hub.clients -= 1
            self._topic.clients -= 1
            if not self._topic.clients:
                self._topic.forget()
            sending.cancel()
            going.cancel()
            await asyncio.gather(sending, going, return_exceptions=True)
        if not sending.cancelled():
            sending.result()  # a client that took nothing is an error of its own

    async def _send_all(self, send: Send) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await send(start)
        while not self._hub.is_closed and self._may_go_on(time.monotonic()):
            # Nothing is chosen before the client has room for it: it would be old by then.
            await send(_body(b""))
            event = self._due(time.monotonic())
            if event:
                await send(_body(event))
            await self._hub.wait()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _may_go_on(self, now_s: float) -> bool:
        if now_s - self._asked_s < _ASK_EVERY_S:
            return True
        self._asked_s = now_s
        return self._is_allowed()

    def _due(self, now_s: float) -> bytes:
        """News, a beat, both, or nothing."""
        topic, event = self._topic, b""
        if topic.number > self._known and topic.pieces:
            event, self._known = topic.event_after(self._known), topic.number
        if now_s - self._beaten_s >= _BEAT_DUE_S and (beat := self._hub.beat):
            event, self._beaten_s = event + beat, now_s
        elif not event and now_s - self._beaten_s >= COMMENT_S:
            event, self._beaten_s = _COMMENT, now_s
        return event


def _body(data: bytes) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": True}


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _number_of(last_event_id: str, topic: Topic) -> int:
    """Up to where a client that comes back knows this life's news."""
    life, _, number = last_event_id.partition("-")
    is_known = life == _LIFE and number.isdecimal() and len(number) < 16
    return int(number) if is_known and int(number) <= topic.number else 0
