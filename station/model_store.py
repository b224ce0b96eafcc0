"""The models that a station has: folders that never change once they are in, named by their id.

A model comes in as a folder or as one archive, is read into memory within bounds, held against its
signatures, its card and its golden scores, and takes its place whole or not at all. Only signatures
are added later. What came in, and who signed it, are chained change rows.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import secrets
import shutil
import stat
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from models.card import (
    CARD_FILE,
    GOLDEN_FILE,
    MAX_CARD_BYTES,
    MAX_GOLDEN_BYTES,
    MAX_MODEL_BYTES,
    MODEL_FILE,
    MODEL_ID,
    ModelCard,
    ModelError,
    sha256_of,
)
from models.graph import GraphRefused, check_self_contained
from models.registry import find_model, list_models, shipped_model
from station.config import Configuration
from station.durable import sync
from station.ingress import name_problem
from station.lock import take_lock
from station.model_signatures import (
    MAX_SIGNATURES_BYTES,
    SBOM_FILE,
    SIGNATURES_FILE,
    Signature,
    SignatureError,
    SignatureFile,
    SignedModel,
    Signer,
    TrustedKeys,
    UnsignedModel,
    digest_of,
    missing_for_production,
    read_signatures,
    read_trusted,
    signers_of,
)
from station.record import ChangeBody

IMPORTED = "model_imported"
SIGNED = "model_signed"
CHANGES = (IMPORTED, SIGNED)
"""Names of the change rows."""
_LIMITS = {
    CARD_FILE: MAX_CARD_BYTES,
    GOLDEN_FILE: MAX_GOLDEN_BYTES,
    MODEL_FILE: MAX_MODEL_BYTES,
    SBOM_FILE: 5_000_000,
    SIGNATURES_FILE: MAX_SIGNATURES_BYTES,
}
_MAX_ARCHIVE_BYTES = sum(_LIMITS.values()) + 100_000
_LOCK, _COMING = ".lock", ".coming-"
_PLAIN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
"""Follows no link and waits for no pipe."""
_ID = re.compile(MODEL_ID)

Row = Mapping[str, Any]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Bundle:
    """A model's files in memory: what is checked is what is kept."""

    id: str
    files: Mapping[str, bytes]

    @property
    def hashes(self) -> dict[str, str]:
        """sha256 of each file, signatures apart."""
        return {name: sha256_of(data) for name, data in self.content.items()}

    @property
    def content(self) -> dict[str, bytes]:
        return {name: data for name, data in self.files.items() if name != SIGNATURES_FILE}

    @property
    def digest(self) -> str:
        return digest_of(self.hashes)

    @property
    def signed(self) -> SignatureFile:
        """Raises `SignatureError`."""
        data = self.files.get(SIGNATURES_FILE)
        return SignatureFile(model=self.id) if data is None else read_signatures(data, self.id)

    def with_file(self, name: str, data: bytes) -> Bundle:
        return Bundle(self.id, {**self.files, name: data})

    def with_signature(self, signature: Signature) -> Bundle:
        """Raises `SignatureError`."""
        before = self.signed.signatures
        both = before if signature in before else (*before, signature)
        return self.with_file(
            SIGNATURES_FILE, SignatureFile(model=self.id, signatures=both).as_bytes()
        )


# --- reading what a stranger gave ----------------------------------------------------------------


def read_bundle(path: Path) -> Bundle:
    """A model's folder, or an archive of `vqi model pack`. Raises `ModelError`."""
    return read_folder(path) if path.is_dir() else read_archive(path)


def read_folder(path: Path) -> Bundle:
    """Raises `ModelError` for links, files that no model has, and files that are too large."""
    id = _checked_id(path.resolve().name, str(path))
    files: dict[str, bytes] = {}
    try:
        for entry in sorted(os.scandir(path), key=lambda each: each.name):
            where = f"{path}/{entry.name}"
            limit = _limit_of(entry.name, where)
            descriptor = os.open(entry.path, _PLAIN)
            with os.fdopen(descriptor, "rb") as file:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    raise ModelError(f"{where}: not a plain file")
                files[entry.name] = _bounded(file.read(limit + 1), limit, where)
    except OSError as error:
        name = error.filename or path
        raise ModelError(f"{name}: cannot be read as a plain file: {error.strerror}") from error
    return _whole(id, files, str(path))


