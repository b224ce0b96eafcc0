"""The audit sample: nobody chooses it, and the log shows that nobody did."""

from __future__ import annotations

import hashlib
import hmac
import json
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from station_rig import Rig
from test_qms import change, opened, result, tampered

from station.audit import SECRET_FILE, AuditDraw, is_drawn, seed_of
from station.audit_check import AuditCheck, audit_findings
from station.config import Loaded, Recipe
from station.log_reader import Reader
from station.log_verify import verify
from station.qms import DATABASE, Store, canonical
from station.record import AuditRevealBody, AuditSeedBody, Body, ResultBody, Verdict, result_id

SHARE = 0.3


def recipe(share: float = SHARE) -> Loaded[Recipe]:
    value = Recipe.model_validate(
        {
            "id": "r",
            "version": 1,
            "plate": {"width_mm": 60.0, "length_mm": 40.0},
            "model": {"id": "m"},
            "keep": {"pass_whole_share": share},
        }
    )
    return Loaded(value, "r.toml", "0" * 64)


class Line:
    """A station's life as the log sees it: rows in the order in which they are submitted."""

    def __init__(self, folder: Path, share: float = SHARE) -> None:
        self.folder, self.share = folder, share
        self.number = 0
        self.rows: list[Body] = []

    def start(self) -> None:
        self.draw = AuditDraw(self.folder, "s", recipe(self.share))
        with Store(self.folder) as store:
            seeds = [AuditSeedBody.model_validate(body) for body in store.unrevealed_seeds(16)]
        self.rows += [change("start"), *self.draw.begin("day 1", seeds)]

    def plates(self, count: int, in_flight: int = 0, shift: str = "day 1") -> None:
        """Plates of a shift; results of the last ones come when more are on the belt."""
        waiting: list[Body] = getattr(self, "waiting", [])
        for _ in range(count):
            self.number += 1
            self.rows += self.draw.turn(shift)
            is_sample = self.draw.draw(result_id("s", self.number))
            self.rows.append(opened(self.number))
            waiting.append(result(self.number, Verdict.PASS, is_audit_sample=is_sample))
            while len(waiting) > in_flight:
                self.rows.append(waiting.pop(0))
        self.waiting = waiting

    def stop(self) -> None:
        self.rows += [*self.draw.end(), *self.waiting, change("stop")]
        self.waiting = []

    def write(self) -> None:
        with Store(self.folder) as store:
            store.append(self.rows)
        self.rows = []


@pytest.fixture
def line(tmp_path: Path) -> Line:
    return Line(tmp_path)


def check(folder: Path) -> AuditCheck:
    with Reader(folder) as reader:
        return audit_findings(reader)


def test_the_share_is_drawn_and_ids_do_not_matter() -> None:
    seed = hashlib.sha256(b"a seed").digest()
    for share in (0.0, 0.01, 0.3, 1.0):
        drawn = sum(is_drawn(seed, result_id("s", n), share) for n in range(20_000))
        assert abs(drawn - 20_000 * share) <= 4 * (20_000 * share * (1 - share)) ** 0.5


def test_who_has_the_seed_draws_again_without_this_program() -> None:
    """As the documentation says it: HMAC-SHA256 of the result id, its first 8 bytes as a number."""
    seed = bytes(range(32))
    for number in range(200):
        digest = hmac.new(seed, result_id("s", number).encode(), hashlib.sha256).digest()
        share = int.from_bytes(digest[:8], "big") / 2**64
        assert is_drawn(seed, result_id("s", number), 0.25) == (share < 0.25)


def test_a_clean_log_proves_its_sample(line: Line) -> None:
    line.start()
    line.plates(100, in_flight=5)
    line.plates(100, in_flight=5, shift="day 2")
    line.stop()
    line.write()
    found = check(line.folder)
    assert (found.findings, found.notes, found.unproven, found.waiting) == ([], [], 0, 0)
    assert found.checked == 200
    assert 20 < found.drawn < 100


