"""A model's whole life by the command line, as docs/models-life.md walks it: drift calls, people
review, their evidence trains, the candidate is shown in the shadow and on stored plates, signed,
promoted, a bad one refused, gone back from; and the log says it all.

With `VQI_LIFE_TRANSCRIPT` the commands and what they printed are written there."""

from __future__ import annotations

import json
import os
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from second_model import SHIPPED, other_model
from station_rig import Rig, vqi, wait_until
from typer.testing import CliRunner
from web_rig import running_journal

from models.card import read_card
from station.cli.log import app as app_of_log

pytest.importorskip("torch", reason="needs package torch (the `train` extra)")

Json = dict[str, Any]
TRAINER, APPROVER = "Anna Trainer", "Bob Approver"
MODEL = "small-2"
LEARN, DRIFTED, SHADOWED = 104, 48, 20
KEEP = "[keep]\npass_whole_share = 0.35\nwhole_from_score = 0.0\n"
DRIFT = "[drift]\nlearn_plates = 48\n"


@dataclass
class Life:
    """A station's files, and each command with what it printed."""

    rig: Rig
    said: list[str] = field(default_factory=list)

    def do(self, *words: str, status: int = 0, config: bool = True, timeout_s: float = 600) -> str:
        """A command of `vqi`; what it printed."""
        last = ("--config", str(self.rig.folder / "station.toml")) if config else ()
        done = vqi(*words, *last, timeout_s=timeout_s)
        text = done.stdout + done.stderr
        self.said.append(f"$ vqi {shlex.join(words)}\n{text}".replace(str(self.rig.folder), "."))
        if path := os.environ.get("VQI_LIFE_TRANSCRIPT"):
            Path(path).write_text("\n".join(self.said))
        assert done.returncode == status, text
        return text

    def whats(self) -> list[str]:
        return [row["what"] for row in self.rig.rows("change")]

    def details(self, what: str) -> list[Json]:
        return [row["detail"] for row in self.rig.rows("change") if row["what"] == what]

    def plates(self, more: int) -> None:
        before = self.rig.status()["plates"]
        wait_until(lambda: self.rig.status().get("plates", 0) >= before + more, 90.0, "plates")


@pytest.fixture
def life(tmp_path: Path) -> Life:
    rig = Rig(
        tmp_path,
        camera={"is_paced": False, "bank_plates": 48, "line_rate_hz": 2000.0},
        specimen={"gap_mm": 20.0, "defective_share": 0.4, "contrast_scale": 3.0},
        threshold=0.1,
        recipe_lines=KEEP + DRIFT,
    )
    return Life(rig)


def review_by_truth(rig: Rig, since: int) -> int:
    """By the command, in this process, of every plate from the sequence number on."""
    config, reviewed = str(rig.folder / "station.toml"), 0
    for row in rig.rows("result"):
        if row["sequence"] < since or row["reason"] is not None:
            continue
        verdict = "FAIL" if row["truth_is_defective"] else "PASS"
        words = ["review", row["result_id"], "--verdict", verdict, "--who", "ada"]
        agrees = verdict == row["verdict"]
        words += ["--reason", "confirmed" if agrees else "missed" if verdict == "FAIL" else "other"]
        if verdict == "FAIL" and agrees:
            words += [w for n, _ in enumerate(row["defects"]) for w in ("--defect", f"{n}=scratch")]
        done = CliRunner().invoke(app_of_log, [*words, "--config", config])
        assert done.exit_code == 0, done.output
        reviewed += 1
    return reviewed


def trusted(life: Life) -> None:
    """Two people's keys, which root trusts."""
    if os.getuid() != 0:
        pytest.skip("needs root: trusted keys count only in a file of root's")
    folder = life.rig.folder
    text = ""
    for role, who in (("trained", TRAINER), ("approved", APPROVER)):
        key = str(folder / f"{role}.pem")
        said = life.do("model", "keygen", "--out", key, "--who", who, "--role", role, config=False)
        text += said[said.index("[[key]]") :]
    file = folder / "model-keys.toml"
    file.write_text(text)
    file.chmod(0o644)
    life.rig.tables = f'[models]\ntrusted_keys = "{file}"\n'
    life.rig.tables += f'[proof]\nkey_file = "{folder / "log-key.pem"}"\n'
    life.rig.write()
    life.do("log", "key", "make")


