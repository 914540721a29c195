"""Reading the catalog from disk."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import ValidationError

from ckp.catalog.models import Release, Source, version_key
from ckp.kits import paths
from ckp.kits.errors import InvalidInput, NotFound

T = TypeVar("T")
Profile = Literal["release", "lab"]


@dataclass(frozen=True)
class Chosen:
    """A component as a build takes it: its source, and the pin that it stands in for, if it does."""

    role: str
    source: Source
    stands_in_for: str = ""


class Catalog:
    """The catalog below `root` (default: the checkout's own).

    Every read raises InvalidInput naming the file and field when the data is malformed.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or paths.REPO / "catalog"

    def names(self) -> list[str]:
        """Names of all releases, oldest first."""
        return sorted((path.stem for path in (self.root / "releases").glob("v*.toml")), key=version_key)

    def release(self, name: str) -> Release:
        """The release called `name`; NotFound lists those that there are."""
        if name not in self.names():
            raise NotFound(f"there is no release {name} in the catalog", resolution=f"take one of: {', '.join(self.names())}")
        path = self.root / "releases" / f"{name}.toml"
        release = _parse(path, Release, _read(path))
        if release.name != name:
            raise InvalidInput(f"{path}: name is {release.name}, the file's name says {name}")
        return release

    def source(self, component: str, version: str) -> Source:
        """The source lock of a component; NotFound if that version is not locked."""
        folder = self.root / "sources" / component / version
        if not (folder / "source.toml").exists():
            raise NotFound(f"{component} {version} has no source lock in {self.root / 'sources'}", resolution="add its go.mod, go.sum and source.toml")
        source = _parse(folder / "source.toml", Source, {**_read(folder / "source.toml"), "folder": folder})
        if (source.component, source.version) != (component, version):
            raise InvalidInput(f"{folder}/source.toml is the lock of {source.component} {source.version}, not of {component} {version}")
        return source

    def choose(self, release: Release, role: str, profile: Profile) -> Chosen:
        """The source that plays `role` in `release`: the pin, or in the profile `lab` its stand-in where there is one."""
        if role in release.tools:
            return Chosen(role, self.source(role, release.tools[role]))
        pin = release.pins[role]
        if profile == "lab" and (stand_in := release.stand_ins.get(role)):
            return Chosen(role, self.source(stand_in.component, stand_in.version), stands_in_for=f"{role} {pin}")
        return Chosen(role, self.source(role, pin))

    def toolchain_sum(self, go: str) -> str:
        """The module hash (`h1:…`) of a Go toolchain for linux-amd64."""
        table = _read(self.root / "toolchains.toml")
        try:
            return str(table[go]["sum"])
        except KeyError:
            raise NotFound(f"Go {go} is not in {self.root / 'toolchains.toml'}", resolution="add its sum, as `go mod download -json` prints it") from None


def _read(path: Path) -> Mapping[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except tomllib.TOMLDecodeError as error:
        raise InvalidInput(f"{path} is not TOML: {error}") from error


def _parse(path: Path, model: type[T], data: Mapping[str, Any]) -> T:
    try:
        return model(**data)
    except ValidationError as error:
        findings = "\n".join(f"{'.'.join(map(str, item['loc'])) or 'the file'}: {item['msg']}" for item in error.errors())
        raise InvalidInput(f"{path} is not a valid {model.__name__.lower()}", details=findings) from error
