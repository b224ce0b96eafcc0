"""How often does the drift watch call without cause, and how soon with one?

    python benchmarks/drift.py bank --out /tmp/bank.npz            # features of rendered plates
    python benchmarks/drift.py arl --bank /tmp/bank.npz            # plates between false alarms
    python benchmarks/drift.py delay --bank /tmp/bank.npz          # plates until a drift is found
    python benchmarks/drift.py cost                                # CPU of a plate and a batch

The bank holds the features of plates rendered as on the demo's belt, cut and scored by the
station's own code, and of the same plates under each drift: 5 % less light, 20 % less contrast of
the dots, more noise, dirt on the lens, another network. A stream draws its plates from the bank,
one as likely as the other, and adds to each feature what makes lines hard to watch: an
autoregression of the plates' own standard deviation, and a slow wander of random period and phase.
Each stream learns its own limits from its first plates, as a station does, and is then watched by
the station's own charts.

Run length: all streams are watched until their first alarm or the horizon; plates watched over
alarms is the estimate for exponential run lengths, its interval is Poisson's. Streams with worse
limits alarm first and leave, so it errs to the short side of a mean over stations.
"""

from __future__ import annotations

import argparse
import json
import queue
import time
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import signal, stats

from drivers.camera.settings import SimulatedCameraSettings
from drivers.camera.simulated import SimulatedCamera
from models.classifier import Classifier
from models.registry import find_model
from models.runtimes import build_runner
from station.config import Loaded, load_recipe
from station.crossweb import column_profile
from station.drift import Drift, wanted_of
from station.drift_charts import (
    BATCH_PLATES,
    Charts,
    Limits,
    Reading,
    finding,
    is_enough,
    learn,
    point_of,
    ratios,
)
from station.drift_log import DriftRegister
from station.inspection import Inspector, PlateScored, PlateWork
from station.judge import Judge
from station.plate_features import plate_features
from station.plate_names import NAMES
from station.strip import PlateClosed, PlateOpened, StripCutter, TileRowReady, buffer_lines
from station.tiling import Geometry

Floats = NDArray[np.float64]

RECIPE = load_recipe("shipped:demo-lgp").value
WIDTH_PX, PITCH_MM, FRAME_HEIGHT = 4096, 0.1, 64
DRIFTS: dict[str, dict[str, Any]] = {
    "none": {},
    "light -5 %": {"light_level": 0.95},
    "contrast -20 %": {"dot_contrast": 0.8},
    "noise +40 %": {"noise": True},
    "dirt": {"dirt_mm": (125.0, 131.0), "dirt_contrast": -0.4},
    "model": {"model": True},
}
CAUSES = {
    "light -5 %": "light",
    "light -5 % in 400 plates": "light",
    "contrast -20 %": "material",
    "noise +40 %": "material",
    "dirt": "lens",
    "model": "model",
}
CORRELATIONS = (0.0, 0.5, 0.8, 0.9, 0.95, 0.98)
_NOISE_GAIN = 1.4
_NOISE_LEVELS = 2.2
_WEIGHT_NOISE = 0.1
_WANDER = {"level": 0.005, "contrast": 0.02, "noise": 0.03, "section": 0.003}
_WANDER_ODDS = 0.1
_POINTS_AT_ONCE = 25
_PERIODS = (2_000, 20_000)


# --- bank ----------------------------------------------------------------------------------------


def bank(plates: int, seed: int) -> dict[str, Floats]:
    """Features (plates, features) under each drift, the same plates in the same order."""
    folder = find_model(RECIPE.model.id)
    return {name: _features(folder, wear, plates, seed) for name, wear in DRIFTS.items()}


