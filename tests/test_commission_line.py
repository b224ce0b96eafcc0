"""`vqi commission` on a whole simulated line: the C producer's camera, its belt, and its faults."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from model_rig import trust_shipped
from producer_rig import PITCH_MM, producer_rig
from station_rig import LINE_RATE_HZ, Rig, vqi
from test_commission import write_study

from drivers.errors import DriverMissing
from station.commissioning import capture
from station.commissioning_steps import STEPS
from station.config import load_configuration
from station.flat_field import measure_flat_field, save

Json = dict[str, Any]
BELT_MM_S = LINE_RATE_HZ * PITCH_MM
SENSOR = {"SimVignetting": 20.0, "SimPixelNonUniformity": 1.0, "SimDarkLevel": 4.0, "SimNoise": 1.0}
BY_ENCODER = {
    "ChunkModeActive": True,
    "SimEncoderResolution": 1 / PITCH_MM,
    "EncoderDivider": 1,
    "TriggerSource[LineStart]": "Encoder0",
    "TriggerMode[LineStart]": "On",
}


class Line:
    """A line under the producer's camera, with a flat field that was measured on it."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        try:
            self.rig = producer_rig(folder, "Acme", {**SENSOR, **BY_ENCODER})
        except DriverMissing as error:
            pytest.skip(str(error))
        self.rig.recipe_lines = "[keep]\npass_whole_share = 1.0\n"
        self.features: Json = self.rig.camera["features"]
        self.tables = (
            trust_shipped(self.rig).tables
            + f'[commissioning]\nfile = "{folder}/commissioning.json"\n'
        )
        self.answers = folder / "answers.toml"
        self.answers.write_text(
            f"belt_mm_s = {BELT_MM_S}\nencoder_counts_per_mm = {1 / PITCH_MM}\n"
            'warm_up_minutes = 0.05\nreject_distance_mm = "none"\n'
            f'limit_samples = "{folder}/samples.csv"\nmsa_csv = "{folder}/study.csv"\n'
        )
        self.calibrate()

    def calibrate(self) -> None:
        settings = load_configuration(str(self.rig.write())).value
        dark, bright = (
            capture(
                settings.camera.model_copy(update={"features": {**self.features, "SimTarget": at}}),
                settings.station.ring_s,
                1024,
            )
            for at in ("Dark", "Uniform")
        )
        found = measure_flat_field(dark.pixels, bright.pixels, dark.info.serial)
        path = save(found, self.rig.folder)
        self.rig.tables = f'{self.tables}[flat_field]\nfile = "{path}"\nsha256 = "{found.sha256}"\n'
        self.rig.write()

    def commission(self, *options: str, **features: Any) -> dict[str, Json]:
        """The steps' rows by name, and the last row as `end`, with some features changed."""
        self.rig.camera["features"] = {**self.features, **features}
        config = str(self.rig.write())
        done = vqi(
            *("commission", "--config", config, "--answers", str(self.answers), "--yes", "--json"),
            *options,
            timeout_s=280.0,
        )
        assert "Traceback" not in done.stderr, done.stderr
        rows = [json.loads(line) for line in done.stdout.splitlines()]
        return {row.get("step", "end"): row for row in rows}

    def write_samples(self) -> None:
        """Whole plates from the line's own log, with the verdicts that they got."""
        rows = [row for row in self.rig.rows("result") if row["reason"] is None][:4]
        listing = ["file,expected"]
        for row in rows:
            path = next(item["path"] for item in row["images"] if item["role"] == "evidence")
            listing.append(f"{self.rig.journal / 'images' / path},{row['verdict']}")
        (self.rig.folder / "samples.csv").write_text("\n".join(listing) + "\n")


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Line:
    return Line(tmp_path_factory.mktemp("commission") / "line")


def wrong(row: Json) -> list[str]:
    return [check["what"] for check in row["checks"] if not check["is_ok"]]


def test_a_line_that_is_right_passes_every_step(line: Line) -> None:
    """All but the number of plates, which takes a minute; see the long test.

    A busy machine may be late for a plate; that no plate is, is the long test's claim too.
    """
    few = line.commission("--step", "dry_run", "--plates", "8")
    assert set(wrong(few["dry_run"])) - {"passes withheld for lateness"} == {"plates"}
    line.write_samples()
    write_study(line.rig.folder / "study.csv")
    steps = [name for step in STEPS if step.name != "dry_run" for name in ("--step", step.name)]
    rows = line.commission(*steps)
    assert {name: row["status"] for name, row in rows.items() if name != "end"} == {
        step.name: "passed" for step in STEPS if step.name != "dry_run"
    }, rows
    assert rows["end"]["open"] == ["dry_run: failed"]


