"""A new product from 20 good and 20 defective plates, and from good plates only.

    python benchmarks/few_shot.py --out var/few-shot [--products staggered coarse] [--draws 3]
    python benchmarks/few_shot.py --out var/few-shot --products goggle_lens --data ../shared/data

`staggered` and `coarse` are rendered: other dots than the shipped weights' plates have. Of
goggle_lens (real lenses) a view of a lens counts as a plate, and folds still hold out whole lenses.
Each draw takes 20 good and 20 defective plates of the training part, trains with `vqi model train
--few-shot`, and is scored on the test part; beside it `vqi model learn-good` on the good ones of a
rendered product. The full-data figure is `vqi model train` on the whole training part (or
--full AUROC, if it is known). Everything stays in --out: a run that was ended goes on there.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from models.training.data import load_tiles, read_folder
from models.training.evaluate import auroc, rate
from models.training.fit import predict
from models.training.train import load_network, read_summary
from station.config import load_recipe
from station.synthesize import LABEL_COLUMNS, LabelledTile, PlateSource, TileFolder

Row = dict[str, str]
DOTS: dict[str, dict[str, Any]] = {
    "staggered": {"dot_pitch_mm": 0.9, "dot_layout": "staggered", "dot_angle_deg": 15.0},
    "coarse": {"dot_pitch_mm": 1.9, "dot_layout": "square", "dot_angle_deg": 30.0},
}
FEW = 20
_PITCH_MM, _SCAN_LINE_PX = 0.1, 1900
_GOOD_OF_GOOD = 12
"""Good tiles that are trained on of each plate; of a defective one as many as it has bad ones, and
two."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path, help="folder that holds goggle_lens")
    parser.add_argument("--products", nargs="+", default=[*DOTS], help="of which")
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--plates", type=int, default=160, help="of the training part, half bad")
    parser.add_argument("--test-plates", type=int, default=100, help="half of them bad")
    parser.add_argument("--seeds", type=int, default=3, help="trainings that are averaged")
    parser.add_argument("--full", type=float, help="AUROC with all data, if it is known")
    parser.add_argument("--only", choices=("few-shot", "good-only"))
    options = parser.parse_args()
    for name in options.products:
        print(json.dumps(measure(name, options)), flush=True)


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    out = options.out.resolve() / name
    if name == "goggle_lens":
        rows, root = lens_rows(options.data.resolve() / name), options.data.resolve() / name
    else:
        rows, root = rendered_rows(name, out / "plates", options), out / "plates"
    result: dict[str, Any] = {"product": name, "draws": options.draws}
    if options.only != "good-only":
        result |= few_shot(rows, root, out, options)
    if options.only != "few-shot" and name != "goggle_lens":
        result |= good_only(rows, root, out, options)
    return result


# --- products: rows of labels.csv with the column `plate` -----------------------------------


def lens_rows(root: Path) -> list[Row]:
    with (root / "labels.csv").open() as file:
        rows = list(csv.DictReader(file))
    return [row | {"plate": Path(row["file"]).stem.rsplit("_x", 1)[0]} for row in rows]


def rendered_rows(name: str, root: Path, options: argparse.Namespace) -> list[Row]:
    """Whole plates, every other one defective; tiles that a defect only touches are in no set."""
    if not (root / "done").exists():
        recipe = load_recipe("shipped:demo-lgp").value
        size = {"width_mm": 150.0, "length_mm": 100.0, "max_length_mm": None}
        plate = recipe.plate.model_copy(update=size | DOTS[name])
        lane = recipe.lane.model_copy(update={"start_mm": 5.0, "end_mm": 185.0})
        recipe = recipe.model_copy(update={"plate": plate, "lane": lane})
        source = PlateSource(recipe, _PITCH_MM, _SCAN_LINE_PX)
        with TileFolder(root) as folder:
            for number in range(options.plates + options.test_plates):
                rng = np.random.default_rng((9000, number))
                tiles = source.plate(rng, number % 2 == 1, 0.0, 1.0)
                split = "train" if number < options.plates else "test"
                for tile in (tile for tile in tiles if tile.label is not None):
                    folder.add(tile, _name(number, tile), split, f"plate{number:05d}", _PITCH_MM)
        (root / "done").touch()
    with (root / "labels.csv").open() as file:
        return [row | {"plate": row["group"]} for row in csv.DictReader(file)]


def _name(number: int, tile: LabelledTile) -> str:
    return f"{number:05d}_{tile.x_px:05d}_{tile.y_px:05d}"


def is_bad(rows: list[Row]) -> dict[str, bool]:
    """Of each plate."""
    found: dict[str, bool] = {}
    for row in rows:
        found[row["plate"]] = found.get(row["plate"], False) or row["label"] == "1"
    return found


def drawn(rows: list[Row], draw: int) -> set[str]:
    """20 good and 20 defective plates of the training part."""
    plates = is_bad([row for row in rows if row["split"] == "train"])
    rng = np.random.default_rng((draw, 20))
    names = np.array(sorted(plates))
    bad = np.array([plates[name] for name in names.tolist()])
    return {str(n) for c in (False, True) for n in rng.choice(names[bad == c], FEW, replace=False)}


