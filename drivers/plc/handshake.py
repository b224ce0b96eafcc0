"""The handshake with a PLC. Pure: times and events go in, what to say comes out.

The rules:

1. Everything but `error` is off while no lease of a station lives.
2. A result is valid until it is acknowledged, the next one comes, or the lease ends; one whose
   lease ended does not come back.
3. Before a result RESULT_VALID is off: for `LOW_S` since that was handed out, and until ACK is
   off; and an ACK counts only for a result that was handed out. So an ACK that was meant for one
   plate is never taken for the next. Handed out is what is on the wire, not what was to be.
4. OK and NG are two bits; both are off while RESULT_VALID is. Not NG never means OK.
5. Under an error no plate is OK: one that is shown is withdrawn, one that comes is undecided.
6. A result that ends otherwise than by its ACK is counted in `overruns`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from drivers.plc import NOBODY, PlcInputs, PlcOutputs

LOW_S = 0.05
"""A wire shows a level this long at least: a PLC's scan must see it."""


@dataclass(frozen=True, slots=True)
class StationWord:
    """What the station says of itself, for as long as its lease lives."""

    ready: bool
    busy: bool
    error: bool
    attention: bool
    expires_ns: int


@dataclass(frozen=True, slots=True)
class PlateWord:
    """A plate's durable verdict."""

    sequence: int
    is_pass: bool
    is_undecided: bool
    is_production: bool


class Handshake:
    """Used by one thread at a time. Times are CLOCK_MONOTONIC ns."""

    def __init__(self) -> None:
        self._word: StationWord | None = None
        self._shown: PlateWord | None = None
        """Valid now."""
        self._is_shown_seen = False
        """It was handed out."""
        self._next: PlateWord | None = None
        """Waits until RESULT_VALID was off."""
        self._low_since_ns: int | None = None
        """When it was handed out that RESULT_VALID is off; None: it may still be on, a
        predecessor's even."""
        self._ack = False
        self._last = 0
        self.heartbeat = 0
        self.overruns = 0
        self.late = 0

    def renew(self, word: StationWord, is_tick: bool, now_ns: int) -> None:
        """The station said how it is; `is_tick`: because a tick has travelled through it."""
        self._lapse(now_ns)
        self._word = word
        if word.error:
            self._withdraw()
        self.heartbeat = (self.heartbeat + is_tick) % 2**16

    def result(self, plate: PlateWord, now_ns: int) -> None:
        """A plate's record is durable."""
        self._lapse(now_ns)
        self._give_up()
        if self._word is None:
            self.overruns += 1
            return
        self._next = _doubted(plate) if self._word.error else plate
        self._advance(now_ns)

    def revoke(self) -> None:
        """The station is gone, or gave up."""
        self._word = None
        self._give_up()

    def take(self, inputs: PlcInputs, now_ns: int) -> None:
        """The PLC was heard."""
        self._lapse(now_ns)
        if inputs.ack and not self._ack:
            self._acknowledge()
        self._ack = inputs.ack
        self._advance(now_ns)

    def handed(self, said: PlcOutputs, now_ns: int) -> None:
        """The PLC has this, which `look` gave."""
        if self._shown is None:
            if not said.result_valid and self._low_since_ns is None:
                self._low_since_ns = now_ns
        elif said.result_valid and said.result == self._shown.sequence:
            self._is_shown_seen = True

    def look(self, now_ns: int) -> PlcOutputs:
        """What to say now."""
        self._lapse(now_ns)
        self._advance(now_ns)
        said = NOBODY
        if self._word is not None:
            said = _said(self._word, self._shown)
        return replace(
            said,
            heartbeat=self.heartbeat,
            result=self._last,
            overruns=self.overruns,
            late=self.late,
        )

    def _acknowledge(self) -> None:
        if self._is_shown_seen:
            self._drop_valid()
        elif self._shown is not None:  # nobody has seen it: the ACK is for another
            self._next = self._shown
            self._drop_valid()

    def _give_up(self) -> None:
        """What is on its way does not arrive any more."""
        self.overruns += (self._shown is not None) + (self._next is not None)
        self._next = None
        self._drop_valid()

    def _withdraw(self) -> None:
        if self._shown is not None and self._shown.is_pass:
            self.overruns += 1
            self._drop_valid()
        if self._next is not None:
            self._next = _doubted(self._next)

    def _lapse(self, now_ns: int) -> None:
        if self._word is not None and now_ns >= self._word.expires_ns:
            self.revoke()

    def _drop_valid(self) -> None:
        if self._shown is not None:
            self._shown, self._low_since_ns, self._is_shown_seen = None, None, False

    def _advance(self, now_ns: int) -> None:
        """Show the result that waits, once RESULT_VALID was off for all to see."""
        since_ns = self._low_since_ns
        was_low = since_ns is not None and now_ns - since_ns >= LOW_S * 1e9
        if self._next is not None and self._shown is None and was_low and not self._ack:
            self._shown, self._next, self._is_shown_seen = self._next, None, False
            self._last = self._shown.sequence


def _doubted(plate: PlateWord) -> PlateWord:
    if not plate.is_pass:
        return plate
    return replace(plate, is_pass=False, is_undecided=True)


def _said(word: StationWord, plate: PlateWord | None) -> PlcOutputs:
    said = PlcOutputs(word.ready, word.busy, error=word.error, attention=word.attention)
    if plate is None:
        return said
    return replace(
        said,
        result_valid=True,
        ok=plate.is_pass and plate.is_production,
        ng=not plate.is_pass,
        undecided=plate.is_undecided,
        not_production=not plate.is_production,
    )
