"""What must be shown of another model before it may judge. The recipe in force says what
(`[promotion] evidence`); rows of the log show it. Pure: rows in, what is missing out; the journal
process refuses the approval and the activation of a version that it is missing of. A roll-back goes
to what judged before and needs none.

Who writes which row: docs/promotion.md.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from station.config import Evidence, PromotionRecipe
from station.recipes import ACTIVATED, APPROVED, Register, is_rollback, name_of
from station.record import ChangeBody

GATE = "model_gate"
"""Figures that `vqi model gate` measured, of one kind of evidence: `AUDIT`, `PRECISION` or
`LIMIT_SAMPLES`."""
AUDIT, PRECISION = "audit", "precision"
COMPARED, SIGNED = "model_compared", "model_flip_signed"
LIMIT_SAMPLES = "limit_samples"
"""Also a row of its own: what came of showing them to the model that judges."""
SHADOWED = "shadowed"
"""No row of its own: how many plates rows of kind `shadow` name, for each pair of models."""
LEAST_SAMPLE = 59
"""Of flips from FAIL to PASS, where not each is signed: none of so many drawn at random is an
escape, so fewer than one in twenty is (0.95 ** 59 < 0.05)."""

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Judging:
    """As much of a recipe's version as evidence is about."""

    name: str
    model_sha256: str
    threshold: float
    asks: PromotionRecipe
    """Of the version after it that has another model, or looser limits."""
    unsure_above: float | None = None
    samples_sha256: str | None = None
    """Of the list of limit samples that the version names."""

    @property
    def passes_below(self) -> float:
        """Plates whose highest score is not above it pass."""
        unsure = self.unsure_above
        return self.threshold if unsure is None else min(unsure, self.threshold)

    def needs_none_after(self, active: Judging) -> bool:
        """Whether it is the active model with the same limits, or stricter ones: it passes nothing,
        and leaves nothing UNDECIDED that would fail, which the active version does not."""
        is_looser = self.threshold > active.threshold or self.passes_below > active.passes_below
        return self.model_sha256 == active.model_sha256 and not is_looser


@dataclass(frozen=True, slots=True)
class Shown:
    """One kind of evidence; `problem` is empty where rows show it."""

    kind: Evidence
    problem: str
    words: str = ""
    """What they show."""


def judging(name: str, table: Row) -> Judging:
    """Of a version's TOML table whose `[model]` is bound."""
    model = table["model"]
    asks = PromotionRecipe.model_validate(table.get("promotion", {}))
    unsure = model.get("unsure_above")
    return Judging(
        name,
        str(model["sha256"]),
        float(model["threshold"]),
        asks,
        None if unsure is None else float(unsure),
        table.get("limit_samples", {}).get("sha256"),
    )


def objection(
    known: Register, row: Row, configured: Callable[[], Judging], rows: Callable[[], Sequence[Row]]
) -> str:
    """Why evidence forbids this approval or activation; empty if it does not. `configured`: what
    judges where the log names nothing; `rows`: `model_changes` of the log."""
    if row["what"] not in (APPROVED, ACTIVATED) or is_rollback(row):
        return ""
    version = known.versions.get(name_of(row["detail"]["id"], int(row["detail"]["version"])))
    if version is None or version.sha256 == known.active_sha256 or not version.is_bound:
        return ""
    active = judging(known.active.name, known.active.table) if known.active else configured()
    wanted = judging(version.name, version.table)
    if wanted.needs_none_after(active) or not active.asks.evidence:
        return ""
    lacking = [one for one in evidence(active, wanted, rows()) if one.problem]
    return "; ".join(f"{wanted.name}: {one.kind}: {one.problem}" for one in lacking)


def evidence(active: Judging, wanted: Judging, rows: Sequence[Row]) -> list[Shown]:
    """What the active version asks for, and what rows show of it."""
    shown: dict[Evidence, Callable[[], Shown]] = {
        "limit_samples": lambda: _samples(active, wanted, rows),
        "audit": lambda: _gate("audit", wanted, rows),
        "precision": lambda: _gate("precision", wanted, rows),
        "compare": lambda: _compared(active, wanted, rows),
        "shadow": lambda: _shadowed(active, wanted, rows),
    }
    return [shown[kind]() for kind in active.asks.evidence]


def gate_change(
    station_id: str, which: str, wanted: Judging, figures: Mapping[str, str], who: str
) -> ChangeBody:
    """The row of figures; `figures["problem"]` says why they do not do."""
    detail = {
        "set": which,
        "recipe": wanted.name,
        "model_sha256": wanted.model_sha256,
        "threshold": repr(wanted.threshold),
        **({} if wanted.unsure_above is None else {"unsure_above": repr(wanted.unsure_above)}),
        **figures,
    }
    return ChangeBody(station_id=station_id, what=GATE, who=who, detail=detail)


