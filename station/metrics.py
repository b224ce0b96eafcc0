"""The station's figures in Prometheus' words, from what each process says of itself when asked.

Names follow Prometheus' conventions: base units, `_total` for what only grows. Labels take their
values from enumerations of this program or from configuration; nothing a plate or a person says
becomes a label, so the number of series is bounded. Nothing here raises because a process is dead.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Final

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from drivers.stacklight import LightState
from station.counters import BOUNDS_S, STAGES
from station.ipc import SOCKETS, Json
from station.processes import ask_all, said_figures, started_at, temperatures_c
from station.record import Provenance
from station.release import program_version
from station.state import StationState

ASK_TIMEOUT_S: Final = 0.5
"""A process that does not answer within it counts as down for this scrape."""
PROCESSES: Final = ("lamp", "journal", "station", "camera", "metrics")
_MOST_SENSORS = 32
_MOST_LABELS = 64


@dataclass(frozen=True, slots=True)
class Figure:
    """A number of some process's status, and the metric that shows it."""

    process: str
    field: str
    """Keys that lead to the number, joined by dots. A status without it has no sample."""
    name: str
    unit: str
    """`""` where the number has none; the metric's name ends in it."""
    text: str
    is_counter: bool = False


def _gauge(process: str, field: str, name: str, unit: str, text: str) -> Figure:
    return Figure(process, field, name, unit, text)


def _counter(process: str, field: str, name: str, text: str) -> Figure:
    return Figure(process, field, name, "", text, is_counter=True)


FIGURES: Final = (
    _gauge("station", "uptime_s", "vqi_station_uptime", "seconds", "Since the station began"),
    _gauge("station", "tick_age_s", "vqi_tick_age", "seconds", "Since a tick came through camera, "
           "ring, inspection and journal"),
    _gauge("station", "verdict_age_s", "vqi_last_verdict_age", "seconds",
           "Since a verdict became durable"),
    _gauge("station", "waiting_s", "vqi_verdict_waiting_age", "seconds",
           "Since the oldest plate without a durable verdict left the camera; 0: none waits"),
    _counter("station", "plates", "vqi_plates", "Plates with a record"),
    _counter("station", "tiles", "vqi_tiles", "Tiles scored"),
    _counter("station", "frames", "vqi_frames", "Frames taken"),
    _counter("station", "lost_frames", "vqi_lost_frames", "Frames that never came, by their ids"),
    _counter("station", "incomplete_frames", "vqi_incomplete_frames", "Frames with missing data"),
    _counter("station", "camera.overrun_frames", "vqi_ring_overrun_frames",
             "Frames that found no free slot of the ring, since the camera process began"),
    _counter("station", "camera_restarts", "vqi_camera_restarts", "Camera processes replaced"),
    _counter("station", "lamp_commands.commands", "vqi_lamp_commands",
             "Commands for another state or plate"),
    _counter("station", "lamp_commands.renewals", "vqi_lamp_lease_renewals",
             "Commands that renewed a lease"),
    _gauge("lamp", "is_confirmed", "vqi_lamp_confirmed", "", "The device was read back: 1"),
    _gauge("lamp", "is_held", "vqi_lamp_held", "", "A station holds the lamp: 1"),
    _gauge("journal", "tick_age_s", "vqi_journal_tick_age", "seconds",
           "Since the journal said that it could write"),
    _gauge("journal", "waiting_s", "vqi_journal_waiting_age", "seconds",
           "Since the oldest submission in work came"),
    _counter("journal", "rows", "vqi_journal_rows", "Rows in the log"),
    _counter("journal", "commits", "vqi_journal_commits", "Commits"),
    _counter("journal", "pictures", "vqi_pictures_written", "Pictures written"),
    _counter("journal", "picture_bytes", "vqi_picture_written_bytes", "Bytes of those pictures"),
    _counter("journal", "orphans", "vqi_journal_orphans", "Pictures without a row, moved away"),
    _gauge("journal", "unsettled.open", "vqi_open_plates", "",
           "Plates that did not pass, neither removed, reworked, scrapped nor overruled"),
    _gauge("journal", "unsettled.rework", "vqi_rework_plates", "",
           "Plates out for rework that have not come back"),
    _gauge("journal", "database_bytes", "vqi_journal_database", "bytes", "Of the log's file"),
    _gauge("journal", "wal_bytes", "vqi_journal_wal", "bytes", "Of the log's write-ahead file"),
    _gauge("journal", "snapshot_age_s", "vqi_journal_snapshot_age", "seconds",
           "Since the copy for other tools was renewed"),
    _gauge("journal", "disk_free_bytes", "vqi_disk_free", "bytes", "Where the log lies"),
    _gauge("journal", "disk_bytes", "vqi_disk_size", "bytes", "Where the log lies"),
    _gauge("journal", "disk_free_files", "vqi_disk_free_files", "", "Where the log lies"),
)  # fmt: skip

