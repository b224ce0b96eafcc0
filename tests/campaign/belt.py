"""What the belt really carried: which plate passed when, and which of them have defects."""

from __future__ import annotations

from dataclasses import dataclass

from drivers.camera.settings import SimulatedCameraSettings
from drivers.camera.simulated import Slots, shuffled


@dataclass(frozen=True)
class Belt:
    """A belt that nobody can stop or kill: everything follows from when it began to run."""

    settings: SimulatedCameraSettings
    epoch_ns: int
    repeats_after: int | None = None
    """Plates after which the producer's picture source repeats; None: it never does."""

    @property
    def mm_s(self) -> float:
        """How fast it runs."""
        return self.settings.line_rate_hz * self.settings.pixel_pitch_mm

    def leading_ns(self, plate: int) -> int:
        """When the leading edge of a plate (counted from 1) is under the camera."""
        return self._at_ns(Slots(self.settings).start(plate))

    def trailing_ns(self, plate: int) -> int:
        slots = Slots(self.settings)
        return self._at_ns(slots.start(plate) + slots.period - slots.gap)

    def carried(self, at_ns: int) -> int:
        """Plates whose leading edge has passed."""
        scan_line = int((at_ns - self.epoch_ns) / 1e9 * self.settings.line_rate_hz)
        return Slots(self.settings).plates_before(scan_line)

    def is_defective(self, plate: int) -> bool:
        if self.repeats_after is not None:
            plate = (plate - 1) % self.repeats_after + 1
        lap, place = divmod(plate - 1, self.settings.bank_plates)
        defective = round(self.settings.specimen.defective_share * self.settings.bank_plates)
        return shuffled(self.settings, lap)[place] < defective

    def frame_at(self, plate: int, share: float) -> int:
        """The belt's frame in which this share of a plate's length lies."""
        slots = Slots(self.settings)
        row = slots.start(plate) + int(share * (slots.period - slots.gap))
        return row // self.settings.frame_height

    def frame_ns(self, frame: int) -> int:
        """When a frame of the belt is complete."""
        return self._at_ns((frame + 1) * self.settings.frame_height)

    def plates_in(self, first_frame: int, last_frame: int) -> list[int]:
        """Plates of which a scan line lies in these frames."""
        slots, height = Slots(self.settings), self.settings.frame_height
        first, last = first_frame * height, (last_frame + 1) * height
        candidates = range(max(1, slots.plates_before(first)), slots.plates_before(last) + 1)
        length = slots.period - slots.gap
        return [n for n in candidates if slots.start(n) < last and slots.start(n) + length > first]

    def _at_ns(self, scan_line: int) -> int:
        return self.epoch_ns + int(scan_line / self.settings.line_rate_hz * 1e9)