def read_archive(path: Path) -> Bundle:
    """Only what `pack` writes: plain files of one model's folder in an uncompressed tar, so that
    nothing unpacks to more than it is. Raises `ModelError`."""
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_ARCHIVE_BYTES + 1)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from error
    _bounded(data, _MAX_ARCHIVE_BYTES, str(path))
    files: dict[str, bytes] = {}
    ids: set[str] = set()
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
            for member in archive:
                where = f"{path}: {member.name!r:.120}"
                folder, _, name = member.name.partition("/")
                if member.type != tarfile.REGTYPE or member.sparse is not None:
                    raise ModelError(f"{where}: not a plain file (links and holes are refused)")
                ids.add(_checked_id(folder, where))
                limit = _limit_of(name, where)
                if name in files or len(ids) > 1:
                    raise ModelError(f"{where}: a file that is there twice, or of another model")
                if member.size > limit:
                    raise ModelError(f"{where}: larger than {limit} bytes")
                content = archive.extractfile(member)
                assert content is not None
                files[name] = _bounded(content.read(limit + 1), limit, where)
    except (tarfile.TarError, OSError, ValueError) as error:
        raise ModelError(
            f"{path}: no archive of `vqi model pack` (an uncompressed tar): {error}"
        ) from error
    if not ids:
        raise ModelError(f"{path}: an empty archive")
    return _whole(ids.pop(), files, str(path))


def _checked_id(id: str, where: str) -> str:
    if not _ID.fullmatch(id) or len(id) > 64:
        raise ModelError(f"{where}: {id!r:.80} is no model's id; the folder has its name")
    return id


def _limit_of(name: str, where: str) -> int:
    if name not in _LIMITS:
        raise ModelError(f"{where}: no file of a model; there are: {', '.join(_LIMITS)}")
    return _LIMITS[name]


def _bounded(data: bytes, limit: int, where: str) -> bytes:
    if len(data) > limit:
        raise ModelError(f"{where}: larger than {limit} bytes")
    return data


def _whole(id: str, files: dict[str, bytes], where: str) -> Bundle:
    missing = [name for name in (CARD_FILE, MODEL_FILE, GOLDEN_FILE) if name not in files]
    if missing:
        raise ModelError(f"{where}: {missing[0]} is missing")
    return Bundle(id, files)


def pack(bundle: Bundle) -> bytes:
    """One archive; the same model gives the same bytes."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name in sorted(bundle.files):
            member = tarfile.TarInfo(f"{bundle.id}/{name}")
            member.size, member.mode = len(bundle.files[name]), 0o444
            archive.addfile(member, io.BytesIO(bundle.files[name]))
    return buffer.getvalue()


# --- holding it against itself -------------------------------------------------------------------


def check_bundle(bundle: Bundle) -> ModelCard:
    """That the files belong together and the graph is a plain one; nothing of it is run. Raises
    `ModelError`."""
    try:
        card = ModelCard.model_validate_json(bundle.files[CARD_FILE])
    except ValidationError as error:
        mistake = error.errors()[0]
        key = ".".join(map(str, mistake["loc"])) or "the file"
        raise ModelError(f"{CARD_FILE}: not a model card: {key}: {mistake['msg']}") from error
    if card.id != bundle.id:
        raise ModelError(f"{CARD_FILE}: the card of {card.id}, in the folder of {bundle.id}")
    hashes = bundle.hashes
    for name, wanted in ((MODEL_FILE, card.sha256), (GOLDEN_FILE, card.golden.sha256)):
        if hashes[name] != wanted:
            raise ModelError(
                f"{name}: sha256 {hashes[name][:12]} is not the card's {wanted[:12]}: damaged, or "
                "of another model"
            )
    if card.golden.file != GOLDEN_FILE:
        raise ModelError(f"{CARD_FILE}: golden.file is {card.golden.file}; {GOLDEN_FILE} wanted")
    try:
        check_self_contained(bundle.files[MODEL_FILE])
    except GraphRefused as error:
        raise ModelError(f"{MODEL_FILE}: refused: {error}") from error
    return card


def trusted_keys(settings: Configuration) -> TrustedKeys:
    """Whose keys count here; none where no file of them is configured. Raises `SignatureError`."""
    path = settings.models.trusted_keys
    return {} if path is None else read_trusted(path)


def judge_bundle(settings: Configuration, bundle: Bundle) -> SignedModel | UnsignedModel:
    """Whether these very bytes may judge production here."""
    try:
        signers = signers_of(bundle.signed, bundle.hashes, trusted_keys(settings))
    except SignatureError as error:
        return UnsignedModel(f"model {bundle.id}: {error}")
    if settings.models.trusted_keys is None:
        return UnsignedModel(
            f"model {bundle.id}: no trusted keys are configured ([models] trusted_keys)"
        )
    missing = missing_for_production(signers, settings.models.needs_two_people)
    if missing:
        return UnsignedModel(f"model {bundle.id}: {missing}; sign it: `vqi model sign`")
    return SignedModel(bundle.id, bundle.hashes[MODEL_FILE], bundle.digest, tuple(signers))


def judge_folder(settings: Configuration, folder: Path) -> SignedModel | UnsignedModel:
    """The same of a model's folder."""
    try:
        return judge_bundle(settings, read_folder(folder))
    except ModelError as error:
        return UnsignedModel(str(error))


