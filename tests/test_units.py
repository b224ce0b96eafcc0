"""The units say what the supervisor does, systemd accepts them, and they expose little."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st
from modbus_peer import ModbusPeer
from pty_recorder import PtyRecorder
from station_rig import Rig, start_vqi, vqi

from drivers.plc.settings import ModbusServerSettings
from drivers.stacklight import LightState
from station.config import ConfigError, WebSettings, load_configuration
from station.idle import _FIRST_TO_GO
from station.lamp import LampClient
from station.lock import LAMP_LOCK
from station.page_door import ACCOUNT, door_of
from station.supervisor import JOURNAL, LAMP, METRICS, SHADOW, STATION, WEB, Role
from station.systemd import LONGEST_PAUSE_S, STEADY_S, UnitLife, pauses_after

CHECKOUT = Path(__file__).parents[1]
DEPLOY = CHECKOUT / "deploy"
UNITS = DEPLOY / "systemd"
SERVICES = (
    "vqi-lamp",
    "vqi-journal",
    "vqi-station",
    "vqi-metrics",
    "vqi-web",
    "vqi-ship",
    "vqi-shadow",
)
RUN_TIME_CODE = DEPLOY / "drop-ins" / "run-time-code.conf"
Settings = dict[str, list[str]]

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="no systemd-analyze here"
)


def read(*paths: Path) -> Settings:
    """Settings of unit files, of all sections, each later value after the ones before it."""
    found: Settings = {}
    for path in paths:
        for line in path.read_text().splitlines():
            if line and line[0] not in "#[":
                key, _, value = line.partition("=")
                found.setdefault(key, []).append(value)
    return found


def settings_of(service: str) -> Settings:
    """As systemd reads them: the unit's file, then all drop-ins by their names."""
    own = UNITS / f"{service}.service.d" / "20-own.conf"
    files = [UNITS / f"{service}.service", UNITS / "vqi-.service.d" / "10-vqi.conf"]
    return read(*files, *([own] if own.exists() else []))


def seconds(text: str) -> float:
    return float(text[:-2]) / 1000 if text.endswith("ms") else float(text)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that looks like a machine on which the units are installed."""
    root = tmp_path_factory.mktemp("machine")
    shutil.copytree("/usr/lib/systemd/system", root / "usr/lib/systemd/system", symlinks=True)
    shutil.copytree(UNITS, root / "etc/systemd/system")
    for name in ("opt/vqi/current/bin/vqi", "opt/vqi/current/bin/python", "bin/grep"):
        program = root / name
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
    return root


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", *arguments], capture_output=True, text=True, check=False
    )


@needs_systemd
@pytest.mark.parametrize(
    "unit", [*(f"{name}.service" for name in SERVICES), "vqi.target", "vqi.slice"]
)
def test_systemd_accepts_each_unit(machine: Path, unit: str) -> None:
    done = analyze("verify", "--man=no", f"--root={machine}", unit)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "")


def exposure(machine: Path, unit: str, tenths: int) -> str:
    done = analyze(
        *("security", "--offline=yes", "--no-pager", f"--root={machine}", f"--threshold={tenths}"),
        f"{unit}.service",
    )
    return "" if done.returncode == 0 else done.stdout


@needs_systemd
@pytest.mark.parametrize("unit", SERVICES)
def test_no_unit_is_exposed_beyond_1_3(machine: Path, unit: str) -> None:
    assert not exposure(machine, unit, 13)


GIVES_WAY = ("vqi-journal", "vqi-station", "vqi-web", "vqi-ship", "vqi-report", "vqi-shadow")


def refused_calls(machine: Path, unit: str) -> set[str]:
    """Sets of system calls that no process of the unit may make, as systemd itself says."""
    done = analyze(
        *("security", "--offline=yes", "--no-pager", "--json=short", f"--root={machine}"),
        f"{unit}.service",
    )
    rows = json.loads(done.stdout)
    return {row["json_field"] for row in rows if row["set"] and "SystemCall" in row["json_field"]}


@needs_systemd
@pytest.mark.parametrize("unit", [*SERVICES, "vqi-report"])
def test_what_lets_others_go_first_may_do_so_and_no_other(machine: Path, unit: str) -> None:
    refused = refused_calls(machine, unit)
    assert ("SystemCallFilter_resources" in refused) == (unit not in GIVES_WAY)
    reads_clock = unit in ("vqi-journal", "vqi-metrics")
    assert ("SystemCallFilter_clock" in refused) != reads_clock
    assert "SystemCallFilter_swap" in refused


@pytest.mark.parametrize("service", [*SERVICES, "vqi-report"])
def test_no_unit_says_what_the_shared_drop_in_takes_back(service: str) -> None:
    """A drop-in is read after the unit's file, whatever it is named."""
    shared = read(UNITS / "vqi-.service.d" / "10-vqi.conf")
    own = read(UNITS / f"{service}.service")
    assert own.keys() & shared.keys() <= {"Environment"}


