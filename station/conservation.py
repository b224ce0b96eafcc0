"""Whether every plate that was opened has its result, and every result what the lamp was told.

Each start of the station settles what the life before left, and a life that dies right after its
`start` row leaves results that stand before it: so what the last two lives left open may still be
settled, and nothing older may.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, field
from typing import Any

_ANSWERS = {"opened": "result", "result": "actuation"}
_ASKED = {answer: asked for asked, answer in _ANSWERS.items()}
_ONCE = ("opened", "result", "actuation")
_BEFORE = "SELECT 1 FROM row WHERE result_id = ? AND +kind = ? AND seq < ?"
_WHAT = {"opened": "was opened and has no result", "result": "has no row of what the lamp was told"}


@dataclass(slots=True)
class Conservation:
    """Rows in order; what breaks the law is named by its row."""

    log: sqlite3.Connection
    findings: list[tuple[int, str]] = field(default_factory=list)
    results: int = 0
    triggers: int = 0
    """That rows answer for."""
    unknown: int = 0
    """Rows that cannot say how many triggers they answer for."""
    _last_opened: str = ""
    """Numbers only grow."""
    _open: dict[str, dict[str, int]] = field(default_factory=lambda: {k: {} for k in _ANSWERS})
    _starts: list[int] = field(default_factory=lambda: [0, 0])

    @property
    def open_plates(self) -> int:
        """Opened and without a result."""
        return len(self._open["opened"])

    def take(self, seq: int, kind: str, body: dict[str, Any]) -> None:
        """The next row."""
        if kind in _ONCE:
            self._take_plate(seq, kind, str(body.get("result_id")))
        if kind in ("result", "downtime"):
            self._count(body.get("triggers", 1))
            self.results += kind == "result"
        elif kind == "change" and body.get("what") == "start":
            self._starts = [self._starts[1], seq]

    def _take_plate(self, seq: int, kind: str, result_id: str) -> None:
        asked = _ASKED.get(kind)
        is_asked = asked is not None and self._open[asked].pop(result_id, None) is not None
        is_later = kind == "opened" and result_id > self._last_opened
        if not (is_asked or is_later) and self._is_second(seq, kind, result_id):
            self.findings.append((seq, f"row {seq}: a second {kind} of {result_id}"))
            return
        if kind == "opened":
            self._last_opened = result_id
        elif kind == "actuation" and not is_asked:
            self.findings.append((seq, f"row {seq}: the lamp was told of {result_id}, no result"))
        if kind in _ANSWERS:
            self._open[kind][result_id] = seq

    def _is_second(self, seq: int, kind: str, result_id: str) -> bool:
        """For the few that nothing before asked for: gaps, and what should not be."""
        values = (result_id, kind, seq)
        return self.log.execute(_BEFORE, values).fetchone() is not None

    def _count(self, triggers: Any) -> None:
        if isinstance(triggers, int):
            self.triggers += triggers
        else:
            self.unknown += 1

    def settle(self) -> list[tuple[int, str]]:
        """When all rows were taken."""
        for kind, left in self._open.items():
            for result_id, seq in left.items():
                if seq < self._starts[0]:
                    self.findings.append((seq, f"row {seq}: {result_id} {_WHAT[kind]}"))
        return self.findings