# --- the folder ----------------------------------------------------------------------------------


class ModelStore:
    """The folders. Methods that write raise OSError where they cannot."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def of(cls, configuration: Configuration) -> ModelStore:
        return cls(configuration.model_dir)

    def find(self, id: str) -> Path | None:
        """Its folder, if it is here."""
        folder = self.path / id
        return folder if _ID.fullmatch(id) and (folder / CARD_FILE).is_file() else None

    def named(self, name: str) -> Path:
        """The folder of a model that is here or shipped, by its id, or of an exported one, by its
        path. Raises `ModelError` that lists the shipped ones."""
        return self.find(name) or find_model(name)

    def folders(self) -> dict[str, Path]:
        """Every model's folder, by id."""
        return {
            card.parent.name: card.parent
            for card in sorted(self.path.glob(f"*/{CARD_FILE}"))
            if _ID.fullmatch(card.parent.name)
        }

    def add(self, bundle: Bundle, check: Callable[[Path], object]) -> bool:
        """Take a model in durably, once `check` has tried its folder; whole or not at all. One that
        was here already gets the signatures that are new. False if there was nothing to do. Raises
        `ModelError`."""
        with self._alone():
            there = self.find(bundle.id)
            if there is not None:
                return self._add_signatures(read_folder(there), bundle)
            with self._coming(bundle) as folder:
                check(folder)
                if read_folder(folder).files != bundle.files:
                    raise ModelError(f"{folder}: changed while it was tried")
                folder.rename(self.path / bundle.id)
                sync(self.path)
            return True

    def sign(self, id: str, signature: Signature) -> None:
        """Add a signature. Raises `ModelError`, `SignatureError`."""
        with self._alone():
            there = self.find(id)
            if there is None:
                raise ModelError(f"{self.path}: no model {id}")
            known = read_folder(there)
            self._add_signatures(known, known.with_signature(signature))

    def _add_signatures(self, known: Bundle, given: Bundle) -> bool:
        """False if all of them are known."""
        if known.digest != given.digest:
            raise ModelError(
                f"{self.path / known.id}: there is another model of this id (digest "
                f"{known.digest[:12]}, this one {given.digest[:12]}); a model never changes: give "
                "it another id"
            )
        merged = known
        for signature in given.signed.signatures:
            merged = merged.with_signature(signature)
        if merged.files == known.files:
            return False
        with self._coming(merged) as folder:
            (folder / SIGNATURES_FILE).rename(self.path / known.id / SIGNATURES_FILE)
            sync(self.path / known.id)
        return True

    @contextlib.contextmanager
    def _coming(self, bundle: Bundle) -> Iterator[Path]:
        """The bundle's files, durable, in a folder of its name that is not a model's yet."""
        outer = self.path / f"{_COMING}{secrets.token_hex(4)}"
        folder = outer / bundle.id
        folder.mkdir(parents=True)
        folder.chmod(0o755)
        try:
            for name, data in bundle.files.items():
                _write_new(folder / name, data)
            sync(folder)
            yield folder
        finally:
            shutil.rmtree(outer, ignore_errors=True)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Raises `ModelError` while another process writes. What a killed one left goes."""
        lock = take_lock(self.path / _LOCK)
        if lock is None:
            raise ModelError(f"{self.path}: another process is taking a model in; try again")
        try:
            for left in self.path.glob(f"{_COMING}*"):
                shutil.rmtree(left)
            yield
        finally:
            os.close(lock)


def _write_new(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(descriptor, 0o444)  # the station reads what root took in, whatever root's umask
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def try_bundle(bundle: Bundle, check: Callable[[Path], T]) -> T:
    """What `check` says of the bundle's folder, in a place that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="vqi-model-") as outer:
        folder = Path(outer, bundle.id)
        folder.mkdir()
        for name, data in bundle.files.items():
            (folder / name).write_bytes(data)
        return check(folder)


