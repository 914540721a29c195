"""The compatibility matrix as data (`catalog/matrix.toml`), and whether a release complies with it."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from ckp.catalog.models import BundleTarget, Name, Release, Strict, Version, version_key

Minor = Annotated[str, StringConstraints(pattern=r"^\d+\.\d+$")]


def minor_of(version: str) -> str:
    """`1.35` of `v1.35.1`."""
    return ".".join(version.removeprefix("v").split(".")[:2])


class Component(Strict):
    """One component's row: which versions, or which image tag, a release may have of it.

    One of `exact`, `from` (with `to`, which is included, or open) and `major`; a row with an image tag needs none of them.
    """

    name: Name
    title: str
    section: str
    exact: Version | None = None
    from_: Annotated[Version | None, Field(alias="from")] = None
    to: Version | None = None
    major: int | None = None
    image_tag: str = ""

    @model_validator(mode="after")
    def _one_rule(self) -> Self:
        rules = sum(rule is not None for rule in (self.exact, self.from_, self.major))
        if rules > 1 or (not rules and not self.image_tag):
            raise ValueError(f"{self.name} needs one of exact, from and major")
        if self.to is not None and (self.from_ is None or version_key(self.to) < version_key(self.from_)):
            raise ValueError(f"{self.name}: `to` needs a `from` that is not above it")
        return self

    @property
    def versioned(self) -> bool:
        """Whether the row restricts the version, and not only an image's tag."""
        return self.exact is not None or self.from_ is not None or self.major is not None

    @property
    def allowed(self) -> str:
        """The rule in words."""
        if self.exact:
            return self.exact
        if self.from_:
            return f"{self.from_} to {self.to}" if self.to else f"{self.from_} and later"
        return f"v{self.major}" if self.major is not None else self.image_tag

    def allows(self, version: str) -> bool:
        """Whether a release may have this version of it."""
        key = version_key(version)
        if self.exact:
            return version == self.exact
        if self.from_:
            return version_key(self.from_) <= key and (self.to is None or key <= version_key(self.to))
        return self.major is None or key[0] == self.major


class OperatingSystem(Strict):
    """An operating system that every release has a bundle for."""

    os: Name
    os_version: str
    title: str
    package: Literal["deb", "rpm"]
    section: str

    @model_validator(mode="after")
    def _package_fits(self) -> Self:
        if self.package != self.target.format:
            raise ValueError(f"bundles of {self.os} hold {self.target.format} packages, not {self.package}")
        return self

    @property
    def target(self) -> BundleTarget:
        """The bundle that is made for it."""
        return BundleTarget(os=self.os, os_version=self.os_version)


class Matrix(Strict):
    """The whole matrix."""

    architecture: Literal["amd64"]
    cri: str
    minors: tuple[Minor, ...]
    statuses: tuple[str, ...]
    cni: tuple[Name, ...]
    certified: dict[Version, str]
    components: tuple[Component, ...]
    systems: tuple[OperatingSystem, ...]

    def component(self, name: str) -> Component | None:
        """The row of a component, if it has one."""
        return next((row for row in self.components if row.name == name), None)

    def findings(self, release: Release) -> list[str]:
        """Where a release violates the matrix: field, found, allowed; empty if it complies."""
        found: list[str] = []

        def expect(field: str, value: str | None, allowed: str, good: bool) -> None:
            if not good:
                found.append(f"{field} is {value or 'missing'}, and the compatibility matrix allows {allowed}")

        minor = minor_of(release.name)
        expect("name", release.name, " and ".join([", ".join(self.minors[:-1]), self.minors[-1]] if self.minors[1:] else self.minors), minor in self.minors)
        expect("status", release.status, " or ".join(self.statuses), release.status in self.statuses)
        expect("cri", release.cri, self.cri, release.cri == self.cri)
        for name in self.cni:
            expect(f"cni.{name}", release.cni.get(name), "no release without it", name in release.cni)
        for name in sorted(set(release.cni) - set(self.cni)):
            expect(f"cni.{name}", release.cni[name], f"{' and '.join(self.cni)} only", False)
        for row in self.components:
            table, values = ("cni", release.cni) if row.name in self.cni else ("pins", release.pins)
            if row.versioned:
                value = values.get(row.name)
                expect(f"{table}.{row.name}", value, row.allowed, value is not None and row.allows(value))
            if row.image_tag:
                tag = release.image_tags.get(row.name)
                expect(f"image_tags.{row.name}", tag, row.image_tag, tag == row.image_tag)
        systems = [item.target for item in self.systems]
        for target in systems:
            expect(f"bundles: {target.os} {target.os_version}", None, "no release without it", target in release.bundles)
        for number, target in enumerate(release.bundles):
            expect(
                f"bundles[{number}]",
                f"{target.os} {target.os_version}",
                ", ".join(f"{item.os} {item.os_version}" for item in systems) + ", each once",
                target in systems and target not in release.bundles[:number],
            )
        return found
