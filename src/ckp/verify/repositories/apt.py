"""Verification of an apt repository: InRelease, the indices that it names, and the packages that they name (Debian's repository format)."""

from __future__ import annotations

import hashlib
import os
import re
import time
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from typing import Iterator, Mapping

from ckp.hostkit.errors import VerificationFailed
from ckp.verify.deb822 import Paragraph, parse_deb822, parse_lines, words
from ckp.verify.packagefile import CHUNK, open_file, read_bounded, sha256_of
from ckp.verify.repositories.tree import APT, PACKINGS, UNREAD, Packages, Tree, open_index, packing_of, safe_path
from ckp.verify.signatures import AGAIN, MAX_SIGNATURE, check_cleartext, check_signature

MAX_RELEASE = 4 << 20
AHEAD = 3600.0
"""Seconds by which the clock of whoever made the indices may be ahead. apt itself allows 10, and refuses what is from later."""
NOT_COMPARED = ("Description", "Description-md5", "Filename", "Size", "MD5sum", "SHA1", "SHA256", "SHA512")
"""Fields that an index has of its own. All others are the package's: if one differs, apt decides by wrong data."""
OTHER_DIGESTS = {"MD5Sum": "md5", "SHA1": "sha1", "SHA512": "sha512"}
"""Further fields of Release and of indices with digests, by hashlib's names. apt shows the strongest that a file has, and refuses a file if any differs."""
_INDEX = re.compile(r"([^/]+)/binary-([^/]+)/Packages\Z")
"""Where apt looks for an index, in a repository with components."""
_BY_HASH = re.compile(r"(?:.*/)?by-hash/SHA256/([0-9a-f]{64})\Z")
_DATE = re.compile(
    r"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun), ([0-9]{2}) (Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec) ([0-9]{4})"
    r" ([0-9]{2}):([0-9]{2}):([0-9]{2}) (?:UTC|GMT|Z|[+-]0000)"
)
"""What apt reads as a date (RFC 1123)."""


@dataclass(frozen=True)
class Listed:
    """A file as the signed Release names it; `others` are its further digests, by their fields."""

    sha256: str
    size: int
    others: Mapping[str, str] = field(default_factory=dict)


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
    for plain in sorted(groups):
        _check_reached(plain, fields, base, key)
    count = 0
    for plain, names in sorted(groups.items()):
        present = {name: place for name in sorted(names) for place in _places(tree, base, name, listed[name])}
        if present:
            count += _verify_packings(tree, base, plain, present, listed, packages)
        for name in sorted(names):
            if base + name not in tree.names:  # not every client asks by hash
                raise VerificationFailed(f"{base}{name} is named in InRelease, but is missing from the repository", check="missing metadata", resolution=AGAIN)
    _check_unlisted(tree, base, set(listed))
    return count, key


def _check_reached(plain: str, fields: Mapping[str, str], base: str, key: str) -> None:
    """Check that a file of the Release is an index of packages, and one that apt looks for: else it is read by one of us only."""

    def wrong(why: str) -> VerificationFailed:
        return VerificationFailed(f"{base}InRelease names {plain[:120]!r}, {why}", check="index place", key=key, resolution=AGAIN)

    match = _INDEX.match(plain)
    if match is None:
        raise wrong("which CKP does not read, and apt may")
    component, architecture = match.groups()
    for label, name in (("Components", component), ("Architectures", architecture)):
        if name not in words(fields.get(label, "")):
            raise wrong(f"but {name!r} is not among its {label}, so apt does not read it")
    if architecture == "all" and "Packages" in words(fields.get("No-Support-for-Architecture-all", "")):
        raise wrong("but says that there is no such index, so apt does not read it")


def _places(tree: Tree, base: str, name: str, listed: Listed) -> list[str]:
    """Where a file of the Release lies: by its name, by its hash, or not at all. Each is checked to be that file."""
    by_hash = os.path.join(base, os.path.dirname(name), "by-hash/SHA256", listed.sha256)
    places = [place for place in (base + name, by_hash) if place in tree.names]
    for place in places:
        tree.check_listed(place, listed.size, listed.sha256, f"{base}InRelease")
        _check_digests(tree, place, listed.others, f"{base}InRelease")
    return places


