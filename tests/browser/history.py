"""Six weeks of plates in a log, as a station would have written them, before it runs again."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from test_qms import opened, result

from station.comparisons import COMPARED
from station.qms import Store
from station.record import ActuationBody, Body, ChangeBody, ReviewBody, Verdict, result_id, rfc3339

STATION = "test-1"
PLATES = 160
LAST_MONTH_SERIAL = "LGP-LASTMONTH-42"
COMPARISON_SHA256 = "c" * 64
_KINDS = ("scratch", "scratch", "scratch", "dots", "dots", "inclusion", "stain")


def write_history(directory: Path, seed: int = 7, recipe_id: str = "small") -> None:
    """Plates of the last 45 days, the newest yesterday; every seventh failed, and half of those
    were judged by a person. One of last month bears `LAST_MONTH_SERIAL`; a comparison of models
    waits for two signatures."""
    chance = random.Random(seed)
    store = Store(directory)
    store.append([row for n in range(1, PLATES + 1) for row in _plate(chance, n, recipe_id)])
    store.append([_comparison()])
    store.close()


def _comparison() -> ChangeBody:
    """Of another model with the one that judged: it passes two plates that failed."""
    flips = [result_id(STATION, number) for number in (PLATES // 7 * 7 - 7, PLATES // 7 * 7)]
    since = datetime.now(UTC) - timedelta(days=45)
    detail = {
        "report_sha256": COMPARISON_SHA256,
        "a_id": "m",
        "a_sha256": "a" * 64,
        "a_threshold": "0.5",
        "b_id": "candidate",
        "b_sha256": "b" * 64,
        "b_threshold": "0.5",
        "since": rfc3339(since),
        "until": rfc3339(since + timedelta(days=44)),
        "plates": str(PLATES),
        "flips": json.dumps({"FAIL -> PASS": len(flips)}),
        "to_sign": json.dumps(flips),
        "confirmed": "[]",
        "differing": "0",
        "sample_seed": "5" * 32,
    }
    return ChangeBody(station_id=STATION, what=COMPARED, who="eve", detail=detail)


def _plate(chance: random.Random, number: int, recipe_id: str) -> Iterator[Body]:
    at = datetime.now(UTC) - timedelta(days=1 + 44 * (1 - number / PLATES))
    said = {"station_id": STATION, "written_at": rfc3339(at)}
    name = result_id(STATION, number)
    verdict = Verdict.FAIL if number % 7 == 0 else Verdict.PASS
    yield opened(number, number).model_copy(update=said | {"result_id": name})
    more: dict[str, Any] = {"result_id": name, "recipe_id": recipe_id, "lot": f"L{number // 40}"}
    is_last_month = number == PLATES // 4
    more["part_id"] = LAST_MONTH_SERIAL if is_last_month else f"LGP-{number:05d}"
    if verdict is Verdict.FAIL:
        more |= {"score": 0.9, "defects": [_defect(chance)]}
    yield result(number, verdict, **said, **more)
    told = said | {"result_id": name, "commanded_ns": number, "shown_ns": number}
    yield ActuationBody(**told, command=verdict.lower(), is_confirmed=True)
    if verdict is Verdict.FAIL and number % 2 == 0:
        yield _review(chance, said, name)


def _defect(chance: random.Random) -> dict[str, Any]:
    x_mm, y_mm = chance.uniform(5, 50), chance.uniform(5, 30)
    corner = {"x_px": round(x_mm * 10), "y_px": round(y_mm * 10), "w_px": 40, "h_px": 30}
    return {**corner, "x_mm": x_mm, "y_mm": y_mm, "score": chance.uniform(0.6, 0.99)}


def _review(chance: random.Random, said: dict[str, Any], name: str) -> ReviewBody:
    return ReviewBody.model_validate(
        {
            **said,
            "result_id": name,
            "verdict": Verdict.FAIL,
            "reviewer": "ada",
            "reason": "confirmed",
            "defects": [{"number": 0, "kind": chance.choice(_KINDS)}],
            "disposition": "removed",
        }
    )