@needs_systemd
def test_code_made_at_run_time_stays_below_1_5_and_is_the_stations_alone(machine: Path) -> None:
    drop_in = machine / "etc/systemd/system/vqi-station.service.d" / RUN_TIME_CODE.name
    drop_in.parent.mkdir(exist_ok=True)
    shutil.copy(RUN_TIME_CODE, drop_in)
    try:
        assert not exposure(machine, "vqi-station", 15)
    finally:
        shutil.rmtree(drop_in.parent)
    assert read(RUN_TIME_CODE) == {"MemoryDenyWriteExecute": ["no"]}
    for service in SERVICES:
        assert settings_of(service)["MemoryDenyWriteExecute"] == ["yes"]


@pytest.mark.parametrize("role", [LAMP, JOURNAL, STATION, METRICS, WEB, SHADOW])
def test_units_and_supervisor_wait_equally_long(role: Role) -> None:
    settings = settings_of(f"vqi-{role.name}")
    assert seconds(settings["WatchdogSec"][-1]) == role.watchdog_s
    assert seconds(settings["TimeoutStartSec"][-1]) == role.start_limit_s
    assert settings["ExecStart"] == [f"/opt/vqi/current/bin/vqi serve {role.name}"]


@pytest.mark.parametrize("service", SERVICES)
def test_each_unit_comes_back_for_ever_but_from_a_bad_configuration(service: str) -> None:
    settings = settings_of(service)
    for key, value in {
        "Type": "notify",
        "NotifyAccess": "main",
        "Restart": "always",
        "StartLimitIntervalSec": "0",
        "RestartPreventExitStatus": "78",
        "WatchdogSignal": "SIGABRT",
        "KillMode": "mixed",
        "LimitCORE": "0",
        "RuntimeDirectoryPreserve": "yes",
        "LogNamespace": "vqi",
        "DevicePolicy": "closed",
        "CapabilityBoundingSet": "",
        "RestrictRealtime": "yes",
        "SystemCallErrorNumber": "EPERM",
    }.items():
        assert settings[key] == [value], key
    # What others can reach is another user, and may not take the others' folder from them.
    is_web = service == "vqi-web"
    for key, own in {"User": "vqi-web", "Group": "vqi-web"}.items():
        assert settings[key] == (["vqi", own] if is_web else ["vqi"]), key
    folders = ["vqi", "", "vqi-web"] if is_web else ["vqi"]
    assert settings["RuntimeDirectory"] == folders
    # What stops for good until a person comes is not looked at every second.
    is_patient = service == "vqi-ship"
    assert settings["RestartSec"] == (["0", "60"] if is_patient else ["0"])
    assert not {"Requires", "BindsTo", "Requisite", "StartLimitBurst"} & settings.keys()
    # A process that does not even die of SIGABRT is not waited for longer than the watchdog.
    assert seconds(settings["TimeoutAbortSec"][-1]) <= seconds(settings["WatchdogSec"][-1])


def test_only_the_lamps_unit_may_open_the_lights_port() -> None:
    ports = re.compile("tty|gpio")
    for service in SERVICES:
        settings = settings_of(service)
        allowed = [value for value in settings.get("DeviceAllow", []) if ports.search(value)]
        assert bool(allowed) == (service == "vqi-lamp")
        assert settings.get("PrivateDevices") == (
            ["yes"] if "DeviceAllow" not in settings else None
        )
        assert ("ExecStopPost" in settings) == (service == "vqi-lamp")


