"""Verification of a bundle: is this what Coredge released, complete and unchanged?

Order of trust, from the outside in. Nothing is used before the checks above it have passed:

1. the folder holds regular files only (no link, no sub-folder);
2. bundle.json.asc is one good signature over bundle.json by a key of the keyring (gpgv decides);
3. bundle.json is well-formed and of the expected release, and it names every file of the folder: none is missing, none is unlisted;
4. each file has the SHA-256 given in bundle.json;
5. each package is complete and signed, byte for byte (ckp.verify.debfile, ckp.verify.rpmfile);
6. it has the expected name, version and architecture, and its maintainer or packager is Coredge.io;
7. its entries stay below the root folder, and none is a device, setuid or setgid.

This is the only implementation: the agent, the standalone installer, `ckp-agent verify` and `ckp dist verify` call it.
ckp.verify.repositories checks repositories, and verifies packages in the same way.
"""

from __future__ import annotations

import json
import os
import re
import stat
from dataclasses import dataclass
from typing import Any, Mapping, Pattern

from ckp.hostkit.errors import VerificationFailed
from ckp.verify import strictjson
from ckp.verify.packagefile import read_bounded, sha256_of
from ckp.verify.packages import verify_package
from ckp.verify.signatures import AGAIN, MAX_SIGNATURE, check_signature

SCHEMA = 1
"""Version of the format of bundle.json: `parse_manifest` reads it, `write_manifest` writes it."""
MANIFEST = "bundle.json"
SIGNATURE = "bundle.json.asc"
MAX_MANIFEST = 1 << 20
MAX_FILES = 256
VERSIONED_BY_RELEASE = ("kubeadm", "kubelet", "kubectl")
"""Packages whose version is the release's own; the others have their component's."""
OWN_BUNDLE = "use the release's own bundle (ckp release show)"
MAX_SENTENCE = 500
_ANY = re.compile("")
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+~:-]{0,127}\Z")
"""A version, or the name of an operating system or an architecture: of both package formats, and with nothing that a shell, YAML or TOML reads."""
_REPOSITORY = re.compile(r"[a-z0-9]+(?:[._/-]+[a-z0-9]+){0,63}\Z")
_REGISTRY = re.compile(r"(?:[A-Za-z0-9][A-Za-z0-9.-]{0,252}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?(?:/[a-z0-9]+(?:[._-]+[a-z0-9]+){0,63}){0,16}\Z")
"""`host:port/prefix`, as containerd and kubeadm read it."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+~-]{0,199}\Z")
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]+\Z")
_HEX64 = re.compile(r"[0-9a-f]{64}\Z")
_PINNED = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}@sha256:[0-9a-f]{64}\Z")
_RELEASE = re.compile(r"v[0-9]+\.[0-9]+\.[0-9]+(-[A-Za-z0-9.]+)?\Z")


@dataclass(frozen=True)
class Package:
    """A package as the signed manifest lists it."""

    file: str
    name: str
    version: str
    sha256: str


@dataclass(frozen=True)
class BundleManifest:
    """The content of a bundle's bundle.json, where the bundle lies, and which key signed it."""

    folder: str
    release: str
    """v1.35.1"""
    version: str
    """Of the release's own packages: 1.35.1-ckp."""
    os: str
    os_version: str
    architecture: str
    registry: str
    """`host:port/prefix` of the images."""
    packages: tuple[Package, ...]
    files: dict[str, str]
    """SHA-256 of the files that are not packages, in hex, by name."""
    images: dict[str, str]
    """`tag@sha256:…` by repository, below the registry's prefix."""
    stand_ins: tuple[str, ...] = ()
    """Components that take the place of a pin of the release, in words."""
    key: str = ""
    """Fingerprint of the key that signed it."""

    def path(self, file: str) -> str:
        """The path of a file that the manifest lists. KeyError for any other."""
        if file not in self.files and file not in [package.file for package in self.packages]:
            raise KeyError(file)
        return os.path.join(self.folder, file)

    def package(self, name: str) -> Package | None:
        """The package with this name; None if the bundle does not have it."""
        return next((package for package in self.packages if package.name == name), None)


