"""Signing in over the real page: by password, badge and PIN; sessions; roles on every route."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import re
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from fastapi import FastAPI
from starlette.requests import Request
from station_rig import Rig, wait_until
from web_rig import serving, small_journal

from station.config import load_configuration
from station.passwords import _MAX_WAITING, Hasher, TooBusy, Weakness, WeakSecret
from station.people import PeopleError, PeopleStore
from station.roles import Person, Role
from station.web.app import create_app
from station.web.context import Web
from station.web.devices import MOST_PEOPLE, Devices
from station.web.errors import PageError
from station.web.people import StationPeople, Where, is_by_hand, network_of
from station.web.server import make_web
from station.web.sessions import Sessions
from station.web.sign_in import Failure, as_page_error, station_people

GOOD, BETTER, GIVEN = "rot blau tisch", "sieben gelbe Enten", "vorerst gegeben 7"
PIN, BADGE = "483920", "B-0042-7731"
COOKIE = "vqi-session"
_TOKEN = re.compile(r'name="csrf" value="([0-9a-f]{64})"')


@dataclass
class Hand:
    """A clock that a test sets; for sessions and waits alike."""

    now_s: float = 1000.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class Site:
    """A page that runs, with its people."""

    url: str
    web: Web
    people: StationPeople
    clock: Hand
    browsers: list[httpx.Client] = field(default_factory=list)

    @property
    def store(self) -> PeopleStore:
        return self.people.store

    def browser(self) -> Browser:
        browser = Browser(self)
        self.browsers.append(browser)
        return browser

    def screen(self) -> Browser:
        """A browser in which somebody signed in by password before."""
        browser = self.browser()
        browser.cookies.set("vqi-device", self.people.devices.with_person("", "root-admin"))
        return browser

    def person(self, name: str, role: Role = Role.REVIEWER, **secrets: str) -> str:
        """Somebody new whose password is GOOD."""
        self.store.add(name, name.title(), role, GOOD, "root", must_change=False)
        if "pin" in secrets:
            self.store.set_pin(name, secrets["pin"])
        if "badge" in secrets:
            self.store.set_badge(name, secrets["badge"])
        return name

    def signed_in(self, name: str) -> Browser:
        """A browser in which this person is."""
        browser = self.browser()
        assert browser.sign_in(name).headers["location"] == "/"
        return browser


class Browser(httpx.Client):
    """Keeps cookies and sends the page's own forms."""

    def __init__(self, site: Site) -> None:
        super().__init__(base_url=site.url, timeout=30.0)
        self._token: tuple[str, str] = ("", "")

    def token(self) -> str:
        """Of the forms; another one for each session."""
        session = self.cookies.get(COOKIE, "")
        if not self._token[1] or self._token[0] != session:
            self._token = (session, self._fresh_token())
        return self._token[1]

    def _fresh_token(self) -> str:
        found = _TOKEN.search(self.get("/sign-in").text)
        assert found is not None
        return found[1]

    def form(self, path: str, **fields: str) -> httpx.Response:
        data = {"csrf": self.token(), **fields}
        return self.post(path, data=data, headers={"origin": str(self.base_url).rstrip("/")})

    def json(self, path: str, **fields: object) -> httpx.Response:
        headers = {"origin": str(self.base_url).rstrip("/"), "x-csrf-token": self.token()}
        return self.post(path, json=fields, headers=headers)

    def sign_in(self, name: str, password: str = GOOD, **more: str) -> httpx.Response:
        return self.form("/sign-in", name=name, password=password, **more)

    def who(self) -> str:
        """Who the page says is signed in; empty where nobody is."""
        answer = self.get("/account.json")
        return str(answer.json()["name"]) if answer.status_code == 200 else ""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    station = Rig(folder, tables="[web]\nport = 0\n", station={"id": "s"})
    small_journal(station.journal, 2)
    loaded = load_configuration(str(station.write()))
    web, clock = make_web(loaded), Hand()
    web.people.stop()
    people = StationPeople(loaded, Hasher(memory_kib=64), clock=clock)
    people.sessions = Sessions(people.sessions.limits, clock)
    web.people = people
    with serving(web) as url:
        site = Site(url, web, people, clock)
        site.person("root-admin", Role.ADMIN)
        yield site
        for browser in site.browsers:
            browser.close()


def why(answer: httpx.Response) -> str:
    """The reason in the address to which a form that failed leads."""
    assert answer.status_code == 303, answer.text
    return parse_qs(urlsplit(answer.headers["location"]).query).get("why", [""])[0]


# --- by password ----------------------------------------------------------------------------------


