"""`vqi log pareto/chart/yield/heat-map/quality/audit`: rates and pictures of what was inspected."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from station.cli.common import JsonOption, fail, load_or_exit, print_json, say
from station.cli.log_options import Config, Journal, open_tables, selecting
from station.config import ConfigError
from station.log_reader import Reader
from station.questions import (
    Questions,
    Selection,
    audit_select,
    defects_select,
    open_samples_select,
    reviewed_select,
)
from station.recipes import active_recipe
from station.record import Reason, Verdict
from station.tables import DEFECT

if TYPE_CHECKING:
    from station.charts import Chart, Group
    from station.quality import Rate, Tally

Json = dict[str, Any]
audit_app = typer.Typer(no_args_is_help=True, help="Passed plates that a person looks at again.")
_STRATUM = ("recipe", "recipe_version", "provenance")
"""Plates of one recipe, drawn at one rate, are not pooled with others."""
_DECIDED = (Verdict.PASS, Verdict.FAIL)
_PLACES = (DEFECT.c.x_mm, DEFECT.c.y_mm)


def register(app: typer.Typer) -> None:
    """Add these commands to `vqi log`."""
    for name, command in (
        ("pareto", pareto),
        ("chart", chart),
        ("yield", yield_),
        ("heat-map", heat_map),
        ("quality", quality),
    ):
        app.command(name)(command)
    app.add_typer(audit_app, name="audit")


def _say(rows: Iterable[Json], is_json: bool) -> None:
    """JSON rows, or a table of them with names above."""
    rows = list(rows)
    if is_json:
        for row in rows:
            print_json(row)
        return
    if not rows:
        typer.echo("no such plates")
        return
    table = [list(rows[0]), *([_shown(value) for value in row.values()] for row in rows)]
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    for line in table:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        say("  ".join(cells).rstrip())


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else ""
    if isinstance(value, list):
        return " ".join(map(str, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _rate(name: str, rate: Rate) -> Json:
    interval = rate.interval
    return {name: rate.value, f"{name}_low": interval.low, f"{name}_high": interval.high}


# --- Pareto -------------------------------------------------------------------------------------


class Of(StrEnum):
    """What `pareto` counts."""

    REASON = "reason"
    KIND = "kind"
    SIZE = "size"
    ZONE = "zone"


@selecting
def pareto(
    selection: Selection,
    of: Annotated[Of, typer.Option(help="Of results: reason. Of defects: the others.")] = Of.REASON,
    config: Config = None,
    journal: Journal = None,
    is_json: JsonOption = False,
) -> None:
    """What most often keeps plates from passing; or of which kind, of which size, in which ninth of
    the plate defects are."""
    from station.quality import pareto as ranked

    with open_tables(config, journal) as reader:
        counts = (
            _reasons(reader, selection)
            if of is Of.REASON
            else _defects(reader, selection, of, config)
        )
    _say(map(asdict, ranked(counts)), is_json)


def _reasons(reader: Reader, selection: Selection) -> Counter[str]:
    """A plate that failed has no reason but its defects."""
    counts = Counter[str]()
    for row in Questions(reader.ask).counts(selection, "verdict", "reason"):
        if row.verdict != Verdict.PASS:
            counts[row.reason or "defects"] += row.plates
    return counts


def _defects(reader: Reader, selection: Selection, of: Of, config: str | None) -> Counter[str]:
    from station.quality import size_class, zone

    columns = {
        Of.KIND: (DEFECT.c.kind,),
        Of.SIZE: (DEFECT.c.w_mm, DEFECT.c.h_mm),
        Of.ZONE: _PLACES,
    }[of]
    rows = reader.ask(defects_select(selection, *columns))
    if of is Of.KIND:
        return Counter(row.kind or "not named" for row in rows)
    if of is Of.SIZE:
        return Counter(size_class(row.w_mm, row.h_mm) for row in rows)
    size_mm = _plate_size_mm(config, rows)
    return Counter(zone(row.x_mm, row.y_mm, size_mm) for row in rows)


def _plate_size_mm(config: str | None, rows: Sequence[Any]) -> tuple[float, float]:
    """Of the active recipe's plate; without a configuration, what the defects need."""
    from station.quality import extent_mm

    if config is None:
        places = ((row.x_mm, row.y_mm) for row in rows)
        return extent_mm((x, y) for x, y in places if x is not None and y is not None)
    try:
        plate = active_recipe(load_or_exit(config).value).value.plate
    except ConfigError as error:
        fail(str(error))
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


