"""One contract for every scanner, over real wires: whole readings, or said to be broken; none made
up, none from before it was opened, and back after the plug was pulled."""

from __future__ import annotations

import os
import queue
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pty_recorder import PtyRecorder
from pydantic import TypeAdapter

from drivers.camera.labels import LabelScanner
from drivers.camera.settings import LabelSettings
from drivers.errors import DeviceBusy, DeviceLost, DeviceNotFound, DeviceRefused
from drivers.scanner import PAUSE_S, Scan, Scanner, open_scanner
from drivers.scanner.hid import EV_KEY, EV_SYN, EVENT, KEYS, SYN_DROPPED, HidScanner
from drivers.scanner.settings import ScannerSettings
from station.scanner_feed import Scanned, ScannerFeed, ScannerState

_LEFT_SHIFT, _ENTER, _F1 = 42, 28, 59
_CODES = {text: (code, shift) for code, pair in KEYS.items() for shift, text in enumerate(pair)}


def key_events(code: int, *values: int) -> bytes:
    return b"".join(
        EVENT.pack(0, 0, EV_KEY, code, value) + EVENT.pack(0, 0, EV_SYN, 0, 0) for value in values
    )


def typed(text: str) -> bytes:
    """As a keyboard types it."""
    data = b""
    for character in text:
        code, shift = _CODES[character]
        data += key_events(_LEFT_SHIFT, 1) if shift else b""
        data += key_events(code, 1, 0)
        data += key_events(_LEFT_SHIFT, 0) if shift else b""
    return data


class Device(ABC):
    """The other end of a scanner's wire."""

    settings: ScannerSettings

    @abstractmethod
    def plug_in(self) -> None: ...

    @abstractmethod
    def unplug(self) -> None: ...

    @abstractmethod
    def send(self, data: bytes) -> None: ...

    def say(self, text: str) -> bytes:
        """A reading's bytes without its end."""
        return text.encode()

    end = b"\r\n"


class Serial(Device):
    def __init__(self, folder: Path) -> None:
        self._link = folder / "tty"
        self.settings = settings(type="serial", port=str(self._link))

    def plug_in(self) -> None:
        self._pty = PtyRecorder(self._link)

    def unplug(self) -> None:
        self._pty.unplug()
        self._link.unlink(missing_ok=True)

    def send(self, data: bytes) -> None:
        self._pty.send(data)


class Pipe(Device):
    """A named pipe stands where the device's file would."""

    name, kind, key = "scanner", "simulated", "pipe"

    def __init__(self, folder: Path) -> None:
        self._path = folder / self.name
        self.settings = settings(**{"type": self.kind, self.key: str(self._path)})

    def plug_in(self) -> None:
        os.mkfifo(self._path)
        self._end = os.open(self._path, os.O_RDWR | os.O_NONBLOCK)

    def unplug(self) -> None:
        os.close(self._end)
        self._path.unlink()

    def send(self, data: bytes) -> None:
        os.write(self._end, data)


class Keyboard(Pipe):
    """struct input_event through a pipe: this kernel has no uinput as a rule."""

    name, kind, key = "event0", "hid", "device"
    end = key_events(_ENTER, 1, 0)

    def say(self, text: str) -> bytes:
        return typed(text)


def settings(**given: str) -> ScannerSettings:
    found: ScannerSettings = TypeAdapter(ScannerSettings).validate_python(given)
    return found


@pytest.fixture(params=[Serial, Keyboard, Pipe], ids=["serial", "hid", "simulated"])
def device(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Device]:
    device: Device = request.param(tmp_path)
    device.plug_in()
    yield device
    device.unplug()


@pytest.fixture
def scanner(device: Device) -> Iterator[Scanner]:
    with open_scanner(device.settings) as scanner:
        yield scanner


