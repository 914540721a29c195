"""A release as far as it is built on this machine, for commands that build nothing: SBOM, provenance, comparison."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from ckp.catalog.load import Catalog, Profile
from ckp.catalog.models import Release
from ckp.distribution.builder.component import Built, build_component, is_built
from ckp.distribution.builder.gobuildinfo import Program, Reader, programs
from ckp.kits.errors import NotFound


@dataclass(frozen=True)
class BuiltRelease:
    """A release as far as it is built on this machine."""

    reader: Reader
    release: Release
    profile: Profile
    components: Mapping[str, Built]
    """What is built of it, by role."""
    missing: tuple[str, ...] = ()
    """Components that are not built, if it was opened with `partial`."""

    @cached_property
    def programs(self) -> dict[str, Program]:
        """Every program that is built, by its hash."""
        return {item.sha256: item for item in programs(self.components.values())}

    @property
    def stamp(self) -> str:
        """The release's version stamp."""
        return self.release.stamp

    def require_all(self) -> None:
        """NotFound naming what is not built, if anything is not."""
        if self.missing:
            count = "one component" if len(self.missing) == 1 else f"{len(self.missing)} components"
            raise NotFound(
                f"{self.release.name} (profile {self.profile}) is not built on this machine: {count} missing",
                details="\n".join(self.missing),
                resolution=f"ckp dist build {self.release.name} --profile {self.profile}",
            )

    def version(self, program: Program) -> str:
        """What a program shows as its version: the stamp where one is linked in, else upstream's version."""
        return self.stamp if "{stamp}" in "".join(program.source.ldflags) else program.source.version

    def program(self, name: str) -> Program:
        """The program called `name`; NotFound lists those that there are."""
        found = [item for item in self.programs.values() if item.name == name]
        if not found:
            names = ", ".join(sorted({item.name for item in self.programs.values()}))
            raise NotFound(f"{self.release.name} has no program {name} that is built here", resolution=f"use one of: {names}")
        return found[0]


def open_built_release(catalog: Catalog, release: Release, profile: Profile, roles: Collection[str] = (), *, partial: bool = False) -> BuiltRelease:
    """The release's components as the cache has them; builds nothing.

    Args:
        roles: those that are needed; default: all.
        partial: leave out those that are not built.

    Raises:
        NotFound: one of them is not built.
    """
    wanted = [role for role in (*release.tools, *release.pins) if not roles or role in roles]
    if unknown := sorted(set(roles) - set(wanted)):
        raise NotFound(f"{release.name} has no component {unknown[0]}", resolution=f"use one of: {', '.join([*release.tools, *release.pins])}")
    components, missing = {}, []
    for role in wanted:
        chosen = catalog.choose(release, role, profile)
        if is_built(catalog, chosen, release.stamp):
            components[role] = build_component(catalog, chosen, release.stamp, lambda _: None)
        else:
            missing.append(f"{chosen.source.component} {chosen.source.version}")
    built = BuiltRelease(Reader(catalog), release, profile, components, tuple(missing))
    if not partial:
        built.require_all()
    return built


def find_roles(catalog: Catalog, release: Release, profile: Profile, names: Iterable[str]) -> list[str]:
    """The roles of components in a release, by role or component name. NotFound for any other name."""
    roles = {}
    for role in (*release.tools, *release.pins):
        roles[role] = role
        roles.setdefault(catalog.choose(release, role, profile).source.component, role)
    found = []
    for name in names:
        if name not in roles:
            raise NotFound(f"{release.name} has no component {name}", resolution=f"use one of: {', '.join([*release.tools, *release.pins])}")
        found.append(roles[name])
    return found
