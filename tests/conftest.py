"""Rules for all tests: what may be skipped, and where the real pictures lie."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Generator, Iterator
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType

import hypothesis
import pytest
from camera_peers import PEERS
from campaign.freeze import held
from own_machine import enter_own_network, enter_own_terminals

REQUIRES_PEERS = os.environ.get("VQI_REQUIRE_PEERS") == "1"
RUNS_LONG = os.environ.get("VQI_LONG") == "1"
REAL_DATA = Path(os.environ.get("VQI_REAL_DATA", "../shared/data"))
# Files of tests run beside each other: more threads for sums would wait for those of other files.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Beside two other tests an example may take long; pytest has a limit of its own.
hypothesis.settings.register_profile("station", deadline=None)
hypothesis.settings.load_profile("station")
_MAY_SKIP = (
    "long; set VQI_LONG=1",
    "needs a real device",
    "no gpio-sim here",
    "no uinput here",
    "nothing of its own here",
    "cannot cut power here",
    "cannot hold a thread here",
    "no real images",
    "no control group",
    "no history here",
    "no promtool here",
    "no LibreOffice here",
    "no Chromium here",
    "no schemathesis here",
    "no DuckDB here",
    "no datasette here",
    "no sqlite3 here",
    "this processor has no",
)
"""Reasons that count as a skip where every peer is installed."""
_MARKS = {"passed": "ok", "skipped": "skip", "failed": "FAIL", "error": "FAIL"}
_CAMERAS = ["simulated", "pictures", "strip", *(peer.name for peer in PEERS)]
_CAMERA_TEST = re.compile(r"test_(?:camera|peers)\.py::test_(\w+)\[(\w+)\]$")
_LONGEST = (
    *("test_training", "test_station", "test_commission_line", "test_benchmark", "test_bench"),
    *("test_recording", "test_camera_bench", "test_gate", "test_acquisition", "test_qms"),
    *("test_health", "test_peers", "test_camera", "test_install", "test_permissions"),
)
"""Files that take the most time, each in one process: begun last, one alone would be waited for."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ranks = {name: rank for rank, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: ranks.get(item.path.stem, len(ranks)))
    for item in items:
        if item.get_closest_marker("long") and not RUNS_LONG:
            item.add_marker(pytest.mark.skip(reason="long; set VQI_LONG=1"))
        if item.get_closest_marker("hardware") and "VQI_HARDWARE" not in os.environ:
            item.add_marker(pytest.mark.skip(reason="needs a real device; set VQI_HARDWARE=1"))


def _fail_unless_allowed(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Where every peer is installed, a skip for anything but a device or private pictures fails."""
    is_allowed = any(reason in str(report.longrepr) for reason in _MAY_SKIP)
    if REQUIRES_PEERS and report.skipped and not is_allowed:
        report.outcome = "failed"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _fail_unless_allowed(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _fail_unless_allowed(report)
    return report


@pytest.fixture(scope="session", autouse=True)
def _own_machine() -> None:
    """Where it may not be, tests share this machine's ports and its pseudo-terminals."""
    enter_own_network()
    enter_own_terminals()


@pytest.fixture(scope="session", autouse=True)
def _own_simulators(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The GenTL simulator's cameras have one owner; each process of tests has its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("runtime")))
        yield


@pytest.fixture(scope="module")
def installer() -> Iterator[ModuleType]:
    """`deploy/install` as a module."""
    loader = SourceFileLoader("vqi_install", str(Path(__file__).parents[1] / "deploy" / "install"))
    spec = spec_from_loader(loader.name, loader)
    assert spec is not None
    module = module_from_spec(spec)
    # Its bytes stay out of the folder that releases are made of.
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    loader.exec_module(module)
    yield module
    sys.dont_write_bytecode = before


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Real pictures, or a skip that says where they are looked for."""
    if not REAL_DATA.is_dir():
        pytest.skip(f"no real images in {REAL_DATA}; set VQI_REAL_DATA")
    return REAL_DATA


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Which camera ran which part of the contract."""
    marks: dict[str, dict[str, str]] = {}
    for outcome, mark in _MARKS.items():
        for report in terminalreporter.getreports(outcome):
            found = _CAMERA_TEST.search(report.nodeid)
            if found and found[2] in _CAMERAS:
                marks.setdefault(found[1], {})[found[2]] = mark
    if not marks:
        return
    terminalreporter.section("cameras and what each ran (-: it lacks what that needs)")
    terminalreporter.line(" " * 72 + "".join(f"{name:>10}" for name in _CAMERAS))
    for test, row in marks.items():
        cells = "".join(f"{row.get(name, '-'):>10}" for name in _CAMERAS)
        terminalreporter.line(f"{test.replace('_', ' '):72.72}{cells}")


@pytest.fixture
def may_hold_threads() -> None:
    """Skips where this user may not trace its own processes."""
    with subprocess.Popen(["sleep", "60"]) as process:
        try:
            with held(process.pid, 60.0):
                pass
        except OSError as error:
            pytest.skip(f"cannot hold a thread here: {error}")
        finally:
            process.kill()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MB that can be filled for real."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"cannot mount a small file system here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)
