"""Who vouches for a model: Ed25519 signatures over every file of its folder, and whose keys count.

A signature is over a text that names the model, the role, the person, the time and the sha256 of
each file (`Signature.text`). Whose keys count stands in a file that only root can write.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
import stat
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from models.card import CARD_FILE, GOLDEN_FILE, MODEL_FILE, MODEL_ID
from station.ingress import name_problem
from station.recipes import is_one_person
from station.record import utc_now
from station.signed_note import fingerprint

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

SIGNATURES_FILE = "signatures.json"
SBOM_FILE = "sbom.json"
CONTENT_FILES = (CARD_FILE, GOLDEN_FILE, MODEL_FILE, SBOM_FILE)
"""What is signed: all of a model's folder but the signatures."""
FORMAT = "vqi-model-signature-1"
MAX_SIGNATURES_BYTES = 100_000
_MAX_KEYS_BYTES = 100_000
_MOST_SIGNATURES = 32

Role = Literal["trained", "approved"]
ROLES: tuple[Role, ...] = ("trained", "approved")
Sha256 = Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]


class SignatureError(Exception):
    """A signature, or the file of trusted keys, does not hold; the message says which and why."""


class _Part(BaseModel):
    """Frozen; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Signature(_Part):
    """One person's word for one model's files."""

    role: Role
    who: str = Field(pattern="^[ -~]{1,64}$")
    at: str = Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z$")
    public_key: str
    """base64 of 32 bytes."""
    files: dict[str, Sha256]
    signature: str
    """base64 of 64 bytes."""

    @property
    def key(self) -> bytes:
        """Raises `SignatureError`."""
        return _decoded(self.public_key, 32, "public key")

    @property
    def key_id(self) -> str:
        """The key's fingerprint."""
        return fingerprint(self.key)

    def text(self, model_id: str) -> bytes:
        """What is signed."""
        head = f"{FORMAT}\nmodel {model_id}\nrole {self.role}\nwho {self.who}\ntime {self.at}\n"
        return (head + _file_lines(self.files)).encode()


class SignatureFile(_Part):
    """`signatures.json`."""

    version: Literal[1] = 1
    model: str = Field(pattern=MODEL_ID)
    signatures: tuple[Signature, ...] = Field((), max_length=_MOST_SIGNATURES)

    def as_bytes(self) -> bytes:
        return self.model_dump_json(indent=1).encode() + b"\n"


def digest_of(files: Mapping[str, str]) -> str:
    """Of a model as a whole: sha256 over the names and sha256 of its files, signatures apart."""
    return hashlib.sha256(_file_lines(files).encode()).hexdigest()


def _file_lines(files: Mapping[str, str]) -> str:
    return "".join(f"file {name} {files[name]}\n" for name in sorted(files))


def read_signatures(data: bytes, model_id: str) -> SignatureFile:
    """Raises `SignatureError` for what is no file of this model's signatures."""
    try:
        found = SignatureFile.model_validate_json(data)
    except ValidationError as error:
        mistake = error.errors()[0]
        key = ".".join(map(str, mistake["loc"])) or "the file"
        raise SignatureError(f"{SIGNATURES_FILE}: {key}: {mistake['msg']}") from error
    if found.model != model_id:
        raise SignatureError(f"{SIGNATURES_FILE}: of the model {found.model}, not {model_id}")
    return found


def sign_files(
    model_id: str, files: Mapping[str, str], role: Role, who: str, key: Ed25519PrivateKey
) -> Signature:
    """Raises `SignatureError` if `who` is no name."""
    if problem := name_problem("signer", who):
        raise SignatureError(problem)
    blank = Signature(
        role=role,
        who=who,
        at=utc_now(),
        public_key=_base64(key.public_key().public_bytes_raw()),
        files=dict(sorted(files.items())),
        signature="",
    )
    return blank.model_copy(update={"signature": _base64(key.sign(blank.text(model_id)))})


def check_signature(signature: Signature, model_id: str, files: Mapping[str, str]) -> None:
    """Raises `SignatureError` unless this key signed these files of this model, and nothing else of
    it was changed. Says nothing of whose key it is."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    by = f"{signature.who} ({signature.role})"
    key, data = signature.key, _decoded(signature.signature, 64, "signature")
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(data, signature.text(model_id))
    except InvalidSignature as error:
        raise SignatureError(
            f"the signature of {by} does not hold: it, the name, the role, the time or a sha256 "
            "was changed, or another model's was taken"
        ) from error
    for name in sorted({*files, *signature.files}):
        signed, found = signature.files.get(name), files.get(name)
        if found is None:
            raise SignatureError(f"{name}: {by} signed it, and it is missing")
        if signed is None:
            raise SignatureError(f"{name}: {by} did not sign it")
        if signed != found:
            raise SignatureError(
                f"{name}: changed since {by} signed it (sha256 {found[:12]}, signed {signed[:12]})"
            )


# --- whose keys count ----------------------------------------------------------------------------


class TrustedKey(_Part):
    """A person's key and what it may sign."""

    who: str
    public_key: str
    roles: tuple[Role, ...] = Field(min_length=1)


class _KeyFile(_Part):
    key: tuple[TrustedKey, ...] = Field(min_length=1)


