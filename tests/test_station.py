"""The whole station: real processes, a simulated belt, the journal as QA reads it."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import signal
import struct
import tempfile
import time
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from station_rig import Rig, check_conservation, children, shared_memory, vqi, wait_until
from test_permissions import as_nobody

from station.control import send_command
from station.cores import cpu_seconds
from station.ipc import Json
from station.record import Reason


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path, specimen={"contrast_scale": 3.0})


def verify_log(rig: Rig) -> None:
    done = vqi("log", "verify", "--journal", str(rig.journal))
    assert done.returncode == 0, done.stdout + done.stderr


def test_plates_become_records_pictures_and_light(rig: Rig) -> None:
    before = shared_memory()
    result = rig.run("--plates", "20")
    assert result.status == 0, result.stderr
    assert len(result.records) == 20
    assert result.summary["plates"] == 20
    assert result.summary["lost_frames"] == 0
    assert result.summary["undecided"] == 0, [r["detail"] for r in result.records]
    assert result.summary["pass"] > 0
    assert result.summary["fail"] > 0
    assert result.summary["latency_ms"]["p50"] > 0
    assert sorted(r["sequence"] for r in result.records) == list(range(1, 21))
    assert all(r["provenance"] == "simulated" and r["is_simulated"] for r in result.records)
    opened, results, acted = (rig.rows(kind) for kind in ("opened", "result", "actuation"))
    ids = [row["result_id"] for row in results]
    assert [row["result_id"] for row in opened] == sorted(ids)
    assert sorted(row["result_id"] for row in acted) == sorted(ids)
    assert not any(row["command"] == "pass" for row in acted), "not production"
    assert any(row["command"] == "pass_not_production" for row in acted)
    for shown, kept in zip(result.records, results, strict=True):
        assert shown["images"] == kept["images"]
        assert shown["pixels_sha256"] == kept["pixels_sha256"] is not None
    verify_log(rig)
    assert shared_memory() == before


def test_truth_of_the_belt_is_in_the_record(rig: Rig) -> None:
    rig.run("--plates", "12")
    rows = rig.rows("result")
    assert {row["truth_is_defective"] for row in rows} == {True, False}
    errors = [r for r in rows if r["truth_is_defective"] != (r["verdict"] == "FAIL")]
    assert len(errors) <= 3, [(r["verdict"], r["score"], r["truth"]) for r in errors]


def test_a_defect_is_listed_where_it_is(rig: Rig) -> None:
    """Boxes of whole tiles would be 22 mm wide."""
    rig.run("--plates", "12")
    failed = [r for r in rig.rows("result") if r["verdict"] == "FAIL" and r["truth"]]
    assert len(failed) >= 3
    near = [_is_near(record["defects"][0], record["truth"]) for record in failed]
    assert np.mean(near) >= 0.7, near
    widths_mm = [defect["w_mm"] for record in failed for defect in record["defects"]]
    assert np.median(widths_mm) < 15


def _is_near(defect: Json, truth: list[Json]) -> bool:
    """Does the box, with a margin of a cell of the network's map, hold a true defect's centre?"""
    return any(
        abs(true["x_mm"] - defect["x_mm"]) <= defect["w_mm"] / 2 + 3.2
        and abs(true["y_mm"] - defect["y_mm"]) <= defect["h_mm"] / 2 + 3.2
        for true in truth
    )


def test_processor_time_is_told_by_role(rig: Rig) -> None:
    with rig.running() as process:
        wait_until(lambda: rig.status().get("plates", 0) > 1, 20.0, "plates")
        spent = cpu_seconds(process.pid)
    assert set(spent) == {"supervisor", "station", "camera", "journal", "lamp"}
    assert spent["station"] > spent["lamp"] > 0
    assert cpu_seconds(process.pid) == {}


def test_numbers_go_on_after_a_restart(rig: Rig) -> None:
    rig.run("--plates", "3")
    second = rig.run("--plates", "3")
    assert sorted(r["sequence"] for r in second.records) == [4, 5, 6]
    verify_log(rig)


def test_fail_is_held_until_acknowledged(rig: Rig) -> None:
    rig.fail_hold_s = None
    with rig.running():
        wait_until(lambda: rig.status().get("light") == "fail", 20.0, "FAIL")
        held_id = rig.status()["light_result_id"]
        plates = rig.status()["plates"]
        wait_until(lambda: rig.status()["plates"] > plates + 6, 20.0, "six more plates")
        assert rig.status()["light"] == "fail"
        for seen in ("none", "another-1"):
            refused = send_command(rig.runtime, "ack", seen)
            assert not refused["ok"]
            assert "is held by now" in refused["error"]
        assert vqi("control", "ack", "--config", str(rig.folder / "station.toml")).returncode == 0
        wait_until(
            lambda: rig.status()["light_result_id"] != held_id, 5.0, "light after acknowledgement"
        )
    assert [row["what"] for row in rig.rows("change")] == ["start", "ack", "stop"]


def test_a_halted_station_decides_nothing(rig: Rig) -> None:
    config = str(rig.folder / "station.toml")
    with rig.running():
        assert vqi("control", "halt", "--config", config).stdout.strip() == "HALTED"
        wait_until(lambda: rig.status()["light"] == "fault", 5.0, "FAULT")
        undecided = rig.status()["undecided"]
        wait_until(lambda: rig.status()["undecided"] > undecided + 2, 10.0, "halted plates")
        assert vqi("control", "resume", "--config", config).stdout.strip() == "OPERATIONAL"
        passed = rig.status()["pass"]
        wait_until(lambda: rig.status()["pass"] > passed, 10.0, "a pass after resume")
    reasons = Counter(row["reason"] for row in rig.rows("result"))
    assert set(reasons) <= {None, Reason.HALTED, Reason.INTERRUPTED}


def test_one_journal_has_one_station(rig: Rig) -> None:
    with rig.running():
        other = Rig(rig.folder / "other")
        other.folder.mkdir()
        config = other.write()
        text = config.read_text().replace(str(other.journal), str(rig.journal))
        config.write_text(text)
        done = vqi("run", "--config", str(config), "--plates", "1")
        assert done.returncode == 1, done.stderr
        assert str(rig.journal) in done.stderr


def test_a_killed_camera_process_is_replaced_and_leaves_a_gap(rig: Rig) -> None:
    rig.camera["belt_file"] = str(rig.folder / "belt.json")
    write_belt(rig)
    before = shared_memory()
    with rig.running() as run:
        wait_until(lambda: rig.status()["plates"] > 2, 20.0, "plates")
        victim = children(run.pid)["camera"]
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: rig.status()["camera_restarts"] == 1, 20.0, "a new camera process")
        assert children(run.pid)["camera"] != victim
        plates = rig.status()["plates"]
        wait_until(lambda: rig.status()["plates"] > plates + 2, 20.0, "plates afterwards")
    check_conservation(rig)
    assert shared_memory() == before
    verify_log(rig)


def write_belt(rig: Rig) -> None:
    path = Path(rig.camera["belt_file"])
    path.write_text(json.dumps({"epoch_monotonic_ns": time.monotonic_ns()}))


# --- one picture, one score -------------------------------------------------------------------


def test_live_inspect_and_replay_scores_are_the_same_bits(rig: Rig, tmp_path: Path) -> None:
    recorded = tmp_path / "strip"
    rig.run("--plates", "6", "--record", str(recorded))
    live = in_order(rig)
    again = Rig(tmp_path / "replay", camera={"type": "replay", "path": str(recorded)})
    again.folder.mkdir()
    replayed = again.run()
    assert replayed.status == 0, replayed.stderr
    assert [r["provenance"] for r in replayed.records] == ["replayed"] * len(replayed.records)
    for old, new in zip(live, in_order(again), strict=True):
        assert old["plate_ordinal"] == new["plate_ordinal"]
        assert (old["tile_grid"], old["tile_scores"]) == (new["tile_grid"], new["tile_scores"])
        assert old["pixels_sha256"] == new["pixels_sha256"]
    whole = [row for row in live if any(i["role"] == "evidence" for i in row["images"])]
    assert whole
    for row in whole:
        image = next(i for i in row["images"] if i["role"] == "evidence")
        path = rig.journal / "images" / image["path"]
        done = vqi("inspect", str(path), "--recipe", str(rig.folder / "recipe.toml"), "--json")
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        scores = np.array([tile["score"] for tile in found["tiles"]], np.float32)
        assert scores.tobytes() == base64.b64decode(row["tile_scores"])
        assert found["verdict"] == row["verdict"]


def in_order(rig: Rig) -> list[dict[str, Any]]:
    """Results by plate: two threads score, and a plate may be done before the one before it."""
    return sorted(rig.rows("result"), key=lambda row: row["sequence"])


def test_a_source_that_can_wait_is_never_too_fast(rig: Rig, tmp_path: Path) -> None:
    """Played as fast as it is taken, through the fewest buffers: every plate, every frame."""
    rig.camera |= {"is_paced": False, "frame_height": 16}
    rig.station = {"plate_buffers": 2, "ring_s": 0.5}
    result = rig.run("--plates", "40")
    assert result.status == 0, result.stderr
    assert len(result.records) == 40
    assert (result.summary["undecided"], result.summary["lost_frames"]) == (0, 0), result.records


# --- bad pictures -----------------------------------------------------------------------------


def bad_pictures(folder: Path) -> dict[str, Path]:
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 255, (64, 64), np.uint8)
    whole = cv2.imencode(".png", grey)[1].tobytes()
    contents = {
        "empty.png": b"",
        "truncated.png": whole[: len(whole) // 2],
        "text.png": b"this is not a picture\n",
        "deep.png": cv2.imencode(".png", grey.astype(np.uint16) * 200)[1].tobytes(),
        "colour.png": cv2.imencode(".png", rng.integers(0, 255, (64, 64, 3), np.uint8))[
            1
        ].tobytes(),
        "tiny.png": cv2.imencode(".png", grey[:1, :1])[1].tobytes(),
        "huge.png": huge_png(30_000),
        "cut.jpg": cut_jpeg(grey),
        "pages.tif": two_pages(grey),
    }
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    return {name: folder / name for name in contents} | {"missing.png": folder / "missing.png"}


def cut_jpeg(grey: np.ndarray) -> bytes:
    """Half of the picture is missing, but an end marker stands after it."""
    whole = cv2.imencode(".jpg", np.tile(grey, (4, 4)))[1].tobytes()
    return whole[: len(whole) // 2] + b"\xff\xd9"


def two_pages(grey: np.ndarray) -> bytes:
    file = io.BytesIO()
    first, second = Image.fromarray(grey), Image.fromarray(255 - grey)
    first.save(file, "TIFF", save_all=True, append_images=[second])
    return file.getvalue()


def huge_png(side: int) -> bytes:
    """A PNG that says it is side x side; its pixels would take side^2 bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + crc

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    rows = zlib.compress(b"\0" * (side + 1) * 100)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


