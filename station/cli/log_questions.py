"""`vqi log pareto/chart/yield/heat-map/quality/audit`: rates and pictures of what was inspected."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from station.answers import (
    PLACES,
    By,
    ChartKind,
    Of,
    defects,
    groups,
    open_samples,
    plate_size_mm,
    qualities,
    reasons,
    yields,
)
from station.cli.common import JsonOption, exit_on_config_error, fail, load_or_exit, print_json, say
from station.cli.log_options import Config, Journal, open_tables, selecting
from station.log_reader import Reader
from station.questions import Selection, defects_select
from station.recipes import active_recipe

if TYPE_CHECKING:
    from station.charts import Chart

Json = dict[str, Any]
audit_app = typer.Typer(no_args_is_help=True, help="Passed plates that a person looks at again.")


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


# --- Pareto -------------------------------------------------------------------------------------


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
        counts = _counts(reader, selection, of, config)
    _say(map(asdict, ranked(counts)), is_json)


def _counts(reader: Reader, selection: Selection, of: Of, config: str | None) -> Counter[str]:
    if of is Of.REASON:
        return reasons(reader, selection)
    with exit_on_config_error():
        return defects(reader, selection, of, _recipe(config))


def _recipe(config: str | None) -> str | None:
    """The file of the active recipe, where there is a configuration."""
    return None if config is None else active_recipe(load_or_exit(config).value).source


# --- charts -------------------------------------------------------------------------------------


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
        found = drawn(which.value, groups(reader, selection, which, by))
    _say((asdict(point) | {"rules": list(point.rules)} for point in found.points), is_json)
    if not is_json:
        typer.echo(_said_of(found))


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
        rows = list(yields(reader, selection))
    _say(rows, is_json)


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
        rows = reader.ask(defects_select(selection, *PLACES))
        with exit_on_config_error():
            size_mm = plate_size_mm(_recipe(config), rows)
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
        rows = list(qualities(reader, selection))
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
        rows = open_samples(reader, selection, limit)
    _say(rows, is_json)


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
