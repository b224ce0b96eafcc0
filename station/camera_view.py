"""What `vqi camera live` and `focus` show in a terminal: the picture in half blocks, its crossweb
profile and histogram, sharpness as bars."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.style import Style
from rich.table import Table
from rich.text import Text

from drivers.camera import Frame
from station.focus import FocusReading, measure_focus

Pixels = NDArray[np.uint8]

_BARS = " ▁▂▃▄▅▆▇█"
_COLUMNS, _ROWS = 72, 12
_PROFILE_ROWS = 4
_BINS = 32
_KEPT_LINES = 512
_BAR_PX = 40


@dataclass(frozen=True, slots=True)
class LiveFigures:
    """What the last scan lines say."""

    is_silent: bool
    """No frame came for a while."""
    frames: int
    lost_frames: int
    incomplete_frames: int
    line_rate_hz: float | None
    """By the frames' own timestamps."""
    mean: float
    saturated_share: float
    unlit_share: float
    focus: float | None
    tilt: float | None


class LiveStrip:
    """The last scan lines and the counters of a camera that is watched."""

    def __init__(self) -> None:
        self._lines: deque[Pixels] = deque()
        self._stamps: deque[tuple[int, int]] = deque(maxlen=64)
        self._scan_lines = 0
        self._last_id: int | None = None
        self.frames = self._lost = self._incomplete = 0
        self._is_silent = False

    def take(self, frame: Frame | None) -> None:
        """Count a frame and keep a copy of its pixels; None: none came for a while."""
        self._is_silent = frame is None
        if frame is None:
            return
        lost = 0 if self._last_id is None else max(0, frame.frame_id - self._last_id - 1)
        self._last_id = frame.frame_id
        self.frames += 1
        self._lost += lost
        self._incomplete += frame.is_incomplete
        # What was lost passed too.
        self._scan_lines += (1 + lost) * frame.height
        self._stamps.append((self._scan_lines, frame.timestamp_ns))
        is_like = not self._lines or self._lines[-1].shape[1] == frame.pixels.shape[1]
        if frame.height and is_like and not frame.is_incomplete:
            self._lines.append(frame.pixels.copy())
        while sum(map(len, self._lines)) - len(self._lines[0] if self._lines else ()) > _KEPT_LINES:
            self._lines.popleft()

    @property
    def pixels(self) -> Pixels:
        """uint8 (rows, width); no rows before the first whole frame."""
        if not self._lines:
            return np.empty((0, 1), np.uint8)
        return np.concatenate(self._lines)

    def figures(self) -> LiveFigures:
        """Of the scan lines kept and of all frames so far."""
        pixels = self.pixels
        reading = measure_focus(pixels) if pixels.size else None
        return LiveFigures(
            is_silent=self._is_silent,
            frames=self.frames,
            lost_frames=self._lost,
            incomplete_frames=self._incomplete,
            line_rate_hz=self._rate_hz(),
            mean=float(pixels.mean()) if pixels.size else 0.0,
            saturated_share=float((pixels == 255).mean()) if pixels.size else 0.0,
            unlit_share=float((pixels == 0).mean()) if pixels.size else 0.0,
            focus=reading.score if reading else None,
            tilt=reading.tilt if reading else None,
        )

    def _rate_hz(self) -> float | None:
        if len(self._stamps) < 2:
            return None
        (first, start), (last, end) = self._stamps[0], self._stamps[-1]
        return (last - first) / ((end - start) / 1e9) if end > start else None


def live_panel(strip: LiveStrip, title: str) -> RenderableType:
    """Picture, profile, histogram and figures."""
    pixels, figures = strip.pixels, strip.figures()
    if not pixels.size:
        return Panel(Text(f"no whole frame yet\n{live_line(figures)}"), title=title)
    side = Table.grid(padding=(0, 1))
    side.add_row(half_blocks(pixels, _COLUMNS, _ROWS), Text("\n".join(histogram(pixels))))
    parts: list[RenderableType] = [
        side,
        Text("\n".join(profile(pixels, _COLUMNS)), style="cyan"),
        Text(live_line(figures)),
    ]
    return Panel(Group(*parts), title=title, border_style="dim")


