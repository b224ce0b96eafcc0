"""A plain `pip install` gives a working `vqi` from any folder: nothing hangs on the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from own_machine import enter_outside_network

CHECKOUT = Path(__file__).parents[1]


def run(*command: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("VQI_")}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**clean, "PIP_DISABLE_PIP_VERSION_CHECK": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=enter_outside_network,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def check_works(vqi: tuple[str | Path, ...], folder: Path, **environment: str) -> None:
    """Weights, recipes and configuration come from the package, outputs go to the folder."""
    run(*vqi, "check", "--config", "shipped:simulated", cwd=folder, **environment)
    summary = run(
        *(*vqi, "run", "--config", "shipped:simulated", "--plates", "1", "--json"),
        cwd=folder,
        **environment,
    )
    assert len(summary.stdout.splitlines()) == 2
    assert (folder / "var" / "journal" / "journal.db").is_file()
    assert [entry.name for entry in folder.iterdir()] == ["var"]


@pytest.mark.long
def test_the_wheel_holds_all_that_runs(tmp_path: Path) -> None:
    """The built package alone, beside the libraries that are installed here."""
    target, elsewhere = tmp_path / "target", tmp_path / "elsewhere"
    elsewhere.mkdir()
    run(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", target, CHECKOUT,
        cwd=tmp_path)  # fmt: skip
    found = run(sys.executable, "-P", "-c", "import station; print(station.__file__)",
                cwd=elsewhere, PYTHONPATH=str(target))  # fmt: skip
    assert found.stdout.startswith(str(target))
    check_works((sys.executable, "-P", "-m", "station.cli"), elsewhere, PYTHONPATH=str(target))


@pytest.mark.long
@pytest.mark.timeout(900)
def test_an_empty_environment_gets_a_working_command(tmp_path: Path) -> None:
    environment, elsewhere = tmp_path / "environment", tmp_path / "elsewhere"
    elsewhere.mkdir()
    run(sys.executable, "-m", "venv", environment, cwd=tmp_path)
    run(environment / "bin" / "pip", "install", "-q", CHECKOUT, cwd=tmp_path)
    check_works((environment / "bin" / "vqi",), elsewhere)
    listed = run(environment / "bin" / "pip", "list", cwd=elsewhere).stdout.lower()
    assert "torch" not in listed
