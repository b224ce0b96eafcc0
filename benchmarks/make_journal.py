"""A journal of many plates through the real writer: recipes, lots, shifts over months, defects that
cluster, reworked serials, reviews, audit samples, lives of the station and what it missed.

    python benchmarks/make_journal.py DIRECTORY --plates 1000000 [--seed 1] [--tiles 25]

Two runs with the same arguments write the same rows. A run that was ended goes on where it was.
"""

from __future__ import annotations

import argparse
import base64
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))
from station.qms import Store
from station.record import (
    ActuationBody,
    Body,
    ChangeBody,
    DefectBody,
    DowntimeBody,
    OpenedBody,
    Provenance,
    Reason,
    ResultBody,
    ReviewBody,
    Verdict,
    result_id,
    rfc3339,
)

STATION = "vqi-1"
BLOCK = 2000
"""Plates of one transaction, and of one lot."""
_BOOT = "6f1c9b5e-1d2a-4c53-9a8e-0f3f5a6b7c8d"
_BEGIN = datetime(2026, 1, 5, 5, 0, tzinfo=UTC)
_PERIOD_S = 6.0
"""Of one plate: 9,600 a day in two shifts of eight hours."""
_BLOCKS_A_LIFE = 24
_FAIL_SHARE = 0.02
_UNDECIDED_SHARE = 0.003
_AUDIT_SHARE = 0.01
_DEFECTIVE_OF_PASSED = 0.004
_REWORKED_SHARE = 0.5
_REVIEWED_SHARE = 0.7
_FALSE_REJECT_SHARE = 0.12
_REVIEWERS = ("ada", "bela", "chen")
_WHY = {Verdict.PASS: "dust, wiped off", Verdict.FAIL: "scratch"}
_SIDE_MM = (240.0, 160.0)


@dataclass(frozen=True, slots=True)
class Product:
    """What the plates of one recipe have in common."""

    recipe_id: str
    version: int
    sha: str
    threshold: float
    fail_factor: float


_PRODUCTS = (
    Product("lgp-240", 7, "a1" * 32, 0.61, 1.0),
    Product("lgp-160", 3, "b2" * 32, 0.55, 1.8),
    Product("lgp-demo", 12, "c3" * 32, 0.5, 0.4),
)


