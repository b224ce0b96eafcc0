"""The archive for support: of a station that ran, of a broken one, on a full disk."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import pytest
from station_rig import Json, Rig
from test_qms import result

from station.doctor import (
    PART_NAMES,
    Archive,
    Part,
    Wanted,
    _gather,
    examine,
    without_people,
    write_archive,
)
from station.qms import Store
from station.record import (
    ChangeBody,
    HoldBody,
    Identity,
    ImageBody,
    RestoredBody,
    ReviewBody,
    SerialBody,
    Verdict,
)

SECRET = "Sw0rdfish-42"
PEOPLES_WORDS = "Max of Acme complained"
PICTURE = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 4
_SHA256 = hashlib.sha256(PICTURE).hexdigest()
PICTURE_PATH = f"{_SHA256[:2]}/{_SHA256}.png"
QUICK = PART_NAMES - {"check.txt", "verify.txt"}
"""What takes no process that loads the network."""


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Rig:
    """A log with a picture, people, a serial and a secret."""
    rig = Rig(tmp_path_factory.mktemp("doctor"))
    rig.write()
    detail = {
        "broker_password": SECRET,
        "why": f"opc.tcp://plc:{SECRET}@10.0.0.1/",
        "note": PEOPLES_WORDS,
        "report_sha256": "ab" * 32,
    }
    change = ChangeBody(station_id="s", what="x", who="Erika Muster", detail=detail)
    image = ImageBody(
        role="evidence",
        path=PICTURE_PATH,
        sha256=_SHA256,
        bytes=len(PICTURE),
        width_px=1,
        height_px=1,
    )
    given = {"part_id": "LGP-0815", "serials": ("LGP-0815", "LGP-0816"), "job_id": "LOT-4711"}
    plate = result(1, Verdict.FAIL, images=(image,), operator="Erika Muster", **given)
    signed_on = ChangeBody(station_id="s", what="lot", who="Kim", detail={"value": "4711"})
    stray = SerialBody(
        station_id="s", serial="LGP-0816", source=Identity.PLC, why="unclaimed", read_ns=1
    )
    review = ReviewBody(
        station_id="s",
        result_id=plate.result_id,
        verdict=Verdict.PASS,
        reviewer="Erika Muster",
        reason="as Max said",
    )
    hold = HoldBody(station_id="s", hold_id="h-1", lot="LOT-4711", who="Kim", why=PEOPLES_WORDS)
    restored = RestoredBody(
        station_id="s", generation="g", copy_rows=9, copy_chain_sha256="ab" * 32, plant_rows=0,
        sequence=9, who="Kim", why=PEOPLES_WORDS,
    )  # fmt: skip
    with Store(rig.journal) as store:
        store.append([change, plate, review, hold, signed_on, stray, restored])
    picture = rig.journal / "images" / PICTURE_PATH
    picture.parent.mkdir(parents=True, exist_ok=True)
    picture.write_bytes(PICTURE)
    return rig


def members(data: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        found = {}
        for member in tar.getmembers():
            file = tar.extractfile(member)
            assert file is not None
            found[member.name.removeprefix("vqi-doctor/")] = file.read()
        return found


def manifest(found: dict[str, bytes]) -> Json:
    said: Json = json.loads(found["manifest.json"])
    return said


def doctor(*arguments: str, folder: Path) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "station.cli", "doctor", *arguments],
        capture_output=True,
        cwd=folder,
        timeout=120.0,
        check=False,
    )


def test_everything_of_a_dead_station_without_secrets_or_pictures(rig: Rig) -> None:
    config = rig.folder / "station.toml"
    done = doctor("--config", str(config), "--json", folder=rig.folder)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    path = rig.folder / said["archive"]
    assert path.stat().st_mode & 0o077 == 0
    found = members(path.read_bytes())
    told = manifest(found)
    assert {item["name"] for item in told["in"]} == set(found) - {"manifest.json"}
    assert set(found) | {item["what"] for item in told["left_out"]} > PART_NAMES
    wanted = {"versions.json", "configuration.txt", "recipe.toml", "check.txt", "verify.txt",
              "status.json", "disk.txt", "sqlite.json", "rows.jsonl", "devices.json"}  # fmt: skip
    assert wanted <= set(found)
    assert b"nobody listens" in found["status.json"]
    assert b"ok    journal" in found["check.txt"]
    whole = b"".join(found.values())
    hidden_texts = (SECRET.encode(), b"Erika", b"as Max said", b"LGP-081", b'"4711"')
    for hidden in (*hidden_texts, PICTURE[:64], PICTURE[100:164]):
        assert hidden not in whole
    path.unlink()


def test_pseudonyms_hold_within_one_archive_only(rig: Rig) -> None:
    first, second = (rows(examine(str(rig.folder / "station.toml"), Wanted(), QUICK).close())
                     for _ in "12")  # fmt: skip
    names = [row.get("who") or row.get("reviewer") for row in first]
    assert names[0] == names[2]
    assert str(names[0]).startswith("p-")
    assert names[0] != second[0]["who"]


def rows(data: bytes) -> list[Json]:
    return [json.loads(line) for line in members(data)["rows.jsonl"].splitlines()]


def test_peoples_words_and_recipes_comments_stay_here(rig: Rig) -> None:
    config = str(rig.folder / "station.toml")
    found = members(examine(config, Wanted(), QUICK).close())
    whole = b"".join(found.values())
    for hidden in (PEOPLES_WORDS.encode(), b"Acme", b"Kim", b"LOT-4711"):
        assert hidden not in whole
    assert b"ab" * 32 in found["rows.jsonl"]
    assert f"[{len(PEOPLES_WORDS)} characters left out]".encode() in found["rows.jsonl"]
    assert b"#" not in found["recipe.toml"]
    assert b"[plate]" in found["recipe.toml"]


@pytest.mark.skipif(shutil.which("ps") is None, reason="no ps here: apt-get install procps")
def test_commands_of_others_are_not_told_and_ours_are(rig: Rig) -> None:
    config = str(rig.folder / "station.toml")
    ours = ("-m", "station.cli", "--nothing-of-this-name")
    for arguments, is_told in ((("other", SECRET[::-1]), False), (ours, True)):
        code = "import time; time.sleep(60)"
        process = subprocess.Popen([sys.executable, "-c", code, *arguments])
        try:
            archive = examine(config, Wanted(), frozenset({"processes.txt"}))
            said = members(archive.close())["processes.txt"].decode()
        finally:
            process.kill()
            process.wait()
        assert str(process.pid) in said
        assert (arguments[-1] in said) == is_told


def test_what_is_asked_for_is_in(rig: Rig) -> None:
    config = str(rig.folder / "station.toml")
    found = members(examine(config, Wanted(has_secrets=True), QUICK).close())
    assert SECRET.encode() in found["rows.jsonl"]
    assert b"Erika Muster" in found["rows.jsonl"]
    assert manifest(found)["with_secrets"] is True


def test_pictures_of_the_last_plates_are_in_where_asked_for(rig: Rig) -> None:
    config = str(rig.folder / "station.toml")
    found = members(examine(config, Wanted(has_pictures=True), QUICK).close())
    assert found[f"pictures/{PICTURE_PATH}"] == PICTURE
    assert b"Erika" not in found["rows.jsonl"]


@pytest.mark.parametrize(
    "broken",
    [
        f'[broker]\npassword = "{SECRET}"\n',
        f'[broker\npassword = "{SECRET}"  # {SECRET}\nurl = "opc.tcp://a:{SECRET}@b/"\n',
        f'[broker]\n# the password is {SECRET}\ntoken = """\n{SECRET}\n"""\n',
    ],
)
def test_a_broken_configuration_is_told_without_its_secrets(
    rig: Rig, tmp_path: Path, broken: str
) -> None:
    config = tmp_path / "broken.toml"
    config.write_text((rig.folder / "station.toml").read_text() + broken)
    found = members(examine(str(config), Wanted(), QUICK).close())
    assert SECRET.encode() not in b"".join(found.values())
    assert b"line-scan" not in found["configuration.txt"]
    problem = b"unknown key" if b"not valid TOML" not in found["configuration.txt"] else b"TOML"
    assert problem in found["configuration.txt"]
    if problem == b"unknown key":  # it is TOML, so that the log can be found
        assert "rows.jsonl" in found


def test_a_part_that_nobody_waits_for_any_more_adds_nothing() -> None:
    """A thread that a slow disk let go at last must not write into a finished archive."""
    goes_on, is_done = threading.Event(), threading.Event()

    def gather(part: Part) -> str:
        part.files.append(("pictures/early", b"x"))
        goes_on.wait(30.0)
        part.files.append(("pictures/late", b"y"))
        is_done.set()
        return "late"

    archive = Archive(Wanted())
    _gather(archive, "slow.txt", gather, limit_s=0.1)
    goes_on.set()
    assert is_done.wait(30.0)
    found = members(archive.close())
    assert set(found) == {"manifest.json"}
    assert manifest(found)["left_out"] == [{"what": "slow.txt", "why": "it took longer than 0.1 s"}]


def test_no_configuration_at_all(tmp_path: Path) -> None:
    for source in (None, str(tmp_path / "none.toml")):
        found = members(examine(source, Wanted(), QUICK).close())
        assert "versions.json" in found
        assert {item["what"] for item in manifest(found)["left_out"]} >= {"rows.jsonl"}


def test_a_part_that_fails_is_named_and_the_rest_is_there(rig: Rig, tmp_path: Path) -> None:
    """A log that is no database."""
    other = tmp_path / "journal"
    other.mkdir()
    (other / "journal.db").write_bytes(b"not a database" * 100)
    config = tmp_path / "station.toml"
    text = (rig.folder / "station.toml").read_text().replace(str(rig.journal), str(other))
    config.write_text(text)
    found = members(examine(str(config), Wanted(), QUICK).close())
    why = {item["what"]: item["why"] for item in manifest(found)["left_out"]}
    assert "not a database" in why["rows.jsonl"]
    assert "not a database" in why["sqlite.json"]
    assert "disk.txt" in found


def test_a_full_disk_sends_it_elsewhere(small_disk: Path) -> None:
    with contextlib.suppress(OSError), (small_disk / "full").open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 65536)
    path, problem = write_archive(b"y" * 200_000, small_disk / "vqi-doctor-test.tar.gz")
    try:
        assert path.parent != small_disk
        assert path.read_bytes() == b"y" * 200_000
        assert "No space left" in problem
        assert not (small_disk / "vqi-doctor-test.tar.gz").exists()
    finally:
        path.unlink()


def test_it_goes_to_stdout(tmp_path: Path) -> None:
    """With nothing to find it is quick."""
    done = doctor("--config", str(tmp_path / "none.toml"), "--out", "-", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "versions.json" in members(done.stdout)
    assert not list(tmp_path.iterdir())


def test_lines_of_the_log_say_nobodys_name() -> None:
    line = '{"event": "signed in", "person": "Erika \\"E\\" Muster", "address": "10.0.0.7", "n": 1}'
    said = without_people(line)
    assert "Erika" not in said
    assert "Muster" not in said
    assert "10.0.0.7" not in said
    assert json.loads(said)["n"] == 1
    assert "ada" not in without_people('{"event": "action", "path": "/x", "who": "ada"}')
