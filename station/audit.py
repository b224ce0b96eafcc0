"""Which passed plates a person looks at again: a random sample that nobody chose.

The station draws each plate when it opens, by a secret seed whose sha256 is in the chain before it,
and reveals the seed in a later row: whoever has the log can draw again (commit and reveal). The
seeds of a life come from one secret, kept in a file for the lives after: a station that dies within
a shift reveals its last seed when it starts again.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import secrets
from collections.abc import Iterable
from pathlib import Path

from station.config import Loaded, Recipe
from station.record import AuditRevealBody, AuditSeedBody, Body

SECRET_FILE = "audit-secrets"
_BYTES = 32
UNREVEALED = 16
"""Seeds that a start looks back for, and secrets that the file keeps, newest first."""


def is_drawn(seed: bytes, result_id: str, share: float) -> bool:
    """Whether a plate belongs to the sample: HMAC-SHA256 of its id as a number of [0, 1), below the
    share."""
    digest = hmac.digest(seed, result_id.encode(), "sha256")
    return int.from_bytes(digest[:8], "big") < share * 2**64


def seed_of(secret: bytes, number: int) -> bytes:
    """A seed says nothing of the secret, nor of the next one."""
    return hmac.digest(secret, f"audit seed {number}".encode(), "sha256")


class AuditDraw:
    """Draws the plates of one life of a station, with a seed a shift. For one thread."""

    def __init__(self, folder: Path, station_id: str, recipe: Loaded[Recipe]) -> None:
        self._path = folder / SECRET_FILE
        self._station_id = station_id
        self._recipe = recipe
        self._secret = b""
        self._seed: bytes | None = None
        self._number = 0
        self._shift = ""

    def begin(self, shift: str, unrevealed: Iterable[AuditSeedBody]) -> list[Body]:
        """Rows for the log before the first plate: the seeds that lives before left unrevealed, and
        the hash of this one's first. Raises OSError."""
        known = self._secrets()
        self._secret = secrets.token_bytes(_BYTES)
        # The old ones stay: this life may die before its first rows are in the log.
        _write_file(self._path, b"".join([self._secret, *known[: UNREVEALED - 1]]))
        return [*self._reveal_old(known, unrevealed), self._commit(shift)]

    def turn(self, shift: str, recipe: Loaded[Recipe] | None = None) -> list[Body]:
        """Rows for the log before a plate: none while shift and recipe last; then the seed that
        drew their plates, and the hash of the next one."""
        recipe = recipe or self._recipe
        if (shift, recipe.sha256) == (self._shift, self._recipe.sha256):
            return []
        self._recipe = recipe
        return [*self.end(), self._commit(shift)]

    def end(self) -> list[Body]:
        """Reveals the seed; it draws no more."""
        if self._seed is None:
            return []
        seed, self._seed = self._seed, None
        return [self._reveal_row(seed)]

    def draw(self, result_id: str) -> bool:
        share = self._recipe.value.keep.pass_whole_share
        return self._seed is not None and is_drawn(self._seed, result_id, share)

    def _commit(self, shift: str) -> AuditSeedBody:
        self._number, self._shift = self._number + 1, shift
        self._seed = seed_of(self._secret, self._number)
        recipe = self._recipe
        return AuditSeedBody(
            station_id=self._station_id,
            seed_sha256=hashlib.sha256(self._seed).hexdigest(),
            number=self._number,
            shift=shift,
            recipe_id=recipe.value.id,
            recipe_version=recipe.value.version,
            recipe_sha256=recipe.sha256,
            share=recipe.value.keep.pass_whole_share,
        )

    def _reveal_row(self, seed: bytes) -> AuditRevealBody:
        return AuditRevealBody(
            station_id=self._station_id,
            seed_sha256=hashlib.sha256(seed).hexdigest(),
            seed=seed.hex(),
        )

    def _reveal_old(self, known: list[bytes], unrevealed: Iterable[AuditSeedBody]) -> list[Body]:
        seeds = ((body, seed_of(secret, body.number)) for body in unrevealed for secret in known)
        return [
            self._reveal_row(seed)
            for body, seed in seeds
            if hashlib.sha256(seed).hexdigest() == body.seed_sha256
        ]

    def _secrets(self) -> list[bytes]:
        """Of the lives before, newest first."""
        with contextlib.suppress(FileNotFoundError):
            data = self._path.read_bytes()
            return [data[at : at + _BYTES] for at in range(0, len(data), _BYTES)]
        return []


def _write_file(path: Path, data: bytes) -> None:
    """Durable before its first hash is in the log; for this user's eyes only."""
    temporary = path.with_name(f"{path.name}.new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.write(descriptor, data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    temporary.rename(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