def test_signing_in_and_out_by_forms_alone(site: Site) -> None:
    site.person("ada")
    browser = site.browser()
    assert browser.who() == ""
    answer = browser.sign_in("ada", then="/account")
    assert answer.headers["location"] == "/account"
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert browser.who() == "ada"
    assert "Ada" in browser.get("/account").text
    kept = browser.cookies[COOKIE]
    assert browser.form("/sign-out").headers["location"] == "/"
    assert browser.who() == ""
    thief = site.browser()
    thief.cookies.set(COOKIE, kept)
    assert thief.who() == "", "what is signed out opens nothing"


def test_a_cookie_that_was_there_before_is_not_the_session(site: Site) -> None:
    """Session fixation: whoever planted it knows no session."""
    site.person("fix")
    browser = site.browser()
    browser.cookies.set(COOKIE, "planted-by-somebody-else")
    token = browser.token()
    answer = browser.post(
        "/sign-in",
        data={"csrf": token, "name": "fix", "password": GOOD},
        headers={"origin": site.url},
    )
    fresh = re.search(rf"{COOKIE}=([^;]+)", answer.headers["set-cookie"])
    assert fresh is not None
    assert fresh[1] != "planted-by-somebody-else"
    thief = site.browser()
    thief.cookies.set(COOKIE, "planted-by-somebody-else")
    assert thief.who() == ""


def test_signing_in_anew_ends_the_session_before(site: Site) -> None:
    browser = site.signed_in(site.person("twice"))
    before = browser.cookies[COOKIE]
    browser.sign_in("twice")
    assert browser.cookies[COOKIE] != before
    old = site.browser()
    old.cookies.set(COOKIE, before)
    assert old.who() == ""


def test_a_token_of_before_the_sign_in_is_none_after_it(site: Site) -> None:
    site.person("tok")
    browser = site.browser()
    before = browser.token()
    browser.sign_in("tok")
    answer = browser.post(
        "/account/end-others", data={"csrf": before}, headers={"origin": site.url}
    )
    assert answer.status_code == 403
    assert browser.form("/account/end-others").status_code == 303


def test_nobody_learns_which_names_there_are(site: Site) -> None:
    site.person("known")
    site.person("shut")
    site.store.set_locked("shut", True, "root")
    said = set()
    for name in ("known", "unknown", "shut"):
        answer = site.browser().json("/sign-in.json", name=name, password=BETTER)
        body = answer.json()
        said.add((answer.status_code, body["key"], body["error"]))
    assert len(said) == 1
    assert said.pop()[:2] == (401, "people.why.wrong")


def test_who_is_locked_hears_so_only_with_the_right_password(site: Site) -> None:
    site.person("lou")
    site.store.set_locked("lou", True, "root")
    assert why(site.browser().sign_in("lou")) == "locked"
    site.store.set_locked("lou", False, "root")
    assert site.signed_in("lou").who() == "lou"


def test_a_given_password_is_good_for_nothing_but_its_change(site: Site) -> None:
    site.store.add("new", "New One", Role.VIEWER, GIVEN, "root")
    browser = site.browser()
    answer = browser.sign_in("new", GIVEN, then="/account")
    assert why(answer) == "must_change"
    assert answer.headers["location"].startswith("/sign-in/new-password?")
    assert browser.get(answer.headers["location"]).status_code == 200
    assert browser.who() == ""
    change = {"name": "new", "password": GIVEN, "then": "/account"}
    path = "/sign-in/new-password"
    assert why(browser.form(path, **change, new=GIVEN, again=GIVEN)) == "same_password"
    assert why(browser.form(path, **change, new=GOOD, again=BETTER)) == "mismatch"
    assert why(browser.form(path, **change, new="password1234", again="password1234")) == "common"
    assert (
        why(browser.form(path, **{**change, "password": BETTER}, new=GOOD, again=GOOD)) == "wrong"
    )
    done = browser.form(path, **change, new=BETTER, again=BETTER)
    assert done.headers["location"] == "/account"
    assert browser.who() == "new"
    assert why(site.browser().sign_in("new", GIVEN)) == "wrong"


def test_a_shared_screen_stays_one_through_the_first_change_of_a_password(site: Site) -> None:
    site.store.add("first", "First Shift", Role.REVIEWER, GIVEN, "root")
    browser, path = site.browser(), "/sign-in/new-password"
    answer = browser.sign_in("first", GIVEN, is_shared="true")
    hidden = 'name="is_shared" value="true"'
    assert hidden in browser.get(answer.headers["location"]).text
    change = {"name": "first", "password": GIVEN, "new": GOOD, "again": GOOD, "is_shared": "true"}
    again = browser.form(path, **{**change, "again": BETTER})
    assert hidden in browser.get(again.headers["location"]).text
    browser.form(path, **change)
    assert browser.get("/account.json").json()["sessions"][0]["is_shared"]


def test_after_sign_in_only_places_of_this_page_come_next(site: Site) -> None:
    site.person("nav")
    for then in ("https://evil.example/", "//evil.example", "/\\evil.example", "javascript:x"):
        assert site.browser().sign_in("nav", then=then).headers["location"] == "/"


