"""A roll-back goes on with what the upgrade wrote: the versions before read, check and continue its
log. Of what it placed outside of its environment nothing stays."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import pytest
from station_rig import Rig, vqi

from station.qms import Store
from station.record import AcceptBody, ActuationBody, ResultBody

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


def write_of_a_station_that_died(rig: Rig) -> None:
    """A plate of which nobody saw what light and accept were told, as the next start settles it."""
    name = {"station_id": "test-1", "result_id": "test-1-00000100"}
    told = {"command": "unknown", "is_confirmed": None, "commanded_ns": 0, "shown_ns": None}
    result = ResultBody.of_log({**rig.rows("result")[-1], **name, "sequence": 100})
    with Store(rig.journal) as store:
        store.append([result])
        store.append([ActuationBody.model_validate(name | told)])
        store.append([AcceptBody.model_validate(name | told)])


def test_the_versions_before_the_last_changes_go_on_with_our_log(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    assert rig.run("--plates", "4").status == 0
    write_of_a_station_that_died(rig)
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


# --- what a release places outside of its environment ---------------------------------------------

UNITS = "systemd/system"
OLDER = {"systemd/vqi-older.timer": "[Timer]\nOnBootSec=1\n"}
NEWER = {
    "systemd/vqi-newer.service": "[Service]\nExecStart=/opt/vqi/current/bin/vqi serve newer\n",
    "systemd/vqi-newer.service.d/20-own.conf": "[Service]\nType=exec\n",
    "systemd/vqi-station.service.d/30-newer.conf": "[Service]\nTasksMax=16\n",
    "udev/71-newer.rules": "# of the newer release\n",
}
PERSONS = (
    f"{UNITS}/vqi-station.service.d/90-local.conf",
    f"{UNITS}/vqi-local.service",
    "udev/rules.d/99-site.rules",
)


@dataclass
class Machine:
    """Folders as of a machine, and a systemd that does nothing."""

    installer: ModuleType
    folder: Path
    broken: Path | None = None
    """The release that does not come up."""
    stopped: list[str] = field(default_factory=list)

    @property
    def units(self) -> Path:
        return self.folder / "etc" / UNITS

    def run(self, *command: str | Path, check: bool = True) -> str:
        words = [str(word) for word in command]
        if words[:2] == ["systemctl", "stop"]:
            assert all((self.units / name).is_file() for name in words[2:]), "systemd knows them"
            self.stopped += words[2:]
        return ""

    def wait_operational(self, release: Path) -> None:
        if release == self.broken:
            raise self.installer.Failure("it did not come up")

    def release(self, name: str, own: dict[str, str]) -> Path:
        release: Path = self.installer.RELEASES / name
        shutil.copytree(CHECKOUT / "deploy", release / "deploy")
        for path, text in own.items():
            to = release / "deploy" / path
            to.parent.mkdir(exist_ok=True)
            to.write_text(text)
        (release / self.installer.COMPLETE).touch()
        return release

    def placed(self) -> dict[Path, bytes]:
        files = (path for path in (self.folder / "etc").rglob("*") if path.is_file())
        return {path: path.read_bytes() for path in files}


@pytest.fixture
def machine(installer: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine(installer, tmp_path)
    (tmp_path / "station.toml").write_text("")
    places = [(name, tmp_path / to.relative_to("/")) for name, to in installer.PLACES]
    others = {
        "PLACES": tuple(places),
        "UNITS": machine.units,
        "RUN_TIME_CODE": machine.units / "vqi-station.service.d/run-time-code.conf",
        "CONFIG": tmp_path / "station.toml",
        "RELEASES": tmp_path / "releases",
        "CURRENT": tmp_path / "current",
        "PREVIOUS": tmp_path / "previous",
        "COMMAND": tmp_path / "bin/vqi",
        "ENDING_SIGNALS": (),
        "run": machine.run,
        "wait_operational": machine.wait_operational,
    }
    for name, value in others.items():
        monkeypatch.setattr(installer, name, value)
    for name in PERSONS:
        path = tmp_path / "etc" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("# a person's\n")
    return machine


@pytest.mark.parametrize("how", ["by hand", "it does not come up", "the power went"])
def test_a_roll_back_takes_away_what_only_the_newer_release_brought(
    machine: Machine, how: str
) -> None:
    older, newer = machine.release("older", OLDER), machine.release("newer", NEWER)
    installer = machine.installer
    installer.take_over(older)
    before = machine.placed()
    if how == "by hand":
        installer.take_over(newer)
        assert len(machine.placed()) == len(before) - len(OLDER) + len(NEWER)
        installer.take_over(older)
    elif how == "the power went":
        installer.place(newer)
        installer.take_over(older)
    else:
        machine.broken = newer
        with pytest.raises(installer.Failure, match="rolled back: older"):
            installer.take_over(newer)
    assert machine.placed() == before
    assert machine.stopped == ["vqi-older.timer", "vqi-newer.service"]


def test_what_a_person_changed_of_a_release_stays_and_is_named(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    older, newer = machine.release("older", OLDER), machine.release("newer", NEWER)
    machine.installer.take_over(newer)
    changed = machine.units / "vqi-station.service.d/30-newer.conf"
    changed.write_text("[Service]\nTasksMax=99\n")
    machine.installer.take_over(older)
    assert changed.read_text() == "[Service]\nTasksMax=99\n"
    assert f"{changed} stays" in capsys.readouterr().out
    assert not (machine.units / "vqi-newer.service").exists()
