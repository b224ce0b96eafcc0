"""`vqi model explore`: design exploration under constraints, its report, and the found network."""

from __future__ import annotations

import os
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Annotated

import typer

from station.cli.common import JsonOption, fail, print_json
from station.cli.model_options import needs_train_extra

explore_app = typer.Typer(
    invoke_without_command=True, help="Search for a better network under the constraints."
)
OutOption = Annotated[
    Path, typer.Option(help="Folder of the exploration: its logs, picture and report.")
]
_OUT = Path("var/explore")
_OtherOption = Annotated[
    list[str] | None,
    typer.Option(help="DIR=FRONT_END: another set, for the winner alone; may be repeated."),
]


@explore_app.callback()
def explore_(
    context: typer.Context,
    data: Annotated[
        Path | None, typer.Option(help="The search's own set: folder with labels.csv.")
    ] = None,
    out: OutOption = _OUT,
    other: _OtherOption = None,
    front_end: Annotated[str, typer.Option(help="Of the search: contrast, fine or raw.")] = "fine",
    minutes: Annotated[
        float, typer.Option(min=0.0, help="Then it stops; the same command goes on.")
    ] = 600.0,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Trainings at once. [one a core]")
    ] = None,
    trainings: Annotated[int, typer.Option(min=1, help="Short trainings of each arm.")] = 32,
    candidates: Annotated[
        int,
        typer.Option(min=2, help="Networks to time and score at least; refused ones don't count."),
    ] = 200,
    epochs: Annotated[int, typer.Option(min=1, help="Of a short training.")] = 10,
    folds: Annotated[int, typer.Option(min=2, help="Of a short training.")] = 2,
    seed: Annotated[int, typer.Option(min=0)] = 1,
) -> None:
    """Search, train the finalists in full, and write the report; a killed one goes on."""
    if context.invoked_subcommand is not None:
        return
    if data is None:
        fail("nothing to explore on: give --data DIR, or a command (report, emit)", 2)
    with needs_train_extra():
        from models.training.data import DataError
        from models.training.explore.log import LogError
        from models.training.explore.publish import write_report
        from models.training.explore.searching import Plan
        from models.training.explore.whole import Whole, parse_other, run
        from models.training.front_end import FRONT_ENDS

        if front_end not in FRONT_ENDS:
            fail(f"--front-end {front_end}: one of {', '.join(FRONT_ENDS)} wanted", 2)
        try:
            others = [parse_other(text) for text in other or []]
        except ValueError as error:
            fail(f"--other {error}", 2)
        plan = Plan(
            data=data,
            out=out,
            workers=workers or len(os.sched_getaffinity(0)),
            front_end=front_end,
            epochs=epochs,
            folds=folds,
            seed=seed,
            trainings=trainings,
            candidates=candidates,
        )
        try:
            is_done = run(Whole(plan, others, minutes), lambda text: typer.echo(text, err=True))
            files = write_report(out)
        except BrokenProcessPool:
            fail(f"{out}: a process was killed, perhaps for want of memory; run it again")
        except (DataError, LogError, OSError, ValueError) as error:
            fail(str(error))
    state = "done" if is_done else "not done yet, the same command goes on"
    typer.echo(f"{out}: {state}; {', '.join(str(file) for file in files)}")


@explore_app.command("report")
def report_(
    out: OutOption = _OUT,
    data: Annotated[
        list[Path] | None, typer.Option(help="Where a set lies now, if it was moved.")
    ] = None,
    is_json: JsonOption = False,
) -> None:
    """What was found: against random search and the hand-made network, with the Pareto picture."""
    with needs_train_extra():
        from models.training.data import DataError
        from models.training.explore.log import LogError
        from models.training.explore.publish import read_report, write_report

        try:
            made = read_report(out, data or ())
            files = write_report(out, data or ())
        except (DataError, LogError, OSError, ValueError) as error:
            fail(str(error))
    if is_json:
        print_json(made.row())
        return
    typer.echo(files[0].read_text(), nl=False)


@explore_app.command("emit")
def emit_(
    to: Annotated[
        Path, typer.Option(help="Python file to write; or .json: the spec, for `train --spec`.")
    ],
    out: OutOption = _OUT,
    candidate: Annotated[
        int | None, typer.Option(min=0, help="Its number in the log. [the winner]")
    ] = None,
    name: Annotated[str, typer.Option(help="Of the class.")] = "ExploredNet",
) -> None:
    """Write a found network as one readable file, its layers spelled out; or its spec."""
    if not name.isidentifier():
        fail(f"--name {name}: a Python name wanted", 2)
    if to.exists():
        fail(f"{to}: exists already; name another file", 2)
    with needs_train_extra():
        from models.training.explore.log import LogError
        from models.training.explore.whole import source_of, spec_of

        try:
            is_spec = to.suffix == ".json"
            text = spec_of(out, candidate) if is_spec else source_of(out, candidate, name)
            to.write_text(text)
        except (LogError, OSError, ValueError) as error:
            fail(str(error))
    typer.echo(f"{to}: written")
