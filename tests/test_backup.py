"""A backup is made beside a writing station, is verified, and can be gone on with."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from test_qms import change, opened, result
from test_retention import at

from station.backup import BackupError, generations, make_backup, read_manifest
from station.images import ImageFolder
from station.log_reader import Reader
from station.log_verify import verify
from station.qms import DATABASE, IMAGES, Store
from station.record import PictureClass, RetentionBody, TombstoneBody, Verdict, result_id


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Four plates with a picture each."""
    folder = tmp_path / "journal"
    with Store(folder) as store:
        rules = {PictureClass.FAIL: {"days": 1.0}}
        row = RetentionBody(station_id="s", written_at=at(9), rules=rules, min_pass_days=1)
        store.append([row])
        for number in range(1, 5):
            add(folder, store, number)
    return folder


def add(folder: Path, store: Store, number: int, content: int | None = None) -> Path:
    images = ImageFolder(folder / IMAGES)
    data = f"picture {content or number}".encode()
    written = images.write("evidence", "png", [data], (1, 1))
    images.make_durable([written])
    body = written.body.model_dump()
    row = result(number, Verdict.FAIL, images=[body], written_at=at(9))
    store.append([opened(number).model_copy(update={"written_at": at(9)}), row])
    return folder / IMAGES / written.body.path


def remove(folder: Path, store: Store, number: int, path: Path) -> None:
    """As the journal process does."""
    name = f"{path.parent.name}/{path.name}"
    stone = TombstoneBody(
        station_id="s", written_at=at(0), result_id=result_id("s", number), role="evidence",
        path=name, sha256=path.stem, bytes=9, picture_class=PictureClass.FAIL, rule="days",
        measured=9.0, limit=1.0, why="",
    )  # fmt: skip
    store.append([stone])
    path.unlink(missing_ok=True)


def backup(log: Path, to: Path, keep: int = 3, read_all: bool = False) -> str:
    return make_backup(log, to, keep, is_new=True, read_all=read_all).generation


def findings(folder: Path) -> list[str]:
    with Reader(folder) as reader:
        return verify(reader).findings


def stored(to: Path) -> set[str]:
    return {path.name for path in (to / IMAGES).glob("*/*")}


def test_a_copy_is_whole_takes_only_what_is_new_and_can_be_gone_on_with(
    log: Path, tmp_path: Path
) -> None:
    to = tmp_path / "backups"
    first = make_backup(log, to, 3, is_new=True, read_all=False)
    assert (first.pictures, first.copied) == (4, 4)
    with Store(log) as store:
        add(log, store, 5)
    second = make_backup(log, to, 3, is_new=False, read_all=True)
    assert (second.pictures, second.copied) == (5, 1)
    assert generations(to) == [first.generation, second.generation]
    assert read_manifest(to, second.generation)["head_chain_sha256"] == second.head_chain_sha256
    for name in generations(to):
        assert findings(to / name) == []

    # What docs/maintenance.md says of a restore.
    shutil.rmtree(log)
    log.mkdir()
    shutil.copy(to / second.generation / DATABASE, log)
    shutil.copytree(to / IMAGES, log / IMAGES)
    with Store(log) as store:
        assert store.head() == (second.head_seq, second.head_chain_sha256)
        add(log, store, 6)
    assert findings(log) == []
    assert make_backup(log, to, 3, is_new=False, read_all=False).copied == 1


def test_a_log_that_is_written_meanwhile_neither_waits_nor_spoils_the_copy(
    log: Path, tmp_path: Path
) -> None:
    with Store(log) as store:
        store.append([change(f"{number} {'x' * 1000}") for number in range(8000)])
        is_over, written = threading.Event(), 0

        def write() -> None:
            nonlocal written
            while not is_over.is_set():
                store.append([change(f"meanwhile {written}")])
                written += 1

        writer = threading.Thread(target=write)
        writer.start()
        try:
            made = make_backup(log, tmp_path / "backups", 3, is_new=True, read_all=False)
        finally:
            is_over.set()
            writer.join()
        assert made.head_seq >= 8000
        assert written > 10
    assert findings(tmp_path / "backups" / made.generation) == []
    assert findings(log) == []


