"""PLC and accept in the lamp process, alive: a Modbus client as the PLC, a Modbus module for
accept, and a client that speaks as a station does."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from campaign import freeze
from modbus_peer import PULSE_OFFSET, ModbusPeer
from plc_peer import PollingPlc
from ports import free_port
from pydantic import TypeAdapter

from drivers.io.settings import SimulatedIoSettings
from drivers.io.simulated import SimulatedIo
from drivers.plc import NOBODY
from drivers.plc.handshake import StationWord
from drivers.plc.register_map import OUTPUT_BITS
from drivers.plc.settings import PlcSettings
from drivers.stacklight import LightState
from station.belt_register import Decision, Fate, Place
from station.config import AcceptSettings, Configuration, load_configuration
from station.ipc import Json
from station.lamp import LampClient
from station.outputs import HUNG_NS, Accept, BeltNews, Events, Outputs, PlateResult, Plc
from station.record import Provenance, Verdict

PRODUCTION, SIMULATED = Provenance.PRODUCTION, Provenance.SIMULATED
EVENTS = Events(lambda: None)
LEAVES_WITHIN_S = 2.0
"""The stated safety limit."""
SERVE = """
import sys
from station.config import load_configuration
from station.lamp import serve
sys.exit(serve(load_configuration(sys.argv[1]).value, is_restart=len(sys.argv) > 2))
"""
CONFIG = """
[station]
id = "test-1"
recipe = "shipped:demo-lgp"
runtime_dir = "{folder}/run"
[camera]
type = "simulated"
pixel_pitch_mm = 0.1
[journal]
directory = "{folder}/journal"
[light]
device = {light}
[plc]
type = "modbus_server"
host = "127.0.0.1"
tcp_port = {port}
heartbeat_timeout_s = 1.0
[accept]
distance_mm = 100.0
pulse_ms = {pulse_ms}
device = {device}
"""


@dataclass
class Site:
    """A lamp process with its devices."""

    folder: Path
    module: ModbusPeer
    port: int
    processes: list[subprocess.Popen[str]] = field(default_factory=list)
    is_timed: bool = True
    """The module times its pulses."""
    pulse_ms: int = 100
    light: str = '{ type = "simulated" }'

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        config = self.folder / "station.toml"
        offset = f", pulse_offset = {PULSE_OFFSET}" if self.is_timed else ""
        device = (
            f'{{ type = "modbus", host = "127.0.0.1", tcp_port = {self.module.port}, '
            f"outputs = {{ accept = 0 }}{offset} }}"
        )
        config.write_text(
            CONFIG.format(
                folder=self.folder,
                port=self.port,
                device=device,
                pulse_ms=self.pulse_ms,
                light=self.light,
            )
        )
        process = subprocess.Popen(
            [sys.executable, "-c", SERVE, str(config), *arguments],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.processes.append(process)
        return process

    def client(self) -> LampClient:
        client = LampClient(self.folder / "run")
        client.connect(30.0)
        return client

    @property
    def pulses(self) -> list[int]:
        """When the accept coil went on, CLOCK_MONOTONIC ns."""
        return [at_ns for at_ns, coil, is_on in self.module.history if coil == 0 and is_on]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with ModbusPeer() as module:
        site = Site(tmp_path, module, free_port())
        yield site
        for process in site.processes:
            process.kill()
            process.communicate()


def eventually(condition: Callable[[], bool], what: str, timeout_s: float = 5.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {timeout_s} s"
        time.sleep(0.005)


class Speaker:
    """Speaks to the lamp process as a station does, with a belt that runs for as long as asked."""

    HEIGHT, SPEED = 64, 3000.0

    def __init__(self, client: LampClient) -> None:
        self.client = client
        self.events: list[Json] = []
        self._sequence = itertools.count(1)
        self._place, self._is_new = 0, True
        self._began_ns = time.monotonic_ns()
        client.send_show(LightState.IDLE, "", SIMULATED, 1.2)

    def say(self, lease_s: float = 1.2, error: bool = False, tick: bool = True) -> None:
        self.client.send_word(
            ready=not error, busy=False, error=error, attention=False, tick=tick, lease_s=lease_s
        )

    def result(
        self,
        verdict: Verdict = Verdict.PASS,
        provenance: Provenance = PRODUCTION,
        is_late: bool = False,
        name: str = "",
    ) -> None:
        number = next(self._sequence)
        said = PlateResult(name or f"t-{number}", number, verdict, provenance, is_late)
        self.client.send_result(said, 2.0)

    def travel(self, seconds: float, *plates: tuple[str, bool, int]) -> None:
        """Let the belt run on, with plates whose edges lie there."""
        end = time.monotonic() + seconds
        news = plates
        while time.monotonic() < end:
            self._place += self.HEIGHT
            due_ns = self._began_ns + int(self._place / self.SPEED * 1e9)
            time.sleep(max(0.0, (due_ns - time.monotonic_ns()) / 1e9))
            place = Place(self._place, time.monotonic_ns())
            self.client.send_belt(BeltNews(self.HEIGHT, self._is_new, (place,), news), 2.0)
            news, self._is_new = (), False
            self.say()
            self.hear()

    def hear(self) -> list[Json]:
        self.client.receive_ready()
        self.events += self.client.take_events()
        return self.events

    def accepts(self) -> dict[str, str]:
        return {
            event["result_id"]: event["command"] for event in self.hear() if event["op"] == "accept"
        }


# --- the PLC --------------------------------------------------------------------------------------


def test_a_plc_reads_what_the_station_says_while_it_says_it(site: Site) -> None:
    site.start()
    with PollingPlc(site.port) as plc, site.client() as client:
        eventually(lambda: plc.last == NOBODY, "nobody")
        speaker = Speaker(client)
        speaker.say()
        eventually(lambda: bool(plc.last and plc.last.ready), "READY")
        cases = [
            (Verdict.PASS, PRODUCTION, False),
            (Verdict.FAIL, PRODUCTION, False),
            (Verdict.UNDECIDED, PRODUCTION, False),
            (Verdict.PASS, SIMULATED, False),
            (Verdict.PASS, PRODUCTION, True),
        ]
        for number, case in enumerate(cases, start=1):
            speaker.say()
            speaker.result(*case)
            eventually(lambda wanted=number: len(plc.results) == wanted, f"result {number}")
            # The next one must not come before its ACK: that would be an overrun.
            eventually(lambda: bool(plc.last and not plc.last.result_valid), "the ACK")
        said = [(r.result, r.ok, r.ng, r.undecided, r.not_production) for r in plc.results]
        assert said == [
            (1, True, False, False, False),
            (2, False, True, False, False),
            (3, False, True, True, False),
            (4, False, False, False, True),
            (5, False, True, True, False),
        ]
        assert plc.results[-1].overruns == 0, "each was acknowledged"
        eventually(lambda: bool(plc.last and not plc.last.ready), "the end of READY", 2.0)
        assert all(said is None or not said.ready or not said.error for _, said, _ in plc.trace)


def test_a_station_that_goes_takes_everything_with_it_at_once(site: Site) -> None:
    site.start()
    with PollingPlc(site.port, acknowledges=False) as plc:
        client = site.client()
        speaker = Speaker(client)
        speaker.say()
        speaker.result()
        eventually(lambda: bool(plc.last and plc.last.ok), "OK")
        client.close()
        eventually(lambda: bool(plc.last and plc.last.error), "an error", 0.5)
        said = plc.last
        assert said is not None
        assert not any((said.ready, said.ok, said.result_valid))


def test_a_light_that_does_not_take_its_last_word_keeps_no_ready_alive(site: Site) -> None:
    with ModbusPeer() as relays, PollingPlc(site.port) as plc:
        place = f'host = "127.0.0.1", tcp_port = {relays.port}'
        addresses = "addresses = { red = 0, yellow = 1, green = 2 }, blink_hz = 2.0"
        site.light = f'{{ type = "modbus_relay", {place}, {addresses} }}'
        lamp = site.start()
        with site.client() as client:
            speaker = Speaker(client)
            speaker.say()
            eventually(lambda: bool(plc.last and plc.last.ready), "READY")
            relays.delay_s = 1.0
            polls = len(plc.trace)
            lamp.terminate()
            lamp.wait(5.0)
        relays.delay_s = 0.0
        said = [said for _, said, _ in plc.trace[polls:] if said is not None]
        assert said, "the light takes longer than the PLC's polls"
        assert said[-1].error
        assert not said[-1].ready


def test_only_the_station_that_holds_the_lamp_is_heard(site: Site) -> None:
    site.start()
    with PollingPlc(site.port) as plc, site.client() as station, site.client() as other:
        Speaker(station).say()
        eventually(lambda: bool(plc.last and plc.last.ready), "READY")
        stranger = Speaker(other)
        stranger.result()
        stranger.say(error=True)
        assert other.status()["plc"]["ready"]
        assert not plc.results


def test_a_word_cannot_be_leased_longer_than_a_pass(site: Site) -> None:
    site.start()
    with PollingPlc(site.port) as plc, site.client() as client:
        Speaker(client).say(lease_s=1.9)
        eventually(lambda: bool(plc.last and plc.last.ready), "READY")
        began = time.monotonic()
        eventually(lambda: bool(plc.last and not plc.last.ready), "its end", 3.0)
        assert time.monotonic() - began < 1.6, "1.2 s and a poll"


def test_the_plcs_own_words_come_back(site: Site) -> None:
    site.start()
    with site.client() as client:
        speaker = Speaker(client)
        speaker.say()
        with PollingPlc(site.port) as plc:
            eventually(lambda: plc.is_heard, "a first word")
            plc.ack_hold = True
            eventually(lambda: {"op": "plc_ack"} in speaker.hear(), "its acknowledgement")
            eventually(lambda: not client.status()["plc"]["problem"], "a PLC that lives")
        eventually(
            lambda: "heartbeat has not changed" in client.status()["plc"]["problem"],
            "a PLC that stands still",
        )
        eventually(lambda: speaker.hear()[-1]["op"] == "plc", "word of it")
        assert sum(event == {"op": "plc_ack"} for event in speaker.events) == 1


def test_what_is_on_before_a_lamp_process_comes_acknowledges_nothing(site: Site) -> None:
    """Nor does what goes on while no station is there."""
    site.start()
    client = site.client()
    speaker = Speaker(client)
    speaker.say()
    eventually(lambda: bool(speaker.hear()), "a greeting")
    with PollingPlc(site.port, ack_hold=True) as plc:
        eventually(lambda: plc.is_heard, "a first word")
        for _ in range(3):
            client.status()
            assert {"op": "plc_ack"} not in speaker.hear()
        client.close()
        for ack_hold in (False, True):
            plc.ack_hold = ack_hold
            before = len(plc.trace)
            eventually(lambda at=before: len(plc.trace) > at + 5, "a few polls")
        with site.client() as client:
            speaker = Speaker(client)
            speaker.say()
            eventually(lambda: bool(speaker.hear()), "a greeting")
            assert {"op": "plc_ack"} not in speaker.events


@pytest.mark.alone
def test_a_killed_lamp_process_is_nobody_and_so_is_its_successor(site: Site) -> None:
    process = site.start()
    with PollingPlc(site.port, acknowledges=False) as plc:
        client = site.client()
        speaker = Speaker(client)
        speaker.say()
        speaker.result()
        eventually(lambda: bool(plc.last and plc.last.ok), "OK")
        process.kill()
        process.wait()
        eventually(lambda: plc.last is None, "no answer", LEAVES_WITHIN_S)
        site.start("--restart")
        eventually(lambda: plc.last == NOBODY, "nobody", 10.0)
        client.close()


@pytest.mark.alone
def test_a_hung_lamp_process_gives_no_answer_and_ready_is_over_when_it_wakes(site: Site) -> None:
    process = site.start()
    with PollingPlc(site.port, acknowledges=False) as plc, site.client() as client:
        speaker = Speaker(client)
        speaker.say()
        speaker.result()
        eventually(lambda: bool(plc.last and plc.last.ok), "OK")
        os.kill(process.pid, signal.SIGSTOP)
        eventually(lambda: plc.last is None, "no answer", LEAVES_WITHIN_S)
        time.sleep(1.3)
        before = len(plc.trace)
        os.kill(process.pid, signal.SIGCONT)
        eventually(lambda: plc.last is not None, "an answer")
        assert not any(said and (said.ready or said.ok) for _, said, _ in plc.trace[before:])


# --- accept ---------------------------------------------------------------------------------------

PLATE = (("t-1", False, 200), ("t-1", True, 500))


@pytest.mark.alone
@pytest.mark.parametrize("number", [0, 1])
def test_a_lamp_process_one_of_whose_threads_hangs_ends(site: Site, number: int) -> None:
    """Accept's or the PLC's: nobody would take back what it said last, whatever the main thread
    does; the next process switches it off first."""
    process = site.start()
    with site.client() as client:
        Speaker(client).say()
        threads = [int(task.name) for task in Path(f"/proc/{process.pid}/task").iterdir()]
        workers = sorted(set(threads) - {process.pid})
        assert len(workers) == 2
        command = [sys.executable, "-S", "-E", freeze.__file__, str(workers[number]), "10"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as tracer:
            assert tracer.stdout is not None
            if not (began_ns := tracer.stdout.readline()):
                pytest.skip(f"threads cannot be held here: {os.strerror(tracer.wait())}")
            status = Path(f"/proc/{process.pid}/status")
            eventually(lambda: "State:\tZ" in status.read_text(), "its end")
            assert (time.monotonic_ns() - int(began_ns)) / 1e9 < LEAVES_WITHIN_S
            tracer.kill()
        assert process.wait(5) == 1


@pytest.mark.alone  # its leases end while three tests share two cores
def test_a_plate_that_passed_gets_one_pulse_at_its_point(site: Site) -> None:
    """How near to it: benchmarks/reject_position.py."""
    site.pulse_ms = 200
    site.start()
    with site.client() as client:
        speaker = Speaker(client)
        speaker.say()
        speaker.travel(0.2, *PLATE)
        speaker.result()
        speaker.travel(0.6)
        eventually(lambda: speaker.accepts() == {"t-1": "accept"}, "its row")
        (row,) = (event for event in speaker.events if event["op"] == "accept")
        assert row["is_confirmed"] is True
        (pulse_ns,) = site.pulses
        assert row["commanded_ns"] <= pulse_ns <= row["shown_ns"]
        place = (pulse_ns - speaker._began_ns) / 1e9 * speaker.SPEED
        assert -speaker.HEIGHT < place - 1500 < 0.3 * speaker.SPEED
        eventually(lambda: not site.module.lit()[0], "its end")
        assert client.status()["accept"]["accept"] == 1


def test_no_other_plate_does(site: Site) -> None:
    site.start()
    with site.client() as client:
        speaker = Speaker(client)
        speaker.say()
        ends = [edge for n in (1, 2, 3) for edge in ((f"t-{n}", False, 200), (f"t-{n}", True, 500))]
        speaker.travel(0.2, *ends)
        speaker.result(Verdict.FAIL)
        speaker.result(Verdict.UNDECIDED)
        speaker.result(Verdict.PASS, SIMULATED)
        speaker.travel(0.5)
        assert speaker.accepts() == {"t-3": "withheld"}
        assert "only production is accepted" in str(speaker.events)
        assert site.pulses == []


def test_a_verdict_after_the_point_is_withheld_late_and_counted_for_the_plc(site: Site) -> None:
    site.start()
    with PollingPlc(site.port) as plc, site.client() as client:
        speaker = Speaker(client)
        speaker.say()
        speaker.travel(0.7, *PLATE)
        speaker.result()
        eventually(lambda: speaker.accepts() == {"t-1": "withheld_late"}, "its row")
        speaker.say()
        eventually(lambda: bool(plc.last and plc.last.late == 1), "the PLC's count")
        assert site.pulses == []


def test_a_station_that_is_gone_before_the_point_accepts_nothing(site: Site) -> None:
    site.start()
    for end in ("closed", "error", "silent"):
        with site.client() as client:
            speaker = Speaker(client)
            speaker.say()
            speaker.travel(0.2, *PLATE)
            speaker.result()
            if end == "error":
                speaker.say(error=True)
            elif end == "silent":  # the belt stands meanwhile; when it goes on, it is too late
                time.sleep(1.3)
                speaker.travel(0.4)
        time.sleep(0.1 if end == "silent" else 0.5)
        assert site.pulses == [], end


def test_a_plate_that_was_lost_on_its_way_has_its_row_too(site: Site) -> None:
    """Also where the station that sent it is gone: its successor hears of it."""
    site.start()
    with site.client() as client:
        speaker = Speaker(client)
        speaker.say()
        speaker.travel(0.2, *PLATE)
        speaker.result()
    time.sleep(0.2)
    with site.client() as client:
        successor = Speaker(client)
        successor.say()
        eventually(lambda: successor.accepts() == {"t-1": "withheld"}, "its row")
        assert "the belt's place was lost" in str(successor.events)


def tried(speaker: Speaker, name: str = "accept") -> str:
    """What the lamp process says of an output, tried out by hand."""
    before = sum(event["op"] == "output" for event in speaker.hear())
    speaker.client.send_output(name)

    def answers() -> list[Json]:
        return [event for event in speaker.hear() if event["op"] == "output"][before:]

    eventually(lambda: bool(answers()), "an answer")
    return str(answers()[0]["reason"])


def test_nobody_tries_accept_out_over_a_belt_that_is_not_known_to_be_empty(site: Site) -> None:
    """100 mm to the point are 1000 scan lines, a third of a second."""
    site.start()
    with site.client() as client:
        speaker = Speaker(client)
        speaker.say()
        assert "not known what the belt carries" in tried(speaker), "no frame came"
        speaker.travel(0.1)
        assert "may be on its way" in tried(speaker), "what was there before is unknown"
        speaker.travel(0.4)
        speaker.say(error=True)
        assert "not known what the belt carries" in tried(speaker), "an error"
        assert site.pulses == []
        speaker.say()
        speaker._is_new = True
        speaker.travel(0.5)
        assert tried(speaker) == ""
        assert len(site.pulses) == 1
        site.module.stop()
        speaker.travel(0.4)
        assert "127.0.0.1" in tried(speaker), "the module is gone"


def test_a_word_tried_out_is_done_when_the_plc_has_it_and_says_nothing_of_a_plate(
    site: Site,
) -> None:
    site.start()
    with site.client() as client:
        speaker = Speaker(client)
        speaker.say()
        assert "PLC" in tried(speaker, "busy"), "none asks"
        with PollingPlc(site.port) as plc:
            speaker.say()
            eventually(lambda: bool(plc.last and plc.last.ready), "READY")
            assert tried(speaker, "busy") == ""
            eventually(lambda: bool(plc.last and plc.last.busy), "BUSY")
            for name in ("ng", "undecided", "ok", "ready", "result_valid"):
                assert "no such output" in tried(speaker, name)
            plc.acknowledges = False
            speaker.say()
            speaker.result()
            eventually(lambda: bool(plc.last and plc.last.result_valid), "a result")
            speaker.say()
            assert "a plate's result is valid" in tried(speaker, "error")


WIRES = {name: place for place, name in enumerate((*OUTPUT_BITS, "heartbeat"))}


@pytest.mark.parametrize("has_numbers", [False, True])
def test_wires_that_do_not_say_of_which_plate_never_say_ok_of_one_that_was_overtaken(
    has_numbers: bool,
) -> None:
    """A later plate has its verdict: OK would be taken for that one's."""
    with ModbusPeer() as module:
        wires = {"type": "modbus", "host": "127.0.0.1", "tcp_port": module.port, "outputs": WIRES}
        server = {"type": "modbus_server", "host": "127.0.0.1", "tcp_port": free_port()}
        io = {"type": "io", "device": wires | {"pulse_offset": PULSE_OFFSET}}
        plc = Plc(TypeAdapter(PlcSettings).validate_python(server if has_numbers else io), EVENTS)
        plc.open(is_restart=False)
        try:
            now_ns = time.monotonic_ns()
            plc.say(StationWord(True, False, False, False, now_ns + 5 * 10**9), True, now_ns)
            plc.result(PlateResult("t-1", 1, Verdict.PASS, PRODUCTION, False, True), now_ns)
            if has_numbers:
                with PollingPlc(server["tcp_port"], acknowledges=False) as reader:
                    eventually(lambda: bool(reader.last and reader.last.result_valid), "its result")
                    assert reader.last is not None
                    assert (reader.last.result, reader.last.ok) == (1, True)
            else:
                eventually(lambda: module.lit()[WIRES["result_valid"]], "its result")
                said = {name for name, place in WIRES.items() if module.lit()[place]}
                assert said - {"heartbeat"} == {"ready", "result_valid", "ng", "undecided"}
        finally:
            plc.close()


