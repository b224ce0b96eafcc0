"""From reviewed plates to labelled tiles: only what a person said, with its provenance; what tests
never trains."""

from __future__ import annotations

import base64
import csv
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from station_rig import Rig, start_vqi
from test_qms import result
from test_reviews import review
from typer.testing import CliRunner, Result

from models.classifier import Classifier
from models.registry import shipped_model
from models.training.data import data_sha256, load_tiles, read_folder, select
from models.training.duplicates import NEAR_BITS, nearest, picture_hash
from station.candidate import measure_audit
from station.cli.model import app
from station.config import load_configuration, load_recipe
from station.evidence import (
    COLLECTED,
    Labelled,
    Parts,
    Seen,
    keys_of,
    labelled_tiles,
    read_parts,
    read_trained_keys,
    trained_keys,
)
from station.log_reader import Reader
from station.log_verify import verify
from station.record import Verdict
from station.reviews import ReviewRefused, last_judged, place
from station.stored_tiles import NotStored

Json = dict[str, Any]
PASS, FAIL, UNDECIDED = Verdict.PASS, Verdict.FAIL, Verdict.UNDECIDED
GRID = [(0, 0), (192, 0), (0, 192), (192, 192)]


def plate(own: Verdict, scores: list[float], defects: list[Json] | None = None) -> Json:
    """A result of four tiles, as it lies in the log."""
    more = {
        "score": max(scores),
        "threshold": 0.5,
        "tile_grid": base64.b64encode(np.array(GRID, "<u2").tobytes()).decode(),
        "tile_scores": base64.b64encode(np.array(scores, "<f4").tobytes()).decode(),
        "defects": defects or [],
        "left_px": 0,
        "width_px": 420,
        "length_px": 420,
    }
    return {"seq": 1, **result(1, own).as_json(), **more}


def defect(x_px: int, y_px: int, score: float = 0.9) -> Json:
    return {"x_px": x_px, "y_px": y_px, "w_px": 30, "h_px": 30, "x_mm": 1.0, "y_mm": 1.0} | {
        "score": score
    }


def said(verdict: Verdict, seq: int = 2, **more: object) -> Json:
    one = review(verdict=verdict, supersedes=seq - 1, reviewer=more.pop("reviewer", "ada"), **more)
    return {"seq": seq, **one.as_json()}


def told(tiles: tuple[Labelled, ...]) -> list[tuple[tuple[int, int], int, str, str]]:
    return [(tile.place, tile.label, tile.basis, tile.kind) for tile in tiles]


# --- what a person said of which tile ------------------------------------------------------------


def test_a_confirmed_fail_gives_its_failing_tiles_and_nothing_else() -> None:
    row = plate(FAIL, [0.9, 0.1, 0.2, 0.8], [defect(50, 50), defect(300, 300, 0.8)])
    assert told(labelled_tiles([row, said(FAIL)])) == [
        ((0, 0), 1, "confirmed", "unnamed"),
        ((192, 192), 1, "confirmed", "unnamed"),
    ]


def test_of_named_defects_only_those_that_were_named_count() -> None:
    row = plate(FAIL, [0.9, 0.1, 0.2, 0.8], [defect(50, 50), defect(300, 300, 0.8)])
    named = said(FAIL, defects=[{"number": 1, "kind": "dent"}])
    assert told(labelled_tiles([row, named])) == [((192, 192), 1, "confirmed", "dent")]


def test_an_overruled_fail_gives_good_tiles_and_names_the_false_ones() -> None:
    row = plate(FAIL, [0.9, 0.1, 0.2, 0.3], [defect(50, 50)])
    found = labelled_tiles([row, said(PASS)])
    assert [tile.label for tile in found] == [0, 0, 0, 0]
    assert [tile.basis for tile in found] == ["false_reject", "good", "good", "good"]


def test_an_escape_gives_the_marked_tile_with_its_place() -> None:
    row = plate(PASS, [0.4, 0.1, 0.2, 0.3])
    mark = {"x_px": 300, "y_px": 300, "w_px": 40, "h_px": 20, "kind": "scratch"}
    (tile,) = labelled_tiles([row, said(FAIL, places=[mark])])
    assert (tile.place, tile.label, tile.basis) == ((192, 192), 1, "escape")
    assert tile.boxes == (("scratch", (108, 108, 148, 128)),)


def test_marks_stay_when_another_person_agrees_without_any() -> None:
    row = plate(PASS, [0.4, 0.1, 0.2, 0.3])
    mark = {"x_px": 300, "y_px": 300, "w_px": 40, "h_px": 20, "kind": "scratch"}
    rows = [row, said(FAIL, places=[mark]), said(FAIL, 3, reviewer="bob")]
    assert len(labelled_tiles(rows)) == 1


