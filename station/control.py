"""Commands to a running station over its control socket: status, halt, resume, acknowledge, learn
the light or the limits of drift anew, take up another recipe, judge the limit samples, try out lamp
and outputs, show the camera's picture; and what a person says of plates: operator, lot, job, the
next one's serial."""

from __future__ import annotations

import os
import selectors
from collections.abc import Callable
from pathlib import Path

from station.given import GIVEN
from station.ingress import name_problem
from station.ipc import SOCKETS, Channel, Json, Listener, PeerGone, connect, user_name
from station.page_door import ACCOUNT as PAGE_ACCOUNT
from station.page_door import open_door, way_in

_MAX_CLIENTS, _MAX_OF_PAGE = 16, 8
SAYINGS = (*GIVEN, "serial")
"""Commands that carry a text."""
_OPS = (
    *("status", "halt", "resume", "ack", "relearn", "drift", "recipe", "rollback"),
    *("limit_samples", "light", "output", "look", *SAYINGS),
)


def control_path(runtime_dir: Path) -> Path:
    return runtime_dir / SOCKETS["station"]


class ControlServer:
    """Answers clients inside the station's own selector loop; nothing here waits."""

    def __init__(
        self,
        runtime_dir: Path,
        selector: selectors.BaseSelector,
        handle: Callable[[str, str, str, str], Json],
    ) -> None:
        """`handle(op, who, account, text)` carries out one command and returns its answer."""
        path = control_path(runtime_dir)
        # Anybody may ask for the status; the other commands look at who asks.
        self._listener, door = Listener(path, mode=0o666), open_door(path)
        self._selector = selector
        self._handle = handle
        self._clients: set[Channel] = set()
        self._of_page: set[Channel] = set()
        """Those of the page's own user."""
        self._door = door
        selector.register(self._listener, selectors.EVENT_READ, self._accept)
        if door is not None:
            selector.register(door, selectors.EVENT_READ, lambda: self._accept_page(door))

    def close(self) -> None:
        for client in list(self._clients):
            self._drop(client)
        for listener in (self._listener, self._door):
            if listener is not None:
                self._selector.unregister(listener)
                listener.close()
                listener.path.unlink(missing_ok=True)

    def _accept(self) -> None:
        self._admit(self._listener.accept())

    def _accept_page(self, door: Listener) -> None:
        client = door.accept()
        if len(self._of_page) >= _MAX_OF_PAGE:
            client.close()
        elif self._admit(client):
            self._of_page.add(client)

    def _admit(self, client: Channel) -> bool:
        if len(self._clients) >= _MAX_CLIENTS:
            client.close()
            return False
        self._clients.add(client)
        self._selector.register(client, selectors.EVENT_READ, lambda: self._serve(client))
        return True

    def _serve(self, client: Channel) -> None:
        try:
            packet = client.receive(timeout_s=0)
            packet.close()
            client.send(self._answer(packet.body, client), timeout_s=0)
        except BlockingIOError:
            return
        except (PeerGone, ValueError):
            self._drop(client)

    def _answer(self, body: Json, client: Channel) -> Json:
        op = body.get("op") if isinstance(body, dict) else None
        if op not in _OPS:
            return {"ok": False, "error": f"unknown command {op!r}; known: {', '.join(_OPS)}"}
        text, who = body.get("text", ""), body.get("who", "")
        if not isinstance(text, str) or not isinstance(who, str):
            return {"ok": False, "error": f"{op}: text is wanted"}
        account = self._account(client, client.peer_uid())
        problem = "" if op == "status" else self._objection(op, account, who)
        if problem:
            return {"ok": False, "error": problem}
        return self._handle(op, who or account, account if who else "", text)

    def _account(self, client: Channel, uid: int) -> str:
        """Login name of who asks; empty if that one may ask for the status only."""
        if client in self._of_page:
            return PAGE_ACCOUNT
        return user_name(uid) if uid in (0, os.getuid()) else ""

    def _objection(self, op: str, account: str, who: str) -> str:
        if not account:
            return f"{op} is for the station's own user and root"
        if who:
            return name_problem("who", who)
        return f"{op}: the page names who asks" if account == PAGE_ACCOUNT else ""

    def _drop(self, client: Channel) -> None:
        self._clients.discard(client)
        self._of_page.discard(client)
        self._selector.unregister(client)
        client.close()


def send_command(
    runtime_dir: Path, op: str, text: str = "", timeout_s: float = 2.0, who: str = ""
) -> Json:
    """Send one command to the running station, for `who`: this process's user, if none is named.
    Raises `PeerGone` if none runs there."""
    path = control_path(runtime_dir)
    with connect(way_in(path) if who else path) as channel:
        return channel.request({"op": op, "text": text, "who": who}, timeout_s)
