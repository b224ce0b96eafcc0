"""What the plate's page costs, and how soon after the light it is complete.

    python benchmarks/web_plate.py [--plates 30] [--large] [--json]

Tiles: of a plate of 4096 scan line pixels and, with --large, of 16,384 x 16,384 px: the first walk
that makes the lower levels, and tiles as they come, decoded anew and remembered. Page: a simulated
station beside its page and a browser, as on the line; from the lamp process's FAIL to the plate's
page with all its visible tiles drawn, and from the commit of the record. Firm: 1 s; goal 300 ms.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from station_rig import Rig, start_vqi, wait_until
from web_rig import running_web

from drivers.stacklight import LightState
from station.images import Draft, ImageFolder
from station.processes import ask
from station.record import ImageBody
from station.web.picture_tiles import LocalContrast, PictureTiles
from station.web.stored_pictures import StoredPictures

Json = dict[str, Any]
_PATIENCE_S = 60.0
_CHROMIUM = "/usr/bin/chromium"
_DRAWN = """() => {
  const section = document.querySelector(".plate-viewer");
  if (!section || !section.viewer) return false;
  const { viewer } = section;
  return !viewer.isAsked && !viewer.tiles.loading.size && !viewer.tiles.wanted.length
    && viewer.tiles.kept.size > 0;
}"""
_SPECIMEN = {"width_mm": 60.0, "length_mm": 40.0, "gap_mm": 400.0, "defective_share": 1.0}


def main() -> None:
    options = _options()
    found: Json = {"tiles": [_tile_cost("4096 x 1500", 4096, 1500)]}
    if options.large:
        found["tiles"].append(_tile_cost("16384 x 16384", 16_384, 16_384))
    if options.plates:
        found["page"] = _page_times(options.plates)
    print(json.dumps(found, indent=None if options.json else 2))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--plates", type=int, default=30, help="Failed plates whose page is opened."
    )
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


# --- tiles ----------------------------------------------------------------------------------------


def _tile_cost(name: str, columns: int, rows: int) -> Json:
    with tempfile.TemporaryDirectory() as folder:
        image = _stored(Path(folder) / "images", columns, rows)
        tiles = PictureTiles(StoredPictures(Path(folder) / "images"), Path(folder) / "cache")
        contrast = LocalContrast(4, 9, 16.0)
        places = [(c, r) for r in range(min(4, rows // 256)) for c in range(min(8, columns // 256))]
        first = _ms(lambda: tiles.pictures.open(image).close())
        walk = _ms(lambda: tiles.tile(image, None, 1, 0, 0))
        tiles.pictures = StoredPictures(Path(folder) / "images")
        cold = [_ms(lambda c=c, r=r: tiles.tile(image, None, 0, c, r)) for c, r in places]
        warm = [_ms(lambda c=c, r=r: tiles.tile(image, None, 0, c, r)) for c, r in places]
        half = [_ms(lambda c=c, r=r: tiles.tile(image, None, 1, c // 2, r // 2)) for c, r in places]
        seen = [_ms(lambda c=c, r=r: tiles.tile(image, contrast, 0, c, r)) for c, r in places]
        return {
            "picture_px": name,
            "file_mb": round(image.bytes / 1e6, 1),
            "check_of_sha256_ms": first,
            "walk_that_makes_levels_ms": walk,
            "tile_bands_decoded_anew_ms": _spread(cold),
            "tile_bands_remembered_ms": _spread(warm),
            "tile_of_level_1_ms": _spread(half),
            "tile_as_the_network_sees_it_ms": _spread(seen),
        }


def _stored(folder: Path, columns: int, rows: int) -> ImageBody:
    noise = np.random.default_rng(1).normal(120, 8, (192, 2 * columns)).astype(np.uint8)
    pixels = np.empty((rows, columns), np.uint8)
    for number, y in enumerate(range(0, rows, 192)):
        part = pixels[y : y + 192]
        part[:] = noise[: len(part), 97 * number % columns :][:, :columns]
    images = ImageFolder(folder)
    made = Draft(images, pixels, 192).finish(rows, {"evidence"})
    images.make_durable(made.written)
    return made.written[0].body


def _ms(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return round(1000 * (time.perf_counter() - begin), 2)


def _spread(values: list[float]) -> Json:
    ordered = sorted(values)
    middle, high = (ordered[int(share * (len(ordered) - 1))] for share in (0.5, 0.95))
    return {"p50": middle, "p95": high, "max": ordered[-1], "n": len(ordered)}


# --- page -----------------------------------------------------------------------------------------


def _page_times(plates: int) -> Json:
    """From FAIL to the drawn page, of so many plates."""
    with tempfile.TemporaryDirectory() as folder:
        rig = Rig(
            Path(folder),
            specimen=_SPECIMEN,
            fail_hold_s=0.5,
            threshold=0.5,
            station={"id": "line-1"},
            tables="[web]\nport = 0\n",
        )
        config = rig.write()
        run = start_vqi("run", "--config", str(config))
        try:
            wait_until(lambda: rig.status().get("state") == "OPERATIONAL", 60.0, "OPERATIONAL")
            with running_web(config) as (url, _), _browser() as page:
                times: list[tuple[float, float]] = []
                ids: list[str] = []
                page.goto(
                    f"{url}/plates/{_next_fail(rig.runtime, ids)}"
                )  # what a browser keeps from then
                for _ in range(plates):
                    times.append(_one(page, url, rig.runtime, ids))
        finally:
            run.terminate()
            run.wait(30.0)
        return {"from_fail_lamp_ms": _spread([one for one, _ in times])} | {
            "from_page_asked_with_result_ms": _spread([one for _, one in times])
        }


def _next_fail(runtime: Path, before: list[str]) -> str:
    """The plate of the next FAIL that the lamp shows."""
    until = time.monotonic() + _PATIENCE_S
    while time.monotonic() < until:
        status, _ = ask(runtime, "lamp", 2.0)
        name = (status or {}).get("result_id")
        if status and status["state"] == LightState.FAIL and name not in before:
            before.append(name)
            return str(name)
        time.sleep(0.002)
    raise TimeoutError(f"no FAIL within {_PATIENCE_S:g} s")


def _one(page: Any, url: str, runtime: Path, ids: list[str]) -> tuple[float, float]:
    name = _next_fail(runtime, ids)
    begin = time.perf_counter()
    page.goto(f"{url}/plates/{name}", wait_until="commit")
    page.wait_for_selector(".plate-viewer")
    shown = time.perf_counter()
    page.wait_for_function(_DRAWN, timeout=30_000)
    end = time.perf_counter()
    return round(1000 * (end - begin), 1), round(1000 * (end - shown), 1)


@contextmanager
def _browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=_CHROMIUM, args=["--no-sandbox"])
        yield chromium.new_page(viewport={"width": 1920, "height": 1080})
        chromium.close()


if __name__ == "__main__":
    main()