@pytest.mark.parametrize(
    ("features", "found"),
    [
        (
            {"EncoderDivider": 2, "SimVignetting": 35.0},
            {
                "rate": ("belt, pixel, encoder, exposure", "the divider is 2, 1 is right"),
                "scale": ("downweb over crossweb", "EncoderDivider"),
                "flat_field": ("residual column non-uniformity", ""),
            },
        ),
        (
            {"SimDefocus": 3.0, "SimLightLevel": 80.0},
            {
                "focus": ("edges at px 307-460, 10-90 %", ""),
                "flat_field": ("light, of the flat field's", ""),
            },
        ),
        (
            {"SimDirtPosition": 300, "SimDirtWidth": 12, "SimDirtContrast": 30.0},
            {"flat_field": ("target and lens", "structure at columns 29")},
        ),
        pytest.param(
            {"SimBeltSpeed": 1.1 * BELT_MM_S, "SimTemperatureDrift": 100.0},
            {
                "rate": ("line rate, from the frames' times", ""),
                "warm_up": ("temperature and dark level still for", ""),
            },
            marks=pytest.mark.long,
        ),
    ],
    ids=["divider and flat field", "defocus and old light", "dirt", "belt and cold camera"],
)
def test_what_is_wrong_is_found_by_its_step(
    line: Line, features: Json, found: dict[str, tuple[str, str]]
) -> None:
    rows = line.commission(*(word for step in found for word in ("--step", step)), **features)
    steps = line.rig.journal / "commissioning" / "fat" / "steps"
    for step, (what, words) in found.items():
        assert rows[step]["status"] == "failed", step
        assert what in wrong(rows[step])
        assert words in (steps / f"{step}.json").read_text()


@pytest.mark.long
def test_the_second_run_finds_what_became_softer_since_the_first(line: Line) -> None:
    assert line.commission("--step", "focus")["focus"]["status"] == "passed"
    for defocus, is_found in ((0.0, False), (1.0, True)):
        options = ("--run", "sat", "--step", "focus")
        row = line.commission(*options, SimDefocus=defocus)["focus"]
        assert ("sharpness, of the FAT's" in wrong(row)) == is_found


def test_what_the_camera_rounded_is_said(line: Line) -> None:
    row = line.commission("--step", "camera", ExposureTime=10.04)["camera"]
    assert row["status"] == "passed"
    kept = (line.rig.journal / "commissioning" / "fat" / "steps" / "camera.json").read_text()
    assert "ExposureTime: the camera rounded 10.04 to 10.0" in kept


def test_a_camera_that_is_not_there_is_not_done(line: Line) -> None:
    serial = line.rig.camera["serial"]
    try:
        line.rig.camera["serial"] = "Acme-LS-9"
        row = line.commission("--step", "camera")["camera"]
    finally:
        line.rig.camera["serial"] = serial
    assert row["status"] == "not done"
    assert "no camera with serial 'Acme-LS-9'" in row["reason"]


@pytest.mark.alone
@pytest.mark.long
def test_a_whole_run_is_signed_and_its_plates_are_production(tmp_path: Path) -> None:
    line = Line(tmp_path / "line")
    line.rig.run("--plates", "8")
    line.write_samples()
    write_study(line.rig.folder / "study.csv")
    for run in ("fat", "sat"):
        rows = line.commission("--run", run)
        assert rows["end"]["is_signable"], {
            name: wrong(row) for name, row in rows.items() if name != "end"
        }
    config = str(line.rig.folder / "station.toml")
    signed = vqi("commission", "sign", "--config", config, "--who", "A. Engineer", "--json")
    assert signed.returncode == 0, signed.stderr
    assert _provenances(line.rig) == {"production"}
    report = json.loads((line.rig.journal / "commissioning" / "sat" / "report.json").read_text())
    assert report["compared_with"] == "fat"


def _provenances(rig: Rig) -> set[str]:
    return {row["provenance"] for row in rig.run("--plates", "4").records}
