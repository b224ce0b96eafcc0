"""Figures for Prometheus: one real scrape of a real station, and what may arrive at the port."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from station_rig import Rig, children, start_vqi, vqi, wait_until

from station.counters import BOUNDS_S, STAGES, Histogram
from station.doctor import Wanted, examine
from station.ipc import Json, Listener
from station.metrics import FIGURES, OPTIONAL_FIGURES, Figure, StationCollector
from station.metrics_server import health

with socket.create_server(("127.0.0.1", 0)) as _any:
    PORT = _any.getsockname()[1]
DEPLOY = Path(__file__).parent.parent / "deploy"
DOCS = DEPLOY.parent / "docs"
URL = f"http://127.0.0.1:{PORT}"


class Running:
    """A station that runs with its metrics process; its log goes to a file."""

    def __init__(self, rig: Rig, process: subprocess.Popen[bytes], log: Path) -> None:
        self.rig = rig
        self.process = process
        self.log = log

    @property
    def pids(self) -> dict[str, int]:
        return children(self.process.pid)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("metrics")
    rig = Rig(folder, specimen={"contrast_scale": 3.0}, tables=f"[metrics]\nport = {PORT}\n")
    log = folder / "stderr"
    with log.open("ab") as stderr:
        process = subprocess.Popen(
            [
                *(sys.executable, "-P", "-m", "station.cli", "run"),
                *("--config", str(rig.write())),
            ],
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            start_new_session=True,
        )
    try:
        wait_until(lambda: rig.status().get("fail", 0) > 2, 30.0, "plates")
        wait_until(lambda: answers("/health"), 20.0, "metrics")
        yield Running(rig, process, log)
    finally:
        process.terminate()
        process.wait(30.0)


def answers(path: str) -> bool:
    try:
        return get(path)[0] == 200
    except OSError:
        return False


def get(path: str) -> tuple[int, str]:
    deadline = time.monotonic() + 10.0
    while True:
        try:
            with urllib.request.urlopen(URL + path, timeout=5.0) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except http.client.RemoteDisconnected:
            # As long as another test's connections, which are not closed yet, are the most it has.
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def scrape() -> dict[str, Metric]:
    status, text = get("/metrics")
    assert status == 200
    return {metric.name: metric for metric in text_string_to_metric_families(text)}


def samples(metrics: dict[str, Metric], name: str) -> dict[tuple[str, ...], float]:
    return {tuple(s.labels.values()): s.value for s in metrics[name].samples}


def test_a_scrape_shows_the_whole_station(running: Running) -> None:
    metrics = scrape()
    lacking = {f.name for f in FIGURES if not metrics[_family(f.name, f.unit)].samples}
    assert not lacking
    assert set(samples(metrics, "vqi_up").values()) == {1.0}
    assert samples(metrics, "vqi_station_state")["OPERATIONAL",] == 1
    assert sum(samples(metrics, "vqi_station_state").values()) == 1
    assert samples(metrics, "vqi_provenance")["simulated",] == 1
    assert sum(samples(metrics, "vqi_lamp_state").values()) == 1
    assert samples(metrics, "vqi_ready")[()] == 1
    processes = {"lamp", "journal", "station", "camera", "metrics"}
    for name in ("resident_memory_bytes", "open_fds", "threads", "start_time_seconds"):
        assert {labels[0] for labels in samples(metrics, f"vqi_process_{name}")} == processes
    (build,) = metrics["vqi_build_info"].samples
    assert build.labels["recipe"] == "small"
    assert build.labels["model"] == "lightdefectnet-v3"


def _family(name: str, unit: str) -> str:
    return f"{name}_{unit}" if unit else name


def test_figures_are_those_of_the_log(running: Running) -> None:
    before = len(running.rig.rows("result"))
    # What was kept from the scrape before may be a second old.
    wait_until(lambda: results_total() >= before, 5.0, "the results of the log")
    metrics = scrape()
    results = {tuple(sorted(s.labels.items())): s.value for s in metrics["vqi_results"].samples}
    after = running.rig.rows("result")
    for labels, value in results.items():
        if labels == (("reason", ""), ("verdict", "PASS")):
            assert 0 < value <= sum(row["verdict"] == "PASS" for row in after)
    stages = metrics["vqi_plate_stage_seconds"].samples
    for stage in STAGES:
        counts = [
            s.value for s in stages if s.name.endswith("_bucket") and s.labels["stage"] == stage
        ]
        assert counts == sorted(counts)
        assert 0 < counts[-1] <= len(after)


def results_total() -> float:
    return sum(samples(scrape(), "vqi_results").values())


def test_status_says_everything_of_all_processes(running: Running) -> None:
    config = str(running.rig.folder / "station.toml")
    status = json.loads(vqi("control", "status", "--config", config, "--json").stdout)
    wanted = {
        *("state", "problems", "attentions", "calls", "provenance", "light", "light_result_id"),
        *("lamp", "journal", "camera", "camera_pid", "queues", "capacities", "recipe", "model"),
        *("configuration_sha256", "version", "pid", "uptime_s", "tick_age_s", "verdict_age_s"),
        *("waiting_s", "last_verdict_at", "latency_ms", "times", "results", "lamp_commands"),
        *("lost_frames", "incomplete_frames", "camera_restarts"),
    }
    assert wanted <= set(status)
    assert status["lamp"]["state"] in {"pass_not_production", "fail", "idle", "undecided"}
    assert status["journal"]["wal_bytes"] > 0
    assert status["recipe"]["id"] == "small"
    text = vqi("control", "status", "--config", config).stdout
    assert re.search(r"^journal\.wal_bytes +\d+$", text, re.MULTILINE)


def test_its_log_is_of_its_plates(running: Running) -> None:
    failed = {r["result_id"] for r in running.rig.rows("result") if r["verdict"] == "FAIL"}
    assert failed

    def logged() -> list[Json]:
        said = [json.loads(line) for line in running.log.read_text().splitlines()]
        return [line for line in said if line["event"] == "result"]

    wait_until(lambda: failed <= {line["result_id"] for line in logged()}, 5.0, "their lines")
    assert {line["process"] for line in logged()} == {"station"}
    assert {line["station_id"] for line in logged()} == {"test-1"}
    assert {line["verdict"] for line in logged()} == {"FAIL"}


def test_dashboard_and_alerts_name_what_there_is(running: Running) -> None:
    shown = {sample.name for metric in scrape().values() for sample in metric.samples}
    shown |= {"up"}  # Prometheus' own
    may_lack = {_sample_name(figure) for figure in OPTIONAL_FIGURES}
    # Without sensors, a problem or learned limits there is nothing to show.
    may_lack |= {"vqi_temperature_celsius", "vqi_problem", "vqi_drift_ratio"}
    for file in ("grafana/vqi.json", "prometheus/alerts.yml"):
        named = named_metrics((DEPLOY / file).read_text())
        assert len(named) > 15
        assert named <= shown | may_lack, named - shown - may_lack
    assert not may_lack - named_metrics(scrape_text()) - shown, "no such family"
    told = named_metrics((DOCS / "operations.md").read_text())
    plain = {re.sub("_(?:bucket|count|sum)$", "", name) for name in shown - {"up"}}
    assert plain | may_lack == told


def named_metrics(text: str) -> set[str]:
    """Every metric of ours that a file names, and its own `up`."""
    return set(re.findall(r"\b(?:vqi_\w+|up(?={))", text)) - {"vqi_station"}


def scrape_text() -> str:
    return get("/metrics")[1]


def _sample_name(figure: Figure) -> str:
    return f"{_family(figure.name, figure.unit)}{'_total' if figure.is_counter else ''}"


def test_dashboard_is_whole() -> None:
    dashboard = json.loads((DEPLOY / "grafana/vqi.json").read_text())
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells
        for target in panel.get("targets", ()):
            assert 'instance=~"$instance"' in target["expr"]


@pytest.mark.parametrize(
    "arguments", [("check", "rules", "alerts.yml"), ("test", "rules", "alerts_test.yml"),
                  ("check", "config", "--syntax-only", "prometheus.yml")]
)  # fmt: skip
def test_alerts_fire_for_what_they_are_about(arguments: tuple[str, ...]) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("no promtool here; it is in Debian's package prometheus")
    done = subprocess.run(
        [promtool, *arguments], cwd=DEPLOY / "prometheus", capture_output=True, check=False
    )
    assert done.returncode == 0, (done.stdout + done.stderr).decode()


def test_cardinality_is_bounded(running: Running) -> None:
    """Every label's values come from enumerations: so many plates, as many series."""
    # What pictures take is known once the first sweep is over.
    wait_until(lambda: samples(scrape(), "vqi_retention_sweep_age_seconds") != {}, 60.0, "sweep")
    first = {(s.name, *s.labels.items()) for m in scrape().values() for s in m.samples}
    plates = running.rig.status()["plates"]
    wait_until(lambda: running.rig.status()["plates"] > plates + 5, 20.0, "plates")
    last = {(s.name, *s.labels.items()) for m in scrape().values() for s in m.samples}
    grown = {name[0] for name in last - first}
    assert grown <= {"vqi_results_total", "vqi_problem"}
    assert len(last) < 400


