"""The flat field: what each column of the sensor adds (dark) and lacks (gain), measured once on a
uniform target and taken out of every scan line before anything else looks at it.

corrected = (pixel - dark) x gain, per column (EMVA 1288 names the two DSNU and PRNU; the lens'
vignetting and the lamp's profile come with the second). The gain is at least 255 / (255 - dark), so
that a saturated pixel stays 255; a pixel that is not 0 never becomes 0. Whoever counts unlit and
saturated pixels therefore sees what the sensor saw.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from drivers.camera import CameraInfo

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float64]

_SATURATED = 255
_BLOCK_ROWS = 16
"""Scan lines corrected at a time: gains and scratch of so many stay in the processor's cache."""

_DARK_DECIMALS = 3
_LEAST_SCAN_LINES = 128
_LEAST_LEVEL = 60.0
"""A dimmer target leaves too few grey levels to tell 0.5 % apart."""
_MOST_SATURATED_SHARE = 1e-3
_MOST_DARK = 25.0
_MOST_DARK_SHARE = 0.2
"""Of the bright level; more is a cap that is not on, or ambient light."""
_NOISE_SHARE = 0.0012
"""Standard error of a column's mean that still allows a residual of 0.5 % (4 sigma)."""
_BLOCK_PX = 16
_MOST_UNEVEN = 0.02
"""Of a block of pixels, once its columns' and scan lines' means are taken out: more is a picture
of something."""
_MOST_GRAIN = 0.08
"""Standard deviation of single pixels: no sensor at a usable level has so much noise."""
_MOST_STEP = 0.05
"""Of nine columns from their surroundings: more is an edge or dirt, not pixels that differ."""
_EDGE_PX = 32
_MOST_EDGE = 0.15
"""Of columns so far apart: no lens or lamp is so steep."""
_MOST_COLUMN_STEP = 0.25
"""Of a single column from its surroundings."""
_SMOOTH_COLUMNS = 257


class FlatFieldRefused(ValueError):
    """A flat field cannot be measured from this, or may not be used here: what, where, what to
    do."""


@dataclass(frozen=True, slots=True)
class FlatField:
    """A measured flat field. `dark` (grey levels) and `gain` are float32, shape (width,)."""

    id: str
    sha256: str
    """Of the file's bytes; together with `id` it names the flat field in every record."""
    camera_serial: str
    offset_x_px: int
    """Of the sensor, before the first column."""
    width: int
    created_at: str
    dark: NDArray[np.float32]
    gain: NDArray[np.float32]
    level: float
    """Mean grey level of the uniform target above dark, before correction: falls as a lamp ages."""
    non_uniformity_before: float
    non_uniformity_after: float
    """Of scan lines that the gains were not measured from."""


def residual_non_uniformity(scan_lines: Pixels) -> float:
    """Largest deviation of a column's mean from the mean of all columns, as a share of it.

    `scan_lines` is uint8 (rows, width). Infinite where all is black.
    """
    means = scan_lines.mean(axis=0, dtype=np.float64)
    mean = float(means.mean())
    return float(np.abs(means - mean).max()) / mean if mean > 0 else float("inf")


# --- measuring ------------------------------------------------------------------------------------


def measure_flat_field(
    dark: Pixels,
    bright: Pixels,
    camera_serial: str,
    created_at: datetime | None = None,
    *,
    offset_x_px: int = 0,
) -> FlatField:
    """Measure a flat field from scan lines without light and of a uniform target.

    Both are uint8 (rows, width) as the camera delivers them with this OffsetX, its own correction
    off, the lens slightly defocused. Raises `FlatFieldRefused`.
    """
    _check_shapes(dark, bright)
    _check_dark(dark)
    _check_levels(dark, bright)
    _check_target(dark, bright)
    at = (created_at or datetime.now(UTC)).astimezone(UTC)
    offset, gain = _columns(dark, bright)
    means = bright.mean(axis=0, dtype=np.float64)
    values = {
        "id": f"{re.sub(r'[^A-Za-z0-9._-]', '_', camera_serial)}-{at:%Y%m%dT%H%M%SZ}",
        "camera_serial": camera_serial,
        "offset_x_px": offset_x_px,
        "width": bright.shape[1],
        "created_at": at.isoformat(timespec="seconds").replace("+00:00", "Z"),
        "level": round(float((means - dark.mean(axis=0, dtype=np.float64)).mean()), 3),
        "non_uniformity_before": round(residual_non_uniformity(bright), 6),
        "non_uniformity_after": round(_cross_checked(dark, bright), 6),
        **_rounded(offset, gain),
    }
    return _from_bytes(_canonical(values))


