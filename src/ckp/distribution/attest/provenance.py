"""Provenance: from which sources, with which toolchain and flags each thing was made, as in-toto statements with SLSA's predicate.

The predicate: https://slsa.dev/spec/v1.0/provenance. Our build type is described in docs/how-to/verify-supply-chain.md.
No clock is used: the same release has the same statements.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ckp import __version__
from ckp.clients.signing.dsse import STATEMENT_TYPE
from ckp.distribution.attest import layercontents
from ckp.distribution.attest.builtrelease import BuiltRelease
from ckp.distribution.attest.cache import cached_document, code_of
from ckp.distribution.attest.cyclonedx import purl
from ckp.distribution.attest.packagecontents import read_package
from ckp.distribution.builder.component import RECIPE as BUILD_RECIPE
from ckp.distribution.builder.debian import DebianPackage
from ckp.distribution.builder.gobuildinfo import Module, Program, build_record, dirhash_hex, read_sums
from ckp.distribution.builder.goflags import build_environment, build_flags, pause_flags
from ckp.distribution.bundles import Bundle
from ckp.distribution.images import pause
from ckp.distribution.images.make import Image
from ckp.distribution.packages.pack import Package
from ckp.distribution.packages.unsigned import unsigned_sha256
from ckp.kits import paths
from ckp.kits.errors import CkpError, VerificationFailed
from ckp.kits.files import sha256_bytes, sha256_file
from ckp.verify.bundle import MANIFEST

PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "https://coredge.io/ckp/build/v1"
BUILDER = "https://coredge.io/ckp/dist"
TARGET = "linux/amd64"
BUNDLE_RECIPE = "bundle"
"""The folder below `packaging/` that describes the files of bundles."""
LOCK_FILES = ("source.toml", "go.mod", "go.sum")
RECIPE = "1"
MAKERS = ("attest.provenance", "builder.goflags", "attest.layercontents", "attest.packagecontents")
"""The modules whose code makes these statements."""
Json = dict[str, Any]


@dataclass
class _Inputs:
    """The inputs of an artifact: how each component was built, and each source once."""

    components: dict[str, Json] = field(default_factory=dict)
    sources: dict[str, Json] = field(default_factory=dict)

    def add(self, name: str, digest: Mapping[str, str], uri: str = "", **annotations: str) -> None:
        """One resource (in-toto's ResourceDescriptor)."""
        item: Json = {"name": name}
        item |= {"digest": dict(digest)} if digest else {}
        item |= {"uri": uri} if uri else {}
        item |= {"annotations": annotations} if annotations else {}
        self.sources.setdefault(f"{annotations.get('kind', '')} {uri or name} {sorted(digest.items())}", item)

    def add_file(self, path: Path, **annotations: str) -> None:
        """A file of the checkout, or of the catalog, by its path in it; an installed CKP has the same files by the same paths."""
        root = paths.data()
        name = str(path.relative_to(root)) if path.is_relative_to(root) else "/".join(path.parts[-3:])
        self.add(name, {"sha256": sha256_file(path)}, **annotations)


def binary_statement(built: BuiltRelease, program: Program) -> Json:
    """The provenance of one program of ours.

    Raises:
        VerificationFailed: a module that is linked in is not what the lock's go.sum says.
    """
    source = program.source

    def make() -> Json:
        inputs = _Inputs()
        _add_program(inputs, built, program, subject=True)
        parameters = {"kind": "binary", "name": program.name, "component": source.component, "version": source.version}
        return _statement(built, [_subject(program.name, program.sha256)], parameters, inputs)

    locks = _tree_hash(source.folder / name for name in LOCK_FILES)
    return _cached(["binary", program.name, program.sha256, str(source.folder), locks, program.built.chosen.stands_in_for, _release_hash(built)], make)


def package_statement(built: BuiltRelease, package: Package) -> Json:
    """The provenance of a package. Its second subject is the package without its signature, which a build by others can be compared with."""
    seed = ["package", package.name, package.version, package.sha256, _tree_hash(_recipe_files(package.name)), _release_hash(built)]

    def make() -> Json:
        inputs = _Inputs()
        _add_package(inputs, built, package)
        subjects = [_subject(package.path.name, package.sha256), _subject(f"{package.path.name} without its signature", unsigned_sha256(package.path))]
        parameters = {"kind": "package", "name": package.name, "version": package.version, "format": package.format}
        return _statement(built, subjects, parameters, inputs)

    return _cached(seed, make)


def image_statement(built: BuiltRelease, image: Image) -> Json:
    """The provenance of an image: its recipe, all programs in it with their sources, Debian's packages, and the lock of Python's."""
    digest = image.manifest().digest

    def make() -> Json:
        inputs = _Inputs()
        for path in image.recipe:
            inputs.add_file(path, kind="recipe")
        for layer, _ in image.layers:
            _add_layer(inputs, built, image, layercontents.contents(layer))
        parameters = {"kind": "image", "name": image.repository, "tag": image.tag}
        return _statement(built, [_subject(image.repository, digest)], parameters, inputs)

    known = [str(layercontents.contents(layer).debian) for layer, _ in image.layers]
    known += [json.dumps(pause.recorded(built.components["kubernetes"].file(pause.SOURCE), image.tag))] if image.repository == "pause" else []
    decided = [image.repository, image.tag, digest, _tree_hash(image.recipe), sha256_bytes("".join(known).encode()), _release_hash(built)]
    return _cached(["image", *decided], make)


def bundle_statement(built: BuiltRelease, bundle: Bundle, packages: Iterable[Package], images: Iterable[Image], digest: str = "") -> Json:
    """The provenance of a bundle.

    Args:
        digest: of its manifest in the registry; without it the only subject is the bundle's signed list, `bundle.json`.
    """
    listing, manifest = bundle.listing, bundle.manifest
    by_hash = {package.sha256: package for package in packages}
    if unknown := [entry.file for entry in manifest.packages if entry.sha256 not in by_hash]:
        raise CkpError(f"{bundle.folder} lists {unknown[0]} with a hash that no package of the release has")
    contained = [by_hash[entry.sha256] for entry in manifest.packages]
    wanted = {image.repository: image.manifest().digest for image in images if image.repository in manifest.images}

    def make() -> Json:
        return _bundle(built, bundle, listing, contained, wanted, digest)

    recipes = [_tree_hash(_recipe_files(name)) for name in (BUNDLE_RECIPE, *(package.name for package in contained))]
    return _cached(
        ["bundle", bundle.target.repository, sha256_bytes(listing), digest, json.dumps(wanted, sort_keys=True), *recipes, _release_hash(built)], make
    )


def _bundle(built: BuiltRelease, bundle: Bundle, listing: bytes, packages: Iterable[Package], images: Mapping[str, str], digest: str) -> Json:
    manifest, inputs = bundle.manifest, _Inputs()
    for path in _recipe_files(BUNDLE_RECIPE):
        inputs.add_file(path, kind="recipe")
    by_hash = {package.sha256: package for package in packages}
    for entry in manifest.packages:
        package = by_hash[entry.sha256]
        _add_package(inputs, built, package)
        inputs.add(entry.file, {"sha256": package.sha256}, kind="package", unsignedSha256=unsigned_sha256(package.path))
    for file, checksum in manifest.files.items():
        inputs.add(file, {"sha256": checksum}, kind="file")
    for repository, image in sorted(images.items()):
        inputs.add(repository, {"sha256": image.removeprefix("sha256:")}, kind="image")
    subjects = [_subject(bundle.target.repository, digest)] if digest else []
    parameters = {"kind": "bundle", "name": bundle.target.repository, "os": bundle.target.os, "osVersion": bundle.target.os_version}
    return _statement(built, [*subjects, _subject(MANIFEST, sha256_bytes(listing))], {**parameters, "registry": manifest.registry}, inputs)


def _subject(name: str, digest: str) -> Json:
    return {"name": name, "digest": {"sha256": digest.removeprefix("sha256:")}}


def _statement(built: BuiltRelease, subjects: list[Json], parameters: Json, inputs: _Inputs) -> Json:
    catalog = built.reader.catalog
    inputs.add_file(catalog.root / "releases" / f"{built.release.name}.toml", kind="release")
    body: Json = {
        "_type": STATEMENT_TYPE,
        "subject": subjects,
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {"release": built.release.name, "profile": built.profile, "target": TARGET, **parameters},
                "internalParameters": {"stamp": built.stamp, "recipe": BUILD_RECIPE, "components": inputs.components},
                "resolvedDependencies": [inputs.sources[key] for key in sorted(inputs.sources)],
            },
            "runDetails": {"builder": {"id": BUILDER, "version": {"ckp": __version__}}, "metadata": {}},
        },
    }
    identity = uuid.uuid5(uuid.NAMESPACE_URL, f"{BUILDER}/{json.dumps(body, sort_keys=True)}")
    body["predicate"]["runDetails"]["metadata"]["invocationId"] = identity.urn
    return body


