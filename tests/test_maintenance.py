"""What the journal process does for itself: pictures go by rule and never otherwise, whatever kills
it; a disk that fills is met in a stated order; nothing of it is silent."""

from __future__ import annotations

import contextlib
import json
import math
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Executor
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from station_rig import Rig, start_vqi, wait_until
from test_clock import LIMIT_S, FakeClock
from test_journal import connect, plate_memory, start
from test_lamp import no_more_processes
from test_qms import change, opened, result
from typer.testing import CliRunner

from station.backup import generations, make_backup
from station.cli.log import app
from station.config import load_configuration
from station.images import ImageFolder
from station.journal_client import JournalClient
from station.log_reader import Reader
from station.log_verify import verify
from station.maintenance import Upkeep, _Child, disk_level
from station.qms import DATABASE, IMAGES, Store
from station.record import (
    BackupBody,
    Body,
    HoldBody,
    ReleaseBody,
    ResultBody,
    ReviewBody,
    TombstoneBody,
    Verdict,
    result_id,
    rfc3339,
)
from station.retention import Catalogue, make_plan, pictures_of

Json = dict[str, Any]


def days_ago(days: float) -> str:
    return rfc3339(datetime.now(UTC) - timedelta(days=days))


def retention(**rules: Json) -> str:
    lines = ["[retention]"]
    for name, given in rules.items():
        keys = ", ".join(f"{key} = {value}" for key, value in given.items())
        lines.append(f"{name} = {{ {keys} }}")
    return "\n".join([*lines, ""])


def checked(rig: Rig) -> Any:
    with Reader(rig.journal) as reader:
        found = verify(reader)
    assert found.findings == []
    return found


def pictures(answer: Json, rig: Rig) -> list[Path]:
    return [rig.journal / IMAGES / image["path"] for image in answer["pictures"]["images"]]


def log(rig: Rig, *arguments: str) -> list[str]:
    """Lines of `vqi log`."""
    config = ("--config", str(rig.folder / "station.toml"))
    done = CliRunner().invoke(app, [*arguments, *config])
    assert done.exit_code == 0, done.output
    return done.stdout.splitlines()


def log_json(rig: Rig, *arguments: str) -> list[Json]:
    return [json.loads(line) for line in log(rig, *arguments, "--json")]


def swept(client: JournalClient) -> Json:
    """The status after everything that may go is gone."""
    wanted = client.ask("prune")["sweep"]
    status = client.status()

    def is_done() -> bool:
        nonlocal status
        status = client.status()
        return bool(status["retention"]["sweeps"] >= wanted)

    wait_until(is_done, 30.0, "sweep")
    return status


def tick(client: JournalClient) -> Json:
    """The journal's answer to a tick."""
    answers: list[Json] = []
    client.send_tick(1)

    def is_there() -> bool:
        answers.extend(client.receive_ready())
        return bool(answers)

    wait_until(is_there, 5.0, "tick")
    return answers[0]


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    rig = Rig(tmp_path, tables=retention(pass_preview={"days": 90}, fail={"days": 365}))
    rig.write()
    return rig


@contextlib.contextmanager
def journal(rig: Rig) -> Iterator[tuple[subprocess.Popen[bytes], JournalClient]]:
    process = start(rig)
    try:
        with contextlib.closing(connect(rig)) as client:
            yield process, client
    finally:
        process.terminate()
        process.wait(20.0)


def plate(seed: int) -> tuple[int, Json]:
    descriptor, pixels, wanted = plate_memory()
    pixels[:] = np.random.default_rng(seed).integers(0, 256, pixels.shape, np.uint8)
    return descriptor, wanted


def earlier(
    rig: Rig, *plates: tuple[ResultBody, float, tuple[str, ...]], content: bytes = b""
) -> list[list[Path]]:
    """What a life before left: plates, so many days old, the oldest first, with their pictures."""
    folder = ImageFolder(rig.journal / IMAGES)
    found = []
    with Store(rig.journal) as store:
        for row, days, keep in plates:
            data = content or row.result_id.encode()
            made = [
                folder.write(role, _SUFFIX[role], [data, role.encode()], (1, 1)) for role in keep
            ]
            folder.make_durable(made)
            images = tuple(one.body for one in made)
            at = days_ago(days)
            store.append([row.model_copy(update={"images": images, "written_at": at})])
            found.append([folder.directory / image.path for image in images])
        store.append([change("the time is known until now")])
    return found