@selecting
def chart(
    selection: Selection,
    which: Annotated[ChartKind, typer.Argument(help="p: failed plates; u: defects a plate.")],
    by: Annotated[By, typer.Option(help="Hours and days by UTC.")] = By.HOUR,
    config: Config = None,
    journal: Journal = None,
    is_json: JsonOption = False,
) -> None:
    """Failed plates, or defects a plate, from hour to hour, with limits that chance seldom
    crosses."""
    from station.charts import chart as drawn

    with open_tables(config, journal) as reader:
        groups = _groups(reader, selection, which, by)
    found = drawn(which.value, groups)
    _say((asdict(point) | {"rules": list(point.rules)} for point in found.points), is_json)
    if not is_json:
        typer.echo(_said_of(found))


def _groups(reader: Reader, selection: Selection, kind: ChartKind, by: By) -> list[Group]:
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


def _said_of(found: Chart) -> str:
    parts = [f"centre {found.centre:.6g}", f"limits {found.limits}"]
    if found.sigma_z is not None and found.sigma_z_limit is not None:
        parts.append(f"sigma_z {found.sigma_z:.3f} (chance: up to {found.sigma_z_limit:.3f})")
    if found.false_alarms_per_1000 is not None:
        parts.append(f"{found.false_alarms_per_1000:g} false alarms per 1,000 points in control")
    marked = sum(point.is_out or bool(point.rules) for point in found.points)
    return f"{'; '.join(parts)}; {marked} of {len(found.points)} points marked"


# --- yield --------------------------------------------------------------------------------------


@selecting
def yield_(
    selection: Selection,
    config: Config = None,
    journal: Journal = None,
    is_json: JsonOption = False,
) -> None:
    """First-pass yield by recipe: of serials seen for the first time, those that passed. Plates
    without a known attempt have a row of their own."""
    with open_tables(config, journal) as reader:
        rows = Questions(reader.ask).counts(selection, *_STRATUM, "attempt", "verdict", "reason")
    _say(_yields(rows), is_json)


def _yields(rows: Sequence[Any]) -> Iterable[Json]:
    from station.quality import proportion

    tallies: defaultdict[tuple[Any, ...], Counter[str]] = defaultdict(Counter)
    for row in rows:
        if row.attempt <= 1 and row.reason != Reason.GAP:
            key = (row.recipe, row.recipe_version, row.provenance, row.attempt or None)
            tallies[key][row.verdict] += row.plates
    for key, counts in sorted(tallies.items(), key=str):
        rate = proportion(counts[Verdict.PASS], counts.total())
        yield {
            **dict(zip((*_STRATUM, "attempt"), key, strict=True)),
            "plates": counts.total(),
            **{verdict.value.lower(): counts[verdict] for verdict in Verdict},
            **_rate("yield", rate),
        }


# --- heat map -----------------------------------------------------------------------------------


@selecting
def heat_map(
    selection: Selection,
    out: Annotated[Path | None, typer.Option(help="Write the picture to this PNG file.")] = None,
    cell_mm: Annotated[float, typer.Option(min=0.5, help="Side of a cell.")] = 10.0,
    config: Config = None,
    journal: Journal = None,
    is_json: JsonOption = False,
) -> None:
    """Where on the plate defects lie; cells are named by their left leading corner."""
    from station import heat_map as maps

    with open_tables(config, journal) as reader:
        rows = reader.ask(defects_select(selection, *_PLACES))
        size_mm = _plate_size_mm(config, rows)
    found = maps.heat_map(((row.x_mm, row.y_mm) for row in rows), size_mm, cell_mm)
    if out is not None:
        try:
            maps.write_picture(found, f"{len(rows)} defects, plate in mm, leading edge up", out)
        except OSError as error:
            fail(f"--out {out}: {error.strerror}")
    _say(found.rows(), is_json)
    if not is_json and found.beside:
        typer.echo(
            f"{found.beside} defects lie beside a plate of {size_mm[0]:g} x {size_mm[1]:g} mm"
        )


