"""People with keys, whom a rig's station trusts, and models that they signed."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from station_rig import Rig

from models.card import read_card
from models.registry import shipped_model
from station.model_signatures import (
    SBOM_FILE,
    SIGNATURES_FILE,
    Role,
    sign_files,
    trusted_entry,
)
from station.model_store import Bundle, ModelStore, read_folder
from station.sbom import as_bytes, bill_of_materials, model_subject

SHIPPED = "lightdefectnet-v3"
TRAINER, APPROVER = "Anna Trainer", "Bob Approver"


@dataclass
class People:
    """One who trains and one who approves."""

    folder: Path
    keys: dict[Role, Ed25519PrivateKey] = field(
        default_factory=lambda: {
            "trained": Ed25519PrivateKey.generate(),
            "approved": Ed25519PrivateKey.generate(),
        }
    )
    names: dict[Role, str] = field(
        default_factory=lambda: {"trained": TRAINER, "approved": APPROVER}
    )

    @property
    def file(self) -> Path:
        return self.folder / "model-keys.toml"

    @property
    def tables(self) -> str:
        """Of a configuration that trusts them."""
        return f'[models]\ntrusted_keys = "{self.file}"\n'

    def write(self) -> None:
        """Their file of trusted keys, which counts only if it is root's."""
        if os.getuid() != 0:
            pytest.skip("needs root: trusted keys count only in a file of root's")
        self.file.write_text(
            "".join(
                trusted_entry(self.names[role], key.public_key().public_bytes_raw(), [role])
                for role, key in self.keys.items()
            )
        )
        self.file.chmod(0o644)

    def sign(self, bundle: Bundle, *roles: Role) -> Bundle:
        """With a bill of materials and the signatures of these roles, or of both."""
        card = read_card(shipped_model(SHIPPED)) if SBOM_FILE not in bundle.files else None
        if card is not None:
            bill = bill_of_materials(model_subject(card), "a processor")
            bundle = bundle.with_file(SBOM_FILE, as_bytes(bill))
        for role in roles or ("trained", "approved"):
            signature = sign_files(
                bundle.id, bundle.hashes, role, self.names[role], self.keys[role]
            )
            bundle = bundle.with_signature(signature)
        return bundle

    def sign_folder(self, folder: Path) -> None:
        signed = self.sign(read_folder(folder))
        for name in (SBOM_FILE, SIGNATURES_FILE):
            (folder / name).write_bytes(signed.files[name])


def trust_shipped(rig: Rig) -> People:
    """Put the shipped model, signed by both, into the rig's store, and let the rig trust them."""
    people = People(rig.folder)
    people.write()
    store = rig.folder / "models"
    rig.station = {**rig.station, "model_dir": str(store)}
    ModelStore(store).add(people.sign(read_folder(shipped_model(SHIPPED))), lambda _: None)
    return people