def named_bundle(name: str, store: ModelStore | None) -> Bundle:
    """By path, by its id in the store, or by a shipped model's id. Raises `ModelError`."""
    path = Path(name)
    if path.is_file() or (path / CARD_FILE).is_file():
        return read_bundle(path)
    stored = store.find(name) if store else None
    return read_folder(stored or shipped_model(name))


def all_models(store: ModelStore | None) -> dict[str, Path]:
    """Shipped and stored ones, by id; a stored one hides the shipped one that it is a copy of."""
    return {**list_models(), **(store.folders() if store else {})}


# --- what the log says ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ModelRegister:
    """What rows of models come to."""

    digests: dict[str, str] = field(default_factory=dict)
    """Of each model that came in, by id."""

    def objection(self, row: Row) -> str:
        """Why this change row may not follow; empty if it may, or is none of these."""
        if row["what"] not in CHANGES:
            return ""
        detail = row["detail"]
        try:
            id, digest = detail["id"], detail["digest"]
        except KeyError:
            return f"a {row['what']} row names id and digest"
        if not _ID.fullmatch(id) or not re.fullmatch("[0-9a-f]{64}", digest):
            return f"a {row['what']} row names a model's id and digest"
        if problem := name_problem("person", row["who"]):
            return problem
        known = self.digests.get(id)
        if known is None and row["what"] == SIGNED:
            return f"{id}: no row says that it came in"
        if known not in (None, digest):
            return f"{id}: the log has it with the digest {known[:12]}; a model never changes"
        return ""


def model_register(rows: Iterable[Row]) -> ModelRegister:
    """Fold change rows, in their order; one that breaks a rule counts for nothing."""
    known = ModelRegister()
    for row in rows:
        if row["what"] in CHANGES and not known.objection(row):
            digests = {**known.digests, row["detail"]["id"]: row["detail"]["digest"]}
            known = replace(known, digests=digests)
    return known


def imported_change(
    station_id: str, bundle: Bundle, signers: Sequence[Signer], who: str, source: str
) -> ChangeBody:
    """The row of a model that came in."""
    return ChangeBody(
        station_id=station_id, what=IMPORTED, who=who,
        detail={**_named(bundle), "signers": _listed(signers), "source": source},
    )  # fmt: skip


def signed_change(station_id: str, bundle: Bundle, signature: Signature, who: str) -> ChangeBody:
    """The row of a signature that was added; `who` sent it."""
    detail = {"role": signature.role, "signer": signature.who, "key": signature.key_id}
    return ChangeBody(
        station_id=station_id, what=SIGNED, who=who, detail={**_named(bundle), **detail}
    )


def _named(bundle: Bundle) -> dict[str, str]:
    hashes = bundle.hashes
    return {
        "id": bundle.id,
        "digest": bundle.digest,
        "model_sha256": hashes[MODEL_FILE],
        "card_sha256": hashes[CARD_FILE],
    }


def _listed(signers: Sequence[Signer]) -> str:
    rows = [{"role": s.role, "who": s.who, "key": s.key_id, "doubt": s.doubt} for s in signers]
    return json.dumps(rows)