def test_a_seed_is_announced_before_its_plates_and_revealed_after(line: Line) -> None:
    line.start()
    line.plates(5)
    line.plates(5, shift="day 2")
    line.stop()
    kinds = [getattr(row, "kind") for row in line.rows]  # noqa: B009
    first, second = (at for at, kind in enumerate(kinds) if kind == "audit_seed")
    revealed, last = (at for at, kind in enumerate(kinds) if kind == "audit_reveal")
    opens = [at for at, kind in enumerate(kinds) if kind == "opened"]
    assert first < opens[0]
    assert opens[4] < revealed < second < opens[5]
    assert opens[9] < last
    texts = [canonical(row) for row in line.rows[:revealed]]
    assert not any(getattr(line.rows[revealed], "seed") in text for text in texts)  # noqa: B009


def test_a_station_that_died_reveals_its_seed_when_it_starts_again(line: Line) -> None:
    line.start()
    line.plates(50)
    line.write()
    assert check(line.folder).waiting == 50
    line.start()
    line.plates(50)
    line.stop()
    line.write()
    found = check(line.folder)
    assert (found.findings, found.notes, found.checked, found.unproven) == ([], [], 100, 0)


def test_a_life_that_dies_before_its_first_row_loses_no_seed(line: Line) -> None:
    line.start()
    line.plates(50)
    line.write()
    for _ in range(3):
        line.start()
        line.rows.clear()
    line.start()
    line.stop()
    line.write()
    assert check(line.folder).checked == 50


def test_a_lost_secret_is_said_and_no_plate_is_proven_by_it(line: Line) -> None:
    line.start()
    line.plates(50)
    line.write()
    (line.folder / SECRET_FILE).unlink()
    line.start()
    line.plates(10)
    line.stop()
    line.write()
    found = check(line.folder)
    assert (found.findings, found.checked, found.unproven) == ([], 10, 50)
    assert "never revealed" in found.notes[0]


def test_the_secret_is_for_the_stations_eyes_only(line: Line) -> None:
    line.start()
    path = line.folder / SECRET_FILE
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    seed = line.rows[-1]
    assert isinstance(seed, AuditSeedBody)
    assert hashlib.sha256(seed_of(path.read_bytes()[:32], 1)).hexdigest() == seed.seed_sha256


def test_plates_of_an_older_program_are_drawn_by_no_seed(line: Line) -> None:
    line.start()
    line.plates(20)
    line.stop()
    line.rows.append(change("start"))
    for number in range(21, 31):
        line.rows += [opened(number), result(number, is_audit_sample=number % 2 == 0)]
    line.write()
    found = check(line.folder)
    assert (found.findings, found.checked, found.unproven) == ([], 20, 10)


def chosen(rows: list[Body]) -> Iterator[list[Body]]:
    """The rows of a station that spares one plate the audit, adds one, or reveals what it likes."""
    for at, row in enumerate(rows):
        if getattr(row, "kind") == "result":  # noqa: B009
            is_sample = getattr(row, "is_audit_sample")  # noqa: B009
            changed = row.model_copy(update={"is_audit_sample": not is_sample})
            yield [*rows[:at], changed, *rows[at + 1 :]]
        if isinstance(row, AuditRevealBody):
            yield [*rows[:at], row.model_copy(update={"seed": "0" * 64}), *rows[at + 1 :]]


def test_each_other_choice_is_found(line: Line, tmp_path: Path) -> None:
    line.start()
    line.plates(12)
    line.stop()
    for number, rows in enumerate(chosen(line.rows)):
        folder = tmp_path / str(number)
        with Store(folder) as store:
            store.append(rows)
        assert len(check(folder).findings) == 1, rows


def test_a_seed_announced_after_the_fact_proves_nothing(line: Line) -> None:
    """A hash that was put behind the plates it is to explain does not cover them."""
    line.start()
    line.plates(20)
    line.stop()
    seed = next(row for row in line.rows if isinstance(row, AuditSeedBody))
    line.rows.remove(seed)
    end = next(at for at, row in enumerate(line.rows) if isinstance(row, AuditRevealBody))
    line.rows.insert(end, seed)
    line.write()
    found = check(line.folder)
    assert (found.checked, found.unproven) == (0, 20)


