"""Who may command the outputs, and until when what they show lives. Pure: no clock, no device.

Every output that tells somebody "good" is a lease: a value with an owner (a connection) and an
absolute expiry that nobody but the lamp process checks. Times are CLOCK_MONOTONIC in ns, passed in.
`Claims` is common to all outputs: one holder, and command numbers that only grow.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from drivers.stacklight import LightState
from station.record import Provenance

MAX_LEASE_S = 2.0
"""A command whose expiry lies further ahead is a mistake and is refused."""
MAX_PASS_LEASE_S = 1.2
"""A pass lapses this long after its command at the latest, whatever was asked for."""
LAMP_TEST_S = 0.8
REWRITE_S = 1.0
"""FAULT is written again this often: a light that was off meanwhile shows it when it is back."""
DOUBT_REWRITE_S = 0.25
"""And this often while the light is not believed."""
BELIEVED_AFTER = 3
"""So many commands in a row must succeed until what failed is believed again."""

_MAX_NUMBER = 2**63


@dataclass(frozen=True, slots=True)
class Lease:
    """Leave to show something good, given to one connection, until an absolute time."""

    owner: int
    expires_ns: int

    def is_live(self, now_ns: int) -> bool:
        return now_ns < self.expires_ns

    def capped(self, now_ns: int, limit_s: float) -> Lease:
        """The same lease, ending `limit_s` from now at the latest."""
        return Lease(self.owner, min(self.expires_ns, now_ns + int(limit_s * 1e9)))


class Claims:
    """Which connection holds the outputs, and which command of each connection came last.

    A connection is a number that is never used again.
    """

    def __init__(self) -> None:
        self.holder: int | None = None
        """The station that owns the outputs until it disconnects."""
        self._newest: dict[int, int] = {}

    def refusal(self, number: int, lease: Lease, now_ns: int) -> str:
        """Why this command is not obeyed; empty if it is. Its number counts as seen either way."""
        newest = self._newest.get(lease.owner, -1)
        self._newest[lease.owner] = max(number, newest)
        if self.holder not in (None, lease.owner):
            return "another station holds the lamp"
        if number <= newest:
            return f"command {number} came after command {newest}"
        ahead_s = (lease.expires_ns - now_ns) / 1e9
        if ahead_s <= 0:
            return f"stale: expired {-ahead_s:.3f} s ago"
        if ahead_s > MAX_LEASE_S:
            return f"the lease ends {ahead_s:.1f} s ahead, at most {MAX_LEASE_S} s are allowed"
        return ""

    def claim(self, owner: int) -> None:
        """`owner`, whose command was not refused, is the holder from here on."""
        self.holder = owner

    def leave(self, owner: int) -> bool:
        """A connection ended; True if it was the holder's, whose leases end with it."""
        self._newest.pop(owner, None)
        if self.holder != owner:
            return False
        self.holder = None
        return True


@dataclass(frozen=True, slots=True)
class Show:
    """A command to show a state, of the right shape but not yet obeyed."""

    number: int
    state: LightState
    result_id: str
    provenance: Provenance | None
    """None: a person's show, which claims nothing."""
    expires_ns: int

    @property
    def meaning(self) -> tuple[LightState, str]:
        return self.state, self.result_id

    @classmethod
    def parse(cls, body: dict[str, Any]) -> Show:
        """Raises KeyError, TypeError, ValueError."""
        provenance = body["provenance"]
        return cls(
            whole_number(body["n"]),
            LightState(body["state"]),
            _text(body["result_id"]),
            None if provenance is None else Provenance(provenance),
            whole_number(body["expires_ns"]),
        )


def whole_number(value: object) -> int:
    """`value` if it is an integer from 0 on that fits 63 bits; nothing is rounded or converted.

    Raises TypeError, ValueError.
    """
    if type(value) is not int:
        raise TypeError(f"no whole number: {value!r:.40}")
    if not 0 <= value < _MAX_NUMBER:
        raise ValueError(f"out of range: {value!r:.40}")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"no text: {value!r:.40}")
    return value


@dataclass(frozen=True, slots=True)
class Write:
    """What the device is to be told now."""

    state: LightState
    result_id: str = ""
    lease: Lease | None = None
    """None for FAULT, which does not lapse."""

    @property
    def meaning(self) -> tuple[LightState, str]:
        return self.state, self.result_id


class Confirmation(Enum):
    """What is known of a device that was told something."""

    READ_BACK = auto()
    """It was read back, and shows what it was told."""
    NONE_POSSIBLE = auto()
    """It cannot be read back; the bytes left."""
    CONTRADICTED = auto()
    """It was read back, and could not confirm."""