def test_accept_is_off_when_the_process_begins_and_ends(site: Site) -> None:
    site.is_timed = False
    site.module.coils[0] = True
    process = site.start()
    site.client().close()
    assert not site.module.lit()[0]
    site.module.coils[0] = True
    process.terminate()
    process.wait()
    assert not site.module.lit()[0]


def test_what_the_service_manager_calls_after_a_death_switches_accept_off(site: Site) -> None:
    site.is_timed = False
    process = site.start()
    site.client().close()
    process.kill()
    process.wait()
    site.module.coils[0] = True
    config = str(site.folder / "station.toml")
    command = [sys.executable, "-m", "station.cli", "light", "show", "fault", "--config", config]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    assert not site.module.lit()[0]
    site.module.stop()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "accept: " in done.stderr
    site.module.start()


def test_a_module_that_cannot_time_is_switched_off_by_the_process(site: Site) -> None:
    site.is_timed = False
    site.start()
    with site.client() as client:
        speaker = Speaker(client)
        speaker.say()
        speaker.travel(0.2, *PLATE)
        speaker.result()
        speaker.travel(0.7)
        levels = [is_on for _, coil, is_on in site.module.history if coil == 0]
        assert levels == [False, True, False]
        on_ns, off_ns = (at_ns for at_ns, _, _ in site.module.history[1:])
        assert 0.08 < (off_ns - on_ns) / 1e9 < 0.4