def with_limit_samples(life: Life) -> None:
    """A plate that failed and one that passed, and a recipe that asks for all evidence."""
    rig, samples = life.rig, life.rig.folder / "limit-samples"
    rows = [row for row in rig.rows("result") if row["reason"] is None]
    for verdict in ("FAIL", "PASS"):
        score = {"FAIL": max, "PASS": min}[verdict]
        row = score((r for r in rows if r["verdict"] == verdict), key=lambda r: r["score"])
        life.do(
            *("recipe", "samples", "add", row["result_id"]),
            *("--expected", verdict, "--folder", str(samples)),
        )
    text = (rig.folder / "recipe.toml").read_text().replace("version = 1", "version = 2")
    text += f'[limit_samples]\nfolder = "{samples}"\n'
    # The rig's recipe asks for nothing; all of it is asked for where nothing is said.
    text = text.replace("evidence = []", f"compare_plates = {DRIFTED}\nshadow_plates = {SHADOWED}")
    second = rig.folder / "small-2.toml"
    second.write_text(text)
    reason = "limit samples, evidence before another model"
    life.do("recipe", "propose", str(second), "--who", "ann", "--reason", reason)
    life.do("recipe", "approve", "small@2", "--who", "bob")
    life.do("recipe", "activate", "small@2")


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_a_models_whole_life(life: Life, tmp_path: Path) -> None:
    rig = life.rig
    assert rig.run("--plates", str(LEARN)).status == 0
    trusted(life)
    with_limit_samples(life)

    # Drift: the lattice of a new material.
    rig.wear = {"dot_contrast": 0.8}
    done = rig.run("--plates", str(DRIFTED), timeout_s=200)
    assert done.status == 0, done.stderr
    assert [row["recipe_version"] for row in done.records] == [2] * DRIFTED
    assert [row["cause"] for row in life.details("drift_alarm")] == ["material"]
    assert "ATTENTION: drift: material" in life.do("model", "drift")

    # What people say of these plates trains.
    with running_journal(rig):
        assert review_by_truth(rig, LEARN) >= DRIFTED - 2
        data, run = str(tmp_path / "data"), str(tmp_path / "training")
        life.do("model", "collect", "--out", data, "--who", "ada")
    life.do(
        *("model", "train", "--data", data, "--out", run, "--init", SHIPPED.name),
        *("--seeds", "1", "--epochs", "2"),
        config=False,
    )
    life.do(
        *("model", "export", "--run", run, "--data", data, "--out", str(tmp_path / MODEL)),
        *("--recipe", str(rig.folder / "recipe.toml"), "--plates", "40", "--width", "768"),
        *("--false-reject-target", "0.1"),
        config=False,
    )

    # Signed by two people, and into the store.
    for role, who in (("trained", TRAINER), ("approved", APPROVER)):
        key = str(tmp_path / f"{role}.pem")
        folder = str(tmp_path / MODEL)
        words = ("--role", role, "--key", key, "--who", who)
        life.do("model", "sign", folder, *words, config=False)
    archive = str(tmp_path / f"{MODEL}.tar")
    life.do("model", "pack", str(tmp_path / MODEL), "--archive", archive, config=False)
    life.do("model", "import", archive, "--who", "ann")
    assert MODEL in life.do("model", "list")

    rig.camera["is_paced"] = True
    with rig.running():
        candidate(life)
        on_stored_plates(life)
        a_bad_model_is_refused(life, tmp_path)
        promoted(life)
        gone_back(life)
    the_log_says_it_all(life, tmp_path)


def candidate(life: Life) -> None:
    """Proposed, and in the shadow of the judge."""
    life.do(
        *("model", "promote", MODEL, "--recipe", "small", "--who", "ann"),
        *("--reason", "the new material", "--plates", "40", "--false-reject-target", "0.1"),
    )
    life.do("model", "evidence", "small@3", status=1)
    assert "MISSING" in life.said[-1]
    life.do("recipe", "approve", "small@3", "--who", "bob", status=1)
    life.do(
        *("model", "shadow", "start", "small@3", "--share", "0.6", "--who", "ann"),
        *("--reason", "before small@3"),
    )

    def shadowed() -> int:
        return sum(len(row["plates"]) for row in life.rig.rows("shadow"))

    wait_until(lambda: shadowed() >= SHADOWED, 300.0, "plates in the shadow")
    life.do("model", "shadow", "report")
    life.do("model", "shadow", "stop", "--who", "ann", "--reason", "seen enough")


