"""Who sends a request, and what proves it: sign-in, sessions, and the secret asked for again where
somebody signs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import IPv6Address, ip_address
from typing import Protocol, TypeVar

from starlette.requests import Request

from station.config import Configuration, Loaded, WebSettings
from station.ipc import Json
from station.log_lines import get_logger
from station.passwords import Hasher, TooBusy, is_pin
from station.people import DATABASE, Account, PeopleError, PeopleStore
from station.people_log import tell_log
from station.reviews import person as folded
from station.roles import ANONYMOUS, Person, Role
from station.throttle import PASSWORD, PIN, Limit, Throttle
from station.web.cookies import cookie_name
from station.web.errors import PageError, SignInNeeded, conflict
from station.web.sessions import Limits, Means, Session, Sessions

_LOG = get_logger("people")
SESSION_COOKIE = "session"
T = TypeVar("T")
_MOST_NAME = 64
_TELL_AGAIN_S = 30.0
_RACY_S = 0.1
"""A file that changed so lately may change again within one step of its time stamp."""


@dataclass(frozen=True, slots=True)
class Where:
    """From where somebody signs in."""

    address: str
    agent: str = ""


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
        to. Answers from memory: it is asked on the event loop."""

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
        self._configuration = configuration.value
        self._settings = configuration.value.web or WebSettings()
        self.store = PeopleStore(configuration.value.people_dir, hasher)
        self.sessions = sessions or Sessions(limits_of(self._settings))
        self.counts = Counts()
        self._throttle, self._clock = Throttle(), clock
        self._lock = threading.Lock()
        self._known = _Known()
        self._stopping = threading.Event()
        self._teller: threading.Thread | None = None

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
        return any(account.removed_at is None for account in self.accounts().values())

    def current(self, request: Request) -> Session:
        """The session of a request. Raises `SignInNeeded`."""
        session, _ = self._signed_in(request)
        if session is None:
            raise SignInNeeded
        return session

    def accounts(self) -> dict[str, Account]:
        """All people by their folded names, as the file has them now."""
        found = (self.store.directory / DATABASE).stat()
        mark = (found.st_ino, found.st_mtime_ns, found.st_size)
        if self._known.is_racy or mark != self._known.mark:
            is_racy = time.time() - found.st_mtime < _RACY_S
            accounts = {folded(one.name): one for one in self.store.accounts()}
            self._known = _Known(accounts, mark, is_racy)
        return self._known.accounts

    def account(self, name: str) -> Account | None:
        """The account of that name, if it is there still."""
        account = self.accounts().get(folded(name))
        return None if account is None or account.removed_at else account

    def _signed_in(self, request: Request) -> tuple[Session | None, Account | None]:
        session = self.sessions.find(request.cookies.get(cookie_name(request, SESSION_COOKIE), ""))
        if session is None:
            return None, None
        account = self.account(session.name)
        if account is None or not account.is_active or account.epoch != session.epoch:
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
        """On a shared screen, as REVIEWER at most. Raises as `sign_in`."""
        typed = _shortened(name_or_badge)
        self._see_wait(typed, where, PIN)
        # Both are looked for whatever is found: the time that it takes tells nothing of names.
        by_badge = self._unless_busy(lambda: self.store.by_badge(name_or_badge))
        by_name = self.store.find(name_or_badge)
        found = by_name or by_badge
        key = folded(found.name) if found else typed
        account = self._proven(
            key, PIN, where, lambda: self.store.is_pin_of(found.name if found else "", pin)
        )
        return self._begin(account, Role.REVIEWER, "pin" if by_name else "badge", where, True)

    def replace_password(self, name: str, old: str, new: str, where: Where) -> str:
        """Sign in with a password that is then another one. Raises as `sign_in`; `WeakSecret`,
        `PeopleError` if the new one is not taken."""
        account = self._proven_by_password(name, old, where)
        self.store.change_password(account.name, new)
        self.tell_log()
        changed = self.store.find(account.name)
        assert changed is not None
        return self._begin(changed, Role.ADMIN, "password", where, False)

    def sign_out(self, request: Request) -> None:
        session, _ = self._signed_in(request)
        if session is not None:
            self.sessions.end(session)
            _LOG.info("signed out", person=session.name, means=session.means)

    def _proven_by_password(self, name: str, password: str, where: Where) -> Account:
        key = _shortened(name)
        return self._proven(key, PASSWORD, where, lambda: self.store.is_password_of(name, password))

    def _proven(self, key: str, limit: Limit, where: Where, check: Callable[[], bool]) -> Account:
        """The account whose secret was right. Raises `PageError`."""
        place = network_of(where.address)
        self._try(key, place, limit, check)
        account = self.account(key)
        if account is None:
            raise PageError(401, "people.why.wrong")
        if account.is_locked:
            _LOG.warning("a locked person tried to sign in", person=account.name, address=place)
            raise PageError(403, "people.why.locked")
        return account

    def _try(self, key: str, place: str, limit: Limit, check: Callable[[], bool]) -> None:
        """Look at a secret, unless there is still to wait. Raises `PageError`."""
        known = self.account(key)
        said = {"person": known.name if known else "", "address": place, "means": limit.name}
        with self._lock:
            wait_s = self._throttle.begin(key, place, limit, self._clock())
        if wait_s > 0:
            self._refuse(said, wait_s)
        try:
            is_right = self._unless_busy(check)
        except BaseException:
            with self._lock:
                self._throttle.withdrawn(key, place, limit, self._clock())
            raise
        with self._lock:
            if is_right:
                self._throttle.succeeded(key, place, limit)
            wait_s = self._throttle.wait_s(key, place, limit, self._clock())
        if not is_right:
            self.counts.failed += 1
            _LOG.warning("a sign-in failed", **said, wait_s=wait_s)
            raise PageError(401, "people.why.wrong")

    def _see_wait(self, key: str, where: Where, limit: Limit) -> None:
        """Raises `PageError` 429 before anything is worked out for somebody who has to wait."""
        place = network_of(where.address)
        with self._lock:
            wait_s = self._throttle.wait_s(key, place, limit, self._clock())
        if wait_s > 0:
            self._refuse({"person": "", "address": place, "means": limit.name}, wait_s)

    def _refuse(self, said: Json, wait_s: float) -> None:
        self.counts.refused += 1
        whole_s = max(1, round(wait_s + 0.5))
        _LOG.warning("a sign-in was refused before its time", **said, wait_s=whole_s)
        raise PageError(429, "people.why.wait", retry_s=whole_s, seconds=whole_s)

    def _unless_busy(self, work: Callable[[], T]) -> T:
        try:
            return work()
        except TooBusy as error:
            raise PageError(503, "people.why.busy", retry_s=5) from error

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
        self._confirm(person, limit, lambda: self.store.is_secret_of(person.name, secret))

    def change_own(
        self, request: Request, person: Person, password: str, change: Callable[[str], None]
    ) -> None:
        """Change one's own account by one's password; all other sessions end. Raises `PageError`,
        and as the change does."""
        session = self.current(request)
        self._confirm(person, PASSWORD, lambda: self.store.is_password_of(session.name, password))
        change(session.name)
        account = self.store.find(session.name)
        assert account is not None
        session.epoch = account.epoch
        self.sessions.end_of(session.name, keep=session)
        self.tell_log()

    def prefer_language(self, person: Person, language: str) -> None:
        """As `People` says."""
        if person.is_signed_in:
            self.store.set_language(person.name, language)

    def _confirm(self, person: Person, limit: Limit, check: Callable[[], bool]) -> None:
        # A key of its own: a stranger's guesses at the sign-in hold up nobody who is signed in.
        key = f"confirm {folded(person.name)}"
        try:
            self._try(key, key, limit, check)
        except PageError as error:
            if error.status != 401:
                raise
            raise PageError(403, "people.why.confirm_wrong") from error

    # --- what an administrator does ---------------------------------------------------------------

    def set_locked(self, name: str, is_locked: bool, by: Person) -> str:
        """Why the log does not say so yet; empty if it does. Raises `PageError`, `PeopleError`."""
        self._see_another(name, by)
        self.store.set_locked(name, is_locked, by.name)
        return self.tell_log()

    def set_role(self, name: str, role: Role, by: Person) -> str:
        """As `set_locked`."""
        self._see_another(name, by)
        self.store.set_role(name, role, by.name)
        return self.tell_log()

    def _see_another(self, name: str, by: Person) -> None:
        if folded(name) == folded(by.name):
            raise conflict("people.why.not_oneself")

    # --- the log ----------------------------------------------------------------------------------

    def tell_log(self) -> str:
        """Bring what was done into the log; why that is still to come, empty if it is done."""
        return tell_log(self._configuration, self.store)

    def start(self) -> None:
        """Go on telling the log what it does not know, until `stop`."""
        self._teller = threading.Thread(target=self._tell, name="people-log", daemon=True)
        self._teller.start()

    def stop(self) -> None:
        self._stopping.set()
        if self._teller is not None:
            self._teller.join()
        self.store.close()

    def _tell(self) -> None:
        while True:
            try:
                problem = self.tell_log()
            except PeopleError as error:
                problem = str(error)
            if problem:
                _LOG.warning("what was done to accounts is not in the log yet", why=problem)
            if self._stopping.wait(_TELL_AGAIN_S):
                return


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
    address = request.client.host if request.client else ""
    return Where(address, request.headers.get("user-agent", ""))


def network_of(address: str) -> str:
    """What one customer of a network has: an IPv4 address, or 64 bits of an IPv6 one."""
    try:
        found = ip_address(address)
    except ValueError:
        return address[:_MOST_NAME]
    if not isinstance(found, IPv6Address):
        return str(found)
    if found.ipv4_mapped:
        return str(found.ipv4_mapped)
    return str(IPv6Address(int(found) >> 64 << 64)) + "/64"


def _shortened(name: str) -> str:
    return folded(name[:_MOST_NAME])
