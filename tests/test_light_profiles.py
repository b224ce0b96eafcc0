"""What states look like: every profile and every configuration that is taken can be told apart, and
one that its device cannot show is refused with the state's name."""

from __future__ import annotations

import tomllib
from itertools import combinations
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from drivers.stacklight import LightState
from drivers.stacklight.profiles import (
    DEFAULT_PATTERNS,
    PROFILES,
    ambiguities,
    pattern_table,
    without_buzzer,
)
from drivers.stacklight.settings import Element
from station.config import LightSettings

ELEMENTS = get_args(Element)
RELAYS = {"type": "modbus_relay", "port": "/dev/x", "blink_hz": 2.0}


def relays(*elements: str, **changes: Any) -> dict[str, Any]:
    return {**RELAYS, "addresses": {e: at for at, e in enumerate(elements)}, **changes}


def light(device: dict[str, Any], **keys: Any) -> LightSettings:
    return LightSettings.model_validate({"device": device, **keys})


def refusal(device: dict[str, Any], **keys: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        light(device, **keys)
    return str(caught.value.errors()[0]["msg"]).removeprefix("Value error, ")


# --- the profiles ---------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", PROFILES)
def test_states_differ_by_place_and_flashing_alone(profile: Any) -> None:
    table = pattern_table(profile)
    assert table.keys() == set(LightState)
    looks = {state: frozenset(without_buzzer(pattern).items()) for state, pattern in table.items()}
    for one, other in combinations(LightState, 2):
        assert looks[one] != looks[other], (one, other)
    assert ambiguities(table) == []


@pytest.mark.parametrize("profile", PROFILES)
def test_nothing_but_a_pass_lights_green(profile: Any) -> None:
    table = pattern_table(profile)
    greens = {state for state, pattern in table.items() if "green" in pattern}
    assert greens == {LightState.PASS, LightState.PASS_NOT_PRODUCTION, LightState.LAMP_TEST}
    assert table[LightState.PASS] == {"green": "on"}


@pytest.mark.parametrize("profile", PROFILES)
def test_the_lamp_test_lights_all_that_any_state_uses(profile: Any) -> None:
    table = pattern_table(profile, buzzer={LightState.FAULT: "blink"})
    used = {element for pattern in table.values() for element in pattern}
    assert table[LightState.LAMP_TEST] == dict.fromkeys(used, "on")


def test_red_is_for_danger_alone_where_a_site_wants_that() -> None:
    assert not [s for s, pattern in pattern_table("red_is_danger").items() if "red" in pattern]


# --- a configuration ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("profile", "elements"),
    [
        ("iec60073", ("red", "yellow", "green")),
        ("iec60073_blue_white", ("red", "yellow", "green", "blue", "white")),
        ("red_is_danger", ("yellow", "green", "blue")),
    ],
)
def test_each_profile_needs_just_its_elements(profile: Any, elements: tuple[str, ...]) -> None:
    assert light(relays(*elements), profile=profile).pattern_table == pattern_table(profile)
    for missing in elements:
        rest = [element for element in elements if element != missing]
        told = refusal(relays(*rest), profile=profile)
        state = told.split()[0].removeprefix("patterns.")
        assert missing in pattern_table(profile)[LightState(state)]
        assert f"the device has no {missing} (it has {', '.join(rest)})" in told


def test_a_tower_without_yellow_is_told_which_state_and_what_to_do() -> None:
    assert refusal(relays("red", "green")) == (
        "patterns.pass_not_production wants yellow blink, but the device has no yellow (it has "
        "red, green); give [light.patterns] pass_not_production a pattern of its elements, or "
        "choose another profile"
    )


def test_a_device_that_cannot_flash_is_told_which_state_and_what_to_do() -> None:
    told = refusal(relays("red", "yellow", "green", blink_hz=None))
    assert told == (
        "patterns.pass_not_production wants yellow blink, but the device has no yellow that "
        "flashes; give [light.patterns] pass_not_production another pattern, or blink_hz where it "
        "has that key"
    )
    lcus = {"type": "serial_tower", "port": "x", "board": "lcus"}
    channels = {"red": 0, "yellow": 1, "green": 2}
    assert "no yellow that flashes" in refusal({**lcus, "channels": channels})
    assert light({**lcus, "channels": channels, "blink_hz": 2.0})


def test_a_buzzer_sounds_only_where_it_is_asked_for() -> None:
    device = relays("red", "yellow", "green", "buzzer")
    assert "buzzer" not in str(light(device).pattern_table)
    table = light(device, buzzer={"fault": "blink"}).pattern_table
    assert table[LightState.FAULT] == {"red": "blink", "buzzer": "blink"}
    assert [state for state, pattern in table.items() if "buzzer" in pattern] == [
        LightState.FAULT,
        LightState.LAMP_TEST,
    ]
    assert "patterns.fault wants buzzer on, but the device has no buzzer" in refusal(
        relays("red", "yellow", "green"), buzzer={"fault": "on"}
    )


def test_a_buzzer_alone_tells_no_states_apart() -> None:
    told = refusal(
        relays("red", "yellow", "green", "buzzer"),
        patterns={"undecided": {"red": "on", "buzzer": "on"}},
    )
    assert told.startswith("patterns.fail is the same as patterns.undecided")


