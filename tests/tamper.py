"""Hostile hands with root on the log's files: each kind of edit, and who finds it.

As a program (`make tamper`): a table of all kinds, and logs that nobody touched, of which none may
alarm.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import random
import re
import runpy
import shutil
import sqlite3
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from log_maker import LogMaker

from station.anchors import Anchor, anchor_of, check_anchors
from station.certificate import canonical_bytes, make_certificates
from station.checkpoint import Trees, keys_of, make_checkpoint
from station.log_reader import Reader
from station.log_verify import verify
from station.qms import DATABASE, EMPTY_CHAIN, IMAGES, Store, chain, sha256_text
from station.record import TombstoneBody, Verdict
from station.signed_note import (
    PUBLIC_KEY,
    fingerprint,
    load_key,
    make_key,
    origin_of,
    parsed,
    read_public,
    signed,
)

SCRIPT = Path(__file__).parents[1] / "deploy" / "check-certificate"
Json = dict[str, Any]
Log = sqlite3.Connection


@dataclass
class Scene:
    """A copy of a log, and what was kept elsewhere."""

    directory: Path
    anchors: list[Anchor]
    public_key: Path
    """As somebody outside keeps it."""
    key_file: Path
    old_copy: Path
    certificate: Path
    random: random.Random
    certificate_findings: list[str] = field(default_factory=list)

    @contextlib.contextmanager
    def hands(self) -> Iterator[Log]:
        """On the file, with the triggers out of the way; they are put back."""
        with contextlib.closing(sqlite3.connect(self.directory / DATABASE)) as log:
            log.execute("PRAGMA synchronous = OFF")
            triggers = log.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'")
            kept = triggers.fetchall()
            for name, _ in kept:
                log.execute(f"DROP TRIGGER {name}")
            yield log
            for _, statement in kept:
                log.execute(statement)
            log.commit()

    def any_seq(self, log: Log, kind: str, before: int | None = None) -> int:
        """A row of a kind, up to the last anchor where none is said."""
        last = before or self.anchors[-1].seq
        found = log.execute("SELECT seq FROM row WHERE kind = ? AND seq <= ?", [kind, last])
        return int(self.random.choice([row[0] for row in found]))

    def found(self) -> tuple[list[str], list[str]]:
        """What `verify` finds alone; if nothing, what it finds with what was kept elsewhere."""
        with Reader(self.directory) as reader:
            alone = [*verify(reader).findings, *self.certificate_findings]
        return alone, [] if alone else self.found_elsewhere()

    def found_elsewhere(self) -> list[str]:
        """With the public key and the anchors that were kept elsewhere."""
        with Reader(self.directory) as reader:
            findings = verify(reader, public_key=self.public_key).findings
            return findings + check_anchors(reader, self.anchors, keys_of(reader))


@dataclass
class Stage:
    """A log that was made once; each edit gets a copy."""

    maker: LogMaker
    folder: Path
    anchors: list[Anchor] = field(default_factory=list)

    @classmethod
    def build(cls, folder: Path, seed: int) -> Stage:
        maker = LogMaker(folder / "log", seed)
        maker.live(8)
        maker.plate(Verdict.FAIL)
        maker.plate(Verdict.FAIL)
        maker.checkpoint()
        shutil.copytree(maker.directory, folder / "old")
        maker.live(25)
        name = maker.plate(Verdict.FAIL)
        maker.review(name, Verdict.FAIL)
        maker.hold()
        for _ in range(4):
            maker.plate()
            maker.remove()
        maker.review(name, Verdict.PASS)
        maker.checkpoint()
        maker.live(6)
        shutil.copy(maker.directory / PUBLIC_KEY, folder / "kept.pub")
        with Reader(maker.directory) as reader:
            list(make_certificates(reader, name, None, folder / "certificate"))
        maker.close()
        key = fingerprint(read_public(folder / "kept.pub"))
        said = [parsed(body.note) for body in maker.checkpoints]
        return cls(maker, folder, [anchor_of(one, key, "the kept file") for one in said])

    @contextlib.contextmanager
    def copy(self, seed: int) -> Iterator[Scene]:
        with tempfile.TemporaryDirectory(dir=self.folder) as name:
            directory = Path(name) / "log"
            shutil.copytree(self.maker.directory, directory)
            yield Scene(
                directory,
                self.anchors,
                self.folder / "kept.pub",
                self.maker.key_file,
                self.folder / "old",
                next((self.folder / "certificate").glob("*.json")),
                random.Random(seed),
            )


# --- tools of the hostile -----------------------------------------------------------------------


def memory() -> str | None:
    """A folder that costs no disk, where there is one."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def set_body(log: Log, seq: int, body: Json) -> None:
    log.execute("UPDATE row SET body = ? WHERE seq = ?", [as_text(body), seq])


