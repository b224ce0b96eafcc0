"""Does somebody else's load delay verdicts? The ratio of p99, with and without it.

    python benchmarks/interference.py readers [--plates 5000] [--blocks 10] [--rate-hz HZ] [--json]

The station runs at half of the highest rate that it carries here, on small plates. In at least ten
blocks with the load and ten without, in turns, at least so many plates a side get their verdicts;
compared are the pooled p95 and p99 of the time from the last scan line to the lamp's command, with
an interval from a bootstrap over whole blocks, since plates of one block resemble each other. The
load shares the processor: the share that it takes itself is said. A block counts while nothing of
the program has changed since, and if no process was replaced in it.

Loads: readers (QA's queries, mode=ro, with a pause of --pause-s between rounds), scrape (metrics),
verify, export, backup, clients (`vqi web` and 500 browsers that look at the line), train (`vqi
model train --background` on rendered tiles, which goes on from block to block), shadow (a model in
the shadow, with --share of a core; a round is a plate that it scored). All but scrape are in the
idle class, as page, backups and shadow are under systemd. Everything is kept in --folder: a run
that was ended goes on where it was.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from loaded_station import (
    ENDS_WITH_US,
    METRICS_PORT,
    PLATES_PER_SCAN_LINE,
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
    running,
    state,
    status,
    vqi,
)

from station.config import load_configuration
from station.cores import cpu_seconds
from station.export import FORMATS
from station.log_reader import Filter, Reader

Json = dict[str, Any]
_SETTLE_S = 2.0
"""After a load has begun or ended, before plates are counted."""
_CROWD_LIMIT_S = 120.0
"""Until the page is there and all its clients."""
_CROWD_IS_THERE = "crowd-is-there"
_CLIENTS = 500
SHADOW = "shadow"
_SHADOWED = "lightdefectnet-v3"
_SHADOW_LIMIT_S = 120.0
NO_LOAD: Json = {"cpu_s": 0.0, "rounds": 0, "alive_s": 0.0}
_TRAINING_SET = "training-set"
_RESAMPLES = 4000
_P99_TARGET = 1.10
"""Upper end of the interval that is wanted."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("load", choices=(*LOADS, SHADOW))
    parser.add_argument("--plates", type=int, default=5000, help="of each side, at least")
    parser.add_argument("--blocks", type=int, default=10, help="of each side")
    parser.add_argument("--rate-hz", type=float, help="half of the highest rate, if it is known")
    parser.add_argument("--pause-s", type=float, default=0.1, help="between rounds of the load")
    parser.add_argument("--share", type=float, default=0.2, help="of one core, for shadow")
    parser.add_argument("--folder", type=Path, default=Path("var/interference"))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--be-load", metavar="CONFIG", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.be_load:
        if options.load != "scrape":
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        be_load(LOADS[options.load], options.be_load, options.pause_s)
        return
    result = measure(options)
    print(json.dumps(result) if options.json else table(result))
    sys.exit(0 if result["is_within"] else 1)


# --- the measurement ----------------------------------------------------------------------------


def measure(options: argparse.Namespace) -> Json:
    is_shadow = options.load == SHADOW
    name = f"{options.load}-{options.share:g}" if is_shadow else options.load
    bench = Bench(options.folder.resolve() / name)
    bench.folder.mkdir(parents=True, exist_ok=True)
    if options.load == "train":
        render_training_set(bench.folder / _TRAINING_SET)
    rate_hz = options.rate_hz or highest_rate_hz(bench, say) / 2
    bench.write(rate_hz)
    ledger = bench.folder / "ledger.jsonl"
    order = block_order(options.blocks, options.seed)
    plates_per_s = rate_hz * PLATES_PER_SCAN_LINE
    block_s = options.plates / options.blocks / plates_per_s * 1.02
    known = counting(ledger, rate_hz)
    say(f"{rate_hz:.0f} scan lines/s, {plates_per_s:.1f} plates/s; {len(order) - len(known)} "
        f"blocks of {block_s:.0f} s to go")  # fmt: skip
    if len(known) < len(order):
        with running(bench) as station:
            for is_on in order[len(known) :]:
                before = lives(station, PROCESSES)
                block = run_block(bench, options, is_on, block_s, station.pid)
                if lives(station, PROCESSES) != before or before.keys() != set(PROCESSES):
                    raise SystemExit(f"a process was replaced: see {bench.folder / 'stderr.log'}")
                block["rate_hz"] = rate_hz
                append_line(ledger, block)
                known.append(block)
    return evaluate(bench, known, options)


def block_order(blocks: int, seed: int) -> list[bool]:
    """With and without in turns; which comes first in each pair is drawn, so that no rhythm of the
    machine's own falls on one side."""
    draw = random.Random(seed)
    return [is_on for _ in range(blocks) for is_on in draw.sample((True, False), 2)]


