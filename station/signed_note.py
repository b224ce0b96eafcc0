"""Checkpoints as text that a key signs: a signed note (C2SP signed-note, tlog-checkpoint).

Signing and checking take the `cryptography` library, which only whoever does either imports.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

PUBLIC_KEY = "proof.pub"
"""Beside the log: what its checkpoints are checked with, PEM."""
CREDENTIAL = "vqi_log-key.pem"
"""As systemd names log-key.pem in the folder that the unit's `LoadCredential=vqi:` names."""
_ED25519 = b"\x01"
"""Signature type of the signed note."""
_NOTE = re.compile(
    r"(?P<text>(?P<origin>\S+)\n(?P<size>0|[1-9][0-9]*)\n(?P<root>\S+)\n"
    r"plates (?P<plates>0|[1-9][0-9]*) (?P<plates_root>\S+)\n"
    r"head (?P<head>[0-9a-f]{64})\n"
    r"time (?P<at>\S+)\n)\n(?:— (?P<name>\S+) (?P<signature>\S+)\n)?"
)


class SigningKeyError(Exception):
    """There is no such key, or it cannot be used; the message says why and what to do."""


class NoteError(Exception):
    """This is no checkpoint, or not a signed one; the message says why."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What is signed: the log's first `size` rows as two tree heads, their last chain value and
    when, by the station's clock."""

    origin: str
    size: int
    root: bytes
    plates: int
    """Results that these rows are about."""
    plates_root: bytes
    head: str
    """Chain value of row `size`."""
    at: str

    def text(self) -> str:
        """The bytes that are signed, in UTF-8."""
        return (
            f"{self.origin}\n{self.size}\n{_base64(self.root)}\n"
            f"plates {self.plates} {_base64(self.plates_root)}\n"
            f"head {self.head}\ntime {self.at}\n"
        )


def origin_of(station_id: str) -> str:
    return f"vqi/{station_id}"


def parsed(note: str) -> Checkpoint:
    """What a note says, signed or not. Raises `NoteError`."""
    found = _matched(note)
    checkpoint = Checkpoint(
        origin=found["origin"],
        size=int(found["size"]),
        root=_bytes(found["root"], 32),
        plates=int(found["plates"]),
        plates_root=_bytes(found["plates_root"], 32),
        head=found["head"],
        at=found["at"],
    )
    if checkpoint.text() != found["text"]:
        raise NoteError("this checkpoint is not written as checkpoints are")
    return checkpoint


def is_signed(note: str) -> bool:
    return _matched(note)["signature"] is not None


def signed(checkpoint: Checkpoint, key: Ed25519PrivateKey | None) -> str:
    """The note; without a key one that nobody signed."""
    text = checkpoint.text()
    if key is None:
        return f"{text}\n"
    public = key.public_key().public_bytes_raw()
    signature = _key_id(checkpoint.origin, public) + key.sign(text.encode())
    return f"{text}\n— {checkpoint.origin} {_base64(signature)}\n"


def check_signature(note: str, public: bytes) -> None:
    """Raises `NoteError` if this key did not sign this note."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    found = _matched(note)
    if found["signature"] is None:
        raise NoteError("this checkpoint is not signed")
    signature = _bytes(found["signature"], 68)
    if found["name"] != found["origin"] or signature[:4] != _key_id(found["origin"], public):
        raise NoteError("this checkpoint was signed with another key")
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature[4:], found["text"].encode())
    except InvalidSignature as error:
        raise NoteError("this checkpoint is not the one that was signed") from error


# --- keys ---------------------------------------------------------------------------------------


def make_key(private: Path, public: Path) -> str:
    """Make a key and its public half, neither in the place of another; the public key's
    fingerprint. Raises `SigningKeyError`."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    for path in (private, public):
        if path.exists():
            raise SigningKeyError(
                f"{path}: is there already; what it signed needs it: keep it elsewhere"
            )
    key = Ed25519PrivateKey.generate()
    data = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    _write_new(private, data, 0o600)
    _write_new(public, public_pem(key.public_key().public_bytes_raw()), 0o644)
    return fingerprint(key.public_key().public_bytes_raw())


def load_key(key_file: Path | None, credential: str = CREDENTIAL) -> Ed25519PrivateKey | None:
    """The given key, or else the unit's credential; None where there is neither. Raises
    `SigningKeyError`."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    path = key_file or _credential(credential)
    if path is None:
        return None
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise SigningKeyError(
            f"{path}: the signing key cannot be read: {error.strerror}"
        ) from error
    except (ValueError, TypeError) as error:
        raise SigningKeyError(f"{path}: no private key in PEM: {error}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise SigningKeyError(f"{path}: an Ed25519 key is needed (`vqi log key make`)")
    return key


def read_public(path: Path) -> bytes:
    """The 32 bytes of a public key file. Raises `SigningKeyError`."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(path.read_bytes())
    except OSError as error:
        raise SigningKeyError(f"{path}: the public key cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise SigningKeyError(f"{path}: no public key in PEM: {error}") from error
    if not isinstance(key, Ed25519PublicKey):
        raise SigningKeyError(f"{path}: not an Ed25519 public key")
    return key.public_bytes_raw()


def public_pem(public: bytes) -> bytes:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    key = Ed25519PublicKey.from_public_bytes(public)
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def fingerprint(public: bytes) -> str:
    """How people tell a key from another: the sha256 of its 32 bytes."""
    return hashlib.sha256(public).hexdigest()


def _credential(name: str) -> Path | None:
    path = Path(os.environ.get("CREDENTIALS_DIRECTORY", "/nonexistent")) / name
    return path if path.exists() else None


def _write_new(path: Path, data: bytes, mode: int) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)
    except OSError as error:
        raise SigningKeyError(f"{path}: cannot be written: {error.strerror}") from error


def _key_id(name: str, public: bytes) -> bytes:
    return hashlib.sha256(name.encode() + b"\n" + _ED25519 + public).digest()[:4]


def _matched(note: str) -> dict[str, str]:
    found = _NOTE.fullmatch(note)
    if found is None:
        raise NoteError("this is no checkpoint of a log")
    return found.groupdict()


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _bytes(given: str, size: int) -> bytes:
    """Of a base64 text that stands for them in the one way there is. Raises `NoteError`."""
    try:
        data = base64.b64decode(given, validate=True)
    except (binascii.Error, ValueError) as error:
        raise NoteError(f"{given[:80]!r} is no base64") from error
    if len(data) != size or _base64(data) != given:
        raise NoteError(f"{given[:80]!r} is no base64 of {size} bytes")
    return data
