"""What models in the shadow came to, by the log: for each model, judging model and recipe version
on its own. Nothing is added up over two of them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from sqlalchemy import text

from station.log_reader import Reader
from station.quality import Rate, proportion
from station.record import ShadowBody, Verdict
from station.shadows import STARTED, STOPPED, Register, register
from station.verdict import OF_SCORES

Json = dict[str, Any]
_PASS, _FAIL, _UNDECIDED = Verdict.PASS, Verdict.FAIL, Verdict.UNDECIDED
RISK = (
    (_FAIL, _PASS),
    (_UNDECIDED, _PASS),
    (_FAIL, _UNDECIDED),
    (_PASS, _FAIL),
    (_PASS, _UNDECIDED),
    (_UNDECIDED, _FAIL),
)
"""Flips from the judging model's verdict to the shadow's, the most dangerous first."""
_PAGE = 500
_ROW_AT = text(
    "SELECT seq FROM row WHERE kind = 'change' AND written_at = :at "
    "AND body ->> '$.what' = :what ORDER BY seq LIMIT 1"
)
_RESULTS = text(
    "SELECT result_id, part_id, written_at, verdict, score, model_id, recipe_version FROM plate "
    "WHERE result_id IN (SELECT value FROM json_each(:ids)) ORDER BY seq"
)
_JUDGED = text(
    "SELECT recipe_id, recipe_version, model_id, count(*) AS plates FROM plate "
    "WHERE seq > :first AND seq < :last AND (verdict <> 'UNDECIDED' OR reason IN "
    f"({', '.join(repr(str(reason)) for reason in sorted(filter(None, OF_SCORES)))})) "
    "GROUP BY recipe_id, recipe_version, model_id"
)


@dataclass(frozen=True, slots=True)
class Flip:
    """A plate of which the two models say otherwise."""

    result_id: str
    part_id: str | None
    written_at: str
    verdict: Verdict
    """Of the judging model: what the lamp showed."""
    score: float | None
    shadow_verdict: Verdict
    shadow_score: float | str | None


@dataclass(slots=True)
class Comparison:
    """One model in the shadow against one judging model, by one recipe version."""

    model_id: str
    model_sha256: str
    threshold: float | None
    unsure_above: float | None
    runtime: str
    judging_model_id: str
    judging_model_sha256: str
    judging_threshold: float | None
    recipe_id: str
    recipe_version: int
    recipe_sha256: str
    shadows: set[str] = field(default_factory=set)
    """`started_at` of those that its rows are of."""
    judged: int = 0
    """Plates that the judging model scored by this recipe version while this one was in the
    shadow."""
    shadowed: int = 0
    equal: int = 0
    same_bits: int = 0
    unknown: int = 0
    """Shadowed plates whose result the tables do not have."""
    pairs: Counter[tuple[Verdict, Verdict]] = field(default_factory=Counter)
    flips: list[Flip] = field(default_factory=list)
    took_ms: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)
    cpu_s: float = 0.0
    wall_s: float = 0.0

    @property
    def agreement(self) -> Rate:
        """Of the plates that both judged, the share with the same verdict; exact 95 % interval."""
        return proportion(self.equal, self.shadowed - self.unknown)

    @property
    def share_used(self) -> float | None:
        """Of one core."""
        return self.cpu_s / self.wall_s if self.wall_s else None

    def as_json(self) -> Json:
        plain = ("shadows", "pairs", "flips", "took_ms", "cpu_ms")
        fields = {key: value for key, value in asdict(self).items() if key not in plain}
        agreement = self.agreement
        return {
            **fields,
            "agreement": agreement.value,
            "agreement_low": agreement.interval.low,
            "agreement_high": agreement.interval.high,
            "pairs": {f"{one} to {other}": n for (one, other), n in sorted(self.pairs.items())},
            "took_ms": _spread(self.took_ms),
            "cpu_ms": _spread(self.cpu_ms),
            "share_used": self.share_used,
            "flips": [asdict(flip) for flip in self.flips],
        }


def comparisons(reader: Reader, model: str | None = None) -> list[Comparison]:
    """Of every model that was in the shadow, or of the one of this id or sha256, in the order in
    which they came. Raises `StoreError`."""
    known = register(reader.shadow_changes())
    found: dict[tuple[Any, ...], Comparison] = {}
    for row in _rows(reader, model):
        _add(reader, _of(row, found), row)
    _count_judged(reader, known, model, found)
    for comparison in found.values():
        comparison.flips.sort(key=_risk)
    return list(found.values())


def _rows(reader: Reader, model: str | None) -> Iterator[ShadowBody]:
    for body in reader.bodies("shadow"):
        if model in (None, body["model_id"], body["model_sha256"]):
            yield ShadowBody.of_log(body)


def _of(row: ShadowBody, found: dict[tuple[Any, ...], Comparison]) -> Comparison:
    names = (
        *("model_id", "model_sha256", "threshold", "unsure_above", "runtime"),
        *("judging_model_id", "judging_model_sha256", "judging_threshold"),
        *("recipe_id", "recipe_version", "recipe_sha256"),
    )
    values = tuple(getattr(row, name) for name in names)
    return found.setdefault(values, Comparison(*values))


def _add(reader: Reader, to: Comparison, row: ShadowBody) -> None:
    ids = json.dumps([plate.result_id for plate in row.plates])
    results = {line.result_id: line for line in reader.ask(_RESULTS.bindparams(ids=ids))}
    to.shadows.add(row.started_at)
    to.cpu_s, to.wall_s = to.cpu_s + row.cpu_s, to.wall_s + row.wall_s
    for plate in row.plates:
        to.shadowed += 1
        to.same_bits += plate.is_same_bits
        to.took_ms.append(plate.took_ms)
        to.cpu_ms.append(plate.cpu_ms)
        result = results.get(plate.result_id)
        if result is None:
            to.unknown += 1
            continue
        verdict = Verdict(result.verdict)
        to.pairs[verdict, plate.verdict] += 1
        to.equal += verdict is plate.verdict
        if verdict is not plate.verdict:
            score = plate.model_dump(mode="json")["score"]
            to.flips.append(
                Flip(
                    plate.result_id,
                    result.part_id,
                    result.written_at,
                    verdict,
                    result.score,
                    plate.verdict,
                    score,
                )
            )


def _count_judged(
    reader: Reader,
    known: Register,
    model: str | None,
    found: dict[tuple[Any, ...], Comparison],
) -> None:
    """How many plates there were to shadow, also where none was. The tables know a recipe by its
    id and version, and a model by its id."""
    for shadow in known.shadows:
        if model not in (None, shadow.model_id, shadow.sha256):
            continue
        first = _seq_of(reader, STARTED, shadow.started_at)
        last = _seq_of(reader, STOPPED, shadow.stopped_at) if shadow.stopped_at else 2**62
        for line in reader.ask(_JUDGED.bindparams(first=first, last=last)):
            key = (line.recipe_id, line.recipe_version, line.model_id)
            same = [each for each in found.values() if _key(each, shadow.sha256) == key]
            # Its rows name the limits and the runtime that it judged with: those of its precision.
            own = [each for each in same if shadow.started_at in each.shadows]
            limits = shadow.threshold, shadow.unsure_above
            own = own or [each for each in same if (each.threshold, each.unsure_above) == limits]
            if not own:
                none = Comparison(
                    shadow.model_id, shadow.sha256, *limits,
                    "", line.model_id, "", None, line.recipe_id, line.recipe_version, "",
                )  # fmt: skip
                found[(shadow.sha256, *limits, *key)] = none
                own = [none]
            for each in own:
                each.judged += line.plates


def _key(comparison: Comparison, sha256: str) -> tuple[str, int, str] | None:
    if comparison.model_sha256 != sha256:
        return None
    return comparison.recipe_id, comparison.recipe_version, comparison.judging_model_id


def _seq_of(reader: Reader, what: str, at: str) -> int:
    found: Sequence[Any] = reader.ask(_ROW_AT.bindparams(at=at, what=what))
    return int(found[0].seq)


def _risk(flip: Flip) -> tuple[int, float, str]:
    """What the judging model was surest of comes first."""
    place = RISK.index((flip.verdict, flip.shadow_verdict))
    return place, -(flip.score if flip.score is not None else 0.0), flip.result_id


def _spread(values: Iterable[float]) -> Json:
    """Median, 99th percentile and largest."""
    some = list(values)
    if not some:
        return {"p50": None, "p99": None, "max": None}
    p50, p99 = np.percentile(some, [50, 99]).tolist()
    return {"p50": round(p50, 1), "p99": round(p99, 1), "max": max(some)}
