"""What support needs to know of a station, whether it runs, hangs, is dead or cannot be configured.

Each part is gathered by itself, within a time and a size; one that cannot be gathered is named with
its reason in the manifest. Pictures and secrets are left out unless they are asked for; part
serials and people's names become pseudonyms that hold within one archive.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import io
import json
import os
import platform
import re
import secrets
import sqlite3
import subprocess
import sys
import tarfile
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from serial.tools.list_ports import comports

from models.runtimes import processor_name
from station.config import ConfigError, load_configuration, shipped_path
from station.ipc import SOCKETS, Json
from station.log_reader import Reader
from station.processes import ask_all, process_figures, temperatures_c
from station.qms import DATABASE, IMAGES
from station.recipes import active_recipe
from station.record import utc_now
from station.redaction import REDACTED, redact, redact_text, secrets_in
from station.release import program_version

DEFAULT_CONFIG = Path("/etc/vqi/station.toml")
_MOST_PART_BYTES: Final = 2_000_000
_MOST_PICTURE_BYTES: Final = 200_000_000
_PART_LIMIT_S: Final = 60.0
_COMMAND_LIMIT_S: Final = 50.0
_ASK_TIMEOUT_S: Final = 1.0
_ROWS: Final = 200
_LOG_LINES: Final = 5000
_PERSONAL: Final = (
    *("part_id", "who", "reviewer", "operator", "lot", "account"),
    *("job_id", "serial", "serials", "value"),
)
"""Fields of a row that name a part or a person."""
_WORDS: Final = {
    "review": ("reason", "note"),
    "hold": ("why",),
    "restored": ("why",),
    "release": ("why",),
    "clock": ("why",),
}
"""Where rows of a kind hold what a person wrote."""
_OUR_COMMAND: Final = re.compile(r"^ *\d+ (\S*/)?(vqi |python\S* .*(/vqi |\bstation\.))")
_FIGURES: Final = re.compile(r"[0-9A-Fa-fTZ:.+-]*")
"""A hash, a number, a time: what a person's words are not."""
_PEOPLE_IN_LINE: Final = re.compile(r'(?P<name>"(?:person|address|who)": )"(?:[^"\\]|\\.)*"')
_STATE_NAMESPACE = "vqi"
_MOST_FILES = 2000
_SHORTEST_SECRET = 4
"""A shorter one is only taken out where its name stands: it occurs by chance."""


class NotHere(Exception):
    """A part that cannot be gathered; the message says why."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What may be in the archive."""

    has_pictures: bool = False
    has_secrets: bool = False


@dataclass(frozen=True, slots=True)
class Place:
    """Where things lie, as far as it can be known."""

    source: str | None
    text: str
    """Of the configuration; empty if there is none that can be read."""
    table: Json
    """The same as TOML; empty if it is none."""
    problem: str
    """Why the configuration does not hold; empty if it does."""

    @classmethod
    def of(cls, source: str | None) -> Place:
        """Raises nothing: a broken configuration is what support is asked about."""
        if source is None:
            source = str(DEFAULT_CONFIG) if DEFAULT_CONFIG.exists() else None
        if source is None:
            return cls(None, "", {}, f"no --config is given and {DEFAULT_CONFIG} does not exist")
        text, table, problem = "", dict[str, Any](), ""
        try:
            load_configuration(source)
        except ConfigError as error:
            problem = str(error)
        with contextlib.suppress(OSError):
            text = _file_of(source, "").read_bytes().decode(errors="replace")
        with contextlib.suppress(tomllib.TOMLDecodeError):
            table = tomllib.loads(text)
        return cls(source, text, table, problem)

    def path(self, section: str, key: str) -> Path:
        """Raises `NotHere` if the configuration names no such path."""
        values = self.table.get(section)
        found = values.get(key) if isinstance(values, dict) else None
        if not isinstance(found, str):
            raise NotHere(f"the configuration names no {section}.{key}")
        return Path(found)

    @property
    def journal(self) -> Path:
        return self.path("journal", "directory")

    @property
    def runtime_dir(self) -> Path:
        return self.path("station", "runtime_dir")


def _file_of(source: str, folder: str) -> Path:
    name = source.removeprefix("shipped:")
    return shipped_path(f"{folder}{name}.toml") if source.startswith("shipped:") else Path(source)


