"""The camera's picture for the page: the last scan lines that followed one another, at a cost that
does not grow with the frame."""

from __future__ import annotations

import threading
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from station_rig import wait_until

from drivers.camera import MONO8, Frame
from station.live_frames import LiveFrames, LivePicture, read_live

WIDTH = 96


def frame(number: int, height: int, first: int, is_incomplete: bool = False) -> Frame:
    """Scan lines whose first pixels say which they are."""
    pixels = np.zeros((height, WIDTH), np.uint8)
    pixels[:, 0], pixels[:, 1] = np.divmod(np.arange(first, first + height), 256)
    return Frame(
        pixels=pixels,
        frame_id=number,
        timestamp_ns=number * 10**6,
        width=WIDTH,
        pixel_format=MONO8,
        is_incomplete=is_incomplete,
    )


def shown(folder: Path, *frames: Frame) -> LivePicture:
    """What is written once these have come, the last of them when a picture is due."""
    (folder / "live.pgm").unlink(missing_ok=True)
    live = LiveFrames(folder, WIDTH)
    live.look()
    now = time.monotonic()
    for number, one in enumerate(frames, 1):
        live.take(one, dict[str, int], now + (1.0 if number == len(frames) else 0.0))
    wait_until(lambda: (folder / "live.pgm").exists(), 10.0, "a picture")
    body = read_live_of(folder)
    assert body is not None
    return body


def read_live_of(folder: Path) -> LivePicture | None:
    text = (folder / "live.pgm").read_bytes()
    counts = b'"frames": 1, "lost_frames": 0, "incomplete_frames": 0, '
    (folder / "live.pgm").write_bytes(text.replace(b"# {", b"# {" + counts, 1))
    return read_live(folder)


def lines(picture: LivePicture) -> list[int]:
    numbers = picture.pixels.astype(int)
    return list(numbers[:, 0] * 256 + numbers[:, 1])


@pytest.mark.parametrize("height", [1, 64, 100, 512, 700, 4096])
def test_the_last_512_scan_lines_are_shown_in_their_order(tmp_path: Path, height: int) -> None:
    count = 2 + 1500 // height
    frames = [frame(number, height, number * height) for number in range(count)]
    end = count * height
    assert lines(shown(tmp_path, *frames)) == list(range(end - 512, end))


def test_a_picture_holds_only_what_followed_one_another(tmp_path: Path) -> None:
    lost = [frame(1, 64, 0), frame(2, 64, 64), frame(4, 64, 192), frame(5, 64, 256)]
    assert lines(shown(tmp_path, *lost)) == list(range(192, 320))
    torn = [frame(1, 64, 0), frame(2, 64, 64, is_incomplete=True), frame(3, 64, 128)]
    assert lines(shown(tmp_path, *torn)) == list(range(128, 192))


def test_a_frame_of_any_height_takes_no_new_memory(tmp_path: Path) -> None:
    live = LiveFrames(tmp_path, WIDTH)
    big = [frame(number, 16384, 0) for number in range(3)]
    live.look()
    tracemalloc.start()
    try:
        for one in big:
            live.take(one, dict[str, int], time.monotonic())
        assert tracemalloc.get_traced_memory()[1] < 512 * WIDTH
    finally:
        tracemalloc.stop()


def test_where_no_thread_is_to_be_had_the_acquire_thread_goes_on(tmp_path: Path) -> None:
    before = threading.stack_size(2**46)  # no room for such a one
    try:
        with pytest.raises(RuntimeError):
            threading.Thread(target=print).start()
        live = LiveFrames(tmp_path, WIDTH)
    finally:
        threading.stack_size(before)
    live.look()
    for number in range(3):
        live.take(frame(number, 64, 0), dict[str, int], time.monotonic() + number)
    assert not (tmp_path / "live.pgm").exists()
