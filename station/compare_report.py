"""The report of a comparison: JSON for machines, one HTML page that prints to PDF, and the row.

Failed and undecided plates are kept whole, passed ones by a draw made before their verdict; so
counts are given for each kind, and what they say of all plates of the time is an interval. The
paired test is made where the plates were not chosen by a verdict.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from scipy import stats

from station.compare import (
    PICTURES,
    REPORT_HTML,
    REPORT_JSON,
    Part,
    Plan,
    Replayed,
    by_risk,
    is_of_the_strip,
    row_lists,
    unplayed_counts,
)
from station.comparisons import COMPARED, MOST_FLIPS
from station.quality import number_in_lot, proportion
from station.record import ChangeBody, Verdict, score_text

_MOST_PICTURES = 300
"""Flips of which the page shows pictures; those to sign come first."""


class Share(Part):
    """A count of a sample with its exact 95 % interval (Clopper and Pearson)."""

    count: int
    of: int
    low: float
    high: float


class Stratum(Part):
    """Plates that were kept whole by one rule."""

    name: str
    kept_by: str
    plates: int
    """Of the time, by the log."""
    replayed: int
    to_pass: Share
    """Only the second model passes them, of those replayed."""
    from_pass: Share
    """Only the first model passes them."""
    to_pass_of_all: tuple[int, int] | None
    """Least and most of all `plates`, at 95 % (hypergeometric); None where those replayed are no
    random sample of them."""
    from_pass_of_all: tuple[int, int] | None


class PairedTest(Part):
    """McNemar's exact test: of the plates on which the two differ, as many each way?"""

    name: str
    says: str
    plates: int
    only_a: int
    only_b: int
    p_value: float | None
    """Two-sided, binomial; 1 where they never differ, None where no test is made."""


class Figures(Part):
    """What the plates come to."""

    results: int
    replayed: int
    flips: dict[str, int]
    to_sign: int
    confirmed: int
    """Of those to sign, the ones that a person judged to be defective."""
    agreement: dict[str, int]
    largest_difference: float | None
    """Of a tile's score from the record's, where the runtime is another."""
    unplayed: tuple[tuple[str, str, int], ...]
    """(recorded verdict, why, how many)."""
    strata: tuple[Stratum, ...]
    tests: tuple[PairedTest, ...]
    recipes: dict[str, int]
    """Plates replayed, by recipe version."""

    @property
    def differing(self) -> int:
        return self.agreement.get("differs", 0)


class Report(Part):
    """All of it."""

    plan: Plan
    figures: Figures
    flips: tuple[Replayed, ...]
    """In order of risk."""
    differing: tuple[str, ...]
    """Results whose replay is not what was recorded, although it should be."""
    pictures_sha256: dict[str, str]

    def as_bytes(self) -> bytes:
        return self.model_dump_json(indent=1).encode() + b"\n"

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.as_bytes()).hexdigest()


def build_report(plan: Plan, plates: Sequence[Replayed], folder: Path) -> Report:
    """Raises OSError where a picture of a flip is gone."""
    flips = by_risk(plates)
    names = [name for plate in flips for name in plate.pictures]
    pictures = {
        name: hashlib.sha256((folder / PICTURES / name).read_bytes()).hexdigest() for name in names
    }
    return Report(
        plan=plan,
        figures=figures(plates),
        flips=tuple(flips),
        differing=tuple(one.result_id for one in plates if one.agreement == "differs"),
        pictures_sha256=pictures,
    )


