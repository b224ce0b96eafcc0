"""Logs of any make, through the real writer: plates with pictures, reviews, holds, removals,
restarts, checkpoints. The same seed makes the same log but for the keys' bytes."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from test_qms import opened, result

from station.checkpoint import make_checkpoint
from station.log_reader import Reader
from station.qms import IMAGES, Json, Store
from station.record import (
    AcceptBody,
    ActuationBody,
    Body,
    ChangeBody,
    CheckpointBody,
    HoldBody,
    PictureClass,
    ReleaseBody,
    ResultBody,
    RetentionBody,
    ReviewBody,
    TombstoneBody,
    Verdict,
    result_id,
    rfc3339,
)
from station.retention import objection, pictures_of
from station.signed_note import load_key, make_key

FAIL_DAYS, PASS_DAYS = 30.0, 5.0
_RULES = {PictureClass.FAIL: {"days": FAIL_DAYS}, PictureClass.PASS_PREVIEW: {"days": PASS_DAYS}}


@dataclass
class LogMaker:
    """A log that lives; one for each directory."""

    directory: Path
    seed: int
    is_signed: bool = True
    random: random.Random = field(init=False)
    store: Store = field(init=False)
    plates: int = 0
    now: datetime = datetime(2026, 1, 1, tzinfo=UTC)
    holds: list[HoldBody] = field(default_factory=list)
    checkpoints: list[CheckpointBody] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.directory.mkdir(parents=True, exist_ok=True)
        if self.is_signed:
            make_key(self.key_file, self.directory / "proof.pub")
        self.store = Store(self.directory)
        self.rules = RetentionBody.model_validate(
            {**self.said(), "rules": _RULES, "min_pass_days": 1.0}
        )
        self.write(self.rules)

    @property
    def key_file(self) -> Path:
        return self.directory.parent / f"{self.directory.name}.key"

    def said(self) -> Json:
        """By whom and when; each row a little later."""
        self.now += timedelta(seconds=self.random.uniform(0.1, 3600))
        return {"station_id": "s", "written_at": rfc3339(self.now)}

    def write(self, *rows: Body) -> None:
        self.store.append(rows)

    def live(self, steps: int) -> None:
        """Whatever happens to a log, `steps` times."""
        happens = {
            self.plate: 10,
            self.review: 3,
            self.hold: 1,
            self.release: 1,
            self.remove: 3,
            self.restart: 1,
            self.checkpoint: 1,
        }
        for step in self.random.choices(list(happens), list(happens.values()), k=steps):
            step()

    def plate(self, verdict: Verdict | None = None) -> str:
        self.plates += 1
        number, r = self.plates, self.random
        verdict = verdict or r.choice([Verdict.PASS, Verdict.PASS, Verdict.FAIL, Verdict.UNDECIDED])
        name = result_id("s", number)
        opening = opened(number, number).model_copy(update=self.said())
        row = self._result(number, verdict)
        told = self.said() | {"result_id": name, "commanded_ns": number, "shown_ns": number}
        rows: list[Body] = [opening, row]
        rows.append(ActuationBody(**told, command=str(verdict), is_confirmed=True))
        if verdict is Verdict.PASS and r.random() < 0.5:
            rows.append(AcceptBody(**told, command="accept", is_confirmed=True))
        cut = r.randint(0, len(rows))
        self.write(*rows[:cut])
        self.write(*rows[cut:])
        return name

    def _result(self, number: int, verdict: Verdict) -> ResultBody:
        serial = self.random.choice([None, f"LGP-{number % 7}", "=1+1", 'a "quoted",\nserial'])
        roles = ["preview"] if verdict is Verdict.PASS else ["evidence", "preview"]
        more: Json = {"part_id": serial, "images": [self._image(role) for role in roles]}
        if verdict is Verdict.FAIL:
            more["defects"] = [
                {"x_px": 1, "y_px": 2, "w_px": 3, "h_px": 4, "x_mm": 1.5, "y_mm": 2.5, "score": 0.9}
            ]
        return result(number, verdict, **self.said(), **more)

    def _image(self, role: str) -> Json:
        data = self.random.randbytes(self.random.randint(20, 60))
        sha256 = hashlib.sha256(data).hexdigest()
        path = f"{sha256[:2]}/{sha256}.{'png' if role == 'evidence' else 'jpg'}"
        file = self.directory / IMAGES / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
        size = {"bytes": len(data), "width_px": 4, "height_px": 5}
        return {"role": role, "path": path, "sha256": sha256, **size}

    def _any_plate(self) -> str | None:
        return result_id("s", self.random.randint(1, self.plates)) if self.plates else None

    def review(self, name: str | None = None, verdict: Verdict | None = None) -> None:
        name = name or self._any_plate()
        if name is not None:
            self.write(
                ReviewBody(
                    **self.said(),
                    result_id=name,
                    verdict=verdict or self.random.choice(list(Verdict)),
                    reviewer=self.random.choice(["ada", "grace"]),
                    reason="looked at it",
                )
            )

    def hold(self) -> None:
        what = self.random.choice(["result_id", "part_id", "since_at"])
        value = {"result_id": self._any_plate() or "none", "part_id": "LGP-3"}
        given = value.get(what, rfc3339(self.now - timedelta(days=self.random.uniform(0, 3))))
        name = f"h{self.random.getrandbits(40)}"
        row = HoldBody(**self.said(), hold_id=name, who="qa", why="claim", **{what: given})
        self.holds.append(row)
        self.write(row)

    def release(self) -> None:
        if self.holds:
            held = self.holds.pop(self.random.randrange(len(self.holds)))
            self.write(ReleaseBody(**self.said(), hold_id=held.hold_id, who="qa", why="over"))

    def remove(self) -> None:
        """Pictures that the rules let go, as the journal removes them: the row, then the file."""
        self.now += timedelta(days=self.random.uniform(0, 12))
        name = self._any_plate()
        rows = self.store.of_result(name) if name else []
        for picture in pictures_of(rows):
            if picture.picture_class not in _RULES:
                continue
            limit = _RULES[picture.picture_class]["days"]
            stone = TombstoneBody(
                **self.said(), result_id=picture.result_id, role=picture.role, path=picture.path,
                sha256=picture.sha256, bytes=picture.bytes, picture_class=picture.picture_class,
                rule="days", measured=limit, limit=limit, why="old",
            )  # fmt: skip
            if not objection(stone, picture, self.rules, self.holds, 0):
                self.write(stone)
                (self.directory / IMAGES / picture.path).unlink()

    def restart(self) -> None:
        self.store.close()
        self.store = Store(self.directory)
        self.write(ChangeBody(**self.said(), what="start", who="systemd"))

    def checkpoint(self) -> CheckpointBody:
        at = str(self.said()["written_at"])
        key = load_key(self.key_file) if self.is_signed else None
        with Reader(self.directory) as reader:
            body = make_checkpoint(reader, "s", at, key)
        self.write(body)
        self.checkpoints.append(body)
        return body

    def close(self) -> None:
        """Everything in one file."""
        self.store.close()