def as_text(body: Json) -> str:
    return json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def body_of(log: Log, seq: int) -> Json:
    found: Json = json.loads(log.execute("SELECT body FROM row WHERE seq = ?", [seq]).fetchone()[0])
    return found


def flip(log: Log, seq: int) -> None:
    body = body_of(log, seq)
    body["verdict"] = "PASS" if body["verdict"] != "PASS" else "FAIL"
    if body["verdict"] == "PASS":
        body["reason"] = None if body.get("kind") == "result" else body.get("reason")
    set_body(log, seq, body)


def rechain(log: Log, first: int = 1) -> None:
    """Every hash from a row on, as the writer would have made them."""
    before = EMPTY_CHAIN
    if first > 1:
        query = "SELECT chain_sha256 FROM row WHERE seq = ?"
        before = log.execute(query, [first - 1]).fetchone()[0]
    query = "SELECT seq, kind, body FROM row WHERE seq >= ? ORDER BY seq"
    for seq, kind, body in log.execute(query, [first]).fetchall():
        sha256 = sha256_text(body)
        before = chain(before, seq, kind, sha256)
        values = [sha256, before, seq]
        log.execute("UPDATE row SET body_sha256 = ?, chain_sha256 = ? WHERE seq = ?", values)


def renumber(log: Log) -> None:
    """No gap where a row was taken out."""
    numbers = [row[0] for row in log.execute("SELECT seq FROM row ORDER BY seq").fetchall()]
    for number, seq in enumerate(numbers, 1):
        log.execute("UPDATE row SET seq = ? WHERE seq = ?", [number, seq])


def append(log: Log, body: Json) -> None:
    """As the writer would."""
    seq, before = log.execute("SELECT seq, chain_sha256 FROM row ORDER BY seq DESC").fetchone()
    content = as_text(body)
    link = chain(before, seq + 1, body["kind"], sha256_text(content))
    log.execute(
        "INSERT INTO row (seq, kind, body, body_sha256, chain_sha256) VALUES (?, ?, ?, ?, ?)",
        [seq + 1, body["kind"], content, sha256_text(content), link],
    )


def resign(scene: Scene, key_file: Path | None, first: int = 1) -> None:
    """Every checkpoint made again over the rows as they are now; without a key, unsigned."""
    key = load_key(key_file)
    public = base64.b64encode(key.public_key().public_bytes_raw()).decode() if key else None
    query = "SELECT seq FROM row WHERE kind = 'checkpoint' AND seq >= ? ORDER BY seq"
    with contextlib.closing(sqlite3.connect(scene.directory / DATABASE)) as log:
        numbers = [row[0] for row in log.execute(query, [first])]
    for seq in numbers:
        with scene.hands() as log:
            rechain(log)
        with scene.hands() as log, Reader(scene.directory) as reader:
            body = body_of(log, seq)
            trees = Trees()
            trees.advance(reader, body["size"])
            head = reader.chain_at(body["size"])
            made = trees.checkpoint(reader, origin_of("s"), head, body["written_at"])
            set_body(log, seq, body | {"note": signed(made, key), "public_key": public})
    with scene.hands() as log:
        rechain(log)


def derive_again(scene: Scene) -> None:
    """Tables that are made of the rows, made of those that are there now, by the writer itself."""
    with scene.hands() as log:
        for table in ("plate", "defect", "hourly"):
            log.execute(f"DELETE FROM {table}")
        log.execute("UPDATE derived SET seq = 0")
    Store(scene.directory).close()


