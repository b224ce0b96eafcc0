"""Where a plant keeps pictures: by their content's sha256, each once, whoever sent it.

A picture is only there under its name once what arrived was seen to be what was recorded.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import secrets
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from station.config import ConfigError, PlantSettings
from station.durable import sync
from station.log_lines import get_logger
from station.log_reader import Reader
from station.plant import Hub
from station.qms import Json
from station.record import ImageBody
from station.systemd import notify

_LOG = get_logger("ship")
_STEP_ROWS: Final = 1000
"""After so many rows the plant is told how far pictures have come; who begins anew looks at so many
rows' pictures again."""


class PicturesError(Exception):
    """The store of pictures cannot be used now; says which, why, and what to do."""


class Shelf(ABC):
    """A store of pictures."""

    @abstractmethod
    def has(self, path: str, size: int) -> bool:
        """Whether the picture is there, whole. Raises `PicturesError`."""

    @abstractmethod
    def put(self, path: str, data: bytes, sha256: str) -> None:
        """Keep a picture, and see that it arrived. Raises `PicturesError`."""

    @abstractmethod
    def make_durable(self) -> None:
        """No power cut takes back what was found here or put here. Raises `PicturesError`."""


class FolderShelf(Shelf):
    """A folder, of this machine or mounted from another."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._unsynced: set[Path] = set()
        """Folders with names that a power cut may take back: also of pictures that are there, for
        whoever put them may have died before their name was durable."""

    def has(self, path: str, size: int) -> bool:
        target = self._folder / path
        try:
            is_there = target.stat().st_size == size
        except FileNotFoundError:
            return False
        except OSError as error:
            raise self._error(error) from error
        if is_there:
            self._unsynced.add(target.parent)
        return is_there

    def put(self, path: str, data: bytes, sha256: str) -> None:
        target = self._folder / path
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
        try:
            self._refuse_absent()
            target.parent.mkdir(exist_ok=True)
            _write_synced(temporary, data)
            if hashlib.sha256(temporary.read_bytes()).hexdigest() != sha256:
                raise PicturesError(f"{target}: what was read back is not what was sent")
            temporary.rename(target)
        except OSError as error:
            raise self._error(error) from error
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
        self._unsynced.add(target.parent)

    def make_durable(self) -> None:
        if not self._unsynced:
            return
        try:
            for folder in self._unsynced:
                sync(folder)
            sync(self._folder)
        except OSError as error:
            raise self._error(error) from error
        self._unsynced.clear()

    def _refuse_absent(self) -> None:
        """A folder that is not mounted would be made on the station's own disk."""
        if not self._folder.is_dir():
            raise PicturesError(
                f"plant.images {self._folder}: there is no such folder; mount it, or make it once"
            )

    def _error(self, error: OSError) -> PicturesError:
        return PicturesError(f"plant.images {self._folder}: {error.strerror or error}")


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


