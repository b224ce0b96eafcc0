"""Passwords, PINs and badges: what may be one, and how it is kept.

The rules are those of NIST SP 800-63B (5.1.1.2; 3.1.1.2 in revision 4): length, no composition
rules, no change by the calendar, refused where it is known, a run of keys, or the person's own
name. Kept is an Argon2id hash with the parameters of OWASP's Password Storage Cheat Sheet.
"""

from __future__ import annotations

import threading
import tomllib
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from functools import cache, cached_property
from importlib import resources
from itertools import pairwise
from typing import Literal

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from argon2.low_level import Type, hash_secret_raw

MIN_CHARACTERS = 12
MAX_CHARACTERS = 128
MIN_DIGITS = 6
MAX_DIGITS = 11
"""A PIN is always shorter than a password: which of the two was typed is seen by its length."""
MIN_BADGE_CHARACTERS = 4
_MIN_DISTINCT = 5
_LONGEST_PERIOD = 4
_OWN_CHARACTERS = 4
"""Shorter parts of a name are parts of many words."""

_KEYBOARD = (
    *("1234567890" * 2, "qwertyuiopasdfghjklzxcvbnm" * 2, "qwertzuiopasdfghjklyxcvbnm" * 2),
    *("azertyuiopqsdfghjklmwxcvbn" * 2, "abcdefghijklmnopqrstuvwxyz" * 2),
)


class Weakness(StrEnum):
    """Why something is no password, PIN or badge."""

    SHORT = "short"
    LONG = "long"
    COMMON = "common"
    REPEATED = "repeated"
    RUN = "run"
    OWN_NAME = "own_name"
    NO_DIGITS = "no_digits"
    TRIVIAL = "trivial"
    NO_BADGE = "no_badge"


_SENTENCES = {
    Weakness.SHORT: f"the password needs {MIN_CHARACTERS} characters or more; a few words will do",
    Weakness.LONG: f"the password has more than {MAX_CHARACTERS} characters",
    Weakness.COMMON: "the password is one of those that are tried first; choose another",
    Weakness.REPEATED: "the password is a repetition; choose another",
    Weakness.RUN: "the password is a run of keys or letters; choose another",
    Weakness.OWN_NAME: "the password is made of the person's own name; choose another",
    Weakness.NO_DIGITS: f"a PIN is {MIN_DIGITS} to {MAX_DIGITS} digits",
    Weakness.TRIVIAL: "the PIN is one of those that are tried first; choose another",
    Weakness.NO_BADGE: (
        f"a badge says {MIN_BADGE_CHARACTERS} to 64 letters, digits and signs of plain ASCII"
    ),
}


class WeakSecret(ValueError):
    """Not taken as password, PIN or badge; the message says why and what to do."""

    def __init__(self, weakness: Weakness) -> None:
        super().__init__(_SENTENCES[weakness])
        self.weakness = weakness


@cache
def common(what: Literal["passwords", "words", "pins"]) -> frozenset[str]:
    """What is tried first; kept on this machine, for a station asks nobody outside."""
    path = resources.files("station") / "shipped" / "secrets" / "common.toml"
    return frozenset(tomllib.loads(path.read_text("utf-8"))[what])


def check_password(password: str, *own: str) -> None:
    """Raises `WeakSecret`. `own`: names of the person and the station."""
    weakness = _weakness(normal(password), own)
    if weakness is not None:
        raise WeakSecret(weakness)


def check_pin(pin: str) -> None:
    """Raises `WeakSecret`."""
    if not is_pin(pin):
        raise WeakSecret(Weakness.NO_DIGITS)
    is_run = len({(int(b) - int(a)) % 10 for a, b in pairwise(pin)}) == 1
    is_pattern = _period(pin) <= len(pin) // 2 or len(set(pin)) <= 2 or _is_doubled(pin)
    if is_run or is_pattern or pin == pin[::-1] or pin in common("pins"):
        raise WeakSecret(Weakness.TRIVIAL)


def is_pin(text: str) -> bool:
    """Whether this can be a PIN; if not it can only be a password."""
    return text.isascii() and text.isdecimal() and MIN_DIGITS <= len(text) <= MAX_DIGITS


def normal(password: str) -> str:
    """One spelling of a password, whatever keyboard it was typed on (UAX 15, NFKC)."""
    return unicodedata.normalize("NFKC", password)


def _weakness(password: str, own: tuple[str, ...]) -> Weakness | None:
    text = password.casefold()
    if len(password) < MIN_CHARACTERS:
        return Weakness.SHORT
    if len(password) > MAX_CHARACTERS:
        return Weakness.LONG
    if len(set(text)) < _MIN_DISTINCT or _period(text) <= _LONGEST_PERIOD:
        return Weakness.REPEATED
    if _is_run(text):
        return Weakness.RUN
    if text in common("passwords") or _word_of(text):
        return Weakness.COMMON
    return Weakness.OWN_NAME if _is_made_of(text, own) else None