# --- quality ------------------------------------------------------------------------------------


@selecting
def quality(
    selection: Selection,
    config: Config = None,
    journal: Journal = None,
    is_json: JsonOption = False,
) -> None:
    """What reviews say of the verdicts, by recipe and rate of the audit: defective plates among
    those that passed, good ones among those that failed, and the share of defective plates that
    escape; each with its interval at 95 %."""
    with open_tables(config, journal) as reader:
        rows = list(_qualities(reader, selection))
    if is_json:
        _say(rows, is_json)
        return
    for row in rows:
        for name, value in row.items():
            if not name.endswith(("_low", "_high")):
                typer.echo(f"{name:22} {_shown(value)}{_between(row, name)}")
        typer.echo("")
    if not rows:
        typer.echo("no such plates")


def _between(row: Json, name: str) -> str:
    """A rate's interval, where it has one."""
    if f"{name}_low" not in row:
        return ""
    return f"  ({_shown(row[f'{name}_low'])} to {_shown(row[f'{name}_high'])})"


def _qualities(reader: Reader, selection: Selection) -> Iterable[Json]:
    shares = _shares(reader)
    tallies: defaultdict[tuple[Any, ...], Counter[str]] = defaultdict(Counter)
    for part, drawn_at in _parts(selection, shares):
        for row in _counted(reader, part):
            key = (row[0], row[1], row[2])
            rate = drawn_at.get((row[0], row[1]))
            tallies[*key, rate][row[3]] += row[4]
    for key, counts in sorted(tallies.items(), key=str):
        yield {**dict(zip((*_STRATUM, "audit_share"), key, strict=True)), **_measures(counts)}


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


def _counted(reader: Reader, part: Selection) -> Iterable[tuple[str, int, str, str, int]]:
    """Stratum, what was counted, and how many."""
    for row in Questions(reader.ask).counts(part, *_STRATUM, "verdict"):
        yield row.recipe, row.recipe_version, row.provenance, row.verdict, row.plates
    for select, prefix in ((audit_select, "audit"), (_reviewed_fails, "fail")):
        for row in reader.ask(select(part, _STRATUM)):
            name = f"{prefix} {row.reviewed_verdict}"
            yield row.recipe, row.recipe_version, row.provenance, name, row.plates


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


# --- audit --------------------------------------------------------------------------------------


@audit_app.command("list")
@selecting
def audit_list(
    selection: Selection,
    config: Config = None,
    journal: Journal = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000)] = 50,
    is_json: JsonOption = False,
) -> None:
    """Passed plates that were drawn and that nobody has judged yet, oldest first: please check. A
    review of the result closes it."""
    with open_tables(config, journal) as reader:
        rows = reader.ask(open_samples_select(selection, limit))
    named = ("seq", "result_id", "written_at", "part_id", "lot", "recipe_id", "score")
    _say(({name: getattr(row, name) for name in named} for row in rows), is_json)


@audit_app.command("check")
def audit_check(
    config: Config = None, journal: Journal = None, is_json: JsonOption = False
) -> None:
    """Draw again what revealed seeds drew. Exit status 1 if a sample is not the one drawn."""
    from station.audit_check import audit_findings

    with open_tables(config, journal) as reader:
        found = audit_findings(reader)
    row = {"ok": not found.findings, **asdict(found)}
    if is_json:
        print_json(row)
    else:
        for line in [*found.findings, *(f"note: {note}" for note in found.notes)]:
            say(line)
        typer.echo(
            f"{'ok' if not found.findings else 'NOT OK'}: {found.checked} plates drawn again, "
            f"{found.drawn} in the sample; {found.waiting} wait for their seed, {found.unproven} "
            "were drawn by none that was announced and revealed"
        )
    raise typer.Exit(1 if found.findings else 0)
