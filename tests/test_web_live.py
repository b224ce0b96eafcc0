"""The line as it is, told to all who look: what dies is said, what is old is never shown as now."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import UTC, date, datetime
from datetime import time as clock_time
from pathlib import Path
from typing import Any

import httpx
import pytest
from markupsafe import escape
from station_rig import Rig, children
from web_rig import PageClient, WebRig, damage, running_web, serving, small_journal, until, web_rig

from drivers.stacklight import LightState
from station.config import LightSettings, OtherStation, load_configuration
from station.ipc import SOCKETS
from station.ipc import Listener as Door
from station.log_reader import Reader
from station.packing import Contexts
from station.plant import prepare
from station.qms import DATABASE, SNAPSHOT, StoreError
from station.quality import UNKNOWN
from station.record import rfc3339
from station.roles import Role
from station.web import line_log
from station.web.certificates import make_certificate
from station.web.feed import Feed
from station.web.hub import Hub, Topic
from station.web.line import SHOWN
from station.web.line_log import LineLog, LogLook, ShownPlate, StripPlate
from station.web.line_view import CallView, LineSummary, line_page, urgency
from station.web.lines import LineRow, lines_page, rows_of
from station.web.live import Live, Poller, Silence
from station.web.others import Heard, OtherStations
from station.web.plant_lines import PlantLine, PlantNews
from station.web.render import environment
from station.web.server import make_web
from station.web.texts import Formatter, Translator

Json = dict[str, Any]
LIGHT = LightSettings.model_validate({"device": {"type": "simulated"}})
NOW = 1_800_000_000.0
TOKEN = "0123456789abcdef" * 2
NOW_TEXT = "2027-01-15T08:00:00.000000Z"


# --- a client of the stream -----------------------------------------------------------------------


class Listener:
    """Reads one stream on a thread of its own and keeps what came."""

    def __init__(self, client: httpx.Client, path: str, headers: dict[str, str]) -> None:
        self.events: list[tuple[str, str, Json]] = []
        """Kind, id and data of each."""
        self.comments = 0
        self.status = 0
        self.has_ended = threading.Event()
        self._client, self._path, self._headers = client, path, headers
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        fields: dict[str, str] = {}
        try:
            with self._client.stream("GET", self._path, headers=self._headers) as answer:
                self.status = answer.status_code
                for line in answer.iter_lines():
                    name, _, value = line.partition(": ")
                    if line:
                        fields[name] = value
                        continue
                    self.comments += "" in fields
                    if "event" in fields:
                        said = json.loads(fields["data"])
                        self.events.append((fields["event"], fields.get("id", ""), said))
                    fields = {}
        except httpx.HTTPError:
            pass
        finally:
            self.has_ended.set()

    @property
    def shown(self) -> dict[str, str]:
        """The page's parts as a browser would show them now."""
        found: dict[str, str] = {}
        for kind, _, said in list(self.events):
            if kind == "news":
                found |= said
        return found

    @property
    def beats(self) -> int:
        return sum(kind == "beat" for kind, _, _ in list(self.events))

    def sees(self, part: str, *words: str) -> None:
        """Wait until a part of the page says all of this."""
        until(lambda: all(word in self.shown.get(part, "") for word in words), f"{words} in {part}")


@contextmanager
def listening(url: str, path: str = "/line/live", **headers: str) -> Iterator[Listener]:
    with httpx.Client(base_url=url, timeout=30.0) as client:
        yield Listener(client, path, {"accept-language": "en", **headers})


# --- what a look at the station comes to ----------------------------------------------------------


def station(**changes: object) -> Json:
    found: Json = {
        "pid": 1, "state": "OPERATIONAL", "ready": True, "not_ready": [], "problems": {},
        "calls": [], "attentions": [], "uptime_s": 60.0, "waiting_s": 0.0, "lost_frames": 0,
        "last_verdict_at": None, "provenance": "production", "plates": 3,
        "recipe": {"id": "lgp", "version": 1},
    }  # fmt: skip
    return found | changes


def lamp(state: LightState = LightState.IDLE, result_id: str = "", **changes: object) -> Json:
    found: Json = {
        "state": str(state), "result_id": result_id, "is_confirmed": True, "can_confirm": True,
        "is_held": True, "device": "simulated", "problem": "", "doubt": "", "lease_left_s": 1.0,
    }  # fmt: skip
    return found | changes


def live(**changes: Any) -> Live:
    """A healthy line that was looked at just now."""
    found: Json = {
        "at": NOW, "station": station(), "lamp": lamp(), "journal": {"rows": 1},
        "is_stale": False, "heard_ns": 1, "began": {"light": NOW - 5, "state": NOW - 60},
    }  # fmt: skip
    return Live(**(found | changes))


def test_green_says_of_which_plate_until_when_and_that_it_is_committed() -> None:
    plate = ShownPlate("a-1", "LGP-4711", NOW_TEXT, NOW - 1)
    page = line_page("a", LIGHT, live(lamp=lamp(LightState.PASS, "a-1"), log=LineLog(shown=plate)))
    assert [(one.element, one.mode) for one in page.light.elements] == [
        ("red", "off"),
        ("yellow", "off"),
        ("green", "on"),
    ]
    assert page.light.part_id == "LGP-4711"
    assert page.light.committed_at == "2027-01-15T07:59:59.000000Z"
    assert page.light.until_at == "2027-01-15T08:00:09.000000Z", "pass_hold_s after the commit"
    assert page.light.confirmation == "read_back"
    assert page.calls == ()


