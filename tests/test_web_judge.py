"""Judging on the page, over a real journal process: committed once, or clearly not; done by who
may, and blind where it must be."""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
import signal
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from test_qms import result
from web_rig import STATION, PageClient, WebRig, damage, running_journal, until, web_rig

from station import open_plates
from station.ipc import Channel, Listener, PeerGone, connect
from station.journal_client import JournalClient, journal_path
from station.log_reader import Reader
from station.log_verify import verify
from station.qms import DATABASE
from station.record import ReviewBody, Verdict
from station.roles import Person, Role
from station.web import judge
from station.web.blind import is_blind
from station.web.errors import PageError

Json = dict[str, Any]
FAIL, PASS, UNDECIDED = Verdict.FAIL, Verdict.PASS, Verdict.UNDECIDED
BOX = {"x_px": 1, "y_px": 2, "w_px": 3, "h_px": 4, "x_mm": 1.0, "y_mm": 2.0, "score": 0.75}
_numbers = itertools.count(100)


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebRig]:
    with web_rig(tmp_path_factory.mktemp("judge"), plates=4) as rig:
        yield rig


@pytest.fixture(scope="module")
def journal(rig: WebRig) -> Iterator[None]:
    with running_journal(rig.station):
        yield


@pytest.fixture
def ada(rig: WebRig, journal: None) -> PageClient:
    return rig.client_of(Role.REVIEWER, "ada")


@pytest.fixture
def bob(rig: WebRig, journal: None) -> PageClient:
    return rig.client_of(Role.REVIEWER, "bob")


@contextlib.contextmanager
def four_eyes(rig: WebRig) -> Iterator[None]:
    """The recipe in force asks two people to pass what failed."""
    rig.station.recipe_lines = '[review]\nfour_eyes = ["FAIL"]\n'
    rig.station.write()
    yield
    rig.station.recipe_lines = ""
    rig.station.write()


def new_plate(rig: WebRig, verdict: Verdict = FAIL, **changes: Any) -> str:
    """Another plate of the line, written by its journal process."""
    number = next(_numbers)
    given: Json = {"reason": "skewed" if verdict is UNDECIDED else None}
    given["defects"] = [BOX] if verdict is FAIL else []
    row = result(number, verdict, **{**given, **changes})
    client = JournalClient(rig.station.runtime)
    with contextlib.closing(client):
        client.connect(10.0)
        assert client.submit([row])["ok"]
    return row.result_id


def panel(client: PageClient, plate: str) -> Json:
    found: Json = client.get(f"/plates/{plate}/judge.json").json()["judge"]
    return found


def said(seen: Json, verdict: str = "FAIL", **changes: Any) -> Json:
    """A review of who saw this panel."""
    plain = {"verdict": verdict, "reason": "confirmed", "disposition": "removed"}
    version = {name: seen[name] for name in ("supersedes", "nonce")}
    return {**plain, **version, **changes}


def touch(client: PageClient, plate: str, offer: Json, seen: Json) -> httpx.Response:
    """The button of an offer, as the script sends it."""
    names = ("verdict", "disposition", "reason", "note", "takes_back")
    return client.send_json(
        f"/plates/{plate}/review.json", said(seen, **{name: offer[name] for name in names})
    )


def reviews(rig: WebRig, plate: str) -> list[Json]:
    with Reader(rig.station.journal) as reader:
        return [row for row in reader.of_result(plate) if row["kind"] == "review"]


def open_ids(client: PageClient, state: str = "open") -> list[str]:
    return [one["result_id"] for one in client.get(f"/open.json?state={state}").json()["plates"]]


# --- one touch ------------------------------------------------------------------------------------


