"""The wall clock: steps are seen and written down, and nobody who sets it removes a picture."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from station.clock import ClockWatch, SystemClock
from station.record import ClockBody, rfc3339

LIMIT_S = 72 * 3600.0


@dataclass
class FakeClock:
    """A clock that is set by hand; reading it takes no time."""

    wall: float = 1_800_000_000.0
    boot: float = 1000.0
    synchronized: bool | None = True

    def pass_s(self, seconds: float, slew: float = 0.0) -> None:
        self.boot += seconds
        self.wall += seconds * (1 + slew)

    def wall_s(self) -> float:
        return self.wall

    def boot_s(self) -> float:
        return self.boot

    def is_synchronized(self) -> bool | None:
        return self.synchronized

    @property
    def label(self) -> str:
        return rfc3339(datetime.fromtimestamp(self.wall, UTC))


def watch(
    clock: FakeClock, last: ClockBody | None = None, newest_at: str | None = None
) -> ClockWatch:
    return ClockWatch(clock, "s", LIMIT_S, last, newest_at)


def said(watched: ClockWatch) -> list[ClockBody]:
    rows = list(watched.look())
    watched.said()
    return rows


@given(
    moves=st.lists(
        st.tuples(
            st.floats(0.1, 1e5),
            st.floats(-5e-4, 5e-4),
            st.just(0.0) | st.floats(1, 1e7) | st.floats(-1e7, -1),
        ),
        max_size=20,
    )
)
def test_every_step_is_a_row_and_slewing_is_none(moves: list[tuple[float, float, float]]) -> None:
    clock = FakeClock()
    watched = watch(clock)
    assert [row.cause for row in said(watched)] == ["start"]
    ahead_s = 0.0
    for seconds, slew, step_s in moves:
        for _ in range(10):  # a time source slews while somebody looks
            clock.pass_s(min(seconds, 100.0) / 10, slew)
            rows = said(watched)
            assert rows == []
        clock.wall += step_s
        rows = said(watched)
        assert len(rows) == (1 if step_s else 0)
        if step_s:
            assert abs(rows[0].step_s - step_s) < 0.01
            ahead_s += step_s
        assert abs(watched.ahead_s - ahead_s) < 0.5
        assert not watched.doubt or ahead_s > LIMIT_S - 1


def test_a_clock_set_far_ahead_is_doubted_until_it_is_back_or_a_person_says_so() -> None:
    clock = FakeClock()
    watched = watch(clock)
    said(watched)
    clock.wall += LIMIT_S + 60
    (row,) = said(watched)
    assert (row.cause, round(row.step_s)) == ("step", round(LIMIT_S + 60))
    assert "set ahead by 72.0 h" in watched.doubt
    again = watch(clock, last=row, newest_at=row.written_at)
    assert again.doubt, "a restart forgets nothing"
    clock.wall -= LIMIT_S
    said(watched)
    assert not watched.doubt
    clock.wall += 10 * LIMIT_S
    said(watched)
    watched.accept("kim", "the battery was empty")
    (accepted,) = said(watched)
    assert (accepted.cause, accepted.who, watched.doubt) == ("accepted", "kim", "")
    assert not watch(clock, last=accepted, newest_at=accepted.written_at).doubt


def test_a_clock_before_the_newest_row_is_doubted_until_that_time_has_passed() -> None:
    clock = FakeClock()
    watched = watch(clock)
    said(watched)
    watched.labelled(clock.label)
    clock.wall -= 3600
    said(watched)
    assert "1.0 h before the newest row" in watched.doubt
    clock.pass_s(3601)
    assert not watched.doubt


def test_a_step_while_nobody_watched_is_seen_in_the_same_boot() -> None:
    clock = FakeClock()
    (row,) = said(watch(clock))
    clock.pass_s(86_400, slew=2e-4)
    assert said(watch(clock, row, clock.label))[0].step_s == 0.0
    clock.wall += 500.0
    assert abs(said(watch(clock, row, clock.label))[0].step_s - 500) < 20


def test_after_another_boot_a_long_absence_needs_a_time_source() -> None:
    clock = FakeClock()
    (row,) = said(watch(clock))
    before = row.model_copy(update={"boot_id": "another"})
    clock.wall += 2 * LIMIT_S
    assert not watch(clock, before, row.written_at).doubt
    for synchronized in (False, None):
        clock.synchronized = synchronized
        assert watch(clock, before, row.written_at).doubt
        clock_short = FakeClock(wall=clock.wall - LIMIT_S - 60, synchronized=synchronized)
        assert not watch(clock_short, before, row.written_at).doubt
    clock.wall = 1000.0
    assert "before the newest row" in watch(clock, before, row.written_at).doubt


def test_another_state_of_the_time_source_is_a_row() -> None:
    clock = FakeClock()
    watched = watch(clock)
    said(watched)
    clock.synchronized = False
    clock.pass_s(11)
    (row,) = said(watched)
    assert (row.cause, row.is_synchronized) == ("sync", False)
    clock.pass_s(11)
    assert said(watched) == []


def test_this_machine_says_how_its_clock_is() -> None:
    clock = SystemClock()
    assert clock.is_synchronized() in (True, False, None)
    assert clock.boot_s() > 0
    assert said(ClockWatch(clock, "s", LIMIT_S, None, None))[0].cause == "start"