def read_all(scanner: Scanner, count: int, timeout_s: float = 5.0) -> list[Scan]:
    scans: list[Scan] = []
    deadline = time.monotonic() + timeout_s
    while len(scans) < count and time.monotonic() < deadline:
        scan = scanner.read(0.05)
        scans += [scan] if scan else []
    return scans


def test_readings_come_whole_and_in_order(device: Device, scanner: Scanner) -> None:
    before_ns = time.monotonic_ns()
    for text in ("LGP-0001", "aB9_/+", "x"):
        device.send(device.say(text) + device.end)
    scans = read_all(scanner, 3)
    assert [scan.data for scan in scans] == [b"LGP-0001", b"aB9_/+", b"x"]
    assert not any(scan.fault for scan in scans)
    assert before_ns < scans[0].at_ns <= time.monotonic_ns()
    assert scanner.read(0.0) is None


def test_a_reading_that_comes_in_pieces_is_one(device: Device, scanner: Scanner) -> None:
    device.send(device.say("LGP-"))
    assert scanner.read(0.02) is None
    device.send(device.say("0002"))
    assert scanner.read(0.02) is None
    device.send(device.end)
    assert [scan.data for scan in read_all(scanner, 1)] == [b"LGP-0002"]


def test_nothing_is_read_off_empty_ends(device: Device, scanner: Scanner) -> None:
    device.send(device.end * 3 + device.say("A1") + device.end * 2)
    assert [scan.data for scan in read_all(scanner, 1)] == [b"A1"]
    assert scanner.read(0.05) is None


def test_half_a_reading_is_none_and_does_not_begin_the_next(
    device: Device, scanner: Scanner
) -> None:
    device.send(device.say("LGP-00"))
    assert scanner.read(0.02) is None
    (broken,) = read_all(scanner, 1)
    assert (broken.data, bool(broken.fault)) == (b"LGP-00", True)
    device.send(device.end + device.say("LGP-0003") + device.end)
    (whole,) = read_all(scanner, 1)
    assert (whole.data, whole.fault) == (b"LGP-0003", "")


def test_the_rest_of_a_reading_that_was_broken_off_is_none(
    device: Device, scanner: Scanner
) -> None:
    device.send(device.say("LGP-00"))
    assert scanner.read(0.02) is None
    assert read_all(scanner, 1)[0].fault
    device.send(device.say("01"))
    assert scanner.read(0.02) is None
    assert read_all(scanner, 1)[0].fault
    device.send(device.say("23") + device.end + device.say("LGP-0003") + device.end)
    rest, whole = read_all(scanner, 2)
    assert (rest.data, rest.fault) == (b"23", "its beginning was broken off")
    assert (whole.data, whole.fault) == (b"LGP-0003", "")


def test_a_reading_without_end_is_bounded_and_broken(device: Device, scanner: Scanner) -> None:
    for _ in range(40):
        device.send(device.say("0123456789"))
        assert scanner.read(0.01) is None
    device.send(device.end)
    (scan,) = read_all(scanner, 1)
    assert scan.fault
    assert len(scan.data) <= 256
    device.send(device.say("A1") + device.end)
    assert read_all(scanner, 1)[0] == Scan(b"A1", pytest.approx(time.monotonic_ns(), abs=5e9))


def test_what_was_said_before_it_was_opened_is_none(device: Device) -> None:
    device.send(device.say("OLD-1") + device.end + device.say("HAL"))
    with open_scanner(device.settings) as scanner:
        assert scanner.read(0.05) is None
        device.send(device.say("NEW-1") + device.end)
        assert [scan.data for scan in read_all(scanner, 1)] == [b"NEW-1"]


def test_a_pulled_plug_is_a_loss(device: Device, scanner: Scanner) -> None:
    device.send(device.say("LGP-"))
    scanner.read(0.02)
    device.unplug()
    with pytest.raises(DeviceLost):
        read_all(scanner, 1)
    scanner.close()
    device.plug_in()


