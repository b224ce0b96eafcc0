"""Another model on a running line: taken up between two plates, gone back from, never a mixture."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from model_rig import SHIPPED, other_model
from station_rig import Rig, check_conservation, vqi, wait_until
from test_recipes import submitted

from models.card import read_card
from station.config import load_configuration
from station.log_reader import Reader
from station.log_verify import verify
from station.recipe_desk import Desk
from station.recipe_form import as_toml

Json = dict[str, Any]


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    rig = Rig(tmp_path, camera={"line_rate_hz": 2000.0})
    rig.recipe_lines = "[keep]\npass_whole_share = 1.0\n"
    return rig


def command(rig: Rig, *words: str) -> Any:
    return vqi(*words, "--config", str(rig.folder / "station.toml"))


def proposed(rig: Rig, model: Path, **update: object) -> str:
    """The next version of what judges, with another model; proposed and approved."""
    configuration = load_configuration(str(rig.folder / "station.toml"))
    desk = Desk.at(configuration)
    card = read_card(model)
    draft = desk.draft(desk.active())
    said = {"id": card.id, "folder": str(model), "sha256": card.sha256, "threshold": 0.9, **update}
    draft = draft.model_copy(update={"model": draft.model.model_copy(update=said)})
    row = desk.propose(as_toml(draft), "ann", "another model")
    submitted(rig, row)
    name = f"small@{draft.version}"
    submitted(rig, Desk.at(configuration).approve(name, "bob", "seen"))
    return name


def plates(rig: Rig, more: int) -> None:
    """Wait until so many more plates have their record."""
    before = rig.status()["plates"]
    wait_until(lambda: rig.status().get("plates", 0) >= before + more, 40.0, f"{more} plates")


def test_a_model_is_taken_up_and_gone_back_from_while_plates_pass(rig: Rig) -> None:
    first, second = (other_model(rig.folder, f"model-{s}", s) for s in (1.0, 0.9))
    with rig.running():
        pid = rig.status()["pid"]
        a = proposed(rig, first)
        assert command(rig, "model", "activate", a).returncode == 0
        plates(rig, 4)
        b = proposed(rig, second)
        assert command(rig, "model", "activate", b).returncode == 0
        plates(rig, 4)
        done = command(rig, "model", "rollback", "--who", "eve", "--reason", "scratches", "--json")
        assert done.returncode == 0, done.stderr
        said = json.loads(done.stdout)
        assert (said["recipe"], said["from"], said["parity"]["result"]) == (a, b, "equal")
        assert int(said["parity"]["plates"]) > 0
        plates(rig, 3)
        status = rig.status()
        assert (status["pid"], status["ready"], status["recipe"]["version"]) == (pid, True, 2)
        again = command(rig, "model", "rollback", "--who", "eve", "--reason", "once more")
        assert "nothing judged before" in again.stderr
    results = rig.rows("result")
    assert [row["reason"] for row in results[:-1] if row["verdict"] == "UNDECIDED"] == []
    shas = [read_card(folder).sha256 for folder in (SHIPPED, first, second)]
    seen = [row["model_sha256"] for row in results]
    runs = [sha for place, sha in enumerate(seen) if place == 0 or seen[place - 1] != sha]
    assert runs == [shas[0], shas[1], shas[2], shas[1]]
    assert {(row["recipe_version"], row["model_sha256"]) for row in results} == {
        (1, shas[0]),
        (2, shas[1]),
        (3, shas[2]),
    }
    check_conservation(rig)
    whats = Counter(row["what"] for row in rig.rows("change"))
    assert (whats["start"], whats["recipe_activated"], whats["model_parity"]) == (1, 3, 1)
    with Reader(rig.journal) as reader:
        assert verify(reader).findings == []
