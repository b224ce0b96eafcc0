"""A log that this version wrote is read, checked and continued by the versions before it: a
roll-back goes on with what the upgrade wrote."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from station_rig import Rig, vqi

CHECKOUT = Path(__file__).parents[1]
_FORMAT = ("station/record.py", "station/qms.py")
"""What decides how a row is written and read."""
_CONTINUE = """
import sys
from pathlib import Path
from station.qms import Store
try:
    from station.qms import Reader, verify
except ImportError:
    from station.log_reader import Reader
    from station.log_verify import verify
from station.record import ChangeBody
folder = Path(sys.argv[1])
with Store(folder) as store:
    store.open_plates(), store.held_result(), store.open_attentions(), store.references()
    store.append([ChangeBody(station_id="test-1", what="ack", who="an older version")])
with Reader(folder) as reader:
    report = verify(reader)
print(report.rows, report.findings)
"""


def git(*arguments: str) -> bytes:
    done = subprocess.run(
        ["git", "-C", str(CHECKOUT), *arguments], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip(f"no history here: {done.stderr.decode().strip()}")
    return done.stdout


def older_versions() -> list[str]:
    """The commits before the last three that changed how rows are written."""
    changes = git("log", "-n", "3", "--format=%H", "--", *_FORMAT).decode().split()
    return [f"{commit}^" for commit in changes]


def test_the_versions_before_the_last_changes_go_on_with_our_log(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    assert rig.run("--plates", "4").status == 0
    rows = len(rig.rows("result")) + len(rig.rows("opened"))
    assert rows >= 8
    for number, version in enumerate(older_versions()):
        program = tmp_path / f"older-{number}"
        archive = git("archive", version, "station", "drivers", "models")
        program.mkdir()
        subprocess.run(["tar", "-x", "-C", str(program)], input=archive, check=True)
        done = subprocess.run(
            [sys.executable, "-c", _CONTINUE, str(rig.journal)],
            cwd=program,
            env={"PYTHONPATH": str(program)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, (version, done.stderr)
        assert done.stdout.endswith("[]\n") or done.stdout.endswith("()\n"), (version, done.stdout)
    ours = vqi("log", "verify", "--journal", str(rig.journal))
    assert ours.returncode == 0, ours.stdout
    assert [row["who"] for row in rig.rows("change") if row["what"] == "ack"] == [
        "an older version"
    ] * 3
