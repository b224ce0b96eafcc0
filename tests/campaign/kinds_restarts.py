"""What a start finds changed: model, configuration, log; and what was changed behind its back."""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

from campaign.kinds import Strike, kind, now_ns
from campaign.life import Life

_REFUSAL_LIMIT_S = 40.0
_SEEN_LIMIT_S = 15.0


# --- files that a start must refuse ---------------------------------------------------------------


@contextlib.contextmanager
def _kept(path: Path) -> Iterator[None]:
    """The file is put back as it was."""
    before = path.read_bytes()
    try:
        yield
    finally:
        path.write_bytes(before)


def _refused(
    life: Life, path: Path, spoil: Callable[[], None], statuses: tuple[int, ...]
) -> Strike:
    """A file is spoiled while the station is stopped: the start must say no. It is put back."""
    began_ns = now_ns()
    life.stop()
    with _kept(path):
        spoil()
        life.start()
        assert life.run is not None
        status = _wait_end(life.run)
        if status is None:
            life.kill_all(life.family())
    life.start()
    problems = () if status in statuses else (f"{path.name} was spoiled; the start said {status}",)
    return Strike(began_ns, now_ns(), f"status {status}", problems)


def _wait_end(run: subprocess.Popen[bytes]) -> int | None:
    try:
        return run.wait(_REFUSAL_LIMIT_S)
    except subprocess.TimeoutExpired:
        return None


def _flip_bits(path: Path, draw: Random) -> None:
    data = bytearray(path.read_bytes())
    for _ in range(draw.randint(1, 4)):
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    path.write_bytes(data)


@kind("model: bits flipped", is_death=True)
def model_flipped(life: Life, draw: Random) -> Strike:
    path = life.model / "model.onnx"
    return _refused(life, path, lambda: _flip_bits(path, draw), (78,))