_SUFFIX = {"evidence": "png", "preview": "jpg"}
BOTH = ("evidence", "preview")


def submit(
    client: JournalClient,
    number: int,
    verdict: Verdict = Verdict.PASS,
    keep: tuple[str, ...] = BOTH,
    **changes: object,
) -> Json:
    descriptor, wanted = plate(number)
    row = result(number, verdict, **changes)
    answer = client.submit([row], wanted | {"keep": list(keep)}, descriptor)
    assert answer["ok"], answer
    return answer


def test_what_a_rule_removes_is_said_first_and_a_hold_keeps_it(rig: Rig) -> None:
    rig.tables += 'backup = { directory = "/nonexistent/backup" }\n'
    rig.write()
    very_old, failed, old = earlier(
        rig,
        (result(4, Verdict.FAIL, part_id="P4"), 400, BOTH),
        (result(3, Verdict.FAIL), 200, BOTH),
        (result(1), 100, ("preview",)),
    )
    with journal(rig) as (_, client):
        young = pictures(submit(client, 2, keep=("preview",)), rig)
        (held,) = log_json(rig, "hold", "add", "--serial", "P4", "--why", "claim 17")
        assert (held["results"], held["pictures"], held["removed"]) == (1, 2, 0)
        foreseen = {row["class"]: row for row in log_json(rig, "prune")}
        assert foreseen["pass_preview"]["goes"] == 1
        assert (foreseen["fail"]["goes"], foreseen["fail"]["held"]) == (0, 2)
        assert foreseen["fail"]["files"] == 4
        assert all(path.exists() for path in (*old, *young, *failed, *very_old)), "a dry run"

        log(rig, "prune", "--apply")
        wait_until(lambda: not any(path.exists() for path in old), 5.0, "removal")
        assert all(path.exists() for path in (*young, *failed, *very_old))
        (stone,) = rig.rows("tombstone")
        assert (stone["result_id"], stone["rule"]) == (result_id("s", 1), "days")
        assert "90 days" in stone["why"]
        found = checked(rig)
        assert (found.tombstones, found.holds, found.notes) == (1, 1, [])

        forged = TombstoneBody.model_validate(stone | {"result_id": result_id("s", 2)})
        answer = client.submit([forged])
        assert "written by the journal process alone" in answer["error"]
        unknown = ReleaseBody(station_id="s", hold_id="hold-0", who="kim", why="?")
        assert "no hold hold-0" in client.submit([unknown])["error"]

        assert [row["hold_id"] for row in log_json(rig, "hold", "list")] == [held["hold_id"]]
        log(rig, "hold", "release", held["hold_id"], "--who", "kim", "--why", "settled")
        again = HoldBody(station_id="s", hold_id=held["hold_id"], lot="L", who="kim", why="?")
        assert "there was a hold" in client.submit([again])["error"]
        status = swept(client)
        wait_until(lambda: not any(path.exists() for path in very_old), 5.0, "removal")
        assert status["retention"]["holds"] == 0
        assert all(path.exists() for path in (*young, *failed))
        assert checked(rig).tombstones == 3
        wait_until(lambda: client.status()["attentions"] != [], 20.0, "attention")
        assert "no backup to /nonexistent/backup: " in tick(client)["upkeep"]["attentions"][0]
        assert len(rig.rows("backup")) == 1
    assert log_json(rig, "verify")[0]["tombstones"] == 3


