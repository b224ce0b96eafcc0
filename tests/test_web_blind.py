"""What waits to be judged blind: no address of the page says how it was judged."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest
from test_web_qa import finished
from web_rig import PageClient, WebRig, web_rig

from station.qms import Store
from station.record import ReviewBody, Verdict
from station.roles import Role
from station.web.line_log import LogLook

_PARAMETER = re.compile(r"\{(\w+)(?::\w+)?\}")
_SCORE = 0.98765432
_SECRETS = (b"0.98765", b"0,98765", b"98.765", b"98,765", b"said-in-secret")


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebRig]:
    """One plate that passed and was drawn; a first review of it waits for a second person."""
    folder = tmp_path_factory.mktemp("blind")
    with web_rig(folder, plates=1, is_audit_sample=True, score=_SCORE) as rig:
        waiting = ReviewBody(
            station_id="s",
            result_id=rig.plates[0],
            written_at="2026-03-02T07:00:00.000000Z",
            verdict=Verdict.PASS,
            reviewer="ada",
            reason="confirmed",
            note="said-in-secret",
            supersedes=2,
            nonce="nonce-of-ada",
            four_eyes=(Verdict.PASS,),
            is_pending=True,
        )
        with Store(rig.station.journal) as store:
            store.append([waiting])
        yield rig


@pytest.fixture(scope="module")
def bob(rig: WebRig) -> PageClient:
    return rig.client_of(Role.ADMIN, "bob")


def test_no_address_says_how_a_waiting_sample_was_judged(rig: WebRig, bob: PageClient) -> None:
    known = {"result_id": rig.plates[0], "role": "preview"}
    told = []
    for route in rig.web.routes:
        if route.method != "GET" or route.media_type == "text/event-stream":
            continue
        path = _PARAMETER.sub(lambda found: known.get(found[1], "1"), route.path)
        content = bob.get(path).content
        told += [(path, secret) for secret in _SECRETS if secret in content]
    assert told == []
    for path in ("certificate.json", "certificate.html", "pictures/preview"):
        assert bob.get(f"/plates/{rig.plates[0]}/{path}").status_code == 403, path


def test_the_list_of_samples_shows_small_pictures_that_tell_nothing(
    rig: WebRig, bob: PageClient
) -> None:
    """The one picture that is kept whatever the verdict; never the one that was kept for it."""
    (sample,) = bob.get("/samples.json").json()["samples"]
    address = f"/plates/{rig.plates[0]}/thumbnail.jpg"
    assert sample["picture_url"] == address
    told = [one.get(address) for one in (bob, rig.client_of(Role.REVIEWER, "ada"))]
    assert [one.status_code for one in told] == [200, 200]
    assert told[0].headers["etag"] != told[1].headers["etag"]


def test_the_line_view_says_what_the_light_said_and_does_not_mark_who_was_drawn(
    rig: WebRig,
) -> None:
    found = LogLook(rig.web.configuration.value).look({"rows": 4}, None, None)
    (plate,) = found.plates
    assert (plate.verdict, plate.reviewed_verdict, plate.defects) == ("PASS", None, 0)
    assert plate.has_picture


def test_the_search_says_which_plate_it_is_to_all_and_the_rest_to_who_judged_it(
    rig: WebRig, bob: PageClient
) -> None:
    (row,) = bob.get("/plates.json").json()["rows"]
    assert (row["result_id"], row["is_blind"], row["review"]) == (rig.plates[0], True, None)
    assert not row.keys() & {"verdict", "score", "defects", "images", "threshold"}
    assert "hidden" in bob.get("/plates").text
    (seen,) = rig.client_of(Role.REVIEWER, "ada").get("/plates.json").json()["rows"]
    assert (seen["score"], seen["review"]["pending"]) == (_SCORE, True)
    assert seen["review"]["verdict"] is None, "it holds for nothing yet"


def test_an_export_leaves_out_what_waits_and_says_so(rig: WebRig, bob: PageClient) -> None:
    assert bob.send_json("/exports.json", {"format": "jsonl"}).status_code == 200
    made = finished(bob, "/exports.json", lambda page: page["exports"][0])
    assert (made["done"], made["total"]) == (0, 0)
    assert made["manifest"]["filter"] == {"without_open_samples": True}
    assert bob.get(made["file"]).content == b""
    judged = ReviewBody(
        station_id="s",
        result_id=rig.plates[0],
        verdict=Verdict.PASS,
        reviewer="eve",
        reason="confirmed",
        supersedes=4,
        nonce="nonce-of-eve",
    )
    with Store(rig.station.journal) as store:
        store.append([judged])
    (line,) = bob.get("/plates.jsonl").text.splitlines()
    assert json.loads(line)["score"] == _SCORE
    changes = {"takes_back": True, "supersedes": 5, "nonce": "nonce-of-back"}
    with Store(rig.station.journal) as store:
        store.append([judged.model_copy(update=changes)])
    assert bob.get("/plates.jsonl").content == b""
