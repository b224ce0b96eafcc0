"""What the machine runs out of, and what it does not give: memory, processes, files, time."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

from campaign.kinds import NotThere, Strike, kind, now_ns
from campaign.life import Life

_GROUPS = Path("/sys/fs/cgroup")
_NAME = "vqi-campaign"


@contextlib.contextmanager
def group(controller: str, pids: list[int]) -> Iterator[Path]:
    """A control group (v1) of these processes; they go back to where they were."""
    parent = _present_group(controller)
    own = parent / f"{_NAME}-{time.monotonic_ns()}"
    try:
        own.mkdir()
    except OSError as error:
        raise NotThere(f"no control group {controller} here") from error
    try:
        _move(pids, own)
        yield own
    finally:
        left = [int(pid) for pid in (own / "cgroup.procs").read_text().split()]
        _move(left, parent)
        with contextlib.suppress(OSError):
            own.rmdir()


def _present_group(controller: str) -> Path:
    """Where this process and the station are. Raises `NotThere`."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)
        if controller in names.split(","):
            return _GROUPS / controller / path.lstrip("/")
    raise NotThere(f"no control group {controller} (v1) here")


def remove_leftovers() -> None:
    """Groups of workers that were killed."""
    for controller in ("memory", "pids", "cpu", "freezer"):
        with contextlib.suppress(NotThere):
            for own in _present_group(controller).glob(f"{_NAME}-*"):
                with contextlib.suppress(OSError):
                    own.rmdir()


def _move(pids: list[int], to: Path) -> None:
    for pid in pids:
        with contextlib.suppress(OSError):
            (to / "cgroup.procs").write_text(str(pid))


def _out_of_memory(life: Life, name: str) -> Strike:
    """The kernel's own killer takes the process, as soon as it wants one page more. The limit comes
    first: it is refused to a group that takes pages faster than they can be taken back."""
    pid = life.pid(name)
    began_ns = now_ns()
    with group("memory", []) as own:
        (own / "memory.limit_in_bytes").write_text("64K")
        _move([pid], own)
        life.wait_gone({name: pid}, within_s=2.0)
        is_killed = "oom_kill 0" not in (own / "memory.oom_control").read_text()
    return Strike(began_ns, now_ns(), f"{name} {'killed' if is_killed else 'squeezed'}")


@kind("out of memory: station", is_death=True)
def station_oom(life: Life, draw: Random) -> Strike:
    return _out_of_memory(life, "station")


@kind("out of memory: journal", is_death=True)
def journal_oom(life: Life, draw: Random) -> Strike:
    return _out_of_memory(life, "journal")


@kind("out of memory: camera", is_death=True)
def camera_oom(life: Life, draw: Random) -> Strike:
    return _out_of_memory(life, "camera")


@kind("process table full while one dies", is_death=True)
def processes_full(life: Life, draw: Random) -> Strike:
    victim = draw.choice(("lamp", "journal", "station", "camera"))
    family = life.family()
    began_ns = now_ns()
    with group("pids", list(family.values())) as own:
        (own / "pids.max").write_text(str(int((own / "pids.current").read_text()) - 2))
        os.kill(life.pid(victim), signal.SIGKILL)
        time.sleep(draw.uniform(0.3, 1.2))
        (own / "pids.max").write_text("max")
    return Strike(began_ns, now_ns(), victim)


# --- limits of one process ------------------------------------------------------------------------


@contextlib.contextmanager
def _limited(pid: int, what: int, soft: int) -> Iterator[None]:
    before = resource.prlimit(pid, what)
    resource.prlimit(pid, what, (soft, before[1]))
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(pid, what, before)


@kind("open-file limit")
def files_limit(life: Life, draw: Random) -> Strike:
    name = draw.choice(("lamp", "journal", "station", "supervisor"))
    pid = life.pid(name)
    began_ns = now_ns()
    with _limited(pid, resource.RLIMIT_NOFILE, len(os.listdir(f"/proc/{pid}/fd"))):  # noqa: PTH208
        time.sleep(draw.uniform(0.3, 1.2))
    return Strike(began_ns, now_ns(), name)


@kind("address-space limit")
def address_space(life: Life, draw: Random) -> Strike:
    name = draw.choice(("journal", "station", "camera"))
    pid = life.pid(name)
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
    began_ns = now_ns()
    with _limited(pid, resource.RLIMIT_AS, pages * resource.getpagesize() + 65536):
        life.wait_gone({name: pid}, within_s=draw.uniform(0.3, 1.2))
    return Strike(began_ns, now_ns(), name)


@kind("file-size limit")
def file_size(life: Life, draw: Random) -> Strike:
    pid = life.pid("journal")
    began_ns = now_ns()
    with _limited(pid, resource.RLIMIT_FSIZE, draw.choice((4096, 65536, 1 << 20))):
        life.wait_gone({"journal": pid}, within_s=draw.uniform(0.3, 1.2))
    return Strike(began_ns, now_ns())


# --- time on the processor ------------------------------------------------------------------------

_BURN = "import time\nend = time.monotonic() + {}\nwhile time.monotonic() < end: pass"


@kind("processor hogged at high priority")
def hogged(life: Life, draw: Random) -> Strike:
    seconds = draw.uniform(0.4, 1.0)
    began_ns = now_ns()
    hogs = [
        subprocess.Popen(["nice", "-n", "-15", sys.executable, "-S", "-c", _BURN.format(seconds)])
        for _ in range(os.cpu_count() or 1)
    ]
    for hog in hogs:
        hog.wait()
    return Strike(began_ns, now_ns())


@kind("processor time withheld")
def quota(life: Life, draw: Random) -> Strike:
    """A tenth of a core for the whole station."""
    began_ns = now_ns()
    with group("cpu", list(life.family().values())) as own:
        (own / "cpu.cfs_period_us").write_text("100000")
        (own / "cpu.cfs_quota_us").write_text("10000")
        time.sleep(draw.uniform(0.5, 1.5))
        (own / "cpu.cfs_quota_us").write_text("-1")
    return Strike(began_ns, now_ns())


@kind("everything pauses", is_blind=True)
def paused(life: Life, draw: Random) -> Strike:
    """As a virtual machine that is moved: nobody is there to put out anything meanwhile."""
    began_ns = now_ns()
    with group("freezer", list(life.family().values())) as own:
        (own / "freezer.state").write_text("FROZEN")
        time.sleep(draw.uniform(0.3, 3.0))
        (own / "freezer.state").write_text("THAWED")
    return Strike(began_ns, now_ns())


# --- clocks ---------------------------------------------------------------------------------------

_STEPS_S = (-1, 1, -60, 60, -3600, 3600, -86_400, 86_400, -3e8, 3e8)


@kind("wall clock steps")
def clock_steps(life: Life, draw: Random) -> Strike:
    began_ns = now_ns()
    life.clock.step(draw.choice(_STEPS_S))
    return Strike(began_ns, began_ns)


@kind("wall clock steps and a process dies", is_death=True)
def clock_steps_and_death(life: Life, draw: Random) -> Strike:
    victim = draw.choice(("journal", "station", "supervisor"))
    began_ns = now_ns()
    life.clock.step(draw.choice(_STEPS_S))
    os.kill(life.pid(victim), signal.SIGKILL)
    return Strike(began_ns, began_ns, victim)


@kind("wall clock runs wild")
def clock_wild(life: Life, draw: Random) -> Strike:
    began_ns = now_ns()
    for _ in range(20):
        life.clock.step(draw.choice(_STEPS_S[:8]))
        time.sleep(0.04)
    return Strike(began_ns, now_ns())
