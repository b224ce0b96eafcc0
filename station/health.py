"""Health that sees before plates are lost: what judged plates say of lens, light, belt and camera.

Pure but for the rows' time: plates and camera readings go in one at a time, rows of the log come
out when the station begins to need a person and when it needs none any more. Nothing here changes a
verdict: a real defect below dirt stays a defect.

Each watch counts in how many of the last plates a value is beyond its limit. It begins at a number
of plates that chance does not reach, and ends only once values are clearly inside again, so that it
does not flicker.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from drivers.camera import CameraInfo
from station.config import Recipe
from station.crossweb import Floats, Profile, column_profile, deviations, median
from station.dirt import NEAR_MM, Dirt, Place
from station.inspection import PlateWork
from station.record import AttentionBody, Reason, ReferenceBody, ResultBody
from station.tiling import TILE_PX, Geometry

HealthRow = AttentionBody | ReferenceBody

SECTIONS = 16
"""The light is held against its reference in so many equal parts of the scan line."""
_COVERED = 0.8
"""A section counts where a plate covers so much of it."""
_NEED = 0.75
"""Share of the last plates on which a change of light must be."""
_SLIPPING = 3
"""Plates of another length among the last: one may be a broken plate."""
_RELEASE = 0.8
"""Share of its limit below which a value counts as well again."""
_LIT_FEATURES = ("Exposure", "Gain", "BlackLevel", "Gamma")
"""Features of a camera that change levels begin like these (SFNC)."""
_READINGS = 8
"""Readings of the temperature, four a second."""
_SPAN_C = 10.0
"""Scale of a temperature's distance to its limit: it counts as well again 2 degrees inside."""
_DARK_LEVELS = 1.5
_EDGE_BIAS_PX = 12
"""The outline lies inside the plate by 1.5 of the cells in which it is found."""
_ODD = 0.2
"""A plate so much longer or shorter is two plates, or part of one."""
_MOST_PLACES = 8
_GROWN_MM = 2.0
_RELATIVE = "relative"
_JUDGED = {
    None,
    Reason.SHORT,
    Reason.OVERLONG,
    Reason.NARROW,
    Reason.SKEWED,
    Reason.OUT_OF_LANE,
    Reason.HALTED,
    Reason.MODEL,
}
"""Problems of a plate whose pixels are all there and can be believed."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What one judged plate says of the station."""

    result_id: str
    profile: Profile | None = None
    defects: tuple[tuple[int, int], ...] = ()
    """First camera column of each, and the one after its last."""
    length_change: float | None = None
    """Relative to the recipe's length, downweb."""
    width_change: float | None = None
    unlit_share: float | None = None


@dataclass(frozen=True, slots=True)
class CameraHealth:
    """What the camera says of itself while it runs; None where it does not say."""

    temperature_c: float | None = None


def look_at(body: ResultBody, work: PlateWork, geometry: Geometry) -> Seen:
    """Everything that the watches need of a plate; its buffer may be reused afterwards."""
    if work.problem not in _JUDGED:
        return Seen(body.result_id)
    length, width = _size_changes(body, geometry)
    return Seen(
        result_id=body.result_id,
        profile=column_profile(work.plate),
        # A box as wide as a tile is one: where in it the defect lies is not known.
        defects=tuple((d.x_px, d.x_px + d.w_px) for d in body.defects if d.w_px < TILE_PX),
        length_change=length,
        width_change=width,
        unlit_share=work.unlit_share if work.sampled_px else None,
    )


def _size_changes(body: ResultBody, geometry: Geometry) -> tuple[float | None, float | None]:
    if body.skew_deg is None or body.width_px is None or body.length_px is None:
        return None, None
    turn = math.radians(abs(body.skew_deg))
    slant_px = body.width_px * math.tan(turn)
    length = (body.length_px - slant_px) / math.cos(turn) / geometry.length_px - 1
    width = (body.width_px + _EDGE_BIAS_PX) / geometry.width_px - 1
    return (length, width) if abs(length) < _ODD else (None, None)


def reference_key(recipe_id: str, camera: CameraInfo, flat_field_id: str | None = None) -> str:
    """What a reference of the light holds for: another recipe, camera, exposure or flat field has
    its own."""
    features = sorted(camera.features.items())
    lit = [f"{name}={value}" for name, value in features if name.startswith(_LIT_FEATURES)]
    flattened = () if flat_field_id is None else (flat_field_id,)
    return " ".join((recipe_id, camera.serial, *flattened, *lit))


@dataclass(frozen=True, slots=True)
class _Words:
    """What an attention says."""

    text: str
    measured: float
    limit: float
    unit: str
    start_mm: float | None = None
    end_mm: float | None = None


