"""The README's pictures: `make pictures` runs the simulated station and draws what came out."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import cv2
from rich.console import Console

from station.config import load_configuration
from station.ipc import Json
from station.view import LiveView

_CONFIG = "config/simulated.toml"
_DOCS = Path(__file__).parent
_WIDTH_PX = 1000


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
    picture = cv2.imread(str(journal / "images" / evidence["path"]), cv2.IMREAD_GRAYSCALE)
    picture = cv2.cvtColor(picture, cv2.COLOR_GRAY2BGR)
    for defect in record["defects"]:
        corner = (defect["x_px"], defect["y_px"])
        far = (corner[0] + defect["w_px"], corner[1] + defect["h_px"])
        cv2.rectangle(picture, corner, far, (60, 60, 230), 10)
        label = f"{defect['score']:.2f} at {defect['x_mm']:.0f}, {defect['y_mm']:.0f} mm"
        place = (corner[0], max(60, corner[1] - 20))
        cv2.putText(picture, label, place, cv2.FONT_HERSHEY_SIMPLEX, 2.2, (60, 60, 230), 6)
    height = round(picture.shape[0] * _WIDTH_PX / picture.shape[1])
    small = cv2.resize(picture, (_WIDTH_PX, height), interpolation=cv2.INTER_AREA)
    cv2.imwrite(str(_DOCS / "failed-plate.jpg"), small, [cv2.IMWRITE_JPEG_QUALITY, 88])


if __name__ == "__main__":
    main()
