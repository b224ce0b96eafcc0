"""The report of an exploration's folder, as files beside its logs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from models.training.explore.figure import draw
from models.training.explore.full import DataSet, Full
from models.training.explore.log import Log
from models.training.explore.report import Report, markdown, report

REPORT_FILE, PICTURE_FILE = "report.md", "pareto.svg"


def read_report(out: Path, folders: Sequence[Path] = ()) -> Report:
    """`folders`: where sets lie now that were elsewhere when their networks were trained, by name.
    Raises `LogError`, `DataError`."""
    log, full = Log.read(out), Full.read(out)
    moved = {folder.resolve().name: folder for folder in folders}
    sets: dict[str, DataSet] = {}
    for row in full.rows.values():
        folder = moved.get(row["set"], Path(row["folder"]))
        sets[row["set"]] = DataSet(folder, row["front_end"])
    own = log.run.get("set")
    return report(log, full, sorted(sets.values(), key=lambda each: each.name != own))


def write_report(out: Path, folders: Sequence[Path] = ()) -> tuple[Path, ...]:
    """Report and picture. Raises `LogError`, `DataError`, OSError."""
    made = read_report(out, folders)
    text, picture = out / REPORT_FILE, out / PICTURE_FILE
    text.write_text(markdown(made))
    if not made.pareto:
        return (text,)
    draw(picture, Log.read(out))
    return text, picture
