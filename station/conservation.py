"""The conservation law, as far as the log itself can show it: every plate that was opened has a
result, and of every result it is written what the lamp was told.

A start settles what the life before it left open, its own results are answered after its row, and a
life that dies right after that leaves them to the next: what stands before a start and is not
settled at the next one is lost.
"""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]
_ASKS = {"opened": "result", "result": "actuation"}
"""Which row each of these asks for."""
_SAID = {"result": "was opened and has no result", "actuation": "has a result and no actuation"}


class Conservation:
    """Told every row in order; `findings` are what is lost."""

    def __init__(self) -> None:
        self.findings: list[str] = []
        self._pending: dict[tuple[str, str], int] = {}
        self._last_start = 0

    def take(self, seq: int, body: Json) -> None:
        kind, name = str(body.get("kind")), str(body.get("result_id"))
        self._pending.pop((kind, name), None)
        if kind in _ASKS:
            self._pending.setdefault((_ASKS[kind], name), seq)
        elif kind == "change" and body.get("what") == "start":
            self._begin(seq)

    def _begin(self, seq: int) -> None:
        lost = {key: at for key, at in self._pending.items() if at < self._last_start}
        for (wanted, name), at in lost.items():
            self.findings.append(f"row {at}: {name} {_SAID[wanted]}, two starts later")
            del self._pending[(wanted, name)]
        self._last_start = seq
