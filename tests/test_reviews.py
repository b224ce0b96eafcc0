"""Reviews: a later judgement is a new row; the last one holds; nobody passes a failed plate alone
where four eyes are asked."""

from __future__ import annotations

import contextlib
import itertools
import json
import signal
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ConfigDict
from station_rig import Rig, wait_until
from test_journal import connect, start
from test_qms import opened, result
from typer.testing import CliRunner

from station.cli.log import app
from station.config import ReviewRecipe
from station.journal_client import JournalClient
from station.log_reader import Filter, Reader
from station.log_verify import verify
from station.qms import DATABASE, ContradictionError, Store
from station.questions import Selection, open_samples_select
from station.record import Body, NamedDefectBody, PictureClass, ReviewBody, Verdict, result_id
from station.retention import class_of
from station.reviews import (
    Judgement,
    ReviewRefused,
    accepted,
    effective_verdict,
    last_judged,
)
from station.unsettled import State

Json = dict[str, Any]
PLATE = result_id("s", 1)
RECIPE = ReviewRecipe(four_eyes=(Verdict.FAIL,))
FOUR_EYES = '[review]\nfour_eyes = ["FAIL"]\n'
DEFECT = {"x_px": 1, "y_px": 2, "w_px": 3, "h_px": 4, "x_mm": 1.0, "y_mm": 2.0, "score": 0.75}


def review(**changes: object) -> ReviewBody:
    return ReviewBody.model_validate(
        {
            "station_id": "s",
            "result_id": PLATE,
            "verdict": Verdict.PASS,
            "reviewer": "ada",
            "reason": "dirt",
            "supersedes": 1,
            "nonce": "0123456789abcdef",
            **changes,
        }
    )


def rows(own: Verdict, *said: tuple[str, Verdict], asks: tuple[Verdict, ...] = ()) -> list[Json]:
    """A result and its reviews, as they lie in the log."""
    lying: list[Json] = [{"seq": 1, **result(1, own).as_json()}]
    for seq, (who, verdict) in enumerate(said, start=2):
        one = review(reviewer=who, verdict=verdict, supersedes=seq - 1, four_eyes=asks)
        lying.append({"seq": seq, **one.as_json()})
    return lying


def judged(own: Verdict, *said: tuple[str, Verdict]) -> Judgement:
    return effective_verdict(rows(own, *said, asks=(Verdict.FAIL,)))


# --- what holds ---------------------------------------------------------------------------------

PASS, FAIL, UNDECIDED = Verdict.PASS, Verdict.FAIL, Verdict.UNDECIDED


@pytest.mark.parametrize(
    ("own", "said", "verdict", "reviewers", "is_pending"),
    [
        (FAIL, [], FAIL, (), False),
        (FAIL, [("ada", PASS)], FAIL, (), True),
        (FAIL, [("ada", PASS), ("ada", PASS)], FAIL, (), True),
        (FAIL, [("ada", PASS), (" ADA", PASS)], FAIL, (), True),
        (FAIL, [("ada", PASS), ("bob", PASS)], PASS, ("ada", "bob"), False),
        (FAIL, [("ada", PASS), ("bob", FAIL), ("cy", PASS)], FAIL, ("bob",), True),
        (FAIL, [("ada", UNDECIDED), ("ada", PASS)], UNDECIDED, ("ada",), True),
        (PASS, [("ada", FAIL), ("ada", PASS)], FAIL, ("ada",), True),
        (PASS, [("ada", PASS)], PASS, ("ada",), False),
        (UNDECIDED, [("ada", PASS)], PASS, ("ada",), False),
        (FAIL, [("ada", PASS), ("bob", PASS), ("cy", FAIL)], FAIL, ("cy",), False),
    ],
)
def test_a_plate_that_ever_failed_passes_by_two_people(
    own: Verdict,
    said: list[tuple[str, Verdict]],
    verdict: Verdict,
    reviewers: tuple[str, ...],
    is_pending: bool,
) -> None:
    found = judged(own, *said)
    assert (found.verdict, found.reviewers) == (verdict, reviewers)
    assert (found.pending is not None) == is_pending


def test_without_the_recipes_rule_one_person_is_enough() -> None:
    assert effective_verdict(rows(FAIL, ("ada", PASS))).verdict is PASS


