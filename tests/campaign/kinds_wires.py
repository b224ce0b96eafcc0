"""What happens to the tower's wire and to the processes' sockets."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from random import Random

from campaign.kinds import NotThere, Strike, kind, now_ns
from campaign.life import Life
from station.ipc import Channel, PeerGone, connect

SOCKETS = ("journal.sock", "lamp.sock", "control.sock")
_OWNERS = {"journal.sock": "journal", "lamp.sock": "lamp", "control.sock": "station"}


def _meanwhile(life: Life, draw: Random, word: str, least_s: float, most_s: float) -> Strike:
    """The tower's wire is so for a while."""
    began_ns = now_ns()
    life.tower.tell(word)
    time.sleep(draw.uniform(least_s, most_s))
    life.tower.tell("heal")
    return Strike(began_ns, now_ns())


@kind("tower: nobody reads the wire", is_blind=True)
def wire_blocked(life: Life, draw: Random) -> Strike:
    return _meanwhile(life, draw, "choke", 0.2, 2.5)


@kind("tower: the wire loses bytes", is_blind=True)
def wire_loses(life: Life, draw: Random) -> Strike:
    return _meanwhile(life, draw, "drop", 0.05, 1.5)


@kind("tower: noise comes back")
def wire_noisy(life: Life, draw: Random) -> Strike:
    return _meanwhile(life, draw, "noise", 0.3, 1.5)


@kind("tower: unplugged and plugged in")
def unplugged(life: Life, draw: Random) -> Strike:
    return _unplugged(life, draw, None)


@kind("tower: unplugged and the lamp process dies", is_death=True)
def unplugged_and_killed(life: Life, draw: Random) -> Strike:
    return _unplugged(life, draw, "lamp")


def _unplugged(life: Life, draw: Random, victim: str | None) -> Strike:
    began_ns = now_ns()
    life.tower.tell("unplug")
    time.sleep(draw.uniform(0.05, 0.6))
    if victim is not None:
        os.kill(life.pid(victim), signal.SIGKILL)
    time.sleep(draw.uniform(0.05, 1.0))
    life.tower.tell("plug")
    return Strike(began_ns, now_ns())


@kind("tower: the wire is blocked while the station dies", is_blind=True)
def blocked_and_killed(life: Life, draw: Random) -> Strike:
    began_ns = now_ns()
    life.tower.tell("choke")
    os.kill(life.pid("station"), signal.SIGKILL)
    time.sleep(draw.uniform(0.2, 1.5))
    life.tower.tell("heal")
    return Strike(began_ns, now_ns())


# --- sockets --------------------------------------------------------------------------------------

_NONSENSE: tuple[bytes, ...] = (
    *(b"", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b"{}"),
    *(b'{"op": "tick"}', b'{"op": "submit"}', b'{"op": "submit", "id": 1, "rows": 7}'),
    b'{"op": "submit", "id": 1, "rows": [], "pixels": {"rows": 1}}',
    *(b'{"op": "show"}', b'{"op": ["x"]}', b'{"op": {}}', b'{"op": "arriving", "result_id": 1}'),
    b'{"op": "show", "n": 1e400, "state": "pass", "result_id": "", "provenance": "production"}',
    *(b'{"op": "say"}', b'{"op": "result"}', b'{"op": "belt"}', b'{"op": "halt"}x'),
)


@kind("nonsense on every socket")
def nonsense(life: Life, draw: Random) -> Strike:
    began_ns = now_ns()
    for name in SOCKETS:
        for _ in range(12):
            payload = draw.choice(_NONSENSE) if draw.random() < 0.7 else draw.randbytes(200)
            _send(life.runtime / name, payload)
    return Strike(began_ns, now_ns())


def _send(path: Path, payload: bytes) -> None:
    """With a descriptor, as pictures travel."""
    with contextlib.suppress(OSError, PeerGone), connect(path) as channel:
        raw = socket.socket(fileno=os.dup(channel.fileno()))
        with raw, Path(os.devnull).open("rb") as file:
            raw.settimeout(0.2)
            socket.send_fds(raw, [payload], [file.fileno()])
            raw.recv(400_000)


@kind("journal flooded")
def journal_flood(life: Life, draw: Random) -> Strike:
    return _flood(life, "journal.sock", ({"op": "tick", "n": 1}, {"op": "hello"}))


@kind("lamp flooded")
def lamp_flood(life: Life, draw: Random) -> Strike:
    return _flood(life, "lamp.sock", ({"op": "status"}, {"op": "test"}))


@kind("control flooded")
def control_flood(life: Life, draw: Random) -> Strike:
    return _flood(life, "control.sock", ({"op": "status"}, {"op": "nothing"}))


def _flood(life: Life, name: str, words: tuple[dict[str, object], ...]) -> Strike:
    """Clients that ask without end and do not read the answers."""
    began_ns, is_over = now_ns(), threading.Event()

    def ask(word: dict[str, object]) -> None:
        with contextlib.suppress(OSError, PeerGone), connect(life.runtime / name) as channel:
            while not is_over.is_set():
                try:
                    channel.send(word, timeout_s=0.05)
                except TimeoutError:
                    continue

    threads = [threading.Thread(target=ask, args=(word,), daemon=True) for word in words * 2]
    for thread in threads:
        thread.start()
    time.sleep(1.0)
    is_over.set()
    for thread in threads:
        thread.join(2.0)
    return Strike(began_ns, now_ns())


