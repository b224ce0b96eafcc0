"""People of the page: what a password is, what is kept, who has to wait, when a session ends."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import random
import re
import select
import shutil
import signal
import sqlite3
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from station_rig import Rig, start_vqi, wait_until
from typer.testing import CliRunner

from station.cli import user
from station.cli.user import app
from station.config import Configuration, load_configuration
from station.ipc import Listener
from station.journal_client import JournalClient, journal_path
from station.log_reader import Reader
from station.passwords import (
    MAX_DIGITS,
    MIN_DIGITS,
    Hasher,
    TooBusy,
    Weakness,
    WeakSecret,
    check_password,
    check_pin,
    is_pin,
)
from station.people import DATABASE, MAX_PIN_FAILURES, PeopleError, PeopleStore
from station.people_log import Teller, tell_log
from station.roles import Role
from station.throttle import (
    ADDRESS,
    FORGET_S,
    MOST_KEYS,
    PASSWORD,
    PIN,
    Limit,
    Throttle,
)
from station.web.sessions import MOST_EACH, Limits, Sessions

GOOD = "rot blau tisch"
BETTER = "sieben gelbe Enten"
SMALL = Hasher(memory_kib=64)
"""Of the same kind, and quick: most tests are not about how long a hash takes."""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[PeopleStore]:
    with PeopleStore(tmp_path / "web", SMALL) as store:
        store.add("ada", "Ada Byron", Role.ADMIN, GOOD, "root", must_change=False)
        yield store


# --- what is a password, and what a PIN -----------------------------------------------------------


@pytest.mark.parametrize(
    ("password", "weakness"),
    [
        ("elfzeichen!", Weakness.SHORT),
        ("", Weakness.SHORT),
        ("lang genug " * 12, Weakness.LONG),
        ("aaaaaaaaaaaa", Weakness.REPEATED),
        ("abcdabcdabcd", Weakness.REPEATED),
        ("123456789012", Weakness.RUN),
        ("poiuytrewq1234", Weakness.RUN),
        ("abcdefghijkl", Weakness.RUN),
        ("Passw0rd!2026", Weakness.COMMON),
        ("p@ssw0rd2024!!", Weakness.COMMON),
        ("WelcomeWelcome1", Weakness.COMMON),
        ("1q2w3e4r5t6y", Weakness.COMMON),
        ("Ｐａｓｓｗｏｒｄ２０２６", Weakness.COMMON),
        ("AdaByron12345", Weakness.OWN_NAME),
        ("byron, ada 1815", Weakness.OWN_NAME),
    ],
)
def test_what_is_tried_first_is_no_password(password: str, weakness: Weakness) -> None:
    with pytest.raises(WeakSecret) as caught:
        check_password(password, "ada", "Ada Byron")
    assert caught.value.weakness is weakness


@pytest.mark.parametrize(
    "password",
    [
        GOOD,
        BETTER,
        "zwölf Zeichen",
        "tigers eat lunch",
        "这是一个十二个字的口令短语",
        "4Q!x;9zu,Lw2",
    ],
)
def test_anything_else_of_twelve_characters_is_one(password: str) -> None:
    check_password(password, "ada", "Ada Byron")


@settings(max_examples=40)
@given(st.text(st.characters(codec="utf-8"), min_size=0, max_size=40))
def test_any_text_is_a_password_or_is_refused_for_a_reason(text: str) -> None:
    with contextlib.suppress(WeakSecret):
        check_password(text, "ada")
        assert not is_pin(text), "a PIN is never a password"


@pytest.mark.parametrize(
    "pin",
    [
        "123456",
        "654321",
        "890123",
        "000000",
        "121212",
        "123123",
        "112233",
        "100001",
        "135791",
        "520131",
        "159753",
        "111112",
    ],
)
def test_a_pin_that_is_tried_first_is_none(pin: str) -> None:
    with pytest.raises(WeakSecret) as caught:
        check_pin(pin)
    assert caught.value.weakness is Weakness.TRIVIAL


@pytest.mark.parametrize(
    "pin", ["", "12345", "1" * 12, "48a920", "４８３９２０", "48 392", "-48392"]
)
def test_a_pin_is_six_to_eleven_digits(pin: str) -> None:
    with pytest.raises(WeakSecret) as caught:
        check_pin(pin)
    assert caught.value.weakness is Weakness.NO_DIGITS


def test_few_pins_are_refused_as_trivial() -> None:
    """A rule that refuses much helps who guesses."""
    drawn = random.Random(1)
    refused = 0
    for _ in range(5000):
        try:
            check_pin(f"{drawn.randrange(10**6):06}")
        except WeakSecret:
            refused += 1
    assert 0 < refused < 100


@settings(max_examples=50)
@given(st.integers(MIN_DIGITS, MAX_DIGITS).flatmap(lambda n: st.from_regex(rf"[0-9]{{{n}}}\Z")))
def test_a_pin_that_is_taken_has_three_digits_that_differ(pin: str) -> None:
    with contextlib.suppress(WeakSecret):
        check_pin(pin)
        assert len(set(pin)) >= 3
        assert pin != pin[::-1]


# --- what is kept ---------------------------------------------------------------------------------


def test_the_file_is_its_owners_alone_and_says_no_secret(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with PeopleStore(tmp_path / "web", SMALL) as store:
            store.add("ada", "Ada Byron", Role.ADMIN, GOOD, "root")
            store.set_pin("ada", "483920")
            store.set_badge("ada", "B-0042-7731")
    finally:
        os.umask(before)
    files = [*(tmp_path / "web").iterdir()]
    assert [stat.S_IMODE(file.stat().st_mode) for file in files] == [0o600]
    assert stat.S_IMODE((tmp_path / "web").stat().st_mode) == 0o700
    data = files[0].read_bytes()
    assert b"$argon2id$" in data
    for secret in (GOOD, "483920", "B-0042-7731"):
        assert secret.encode() not in data


def test_a_link_in_its_place_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / DATABASE).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PeopleError, match="cannot be used"):
        PeopleStore(tmp_path / "web", SMALL)
    assert not (tmp_path / "elsewhere").exists()


def test_it_is_the_password_of_one_person(store: PeopleStore) -> None:
    store.add("kim", "Kim Min", Role.VIEWER, BETTER, "root")
    assert store.by_password("ada", GOOD)
    assert store.by_password(" ADA ", GOOD), "one spelling of a name"
    for name, password in (("ada", BETTER), ("kim", GOOD), ("nobody", GOOD), ("ada", "")):
        assert not store.by_password(name, password)


def test_however_it_was_typed_a_password_is_the_same(store: PeopleStore) -> None:
    store.change_password("ada", "Prüfer auf Schicht")
    assert store.by_password("ada", "Pru\u0308fer auf Schicht")


def test_a_pin_and_a_badge_find_their_person(store: PeopleStore) -> None:
    store.add("kim", "Kim Min", Role.REVIEWER, BETTER, "root")
    store.set_pin("kim", "483920")
    store.set_badge("kim", "B-0042")
    found = store.by_badge("B-0042")
    assert found is not None
    assert found.name == "kim"
    assert store.by_badge("B-0043") is None
    assert store.by_pin("kim", "483920")
    assert not store.by_pin("kim", "483921")
    assert not store.by_pin("ada", "483920"), "who has none has none"
    assert store.by_secret("kim", "483920")
    assert store.by_secret("kim", BETTER)
    with pytest.raises(PeopleError, match="another person's"):
        store.set_badge("ada", "B-0042")
    with pytest.raises(WeakSecret):
        store.set_badge("ada", "B\x07")


def test_a_pin_that_was_wrong_a_hundred_times_in_a_row_is_void(store: PeopleStore) -> None:
    store.set_pin("ada", "483920")
    epoch = store.accounts()[0].epoch

    def guess(tries: int) -> None:
        """Through restarts of the page: the count is kept."""
        with PeopleStore(store.directory, SMALL) as page:
            for _ in range(tries):
                assert not page.by_pin("ada", "739105")

    guess(MAX_PIN_FAILURES - 1)
    assert store.by_pin("ada", "483920"), "the right one begins anew"
    for _ in range(2):
        guess(MAX_PIN_FAILURES // 2)
    assert not store.by_pin("ada", "483920")
    void = store.accounts()[0]
    assert (void.has_pin, void.epoch) == (False, epoch), "sessions go on: only the PIN is guessed"
    act = store.pending_acts()[-1]
    assert (act.what, act.who, act.detail["name"]) == ("user PIN removed", "station", "ada")
    store.set_pin("ada", "483920")
    guess(1)
    assert store.by_pin("ada", "483920")


def test_a_reset_voids_the_pin_and_asks_for_a_change(store: PeopleStore) -> None:
    store.set_pin("ada", "483920")
    before = store.find("ada")
    store.reset("ada", BETTER, "root")
    after = store.find("ada")
    assert before is not None
    assert after is not None
    assert after.must_change
    assert not after.has_pin
    assert after.epoch > before.epoch
    assert not store.by_password("ada", GOOD)
    store.change_password("ada", "ganz anders gewählt")
    changed = store.find("ada")
    assert changed is not None
    assert not changed.must_change


def test_the_old_password_is_no_new_one(store: PeopleStore) -> None:
    with pytest.raises(PeopleError, match="old one"):
        store.change_password("ada", GOOD)


@pytest.mark.parametrize("name", ["", "Jörg", "a\tb", " ada", "x" * 65, "root", "Station"])
def test_what_is_no_name_is_refused(store: PeopleStore, name: str) -> None:
    with pytest.raises(PeopleError):
        store.add(name, "Somebody", Role.VIEWER, GOOD, "root")


def test_a_name_is_one_persons_for_ever(store: PeopleStore) -> None:
    for name in ("ada", "ADA", "Ada"):
        with pytest.raises(PeopleError, match="is somebody already"):
            store.add(name, "Another", Role.VIEWER, BETTER, "root")
    store.set_badge("ada", "B-0042")
    store.remove("ada", "root")
    assert store.find("ada") is None
    assert not store.by_password("ada", GOOD)
    assert store.by_badge("B-0042") is None
    assert [account.name for account in store.accounts()] == ["ada"], "the name stays known"
    assert not store.has_people()
    with pytest.raises(PeopleError, match="was somebody already"):
        store.add("Ada", "Another", Role.VIEWER, BETTER, "root")
    with pytest.raises(PeopleError, match="no person"):
        store.reset("ada", BETTER, "root")


def test_a_hash_of_yesterdays_parameters_is_made_anew(store: PeopleStore) -> None:
    def kept() -> str:
        with contextlib.closing(sqlite3.connect(store.path)) as file:
            return str(file.execute("SELECT password FROM person").fetchone()[0])

    yesterday = kept()
    with PeopleStore(store.directory, Hasher(memory_kib=128)) as today:
        assert not today.by_password("ada", BETTER)
        assert kept() == yesterday, "only who knows it makes it anew"
        assert today.by_password("ada", GOOD)
        assert kept() != yesterday
        assert "m=128," in kept()
        assert today.by_password("ada", GOOD)


def test_two_processes_see_each_others_changes_at_once(store: PeopleStore) -> None:
    with PeopleStore(store.directory, SMALL) as other:
        other.set_locked("ada", True, "root")
        found = store.find("ada")
        assert found is not None
        assert found.is_locked


def test_a_file_of_a_newer_program_is_left_alone(store: PeopleStore) -> None:
    with contextlib.closing(sqlite3.connect(store.path)) as file:
        file.execute("PRAGMA user_version = 99")
    with pytest.raises(PeopleError, match="newer program"):
        PeopleStore(store.directory, SMALL)


def test_a_flood_of_sign_ins_takes_turns_and_ends() -> None:
    hasher, answers = Hasher(), list[object]()
    kept = hasher.hash(GOOD)
    at_once = threading.Barrier(40)

    def one() -> None:
        at_once.wait()
        try:
            answers.append(hasher.is_right(kept, GOOD))
        except TooBusy as error:
            answers.append(error)

    threads = [threading.Thread(target=one) for _ in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    refused = [answer for answer in answers if isinstance(answer, TooBusy)]
    assert len(answers) == 40
    assert refused
    assert len(refused) < 40
    assert all(answer is True for answer in answers if not isinstance(answer, TooBusy))
    assert hasher.is_right(kept, GOOD), "and then it is as before"


class Living(RuleBasedStateMachine):
    """A store and what it must say after anything that people and administrators do."""

    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.store = PeopleStore(Path(self.folder.name) / "web", SMALL)
        self.there: dict[str, dict[str, Any]] = {}
        self.gone: set[str] = set()
        self.acts = 0

    def teardown(self) -> None:
        self.store.close()
        self.folder.cleanup()

    names = st.sampled_from(["ada", "bob", "cy"])

    @rule(name=names, role=st.sampled_from(Role))
    def added(self, name: str, role: Role) -> None:
        if name in self.there or name in self.gone:
            with pytest.raises(PeopleError):
                self.store.add(name.upper(), "X", role, GOOD, "root")
            return
        self.store.add(name, "X", role, GOOD, "root")
        self.there[name] = {"role": role, "password": GOOD, "pin": "", "is_locked": False}
        self.acts += 1

    @rule(name=names, password=st.sampled_from([GOOD, BETTER]))
    def reset(self, name: str, password: str) -> None:
        self._changed(name, self.store.reset, password, "root", password=password, pin="")

    @rule(name=names, pin=st.sampled_from(["", "483920", "739105"]))
    def pin_set(self, name: str, pin: str) -> None:
        self._changed(name, self.store.set_pin, pin, pin=pin)

    @rule(name=names, role=st.sampled_from(Role))
    def role_given(self, name: str, role: Role) -> None:
        is_new = name in self.there and self.there[name]["role"] != role
        self._changed(name, self.store.set_role, role, "root", acts=int(is_new), role=role)

    @rule(name=names, is_locked=st.booleans())
    def locked(self, name: str, is_locked: bool) -> None:
        is_new = name in self.there and self.there[name]["is_locked"] != is_locked
        change = self.store.set_locked
        self._changed(name, change, is_locked, "root", acts=int(is_new), is_locked=is_locked)

    @rule(name=names)
    def removed(self, name: str) -> None:
        self._changed(name, self.store.remove, "root")
        if self.there.pop(name, None):
            self.gone.add(name)

    def _changed(
        self, name: str, change: Callable[..., None], *given: object, acts: int = 1, **after: object
    ) -> None:
        if name not in self.there:
            with pytest.raises(PeopleError):
                change(name, *given)
            return
        change(name, *given)
        self.there[name] |= after
        self.acts += acts

    @invariant()
    def it_says_what_was_done(self) -> None:
        accounts = {one.name: one for one in self.store.accounts()}
        assert set(accounts) == self.there.keys() | self.gone
        assert {name for name, one in accounts.items() if one.removed_at} == self.gone
        for name, known in self.there.items():
            assert (accounts[name].role, accounts[name].is_locked, accounts[name].has_pin) == (
                known["role"],
                known["is_locked"],
                bool(known["pin"]),
            )
            for password in (GOOD, BETTER):
                is_it = bool(self.store.by_password(name, password))
                assert is_it == (known["password"] == password)
            pin = known["pin"] or "483920"
            assert bool(self.store.by_pin(name, pin)) == bool(known["pin"])
        assert len(self.store.pending_acts()) == self.acts


Living.TestCase.settings = settings(max_examples=12, stateful_step_count=12, deadline=None)
TestLiving = Living.TestCase


def test_a_name_that_nobody_has_takes_as_long(tmp_path: Path) -> None:
    """By the time of the processor, which the machine's other work is no part of; without a look at
    a hash it would be a hundredth."""
    with PeopleStore(tmp_path / "web", Hasher()) as store:
        store.add("ada", "Ada Byron", Role.VIEWER, GOOD, "root")
        tries: dict[str, Callable[[], object]] = {
            "wrong": lambda: store.by_password("ada", BETTER),
            "nobody": lambda: store.by_password("bob", BETTER),
            "no PIN": lambda: store.by_pin("ada", "739105"),
            "no badge": lambda: store.by_badge("B-0042"),
        }
        took = {what: min(_cpu_s(one) for _ in range(4)) for what, one in tries.items()}
    assert max(took.values()) < 3 * min(took.values()), took


def _cpu_s(act: Callable[[], object]) -> float:
    before = time.thread_time()
    act()
    return time.thread_time() - before


# --- killed while it writes -----------------------------------------------------------------------


def _change_without_end(directory: Path, out: int) -> None:
    """Add and lock people, and say so after each is done."""
    with PeopleStore(directory, SMALL) as store:
        for number in range(10_000):
            store.add(f"p{number}", "Somebody", Role.VIEWER, GOOD, "root")
            os.write(out, f"{number}\n".encode())
            store.set_locked(f"p{number}", True, "root")


def _killed_after(directory: Path, pause_s: float) -> int:
    """How many changes a process said it had made before it was killed."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            _change_without_end(directory, writing)
        os._exit(1)
    os.close(writing)
    select.select([reading], [], [], 30.0)
    time.sleep(pause_s)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with open(reading, "rb") as said:  # noqa: PTH123
        return len(said.read().splitlines())


