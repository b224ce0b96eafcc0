"""From reviewed plates to labelled tiles, with provenance: what `vqi model collect` takes from the
log, and into which split it goes.

A tile is good only where a person said that its plate is, and defective only where a person said so
of its plate and the station or that person marked the place; whatever nobody judged is left out.

Splits: whole parts, never plates. A part is all attempts of one serial, and all plates that may be
of one serial. A part of which any attempt was drawn for the audit is test data, and so is a fixed
share of the others, by the hash of the serial: both hold for every later collect, so that nothing
that ever tested a model can train one. What looks like a test tile does not train either.
"""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from sqlalchemy import or_, select

from models.training.data import data_sha256, read_folder
from models.training.duplicates import NEAR_BITS, Hash, nearest, picture_hash
from station.config import Configuration
from station.export_rows import without_formula
from station.log_reader import Reader
from station.questions import Selection, plate_conditions
from station.record import ChangeBody, Verdict
from station.reviews import Judgement, effective_verdict
from station.stored_tiles import (
    NotStored,
    Pixels,
    Place,
    RecipeBook,
    ScoredTile,
    cut_stored,
    evidence_picture,
    scored_tiles,
)
from station.tables import PLATE
from station.tiling import TILE_PX
from station.verdict import is_failing

Json = dict[str, Any]
Box = tuple[int, int, int, int]
"""x0, y0, x1, y1 in px, ends exclusive."""

COLLECTED = "model_collected"
"""Name of the change row."""
TEST_SHARE = 0.2
REPORT = "collected.json"
PROVENANCE = "provenance.csv"
UNNAMED = "unnamed"
"""Kind of a defect that nobody named."""
_PAGE_ROWS = 500
_MAY_TEST = or_(PLATE.c.reviewer.is_not(None), PLATE.c.is_audit_sample)
_LEAST_SHARE = 0.5
"""Of a mark, or of the tile where that is smaller: what a tile shows less of, it does not show."""
_SALT = "vqi test part"
_LABEL_COLUMNS = ("file", "label", "split", "group", "defect_type")
_BOX_COLUMNS = ("file", "type", "x0", "y0", "x1", "y1")
_PROVENANCE_COLUMNS = (
    *("file", "split", "group", "label", "basis", "kind", "is_named", "result_id", "written_at"),
    *("part_id", "attempt", "provenance", "is_audit_sample", "station_verdict", "tile_x_px"),
    *("tile_y_px", "tile_score", "threshold", "recipe", "recipe_sha256", "model_id"),
    *("model_sha256", "record_row", "record_sha256", "review_row", "review_verdict", "reviewers"),
    *("reason", "review_sha256", "picture_sha256", "tile_sha256"),
)


class CollectError(ValueError):
    """Nothing was collected; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is asked for. Times are UTC text as in `written_at`, of the plates."""

    out: Path
    since: str | None = None
    until: str | None = None
    provenance: str | None = None
    seed: int = 1
    """Of the choice among tiles where there are more than wanted."""
    per_kind: int = 200
    """Training tiles of one kind of defect at most."""
    good_per_plate: int = 12
    test_share: float | None = None
    """None: what the last collect had, or `TEST_SHARE`."""


