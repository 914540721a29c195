"""The software bill of materials of each program, package, image and bundle, down to the Go module and the Debian package.

It is derived from the finished artifacts: a program's own build info, the files of a package, the blobs of an image.
Documents are CycloneDX 1.6, cached by a hash of what goes into them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ckp.distribution.attest import layercontents
from ckp.distribution.attest.builtrelease import BuiltRelease
from ckp.distribution.attest.cache import cached_document, code_of
from ckp.distribution.attest.cyclonedx import Bom, Json, component, licences, properties, purl, sha256
from ckp.distribution.attest.packagecontents import PackageContents, read_package
from ckp.distribution.builder import debian
from ckp.distribution.builder.debian import DebianPackage
from ckp.distribution.builder.gobuildinfo import BuildInfo, Module, Program, Reader, build_record
from ckp.distribution.bundles import Bundle
from ckp.distribution.images import pause
from ckp.distribution.images.make import Image
from ckp.distribution.packages.pack import Package
from ckp.kits import paths
from ckp.kits.errors import CkpError
from ckp.kits.files import sha256_bytes, sha256_file
from ckp.verify.packagefile import MAINTAINER

VENDOR = "coredge"
MAKERS = ("attest.sbom", "attest.cyclonedx", "builder.debian", "attest.layercontents", "attest.packagecontents", "builder.gobuildinfo")
"""The modules whose code makes these documents."""
DEBIAN_DISTRIBUTION = "debian-12"
PREFIX = "ckp"
"""Prefix of the names of our properties."""


def binary_sbom(built: BuiltRelease, program: Program) -> Json:
    """The document of one program of ours."""
    source = program.source
    parts = ["binary", program.name, program.sha256, built.version(program), program.built.key, _built_hash(program)]
    return _cached(parts, lambda: _binary(built, program, source.go))


def path_sbom(reader: Reader, path: Path) -> Json:
    """The document of any Go program, from its build info alone. Raises InvalidInput for any other file."""
    digest = sha256_file(path)
    info = reader.read(path, digest)
    root = component("application", f"program:{path.name}:{digest[:16]}", path.name, version=info.main.version, hashes=sha256(digest))
    bom = Bom(root)
    _add_modules(bom, info, "")
    if info.settings.get("CGO_ENABLED") == "1":
        bom.incomplete.add(bom.ref)
    return bom.document()


def package_sbom(built: BuiltRelease, package: Package) -> Json:
    """The document of a deb or rpm: each of its files, its programs with their modules, and what it depends on."""
    return _cached(["package", package.name, package.version, package.sha256, _release_hash(built)], lambda: _package(built, package))


def image_sbom(built: BuiltRelease, image: Image) -> Json:
    """The document of an image: its layers, and in each the programs, Debian's and Python's packages and other files."""
    digest = image.manifest().digest
    known = json.dumps([[item.sha256 for item in debian.remembered(layer.digest) or ()] for layer, _ in image.layers])
    lock = sha256_file(_python_lock())
    made = json.dumps(pause.recorded(built.components["kubernetes"].file(pause.SOURCE), image.tag)) if image.repository == "pause" else ""
    return _cached(
        ["image", image.repository, image.tag, digest, sha256_bytes(known.encode()), lock, made, _release_hash(built)], lambda: _image(built, image, digest)
    )


def bundle_sbom(built: BuiltRelease, bundle: Bundle, packages: Iterable[Package], images: Iterable[Image], digest: str = "") -> Json:
    """The document of a bundle: its packages with all that is in them, its other files, and the images that it asks for, by digest.

    Args:
        digest: of its manifest in the registry, once that is known.
    """
    listing = bundle.listing
    digests = {image.repository: (image, image.manifest().digest) for image in images}
    seed = ["bundle", bundle.target.repository, sha256_bytes(listing), json.dumps({name: digest for name, (_, digest) in sorted(digests.items())})]
    return _cached([*seed, digest, _release_hash(built)], lambda: _bundle(built, bundle, listing, list(packages), digests, digest))


def _cached(parts: Iterable[str], make: Callable[[], Json]) -> Json:
    return cached_document("documents", [code_of(*MAKERS), *parts], make)


def _built_hash(program: Program) -> str:
    return sha256_file(program.built.folder / "build.json")


def _release_hash(built: BuiltRelease) -> str:
    return sha256_bytes(
        "\n".join([built.stamp, *(f"{role} {item.key} {item.chosen.stands_in_for}" for role, item in sorted(built.components.items()))]).encode()
    )


# -- programs ----------------------------------------------------------------------------------------------------------


def _binary(built: BuiltRelease, program: Program, go: str) -> Json:
    source, info = program.source, built.reader.program(program)
    root = component(
        "application",
        f"program:{program.name}:{program.sha256[:16]}",
        program.name,
        version=built.version(program),
        supplier={"name": MAINTAINER},
        hashes=sha256(program.sha256),
        licenses=licences(source.license),
        purl=purl("generic", f"{VENDOR}/{program.name}", built.version(program)),
        properties=properties(
            [
                (f"{PREFIX}:component", f"{source.component} {source.version}"),
                (f"{PREFIX}:stands-in-for", program.built.chosen.stands_in_for),
                (f"{PREFIX}:upstream", source.upstream),
                (f"{PREFIX}:upstream-commit", source.commit),
                (f"{PREFIX}:go-package", info.package),
            ]
        ),
    )
    bom = Bom(root)
    _add_modules(bom, info, built.reader.catalog.toolchain_sum(go), main_licence=source.license)
    if source.cgo:
        _add_c_packages(bom, build_record(program.built).get("c_packages"), bom.ref)
    return bom.document()


def _add_modules(bom: Bom, info: BuildInfo, toolchain_sum: str, main_licence: str = "") -> None:
    for module in info.all_modules():
        bom.add(module_component(module, main_licence if module == info.main else ""))
    where = properties([(f"{PREFIX}:toolchain-sum", toolchain_sum)])
    bom.add(component("library", f"go-stdlib@{info.go}", "stdlib", version=info.go, purl=purl("golang", "stdlib", info.go), properties=where))


def module_component(module: Module, licence: str = "") -> Json:
    """A Go module. Its go.sum hash is a property: `hashes` are of files, and this one is of a tree."""
    return component(
        "library",
        f"go:{module}",
        module.path,
        version=module.version,
        licenses=licences(licence),
        purl=purl("golang", module.path, module.version),
        properties=properties([(f"{PREFIX}:go.sum", module.sum), (f"{PREFIX}:replaces", module.replaces)]),
    )


def _add_c_packages(bom: Bom, recorded: Any, under: str) -> None:
    """The C libraries and the compiler; if the build did not record them, the document is marked incomplete."""
    if not recorded:
        bom.incomplete.add(under)
        return
    for item in recorded:
        bom.add(debian_component(DebianPackage(**item)), under=under)


def debian_component(package: DebianPackage) -> Json:
    """A package of Debian; its hash is that of the archive."""
    return component(
        "library",
        f"deb:{package.name}:{package.architecture}@{package.version}",
        package.name,
        version=package.version,
        hashes=sha256(package.sha256),
        purl=purl("deb", f"debian/{package.name}", package.version, arch=package.architecture, distro=DEBIAN_DISTRIBUTION),
        properties=properties([(f"{PREFIX}:debian-source", package.source or package.name)]),
    )


# -- packages ----------------------------------------------------------------------------------------------------------


def _package(built: BuiltRelease, package: Package) -> Json:
    held = read_package(package)
    bom = Bom(_package_root(package, held))
    known = built.programs
    for item in held.files:
        _add_file(bom, built, known, item.path, item.sha256, bom.ref)
    return bom.document()


def _package_root(package: Package, held: PackageContents) -> Json:
    return component(
        "application",
        f"package:{package.name}@{package.version}:{package.format}",
        package.name,
        version=package.version,
        supplier={"name": MAINTAINER},
        hashes=sha256(package.sha256),
        purl=purl(package.format, f"{VENDOR}/{package.name}", held.version, arch=package.architecture),
        properties=properties([(f"{PREFIX}:depends", item) for item in held.depends]),
    )


def _add_file(bom: Bom, built: BuiltRelease, known: Mapping[str, Program], path: str, digest: str, under: str) -> None:
    """A file; a program of ours with all that is linked into it, the host tool with what is zipped into it."""
    if program := known.get(digest):
        ref = bom.merge(binary_sbom(built, program), under=under)
        bom.add(component("file", f"file:/{path}:{digest[:16]}", f"/{path}", hashes=sha256(digest)), under=under)
        bom.edges[f"file:/{path}:{digest[:16]}"].add(ref)
        return
    ref = bom.add(component("file", f"file:/{path}:{digest[:16]}", f"/{path}", hashes=sha256(digest)), under=under)
    if path == "usr/bin/ckp-agent":
        for name, (version, hashes) in locked_python("agent").items():
            bom.add(_python_component(name, version, hashes), under=ref)


# -- images ------------------------------------------------------------------------------------------------------------


def _image(built: BuiltRelease, image: Image, digest: str) -> Json:
    root = component(
        "container",
        f"image:{image.repository}:{image.tag}",
        image.repository,
        version=image.tag,
        supplier={"name": MAINTAINER},
        hashes=sha256(digest),
        purl=purl("oci", image.repository, digest, arch="amd64", tag=image.tag),
    )
    bom, known = Bom(root), built.programs
    for number, (layer, diff) in enumerate(image.layers, start=1):
        more = properties([(f"{PREFIX}:diff-id", diff), (f"{PREFIX}:media-type", layer.media_type)])
        ref = bom.add(component("file", f"layer:{number}:{layer.digest[7:23]}", f"layer {number}", hashes=sha256(layer.digest), properties=more))
        held = layercontents.contents(layer)
        for package in held.debian:
            bom.add(debian_component(package), under=ref)
            if not package.sha256:
                bom.incomplete.add(ref)
        for item in held.python:
            hashes = locked_python("platform").get(_normal(item.name), ("", ()))[1]
            bom.add(_python_component(item.name, item.version, hashes, item.record, item.licence, item.expression), under=ref)
        for file in held.files:
            if image.repository == "pause" and file.path == "pause":
                _add_pause(bom, built, image.tag, file.sha256, ref)
            else:
                _add_file(bom, built, known, file.path, file.sha256, ref)
    return bom.document()


def _add_pause(bom: Bom, built: BuiltRelease, tag: str, digest: str, under: str) -> None:
    """The one program in C: from upstream's pause.c, with the C library of the machine that built it."""
    kubernetes = built.components["kubernetes"]
    source = kubernetes.file(pause.SOURCE)
    ref = f"program:pause:{digest[:16]}"
    origin = properties([(f"{PREFIX}:component", str(Module("k8s.io/kubernetes", kubernetes.chosen.source.version)))])
    fields: Json = {"hashes": sha256(digest), "licenses": licences(kubernetes.chosen.source.license), "properties": origin}
    bom.add(component("application", ref, "pause", version=tag, purl=purl("generic", f"{VENDOR}/pause", tag), **fields), under=under)
    bom.add(component("file", f"file:pause.c:{sha256_file(source)[:16]}", "build/pause/linux/pause.c", hashes=sha256(sha256_file(source))), under=ref)
    _add_c_packages(bom, pause.recorded(source, tag).get("c_packages"), ref)


