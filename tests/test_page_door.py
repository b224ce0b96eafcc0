"""The page's own user comes in by a door of its own, and may do there what a person may."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import selectors
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from station_rig import Json, Rig, wait_until
from test_qms import opened, result
from web_rig import running_journal

from drivers.stacklight import LightState
from station.control import ControlServer, control_path, send_command
from station.ipc import Channel, PeerGone, connect, user_name
from station.journal_client import JournalClient, journal_path
from station.lamp import LampClient, lamp_path
from station.page_door import ACCOUNT, MAX_CLIENTS, MAX_ROWS, door_of, objection, way_in
from station.recipes import ACTIVATED, APPROVED, PROPOSED, REFUSED
from station.record import ChangeBody, HoldBody, ReleaseBody, ReviewBody, Verdict

PAGE_UID, PAGE_GID = 54_321, 54_322


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """A journal process whose runtime folder has a door, as deploy/tmpfiles.d makes it."""
    folder = tmp_path_factory.mktemp("door")
    rig = Rig(folder, station={"id": "s"})
    rig.write()
    door = door_of(journal_path(rig.runtime)).parent
    door.mkdir(parents=True)
    os.chown(door, -1, PAGE_GID)
    door.chmod(0o2750)
    with running_journal(rig):
        yield rig


def change(what: str) -> ChangeBody:
    return ChangeBody(station_id="s", what=what, who="ada")


def test_what_the_page_may_write_and_what_not(rig: Rig) -> None:
    client = JournalClient(rig.runtime, is_page=True)
    client.connect(5.0)
    said = client.submit([change("user added")])
    assert said["ok"], said
    hold = HoldBody(station_id="s", hold_id="h-1", lot="L", who="ada", why="claim")
    release = ReleaseBody(station_id="s", hold_id="h-1", who="ada", why="over")
    for row in (opened(1), result(1), change("start"), change("commissioned"), hold, release):
        refused = client.submit([row])
        assert not refused["ok"]
        assert "may not" in refused["error"]
    client.close()
    (row,) = rig.rows("change")
    assert (row["who"], row["account"]) == ("ada", ACCOUNT)


@pytest.mark.parametrize(
    "label", ["9999-12-31T23:59:59.000000Z", "soon", "", "2026-11-26T12:00:00+00:00"]
)
def test_the_page_writes_for_no_time_to_come(rig: Rig, label: str) -> None:
    client = JournalClient(rig.runtime, is_page=True)
    client.connect(5.0)
    refused = client.submit([change("user added").model_copy(update={"written_at": label})])
    assert not refused["ok"]
    assert "no time, or one to come" in refused["error"]
    client.close()


@pytest.mark.parametrize("op", ["hello", "tick", "arriving", "prune", "checkpoint"])
def test_the_page_asks_for_nothing_else(rig: Rig, op: str) -> None:
    with connect(way_in(journal_path(rig.runtime))) as channel, pytest.raises(PeerGone):
        channel.request({"op": op, "n": 1, "result_id": "s-1"})


@pytest.mark.parametrize("has_pixels", [True, False])
def test_the_page_sends_no_pictures(rig: Rig, has_pixels: bool) -> None:
    wanted = {"rows": "10", "width": 10, "band_rows": 5, "keep": ["evidence"]}
    message = {"op": "submit", "id": 1, "rows": [change("user added").as_json()]}
    message |= {"pixels": wanted} if has_pixels else {}
    pixels = os.memfd_create("plate")
    os.ftruncate(pixels, 1000)
    with connect(way_in(journal_path(rig.runtime))) as channel:
        channel.send(message, (pixels,))
        with pytest.raises(PeerGone):
            channel.receive(10.0)
    os.close(pixels)
    assert the_journal_takes(rig, 21)


def test_the_page_fills_neither_descriptors_nor_rows(rig: Rig) -> None:
    door = way_in(journal_path(rig.runtime))
    with contextlib.ExitStack() as stack:
        channels = [stack.enter_context(connect(door)) for _ in range(MAX_CLIENTS + 8)]
        said = [is_served(channel) for channel in channels]
        assert said.count(True) == MAX_CLIENTS
        assert the_journal_takes(rig, 22)
    many = [change("user added").as_json()] * (MAX_ROWS + 1)
    with connect(door) as channel, pytest.raises(PeerGone):
        channel.request({"op": "submit", "id": 1, "rows": many})


def is_served(channel: Channel) -> bool:
    try:
        return bool(channel.request({"op": "status"})["ok"])
    except PeerGone:
        return False


def the_journal_takes(rig: Rig, number: int) -> bool:
    """Whether the station's own row is committed."""
    client = JournalClient(rig.runtime)
    client.connect(5.0)
    said = client.submit([opened(number)])
    client.close()
    return bool(said["ok"])


