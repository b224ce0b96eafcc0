"""The relabelling list: a table, a JSON file and a sheet of pictures that stands alone."""

from __future__ import annotations

import base64
import csv
import html
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from models.training.data import Sample, labels_of
from models.training.suspects import Ranking, Voter

CSV_FILE, JSON_FILE, HTML_FILE = "suspects.csv", "suspects.json", "suspects.html"
_WORDS = ("good", "defective")
_PROVENANCE = ("result_id", "reviewers", "reason", "review_row", "basis")
"""Columns of a `provenance.csv` beside the labels that help who looks again."""
_JPEG_QUALITY = 85


@dataclass(frozen=True, slots=True)
class Listed:
    """What is reported."""

    samples: Sequence[Sample]
    voters: Sequence[Voter]
    ranking: Ranking
    first: int
    """So many are worth a look: the sheet's pictures."""

    def rows(self) -> list[dict[str, Any]]:
        """All tiles, the most suspicious first."""
        provenance = _provenance(self.samples)
        labels = labels_of(self.samples)
        found = []
        for place, index in enumerate(self.ranking.order.tolist(), 1):
            sample = self.samples[index]
            told = provenance.get(sample.name, {})
            found.append(
                {
                    "rank": place,
                    "file": sample.name,
                    "label": int(labels[index]),
                    "defect_type": sample.defect_type,
                    "group": sample.group,
                    "split": sample.split,
                    "suspicion": round(float(self.ranking.suspicion[index]), 4),
                    "disagreeing": int(self.ranking.disagreeing[index]),
                    **{v.name: _probability(v.probability[index]) for v in self.voters},
                    **({key: told.get(key, "") for key in _PROVENANCE} if provenance else {}),
                }
            )
        return found

    def summary(self) -> dict[str, Any]:
        return {
            "samples": len(self.samples),
            "first": self.first,
            "estimated_wrong": self.ranking.estimated_wrong,
            "voters": [{"name": v.name, "auroc": round(v.auroc, 4)} for v in self.voters],
        }


def write_report(
    folder: Path, title: str, listed: Listed, tiles: NDArray[np.uint8], made_by: dict[str, Any]
) -> None:
    """Write the three files; `tiles` uint8 (n, 1, 224, 224) are those of the samples. Raises
    OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = listed.rows()
    with (folder / CSV_FILE).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    told = {**made_by, **listed.summary(), "list": rows[: listed.first]}
    (folder / JSON_FILE).write_text(json.dumps(told, indent=1) + "\n")
    (folder / HTML_FILE).write_text(_page(title, listed, rows, tiles), encoding="utf-8")


def _probability(value: float) -> float | str:
    return round(float(value), 4) if np.isfinite(value) else ""


def _provenance(samples: Sequence[Sample]) -> dict[str, dict[str, str]]:
    """By file, where the folder says where its tiles come from."""
    name = samples[0].name
    root = samples[0].file.parents[len(Path(name).parts) - 1]
    path = root / "provenance.csv"
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        return {row["file"]: row for row in csv.DictReader(file)}


def _page(
    title: str, listed: Listed, rows: Sequence[dict[str, Any]], tiles: NDArray[np.uint8]
) -> str:
    order = listed.ranking.order[: listed.first].tolist()
    cards = [
        _card(row, listed.voters, tiles[i, 0])
        for row, i in zip(rows[: listed.first], order, strict=True)
    ]
    voters = ", ".join(f"{v.name} {v.auroc:.3f}" for v in listed.voters)
    return _HEAD.format(
        title=html.escape(title),
        said=html.escape(
            f"{listed.first} of {len(listed.samples)} labels to look at again, the most suspicious "
            f"first. About {listed.ranking.estimated_wrong} may be wrong. AUROC out of fold: "
            f"{voters}."
        ),
        cards="\n".join(cards),
    )


def _card(row: dict[str, Any], voters: Sequence[Voter], tile: NDArray[np.uint8]) -> str:
    data = cv2.imencode(".jpg", tile, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])[1].tobytes()
    picture = base64.b64encode(data).decode()
    label = _WORDS[row["label"]] + (f" ({row['defect_type']})" if row["defect_type"] else "")
    votes = " · ".join(f"{v.name} {row[v.name]}" for v in voters)
    said = " · ".join(f"{row[key]}" for key in _PROVENANCE if row.get(key))
    lines = (f"{row['rank']}. labelled {label}", f"{row['suspicion']:.0%} otherwise", said, votes)
    text = "".join(f"<p>{html.escape(line)}</p>" for line in lines if line)
    name = html.escape(row["file"])
    return (
        f'<li><img width="224" height="224" alt="{name}" '
        f'src="data:image/jpeg;base64,{picture}"><p><code>{name}</code></p>{text}</li>'
    )


_HEAD = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 14px/1.4 sans-serif; margin: 1.5rem; }}
ul {{ list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: 1rem; }}
li {{ width: 224px; overflow-wrap: anywhere; }} p {{ margin: .2rem 0; }}
</style>
<h1>{title}</h1><p>{said}</p>
<ul>
{cards}
</ul></html>
"""
