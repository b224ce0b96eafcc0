"""Growing waits after wrong secrets, for an account and for an address. Pure: times come in.

Nobody is locked out for good by somebody else's guesses: a wait ends by itself, a refused try does
not lengthen it, and where a person signed in before, guesses from elsewhere do not count against
that person (OWASP, Slow Down Online Guessing Attacks with Device Cookies).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

FORGET_S: Final = 86_400.0
"""Without another failure, after its wait."""
MOST_KEYS: Final = 10_000


@dataclass(frozen=True, slots=True)
class Limit:
    """How many failures are free, and how long a wait becomes at most."""

    name: str
    free: int
    longest_s: float
    pardon_s: float | None = None
    """One failure is forgotten each so long; None: all of them, by a success."""

    def wait_s(self, failures: int) -> float:
        """After so many failures in a row: 1, 2, 4, … seconds once the free ones are used."""
        if failures < self.free:
            return 0.0
        return min(self.longest_s, 2.0 ** min(failures - self.free, 40))


PASSWORD: Final = Limit("password", free=4, longest_s=900.0)
PIN: Final = Limit("pin", free=3, longest_s=3600.0)
"""A million PINs at one an hour: guessing one takes years."""
ADDRESS: Final = Limit("address", free=10, longest_s=300.0, pardon_s=600.0)
"""Of everybody's tries there: a success in between says nothing of those at other names."""

_Key = tuple[str, str, str]


@dataclass(slots=True)
class _Failures:
    count: float = 0
    until_s: float = 0.0
    counted_s: float = 0.0

    def pardon(self, limit: Limit, now_s: float) -> None:
        """What time has made good."""
        if limit.pardon_s is not None:
            self.count = max(0.0, self.count - (now_s - self.counted_s) / limit.pardon_s)
        self.counted_s = now_s


@dataclass(slots=True)
class Throttle:
    """Bounded, whatever is tried; forgotten with the process. For one thread at a time. `device`: a
    browser in which this person signed in before; empty: any other."""

    failures: dict[_Key, _Failures] = field(default_factory=dict)

    def wait_s(
        self, account: str, address: str, limit: Limit, now_s: float, device: str = ""
    ) -> float:
        """How long a try has to wait; 0 if it may be made."""
        keys = _keys(account, address, limit, device)
        waits = [self.failures[key].until_s - now_s for key in keys if key in self.failures]
        return max([0.0, *waits])

    def begin(
        self, account: str, address: str, limit: Limit, now_s: float, device: str = ""
    ) -> float:
        """A try begins, unless it has to wait so long. It counts as failed until it succeeds: many
        at once are no more tries than one after the other."""
        wait_s = self.wait_s(account, address, limit, now_s, device)
        if wait_s == 0.0:
            for key, its_limit in _keys(account, address, limit, device).items():
                self._count(key, its_limit, now_s)
        return wait_s

    def _count(self, key: _Key, limit: Limit, now_s: float) -> None:
        one = self.failures.get(key)
        if one is None or now_s > one.until_s + FORGET_S:
            self._make_room(now_s)
            one = self.failures[key] = _Failures(counted_s=now_s)
        one.pardon(limit, now_s)
        one.count += 1
        one.until_s = now_s + limit.wait_s(int(one.count))

    def withdrawn(
        self, account: str, address: str, limit: Limit, now_s: float, device: str = ""
    ) -> None:
        """The try was not made after all."""
        for key in _keys(account, address, limit, device):
            if key in self.failures:
                self.failures[key].count -= 1
                self.failures[key].until_s = now_s

    def succeeded(
        self, account: str, address: str, limit: Limit, now_s: float, device: str = ""
    ) -> None:
        """What failed for this account from here is forgotten; of the address this try alone, or
        who has an account would have as many guesses at others' as they like."""
        self.withdrawn(account, address, limit, now_s, device)
        self.failures.pop((limit.name, account, device), None)

    def _make_room(self, now_s: float) -> None:
        """What is forgotten goes; where that is nothing, what has the fewest failures."""
        if len(self.failures) < MOST_KEYS:
            return
        old = [key for key, one in self.failures.items() if now_s > one.until_s + FORGET_S]
        fewest = sorted(self.failures, key=lambda key: self.failures[key].count)
        for key in old or fewest[: MOST_KEYS // 10]:
            del self.failures[key]


def _keys(account: str, address: str, limit: Limit, device: str) -> dict[_Key, Limit]:
    """What a try counts for. At a device of the person's own the address says nothing more: it may
    be a whole plant's."""
    own = {(limit.name, account, device): limit}
    return own if device else {**own, (ADDRESS.name, address, ""): ADDRESS}