def replace_key(scene: Scene) -> Path:
    """A key of one's own, and its public half in the place of the other."""
    (scene.directory / PUBLIC_KEY).unlink()
    own = scene.directory.parent / "own.pem"
    make_key(own, scene.directory / PUBLIC_KEY)
    return own


def pictures(scene: Scene) -> list[Path]:
    return sorted((scene.directory / IMAGES).glob("*/*"))


# --- edits --------------------------------------------------------------------------------------


def flip_a_verdict(scene: Scene) -> None:
    with scene.hands() as log:
        flip(log, scene.any_seq(log, "result"))


def flip_a_verdict_and_its_hash(scene: Scene) -> None:
    with scene.hands() as log:
        seq = scene.any_seq(log, "result")
        flip(log, seq)
        sha256 = sha256_text(as_text(body_of(log, seq)))
        log.execute("UPDATE row SET body_sha256 = ? WHERE seq = ?", [sha256, seq])


def flip_a_verdict_its_hash_and_its_chain_value(scene: Scene) -> None:
    with scene.hands() as log:
        seq = scene.any_seq(log, "result")
        flip(log, seq)
        after = log.execute("SELECT seq, chain_sha256 FROM row WHERE seq > ?", [seq]).fetchall()
        rechain(log, seq)
        for number, link in after:
            log.execute("UPDATE row SET chain_sha256 = ? WHERE seq = ?", [link, number])


def change_one_letter_of_any_row(scene: Scene) -> None:
    with scene.hands() as log:
        seq = scene.random.randint(1, scene.anchors[-1].seq)
        body = log.execute("SELECT body FROM row WHERE seq = ?", [seq]).fetchone()[0]
        letters = [place for place, letter in enumerate(body) if letter.isalpha()]
        while True:
            place = scene.random.choice(letters)
            changed = body[:place] + chr(ord(body[place]) ^ 1) + body[place + 1 :]
            # What is no JSON any more cannot be indexed.
            with contextlib.suppress(sqlite3.OperationalError):
                log.execute("UPDATE row SET body = ? WHERE seq = ?", [changed, seq])
                return


def change_a_verdict_behind_sqlite_s_back(scene: Scene) -> None:
    """In the bytes of the file: no index and no trigger knows."""
    path = scene.directory / DATABASE
    data = path.read_bytes()
    places = [found.start() for found in re.finditer(b'"verdict":"(?:PASS|FAIL)"', data)]
    place = scene.random.choice(places)
    other = b"FAIL" if data[place + 11 : place + 15] == b"PASS" else b"PASS"
    path.write_bytes(data[: place + 11] + other + data[place + 15 :])


def change_a_stored_hash(scene: Scene) -> None:
    column = scene.random.choice(["body_sha256", "chain_sha256"])
    with scene.hands() as log:
        seq = scene.random.randint(1, scene.anchors[-1].seq)
        log.execute(f"UPDATE row SET {column} = ? WHERE seq = ?", ["ab" * 32, seq])


def write_what_is_no_text(scene: Scene) -> None:
    """Bytes that are no UTF-8, where text is."""
    column = scene.random.choice(["kind", "body_sha256", "chain_sha256"])
    with scene.hands() as log:
        seq = scene.random.randint(1, scene.anchors[-1].seq)
        log.execute(f"UPDATE row SET {column} = CAST(x'ff6162' AS TEXT) WHERE seq = ?", [seq])


def change_a_kind(scene: Scene) -> None:
    with scene.hands() as log:
        seq = scene.any_seq(log, "actuation")
        log.execute("UPDATE row SET kind = 'acuation' WHERE seq = ?", [seq])


def take_a_row_out(scene: Scene) -> None:
    with scene.hands() as log:
        seq = scene.random.randint(1, scene.anchors[-1].seq)
        log.execute("DELETE FROM row WHERE seq = ?", [seq])