class Belief:
    """Whether somebody who was told something may be taken to have done it."""

    def __init__(self) -> None:
        self.doubt = ""
        """Why not; empty if it may."""
        self._successes = 0

    def failed(self, why: str) -> None:
        self.doubt, self._successes = why, 0

    def worked(self) -> None:
        self._successes += 1
        if self._successes >= BELIEVED_AFTER:
            self.doubt = ""


FAULT = Write(LightState.FAULT)


@dataclass(frozen=True, slots=True)
class Shown:
    """What the device took last."""

    write: Write
    is_confirmed: bool
    """It was read back."""
    since_ns: int


class LightLease:
    """Decides what the light is told. The caller writes it and says what came of it: `took`, or
    `lost` where the device may show anything."""

    def __init__(self, claims: Claims) -> None:
        self._claims = claims
        self.shown: Shown | None = None
        """What the device is believed to show; None while that is unknown."""
        self.tester: int | None = None
        """Who waits for the end of a lamp test."""
        self.belief = Belief()
        self._passed: tuple[LightState, str] | None = None
        """The last pass that the device took."""
        self._tried_ns = 0
        """When the device was told something last, whether it took it or not."""

    def show(self, owner: int, show: Show, now_ns: int, newest: Show | None) -> Write | str:
        """What to write for this command, or why it is not obeyed. `newest`: the last command that
        this connection has sent so far, as far as that is known; None if it is closed."""
        lease = Lease(owner, show.expires_ns)
        reason = self._claims.refusal(show.number, lease, now_ns) or _misuse(show)
        if show.state.is_pass and not reason:
            reason = self._pass_refusal(show, newest)
        if reason:
            return reason
        if show.provenance is not None:
            self._claims.claim(owner)
        if show.state.is_pass:
            lease = lease.capped(now_ns, MAX_PASS_LEASE_S)
        return Write(show.state, show.result_id, lease)

    def _pass_refusal(self, show: Show, newest: Show | None) -> str:
        """A pass that is over before it begins is not shown for a moment either, and one that
        ended does not come back: a station that stood still may not know that it did."""
        if newest is None or newest.meaning != show.meaning:
            return "the pass was over when its command was read"
        is_shown = self.shown is not None and self.shown.write.meaning == show.meaning
        if show.result_id and show.meaning == self._passed and not is_shown:
            return f"the pass of {show.result_id} was interrupted; it does not come back"
        doubt = self.belief.doubt
        return f"the light is not believed: {doubt}" if doubt else ""

    def test(self, owner: int, now_ns: int) -> Write | str:
        """What to write for a lamp test, or why there is none now: a station that holds the lamp
        tests it itself."""
        if self._claims.holder not in (None, owner):
            return "a station holds the lamp"
        if self.tester is not None:
            return "another lamp test runs"
        lease = Lease(owner, now_ns + int(LAMP_TEST_S * 1e9))
        return Write(LightState.LAMP_TEST, lease=lease)

    def leave(self, owner: int) -> Write | None:
        """A connection ended: what to write if it was the holder's."""
        if self.tester == owner:
            self.tester = None
        return FAULT if self._claims.leave(owner) else None

    def due(self, now_ns: int) -> Write | None:
        """What to write because nobody renewed what is shown, or because FAULT has grown old."""
        lease = self.shown.write.lease if self.shown else None
        if lease is not None:
            return None if lease.is_live(now_ns) else FAULT
        pause_s = DOUBT_REWRITE_S if self.belief.doubt else REWRITE_S
        return FAULT if now_ns - self._tried_ns >= pause_s * 1e9 else None

    def next_due_ns(self) -> int | None:
        """When the lease of what is shown ends; None where there is none."""
        lease = self.shown.write.lease if self.shown else None
        return None if lease is None else lease.expires_ns

    def took(self, write: Write, confirmation: Confirmation, now_ns: int) -> None:
        """The device was told `write`, and this is what is known of it."""
        self._tried_ns = now_ns
        if confirmation is Confirmation.CONTRADICTED:
            self.lost(f"it did not show {write.state} when it was read back", now_ns)
            return
        self.shown = Shown(write, confirmation is Confirmation.READ_BACK, now_ns)
        if write.state.is_pass:
            self._passed = write.meaning
        self.belief.worked()

    def lost(self, why: str, now_ns: int) -> None:
        """The device is gone or did not do what it was told: it may show anything."""
        self._tried_ns = now_ns
        self.shown = None
        self.belief.failed(why)


def _misuse(show: Show) -> str:
    """Why no connection may ever ask for this; empty if one may."""
    if show.state is LightState.LAMP_TEST:
        return "all elements at once is for the lamp test"
    if show.state is LightState.PASS and show.provenance is not Provenance.PRODUCTION:
        return "pass is for production plates only"
    return ""