def test_health_is_more_than_an_answer(running: Running) -> None:
    status, text = get("/health")
    found = json.loads(text)
    assert status == 200, found
    assert found["up"] == {"lamp": True, "journal": True, "station": True}
    assert found["last_verdict_age_s"] >= 0
    # A station that hangs answers nothing; everything else does.
    os.kill(running.pids["station"], signal.SIGSTOP)
    try:
        wait_until(lambda: get("/health")[0] == 503, 10.0, "503")
        assert json.loads(get("/health")[1])["up"]["station"] is False
        assert samples(scrape(), "vqi_up")["station",] == 0
        config = str(running.rig.folder / "station.toml")
        archive = examine(config, Wanted(), frozenset({"status.json", "rows.jsonl"}))
        assert [entry["name"] for entry in archive.entries] == ["status.json", "rows.jsonl"]
    finally:
        os.kill(running.pids["station"], signal.SIGCONT)
    wait_until(lambda: answers("/health"), 20.0, "health again")


def test_what_arrives_at_the_port_touches_nothing_else(running: Running) -> None:
    """Nonsense, floods and requests that never end: the station inspects, the port comes back."""
    draw = random.Random(7)
    pids, plates = running.pids, running.rig.status()["plates"]
    slow = [socket.create_connection(("127.0.0.1", PORT), 5.0) for _ in range(12)]
    for connection in slow:
        with contextlib.suppress(OSError):
            connection.sendall(b"GET /metrics HTTP/1.1\r\nX: ")
    for number in range(300):
        with contextlib.suppress(OSError):
            send(nonsense(draw, number))
    for connection in slow:
        with contextlib.suppress(OSError):
            connection.sendall(b"y")
    wait_until(lambda: answers("/health"), 10.0, "the port")
    for connection in slow:
        connection.close()
    assert running.pids == pids
    wait_until(lambda: running.rig.status()["plates"] > plates + 3, 20.0, "plates")