def take_a_review_out_and_chain_again(scene: Scene) -> None:
    with scene.hands() as log:
        seq = scene.any_seq(log, "review")
        log.execute("DELETE FROM row WHERE seq = ?", [seq])
        renumber(log)
        rechain(log)


def put_a_row_before_the_first(scene: Scene) -> None:
    with scene.hands() as log:
        log.execute(
            "INSERT INTO row (seq, kind, body, body_sha256, chain_sha256) "
            "SELECT ?, kind, body, body_sha256, chain_sha256 FROM row WHERE seq = 1",
            [-scene.random.randint(0, 9)],
        )


def swap_two_rows(scene: Scene) -> None:
    with scene.hands() as log:
        one, other = scene.random.sample(range(1, scene.anchors[-1].seq), 2)
        for before, after in ((one, -1), (other, one), (-1, other)):
            log.execute("UPDATE row SET seq = ? WHERE seq = ?", [after, before])


def swap_two_pictures(scene: Scene) -> None:
    one, other = scene.random.sample(pictures(scene), 2)
    data = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(data)


def swap_what_two_results_show(scene: Scene) -> None:
    with scene.hands() as log:
        found = log.execute("SELECT seq FROM row WHERE kind = 'result'").fetchall()
        one, other = (row[0] for row in scene.random.sample(found, 2))
        bodies = body_of(log, one), body_of(log, other)
        set_body(log, one, bodies[0] | {"images": bodies[1]["images"]})
        set_body(log, other, bodies[1] | {"images": bodies[0]["images"]})
        rechain(log)


def change_a_bit_of_a_picture(scene: Scene) -> None:
    path = scene.random.choice(pictures(scene))
    data = bytearray(path.read_bytes())
    data[scene.random.randrange(len(data))] ^= 1 << scene.random.randrange(8)
    path.write_bytes(data)


def remove_a_picture(scene: Scene) -> None:
    scene.random.choice(pictures(scene)).unlink()


def edit_a_review(scene: Scene) -> None:
    with scene.hands() as log:
        seq = scene.any_seq(log, "review")
        set_body(log, seq, body_of(log, seq) | {"reviewer": "somebody else"})


def edit_a_tombstone(scene: Scene) -> None:
    with scene.hands() as log:
        seq = scene.any_seq(log, "tombstone", 10**9)
        set_body(log, seq, body_of(log, seq) | {"measured": 9999.0})


def bury_a_picture_against_the_rules(scene: Scene) -> None:
    """With a tombstone of the right form at the end of the chain."""
    with scene.hands() as log:
        rows = [body_of(log, row[0]) for row in log.execute("SELECT seq FROM row").fetchall()]
        gone = {row["path"] for row in rows if row["kind"] == "tombstone"}
        shown = [
            (row, image)
            for row in rows
            if row["kind"] == "result" and row["verdict"] == "FAIL"
            for image in row["images"]
            if image["path"] not in gone
        ]
        row, image = scene.random.choice(shown)
        stone = TombstoneBody(
            station_id="s", written_at=row["written_at"], result_id=row["result_id"],
            role=image["role"], path=image["path"], sha256=image["sha256"], bytes=image["bytes"],
            picture_class="fail", rule="days", measured=9999.0, limit=30.0, why="old",
        )  # fmt: skip
        append(log, stone.as_json())
        (scene.directory / IMAGES / image["path"]).unlink()


def write_a_second_result(scene: Scene) -> None:
    with scene.hands() as log:
        log.execute("DROP INDEX IF EXISTS row_once")
        first = body_of(log, scene.any_seq(log, "result"))
        append(log, first | {"verdict": "PASS", "detail": "again"})


def drop_a_trigger_and_edit(scene: Scene) -> None:
    with scene.hands() as log:
        flip(log, scene.any_seq(log, "result"))
    with contextlib.closing(sqlite3.connect(scene.directory / DATABASE)) as log:
        log.execute("DROP TRIGGER row_no_update")


def drop_a_trigger(scene: Scene) -> None:
    name = scene.random.choice(["row_no_update", "row_no_delete", "row_no_replace"])
    with contextlib.closing(sqlite3.connect(scene.directory / DATABASE)) as log:
        log.execute(f"DROP TRIGGER {name}")