def test_hostile_names_and_secrets_are_nobodys(site: Site) -> None:
    browser = site.screen()
    for text in ("a\x00b", "\u202e", "' OR 1=1 --", "\ufdfa" * 60, "../../etc", "{}", "%s"):
        for path, fields in (
            ("/sign-in.json", {"name": text, "password": text * 3}),
            ("/sign-in/pin.json", {"who": text, "pin": text}),
        ):
            site.clock.now_s += 400
            assert browser.json(path, **fields).status_code == 401, text
    raw = b'{"name": "\\ud800", "password": "x"}'
    headers = {"origin": site.url, "x-csrf-token": browser.token()}
    headers["content-type"] = "application/json"
    assert browser.post("/sign-in.json", content=raw, headers=headers).status_code == 422
    site.clock.now_s += 4000


@pytest.mark.parametrize(
    "kept", [b"[" * 1400, b'{"a": 1}', b"[1, null, {}]", b"\xff", b'["\\ud800"]']
)
def test_names_that_a_browser_makes_up_are_left_out(site: Site, kept: bytes) -> None:
    browser = site.browser()
    browser.cookies.set("vqi-recent", base64.urlsafe_b64encode(kept).decode())
    answer = browser.get("/sign-in.json")
    assert (answer.status_code, answer.json()["recent"]) == (200, [])


def test_secrets_come_back_in_no_answer(site: Site) -> None:
    browser = site.browser()
    answers = [
        browser.sign_in("x" * 65, BETTER),
        browser.form("/sign-in", name="ada", password=BETTER, is_shared="perhaps"),
        browser.json("/sign-in.json", name=["no"], password=BETTER),
        browser.json("/sign-in.json", password={"a": BETTER}),
    ]
    for answer in answers:
        assert answer.status_code == 422
        assert BETTER not in answer.text


# --- on a shared screen ---------------------------------------------------------------------------


def test_badge_and_pin_or_name_and_pin_at_a_shared_screen(site: Site) -> None:
    site.person("rev", Role.ADMIN, pin=PIN, badge=BADGE)
    for who in ({"who": BADGE}, {"who": "rev"}, {"chosen": "rev"}):
        browser = site.screen()
        assert browser.form("/sign-in/pin", pin=PIN, **who).headers["location"] == "/"
        page = browser.get("/account.json").json()
        assert (page["role"], page["session_role"]) == ("admin", "reviewer")
        assert page["sessions"][0]["is_shared"]
        assert browser.get("/people").status_code == 403, "a PIN is good for no more"
        assert "data-signs-out-after-s" in browser.get("/account").text
        assert 'http-equiv="refresh"' in browser.get("/account").text
        browser.form("/sign-out")
        assert 'value="rev"' in browser.get("/sign-in").text, "the screen knows who was here"
    for who, pin in ((BADGE, "739105"), ("rev", "739105"), ("B-0000", PIN), ("", PIN)):
        assert why(site.screen().form("/sign-in/pin", who=who, pin=pin)) == "wrong"
    assert why(site.browser().sign_in("rev", PIN)) == "wrong", "a PIN is no password"
    assert why(site.screen().form("/sign-in/pin", who="rev", pin=GOOD)) == "wrong"
    site.clock.now_s += 4000


def test_a_pin_is_for_a_screen_on_which_a_password_was_given(site: Site) -> None:
    """Not for any machine of the network."""
    site.person("walks", pin=PIN, badge="B-WALKS-1")
    browser = site.browser()
    assert 'name="pin"' not in browser.get("/sign-in").text
    for who in ("walks", "B-WALKS-1", "nobody"):
        for pin in (PIN, "739105"):
            assert why(browser.form("/sign-in/pin", who=who, pin=pin)) == "new_screen"
    browser.sign_in("root-admin")
    browser.form("/sign-out")
    assert 'name="pin"' in browser.get("/sign-in").text
    assert browser.form("/sign-in/pin", who="walks", pin=PIN).headers["location"] == "/"


@pytest.mark.parametrize(("accept", "is_hand"), [("text/html", True), ("text/event-stream", False)])
def test_a_stream_of_news_keeps_no_session_open(accept: str, is_hand: bool) -> None:
    headers = [(b"accept", accept.encode())]
    request = Request({"type": "http", "method": "GET", "headers": headers})
    assert is_by_hand(request) is is_hand


