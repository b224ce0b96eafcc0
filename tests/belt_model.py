"""A belt whose true place is known at every moment, and the frames that a line-scan camera makes of
it: one for each frame height of belt that it has not seen before, as an encoder with PositionUp
triggers them."""

from __future__ import annotations

import bisect
import random
from dataclasses import dataclass


@dataclass(frozen=True)
class Leg:
    """Some time at one speed; scan lines a second, negative runs backwards."""

    seconds: float
    speed: float


@dataclass(frozen=True)
class SeenFrame:
    """Scan lines of travel at its end, and when that was (seconds)."""

    end: int
    at_s: float


class Belt:
    """Place by time, in scan lines and seconds from the beginning."""

    def __init__(self, legs: list[Leg]) -> None:
        self.legs = legs
        self._starts = [0.0]
        self._places = [0.0]
        for leg in legs:
            self._starts.append(self._starts[-1] + leg.seconds)
            self._places.append(self._places[-1] + leg.seconds * leg.speed)

    @property
    def seconds(self) -> float:
        return self._starts[-1]

    def place(self, at_s: float) -> float:
        number = self._leg(at_s)
        return self._places[number] + (at_s - self._starts[number]) * self.legs[number].speed

    def top_speed(self, from_s: float, to_s: float) -> float:
        """The highest in this time."""
        first, last = self._leg(from_s), self._leg(to_s)
        return max(abs(leg.speed) for leg in self.legs[first : last + 1])

    def frames(self, height: int) -> list[SeenFrame]:
        """Of all belt that was new when it passed."""
        seen, end = [], height
        for number, leg in enumerate(self.legs):
            while leg.speed > 0 and end <= self._places[number + 1]:
                at_s = self._starts[number] + (end - self._places[number]) / leg.speed
                seen.append(SeenFrame(end, at_s))
                end += height
        return seen

    def _leg(self, at_s: float) -> int:
        return max(0, min(bisect.bisect_right(self._starts, at_s) - 1, len(self.legs) - 1))


def restless_belt(rng: random.Random, speed: float, seconds: float, jitter: float) -> Belt:
    """About `speed`, wandering by `jitter` (a share) every 50 ms; it stops now and then, for a
    moment or for long, sometimes with some way back, and begins again in steps."""
    legs: list[Leg] = []
    total = 0.0
    while total < seconds:
        run = [
            Leg(0.05, speed * (1 + rng.uniform(-jitter, jitter)))
            for _ in range(rng.randrange(10, 60))
        ]
        legs += run
        if rng.random() < 0.7:
            legs.append(Leg(rng.choice([0.03, 0.3, 1.2]), 0.0))
        if rng.random() < 0.4:
            legs.append(Leg(rng.uniform(0.05, 0.3), -speed * rng.uniform(0.2, 1.0)))
            legs.append(Leg(rng.uniform(0.0, 0.5), 0.0))
        legs += [Leg(0.05, speed * share) for share in (0.3, 0.7)]
        total = sum(leg.seconds for leg in legs)
    return Belt(legs)