@pytest.mark.long
@pytest.mark.alone  # a backup gives way to whatever else runs
def test_a_backup_by_timer_calls_a_person_when_it_cannot_be_made(tmp_path: Path) -> None:
    to = tmp_path / "backups"
    table = f'[retention]\nbackup = {{ directory = "{to}", every_h = 0.0003, keep = 2 }}\n'
    rig = Rig(tmp_path, tables=table)
    rig.write()
    with journal(rig) as (_, client):
        submit(client, 1)
        wait_until(lambda: client.status()["backup"]["problem"] != "", 60.0, "no backup")
        assert "begin it once with `vqi log backup --to" in tick(client)["upkeep"]["attentions"][0]
        (made,) = log_json(rig, "backup", "--to", str(to))
        assert made["pictures"] == 2
        wait_until(lambda: len(generations(to)) == 2, 60.0, "a second copy")
        wait_until(lambda: client.status()["backup"]["problem"] == "", 10.0, "good backup")
        assert client.status()["backup"]["age_s"] < 60
        to.rename(tmp_path / "away")  # the disk is gone
        wait_until(lambda: client.status()["backup"]["problem"] != "", 60.0, "no backup")
        (tmp_path / "away").rename(to)
        wait_until(lambda: client.status()["backup"]["problem"] == "", 60.0, "good backup")
    rows = rig.rows("backup")
    assert [row["is_ok"] for row in rows].count(False) == 2, "once for each time it began"
    assert rows[-1]["is_ok"]
    assert checked(rig).images == 2


def backup_row(directory: Path, at: str) -> BackupBody:
    return BackupBody(
        station_id="s", written_at=at, directory=str(directory), generation="g", is_ok=True
    )


@contextlib.contextmanager
def upkeep_of(rig: Rig, clock: FakeClock) -> Iterator[Upkeep]:
    """Without its process."""
    configuration = load_configuration(str(rig.folder / "station.toml")).value
    helpers = cast(Executor, LateHelpers())
    images = ImageFolder(rig.journal / IMAGES)
    with Store(rig.journal) as store:
        upkeep = Upkeep(configuration, store, images, helpers, lambda: None, clock)
        yield upkeep
        upkeep.close()


@pytest.mark.parametrize(
    ("to", "hours", "age_s"), [("wanted", -8760, None), ("stick", 1, None), ("wanted", 1, 3600)]
)
def test_a_backup_is_due_unless_one_was_made_there_and_its_age_is_known(
    tmp_path: Path, to: str, hours: int, age_s: float | None
) -> None:
    """A clock that was ahead, and a copy by hand to another disk, postpone none."""
    rig = Rig(tmp_path, tables=f'[retention]\nbackup = {{ directory = "{tmp_path}/wanted" }}\n')
    rig.write()
    clock = FakeClock()
    made_at = rfc3339(datetime.fromtimestamp(clock.wall - 3600 * hours, UTC))
    with Store(rig.journal) as store:
        store.append([backup_row(tmp_path / to, made_at)])
    with upkeep_of(rig, clock) as upkeep:
        for _ in range(2):
            assert upkeep.status()["backup"]["age_s"] == age_s
            assert (upkeep._backup_due() <= time.monotonic()) == (age_s is None)
            upkeep.noted([backup_row(tmp_path / to, made_at)])


def test_a_backup_whose_row_finds_no_room_is_made_once_and_said_later(tmp_path: Path) -> None:
    rig = Rig(tmp_path, tables=f'[retention]\nbackup = {{ directory = "{tmp_path}/to" }}\n')
    rig.write()
    with upkeep_of(rig, FakeClock()) as upkeep:
        with contextlib.closing(sqlite3.connect(rig.journal / DATABASE)) as other:
            other.execute("BEGIN IMMEDIATE")
            made = json.dumps({"directory": f"{tmp_path}/to", "generation": "g1"})
            upkeep._backup.child = said(0, made)
            upkeep._take_backup()
            assert "write lock" in upkeep.attentions()[0]
            assert upkeep._backup_due() > time.monotonic() + 3600, "it was made"
        upkeep._take_backup()
        assert upkeep.attentions() == []
    assert [row["generation"] for row in rig.rows("backup")] == ["g1"]


