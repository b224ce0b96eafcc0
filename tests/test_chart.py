"""Charts of a report: nothing that a reader must see is thinned away."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from station.chart import line_chart


def heights(svg: bytes) -> list[list[float]]:
    """Vertical places of each drawn line's points."""
    nodes = ElementTree.fromstring(svg).iter()
    paths = [node.get("d") or "" for node in nodes if "path" in node.tag]
    return [[float(y) for _, y in re.findall(r"[ML]([\d.]+) ([\d.]+)", path)] for path in paths]


@given(st.integers(601, 5000), st.integers(0, 2**31))
def test_a_single_odd_value_of_a_long_series_is_drawn(length: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    line = rng.normal(100.0, 1.0, length)
    line[rng.integers(length)] = 0.0
    (drawn,) = heights(line_chart("t", "x", "y", {"level": line}))
    # The lowest value lies on the frame's lower edge.
    assert max(drawn) == pytest.approx(220 - 34, abs=0.1)
    assert len(drawn) <= 600


def test_gaps_constants_and_names_are_drawn_as_they_are() -> None:
    line = np.array([1.0, np.nan, 2.0])
    svg = line_chart("<t>", "x", "y", {"a & b": line, "flat": np.full(3, 1.5)})
    assert [len(each) for each in heights(svg)] == [2, 3]
    assert b"a &amp; b" in svg
    assert b"&lt;t&gt;" in svg
    assert heights(line_chart("t", "x", "y", {"none": np.full(4, np.nan)})) == [[]]
