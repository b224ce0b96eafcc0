"""An ext4 of its own on a loop device, which can lose its power while everything else goes on."""

from __future__ import annotations

import array
import fcntl
import os
import subprocess
import time
from pathlib import Path

_EXT4_IOC_SHUTDOWN = 0x8004587D
_NO_LOG_FLUSH = 2


def run(*command: str | Path) -> None:
    """Raises `subprocess.CalledProcessError` with what the command said."""
    subprocess.run(command, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL)


class Disk:
    """A file system of `size_mb` in `image`, mounted at `folder`."""

    def __init__(self, image: Path, folder: Path, size_mb: int, inodes: int = 8192) -> None:
        self.image, self.folder = image, folder
        with image.open("wb") as file:
            file.truncate(size_mb * 2**20)
        sizes = ("-b", "4096", "-J", "size=4", "-N", str(inodes))
        run("mkfs.ext4", "-q", "-F", "-m", "0", *sizes, image)
        folder.mkdir(parents=True, exist_ok=True)
        self.mount()

    def mount(self) -> None:
        run("mount", "-o", "loop,errors=remount-ro", self.image, self.folder)

    @property
    def device(self) -> str:
        """The loop device's name."""
        lines = (line.split() for line in Path("/proc/mounts").read_text().splitlines())
        return next(Path(one[0]).name for one in lines if one[1] == str(self.folder))

    def cut_power(self) -> None:
        """What has not reached the disk by now never will; every later write fails."""
        descriptor = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, _EXT4_IOC_SHUTDOWN, array.array("I", [_NO_LOG_FLUSH]))
        finally:
            os.close(descriptor)

    def unmount(self, within_s: float = 5.0) -> None:
        """Wait for those who still die; what cannot be unmounted is detached."""
        deadline = time.monotonic() + within_s
        while True:
            try:
                run("umount", self.folder)
            except subprocess.CalledProcessError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
            else:
                return

    def remove(self) -> None:
        subprocess.run(["umount", "-l", self.folder], check=False, capture_output=True)
        self.image.unlink(missing_ok=True)