@dataclass(frozen=True, slots=True)
class Labelled:
    """A tile of which a person said what it is."""

    place: Place
    score: float
    label: int
    basis: str
    """`confirmed`: the station found it, a person agreed; `escape`: a person marked it on a plate
    that passed; `missed`: marked on one that failed elsewhere; `false_reject`: the station called
    it defective, a person the plate good; `good`: a tile of a plate that a person called good."""
    kind: str = ""
    is_named: bool = False
    boxes: tuple[tuple[str, Box], ...] = ()
    """Kind, and place in px of the tile."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """A plate that a person judged."""

    result_id: str
    seq: int
    keys: tuple[str, ...]
    tiles: tuple[Labelled, ...]


@dataclass(slots=True)
class Collected:
    """What came of it."""

    folder: Path
    test_share: float
    data_sha256: str = ""
    provenance_sha256: str = ""
    report_sha256: str = ""
    head_seq: int = 0
    head_chain_sha256: str = ""
    plates: int = 0
    tiles: Counter[str] = field(default_factory=Counter)
    """By split and label, as `train good`."""
    kinds: Counter[str] = field(default_factory=Counter)
    """Defective training tiles."""
    not_taken: Counter[str] = field(default_factory=Counter)
    """Tiles beyond what was wanted, by split and kind."""
    left_out: list[Json] = field(default_factory=list)
    """Plates, each with why."""
    near_duplicates: list[Json] = field(default_factory=list)
    """Training tiles that look like a test tile of another part, which may be of another time."""
    parts: Counter[str] = field(default_factory=Counter)

    def as_json(self) -> Json:
        told = {one.name: getattr(self, one.name) for one in fields(self)}
        counts = {name: dict(value) for name, value in told.items() if isinstance(value, Counter)}
        return {**told, **counts, "folder": str(self.folder), "near_bits": NEAR_BITS}


# --- what a person said of which tile ------------------------------------------------------------


def labelled_tiles(rows: Sequence[Mapping[str, Any]]) -> tuple[Labelled, ...]:
    """Of all rows about a plate. Raises `NotStored` where they say nothing of any tile."""
    result = next((row for row in rows if row["kind"] == "result"), None)
    if result is None:
        raise NotStored("it has no result")
    judged = effective_verdict(rows)
    if judged.pending is not None and judged.review is None:
        raise NotStored("its review waits for a second person")
    if judged.review is None:
        raise NotStored("what a person said of it was taken back")
    if result["verdict"] == Verdict.UNDECIDED:
        raise NotStored(f"the station did not decide ({result['reason']})")
    if judged.verdict is Verdict.UNDECIDED:
        raise NotStored("a person could not decide either")
    tiles = scored_tiles(result)
    if judged.verdict is Verdict.PASS:
        return tuple(_good(tile, result["threshold"]) for tile in tiles)
    found = _defective(rows, result, tiles)
    if not found:
        raise NotStored(
            "nobody marked where its defect is: `vqi log review ... --at X,Y,W,H=KIND`"
            if result["verdict"] == Verdict.PASS
            else "no failing tile lies at a defect that a person named"
        )
    return found


def _good(tile: ScoredTile, threshold: float) -> Labelled:
    basis = "false_reject" if is_failing(tile.score, threshold) else "good"
    return Labelled((tile.x_px, tile.y_px), tile.score, 0, basis)


def _defective(
    rows: Sequence[Mapping[str, Any]], result: Mapping[str, Any], tiles: Sequence[ScoredTile]
) -> tuple[Labelled, ...]:
    """Failing tiles at the defects that were named, or at any if none was; and marked tiles."""
    names = _names(rows)
    listed = [
        (names.get(number, UNNAMED), _box_of(defect))
        for number, defect in enumerate(result.get("defects") or ())
        if not names or number in names
    ]
    marks = [(mark["kind"], _box_of(mark)) for mark in _marks(rows)]
    basis = "escape" if result["verdict"] == Verdict.PASS else "missed"
    found = []
    for tile in tiles:
        seen = [(kind, box) for kind, box in marks if _shows(tile, box)]
        told = basis
        if not seen and is_failing(tile.score, result["threshold"]):
            seen = [(kind, box) for kind, box in listed if _overlap(tile, box)]
            told = "confirmed"
        if seen:
            boxes = tuple((kind, _in_tile(tile, box)) for kind, box in seen)
            place, kind = (tile.x_px, tile.y_px), seen[0][0]
            found.append(Labelled(place, tile.score, 1, told, kind, kind != UNNAMED, boxes))
    return tuple(found)


def _names(rows: Sequence[Mapping[str, Any]]) -> dict[int, str]:
    """What the listed defects are called: the last name of each."""
    reviews = (row for row in rows if row["kind"] == "review")
    return {one["number"]: one["kind"] for row in reviews for one in row.get("defects") or ()}


def _marks(rows: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """The last marks that anybody made."""
    marked = [row["places"] for row in rows if row["kind"] == "review" and row.get("places")]
    return marked[-1] if marked else ()


def _box_of(place: Mapping[str, Any]) -> Box:
    x, y = place["x_px"], place["y_px"]
    return x, y, x + place["w_px"], y + place["h_px"]


def _in_tile(tile: ScoredTile, box: Box) -> Box:
    x0, y0 = max(0, box[0] - tile.x_px), max(0, box[1] - tile.y_px)
    return x0, y0, min(TILE_PX, box[2] - tile.x_px), min(TILE_PX, box[3] - tile.y_px)


def _overlap(tile: ScoredTile, box: Box) -> int:
    """Pixels of the tile inside the box."""
    x0, y0, x1, y1 = _in_tile(tile, box)
    return max(0, x1 - x0) * max(0, y1 - y0)


def _shows(tile: ScoredTile, box: Box) -> bool:
    area = min((box[2] - box[0]) * (box[3] - box[1]), TILE_PX**2)
    return _overlap(tile, box) >= _LEAST_SHARE * area


# --- splits ---------------------------------------------------------------------------------------


class Parts:
    """Plates by the part that they are, or may be, and each part's split."""

    def __init__(self, test_share: float) -> None:
        self._share = test_share
        self._of: dict[str, str] = {}
        self._is_test: set[str] = set()

    def add(self, keys: Sequence[str], is_audit_sample: bool) -> None:
        """A plate, by all serials that may be its own (or its result's id)."""
        roots = [self._root(key) for key in keys]
        first = min(roots)
        is_test = is_audit_sample or any(map(self._is_drawn, keys))
        is_test = is_test or any(root in self._is_test for root in roots)
        for root in roots:
            self._of[root] = first
        if is_test:
            self._is_test.add(first)

    def split(self, keys: Sequence[str]) -> str:
        """Of a plate that was added; one that was not tests where the share alone says so."""
        is_test = self._root(keys[0]) in self._is_test or any(map(self._is_drawn, keys))
        return "test" if is_test else "train"

    def group(self, keys: Sequence[str]) -> str:
        """A name of the part that says nothing to a spreadsheet."""
        return "part-" + hashlib.sha256(self._root(keys[0]).encode()).hexdigest()[:16]

    def _root(self, key: str) -> str:
        self._of.setdefault(key, key)
        while self._of[key] != key:
            key = self._of[key]
        return key

    def _is_drawn(self, key: str) -> bool:
        digest = hashlib.sha256(f"{_SALT} {key}".encode()).digest()
        return int.from_bytes(digest[:8], "big") < self._share * 2**64


