"""Serials, attempts, shifts and people in the records of a living station."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from pymodbus.client import ModbusTcpClient
from station_rig import Rig, check_conservation, vqi, wait_until
from test_plc import free_port
from test_qms import result

from drivers.plc import PlcInputs
from drivers.plc.register_map import input_registers
from station.config import ConfigError, load_configuration
from station.control import send_command
from station.log_reader import Reader
from station.log_verify import verify
from station.opc_names import opc_result
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


def labelled(tmp_path: Path, tables: str = "", **labels: object) -> Rig:
    """A belt whose plates have labels, under a simulated scanner."""
    pipe = str(tmp_path / "scanner")
    scanner = f'[identity.scanner]\ntype = "simulated"\npipe = "{pipe}"\n'
    camera = {"labels": {"pipe": pipe, "distance_mm": 50.0, "place_mm": 20.0, **labels}}
    return Rig(tmp_path, camera=camera, tables=_IDENTITY + scanner + _SHIFTS + tables)


def say(rig: Rig, what: str, text: str) -> Json:
    answer: Json = send_command(rig.runtime, what, text)
    return answer


def test_each_plate_has_its_serial_and_comes_again_as_the_next_attempt(tmp_path: Path) -> None:
    rig = labelled(tmp_path, unread=[2], doubled=[4])
    assert rig.run("--plates", "6").status == 0
    assert rig.run("--plates", "3").status == 0
    rows = rig.rows("result")
    first, again = rows[:6], rows[6:]
    for row in rows:
        number = f"SIM{row['plate_ordinal']:06d}"
        assert row["shift"].endswith(" all_day")
        expected = {2: "none", 4: "ambiguous"}.get(row["plate_ordinal"], "scanner")
        assert row["identity"] == expected
        assert row["part_id"] == (number if expected == "scanner" else None)
        if expected == "ambiguous":
            assert row["serials"] == [number, f"{number}-B"]
    assert [row.get("attempt") for row in first] == [1, None, 1, None, 1, 1]
    assert [row.get("attempt") for row in again] == [2, None, 2]
    assert [row.get("previous_result_id") for row in again] == [
        rows[0]["result_id"],
        None,
        rows[2]["result_id"],
    ]
    check_stages(rig)
    with Reader(rig.journal) as reader:
        assert verify(reader).findings == []
    check_conservation(rig)


def check_stages(rig: Rig) -> None:
    """Each stage of a plate in its order, up to the light."""
    results = {row["result_id"]: row for row in rig.rows("result")}
    for row in rig.rows("actuation"):
        decided_ns = results[row["result_id"]]["decided_ns"]
        assert row["scored_us"] <= 0 < row["received_us"] <= row["durable_us"]
        assert row["durable_us"] <= row["committed_us"]
        assert decided_ns + 1000 * row["committed_us"] <= row["commanded_ns"] + 1000


def test_what_people_say_holds_until_it_is_said_anew_and_over_a_restart(tmp_path: Path) -> None:
    rig = labelled(tmp_path)
    with rig.running():
        assert say(rig, "operator", " Anna ")["ok"]
        assert say(rig, "lot", "L-77")["ok"]
        assert say(rig, "job", "4711")["ok"]
        refused = say(rig, "operator", "An\u202ena")
        assert not refused["ok"]
        assert "printable ASCII" in refused["error"]
        assert rig.status()["given"] == {"operator": "Anna", "lot": "L-77", "job_id": "4711"}
        count = len(rig.rows("result"))
        wait_until(lambda: len(rig.rows("result")) > count + 2, 30.0, "plates")
    with rig.running():
        assert rig.status()["given"]["operator"] == "Anna"
        assert say(rig, "lot", "")["ok"]
        (tmp_path / "scanner").open("a").write("OP:Bert\n")
        wait_until(lambda: rig.status()["given"]["operator"] == "Bert", 10.0, "a badge")
    rows = rig.rows("result")
    assert {row.get("operator") for row in rows} >= {None, "Anna"}
    assert any(
        (row.get("operator"), row.get("lot"), row.get("job_id")) == ("Anna", "L-77", "4711")
        for row in rows
    )
    said = [
        (row["what"], row["detail"]["value"])
        for row in rig.rows("change")
        if "value" in row["detail"]
    ]
    assert said == [
        ("operator", "Anna"),
        ("lot", "L-77"),
        ("job", "4711"),
        ("lot", ""),
        ("operator", "Bert"),
    ]
    assert [row["who"] for row in rig.rows("change") if row["what"] == "operator"][-1] == "badge"


def test_readings_that_are_no_plates_are_rows_and_call_a_person(tmp_path: Path) -> None:
    rig = labelled(tmp_path)
    with rig.running():
        wait_until(lambda: len(rig.rows("result")) > 1, 30.0, "plates")
        with (tmp_path / "scanner").open("ab", buffering=0) as pipe:
            pipe.write(b"LGP\x07\x9b\r\n")
            wait_until(lambda: bool(rig.rows("serial")), 10.0, "a refusal")
        assert send_command(rig.runtime, "serial", "")["ok"] is False
        (refused,) = rig.rows("serial")
        assert (refused["why"], refused["serial"]) == ("refused", "LGP\\x07\\x9b")
        # A reading of nothing: in the gap between two plates, where no tolerance reaches.
        wait_until(lambda: stray(rig, tmp_path / "scanner"), 20.0, "an unclaimed serial")
        wait_until(lambda: bool(rig.status()["calls"]), 5.0, "a call")
        assert any("no plate took" in call for call in rig.status()["calls"])
        send_command(rig.runtime, "ack")
        assert not any("no plate took" in call for call in rig.status()["calls"])
        assert rig.status()["ready"]
    listed = vqi("log", "serials", "--journal", str(rig.journal))
    assert "refused" in listed.stdout
    assert "unclaimed" in listed.stdout


def stray(rig: Rig, pipe: Path) -> bool:
    with pipe.open("ab", buffering=0) as end:
        end.write(f"STRAY-{time.monotonic_ns()}\r\n".encode())
    time.sleep(0.07)  # slower than what is refused unread
    return any(row["why"] == "unclaimed" for row in rig.rows("serial"))


def test_a_serial_that_a_person_types_is_the_next_plates(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    with rig.running():
        assert say(rig, "serial", "HAND-1")["ok"]
        wait_until(lambda: any(row["part_id"] for row in rig.rows("result")), 30.0, "it")
    rows = [row for row in rig.rows("result") if row["part_id"] == "HAND-1"]
    assert [(row["identity"], row["attempt"]) for row in rows] == [("command", 1)]
    others = [row for row in rig.rows("result") if row["part_id"] is None]
    assert not any("identity" in row or "attempt" in row for row in others)


def test_serials_come_from_the_plc(tmp_path: Path) -> None:
    port = free_port()
    plc = f'[plc]\ntype = "modbus_server"\nhost = "127.0.0.1"\ntcp_port = {port}\n'
    rig = Rig(tmp_path, tables=_IDENTITY + plc + "has_serials = true\n")
    with rig.running():
        with ModbusTcpClient("127.0.0.1", port=port, timeout=2) as client:
            write = client.write_registers
            for number in range(12):
                inputs = PlcInputs(heartbeat=number, serials=number, serial=b"PLC-%d" % number)
                assert not write(0, input_registers(inputs, True), device_id=1).isError()
                time.sleep(0.1)  # the belt's pace: a label each 80 mm at 400 mm/s or so
            kept = client.read_holding_registers(0, count=37, device_id=1).registers
            assert kept == input_registers(inputs, True)
        wait_until(lambda: rig.status()["serials"].get("readings", 0) >= 11, 10.0, "readings")
    named = [row["part_id"] or row.get("serials") for row in rig.rows("result")]
    unclaimed = [row["serial"] for row in rig.rows("serial")]
    flat = [name for one in named if one for name in ([one] if isinstance(one, str) else one)]
    assert {f"PLC-{number}" for number in range(1, 12)} <= {*flat, *unclaimed}
    assert "PLC-0" not in flat, "what was there before is no reading"


def test_a_scanner_that_is_not_there_keeps_a_station_from_starting(tmp_path: Path) -> None:
    scanner = f'[identity.scanner]\ntype = "serial"\nport = "{tmp_path}/none"\n'
    rig = Rig(tmp_path, tables=_IDENTITY + scanner)
    done = rig.run("--plates", "1")
    assert done.status == 1
    assert "no serial port" in done.stderr
    found = vqi("check", "--config", str(rig.write()))
    assert "FAIL  scanner" in found.stdout


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


def test_a_row_without_new_facts_is_one_that_the_release_before_can_read() -> None:
    later = {"identity", "serials", "attempt", "previous_result_id", "job_id", "operator", "shift"}
    assert not later & result(1).as_json().keys()
    body = result(1)
    assert ResultBody.model_validate(body.as_json()) == body