def with_sbom(statement: Mapping[str, Any], document: bytes, media_type: str) -> Json:
    """The statement with an SBOM as a by-product of the build: what signs the statement then vouches for the document as well."""
    copy: Json = json.loads(json.dumps(statement))
    copy["predicate"]["runDetails"]["byproducts"] = [{"name": "sbom", "mediaType": media_type, "digest": {"sha256": sha256_bytes(document)}}]
    return copy


# -- inputs ------------------------------------------------------------------------------------------------------------


def _add_program(inputs: _Inputs, built: BuiltRelease, program: Program, *, subject: bool = False) -> None:
    """The program with its modules, toolchain, lock, flags; where it isn't the subject itself, it is a resource too."""
    source, catalog = program.source, built.reader.catalog
    if not subject:
        inputs.add(program.name, {"sha256": program.sha256}, kind="program", component=source.component)
    check_modules(built, program)
    for module in built.reader.program(program).all_modules():
        replaces = {"replaces": module.replaces} if module.replaces else {}
        inputs.add(str(module), {"dirHash": dirhash_hex(module.sum)}, purl("golang", module.path, module.version), kind="module", **replaces)
    toolchain = Module("golang.org/toolchain", f"v0.0.1-go{source.go}.linux-amd64", catalog.toolchain_sum(source.go))
    inputs.add(str(toolchain), {"dirHash": dirhash_hex(toolchain.sum)}, purl("golang", toolchain.path, toolchain.version), kind="toolchain")
    for name in LOCK_FILES:
        inputs.add_file(source.folder / name, kind="lock")
    for item in build_record(program.built).get("c_toolchain") or ():
        _add_debian(inputs, DebianPackage(**item), kind="c-toolchain")
    stands_in = {"standsInFor": program.built.chosen.stands_in_for} if program.built.chosen.stands_in_for else {}
    inputs.components.setdefault(
        f"{source.component} {source.version}",
        {
            "flags": build_flags(source, built.stamp),
            "environment": build_environment(source),
            "packages": {binary.name: binary.package for binary in source.binaries},
            **stands_in,
        },
    )


