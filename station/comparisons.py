"""What the log says of comparisons of two models: which plates only the second would pass, and who
signed each.

A comparison (`station/compare.py`) replays stored plates through both models. Its row names them by
sha256, their thresholds, the report, and every plate that only the second would pass. A person
looks at each of those, or at a random sample that the row's own seed draws, and signs that the
plate may pass, or says that it is an escape. Pure: rows in, a register out; the journal process
refuses a row that may not follow.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from station.ingress import name_problem, words_problem
from station.recipes import is_one_person
from station.record import ChangeBody

COMPARED = "model_compared"
SIGNED = "model_flip_signed"
"""Names of the change rows."""
CHANGES = (COMPARED, SIGNED)
MOST_FLIPS = 1000
"""Flips to sign that a row lists; nobody looks at more, and such a candidate is none."""
LEAST_SAMPLE = 59
"""No escape among so many drawn at random says with 95 % confidence that fewer than one flip in
twenty is one (0.95 ** 59 < 0.05)."""
_SHA256 = re.compile("[0-9a-f]{64}")
_SEED = re.compile("[0-9a-f]{32}")

Row = Mapping[str, Any]
Opinion = Literal["accepted", "escape"]


class ComparisonError(ValueError):
    """It cannot be done; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two models, and the threshold that it judged with."""

    id: str
    sha256: str
    threshold: float
    unsure_above: float | None = None


@dataclass(frozen=True, slots=True)
class Opinions:
    """A person looked at flips: one, or a sample of `sample`."""

    result_ids: tuple[str, ...]
    opinion: Opinion
    who: str
    at: str
    reason: str
    sample: int = 0
    account: str = ""
    seen: str | None = None
    """When that was said of the flip which this person was shown, empty for nothing; None where a
    program did not tell."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """What the log says of one comparison."""

    sha256: str
    """Of its report."""
    before: Side
    after: Side
    since: str
    until: str
    plates: int
    """That were replayed through both."""
    recipes: Mapping[str, int]
    """Of them, by the recipe's id; empty in rows of before it was said."""
    flips: Mapping[str, int]
    """Counts, as `FAIL -> PASS`."""
    to_sign: tuple[str, ...]
    """Results that only `after` passes, in order of risk."""
    confirmed: frozenset[str]
    """Of them, those that a person judged to be defective: signed one by one, never by a sample."""
    sample_seed: str
    differing: int
    """Plates whose replay is not what was recorded, although it should be, bit for bit."""
    who: str
    at: str
    opinions: tuple[Opinions, ...] = ()

    @property
    def by_result(self) -> dict[str, Opinions]:
        """What was said last of each flip that anybody looked at."""
        return {name: one for one in self.opinions for name in one.result_ids}

    @property
    def unsigned(self) -> tuple[str, ...]:
        """Flips that nobody looked at, in order of risk."""
        known = self.by_result
        return tuple(name for name in self.to_sign if name not in known)

    @property
    def escapes(self) -> tuple[str, ...]:
        """Flips that a person calls escapes: `after` passes a defective plate."""
        known = self.by_result
        return tuple(
            name for name in self.to_sign if name in known and known[name].opinion == "escape"
        )

    @property
    def sampled(self) -> int:
        """Size of the largest sample that was looked at."""
        return max((one.sample for one in self.opinions), default=0)

    def sample(self, count: int) -> tuple[str, ...]:
        """The first `count` of the flips that may be signed by a sample, in the order that the
        row's seed draws. Raises `ComparisonError` if there are fewer."""
        drawable = [name for name in self.to_sign if name not in self.confirmed]
        if not 1 <= count <= len(drawable):
            raise ComparisonError(
                f"a sample of {count}: {len(drawable)} flips may be signed by a sample"
            )
        return drawn(self.sample_seed, drawable, count)

    @property
    def to_be_seen(self) -> tuple[str, ...]:
        """Flips that no sample stands for, in order of risk: those that a person judged to be
        defective, and of the others all, or the sample that is large enough."""
        drawable = [name for name in self.to_sign if name not in self.confirmed]
        sample = drawn(self.sample_seed, drawable, LEAST_SAMPLE)
        return tuple(name for name in self.to_sign if name in self.confirmed or name in sample)

    @property
    def missing(self) -> tuple[str, ...]:
        """Why nothing may rest on it yet; empty if it is complete."""
        found = []
        if self.differing:
            found.append(
                f"{self.differing} plates did not come out as they were recorded: find out why, "
                "then compare again"
            )
        if not self.plates:
            found.append("no plate could be replayed")
        if escapes := self.escapes:
            found.append(
                f"{_some(escapes)}: called an escape; the candidate passes what it must not"
            )
        if unsigned := self._unsigned_and_uncovered():
            found.append(f"not signed yet: {_some(unsigned)}")
        return tuple(found)

    @property
    def is_complete(self) -> bool:
        """Every flip to PASS is signed, one by one or by a sample that is large enough."""
        return not self.missing

    def _unsigned_and_uncovered(self) -> tuple[str, ...]:
        drawable = len(self.to_sign) - len(self.confirmed)
        is_covered = self.sampled >= min(LEAST_SAMPLE, drawable)
        return tuple(name for name in self.unsigned if name in self.confirmed or not is_covered)


