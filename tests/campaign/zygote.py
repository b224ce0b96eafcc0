"""Journal processes at once: the program is loaded, then a fork serves a configuration.

`python -m campaign.zygote [BROKEN]`: a line with a configuration's path on stdin makes one, its
process id comes back. What runs is `station.journal.serve`, in a process of its own.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

from campaign.ledger import ROOT


class Zygote:
    """The campaign's end."""

    def __init__(self, broken: str | None = None) -> None:
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "campaign.zygote", *([broken] if broken else [])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=ROOT,
        )

    def journal(self, config: Path) -> int:
        """Process id of a new journal process, which may not listen yet."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{config}\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


def main() -> None:
    from campaign import broken
    from station import journal
    from station.config import load_configuration

    if len(sys.argv) > 1:
        broken.CONTROLS[sys.argv[1]].break_it()
    logging.getLogger().addHandler(logging.NullHandler())
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.setsid()
            os._exit(journal.serve(load_configuration(line.strip()).value))
        print(pid, flush=True)


if __name__ == "__main__":
    main()