def test_the_page_comes_to_the_others_by_their_doors_and_listens_at_its_port_only() -> None:
    settings = settings_of("vqi-web")
    made = (DEPLOY / "tmpfiles.d" / "vqi.conf").read_text()
    users = (DEPLOY / "sysusers.d" / "vqi.conf").read_text()
    assert settings["SupplementaryGroups"] == [ACCOUNT, "systemd-journal"]
    assert f"d {door_of(Path('/run/vqi/journal.sock')).parent} 2750 vqi {ACCOUNT} -" in made
    assert f"m vqi-web {ACCOUNT}\n" in users
    assert "m vqi-web vqi\n" not in users
    # A group that may read every log of the machine: only the units' own is there to be read.
    logs = ("/var/log/journal", "/run/log/journal")
    assert settings["TemporaryFileSystem"] == [" ".join(f"{one}:ro" for one in logs)]
    own = " ".join(f"-{one}/%m.{settings['LogNamespace'][0]}" for one in logs)
    assert settings["BindReadOnlyPaths"] == [own]
    assert settings["SocketBindDeny"] == ["any"]
    assert settings["SocketBindAllow"] == [f"tcp:{WebSettings().port}"]


def test_what_a_unit_starts_goes_first_and_does_not_stop_it() -> None:
    for service in ("vqi-journal", "vqi-station", "vqi-web"):
        settings = settings_of(service)
        assert settings["OOMPolicy"] == ["continue"]
        assert int(settings["OOMScoreAdjust"][-1]) < int(_FIRST_TO_GO)


def test_memory_and_cores_go_to_the_lamp_first() -> None:
    def numbers(key: str) -> list[int]:
        return [int(settings_of(name)[key][-1]) for name in SERVICES]

    assert numbers("OOMScoreAdjust") == sorted(numbers("OOMScoreAdjust"))
    assert numbers("Nice") == sorted(numbers("Nice"))
    assert all("MemoryMax" in settings_of(name) for name in SERVICES if name != "vqi-lamp")
    # The camera process may go alone.
    assert settings_of("vqi-station")["OOMPolicy"] == ["continue"]


def test_what_gives_way_gives_way_to_all_units() -> None:
    """One scheduling group: in one of its own, an idle process would keep the others' cores."""
    assert read(UNITS / "vqi.slice")["CPUWeight"] == ["300"]
    for service in SERVICES:
        settings = settings_of(service)
        assert settings["Slice"] == ["vqi.slice"]
        assert not [key for key in settings if key.startswith("CPU") and "Scheduling" not in key]
    for service in ("vqi-web", "vqi-ship", "vqi-report"):
        assert read(UNITS / f"{service}.service")["CPUSchedulingPolicy"] == ["idle"]


def test_the_log_of_the_units_is_bounded() -> None:
    settings = read(DEPLOY / "journald" / "journald@vqi.conf")
    assert {"SystemMaxUse", "RuntimeMaxUse", "MaxRetentionSec", "SystemKeepFree"} <= settings.keys()


def test_the_installed_simulation_uses_the_units_folders() -> None:
    here = load_configuration(str(CHECKOUT / "config" / "simulated-service.toml")).value
    assert here.station.runtime_dir == Path("/run") / settings_of("vqi-lamp")["RuntimeDirectory"][0]
    assert Path("/var/lib/vqi") in here.journal.directory.parents
    demo = load_configuration(str(CHECKOUT / "config" / "simulated.toml")).value
    labels = {"labels": {"pipe": "the run time folder's"}}
    for one in (here, demo):
        assert one.identity is not None
        assert one.station.runtime_dir / "scanner" == Path(one.identity.scanner.pipe)
    assert here.camera.model_dump() | labels == demo.camera.model_dump() | labels
    assert here.light == demo.light


# --- what the lamp's unit does at the end of its process ------------------------------------------


@contextmanager
def as_unit(
    folder: Path, *arguments: str
) -> Iterator[tuple[subprocess.Popen[bytes], socket.socket]]:
    """`vqi ARGUMENTS` started as the service manager starts it, and what it tells the manager."""
    address = folder / "notify"
    address.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(address))
        manager.settimeout(30.0)
        environment = {**os.environ, "NOTIFY_SOCKET": str(address)}
        command = [sys.executable, "-P", "-m", "station.cli", *arguments]
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
        try:
            yield process, manager
        finally:
            process.kill()
            process.wait()


