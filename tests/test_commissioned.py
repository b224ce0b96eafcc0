"""Production is the camera and producer that the latest signed file names, and nothing else."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from producer_rig import SHA, a_file, viky_rig
from station_rig import vqi

from drivers.camera import CameraInfo, open_camera
from station.commissioned import judge_file, read_commissioned, sha256_hex
from station.config import load_configuration
from station.lock import STATION_LOCK, take_lock
from station.log_reader import Reader
from station.log_verify import verify
from station.model_signatures import SignedModel, UnsignedModel
from station.record import Provenance
from station.signing import SigningError, sign
from station.state import SIMULATOR_VENDOR, Commissioned, NotCommissioned, provenance

CAMERA = CameraInfo(
    driver="genicam",
    vendor="A Vendor",
    model="LS-4K",
    serial="22334455",
    width=4096,
    frame_height=256,
    pixel_format="Mono8",
    producer_path="/opt/vendor/vendor.cti",
    producer_sha256=SHA,
)
SIGNED = Commissioned("22334455", SHA)
MODEL = SignedModel("a-model", SHA, SHA, ())


# --- the pure function ----------------------------------------------------------------------------

words = st.sampled_from(["", "22334455", "22334456", SHA, "cd" * 32, "genicam", "simulated"])


@given(
    driver=st.sampled_from(["genicam", "simulated", "replay", "Genicam", ""]),
    vendor=st.sampled_from(["A Vendor", SIMULATOR_VENDOR]),
    serial=words,
    producer=st.none() | words,
    signed=st.builds(Commissioned, words, words) | st.builds(NotCommissioned, words),
    model=st.sampled_from([MODEL, UnsignedModel("nobody signed it")]),
)
def test_production_is_only_the_genicam_camera_that_was_signed(
    driver: str,
    vendor: str,
    serial: str,
    producer: str | None,
    signed: Commissioned | NotCommissioned,
    model: SignedModel | UnsignedModel,
) -> None:
    camera = replace(CAMERA, driver=driver, vendor=vendor, serial=serial, producer_sha256=producer)
    is_signed = (
        isinstance(signed, Commissioned)
        and driver == "genicam"
        and vendor != SIMULATOR_VENDOR
        and serial != ""
        and producer not in (None, "")
        and (serial, producer) == (signed.camera_serial, signed.producer_sha256)
        and isinstance(model, SignedModel)
    )
    origin = provenance(camera, signed, model)
    assert (origin.provenance is Provenance.PRODUCTION) == is_signed
    if driver == "replay":
        assert origin.provenance is Provenance.REPLAYED


@pytest.mark.parametrize(
    ("camera", "signed", "why"),
    [
        (replace(CAMERA, driver="simulated"), SIGNED, "driver is simulated"),
        (replace(CAMERA, vendor=SIMULATOR_VENDOR), SIGNED, "is the simulator"),
        (replace(CAMERA, serial="1"), SIGNED, "camera 22334455 was signed, this is 1"),
        (replace(CAMERA, producer_sha256="c" * 64), SIGNED, "is not the file that was signed"),
        (replace(CAMERA, producer_sha256=None), SIGNED, "sha256 unknown"),
        (CAMERA, NotCommissioned("no file"), "no file"),
    ],
)
def test_why_it_is_not_production_is_said(
    camera: CameraInfo, signed: Commissioned | NotCommissioned, why: str
) -> None:
    origin = provenance(camera, signed, MODEL)
    assert origin.provenance is Provenance.SIMULATED
    assert why in origin.why


def test_a_model_that_nobody_signed_is_not_production() -> None:
    origin = provenance(CAMERA, SIGNED, UnsignedModel("nobody signed it"))
    assert (origin.provenance, origin.why) == (Provenance.SIMULATED, "nobody signed it")
    assert provenance(CAMERA, SIGNED, MODEL).provenance is Provenance.PRODUCTION


# --- the file -------------------------------------------------------------------------------------


def test_the_file_that_was_signed_last_holds() -> None:
    data = a_file().as_bytes()
    older = sha256_hex(a_file(who="Before").as_bytes())
    assert judge_file(data, "test-1", [sha256_hex(data), older]) == SIGNED


@given(st.integers(0), st.integers(1, 255), st.booleans())
def test_a_changed_byte_is_found(place: int, change: int, is_cut: bool) -> None:
    data = a_file().as_bytes()
    at = place % len(data)
    changed = data[:at] if is_cut else data[:at] + bytes([data[at] ^ change]) + data[at + 1 :]
    judged = judge_file(changed, "test-1", [sha256_hex(data)])
    assert isinstance(judged, NotCommissioned)
    assert "not the file that was signed last" in judged.why


@pytest.mark.parametrize(
    ("data", "signed", "why"),
    [
        (a_file().as_bytes(), [], "says of no signing"),
        (a_file().as_bytes(), [SHA, sha256_hex(a_file().as_bytes())], "an older file"),
        (a_file().as_bytes(), ["", sha256_hex(a_file().as_bytes())], "an older file"),
        (b"", [""], "not the file that was signed last"),
        (b"{}", [sha256_hex(b"{}")], "does not understand"),
        (a_file(station_id="x").as_bytes(), [sha256_hex(a_file(station_id="x").as_bytes())], "x"),
    ],
)
def test_any_other_file_is_refused(data: bytes, signed: list[str], why: str) -> None:
    judged = judge_file(data, "test-1", signed)
    assert isinstance(judged, NotCommissioned)
    assert why in judged.why


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    for path in (None, tmp_path / "none.json", tmp_path):
        judged = read_commissioned(path, "test-1", [SHA])
        assert isinstance(judged, NotCommissioned)


# --- signing, and what the station makes of it ----------------------------------------------------


class Viky:
    """A station with one of the demonstration cameras of the genicam package, a real producer."""

    def __init__(self, folder: Path) -> None:
        self.rig, self.file = viky_rig(folder)
        self.config = str(self.rig.write())
        self.settings = load_configuration(self.config).value

    def sign(self, **changes: Any) -> int:
        with open_camera(self.settings.camera) as camera:
            info = camera.info
        found = {"camera_serial": info.serial, "producer_sha256": info.producer_sha256}
        return sign(self.config, self.settings, a_file(**{**found, **changes}), self.file)

    def check(self) -> tuple[bool, str]:
        """What `vqi check` says of the camera, and whether it minds."""
        done = vqi("check", "--config", self.config, "--json")
        rows = [json.loads(line) for line in done.stdout.splitlines()]
        return next((row["ok"], row["found"]) for row in rows if row["part"] == "camera")


@pytest.fixture
def viky(tmp_path: Path) -> Viky:
    return Viky(tmp_path)


def test_check_knows_a_signed_file_from_every_other(viky: Viky) -> None:
    is_ok, found = viky.check()
    assert not is_ok
    assert "No such file or directory; sign one: `vqi commission sign`" in found
    viky.sign()
    first = viky.file.read_bytes()
    is_ok, found = viky.check()
    assert is_ok
    assert "plates are production: camera 1 is the one that was signed" in found
    viky.file.write_bytes(first.replace(b"A. Engineer", b"A. Imposter"))
    assert "changed since" in viky.check()[1]
    viky.sign(who="Another")
    assert viky.check()[0]
    viky.file.write_bytes(first)
    assert "an older file" in viky.check()[1]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"camera_serial": "2"}, "camera 2 was signed, this is 1"),
        ({"producer_sha256": "c" * 64}, "is not the file that was signed"),
        ({"station_id": "test-2"}, "signed for station test-2"),
    ],
)
def test_check_minds_a_file_for_another_camera(
    viky: Viky, changes: dict[str, str], why: str
) -> None:
    viky.sign(**changes)
    is_ok, found = viky.check()
    assert not is_ok
    assert why in found


@pytest.mark.long
def test_a_start_says_whether_its_plates_are_production_and_why(viky: Viky) -> None:
    viky.sign()
    with viky.rig.running():
        status = viky.rig.status()
        assert status["provenance"] == "production"
        assert vqi("check", "--config", viky.config).stdout.count("plates are production") == 1
        with pytest.raises(SigningError, match="a station runs"):
            viky.sign(who="in between")
    viky.file.write_bytes(viky.file.read_bytes() + b"\n")
    with viky.rig.running():
        status = viky.rig.status()
        assert status["provenance"] == "simulated"
        assert "changed since" in status["provenance_why"]
    starts = [row["detail"] for row in viky.rig.rows("change") if row["what"] == "start"]
    assert [start["provenance"] for start in starts] == ["production", "simulated"]
    assert "changed since" in starts[1]["provenance_why"]


def test_a_signature_is_a_chained_row(viky: Viky) -> None:
    viky.sign()
    with Reader(viky.rig.journal) as reader:
        assert verify(reader).findings == []
        assert reader.signed_files() == [sha256_hex(viky.file.read_bytes())]
    row = viky.rig.rows("change")[0]
    assert (row["what"], row["who"]) == ("commissioned", "A. Engineer")
    assert row["detail"]["producer_sha256"] == json.loads(viky.file.read_text())["producer_sha256"]


def test_what_cannot_be_written_is_not_signed(viky: Viky) -> None:
    viky.sign()
    before = viky.file.read_bytes()
    lock = take_lock(viky.rig.runtime / STATION_LOCK)
    assert lock is not None
    with pytest.raises(SigningError):
        viky.sign(who="while it runs")
    os.close(lock)
    path = viky.rig.folder / "a file" / "commissioning.json"
    path.parent.write_text("not a folder")
    with pytest.raises(SigningError, match="cannot be written"):
        sign(viky.config, viky.settings, a_file(), path)
    assert viky.file.read_bytes() == before
    assert len(viky.rig.rows("change")) == 1
