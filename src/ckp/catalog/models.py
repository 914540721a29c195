"""The shapes of the catalog's files: `releases/*.toml`, `sources/*/*/source.toml`, `conformance/*.toml`, `options/*.toml` and `debian-sources.toml`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

Version = Annotated[str, StringConstraints(pattern=r"^v\d+\.\d+\.\d+$")]
ImageTag = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$")]
Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$")]


def version_key(version: str) -> tuple[int, ...]:
    """Sorts `v1.7.28` after `v1.7.3`."""
    return tuple(int(part) for part in re.findall(r"\d+", version))


class Strict(BaseModel):
    """Data of the catalog: unknown fields are rejected, and the data is immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class StandIn(Strict):
    """The component that replaces a pin in the profile `lab`."""

    component: Name
    version: Version


class BundleTarget(Strict):
    """An operating system that a bundle is made for."""

    os: Name
    os_version: str

    @property
    def system(self) -> str:
        """Its name in sites' files and in tables of bundles, such as `debian-12`."""
        return f"{self.os}-{self.os_version}"

    @property
    def format(self) -> Literal["deb", "rpm"]:
        """Which kind of package its package manager takes."""
        return "rpm" if self.os == "rhel" else "deb"

    @property
    def repository(self) -> str:
        """The bundle's repository name, as the public documentation has it."""
        return f"byoh-bundle-{self.os}_{self.os_version}_x86-64_k8s"


class Release(Strict):
    """One release: what it is made of, by version."""

    name: Version
    stamp: str
    status: str
    cri: str
    cni: dict[Name, Version]
    pins: dict[Name, Version]
    stand_ins: dict[Name, StandIn] = {}
    tools: dict[Name, Version]
    image_tags: dict[Name, str] = {}
    bundles: tuple[BundleTarget, ...]

    @model_validator(mode="after")
    def _hold_together(self) -> Self:
        if self.stamp != f"{self.name}-ckp":
            raise ValueError(f"stamp must be {self.name}-ckp, not {self.stamp}")
        if self.pins.get("kubernetes") != self.name:
            raise ValueError(f"pins.kubernetes must be the release's own version {self.name}")
        for component, version in self.cni.items():
            if self.pins.get(component, version) != version:
                raise ValueError(f"cni.{component} is {version}, and pins.{component} is {self.pins[component]}: they must be the same")
        if unknown := set(self.stand_ins) - set(self.pins):
            raise ValueError(f"stand-ins for components that are not pins: {', '.join(sorted(unknown))}")
        return self

    @property
    def built_cni(self) -> dict[str, str]:
        """Those of `cni` that are built with the release, and so can be offered; the others are named and locked only."""
        return {component: version for component, version in self.cni.items() if component in self.pins}

    @property
    def package_version(self) -> str:
        """The stamp as a package version: no leading `v`."""
        return self.stamp.removeprefix("v")


class Binary(Strict):
    """A program of a component and the Go package that it is built from."""

    name: str
    package: str
    test: bool = False
    """It is the package's test binary (`go test -c`) instead of its main program."""


class SourceFile(Strict):
    """A file or folder of a source that images or packages need beside the binaries."""

    module: str
    path: str
    as_: str = Field(alias="as")


class Source(Strict):
    """The lock of one component's source: together with its go.mod and go.sum it determines what is built, from which hashes, and how."""

    component: Name
    version: Version
    modules: tuple[str, ...]
    go: str
    license: str
    upstream: str
    commit: str = ""
    date: str
    cgo: bool = False
    c_packages: tuple[str, ...] = ()
    extldflags: str = ""
    tags: tuple[str, ...] = ()
    ldflags: tuple[str, ...] = ()
    stand_in_for: str = ""
    binaries: tuple[Binary, ...]
    files: tuple[SourceFile, ...] = ()
    folder: Path = Field(exclude=True, default=Path())

    def stamped(self, text: str, stamp: str) -> str:
        """`text` with `{version}`, `{stamp}`, `{commit}` and `{date}` filled in."""
        for key, value in (("version", self.version), ("stamp", stamp), ("commit", self.commit), ("date", self.date)):
            text = text.replace("{" + key + "}", value)
        return text


class Suite(Strict):
    """Kubernetes' own conformance suite of one release."""

    release: Version
    source: Version
    """Of the component that its programs are built from (ckp.catalog.load.SUITE_COMPONENT)."""
    tests: Annotated[int, Field(gt=0)]
    """How many tests are marked [Conformance]."""
    images: Annotated[dict[Name, Annotated[tuple[ImageTag, ...], Field(min_length=1)]], Field(min_length=1)]
    """Images that these tests start, with the tags that the suite asks for."""


class Gates(Strict):
    """Feature gates of a minor version."""

    free: tuple[str, ...]
    """Those that may be on or off."""
    locked: dict[str, bool] = {}
    """Those that can only be what they are."""


class Options(Strict):
    """What the programs of a minor version of Kubernetes take, as far as it differs between minors."""

    minor: Annotated[str, StringConstraints(pattern=r"^\d+\.\d+$")]
    read_from: Version
    removed_flags: dict[Name, tuple[Name, ...]]
    """By program, flags that the minor before still had."""
    gates: Gates


class DebianSource(Strict):
    """Upstream's archive of a Debian source package; together with its hash it determines what is built."""

    name: Name
    suite: Name
    archive: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9.+-]*_[0-9][A-Za-z0-9.+~-]*\.orig\.tar\.(gz|bz2|xz)$")]
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    version: str
    license: str
    upstream: str