@pytest.mark.parametrize(
    "silent", [{"lamp": None}, {"is_stale": True}, {"lamp": {**lamp(), "state": "unknown"}}]
)
def test_no_light_is_shown_that_nobody_knows_of(silent: Json) -> None:
    green = {"lamp": lamp(LightState.PASS, "a-1")}
    page = line_page("a", LIGHT, live(**(green | silent)))
    assert page.light.state == "unknown"
    assert {one.mode for one in page.light.elements} == {"unknown"}
    if silent.get("is_stale"):
        assert (page.light.confirmation, page.light.is_held) == ("unknown", False)
    assert page.is_current is not silent.get("is_stale", False)


def test_what_does_not_answer_is_a_call_since_its_last_answer() -> None:
    silence = {name: Silence(NOW - 3, "gone") for name in ("station", "lamp", "journal")}
    page = line_page("a", LIGHT, live(station=None, lamp=None, journal=None, silent=silence))
    assert [(call.level, call.part) for call in page.calls] == [
        ("fault", "station"),
        ("fault", "lamp"),
        ("fault", "journal"),
    ]
    assert {call.since_at for call in page.calls} == {"2027-01-15T07:59:57.000000Z"}
    assert (page.state, page.is_ready) == ("unknown", None)
    assert page.figures.lost_frames is None, "unknown is not zero"


def test_every_problem_is_a_call_and_the_most_urgent_comes_first() -> None:
    said = station(
        state="ERROR",
        problems={
            "camera": "it is gone",
            "journal": "76 MB free",
            "plc": "no heartbeat",
            "pictures": "disk fills",
        },
        calls=["no heartbeat", "clean crossweb 4-5 mm"],
        attentions=["clean crossweb 4-5 mm"],
    )
    began = {"problem camera": NOW - 4, "problem plc": NOW - 90, "attention x": NOW, "light": NOW}
    log = LineLog(begun_at={"clean crossweb 4-5 mm": "2026-01-01T00:00:00.000000Z"})
    held = live(
        station=said,
        lamp=lamp(LightState.UNDECIDED, "a-2"),
        journal={"rows": 9, "unsettled": {"open": 2, "rework": 1}},
        began=began,
        log=log,
    )
    page = line_page("a", LIGHT, held)
    assert [(call.level, call.part) for call in page.calls] == [
        ("fault", "camera"),
        ("fault", "writing"),
        ("undecided", "undecided"),
        ("attention", "attention"),
        ("attention", "plc"),
        ("attention", "pictures"),
        ("open", "open"),
    ]


def test_the_longest_wait_comes_first_among_equals() -> None:
    calls = [
        CallView(level="fail", part="fail", since_at="2026-01-02"),
        CallView(level="fault", part="camera", since_at="2026-01-09"),
        CallView(level="fail", part="fail", since_at="2026-01-01"),
        CallView(level="fail", part="fail"),
    ]
    order = [(call.level, call.since_at) for call in sorted(calls, key=urgency)]
    assert order == [
        ("fault", "2026-01-09"),
        ("fail", "2026-01-01"),
        ("fail", "2026-01-02"),
        ("fail", None),
    ]


# --- the page -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebRig]:
    with web_rig(tmp_path_factory.mktemp("web")) as rig:
        yield rig


@pytest.fixture
def client(rig: WebRig) -> PageClient:
    return rig.client()


def test_the_page_says_without_script_what_the_light_shows(rig: WebRig, client: PageClient) -> None:
    rig.live.live = live(lamp=lamp(LightState.FAIL, rig.plates[1]), began={"light": NOW})
    for language, words in (
        ("en", ("FAIL", "until somebody acknowledges it", "Take this plate out.", "ON")),
        ("de", ("FEHLERHAFT", "bis jemand quittiert", "Diese Platte entnehmen.", "AN")),
        ("zh", ("不合格", "或到有人确认为止", "请取出这块板。", "亮")),
    ):
        text = client.get("/", headers={"accept-language": language}).text
        for word in words:
            assert word in text
    assert '<noscript><meta http-equiv="refresh" content="5"></noscript>' in text
    assert f'href="/plates/{rig.plates[1]}"' in text


def test_every_state_has_its_words_in_every_language(rig: WebRig, client: PageClient) -> None:
    problems = (
        *("camera", "log", "plc", "accept", "late", "disk", "pictures", "upkeep", "scanner"),
        *("serials", "recording", "liveness", "inspection", "lamp", "journal", "something new"),
    )
    for state in LightState:
        doubt = "it does not answer" if state is LightState.ATTENTION else ""
        said = station(problems=dict.fromkeys(problems, "<b>text</b>"), not_ready=["<b>text</b>"])
        shown = lamp(state, "a-1", doubt=doubt, is_confirmed=False)
        rig.live.live = live(station=said, lamp=shown, log=LineLog(problem="gone"))
        for language in ("en", "de", "zh"):
            answer = client.get("/", headers={"accept-language": language})
            assert answer.status_code == 200
            assert "<b>text" not in answer.text
            assert "{" not in answer.text.partition("<main")[2].replace("{age}", "").replace(
                "{at}", ""
            ).replace("{left}", "")