class _Watch:
    """Several values of one kind, each as a multiple of its limit: beyond it above 1 or below -1.

    Begins once one of them is beyond its limit, on the same side, in `need` of the last `plates`.
    """

    def __init__(self, plates: int, need: int, words: Callable[[int, float], _Words]) -> None:
        """`words(place, ratio)` describes a value by its place and its multiple of the limit."""
        self._need = need
        self._most_left = plates - need if 2 * need > plates else 0
        self._words = words
        self._ratios: deque[Floats] = deque(maxlen=plates)
        self._ids: deque[str | None] = deque(maxlen=plates)

    def take(self, result_id: str | None, ratios: Sequence[float] | Floats) -> None:
        """One plate's values; NaN where there is none."""
        self._ratios.append(np.asarray(ratios, np.float64))
        self._ids.append(result_id)

    def finding(self) -> tuple[_Words, str | None] | None:
        """What is beyond its limit, and the first plate that showed it; None if nothing."""
        ratios = np.stack(self._ratios)
        best: tuple[float, int, NDArray[np.bool_]] | None = None
        for sign in (1, -1):
            beyond = sign * ratios > 1
            for place in np.flatnonzero(beyond.sum(axis=0) >= self._need):
                ratio = median(ratios[beyond[:, place], place])
                if best is None or abs(ratio) > abs(best[0]):
                    best = ratio, int(place), beyond[:, place]
        if best is None:
            return None
        return self._words(best[1], best[0]), self._ids[int(best[2].argmax())]

    @property
    def is_well(self) -> bool:
        """Long enough clearly inside the limits."""
        ratios = np.stack(self._ratios)
        off = (np.abs(ratios) > _RELEASE).sum(axis=0).max()
        return len(ratios) == self._ratios.maxlen and bool(off <= self._most_left)


class _Light:
    """The plates' level in sections of the scan line, and what it was after commissioning."""

    def __init__(self, plates: int, scan_line_px: int) -> None:
        edges = np.linspace(0, scan_line_px, SECTIONS + 1)
        self.edges_px = np.round(edges).astype(np.int64)
        self.reference: Floats | None = None
        self._plates = plates
        self._learning: list[Floats] = []

    def levels(self, profile: Profile, found: Floats) -> Floats:
        """Mean level of each section without what stands out in it: dirt is not the light's.
        NaN where the plate covers too little of it."""
        sums = np.concatenate([[0.0], np.cumsum(profile.levels / (1 + found))])
        inside = np.clip(self.edges_px - profile.left_px, 0, len(profile.levels))
        widths = np.diff(inside)
        is_covered = widths >= _COVERED * np.diff(self.edges_px)
        return np.where(is_covered, np.diff(sums[inside]) / np.maximum(widths, 1), np.nan)

    def learn(self, levels: Floats) -> bool:
        """One more plate for the reference; True once it is learned."""
        self._learning.append(levels)
        if len(self._learning) < self._plates:
            return False
        seen = np.stack(self._learning)
        self.reference = np.array([_median_or_nan(column) for column in seen.T])
        self._learning.clear()
        return True

    def forget(self) -> None:
        self.reference = None
        self._learning.clear()


def _median_or_nan(values: Floats) -> float:
    known = values[np.isfinite(values)]
    return round(median(known), 3) if 2 * len(known) >= len(values) else math.nan


