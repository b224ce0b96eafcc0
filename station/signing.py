"""Signing: the commissioning file and the row in the log that makes it the latest."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from station.commissioned import CommissioningFile, commissioned_change
from station.config import Configuration
from station.ipc import NotPermitted, PeerGone
from station.journal import JournalClient
from station.lock import STATION_LOCK, take_lock

_JOURNAL_START_S = 15.0


class SigningError(Exception):
    """Nothing was signed; the message says why and what to do."""


def sign(source: str, settings: Configuration, file: CommissioningFile, path: Path) -> int:
    """Write the change to the log and the file to `path`; the row's number.

    `source` names the configuration. The file is durable before the row, and takes its name after
    it: whatever fails in between, what was production before is production or nothing is. Raises
    `SigningError`.
    """
    temporary = path.with_name(path.name + ".new")
    try:
        with station_stopped(settings):
            _write_durably(temporary, file.as_bytes())
            number = _submit(source, settings, file)
            temporary.replace(path)
            _sync_folder(path.parent)
    except OSError as error:
        raise SigningError(f"{path}: cannot be written: {error.strerror}") from error
    return number


@contextlib.contextmanager
def station_stopped(settings: Configuration) -> Iterator[None]:
    """Keep a station from starting: it judges its provenance once. Raises `SigningError`."""
    path = settings.station.runtime_dir / STATION_LOCK
    lock = take_lock(path)
    if lock is None:
        raise SigningError(f"a station runs in {path.parent}: stop it first, start it again after")
    try:
        yield
    finally:
        os.close(lock)


def _submit(source: str, settings: Configuration, file: CommissioningFile) -> int:
    with _journal(source, settings) as journal:
        answer = journal.submit([commissioned_change(file)])
    if not answer["ok"]:
        raise SigningError(f"the journal refused the row: {answer['error']}")
    return int(answer["seq"][0])


@contextlib.contextmanager
def _journal(source: str, settings: Configuration) -> Iterator[JournalClient]:
    """The journal process that runs, or one for the time being. Raises `SigningError`."""
    client = JournalClient(settings.station.runtime_dir)
    process: subprocess.Popen[bytes] | None = None
    try:
        try:
            client.connect(timeout_s=0.0)
        except NotPermitted:
            raise
        except (PeerGone, TimeoutError):
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "station.cli", "serve", "journal", "--config", source],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
            client.connect(_JOURNAL_START_S)
        yield client
    except (PeerGone, TimeoutError) as error:
        raise SigningError(f"no journal process takes the row: {error}") from error
    finally:
        client.close()
        if process is not None:
            process.terminate()
            process.wait()


def _write_durably(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