def _features(folder: Path, wear: dict[str, Any], plates: int, seed: int) -> Floats:
    geometry = Geometry.of(RECIPE, PITCH_MM, WIDTH_PX)
    camera = SimulatedCamera(
        SimulatedCameraSettings.model_validate(
            {
                "type": "simulated",
                "seed": seed,
                "frame_height": FRAME_HEIGHT,
                "bank_plates": plates,
                "is_paced": False,
                "specimen": {"defective_share": 0.1, "gap_mm": 20.0},
                "wear": {
                    name: value for name, value in wear.items() if name not in ("noise", "model")
                },
            }
        )
    )
    classifier = Classifier.load(folder)
    if "model" in wear:
        model = _other_network((folder / "model.onnx").read_bytes(), seed)
        classifier.runners[:] = [build_runner("other", model, "fp32")]
    threshold = classifier.threshold_for(RECIPE.model.threshold)
    done: queue.SimpleQueue[PlateWork] = queue.SimpleQueue()
    judge = Judge(Loaded(RECIPE, "", ""), classifier, threshold, is_self_tested=True)
    inspector = Inspector(
        geometry,
        1,
        lambda message: done.put(message.work) if isinstance(message, PlateScored) else None,
    )
    pixels = np.zeros((buffer_lines(geometry), WIDTH_PX), np.uint8)
    cutter = StripCutter(geometry, FRAME_HEIGHT, lambda: pixels)
    into = np.empty(camera.info.max_frame_bytes, np.uint8)
    rng = np.random.default_rng((seed, 9))
    more = _NOISE_LEVELS * np.sqrt(_NOISE_GAIN**2 - 1)
    found: list[Floats] = []
    work: PlateWork | None = None
    camera.start()
    while len(found) < plates:
        frame = camera.grab(into, 1.0)
        assert frame is not None
        if "noise" in wear:
            noise = more * rng.standard_normal(frame.pixels.shape, dtype=np.float32)
            noise[frame.pixels < RECIPE.plate.belt_level] = 0
            frame = replace(frame, pixels=np.clip(frame.pixels + noise, 0, 255).astype(np.uint8))
        for event in cutter.feed(frame):
            if isinstance(event, PlateOpened):
                work = PlateWork(event.plate, "", 0, None, judge)
            elif isinstance(event, TileRowReady) and work is not None:
                inspector.score(work, event.row)
            elif isinstance(event, PlateClosed) and work is not None:
                inspector.close(work)
                scored = done.get()
                profile = column_profile(scored.plate)
                found.append(plate_features(scored, profile, threshold, WIDTH_PX))
    inspector.stop()
    return np.array(found)


def _other_network(model: bytes, seed: int) -> bytes:
    """The same layers with every weight a little off: a network that was trained again."""
    import onnx
    from onnx import numpy_helper

    graph, rng = onnx.load_from_string(model), np.random.default_rng((seed, 8))
    for tensor in graph.graph.initializer:
        weights = numpy_helper.to_array(tensor)
        if weights.ndim >= 2 and weights.dtype == np.float32:
            spread = _WEIGHT_NOISE * float(weights.std())
            noisy = weights + spread * rng.standard_normal(weights.shape, dtype=np.float32)
            tensor.CopyFrom(numpy_helper.from_array(noisy.astype(np.float32), tensor.name))
    return bytes(graph.SerializeToString())


# --- streams -------------------------------------------------------------------------------------


class Streams:
    """Many stations' plates at once, (streams, plates, features), without end."""

    def __init__(
        self, plates: dict[str, Floats], count: int, correlation: float, rng: np.random.Generator
    ) -> None:
        self._plates, self._rng, self._correlation = plates, rng, correlation
        self._count, self._at = count, 0
        size = (count, len(NAMES))
        self._spread = np.nan_to_num(np.nanstd(plates["none"], axis=0))
        self._slow = rng.standard_normal(size)
        periods = np.exp(rng.uniform(*np.log(_PERIODS), size))
        self._turn, self._phase = 2 * np.pi / periods, rng.uniform(0, 2 * np.pi, size)
        self._amplitude = np.array([_amplitude(name) for name in NAMES])

    def take(
        self, count: int, drift: str = "none", begun_at: Floats | None = None, ramp: int = 0
    ) -> Floats:
        """The next plates, those from `begun_at` (streams,) of them on under a drift, which grows
        over `ramp` plates."""
        rng, clean = self._rng, self._plates["none"]
        which = rng.integers(len(clean), size=(self._count, count))
        found = clean[which]
        if begun_at is not None:
            done = np.arange(count) - begun_at[:, None]
            share = np.clip((done + 1) / ramp, 0, 1) if ramp else (done >= 0).astype(float)
            found += share[..., None] * (self._plates[drift] - clean)[which]
        if self._correlation:
            new = rng.standard_normal(found.shape) * np.sqrt(1 - self._correlation**2)
            before = self._correlation * self._slow[:, None]
            slow, _ = signal.lfilter([1.0], [1.0, -self._correlation], new, axis=1, zi=before)
            self._slow = slow[:, -1]
            found += slow * self._spread
        at = self._at + np.arange(count)
        turns = self._turn[:, None] * at[:, None] + self._phase[:, None]
        found += self._amplitude * np.sin(turns)
        self._at += count
        return found

    def keep(self, which: NDArray[np.bool_]) -> None:
        """Go on with some of them."""
        self._slow, self._turn, self._phase = (
            values[which] for values in (self._slow, self._turn, self._phase)
        )
        self._count = int(which.sum())


