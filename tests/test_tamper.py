"""Every edit by hostile hands is found, and a log that nobody touched never alarms."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tamper import (
    ALONE,
    WITH_ANCHOR,
    Scene,
    Stage,
    chain_again_after_an_edit,
    chain_again_without_checkpoints,
    clean_findings,
    make_later_checkpoints_unsigned,
    memory,
    replace_key,
    resign,
    sign_with_a_key_of_ones_own,
)

from station.checkpoint import CheckpointError, make_checkpoint
from station.log_reader import Reader
from station.qms import DATABASE
from station.signed_note import load_key

SEEDS = 6
"""Of each kind: more than 200 edits in all."""


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=memory()) as name:
        yield Path(name)


@pytest.fixture(scope="module")
def stage(folder: Path) -> Stage:
    return Stage.build(folder / "stage", seed=1)


def test_the_untouched_copy_alarms_nobody(stage: Stage) -> None:
    with stage.copy(0) as scene:
        assert scene.found() == ([], [])


@pytest.mark.parametrize("edit", ALONE, ids=lambda edit: edit.__name__)
def test_an_edit_is_found(stage: Stage, edit: Callable[[Scene], None]) -> None:
    for seed in range(SEEDS):
        with stage.copy(seed) as scene:
            edit(scene)
            assert scene.found()[0], seed


@pytest.mark.parametrize("edit", WITH_ANCHOR, ids=lambda edit: edit.__name__)
def test_an_edit_that_needs_an_anchor_is_found_with_it(
    stage: Stage, edit: Callable[[Scene], None]
) -> None:
    for seed in range(SEEDS):
        with stage.copy(seed) as scene:
            edit(scene)
            alone, more = scene.found()
            assert alone or more, seed


def test_old_copies_are_shorter_than_an_anchor_and_others_are_another_log(stage: Stage) -> None:
    said = {}
    for edit in WITH_ANCHOR:
        with stage.copy(1) as scene:
            edit(scene)
            said[edit.__name__] = " ".join(scene.found_elsewhere())
    assert "shorter than an anchor: the log ends with row" in said["restore_an_old_copy"]
    assert "shorter than an anchor" in said["cut_the_tail"]
    for name in ("chain_and_sign_again_with_the_stolen_key", "chain_again_without_checkpoints"):
        assert "another log than the anchor's" in said[name], said[name]
    assert "another key than the anchor's" in said["sign_the_last_checkpoint_again"]


def test_nobody_can_miss_what_came_after_the_last_anchor(stage: Stage) -> None:
    """The threat model says so: what was cut off since then is not found."""
    with stage.copy(3) as scene:
        with scene.hands() as log:
            last = log.execute("SELECT max(seq) FROM row").fetchone()[0]
            assert last > scene.anchors[-1].seq + 1
            log.execute("DELETE FROM row WHERE seq = ?", [last])
        assert (scene.directory / DATABASE).exists()
        found = scene.found()
        assert not any("anchor" in text for texts in found for text in texts)


AT = "2027-01-01T00:00:00.000000Z"


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (make_later_checkpoints_unsigned, "is not signed, and earlier ones are"),
        (sign_with_a_key_of_ones_own, "another key signed it"),
    ],
)
def test_the_station_does_not_sign_what_it_did_not_sign_before(
    stage: Stage, edit: Callable[[Scene], None], reason: str
) -> None:
    with stage.copy(2) as scene:
        edit(scene)
        with Reader(scene.directory) as reader, pytest.raises(CheckpointError, match=reason):
            make_checkpoint(reader, "s", AT, load_key(scene.key_file))


def unsign_every_checkpoint(scene: Scene) -> None:
    chain_again_after_an_edit(scene)
    resign(scene, None)


@pytest.mark.parametrize("edit", [unsign_every_checkpoint, chain_again_without_checkpoints])
def test_the_station_signs_nothing_against_its_anchors(
    stage: Stage, edit: Callable[[Scene], None]
) -> None:
    """Nothing in such a log says that it ever was signed."""
    with stage.copy(2) as scene:
        key = load_key(scene.key_file)
        with Reader(scene.directory) as reader:
            assert make_checkpoint(reader, "s", AT, key, anchors=scene.anchors)
        edit(scene)
        with Reader(scene.directory) as reader:
            with pytest.raises(CheckpointError, match=r"than an anchor|than the anchor's"):
                make_checkpoint(reader, "s", AT, key, anchors=scene.anchors)
            assert make_checkpoint(reader, "s", AT, key), "only an anchor can tell"


def test_a_key_that_is_gone_or_another_is_no_key_that_may_go_on(stage: Stage) -> None:
    """Until the change is stated; then the log goes on."""
    with stage.copy(2) as scene, Reader(scene.directory) as reader:
        with pytest.raises(CheckpointError, match="there is no key"):
            make_checkpoint(reader, "s", AT, None)
        other = load_key(replace_key(scene))
        with pytest.raises(CheckpointError, match="former_keys"):
            make_checkpoint(reader, "s", AT, other)
        former = scene.anchors[-1].key
        assert former is not None
        assert make_checkpoint(reader, "s", AT, other, former_keys=[former]).public_key


def test_clean_logs_never_alarm(folder: Path) -> None:
    for seed in range(10):
        assert clean_findings(folder, seed) == [], seed


@pytest.mark.long
def test_many_clean_logs_never_alarm(folder: Path) -> None:
    for seed in range(10, 100):
        assert clean_findings(folder, seed) == [], seed