# --- the archive --------------------------------------------------------------------------------


@dataclass(slots=True)
class Archive:
    """A .tar.gz in memory with a manifest; bounded."""

    wanted: Wanted
    secrets: frozenset[str] = frozenset()
    """Texts that must not be in it."""
    entries: list[Json] = field(default_factory=list)
    left_out: list[Json] = field(default_factory=list)
    _buffer: io.BytesIO = field(default_factory=io.BytesIO)
    _tar: tarfile.TarFile = field(init=False)

    def __post_init__(self) -> None:
        self._tar = tarfile.open(  # noqa: SIM115  `close` closes it
            fileobj=self._buffer, mode="w:gz", compresslevel=6
        )

    def add_text(self, name: str, text: str) -> None:
        """Add text without secrets; what is too long loses its middle."""
        data = self._cleaned(text).encode(errors="backslashreplace")
        if len(data) > _MOST_PART_BYTES:
            half = _MOST_PART_BYTES // 2
            data = data[:half] + b"\n[... cut ...]\n" + data[-half:]
            self.leave_out(name, f"its middle: longer than {_MOST_PART_BYTES} bytes")
        self.add_bytes(name, data)

    def add_bytes(self, name: str, data: bytes) -> None:
        """Add as it is; for pictures, and for text that was looked through."""
        self._write(name, data)
        sha256 = hashlib.sha256(data).hexdigest()
        self.entries.append({"name": name, "bytes": len(data), "sha256": sha256})

    def leave_out(self, what: str, why: str) -> None:
        self.left_out.append({"what": what, "why": self._cleaned(why)})

    def close(self) -> bytes:
        """The whole archive, its manifest last."""
        manifest = {
            "made_at": utc_now(),
            "version": program_version(),
            "with_pictures": self.wanted.has_pictures,
            "with_secrets": self.wanted.has_secrets,
            "in": self.entries,
            "left_out": self.left_out,
        }
        self._write("manifest.json", _json(manifest).encode())
        self._tar.close()
        return self._buffer.getvalue()

    def _cleaned(self, text: str) -> str:
        if self.wanted.has_secrets:
            return text
        text = redact_text(text)
        for secret in self.secrets:
            text = text.replace(secret, REDACTED)
        return text

    def _write(self, name: str, data: bytes) -> None:
        member = tarfile.TarInfo(f"vqi-doctor/{name}")
        member.size, member.mtime, member.mode = len(data), int(time.time()), 0o600
        self._tar.addfile(member, io.BytesIO(data))


@dataclass(slots=True)
class Part:
    """What one part found. Its thread fills it, and may go on when nobody waits for it any more;
    the archive is touched by the main thread alone."""

    wanted: Wanted
    text: str | None = None
    files: list[tuple[str, bytes]] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, default=str) + "\n"


def examine(source: str | None, wanted: Wanted, parts: frozenset[str] | None = None) -> Archive:
    """Gather everything, or the named parts only; takes a minute a part at most."""
    place = Place.of(source)
    known = (secret for secret in secrets_in(place.table) if len(secret) >= _SHORTEST_SECRET)
    archive = Archive(wanted, frozenset(known))
    if not wanted.has_pictures:
        archive.leave_out("pictures", "not asked for; see --with-pictures")
    if not wanted.has_secrets:
        archive.leave_out("secrets, part serials, names", "not asked for; see --with-secrets")
    for name, gather in _PARTS.items():
        if parts is None or name in parts:
            _gather(archive, name, partial(gather, place))
    return archive


def _gather(
    archive: Archive, name: str, gather: Callable[[Part], str], limit_s: float = _PART_LIMIT_S
) -> None:
    """One part, on a thread that is left behind if a dead disk or device holds it."""
    part = Part(archive.wanted)
    problem: list[str] = []

    def run() -> None:
        try:
            part.text = gather(part)
        except NotHere as error:
            problem.append(str(error))
        except Exception as error:  # noqa: BLE001  what is broken is named, and the rest gathered
            problem.append(f"{type(error).__name__}: {error}")

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(limit_s)
    if thread.is_alive() or part.text is None:
        archive.leave_out(name, *(problem or [f"it took longer than {limit_s:g} s"]))
        return
    archive.add_text(name, part.text)
    for file, data in part.files:
        archive.add_bytes(file, data)
    for what, why in part.left_out:
        archive.leave_out(what, why)


