"""One's own account, and the list of people that an administrator looks after."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal
from urllib.parse import urlencode

from pydantic import BaseModel, Field, SecretStr
from starlette.requests import Request

from station.passwords import MAX_DIGITS, MIN_CHARACTERS, MIN_DIGITS, WeakSecret
from station.people import Account, PeopleError
from station.roles import Person, Role
from station.web.context import Web
from station.web.errors import PageError, not_found
from station.web.pages import WebRouter
from station.web.people import StationPeople, is_oneself
from station.web.sessions import Means, Session
from station.web.sign_in import EmptyForm, Name, Secret, as_page_error, known_why, station_people

router = WebRouter()
RoleWord = Literal["viewer", "reviewer", "engineer", "admin"]
_DONE = ("password", "pin", "badge", "sessions", "locked", "unlocked", "role")


class SessionSeen(BaseModel):
    """One browser in which this person is signed in."""

    id: str
    began_at: str
    address: str
    agent: str
    means: Means
    is_shared: bool
    is_this: bool


class AccountPage(BaseModel):
    """What a person sees of the own account."""

    name: str
    full_name: str
    role: RoleWord
    """Of the account; on a shared screen it is good for no more than a reviewer's."""
    session_role: RoleWord
    has_pin: bool
    has_badge: bool
    sessions: list[SessionSeen]
    why: str
    seconds: int
    done: str
    least: int = MIN_CHARACTERS
    least_digits: int = MIN_DIGITS
    most_digits: int = MAX_DIGITS


class ChangePasswordForm(BaseModel):
    """The password that holds, and the next one twice."""

    password: Secret
    new: Secret
    again: Secret


class ChangePinForm(BaseModel):
    """The password, and the PIN twice; none takes it away."""

    password: Secret
    pin: SecretStr = SecretStr("")
    again: SecretStr = SecretStr("")


class ChangeBadgeForm(BaseModel):
    """The password, and what the badge says; nothing takes it away."""

    password: Secret
    badge: SecretStr = SecretStr("")


class EndSessionForm(BaseModel):
    """Which session ends."""

    id: Annotated[str, Field(pattern="^[0-9a-f]{16}$")]


class PersonForm(BaseModel):
    """Who it is about."""

    name: Name


class PrivilegeForm(PersonForm):
    """It gives rights: the administrator's own password is asked for again."""

    password: Secret


class RoleForm(PrivilegeForm):
    """What the person may do from now on."""

    role: RoleWord


class Changed(BaseModel):
    """What was done, and where that is seen."""

    to: str
    done: str = ""
    pending: str = ""
    """Why the log does not say it yet; empty if it does."""


class PersonSeen(BaseModel):
    """A person as an administrator sees one."""

    name: str
    full_name: str
    role: RoleWord
    is_locked: bool
    must_change: bool
    has_pin: bool
    has_badge: bool
    sessions: int
    created_at: str
    is_oneself: bool


class PeoplePage(BaseModel):
    """Everybody who may sign in, and how signing in went since the page began."""

    people: list[PersonSeen]
    signed_in: int
    failed: int
    refused: int
    roles: list[RoleWord]
    why: str
    seconds: int
    done: str


# --- one's own account ----------------------------------------------------------------------------


@router.page("/account", template="people/account.html")
def account_page(
    web: Web, person: Person, request: Request, why: str = "", seconds: int = 0, done: str = ""
) -> AccountPage:
    """One's own account: password, PIN, badge, sessions."""
    people = station_people(web)
    session = people.current(request)
    account = _account(people, session.name)
    return AccountPage(
        name=account.name,
        full_name=account.full_name,
        role=_word(account.role),
        session_role=_word(person.role),
        has_pin=account.has_pin,
        has_badge=account.has_badge,
        sessions=[_seen(one, session) for one in people.sessions.of(session.name)],
        why=known_why(why),
        seconds=max(0, min(seconds, 3600)),
        done=done if done in _DONE else "",
    )


@router.action("/account/password", role=Role.VIEWER, to="{to}")
def change_password(
    web: Web, person: Person, request: Request, form: ChangePasswordForm
) -> Changed:
    """Choose another password; everywhere else one is signed out."""
    people, new = station_people(web), form.new.get_secret_value()
    return _change(
        web,
        request,
        person,
        form.password,
        "password",
        new == form.again.get_secret_value(),
        lambda name, epoch: people.store.change_password(name, new, epoch),
    )


@router.action("/account/pin", role=Role.VIEWER, to="{to}")
def change_pin(web: Web, person: Person, request: Request, form: ChangePinForm) -> Changed:
    """Choose a PIN for shared screens, or take it away."""
    people, pin = station_people(web), form.pin.get_secret_value()
    return _change(
        web,
        request,
        person,
        form.password,
        "pin",
        pin == form.again.get_secret_value(),
        lambda name, epoch: people.store.set_pin(name, pin, epoch),
    )