def keys_of(result: Mapping[str, Any]) -> tuple[str, ...]:
    """Serials that may be this plate's; its own id where there is none."""
    if result.get("part_id"):
        return (f"serial {result['part_id']}",)
    serials = [f"serial {serial}" for serial in result.get("serials") or ()]
    return tuple(serials) or (f"result {result['result_id']}",)


def read_parts(reader: Reader, test_share: float) -> Parts:
    """Of every plate that was ever judged or drawn, whatever is collected now: what tested once
    tests for ever."""
    parts = Parts(test_share)
    for plate in _read_seen(reader):
        parts.add(plate.keys, plate.is_audit_sample)
    return parts


@dataclass(frozen=True, slots=True)
class Seen:
    """A plate that a person judged, or that was drawn for the audit."""

    seq: int
    keys: tuple[str, ...]
    is_audit_sample: bool


def _read_seen(reader: Reader) -> Iterator[Seen]:
    for page in _pages(reader, _MAY_TEST):
        bodies = reader.bodies_at([line.seq for line in page if line.part_id is None])
        for line in page:
            result = bodies.get(line.seq, {"part_id": line.part_id})
            yield Seen(line.seq, keys_of(result), bool(line.is_audit_sample))


def read_trained_keys(reader: Reader) -> frozenset[str]:
    """`trained_keys` by the log."""
    rows = (row for row in reader.bodies("change") if row["what"] == COLLECTED)
    collects = [int(row["detail"]["up_to_row"]) for row in rows]
    return trained_keys(list(_read_seen(reader)), collects) if collects else frozenset()