SAID = st.lists(st.tuples(st.sampled_from(["ada", "Ada ", "bob"]), st.sampled_from(Verdict)))


@given(own=st.sampled_from(Verdict), said=SAID)
def test_any_sequence_of_reviews_comes_to_one_verdict(
    own: Verdict, said: list[tuple[str, Verdict]]
) -> None:
    found = judged(own, *said)
    last = said[-1] if said else None
    if last is None:
        assert (found.verdict, found.review, found.pending) == (own, None, None)
    elif last[1] is not PASS:
        assert (found.verdict, found.reviewers, found.pending) == (last[1], (last[0],), None)
    else:
        assert (found.pending is None) == (found.verdict is PASS and found.review is not None)
    if found.verdict is PASS and FAIL in {own, *(verdict for _, verdict in said)}:
        agreeing = 0
        while agreeing < len(said) and said[-1 - agreeing][1] is PASS:
            agreeing += 1
        assert len({who.strip().casefold() for who, _ in said[len(said) - agreeing :]}) == 2


def test_a_rule_that_the_recipe_drops_still_holds_for_who_it_met() -> None:
    lying = rows(FAIL, ("ada", PASS), ("ada", PASS))
    lying[1]["four_eyes"] = [FAIL]
    assert effective_verdict(lying).verdict is FAIL
    lying.append({**lying[2], "seq": 4, "reviewer": "bob", "supersedes": 3})
    assert effective_verdict(lying).reviewers == ("ada", "bob")


ASKED = st.lists(
    st.tuples(
        st.sampled_from(["ada", "bob"]),
        st.sampled_from(Verdict),
        st.sets(st.sampled_from([FAIL, UNDECIDED])),
    ),
    min_size=1,
)


@given(own=st.sampled_from(Verdict), said=ASKED)
def test_no_change_of_the_recipe_lets_one_person_pass_what_asked_for_two(
    own: Verdict, said: list[tuple[str, Verdict, set[Verdict]]]
) -> None:
    lying = rows(own, *((who, verdict) for who, verdict, _ in said))
    for row, (_, _, asks) in zip(lying[1:], said, strict=True):
        row["four_eyes"] = sorted(asks)
    found = effective_verdict(lying)
    if found.review is None or found.verdict is not PASS:
        return
    until = said[: found.review["seq"] - 1]
    asked = {one for _, _, asks in until for one in asks}
    if asked & {own, *(verdict for _, verdict, _ in until)}:
        agreeing = list(itertools.takewhile(lambda one: one[1] is PASS, reversed(until)))
        assert {who for who, _, _ in agreeing} == {"ada", "bob"} == set(found.reviewers)


# --- what is written ----------------------------------------------------------------------------

STEPS = st.lists(
    st.tuples(
        st.sampled_from(["ada", "bob"]),
        st.sampled_from(Verdict),
        st.integers(0, 2),  # how many rows ago the reviewer last looked
        st.integers(1, 3),  # how often it is sent
    ),
    max_size=8,
)


@settings(max_examples=25)
@given(own=st.sampled_from(Verdict), steps=STEPS)
def test_resends_are_one_row_and_outdated_reviews_none(
    own: Verdict,
    steps: list[tuple[str, Verdict, int, int]],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder, written = tmp_path_factory.mktemp("log"), 0
    with Store(folder) as store:
        store.append([result(1, own, reason=None)])
        known = [1]
        for number, (who, verdict, ago, times) in enumerate(steps):
            seen = known[max(0, len(known) - 1 - ago)]
            one = accepted(
                review(reviewer=who, verdict=verdict, supersedes=seen, nonce=f"nonce-{number:04}"),
                RECIPE,
                "op",
            )
            if seen != known[-1]:
                with pytest.raises(ContradictionError, match="was reviewed meanwhile"):
                    store.append([one])
                continue
            numbers = {store.append([one])[0] for _ in range(times)}
            assert len(numbers) == 1
            known += numbers
            written += 1
            lying = [{"seq": 0, **row} for row in store.of_result(PLATE)]
            assert lying[-1].get("is_pending", False) == (
                effective_verdict(lying).pending is not None
            )
    with Reader(folder) as reader:
        assert verify(reader).findings == []
        assert len(list(reader.bodies("review"))) == written
        assert last_judged(reader.of_result(PLATE)) == known[-1]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"result_id": "s-00000009"}, "s-00000009: no such result"),
        ({"result_id": result_id("s", 2)}, "has no result yet"),
        ({"result_id": result_id("s", 3), "supersedes": 3}, "there is no plate to judge"),
        ({"supersedes": 7}, "was reviewed meanwhile: row 1 stands, this review knows row 7"),
        ({"defects": [{"number": 1, "kind": "dent"}]}, "has 1 defects, numbered from 0; 1 is none"),
        ({"defects": [{"number": 0, "kind": "dent"}] * 2}, "a defect is named twice"),
    ],
)
def test_what_the_log_does_not_allow_is_not_written(
    changes: Json, said: str, tmp_path: Path
) -> None:
    with Store(tmp_path) as store:
        store.append([result(1, FAIL, defects=[DEFECT]), opened(2), result(3, UNDECIDED)])
        head = store.head()
        with pytest.raises(ContradictionError, match=said):
            store.append([review(**changes)])
        assert store.head() == head