def test_the_common_case_is_one_touch_and_its_undo_a_further_row(
    rig: WebRig, ada: PageClient
) -> None:
    plate = new_plate(rig)
    seen = panel(ada, plate)
    assert (seen["verdict"], seen["state"]) == ("FAIL", "open")
    first = seen["offers"][0]
    assert (first["name"], first["reason"], first["reason_text"]) == (
        "confirm_removed", "confirmed", "as it was judged",
    )  # fmt: skip
    done = touch(ada, plate, first, seen).json()
    assert (done["verdict"], done["is_pending"]) == ("FAIL", False)
    page = ada.get(done["address"]).text
    assert f"Committed as row {done['seq']}." in page
    seen = panel(ada, plate)
    assert (seen["state"], seen["disposition"]) == (None, "removed")
    assert plate not in open_ids(ada)
    back = touch(ada, plate, seen["undo"], seen).json()
    seen = panel(ada, plate)
    assert (seen["state"], seen["disposition"]) == ("open", "")
    assert [row["superseded_by"] for row in seen["history"]] == [None, back["seq"], None]
    taken_back = reviews(rig, plate)[1]
    assert taken_back["note"] == f"takes back row {done['seq']}: nobody has judged it"
    assert (taken_back["verdict"], taken_back["reason"]) == ("UNDECIDED", "other")
    assert seen["offers"][0] == first, "the station's FAIL is what one touch confirms"
    assert f"superseded by row {back['seq']}" in ada.get(f"/plates/{plate}/judge").text


def test_a_form_without_script_says_the_same(rig: WebRig, ada: PageClient) -> None:
    plate = new_plate(rig)
    seen = panel(ada, plate)
    fields: Json = {"act": "PASS|use|dirt", "note": "wiped off", "kinds": ["0=scratch"]}
    version = {"supersedes": seen["supersedes"], "nonce": seen["nonce"]}
    answer = ada.send_form(f"/plates/{plate}/review", **fields, **version)
    (row,) = reviews(rig, plate)
    assert answer.status_code == 303
    assert answer.headers["location"] == f"/plates/{plate}/judge?judged={row['seq']}"
    assert (row["reviewer"], row["verdict"], row["disposition"]) == ("ada", "PASS", "use")
    assert row["defects"] == [{"kind": "scratch", "number": 0}]
    assert panel(ada, plate)["defects"][0]["kind"] == "scratch"


@pytest.mark.parametrize("verdict", Verdict)
def test_every_offer_is_taken(rig: WebRig, ada: PageClient, verdict: Verdict) -> None:
    count = len(panel(ada, new_plate(rig, verdict))["offers"])
    for place in range(count):
        plate = new_plate(rig, verdict)
        seen = panel(ada, plate)
        offer = seen["offers"][place]
        offer["reason"] = offer["reason"] or offer["reasons"][0]["code"]
        assert touch(ada, plate, offer, seen).status_code == 200, offer
        now = panel(ada, plate)
        assert (now["verdict"], now["disposition"]) == (offer["verdict"], offer["disposition"])
        keys = [one["key"] for one in now["offers"]]
        assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("language", ["en", "de", "zh"])
def test_every_text_is_there(rig: WebRig, ada: PageClient, language: str) -> None:
    plates = [new_plate(rig, verdict) for verdict in Verdict]
    plates.append(new_plate(rig, PASS, is_audit_sample=True))
    lists = ["/open?state=rework", "/open?state=pending", "/samples"]
    for address in [*lists, "/open", *(f"/plates/{plate}/judge" for plate in plates)]:
        page = ada.get(address, headers={"accept-language": language})
        assert page.status_code == 200, page.text


def test_what_somebody_writes_is_shown_and_not_run(rig: WebRig, ada: PageClient) -> None:
    plate = new_plate(rig)
    text = "<script>alert(1)</script>"
    ada.send_json(f"/plates/{plate}/review.json", said(panel(ada, plate), note=text))
    page = ada.get(f"/plates/{plate}/judge").text
    assert text not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


# --- once, or clearly not -------------------------------------------------------------------------


def test_a_double_touch_is_one_row(rig: WebRig, ada: PageClient) -> None:
    plate = new_plate(rig)
    body = said(panel(ada, plate))
    ada.token()
    with ThreadPoolExecutor(4) as pool:
        sent = [pool.submit(ada.send_json, f"/plates/{plate}/review.json", body) for _ in range(4)]
    assert {one.result().status_code for one in sent} == {200}
    assert {one.result().json()["seq"] for one in sent} == {reviews(rig, plate)[0]["seq"]}
    assert len(reviews(rig, plate)) == 1


