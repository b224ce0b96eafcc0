"""Signed models: whatever was changed is refused with its reason, before it is in the store."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from model_rig import APPROVER, SHIPPED, TRAINER, People
from station_rig import Rig, vqi
from typer.testing import CliRunner

from models.card import CARD_FILE, GOLDEN_FILE, MODEL_FILE, ModelError, sha256_of
from models.classifier import Classifier
from models.registry import shipped_model
from station.cli.model import app
from station.config import load_configuration, load_recipe
from station.judge import vouched
from station.log_reader import Reader
from station.log_verify import verify
from station.model_desk import ModelDesk, ModelRefused, signed_bundle
from station.model_signatures import (
    SBOM_FILE,
    SIGNATURES_FILE,
    SignatureError,
    SignedModel,
    UnsignedModel,
    read_trusted,
    sign_files,
    trusted_entry,
)
from station.model_store import (
    Bundle,
    ModelRegister,
    ModelStore,
    imported_change,
    judge_bundle,
    model_register,
    pack,
    read_archive,
    read_bundle,
    read_folder,
)
from station.recipe_desk import Desk
from station.recipes import RecipeError
from station.sbom import bill_of_materials, station_subject
from station.signing import journal_at_hand

Json = dict[str, Any]
OTHER = "plant-model-1"


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> People:
    people = People(tmp_path_factory.mktemp("people"))
    people.write()
    return people


@pytest.fixture(scope="module")
def given(people: People) -> Bundle:
    """A model of another station: our weights under another id, signed by both."""
    return people.sign(renamed(OTHER))


def renamed(id: str) -> Bundle:
    files = dict(read_folder(shipped_model(SHIPPED)).files)
    files[CARD_FILE] = with_card(files[CARD_FILE], id=id)
    return Bundle(id, files)


def with_card(card: bytes, **changes: Any) -> bytes:
    return json.dumps({**json.loads(card), **changes}).encode()


@pytest.fixture
def desk(tmp_path: Path, people: People) -> ModelDesk:
    rig = Rig(tmp_path, tables=people.tables)
    return ModelDesk(load_configuration(str(rig.write())), ModelRegister())


def refusal(desk: ModelDesk, bundle: Bundle) -> str:
    """Why it is not taken in; nothing of it is in the store then."""
    with pytest.raises(ModelRefused) as caught:
        desk.take_in(bundle, "Carla", "a file")
    left = [path.name for path in desk.store.path.glob("*")] if desk.store.path.exists() else []
    assert [name for name in left if name != ".lock"] == []
    return str(caught.value)


# --- what was changed ----------------------------------------------------------------------------


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def one_bit_of_the_weights(bundle: Bundle) -> Bundle:
    return bundle.with_file(MODEL_FILE, flipped(bundle.files[MODEL_FILE], 900_000))


def a_figure_of_the_card(bundle: Bundle) -> Bundle:
    card = json.loads(bundle.files[CARD_FILE])
    card["measured"][0]["value"] = 0.01
    return bundle.with_file(CARD_FILE, json.dumps(card).encode())


def another_golden_tile(bundle: Bundle) -> Bundle:
    """In the place of the first one, with card and hash made to fit."""
    tiles = np.load(io.BytesIO(bundle.files[GOLDEN_FILE]))["tiles"].copy()
    tiles[0] = tiles[1]
    return with_golden(bundle, tiles)


def with_golden(bundle: Bundle, tiles: np.ndarray[Any, Any]) -> Bundle:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, tiles=tiles)
    card = json.loads(bundle.files[CARD_FILE])
    card["golden"]["sha256"] = sha256_of(buffer.getvalue())
    changed = bundle.with_file(GOLDEN_FILE, buffer.getvalue())
    return changed.with_file(CARD_FILE, json.dumps(card).encode())


def golden_tiles_alone(bundle: Bundle) -> Bundle:
    changed = another_golden_tile(bundle).files[GOLDEN_FILE]
    return bundle.with_file(GOLDEN_FILE, changed)


def golden_scores_to_match(bundle: Bundle) -> Bundle:
    """Tile and score edited alike: everything agrees but the signature."""
    tiles = np.load(io.BytesIO(bundle.files[GOLDEN_FILE]))["tiles"].copy()
    tiles[0] = tiles[1]
    changed = with_golden(bundle, tiles)
    card = json.loads(changed.files[CARD_FILE])
    card["golden"]["scores"][0] = card["golden"]["scores"][1]
    return changed.with_file(CARD_FILE, json.dumps(card).encode())


def edit_signature(bundle: Bundle, **changes: Any) -> Bundle:
    file = json.loads(bundle.files[SIGNATURES_FILE])
    file["signatures"][0].update(changes)
    return bundle.with_file(SIGNATURES_FILE, json.dumps(file).encode())


def one_letter_of_the_signature(bundle: Bundle) -> Bundle:
    was = json.loads(bundle.files[SIGNATURES_FILE])["signatures"][0]["signature"]
    return edit_signature(bundle, signature=("B" if was[0] == "A" else "A") + was[1:])


@pytest.mark.parametrize(
    ("tamper", "reason"),
    [
        (one_bit_of_the_weights, rf"{MODEL_FILE}: changed since {TRAINER} \(trained\) signed it"),
        (a_figure_of_the_card, rf"{CARD_FILE}: changed since {TRAINER} \(trained\) signed it"),
        (another_golden_tile, "changed since .* signed it"),
        (golden_tiles_alone, rf"{GOLDEN_FILE}: changed since"),
        (golden_scores_to_match, rf"{CARD_FILE}: changed since"),
        (one_letter_of_the_signature, rf"signature of {TRAINER} \(trained\) does not hold"),
        (lambda b: edit_signature(b, who=APPROVER), rf"signature of {APPROVER} .* does not hold"),
        (lambda b: edit_signature(b, role="approved"), "does not hold"),
        (lambda b: edit_signature(b, at="2020-01-01T00:00:00.000000Z"), "does not hold"),
        (lambda b: edit_signature(b, role="owner"), r"signatures\.0\.role: Input should be"),
        (lambda b: edit_signature(b, public_key="!"), "public key is no base64"),
        (lambda b: edit_signature(b, extra=1), "Extra inputs are not permitted"),
        (lambda b: b.with_file(SBOM_FILE, b"{}"), rf"{SBOM_FILE}: changed since"),
    ],
)
def test_a_changed_model_is_refused(
    desk: ModelDesk, given: Bundle, tamper: Callable[[Bundle], Bundle], reason: str
) -> None:
    found = refusal(desk, tamper(given))
    assert re.search(reason, found), found


def test_signatures_of_another_model_are_refused(desk: ModelDesk, given: Bundle) -> None:
    """Taken over whole, and with the id made to fit."""
    other = renamed("plant-model-2").with_file(SBOM_FILE, given.files[SBOM_FILE])
    moved = other.with_file(SIGNATURES_FILE, given.files[SIGNATURES_FILE])
    assert f"of the model {OTHER}" in refusal(desk, moved)
    file = json.loads(given.files[SIGNATURES_FILE]) | {"model": "plant-model-2"}
    assert "does not hold" in refusal(
        desk, moved.with_file(SIGNATURES_FILE, json.dumps(file).encode())
    )


def test_a_golden_tile_that_was_swapped_before_signing_is_found_by_its_score(
    desk: ModelDesk, people: People
) -> None:
    swapped = people.sign(another_golden_tile(renamed(OTHER)))
    assert "golden scores differ by" in refusal(desk, swapped)


def test_golden_scores_that_are_no_numbers_are_refused(desk: ModelDesk, people: People) -> None:
    """Nothing differs from them, whatever the weights are."""
    bundle = renamed(OTHER)
    card = json.loads(bundle.files[CARD_FILE])
    card["golden"]["scores"] = [float("nan")] * len(card["golden"]["scores"])
    changed = people.sign(bundle.with_file(CARD_FILE, json.dumps(card).encode()))
    assert "golden.scores.0: Input should be a finite number" in refusal(desk, changed)


def test_what_is_signed_is_what_was_loaded(tmp_path: Path, people: People, given: Bundle) -> None:
    """The same weights, under a card that somebody put back after it was read."""
    rig = Rig(tmp_path, tables=people.tables)
    folder = tmp_path / OTHER
    folder.mkdir()
    for name, data in given.files.items():
        (folder / name).write_bytes(data)
    rig.recipe_lines = f'folder = "{folder}"\n'
    loaded = load_configuration(str(rig.write()))
    file = Path(loaded.value.station.recipe)
    file.write_text(file.read_text().replace(SHIPPED, OTHER))
    recipe = load_recipe(str(file))
    signed = (folder / CARD_FILE).read_bytes()
    card = json.loads(signed)
    card["threshold"]["value"] = 0.999
    (folder / CARD_FILE).write_text(json.dumps(card))
    classifier = Classifier.load(folder)
    (folder / CARD_FILE).write_bytes(signed)
    found = vouched(loaded.value, recipe, classifier)
    assert isinstance(found, UnsignedModel)
    assert found.why == f"{folder}: changed since the station loaded it"
    assert isinstance(vouched(loaded.value, recipe, Classifier.load(folder)), SignedModel)


def test_files_that_do_not_belong_together_are_refused(desk: ModelDesk, people: People) -> None:
    """Signed, but wrong when they were."""
    model = people.sign(one_bit_of_the_weights(renamed(OTHER)))
    assert f"{MODEL_FILE}: sha256" in refusal(desk, model)
    card = renamed(OTHER).files[CARD_FILE]
    other_id = renamed(OTHER).with_file(CARD_FILE, with_card(card, id="somebody-else"))
    assert "the card of somebody-else" in refusal(desk, people.sign(other_id))
    damaged = people.sign(renamed(OTHER).with_file(CARD_FILE, b"{"))
    assert "not a model card" in refusal(desk, damaged)


def test_another_model_under_a_shipped_id_is_refused(desk: ModelDesk, people: People) -> None:
    changed = people.sign(a_figure_of_the_card(read_folder(shipped_model(SHIPPED))))
    assert "another model than the lightdefectnet-v3 that comes with" in refusal(desk, changed)


# --- whose word counts ---------------------------------------------------------------------------


def test_a_key_that_is_not_trusted_counts_for_nothing(desk: ModelDesk) -> None:
    stranger = People(desk.store.path)
    found = refusal(desk, stranger.sign(renamed(OTHER)))
    assert "no key that is trusted here signed it" in found
    assert "the key is not trusted here" in found
    assert "nobody signed it" in refusal(desk, renamed(OTHER))


def test_a_key_in_another_role_or_name_counts_for_nothing(desk: ModelDesk, people: People) -> None:
    both_by_trainer = People(
        people.folder,
        {"trained": people.keys["trained"], "approved": people.keys["trained"]},
        {"trained": TRAINER, "approved": TRAINER},
    )
    settings = desk.configuration.value
    judged = judge_bundle(settings, both_by_trainer.sign(renamed(OTHER)))
    assert isinstance(judged, UnsignedModel)
    assert "nobody whose key is trusted here approved it" in judged.why
    assert "the key may sign trained only" in judged.why
    as_another = People(people.folder, people.keys, {"trained": TRAINER, "approved": "Mallory"})
    judged = judge_bundle(settings, as_another.sign(renamed(OTHER)))
    assert isinstance(judged, UnsignedModel)
    assert f"the key is {APPROVER}'s" in judged.why


def test_two_people_are_needed_unless_the_plant_says_otherwise(
    tmp_path: Path, people: People
) -> None:
    key = Ed25519PrivateKey.generate()
    one = People(tmp_path, {"trained": key, "approved": key}, {"trained": "Eve", "approved": "EVE"})
    one.file.write_text(
        trusted_entry("Eve", key.public_key().public_bytes_raw(), ["trained", "approved"])
    )
    bundle = one.sign(renamed(OTHER))
    for needs_two, is_enough in ((True, False), (False, True)):
        tables = f"{one.tables}needs_two_people = {str(needs_two).lower()}\n"
        settings = load_configuration(str(Rig(tmp_path, tables=tables).write())).value
        judged = judge_bundle(settings, bundle)
        assert isinstance(judged, SignedModel) == is_enough
        if isinstance(judged, UnsignedModel):
            assert "both trained and approved it; two people must" in judged.why
    without = people.sign(renamed(OTHER), "approved")
    settings = load_configuration(str(Rig(tmp_path, tables=people.tables).write())).value
    judged = judge_bundle(settings, without)
    assert isinstance(judged, UnsignedModel)
    assert "signed that they trained it" in judged.why


def test_a_key_file_that_others_can_write_counts_for_nothing(
    tmp_path: Path, people: People
) -> None:
    path = tmp_path / "keys.toml"
    path.write_bytes(people.file.read_bytes())
    path.chmod(0o644)
    assert len(read_trusted(path)) == 2
    for mode in (0o664, 0o646):
        path.chmod(mode)
        with pytest.raises(SignatureError, match="must belong to root"):
            read_trusted(path)
    path.chmod(0o644)
    os.chown(path, 12345, -1)
    with pytest.raises(SignatureError, match="must belong to root"):
        read_trusted(path)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no list of"),
        ("[[key]]\nwho = 1", "no list of"),
        ('[[key]]\nwho = "A"\npublic_key = "AA=="\nroles = ["trained"]', "of A: .* 32 bytes"),
        ('[[key]]\nwho = "A"\npublic_key = "AA=="\nroles = []', "no list of"),
        ('[[key]]\nwho = "A"\npublic_key = "AA=="\nroles = ["boss"]', "no list of"),
    ],
)
def test_a_key_file_that_is_none_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(text)
    with pytest.raises(SignatureError, match=reason):
        read_trusted(path, owner=os.getuid())


def test_a_commissioned_line_takes_up_no_recipe_of_an_unsigned_model(
    tmp_path: Path, people: People
) -> None:
    commissioned = f'[commissioning]\nfile = "{tmp_path}/commissioning.json"\n'
    rig = Rig(tmp_path, tables=people.tables + commissioned)
    configuration = load_configuration(str(rig.write()))
    desk = Desk.at(configuration)
    with pytest.raises(RecipeError, match=r"may not judge production: .* no key that is trusted"):
        desk.test(desk.active())
    store = ModelStore.of(configuration.value)
    store.add(people.sign(read_folder(shipped_model(SHIPPED))), nothing)
    desk.test(desk.active())


def test_without_trusted_keys_no_model_is_signed(tmp_path: Path, given: Bundle) -> None:
    settings = load_configuration(str(Rig(tmp_path).write())).value
    judged = judge_bundle(settings, given)
    assert isinstance(judged, UnsignedModel)
    assert "no trusted keys are configured" in judged.why


# --- archives and folders ------------------------------------------------------------------------


def test_an_archive_is_the_same_bytes_and_the_same_model(tmp_path: Path, given: Bundle) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(pack(given))
    again = read_archive(path)
    assert (again.id, again.files) == (given.id, dict(given.files))
    assert pack(again) == path.read_bytes()


def an_archive(*members: tuple[tarfile.TarInfo, bytes], mode: Any = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for member, data in members:
            member.size = member.size or len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def a_link(kind: bytes, target: str) -> tarfile.TarInfo:
    member = tarfile.TarInfo(f"{OTHER}/{CARD_FILE}")
    member.type, member.linkname = kind, target
    return member


def a_zip_bomb() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{OTHER}/{CARD_FILE}", bytes(10**7))
    return buffer.getvalue()


def a_sparse_bomb() -> bytes:
    """A hole of 8 GB in 512 bytes (GNU sparse, old form)."""
    member = tarfile.TarInfo(f"{OTHER}/{MODEL_FILE}")
    header = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    header[156:157] = b"S"
    header[483:495] = b"%011o\0" % (8 * 10**9 % 8**11)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + bytes(1024)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (an_archive((tarfile.TarInfo("../card.json"), b"{}")), "no model's id"),
        (an_archive((tarfile.TarInfo("/etc/passwd"), b"x")), "no model's id"),
        (an_archive((tarfile.TarInfo(f"{OTHER}/../../x"), b"x")), "no file of a model"),
        (an_archive((tarfile.TarInfo(f"{OTHER}/run.py"), b"x")), "no file of a model"),
        (an_archive((a_link(tarfile.SYMTYPE, "/etc/shadow"), b"")), "not a plain file"),
        (an_archive((a_link(tarfile.LNKTYPE, "/etc/shadow"), b"")), "not a plain file"),
        (an_archive((a_link(tarfile.CHRTYPE, ""), b"")), "not a plain file"),
        (an_archive((a_link(tarfile.FIFOTYPE, ""), b"")), "not a plain file"),
        (
            an_archive(
                (tarfile.TarInfo(f"{OTHER}/{CARD_FILE}"), b"{}"),
                (tarfile.TarInfo(f"{OTHER}/{CARD_FILE}"), b"[]"),
            ),
            "there twice",
        ),
        (
            an_archive(
                (tarfile.TarInfo(f"{OTHER}/{CARD_FILE}"), b"{}"),
                (tarfile.TarInfo(f"another/{MODEL_FILE}"), b"x"),
            ),
            "of another model",
        ),
        (an_archive((tarfile.TarInfo(f"{OTHER}/{CARD_FILE}"), bytes(1_000_001))), "larger than"),
        (an_archive((tarfile.TarInfo(f"{OTHER}/{CARD_FILE}"), b"{}"), mode="w:gz"), "uncompressed"),
        (a_zip_bomb(), "uncompressed"),
        (a_sparse_bomb(), "not a plain file"),
        (b"", "empty"),
        (bytes(10_000), "empty"),
        (b"x" * 10_000, "uncompressed"),
        (an_archive((tarfile.TarInfo(f"{OTHER}/{CARD_FILE}"), b"{}")), f"{MODEL_FILE} is missing"),
    ],
)
def test_a_hostile_archive_is_refused(tmp_path: Path, data: bytes, reason: str) -> None:
    path = tmp_path / "bad.tar"
    path.write_bytes(data)
    with pytest.raises(ModelError, match=reason):
        read_archive(path)


def test_an_archive_that_is_cut_is_refused_at_every_length(tmp_path: Path, given: Bundle) -> None:
    whole = pack(given)
    path = tmp_path / "cut.tar"
    end = len(whole) - len(whole.rstrip(b"\0"))
    for size in range(0, len(whole) - end, 150_001):
        path.write_bytes(whole[:size])
        with pytest.raises(ModelError):
            read_archive(path)


def test_links_and_strange_files_of_a_folder_are_refused(tmp_path: Path, given: Bundle) -> None:
    folder = tmp_path / OTHER
    folder.mkdir()
    for name, data in given.files.items():
        (folder / name).write_bytes(data)
    assert read_bundle(folder).digest == given.digest
    (folder / "run.py").write_text("")
    with pytest.raises(ModelError, match=r"run\.py: no file of a model"):
        read_bundle(folder)
    (folder / "run.py").unlink()
    (folder / MODEL_FILE).rename(tmp_path / "elsewhere.onnx")
    (folder / MODEL_FILE).symlink_to(tmp_path / "elsewhere.onnx")
    with pytest.raises(ModelError, match="cannot be read as a plain file"):
        read_bundle(folder)
    (folder / MODEL_FILE).unlink()
    os.mkfifo(folder / MODEL_FILE)
    with pytest.raises(ModelError, match="not a plain file"):
        read_bundle(folder)


def test_golden_tiles_that_unpack_to_more_than_they_are_are_refused(tmp_path: Path) -> None:
    bundle = with_golden(renamed(OTHER), np.zeros((4_000, 1, 224, 224), np.uint8))
    folder = tmp_path / OTHER
    folder.mkdir()
    for name, data in bundle.files.items():
        (folder / name).write_bytes(data)
    assert len(bundle.files[GOLDEN_FILE]) < 1_000_000
    with pytest.raises(ModelError, match=r"golden\.npz: tiles are .* uint8 \(8, 1, 224, 224\)"):
        Classifier.load(folder).golden_tiles()


# --- the store -----------------------------------------------------------------------------------


def nothing(_: Path) -> None:
    """A check that every model passes."""


def test_a_model_never_changes_and_its_signatures_grow(
    tmp_path: Path, people: People, given: Bundle
) -> None:
    store = ModelStore(tmp_path / "store")
    first = people.sign(renamed(OTHER).with_file(SBOM_FILE, given.files[SBOM_FILE]), "trained")
    assert store.add(first, nothing)
    assert not store.add(first, nothing), "there is nothing to do"
    card = with_card(first.files[CARD_FILE], name="Another")
    with pytest.raises(ModelError, match="a model never changes: give it another id"):
        store.add(first.with_file(CARD_FILE, card), nothing)
    approval = sign_files(OTHER, first.hashes, "approved", APPROVER, people.keys["approved"])
    store.sign(OTHER, approval)
    folder = store.find(OTHER)
    assert folder is not None
    roles = [each.role for each in read_folder(folder).signed.signatures]
    assert roles == ["trained", "approved"]
    assert all(path.stat().st_mode & 0o222 == 0 for path in folder.iterdir())
    assert read_folder(folder).digest == first.digest


def test_a_model_without_a_bill_is_not_signed_where_it_lies(
    desk: ModelDesk, people: People
) -> None:
    """The bill would change it: the row would name another model than the one in the store."""
    desk.take_in(renamed(OTHER), "Carla", "a file", allows_unsigned=True)
    signed, signature, _ = signed_bundle(
        desk.named(OTHER), "trained", TRAINER, people.keys["trained"]
    )
    with pytest.raises(ModelRefused, match=f"has no {SBOM_FILE}, which is signed, too"):
        desk.sign_stored(signed, signature, TRAINER)
    assert SIGNATURES_FILE not in desk.named(OTHER).files


def test_an_import_that_died_before_its_row_writes_it_the_next_time(
    desk: ModelDesk, given: Bundle
) -> None:
    first = desk.take_in(given, "Carla", "a file").row
    again = desk.take_in(given, "Carla", "a file").row
    assert first is not None
    assert again is not None
    assert first.detail == again.detail
    known = model_register([again.as_json()])
    assert ModelDesk(desk.configuration, known).take_in(given, "Carla", "a file").row is None


def test_what_fails_its_trial_leaves_nothing(tmp_path: Path, given: Bundle) -> None:
    store = ModelStore(tmp_path / "store")

    def refuse(folder: Path) -> None:
        assert read_folder(folder).files == given.files
        raise ModelError("no")

    def meddle(folder: Path) -> None:
        (folder / CARD_FILE).unlink()
        (folder / CARD_FILE).write_bytes(b"{}")

    for check in (refuse, meddle):
        with pytest.raises(ModelError):
            store.add(given, check)
        assert store.folders() == {}
        assert [path.name for path in store.path.iterdir()] == [".lock"]


_STEPS = {"os.rename", "os.mkdir", "os.rmdir", "os.remove", "open", "shutil.rmtree"}


def killed_at(step: int, store: ModelStore, bundle: Bundle) -> bool:
    """Take a model in, in a process that is killed at its so-many-eth step in the store's folder;
    False if it came to its end before."""
    child = os.fork()
    if child == 0:
        steps = 0

        def die(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal steps
            if event in _STEPS and str(store.path) in str(arguments[0]):
                steps += 1
                if steps == step:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(die)
        try:
            store.add(bundle, nothing)
        except BaseException:  # noqa: BLE001  the parent's tests must not go on here
            os._exit(3)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -signal.SIGKILL)
    return status != 0


def test_a_kill_at_any_step_leaves_the_model_whole_or_not_there(
    tmp_path: Path, people: People, given: Bundle
) -> None:
    """First of an import, then of a signature that is added; what is left is settled by the next
    one."""
    trained = Bundle(
        OTHER,
        {name: data for name, data in given.files.items() if name != SIGNATURES_FILE},
    )
    trained = people.sign(trained, "trained")
    both = people.sign(trained, "approved")
    for number, bundle in enumerate((trained, both)):
        step, seen, is_killed = 1, set[int](), True
        while is_killed:
            store = ModelStore(tmp_path / f"store-{number}-{step}")
            if number:
                store.add(trained, nothing)
            is_killed = killed_at(step, store, bundle)
            folders = store.folders()
            for folder in folders.values():
                found = read_folder(folder)
                assert found.digest == given.digest
                seen.add(len(found.signed.signatures))
            if not folders:
                seen.add(0)
            store.add(bundle, nothing)
            assert list(store.folders()) == [OTHER]
            left = {path.name for path in store.path.iterdir()}
            assert left == {".lock", OTHER}, "what the killed one left is gone"
            step += 1
        assert step > 8, "it died at every step"
        assert seen == ({1, 2} if number else {0, 1})


def test_rows_that_may_not_follow_are_refused() -> None:
    def row(what: str, id: str = OTHER, digest: str = "a" * 64, who: str = "Carla") -> Json:
        detail = {"id": id, "digest": digest}
        return {"what": what, "who": who, "detail": detail}

    known = model_register([row("model_imported"), {"what": "start", "who": "", "detail": {}}])
    assert known.digests == {OTHER: "a" * 64}
    assert known.objection(row("model_imported")) == ""
    assert known.objection(row("model_signed")) == ""
    assert "never changes" in known.objection(row("model_imported", digest="b" * 64))
    assert "never changes" in known.objection(row("model_signed", digest="b" * 64))
    assert "no row says that it came in" in known.objection(row("model_signed", id="other"))
    assert "names a model's id" in known.objection(row("model_imported", id="../x"))
    assert "no name" in known.objection(row("model_imported", who=""))
    assert model_register([row("model_imported"), row("model_imported", digest="c" * 64)]) == known


# --- the commands --------------------------------------------------------------------------------


def test_a_key_is_made_for_a_name_that_may_sign(tmp_path: Path) -> None:
    key, quoted = tmp_path / "key.pem", 'Anna "Ann" B'
    words = ["keygen", "--out", str(key), "--role", "trained", "--who"]
    refused = CliRunner().invoke(app, [*words, "Jürgen"])
    assert refused.exit_code == 2
    assert "not printable ASCII" in refused.stderr
    assert not key.exists()
    made = command(*words, quoted)
    (entry,) = tomllib.loads(made["entry"])["key"]
    assert entry["who"] == quoted


def test_a_model_goes_from_one_station_to_another(tmp_path: Path, people: People) -> None:
    """Keys made, a shipped model signed by two at the first station, packed, taken in elsewhere."""
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    keys = tmp_path / "keys.toml"
    entries = []
    for who, role in ((TRAINER, "trained"), (APPROVER, "approved")):
        made = command("keygen", "--out", f"{tmp_path}/{role}.pem", "--who", who, "--role", role)
        entries.append(made["entry"])
        assert (tmp_path / f"{role}.pem").stat().st_mode & 0o077 == 0
    keys.write_text("".join(entries))
    tables = f'[models]\ntrusted_keys = "{keys}"\n'
    rigs = [Rig(tmp_path / name, tables=tables) for name in ("first", "second")]
    configs = [str(rig.write()) for rig in rigs]
    for who, role in ((TRAINER, "trained"), (APPROVER, "approved")):
        key = f"{tmp_path}/{role}.pem"
        options = ("--role", role, "--key", key, "--who", who, "--config", configs[0])
        signed = command("sign", SHIPPED, *options)
    archive = tmp_path / "model.tar"
    command("pack", SHIPPED, "--archive", str(archive), "--config", configs[0])
    taken = command("import", str(archive), "--who", "Carla", "--config", configs[1])
    assert taken["may_judge_production"]
    assert taken["digest"] == signed["digest"]
    assert command("import", str(archive), "--config", configs[1])["row"] is None
    listed = command("list", "--config", configs[1])
    assert (listed["place"], listed["active"], listed["is_in_log"]) == ("store", True, True)
    assert TRAINER in listed["signed_by"]
    bill = json.loads((Path(listed["folder"]) / SBOM_FILE).read_text())
    assert bill["metadata"]["component"]["hashes"][0]["content"] == listed["sha256"]
    for rig, whats in zip(
        rigs, (["model_imported", "model_signed", "model_signed"], ["model_imported"]), strict=True
    ):
        with Reader(rig.journal) as reader:
            rows = reader.model_changes()
            assert verify(reader).findings == []
        assert [row["what"] for row in rows] == whats
        assert {row["detail"]["digest"] for row in rows} == {signed["digest"]}
    other = people.sign(read_folder(shipped_model(SHIPPED)))
    row = imported_change("test-1", other, [], "Mallory", "nowhere")
    with journal_at_hand(configs[1], load_configuration(configs[1]).value) as journal:
        answer = journal.submit([row])
    assert not answer["ok"]
    assert "a model never changes" in answer["error"]
    model = Path(listed["folder"]) / MODEL_FILE
    model.chmod(0o644)
    model.write_bytes(flipped(model.read_bytes(), 900_000))
    listed = command("list", "--config", configs[1])
    assert not listed["may_judge_production"]
    assert f"{MODEL_FILE}: changed since {TRAINER}" in listed["problem"]


def command(*arguments: str) -> Json:
    """What `vqi model` prints with --json, run here: a journal process is real, and so is the one
    that a model is tried in. Fails the test if it fails."""
    done = CliRunner().invoke(app, [*arguments, "--json"])
    assert done.exit_code == 0, done.output
    found: Json = json.loads(done.stdout)
    return found


def test_a_refused_import_says_why_and_ends_with_status_1(
    tmp_path: Path, people: People, given: Bundle
) -> None:
    archive = tmp_path / "bad.tar"
    archive.write_bytes(pack(one_bit_of_the_weights(given)))
    config = str(Rig(tmp_path, tables=people.tables).write())
    done = vqi("model", "import", str(archive), "--config", config)
    assert done.returncode == 1
    assert f"{OTHER} is not taken in: {MODEL_FILE}: changed since" in done.stderr


def test_the_bill_names_what_computes_the_scores() -> None:
    bill = bill_of_materials(station_subject("line-1", "1.0"), "a processor")
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    by_name = {component["name"]: component for component in bill["components"]}
    runtime = by_name["onnxruntime"]
    assert runtime["purl"] == f"pkg:pypi/onnxruntime@{runtime['version']}"
    assert any("onnxruntime" in file["name"] for file in runtime["components"])
    assert all(len(file["hashes"][0]["content"]) == 64 for file in runtime["components"])
    assert by_name["numpy"]["licenses"]
    assert by_name["a processor"]["type"] == "device"
    references = [component["bom-ref"] for component in bill["components"]]
    assert len(set(references)) == len(references)