def _period(text: str) -> int:
    """The length of the shortest part that the text is a repetition of."""
    return next(n for n in range(1, len(text) + 1) if text == (text[:n] * len(text))[: len(text)])


def _is_doubled(text: str) -> bool:
    """As 112233 or 445566."""
    pairs = [text[start : start + 2] for start in range(0, len(text), 2)]
    return len(text) % 2 == 0 and all(pair[0] == pair[1] for pair in pairs)


def _is_run(text: str) -> bool:
    """Made of four or more letters in a row at a time, of a keyboard or the alphabet."""
    rows = [row for line in _KEYBOARD for row in (line, line[::-1])]
    rest = text
    while rest:
        longest = max(_common_start(rest, row) for row in rows)
        if longest < 4:
            return False
        rest = rest[longest:]
    return True


def _common_start(text: str, row: str) -> int:
    """How many of the text's first letters stand so in the row."""
    return next((n for n in range(len(text), 0, -1) if text[:n] in row), 0)


_AS_LETTERS = str.maketrans("@4301$5!7", "aaeoissit")


def _word_of(text: str) -> str:
    """The common word, alone or repeated, that stands there within digits and signs; empty if none
    does."""
    letters = [place for place, letter in enumerate(text) if letter.isalpha()]
    core = text[letters[0] : letters[-1] + 1] if letters else ""
    found = {"".join(filter(str.isalpha, one)) for one in (core, core.translate(_AS_LETTERS))}
    words = [word[: _period(word)] for word in sorted(found) if word]
    return next((word for word in words if word in common("words")), "")


def _is_made_of(text: str, own: tuple[str, ...]) -> bool:
    """Whether little but digits and signs is left without the person's names."""
    parts = {part for name in own for part in (name.casefold(), *name.casefold().split())}
    rest = text
    for part in sorted(parts, key=len, reverse=True):
        if len(part) >= _OWN_CHARACTERS:
            rest = rest.replace(part, "")
    return rest != text and sum(map(str.isalpha, rest)) < _MIN_DISTINCT


# --- hashes -------------------------------------------------------------------------------------

MEMORY_KIB, PASSES, LANES = 19_456, 2, 1
"""OWASP's first choice for Argon2id: 19 MiB, two passes, one lane."""
_MAX_WAITING = 16
_MAX_WAIT_S = 10.0


class TooBusy(RuntimeError):
    """More secrets are being checked than this machine takes at once; to be tried again."""


class Hasher:
    """Hashes one secret at a time, and lets few wait: a flood of sign-ins takes 19 MiB and a core
    at most, and no memory for each."""

    def __init__(self, memory_kib: int = MEMORY_KIB) -> None:
        self._hasher = PasswordHasher(PASSES, memory_kib, LANES)
        self._memory_kib = memory_kib
        self._turn = threading.Lock()
        self._places = threading.BoundedSemaphore(_MAX_WAITING)

    @cached_property
    def _nobody(self) -> str:
        """Looked at where there is no hash, so that it takes as long."""
        return self._hasher.hash("nobody")

    def hash(self, secret: str) -> str:
        """What is kept of a password or PIN. Raises `TooBusy`."""
        with self._my_turn():
            return self._hasher.hash(normal(secret))

    def is_right(self, kept: str | None, secret: str) -> bool:
        """Whether this is the secret of that hash; takes as long where there is none. Raises
        `TooBusy`."""
        with self._my_turn():
            nobody = self._nobody
            try:
                return self._hasher.verify(kept or nobody, normal(secret)) and bool(kept)
            except (VerificationError, InvalidHashError):
                return False

    def is_outdated(self, kept: str) -> bool:
        """Whether it was made with other parameters than are asked for now."""
        return self._hasher.check_needs_rehash(kept)

    def badge(self, text: str, salt: bytes) -> str:
        """What is kept of a badge's text, one for all people of a store: a badge finds its person.
        Raises `TooBusy`."""
        with self._my_turn():
            raw = hash_secret_raw(
                text.encode(), salt, PASSES, self._memory_kib, LANES, hash_len=32, type=Type.ID
            )
        return raw.hex()

    @contextmanager
    def _my_turn(self) -> Iterator[None]:
        if not self._places.acquire(blocking=False):
            raise TooBusy("too many people sign in at once; try again")
        try:
            if not self._turn.acquire(timeout=_MAX_WAIT_S):
                raise TooBusy("too many people sign in at once; try again")
            try:
                yield
            finally:
                self._turn.release()
        finally:
            self._places.release()
