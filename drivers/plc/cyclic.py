"""A link that writes and reads by itself, again and again, on a thread of its own."""

from __future__ import annotations

import contextlib
import threading
from abc import abstractmethod

from drivers.errors import DeviceError
from drivers.plc import PlcLink, ReadOutputs, TakeInputs

_RETRY_S = 0.5


class CyclicLink(PlcLink):
    """Opens its device anew after every failure: what comes after a missing answer may be it."""

    def __init__(self, cycle_s: float) -> None:
        self._cycle_s = cycle_s
        self._problem = ""
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def problem(self) -> str:
        is_over = self._thread is not None and not self._thread.is_alive()
        return f"{self.description}: its thread has ended" if is_over else self._problem

    def start(self, read_outputs: ReadOutputs, take_inputs: TakeInputs) -> None:
        self._read_outputs, self._take_inputs = read_outputs, take_inputs
        self._thread = threading.Thread(target=self._run, name="plc", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._closing.set()
        if self._thread is not None:
            self._thread.join(timeout=2.0)
            self._thread = None
        with contextlib.suppress(DeviceError):
            self._say_nobody()
        self._release()

    @abstractmethod
    def _cycle(self) -> None:
        """Tell and hear the PLC once, with a device that is opened first if there is none. Raises
        `DeviceError`."""

    @abstractmethod
    def _say_nobody(self) -> None:
        """Say `NOBODY`, if there is a device. Raises `DeviceError`."""

    @abstractmethod
    def _release(self) -> None:
        """Give the device up; safe to call twice."""

    def _run(self) -> None:
        pause_s = 0.0
        while not self._closing.wait(pause_s):
            try:
                self._cycle()
            except DeviceError as error:
                self._release()
                self._problem, pause_s = str(error), _RETRY_S
            else:
                self._problem, pause_s = "", self._cycle_s