def test_a_shared_screen_signs_out_when_nothing_is_done(site: Site) -> None:
    site.person("idle", pin=PIN)
    browser = site.screen()
    browser.form("/sign-in/pin", who="idle", pin=PIN)
    limit_s = site.web.settings.shared_idle_s
    site.clock.now_s += limit_s - 1
    clicked = {"sec-fetch-mode": "navigate", "sec-fetch-user": "?1"}
    assert browser.get("/account.json", headers=clicked).status_code == 200
    site.clock.now_s += limit_s - 1
    assert browser.json("/session/touch.json").json() == {"signs_out_after_s": limit_s}
    site.clock.now_s += limit_s - 1
    fetched, refreshed = {"sec-fetch-mode": "cors"}, {"sec-fetch-mode": "navigate"}
    for automatic in (fetched, refreshed):
        assert browser.get("/account.json", headers=automatic).status_code == 200
    site.clock.now_s += 1
    assert browser.get("/account.json", headers=fetched).status_code == 401, "no hand was there"
    assert browser.who() == ""


def test_a_password_at_a_shared_screen_is_worth_its_role_but_ends_soon(site: Site) -> None:
    site.person("eng", Role.ENGINEER)
    browser = site.browser()
    browser.sign_in("eng", is_shared="true")
    assert browser.get("/account.json").json()["session_role"] == "engineer"
    site.clock.now_s += site.web.settings.shared_idle_s
    assert browser.who() == ""


def test_a_session_ends_after_its_hours_whatever_is_done(site: Site) -> None:
    browser = site.signed_in(site.person("abs"))
    begin_s, hours = site.clock.now_s, site.web.settings.session_h
    while site.clock.now_s < begin_s + 3600 * hours:
        assert browser.who() == "abs"
        site.clock.now_s += 1790
    assert browser.who() == ""


# --- waits ----------------------------------------------------------------------------------------


def test_wrong_passwords_have_to_wait_longer_and_longer(site: Site) -> None:
    site.person("slow")
    browser = site.browser()
    for _ in range(4):
        assert why(browser.sign_in("slow", BETTER)) == "wrong"
    answer = browser.json("/sign-in.json", name="slow", password=GOOD)
    assert (answer.status_code, answer.json()["key"]) == (429, "people.why.wait")
    assert int(answer.headers["retry-after"]) >= 1
    assert why(browser.sign_in("slow")) == "wait", "also for the right one"
    site.clock.now_s += 1.5
    assert browser.sign_in("slow").headers["location"] == "/"
    site.clock.now_s += 4000


def test_a_reset_helps_who_has_to_wait_no_sooner_and_a_stranger_not_at_all(site: Site) -> None:
    people, where = site.people, Where("10.9.8.7")
    site.person("calm")
    for _ in range(4):
        with pytest.raises(PageError):
            people.sign_in("calm", BETTER, where, is_shared=False)
    with pytest.raises(PageError) as caught:
        people.sign_in("calm", GOOD, where, is_shared=False)
    assert caught.value.status == 429
    elsewhere = Where("10.9.8.6")
    with pytest.raises(PageError) as caught:
        people.sign_in("calm", GOOD, elsewhere, is_shared=False)
    assert caught.value.status == 429, "the account waits, not the machine alone"
    site.clock.now_s += 2
    people.sign_in("calm", GOOD, elsewhere, is_shared=False)
    for number in range(50):
        with pytest.raises(PageError):
            people.sign_in("calm", BETTER, Where(f"10.8.8.{number}"), is_shared=False)
    own = Where("10.8.8.8", device=people.devices.with_person("", "calm"))
    assert people.sign_in("calm", GOOD, own, is_shared=False)


def test_who_signed_in_in_this_browser_is_kept_out_by_nobody_at_the_same_address(
    site: Site,
) -> None:
    """Also after a restart of the page: the cookie is signed, and the key is in the file."""
    browser, name = site.signed_in(site.person("keeps", pin=PIN, badge="B-KEEPS-1")), "keeps"
    browser.form("/sign-out")
    stranger = site.screen()
    for _ in range(12):
        stranger.json("/sign-in.json", name=name, password=BETTER)
        stranger.json("/sign-in/pin.json", who=name, pin="739105")
    assert why(stranger.sign_in(name)) == "wait"
    assert browser.sign_in(name).headers["location"] == "/"
    for who in (name, "B-KEEPS-1"):
        assert browser.form("/sign-in/pin", who=who, pin=PIN).headers["location"] == "/"
    with PeopleStore(site.store.directory, Hasher(memory_kib=64)) as restarted:
        assert Devices(restarted.device_key).of_person(browser.cookies["vqi-device"], name)
    site.clock.now_s += 4000