@kind("model: golden scores damaged", is_death=True)
def golden_damaged(life: Life, draw: Random) -> Strike:
    """In the scores themselves: not every bit of an archive is looked at."""
    path = life.model / "golden.npz"

    def spoil() -> None:
        data = bytearray(path.read_bytes())
        at = draw.randrange(len(data) // 4, len(data) // 2)
        data[at : at + 64] = draw.randbytes(64)
        path.write_bytes(data)

    return _refused(life, path, spoil, (78,))


@kind("model: card damaged", is_death=True)
def card_damaged(life: Life, draw: Random) -> Strike:
    path = life.model / "card.json"

    def spoil() -> None:
        text = path.read_text()
        how = draw.randrange(3)
        if how == 0:
            text = text[: draw.randrange(10, len(text) - 10)]
        elif how == 1:
            text = text.replace('"sha256": "', '"sha256": "0', 1)
        else:
            at = draw.randrange(len(text))
            text = text[:at] + "\0" + text[at:]
        path.write_text(text)

    return _refused(life, path, spoil, (78,))


def _spoil_toml(path: Path, draw: Random) -> None:
    """A key misspelt, of the wrong type, twice, unknown; no text; not UTF-8."""
    lines = path.read_text().splitlines()
    keys = [n for n, line in enumerate(lines) if " = " in line]
    at = draw.choice(keys)
    name, value = lines[at].split(" = ", 1)
    how = draw.randrange(6)
    if how == 0:
        lines[at] = f"{name}x = {value}"
    elif how == 1:
        lines[at] = f"{name} = {{ nothing = true }}"
    elif how == 2:
        lines.insert(at, lines[at])
    elif how == 3:
        lines.insert(at, "unknown_key = 1")
    elif how == 4:
        lines[at] = f"{name} = "
    path.write_text("\n".join(lines) + "\n")
    if how == 5:
        path.write_bytes(path.read_bytes() + b"# \xff\xfe\n")


@kind("configuration damaged", is_death=True)
def configuration_damaged(life: Life, draw: Random) -> Strike:
    return _refused(life, life.config, lambda: _spoil_toml(life.config, draw), (78,))


@kind("recipe damaged", is_death=True)
def recipe_damaged(life: Life, draw: Random) -> Strike:
    path = life.line / "recipe.toml"
    return _refused(life, path, lambda: _spoil_toml(path, draw), (78,))


@kind("machine's scores damaged", is_death=True)
def scores_damaged(life: Life, draw: Random) -> Strike:
    path = life.journal / "machine-scores.json"
    garbage = draw.choice(("", "garbage", "[]", path.read_text()[:-20]))
    return _refused(life, path, lambda: _write(path, garbage), (78,))


def _write(path: Path, text: str) -> None:
    path.write_text(text)


@kind("last rows of the log changed", is_death=True)
def tail_changed(life: Life, draw: Random) -> Strike:
    """What a start looks at; the changed file is then replaced by the one before."""
    path = life.journal / "journal.db"
    life.stop()
    life.before_unmount()
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as hostile:
        hostile.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        last = hostile.execute("SELECT max(seq) FROM row").fetchone()[0]

    def spoil() -> None:
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as hostile:
            hostile.execute("DROP TRIGGER row_no_update")
            seq = last - draw.randrange(min(90, last))
            hostile.execute(
                "UPDATE row SET body = replace(body, '\"station_id\"', '\"station_iD\"') "
                "WHERE seq = ?",
                (seq,),
            )
            hostile.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    return _refused(life, path, spoil, (1, 78))


# --- files that a start must survive --------------------------------------------------------------


def _survived(life: Life, spoil: Callable[[], None]) -> Strike:
    began_ns = now_ns()
    life.kill_all(life.family())
    life.before_unmount()
    spoil()
    life.keep_running()
    return Strike(began_ns, now_ns())


@kind("last-tick file torn", is_death=True)
def tick_torn(life: Life, draw: Random) -> Strike:
    path = life.journal / "last-tick"
    garbage = draw.choice((b"", bytes(27), b"\xff" * 9, b"2026-13-41T99:99:99Z"))
    return _survived(life, lambda: path.write_bytes(garbage) and None)


@kind("garbage behind the WAL", is_death=True)
def wal_garbage(life: Life, draw: Random) -> Strike:
    def spoil() -> None:
        wal = life.journal / "journal.db-wal"
        if wal.exists():
            with wal.open("ab") as file:
                file.write(draw.randbytes(draw.randint(1, 9000)))

    return _survived(life, spoil)


@kind("WAL index lost or damaged", is_death=True)
def shm_damaged(life: Life, draw: Random) -> Strike:
    def spoil() -> None:
        index = life.journal / "journal.db-shm"
        if draw.random() < 0.5:
            index.unlink(missing_ok=True)
        elif index.exists():
            index.write_bytes(draw.randbytes(index.stat().st_size))

    return _survived(life, spoil)


@kind("leftovers in the picture folder", is_death=True)
def orphans(life: Life, draw: Random) -> Strike:
    def spoil() -> None:
        for _ in range(20):
            name = draw.randbytes(32).hex()
            (life.journal / "images" / name[:2] / f"{name}.png").write_bytes(draw.randbytes(999))
            (life.journal / "images" / "incoming" / name).write_bytes(b"half")

    return _survived(life, spoil)


@kind("commissioning file tampered with", is_death=True)
def commissioning_tampered(life: Life, draw: Random) -> Strike:
    """Plates are inspected, and none of them shows the production pass, seen on the wire."""
    path = life.line / "commissioning.json"
    began_ns = now_ns()
    life.kill_all(life.family())
    with _kept(path):
        path.write_bytes(path.read_bytes().replace(b"sat", b"fat"))
        life.start()
        problems = _no_production_pass(life)
        life.kill_all(life.family())
    life.keep_running()
    return Strike(began_ns, now_ns(), problems=tuple(problems))


def _no_production_pass(life: Life) -> list[str]:
    """Until an unsigned pass was seen, no signed one."""
    from campaign.tower import Wire

    since_ns, deadline = now_ns(), time.monotonic() + _SEEN_LIMIT_S
    while time.monotonic() < deadline:
        wire = Wire(life.tower.log)
        wire.read()
        shown = [dict(green.lit) for green in wire.greens(since_ns) if green.since_ns > since_ns]
        if {"green": "on"} in shown:
            return ["a production pass was shown for an unsigned camera"]
        if shown:
            return []
        time.sleep(0.1)
    return ["no pass was seen at all"]


# --- behind its back ------------------------------------------------------------------------------


def _verify(life: Life) -> list[str]:
    """What `vqi log verify` finds."""
    command = [sys.executable, "-P", "-m", "station.cli", "log", "verify", "--json"]
    done = subprocess.run(
        [*command, "--journal", str(life.journal)], capture_output=True, text=True, check=False
    )
    found: list[str] = json.loads(done.stdout)["findings"]
    if bool(found) != (done.returncode == 1):
        found.append(f"exit status {done.returncode}")
    return found


def _a_picture(life: Life, draw: Random) -> Path:
    """Of a recorded plate."""
    uri = f"file:{life.journal / 'journal.db'}?mode=ro"
    with contextlib.closing(sqlite3.connect(uri, uri=True)) as reader:
        bodies = reader.execute("SELECT body FROM row WHERE kind = 'result' ORDER BY seq DESC")
        rows = [json.loads(row[0]) for row in bodies.fetchmany(40)]
    images = [image["path"] for body in rows for image in body["images"]]
    return life.journal / "images" / draw.choice(images)


def _must_be_found(life: Life, path: Path, spoil: Callable[[], None]) -> Strike:
    began_ns = now_ns()
    with _kept(path):
        spoil()
        found = _verify(life)
    named = [text for text in found if path.name in text]
    problems = () if named else (f"verify did not name {path.name}: {found}",)
    return Strike(began_ns, began_ns, problems=problems)


@kind("picture deleted behind its back")
def picture_deleted(life: Life, draw: Random) -> Strike:
    path = _a_picture(life, draw)
    return _must_be_found(life, path, path.unlink)


@kind("picture altered behind its back")
def picture_altered(life: Life, draw: Random) -> Strike:
    path = _a_picture(life, draw)
    return _must_be_found(life, path, lambda: _flip_bits(path, draw))


@kind("row altered in a copy of the log")
def row_altered(life: Life, draw: Random) -> Strike:
    """A verdict turned, a row taken out, a hash forged: the copy must not verify."""
    began_ns = now_ns()
    copy = life.folder / "copy"
    copy.mkdir()
    uri = f"file:{life.journal / 'journal.db'}?mode=ro"
    with (
        contextlib.closing(sqlite3.connect(uri, uri=True)) as source,
        contextlib.closing(sqlite3.connect(copy / "journal.db", isolation_level=None)) as hostile,
    ):
        source.backup(hostile)
        for trigger in ("row_no_update", "row_no_delete"):
            hostile.execute(f"DROP TRIGGER {trigger}")
        last = hostile.execute("SELECT max(seq) FROM row").fetchone()[0]
        seq = draw.randint(1, last - 1)
        hostile.execute(
            draw.choice(
                (
                    "UPDATE row SET body = replace(body, 'PASS', 'FAIL') || ' ' WHERE seq = ?",
                    "DELETE FROM row WHERE seq = ?",
                    "UPDATE row SET chain_sha256 = body_sha256 WHERE seq = ?",
                )
            ),
            (seq,),
        )
    command = [sys.executable, "-P", "-m", "station.cli", "log", "verify", "--no-pictures"]
    done = subprocess.run([*command, "--journal", copy], capture_output=True, check=False)
    shutil.rmtree(copy)
    problems = () if done.returncode == 1 else (f"verify said {done.returncode} of row {seq}",)
    return Strike(began_ns, began_ns, problems=problems)
