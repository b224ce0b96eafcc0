"""Signing: the commissioning file and the row in the log that makes it the latest.

What is signed is what was read: a report that is not the one its steps make, a step that has not
passed, or a camera that is not the one of the steps is refused.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from drivers.camera import CameraInfo
from drivers.errors import DeviceError
from station.acquisition import CameraProcess
from station.commission_record import RunFolder
from station.commissioned import (
    CommissioningFile,
    commissioned_change,
    read_commissioned,
    sha256_hex,
)
from station.commissioning_report import REPORT_HTML, REPORT_JSON, Report, html
from station.config import Configuration, Loaded
from station.durable import sync
from station.ipc import NotPermitted, PeerGone
from station.journal_client import JournalClient
from station.lock import STATION_LOCK, take_lock
from station.log_reader import Reader
from station.product import load_flat_field
from station.qms import StoreError
from station.record import utc_now
from station.state import NotCommissioned

_JOURNAL_START_S = 15.0


class SigningError(Exception):
    """Nothing was signed; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Signed:
    """A signature that is in the log."""

    path: Path
    sha256: str
    row: int


def sign_report(
    configuration: Loaded[Configuration], report: Report, folder: RunFolder, who: str
) -> Signed:
    """Sign what `report` says, with the camera that is there now. Raises `SigningError`,
    `RunFolderError`, `ConfigError`."""
    path = configuration.value.commissioning_file
    if path is None:
        raise SigningError(
            f"{configuration.source}: no [commissioning] file = … to write; add it, and do the "
            "steps on that configuration"
        )
    if report.open_steps:
        raise SigningError("cannot be signed: " + "; ".join(report.open_steps))
    files = _as_read(report, folder)
    with station_stopped(configuration.value):
        info = _camera_info(configuration.value)
    _check_camera(report, info)
    file = _file(configuration, report, files, info, who)
    row = sign(configuration.source, configuration.value, file, path)
    return Signed(path, sha256_hex(file.as_bytes()), row)


def _as_read(report: Report, folder: RunFolder) -> tuple[bytes, bytes]:
    """JSON and page as they lie in the folder, if they say what the steps say."""
    files = report.as_bytes(), html(report, folder)
    for name, wanted in zip((REPORT_JSON, REPORT_HTML), files, strict=True):
        path = folder.path / name
        try:
            found = path.read_bytes()
        except OSError as error:
            raise SigningError(f"{path}: cannot be read: {error.strerror}") from error
        if found != wanted:
            raise SigningError(
                f"{path}: not what its steps say; write it again with `vqi commission` and read it"
            )
    return files


def _camera_info(settings: Configuration) -> CameraInfo:
    try:
        camera = CameraProcess(settings.camera, settings.station.ring_s)
    except DeviceError as error:
        raise SigningError(f"the camera to sign for cannot be opened: {error}") from error
    camera.close()
    return camera.info


def _check_camera(report: Report, info: CameraInfo) -> None:
    """The camera is the one of the steps: serial, producer and features."""
    facts = report.step("camera").facts
    found = {
        "serial": info.serial,
        "producer_sha256": info.producer_sha256 or "none",
        "features_sha256": info.features_sha256,
    }
    for name, value in found.items():
        if facts.get(name) != value:
            raise SigningError(
                f"the camera's {name} is {value}, the steps were done with {facts.get(name)}; do "
                "them again"
            )


def _file(
    configuration: Loaded[Configuration],
    report: Report,
    files: tuple[bytes, bytes],
    info: CameraInfo,
    who: str,
) -> CommissioningFile:
    flat_field, basis = load_flat_field(configuration, info), report.basis
    return CommissioningFile(
        station_id=report.station_id,
        run=report.run.value,
        camera_vendor=info.vendor,
        camera_model=info.model,
        camera_serial=info.serial,
        producer_sha256=info.producer_sha256 or "",
        features_sha256=info.features_sha256,
        flat_field_id=flat_field.id if flat_field else None,
        flat_field_sha256=flat_field.sha256 if flat_field else None,
        **basis.model_dump(exclude={"producer_sha256"}),
        report_sha256=sha256_hex(files[0]),
        report_html_sha256=sha256_hex(files[1]),
        who=who,
        signed_at=utc_now(),
    )


@dataclass(frozen=True, slots=True)
class Signature:
    """What a commissioning file says; no findings if log and report agree with it."""

    signed: dict[str, str]
    findings: tuple[str, ...]


def verify_signature(settings: Configuration, directory: Path) -> Signature:
    """Hold the configured file against this station's log, and the report in `directory` against
    the file. Raises `SigningError` where there is nothing to hold."""
    path = settings.commissioning_file
    if path is None:
        raise SigningError("no [commissioning] file is configured")
    try:
        with Reader(settings.journal.directory) as reader:
            judged = read_commissioned(path, settings.station.id, reader.signed_files())
    except StoreError as error:
        raise SigningError(str(error)) from error
    if isinstance(judged, NotCommissioned):
        return Signature({}, (judged.why,))
    file = CommissioningFile.model_validate_json(path.read_bytes())
    folder = directory / file.run
    wanted = {REPORT_JSON: file.report_sha256, REPORT_HTML: file.report_html_sha256}
    findings = [_report_finding(folder / name, sha256) for name, sha256 in wanted.items()]
    signed = {key: str(value) for key, value in file.model_dump().items()}
    return Signature(signed, tuple(finding for finding in findings if finding))


def _report_finding(path: Path, sha256: str) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        return f"{path}: cannot be read: {error.strerror}"
    return "" if sha256_hex(data) == sha256 else f"{path}: not the report that was signed"


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
            sync(path.parent)
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
    with journal_at_hand(source, settings) as journal:
        answer = journal.submit([commissioned_change(file)])
    if not answer["ok"]:
        raise SigningError(f"the journal refused the row: {answer['error']}")
    return int(answer["seq"][0])


@contextlib.contextmanager
def journal_at_hand(source: str, settings: Configuration) -> Iterator[JournalClient]:
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
