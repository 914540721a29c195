"""What is in an image's layer, read from its blob: files with their hashes, Debian's packages, Python's packages.

A layer is read once; the result is cached by the layer's digest.
"""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from email.parser import HeaderParser
from typing import Any

from ckp.clients.oci.registry import Descriptor
from ckp.distribution.builder import debian
from ckp.distribution.builder.debian import DebianPackage
from ckp.distribution.images.layers import store
from ckp.kits import paths
from ckp.kits.files import CHUNK, atomic_write
from ckp.kits.processes import run

RECIPE = "3"
STATUS = "var/lib/dpkg/status"
INFO = "var/lib/dpkg/info/"
MADE_AT_INSTALL = ("var/lib/dpkg/", "var/lib/apt/", "etc/ssl/certs/", "etc/alternatives/", "var/lib/systemd/")
"""Folders whose files Debian's packages make when they are installed; they are in no package's list."""
METADATA_BYTES = 4 << 20


@dataclass(frozen=True)
class File:
    """A regular file of a layer; `path` has no leading slash."""

    path: str
    sha256: str
    size: int


@dataclass(frozen=True)
class PythonPackage:
    """A Python distribution below a site folder (PEP 376). `record` is the SHA-256 of its RECORD, which lists the hash of each of its files."""

    name: str
    version: str
    licence: str
    expression: str
    record: str


@dataclass(frozen=True)
class Contents:
    """What a layer brings: `files` are those that no package of the two kinds brought."""

    files: tuple[File, ...] = ()
    debian: tuple[DebianPackage, ...] = ()
    python: tuple[PythonPackage, ...] = ()


def contents(layer: Descriptor) -> Contents:
    """The contents of a layer of the local store; read on the first call."""
    record = paths.cache() / "sbom" / "layers" / f"{RECIPE}-{layer.digest.removeprefix('sha256:')}.json"
    if record.exists():
        found = _from_json(json.loads(record.read_text()))
    else:
        found = _read(layer)
        atomic_write(record, json.dumps(asdict(found), sort_keys=True))
    # Hashes of archives are kept beside the layer, and may have come later than this record.
    known = debian.remembered(layer.digest) or []
    return Contents(found.files, tuple(debian.with_hashes(found.debian, known) if found.debian else known), found.python)


def _from_json(data: Mapping[str, Any]) -> Contents:
    return Contents(
        tuple(File(**item) for item in data["files"]),
        tuple(DebianPackage(**item) for item in data["debian"]),
        tuple(PythonPackage(**item) for item in data["python"]),
    )


@dataclass
class _Reading:
    files: dict[str, File] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    texts: dict[str, bytes] = field(default_factory=dict)


def _read(layer: Descriptor) -> Contents:
    tar = store().scratch()
    try:
        run(["zstd", "-q", "-d", "-f", store().path(layer.digest), "-o", tar], timeout=600, what=f"unpacking the layer {layer.digest}")
        reading = _Reading()
        with tarfile.open(tar) as archive:
            for member in archive:
                _take(archive, member, reading)
    finally:
        tar.unlink(missing_ok=True)
    owned: set[str] = set()
    packages = debian.parse_packages(reading.texts.get(STATUS, b"").decode(errors="replace"))
    for name, text in reading.texts.items():
        if name.startswith(INFO):
            owned.update(_both_names(text.decode(errors="replace")))
    python = []
    for name in sorted(reading.texts):
        if name.endswith(".dist-info/METADATA"):
            site, folder = name.rsplit("/", 2)[0], name.removesuffix("/METADATA")
            rows = reading.texts.get(f"{folder}/RECORD", b"")
            listed = {f"{site}/{line.rsplit(',', 2)[0].strip(chr(34))}" for line in rows.decode(errors="replace").splitlines()}
            owned |= listed | {path for path in reading.files if path.startswith(f"{folder}/")}
            python.append(_python_package(reading.texts[name], rows))
    made = MADE_AT_INSTALL if packages else ()
    files = [item for path, item in sorted(reading.files.items()) if not {path, _compiled_from(path)} & owned and not path.startswith(made)]
    return Contents(tuple(files), tuple(packages), tuple(python))


def _take(archive: tarfile.TarFile, member: tarfile.TarInfo, reading: _Reading) -> None:
    path = member.name.removeprefix("./").lstrip("/")
    if member.islnk():
        original = reading.files.get(member.linkname.removeprefix("./").lstrip("/"))
        if original:
            reading.files[path] = File(path, original.sha256, original.size)
        return
    if not member.isfile() or (stream := archive.extractfile(member)) is None:
        return
    wanted = path == STATUS or (path.startswith(INFO) and path.endswith(".list")) or path.endswith((".dist-info/METADATA", ".dist-info/RECORD"))
    digest, kept = hashlib.sha256(), b""
    while chunk := stream.read(CHUNK):
        digest.update(chunk)
        if wanted and len(kept) < METADATA_BYTES:
            kept += chunk
    if wanted:
        reading.texts[path] = kept
    reading.files[path] = File(path, digest.hexdigest(), member.size)


def _both_names(listed: str) -> set[str]:
    """Paths of a package's list, also as they are with /usr merged: the list may say /lib, the file lies below /usr/lib."""
    found = {line.lstrip("/") for line in listed.splitlines()}
    return found | {f"usr/{path}" for path in found if path.split("/")[0] in ("bin", "sbin", "lib", "lib32", "lib64", "libx32")}


def _compiled_from(path: str) -> str:
    """The source of a compiled Python file (PEP 3147)."""
    return re.sub(r"__pycache__/([^/]+?)\.cpython-\d+(\.opt-\d)?\.pyc$", r"\1.py", path)


def _python_package(metadata: bytes, record: bytes) -> PythonPackage:
    headers = HeaderParser().parsestr(metadata.decode(errors="replace"))
    expression = headers.get("License-Expression", "")
    lines = headers.get("License", "").strip().splitlines()
    classifiers = [value.rsplit("::", 1)[1].strip() for value in headers.get_all("Classifier") or [] if value.startswith("License ::")]
    name = lines[0].strip() if len(lines) == 1 else ", ".join(classifiers)
    return PythonPackage(headers["Name"], headers["Version"], "" if expression else name, expression, hashlib.sha256(record).hexdigest())
