"""Who sends a request, and what proves it: sign-in, sessions, and the secret asked for again where
somebody signs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from ipaddress import IPv6Address, ip_address
from typing import Any, Protocol, TypeVar

from starlette.requests import Request

from station.config import Configuration, Loaded, WebSettings
from station.ipc import Json
from station.log_lines import get_logger
from station.passwords import Hasher, TooBusy, is_pin
from station.people import Account, PeopleError, PeopleStore
from station.people_log import Teller
from station.reviews import person as folded
from station.roles import ANONYMOUS, Person, Role
from station.throttle import PASSWORD, PIN, Limit, Throttle
from station.web.cookies import cookie_name
from station.web.devices import Devices
from station.web.errors import PageError, SignInNeeded, conflict
from station.web.sessions import Limits, Means, Session, Sessions

_LOG = get_logger("people")
SESSION_COOKIE = "session"
T = TypeVar("T")
Check = Callable[[], Account | None]
DEVICE_COOKIE = "device"
_MOST_NAME = 64
_SIGNED_IN = "signed in"
"""Where a person is who confirms something: no device, whose names are longer."""
_RACY_S = 0.1
"""A file that changed so lately may change again within one step of its time stamp."""


@dataclass(frozen=True, slots=True)
class Where:
    """From where somebody signs in."""

    address: str
    agent: str = ""
    device: str = ""
    """The cookie of a browser in which somebody signed in before (station.web.devices)."""


@dataclass(frozen=True, slots=True)
class _Source:
    """For whom, and from where, a secret is tried."""

    key: str
    place: str
    device: str


@dataclass(slots=True)
class Counts:
    """Since this process began."""

    signed_in: int = 0
    failed: int = 0
    refused: int = 0
    """Without a look at the secret: the wait was not over."""


@dataclass(slots=True)
class _Known:
    """The accounts as the file had them, and what the file looked like then."""

    accounts: dict[str, Account] = field(default_factory=dict)
    mark: tuple[int, int, int] = (0, 0, 0)
    is_racy: bool = True


class People(Protocol):
    """Who the people of this station are, and whose session a request belongs to."""

    def person_of(self, request: Request) -> Person | None:
        """Whose session it is; `ANONYMOUS` where nobody has to sign in to look, None where one has
        to. Answers from memory, as `session_of` and `has_users` do: they are asked on the event
        loop, and for error pages."""

    async def refresh(self) -> None:
        """See that memory has what holds now. Raises `PageError` 503 if that is not to be known."""

    def session_of(self, request: Request) -> str:
        """What a CSRF token is bound to beside the browser's visit; empty without a session."""

    def has_users(self) -> bool:
        """Whether anybody can sign in."""

    def confirm(self, person: Person, secret: str) -> None:
        """See that it is still this person, by the password or PIN (21 CFR 11.200(a)(1)). Raises
        `PageError`: 403 wrong, 429 to wait, 503 busy."""

    def prefer_language(self, person: Person, language: str) -> None:
        """What this person reads from now on, on any screen."""

    def start(self) -> None:
        """With the server."""

    def stop(self) -> None:
        """With the server."""


