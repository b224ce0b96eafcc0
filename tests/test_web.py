"""The page's common ground: who may call it how, what no answer lacks, what an error looks like."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from web_rig import WebRig, running_journal, web_rig

from station.record import ReviewBody, Verdict
from station.web.errors import PageError
from station.web.roles import Person, Role


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
    for answer, text in zip(
        said.values(), ("no such page", "Diese Seite gibt es nicht", "没有这个页面"), strict=True
    ):
        assert text in answer.text
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
