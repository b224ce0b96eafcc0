"""A real browser in front of a station's page: screens, a hand that counts what it does, and what
the page complained of meanwhile."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = Path("/usr/bin/chromium")
_FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage")

DESK: dict[str, Any] = {"viewport": {"width": 1920, "height": 1080}}
TOUCH: dict[str, Any] = {"viewport": {"width": 1280, "height": 800}, "has_touch": True}
PHONE: dict[str, Any] = {
    "viewport": {"width": 390, "height": 844},
    "has_touch": True,
    "is_mobile": True,
    "device_scale_factor": 2,
}
SCREENS = {"desk": DESK, "touch": TOUCH, "phone": PHONE}

_REPORT_VIOLATIONS = """
addEventListener("securitypolicyviolation", (event) => console.error(
  "CSP " + event.violatedDirective + " " + event.blockedURI + " " + event.sourceFile));
"""


def skip_without_browser() -> None:
    """One plain reason where playwright or Debian's Chromium is missing."""
    if not CHROMIUM.exists():
        pytest.skip("no Chromium here")
    pytest.importorskip("playwright", reason="no Chromium here: playwright is not installed")


@contextmanager
def chromium() -> Iterator[Any]:
    """Debian's Chromium, headless; one start serves a module."""
    skip_without_browser()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=list(_FLAGS))
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Screen:
    """One screen with one page, and all that went wrong on it."""

    page: Any
    address: str
    complaints: list[str] = field(default_factory=list)
    """Errors on the console, exceptions, dialogs, violations of the content security policy."""
    touches: int = 0
    keys: int = 0

    def open(self, path: str) -> Any:
        """Go to a path of the station's page; the response."""
        return self.page.goto(self.address + path)

    def touch(self, selector: str) -> None:
        """One touch, or one click where there is no touch screen."""
        self.touches += 1
        target = self.page.locator(selector).first
        if self.page.evaluate("navigator.maxTouchPoints") > 0:
            target.tap()
        else:
            target.click()

    def key(self, name: str) -> None:
        self.keys += 1
        self.page.keyboard.press(name)

    def write(self, selector: str, text: str) -> None:
        """A text into a field; counts its letters, as a hand types them."""
        self.keys += len(text)
        self.page.locator(selector).first.fill(text)

    def choose(self, selector: str, value: str) -> None:
        """An entry of a list: opened with one touch, chosen with another."""
        self.touches += 2
        self.page.locator(selector).first.select_option(value)

    def touch_at(self, x_px: float, y_px: float) -> None:
        """One touch of a place on the screen."""
        self.touches += 1
        self.page.touchscreen.tap(x_px, y_px)

    def lands(self, act: Callable[[], None]) -> None:
        """Whatever is done leads to a page, which is there when this returns."""
        with self.page.expect_navigation():
            act()

    def downloads(self, act: Callable[[], None]) -> bytes:
        """What a link hands over as a file."""
        with self.page.expect_download() as found:
            act()
        return Path(found.value.path()).read_bytes()

    def sees(self, selector: str) -> None:
        """Waits until it is there and shown."""
        self.page.locator(selector).first.wait_for(state="visible", timeout=15_000)

    def text(self, selector: str) -> str:
        return str(self.page.locator(selector).first.inner_text())

    def effort(self) -> tuple[int, int]:
        """Touches and keys since the last time this was asked."""
        done = (self.touches, self.keys)
        self.touches = self.keys = 0
        return done

    def where(self) -> str:
        """The path that is open, with its query."""
        return re.sub(r"^https?://[^/]+", "", str(self.page.url))


@contextmanager
def screen(browser: Any, address: str, kind: dict[str, Any], **more: Any) -> Iterator[Screen]:
    """A fresh screen: own cookies, own storage. `more` as playwright's `new_context` takes it."""
    context = browser.new_context(**kind, **more)
    context.add_init_script(_REPORT_VIOLATIONS)
    shown = Screen(context.new_page(), address)
    _listen(shown)
    try:
        yield shown
    finally:
        context.close()


def _listen(shown: Screen) -> None:
    def on_console(message: Any) -> None:
        # A refused or missing resource is the server's answer, and looked at there.
        if message.type == "error" and "Failed to load resource" not in message.text:
            shown.complaints.append(f"console: {message.text}")

    def on_dialog(dialog: Any) -> None:
        shown.complaints.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    shown.page.on("console", on_console)
    shown.page.on("dialog", on_dialog)
    shown.page.on("pageerror", lambda error: shown.complaints.append(f"exception: {error}"))
