"""`vqi model keygen`, `sign`, `import`, `pack`, `list`, `show` and `sbom`: who vouches for a model,
and how it gets into a station."""

from __future__ import annotations

import contextlib
import getpass
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from models.card import ModelCard, ModelError, read_card
from models.runtimes import processor_name
from station.cli.common import JsonOption, fail, load_or_exit, print_json, say
from station.config import ConfigError, Configuration, Loaded
from station.ingress import name_problem
from station.model_desk import ModelDesk, ModelRefused, signed_bundle
from station.model_signatures import (
    ROLES,
    SIGNATURES_FILE,
    Role,
    SignatureError,
    SignedModel,
    UnsignedModel,
    signers_of,
    trusted_entry,
)
from station.model_store import (
    Bundle,
    ModelStore,
    all_models,
    check_bundle,
    judge_bundle,
    judge_folder,
    named_bundle,
    pack,
    read_bundle,
    read_folder,
    trusted_keys,
)
from station.product import load_product, model_folder
from station.record import ChangeBody
from station.release import program_version
from station.sbom import as_bytes, bill_of_materials, station_subject
from station.signed_note import SigningKeyError, load_key, make_key, read_public
from station.signing import SigningError, journal_at_hand

CREDENTIAL = "vqi_model-key.pem"
"""As systemd names model-key.pem in the folder that the unit's `LoadCredential=vqi:` names."""

Json = dict[str, Any]
ConfigIfAny = Annotated[
    str | None,
    typer.Option("--config", envvar="VQI_CONFIG", metavar="FILE", help="The station's."),
]
NameArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="Id in the store, shipped id, folder or archive.")
]
RoleOption = Annotated[str, typer.Option(help="trained or approved.")]
WhoOption = Annotated[str | None, typer.Option(help="Who does it. Default: the user.")]


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    """What cannot be done, as one line and exit status 1."""
    try:
        yield
    except (ModelRefused, ModelError, SignatureError, SigningError, SigningKeyError) as error:
        fail(str(error))
    except OSError as error:
        fail(f"{error.filename or 'the store'}: {error.strerror}")


def _roles(given: Sequence[str]) -> tuple[Role, ...]:
    roles = tuple(role for role in ROLES if role in given)
    if len(roles) != len(given):
        fail(f"--role is one of {', '.join(ROLES)}", 2)
    return roles


def keygen(
    out: Annotated[Path, typer.Option(help="File of the private key; FILE.pub beside it.")],
    who: Annotated[str, typer.Option(help="Whose key it is.")],
    role: Annotated[list[str], typer.Option(help="What it may sign: trained, approved.")],
    is_json: JsonOption = False,
) -> None:
    """Make a person's key, and print what root puts into the file of trusted keys."""
    roles = _roles(role)
    if problem := name_problem("--who", who):
        fail(problem, 2)
    with _refusals():
        public = out.with_name(out.name + ".pub")
        name = make_key(out, public)
        entry = trusted_entry(who, read_public(public), roles)
    if is_json:
        print_json({"key": name, "private": str(out), "public": str(public), "entry": entry})
        return
    say(f"{out}: keep it secret, away from the station; its fingerprint is {name}")
    say("put this into the stations' file of trusted keys ([models] trusted_keys), as root:")
    typer.echo(f"\n{entry}", nl=False)


def sign(
    model: NameArgument,
    role: RoleOption,
    config: ConfigIfAny = None,
    key: Annotated[
        Path | None, typer.Option(help="Private key; default: the credential model-key.pem.")
    ] = None,
    who: WhoOption = None,
    is_json: JsonOption = False,
) -> None:
    """Vouch for a model: it is tried in a process of its own, then every file of it is signed.
    With --config one in the station's store, or a shipped one, which comes into the store so."""
    chosen = _roles([role])[0]
    with _refusals():
        private = load_key(key, CREDENTIAL)
        if private is None:
            fail("say which key signs: --key FILE, made by `vqi model keygen`", 2)
        desk = None if config is None else ModelDesk.at(load_or_exit(config))
        bundle = desk.named(model) if desk else named_bundle(model, None)
        signer = who or getpass.getuser()
        signed, signature, probed = signed_bundle(bundle, chosen, signer, private)
        keys = trusted_keys(desk.configuration.value) if desk else None
        place, rows = _keep(desk, model, signed, bundle, signature, signer)
    doubt = "" if keys is None else signers_of(signed.signed, signed.hashes, keys)[-1].doubt
    if is_json:
        print_json(
            {"id": signed.id, "digest": signed.digest, "role": chosen, "who": signer,
             "key": signature.key_id, "folder": place, "rows": rows,
             "doubt": doubt, "ms_per_tile": probed.ms_per_tile}
        )  # fmt: skip
    else:
        written = f", row {', '.join(map(str, rows))}" if rows else ""
        say(f"{signed.id} signed as {chosen} by {signer} (key {signature.key_id[:12]}){written}")
        say(f"{place}: digest {signed.digest}, {probed.ms_per_tile:.2f} ms a tile here")
        if doubt:
            say(f"warning: it does not count at this station: {doubt}")


