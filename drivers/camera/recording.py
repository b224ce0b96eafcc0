"""Recorded strips on disk: a run of segments, of which the oldest may have been deleted.

A segment is two files. `strip-000001.raw` holds the pixels of its frames, one after another.
`strip-000001.jsonl` holds a line with the format and the camera, then one line for each frame, and
one for each break between frames, in the order in which they came. Every line begins with the
CRC-32 of its text; a frame's line holds that of its pixels and is written after them. So nothing
that a crash, a power cut or a bad disk left behind is taken for a frame.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from drivers.camera import Break, CameraInfo, Frame, PlateTruth

FORMAT = "vqi-strip"
VERSION = 2
OLD_PIXELS, OLD_HEADERS = "strip.raw", "frames.jsonl"
"""Of version 1: one file each, without check sums."""
_FIRST = 1
_TRUTHS = TypeAdapter(tuple[PlateTruth, ...])
_BREAK = TypeAdapter(Break)
_APART = ("pixels", "truth", "breaks")
_HEADER_FIELDS = [field.name for field in fields(Frame) if field.name not in _APART]

Fields = dict[str, Any]


class RecordingError(ValueError):
    """A folder is not a recorded strip, or not one to go on with; says what is wrong."""


@dataclass(frozen=True, slots=True, order=True)
class Segment:
    """The two files of a segment, which need not exist."""

    directory: Path
    number: int

    @property
    def pixels(self) -> Path:
        return self.directory / f"strip-{self.number:06d}.raw"

    @property
    def headers(self) -> Path:
        return self.directory / f"strip-{self.number:06d}.jsonl"

    @property
    def bytes(self) -> int:
        files = (self.pixels, self.headers)
        return sum(file.stat().st_size for file in files if file.exists())

    def delete(self) -> None:
        """The headers first: pixels without headers are no segment."""
        self.headers.unlink(missing_ok=True)
        self.pixels.unlink(missing_ok=True)


def segments_in(directory: Path) -> list[Segment]:
    """The segments of a recording, oldest first."""
    numbers = (file.stem.removeprefix("strip-") for file in directory.glob("strip-*.jsonl"))
    return sorted(Segment(directory, int(number)) for number in numbers if number.isdecimal())


def is_recording(directory: Path) -> bool:
    return bool(segments_in(directory)) or (directory / OLD_HEADERS).is_file()


# --- lines --------------------------------------------------------------------------------------


def to_line(content: Fields) -> bytes:
    text = json.dumps(content, separators=(",", ":")).encode()
    return b"%08x %s\n" % (isal_zlib.crc32(text), text)


def from_line(line: bytes) -> Fields | None:
    """What a line says; None if it is not whole."""
    check, _, text = line.rstrip(b"\n").partition(b" ")
    if check != b"%08x" % isal_zlib.crc32(text):
        return None
    content: Fields = json.loads(text)
    return content


def segment_line(info: CameraInfo) -> bytes:
    return to_line({"format": FORMAT, "version": VERSION, "camera": asdict(info)})


def frame_line(frame: Frame, offset: int) -> bytes:
    return to_line(
        {
            "offset": offset,
            "shape": frame.pixels.shape,
            "crc32": isal_zlib.crc32(frame.pixels.reshape(-1).data),
            "truth": [asdict(truth) for truth in frame.truth],
            **{name: getattr(frame, name) for name in _HEADER_FIELDS},
        }
    )


def break_line(known: Break) -> bytes:
    return to_line({"break": asdict(known)})


def camera_of(segment: Segment) -> CameraInfo | None:
    """The camera of a segment; None if its first line is damaged. Raises `RecordingError`."""
    with segment.headers.open("rb") as file:
        content = from_line(file.readline())
    if content is None:
        return None
    found = (content.get("format"), content.get("version"))
    if found != (FORMAT, VERSION):
        raise RecordingError(
            f"{segment.headers}: recorded in version {found[1]} of the format; this version of vqi "
            f"plays {VERSION}: play it with the version that recorded it"
        )
    return CameraInfo(**content["camera"])


# --- reading ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RecordedFrame:
    """A frame whose pixels are still on the disk; read it before the next one is taken."""

    name: str
    descriptor: int
    header: Fields

    @property
    def timestamp_ns(self) -> int:
        return int(self.header["timestamp_ns"])

    @property
    def end(self) -> int:
        """Offset behind its last pixel."""
        rows, row_bytes = self.header["shape"]
        return int(self.header["offset"] + rows * row_bytes)

    def read(self, into: NDArray[np.uint8]) -> Frame | Break:
        """The frame, its pixels in the flat buffer `into`; a break if they are not those that
        were recorded."""
        header = dict(self.header)
        shape, offset = header.pop("shape"), header.pop("offset")
        pixels = into[: shape[0] * shape[1]]
        if os.preadv(self.descriptor, [pixels.data], offset) != pixels.size:
            return self._damage("are cut off")
        # Version 1 has none.
        if header.pop("crc32", None) not in (None, isal_zlib.crc32(pixels.data)):
            return self._damage("are damaged")
        truth = _TRUTHS.validate_python(header.pop("truth"))
        return Frame(pixels=pixels.reshape(shape), truth=truth, **header)

    def _damage(self, what: str) -> Break:
        text = f"{self.name}: the pixels of frame {self.header['frame_id']} {what}"
        return Break("damaged", text, frames=1)


class RecordedStrip:
    """An opened recording, which can be read any number of times. Raises `RecordingError`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        try:
            self._segments = segments_in(directory)
            self.info = self._read_info()
            is_empty = not any(isinstance(item, RecordedFrame) for item in self.items())
        except RecordingError:
            raise
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise RecordingError(f"{directory}: not a recorded strip: {error}") from error
        if is_empty:
            raise RecordingError(f"{directory}: a recorded strip without a whole frame")

    def _read_info(self) -> CameraInfo:
        if not self._segments:
            return _old_info(self._directory)
        # All of them: a version that cannot be played is said now, not when its turn comes.
        found = [info for segment in self._segments if (info := camera_of(segment)) is not None]
        if not found:
            raise RecordingError(f"{self._directory}: the first line of every segment is damaged")
        return found[0]

    def items(self) -> Iterator[RecordedFrame | Break]:
        """Frames and breaks in the order in which they came."""
        if not self._segments:
            yield from _old_items(self._directory)
            return
        expected = _FIRST
        for segment in self._segments:
            if segment.number != expected:
                yield Break("lost", _missing_text(expected, segment))
            yield from segment_items(segment)
            expected = segment.number + 1


