"""The lamp process, alive and on a real pty: leases, claims, losses, and FAULT first and last."""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from modbus_peer import ModbusPeer
from pty_recorder import PtyRecorder, adafruit_elements

from drivers.stacklight import LightState
from station.actuation import Committed
from station.config import load_configuration, load_recipe
from station.ipc import Channel, PeerGone, connect
from station.lamp import LampAnswer, LampClient, LampError, lamp_path
from station.pipeline import Options, Station
from station.record import ActuationBody, Provenance, Verdict
from station.state import StationState
from station.supervisor import LAMP
from station.systemd import lifeline, notify

PRODUCTION, SIMULATED = Provenance.PRODUCTION, Provenance.SIMULATED
GREEN_ON = 0x14
LEAVES_GREEN_WITHIN_S = 2.0
"""The stated safety limit."""

SERVE = """
import sys
from station.config import load_configuration
from station.lamp import serve
from station.logs import set_up_logging
set_up_logging("lamp", "test-1")
sys.exit(serve(load_configuration(sys.argv[1]).value))
"""
CONFIG = """
[station]
id = "test-1"
recipe = "shipped:demo-lgp"
runtime_dir = "{runtime_dir}"
[camera]
type = "simulated"
[journal]
directory = "{runtime_dir}/journal"
[light]
device = {device}
"""


@dataclass
class Site:
    """A pty tower, a configuration, and the lamp processes started on them."""

    folder: Path
    tower: PtyRecorder
    processes: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def link(self) -> Path:
        return self.folder / "tower"

    @property
    def runtime_dir(self) -> Path:
        return self.folder / "run"

    def config(self, device: str | None = None) -> Path:
        path = self.folder / "station.toml"
        device = device or f'{{ type = "serial_tower", port = "{self.link}" }}'
        path.write_text(CONFIG.format(runtime_dir=self.runtime_dir, device=device))
        return path

    def start(
        self,
        environment: dict[str, str] | None = None,
        pass_fds: tuple[int, ...] = (),
        device: str | None = None,
    ) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", SERVE, str(self.config(device))],
            env={**os.environ, **(environment or {})},
            pass_fds=pass_fds,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.processes.append(process)
        return process

    def client(self) -> LampClient:
        client = LampClient(self.runtime_dir)
        client.connect(10.0)
        return client

    def wait_for_elements(self, elements: dict[str, str], timeout_s: float = 5.0) -> None:
        self.tower.wait_for(lambda: self.tower.elements() == elements, timeout_s)


FAULT = {"red": "blink"}
PASS = {"green": "on"}
FAIL = {"red": "on"}


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with PtyRecorder(tmp_path / "tower") as tower:
        site = Site(tmp_path, tower)
        yield site
        for process in site.processes:
            process.kill()
            process.communicate()


@pytest.fixture
def lamp(site: Site) -> subprocess.Popen[str]:
    process = site.start()
    site.client().close()
    return process


def answer_of(client: LampClient, number: int, timeout_s: float = 3.0) -> LampAnswer:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        for answer in client.receive_ready():
            if answer.number == number:
                return answer
        time.sleep(0.005)
    raise AssertionError(f"command {number} was not answered")


def show(
    client: LampClient,
    state: LightState,
    provenance: Provenance | None = PRODUCTION,
    lease_s: float = 1.2,
    result_id: str = "a-1",
) -> LampAnswer:
    return answer_of(client, client.send_show(state, result_id, provenance, lease_s))


