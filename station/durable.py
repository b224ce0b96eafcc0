"""Written so that a power cut does not take it back."""

from __future__ import annotations

import os
from pathlib import Path


def sync(path: Path | str) -> None:
    """A file's content, or a folder's names, to the disk (fsync(2)). Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