def test_what_is_read_of_the_log_and_what_is_kept_when_it_cannot_be(rig: WebRig) -> None:
    settings = rig.web.configuration.value
    look = LogLook(settings)
    found = look.look({"rows": 24}, lamp(LightState.FAIL, rig.plates[1]), station())
    assert [plate.result_id for plate in found.plates] == rig.plates[::-1]
    assert all(plate.has_picture for plate in found.plates)
    assert found.shown is not None
    assert found.shown.part_id == "LGP-0002"
    assert found.today is not None
    assert (found.today.plates, found.today.rate) == (0, UNKNOWN)
    assert look.look({"rows": 24}, lamp(LightState.FAIL, rig.plates[1]), None) is found, "no news"
    directory = settings.journal.directory
    aside = directory.rename(directory.with_name("aside"))
    try:
        kept = look.look({"rows": 25}, lamp(), station())
    finally:
        aside.rename(directory)
    assert "no log can be read" in kept.problem
    assert kept.plates == found.plates
    assert look.look({"rows": 26}, lamp(), station()).problem == ""


def test_sums_that_cannot_be_had_are_old_until_they_can(
    rig: WebRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = LogLook(rig.web.configuration.value)

    def at_row(number: int, every_s: float) -> LineLog:
        monkeypatch.setattr(line_log, "_SUMS_EVERY_S", every_s)
        return look.look({"rows": number}, lamp(), station())

    def too_long(*_: object) -> None:
        raise StoreError("the question took longer than 1 s")

    before = at_row(1, 60.0)
    with monkeypatch.context() as slow:
        slow.setattr(line_log, "_yield", too_long)
        for number, every_s in ((2, -1.0), (3, 60.0), (4, 60.0)):
            old = at_row(number, every_s)
            assert old.problem == "the question took longer than 1 s"
            assert (old.read_at, old.today) == (before.read_at, before.today)
            assert old.plates == before.plates
    after = at_row(5, -1.0)
    assert after.problem == ""
    assert after.read_at > before.read_at


def test_the_rate_is_what_the_station_counts_whatever_its_clock_was_set_to(
    rig: WebRig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight plates of an hour ago; then the clock was set back by two."""
    ahead = rfc3339(datetime.fromtimestamp(time.time() + 3600, UTC))
    small_journal(tmp_path, plates=8, written_at=ahead)
    settings = rig.web.configuration.value
    journal = settings.journal.model_copy(update={"directory": tmp_path})
    monkeypatch.setattr(line_log, "_SUMS_EVERY_S", -1.0)
    monkeypatch.setattr(line_log, "_QUIET_S", -1.0)

    def rates(*said: Json | None) -> list[float | None]:
        look = LogLook(settings.model_copy(update={"journal": journal}))
        return [look.look({"rows": 24}, lamp(), one).rate_per_minute for one in said]

    from_its_start = rates(
        station(uptime_s=5.0, plates=1),
        station(uptime_s=60.0, plates=3),
        station(uptime_s=280.0, plates=3),
        station(uptime_s=380.0, plates=43),
        None,
        station(uptime_s=580.0, plates=43),
    )
    assert from_its_start == [None, 3.0, 3 * 60 / 280, 40 * 60 / 320, None, 40 * 60 / 300]
    of_two_lives = rates(
        station(uptime_s=4000.0, plates=900),
        station(uptime_s=4060.0, plates=910),
        station(pid=2, uptime_s=4070.0, plates=1),
        station(pid=2, uptime_s=20.0, plates=1),
        station(pid=2, uptime_s=30.0, plates=None),
    )
    assert of_two_lives == [None, 10.0, None, 3.0, None]


def test_a_beat_says_how_old_the_last_verdict_is(rig: WebRig) -> None:
    """By a clock that nobody can set; nothing where the station does not answer."""
    feed = Feed(rig.web, {"line": SHOWN})

    def told_of(said: Json | None) -> tuple[object, object]:
        beat = feed._beat(live(station=said))
        return beat["verdict_at"], beat["verdict_age_s"]

    last = station(last_verdict_at=NOW_TEXT, verdict_age_s=12.34)
    assert told_of(last) == (NOW_TEXT, 12.3)
    assert told_of(station()) == told_of(None) == (None, None)


def test_what_an_answer_of_the_log_may_lack_is_said(rig: WebRig, tmp_path: Path) -> None:
    small_journal(tmp_path, plates=2)
    (tmp_path / DATABASE).rename(tmp_path / SNAPSHOT)
    settings = rig.web.configuration.value
    journal = settings.journal.model_copy(update={"directory": tmp_path})
    look = LogLook(settings.model_copy(update={"journal": journal}))
    found = look.look({"rows": 6}, lamp(), station())
    assert len(found.plates) == 2
    (note,) = found.notes
    assert "the live file cannot be read" in note
    rig.live.live = live(log=found)
    assert rig.client().get("/index.json").json()["log_notes"] == [note]
    assert str(escape(note)) in rig.client().get("/").text


def poller_of(rig: WebRig, folder: Path) -> tuple[Poller, list[Live]]:
    """Of a log and processes in a folder, and what it tells."""
    settings = rig.web.configuration.value
    journal = settings.journal.model_copy(update={"directory": folder})
    station = settings.station.model_copy(update={"runtime_dir": folder})
    poller = Poller(settings.model_copy(update={"journal": journal, "station": station}))
    heard = list[Live]()
    poller.listen(heard.append)
    return poller, heard


def test_a_log_that_is_slow_to_read_holds_up_nobodys_news(rig: WebRig, tmp_path: Path) -> None:
    small_journal(tmp_path, plates=2)
    poller, heard = poller_of(rig, tmp_path)
    with closing(sqlite3.connect(tmp_path / DATABASE, isolation_level=None)) as other:
        other.execute("PRAGMA journal_mode = DELETE")
        other.execute("BEGIN EXCLUSIVE")
        poller.turn()
        assert heard[0].log == LineLog(), "told before the log could be read, or given up"

    def has_read() -> bool:
        poller.turn()
        return heard[-1].newest_seq > 0

    until(has_read, "the log")
    poller.stop()


def test_a_log_that_gives_no_answer_is_old(
    rig: WebRig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Held by another process within a call, where no deadline of a question fires."""
    small_journal(tmp_path, plates=2)
    monkeypatch.setattr(line_log, "_QUIET_S", -1.0)
    poller, heard = poller_of(rig, tmp_path)

    def log_after_a_turn() -> LineLog:
        poller.turn()
        return heard[-1].log

    until(lambda: log_after_a_turn().newest_seq > 0, "the log")
    known = heard[-1].log
    with closing(sqlite3.connect(tmp_path / DATABASE, isolation_level=None)) as other:
        until(lambda: is_in_one_file(other), "the log for itself")
        other.execute("BEGIN EXCLUSIVE")
        held_at = time.time()
        until(lambda: "no answer" in log_after_a_turn().problem, "that the log is old")
        page = line_page("a", LIGHT, heard[-1])
        assert page.log_read_at is not None
        assert datetime.fromisoformat(page.log_read_at).timestamp() <= held_at
        assert [plate.result_id for plate in page.plates] == [one.result_id for one in known.plates]
        assert "reading" in [call.part for call in page.calls]
    until(lambda: log_after_a_turn().problem == "", "the log again")
    poller.stop()


def test_a_damaged_log_is_said_and_its_figures_are_old(
    rig: WebRig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_journal(tmp_path, plates=2)
    monkeypatch.setattr(line_log, "_QUIET_S", -1.0)
    poller, heard = poller_of(rig, tmp_path)

    def log_after_a_turn() -> LineLog:
        poller.turn()
        return heard[-1].log

    until(lambda: log_after_a_turn().newest_seq > 0, "the log")
    known = heard[-1].log
    damage(tmp_path)
    damaged_at = time.time()
    until(lambda: "malformed" in log_after_a_turn().problem, "that the log is damaged")
    poller.stop()
    page = line_page("a", LIGHT, heard[-1])
    assert page.log_read_at is not None
    assert datetime.fromisoformat(page.log_read_at).timestamp() <= damaged_at
    assert [plate.result_id for plate in page.plates] == [one.result_id for one in known.plates]
    said = {call.part: call.text for call in page.calls}
    assert "database disk image is malformed" in said["reading"]


def is_in_one_file(connection: sqlite3.Connection) -> bool:
    """Without a WAL, one that writes keeps all others from reading."""
    try:
        connection.execute("PRAGMA journal_mode = DELETE")
    except sqlite3.OperationalError:
        return False
    return True


def test_news_is_as_old_as_its_first_question(rig: WebRig, tmp_path: Path) -> None:
    poller, heard = poller_of(rig, tmp_path)
    asked = list[tuple[float, int]]()
    door = Door(tmp_path / next(iter(SOCKETS.values())), mode=0o600)

    def answer() -> None:
        with door.accept() as channel:
            channel.receive(timeout_s=30.0)
            asked.append((time.time(), time.monotonic_ns()))

    peer = threading.Thread(target=answer)
    peer.start()
    poller.turn()
    peer.join()
    poller.stop()
    door.close()
    assert heard[0].at <= asked[0][0]
    assert heard[0].heard_ns <= asked[0][1]


def test_an_escape_that_a_person_found_is_no_pass_in_the_strip(
    rig: WebRig, client: PageClient
) -> None:
    plate = StripPlate("s-1", NOW_TEXT, None, "PASS", "FAIL", None, 0, has_picture=False)
    rig.live.live = live(log=LineLog(plates=(plate,)))
    page = client.get("/", headers={"accept-language": "en"}).text
    strip = page.partition('class="strip"')[2].partition("</ol>")[0]
    assert 'class="strip-plate verdict-fail"' in strip
    assert '<span class="tag fail">FAIL</span>' in strip
    assert "Plate s-1, FAIL, " in strip
    assert "judged by a person; station: PASS" in strip


def test_what_stands_since_another_day_says_which(
    rig: WebRig, client: PageClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also on a page that stays open meanwhile, where nothing happens but that the day passes."""
    zone, friday = rig.web.zone, date(2026, 3, 6)
    held_at = datetime.combine(friday, clock_time(14, 2, 7), zone)
    silent = {"journal": Silence(held_at.timestamp(), "gone")}
    plate = StripPlate("s-2", rfc3339(held_at), None, "FAIL", None, None, 1, has_picture=False)
    shown = ShownPlate("s-2", None, rfc3339(held_at), held_at.timestamp())
    heard = live(
        at=held_at.timestamp(),
        lamp=lamp(LightState.FAIL, "s-2"),
        journal=None,
        silent=silent,
        log=LineLog(plates=(plate,), shown=shown),
    )
    feed = Feed(rig.web, {"line": SHOWN})

    def parts(today: date) -> list[str]:
        monkeypatch.setattr(Formatter, "today", property(lambda _: today))
        state = feed._state("line en", heard)
        return [json.loads(state[name]) for name in ("light", "station", "calls", "strip")]

    for part in parts(friday):
        assert "14:02:07" in part
        assert "6 Mar 2026" not in part
    for part in parts(date(2026, 3, 9)):
        assert "6 Mar 2026 14:02:07" in part
    rig.live.live = replace(heard, is_stale=True)
    page = client.get("/", headers={"accept-language": "en"}).text
    assert "No news since 6 Mar 2026 14:02:07" in page
    beat = feed._beat(heard)
    assert (beat["day"], beat["clock"]) == ("2026-03-06", "14:02:07")


def test_the_kiosk_shows_the_line_alone(client: PageClient) -> None:
    assert 'class="line kiosk' in client.get("/?kiosk").text
    assert 'class="line kiosk' not in client.get("/").text


def test_who_acknowledges_says_which_plate_was_seen(rig: WebRig) -> None:
    reviewer = rig.client_of(Role.REVIEWER)
    for shown, seen in (
        (lamp(LightState.FAIL, "s-7"), "s-7"),
        (lamp(LightState.PASS, "s-8"), "none"),
        (lamp(LightState.FAULT), "none"),
    ):
        rig.live.live = live(lamp=shown)
        page = reviewer.get("/").text
        assert f'<input type="hidden" name="seen" value="{seen}">' in page
        assert f'data-held="{seen}"' in page


def test_only_who_signed_in_acknowledges(rig: WebRig, client: PageClient) -> None:
    assert client.send_form("/line/acknowledge").status_code == 401
    answer = rig.client_of(Role.REVIEWER).send_json("/line/acknowledge.json", {})
    assert (answer.status_code, answer.json()["key"]) == (503, "errors.station_away")


# --- fan-out --------------------------------------------------------------------------------------


def test_a_client_gets_what_changed_since_what_it_knows() -> None:
    topic = Topic("x")
    assert topic.publish({"a": "1", "b": "1"})
    assert not topic.publish({"a": "1", "b": "1"}), "no news"
    assert topic.publish({"a": "1", "b": "2"})
    assert b'data: {"b":2}' in topic.event_after(1)
    assert b'data: {"a":1,"b":2}' in topic.event_after(0)
    assert topic.event_after(0) is topic.event_after(0), "made once for all"


def told(hub: Hub, number: int, size: int = 10) -> None:
    """News of a topic as the poller would give them."""
    hub.publish({"line en": {"light": json.dumps(f"{number} " + "x" * size)}}, {"ms": number})


def test_fifty_clients_get_everything_in_order(rig: WebRig) -> None:
    hub = rig.web.hub
    with httpx.Client(
        base_url=rig.url, limits=httpx.Limits(max_connections=None), timeout=30.0
    ) as shared:
        clients = [Listener(shared, "/line/live", {"accept-language": "en"}) for _ in range(50)]
        until(lambda: hub.clients == 50, "fifty clients")
        for number in range(1, 21):
            told(hub, number)
            until(lambda: _latest(hub) == number, "the loop's turn")  # noqa: B023
        for client in clients:
            until(lambda: client.shown.get("light", "").startswith("20 "), "the newest")  # noqa: B023
            ids = [int(i.split("-")[1]) for kind, i, _ in client.events if kind == "news"]
            assert ids == sorted(set(ids))
    until(lambda: hub.clients == 0, "all gone")


def _latest(hub: Hub) -> int:
    piece = hub.topic("line en").pieces.get("light")
    return int(json.loads(piece.encoded).split()[0]) if piece else 0


def test_a_slow_client_gets_the_newest_state_and_no_queue(rig: WebRig) -> None:
    hub, count, size = rig.web.hub, 60, 300_000
    host, port = rig.url.removeprefix("http://").split(":")
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        slow.connect((host, int(port)))
        head = "Accept-Language: en\r\nAccept: text/event-stream\r\n"
        slow.sendall(f"GET /line/live HTTP/1.1\r\nHost: {host}:{port}\r\n{head}\r\n".encode())
        until(lambda: hub.clients == 1, "the slow client")
        for number in range(1, count + 1):
            told(hub, number, size)
            until(lambda: _latest(hub) == number, "the loop's turn")  # noqa: B023
        slow.settimeout(30.0)
        read = b""
        while f'"{count} x'.encode() not in read:
            read += slow.recv(1 << 20)
        numbers = [int(part.split(b" x")[0]) for part in read.split(b'{"light":"')[1:]]
        assert numbers == sorted(numbers)
        assert len(numbers) < count / 2, "what was true meanwhile is left out"


def test_who_comes_back_hears_only_what_is_new(rig: WebRig) -> None:
    hub = rig.web.hub
    with listening(rig.url) as first:
        until(lambda: hub.clients == 1, "a client")
        told(hub, 1)
        first.sees("light", "1 x")
        known = [i for kind, i, _ in first.events if kind == "news"][-1]
        with listening(rig.url, **{"last-event-id": known}) as again:
            until(lambda: hub.clients == 2, "a stream")
            told(hub, 1)
            until(lambda: again.beats > 0, "a beat")
            assert again.shown == {}, "nothing is new"
        with listening(rig.url, **{"last-event-id": "otherlife-7"}) as other:
            other.sees("light", "1 x")


def test_nobody_is_shown_what_was_true_when_somebody_looked_last(rig: WebRig) -> None:
    hub = rig.web.hub
    until(lambda: hub.clients == 0, "nobody")
    with listening(rig.url) as first:
        until(lambda: hub.clients == 1, "a client")
        told(hub, 1)
        first.sees("light", "1 x")
    until(lambda: hub.clients == 0, "nobody again")
    with listening(rig.url) as second:
        until(lambda: hub.clients == 1, "another client")
        hub.publish({}, {"ms": 2})
        until(lambda: second.beats > 0, "a beat")
        assert second.shown == {}
        told(hub, 2)
        second.sees("light", "2 x")


def test_a_stream_ends_with_the_session_that_may_see_it(rig: WebRig) -> None:
    with listening(rig.url) as listener:
        until(lambda: listener.status == 200, "a stream")
        rig.people.is_open = False
        try:
            assert listener.has_ended.wait(30.0)
            assert rig.client().get("/live").status_code == 303
        finally:
            rig.people.is_open = True


# --- several lines --------------------------------------------------------------------------------


def test_lines_are_sorted_by_urgency_and_one_that_is_down_says_since_when(
    rig: WebRig, tmp_path: Path
) -> None:
    for name in "abc":
        (tmp_path / name).mkdir()
    with web_rig(tmp_path / "b", plates=0) as second, web_rig(tmp_path / "c", plates=0) as third:
        second.live.live = live(lamp=lamp(LightState.FAIL, "b-1"), began={"light": NOW})
        lines = "".join(
            f'[[web.stations]]\nname = "{name}"\nurl = "{url}"\n'
            for name, url in (("calm", third.url), ("failing", second.url),
                              ("gone", "http://127.0.0.1:9"))
        )  # fmt: skip
        third.live.live = live()
        with web_rig(tmp_path / "a", plates=0, web_lines=lines) as watching:
            watching.live.live = live()

            def heard() -> Json:
                answer = watching.client().get("/lines.json").json()
                return {row["name"]: row for row in answer["lines"]}

            until(lambda: heard()["failing"]["level"] == "fail", "the failing line")
            until(lambda: heard()["calm"]["light"] is not None, "the calm line")
            assert list(heard())[:2] == ["gone", "failing"], "down is as urgent as a fault"
            gone = heard()["gone"]
            assert (gone["is_down"], gone["why"], gone["down_since_at"]) == (True, "refused", None)
            page = watching.client().get("/lines").text
            assert f'href="{second.url}/plates/b-1"' in page
            third.people.is_open = False
            until(lambda: heard()["calm"]["is_down"], "the line that asks for a sign-in")
            assert heard()["calm"]["why"] == "refuses"
            assert heard()["calm"]["down_since_at"] is not None
            assert heard()["failing"]["level"] == "fail", "nobody else is held up"


def test_other_stations_read_the_line_in_short_with_the_token(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    asked = f'read_token_file = "{tmp_path / "token"}"'
    with web_rig(tmp_path / "s", plates=2, web_lines=asked) as rig:
        rig.people.is_open = False
        rig.live.live = live()
        client = rig.client()
        assert (
            client.get("/line/summary", headers={"accept": "application/json"}).status_code == 401
        )
        for word, status in ((TOKEN, 200), (TOKEN[1:], 401)):
            headers = {"authorization": f"Bearer {word}", "accept": "application/json"}
            assert client.get("/line/summary", headers=headers).status_code == status
        said = client.get("/line/summary", headers={"authorization": f"Bearer {TOKEN}"}).json()
        assert "plates" not in said
        assert said["light"]["state"] == "idle"


def test_another_line_is_asked_by_tls_and_with_its_token(tmp_path: Path) -> None:
    make_certificate(tmp_path / "tls", [], datetime.now(UTC))
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    certificate = tmp_path / "tls" / "cert.pem"
    served = (
        f'read_token_file = "{tmp_path / "token"}"\ntls_cert_file = "{certificate}"\n'
        f'tls_key_file = "{tmp_path / "tls" / "key.pem"}"\n'
    )
    for name in "ab":
        (tmp_path / name).mkdir()
    with web_rig(tmp_path / "b", plates=0, web_lines=served) as other:
        other.people.is_open = False
        other.live.live = live()
        trust, token = f'ca_file = "{certificate}"\n', f'token_file = "{tmp_path / "token"}"\n'
        lines = "".join(
            f'[[web.stations]]\nname = "{name}"\nurl = "{other.url}"\n{more}'
            for name, more in (("right", trust + token), ("stranger", token), ("unknown", trust))
        )
        with web_rig(tmp_path / "a", plates=0, web_lines=lines) as watching:

            def why() -> Json:
                rows = watching.client().get("/lines.json").json()["lines"]
                return {row["name"]: row["why"] for row in rows if row["light"] is None}

            wanted = {"stranger": "certificate", "unknown": "refuses"}
            until(lambda: why() == wanted, "who is answered and why the others are not")


def said_by(station_id: str) -> LineSummary:
    said = line_page(station_id, LIGHT, live()).model_dump(include=set(LineSummary.model_fields))
    return LineSummary.model_validate(said)


def plant_line(name: str, verdict: str = "PASS") -> PlantLine:
    return PlantLine(name, f"{name}-1", NOW_TEXT, verdict, None, NOW_TEXT)


def from_plant(line: PlantLine, asked_at: float, now: float) -> LineRow:
    rows = rows_of(said_by("s"), [], PlantNews((line,), asked_at), now)
    return next(row for row in rows if row.name == line.station_id)


@pytest.mark.parametrize(
    ("verdict", "asked_s", "rows_s", "level"),
    [
        ("PASS", 1.0, 30.0, None),
        ("PASS", 1.0, 3600.0, "attention"),
        ("PASS", 60.0, 60.0, "fault"),
        ("FAIL", 1.0, 3600.0, "fail"),
        ("FAIL", 60.0, 60.0, "fault"),
    ],
)
def test_a_line_of_the_plants_database_is_not_calm_where_nobody_knows(
    verdict: str, asked_s: float, rows_s: float, level: str | None
) -> None:
    now = NOW + rows_s
    row = from_plant(plant_line("line-9", verdict), now - asked_s, now)
    assert (row.level, row.is_current) == (level, max(rows_s - 600, asked_s - 20) <= 0)
    assert row.said_at == NOW_TEXT


def test_a_line_that_nobody_here_asks_has_no_link(rig: WebRig) -> None:
    row = from_plant(plant_line("line-9", "FAIL"), NOW, NOW)
    template = environment().get_template("line/_lines.html")
    page = lines_page(rig.web).model_copy(update={"lines": (row,)})
    html = template.render(t=Translator("en"), fmt=Formatter("en", rig.web.zone), page=page)
    assert "line-9" in html
    assert "href" not in html


def test_a_line_that_is_asked_and_in_the_plants_database_is_there_once() -> None:
    heard = Heard("Hall 2", "https://hall2", said_by("line-9"), NOW, time.monotonic())
    rows = rows_of(said_by("s"), [heard], PlantNews((plant_line("line-9"),), NOW), NOW)
    assert sorted(row.name for row in rows) == ["Hall 2", "s"]


def test_a_line_that_has_not_answered_yet_is_known_by_its_id() -> None:
    """This page started while it is down: the plant's database alone knows of its plates."""
    plant = PlantNews((plant_line("line-9", "FAIL"), plant_line("line-8")), NOW)
    given = {"name": "Hall 2", "url": "https://hall2"}
    for more, names in (
        ({"station_id": "line-9"}, ["Hall 2", "line-8", "s"]),
        ({}, ["Hall 2", "line-8", "line-9", "s"]),
    ):
        others = OtherStations([OtherStation.model_validate(given | more)])
        rows = rows_of(said_by("s"), others.heard, plant, NOW)
        assert sorted(row.name for row in rows) == names
        (row,) = [row for row in rows if row.name == "Hall 2"]
        assert (row.plant.result_id if row.plant else None) == ("line-9-1" if more else None)


@pytest.mark.long
def test_the_plants_database_says_what_it_knows_of_lines_that_nobody_here_asks(
    tmp_path: Path,
) -> None:
    pytest.importorskip("psycopg", reason="no psycopg here: pip install 'vqi-station[plant]'")
    from postgres_peer import running_postgres
    from ship_rig import make_plant, stored

    ids = small_journal(tmp_path / "other")
    with running_postgres() as server:
        plant = make_plant(server)
        with plant.hub() as hub, Reader(tmp_path / "other") as reader:
            hub.deliver(prepare("line-9", stored(tmp_path / "other"), Contexts(reader.body_of)))
        tables = f'[plant]\ndsn = "{plant.settings().dsn}"\n'
        (tmp_path / "page").mkdir()
        with web_rig(tmp_path / "page", plates=0, tables=tables) as rig:
            rig.live.live = live()

            def said() -> Json:
                answer: Json = rig.client().get("/lines.json").json()
                return answer

            until(lambda: len(said()["lines"]) == 2, "the plant's line")
            first, second = said()["lines"]
            assert (first["name"], first["level"]) == ("line-9", "undecided")
            assert first["plant"]["result_id"] == ids[-1]
            assert (second["name"], second["level"]) == ("s", None)
            assert ids[-1] in rig.client().get("/lines").text
            server.kill()
            until(lambda: said()["plant_problem"] != "", "that the database is gone")
            assert said()["plant_asked_at"] is not None
            assert len(said()["lines"]) == 2, "what it said last"
            assert rig.client().get("/lines").status_code == 200


# --- real processes -------------------------------------------------------------------------------


@contextmanager
def nobody_replaces(supervisor: int) -> Iterator[Callable[[str], None]]:
    """While it lasts, `kill(name)` kills a process and nobody starts it again."""
    pids = children(supervisor)
    os.kill(supervisor, signal.SIGSTOP)
    try:
        yield lambda name: os.kill(pids[name], signal.SIGKILL)
    finally:
        os.kill(supervisor, signal.SIGCONT)


def test_what_is_killed_while_the_page_is_open_is_said_and_no_green_stays(tmp_path: Path) -> None:
    slow_and_good = {"defective_share": 0.0, "gap_mm": 400.0}
    rig = Rig(tmp_path, specimen=slow_and_good)
    config = tmp_path / "page.toml"
    config.write_text(rig.write().read_text() + "[web]\nport = 0\n")
    with rig.running() as run:
        web = make_web(load_configuration(str(config)))
        with serving(web) as url, listening(url) as page, listening(url, "/live") as news:
            page.sees("light", "PASS", "record committed")
            page.sees("station", "inspects", "READY")
            page.sees("figures", "95 %")
            page.sees("strip", "/plates/test-1-", "/thumbnail.jpg")
            until(lambda: bool(news.shown.get("newest")), "the newest plate")
            with nobody_replaces(run.pid) as kill:
                kill("lamp")
                page.sees("light", "UNKNOWN", "Do not trust it")
                assert "is-on" not in page.shown["light"]
                page.sees("calls", "process does not answer", "since")
            page.sees("station", "lamp\n", "answers")
            until(lambda: 'data-state="unknown"' not in page.shown["light"], "a light again")
            with nobody_replaces(run.pid) as kill:
                kill("journal")
                page.sees("calls", "Nothing is recorded now")
                kill("station")
                page.sees("station", "does not answer", "READY is not known")
                page.sees("light", "FAULT")
                beats = page.beats
                until(lambda: page.beats > beats, "that somebody still looks")
            assert web.live.is_stale is False
            web.live_source.stop()
            until(lambda: web.live.is_stale, "that nobody looks any more")
            assert httpx.get(f"{url}/index.json").json()["light"]["state"] == "unknown"


# --- a real browser -------------------------------------------------------------------------------

CHROMIUM = shutil.which("chromium")


@pytest.mark.long
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")
def test_a_browser_never_goes_on_showing_green_that_is_old(tmp_path: Path) -> None:
    """The page's process hangs, is killed and comes back; the lamp process dies."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="no Chromium here: no playwright")
    slow_and_good = {"defective_share": 0.0, "gap_mm": 400.0}
    rig = Rig(tmp_path, specimen=slow_and_good)
    config = tmp_path / "page.toml"
    config.write_text(rig.write().read_text() + "[web]\nport = 8471\n")
    with rig.running() as run, sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        lit = page.locator(".lamp-green.is-on .glass:visible")
        is_old = page.locator("#stale:visible").filter(has_text="No news since")
        try:
            with running_web(config) as (url, web):
                page.goto(url)
                lit.wait_for()
                health = browser.new_page()
                health.goto(f"{url}/engineer")
                green = health.locator("#health .tag.pass")
                green.first.wait_for()
                os.kill(web.pid, signal.SIGSTOP)
                is_old.wait_for()
                assert lit.count() == 0
                health.locator("#health [data-old]:visible").wait_for()
                assert green.count() == 0
                os.kill(web.pid, signal.SIGCONT)
                is_old.wait_for(state="hidden")
                lit.wait_for()
                green.first.wait_for()
                health.close()
                with nobody_replaces(run.pid) as kill:
                    kill("lamp")
                    page.locator('.light[data-state="unknown"]').wait_for()
                    assert lit.count() == 0
                lit.wait_for(timeout=60_000)
                web.kill()
                is_old.wait_for()
                assert lit.count() == 0
            with running_web(config):
                is_old.wait_for(state="hidden", timeout=60_000)
                lit.wait_for()
        finally:
            browser.close()


@pytest.mark.long
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")
def test_a_page_that_is_old_when_it_is_opened_is_not_shown_as_now(rig: WebRig) -> None:
    """Its script goes on from what the server said, until news comes."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="no Chromium here: no playwright")
    rig.live.live = Live()
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            page = browser.new_page()
            page.goto(rig.url)
            for _ in range(5):
                page.wait_for_timeout(300)
                assert page.locator("#line.stale").count() == 1
        finally:
            browser.close()


@pytest.mark.long
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")
def test_the_last_verdict_is_as_old_as_the_station_says(rig: WebRig) -> None:
    """Its time has not come yet: the clock was set back. Alone that says no age."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="no Chromium here: no playwright")
    ahead = rfc3339(datetime.fromtimestamp(NOW + 3600, UTC))
    rig.live.live = live(station=station(last_verdict_at=ahead))
    beat: Json = {"at": NOW, "day": "2027-01-15", "clock": "09:00:00", "lease_s": None}
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            page = browser.new_page(locale="en-GB")
            page.goto(rig.url)
            age = page.locator(".line-figures time[data-age]")
            until(lambda: age.text_content() == "–", "no age")

            def age_after_beat(verdict_at: str | None, verdict_age_s: float | None) -> str:
                said = {"verdict_at": verdict_at, "verdict_age_s": verdict_age_s}
                ms = time.monotonic_ns() // 1_000_000
                rig.web.hub.publish({}, {"ms": ms, **beat, **said})
                return str(age.text_content())

            until(lambda: "12\N{NO-BREAK SPACE}s" in age_after_beat(ahead, 12.0), "its age")
            until(lambda: age_after_beat(None, None) == "–", "no age again")
        finally:
            browser.close()


def test_open_plates_that_are_not_counted_yet_are_not_none() -> None:
    page = line_page("a", LIGHT, live(journal={"rows": 9, "unsettled": None}))
    assert page.figures.open_plates is None
    assert "open" not in [call.part for call in page.calls]
