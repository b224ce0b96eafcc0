"""The process that does what takes long: its order comes as JSON on stdin; how far it is, and what
it came to, goes as a JSON object a line to stdout."""

from __future__ import annotations

import json
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from station.anchors import Anchor, configured
from station.config import ConfigError, Configuration, load_configuration
from station.export import Wish, chosen_for_people, export_to, manifest_path
from station.export_rows import ExportError
from station.export_source import Source
from station.log_reader import Reader
from station.log_verify import row_of, verify
from station.qms import StoreError
from station.questions import Selection
from station.whole_check import hold_against_anchors, verification_row

Json = dict[str, Any]
_TELL_EVERY_S = 0.3
_SHOWN = 100
"""Findings and notes that are kept."""


class _Progress:
    """Says how far the work is, not too often."""

    def __init__(self) -> None:
        self._next_at = 0.0

    def at(self, done: int, total: int) -> None:
        if time.monotonic() >= self._next_at:
            self._next_at = time.monotonic() + _TELL_EVERY_S
            _tell({"done": done, "total": total})


def _tell(said: Json) -> None:
    sys.stdout.write(json.dumps(said) + "\n")
    sys.stdout.flush()


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    order = json.load(sys.stdin)
    try:
        settings = load_configuration(order["config"]).value
        _tell({"result": _WORK[order["kind"]](order, settings, _Progress())})
    except (StoreError, ExportError, ConfigError, OSError) as error:
        _tell({"error": str(error)})
        return 1
    except Exception as error:  # noqa: BLE001  whoever waits is told of every other, too
        _tell({"error": f"{type(error).__name__}: {error}"})
        return 1
    return 0


def _export(order: Json, settings: Configuration, progress: _Progress) -> Json:
    """The file and its manifest, which is the result."""
    folder = Path(order["folder"])
    _leave_room(folder, settings)
    path = folder / order["name"]
    timezone = settings.journal.shifts.timezone if settings.journal.shifts else None
    with Reader(settings.journal.directory) as reader, Source(reader.path) as source:
        wanted = chosen_for_people(reader, Selection(**order["selection"]))
        wish = Wish(order["format"], wanted, timezone, reader.images)
        return export_to(source, wish, path, lambda done: progress.at(done, order["total"])) | {
            "manifest": manifest_path(path).name
        }


def _leave_room(folder: Path, settings: Configuration) -> None:
    """The log's pictures come first: no file grows into the disk that they need."""
    free = shutil.disk_usage(folder).free - settings.journal.disk_limits_mb[0] * 10**6
    if free <= 0:
        raise ExportError(
            f"{folder}: less than {settings.journal.disk_limits_mb[0]} MB of disk is free: the log "
            "needs it"
        )
    resource.setrlimit(resource.RLIMIT_FSIZE, (free, free))


def _verify(order: Json, settings: Configuration, progress: _Progress) -> Json:
    """As `vqi log verify`, and the first bad row."""
    with Reader(settings.journal.directory) as reader:
        found = verify(reader, order["pictures"], at_row=progress.at)
        hold_against_anchors(reader, settings, [], found)
        row = verification_row(found, reader.source)
    bad = [seq for seq in map(row_of, found.findings) if seq > 0]
    return {
        **row,
        "findings": row["findings"][:_SHOWN],
        "notes": row["notes"][:_SHOWN],
        "findings_in_all": len(found.findings),
        "first_bad_row": min(bad, default=None),
        "pictures": order["pictures"],
        "anchor_states": _anchor_states(settings),
    }


def _anchor_states(settings: Configuration) -> list[Json]:
    """Where anchors lie outside the log, how many, and which is the newest."""
    anchors, notes = configured(settings.proof, settings.station.id, settings.journal.directory)
    places: dict[str, list[Anchor]] = {}
    for anchor in anchors:
        is_journal = anchor.where.startswith("systemd journal")
        file = anchor.where.rpartition(" line ")[0] or anchor.where
        places.setdefault("systemd journal" if is_journal else file, []).append(anchor)
    states = []
    for where, found in places.items():
        newest = max(found, key=lambda anchor: anchor.seq)
        states.append({"where": where, "anchors": len(found), "row": newest.seq, "at": newest.at})
    return states + [{"where": note, "anchors": 0, "row": None, "at": None} for note in notes]


_WORK: dict[str, Callable[[Json, Configuration, _Progress], Json]] = {
    "export": _export,
    "verify": _verify,
}


if __name__ == "__main__":
    sys.exit(main())