@kind("clients that never leave")
def idle_clients(life: Life, draw: Random) -> Strike:
    began_ns, held = now_ns(), list[Channel]()
    for name in SOCKETS:
        for _ in range(40):
            with contextlib.suppress(OSError, PeerGone):
                held.append(connect(life.runtime / name))
    time.sleep(0.8)
    for channel in held:
        channel.close()
    return Strike(began_ns, now_ns())


@kind("somebody else commands a pass")
def foreign_pass(life: Life, draw: Random) -> Strike:
    """Of the station's own user, while a station holds the lamp: new, stale, too long, unsigned."""
    now = time.monotonic_ns()
    began_ns, problems = now, list[str]()
    for state, provenance, ahead_ns in (
        ("pass", "production", 1_000_000_000),
        ("pass", "production", -1),
        ("pass", "production", 10**12),
        ("pass", "simulated", 1_000_000_000),
        ("lamp_test", "production", 1_000_000_000),
    ):
        word = {"op": "show", "n": 1, "state": state, "result_id": "forged"}
        word |= {"provenance": provenance, "expires_ns": now + ahead_ns}
        try:
            with connect(life.runtime / "lamp.sock") as channel:
                answer = channel.request(word, 1.0)
        except (OSError, PeerGone) as error:
            raise NotThere(str(error)) from error
        if not answer["reason"]:
            problems.append(f"{state} of a stranger was shown")
    return Strike(began_ns, now_ns(), problems=tuple(problems))


@kind("socket removed before its owner dies", is_death=True)
def socket_removed(life: Life, draw: Random) -> Strike:
    name = draw.choice(SOCKETS)
    began_ns = now_ns()
    (life.runtime / name).unlink(missing_ok=True)
    time.sleep(draw.uniform(0, 0.3))
    os.kill(life.pid(_OWNERS[name]), signal.SIGKILL)
    return Strike(began_ns, now_ns(), name)


@kind("runtime folder removed before a process dies", is_death=True)
def runtime_removed(life: Life, draw: Random) -> Strike:
    victim = draw.choice(("lamp", "journal", "station"))
    began_ns = now_ns()
    shutil.rmtree(life.runtime, ignore_errors=True)
    time.sleep(draw.uniform(0, 0.3))
    os.kill(life.pid(victim), signal.SIGKILL)
    if victim != "station":
        # Sockets of the others are gone for good: an operator starts the station again.
        time.sleep(0.3)
        life.stop()
        life.keep_running()
    return Strike(began_ns, now_ns(), victim)


# --- a second one, and operators ------------------------------------------------------------------


def _vqi(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "station.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


@kind("the same station is started twice")
def started_twice(life: Life, draw: Random) -> Strike:
    began_ns = now_ns()
    done = _vqi("run", "--config", str(life.config), "--plates", "1")
    problems = () if done.returncode == 1 else (f"the second one ended with {done.returncode}",)
    return Strike(began_ns, began_ns, problems=problems)


@kind("another station is given the same log")
def same_log(life: Life, draw: Random) -> Strike:
    other = life.line / "other.toml"
    text = life.config.read_text()
    other.write_text(text.replace(str(life.runtime), str(life.folder / "run-2")))
    began_ns = now_ns()
    done = _vqi("serve", "journal", "--config", str(other))
    problems = () if done.returncode == 1 else (f"it ended with {done.returncode}",)
    return Strike(began_ns, began_ns, problems=problems)


@kind("halt and resume")
def halted(life: Life, draw: Random) -> Strike:
    """No plate passes while a person has halted the station."""
    began_ns = now_ns()
    _control(life, "halt")
    time.sleep(draw.uniform(0.3, 1.0))
    ended_ns = now_ns()
    _control(life, "resume")
    return Strike(began_ns, ended_ns)


@kind("storm of commands")
def command_storm(life: Life, draw: Random) -> Strike:
    began_ns = now_ns()
    for _ in range(30):
        _control(life, draw.choice(("halt", "resume", "ack", "status", "relearn")))
    _control(life, "resume")
    return Strike(began_ns, now_ns())


def _control(life: Life, op: str) -> None:
    try:
        with connect(life.runtime / "control.sock") as channel:
            channel.request({"op": op}, 2.0)
    except (OSError, PeerGone) as error:
        raise NotThere(f"the control socket: {error}") from error


# --- the module of READY, OK and accept -----------------------------------------------------------


def _panel(life: Life, draw: Random, word: str, end: str) -> Strike:
    began_ns = now_ns()
    life.panel.tell(word)
    time.sleep(draw.uniform(0.2, 1.5))
    life.panel.tell(end)
    return Strike(began_ns, now_ns())


@kind("I/O module does not answer", is_blind=True)
def panel_mute(life: Life, draw: Random) -> Strike:
    return _panel(life, draw, "mute", "heal")


@kind("I/O module reads back the opposite", is_blind=True)
def panel_lies(life: Life, draw: Random) -> Strike:
    return _panel(life, draw, "lie", "heal")


@kind("I/O module unplugged and plugged in")
def panel_unplugged(life: Life, draw: Random) -> Strike:
    return _panel(life, draw, "unplug", "plug")
