"""Whether the audit sample is the one that the seeds in the log draw."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import select, text

from station.audit import is_drawn
from station.log_reader import Reader
from station.record import Reason
from station.tables import PLATE

_PAGE_ROWS = 10_000
_ROWS = text("""
    SELECT seq, kind, body ->> '$.seed_sha256' AS seed_sha256, body ->> '$.seed' AS seed,
           body ->> '$.share' AS share, written_at, body ->> '$.recipe_id' AS recipe_id,
           body ->> '$.recipe_version' AS recipe_version
    FROM row WHERE kind IN ('audit_seed', 'audit_reveal')
    OR (kind = 'change' AND body ->> '$.what' = 'start') ORDER BY seq
""")
_OPENED = text("""
    SELECT sequence FROM row WHERE seq < :seq AND +kind = 'opened' AND sequence IS NOT NULL
    ORDER BY seq DESC LIMIT 1
""")


@dataclass(slots=True)
class AuditCheck:
    """What the seeds say of the plates that they drew."""

    checked: int = 0
    """Plates of revealed seeds."""
    drawn: int = 0
    """Of them, those in the sample."""
    waiting: int = 0
    """Plates of the seed that still draws."""
    unproven: int = 0
    """Plates that no announced seed drew, or one that was never revealed."""
    findings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Period:
    """Plates that one seed drew: those opened after its row and before the row that ended it."""

    seq: int
    """Of the row; 0 for what came before the first one."""
    first_sequence: int
    seed_sha256: str = ""
    """Empty where no seed drew."""
    share: float = 0.0
    seed: bytes | None = None
    written_at: str = ""
    recipe: tuple[str, int] = ("", 0)


def audit_findings(reader: Reader) -> AuditCheck:
    """Draw again what revealed seeds drew, and compare; of a log without seeds, nothing."""
    found = AuditCheck()
    periods = list(read_periods(reader, found))
    if not any(period.seed_sha256 for period in periods):
        return found
    begins = [period.first_sequence for period in periods]
    is_last_open = bool(periods) and bool(periods[-1].seed_sha256)
    for row in _plates(reader):
        period = periods[bisect_right(begins, _sequence(row.result_id)) - 1]
        if period.seed is not None:
            _compare(row, period, found)
        elif period is periods[-1] and is_last_open:
            found.waiting += 1
        else:
            found.unproven += 1
    return found


def read_periods(reader: Reader, found: AuditCheck) -> Iterator[Period]:
    """In order of the chain. A start begins a period without a seed, until a row announces one."""
    rows = reader.ask(_ROWS)
    seeds = _revealed(rows, found)
    announced = [row.seq for row in rows if row.kind == "audit_seed"]
    period = Period(0, 0)
    for row in rows:
        yield period
        period = _begun_by(reader, row, seeds, found)
        if row.kind == "audit_seed" and period.seed is None and row.seq != announced[-1]:
            found.notes.append(f"row {row.seq}: the audit seed it announces was never revealed")
    yield period


def _begun_by(reader: Reader, row: Any, seeds: dict[str, bytes], found: AuditCheck) -> Period:
    opened = reader.ask(_OPENED.bindparams(seq=row.seq))
    first_sequence = 1 + (opened[0].sequence if opened else 0)
    if row.kind == "audit_seed":
        try:
            return _announced_by(row, first_sequence, seeds)
        except (TypeError, ValueError) as error:
            found.findings.append(f"row {row.seq}: announces no audit seed: {error}")
    return Period(row.seq, first_sequence)


def _announced_by(row: Any, first_sequence: int, seeds: dict[str, bytes]) -> Period:
    return Period(
        row.seq,
        first_sequence,
        seed_sha256=row.seed_sha256,
        share=float(row.share),
        seed=seeds.get(row.seed_sha256),
        written_at=row.written_at,
        recipe=(row.recipe_id, int(row.recipe_version)),
    )


def _revealed(rows: Sequence[Any], found: AuditCheck) -> dict[str, bytes]:
    """Seeds by the hash that announced them."""
    seeds: dict[str, bytes] = {}
    for row in rows:
        if row.kind != "audit_reveal":
            continue
        try:
            seed = bytes.fromhex(row.seed)
        except (TypeError, ValueError) as error:
            found.findings.append(f"row {row.seq}: reveals no audit seed: {error}")
            continue
        if hashlib.sha256(seed).hexdigest() == row.seed_sha256:
            seeds[row.seed_sha256] = seed
        else:
            found.findings.append(
                f"row {row.seq}: reveals another audit seed than the one that was announced"
            )
    return seeds


def _compare(row: Any, period: Period, found: AuditCheck) -> None:
    assert period.seed is not None
    found.checked += 1
    is_sample = bool(row.is_audit_sample)
    found.drawn += is_sample
    if is_sample == is_drawn(period.seed, row.result_id, period.share):
        return
    if row.reason == Reason.INTERRUPTED and not is_sample:
        return  # its record was written by the life after, which does not know
    said = "is not in the audit sample, but drawn" if not is_sample else "is in it, but not drawn"
    found.findings.append(f"row {row.seq}: {row.result_id} {said} by the seed of row {period.seq}")


def _plates(reader: Reader) -> Iterator[Any]:
    columns = (PLATE.c.seq, PLATE.c.result_id, PLATE.c.reason, PLATE.c.is_audit_sample)
    after = 0
    while True:
        query = select(*columns).where(PLATE.c.seq > after).order_by(PLATE.c.seq)
        page = reader.ask(query.limit(_PAGE_ROWS))
        yield from (row for row in page if row.reason != Reason.GAP)
        if len(page) < _PAGE_ROWS:
            return
        after = page[-1].seq


def _sequence(result_id: str) -> int:
    """Of a plate; plates are opened in this order."""
    number = result_id.rpartition("-")[2]
    return int(number) if number.isdecimal() else 0