def _missing_text(expected: int, segment: Segment) -> str:
    if expected == _FIRST:
        return f"the recording begins with {segment.headers.name}: what came before is overwritten"
    return f"segments {expected} to {segment.number - 1} of the recording are missing"


def segment_items(segment: Segment) -> Iterator[RecordedFrame | Break]:
    """What the two files of a segment hold."""
    name = segment.headers.name
    if not segment.pixels.exists():
        yield Break("damaged", f"{segment.pixels.name}: this file of the recording is missing")
        return
    with segment.headers.open("rb") as lines, segment.pixels.open("rb") as pixels:
        for number, line in enumerate(lines, 1):
            content = from_line(line)
            if content is None:
                yield Break("damaged", f"{name}: line {number} is damaged", frames=number > 1)
            elif "break" in content:
                yield _BREAK.validate_python(content["break"])
            elif "offset" in content:
                yield RecordedFrame(name, pixels.fileno(), content)


# --- version 1 ----------------------------------------------------------------------------------


def _old_info(directory: Path) -> CameraInfo:
    with (directory / OLD_HEADERS).open() as lines:
        return CameraInfo(**json.loads(lines.readline()))


def _old_items(directory: Path) -> Iterator[RecordedFrame | Break]:
    path = directory / OLD_PIXELS
    size = path.stat().st_size
    with (directory / OLD_HEADERS).open() as lines, path.open("rb") as pixels:
        lines.readline()
        for line in lines:
            try:
                header: Fields = json.loads(line)
                _TRUTHS.validate_python(header["truth"])
            except (json.JSONDecodeError, ValidationError):
                return
            if header["offset"] + header["shape"][0] * header["shape"][1] > size:
                return
            yield RecordedFrame(OLD_HEADERS, pixels.fileno(), header)
