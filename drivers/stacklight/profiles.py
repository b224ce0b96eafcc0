"""What each state looks like: site profiles, chosen by `[light] profile`.

IEC 60204-1 / IEC 60073: red danger, yellow abnormal, green normal, blue mandatory action, white
neutral. About 8 % of men tell no red from green: within a profile, states differ by the element's
place on the tower and by flashing alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

from drivers.stacklight import LightState
from drivers.stacklight.settings import Element, LightPattern, Mode

ProfileName = Literal["iec60073", "iec60073_blue_white", "red_is_danger"]

_IEC60073: dict[LightState, LightPattern] = {
    LightState.PASS: {"green": "on"},
    LightState.PASS_NOT_PRODUCTION: {"green": "on", "yellow": "blink"},
    LightState.FAIL: {"red": "on"},
    LightState.UNDECIDED: {"yellow": "on"},
    LightState.FAULT: {"red": "blink"},
    LightState.ATTENTION: {"yellow": "blink"},
    LightState.IDLE: {},
}

PROFILES: dict[ProfileName, dict[LightState, LightPattern]] = {
    "iec60073": _IEC60073,
    "iec60073_blue_white": {
        **_IEC60073,
        LightState.ATTENTION: {"blue": "on"},
        LightState.IDLE: {"white": "on"},
    },
    "red_is_danger": {
        **_IEC60073,
        LightState.FAIL: {"blue": "on"},
        LightState.FAULT: {"blue": "blink"},
    },
}
"""Without the lamp test, which lights whatever the other states use.

iec60073: a tower of red, yellow and green. iec60073_blue_white: five elements; blue calls a person,
white says that the station is alive. red_is_danger: for sites that keep red for danger to people; a
failed plate and a station that does not inspect are blue, a mandatory action.
"""
DEFAULT_PROFILE: ProfileName = "iec60073"

_PLACES: tuple[Element, ...] = get_args(Element)
_MAY_LIGHT_PASS = {LightState.PASS, LightState.PASS_NOT_PRODUCTION, LightState.LAMP_TEST}


def pattern_table(
    profile: ProfileName = DEFAULT_PROFILE,
    patterns: Mapping[LightState, LightPattern] | None = None,
    buzzer: Mapping[LightState, Mode] | None = None,
) -> dict[LightState, LightPattern]:
    """A pattern for every state: the profile's, replaced by `patterns`, with `buzzer` added."""
    table = {**PROFILES[profile], **(patterns or {})}
    for state, mode in (buzzer or {}).items():
        table[state] = {"buzzer": mode, **table.get(state, {})}
    if LightState.LAMP_TEST not in table:
        used = {element for pattern in table.values() for element in pattern}
        table[LightState.LAMP_TEST] = {e: "on" for e in _PLACES if e in used}
    return table


DEFAULT_PATTERNS = pattern_table()


def without_buzzer(pattern: LightPattern) -> LightPattern:
    """What can be seen of a pattern."""
    return {element: mode for element, mode in pattern.items() if element != "buzzer"}


def ambiguities(table: Mapping[LightState, LightPattern]) -> list[str]:
    """Pairs of states that look alike, and states that could be taken for a pass. The buzzer does
    not count: nobody hears it from across the hall, and it falls silent."""
    states = list(table)
    found = [
        f"patterns.{state} is the same as patterns.{other}"
        for at, state in enumerate(states)
        for other in states[at + 1 :]
        if without_buzzer(table[state]) == without_buzzer(table[other])
    ]
    passed = without_buzzer(table[LightState.PASS]).items()
    return found + [
        f"patterns.{state} lights all that patterns.pass lights"
        for state, pattern in table.items()
        if state not in _MAY_LIGHT_PASS and passed <= pattern.items()
    ]