def run_block(
    bench: Bench, options: argparse.Namespace, is_on: bool, block_s: float, pid: int
) -> Json:
    if options.load == SHADOW:
        begin_ns, end_ns, said = with_shadow(bench, options.share, is_on, block_s)
    else:
        begin_ns, end_ns, said = with_load(bench, options, is_on, block_s, pid)
    say(f"{'with' if is_on else 'without':8} {said['rounds']:6} rounds, {said['cpu_s']:.1f} s")
    return {
        "load": options.load,
        "is_on": is_on,
        "begin_ns": begin_ns,
        "end_ns": end_ns,
        "boot_id": boot_id(),
        "seed": options.seed,
        "host": host(),
        **state(),
        **said,
    }


def with_load(
    bench: Bench, options: argparse.Namespace, is_on: bool, block_s: float, pid: int
) -> tuple[int, int, Json]:
    """Begin and end of the block, and what a load of its own process took in it."""
    served_s = cpu_seconds(pid)["metrics"]
    load = start_load(bench, options) if is_on else None
    if is_on and options.load == "clients":
        wait_for_crowd(bench.folder / _CROWD_IS_THERE)
    time.sleep(_SETTLE_S)
    begin_ns = time.monotonic_ns()
    time.sleep(block_s)
    end_ns = time.monotonic_ns()
    said = stop_load(load) if load is not None else dict(NO_LOAD)
    if options.load == "scrape":
        # Who answers is a part of this load.
        said["cpu_s"] += cpu_seconds(pid)["metrics"] - served_s
    return begin_ns, end_ns, said


def with_shadow(bench: Bench, share: float, is_on: bool, block_s: float) -> tuple[int, int, Json]:
    """The same of a model in the shadow, which the station's own run starts and ends. It is counted
    from its first plate on, once it has paid for its start."""
    if is_on:
        known = status(bench)["shadow"]["scored"]
        shadow_command(bench, "start", _SHADOWED, "--share", f"{share:g}")
        wait_for_shadow(bench, lambda said: said.get("scored", 0) > known)
    time.sleep(_SETTLE_S)
    before, began = shadow_figures(bench) if is_on else (0.0, 0), time.monotonic()
    begin_ns = time.monotonic_ns()
    time.sleep(block_s)
    end_ns = time.monotonic_ns()
    if not is_on:
        return begin_ns, end_ns, dict(NO_LOAD)
    after, alive_s = shadow_figures(bench), time.monotonic() - began
    shadow_command(bench, "stop")
    wait_for_shadow(bench, lambda said: not said["is_there"])
    said = {"cpu_s": after[0] - before[0], "rounds": after[1] - before[1], "alive_s": alive_s}
    return begin_ns, end_ns, said


def shadow_figures(bench: Bench) -> tuple[float, int]:
    """Processor seconds of its process and plates that it scored, so far."""
    found = status(bench)
    supervisor = parent_of(found["pid"])
    return cpu_seconds(supervisor).get(SHADOW, 0.0), found["shadow"]["scored"]


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def wait_for_shadow(bench: Bench, is_so: Callable[[Json], bool]) -> None:
    deadline = time.monotonic() + _SHADOW_LIMIT_S
    while not is_so(status(bench).get("shadow", {"is_there": True})):
        if time.monotonic() > deadline:
            raise SystemExit(f"the shadow does not come or go: see {bench.folder / 'stderr.log'}")
        time.sleep(0.1)


def shadow_command(bench: Bench, *arguments: str) -> None:
    reason = ("--config", str(bench.config), "--reason", "interference is measured")
    _command("model", "shadow", *arguments, *reason)


def wait_for_crowd(sign: Path) -> None:
    deadline = time.monotonic() + _CROWD_LIMIT_S
    while not sign.exists():
        if time.monotonic() > deadline:
            raise SystemExit(f"{_CLIENTS} clients are not there after {_CROWD_LIMIT_S:g} s")
        time.sleep(0.1)
    sign.unlink()


