"""What people do with models: sign them, take them in. Each step that changes the station's store
gives the row that is submitted to the journal process once the files are durable."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from models.card import MODEL_FILE, ModelError
from models.probe import Probed, probe
from models.registry import list_models
from models.runtimes import processor_name
from station.config import Configuration, Loaded
from station.log_reader import Reader
from station.model_signatures import (
    SBOM_FILE,
    Role,
    Signature,
    SignatureError,
    Signer,
    sign_files,
    signers_of,
)
from station.model_store import (
    Bundle,
    ModelRegister,
    ModelStore,
    check_bundle,
    imported_change,
    model_register,
    named_bundle,
    read_folder,
    signed_change,
    trusted_keys,
    try_bundle,
)
from station.qms import DATABASE, StoreError
from station.record import ChangeBody
from station.sbom import as_bytes, bill_of_materials, model_subject

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


class ModelRefused(Exception):
    """It is not signed or not taken in; the message says why."""


@dataclass(frozen=True, slots=True)
class TakenIn:
    """A model that is in the store."""

    bundle: Bundle
    signers: tuple[Signer, ...]
    row: ChangeBody | None
    """None where the log says so already."""


def read_model_register(directory: Path) -> ModelRegister:
    """What the log in this folder says of models; nothing where there is no log yet. Raises
    `ModelRefused`."""
    if not (directory / DATABASE).exists():
        return ModelRegister()
    try:
        with Reader(directory) as reader:
            return model_register(reader.model_changes())
    except StoreError as error:
        raise ModelRefused(str(error)) from error


def with_bill(bundle: Bundle) -> Bundle:
    """With the bill of materials of what runs it here, where it has none. Raises `ModelError`."""
    if SBOM_FILE in bundle.files:
        return bundle
    bill = bill_of_materials(model_subject(check_bundle(bundle)), processor_name())
    return bundle.with_file(SBOM_FILE, as_bytes(bill))


def signed_bundle(
    bundle: Bundle, role: Role, who: str, key: Ed25519PrivateKey
) -> tuple[Bundle, Signature, Probed]:
    """The same with one more signature, once it has been tried here: nobody vouches for what does
    not run. Raises `ModelRefused`."""
    try:
        whole = with_bill(bundle)
        check_bundle(whole)
        signers_of(whole.signed, whole.hashes, {})
        probed = try_bundle(whole, probe)
        signature = sign_files(whole.id, whole.hashes, role, who, key)
        return whole.with_signature(signature), signature, probed
    except (ModelError, SignatureError) as error:
        raise ModelRefused(f"{bundle.id}: not signed: {error}") from error


@dataclass(frozen=True, slots=True)
class ModelDesk:
    """One look at a station's models."""

    configuration: Loaded[Configuration]
    known: ModelRegister

    @classmethod
    def at(cls, configuration: Loaded[Configuration]) -> ModelDesk:
        """Raises `ModelRefused`."""
        return cls(configuration, read_model_register(configuration.value.journal.directory))

    @property
    def store(self) -> ModelStore:
        return ModelStore.of(self.configuration.value)

    def take_in(
        self, bundle: Bundle, who: str, source: str, allows_unsigned: bool = False
    ) -> TakenIn:
        """Put a model into the store: its signatures hold and one of them counts here, card and
        golden tiles are its own, and it has been tried in a process of its own. It is durable in
        the store before its row. Raises `ModelRefused`, OSError."""
        settings = self.configuration.value
        try:
            signers = signers_of(bundle.signed, bundle.hashes, trusted_keys(settings))
            check_bundle(bundle)
            _must_count(signers, allows_unsigned)
            self._must_be_its_own(bundle)
            row = imported_change(settings.station.id, bundle, signers, who, source)
            problem = self.known.objection(row.as_json())
            if problem:
                raise ModelError(problem)
            is_changed = self.store.add(bundle, probe)
        except (ModelError, SignatureError) as error:
            raise ModelRefused(f"{bundle.id} is not taken in: {error}") from error
        is_said = not is_changed and bundle.id in self.known.digests
        return TakenIn(bundle, tuple(signers), None if is_said else row)

    def sign_stored(self, bundle: Bundle, signature: Signature, who: str) -> tuple[ChangeBody, ...]:
        """Add a signature to a model; one that is not in the store, as a shipped one, comes in with
        it. The rows that say so. Raises `ModelRefused`, OSError."""
        station_id = self.configuration.value.station.id
        row = signed_change(station_id, bundle, signature, who)
        there = self.store.find(bundle.id)
        if there is None:
            came_in = self.take_in(bundle, who, "shipped").row
            return (row,) if came_in is None else (came_in, row)
        try:
            # The row names what was signed; a bill of materials, too, would change the model.
            if read_folder(there).digest != bundle.digest:
                raise ModelError(
                    f"{there} has no {SBOM_FILE}, which is signed, too: sign the archive or folder "
                    "that it came from, under another id, and import that"
                )
            self.store.sign(bundle.id, signature)
        except (ModelError, SignatureError) as error:
            raise ModelRefused(f"{bundle.id}: not signed: {error}") from error
        return (row,)

    def named(self, name: str) -> Bundle:
        """Raises `ModelRefused`."""
        try:
            return named_bundle(name, self.store)
        except ModelError as error:
            raise ModelRefused(str(error)) from error

    def _must_be_its_own(self, bundle: Bundle) -> None:
        """A shipped model's id is no other's. Raises `ModelError`."""
        shipped = list_models().get(bundle.id)
        if shipped is None:
            return
        ours = named_bundle(str(shipped), None).hashes
        if any(bundle.hashes[name] != sha256 for name, sha256 in ours.items()):
            raise ModelError(
                f"another model than the {bundle.id} that comes with this program "
                f"({MODEL_FILE} or its card differs); give it another id"
            )


def _must_count(signers: list[Signer], allows_unsigned: bool) -> None:
    """Raises `SignatureError`."""
    if allows_unsigned or any(not signer.doubt for signer in signers):
        return
    doubts = "; ".join(signer.words for signer in signers) or "nobody signed it"
    raise SignatureError(
        f"no key that is trusted here signed it: {doubts}. Have it signed, or add the key to "
        "[models] trusted_keys"
    )