@pytest.mark.parametrize("id", ["X Y/..", "../../x", "a\n"])
def test_a_recipe_of_a_strange_name_is_refused_and_the_journal_goes_on(rig: Rig, id: str) -> None:
    text = f"id = {json.dumps(id)}\nversion = 1\n"
    detail = {"id": id, "version": "1", "reason": "because", "toml": text}
    detail["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    row = ChangeBody(station_id="s", what="recipe_proposed", who="ada", detail=detail)
    client = JournalClient(rig.runtime, is_page=True)
    client.connect(5.0)
    refused = client.submit([row])
    assert not refused["ok"]
    assert "ID@NUMBER" in refused["error"]
    assert client.submit([change("user added")])["ok"]
    client.close()


def test_what_a_person_sends_from_the_command_line_names_the_account(rig: Rig) -> None:
    client = JournalClient(rig.runtime)
    client.connect(5.0)
    assert client.submit([change("user removed")])["ok"]
    client.close()
    (row,) = [row for row in rig.rows("change") if row["what"] == "user removed"]
    assert (row["who"], row["account"]) == ("ada", user_name(os.getuid()))


def test_rows_of_the_stations_own_name_no_account(rig: Rig) -> None:
    client = JournalClient(rig.runtime)
    client.connect(5.0)
    assert client.submit([opened(7), change("start")])["ok"]
    client.close()
    assert "account" not in rig.rows("change")[-1]


@pytest.mark.skipif(os.getuid() != 0, reason="only root can drop to another user")
@pytest.mark.parametrize("is_member", [True, False])
def test_the_folders_group_is_who_may_come_in(rig: Rig, is_member: bool) -> None:
    for folder in [rig.folder, *rig.folder.parents][:4]:  # pytest's own are closed to others
        folder.chmod(folder.stat().st_mode | 0o001)
    program = (
        "import sys; from pathlib import Path; from station.processes import ask; "
        "print(ask(Path(sys.argv[1]), 'journal', 5.0)[0] is not None)"
    )
    groups = ["--groups", str(PAGE_GID)] if is_member else ["--clear-groups"]
    done = subprocess.run(
        [
            *("setpriv", f"--reuid={PAGE_UID}", f"--regid={PAGE_UID}", *groups),
            *(sys.executable, "-P", "-c", program, str(rig.runtime)),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == str(is_member), done.stderr


def test_only_what_a_person_says_passes() -> None:
    said = {"station_id": "s", "result_id": "s-1", "verdict": Verdict.PASS, "reason": "dirt"}
    assert not objection(ReviewBody.model_validate({**said, "reviewer": "ada"}))
    for what in (PROPOSED, APPROVED, "lamp_test", "user locked"):
        assert not objection(change(what))
    for what in ("ack", "start", ACTIVATED, REFUSED, "lamp_tests", "user", "", "anything new"):
        assert objection(change(what))
    assert Path(door_of(Path("/run/vqi/lamp.sock"))) == Path("/run/vqi/page/lamp.sock")


# --- the doors of station and lamp ----------------------------------------------------------------


def door_in(runtime: Path) -> None:
    """A door's folder, before the process that opens it."""
    door_of(runtime / "any").parent.mkdir(parents=True)


def test_commands_of_the_page_name_a_person(tmp_path: Path) -> None:
    door_in(tmp_path)
    heard: list[tuple[str, ...]] = []

    def handle(*said: str) -> Json:
        heard.append(said)
        return {"ok": True, "state": "HALTED", "status": {}}

    selector = selectors.DefaultSelector()
    control = ControlServer(tmp_path, selector, handle)
    is_over = threading.Event()

    def turn() -> None:
        while not is_over.is_set():
            for key, _ in selector.select(0.01):
                key.data()

    turning = threading.Thread(target=turn, daemon=True)
    turning.start()
    try:
        assert send_command(tmp_path, "halt", who="ada")["ok"]
        assert not send_command(tmp_path, "halt", who="ada\n")["ok"]
        with contextlib.ExitStack() as stack:
            idle = [
                stack.enter_context(connect(door_of(control_path(tmp_path)))) for _ in range(20)
            ]
            assert not is_served(idle[-1])
            own = send_command(tmp_path, "halt")
        with connect(door_of(control_path(tmp_path))) as channel:
            nameless = channel.request({"op": "halt"})
            assert channel.request({"op": "status"})["ok"]
    finally:
        is_over.set()
        turning.join()
        control.close()
    assert own["ok"]
    assert "names who asks" in nameless["error"]
    me = user_name(os.getuid())
    assert heard[:2] == [("halt", "ada", ACCOUNT, ""), ("halt", me, "", "")]
    assert not list(door_of(control_path(tmp_path)).parent.iterdir())


def test_the_page_asks_the_lamp_and_lights_nothing(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    config = str(rig.write())
    door_in(rig.runtime)
    command = [sys.executable, "-P", "-m", "station.cli", "serve", "lamp", "--config", config]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        wait_until(door_of(lamp_path(rig.runtime)).exists, 60.0, "door of the lamp process")
        page = LampClient(rig.runtime, is_page=True)
        page.connect(30.0)
        assert page.status()["state"] == "fault"
        page.send_show(LightState.PASS, "s-1", None, 1.2)
        with pytest.raises(PeerGone):
            page.status()
        page.close()
        with LampClient(rig.runtime) as own:
            own.connect(5.0)
            assert own.status()["state"] == "fault"
    finally:
        process.terminate()
        process.wait(30.0)
