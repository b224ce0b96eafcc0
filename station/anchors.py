"""Anchors: which row the log had, with which chain value, said where its owner cannot unsay it.

An anchor is a line of text, the same in the systemd journal, in another user's append-only file,
on the printed shift report and in the plant's database; a signed checkpoint is one, too. A log that
is shorter than an anchor was cut or is an old copy; one that has another chain value there was
rewritten.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import sqlite3
import stat
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from station.config import ProofSettings
from station.log_reader import Reader
from station.qms import DATABASE, EMPTY_CHAIN, StoreError
from station.signed_note import Checkpoint, NoteError, parsed

MESSAGE_ID = "8f0c5d6c4a7e4e0f9a51b1f1c3a0d7e2"
"""Of an anchor in the systemd journal; made once, at random."""
JOURNAL_SOCKET = Path("/run/systemd/journal/socket")
_JOURNALCTL_LIMIT_S = 60.0
_LISTENER_LIMIT_S = 10.0
_HEX = r"(?:[0-9a-f]\s*){64}"
_LINE = re.compile(
    r"vqi-anchor\s+(?P<station_id>[A-Za-z0-9_-]+)\s+row\s+(?P<seq>[0-9]+)\s+"
    rf"chain\s+(?P<chain>{_HEX})\s*time\s+(?P<at>[0-9T:.+Z-]+)\s+key\s+(?P<key>{_HEX}|none)"
)
_NOTE = re.compile(r"vqi/\S+\n[0-9]+\n\S+\nplates .*\nhead .*\ntime .*\n\n(?:— .*\n)?")


class AnchorError(Exception):
    """No anchors can be had from there; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Anchor:
    """A row that the log had."""

    station_id: str
    seq: int
    chain_sha256: str
    at: str
    """UTC as RFC 3339 text, by the station's clock."""
    key: str | None = None
    """Fingerprint of the key that signed the checkpoint of this row; None where nobody did."""
    where: str = ""
    """For people: where it was read."""

    def line(self) -> str:
        """As it is written anywhere."""
        return (
            f"vqi-anchor {self.station_id} row {self.seq} chain {self.chain_sha256} "
            f"time {self.at} key {self.key or 'none'}"
        )

    def printed(self) -> str:
        """For paper: as `line`, in groups that a person can type in again."""
        return re.sub(r"\b[0-9a-f]{64}\b", lambda found: _groups(found[0]), self.line())


def _groups(digits: str) -> str:
    return " ".join(digits[n : n + 8] for n in range(0, len(digits), 8))


def anchor_of(checkpoint: Checkpoint, key: str | None, where: str = "") -> Anchor:
    station_id = checkpoint.origin.removeprefix("vqi/")
    return Anchor(station_id, checkpoint.size, checkpoint.head, checkpoint.at, key, where)


def head_anchor(reader: Reader, station_id: str, at: str) -> Anchor:
    """Of the log as it is now: for the shift report and the plant's database."""
    seq = reader.last_seq()
    return Anchor(station_id, seq, reader.chain_at(seq) if seq else EMPTY_CHAIN, at)


# --- writing ------------------------------------------------------------------------------------


def publish(anchor: Anchor, settings: ProofSettings, directory: Path) -> list[str]:
    """Say it, of the log in `directory`, in the systemd journal, where there is one, and in the
    configured file; what could not be done."""
    with contextlib.suppress(OSError):
        tell_journal(anchor, directory)
    if settings.anchor_file is None:
        return []
    try:
        if settings.anchor_socket is None:
            append(settings.anchor_file, anchor)
        else:
            _have_appended(settings.anchor_socket, settings.anchor_file, anchor)
    except OSError as error:
        return [f"no anchor in {settings.anchor_file}: {error.strerror or error}"]
    return []


