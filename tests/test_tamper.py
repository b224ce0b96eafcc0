"""Every edit by hostile hands is found, and a log that nobody touched never alarms."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tamper import ALONE, WITH_ANCHOR, Scene, Stage, clean_findings, memory

from station.qms import DATABASE

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


def test_clean_logs_never_alarm(folder: Path) -> None:
    for seed in range(10):
        assert clean_findings(folder, seed) == [], seed


@pytest.mark.long
def test_many_clean_logs_never_alarm(folder: Path) -> None:
    for seed in range(10, 100):
        assert clean_findings(folder, seed) == [], seed
