"""Reading the catalog from disk."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import ValidationError

from ckp.catalog.check import Finding, lock_findings
from ckp.catalog.matrix import Matrix
from ckp.catalog.models import DebianSource, Options, Release, Source, Suite, version_key
from ckp.kits import paths
from ckp.kits.errors import CkpError, InvalidInput, NotFound

T = TypeVar("T")
SUPPORTED = "Supported"
"""The status of a release that has passed all tests."""
SUITE_COMPONENT = "kubernetes-e2e"
"""The component with Kubernetes' own test suite."""
Profile = Literal["release", "lab"]


@dataclass(frozen=True)
class Chosen:
    """A component as a build takes it: its source, and the pin that it stands in for, if it does."""

    role: str
    source: Source
    stands_in_for: str = ""


class Catalog:
    """The catalog below `root` (default: the one that belongs to this code).

    Every read raises InvalidInput naming the file and field when the data is malformed, outside the compatibility matrix, or inconsistent.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or paths.data("catalog")

    def names(self) -> list[str]:
        """Names of all releases, oldest first."""
        return sorted((path.stem for path in (self.root / "releases").glob("v*.toml")), key=version_key)

    def latest(self) -> str:
        """The newest release with the status Supported; NotFound if no release has it."""
        for name in reversed(self.names()):
            if self.release(name).status == SUPPORTED:
                return name
        raise NotFound(f"no release in {self.root / 'releases'} has the status {SUPPORTED}", resolution="name a release (ckp release list)")

    def matrix(self) -> Matrix:
        """The compatibility matrix."""
        path = self.root / "matrix.toml"
        if not path.exists():
            raise NotFound(f"the compatibility matrix {path} is missing", resolution="restore it: no release can be read without it")
        return _parse(path, Matrix, _read(path))

    def release_path(self, name: str) -> Path:
        """Where the file of a release lies."""
        return self.root / "releases" / f"{name}.toml"

    def release(self, name: str) -> Release:
        """The release called `name`; NotFound lists those that there are."""
        if name not in self.names():
            raise NotFound(f"there is no release {name} in the catalog", resolution=f"use one of: {', '.join(self.names())}")
        path = self.release_path(name)
        release = _parse(path, Release, _read(path))
        if release.name != name:
            raise InvalidInput(f"{path}: name is {release.name}, the file's name says {name}")
        if findings := self.matrix().findings(release):
            raise InvalidInput(
                f"{path}: {findings[0]}",
                details="\n".join(findings[1:]),
                resolution=f"correct the release's file, or {self.root / 'matrix.toml'} if the matrix itself has changed",
            )
        return release

    def source_path(self, component: str, version: str) -> Path:
        """The folder of a source lock."""
        return self.root / "sources" / component / version

    def source(self, component: str, version: str) -> Source:
        """The source lock of a component; NotFound if that version is not locked, InvalidInput with file and line if the lock is inconsistent."""
        folder = self.source_path(component, version)
        if not (folder / "source.toml").exists():
            raise NotFound(f"{component} {version} has no source lock in {self.root / 'sources'}", resolution="add its go.mod, go.sum and source.toml")
        source = _parse(folder / "source.toml", Source, {**_read(folder / "source.toml"), "folder": folder})
        if (source.component, source.version) != (component, version):
            raise InvalidInput(f"{folder}/source.toml is the lock of {source.component} {source.version}, not of {component} {version}")
        if findings := lock_findings(source):
            raise InvalidInput(
                f"the source lock of {component} {version} is inconsistent",
                details="\n".join(map(str, findings)),
                resolution="correct the lines named above, or make the lock again (for Kubernetes: remove its folder and run `ckp release add`)",
            )
        return source

    def choose(self, release: Release, role: str, profile: Profile) -> Chosen:
        """The source that plays `role` in `release`: the pin, or in the profile `lab` its stand-in where there is one."""
        if role in release.tools:
            return Chosen(role, self.source(role, release.tools[role]))
        pin = release.pins[role]
        if profile == "lab" and (stand_in := release.stand_ins.get(role)):
            return Chosen(role, self.source(stand_in.component, stand_in.version), stands_in_for=f"{role} {pin}")
        return Chosen(role, self.source(role, pin))

    def suites(self) -> list[str]:
        """Names of the releases whose conformance suite is in the catalog, oldest first."""
        return sorted((path.stem for path in (self.root / "conformance").glob("v*.toml")), key=version_key)

    def conformance(self, name: str) -> Suite:
        """The conformance suite of the release called `name`; NotFound lists those that there are."""
        if name not in self.suites():
            raise NotFound(
                f"the catalog has no conformance suite of {name}",
                resolution=f"use one of: {', '.join(self.suites())}; or add its file to {self.root / 'conformance'}, with the lock of {SUITE_COMPONENT} {name}",
            )
        path = self.root / "conformance" / f"{name}.toml"
        suite = _parse(path, Suite, _read(path))
        if suite.release != name:
            raise InvalidInput(f"{path}: release is {suite.release}, the file's name says {name}")
        return suite

    def option_minors(self) -> list[str]:
        """The minors of which it is known what their programs take, oldest first: `1.35`."""
        return sorted((path.stem.removeprefix("v") for path in (self.root / "options").glob("v*.toml")), key=version_key)

    def options(self, minor: str) -> Options:
        """What the programs of a minor take (`1.35`); NotFound lists what there is."""
        if minor not in self.option_minors():
            raise NotFound(
                f"the catalog does not know which feature gates Kubernetes {minor} has",
                resolution=f"it knows those of: {', '.join(self.option_minors())}; add its file to {self.root / 'options'}",
            )
        path = self.root / "options" / f"v{minor}.toml"
        options = _parse(path, Options, _read(path))
        if options.minor != minor:
            raise InvalidInput(f"{path}: minor is {options.minor}, the file's name says {minor}")
        return options

    def suite_programs(self, name: str) -> Chosen:
        """The component that the programs of a release's conformance suite are built from."""
        return Chosen(SUITE_COMPONENT, self.source(SUITE_COMPONENT, self.conformance(name).source))

    def debian_source(self, name: str) -> DebianSource:
        """A source that is fetched from Debian's archive (debian-sources.toml)."""
        path = self.root / "debian-sources.toml"
        known = _read(path)
        if name not in known:
            raise NotFound(f"{path} has no source {name}", resolution=f"use one of: {', '.join(sorted(known))}")
        return _parse(path, DebianSource, {"name": name, **known[name]})

    def test_tools(self, name: str, *, long: bool = False) -> list[Chosen]:
        """Programs that the tests judge the release called `name` by and that are no part of it: test-tools.toml, and its conformance suite if there is one.

        Args:
            long: with those that only long tests use.
        """
        table = _read(self.root / "test-tools.toml")
        versions = {tool: version for tool, version in table.items() if tool != "long"} | (dict(table.get("long", {})) if long else {})
        tools = [Chosen(component, self.source(component, str(version))) for component, version in versions.items()]
        return [*tools, self.suite_programs(name)] if name in self.suites() else tools

    def check(self, name: str) -> list[str]:
        """All faults of a release: in its file, the locks of all that it names, and their toolchains. None if all is consistent."""
        try:
            release = self.release(name)
        except CkpError as error:
            return str(error).splitlines()
        named = {**release.cni, **release.pins, **release.tools}
        wanted = {*named.items(), *((item.component, item.version) for item in release.stand_ins.values())}
        findings: list[str] = []
        for component, version in sorted(wanted):
            try:
                self.toolchain_sum(self.source(component, version).go)
            except NotFound as error:
                line = _line_of(self.release_path(name), f'{component} = "{version}"')
                findings.append(str(Finding(self.release_path(name), line, error.brief)))
            except CkpError as error:
                findings += (error.details or error.brief).splitlines()
        return findings

    def toolchain_sum(self, go: str) -> str:
        """The module hash (`h1:…`) of a Go toolchain for linux-amd64."""
        table = _read(self.root / "toolchains.toml")
        try:
            return str(table[go]["sum"])
        except KeyError:
            raise NotFound(f"Go {go} is not in {self.root / 'toolchains.toml'}", resolution="add its sum, as `go mod download -json` prints it") from None


def _line_of(path: Path, text: str) -> int:
    return next((number for number, line in enumerate(path.read_text().splitlines(), start=1) if line.startswith(text)), 1)


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
