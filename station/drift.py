"""The drift watch of one station: plates in, rows of the log out.

It learns limits from the first plates of a recipe, camera and model, or has them from the log;
then charts every batch of plates and says what changed. Nothing here changes a verdict, and nothing
here waits: a batch costs well under a millisecond, after the lamp's command. Its state is a small
file beside the log, so that a restart goes on where it was; without the file the charts begin anew
and the limits stay, for they are rows.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from station.config import DriftRecipe
from station.drift_charts import (
    BATCH_PLATES,
    MOST_POINTS,
    Alarm,
    Charts,
    Finding,
    Limits,
    Reading,
    Wanted,
    by_chart,
    is_enough,
    learn,
    point_of,
    ratios,
)
from station.drift_log import (
    ALARM,
    CLEARED,
    LIMITS,
    RELEARN,
    Detail,
    DriftRegister,
    change,
    limits_of,
)
from station.log_lines import get_logger
from station.plate_names import NAMES
from station.record import ChangeBody

_LOG = get_logger("drift")
Floats = NDArray[np.float64]
Json = dict[str, Any]

FOLDER = "drift"
"""In the journal's directory: one state file for each key."""
UNMEASURED_PLATES = 6 * BATCH_PLATES
"""So many plates in a row that say nothing: what is not watched calls a person."""
HISTORY_POINTS = 240
"""Points that are kept to be shown once limits hold."""
_MOST_FILES = 16
_UNMEASURED = "unmeasured"


@dataclass(slots=True)
class _State:
    """What a restart goes on with; everything bounded."""

    points: list[list[float | None]] = field(default_factory=list)
    """While it learns all of them, then the newest."""
    ratios: list[list[float | None]] = field(default_factory=list)
    """Of each point's charts, once limits hold."""
    pending: list[list[float | None]] = field(default_factory=list)
    """Plates of the batch that is not full."""
    mean: list[float | None] | None = None
    last: list[float | None] | None = None
    plates: int = 0
    unmeasured: int = 0
    unmeasured_in_a_row: int = 0
    not_learned: int = 0
    """Plates that limits were not learned from, because something was wrong with them."""


def wanted_of(recipe: DriftRecipe) -> Wanted:
    """What a recipe asks to be found."""
    return Wanted(
        recipe.light_change, recipe.contrast_change, recipe.noise_change, recipe.score_change
    )


def state_file(directory: Path, key: str) -> Path:
    """Where the state of a key lies; `directory`: the journal's."""
    return directory / FOLDER / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"


