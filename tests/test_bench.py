"""The highest lossless rate: how it is searched for, and that the whole station can be measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from station_rig import vqi

from station.bench import BenchError, highest_lossless

Summary = dict[str, Any]


def station_that_carries(limit_hz: float, tried: list[float]) -> Any:
    def attempt(rate_hz: float) -> Summary:
        tried.append(rate_hz)
        lost = 0 if rate_hz <= limit_hz else 7
        seen = {"lost_frames": lost, "gaps": 0, "plates": 90, "undecided": 1, "rate_hz": rate_hz}
        return seen | {"plate_period_ms": 100.0, "latency_ms": {"p50": 30.0}}

    return attempt


@pytest.mark.parametrize("limit_hz", [9_500.0, 8_000.0, 7_777.0, 5_000.0])
def test_the_highest_lossless_rate_is_found_to_two_percent(limit_hz: float) -> None:
    tried: list[float] = []
    said: list[str] = []
    rate_hz, summary = highest_lossless(
        station_that_carries(limit_hz, tried), 10_000.0, said.append
    )
    assert summary["rate_hz"] == rate_hz
    assert rate_hz == max(rate for rate in tried if rate <= limit_hz)
    assert rate_hz == tried[0] or limit_hz * 0.98 < rate_hz <= limit_hz
    assert len(said) == sum(rate > limit_hz for rate in tried)


def test_a_station_that_falls_behind_is_no_lossless_one() -> None:
    """What its buffers still hold when the time is up has not been carried."""

    def attempt(rate_hz: float) -> Summary:
        seen = station_that_carries(9_000.0, [])(rate_hz)
        return seen | {"latency_ms": {"p50": 101.0 if rate_hz > 7_000 else 99.0}}

    said: list[str] = []
    rate_hz, _ = highest_lossless(attempt, 10_000.0, said.append)
    assert 6_860 < rate_hz <= 7_000
    assert "verdicts after 101.0 ms at a plate every 100.0 ms" in said[-1]


def test_a_station_that_always_loses_is_one_clear_error() -> None:
    with pytest.raises(BenchError, match=r"no rate was without loss, down to 31% of the network"):
        highest_lossless(station_that_carries(0.0, []), 10_000.0, lambda _: None)


@pytest.mark.long
def test_the_whole_station_is_measured(tmp_path: Path) -> None:
    text = (Path(__file__).parents[1] / "config" / "simulated.toml").read_text()
    config = tmp_path / "station.toml"
    config.write_text(text.replace('"var/', f'"{tmp_path}/'))
    done = vqi("bench", "--config", str(config), "--seconds", "5", "--json", timeout_s=240)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["summary"]
    assert found["lost_frames"] == found["gaps"] == 0
    assert 0 < found["share_of_network_alone"] < 1
    assert found["tiles_per_s"] < found["network_alone_tiles_per_s"]
    assert found["half_line_rate_hz"] == pytest.approx(found["line_rate_hz"] / 2, abs=0.1)
    assert found["cores_at_half_rate"].keys() >= {"station", "journal", "camera"}
    assert not list(tmp_path.glob("**/bench-*")), "its own journals are gone"
