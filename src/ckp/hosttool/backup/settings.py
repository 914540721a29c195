"""What `ckp site apply` tells a management host of the backups that it is to make: a folder for root alone, with one file that names the others."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Any, Dict, List, Mapping, Optional

from ckp.hostkit import s3
from ckp.hostkit.backup.location import CREDENTIALS, FOLDER, MORE_CAS, S3_CA, SETTINGS
from ckp.hostkit.errors import AgentError


@dataclass(frozen=True)
class Place:
    """Where backups are kept: a folder of this host, or a bucket.

    Args:
        folder: empty for a bucket.
    """

    folder: str = ""
    endpoint: str = ""
    bucket: str = ""
    prefix: str = ""
    region: str = ""

    @property
    def title(self) -> str:
        """For people."""
        return self.folder or f"{self.endpoint}/{self.bucket}/{self.prefix}".rstrip("/")


@dataclass(frozen=True)
class Settings:
    """The settings.

    Args:
        root: the folder with the files that belong to them.
        every: seconds that the newest backup may have.
        keep: how many of the site's stay.
        host, address: this management host, as the site's file has it.
        hosts: of all management hosts, names -> addresses; none where there is one.
        postgresql: Compass has its data there, and not in SQLite.
        readers: files in `root` with the certificates of those who can read backups.
    """

    root: str
    site: str
    every: float
    keep: int
    host: str
    address: str
    hosts: Mapping[str, str]
    postgresql: bool
    readers: List[str]
    place: Place

    def path(self, name: str) -> str:
        """A file that belongs to them."""
        return os.path.join(self.root, name)

    def bytes_of(self, name: str) -> bytes:
        """Its content. Raises AgentError."""
        try:
            with open(self.path(name), "rb") as stream:
                return stream.read()
        except OSError as error:
            raise AgentError(f"{self.path(name)} can't be read: {error.strerror}", resolution="run `ckp site apply`: it writes it again") from None

    def store(self, environment: Mapping[str, str]) -> s3.Store:
        """A client of the bucket. Raises AgentError."""
        ca = self.bytes_of(S3_CA).decode() if os.path.exists(self.path(S3_CA)) else ""
        more = self.bytes_of(MORE_CAS).decode() if os.path.exists(self.path(MORE_CAS)) else ""
        credentials = s3.read_credentials(self.bytes_of(CREDENTIALS).decode(), self.path(CREDENTIALS))
        place = self.place
        return s3.Store(s3.Bucket(place.endpoint, place.bucket, place.prefix, place.region, ca, more), credentials, environment)


def read_settings(root: str = FOLDER) -> Optional[Settings]:
    """The settings of this host; None if it is to make no backups.

    Raises:
        AgentError: they can't be read.
    """
    path = os.path.join(root, SETTINGS)
    try:
        with open(path, encoding="utf-8") as stream:
            data: Dict[str, Any] = json.load(stream)
        place = Place(folder=data["path"]) if "path" in data else Place("", **{key: str(data["s3"][key]) for key in ("endpoint", "bucket", "prefix", "region")})
        return Settings(
            root=root,
            site=str(data["site"]),
            every=float(data["every"]),
            keep=int(data["keep"]),
            host=str(data["host"]),
            address=str(data["address"]),
            hosts={str(name): str(address) for name, address in data["hosts"].items()},
            postgresql=bool(data["postgresql"]),
            readers=[str(name) for name in data["readers"]],
            place=place,
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise AgentError(f"{path} can't be read: {type(error).__name__}: {error}", resolution="run `ckp site apply`: it writes it again") from None