def evaluate(bench: Bench, blocks: list[Json], options: argparse.Namespace) -> Json:
    boots = {block["boot_id"] for block in blocks}
    seen = {boot: latencies(bench, boot) for boot in boots}
    sides: dict[bool, list[Floats]] = {True: [], False: []}
    for block in blocks:
        found = seen[block["boot_id"]].between(block["begin_ns"], block["end_ns"])
        sides[block["is_on"]].append(found)
    on_blocks = [block for block in blocks if block["is_on"]]
    share = sum(b["cpu_s"] for b in on_blocks) / max(1e-9, sum(b["alive_s"] for b in on_blocks))
    ratios = {q: ratio(sides[True], sides[False], q, options.seed) for q in (50, 95, 99)}
    counts = {is_on: sum(map(len, found)) for is_on, found in sides.items()}
    return {
        "load": options.load,
        **({"share": options.share} if options.load == SHADOW else {}),
        "rate_hz": blocks[0]["rate_hz"],
        "blocks": len(on_blocks),
        "plates": {"with": counts[True], "without": counts[False]},
        "load_share_of_a_core": round(share, 3),
        "load_rounds": sum(block["rounds"] for block in on_blocks),
        **{f"p{q}": found for q, found in ratios.items()},
        "host": host(),
        "commits": sorted({block["commit"] for block in blocks}),
        "is_enough": min(counts.values()) >= 5000 and len(on_blocks) >= 10,
        "is_within": ratios[99]["upper"] <= _P99_TARGET,
    }


def ratio(
    on: list[Floats], off: list[Floats], percentile: int, seed: int, resamples: int = _RESAMPLES
) -> Json:
    """Of the pooled percentiles with and without, and its 95 % interval over whole blocks."""
    draw = np.random.default_rng(seed)
    with_ms, without_ms = (
        float(np.percentile(np.concatenate(side), percentile)) for side in (on, off)
    )
    resampled = np.array(
        [_resampled(on, percentile, draw) / _resampled(off, percentile, draw)
         for _ in range(resamples)]
    )  # fmt: skip
    lower, upper = np.percentile(resampled, [2.5, 97.5])
    return {
        "with_ms": round(with_ms, 2),
        "without_ms": round(without_ms, 2),
        "ratio": round(with_ms / without_ms, 3),
        "lower": round(float(lower), 3),
        "upper": round(float(upper), 3),
    }


def _resampled(blocks: list[Floats], percentile: int, draw: np.random.Generator) -> float:
    chosen = draw.integers(0, len(blocks), len(blocks))
    return float(np.percentile(np.concatenate([blocks[i] for i in chosen]), percentile))


def table(result: Json) -> str:
    plates = result["plates"]
    lines = [
        (
            f"{result['load']}: {result['blocks']} blocks a side, {plates['with']} plates with and "
            f"{plates['without']} without, {result['rate_hz']:.0f} scan lines/s; {result['host']}"
        ),
        (
            f"the load itself took {result['load_share_of_a_core']:.1%} of a core in "
            f"{result['load_rounds']} rounds"
        ),
        "       with ms  without ms   ratio   95 % interval",
    ]
    for q in (50, 95, 99):
        found = result[f"p{q}"]
        lines.append(
            f"p{q:<3} {found['with_ms']:9.2f} {found['without_ms']:11.2f} {found['ratio']:7.3f}"
            f"   {found['lower']:.3f} to {found['upper']:.3f}"
        )
    if not result["is_enough"]:
        lines.append("too few plates or blocks to say so: 5000 plates and 10 blocks a side")
    return "\n".join(lines)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# --- loads --------------------------------------------------------------------------------------


def start_load(bench: Bench, options: argparse.Namespace) -> tuple[subprocess.Popen[str], float]:
    (bench.folder / _CROWD_IS_THERE).unlink(missing_ok=True)
    arguments = [options.load, "--pause-s", str(options.pause_s), "--be-load", str(bench.config)]
    process = subprocess.Popen(
        [*ENDS_WITH_US, sys.executable, __file__, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        process_group=0,
    )
    return process, time.monotonic()


def stop_load(load: tuple[subprocess.Popen[str], float]) -> Json:
    """How often it went round, and the processor time that it and its children took."""
    process, began_s = load
    assert process.stdout is not None
    alive_s = time.monotonic() - began_s
    process.send_signal(signal.SIGTERM)
    rounds = process.stdout.read()
    process.stdout.close()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"the load ended with exit status {process.returncode}")
    return {
        "cpu_s": used.ru_utime + used.ru_stime,
        "rounds": int(rounds),
        "alive_s": alive_s,
    }


def be_load(round_: Callable[[str], None], config: str, pause_s: float) -> None:
    """Go round until told to stop; then say how often."""
    is_stopping = False

    def stop(number: int, frame: object) -> None:
        nonlocal is_stopping
        is_stopping = True

    signal.signal(signal.SIGTERM, stop)
    rounds = 0
    while not is_stopping:
        round_(config)
        rounds += 1
        time.sleep(pause_s)
    if isinstance(round_, Crowd | Training):
        round_.close()
    print(rounds)


