"""The rules for text that comes from outside and is written down: one for names (serials, lots,
jobs, people), one for a person's words. Whoever takes such text, from a scanner, a PLC, a command
or a page, takes it through here.

A name is 1 to 64 printable ASCII characters, blanks around it taken off. Printable ASCII is what
Code 39, Code 128 and Data Matrix labels carry in practice; anything else is a disturbed reading, a
keyboard of another country, or an attack on a screen (control characters, right-to-left marks). 64
is twice the longest serial in GS1 (AI 21 has 20, SSCC 18, a GIAI 30 characters). What a spreadsheet
or a browser would run is allowed, and is made harmless where it is written out.
"""

from __future__ import annotations

from dataclasses import dataclass

MAX_CHARACTERS = 64
MAX_WORDS_CHARACTERS = 1000
_SHOWN = 64


@dataclass(frozen=True, slots=True)
class Refused:
    """A reading that is no name."""

    why: str
    shown: str
    """The raw reading in printable ASCII: escaped, and cut."""


def admit(raw: bytes | str) -> str | Refused:
    """The name that a reading says, or why it says none."""
    text = raw.decode("latin-1") if isinstance(raw, bytes) else raw
    name = text.strip(" ")
    why = _objection(name)
    return Refused(why, escaped(text)) if why else name


def escaped(text: str) -> str:
    """Any text in printable ASCII, 64 of its characters at most; the rest is counted."""
    shown = text[:_SHOWN].encode("unicode_escape", "surrogatepass").decode("ascii")
    rest = len(text) - _SHOWN
    return f"{shown}... and {rest} more" if rest > 0 else shown


def _objection(name: str) -> str:
    """Why this is no name; empty if it is one."""
    if not name:
        return "empty"
    if len(name) > MAX_CHARACTERS:
        return f"{len(name)} characters, {MAX_CHARACTERS} at most"
    strange = next((c for c in name if not " " <= c <= "~"), None)
    if strange is not None:
        return f"character {escaped(strange)} is not printable ASCII"
    return ""


def name_problem(what: str, text: str) -> str:
    """Why this is no name of a person as it is to be written; empty if it is one."""
    name = admit(text)
    if isinstance(name, Refused):
        return f"the {what} is no name: {name.why}"
    return "" if name == text else f"the {what} begins or ends with a blank"


def words_problem(what: str, text: str) -> str:
    """Why this is not taken as what a person says, a reason or a note; empty if it is. Words are up
    to 1,000 characters of any language in one line, all of them seen: no control characters, no
    marks without width or that turn the direction of writing."""
    if len(text) > MAX_WORDS_CHARACTERS:
        return f"the {what} has {len(text)} characters, {MAX_WORDS_CHARACTERS} at most"
    hidden = next((letter for letter in text if not letter.isprintable()), None)
    if hidden is not None:
        return (
            f"the {what} has a character that is not seen (U+{ord(hidden):04X}); write it in one "
            "line of plain text"
        )
    return f"the {what} begins or ends with a blank" if text != text.strip() else ""
