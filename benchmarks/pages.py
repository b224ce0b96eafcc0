"""How long does the page take, at many plates, while a line writes?

    python benchmarks/pages.py JOURNAL [--times 40] [--plates-per-s 5] [--json]

JOURNAL is a folder that `make journal PLATES=1000000` made; a process appends plates to it all the
while, as a line would (0: none). The page runs as `vqi web`, over loopback. Each page of QA's and
its JSON twin is asked with other filters each time: shifts, recipes, hours, lots, places.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx
import numpy as np
from questions import Known, known_of, line_that_runs

from models.runtimes import processor_name
from station.config import shipped_path
from station.log_reader import Reader
from station.processes import process_figures

Choose = Callable[[random.Random], dict[str, Any]]


def pages(known: Known) -> dict[str, tuple[str, Choose]]:
    """Path, and the query of one request."""
    one = random.Random.choice

    def filters(rng: random.Random) -> dict[str, Any]:
        """What people ask for: mostly a time or a recipe, sometimes all there is."""
        begin, end = sorted(rng.sample(known.hours, 2))
        return rng.choice(
            [
                {},
                {"recipe": one(rng, known.recipes)},
                {"shift": one(rng, known.shifts)},
                {"since": f"{begin}:17Z", "until": f"{end}:43Z"},
                {"lot": one(rng, known.lots)},
            ]
        )

    def found(rng: random.Random) -> dict[str, Any]:
        place = (rng.uniform(0, side - 30) for side in known.size_mm)
        left, leading = map(round, place)
        return rng.choice(
            [
                filters(rng),
                {"verdict": one(rng, ["PASS", "FAIL", "UNDECIDED"])},
                {"serial": one(rng, known.serials)},
                {"place": f"{left},{leading},{left + 30},{leading + 30}", **filters(rng)},
                {"min_size_mm": round(rng.uniform(0, 10), 1)},
            ]
        )

    def with_(name: str, *values: str) -> Choose:
        return lambda rng: {name: one(rng, list(values)), **filters(rng)}

    return {
        "search": ("/plates", found),
        "search, 500 a page": ("/plates", lambda rng: {"limit": 500, **filters(rng)}),
        "Pareto of reasons": ("/pareto", filters),
        "Pareto of defects": ("/pareto", with_("of", "kind", "size", "zone")),
        "chart by hour": ("/chart", with_("which", "p", "u")),
        "chart by shift": ("/chart", lambda rng: {"by": "shift", **filters(rng)}),
        "yield": ("/yield", filters),
        "map": ("/map", filters),
        "verdicts and audit": ("/quality", filters),
        "proof": ("/proof", lambda _: {}),
        "exports": ("/exports", lambda _: {}),
        "shift reports": ("/reports", lambda _: {}),
        "certificates": ("/certificates", lambda rng: {"serial": one(rng, known.serials)}),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("journal", type=Path)
    parser.add_argument("--times", type=int, default=40)
    parser.add_argument("--plates-per-s", type=float, default=5.0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with Reader(options.journal) as reader:
        known = known_of(reader)
        rows = reader.last_seq()
    if not options.json:
        print(f"{processor_name()}, {os.cpu_count()} cores, {rows} rows")
        names = f"{'page, ms':24}{'HTML p50, p99, most':>24}{'JSON p50, p99, most':>24}"
        print(f"{names}{'kB':>8}{'CPU':>8}", flush=True)
    running = line_that_runs(options.journal, options.plates_per_s)
    writer = running if options.plates_per_s else contextlib.nullcontext()
    with writer, page_over(options.journal) as (client, pid):
        for name, (path, choose) in pages(known).items():
            before = cpu_ms(pid)
            found = timed(client, path, choose, options.times)
            mean = (cpu_ms(pid) - before) / (2 * options.times)
            say(name, {**found, "cpu_ms": round(mean, 1)}, options.json)


@contextlib.contextmanager
def page_over(journal: Path) -> Iterator[tuple[httpx.Client, int]]:
    """`vqi web` over a journal: a browser, and the page's process."""
    text = shipped_path("simulated.toml").read_text()
    with tempfile.TemporaryDirectory() as folder:
        text = re.sub(r"(?m)^directory = .*$", f'directory = "{journal.absolute()}"', text)
        text = re.sub(r"(?m)^runtime_dir = .*$", f'runtime_dir = "{folder}"', text)
        config = Path(folder) / "station.toml"
        config.write_text(f"{text}\n[web]\nport = 0\n")
        command = [sys.executable, "-m", "station.cli", "web", "--config", str(config), "--json"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        try:
            url = json.loads(process.stdout.readline())["url"]
            with httpx.Client(base_url=url, timeout=60.0) as client:
                yield client, process.pid
        finally:
            process.terminate()
            process.wait()


def cpu_ms(pid: int) -> float:
    """Of a process so far; what it costs whatever else the machine does."""
    figures = process_figures(pid)
    assert figures is not None
    return 1e3 * figures.cpu_s


def timed(client: httpx.Client, path: str, choose: Choose, times: int) -> dict[str, Any]:
    """ms of each representation, with what each request asked for."""
    took: dict[str, list[float]] = {"": [], ".json": []}
    rng, size, statuses = random.Random(11), [], set()
    for _ in range(times):
        query = urlencode(choose(rng))
        for suffix in took:
            began = time.perf_counter()
            answer = client.get(f"{path}{suffix}?{query}")
            took[suffix].append(1e3 * (time.perf_counter() - began))
            statuses.add(answer.status_code)
            size.append(len(answer.content))
    return {
        "statuses": sorted(statuses),
        "kb": round(float(np.median(size)) / 1000, 1),
        **{
            name: [*np.percentile(found, [50, 99]).round(1).tolist(), round(max(found), 1)]
            for name, found in zip(("html_ms", "json_ms"), took.values(), strict=True)
        },
    }


def say(name: str, found: dict[str, Any], is_json: bool) -> None:
    if is_json:
        print(json.dumps({"page": name, **found}), flush=True)
        return
    cells = ""
    for key in ("html_ms", "json_ms"):
        cells += "".join(f"{one:8.1f}" for one in found[key])
    odd = [status for status in found["statuses"] if status != 200]
    print(
        f"{name:24}{cells}{found['kb']:8.1f}{found['cpu_ms']:8.1f}{f'  {odd}' if odd else ''}",
        flush=True,
    )


if __name__ == "__main__":
    main()
