"""The people of a station, as they come to be: added at its terminal, then each at the page for the
first time."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
from browser_rig import Screen

from station.roles import Role

PASSWORD, PIN = "a-lamp-beside-the-belt", "735194"
_FIRST_PASSWORD = "given-at-the-terminal"
PEOPLE = {"ada": Role.ADMIN, "eve": Role.ENGINEER, "emil": Role.ENGINEER, "rosa": Role.REVIEWER}
_TOKEN = re.compile(r'name="csrf" value="([0-9a-f]{64})"')


def add_people(config: Path, names: Sequence[str]) -> None:
    """With `vqi user add`; the first password of all but the first has to be changed."""
    for number, name in enumerate(names):
        command = ["user", "add", name, "--role", PEOPLE[name].word, "--full-name", name.title()]
        subprocess.run(
            [sys.executable, "-P", "-m", "station.cli", *command, "--config", str(config)],
            input=_FIRST_PASSWORD if number else PASSWORD,
            text=True,
            check=True,
            capture_output=True,
        )


def come_for_the_first_time(url: str, names: Sequence[str]) -> None:
    """Everybody changes the given password; Rosa gets a PIN, for the screen beside the belt."""
    for name in names[1:]:
        with httpx.Client(base_url=url, headers={"origin": url}) as client:
            said = {"name": name, "password": _FIRST_PASSWORD, "new": PASSWORD, "again": PASSWORD}
            _send(client, "/sign-in/new-password", said)
            if name == "rosa":
                _send(client, "/account/pin", {"password": PASSWORD, "pin": PIN, "again": PIN})


def _send(client: httpx.Client, path: str, fields: dict[str, Any]) -> None:
    found = _TOKEN.search(client.get("/sign-in").text)
    assert found is not None
    answer = client.post(path, data={"csrf": found[1], **fields})
    assert answer.status_code == 303, answer.text
    assert "why=" not in answer.headers["location"], answer.headers["location"]


def sign_in(one: Screen, name: str) -> None:
    """By name and password."""
    one.open("/sign-in")
    one.write("#name", name)
    one.write("#password", PASSWORD)
    with one.page.expect_navigation():
        one.touch('form[action="/sign-in"] button')
    assert "why=" not in one.where(), one.where()


def enrol(one: Screen, name: str) -> None:
    """A screen beside the belt takes PINs once somebody gave a password there."""
    sign_in(one, name)
    with one.page.expect_navigation():
        one.touch('form[action="/sign-out"] button')