def test_bad_pictures_get_one_line_each_and_the_others_are_inspected(tmp_path: Path) -> None:
    bad = bad_pictures(tmp_path)
    good = tmp_path / "zz_good.png"
    cv2.imwrite(str(good), np.random.default_rng(1).integers(90, 110, (300, 300), np.uint8))
    done = vqi("inspect", *map(str, bad.values()), str(good), "--json")
    assert done.returncode == 1
    rows = {Path(row["file"]).name: row for row in map(json.loads, done.stdout.splitlines())}
    assert set(rows) == {*bad, good.name}
    assert all(rows[name]["verdict"] is None for name in bad), rows
    assert rows[good.name]["verdict"] in ("PASS", "FAIL")
    lines = done.stderr.strip().splitlines()
    assert len(lines) == len(bad), done.stderr
    assert all(any(name in line for line in lines) for name in bad)
    assert "Traceback" not in done.stderr


def test_what_may_not_be_read_is_named_and_the_others_are_inspected() -> None:
    """As a user without rights: root may read everything."""
    folder = Path(tempfile.mkdtemp(prefix="vqi-pictures-"))
    try:
        folder.chmod(0o755)
        locked = folder / "locked"
        for path in (folder / "a_secret.png", locked / "b.png", folder / "z_good.png"):
            path.parent.mkdir(exist_ok=True)
            cv2.imwrite(str(path), np.full((300, 300), 100, np.uint8))
        (folder / "a_secret.png").chmod(0o600)
        locked.chmod(0o700)
        (folder / "empty").mkdir()
        os.mkfifo(folder / "pipe.png")
        given = [folder, locked / "b.png", folder / "empty", folder / ("x" * 300)]
        done = as_nobody("inspect", *map(str, given), "--json")
        assert done.returncode == 1
        rows = {row["file"]: row for row in map(json.loads, done.stdout.splitlines())}
        assert rows.pop(str(folder / "z_good.png"))["verdict"] in ("PASS", "FAIL")
        assert {Path(file).name[:8]: row["error"] for file, row in rows.items()} == {
            "a_secret": "cannot be read: Permission denied",
            "locked": "cannot be read: Permission denied",
            "b.png": "cannot be read: Permission denied",
            "pipe.png": "not a file",
            "empty": "no pictures in this folder (.bmp, .jpeg, .jpg, .pgm, .png, .tif, .tiff, "
            ".webp)",
            "xxxxxxxx": "cannot be read: File name too long",
        }
        assert len(done.stderr.splitlines()) == len(rows)
    finally:
        shutil.rmtree(folder)


