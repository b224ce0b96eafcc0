"""What the processes of a running station take of the cores, from /proc."""

from __future__ import annotations

import os
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_CAMERA = "station.acquisition"


def cpu_seconds(root_pid: int) -> dict[str, float]:
    """Processor time so far of each process below `root_pid` and of itself (`supervisor`), by role:
    camera, station, journal, lamp. Processes that end meanwhile are left out."""
    found: dict[str, float] = {}
    waiting = [root_pid]
    while waiting:
        pid = waiting.pop()
        try:
            waiting += _children(pid)
            role = "supervisor" if pid == root_pid else _role(pid)
            found[role] = found.get(role, 0.0) + _seconds(pid)
        except (OSError, ValueError, IndexError):
            continue
    return found


def _children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


def _role(pid: int) -> str:
    """From the command line: `... -m station.cli serve ROLE`, or the camera's module."""
    words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    return "camera" if _CAMERA in words else words[words.index("serve") + 1 :][0]


def _seconds(pid: int) -> float:
    """User and system time of all threads (proc(5): fields 14 and 15)."""
    after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(after_name[11]) + int(after_name[12])) / _TICKS_PER_S
