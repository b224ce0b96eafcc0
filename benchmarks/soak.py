"""Does a station stay as it is for hours? Memory, descriptors, threads, files, latency.

    python benchmarks/soak.py [--minutes 90] [--folder var/soak] [--rate-hz HZ] [--json]

The station runs at half of the highest rate that it carries here, on small plates, while QA's
queries, scrapes, backups and the renewal of the snapshot go on. Every few seconds each process is
looked at; what it holds is the least of each minute, since what comes and goes every half minute
is met by some looks and not by others. At the end each series has a slope with a 95 % interval. A
series is flat if that interval holds 0, or the slope lies below a stated floor. The minutes of all
pieces at one rate add up in --folder: a soak that was ended goes on where it was, each piece with
its seed, commit, host and result in ledger.jsonl. A piece that was killed has none and does not
count, nor does one of a program that has changed since. Plots are beside it as SVG.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from loaded_station import (
    METRICS_PORT,
    PROCESSES,
    Bench,
    Floats,
    append_line,
    boot_id,
    counting,
    highest_rate_hz,
    host,
    latencies,
    lives,
    read_lines,
    running,
    state,
    status,
    vqi,
)
from prometheus_client.parser import text_string_to_metric_families

from station.chart import line_chart
from station.qms import DATABASE, WAL_KEPT_BYTES

Json = dict[str, Any]
_EVERY_S = 5.0
_BACKUP_EVERY_S = 300.0
_READERS_PAUSE_S = 1.0
_WARM_UP_S = 600.0
"""Of each piece at most, and a fifth of it: caches and pools fill."""
_DEFECTIVE_SHARE = 0.1
"""So that pictures of hours fit on the disk."""
_FILL_LIMIT_S = 300.0
_T_95 = 1.96
_ENDED, _STOPPED = "to its end", "told to stop"


@dataclass(frozen=True)
class Kind:
    """A kind of series: what an hour may change it by without being a leak."""

    unit: str
    floor_per_h: float
    is_share: bool = False
    """The floor is a share of the series' mean."""


