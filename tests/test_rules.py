"""The rules of these tests themselves."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

_TESTS = """
import pytest

{module}

def test_anything():
    {body}
"""


@pytest.mark.parametrize(
    ("module", "body", "fails"),
    [
        ('pytest.importorskip("no_such_package")', "pass", True),
        ("", 'pytest.importorskip("no_such_package")', True),
        ("", 'pytest.skip("because")', True),
        ("", 'pytest.skip("no real images in there")', False),
        ("", "pass", False),
    ],
)
def test_where_every_peer_is_installed_a_skip_for_a_package_fails(
    tmp_path: Path, module: str, body: str, fails: bool
) -> None:
    here = Path(__file__).parent
    shutil.copy(here / "conftest.py", tmp_path)
    (tmp_path / "test_one.py").write_text(_TESTS.format(module=module, body=body))
    for requires, expected in (("1", fails), ("0", False)):
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)],
            env={**os.environ, "VQI_REQUIRE_PEERS": requires, "PYTHONPATH": str(here)},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        # 5: nothing was left to run.
        assert (done.returncode not in (0, 5)) == expected, done.stdout