class Health:
    """All watches of one station, its attentions, and the reference of its light."""

    def __init__(
        self,
        recipe: Recipe,
        geometry: Geometry,
        station_id: str,
        key: str,
        reference: ReferenceBody | None = None,
        attentions: Sequence[AttentionBody] = (),
    ) -> None:
        """`reference` (of this key) and `attentions` (begun, not ended) are what the log knows."""
        self._recipe, self._geometry = recipe.health, geometry
        self._station_id, self._key = station_id, key
        default_level = _DARK_LEVELS * recipe.plate.belt_level
        self._dark_level = recipe.health.dark_level or default_level
        self._light = _Light(recipe.health.reference_plates, geometry.scan_line_px)
        if reference is not None and len(reference.levels) == SECTIONS:
            known = [math.nan if level is None else level for level in reference.levels]
            self._light.reference = np.array(known)
        self._begun: dict[str, AttentionBody] = {}
        self._places: dict[str, Place] = {}
        self._last_id: str | None = None
        self._begin_anew()
        for body in attentions:
            self._restore(body)

    def _begin_anew(self) -> None:
        """No plate and no reading is known."""
        health, geometry = self._recipe, self._geometry
        self._dirt = Dirt(health, geometry.pixel_pitch_mm, geometry.scan_line_px)
        self._lengths: deque[float] = deque(maxlen=health.length_plates)
        self._widths: deque[float] = deque(maxlen=health.length_plates)
        need = math.ceil(_NEED * health.light_plates)
        dark = health.exposure_plates
        self._watches = {
            "light": _Watch(health.light_plates, need, self._light_words),
            "exposure": _Watch(dark, dark, self._exposure_words),
            "length": _Watch(health.length_plates, _SLIPPING, self._length_words),
            "temperature": _Watch(_READINGS, _READINGS, self._temperature_words),
        }

    @property
    def attentions(self) -> list[AttentionBody]:
        """What needs a person now, as it began."""
        return list(self._begun.values())

    def plate(self, seen: Seen) -> list[HealthRow]:
        """One judged plate; the rows to be written because of it."""
        self._last_id = seen.result_id
        rows: list[HealthRow] = []
        if seen.profile is not None:
            found = deviations(seen.profile.levels, self._geometry.pixel_pitch_mm)
            rows += self._look_at_dirt(seen, seen.profile, found)
            rows += self._look_at_exposure(seen, seen.profile)
            rows += self._look_at_light(seen, self._light.levels(seen.profile, found))
        if seen.length_change is not None and seen.width_change is not None:
            self._lengths.append(seen.length_change)
            self._widths.append(seen.width_change)
            rows += self._take("length", self._length_ratios(seen.length_change))
        return rows

    def camera(self, health: CameraHealth) -> list[HealthRow]:
        """What the camera says of itself. One that says nothing any more calls nobody."""
        given = health.temperature_c
        temperature_c = math.nan if given is None else given
        above = 1 + (temperature_c - self._recipe.max_temperature_c) / _SPAN_C
        below = 1 + (self._recipe.min_temperature_c - temperature_c) / _SPAN_C
        return self._take("temperature", np.maximum((above, below), 0.0))

    def relearn(self) -> list[HealthRow]:
        """Somebody cleaned or changed something: what was seen is forgotten, and the light's
        reference is learned anew."""
        self._light.forget()
        self._begin_anew()
        # Or a restart before enough plates would bring the old one back.
        nothing = ReferenceBody(
            station_id=self._station_id,
            result_id=self._last_id or "",
            key=self._key,
            plates=0,
            levels=(),
        )
        return [nothing, *(self._end(key) for key in list(self._begun))]

    # --- one watch after the other --------------------------------------------------------------

    def _take(self, name: str, ratios: Sequence[float] | Floats) -> list[HealthRow]:
        watch = self._watches[name]
        watch.take(self._last_id, ratios)
        if name in self._begun:
            return [self._end(name)] if watch.is_well else []
        found = watch.finding()
        return [self._begin(name, name, *found)] if found else []

    def _look_at_dirt(self, seen: Seen, profile: Profile, found: Floats) -> list[HealthRow]:
        self._dirt.take(seen.result_id, profile, found, seen.defects)
        clean = [key for key, place in self._places.items() if self._dirt.is_clean(place)]
        rows: list[HealthRow] = [self._end(key) for key in clean]
        for place in self._dirt.places():
            rows += self._found_dirt(place)
        return rows

    def _found_dirt(self, place: Place) -> list[HealthRow]:
        """A new place, or a known one that has grown or is known better: it is named anew."""
        near, grown = (round(mm / self._geometry.pixel_pitch_mm) for mm in (NEAR_MM, _GROWN_MM))
        known = {
            key: other
            for key, other in self._places.items()
            if place.start <= other.end + near and other.start <= place.end + near
        }
        is_better = place.is_streak and all(
            not other.is_streak
            or place.start < other.start - grown
            or place.end > other.end + grown
            for other in known.values()
        )
        if (known and not is_better) or len(self._places) - len(known) >= _MOST_PLACES:
            return []
        ended: list[HealthRow] = [self._end(key) for key in known]
        key = f"dirt {place.start}-{place.end}"
        self._places[key] = place
        return [*ended, self._begin(key, "dirt", self._dirt_words(place), place.since)]

    def _look_at_exposure(self, seen: Seen, profile: Profile) -> list[HealthRow]:
        dark = self._dark_level / max(median(profile.levels), 1.0)
        unlit = (seen.unlit_share or 0.0) / self._recipe.unlit_share
        return self._take("exposure", (dark, unlit))

    def _look_at_light(self, seen: Seen, levels: Floats) -> list[HealthRow]:
        reference = self._light.reference
        if reference is not None:
            return self._take("light", (levels / reference - 1) / self._recipe.light_change)
        # A reference learned in a bad light would be wrong for all that is held against it.
        if "exposure" in self._begun or not self._light.learn(levels):
            return []
        return [self._reference_row(seen.result_id)]

    def _length_ratios(self, change: float) -> tuple[float, float]:
        """Downweb and crossweb; the outline's cells are too coarse for small plates' widths."""
        limit = self._recipe.length_change
        coarse = _EDGE_BIAS_PX / self._geometry.width_px
        return change / limit, median(np.array(self._widths)) / max(limit, coarse)

    # --- rows -----------------------------------------------------------------------------------

    def _begin(self, key: str, name: str, words: _Words, since: str | None) -> AttentionBody:
        self._begun[key] = AttentionBody(
            station_id=self._station_id,
            result_id=self._last_id,
            since_result_id=since,
            name=name,
            is_begin=True,
            **(asdict(words) | {"measured": round(words.measured, 5)}),
        )
        return self._begun[key]

    def _end(self, key: str) -> AttentionBody:
        """The row that says it is over; what it repeats is what it began with."""
        self._places.pop(key, None)
        begun = self._begun.pop(key)
        said = begun.model_dump(exclude={"written_at", "boot_id", "result_id", "is_begin"})
        return AttentionBody(**said, result_id=self._last_id, is_begin=False)

    def _restore(self, body: AttentionBody) -> None:
        """What was on before a restart still is, until plates say otherwise."""
        key = body.name
        if body.name == "dirt":
            pitch_mm = self._geometry.pixel_pitch_mm
            start, end = (round((at or 0.0) / pitch_mm) for at in (body.start_mm, body.end_mm))
            start = min(max(start, 0), self._geometry.scan_line_px - 1)
            end = min(max(end, start + 1), self._geometry.scan_line_px)
            key, is_streak = f"dirt {start}-{end}", body.unit == _RELATIVE
            since = body.since_result_id or ""
            self._places[key] = Place(start, end, is_streak, body.measured, body.limit, since)
        self._begun[key] = body

    def _reference_row(self, result_id: str) -> ReferenceBody:
        reference = self._light.reference
        assert reference is not None
        return ReferenceBody(
            station_id=self._station_id,
            result_id=result_id,
            key=self._key,
            plates=self._recipe.reference_plates,
            levels=tuple(None if math.isnan(level) else level for level in reference.tolist()),
        )

    # --- words ----------------------------------------------------------------------------------

    def _dirt_words(self, place: Place) -> _Words:
        pitch_mm = self._geometry.pixel_pitch_mm
        start_mm, end_mm = round(place.start * pitch_mm, 3), round(place.end * pitch_mm, 3)
        where = f"{start_mm:.1f}-{end_mm:.1f}"
        if end_mm - start_mm >= _GROWN_MM:
            where = f"{math.floor(start_mm)}-{math.ceil(end_mm)}"
        unit = _RELATIVE if place.is_streak else "share of plates"
        text = f"clean crossweb {where} mm"
        return _Words(text, place.measured, place.limit, unit, start_mm, end_mm)

    def _light_words(self, place: int, ratio: float) -> _Words:
        change = ratio * self._recipe.light_change
        start, end = (
            float(px) * self._geometry.pixel_pitch_mm
            for px in self._light.edges_px[place : place + 2]
        )
        side = "below" if change < 0 else "above"
        text = f"light {abs(change):.0%} {side} its reference, most at {start:.0f}-{end:.0f} mm"
        return _Words(text, change, self._recipe.light_change, _RELATIVE, start, end)

    def _exposure_words(self, place: int, ratio: float) -> _Words:
        if place == 0:
            level = self._dark_level / ratio
            text = (
                f"plates are dark: level {level:.0f}, {self._dark_level:.0f} wanted; see exposure"
            )
            return _Words(text, level, self._dark_level, "8-bit level")
        limit = self._recipe.unlit_share
        text = (
            f"{ratio * limit:.1%} of pixels black or saturated, {limit:.1%} allowed; see exposure"
        )
        return _Words(text, ratio * limit, limit, "share of pixels")

    def _length_words(self, place: int, ratio: float) -> _Words:
        limit = self._recipe.length_change
        # Of the last plates: those before them may have been as wanted.
        width = median(np.array(self._widths)[-_SLIPPING:])
        length = ratio * limit if place == 0 else median(np.array(self._lengths))
        longer = "longer" if length > 0 else "shorter"
        wider = "wider" if width > 0 else "narrower"
        if abs(width - length) < max(abs(width), abs(length)) / 2:
            text = f"scale: plates {abs(length):.1%} {longer} and {abs(width):.1%} {wider}"
        elif place == 0:
            text = f"belt slips or encoder is off: plates {abs(length):.1%} {longer}, not {wider}"
        else:
            text = f"scale crossweb: plates {abs(width):.1%} {wider}; see camera distance and lens"
        return _Words(text, width if place else length, limit, _RELATIVE)

    def _temperature_words(self, place: int, ratio: float) -> _Words:
        recipe = self._recipe
        limit_c = recipe.min_temperature_c if place else recipe.max_temperature_c
        distance_c = (ratio - 1) * _SPAN_C
        found_c = limit_c - distance_c if place else limit_c + distance_c
        side = "at least" if place else "at most"
        text = f"camera at {found_c:.1f} C, {side} {limit_c:g} C wanted"
        return _Words(text, found_c, limit_c, "C")