def _see_that_nothing_is_lost(directory: Path, said: int) -> None:
    with PeopleStore(directory, SMALL) as store:
        there, acts = store.accounts(), store.pending_acts()
        assert said <= len(there) <= said + 1
        assert len([act for act in acts if act.what == "user added"]) == len(there)
        locked = [account for account in there if account.is_locked]
        assert len([act for act in acts if act.what == "user locked"]) == len(locked)
        assert len(there) - len(locked) <= 1
    with contextlib.closing(sqlite3.connect(directory / DATABASE)) as file:
        assert file.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert stat.S_IMODE((directory / DATABASE).stat().st_mode) == 0o600


def test_killed_at_any_moment_it_has_what_it_said_and_every_change_its_act(tmp_path: Path) -> None:
    drawn = random.Random(3)
    for number in range(8):
        directory = tmp_path / str(number)
        _see_that_nothing_is_lost(directory, _killed_after(directory, drawn.uniform(0.0, 0.03)))


@pytest.mark.long
def test_killed_a_hundred_times(tmp_path: Path) -> None:
    drawn = random.Random(4)
    for number in range(100):
        directory = tmp_path / str(number)
        _see_that_nothing_is_lost(directory, _killed_after(directory, drawn.uniform(0.0, 0.05)))


# --- who has to wait ------------------------------------------------------------------------------