OPTIONAL_FIGURES: Final = (
    _gauge("lamp", "can_confirm", "vqi_lamp_can_confirm", "", "The device can be read back: 1"),
    _gauge("lamp", "plc.ready", "vqi_plc_ready", "", "READY as the PLC sees it"),
    _counter("lamp", "plc.heartbeat", "vqi_plc_heartbeats", "Heartbeats told to the PLC"),
    _counter("lamp", "plc.overruns", "vqi_plc_overruns", "Results that the PLC never acknowledged"),
    _counter("lamp", "plc.late", "vqi_plc_late", "Plates past their point before their verdict"),
    _counter("lamp", "accept.accept", "vqi_accept_pulses", "Plates accepted"),
    _counter("lamp", "accept.withheld", "vqi_accept_withheld", "Plates not accepted"),
    _counter("lamp", "accept.withheld_late", "vqi_accept_withheld_late",
             "Plates past the accept point before their verdict"),
    _counter("station", "serials.readings", "vqi_serial_readings", "Part serials read"),
    _counter("station", "serials.refused", "vqi_serials_refused", "Readings that are no serial"),
    _counter("station", "serials.assigned", "vqi_serials_assigned", "Plates with their serial"),
    _counter("station", "serials.none", "vqi_serials_none", "Plates without a serial"),
    _counter("station", "serials.ambiguous", "vqi_serials_ambiguous",
             "Plates whose serial is not certain"),
    _counter("station", "serials.unclaimed", "vqi_serials_unclaimed",
             "Serials that no plate took"),
    _counter("station", "drift.unmeasured", "vqi_drift_unmeasured_plates",
             "Judged plates that the drift watch could not measure"),
    _gauge("journal", "disk.level", "vqi_disk_watermark_level", "",
           "0: room enough; each level gives up more, from the third on READY drops"),
    _counter("journal", "retention.tombstones", "vqi_retention_tombstones", "Tombstones written"),
    _counter("journal", "retention.removed", "vqi_retention_removed_pictures", "Pictures removed"),
    _gauge("journal", "retention.pictures_bytes", "vqi_pictures", "bytes",
           "Of the pictures that the log names, counted by the hour and added up between"),
    _gauge("journal", "retention.quarantined", "vqi_quarantined_pictures", "",
           "Pictures without a row that are kept aside"),
    _gauge("journal", "retention.holds", "vqi_legal_holds", "", "Results under a legal hold"),
    _gauge("journal", "retention.sweep_age_s", "vqi_retention_sweep_age", "seconds",
           "Since pictures were last looked through"),
    _gauge("journal", "backup.age_s", "vqi_backup_age", "seconds", "Since a verified backup"),
    _counter("journal", "clock.steps", "vqi_clock_steps", "Steps of the wall clock"),
    _gauge("journal", "clock.ahead_s", "vqi_clock_ahead", "seconds",
           "Of the wall clock, against the log's last times"),
)  # fmt: skip
"""What a status has only where that part of the station is configured, or once it has happened."""


class StationCollector:
    """A collector for prometheus-client. Used by one thread at a time."""

    def __init__(self, runtime_dir: Path) -> None:
        self._runtime_dir = runtime_dir
        self._lives: dict[str, tuple[int, int, float]] = {}
        """Process id, start ticks and start time of each process, as seen last."""
        self._restarts = dict.fromkeys(PROCESSES, 0)

    def collect(self) -> Iterator[Metric]:
        """Ask every process and give all metrics; a dead process has `vqi_up` 0 and no others."""
        began = time.monotonic()
        said = ask_all(self._runtime_dir, ASK_TIMEOUT_S)
        status = {process: answer or {} for process, (answer, _) in said.items()}
        yield _up({process: answer is not None for process, (answer, _) in said.items()})
        yield from (_figure(item, status[item.process]) for item in FIGURES + OPTIONAL_FIGURES)
        yield from _states(status)
        yield from _counts(status)
        yield from _depths(status)
        yield from _histograms(status)
        yield from _machine(status)
        yield from self._processes(status)
        yield _single("vqi_scrape_duration_seconds", "Of this scrape", time.monotonic() - began)

    def _processes(self, status: dict[str, Json]) -> Iterator[Metric]:
        found = {process: status[process].get("process") for process in SOCKETS}
        found |= {
            "camera": status["station"].get("camera_process"),
            "metrics": said_figures(os.getpid()),
        }
        figures = {process: item for process, item in found.items() if item is not None}
        for process, item in figures.items():
            self._see(process, item["pid"], item["start_ticks"])
        yield from _process_families(figures)
        since = {process: self._lives[process][2] for process in figures}
        yield _labelled(
            "vqi_process_start_time_seconds", "Since 1970, by process", "process", since
        )
        yield _labelled_counter(
            "vqi_process_restarts",
            "Other lives of a process that were seen since the metrics process began",
            "process",
            self._restarts,
        )

    def _see(self, process: str, pid: int, start_ticks: int) -> None:
        before = self._lives.get(process)
        if before is not None and before[:2] == (pid, start_ticks):
            return
        self._restarts[process] += before is not None
        self._lives[process] = (pid, start_ticks, started_at(start_ticks))


