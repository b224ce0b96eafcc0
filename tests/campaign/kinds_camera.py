"""What a camera delivers that it should not, and what it does not deliver."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from campaign.belt import Belt
from campaign.kinds import KINDS, Kind, NotThere, Strike
from campaign.life import FRAME_S, SIMULATED, Life

Json = dict[str, Any]
_START_S = 7.0
"""From the start of the processes to the first fault."""
_BETWEEN_S = 1.2
STALL_S = 0.4


@dataclass(frozen=True)
class Knob:
    """Of the camera; takes the numbers of the belt's frames."""

    name: str
    frames: int = 1
    """Frames from that one on whose pixels are missing or wrong."""
    outage_s: float = 0.3
    """Until plates are judged again, about."""
    is_harmless: bool = False
    """Pixels arrive late, but all of them: the plate may be judged."""


_SIMULATED = {
    "frame lost": Knob("drop_frames"),
    "scan lines lost and unmarked": Knob("drop_scan_lines"),
    "frame cut short": Knob("truncate"),
    "frame twice": Knob("duplicate"),
    "camera stalls": Knob("stall", math.ceil(STALL_S / FRAME_S), 1.0),
    "black frame": Knob("black"),
    "saturated frame": Knob("saturated"),
    "pixels repeated": Knob("stuck"),
    "half as wide": Knob("wrong_width"),
    "Mono12 for Mono8": Knob("wrong_pixel_format"),
    "camera gone and back": Knob("disconnect", outage_s=3.0),
}
_PRODUCER = {
    "frame lost": Knob("SimLostFrames"),
    "frame incomplete": Knob("SimIncompleteFrames"),
    "frame short and unmarked": Knob("SimShortFrames"),
    "frame twice": Knob("SimDuplicatedFrames"),
    "frame 0.3 s late": Knob("SimLateFrames", outage_s=0.8, is_harmless=True),
    "half as high": Knob("SimWrongHeightFrames"),
    "camera gone and back": Knob("SimDisconnectFrames", outage_s=4.0),
    "another serial comes back": Knob("SimOtherSerialFrames", outage_s=5.0),
}
OTHER_SERIAL_S = 2.0
KNOBS: dict[str, Knob] = {}


@dataclass(frozen=True)
class CameraKind(Kind):
    """Its moments are fixed before the camera is opened."""

    @property
    def family(self) -> str:
        return f"camera of {self.camera}"

    @property
    def chooses_its_moment(self) -> bool:
        return True


def schedule(plan: list[str], draw: Random) -> Callable[[Belt], tuple[Json, Json]]:
    """For the kinds of a life, in order: frames by kind, and the camera's settings."""

    def make(belt: Belt) -> tuple[Json, Json]:
        frames, knobs = dict[str, deque[int]](), dict[str, list[int]]()
        at_ns = time.monotonic_ns() + int(_START_S * 1e9)
        for name in plan:
            plate = belt.carried(at_ns) + 1
            frame = belt.frame_at(plate, draw.uniform(0.1, 0.9))
            frames.setdefault(name, deque()).append(frame)
            knobs.setdefault(KNOBS[name].name, []).append(frame)
            at_ns += int((KNOBS[name].outage_s + _BETWEEN_S) * 1e9)
        return frames, knobs

    return make


def settings(knobs: Json, camera: str) -> Json:
    if camera == SIMULATED:
        return {**knobs, "stall_s": STALL_S}
    texts = {name: ",".join(map(str, numbers)) for name, numbers in knobs.items()}
    return {**texts, "SimOtherSerialDuration": OTHER_SERIAL_S}


def _inject(name: str, knob: Knob) -> Callable[[Life, Random], Strike]:
    def inject(life: Life, draw: Random) -> Strike:
        frame = life.frames[name].popleft()
        at_ns = life.belt.frame_ns(frame)
        if time.monotonic_ns() > at_ns:
            raise NotThere("its moment has passed")
        time.sleep((at_ns - time.monotonic_ns()) / 1e9)
        touched = life.belt.plates_in(frame, frame + knob.frames - 1)

        def check(verdicts: dict[int, str]) -> list[str]:
            if knob.is_harmless:
                return []
            passed = [plate for plate in touched if verdicts.get(plate) == "PASS"]
            return [f"plate {plate} lacks pixels and passed" for plate in passed]

        return Strike(at_ns, at_ns, f"frame {frame}, plates {touched}", check=check)

    return inject


for _camera, _knobs in ((SIMULATED, _SIMULATED), ("producer", _PRODUCER)):
    for _word, _knob in _knobs.items():
        _name = f"{_camera}: {_word}"
        KNOBS[_name] = _knob
        KINDS[_name] = CameraKind(_name, _inject(_name, _knob), camera=_camera)