def test_waits_grow_to_their_limit() -> None:
    throttle, now_s, waits = Throttle(), 0.0, []
    for _ in range(20):
        assert throttle.begin("ada", "10.0.0.1", PASSWORD, now_s) == 0.0
        waits.append(throttle.wait_s("ada", "10.0.0.1", PASSWORD, now_s))
        now_s += waits[-1]
    assert waits[:6] == [0.0, 0.0, 0.0, 1.0, 2.0, 4.0]
    assert waits[-1] == PASSWORD.longest_s
    assert waits == sorted(waits)


def test_many_at_once_are_no_more_tries() -> None:
    throttle = Throttle()
    admitted = [throttle.begin("ada", "10.0.0.1", PASSWORD, 0.0) == 0.0 for _ in range(50)]
    assert sum(admitted) == PASSWORD.free


def test_guesses_from_elsewhere_do_not_keep_a_person_out() -> None:
    throttle = Throttle()
    for number in range(1000):
        throttle.begin("ada", f"10.0.1.{number % 2}", PASSWORD, float(number))
    for address in ("10.0.0.9", "10.0.1.1"):
        assert throttle.wait_s("ada", address, PASSWORD, 1000.0) > 0.0
        assert throttle.wait_s("ada", address, PASSWORD, 1000.0, "own device") == 0.0


