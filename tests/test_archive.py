"""A period in a folder that proves itself, to a program that is not ours."""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hostile_texts import STORABLE
from test_qms import change, result

from station.archive import ArchiveError, make_archive
from station.checkpoint import make_checkpoint
from station.export_source import Chosen, Source
from station.images import ImageFolder
from station.log_reader import Reader
from station.qms import DATABASE, IMAGES, Store
from station.record import PictureClass, TombstoneBody, Verdict
from station.signed_note import PUBLIC_KEY, load_key, make_key

Json = dict[str, Any]
SYSTEM_PYTHON = "/usr/bin/python3"


def day(number: int) -> str:
    return f"2026-01-{number:02}T06:00:00.000000Z"


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Plates with pictures on two days, hostile serials, then a signed checkpoint, then a third
    day."""
    folder = tmp_path_factory.mktemp("log")
    images = ImageFolder(folder / IMAGES)
    with Store(folder) as store:
        store.append([change("start").model_copy(update={"written_at": day(1)})])
        for number in range(1, 31):
            written = images.write("evidence", "png", [f"picture {number}".encode()], (1, 1))
            images.make_durable([written])
            verdict = list(Verdict)[number % 3]
            kept = [written.body.model_dump()]
            text = STORABLE[number]
            row = result(number, verdict, written_at=day(1 + number // 11), images=kept,
                         part_id=text, lot=text, tile_grid="AAAAAMAAAAA=",
                         tile_scores="AACAPgAAAD8=")  # fmt: skip
            store.append([row])
            if number == 25:
                _sign(folder, store)
    return folder


def _sign(folder: Path, store: Store) -> None:
    make_key(folder / "key.pem", folder / PUBLIC_KEY)
    with Reader(folder) as reader:
        store.append([make_checkpoint(reader, "s", day(3), load_key(folder / "key.pem"))])


def archive(log: Path, to: Path, since: str | None = None, until: str = day(3)) -> Json:
    with Source(log / DATABASE) as source:
        return make_archive(source, log, log / IMAGES, since, until, to)


def check(folder: Path, *arguments: str, python: str = sys.executable) -> tuple[int, str]:
    script = str(Path(__file__).parents[1] / "deploy" / "check-archive")
    done = subprocess.run(
        [python, "-I", script, str(folder), *arguments],
        capture_output=True, text=True, check=False, cwd="/", env={"PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def test_a_program_without_ours_finds_all_of_it_right(log: Path, tmp_path: Path) -> None:
    made = archive(log, tmp_path / "2026")
    # Rows go on to the checkpoint that covers the period.
    assert (made["before"]["seq"], made["last"]["seq"], made["signed_to"]) == (0, 28, 27)
    assert (made["results"], made["pictures"]) == (25, 25)
    moved = tmp_path / "elsewhere"
    shutil.copytree(tmp_path / "2026", moved)
    key = str(log / PUBLIC_KEY)
    status, said = check(moved, "--key", key, python=SYSTEM_PYTHON)
    assert status == 0, said
    assert "ok: rows 1 to 28, 25 results, 25 pictures" in said
    assert "signed up to row 27 of 28" in said
    status, said = check(moved, "--key", key)  # and the Parquet file, where pyarrow is installed
    assert (status, "pyarrow" in said) == (0, False), said


def test_periods_follow_one_another(log: Path, tmp_path: Path) -> None:
    first, second = (
        archive(log, tmp_path / name, since, until)
        for name, since, until in (("1", None, day(2)), ("2", day(3), day(4)))
    )
    assert first["last"]["seq"] == 28
    assert second["before"]["seq"] == 23
    # Its rows leave something to a context row of the first.
    assert list(second["earlier_contexts"])
    status, said = check(tmp_path / "2")
    assert (status, "an earlier archive has them" in said) == (0, True), said


def test_pictures_that_a_rule_removed_are_said_to_be(log: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(log, tmp_path / "log")
    with Source(copy / DATABASE) as source:
        first, second, *_ = source.results(Chosen(), 99)
    _remove(copy, first)
    _remove(copy, second)
    assert len(archive(copy, tmp_path / "a")["removed_later"]) == 2
    status, said = check(tmp_path / "a")
    assert status == 0, said
    assert "23 pictures" in said
    assert "2 pictures were removed by a rule after this period" in said
    assert archive(copy, tmp_path / "b", until=day(10))["removed_later"] == []
    assert check(tmp_path / "b")[0] == 0


def _remove(folder: Path, row: Json) -> None:
    image = row["images"][0]
    stone = TombstoneBody(
        station_id="s", written_at=day(9), result_id=row["result_id"], role="evidence",
        path=image["path"], sha256=image["sha256"], bytes=9, picture_class=PictureClass.FAIL,
        rule="days", measured=9.0, limit=1.0, why="",
    )  # fmt: skip
    with Store(folder) as store:
        store.append([stone])
    (folder / IMAGES / image["path"]).unlink()


def rows_of(folder: Path) -> list[Json]:
    with gzip.open(folder / "rows.jsonl.gz", "rt") as file:
        return [json.loads(text) for text in file]


def write_rows(folder: Path, rows: list[Json]) -> None:
    with gzip.open(folder / "rows.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def chained_anew(folder: Path, rows: list[Json]) -> None:
    """By somebody who knows how it is made, with the manifest to match."""
    before = "0" * 64
    for seq, row in enumerate(rows, start=1):
        row["seq"], row["body_sha256"] = seq, sha256(row["body"])
        before = sha256(f"{before} {seq} {row['kind']} {row['body_sha256']}")
        row["chain_sha256"] = before
    write_rows(folder, rows)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["last"] = {"seq": len(rows), "chain_sha256": before}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def flip(folder: Path) -> None:
    rows = rows_of(folder)
    failed = next(row for row in rows if '"verdict":"FAIL"' in row["body"])
    failed["body"] = failed["body"].replace('"verdict":"FAIL"', '"verdict":"PASS"')
    write_rows(folder, rows)


def flip_and_chain_anew(folder: Path) -> None:
    rows = rows_of(folder)
    failed = next(row for row in rows if '"verdict":"FAIL"' in row["body"])
    failed["body"] = failed["body"].replace('"verdict":"FAIL"', '"verdict":"PASS"')
    chained_anew(folder, rows)


def leave_out(folder: Path) -> None:
    rows = rows_of(folder)
    del rows[7]
    write_rows(folder, rows)


def cut(folder: Path) -> None:
    chained_anew(folder, rows_of(folder)[:20])


def swap_pictures(folder: Path) -> None:
    one, other = sorted((folder / IMAGES).glob("*/*"))[:2]
    kept = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(kept)


def lose_a_picture(folder: Path) -> None:
    next((folder / IMAGES).glob("*/*")).unlink()


def add_a_picture(folder: Path) -> None:
    (folder / IMAGES / "aa").mkdir(exist_ok=True)
    (folder / IMAGES / "aa" / ("a" * 64 + ".png")).write_bytes(b"x")


def change_the_parquet(folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder / "results.parquet"
    table = pq.read_table(path)
    place = table.schema.get_field_index("lot")
    lots = pa.array(["other", *table.column("lot").to_pylist()[1:]])
    pq.write_table(table.set_column(place, table.schema.field(place), lots), path)


def spoil_the_rows(folder: Path) -> None:
    path = folder / "rows.jsonl.gz"
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + b"\0\0\0\0" + data[len(data) // 2 + 4 :])


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (flip, ": its text is not the one that was hashed"),
        (flip_and_chain_anew, "row 28: the checkpoint says otherwise of row 27"),
        (leave_out, "row 8 is missing; row 9 comes next"),
        (cut, "nothing here is signed with this key"),
        (swap_pictures, "is not the picture that was recorded"),
        (lose_a_picture, "is missing"),
        (add_a_picture, "no row names it"),
        (change_the_parquet, "results.parquet, row 2: lot is 'other', in the log"),
        (spoil_the_rows, "rows.jsonl.gz: cannot be read after row"),
    ],
)
def test_what_was_changed_is_named(
    log: Path, tmp_path: Path, edit: Callable[[Path], None], said: str
) -> None:
    archive(log, tmp_path / "made")
    # Not the log's own pictures: they have two names.
    folder = shutil.copytree(tmp_path / "made", tmp_path / "archive")
    edit(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    for name in manifest["files"]:
        manifest["files"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    status, told = check(folder, "--key", str(log / PUBLIC_KEY))
    assert (status, said in told) == (1, True), told


def copied(log: Path, to: Path) -> Path:
    """An archive whose files may be changed: those of the one that was made are the log's."""
    archive(log, to.with_name("made"))
    return Path(shutil.copytree(to.with_name("made"), to))


