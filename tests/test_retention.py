"""Which pictures go: never one that a rule keeps, never one on hold, never a record."""

from __future__ import annotations

import itertools
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_qms import change, opened, result

from station.config import KeepRule
from station.log_reader import Reader
from station.log_verify import verify
from station.qms import DATABASE, Store
from station.record import (
    Body,
    ClockBody,
    DiskBody,
    HoldBody,
    PictureClass,
    ReleaseBody,
    ResultBody,
    RetentionBody,
    ReviewBody,
    TombstoneBody,
    Verdict,
    result_id,
    rfc3339,
)
from station.retention import (
    PASSED,
    Catalogue,
    Order,
    Picture,
    Room,
    age_days,
    all_doomed,
    choose,
    choose_for_room,
    is_held,
    make_plan,
    newest_label,
)

NOW = datetime(2026, 6, 1, tzinfo=UTC)


def at(days_ago: float) -> str:
    return rfc3339(NOW - timedelta(days=days_ago))


def image(name: int, role: str = "evidence", size: int = 10**6) -> dict[str, object]:
    digest = f"{name:064x}"
    suffix = "png" if role == "evidence" else "jpg"
    return {
        "role": role,
        "path": f"{digest[:2]}/{digest}.{suffix}",
        "sha256": digest,
        "bytes": size,
        "width_px": 1,
        "height_px": 1,
    }


PICTURES = st.lists(
    st.builds(
        lambda number, kind, days, size, part, lot: Picture(
            result_id("s", number), "evidence", f"p{number}", "0" * 64, size, kind, at(days),
            part, lot,
        ),
        st.integers(1, 10**6),
        st.sampled_from(PictureClass),
        st.floats(0, 400),
        st.integers(1, 5 * 10**6),
        st.sampled_from([None, "a", "b"]),
        st.sampled_from([None, "x", "y"]),
    ),
    max_size=30,
    unique_by=lambda picture: picture.result_id,
).map(lambda pictures: sorted(pictures, key=lambda one: one.written_at))  # fmt: skip
HOLDS = st.lists(
    st.builds(
        lambda part, lot, since, length: HoldBody(
            station_id="s", hold_id="h", part_id=part, lot=lot, who="w", why="y",
            since_at=None if since is None else at(since),
            until_at=None if since is None else at(since - length),
        ),
        st.sampled_from(["a", "c"]),
        st.sampled_from([None, "x"]),
        st.none() | st.floats(0, 400),
        st.floats(0.1, 100),
    ),
    max_size=3,
)  # fmt: skip
RULES = st.builds(
    KeepRule,
    days=st.none() | st.floats(1, 300),
    mb=st.floats(0.5, 50),
)


@given(pictures=PICTURES, rule=RULES, holds=HOLDS, least=st.just(0.0) | st.floats(0, 300))
def test_a_rule_takes_the_oldest_it_may_and_no_more(
    pictures: list[Picture], rule: KeepRule, holds: list[HoldBody], least: float
) -> None:
    used_mb = sum(one.bytes for one in pictures if not is_held(one, holds)) / 1e6
    gone = [one.picture for one in choose(pictures, rule, used_mb, holds, NOW, least)]
    left = [one for one in pictures if one not in gone]
    assert not any(is_held(one, holds) for one in gone)
    free = [one for one in left if not is_held(one, holds)]
    if rule.days is not None:
        assert all(age_days(one, NOW) < rule.days for one in free), "nothing is kept too long"
    left_mb = sum(one.bytes for one in free) / 1e6
    assert rule.mb is not None
    is_young = all(age_days(one, NOW) < least for one in free)
    assert is_young or left_mb <= rule.mb + 1e-9
    assert all(age_days(one, NOW) >= min(least, rule.days or least) for one in gone)
    if gone:
        assert all(one.written_at >= gone[-1].written_at for one in free), "the oldest go first"
        last = gone[-1]
        is_needed = left_mb + last.bytes / 1e6 > rule.mb - 1e-9
        assert is_needed or (rule.days is not None and age_days(last, NOW) >= rule.days)