def test_the_tables_know_a_review_once_it_holds(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        store.append([result(1, FAIL, defects=[DEFECT])])
        named = {"defects": [{"number": 0, "kind": "dent"}], "four_eyes": [FAIL]}
        for number, (who, expected) in enumerate((("ada", None), ("bob", "PASS")), start=1):
            said = review(reviewer=who, supersedes=number, nonce=f"nonce-{number:04}", **named)
            store.append([said])
            with sqlite3.connect(f"file:{tmp_path / DATABASE}?mode=ro", uri=True) as log:
                found = log.execute("SELECT reviewed_verdict FROM plate").fetchall()
                kinds = log.execute("SELECT kind FROM defect").fetchall()
            log.close()
            assert found == [(expected,)]
            assert kinds == [("dent" if expected else None,)]


def taken_back(number: int, verdict: Verdict = UNDECIDED, **changes: Any) -> ReviewBody:
    return review(
        verdict=verdict, supersedes=number, nonce=f"back-{number:04}", takes_back=True, **changes
    )


def test_a_review_that_is_taken_back_leaves_the_stations_verdict(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        drawn = result(1, PASS, is_audit_sample=True)
        store.append([opened(1), drawn, review(verdict=FAIL, supersedes=2)])
        assert store.unsettled() == {State.OPEN: 1, State.REWORK: 0}
        assert store.append([taken_back(3), taken_back(3)]) == [4, 4]
        assert store.unsettled() == {State.OPEN: 0, State.REWORK: 0}
        stands = effective_verdict([{"seq": 0, **row} for row in store.of_result(PLATE)])
        assert (stands.verdict, stands.review, stands.ever) == (PASS, None, {PASS, FAIL})
    with Reader(tmp_path) as reader:
        (sample,) = reader.ask(open_samples_select(Selection(), 9))
        assert (sample.reviewed_verdict, sample.reviewer, sample.review_seq) == (None, None, 4)
        assert verify(reader).findings == []


@pytest.mark.parametrize(
    ("own", "before", "changes", "said"),
    [
        (PASS, [], {}, "there is nothing to take back"),
        (PASS, [PASS, FAIL], {}, "somebody had judged it before"),
        (PASS, [FAIL], {"four_eyes": [FAIL]}, "passes only by two people"),
        (FAIL, [FAIL], {"disposition": "scrap"}, "says nothing else of the plate"),
    ],
)
def test_what_may_not_be_taken_back(
    own: Verdict, before: list[Verdict], changes: Json, said: str, tmp_path: Path
) -> None:
    with Store(tmp_path) as store:
        store.append([result(1, own)])
        for number, verdict in enumerate(before, start=1):
            store.append([review(verdict=verdict, supersedes=number, nonce=f"nonce-{number:04}")])
        with pytest.raises(ContradictionError, match=said):
            store.append([taken_back(len(before) + 1, **changes)])


def test_a_row_that_has_only_the_note_is_a_review_like_any_other(tmp_path: Path) -> None:
    noted = review(
        verdict=UNDECIDED,
        note="takes back row 2: nobody has judged it",
        supersedes=2,
        nonce="a" * 8,
    )
    with Store(tmp_path) as store:
        store.append([result(1, PASS, is_audit_sample=True), review(verdict=FAIL), noted])
        assert "takes_back" not in store.of_result(PLATE)[-1]
        assert store.unsettled() == {State.OPEN: 1, State.REWORK: 0}
    with Reader(tmp_path) as reader:
        assert not reader.ask(open_samples_select(Selection(), 9))
        assert verify(reader).findings == []


def test_who_checks_the_log_sees_a_pass_that_one_person_gave_by_taking_back(
    tmp_path: Path,
) -> None:
    with Store(tmp_path) as store:
        store.append([result(1, PASS), review(verdict=FAIL, four_eyes=[FAIL])])
        store.append([Forged.model_validate(taken_back(2).as_json())])
    with Reader(tmp_path) as reader:
        (finding,) = verify(reader).findings
        assert "row 3: a review that cannot be: it takes back what it may not" in finding


def test_a_nonce_is_for_one_review(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        store.append([result(1, FAIL), review()])
        with pytest.raises(ContradictionError, match="another review was sent with this nonce"):
            store.append([review(note="really", supersedes=2)])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"reason": "because"}, "reason 'because' is not in the recipe's list (dirt: dust"),
        ({"defects": [{"number": 0, "kind": "ufo"}]}, "'ufo' is no kind of defect of the recipe's"),
        ({"supersedes": None}, "says which row it supersedes"),
        ({"nonce": ""}, "has a nonce"),
        ({"reviewer": ""}, "the reviewer is no name: empty"),
        ({"reviewer": "\u0430da"}, "is not printable ASCII"),
        ({"note": "x" * 1001}, "the note has 1001 characters, 1000 at most"),
        ({"note": "a\nb"}, "the note has a character that is not seen (U+000A)"),
        ({"note": "a\u202eb"}, "(U+202E)"),
        ({"reviewer": "ada "}, "begins or ends with a blank"),
        ({"verdict": FAIL, "disposition": "use"}, "a plate that is used is one that passes"),
    ],
)
def test_what_a_review_may_not_say(changes: Json, said: str) -> None:
    with pytest.raises(ReviewRefused) as refused:
        accepted(review(**changes), RECIPE, "op")
    assert said in str(refused.value)