def a_checkpoint_of_elsewhere(log: Path, folder: Path, size: int) -> Json:
    """One that the station's key signed, of another log with this many rows."""
    with Store(folder) as store:
        for number in range(1, size):
            if store.head()[0] >= size:
                break
            store.append([result(number, Verdict.PASS)])
    with Reader(folder) as reader:
        body = make_checkpoint(reader, "s", day(3), load_key(log / "key.pem"))
    assert body.size == size
    return {"kind": "checkpoint", "body": json.dumps(body.as_json())}


@pytest.mark.parametrize("size", [28, 40])
def test_a_signature_of_rows_that_are_not_here_proves_nothing(
    log: Path, tmp_path: Path, size: int
) -> None:
    folder = copied(log, tmp_path / "archive")
    rows = rows_of(folder)
    rows[-1] = a_checkpoint_of_elsewhere(log, tmp_path / "other", size)
    chained_anew(folder, rows)
    status, said = check(folder, "--key", str(log / PUBLIC_KEY))
    assert status == 1
    assert f"row 28: the checkpoint is of {size} rows, and has 27 before it" in said
    assert "nothing here is signed with this key" in said


def test_a_signature_of_before_the_period_proves_nothing_of_it(log: Path, tmp_path: Path) -> None:
    folder = copied(log, tmp_path / "archive")
    rows = rows_of(folder)
    chained_anew(folder, rows)
    with gzip.open(folder / "rows.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows[27:])
    manifest = json.loads((folder / "manifest.json").read_text())
    shutil.rmtree(folder / IMAGES)
    manifest["before"] = {"seq": 27, "chain_sha256": rows[26]["chain_sha256"]}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    status, said = check(folder, "--key", str(log / PUBLIC_KEY))
    assert (status, "nothing here is signed with this key" in said) == (1, True), said


def test_another_key_proves_nothing(log: Path, tmp_path: Path) -> None:
    archive(log, tmp_path / "made")
    make_key(tmp_path / "key.pem", tmp_path / "other.pub")
    status, said = check(tmp_path / "made", "--key", str(tmp_path / "other.pub"))
    assert status == 1
    assert "its checkpoint is not signed with" in said


def test_what_cannot_be_archived_leaves_nothing(log: Path, tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="has no rows from its begin to 2025"):
        archive(log, tmp_path / "a", until="2025")
    (tmp_path / "b").mkdir()
    with pytest.raises(ArchiveError, match="is there already"):
        archive(log, tmp_path / "b")
    copy = shutil.copytree(log, tmp_path / "log")
    shutil.rmtree(copy / IMAGES)
    with pytest.raises(ArchiveError, match="is missing; see `vqi log verify`"):
        archive(copy, tmp_path / "c")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "log"]


def test_what_is_no_archive_cannot_be_checked(tmp_path: Path) -> None:
    status, said = check(tmp_path)
    assert (status, "cannot be checked" in said) == (2, True)
