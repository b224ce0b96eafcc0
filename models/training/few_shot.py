"""A new product from about 20 good and 20 defective plates.

So few pictures do not choose among trainings: the front end is the one whose shipped weights, as
they are, order them best; the folds then choose only the epoch and the threshold. Norms keep the
statistics of the pre-training, which a hundred tiles cannot measure better, and the weights that
are kept are the mean of the seeds' (Wortsman et al., "Model soups", 2022): they began alike.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from models.training.data import DataError, labels_of, load_tiles, read_splits
from models.training.evaluate import auroc
from models.training.fit import TrainingRecipe, load_weights, predict
from models.training.front_end import FRONT_ENDS
from models.training.networks import OURS, build
from models.training.train import LEARNED, Plan, Progress, pretrained_weights, train, write_result
from models.training.unfold import front_end_of

MOST_TILES = 2000
"""Of more, `vqi model train` as it is makes more."""
_AVERAGE = "average"


def train_few(plan: Plan, command: str, progress: Progress) -> dict[str, Any]:
    """As `train`. Raises `DataError`."""
    if plan.network != OURS:
        raise DataError(f"--few-shot trains {OURS} only")
    known = read_splits(plan.data, *LEARNED)
    if len(known) > MOST_TILES:
        raise DataError(
            f"{plan.data}: {len(known)} pictures are not few; leave --few-shot out, or keep "
            f"{MOST_TILES} at most"
        )
    areas = {name: _as_it_is(name, plan, known) for name in _front_ends(plan)}
    best = max(areas, key=lambda name: areas[name])
    recipe = TrainingRecipe(
        f"{best}, few plates", best, is_pretrained=True, learning_rate=1e-3, is_norm_frozen=True
    )
    summary = train(replace(plan, recipes=(recipe,)), command, progress)
    files = [plan.run / file for file in summary["weights"]]
    fits = [torch.load(file, weights_only=True) for file in files]
    weights = [fit["weights"] for fit in fits]
    average = {
        name: torch.stack([each[name] for each in weights]).mean(dim=0)
        if weights[0][name].is_floating_point()
        else weights[0][name]
        for name in weights[0]
    }
    folder = plan.run / _AVERAGE
    folder.mkdir(exist_ok=True)
    # Not result.pt, which is a training's.
    temporary = folder / "weights.part"
    torch.save({"weights": average, "identity": fits[0]["identity"]}, temporary)
    temporary.replace(folder / "weights.pt")
    summary |= {
        "averaged_seeds": summary["seeds"],
        "seeds": summary["seeds"][:1],
        "weights": [f"{_AVERAGE}/weights.pt"],
        "zero_shot_auroc": {name: round(area, 4) for name, area in areas.items()},
    }
    write_result(plan.run, known, summary, plan.init)
    return summary


def _front_ends(plan: Plan) -> list[str]:
    """Weights to begin with know one front end."""
    return [*FRONT_ENDS] if plan.init is None else [front_end_of(plan.init.weights)]


def _as_it_is(front_end: str, plan: Plan, known: list[Any]) -> float:
    """AUROC of the weights to begin with."""
    network = build(OURS, front_end, 1)
    begin = plan.init.weights if plan.init else pretrained_weights(front_end)
    load_weights(network, begin)
    return auroc(labels_of(known), predict(network, load_tiles(known)))
