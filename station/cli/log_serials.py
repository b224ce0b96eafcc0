"""`vqi log serials`: what was read and became no plate's serial."""

from __future__ import annotations

import typer

from station.cli.common import JsonOption, fail, print_json
from station.cli.log_options import Config, Journal, Since, journal_folder
from station.ipc import Json
from station.log_reader import Reader
from station.qms import StoreError


def serials(
    config: Config = None, journal: Journal = None, since: Since = None, is_json: JsonOption = False
) -> None:
    """Readings that were refused, or that no plate took; oldest first."""
    try:
        with Reader(journal_folder(config, journal)) as reader:
            for row in reader.bodies("serial", since or ""):
                if is_json:
                    print_json(row)
                else:
                    typer.echo(_line(row))
    except StoreError as error:
        fail(str(error))


def _line(row: Json) -> str:
    times = f"x{row['count']}" if row["count"] > 1 else ""
    beside = f"beside {row['result_id']}" if row["result_id"] else ""
    parts = (row["written_at"], f"{row['why']:9}", row["source"], row["serial"], row["detail"])
    return "  ".join(part for part in (*parts, beside, times) if part)