def test_one_that_is_not_there_is_named(device: Device) -> None:
    device.unplug()
    if device.settings.type != "simulated":  # which makes its pipe
        with pytest.raises(DeviceNotFound, match=r"tty|event0"):
            open_scanner(device.settings)
    device.plug_in()


def test_a_file_is_no_scanner(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("LGP-0001\n")
    for given in ({"type": "hid", "device": str(path)}, {"type": "simulated", "pipe": str(path)}):
        with pytest.raises(DeviceRefused, match="file"):
            open_scanner(settings(**given))


def test_a_serial_scanner_has_one_owner(tmp_path: Path) -> None:
    device = Serial(tmp_path)
    device.plug_in()
    with open_scanner(device.settings), pytest.raises(DeviceBusy):
        open_scanner(device.settings)
    device.unplug()


# --- keys -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "trouble",
    [
        EVENT.pack(0, 0, EV_SYN, SYN_DROPPED, 0),
        key_events(_CODES["b"][0], 1, 2, 2, 0),
    ],
    ids=["the system lost keys", "a key is stuck"],
)
def test_keys_that_are_doubtful_make_no_reading(tmp_path: Path, trouble: bytes) -> None:
    device = Keyboard(tmp_path)
    device.plug_in()
    with open_scanner(device.settings) as scanner:
        device.send(typed("AB") + trouble + typed("CD") + Keyboard.end)
        device.send(typed("EF") + Keyboard.end)
        broken, whole = read_all(scanner, 2)
    assert broken.fault
    assert whole.data == b"EF"
    assert not whole.fault
    device.unplug()


def test_what_follows_keys_that_were_lost_is_none_even_after_a_halt(tmp_path: Path) -> None:
    device = Keyboard(tmp_path)
    device.plug_in()
    with open_scanner(device.settings) as scanner:
        device.send(typed("LGP-") + EVENT.pack(0, 0, EV_SYN, SYN_DROPPED, 0))
        assert read_all(scanner, 1)[0].fault
        device.send(typed("0123") + Keyboard.end + typed("EF") + Keyboard.end)
        rest, whole = read_all(scanner, 2)
    assert (rest.data, bool(rest.fault)) == (b"0123", True)
    assert (whole.data, whole.fault) == (b"EF", "")
    device.unplug()


def test_a_key_that_types_nothing_makes_the_reading_no_text(tmp_path: Path) -> None:
    device = Keyboard(tmp_path)
    device.plug_in()
    with open_scanner(device.settings) as scanner:
        device.send(typed("A") + key_events(_F1, 1, 0) + typed("B") + Keyboard.end)
        assert read_all(scanner, 1)[0].data == b"A\xffB"
    device.unplug()


def test_every_printable_character_can_be_typed(tmp_path: Path) -> None:
    text = "".join(sorted(_CODES))
    assert set(text) == {chr(code) for code in range(32, 127)}
    device = Keyboard(tmp_path)
    device.plug_in()
    with open_scanner(device.settings) as scanner:
        assert isinstance(scanner, HidScanner)
        device.send(typed(text) + Keyboard.end)
        assert read_all(scanner, 1)[0].data.decode() == text
    device.unplug()


def test_a_keyboard_of_the_kernel_is_read_and_grabbed(tmp_path: Path) -> None:
    """Through uinput, where the kernel has it."""
    if not Path("/dev/uinput").exists():
        pytest.skip("no uinput here")
    import fcntl  # pragma: no cover
    import struct

    uinput = os.open("/dev/uinput", os.O_WRONLY)
    set_event, set_key, setup, create = 0x40045564, 0x40045565, 0x405C5503, 0x5501
    fcntl.ioctl(uinput, set_event, EV_KEY)
    for code in (*KEYS, _ENTER, _LEFT_SHIFT):
        fcntl.ioctl(uinput, set_key, code)
    fcntl.ioctl(uinput, setup, struct.pack("HHHH80sI", 3, 1, 1, 1, b"vqi-test-scanner", 0))
    before = set(Path("/dev/input").glob("event*"))
    fcntl.ioctl(uinput, create)
    deadline = time.monotonic() + 5
    while not (new := set(Path("/dev/input").glob("event*")) - before):
        assert time.monotonic() < deadline
    with open_scanner(settings(type="hid", device=str(new.pop()))) as scanner:
        os.write(uinput, typed("LGP-1") + Keyboard.end)
        assert read_all(scanner, 1)[0].data == b"LGP-1"
    os.close(uinput)


