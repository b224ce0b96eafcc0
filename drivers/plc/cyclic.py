"""A link that writes and reads by itself, again and again, on a thread of its own."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from abc import abstractmethod

from drivers.errors import DeviceError
from drivers.plc import NOBODY, HandedOut, PlcInputs, PlcLink, PlcOutputs, ReadOutputs, TakeInputs

_RETRY_S = 0.5

_log = logging.getLogger(__name__)


class CyclicLink(PlcLink):
    """Opens its device anew after every failure: what comes after a missing answer may be it."""

    def __init__(self, cycle_s: float) -> None:
        self._cycle_s = cycle_s
        self._problem = ""
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def problem(self) -> str:
        return self._problem

    def start(
        self, read_outputs: ReadOutputs, handed_out: HandedOut, take_inputs: TakeInputs
    ) -> None:
        self._read_outputs, self._take_inputs = read_outputs, take_inputs
        self._handed_out = handed_out
        thread = threading.Thread(target=self._run, name="plc", daemon=True)
        thread.start()
        self.turned_ns = time.monotonic_ns()
        self._thread = thread

    def say_nobody(self) -> None:
        if not self._is_open:
            self._open()
        try:
            self._tell(NOBODY)
        except DeviceError:
            self._release()
            raise

    def try_out(self) -> None:
        self.say_nobody()
        self._hear()

    def close(self) -> None:
        self._closing.set()
        if self._thread is not None:
            self._thread.join(timeout=2.0)
            if self._thread.is_alive():
                return  # the device is still its own
            self._thread, self.turned_ns = None, None
        with contextlib.suppress(DeviceError):
            if self._is_open:
                self._tell(NOBODY)
        self._release()

    @property
    @abstractmethod
    def _is_open(self) -> bool:
        """There is a device."""

    @abstractmethod
    def _open(self) -> None:
        """Raises `DeviceError`."""

    @abstractmethod
    def _tell(self, said: PlcOutputs) -> None:
        """Returns when it is on the wire. Raises `DeviceError`."""

    @abstractmethod
    def _hear(self) -> PlcInputs:
        """Raises `DeviceError`."""

    @abstractmethod
    def _release(self) -> None:
        """Give the device up; safe to call twice."""

    def _cycle(self) -> None:
        """Raises `DeviceError`."""
        if not self._is_open:
            self._open()
            self.turned_ns = time.monotonic_ns()
        said = self._read_outputs()
        # Before it is heard: what a predecessor left there ends, also where inputs cannot be read.
        self._tell(said)
        self.turned_ns = time.monotonic_ns()
        self._handed_out(said)
        self._take_inputs(self._hear())

    def _run(self) -> None:
        pause_s = 0.0
        while not self._closing.wait(pause_s):
            self.turned_ns = time.monotonic_ns()
            try:
                self._cycle()
            except DeviceError as error:
                self._release()
                self._problem, pause_s = str(error), _RETRY_S
            except Exception as error:  # noqa: BLE001
                # Without this thread nobody would take back what it said last.
                _log.exception("a cycle failed")
                self._release()
                self._problem, pause_s = f"{self.description}: {error!r}", _RETRY_S
            else:
                self._problem, pause_s = "", self._cycle_s
