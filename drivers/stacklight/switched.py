"""What drivers share that switch element by element: flashing by the host, and read-back."""

from __future__ import annotations

import contextlib
import threading
import time
from abc import abstractmethod
from collections.abc import Collection, Mapping

from drivers.errors import DeviceError, DeviceTimeout
from drivers.stacklight import LightState, StackLight
from drivers.stacklight.settings import Element, LightPattern, Mode

SHOW_LIMIT_S = 0.45
"""What a `show` may take on the wire; the contract allows 0.5 s."""
_NOT_ALONE = "another master or a restart of the device did that; one master is allowed"
_FLIP_LIMIT_S = 0.2
"""A flash in progress holds up a show this long at most."""

Modes = dict[Element, Mode | None]
"""What elements show, or are to show; None is dark."""


class SwitchedLight(StackLight):
    """A thread flashes what the device cannot flash. Subclasses do the wire, under one lock."""

    _has_rivals = False
    """True if another master can switch the device unseen: then each show first compares what it
    finds with what was left there."""

    def __init__(
        self,
        patterns: Mapping[LightState, LightPattern],
        elements: Collection[Element],
        host_flashed: Collection[Element],
        blink_hz: float | None,
    ) -> None:
        """`host_flashed`: elements that are on or off only. A subclass opens its device first: the
        thread begins here."""
        self._patterns = patterns
        self._elements = tuple(elements)
        self._host_flashed = frozenset(host_flashed)
        self._half_period_s = 0.5 / blink_hz if blink_hz else 0.0
        self._state = LightState.FAULT
        """What the pattern means."""
        self._pattern: LightPattern = {}
        self._modes: Modes = {}
        """What the device was left with; empty while that is unknown."""
        self._is_flash_lit = True
        self._flip_due_s = 0.0
        self._since_s = 0.0
        """When `_state` began."""
        self._problem: DeviceError | None = None
        self._is_closed = False
        self._changed = threading.Condition()
        """Guards everything above; notified when there is something to flash, and at close."""
        self._flasher: threading.Thread | None = None
        self._start_flasher()

    # --- for subclasses ---------------------------------------------------------------------------

    @abstractmethod
    def _switch(self, modes: Modes, deadline_s: float) -> None:
        """Switch the elements of `modes` and no other, those that go dark first.

        Raises `DeviceTimeout`, `DeviceLost`, `DeviceRefused`.
        """

    def _read(self, deadline_s: float) -> Modes | None:
        """What the elements show, as far as it can be read; None without read-back.

        Raises `DeviceTimeout`, `DeviceLost`, `DeviceRefused`.
        """
        return None

    def _lasting(self) -> Modes:
        """What the device was left with and cannot have ended by itself."""
        return self._modes

    @abstractmethod
    def _release(self) -> None:
        """Let the device go as it is."""

    # --- the contract -----------------------------------------------------------------------------

    def show(self, state: LightState) -> bool:
        deadline_s = time.monotonic() + SHOW_LIMIT_S
        self._start_flasher()
        with self._changed:
            try:
                self._raise_problem()
                is_confirmed = self._show(state, deadline_s)
            except DeviceError:
                self._pattern, self._modes = {}, {}
                raise
            self._changed.notify()
            return is_confirmed

    def _show(self, state: LightState, deadline_s: float) -> bool:
        left = self._lasting()
        is_as_left = self._has_rivals and self._compare(left, deadline_s, "left", _NOT_ALONE)
        self._begin(state)
        self._modes = self._wanted()
        if is_as_left and left == self._modes:
            # A renewal: to write what was just read would add nothing but time on a slow line.
            return True
        self._switch(self._modes, deadline_s)
        return self._compare(self._modes, deadline_s, "wanted", "check its wiring")

    def close(self) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        if self._flasher is not None:
            self._flasher.join()
        self._release()

    def _begin(self, state: LightState) -> None:
        now_s = time.monotonic()
        if state is not self._state or not self._modes:
            self._since_s = now_s
        pattern = self._patterns[state]
        if self.buzzer_s is not None and now_s - self._since_s >= self.buzzer_s:
            pattern = {e: mode for e, mode in pattern.items() if e != "buzzer"}
        if pattern != self._pattern:
            self._is_flash_lit = True
            self._flip_due_s = now_s + self._half_period_s
        self._state, self._pattern = state, pattern

    def _wanted(self) -> Modes:
        """What each element is to show in this half of the flash."""
        wanted: Modes = {element: self._pattern.get(element) for element in self._elements}
        for element in self._flashing(self._pattern):
            wanted[element] = "on" if self._is_flash_lit else None
        return wanted

    def _compare(self, expected: Modes, deadline_s: float, meant: str, advice: str) -> bool:
        """False where nothing is read back or expected.

        Raises `DeviceTimeout` if the device shows something else.
        """
        found = self._read(deadline_s) if expected else None
        if found is None:
            return False
        wrong = [
            f"{element} read back wrong: {found[element] or 'off'}, {meant} {mode or 'off'}"
            for element, mode in expected.items()
            if element in found and found[element] != mode
        ]
        if wrong:
            raise DeviceTimeout(f"{self.description}: {', '.join(wrong)}; {advice}")
        return True

    # --- flashing ---------------------------------------------------------------------------------

    def _flashing(self, pattern: LightPattern) -> list[Element]:
        return [e for e, mode in pattern.items() if mode == "blink" and e in self._host_flashed]

    def _start_flasher(self) -> None:
        """Where there is something to flash. With the process table full the light is steady, and
        the next show tries again."""
        if self._flasher or not any(map(self._flashing, self._patterns.values())):
            return
        flasher = threading.Thread(target=self._flash, name="flash", daemon=True)
        with contextlib.suppress(RuntimeError):
            flasher.start()
            self._flasher = flasher

    def _flash(self) -> None:
        with self._changed:
            while not self._is_closed:
                wait_s = self._flip_due_s - time.monotonic()
                if not self._flashing(self._pattern) or self._problem is not None:
                    self._changed.wait()
                elif wait_s > 0:
                    self._changed.wait(wait_s)
                else:
                    self._flip_due_s += max(self._half_period_s, -wait_s)
                    self._flip()

    def _flip(self) -> None:
        self._is_flash_lit = not self._is_flash_lit
        wanted = self._wanted()
        flipped = {element: wanted[element] for element in self._flashing(self._pattern)}
        try:
            self._switch(flipped, time.monotonic() + _FLIP_LIMIT_S)
        except DeviceError as error:
            self._problem = error  # the next show raises it
        self._modes = wanted

    def _raise_problem(self) -> None:
        problem, self._problem = self._problem, None
        if problem is not None:
            raise problem