@pytest.mark.alone
def test_a_pulse_that_comes_late_ends_before_the_next_plate(site: Site) -> None:
    """A plate that nobody has seen may be 100 mm behind: 330 ms, of which the pulse takes 200."""
    site.pulse_ms = 200
    site.start()
    with site.client() as client:
        speaker = Speaker(client)
        speaker.say()
        speaker.travel(0.3, *PLATE)
        speaker.result()
        site.module.delay_s = 0.07
        speaker.travel(0.7)
        (row,) = (event for event in speaker.hear() if event["op"] == "accept")
        assert "late, and off before the next plate" in row["detail"]
        levels = [is_on for _, coil, is_on in site.module.history if coil == 0]
        assert levels[-1] is False


def test_a_module_that_is_lost_is_named_and_found_again(site: Site) -> None:
    site.start()
    with site.client() as client:
        speaker = Speaker(client)
        speaker.say()
        site.module.stop()
        speaker.travel(0.2, *PLATE)
        speaker.result()
        speaker.travel(0.8)
        eventually(lambda: speaker.accepts() == {"t-1": "withheld"}, "its row")
        assert client.status()["accept"]["problem"]
        site.module.start()
        eventually(lambda: not client.status()["accept"]["problem"], "the module again")
        assert site.pulses == []


