"""Features of a camera, on node maps of XML as cameras carry it."""

from __future__ import annotations

import time
from typing import Any

import pytest
from genicam.genapi import NodeMap
from hypothesis import given
from hypothesis import strategies as st

from drivers.camera.features import (
    HERTZ,
    MICROSECONDS,
    apply_features,
    is_same_value,
    read_feature,
    read_in,
)
from drivers.camera.genicam import _DeviceClock, _FrameIds
from drivers.errors import DeviceRefused

_HEAD = """<?xml version="1.0" encoding="utf-8"?>
<RegisterDescription ModelName="T" VendorName="VQI" StandardNameSpace="None" SchemaMajorVersion="1"
 SchemaMinorVersion="1" SchemaSubMinorVersion="0" MajorVersion="1" MinorVersion="0"
 SubMinorVersion="0" ProductGuid="11111111-1111-1111-1111-111111111111"
 VersionGuid="22222222-2222-2222-2222-222222222222" ToolTip=""
 xmlns="http://www.genicam.org/GenApi/Version_1_1">"""
CAMERA = f"""{_HEAD}
<Integer Name="SensorWidth"><Value>4096</Value></Integer>
<Integer Name="OffsetX"><Value>0</Value><Min>0</Min><Max>4000</Max></Integer>
<Integer Name="Width"><Value>4096</Value><Min>16</Min><pMax>WidthMax</pMax></Integer>
<IntSwissKnife Name="WidthMax"><pVariable Name="X">OffsetX</pVariable><Formula>4096 - X</Formula>
</IntSwissKnife>
<Float Name="AcquisitionLineRate"><Value>3.0</Value><Min>0.1</Min><Max>100</Max><Unit>kHz</Unit>
</Float>
<Converter Name="ExposureTime"><FormulaTo>ROUND(FROM * 10, 0)</FormulaTo>
<FormulaFrom>TO / 10.0</FormulaFrom><pValue>ExposureTicks</pValue><Unit>us</Unit></Converter>
<Float Name="ExposureTicks"><Value>2000</Value></Float>
<Enumeration Name="TriggerSelector"><EnumEntry Name="LineStart"><Value>0</Value></EnumEntry>
<EnumEntry Name="FrameStart"><Value>1</Value></EnumEntry><Value>0</Value>
<pSelected>TriggerMode</pSelected></Enumeration>
<Enumeration Name="TriggerMode"><EnumEntry Name="Off"><Value>0</Value></EnumEntry>
<EnumEntry Name="On"><Value>1</Value></EnumEntry><pValue>TriggerModeOf</pValue></Enumeration>
<Integer Name="TriggerModeOf"><pIndex>TriggerIndex</pIndex>
<pValueIndexed Index="0">Mode0</pValueIndexed><pValueIndexed Index="1">Mode1</pValueIndexed>
<ValueDefault>0</ValueDefault></Integer>
<IntSwissKnife Name="TriggerIndex"><pVariable Name="S">TriggerSelector</pVariable>
<Formula>S</Formula></IntSwissKnife>
<Integer Name="Mode0"><Value>0</Value></Integer><Integer Name="Mode1"><Value>0</Value></Integer>
</RegisterDescription>"""


@pytest.fixture
def nodes() -> Any:
    node_map = NodeMap()
    node_map.load_xml_from_string(CAMERA)
    return node_map


def test_a_value_that_the_camera_rounds_is_told(nodes: Any) -> None:
    applied = apply_features(nodes, {"ExposureTime": 123.46, "Width": 2048}, "C1")
    assert applied.values == {"ExposureTime": "123.5", "Width": "2048"}
    assert applied.rounded == {"ExposureTime": "123.46"}
    assert apply_features(nodes, {"ExposureTime": 100.0}, "C1").rounded == {}
    assert apply_features(nodes, {"ExposureTime": 100}, "C1").rounded == {}


def test_a_number_is_the_same_however_it_is_written() -> None:
    for value, found in (
        (250, "250.0"),
        (250.0, 250),
        (4096, "4096"),
        (True, "True"),
        ("On", "On"),
    ):
        assert is_same_value(value, found)
    for value, found in ((250, "250.1"), (True, "False"), ("On", "Off"), ("1", "1.0")):
        assert not is_same_value(value, found)


