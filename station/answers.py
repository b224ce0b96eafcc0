"""What the log answers QA: rates, rankings, charts and maps. Commands and pages share it, so that
both say the same figures under the same names.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from station.config import load_recipe
from station.log_reader import Reader, judged
from station.questions import (
    Questions,
    Selection,
    audit_select,
    defect_counts_select,
    defects_select,
    open_samples_select,
    reviewed_select,
    size_number,
    zone_number,
)
from station.record import Reason, Verdict
from station.tables import DEFECT

if TYPE_CHECKING:
    from station.charts import Group
    from station.quality import Rate, Tally

Json = dict[str, Any]
Size = tuple[float, float]
"""Of a plate, mm: crossweb, downweb."""

STRATUM = ("recipe", "recipe_version", "provenance")
"""Plates of one recipe, drawn at one rate, are not pooled with others."""
PLACES = (DEFECT.c.x_mm, DEFECT.c.y_mm)
_DECIDED = (Verdict.PASS, Verdict.FAIL)
_OPEN_SAMPLE = ("seq", "result_id", "written_at", "part_id", "lot", "recipe_id")
_ARRAYS = ("tile_grid", "tile_scores")


# --- plates -------------------------------------------------------------------------------------


def bodies(reader: Reader, page: Sequence[Any]) -> Iterator[Json]:
    """Result bodies of lines of `plate`, with their `seq` and what their reviews come to."""
    found = reader.bodies_at([line.seq for line in page])
    reviews = reader.reviews_of([line.result_id for line in page])
    for line in page:
        row = {"seq": line.seq, **found[line.seq]}
        yield {**row, "review": judged([row, *reviews.get(line.result_id, ())])}


def without_arrays(row: Json) -> Json:
    return {key: value for key, value in row.items() if key not in _ARRAYS}


# --- Pareto -------------------------------------------------------------------------------------


class Of(StrEnum):
    """What a Pareto counts."""

    REASON = "reason"
    KIND = "kind"
    SIZE = "size"
    ZONE = "zone"


def reasons(reader: Reader, selection: Selection) -> Counter[str]:
    """A plate that failed has no reason but its defects."""
    counts = Counter[str]()
    for row in Questions(reader.ask).counts(selection, "verdict", "reason"):
        if row.verdict != Verdict.PASS:
            counts[row.reason or "defects"] += row.plates
    return counts


def defects(reader: Reader, selection: Selection, of: Of, recipe: str | None) -> Counter[str]:
    """Of which kind, size or zone; `recipe` is the file of the active one. Raises `ConfigError`."""
    size_mm = (0.0, 0.0)
    if of is Of.ZONE:
        places = () if recipe else reader.ask(defects_select(selection, *PLACES))
        size_mm = plate_size_mm(recipe, places)
    return defects_on(reader, selection, of, size_mm)


def defects_on(reader: Reader, selection: Selection, of: Of, size_mm: Size) -> Counter[str]:
    """As `defects`, on plates of a size."""
    from station.quality import SIZE_CLASSES_MM, SIZE_NAMES, ZONE_NAMES

    if of is Of.KIND:
        rows = reader.ask(defect_counts_select(selection, DEFECT.c.kind))
        return Counter({row.key or "not named": row.defects for row in rows})
    is_size = of is Of.SIZE
    key = size_number(SIZE_CLASSES_MM) if is_size else zone_number(size_mm)
    names = SIZE_NAMES if is_size else ZONE_NAMES
    rows = reader.ask(defect_counts_select(selection, key))
    return Counter({"unknown" if row.key < 0 else names[row.key]: row.defects for row in rows})


def plate_size_mm(recipe: str | None, rows: Sequence[Any]) -> Size:
    """Of the active recipe's plate; where none is named, what the defects need. Raises
    `ConfigError`."""
    from station.quality import extent_mm

    if recipe is None:
        places = ((row.x_mm, row.y_mm) for row in rows)
        return extent_mm((x, y) for x, y in places if x is not None and y is not None)
    plate = load_recipe(recipe).value.plate
    return plate.width_mm, plate.length_mm


# --- charts -------------------------------------------------------------------------------------


class By(StrEnum):
    """Which plates make one point."""

    HOUR = "hour"
    SHIFT = "shift"
    DAY = "day"


class ChartKind(StrEnum):
    P = "p"
    U = "u"


def groups(reader: Reader, selection: Selection, kind: ChartKind, by: By) -> list[Group]:
    """In order of time."""
    from station.charts import Group

    keys = ("hour", "shift") if by is By.SHIFT else (by.value,)
    rows = Questions(reader.ask).counts(selection, *keys, "verdict")
    sizes, counts = Counter[str](), Counter[str]()
    # By hour first: the names of shifts have an order of their own.
    for row in sorted((row for row in rows if row.verdict in _DECIDED), key=lambda row: row[0]):
        label = getattr(row, by.value)
        sizes[label] += row.plates
        is_failed = row.verdict == Verdict.FAIL
        counts[label] += row.defects if kind is ChartKind.U else row.plates * is_failed
    return [Group(label, size, counts[label]) for label, size in sizes.items()]


# --- yield --------------------------------------------------------------------------------------


def yields(reader: Reader, selection: Selection) -> Iterator[Json]:
    """First-pass yield by recipe, version and provenance; plates without a known attempt have a row
    of their own."""
    by = (*STRATUM, "attempt", "verdict", "reason")
    return _yields(Questions(reader.ask).counts(selection, *by))


def _yields(rows: Sequence[Any]) -> Iterator[Json]:
    from station.quality import proportion

    tallies: defaultdict[tuple[Any, ...], Counter[str]] = defaultdict(Counter)
    for row in rows:
        if row.attempt <= 1 and row.reason != Reason.GAP:
            key = (row.recipe, row.recipe_version, row.provenance, row.attempt or None)
            tallies[key][row.verdict] += row.plates
    for key, counts in sorted(tallies.items(), key=str):
        rate = proportion(counts[Verdict.PASS], counts.total())
        yield {
            **dict(zip((*STRATUM, "attempt"), key, strict=True)),
            "plates": counts.total(),
            **{verdict.value.lower(): counts[verdict] for verdict in Verdict},
            **_rate("yield", rate),
        }


def _rate(name: str, rate: Rate) -> Json:
    interval = rate.interval
    return {name: rate.value, f"{name}_low": interval.low, f"{name}_high": interval.high}


# --- quality ------------------------------------------------------------------------------------


Judged = tuple[str, int, str, str, int]
"""Stratum, what was counted, and how many."""


def judged_plates(reader: Reader, part: Selection) -> list[Judged]:
    """Audit samples and FAILs, by what a person said of them."""
    return [
        (
            row.recipe,
            row.recipe_version,
            row.provenance,
            f"{name} {row.reviewed_verdict}",
            row.plates,
        )
        for select, name in ((audit_select, "audit"), (_reviewed_fails, "fail"))
        for row in reader.ask(select(part, STRATUM))
    ]


def qualities(
    reader: Reader,
    selection: Selection,
    judged_of: Callable[[Reader, Selection], Iterable[Judged]] = judged_plates,
) -> Iterator[Json]:
    """What reviews say of the verdicts, by recipe and rate of the audit, each with its interval at
    95 %. `judged_of`: who may know `judged_plates` already."""
    shares = _shares(reader)
    tallies: defaultdict[tuple[Any, ...], Counter[str]] = defaultdict(Counter)
    for part, drawn_at in _parts(selection, shares):
        for row in (*_verdicts(reader, part), *judged_of(reader, part)):
            key = (row[0], row[1], row[2])
            rate = drawn_at.get((row[0], row[1]))
            tallies[*key, rate][row[3]] += row[4]
    for key, counts in sorted(tallies.items(), key=str):
        yield {**dict(zip((*STRATUM, "audit_share"), key, strict=True)), **_measures(counts)}


Drawn = dict[tuple[str, int], float]
"""The rate at which plates of a recipe and version are drawn."""


def _shares(reader: Reader) -> list[tuple[str, Drawn]]:
    """When rates changed, and what they are from then on."""
    found: list[tuple[str, Drawn]] = [("", {})]
    known: Drawn = {}
    for body in reader.bodies("audit_seed"):
        recipe = (body["recipe_id"], body["recipe_version"])
        is_change = known.get(recipe, body["share"]) != body["share"]
        known = {**known, recipe: body["share"]}
        if is_change:
            found.append((body["written_at"], known))
        else:
            found[-1] = (found[-1][0], known)
    return found


def _parts(
    selection: Selection, shares: list[tuple[str, Drawn]]
) -> Iterable[tuple[Selection, Drawn]]:
    """The selection in parts of which each has one rate for each recipe."""
    ends = [since for since, _ in shares[1:]] + ["9999"]
    for (since, drawn_at), until in zip(shares, ends, strict=True):
        part = replace(
            selection,
            since=max(since, selection.since or "") or None,
            until=min(until, selection.until or "9999"),
        )
        if (part.since or "") < (part.until or ""):
            until_or_none = None if part.until == "9999" else part.until
            yield replace(part, until=until_or_none), drawn_at


def _verdicts(reader: Reader, part: Selection) -> Iterable[Judged]:
    for row in Questions(reader.ask).counts(part, *STRATUM, "verdict"):
        yield row.recipe, row.recipe_version, row.provenance, row.verdict, row.plates


def _reviewed_fails(selection: Selection, by: Sequence[str]) -> Any:
    return reviewed_select(replace(selection, verdict=Verdict.FAIL.value), by)


def _measures(counts: Counter[str]) -> Json:
    from station.quality import Tally

    tally = Tally(
        passed=counts["PASS"],
        failed=counts["FAIL"],
        audited=counts["audit PASS"] + counts["audit FAIL"],
        audited_defective=counts["audit FAIL"],
        reviewed_fails=counts["fail PASS"] + counts["fail FAIL"],
        confirmed_fails=counts["fail FAIL"],
    )
    return {
        **asdict(tally),
        "undecided": counts["UNDECIDED"],
        "audit_open": counts["audit None"] + counts["audit UNDECIDED"],
        **_rates(tally),
    }


def _rates(tally: Tally) -> Json:
    return {
        **_rate("outgoing_defect_rate", tally.outgoing_defect_rate()),
        **_rate("overruled_share", tally.overruled_share()),
        **_rate("escape_rate", tally.escape_rate()),
    }


def open_samples(reader: Reader, selection: Selection, limit: int) -> list[Json]:
    """Passed plates that were drawn and that nobody has judged yet, oldest first."""
    rows = reader.ask(open_samples_select(selection, limit))
    return [{name: getattr(row, name) for name in _OPEN_SAMPLE} for row in rows]
