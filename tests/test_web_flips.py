"""Comparisons of models on the page: flips with their pictures, signed with the session; over a
real log and a real journal process."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from test_compare import compared
from test_web_judge import LastAnswer, take_away
from web_rig import WebRig, running_journal, web_rig

from station.comparisons import SIGNED, Comparison, register
from station.ipc import connect
from station.journal_client import JournalClient, journal_path
from station.log_reader import Reader
from station.qms import Store
from station.record import ChangeBody
from station.roles import Role

SHA = "c" * 64


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebRig]:
    with web_rig(tmp_path_factory.mktemp("flips")) as rig, running_journal(rig.station):
        row = compared(0)
        names = [rig.plates[1], rig.plates[5]]
        row["detail"] |= {"to_sign": json.dumps(names), "confirmed": json.dumps(names[:1])}
        connect(journal_path(rig.station.runtime), 10.0).close()
        submit(rig, row)
        yield rig


def submit(rig: WebRig, row: dict[str, Any]) -> None:
    client = JournalClient(rig.station.runtime)
    client.connect(10.0)
    answer = client.submit([ChangeBody.model_validate(row)])
    client.close()
    assert answer["ok"], answer


def test_flips_are_shown_with_pictures_and_signed_by_who_signed_in(rig: WebRig) -> None:
    risky, other = rig.plates[1], rig.plates[5]
    reviewer, viewer = rig.client_of(Role.REVIEWER, "ann"), rig.client_of(Role.VIEWER)
    (listed,) = viewer.get("/engineer/models.json").json()["comparisons"]
    assert (listed["to_sign"], listed["unsigned"], listed["is_complete"]) == (2, 2, False)
    assert SHA[:12] in viewer.get("/engineer/models").text

    page = reviewer.get(f"/engineer/models/{SHA}")
    assert page.status_code == 200
    assert page.text.index(risky) < page.text.index(other), "in order of risk"
    picture = f"/plates/{risky}/pictures/preview"
    assert picture in page.text
    assert reviewer.get(picture).headers["content-type"] == "image/jpeg"
    assert f"{SHA}/sign" in page.text
    assert f"{SHA}/sign" not in viewer.get(f"/engineer/models/{SHA}").text
    shown = viewer.get(f"/engineer/models/{SHA}.json?sample=true").json()
    assert [flip["result_id"] for flip in shown["flips"]] == [other], "never what was confirmed"
    assert shown["flips"][0]["part_id"] == "LGP-0006"

    address = f"/engineer/models/{SHA}/sign"
    said = {"reason": "a scratch below  the limit"}
    assert viewer.send_form(address, result_id=risky, **said).status_code == 403
    assert reviewer.send_form(address, result_id=risky).status_code == 422, "without a reason"
    refused = reviewer.send_form(address, result_id=rig.plates[0], **said)
    assert refused.status_code == 409
    assert "not among the flips" in refused.text
    assert reviewer.send_form(address, sample=9, **said).status_code == 409

    answer = reviewer.send_form(address, result_id=risky, opinion="escape", **said)
    assert answer.status_code == 303
    assert answer.headers["location"] == f"/engineer/models/{SHA}"
    answer = reviewer.send_form(address, sample=1, **said)
    assert answer.status_code == 303
    escape = viewer.get(f"/engineer/models/{SHA}.json").json()["flips"][0]
    seen = {**said, "seen": escape["at"]}
    assert f'name="seen" value="{escape["at"]}"' in reviewer.get(f"/engineer/models/{SHA}").text
    again = reviewer.send_form(address, result_id=risky, **seen)
    assert again.status_code == 409
    assert "another person" in again.text
    second = rig.client_of(Role.REVIEWER, "bob")
    unseen = second.send_form(address, result_id=risky, **said)
    assert unseen.status_code == 409, "of a page on which nobody had called it an escape yet"
    assert "meanwhile" in unseen.text
    assert second.send_form(address, result_id=risky, **seen).status_code == 303

    shown = viewer.get(f"/engineer/models/{SHA}.json").json()
    assert shown["comparison"]["is_complete"]
    assert [flip["who"] for flip in shown["flips"]] == ["bob", "ann"]
    with Reader(rig.station.journal) as reader:
        rows = [row for row in reader.comparison_changes() if row["what"] == SIGNED]
        assert register(reader.comparison_changes()).known[SHA].is_complete
    assert [row["who"] for row in rows] == ["ann", "ann", "bob"]
    assert rows[0]["detail"]["reason"] == "a scratch below the limit"


def test_a_comparison_that_is_none_is_not_found(rig: WebRig) -> None:
    client = rig.client_of(Role.ADMIN)
    for name in ("d" * 64, "c", "../../etc", "x" * 500):
        assert client.get(f"/engineer/models/{name}").status_code == 404
    assert client.get(f"/engineer/models/{SHA}?start=999999").status_code == 200
    assert client.get(f"/engineer/models/{SHA}?start=-5").status_code == 200


def test_a_sample_is_signed_where_all_of_it_was_shown(rig: WebRig) -> None:
    """Its pages are of the sample, and only the last has the form."""
    submit(rig, compared(80, sha="e" * 64))
    ann, address = rig.client_of(Role.REVIEWER, "ann"), f"/engineer/models/{'e' * 64}"
    sample = register_of(rig, "e" * 64).sample(59)
    following, shown = f"{address}?sample=true", list[str]()
    while following:
        page = ann.get(following).text
        shown += re.findall(r'<section class="card" id="(.+?)">', page)
        next_page = re.search(rf'href="({address}\?[^"]*start={len(shown)})"', page)
        following = next_page[1].replace("&amp;", "&") if next_page else ""
        assert ('name="sample" value="59"' in page) == (not following)
    assert tuple(shown) == sample
    assert 'name="sample"' not in ann.get(address).text


def test_what_was_signed_stays_so_where_the_log_cannot_be_read(tmp_path: Path) -> None:
    with web_rig(tmp_path, plates=2) as line:
        with Store(line.station.journal) as store:
            store.append([ChangeBody.model_validate(compared(2))])
        said = {"result_id": "s-00000000", "reason": "within the limit"}
        with closing(LastAnswer(line, {"ok": True, "seq": [7]}, take_away)):
            answer = line.client_of(Role.REVIEWER, "ann").send_json(
                f"/engineer/models/{SHA}/sign.json", said
            )
        assert answer.status_code == 200, answer.text
        assert (answer.json()["row"], answer.json()["is_complete"]) == (7, None)


def register_of(rig: WebRig, sha256: str) -> Comparison:
    with Reader(rig.station.journal) as reader:
        return register(reader.comparison_changes()).known[sha256]