@given(pictures=PICTURES, holds=HOLDS, wanted_mb=st.floats(0, 100), least=st.floats(0, 300))
def test_room_is_made_of_passed_plates_alone(
    pictures: list[Picture], holds: list[HoldBody], wanted_mb: float, least: float
) -> None:
    room = Room(free_mb=10.0, wanted_mb=wanted_mb)
    gone = [one.picture for one in choose_for_room(pictures, room, holds, NOW, least)]
    assert all(one.picture_class in PASSED and not is_held(one, holds) for one in gone)
    assert all(age_days(one, NOW) >= least for one in gone)
    freed = [0.0, *itertools.accumulate(one.bytes / 1e6 for one in gone)]
    assert len(freed) == 1 or 10.0 + freed[-2] < wanted_mb, "no more than is wanted"
    could = [
        one
        for one in pictures
        if one.picture_class in PASSED and not is_held(one, holds) and age_days(one, NOW) >= least
    ]
    assert 10.0 + freed[-1] >= wanted_mb or gone == could


# --- over a log ---------------------------------------------------------------------------------

RULE = {PictureClass.PASS_PREVIEW: KeepRule(days=90), PictureClass.FAIL: KeepRule(days=365)}


def write_log(folder: Path) -> None:
    """Five plates: an old pass, a young one, an old pass that a person failed, an old fail whose
    picture is a passed plate's, too, and a very old fail."""
    rules = {kind: rule.model_dump(exclude_none=True) for kind, rule in RULE.items()}
    with Store(folder) as store:
        store.append(
            [
                RetentionBody(station_id="s", written_at=at(900), rules=rules, min_pass_days=1),
                result(5, Verdict.FAIL, images=[image(5)], written_at=at(800), lot="L7"),
                result(1, images=[image(1, "preview")], written_at=at(100)),
                result(3, images=[image(3, "preview")], written_at=at(100)),
                result(4, Verdict.FAIL, images=[image(1, "preview")], written_at=at(100)),
                result(2, images=[image(2, "preview")], written_at=at(10)),
                ReviewBody(
                    station_id="s", result_id=result_id("s", 3), verdict=Verdict.FAIL,
                    reviewer="kim", reason="scratch",
                ),
            ]
        )  # fmt: skip


def order(folder: Path, **changes: object) -> Order:
    return Order.model_validate(
        {
            "log": folder / DATABASE,
            "images": folder / "images",
            "rules": RULE,
            "min_pass_days": 1.0,
            "now": NOW,
            "folders": range(256),
            **changes,
        }
    )


def put(folder: Path, name: int, role: str = "evidence") -> Path:
    path = folder / "images" / str(image(name, role)["path"])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    return path


def doomed(folder: Path, catalogue: Catalogue) -> list[str]:
    return [one.picture.result_id for one in all_doomed(order(folder), catalogue)]


def test_the_catalogue_knows_classes_reviews_holds_and_what_is_gone(tmp_path: Path) -> None:
    write_log(tmp_path)
    keep = tmp_path / "catalogue.db"
    with Catalogue(tmp_path / DATABASE, keep) as catalogue:
        assert doomed(tmp_path, catalogue) == [result_id("s", 1), result_id("s", 5)]
    hold = HoldBody(station_id="s", hold_id="h1", lot="L7", who="w", why="y")
    with Store(tmp_path) as store:
        store.append([hold, tombstone(1, picture_class="pass_preview", role="preview")])
    put(tmp_path, 1, "preview")
    with Catalogue(tmp_path / DATABASE, keep) as catalogue:
        assert doomed(tmp_path, catalogue) == []
        plan = make_plan(order(tmp_path), catalogue)
        assert plan.leftovers == [], "the failed plate still names that file"
        assert catalogue.holds() == [hold]
    with Store(tmp_path) as store:
        store.append([ReleaseBody(station_id="s", hold_id="h1", who="w", why="y")])
        store.append([tombstone(4, 1, picture_class="fail", role="preview")])
    with Catalogue(tmp_path / DATABASE, keep) as catalogue:
        assert doomed(tmp_path, catalogue) == [result_id("s", 5)]
        plan = make_plan(order(tmp_path), catalogue)
        assert plan.leftovers == [image(1, "preview")["path"]]
        assert plan.orphans == []
        assert make_plan(order(tmp_path, is_removing=False), catalogue).leftovers == []


