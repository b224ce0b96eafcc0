"""The page's common ground: who may call it how, what no answer lacks, what an error looks like."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from sqlalchemy import text
from station_rig import Rig, children, vqi
from web_rig import WebRig, damage, running_journal, running_web, until, web_rig

from station.config import ConfigError, WebSettings, load_configuration
from station.record import ChangeBody, ReviewBody, Verdict
from station.reviews import last_judged
from station.roles import ANONYMOUS, Person, Role
from station.web.certificates import (
    TlsFiles,
    certificate_at,
    make_certificate,
    tls_context,
    tls_files,
)
from station.web.errors import PageError
from station.web.live import Live
from station.web.pages import json_path
from station.web.server import refusal, serve


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebRig]:
    with web_rig(tmp_path_factory.mktemp("web")) as rig:
        yield rig


def test_a_page_that_there_is_not_says_so_in_three_languages(rig: WebRig) -> None:
    client = rig.client()
    said = {
        language: client.get("/nothing", headers={"accept-language": language})
        for language in ("en", "de-AT,de;q=0.9", "zh-CN")
    }
    assert {answer.status_code for answer in said.values()} == {404}
    for answer, words in zip(
        said.values(), ("no such page", "Diese Seite gibt es nicht", "没有这个页面"), strict=True
    ):
        assert words in answer.text
        assert answer.headers["x-request-id"] in answer.text


def test_the_language_is_switched_for_this_browser(rig: WebRig) -> None:
    client = rig.client()
    done = client.send_form("/language", language="de", back="/nothing?a=1")
    assert (done.status_code, done.headers["location"]) == (303, "/nothing?a=1")
    assert "Diese Seite gibt es nicht" in client.get("/nothing").text


def test_an_action_wants_the_pages_own_origin_and_token(rig: WebRig) -> None:
    client = rig.client()
    token = client.token()
    form = {"csrf": token, "language": "de"}
    for headers, fields in (
        ({"origin": "https://evil.example"}, form),
        ({}, form),
        ({"origin": rig.url}, {**form, "csrf": "0" * 64}),
        ({"origin": rig.url}, {"language": "de"}),
    ):
        assert client.post("/language", data=fields, headers=headers).status_code == 403
    other = rig.client()
    other.token()
    stolen = other.post("/language", data=form, headers={"origin": rig.url})
    assert stolen.status_code == 403


def test_another_name_that_leads_here_is_not_answered(rig: WebRig) -> None:
    answer = httpx.get(f"{rig.url}/health", headers={"host": "evil.example"})
    assert answer.status_code == 421


def test_a_row_is_committed_and_says_who(rig: WebRig) -> None:
    with running_journal(rig.station):
        with rig.web.reader() as reader:
            last = reader.of_result(rig.plates[1])[0]["seq"]
        who = Person("ada", "Ada", Role.REVIEWER)
        said = {"station_id": "s", "result_id": rig.plates[1], "verdict": Verdict.PASS}
        row = ReviewBody(**said, reviewer="ada", reason="dirt", supersedes=last, nonce="n" * 16)
        numbers = rig.web.submit([row], who)
        assert rig.web.submit([row], who) == numbers, "sent again it is the same row"
    with pytest.raises(PageError, match="journal_away"):
        rig.web.submit([row], who)


def test_a_question_that_takes_too_long_is_given_up(rig: WebRig) -> None:
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"
    asked = {
        "ask": lambda reader: reader.ask(text(endless)),
        "query": lambda reader: reader.query(text(endless), {}).all(),
        "tuples": lambda reader: reader.tuples(endless, {}),
    }
    for question in asked.values():
        with pytest.raises(PageError, match="too_long") as found, rig.web.reader(0.05) as reader:
            question(reader)
        assert found.value.status == 503


def test_a_page_without_a_log_says_since_when(tmp_path: Path) -> None:
    with web_rig(tmp_path, plates=2) as rig:
        with rig.web.reader() as reader:
            assert reader.last_seq() > 0
        rig.station.journal.rename(tmp_path / "away")
        with pytest.raises(PageError, match="no_log_since") as found, rig.web.reader():
            pass
        assert found.value.status == 503
        assert found.value.values["since"] == rig.web.log_seen_at
        assert str(tmp_path) not in str(found.value), "where files lie is in the page's log"


def test_every_page_says_that_a_damaged_log_cannot_be_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with web_rig(tmp_path, plates=4) as rig:
        client, of_plate = rig.client(), f"/plates/{rig.plates[1]}"
        pages = [of_plate, f"{of_plate}/judge", "/plates", "/open", "/samples"]
        pages += ["/pareto", "/quality", "/proof"]
        assert {client.get(json_path(page)).status_code for page in pages} == {200}
        read_at = rig.web.log_seen_at
        damage(rig.station.journal)
        for page in pages:
            answer = client.get(json_path(page))
            assert (answer.status_code, answer.json()["key"]) == (503, "errors.no_log_since"), page
        assert rig.web.log_seen_at == read_at, "that it opens is no answer"
        assert client.get("/plates.csv").status_code == 503
        shown = client.get(of_plate, headers={"accept-language": "en"})
        assert "The log cannot be read" in shown.text
        assert "database disk image is malformed" in caplog.text
        rig.web.log_seen_at = None
        begun = client.get(of_plate, headers={"accept-language": "en"})
        assert "There is no log that can be read" in begun.text


def test_no_row_is_sent_in_another_persons_name(rig: WebRig) -> None:
    row = ChangeBody(station_id="s", what="recipe_activated", who="grace")
    for who in (Person("ada", "Ada", Role.ADMIN), ANONYMOUS):
        with pytest.raises(ValueError, match="grace"):
            rig.web.submit([row], who)


@pytest.mark.long
def test_a_review_sent_while_the_journal_dies_is_one_row_or_clearly_none(tmp_path: Path) -> None:
    ada = Person("ada", "Ada", Role.REVIEWER)
    with web_rig(tmp_path, plates=8) as rig:
        rig.station.write()
        answered: dict[str, list[int]] = {}

        def judge() -> None:
            for number, plate in enumerate(rig.plates * 3):
                with rig.web.reader() as reader:
                    rows = reader.of_result(plate)
                said = {"station_id": "s", "result_id": plate, "verdict": Verdict.PASS}
                said |= {"reviewer": "ada", "reason": "dirt", "nonce": f"nonce-{number:04d}"}
                row = ReviewBody.model_validate({**said, "supersedes": last_judged(rows)})
                answered[row.nonce] = rig.web.submit([row], ada)

        judging = threading.Thread(target=judge, daemon=True)
        for turn in range(4):
            with running_journal(rig.station) as journal:
                if turn == 0:
                    judging.start()
                before = len(answered)
                until(lambda before=before: len(answered) > before + 2, "reviews")  # type: ignore[misc]
                if turn == 3:
                    judging.join(60.0)
                else:
                    journal.kill()
        written = {row["nonce"]: row for row in rig.station.rows("review")}
        assert len(answered) == len(written) == len(rig.station.rows("review")) == 24


WELL = {"state": "OPERATIONAL", "tick_age_s": 0.1, "waiting_s": 0.0, "verdict_age_s": 2.5}


def test_health_is_the_age_of_the_last_durable_verdict_and_all_workers(rig: WebRig) -> None:
    well = Live(station=WELL, lamp={"pid": 1}, journal={"pid": 2}, is_stale=False)
    for live, said in (
        (replace(well, lamp=None), "lamp: does not answer"),
        (replace(well, journal=None), "journal: does not answer"),
        (replace(well, station=None), "station: does not answer"),
        (replace(well, station={**WELL, "waiting_s": 31.0}), "without a durable verdict"),
        (replace(well, station={**WELL, "tick_age_s": 3.0}), "no tick"),
        (replace(well, is_stale=True), "what follows is old"),
    ):
        rig.live.live = live
        answer = rig.client().get("/health")
        assert answer.status_code == 503
        assert said in " ".join(answer.json()["problems"])
    rig.live.live = well
    answer = rig.client().get("/health")
    assert (answer.status_code, answer.json()["last_verdict_age_s"]) == (200, 2.5)


# --- the process ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("web", "said"),
    [
        ('host = "0.0.0.0"', "--make-certificate"),
        ('host = "0.0.0.0"\ntls_cert_file = "a"', "belong together"),
        ('public_url = "http://vqi.plant"', "https://"),
        ('public_url = "https://vqi.plant/page"', "public_url"),
        ('languages = ["fr"]', "languages"),
        ('allowed_hosts = ["http://a"]', "allowed_hosts"),
    ],
)
def test_what_must_not_be_shown_is_refused_with_what_to_do(
    tmp_path: Path, web: str, said: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        load_configuration(str(Rig(tmp_path, tables=f"[web]\n{web}\n").write()))


def test_others_reach_no_page_at_which_nobody_can_sign_in() -> None:
    files = {"tls_cert_file": "cert.pem", "tls_key_file": "key.pem"}
    for given in (
        {"host": "0.0.0.0", **files},
        {"public_url": "https://vqi.plant"},
    ):
        settings = WebSettings.model_validate(given)
        assert "vqi user add" in refusal(settings, has_users=False)
        assert not refusal(settings, has_users=True)
    assert not refusal(WebSettings(), has_users=False)
    assert not refusal(WebSettings.model_validate(files), has_users=False)


def test_certificates_that_cannot_serve_are_named(tmp_path: Path) -> None:
    make_certificate(tmp_path / "a", [], datetime.now(UTC))
    make_certificate(tmp_path / "b", [], datetime.now(UTC))
    for cert, key, said in (
        (tmp_path / "none.pem", tmp_path / "a" / "key.pem", "cannot be read"),
        (tmp_path / "a" / "cert.pem", tmp_path / "b" / "key.pem", "do not serve"),
        (tmp_path / "a" / "key.pem", tmp_path / "a" / "key.pem", "do not serve"),
    ):
        with pytest.raises(ConfigError, match=said):
            tls_files(WebSettings(tls_cert_file=cert, tls_key_file=key))
    made = tmp_path / "a" / "cert.pem"
    served = certificate_at(made)
    assert not served.warning(datetime.now(UTC))
    assert f"{made} ends on" in served.warning(datetime.now(UTC) + timedelta(days=800))


def test_files_without_a_folder_are_the_units_credentials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_certificate(tmp_path, [], datetime.now(UTC))
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    found = tls_files(WebSettings(tls_cert_file=Path("cert.pem"), tls_key_file=Path("key.pem")))
    assert found == TlsFiles(tmp_path / "cert.pem", tmp_path / "key.pem")


def test_a_port_that_is_taken_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        config = Rig(tmp_path, tables=f"[web]\nport = {port}\n").write()
        assert serve(load_configuration(str(config)), print) == 78
    assert f"port {port} cannot be listened at: Address already in use" in caplog.text


@pytest.mark.parametrize(("left_days", "verb"), [(10, "ends"), (-1, "has ended")])
def test_a_certificate_that_ends_is_told_in_health_and_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, left_days: int, verb: str
) -> None:
    folder = tmp_path / "tls"
    make_certificate(folder, [], datetime.now(UTC) - timedelta(days=825 - left_days))
    lines = f'tls_cert_file = "{folder}/cert.pem"\ntls_key_file = "{folder}/key.pem"'
    with web_rig(tmp_path, plates=0, web_lines=lines) as rig:
        answer = httpx.get(f"{rig.url}/health", verify=False)
    assert f"{folder}/cert.pem {verb} on" in answer.json()["certificate"]
    is_problem = any(str(folder) in one for one in answer.json()["problems"])
    assert is_problem == (left_days < 0)
    assert f"{folder}/cert.pem {verb} on" in caplog.text


def test_tls_is_1_2_or_later_whatever_openssl_is_set_to(tmp_path: Path) -> None:
    make_certificate(tmp_path, [], datetime.now(UTC))
    context = tls_context(TlsFiles(tmp_path / "cert.pem", tmp_path / "key.pem"))
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2


def test_a_self_made_certificate_serves_under_the_machines_names(tmp_path: Path) -> None:
    made = vqi(
        "web", "--make-certificate", str(tmp_path / "tls"), "--name", "line-1.plant", "--json"
    )
    files = json.loads(made.stdout)
    assert Path(files["tls_key_file"]).stat().st_mode & 0o777 == 0o600
    with pytest.raises(FileExistsError):
        make_certificate(tmp_path / "tls", [], datetime.now(UTC))
    keys = "".join(f'{key} = "{files[key]}"\n' for key in ("tls_cert_file", "tls_key_file"))
    hosts = 'allowed_hosts = ["line-1.plant"]\nport = 0\n'
    config = Rig(tmp_path, tables=f"[web]\n{keys}{hosts}").write()
    context = ssl.create_default_context(cafile=files["tls_cert_file"])
    with running_web(config) as (url, _), httpx.Client(verify=context) as client:
        answer = client.get(f"{url}/nothing")
        assert answer.status_code == 404
        assert answer.headers["strict-transport-security"]
        cookie = answer.headers["set-cookie"]
        assert cookie.startswith("__Host-vqi-visit=")
        assert {"Secure", "HttpOnly", "SameSite=strict", "Path=/"} <= set(cookie.split("; "))
        named = client.get(f"{url}/nothing", headers={"host": "line-1.plant"})
        assert named.status_code == 404, "by a name that the configuration allows"
        with client.stream("GET", url) as held:
            stream = held.extensions["network_stream"]
            shown = stream.get_extra_info("ssl_object").getpeercert()
    assert ("DNS", "line-1.plant") in shown["subjectAltName"]


@pytest.mark.long
def test_a_run_shows_the_page_says_where_and_replaces_it(tmp_path: Path) -> None:
    rig = Rig(tmp_path, tables="[web]\nport = 0\n")
    config = str(rig.write())
    command = [sys.executable, "-P", "-m", "station.cli", "run", "--config", config, "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout is not None
    try:
        first = next(url for line in process.stdout if (url := json.loads(line).get("web")))
        assert httpx.get(f"{first}health").status_code in (200, 503)
        os.kill(children(process.pid)["web"], signal.SIGKILL)
        second = next(url for line in process.stdout if (url := json.loads(line).get("web")))
        assert httpx.get(f"{second}health").status_code in (200, 503)
        assert rig.status()["state"] == "OPERATIONAL"
    finally:
        process.terminate()
        process.stdout.read()
        process.stdout.close()
        assert process.wait(30.0) == 0
    assert not rig.rows("downtime")[1:], "the station ran on"