def test_who_signs_in_in_between_has_no_more_guesses_at_others() -> None:
    """One machine, 300 names, and a colleague's own success after every ninth try."""
    throttle, now_s, tries = Throttle(), 0.0, 0
    while now_s < 86_400.0:
        name = "me" if tries % 9 == 8 else f"other {tries % 300}"
        wait_s = throttle.begin(name, "10.0.0.1", PIN, now_s)
        if wait_s == 0.0:
            tries += 1
            if name == "me":
                throttle.succeeded(name, "10.0.0.1", PIN, now_s)
        now_s += max(wait_s, 1.0)
    assert tries * 8 / 9 < 86_400 / ADDRESS.longest_s + 50


def test_a_few_slips_a_day_hold_up_no_shared_screen() -> None:
    throttle, place = Throttle(), "10.0.0.1"
    for slip in range(200):
        now_s = 1200.0 * slip
        assert throttle.begin(f"n{slip % 20}", place, PIN, now_s) == 0.0
        assert throttle.wait_s("anybody", place, PIN, now_s) == 0.0
        throttle.begin(f"n{slip % 20}", place, PIN, now_s + 5.0)
        throttle.succeeded(f"n{slip % 20}", place, PIN, now_s + 5.0)


def test_names_without_end_take_no_memory_without_end() -> None:
    throttle = Throttle()
    for _ in range(9):
        throttle.begin("ada", "10.0.0.1", PASSWORD, 0.0)
    for number in range(2 * MOST_KEYS):
        throttle.begin(
            f"n{number}", f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", PIN, 0.5
        )
    assert len(throttle.failures) <= MOST_KEYS
    assert throttle.wait_s("ada", "10.0.0.1", PASSWORD, 0.5) > 0.0, "who fails most is kept"