def _check_digests(tree: Tree, name: str, wanted: Mapping[str, str], index: str, key: str = "") -> None:
    """Check the further digests, by their fields, that `index` gives a file. VerificationFailed if one differs."""
    for label, expected in wanted.items():
        digest = hashlib.new(OTHER_DIGESTS[label], usedforsecurity=False)
        with open_file(tree.path(name)) as stream:
            for chunk in iter(lambda: stream.read(CHUNK), b""):
                digest.update(chunk)
        if digest.hexdigest() != expected:
            raise VerificationFailed(f"{name} does not have the {label} that {index} gives it", check="second digest", key=key, resolution=AGAIN)


def _plain(name: str) -> str:
    return next((name[: -len(suffix)] for suffix in (*PACKINGS, *UNREAD) if suffix and name.endswith(suffix)), name)


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

    paragraphs = list(parse_deb822(text if text.endswith(b"\n") else text + b"\n", broken))
    if len(paragraphs) != 1:
        raise broken(f"it has {len(paragraphs)} paragraphs")
    return paragraphs[0], key


def _check_time(fields: Mapping[str, str], base: str, key: str) -> None:
    def moment(label: str) -> float:
        match = _DATE.fullmatch(fields[label])
        try:
            if match is None:
                raise ValueError
            day, month, year, hour, minute, second = match.groups()
            return datetime(int(year), _MONTHS.index(month) + 1, int(day), int(hour), int(minute), int(second), tzinfo=timezone.utc).timestamp()
        except ValueError:
            raise VerificationFailed(
                f"{base}InRelease has a {label} that is not a date: {fields[label][:60]!r}", check="release file", key=key, resolution=AGAIN
            ) from None

    if "Date" not in fields:
        raise VerificationFailed(f"{base}InRelease has no Date", check="release file", key=key, resolution=AGAIN)
    if moment("Date") > time.time() + AHEAD:
        raise VerificationFailed(
            f"{base}InRelease is of {fields['Date']}, which is not yet",
            check="date",
            key=key,
            resolution="compare the clock of this machine with that of the one that publishes",
        )
    if "Valid-Until" in fields and moment("Valid-Until") < time.time():
        raise VerificationFailed(
            f"{base}InRelease was valid until {fields['Valid-Until']}: it is out of date",
            check="valid until",
            key=key,
            resolution="publish or reindex the repository, or download it again",
        )


_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def _listed(fields: Mapping[str, str], base: str, key: str) -> dict[str, Listed]:
    """What the Release names, by path: by the field SHA256, and by no other that SHA256 does not have as well."""
    release = f"{base}InRelease"

    def lines(label: str, length: int) -> Iterator[tuple[str, int, str]]:
        for line in fields.get(label, "").split("\n"):
            match = re.fullmatch(rf"([0-9a-f]{{{length}}}) +([0-9]{{1,12}}) +(\S+)", line)
            if match is None and line:
                raise VerificationFailed(f"{release} is malformed: the line {line[:120]!r}", check="release file", key=key, resolution=AGAIN)
            if match is not None:
                yield match[1], int(match[2]), match[3]

    found: dict[str, Listed] = {}
    for digest, size, name in lines("SHA256", 64):
        if name in found:
            raise VerificationFailed(f"{release} names {name!r} twice", check="release file", key=key, resolution=AGAIN)
        found[safe_path(name, release)] = Listed(digest, size)
    if not found:
        raise VerificationFailed(f"{release} names no index of packages by SHA-256", check="release file", key=key, resolution=AGAIN)
    for label, algorithm in OTHER_DIGESTS.items():
        for digest, size, name in lines(label, 2 * hashlib.new(algorithm, usedforsecurity=False).digest_size):
            if name not in found or found[name].size != size:
                raise VerificationFailed(
                    f"{release} names {name[:120]!r} by {label} otherwise than by SHA256", check="second digest", key=key, resolution=AGAIN
                )
            if label in found[name].others:
                raise VerificationFailed(f"{release} names {name!r} twice by {label}", check="release file", key=key, resolution=AGAIN)
            found[name] = replace(found[name], others={**found[name].others, label: digest})
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