def eventually(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"did not happen within {timeout_s} s"
        time.sleep(0.01)


def first_ns_not_green(tower: PtyRecorder, after_ns: int) -> int:
    """When the tower, green at `after_ns`, was first not green after it."""
    data = b""
    for seen_ns, part in list(tower.records):
        for byte in part:
            data += bytes([byte])
            if seen_ns > after_ns and "green" not in adafruit_elements(data):
                return seen_ns
    raise AssertionError("still green")


@contextlib.contextmanager
def no_more_processes(pid: int) -> Iterator[None]:
    """As in a full process table: these may neither fork nor start a thread."""
    parent = Path("/sys/fs/cgroup/pids")
    own = parent / f"vqi-test-{os.getpid()}"
    try:
        own.mkdir()
    except OSError:
        pytest.skip("no control group of the kernel here")
    try:
        (own / "cgroup.procs").write_text(str(pid))
        (own / "pids.max").write_text("1")
        yield
    finally:
        (parent / "cgroup.procs").write_text(str(pid))
        own.rmdir()


# --- start ----------------------------------------------------------------------------------------


def test_fault_is_written_before_anybody_can_connect(site: Site, lamp: object) -> None:
    site.wait_for_elements(FAULT)  # the recorder may be some milliseconds behind the lamp
    with site.client() as client:
        status = client.status()
    assert status["state"] == "fault"
    assert status["is_held"] is False
    assert GREEN_ON not in site.tower.bytes_sent()


def test_it_imports_nothing_heavy() -> None:
    code = (
        "import sys, station.lamp, drivers.stacklight.serial_tower, drivers.stacklight.gpio;"
        "print([m for m in ('numpy', 'cv2', 'onnxruntime', 'sqlalchemy') if m in sys.modules])"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout
    assert out.strip() == "[]"


def test_a_device_that_is_not_there_is_one_clear_line(site: Site) -> None:
    process = site.start(device='{ type = "serial_tower", port = "/dev/no-such-tower" }')
    _, errors = process.communicate(timeout=10)
    assert process.returncode == 1
    assert errors.count("\n") == 1
    assert "/dev/no-such-tower" in errors


def test_a_second_lamp_process_is_refused(site: Site, lamp: subprocess.Popen[str]) -> None:
    second = site.start()
    _, errors = second.communicate(timeout=15)
    assert second.returncode == 1, "a unit tries again: the other may end"
    assert errors.count("\n") == 1
    assert "lamp.lock" in errors
    assert lamp.poll() is None


def test_a_second_lamp_process_takes_over_from_one_that_dies_meanwhile(
    site: Site, lamp: subprocess.Popen[str]
) -> None:
    second = site.start()
    time.sleep(0.7)
    lamp.kill()
    lamp.wait()
    with site.client() as client:
        assert client.status()["state"] == "fault"
    assert second.poll() is None


def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(PeerGone, match=r"lamp\.sock"):
        LampClient(tmp_path).connect(0.0)


# --- leases ---------------------------------------------------------------------------------------


def test_a_production_pass_is_green_and_lapses_to_fault(site: Site, lamp: object) -> None:
    with site.client() as client:
        answer = show(client, LightState.PASS, lease_s=0.6)
        assert answer.is_shown
        assert not answer.is_confirmed, "this tower cannot be read back"
        assert answer.reason == ""
        site.wait_for_elements(PASS)
        green_ns = time.monotonic_ns()
        status = client.status()
        assert status["result_id"] == "a-1"
        assert 0 <= status["lease_left_s"] <= 0.6
        site.wait_for_elements(FAULT)
        assert client.status()["lease_left_s"] is None
        assert answer.shown_ns is not None
        green_s = (first_ns_not_green(site.tower, green_ns) - answer.shown_ns) / 1e9
        assert green_s < LEAVES_GREEN_WITHIN_S


def test_a_pass_is_never_leased_longer_than_its_limit(site: Site, lamp: object) -> None:
    with site.client() as client:
        answer = show(client, LightState.PASS, lease_s=1.95)
        site.wait_for_elements(PASS)
        green_ns = time.monotonic_ns()
        site.wait_for_elements(FAULT)
        assert answer.shown_ns is not None
        green_s = (first_ns_not_green(site.tower, green_ns) - answer.shown_ns) / 1e9
        assert green_s < 1.7, "1.2 s and one blocked write"


def test_renewals_keep_it_green_without_a_gap(site: Site, lamp: object) -> None:
    with site.client() as client:
        show(client, LightState.PASS)
        site.wait_for_elements(PASS)
        green_ns = time.monotonic_ns()
        for _ in range(8):
            time.sleep(0.25)
            assert show(client, LightState.PASS).is_shown
        with pytest.raises(AssertionError, match="still green"):
            first_ns_not_green(site.tower, green_ns)


def test_every_state_lapses(site: Site, lamp: object) -> None:
    with site.client() as client:
        for state in (LightState.FAIL, LightState.IDLE, LightState.UNDECIDED):
            assert show(client, state, lease_s=0.3).is_shown
            eventually(lambda: client.status()["state"] == "fault")


def test_an_expiry_that_is_past_or_far_ahead_is_dropped(site: Site, lamp: object) -> None:
    with site.client() as client:
        for lease_s, reason in [(-0.01, "stale"), (0.0, "stale"), (2.5, "ahead")]:
            answer = show(client, LightState.PASS, lease_s=lease_s)
            assert not answer.is_shown
            assert reason in answer.reason
            assert answer.shown_ns is None
    assert GREEN_ON not in site.tower.bytes_sent()


def test_only_production_turns_green(site: Site, lamp: object) -> None:
    with site.client() as client:
        for provenance in (None, SIMULATED, Provenance.REPLAYED):
            answer = show(client, LightState.PASS, provenance)
            assert not answer.is_shown
            assert "production" in answer.reason
            assert site.tower.elements() != PASS
            assert show(client, LightState.PASS_NOT_PRODUCTION, provenance).is_shown
            site.wait_for_elements({"green": "on", "yellow": "blink"})


# --- claims ---------------------------------------------------------------------------------------


def test_one_station_holds_the_lamp(site: Site, lamp: object) -> None:
    with site.client() as station, site.client() as other:
        assert show(station, LightState.FAIL).is_shown
        refused = show(other, LightState.PASS)
        assert not refused.is_shown
        assert "another station" in refused.reason
        with pytest.raises(LampError, match="holds the lamp"):
            other.test()
        assert other.status()["is_held"] is True
        station.close()
        eventually(lambda: other.status()["is_held"] is False)
        assert show(other, LightState.PASS).is_shown
        site.wait_for_elements(PASS)


def test_a_station_takes_the_lamp_from_a_person(site: Site, lamp: object) -> None:
    with site.client() as person, site.client() as station:
        # A busy machine may serve a command when its lease is over.
        eventually(lambda: show(person, LightState.UNDECIDED, None).is_shown)
        assert person.status()["is_held"] is False
        eventually(lambda: show(station, LightState.FAIL).is_shown)
        assert not show(person, LightState.UNDECIDED, None).is_shown
        site.wait_for_elements(FAIL)


def test_a_station_that_disconnects_leaves_green_at_once(site: Site, lamp: object) -> None:
    station = site.client()
    assert show(station, LightState.PASS).is_shown
    site.wait_for_elements(PASS)
    gone_ns = time.monotonic_ns()
    station.close()
    site.wait_for_elements(FAULT)
    assert (first_ns_not_green(site.tower, gone_ns) - gone_ns) / 1e9 < 0.6


def test_a_killed_station_leaves_green_at_once(site: Site, lamp: object) -> None:
    code = """
import sys, time
from pathlib import Path
from drivers.stacklight import LightState
from station.lamp import LampClient
from station.record import Provenance
client = LampClient(Path(sys.argv[1]))
client.connect(5)
while True:
    client.send_show(LightState.PASS, "a-1", Provenance.PRODUCTION, 1.2)
    time.sleep(0.1)
    client.receive_ready()
"""
    process = subprocess.Popen([sys.executable, "-c", code, str(site.runtime_dir)])
    try:
        site.wait_for_elements(PASS, timeout_s=10)
        killed_ns = time.monotonic_ns()
    finally:
        process.kill()
        process.wait()
    site.wait_for_elements(FAULT)
    gone_s = (first_ns_not_green(site.tower, killed_ns) - killed_ns) / 1e9
    assert gone_s < LEAVES_GREEN_WITHIN_S


# --- lamp test ------------------------------------------------------------------------------------


def test_the_lamp_test_lights_all_and_ends_in_fault(site: Site, lamp: object) -> None:
    with site.client() as client:
        client.test()
        assert client.status()["state"] == "fault"
    site.wait_for_elements(FAULT)
    assert bytes([0x11, 0x12, 0x14]) in site.tower.bytes_sent()


def test_a_show_of_the_holder_ends_its_lamp_test(site: Site, lamp: object) -> None:
    with site.client() as station:
        channel = connect(lamp_path(site.runtime_dir))
        channel.send({"op": "test"})
        site.wait_for_elements({"red": "on", "yellow": "on", "green": "on"})
        assert show(station, LightState.IDLE).is_shown
        assert "ended" in channel.receive(2.0).body["reason"]
        channel.close()
    with site.client() as client:
        assert not show(client, LightState.LAMP_TEST).is_shown


# --- losses ---------------------------------------------------------------------------------------


def test_an_unplugged_tower_is_told_and_shows_fault_first_when_it_is_back(
    site: Site, lamp: subprocess.Popen[str]
) -> None:
    with site.client() as client:
        assert show(client, LightState.PASS).is_shown
        site.wait_for_elements(PASS)
        site.tower.unplug()
        answer = show(client, LightState.PASS)
        assert not answer.is_shown
        assert "plug it in" in answer.reason
        assert client.status()["state"] == "unknown"
        site.link.unlink()
        assert not show(client, LightState.PASS).is_shown
        with PtyRecorder(site.link) as again:
            again.wait_for(lambda: again.elements() == FAULT)
            assert GREEN_ON not in again.bytes_sent()
            eventually(lambda: show(client, LightState.PASS, result_id="a-2").is_shown)
            again.wait_for(lambda: again.elements() == PASS)
    assert lamp.poll() is None


def test_a_device_that_chokes_blocks_nobody_and_gets_fault_when_it_takes_bytes_again(
    site: Site,
) -> None:
    # One command of this tower is more than a pty holds unread, about 18 kB.
    elements = ", ".join(
        f'{name} = {{ on = "{on * 6000}", off = "{off * 6000}", blink = "{blink * 6000}" }}'
        for name, on, off, blink in [
            ("red", "11", "21", "41"),
            ("yellow", "12", "22", "42"),
            ("green", "14", "24", "44"),
        ]
    )
    lamp = site.start(
        device=f'{{ type = "serial_tower", port = "{site.link}", elements = {{ {elements} }} }}'
    )
    with site.client() as client:
        assert show(client, LightState.FAIL).is_shown
        site.wait_for_elements(FAIL)
        site.tower.stop_reading()
        for _ in range(3):
            answer = show(client, LightState.PASS)
            assert not answer.is_shown
            assert "did not take" in answer.reason
            assert client.status()["state"] == "unknown"
        choked = len(site.tower.bytes_sent())
        site.tower.start_reading()
        site.wait_for_elements(FAULT)
        assert GREEN_ON not in site.tower.bytes_sent()[choked:]
        eventually(lambda: show(client, LightState.PASS, result_id="a-2").is_shown)
        site.wait_for_elements(PASS)
    assert lamp.poll() is None


def test_an_idle_lamp_notices_the_loss_by_itself(site: Site, lamp: object) -> None:
    with site.client() as client:
        site.tower.unplug()
        eventually(lambda: client.status()["state"] == "unknown")
        assert client.status()["problem"]
        with pytest.raises(LampError):
            client.test()


def test_a_client_that_talks_nonsense_is_dropped_and_the_lamp_goes_on(
    site: Site, lamp: subprocess.Popen[str]
) -> None:
    nonsense = [
        b"{",
        b"\xff\xfe",
        b"[" * 100_000,
        b"null",
        b'"show"',
        b'{"op": "green"}',
        b'{"op": "show"}',
        b'{"op":"show","n":1,"state":"pass","result_id":"","provenance":"me","expires_ns":1}',
        b'{"op":"show","n":1,"state":"pass","result_id":"","provenance":null,"expires_ns":1e999}',
    ]
    for payload in nonsense:
        with connect(lamp_path(site.runtime_dir)) as channel:
            raw = socket.socket(fileno=os.dup(channel.fileno()))
            raw.send(payload)
            raw.close()
            with pytest.raises(PeerGone):
                channel.receive(2.0)
    with site.client() as client:
        assert show(client, LightState.FAIL).is_shown
    assert lamp.poll() is None


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.fixed_dictionaries(
        {"op": st.sampled_from(["show", "status"]) | json_values},
        optional={
            "n": st.integers() | json_values,
            "state": st.sampled_from([*LightState]) | json_values,
            "result_id": st.text(max_size=5) | json_values,
            "provenance": st.sampled_from(["simulated", None]) | json_values,
            "expires_ns": st.integers(0, 2 * 10**9).map(lambda n: n + time.monotonic_ns())
            | json_values,
        },
    )
)
def test_no_message_without_production_turns_it_green(
    site: Site, lamp: subprocess.Popen[str], body: dict[str, object]
) -> None:
    with connect(lamp_path(site.runtime_dir)) as channel:
        raw = socket.socket(fileno=os.dup(channel.fileno()))
        raw.send(json.dumps(body).encode())
        raw.close()
        with contextlib.suppress(PeerGone):
            channel.receive(2.0)
    assert lamp.poll() is None
    assert site.tower.elements() != PASS


def a_show_packet(draw: random.Random) -> dict[str, object]:
    return {
        "op": "show",
        "n": draw.randrange(1, 1000),
        "state": "pass",
        "result_id": "a-1",
        "provenance": "production",
        "expires_ns": time.monotonic_ns() + draw.randrange(10**9),
    }


def _spoilt(draw: random.Random) -> bytes:
    """A packet that would turn the light green, but for one thing."""
    body = a_show_packet(draw)
    name = draw.choice(list(body))
    packet = bytearray(json.dumps(body).encode())
    match draw.randrange(6):
        case 0:
            del body[name]
            packet = bytearray(json.dumps(body).encode())
        case 1:
            body[name] = draw.choice([None, True, 1.5, -1, 2**70, [], {}, "x", "9" * 5000])
            packet = bytearray(json.dumps(body).encode())
        case 2:
            del packet[draw.randrange(1, len(packet)) :]
        case 3:
            packet = bytearray(draw.randbytes(draw.randrange(1, 200)))
        case 4:
            packet[draw.randrange(len(packet))] ^= 1 << draw.randrange(8)
        case _:
            packet = bytearray(json.dumps([body] * draw.randrange(3)).encode())
    return b"{" if _is_whole(bytes(packet)) else bytes(packet)


def _is_whole(packet: bytes) -> bool:
    """It was not spoilt after all: a command like any other."""
    try:
        body = json.loads(packet)
    except (ValueError, RecursionError):
        return False
    if not isinstance(body, dict) or not isinstance(body.get("result_id"), str):
        return False
    numbers = (body.get("n"), body.get("expires_ns"))
    are_whole = all(type(number) is int and number >= 0 for number in numbers)
    words = (body.get("op"), body.get("state"), body.get("provenance"))
    return are_whole and words == ("show", "pass", "production")


def test_two_thousand_spoilt_packets_show_no_green_and_leave_the_lamp_whole(
    site: Site, lamp: subprocess.Popen[str]
) -> None:
    draw = random.Random(7)
    for _ in range(100):
        sockets = [connect(lamp_path(site.runtime_dir)) for _ in range(4)]
        for number in range(24):
            raw = socket.socket(fileno=os.dup(sockets[number % 4].fileno()))
            with raw, contextlib.suppress(OSError):
                raw.send(_spoilt(draw))
        for channel in sockets:
            with contextlib.suppress(PeerGone, TimeoutError):
                channel.receive(0.02)
            channel.close()
    assert lamp.poll() is None
    assert GREEN_ON not in site.tower.bytes_sent()
    with site.client() as client:
        # Behind all that is still to be read and thrown away.
        number = client.send_show(LightState.FAIL, "p-1", PRODUCTION, 2.0)
        assert answer_of(client, number, timeout_s=30.0).number == number
        eventually(lambda: show(client, LightState.FAIL).is_shown)


def raw_show(channel: Channel, number: int, state: str, lease_s: float = 1.0) -> dict[str, object]:
    """A command with a number of one's own; what was answered."""
    return channel.request(
        {
            "op": "show",
            "n": number,
            "state": state,
            "result_id": "a-1" if state == "pass" else "",
            "provenance": "production",
            "expires_ns": time.monotonic_ns() + int(lease_s * 1e9),
        }
    )


def test_a_duplicated_or_reordered_command_never_shows_green(site: Site, lamp: object) -> None:
    with connect(lamp_path(site.runtime_dir)) as channel:
        assert raw_show(channel, 5, "idle")["is_shown"]
        for number in (5, 4, 0):
            answer = raw_show(channel, number, "pass")
            assert "after command 5" in str(answer["reason"])
        assert GREEN_ON not in site.tower.bytes_sent()
        assert raw_show(channel, 6, "pass")["is_shown"]
        site.wait_for_elements(PASS)


def test_a_pass_that_waited_with_its_end_behind_it_is_not_shown(
    site: Site, lamp: subprocess.Popen[str]
) -> None:
    with site.client() as client:
        assert show(client, LightState.IDLE).is_shown
        lamp.send_signal(signal.SIGSTOP)
        passed = client.send_show(LightState.PASS, "a-1", PRODUCTION, 1.2)
        client.send_show(LightState.IDLE, "", PRODUCTION, 1.2)
        lamp.send_signal(signal.SIGCONT)
        assert "over" in answer_of(client, passed).reason
        assert GREEN_ON not in site.tower.bytes_sent()


def test_a_pass_of_a_station_that_is_dead_meanwhile_is_not_shown(
    site: Site, lamp: subprocess.Popen[str]
) -> None:
    station = site.client()
    assert show(station, LightState.IDLE).is_shown
    lamp.send_signal(signal.SIGSTOP)
    station.send_show(LightState.PASS, "a-1", PRODUCTION, 1.2)
    station.close()
    lamp.send_signal(signal.SIGCONT)
    site.wait_for_elements(FAULT)
    assert GREEN_ON not in site.tower.bytes_sent()


def test_a_light_that_came_back_is_believed_after_some_commands(site: Site, lamp: object) -> None:
    with site.client() as client:
        site.tower.unplug()
        eventually(lambda: bool(client.status()["doubt"]))
        site.link.unlink()
        with PtyRecorder(site.link) as again:
            again.wait_for(lambda: again.elements() == FAULT)
            assert "not believed" in show(client, LightState.PASS, result_id="a-2").reason
            eventually(lambda: not client.status()["doubt"])
            assert show(client, LightState.PASS, result_id="a-2").is_shown


def test_a_full_process_table_keeps_no_lease_from_lapsing(
    site: Site, lamp: subprocess.Popen[str]
) -> None:
    """Neither a process nor a thread is needed."""
    with no_more_processes(lamp.pid), site.client() as client:
        assert show(client, LightState.PASS, lease_s=0.5).is_shown
        site.wait_for_elements(PASS)
        site.wait_for_elements(FAULT)
        assert client.status()["state"] == "fault"


# --- many at a time -------------------------------------------------------------------------------


def test_idle_clients_keep_no_station_out(site: Site, lamp: object) -> None:
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(site.client()) for _ in range(16)]
        assert idle[0].status()["state"] == "fault"
        station = stack.enter_context(site.client())
        assert show(station, LightState.PASS).is_shown
        for _ in range(16):
            assert stack.enter_context(site.client()).status()["is_held"]
        assert show(station, LightState.PASS).is_shown, "the holder stays"
        with pytest.raises(PeerGone):
            idle[1].status()


