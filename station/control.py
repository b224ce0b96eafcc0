"""Commands to a running station over its control socket: status, halt, resume, acknowledge, learn
the light anew; and what a person says of the plates: operator, lot, job, the next one's serial."""

from __future__ import annotations

import contextlib
import os
import selectors
from collections.abc import Callable
from pathlib import Path

from station.given import GIVEN
from station.ingress import name_problem
from station.ipc import SOCKETS, Channel, Json, Listener, PeerGone, connect, user_name

_MAX_CLIENTS = 16
SAYINGS = (*GIVEN, "serial")
"""Commands that carry a text."""
_OPS = ("status", "halt", "resume", "ack", "relearn", *SAYINGS)


def control_path(runtime_dir: Path) -> Path:
    return runtime_dir / SOCKETS["station"]


class ControlServer:
    """Answers clients inside the station's own selector loop; nothing here waits."""

    def __init__(
        self,
        runtime_dir: Path,
        selector: selectors.BaseSelector,
        handle: Callable[[str, str, str], Json],
    ) -> None:
        """`handle(op, who, text)` carries out one command and returns its answer."""
        # Anybody may ask for the status; the other commands look at who asks.
        self._listener = Listener(control_path(runtime_dir), mode=0o666)
        self._selector = selector
        self._handle = handle
        self._clients: set[Channel] = set()
        selector.register(self._listener, selectors.EVENT_READ, self._accept)

    def close(self) -> None:
        for client in list(self._clients):
            self._drop(client)
        self._selector.unregister(self._listener)
        self._listener.close()
        with contextlib.suppress(FileNotFoundError):
            self._listener.path.unlink()

    def _accept(self) -> None:
        client = self._listener.accept()
        if len(self._clients) >= _MAX_CLIENTS:
            client.close()
            return
        self._clients.add(client)
        self._selector.register(client, selectors.EVENT_READ, lambda: self._serve(client))

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
        uid = client.peer_uid()
        if op != "status" and uid not in (0, os.getuid()):
            return {"ok": False, "error": f"{op} is for the station's own user and root"}
        text, who = body.get("text", ""), body.get("who", "")
        if not isinstance(text, str) or not isinstance(who, str):
            return {"ok": False, "error": f"{op}: text is wanted"}
        if who and (problem := name_problem("who", who)):
            return {"ok": False, "error": problem}
        return self._handle(op, who or user_name(uid), text)

    def _drop(self, client: Channel) -> None:
        self._clients.discard(client)
        self._selector.unregister(client)
        client.close()


def send_command(
    runtime_dir: Path, op: str, text: str = "", timeout_s: float = 2.0, who: str = ""
) -> Json:
    """Send one command to the running station, for `who`: this process's user, if none is named.
    Raises `PeerGone` if none runs there."""
    with connect(control_path(runtime_dir)) as channel:
        return channel.request({"op": op, "text": text, "who": who}, timeout_s)