def test_a_device_is_known_for_whom_it_was_signed() -> None:
    devices, others = Devices(b"k" * 32), Devices(b"o" * 32)
    cookie = ""
    for number in range(MOST_PEOPLE + 5):
        cookie = devices.with_person(cookie, f"n{number}")
    device = cookie.partition(".")[0]
    assert devices.of_person(cookie, " N44 ") == device
    assert not devices.of_person(cookie, "n0"), "so many at most"
    assert len(cookie) < 2000
    other = devices.with_person("", "eve")
    forged = ".".join([other.partition(".")[0], *cookie.split(".")[1:]])
    for text in (forged, other, "", "x" * 5000, cookie + ".", "\u0660" * 22 + cookie[22:]):
        assert not devices.of_person(text, "n44")
    assert not others.is_known(cookie)
    assert devices.with_person(forged, "eve").partition(".")[0] != forged.partition(".")[0]


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("2a01:4f8:1:2:3:4:5:6", "2a01:4f8:1:2::/64"),
        ("fd00::1:2:3:4:5", "fd00::1:2:3:4:5"),
        ("fe80::1%eth0", "fe80::1%eth0"),
        ("testclient", "testclient"),
    ],
)
def test_an_address_is_what_one_customer_has(address: str, network: str) -> None:
    assert network_of(address) == network


# --- the people's file is locked ------------------------------------------------------------------


