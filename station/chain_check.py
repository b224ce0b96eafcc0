"""Whether each row of the log is the one that was hashed and follows the one before it, and each
attempt of a part the one before it.

The hashes of a long log are work for a core of its own, so `vqi log verify` does this in a second
process while it looks at what the rows say; what is imported here starts it at once.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from station.attempts import miscounted

_EMPTY_CHAIN = "0" * 64
_FIRST_SEQ = -(2**63)
_PAGE_ROWS = 2000
"""Read at once: while a reader is within a page, the write-ahead file cannot be begun anew (I8)."""
_ALONE_ROWS = 10_000
"""A log of fewer is done before another process has begun."""
_MOST_SAID = 20
_PAGE = """
    SELECT seq, kind, body, body_sha256, chain_sha256 FROM row
    WHERE seq >= ? AND seq <= ? ORDER BY seq LIMIT ?
"""
_Row = tuple[int, bytes, bytes, bytes, bytes]
"""Texts as they are in the file: whoever edits it need not write UTF-8."""


@dataclass(slots=True)
class Links:
    """What the chain came to."""

    rows: int = 0
    """Number of the last row."""
    head: str = _EMPTY_CHAIN
    findings: list[tuple[int, str]] = field(default_factory=list)
    """Row, and what is wrong with it, in order."""


def check(path: Path, last: int, with_file: bool) -> Links:
    """Recompute every hash and link up to a row. `with_file`: also hold the file's indexes against
    its tables, in one read of all, and count every part's attempts: the write-ahead file of a live
    log grows meanwhile (I8)."""
    found, before = Links(), _EMPTY_CHAIN.encode()
    sha256, findings, expected = hashlib.sha256, found.findings, 1
    for seq, kind, body, body_sha256, chain_sha256 in _rows(path, last):
        if seq != expected:
            findings.append((seq, f"row {expected} is missing; row {seq} comes next"))
        expected = seq + 1
        digest = sha256(body).hexdigest().encode()
        if digest != body_sha256:
            findings.append((seq, f"row {seq}: its body is not the one that was hashed"))
        before = sha256(b"%b %d %b %b" % (before, seq, kind, digest)).hexdigest().encode()
        if before != chain_sha256:
            findings.append((seq, f"row {seq}: the chain breaks here"))
            before = chain_sha256
    if with_file:
        findings += _of_file(path)
        findings += _of_attempts(path)
    found.rows, found.head = expected - 1, before.decode(errors="replace")
    return found


def _of_file(path: Path) -> list[tuple[int, str]]:
    """What SQLite finds of pages and indexes: an edited entry hides a row from questions."""
    with contextlib.closing(_open(path)) as log:
        try:
            said = [row[0] for row in log.execute(f"PRAGMA integrity_check({_MOST_SAID})")]
        except sqlite3.Error as error:
            return [(0, f"the file cannot be checked: {error}")]
    return [(0, f"the file: {text}") for text in said if text != "ok"]


def _of_attempts(path: Path) -> list[tuple[int, str]]:
    with contextlib.closing(_open(path)) as log:
        return miscounted(log)


def _open(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=5.0)


def _rows(path: Path, last: int) -> Iterator[_Row]:
    with contextlib.closing(_open(path)) as log:
        log.text_factory, first = bytes, _FIRST_SEQ
        while page := log.execute(_PAGE, (first, last, _PAGE_ROWS)).fetchall():
            yield from page
            first = page[-1][0] + 1


class Beside:
    """The check as it runs beside other work."""

    def __init__(self, path: Path, last: int, with_file: bool) -> None:
        self._asked = path, last, with_file
        asked = [str(path), str(last), str(int(with_file))]
        command = [sys.executable, "-P", "-m", "station.chain_check", *asked]
        is_long = last > _ALONE_ROWS
        self._process = (
            subprocess.Popen(command, stdout=subprocess.PIPE, text=True) if is_long else None
        )

    def result(self) -> Links:
        """Waits for it; done here where there is no other process, or it could not do it."""
        if self._process is not None:
            said, _ = self._process.communicate()
            if self._process.returncode == 0:
                found = json.loads(said)
                found["findings"] = [(seq, text) for seq, text in found["findings"]]
                return Links(**found)
        return check(*self._asked)

    def __enter__(self) -> Beside:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()


def main() -> None:
    found = check(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "1")
    json.dump({"rows": found.rows, "head": found.head, "findings": found.findings}, sys.stdout)


if __name__ == "__main__":
    main()
