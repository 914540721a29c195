"""BYOH bundles: everything that a host of one operating system needs for one release, as one OCI artifact that imgpkg pushes and pulls."""

from __future__ import annotations

import re
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pydantic import model_validator

from ckp.catalog.models import BundleTarget, Release
from ckp.clients.oci.registry import Registry
from ckp.clients.oci.store import BlobStore, Manifest
from ckp.clients.signing.openpgp import SigningKey
from ckp.distribution.builder.component import Built
from ckp.distribution.images.layers import EPOCH
from ckp.distribution.images.make import Image
from ckp.distribution.management import fill
from ckp.distribution.packages.pack import Package, copy_packages
from ckp.distribution.packages.recipefile import Strict, applies, built_source, read_recipe
from ckp.distribution.packages.versions import stand_in_line
from ckp.hostkit.errors import VerificationFailed as Refused
from ckp.kits import paths
from ckp.kits.disks import naming_full_disk
from ckp.kits.errors import CkpError, InvalidInput, VerificationFailed
from ckp.kits.files import atomic_write, building_directory, exclusive, sha256_bytes, sha256_file
from ckp.kits.processes import run
from ckp.verify.archives import opened_tar
from ckp.verify.bundle import MANIFEST, MAX_FILES, SIGNATURE, BundleManifest, parse_manifest, write_manifest
from ckp.verify.bundle import Package as Listed
from ckp.verify.packagefile import MAX_FILE

PREFIX = "ckp"
MAX_BUNDLE = 4 << 30
AGENT_IMAGE = "ckp-agent"
"""The agent's packages, deb and rpm, for hosts whose agent is upgraded from the hub."""
PACKAGES_IMAGE = "ckp-packages"
"""The same packages in signed repositories, which the hub serves to machines that enrol."""
SIGNED_IMAGES = (AGENT_IMAGE, PACKAGES_IMAGE)
"""Images with signed packages in them: another signature gives another digest."""
PLATFORM_IMAGES = ("ckp-platform", "ckp-addons", "ckp-backup", AGENT_IMAGE, PACKAGES_IMAGE)
"""Images of the management layer: they change with CKP's own code, and a bundle holds a Kubernetes release only."""


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk."""

    target: BundleTarget
    folder: Path

    @property
    def listing(self) -> bytes:
        """Its bundle.json."""
        return (self.folder / MANIFEST).read_bytes()

    @property
    def manifest(self) -> BundleManifest:
        """Its bundle.json, parsed; the signature is not checked. Raises hostkit's VerificationFailed if it is malformed."""
        return parse_manifest(self.listing, str(self.folder), "")


class BundleFile(Strict):
    """A file of a bundle beside its packages: either a chart, packed as helm reads it, or a template beside the recipe."""

    name: str
    when: dict[str, str] = {}
    """Left out of releases where not each of these roles is played by the component named."""
    chart: str = ""
    """`<component>/files/<folder>`; in the archive the folder is called as the component."""
    template: str = ""
    images: dict[str, str] = {}
    """Placeholder of the template (`@NAME@`) -> repository of an image, whose full reference replaces it."""

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if bool(self.chart) == bool(self.template) or (self.chart and self.images):
            raise ValueError("a file has either a chart, or a template with its images")
        return self


class BundleRecipe(Strict):
    """`packaging/bundle/bundle.toml`."""

    files: tuple[BundleFile, ...]


def read_bundle_recipe() -> BundleRecipe:
    """The recipe of all bundles. InvalidInput names the key that is wrong."""
    return read_recipe(_recipe_file(), BundleRecipe, "a bundle")


def _recipe_file() -> Path:
    return paths.data("packaging", "bundle", "bundle.toml")