def test_a_backup_that_lacks_pictures_calls_a_person_and_is_no_good_one(tmp_path: Path) -> None:
    rig = Rig(tmp_path, tables=f'[retention]\nbackup = {{ directory = "{tmp_path}/to" }}\n')
    rig.write()
    clock = FakeClock()
    with Store(rig.journal) as store:
        store.append([backup_row(tmp_path / "to", "2026-01-01T00:00:00.000000Z")])
    with upkeep_of(rig, clock) as upkeep:
        good = upkeep.status()["backup"]["last_ok_at"]
        made = {"directory": f"{tmp_path}/to", "generation": "g1", "problem": "a.png: is missing"}
        upkeep._backup.tried_s = time.monotonic()
        upkeep._backup.child = said(1, json.dumps(made))
        upkeep._take_backup()
        found = upkeep.status()["backup"]
        assert (found["generation"], found["last_ok_at"]) == ("g1", good)
        (text,) = upkeep.attentions()
        assert text == f"the backup in {tmp_path}/to lacks pictures: a.png: is missing"
        assert upkeep._backup_due() > time.monotonic() + 23 * 3600, "the next one, not a retry"
        upkeep._backup.child = said(1, "")
        upkeep._take_backup()
        assert upkeep._backup_due() < time.monotonic() + 3601, "none was made: a retry"
        upkeep._backup.child = said(0, json.dumps(made | {"generation": "g3", "problem": ""}))
        upkeep._take_backup()
        assert upkeep.attentions() == []
    rows = [(row["generation"], row["is_ok"]) for row in rig.rows("backup")]
    assert rows == [("g", True), ("g1", False), ("", False), ("g3", True)]


def said(status: int, out: str) -> _Child:
    """A process that has ended."""
    child = _Child(thread=threading.Thread(target=lambda: None), answer=(status, out, ""))
    cast(threading.Thread, child.thread).start()
    return child


def test_a_backup_that_the_log_refuses_to_know_of_says_so(tmp_path: Path) -> None:
    rig = Rig(tmp_path, min_free_mb=10**9)
    config = str(rig.write())
    earlier(rig, (result(1), 1, BOTH))
    with journal(rig):
        to = str(tmp_path / "backups")
        done = CliRunner().invoke(app, ["backup", "--to", to, "--config", config])
    assert done.exit_code == 0, done.output
    assert "the log does not know of it" in done.stderr
    assert "MB needed; free some" in done.stderr
    assert rig.rows("backup") == []


def test_a_child_that_is_stopped_before_it_began_is_never_started(tmp_path: Path) -> None:
    child, mark = _Child(), tmp_path / "mark"
    with child._lock:
        child.start(["-c", f"open({str(mark)!r}, 'w')"], "", 30.0, lambda: None)
        stopping = threading.Thread(target=child.stop)
        child._is_stopped = True
        stopping.start()
    stopping.join(10.0)
    assert not stopping.is_alive()
    assert child.process is None
    assert not mark.exists()


def test_a_child_whose_words_cannot_be_read_is_one_that_failed() -> None:
    """Unanswered it would run for ever, and no other would follow it."""
    child = _Child()
    words = "import sys; sys.stdout.buffer.write(b'\\xff')"
    child.start(["-c", words], "", 30.0, lambda: None)
    wait_until(lambda: child.answer is not None, 20.0, "an answer")
    answer = child.take()
    assert answer is not None
    assert answer[:2] == (-1, "")
    assert "0xff" in answer[2]
    assert not child.is_running


