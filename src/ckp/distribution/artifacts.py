"""Artifacts of a release by name, with their SBOM and provenance: programs, packages, images, bundles, files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ckp.catalog.load import Catalog, Profile
from ckp.clients.signing.openpgp import SIGNING
from ckp.distribution.attest import provenance, sbom
from ckp.distribution.attest.builtrelease import BuiltRelease, open_built_release
from ckp.distribution.attest.cyclonedx import Json
from ckp.distribution.builder.gobuildinfo import Program, Reader, programs
from ckp.distribution.bundles import Bundle
from ckp.distribution.images.make import Image
from ckp.distribution.packages.pack import Package
from ckp.distribution.release import Distribution
from ckp.kits import paths
from ckp.kits.errors import InvalidInput, NotFound
from ckp.kits.files import sha256_file

KINDS = ("binary", "package", "image", "bundle")
Artifact = Program | Package | Image | Bundle | Path


@dataclass
class Artifacts:
    """The artifacts of a release that this machine has built.

    A name is that of a program (`kubelet`), of a package's file (`kubelet.deb`), of an image (`image/kube-apiserver`, or without its kind
    where no program has that name), of a bundle (`ubuntu_22.04`, or its whole repository name), or the path of a file.
    """

    catalog: Catalog
    release: str
    profile: Profile
    say: Callable[[str], None]

    @cached_property
    def built(self) -> BuiltRelease:
        """The release as far as it is built."""
        return open_built_release(self.catalog, self.catalog.release(self.release), self.profile, partial=True)

    @cached_property
    def _made(self) -> Distribution:
        self.built.require_all()
        return Distribution(self.catalog, self.built.release, self.profile, self.say, built=dict(self.built.components))

    @cached_property
    def packages(self) -> list[Package]:
        """All packages, the agent's among them, packed if they are not in the cache.

        NotFound if a component is not built, or there is no signing key: commands that only read do not make one.
        """
        if not (paths.keys() / SIGNING).exists():
            raise NotFound(f"there is no signing key in {paths.keys()}, so no packages were made here", resolution=f"ckp dist build {self.release}")
        self._made.pack()
        return [*self._made.packages, *self._made.agents]

    @cached_property
    def images(self) -> list[Image]:
        """All images, made if they are not in the cache; NotFound if a component is not built."""
        self._made.make_images()
        return self._made.images

    def find(self, name: str) -> Artifact:
        """The artifact called `name`.

        Raises:
            NotFound: there is none; with the forms that names have.
        """
        kind, slash, rest = name.partition("/")
        wanted = kind if slash and kind in KINDS else ""
        if not wanted and Path(name).is_file():
            return self._file(Path(name))
        short = rest if wanted else name
        if wanted in ("", "binary") and (found := self._program(short)):
            return found
        if wanted == "package" or (not wanted and short.endswith((".deb", ".rpm"))):
            return self._package(short)
        if wanted in ("", "bundle") and (target := self._bundle(short)):
            return target
        if wanted in ("", "image"):
            for image in self.images:
                if image.repository == short:
                    return image
        raise NotFound(
            f"{self.release} has no artifact {name} that is built here",
            resolution="name a program (kubelet), a package (kubelet.deb), an image (image/kube-apiserver), a bundle (ubuntu_22.04), a file, "
            "or a reference (host:port/repository:tag)",
        )

    def _program(self, name: str) -> Program | None:
        return next((item for item in programs(self.built.components.values()) if item.name == name), None)

    def _package(self, name: str) -> Package:
        for package in self.packages:
            if name in (f"{package.name}.{package.format}", package.path.name):
                return package
        names = ", ".join(sorted(f"{package.name}.{package.format}" for package in self.packages))
        raise NotFound(f"{self.release} has no package {name}", resolution=f"use one of: {names}")

    def _bundle(self, name: str) -> Bundle | None:
        for target in self.built.release.bundles:
            if name in (target.repository, f"{target.os}_{target.os_version}"):
                made = sorted(
                    (folder for folder in (paths.cache() / "bundles").glob(f"{target.repository}-{self.built.stamp}-*") if folder.is_dir()),
                    key=lambda folder: folder.stat().st_mtime,
                )
                if not made:
                    raise NotFound(f"the bundle {target.repository} is not made on this machine", resolution=f"ckp dist build {self.release}")
                return Bundle(target, made[-1])
        return None

    def _file(self, path: Path) -> Artifact:
        """The artifact that a file is, by its hash; else its path, as that of any Go program."""
        digest = sha256_file(path)
        if path.suffix in (".deb", ".rpm"):
            for package in self.packages:
                if package.sha256 == digest:
                    return package
            raise NotFound(f"{path} is none of the packages of {self.release} that were made here", resolution="name the release that it is of: --release")
        return self.built.programs.get(digest, path)

    def sbom(self, artifact: Artifact) -> Json:
        """The SBOM of an artifact."""
        if isinstance(artifact, Program):
            return sbom.binary_sbom(self.built, artifact)
        if isinstance(artifact, Package):
            return sbom.package_sbom(self.built, artifact)
        if isinstance(artifact, Image):
            return sbom.image_sbom(self.built, artifact)
        if isinstance(artifact, Bundle):
            return sbom.bundle_sbom(self.built, artifact, self.packages, self.images)
        return sbom.path_sbom(Reader(self.catalog), artifact)

    def statement(self, artifact: Artifact) -> Json:
        """The provenance of an artifact; InvalidInput for what was not made here."""
        if isinstance(artifact, Program):
            return provenance.binary_statement(self.built, artifact)
        if isinstance(artifact, Package):
            return provenance.package_statement(self.built, artifact)
        if isinstance(artifact, Image):
            return provenance.image_statement(self.built, artifact)
        if isinstance(artifact, Bundle):
            return provenance.bundle_statement(self.built, artifact, self.packages, self.images)
        raise InvalidInput(
            f"{artifact} is neither an artifact that was made here nor signed provenance",
            resolution="name the file of an envelope, or an artifact of the release",
        )

    def statements(self, *, everything: bool) -> list[Json]:
        """The provenance of all programs; with `everything`, also of packages, images and bundles."""
        found = [provenance.binary_statement(self.built, item) for item in self.built.programs.values()]
        if everything:
            found += [provenance.package_statement(self.built, item) for item in self.packages]
            found += [provenance.image_statement(self.built, item) for item in self.images]
            for target in self.built.release.bundles:
                found.append(self.statement(self.find(f"bundle/{target.repository}")))
        return found