@pytest.mark.parametrize(
    ("own", "reviews", "why"),
    [
        (PASS, [said(FAIL)], "nobody marked"),
        (FAIL, [said(PASS, four_eyes=[FAIL])], "waits for a second person"),
        (FAIL, [said(UNDECIDED)], "could not decide"),
        (FAIL, [said(FAIL, defects=[{"number": 0, "kind": "dent"}])], "no failing tile"),
        (UNDECIDED, [said(PASS)], "did not decide"),
    ],
)
def test_what_nobody_knows_is_left_out(own: Verdict, reviews: list[Json], why: str) -> None:
    listed = [defect(0, 400)] if own is FAIL else []
    with pytest.raises(NotStored, match=why):
        labelled_tiles([plate(own, [0.9, 0.1, 0.2, 0.3], listed), *reviews])


def test_a_mark_beside_the_plate_or_on_a_good_one_is_refused() -> None:
    rows = [plate(PASS, [0.4, 0.1, 0.2, 0.3])]
    beside = {"x_px": 500, "y_px": 0, "w_px": 9, "h_px": 9, "kind": "dent"}
    with pytest.raises(ReviewRefused, match="beside the plate"):
        place(rows, review(verdict=FAIL, places=[beside]))
    inside = review(verdict=FAIL, places=[beside | {"x_px": 10}])
    assert place(rows, inside)[0] is None
    assert "places" not in review().as_json(), "older programs do not know it"


# --- splits ---------------------------------------------------------------------------------------

KEYS = st.lists(st.sampled_from([f"serial {n}" for n in range(12)]), min_size=1, max_size=2)
PLATES = st.lists(st.tuples(KEYS, st.booleans()), min_size=1, max_size=30)


@given(plates=PLATES, more=PLATES, share=st.floats(0, 0.5), wider=st.floats(0, 0.4))
@settings(max_examples=200)
def test_what_tested_never_trains(plates: Any, more: Any, share: float, wider: float) -> None:
    before, after = Parts(share), Parts(share + wider)
    for parts, carried in ((before, plates), (after, [*plates, *more])):
        for keys, is_audit in carried:
            parts.add(keys, is_audit)
    for keys, is_audit in plates:
        if before.split(keys) == "test":
            assert after.split(keys) == "test"
        assert not is_audit or after.split(keys) == "test"
    by_group = {(after.group(keys), after.split(keys)) for keys, _ in [*plates, *more]}
    assert len({group for group, _ in by_group}) == len(by_group), "a part is in both splits"


def test_attempts_of_one_serial_are_one_part_and_doubt_joins_parts() -> None:
    parts = Parts(0.0)
    parts.add(keys_of({"part_id": "A", "result_id": "1"}), False)
    parts.add(keys_of({"part_id": "B", "result_id": "2"}), False)
    assert parts.group(("serial A",)) != parts.group(("serial B",))
    parts.add(keys_of({"part_id": None, "serials": ["A", "B"], "result_id": "3"}), True)
    assert parts.group(("serial A",)) == parts.group(("serial B",))
    assert parts.split(("serial A",)) == "test"


def test_a_part_that_nobody_added_tests_where_the_share_says_so() -> None:
    """It was judged for the first time while the parts were read."""
    keys = [(f"serial {number}",) for number in range(40)]
    known, unknown = Parts(0.3), Parts(0.3)
    for one in keys:
        known.add(one, False)
    assert {known.split(one) for one in keys} == {"test", "train"}
    assert [unknown.split(one) for one in keys] == [known.split(one) for one in keys]


def test_a_part_that_may_have_trained_is_known_where_it_is_drawn_later() -> None:
    def keys(*plates: tuple[int, str, bool], collects: tuple[int, ...] = (20,)) -> set[str]:
        seen = [Seen(seq, tuple(names.split()), is_audit) for seq, names, is_audit in plates]
        return set(trained_keys(seen, collects))

    first, again = (10, "A", False), (30, "A", True)
    assert keys(first, again) == {"A"}
    assert keys(first, again, collects=()) == set()
    assert keys(first, again, collects=(5, 40)) == set(), "before both, and when it tested already"
    assert keys((10, "A", True), (15, "A", False), (30, "A", True)) == set()
    assert keys((25, "A", False), again) == set(), "not judged by then"
    assert keys(first, (30, "B", True)) == set(), "another part"
    assert keys(first, (12, "A B", False), (30, "B", True)) == {"A", "B"}, "it may be the same"


