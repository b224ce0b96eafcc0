"""Serials, attempts, shifts and people in the records of a living station."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from ports import free_port
from pymodbus.client import ModbusTcpClient
from station_rig import Rig, vqi, wait_until
from test_qms import result

from drivers.plc import PlcInputs
from drivers.plc.register_map import input_registers
from station.config import ConfigError, load_configuration
from station.control import send_command
from station.given import Given
from station.log_reader import Reader
from station.log_verify import verify
from station.opc_names import opc_result
from station.outputs import Outputs
from station.qms import ContradictionError, Store
from station.record import ResultBody, Verdict

Json = dict[str, Any]

_SHIFTS = """
[journal.shifts]
timezone = "Europe/Berlin"
all_day = "00:00"
"""
_IDENTITY = """
[identity]
distance_mm = 50.0
tolerance_mm = 10.0
badge_prefix = "OP:"
"""


def labelled(tmp_path: Path, **labels: object) -> Rig:
    """A belt whose plates have labels, under a simulated scanner; so slow that a loaded machine
    does not read late."""
    pipe = str(tmp_path / "scanner")
    scanner = f'[identity.scanner]\ntype = "simulated"\npipe = "{pipe}"\n'
    labels = {"pipe": pipe, "distance_mm": 50.0, "place_mm": 2.0, **labels}
    camera = {"labels": labels, "line_rate_hz": 1000.0}
    specimen = {"gap_mm": 60.0}
    return Rig(tmp_path, camera=camera, specimen=specimen, tables=_IDENTITY + scanner + _SHIFTS)


def say(rig: Rig, what: str, text: str) -> Json:
    answer: Json = send_command(rig.runtime, what, text)
    return answer


@pytest.mark.long
def test_a_day_of_serials_reworked_parts_and_people(tmp_path: Path) -> None:
    """The first run's belt carries parts 1 to 5; the second one's the same ones again."""
    rig = labelled(tmp_path, unread=[2], doubled=[4])
    assert rig.run("--plates", "5").status == 0
    first = rig.rows("result")
    check_serials(first)
    check_stages(rig)
    assert [row.get("attempt") for row in first] == [1, None, 1, None, 1]
    with rig.running():
        say_who_and_what(rig)
        wait_until(lambda: len(rig.rows("result")) > 8, 30.0, "plates of the second run")
        listen_to_nonsense(rig, tmp_path / "scanner")
    again = [row for row in rig.rows("result")[5:] if row["part_id"]]
    assert [row["previous_result_id"] for row in again[:1]] == [first[0]["result_id"]]
    assert {row["attempt"] for row in again if row["plate_ordinal"] in (1, 3, 5)} == {2}
    late = [row for row in again if row["plate_ordinal"] > 5]
    assert all(row["attempt"] == 1 for row in late)
    with Store(rig.journal) as store:
        assert Given.of_log(store.given()) == Given("Bert", None, "4711")
    with Reader(rig.journal) as reader:
        assert verify(reader).findings == []


def check_serials(rows: list[Json]) -> None:
    for row in rows:
        number = f"SIM{row['plate_ordinal']:06d}"
        expected = {2: "none", 4: "ambiguous"}.get(row["plate_ordinal"], "scanner")
        assert (row["identity"], row["plate_ordinal"]) == (expected, row["plate_ordinal"])
        assert row["part_id"] == (number if expected == "scanner" else None)
        assert row.get("serials", []) == (
            [number, f"{number}-B"] if row["plate_ordinal"] == 4 else []
        )
        assert row["shift"].endswith(" all_day")


def check_stages(rig: Rig) -> None:
    """Each stage of a plate in its order, up to the light."""
    results = {row["result_id"]: row for row in rig.rows("result")}
    for row in rig.rows("actuation"):
        decided_ns = results[row["result_id"]]["decided_ns"]
        assert row["scored_us"] <= 0 < row["received_us"] <= row["durable_us"]
        assert row["durable_us"] <= row["committed_us"]
        assert decided_ns + 1000 * row["committed_us"] <= row["commanded_ns"] + 1000


def say_who_and_what(rig: Rig) -> None:
    assert say(rig, "operator", " Anna ")["ok"]
    assert say(rig, "lot", "L-77")["ok"]
    assert say(rig, "job", "4711")["ok"]
    refused = say(rig, "operator", "An\u202ena")
    assert not refused["ok"]
    assert "printable ASCII" in refused["error"]
    assert rig.status()["given"] == {"operator": "Anna", "lot": "L-77", "job_id": "4711"}
    wait_until(lambda: any(map(is_annas, rig.rows("result"))), 30.0, "a plate of Anna's")
    assert say(rig, "lot", "")["ok"]
    assert say(rig, "serial", "HAND-1")["ok"]
    assert not say(rig, "serial", "")["ok"]
    wait_until(
        lambda: any(map(is_said_twice, rig.rows("result"))), 30.0, "two serials of one plate"
    )


def is_annas(row: Json) -> bool:
    return (row.get("operator"), row.get("lot"), row.get("job_id")) == ("Anna", "L-77", "4711")


def is_said_twice(row: Json) -> bool:
    """By a person and by the scanner, or by the person alone."""
    return "HAND-1" in (row["part_id"], *row.get("serials", []))


def listen_to_nonsense(rig: Rig, pipe: Path) -> None:
    """Garbage, a badge, and labels that no plate has."""
    with pipe.open("ab", buffering=0) as end:
        end.write(b"LGP\x07\x9b\r\n")
        end.write(b"OP:Bert\r\n")
    wait_until(lambda: rig.status()["given"]["operator"] == "Bert", 10.0, "a badge")
    wait_until(lambda: "LGP\\x07\\x9b" in refused_by(rig), 10.0, "a refusal")
    wait_until(lambda: stray(rig, pipe), 30.0, "an unclaimed serial")
    wait_until(lambda: "no plate took" in str(rig.status()["calls"]), 5.0, "a call")
    assert rig.status()["ready"], "plates are judged all the same"
    say(rig, "ack", "")
    listed = vqi("log", "serials", "--journal", str(rig.journal)).stdout
    assert "refused" in listed
    assert "unclaimed" in listed


def refused_by(rig: Rig) -> list[str]:
    return [row["serial"] for row in rig.rows("serial") if row["why"] == "refused"]


def stray(rig: Rig, pipe: Path) -> bool:
    """A label somewhere on the belt; where no plate's tolerance reaches, sooner or later."""
    with pipe.open("ab", buffering=0) as end:
        end.write(f"STRAY-{time.monotonic_ns()}\r\n".encode())
    time.sleep(0.1)  # slower than what is refused unread
    rows = [row for row in rig.rows("serial") if row["serial"].startswith("STRAY")]
    return any(row["why"] == "unclaimed" for row in rows)