def _keep(
    desk: ModelDesk | None, name: str, signed: Bundle, before: Bundle, signature: Any, who: str
) -> tuple[str, list[int]]:
    """Where it lies, and the numbers of the rows."""
    folder = Path(name)
    is_folder = (folder / "card.json").is_file()
    if is_folder and not (desk and folder.resolve().parent == desk.store.path.resolve()):
        _write_beside(folder, signed, before)
        return str(folder), []
    if desk is None or folder.is_file():
        fail(f"{name}: name its folder, or give --config for one of a station's store", 2)
    rows = desk.sign_stored(signed, signature, who)
    return str(desk.store.path / signed.id), _submit(desk.configuration, rows)


def _write_beside(folder: Path, signed: Bundle, before: Bundle) -> None:
    """The new files of a folder that is no station's, the signatures last."""
    new = [name for name in signed.files if before.files.get(name) != signed.files[name]]
    for name in sorted(new, key=lambda each: each == SIGNATURES_FILE):
        temporary = folder / f".{name}.new"
        with temporary.open("wb") as file:
            file.write(signed.files[name])
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(folder / name)


def _submit(loaded: Loaded[Configuration], rows: Sequence[ChangeBody]) -> list[int]:
    """Their numbers in the log. Raises `ModelRefused`, `SigningError`."""
    numbers = []
    with journal_at_hand(loaded.source, loaded.value) as journal:
        for row in rows:
            answer = journal.submit([row])
            if not answer["ok"]:
                raise ModelRefused(f"the journal refused the row: {answer['error']}")
            numbers.append(int(answer["seq"][0]))
    return numbers


def import_(
    source: Annotated[Path, typer.Argument(help="A model's folder, or its archive.")],
    config: Annotated[str, typer.Option("--config", envvar="VQI_CONFIG", metavar="FILE")],
    who: WhoOption = None,
    allows_unsigned: Annotated[
        bool,
        typer.Option("--unsigned", help="Also without a trusted signature; never for production."),
    ] = False,
    is_json: JsonOption = False,
) -> None:
    """Take a model into the store: signatures, hashes, card, graph and golden scores are held
    against each other before anything of it is there; whole or not at all."""
    with _refusals():
        desk = ModelDesk.at(load_or_exit(config))
        bundle = read_bundle(source)
        taken = desk.take_in(bundle, who or getpass.getuser(), source.name, allows_unsigned)
        rows = _submit(desk.configuration, [taken.row] if taken.row else [])
        judged = judge_bundle(desk.configuration.value, read_folder(desk.store.path / bundle.id))
    row = {
        "id": bundle.id,
        "digest": bundle.digest,
        "signers": [signer.words for signer in taken.signers],
        "may_judge_production": isinstance(judged, SignedModel),
        "problem": judged.why if isinstance(judged, UnsignedModel) else "",
        "row": rows[0] if rows else None,
    }
    if is_json:
        print_json(row)
        return
    said = f"row {rows[0]}" if rows else "it was there already"
    say(f"{bundle.id} is in the store, {said}; {_signed_words(judged)}")


def pack_(
    model: NameArgument,
    archive: Annotated[Path, typer.Option(help="File to write, .tar.")],
    config: ConfigIfAny = None,
    is_json: JsonOption = False,
) -> None:
    """One archive for other stations; the same model gives the same bytes."""
    with _refusals():
        settings = load_or_exit(config).value if config else None
        bundle = named_bundle(model, ModelStore.of(settings) if settings else None)
        check_bundle(bundle)
        signers = signers_of(bundle.signed, bundle.hashes, {})
        data = pack(bundle)
        archive.parent.mkdir(parents=True, exist_ok=True)
        with archive.open("xb") as file:
            file.write(data)
    people = [f"{signer.role} by {signer.who}" for signer in signers]
    if is_json:
        print_json({"id": bundle.id, "digest": bundle.digest, "archive": str(archive),
                    "bytes": len(data), "signers": people})  # fmt: skip
    else:
        say(f"{archive}: {bundle.id}, {len(data)} bytes, {', '.join(people) or 'not signed'}")


