"""A recorded strip: the bytes of every frame in `strip.raw`, their headers in `frames.jsonl`.

The first line of `frames.jsonl` is the camera's `CameraInfo`; each further one a frame's header
with the place of its bytes. A recording that a crash cut off plays up to its last whole frame.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from drivers.camera import CameraInfo, Frame, PlateTruth

PIXELS = "strip.raw"
HEADERS = "frames.jsonl"
_TRUTHS = TypeAdapter(tuple[PlateTruth, ...])


class RecordingError(ValueError):
    """A folder is not a recorded strip; says what is wrong."""


class StripWriter:
    """Writes frames as they were delivered. Raises OSError if the disk does not take them."""

    def __init__(self, directory: Path, info: CameraInfo) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._pixels = (directory / PIXELS).open("wb")
        self._headers = (directory / HEADERS).open("w")
        self._headers.write(json.dumps(asdict(info)) + "\n")

    def append(self, frame: Frame) -> None:
        header: dict[str, Any] = {
            "offset": self._pixels.tell(),
            "shape": list(frame.pixels.shape),
            "width": frame.width,
            "frame_id": frame.frame_id,
            "timestamp_ns": frame.timestamp_ns,
            "pixel_format": frame.pixel_format,
            "is_incomplete": frame.is_incomplete,
            "encoder_value": frame.encoder_value,
            "plate_counter": frame.plate_counter,
            "truth": [asdict(truth) for truth in frame.truth],
        }
        self._pixels.write(np.ascontiguousarray(frame.pixels).data)
        self._headers.write(json.dumps(header) + "\n")

    def close(self) -> None:
        self._pixels.close()
        self._headers.close()


@dataclass(frozen=True, slots=True)
class RecordedStrip:
    """An opened recording; its frames can be read any number of times."""

    info: CameraInfo
    headers: tuple[dict[str, Any], ...]
    memory: NDArray[np.uint8]

    @classmethod
    def open(cls, directory: Path) -> RecordedStrip:
        """Raises `RecordingError`."""
        try:
            lines = (directory / HEADERS).read_text().splitlines()
            info = CameraInfo(**json.loads(lines[0]))
            size = (directory / PIXELS).stat().st_size
            memory = np.memmap(directory / PIXELS, np.uint8, "r") if size else np.empty(0, np.uint8)
            headers = tuple(_whole_headers(lines[1:], size))
        except (OSError, ValueError, TypeError, IndexError, KeyError) as error:
            raise RecordingError(f"{directory}: not a recorded strip: {error}") from error
        if not headers:
            raise RecordingError(f"{directory}: a recorded strip without a whole frame")
        return cls(info, headers, memory)

    def frame(self, number: int, pixels: NDArray[np.uint8] | None = None) -> Frame:
        """A recorded frame; its pixels copied into the flat buffer `pixels` if given."""
        header = dict(self.headers[number])
        offset, shape = header.pop("offset"), tuple(header.pop("shape"))
        stored = self.memory[offset : offset + shape[0] * shape[1]]
        if pixels is not None:
            pixels[: stored.size] = stored
            stored = pixels[: stored.size]
        truth = _TRUTHS.validate_python(header.pop("truth"))
        return Frame(pixels=stored.reshape(shape), truth=truth, **header)


def _whole_headers(lines: list[str], size: int) -> Iterator[dict[str, Any]]:
    for line in lines:
        try:
            header: dict[str, Any] = json.loads(line)
            rows, row_bytes = header["shape"]
            _TRUTHS.validate_python(header["truth"])
        except (json.JSONDecodeError, ValidationError):
            return
        if header["offset"] + rows * row_bytes > size:
            return
        yield header