@pytest.mark.alone
def test_many_writes_of_a_slow_device_do_not_look_like_a_hang(site: Site) -> None:
    address = site.folder / "n"
    with ModbusPeer() as relays, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(address))
        manager.settimeout(LAMP.watchdog_s)
        place = f'host = "127.0.0.1", tcp_port = {relays.port}'
        addresses = "addresses = { red = 0, yellow = 1, green = 2 }, blink_hz = 2.0"
        lamp = site.start(
            {"NOTIFY_SOCKET": str(address)},
            device=f'{{ type = "modbus_relay", {place}, {addresses} }}',
        )
        with site.client() as client:
            assert show(client, LightState.IDLE).is_shown
            lamp.send_signal(signal.SIGSTOP)
            relays.delay_s = 0.06
            states = [LightState.FAIL, LightState.UNDECIDED] * 4
            numbers = [client.send_show(state, "a-1", PRODUCTION, 2.0) for state in states]
            lamp.send_signal(signal.SIGCONT)
            answered: list[int] = []
            while numbers[-1] not in answered:
                assert manager.recv(100), "TimeoutError is what the watchdog makes of it"
                answered += [answer.number for answer in client.receive_ready()]


# --- the station's main thread, as far as it needs neither camera nor journal ---------------------


@pytest.fixture
def station(site: Site, lamp: object) -> Iterator[Station]:
    loaded = load_configuration(str(site.config()))
    recipe = load_recipe(loaded.value.station.recipe)
    station = Station(loaded, recipe, Options(), lambda event: None)
    known: Any = SimpleNamespace(provenance=PRODUCTION)
    station._context = known
    nobody: Any = SimpleNamespace(keep=lambda: None, close=lambda: None)
    station._lending = nobody
    station._outbox._gone_at = time.monotonic()
    station._last_figures_ns = time.monotonic_ns()
    station._open_lamp(5.0)
    station._state = StationState.OPERATIONAL
    yield station
    station._stop()


