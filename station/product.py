"""What is inspected here: the configured recipe, checked against this machine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from drivers.camera import CameraInfo
from models.card import ModelCard, ModelError, read_card
from models.registry import exported_model, shipped_model
from station.config import (
    ConfigError,
    Configuration,
    Loaded,
    ModelRecipe,
    Recipe,
    load_recipe,
)
from station.flat_field import FlatField, FlatFieldRefused, load
from station.model_store import ModelStore
from station.promotion import Judging
from station.recipes import RecipeError, RecipeFolder, active_recipe, name_of, parse_name
from station.tiling import Geometry


def load_product(
    configuration: Loaded[Configuration],
    choose: Callable[[Configuration], Loaded[Recipe]] = active_recipe,
) -> Loaded[Recipe]:
    """The recipe that judges here. Raises `ConfigError` if it cannot be used here."""
    try:
        recipe = choose(configuration.value)
    except ConfigError as error:
        raise ConfigError(
            f"{configuration.source}: station.recipe: {error}", error.status
        ) from error
    return fitting(configuration, recipe)


def fitting(configuration: Loaded[Configuration], recipe: Loaded[Recipe]) -> Loaded[Recipe]:
    """The recipe, if this station can inspect by it. Raises `ConfigError`."""
    model_folder(recipe, ModelStore.of(configuration.value))
    camera = configuration.value.camera
    if recipe.value.plate.outline == "whole":
        raise ConfigError(
            f"{recipe.source}: plate.outline: 'whole' is for single pictures (`vqi inspect`); a "
            "belt needs 'level'"
        )
    if camera.type == "simulated":
        geometry_of(recipe, camera.pixel_pitch_mm, camera.width)
    return recipe


def model_folder(recipe: Loaded[Recipe], store: ModelStore | None) -> Path:
    """Where the recipe's model lies: in the folder that it names, in the station's store, or among
    the shipped ones. Raises `ConfigError`."""
    wanted = recipe.value.model
    try:
        if wanted.folder is not None:
            return exported_model(Path(recipe.source).parent / wanted.folder, wanted.id)
        return (store and store.find(wanted.id)) or shipped_model(wanted.id)
    except ModelError as error:
        raise ConfigError(f"{recipe.source}: model.id: {error}") from error


def named_model(configuration: Configuration, name: str) -> tuple[Path, ModelRecipe | None]:
    """Folder of a model by its id, its folder, or the recipe version (ID@VERSION) that names it;
    what that version says of it. Raises `ModelError`, `ConfigError`."""
    store = ModelStore.of(configuration)
    try:
        parse_name(name)
    except RecipeError:
        return store.named(name), None
    recipe = load_recipe(str(RecipeFolder.of(configuration).file(name)))
    folder, wanted = model_folder(recipe, store), recipe.value.model
    if wanted.sha256 not in (None, found := read_card(folder).sha256):
        raise ModelError(f"{folder} holds another model ({found[:12]}) than the recipe names")
    return folder, wanted


def limits_of(
    configuration: Configuration,
    card: ModelCard,
    named: ModelRecipe | None,
    threshold: float | None = None,
) -> tuple[float, float | None]:
    """Threshold and `unsure_above` by which a model would judge here: the given threshold, or that
    of the version that names it, or of the active recipe where it judges by this model, or the
    card's; the doubt of the same, or the card's. Raises `ConfigError`, `ModelError`."""
    if named is None:
        recipe = active_recipe(configuration)
        folder = model_folder(recipe, ModelStore.of(configuration))
        named = recipe.value.model if read_card(folder).sha256 == card.sha256 else None
    own, unsure = (None, None) if named is None else (named.threshold, named.unsure_above)
    own = own if threshold is None else threshold
    found = card.threshold.value if own is None else own
    unsure = card.threshold.unsure_above if unsure is None else unsure
    # A threshold of one's own below the doubt leaves nothing to doubt.
    return found, None if unsure is None else min(unsure, found)


def configured_judging(configuration: Configuration) -> Judging:
    """What judges while nothing was ever activated: the configured recipe, with its model's card
    where it names neither bytes nor threshold. Raises `ConfigError`."""
    recipe = load_recipe(configuration.station.recipe)
    try:
        card = read_card(model_folder(recipe, ModelStore.of(configuration)))
    except ModelError as error:
        raise ConfigError(f"{recipe.source}: model.id: {error}") from error
    model, asks = recipe.value.model, recipe.value.promotion
    threshold, unsure_above = limits_of(configuration, card, model)
    name = name_of(recipe.value.id, recipe.value.version)
    samples = recipe.value.limit_samples.sha256
    return Judging(name, model.sha256 or card.sha256, threshold, asks, unsure_above, samples)


def geometry_of(recipe: Loaded[Recipe], pixel_pitch_mm: float, scan_line_px: int) -> Geometry:
    """The recipe in pixels. Raises `ConfigError` if its lane does not fit in the scan line, or a
    plate not in a record."""
    try:
        return Geometry.of(recipe.value, pixel_pitch_mm, scan_line_px)
    except ValueError as error:
        raise ConfigError(f"{recipe.source}: {error}") from error


def check_strip(configuration: Loaded[Configuration], camera: CameraInfo) -> None:
    """Raises `ConfigError` for a camera that shows parts of the belt only, or does not know where
    the belt is while that matters."""
    if camera.is_frame_triggered:
        raise ConfigError(
            f"{configuration.source}: camera.features: TriggerMode[FrameStart] or [FrameActive] is "
            "On; plates are cut from a strip without gaps, so let frames follow one another and "
            "trigger scan lines at most (TriggerMode[LineStart])"
        )
    if configuration.value.accept is not None and not camera.counts_belt_travel:
        raise ConfigError(
            f"{configuration.source}: accept: camera {camera.serial} takes scan lines also while "
            "the belt stands still, so that nobody knows which plate is at the accept point; let "
            "the belt's encoder trigger them (camera.features: TriggerSource[LineStart], and "
            'TriggerMode[LineStart] = "On"), or leave accept out'
        )


def load_flat_field(configuration: Loaded[Configuration], camera: CameraInfo) -> FlatField | None:
    """The approved flat field of this camera; None where none is configured. Raises
    `ConfigError`."""
    wanted = configuration.value.flat_field
    if wanted is None:
        return None
    try:
        return load(wanted.file, wanted.sha256, camera)
    except FlatFieldRefused as error:
        raise ConfigError(f"{configuration.source}: flat_field.file: {error}") from error