def drawn(seed: str, names: Sequence[str], count: int) -> tuple[str, ...]:
    """The first `count` of `names` in the order of SHA-256(seed, name): anybody draws the same, and
    a larger sample holds the smaller."""
    return tuple(
        sorted(names, key=lambda n: hashlib.sha256(f"{seed} {n}".encode()).digest())[:count]
    )


@dataclass(frozen=True, slots=True)
class Comparisons:
    """What rows of comparisons come to."""

    known: dict[str, Comparison] = field(default_factory=dict)
    """By the report's sha256, in order."""
    strange: tuple[str, ...] = ()
    """Rows that no journal process takes."""

    def of(self, sha256: str) -> Comparison:
        """By the report's sha256, or its first 8 digits or more. Raises `ComparisonError`."""
        found = [one for name, one in self.known.items() if name.startswith(sha256)]
        if len(sha256) < 8 or len(found) != 1:
            names = ", ".join(name[:12] for name in self.known) or "none"
            raise ComparisonError(f"{sha256}: no such comparison; there are: {names}")
        return found[0]


def register(rows: Iterable[Row]) -> Comparisons:
    """Fold change rows, in their order; one that breaks a rule counts for nothing."""
    found = Comparisons()
    for row in rows:
        found = _after(found, row)
    return found


def objection(known: Comparisons, row: Row) -> str:
    """Why this change row may not follow; empty if it may, or is none of comparisons."""
    if row["what"] not in CHANGES:
        return ""
    if problem := name_problem("person", row["who"]):
        return problem
    try:
        if row["what"] == COMPARED:
            return _no_comparison(known, _comparison(row))
        return _no_signature(known, row["detail"]["comparison"], _opinions(row))
    except ComparisonError as error:
        return str(error)
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        return f"a {row['what']} row without what it must say: {error!r}"[:300]


def _after(before: Comparisons, row: Row) -> Comparisons:
    problem = objection(before, row)
    if problem:
        return replace(before, strange=(*before.strange, problem))
    if row["what"] == COMPARED:
        one = _comparison(row)
        # Sent again, it is one row: what was signed since stays.
        one = before.known.get(one.sha256, one)
        return replace(before, known={**before.known, one.sha256: one})
    if row["what"] != SIGNED:
        return before
    one = before.of(row["detail"]["comparison"])
    one = replace(one, opinions=(*one.opinions, _opinions(row)))
    return replace(before, known={**before.known, one.sha256: one})


def _comparison(row: Row) -> Comparison:
    detail = row["detail"]
    return Comparison(
        sha256=_matched(_SHA256, detail["report_sha256"]),
        before=_side(detail, "a"),
        after=_side(detail, "b"),
        since=detail["since"],
        until=detail["until"],
        plates=int(detail["plates"]),
        recipes=_counts(detail.get("recipes", "{}")),
        flips=_counts(detail["flips"]),
        to_sign=_names(detail["to_sign"]),
        confirmed=frozenset(_names(detail["confirmed"])),
        sample_seed=_matched(_SEED, detail["sample_seed"]),
        differing=int(detail["differing"]),
        who=row["who"],
        at=row["written_at"],
    )