def test_a_real_station_draws_what_its_log_proves(tmp_path: Path) -> None:
    """Plates that were drawn are kept whole, whatever their verdict."""
    rig = Rig(tmp_path, recipe_lines=f"[keep]\npass_whole_share = {SHARE}\n")
    assert rig.run("--plates", "8").status == 0
    log = sqlite3.connect(rig.journal / DATABASE)
    samples = log.execute(
        "SELECT body FROM row WHERE kind = 'result' AND body ->> '$.is_audit_sample'"
    ).fetchall()
    log.close()
    found = check(rig.journal)
    assert (found.findings, found.notes, found.unproven) == ([], [], 0)
    assert found.checked == 8
    assert found.drawn == len(samples)
    for (body,) in samples:
        assert "evidence" in [image["role"] for image in json.loads(body)["images"]]
    assert [body["share"] for body in rig.rows("audit_seed")] == [SHARE]
    assert len(rig.rows("audit_reveal")) == 1


def test_verify_tells_it_too(line: Line) -> None:
    line.start()
    line.plates(12)
    line.stop()
    at = next(at for at, row in enumerate(line.rows) if isinstance(row, ResultBody))
    is_sample = getattr(line.rows[at], "is_audit_sample")  # noqa: B009
    line.rows[at] = line.rows[at].model_copy(update={"is_audit_sample": not is_sample})
    line.write()
    with Reader(line.folder) as reader:
        (finding,) = verify(reader).findings
    assert "s-00000001" in finding


@pytest.mark.parametrize(
    ("kind", "changed", "finding"),
    [
        ("audit_reveal", "json_set(body, '$.seed', 'zz')", "reveals no audit seed"),
        ("audit_reveal", "json_remove(body, '$.seed')", "reveals no audit seed"),
        ("audit_seed", "json_remove(body, '$.share')", "announces no audit seed"),
        ("audit_seed", "json_set(body, '$.share', 'all')", "announces no audit seed"),
        ("audit_seed", "json_remove(body, '$.recipe_version')", "announces no audit seed"),
    ],
)
def test_an_edited_seed_is_a_finding_of_its_row(
    line: Line, kind: str, changed: str, finding: str
) -> None:
    line.start()
    line.plates(3)
    line.stop()
    line.write()
    tampered(line.folder, f"UPDATE row SET body = {changed} WHERE kind = '{kind}'")
    with Reader(line.folder) as reader:
        findings = verify(reader).findings
        (seq,) = (row.seq for row in reader.rows() if row.kind == kind)
    assert any(text.startswith(f"row {seq}: {finding}") for text in findings), findings


def test_an_opened_row_without_its_number_stops_no_check(line: Line) -> None:
    line.start()
    line.plates(3)
    line.stop()
    line.write()
    tampered(
        line.folder,
        "UPDATE row SET body = json_remove(body, '$.sequence') WHERE kind = 'opened'",
    )
    with Reader(line.folder) as reader:
        assert any("its body is not the one" in text for text in verify(reader).findings)


def any_seed(number: int) -> bytes:
    return hashlib.sha256(str(number).encode()).digest()


def audit_seed(number: int) -> AuditSeedBody:
    return AuditSeedBody(
        station_id="s",
        seed_sha256=hashlib.sha256(any_seed(number)).hexdigest(),
        number=number,
        shift="day 1",
        recipe_id="r",
        recipe_version=1,
        recipe_sha256="0" * 64,
        share=SHARE,
    )


def audit_reveal(number: int) -> AuditRevealBody:
    seed = any_seed(number)
    digest = hashlib.sha256(seed).hexdigest()
    return AuditRevealBody(station_id="s", seed_sha256=digest, seed=seed.hex())


def steps_of_a_start(folder: Path, count: int) -> int:
    """How much SQLite does to look back for seeds in a log of `count`, of which five died."""
    died = {3, count - 30, count - 2, count - 1, count}
    rows: list[Body] = []
    for number in range(1, count + 1):
        rows += [audit_seed(number)]
        rows += [] if number in died else [audit_reveal(number)]
    with Store(folder) as store:
        store.append(rows)
        steps = 0

        def step() -> None:
            nonlocal steps
            steps += 1

        store._raw.set_progress_handler(step, 100)
        found = [body["number"] for body in store.unrevealed_seeds(16)]
        first = store.unrevealed_seeds(2)
    assert found == [count, count - 1, count - 2, count - 30]
    assert [body["number"] for body in first] == [count, count - 1]
    return steps


def test_looking_back_for_seeds_grows_no_faster_than_the_log(tmp_path: Path) -> None:
    short, long = (steps_of_a_start(tmp_path / str(count), count) for count in (100, 800))
    assert long < 12 * short
