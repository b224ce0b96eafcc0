"""A throw-away process for what a stranger's file may do: bounded memory and time, nothing written.

The file is parsed and run there first; only what came through is loaded by anybody else.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from models.card import ModelError

Json = dict[str, Any]

MEMORY_MB = 4_000
"""Address space; ONNX Runtime itself reserves about a fifth of it."""
CPU_S = 120
WALL_S = 240.0
_MAX_ANSWER_BYTES = 300_000_000


def run_limited(module: str, asked: Json) -> Json:
    """What `module` answers in a process of its own. Raises `ModelError` with its reason, or with
    how the process ended."""
    command = [sys.executable, "-P", "-m", module, json.dumps(asked)]
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        answer, _ = process.communicate(timeout=WALL_S)
    except BaseException as error:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        if not isinstance(error, subprocess.TimeoutExpired):
            raise
        raise ModelError(f"it takes more than {WALL_S:g} s to be tried") from error
    if process.returncode or len(answer) > _MAX_ANSWER_BYTES:
        raise ModelError(_how_it_ended(process.returncode))
    found: Json = json.loads(answer)
    if "refused" in found:
        raise ModelError(found["refused"])
    return found


def _how_it_ended(status: int) -> str:
    if -status in (signal.SIGXCPU, signal.SIGKILL):
        return f"it takes more than {CPU_S} s of processor time to be tried, or too much memory"
    name = signal.Signals(-status).name if status < 0 else f"status {status}"
    return f"the process that tried it crashed ({name}): the runtime cannot run it"


def serve_limited(work: Callable[[Json], Json]) -> None:
    """The other side: bound this process, do the work, print the answer.

    A classifier that wants more memory than there is gets `MemoryError` or its like from the
    runtime, and so a reason.
    """
    limits = {
        resource.RLIMIT_AS: MEMORY_MB * 1_000_000,
        resource.RLIMIT_CPU: CPU_S,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CORE: 0,
    }
    for name, limit in limits.items():
        hard = resource.getrlimit(name)[1]
        kept = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(name, (kept, kept))
    try:
        answer = work(json.loads(sys.argv[1]))
    except ModelError as error:
        answer = {"refused": str(error)}
    except MemoryError:
        answer = {"refused": f"it takes more than {MEMORY_MB} MB of memory"}
    sys.stdout.write(json.dumps(answer))
