"""The pictures of docs/inspector.md, docs/qa.md and docs/engineer.md: `make pictures` runs the
simulated station with its page, judges a few plates as a person does, and looks at it."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from PIL import Image
from playwright.sync_api import sync_playwright

_CONFIG = Path("config/simulated.toml")
_DOCS = Path(__file__).parent
_PLATES = 40
_NAME, _PASSWORD = "ada", "a-lamp-beside-the-belt"
_TOUCH = {"width": 1280, "height": 800}
_MOST_BYTES = 120_000
_WAIT_S = 300.0
_KINDS = ("scratch", "scratch", "inclusion", "scratch", "dots", "stain")
_TOKEN = re.compile(r'name="csrf" value="([0-9a-f]{64})"')


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, _station(Path(folder)) as url:
        with httpx.Client(base_url=url, headers={"origin": url}, timeout=30.0) as person:
            _sign_in(person)
            _wait_for_plates(person)
            plate = _judge_some(person)
            _propose(person)
        _look(url, plate)


# --- the station, and what happens there ----------------------------------------------------------


@contextmanager
def _station(folder: Path) -> Iterator[str]:
    """`vqi run --web` over the simulated belt, slower, with a lamp that calls until
    somebody comes; the page's address."""
    config = folder / "station.toml"
    text = _CONFIG.read_text()
    for before, after in (("fail_hold_s = 0.4\n", ""), ("rate_hz = 3000.0", "rate_hz = 1000.0")):
        assert before in text
        text = text.replace(before, after)
    config.write_text(text + "\n[web]\nport = 0\n")
    vqi = [sys.executable, "-m", "station.cli"]
    add = ["user", "add", _NAME, "--full-name", "Ada Lovelace", "--role", "admin"]
    environment = os.environ | {"PYTHONPATH": str(Path.cwd())}
    options: dict[str, Any] = {"cwd": folder, "text": True, "env": environment}
    subprocess.run([*vqi, *add, "--config", config], input=_PASSWORD, check=True, **options)
    run = [*vqi, "run", "--web", "--json", "--config", config]
    station = subprocess.Popen(run, stdout=subprocess.PIPE, **options)
    assert station.stdout is not None
    try:
        yield next(json.loads(line)["web"] for line in station.stdout if '"web"' in line).rstrip(
            "/"
        )
    finally:
        station.terminate()
        station.wait(60.0)


def _send(person: httpx.Client, path: str, **fields: Any) -> httpx.Response:
    """A form of the page."""
    token = _TOKEN.search(person.get("/sign-in").text)
    assert token is not None
    answer = person.post(path, data={"csrf": token[1], **fields})
    assert answer.status_code < 400, answer.text
    return answer


def _sign_in(person: httpx.Client) -> None:
    _send(person, "/sign-in", name=_NAME, password=_PASSWORD)


def _wait_for_plates(person: httpx.Client) -> None:
    deadline = time.monotonic() + _WAIT_S
    while person.get("/plates.json").json()["plates"] < _PLATES:
        assert time.monotonic() < deadline, "the belt does not bring plates"
        time.sleep(1.0)


def _judge_some(person: httpx.Client) -> str:
    """A person names the defects of some plates; the id of one that nobody judged, with defects."""
    failed = person.get("/plates.json", params={"verdict": "FAIL"}).json()["rows"]
    for row, kind in zip(failed[2:], _KINDS, strict=False):
        panel = person.get(f"/plates/{row['result_id']}/judge.json").json()["judge"]
        said = {"act": "FAIL|removed|confirmed", "kinds": f"0={kind}"}
        told = {name: panel[name] for name in ("supersedes", "nonce")}
        _send(person, f"/plates/{row['result_id']}/review", **said, **told)
    return str(next(row["result_id"] for row in failed if row["defects"]))


def _propose(person: httpx.Client) -> None:
    """Another version of the recipe, which waits for somebody else's approval."""
    page = person.get("/engineer/recipes/active/edit.json").json()
    fields = {one["key"]: one["value"] for one in page["fields"]}
    fields |= {"model.threshold": "0.97", "reason": "fewer false rejects on the limit samples"}
    _send(person, f"/engineer/recipes/{page['base']}/propose", **fields)


# --- what it looks like ---------------------------------------------------------------------------


def _look(url: str, plate: str) -> None:
    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu"]
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=flags)
        page = browser.new_context(viewport=_TOUCH, has_touch=True, locale="en-GB").new_page()
        page.goto(f"{url}/sign-in")
        page.fill("#name", _NAME)
        page.fill("#password", _PASSWORD)
        page.click('form[action="/sign-in"] button')
        for name, path in _pages(plate).items():
            page.goto(url + path)
            if name == "plate":
                page.click('[data-does="next"]')
            page.wait_for_timeout(2000)
            _keep(_picture(page, name), _DOCS / f"page-{name}.jpg")
        browser.close()


def _picture(page: Any, name: str) -> bytes:
    """Of the camera the one with the most in it: half the time there is a gap before it."""
    tries = [page.screenshot()]
    while name == "camera" and len(tries) < 6:
        page.wait_for_timeout(400)
        tries.append(page.screenshot())
    return max(tries, key=len)


def _pages(plate: str) -> dict[str, str]:
    return {
        "line": "/",
        "plate": f"/plates/{plate}",
        "open": "/open",
        "search": "/plates?verdict=FAIL",
        "pareto": "/pareto?of=kind",
        "camera": "/engineer/camera",
        "recipe": "/engineer/recipes/compare?before=demo-lgp@1&after=demo-lgp@2",
    }


def _keep(png: bytes, path: Path) -> None:
    """As JPEG, as good as fits."""
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    for quality in range(88, 40, -4):
        picture.save(path, quality=quality, optimize=True)
        if path.stat().st_size <= _MOST_BYTES:
            return


if __name__ == "__main__":
    main()