def _columns(dark: Pixels, bright: Pixels) -> tuple[Floats, Floats]:
    """Offset and gain of each column, for the offset as whole levels that `correct` takes off."""
    offset = np.round(dark.mean(axis=0, dtype=np.float64), _DARK_DECIMALS)
    taken = np.rint(offset)
    lit = bright.mean(axis=0, dtype=np.float64) - taken
    # The brightest column keeps its level, and white stays white.
    level = float((lit * _SATURATED / (_SATURATED - taken)).max())
    return offset, level / lit


def _cross_checked(dark: Pixels, bright: Pixels) -> float:
    """What is left on the odd scan lines after a correction measured on the even ones."""
    offset, gain = _columns(dark, bright[::2])
    unseen = np.ascontiguousarray(bright[1::2])
    correct(unseen, _correction(offset.astype(np.float32), gain.astype(np.float32)))
    return residual_non_uniformity(unseen)


def _check_shapes(dark: Pixels, bright: Pixels) -> None:
    for name, lines in (("dark", dark), ("bright", bright)):
        if lines.ndim != 2 or lines.dtype != np.uint8:
            raise FlatFieldRefused(f"{name}: uint8 scan lines are needed, (rows, width)")
        if len(lines) < _LEAST_SCAN_LINES:
            raise FlatFieldRefused(
                f"{name}: too few scan lines: {len(lines)}; take at least {_LEAST_SCAN_LINES}"
            )
    if dark.shape[1] != bright.shape[1]:
        raise FlatFieldRefused(
            f"dark is {dark.shape[1]} px wide and bright {bright.shape[1]} px; take both with the "
            "same Width and OffsetX"
        )


def _check_dark(dark: Pixels) -> None:
    means = dark.mean(axis=0, dtype=np.float64)
    level, at = float(means.mean()), int(means.argmax())
    if level > _MOST_DARK:
        raise FlatFieldRefused(
            f"the dark frame is too bright: level {level:.1f}, at most {_MOST_DARK:g}; cover the "
            "lens, switch the lamp off, or lower the camera's BlackLevel"
        )
    if means[at] > level + _MOST_DARK:
        raise FlatFieldRefused(
            f"the dark frame is bright at column {at}: level {means[at]:.1f} where the rest has "
            f"{level:.1f}; light leaks in, or the pixel is hot"
        )


def _check_levels(dark: Pixels, bright: Pixels) -> None:
    saturated = (bright == _SATURATED).mean(axis=0)
    if saturated.max() > _MOST_SATURATED_SHARE:
        raise FlatFieldRefused(
            f"the target is saturated at {_where(saturated > _MOST_SATURATED_SHARE)}; lower "
            "ExposureTime or Gain until its brightest part is at about level 200"
        )
    level = float(bright.mean(dtype=np.float64) - dark.mean(dtype=np.float64))
    if level < _LEAST_LEVEL:
        raise FlatFieldRefused(
            f"the target is too dark: {level:.1f} levels above the dark frame, at least "
            f"{_LEAST_LEVEL:g}; raise the light or ExposureTime to about level 180"
        )
    if dark.mean() > _MOST_DARK_SHARE * bright.mean():
        raise FlatFieldRefused(
            f"the dark frame is too bright: level {dark.mean():.1f} beside {bright.mean():.1f} of "
            "the target; cover the lens"
        )


def _check_target(dark: Pixels, bright: Pixels) -> None:
    """The target is even: what differs from column to column is the camera's and the lamp's."""
    lit = bright.mean(axis=0, dtype=np.float64) - dark.mean(axis=0, dtype=np.float64)
    _check_columns(lit)
    even = (bright - dark.mean(axis=0, dtype=np.float32)) / lit.astype(np.float32)
    _check_flicker(even)
    even /= even.mean(axis=1, keepdims=True)
    grain = even.std(axis=0, dtype=np.float64)
    if np.median(grain) > _MOST_GRAIN:
        _refuse_structure(grain > _MOST_GRAIN, f"single pixels differ by {np.median(grain):.0%}")
    blocks = _block_means(even)
    uneven = np.abs(blocks - 1).max(axis=0)
    if uneven.max() > _MOST_UNEVEN + 5 * float(np.median(grain)) / _BLOCK_PX:
        where = np.repeat(uneven > _MOST_UNEVEN, _BLOCK_PX)
        _refuse_structure(where, f"parts differ by {uneven.max():.1%}")
    error = float(np.median(grain)) / np.sqrt(len(bright))
    if error > _NOISE_SHARE:
        needed = round(len(bright) * (error / _NOISE_SHARE) ** 2 / 100 + 1) * 100
        raise FlatFieldRefused(
            f"too few scan lines: {len(bright)} leave a noise of {error:.2%} in a column's mean; "
            f"take at least {needed}"
        )