def test_a_hold_of_a_name_used_before_is_in_force_until_its_own_release(tmp_path: Path) -> None:
    """As an earlier program let clients write it."""
    said = {"station_id": "s", "hold_id": "h1", "who": "w"}
    first, second = (HoldBody(**said, why=why, lot="L7") for why in ("one", "two"))
    with Store(tmp_path) as store:
        store.append([first, ReleaseBody(**said, why="done"), second])
        assert [body["why"] for body in store.holds()] == ["two"]
        assert store.hold_ids() == {"h1"}
    with Reader(tmp_path) as reader:
        assert [body["why"] for body in reader.holds()] == ["two"]
    with Catalogue(tmp_path / DATABASE) as catalogue:
        assert [hold.why for hold in catalogue.holds()] == ["two"]


def test_the_catalogue_is_made_anew_for_another_log_or_when_it_is_damaged(tmp_path: Path) -> None:
    write_log(tmp_path)
    keep = tmp_path / "catalogue.db"
    with Catalogue(tmp_path / DATABASE, keep):
        pass
    (tmp_path / "other").mkdir()
    with Store(tmp_path / "other") as store:
        store.append([result(9, images=[image(9, "preview")], written_at=at(200))] * 1)
        store.append([opened(n) for n in range(20, 40)])
    with Catalogue(tmp_path / "other" / DATABASE, keep) as catalogue:
        assert doomed(tmp_path, catalogue) == [result_id("s", 9)]
    keep.write_bytes(b"SQLite format 3\0" + bytes(5000))
    with Catalogue(tmp_path / DATABASE, keep) as catalogue:
        assert doomed(tmp_path, catalogue) == [result_id("s", 1), result_id("s", 5)]


def test_files_that_no_row_names_are_orphans(tmp_path: Path) -> None:
    write_log(tmp_path)
    put(tmp_path, 2, "preview")
    put(tmp_path, 99)
    with Catalogue(tmp_path / DATABASE) as catalogue:
        assert make_plan(order(tmp_path), catalogue).orphans == [image(99)["path"]]
        other = order(tmp_path, folders=[0x11])
        assert make_plan(other, catalogue).orphans == []


def tombstone(number: int, name: int | None = None, **changes: object) -> TombstoneBody:
    role = str(changes.get("role", "evidence"))
    picture = image(number if name is None else name, role)
    return TombstoneBody.model_validate(
        {
            "station_id": "s",
            "written_at": at(0),
            "result_id": result_id("s", number),
            **{key: picture[key] for key in ("role", "path", "sha256", "bytes")},
            "picture_class": "fail",
            "rule": "days",
            "measured": 800.0,
            "limit": 365.0,
            "why": "",
            **changes,
        }
    )


def findings(folder: Path) -> list[str]:
    with Reader(folder) as reader:
        return verify(reader).findings


def test_verify_takes_a_tombstone_for_a_missing_picture_and_nothing_else(tmp_path: Path) -> None:
    write_log(tmp_path)
    for name in (1, 2, 3):
        put(tmp_path, name, "preview")
    said = " ".join(findings(tmp_path))
    assert f"{image(5)['path']}: No such file" in said
    with Store(tmp_path) as store:
        store.append([tombstone(5)])
    assert image(5)["path"] not in " ".join(findings(tmp_path))
    put(tmp_path, 5)
    with Reader(tmp_path) as reader:
        found = verify(reader, with_images=False)
    assert (found.findings, found.tombstones) == ([], 1)
    assert len(found.notes) == 1
    assert "is still there" in found.notes[0]