def make_bundle(
    release: Release,
    target: BundleTarget,
    packages: Sequence[Package],
    images: Sequence[Image],
    built: Mapping[str, Built],
    registry: str,
    key: SigningKey,
) -> Bundle:
    """Make and sign a bundle, or find it in the cache.

    `bundle.json` lists each file with its SHA-256 and is signed; a file that it does not list makes the bundle invalid.
    """
    stand_ins = sorted(
        stand_in_line(item.chosen.source.component, item.chosen.source.version, item.chosen.stands_in_for)
        for item in built.values()
        if item.chosen.stands_in_for
    )
    packages = [package for package in packages if package.format == target.format]
    # By digest: the signature over this list is what a host has to go by, and a registry can say of a tag what it likes.
    pinned = {image.repository: f"{image.tag}@{image.manifest().digest}" for image in images if image.repository not in PLATFORM_IMAGES}
    files = _files(built, f"{registry}/{PREFIX}", pinned)
    manifest = BundleManifest(
        folder="",
        release=release.name,
        version=release.package_version,
        os=target.os,
        os_version=target.os_version,
        architecture="amd64",
        registry=f"{registry}/{PREFIX}",
        packages=tuple(Listed(f"{item.name}.{item.format}", item.name, item.version, item.sha256) for item in packages),
        files={name: sha256_bytes(content) for name, content in files.items()},
        images=pinned,
        stand_ins=tuple(stand_ins),
    )
    listing = write_manifest(manifest)
    final = paths.cache() / "bundles" / f"{target.repository}-{release.stamp}-{sha256_bytes(key.subkey.encode() + listing)[:20]}"
    with exclusive(final.with_name(final.name + ".lock"), what="making a bundle", timeout=300):
        if not final.exists():
            with building_directory(final) as scratch:
                copy_packages(list(packages), scratch)
                for name, content in files.items():
                    (scratch / name).write_bytes(content)
                (scratch / MANIFEST).write_bytes(listing)
                (scratch / SIGNATURE).write_bytes(key.sign(listing, armor=True))
    return Bundle(target, final)


def tag_of(pinned: str) -> str:
    """The tag of an image as a bundle names it, `tag@sha256:…`."""
    return pinned.partition("@")[0]


def _files(built: Mapping[str, Built], registry: str, pinned: Mapping[str, str]) -> dict[str, bytes]:
    """What the recipe's files hold in this release, by name."""
    found: dict[str, bytes] = {}
    for number, file in enumerate(read_bundle_recipe().files):
        if not applies(file.when, built):
            continue
        where = f"{_recipe_file()}: files.{number}"
        if file.chart:
            folder = built_source(file.chart, built, f"{where}.chart")
            found[file.name] = packed_chart(folder, file.chart.partition("/")[0]).read_bytes()
            continue
        for name, repository in file.images.items():
            if repository not in pinned:
                raise InvalidInput(f"{where}.images.{name}: the release has no image {repository!r}", resolution=f"write one of: {', '.join(sorted(pinned))}")
        images = {name: f"{registry}/{repository}:{pinned[repository]}" for name, repository in file.images.items()}
        template = _recipe_file().parent / file.template
        if not template.is_file():
            raise InvalidInput(f"{where}.template: there is no {template}", resolution="add that file, or correct its name")
        found[file.name] = fill(template.read_text(), images, str(template)).encode()
    return found


def packed_chart(folder: Path, name: str) -> Path:
    """A chart as a helm archive, packed or found packed; the same chart gives the same bytes.

    Args:
        name: of the folder in the archive.
    """
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    content = [f"{path.relative_to(folder)} {sha256_file(path)}" for path in files]
    final = paths.cache() / "charts" / f"{name}-{sha256_bytes(chr(10).join(content).encode())[:20]}"
    with exclusive(final.with_name(final.name + ".lock"), what="packing a chart", timeout=60):
        if not final.exists():
            with building_directory(final) as scratch:
                tar = scratch / "chart.tar"
                with tarfile.open(tar, "w", format=tarfile.PAX_FORMAT) as archive:
                    for path in files:
                        info = tarfile.TarInfo(f"{name}/{path.relative_to(folder)}")
                        info.size, info.mtime, info.mode = path.stat().st_size, EPOCH, 0o644
                        with path.open("rb") as stream:
                            archive.addfile(info, stream)
                run(["gzip", "-n", "-9", tar], timeout=60, what="packing a chart")
    return final / "chart.tar.gz"


