"""The page's texts: complete in every language, used, and figures as each language writes them."""

from __future__ import annotations

import re
import string
from datetime import UTC, datetime, time, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from station import web
from station.config import ReviewRecipe, WebSettings
from station.record import Reason
from station.verdict import Verdict
from station.web.texts import (
    LANGUAGES,
    NOTHING,
    Formatter,
    Translator,
    accepted_languages,
    catalogue,
    chosen_language,
)

WEB = Path(web.__file__).parent
_LITERAL = re.compile(r"""["']([a-z][a-z0-9_]*(?:\.[a-z0-9_]+)+)(\.?)["']""")
_BEGINNING = re.compile(r"""["']([a-z][a-z0-9_]*\.[a-z0-9_.]*)["{]""")
_ASKED = re.compile(
    r"""\b(?:t|PageError|not_found|conflict|menu)\s*[(=]\s*(?:[0-9]{3},\s*)?"""
    r"""["']([a-z][a-z0-9_]*(?:\.[a-z0-9_]+)+)["'](?!\s*~)"""
)
"""A text asked for by its whole name; one that is put together ends before `~`."""
_CJK = re.compile("[\u4e00-\u9fff]")
PARTS = sorted(path.stem for path in (WEB / "texts").glob("*.toml"))


def sources() -> str:
    """All that may ask for a text."""
    kinds = ("*.py", "*.html", "*.js")
    files = [path for kind in kinds for path in WEB.rglob(kind) if "vendor" not in path.parts]
    return "\n".join(path.read_text() for path in sorted(files))


def fields(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}


def test_each_text_is_there_in_every_language_with_the_same_fields() -> None:
    assert tuple(LANGUAGES) == WebSettings().languages
    for key, texts in catalogue().items():
        assert set(texts) == set(LANGUAGES), key
        assert all(text.strip() == text and text for text in texts.values()), key
        assert len({frozenset(fields(text)) for text in texts.values()}) == 1, key
        assert _CJK.search(texts["zh"]) or texts["zh"] == texts["en"], f"{key}: not translated"


def test_no_text_is_asked_for_that_there_is_not() -> None:
    asked = set(_ASKED.findall(sources()))
    assert asked > {"errors.role", "base.skip", "common.api"}
    assert not asked - catalogue().keys()


def test_no_text_is_there_that_nobody_asks_for() -> None:
    text = sources()
    named = {key for key, _ in _LITERAL.findall(text)}
    beginnings = tuple(one for one in _BEGINNING.findall(text) if one.partition(".")[0] in PARTS)
    beginnings = tuple(one for one in beginnings if one[-1] in "._")
    unused = {key for key in catalogue() if key not in named and not key.startswith(beginnings)}
    assert not unused


def test_names_that_come_with_the_station_are_translated_and_a_plants_own_are_not() -> None:
    shipped, german = ReviewRecipe(), Translator("de")
    for name in (
        *shipped.reasons.values(),
        *shipped.kinds,
        *(verdict.value for verdict in Verdict),
    ):
        assert german.word(name) not in {name, ""}
    assert german.word("scratch") == "Kratzer"
    assert Translator("en").word("as it was judged") == "as it was judged"
    assert german.word("Kantenausbruch, Linie 4") == "Kantenausbruch, Linie 4"
    assert german.word("") == ""


def test_every_reason_of_the_log_is_translated_and_a_later_releases_is_shown_as_it_is() -> None:
    for language in LANGUAGES:
        texts = Translator(language)
        assert all(texts.has(f"plate.reason.{re.sub('[ -]', '_', one)}") for one in Reason)
        assert texts.reason("not separated") == texts("plate.reason.not_separated")
        assert texts.reason("out-of-lane") == texts("plate.reason.out_of_lane")
        assert texts.reason("of tomorrow") == "of tomorrow"


@pytest.mark.parametrize(
    ("header", "wanted"),
    [
        ("de-AT,de;q=0.9,en;q=0.8", "de"),
        ("fr, zh-TW;q=0.7, en;q=0.3", "zh"),
        ("en;q=0.1, de;q=0.9", "de"),
        ("de;q=0, en", "en"),
        ("fr", "en"),
        ("", "en"),
        ("*;q=x;;,,", "en"),
    ],
)
def test_the_browsers_wish_is_followed(header: str, wanted: str) -> None:
    assert chosen_language(accepted_languages(header), ("en", "de", "zh")) == wanted


@given(st.text(max_size=2000))
def test_any_wish_comes_to_a_language_that_is_offered(header: str) -> None:
    assert chosen_language(accepted_languages(header), ("zh", "en")) in ("zh", "en")


AT = datetime(2026, 3, 9, 13, 2, 7, tzinfo=UTC)


@pytest.mark.parametrize(
    ("language", "number", "percent", "date", "duration"),
    [
        ("en", "12,345.68", "2.5%", "9 Mar 2026", "2\xa0h 5\xa0min"),
        ("de", "12.345,68", "2,5\xa0%", "09.03.2026", "2\xa0h 5\xa0min"),
        ("zh", "12,345.68", "2.5%", "2026年3月9日", "2\xa0小时 5\xa0分"),
    ],
)
def test_figures_are_written_as_each_language_does(
    language: str, number: str, percent: str, date: str, duration: str
) -> None:
    fmt = Formatter(language, ZoneInfo("Europe/Berlin"))
    assert fmt.number(12345.678, 2) == number
    assert fmt.percent(0.025) == percent
    assert fmt.date(AT) == fmt.date("2026-03-09T13:02:07.000000Z") == date
    assert fmt.time(AT.timestamp()) == "14:02:07", "in the station's zone"
    assert fmt.moment(AT) == f"{date} 14:02:07"
    assert fmt.duration(7500.4) == duration
    assert fmt.mm(1.25, 2) == f"{fmt.number(1.25, 2)}\xa0mm"


def test_a_time_that_is_not_todays_has_its_day() -> None:
    for zone in (ZoneInfo("Pacific/Kiritimati"), ZoneInfo("Pacific/Niue")):
        fmt = Formatter("en", zone)
        begun = datetime.combine(fmt.today, time(), zone)
        for at in (begun - timedelta(seconds=1), begun - timedelta(days=3), AT):
            assert fmt.when(at) == fmt.moment(at)
        for at in (begun, begun + timedelta(hours=14)):
            assert fmt.when(at.timestamp()) == fmt.time(at)
    assert fmt.when(None) == NOTHING


def test_what_is_not_known_is_no_figure() -> None:
    fmt = Formatter("en", ZoneInfo("UTC"))
    for none in (None, float("nan"), float("inf")):
        assert {fmt.number(none), fmt.mm(none), fmt.percent(none), fmt.duration(none)} == {NOTHING}
    assert {fmt.time(None), fmt.date(None), fmt.moment(None)} == {NOTHING}
    assert (fmt.duration(0), fmt.duration(9.96), fmt.duration(59.7)) == (
        "0.0\xa0s",
        "10\xa0s",
        "1\xa0min",
    )


@given(st.floats(0, 1e9))
def test_a_duration_says_no_more_than_two_units(seconds: float) -> None:
    assert 1 <= len(Formatter("en", ZoneInfo("UTC")).duration(seconds).split(" ")) <= 2


def test_a_text_is_filled_in() -> None:
    assert Translator("de")("base.station", name="line-1") == "Station line-1"