HELD = HoldBody(station_id="s", hold_id="h1", result_id=result_id("s", 5), who="w", why="y")


@pytest.mark.parametrize(
    ("before", "stone", "said"),
    [
        ([], tombstone(5, measured=1.0), "kept for 365 days, this was 1"),
        ([], tombstone(5, written_at=at(500)), "kept for 365 days, this was 300"),
        ([], tombstone(5, picture_class="undecided"), "the picture is fail, not undecided"),
        ([], tombstone(5, name=6), "has no such picture"),
        ([], tombstone(8), "has no such picture"),
        ([], tombstone(5, rule="size"), "no rule in mb holds for fail"),
        ([], tombstone(5, rule="watermark"), "fail is never removed for room"),
        ([HELD], tombstone(5), "s-00000005 is on hold"),
        ([tombstone(5)], tombstone(5, why="again"), "has no such picture"),
        (
            [],
            tombstone(1, picture_class="pass_preview", role="preview", rule="watermark"),
            "the disk was at level 0",
        ),
    ],
)
def test_verify_finds_a_tombstone_against_the_rules(
    tmp_path: Path, before: list[HoldBody | TombstoneBody], stone: TombstoneBody, said: str
) -> None:
    write_log(tmp_path)
    with Store(tmp_path) as store:
        store.append([*before, stone])
    with Reader(tmp_path) as reader:
        found = verify(reader, with_images=False).findings
    assert len(found) == 1, found
    assert said in found[0]


def test_what_is_on_hold_takes_no_room_from_fresh_evidence(tmp_path: Path) -> None:
    """A lot of a megabyte a plate is on hold, older than all others; two megabytes are kept."""
    rules = {PictureClass.FAIL: KeepRule(mb=2)}
    said = {kind: rule.model_dump(exclude_none=True) for kind, rule in rules.items()}
    rows: list[Body] = [
        RetentionBody(station_id="s", written_at=at(900), rules=said, min_pass_days=1),
        HoldBody(station_id="s", written_at=at(900), hold_id="h1", lot="L7", who="w", why="y"),
    ]
    ages = (90, 80, 70, 5, 4, 3, 0.5, 0.4, 0.3)
    for number, days in enumerate(ages, start=1):
        lot, images = "L7" if days >= 70 else None, [image(number)]
        rows.append(result(number, Verdict.FAIL, images=images, written_at=at(days), lot=lot))
    with Store(tmp_path) as store:
        store.append(rows)
    with Catalogue(tmp_path / DATABASE) as catalogue:
        steps = make_plan(order(tmp_path, rules=rules), catalogue).doomed
    assert [(one.result_id, one.measured) for one in steps] == [
        (result_id("s", 4), 6.0), (result_id("s", 5), 5.0), (result_id("s", 6), 4.0)
    ], "never of the last day"  # fmt: skip
    with Store(tmp_path) as store:
        store.append([tombstone(n, rule="size", measured=4.0, limit=2.0) for n in (4, 7)])
    with Reader(tmp_path) as reader:
        (found,) = verify(reader, with_images=False).findings
    assert "it was 0.5 days old, 1 are the least" in found


def test_verify_takes_what_a_full_disk_took(tmp_path: Path) -> None:
    write_log(tmp_path)
    full = DiskBody(station_id="s", level=2, before=0, free_mb=5, limits_mb=(30, 20, 10, 5))
    stone = tombstone(
        1, picture_class="pass_preview", role="preview", rule="watermark", limit=20, measured=5
    )
    with Store(tmp_path) as store:
        store.append([full, HELD, ReleaseBody(station_id="s", hold_id="h1", who="w", why="y")])
        store.append([stone, tombstone(5)])
    with Reader(tmp_path) as reader:
        assert verify(reader, with_images=False).findings == []


def clock_row(days_ago: float, **changes: object) -> ClockBody:
    given = {
        "station_id": "s", "written_at": at(days_ago), "cause": "accepted", "step_s": 0.0,
        "ahead_s": 0.0, "boot_s": 1.0, "is_synchronized": True, **changes,
    }  # fmt: skip
    return ClockBody.model_validate(given)


