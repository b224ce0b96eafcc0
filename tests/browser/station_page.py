"""A whole simulated station with its page and its people, for a browser."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from history import COMPARISON_SHA256, STATION, write_history
from people_rig import PEOPLE, add_people, come_for_the_first_time
from ports import free_port
from station_rig import Rig, vqi, wait_until

from station.config import load_configuration
from station.log_reader import Filter, Reader
from station.signed_note import PUBLIC_KEY, make_key
from station.web.app import create_app
from station.web.pages import Declared
from station.web.server import make_web

_BELT = {"line_rate_hz": 1000.0}
"""A plate in 0.8 s: a browser beside it has its share of the processor."""
_SPECIMEN = {"defective_share": 0.5}
_TABLES = """
[journal.shifts]
timezone = "Europe/Berlin"
early = "06:00"
late = "14:00"
night = "22:00"

[proof]
key_file = "{folder}/log-key.pem"

[web]
port = {port}
"""


@dataclass
class StationPage:
    """What runs, and where."""

    rig: Rig
    url: str
    """Without a slash at its end."""
    run: subprocess.Popen[str]

    @property
    def config(self) -> Path:
        return self.rig.folder / "station.toml"

    def newest(self, verdict: str) -> str:
        """The id of the newest plate with this verdict; waits for one."""
        found: list[str] = []

        def is_there() -> bool:
            found[:] = self._ids(verdict)
            return bool(found)

        wait_until(is_there, 60.0, f"plate with {verdict}")
        return found[0]

    def _ids(self, verdict: str) -> list[str]:
        """Of plates with pictures: of this run, not of what was before it."""
        with Reader(self.rig.journal) as reader:
            rows = reader.results(Filter(verdict=verdict), newest_first=True, limit=1)
            return [row["result_id"] for row in rows if row["images"]]

    def newest_row(self) -> dict[str, Any] | None:
        """The newest result."""
        with Reader(self.rig.journal) as reader:
            return next(reader.results(Filter(), newest_first=True, limit=1), None)

    def changes(self, what: str) -> list[dict[str, Any]]:
        """Changes of one kind, in their order."""
        return [row for row in self.rig.rows("change") if row["what"] == what]

    def routes(self) -> list[Declared]:
        """Every route of the page, as it is declared."""
        web = make_web(load_configuration(str(self.config)))
        create_app(web)
        return list(web.routes)


def small_rig(folder: Path) -> Rig:
    """Plates of 60 x 40 mm, slowly; a calling lamp calls until somebody comes."""
    return Rig(
        folder,
        camera=_BELT,
        specimen=_SPECIMEN,
        fail_hold_s=None,
        station={"id": STATION},
        recipe_lines="[keep]\npass_whole_share = 0.5\n",
        tables=_TABLES.format(folder=folder, port=free_port()),
    )


@contextmanager
def station_page(
    folder: Path, people: Sequence[str] = tuple(PEOPLE), has_history: bool = True
) -> Iterator[StationPage]:
    """`vqi run --web`, with its people, after six weeks of work."""
    rig = small_rig(folder)
    config = rig.write()
    rig.journal.mkdir(parents=True)
    make_key(folder / "log-key.pem", rig.journal / PUBLIC_KEY)
    if has_history:
        write_history(rig.journal)
    with running(config) as run:
        add_people(config, people)
        url = _said_address(run)
        wait_until(lambda: not _is_stale(url), 60.0, "page that hears the station")
        come_for_the_first_time(url, people)
        if has_history:
            assert vqi("log", "checkpoint", "--config", str(config)).returncode == 0
        yield StationPage(rig, url, run)


@contextmanager
def running(config: Path) -> Iterator[subprocess.Popen[str]]:
    """`vqi run --web --json`."""
    command = [sys.executable, "-P", "-m", "station.cli", "run", "--web", "--json"]
    process = subprocess.Popen(
        [*command, "--config", str(config)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        yield process
    finally:
        process.terminate()
        process.wait(60.0)
        process.stdout.close()


def _said_address(process: subprocess.Popen[str]) -> str:
    """Of the first line that says it; plates may have passed by then. What follows is read and
    dropped."""
    assert process.stdout is not None
    for line in process.stdout:
        if "web" in (event := json.loads(line)):
            threading.Thread(target=_drop, args=(process.stdout,), daemon=True).start()
            return str(event["web"]).rstrip("/")
    raise AssertionError(f"vqi run ended with {process.wait(30.0)}")


def _drop(lines: Iterable[str]) -> None:
    with contextlib.suppress(ValueError):  # closed meanwhile
        for _ in lines:
            pass


def _is_stale(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health").status_code != 200
    except httpx.TransportError:
        return True


@contextmanager
def web_process(
    config: Path, environment: dict[str, str] | None = None
) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """`vqi web --json`, listening; its address and its process."""
    command = [sys.executable, "-P", "-m", "station.cli", "web", "--config", str(config), "--json"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | (environment or {})
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line, f"vqi web ended with {process.wait(30.0)}"
        yield json.loads(line)["url"].rstrip("/"), process
    finally:
        process.terminate()
        process.wait(30.0)
        process.stdout.close()


_PARAMETER = re.compile(r"\{(\w+)(:\w+)?\}")


def page_paths(shown: StationPage) -> list[str]:
    """One address of every page that there is, with parameters that name something."""
    return filled_paths(shown.routes(), shown.newest("FAIL"), "small@1")


def filled_paths(routes: Sequence[Declared], plate: str, recipe: str) -> list[str]:
    """The same of a log that has this plate and `write_history`'s comparison. Raises KeyError for a
    parameter of which nobody said what it names."""
    good = {"result_id": plate, "name": recipe, "sha256": COMPARISON_SHA256}
    pages = [one for one in routes if one.kind == "page" and not one.is_json]
    # Parts of a page that its script fetches are looked at within it.
    whole = [one.path for one in pages if "/_" not in one.template]
    return [_PARAMETER.sub(lambda match: good[match[1]], path) for path in whole]
