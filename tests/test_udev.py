"""Devices get names that stay, from properties as `udevadm info` recorded them."""

from __future__ import annotations

from pathlib import Path

import pytest
from udev_rules import Outcome, apply, read_device

RULES = Path(__file__).parents[1] / "deploy" / "udev" / "70-vqi.rules"
RECORDED = Path(__file__).parent / "udev"


def outcome_of(name: str, **changed: str) -> Outcome:
    return apply(RULES, read_device(RECORDED / f"{name}.txt") | changed)


@pytest.mark.parametrize(
    ("device", "link"),
    [
        ("ftdi", "vqi/serial-A900fCv0"),
        ("ch340", "vqi/serial-at-pci-0000:03:00.0-usb-0:2:1.0"),
        ("cdc-acm", "vqi/serial-123123123123"),
    ],
)
def test_a_serial_tower_is_named_by_its_serial_number_or_its_socket(device: str, link: str) -> None:
    found = outcome_of(device)
    assert found.links == [link]
    assert found.values["GROUP"] == "dialout"
    assert found.values["MODE"] == "0660"
    assert found.values["ENV{ID_MM_DEVICE_IGNORE}"] == "1"


def test_two_towers_never_share_a_name() -> None:
    first = outcome_of("ch340").links
    second = outcome_of("ch340", ID_PATH="pci-0000:03:00.0-usb-0:3:1.0").links
    assert first != second


def test_a_usb3_vision_camera_is_the_camera_groups_and_stays_awake() -> None:
    found = outcome_of("usb3-vision")
    assert found.links == ["vqi/camera-19366937"]
    assert found.values == {"GROUP": "video", "MODE": "0660", "ATTR{power/control}": "on"}


@pytest.mark.parametrize("device", ["onboard-serial", "webcam"])
def test_what_is_none_of_ours_is_left_alone(device: str) -> None:
    assert outcome_of(device) == Outcome()


def test_a_device_that_goes_is_not_named() -> None:
    assert outcome_of("ftdi", ACTION="remove") == Outcome()


def test_gpio_chips_are_their_groups() -> None:
    chip = {"ACTION": "add", "SUBSYSTEM": "gpio", "KERNEL": "gpiochip0"}
    assert apply(RULES, chip).values == {"GROUP": "gpio", "MODE": "0660"}
