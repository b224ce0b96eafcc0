"""The timing diagram of docs/plc.md, drawn from what went over the wires of a running station.

    python docs/make_timing.py          # needs gcc; writes docs/plc-timing.svg and .json

A whole station under the line-scan simulator, a stack light on a pty, a PLC that polls over Modbus
TCP every 10 ms and acknowledges after 80 ms, an accept output on a Modbus module; then the station
hangs, and is killed. The trace is kept beside the picture: `--draw` draws it anew.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from xml.sax.saxutils import escape

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from plc_line import PlcLine, plc_line
from pty_recorder import adafruit_elements
from station_rig import children, wait_until

_HERE = Path(__file__).parent
_TRACE, _PICTURE = _HERE / "plc-timing.json", _HERE / "plc-timing.svg"
_WORDS = ("ready", "busy", "result_valid", "ok", "ng", "error")
_LEFT, _ROW, _HIGH, _MS = 130, 26, 14, 0.42
"""Pixels: names, a row, a level, a millisecond."""
_WINDOW_MS = 1700
_BEFORE_MS, _AFTER_MS = 200, 1500
"""What is shown around a fault."""
_HANG_S = 1.8
_COLOURS = {
    "accept": "#067d3a",
    "green": "#067d3a",
    "ok": "#067d3a",
    "ng": "#b3261e",
    "error": "#b3261e",
}

Levels = list[tuple[float, bool]]
"""(ms, level) at each change."""


@dataclass(frozen=True)
class Panel:
    title: str
    signals: dict[str, Levels]
    marks: list[tuple[float, str]]
    end_ms: float


# --- the trace ------------------------------------------------------------------------------------


def record() -> dict[str, object]:
    with tempfile.TemporaryDirectory() as folder, plc_line(Path(folder) / "line") as line:
        with line.rig.running() as process:
            line.plc.ack_after_s = 0.08
            wait_until(lambda: _has_both(line), 60.0, "a pass and a failure")
            time.sleep(_WINDOW_MS / 1000)
            station = children(process.pid)["station"]
            hung_ns = _strike(line, station, signal.SIGSTOP)
            os.kill(station, signal.SIGCONT)
            line.plc.ack_hold = True  # plates that were too late for their point meanwhile
            wait_until(lambda: bool(line.plc.last and line.plc.last.ready), 30.0, "READY again")
            wait_until(lambda: _shows_ok(line), 30.0, "OK again")
            killed_ns = _strike(line, station, signal.SIGKILL)
        plates = {row["result_id"]: [row["opened_ns"], 0, row["sequence"]] for row in _opened(line)}
        for row in line.rig.rows("result"):
            if row["last_scan_line_ns"] and row["result_id"] in plates:
                plates[row["result_id"]][1] = row["last_scan_line_ns"]
        polls = _changes(line)
        accept = [[ns, is_on] for ns, coil, is_on in line.module.history if coil == 0]
        tower = [[ns, data.hex()] for ns, data in line.tower.records]
    return {
        "hung_ns": hung_ns,
        "killed_ns": killed_ns,
        "polls": polls,
        "plates": list(plates.values()),
        "accept": accept,
        "tower": tower,
    }


def _changes(line: PlcLine) -> list[list[object]]:
    """The polls that brought something new."""
    polls: list[list[object]] = []
    for ns, said, ack in line.plc.trace:
        words = None if said is None else [getattr(said, word) for word in (*_WORDS, "result")]
        if not polls or polls[-1][1:] != [words, ack]:
            polls.append([ns, words, ack])
    return polls


def _shows_ok(line: PlcLine) -> bool:
    return line.plc.last is not None and line.plc.last.ok


def _strike(line: PlcLine, pid: int, number: signal.Signals) -> int:
    """While a plate is OK; when that was."""
    wait_until(lambda: not _shows_ok(line), 30.0, "the end of an OK")
    wait_until(lambda: _shows_ok(line), 30.0, "an OK")
    os.kill(pid, number)
    struck_ns = time.monotonic_ns()
    time.sleep(_HANG_S)
    return struck_ns


def _opened(line: PlcLine) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = line.rig.rows("opened")
    return rows


def _has_both(line: PlcLine) -> bool:
    """A pass and then a failure, the pass accepted, in the last results."""
    oks = [said.ok for said in line.plc.results]
    return any(a and not b for a, b in pairwise(oks[2:])) and len(line.pulses) >= 2


# --- from the trace to levels ---------------------------------------------------------------------


def panels(trace: dict[str, list[list[object]]]) -> list[Panel]:
    changes = _signals(trace)
    start_ns = _start_of_interest(trace)
    first = _cut(changes, start_ns, _WINDOW_MS)
    marks = [
        (_ms(int(str(begin)), start_ns), f"plate {number}")
        for begin, _, number in trace["plates"]
        if 0 <= _ms(int(str(begin)), start_ns) < _WINDOW_MS
    ]
    return [
        Panel("A pass and a failure", first, marks, _WINDOW_MS),
        _fault("SIGSTOP of the station", "hung", trace, changes),
        _fault("kill -9 of the station", "killed", trace, changes),
    ]


def _fault(
    title: str,
    what: str,
    trace: dict[str, list[list[object]]],
    changes: dict[str, list[tuple[int, bool]]],
) -> Panel:
    start_ns = int(str(trace[f"{what}_ns"])) - _BEFORE_MS * 1_000_000
    shown = {name: levels for name, levels in changes.items() if name != "plate"}
    end_ms = float(_BEFORE_MS + _AFTER_MS)
    return Panel(title, _cut(shown, start_ns, end_ms), [(float(_BEFORE_MS), what)], end_ms)


def _start_of_interest(trace: dict[str, list[list[object]]]) -> int:
    """A little before the leading edge of a plate that passed, with a failure after it."""
    ok, ng, result = _WORDS.index("ok"), _WORDS.index("ng"), len(_WORDS)
    said = [poll[1] for poll in trace["polls"] if isinstance(poll[1], list)]
    passed = {words[result] for words in said if words[ok]}
    failed = {words[result] for words in said if words[ng]}
    number = min(n for n in passed if n > 2 and n + 1 in failed)
    begin = next(begin for begin, _, sequence in trace["plates"] if sequence == number)
    return int(str(begin)) - 100_000_000


def _signals(trace: dict[str, list[list[object]]]) -> dict[str, list[tuple[int, bool]]]:
    polls = [(int(str(ns)), said, bool(ack)) for ns, said, ack in trace["polls"]]
    signals: dict[str, list[tuple[int, bool]]] = {"plate": []}
    for begin, end, _ in trace["plates"]:
        signals["plate"] += [(int(str(begin)), True), (int(str(end)), False)] if end else []
    for place, word in enumerate(_WORDS):
        signals[word] = [(ns, bool(said[place])) for ns, said, _ in polls if isinstance(said, list)]
    signals["ack"] = [(ns, ack) for ns, _, ack in polls]
    lit, data = [], b""
    for ns, part in trace["tower"]:
        data += bytes.fromhex(str(part))
        lit.append((int(str(ns)), "green" in adafruit_elements(data)))
    signals["green"] = lit
    signals["accept"] = _timed_by_the_module(trace["accept"])
    return signals


def _timed_by_the_module(history: list[list[object]]) -> list[tuple[int, bool]]:
    """The module notes the end of a pulse when it is looked at; its time is the pulse's."""
    ends: list[tuple[int, bool]] = []
    for ns, is_on in history:
        if is_on:
            ends += [(int(str(ns)), True), (int(str(ns)) + 100_000_000, False)]
    return ends