def test_a_clock_that_had_fallen_back_makes_no_evidence_old(tmp_path: Path) -> None:
    """The battery of the clock was empty: what was judged yesterday is labelled 2000."""
    write_log(tmp_path)
    with Store(tmp_path) as store:
        store.append([clock_row(1, cause="start"), clock_row(9000, cause="start")])
        store.append([result(6, Verdict.FAIL, images=[image(6)], written_at=at(9000))])
        store.append([clock_row(0, cause="step")])
    with Catalogue(tmp_path / DATABASE) as catalogue:
        gone = make_plan(order(tmp_path), catalogue).doomed
        assert [step.result_id for step in gone] == [result_id("s", 1), result_id("s", 5)]
    with Store(tmp_path) as store:
        store.append([tombstone(6, measured=9000.0)])
    with Reader(tmp_path) as reader:
        (said,) = verify(reader, with_images=False).findings
    assert "fail is kept for 365 days" in said


def test_verify_finds_a_tombstone_of_a_clock_that_was_set_far_ahead(tmp_path: Path) -> None:
    write_log(tmp_path)
    rules = {kind: rule.model_dump(exclude_none=True) for kind, rule in RULE.items()}
    with Store(tmp_path) as store:
        store.append(
            [
                RetentionBody(
                    station_id="s", rules=rules, min_pass_days=1, clock_jump_limit_h=72.0
                ),
                clock_row(0, cause="step", ahead_s=80 * 3600.0),
                tombstone(5),
                clock_row(0),
                tombstone(1, picture_class="pass_preview", role="preview", measured=100.0),
            ]
        )
    with Reader(tmp_path) as reader:
        (found,) = verify(reader, with_images=False).findings
    assert "the clock was set ahead by 80.0 h" in found


@given(
    rows=st.lists(st.tuples(st.integers(0, 400), st.booleans()), min_size=2, max_size=12),
    seen=st.integers(1, 11),
)
@settings(max_examples=20, deadline=None)
def test_ages_count_from_the_newest_label_until_a_person_says_otherwise(
    rows: list[tuple[int, bool]], seen: int
) -> None:
    bodies = [
        clock_row(days, boot_s=number)
        if is_accepted
        else result(number, images=[image(number)], written_at=at(days))
        for number, (days, is_accepted) in enumerate(rows, start=1)
    ]
    newest, wanted = "", {}
    for body in bodies:
        newest = newest_label(newest, body.as_json())
        if isinstance(body, ResultBody):
            wanted[body.result_id] = newest
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for some in (bodies[:seen], bodies[seen:]):
            with Store(folder) as store:
                store.append(some)
            with Catalogue(folder / DATABASE, folder / "catalogue.db") as catalogue:
                found = {one.result_id: one.aged_from for one in catalogue.oldest(*PictureClass)}
    assert found == wanted
    assert list(found.values()) == sorted(found.values())


def test_a_program_that_does_not_know_a_kind_of_row_reads_on(tmp_path: Path) -> None:
    """What another version wrote is hashed, chained and passed over; the schema is the same."""

    class FutureBody(type(change(""))):  # type: ignore[misc]
        kind: str = "of the future"

    with Store(tmp_path) as store:
        store.append([change("start"), opened(1)])
        store.append([FutureBody(station_id="s", what="?", who="?"), result(2)])
    with Store(tmp_path) as store:
        assert [row["sequence"] for row in store.open_plates()] == [1]
        assert store.last_sequence() == 2
        assert store._scalar("PRAGMA user_version") == 1
    assert findings(tmp_path) == []


def test_a_result_without_a_lot_says_nothing_of_it(tmp_path: Path) -> None:
    """An older program refuses keys that it does not know when a FAIL is held over its start."""
    assert "lot" not in result(1).as_json()
    assert result(1, lot="L7").as_json()["lot"] == "L7"
