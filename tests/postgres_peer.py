"""A real PostgreSQL server of Debian's package, in a folder of its own, that can be killed."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

_BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
_LIMIT_S = 60.0
PORT = 5432


def binaries() -> Path:
    """Of the newest version, or a skip that says what is missing."""
    if not _BINARIES:
        pytest.skip("no PostgreSQL here: apt-get install postgresql")
    return _BINARIES[-1]


class Postgres:
    """A cluster, and the server over it. Its superuser is `postgres`, trusted over the socket in
    its folder; over TCP everybody needs a password."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "data"
        self._process: subprocess.Popen[bytes] | None = None
        self._user = _unprivileged()
        if self._user:
            shutil.chown(folder, *self._user)
        self._run("initdb", "--no-sync", "--auth-local=trust", "--auth-host=scram-sha-256",
                  "--username=postgres", "--encoding=UTF8", "--locale=C.UTF-8",
                  "-D", str(self.data))  # fmt: skip

    def start(self, is_durable: bool = False) -> None:
        """Until it takes connections; not durable: what no test kills need not reach the disk."""
        options = ("-k", str(self.folder), "-c", "listen_addresses=127.0.0.1", "-p", str(PORT),
                   "-c", "max_wal_size=1GB", "-c", "shared_buffers=64MB",
                   "-c", f"fsync={'on' if is_durable else 'off'}")  # fmt: skip
        log = (self.folder / "log").open("ab")
        self._process = subprocess.Popen(
            [*self._as_user(), str(binaries() / "postgres"), "-D", str(self.data), *options],
            stdout=log,
            stderr=log,
        )
        log.close()
        deadline = time.monotonic() + _LIMIT_S
        while not self._answers():
            assert self._process.poll() is None, (self.folder / "log").read_text()[-2000:]
            assert time.monotonic() < deadline, "PostgreSQL does not come up"
            time.sleep(0.02)

    def kill(self) -> None:
        """The postmaster and all its children at once, as a power cut ends them."""
        assert self._process is not None
        children = _children(self._process.pid)
        for pid in (self._process.pid, *children):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()
        deadline = time.monotonic() + _LIMIT_S
        while any(Path(f"/proc/{pid}").exists() for pid in children):
            assert time.monotonic() < deadline
            time.sleep(0.005)

    def dsn(self, database: str, user: str = "postgres") -> str:
        return f"host={self.folder} port={PORT} dbname={database} user={user}"

    def sql(self, database: str, *statements: str) -> None:
        import psycopg

        with psycopg.connect(self.dsn(database), autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement)

    def rows(self, database: str, query: str) -> list[tuple[object, ...]]:
        import psycopg

        with psycopg.connect(self.dsn(database)) as connection:
            return connection.execute(query).fetchall()

    def _answers(self) -> bool:
        import psycopg

        try:
            psycopg.connect(self.dsn("postgres")).close()
        except psycopg.OperationalError:
            return False
        return True

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [*self._as_user(), str(binaries() / program), *arguments],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr

    def _as_user(self) -> list[str]:
        if self._user is None:
            return []
        user, group = (str(number) for number in self._user)
        return ["setpriv", "--reuid", user, "--regid", group, "--clear-groups", "--"]


def _unprivileged() -> tuple[int, int] | None:
    """PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return None
    found = pwd.getpwnam("postgres")
    return found.pw_uid, found.pw_gid


def _children(pid: int) -> list[int]:
    try:
        found = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except FileNotFoundError:
        return []
    return [int(child) for child in found.split()]


@contextlib.contextmanager
def running_postgres(is_durable: bool = False) -> Iterator[Postgres]:
    """In a folder that its user may reach, which those of pytest are not."""
    binaries()
    folder = Path(tempfile.mkdtemp(prefix="vqi-postgres-", dir="/tmp"))
    server = Postgres(folder)
    try:
        server.start(is_durable)
        yield server
    finally:
        server.kill()
        shutil.rmtree(folder)


class CuttingProxy:
    """Between a client and the server's TCP port; cuts each connection after so many bytes."""

    def __init__(self, after_bytes: int) -> None:
        self.after_bytes = after_bytes
        self.cuts = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client = self._listener.accept()[0]
                threading.Thread(target=self._relay, args=(client,), daemon=True).start()

    def _relay(self, client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", PORT)) as server:
            back = threading.Thread(target=self._pump, args=(server, client), daemon=True)
            back.start()
            self._pump(client, server)
            back.join()

    def _pump(self, source: socket.socket, to: socket.socket) -> None:
        passed = 0
        with contextlib.suppress(OSError):
            while data := source.recv(4096):
                passed += len(data)
                if passed > self.after_bytes:
                    self.cuts += 1
                    break
                to.sendall(data)
        for end in (source, to):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