def passed(station: Station, sequence: int) -> None:
    result = Committed(f"a-{sequence}", sequence, Verdict.PASS, is_production=True, is_late=False)
    station._actuation.committed(result, time.monotonic_ns())


def last_row(station: Station) -> ActuationBody:
    body = station._outbox._unsent[-1].rows[-1]
    assert isinstance(body, ActuationBody)
    return body


def test_a_station_that_is_told_to_end_leaves_its_pass_and_shows_no_other(
    site: Site, station: Station
) -> None:
    passed(station, 1)
    site.wait_for_elements(PASS)
    station._end_now("SIGTERM")
    site.wait_for_elements(FAULT)
    lit = site.tower.bytes_sent().count(GREEN_ON)
    passed(station, 2)  # it was on its way to the log
    assert "fault of no plate" in last_row(station).detail
    station._stop()
    passed(station, 3)
    assert last_row(station).detail == "no lamp was told"
    site.wait_for_elements(FAULT)
    assert site.tower.bytes_sent().count(GREEN_ON) == lit


def test_the_last_pass_before_the_end_of_the_source_is_shown_and_not_renewed(
    site: Site, station: Station
) -> None:
    station._on_durable_tick()
    station._is_ending = True
    passed(station, 1)
    site.wait_for_elements(PASS)
    station._on_durable_tick()
    assert station._actuation.counts.renewals == 0
    site.wait_for_elements(FAULT)


