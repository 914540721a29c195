"""Verification of an apt repository: InRelease, the indices that it names, and the packages that they name (Debian's repository format)."""

from __future__ import annotations

import os
import re
import time
from email.utils import parsedate_to_datetime

from ckp.hostkit.errors import VerificationFailed
from ckp.verify.deb822 import Paragraph, parse_deb822
from ckp.verify.packagefile import read_bounded, sha256_of
from ckp.verify.repositories.tree import APT, MAX_INDEX, PACKINGS, Packages, Tree, read_index, safe_path
from ckp.verify.signatures import AGAIN, MAX_SIGNATURE, check_cleartext, check_signature

MAX_RELEASE = 4 << 20
COMPARED = ("Maintainer", "Depends", "Pre-Depends", "Conflicts", "Breaks", "Replaces", "Provides", "Essential", "Multi-Arch")
"""Fields that apt's resolver uses: if one differs in index and package, apt decides by wrong data."""
_BY_HASH = re.compile(r"(?:.*/)?by-hash/SHA256/([0-9a-f]{64})\Z")
_INDEX = re.compile(r"(?:.*/)?binary-[a-z0-9-]+/Packages\Z")


def verify_apt(root: str, keyring: str) -> list[str]:
    """Check the apt repository in `root` with all its suites; returns what was checked. VerificationFailed otherwise."""
    tree = Tree(root)
    suites = sorted({name.split("/")[1] for name in tree.names if name.startswith(f"{APT}/") and name.count("/") > 1})
    if not suites:
        raise VerificationFailed(f"there is no suite in {os.path.join(root, APT)}", check="repository", resolution=AGAIN)
    packages = Packages(tree, keyring)
    lines = []
    for suite in suites:
        count, key = _verify_suite(tree, suite, packages)
        lines.append(f"apt {suite}: {count} packages in its indices, signed by {key}")
    tree.refuse((name for name in tree.names if name.startswith(f"{APT}/") and name.count("/") < 2), "any suite", "unlisted metadata")
    tree.refuse((name for name in tree.names - packages.named if not name.startswith(f"{APT}/")), "any index", "unlisted package")
    return [*lines, f"apt: {len(packages.named)} packages verified, none missing, none unlisted"]


def _verify_suite(tree: Tree, suite: str, packages: Packages) -> tuple[int, str]:
    base = f"{APT}/{suite}/"
    fields, key = _release(tree, base, packages.keyring)
    if suite not in (fields.get("Codename"), fields.get("Suite")):
        raise VerificationFailed(
            f"{base}InRelease is of another suite: {fields.get('Codename') or fields.get('Suite')!r}", check="suite", key=key, resolution=AGAIN
        )
    _check_time(fields, base, key)
    listed = _listed(fields, base, key)
    groups: dict[str, list[str]] = {}
    for name in listed:
        groups.setdefault(_plain(name), []).append(name)
    for plain, names in sorted(groups.items()):
        present = [name for name in names if base + name in tree.names]
        if not present:
            raise VerificationFailed(f"{base}{plain} is named in InRelease, but is missing from the repository", check="missing metadata", resolution=AGAIN)
        for name in present:
            tree.check_listed(base + name, listed[name][1], listed[name][0], f"{base}InRelease")
    _check_unlisted(tree, base, set(listed))
    count = 0
    for plain in sorted(name for name in groups if _INDEX.match(name)):
        name = min(name for name in groups[plain] if base + name in tree.names)
        count += _verify_index(tree, base + name, listed.get(plain), packages)
    return count, key


def _plain(name: str) -> str:
    return next((name[: -len(suffix)] for suffix in PACKINGS if suffix and name.endswith(suffix)), name)


def _release(tree: Tree, base: str, keyring: str) -> tuple[Paragraph, str]:
    """The signed fields, and the signing key. Release with Release.gpg may exist beside InRelease, with the same content."""
    if base + "InRelease" not in tree.names:
        raise VerificationFailed(f"{base}InRelease is missing: the suite is not signed", check="signature present", resolution=AGAIN)
    text, key = check_cleartext(read_bounded(tree.path(base + "InRelease"), MAX_RELEASE), keyring, base + "InRelease")
    pair = {name for name in ("Release", "Release.gpg") if base + name in tree.names}
    if len(pair) == 1:
        missing = ({"Release", "Release.gpg"} - pair).pop()
        raise VerificationFailed(f"{base} has {pair.pop()}, but not {missing}", check="release pair", resolution=AGAIN)
    if pair:
        release = read_bounded(tree.path(base + "Release"), MAX_RELEASE)
        check_signature(iter([release]), read_bounded(tree.path(base + "Release.gpg"), MAX_SIGNATURE), keyring, base + "Release")
        if release.rstrip(b"\n") != text.rstrip(b"\n"):
            raise VerificationFailed(f"{base}Release and {base}InRelease differ", check="release pair", key=key, resolution=AGAIN)

    def broken(why: str) -> VerificationFailed:
        return VerificationFailed(f"{base}InRelease is malformed: {why}", check="release file", key=key, resolution=AGAIN)

    paragraphs = list(parse_deb822(text, broken))
    if len(paragraphs) != 1:
        raise broken(f"it has {len(paragraphs)} paragraphs")
    return paragraphs[0], key