def verify_bundle(folder: str, keyring: str, release: str | None = None, *, packages: Mapping[str, str] | None = None) -> BundleManifest:
    """Check a pulled bundle and everything in it, in the order of the module's docstring.

    Args:
        folder: the flat folder that imgpkg wrote.
        keyring: OpenPGP keyring with the trusted keys (binary, as gpgv reads it).
        release: the release that it must be of (v1.35.1); None accepts any.
        packages: versions that packages must have, by name, from the release's catalog entry; None accepts those of bundle.json.

    Raises:
        VerificationFailed: with the file, the check and the key. Nothing of the bundle may be used then.
    """
    names = _list_folder(folder)
    for needed in (MANIFEST, SIGNATURE):
        if needed not in names:
            raise VerificationFailed(f"{needed} is missing from the bundle {folder}", check="manifest present", resolution=AGAIN)
    raw = read_bounded(os.path.join(folder, MANIFEST), MAX_MANIFEST)
    signature = read_bounded(os.path.join(folder, SIGNATURE), MAX_SIGNATURE)
    key = check_signature(iter([raw]), signature, keyring, MANIFEST)
    manifest = parse_manifest(raw, folder, key)
    _check_release(manifest, release, packages)
    listed = {package.file for package in manifest.packages} | set(manifest.files)
    for name in sorted(listed - names):
        raise VerificationFailed(f"{name} is named in {MANIFEST}, but is missing from the bundle", check="completeness", resolution=AGAIN)
    for name in sorted(names - listed - {MANIFEST, SIGNATURE}):
        raise VerificationFailed(
            f"{name} is in the bundle, but is not named in {MANIFEST}",
            check="nothing unlisted",
            details="no signature covers an unlisted file",
            resolution=AGAIN,
        )
    for name, digest in sorted(manifest.files.items()):
        _check_digest(name, sha256_of(os.path.join(folder, name)), digest)
    for package in manifest.packages:
        path = os.path.join(folder, package.file)
        _check_digest(package.file, sha256_of(path), package.sha256)
        verify_package(path, keyring, name=package.name, version=package.version, architecture=manifest.architecture)
    return manifest


def _list_folder(folder: str) -> set[str]:
    try:
        entries = list(os.scandir(folder))
    except OSError as error:
        raise VerificationFailed(f"the bundle {folder} can't be read: {error.strerror}", check="folder") from None
    if len(entries) > MAX_FILES:
        raise VerificationFailed(f"the bundle {folder} holds {len(entries)} entries, at most {MAX_FILES} are allowed", check="folder", resolution=AGAIN)
    for entry in entries:
        if not stat.S_ISREG(entry.stat(follow_symlinks=False).st_mode):
            raise VerificationFailed(
                f"{entry.name} in the bundle is not a regular file (a link, a folder or a device)", check="regular files only", resolution=AGAIN
            )
    return {entry.name for entry in entries}


def _check_release(manifest: BundleManifest, release: str | None, packages: Mapping[str, str] | None) -> None:
    """The bundle and its packages are of the expected release: an older bundle under a newer name is refused."""

    def wrong(why: str, check: str) -> VerificationFailed:
        return VerificationFailed(why, check=check, key=manifest.key, resolution=OWN_BUNDLE)

    if release is not None and manifest.release != release:
        raise wrong(f"{MANIFEST} is of release {manifest.release}, but must be of {release}", "release")
    if manifest.version != f"{manifest.release[1:]}-ckp":
        raise wrong(f"{MANIFEST} is of release {manifest.release}, but has the version {manifest.version}", "release version")
    check_versions(manifest, dict.fromkeys(VERSIONED_BY_RELEASE, manifest.version), f"release {manifest.release}")
    check_versions(manifest, packages or {}, "the catalog")


def check_versions(manifest: BundleManifest, versions: Mapping[str, str], source: str) -> None:
    """Those of these packages that the manifest lists have these versions. VerificationFailed otherwise.

    Args:
        source: where the versions come from, for the error.
    """
    for name, version in sorted(versions.items()):
        package = manifest.package(name)
        if package is not None and package.version != version:
            raise VerificationFailed(
                f"{MANIFEST} lists {name} {package.version}, but {source} has {version}",
                check="release packages",
                key=manifest.key,
                resolution=OWN_BUNDLE,
            )