def test_a_station_that_is_told_to_end_before_it_began_does_not_begin(station: Station) -> None:
    station._state, station._is_ending = StationState.PREOPERATIONAL, True
    station._on_started()
    assert station._state is StationState.PREOPERATIONAL


def test_an_answer_that_arrived_while_the_station_was_busy_is_no_silence(station: Station) -> None:
    sent_ns = time.monotonic_ns() - 10**9
    result = Committed("a-1", 1, Verdict.PASS, is_production=True, is_late=False)
    station._actuation.committed(result, sent_ns)
    assert select.select([station._lamp], [], [], 5.0)[0]
    station._keep_connections()
    assert station._actuation.doubt == ""
    assert last_row(station).shown_ns is not None


def test_what_is_tried_out_by_hand_waits_for_its_row(site: Site, station: Station) -> None:
    station._state = StationState.HALTED
    assert station._control_command("light", "eve", "", "undecided")["ok"]
    done = station._outbox._unsent[-1].done
    assert done is not None
    assert not station._hand_test.is_on(time.monotonic_ns())
    done({})
    assert station._hand_test.is_on(time.monotonic_ns())
    assert station._control_command("light", "eve", "", "fail")["ok"]
    late = station._outbox._unsent[-1].done
    assert late is not None
    station._control_command("resume", "eve", "", "")
    late({})
    assert station._hand_test.status is not None
    assert "halt it first" in station._hand_test.status["problem"]