@contextlib.contextmanager
def locked(site: Site, busy_ms: int) -> Iterator[None]:
    """By another process, in the middle of a change; readers wait so long."""
    reader = site.people.store._reader
    reader.execute(f"PRAGMA busy_timeout = {busy_ms}")
    with contextlib.closing(sqlite3.connect(site.store.path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        os.utime(site.store.path)
        yield
        other.execute("ROLLBACK")
    reader.execute("PRAGMA busy_timeout = 5000")


def test_a_locked_file_holds_up_nobody_who_asks_for_no_person(site: Site) -> None:
    browser = site.signed_in(site.person("stuck"))
    browser.token()
    with locked(site, 2000), ThreadPoolExecutor(1) as pool:
        asking = pool.submit(browser.get, "/account.json")
        wait_until(lambda: not site.people._reading.done(), 30.0, "reader that waits")
        reading = site.people._reading
        assert site.browser().get("/health").status_code in (200, 503)
        assert site.browser().get("/nothing").status_code == 404
        assert not reading.done(), "the event loop waited for the file"
        answer = asking.result(30.0)
    assert (answer.status_code, answer.json()["key"]) == (503, "people.why.store")
    assert answer.headers["retry-after"]
    assert browser.who() == "stuck"


def test_a_page_that_there_is_not_knows_who_asks(site: Site) -> None:
    browser = site.signed_in(site.person("lost"))
    page = browser.get("/nothing")
    assert page.status_code == 404
    assert 'action="/sign-out"' in page.text
    assert "VQI " in page.text


def test_an_error_page_needs_no_file(site: Site) -> None:
    browser = site.signed_in(site.person("reads"))
    with locked(site, 10):
        page = browser.get("/account")
        assert (page.status_code, page.headers["x-frame-options"]) == (503, "DENY")
        assert browser.get("/nothing").status_code == 404


def test_a_language_that_is_chosen_already_is_not_written(site: Site) -> None:
    browser = site.signed_in(site.person("again"))
    browser.form("/language", language="de")
    before = site.store.path.stat().st_mtime_ns
    browser.form("/language", language="de")
    assert site.store.path.stat().st_mtime_ns == before


# --- changed while a secret waits its turn to be looked at ----------------------------------------


def after_a_change(site: Site, act: Callable[[], str], change: Callable[[], object]) -> PageError:
    """How `act` fails whose secret was read, but not looked at, before `change`."""
    hasher = site.people.store._hasher
    with ThreadPoolExecutor(1) as pool:
        with hasher._turn:
            acting = pool.submit(act)
            wait_until(lambda: hasher._places._value < _MAX_WAITING, 30.0, "secret in the queue")
            change()
        with pytest.raises(PageError) as caught:
            acting.result(30.0)
    return caught.value


@pytest.fixture
def terminal(site: Site) -> Iterator[PeopleStore]:
    """The people's file, opened by another process's command."""
    with PeopleStore(site.store.directory, Hasher(memory_kib=64)) as terminal:
        yield terminal


def test_an_old_secret_opens_nothing_that_began_after_its_change(
    site: Site, terminal: PeopleStore
) -> None:
    site.person("race", pin=PIN)
    here = Where("10.3.3.1")
    screen = replace(here, device=site.people.devices.with_person("", "root-admin"))
    sign_ins = (
        lambda: site.people.sign_in("race", GOOD, here, is_shared=False),
        lambda: site.people.replace_password("race", GOOD, "noch ein anderes", here),
    )
    for sign_in in sign_ins:
        failure = after_a_change(site, sign_in, lambda: terminal.change_password("race", BETTER))
        assert (failure.status, failure.key) == (401, "people.why.wrong")
        terminal.change_password("race", GOOD)
    failure = after_a_change(
        site,
        lambda: site.people.sign_in_shared("race", PIN, screen),
        lambda: terminal.set_pin("race", "739105"),
    )
    assert failure.key == "people.why.wrong"
    assert site.people.sessions.of("race") == []


def test_who_signs_with_an_old_secret_does_not_sign(site: Site, terminal: PeopleStore) -> None:
    person = Person(site.person("signs"), "Signs", Role.REVIEWER)

    def sign() -> str:
        site.people.confirm(person, GOOD)
        return ""

    failure = after_a_change(site, sign, lambda: terminal.change_password("signs", BETTER))
    assert (failure.status, failure.key) == (403, "people.why.confirm_wrong")
    site.clock.now_s += 4000


def test_ones_own_change_does_not_undo_an_administrators(site: Site, terminal: PeopleStore) -> None:
    store, name = site.store, site.person("late")
    account = store.find(name)
    assert account is not None
    terminal.reset(name, BETTER, "root")
    for change in (
        lambda: store.change_password(name, "noch ein anderes", account.epoch),
        lambda: store.set_pin(name, PIN, account.epoch),
        lambda: store.set_badge(name, BADGE, account.epoch),
    ):
        with pytest.raises(PeopleError, match="changed meanwhile"):
            change()
    assert store.by_password(name, BETTER), "the reset holds"


# --- one's own account ----------------------------------------------------------------------------


def test_a_new_password_ends_all_other_sessions(site: Site) -> None:
    here = site.signed_in(site.person("own"))
    there = site.signed_in("own")
    change = {"password": GOOD, "new": BETTER, "again": BETTER}
    assert why(here.form("/account/password", **{**change, "password": BETTER})) == "confirm_wrong"
    assert why(here.form("/account/password", **{**change, "again": GOOD})) == "mismatch"
    done = here.form("/account/password", **change)
    assert done.headers["location"] == "/account?done=password"
    assert 'role="status"' in here.get(done.headers["location"]).text
    assert (here.who(), there.who()) == ("own", "")
    assert why(site.browser().sign_in("own", GOOD)) == "wrong"
    assert site.browser().sign_in("own", BETTER).headers["location"] == "/"


def test_a_pin_and_a_badge_are_set_with_the_password_and_taken_away(site: Site) -> None:
    browser = site.signed_in(site.person("pins"))
    secret = {"password": GOOD}
    assert why(browser.form("/account/pin", **secret, pin="123456", again="123456")) == "trivial"
    assert why(browser.form("/account/pin", **secret, pin="1234", again="1234")) == "no_digits"
    browser.form("/account/pin", **secret, pin="739105", again="739105")
    browser.form("/account/badge", **secret, badge="B-PINS-1")
    page = browser.get("/account.json").json()
    assert (page["has_pin"], page["has_badge"]) == (True, True)
    other = site.screen()
    assert other.form("/sign-in/pin", who="B-PINS-1", pin="739105").headers["location"] == "/"
    browser.form("/account/pin", **secret)
    browser.form("/account/badge", **secret)
    page = browser.get("/account.json").json()
    assert (page["has_pin"], page["has_badge"]) == (False, False)
    assert other.who() == ""


def test_ones_own_change_ends_no_page_that_is_open_in_the_same_browser(site: Site) -> None:
    """A live page asks again and again whose session it is, also in the middle of the change."""
    browser = site.signed_in(site.person("live"))
    cookie = f"{COOKIE}={browser.cookies[COOKIE]}".encode()
    scope = {"type": "http", "method": "GET", "headers": [(b"cookie", cookie)]}
    looking = Request({**scope, "app": create_app(site.web)})
    names, is_over = set(), threading.Event()

    def look() -> None:
        while not is_over.is_set():
            person = site.people.person_of(looking)
            names.add(person.name if person else "")

    with ThreadPoolExecutor(1) as pool:
        pool.submit(look)
        pins = ("483920", "739105", "")
        done = [browser.form("/account/pin", password=GOOD, pin=one, again=one) for one in pins]
        is_over.set()
    assert names == {"live"}
    assert {one.headers["location"] for one in done} == {"/account?done=pin"}


def test_ones_sessions_are_seen_and_ended(site: Site) -> None:
    here = site.signed_in(site.person("many"))
    there, further = site.signed_in("many"), site.signed_in("many")
    seen = here.get("/account.json").json()["sessions"]
    assert [one["is_this"] for one in seen].count(True) == 1
    other = next(one["id"] for one in seen if not one["is_this"])
    here.form("/account/end-session", id=other)
    assert sorted([there.who(), further.who()]) == ["", "many"]
    here.form("/account/end-others")
    assert (here.who(), there.who(), further.who()) == ("many", "", "")
    stranger = site.signed_in(site.person("stranger"))
    mine = here.get("/account.json").json()["sessions"][0]["id"]
    assert stranger.form("/account/end-session", id=mine).status_code == 404
    assert here.who() == "many", "nobody ends another person's session"


def test_the_language_goes_with_the_person(site: Site) -> None:
    browser = site.signed_in(site.person("zhang"))
    browser.form("/language", language="zh")
    elsewhere = site.signed_in("zhang")
    assert 'lang="zh-Hans"' in elsewhere.get("/account").text


def test_a_signature_that_fails_is_no_sign_in_that_failed(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    person, before = (
        Person(site.person("sloppy"), "Sloppy", Role.REVIEWER),
        replace(site.people.counts),
    )
    for _ in range(5):
        with pytest.raises(PageError):
            site.people.confirm(person, BETTER)
    assert site.people.counts == before
    lines = [line for line in caplog.text.splitlines() if "sloppy" in line]
    assert sum("a confirmation failed" in line for line in lines) == 4
    assert "a confirmation was refused" in lines[-1]
    assert "confirm sloppy" not in caplog.text
    site.clock.now_s += 4000


def test_it_is_still_this_person_by_password_or_pin(site: Site) -> None:
    site.person("sig", pin=PIN)
    person = Person("sig", "Sig", Role.REVIEWER)
    site.people.confirm(person, PIN)
    site.people.confirm(person, GOOD)
    for _ in range(3):
        with pytest.raises(PageError) as caught:
            site.people.confirm(person, "739105")
        assert (caught.value.status, caught.value.key) == (403, "people.why.confirm_wrong")
    with pytest.raises(PageError) as caught:
        site.people.confirm(person, PIN)
    assert caught.value.status == 429
    site.clock.now_s += 4000
    site.people.confirm(person, PIN)


# --- what an administrator does -------------------------------------------------------------------


def test_an_administrator_locks_unlocks_and_gives_roles_to_others(site: Site) -> None:
    admin = site.signed_in(site.person("boss", Role.ADMIN))
    worker = site.signed_in(site.person("work"))
    names = {one["name"] for one in admin.get("/people.json").json()["people"]}
    assert {"boss", "work"} <= names
    assert admin.get("/people").status_code == 200
    admin.form("/people/lock", name="work")
    assert worker.who() == "", "sessions end at once"
    assert why(site.browser().sign_in("work")) == "locked"
    admin.form("/people/unlock", name="work", password=GOOD)
    again = site.signed_in("work")
    admin.form("/people/role", name="work", role="engineer", password=GOOD)
    assert again.who() == "", "a session has the role that it began with"
    assert site.signed_in("work").get("/account.json").json()["role"] == "engineer"
    for path, more in (("lock", {}), ("role", {"role": "viewer", "password": GOOD})):
        assert why(admin.form(f"/people/{path}", name="boss", **more)) == "not_oneself"
    assert why(admin.form("/people/lock", name="no-such")) == "unknown"


def test_rights_are_given_with_the_administrators_password_alone(site: Site) -> None:
    """A desk that was left open, or a script in the page, gives nobody rights that last."""
    admin = site.signed_in(site.person("chief", Role.ADMIN, pin=PIN))
    site.person("shift")
    site.store.set_locked("shift", True, "root")
    for path, more in (("/people/unlock", {}), ("/people/role", {"role": "admin"})):
        assert admin.form(path, name="shift", **more).status_code == 422
        for secret in (BETTER, PIN):
            answer = admin.form(path, name="shift", password=secret, **more)
            assert why(answer) == "confirm_wrong"
            assert admin.get(answer.headers["location"]).status_code == 200
    account = site.store.find("shift")
    assert account is not None
    assert (account.is_locked, account.role) == (True, Role.REVIEWER)
    assert why(admin.form("/people/unlock", name="shift", password=GOOD)) == "wait"
    site.clock.now_s += 4000


def test_what_the_terminal_does_holds_on_the_page_at_once(site: Site) -> None:
    browser = site.signed_in(site.person("gone"))
    with PeopleStore(site.store.directory, Hasher(memory_kib=64)) as terminal:
        terminal.remove("gone", "root")
    assert browser.who() == ""
    assert why(site.browser().sign_in("gone")) == "wrong"


def test_a_page_that_others_reach_shows_nothing_to_strangers(tmp_path: Path) -> None:
    tables = '[web]\nport = 0\npublic_url = "https://vqi.plant"\n'
    loaded = load_configuration(str(Rig(tmp_path, tables=tables).write()))
    people = StationPeople(loaded, Hasher(memory_kib=64))
    web = Web(loaded, people, make_web(loaded).live_source)
    assert not web.settings.is_local
    asyncio.run(_see_what_strangers_see(create_app(web), people))


async def _see_what_strangers_see(app: FastAPI, people: StationPeople) -> None:
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="https://vqi.plant") as browser:
        assert (await browser.get("/account.json")).status_code == 401
        assert (await browser.get("/people")).headers["location"].startswith("/sign-in?back=")
        first = await browser.get("/sign-in")
        for strange in (
            first,
            await browser.get("/nothing"),
            await browser.get("/sign-in", headers={"host": "evil.example"}),
        ):
            assert not re.search(r'VQI \d|href="/(api|people|search)"', strange.text)
        assert (await browser.get("/openapi.json")).status_code in (303, 401)
        assert "vqi user add" in first.text
        assert first.headers["set-cookie"].startswith("__Host-vqi-visit=")
        people.store.add("ada", "Ada", Role.ADMIN, GOOD, "root", must_change=False)
        token = _TOKEN.search((await browser.get("/sign-in")).text)
        assert token is not None
        answer = await browser.post(
            "/sign-in",
            data={"csrf": token[1], "name": "ada", "password": GOOD},
            headers={"origin": "https://vqi.plant"},
        )
        cookie = answer.headers["set-cookie"]
        assert cookie.startswith("__Host-vqi-session=")
        assert "Secure" in cookie
        assert "Domain" not in cookie
        assert (await browser.get("/account.json")).json()["name"] == "ada"
        by_proxy = {"x-forwarded-for": "10.6.6.6, 10.0.0.7"}
        assert (await browser.get("/account.json", headers=by_proxy)).status_code == 200
        for headers, address in (
            (by_proxy, "10.0.0.7"),
            ({}, "127.0.0.1"),
            ({"x-forwarded-for": "unknown"}, "127.0.0.1"),
        ):
            token = _TOKEN.search((await browser.get("/sign-in")).text)
            assert token is not None
            said = {"csrf": token[1], "name": "ada", "password": GOOD}
            headers = {"origin": "https://vqi.plant", **headers}
            await browser.post("/sign-in", data=said, headers=headers)
            seen = (await browser.get("/account.json")).json()["sessions"]
            assert next(one["address"] for one in seen if one["is_this"]) == address


# --- what is not to be had at the moment ----------------------------------------------------------


def test_a_peoples_file_that_takes_nothing_is_said(site: Site) -> None:
    ada = site.signed_in(site.person("nora"))
    with sqlite3.connect(site.store.path) as other:
        other.execute(
            "CREATE TRIGGER full BEFORE UPDATE ON person BEGIN INSERT INTO nowhere VALUES (1); END"
        )
    try:
        secret = {"password": GOOD, "new": "sieben gelbe Enten", "again": "sieben gelbe Enten"}
        for answer in (
            ada.json("/language.json", language="de"),
            ada.json("/account/password.json", **secret),
        ):
            assert (answer.status_code, answer.json()["key"]) == (503, "people.why.store")
            assert answer.headers["retry-after"]
            assert "default-src 'self'" in answer.headers["content-security-policy"]
    finally:
        with other:
            other.execute("DROP TRIGGER full")
        other.close()


@pytest.mark.parametrize(
    ("error", "status", "key"),
    [
        (TooBusy(), 503, "busy"),
        (sqlite3.OperationalError("database is locked"), 503, "store"),
        (PeopleError("store", "locked"), 503, "store"),
        (PeopleError("unknown", "who"), 409, "unknown"),
        (WeakSecret(Weakness.SHORT), 422, "short"),
    ],
)
def test_what_goes_wrong_with_people_is_no_failure_of_the_page(
    error: Failure, status: int, key: str
) -> None:
    said = as_page_error(error)
    assert (said.status, said.key) == (status, f"people.why.{key}")


# --- as a browser does it -------------------------------------------------------------------------


@pytest.mark.long
def test_badge_pad_and_countdown_in_a_browser(tmp_path: Path) -> None:
    """A scanner types a badge and Enter, gloves tap the PIN, nobody is there: signed out."""
    playwright_api = pytest.importorskip("playwright.sync_api", reason="no Chromium here")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no Chromium here")
    tables = "[web]\nport = 0\nshared_idle_s = 15\n"
    web = make_web(load_configuration(str(Rig(tmp_path, tables=tables).write())))
    people = station_people(web)
    people.store.add("kim", "Kim Min", Role.REVIEWER, GOOD, "root", must_change=False)
    people.store.set_pin("kim", PIN)
    people.store.set_badge("kim", BADGE)
    with serving(web) as url, playwright_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        context = browser.new_context(has_touch=True)
        device = people.devices.with_person("", "kim")
        context.add_cookies([{"name": "vqi-device", "value": device, "url": url}])
        page = context.new_page()
        page.goto(f"{url}/sign-in?back=/account")
        page.focus("#who")
        page.keyboard.type(BADGE)
        page.keyboard.press("Enter")
        for digit in PIN:
            page.tap(f'[data-digit="{digit}"]')
        page.click("form.pin button.primary")
        page.wait_for_url(f"{url}/account")
        assert len(people.sessions.of("kim")) == 1
        page.locator("[data-signs-out-after-s]", has_text=re.compile(r"^[3-6]\b")).wait_for()
        page.keyboard.press("Shift")
        page.locator("[data-signs-out-after-s]", has_text=re.compile(r"^1[0-4]\b")).wait_for()
        page.wait_for_url(f"{url}/", timeout=60_000)
        assert people.sessions.of("kim") == []
        browser.close()