# -- Python ------------------------------------------------------------------------------------------------------------


def _python_lock(name: str = "platform") -> Path:
    return paths.data("requirements", f"{name}.txt")


def locked_python(name: str) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Of a locked requirements file: the normal name (PEP 503) -> version, and the SHA-256 of each archive that pip may take."""
    text = _python_lock(name).read_text().replace("\\\n", " ")
    found = {}
    for line in text.splitlines():
        if match := re.match(r"([A-Za-z0-9._-]+)(?:\[[^]]*\])?==(\S+)", line):
            found[_normal(match[1])] = (match[2], tuple(sorted(re.findall(r"--hash=sha256:([0-9a-f]{64})", line))))
    return found


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _python_component(name: str, version: str, archives: Iterable[str], record: str = "", licence: str = "", expression: str = "") -> Json:
    """A Python distribution. pip took one of the locked archives; `record` covers each file as it was installed."""
    return component(
        "library",
        f"pypi:{_normal(name)}@{version}",
        name,
        version=version,
        licenses=licences(name=licence, expression=expression),
        purl=purl("pypi", _normal(name), version),
        properties=properties([(f"{PREFIX}:record-sha256", record), *((f"{PREFIX}:locked-sha256", item) for item in archives)]),
    )


# -- bundles -----------------------------------------------------------------------------------------------------------


def _bundle(built: BuiltRelease, bundle: Bundle, listing: bytes, packages: list[Package], digests: Mapping[str, tuple[Image, str]], own: str) -> Json:
    manifest = bundle.manifest
    root = component(
        "application",
        f"bundle:{bundle.target.repository}:{built.stamp}",
        bundle.target.repository,
        version=built.stamp,
        supplier={"name": MAINTAINER},
        hashes=sha256(own),
        properties=properties([(f"{PREFIX}:list-sha256", sha256_bytes(listing)), *((f"{PREFIX}:stand-in", item) for item in manifest.stand_ins)]),
    )
    bom = Bom(root)
    by_hash = {package.sha256: package for package in packages}
    for entry in manifest.packages:
        if entry.sha256 not in by_hash:
            raise CkpError(f"{bundle.folder} lists {entry.file} with the hash {entry.sha256}, and no package of the release has it")
        bom.merge(package_sbom(built, by_hash[entry.sha256]))
    for file, checksum in manifest.files.items():
        bom.add(component("file", f"file:{file}:{checksum[:16]}", file, hashes=sha256(checksum)))
    for repository in sorted(manifest.images):
        image, digest = digests[repository]
        reference = purl("oci", repository, digest, arch="amd64", tag=image.tag)
        bom.add(
            component("container", f"image:{repository}:{image.tag}", repository, version=image.tag, hashes=sha256(digest), purl=reference, scope="optional")
        )
    return bom.document()