# --- families -----------------------------------------------------------------------------------


def _at(status: Json, field: str) -> Any:
    """The value that the keys of `field` lead to; None where there is none."""
    value: Any = status
    for key in field.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _number(value: Any) -> float | None:
    """A number or a truth; None for everything else."""
    return float(value) if isinstance(value, int | float) else None


def _figure(item: Figure, status: Json) -> Metric:
    name = f"{item.name}_{item.unit}" if item.unit else item.name
    kind = CounterMetricFamily if item.is_counter else GaugeMetricFamily
    family = kind(name, f"{item.text}.")
    value = _number(_at(status, item.field))
    if value is not None:
        family.add_metric([], value)
    return family


def _single(name: str, text: str, value: float | None) -> Metric:
    family = GaugeMetricFamily(name, f"{text}.")
    if value is not None:
        family.add_metric([], value)
    return family


def _labelled(name: str, text: str, label: str, values: dict[str, Any]) -> Metric:
    return _fill(GaugeMetricFamily(name, f"{text}.", labels=[label]), values)


def _labelled_counter(name: str, text: str, label: str, values: dict[str, Any]) -> Metric:
    return _fill(CounterMetricFamily(name, f"{text}.", labels=[label]), values)


def _fill(family: Metric, values: dict[str, Any]) -> Metric:
    for key, value in list(values.items())[:_MOST_LABELS]:
        number = _number(value)
        if number is not None:
            family.add_metric([key], number)  # type: ignore[attr-defined]
    return family


def _up(is_up: dict[str, bool]) -> Metric:
    return _labelled("vqi_up", "The process answers: 1", "process", is_up)


def _enumeration(name: str, label: str, values: Iterable[str], current: Any) -> Metric:
    """A gauge that is 1 for the current value and 0 for the others; no sample if it is unknown."""
    states = {} if current is None else {value: value == current for value in values}
    return _labelled(name, f"1 for the {label} that holds now", label, states)


def _states(status: dict[str, Json]) -> Iterator[Metric]:
    station, lamp = status["station"], status["lamp"]
    yield _enumeration("vqi_station_state", "state", StationState, station.get("state"))
    yield _enumeration("vqi_provenance", "provenance", Provenance, station.get("provenance"))
    light = [*LightState, "unknown"]
    yield _enumeration("vqi_lamp_state", "state", light, lamp.get("state"))
    yield _single("vqi_ready", "Plates may come: 1", _is_ready(station))
    problems = station.get("problems") or {}
    yield _labelled("vqi_problem", "A part of the station has a problem: 1", "part",
                    dict.fromkeys(problems, 1))  # fmt: skip
    calls = station.get("calls")
    count = len(calls) if isinstance(calls, list) else None
    yield _single("vqi_attentions", "Calls for a person that stand, of every part", count)
    drift = station.get("drift") or {}
    yield _labelled("vqi_drift_ratio", "A chart of drift, in multiples of its limit", "chart",
                    drift.get("ratios") or {})  # fmt: skip
    is_watching = drift.get("state") == "watching" if drift else None
    yield _single("vqi_drift_watching", "Limits of drift are learned: 1", is_watching)
    yield _build(station, status["journal"])


def _is_ready(station: Json) -> float | None:
    """READY as the station says it; of one that does not say, whether it is OPERATIONAL."""
    if not station:
        return 0.0
    if isinstance(station.get("ready"), bool):
        return float(station["ready"])
    return float(station.get("state") == StationState.OPERATIONAL)


def _build(station: Json, journal: Json) -> Metric:
    labels = {
        "version": program_version(),
        "station_id": station.get("station_id", ""),
        "recipe": _at(station, "recipe.id"),
        "recipe_version": _at(station, "recipe.version"),
        "model": _at(station, "model.id"),
        "model_sha256": str(_at(station, "model.sha256") or "")[:12],
        "precision": _at(station, "model.precision"),
        "sqlite": journal.get("sqlite"),
    }
    family = GaugeMetricFamily("vqi_build_info", "1, with what runs here.", labels=list(labels))
    family.add_metric(["" if value is None else str(value) for value in labels.values()], 1)
    return family