def test_a_replay_with_other_content_is_refused(rig: WebRig, ada: PageClient) -> None:
    plate = new_plate(rig)
    body = said(panel(ada, plate))
    assert ada.send_json(f"/plates/{plate}/review.json", body).status_code == 200
    for change in ({"verdict": "PASS", "disposition": "use"}, {"note": "really"}):
        answer = ada.send_json(f"/plates/{plate}/review.json", body | change)
        assert answer.status_code == 409
        assert "another review was sent with this nonce" in answer.json()["error"]
    assert len(reviews(rig, plate)) == 1


def test_of_two_inspectors_the_second_is_told_who_was_first(
    rig: WebRig, ada: PageClient, bob: PageClient
) -> None:
    plate = new_plate(rig)
    first, second = panel(ada, plate), panel(bob, plate)
    row = ada.send_json(f"/plates/{plate}/review.json", said(first)).json()["seq"]
    answer = bob.send_json(f"/plates/{plate}/review.json", said(second, "PASS", disposition="use"))
    assert (answer.status_code, answer.json()["key"]) == (409, "judge.stale")
    assert f"ada judged this plate meanwhile (row {row})" in answer.json()["error"]
    assert [one["reviewer"] for one in reviews(rig, plate)] == ["ada"]
    again = bob.send_form(f"/plates/{plate}/review", act="PASS|use|dirt",
                          supersedes=second["supersedes"], nonce=second["nonce"])  # fmt: skip
    assert again.status_code == 409
    assert "Nothing was written" in again.text


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"reason": "mood"}, 409),
        ({"kinds": ["0=ufo"]}, 409),
        ({"kinds": ["7=dent"]}, 409),
        ({"kinds": ["x"]}, 422),
        ({"note": "a\nb"}, 409),
        ({"note": "x" * 1001}, 422),
        ({"verdict": "FAIL", "disposition": "use"}, 409),
        ({"verdict": "GOOD"}, 422),
        ({"act": "FAIL"}, 422),
        ({"nonce": "a b"}, 422),
        ({"supersedes": 0}, 422),
        ({"supersedes": 2**63}, 422),
        ({"reviewer": "bob"}, 422),
    ],
)
def test_what_no_review_may_say_is_not_written(
    rig: WebRig, ada: PageClient, changes: Json, status: int
) -> None:
    plate = new_plate(rig)
    answer = ada.send_json(f"/plates/{plate}/review.json", said(panel(ada, plate)) | changes)
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]
    assert reviews(rig, plate) == []


def test_a_plate_that_there_is_not_is_not_judged(rig: WebRig, ada: PageClient) -> None:
    body = said({"supersedes": 1, "nonce": secrets.token_hex(8)})
    assert ada.send_json("/plates/s-99999999/review.json", body).status_code == 404
    gap = new_plate(rig, UNDECIDED, reason="gap")
    seen = panel(ada, gap)
    assert (seen["may_judge"], seen["why_not"], seen["state"]) == (False, "gap", None)
    assert ada.send_json(f"/plates/{gap}/review.json", said(seen)).status_code == 409


# --- the journal at that moment -------------------------------------------------------------------


def test_without_a_journal_nothing_is_written_and_one_that_is_killed_writes_once(
    tmp_path: Path,
) -> None:
    """The same review, sent again and again by the same form."""
    with web_rig(tmp_path, plates=4) as line:
        ada, plate = line.client_of(Role.REVIEWER, "ada"), line.plates[1]
        body, address = said(panel(ada, plate)), f"/plates/{plate}/review.json"
        answer = ada.send_json(address, body)
        assert (answer.status_code, answer.json()["key"]) == (503, "errors.journal_away")
        assert reviews(line, plate) == []
        with running_journal(line.station) as process:
            before = _stopped(line, process.pid)
            with ThreadPoolExecutor(1) as pool:
                sending = pool.submit(ada.send_json, address, body)
                try:
                    until(lambda: ends(line) > before, "page that waits for its journal")
                finally:
                    os.kill(process.pid, signal.SIGKILL)
                process.wait()
                with running_journal(line.station):
                    answer = sending.result(30.0)
                    again = ada.send_json(address, body)
        assert answer.status_code == again.status_code == 200, answer.text
        assert [one["seq"] for one in reviews(line, plate)] == [answer.json()["seq"]]
        assert again.json()["seq"] == answer.json()["seq"]
        with Reader(line.station.journal) as reader:
            assert verify(reader).findings == []