TrustedKeys = dict[str, TrustedKey]
"""By fingerprint."""


def read_trusted(path: Path, owner: int = 0) -> TrustedKeys:
    """Raises `SignatureError` if it cannot be read or understood, or if others than its `owner`
    (a user id: root) can write it."""
    try:
        with path.open("rb") as file:
            data, found = file.read(_MAX_KEYS_BYTES + 1), os.fstat(file.fileno())
    except OSError as error:
        raise SignatureError(
            f"{path}: the trusted keys cannot be read: {error.strerror}"
        ) from error
    if found.st_uid != owner or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise SignatureError(
            f"{path}: whoever can write it decides which models judge: it must belong to root and "
            f"be writable by nobody else (`chown root {path}; chmod 644 {path}`)"
        )
    return parse_trusted(data, str(path))


def parse_trusted(data: bytes, source: str) -> TrustedKeys:
    """Raises `SignatureError`."""
    try:
        table = tomllib.loads(data[:_MAX_KEYS_BYTES].decode())
        entries = _KeyFile.model_validate(table).key
    except (ValueError, RecursionError) as error:
        raise SignatureError(
            f"{source}: no list of [[key]] with who, public_key and roles: {_one_line(error)}"
        ) from error
    keys: TrustedKeys = {}
    for entry in entries:
        try:
            name = fingerprint(_decoded(entry.public_key, 32, "public_key"))
        except SignatureError as error:
            raise SignatureError(f"{source}: of {entry.who}: {error}") from error
        if name in keys:
            raise SignatureError(f"{source}: {entry.who} and {keys[name].who} have the same key")
        keys[name] = entry
    return keys


def _one_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        mistake = error.errors()[0]
        return f"{'.'.join(map(str, mistake['loc']))}: {mistake['msg']}"
    return str(error)


def trusted_entry(who: str, public: bytes, roles: Sequence[Role]) -> str:
    """As it is put into the file of trusted keys."""
    listed = ", ".join(f'"{role}"' for role in roles)
    name = json.dumps(who)  # a TOML string too
    return f'[[key]]\nwho = {name}\npublic_key = "{_base64(public)}"\nroles = [{listed}]\n'


# --- what signatures come to ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Signer:
    """A signature that holds, and whether its key counts."""

    role: Role
    who: str
    key_id: str
    at: str
    doubt: str
    """Why it does not count; empty if it does."""

    @property
    def words(self) -> str:
        doubt = f" [{self.doubt}]" if self.doubt else ""
        return f"{self.role} by {self.who} (key {self.key_id[:12]}){doubt}"


@dataclass(frozen=True, slots=True)
class SignedModel:
    """People whom this station trusts vouch for every byte of it."""

    model_id: str
    model_sha256: str
    digest: str
    signers: tuple[Signer, ...]

    @property
    def words(self) -> str:
        return ", ".join(signer.words for signer in self.signers if not signer.doubt)


@dataclass(frozen=True, slots=True)
class UnsignedModel:
    """It may not judge production; `why` is for people."""

    why: str


def signers_of(
    signed: SignatureFile, files: Mapping[str, str], trusted: TrustedKeys
) -> list[Signer]:
    """Everybody who signed exactly these files. Raises `SignatureError` if one signature does not
    hold: then something was changed."""
    for each in signed.signatures:
        check_signature(each, signed.model, files)
    return [
        Signer(each.role, each.who, each.key_id, each.at, _doubt(each, trusted))
        for each in signed.signatures
    ]


def _doubt(signature: Signature, trusted: TrustedKeys) -> str:
    known = trusted.get(signature.key_id)
    if known is None:
        return "the key is not trusted here"
    if not is_one_person(known.who, signature.who):
        return f"the key is {known.who}'s"
    if signature.role not in known.roles:
        return f"the key may sign {' and '.join(known.roles)} only"
    return ""


def missing_for_production(signers: Sequence[Signer], needs_two_people: bool) -> str:
    """What these signatures lack; empty if the model may judge production."""
    counting = [signer for signer in signers if not signer.doubt]
    doubts = "; ".join(f"{s.role} by {s.who}: {s.doubt}" for s in signers if s.doubt)
    why = f" ({doubts})" if doubts else ""
    if not counting:
        return f"no key that is trusted here signed it{why}"
    approvers = [signer for signer in counting if signer.role == "approved"]
    if not approvers:
        return f"nobody whose key is trusted here approved it{why}"
    if not needs_two_people:
        return ""
    trainers = [signer for signer in counting if signer.role == "trained"]
    if not trainers:
        return f"nobody whose key is trusted here signed that they trained it{why}"
    are_two = any(
        not is_one_person(one.who, other.who) and one.key_id != other.key_id
        for one in trainers
        for other in approvers
    )
    return "" if are_two else f"{approvers[0].who} both trained and approved it; two people must"


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _decoded(given: str, size: int, what: str) -> bytes:
    """Of a base64 text that stands for them in the one way there is. Raises `SignatureError`."""
    try:
        data = base64.b64decode(given, validate=True)
    except (binascii.Error, ValueError) as error:
        raise SignatureError(f"the {what} is no base64") from error
    if len(data) != size or _base64(data) != given:
        raise SignatureError(f"the {what} is no base64 of {size} bytes")
    return data
