"""Messages between the station's processes: one JSON object a SOCK_SEQPACKET packet.

The kernel keeps packets whole and in order, frees what a dead process left, and says end-of-file
when the other side is gone: no lock can be left held. Descriptors travel beside a packet.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

MAX_PACKET_BYTES = 400_000
"""Largest packet; two of them fit the largest send buffer that an ordinary kernel grants."""
_MAX_DESCRIPTORS = 4

Json = dict[str, Any]

SOCKETS = {"lamp": "lamp.sock", "journal": "journal.sock", "station": "control.sock"}
"""Where each process listens, in the runtime folder; all of them answer `{"op": "status"}`."""

SHADOW_SOCKET = "shadow.sock"
"""Where the station lends plates to a model in the shadow, which answers no status."""


class PeerGone(ConnectionError):
    """The other process closed its end or died."""


class NotPermitted(PeerGone):
    """This user may not talk to the other process."""


class NotAMessage(ValueError):
    """What arrived is no JSON object; its descriptors are closed."""


class PacketTooLarge(ValueError):
    """A message does not fit in one packet; send less of it."""


@dataclass(frozen=True, slots=True)
class Packet:
    """A received message and the descriptors that came with it, which the receiver owns."""

    body: Json
    descriptors: tuple[int, ...] = ()

    def close(self) -> None:
        for descriptor in self.descriptors:
            os.close(descriptor)


_NOTHING: Json = {}


def _object(payload: bytes) -> Json:
    """The JSON object that a packet holds; `_NOTHING` if it holds none."""
    try:
        body = json.loads(payload)
    except (ValueError, RecursionError):
        return _NOTHING
    return body if isinstance(body, dict) else _NOTHING


class Channel:
    """One end of a connection. Used by one thread at a time; `fileno` goes into a selector."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            connection.setsockopt(socket.SOL_SOCKET, option, 2 * MAX_PACKET_BYTES)

    def fileno(self) -> int:
        return self._socket.fileno()

    def peer_uid(self) -> int:
        """User id of the process at the other end (SO_PEERCRED)."""
        credentials = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        return int.from_bytes(credentials[4:8], "little")

    def send(
        self, body: Json, descriptors: tuple[int, ...] = (), timeout_s: float | None = 1.0
    ) -> None:
        """Send one message. Raises `PeerGone`, `PacketTooLarge`, TimeoutError if the peer does not
        read within `timeout_s` (0: BlockingIOError at once)."""
        payload = json.dumps(body, separators=(",", ":")).encode()
        if len(payload) > MAX_PACKET_BYTES:
            raise PacketTooLarge(f"a message of {len(payload)} bytes, {MAX_PACKET_BYTES} allowed")
        self._socket.settimeout(timeout_s)
        try:
            socket.send_fds(self._socket, [payload], list(descriptors))
        except (BrokenPipeError, ConnectionResetError, ConnectionRefusedError) as error:
            raise PeerGone(str(error)) from error

    def receive(self, timeout_s: float | None = None) -> Packet:
        """Wait for one message. Raises `PeerGone` at end-of-file, `NotAMessage`, TimeoutError after
        `timeout_s` (0: BlockingIOError at once)."""
        self._socket.settimeout(timeout_s)
        try:
            payload, descriptors, _, _ = socket.recv_fds(
                self._socket, MAX_PACKET_BYTES, _MAX_DESCRIPTORS
            )
        except ConnectionResetError as error:
            raise PeerGone(str(error)) from error
        packet = Packet(_object(payload), tuple(descriptors))
        if packet.body is _NOTHING:
            packet.close()
            if payload:
                raise NotAMessage(f"no JSON object: {payload[:40]!r}")
            raise PeerGone("the other process closed the connection")
        return packet

    def request(self, body: Json, timeout_s: float = 5.0) -> Json:
        """Send one message and return the next one that comes back."""
        self.send(body, timeout_s=timeout_s)
        packet = self.receive(timeout_s)
        packet.close()
        return packet.body

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Listener:
    """A named socket that other processes connect to. A stale name of a dead owner is replaced;
    whoever listens must hold a lock of its own against a second owner."""

    def __init__(self, path: Path, mode: int = 0o660) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        with _short_name(path) as name:
            self._socket.bind(name)
        path.chmod(mode)
        self._socket.listen(64)

    def fileno(self) -> int:
        return self._socket.fileno()

    def accept(self) -> Channel:
        connection, _ = self._socket.accept()
        return Channel(connection)

    def close(self) -> None:
        self._socket.close()


def connect(path: Path, timeout_s: float = 0.0) -> Channel:
    """Connect to a listener, waiting up to `timeout_s` for it to appear.

    Raises `PeerGone` that names the path if nobody listens there, `NotPermitted`.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            connection.settimeout(1.0)
            with _short_name(path) as name:
                connection.connect(name)
            return Channel(connection)
        except (FileNotFoundError, ConnectionRefusedError, TimeoutError, BlockingIOError) as error:
            connection.close()
            if time.monotonic() >= deadline:
                raise PeerGone(f"nobody listens at {path}") from error
            time.sleep(0.02)
        except PermissionError as error:
            connection.close()
            raise NotPermitted(
                f"{path}: this user may not use it; be the station's user or root"
            ) from error
        except BaseException:
            connection.close()
            raise


def channel_pair() -> tuple[Channel, socket.socket]:
    """A connected pair: our end, and the raw socket to be handed to a child process."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return Channel(ours), theirs


class _short_name:
    """A name for `path` that fits the 107 bytes of a Unix socket address, however deep it lies."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._folder = -1

    def __enter__(self) -> str:
        self._folder = os.open(self._path.parent, os.O_PATH | os.O_DIRECTORY)
        return f"/proc/self/fd/{self._folder}/{self._path.name}"

    def __exit__(self, *exc: object) -> None:
        os.close(self._folder)


def user_name(uid: int) -> str:
    """Login name of a user id, or the id where it has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"