def test_pictures_that_were_removed_stay_until_no_kept_copy_needs_them(
    log: Path, tmp_path: Path
) -> None:
    to = tmp_path / "backups"
    with Store(log) as store:
        gone = add(log, store, 5)
        shared = add(log, store, 6, content=77)
        assert add(log, store, 7, content=77) == shared
        backup(log, to, keep=2)
        remove(log, store, 5, gone)
        store.append([change("next")])
        remove(log, store, 6, shared)
        shared.write_bytes(b"picture 77")
        backup(log, to, keep=2)
        assert gone.name in stored(to), "the first copy has it still"
        store.append([change("next")])
        backup(log, to, keep=2)
        assert len(generations(to)) == 2
        assert gone.name not in stored(to)
        assert shared.name in stored(to), "another plate names it"
        backup(log, to, keep=2, read_all=True)
    for name in generations(to):
        assert findings(to / name) == []


def test_a_picture_that_is_not_what_was_recorded_is_never_taken(log: Path, tmp_path: Path) -> None:
    to = tmp_path / "backups"
    name = backup(log, to)
    path = next((log / IMAGES).glob("*/*.png"))
    with Store(log) as store:
        changed = add(log, store, 5)
        changed.write_bytes(b"something else")
        with pytest.raises(BackupError, match="is not the picture that was recorded"):
            backup(log, to)
    assert generations(to) == [name]
    changed.write_bytes(b"picture 5")
    copy = to / IMAGES / path.parent.name / path.name
    copy.unlink()
    copy.write_bytes(b"rotten")
    with pytest.raises(BackupError, match="is not the picture that was recorded"):
        backup(log, to, read_all=True)


def test_a_folder_is_only_taken_for_backups_if_it_is_that_logs(log: Path, tmp_path: Path) -> None:
    to = tmp_path / "backups"
    with pytest.raises(BackupError, match="begin it once with `vqi log backup --to"):
        make_backup(log, to, 3, is_new=False, read_all=False)
    assert not to.exists()
    to.mkdir()
    with pytest.raises(BackupError, match="begin it once"):  # a disk that is not mounted
        make_backup(log, to, 3, is_new=False, read_all=False)
    backup(log, to)
    with Store(tmp_path / "other") as store:
        store.append([change("another log")])
    with pytest.raises(BackupError, match="holds backups of another log"):
        backup(tmp_path / "other", to)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letters.txt").write_text("dear")
    with pytest.raises(BackupError, match="is not empty and holds no backups"):
        backup(log, tmp_path / "full")


def test_a_full_disk_leaves_the_last_good_copy(log: Path, small_disk: Path) -> None:
    to = small_disk / "backups"
    with Store(log) as store:
        store.append([change("x" * 300_000) for _ in range(60)])
    with pytest.raises(BackupError, match=r"no room for 1. MB; free some space there"):
        backup(log, to)
    assert generations(to) == []


_MAKE = """
import sys; from pathlib import Path; from station.backup import make_backup
make_backup(Path(sys.argv[1]), Path(sys.argv[2]), 1, is_new=True, read_all=False)
"""


@pytest.mark.parametrize(
    ("call", "place"),
    [
        ("pwrite64", "incoming/journal.db"),
        ("link", "incoming/{}.png"),
        ("rename", "incoming/{}.png"),
        ("openat", "incoming/manifest.json"),
        ("rename", "incoming"),
        ("unlink", "{generation}/manifest.json"),
    ],
)
def test_a_backup_that_is_killed_leaves_the_last_good_one(
    log: Path, tmp_path: Path, call: str, place: str
) -> None:
    to = tmp_path / "backups"
    name = backup(log, to, keep=1)
    with Store(log) as store:
        new = add(log, store, 5)
        path = to / place.format(new.stem, generation=name)
        traced = "link,linkat" if call == "link" else call
        done = subprocess.run(
            [
                *("strace", "-f", "-qq", "-P", str(path)),
                *("-e", f"trace={traced}", "-e", f"inject={traced}:signal=SIGKILL:when=1"),
                *(sys.executable, "-P", "-c", _MAKE, str(log), str(to)),
            ],
            capture_output=True,
            check=False,
        )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert name in generations(to) or len(generations(to)) == 1
    for generation in generations(to):
        assert findings(to / generation) == []
    again = backup(log, to, keep=1, read_all=True)
    assert generations(to) == [again]
    assert findings(to / again) == []
    assert {path.name for path in to.iterdir()} == {again, IMAGES, "lock", "vqi-backup.json"}
