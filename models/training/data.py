"""Labelled pictures in folders: `labels.csv`, or `good/` and `defective/`.

`labels.csv` has the columns `file,label,split` (label 0 good, 1 defective; split `train`, `val` or
`test`) and may have `group` (the part that a picture shows), `defect_type` and `mask_file`; beside
it may lie `boxes.csv` (`file,type,x0,y0,x1,y1` in px). Without labels.csv, pictures lie in `good/`
and `defective/`, and one in five of each goes to `test`, by the hashes of their names. Pictures of
any size with 1-4 channels become grey 224 x 224: the whole picture is scaled, also where its sides
then shrink differently, because a defect at the edge must not be cut off.
"""

from __future__ import annotations

import csv
import hashlib
import os
import posixpath
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

TILE_PX = 224
SPLITS = ("train", "val", "test")
_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"}
_TEST_SHARE = 5
_DARK_LEVEL = 4095
"""Pictures of 16 bits that nowhere exceed it have 12 bits, and would become nearly black."""
_GREATEST_CLASS = 127
"""A mask that nowhere exceeds it holds numbers of classes (or 1), not white."""


Boxes = tuple[tuple[float, ...], ...]


class DataError(Exception):
    """A data folder cannot be trained or evaluated on: names file, what is wrong, what is right."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One labelled picture."""

    file: Path
    name: str
    """Of the file, relative to the folder."""
    label: int
    """0 good, 1 defective."""
    split: str
    group: str
    """The part it shows; its own name where none is given."""
    defect_type: str = ""
    mask_file: Path | None = None
    """Picture of the same size, above 127 where the defect is."""
    boxes: Boxes = ()
    """Where the defects are: x0, y0, x1, y1 in px of the picture, from `boxes.csv`."""


def read_folder(root: Path) -> list[Sample]:
    """The samples of a folder, in order of their names. Raises `DataError`."""
    if not root.is_dir():
        raise DataError(f"{root}: no such folder")
    table = root / "labels.csv"
    samples = _from_table(table) if table.is_file() else _from_class_folders(root)
    samples.sort(key=lambda sample: sample.name)
    _check_groups(root, samples)
    return samples


def read_splits(root: Path, *splits: str) -> list[Sample]:
    """The samples of these splits, good and defective ones among them. Raises `DataError`."""
    samples = select(read_folder(root), *splits)
    for label, word in enumerate(("good", "defective")):
        if not any(sample.label == label for sample in samples):
            where = f"the split {' or '.join(splits)} has" if len(splits) < len(SPLITS) else "has"
            raise DataError(f"{root}: {where} no {word} pictures (label {label}); add some")
    return samples


def select(samples: Iterable[Sample], *splits: str) -> list[Sample]:
    """The samples of one or more splits."""
    return [sample for sample in samples if sample.split in splits]


def labels_of(samples: Sequence[Sample]) -> NDArray[np.int64]:
    return np.array([sample.label for sample in samples], np.int64)


def load_tiles(samples: Sequence[Sample]) -> NDArray[np.uint8]:
    """The pictures as uint8 (n, 1, 224, 224). Raises `DataError` for one that cannot be read, and
    if all those of 16 bits are so dark that they have fewer."""
    tiles = np.empty((len(samples), 1, TILE_PX, TILE_PX), np.uint8)
    brightest = 0
    for tile, sample in zip(tiles, samples, strict=True):
        picture = _read(sample.file)
        if picture.dtype == np.uint16:
            brightest = max(brightest, int(picture.max()))
        tile[0] = _fit(_grey(sample.file, picture))
    if 0 < brightest <= _DARK_LEVEL:
        raise DataError(
            f"{samples[0].file.parent}: levels up to {brightest} of 65535 in pictures of 16 bits; "
            "10 or 12 bits in them? multiply them so that white is 65535"
        )
    return tiles


