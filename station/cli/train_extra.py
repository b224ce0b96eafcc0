"""What commands that train say where the `train` extra is not installed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from station.cli.common import fail


@contextlib.contextmanager
def needs_train_extra() -> Iterator[None]:
    """Training's own packages and errors, as one line."""
    try:
        yield
    except ModuleNotFoundError as error:
        fail(
            f"needs package {error.name}: pip install torch==2.13.0 && "
            "pip install --no-deps pytorchcv==0.0.74 && pip install vqi-station[train]"
        )