def ask_like_qa(config: str) -> None:
    """What a page of QA asks: the newest, one plate, counts of all and of a day."""
    with Reader(load_configuration(config).value.journal.directory) as reader:
        newest = list(reader.results(Filter(), newest_first=True, limit=100))
        failed = list(reader.results(Filter(verdict="FAIL"), newest_first=True, limit=100))
        for body in (newest + failed)[:5]:
            reader.of_result(body["result_id"])
        reader.stats(Filter())


def scrape(config: str) -> None:
    with urllib.request.urlopen(f"http://127.0.0.1:{METRICS_PORT}/metrics", timeout=5.0) as answer:
        answer.read()


def verify(config: str) -> None:
    _command("log", "verify", "--no-pictures", "--config", config)


def export(config: str) -> None:
    for format_ in FORMATS:
        out = Path(config).parent / f"plates.{format_}"
        _command("log", "export", "--format", format_, "--out", str(out), "--config", config)


def backup(config: str) -> None:
    to = Path(config).parent / "backup"
    _command("log", "backup", "--config", config, "--to", str(to), "--keep", "2")


def _command(*arguments: str) -> None:
    done = subprocess.run(
        vqi(*arguments), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False
    )
    if done.returncode:
        raise SystemExit(f"vqi {' '.join(arguments)}: {done.stderr.decode()[-500:]}")


class Crowd:
    """The page's process, and many browsers that look at the line; a round is a second in which
    each of them must hear something."""

    def __init__(self) -> None:
        self._clients: list[socket.socket] = []
        self._selector = selectors.DefaultSelector()
        self._page: subprocess.Popen[bytes] | None = None

    def __call__(self, config: str) -> None:
        if self._page is None:
            self._page, url = _start_page(Path(config))
            for _ in range(_CLIENTS):
                client = _look_at_line(url)
                self._selector.register(client, selectors.EVENT_READ)
                self._clients.append(client)
            Path(config).with_name(_CROWD_IS_THERE).touch()
        silent, deadline = set(self._clients), time.monotonic() + 1.0
        while (left_s := deadline - time.monotonic()) > 0:
            for key, _ in self._selector.select(left_s):
                if not key.fileobj.recv(1 << 18):
                    raise SystemExit("the page ended a stream")
                silent.discard(key.fileobj)
            # All that came meanwhile is read at once: a browser does not wake for each byte either.
            time.sleep(0.05)
        if silent:
            say(f"{len(silent)} clients heard nothing for a second")

    def close(self) -> None:
        """With the page's process, whose time counts as the load's."""
        for client in self._clients:
            client.close()
        if self._page is not None:
            self._page.terminate()
            self._page.wait(30.0)


class Training:
    """A training beside the station; a round is a second of it. Killed at the end of a block, it
    goes on in the next one after its last whole epoch."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def __call__(self, config: str) -> None:
        folder = Path(config).parent
        if self._process is not None and self._process.poll() is not None:
            if self._process.returncode:
                raise SystemExit(f"the training ended with status {self._process.returncode}")
            shutil.rmtree(folder / "training", ignore_errors=True)
            self._process = None
        if self._process is None:
            data, run = str(folder / _TRAINING_SET), str(folder / "training")
            command = vqi("model", "train", "--data", data, "--out", run, "--background")
            self._process = subprocess.Popen(
                [*ENDS_WITH_US, *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
        time.sleep(1.0)

    def close(self) -> None:
        """Its time counts as the load's."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(30.0)


def render_training_set(folder: Path) -> None:
    """Some hundred tiles, before the station starts."""
    if not (folder / "labels.csv").exists():
        _command("model", "synthesize", "--out", str(folder), "--plates", "40")


def _start_page(config: Path) -> tuple[subprocess.Popen[bytes], str]:
    own = config.with_name("page.toml")
    own.write_text(config.read_text() + "\n[web]\nport = 0\n")
    page = subprocess.Popen(
        [*ENDS_WITH_US, *vqi("web", "--config", str(own), "--json")],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert page.stdout is not None
    return page, json.loads(page.stdout.readline())["url"]


def _look_at_line(url: str) -> socket.socket:
    parts = urlsplit(url)
    client = socket.create_connection((parts.hostname or "", parts.port or 80), timeout=30.0)
    head = f"GET /line/live HTTP/1.1\r\nHost: {parts.netloc}\r\nAccept: text/event-stream\r\n\r\n"
    client.sendall(head.encode())
    answer = client.recv(4096)
    if b" 200 " not in answer.splitlines()[0]:
        raise SystemExit(f"the page refused a stream: {answer[:200]!r}")
    client.setblocking(False)
    return client


LOADS: dict[str, Callable[[str], None]] = {
    "readers": ask_like_qa,
    "scrape": scrape,
    "verify": verify,
    "export": export,
    "backup": backup,
    "clients": Crowd(),
    "train": Training(),
}


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
