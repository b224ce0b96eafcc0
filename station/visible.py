"""Text from outside as a terminal may get it."""

from __future__ import annotations


def visible(text: str) -> str:
    """The text with every character that is not seen as its escape: none moves the cursor, turns
    the direction of writing, hides a part of it, or is no character at all."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else _escape(ord(letter)) for letter in text)


def _escape(code: int) -> str:
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