KINDS = {
    "rss": Kind("MB", 0.01, is_share=True),
    "fds": Kind("descriptors", 0.5),
    "threads": Kind("threads", 0.5),
    "wal": Kind("MB", 1.0),
    "p99": Kind("ms", 0.05, is_share=True),
    "p50": Kind("ms", 0.05, is_share=True),
}
"""The database is not among them: it grows by what is recorded."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=90.0, help="of all pieces together")
    parser.add_argument("--rate-hz", type=float, help="half of the highest rate, if it is known")
    parser.add_argument("--folder", type=Path, default=Path("var/soak"))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    # SIGINT, too: a shell's background job begins with it ignored.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.default_int_handler)
    bench = Bench(options.folder.resolve(), _DEFECTIVE_SHARE)
    bench.folder.mkdir(parents=True, exist_ok=True)
    rate_hz = options.rate_hz or highest_rate_hz(bench, say) / 2
    bench.write(rate_hz)
    soak(bench, rate_hz, options)
    result = evaluate(bench, rate_hz)
    print(json.dumps(result) if options.json else table(result))
    sys.exit(exit_status(result, options.minutes))


def exit_status(result: Json, wanted_min: float) -> int:
    """0 only for a soak that is done, flat and whole: one that was ended has not shown it yet."""
    is_done = 60.0 * (wanted_min - result["minutes"]) <= _EVERY_S
    return 0 if is_done and result["is_flat"] and result["is_whole"] else 1


# --- a piece ------------------------------------------------------------------------------------


def soak(bench: Bench, rate_hz: float, options: argparse.Namespace) -> None:
    ledger, samples = bench.folder / "ledger.jsonl", bench.folder / "samples.jsonl"
    done_min = minutes_of(samples_of(bench, counting(ledger, rate_hz)))
    left_s = 60.0 * (options.minutes - done_min)
    if left_s <= _EVERY_S:
        return
    say(f"{done_min:.1f} min are there, {left_s / 60:.1f} min to go at {rate_hz:.0f} scan lines/s")
    piece = 1 + max((row["piece"] for row in read_lines(ledger) + read_lines(samples)), default=-1)
    row: Json = {"piece": piece, "seed": options.seed, **state(), "host": host(),
                 "rate_hz": rate_hz, "boot_id": boot_id()}  # fmt: skip
    with running(bench) as station, loads(bench):
        fill_wal(bench)
        before = lives(station, PROCESSES)
        try:
            sample(bench, samples, row, time.monotonic() + left_s)
            row["result"] = _ENDED
        except KeyboardInterrupt:
            row["result"] = _STOPPED
        except OSError as error:
            row["result"] = f"the station does not answer: {error}"
        last, after = status(bench), lives(station, PROCESSES)
    row["replaced"] = [name for name in PROCESSES if before.get(name) != after.get(name)]
    row["missing"] = [name for name in PROCESSES if name not in after]
    row |= {key: last.get(key) for key in ("plates", "undecided", "gaps", "lost_frames")}
    row |= {"camera_restarts": last.get("camera_restarts"), "findings": verified(bench)}
    append_line(ledger, row)


def fill_wal(bench: Bench) -> None:
    """As after its first long read: the write-ahead file then stays as long as one is kept."""
    log, deadline = bench.journal / DATABASE, time.monotonic() + _FILL_LIMIT_S
    with contextlib.closing(sqlite3.connect(f"file:{log}?mode=ro", uri=True)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT 1 FROM row LIMIT 1").fetchone()
        while log.with_name(f"{log.name}-wal").stat().st_size <= WAL_KEPT_BYTES:
            if time.monotonic() > deadline:
                raise TimeoutError(f"no {WAL_KEPT_BYTES} bytes came in {_FILL_LIMIT_S:g} s")
            time.sleep(0.5)


def sample(bench: Bench, path: Path, row: Json, until_s: float) -> None:
    """Look at everything every few seconds; the file has all of it if this is killed."""
    began_ns, due = time.monotonic_ns(), time.monotonic()
    while time.monotonic() < until_s:
        found = {"piece": row["piece"], "boot_id": row["boot_id"], "began_ns": began_ns}
        append_line(path, found | {"at_ns": time.monotonic_ns(), **figures()})
        due += _EVERY_S
        time.sleep(max(0.0, min(due, until_s) - time.monotonic()))


def figures() -> Json:
    """By a scrape, which is a load of the soak too."""
    url = f"http://127.0.0.1:{METRICS_PORT}/metrics"
    with urllib.request.urlopen(url, timeout=10.0) as answer:
        text = answer.read().decode()
    found: Json = {}
    for metric in text_string_to_metric_families(text):
        for item in metric.samples:
            process = item.labels.get("process")
            if item.name == "vqi_process_resident_memory_bytes":
                found[f"rss {process}"] = item.value / 1e6
            elif item.name == "vqi_process_open_fds":
                found[f"fds {process}"] = item.value
            elif item.name == "vqi_process_threads":
                found[f"threads {process}"] = item.value
            elif item.name == "vqi_journal_wal_bytes":
                found["wal journal"] = item.value / 1e6
            elif item.name == "vqi_journal_database_bytes":
                found["database journal"] = item.value / 1e6
    return found


@contextmanager
def loads(bench: Bench) -> Iterator[None]:
    """QA's queries all the time, and a backup now and then."""
    script = Path(__file__).with_name("interference.py")
    pauses = {"readers": _READERS_PAUSE_S}
    if subprocess.run(vqi("log", "backup", "--help"), capture_output=True, check=False).returncode:
        say("this release has no `vqi log backup`: the soak is without it")
    else:
        pauses["backup"] = _BACKUP_EVERY_S
    started = [
        subprocess.Popen(
            [sys.executable, str(script), name, "--pause-s", str(pause_s),
             "--be-load", str(bench.config)],
            stdout=subprocess.DEVNULL,
            process_group=0,
        )
        for name, pause_s in pauses.items()
    ]  # fmt: skip
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def verified(bench: Bench) -> list[str]:
    """What `vqi log verify` finds; nothing if the log says what was written."""
    done = subprocess.run(
        vqi("log", "verify", "--no-pictures", "--json", "--journal", str(bench.journal)),
        capture_output=True,
        check=False,
    )
    findings: list[str] = json.loads(done.stdout or b'{"findings": ["it cannot be read"]}')[
        "findings"
    ]
    return findings[:5]