class Guessing(RuleBasedStateMachine):
    """People and strangers at three machines; what the waits promise, after any of their steps."""

    @initialize(limit=st.sampled_from([PASSWORD, PIN]))
    def begin(self, limit: Limit) -> None:
        self.throttle, self.now_s, self.limit = Throttle(), 0.0, limit
        self.known: dict[str, set[str]] = {"ada": set(), "bob": set()}
        self.guesses: dict[tuple[str, str], list[float]] = {}

    who = st.sampled_from(["ada", "bob"])
    place = st.sampled_from(["10.0.0.1", "10.0.0.2", "10.0.0.3"])

    @rule(pause_s=st.floats(0.0, 5000.0))
    def time_passes(self, pause_s: float) -> None:
        self.now_s += pause_s

    @rule(account=who, place=place)
    def a_wrong_secret(self, account: str, place: str) -> None:
        before = self._waits()
        device = self._device(account, place)
        wait_s = self.throttle.begin(account, place, self.limit, self.now_s, device)
        if wait_s == 0.0:
            self.guesses.setdefault((account, place), []).append(self.now_s)
            return
        assert self._waits() == before, "who is refused lengthens no wait"

    @rule(account=who, place=place)
    def the_right_secret(self, account: str, place: str) -> None:
        device = self._device(account, place)
        if self.throttle.begin(account, place, self.limit, self.now_s, device) == 0.0:
            self.throttle.succeeded(account, place, self.limit, self.now_s, device)
            self.known[account].add(place)
            for one in [key for key in self.guesses if self._shares(key, account, place)]:
                del self.guesses[one]

    @rule(account=who, place=place)
    def too_busy(self, account: str, place: str) -> None:
        device = self._device(account, place)
        if self.throttle.begin(account, place, self.limit, self.now_s, device) == 0.0:
            self.throttle.withdrawn(account, place, self.limit, self.now_s, device)
            assert self.throttle.wait_s(account, place, self.limit, self.now_s, device) == 0.0

    @precondition(lambda self: self.guesses)
    @rule()
    def a_wait_ends_by_itself(self) -> None:
        self.now_s += max(self.limit.longest_s, ADDRESS.longest_s)
        assert all(wait_s == 0.0 for wait_s in self._waits().values())

    @invariant()
    def no_wait_is_longer_than_its_limit(self) -> None:
        longest_s = max(self.limit.longest_s, ADDRESS.longest_s)
        assert all(0.0 <= wait_s <= longest_s for wait_s in self._waits().values())

    @invariant()
    def guesses_at_one_machine_are_few(self) -> None:
        """The free ones, those of the growing waits, and one for each longest wait after that."""
        for times in self.guesses.values():
            lasted_s = self.now_s - times[0]
            forgets = int(lasted_s // FORGET_S)
            most = (self.limit.free + 12) * (forgets + 1) + lasted_s / self.limit.longest_s + 1
            assert len(times) <= most

    def _device(self, account: str, place: str) -> str:
        """The browser at each machine; known to the page once this person signed in there."""
        return f"browser at {place}" if place in self.known[account] else ""

    def _shares(self, key: tuple[str, str], account: str, place: str) -> bool:
        return key[0] == account or key[1] == place

    def _waits(self) -> dict[tuple[str, str], float]:
        return {
            (account, place): self.throttle.wait_s(
                account, place, self.limit, self.now_s, self._device(account, place)
            )
            for account in ("ada", "bob")
            for place in ("10.0.0.1", "10.0.0.2", "10.0.0.3")
        }


Guessing.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestGuessing = Guessing.TestCase


# --- how long a session lasts ---------------------------------------------------------------------

LIMITS = Limits(idle_s=1800.0, shared_idle_s=90.0, absolute_s=43_200.0)


class Hand:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def _begin(sessions: Sessions, name: str = "ada", *, is_shared: bool = False) -> str:
    return sessions.begin(
        name, 0, Role.ADMIN, "password", is_shared=is_shared, address="::1", agent="x"
    )


@pytest.mark.parametrize(("is_shared", "idle_s"), [(False, 1800.0), (True, 90.0)])
def test_a_session_ends_when_nothing_is_done(is_shared: bool, idle_s: float) -> None:
    clock = Hand()
    sessions = Sessions(LIMITS, clock)
    token = _begin(sessions, is_shared=is_shared)
    for _ in range(3):
        clock.now_s += idle_s - 1
        session = sessions.find(token)
        assert session is not None
        sessions.touch(session)
    clock.now_s += idle_s
    assert sessions.find(token) is None
    clock.now_s -= idle_s
    assert sessions.find(token) is None, "what is over stays over"


def test_a_session_ends_at_last_whatever_is_done() -> None:
    clock = Hand()
    sessions = Sessions(LIMITS, clock)
    token = _begin(sessions)
    while clock.now_s < 1000.0 + LIMITS.absolute_s:
        session = sessions.find(token)
        assert session is not None
        sessions.touch(session)
        clock.now_s += 600.0
    assert sessions.find(token) is None


def test_a_token_is_not_kept_and_opens_nothing_after_the_end() -> None:
    sessions = Sessions(LIMITS, Hand())
    token = _begin(sessions)
    session = sessions.find(token)
    assert session is not None
    assert token not in repr(session)
    assert sessions.find(session.key) is None, "what is kept is no token"
    assert sessions.find(session.id) is None
    sessions.end(session)
    assert sessions.find(token) is None
    assert sessions.find("") is None


def test_one_person_has_so_many_sessions_at_most() -> None:
    sessions = Sessions(LIMITS, Hand())
    first = _begin(sessions)
    other = _begin(sessions, "bob")
    for _ in range(MOST_EACH):
        _begin(sessions)
    assert len(sessions.of("ada")) == MOST_EACH
    assert sessions.find(first) is None
    assert sessions.find(other) is not None


def test_all_others_of_a_person_can_be_ended() -> None:
    sessions = Sessions(LIMITS, Hand())
    tokens = [_begin(sessions) for _ in range(3)]
    kept = sessions.find(tokens[1])
    sessions.end_of("ada", keep=kept)
    assert [sessions.find(token) is not None for token in tokens] == [False, True, False]
    sessions.end_of("ada")
    assert sessions.of("ada") == []


# --- the log --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Rig:
    rig = Rig(tmp_path_factory.mktemp("station"))
    rig.write()
    return rig


def configuration(rig: Rig) -> Configuration:
    return load_configuration(str(rig.folder / "station.toml")).value


@pytest.fixture
def people(rig: Rig) -> Iterator[PeopleStore]:
    with PeopleStore(configuration(rig).people_dir, SMALL) as store:
        yield store


@contextlib.contextmanager
def journal_of(rig: Rig) -> Iterator[None]:
    process = start_vqi("serve", "journal", "--config", str(rig.folder / "station.toml"))
    client = JournalClient(rig.runtime)
    try:
        client.connect(30.0)
        client.close()
        yield
    finally:
        process.kill()
        process.wait()


def rows_of(rig: Rig, what: str) -> list[dict[str, Any]]:
    with Reader(rig.journal) as reader:
        return [row for row in reader.bodies("change") if row["what"] == what]


def test_what_is_done_to_an_account_is_a_row_once_whoever_dies(
    rig: Rig, people: PeopleStore
) -> None:
    people.add("kim", "Kim Min", Role.REVIEWER, GOOD, "root (eva)")
    assert "once" in tell_log(configuration(rig), people), "nobody writes the log yet"
    people.set_locked("kim", True, "eva")
    with journal_of(rig):
        assert tell_log(configuration(rig), people) == ""
        assert people.pending_acts() == []
        # The next one is committed, and whoever sent it dies before it hears so.
        people.set_role("kim", Role.ENGINEER, "eva")
        acts = people.pending_acts()
        _send_and_die(rig, people)
        assert [act.was_sent for act in people.pending_acts()] == [True]
        assert tell_log(configuration(rig), people) == ""
        assert people.pending_acts() == []
    added, locked, role = (rows_of(rig, f"user {word}") for word in ("added", "locked", "role"))
    assert [len(rows) for rows in (added, locked, role)] == [1, 1, 1]
    assert added[0]["who"] == "root (eva)"
    assert role[0]["detail"]["act"] == acts[0].id
    said = role[0]["detail"]
    assert (said["name"], said["before"], said["role"]) == ("kim", "reviewer", "engineer")
    with Reader(rig.journal) as reader:
        assert not any("argon2" in body or GOOD in body for body in reader.last_bodies(20))


def _send_and_die(rig: Rig, people: PeopleStore) -> None:
    """As a process does that is killed between the commit and the journal's answer."""
    child = os.fork()
    if child == 0:
        with PeopleStore(people.directory, SMALL) as store:
            store.forget_acts = lambda last: os._exit(0)  # type: ignore[method-assign]
            tell_log(configuration(rig), store)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0


def test_more_acts_than_one_message_takes_become_rows(rig: Rig, people: PeopleStore) -> None:
    people.add("lou", "Lou Reed", Role.VIEWER, GOOD, "root")
    for number in range(140):
        people.set_locked("lou", number % 2 == 0, "eva")
    with journal_of(rig):
        assert tell_log(configuration(rig), people) == ""
    assert people.pending_acts() == []
    done = [row for row in rows_of(rig, "user locked") if row["detail"]["name"] == "lou"]
    assert len(done) == 70


def test_the_teller_outlives_whatever_fails(rig: Rig, people: PeopleStore) -> None:
    teller = Teller(configuration(rig), people)
    teller.start()
    people.add("max", "Max Born", Role.VIEWER, GOOD, "root")
    with sqlite3.connect(people.path) as other:
        other.execute("ALTER TABLE act RENAME TO away")
    assert "no such table" in teller.tell(30.0)
    with other:
        other.execute("ALTER TABLE away RENAME TO act")
    other.close()
    with journal_of(rig):
        assert teller.tell(30.0) == ""
    assert teller.stop()


def test_a_journal_that_stands_still_holds_up_neither_acts_nor_the_end(
    rig: Rig, people: PeopleStore
) -> None:
    people.add("zoe", "Zoe Roth", Role.VIEWER, GOOD, "root")
    listener = Listener(journal_path(rig.runtime))
    teller = Teller(configuration(rig), people)
    teller.start()
    silent = listener.accept()
    silent.receive(30.0).close()
    assert "did not answer yet" in teller.tell(0.01)
    assert not teller.stop(), "it waits for the journal, and nobody for it"
    silent.close()
    listener.close()
    wait_until(teller.stop, 30.0, "end of the teller")
    assert [act.was_sent for act in people.pending_acts()] == [True]


# --- the command ----------------------------------------------------------------------------------


def at_terminal(answers: list[str], *arguments: str) -> tuple[int, str]:
    """Exit status and screen of a command at a terminal of its own, to whose questions these are
    the answers."""
    child, screen = pty.fork()
    if child == 0:
        os.execv(sys.executable, [sys.executable, "-P", "-m", "station.cli", *arguments])
    shown, left = b"", list(answers)
    while True:
        try:
            data = os.read(screen, 4096)
        except OSError:
            break
        if not data:
            break
        shown += data
        if left and re.search(rb": $", shown):
            os.write(screen, left.pop(0).encode() + b"\n")
            shown += b"|"
    os.close(screen)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), shown.decode()