# --- parts --------------------------------------------------------------------------------------


def _versions(place: Place, part: Part) -> str:
    packages = {item.metadata["Name"]: item.version for item in metadata.distributions()}
    return _json(
        {
            "version": program_version(),
            "at": utc_now(),
            "monotonic_s": time.monotonic(),
            "timezone": time.tzname,
            "python": sys.version,
            "sqlite": sqlite3.sqlite_version,
            "kernel": platform.platform(),
            "system": _os_release(),
            "processor": processor_name(),
            "cores": os.cpu_count(),
            "boot_id": _read(Path("/proc/sys/kernel/random/boot_id")).strip(),
            "memory": _read(Path("/proc/meminfo")).splitlines()[:5],
            "load": os.getloadavg(),
            "temperatures_c": temperatures_c(),
            "user": os.getuid(),
            "packages": dict(sorted(packages.items(), key=lambda item: str(item[0]).lower())),
        }
    )


def _os_release() -> dict[str, str]:
    with contextlib.suppress(OSError):
        return platform.freedesktop_os_release()
    return {}


def _configuration(place: Place, part: Part) -> str:
    """As it was read, not as it was written: comments may hold anything."""
    if not place.text:
        raise NotHere(place.problem)
    head = {
        "source": place.source,
        "sha256": hashlib.sha256(place.text.encode()).hexdigest(),
        "problem": place.problem,
    }
    if part.wanted.has_secrets:
        return _json(head) + place.text
    if not place.table:
        return _json(head) + _without_comments(redact_text(place.text))
    return _json(head | {"configuration": redact(place.table)})


def _without_comments(text: str) -> str:
    return "\n".join(line.partition("#")[0].rstrip() for line in text.splitlines()) + "\n"


def _recipe(place: Place, part: Part) -> str:
    text = _read(_file_of(_recipe_source(place), "recipes/"))
    return text if part.wanted.has_secrets else _without_comments(text)


def _recipe_source(place: Place) -> str:
    """The one that judges; that of the configuration where this cannot be known."""
    if place.source is not None:
        with contextlib.suppress(ConfigError):
            return active_recipe(load_configuration(place.source).value).source
    station = place.table.get("station")
    name = station.get("recipe") if isinstance(station, dict) else None
    if not isinstance(name, str):
        raise NotHere("the configuration names no station.recipe")
    return name


def _check(place: Place, part: Part) -> str:
    if place.source is None or not place.text:
        raise NotHere(place.problem)
    return _vqi("check", "--config", place.source)


def _status(place: Place, part: Part) -> str:
    said = ask_all(place.runtime_dir, _ASK_TIMEOUT_S)
    found = {process: status or {"down": why} for process, (status, why) in said.items()}
    if not part.wanted.has_secrets:
        found["station"].pop("given", None)
    return _json(found)


def _processes(place: Place, part: Part) -> str:
    """Of those that answer; the names of all, and the whole command of what looks like ours."""
    said = ask_all(place.runtime_dir, _ASK_TIMEOUT_S)
    pids = {process: (said[process][0] or {}).get("pid") for process in SOCKETS}
    figures = {p: str(process_figures(pid)) for p, pid in pids.items() if isinstance(pid, int)}
    every = _run("ps", "-eo", "pid,ppid,user,stat,etimes,rss,nlwp,psr,rtprio,comm")
    commands = _run("ps", "-ww", "-eo", "pid,args").splitlines(keepends=True)
    return _json(figures) + every + "".join(line for line in commands if _OUR_COMMAND.search(line))


def _logs(place: Place, part: Part) -> str:
    lines = ("-n", str(_LOG_LINES), "--no-pager", "-o", "short-iso-precise")
    text = _run("journalctl", f"--namespace={_STATE_NAMESPACE}", *lines)
    return text if part.wanted.has_secrets else without_people(text)


def without_people(lines: str) -> str:
    """Lines of the log without who signed in at the page, and from where."""
    return _PEOPLE_IN_LINE.sub(rf'\g<name>"{REDACTED}"', lines)