def figures(plates: Sequence[Replayed]) -> Figures:
    played = [plate for plate in plates if not plate.unplayed]
    flips = [plate for plate in by_risk(played) if plate.is_to_sign]
    differences = [p.largest_difference for p in played if p.largest_difference is not None]
    return Figures(
        results=len(plates),
        replayed=len(played),
        flips=dict(Counter(plate.flip for plate in by_risk(played))),
        to_sign=len(flips),
        confirmed=sum(plate.reviewed is Verdict.FAIL for plate in flips),
        agreement=dict(Counter(str(plate.agreement) for plate in played)),
        largest_difference=max(differences, default=None),
        unplayed=tuple(unplayed_counts(plates)),
        strata=tuple(_strata(plates)),
        tests=tuple(_tests(plates)),
        recipes=dict(sorted(Counter(plate.recipe for plate in played).items())),
    )


def _strata(plates: Sequence[Replayed]) -> list[Stratum]:
    """Passed plates by recipe too: each says what share is drawn."""
    found = []
    for verdict in (Verdict.FAIL, Verdict.UNDECIDED):
        # What no model decides is no part of what could be judged otherwise.
        some = [
            plate
            for plate in plates
            if plate.recorded.verdict is verdict and not is_of_the_strip(plate.recorded.reason)
        ]
        found.append(_stratum(str(verdict), "all are kept whole", some, some, is_random=True))
    passed = [plate for plate in plates if plate.recorded.verdict is Verdict.PASS]
    for sha256 in dict.fromkeys(plate.recipe_sha256 for plate in passed):
        some = [plate for plate in passed if plate.recipe_sha256 == sha256]
        drawn = [plate for plate in some if plate.is_drawn]
        name = f"PASS, {some[0].recipe}"
        found.append(_stratum(name, "drawn before the verdict", some, drawn, is_random=True))
        others = [plate for plate in some if not plate.is_drawn and not plate.unplayed]
        if others:
            text = "kept for another reason; they stand for no others"
            found.append(_stratum(name, text, others, others, is_random=False))
    return found


def _stratum(
    name: str,
    kept_by: str,
    plates: Sequence[Replayed],
    drawn: Sequence[Replayed],
    is_random: bool,
) -> Stratum:
    played = [plate for plate in drawn if not plate.unplayed]
    # What was removed by a rule was no random part of what was kept.
    is_random = is_random and len(played) == len(drawn)
    to_pass = sum(plate.is_to_sign for plate in played)
    from_pass = sum(plate.flip.startswith("PASS") for plate in played)
    lots = [
        number_in_lot(count, len(played), len(plates)) if is_random else None
        for count in (to_pass, from_pass)
    ]
    return Stratum(
        name=name,
        kept_by=kept_by,
        plates=len(plates),
        replayed=len(played),
        to_pass=_share(to_pass, len(played)),
        from_pass=_share(from_pass, len(played)),
        to_pass_of_all=lots[0],
        from_pass_of_all=lots[1],
    )


def _share(count: int, of: int) -> Share:
    interval = proportion(count, of).interval
    return Share(count=count, of=of, low=interval.low, high=interval.high)


def _tests(plates: Sequence[Replayed]) -> list[PairedTest]:
    played = [plate for plate in plates if not plate.unplayed]
    judged = [plate for plate in played if plate.reviewed in (Verdict.PASS, Verdict.FAIL)]
    return [
        _drawn_test(plates),
        _paired(
            "right, of plates that people judged",
            "people look at failed plates more often: whether one model agrees with them more",
            judged,
            _is_right,
        ),
        _paired(
            "passes, of all replayed plates",
            "failed plates are all here, passed ones by a draw: no fair test, for description only",
            played,
            _passes,
        ),
    ]


def _drawn_test(plates: Sequence[Replayed]) -> PairedTest:
    """No test where one of them is gone: passed plates' pictures are removed before failed ones',
    so that those left are no random sample."""
    drawn = [
        plate for plate in plates if plate.is_drawn and not is_of_the_strip(plate.recorded.reason)
    ]
    found = _paired(
        "passes, of plates drawn before their verdict",
        "a random sample of all plates: whether one model passes more than the other",
        [plate for plate in drawn if not plate.unplayed],
        _passes,
    )
    if found.plates == len(drawn):
        return found
    lost = f"{len(drawn) - found.plates} of {len(drawn)} could not be replayed"
    says = f"{lost}; the others are no random sample of all plates, and no test is made"
    return found.model_copy(update={"says": says, "p_value": None})