def test_the_hash_knows_a_picture_again_and_no_other() -> None:
    rng = np.random.default_rng(1)
    one, other = (
        np.kron(rng.integers(60, 200, (28, 28)), np.ones((8, 8))).astype(np.uint8) for _ in "ab"
    )
    noisy = np.clip(one + rng.normal(0, 2, one.shape), 0, 255).astype(np.uint8)
    assert nearest(picture_hash(noisy), [picture_hash(other), picture_hash(one)])[0] == 1
    assert nearest(picture_hash(noisy), [picture_hash(one)])[1] <= NEAR_BITS
    assert nearest(picture_hash(one), [picture_hash(other)])[1] > NEAR_BITS


# --- the whole way -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reviewed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """A belt of twelve plates that passes twice, all judged as they truly are; its journal runs."""
    rig = Rig(
        tmp_path_factory.mktemp("evidence"),
        camera={"bank_plates": 12},
        specimen={"defective_share": 0.5, "gap_mm": 20.0, "contrast_scale": 6.0},
        recipe_lines="[keep]\npass_whole_share = 0.1\nwhole_from_score = 0.0\n",
    )
    assert rig.run("--plates", "24").status == 0
    process = start_vqi("serve", "journal", "--config", str(rig.write()))
    try:
        _review_all(rig)
        yield rig
    finally:
        process.terminate()
        process.wait(30)


def _review_all(rig: Rig, lap: int = 0) -> None:
    from station.journal_client import JournalClient

    client = JournalClient(rig.runtime)
    client.connect(30.0)
    with Reader(rig.journal) as reader:
        for row in rig.rows("result"):
            verdict = FAIL if row["truth_is_defective"] else PASS
            kinds = [{"number": n, "kind": "scratch"} for n, _ in enumerate(row["defects"])]
            answer = client.submit(
                [
                    review(
                        station_id="test-1",
                        result_id=row["result_id"],
                        verdict=verdict,
                        reason="confirmed",
                        supersedes=last_judged(reader.of_result(row["result_id"])),
                        nonce=f"{row['result_id'][-8:]}{lap:08}",
                        defects=kinds if verdict is FAIL else [],
                    )
                ]
            )
            assert answer["ok"], answer
    client.close()


def _collect(rig: Rig, name: str, *options: str) -> tuple[Path, Json]:
    out = rig.folder / name
    done = _ask(rig, out, "--json", *options)
    assert done.exit_code == 0, done.stderr
    told: Json = json.loads(done.stdout)
    return out, told


def _ask(rig: Rig, out: Path, *options: str) -> Result:
    config = str(rig.folder / "station.toml")
    asked = ["collect", "--config", config, "--out", str(out), "--who", "ada", *options]
    return CliRunner().invoke(app, asked)


def test_a_collect_is_what_the_log_says_tile_by_tile(reviewed: Rig) -> None:
    out, told = _collect(reviewed, "data")
    samples = read_folder(out)
    assert data_sha256(samples) == told["data_sha256"]
    with (out / "provenance.csv").open() as file:
        rows = {row["file"]: row for row in csv.DictReader(file)}
    results = {row["result_id"]: row for row in reviewed.rows("result")}
    classifier = Classifier.load(shipped_model("lightdefectnet-v3"))
    for sample, tile in zip(samples, load_tiles(samples), strict=True):
        row = rows[sample.name]
        body = results[row["result_id"]]
        assert sample.label == int(body["truth_is_defective"])
        # The very pixels that were judged: the model says the same of them, bit for bit.
        assert float(classifier.scores(tile[None])[0]) == float(row["tile_score"])
        is_test = sample.split == "test"
        assert is_test or not body["is_audit_sample"]
    with Reader(reviewed.journal) as reader:
        for row in rows.values():
            (record,) = reader.stored(int(row["record_row"]), 1)
            assert record.body_sha256 == row["record_sha256"]
    change = next(row for row in reviewed.rows("change") if row["what"] == COLLECTED)
    assert change["who"] == "ada"
    assert change["detail"]["data_sha256"] == told["data_sha256"]
    with Reader(reviewed.journal) as reader:
        assert verify(reader, with_file=False).findings == []


def test_the_same_picture_is_in_one_split_only(reviewed: Rig) -> None:
    """The belt's second lap has no serials to say that the plates are the same: the pictures do."""
    out, told = _collect(reviewed, "laps")
    samples = read_folder(out)
    tested = [picture_hash(tile[0]) for tile in load_tiles(select(samples, "test"))]
    trained = [picture_hash(tile[0]) for tile in load_tiles(select(samples, "train"))]
    assert told["near_duplicates"], "each plate came twice, some of them test"
    assert all(nearest(one, tested)[1] > NEAR_BITS for one in trained)