def test_the_first_user_is_made_at_the_terminal(rig: Rig, people: PeopleStore) -> None:
    has_others = people.has_people()
    config = str(rig.folder / "station.toml")
    command = ("user", "add", "eva", "--role", "admin", "--config", config)
    status, screen = at_terminal([GOOD, BETTER], *command)
    assert status == 1
    assert "not the same" in screen
    status, screen = at_terminal([GOOD, GOOD], *command, "--full-name", "Eva Lind")
    assert status == 0, screen
    assert "Password for eva: " in screen
    assert GOOD not in screen, "what is typed is not shown"
    found = people.find("eva")
    assert found is not None
    assert (found.full_name, found.role) == ("Eva Lind", Role.ADMIN)
    assert found.must_change == has_others, "the first one chose the password for oneself"


def test_the_commands_change_what_they_name(rig: Rig, people: PeopleStore) -> None:
    people.add("mia", "Mia Roth", Role.VIEWER, GOOD, "root")
    runner, config = CliRunner(), str(rig.folder / "station.toml")
    for command, is_locked, is_gone in (
        ("lock", True, False),
        ("unlock", False, False),
        ("remove", False, True),
    ):
        done = runner.invoke(app, [command, "mia", "--config", config])
        assert done.exit_code == 0, done.output
        found = people.find("mia")
        assert (found is None) == is_gone
        assert found is None or found.is_locked == is_locked
    assert runner.invoke(app, ["lock", "mia", "--config", config]).exit_code == 1
    listed = runner.invoke(app, ["list", "--all", "--json", "--config", config])
    rows = [json.loads(line) for line in listed.stdout.splitlines()]
    assert {row["name"]: bool(row["removed_at"]) for row in rows}["mia"]