def _verify_packings(tree: Tree, base: str, plain: str, present: Mapping[str, str], listed: Mapping[str, Listed], packages: Packages) -> int:
    """Check that all packings of an index have one content, the one that the Release gives, and each package in it; returns how many."""
    wanted = (listed[plain].sha256, listed[plain].size) if plain in listed else None
    for name, place in present.items():

        def broken(why: str, name: str = name) -> VerificationFailed:
            return VerificationFailed(f"{base}{name} is malformed: {why}", check="packages index", resolution=AGAIN)

        if name.endswith(UNREAD):
            raise VerificationFailed(
                f"{base}{name} is packed in a way that CKP does not read, and apt would", check="index packing", resolution="publish it by CKP"
            )
        digest, size = hashlib.sha256(), 0
        with open_index(tree, place, packing_of(name), broken) as pieces:
            for piece in pieces:
                digest.update(piece)
                size += len(piece)
        wanted = wanted or (digest.hexdigest(), size)
        if (digest.hexdigest(), size) != wanted:
            raise VerificationFailed(
                f"{base}{name}, decompressed, is not {plain} as InRelease names it",
                check="index content",
                details=f"expected {wanted[0]}, {wanted[1]} bytes\nfound    {digest.hexdigest()}, {size} bytes",
                resolution=AGAIN,
            )
    name, place = next(iter(present.items()))
    return _verify_index(tree, place, packing_of(name), packages)


def _verify_index(tree: Tree, name: str, packing: str, packages: Packages) -> int:
    def broken(why: str) -> VerificationFailed:
        return VerificationFailed(f"{name} is malformed: {why}", check="packages index", resolution=AGAIN)

    seen: set[tuple[str, str, str]] = set()
    with open_index(tree, name, packing, broken) as pieces:
        for fields in parse_lines(pieces, broken):
            lacking = [label for label in ("Package", "Version", "Architecture", "Filename", "Size", "SHA256") if not fields.get(label)]
            if lacking:
                raise broken(f"a package in it has no {lacking[0]}")
            if not re.fullmatch(r"[0-9]{1,12}", fields["Size"]) or not re.fullmatch(r"[0-9a-f]{64}", fields["SHA256"]):
                raise broken(f"{fields['Package']} in it has no valid Size or SHA256")
            identity = (fields["Package"], fields["Version"], fields["Architecture"])
            if identity in seen:
                raise broken(f"it names {' '.join(identity)} twice")
            seen.add(identity)
            _verify_entry(tree, name, fields, packages)
    return len(seen)


def _verify_entry(tree: Tree, index: str, fields: Paragraph, packages: Packages) -> None:
    path = fields["Filename"]
    info = packages.check(
        path,
        index,
        size=int(fields["Size"]),
        sha256=fields["SHA256"],
        name=fields["Package"],
        version=fields["Version"],
        architecture=fields["Architecture"],
    )
    own = {label.lower() for label in NOT_COMPARED}
    for label in (*info.fields, *fields):
        if label.lower() not in own and words(fields.get(label, "")) != words(info.fields.get(label, "")):
            raise VerificationFailed(
                f"{index} and the package {path} differ in {label}",
                check="metadata and package",
                details=f"index:   {fields.get(label, '(none)')}\npackage: {info.fields.get(label, '(none)')}",
                key=info.key,
                resolution="rebuild the indices (ckp dist repository reindex)",
            )
    others = {label: fields[label] for label in OTHER_DIGESTS if label in fields}
    _check_digests(tree, path, others, index, info.key)