def test_the_journal_fills_in_what_a_reviewer_does_not_say() -> None:
    boasting = review(is_pending=True, account="root", four_eyes=[UNDECIDED])
    found = accepted(boasting, RECIPE, "op")
    assert (found.is_pending, found.account, found.four_eyes) == (False, "op", (FAIL,))


def test_what_says_nothing_is_left_out_of_the_row() -> None:
    plain = ReviewBody(station_id="s", result_id=PLATE, verdict=PASS, reviewer="ada", reason="x")
    assert set(plain.as_json()) == {
        "boot_id", "kind", "reason", "result_id", "reviewer", "station_id", "verdict", "written_at",
    }  # fmt: skip
    told = review(defects=[NamedDefectBody(number=0, kind="dent")], disposition="removed")
    assert ReviewBody.model_validate(told.as_json()) == told


class Forged(Body):
    """A row that is written past the rules for reviews."""

    model_config = ConfigDict(frozen=True, extra="allow")
    kind: str


def test_who_checks_the_log_sees_a_review_that_no_journal_writes(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        store.append([result(1, FAIL), review(four_eyes=[FAIL])])
        said = review(four_eyes=[FAIL], reviewer="eve", supersedes=1).as_json()
        store.append([Forged.model_validate(said)])
    with Reader(tmp_path) as reader:
        assert verify(reader).findings == [
            f"row 3: a review that cannot be: it supersedes row 1, which is not the last of {PLATE}"
        ]


def test_pictures_of_a_plate_that_failed_stay_evidence_of_a_fail() -> None:
    failed = rows(FAIL)[0]
    for said in ([], ["PASS"], ["PASS", "PASS"]):
        assert class_of(failed, "evidence", said) is PictureClass.FAIL


# --- the command --------------------------------------------------------------------------------


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    rig = Rig(tmp_path, recipe_lines=FOUR_EYES)
    rig.write()
    return rig


@pytest.fixture
def client(rig: Rig) -> Iterator[JournalClient]:
    process = start(rig)
    with contextlib.closing(connect(rig)) as client:
        yield client
    process.kill()
    process.wait()


def said_of(rig: Rig, *arguments: str, status: int = 0) -> Any:
    config = str(rig.folder / "station.toml")
    wanted = [*arguments, "--config", config, *(["--json"] if status == 0 else [])]
    done = CliRunner().invoke(app, wanted)
    assert done.exit_code == status, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()] if status == 0 else done.stderr


