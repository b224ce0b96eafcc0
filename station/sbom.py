"""What software scored a model: a CycloneDX 1.6 bill of materials of this Python environment.

Written here, in the standard library: a list with versions, licences and hashes is all that is
needed, and cyclonedx-python-lib would bring six packages onto every station for it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import platform
import re
import sys
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any
from urllib.parse import quote

from models.card import ModelCard
from station.record import utc_now

Json = dict[str, Any]
SPEC_VERSION = "1.6"
_RUNTIMES = ("onnxruntime", "openvino")
"""Their libraries are named one by one: they compute the scores."""
_LONGEST_LICENCE_NAME = 80
_SEPARATORS = re.compile(r"[-_.]+")
_LIBRARY = re.compile(r"\.(so|pyd|dll|dylib)(\.[0-9.]+)?$")


def bill_of_materials(subject: Json, processor: str, at: str | None = None) -> Json:
    """What is installed here, for a `subject` (a CycloneDX component). `processor` is named as in
    records."""
    return {
        "$schema": f"http://cyclonedx.org/schema/bom-{SPEC_VERSION}.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": SPEC_VERSION,
        "version": 1,
        "metadata": {"timestamp": at or utc_now(), "component": subject},
        "components": [_interpreter(), _system(), _device(processor), *_packages()],
    }


def model_subject(card: ModelCard) -> Json:
    """The model that it is of."""
    return {
        "type": "machine-learning-model",
        "bom-ref": f"model:{card.id}",
        "name": card.id,
        "description": card.name,
        "hashes": [{"alg": "SHA-256", "content": card.sha256}],
        "licenses": [_licence(card.licence)],
    }


def station_subject(station_id: str, version: str) -> Json:
    """The station that it is of."""
    return {"type": "application", "bom-ref": f"station:{station_id}", "name": station_id,
            "version": version}  # fmt: skip


def as_bytes(bill: Json) -> bytes:
    return json.dumps(bill, indent=1, sort_keys=True).encode() + b"\n"


def _interpreter() -> Json:
    data = Path(sys.executable).resolve().read_bytes()
    return {
        "type": "platform",
        "bom-ref": "python",
        "name": platform.python_implementation(),
        "version": platform.python_version(),
        "hashes": [{"alg": "SHA-256", "content": hashlib.sha256(data).hexdigest()}],
    }


def _system() -> Json:
    libc = " ".join(platform.libc_ver()).strip()
    properties = [{"name": "vqi:libc", "value": libc}] if libc else []
    return {
        "type": "operating-system",
        "bom-ref": "system",
        "name": platform.system(),
        "version": platform.release(),
        "properties": properties,
    }


def _device(processor: str) -> Json:
    return {"type": "device", "bom-ref": "processor", "name": processor}


def _packages() -> list[Json]:
    """Every installed distribution once, by name; what lies first on the path is what runs."""
    found: dict[str, Json] = {}
    for distribution in distributions():
        name = _SEPARATORS.sub("-", str(distribution.metadata["Name"] or "")).lower()
        if name and name not in found:
            found[name] = _package(name, distribution)
    return [found[name] for name in sorted(found)]


def _package(name: str, distribution: Distribution) -> Json:
    version = distribution.version
    purl = f"pkg:pypi/{name}@{quote(version, safe='.')}"
    component: Json = {
        "type": "library",
        "bom-ref": purl,
        "name": name,
        "version": version,
        "purl": purl,
        "licenses": _licences(distribution),
    }
    record = distribution.read_text("RECORD")
    if record:
        # Of the list of installed files with their hashes: the archive's own is not kept by pip.
        sha256 = hashlib.sha256(record.encode()).hexdigest()
        component["properties"] = [{"name": "vqi:record-sha256", "value": sha256}]
    if name in _RUNTIMES:
        component["components"] = _libraries(purl, distribution)
    return component


def _libraries(purl: str, distribution: Distribution) -> list[Json]:
    files = [file for file in distribution.files or () if _LIBRARY.search(file.name)]
    return [
        {
            "type": "file",
            "bom-ref": f"{purl}#{quote(str(file), safe='/._-')}",
            "name": str(file),
            "hashes": [{"alg": "SHA-256", "content": _hex(file.hash.value)}],
        }
        for file in sorted(files)
        if file.hash is not None and file.hash.mode == "sha256"
    ]


def _hex(unpadded: str) -> str:
    try:
        return base64.urlsafe_b64decode(unpadded + "=" * (-len(unpadded) % 4)).hex()
    except binascii.Error:
        return ""


def _licences(distribution: Distribution) -> list[Json]:
    given = distribution.metadata
    expressions, texts = given.get_all("License-Expression"), given.get_all("License")
    if expressions:
        return [{"expression": expressions[0]}]
    text = texts[0].strip() if texts else ""
    if text and "\n" not in text and len(text) <= _LONGEST_LICENCE_NAME:
        return [_licence(text)]
    names = [
        line.rpartition("::")[2].strip()
        for line in given.get_all("Classifier") or ()
        if line.startswith("License ::")
    ]
    return [_licence(name) for name in names]


def _licence(name: str) -> Json:
    return {"license": {"name": name}}
