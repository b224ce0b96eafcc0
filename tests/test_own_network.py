"""A process of tests in a network of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_IN_BOTH = """
import socket, sys
from own_network import enter_own_network
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


def test_a_port_that_is_taken_outside_is_free_inside_and_reached_there() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _IN_BOTH],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 3:
        pytest.skip("no network of its own here: needs root")
    assert done.returncode == 0, done.stderr
