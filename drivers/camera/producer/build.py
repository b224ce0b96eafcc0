"""Builds the GenTL producer with gcc, once for each source, vendor and kind of build."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from drivers.errors import DriverMissing

FILE_NAME = "vqi-linescan.cti"
_FOLDER = Path(__file__).parent
_FLAGS = (
    *("-std=c11", "-D_GNU_SOURCE", "-O3", "-Wall", "-Wextra", "-Werror"),
    *("-shared", "-fPIC", "-fvisibility=hidden", "-pthread"),
    # Consumers unload a producer while its threads may still run.
    "-Wl,-z,nodelete",
)
_SANITIZERS = "address,undefined,float-cast-overflow"
_SANITIZE = (f"-fsanitize={_SANITIZERS}", "-fno-sanitize-recover=all", "-g")
_STAMP_SUFFIX = ".inputs"


def build_producer(folder: Path, vendor: str = "VQI", sanitize: bool = False) -> Path:
    """The producer in `folder`, built unless what is there is of the same inputs.

    Raises `DriverMissing` without gcc or if it fails, ValueError for a vendor that is no plain
    name, OSError if `folder` cannot be written.
    """
    if not re.fullmatch(r"[A-Za-z0-9 ._-]{1,32}", vendor):
        raise ValueError(f"vendor {vendor!r}: 1 to 32 letters, digits, spaces, dots, dashes wanted")
    compiler = shutil.which("gcc")
    if compiler is None:
        raise DriverMissing("no gcc to build the GenTL simulator: apt-get install gcc libc6-dev")
    flags = [*_FLAGS, f'-DVENDOR="{vendor}"', *(_SANITIZE if sanitize else ())]
    folder.mkdir(parents=True, exist_ok=True)
    target, stamp = folder / FILE_NAME, folder / (FILE_NAME + _STAMP_SUFFIX)
    wanted = _inputs(compiler, flags)
    if not (target.is_file() and stamp.is_file() and stamp.read_text() == wanted):
        _compile(compiler, flags, target)
        _replace(stamp, wanted.encode())
    return target.resolve()


def _inputs(compiler: str, flags: list[str]) -> str:
    """Digest of everything that the result depends on."""
    digest = hashlib.sha256(repr((os.path.realpath(compiler), flags)).encode())
    for file in sorted([*_FOLDER.glob("*.[ch]"), *_FOLDER.glob("*.def")]):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def _compile(compiler: str, flags: list[str], target: Path) -> None:
    sources = [str(file) for file in sorted(_FOLDER.glob("*.c"))]
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        built = Path(scratch) / target.name
        done = subprocess.run(
            [compiler, *flags, "-o", str(built), *sources, "-lm"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if "error" in line]
            why = (lines or done.stderr.splitlines() or ["it says nothing"])[0]
            raise DriverMissing(
                f"gcc does not build the GenTL simulator: {why} (Debian: gcc and libc6-dev)"
            )
        built.replace(target)


def _replace(file: Path, content: bytes) -> None:
    """Put a file in place whole."""
    with tempfile.NamedTemporaryFile(dir=file.parent, delete=False) as scratch:
        scratch.write(content)
    Path(scratch.name).replace(file)
