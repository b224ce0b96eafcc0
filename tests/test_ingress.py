"""What comes from outside is a name by one rule, or is refused and safe to look at."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from station.ingress import MAX_CHARACTERS, Refused, admit, escaped

_PRINTABLE = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=90)


@given(st.one_of(st.binary(max_size=200), st.text(max_size=200), _PRINTABLE))
def test_a_name_is_printable_ascii_and_what_is_none_is_shown_in_it(raw: bytes | str) -> None:
    found = admit(raw)
    shown = found.shown if isinstance(found, Refused) else found
    assert all(" " <= character <= "~" for character in shown)
    if isinstance(found, Refused):
        assert found.why
        assert len(shown) <= 10 * MAX_CHARACTERS + 30
        return
    text = raw.decode() if isinstance(raw, bytes) else raw
    assert found == text.strip(" "), "stored exactly"
    assert 1 <= len(found) <= MAX_CHARACTERS
    assert admit(found) == found


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        ("", "empty"),
        ("   ", "empty"),
        ("A" * 65, "65 characters, 64 at most"),
        ("LGP\n1", r"character \n is"),
        ("LGP\x001", r"character \x00 is"),
        ("a\u202eb", r"character \u202e is"),
        ("\u0391LGP", r"character \u0391 is"),
        (b"LGP\xff1", r"character \xff is"),
        ("x" * 10_000, "10000 characters"),
        ("]d1\x1d", r"character \x1d is"),
    ],
)
def test_why_it_is_refused(raw: bytes | str, why: str) -> None:
    found = admit(raw)
    assert isinstance(found, Refused)
    assert why in found.why


@pytest.mark.parametrize(
    "raw", ["=1+1", "O'Brien", '"; DROP TABLE row; --', "<b>x</b>", "-1", "@x", "LGP 0001/2"]
)
def test_what_other_programs_would_run_is_stored_exactly(raw: str) -> None:
    assert admit(f" {raw} ") == raw


def test_a_long_reading_is_cut_and_counted() -> None:
    assert escaped("\u202e" * 100) == "\\u202e" * 64 + "... and 36 more"
    assert escaped("\ud800") == "\\ud800"