def trained_keys(plates: Sequence[Seen], collects: Sequence[int]) -> frozenset[str]:
    """Serials of the parts of which an attempt may have trained before another one was drawn for
    the audit: a collect, known by the last row that it read, came in between. Which models learned
    from it the log does not say."""
    parts = Parts(0.0)
    for plate in plates:
        parts.add(plate.keys, False)
    first: dict[tuple[str, bool], int] = {}
    for plate in plates:
        kind = parts.group(plate.keys), plate.is_audit_sample
        first[kind] = min(plate.seq, first.get(kind, plate.seq))

    def may_have_trained(part: str) -> bool:
        judged, drawn = first.get((part, False)), first.get((part, True))
        if judged is None or drawn is None:
            return False
        return any(judged <= last < drawn for last in collects)

    spoilt = [plate for plate in plates if may_have_trained(parts.group(plate.keys))]
    return frozenset(key for plate in spoilt for key in plate.keys)


def share_in_force(reader: Reader, asked: float | None) -> float:
    """The share of parts that test. Raises `CollectError` for less than ever before: a part that
    tested would train."""
    rows = (row for row in reader.bodies("change") if row["what"] == COLLECTED)
    before = max((float(row["detail"]["test_share"]) for row in rows), default=None)
    if before is None:
        return TEST_SHARE if asked is None else asked
    if asked is not None and asked < before:
        raise CollectError(
            f"test share {asked:g}: an earlier collect held out {before:g}, and parts that tested "
            "then would train now; give as much or more"
        )
    return before if asked is None else asked


def _pages(reader: Reader, wanted: Any) -> Iterator[Sequence[Any]]:
    after = 0
    while True:
        chosen = select(PLATE).where(wanted, PLATE.c.seq > after).order_by(PLATE.c.seq)
        page = reader.ask(chosen.limit(_PAGE_ROWS))
        if page:
            yield page
        if len(page) < _PAGE_ROWS:
            return
        after = page[-1].seq


# --- the folder -----------------------------------------------------------------------------------