def test_what_is_not_there_at_the_start_is_named(site: Site) -> None:
    site.module.stop()
    process = site.start()
    _, errors = process.communicate(timeout=10)
    assert process.returncode == 1
    assert errors.startswith("accept: ") or "accept: " in errors
    site.module.start()


def test_nonsense_ends_its_sender_and_nothing_else(site: Site) -> None:
    site.start()
    with PollingPlc(site.port) as plc, site.client() as client:
        speaker = Speaker(client)
        for body in (
            {"op": "belt", "n": 10**6, "expires_ns": time.monotonic_ns() + 10**9},
            {"op": "result", "n": 1, "expires_ns": 1.5},
            {"op": "word"},
        ):
            with site.client() as other:
                other._connected().send(body)
                time.sleep(0.05)
        speaker.say()
        eventually(lambda: bool(plc.last and plc.last.ready), "READY")


# --- accept's thread, in this process -------------------------------------------------------------


def site_settings(folder: Path) -> Configuration:
    config = folder / "station.toml"
    device = '{ type = "simulated", outputs = ["accept"] }'
    light = '{ type = "simulated" }'
    text = CONFIG.format(folder=folder, port=1502, device=device, pulse_ms=100, light=light)
    config.write_text(text)
    return load_configuration(str(config)).value


