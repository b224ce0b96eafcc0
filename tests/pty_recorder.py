"""A serial device that writes down what it is sent, on a real pseudo-terminal.

In a test: `with PtyRecorder(link) as tower: ... tower.bytes_sent()`; with `tower.answer` set, it
also answers. As a process of its own, which survives the death of all others: `python
tests/pty_recorder.py LINK LOG` makes the symlink LINK and appends a line `monotonic_ns hex` to LOG
for each read.
"""

from __future__ import annotations

import argparse
import os
import select
import threading
import time
import tty
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Self

_ADAFRUIT_ELEMENTS = {1: "red", 2: "yellow", 4: "green", 8: "buzzer"}
_ADAFRUIT_MODES = {0x10: "on", 0x20: None, 0x40: "blink"}


def adafruit_elements(data: bytes) -> dict[str, str]:
    """Elements that an Adafruit 5125 shows after `data`, as element → `on` or `blink`."""
    lit: dict[str, str] = {}
    for byte in data:
        mode = _ADAFRUIT_MODES[byte & 0xF0]
        for bit, element in _ADAFRUIT_ELEMENTS.items():
            if byte & bit:
                lit.pop(element, None)
                if mode:
                    lit[element] = mode
    return lit


def read_log(log: Path) -> list[tuple[int, bytes]]:
    """(monotonic_ns, bytes) of each line of a LOG file; a line still being written is left out."""
    lines = log.read_text().split("\n")[:-1] if log.exists() else []
    return [(int(ns), bytes.fromhex(data)) for ns, data in (line.split() for line in lines)]


class PtyRecorder:
    """Opens a pty, and reads and times all that arrives until closed."""

    def __init__(self, link: Path | None = None, log: Path | None = None) -> None:
        """`link`: a symlink to make to the device; `log`: a file to append to."""
        self._master, self._slave = os.openpty()
        # The slave stays open here: else its last user's death would end the reading.
        tty.setraw(self._slave)
        self.device = Path(os.ttyname(self._slave))
        self.link = link
        self.records: list[tuple[int, bytes]] = []
        self.answer: Callable[[bytes], bytes] = lambda data: b""
        """Called with what has arrived, by the reading thread; what it returns is sent back."""
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND) if log else None
        self._stop_read, self._stop_write = os.pipe()
        if link is not None:
            temporary = link.with_name(link.name + ".new")
            temporary.unlink(missing_ok=True)
            temporary.symlink_to(self.device)
            temporary.replace(link)
        self.start_reading()

    @property
    def slave(self) -> int:
        """The device's end, for a test that writes as another program would."""
        return self._slave

    def bytes_sent(self) -> bytes:
        return b"".join(data for _, data in list(self.records))

    def elements(self) -> dict[str, str]:
        """What an Adafruit 5125 would show now."""
        return adafruit_elements(self.bytes_sent())

    def wait_for(self, condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
        """Wait until `condition` holds. Raises AssertionError that shows what was sent."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(f"not seen within {timeout_s} s; {self.elements()} is lit")
            time.sleep(0.005)

    def send(self, data: bytes) -> None:
        """Say something unasked."""
        os.write(self._master, data)

    def start_reading(self) -> None:
        self._reader = threading.Thread(target=self._read, name="pty", daemon=True)
        self._reader.start()

    def stop_reading(self) -> None:
        """Choke: the writer's bytes pile up until its writes block."""
        if self._reader.is_alive():
            os.write(self._stop_write, b".")
            self._reader.join()
            os.read(self._stop_read, 1)

    def unplug(self) -> None:
        """Take the device away as a pulled plug does: both ends and its name are gone."""
        if self._stop_write < 0:
            return
        self.stop_reading()
        for descriptor in (self._master, self._slave, self._stop_read, self._stop_write):
            os.close(descriptor)
        self._stop_write = -1

    def close(self) -> None:
        self.unplug()
        if self._log is not None:
            os.close(self._log)
            self._log = None

    def join(self) -> None:
        """Wait for the reading to end, which it does at `close` only."""
        self._reader.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _read(self) -> None:
        while True:
            ready: Iterable[int] = select.select([self._master, self._stop_read], [], [])[0]
            if self._master in ready:
                data = os.read(self._master, 4096)
                now_ns = time.monotonic_ns()
                self.records.append((now_ns, data))
                if self._log is not None:
                    os.write(self._log, f"{now_ns} {data.hex()}\n".encode())
                reply = self.answer(data)
                if reply:
                    os.write(self._master, reply)
            elif self._stop_read in ready:
                return


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("link", type=Path)
    parser.add_argument("log", type=Path)
    arguments = parser.parse_args()
    with PtyRecorder(arguments.link, arguments.log) as recorder:
        recorder.join()


if __name__ == "__main__":
    main()