def load_truth(sample: Sample) -> NDArray[np.bool_] | None:
    """Where the defects are, bool (224, 224), from mask or boxes; None if neither is known.

    Raises `DataError`.
    """
    if sample.mask_file:
        return _load_mask(sample.mask_file)
    if not sample.boxes:
        return None
    height, width = _read(sample.file).shape[:2]
    truth = np.zeros((TILE_PX, TILE_PX), bool)
    for x0, y0, x1, y1 in sample.boxes:
        left, right = _ends(x0 * TILE_PX / width, x1 * TILE_PX / width)
        top, bottom = _ends(y0 * TILE_PX / height, y1 * TILE_PX / height)
        truth[top:bottom, left:right] = True
    return truth


def _load_mask(path: Path) -> NDArray[np.bool_]:
    """A cell of the tile belongs to the defect if any pixel in it does: small ones stay."""
    levels = _grey(path, _read(path), is_mask=True)
    mask = levels > (0 if levels.max() <= _GREATEST_CLASS else 127)
    if not mask.any():
        raise DataError(f"{path}: a mask without a defect; write 255 where it is")
    height, width = mask.shape
    truth = np.zeros((TILE_PX, TILE_PX), bool)
    y, x = np.nonzero(mask)
    truth[y * TILE_PX // height, x * TILE_PX // width] = True
    shrunk = _fit(mask.astype(np.uint8) * 255) > 127
    return truth | shrunk


def _ends(start: float, end: float) -> tuple[int, int]:
    """First pixel and end of a box's side, at least one pixel inside the tile."""
    first = min(max(round(start), 0), TILE_PX - 1)
    return first, min(max(round(end), first + 1), TILE_PX)


def _read(path: Path) -> NDArray[np.generic]:
    data = np.frombuffer(path.read_bytes(), np.uint8)
    picture = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if len(data) else None
    if picture is None:
        raise DataError(f"{path}: not a picture that can be read; repair or remove it")
    has_transparency = picture.ndim == 3 and picture.shape[2] in (2, 4)
    return picture[:, :, :-1] if has_transparency else picture


def data_sha256(samples: Sequence[Sample]) -> str:
    """Of names, labels, splits, groups and the files' bytes."""
    digest = hashlib.sha256()
    for sample in samples:
        row = f"{sample.name}\t{sample.label}\t{sample.split}\t{sample.group}\t"
        digest.update(row.encode() + bytes.fromhex(picture_sha256(sample)))
    return digest.hexdigest()


def picture_sha256(sample: Sample) -> str:
    """Of the file's bytes."""
    return hashlib.sha256(sample.file.read_bytes()).hexdigest()


def _from_table(table: Path) -> list[Sample]:
    columns, rows = _read_table(table)
    missing = {"file", "label", "split"} - set(columns)
    if missing:
        raise DataError(f"{table}: lacks the column {sorted(missing)[0]}")
    boxes = _read_boxes(table.with_name("boxes.csv"))
    samples = [_from_row(table, number, row, boxes) for number, row in enumerate(rows, 2)]
    _check_files(table, samples)
    return samples


def _read_table(table: Path) -> tuple[Sequence[str], list[dict[str, str]]]:
    """Columns and rows. Raises `DataError`."""
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table}: not a table in UTF-8: {error}; save it as one") from error
    for number, row in enumerate(rows, 2):
        if None in row or None in row.values():
            wanted = len(reader.fieldnames or ())
            raise DataError(f"{table}:{number}: more or fewer cells than the {wanted} of line 1")
    return reader.fieldnames or (), rows


def _from_row(table: Path, number: int, row: dict[str, str], boxes: dict[str, Boxes]) -> Sample:
    name, label, split = posixpath.normpath(row["file"]), row["label"], row["split"]
    if label not in ("0", "1"):
        raise DataError(f"{table}:{number}: label {label!r}; 0 (good) or 1 (defective) wanted")
    if split not in SPLITS:
        raise DataError(f"{table}:{number}: split {split!r}; one of {', '.join(SPLITS)} wanted")
    mask = row.get("mask_file") or ""
    return Sample(
        file=table.parent / name,
        name=name,
        label=int(label),
        split=split,
        group=row.get("group") or name,
        defect_type=row.get("defect_type") or "",
        mask_file=table.parent / mask if mask else None,
        boxes=boxes.get(name, ()),
    )