def accept_and_events(pulse_ms: int = 100) -> tuple[Accept, Events]:
    """Its thread does not run; its device is there."""
    device = SimulatedIoSettings(type="simulated", outputs=("accept",))
    events = Events(lambda: None)
    accept = Accept(
        AcceptSettings(distance_mm=100.0, pulse_ms=pulse_ms, device=device), 0.1, events
    )
    accept._open()
    return accept, events


def told(events: Events) -> list[tuple[str, str]]:
    taken = iter(events.take, None)
    return [(event["command"], event["detail"]) for event in taken if event["op"] == "accept"]


def test_a_decision_that_a_slow_module_held_up_is_looked_at_again() -> None:
    accept, events = accept_and_events()
    now_ns = time.monotonic_ns()
    decision = Decision("t-1", Fate.ACCEPT, spare_s=0.3)
    accept.renew(now_ns + 10**9)
    accept._carry_out(decision, now_ns - 400_000_000)
    ((command, why),) = told(events)
    assert command == "withheld"
    assert "would have reached the next plate" in why
    accept.renew(now_ns - 1)
    accept._carry_out(decision, now_ns)
    assert told(events) == [("withheld", "the station's word ended first")]


def on_by_hand(accept: Accept) -> SimulatedIo:
    """A belt that went its way empty, and a person who wants to see accept."""
    now_ns = time.monotonic_ns()
    places = (Place(0, now_ns - 10**8), Place(1000, now_ns))
    accept.belt(BeltNews(64, True, places, ()))
    accept.renew(now_ns + 10**9)
    assert accept.test() is None
    assert accept._pulse_for_test() == ""
    device = accept._device
    assert isinstance(device, SimulatedIo)
    assert device.lit["accept"]
    return device