@pytest.mark.long
def test_a_serial_that_a_person_types_is_the_next_plates(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    with rig.running():
        assert say(rig, "serial", "HAND-1")["ok"]
        wait_until(lambda: any(row["part_id"] for row in rig.rows("result")), 30.0, "it")
    rows = [row for row in rig.rows("result") if row["part_id"] == "HAND-1"]
    assert [(row["identity"], row["attempt"]) for row in rows] == [("command", 1)]
    others = [row for row in rig.rows("result") if row["part_id"] is None]
    assert not any("identity" in row or "attempt" in row for row in others)


def plc_table(port: int) -> str:
    return f"""
[plc]
type = "modbus_server"
host = "127.0.0.1"
tcp_port = {port}
has_serials = true
"""


def write_serials(port: int, count: int, pause_s: float) -> None:
    """As a PLC does: a text, and a counter that changes with it."""
    with ModbusTcpClient("127.0.0.1", port=port, timeout=2) as client:
        for number in range(count):
            inputs = PlcInputs(heartbeat=number, serials=number, serial=b"PLC-%d" % number)
            words = input_registers(inputs, True)
            assert not client.write_registers(0, words, device_id=1).isError()
            time.sleep(pause_s)
        assert client.read_holding_registers(0, count=37, device_id=1).registers == words


def test_the_plc_says_serials_in_its_registers(tmp_path: Path) -> None:
    port = free_port()
    rig = Rig(tmp_path, tables=_IDENTITY + plc_table(port))
    outputs = Outputs(load_configuration(str(rig.write())).value, lambda: None)
    outputs.open(is_restart=False)
    heard: list[Json] = []
    write_serials(port, 4, pause_s=0.0)
    outputs.send_events(heard.append)
    outputs.close()
    texts = [event["text"] for event in heard if event["op"] == "serial"]
    assert texts == ["PLC-1", "PLC-2", "PLC-3"], "what was there before is no reading"


@pytest.mark.long
def test_serials_from_the_plc_are_in_records_or_said_to_be_in_none(tmp_path: Path) -> None:
    port = free_port()
    rig = Rig(tmp_path, tables=_IDENTITY + plc_table(port))
    with rig.running():
        write_serials(port, 12, pause_s=0.1)
        wait_until(lambda: rig.status()["serials"].get("readings", 0) >= 11, 10.0, "readings")
    found = {row["serial"] for row in rig.rows("serial")}
    for row in rig.rows("result"):
        found |= {row["part_id"], *row.get("serials", [])}
    assert found - {None} == {f"PLC-{number}" for number in range(1, 12)}


@pytest.mark.long
def test_a_scanner_that_is_not_there_keeps_a_station_from_starting(tmp_path: Path) -> None:
    scanner = f'[identity.scanner]\ntype = "serial"\nport = "{tmp_path}/none"\n'
    done = Rig(tmp_path, tables=_IDENTITY + scanner).run("--plates", "1")
    assert done.status == 1
    assert "no serial port" in done.stderr


def test_check_says_which_scanner_it_found(tmp_path: Path) -> None:
    found = vqi("check", "--config", str(labelled(tmp_path).write()))
    assert f"ok    scanner        simulated scanner at {tmp_path}/scanner" in found.stdout


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        (_IDENTITY, "nothing reads serials"),
        (_IDENTITY + '[identity.scanner]\ntype = "hid"\n', "identity.scanner.device"),
        ("[identity]\n", "identity.distance_mm: this key is missing"),
    ],
)
def test_a_mistake_is_told(tmp_path: Path, tables: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_configuration(str(Rig(tmp_path, tables=tables).write()))


# --- attempts -------------------------------------------------------------------------------------


def attempts(store: Store) -> list[tuple[str | None, int | None, str | None]]:
    with Reader(store.directory) as reader:
        rows = list(reader.bodies("result"))
    return [(r["part_id"], r.get("attempt"), r.get("previous_result_id")) for r in rows]


def test_attempts_are_counted_in_the_transaction_and_once(tmp_path: Path) -> None:
    """Two of a part in one group, one sent again, one of another part, one without."""
    with Store(tmp_path) as store:
        one, two = result(1, part_id="A"), result(2, part_id="A")
        first = store.append([one, two, result(3, part_id="B"), result(4)])
        assert store.append([two, one]) == [first[1], first[0]], "sent again"
        store.append([result(5, part_id="A"), one])
        ids = [result(number).result_id for number in (1, 2)]
        assert attempts(store) == [
            ("A", 1, None),
            ("A", 2, ids[0]),
            ("B", 1, None),
            (None, None, None),
            ("A", 3, ids[1]),
        ]


def test_a_row_sent_again_that_says_something_else_is_refused(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        store.append([result(1, part_id="A"), result(2, part_id="A")])
        with pytest.raises(ContradictionError):
            store.append([result(2, part_id="B")])


def test_attempts_of_a_program_that_counted_none_are_counted(tmp_path: Path) -> None:
    """As before this release: rows without `attempt`."""
    with Store(tmp_path) as store:
        store.append([result(number, part_id="A") for number in (1, 2)])
        _forget_attempts(store)
        store.append([result(3, part_id="A"), result(4, part_id="A")])
        assert [row[1] for row in attempts(store)][2:] == [3, 4]


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (
            "UPDATE plate SET attempt = 1 WHERE seq = 3",
            "says attempt 1 of part A, after s-00000001; by the rows it is 2",
        ),
        (
            "UPDATE row SET body = json_set(body, '$.previous_result_id', 'x') WHERE seq = 3",
            "says attempt 2 of part A, after x; by the rows it is 2, after s-00000001",
        ),
    ],
)
def test_attempts_that_cannot_be_are_named(tmp_path: Path, edit: str, said: str) -> None:
    """Tamper: a rework that looks like a first pass, or follows another plate."""
    with Store(tmp_path) as store:
        store.append([result(number, part_id="A") for number in (1, 2, 3)])
        connection = store._connection
        connection.exec_driver_sql("DROP TRIGGER row_no_update")
        connection.exec_driver_sql(edit)
        connection.commit()
    with Reader(tmp_path) as reader:
        findings = verify(reader).findings
    assert [text for text in findings if said in text], findings


