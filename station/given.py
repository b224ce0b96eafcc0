"""What a person said holds for the plates from here on: who is signed on, which lot and job run.

Each is said by a command or a badge, is a chained change row, and holds until it is said anew, over
restarts too.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from station.ipc import Json

GIVEN = {"operator": "operator", "lot": "lot", "job": "job_id"}
"""Each command's, and change row's, name, and the result's field that it fills."""
VALUE = "value"
"""Where the change row says it; empty where it ends."""


@dataclass(frozen=True, slots=True)
class Given:
    """As of a plate's leading edge."""

    operator: str | None = None
    lot: str | None = None
    job_id: str | None = None

    @classmethod
    def of_log(cls, last: Json) -> Given:
        """From the last change of each name."""
        return cls(**{field: last.get(what) or None for what, field in GIVEN.items()})

    def saying(self, what: str, value: str) -> Given:
        """With one of them said anew; an empty value ends it."""
        return replace(self, **{GIVEN[what]: value or None})