def test_a_value_that_the_camera_changes_is_refused(nodes: Any) -> None:
    with pytest.raises(DeviceRefused, match=r"C1: ExposureTime is 0\.1 after setting it to 0\.07"):
        apply_features(nodes, {"ExposureTime": 0.07}, "C1")


def test_features_that_bound_each_other_are_set_in_whatever_order_works(nodes: Any) -> None:
    apply_features(nodes, {"OffsetX": 1000, "Width": 3000}, "C1")
    assert (nodes.Width.value, nodes.OffsetX.value) == (3000, 1000)
    # Width cannot grow before the offset has shrunk.
    apply_features(nodes, {"OffsetX": 0, "Width": 4096}, "C1")
    assert (nodes.Width.value, nodes.OffsetX.value) == (4096, 0)


def test_a_selected_feature_is_set_where_its_selector_says(nodes: Any) -> None:
    wanted = {"TriggerMode[FrameStart]": "On", "TriggerMode[LineStart]": "Off"}
    applied = apply_features(nodes, wanted, "C1")
    assert applied.values == wanted
    assert (nodes.Mode0.value, nodes.Mode1.value) == (0, 1)
    assert read_feature(nodes, "TriggerMode[FrameStart]") == "On"


@pytest.mark.parametrize(
    ("wanted", "text"),
    [
        ({"Width": 9000}, r"refuses Width = 9000: .*it takes 16 to 4096"),
        ({"TriggerSelector": "Middle"}, r"it takes LineStart, FrameStart"),
        ({"NoSuch": 1}, r"there is no feature NoSuch"),
        ({"Width[LineStart]": 100}, r"nothing selects Width"),
        ({"Trigger Mode": 1}, r"no feature's name"),
    ],
)
def test_what_is_refused_is_named_with_what_would_be_taken(
    nodes: Any, wanted: dict[str, Any], text: str
) -> None:
    with pytest.raises(DeviceRefused, match=text):
        apply_features(nodes, wanted, "C1")


def test_units_are_the_cameras_own(nodes: Any) -> None:
    assert read_in(nodes, "AcquisitionLineRate", HERTZ) == 3000.0
    assert read_in(nodes, "ExposureTime", MICROSECONDS) == 200.0
    assert read_in(nodes, "Gain", HERTZ) is None


@given(st.integers(1, 65535), st.lists(st.integers(1, 30_000), max_size=20))
def test_ids_count_on_past_the_end_of_a_16_bit_counter(first: int, steps: list[int]) -> None:
    ids, told = _FrameIds(), [first]
    for step in steps:
        told.append((told[-1] + step - 1) % 65535 + 1)  # GigE Vision counts 1 to 65535
    counted = [ids.counted(number) for number in told]
    assert counted == [sum(steps[:n]) for n in range(len(told))]


def test_a_repeated_or_long_frame_id_is_no_wrap() -> None:
    ids = _FrameIds()
    assert [ids.counted(n) for n in (5, 5, 6, 200_000, 200_001)] == [0, 0, 1, 199_995, 199_996]


@given(st.lists(st.integers(0, 50_000_000), min_size=1, max_size=50))
def test_device_times_come_to_this_hosts_clock(waits_ns: list[int]) -> None:
    """A frame that waited keeps the time at which it was taken, as soon as one did not wait."""
    clock, host_ahead_ns, period_ns = _DeviceClock(), 7_000_000_000, 20_000_000
    errors = []
    for number, wait_ns in enumerate([0, *waits_ns]):
        taken_ns = number * period_ns
        told = clock.on_host(taken_ns, host_ahead_ns + taken_ns + wait_ns)
        errors.append(told - host_ahead_ns - taken_ns)
    assert all(0 <= error <= 110_000 for error in errors), errors


def test_without_a_device_time_the_arrival_counts() -> None:
    now = time.monotonic_ns()
    assert _DeviceClock().on_host(None, now) == now
