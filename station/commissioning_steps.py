"""The steps of `vqi commission`, in the order in which one builds on another."""

from __future__ import annotations

from station.commissioning import Step
from station.commissioning_camera import camera, delays, flat_field, focus, rate, scale, warm_up
from station.commissioning_line import dry_run, lamp, limit_samples, msa

STEPS = (
    Step("camera", "Camera and features", camera),
    Step("warm_up", "Warm-up", warm_up),
    Step("rate", "Line rate", rate),
    Step("flat_field", "Flat field", flat_field),
    Step("focus", "Focus", focus),
    Step("scale", "Scale", scale),
    Step("delays", "Trigger and reject delay", delays),
    Step("lamp", "Lamp and I/O", lamp),
    Step("dry_run", "Dry run", dry_run, runs_the_station=True),
    Step("limit_samples", "Limit samples", limit_samples),
    Step("msa", "Attribute study (MSA)", msa),
)