def is_pushed(bundle: Bundle, release: Release, registry: Registry) -> bool:
    """Whether the release's tag names exactly this content: by the record of an earlier push, else by pulling what the tag names."""
    repository = f"{PREFIX}/{bundle.target.repository}"
    manifest = registry.find_manifest(repository, release.stamp)
    if manifest is None:
        return False
    record = _record(bundle)
    if record.exists() and record.read_text() == manifest.digest:
        return True
    try:
        with pulled_bundle(registry, repository, manifest, f"{registry.address}/{repository}:{release.stamp}") as there:
            same = _contents(there) == _contents(bundle.folder)
    except VerificationFailed:
        return False
    if same:
        atomic_write(record, manifest.digest)
    return same


def _record(bundle: Bundle) -> Path:
    """The file with the digest that a bundle got in a registry: imgpkg decides it."""
    return bundle.folder.with_name(bundle.folder.name + ".digest")


def _contents(folder: Path) -> dict[str, str]:
    return {path.name: sha256_file(path) for path in folder.iterdir()}


def push_bundle(bundle: Bundle, release: Release, registry: Registry, address: str, ca: Path | None, imgpkg: Path, credentials: Path | None = None) -> str:
    """Push with imgpkg under the release's tag unless that tag names exactly this content; returns the digest.

    Args:
        address: `host:port` under which this machine reaches the registry.
        ca: the CA of its certificate; None for those that the system trusts.
        credentials: a file in the format of docker's config.json.
    """
    repository = f"{PREFIX}/{bundle.target.repository}"
    record = _record(bundle)
    known = registry.digest(repository, release.stamp)
    if known and record.exists() and record.read_text() == known:
        return known
    argv: list[str | Path] = [imgpkg, "push", "--image", f"{address}/{repository}:{release.stamp}", "--file", bundle.folder, "--tty=false"]
    if ca:
        argv += ["--registry-ca-cert-path", ca]
    with tempfile.TemporaryDirectory(prefix="ckp-imgpkg-") as home:
        # imgpkg finds credentials by docker's own rule, a folder with a config.json; in a folder of ours it finds no others.
        if credentials:
            (Path(home) / "config.json").symlink_to(credentials.absolute())
        run(argv, timeout=600, env={"DOCKER_CONFIG": home}, what=f"pushing {bundle.target.repository}")
    digest = registry.digest(repository, release.stamp)
    if digest is None:
        raise CkpError(f"{repository}:{release.stamp} was pushed, but the registry does not have it")
    atomic_write(record, digest)
    return digest


@contextmanager
def pulled_bundle(registry: Registry, repository: str, manifest: Manifest, name: str) -> Iterator[Path]:
    """A bundle's content in a temporary folder, not verified yet. VerificationFailed if it is not a bundle."""
    with tempfile.TemporaryDirectory(prefix="ckp-verify-") as scratch:
        folder = Path(scratch) / "bundle"
        folder.mkdir()
        store = BlobStore(Path(scratch) / "blobs")
        for layer in manifest.layers:
            if layer.size > MAX_FILE:
                raise VerificationFailed(f"{name} has a layer of {layer.size >> 20} MiB, and the limit is {MAX_FILE >> 20} MiB")
            unpack_bundle(registry.pull_blob(repository, layer, store), folder, name)
        yield folder


def unpack_bundle(layer: Path, folder: Path, name: str) -> None:
    """Unpack a layer of a bundle: regular files in one flat folder, within the limits. VerificationFailed for anything else."""
    left = MAX_BUNDLE
    try:
        with naming_full_disk(folder), opened_tar(str(layer), MAX_BUNDLE + MAX_FILES * 2048, Refused) as tar:
            for number, entry in enumerate(tar.entries(), start=1):
                plain = entry.path.removeprefix("./").rstrip("/")
                if plain in ("", ".") and entry.kind == "folder":
                    continue
                left -= entry.size
                if number > MAX_FILES or left < 0:
                    raise VerificationFailed(f"{name} unpacks to more than {MAX_FILES} files or {MAX_BUNDLE >> 30} GiB")
                if entry.kind != "file" or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+~-]{0,199}", plain):
                    raise VerificationFailed(f"{name} holds {entry.path!r}, and a bundle is a flat folder of regular files")
                with (folder / plain).open("xb") as target:
                    for chunk in tar.content():
                        target.write(chunk)
    except FileExistsError as error:
        raise VerificationFailed(f"{name} holds {Path(error.filename).name!r} twice") from error
    except (Refused, OSError) as error:
        raise VerificationFailed(f"{name} has a layer that is not a tar archive: {error}") from error
