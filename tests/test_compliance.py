"""The table of clauses names tests that exist, and no clause of its scope is left out."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parent
TEXT = (TESTS.parent / "docs" / "compliance.md").read_text()
PART_11 = [f"11.10({letter})" for letter in "abcdefghijk"] + [
    "11.50", "11.70", "11.100(a)", "11.100(b)", "11.100(c)", "11.200(a)", "11.200(b)",
    "11.300(a)-(d)", "11.300(e)",
]  # fmt: skip
IATF = [
    "7.1.5.1.1", "7.5.3.2.1", "8.5.1.1", "8.5.2.1", "8.6.1", "8.6.2", "8.6.3", "8.6.6",
    *(f"8.7.1.{number}" for number in range(1, 8)), "10.2.3", "10.2.4", "10.2.6",
]  # fmt: skip


def test_every_named_test_exists() -> None:
    named = re.findall(r"`tests/(\w+)\.py::(\w+)`", TEXT)
    assert len(named) > 40
    for file, test in named:
        assert re.search(rf"^def {test}\(", (TESTS / f"{file}.py").read_text(), re.MULTILINE), test


def test_every_clause_has_a_line_and_every_line_says_something() -> None:
    lines = [line.split("|")[1:-1] for line in TEXT.splitlines() if re.match(r"\| *\d", line)]
    clauses = ", ".join(line[0].strip() for line in lines)
    for clause in (*PART_11, *IATF):
        assert clause in re.split(r", ", clauses), clause
    for line in lines:
        assert len(line) == 5, line
        assert any(cell.strip() for cell in line[2:]) or "customer specifies" in line[1], line
