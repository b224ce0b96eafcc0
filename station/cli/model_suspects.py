"""`vqi model suspects`: labels that several networks doubt."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from station.cli.common import JsonOption, command_line, fail, print_json, say
from station.cli.model_options import needs_train_extra


def suspects(
    data: Annotated[Path, typer.Option(help="Folder with labels.csv, or good/ and defective/.")],
    run: Annotated[
        list[Path] | None,
        typer.Option(help="Runs of `train` on this folder: their out-of-fold scores vote, too."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the report. [var/suspects/...]")
    ] = None,
    share: Annotated[
        float, typer.Option(min=0.001, max=1, help="Of the labels, to be looked at again.")
    ] = 0.05,
    with_test: Annotated[
        bool, typer.Option("--with-test", help="Also labels of the split test; not with --run.")
    ] = False,
    is_json: JsonOption = False,
) -> None:
    """List the labels that are probably wrong, the most suspicious first.

    Classifiers that never saw a tile's label, and the trainings' out-of-fold scores, are held
    against it. Writes suspects.csv, suspects.json and suspects.html, a sheet of pictures.
    """
    if run and with_test:
        fail("--with-test: a run has no out-of-fold scores of the split test; leave one out", 2)
    with needs_train_extra():
        from models.training.data import DataError, data_sha256, labels_of, load_tiles, read_folder
        from models.training.suspects import (
            feature_voters,
            known_samples,
            rank,
            run_voters,
            tables_of,
        )
        from models.training.suspects_report import HTML_FILE, Listed, write_report
        from models.training.train import LEARNED

        folder = out or Path("var/suspects") / data.resolve().name
        try:
            everything = read_folder(data)
            samples = known_samples(data, with_test)
            if not samples:
                raise DataError(f"{data}: no pictures in the splits {' and '.join(LEARNED)}")
            tiles, labels = load_tiles(samples), labels_of(samples)
            voters = feature_voters(tables_of(tiles), labels)
            for one in run or ():
                voters += [voter.of_learned(everything) for voter in run_voters(one, everything)]
            first = max(1, round(share * len(samples)))
            listed = Listed(samples, voters, rank(labels, voters), first)
            made_by = {
                "data": str(data),
                "data_sha256": data_sha256(everything),
                "command": command_line(),
            }
            write_report(folder, f"Labels to look at again: {data.name}", listed, tiles, made_by)
        except (DataError, OSError) as error:
            fail(str(error))
    if is_json:
        for row in listed.rows()[:first]:
            print_json(row)
        return
    told = listed.summary()
    for voter in told["voters"]:
        say(f"{voter['name']}: AUROC {voter['auroc']} out of fold")
    say(
        f"{folder / HTML_FILE}: the first {first} of {len(samples)} labels; about "
        f"{told['estimated_wrong']} may be wrong"
    )