def _amplitude(name: str) -> float:
    return next((size for start, size in _WANDER.items() if name.startswith(start)), _WANDER_ODDS)


def points_of(plates: Floats) -> Floats:
    """(streams, batches, features)."""
    count, length, size = plates.shape
    batches = plates.reshape(count, length // BATCH_PLATES, BATCH_PLATES, size)
    return point_of(batches.transpose(2, 0, 1, 3))


def learned(streams: Streams, count: int, learn_plates: int) -> Charts:
    """Each stream's own limits from its first plates, stacked."""
    least, wanted = -(-learn_plates // BATCH_PLATES), wanted_of(RECIPE.drift)
    points = points_of(streams.take(2 * least * BATCH_PLATES))
    limits = []
    for seen in points:
        enough = next(
            n for n in range(least, 2 * least + 1, least // 4) if is_enough(seen[:n], least)
        )
        limits.append(learn(seen[:enough], wanted))
    return Charts(_stacked(limits))


def _stacked(limits: list[Limits]) -> Limits:
    arrays = {
        field.name: np.stack([np.asarray(getattr(one, field.name)) for one in limits])
        for field in fields(Limits)
    }
    return Limits(**arrays)  # type: ignore[arg-type]


def _some(limits: Limits, which: Any) -> Limits:
    return Limits(**{field.name: getattr(limits, field.name)[which] for field in fields(Limits)})


def _is_beyond(reading: Reading, limits: Limits) -> NDArray[np.bool_]:
    sizes: NDArray[np.bool_] = np.nanmax(np.abs(ratios(reading, limits)), axis=-1) > 1
    return sizes


# --- run length and delay ------------------------------------------------------------------------


def run_length(
    plates: dict[str, Floats], correlation: float, options: argparse.Namespace
) -> dict[str, Any]:
    rng = np.random.default_rng((options.seed, round(1000 * correlation), 1))
    streams = Streams(plates, options.streams, correlation, rng)
    charts = learned(streams, options.streams, options.learn)
    watched, alarms = 0, 0
    for _ in range(options.horizon // BATCH_PLATES // _POINTS_AT_ONCE):
        coming = points_of(streams.take(BATCH_PLATES * _POINTS_AT_ONCE))
        calls = np.full(len(coming), _POINTS_AT_ONCE)
        for number in range(_POINTS_AT_ONCE):
            reading = charts.take(coming[:, number])
            off = _is_beyond(reading, charts.limits)
            calls[off] = np.minimum(calls[off], number)
        is_well = calls == _POINTS_AT_ONCE
        watched += BATCH_PLATES * int(np.minimum(calls + 1, _POINTS_AT_ONCE).sum())
        alarms += int((~is_well).sum())
        if not is_well.any():
            break
        streams.keep(is_well)
        charts = Charts(_some(charts.limits, is_well), charts.mean[is_well], charts.last[is_well])
    low = 2 * watched / stats.chi2.ppf(0.975, 2 * alarms + 2)
    high = 2 * watched / stats.chi2.ppf(0.025, 2 * alarms) if alarms else None
    return {
        "correlation": correlation,
        "streams": options.streams,
        "plates_watched": watched,
        "false_alarms": alarms,
        "run_length": round(watched / alarms) if alarms else None,
        "low": round(low),
        "high": round(high) if high else None,
    }


def delays(
    plates: dict[str, Floats], correlation: float, options: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """Under each drift, the same stations: plates from the first one that is off to the last of the
    batch that calls."""
    rng = np.random.default_rng((options.seed, round(1000 * correlation), 2))
    count = options.streams
    streams = Streams(plates, count, correlation, rng)
    charts = learned(streams, count, options.learn)
    for point in points_of(streams.take(10 * BATCH_PLATES)).transpose(1, 0, 2):
        charts.take(point)
    begun_at = rng.integers(BATCH_PLATES, size=count).astype(np.float64)
    for drift in CAUSES:
        said = _delay(deepcopy(streams), deepcopy(charts), drift, begun_at, options.longest)
        yield {"drift": drift, "correlation": correlation, "streams": count, **said}


def _delay(
    streams: Streams, charts: Charts, drift: str, begun_at: Floats, longest: int
) -> dict[str, Any]:
    count, ramp = len(begun_at), 400 if "in 400" in drift else 0
    name = drift.partition(" in ")[0]
    coming = points_of(streams.take(longest, name, begun_at, ramp)).transpose(1, 0, 2)
    waited = np.full(count, np.inf)
    named = np.zeros(count, bool)
    for number, point in enumerate(coming):
        reading = charts.take(point)
        for at in np.flatnonzero(_is_beyond(reading, charts.limits) & np.isinf(waited)):
            waited[at] = (number + 1) * BATCH_PLATES - begun_at[at]
            one = Reading(reading.mean[at], reading.jump[at], reading.distance[at])
            said = finding(one, _some(charts.limits, at))
            named[at] = said is not None and said.cause == CAUSES[drift]
    is_found = np.isfinite(waited)
    median, late = np.quantile(waited, [0.5, 0.95], method="higher")
    return {
        "median": float(median),
        "p95": float(late) if np.isfinite(late) else None,
        "not_found": int((~is_found).sum()),
        "named": round(float(named[is_found].mean()), 3) if is_found.any() else None,
    }


# --- cost ----------------------------------------------------------------------------------------


def cost(options: argparse.Namespace) -> dict[str, Any]:
    """CPU of a batch in the station's own watch, file included; of a plate see `bank`."""
    import tempfile

    rng = np.random.default_rng(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        watch = Drift(
            RECIPE.drift.model_copy(update={"learn_plates": 96}),
            "t",
            "key",
            {},
            Path(folder),
            DriftRegister(),
        )
        features = rng.standard_normal((4000, len(NAMES))) * 0.01 + 4.0
        took = []
        for number, plate in enumerate(features):
            since = time.thread_time()
            watch.plate(f"t-{number}", plate, True, False)
            took.append(time.thread_time() - since)
    batches = 1e3 * np.array(took[2000:]).reshape(-1, BATCH_PLATES).sum(axis=1)
    return {
        "batch_ms": round(float(np.median(batches)), 3),
        "max_ms": round(float(batches.max()), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["bank", "arl", "delay", "cost"])
    parser.add_argument("--bank", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--plates", type=int, default=96, help="Of the bank.")
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--horizon", type=int, default=200_000)
    parser.add_argument("--longest", type=int, default=2_000)
    parser.add_argument("--learn", type=int, default=RECIPE.drift.learn_plates)
    parser.add_argument("--correlation", type=float, action="append")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    correlations = options.correlation or CORRELATIONS
    if options.what == "bank":
        made = bank(options.plates, options.seed)
        np.savez(options.out, **made)
        for name, values in made.items():
            means = np.nanmedian(values - made["none"], axis=0)
            print(json.dumps({name: dict(zip(NAMES, np.round(means, 4).tolist(), strict=True))}))
        return
    if options.what == "cost":
        print(json.dumps(cost(options)))
        return
    with np.load(options.bank) as archive:
        plates = {name: archive[name] for name in archive.files}
    for correlation in correlations:
        if options.what == "arl":
            print(json.dumps(run_length(plates, correlation, options)), flush=True)
        for row in delays(plates, correlation, options) if options.what == "delay" else ():
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
