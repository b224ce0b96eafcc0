"""The plate's page: true pixels or a clear word, and nothing that a blind judge may not know."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import sqlite3
import struct
import tracemalloc
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, closing
from io import BytesIO
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_qms import opened, result
from web_rig import PageClient, WebRig, plate_pixels, until, web_rig

from models.card import read_card
from models.registry import shipped_model
from station.config import load_configuration
from station.images import Draft, ImageFolder, Pixels
from station.limit_samples import Sample as LimitSample
from station.limit_samples import write_list
from station.qms import DATABASE, IMAGES, Store
from station.record import (
    ActuationBody,
    ImageBody,
    ReviewBody,
    TombstoneBody,
    Verdict,
    current_boot_id,
)
from station.web.picture_tiles import (
    CONTRAST_PER_LEVEL,
    BusyError,
    LocalContrast,
    NoSuchTileError,
    PictureTiles,
    Pyramid,
    halved,
)
from station.web.plate_place import PitchSource, Pose, pitch_of
from station.web.stored_pictures import PictureError, StoredPictures, Trouble, read_index

Json = dict[str, Any]
FAILED = "s-00000002"
_SHAPES = [(1, 1), (7, 300), (256, 256), (257, 255), (700, 1030), (1025, 513)]


_ARRAYS = {
    "tiles": 2,
    "tile_grid": "AAAAAMAAAAA=",
    "tile_scores": "j8L1PZqZGT4=",
}


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebRig]:
    card = read_card(shipped_model("lightdefectnet-v3"))
    by = {"model_id": card.id, "model_sha256": card.sha256, **_ARRAYS}
    with web_rig(tmp_path_factory.mktemp("plate"), plates=24, **by) as rig:
        yield rig


@pytest.fixture(scope="module")
def client(rig: WebRig) -> PageClient:
    return rig.client()


def stored(folder: Path, pixels: Pixels, band_rows: int = 96) -> ImageBody:
    """Evidence of these pixels, as the journal process writes it."""
    images = ImageFolder(folder)
    made = Draft(images, pixels, band_rows).finish(len(pixels), {"evidence"})
    images.make_durable(made.written)
    return made.written[0].body


def noise(rows: int, columns: int) -> Pixels:
    return np.random.default_rng(rows).integers(0, 256, (rows, columns), np.uint8)


def decoded(data: bytes) -> Pixels:
    return np.asarray(Image.open(BytesIO(data), formats=("PNG",)))


def whole(
    tiles: PictureTiles, image: ImageBody, front_end: LocalContrast | None, level: int
) -> Pixels:
    """A level put together from its tiles."""
    across, down = Pyramid(image.width_px, image.height_px).tiles(level)
    rows = [
        np.concatenate(
            [decoded(tiles.tile(image, front_end, level, c, r)) for c in range(across)], axis=1
        )
        for r in range(down)
    ]
    return np.concatenate(rows)


# --- tiles ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", _SHAPES)
def test_tiles_are_the_true_pixels_at_every_level(shape: tuple[int, int], tmp_path: Path) -> None:
    pixels = noise(*shape)
    image = stored(tmp_path / "images", pixels)
    tiles = PictureTiles(StoredPictures(tmp_path / "images"), tmp_path / "cache")
    pyramid = Pyramid(image.width_px, image.height_px)
    expected = pixels
    for level in range(pyramid.levels):
        assert np.array_equal(whole(tiles, image, None, level), expected), level
        assert expected.shape[::-1] == pyramid.size(level)
        expected = halved(expected)
    assert max(pyramid.size(pyramid.levels - 1)) <= 256
    for level, column, row in ((pyramid.levels, 0, 0), (0, 99, 0), (0, 0, -1), (-1, 0, 0)):
        with pytest.raises(NoSuchTileError):
            tiles.tile(image, None, level, column, row)


def test_the_networks_view_has_no_seams_and_is_what_the_network_sees(tmp_path: Path) -> None:
    pixels = plate_pixels(1, is_scratched=True)[:, :450]
    image = stored(tmp_path / "images", pixels, band_rows=50)
    tiles = PictureTiles(StoredPictures(tmp_path / "images"), tmp_path / "cache")
    front_end = LocalContrast(cell_px=4, window=9, dark_level=16.0, phase_px=2)
    source = tiles.pictures.source(image)
    at_once = front_end.block(source, 0, 0, source.columns, source.rows)
    assert np.array_equal(whole(tiles, image, front_end, 0), at_once)
    # As the network's front end computes a tile: far enough from its edge, all cells are there.
    x, y = 2 + 4 * 20, 4 * 10
    tile = pixels[y : y + 224, x : x + 224].astype(float) + 16
    cells = tile.reshape(56, 4, 56, 4).mean(axis=(1, 3))
    mean = cells[20 - 4 : 20 + 5, 30 - 4 : 30 + 5].mean()
    seen = tile[80:84, 120:124] / mean - 1
    shown = (at_once[y + 80 : y + 84, x + 120 : x + 124].astype(float) - 128) * CONTRAST_PER_LEVEL
    assert np.abs(seen - shown).max() <= CONTRAST_PER_LEVEL


def test_a_large_part_of_the_networks_view_takes_little_memory(tmp_path: Path) -> None:
    image = stored(tmp_path / "images", noise(2048, 2048))
    tiles = PictureTiles(StoredPictures(tmp_path / "images"), tmp_path / "cache")
    front_end = LocalContrast(cell_px=4, window=9, dark_level=16.0)
    tracemalloc.start()
    try:
        tiles.crop(image, front_end, (0, 0, 2048, 2048), 512)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 12 * 2048**2


def test_the_cache_stays_below_its_size(tmp_path: Path) -> None:
    tiles = PictureTiles(StoredPictures(tmp_path / "images"), tmp_path / "cache", 2**18)
    images = [stored(tmp_path / "images", noise(400 + n, 400)) for n in range(6)]
    for image in images:
        tiles.tile(image, None, 1, 0, 0)
    kept = list((tmp_path / "cache").iterdir())
    assert 0 < sum(path.stat().st_size for path in kept) <= 2**18
    assert images[-1].sha256 in "".join(path.name for path in kept)


def test_a_cached_level_that_was_cut_is_made_anew(tmp_path: Path) -> None:
    image = stored(tmp_path / "images", noise(400, 400))
    tiles = PictureTiles(StoredPictures(tmp_path / "images"), tmp_path / "cache")
    first = tiles.tile(image, None, 1, 0, 0)
    os.truncate(next((tmp_path / "cache").iterdir()), 10)
    with pytest.raises(PictureError):
        tiles.tile(image, None, 1, 0, 0)
    assert tiles.tile(image, None, 1, 0, 0) == first


def test_a_cached_level_of_a_boot_before_is_made_anew(tmp_path: Path) -> None:
    image = stored(tmp_path / "images", noise(400, 400))
    tiles = PictureTiles(StoredPictures(tmp_path / "images"), tmp_path / "cache")
    first = tiles.tile(image, None, 1, 0, 0)
    path = next((tmp_path / "cache").iterdir())
    path.write_bytes(bytes(path.stat().st_size))  # as a power cut leaves what was not forced out
    path.rename(path.with_name(path.name.replace(current_boot_id(), "0" * 36)))
    assert tiles.tile(image, None, 1, 0, 0) == first
    assert [one.name for one in (tmp_path / "cache").iterdir()] == [path.name]


def test_more_than_can_be_served_is_refused_at_once(tmp_path: Path) -> None:
    image = stored(tmp_path / "images", noise(400, 400))
    tiles = PictureTiles(StoredPictures(tmp_path / "images"), tmp_path / "cache")
    with ExitStack() as held:
        for _ in range(2):
            held.enter_context(tiles._slot())
        waiting = [Thread(target=tiles.tile, args=(image, None, 1, 0, 0)) for _ in range(14)]
        for one in waiting:
            one.start()
        until(lambda: tiles._room._value == 0, "sixteen requests")
        with pytest.raises(BusyError):
            tiles.tile(image, None, 0, 0, 0)
    for one in waiting:
        one.join(30.0)
    assert len(decoded(tiles.tile(image, None, 1, 0, 0))) == 200


def test_one_band_is_read_without_the_others(tmp_path: Path) -> None:
    pixels = noise(960, 100)
    image = stored(tmp_path / "images", pixels)
    file = tmp_path / "images" / image.path
    data = bytearray(file.read_bytes())
    with file.open("rb") as opened_file:
        offset, length = read_index(opened_file).places[7]
    data[offset : offset + length] = b"\xff" * length
    # What is wrong in one band shows there alone, once its new hash is the recorded one.
    sha256 = hashlib.sha256(data).hexdigest()
    path = f"{sha256[:2]}/{sha256}.png"
    (tmp_path / "images" / path).write_bytes(data)
    changed = image.model_copy(update={"sha256": sha256, "path": path})
    source = StoredPictures(tmp_path / "images").source(changed)
    assert np.array_equal(source.block(3, 100, 90, 600), pixels[100:600, 3:90])
    with pytest.raises(PictureError) as caught:
        source.block(0, 700, 10, 701)
    assert caught.value.trouble is Trouble.UNREADABLE


# --- what lies there ------------------------------------------------------------------------------


def _as_recorded(
    folder: Path, data: bytes, width: int, height: int, suffix: str = "png"
) -> ImageBody:
    sha256 = hashlib.sha256(data).hexdigest()
    path = f"{sha256[:2]}/{sha256}.{suffix}"
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    (folder / path).write_bytes(data)
    role = "evidence" if suffix == "png" else "preview"
    size = {"width_px": width, "height_px": height, "bytes": len(data)}
    return ImageBody.model_validate({"role": role, "path": path, "sha256": sha256, **size})


def _png(columns: int, rows: int, packed: bytes) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", columns, rows, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("data", "size"),
    [
        (b"hello, this is text", (4, 5)),
        (_png(40, 4, zlib.compress(bytes(10**7))), (40, 4)),
        (_png(40, 4, zlib.compress(bytes(41 * 4))), (40, 4)),
        (_png(2**20, 2**20, zlib.compress(bytes(100))), (2**20, 2**20)),
        (_png(40, 4, b"\x78\x01no deflate at all"), (40, 4)),
        (_png(40, 4, zlib.compress(bytes(41 * 4)))[:50], (40, 4)),
        (_png(40, 4, zlib.compress(bytes(41 * 4))), (41, 4)),
    ],
    ids=["text", "bomb", "other filter", "huge", "damaged", "cut", "other size"],
)
def test_what_is_no_evidence_is_not_opened(
    data: bytes, size: tuple[int, int], tmp_path: Path
) -> None:
    image = _as_recorded(tmp_path, data, *size)
    with pytest.raises(PictureError) as caught:
        StoredPictures(tmp_path).source(image).block(0, 0, 1, 1)
    assert caught.value.trouble is Trouble.UNREADABLE


@pytest.mark.parametrize("what", ["symlink", "folder link", "fifo", "folder"])
def test_only_files_of_the_folder_are_opened(what: str, tmp_path: Path) -> None:
    image = stored(tmp_path / "images", noise(20, 20))
    file = tmp_path / "images" / image.path
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(file.parent, elsewhere)
    if what == "folder link":
        shutil.rmtree(file.parent)
        file.parent.symlink_to(elsewhere)
    else:
        file.unlink()
    if what == "symlink":
        file.symlink_to(elsewhere / file.name)
    if what == "fifo":
        os.mkfifo(file)
    if what == "folder":
        file.mkdir()
    with pytest.raises(PictureError) as caught:
        StoredPictures(tmp_path / "images").open(image)
    assert caught.value.trouble is Trouble.UNREADABLE
    escaping = image.model_construct(**{**image.model_dump(), "path": "../elsewhere/x.png"})
    with pytest.raises(PictureError, match="no picture's name"):
        StoredPictures(tmp_path / "images").open(escaping)


def _picture_file(rig: WebRig, result_id: str, role: str = "evidence") -> Path:
    with rig.web.reader() as reader:
        images = reader.of_result(result_id)[0]["images"]
        named = next(one["path"] for one in images if one["role"] == role)
        return reader.images / str(named)


def test_an_altered_picture_is_said_and_never_shown(rig: WebRig, client: PageClient) -> None:
    name = rig.plates[5]
    address = f"/plates/{name}/tiles/evidence/recorded"
    assert client.get(f"{address}/1/0/0").status_code == 200  # from the cache from now on
    file = _picture_file(rig, name)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    found = hashlib.sha256(data).hexdigest()
    for path in ("tiles/evidence/recorded/1/0/0", "tiles/evidence/recorded/0/0/0"):
        answer = client.get(f"/plates/{name}/{path}")
        assert (answer.status_code, answer.headers["cache-control"]) == (409, "no-store")
    for path in ("overview/evidence/recorded", "pictures/evidence"):
        assert client.get(f"/plates/{name}/{path}").status_code == 409
    picture = client.get(f"/plates/{name}.json").json()["picture"]
    assert (picture["trouble"], picture["found_sha256"]) == ("altered", found)
    page = client.get(f"/plates/{name}").text
    assert "NOT the picture that was recorded" in page
    assert found in page
    assert "plate-viewer" not in page


def test_a_wrong_preview_is_said_beside_the_true_picture(rig: WebRig, client: PageClient) -> None:
    name = rig.plates[1 + 4 * 4]
    _picture_file(rig, name, "preview").write_bytes(b"another picture")
    said = client.get(f"/plates/{name}.json").json()
    assert (said["picture"]["role"], said["picture"]["trouble"]) == ("evidence", None)
    assert [(one["role"], one["trouble"]) for one in said["also_wrong"]] == [("preview", "altered")]
    page = client.get(f"/plates/{name}").text
    assert "plate-viewer" in page
    assert "not the picture that was recorded" in page
    assert client.get(f"/plates/{name}/pictures/preview").status_code == 409


def test_a_small_picture_is_held_against_the_record(tmp_path: Path) -> None:
    with web_rig(tmp_path, plates=2) as rig:
        viewer, name = rig.client(), rig.plates[1]
        address = f"/plates/{name}/thumbnail.jpg"
        assert f'src="{address}"' in viewer.get("/plates").text
        answer = viewer.get(address)
        with Image.open(BytesIO(answer.content)) as picture:
            assert (picture.format, max(picture.size)) == ("JPEG", 240)
        again = {"if-none-match": answer.headers["etag"]}
        assert viewer.get(address, headers=again).status_code == 304
        assert viewer.get("/plates/none/thumbnail.jpg").status_code == 404
        preview = _picture_file(rig, name, "preview")
        preview.write_bytes(b"another picture")
        assert viewer.get(address).status_code == 409
        _removed(rig, name, "preview")
        assert viewer.get(address).status_code == 200, "of the one that is kept"
        target = preview.with_suffix(".aside")
        evidence = _picture_file(rig, name)
        evidence.rename(target)
        evidence.symlink_to(target)
        assert viewer.get(address).status_code == 422
        _removed(rig, name, "evidence")
        assert viewer.get(address).status_code == 410


def _removed(rig: WebRig, name: str, *roles: str) -> None:
    """As retention does it."""
    with rig.web.reader() as reader:
        images = reader.of_result(name)[0]["images"]
    for image in images:
        if image["role"] not in roles:
            continue
        stone = TombstoneBody(
            station_id="s", result_id=name, role=image["role"], path=image["path"],
            sha256=image["sha256"], bytes=image["bytes"], picture_class="fail", rule="days",
            measured=400.0, limit=365.0, why="older than 365 days",
        )  # fmt: skip
        with Store(rig.station.journal) as store:
            store.append([stone])
        (rig.station.journal / IMAGES / image["path"]).unlink()


def test_a_missing_picture_is_said(rig: WebRig, client: PageClient) -> None:
    name = rig.plates[9]
    _picture_file(rig, name).unlink()
    assert client.get(f"/plates/{name}.json").json()["picture"]["trouble"] == "missing"
    assert "no rule removed it" in client.get(f"/plates/{name}").text
    assert client.get(f"/plates/{name}/tiles/evidence/recorded/0/0/0").status_code == 404


def test_a_removed_picture_is_said_with_its_rule(rig: WebRig, client: PageClient) -> None:
    name = rig.plates[13]
    kept = client.get(f"/plates/{name}/thumbnail.jpg").headers["etag"]
    _removed(rig, name, "evidence", "preview")
    again = client.get(f"/plates/{name}/thumbnail.jpg", headers={"if-none-match": kept})
    assert again.status_code == 410, "also not of the browser's own"
    picture = client.get(f"/plates/{name}.json").json()["picture"]
    assert (picture["trouble"], picture["removed"]["rule"]) == ("removed", "days")
    page = client.get(f"/plates/{name}").text
    assert "removed by a rule" in page
    assert "older than 365 days" in page
    answer = client.get(f"/plates/{name}/tiles/evidence/recorded/0/0/0")
    assert answer.status_code == 410
    assert "older than 365 days" in answer.text


# --- the page -------------------------------------------------------------------------------------


def test_the_page_tells_all_without_script(client: PageClient) -> None:
    page = client.get(f"/plates/{FAILED}").text
    said = client.get(f"/plates/{FAILED}.json").json()
    assert re.search(r'class="tag fail plate-large">\s*FAIL', page)
    assert f'src="/plates/{FAILED}/overview/evidence/recorded"' in page
    assert '<rect x="300" y="120" width="60" height="40"/>' in page
    assert said["defects"][0]["crop_url"].replace("&", "&amp;") in page
    for fact in ("LGP-0002", "33.0, 14.0", "6.0 × 4.0", "0.930", "0.500", "Leading edge seen"):
        assert fact in page, fact
    assert [one["result_id"] for one in said["before"]] == ["s-00000001"]
    assert [row["kind"] for row in said["rows"]] == ["result", "opened", "actuation"]
    assert all("tile_grid" not in row for row in said["rows"])
    assert "style=" not in page
    assert "onclick" not in page


def test_the_networks_own_card_says_what_it_sees(client: PageClient) -> None:
    views = client.get(f"/plates/{FAILED}.json").json()["views"]
    assert [(view["name"], view["is_available"]) for view in views] == [
        ("recorded", True),
        ("contrast", True),
    ]
    assert views[0]["why"] == "plate.flat_field_none"
    tile = decoded(client.get(f"/plates/{FAILED}/tiles/evidence/contrast/0/1/0").content)
    assert abs(float(np.median(tile)) - 128) < 20, "as bright as around"
    scores = client.get(f"/plates/{FAILED}/tile-scores").json()
    assert (scores["x_px"], scores["y_px"], scores["step_px"]) == ([0, 192], [0, 0], 192)
    assert scores["score"] == pytest.approx([0.12, 0.15], abs=1e-6)


def test_a_plate_without_picture_or_numbers_has_its_page(rig: WebRig, client: PageClient) -> None:
    odd = {"score": "NaN", "tile_scores": "AADAfwAAwH8=", "tile_grid": _ARRAYS["tile_grid"]}
    rows = [
        result(950, Verdict.UNDECIDED, last_scan_line_ns=None),
        result(951, Verdict.UNDECIDED, reason="non-finite", **odd),
    ]
    with Store(rig.station.journal) as store:
        store.append(rows)
    for row, told in zip(rows, ("frames were lost", "not a number"), strict=True):
        page = client.get(f"/plates/{row.result_id}").text
        assert told in page
        assert "No picture was kept" in page
    assert client.get("/plates/s-00000951/tile-scores").json()["score"] == ["NaN", "NaN"]
    assert client.get("/plates/s-00000951.json").json()["score"] == "NaN"


_NOT_KNOWN = {
    "en": "not known: the station ended",
    "de": "nicht bekannt: die Station endete",
    "zh": "未知：检测站在写入记录前中断",
}


def test_what_the_light_was_told_is_not_known_where_the_station_died(
    rig: WebRig, client: PageClient
) -> None:
    plate = result(960, Verdict.UNDECIDED)
    row = ActuationBody(
        station_id="s",
        result_id=plate.result_id,
        command="unknown",
        is_confirmed=None,
        commanded_ns=0,
        shown_ns=None,
    )
    with Store(rig.station.journal) as store:
        store.append([plate, row])
    for language, told in _NOT_KNOWN.items():
        answer = client.get(f"/plates/{plate.result_id}", headers={"accept-language": language})
        assert told in answer.text
    said = client.get(f"/plates/{plate.result_id}.json").json()
    assert said["light"] == "unknown"
    assert "commanded" not in [stage["name"] for stage in said["stages"]]


def test_a_pixels_size_is_known_assumed_or_measured() -> None:
    now = load_configuration("config/simulated.toml")
    defect = {"w_px": 60, "h_px": 40, "w_mm": 9.0, "h_mm": 6.0}
    then: Json = {"configuration_sha256": "0" * 64, "defects": []}
    as_now = {"configuration_sha256": now.sha256, "defects": [defect]}
    assert pitch_of(as_now, now) == (0.1, PitchSource.CONFIGURATION)
    assert pitch_of(then, now) == (0.1, PitchSource.ASSUMED)
    assert pitch_of(then | {"defects": [defect]}, now) == (0.15, PitchSource.RECORD)


@pytest.mark.parametrize("language", ["en", "de", "zh"])
def test_every_text_of_the_page_is_there(rig: WebRig, client: PageClient, language: str) -> None:
    for name in rig.plates[:4]:
        answer = client.get(f"/plates/{name}", headers={"accept-language": language})
        assert answer.status_code == 200
    assert client.get(f"/plates/{FAILED}/samples?kind=scratch").status_code == 200


def test_a_reason_that_this_program_has_no_words_for_is_shown_as_it_is(tmp_path: Path) -> None:
    """Of a plate that a later program judged."""
    with web_rig(tmp_path, plates=4) as rig:
        name = rig.plates[3]
        with closing(sqlite3.connect(rig.station.journal / DATABASE)) as log:
            log.execute("DROP TRIGGER row_no_update")
            log.execute(
                "UPDATE row SET body = json_set(body, '$.reason', 'lit from <behind>') "
                "WHERE result_id = ? AND kind = 'result'",
                (name,),
            )
            log.commit()
        page = rig.client().get(f"/plates/{name}", headers={"accept-language": "en"})
        assert page.status_code == 200, page.text
        assert "Reason: lit from &lt;behind&gt;." in page.text


def test_what_was_recorded_is_served_byte_for_byte_and_kept(
    rig: WebRig, client: PageClient
) -> None:
    answer = client.get(f"/plates/{FAILED}/pictures/evidence")
    assert answer.content == _picture_file(rig, FAILED).read_bytes()
    assert answer.headers["cache-control"] == "private, no-cache", "another log may have its name"
    digest = hashlib.sha256(answer.content).hexdigest()
    assert digest in answer.headers["etag"]
    again = {"if-none-match": answer.headers["etag"]}
    for path in ("pictures/evidence", "pictures/preview"):
        assert client.get(f"/plates/{FAILED}/{path}").status_code == 200
    assert client.get(f"/plates/{FAILED}/pictures/evidence", headers=again).status_code == 304
    tile = client.get(f"/plates/{FAILED}/tiles/evidence/recorded/0/1/0")
    assert np.array_equal(decoded(tile.content), plate_pixels(2, is_scratched=True)[:256, 256:])
    assert client.head(f"/plates/{FAILED}/pictures/evidence").status_code == 200


def test_the_same_place_is_shown_on_the_plate_and_in_the_camera(
    rig: WebRig, client: PageClient
) -> None:
    found = client.get(f"/plates/{rig.plates[20]}/same-place.json?x_mm=5&y_mm=6").json()
    assert [one["is_this"] for one in found["on_plate"]] == [True, *[False] * 6]
    crop = decoded(client.get(found["on_plate"][1]["url"]).content)
    lying = {"x_px": 12 + 50 - 40, "y_px": 60 - 40}
    pixels = plate_pixels(20, is_scratched=False)
    x, y = lying["x_px"], lying["y_px"]
    assert np.array_equal(crop, pixels[y : y + 80, x : x + 80])
    assert client.get(f"/plates/{FAILED}/same-place?defect=7").status_code == 404


def test_samples_are_judged_plates_of_that_kind(rig: WebRig, client: PageClient) -> None:
    with Store(rig.station.journal) as store:
        for name, verdict in ((rig.plates[17], Verdict.PASS), (rig.plates[21], Verdict.FAIL)):
            review = ReviewBody(
                station_id="s", result_id=name, verdict=verdict, reviewer="ada", reason="limit",
                defects=[{"number": 0, "kind": "scratch"}],
            )  # fmt: skip
            store.append([review])
    found = client.get(f"/plates/{FAILED}/samples.json?kind=scratch").json()
    assert [one["result_id"] for one in found["accepted"]] == [rig.plates[17]]
    assert [one["result_id"] for one in found["rejected"]] == [rig.plates[21]]
    assert client.get(found["accepted"][0]["url"]).status_code == 200
    said = client.get(f"/plates/{rig.plates[17]}.json").json()
    assert (said["verdict"], said["own_verdict"]) == ("PASS", "FAIL")
    assert said["defects"][0]["kind"] == "scratch"
    assert said["samples"]["kind"] == "scratch"
    recipe = rig.station.folder / "recipe.toml"
    text = recipe.read_text()
    for changed, kinds in (("no recipe", []), (text + '[review]\nkinds = ["dent"]\n', ["dent"])):
        recipe.write_text(changed)
        try:
            assert client.get(f"/plates/{FAILED}/samples.json").json()["kinds"] == kinds
        finally:
            recipe.write_text(text)


def test_the_recipes_limit_samples_are_beside_the_plate(
    rig: WebRig, client: PageClient, tmp_path: Path
) -> None:
    folder = tmp_path / "samples"
    folder.mkdir()
    listed = []
    for number, expected in ((1, Verdict.PASS), (2, Verdict.FAIL)):
        image = stored(tmp_path / "images", plate_pixels(number, expected is Verdict.FAIL))
        file = folder / f"{expected}.png"
        file.write_bytes((tmp_path / "images" / image.path).read_bytes())
        listed.append(LimitSample(file, expected, image.sha256))
    sha256 = write_list(folder, listed)
    address, recipe = f"/plates/{FAILED}/samples", rig.station.folder / "recipe.toml"
    assert "names no limit samples" in client.get(address).text
    text = recipe.read_text()
    recipe.write_text(f'{text}[limit_samples]\nfolder = "{folder}"\nsha256 = "{sha256}"\n')
    try:
        shown = client.get(f"{address}.json").json()["limits"]
        assert [one["expected"] for one in shown] == ["PASS", "FAIL"]
        assert "FAIL.png" in client.get(address).text
        for one in shown:
            picture = client.get(one["picture_url"])
            assert Image.open(BytesIO(picture.content), formats=("JPEG",)).size == (240, 160)
        wrong = shown[1]["picture_url"]
        for name in ("0" * 64, "..%2fsamples.csv", listed[0].sha256.upper()):
            assert client.get(f"/limit-samples/{name}/thumbnail.jpg").status_code == 404
        listed[1].path.write_bytes(listed[0].path.read_bytes())
        assert client.get(wrong).status_code == 409
        listed[1].path.unlink()
        listed[1].path.symlink_to(listed[0].path)
        assert client.get(wrong).status_code == 422
        (folder / "samples.csv").write_text("file,expected,sha256\n")
        assert client.get(f"{address}.json").json()["limits"] == []
        assert "cannot be read" in client.get(address).text
        assert client.get(wrong).status_code == 404
    finally:
        recipe.write_text(text)
    assert client.get(wrong).status_code == 404


@pytest.mark.parametrize(
    "name",
    ["x", "s-99999999", "..%2f..%2fetc%2fpasswd", "%00", "s-00000002'--", "<script>", "a" * 900],
)
@pytest.mark.parametrize("rest", ["", ".json", "/tiles/evidence/recorded/0/0/0", "/tile-scores"])
def test_hostile_names_find_nothing(client: PageClient, name: str, rest: str) -> None:
    answer = client.get(f"/plates/{name}{rest}")
    assert answer.status_code == 404
    assert "<script>" not in answer.text.replace('<script src="/static', "")


@pytest.mark.parametrize(
    "rest",
    [
        "tiles/evidence/recorded/0/9999999999999999999999/0",
        "tiles/evidence/recorded/99/0/0",
        "tiles/evidence/recorded/-1/0/0",
        "tiles/other/recorded/0/0/0",
        "tiles/evidence/../0/0/0",
        "pictures/..%2fjournal.db",
        "crops/evidence/recorded?x_px=0&y_px=0&side_px=1000000",
        "crops/evidence/recorded?x_px=0&y_px=0&side_px=-5",
        "crops/evidence/recorded?x_px=1e9&y_px=0&side_px=5",
        f"crops/evidence/recorded?x_px={10**30}&y_px=0&side_px=5",
        "same-place?x_mm=nan&y_mm=inf",
        f"same-place?defect={10**30}",
    ],
)
def test_hostile_places_are_refused(client: PageClient, rest: str) -> None:
    assert client.get(f"/plates/{FAILED}/{rest}").status_code in (404, 422)


# --- blind ----------------------------------------------------------------------------------------


def _blind_answers(folder: Path, **changes: object) -> Json:
    """Everything that can be fetched of a blind plate, with what is random taken out."""
    paths = [
        "", ".json", "/same-place.json?x_mm=3&y_mm=3", "/samples.json?kind=scratch",
        "/tile-scores", "/pictures/preview", "/overview/preview/recorded",
        "/tiles/preview/recorded/0/0/0", "/overview/evidence/recorded", "/pictures/evidence",
        "/tiles/evidence/recorded/0/0/0", "/tiles/evidence/contrast/0/0/0",
        "/crops/evidence/recorded?x_px=9&y_px=9&side_px=9",
    ]  # fmt: skip
    with web_rig(folder, plates=4, is_audit_sample=True, **changes) as rig:
        client = rig.client()
        client.get("/nothing")
        answers = {path: client.get(f"/plates/{rig.plates[2]}{path}") for path in paths}
        near = client.get(f"/plates/{rig.plates[1]}.json").json()
    said = {
        path: (answer.status_code, re.sub(rb"[0-9a-f]{12,}", b"", answer.content))
        for path, answer in answers.items()
    }
    return {"said": said, "near": near}


def test_a_blind_plate_says_nothing_in_any_form(tmp_path: Path) -> None:
    quiet = _blind_answers(tmp_path / "a", score=0.12)
    scored = _blind_answers(
        tmp_path / "b", score=0.4321, detail="level 77 of 78", threshold=0.4444, **_ARRAYS
    )
    for path, answer in quiet["said"].items():
        assert answer == scored["said"][path], path
    refused = {path for path, (status, _) in scored["said"].items() if status == 403}
    assert {"/tile-scores", "/same-place.json?x_mm=3&y_mm=3", "/pictures/preview"} <= refused
    page = json.loads(scored["said"][".json"][1])
    shown = {"verdict", "own_verdict", "score", "threshold", "defects", "reviews", "rows", "light"}
    assert all(not page[name] for name in shown)
    assert page["is_blind"] is True
    assert scored["said"]["/tiles/evidence/contrast/0/0/0"][0] == 404, "no card of such a network"
    text = scored["said"][""][1].decode()
    for told in ("0.43", "0.44", "level 77", "tag pass", "PASS<", "passed", "actuation"):
        assert told not in text, told
    # Neither on the page of the plate beside it, which failed and is hidden from nobody.
    near = scored["near"]
    hidden = [
        one["verdict"] for one in near["before"] + near["after"] if one["result_id"] != FAILED
    ]
    assert hidden == [None, None, "UNDECIDED"]
    assert "preview" not in json.dumps([near["before"], near["after"][:1]])


# --- places ---------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(
    skew_deg=st.floats(-2, 2),
    width=st.integers(400, 4000),
    length=st.integers(300, 3000),
    left=st.integers(0, 500),
    place=st.tuples(st.floats(0.02, 0.98), st.floats(0.02, 0.98)),
)
def test_a_place_on_the_plate_is_found_however_it_lies(
    skew_deg: float, width: int, length: int, left: int, place: tuple[float, float]
) -> None:
    angle, u, v = math.radians(skew_deg), place[0] * width, place[1] * length
    across, along = (
        np.array([math.cos(angle), -math.sin(angle)]),
        np.array([math.sin(angle), math.cos(angle)]),
    )
    corner = np.array([600.0 + left, max(0.0, width * math.sin(angle))])
    # As the record measures it: the least left edge of the first quarter of the scan lines.
    rows = np.arange(0, length * math.cos(angle) / 4)
    edge = corner[0] + (rows - min(corner[1], 0)) * math.tan(angle)
    left_px = float(edge.min()) if angle < 0 else corner[0]
    record = {
        "left_px": left_px, "width_px": width, "length_px": length, "skew_deg": skew_deg
    }  # fmt: skip
    pose = Pose.of(record, 0.1)
    assert pose is not None
    x, y = corner + u * across + v * along
    assert pose.on_plate(x, y) == pytest.approx((u / 10, v / 10), abs=0.4)
    assert pose.in_picture(*pose.on_plate(x, y)) == pytest.approx((x, y), abs=1e-6)
    assert Pose.of({"left_px": None}, 0.1) is None


def test_an_opened_plate_is_on_its_way(rig: WebRig, client: PageClient) -> None:
    with Store(rig.station.journal) as store:
        store.append([opened(900, 900)])
    page = client.get("/plates/s-00000900")
    assert "there is no result yet" in page.text
    assert client.get("/plates/s-00000900.json").json()["is_waiting"] is True
    assert client.get("/plates/s-00000900/tile-scores").status_code == 404
