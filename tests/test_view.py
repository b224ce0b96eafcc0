"""What people see of a run: the tower, the last plates, one line a plate off a terminal."""

from __future__ import annotations

import json
from io import StringIO

import pytest
from rich.console import Console
from test_qms import result

from drivers.stacklight import LightState
from drivers.stacklight.profiles import DEFAULT_PATTERNS
from station.ipc import Json
from station.record import Verdict
from station.view import LiveView, plain_line, print_summary

BOX = {"x_px": 1, "y_px": 2, "w_px": 224, "h_px": 224, "x_mm": 3.5, "y_mm": 40.4, "score": 0.75}


def event(number: int, verdict: Verdict, **changes: object) -> Json:
    return {"record": result(number, verdict, **changes).as_json(), "latency_ms": 12.3}


def drawn(view: LiveView) -> str:
    console = Console(file=StringIO(), width=110, force_terminal=False)
    console.print(view)
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


@pytest.fixture
def view() -> LiveView:
    return LiveView(DEFAULT_PATTERNS, "line-1")


def test_plates_with_verdict_defects_and_latency(view: LiveView) -> None:
    view.take({"state": "OPERATIONAL", "problems": {}})
    view.take(event(1, Verdict.PASS))
    view.take(event(2, Verdict.FAIL, defects=[BOX] * 6))
    view.take(event(3, Verdict.UNDECIDED, detail="frames 5 to 6 are lost"))
    view.take(event(4, Verdict.UNDECIDED, score=float("nan"), reason="non-finite"))
    view.take({"figures": {"mb_per_s": 12.3, "lost_frames": 2}})
    text = drawn(view)
    assert "(4, 40) (4, 40) (4, 40) (4, 40) and 2 more" in text
    assert "gap: frames 5 to 6 are lost" in text
    assert "nan" in text
    assert "PASS 1  FAIL 1  UNDECIDED 2" in text
    assert "12.3 MB/s  lost frames 2" in text
    assert "OPERATIONAL" in text


@pytest.mark.parametrize("state", list(LightState))
def test_the_tower_shows_every_state_by_name(view: LiveView, state: LightState) -> None:
    view.take({"lamp": {"state": str(state), "result_id": ""}})
    text = drawn(view)
    assert all(word in text for word in state.split("_"))
    assert all(element in text for element in ("red", "yellow", "green"))


def test_a_problem_is_named_and_goes(view: LiveView) -> None:
    view.take({"state": "ERROR", "problems": {"journal": "free some"}})
    assert "free some" in drawn(view)
    view.take({"state": "OPERATIONAL", "problems": {}})
    assert "free some" not in drawn(view)


def test_off_a_terminal_each_event_is_a_line_or_none() -> None:
    assert plain_line(event(1, Verdict.PASS)) == "s-00000001 PASS score 0.250"
    failed = plain_line(event(2, Verdict.FAIL, defects=[BOX]))
    assert failed == "s-00000002 FAIL score 0.250  (4, 40)"
    assert plain_line(event(3, Verdict.UNDECIDED, score=None)) == "s-00000003 UNDECIDED  gap"
    assert "nan" in str(plain_line(event(4, Verdict.UNDECIDED, score=float("nan"))))
    assert plain_line({"problem": {"part": "lamp", "text": "gone"}}) == "lamp: gone"
    assert plain_line({"state": "ERROR", "problems": {"a": "b"}}) == "station ERROR: b"
    assert plain_line({"figures": {}}) is None
    assert json.dumps(event(4, Verdict.UNDECIDED, score=float("nan")), allow_nan=False)


def test_a_summary_is_a_table() -> None:
    console = Console(file=StringIO(), width=80)
    print_summary(console, {"plates": 3, "latency_ms": {"p50": 1.5}, "process_restarts": {}})
    assert isinstance(console.file, StringIO)
    lines = [" ".join(line.split()) for line in console.file.getvalue().splitlines()]
    assert lines == ["plates 3", "latency ms p50 1.5", "process restarts none"]