def _stopped(line: WebRig, pid: int) -> int:
    """Hold the journal process still; how many ends of connections there are then."""
    os.kill(pid, signal.SIGSTOP)
    return ends(line)


def ends(line: WebRig) -> int:
    """Of connections to journals that live on this machine: one more where the page has come."""
    name = journal_path(line.station.runtime).name
    return Path("/proc/self/net/unix").read_text().count(f"/{name}\n")


def test_a_journal_that_stands_still_holds_up_nobody_who_looks(tmp_path: Path) -> None:
    """More reviews at once than the page has threads."""
    with web_rig(tmp_path, plates=4) as line, contextlib.ExitStack() as stack:
        ada, plate = line.client_of(Role.REVIEWER, "ada"), line.plates[1]
        body, address = said(panel(ada, plate)), f"/plates/{plate}/review.json"
        headers = {"origin": line.url, "x-csrf-token": ada.token()}
        silent = SilentJournal(line)
        stack.callback(silent.refuse)
        pool = stack.enter_context(ThreadPoolExecutor(60))
        sent = [pool.submit(ada.post, address, json=body, headers=headers) for _ in range(60)]
        until(lambda: sum(one.done() for one in sent) >= 52, "answers for those without a place")
        assert line.client().get("/health").status_code in (200, 503)
        assert line.client().get("/sign-in").status_code == 200
        assert len(silent.held) == 8
        silent.refuse()
        assert sorted({one.result().status_code for one in sent}) == [409, 503]


class SilentJournal:
    """Listens, and answers nobody until it refuses what was sent."""

    def __init__(self, rig: WebRig) -> None:
        self.held: list[Channel] = []
        self._listener = Listener(journal_path(rig.station.runtime))
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                self.held.append(self._listener.accept())

    def refuse(self) -> None:
        while self.held:
            with contextlib.closing(self.held.pop()) as client, contextlib.suppress(PeerGone):
                number = client.receive(10.0).body["id"]
                client.send({"ok": False, "id": number, "error": "no"})


class LastAnswer:
    """A journal process that answers one thing, after which its log cannot be read any more."""

    def __init__(self, rig: WebRig, answer: Json, spoil: Callable[[Path], None]) -> None:
        self._journal, self._answer, self._spoil = rig.station.journal, answer, spoil
        self._listener = Listener(journal_path(rig.station.runtime))
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        with contextlib.suppress(OSError, PeerGone):
            while True:
                with contextlib.closing(self._listener.accept()) as client:
                    asked = client.receive(10.0).body
                    self._spoil(self._journal)
                    client.send({**self._answer, "id": asked.get("id")}, timeout_s=5.0)

    def close(self) -> None:
        self._listener.close()


def take_away(journal: Path) -> None:
    (journal / DATABASE).rename(journal / "gone.db")


