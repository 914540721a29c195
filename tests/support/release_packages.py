"""The packages of the present release, unsigned, packed once for as long as their recipes and the code that packs them stay the same."""

from __future__ import annotations

from pathlib import Path

from ckp.catalog.load import Catalog
from ckp.distribution.builder.component import Built, build_component, is_built
from ckp.distribution.packages import command
from ckp.distribution.packages import pack as packages
from ckp.distribution.packages.agent import agent_version, build_zipapp
from ckp.distribution.packages.pack import Format, Package, Recipe, pack_unsigned
from ckp.distribution.packages.versions import PACKAGES
from ckp.kits import paths
from ckp.kits.files import building_directory, exclusive, sha256_bytes, sha256_file
from tests.support.marks import needs, not_built

RELEASE = "v1.35.1"
ROLES = ("kubernetes", "cni-plugins", "cri-tools", "containerd", "runc", "helm", "imgpkg", "nfpm")
NAMES = (*(name for name, _ in PACKAGES), "ckp-agent")
OWN = (*NAMES, command.NAME)
"""With the packages of the command, which no release has."""
FORMATS: tuple[Format, ...] = ("deb", "rpm")
CODE = ("rpm_payload", "pack", "debs", "licences", "completions")
"""Modules of ckp.distribution.packages that decide what is in a package."""


def built_release() -> dict[str, Built]:
    """The built components that packages are made of; skips where they are not built, which takes an hour."""
    needs("release")
    catalog = Catalog()
    release = catalog.release(RELEASE)
    chosen = [catalog.choose(release, role, "lab") for role in ROLES]
    missing = [item.role for item in chosen if not is_built(catalog, item, release.stamp)]
    if missing:
        not_built(", ".join(missing))
    return {item.role: build_component(catalog, item, release.stamp, lambda line: None) for item in chosen}


def extras(name: str) -> dict[str, Path]:
    """What the packages of CKP's own are handed; the agent's keyring is no key, since these packages are only looked at."""
    if name == command.NAME:
        place = command.environment(command.build_wheel())
        return {"environment": place, command.NAME: command.write_launcher(place, paths.cache() / "test-packages")}
    if name != "ckp-agent":
        return {}
    keyring = paths.cache() / "test-packages" / "trusted.gpg"
    keyring.parent.mkdir(parents=True, exist_ok=True)
    keyring.write_bytes(b"no key")
    return {"ckp-agent": build_zipapp(), "trusted.gpg": keyring}


def version_of(name: str, built: dict[str, Built]) -> str:
    """The version that the release gives a package."""
    if name == command.NAME:
        return command.command_version(extras(name)["environment"])
    if name == "ckp-agent":
        return agent_version(extras(name)["trusted.gpg"])
    return f"{built[dict(PACKAGES)[name]].chosen.source.version.removeprefix('v')}-ckp"


def unsigned(name: str, built: dict[str, Built], format: Format) -> Package:
    """One package of the release under its canonical name."""
    recipe, version, extra = Recipe.read(name), version_of(name, built), extras(name)
    code = "".join(sha256_file(path) for path in sorted(Path(packages.__file__).parent.glob("*.py")) if path.stem in CODE)
    digest = sha256_bytes((code + packages._digest(recipe, version, built, extra, format, "")).encode())[:20]
    folder = paths.cache() / "test-packages" / digest
    package = Package(name, version, folder / Package(name, version, folder, "", format).file_name, "", format)
    with exclusive(folder.with_name(digest + ".lock"), what=f"packing {name}", timeout=300):
        if not package.path.exists():
            with building_directory(folder) as scratch:
                pack_unsigned(recipe, version, built, built["nfpm"].binary("nfpm"), scratch / package.file_name, extra=extra, format=format)
    return package
