"""What the commands of `vqi model` share: options, and the packages that training needs."""

from __future__ import annotations

import contextlib
import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from station.cli.common import fail
from station.idle import be_idle, is_idle

DataOption = Annotated[Path, typer.Option(help="Folder with labels.csv, or good/ and defective/.")]
BackgroundOption = Annotated[
    bool,
    typer.Option(
        "--background",
        help="Beside a running station: only on time that nobody else wants, on one core, within "
        "--memory-mb.",
    ),
]
MemoryOption = Annotated[
    int, typer.Option(min=512, help="Memory that --background may take, MiB, in this process.")
]
MEMORY_MB = 3000
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


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
    except (MemoryError, RuntimeError) as error:
        # PyTorch has no class of its own for memory that it does not get.
        if not isinstance(error, MemoryError) and "allocate memory" not in str(error):
            raise
        limit = resource.getrlimit(resource.RLIMIT_DATA)[0]
        if limit == resource.RLIM_INFINITY:
            fail(f"not enough memory: {error}")
        fail(f"needs more than the {limit >> 20} MiB it may take: give --memory-mb more, or fewer "
             "pictures")  # fmt: skip


def go_to_background(is_wanted: bool, memory_mb: int) -> None:
    """Begin this command again as a process that gives way to all others; nothing if it is one.

    It begins anew because threads of libraries that are loaded already keep their priority.
    """
    if not is_wanted or is_idle():
        return
    # Locked in before the start: a limit that comes later finds memory taken.
    resource.setrlimit(resource.RLIMIT_DATA, (memory_mb << 20, memory_mb << 20))
    os.environ.update(dict.fromkeys(_ONE_THREAD, "1"))
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    sys.stdout.flush()
    be_idle("-m", "station.cli", *sys.argv[1:])