class Block:
    """The plates of one lot: everything of them comes from the seed and the lot's number."""

    def __init__(self, seed: int, number: int, tiles: int) -> None:
        self.number, self.tiles = number, tiles
        self.random = np.random.default_rng((seed, number))
        self.product = _PRODUCTS[int(self.random.choice(3, p=(0.6, 0.3, 0.1)))]
        # Overdispersed, as real lines are: the share of a lot varies by more than chance.
        share = self.random.gamma(4.0, _FAIL_SHARE * self.product.fail_factor / 4.0)
        drawn = self.random.random(BLOCK)
        self.is_failed = drawn < share
        self.is_undecided = drawn > 1 - _UNDECIDED_SHARE
        self.is_audit = self.random.random(BLOCK) < _AUDIT_SHARE
        self.is_reworked = self.is_failed & (self.random.random(BLOCK) < _REWORKED_SHARE)
        columns = int(np.ceil(np.sqrt(tiles * 1.5)))
        self.grid = _pack([(i % columns * 192, i // columns * 192) for i in range(tiles)], "<u2")

    @property
    def reworked(self) -> list[int]:
        """Sequence numbers of plates that come again in the next lot."""
        return [self.number * BLOCK + int(at) + 1 for at in np.flatnonzero(self.is_reworked)]


def block_rows(seed: int, number: int, tiles: int) -> Iterator[Body]:
    """Every row of a lot, in the order in which the station would have sent them."""
    block = Block(seed, number, tiles)
    again = Block(seed, number - 1, tiles).reworked if number else []
    if number % _BLOCKS_A_LIFE == 0:
        yield from _start(number)
    for at in range(BLOCK):
        sequence = number * BLOCK + at + 1
        first = again[at] if at < len(again) else sequence
        yield from _plate(block, at, sequence, first)
    yield from _reviews(block)


def _start(number: int) -> Iterator[Body]:
    at = _time_of(number * BLOCK + 1) - timedelta(minutes=2)
    common = {"station_id": STATION, "boot_id": _BOOT, "written_at": rfc3339(at)}
    yield ChangeBody.model_validate({**common, "what": "start", "who": "station"})
    since = rfc3339(_time_of(number * BLOCK)) if number else None
    yield DowntimeBody.model_validate(
        {**common, "since_at": since, "until_at": rfc3339(at), "reason": "start", "triggers": 0}
    )


def _time_of(sequence: int) -> datetime:
    """When a plate's leading edge was seen: sixteen hours a day, five days a week."""
    day, within = divmod((sequence - 1) * _PERIOD_S, 16 * 3600)
    week, weekday = divmod(int(day), 5)
    return _BEGIN + timedelta(days=7 * week + weekday, seconds=within)


def _shift_of(sequence: int) -> str:
    at = _time_of(sequence)
    return f"{at:%Y-%m-%d} {'early' if (at - _BEGIN).seconds < 8 * 3600 else 'late'}"


def _plate(block: Block, at: int, sequence: int, first: int) -> Iterator[Body]:
    opened_at = _time_of(sequence)
    decided_at, shown_at = (opened_at + timedelta(seconds=s) for s in (1.84, 1.852))
    opened_ns = 10**15 + int(sequence * _PERIOD_S * 1e9)
    name = {"station_id": STATION, "boot_id": _BOOT, "result_id": result_id(STATION, sequence)}
    yield OpenedBody.model_validate(
        {
            **name, "written_at": rfc3339(opened_at), "sequence": sequence,
            "frame_id": sequence * 12, "encoder_value": sequence * 6000,
            "plate_ordinal": sequence, "opened_ns": opened_ns,
        }
    )  # fmt: skip
    body = _result(block, at, sequence, first, opened_ns)
    yield ResultBody.model_validate({**name, "written_at": rfc3339(decided_at), **body})
    yield ActuationBody.model_validate(
        {
            **name, "written_at": rfc3339(shown_at), "command": body["verdict"].lower(),
            "is_confirmed": True, "commanded_ns": opened_ns + 1_851_000_000,
            "shown_ns": opened_ns + 1_855_000_000,
        }
    )  # fmt: skip


def _result(block: Block, at: int, sequence: int, first: int, opened_ns: int) -> dict[str, object]:
    product, random = block.product, block.random
    verdict = Verdict.UNDECIDED if block.is_undecided[at] else Verdict.PASS
    verdict = Verdict.FAIL if block.is_failed[at] else verdict
    scores = random.beta(1.2, 30.0, block.tiles).astype(np.float32)
    defects = _defects(block) if verdict is Verdict.FAIL else []
    for place, defect in enumerate(defects):
        scores[place % block.tiles] = defect.score
    return {
        "sequence": sequence, "plate_ordinal": sequence, "part_id": f"LG{first:09d}",
        "lot": f"L{(first - 1) // BLOCK:05d}", "provenance": Provenance.PRODUCTION,
        "is_simulated": False, "verdict": verdict,
        "reason": Reason.INCOMPLETE if verdict is Verdict.UNDECIDED else None,
        "score": float(scores.max()), "threshold": product.threshold,
        "recipe_id": product.recipe_id, "recipe_version": product.version,
        "recipe_sha256": product.sha, "configuration_sha256": "d4" * 32,
        "model_id": "lightdefectnet-v3", "model_sha256": "e5" * 32,
        "runtime": "onnxruntime 1.20.1 fp32 Intel(R) Xeon(R) Processor @ 2.80GHz",
        "camera_serial": "SP-12000456", "camera_features_sha256": "f6" * 32,
        "flat_field_id": "ff-20260104", "flat_field_sha256": "07" * 32,
        "opened_ns": opened_ns, "last_scan_line_ns": opened_ns + 1_800_000_000,
        "decided_ns": opened_ns + 1_840_000_000, "encoder_value": sequence * 6000,
        "frame_ids": (sequence * 12, sequence * 12 + 8),
        "left_px": 40 + at % 7, "width_px": 2400 + at % 3, "length_px": 1601 + at % 5,
        "skew_deg": round(float(random.normal(0, 0.05)), 3), "tiles": block.tiles,
        "tile_grid": block.grid, "tile_scores": _pack(scores, "<f4"), "defects": defects,
        "is_audit_sample": bool(block.is_audit[at]), "pixels_sha256": random.bytes(32).hex(),
        "shift": _shift_of(sequence),
    }  # fmt: skip


def _defects(block: Block) -> list[DefectBody]:
    """One to four; half of them near the gate, where this mould scratches."""
    random, found = block.random, []
    for _ in range(int(random.integers(1, 5))):
        spread = random.normal((60.0, 40.0), 8.0) if random.random() < 0.5 else None
        x, y = (spread if spread is not None else random.random(2) * _SIDE_MM).clip(1.0, 150.0)
        w, h = random.gamma(2.0, 1.5, 2) + 0.1
        found.append(
            DefectBody(
                x_px=int(x * 10), y_px=int(y * 10), w_px=int(w * 10), h_px=int(h * 10),
                x_mm=round(float(x), 2), y_mm=round(float(y), 2), w_mm=round(float(w), 2),
                h_mm=round(float(h), 2),
                score=float(np.float32(0.62 + 0.38 * random.random())),
            )
        )  # fmt: skip
    return found


def _reviews(block: Block) -> Iterator[Body]:
    """Of failed plates, and of passed ones that were drawn: at the end of the lot."""
    random = block.random
    at = _time_of((block.number + 1) * BLOCK) + timedelta(seconds=3)
    for place in np.flatnonzero(block.is_failed | (block.is_audit & ~block.is_undecided)):
        if not block.is_audit[place] and random.random() > _REVIEWED_SHARE:
            continue
        wrong = _FALSE_REJECT_SHARE if block.is_failed[place] else 1 - _DEFECTIVE_OF_PASSED
        verdict = Verdict.PASS if random.random() < wrong else Verdict.FAIL
        at += timedelta(microseconds=1)
        yield ReviewBody(
            station_id=STATION, boot_id=_BOOT, written_at=rfc3339(at),
            result_id=result_id(STATION, block.number * BLOCK + int(place) + 1),
            verdict=verdict, reviewer=str(random.choice(_REVIEWERS)), reason=_WHY[verdict],
        )  # fmt: skip


def _pack(values: object, dtype: str) -> str:
    return base64.b64encode(np.asarray(values, dtype).tobytes()).decode()


def make(directory: Path, plates: int, seed: int, tiles: int) -> None:
    """Write until the log has this many plates, rounded up to whole lots."""
    began = time.monotonic()
    with Store(directory) as store:
        while store.lag:
            store.catch_up()
        first = store.last_sequence() // BLOCK
        for number in range(first, -(-plates // BLOCK)):
            store.append(list(block_rows(seed, number, tiles)))
            rate = (number + 1 - first) * BLOCK / (time.monotonic() - began)
            print(f"\r{(number + 1) * BLOCK} plates, {rate:.0f} plates/s ", end="", file=sys.stderr)
        print(file=sys.stderr)
        print(f"{directory}: {store.last_sequence()} plates, {store.head()[0]} rows, seed {seed}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--plates", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--tiles", type=int, default=25)
    given = parser.parse_args()
    make(given.directory, given.plates, given.seed, given.tiles)


if __name__ == "__main__":
    main()
