"""Every network on every data set: train, evaluate, and one table. Continues after a kill.

    python benchmarks/accuracy.py --data ../shared/data --out var/accuracy

`--data` is a folder of data folders; `specimens` is rendered if it is not there. Each training's
and evaluation's own output lies in `--out`; so do `accuracy.md` and `robustness.md`. With
`--recipe` all networks have the same one; so `make ablations` tells what each part of ours does.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SETS = ("goggle_lens", "magnetic_tile", "specimens")
NETWORKS = (
    "hand",
    "lightdefectnet",
    "mobilenetv3_large",
    "mnasnet",
    "efficientnet_b0",
    "resnet50",
)
SEEDS = 3
ONE_SEED = {("magnetic_tile", "resnet50"), ("specimens", "resnet50")}
"""ResNet-50 takes half of all the time."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("var/accuracy"))
    parser.add_argument("--sets", nargs="+", default=SETS)
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--recipe", help="the only one to train; left out: the networks' own")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in arguments.sets:
        folder = _folder(name, arguments.data, arguments.out)
        if folder is None:
            print(f"{arguments.data / name}: not there, left out", file=sys.stderr)
            continue
        for network in arguments.networks:
            _evaluate(name, folder, network, arguments.out, arguments.recipe)
            _write_tables(arguments.out)
    if not list(arguments.out.glob("*.json")):
        parser.error(f"none of the sets is in {arguments.data}")
    print((arguments.out / "accuracy.md").read_text())
    return 0


def _write_tables(out: Path) -> None:
    """Of all that has been evaluated in `out`, by this run or one before."""
    rows = [json.loads(path.read_text()) for path in sorted(out.glob("*.json"))]
    rows.sort(key=lambda row: (_place(_set_of(row), SETS), _place(_network_of(row), NETWORKS)))
    (out / "accuracy.md").write_text("\n".join([*_HEAD, *map(_line, rows), ""]))
    changes = [agreement["change"] for agreement in rows[0]["robustness"]]
    head = [f"| set | network | {' | '.join(changes)} |", f"|---|---|{'--:|' * len(changes)}"]
    (out / "robustness.md").write_text("\n".join([*head, *map(_robustness_line, rows), ""]))


def _place(name: str, known: Sequence[str]) -> int:
    return known.index(name) if name in known else len(known)


def _set_of(row: dict[str, Any]) -> str:
    return Path(row["data"]).name


def _network_of(row: dict[str, Any]) -> str:
    return str(row["trained"]["network"])


def _folder(name: str, data: Path, out: Path) -> Path | None:
    if (data / name).is_dir():
        return data / name
    if name != "specimens":
        return None
    if not (out / name / "labels.csv").is_file():
        _vqi(out / "specimens.log", "synthesize", "--frozen", "--out", str(out / name))
    return out / name


def _evaluate(name: str, folder: Path, network: str, out: Path, recipe: str | None) -> None:
    """Train, or go on training, and score the test pictures once: not again before its .json is
    taken away."""
    run = out / f"{name}-{network}"
    scored = run.with_suffix(".json")
    if scored.is_file():
        return
    seeds = 1 if (name, network) in ONE_SEED or network == "hand" else SEEDS
    common = ("--data", str(folder), "--network", network)
    only = ("--recipe", recipe) if recipe else ()
    chosen = ("--out", str(run), "--seeds", str(seeds), *only)
    _vqi(run.with_suffix(".log"), "train", *common, *chosen)
    _vqi(scored, "evaluate", *common, "--run", str(run), "--robustness", "--json")


def _vqi(log: Path, *arguments: str) -> None:
    """Keeps what a `vqi model` command says in `log`. Raises SystemExit if it fails."""
    command = [sys.executable, "-P", "-m", "station.cli", "model", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"failed: vqi model {' '.join(arguments)}")
    log.write_text(done.stdout)


_HEAD = (
    "| set | network | recipe, epoch | seeds | accuracy | AUROC | shift, mean / worst | fits | h |",
    "|---|---|---|--:|--:|--:|--:|--:|--:|",
)


def _line(row: dict[str, Any]) -> str:
    shift = next(a for a in row["robustness"] if a["change"].startswith("shift"))
    cells = (
        _set_of(row),
        _network_of(row),
        f"{row['trained']['recipe']['name']}, {row['trained']['epoch']}",
        str(len(row["seeds"])),
        _figure(row["accuracy"]),
        _figure(row["auroc"]),
        f"{shift['mean']['value']:.3f} / {shift['worst']:.3f}",
        str(row["trained"]["trainings"]),
        f"{row['trained']['cpu_hours']:.2f}",
    )
    return f"| {' | '.join(cells)} |"


def _robustness_line(row: dict[str, Any]) -> str:
    shares = [_agreement(agreement) for agreement in row["robustness"]]
    return f"| {' | '.join([_set_of(row), _network_of(row), *shares])} |"


def _agreement(agreement: dict[str, Any]) -> str:
    mean = agreement["mean"]
    text = f"{mean['value']:.3f} [{mean['low']:.3f}, {mean['high']:.3f}]"
    return text if mean["value"] == agreement["worst"] else f"{text} / {agreement['worst']:.3f}"


def _figure(figure: dict[str, Any]) -> str:
    text = f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"
    few = figure["few_groups"]
    return text + (f", few groups [{few['low']:.3f}, {few['high']:.3f}]" if few else "")


if __name__ == "__main__":
    sys.exit(main())