def parse_manifest(raw: bytes, folder: str, key: str) -> BundleManifest:
    """Parse the bundle.json of a bundle in `folder`, signed by `key`. VerificationFailed if it is malformed."""

    def broken(why: str) -> VerificationFailed:
        return VerificationFailed(f"{MANIFEST} is malformed: {why}", check="manifest", key=key, resolution=AGAIN)

    data = strictjson.parse(raw, broken)
    if not isinstance(data, dict) or not strictjson.is_integer(data.get("schema"), SCHEMA, SCHEMA):
        raise broken(f"schema {SCHEMA} is expected")

    def text(source: Any, name: str, form: Pattern[str] = _WORD) -> str:
        value = source.get(name) if isinstance(source, dict) else None
        if not isinstance(value, str) or not value:
            raise broken(f"{name} is missing or not a string")
        if not form.match(value):
            raise broken(f"{name} is {value[:200]!r}, which is not of its form")
        return value

    def file_of(source: Any) -> tuple[str, str]:
        name, digest = text(source, "file", _ANY), text(source, "sha256", _ANY)
        if not _NAME.match(name) or name in (MANIFEST, SIGNATURE):
            raise broken(f"{name!r} is not an allowed file name (only letters, digits and . _ + ~ -, no path)")
        if not _HEX64.match(digest):
            raise broken(f"the sha256 of {name} is not a digest")
        if name in seen:
            raise broken(f"{name} is named twice")
        seen.add(name)
        return name, digest

    seen: set[str] = set()
    packages: list[Package] = []
    files: dict[str, str] = {}
    for name in ("packages", "files"):
        if not isinstance(data.get(name), list):
            raise broken(f"{name} is not a list")
        if len(data[name]) > MAX_FILES:
            raise broken(f"it lists {len(data[name])} {name}, and a bundle has at most {MAX_FILES}")
    for entry in data["packages"]:
        file, digest = file_of(entry)
        name = text(entry, "name", _ANY)
        if not _PACKAGE.match(name):
            raise broken(f"{name!r} is not a package name")
        if not file.endswith((".deb", ".rpm")):
            raise broken(f"the package {file} is neither .deb nor .rpm")
        if name in [package.name for package in packages]:
            raise broken(f"the package {name} is named twice")
        packages.append(Package(file, name, text(entry, "version"), digest))
    for entry in data["files"]:
        file, digest = file_of(entry)
        files[file] = digest
    images = data.get("images", {})
    stand_ins = data.get("stand_ins", [])
    if not isinstance(images, dict) or not all(isinstance(part, str) for pair in images.items() for part in pair):
        raise broken("images is not a map of names to tags")
    if misnamed := [name for name in images if not _REPOSITORY.match(name)]:
        raise broken(f"{misnamed[0][:200]!r} is not a name of an image")
    if unpinned := [name for name, pinned in images.items() if not _PINNED.match(pinned)]:
        raise broken(f"the image {unpinned[0]} is not named by tag and digest (tag@sha256:…), so the registry could serve another one")
    if not isinstance(stand_ins, list) or not all(strictjson.is_plain_text(part, MAX_SENTENCE) for part in stand_ins):
        raise broken(f"stand_ins is not a list of strings of one line each, of at most {MAX_SENTENCE} characters")
    if not _RELEASE.match(text(data, "release", _ANY)):
        raise broken(f"{data['release'][:200]!r} is not a release")
    return BundleManifest(
        folder=folder,
        release=text(data, "release", _ANY),
        version=text(data, "version"),
        os=text(data, "os"),
        os_version=text(data, "os_version"),
        architecture=text(data, "architecture"),
        registry=text(data, "registry", _REGISTRY),
        packages=tuple(packages),
        files=files,
        images=images,
        stand_ins=tuple(stand_ins),
        key=key,
    )


def write_manifest(manifest: BundleManifest) -> bytes:
    """The bundle.json of a manifest; `parse_manifest` reads the same manifest from it.

    Equal manifests give equal bytes. Folder and key are not part of the file.

    Raises:
        VerificationFailed: `parse_manifest` would reject it.
    """
    data = {
        "schema": SCHEMA,
        "release": manifest.release,
        "version": manifest.version,
        "os": manifest.os,
        "os_version": manifest.os_version,
        "architecture": manifest.architecture,
        "registry": manifest.registry,
        "packages": [{"file": item.file, "name": item.name, "version": item.version, "sha256": item.sha256} for item in manifest.packages],
        "files": [{"file": name, "sha256": digest} for name, digest in manifest.files.items()],
        "images": manifest.images,
        "stand_ins": list(manifest.stand_ins),
    }
    raw = (json.dumps(data, indent=1, sort_keys=True) + "\n").encode()
    parse_manifest(raw, manifest.folder, manifest.key)
    return raw


def _check_digest(name: str, found: str, wanted: str) -> None:
    if found != wanted:
        raise VerificationFailed(
            f"the SHA-256 of {name} is not the one in {MANIFEST}", check="sha256", details=f"expected {wanted}\nfound    {found}", resolution=AGAIN
        )


def describe_bundle(manifest: BundleManifest) -> list[str]:
    """A description of a verified bundle, in lines for people."""
    return [
        f"bundle {manifest.release} ({manifest.version}) for {manifest.os} {manifest.os_version}/{manifest.architecture}: verified",
        f"  {len(manifest.packages)} packages, {len(manifest.files)} other files, signed by {manifest.key}",
        *(f"  stand-in: {line}" for line in manifest.stand_ins),
    ]