def send(data: bytes) -> None:
    with socket.create_connection(("127.0.0.1", PORT), 1.0) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)


def nonsense(draw: random.Random, number: int) -> bytes:
    kinds = (
        draw.randbytes(draw.randrange(1, 400)),
        b"GET " + draw.randbytes(20) + b" HTTP/1.1\r\n\r\n",
        b"POST /metrics HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n" + draw.randbytes(100),
        b"GET /metrics HTTP/9.9\r\n" + b"A: b\r\n" * 500 + b"\r\n",
        b"GET /../../etc/passwd HTTP/1.0\r\n\r\n",
        b"x" * 20_000,
    )
    return kinds[number % len(kinds)]


def test_only_two_pages_and_only_reading(running: Running) -> None:
    assert get("/")[0] == 404
    assert get("/metrics/../health")[0] == 404
    request = urllib.request.Request(URL + "/metrics", data=b"x")
    with pytest.raises(urllib.error.HTTPError, match="501"):
        urllib.request.urlopen(request, timeout=5.0)


def test_its_death_ends_nothing_and_it_comes_back(running: Running) -> None:
    before = running.pids
    os.kill(before["metrics"], signal.SIGKILL)
    wait_until(
        lambda: running.pids.get("metrics", before["metrics"]) != before["metrics"], 10.0, "another"
    )
    wait_until(lambda: answers("/metrics"), 10.0, "metrics")
    after = running.pids
    assert {**after, "metrics": 0} == {**before, "metrics": 0}


def test_another_life_of_a_process_is_counted(running: Running) -> None:
    scrape()
    os.kill(running.pids["lamp"], signal.SIGKILL)
    wait_until(lambda: lamp_restarts() == 1, 10.0, "a restart of the lamp process")


def lamp_restarts() -> float:
    return samples(scrape(), "vqi_process_restarts").get(("lamp",), 0.0)


def test_a_port_that_is_taken_is_a_bad_configuration(tmp_path: Path) -> None:
    rig = Rig(tmp_path, tables="[metrics]\nport = 9791\n")
    with socket.create_server(("127.0.0.1", 9791)):
        config = str(rig.write())
        done = vqi("serve", "metrics", "--config", config)
        assert done.returncode == 78
    assert "metrics.port 127.0.0.1:9791" in done.stderr