def collect(configuration: Configuration, reader: Reader, plan: Plan) -> Collected:
    """Write the folder. Raises `CollectError`, OSError, `StoreError`; then there is none."""
    if plan.out.exists():
        raise CollectError(f"{plan.out}: is there already; name another folder")
    share = share_in_force(reader, plan.test_share)
    made = Collected(plan.out, share, head_seq=reader.last_seq())
    made.head_chain_sha256 = reader.chain_at(made.head_seq) if made.head_seq else ""
    # After the head: every plate that was judged up to it is of one of these parts.
    parts = read_parts(reader, share)
    judged = list(_judged(reader, plan, made))
    chosen = _chosen(judged, parts, plan, made)
    temporary = plan.out.with_name(f"{plan.out.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        (temporary / "tiles").mkdir(parents=True)
        _write(temporary, configuration, reader, parts, chosen, made)
        if not sum(made.tiles.values()):
            raise CollectError(f"no tile to collect: {_why_nothing(made)}")
        _seal(temporary, plan, made)
        temporary.rename(plan.out)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return made


def _why_nothing(made: Collected) -> str:
    if not made.left_out:
        return "nobody has judged a plate in this time"
    whys = Counter(one["why"] for one in made.left_out)
    return "; ".join(f"{count} plates: {why}" for why, count in whys.most_common(3))


def _judged(reader: Reader, plan: Plan, made: Collected) -> Iterator[Evidence]:
    selection = Selection(since=plan.since, until=plan.until, provenance=plan.provenance)
    is_known = PLATE.c.seq <= made.head_seq
    wanted = PLATE.c.reviewer.is_not(None) & is_known & plate_conditions(selection)
    for page in _pages(reader, wanted):
        for line in page:
            rows = _rows_until(reader, line.result_id, made.head_seq)
            if not any(row["kind"] == "review" for row in rows):
                continue  # it was judged since
            try:
                tiles = labelled_tiles(rows)
            except NotStored as why:
                made.left_out.append({"result_id": line.result_id, "why": str(why)})
                continue
            yield Evidence(line.result_id, line.seq, keys_of(rows[0]), tiles)


def _rows_until(reader: Reader, result_id: str, last_seq: int) -> list[Json]:
    return [row for row in reader.of_result(result_id) if row["seq"] <= last_seq]


def _chosen(
    judged: Sequence[Evidence], parts: Parts, plan: Plan, made: Collected
) -> list[tuple[Evidence, list[Labelled]]]:
    """The tiles of each plate that are taken, test plates first."""
    of_split: dict[str, list[tuple[Evidence, Labelled]]] = {"test": [], "train": []}
    for plate in judged:
        split = parts.split(plate.keys)
        for tile in _of_plate(plate, plan):
            of_split[split].append((plate, tile))
    taken: dict[str, list[Labelled]] = {}
    for plate, tile in [*of_split["test"], *_balanced(of_split["train"], plan, made)]:
        taken.setdefault(plate.result_id, []).append(tile)
    order = sorted(judged, key=lambda plate: (parts.split(plate.keys) != "test", plate.seq))
    return [(plate, taken[plate.result_id]) for plate in order if plate.result_id in taken]


def _of_plate(plate: Evidence, plan: Plan) -> list[Labelled]:
    """All defective tiles, all false rejects, and some good ones."""
    good = [tile for tile in plate.tiles if tile.basis == "good"]
    others = [tile for tile in plate.tiles if tile.basis != "good"]
    good.sort(key=lambda tile: _lot(plan.seed, plate, tile))
    return others + good[: max(0, plan.good_per_plate - len(others))]


def _balanced(
    tiles: Sequence[tuple[Evidence, Labelled]], plan: Plan, made: Collected
) -> list[tuple[Evidence, Labelled]]:
    """At most so many of each kind of defect, and as many good ones as defective ones (but not
    fewer than of one kind); false rejects first: they are what is not known yet."""
    kinds: dict[str, list[tuple[Evidence, Labelled]]] = {}
    for one in tiles:
        kinds.setdefault(one[1].kind if one[1].label else "good", []).append(one)
    good = kinds.pop("good", [])
    taken: list[tuple[Evidence, Labelled]] = []
    for kind, found in sorted(kinds.items()):
        found.sort(key=lambda one: _lot(plan.seed, *one))
        taken += found[: plan.per_kind]
        made.not_taken[f"train {kind}"] += max(0, len(found) - plan.per_kind)
    good.sort(key=lambda one: (one[1].basis != "false_reject", _lot(plan.seed, *one)))
    most = max(len(taken), plan.per_kind)
    made.not_taken["train good"] += max(0, len(good) - most)
    return taken + good[:most]


def _lot(seed: int, plate: Evidence, tile: Labelled) -> str:
    """A tile's place in a random order that later tiles do not change."""
    return hashlib.sha256(f"{seed} {plate.result_id} {tile.place}".encode()).hexdigest()


def _write(
    folder: Path,
    configuration: Configuration,
    reader: Reader,
    parts: Parts,
    chosen: Sequence[tuple[Evidence, list[Labelled]]],
    made: Collected,
) -> None:
    book = RecipeBook(configuration, reader)
    tested = _read_tested(configuration, reader, book, parts)
    tables = _Tables(folder)
    groups: dict[str, set[str]] = {"train": set(), "test": set()}
    try:
        for plate, wanted in chosen:
            split, group = parts.split(plate.keys), parts.group(plate.keys)
            rows = _rows_until(reader, plate.result_id, made.head_seq)
            try:
                cut = _cut(configuration, reader, book, rows[0], {tile.place for tile in wanted})
            except NotStored as why:
                made.left_out.append({"result_id": plate.result_id, "why": str(why)})
                continue
            said = _said(reader, rows)
            for tile in wanted:
                pixels, name = cut[tile.place], _name(plate.result_id, tile.place)
                if split == "train" and _is_known(pixels, tested, name, made):
                    continue
                groups[split].add(group)
                tables.add(pixels, name, split, group, tile, said)
                made.tiles[f"{split} {'defective' if tile.label else 'good'}"] += 1
                made.kinds[tile.kind] += tile.label and split == "train"
            made.plates += 1
    finally:
        tables.close()
    made.kinds = +made.kinds
    made.not_taken = +made.not_taken
    made.parts = Counter({split: len(found) for split, found in groups.items()})


@dataclass(frozen=True, slots=True)
class _Tested:
    """All tiles of all plates that test, and whose pictures are here."""

    names: list[str]
    hashes: NDArray[np.uint8]
    """uint8 (tiles, 32)."""


def _read_tested(
    configuration: Configuration, reader: Reader, book: RecipeBook, parts: Parts
) -> _Tested:
    """Whatever is collected now: another collect, and the audit, test on other plates and tiles."""
    names: list[str] = []
    hashes: list[Hash] = []
    for page in _pages(reader, _MAY_TEST):
        bodies = reader.bodies_at([line.seq for line in page])
        for line in page:
            result = bodies[line.seq]
            if parts.split(keys_of(result)) != "test":
                continue
            places = {(tile.x_px, tile.y_px) for tile in scored_tiles(result)}
            try:
                cut = _cut(configuration, reader, book, result, places) if places else {}
            except NotStored:
                continue  # nothing can be tested on it either
            names += [_name(line.result_id, place) for place in cut]
            hashes += [picture_hash(pixels) for pixels in cut.values()]
    return _Tested(names, np.array(hashes, np.uint8).reshape(len(hashes), -1))


def _name(result_id: str, place: Place) -> str:
    x, y = place
    return f"tiles/{result_id}_{x:05d}_{y:05d}.png"


def _cut(
    configuration: Configuration,
    reader: Reader,
    book: RecipeBook,
    result: Json,
    wanted: Collection[Place],
) -> dict[Place, Pixels]:
    picture = evidence_picture(reader, result)
    recipe = book.of(result["recipe_sha256"])
    pitch_mm = configuration.camera.pixel_pitch_mm
    return cut_stored(result, picture, recipe, pitch_mm, wanted)


def _is_known(pixels: Pixels, tested: _Tested, name: str, made: Collected) -> bool:
    """Whether a training tile looks like a test tile; it is then named, and not taken."""
    place, bits = nearest(picture_hash(pixels), tested.hashes)
    if bits > NEAR_BITS:
        return False
    made.near_duplicates.append({"file": name, "like": tested.names[place], "bits": bits})
    return True


def _said(reader: Reader, rows: Sequence[Json]) -> Json:
    """What each tile of a plate has in common in `provenance.csv`."""
    result, judged = rows[0], effective_verdict(rows)
    review = judged.review
    assert review is not None
    evidence = next(one for one in result["images"] if one["role"] == "evidence")
    return {
        "result_id": result["result_id"],
        "written_at": result["written_at"],
        "part_id": without_formula(result.get("part_id") or ""),
        "attempt": result.get("attempt") or "",
        "provenance": result["provenance"],
        "is_audit_sample": int(bool(result.get("is_audit_sample"))),
        "station_verdict": result["verdict"],
        "threshold": result["threshold"],
        "recipe": f"{result['recipe_id']}@{result['recipe_version']}",
        "recipe_sha256": result["recipe_sha256"],
        "model_id": result["model_id"],
        "model_sha256": result["model_sha256"],
        "record_row": result["seq"],
        "record_sha256": _row_sha256(reader, result["seq"]),
        "review_row": review["seq"],
        "review_verdict": str(judged.verdict),
        "reviewers": _people(judged),
        "reason": without_formula(review["reason"]),
        "review_sha256": _row_sha256(reader, review["seq"]),
        "picture_sha256": evidence["sha256"],
    }


def _people(judged: Judgement) -> str:
    return without_formula("; ".join(judged.reviewers))


def _row_sha256(reader: Reader, seq: int) -> str:
    """Of the row's text, as the chain has it."""
    return str(reader.stored(seq, 1)[0].body_sha256)


class _Tables:
    """`labels.csv`, `boxes.csv`, `provenance.csv` and the tiles."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        names = ("labels.csv", "boxes.csv", PROVENANCE)
        self._files = [(folder / name).open("w", newline="", encoding="utf-8") for name in names]
        self._labels, self._boxes, self._provenance = map(csv.writer, self._files)
        self._labels.writerow(_LABEL_COLUMNS)
        self._boxes.writerow(_BOX_COLUMNS)
        self._provenance.writerow(_PROVENANCE_COLUMNS)

    def add(
        self, pixels: Pixels, name: str, split: str, group: str, tile: Labelled, said: Json
    ) -> None:
        data = cv2.imencode(".png", pixels)[1].tobytes()
        (self._folder / name).write_bytes(data)
        self._labels.writerow([name, tile.label, split, group, tile.kind])
        self._boxes.writerows([name, kind, *box] for kind, box in tile.boxes)
        row = said | {
            "file": name,
            "split": split,
            "group": group,
            "label": tile.label,
            "basis": tile.basis,
            "kind": tile.kind,
            "is_named": int(tile.is_named),
            "tile_x_px": tile.place[0],
            "tile_y_px": tile.place[1],
            "tile_score": tile.score,
            "tile_sha256": hashlib.sha256(data).hexdigest(),
        }
        self._provenance.writerow([row[column] for column in _PROVENANCE_COLUMNS])

    def close(self) -> None:
        for file in self._files:
            file.close()


def _seal(folder: Path, plan: Plan, made: Collected) -> None:
    """Read the folder as a training will, and write down what it is."""
    made.data_sha256 = data_sha256(read_folder(folder))
    made.provenance_sha256 = hashlib.sha256((folder / PROVENANCE).read_bytes()).hexdigest()
    asked = {**asdict(plan), "out": str(plan.out)}
    report = json.dumps({"asked": asked, **made.as_json()}, indent=1).encode() + b"\n"
    (folder / REPORT).write_bytes(report)
    made.report_sha256 = hashlib.sha256(report).hexdigest()


def collected_change(station_id: str, who: str, plan: Plan, made: Collected) -> ChangeBody:
    """The row that says what was collected; counts and hashes, no pictures."""
    detail = {
        "folder": made.folder.name,
        "data_sha256": made.data_sha256,
        "provenance_sha256": made.provenance_sha256,
        "report_sha256": made.report_sha256,
        "since": plan.since or "",
        "until": plan.until or "",
        "seed": str(plan.seed),
        "per_kind": str(plan.per_kind),
        "test_share": repr(made.test_share),
        "near_bits": str(NEAR_BITS),
        "up_to_row": str(made.head_seq),
        "up_to_chain_sha256": made.head_chain_sha256,
        "plates": str(made.plates),
        "tiles": counted(made.tiles),
        "kinds": counted(made.kinds),
        "parts": counted(made.parts),
        "left_out": str(len(made.left_out)),
        "near_duplicates": str(len(made.near_duplicates)),
    }
    return ChangeBody(station_id=station_id, what=COLLECTED, who=who, detail=detail)


def counted(counts: Mapping[str, int]) -> str:
    """`train good 12, train defective 9`."""
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
