"""The live view of `vqi run` at a terminal: the tower as it looks, the last plates, the rate."""

from __future__ import annotations

import time
from collections import deque

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from drivers.stacklight import LightState
from drivers.stacklight.settings import LightPattern
from station.ipc import Json
from station.record import score_text

_ELEMENTS = ("red", "amber", "yellow", "green", "blue", "white")
_BLINK_HZ = 2.0
_TOWER_WIDTH = 12
"""Holds the longest word of a state's name; two lines hold each name, so that nothing moves."""
_VERDICT_STYLE = {"PASS": "bold green", "FAIL": "bold red", "UNDECIDED": "bold yellow"}


class LiveView:
    """What the last events say. Give it to `rich.live.Live`, which asks again to blink."""

    def __init__(self, patterns: dict[LightState, LightPattern], title: str) -> None:
        self._patterns = patterns
        self._title = title
        self._records: deque[Json] = deque(maxlen=10)
        self._lamp: Json = {"state": LightState.FAULT, "result_id": ""}
        self._state = "PREOPERATIONAL"
        self._problem = ""
        self._attentions: list[str] = []
        self._counts = {"PASS": 0, "FAIL": 0, "UNDECIDED": 0}
        self._figures: Json = {}
        self._page = ""

    def take(self, event: Json) -> None:
        if "record" in event:
            self._records.append(event["record"] | {"latency_ms": event.get("latency_ms")})
            self._counts[event["record"]["verdict"]] += 1
        # What the lamp process took, not what the station asked for.
        self._lamp = event.get("lamp", self._lamp)
        self._figures = event.get("figures", self._figures)
        self._page = event.get("web", self._page)
        self._attentions = event.get("attentions", self._attentions)
        if "state" in event:
            self._state = event["state"]
            self._problem = "; ".join(event["problems"].values())
        if "problem" in event:
            self._problem = event["problem"]["text"]

    def __rich__(self) -> RenderableType:
        body = Table.grid(padding=(0, 3))
        body.add_column(width=_TOWER_WIDTH)
        body.add_row(self._tower(), self._plates())
        return Panel(Group(body, self._status()), title=self._title, border_style="dim")

    def _tower(self) -> RenderableType:
        """The elements that any pattern uses, lit or dark."""
        used = {element for pattern in self._patterns.values() for element in pattern}
        pattern = self._patterns[LightState(self._lamp["state"])]
        is_on_phase = int(time.monotonic() * _BLINK_HZ * 2) % 2 == 0
        lines = []
        for element in sorted(used, key=_element_place):
            mode = pattern.get(element)
            is_lit = mode == "on" or (mode == "blink" and is_on_phase)
            colour = _colour(element)
            style = f"on {colour}" if is_lit else "on grey15"
            label = f" {element[:6]:^6} "
            lines.append(Text(" " * 8, style=style))
            lines.append(Text(label, style=f"{style} {'black' if is_lit else 'grey50'}"))
            lines.append(Text(" " * 8, style=style))
        lines.append(Text("   ██   ", style="grey50"))
        name = self._lamp["state"].replace("_", " ")
        lines.append(Text(name + "\n" * (len(name) <= _TOWER_WIDTH), style="bold"))
        return Group(*lines)

    def _plates(self) -> RenderableType:
        table = Table(box=None, header_style="dim", pad_edge=False)
        for name in ("plate", "verdict", "score", "defects (mm from left, leading edge)", "ms"):
            table.add_column(name, no_wrap=name != "defects (mm from left, leading edge)")
        for record in self._records:
            score = record["score"]
            table.add_row(
                record["result_id"],
                Text(record["verdict"], style=_VERDICT_STYLE[record["verdict"]]),
                "" if score is None else score_text(score),
                _findings(record),
                "" if record["latency_ms"] is None else f"{record['latency_ms']:.0f}",
            )
        return table

    def _status(self) -> RenderableType:
        counts = "  ".join(f"{verdict} {count}" for verdict, count in self._counts.items())
        figures = self._figures
        rate = (
            f"{figures['mb_per_s']:.1f} MB/s  lost frames {figures['lost_frames']}"
            if figures
            else ""
        )
        text = Text(f"{self._state}   {counts}   {rate}")
        if self._page:
            text.append(f"\npage: {self._page}")
        if self._problem:
            text.append(f"\n{self._problem}", style="bold red")
        for attention in self._attentions:
            text.append(f"\nATTENTION: {attention}", style="bold yellow")
        return text


def plain_line(event: Json) -> str | None:
    """An event as one line of text; None if it is not worth one."""
    if "record" in event:
        record = event["record"]
        score = "" if record["score"] is None else f" score {score_text(record['score'])}"
        findings = _findings(record)
        return (
            f"{record['result_id']} {record['verdict']}{score}{'  ' + findings if findings else ''}"
        )
    if "web" in event:
        return f"page: {event['web']}"
    if "state" in event:
        problems = "; ".join(event["problems"].values())
        return f"station {event['state']}{': ' + problems if problems else ''}"
    if "problem" in event:
        return f"{event['problem']['part']}: {event['problem']['text']}"
    if "judge" in event:
        return f"{event['judge']['recipe']} judges: {event['judge']['model_id']}"
    if "attention" in event:
        row = event["attention"]
        return f"ATTENTION{'' if row['is_begin'] else ' ended'}: {row['text']}"
    if "drift" in event:
        ended = [row["detail"] for row in event["drift"] if row["what"] == "drift_cleared"]
        said = [f"ATTENTION ended: {detail['text']}" for detail in ended]
        return "\n".join([*said, *(f"ATTENTION: {text}" for text in event["attentions"])]) or None
    if event.get("attentions"):
        return "\n".join(f"ATTENTION: {text}" for text in event["attentions"])
    return None


def print_summary(console: Console, summary: Json) -> None:
    table = Table(box=None, show_header=False, pad_edge=False)
    for key, value in summary.items():
        if isinstance(value, dict):
            value = "  ".join(f"{name} {figure}" for name, figure in value.items()) or "none"
        elif isinstance(value, list):
            value = "; ".join(value) or "none"
        table.add_row(key.replace("_", " "), str(value))
    console.print(table)


def _findings(record: Json) -> str:
    if record["reason"]:
        return f"{record['reason']}: {record['detail']}" if record["detail"] else record["reason"]
    places = [f"({d['x_mm']:.0f}, {d['y_mm']:.0f})" for d in record["defects"][:4]]
    more = len(record["defects"]) + record["defects_omitted"] - len(places)
    return " ".join(places) + (f" and {more} more" if more > 0 else "")


def _element_place(element: str) -> tuple[int, str]:
    place = _ELEMENTS.index(element) if element in _ELEMENTS else len(_ELEMENTS)
    return place, element


def _colour(element: str) -> str:
    return {"amber": "orange1", "white": "white"}.get(element, element)