def told_before_ready(manager: socket.socket) -> list[str]:
    told: list[str] = []
    while "READY=1" not in told:
        told += manager.recv(4096).decode().split("\n")
    return told


_ACCEPT = """
[accept]
distance_mm = 100.0
pulse_ms = 100
device = {device}
"""


def test_the_stop_command_imports_no_more_than_it_needs(tmp_path: Path) -> None:
    config = str(Rig(tmp_path).write())
    code = "import runpy, sys; runpy.run_module('station.fault', run_name='fault').get('main')()"
    code += (
        "; print(sorted({'numpy', 'typer', 'structlog', 'pymodbus', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        env={**os.environ, "VQI_CONFIG": config},
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout == "[]\n"


def stop_command(words: str, config: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words.split()],
        env={
            **os.environ,
            "VQI_CONFIG": config,
            "RUNTIME_DIRECTORY": str(Path(config).parent / "run"),
        },
        check=False,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGABRT])
def test_the_stop_command_writes_fault_however_the_lamp_process_ended(
    tmp_path: Path, number: signal.Signals
) -> None:
    stop = settings_of("vqi-lamp")["ExecStopPost"][0].removeprefix("-/opt/vqi/current/bin/python ")
    with PtyRecorder() as tower, ModbusPeer() as module:
        light = {"device": {"type": "serial_tower", "port": str(tower.device)}}
        accept = f'type = "modbus", host = "127.0.0.1", tcp_port = {module.port}'
        tables = _ACCEPT.format(device=f"{{ {accept}, outputs = {{ accept = 0 }} }}")
        config = str(Rig(tmp_path, light=light, tables=tables).write())
        with as_unit(tmp_path, "serve", "lamp", "--config", config) as (process, manager):
            told_before_ready(manager)
            with LampClient(tmp_path / "run") as client:
                client.connect(5.0)
                assert "a lamp process lives" in stop_command(stop, config).stderr
                client.send_show(LightState.PASS_NOT_PRODUCTION, "a-1", None, 1.2)
                tower.wait_for(lambda: "green" in tower.elements())
                process.send_signal(number)
                process.wait(5.0)
        assert "green" in tower.elements(), "this light latches"
        module.coils[0] = True  # and so does an output
        Path(config).write_text("[light")  # which somebody is editing
        done = stop_command(stop, config)
        assert (done.returncode, done.stderr) == (0, "")
        tower.wait_for(lambda: tower.elements() == {"red": "blink"})
        assert not module.lit()[0]


def test_the_stop_command_writes_fault_where_the_lock_cannot_be_opened(tmp_path: Path) -> None:
    """As on a disk that became read-only, for root too."""
    stop = settings_of("vqi-lamp")["ExecStopPost"][0].removeprefix("-/opt/vqi/current/bin/python ")
    with PtyRecorder() as tower:
        light = {"device": {"type": "serial_tower", "port": str(tower.device)}}
        config = str(Rig(tmp_path, light=light).write())
        (tmp_path / "run" / LAMP_LOCK).mkdir(parents=True)
        os.write(tower.slave, b"\x14")
        tower.wait_for(lambda: tower.elements().get("green") == "on")
        done = stop_command(stop, config)
        assert done.returncode == 1
        assert len(done.stderr.splitlines()) == 1
        assert f"{LAMP_LOCK}: Is a directory" in done.stderr
        tower.wait_for(lambda: tower.elements() == {"red": "blink"})


# --- starting again -------------------------------------------------------------------------------


@given(st.lists(st.floats(0, 2 * STEADY_S), max_size=30), st.booleans())
def test_pauses_grow_while_starts_fail_and_end_with_a_steady_life(
    lives_s: list[float], is_replaced_at_once: bool
) -> None:
    planned_s = pause_s = 0.0
    for life_s in lives_s:
        pauses = pauses_after(life_s, planned_s, is_replaced_at_once)
        assert 0 <= pauses.pause_s <= pauses.next_s <= LONGEST_PAUSE_S
        if life_s >= STEADY_S:
            assert pauses.pause_s == 0
        elif pauses.pause_s:
            assert pauses.pause_s >= pause_s
        planned_s, pause_s = pauses.next_s, pauses.pause_s


