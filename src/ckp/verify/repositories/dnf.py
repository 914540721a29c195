"""Verification of a dnf repository: repomd.xml, the metadata that it names, and the packages that the metadata names (createrepo's format)."""

from __future__ import annotations

import hashlib
import os
import re
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from typing import AbstractSet, Mapping

from ckp.hostkit.errors import VerificationFailed
from ckp.verify.archives import Broken
from ckp.verify.packagefile import ARCHITECTURES, PackageInfo, read_bounded, sha256_of
from ckp.verify.repositories.tree import DNF, Packages, Tree, read_index, safe_path
from ckp.verify.repositories.xmlfile import children, read_xml
from ckp.verify.rpmtags import RELATIONS, Relation
from ckp.verify.signatures import AGAIN, MAX_SIGNATURE, check_signature

REPOMD = f"{DNF}/repomd.xml"
MAX_REPOMD = 1 << 20
NAMESPACE = "http://linux.duke.edu/metadata/"
REQUIRED = ("primary", "filelists", "other")
OF_DATA = ("checksum", "open-checksum", "location", "timestamp", "size", "open-size")
OF_PACKAGE = ("name", "arch", "version", "checksum", "summary", "description", "packager", "url", "time", "size", "location", "format")
TEXTS_OF_FORMAT = ("rpm:license", "rpm:vendor", "rpm:group", "rpm:buildhost", "rpm:sourcerpm", "rpm:header-range")
REINDEX = "rebuild the indices (ckp dist repository reindex)"
_NAMED_BY_DIGEST = re.compile(r"repodata/([0-9a-f]{64})-[A-Za-z0-9._-]+\Z")
_KINDS = {"": ("file", "link", "hardlink"), "ghost": ("file", "link", "hardlink", "folder"), "dir": ("folder",)}


@dataclass(frozen=True)
class Metadata:
    """A file that repomd.xml names, with the digest and size that it has unpacked; "" and -1 if it does not say."""

    path: str
    size: int
    sha256: str
    open_sha256: str = ""
    open_size: int = -1


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
    for file in files.values():
        tree.check_listed(file.path, file.size, file.sha256, REPOMD)
    _check_unlisted(tree, {file.path for file in files.values()})
    found = _primary(tree, files["primary"], packages)
    _filelists(tree, files["filelists"], found)
    _content(tree, files["other"])
    tree.refuse((name for name in tree.names - packages.named if not name.startswith(f"{DNF}/")), files["primary"].path, "unlisted package")
    return [f"dnf {os.path.join(*root.split(os.sep)[-2:])}: {len(found)} packages verified, none missing, none unlisted, signed by {key}"]


def _repomd(raw: bytes, key: str) -> dict[str, Metadata]:
    """What repomd.xml names, by kind of metadata."""

    def broken(why: str) -> VerificationFailed:
        return VerificationFailed(f"{REPOMD} is malformed: {why}", check="repomd", key=key, resolution=AGAIN)

    found: dict[str, Metadata] = {}

    def each(data: ET.Element) -> None:
        if data.tag != "data":
            return
        kind, parts = data.get("type", ""), children(data, OF_DATA, broken)
        checksum, location, size = parts.get("checksum"), parts.get("location"), _text(parts, "size")
        if not kind or kind in found or checksum is None or location is None or not re.fullmatch(r"[0-9]{1,12}", size):
            raise broken(f"the entry {kind!r} is incomplete, or given twice")
        digest, unpacked, length = checksum.text or "", parts.get("open-checksum"), _text(parts, "open-size")
        for element in (checksum, unpacked):
            if element is not None and (element.get("type") != "sha256" or not re.fullmatch(r"[0-9a-f]{64}", element.text or "")):
                raise broken(f"the entry {kind!r} has no SHA-256")
        if not re.fullmatch(r"[0-9]{0,12}", length):
            raise broken(f"the entry {kind!r} has an open-size that is not a number")
        path = _location(location, REPOMD, broken)
        if not path.startswith(f"{DNF}/"):
            raise broken(f"the entry {kind!r} is outside of {DNF}")
        open_digest = _text(parts, "open-checksum")
        found[kind] = Metadata(path, int(size), digest, open_digest, int(length) if length else -1)

    read_xml(raw, broken, "repomd", {"xmlns": f"{NAMESPACE}repo", "xmlns:rpm": f"{NAMESPACE}rpm"}, each)
    for kind in REQUIRED:
        if kind not in found:
            raise broken(f"it does not name the metadata {kind!r}")
    for kind in found:
        if kind not in REQUIRED:
            raise broken(f"it names the metadata {kind[:80]!r}, which CKP does not read, and dnf may")
    return found


