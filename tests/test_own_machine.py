"""A process of tests in a network, and with terminals, of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_PORTS = """
import socket, sys
from own_machine import enter_own_network
def listener():
    found = socket.socket()
    found.bind(("127.0.0.1", 3956))
    found.listen()
    return found
outside = listener()
if not enter_own_network():
    sys.exit(3)
inside = listener()
client = socket.create_connection(("127.0.0.1", 3956), timeout=2)
inside.settimeout(2)
inside.accept()
"""
_TERMINALS = """
import os, sys
from own_machine import enter_own_terminals
outside = os.openpty()
name = os.ttyname(outside[1])
if not enter_own_terminals():
    sys.exit(3)
assert not os.path.exists(name), name
inside = os.openpty()
os.write(inside[0], b"A")
assert os.ttyname(inside[1]) == "/dev/pts/0"
with open("/dev/pts/0", "rb", buffering=0) as device:
    os.write(inside[0], b"\\n")
    assert device.read(2) == b"A\\n"
"""


@pytest.mark.parametrize("what", [_PORTS, _TERMINALS], ids=["ports", "terminals"])
def test_what_is_taken_outside_is_free_inside(what: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", what],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 3:
        pytest.skip("nothing of its own here: needs root")
    assert done.returncode == 0, done.stderr