def test_starts_that_fail_at_once_wait_longer_each_time() -> None:
    planned_s, found = 0.0, []
    for _ in range(8):
        pauses = pauses_after(0.1, planned_s, is_replaced_at_once=True)
        found.append(pauses.pause_s)
        planned_s = pauses.next_s
    assert found == [0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 5.0, 5.0]


def test_a_life_is_remembered_until_it_ended_as_it_should(tmp_path: Path) -> None:
    file = tmp_path / "station.life"
    first = UnitLife(file, is_replaced_at_once=False)
    first.begin(1.0)
    second = UnitLife(file, is_replaced_at_once=False)
    assert (first.is_restart, second.is_restart) == (False, True)
    second.end()
    assert not UnitLife(file, is_replaced_at_once=False).is_restart
    file.write_text('{"next_pause')  # cut short by a power cut
    damaged = UnitLife(file, is_replaced_at_once=False)
    assert damaged.is_restart
    assert damaged.pauses.pause_s > 0


def test_a_killed_unit_tells_the_manager_how_long_it_waits(tmp_path: Path) -> None:
    """The first start again does not wait, the next one does; after a stop in order none does."""
    config = str(Rig(tmp_path).write())
    waits = []
    for end in (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGTERM):
        with as_unit(tmp_path, "serve", "journal", "--config", config) as (process, manager):
            told = told_before_ready(manager)
            said = [line for line in told if line.startswith("STATUS=starts in")]
            waits.append(float(said[0].split()[2]) if said else 0.0)
            assert bool(said) == any(line.startswith("EXTEND_TIMEOUT_USEC=") for line in told)
            process.send_signal(end)
            assert process.wait(10.0) == (0 if end is signal.SIGTERM else -end)
    assert waits == [0.0, 0.0, 0.25, 0.0]


def test_a_lamp_unit_that_failed_comes_up_without_its_device(tmp_path: Path) -> None:
    """A missing tower fails the first start; what starts again looks for it, ready meanwhile."""
    light = {"device": {"type": "serial_tower", "port": str(tmp_path / "tower")}}
    config = str(Rig(tmp_path, light=light).write())
    with as_unit(tmp_path, "serve", "lamp", "--config", config) as (process, _):
        assert process.wait(20.0) == 1
    with as_unit(tmp_path, "serve", "lamp", "--config", config) as (process, manager):
        told_before_ready(manager)
        with PtyRecorder(tmp_path / "tower") as tower:
            tower.wait_for(lambda: tower.elements() == {"red": "blink"})
            process.terminate()
            assert process.wait(10.0) == 0


def test_a_lamp_unit_comes_up_once_a_person_has_done_with_the_light(tmp_path: Path) -> None:
    with PtyRecorder(tmp_path / "tower") as tower:
        light = {"device": {"type": "serial_tower", "port": str(tmp_path / "tower")}}
        config = str(Rig(tmp_path, light=light).write())
        trying = start_vqi("light", "show", "fail", "--seconds", "600", "--config", config)
        try:
            tower.wait_for(lambda: tower.elements() == {"red": "on"}, 20.0)
            with as_unit(tmp_path, "serve", "lamp", "--config", config) as (process, _):
                assert process.wait(20.0) == 1
        finally:
            trying.terminate()
            trying.wait(10.0)
        with as_unit(tmp_path, "serve", "lamp", "--config", config) as (process, manager):
            told_before_ready(manager)
            process.terminate()
            assert process.wait(10.0) == 0