def append(path: Path, anchor: Anchor) -> None:
    """One line at the end of a file that is there already: whoever owns it made it. Durable on
    return. Raises OSError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.write(descriptor, f"{anchor.line()}\n".encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _have_appended(listener: Path, path: Path, anchor: Anchor) -> None:
    """By the other user, who answers with the end of the connection. Raises OSError."""
    with socket.socket(socket.AF_UNIX) as channel:
        channel.settimeout(_LISTENER_LIMIT_S)
        channel.connect(str(listener))
        channel.sendall(f"{anchor.line()}\n".encode())
        channel.shutdown(socket.SHUT_WR)
        channel.recv(1)
    if anchor.line() not in path.read_text(errors="replace"):
        raise OSError(f"{listener} took it, and it is not there")


def tell_journal(anchor: Anchor, directory: Path, listener: Path = JOURNAL_SOCKET) -> None:
    """By journald's own protocol (systemd.io/JOURNAL_NATIVE_PROTOCOL). Raises OSError."""
    fields = {
        "MESSAGE": anchor.line(),
        "MESSAGE_ID": MESSAGE_ID,
        "PRIORITY": "5",
        "SYSLOG_IDENTIFIER": "vqi",
        "VQI_STATION": anchor.station_id,
        "VQI_LOG": str(directory.absolute()),
        "VQI_ROW": str(anchor.seq),
        "VQI_CHAIN_SHA256": anchor.chain_sha256,
    }
    data = "".join(f"{name}={value}\n" for name, value in fields.items()).encode()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.settimeout(_LISTENER_LIMIT_S)
        channel.sendto(data, str(listener))


# --- reading ------------------------------------------------------------------------------------


def anchors_in(data: str, where: str) -> list[Anchor]:
    """All that a text holds, be it a file of them, a shift report or a checkpoint. Raises
    `AnchorError` if it holds none."""
    found = [_read(match, data, where) for match in _LINE.finditer(data)]
    with contextlib.suppress(NoteError):
        notes = [parsed(match[0]) for match in _NOTE.finditer(data)]
        found += [anchor_of(note, None, f"{where}, the checkpoint of {note.at}") for note in notes]
    if not found:
        raise AnchorError(f"{where}: there is no anchor in it")
    return found


def _read(match: re.Match[str], data: str, where: str) -> Anchor:
    key = "".join(match["key"].split())
    number = data.count("\n", 0, match.start()) + 1
    return Anchor(
        match["station_id"],
        int(match["seq"]),
        "".join(match["chain"].split()),
        match["at"],
        None if key == "none" else key,
        f"{where} line {number}",
    )


def read_file(path: Path) -> list[Anchor]:
    """Raises `AnchorError`."""
    try:
        return anchors_in(path.read_text(errors="replace"), str(path))
    except OSError as error:
        raise AnchorError(f"{path}: cannot be read: {error.strerror}") from error


def said_in(path: Path | None) -> tuple[list[Anchor], list[str]]:
    """What the configured file, if there is one, says already, maybe nothing yet; and why it cannot
    be read."""
    if path is None:
        return [], []
    try:
        data = path.read_text(errors="replace")
    except OSError as error:
        return [], [f"the log is not held against {path}: {error.strerror}"]
    with contextlib.suppress(AnchorError):
        return anchors_in(data, str(path)), []
    return [], []


def read_journal(station_id: str, directory: Path) -> list[Anchor]:
    """Those of the log in `directory` that the systemd journal of this machine holds, and lets this
    user see. Raises `AnchorError`."""
    if shutil.which("journalctl") is None:
        raise AnchorError("systemd journal: there is no journalctl here")
    command = ["journalctl", "--namespace=*", "--quiet", "--output=json", "--no-pager"]
    command += [f"MESSAGE_ID={MESSAGE_ID}", f"VQI_STATION={station_id}"]
    command.append(f"VQI_LOG={directory.absolute()}")
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_JOURNALCTL_LIMIT_S, check=False
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise AnchorError(f"systemd journal: cannot be read: {error}") from error
    if done.returncode:
        # Quiet, it says nothing to who may not see its files.
        why = done.stderr.strip() or "is this user in the group systemd-journal?"
        raise AnchorError(f"systemd journal: journalctl ended with {done.returncode}: {why}")
    return from_journal(done.stdout.splitlines())