def _read_boxes(table: Path) -> dict[str, Boxes]:
    """The boxes of each picture, by its name; none without the table."""
    found: dict[str, Boxes] = {}
    if not table.is_file():
        return found
    for number, row in enumerate(_read_table(table)[1], 2):
        try:
            box = tuple(float(row[key]) for key in ("x0", "y0", "x1", "y1"))
            name = posixpath.normpath(row["file"])
        except (KeyError, ValueError) as error:
            raise DataError(f"{table}:{number}: columns file, x0, y0, x1, y1 wanted") from error
        found[name] = (*found.get(name, ()), box)
    return found


def _from_class_folders(root: Path) -> list[Sample]:
    samples = []
    if not (root / "good").is_dir():
        raise DataError(f"{root}: neither labels.csv nor the folders good/ and defective/")
    for label, folder in enumerate(("good", "defective")):
        if not (root / folder).is_dir():
            continue  # good ones only: enough for `vqi model learn-good`, and for nothing else
        files = sorted(p for p in (root / folder).iterdir() if not p.name.startswith("."))
        names = [f"{folder}/{path.name}" for path in files]
        for name in names:
            if Path(name).suffix.lower() not in _SUFFIXES:
                known = " ".join(sorted(_SUFFIXES))
                raise DataError(f"{root / name}: not a picture by its name ({known}); remove it")
        tested = set(sorted(names, key=_name_sha256)[: -(-len(names) // _TEST_SHARE)])
        for name in names:
            split = "test" if name in tested else "train"
            samples.append(Sample(root / name, name, label, split, name))
    return samples


def _name_sha256(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def _check_files(table: Path, samples: Sequence[Sample]) -> None:
    files = [sample.file for sample in samples]
    files += [sample.mask_file for sample in samples if sample.mask_file]
    missing = [os.path.relpath(file, table.parent) for file in files if not file.is_file()]
    if missing:
        raise DataError(f"{table}: {len(missing)} labels without a file, first {missing[0]!r}")
    seen: set[str] = set()
    for sample in samples:
        if sample.name in seen:
            raise DataError(f"{table}: {sample.name!r} is listed twice")
        seen.add(sample.name)


def _check_groups(root: Path, samples: Sequence[Sample]) -> None:
    splits: dict[str, str] = {}
    for sample in samples:
        other = splits.setdefault(sample.group, sample.split)
        if other != sample.split:
            raise DataError(
                f"{root}: group {sample.group!r} is in the splits {other} and {sample.split}; "
                "a part belongs to one of them"
            )


def _grey(path: Path, picture: NDArray[np.generic], is_mask: bool = False) -> NDArray[np.uint8]:
    """Grey and 8 bits deep: colour by luminance."""
    if is_mask and picture.max() <= _GREATEST_CLASS:
        picture = picture.astype(np.uint8)
    if picture.dtype == np.uint16:
        picture = (picture.astype(np.uint32) // 257).astype(np.uint8)
    if picture.dtype != np.uint8:
        raise DataError(f"{path}: pixels are {picture.dtype}; 8 or 16 bits wanted")
    if picture.ndim == 2:
        return picture.astype(np.uint8)
    if picture.shape[2] < 3:
        return np.ascontiguousarray(picture[:, :, 0]).astype(np.uint8)
    grey = cv2.cvtColor(np.ascontiguousarray(picture[:, :, :3]), cv2.COLOR_BGR2GRAY)
    return grey.astype(np.uint8)


def _fit(grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Shrunk sides are averaged, so that no thin mark falls between two pixels; then the others
    grow."""
    height, width = (min(side, TILE_PX) for side in grey.shape)
    shrunk = cv2.resize(grey, (width, height), interpolation=cv2.INTER_AREA)
    whole = cv2.resize(shrunk, (TILE_PX, TILE_PX), interpolation=cv2.INTER_LINEAR)
    return whole.astype(np.uint8)