def _kernel(place: Place, part: Part) -> str:
    return "\n".join(_run("dmesg", "--time-format=iso").splitlines()[-_LOG_LINES:])


def _devices(place: Place, part: Part) -> str:
    names = ("idVendor", "idProduct", "manufacturer", "product", "serial", "speed")
    usb = [
        {name: _read(device / name).strip() for name in names if (device / name).exists()}
        for device in sorted(Path("/sys/bus/usb/devices").glob("*"))
        if (device / "idVendor").exists()
    ]
    ports = [{"device": port.device, "hwid": port.hwid, "what": port.description}
             for port in comports()]  # fmt: skip
    chips = [_chip(path) for path in sorted(Path("/dev").glob("gpiochip*"))]
    links = [f"{link} -> {link.readlink()}" for link in Path("/dev/serial").glob("by-*/*")]
    return _json({"usb": usb, "serial_ports": ports, "serial_links": links, "gpio_chips": chips})


def _chip(path: Path) -> Json:
    import gpiod

    with gpiod.Chip(str(path)) as chip:
        info = chip.get_info()
        return {"path": str(path), "label": info.label, "lines": info.num_lines}


def _disk(place: Place, part: Part) -> str:
    mounts = _read(Path("/proc/self/mountinfo"))
    folders = {}
    for folder in (place.journal, place.runtime_dir, Path("/tmp")):
        with contextlib.suppress(OSError):
            found = os.statvfs(folder)
            folders[str(folder)] = {
                "free_mb": found.f_bavail * found.f_frsize // 10**6,
                "size_mb": found.f_blocks * found.f_frsize // 10**6,
                "free_files": found.f_favail,
            }
    return _json({"folders": folders, "files": list(_listing(place.journal))}) + mounts


def _listing(folder: Path) -> Iterator[str]:
    """Names and sizes beside the log; of the pictures only how many folders there are."""
    for number, entry in enumerate(sorted(os.scandir(folder), key=lambda item: item.name)):
        if number >= _MOST_FILES:
            return
        found = entry.stat(follow_symlinks=False)
        yield f"{oct(found.st_mode)} {found.st_uid}:{found.st_gid} {found.st_size} {entry.name}"


def _sqlite(place: Place, part: Part) -> str:
    names = ("journal_mode", "synchronous", "page_size", "page_count", "freelist_count",
             "user_version", "compile_options")  # fmt: skip
    path = place.journal / DATABASE
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        said = {name: connection.execute(f"PRAGMA {name}").fetchall() for name in names}
        schema = connection.execute("SELECT sql FROM sqlite_master").fetchall()
    return _json({"version": sqlite3.sqlite_version, "pragmas": said, "schema": schema})


def _verify(place: Place, part: Part) -> str:
    return _vqi("log", "verify", "--no-pictures", "--json", "--journal", str(place.journal))


def _rows(place: Place, part: Part) -> str:
    """The last rows; pictures of theirs where they are wanted."""
    pseudonym = (lambda text: text) if part.wanted.has_secrets else _pseudonyms()
    with Reader(place.journal) as reader:
        rows = [json.loads(body) for body in reader.last_bodies(_ROWS)]
    if part.wanted.has_pictures:
        _add_pictures(part, place.journal / IMAGES, rows)
    return "".join(json.dumps(_impersonal(row, pseudonym)) + "\n" for row in rows)


def _pseudonyms() -> Callable[[str], str]:
    """The same name for the same text within one archive, and for nobody to guess."""
    key = secrets.token_bytes(32)
    return lambda text: "p-" + hmac.new(key, text.encode(), hashlib.sha256).hexdigest()[:12]


def _impersonal(row: Json, pseudonym: Callable[[str], str]) -> Json:
    named: Json = {name: _named(row[name], pseudonym) for name in _PERSONAL if row.get(name)}
    if pseudonym("x") == "x":
        return {**row, **named}
    kind, detail = row.get("kind"), row.get("detail")
    for name in _WORDS.get(str(kind), ()):
        named[name] = _cut(row.get(name))
    if kind == "change" and isinstance(detail, dict) and row.get("who") != "station":
        named["detail"] = {
            name: value if _FIGURES.fullmatch(str(value)) else _cut(value)
            for name, value in detail.items()
            if name not in _PERSONAL
        }
    return {**row, **named}