def _check_time(fields: dict[str, str], base: str, key: str) -> None:
    until = fields.get("Valid-Until")
    if until is None:
        return
    try:
        end = parsedate_to_datetime(until).timestamp()
    except (TypeError, ValueError, IndexError, OverflowError):
        raise VerificationFailed(f"{base}InRelease has a Valid-Until that is not a date: {until[:60]!r}", check="release file", key=key) from None
    if end < time.time():
        raise VerificationFailed(
            f"{base}InRelease was valid until {until}: it is out of date",
            check="valid until",
            key=key,
            resolution="publish or reindex the repository, or download it again",
        )


def _listed(fields: dict[str, str], base: str, key: str) -> dict[str, tuple[str, int]]:
    """(SHA-256, size) by path, from the field SHA256."""
    found: dict[str, tuple[str, int]] = {}
    for line in fields.get("SHA256", "").split("\n"):
        if not line.strip():
            continue
        match = re.fullmatch(r"([0-9a-f]{64}) +([0-9]{1,12}) +(\S+)", line.strip())
        if match is None or match.group(3) in found:
            raise VerificationFailed(f"{base}InRelease is malformed: the line {line[:120]!r}", check="release file", key=key, resolution=AGAIN)
        found[safe_path(match.group(3), f"{base}InRelease")] = (match.group(1), int(match.group(2)))
    if not any(_INDEX.match(_plain(name)) for name in found):
        raise VerificationFailed(f"{base}InRelease names no index of packages by SHA-256", check="release file", key=key, resolution=AGAIN)
    return found


def _check_unlisted(tree: Tree, base: str, listed: set[str]) -> None:
    signed = {"InRelease", "Release", "Release.gpg"}
    for name in sorted(name[len(base) :] for name in tree.names if name.startswith(base)):
        if name in listed or name in signed:
            continue
        match = _BY_HASH.match(name)
        if match is None:
            tree.refuse([base + name], f"{base}InRelease", "unlisted metadata")
        elif sha256_of(tree.path(base + name)) != match.group(1):
            raise VerificationFailed(f"{base}{name} does not have the SHA-256 that is its name", check="by hash", resolution=AGAIN)


def _verify_index(tree: Tree, name: str, plain: tuple[str, int] | None, packages: Packages) -> int:
    def broken(why: str) -> VerificationFailed:
        return VerificationFailed(f"{name} is malformed: {why}", check="packages index", resolution=AGAIN)

    text = read_index(tree, name, broken)
    if plain is not None and len(text) != plain[1]:
        raise broken("decompressed, it does not have the size that InRelease gives")
    count = 0
    assert len(text) <= MAX_INDEX
    for fields in parse_deb822(text, broken):
        lacking = [label for label in ("Package", "Version", "Architecture", "Filename", "Size", "SHA256") if not fields.get(label)]
        if lacking:
            raise broken(f"a package in it has no {lacking[0]}")
        if not re.fullmatch(r"[0-9]{1,12}", fields["Size"]) or not re.fullmatch(r"[0-9a-f]{64}", fields["SHA256"]):
            raise broken(f"{fields['Package']} in it has no valid Size or SHA256")
        info = packages.check(
            fields["Filename"],
            name,
            size=int(fields["Size"]),
            sha256=fields["SHA256"],
            name=fields["Package"],
            version=fields["Version"],
            architecture=fields["Architecture"],
        )
        for label in COMPARED:
            if fields.get(label, "").split() != info.fields.get(label, "").split():
                raise VerificationFailed(
                    f"{name} and the package {fields['Filename']} differ in {label}",
                    check="metadata and package",
                    details=f"index:   {fields.get(label, '(none)')}\npackage: {info.fields.get(label, '(none)')}",
                    key=info.key,
                    resolution="rebuild the indices (ckp dist repository reindex)",
                )
        count += 1
    return count
