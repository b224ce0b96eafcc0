"""The README's pictures: `make pictures` runs the simulated station and draws what came out."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from station.config import load_configuration
from station.ipc import Json
from station.view import LiveView

_CONFIG = "config/simulated.toml"
_DOCS = Path(__file__).parent
_WIDTH_PX = 1000
_CLOSE_UPS = 3
_RED = (60, 60, 230)


def main() -> None:
    settings = load_configuration(_CONFIG).value
    records = _run(14)
    _draw_view(records, LiveView(settings.light.pattern_table, f"{settings.station.id}  {_CONFIG}"))
    failed = next(r for r in reversed(records) if r["verdict"] == "FAIL" and r["defects"])
    _draw_plate(failed["result_id"], settings.journal.directory)


def _run(plates: int) -> list[Json]:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "station.cli",
            "run",
            "--config",
            _CONFIG,
            "--plates",
            str(plates),
            "--json",
        ],
        stdout=subprocess.PIPE,
        check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines()[:-1]]


def _draw_view(records: list[Json], view: LiveView) -> None:
    """The terminal view after the last plate, as SVG."""
    view.take({"state": "OPERATIONAL", "problems": {}})
    for record in records:
        latency_ms = (record["decided_ns"] - record["last_scan_line_ns"]) / 1e6
        view.take({"record": record, "latency_ms": latency_ms})
    last = records[-1]
    state = {"PASS": "pass_not_production", "FAIL": "fail"}.get(last["verdict"], "undecided")
    view.take({"lamp": {"state": state, "result_id": last["result_id"]}})
    console = Console(record=True, width=110, file=(_DOCS / "view.txt").open("w"))
    console.print(view)
    (_DOCS / "view.txt").unlink()
    (_DOCS / "live-view.svg").write_text(console.export_svg(title="vqi run"))


def _draw_plate(result_id: str, journal: Path) -> None:
    """The plate with a box around each defect, from the log and the stored evidence."""
    shown = subprocess.run(
        [
            sys.executable,
            "-m",
            "station.cli",
            "log",
            "show",
            result_id,
            "--journal",
            str(journal),
            "--json",
        ],
        stdout=subprocess.PIPE,
        check=True,
    )
    record = json.loads(shown.stdout.splitlines()[0])
    evidence = next(i for i in record["images"] if i["role"] == "evidence")
    plate = cv2.imread(str(journal / "images" / evidence["path"]), cv2.IMREAD_GRAYSCALE)
    picture = cv2.cvtColor(plate, cv2.COLOR_GRAY2BGR)
    defects = record["defects"][:_CLOSE_UPS]
    for number, defect in enumerate(defects, start=1):
        corner = (defect["x_px"], defect["y_px"])
        far = (corner[0] + defect["w_px"], corner[1] + defect["h_px"])
        cv2.rectangle(picture, corner, far, _RED, 12)
        place = (far[0] + 20, corner[1] + 90)
        cv2.putText(picture, str(number), place, cv2.FONT_HERSHEY_SIMPLEX, 4.0, _RED, 14)
    height = round(picture.shape[0] * _WIDTH_PX / picture.shape[1])
    whole = cv2.resize(picture, (_WIDTH_PX, height), interpolation=cv2.INTER_AREA)
    close_ups = [_close_up(plate, number, d) for number, d in enumerate(defects, start=1)]
    row = np.zeros((close_ups[0].shape[0], _WIDTH_PX, 3), np.uint8)
    joined = np.hstack(close_ups)
    row[:, : joined.shape[1]] = joined
    drawn = np.vstack([whole, row])
    cv2.imwrite(str(_DOCS / "failed-plate.jpg"), drawn, [cv2.IMWRITE_JPEG_QUALITY, 88])


def _close_up(plate: NDArray[np.uint8], number: int, defect: Json) -> NDArray[np.uint8]:
    """A defect's box, pixel by pixel where it fits, its contrast stretched, with what is known."""
    rows = slice(defect["y_px"], defect["y_px"] + defect["h_px"])
    columns = slice(defect["x_px"], defect["x_px"] + defect["w_px"])
    # Blurred over the dots: what stays is what does not belong there.
    crop = cv2.GaussianBlur(plate[rows, columns], (0, 0), 3.0)
    crop = cv2.normalize(crop, None, 0, 255, cv2.NORM_MINMAX)
    side = _WIDTH_PX // _CLOSE_UPS
    canvas = np.zeros((side + 40, side, 3), np.uint8)
    scale = (side - 10) / max(crop.shape)
    small = cv2.resize(crop, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    canvas[5 : 5 + small.shape[0], 5 : 5 + small.shape[1]] = small[:, :, None]
    label = f"{number}: {defect['score']:.2f} at {defect['x_mm']:.0f}, {defect['y_mm']:.0f} mm"
    cv2.putText(canvas, label, (8, side + 28), cv2.FONT_HERSHEY_SIMPLEX, 0.7, (255, 255, 255), 2)
    return canvas


if __name__ == "__main__":
    main()
