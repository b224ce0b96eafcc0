"""Whether the log is whole: every row, and what lies outside it; as `vqi log verify` says it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from station.anchors import AnchorError, check_anchors, configured, owner_note, read_file
from station.checkpoint import CheckpointError, keys_of
from station.config import Configuration
from station.log_reader import Reader
from station.log_verify import Verification
from station.qms import Json


def hold_against_anchors(
    reader: Reader, settings: Configuration | None, files: Sequence[Path], found: Verification
) -> None:
    """Those that are named, and those where the configuration says them; added to `found`."""
    try:
        anchors = [anchor for path in files for anchor in read_file(path)]
        if settings is not None:
            folder = settings.journal.directory
            more, notes = configured(settings.proof, settings.station.id, folder)
            anchors, found.notes = anchors + more, found.notes + notes
            if settings.proof.anchor_file is not None:
                found.notes += owner_note(settings.proof.anchor_file, folder)
        found.findings += check_anchors(reader, anchors, keys_of(reader))
    except (AnchorError, CheckpointError) as error:
        found.findings.append(str(error))
    else:
        found.anchors = len(anchors)


def verification_row(found: Verification, source: str) -> Json:
    """What was found; `source` is the reader's."""
    return {
        "ok": not found.findings,
        "source": source,
        "rows": found.rows,
        "results": found.results,
        "open_plates": found.open_plates,
        "images": found.images,
        "tombstones": found.tombstones,
        "holds": found.holds,
        "anchors": found.anchors,
        "head": found.head,
        "findings": found.findings,
        "notes": found.notes,
    }