# --- what came of it ----------------------------------------------------------------------------


def minutes_of(samples: list[Json]) -> float:
    """From the first to the last sample of each piece, together."""
    spans: dict[int, float] = {}
    for row in samples:
        spans[row["piece"]] = (row["at_ns"] - row["began_ns"]) / 60e9
    return sum(spans.values())


@dataclass(frozen=True)
class Series:
    """A figure over time, piece by piece."""

    piece: Floats
    hours: Floats
    """Since the piece began."""
    values: Floats


def samples_of(bench: Bench, pieces: list[Json]) -> list[Json]:
    """A piece without a row in the ledger was killed: nobody looked at what became of it."""
    numbers = {piece["piece"] for piece in pieces}
    return [row for row in read_lines(bench.folder / "samples.jsonl") if row["piece"] in numbers]


def evaluate(bench: Bench, rate_hz: float) -> Json:
    pieces = counting(bench.folder / "ledger.jsonl", rate_hz)
    samples = samples_of(bench, pieces)
    series = {**sampled_series(samples), **latency_series(bench, samples)}
    rows = [judged(name, found) for name, found in sorted(series.items())]
    draw(bench.folder, series)
    lost = sum(piece["lost_frames"] or 0 for piece in pieces)
    return {
        "minutes": round(minutes_of(samples), 2),
        "longest_piece_minutes": round(longest_min(samples), 1),
        "pieces": pieces,
        "plates": sum(piece["plates"] or 0 for piece in pieces),
        "lost_frames": lost,
        "series": rows,
        "is_flat": all(row["is_flat"] for row in rows if row["floor_per_h"] is not None),
        "is_whole": bool(pieces) and all(is_whole(piece) for piece in pieces),
    }


def is_whole(piece: Json) -> bool:
    """It ended as it was told to, lost nothing, and its processes are those that it began with."""
    is_same = not piece["replaced"] and not piece["missing"] and piece["camera_restarts"] == 0
    is_ended = piece["result"] in (_ENDED, _STOPPED)
    return is_ended and is_same and piece["lost_frames"] == 0 and not piece["findings"]


def longest_min(samples: list[Json]) -> float:
    return max(((row["at_ns"] - row["began_ns"]) / 60e9 for row in samples), default=0.0)