def test_a_fail_is_overruled_by_two_people_from_the_command_line(
    rig: Rig, client: JournalClient
) -> None:
    client.submit([result(1, FAIL, defects=[DEFECT])])
    first = ("review", PLATE, "--verdict", "pass", "--reason", "dirt", "--who", "ada")
    alone = said_of(rig, *first, "--note", "wiped off", "--disposition", "removed")[0]
    assert (alone["verdict"], alone["pending"], alone["reviewers"]) == ("FAIL", True, [])
    assert (alone["last"]["note"], alone["last"]["disposition"]) == ("wiped off", "removed")
    assert alone["last"]["account"]
    assert [row["result_id"] for row in said_of(rig, "reviews", "--pending")] == [PLATE]
    (listed,) = said_of(rig, "list")
    assert (listed["review"]["verdict"], listed["review"]["pending"]) == (None, True)
    text = CliRunner().invoke(app, ["list", "--journal", str(rig.journal)]).stdout
    assert "a review waits for a second person" in text
    stale = said_of(rig, *first, "--supersedes", str(listed["seq"]), status=1)
    assert "was reviewed meanwhile" in stale
    second = said_of(rig, *first[:-1], "bob", "--defect", "0=dent")[0]
    assert (second["verdict"], second["reviewers"]) == ("PASS", ["ada", "bob"])
    (listed,) = said_of(rig, "list")
    assert (listed["review"]["verdict"], listed["review"]["reviewer"]) == ("PASS", "ada, bob")
    assert said_of(rig, "reviews", "--pending") == []
    with Reader(rig.journal) as reader:
        assert verify(reader).findings == []


def test_mistakes_of_a_reviewer_are_one_line(rig: Rig, client: JournalClient) -> None:
    client.submit([result(1, FAIL)])
    for arguments, status, said in (
        (("s-9", "--verdict", "pass", "--reason", "dirt"), 1, "s-9: no such result"),
        ((PLATE, "--verdict", "pass", "--reason", "mood"), 1, "reason 'mood' is not in"),
        ((PLATE, "--verdict", "fail", "--reason", "dirt", "--defect", "x"), 2, "as 0=scratch"),
        (
            (PLATE, "--verdict", "fail", "--reason", "dirt", "--disposition", "eat"),
            2,
            "disposition",
        ),
    ):
        found = said_of(rig, "review", *arguments, "--who", "ada", status=status)
        assert said in found
        assert len(found.strip().splitlines()) == 1
    assert rig.rows("review") == []


def test_without_a_journal_process_nothing_is_reviewed(rig: Rig) -> None:
    with Store(rig.journal) as store:
        store.append([result(1, FAIL)])
    arguments = ("review", PLATE, "--verdict", "pass", "--reason", "dirt", "--who", "ada")
    assert "only the journal process writes: start it" in said_of(rig, *arguments, status=1)


def test_a_review_whose_answer_was_lost_is_one_row(rig: Rig) -> None:
    process = start(rig)
    with contextlib.closing(connect(rig)) as client:
        client.submit([result(1, FAIL)])
        sent = review(station_id="test-1", supersedes=rig_result_seq(rig))
        client.send_submit([sent])
        wait_until(lambda: len(rig.rows("review")) == 1, 20.0, "review")
    process.send_signal(signal.SIGKILL)
    process.wait()
    process = start(rig)
    with contextlib.closing(connect(rig)) as client:
        again = client.submit([sent])
    process.kill()
    process.wait()
    assert again["ok"], again
    assert len(rig.rows("review")) == 1


def rig_result_seq(rig: Rig) -> int:
    with Reader(rig.journal) as reader:
        return int(next(reader.results(Filter()))["seq"])
