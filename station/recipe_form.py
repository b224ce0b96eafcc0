"""A recipe key by key: what each means, in which unit and within which bounds, as the recipe's own
model says it; and a recipe made of what a person wrote into a form."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ValidationError

from station.config import Recipe

Kind = Literal["number", "count", "switch", "choice", "text", "words", "pairs", "places"]
"""`words`: several words. `pairs`: codes with their texts. `places`: pairs of numbers."""

_UNITS = {
    "mm": "mm",
    "px": "px",
    "deg": "°",
    "s": "s",
    "c": "°C",
    "days": "d",
    "plates": "plates",
    "level": "0-255",
    "share": "share",
    "contrast": "share",
    "change": "share",
}
_SPECIAL: dict[str, tuple[Kind, str]] = {
    "plate.dot_pitch_map": ("places", "mm"),
    "review.reasons": ("pairs", ""),
    "review.kinds": ("words", ""),
    "review.four_eyes": ("words", ""),
    "promotion.evidence": ("words", ""),
    "model.threshold": ("number", "score"),
    "model.unsure_above": ("number", "score"),
}
# Of a key that may be left out, the schema keeps pydantic's own names.
_LIMITS = {
    "exclusiveMinimum": ">",
    "gt": ">",
    "minimum": "≥",
    "ge": "≥",
    "exclusiveMaximum": "<",
    "lt": "<",
    "maximum": "≤",
    "le": "≤",
    "multipleOf": "= n ×",
}


@dataclass(frozen=True, slots=True)
class RecipeField:
    """One key of a recipe."""

    key: str
    """With its table, as in `plate.width_mm`."""
    kind: Kind
    unit: str
    meaning: str
    bounds: str
    choices: tuple[str, ...]
    default: Any
    """None where there is none, or where leaving it out means something else."""
    is_needed: bool

    @property
    def table(self) -> str:
        """Empty for the keys at the top."""
        return self.key.rpartition(".")[0]


@dataclass(frozen=True, slots=True)
class Mistake:
    """What is wrong with a key; one that names a table is of several of its keys."""

    key: str
    problem: str


class NotARecipe(ValueError):
    """What was written into a form is no recipe."""

    def __init__(self, mistakes: tuple[Mistake, ...]) -> None:
        super().__init__("; ".join(f"{m.key}: {m.problem}" for m in mistakes))
        self.mistakes = mistakes


def fields() -> tuple[RecipeField, ...]:
    """Every key, in the file's order."""
    schema = Recipe.model_json_schema()
    return tuple(_walk(schema, schema["$defs"], ""))


def _walk(node: dict[str, Any], definitions: dict[str, Any], before: str) -> Iterator[RecipeField]:
    needed = node.get("required", ())
    inner = {name: _inner(part, definitions) for name, part in node["properties"].items()}
    for name, part in node["properties"].items():
        if inner[name] is None:
            yield _field(f"{before}{name}", part, definitions, name in needed)
    for name, table in inner.items():
        if table is not None:
            yield from _walk(table, definitions, f"{name}.")


def _inner(part: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any] | None:
    """The table that a key names; None if it is a value."""
    name = part.get("$ref", "").rpartition("/")[2]
    found: dict[str, Any] = definitions.get(name, {})
    return found if "properties" in found else None


def _field(
    key: str, part: dict[str, Any], definitions: dict[str, Any], is_needed: bool
) -> RecipeField:
    shape = next((one for one in part.get("anyOf", [part]) if one.get("type") != "null"), part)
    name = key.rpartition(".")[2]
    kind, unit = _SPECIAL.get(key, (_kind(shape), _UNITS.get(name.rpartition("_")[2], "")))
    choices = shape.get("enum") or shape.get("items", {}).get("enum", ())
    return RecipeField(
        key=key,
        kind=kind,
        unit=unit,
        meaning=part.get("description", ""),
        bounds=_bounds(shape),
        choices=tuple(map(str, choices)),
        default=part.get("default"),
        is_needed=is_needed,
    )


def _kind(shape: dict[str, Any]) -> Kind:
    if "enum" in shape:
        return "choice"
    kinds: dict[str, Kind] = {"number": "number", "integer": "count", "boolean": "switch"}
    return kinds.get(shape.get("type", ""), "text")


def _bounds(shape: dict[str, Any]) -> str:
    return ", ".join(f"{word} {shape[key]:.12g}" for key, word in _LIMITS.items() if key in shape)


# --- values ---------------------------------------------------------------------------------------