# --- end ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_it_leaves_fault(
    site: Site, lamp: subprocess.Popen[str], number: signal.Signals
) -> None:
    with site.client() as client:
        assert show(client, LightState.PASS).is_shown
        site.wait_for_elements(PASS)
        lamp.send_signal(number)
        assert lamp.wait(5) == 0
        site.wait_for_elements(FAULT)
        with pytest.raises(PeerGone):
            eventually(lambda: client.receive_ready() is None)
    assert not lamp_path(site.runtime_dir).exists()


def test_the_starters_death_leaves_fault(site: Site) -> None:
    read_end, write_end = os.pipe()
    process = site.start({"VQI_LIFELINE_FD": str(read_end)}, pass_fds=(read_end,))
    os.close(read_end)
    with site.client() as client:
        assert show(client, LightState.PASS).is_shown
        site.wait_for_elements(PASS)
        os.close(write_end)
        assert process.wait(5) == 1
        site.wait_for_elements(FAULT)


def test_killed_and_replaced_it_leaves_green_within_the_limit(
    site: Site, lamp: subprocess.Popen[str]
) -> None:
    with site.client() as client:
        assert show(client, LightState.PASS).is_shown
        site.wait_for_elements(PASS)
        killed_ns = time.monotonic_ns()
        lamp.kill()
        lamp.wait()
        site.start()
        site.wait_for_elements(FAULT, timeout_s=10)
        gone_s = (first_ns_not_green(site.tower, killed_ns) - killed_ns) / 1e9
        assert gone_s < LEAVES_GREEN_WITHIN_S