@pytest.mark.parametrize("spoil", [take_away, damage])
def test_a_refusal_stays_one_where_the_log_cannot_be_read(
    tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    with web_rig(tmp_path, plates=2) as line:
        ada, plate = line.client_of(Role.REVIEWER, "ada"), line.plates[1]
        refusal = {"ok": False, "error": "it is not Tuesday", "refused": True}
        body = said(panel(ada, plate))
        with contextlib.closing(LastAnswer(line, refusal, spoil)):
            answer = ada.send_json(f"/plates/{plate}/review.json", body)
        assert (answer.status_code, answer.json()["key"]) == (409, "errors.refused")
        assert "it is not Tuesday" in answer.json()["error"]
        unsure = ReviewBody(station_id=STATION, result_id=plate, verdict=FAIL, reviewer="ada",
                            reason="dirt", supersedes=5, nonce="nonce-of-ada")  # fmt: skip
        with pytest.raises(PageError) as told:
            judge._found_after_all(line.web, unsure)
        assert (told.value.status, told.value.key) == (503, "judge.unknown")


@pytest.mark.parametrize("spoil", [take_away, damage])
def test_a_review_stays_committed_where_the_log_cannot_be_read(
    tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    with web_rig(tmp_path, plates=2) as line:
        ada, plate = line.client_of(Role.REVIEWER, "ada"), line.plates[1]
        body = said(panel(ada, plate))
        with contextlib.closing(LastAnswer(line, {"ok": True, "seq": [7]}, spoil)):
            answer = ada.send_json(f"/plates/{plate}/review.json", body)
        assert answer.status_code == 200, answer.text
        done = answer.json()
        assert (done["seq"], done["verdict"], done["is_pending"]) == (7, None, False)
        assert ada.get(done["address"]).status_code == 503


class Wire:
    """Stands between the page and its journal, and loses the first answers."""

    def __init__(self, rig: WebRig, lost: int) -> None:
        self._path = journal_path(rig.station.runtime)
        self._real = self._path.with_name("behind.sock")
        self._path.rename(self._real)
        self.lost = lost
        self._listener = Listener(self._path)
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        with contextlib.suppress(OSError, PeerGone):
            while True:
                self._serve(self._listener.accept())

    def _serve(self, client: Channel) -> None:
        with contextlib.closing(client), connect(self._real) as journal:
            answer = journal.request(client.receive(10.0).body, 10.0)
            if self.lost > 0:
                self.lost -= 1
                return
            client.send(answer, timeout_s=5.0)

    def close(self) -> None:
        self._listener.close()
        self._real.rename(self._path)


def test_a_lost_answer_is_asked_for_again_and_one_row(rig: WebRig, ada: PageClient) -> None:
    plate = new_plate(rig)
    body = said(panel(ada, plate))
    with contextlib.closing(Wire(rig, lost=1)) as wire:
        answer = ada.send_json(f"/plates/{plate}/review.json", body)
        assert wire.lost == 0
    assert [one["seq"] for one in reviews(rig, plate)] == [answer.json()["seq"]]


@pytest.mark.long
def test_a_journal_that_never_answers_is_not_asked_where_the_log_knows(
    rig: WebRig, ada: PageClient
) -> None:
    plate = new_plate(rig)
    body = said(panel(ada, plate))
    with contextlib.closing(Wire(rig, lost=10**6)):
        answer = ada.send_json(f"/plates/{plate}/review.json", body)
    assert [one["seq"] for one in reviews(rig, plate)] == [answer.json()["seq"]]


# --- who may --------------------------------------------------------------------------------------


def test_who_may_not_judge_looks_only(rig: WebRig, journal: None) -> None:
    plate = new_plate(rig)
    for client, why, status in (
        (rig.client(), "sign_in", 401),
        (rig.client_of(Role.VIEWER, "vic"), "role", 403),
    ):
        seen = panel(client, plate)
        assert (seen["may_judge"], seen["why_not"], seen["verdict"]) == (False, why, "FAIL")
        assert "judge-form" not in client.get(f"/plates/{plate}/judge").text
        assert "/review" not in client.get("/open").text
        body = said(seen)
        assert client.send_json(f"/plates/{plate}/review.json", body).status_code == status
    assert reviews(rig, plate) == []


def test_a_name_that_the_log_does_not_take_is_said(rig: WebRig, journal: None) -> None:
    client, plate = rig.client_of(Role.REVIEWER, "\u0430da"), new_plate(rig)
    client.cookies.clear()
    rig.people.sessions["cyrillic"] = Person("\u0430da", "", Role.REVIEWER)
    client.cookies.set("given", "cyrillic")
    answer = client.send_json(f"/plates/{plate}/review.json", said(panel(client, plate)))
    assert answer.status_code == 422
    assert "printable ASCII" in answer.json()["error"]


def test_what_failed_passes_by_two_people_only(
    rig: WebRig, ada: PageClient, bob: PageClient
) -> None:
    plate = new_plate(rig)
    with four_eyes(rig):
        seen = panel(ada, plate)
        body = said(seen, "PASS", disposition="use", reason="dirt")
        done = ada.send_json(f"/plates/{plate}/review.json", body).json()
        assert (done["verdict"], done["is_pending"]) == ("FAIL", True)
        own = panel(ada, plate)
        assert (own["is_own_waiting"], own["state"]) == (True, "open")
        assert "agree" not in [offer["name"] for offer in own["offers"]]
        again = said(own, "PASS", disposition="use", reason="dirt")
        alone = ada.send_json(f"/plates/{plate}/review.json", again).json()
        assert (alone["verdict"], alone["is_pending"]) == ("FAIL", True)
        assert plate in open_ids(bob, "pending")
        seen = panel(bob, plate)
        assert (seen["waiting"]["by"], seen["offers"][0]["name"]) == ("ada", "agree")
        assert touch(bob, plate, seen["offers"][0], seen).json()["verdict"] == "PASS"
    now = panel(bob, plate)
    assert (now["verdict"], now["state"], now["waiting"]) == ("PASS", None, None)
    standing = [row["by"] for row in now["history"] if row["superseded_by"] is None]
    assert standing[-2:] == ["ada", "bob"]
    assert plate not in open_ids(bob) + open_ids(bob, "pending")


# --- blind ----------------------------------------------------------------------------------------

SECRET_SCORE = 0.123456789
_HIDDEN = ("0.12345", 'own_verdict":"PASS', "tag pass")


def test_a_sample_says_nothing_until_it_is_judged(
    rig: WebRig, ada: PageClient, bob: PageClient
) -> None:
    plates = [
        new_plate(rig, PASS, is_audit_sample=True, score=SECRET_SCORE, part_id="SAMPLE-1")
        for _ in range(2)
    ]
    everybody = (ada, bob, rig.client(), rig.client_of(Role.ADMIN, "eve"))
    for client in everybody:
        for address in (f"/plates/{plates[0]}/judge", "/samples", "/open"):
            for text in (client.get(address).text, client.get(f"{address}.json").text):
                about = text if "/open" not in address else ""
                assert not [one for one in _HIDDEN if one in about], address
                assert "0.12345" not in text
    listed = [one["result_id"] for one in ada.get("/samples.json").json()["samples"]]
    assert [one for one in listed if one in plates] == plates
    seen = panel(ada, plates[0])
    assert (seen["is_blind"], seen["verdict"], seen["history"]) == (True, None, [])
    done = touch(ada, plates[0], seen["offers"][0], seen).json()
    revealed = ada.get(done["address"]).text
    assert "0.123" in revealed
    assert "The station had said:" in revealed
    assert panel(bob, plates[0])["own_verdict"] == "PASS"
    assert panel(bob, plates[1])["is_blind"]
    assert plates[0] not in [one["result_id"] for one in ada.get("/samples.json").json()["samples"]]


def test_the_attempts_of_a_part_do_not_tell_of_a_sample(rig: WebRig, ada: PageClient) -> None:
    earlier = new_plate(rig, FAIL, part_id="BLIND-1")
    sample = new_plate(rig, PASS, part_id="BLIND-1", is_audit_sample=True)
    assert [one["verdict"] for one in panel(ada, earlier)["attempts"]] == [None]
    later = {one["result_id"]: one["later"] for one in ada.get("/open.json").json()["plates"]}
    assert later.get(earlier, {"verdict": None})["verdict"] is None
    assert panel(ada, sample)["attempts"] == []


def test_a_drawn_plate_that_failed_is_hidden_from_nobody(rig: WebRig, ada: PageClient) -> None:
    plate = new_plate(rig, FAIL, is_audit_sample=True)
    assert panel(ada, plate)["is_blind"] is False
    with Reader(rig.station.journal) as reader:
        assert not is_blind(reader, plate, Person("ada", "Ada", Role.REVIEWER))


def quality(client: PageClient) -> Json:
    (row,) = client.get("/quality.json").json()["rows"]
    return {name: row[name] for name in ("audited", "audit_open", "reviewed_fails")}


@pytest.mark.parametrize(
    ("verdict", "place", "after"),
    [(PASS, 0, "audit_open"), (PASS, 1, "audit_open"), (FAIL, 0, ""), (FAIL, 1, "")],
)
def test_a_judgement_that_is_taken_back_counts_as_none(
    rig: WebRig, ada: PageClient, bob: PageClient, verdict: Verdict, place: int, after: str
) -> None:
    before = quality(ada)
    plate = new_plate(rig, verdict, is_audit_sample=verdict is PASS)
    seen = panel(ada, plate)
    offer = seen["offers"][place]
    offer["reason"] = offer["reason"] or offer["reasons"][0]["code"]
    touch(ada, plate, offer, seen)
    counted = "audited" if verdict is PASS else "reviewed_fails"
    assert quality(ada)[counted] == before[counted] + 1
    seen = panel(ada, plate)
    assert touch(ada, plate, seen["undo"], seen).status_code == 200
    assert quality(ada) == before | ({after: before[after] + 1} if after else {})
    is_sample = verdict is PASS
    now = panel(ada, plate)
    assert (now["verdict"], now["state"]) == (verdict, None if is_sample else "open")
    assert [one["superseded_by"] is None for one in now["history"]] == [True, False, True]
    listed = [one["confirmed"] for one in all_open(ada) if one["result_id"] == plate]
    assert listed == ([] if is_sample else ["FAIL"])
    assert panel(bob, plate)["is_blind"] is is_sample
    samples = [one["result_id"] for one in bob.get("/samples.json").json()["samples"]]
    assert (plate in samples) is is_sample
    seen = panel(ada, plate)
    assert touch(ada, plate, seen["undo"], seen).json()["verdict"] == offer["verdict"]
    assert panel(bob, plate)["is_blind"] is False


def test_a_sample_that_four_eyes_are_asked_for_does_not_pass_by_an_undo(
    rig: WebRig, ada: PageClient
) -> None:
    plate = new_plate(rig, PASS, is_audit_sample=True)
    with four_eyes(rig):
        seen = panel(ada, plate)
        touch(ada, plate, seen["offers"][1], seen)
        seen = panel(ada, plate)
        forced = seen["undo"] | {"takes_back": True}
        assert touch(ada, plate, forced, seen).status_code == 409
        assert touch(ada, plate, seen["undo"], seen).json()["verdict"] == "UNDECIDED"
    assert panel(ada, plate)["state"] == "open"


def all_open(client: PageClient) -> list[Json]:
    found, after = [], 0
    while after is not None:
        page = client.get(f"/open.json?after={after}").json()
        found, after = found + page["plates"], page["next_after"]
    return found


def test_a_pass_that_was_not_drawn_is_not_searched_for_after_an_undo(
    rig: WebRig, ada: PageClient
) -> None:
    plate = new_plate(rig, PASS)
    seen = panel(ada, plate)
    touch(ada, plate, seen["offers"][1], seen)
    seen = panel(ada, plate)
    touch(ada, plate, seen["undo"], seen)
    now = panel(ada, plate)
    assert (now["verdict"], now["state"]) == ("PASS", None)


def test_an_escape_is_open_until_somebody_finds_it(rig: WebRig, ada: PageClient) -> None:
    plate = new_plate(rig, PASS, is_audit_sample=True)
    seen = panel(ada, plate)
    defective = next(offer for offer in seen["offers"] if offer["name"] == "defective")
    assert (defective["reason"], defective["disposition"]) == ("missed", "")
    touch(ada, plate, defective, seen)
    assert panel(ada, plate)["state"] == "open"


# --- removal --------------------------------------------------------------------------------------


def test_the_open_list_is_worked_off_by_one_touch_each(rig: WebRig, ada: PageClient) -> None:
    for _ in range(26):
        new_plate(rig, UNDECIDED)
    first = ada.get("/open.json").json()
    assert [one["seq"] for one in first["plates"]] == sorted(one["seq"] for one in first["plates"])
    rest = ada.get(f"/open.json?after={first['next_after']}").json()
    assert rest["plates"][0]["seq"] > first["plates"][-1]["seq"]
    assert first["counts"]["open"] >= len(first["plates"]) + len(rest["plates"]) > 26
    plate = first["plates"][0]
    act = f"{plate['verdict']}|removed|{first['reason']}"
    version = {name: plate[name] for name in ("supersedes", "nonce")}
    answer = ada.send_form(f"/plates/{plate['result_id']}/review", act=act, then="open", **version)
    (row,) = reviews(rig, plate["result_id"])
    address = answer.headers["location"]
    assert address == f"/open?judged={plate['result_id']}&row={row['seq']}"
    after = ada.get(address.replace("/open", "/open.json")).json()
    assert after["counts"]["open"] == first["counts"]["open"] - 1
    assert plate["result_id"] not in [one["result_id"] for one in after["plates"]]
    with Reader(rig.station.journal) as reader:
        assert open_plates.count(reader) == after["counts"]["open"]
    undone = touch(ada, plate["result_id"], after["judged"]["undo"], after["judged"])
    assert undone.status_code == 200
    again = ada.get("/open.json").json()["plates"][0]
    assert (again["result_id"], again["confirmed"]) == (plate["result_id"], plate["own_verdict"])
    assert "Removed" in ada.get("/open").text


def test_only_who_said_it_is_offered_to_take_back_what_still_stands_last(
    rig: WebRig, ada: PageClient, bob: PageClient
) -> None:
    plate = new_plate(rig)
    done = ada.send_json(
        f"/plates/{plate}/review.json", said(panel(ada, plate), then="open")
    ).json()
    address = done["address"].replace("/open", "/open.json")
    assert ada.get(address).json()["judged"]["row"]["seq"] == done["seq"]
    assert ada.get(f"/open.json?judged={plate}").json()["judged"] is None
    assert bob.get(address).json()["judged"] is None
    bob.send_json(f"/plates/{plate}/review.json", said(panel(bob, plate), disposition="scrap"))
    for client in (ada, bob):
        assert client.get(address).json()["judged"] is None, "bob's review is not the one sent"


def test_lists_that_lack_plates_say_so(rig: WebRig, ada: PageClient) -> None:
    plate = new_plate(rig)
    assert (ada.get("/open.json").json()["notes"], panel(ada, plate)["notes"]) == ([], [])
    with known_rows(rig, -3):
        page = ada.get("/open.json").json()
        assert page["counts"] == {"open": None, "rework": None}
        for notes in (page["notes"], panel(ada, plate)["notes"]):
            assert notes[0].startswith("3 rows are not in the tables yet")
        for address in ("/open", "/open?after=1000000", f"/plates/{plate}/judge"):
            assert "3 rows are not in the tables yet" in ada.get(address).text
    assert ada.get("/open.json").json()["counts"]["open"] > 0


@contextlib.contextmanager
def known_rows(rig: WebRig, change: int) -> Iterator[None]:
    """The derived tables know so many rows more."""
    statement = "UPDATE derived SET seq = seq + ?"
    with contextlib.closing(sqlite3.connect(rig.station.journal / DATABASE)) as log:
        log.execute(statement, (change,))
        log.commit()
        yield
        log.execute(statement, (-change,))
        log.commit()


def test_a_part_that_comes_back_closes_its_rework_and_says_so_on_both(
    rig: WebRig, ada: PageClient
) -> None:
    first = new_plate(rig, FAIL, part_id="RW-1")
    ada.send_json(f"/plates/{first}/review.json", said(panel(ada, first), disposition="rework"))
    assert (panel(ada, first)["state"], first in open_ids(ada, "rework")) == ("rework", True)
    second = new_plate(rig, PASS, part_id="RW-1")
    assert (panel(ada, first)["state"], first in open_ids(ada, "rework")) == (None, False)
    assert panel(ada, first)["attempts_in_all"] == 2
    page = ada.get(f"/plates/{first}/judge").text
    assert "Back from rework, as attempt 2; this rework is closed" in page
    assert second in page
    assert "The part came before, as attempt 1" in ada.get(f"/plates/{second}/judge").text


def test_every_row_of_these_stands_in_a_log_that_verifies(rig: WebRig, journal: None) -> None:
    with Reader(rig.station.journal) as reader:
        assert [text for text in verify(reader).findings if "review" in text] == []
