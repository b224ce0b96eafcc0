"""Two models on the same stored plates: every flip by plate, what was not replayed, who signs."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from other_models import SHIPPED, leaning_model
from station_rig import Rig, vqi

from models.card import read_card, write_card
from models.registry import shipped_model
from station.compare import (
    PICTURES,
    PLATES,
    Contestant,
    Outcome,
    Recorded,
    Replayed,
    by_risk,
    contestant,
    is_of_the_strip,
    open_plan,
    read_register,
    replay,
)
from station.compare_report import build_report, compared_change, figures, write_report
from station.comparisons import (
    COMPARED,
    LEAST_SAMPLE,
    SIGNED,
    Comparison,
    ComparisonError,
    drawn,
    objection,
    register,
    signed_change,
)
from station.config import load_configuration, load_recipe
from station.images import ImageFolder
from station.log_reader import Reader
from station.log_verify import verify
from station.page_door import objection as page_objection
from station.record import ChangeBody, Reason, ReviewBody, Verdict
from station.reviews import last_judged
from station.signing import journal_at_hand

Json = dict[str, Any]
SINCE = "2026-01-01T00:00:00.000000Z"

# --- the rules ------------------------------------------------------------------------------------


def compared(flips: int, confirmed: int = 0, differing: int = 0, sha: str = "c" * 64) -> Json:
    names = [f"s-{number:08d}" for number in range(flips)]
    detail = {
        "report_sha256": sha,
        **{f"{side}_id": side for side in "ab"},
        **{f"{side}_sha256": side * 64 for side in "ab"},
        **{f"{side}_threshold": "0.5" for side in "ab"},
        "since": SINCE,
        "until": SINCE,
        "plates": "500",
        "flips": json.dumps({"FAIL -> PASS": flips}),
        "to_sign": json.dumps(names),
        "confirmed": json.dumps(names[:confirmed]),
        "differing": str(differing),
        "sample_seed": "5" * 32,
    }
    return ChangeBody(station_id="s", what=COMPARED, who="eve", detail=detail).as_json()


def only(rows: list[Json]) -> Comparison:
    (one,) = register(rows).known.values()
    return one


def signed(
    one: Comparison, names: Any, opinion: Any = "accepted", who: str = "ann", sample: int = 0
) -> Json:
    return signed_change("s", one, names, opinion, who, "I looked at it", sample).as_json()


def test_each_flip_is_signed_by_a_person() -> None:
    rows = [compared(3)]
    for name in only(rows).to_sign:
        assert not only(rows).is_complete
        assert name in only(rows).unsigned
        rows.append(signed(only(rows), [name]))
    assert only(rows).is_complete


def test_a_comparison_without_flips_needs_nobody() -> None:
    assert only([compared(0)]).is_complete


def test_an_escape_keeps_it_open_until_another_person_takes_it_back() -> None:
    rows = [compared(1)]
    name = only(rows).to_sign
    rows.append(signed(only(rows), name, "escape"))
    assert only(rows).escapes == name
    assert "escape" in only(rows).missing[0]
    assert "another person" in objection(register(rows), signed(only(rows), name, who="Ann"))
    rows.append(signed(only(rows), name, who="bob"))
    assert only(rows).is_complete


def test_an_opinion_is_only_of_what_its_person_was_shown() -> None:
    rows = [compared(1)]
    name = only(rows).to_sign
    unseen = signed_change("s", only(rows), name, "accepted", "bob", "fine", seen="").as_json()
    assert not objection(register(rows), unseen)
    rows.append(signed(only(rows), name, "escape"))
    assert "meanwhile" in objection(register(rows), unseen)
    at = only(rows).by_result[name[0]].at
    rows.append(signed_change("s", only(rows), name, "accepted", "bob", "f", seen=at).as_json())
    assert only(rows).is_complete


def test_a_sample_is_what_the_seed_draws_and_large_enough() -> None:
    rows = [compared(200, confirmed=2)]
    one = only(rows)
    names = one.sample(LEAST_SAMPLE)
    assert set(names) <= set(one.to_sign) - one.confirmed
    assert one.sample(20) == names[:20], "a larger sample holds the smaller"
    chosen = tuple(name for name in one.to_sign if name not in one.confirmed)[:LEAST_SAMPLE]
    assert chosen != names
    assert "seed draws" in objection(register(rows), signed(one, chosen, sample=LEAST_SAMPLE))
    rows.append(signed(one, one.sample(20), sample=20))
    assert not only(rows).is_complete, "too small to say anything"
    rows.append(signed(one, names, sample=LEAST_SAMPLE))
    assert not only(rows).is_complete, "what a person called defective is signed one by one"
    rows += [signed(one, [name]) for name in sorted(one.confirmed)]
    assert only(rows).is_complete
    with pytest.raises(ComparisonError, match="198 flips"):
        one.sample(199)


def test_a_sample_with_an_escape_is_not_accepted() -> None:
    rows = [compared(100)]
    one = only(rows)
    rows.append(signed(one, [one.sample(60)[7]], "escape"))
    assert "called an escape" in objection(register(rows), signed(one, one.sample(60), sample=60))


def test_a_replay_that_is_not_the_inspection_proves_nothing() -> None:
    assert "as they were recorded" in only([compared(0, differing=1)]).missing[0]


def test_the_draw_is_the_documented_one() -> None:
    names = ["a", "b", "c"]
    order = sorted(names, key=lambda n: hashlib.sha256(f"seed {n}".encode()).hexdigest())
    assert drawn("seed", names, 2) == tuple(order[:2])


def test_what_may_not_follow_is_said() -> None:
    one = only([compared(2)])
    known = register([compared(2)])
    assert "no such comparison" in objection(register([]), signed(one, one.to_sign[:1]))
    assert "not among" in objection(known, signed(one, ["s-00000009"]))
    assert "one flip at a time" in objection(known, signed(one, one.to_sign))
    silent = signed_change("s", one, one.to_sign[:1], "accepted", "ann", "").as_json()
    assert "says why" in objection(known, silent)
    assert "no name" in objection(known, {**signed(one, one.to_sign[:1]), "who": ""})
    assert "already" in objection(known, compared(3))
    assert not objection(known, compared(2)), "sent again"
    for key in ("to_sign", "a_threshold", "sample_seed", "report_sha256"):
        broken = compared(2, sha="d" * 64)
        for text in ("", "[1]", "nan", "{" * 3000):
            broken["detail"][key] = text
            assert objection(known, broken)
        del broken["detail"][key]
        assert objection(known, broken)


@given(
    st.integers(0, 70),
    st.lists(
        st.tuples(
            st.sampled_from(["one", "sample"]),
            st.integers(0, 75),
            st.sampled_from(["accepted", "escape"]),
            st.sampled_from(["ann", "bob"]),
        ),
        max_size=25,
    ),
)
def test_complete_is_never_said_of_an_unsigned_escape(
    flips: int, steps: list[tuple[str, int, Any, str]]
) -> None:
    """Whatever comes, the register is held against a plain account of what was allowed."""
    rows = [compared(flips, confirmed=min(2, flips))]
    last: dict[str, str] = {}
    largest = 0
    for kind, number, opinion, who in steps:
        one = only(rows)
        try:
            names = one.sample(number) if kind == "sample" else (f"s-{number:08d}",)
        except ComparisonError:
            continue
        sample = number if kind == "sample" else 0
        row = signed(one, names, opinion, who, sample)
        if objection(register(rows), row):
            continue
        rows.append(row)
        last |= dict.fromkeys(names, opinion)
        largest = max(largest, sample)
    one = only(rows)
    drawable = flips - min(2, flips)
    is_covered = largest >= min(LEAST_SAMPLE, drawable)
    wanted = all(
        last.get(name) == "accepted"
        or (name not in last and is_covered and name not in one.confirmed)
        for name in one.to_sign
    )
    assert one.is_complete == wanted


# --- figures --------------------------------------------------------------------------------------


def plate(
    number: int,
    verdicts: str,
    recorded: str = "",
    is_drawn: bool = False,
    reviewed: Verdict | None = None,
    unplayed: str = "",
    score: float = 0.9,
) -> Replayed:
    """`verdicts` as PF: A passes, B fails."""
    words = {"P": Verdict.PASS, "F": Verdict.FAIL, "U": Verdict.UNDECIDED}
    was = words[(recorded or verdicts)[0]]
    a, b = (
        Outcome(verdict=words[letter], reason=None, score=score) if not unplayed else None
        for letter in verdicts
    )
    said = Recorded(
        verdict=was, reason=None, score=score, threshold=0.5, model_sha256="a" * 64, runtime="r"
    )
    return Replayed(
        result_id=f"s-{number:08d}",
        part_id=None,
        written_at=SINCE,
        recipe="r@1",
        recipe_sha256="e" * 64,
        recorded=said,
        is_drawn=is_drawn,
        reviewed=reviewed,
        unplayed=unplayed,
        a=a,
        b=b,
        agreement=None if unplayed else "bit for bit",
    )


def test_flips_come_in_order_of_risk() -> None:
    plates = [
        plate(1, "PF"),
        plate(2, "FP", score=0.6),
        plate(3, "FP", score=0.99),
        plate(4, "FP", reviewed=Verdict.PASS, score=0.99),
        plate(5, "FP", reviewed=Verdict.FAIL, score=0.51),
        plate(6, "UP"),
        plate(7, "FU"),
        plate(8, "FF"),
    ]
    assert [int(one.result_id[-1]) for one in by_risk(plates)] == [5, 3, 2, 4, 6, 7, 1]


def test_passed_plates_are_a_sample_and_said_to_be_one() -> None:
    """100 passed, 10 of them drawn, one of which B fails; 20 failed, all kept, 3 of which it
    passes; one drawn FAIL among them."""
    plates = [plate(n, "PF" if n == 0 else "PP", is_drawn=True) for n in range(10)]
    plates += [plate(n, "PP", unplayed="preview only") for n in range(10, 100)]
    plates += [plate(n, "FP" if n < 103 else "FF", is_drawn=n == 100) for n in range(100, 120)]
    found = figures(plates)
    failed, undecided, passed = found.strata
    assert (failed.plates, failed.replayed, failed.to_pass.count) == (20, 20, 3)
    assert failed.to_pass_of_all == (3, 3), "all are here: no doubt is left"
    assert (undecided.plates, undecided.to_pass.of) == (0, 0)
    assert (passed.plates, passed.replayed, passed.from_pass.count) == (100, 10, 1)
    assert passed.from_pass_of_all is not None
    low, high = passed.from_pass_of_all
    assert low == 1
    assert 35 < high < 60, "binomial 44.5 %, less for a finite lot"
    assert found.unplayed == (("PASS", "preview only", 90),)
    fair, people, everything = found.tests
    assert (fair.plates, fair.only_a, fair.only_b, fair.p_value) == (11, 1, 1, 1.0)
    assert (everything.only_a, everything.only_b) == (1, 3)
    assert everything.p_value == pytest.approx(0.625), "2 * (C(4,0) + C(4,1)) / 2 ** 4"
    assert people.plates == 0


def test_the_paired_test_of_rightness_counts_who_is_right() -> None:
    plates = [plate(n, "FP", reviewed=Verdict.FAIL) for n in range(6)]
    plates += [plate(n, "FP", reviewed=Verdict.PASS) for n in range(6, 7)]
    people = figures(plates).tests[1]
    assert (people.only_a, people.only_b) == (6, 1)
    assert people.p_value == pytest.approx(2 * (1 + 7) / 2**7)


def test_failed_plates_whose_pictures_went_say_nothing_of_all() -> None:
    plates = [plate(1, "FP"), plate(2, "FF", unplayed="picture removed by a rule")]
    failed = figures(plates).strata[0]
    assert failed.to_pass_of_all is None


def test_drawn_plates_whose_pictures_went_say_nothing_of_all() -> None:
    """Pictures are removed by age, not by chance: those left are no sample of the time."""
    plates = [plate(n, "PP", is_drawn=True) for n in range(9)]
    plates += [plate(n, "PP", unplayed="preview only") for n in range(10, 30)]
    assert figures(plates).strata[-1].to_pass_of_all is not None
    gone = plate(9, "PP", is_drawn=True, unplayed="picture removed by a rule")
    passed = figures([*plates, gone]).strata[-1]
    assert passed.replayed == 9
    assert passed.to_pass_of_all is passed.from_pass_of_all is None


def test_no_fair_test_is_made_of_drawn_plates_some_of_which_went() -> None:
    """Pictures of passed plates are removed first: failed ones would weigh more."""
    plates = [plate(n, "FP" if n < 8 else "PP", is_drawn=True) for n in range(12)]
    of_the_strip = plate(12, "UU", is_drawn=True, unplayed="undecided: gap")
    said = of_the_strip.recorded.model_copy(update={"reason": Reason.GAP})
    plates.append(of_the_strip.model_copy(update={"recorded": said}))
    fair = figures(plates).tests[0]
    assert (fair.plates, fair.p_value) == (12, pytest.approx(2 / 2**8)), "no model decides the gap"
    gone = plate(13, "PP", is_drawn=True, unplayed="picture removed by a rule")
    fair, _, everything = figures([*plates, gone]).tests
    assert (fair.plates, fair.only_a, fair.only_b, fair.p_value) == (12, 0, 8, None)
    assert "1 of 13 could not be replayed" in fair.says
    assert everything.p_value is not None, "it only describes"


# --- a real station's plates ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> Rig:
    """A station that inspected 16 plates, keeping half of those that passed whole."""
    folder = tmp_path_factory.mktemp("compared")
    rig = Rig(folder, recipe_lines="[keep]\npass_whole_share = 0.5\n")
    run = rig.run("--plates", "16")
    assert run.status == 0, run.stderr
    assert run.summary["fail"] >= 3
    leaning_model(folder / "lenient", 6.0)
    return rig


def command(rig: Rig, *words: str, status: int = 0) -> list[Json]:
    done = vqi(*words, "--config", str(rig.folder / "station.toml"), "--json")
    assert done.returncode == status, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def review_as_defective(rig: Rig, result_id: str) -> None:
    loaded = load_configuration(str(rig.folder / "station.toml"))
    with Reader(rig.journal) as reader:
        last = last_judged(reader.of_result(result_id))
    review = ReviewBody(
        station_id="test-1", result_id=result_id, verdict=Verdict.FAIL, reviewer="ada",
        reason="confirmed", supersedes=last, nonce="12345678",
    )  # fmt: skip
    with journal_at_hand(loaded.source, loaded.value) as journal:
        assert journal.submit([review])["ok"]


def test_a_comparison_from_plates_to_signatures(lived: Rig, tmp_path: Path) -> None:
    rig, out = lived, tmp_path / "out"
    results = rig.rows("result")
    failed = [row["result_id"] for row in results if row["verdict"] == "FAIL"]
    review_as_defective(rig, failed[0])
    said = command(
        rig, "model", "compare", SHIPPED, str(rig.folder / "lenient"), "--since", "2026-01-01",
        "--out", str(out), "--who", "eve",
    )  # fmt: skip
    summary = said.pop()["summary"]
    whole = [row for row in results if any(i["role"] == "evidence" for i in row["images"])]
    assert summary["results"] == len(results)
    assert summary["replayed"] == len(whole)
    assert summary["agreement"] == {"bit for bit": len(whole)}
    left_out = sum(count for _, _, count in summary["unplayed"])
    assert left_out == len(results) - len(whole)
    assert {why for _, why, _ in summary["unplayed"]} <= {"preview only"}
    to_sign = [row["result_id"] for row in said if row["is_to_sign"]]
    assert len(to_sign) > 1
    assert set(to_sign) <= set(failed)
    assert to_sign[0] == failed[0], "what a person judged defective comes first"
    assert summary["confirmed"] == 1
    data = (out / "report.json").read_bytes()
    assert hashlib.sha256(data).hexdigest() == summary["report_sha256"]
    page = (out / "report.html").read_text()
    assert all(name in page for name in to_sign)
    assert summary["report_sha256"] in page
    assert page.count("data:image/jpeg") == sum(len(row["pictures"]) for row in said)
    (row,) = [row for row in rig.rows("change") if row["what"] == COMPARED]
    assert json.loads(row["detail"]["to_sign"]) == to_sign
    assert row["detail"]["page_sha256"] == hashlib.sha256(page.encode()).hexdigest()
    assert row["who"] == "eve"

    sha = summary["report_sha256"][:12]
    first = ("--comparison", sha, "--who", "ann", "--reason", "a scratch below the limit")
    rest = str(len(to_sign) - 1)
    (done,) = command(rig, "model", "sign-flip", "--sample", rest, *first)
    assert set(done["result_ids"]) == set(to_sign[1:])
    assert done["missing"] == [f"not signed yet: {to_sign[0]}"]
    (done,) = command(rig, "model", "sign-flip", to_sign[0], *first)
    assert done["is_complete"]
    (listed,) = command(rig, "model", "flips")
    assert listed["is_complete"]
    assert listed["unsigned"] == []
    rows = command(rig, "model", "flips", "--comparison", sha)
    assert {one["who"] for one in rows} == {"ann"}
    command(rig, "model", "sign-flip", "test-1-09999999", *first, status=1)
    command(rig, "model", "flips", "--comparison", "0" * 64, status=1)
    with Reader(rig.journal) as reader:
        assert not verify(reader).findings
    assert read_register(rig.journal).known[summary["report_sha256"]].is_complete


def sides(rig: Rig) -> tuple[Any, tuple[Contestant, Contestant]]:
    loaded = load_configuration(str(rig.folder / "station.toml"))
    return loaded, (
        contestant(loaded, SHIPPED, None),
        contestant(loaded, str(rig.folder / "lenient"), None),
    )


def test_a_run_that_was_stopped_goes_on_where_it_was(lived: Rig, tmp_path: Path) -> None:
    loaded, pair = sides(lived)
    plan = open_plan(tmp_path, loaded, pair, SINCE, None)
    whole = replay(loaded, tmp_path, plan, pair)
    lines = (tmp_path / PLATES).read_text().splitlines(keepends=True)
    # Killed within a line.
    (tmp_path / PLATES).write_text("".join(lines[:5]) + lines[5][:40])
    again = open_plan(tmp_path, loaded, pair, SINCE, None)
    assert again == plan, "its time ends where it did, and the seed is the same"
    assert replay(loaded, tmp_path, again, pair) == whole
    assert (tmp_path / PLATES).read_text() == "".join(lines)
    with pytest.raises(Exception, match="another comparison"):
        open_plan(tmp_path, loaded, (pair[1], pair[0]), SINCE, None)


def test_reviews_are_those_that_stand_in_the_end(lived: Rig, tmp_path: Path) -> None:
    """One that was written while the run was stopped, too."""
    loaded, pair = sides(lived)
    plan = open_plan(tmp_path, loaded, pair, SINCE, None)
    flips = [plate for plate in replay(loaded, tmp_path, plan, pair) if plate.is_to_sign]
    one = next(plate for plate in flips if plate.reviewed is None)
    review_as_defective(lived, one.result_id)
    assert open_plan(tmp_path, loaded, pair, SINCE, None) == plan, "no report: not finished"
    again = {plate.result_id: plate for plate in replay(loaded, tmp_path, plan, pair)}
    assert again[one.result_id].reviewed is Verdict.FAIL


def test_a_finished_comparison_is_made_again_and_the_old_one_kept(
    lived: Rig, tmp_path: Path
) -> None:
    loaded, pair = sides(lived)
    plan = open_plan(tmp_path, loaded, pair, SINCE, None)
    report = build_report(plan, replay(loaded, tmp_path, plan, pair), tmp_path)
    page = write_report(report, tmp_path)
    assert open_plan(tmp_path, loaded, pair, SINCE, None) == plan, "its row was not written"
    with journal_at_hand(loaded.source, loaded.value) as journal:
        assert journal.submit([compared_change(report, page, "eve")])["ok"]
    assert open_plan(tmp_path, loaded, pair, SINCE, plan.until) == plan
    again = open_plan(tmp_path, loaded, pair, SINCE, None)
    assert again.until > plan.until
    assert again.last_seq > plan.last_seq
    assert again.sample_seed != plan.sample_seed
    kept = tmp_path / report.sha256[:12]
    assert hashlib.sha256((kept / "report.json").read_bytes()).hexdigest() == report.sha256
    assert (kept / "report.html").read_bytes() == page
    assert {path.name for path in (kept / PICTURES).iterdir()} == set(report.pictures_sha256)
    assert not (tmp_path / PLATES).exists()
    assert build_report(again, replay(loaded, tmp_path, again, pair), tmp_path).flips


def test_damaged_pictures_are_counted_and_never_judged(lived: Rig, tmp_path: Path) -> None:
    loaded, pair = sides(lived)
    row = next(row for row in lived.rows("result") if row["verdict"] == "FAIL")
    image = next(image for image in row["images"] if image["role"] == "evidence")
    path = ImageFolder(lived.journal / "images").directory / image["path"]
    data = path.read_bytes()
    path.write_bytes(data[:-20] + b"\0" * 20)
    try:
        plan = open_plan(tmp_path, loaded, pair, SINCE, None)
        plates = replay(loaded, tmp_path, plan, pair)
    finally:
        path.write_bytes(data)
    (one,) = [plate for plate in plates if plate.result_id == row["result_id"]]
    assert one.unplayed == "picture is not the recorded one"
    assert not list((tmp_path / PICTURES).glob(f"{one.result_id}*"))


@pytest.mark.parametrize(
    ("agreement", "changed"),
    [
        ("differs", {}),
        ("same verdict", {"runtime": "another"}),
        ("other verdict", {"runtime": "another", "verdict": "PASS"}),
        ("not comparable", {"model_sha256": "0" * 64}),
    ],
)
def test_a_score_that_is_not_the_recorded_one_is_found(
    lived: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, agreement: str, changed: Json
) -> None:
    """One bit of one score of the record; or another runtime, or another model, judged."""
    loaded, pair = sides(lived)
    number = next(row["sequence"] for row in lived.rows("result") if row["verdict"] == "FAIL")
    original = Reader.results

    def with_a_bit(self: Reader, *given: Any, **more: Any) -> Any:
        for body in original(self, *given, **more):
            if body["sequence"] == number:
                scores = np.frombuffer(base64.b64decode(body["tile_scores"]), "<u4").copy()
                scores[0] ^= 1
                yield {**body, **changed, "tile_scores": base64.b64encode(scores).decode()}

    monkeypatch.setattr(Reader, "results", with_a_bit)
    plan = open_plan(tmp_path, loaded, pair, SINCE, None)
    (one,) = replay(loaded, tmp_path, plan, pair)
    assert one.agreement == agreement


def test_a_model_is_named_by_a_version_of_a_recipe(lived: Rig) -> None:
    sha256 = read_card(shipped_model(SHIPPED)).sha256
    bound = f'sha256 = "{sha256}"\nthreshold = 0.25\n[keep]'
    text = (lived.folder / "recipe.toml").read_text().replace("version = 1", "version = 2")
    path = lived.folder / "second.toml"
    path.write_text(text.replace("[keep]", bound))
    command(lived, "recipe", "propose", str(path), "--reason", "a try", "--who", "ann")
    loaded = load_configuration(str(lived.folder / "station.toml"))
    assert contestant(loaded, "small@2", None).model.threshold == 0.25
    assert contestant(loaded, "small@2", 0.5).model.threshold == 0.5
    with pytest.raises(Exception, match="no such model"):
        contestant(loaded, "none", None)


def test_each_model_has_its_own_doubt(lived: Rig, tmp_path: Path) -> None:
    """The same bytes, and a card that is unsure of nearly everything: what the plates' recipe says
    of the one is not said of the other, and what only the other passes is signed."""
    folder = shutil.copytree(shipped_model(SHIPPED), tmp_path / SHIPPED)
    card = read_card(folder)
    limits = card.threshold.model_copy(update={"unsure_above": 1e-9})
    write_card(folder, card.model_copy(update={"threshold": limits}))
    loaded = load_configuration(str(lived.folder / "station.toml"))
    sure, unsure = contestant(loaded, SHIPPED, None), contestant(loaded, str(folder), None)
    assert (sure.model.unsure_above, unsure.model.unsure_above) == (None, 1e-9)
    recipe = unsure.of(load_recipe(str(lived.folder / "recipe.toml")))
    assert sure.of(recipe).value.model.unsure_above is None
    pair = (unsure, sure)
    plan = open_plan(tmp_path, loaded, pair, SINCE, None)
    plates = replay(loaded, tmp_path, plan, pair)
    passed = {one.result_id for one in plates if one.b and one.b.verdict is Verdict.PASS}
    assert passed
    assert {one.result_id for one in plates if one.flip == "UNDECIDED -> PASS"} == passed
    assert {one.a.reason for one in plates if one.a and one.is_to_sign} == {Reason.UNSURE}
    row = compared_change(build_report(plan, plates, tmp_path), b"", "eve").detail
    assert set(json.loads(row["to_sign"])) == passed
    assert (row["a_unsure_above"], "b_unsure_above" in row) == ("1e-09", False)
    assert not is_of_the_strip(Reason.UNSURE), "a plate of the record that another may judge"


def test_the_page_may_sign_and_not_compare() -> None:
    row = ChangeBody.model_validate(compared(1))
    assert page_objection(row)
    assert not page_objection(row.model_copy(update={"what": SIGNED}))


def test_more_flips_than_anybody_looks_at_are_no_row(lived: Rig, tmp_path: Path) -> None:
    loaded, pair = sides(lived)
    plan = open_plan(tmp_path, loaded, pair, SINCE, None)
    report = build_report(plan, [plate(n, "FP") for n in range(1001)], tmp_path)
    with pytest.raises(ValueError, match="1001 plates"):
        compared_change(report, b"", "eve")