def _forget_attempts(store: Store) -> None:
    """Tamper: what an earlier release would have written."""
    connection = store._connection
    connection.exec_driver_sql("DROP TRIGGER row_no_update")
    connection.exec_driver_sql(
        "UPDATE row SET body = json_remove(body, '$.attempt', '$.previous_result_id')"
    )
    connection.commit()


# --- names of OPC 40100-1 -------------------------------------------------------------------------


def test_a_result_under_the_standards_names() -> None:
    body = result(7, part_id="A", job_id="4711", opened_ns=10**9, decided_ns=3 * 10**9,
                  last_scan_line_ns=2 * 10**9).as_json()  # fmt: skip
    found = opc_result(body)
    assert found["ResultId"] == found["JobId"] == {"Id": body["result_id"]}
    assert (found["PartId"], found["MeasId"]) == ({"Id": "A"}, {"Id": "4711"})
    assert found["ResultState"] == 1
    assert found["InternalRecipeId"]["Version"] == str(body["recipe_version"])
    assert found["InternalConfigurationId"]["Hash"] == body["configuration_sha256"]
    times = found["ProcessingTimes"]
    assert times["EndTime"] == found["CreationTime"] == body["written_at"]
    assert (times["AcquisitionDuration"], times["ProcessingDuration"]) == (1000.0, 1000.0)
    assert times["StartTime"] < times["EndTime"]
    (content,) = found["ResultContent"]
    assert content["verdict"] == "OK"
    assert not {"result_id", "part_id", "recipe_id"} & content.keys()