# --- the service manager --------------------------------------------------------------------------


def test_it_reports_ready_after_fault_and_feeds_the_watchdog_while_it_runs(site: Site) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(site.folder / "n"))
        manager.settimeout(10)
        process = site.start({"NOTIFY_SOCKET": str(site.folder / "n")})
        assert manager.recv(100).startswith(b"STATUS=")
        assert manager.recv(100) == b"READY=1"
        site.wait_for_elements(FAULT)
        for _ in range(3):
            assert manager.recv(100) == b"WATCHDOG=1"
        process.send_signal(signal.SIGSTOP)
        manager.settimeout(0.7)
        with pytest.raises(TimeoutError):
            assert all(iter(lambda: manager.recv(100), b""))


def test_notify_is_silent_without_a_manager(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    notify("READY=1")


def test_notify_reaches_an_abstract_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0vqi-test-{os.getpid()}")
        manager.settimeout(2)
        monkeypatch.setenv("NOTIFY_SOCKET", f"@vqi-test-{os.getpid()}")
        notify("STATUS=fine")
        assert manager.recv(100) == b"STATUS=fine"


def test_lifeline_is_not_inherited_by_children(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VQI_LIFELINE_FD", raising=False)
    assert lifeline() is None
    monkeypatch.setenv("VQI_LIFELINE_FD", "999999")
    assert lifeline() is None
    read_end, write_end = os.pipe()
    try:
        os.set_inheritable(read_end, True)
        monkeypatch.setenv("VQI_LIFELINE_FD", str(read_end))
        assert lifeline() == read_end
        assert not os.get_inheritable(read_end)
    finally:
        os.close(read_end)
        os.close(write_end)
