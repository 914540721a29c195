"""Verification of a dnf repository: repomd.xml, the metadata that it names, and the packages that the metadata names (createrepo's format)."""

from __future__ import annotations

import os
import re
import xml.etree.ElementTree as ET
from typing import NoReturn
from xml.parsers import expat

from ckp.hostkit.errors import VerificationFailed
from ckp.verify.archives import Broken
from ckp.verify.packagefile import ARCHITECTURES, read_bounded, sha256_of
from ckp.verify.repositories.tree import DNF, Packages, Tree, read_index, safe_path
from ckp.verify.signatures import AGAIN, MAX_SIGNATURE, check_signature

REPOMD = f"{DNF}/repomd.xml"
MAX_REPOMD = 1 << 20
MAX_ELEMENTS = 2_000_000
MAX_DEPTH = 32
REPO, COMMON = "{http://linux.duke.edu/metadata/repo}", "{http://linux.duke.edu/metadata/common}"
REQUIRED = ("primary", "filelists", "other")
_NAMED_BY_DIGEST = re.compile(r"repodata/([0-9a-f]{64})-[A-Za-z0-9._-]+\Z")


def verify_dnf(root: str, keyring: str) -> list[str]:
    """Check the dnf repository in `root`; returns what was checked. VerificationFailed otherwise."""
    tree = Tree(root)
    packages = Packages(tree, keyring)
    for name in (REPOMD, REPOMD + ".asc"):
        if name not in tree.names:
            raise VerificationFailed(f"{name} is missing in {root}: the repository is not signed", check="signature present", resolution=AGAIN)
    raw = read_bounded(tree.path(REPOMD), MAX_REPOMD)
    key = check_signature(iter([raw]), read_bounded(tree.path(REPOMD + ".asc"), MAX_SIGNATURE), keyring, REPOMD)
    files = _repomd(raw, key)
    for path, size, digest in files.values():
        tree.check_listed(path, size, digest, REPOMD)
    _check_unlisted(tree, {path for path, _, _ in files.values()})
    count = _primary(tree, files["primary"][0], packages)
    tree.refuse((name for name in tree.names - packages.named if not name.startswith(f"{DNF}/")), files["primary"][0], "unlisted package")
    return [f"dnf {os.path.join(*root.split(os.sep)[-2:])}: {count} packages verified, none missing, none unlisted, signed by {key}"]


def _repomd(raw: bytes, key: str) -> dict[str, tuple[str, int, str]]:
    """(path, size, SHA-256) by kind of metadata."""

    def broken(why: str) -> VerificationFailed:
        return VerificationFailed(f"{REPOMD} is malformed: {why}", check="repomd", key=key, resolution=AGAIN)

    found: dict[str, tuple[str, int, str]] = {}
    root = parse_xml(raw, broken)
    if root.tag != f"{REPO}repomd":
        raise broken(f"its root element is {root.tag!r}")
    for data in root.iterfind(f"{REPO}data"):
        kind, checksum, location = data.get("type", ""), data.find(f"{REPO}checksum"), data.find(f"{REPO}location")
        size = data.findtext(f"{REPO}size", "")
        if not kind or kind in found or checksum is None or location is None or not re.fullmatch(r"[0-9]{1,12}", size):
            raise broken(f"the entry {kind!r} is incomplete, or given twice")
        digest = (checksum.text or "").strip()
        if checksum.get("type") != "sha256" or not re.fullmatch(r"[0-9a-f]{64}", digest):
            raise broken(f"the entry {kind!r} has no SHA-256")
        path = _location(location, REPOMD, broken)
        if not path.startswith(f"{DNF}/"):
            raise broken(f"the entry {kind!r} is outside of {DNF}")
        found[kind] = (path, int(size), digest)
    for kind in REQUIRED:
        if kind not in found:
            raise broken(f"it does not name the metadata {kind!r}")
    return found


def _location(element: ET.Element, index: str, broken: Broken) -> str:
    if any(name.endswith("base") for name in element.attrib):
        raise broken("a location is on another server")
    return safe_path(element.get("href", ""), index)


def _check_unlisted(tree: Tree, listed: set[str]) -> None:
    for name in sorted(name for name in tree.names if name.startswith(f"{DNF}/")):
        if name in listed or name in (REPOMD, REPOMD + ".asc"):
            continue
        match = _NAMED_BY_DIGEST.match(name)
        if match is None:
            tree.refuse([name], REPOMD, "unlisted metadata")
        elif sha256_of(tree.path(name)) != match.group(1):
            raise VerificationFailed(f"{name} does not have the SHA-256 with which its name begins", check="by hash", resolution=AGAIN)


def _primary(tree: Tree, index: str, packages: Packages) -> int:
    def broken(why: str) -> VerificationFailed:
        return VerificationFailed(f"{index} is malformed: {why}", check="packages index", resolution=AGAIN)

    root = parse_xml(read_index(tree, index, broken), broken)
    items = root.findall(f"{COMMON}package")
    if root.tag != f"{COMMON}metadata" or len(items) != len(root) or root.get("packages") != str(len(items)):
        raise broken("its number of packages is wrong")
    for item in items:
        version, checksum, location, size = (item.find(f"{COMMON}{name}") for name in ("version", "checksum", "location", "size"))
        if version is None or checksum is None or location is None or size is None:
            raise broken("a package in it is incomplete")
        digest, length = (checksum.text or "").strip(), size.get("package", "")
        if checksum.get("type") != "sha256" or not re.fullmatch(r"[0-9a-f]{64}", digest) or not re.fullmatch(r"[0-9]{1,12}", length):
            raise broken("a package in it has no valid size or SHA-256")
        epoch = version.get("epoch") or "0"
        architecture = item.findtext(f"{COMMON}arch", "")
        info = packages.check(
            _location(location, index, broken),
            index,
            size=int(length),
            sha256=digest,
            name=item.findtext(f"{COMMON}name", ""),
            version=f"{'' if epoch == '0' else epoch + ':'}{version.get('ver', '')}-{version.get('rel', '')}",
            architecture=ARCHITECTURES.get(architecture, architecture),
        )
        if item.findtext(f"{COMMON}packager", "") != info.fields.get("Packager", ""):
            raise VerificationFailed(
                f"{index} and the package {info.name} differ in their packager",
                check="metadata and package",
                key=info.key,
                resolution="rebuild the indices (ckp dist repository reindex)",
            )
    return len(items)


def parse_xml(data: bytes, broken: Broken) -> ET.Element:
    """Parse XML with limits on depth and size, and without a document type, so without entities. VerificationFailed, made by `broken`."""
    builder = ET.TreeBuilder()
    parser = expat.ParserCreate("utf-8", "}")
    parser.buffer_text = True
    depth = elements = 0

    def name(text: str) -> str:
        return "{" + text if "}" in text else text

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth, elements
        depth, elements = depth + 1, elements + 1
        if depth > MAX_DEPTH or elements > MAX_ELEMENTS:
            raise broken("it is too deep or has too many elements")
        builder.start(name(tag), {name(key): value for key, value in attributes.items()})

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(name(tag))

    def refuse(*_: object) -> NoReturn:
        raise broken("it has a document type")

    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = start, end, builder.data
    parser.StartDoctypeDeclHandler = parser.EntityDeclHandler = refuse
    try:
        parser.Parse(data, True)
        return builder.close()
    except (expat.ExpatError, ValueError, AssertionError) as error:
        raise broken(str(error)) from None