def test_dead_and_hung_processes_are_down_and_nothing_raises(tmp_path: Path) -> None:
    collector = StationCollector(tmp_path)
    # Somebody listens and never answers; the others are not there.
    listener = Listener(tmp_path / "journal.sock")
    began = time.monotonic()
    metrics = {metric.name: metric for metric in collector.collect()}
    assert time.monotonic() - began < 5.0
    listener.close()
    assert set(samples(metrics, "vqi_up").values()) == {0.0}
    assert not metrics["vqi_tick_age_seconds"].samples
    assert samples(metrics, "vqi_ready") == {(): 0.0}


def test_processes_that_nobody_else_sees_are_shown_and_their_lives_counted(tmp_path: Path) -> None:
    """As in the units' sandboxes, where /proc has no other unit's process."""
    figures = {"rss_bytes": 7, "threads": 3, "cpu_s": 0.5, "start_ticks": 10, "descriptors": None}
    nobody = 2**22 + 1  # more than a kernel gives (proc(5), pid_max)
    collector, listener = StationCollector(tmp_path), Listener(tmp_path / "lamp.sock")
    try:
        for lives, start_ticks in enumerate((10, 10, 11)):
            process = {**figures, "pid": nobody, "start_ticks": start_ticks}
            said = {"state": "idle", "pid": nobody, "process": process}
            answering = threading.Thread(target=answer_once, args=(listener, said))
            answering.start()
            metrics = {metric.name: metric for metric in collector.collect()}
            answering.join()
            assert samples(metrics, "vqi_process_resident_memory_bytes")["lamp",] == 7
            assert ("lamp",) not in samples(metrics, "vqi_process_open_fds")
            restarts = samples(metrics, "vqi_process_restarts")
            assert restarts["lamp",] == (1 if lives == 2 else 0)
    finally:
        listener.close()


def test_every_call_for_a_person_is_counted(tmp_path: Path) -> None:
    """Not only those of the camera's health: a backup that fails calls, too."""
    listener = Listener(tmp_path / "control.sock")
    said = {"attentions": ["dirt"], "calls": ["no backup", "dirt"], "problems": {"upkeep": "x"}}
    answering = threading.Thread(target=answer_once, args=(listener, {"status": said}))
    answering.start()
    metrics = {metric.name: metric for metric in StationCollector(tmp_path).collect()}
    answering.join()
    listener.close()
    assert samples(metrics, "vqi_attentions") == {(): 2.0}
    assert samples(metrics, "vqi_problem") == {("upkeep",): 1.0}


def answer_once(listener: Listener, said: Json) -> None:
    with listener.accept() as channel:
        channel.receive(5.0).close()
        channel.send(said)


def test_metrics_alone_serves_a_dead_station(tmp_path: Path) -> None:
    rig = Rig(tmp_path, tables="[metrics]\nport = 9792\n")
    process = start_vqi("serve", "metrics", "--config", str(rig.write()))
    try:
        wait_until(lambda: _code("http://127.0.0.1:9792/health") == 503, 20.0, "503")
        assert _code("http://127.0.0.1:9792/metrics") == 200
    finally:
        process.terminate()
    assert process.wait(10.0) == 0


def _code(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=5.0) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"state": "ERROR"}, "the station is ERROR"),
        ({"state": "PREOPERATIONAL"}, "the station is PREOPERATIONAL"),
        ({"tick_age_s": 2.5}, "no tick has come through all workers for 2.5 s"),
        ({"tick_age_s": None}, "no tick has come through all workers yet"),
        ({"waiting_s": 31.0}, "without a durable verdict for 31.0 s"),
    ],
)
def test_health_says_what_is_stale(change: Json, problem: str) -> None:
    well = {"state": "OPERATIONAL", "tick_age_s": 0.1, "waiting_s": 29.0, "verdict_age_s": 9e9}
    said: dict[str, tuple[Json | None, str]] = {"lamp": ({}, ""), "journal": ({}, "")}
    assert health({**said, "station": (well, "")}, 30.0)["ok"]
    found = health({**said, "station": ({**well, **change}, "")}, 30.0)
    assert not found["ok"]
    assert problem in found["problems"][0]


@given(st.lists(st.integers(-(10**9), 2**40)))
def test_a_histogram_counts_each_duration_once(durations_ns: list[int]) -> None:
    histogram = Histogram()
    for duration_ns in durations_ns:
        histogram.observe(duration_ns)
    said = histogram.as_json()
    for place, bound in enumerate(BOUNDS_S, start=1):
        below = sum(ns <= bound * 1e9 for ns in durations_ns)
        assert sum(said["counts"][:place]) == below
    assert sum(said["counts"]) == len(durations_ns)
    assert said["sum_s"] == pytest.approx(sum(max(0, ns) for ns in durations_ns) / 1e9)
