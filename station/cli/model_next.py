"""`vqi model next`: the passed plates that a person should look at next."""

from __future__ import annotations

from typing import Annotated

import typer

from station.cli.common import ConfigOption, JsonOption, fail, load_or_exit, print_json, say
from station.cli.log_options import Since
from station.cli.log_upkeep import Who


def next_(
    config: ConfigOption,
    who: Who,
    count: Annotated[int, typer.Option(min=1, max=200, help="Plates to look at.")] = 20,
    since: Since = None,
    only_whole: Annotated[
        bool, typer.Option("--whole", help="Only plates whose whole picture is kept: it can train.")
    ] = False,
    is_asking: Annotated[
        bool, typer.Option("--ask", help="Write into the log that people should look at them.")
    ] = False,
    is_json: JsonOption = False,
) -> None:
    """Which passed plates to look at: near the threshold, fresh, and no two of a kind.

    The audit's samples are never among them: those measure, and are judged blind.
    """
    from station.log_reader import Reader
    from station.next_plates import asked_change, next_plates
    from station.qms import StoreError
    from station.signing import SigningError, journal_at_hand

    loaded = load_or_exit(config)
    try:
        with Reader(loaded.value.journal.directory) as reader:
            plates = next_plates(reader, count, since, only_whole)
        if is_asking and plates:
            row = asked_change(loaded.value.station.id, who, plates)
            with journal_at_hand(loaded.source, loaded.value) as journal:
                answer = journal.submit([row])
            if not answer["ok"]:
                fail(str(answer["error"]))
    except (StoreError, SigningError) as error:
        fail(str(error))
    for place, plate in enumerate(plates, 1):
        if is_json:
            print_json({"rank": place, **plate.as_json()})
        else:
            serial = f" {plate.part_id}" if plate.part_id else ""
            say(
                f"{place:3} {plate.result_id}{serial}  score {plate.score:.3f} of "
                f"{plate.threshold:.3f}, doubt {plate.doubt:.3f}, tile at {plate.tile_x_px},"
                f"{plate.tile_y_px} px, picture: {plate.picture}"
            )
    if not plates and not is_json:
        say("no passed plate waits for a look")