class S3Shelf(Shelf):
    """A bucket behind the S3 API; credentials as boto3 finds them."""

    def __init__(self, bucket: str, prefix: str, endpoint_url: str | None) -> None:
        import boto3
        from botocore.config import Config

        self._bucket, self._prefix = bucket, prefix
        limits = Config(connect_timeout=10, read_timeout=60, retries={"max_attempts": 2})
        self._client: Any = boto3.client("s3", endpoint_url=endpoint_url, config=limits)

    def has(self, path: str, size: int) -> bool:
        found = self._head(path)
        return found is not None and found["ContentLength"] == size

    def put(self, path: str, data: bytes, sha256: str) -> None:
        given = {"Bucket": self._bucket, "Key": self._key(path)}
        wanted = base64.b64encode(bytes.fromhex(sha256)).decode()
        with self._said():
            # A store that knows this sum refuses what does not have it; others keep anything.
            self._client.put_object(**given, Body=data, ChecksumSHA256=wanted)
            there = self._client.get_object(**given)["Body"].read()
            if hashlib.sha256(there).hexdigest() == sha256:
                return
            self._client.delete_object(**given)
        raise PicturesError(f"s3://{self._bucket}/{given['Key']}: it did not arrive as it was sent")

    def make_durable(self) -> None:
        """What the store has acknowledged is durable."""

    def _head(self, path: str) -> dict[str, Any] | None:
        from botocore.exceptions import ClientError

        with self._said():
            try:
                found: dict[str, Any] = self._client.head_object(
                    Bucket=self._bucket, Key=self._key(path)
                )
                return found
            except ClientError as error:
                if error.response["ResponseMetadata"]["HTTPStatusCode"] != 404:
                    raise
                return None

    def _key(self, path: str) -> str:
        return f"{self._prefix}/{path}" if self._prefix else path

    @contextlib.contextmanager
    def _said(self) -> Any:
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except (Boto3Error, BotoCoreError, ClientError) as error:
            said = " ".join(str(error).split())
            raise PicturesError(f"plant.images s3://{self._bucket}: {said}") from error


def open_shelf(settings: PlantSettings) -> Shelf | None:
    """The store that is configured. Raises `ConfigError` where its library is missing."""
    if settings.images is None:
        return None
    if not settings.images.startswith("s3://"):
        return FolderShelf(Path(settings.images))
    bucket, _, prefix = settings.images.removeprefix("s3://").partition("/")
    try:
        return S3Shelf(bucket, prefix.strip("/"), settings.s3_endpoint_url)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"plant.images needs {error.name}: pip install 'vqi-station[plant]'"
        ) from None


class Pictures:
    """Pictures of one station on their way: after the rows that name them."""

    def __init__(self, station_id: str, hub: Hub, shelf: Shelf) -> None:
        """Raises `PlantError`."""
        self._station_id = station_id
        self._hub = hub
        self._shelf = shelf
        self._position = self._noted = hub.pictures_upto(station_id)
        self.sent = 0
        self.missing = 0
        """That rows name, no rule removed, and the station does not have."""

    def send_some(self, reader: Reader, last: int) -> bool:
        """Send those of some rows up to `last`; whether there are more. Raises `PicturesError`,
        `PlantError`."""
        upto = min(self._position + _STEP_ROWS, last)
        for result_id, images in reader.with_pictures(self._position, upto):
            for image in images:
                self._send(reader, result_id, image)
                notify("WATCHDOG=1")
        self._position = max(upto, self._position)
        if self._position - self._noted >= _STEP_ROWS:
            self.note()
        return self._position < last

    def note(self) -> None:
        """Tell the plant how far they have come. Raises `PicturesError`, `PlantError`."""
        if self._position > self._noted:
            self._shelf.make_durable()
            self._hub.note_pictures(self._station_id, self._position)
            self._noted = self._position

    def _send(self, reader: Reader, result_id: str, named: Json) -> None:
        try:
            image = ImageBody.model_validate(named)
        except ValidationError:
            self._miss(result_id, str(named), "is no name of a picture")
            return
        if self._shelf.has(image.path, image.bytes):
            return
        data = _read(reader.images / image.path)
        if data is None and reader.is_removed(result_id, image.path):
            return
        if data is None or hashlib.sha256(data).hexdigest() != image.sha256:
            why = "is not there" if data is None else "is not the picture that was recorded"
            self._miss(result_id, image.path, why)
            return
        self._shelf.put(image.path, data, image.sha256)
        self.sent += 1

    def _miss(self, result_id: str, path: str, why: str) -> None:
        self.missing += 1
        _LOG.error("a picture cannot be sent", result_id=result_id, path=path, why=why)


def _read(path: Path) -> bytes | None:
    """None where there is none. Raises `PicturesError` for what may be read later: who went on
    would never look at the picture again."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise PicturesError(f"{path}: cannot be read: {error.strerror or error}") from error