def test_a_full_process_table_ends_neither_the_journal_nor_its_upkeep(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.write()
    process = start(rig)
    try:
        with contextlib.closing(connect(rig)) as client:
            with no_more_processes(process.pid):
                client.ask("prune")
                wait_until(
                    lambda: "new thread" in client.status()["snapshot_problem"], 10.0, "a word"
                )
                wait_until(lambda: not client.status()["retention"]["is_sweeping"], 5.0, "its end")
                assert client.submit([opened(1)])["ok"]
                assert process.poll() is None
            swept(client)
            wait_until(lambda: client.status()["snapshot_problem"] == "", 10.0, "a snapshot")
    finally:
        process.terminate()
        assert process.wait(20.0) == 0


def test_what_works_for_a_journal_that_is_killed_dies_with_it() -> None:
    """It would hold the lock of the backups' folder against its successor's."""
    with subprocess.Popen(
        [sys.executable, "-P", "-c", _STARTER], stdout=subprocess.PIPE, text=True
    ) as starter:
        assert starter.stdout is not None
        child = Path("/proc") / starter.stdout.readline().strip()
        wait_until(lambda: _SLEEPER in words_of(child), 10.0, "child")
        starter.kill()
    wait_until(lambda: not is_running(child), 10.0, "end of the child")


_SLEEPER = "import time; time.sleep(60)"
_STARTER = f"""
import time; from station.idle import start_idle
print(start_idle("-c", {_SLEEPER!r}).pid, flush=True)
time.sleep(60)
"""


def words_of(process: Path) -> list[str]:
    """Of its command, once it is this interpreter; before, it is what makes the command polite."""
    words = (process / "cmdline").read_text().split("\0")
    return words if words[0] == sys.executable else []


def is_running(process: Path) -> bool:
    """Not gone, and not dead and waited for by nobody."""
    try:
        return "State:\tZ" not in (process / "status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_two_plates_of_the_same_pixels_share_a_file_until_both_may_go(rig: Rig) -> None:
    plates = [(result(1), 100, ("preview",)), (result(2, Verdict.FAIL), 100, ("preview",))]
    (path,), _ = earlier(rig, *plates, content=b"the same")
    with journal(rig) as (_, client):
        assert swept(client)["retention"]["tombstones"] == 1
        assert path.exists()
        found = checked(rig)
        assert (found.tombstones, found.notes) == (1, [])


def threads(pid: int) -> list[Path]:
    return list(Path(f"/proc/{pid}/task").iterdir())


@contextlib.contextmanager
def killed_at(process: subprocess.Popen[bytes], call: str, path: Path) -> Iterator[None]:
    """The process dies as it begins this system call on this path."""
    tracer = subprocess.Popen(
        [
            *("strace", "-qq", "-P", str(path), "-e", f"trace={call}"),
            *("-e", f"inject={call}:signal=SIGKILL:when=1"),
            *(word for thread in threads(process.pid) for word in ("-p", thread.name)),
        ],
        stderr=subprocess.DEVNULL,
    )

    def is_attached() -> bool:
        traced = f"TracerPid:\t{tracer.pid}\n"
        return all(traced in (one / "status").read_text() for one in threads(process.pid))

    try:
        wait_until(is_attached, 10.0, "tracer")
        yield
        assert process.wait(30.0) == -signal.SIGKILL
    finally:
        tracer.terminate()
        tracer.wait(10.0)


@pytest.mark.parametrize("step", ["tombstone", "rename"])
def test_killed_in_the_middle_of_a_removal_nothing_dangles(rig: Rig, step: str) -> None:
    ((path,),) = earlier(rig, (result(1), 100, ("preview",)))
    with journal(rig) as (process, client):
        young = pictures(submit(client, 2), rig)
        leaving = rig.journal / IMAGES / "leaving" / path.name
        wal = rig.journal / f"{DATABASE}-wal"
        with killed_at(process, *(("pwrite64", wal) if step == "tombstone" else ("rename", path))):
            client.ask("prune")
    leaving.write_bytes(b"")  # as if another had died one call later, before its unlink
    found = checked(rig)
    assert found.tombstones == (0 if step == "tombstone" else 1)
    assert len(found.notes) == (1 if step == "rename" else 0)
    with journal(rig) as (_, client):
        swept(client)
        wait_until(lambda: not path.exists() and not leaving.exists(), 5.0, "removal")
        assert all(one.exists() for one in young)
        found = checked(rig)
        assert (found.tombstones, found.notes) == (1, [])


def test_what_a_death_left_is_found_while_the_station_runs(rig: Rig) -> None:
    with journal(rig) as (_, client):
        kept = pictures(submit(client, 1), rig)
        for folder in ("00", "0a"):
            (rig.journal / IMAGES / folder / f"{folder}{'1' * 62}.png").write_bytes(b"stray")
        strange = rig.journal / IMAGES / "01" / "notes.txt"
        strange.write_text("somebody's")
        assert swept(client)["retention"]["orphans"] == 2
        assert len(list((rig.journal / IMAGES / "quarantine").iterdir())) == 2
        assert strange.exists()
        assert all(path.exists() for path in kept)


def test_a_backup_on_the_same_disk_lets_no_start_put_pictures_aside(
    rig: Rig, tmp_path: Path
) -> None:
    """A second name is a change of the file, as are another owner and other rights."""
    (kept,) = earlier(rig, (result(1, Verdict.FAIL), 0.2, BOTH))
    with journal(rig) as (process, client):
        make_backup(rig.journal, tmp_path / "backups", 3, is_new=True, read_all=False)
        assert {path.stat().st_nlink for path in kept} == {2}
        tick(client)
        process.kill()
        process.wait(20.0)
    with journal(rig):
        assert checked(rig).images == 2


def test_quarantine_is_bounded_and_empty_on_a_full_disk(tmp_path: Path) -> None:
    folder = ImageFolder(tmp_path)
    quarantine = tmp_path / "quarantine"
    for number in range(1200):
        (quarantine / f"{number}").write_bytes(b"x")
    assert folder.bound_quarantine().files == 1000
    big = quarantine / "big"
    with big.open("wb") as file:
        file.truncate(2 * 10**9)
    assert folder.bound_quarantine().files == 1000
    assert not big.exists()
    assert folder.bound_quarantine(is_full=True).files == 0
    assert list(quarantine.iterdir()) == []


def test_a_level_holds_until_there_is_clearly_more_room() -> None:
    limits = (40, 30, 20, 10)
    assert [disk_level(0, free, limits) for free in (50, 39, 29, 19, 9)] == [0, 1, 2, 3, 4]
    assert [disk_level(1, free, limits) for free in (43, 45)] == [1, 0]
    assert [disk_level(3, free, limits) for free in (21, 23, 34, 50)] == [3, 2, 1, 0]
    assert disk_level(4, 10, limits) == 3, "where rows fit again they are written"


def test_a_filling_disk_is_met_in_order(tmp_path: Path, small_disk: Path) -> None:
    rig = Rig(
        tmp_path,
        journal_folder=small_disk / "journal",
        min_free_mb=8,
        watermarks_mb=[45, 32, 20],
    )
    rig.write()
    both = list(BOTH)

    def kept(number: int, verdict: Verdict = Verdict.PASS) -> list[str]:
        answer = submit(client, number, verdict)
        return [image["role"] for image in answer["pictures"]["images"]]

    def fill_until(level: int, free_mb: float) -> None:
        ballast = small_disk / f"ballast-{level}"
        free = shutil.disk_usage(small_disk).free
        ballast.write_bytes(bytes(int(free - free_mb * 1e6)))
        wait_until(lambda: client.status()["disk"]["level"] == level, 10.0, f"level {level}")

    old, failed = earlier(rig, (result(1), 3, BOTH), (result(3, Verdict.FAIL), 3, BOTH))
    with journal(rig) as (_, client):
        young = pictures(submit(client, 2), rig)
        assert client.status()["disk"]["level"] == 0
        fill_until(1, 40)
        assert (kept(4), kept(5, Verdict.FAIL)) == (["evidence"], both)
        fill_until(2, 28)
        assert (kept(6), kept(7, Verdict.UNDECIDED)) == ([], both)
        swept(client)
        wait_until(lambda: not any(path.exists() for path in old), 5.0, "room")
        assert all(path.exists() for path in (*young, *failed))
        fill_until(3, 15)
        assert kept(8, Verdict.FAIL) == both
        brief = tick(client)["upkeep"]
        assert (brief["disk_level"], brief["attentions"]) == (3, [])
        assert "the station is not ready: less than 20 MB are free" in brief["disk"]
        fill_until(4, 5)
        descriptor, wanted = plate(9)
        answer = client.submit([result(9, Verdict.FAIL)], wanted, descriptor)
        assert answer["is_full"]
        for ballast in small_disk.glob("ballast-*"):
            ballast.unlink()
        wait_until(lambda: client.status()["disk"]["level"] == 0, 10.0, "level 0")
        assert kept(9) == both
    crossings = [(row["before"], row["level"]) for row in rig.rows("disk")]
    levels = [level for _, level in crossings]
    # The ballast goes file by file: a look between two of them sees a level of its own.
    assert levels[:4] == [1, 2, 3, 4]
    assert levels[-1] == 0
    assert levels[3:] == sorted(levels[3:], reverse=True)
    assert {row["rule"] for row in rig.rows("tombstone")} == {"watermark"}
    assert checked(rig).tombstones == 2


# --- whatever happens, in any order -------------------------------------------------------------


class LateHelpers:
    """Helpers that come to their work later, or never."""

    def __init__(self) -> None:
        self.waiting: list[Any] = []

    def submit(self, work: Any, *given: Any, **named: Any) -> None:
        self.waiting.append(lambda: work(*given, **named))

    def work(self) -> None:
        while self.waiting:
            self.waiting.pop(0)()


class Removals(RuleBasedStateMachine):
    """I5: a record's pictures are there until a recorded tombstone that held to the rules; what is
    on hold stays, whatever clock, reviews and deaths do."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="vqi-removals-"))
        rules = retention(pass_preview={"days": 30, "mb": 0.00002}, fail={"days": 90})
        rig = Rig(self.folder, tables=rules)
        self.configuration = load_configuration(str(rig.write())).value
        self.journal = rig.journal
        self.clock = FakeClock(wall=datetime.now(UTC).timestamp())
        self.number = self.number_of_holds = 0
        self.held: dict[str, set[str]] = {}
        """Files that exist when a hold begins, by the hold."""
        self.begin()

    def begin(self) -> None:
        self.helpers = LateHelpers()
        self.store = Store(self.journal)
        self.images = ImageFolder(self.journal / IMAGES)
        self.upkeep = Upkeep(
            self.configuration,
            self.store,
            self.images,
            cast(Executor, self.helpers),
            lambda: None,
            self.clock,
        )
        self.upkeep._sweep_due = math.inf  # plans are made here, not by a process
        self.upkeep.step(is_idle=False)

    def write(self, row: Body) -> None:
        if not self.upkeep.objection([row]):
            self.store.append([row])
            self.upkeep.noted([row])

    @rule(
        content=st.integers(0, 4),
        verdict=st.sampled_from([Verdict.PASS, Verdict.PASS, Verdict.FAIL]),
        days=st.integers(0, 120),
    )
    def plate(self, content: int, verdict: Verdict, days: int) -> None:
        self.number += 1
        written = self.images.write("preview", "jpg", [bytes(8) + bytes([content])], (1, 1))
        self.images.make_durable([written])
        at = datetime.fromtimestamp(self.clock.wall - 86_400 * days, UTC)
        body = written.body.model_dump()
        self.write(result(self.number, verdict, images=[body], written_at=rfc3339(at)))

    @precondition(lambda self: self.number)
    @rule(back=st.integers(0, 3))
    def review(self, back: int) -> None:
        name = result_id("s", max(1, self.number - back))
        self.write(
            ReviewBody(
                station_id="s", result_id=name, verdict=Verdict.FAIL, reviewer="k", reason="r"
            )
        )

    @precondition(lambda self: self.number)
    @rule(back=st.integers(0, 5))
    def hold(self, back: int) -> None:
        name = result_id("s", max(1, self.number - back))
        self.number_of_holds += 1
        hold_id = f"h{self.number_of_holds}"
        hold = HoldBody(station_id="s", hold_id=hold_id, result_id=name, who="w", why="y")
        self.write(hold)
        rows = self.store.of_result(name)
        self.held[hold.hold_id] = {one.path for one in pictures_of(rows)}

    @precondition(lambda self: self.held)
    @rule()
    def release(self) -> None:
        name, _ = self.held.popitem()
        self.write(ReleaseBody(station_id="s", hold_id=name, who="w", why="y"))

    @rule(days=st.integers(1, 60))
    def days_pass(self, days: int) -> None:
        self.clock.pass_s(86_400 * days)

    @rule(days=st.integers(-200, 200))
    def clock_is_set(self, days: int) -> None:
        self.clock.wall += 86_400 * days
        self.look()

    @rule()
    def clock_is_right(self) -> None:
        self.upkeep.accept_clock("kim", "it is")
        self.look()

    def look(self) -> None:
        self.upkeep._look_due = 0.0
        self.upkeep.step(is_idle=False)

    @rule()
    def plan(self) -> None:
        with Catalogue(self.journal / DATABASE, self.journal / "catalogue.db") as catalogue:
            order = self.upkeep.order().model_copy(update={"folders": list(range(256))})
            self.upkeep.use(make_plan(order, catalogue))

    @rule()
    def carry_on(self) -> None:
        tombstones = self.upkeep.status()["retention"]["tombstones"]
        self.upkeep.step(is_idle=True)
        if abs(self.upkeep.status()["clock"]["ahead_s"]) > LIMIT_S and self.upkeep.attentions():
            assert self.upkeep.status()["retention"]["tombstones"] == tombstones

    @rule()
    def helpers_work(self) -> None:
        self.helpers.work()

    @rule()
    def killed(self) -> None:
        self.store.close()
        self.begin()

    @invariant()
    def every_record_has_its_pictures(self) -> None:
        with Reader(self.journal) as reader:
            assert verify(reader).findings == []

    @invariant()
    def what_is_held_is_there(self) -> None:
        for path in set().union(*self.held.values()):
            assert (self.journal / IMAGES / path).exists()

    def teardown(self) -> None:
        self.store.close()
        shutil.rmtree(self.folder)


TestRemovals = Removals.TestCase
TestRemovals.settings = settings(
    max_examples=12,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)


# --- what a station writes ----------------------------------------------------------------------


def documented() -> list[str]:
    """Patterns of the files in the table of docs/maintenance.md."""
    text = (Path(__file__).parent.parent / "docs" / "maintenance.md").read_text()
    return re.findall(r"^\| `((?:JOURNAL|RUNTIME|RECORD)/[^`]+)` \|", text, re.MULTILINE)


def test_a_station_writes_only_the_files_that_are_documented(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen many times a second, so that files that live shortly are met, too."""
    folders = {"JOURNAL": tmp_path / "journal", "RUNTIME": tmp_path / "run"}
    folders["RECORD"] = tmp_path / "strip"
    given = tmp_path / "given"
    for name, variable in (("home", "HOME"), ("tmp", "TMPDIR"), ("cache", "XDG_CACHE_HOME")):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(variable, str(tmp_path / name))
    given.mkdir()
    rig = Rig(given, journal_folder=folders["JOURNAL"], tables=retention(fail={"days": 1}))
    rig.station["runtime_dir"] = str(folders["RUNTIME"])
    seen: set[str] = set()

    def look() -> set[str]:
        seen.update(
            str(path.relative_to(tmp_path))
            for path in tmp_path.rglob("*")
            if not path.is_dir() and not path.is_relative_to(given)
        )
        return seen

    config = rig.write()
    run = start_vqi("run", "--config", str(config), "--record", str(folders["RECORD"]))
    try:
        with contextlib.closing(JournalClient(folders["RUNTIME"])) as client:
            client.connect(30.0)
            client.ask("prune")
        wait_until(lambda: any("catalogue.db" in name for name in look()), 60.0, "sweep")
        wait_until(lambda: any(name.endswith(".jpg") for name in look()), 30.0, "picture")
    finally:
        run.terminate()
        run.wait(30.0)
    names = {str(folder.relative_to(tmp_path)): key for key, folder in folders.items()}
    patterns = documented()
    for name in sorted(look()):
        top, _, rest = name.partition("/")
        written = f"{names.get(top, top)}/{rest}"
        assert any(fnmatchcase(written, pattern) for pattern in patterns), written


def test_the_size_of_all_pictures_is_counted_and_added_up(rig: Rig) -> None:
    """No scrape walks a folder: the sweep counts, and what is written after it is added."""
    process = start(rig)
    try:
        with contextlib.closing(connect(rig)) as client:
            size = 0
            for number in (1, 2):
                descriptor, pixels, wanted = plate_memory()
                pixels[0, 0] = number
                answer = client.submit([result(number, Verdict.FAIL)], wanted, descriptor)
                size += sum(image["bytes"] for image in answer["pictures"]["images"])
                client.ask("prune")
                wait_until(
                    lambda: client.status()["retention"]["pictures_bytes"] == size,  # noqa: B023
                    20.0,
                    "sum of the pictures",
                )
    finally:
        process.kill()
        process.wait()
