"""docs/report.jpg: the report of a prepared shift as a browser prints it. `make pictures`."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

_DOCS = Path(__file__).parent
_TOOL = _DOCS.parent / "benchmarks" / "make_journal.py"
_SHIFT = ("--since", "2026-01-05T05:00", "--until", "2026-01-05T13:00")


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _run(sys.executable, _TOOL, folder / "journal", "--plates", "9600")
        given = (_DOCS.parent / "config" / "simulated.toml").read_text()
        config = folder / "config.toml"
        config.write_text(given.replace("var/journal", str(folder / "journal")))
        report = ("log", "report", "--config", config, "--out", folder, *_SHIFT)
        _run(sys.executable, "-m", "station.cli", *report)
        [page] = folder.glob("report-*.html")
        _draw(page, folder)


def _draw(page: Path, folder: Path) -> None:
    """Both sheets, side by side."""
    printed = folder / "report.pdf"
    headless = ("chromium", "--headless", "--no-sandbox", "--disable-gpu")
    _run(*headless, "--no-pdf-header-footer", f"--print-to-pdf={printed}", page.as_uri())
    _run("pdftoppm", "-r", "72", "-png", printed, folder / "sheet")
    sheets = [Image.open(path) for path in sorted(folder.glob("sheet*.png"))]
    width, height = sheets[0].size
    both = Image.new("RGB", (len(sheets) * (width + 8) - 8, height), "#888")
    for number, sheet in enumerate(sheets):
        both.paste(sheet, (number * (width + 8), 0))
    both.save(_DOCS / "report.jpg", quality=82, optimize=True)


def _run(*command: str | Path) -> None:
    subprocess.run([str(part) for part in command], check=True)


if __name__ == "__main__":
    main()