def live_line(figures: LiveFigures) -> str:
    """The figures as one line of text."""
    rate = "? scan lines/s"
    if figures.line_rate_hz is not None:
        rate = f"{figures.line_rate_hz:.0f} scan lines/s"
    if figures.is_silent:
        rate = "no frames come; is the camera triggered?"
    focus = "none" if figures.focus is None else f"{figures.focus:.5f}"
    tilt = "" if figures.tilt is None else f" tilt {figures.tilt:+.0%}"
    return (
        f"{rate}  frames {figures.frames} lost {figures.lost_frames} incomplete "
        f"{figures.incomplete_frames}  mean {figures.mean:.0f} saturated "
        f"{figures.saturated_share:.2%} unlit {figures.unlit_share:.2%}  focus {focus}{tilt}"
    )


def half_blocks(pixels: Pixels, columns: int, rows: int) -> Text:
    """A picture two pixels to a character, grey levels as they are."""
    small = cv2.resize(pixels, (columns, 2 * rows), interpolation=cv2.INTER_AREA)
    text = Text()
    for upper, lower in zip(small[::2].tolist(), small[1::2].tolist(), strict=True):
        for top, bottom in zip(upper, lower, strict=True):
            text.append("▀", Style(color=_grey(top), bgcolor=_grey(bottom)))
        text.append("\n")
    text.rstrip()
    return text


def _grey(level: int) -> str:
    return f"#{level:02x}{level:02x}{level:02x}"


def profile(pixels: Pixels, columns: int) -> list[str]:
    """Mean level along the scan line, 0 to 255 over some lines of text."""
    means = cv2.resize(pixels, (columns, 1), interpolation=cv2.INTER_AREA)[0] / 255
    return _columns(means.astype(np.float64), _PROFILE_ROWS)


def histogram(pixels: Pixels) -> list[str]:
    """How many pixels have which level, 0 at the left, roots so that few are seen."""
    counts = np.bincount(pixels.ravel(), minlength=256).reshape(_BINS, -1).sum(axis=1)
    return [*_columns(np.sqrt(counts / max(1, counts.max())), _ROWS - 1), f"0{'255':>{_BINS - 1}}"]


def _columns(shares: NDArray[np.float64], rows: int) -> list[str]:
    """Bars of 0 to 1 as lines of text, the top one first."""
    eighths = np.rint(shares * rows * 8).astype(int)
    lines = []
    for row in range(rows - 1, -1, -1):
        lines.append("".join(_BARS[min(8, max(0, value - 8 * row))] for value in eighths.tolist()))
    return lines


def focus_line(reading: FocusReading, best: FocusReading) -> str:
    """A reading as one line of text."""
    if reading.score is None:
        return "focus none: no plate is seen"
    zones = " ".join("-" if z.score is None else f"{z.score:.5f}" for z in reading.zones)
    tilt = "" if reading.tilt is None else f"  tilt {reading.tilt:+.0%}"
    return f"focus {reading.score:.5f} of best {best.score or 0:.5f}{tilt}  zones {zones}"


def focus_bar(reading: FocusReading, best: FocusReading) -> RenderableType:
    """A reading as bars, a zone each, against the best so far."""
    table = Table.grid(padding=(0, 1))
    for number, zone in enumerate(reading.zones):
        kept = best.zones[number].score or 0.0
        most = max(kept, zone.score or 0.0, 1e-12)
        share = (zone.score or 0.0) / most
        bar = Text("█" * round(_BAR_PX * share), style="green" if share > 0.95 else "yellow")
        table.add_row(f"px {zone.start_px}-{zone.end_px}", bar, _zone_text(zone.rise_px, share))
    return Panel(Group(table, Text(focus_line(reading, best))), title="focus", border_style="dim")


def _zone_text(rise_px: float | None, share: float) -> str:
    return f"{share:.0%} of best" + ("" if rise_px is None else f", edges {rise_px:.1f} px")


def as_row(figures: LiveFigures) -> dict[str, Any]:
    """The figures as a row of JSON."""
    return {name: getattr(figures, name) for name in LiveFigures.__slots__}