def on_stored_plates(life: Life) -> None:
    """Compared, each flip or a sample signed, measured: then nothing is missing."""
    life.do(
        *("model", "compare", "small@2", "small@3", "--since", "2026-01-01", "--who", "ann"),
        *("--out", str(life.rig.folder / "report")),
    )
    flips = json.loads(life.details("model_compared")[-1]["to_sign"])
    sha = life.details("model_compared")[-1]["report_sha256"][:12]
    confirmed = json.loads(life.details("model_compared")[-1]["confirmed"])
    for name in confirmed:
        words = ("--who", "bob", "--reason", "within the limit sample", "--comparison", sha)
        life.do("model", "sign-flip", name, *words)
    if rest := len(flips) - len(confirmed):
        words = ("--who", "bob", "--reason", "looked at each", "--comparison", sha)
        life.do("model", "sign-flip", "--sample", str(min(rest, 59)), *words)
    life.do("model", "flips")
    life.do("model", "gate", "small@3", "--who", "ann")
    life.do("model", "evidence", "small@3")


def a_bad_model_is_refused(life: Life, tmp_path: Path) -> None:
    """One that says 0.5 of every tile, from a folder of somebody's, and signed by nobody."""
    bad = other_model(tmp_path / "from-elsewhere", "planted", 0.0)
    assert "nobody" in life.do("model", "import", str(bad), "--who", "mallory", status=1)
    said = ("--recipe", "small", "--who", "mallory", "--reason", "much better")
    life.do("model", "promote", str(bad), *said, "--threshold", "0.9")
    gate = life.do("model", "gate", "small@4", "--who", "mallory", status=1)
    assert "limit_samples REFUSED" in gate
    assert "escape, which the judging model does not" in gate
    refused = life.do("recipe", "approve", "small@4", "--who", "bob", status=1)
    assert "not compared with small@2" in refused
    life.do("model", "activate", "small@4", status=1)


def promoted(life: Life) -> None:
    rig = life.rig
    pid = rig.status()["pid"]
    life.do("recipe", "approve", "small@3", "--who", "bob")
    life.do("model", "activate", "small@3")
    life.plates(12)
    status = rig.status()
    assert (status["pid"], status["ready"], status["recipe"]["version"]) == (pid, True, 3)
    # Another model's scores are held against limits of its own.
    assert status["drift"]["state"] == "learning"


def gone_back(life: Life) -> None:
    life.do("model", "rollback", "--who", "eve", "--reason", "the old material is back")
    assert life.details("model_parity")[-1]["result"] == "equal"
    life.plates(12)
    status = life.rig.status()
    assert status["recipe"]["version"] == 2
    assert status["drift"]["state"] == "watching"
    life.do("model", "drift")


def the_log_says_it_all(life: Life, tmp_path: Path) -> None:
    rig = life.rig
    life.do("log", "verify")
    whats = list(dict.fromkeys(life.whats()))
    wanted = [
        "drift_limits", "drift_alarm", "model_collected", "model_imported", "model_threshold",
        "model_shadow_started", "model_shadow_stopped", "model_compared", "model_flip_signed",
        "model_gate", "model_rollback", "model_parity",
    ]  # fmt: skip
    assert [what for what in whats if what in wanted] == wanted
    shas = {MODEL: read_card(tmp_path / MODEL).sha256, SHIPPED.name: read_card(SHIPPED).sha256}
    results = rig.rows("result")
    seen = [(row["recipe_version"], row["model_id"]) for row in results]
    changed = [place for place, one in enumerate(seen) if one == (3, MODEL)]
    around = results[changed[0] - 5 : changed[-1] + 6]
    assert "UNDECIDED" not in {row["verdict"] for row in around}, "no plate for either change"
    sequences = [row["sequence"] for row in around]
    assert sequences == list(range(sequences[0], sequences[-1] + 1))
    lives = [one for place, one in enumerate(seen) if place == 0 or seen[place - 1] != one]
    assert lives == [(1, SHIPPED.name), (2, SHIPPED.name), (3, MODEL), (2, SHIPPED.name)]
    with running_journal(rig):
        life.do("log", "checkpoint")
    for version, model in ((3, MODEL), (2, SHIPPED.name)):
        body = [row for row in results if row["recipe_version"] == version][-2]
        out = tmp_path / "certificates"
        life.do("log", "certificate", body["result_id"], "--out", str(out))
        (page,) = out.glob(f"*{body['result_id']}*.html")
        assert model in page.read_text()
        assert shas[model] in page.read_text()