def test_real_plates_are_inspected(real_data: Path) -> None:
    done = vqi("inspect", str(real_data / "goggle_plates"), "--json")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == 16
    assert {row["verdict"] for row in rows} <= {"PASS", "FAIL"}


def test_pictures_of_another_surface_are_inspected(real_data: Path) -> None:
    pictures = sorted((real_data / "magnetic_tile" / "images").iterdir())[:50]
    done = vqi("inspect", *map(str, pictures), "--json")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 50


# --- every fault of the camera ------------------------------------------------------------------

_FAULTS = {
    "drop_frames": "incomplete",
    "drop_scan_lines": "incomplete",
    "truncate": "incomplete",
    "duplicate": "incomplete",
    "stall": "incomplete",
    "black": "unlit",
    "saturated": "unlit",
    "stuck": "stuck",
    "wrong_width": "incomplete",
    "wrong_pixel_format": "incomplete",
    "disconnect": "incomplete",
}
"""Each fault in the middle of a plate, and why that plate is UNDECIDED. The last one takes longest:
the camera is opened again."""


def plate_frames(first: int, last: int) -> list[int]:
    """Belt frames in the middle of the plates first..last of the rig's belt."""
    from drivers.camera.settings import SimulatedCameraSettings
    from drivers.camera.simulated import Slots

    settings = SimulatedCameraSettings.model_validate(
        {
            "type": "simulated",
            "width": 768,
            "frame_height": 64,
            "specimen": {"width_mm": 60.0, "length_mm": 40.0, "gap_mm": 40.0, "skew_deg": 0.8},
        }
    )
    slots = Slots(settings)
    return [(slots.start(k) + 200) // 64 for k in range(first, last + 1)]


def test_every_fault_makes_its_plate_undecided_and_the_station_recovers(rig: Rig) -> None:
    frames = plate_frames(1, 90)
    touched: dict[int, str] = {}
    plate = 6
    for fault in _FAULTS:
        rig.faults[fault] = [frames[plate - 1]]
        touched[plate] = fault
        plate += 6
    rig.faults["stall_s"] = 0.4
    rig.camera["belt_file"] = str(rig.folder / "belt.json")
    rig.camera["bank_plates"] = 2
    # The camera comes back onto the same belt: the frames of a fault lie behind it then.
    lead_s = 10
    epoch_ns = time.monotonic_ns() + lead_s * 1_000_000_000
    Path(rig.camera["belt_file"]).write_text(json.dumps({"epoch_monotonic_ns": epoch_ns}))
    seconds = lead_s + 10 + plate * (400 + 12 + 400) / 4000 + 6
    result = rig.run("--seconds", f"{seconds:.0f}", timeout_s=120)
    assert result.status == 0, result.stderr
    by_ordinal = {r["plate_ordinal"]: r for r in rig.rows("result") if r["reason"] != "gap"}
    assert min(by_ordinal) < min(touched), "a loaded machine started the station after the belt"
    commands = {row["result_id"]: row["command"] for row in rig.rows("actuation")}
    decided = sorted(n for n, r in by_ordinal.items() if r["verdict"] in ("PASS", "FAIL"))
    for ordinal, fault in touched.items():
        assert ordinal in by_ordinal, f"{fault}: plate {ordinal} has no record"
        record = by_ordinal[ordinal]
        found = record["verdict"], record["reason"]
        assert found == ("UNDECIDED", _FAULTS[fault]), (fault, found, record["detail"])
        assert not commands[record["result_id"]].startswith("pass"), fault
        after = next((n for n in decided if n > ordinal), None)
        assert after is not None, f"{fault}: the station did not recover"
        assert fault == "disconnect" or after < ordinal + 6, f"{fault}: recovered late"
    check_conservation(rig)
    verify_log(rig)


# --- a journal that cannot be written -----------------------------------------------------------


def test_a_full_disk_stops_the_station_until_there_is_room(rig: Rig, small_disk: Path) -> None:
    rig.journal_folder = small_disk / "journal"
    rig.min_free_mb = 20
    rig.camera["bank_plates"] = 2
    with rig.running():
        wait_until(lambda: rig.status().get("plates", 0) > 3, 20.0, "plates")
        ballast = small_disk / "ballast"
        assert rig.status()["ready"]
        ballast.write_bytes(bytes(30_000_000))
        wait_until(lambda: not rig.status()["ready"], 5.0, "an end of READY")
        assert rig.status()["state"] == "OPERATIONAL", "plates are judged, but none should come"
        assert "less than 40 MB are free" in rig.status()["problems"]["disk"]
        ballast.write_bytes(bytes(50_000_000))
        wait_until(lambda: rig.status()["state"] == "ERROR", 5.0, "ERROR")
        wait_until(lambda: rig.status()["light"] == "fault", 2.0, "FAULT")
        assert "free some" in rig.status()["problems"]["journal"]
        written = rig.status()["plates"]
        time.sleep(2.0)
        assert rig.status()["plates"] == written, "nothing is decided that cannot be recorded"
        ballast.unlink()
        wait_until(lambda: rig.status()["state"] == "OPERATIONAL", 10.0, "OPERATIONAL")
        decided = rig.status()["pass"] + rig.status()["fail"]
        wait_until(
            lambda: rig.status()["pass"] + rig.status()["fail"] > decided + 2, 10.0, "verdicts"
        )
    check_conservation(rig)
    verify_log(rig)