def thinned(rows: list[Row], plates: set[str], seed: int) -> Iterator[Row]:
    """All bad tiles of these plates and some good ones; of real lenses all there are."""
    rng = np.random.default_rng(seed)
    for plate in sorted(plates):
        own = [row for row in rows if row["plate"] == plate]
        good = [row for row in own if row["label"] == "0"]
        bad = [row for row in own if row["label"] == "1"]
        wanted = min(len(good), len(bad) + 2 if bad else _GOOD_OF_GOOD)
        yield from bad
        yield from (good[i] for i in sorted(rng.choice(len(good), wanted, replace=False)))


def write_set(folder: Path, root: Path, rows: list[Row]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "labels.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, LABEL_COLUMNS, restval="", extrasaction="ignore")
        table.writeheader()
        for row in rows:
            table.writerow(row | {"file": os.path.relpath(root / row["file"], folder)})
    return folder


# --- with 20 good and 20 defective plates ---------------------------------------------------


def few_shot(rows: list[Row], root: Path, out: Path, options: argparse.Namespace) -> dict[str, Any]:
    test = [row for row in rows if row["split"] == "test"]
    areas = []
    for draw in range(options.draws):
        few = [row for row in thinned(rows, drawn(rows, draw), draw) if row["split"] == "train"]
        data = write_set(out / f"few-{draw}", root, few + test)
        run = out / f"run-few-{draw}"
        vqi("train", "--data", data, "--out", run, "--few-shot", "--seeds", options.seeds)
        found = evaluated(data, run)
        areas.append(found["auroc"]["value"])
        say(f"{out.name}, draw {draw}: {len(few)} tiles, AUROC {areas[-1]:.4f}")
    full = options.full or full_data(rows, root, out)
    found = interval(areas)
    return {
        "auroc": [round(area, 4) for area in areas],
        "full_auroc": full,
        "share": [round(value / full, 4) for value in found],
        "chance_corrected_share": round((found[0] - 0.5) / (full - 0.5), 4),
    }


def full_data(rows: list[Row], root: Path, out: Path) -> float:
    plates = set(is_bad([row for row in rows if row["split"] == "train"]))
    known = [row for row in thinned(rows, plates, 0) if row["split"] == "train"]
    data = write_set(out / "full", root, known + [row for row in rows if row["split"] == "test"])
    vqi("train", "--data", data, "--out", out / "run-full", "--seeds", 1)
    area = float(evaluated(data, out / "run-full")["auroc"]["value"])
    say(f"{out.name}, all {len(known)} tiles: AUROC {area:.4f}")
    return area


def interval(values: list[float]) -> tuple[float, ...]:
    """Mean and its 95 % interval over draws (Student's t); of one draw there is none."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return (mean,)
    reach = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
    return mean, mean - reach, mean + reach


# --- with good plates only ------------------------------------------------------------------


def good_only(
    rows: list[Row], root: Path, out: Path, options: argparse.Namespace
) -> dict[str, Any]:
    """Whole good plates to learn from, whole test plates to judge."""
    plates = is_bad(rows)
    test = [row for row in rows if row["split"] == "test"]
    found: list[dict[str, Any]] = []
    for draw in range(options.draws):
        chosen = {plate for plate in drawn(rows, draw) if not plates[plate]}
        known = [row for row in rows if row["plate"] in chosen]
        data = write_set(out / f"good-{draw}", root, known + test)
        run = out / f"run-good-{draw}"
        if not (run / "summary.json").exists():
            vqi("learn-good", "--data", data, "--out", run)
        found.append(judged(data, run))
        say(f"{out.name}, good plates, draw {draw}: {found[-1]}")
    keys = ("tile_auroc", "plate_auroc")
    sums = {key: sum(one[key] for one in found) for key in found[0] if key not in keys}
    good, bad = sums.pop("good"), sums.pop("defective")
    return {
        **{f"good_only_{key}": round(float(np.mean([o[key] for o in found])), 4) for key in keys},
        **{
            f"good_only_{key}": [round(v, 4) for v in (f.value, f.low, f.high)]
            for key, hits in sums.items()
            for f in [rate(hits, good if key.startswith("good") else bad)]
        },
    }


def judged(data: Path, run: Path) -> dict[str, Any]:
    """The run's network on the test part, by tile and by plate (its strangest tile)."""
    summary = read_summary(run)
    samples = [sample for sample in read_folder(data) if sample.split == "test"]
    scores = predict(load_network(run), load_tiles(samples))
    labels = np.array([sample.label for sample in samples])
    groups = np.array([sample.group for sample in samples])
    names = sorted(set(groups.tolist()))
    highest = np.array([scores[groups == name].max() for name in names])
    bad = np.array([labels[groups == name].max() for name in names]) == 1
    fails, passes = highest > summary["threshold"], highest <= summary["unsure_above"]
    return {
        "tile_auroc": auroc(labels, scores),
        "plate_auroc": auroc(bad.astype(np.int64), highest),
        "good": int((~bad).sum()),
        "defective": int(bad.sum()),
        "good_failed": int((fails & ~bad).sum()),
        "good_undecided": int((~fails & ~passes & ~bad).sum()),
        "defective_passed": int((passes & bad).sum()),
        "defective_undecided": int((~fails & ~passes & bad).sum()),
    }


# --- the commands ---------------------------------------------------------------------------


def vqi(*arguments: object) -> str:
    command = [sys.executable, "-P", "-m", "station.cli", "model", *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"failed: vqi model {' '.join(map(str, arguments))}")
    return done.stdout


def evaluated(data: Path, run: Path) -> dict[str, Any]:
    row: dict[str, Any] = json.loads(vqi("evaluate", "--data", data, "--run", run, "--json"))
    return row


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