def _check_columns(lit: Floats) -> None:
    """Neighbouring columns differ a little; an edge, dirt or a dead pixel differs more."""
    around = _smooth(lit)
    if (around <= 0).any():
        raise FlatFieldRefused(f"the target is black at {_where(around <= 0)}; light all of it")
    share = lit / around - 1
    nine = np.abs(_nine_means(share))
    if nine.max() > _MOST_STEP:
        _refuse_structure(
            nine > _MOST_STEP,
            f"columns differ by {nine.max():.0%} from those beside them (dirt on target, lens or "
            "window)",
        )
    # A running median follows an edge.
    means = _nine_means(lit)
    edge = np.pad(np.abs(means[_EDGE_PX:] / means[:-_EDGE_PX] - 1), (_EDGE_PX // 2, 0))
    if edge.max() > _MOST_EDGE:
        _refuse_structure(edge > _MOST_EDGE, f"an edge of {edge.max():.0%}")
    single = np.abs(share)
    if single.max() > _MOST_COLUMN_STEP:
        raise FlatFieldRefused(
            f"{_where(single > _MOST_COLUMN_STEP)}: {single.max():.0%} from those beside it: a "
            "dead pixel, or dirt on the sensor; clean it, or have the camera serviced"
        )


def _nine_means(values: Floats) -> Floats:
    return np.convolve(np.pad(values, 4, "edge"), np.full(9, 1 / 9), "valid")


def _check_flicker(even: NDArray[np.float32]) -> None:
    rows = even.mean(axis=1, dtype=np.float64)
    spread = float(rows.std())
    if spread > _MOST_UNEVEN:
        raise FlatFieldRefused(
            f"the light flickers: whole scan lines differ by {spread:.1%}; feed the lamp from a "
            "constant current, or the target moves and is not even"
        )


def _refuse_structure(where: NDArray[np.bool_], what: str) -> None:
    raise FlatFieldRefused(
        f"the target has structure at {_where(where)}: {what}; use an even white target over the "
        "whole scan line, and defocus the lens a little"
    )


def _smooth(values: Floats) -> Floats:
    """Running median: steps and narrow dirt do not move it."""
    reach = min(_SMOOTH_COLUMNS, len(values) // 4 * 2 + 1) // 2
    padded = np.pad(values, reach, "reflect", reflect_type="odd")
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1)
    return np.asarray(np.median(windows, axis=1), np.float64)


def _block_means(even: NDArray[np.float32]) -> NDArray[np.float32]:
    rows, columns = (size // _BLOCK_PX for size in even.shape)
    whole = even[: rows * _BLOCK_PX, : columns * _BLOCK_PX]
    return np.asarray(cv2.resize(whole, (columns, rows), interpolation=cv2.INTER_AREA), np.float32)


def _where(columns: NDArray[np.bool_]) -> str:
    """The widest run of columns, and how many there are."""
    found = np.flatnonzero(columns)
    runs = np.split(found, np.flatnonzero(np.diff(found) > 1) + 1)
    widest = max(runs, key=len)
    place = f"{widest[0]}" if len(widest) == 1 else f"{widest[0]}-{widest[-1]}"
    more = f" ({len(found)} in all)" if len(found) > len(widest) else ""
    return f"column{'s' if len(widest) > 1 else ''} {place}{more}"


# --- correcting -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Correction:
    """A flat field laid out for `correct`, with its scratch: for one thread."""

    dark: Pixels
    gain: NDArray[np.float32]
    ones: Pixels
    scratch: Pixels


def correction_of(flat_field: FlatField) -> Correction:
    """Lay a flat field out for `correct`."""
    return _correction(flat_field.dark, flat_field.gain)


def _correction(dark: NDArray[np.float32], gain: NDArray[np.float32]) -> Correction:
    shape = (_BLOCK_ROWS, len(gain))
    offset = np.rint(dark).astype(np.uint8)
    return Correction(
        dark=np.ascontiguousarray(np.broadcast_to(offset, shape)),
        gain=np.ascontiguousarray(np.broadcast_to(gain, shape)),
        ones=np.ones(shape, np.uint8),
        scratch=np.empty(shape, np.uint8),
    )


def correct(pixels: Pixels, correction: Correction) -> None:
    """Take the flat field out of scan lines, in place; uint8 (rows, width), C-contiguous.

    Each pixel on its own, by one float32 product: any division into frames gives the same bits.
    """
    for first in range(0, len(pixels), _BLOCK_ROWS):
        block = pixels[first : first + _BLOCK_ROWS]
        rows = len(block)
        is_lit = correction.scratch[:rows]
        cv2.min(block, correction.ones[:rows], dst=is_lit)
        cv2.subtract(block, correction.dark[:rows], dst=block)
        cv2.multiply(block, correction.gain[:rows], dst=block, dtype=cv2.CV_8U)
        cv2.max(block, is_lit, dst=block)


# --- keeping --------------------------------------------------------------------------------------


def save(flat_field: FlatField, directory: Path) -> Path:
    """Write `<id>.json`; its bytes have the flat field's sha256. Raises OSError, also where that
    file is there: a configuration may name it."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{flat_field.id}.json"
    with path.open("xb") as file:
        file.write(_to_bytes(flat_field))
    return path


def load(path: Path, sha256: str, camera: CameraInfo) -> FlatField:
    """The flat field that was approved, for the camera it was measured with.

    Raises `FlatFieldRefused` for other bytes, another camera or another part of its sensor.
    """
    flat_field = load_any_camera(path, sha256)
    if flat_field.camera_serial != camera.serial:
        raise FlatFieldRefused(
            f"{path}: measured with camera {flat_field.camera_serial}, this one is "
            f"{camera.serial}; calibrate again: vqi camera calibrate"
        )
    if flat_field.width != camera.width:
        raise FlatFieldRefused(
            f"{path}: measured at {flat_field.width} px, this camera delivers {camera.width} px; "
            "calibrate again: vqi camera calibrate"
        )
    if flat_field.offset_x_px != camera.offset_x_px:
        raise FlatFieldRefused(
            f"{path}: measured at OffsetX {flat_field.offset_x_px}, this camera has "
            f"{camera.offset_x_px}: other columns; calibrate again: vqi camera calibrate"
        )
    return flat_field


def load_any_camera(path: Path, sha256: str) -> FlatField:
    """The flat field that was approved, for pictures that do not say which camera took them.
    Raises `FlatFieldRefused` for other bytes."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise FlatFieldRefused(f"{path}: cannot be read: {error.strerror}") from error
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise FlatFieldRefused(f"{path}: its sha256 is {found}, {sha256} is wanted")
    return _from_bytes(data, str(path))


def _to_bytes(flat_field: FlatField) -> bytes:
    values = {name: getattr(flat_field, name) for name in FlatField.__slots__ if name != "sha256"}
    return _canonical(values | _rounded(flat_field.dark, flat_field.gain))


def _rounded(dark: NDArray[Any], gain: NDArray[Any]) -> dict[str, list[float]]:
    return {
        "dark": [round(float(value), _DARK_DECIMALS) for value in dark],
        "gain": [round(float(value), 5) for value in gain],
    }


def _canonical(values: dict[str, Any]) -> bytes:
    return (json.dumps(values, sort_keys=True, allow_nan=False) + "\n").encode()


def _from_bytes(data: bytes, source: str = "flat field") -> FlatField:
    try:
        values = json.loads(data)
        dark, gain = (np.array(values.pop(name), np.float32) for name in ("dark", "gain"))
        flat_field = FlatField(
            **values, sha256=hashlib.sha256(data).hexdigest(), dark=dark, gain=gain
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise FlatFieldRefused(f"{source}: not a flat field: {error}") from error
    columns = (flat_field.width,)
    if dark.shape != columns or gain.shape != columns or not _is_usable(dark, gain):
        raise FlatFieldRefused(f"{source}: not a flat field of {flat_field.width} columns")
    return flat_field


def _is_usable(dark: NDArray[np.float32], gain: NDArray[np.float32]) -> bool:
    """Finite, and white stays white."""
    floor = _SATURATED / (_SATURATED - np.rint(dark))
    in_range = (dark >= 0).all() and (dark <= _SATURATED / 2).all()
    return bool(np.isfinite(gain).all() and in_range and (gain >= floor - 1e-5).all())