def _passes(plate: Replayed, verdict: Verdict) -> bool:
    return verdict is Verdict.PASS


def _is_right(plate: Replayed, verdict: Verdict) -> bool:
    return (verdict is Verdict.PASS) == (plate.reviewed is Verdict.PASS)


def _paired(
    name: str,
    says: str,
    plates: Sequence[Replayed],
    holds: Callable[[Replayed, Verdict], bool],
) -> PairedTest:
    only_a = only_b = 0
    for plate in plates:
        assert plate.a is not None
        assert plate.b is not None
        a, b = holds(plate, plate.a.verdict), holds(plate, plate.b.verdict)
        only_a += a and not b
        only_b += b and not a
    both = only_a + only_b
    p_value = float(stats.binomtest(only_a, both, 0.5).pvalue) if both else 1.0
    return PairedTest(
        name=name, says=says, plates=len(plates), only_a=only_a, only_b=only_b, p_value=p_value
    )


def html(report: Report, folder: Path) -> bytes:
    """The page, with its pictures inside it."""

    def data_uri(name: str) -> str:
        data = (folder / PICTURES / name).read_bytes()
        return f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"

    environment = Environment(
        loader=PackageLoader("station"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"data_uri": data_uri, "score": _score}
    page = environment.get_template("comparison.html").render(
        report=report, plan=report.plan, figures=report.figures, shown=_MOST_PICTURES
    )
    return page.encode()


def _score(score: float | str | None) -> str:
    return "–" if score is None else score_text(score)


def write_report(report: Report, folder: Path) -> bytes:
    """Write JSON and page; the page's bytes. Raises OSError."""
    page = html(report, folder)
    (folder / REPORT_JSON).write_bytes(report.as_bytes())
    (folder / REPORT_HTML).write_bytes(page)
    return page


def _by_product(versions: Mapping[str, int]) -> dict[str, int]:
    """Plates by the recipe's id, of whatever version."""
    found: Counter[str] = Counter()
    for name, plates in versions.items():
        found[name.rpartition("@")[0]] += plates
    return dict(found)


def compared_change(report: Report, page: bytes, who: str) -> ChangeBody:
    """The row that the log keeps. Raises ValueError where it would list more flips to sign than
    anybody looks at."""
    plan, found = report.plan, report.figures
    if found.to_sign > MOST_FLIPS:
        raise ValueError(
            f"{plan.b.id} passes {found.to_sign} plates that {plan.a.id} does not; {MOST_FLIPS} at "
            "most are signed: choose another threshold, or compare a shorter time"
        )
    to_sign, confirmed = row_lists(report.flips)
    sides = {"a": plan.a, "b": plan.b}
    detail = {
        "report_sha256": report.sha256,
        "page_sha256": hashlib.sha256(page).hexdigest(),
        **{f"{name}_id": model.id for name, model in sides.items()},
        **{f"{name}_sha256": model.sha256 for name, model in sides.items()},
        **{f"{name}_threshold": repr(model.threshold) for name, model in sides.items()},
        **{
            f"{name}_unsure_above": repr(model.unsure_above)
            for name, model in sides.items()
            if model.unsure_above is not None
        },
        "since": plan.since,
        "until": plan.until,
        "last_seq": str(plan.last_seq),
        "results": str(found.results),
        "plates": str(found.replayed),
        "recipes": json.dumps(_by_product(found.recipes)),
        "flips": json.dumps(found.flips),
        "to_sign": to_sign,
        "confirmed": confirmed,
        "differing": str(found.differing),
        "sample_seed": plan.sample_seed,
    }
    return ChangeBody(station_id=plan.station_id, what=COMPARED, who=who, detail=detail)