def _named(value: Any, pseudonym: Callable[[str], str]) -> Any:
    """A name, or each of several."""
    if isinstance(value, list):
        return [_named(one, pseudonym) for one in value]
    return pseudonym(value) if isinstance(value, str) else value


def _cut(words: Any) -> str:
    return f"[{len(str(words or ''))} characters left out]"


def _add_pictures(part: Part, folder: Path, rows: list[Json]) -> None:
    room = _MOST_PICTURE_BYTES
    names = {image["path"] for row in reversed(rows) for image in row.get("images") or ()}
    for name in sorted(names, reverse=True):
        path = folder / name
        try:
            size = path.stat().st_size
            if size > room:
                why = f"more than {_MOST_PICTURE_BYTES} bytes of them"
                part.left_out.append(("pictures", why))
                return
            part.files.append((f"pictures/{name}", path.read_bytes()))
            room -= size
        except OSError as error:
            part.left_out.append((f"pictures/{name}", str(error.strerror)))


def _precision(place: Place, part: Part) -> str:
    try:
        folder = place.path("station", "precision_dir")
    except NotHere:
        folder = place.journal / "precision"
    found = {path.name: json.loads(path.read_bytes()) for path in sorted(folder.glob("*.json"))}
    if not found:
        raise NotHere(f"no record of the precision gate in {folder}")
    return _json(found)


def _units(place: Place, part: Part) -> str:
    shown = "Id,ActiveState,SubState,Result,NRestarts,ExecMainStatus,MainPID,StateChangeTimestamp"
    return (
        _run("systemctl", "show", "vqi*", "--no-pager", f"--property={shown}")
        + _run("systemctl", "list-units", "vqi*", "--all", "--no-pager", "--plain")
        + _run("systemctl", "cat", "vqi*", "--no-pager")
    )


_PARTS: Final[dict[str, Callable[[Place, Part], str]]] = {
    "versions.json": _versions,
    "configuration.txt": _configuration,
    "recipe.toml": _recipe,
    "status.json": _status,
    "processes.txt": _processes,
    "log.txt": _logs,
    "units.txt": _units,
    "kernel.txt": _kernel,
    "devices.json": _devices,
    "disk.txt": _disk,
    "sqlite.json": _sqlite,
    "rows.jsonl": _rows,
    "precision.json": _precision,
    "verify.txt": _verify,
    "check.txt": _check,
}
PART_NAMES: Final = frozenset(_PARTS)


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_MOST_PART_BYTES).decode(errors="replace")
    except OSError as error:
        raise NotHere(f"{path}: {error.strerror}") from error


def _vqi(*arguments: str) -> str:
    return _run(sys.executable, "-P", "-m", "station.cli", *arguments)


def _run(*command: str) -> str:
    """A command's output, its errors beside it. Raises `NotHere` if there is no such command or it
    takes too long."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_COMMAND_LIMIT_S,
            check=False,
        )
    except FileNotFoundError as error:
        raise NotHere(f"{command[0]} is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise NotHere(f"{command[0]} took longer than {_COMMAND_LIMIT_S:g} s") from error
    said = (done.stdout + done.stderr).decode(errors="replace")
    return f"{said}[exit status {done.returncode}]\n" if done.returncode else said


# --- where it goes ------------------------------------------------------------------------------


def write_archive(data: bytes, wanted: Path) -> tuple[Path, str]:
    """Write where it is wanted, else where there is room; the path, and why not the wanted one.
    Raises OSError if there is room nowhere."""
    problem = ""
    others = ("/var/tmp", "/tmp", "/dev/shm", Path("~").expanduser())
    for path in (wanted, *(Path(folder) / wanted.name for folder in others)):
        try:
            _write_new(path, data)
        except OSError as error:
            problem = problem or f"{path}: {error.strerror}"
            continue
        return path, problem
    raise OSError(problem)


def _write_new(path: Path, data: bytes) -> None:
    """Nobody else may read it: it says a lot about a plant."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
    except OSError:
        path.unlink(missing_ok=True)
        raise