def chain_again_after_an_edit(scene: Scene) -> None:
    with scene.hands() as log:
        flip(log, scene.any_seq(log, "result"))
        rechain(log)


def edit_a_checkpoint(scene: Scene) -> None:
    """And chain again after it: its signature is left."""
    with scene.hands() as log:
        seq = scene.any_seq(log, "checkpoint", 10**9)
        body = body_of(log, seq)
        body["note"] = body["note"].replace("time 2026", "time 2025")
        set_body(log, seq, body | {"written_at": body["written_at"].replace("2026", "2025")})
        rechain(log)


def replace_the_public_key(scene: Scene) -> None:
    replace_key(scene)


def sign_with_a_key_of_ones_own(scene: Scene) -> None:
    """Everything chained and signed again, the public key left."""
    make_key(scene.directory.parent / "own.pem", scene.directory.parent / "own.pub")
    chain_again_after_an_edit(scene)
    resign(scene, scene.directory.parent / "own.pem")


def make_later_checkpoints_unsigned(scene: Scene) -> None:
    """An edit after a signed checkpoint, chained again; the checkpoints after it anew, unsigned."""
    with scene.hands() as log:
        query = "SELECT seq FROM row WHERE kind = ? ORDER BY seq"
        signed_ones = [row[0] for row in log.execute(query, ["checkpoint"])][:-1]
        first = scene.random.choice(signed_ones)
        later = [row[0] for row in log.execute(query, ["result"]) if row[0] > first]
        flip(log, scene.random.choice(later))
    resign(scene, None, first=first + 1)
    derive_again(scene)


def turn_a_trigger_off(scene: Scene) -> None:
    """One of its name that does nothing takes its place."""
    name = scene.random.choice(["row_no_update", "row_no_delete", "row_no_replace"])
    with contextlib.closing(sqlite3.connect(scene.directory / DATABASE)) as log:
        log.execute(f"DROP TRIGGER {name}")
        log.execute(f"CREATE TRIGGER {name} BEFORE UPDATE ON row BEGIN SELECT 1; END")
        log.commit()


def change_what_a_generated_column_says(scene: Scene) -> None:
    """In the schema: every query reads something else, and no row is changed."""
    wanted = scene.random.choice(["$.verdict", "$.reason", "$.part_id", "$.result_id"])
    with contextlib.closing(sqlite3.connect(scene.directory / DATABASE)) as log:
        log.execute("PRAGMA writable_schema = ON")
        log.execute(
            "UPDATE sqlite_master SET sql = replace(sql, ?, '$.kind') WHERE name = 'row'", [wanted]
        )
        log.commit()


def edit_a_derived_table(scene: Scene) -> None:
    """What QA's questions are answered from; the rows are as they were."""
    edit = scene.random.choice(
        [
            "UPDATE plate SET verdict = 'PASS' WHERE verdict <> 'PASS'",
            "UPDATE plate SET part_id = 'LGP-other' WHERE seq = (SELECT min(seq) FROM plate)",
            "DELETE FROM plate WHERE seq = (SELECT max(seq) FROM plate)",
            "DELETE FROM defect",
            "UPDATE hourly SET plates = plates + 1",
            "DELETE FROM hourly WHERE rowid = (SELECT min(rowid) FROM hourly)",
        ]
    )
    with contextlib.closing(sqlite3.connect(scene.directory / DATABASE)) as log:
        for name, kind in log.execute("SELECT name, type FROM sqlite_master").fetchall():
            if kind == "trigger" and not name.startswith("row_"):
                log.execute(f"DROP TRIGGER {name}")
        assert log.execute(edit).rowcount > 0
        log.commit()


# --- edits that need an anchor ------------------------------------------------------------------


def cut_the_tail(scene: Scene) -> None:
    """To before the last anchor."""
    with scene.hands() as log:
        last = scene.random.randint(1, scene.anchors[-1].seq - 1)
        log.execute("DELETE FROM row WHERE seq > ?", [last])
    derive_again(scene)