def _counts(status: dict[str, Json]) -> Iterator[Metric]:
    station = status["station"]
    results = CounterMetricFamily(
        "vqi_results", "Records by verdict and reason.", labels=["verdict", "reason"]
    )
    for item in (station.get("results") or ())[:_MOST_LABELS]:
        results.add_metric([item["verdict"], item["reason"] or ""], item["count"])
    yield results
    commands = station.get("lamp_commands") or {}
    outcomes = ("confirmed", "taken", "refused", "unanswered")
    yield _labelled_counter(
        "vqi_lamp_answers",
        "Answers to commands; taken: sent to a device that cannot be read back",
        "outcome",
        {outcome: commands.get(outcome) for outcome in outcomes},
    )


def _depths(status: dict[str, Json]) -> Iterator[Metric]:
    station, journal = status["station"], status["journal"]
    depths = {**(station.get("queues") or {}), "journal": journal.get("waiting"),
              "journal_drafts": journal.get("drafts")}  # fmt: skip
    yield _labelled("vqi_queue_depth", "Things that wait in a queue", "queue", depths)
    capacities = station.get("capacities") or {}
    yield _labelled("vqi_queue_capacity", "What a queue holds at most", "queue", capacities)


def _histograms(status: dict[str, Json]) -> Iterator[Metric]:
    times = status["station"].get("times") or {}
    stages = HistogramMetricFamily(
        "vqi_plate_stage_seconds",
        "Time of a plate from stage to stage, the first from its last scan line.",
        labels=["stage"],
    )
    for stage in STAGES:
        _add_histogram(stages, [stage], _at(times, f"stages.{stage}"))
    yield stages
    latency = HistogramMetricFamily(
        "vqi_plate_latency_seconds",
        "From a plate's last scan line in memory to the lamp's command.",
        labels=[],
    )
    _add_histogram(latency, [], times.get("latency"))
    yield latency
    commits = HistogramMetricFamily(
        "vqi_journal_commit_seconds", "Of commits, with the syncs of their pictures.", labels=[]
    )
    _add_histogram(commits, [], status["journal"].get("commit_times"))
    yield commits


def _add_histogram(family: HistogramMetricFamily, labels: list[str], said: Json | None) -> None:
    if not said:
        return
    ends = [*(str(bound) for bound in BOUNDS_S), "+Inf"]
    family.add_metric(
        labels,
        buckets=list(zip(ends, accumulate(said["counts"]), strict=True)),
        sum_value=said["sum_s"],
    )


def _machine(status: dict[str, Json]) -> Iterator[Metric]:
    temperatures: dict[str, Any] = dict(list(temperatures_c().items())[:_MOST_SENSORS])
    temperatures["camera"] = _at(status["station"], "camera.temperature_c")
    yield _labelled(
        "vqi_temperature_celsius", "As the sensor of this name says", "sensor", temperatures
    )
    is_synchronised, error_s = clock()
    if is_synchronised is None:
        is_synchronised = _at(status["journal"], "clock.is_synchronized")
    yield _single("vqi_clock_synchronised", "The kernel's clock is: 1", is_synchronised)
    yield _single("vqi_clock_max_error_seconds", "As the kernel knows it", error_s)


class _Timex(ctypes.Structure):
    """struct timex of adjtimex(2), as far as it is read here."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("rest", ctypes.c_char * 256),
    )


_LIBC = ctypes.CDLL(None)
_TIME_ERROR = 5


def clock() -> tuple[bool | None, float | None]:
    """Whether the kernel's clock is synchronised, and its largest error in seconds; None where this
    process may not ask, as in a unit with ProtectClock=."""
    timex = _Timex()
    state = _LIBC.adjtimex(ctypes.byref(timex))
    if state < 0:
        return None, None
    return state < _TIME_ERROR, timex.maxerror / 1e6


def _process_families(figures: dict[str, Json]) -> Iterator[Metric]:
    for name, text, key in (
        ("vqi_process_resident_memory_bytes", "Resident memory", "rss_bytes"),
        ("vqi_process_open_fds", "Open descriptors", "descriptors"),
        ("vqi_process_threads", "Threads", "threads"),
    ):
        values = {process: item[key] for process, item in figures.items()}
        yield _labelled(name, f"{text}, by process", "process", values)
    spent = {process: item["cpu_s"] for process, item in figures.items()}
    yield _labelled_counter(
        "vqi_process_cpu_seconds", "Processor time, by process", "process", spent
    )
