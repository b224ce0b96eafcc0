"""What benchmarks that add up over pieces conclude, from series whose answer is known."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from campaign.ledger import State
from hypothesis import given
from hypothesis import strategies as st
from interference import block_order, ratio
from leave_green import figures, is_proven
from loaded_station import Bench, Floats, append_line, counting, read_lines
from soak import (
    Series,
    exit_status,
    is_whole,
    judged,
    minutes_of,
    sampled_series,
    samples_of,
    slope_per_h,
)
from station_rig import wait_until
from test_campaign import commit, git


def blocks(draw: np.random.Generator, factor: float, spread: float = 0.05) -> list[Floats]:
    """Ten blocks of 500 plates; each block has a level of its own."""
    levels = draw.normal(1.0, spread, 10)
    return [factor * level * draw.lognormal(3.0, 0.3, 500) for level in levels]


def test_no_effect_is_seen_as_none_and_an_effect_as_what_it_is() -> None:
    draw = np.random.default_rng(3)
    none = [ratio(blocks(draw, 1.0), blocks(draw, 1.0), 99, seed, 200) for seed in range(12)]
    held = sum(found["lower"] <= 1.0 <= found["upper"] for found in none)
    assert held >= 8, none
    found = ratio(blocks(draw, 1.5), blocks(draw, 1.0), 99, 1, 200)
    assert found["lower"] > 1.3
    assert found["lower"] < 1.5 < found["upper"]


def test_a_bootstrap_over_plates_would_be_too_sure() -> None:
    """Blocks with levels of their own: the interval widens with them, not with the plates."""
    draw = np.random.default_rng(5)
    alike = ratio(blocks(draw, 1.0, 0.0), blocks(draw, 1.0, 0.0), 95, 1, 200)
    apart = ratio(blocks(draw, 1.0, 0.3), blocks(draw, 1.0, 0.3), 95, 1, 200)
    assert apart["upper"] - apart["lower"] > 3 * (alike["upper"] - alike["lower"])


@given(st.integers(1, 30), st.integers())
def test_blocks_come_in_turns(count: int, seed: int) -> None:
    order = block_order(count, seed)
    assert len(order) == 2 * count
    assert all(order[i] != order[i + 1] for i in range(0, len(order), 2))
    assert order == block_order(count, seed)


def series(slope_per_hour: float, noise: float, pieces: int = 2, alike: float = 0.0) -> Series:
    """Pieces of 45 minutes with levels of their own."""
    draw = np.random.default_rng(1)
    hours = np.tile(np.arange(0, 0.75, 5 / 3600), pieces)
    piece = np.repeat(np.arange(pieces), len(hours) // pieces).astype(np.float64)
    values = 100 + 7 * piece + slope_per_hour * hours
    step = 0.0
    for i in range(len(values)):
        step = alike * step + draw.normal(0, noise)
        values[i] += step
    return Series(piece, hours, values)


@pytest.mark.parametrize("slope", [-3.0, 0.0, 0.5, 12.0])
@pytest.mark.parametrize("alike", [0.0, 0.9])
def test_a_slope_is_found_and_its_interval_holds_it(slope: float, alike: float) -> None:
    found, half = slope_per_h(series(slope, 1.0, alike=alike))
    assert abs(found - slope) < 1.5 * half
    assert half < (0.6 if not alike else 8.0)


def test_a_leak_is_not_flat_and_noise_is() -> None:
    assert judged("rss station", series(20.0, 1.0))["is_flat"] is False
    assert judged("rss station", series(0.0, 1.0))["is_flat"] is True
    # Below the floor of 1 % an hour, however surely it is there.
    assert judged("rss station", series(0.5, 0.001))["is_flat"] is True
    assert judged("fds station", series(2.0, 0.1))["is_flat"] is False
    # Pieces begin at other levels; that is no slope.
    assert judged("fds lamp", series(0.0, 0.0, pieces=5))["is_flat"] is True
    assert judged("database journal", series(50.0, 1.0))["is_flat"] is None


def test_what_is_too_short_says_nothing() -> None:
    short = Series(np.zeros(3), np.arange(3) / 60, np.ones(3))
    assert judged("rss lamp", short)["is_flat"] is None


def test_a_ledger_survives_a_kill_in_mid_line(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    append_line(path, {"piece": 0, "began_ns": 0, "at_ns": 60 * 10**9})
    with path.open("a") as file:
        file.write('{"piece": 0, "began_ns": 0, "at_n')
    assert minutes_of(read_lines(path)) == 1.0
    append_line(path, {"piece": 1, "began_ns": 0, "at_ns": 90 * 10**9})
    assert minutes_of(read_lines(path)) == 2.5


def test_pieces_count_at_their_rate_until_the_program_is_changed(tmp_path: Path) -> None:
    root, path = tmp_path / "repository", tmp_path / "ledger.jsonl"
    for name in ("station/file", "docs/file"):
        (root / name).parent.mkdir(parents=True)
        (root / name).write_text("1")
    git(root, "init", "-q")
    commit(root)
    now = State.now(root)
    append_line(path, {"rate_hz": 2.0, "commit": now.commit, "dirty": now.dirty})
    append_line(path, {"rate_hz": 2.0, "commit": f"{now.commit[:7]}-dirty"})
    assert [len(counting(path, rate_hz, root)) for rate_hz in (2.0, 3.0)] == [1, 0]
    (root / "docs/file").write_text("2")
    assert len(counting(path, 2.0, root)) == 1
    (root / "station/file").write_text("2")
    assert not counting(path, 2.0, root)


def test_minutes_of_a_piece_that_was_killed_do_not_count(tmp_path: Path) -> None:
    for piece in (0, 1):
        row = {"piece": piece, "began_ns": 0, "at_ns": 60 * 10**9}
        append_line(tmp_path / "samples.jsonl", row)
    assert minutes_of(samples_of(Bench(tmp_path), [{"piece": 1}])) == 1.0
    assert minutes_of(samples_of(Bench(tmp_path), [])) == 0.0


WHOLE = {
    "result": "to its end", "findings": [], "lost_frames": 0, "camera_restarts": 0,
    "replaced": [], "missing": [],
}  # fmt: skip


@pytest.mark.parametrize(
    ("key", "value"),
    [("result", "the station does not answer: gone"), ("findings", ["row 3"]), ("lost_frames", 1),
     ("lost_frames", None), ("camera_restarts", 1), ("replaced", ["lamp"]),
     ("missing", ["metrics"])],
)  # fmt: skip
def test_a_piece_is_whole_unless_something_is_amiss(key: str, value: object) -> None:
    assert is_whole(WHOLE)
    assert not is_whole({**WHOLE, key: value})


@pytest.mark.parametrize(
    ("left_s", "back_s", "wanted", "proven"),
    [(1.9, 5.0, 2, True), (2.1, 5.0, 2, False), (None, 5.0, 2, False), (1.9, None, 2, False),
     (1.9, 5.0, 3, False)],
)  # fmt: skip
def test_green_that_stays_a_station_that_does_not_come_back_and_too_few_runs_prove_nothing(
    left_s: float | None, back_s: float | None, wanted: int, proven: bool
) -> None:
    runs = [
        {"kind": "lamp killed", "left_s": 0.5, "back_s": 3.0},
        {"kind": "lamp stopped", "left_s": left_s, "back_s": back_s},
    ]
    assert is_proven(figures(runs), wanted) is proven
    assert not is_proven(figures([]), 0)


@pytest.mark.parametrize(
    ("minutes", "is_flat", "is_whole", "status"),
    [
        (90.0, True, True, 0),
        (89.95, True, True, 0),
        (60.0, True, True, 1),
        (0.0, True, True, 1),
        (90.0, False, True, 1),
        (90.0, True, False, 1),
    ],
)
def test_a_soak_that_was_ended_early_has_not_shown_it(
    minutes: float, is_flat: bool, is_whole: bool, status: int
) -> None:
    result = {"minutes": minutes, "is_flat": is_flat, "is_whole": is_whole}
    assert exit_status(result, 90.0) == status


def test_what_a_process_holds_is_the_least_of_each_minute() -> None:
    """Copying takes some MB for a second: looks that happen to meet it are no growth."""
    rows = [
        {"piece": 1, "began_ns": 0, "at_ns": at_s * 10**9, "rss journal": 100.0 + peak}
        for at_s, peak in ((0, 0), (30, 12), (59, 1), (60, 12), (90, 2), (150, 3))
    ]
    series = sampled_series(rows)["rss journal"]
    assert series.values.tolist() == [100.0, 102.0, 103.0]
    assert series.hours.tolist() == pytest.approx([0, 1 / 60, 2 / 60])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_soak_that_is_told_to_stop_before_it_began_says_so(
    number: signal.Signals, tmp_path: Path
) -> None:
    script = Path(__file__).parents[1] / "benchmarks" / "soak.py"
    folder = tmp_path / "soak"
    command = [sys.executable, str(script), "--folder", str(folder)]
    ignored = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell's background job has it
    try:
        process = subprocess.Popen(command, start_new_session=True)
    finally:
        signal.signal(signal.SIGINT, ignored)
    with process:
        wait_until(folder.is_dir, 60.0, "folder")
        # Again, as a person would: one that comes while Python is in a `__del__` is dropped.
        for _ in range(3):
            process.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20.0)
                break
        process.kill()
    assert process.returncode == 128 + signal.SIGINT