def restore_an_old_copy(scene: Scene) -> None:
    shutil.rmtree(scene.directory)
    shutil.copytree(scene.old_copy, scene.directory)


def chain_again_without_checkpoints(scene: Scene) -> None:
    with scene.hands() as log:
        flip(log, scene.any_seq(log, "result"))
        log.execute("DELETE FROM row WHERE kind = 'checkpoint'")
        renumber(log)
        rechain(log)
    derive_again(scene)


def have_the_station_sign_after_unsigned_checkpoints(scene: Scene) -> None:
    """All of them made anew, unsigned, over an edited row: as if there never had been a key."""
    chain_again_after_an_edit(scene)
    resign(scene, None)
    derive_again(scene)
    with Store(scene.directory) as store, Reader(scene.directory) as reader:
        at = "2027-01-01T00:00:00.000000Z"
        store.append([make_checkpoint(reader, "s", at, load_key(scene.key_file))])


def chain_and_sign_again_with_another_key(scene: Scene) -> None:
    """And put its public half beside the log."""
    chain_again_after_an_edit(scene)
    resign(scene, replace_key(scene))
    derive_again(scene)


def chain_and_sign_again_with_the_stolen_key(scene: Scene) -> None:
    chain_again_after_an_edit(scene)
    resign(scene, scene.key_file)
    derive_again(scene)


def sign_the_last_checkpoint_again(scene: Scene) -> None:
    """With another key, its public half put beside the log; no row before it is touched."""
    own = replace_key(scene)
    with contextlib.closing(sqlite3.connect(scene.directory / DATABASE)) as log:
        query = "SELECT max(seq) FROM row WHERE kind = 'checkpoint'"
        last = log.execute(query).fetchone()[0]
    resign(scene, own, first=last)


def begin_the_log_anew(scene: Scene) -> None:
    shutil.rmtree(scene.directory)
    maker = LogMaker(scene.directory, scene.random.randrange(10**6), is_signed=False)
    maker.live(20)
    maker.close()


# --- edits of a certificate ---------------------------------------------------------------------


def _certificate(scene: Scene, edit: Callable[[Json], None], key: Path | None = None) -> None:
    said = json.loads(scene.certificate.read_bytes())
    edit(said)
    try:
        runpy.run_path(str(SCRIPT))["check"](canonical_bytes(said), key or scene.public_key)
    except Exception as error:  # noqa: BLE001  the script turns what it is into its status
        scene.certificate_findings.append(str(error))


def omit_a_later_review_from_a_certificate(scene: Scene) -> None:
    def edit(said: Json) -> None:
        reviews = [row for row in said["rows"] if row["kind"] == "review"]
        said["rows"].remove(scene.random.choice(reviews))
        said["says"] = said["says"].replace(
            f"{len(said['rows']) + 1} rows", f"{len(said['rows'])} rows"
        )

    _certificate(scene, edit)


def change_a_letter_of_a_certificate_s_row(scene: Scene) -> None:
    def edit(said: Json) -> None:
        row = scene.random.choice(said["rows"])
        place = scene.random.randrange(len(row["body"]))
        letter = chr(ord(row["body"][place]) ^ 1)
        row["body"] = row["body"][:place] + letter + row["body"][place + 1 :]

    _certificate(scene, edit)


def give_another_key_with_a_certificate(scene: Scene) -> None:
    make_key(scene.directory.parent / "c.pem", scene.directory.parent / "c.pub")
    _certificate(scene, lambda said: None, scene.directory.parent / "c.pub")


