"""A backup is made beside a writing station, is verified, and can be gone on with."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from station_rig import Rig, vqi
from test_qms import change, opened, result
from test_retention import at

from station.backup import BackupError, generations, make_backup, read_manifest
from station.config import load_configuration, load_recipe
from station.images import ImageFolder
from station.lock import JOURNAL_LOCK, take_lock
from station.log_reader import Reader
from station.log_verify import verify
from station.qms import DATABASE, IMAGES, Store
from station.recipes import activation_of, active_recipe, approved_change, proposed_change, register
from station.record import PictureClass, RetentionBody, TombstoneBody, Verdict, result_id
from station.signed_note import PUBLIC_KEY, make_key


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


def test_a_copy_is_whole_and_takes_only_what_is_new(log: Path, tmp_path: Path) -> None:
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


def test_a_restored_log_is_whole_and_gives_no_plate_number_twice(tmp_path: Path) -> None:
    """As docs/maintenance.md says."""
    bound = f'sha256 = "{"0" * 64}"\n'
    rig = Rig(tmp_path, station={"id": "s"}, threshold=0.5, recipe_lines=bound)
    config, log, to = str(rig.write()), rig.journal, tmp_path / "backups"
    recipe = (tmp_path / "recipe.toml").read_text()
    loaded = load_recipe(str(tmp_path / "recipe.toml"))
    proposed = proposed_change("s", loaded, recipe, "ada", "first")
    (version,) = register([proposed.as_json()]).versions.values()
    approved = approved_change("s", version, "bela", "looked at")
    with Store(log) as store:
        store.append([proposed, approved, activation_of("s", version)])
        for number in range(1, 4):
            add(log, store, number)
    make_key(tmp_path / "key", log / PUBLIC_KEY)
    model = log / "models" / "m-1" / "model.onnx"
    model.parent.mkdir(parents=True)
    model.write_bytes(b"bytes of a model")
    (log / "models" / ".lock").touch()
    backup(log, to)
    made = backup(log, to)
    first, second = (to / name / "models/m-1/model.onnx" for name in generations(to))
    assert first.stat().st_ino == second.stat().st_ino
    with Store(log) as store:
        add(log, store, 4)  # lost
        add(log, store, 5)

    command = ("log", "restore", str(to / made), "--config", config, "--why", "the disk failed")
    refused = vqi(*command)
    assert refused.returncode == 1
    assert "a log lies there" in refused.stderr
    log.rename(tmp_path / "damaged")
    done = vqi(*command, "--who", "kim", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["pictures"], told["missing_pictures"], told["plant_rows"]) == (3, 0, 0)
    assert sorted(path.name for path in log.iterdir()) == [
        "images", "journal.db", "lock", "models", PUBLIC_KEY, "recipes",
    ]  # fmt: skip
    assert (log / "models/m-1/model.onnx").read_bytes() == b"bytes of a model"
    assert not (log / "models/.lock").exists()
    name = f"{loaded.value.id}@{loaded.value.version}.toml"
    assert (log / "recipes" / name).read_text() == recipe
    active = active_recipe(load_configuration(config).value)
    assert (active.source, active.sha256) == (str(log / "recipes" / name), loaded.sha256)
    assert findings(log) == []
    with Store(log) as store:
        row = store.last_body("restored")
        assert row is not None
        assert (row["generation"], row["who"], row["why"]) == (made, "kim", "the disk failed")
        assert row["copy_rows"] == read_manifest(to, made)["head_seq"] == store.head()[0] - 1
        assert store.last_sequence() == row["sequence"] >= 5
        assert store.lag == 0
        add(log, store, store.last_sequence() + 1)
    assert findings(log) == []
    assert make_backup(log, to, 3, is_new=False, read_all=False).copied == 1


def test_a_station_goes_on_after_a_restore_with_ids_of_its_own(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    config, to = str(rig.write()), tmp_path / "backups"

    def made_plates(folder: Path) -> set[str]:
        done = vqi("run", "--config", config, "--plates", "3", "--json")
        assert done.returncode == 0, done.stderr
        with Reader(folder) as reader:
            return {str(body["result_id"]) for body in reader.bodies("opened")}

    kept = made_plates(rig.journal)
    copy = to / backup(rig.journal, to)
    lost = made_plates(rig.journal) - kept
    rig.journal.rename(tmp_path / "damaged")
    done = vqi("log", "restore", str(copy), "--config", config, "--why", "lost")
    assert done.returncode == 0, done.stderr
    new = made_plates(rig.journal) - kept
    assert (len(kept), len(lost), len(new), lost & new) == (3, 3, 3, set())
    assert findings(rig.journal) == []


@pytest.mark.parametrize(
    ("call", "place"),
    [
        ("pwrite64", "restoring/journal.db"),
        ("link", "images/{}.png"),
        ("rename", "restoring/journal.db"),
    ],
)
def test_a_restore_that_is_killed_leaves_no_log_and_is_begun_again(
    log: Path, tmp_path: Path, call: str, place: str
) -> None:
    rig = Rig(tmp_path, station={"id": "s"}, journal_folder=tmp_path / "restored")
    config, made = str(rig.write()), tmp_path / "backups" / backup(log, tmp_path / "backups")
    picture = next((log / IMAGES).glob("*/*.png")).relative_to(log / IMAGES).with_suffix("")
    path = rig.journal / place.format(picture)
    traced = "link,linkat" if call == "link" else call
    arguments = ("log", "restore", str(made), "--config", config, "--why", "lost")
    killed = subprocess.run(
        [
            *("strace", "-f", "-qq", "-P", str(path)),
            *("-e", f"trace={traced}", "-e", f"inject={traced}:signal=SIGKILL:when=1"),
            *(sys.executable, "-P", "-m", "station.cli", *arguments),
        ],
        capture_output=True,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (rig.journal / DATABASE).exists()
    assert vqi(*arguments).returncode == 0
    assert findings(rig.journal) == []
    assert not (rig.journal / "restoring").exists()


def test_what_cannot_be_restored_leaves_no_log(log: Path, tmp_path: Path) -> None:
    rig = Rig(tmp_path, station={"id": "s"})
    rig.journal_folder = tmp_path / "restored"
    config, to = str(rig.write()), tmp_path / "backups"
    made = to / backup(log, to)
    command = ("log", "restore", str(made), "--config", config, "--why", "lost")

    other = load_configuration(config).value
    lock = take_lock(other.journal.directory / JOURNAL_LOCK)
    assert "its journal process runs" in vqi(*command).stderr
    assert lock is not None
    os.close(lock)
    (picture,) = list((to / IMAGES).glob("*/*"))[:1]
    picture.unlink()
    told = json.loads(vqi(*command, "--last-sequence", "77", "--json").stdout)
    assert (told["sequence"], told["missing_pictures"]) == (77, 1)
    with sqlite3.connect(made / DATABASE) as raw:
        raw.execute("DROP TRIGGER row_no_update")
        raw.execute("UPDATE row SET body = replace(body, 'FAIL', 'PASS') WHERE kind = 'result'")
    raw.close()
    shutil.rmtree(rig.journal_folder)
    done = vqi(*command)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert str(made) in done.stderr
    assert not list(rig.journal_folder.glob("journal.db*"))


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


def test_a_clock_that_was_set_back_costs_no_copy(log: Path, tmp_path: Path) -> None:
    to = tmp_path / "backups"
    backup(log, to, keep=2)
    ahead = "20991231T235959.999999Z"
    (to / backup(log, to, keep=2)).rename(to / ahead)
    (to / "20991231-kept-by-hand").mkdir()
    (to / "20991231-kept-by-hand" / "manifest.json").write_text("{}")
    for number in range(5, 8):
        with Store(log) as store:
            add(log, store, number)
            rows = store.head()[0]
        before = generations(to)[-1]
        made = make_backup(log, to, 2, is_new=False, read_all=False)
        assert made.copied == 1
        assert generations(to) == [before, made.generation]
        assert read_manifest(to, made.generation)["head_seq"] == rows
        assert findings(to / made.generation) == []
    assert (to / "20991231-kept-by-hand").is_dir()


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


def lose(path: Path) -> None:
    path.unlink()


def change_content(path: Path) -> None:
    path.write_bytes(b"something else")


@pytest.mark.parametrize(
    ("harm", "said"),
    [(lose, "is missing"), (change_content, "is not the picture that was recorded")],
)
def test_a_picture_that_is_lost_for_good_does_not_end_all_backups(
    log: Path, tmp_path: Path, harm: Callable[[Path], None], said: str
) -> None:
    to = tmp_path / "backups"
    whole = [backup(log, to, keep=2) for _ in range(2)]
    with Store(log) as store:
        lost = add(log, store, 5)
        add(log, store, 6)
    harm(lost)
    with pytest.raises(BackupError, match=rf"{lost}: {said}; see .*the next try makes a copy"):
        backup(log, to, keep=2)
    assert generations(to) == whole
    for number in range(7, 10):
        with Store(log) as store:
            add(log, store, number)
            rows = store.head()[0]
        made = make_backup(log, to, 2, is_new=False, read_all=number == 9)
        assert (made.head_seq, made.pictures) == (rows, number - 1)
        assert f"{lost}: {said}" in made.problem
        manifest = read_manifest(to, made.generation)
        assert list(manifest["damaged"]) == [f"{lost.parent.name}/{lost.name}"]
        (finding,) = findings(to / made.generation)
        assert lost.name in finding
    assert generations(to)[:2] == whole, "one that lacks a picture pushes no whole one out"
    assert len(generations(to)) == 4

    lost.write_bytes(b"picture 5")
    again = make_backup(log, to, 2, is_new=False, read_all=True)
    assert (again.problem, again.pictures, again.copied) == ("", 9, 1)
    assert generations(to) == [whole[1], again.generation]
    assert findings(to / again.generation) == []
    assert {path.name for path in to.iterdir()} == {
        *(whole[1], again.generation),
        *(IMAGES, "lock", "vqi-backup.json"),
    }


def test_another_damaged_picture_than_before_calls_a_person_first(
    log: Path, tmp_path: Path
) -> None:
    to = tmp_path / "backups"
    backup(log, to)
    with Store(log) as store:
        first = add(log, store, 5)
        first.unlink()
        with pytest.raises(BackupError, match=first.name):
            backup(log, to)
        remove(log, store, 5, first)  # it was a rule's, after all
        second = add(log, store, 6)
        second.unlink()
        with pytest.raises(BackupError, match=second.name):
            backup(log, to)
    assert len(generations(to)) == 1


def test_a_picture_that_the_disk_cannot_read_is_damaged(log: Path, tmp_path: Path) -> None:
    to = tmp_path / "backups"
    backup(log, to, keep=1)
    with Store(log) as store:
        new = add(log, store, 5)
    command = [
        *("strace", "-f", "-qq", "-o", "/dev/null", "-P", str(new)),
        *("-e", "trace=read", "-e", "inject=read:error=EIO"),
        *(sys.executable, "-P", "-c", _MAKE, str(log), str(to)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert f"{new}: cannot be read: Input/output error" in done.stderr
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    newest = read_manifest(to, generations(to)[-1])
    assert list(newest["damaged"]) == [f"{new.parent.name}/{new.name}"]


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