def _location(element: ET.Element, index: str, broken: Broken) -> str:
    """The path of a location, which must not be on another server."""
    if set(element.keys()) != {"href"}:
        raise broken("a location in it is on another server, or has no path")
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


def _content(tree: Tree, file: Metadata) -> bytes:
    """The unpacked content of a metadata file, as repomd.xml has it."""

    def broken(why: str) -> VerificationFailed:
        return VerificationFailed(f"{file.path} is malformed: {why}", check="packages index", resolution=AGAIN)

    content = read_index(tree, file.path, broken)
    if file.open_sha256 not in ("", hashlib.sha256(content).hexdigest()) or file.open_size not in (-1, len(content)):
        raise VerificationFailed(f"{file.path}, decompressed, is not what {REPOMD} names", check="index content", resolution=AGAIN)
    return content


def _primary(tree: Tree, file: Metadata, packages: Packages) -> dict[str, PackageInfo]:
    """Check each package that primary.xml names; returns them by their digests."""
    index = file.path
    found: dict[str, PackageInfo] = {}

    def broken(why: str) -> VerificationFailed:
        return VerificationFailed(f"{index} is malformed: {why}", check="packages index", resolution=AGAIN)

    def each(item: ET.Element) -> None:
        if item.tag != "package" or item.get("type") != "rpm":
            raise broken(f"it has {item.tag[:80]!r} in place of a package")
        parts = children(item, OF_PACKAGE, broken)
        version, checksum, location, size, form = (parts.get(name) for name in ("version", "checksum", "location", "size", "format"))
        if version is None or checksum is None or location is None or size is None or form is None:
            raise broken("a package in it is incomplete")
        digest, length = checksum.text or "", size.get("package", "")
        if checksum.get("type") != "sha256" or not re.fullmatch(r"[0-9a-f]{64}", digest) or not re.fullmatch(r"[0-9]{1,12}", length):
            raise broken("a package in it has no valid size or SHA-256")
        if digest in found:
            raise broken(f"it names the package {digest} twice")
        info = packages.check(
            _location(location, index, broken),
            index,
            size=int(length),
            sha256=digest,
            name=_text(parts, "name"),
            version=_version(version),
            architecture=ARCHITECTURES.get(_text(parts, "arch"), ""),
        )
        _compare(index, info, parts, form, broken)
        found[digest] = info

    spaces = {"xmlns": f"{NAMESPACE}common", "xmlns:rpm": f"{NAMESPACE}rpm"}
    count = read_xml(_content(tree, file), broken, "metadata", spaces, each).get("packages")
    if count != str(len(found)):
        raise broken("its number of packages is wrong")
    return found


def _compare(index: str, info: PackageInfo, parts: Mapping[str, ET.Element], form: ET.Element, broken: Broken) -> None:
    """Compare what primary.xml says of a package, and dnf decides by, with the package's own header."""
    inner = children(form, (*TEXTS_OF_FORMAT, *(f"rpm:{kind}" for kind in RELATIONS), "file"), broken, repeated="file")
    for what, listed, label in (("packager", _text(parts, "packager"), "Packager"), ("vendor", _text(inner, "rpm:vendor"), "Vendor")):
        _same(index, info, what, listed, info.fields.get(label, ""))
    _same(index, info, "source package", _text(inner, "rpm:sourcerpm"), info.fields.get("Source", ""))
    for kind in RELATIONS:
        said = _relations(inner.get(f"rpm:{kind}"), broken)
        own = set(info.relations.get(kind, ()))
        if kind == "requires":
            # createrepo_c leaves out what rpm itself brings, and what the package does.
            own -= {relation for relation in own - said if _brought(relation, info)}
        _same(index, info, kind, _shown(said - own), _shown(own - said))
    _check_files(index, info, form, broken)


