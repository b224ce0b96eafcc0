"""Which features are a camera's own flat-field correction, by the names that makers use."""

from __future__ import annotations

import pytest

from drivers.camera.feature_tree import Feature, own_corrections


def feature(name: str, value: bool | int | str) -> Feature:
    return Feature(
        category="C",
        name=name,
        kind="Enumeration",
        access="read/write",
        value=value,
        unit="",
        minimum=None,
        maximum=None,
        increment=None,
        choices=(),
        selectors=(),
        visibility="Expert",
        tooltip="",
    )


@pytest.mark.parametrize(
    "name",
    [
        *("flatfieldCorrectionMode", "FlatFieldCorrectionEnable", "ShadingMode", "FFCEnable"),
        *("BslShadingCorrectionMode", "PRNUCEnable", "NUCEnable", "DSNUCorrectionActive"),
    ],
)
def test_a_correction_that_is_on_is_named(name: str) -> None:
    for value in (True, "On", "ActiveAll"):
        assert own_corrections([feature(name, value)]) == [f"{name} = {value}"]
    for value in (False, "Off"):
        assert own_corrections([feature(name, value)]) == []


@pytest.mark.parametrize(
    "name", ["TriggerMode", "ChunkEnable", "FlatFieldCoefficient", "FunctionMode", "NucleusMode"]
)
def test_nothing_else_is_taken_for_one(name: str) -> None:
    assert own_corrections([feature(name, "On")]) == []