def remount(folder: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", str(folder)], check=True)


@pytest.mark.parametrize("process", ["lamp", "journal", "station"])
def test_a_disk_that_became_read_only_is_no_bad_configuration(
    tmp_path: Path, small_disk: Path, process: str
) -> None:
    """No edit mends it, and a unit is started again after any other status than 78."""
    rig = Rig(tmp_path, station={"runtime_dir": str(small_disk / "run")})
    if process == "journal":
        rig.journal_folder = small_disk / "journal"
    config = str(rig.write())
    remount(small_disk, "ro")
    try:
        done = vqi("serve", process, "--config", config)
    finally:
        remount(small_disk, "rw")
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr
    assert "cannot be used: Read-only file system" in done.stderr


def test_a_failure_that_no_file_remembers_waits_at_its_end(
    tmp_path: Path, small_disk: Path
) -> None:
    """Else the service manager would start it again and again without a pause."""
    config = str(Rig(tmp_path, station={"runtime_dir": str(small_disk / "run")}).write())
    remount(small_disk, "ro")
    try:
        began_s = time.monotonic()
        with as_unit(tmp_path, "serve", "lamp", "--config", config) as (process, _):
            assert process.wait(30.0) == 1
        assert time.monotonic() - began_s > LONGEST_PAUSE_S
    finally:
        remount(small_disk, "rw")
    with as_unit(tmp_path, "serve", "lamp", "--config", config) as (process, manager):
        told_before_ready(manager)


@pytest.mark.parametrize(
    ("number", "status"),
    [(errno.ENOTDIR, 78), (errno.EACCES, 78), (errno.EROFS, 1), (errno.ENFILE, 1), (errno.EIO, 1)],
)
def test_only_a_wrong_path_or_wrong_rights_are_a_bad_configuration(
    monkeypatch: pytest.MonkeyPatch, number: int, status: int
) -> None:
    def fail(path: Path) -> bytes:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(ConfigError, match=os.strerror(number)) as caught:
        load_configuration("station.toml")
    assert caught.value.status == status


def test_what_units_name_as_their_documentation_is_in_a_release() -> None:
    units = [path for path in DEPLOY.rglob("*") if path.suffix in (".service", ".socket", ".conf")]
    named = {name for path in units for name in read(path).get("Documentation", [])}
    assert named
    for name in named:
        file = name.removeprefix("file:///opt/vqi/current/")
        assert file.split("/")[0] in ("deploy", "docs")
        assert (CHECKOUT / file).is_file()


# --- the installer --------------------------------------------------------------------------------


def test_the_self_test_runs_in_the_stations_sandbox(installer: ModuleType, tmp_path: Path) -> None:
    for name, is_lifted in (("1-abc", False), ("1-abc-edge", True)):
        release = tmp_path / name
        shutil.copytree(DEPLOY, release / "deploy")
        unit = tmp_path / "unit"
        unit.write_text(installer.self_test_unit(release, {}))
        found, station = read(unit), settings_of("vqi-station")
        for key, values in station.items():
            if key in found and key.startswith(("Protect", "Restrict", "Private", "SystemCall")):
                assert found[key] == values
        assert found["User"] == ["vqi"]
        assert found["ExecStart"][-2:] == ["", f"{release}/bin/vqi check --json"]
        assert found["Type"][-1] == "oneshot"
        assert (found["MemoryDenyWriteExecute"][-1] == "no") == is_lifted
        assert set(settings_of("vqi-lamp")["DeviceAllow"]) <= set(found["DeviceAllow"])


def test_the_self_test_may_what_the_sites_drop_ins_will_let_the_units(
    installer: ModuleType, tmp_path: Path
) -> None:
    """They are placed after it."""
    release = tmp_path / "1-abc"
    shutil.copytree(DEPLOY, release / "deploy")
    config = {
        "station": {"recipe_dir": "/data/recipes"},
        "journal": {"directory": "/data/journal"},
        "plc": {"type": "modbus_server"},
        "identity": {"scanner": {"type": "serial", "port": "/dev/serial/by-id/a"}},
    }
    unit = tmp_path / "unit"
    unit.write_text(installer.self_test_unit(release, config))
    found = read(unit)
    assert {"-/data/journal", "-/data/recipes"} <= set(found["ReadWritePaths"])
    assert "CAP_NET_BIND_SERVICE" in found["AmbientCapabilities"]
    assert "/dev/serial/by-id/a rw" in found["DeviceAllow"]


def test_a_failed_part_stops_an_upgrade_but_for_devices_in_use(installer: ModuleType) -> None:
    installer.judge(self_test_rows(), "success", "0")
    installer.judge(self_test_rows(camera=False, light=False), "exit-code", "1")
    bad = (self_test_rows(model=False), self_test_rows(journal=False), "", "vqi: unknown key")
    for output in bad:
        with pytest.raises(installer.Failure, match="the self-test failed"):
            installer.judge(output, "exit-code", "1")


def test_a_roll_back_says_what_is_held(installer: ModuleType) -> None:
    for light in ("fail", "undecided"):
        said = installer.held({"light": light, "light_result_id": "s-00000007"})
        assert "s-00000007" in said
        assert "vqi control ack" in said
    for status in ({"light": "idle", "light_result_id": ""}, {}):
        assert installer.held(status) == ""


def self_test_rows(**is_ok: bool) -> str:
    names = ("configuration", "recipe", "model", "camera", "light", "journal")
    parts = {**dict.fromkeys(names, True), **is_ok}
    rows = [json.dumps({"part": part, "ok": ok, "found": part}) for part, ok in parts.items()]
    return "\n".join(rows) + "\n"


@given(st.data())
def test_a_self_test_that_broke_off_stops_an_upgrade(
    installer: ModuleType, data: st.DataObject
) -> None:
    """Every part that it came to was well, and the unit's end may look like one in order."""
    whole = self_test_rows()
    output = whole[: data.draw(st.integers(0, len(whole) - 2))]
    for result, status in (("success", "0"), ("timeout", "15"), ("exit-code", "1")):
        with pytest.raises(installer.Failure, match="the self-test failed"):
            installer.judge(output, result, status)


@pytest.mark.parametrize(
    ("result", "status"),
    [("signal", "9"), ("core-dump", "6"), ("timeout", "15"), ("exit-code", "1")],
)
def test_a_self_test_that_died_after_its_last_word_stops_an_upgrade(
    installer: ModuleType, result: str, status: str
) -> None:
    with pytest.raises(installer.Failure, match=f"it ended with {result}, status {status}"):
        installer.judge(self_test_rows(), result, status)


def test_an_upgrade_that_was_cut_off_still_has_its_way_back(
    installer: ModuleType, tmp_path: Path
) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    new.mkdir()
    assert installer.way_back(new, None, None) is None, "a first installation"
    assert installer.way_back(new, old, None) == old
    # The power went after the switch: `new` is current, and nobody saw it OPERATIONAL.
    assert installer.way_back(new, new, old) == old
    old.mkdir()
    (old / installer.PROVEN).touch()
    assert installer.way_back(tmp_path / "newer", new, old) == old
    # A camera that is not there today is no reason to run another version.
    (new / installer.PROVEN).touch()
    assert installer.way_back(new, new, old) is None


@pytest.mark.parametrize("number", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_a_signal_is_a_failure_that_is_rolled_back(installer: ModuleType, number: str) -> None:
    with pytest.raises(installer.Failure, match=f"ended by {number}"):
        installer.end(signal.Signals[number], None)
    assert signal.Signals[number] in installer.ENDING_SIGNALS


def test_the_same_content_is_the_same_release(installer: ModuleType) -> None:
    name = installer.release_name(None, False)
    assert name == installer.release_name(None, False)
    assert installer.release_name(None, True) == f"{name}-edge"
    assert installer.release_name(None, True, True) == f"{name}-plant-edge"
    named = {path.relative_to(CHECKOUT) for path in installer.source_files()}
    assert Path("station/shipped/recipes/demo-lgp.toml") in named
    assert Path("deploy/systemd/vqi-lamp.service") in named
    assert Path("docs/proof.md") in named
    assert not [path for path in named if path.suffix == ".pyc"]


def test_folders_elsewhere_and_low_ports_are_opened_for_the_unit_that_needs_them(
    installer: ModuleType,
) -> None:
    def drop_ins(**config: object) -> dict[str, str]:
        found = installer.site_drop_ins(config)
        return {path.parent.name.split(".")[0][4:]: text for path, text in found.items() if text}

    assert ModbusServerSettings.model_fields["tcp_port"].default == 502
    usual = {"journal": {"directory": "/var/lib/vqi/journal"}}
    assert drop_ins(**usual, plc={"type": "modbus_client", "tcp_port": 502}) == {}
    assert drop_ins(**usual, plc={"type": "modbus_server", "tcp_port": 1502}) == {}
    assert drop_ins(journal={"directory": "journal"}) == {}
    assert "CAP_NET_BIND_SERVICE" in drop_ins(plc={"type": "modbus_server"})["lamp"]
    recipes = drop_ins(**usual, station={"recipe_dir": "/data/recipes"})
    assert recipes == dict.fromkeys(
        ("journal", "station"), "[Service]\nReadWritePaths=-/data/recipes\n"
    )
    backup = drop_ins(**usual, retention={"backup": {"directory": "/mnt/backup"}})
    assert backup == {"journal": "[Service]\nReadWritePaths=-/mnt/backup\n"}
    assert set(drop_ins(journal={"directory": "/data/journal"})) == {"journal", "station"}
    reports = drop_ins(journal={**usual["journal"], "reports": "/srv/reports"})
    assert reports == {"report": "[Service]\nReadWritePaths=-/srv/reports\n"}
    assert drop_ins(journal={**usual["journal"], "reports": "reports"}) == {}
    plant = drop_ins(**usual, plant={"images": "/mnt/plant"})
    assert plant == {"ship": "[Service]\nReadWritePaths=-/mnt/plant\n"}
    scanner = drop_ins(identity={"scanner": {"type": "serial", "port": "/dev/serial/by-id/a"}})
    assert scanner == {"station": "[Service]\nDeviceAllow=/dev/serial/by-id/a rw\n"}
    assert drop_ins(**usual, plant={"images": "s3://qms/line"}) == {}
    assert drop_ins(**usual, web={}) == {}
    https = drop_ins(**usual, web={"port": 443})["web"]
    assert "SocketBindAllow=\nSocketBindAllow=tcp:443\n" in https
    assert "CAP_NET_BIND_SERVICE" in https
    assert "CAP_NET_BIND_SERVICE" not in drop_ins(**usual, web={"port": 8443})["web"]


@needs_systemd
def test_a_lamp_that_listens_at_502_stays_below_1_5(installer: ModuleType, machine: Path) -> None:
    drop_in = machine / "etc/systemd/system/vqi-lamp.service.d/20-site.conf"
    drop_in.parent.mkdir()
    drop_in.write_text(f"[Service]\n{installer.LOW_PORT}")
    try:
        assert not exposure(machine, "vqi-lamp", 15)
    finally:
        shutil.rmtree(drop_in.parent)


def test_sockets_lie_where_the_units_put_them(installer: ModuleType, tmp_path: Path) -> None:
    config = tmp_path / "line.toml"
    config.write_text('[station]\nruntime_dir = "var/run"\n')
    with pytest.raises(installer.Failure, match="the units need"):
        installer.check_folder(config)


def test_what_is_placed_is_placed_once(installer: ModuleType, tmp_path: Path) -> None:
    source, target = tmp_path / "a", tmp_path / "etc" / "b"
    source.write_text("one")
    assert installer.copy_if_other(source, target)
    assert not installer.copy_if_other(source, target)
    source.write_text("two")
    assert installer.copy_if_other(source, target)
    assert target.read_text() == "two"


def test_wheels_must_hold_the_program_once(installer: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(installer.Failure, match="0 files"):
        installer.own_wheels(tmp_path)
    (tmp_path / "vqi_station-0.1.0-py3-none-any.whl").write_text("")
    assert len(installer.own_wheels(tmp_path)) == 1


# --- reports --------------------------------------------------------------------------------------


def report_settings() -> Settings:
    units = UNITS / "vqi-report.service"
    once = UNITS / "vqi-report.service.d" / "20-once.conf"
    return read(UNITS / "vqi-.service.d" / "10-vqi.conf", units, once)


@needs_systemd
@pytest.mark.parametrize("unit", ["vqi-report.service", "vqi-report.timer"])
def test_systemd_accepts_what_makes_reports(machine: Path, unit: str) -> None:
    done = analyze("verify", "--man=no", f"--root={machine}", unit)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "")
    assert not exposure(machine, "vqi-report", 12)


def test_reports_are_made_once_by_a_unit_that_gives_way_to_every_other() -> None:
    settings = report_settings()
    assert settings["Type"][-1] == "oneshot"
    assert settings["Restart"][-1] == "no"
    assert "vqi-report.timer" in read(UNITS / "vqi.target")["Wants"][0].split()
    for service in SERVICES:
        others = settings_of(service)
        assert int(settings["Nice"][-1]) > int(others["Nice"][-1])
        assert int(settings["OOMScoreAdjust"][-1]) > int(others["OOMScoreAdjust"][-1])
