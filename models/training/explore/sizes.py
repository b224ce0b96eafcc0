"""Operations and parameters of a spec by arithmetic, a million times faster than from its graph."""

from __future__ import annotations

import math

from models.training.explore.network import CELLS, TAPS
from models.training.explore.space import Spec, to_row
from models.training.front_end import TILE_PX

_GROUP = 16


class _Sum:
    """Of what was added so far, for one tile, norms folded."""

    def __init__(self) -> None:
        self.macs = 0
        self.parameters = 0

    def conv(self, px: int, inputs: int, outputs: int, kernel: int = 1, groups: int = 1) -> None:
        each = inputs // groups * kernel**2
        self.macs += px**2 * outputs * each
        self.parameters += outputs * (each + 1)

    def blur(self, px: int, channels: int, taps: str) -> None:
        """To a map of `px`."""
        size = len(TAPS[taps]) ** 2
        self.macs += px**2 * channels * size
        self.parameters += channels * size

    def condenser(self, px: int, channels: int, spec: Spec) -> None:
        for level in range(1 if spec.condenser_step == 2 else 2):
            self.blur(px // 2 ** (level + 1), channels, spec.early_filter)
        coarse = px // spec.condenser_step
        if spec.condenser_embed != "pointwise":
            is_grouped = spec.condenser_embed == "grouped"
            groups = channels // _GROUP if is_grouped else channels
            self.conv(coarse, channels, channels, 3, groups)
        self.conv(coarse, channels, channels)

    def residual(self, px: int, inputs: int, outputs: int, kernel: int, groups: int = 1) -> None:
        self.conv(px, inputs, outputs, kernel, groups if inputs == outputs else 1)
        self.conv(px, outputs, outputs, kernel, groups)
        if inputs != outputs:
            self.conv(px, inputs, outputs)

    def column(self, px: int, inputs: int, place: str, spec: Spec) -> None:
        row = to_row(spec)
        kind, attend = row[f"{place}_filter"], row[f"{place}_attend"]
        outputs, kernel = int(row[f"{place}_width"]), int(row[f"{place}_kernel"])
        if attend != "none":
            self.condenser(px, inputs if attend == "before" else outputs, spec)
        if kind == "separable":
            self.conv(px, inputs, inputs, kernel, inputs)
            self.conv(px, inputs, outputs)
        elif kind == "pointwise first":
            self.conv(px, inputs, outputs)
            self.conv(px, outputs, outputs, kernel, outputs)
        elif kind == "residual":
            self.residual(px, inputs, outputs, kernel)
        else:
            is_cut = kind == "grouped" and outputs % inputs == 0
            self.conv(px, inputs, outputs, kernel, inputs // _GROUP if is_cut else 1)
        self.blur(px // 2, outputs, spec.early_filter)

    def late(self, px: int, kind: str, count: int, width: int, group: int, exchange: str) -> None:
        groups = width // math.gcd(width, group)
        for number in range(count):
            if kind == "residual":
                self.residual(px, width, width, 3, groups)
                continue
            self.conv(px, width, width, 3, width if kind == "separable" else groups)
            is_exchanging = exchange == "every" or number == count - 1
            self.conv(px, width, width, 1, 1 if is_exchanging else groups)


def sizes_of(spec: Spec) -> tuple[float, int]:
    """MFLOPs and parameters behind the front end, the map of the evidence included."""
    total = _Sum()
    stem = spec.stem_width
    total.conv(TILE_PX // 2, 1, stem, spec.stem_kernel)
    total.blur(TILE_PX // 4, stem, spec.early_filter)
    is_apart = spec.input2 == "own"
    for column in "ab":
        total.column(TILE_PX // 4, stem, f"{column}1", spec)
    for column, own in (("a", spec.a1_width), ("b", spec.b1_width)):
        inputs = own if is_apart else spec.a1_width + spec.b1_width
        total.column(TILE_PX // 8, inputs, f"{column}2", spec)
    px, width = TILE_PX // 16, spec.a2_width + spec.b2_width
    if spec.blocks3:
        if width != spec.width3:
            total.conv(px, width, spec.width3)
        width = spec.width3
        total.late(px, spec.block3, spec.blocks3, width, spec.group3, spec.exchange3)
    if width != spec.exit3:
        total.conv(px, width, spec.exit3)
    total.blur(CELLS, spec.exit3, spec.late_filter)
    if spec.exit3 != spec.width4:
        total.conv(CELLS, spec.exit3, spec.width4)
    total.late(CELLS, spec.block4, spec.blocks4, spec.width4, spec.group4, spec.exchange4)
    pooled = 2 if spec.pooling == "average and strongest" else 1
    total.macs += CELLS**2 * spec.width4 + 4 * pooled * spec.width4
    total.parameters += spec.width4 + 4 * (pooled * spec.width4 + 1)
    return 2 * total.macs / 1e6, total.parameters