def _opinions(row: Row) -> Opinions:
    detail = row["detail"]
    opinion = detail["opinion"]
    if opinion not in ("accepted", "escape"):
        raise ComparisonError(f"{opinion!r:.40}: a flip is accepted, or an escape")
    return Opinions(
        result_ids=_names(detail["result_ids"]),
        opinion=opinion,
        who=row["who"],
        at=row["written_at"],
        reason=detail["reason"],
        sample=int(detail.get("sample", "0")),
        account=row.get("account", ""),
        seen=detail.get("seen"),
    )


def _side(detail: Row, name: str) -> Side:
    sha256 = _matched(_SHA256, detail[f"{name}_sha256"])
    threshold, unsure = _limit(detail, f"{name}_threshold"), f"{name}_unsure_above"
    is_sure = detail.get(unsure) is None
    return Side(
        detail[f"{name}_id"], sha256, threshold, None if is_sure else _limit(detail, unsure)
    )


def _limit(detail: Row, name: str) -> float:
    limit = float(detail[name])
    if not (math.isfinite(limit) and 0 <= limit <= 1):
        raise ComparisonError(f"{name} {limit}: not in [0, 1]")
    return limit


def _counts(text: str) -> dict[str, int]:
    return {str(name): int(count) for name, count in json.loads(text).items()}


def _matched(pattern: re.Pattern[str], text: str) -> str:
    if not pattern.fullmatch(text):
        raise ComparisonError(f"{text!r:.80} is not {pattern.pattern}")
    return text


def _names(text: str) -> tuple[str, ...]:
    names = json.loads(text)
    if not isinstance(names, list) or not all(isinstance(one, str) for one in names):
        raise ComparisonError("results are a list of their ids")
    if len(set(names)) < len(names) or len(names) > MOST_FLIPS:
        raise ComparisonError(f"results are named once each, {MOST_FLIPS} at most")
    return tuple(names)


def _no_comparison(known: Comparisons, new: Comparison) -> str:
    there = known.known.get(new.sha256)
    if there is not None and replace(there, opinions=(), at=new.at, who=new.who) != new:
        return f"{new.sha256[:12]}: there is a comparison with this report already"
    if not new.confirmed <= set(new.to_sign):
        return "what a person judged defective is among the flips to sign"
    return ""


def _no_signature(known: Comparisons, sha256: str, said: Opinions) -> str:
    one = known.known.get(sha256)
    if one is None:
        return f"{sha256[:12]}: no such comparison"
    problem = words_problem("reason", said.reason)
    if problem or not said.reason:
        return problem or "a signature says why"
    if strangers := [name for name in said.result_ids if name not in one.to_sign]:
        return f"{strangers[0]}: not among the flips to sign of {sha256[:12]}"
    if said.sample:
        return _no_sample(one, said)
    if len(said.result_ids) != 1:
        return "one flip at a time, or a sample"
    before = one.by_result.get(said.result_ids[0])
    stands = before.at if before is not None else ""
    if before is not None and said.seen not in (None, stands):
        return (
            f"{before.who} said meanwhile of {said.result_ids[0]}: {before.opinion}; look at "
            "it, and why, before you sign"
        )
    is_withdrawn = before is not None and (before.opinion, said.opinion) == ("escape", "accepted")
    if before is not None and is_withdrawn and is_one_person(before.who, said.who):
        return f"{before.who} called {said.result_ids[0]} an escape; another person may accept it"
    return ""


def _no_sample(one: Comparison, said: Opinions) -> str:
    if said.opinion != "accepted":
        return "a sample is accepted as a whole; an escape is said of its plate"
    if said.result_ids != one.sample(said.sample):
        return f"not the {said.sample} flips that the comparison's seed draws"
    escapes = [name for name in said.result_ids if name in one.escapes]
    return f"{escapes[0]} of the sample was called an escape" if escapes else ""


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more


def signed_change(
    station_id: str,
    comparison: Comparison,
    result_ids: Sequence[str],
    opinion: Opinion,
    who: str,
    reason: str,
    sample: int = 0,
    seen: str | None = None,
) -> ChangeBody:
    """The row with which a person signs flips. `seen`: see `Opinions`."""
    detail = {
        "comparison": comparison.sha256,
        "result_ids": json.dumps(list(result_ids)),
        "opinion": opinion,
        "reason": reason,
        **({"sample": str(sample)} if sample else {}),
        **({"seen": seen} if seen is not None else {}),
    }
    return ChangeBody(station_id=station_id, what=SIGNED, who=who, detail=detail)