def flat(recipe: Recipe) -> dict[str, Any]:
    """Every key's value, as it is in force; None where it is left out and has no default."""
    dump = recipe.model_dump(mode="json")
    values = {}
    for one in fields():
        place: Any = dump
        for part in one.key.split("."):
            place = place[part]
        values[one.key] = place
    return values


@dataclass(frozen=True, slots=True)
class Difference:
    """A key that two recipes have otherwise."""

    key: str
    before: Any
    after: Any


def differences(before: Recipe, after: Recipe) -> list[Difference]:
    """Of what they say; that their numbers differ says nothing."""
    old, new = flat(before), flat(after)
    keys = [key for key in old if key != "version" and old[key] != new[key]]
    return [Difference(key, old[key], new[key]) for key in keys]


def written(kind: Kind, value: Any) -> str:
    """A value as a form shows it; empty where it is left out."""
    if value is None:
        return ""
    match kind:
        case "words":
            return ", ".join(value)
        case "pairs":
            return "\n".join(f"{code} = {text}" for code, text in value.items())
        case "places":
            return ", ".join(f"{_number(place)}: {_number(pitch)}" for place, pitch in value)
        case "switch":
            return "true" if value else "false"
        case "number":
            return _number(value)
    return str(value)


def _number(value: float) -> str:
    """Short, where that says the same number."""
    short = f"{value:.12g}"
    return short if float(short) == value else repr(value)


def read_form(given: Mapping[str, str], base: Recipe | None = None) -> Recipe:
    """The recipe of a form's texts, by their keys; an empty one leaves its key out. A text that is
    as the form of `base` shows it says what `base` says. Raises `NotARecipe`."""
    known = {one.key: one for one in fields()}
    strange = sorted(given.keys() - known.keys())
    if strange:
        raise NotARecipe((Mistake(strange[0], "there is no such key"),))
    before = {} if base is None else flat(base)
    table: dict[str, Any] = {}
    for key, text in given.items():
        value = _said(known[key].kind, text, before.get(key))
        if value is not None:
            *tables, name = key.split(".")
            place = table.setdefault(tables[0], {}) if tables else table
            place[name] = value
    for name in ("plate", "model"):
        table.setdefault(name, {})
    try:
        return Recipe.model_validate(table)
    except ValidationError as error:
        raise NotARecipe(tuple(_mistakes(error))) from error


def _said(kind: Kind, text: str, before: Any) -> Any:
    """None leaves the key out."""
    text = "\n".join(text.split("\r\n")).strip()
    if text == written(kind, before).strip():
        return before
    return _value(kind, text) if text else None


def _value(kind: Kind, text: str) -> Any:
    """What a text says; the text itself where it says nothing of the kind: the model refuses it."""
    try:
        match kind:
            case "number":
                return float(text.replace(",", "."))
            case "count":
                return int(text)
            case "switch":
                return {"true": True, "false": False}.get(text, text)
            case "words":
                return [word.strip() for word in text.split(",") if word.strip()]
            case "pairs":
                return dict(_pair(line) for line in text.splitlines() if line.strip())
            case "places":
                return [[float(part) for part in one.split(":")] for one in text.split(",")]
    except ValueError:
        pass
    return text


def _pair(line: str) -> tuple[str, str]:
    code, sign, text = line.partition("=")
    if not sign:
        raise ValueError(line)
    return code.strip(), text.strip()


def _mistakes(error: ValidationError) -> Iterator[Mistake]:
    for item in error.errors(include_url=False):
        parts = [str(part) for part in item["loc"][:2]]
        problem = item["msg"].removeprefix("Value error, ")
        yield Mistake(".".join(parts), f"{problem[0].lower()}{problem[1:]}")


# --- the file -------------------------------------------------------------------------------------


def as_toml(recipe: Recipe) -> str:
    """The recipe as a file in which every key stands: another default of a later program changes
    nothing."""
    dump = recipe.model_dump(mode="json", exclude_none=True)
    tables = {name: value for name, value in dump.items() if isinstance(value, dict)}
    lines = [_line(name, value) for name, value in dump.items() if name not in tables]
    for name, table in tables.items():
        inner = {key: value for key, value in table.items() if isinstance(value, dict)}
        lines += ["", f"[{name}]"]
        lines += [_line(key, value) for key, value in table.items() if key not in inner]
        for key, pairs in inner.items():
            lines += ["", f"[{name}.{key}]", *(_line(code, text) for code, text in pairs.items())]
    return "\n".join(lines) + "\n"


def _line(key: str, value: Any) -> str:
    return f"{key} = {_toml(value)}"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else "nan"
    if isinstance(value, str):
        # JSON's escapes are TOML's, but for DEL, which JSON leaves as it is.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value)