def test_what_tests_in_another_time_trains_in_none(reviewed: Rig) -> None:
    """A time with a plate that trains, without the same plate's time as a test plate; and of the
    test plates every tile is known again, those beyond what is collected of a plate too."""
    _, told = _collect(reviewed, "all", "--good-per-plate", "1000")
    times = {row["result_id"]: row["written_at"] for row in reviewed.rows("result")}
    for number, one in enumerate(told["near_duplicates"][::8]):
        train, test = (one[name].split("/")[1].split("_")[0] for name in ("file", "like"))
        is_later = times[train] > times[test]
        period = ("--since", times[train]) if is_later else ("--until", times[test])
        options = ("--good-per-plate", "1000", *period)
        _, apart = _collect(reviewed, f"apart{number}", *options)
        assert one in apart["near_duplicates"]


def test_kinds_are_balanced_by_a_seeded_choice(reviewed: Rig) -> None:
    _, told = _collect(reviewed, "few", "--per-kind", "3")
    # The audit's lot decides how many plates train at all, and of the three that were drawn by lot
    # some may look like a test tile.
    assert told["kinds"].get("scratch", 0) <= 3
    assert told["tiles"].get("train good", 0) <= 3
    assert sum(told["not_taken"].values()) > 0


def test_a_changed_picture_is_named_and_left_out(reviewed: Rig) -> None:
    body = next(row for row in reviewed.rows("result") if row["truth_is_defective"])
    kept = next(one for one in body["images"] if one["role"] == "evidence")
    path = reviewed.journal / "images" / kept["path"]
    data = path.read_bytes()
    try:
        path.write_bytes(data[:-20] + b"\0" + data[-19:])
        out, told = _collect(reviewed, "changed")
    finally:
        path.write_bytes(data)
    (left,) = [one for one in told["left_out"] if one["result_id"] == body["result_id"]]
    assert left["why"] == "picture is not the recorded one"
    assert body["result_id"] not in (out / "provenance.csv").read_text()


def test_nothing_judged_is_said_and_leaves_no_folder(reviewed: Rig) -> None:
    out = reviewed.folder / "none"
    done = _ask(reviewed, out, "--until", "2020-01-01")
    assert done.exit_code == 1
    assert "nobody has judged a plate" in done.stderr
    assert not out.exists()
    assert not out.with_name("none.part").exists()


def test_a_later_collect_tests_with_no_less(reviewed: Rig) -> None:
    first, _ = _collect(reviewed, "first", "--test-share", "0.25")
    again, told = _collect(reviewed, "again", "--seed", "9", "--per-kind", "5")
    assert told["test_share"] == 0.25
    groups = [{s.group for s in select(read_folder(out), "test")} for out in (first, again)]
    assert groups[0] == groups[1]
    out = reviewed.folder / "less"
    done = _ask(reviewed, out, "--test-share", "0.1")
    assert done.exit_code == 1
    assert "earlier collect held out 0.25" in done.stderr
    assert not out.exists()


def test_parts_that_may_have_trained_are_no_audit_evidence(
    reviewed: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twelve plates without serials: each is a part of its own, and none was drawn later."""
    configuration = load_configuration(str(reviewed.folder / "station.toml"))
    recipe = load_recipe(str(reviewed.folder / "recipe.toml"))
    _collect(reviewed, "before-audit")
    with Reader(reviewed.journal) as reader:
        assert read_trained_keys(reader) == frozenset()
    known = measure_audit(configuration, recipe, recipe)
    assert known.may_have_trained == 0
    value = recipe.value.model_copy(update={"id": "another"})
    other = measure_audit(configuration, recipe, replace(recipe, value=value))
    assert (other.good, other.defective, other.passed_over) == (0, 0, 0), "of another product"
    keys = frozenset(key for row in reviewed.rows("result") for key in keys_of(row))
    monkeypatch.setattr("station.candidate.read_trained_keys", lambda _: keys)
    found = measure_audit(configuration, recipe, recipe)
    assert (found.good, found.defective, found.passed_over) == (0, 0, known.passed_over)
    assert found.may_have_trained == known.good + known.defective
    assert found.as_detail()["may_have_trained"] == str(found.may_have_trained)


def test_what_people_say_while_parts_are_read_is_for_the_next_collect(
    reviewed: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The row says up to where the log was read: nothing later is in the folder."""

    def read_and_review(reader: Reader, test_share: float) -> Parts:
        parts = read_parts(reader, test_share)
        _review_all(reviewed, lap=1)
        return parts

    monkeypatch.setattr("station.evidence.read_parts", read_and_review)
    out, told = _collect(reviewed, "meanwhile")
    monkeypatch.undo()
    head_seq = told["head_seq"]
    assert max(_review_rows(out)) <= head_seq
    out, told = _collect(reviewed, "afterwards")
    assert head_seq < min(_review_rows(out))
    assert max(_review_rows(out)) <= told["head_seq"]


def _review_rows(folder: Path) -> list[int]:
    with (folder / "provenance.csv").open() as file:
        return [int(row["review_row"]) for row in csv.DictReader(file)]