class StationPeople:
    """The people of one station, as its file has them; for one process of its page."""

    def __init__(
        self,
        configuration: Loaded[Configuration],
        hasher: Hasher | None = None,
        sessions: Sessions | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Raises `PeopleError` if the people's file cannot be used."""
        self._settings = configuration.value.web or WebSettings()
        self.store = PeopleStore(configuration.value.people_dir, hasher)
        self.sessions = sessions or Sessions(limits_of(self._settings))
        self.devices = Devices(self.store.device_key)
        self.counts = Counts()
        self._throttle, self._clock = Throttle(), clock
        self._lock = threading.Lock()
        self._known, self._reading = _Known(), Future[Any]()
        self._reading.set_result(None)
        self._reader = ThreadPoolExecutor(1, "people-file")
        self.accounts()
        self._teller = Teller(configuration.value, self.store)

    # --- every request ----------------------------------------------------------------------------

    def person_of(self, request: Request) -> Person | None:
        """As `People` says."""
        session, account = self._signed_in(request)
        if session is None or account is None:
            return ANONYMOUS if self._settings.is_local else None
        if is_by_hand(request):
            self.sessions.touch(session)
        return person(account, session, self.sessions.idle_limit_s(session))

    def session_of(self, request: Request) -> str:
        """As `People` says."""
        session, _ = self._signed_in(request)
        return session.key if session is not None else ""

    def has_users(self) -> bool:
        """As `People` says."""
        return any(account.removed_at is None for account in self._known.accounts.values())

    async def refresh(self) -> None:
        """As `People` says. In a thread of its own: another process may have locked the file."""
        for _ in range(2):  # what is being read may be what was before this request
            if self._is_known():
                return
            try:
                await asyncio.shield(asyncio.wrap_future(self._read()))
            except (PeopleError, sqlite3.Error, OSError) as error:
                _LOG.error("the people's file cannot be read", why=str(error))
                raise PageError(503, "people.why.store", retry_s=5) from error

    def current(self, request: Request) -> Session:
        """The session of a request. Raises `SignInNeeded`."""
        session, _ = self._signed_in(request)
        if session is None:
            raise SignInNeeded
        return session

    def accounts(self) -> dict[str, Account]:
        """All people by their folded names, as the file has them now."""
        found = self.store.path.stat()
        mark = _mark_of(found)
        if self._known.is_racy or mark != self._known.mark:
            is_racy = time.time() - found.st_mtime < _RACY_S
            accounts = {folded(one.name): one for one in self.store.accounts()}
            self._known = _Known(accounts, mark, is_racy)
        return self._known.accounts

    def account(self, name: str) -> Account | None:
        """The account of that name, if it is there still."""
        account = self.accounts().get(folded(name))
        return None if account is None or account.removed_at else account

    def _is_known(self) -> bool:
        try:
            return not self._known.is_racy and _mark_of(self.store.path.stat()) == self._known.mark
        except OSError:
            return False

    def _read(self) -> Future[Any]:
        """The reading of the file that goes on; one at a time."""
        with self._lock:
            if self._reading.done():
                self._reading = self._reader.submit(self.accounts)
            return self._reading

    def _signed_in(self, request: Request) -> tuple[Session | None, Account | None]:
        session = self.sessions.find(request.cookies.get(cookie_name(request, SESSION_COOKIE), ""))
        if session is None:
            return None, None
        if not self._is_known():
            self._read()  # for who looks on without asking again
        account = self._known.accounts.get(folded(session.name))
        # What memory has may be older than the session, whose person has just changed the account.
        if account is None or not account.is_active or account.epoch > session.epoch:
            self.sessions.end(session)
            return None, None
        return session, account

    # --- signing in -------------------------------------------------------------------------------

    def sign_in(self, name: str, password: str, where: Where, *, is_shared: bool) -> str:
        """The token of a new session. Raises `PageError`: 401 wrong, 403 locked or to be changed
        first, 429 to wait, 503 busy."""
        account = self._proven_by_password(name, password, where)
        if account.must_change:
            raise PageError(403, "people.why.must_change")
        return self._begin(account, Role.ADMIN, "password", where, is_shared)

    def sign_in_shared(self, name_or_badge: str, pin: str, where: Where) -> str:
        """On a shared screen, as REVIEWER at most. Raises as `sign_in`; 403 where nobody signed in
        by password before: a PIN is for a screen of the station, not for a whole network."""
        if not self.devices.is_known(where.device):
            raise PageError(403, "people.why.new_screen")
        typed = _shortened(name_or_badge)
        self._see_wait(self._source(typed, where, self.devices.is_known(where.device)), PIN)
        # Both are looked for whatever is found: the time that it takes tells nothing of names.
        by_badge = self._unless_busy(lambda: self.store.by_badge(name_or_badge))
        by_name = self.store.find(name_or_badge)
        found = by_name or by_badge
        key = folded(found.name) if found else typed
        account = self._proven(key, PIN, where, lambda: self._by_pin(found, pin))
        return self._begin(account, Role.REVIEWER, "pin" if by_name else "badge", where, True)

    def replace_password(
        self, name: str, old: str, new: str, where: Where, *, is_shared: bool = False
    ) -> str:
        """Sign in with a password that is then another one. Raises as `sign_in`; `WeakSecret`,
        `PeopleError` if the new one is not taken."""
        account = self._proven_by_password(name, old, where)
        epoch = self.store.change_password(account.name, new, account.epoch)
        self.tell_log()
        account = replace(account, epoch=epoch)
        return self._begin(account, Role.ADMIN, "password", where, is_shared)

    def sign_out(self, request: Request) -> None:
        session, _ = self._signed_in(request)
        if session is not None:
            self.sessions.end(session)
            _LOG.info("signed out", person=session.name, means=session.means)

    def _proven_by_password(self, name: str, password: str, where: Where) -> Account:
        key = _shortened(name)
        return self._proven(key, PASSWORD, where, lambda: self.store.by_password(name, password))

    def _by_pin(self, found: Account | None, pin: str) -> Account | None:
        """Of whom the name or badge found; takes as long where that is nobody."""
        proven = self.store.by_pin(found.name if found else "", pin)
        return proven if proven and found and proven.epoch == found.epoch else None

    def _proven(self, key: str, limit: Limit, where: Where, check: Check) -> Account:
        """The account whose secret was right. Raises `PageError`."""
        source = self._source(key, where)
        account = self._try(source, limit, check)
        if account.is_locked:
            said = {"person": account.name, "address": source.place}
            _LOG.warning("a locked person tried to sign in", **said)
            raise PageError(403, "people.why.locked")
        return account

    def _source(self, key: str, where: Where, is_known: bool = False) -> _Source:
        """`is_known`: at this device, though it is not known yet who types."""
        device = self.devices.of_person(where.device, "" if is_known else key)
        return _Source(key, network_of(where.address), device)

    def _try(self, source: _Source, limit: Limit, check: Check) -> Account:
        """The account whose secret it is, unless there is still to wait. Raises `PageError`."""
        key, place, device = source.key, source.place, source.device
        known = self.account(key)
        said = {"person": known.name if known else "", "address": place, "means": limit.name}
        with self._lock:
            wait_s = self._throttle.begin(key, place, limit, self._clock(), device)
        if wait_s > 0:
            self._refuse(said, wait_s, "a confirmation" if device == _SIGNED_IN else "a sign-in")
        try:
            proven = self._unless_busy(check)
        except BaseException:
            with self._lock:
                self._throttle.withdrawn(key, place, limit, self._clock(), device)
            raise
        is_right = proven is not None and self._is_still(proven)
        with self._lock:
            if is_right:
                self._throttle.succeeded(key, place, limit, self._clock(), device)
            wait_s = self._throttle.wait_s(key, place, limit, self._clock(), device)
        if proven is None or not is_right:
            raise self._failure(source, said, wait_s)
        return proven

    def _failure(self, source: _Source, said: Json, wait_s: float) -> PageError:
        """Who signs with a wrong secret is signed in all the same."""
        if source.device == _SIGNED_IN:
            _LOG.warning("a confirmation failed", **said, wait_s=wait_s)
            return PageError(403, "people.why.confirm_wrong")
        self.counts.failed += 1
        _LOG.warning("a sign-in failed", **said, wait_s=wait_s)
        return PageError(401, "people.why.wrong")

    def _is_still(self, proven: Account) -> bool:
        """Whether the secret is not another one by now."""
        account = self.account(proven.name)
        return account is not None and account.epoch == proven.epoch

    def _see_wait(self, source: _Source, limit: Limit) -> None:
        """Raises `PageError` 429 before anything is worked out for somebody who has to wait."""
        key, place, device = source.key, source.place, source.device
        with self._lock:
            wait_s = self._throttle.wait_s(key, place, limit, self._clock(), device)
        if wait_s > 0:
            self._refuse({"person": "", "address": place, "means": limit.name}, wait_s)

    def _refuse(self, said: Json, wait_s: float, what: str = "a sign-in") -> None:
        self.counts.refused += what == "a sign-in"
        whole_s = max(1, round(wait_s + 0.5))
        _LOG.warning(f"{what} was refused before its time", **said, wait_s=whole_s)
        raise PageError(429, "people.why.wait", retry_s=whole_s, seconds=whole_s)

    def _unless_busy(self, work: Callable[[], T]) -> T:
        try:
            return work()
        except TooBusy as error:
            raise PageError(503, "people.why.busy", retry_s=5) from error
        except PeopleError as error:  # a wrong PIN could not be counted
            raise PageError(503, f"people.why.{error.key}", retry_s=5) from error

    def _begin(
        self, account: Account, most: Role, means: Means, where: Where, is_shared: bool
    ) -> str:
        self.counts.signed_in += 1
        _LOG.info("signed in", person=account.name, means=means, address=where.address)
        return self.sessions.begin(
            account.name,
            account.epoch,
            most,
            means,
            is_shared=is_shared,
            address=where.address,
            agent=where.agent,
        )

    # --- signing, and one's own account -----------------------------------------------------------

    def confirm(self, person: Person, secret: str) -> None:
        """As `People` says."""
        limit = PIN if is_pin(secret) else PASSWORD
        self._confirm(person, limit, lambda: self.store.by_secret(person.name, secret))

    def change_own(
        self, request: Request, person: Person, password: str, change: Callable[[str, int], object]
    ) -> None:
        """Change one's own account by one's password; all other sessions end. `change` gets name
        and epoch, of which it makes the next one. Raises `PageError`, and as the change does."""
        session = self.current(request)
        self._confirm(person, PASSWORD, lambda: self.store.by_password(session.name, password))
        session.epoch += 1  # before it holds: a page that is open asks meanwhile
        try:
            change(session.name, session.epoch - 1)
        except BaseException:
            session.epoch -= 1
            raise
        self.sessions.end_of(session.name, keep=session)
        self.tell_log()

    def prefer_language(self, person: Person, language: str) -> None:
        """As `People` says."""
        account = self.account(person.name)
        if account is not None and account.language != language:
            self.store.set_language(person.name, language)

    def _confirm(self, person: Person, limit: Limit, check: Check) -> None:
        # A key of its own: a stranger's guesses at the sign-in hold up nobody who is signed in.
        self._try(_Source(folded(person.name), "", _SIGNED_IN), limit, check)

    # --- what an administrator does ---------------------------------------------------------------

    def lock(self, name: str, by: Person) -> str:
        """Why the log does not say so yet; empty if it does. Raises `PageError`, `PeopleError`."""
        self._see_another(name, by)
        self.store.set_locked(name, True, by.name)
        return self.tell_log()

    def unlock(self, name: str, by: Person, password: str) -> str:
        """As `lock`; with the administrator's own password, for it gives rights."""
        self._see_another(name, by)
        self._confirm(by, PASSWORD, lambda: self.store.by_password(by.name, password))
        self.store.set_locked(name, False, by.name)
        return self.tell_log()

    def set_role(self, name: str, role: Role, by: Person, password: str) -> str:
        """As `unlock`."""
        self._see_another(name, by)
        self._confirm(by, PASSWORD, lambda: self.store.by_password(by.name, password))
        self.store.set_role(name, role, by.name)
        return self.tell_log()

    def _see_another(self, name: str, by: Person) -> None:
        if is_oneself(name, by):
            raise conflict("people.why.not_oneself")

    # --- the log ----------------------------------------------------------------------------------

    def tell_log(self) -> str:
        """Bring what was done into the log; why that is still to come, empty if it is done."""
        return self._teller.tell()

    def start(self) -> None:
        """Go on telling the log what it does not know, until `stop`."""
        self._teller.start()

    def stop(self) -> None:
        self._reader.shutdown(wait=False)
        if self._teller.stop():
            self.store.close()


def _mark_of(found: os.stat_result) -> tuple[int, int, int]:
    """What changes when the file does."""
    return found.st_ino, found.st_mtime_ns, found.st_size


def limits_of(settings: WebSettings) -> Limits:
    return Limits(
        idle_s=60 * settings.idle_min,
        shared_idle_s=settings.shared_idle_s,
        absolute_s=3600 * settings.session_h,
    )


def person(account: Account, session: Session, idle_s: float) -> Person:
    """Who somebody is in this session."""
    return Person(
        name=account.name,
        full_name=account.full_name,
        role=min(account.role, session.most),
        languages=(account.language,) if account.language else (),
        signs_out_after_s=round(idle_s) if session.is_shared else None,
    )


def is_oneself(name: str, person: Person) -> bool:
    return folded(name) == folded(person.name)


def is_by_hand(request: Request) -> bool:
    """Whether a person asked for it, not a page by itself (Fetch Metadata: a navigation that
    somebody's click or key began says so; clients that say nothing are believed)."""
    if request.method not in ("GET", "HEAD"):
        return True
    if "text/event-stream" in request.headers.get("accept", ""):
        return False  # it asks again and again, for as long as the page is open
    if "sec-fetch-mode" not in request.headers:
        return "hx-request" not in request.headers
    return request.headers.get("sec-fetch-user") == "?1"


def where_of(request: Request) -> Where:
    device = request.cookies.get(cookie_name(request, DEVICE_COOKIE), "")
    return Where(address_of(request), request.headers.get("user-agent", ""), device)


def address_of(request: Request) -> str:
    """Who asks. Behind the proxy that `public_url` tells of, who asked that: the last address of
    X-Forwarded-For, which the proxy itself wrote."""
    peer = request.client.host if request.client else ""
    settings: WebSettings = request.app.state.web.settings
    with contextlib.suppress(ValueError):
        if settings.public_url and ip_address(peer).is_loopback:
            said = request.headers.getlist("x-forwarded-for")
            return str(ip_address(",".join(said).rpartition(",")[2].strip()))
    return peer


def network_of(address: str) -> str:
    """What one customer of a network has: an IPv4 address, or 64 bits of an IPv6 one; inside a
    plant, where 64 bits are everybody's, all of it."""
    try:
        found = ip_address(address)
    except ValueError:
        return address[:_MOST_NAME]
    if not isinstance(found, IPv6Address):
        return str(found)
    if found.ipv4_mapped:
        return str(found.ipv4_mapped)
    if not found.is_global:
        return str(found)
    return str(IPv6Address(int(found) >> 64 << 64)) + "/64"


def _shortened(name: str) -> str:
    return folded(name[:_MOST_NAME])
