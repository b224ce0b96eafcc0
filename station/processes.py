"""What each of the station's processes says of itself, and what the kernel says of them."""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from station.ipc import SOCKETS, Json, NotAMessage, PeerGone, connect
from station.page_door import way_in

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGESIZE")


def ask(runtime_dir: Path, process: str, timeout_s: float) -> tuple[Json | None, str]:
    """A process's status, or None and why there is none. Takes `timeout_s` at most, a second more
    where nobody accepts connections; raises nothing."""
    try:
        with connect(way_in(runtime_dir / SOCKETS[process])) as channel:
            answer = channel.request({"op": "status"}, timeout_s)
    except (PeerGone, NotAMessage, OSError) as error:
        return None, str(error) or type(error).__name__
    status = answer.get("status", answer)
    if not isinstance(status, dict):
        return None, "its answer is no status"
    return {key: value for key, value in status.items() if key not in ("op", "ok")}, ""


def ask_all(runtime_dir: Path, timeout_s: float) -> dict[str, tuple[Json | None, str]]:
    """The status of each process that listens: lamp, journal, station."""
    return {process: ask(runtime_dir, process, timeout_s) for process in SOCKETS}


@dataclass(frozen=True, slots=True)
class ProcessFigures:
    """From /proc, for one process."""

    pid: int
    rss_bytes: int
    threads: int
    cpu_s: float
    start_ticks: int
    """After the boot; with the process id it names one life of a process."""
    descriptors: int | None
    """None where this user may not look."""


def process_figures(pid: int) -> ProcessFigures | None:
    """Of a process that lives; None if it does not or may not be looked at (proc(5))."""
    folder = Path(f"/proc/{pid}")
    try:
        after_name = (folder / "stat").read_text().rpartition(")")[2].split()
        rss_pages = int((folder / "statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return None
    try:
        descriptors = sum(1 for _ in (folder / "fd").iterdir())
    except OSError:
        descriptors = None
    return ProcessFigures(
        pid=pid,
        rss_bytes=rss_pages * _PAGE_BYTES,
        threads=int(after_name[17]),
        cpu_s=(int(after_name[11]) + int(after_name[12])) / _TICKS_PER_S,
        start_ticks=int(after_name[19]),
        descriptors=descriptors,
    )


def said_figures(pid: int | None) -> Json | None:
    """The same as a process says it of itself and its children: in a unit's sandbox nobody else
    sees it (systemd.exec(5), ProtectProc=, PrivateUsers=)."""
    figures = None if pid is None else process_figures(pid)
    return None if figures is None else asdict(figures)


def started_at(start_ticks: int) -> float:
    """Seconds since 1970, as the wall clock stands now."""
    age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - start_ticks / _TICKS_PER_S
    return time.time() - age_s


def temperatures_c() -> dict[str, float]:
    """Of this machine, by the name of each thermal zone; the hottest of a name."""
    found: dict[str, float] = {}
    for zone in sorted(Path("/sys/class/thermal").glob("thermal_zone*"))[:64]:
        try:
            name = (zone / "type").read_text().strip()
            celsius = int((zone / "temp").read_text()) / 1000
        except (OSError, ValueError):
            continue
        found[name] = max(found.get(name, celsius), celsius)
    return found