def _ms(ns: int, start_ns: int) -> float:
    return (ns - start_ns) / 1e6


def _cut(
    signals: dict[str, list[tuple[int, bool]]], start_ns: int, length_ms: float
) -> dict[str, Levels]:
    """Changes in a window, with the level at its beginning."""
    cut: dict[str, Levels] = {}
    for name, levels in signals.items():
        before = [level for ns, level in levels if ns <= start_ns]
        changes: Levels = [(0.0, before[-1] if before else False)]
        for ns, level in levels:
            at_ms = _ms(ns, start_ns)
            if 0 < at_ms < length_ms and level != changes[-1][1]:
                changes.append((at_ms, level))
        cut[name] = changes
    return cut


# --- the picture ----------------------------------------------------------------------------------

_NAMES = {
    "plate": "plate below camera",
    "ready": "READY",
    "busy": "BUSY",
    "result_valid": "RESULT_VALID",
    "ok": "OK",
    "ng": "NG",
    "error": "ERROR",
    "ack": "ACK (PLC)",
    "green": "green light",
    "accept": "accept output",
}


def draw(found: list[Panel]) -> str:
    width = _LEFT + 20 + max(panel.end_ms for panel in found) * _MS
    parts, top = [], 10.0
    for panel in found:
        parts += _panel(panel, top)
        top += (len(panel.signals) + 2.6) * _ROW
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{top:.0f}" '
        'font-family="sans-serif" font-size="12">'
    )
    return "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', *parts, "</svg>\n"])


def _panel(panel: Panel, top: float) -> list[str]:
    bottom = top + (len(panel.signals) + 1) * _ROW
    parts = [f'<text x="4" y="{top + 14}" font-weight="bold">{escape(panel.title)}</text>']
    for at_ms in range(0, int(panel.end_ms) + 1, 100):
        x, shade = _LEFT + at_ms * _MS, "#bbb" if at_ms % 500 == 0 else "#eee"
        parts.append(f'<path d="M{x:.1f} {top + 20}V{bottom}" stroke="{shade}"/>')
        if at_ms % 500 == 0:
            parts.append(f'<text x="{x - 12:.1f}" y="{bottom + 14}" fill="#555">{at_ms} ms</text>')
    for at_ms, text in panel.marks:
        x = _LEFT + at_ms * _MS
        parts.append(f'<path d="M{x:.1f} {top + 20}V{bottom}" stroke="#36c" stroke-dasharray="3"/>')
        parts.append(f'<text x="{x + 3:.1f}" y="{top + 16}" fill="#36c">{escape(text)}</text>')
    for number, (name, levels) in enumerate(panel.signals.items(), start=1):
        y = top + 20 + number * _ROW - 8
        parts.append(f'<text x="4" y="{y}">{escape(_NAMES[name])}</text>')
        parts.append(_wave(levels, panel.end_ms, y, _COLOURS.get(name, "#222")))
    return parts


def _wave(levels: Levels, end_ms: float, y: float, colour: str) -> str:
    path = ""
    for (at_ms, is_on), (until_ms, _) in pairwise([*levels, (end_ms, False)]):
        x, until = _LEFT + at_ms * _MS, _LEFT + until_ms * _MS
        level = y - (_HIGH if is_on else 0)
        path += f"{'L' if path else 'M'}{x:.1f} {level}L{until:.1f} {level}"
    return f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.6"/>'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draw", action="store_true", help="the kept trace, without a station")
    parser.add_argument("--out", default=str(_PICTURE), help="-: on stdout")
    arguments = parser.parse_args()
    if not arguments.draw:
        _TRACE.write_text(json.dumps(record(), separators=(",", ":")) + "\n")
    picture = draw(panels(json.loads(_TRACE.read_text())))
    if arguments.out == "-":
        sys.stdout.write(picture)
    else:
        Path(arguments.out).write_text(picture)


if __name__ == "__main__":
    main()