ALONE: tuple[Callable[[Scene], None], ...] = (
    flip_a_verdict,
    flip_a_verdict_and_its_hash,
    flip_a_verdict_its_hash_and_its_chain_value,
    change_one_letter_of_any_row,
    change_a_verdict_behind_sqlite_s_back,
    change_a_stored_hash,
    write_what_is_no_text,
    change_a_kind,
    take_a_row_out,
    take_a_review_out_and_chain_again,
    put_a_row_before_the_first,
    swap_two_rows,
    swap_two_pictures,
    swap_what_two_results_show,
    change_a_bit_of_a_picture,
    remove_a_picture,
    edit_a_review,
    edit_a_tombstone,
    bury_a_picture_against_the_rules,
    write_a_second_result,
    drop_a_trigger,
    drop_a_trigger_and_edit,
    turn_a_trigger_off,
    change_what_a_generated_column_says,
    edit_a_derived_table,
    chain_again_after_an_edit,
    edit_a_checkpoint,
    replace_the_public_key,
    sign_with_a_key_of_ones_own,
    make_later_checkpoints_unsigned,
    omit_a_later_review_from_a_certificate,
    change_a_letter_of_a_certificate_s_row,
    give_another_key_with_a_certificate,
)
"""`verify`, or the certificate's checker, finds them with nothing but the log."""
WITH_ANCHOR: tuple[Callable[[Scene], None], ...] = (
    cut_the_tail,
    restore_an_old_copy,
    chain_again_without_checkpoints,
    have_the_station_sign_after_unsigned_checkpoints,
    chain_and_sign_again_with_another_key,
    chain_and_sign_again_with_the_stolen_key,
    sign_the_last_checkpoint_again,
    begin_the_log_anew,
)
"""Whoever does these does them so well that only what lies elsewhere can tell."""


def clean_findings(folder: Path, seed: int) -> list[str]:
    """Of a log that nobody touched, its anchors and a certificate: none, if all is right."""
    maker = LogMaker(folder / f"clean-{seed}", seed, is_signed=seed % 3 > 0)
    maker.live(maker.random.randint(5, 60))
    name = maker.plate()
    maker.checkpoint()
    findings = _clean_certificate(maker, name) if maker.is_signed else []
    maker.live(maker.random.randint(0, 10))
    maker.close()
    public = maker.directory / PUBLIC_KEY if maker.is_signed else None
    key = fingerprint(read_public(public)) if public else None
    anchors = [anchor_of(parsed(body.note), key) for body in maker.checkpoints]
    with Reader(maker.directory) as reader:
        findings += verify(reader, public_key=public).findings
        findings += check_anchors(reader, anchors, keys_of(reader))
    shutil.rmtree(maker.directory)
    return findings


def _clean_certificate(maker: LogMaker, name: str) -> list[str]:
    with Reader(maker.directory) as reader:
        try:
            (made,) = make_certificates(reader, name, None, maker.directory / "certificates")
            check = runpy.run_path(str(SCRIPT))["check"]
            check(made.file.read_bytes(), maker.directory / PUBLIC_KEY)
        except Exception as error:  # noqa: BLE001  any is one too many
            return [str(error)]
    return []


def campaign(folder: Path, seeds: int) -> Iterator[tuple[str, int, int, int]]:
    """Of each kind: edits, found alone, found with what was kept elsewhere."""
    stages = [Stage.build(folder / f"stage-{number}", number) for number in range(2)]
    for edit in (*ALONE, *WITH_ANCHOR):
        alone = with_anchors = 0
        for seed in range(seeds):
            with stages[seed % len(stages)].copy(seed) as scene:
                edit(scene)
                found, more = scene.found()
                alone += bool(found)
                with_anchors += bool(found or more)
        yield edit.__name__.replace("_", " "), seeds, alone, with_anchors


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10, help="edits of each kind")
    parser.add_argument("--clean", type=int, default=1000, help="logs that nobody touched")
    given = parser.parse_args(arguments)
    missed = alarms = 0
    with tempfile.TemporaryDirectory(dir=memory()) as name:
        print("| edit | edits | found by `verify` alone | with what is kept elsewhere |")
        print("|---|---|---|---|")
        for kind, edits, alone, with_anchors in campaign(Path(name), given.seeds):
            print(f"| {kind} | {edits} | {alone} | {with_anchors} |", flush=True)
            missed += edits - with_anchors
        for seed in range(given.clean):
            findings = clean_findings(Path(name), seed)
            alarms += bool(findings)
            for finding in findings:
                print(f"clean log {seed}: {finding}")
    print(f"\n{missed} edits were not found; {alarms} of {given.clean} clean logs alarmed")
    return 1 if missed or alarms else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