# --- each kind ------------------------------------------------------------------------------------


def _is_of(detail: Row, wanted: Judging, prefix: str = "") -> bool:
    """Whether a row is of this model with these limits."""
    if detail.get(f"{prefix}sha256") != wanted.model_sha256:
        return False
    limits = prefix.removeprefix("model_")
    unsure = detail.get(f"{limits}unsure_above")
    return (
        _number(detail.get(f"{limits}threshold")) == wanted.threshold
        and (None if unsure is None else _number(unsure)) == wanted.unsure_above
    )


def _number(text: Any) -> float:
    try:
        return float(text)
    except (TypeError, ValueError):
        return math.nan


def _of(rows: Iterable[Row], what: str) -> list[Row]:
    return [row["detail"] for row in rows if row["what"] == what]


def _gate(kind: Evidence, wanted: Judging, rows: Sequence[Row]) -> Shown:
    said = [one for one in map(_measured, rows) if one.get("set") == kind]
    said = [one for one in said if _is_of(one, wanted, "model_")]
    if not said:
        return Shown(kind, f"nothing measured yet: `vqi model gate {wanted.name}`")
    return Shown(kind, str(said[-1].get("problem", "")), str(said[-1].get("words", "")))


def _samples(active: Judging, wanted: Judging, rows: Sequence[Row]) -> Shown:
    """Of the active version's own list, where it names one: others could be chosen to suit."""
    listed = active.samples_sha256
    shown = [one for one in rows if listed is None or one["detail"].get("samples_sha256") == listed]
    found = _gate("limit_samples", wanted, shown)
    if shown == rows or not found.problem or listed is None:
        return found
    return replace(found, problem=f"{found.problem} (of the list of {active.name}, {listed[:12]})")


def _measured(row: Row) -> Row:
    """A row of figures; limit samples that a station has shown to this model count as well."""
    if row["what"] == GATE:
        return dict(row["detail"])
    if row["what"] != LIMIT_SAMPLES:
        return {}
    detail = dict(row["detail"])
    is_passed = detail.get("passed") == "yes"
    problem = "" if is_passed else detail.get("problem") or "not as they should"
    return {**detail, "set": LIMIT_SAMPLES, "problem": problem, "words": "as they should"}


def _compared(active: Judging, wanted: Judging, rows: Sequence[Row]) -> Shown:
    said = [
        one
        for one in _of(rows, COMPARED)
        if _is_of(one, active, "a_") and _is_of(one, wanted, "b_")
    ]
    if not said:
        return Shown("compare", f"not compared with {active.name}: `vqi model compare`")
    last = said[-1]
    signed = [one for one in _of(rows, SIGNED) if one["comparison"] == last["report_sha256"]]
    problem = _unsigned(last, signed)
    flips = f"{len(json.loads(last['to_sign']))} to PASS"
    return Shown("compare", problem, f"{last['plates']} plates, {flips}, all accounted for")


def _unsigned(compared: Row, signed: Sequence[Row]) -> str:
    """Why nothing may rest on a comparison yet."""
    opinions = {name: one["opinion"] for one in signed for name in json.loads(one["result_ids"])}
    flips: list[str] = json.loads(compared["to_sign"])
    confirmed = set(json.loads(compared["confirmed"]))
    if not int(compared["plates"]):
        return "no plate could be replayed"
    if int(compared["differing"]):
        return f"{compared['differing']} plates did not come out as they were recorded"
    if escapes := [name for name in flips if opinions.get(name) == "escape"]:
        return f"{escapes[0]}: called an escape ({len(escapes)} in all)"
    drawable = len(flips) - len(confirmed.intersection(flips))
    largest = max((int(one.get("sample", "0")) for one in signed), default=0)
    is_covered = largest >= min(LEAST_SAMPLE, drawable)
    left = [name for name in flips if name not in opinions]
    left = [name for name in left if name in confirmed or not is_covered]
    return f"{left[0]}: to PASS, not signed ({len(left)} in all)" if left else ""


def _shadowed(active: Judging, wanted: Judging, rows: Sequence[Row]) -> Shown:
    said = [
        one
        for one in _of(rows, SHADOWED)
        if one.get("judging_model_sha256") == active.model_sha256 and _is_of(one, wanted, "model_")
    ]
    plates = sum(int(one["plates"]) for one in said)
    least = active.asks.shadow_plates
    problem = f"{plates} plates beside {active.name}, {least} asked for" if plates < least else ""
    return Shown("shadow", problem, f"{plates} plates in the shadow of {active.name}")
