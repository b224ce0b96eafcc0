"""The space of networks: what may differ between two of them, as a small frozen spec.

Every field is one choice of a few; a spec is written to the log as JSON and turned into a network
by `network.build`. Whether a spec is a LightDefectNet is for `constraints` to say.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

Choice = str | int


@dataclass(frozen=True, slots=True)
class Spec:
    """One network. Widths are channels; stage 1 is at 56 px, 2 at 28, 3 at 14 and 4 at 7."""

    stem_kernel: int
    stem_width: int
    condenser_embed: str
    condenser_step: int
    """By how much attention is computed more coarsely than what it attends to."""
    early_filter: str
    """Taps of the anti-aliased downsampling after the stem and the early stages, and in VACs."""
    late_filter: str
    """Taps of that before stage 4."""
    a1_attend: str
    a1_filter: str
    a1_kernel: int
    a1_width: int
    b1_attend: str
    b1_filter: str
    b1_kernel: int
    b1_width: int
    input2: str
    """What a column of stage 2 sees: both columns of stage 1, or its own."""
    a2_attend: str
    a2_filter: str
    a2_kernel: int
    a2_width: int
    b2_attend: str
    b2_filter: str
    b2_kernel: int
    b2_width: int
    block3: str
    blocks3: int
    width3: int
    group3: int
    """Channels of a late column."""
    exchange3: str
    """Late columns exchange in every block, or in the last one."""
    exit3: int
    """Channels that are blurred before stage 4."""
    block4: str
    blocks4: int
    width4: int
    group4: int
    exchange4: str
    pooling: str


_ATTEND = ("none", "before", "after")
_FILTER = ("separable", "pointwise first", "grouped", "dense", "residual")
_TAPS = ("rect-2", "binomial-3", "binomial-5")
_COLUMN: dict[str, tuple[Choice, ...]] = {
    "attend": _ATTEND,
    "filter": _FILTER,
    "kernel": (3, 5),
    "width": (16, 32, 48),
}
_BLOCK = ("exchange", "separable", "residual")

SPACE: dict[str, tuple[Choice, ...]] = {
    "stem_kernel": (3, 5),
    "stem_width": (16, 32),
    "condenser_embed": ("separable", "grouped", "pointwise"),
    "condenser_step": (2, 4),
    "early_filter": _TAPS,
    "late_filter": _TAPS,
    **{f"{column}1_{name}": choices for column in "ab" for name, choices in _COLUMN.items()},
    "input2": ("both", "own"),
    **{f"{column}2_{name}": choices for column in "ab" for name, choices in _COLUMN.items()},
    "block3": _BLOCK,
    "blocks3": (0, 1, 2, 3),
    "width3": (32, 48, 64, 80, 96, 128),
    "group3": (16, 32, 64),
    "exchange3": ("every", "last"),
    "exit3": (64, 96, 128, 160),
    "block4": _BLOCK,
    "blocks4": (1, 2, 3, 4),
    "width4": (96, 128, 160, 192, 224, 256, 320),
    "group4": (16, 32, 64),
    "exchange4": ("every", "last"),
    "pooling": ("average", "strongest", "average and strongest"),
}
"""The choices of each field."""

HAND_MADE = Spec(
    stem_kernel=3, stem_width=16, condenser_embed="separable", condenser_step=2,
    early_filter="binomial-3", late_filter="binomial-3",
    a1_attend="before", a1_filter="separable", a1_kernel=3, a1_width=16,
    b1_attend="after", b1_filter="separable", b1_kernel=3, b1_width=16,
    input2="both",
    a2_attend="before", a2_filter="grouped", a2_kernel=3, a2_width=32,
    b2_attend="after", b2_filter="separable", b2_kernel=5, b2_width=32,
    block3="exchange", blocks3=2, width3=64, group3=16, exchange3="every", exit3=128,
    block4="exchange", blocks4=3, width4=256, group4=16, exchange4="every",
    pooling="average and strongest",
)  # fmt: skip
"""`lightdefectnet.LightDefectNet` as a point of the space: what every latency is compared with."""

PROTOTYPE = Spec(
    stem_kernel=3, stem_width=32, condenser_embed="separable", condenser_step=2,
    early_filter="binomial-3", late_filter="binomial-3",
    a1_attend="none", a1_filter="residual", a1_kernel=3, a1_width=32,
    b1_attend="none", b1_filter="residual", b1_kernel=3, b1_width=32,
    input2="both",
    a2_attend="none", a2_filter="residual", a2_kernel=3, a2_width=48,
    b2_attend="none", b2_filter="residual", b2_kernel=3, b2_width=48,
    block3="residual", blocks3=2, width3=128, group3=64, exchange3="every", exit3=128,
    block4="residual", blocks4=2, width4=256, group4=64, exchange4="every",
    pooling="average",
)  # fmt: skip
"""The residual design that exploration starts from: no LightDefectNet yet (no attention, columns
alike, too many operations)."""


def to_row(spec: Spec) -> dict[str, Choice]:
    return asdict(spec)


def from_row(row: Mapping[str, Any]) -> Spec:
    """Raises ValueError for a field that is missing, unknown or no choice of the space."""
    names = {field.name for field in fields(Spec)}
    if set(row) != names:
        odd = sorted(set(row) ^ names)
        raise ValueError(f"not a spec: {odd[0]!r} is missing or unknown")
    for name, value in row.items():
        if value not in SPACE[name]:
            raise ValueError(f"not a spec: {name} is {value!r}; one of {SPACE[name]} wanted")
    return Spec(**row)


def read_spec(path: Path) -> Spec:
    """Of a file of JSON, as `vqi model explore emit` writes it. Raises ValueError, OSError."""
    try:
        row = json.loads(path.read_bytes())
        if not isinstance(row, dict):
            raise ValueError("not a spec: an object of choices wanted")
        return from_row(row)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def name_of(spec: Spec) -> str:
    """The same spec as text, the key of what is known of it."""
    return json.dumps(to_row(spec), sort_keys=True)


def draw(random: np.random.Generator) -> Spec:
    """Every choice with equal chance, admissible or not."""
    row = {name: choices[random.integers(len(choices))] for name, choices in SPACE.items()}
    return from_row(row)


def mutate(spec: Spec, random: np.random.Generator, count: int = 1) -> Spec:
    """`count` different fields chosen anew."""
    row = to_row(spec)
    for name in random.choice(list(SPACE), size=count, replace=False):
        others = [choice for choice in SPACE[name] if choice != row[name]]
        row[name] = others[random.integers(len(others))]
    return from_row(row)
