"""Processes that end with the one that started them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from station.tied import tied

STARTER = """
import subprocess, sys, time
from station.tied import tied
child = subprocess.Popen(tied(["sleep", "600"]))
print(child.pid, flush=True)
time.sleep(600)
"""


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_it_ends_with_its_starter_however_that_ends() -> None:
    command = [sys.executable, "-c", STARTER]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout is not None
        pid = int(starter.stdout.readline())
        while Path(f"/proc/{pid}/comm").read_text().strip() != "sleep":
            time.sleep(0.01)
        assert is_running(pid)
        starter.send_signal(signal.SIGKILL)
        starter.wait()
        for _ in range(500):
            if not is_running(pid):
                return
            time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    raise AssertionError("it outlived its starter")


def test_it_does_not_begin_without_its_starter(tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    command = tied(["touch", str(begun)])
    command[4] = "1"  # as if another process were its starter, which is gone
    assert subprocess.run(command, check=False).returncode == 0
    assert not begun.exists()


def test_what_it_becomes_keeps_its_arguments_and_its_exit_status() -> None:
    done = subprocess.run(
        tied([sys.executable, "-c", "import sys; print(sys.argv[1:]); sys.exit(7)", "a b", "-x"]),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (7, "['a b', '-x']\n")
