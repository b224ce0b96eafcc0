"""A tower that latches, behind a wire that can fail, in a process that outlives every station.

`python tower.py LINK LOG` makes the symlink LINK to a pseudo-terminal and appends to LOG a line
`monotonic_ns hex` for what arrives at once, `monotonic_ns !` when the tower loses its power. One
word a line on stdin: `choke` (the wire is full and nobody reads), `drop` (what is sent gets lost),
`noise` (bytes come back that nobody asked for), `unplug`, `plug`, `heal`. Each is answered by a
line once it is so.
"""

from __future__ import annotations

import contextlib
import os
import random
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_CHOKED, _NOISY, _DROPPING, _HEALTHY = "choke", "noise", "drop", "heal"
_FILLER = b"\0" * 4096
_ELEMENTS = {1: "red", 2: "yellow", 4: "green", 8: "buzzer"}
_MODES = {0x10: "on", 0x20: "", 0x40: "blink"}
STEADY_NS = 20_000_000
"""What stands for less lies between two bytes of one command, as 9600 baud send it."""


# --- the recorder's side of the tower -------------------------------------------------------------


@dataclass(frozen=True)
class Pattern:
    """What the tower shows from `since_ns` until `until_ns` (None: still)."""

    since_ns: int
    until_ns: int | None
    lit: tuple[tuple[str, str], ...]

    @property
    def is_green(self) -> bool:
        """A person would take it for good: green, and not the lamp test's all at once."""
        lit = dict(self.lit)
        return "green" in lit and not (lit.get("red") == lit.get("yellow") == "on")


class Wire:
    """Reads what the tower was sent, and says what it showed when."""

    def __init__(self, log: Path) -> None:
        self._log, self._offset = log, 0
        self._lit: dict[str, str] = {}
        self._since_ns = 0
        self.patterns: list[Pattern] = []
        """Those that have ended; the present one is `now`."""

    def read(self) -> None:
        """Take what was written since."""
        with contextlib.suppress(FileNotFoundError), self._log.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
            whole = data[: data.rfind(b"\n") + 1]
            self._offset += len(whole)
            for line in whole.decode().splitlines():
                at, payload = line.split(" ")
                self._take(int(at), payload)

    @property
    def now(self) -> Pattern:
        return Pattern(self._since_ns, None, tuple(sorted(self._lit.items())))

    def changed_ns(self, after_ns: int) -> int | None:
        """When it first showed something else after a moment."""
        since = [pattern.since_ns for pattern in [*self.patterns, self.now]]
        return next((at_ns for at_ns in since if at_ns > after_ns), None)

    def greens(self, since_ns: int) -> Iterator[Pattern]:
        """Every green that stood at or after a moment."""
        for pattern in [*self.patterns, self.now]:
            is_there = pattern.until_ns is None or pattern.until_ns >= since_ns
            if pattern.is_green and is_there:
                yield pattern

    def _take(self, at_ns: int, payload: str) -> None:
        before = dict(self._lit)
        if payload == "!":
            self._lit.clear()
        else:
            for byte in bytes.fromhex(payload):
                self._switch(byte)
        if self._lit != before:
            if at_ns - self._since_ns >= STEADY_NS:
                lit = tuple(sorted(before.items()))
                self.patterns.append(Pattern(self._since_ns, at_ns, lit))
            self._since_ns = at_ns

    def _switch(self, byte: int) -> None:
        mode = _MODES.get(byte & 0xF0)
        if mode is None:
            return
        for bit, element in _ELEMENTS.items():
            if byte & bit:
                self._lit.pop(element, None)
                if mode:
                    self._lit[element] = mode


class Tower:
    """The recorder process, seen from the campaign."""

    def __init__(self, folder: Path) -> None:
        self.link, self.log = folder / "tower", folder / "tower.log"
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(self.link), str(self.log)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._answer()

    def tell(self, word: str) -> None:
        """One of the words above; back once it is so."""
        assert self._process.stdin is not None
        self._process.stdin.write(word + "\n")
        self._process.stdin.flush()
        self._answer()

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()

    def _answer(self) -> None:
        assert self._process.stdout is not None
        if not self._process.stdout.readline():
            raise RuntimeError("the tower's process is gone")


# --- the recorder itself --------------------------------------------------------------------------


class _Recorder:
    def __init__(self, link: Path, log: Path) -> None:
        self._link = link
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._how = _HEALTHY
        self._master = self._slave = -1
        self._draw = random.Random(0)
        self._plug()

    def run(self) -> None:
        print("ready", flush=True)
        while True:
            reading = [] if self._how == _CHOKED or self._master < 0 else [self._master]
            ready, _, _ = select.select([0, *reading], [], [], 0.02)
            if self._master in ready:
                self._read()
            if self._how == _NOISY and self._master >= 0:
                with contextlib.suppress(BlockingIOError):
                    os.write(self._master, self._draw.randbytes(16))
            if 0 in ready:
                word = os.read(0, 64).decode().strip()
                if not word:
                    return
                self._obey(word)
                print(word, flush=True)

    def _obey(self, word: str) -> None:
        match word:
            case "unplug":
                self._unplug()
            case "plug":
                self._plug()
            case _:
                self._how = word
                if word == _CHOKED:
                    self._fill()

    def _read(self) -> None:
        data = os.read(self._master, 65536).replace(b"\0", b"")
        if data and self._how != _DROPPING:
            self._write(data.hex())

    def _write(self, what: str) -> None:
        os.write(self._log, f"{time.monotonic_ns()} {what}\n".encode())

    def _fill(self) -> None:
        """From our own end, so that the next byte of the station finds no room."""
        full_since = time.monotonic()
        while (
            time.monotonic() - full_since < 0.02
        ):  # the kernel moves what it has from time to time
            with contextlib.suppress(BlockingIOError):
                os.write(self._slave, _FILLER)
                full_since = time.monotonic()

    def _plug(self) -> None:
        import tty

        self._master, self._slave = os.openpty()
        tty.setraw(self._slave)
        os.set_blocking(self._slave, False)
        os.set_blocking(self._master, False)
        new = self._link.with_name(self._link.name + ".new")
        new.unlink(missing_ok=True)
        new.symlink_to(os.ttyname(self._slave))
        new.replace(self._link)

    def _unplug(self) -> None:
        """Both ends and the name go; a tower fed by its plug is dark from here on."""
        self._link.unlink(missing_ok=True)
        for descriptor in (self._master, self._slave):
            os.close(descriptor)
        self._master = self._slave = -1
        self._write("!")


if __name__ == "__main__":
    _Recorder(Path(sys.argv[1]), Path(sys.argv[2])).run()
