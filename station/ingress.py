"""The one rule for text that comes from outside and is written down as a name: serials, lots, jobs,
people. Whoever takes such text, from a scanner, a PLC, a command or a page, takes it through here.

A name is 1 to 64 printable ASCII characters, blanks around it taken off. Printable ASCII is what
Code 39, Code 128 and Data Matrix labels carry in practice; anything else is a disturbed reading, a
keyboard of another country, or an attack on a screen (control characters, right-to-left marks). 64
is twice the longest serial in GS1 (AI 21 has 20, SSCC 18, a GIAI 30 characters). What a spreadsheet
or a browser would run is allowed, and is made harmless where it is written out.
"""

from __future__ import annotations

from dataclasses import dataclass

MAX_CHARACTERS = 64
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