@given(
    st.dictionaries(
        st.sampled_from([str(state) for state in LightState]),
        st.dictionaries(st.sampled_from(ELEMENTS), st.sampled_from(["on", "blink"]), max_size=3),
    ),
    st.sets(st.sampled_from(ELEMENTS), min_size=1),
    st.booleans(),
    st.sampled_from(sorted(PROFILES)),
)
def test_any_light_can_show_and_tell_apart_all_states_or_is_refused_by_name(
    patterns: dict[str, dict[str, str]], elements: set[str], can_flash: bool, profile: str
) -> None:
    device = relays(*elements, blink_hz=2.0 if can_flash else None)
    try:
        table = light(device, patterns=patterns, profile=profile).pattern_table
    except ValidationError as error:
        refused = str(error)
        table = {}
    if not table:
        assert any(f"patterns.{state}" in refused for state in LightState)
        return
    assert table.keys() == set(LightState)
    assert ambiguities(table) == []
    for pattern in table.values():
        assert pattern.keys() <= elements
        assert can_flash or "blink" not in pattern.values()


# --- mistakes of a device -------------------------------------------------------------------------

SERIAL = {"type": "serial_tower", "port": "x"}
TOLD = {"red": {"on": "11", "off": "21"}}
READ = {"request": "5B", "reply_bytes": 1, "form": "bits", "places": {"red": 0}}
MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "no channels": ({**SERIAL, "board": "lcus"}, "a relay board needs channels"),
    "channels of a tower": (
        {**SERIAL, "board": "adafruit_5125", "channels": {"red": 0}},
        "the Adafruit 5125 has no channels",
    ),
    "a channel too high": (
        {**SERIAL, "board": "lcus", "channels": {"red": 8}},
        "channels of this board are 0 to 7",
    ),
    "a channel twice": (
        {**SERIAL, "board": "numato", "channels": {"red": 1, "green": 1}},
        "two elements have the same one",
    ),
    "a board and bytes": (
        {**SERIAL, "board": "lcus", "channels": {"red": 0}, "elements": TOLD},
        "either a board with its channels, or elements",
    ),
    "an answer for a board": (
        {**SERIAL, "board": "adafruit_5125", "answer": "06"},
        "a board has its own",
    ),
    "bytes twice": (
        {**SERIAL, "elements": {"red": {"on": "11", "on_text": "x", "off": "21"}}},
        "give either on (hex bytes) or on_text",
    ),
    "no way to go dark": ({**SERIAL, "elements": {"red": {"on": "11"}}}, "elements.red has no off"),
    "flashing by all_off": (
        {**SERIAL, "elements": {"red": {"on": "11"}}, "all_off": "00", "blink_hz": 2.0},
        "blink_hz needs an off for each element",
    ),
    "a read without an end": (
        {**SERIAL, "elements": TOLD, "read": {"request": "5B", "form": "hex"}},
        "give either reply_bytes, the answer's length, or prompt",
    ),
    "a read without a place": (
        {**SERIAL, "elements": TOLD, "read": {**READ, "places": {}}},
        "read.places names each of the elements",
    ),
    "a place behind the answer": (
        {**SERIAL, "elements": TOLD, "read": {**READ, "places": {"red": 8}}},
        "a place lies behind the answer's 1 bytes",
    ),
    "a port and a host": (relays("red", host="10.0.0.1"), "give either port (RTU) or host (TCP)"),
    "a name for a host": (
        {**relays("red"), "port": None, "host": "relays.local"},
        "not a valid IPv4 address",
    ),
    "an address twice": (
        relays("red", addresses={"red": 1, "green": 1}),
        "two elements have the same one",
    ),
    "addresses far apart": (
        relays("red", addresses={"red": 0, "green": 16}),
        "more than 16 apart",
    ),
    "a pulse shorter than the lease": (relays("red", pass_pulse_s=1.0), "greater than or equal"),
    "a pulse of a register board": (
        relays("red", command="register", pass_pulse_s=1.5),
        "register boards count whole seconds; give 2.0",
    ),
    "a blue phn tower": (
        {"type": "patlite", "host": "10.0.0.1", "protocol": "phn", "elements": ["blue"]},
        "phn knows no blue; use protocol pns",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_of_the_device_says_what_is_right(name: str) -> None:
    device, expected = MISTAKES[name]
    with pytest.raises(ValidationError) as caught:
        light(device)
    assert expected in str(caught.value)


# --- the documentation ----------------------------------------------------------------------------

PAGE = (Path(__file__).parents[1] / "docs" / "lights.md").read_text()
BLOCKS = [block.split("```")[0] for block in PAGE.split("```toml\n")[1:]]


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.splitlines()[1].strip())
def test_every_example_of_the_page_is_a_light_that_is_taken(block: str) -> None:
    given = light(**tomllib.loads(block)["light"])
    assert given.device.nature


def test_the_page_names_every_profile_and_its_patterns() -> None:
    for profile in PROFILES:
        assert f"`{profile}`" in PAGE
    for state in DEFAULT_PATTERNS:
        assert f"| {state} |" in PAGE