def on_for_a_plate(accept: Accept, speed: int) -> tuple[SimulatedIo, int]:
    """A belt at `speed`, scan lines a second, and a plate at its point; another one is 400 behind.
    The output, and when the last frame came."""
    now_ns = time.monotonic_ns()
    edges = (("t-1", False, 0), ("t-1", True, 100), ("t-2", False, 500), ("t-2", True, 900))
    before = Place(1100 - speed // 10, now_ns - 10**8)
    accept.belt(BeltNews(64, True, (before,), edges))
    accept.renew(now_ns + 10**9)
    accept.result(PlateResult("t-1", 1, Verdict.PASS, PRODUCTION, False), now_ns)
    accept.belt(BeltNews(64, False, (Place(1100, now_ns),), ()))
    accept._turn()
    device = accept._device
    assert isinstance(device, SimulatedIo)
    assert device.lit["accept"]
    return device, now_ns


def test_a_pulse_ends_with_the_stations_word_also_where_the_device_times_it() -> None:
    accept, events = accept_and_events(pulse_ms=5000)
    device, _ = on_for_a_plate(accept, 50)
    assert device.times_pulses
    assert [command for command, _ in told(events)] == ["accept"]
    accept._turn()
    assert device.lit["accept"]
    accept.revoke()
    accept._turn()
    assert not device.lit["accept"]


def test_a_pulse_ends_before_the_next_plate_where_the_belt_goes_faster() -> None:
    accept, _ = accept_and_events(pulse_ms=3000)
    device, at_ns = on_for_a_plate(accept, 100)
    for place in (1164, 1228, 1292, 1356, 1420):
        at_ns += 20_000_000
        accept.belt(BeltNews(64, False, (Place(place, at_ns),), ()))
        if place == 1164:
            accept._turn()
            assert device.lit["accept"], "there is room"
    accept._turn()
    assert not device.lit["accept"]


@pytest.mark.parametrize(("missed", "is_on"), [(110, False), (450, True)])
def test_a_pulse_ends_where_a_plate_may_come_that_nobody_saw(missed: int, is_on: bool) -> None:
    accept, _ = accept_and_events(pulse_ms=3000)
    device, at_ns = on_for_a_plate(accept, 100)
    places = (Place(1100, at_ns + 1_000_000),)
    accept.belt(BeltNews(64, False, places, (("", False, missed),)))
    accept._turn()
    assert device.lit["accept"] is is_on


def test_a_pulse_ends_where_the_belt_is_lost() -> None:
    accept, _ = accept_and_events(pulse_ms=3000)
    device, _ = on_for_a_plate(accept, 100)
    accept.belt(BeltNews(64, True, (), ()))
    accept._turn()
    assert not device.lit["accept"]


def test_accept_tried_out_is_off_before_a_plate_can_be_there() -> None:
    """1000 scan lines to the point at 10,000 a second: a tenth of a second, not a whole one."""
    accept, _ = accept_and_events()
    device = on_by_hand(accept)
    end_ns = device._ends_ns["accept"]
    assert end_ns is not None
    assert end_ns - accept._register._place.at_ns < 10**8  # type: ignore[union-attr]


def plate(accept: Accept) -> None:
    accept.belt(BeltNews(64, False, (), (("t-1", False, 1000),)))


def error(accept: Accept) -> None:
    accept.renew(0)


@pytest.mark.parametrize("end", [plate, error, Accept.end_test, Accept.revoke])
def test_accept_tried_out_ends_as_plates_may_come(end: Callable[[Accept], None]) -> None:
    accept, _ = accept_and_events()
    on_by_hand(accept)
    accept._off_ns = time.monotonic_ns() + 10**10  # however slow this machine is
    assert not accept._due(time.monotonic_ns())[1]
    end(accept)
    assert accept._due(time.monotonic_ns())[1]
    accept._end_pulse()
    assert isinstance(accept._device, SimulatedIo)
    assert not accept._device.lit["accept"]


def test_what_a_station_does_not_read_waits(tmp_path: Path) -> None:
    settings = site_settings(tmp_path)
    outputs = Outputs(settings, lambda: None)
    outputs._events.add({"op": "accept_problem", "problem": ""})
    outputs._events.add({"op": "accept", "command": "withheld_late"})
    taken: list[Json] = []

    def refuse(event: Json) -> None:
        raise BlockingIOError

    outputs.send_events(refuse)
    outputs.send_events(taken.append)
    assert [event["op"] for event in taken] == ["accept_problem", "accept"]
    assert outputs.status()["plc"]["late"] == 1


def test_accepts_thread_survives_what_nobody_thought_of() -> None:
    """Without it nobody would switch off what is on."""
    accept, events = accept_and_events()
    accept.open(is_restart=False)
    assert isinstance(accept._device, SimulatedIo)
    before = accept._device
    before.write({"accept": True})
    accept._register = object()  # type: ignore[assignment]
    accept.renew(time.monotonic_ns() + 10**10)
    eventually(lambda: accept._device not in (before, None), "a new device")
    assert not accept._device.lit["accept"]
    problems = [event["problem"] for event in iter(events.take, None)]
    assert "AttributeError" in problems[-2]
    assert problems[-1] == ""
    assert accept._thread is not None
    assert accept._thread.is_alive()
    accept.close()


class HangingIo(SimulatedIo):
    """Like a driver that waits without a limit."""

    def __init__(self) -> None:
        super().__init__(SimulatedIoSettings(type="simulated", outputs=("accept",)))
        self.goes_on = threading.Event()

    def write(self, levels: Mapping[str, bool]) -> bool:
        self.goes_on.wait()
        return super().write(levels)


def is_hung_after(outputs: Outputs, seconds: float) -> bool:
    """Looked after all the while, as the lamp's loop does."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if outputs.is_hung(time.monotonic_ns()):
            return True
        time.sleep(0.02)
    return False


def test_accepts_thread_that_hangs_is_seen_and_one_that_waits_is_not(tmp_path: Path) -> None:
    outputs = Outputs(site_settings(tmp_path), lambda: None)
    accept, device = outputs._accept, HangingIo()
    assert accept is not None
    accept._device = device
    accept._start()
    assert not is_hung_after(outputs, HUNG_NS / 1e9 + 0.3), "it has nothing to do"
    with accept._changed:
        accept._off_ns = 0
    assert is_hung_after(outputs, 5.0)
    device.goes_on.set()
    eventually(lambda: not outputs.is_hung(time.monotonic_ns()), "its end")
    accept.close()


def test_a_process_that_stood_still_as_a_whole_has_no_thread_that_hangs(tmp_path: Path) -> None:
    outputs = Outputs(site_settings(tmp_path), lambda: None)
    accept, device = outputs._accept, HangingIo()
    assert accept is not None
    accept._device = device
    accept._start()
    with accept._changed:
        accept._off_ns = 0
    time.sleep(HUNG_NS / 1e9 + 0.3)
    assert not outputs.is_hung(time.monotonic_ns())
    assert is_hung_after(outputs, 5.0), "now it is looked after"
    device.goes_on.set()
    accept.close()


def test_a_plc_that_is_not_there_holds_up_nobody_and_is_found() -> None:
    with ModbusPeer() as plc:
        link = {"type": "modbus_client", "host": "127.0.0.1", "tcp_port": plc.port}
        plc.stop()
        settings = TypeAdapter(PlcSettings).validate_python(link)
        part = Plc(settings, Events(lambda: None))
        part.open(is_restart=True)
        assert "nobody answers" in part.status()["problem"]
        plc.start()

        def is_found() -> bool:
            part.keep(time.monotonic_ns())
            return not part.status()["problem"]

        eventually(is_found, "the PLC")
        assert part.status()["device"]
        part.close()