class Drift:
    """Used by one thread."""

    def __init__(
        self,
        recipe: DriftRecipe,
        station_id: str,
        key: str,
        names: Mapping[str, str],
        directory: Path,
        known: DriftRegister,
    ) -> None:
        """`names` stand in the rows beside `key`; `known` is what the log knows."""
        self._recipe, self._wanted = recipe, wanted_of(recipe)
        self._station_id, self._key, self._names = station_id, key, dict(names)
        self._file = state_file(directory, key)
        self._problem = ""
        self._first_id = self._last_id = ""
        self._standing: Detail | None = known.standing.get(key)
        cause: Any = self._standing["cause"] if self._standing else None
        self._alarm = Alarm(cause)
        limits = self._known_limits(known.limits.get(key))
        self._state = self._read(has_limits=limits is not None)
        self._charts: Charts | None = None
        self._reading: Reading | None = None
        if limits is not None:
            self._charts = Charts(limits, _floats(self._state.mean), _floats(self._state.last))

    def _known_limits(self, detail: Detail | None) -> Limits | None:
        try:
            return None if detail is None else limits_of(detail)
        except ValueError as error:  # of a program with other charts
            _LOG.warning("limits not taken", problem=str(error))
            return None

    # --- plates ---------------------------------------------------------------------------------

    def plate(
        self, result_id: str, features: Floats | None, is_calm: bool, is_dirty: bool
    ) -> list[ChangeBody]:
        """One judged plate; the rows to be written because of it. `features` None, or without a
        level: it says nothing. `is_calm`: nothing is known to be wrong, so that limits may be
        learned from it; `is_dirty`: dirt was found on the lens."""
        state = self._state
        state.plates += 1
        self._last_id = result_id
        if features is None or not math.isfinite(features[0]):
            return self._unmeasured()
        state.unmeasured_in_a_row = 0
        if self._charts is None and not is_calm:
            state.not_learned += 1
            return []
        if not state.pending:
            self._first_id = result_id
        state.pending.append(_json(features))
        if len(state.pending) < BATCH_PLATES:
            return []
        point = point_of(np.array(state.pending, np.float64))
        state.pending.clear()
        rows = self._learn(point) if self._charts is None else self._chart(point, is_dirty)
        self.save()
        return rows

    def _unmeasured(self) -> list[ChangeBody]:
        state = self._state
        state.unmeasured += 1
        state.unmeasured_in_a_row += 1
        if state.unmeasured_in_a_row < UNMEASURED_PLATES or self._alarm.standing:
            return []
        self._alarm.standing = "unmeasured"
        count = state.unmeasured_in_a_row
        text = f"drift: not watched, {count} plates in a row could not be measured; see their rows"
        found = Finding("unmeasured", _UNMEASURED, count, UNMEASURED_PLATES, text, {})
        self.save()
        return [self._alarm_row(found)]

    def _learn(self, point: Floats) -> list[ChangeBody]:
        state = self._state
        rows = self._end("measured again") if self._alarm.standing else []
        state.points = [*state.points, _json(point)][-MOST_POINTS:]
        seen = np.array(state.points, np.float64)
        if not is_enough(seen, math.ceil(self._recipe.learn_plates / BATCH_PLATES)):
            return rows
        limits = learn(seen, self._wanted)
        self._charts = Charts(limits)
        state.points = state.points[-HISTORY_POINTS:]
        detail = {
            "result_id": self._last_id,
            "plates": str(limits.plates),
            "too_wide": ", ".join(limits.too_wide(self._wanted)),
            "limits": json.dumps(limits.as_json()),
        }
        return [*rows, self._row(LIMITS, detail)]

    def _chart(self, point: Floats, is_dirty: bool) -> list[ChangeBody]:
        charts, state = self._charts, self._state
        assert charts is not None
        rows = self._end("measured again") if self._alarm.standing == _UNMEASURED else []
        reading = self._reading = charts.take(point)
        found = self._alarm.take(reading, charts.limits, is_dirty)
        state.points = [*state.points, _json(point)][-HISTORY_POINTS:]
        said = _json(ratios(reading, charts.limits), digits=3)
        state.ratios = [*state.ratios, said][-HISTORY_POINTS:]
        state.mean, state.last = _json(charts.mean), _json(charts.last)
        if found is not None:
            ended = self._end("it is something else") if self._standing else []
            self._alarm.standing = found.cause
            return [*rows, *ended, self._alarm_row(found)]
        return [*rows, *(self._end("inside its limits again") if self._alarm.has_ended() else [])]

    # --- rows -----------------------------------------------------------------------------------

    def leave(self) -> list[ChangeBody]:
        """Another model judges from here on: what stood was said of this one's plates."""
        rows = self._end("another model judges") if self._standing else []
        self.save()
        return rows

    def relearn(self, who: str, reason: str, account: str = "") -> list[ChangeBody]:
        """A person has the limits learned anew, from the plates that come."""
        rows = self._end("limits are learned anew") if self._standing else []
        self._alarm, self._charts, self._reading = Alarm(), None, None
        self._state = _State(plates=self._state.plates, unmeasured=self._state.unmeasured)
        self.save()
        said = change(self._station_id, RELEARN, {"key": self._key, "reason": reason}, who)
        return [*rows, said.model_copy(update={"account": account})]

    def _alarm_row(self, found: Finding) -> ChangeBody:
        detail = {
            "cause": found.cause,
            "chart": found.chart,
            "text": found.text,
            "change": f"{found.change:.6g}",
            "limit": f"{found.limit:.6g}",
            "evidence": json.dumps(found.evidence),
            "since_result_id": self._first_id or self._last_id,
            "result_id": self._last_id,
        }
        row = self._row(ALARM, detail)
        self._standing = row.detail
        return row

    def _end(self, why: str) -> list[ChangeBody]:
        standing, self._standing, self._alarm.standing = self._standing, None, None
        if standing is None:
            return []
        said = {name: standing[name] for name in ("cause", "chart", "text")}
        return [self._row(CLEARED, {**said, "result_id": self._last_id, "why": why})]

    def _row(self, what: str, detail: Mapping[str, str]) -> ChangeBody:
        return change(self._station_id, what, {"key": self._key, **self._names, **detail})

    # --- for people -----------------------------------------------------------------------------

    @property
    def attentions(self) -> list[str]:
        """The standing alarm's words."""
        return [self._standing["text"]] if self._standing else []

    def status(self) -> Json:
        """How the watch is now."""
        state, charts, reading = self._state, self._charts, self._reading
        wanted = math.ceil(self._recipe.learn_plates / BATCH_PLATES)
        now = {} if charts is None or reading is None else by_chart(ratios(reading, charts.limits))
        return {
            "state": "watching" if charts is not None else "learning",
            "learned_plates": BATCH_PLATES * len(state.points)
            if charts is None
            else charts.limits.plates,
            "wanted_plates": BATCH_PLATES * wanted,
            "plates": state.plates,
            "unmeasured": state.unmeasured,
            "not_learned": state.not_learned,
            "cause": self._standing["cause"] if self._standing else None,
            "text": self._standing["text"] if self._standing else "",
            "ratios": {name: round(value, 3) for name, value in now.items()},
            "problem": self._problem,
        }

    # --- the file -------------------------------------------------------------------------------

    def save(self) -> None:
        """Keep the state; not synced, for it is no evidence. A problem is said, once."""
        said = {name: getattr(self._state, name) for name in _State.__dataclass_fields__}
        temporary = self._file.with_suffix(".new")
        try:
            self._file.parent.mkdir(exist_ok=True)
            temporary.write_bytes(orjson.dumps({"key": self._key, **said}))
            temporary.rename(self._file)
        except OSError as error:
            if not self._problem:
                _LOG.warning("state not kept", problem=str(error))
            self._problem = f"{self._file}: {error.strerror}"
            return
        self._problem = ""

    def _read(self, has_limits: bool) -> _State:
        self._forget_old_files()
        try:
            said = orjson.loads(self._file.read_bytes())
            if said.pop("key") != self._key:
                raise ValueError("of another key")
            state = _State(**said)
            _check(state)
        except FileNotFoundError:
            return _State()
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            _LOG.warning("state not taken, charts begin anew", problem=repr(error))
            return _State()
        if not has_limits and state.ratios:
            # Limits were learned, and a person had them forgotten, or their row never came to be.
            return _State(plates=state.plates, unmeasured=state.unmeasured)
        return state

    def _forget_old_files(self) -> None:
        """Those of keys that were not watched for longest."""
        try:
            files = [(path.stat().st_mtime, path) for path in self._file.parent.glob("*.json")]
            for _, path in sorted(files)[:-_MOST_FILES]:
                path.unlink()
        except OSError as error:
            _LOG.warning("old states not removed", problem=str(error))


def _check(state: _State) -> None:
    """Raises ValueError, or TypeError, for what is none."""
    lists = (*state.points, *state.pending, *(x for x in (state.mean, state.last) if x is not None))
    if any(len(values) != len(NAMES) for values in lists) or len(state.points) > MOST_POINTS:
        raise ValueError("of other charts")
    np.array([*lists, *([[state.plates] * len(NAMES)])], np.float64)


def _json(values: Floats, digits: int = 6) -> list[float | None]:
    return [round(x, digits) if math.isfinite(x) else None for x in values.tolist()]


def _floats(values: list[float | None] | None) -> Floats | None:
    return None if values is None else np.array(values, np.float64)
