"""`vqi model collect`: reviewed plates become a data folder."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from station.cli.common import ConfigOption, JsonOption, fail, load_or_exit, print_json, say
from station.cli.log_options import Since, Until
from station.cli.log_upkeep import Who
from station.record import Provenance


def collect(
    config: ConfigOption,
    out: Annotated[Path, typer.Option(help="Folder to write; there is none of that name yet.")],
    who: Who,
    since: Since = None,
    until: Until = None,
    provenance: Annotated[
        Provenance | None, typer.Option(case_sensitive=False, help="Only of such plates.")
    ] = None,
    per_kind: Annotated[
        int, typer.Option(min=1, help="Training tiles of one kind of defect at most.")
    ] = 200,
    good_per_plate: Annotated[int, typer.Option(min=1, help="Good tiles of one plate.")] = 12,
    test_share: Annotated[
        float | None,
        typer.Option(min=0, max=0.9, help="Parts that only test, beside the audit's. [0.2]"),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the choice where there are more.")] = 1,
    is_json: JsonOption = False,
) -> None:
    """Labelled tiles of the plates that people judged, with provenance, and a row that says so.

    Parts that were drawn for the audit only ever test; so does a fixed share of the others.
    """
    from station.evidence import CollectError, Plan, collect, collected_change, counted
    from station.log_reader import Reader
    from station.qms import StoreError
    from station.signing import SigningError, journal_at_hand

    loaded = load_or_exit(config)
    kinds = provenance and str(provenance)
    plan = Plan(out, since, until, kinds, seed, per_kind, good_per_plate, test_share)
    try:
        # First: who cannot write the row shall not leave a folder that the log does not know.
        with journal_at_hand(loaded.source, loaded.value) as journal:
            with Reader(loaded.value.journal.directory) as reader:
                made = collect(loaded.value, reader, plan)
            row = collected_change(loaded.value.station.id, who, plan, made)
            answer = journal.submit([row])
    except (CollectError, SigningError, StoreError, OSError) as error:
        fail(str(error))
    if not answer["ok"]:
        shutil.rmtree(out)
        fail(f"the log does not take the row, so nothing is kept: {answer['error']}")
    if is_json:
        print_json({**made.as_json(), "row": answer["seq"][0]})
        return
    say(f"{out}: {made.plates} plates, {counted(made.tiles)}; row {answer['seq'][0]}")
    say(f"kinds in train: {counted(made.kinds) or 'none'}; parts: {counted(made.parts)}")
    for one in made.left_out:
        say(f"left out {one['result_id']}: {one['why']}")
    for one in made.near_duplicates:
        say(f"left out {one['file']}: looks like {one['like']} ({one['bits']} bits differ)")
