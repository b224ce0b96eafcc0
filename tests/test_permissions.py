"""An unprivileged user who may only read can read the log in every state it may be in."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from station_rig import Rig, start_vqi, vqi, wait_until
from test_qms import acted, opened, result

from station.qms import DATABASE, SNAPSHOT, Store
from station.snapshot import publish

NOBODY = 65534


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that another user can reach, unlike pytest's own."""
    path = Path(tempfile.mkdtemp(prefix="vqi-log-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def as_nobody(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `vqi` as a user without rights; fails if the rights could not be dropped."""
    program = (
        "import os, sys; assert os.getuid() == 65534 == os.geteuid(), 'rights were kept'; "
        "from station.cli import main; sys.argv[0] = 'vqi'; main()"
    )
    return subprocess.run(
        [
            *("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"),
            *(sys.executable, "-P", "-c", program, *arguments),
        ],
        capture_output=True,
        text=True,
        cwd="/",
        check=False,
    )


def check_readable(rig: Rig, state: str, sources: set[str]) -> None:
    assert os.stat(rig.journal).st_uid == 0  # noqa: PTH116
    for command in ("list", "verify", "stats"):
        done = as_nobody("log", command, "--journal", str(rig.journal))
        assert "rights were kept" not in done.stderr
        assert done.returncode == 0, (state, command, done.stdout, done.stderr)
        said = "snapshot" if "published snapshot" in done.stderr else "live"
        assert said in sources, (state, done.stderr)
        assert done.stdout.strip()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can drop to another user")
def test_a_copy_stands_for_the_log_only_where_the_log_may_not_be_read(folder: Path) -> None:
    rig = Rig(folder)
    with Store(rig.journal) as store:
        store.append([opened(1), result(1), acted(1)])
        database = rig.journal / DATABASE
        publish(database, rig.journal / SNAPSHOT)
    check_readable(rig, "cleanly stopped", {"snapshot"})
    database.chmod(0o600)
    check_readable(rig, "another user's", {"snapshot"})
    database.chmod(0o644)
    for content, said in (
        (b"no database " * 1000, "file is not a database"),
        (b"", "no such table: row"),
        (None, "there is no such file"),
    ):
        if content is None:
            database.unlink()
        else:
            database.write_bytes(content)
        asked = ("log", "verify", "--journal", str(rig.journal))
        for done in (as_nobody(*asked), vqi(*asked)):
            assert done.returncode == 1
            assert f"{database}: {said}" in done.stdout.replace("cannot be read: ", "")
            assert "NOT OK: 3 rows" in done.stdout


@pytest.mark.long
@pytest.mark.skipif(os.getuid() != 0, reason="only root can drop to another user")
def test_the_log_can_be_read_in_every_state(folder: Path) -> None:
    rig = Rig(folder)
    config = str(rig.write())
    process = start_vqi("run", "--config", config)
    try:
        wait_until(lambda: rig.status().get("plates", 0) >= 3, 40.0, "plates")
        check_readable(rig, "running", {"live"})
        seen_at, snapshot = time.time(), rig.journal / SNAPSHOT
        wait_until(lambda: snapshot.stat().st_mtime > seen_at, 60.0, "a copy that has plates")
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        wait_until(lambda: not rig.status(), 5.0, "end of the station")
        check_readable(rig, "killed", {"live", "snapshot"})
        (rig.journal / "journal.db-shm").unlink()
        check_readable(rig, "rebooted", {"snapshot"})
        process = start_vqi("run", "--config", config, "--plates", "3")
        assert process.wait(60.0) == 0
        check_readable(rig, "cleanly stopped", {"snapshot"})
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