def list_(config: ConfigIfAny = None, is_json: JsonOption = False) -> None:
    """Models that a recipe can name; with --config the station's store too, and who signed them."""
    with _refusals():
        loaded = load_or_exit(config) if config else None
        store = ModelStore.of(loaded.value) if loaded else None
        rows = [_row(name, folder, loaded, store) for name, folder in all_models(store).items()]
    for row in rows:
        if is_json:
            print_json(row)
        else:
            say("  ".join(f"{key} {_shown(value)}" for key, value in row.items()))


def _row(
    name: str, folder: Path, loaded: Loaded[Configuration] | None, store: ModelStore | None
) -> Json:
    try:
        card = read_card(folder)
    except ModelError as error:  # one damaged model hides no other
        return {"id": name, "folder": str(folder), "problem": str(error)}
    row: Json = {
        "id": name,
        "sha256": card.sha256,
        "parameters": card.parameters,
        "mflops": card.mflops,
        "threshold": card.threshold.value,
        "folder": str(folder),
    }
    if loaded is None or store is None:
        return row
    judged = judge_folder(loaded.value, folder)
    known = ModelDesk.at(loaded).known.digests.get(name)
    return row | {
        "place": "store" if folder.parent == store.path else "shipped",
        "signed_by": judged.words if isinstance(judged, SignedModel) else "",
        "may_judge_production": isinstance(judged, SignedModel),
        "active": folder == _active_folder(loaded),
        "problem": judged.why if isinstance(judged, UnsignedModel) else "",
        "is_in_log": known is not None,
    }


def _active_folder(loaded: Loaded[Configuration]) -> Path | None:
    with contextlib.suppress(ConfigError):
        return model_folder(load_product(loaded), ModelStore.of(loaded.value))
    return None


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value) or "-"


def show(model: NameArgument, config: ConfigIfAny = None, is_json: JsonOption = False) -> None:
    """A model's card, files and signatures, and whether each holds here. Exit 1 if one does not."""
    with _refusals():
        settings = load_or_exit(config).value if config else None
        bundle = named_bundle(model, ModelStore.of(settings) if settings else None)
        card = check_bundle(bundle)
        keys = trusted_keys(settings) if settings else {}
        signers = signers_of(bundle.signed, bundle.hashes, keys)
    row: Json = {
        "id": bundle.id,
        "digest": bundle.digest,
        "files": bundle.hashes,
        **_card_words(card),
        "signatures": [
            {"role": s.role, "who": s.who, "at": s.at, "key": s.key_id, "doubt": s.doubt}
            for s in signers
        ],
    }
    if settings:
        judged = judge_bundle(settings, bundle)
        row["may_judge_production"] = isinstance(judged, SignedModel)
        row["problem"] = judged.why if isinstance(judged, UnsignedModel) else ""
    if is_json:
        print_json(row)
        return
    for key, value in row.items():
        if key == "files":
            for name, sha256 in value.items():
                say(f"{name:22} {sha256}")
        elif key == "signatures":
            for signer in signers:
                say(f"{'signed':22} {signer.words} at {signer.at}")
        else:
            say(f"{key:22} {_shown(value)}")


def _card_words(card: ModelCard) -> Json:
    return {
        "name": card.name,
        "created_at": card.created_at,
        "parameters": card.parameters,
        "mflops": card.mflops,
        "threshold": card.threshold.value,
        "licence": card.licence,
    }


def sbom(
    config: Annotated[str, typer.Option("--config", envvar="VQI_CONFIG", metavar="FILE")],
    out: Annotated[Path | None, typer.Option(help="File to write; else on stdout.")] = None,
) -> None:
    """What software this station runs, as CycloneDX JSON."""
    subject = station_subject(load_or_exit(config).value.station.id, program_version())
    data = as_bytes(bill_of_materials(subject, processor_name()))
    if out is None:
        typer.echo(data.decode(), nl=False)
        return
    with _refusals():
        out.write_bytes(data)
    say(f"{out}: {len(data)} bytes")


def _signed_words(judged: SignedModel | UnsignedModel) -> str:
    if isinstance(judged, SignedModel):
        return f"may judge production: {judged.words}"
    return f"may not judge production: {judged.why}"


COMMANDS: dict[str, Callable[..., None]] = {
    "keygen": keygen,
    "sign": sign,
    "import": import_,
    "pack": pack_,
    "list": list_,
    "show": show,
    "sbom": sbom,
}
