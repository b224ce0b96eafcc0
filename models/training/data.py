"""Labelled pictures in folders: `labels.csv`, or `good/` and `defective/`.

`labels.csv` has the columns `file,label,split` (label 0 good, 1 defective; split `train`, `val` or
`test`) and may have `group` (the part that a picture shows), `defect_type` and `mask_file`; beside
it may lie `boxes.csv` (`file,type,x0,y0,x1,y1` in px). Without labels.csv, pictures lie in `good/`
and `defective/`, and one in five of each goes to `test`, by the hash of its name. Pictures of any
size with 1-4 channels become grey 224 x 224: the whole picture is scaled, also where its sides then
shrink differently, because a defect at the edge must not be cut off.
"""

from __future__ import annotations

import csv
import hashlib
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
    for split in {sample.split for sample in samples} | {"train"}:
        _check_classes(root, split, select(samples, split))
    return samples


def select(samples: Iterable[Sample], *splits: str) -> list[Sample]:
    """The samples of one or more splits."""
    return [sample for sample in samples if sample.split in splits]


def labels_of(samples: Sequence[Sample]) -> NDArray[np.int64]:
    return np.array([sample.label for sample in samples], np.int64)


def load_tiles(samples: Sequence[Sample]) -> NDArray[np.uint8]:
    """The pictures as uint8 (n, 1, 224, 224). Raises `DataError` for one that cannot be read."""
    tiles = np.empty((len(samples), 1, TILE_PX, TILE_PX), np.uint8)
    for tile, sample in zip(tiles, samples, strict=True):
        tile[0] = load_tile(sample.file)
    return tiles


def load_truth(sample: Sample) -> NDArray[np.bool_] | None:
    """Where the defects are, bool (224, 224), from mask or boxes; None if neither is known.

    Raises `DataError`.
    """
    if sample.mask_file:
        return load_tile(sample.mask_file) > 127
    if not sample.boxes:
        return None
    height, width = _read(sample.file).shape[:2]
    truth = np.zeros((TILE_PX, TILE_PX), bool)
    for x0, y0, x1, y1 in sample.boxes:
        left, right = (round(x * TILE_PX / width) for x in (x0, x1))
        top, bottom = (round(y * TILE_PX / height) for y in (y0, y1))
        truth[top : max(bottom, top + 1), left : max(right, left + 1)] = True
    return truth


def load_tile(path: Path) -> NDArray[np.uint8]:
    """One picture, grey 224 x 224. Raises `DataError`."""
    return _fit(_grey(path, _read(path)))


def _read(path: Path) -> NDArray[np.generic]:
    data = np.frombuffer(path.read_bytes(), np.uint8)
    picture = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if len(data) else None
    if picture is None:
        raise DataError(f"{path}: not a picture that can be read; repair or remove it")
    return picture


def data_sha256(samples: Sequence[Sample]) -> str:
    """Of names, labels, splits, groups and the files' bytes."""
    digest = hashlib.sha256()
    for sample in samples:
        row = f"{sample.name}\t{sample.label}\t{sample.split}\t{sample.group}\t"
        digest.update(row.encode() + hashlib.sha256(sample.file.read_bytes()).digest())
    return digest.hexdigest()


def _from_table(table: Path) -> list[Sample]:
    with table.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        missing = {"file", "label", "split"} - set(reader.fieldnames or ())
        if missing:
            raise DataError(f"{table}: lacks the column {sorted(missing)[0]}")
        boxes = _read_boxes(table.with_name("boxes.csv"))
        samples = [_from_row(table, number, row, boxes) for number, row in enumerate(reader, 2)]
    _check_files(table, samples)
    return samples


def _from_row(table: Path, number: int, row: dict[str, str], boxes: dict[str, Boxes]) -> Sample:
    name, label, split = row["file"], row["label"], row["split"]
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
    with table.open(newline="", encoding="utf-8-sig") as file:
        for number, row in enumerate(csv.DictReader(file), 2):
            try:
                box = tuple(float(row[key]) for key in ("x0", "y0", "x1", "y1"))
                found[row["file"]] = (*found.get(row["file"], ()), box)
            except (KeyError, TypeError, ValueError) as error:
                raise DataError(f"{table}:{number}: columns file, x0, y0, x1, y1 wanted") from error
    return found


def _from_class_folders(root: Path) -> list[Sample]:
    samples = []
    for label, folder in enumerate(("good", "defective")):
        if not (root / folder).is_dir():
            raise DataError(f"{root}: neither labels.csv nor the folders good/ and defective/")
        for path in sorted((root / folder).iterdir()):
            if path.suffix.lower() in _SUFFIXES:
                name = f"{folder}/{path.name}"
                samples.append(Sample(path, name, label, _split_of(name), name))
    return samples


def _split_of(name: str) -> str:
    is_test = hashlib.sha256(name.encode()).digest()[0] % _TEST_SHARE == 0
    return "test" if is_test else "train"


def _check_files(table: Path, samples: Sequence[Sample]) -> None:
    files = [sample.file for sample in samples]
    files += [sample.mask_file for sample in samples if sample.mask_file]
    missing = [str(file.relative_to(table.parent)) for file in files if not file.is_file()]
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


def _check_classes(root: Path, split: str, samples: Sequence[Sample]) -> None:
    for label, word in enumerate(("good", "defective")):
        if not any(sample.label == label for sample in samples):
            raise DataError(f"{root}: the split {split} has no {word} pictures (label {label})")


def _grey(path: Path, picture: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Grey and 8 bits deep: colour by luminance, a transparency channel ignored."""
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
    if grey.shape == (TILE_PX, TILE_PX):
        return grey
    is_shrunk = min(grey.shape) > TILE_PX
    how = cv2.INTER_AREA if is_shrunk else cv2.INTER_LINEAR
    return cv2.resize(grey, (TILE_PX, TILE_PX), interpolation=how).astype(np.uint8)