@router.action("/account/badge", role=Role.VIEWER, to="{to}")
def change_badge(web: Web, person: Person, request: Request, form: ChangeBadgeForm) -> Changed:
    """Let a badge stand for one's name at shared screens, or no longer."""
    people, badge = station_people(web), form.badge.get_secret_value()
    return _change(
        web,
        request,
        person,
        form.password,
        "badge",
        True,
        lambda name, epoch: people.store.set_badge(name, badge, epoch),
    )


@router.action("/account/end-session", role=Role.VIEWER, to="{to}")
def end_session(web: Web, person: Person, form: EndSessionForm) -> Changed:
    """End one of one's own sessions."""
    sessions = station_people(web).sessions
    for one in sessions.of(person.name):
        if one.id == form.id:
            sessions.end(one)
            return Changed(to="/account?done=sessions", done="sessions")
    raise not_found("people.no_session")


@router.action("/account/end-others", role=Role.VIEWER, to="{to}")
def end_others(web: Web, person: Person, request: Request, form: EmptyForm) -> Changed:
    """End all of one's own sessions but this one."""
    people = station_people(web)
    people.sessions.end_of(person.name, keep=people.current(request))
    return Changed(to="/account?done=sessions", done="sessions")


def _change(
    web: Web,
    request: Request,
    person: Person,
    password: SecretStr,
    what: str,
    is_same_twice: bool,
    change: Callable[[str, int], object],
) -> Changed:
    """A form that failed leads back with the reason, JSON says it."""
    people = station_people(web)
    try:
        if not is_same_twice:
            raise PageError(422, "people.why.mismatch")
        people.change_own(request, person, password.get_secret_value(), change)
    except (PageError, PeopleError, WeakSecret) as error:
        return _failed(request, "/account", error)
    return Changed(to=f"/account?done={what}", done=what)


def _failed(request: Request, page: str, error: PageError | PeopleError | WeakSecret) -> Changed:
    """Raises `PageError` to who asked for JSON."""
    failure = as_page_error(error)
    if request.url.path.endswith(".json") or not failure.key.startswith("people.why."):
        raise failure from error
    said = {"why": failure.key.rpartition(".")[2], **failure.values}
    return Changed(to=f"{page}?{urlencode(said)}")


# --- everybody ------------------------------------------------------------------------------------


@router.page("/people", template="people/people.html", role=Role.ADMIN, menu="people.menu")
def people_page(
    web: Web, person: Person, why: str = "", seconds: int = 0, done: str = ""
) -> PeoplePage:
    """Everybody who may sign in."""
    people = station_people(web)
    there = [one for one in people.accounts().values() if one.removed_at is None]
    return PeoplePage(
        people=[_person_seen(one, people, person) for one in there],
        signed_in=people.counts.signed_in,
        failed=people.counts.failed,
        refused=people.counts.refused,
        roles=[_word(role) for role in Role],
        why=known_why(why),
        seconds=max(0, min(seconds, 3600)),
        done=done if done in _DONE else "",
    )


@router.action("/people/lock", role=Role.ADMIN, to="{to}")
def lock(web: Web, person: Person, request: Request, form: PersonForm) -> Changed:
    """Nobody signs in as this person any more; sessions end at once."""
    people = station_people(web)
    return _administer(request, "locked", lambda: people.lock(form.name, person))


@router.action("/people/unlock", role=Role.ADMIN, to="{to}")
def unlock(web: Web, person: Person, request: Request, form: PrivilegeForm) -> Changed:
    """This person may sign in again."""
    people, password = station_people(web), form.password.get_secret_value()
    return _administer(request, "unlocked", lambda: people.unlock(form.name, person, password))


@router.action("/people/role", role=Role.ADMIN, to="{to}")
def change_role(web: Web, person: Person, request: Request, form: RoleForm) -> Changed:
    """Give another person another role; the sessions of that person end."""
    people, role = station_people(web), Role[form.role.upper()]
    password = form.password.get_secret_value()
    return _administer(request, "role", lambda: people.set_role(form.name, role, person, password))


def _administer(request: Request, done: str, act: Callable[[], str]) -> Changed:
    try:
        pending = act()
    except (PageError, PeopleError) as error:
        return _failed(request, "/people", error)
    return Changed(to=f"/people?done={done}", done=done, pending=pending)


def _person_seen(account: Account, people: StationPeople, by: Person) -> PersonSeen:
    return PersonSeen(
        name=account.name,
        full_name=account.full_name,
        role=_word(account.role),
        is_locked=account.is_locked,
        must_change=account.must_change,
        has_pin=account.has_pin,
        has_badge=account.has_badge,
        sessions=len(people.sessions.of(account.name)),
        created_at=account.created_at,
        is_oneself=is_oneself(account.name, by),
    )


def _seen(session: Session, own: Session) -> SessionSeen:
    return SessionSeen(
        id=session.id,
        began_at=session.began_at,
        address=session.address,
        agent=session.agent,
        means=session.means,
        is_shared=session.is_shared,
        is_this=session is own,
    )


def _account(people: StationPeople, name: str) -> Account:
    account = people.account(name)
    assert account is not None
    return account


def _word(role: Role) -> RoleWord:
    word: RoleWord = role.word  # type: ignore[assignment]
    return word