# --- the station's thread -------------------------------------------------------------------------


class Heard:
    def __init__(self, device: Device) -> None:
        self._said: queue.SimpleQueue[Scanned | ScannerState] = queue.SimpleQueue()
        self.feed = ScannerFeed(device.settings, self._said.put)

    def until(self, is_it: Callable[[Scanned | ScannerState], bool]) -> Scanned | ScannerState:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            said = self._said.get(timeout=10)
            if is_it(said):
                return said
        raise AssertionError("it was not heard")

    def all(self) -> list[Scanned | ScannerState]:
        found = []
        while not self._said.empty():
            found.append(self._said.get())
        return found


def is_reading(said: Scanned | ScannerState) -> bool:
    return isinstance(said, Scanned) and not said.scan.fault


def test_it_comes_back_after_the_plug_was_pulled(device: Device) -> None:
    heard = Heard(device)
    heard.feed.open()
    heard.feed.start()
    device.send(device.say("A1") + device.end)
    heard.until(is_reading)
    device.send(device.say("HAL"))
    device.unplug()
    if device.settings.type != "simulated":
        gone = heard.until(lambda said: isinstance(said, ScannerState))
        assert isinstance(gone, ScannerState)
        assert gone.problem
    device.plug_in()
    heard.until(lambda said: isinstance(said, ScannerState) and not said.problem)
    device.send(device.say("B2") + device.end)
    back = heard.until(is_reading)
    assert isinstance(back, Scanned)
    assert back.scan.data == b"B2"
    heard.feed.stop()


def test_one_gone_mad_is_refused_and_heard_again_when_it_is_well(tmp_path: Path) -> None:
    device = Pipe(tmp_path)
    device.plug_in()
    heard = Heard(device)
    heard.feed.start()
    heard.until(lambda said: isinstance(said, ScannerState))
    for number in range(300):
        device.send(f"M{number}\n".encode())
    heard.until(lambda said: isinstance(said, Scanned) and bool(said.scan.fault))
    deadline = time.monotonic() + 20
    while True:
        assert time.monotonic() < deadline
        device.send(b"WELL\n")
        said = heard.all()
        if any(isinstance(one, Scanned) and one.scan.data == b"WELL" for one in said):
            break
        time.sleep(2 * PAUSE_S)
    heard.feed.stop()
    device.unplug()


def test_the_simulated_belt_reads_each_label_once_in_any_frames(tmp_path: Path) -> None:
    """However many scan lines a frame has, and wherever a label lies in it."""
    pipe = tmp_path / "scanner"
    given = LabelSettings(pipe=pipe, distance_mm=50.0, place_mm=2.0, unread=(3,), doubled=(4,))
    with open_scanner(settings(type="simulated", pipe=str(pipe))) as scanner:
        for height in (1, 7, 64, 480):
            labels = LabelScanner(given, 0.1, lambda n: 600 + 1010 * (n - 1), _plates_before)
            labels.begin(0)
            for frame in range(1, 6000 // height):
                labels.move(frame * height)
            scans = read_all(scanner, 6)
            numbers = ["1", "2", "4", "4-B", "5", "6"]
            assert [scan.data.decode() for scan in scans] == [
                f"SIM00000{number}" for number in numbers
            ]
            assert scanner.read(0.0) is None


def _plates_before(scan_line: int) -> int:
    return max(0, -(-(scan_line - 600) // 1010))