def sampled_series(samples: list[Json]) -> dict[str, Series]:
    """The least of each minute."""
    least: dict[str, dict[tuple[int, int], float]] = {}
    for row in samples:
        minute = (row["piece"], (row["at_ns"] - row["began_ns"]) // (60 * 10**9))
        for name in (key for key in row if " " in key):
            of_it = least.setdefault(name, {})
            of_it[minute] = min(row[name], of_it.get(minute, math.inf))
    return {
        name: _series([(piece, minute / 60, value) for (piece, minute), value in found.items()])
        for name, found in least.items()
    }


def latency_series(bench: Bench, samples: list[Json]) -> dict[str, Series]:
    """p50 and p99 of each minute, from the log."""
    found: dict[str, list[tuple[int, float, float]]] = {"p50 latency": [], "p99 latency": []}
    ends: dict[int, Json] = {row["piece"]: row for row in samples}
    seen = {boot: latencies(bench, boot) for boot in {row["boot_id"] for row in ends.values()}}
    for piece, end in ends.items():
        for begin_ns in range(end["began_ns"], end["at_ns"] - 60 * 10**9 + 1, 60 * 10**9):
            ms = seen[end["boot_id"]].between(begin_ns, begin_ns + 60 * 10**9)
            hours = (begin_ns - end["began_ns"]) / 3600e9
            for percentile in (50, 99) if len(ms) else ():
                value = float(np.percentile(ms, percentile))
                found[f"p{percentile} latency"].append((piece, hours, value))
    return {name: _series(rows) for name, rows in found.items() if rows}


def _series(rows: list[tuple[int, float, float]]) -> Series:
    piece, hours, values = np.array(rows, np.float64).T
    return Series(piece, hours, values)


def warm(series: Series) -> Series:
    """Without the beginning of each piece."""
    keep = np.zeros(len(series.values), bool)
    for piece in np.unique(series.piece):
        of_it = series.piece == piece
        after = min(_WARM_UP_S / 3600, float(series.hours[of_it].max()) / 5)
        keep |= of_it & (series.hours >= after)
    return Series(series.piece[keep], series.hours[keep], series.values[keep])


def slope_per_h(series: Series) -> tuple[float, float]:
    """Common to all pieces, each with a level of its own, and half of its 95 % interval.

    Neighbouring samples resemble each other: the interval is that of as many independent ones as
    the residuals' autocorrelation leaves (Bartlett; lag 1, AR(1)).
    """
    hours, values = series.hours.copy(), series.values.copy()
    for piece in np.unique(series.piece):
        of_it = series.piece == piece
        hours[of_it] -= hours[of_it].mean()
        values[of_it] -= values[of_it].mean()
    spread = float(np.sum(hours**2))
    freedom = len(values) - len(np.unique(series.piece)) - 1
    if freedom < 3 or spread == 0:
        return 0.0, math.inf
    slope = float(np.sum(hours * values)) / spread
    residuals = values - slope * hours
    power = float(np.sum(residuals**2))
    if power == 0:
        return slope, 0.0
    alike = float(np.sum(residuals[1:] * residuals[:-1])) / power
    alike = min(max(alike, 0.0), 0.99)
    error = math.sqrt(power / freedom / spread * (1 + alike) / (1 - alike))
    return slope, _T_95 * error


def judged(name: str, series: Series) -> Json:
    kind = KINDS.get(name.split()[0])
    used = warm(series)
    slope, half = slope_per_h(used)
    mean = float(used.values.mean()) if len(used.values) else math.nan
    floor = None if kind is None else kind.floor_per_h * (mean if kind.is_share else 1.0)
    is_flat: bool | None = None
    if floor is not None and math.isfinite(half):
        is_flat = bool(abs(slope) <= half or abs(slope) <= floor)
    return {
        "name": name,
        "unit": kind.unit if kind else "MB",
        "mean": round(mean, 3),
        "last": round(float(series.values[-1]), 3),
        "slope_per_h": round(slope, 4),
        "half_interval": round(half, 4) if math.isfinite(half) else None,
        "floor_per_h": floor if floor is None else round(floor, 4),
        "is_flat": is_flat,
    }


def draw(folder: Path, series: Mapping[str, Series]) -> None:
    """One picture for each kind, pieces one after another."""
    groups: dict[str, dict[str, Floats]] = {}
    for name, found in sorted(series.items()):
        kind, what = name.split()
        groups.setdefault(kind, {})[what] = found.values
    for kind, lines in groups.items():
        unit = KINDS[kind].unit if kind in KINDS else "MB"
        every = "minute" if kind.startswith("p") else f"sample, one in {_EVERY_S:g} s"
        for number, part in enumerate(_parts_of(lines)):
            mark = f"-{number + 1}" if number else ""
            (folder / f"{kind}{mark}.svg").write_bytes(line_chart(kind, every, unit, part))


def _parts_of(lines: dict[str, Floats], most: int = 4) -> list[dict[str, Floats]]:
    """So few lines in a picture as it has colours for."""
    names = list(lines)
    return [{n: lines[n] for n in names[i : i + most]} for i in range(0, len(names), most)]


def table(result: Json) -> str:
    lines = [
        (
            f"{result['minutes']} min in {len(result['pieces'])} pieces (longest "
            f"{result['longest_piece_minutes']} min), {result['plates']} plates, "
            f"{result['lost_frames']} frames lost; {host()}"
        ),
        "series                     mean       slope/h  +- (95 %)    floor/h  flat",
    ]
    for row in result["series"]:
        half = "-" if row["half_interval"] is None else f"{row['half_interval']:.3f}"
        floor = "-" if row["floor_per_h"] is None else f"{row['floor_per_h']:.3f}"
        flat = {None: "too short", True: "yes", False: "NO"}[row["is_flat"]]
        if row["floor_per_h"] is None:
            flat = "grows by design"
        lines.append(
            f"{row['name']:22} {row['mean']:10.2f} {row['unit'][:3]:3} {row['slope_per_h']:9.3f} "
            f"{half:>9} {floor:>10}  {flat}"
        )
    return "\n".join(lines)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