@pytest.mark.parametrize(
    ("reason", "state"), [("interrupted", 3), ("belt stopped", 3), ("incomplete", 4), ("gap", 4)]
)
def test_an_undecided_result_is_never_completed(reason: str, state: int) -> None:
    body = result(7, Verdict.UNDECIDED, reason=reason).as_json()
    found = opc_result(body)
    assert found["ResultState"] == state
    assert found["ResultContent"][0]["verdict"] == "NotDecidable"
    assert (found["ProcessingTimes"] is None) == (reason == "interrupted")


def test_every_field_of_a_result_is_in_it_once() -> None:
    body = result(7, part_id="A").as_json()
    found = opc_result(body)
    assert body.keys() - found["ResultContent"][0].keys() == {
        *("result_id", "is_simulated", "part_id", "recipe_id", "recipe_version", "recipe_sha256"),
        *("configuration_sha256", "written_at", "opened_ns", "last_scan_line_ns", "decided_ns"),
    }


def test_a_row_of_a_later_release_is_read_without_what_is_not_known() -> None:
    body = result(1)
    assert ResultBody.of_log(body.as_json() | {"not_invented_yet": 7}) == body


def test_a_row_without_new_facts_is_one_that_the_release_before_can_read() -> None:
    later = {"identity", "serials", "attempt", "previous_result_id", "job_id", "operator", "shift"}
    assert not later & result(1).as_json().keys()
    body = result(1)
    assert ResultBody.model_validate(body.as_json()) == body