def test_a_password_on_stdin_is_held_to_the_rules(rig: Rig) -> None:
    runner, config = CliRunner(), str(rig.folder / "station.toml")

    def give(password: str, *arguments: str) -> tuple[int, str]:
        done = runner.invoke(app, [*arguments, "--config", config], input=password + "\n")
        return done.exit_code, done.output

    status, said = give("password1234", "add", "lee", "--role", "viewer")
    assert (status, "tried first" in said) == (1, True)
    status, said = give(GOOD, "add", "lee", "--role", "boss")
    assert (status, "viewer, reviewer, engineer, admin" in said) == (2, True)
    status, said = give(GOOD, "reset", "nobody-there")
    assert (status, "no person" in said) == (1, True)
    assert give("", "add", "lee", "--role", "viewer")[0] == 2
    assert give(GOOD, "add", "lee", "--role", "viewer")[0] == 0


def test_it_is_for_the_owner_and_root() -> None:
    """Somebody else is sent away; root acts as the owner, and leaves nothing of its own behind."""
    if os.geteuid() != 0:
        pytest.skip("nothing of its own here: needs root")

    def as_uid(uid: int, act: Callable[[], object]) -> int:
        child = os.fork()
        if child == 0:
            try:
                os.seteuid(0)
                os.setresuid(uid, uid, uid)
                act()
            except BaseException as error:  # noqa: BLE001
                os._exit(getattr(error, "exit_code", 99))
            os._exit(0)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    folder = Path(tempfile.mkdtemp(prefix="vqi-theirs-"))
    os.chown(folder, 4242, 4242)
    assert as_uid(4243, lambda: user._become_owner(folder)) == 1
    assert as_uid(4242, lambda: user._become_owner(folder)) == 0

    def make() -> None:
        user._become_owner(folder)
        PeopleStore(folder, SMALL).add("ada", "Ada", Role.ADMIN, GOOD, "root")

    assert as_uid(0, make) == 0
    assert {file.stat().st_uid for file in folder.iterdir()} == {4242}
    shutil.rmtree(folder)
