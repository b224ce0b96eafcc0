"""What must be shown of another model before it may judge. The recipe in force says what
(`[promotion] evidence`); rows of the log show it. Pure: rows in, what is missing out; the journal
process refuses the approval and the activation of a version that it is missing of. A roll-back goes
to what judged before and needs none.

Who writes which row: docs/promotion.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from station import comparisons
from station.comparisons import Comparison, Side
from station.config import Evidence, PromotionRecipe
from station.recipes import ACTIVATED, APPROVED, Register, is_rollback, name_of
from station.record import ChangeBody

GATE = "model_gate"
"""Figures that `vqi model gate` measured, of one kind of evidence: `AUDIT`, `PRECISION` or
`LIMIT_SAMPLES`."""
AUDIT, PRECISION = "audit", "precision"
CHOSEN = "model_threshold"
"""How a promotion's threshold was chosen."""
LIMIT_SAMPLES = "limit_samples"
"""Also a row of its own: what came of showing them to the model that judges."""
SHADOWED = "shadowed"
"""No row of its own: how many plates of a recipe rows of kind `shadow` name, for each pair of
models and their limits."""

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
    def recipe_id(self) -> str:
        return self.name.rpartition("@")[0]

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
        "audit": lambda: _beside("audit", active, wanted, rows),
        "precision": lambda: _beside("precision", active, wanted, rows),
        "compare": lambda: _compared(active, wanted, rows),
        "shadow": lambda: _shadowed(active, wanted, rows),
        "threshold": lambda: _chosen(wanted, rows),
    }
    return [shown[kind]() for kind in active.asks.evidence]


def gate_change(
    station_id: str,
    which: str,
    active: Judging,
    wanted: Judging,
    figures: Mapping[str, str],
    who: str,
) -> ChangeBody:
    """The row of figures, measured beside `active`; `figures["problem"]` says why they do not
    do."""
    detail = {
        "set": which,
        "recipe": wanted.name,
        **_limits(wanted),
        **{f"judging_{key}": value for key, value in _limits(active).items()},
        **figures,
    }
    return ChangeBody(station_id=station_id, what=GATE, who=who, detail=detail)


def _limits(one: Judging) -> dict[str, str]:
    limits = {"model_sha256": one.model_sha256, "threshold": repr(one.threshold)}
    return limits | ({} if one.unsure_above is None else {"unsure_above": repr(one.unsure_above)})


# --- each kind ------------------------------------------------------------------------------------


def _is_of(detail: Row, one: Judging, prefix: str = "") -> bool:
    """Whether a row is of this model with these limits."""
    unsure = detail.get(f"{prefix}unsure_above")
    return (
        detail.get(f"{prefix}model_sha256") == one.model_sha256
        and _number(detail.get(f"{prefix}threshold")) == one.threshold
        and (None if unsure is None else _number(unsure)) == one.unsure_above
    )


def _is_of_product(detail: Row, wanted: Judging) -> bool:
    """Whether figures were measured for a version of this recipe."""
    return str(detail.get("recipe", "")).rpartition("@")[0] == wanted.recipe_id


def _number(text: Any) -> float:
    try:
        return float(text)
    except (TypeError, ValueError):
        return math.nan


def _of(rows: Iterable[Row], what: str) -> list[Row]:
    return [row["detail"] for row in rows if row["what"] == what]


def _figures(kind: Evidence, wanted: Judging, rows: Sequence[Row]) -> list[Row]:
    said = [one for one in map(_measured, rows) if one.get("set") == kind]
    return [one for one in said if _is_of(one, wanted) and _is_of_product(one, wanted)]


def _gate(kind: Evidence, wanted: Judging, rows: Sequence[Row]) -> Shown:
    said = _figures(kind, wanted, rows)
    if not said:
        return Shown(kind, f"nothing measured yet: `vqi model gate {wanted.name}`")
    return Shown(kind, str(said[-1].get("problem", "")), str(said[-1].get("words", "")))


def _beside(kind: Evidence, active: Judging, wanted: Judging, rows: Sequence[Row]) -> Shown:
    """Figures that say nothing without those of the model that judges now."""
    beside = [one for one in rows if _is_of(one["detail"], active, "judging_")]
    found = _gate(kind, wanted, beside)
    if _figures(kind, wanted, beside) or not _figures(kind, wanted, rows):
        return found
    return replace(found, problem=f"{found.problem} (beside {active.name}, which judges now)")


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
    """The last comparison on enough plates of this product. What an earlier one lists is to be
    looked at, too, signed in whichever of them: else it could be made again until its seed draws a
    sample that suits. What anybody called an escape there stands until another person has withdrawn
    it."""
    of_pair = [
        one
        for one in comparisons.register(rows).known.values()
        if _is_side(one.before, active) and _is_side(one.after, wanted)
    ]
    if not of_pair:
        return Shown("compare", f"not compared with {active.name}: `vqi model compare`")
    seen = {name for one in of_pair for name in one.by_result}
    for earlier in of_pair[:-1]:
        if earlier.escapes:
            words = f"{earlier.escapes[0]}: called an escape in {earlier.sha256[:12]}"
            advice = "another person may withdraw it: `vqi model sign-flip`"
            return Shown("compare", f"{words}; {advice}")
        if unseen := [name for name in earlier.to_be_seen if name not in seen]:
            words = f"{len(unseen)} flips of {earlier.sha256[:12]}, compared before, not signed yet"
            return Shown("compare", f"{words}: `vqi model sign-flip`, one by one or by its sample")
    return _compared_last(of_pair[-1], active.asks.compare_plates, wanted.recipe_id)


def _compared_last(last: Comparison, least: int, recipe_id: str) -> Shown:
    plates, flips = last.recipes.get(recipe_id, 0), f"{len(last.to_sign)} to PASS"
    missing = list(last.missing)
    if plates < least:
        missing.append(f"{plates} plates of {recipe_id} compared, {least} asked for")
    return Shown("compare", "; ".join(missing), f"{plates} plates, {flips}, all accounted for")


def _is_side(side: Side, one: Judging) -> bool:
    said = side.sha256, side.threshold, side.unsure_above
    return said == (one.model_sha256, one.threshold, one.unsure_above)


def _shadowed(active: Judging, wanted: Judging, rows: Sequence[Row]) -> Shown:
    said = [
        one
        for one in _of(rows, SHADOWED)
        if one.get("recipe_id") == wanted.recipe_id
        and one.get("judging_model_sha256") == active.model_sha256
        and _number(one.get("judging_threshold")) == active.threshold
        and _is_of(one, wanted)
    ]
    plates = sum(int(one["plates"]) for one in said)
    least = active.asks.shadow_plates
    problem = f"{plates} plates beside {active.name}, {least} asked for" if plates < least else ""
    return Shown("shadow", problem, f"{plates} plates in the shadow of {active.name}")


def _chosen(wanted: Judging, rows: Sequence[Row]) -> Shown:
    """Not for another product, and not the card's, which knows none."""
    said = [
        one
        for one in _of(rows, CHOSEN)
        if one.get("model_sha256") == wanted.model_sha256
        and _number(one.get("threshold")) == wanted.threshold
        and _is_of_product(one, wanted)
    ]
    if not said:
        problem = f"nothing says how {wanted.threshold!r} was chosen: `vqi model promote`"
        return Shown("threshold", problem)
    return Shown("threshold", "", str(said[-1].get("chosen_by", "")))