def check_modules(built: BuiltRelease, program: Program) -> None:
    """Whether each module that is linked in has the hash that the lock's go.sum pins, and the toolchain is the lock's.

    Raises:
        VerificationFailed: naming the module and both hashes.
    """
    source, info = program.source, built.reader.program(program)
    sums = read_sums((source.folder / "go.sum").read_text())
    for module in info.all_modules():
        pinned = sums.get((module.path, module.version))
        if not module.sum or module.sum != pinned:
            raise VerificationFailed(f"{program.name} has {module} with the hash {module.sum or 'none'}, and {source.folder}/go.sum pins {pinned or 'none'}")
    if info.go != source.go:
        raise VerificationFailed(f"{program.name} was built with Go {info.go}, and {source.folder}/source.toml pins {source.go}")


def _add_debian(inputs: _Inputs, package: DebianPackage, kind: str = "debian") -> None:
    uri = purl("deb", f"debian/{package.name}", package.version, arch=package.architecture)
    inputs.add(f"{package.name} {package.version}", {"sha256": package.sha256} if package.sha256 else {}, uri, kind=kind)


def _recipe_files(name: str) -> list[Path]:
    """The files that describe a package, by its name, or all bundles (BUNDLE_RECIPE)."""
    return sorted(path for path in (paths.data("packaging") / name).rglob("*") if path.is_file())


def _add_package(inputs: _Inputs, built: BuiltRelease, package: Package) -> None:
    for file in read_package(package).files:
        if program := built.programs.get(file.sha256):
            _add_program(inputs, built, program)
    for path in _recipe_files(package.name):
        inputs.add_file(path, kind="recipe")
    if package.name == "ckp-agent":
        inputs.add_file(paths.data("requirements", "agent.txt"), kind="lock")


def _add_layer(inputs: _Inputs, built: BuiltRelease, image: Image, held: layercontents.Contents) -> None:
    for package in held.debian:
        _add_debian(inputs, package)
    if held.python:
        inputs.add_file(paths.data("requirements", "platform.txt"), kind="lock")
    for file in held.files:
        if program := built.programs.get(file.sha256):
            _add_program(inputs, built, program)
        elif image.repository == "pause" and file.path == "pause":
            _add_pause(inputs, built, image.tag)


def _add_pause(inputs: _Inputs, built: BuiltRelease, tag: str) -> None:
    """upstream's pause.c: its module, the file itself, and the compiler's packages where the build recorded them."""
    kubernetes = built.components["kubernetes"]
    source, file = kubernetes.chosen.source, kubernetes.file(pause.SOURCE)
    sums = read_sums((source.folder / "go.sum").read_text())
    module = Module("k8s.io/kubernetes", source.version, sums["k8s.io/kubernetes", source.version])
    inputs.add(str(module), {"dirHash": dirhash_hex(module.sum)}, purl("golang", module.path, module.version), kind="module")
    inputs.components[f"pause {tag}"] = {"flags": pause_flags(tag), "environment": {}, "packages": {"pause": "build/pause/linux/pause.c"}}
    inputs.add("build/pause/linux/pause.c", {"sha256": sha256_file(file)}, kind="source")
    for item in pause.recorded(file, tag).get("c_toolchain") or ():
        _add_debian(inputs, DebianPackage(**item), kind="c-toolchain")


# -- cache -------------------------------------------------------------------------------------------------------------


def _cached(parts: Iterable[str], make: Callable[[], Json]) -> Json:
    return cached_document("statements", [RECIPE, code_of(*MAKERS), *parts], make)


def _release_hash(built: BuiltRelease) -> str:
    release = sha256_file(built.reader.catalog.root / "releases" / f"{built.release.name}.toml")
    components = [f"{role} {item.key} {item.chosen.stands_in_for}" for role, item in sorted(built.components.items())]
    return sha256_bytes("\n".join([release, built.profile, *components]).encode())


def _tree_hash(files: Iterable[Path]) -> str:
    return sha256_bytes("\n".join(f"{path.name} {sha256_file(path)}" for path in files).encode())