def _brought(relation: Relation, info: PackageInfo) -> bool:
    own = info.relations.get("provides", ())
    return relation.name.startswith("rpmlib(") or relation in own or relation.name[1:] in info.files


def _shown(relations: AbstractSet[Relation]) -> str:
    return ", ".join(sorted(" ".join(part for part in relation if part) for relation in relations))[:500]


def _relations(element: ET.Element | None, broken: Broken) -> set[Relation]:
    found = set()
    for entry in element if element is not None else ():
        extra = set(entry.keys()) - {"name", "flags", "epoch", "ver", "rel", "pre"}
        if entry.tag != "rpm:entry" or extra or not entry.get("name") or bool(entry.get("flags")) != bool(entry.get("ver")):
            raise broken("a relation in it is incomplete")
        attributes = [entry.get(name, "") for name in ("flags", "epoch", "ver", "rel")]
        found.add(Relation(entry.get("name", ""), *(attributes if attributes[0] else [])))
    return found


def _same(index: str, info: PackageInfo, what: str, listed: str, own: str) -> None:
    if listed != own:
        raise VerificationFailed(
            f"{index} and the package {info.name} differ in their {what}",
            check="metadata and package",
            details=f"only in the index:   {listed or '(none)'}\nonly in the package: {own or '(none)'}",
            key=info.key,
            resolution=REINDEX,
        )


def _check_files(index: str, info: PackageInfo, element: ET.Element, broken: Broken) -> set[str]:
    """Check the files that an element lists, each once and as the package has it; returns their paths without the slash at their beginning."""
    found = set()
    for file in element.iterfind("file"):
        path, kinds = file.text or "", _KINDS.get(file.get("type", ""))
        if kinds is None or not path.startswith("/") or path[1:] in found:
            raise broken(f"the file {path[:80]!r} in it is of an unknown kind, has no path, or is there twice")
        if info.files.get(path[1:]) not in kinds:
            _same(index, info, "files", path, "")
        found.add(path[1:])
    return found


def _filelists(tree: Tree, file: Metadata, packages: Mapping[str, PackageInfo]) -> None:
    """Check that filelists.xml names the files of each package, all of them and no other."""
    index, seen = file.path, set()

    def broken(why: str) -> VerificationFailed:
        return VerificationFailed(f"{index} is malformed: {why}", check="packages index", resolution=AGAIN)

    def each(item: ET.Element) -> None:
        digest = item.get("pkgid", "")
        if item.tag != "package" or digest not in packages or digest in seen:
            raise broken(f"it has {digest[:80]!r}, which is not a package, or is there twice")
        seen.add(digest)
        info, parts = packages[digest], children(item, ("version", "file"), broken, repeated="file")
        said = (item.get("name", ""), _version(parts["version"]) if "version" in parts else "", item.get("arch", ""))
        _same(index, info, "names and versions", " ".join(said), f"{info.name} {info.version} {info.fields.get('Architecture', '')}")
        listed = _check_files(index, info, item, broken)
        _same(index, info, "files", "", ", ".join(sorted(set(info.files) - listed))[:500])

    read_xml(_content(tree, file), broken, "filelists", {"xmlns": f"{NAMESPACE}filelists"}, each)
    if len(seen) != len(packages):
        raise broken("its number of packages is wrong")


def _version(element: ET.Element) -> str:
    epoch = element.get("epoch") or "0"
    return f"{'' if epoch == '0' else epoch + ':'}{element.get('ver', '')}-{element.get('rel', '')}"


def _text(parts: Mapping[str, ET.Element], name: str) -> str:
    return (parts[name].text or "") if name in parts else ""
