"""A plate's certificate: checked by a script that knows nothing of this package, in an environment
that has nothing of it."""

from __future__ import annotations

import base64
import json
import random
import runpy
import subprocess
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from log_maker import LogMaker

from station.certificate import CertificateError, canonical_bytes, make_certificates
from station.log_reader import Reader
from station.qms import IMAGES
from station.record import HoldBody, ReleaseBody, Verdict
from station.signed_note import make_key

SCRIPT = Path(__file__).parents[1] / "deploy" / "check-certificate"
Json = dict[str, Any]


def checked(file: Path, key: Path, path: str = "/usr/bin:/bin") -> subprocess.CompletedProcess[str]:
    """As on another machine: no environment, no site packages, another folder."""
    return subprocess.run(
        ["env", "-i", f"PATH={path}", "python3", "-I", "-S", "-B", SCRIPT, file, key],
        capture_output=True, text=True, cwd="/", check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> LogMaker:
    """With a plate that failed, was held, and was passed by a later review."""
    maker = LogMaker(tmp_path_factory.mktemp("made") / "log", seed=5)
    maker.live(40)
    name = maker.plate(Verdict.FAIL)
    maker.review(name, Verdict.FAIL)
    maker.checkpoint()
    maker.live(30)
    maker.review(name, Verdict.PASS)
    maker.checkpoint()
    maker.close()
    return maker


@pytest.fixture(scope="module")
def name(log: LogMaker) -> str:
    """That plate's."""
    with Reader(log.directory) as reader:
        return str(list(reader.bodies("review"))[-1]["result_id"])


@pytest.fixture(scope="module")
def certificate(log: LogMaker, name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    older = next(body for body in log.checkpoints)
    with Reader(log.directory) as reader:
        folder = tmp_path_factory.mktemp("certificate")
        (made,) = make_certificates(reader, name, None, folder, since=older.note)
    assert made.notes == ()
    return made.file


def test_a_certificate_is_proven_on_a_machine_without_us(
    log: LogMaker, certificate: Path, name: str
) -> None:
    done = checked(certificate, log.directory / "proof.pub")
    assert done.returncode == 0, done.stdout + done.stderr
    first = done.stdout.splitlines()[0]
    assert first.startswith("PROVEN. As of ")
    assert name in first
    assert "review verdict PASS" in done.stdout
    assert "The log goes on from its checkpoint" in done.stdout
    said = json.loads(certificate.read_bytes())
    page = certificate.with_suffix(".html").read_text()
    body = page.split("<body>", 1)[1].lstrip()
    assert body.startswith(f'<p class="says">{said["says"]}')
    for picture in said["pictures"]:
        assert picture["sha256"] in page
        assert f"base64,{picture['data']}" in page
    assert "http" not in page, "it loads nothing"


def test_an_openssl_that_cannot_check_has_not_found_anything(
    log: LogMaker, certificate: Path, tmp_path: Path
) -> None:
    """As 1.1.1 answers, which does not know -rawin."""
    tool = tmp_path / "openssl"
    tool.write_text(
        '#!/bin/sh\ncase "$*" in *-rawin*) echo "unknown option -rawin" >&2; exit 1;; esac'
        '\nexec /usr/bin/openssl "$@"\n'
    )
    tool.chmod(0o755)
    done = checked(certificate, log.directory / "proof.pub", f"{tmp_path}:/usr/bin:/bin")
    assert done.returncode == 2, done.stdout
    assert "cannot be checked" in done.stderr
    assert "-rawin" in done.stderr
    assert "PROVEN" not in done.stdout


def test_every_plate_of_a_log_has_its_certificate(log: LogMaker, tmp_path: Path) -> None:
    """Many of them, checked in this process to be quick; removed pictures and holds among them."""
    check = runpy.run_path(str(SCRIPT))["check"]
    with Reader(log.directory) as reader:
        for number in range(1, log.plates + 1, 3):
            (made,) = make_certificates(reader, f"s-{number:08d}", None, tmp_path)
            lines = check(made.file.read_bytes(), log.directory / "proof.pub")
            assert lines[0] == f"PROVEN. {made.says}"


def test_a_hold_that_names_the_plate_comes_with_its_release(tmp_path: Path) -> None:
    maker = LogMaker(tmp_path / "log", seed=6)
    name = maker.plate(Verdict.FAIL)
    for hold_id in ("claim-1", "claim-2"):
        maker.write(
            HoldBody(**maker.said(), hold_id=hold_id, result_id=name, who="qa", why="claim")
        )
    maker.write(ReleaseBody(**maker.said(), hold_id="claim-1", who="qa", why="over"))
    maker.write(HoldBody(**maker.said(), hold_id="other", part_id="none", who="qa", why="claim"))
    maker.write(ReleaseBody(**maker.said(), hold_id="other", who="qa", why="over"))
    maker.checkpoint()
    maker.close()
    with Reader(maker.directory) as reader:
        (made,) = make_certificates(reader, name, None, tmp_path / "made")
    done = checked(made.file, maker.directory / "proof.pub")
    assert done.returncode == 0, done.stdout + done.stderr
    told = [line.split(": ", 1)[1] for line in done.stdout.splitlines() if "hold_id" in line]
    assert told == ["hold hold_id claim-1", "hold hold_id claim-2", "release hold_id claim-1"]
    assert "over" in made.page.read_text()


def test_a_serial_has_a_certificate_for_each_attempt(log: LogMaker, tmp_path: Path) -> None:
    serial = 'a "quoted",\nserial'
    with Reader(log.directory) as reader:
        made = list(make_certificates(reader, None, serial, tmp_path))
        assert len(made) > 1
        for one in made:
            said = json.loads(one.file.read_bytes())
            bodies = [json.loads(row["body"]) for row in said["rows"]]
            assert [body["part_id"] for body in bodies if body["kind"] == "result"] == [serial]
        with pytest.raises(CertificateError, match="no result of this serial"):
            list(make_certificates(reader, None, "unknown", tmp_path))
        with pytest.raises(CertificateError, match="says nothing of it"):
            list(make_certificates(reader, "s-99999999", None, tmp_path))


def test_a_certificate_as_of_an_older_checkpoint_says_so(
    log: LogMaker, name: str, tmp_path: Path
) -> None:
    older = [body.size for body in log.checkpoints][-2]
    with Reader(log.directory) as reader:
        (made,) = make_certificates(reader, name, None, tmp_path, as_of=older)
        assert made.notes
        assert "newer than the checkpoint" in made.notes[0]
        with pytest.raises(CertificateError, match="no signed checkpoint as of row 1"):
            list(make_certificates(reader, name, None, tmp_path, as_of=1))
    done = checked(made.file, log.directory / "proof.pub")
    assert done.returncode == 0
    assert f"row {older} of the log" in done.stdout
    assert "review verdict PASS" not in done.stdout


@settings(max_examples=150, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_one_altered_bit_is_found_wherever_it_is(
    certificate: Path, log: LogMaker, place: float, bit: int
) -> None:
    data = bytearray(certificate.read_bytes())
    data[int(place * len(data))] ^= 1 << bit
    with pytest.raises(Exception):  # noqa: B017  the script turns what these are into status 1
        CHECK(bytes(data), log.directory / "proof.pub")


CHECK: Callable[[bytes, Path], list[str]] = runpy.run_path(str(SCRIPT))["check"]


def without_last_review(said: Json) -> None:
    del said["rows"][-1]
    said["says"] = said["says"].replace(
        f"{len(said['rows']) + 1} rows", f"{len(said['rows'])} rows"
    )


def with_another_verdict(said: Json) -> None:
    row = next(row for row in said["rows"] if row["kind"] == "result")
    row["body"] = row["body"].replace('"FAIL"', '"PASS"')


def with_another_picture(said: Json) -> None:
    said["pictures"][0]["data"] = base64.b64encode(b"another").decode()


def with_pictures_swapped(said: Json) -> None:
    one, other = said["pictures"][:2]
    one["data"], other["data"] = other["data"], one["data"]


def without_picture(said: Json) -> None:
    said["pictures"][0]["data"] = None


def with_row_of_another(said: Json) -> None:
    said["rows"], said["context"] = said["rows"][:-1], [*said["context"], said["rows"][-1]]


def with_rows_in_another_order(said: Json) -> None:
    said["rows"].reverse()


def with_a_claim_of_its_own(said: Json) -> None:
    said["says"] = said["says"].replace("word for word", "and more")


def with_a_longer_proof(said: Json) -> None:
    said["plate"]["proof"].append("00" * 32)


def with_another_place(said: Json) -> None:
    said["plate"]["index"] += 1


def with_a_later_time(said: Json) -> None:
    said["checkpoint"] = said["checkpoint"].replace("time 2026", "time 2027")


def without_signature(said: Json) -> None:
    said["checkpoint"] = said["checkpoint"].split("\n\n")[0] + "\n\n"


def with_more_keys(said: Json) -> None:
    said["note"] = "trust me"


ALTERED = [
    without_last_review, with_another_verdict, with_another_picture, with_pictures_swapped,
    without_picture, with_row_of_another, with_rows_in_another_order, with_a_claim_of_its_own,
    with_a_longer_proof, with_another_place, with_a_later_time, without_signature, with_more_keys,
]  # fmt: skip


@pytest.mark.parametrize("alter", ALTERED, ids=lambda alter: alter.__name__)
def test_an_altered_certificate_is_not_proven(
    certificate: Path, log: LogMaker, alter: Callable[[Json], None], tmp_path: Path
) -> None:
    said = json.loads(certificate.read_bytes())
    alter(said)
    file = tmp_path / "altered.json"
    file.write_bytes(canonical_bytes(said))
    with pytest.raises(Exception):  # noqa: B017
        CHECK(file.read_bytes(), log.directory / "proof.pub")


def test_statuses_and_reasons_are_those_that_scripts_rely_on(
    certificate: Path, log: LogMaker, tmp_path: Path
) -> None:
    key = log.directory / "proof.pub"
    make_key(tmp_path / "key.pem", tmp_path / "other.pub")
    other = checked(certificate, tmp_path / "other.pub")
    assert other.returncode == 1
    assert "NOT PROVEN: the checkpoint is signed with another key" in other.stdout
    said = json.loads(certificate.read_bytes())
    without_last_review(said)
    (tmp_path / "altered.json").write_bytes(canonical_bytes(said))
    altered = checked(tmp_path / "altered.json", key)
    assert altered.returncode == 1
    assert "left out" in altered.stdout
    (tmp_path / "garbage").write_bytes(random.Random(1).randbytes(300))
    assert checked(tmp_path / "garbage", key).returncode == 1
    assert checked(certificate, tmp_path / "garbage").returncode == 1
    assert checked(tmp_path / "none", key).returncode == 2
    assert checked(certificate, tmp_path / "none").returncode == 2


def test_what_is_not_signed_or_was_changed_gets_no_certificate(tmp_path: Path) -> None:
    maker = LogMaker(tmp_path / "log", seed=2, is_signed=False)
    name = maker.plate(Verdict.FAIL)
    maker.checkpoint()
    maker.close()
    with (
        Reader(maker.directory) as reader,
        pytest.raises(CertificateError, match="no signed checkpoint"),
    ):
        list(make_certificates(reader, name, None, tmp_path / "out"))


def test_a_lost_picture_is_said_when_it_is_made_and_not_proven(tmp_path: Path) -> None:
    maker = LogMaker(tmp_path / "log", seed=2)
    name = maker.plate(Verdict.FAIL)
    maker.checkpoint()
    maker.close()
    next((maker.directory / IMAGES).glob("*/*")).unlink()
    with Reader(maker.directory) as reader:
        (made,) = make_certificates(reader, name, None, tmp_path / "out")
    assert "no tombstone" in made.notes[0]
    done = checked(made.file, maker.directory / "proof.pub")
    assert done.returncode == 1
    assert "is missing" in done.stdout


def test_a_picture_that_a_rule_removed_since_asks_for_another_checkpoint(tmp_path: Path) -> None:
    maker = LogMaker(tmp_path / "log", seed=2)
    name = maker.plate(Verdict.FAIL)
    maker.checkpoint()
    maker.now += timedelta(days=60)
    maker.remove()
    with Reader(maker.directory) as reader:
        (made,) = make_certificates(reader, name, None, tmp_path / "out")
        assert any("removed since the checkpoint" in note for note in made.notes)
    assert checked(made.file, maker.directory / "proof.pub").returncode == 1
    maker.checkpoint()
    maker.close()
    with Reader(maker.directory) as reader:
        (made,) = make_certificates(reader, name, None, tmp_path / "out")
    assert made.notes == ()
    done = checked(made.file, maker.directory / "proof.pub")
    assert "0 pictures are those of the rows; 2 were removed by a rule." in done.stdout
