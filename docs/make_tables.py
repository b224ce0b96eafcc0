"""Write the generated tables into docs/network.md; with --check, say whether they are current."""

from __future__ import annotations

import sys
from pathlib import Path

from models.training.layers import layer_rows, markdown
from models.training.lightdefectnet import LightDefectNet

PAGE = Path(__file__).with_name("network.md")
BEGIN, END = "<!-- layers -->\n", "<!-- end -->"


def main() -> int:
    text = PAGE.read_text()
    before, rest = text.split(BEGIN)
    after = rest[rest.index(END) :]
    current = f"{before}{BEGIN}\n{markdown(layer_rows(LightDefectNet()))}\n\n{after}"
    if "--check" in sys.argv:
        return int(text != current)
    PAGE.write_text(current)
    return 0


if __name__ == "__main__":
    sys.exit(main())