def from_journal(entries: Iterable[str]) -> list[Anchor]:
    """Of `journalctl --output=json`."""
    found = []
    for entry in entries:
        fields: dict[str, Any] = json.loads(entry)
        match = _LINE.fullmatch(str(fields.get("MESSAGE")))
        if match is not None:
            anchor = _read(match, "", "")
            when = fields.get("__REALTIME_TIMESTAMP", "?")
            found.append(replace(anchor, where=f"systemd journal, entry of {when} µs"))
    return found


def configured(
    settings: ProofSettings, station_id: str, directory: Path
) -> tuple[list[Anchor], list[str]]:
    """All that can be read where this station says its anchors, and what could not be."""
    found, notes = list[Anchor](), list[str]()
    try:
        found += read_journal(station_id, directory)
    except AnchorError as error:
        notes.append(str(error))
    if settings.anchor_file is not None:
        try:
            found += read_file(settings.anchor_file)
        except AnchorError as error:
            notes.append(str(error))
    return found, notes


def owner_note(path: Path, journal: Path) -> list[str]:
    """What is to be said of a file of anchors that whoever writes the log could rewrite."""
    with contextlib.suppress(OSError):
        status, log = path.stat(), (journal / DATABASE).stat()
        if status.st_uid == log.st_uid:
            return [f"{path}: belongs to the owner of the log, who can rewrite both"]
        if stat.S_IMODE(status.st_mode) & stat.S_IWOTH:
            return [f"{path}: anybody may write it"]
    return []


# --- checking -----------------------------------------------------------------------------------


def check_anchors(
    reader: Reader, anchors: Sequence[Anchor], keys: dict[int, str | None]
) -> list[str]:
    """Findings: anchors that this log has not, by row. `keys` are the fingerprints of the keys that
    signed the log's checkpoints, by the row that each is as of."""
    last = reader.last_seq()
    findings = [_finding(reader, anchor, last, keys) for anchor in anchors]
    return [finding for finding in findings if finding]


def _finding(reader: Reader, anchor: Anchor, last: int, keys: dict[int, str | None]) -> str:
    said = f"{anchor.where} says row {anchor.seq} at {anchor.at}"
    if anchor.seq > last:
        return f"shorter than an anchor: the log ends with row {last}, {said}"
    try:
        stations = _stations_at(reader, anchor.seq)
        chain = reader.chain_at(anchor.seq) if anchor.seq else EMPTY_CHAIN
    except (StoreError, SQLAlchemyError, sqlite3.Error) as error:
        return f"{error}; {said}"
    if stations and anchor.station_id not in stations:
        names = " and ".join(stations)
        return (
            f"another log than the anchor's: this one is of {names}, {said}, of {anchor.station_id}"
        )
    if chain != anchor.chain_sha256:
        return (
            f"another log than the anchor's: row {anchor.seq} has the chain value {chain[:16]}…, "
            f"{said} has {anchor.chain_sha256[:16]}…"
        )
    if anchor.key and keys.get(anchor.seq, anchor.key) != anchor.key:
        return (
            f"another key than the anchor's: {said} was signed with the key {anchor.key}, here "
            f"with {keys[anchor.seq] or 'none'}"
        )
    return ""


def _stations_at(reader: Reader, seq: int) -> list[str]:
    """Whose log it was at a row: a station that got another name says so in the row after it."""
    found = set[str]()
    for body in filter(None, (reader.body_of(seq), reader.body_of(seq + 1))):
        with contextlib.suppress(StoreError, ValueError, TypeError, AttributeError):
            found.add(str(reader.whole(body)["station_id"]))
    return sorted(found)
