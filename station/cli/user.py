"""`vqi user`: the people of the page. Passwords are given out here alone, at the station itself."""

from __future__ import annotations

import contextlib
import getpass
import os
import pwd
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from station.cli.common import ConfigOption, JsonOption, fail, load_or_exit, print_json, say
from station.config import Configuration
from station.ipc import user_name
from station.passwords import WeakSecret
from station.people import Account, PeopleError, PeopleStore
from station.roles import Role

app = typer.Typer(no_args_is_help=True)
Name = Annotated[str, typer.Argument(help="As it stands in the log: ASCII, 64 characters at most.")]
RoleWord = Annotated[
    str, typer.Option(help="viewer, reviewer, engineer or admin.", show_default=False)
]


@app.command()
def add(
    name: Name,
    config: ConfigOption,
    role: RoleWord,
    full_name: Annotated[
        str, typer.Option(help="Printed beside what this person signs; default: the name.")
    ] = "",
) -> None:
    """A new person. The password is asked for twice, or read from stdin. Whoever is not the first
    changes it at the first sign-in."""
    wanted = _role(role)
    with _people(config) as store:
        is_first = not store.has_people()
        password = _new_password(name)
        store.add(name, full_name or name, wanted, password, by=_who(), must_change=not is_first)
        later = "" if is_first else "; the password has to be changed at the first sign-in"
        say(f"{name} is {wanted.word} now{later}")


@app.command()
def reset(name: Name, config: ConfigOption) -> None:
    """A new password, to be changed at the next sign-in; the PIN is void, sessions end."""
    with _people(config) as store:
        _known(store, name)
        store.reset(name, _new_password(name), by=_who())
        say(f"{name} has a new password, to be changed at the next sign-in")


@app.command("list")
def list_people(
    config: ConfigOption,
    is_json: JsonOption = False,
    is_all: Annotated[bool, typer.Option("--all", help="Also those that were removed.")] = False,
) -> None:
    """Who there is, and what each may do."""
    with _people(config) as store:
        for account in store.accounts():
            if account.removed_at and not is_all:
                continue
            if is_json:
                print_json(_row(account))
            else:
                say(_line(account))


@app.command()
def lock(name: Name, config: ConfigOption) -> None:
    """Nobody signs in as this person any more; sessions end at once."""
    with _people(config) as store:
        store.set_locked(name, True, by=_who())
        say(f"{name} is locked")


@app.command()
def unlock(name: Name, config: ConfigOption) -> None:
    """This person may sign in again."""
    with _people(config) as store:
        store.set_locked(name, False, by=_who())
        say(f"{name} may sign in")


@app.command()
def remove(name: Name, config: ConfigOption) -> None:
    """For good. The log goes on knowing the name; nobody else ever gets it."""
    with _people(config) as store:
        store.remove(name, by=_who())
        say(f"{name} is removed; the name stays taken")


# --- who may, and how they are asked --------------------------------------------------------------


@contextlib.contextmanager
def _people(config: str) -> Iterator[PeopleStore]:
    """The store, as its owner; afterwards the log is told."""
    configuration = load_or_exit(config).value
    _become_owner(configuration.people_dir)
    try:
        with PeopleStore(configuration.people_dir) as store:
            yield store
            _tell(configuration, store)
    except (PeopleError, WeakSecret) as error:
        fail(str(error))


def _become_owner(directory: Path) -> None:
    """Root acts as whom the folder belongs to: what it makes there is that user's. Anybody else has
    to be that user."""
    owner = _nearest(directory)
    if os.geteuid() == owner.st_uid:
        return
    if os.geteuid() != 0:
        fail(f"{directory} is for {user_name(owner.st_uid)} and root: be one of them")
    # Its groups too: one of them opens the journal process's door for the page.
    with contextlib.suppress(KeyError):
        os.initgroups(pwd.getpwuid(owner.st_uid).pw_name, owner.st_gid)
    os.setegid(owner.st_gid)
    os.seteuid(owner.st_uid)


def _nearest(directory: Path) -> os.stat_result:
    """Of the folder, or of the one in which it is going to be made."""
    for folder in (directory, *directory.absolute().parents):
        try:
            return folder.stat()
        except FileNotFoundError:
            continue
        except PermissionError:
            fail(f"{directory}: this user may not look there; be the station's user or root")
    raise AssertionError("there is always /")


def _tell(configuration: Configuration, store: PeopleStore) -> None:
    if not store.pending_acts():
        return
    from station.people_log import tell_log

    problem = tell_log(configuration, store)
    if problem:
        print(f"vqi: {problem}", file=sys.stderr)  # noqa: T201


def _who() -> str:
    """Who the kernel says it is; of root, also from whom it became that, as sudo says."""
    name = user_name(os.getuid())
    by = os.environ.get("SUDO_USER", "")
    return f"{name} ({by})" if name == "root" and by and by != name else name


def _new_password(name: str) -> str:
    """Asked for twice at a terminal, else the first line of stdin. Raises `typer.Exit`."""
    if not sys.stdin.isatty():
        password = sys.stdin.readline().rstrip("\r\n")
        return password or fail("no password came on stdin", 2)
    try:
        password = getpass.getpass(f"Password for {name}: ")
        again = getpass.getpass("Once more: ")
    except EOFError:
        fail("no password was given")
    if password != again:
        fail("the two are not the same; nothing was changed")
    return password


def _role(word: str) -> Role:
    try:
        return Role[word.upper()]
    except KeyError:
        known = ", ".join(role.word for role in Role)
        fail(f"--role {word!r}: there are {known}", 2)


def _known(store: PeopleStore, name: str) -> None:
    if store.find(name) is None:
        fail(f"there is no person {name!r}; see `vqi user list`")


def _row(account: Account) -> dict[str, Any]:
    return {
        "name": account.name,
        "full_name": account.full_name,
        "role": account.role.word,
        "language": account.language,
        "is_locked": account.is_locked,
        "must_change": account.must_change,
        "has_pin": account.has_pin,
        "has_badge": account.has_badge,
        "created_at": account.created_at,
        "removed_at": account.removed_at,
    }


def _line(account: Account) -> str:
    marks = {
        "locked": account.is_locked,
        "must change the password": account.must_change,
        "PIN": account.has_pin,
        "badge": account.has_badge,
        "removed": account.removed_at is not None,
    }
    said = "; ".join([account.full_name, *(mark for mark, is_so in marks.items() if is_so)])
    return f"{account.name:24} {account.role.word:10} {said}"
