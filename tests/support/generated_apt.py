"""Apt repositories as hypothesis makes them: signed well, and written in many ways, some of which readers take differently."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import lzma
import subprocess
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache, partial
from pathlib import Path
from typing import TypeVar

from hypothesis import strategies as st

from tests.support.spoilt_packages import Deb, Sign

SUITE = "noble"
T = TypeVar("T")


@dataclass
class Pick:
    """Chooses what is usual, but for some faults: the other choices of a whole repository are numbered as they come up, and a fault is such a number.

    Args:
        draw: for what is as good as another.
        count: how many there were until now.
    """

    draw: st.DrawFn
    faults: Collection[int]
    count: int = 0

    def rarely(self) -> bool:
        """Whether this is a fault to make."""
        return self.mostly(False, True)

    def mostly(self, usual: T, *others: T) -> T:
        """The usual, or one of the others."""
        start, self.count = self.count, self.count + len(others)
        return next((others[fault - start] for fault in self.faults if start <= fault < self.count), usual)


def faults(most: int) -> st.SearchStrategy[list[int]]:
    """None to three of the first `most` faults."""
    return st.lists(st.integers(0, most), max_size=3)


@dataclass(frozen=True)
class Built:
    """A signed package with its control fields."""

    file: str
    raw: bytes = field(repr=False)
    fields: Mapping[str, str]


def pool(sign: Sign) -> list[Built]:
    """Packages of several architectures, with all kinds of relations, and some whose versions are equal though they are written otherwise."""
    made = []
    for name, version, architecture, lines in (
        ("kubelet", "1.35.1-ckp", "amd64", "Depends: cri-tools (>= 1.27.0) | crictl:any, iproute2\nPre-Depends: dpkg (= 0:1.17~rc1)\n"),
        ("kubelet", "1.35.2-ckp", "amd64", "Depends: cri-tools(>=1.27.0)|crictl ,\n iproute2\nRecommends: aa:any (>> 2) | bb\nTag: x::y, z\n"),
        ("kubelet", "1.35.1-ckp", "arm64", "Depends: aa (>= 1:2)\n"),
        ("kubectl", "1:1.35.1-ckp", "amd64", "Provides: kubernetes-cli (= 1.35), kc\nMulti-Arch: foreign\nSuggests: ee\nEnhances: ff (>= 0)\n"),
        ("kubectl", "0:1.35.1-ckp", "amd64", "Essential: yes\nPriority: required\nSection: admin\nInstalled-Size: 1200\n"),
        ("kubectl", "1.35.1-ckp", "amd64", "Origin: CKP\nBreaks: aa (<< 1:2), bb:arm64\nReplaces: aa (<< 1:2)\nConflicts: cc, dd (<= 5-1)\n"),
        ("libckp", "1.0", "amd64", "Multi-Arch: same\nDepends: libc6:any (>= 2.36)\n"),
        ("libckp", "1.00", "amd64", "Important: yes\nProtected: yes\nBuild-Essential: no\nX-Foo: a\tb\n"),
        ("libckp", "1.0", "arm64", "Multi-Arch: same\n"),
        ("ckp-data", "2+really1~a1", "all", "Multi-Arch: allowed\nReplaces: aa\n"),
        ("ckp-data", "2+really1~a1", "amd64", "Provides: ckp-data-x, ckp-data-y (= 1)\n"),
        ("ckp-data", "2+really1", "all", "Depends:\nSection: a b\n"),
    ):
        raw = Deb(name=name, version=version, architecture=architecture, fields=lines).build(sign)
        fields = {"Package": name, "Version": version, "Architecture": architecture, "Maintainer": Deb().maintainer}
        for line in lines.splitlines():
            label, colon, value = line.partition(":")
            if line[0] == " ":
                fields[list(fields)[-1]] += "\n" + line
            else:
                fields[label] = value.strip() if colon else ""
        made.append(Built(f"pool/{name}_{version}_{architecture}.deb", raw, {**fields, "Description": "a test\n more"}))
    return made


# -- an index


def stanza(pick: Pick, deb: Built) -> str:
    """What an index says of a package."""
    digest = {label: hashlib.new(name, deb.raw).hexdigest() for label, name in DIGESTS.items()}
    fields = dict(deb.fields)
    fields["Filename"] = pick.mostly(deb.file, f"./{deb.file}", f"/{deb.file}", deb.file.replace("/", "//"), deb.file.replace("_", "%5f"))
    fields["Size"] = pick.mostly(str(len(deb.raw)), f"0{len(deb.raw)}", f"+{len(deb.raw)}", f"{len(deb.raw)}.0", hex(len(deb.raw)))
    for label in ("SHA256", *pick.draw(st.lists(st.sampled_from(sorted(DIGESTS)), max_size=2))):
        fields[label] = pick.mostly(digest[label], digest[label].upper(), "0" * len(digest[label]), digest[label] + "\n x")
    fields["Description"] = pick.mostly(fields["Description"], "", "other", "a test\n more\n .\n .\n Package: evil", "x\n " + "y" * 5000)
    for label, value in pick.draw(st.lists(st.sampled_from(FURTHER), max_size=1)) if pick.rarely() else []:
        fields[label] = value
    if pick.rarely():
        fields.pop(pick.draw(st.sampled_from(sorted(fields))))
    lines = []
    for label in pick.draw(st.permutations(sorted(fields))) if pick.draw(st.booleans()) else fields:
        shown = pick.mostly(label, label.upper(), label.lower(), label.swapcase())
        value = pick.mostly(fields[label], *(change(fields[label]) for change in FOLDS))
        lines.append(shown + pick.mostly(": ", ":", ":\t", ":  ", ": \n ", " : ") + value.replace("\n ", pick.mostly("\n ", "\n\t", "\n  ")))
    extra = pick.mostly("", "#x\n", "Package: evil\n", "depends: evil\n", "-x: y\n", " \n", "X:\n", "\N{NO-BREAK SPACE}x: y\n", "x\n")
    at = pick.draw(st.integers(0, len(lines))) if extra else 0
    return "".join(f"{line}{pick.mostly('', ' ', chr(9), chr(13), chr(11))}\n" for line in lines[:at]) + extra + "".join(f"{line}\n" for line in lines[at:])


DIGESTS = {"MD5sum": "md5", "SHA1": "sha1", "SHA256": "sha256", "SHA512": "sha512"}
FURTHER = (
    ("Depends", "evil"),
    ("Recommends", "evil"),
    ("Essential", "yes"),
    ("Important", "yes"),
    ("Multi-Arch", "same"),
    ("Status", "install ok installed"),
    ("Description-md5", "0" * 32),
    ("Description-en", "x"),
    ("MSDOS-Filename", "x.deb"),
    ("Optional", "evil"),
    ("Checksum-FileSize", "1"),
    ("MD5Sum", "0" * 32),
    ("Phased-Update-Percentage", "0"),
)
FOLDS: Sequence[Callable[[str], str]] = (
    lambda value: value.replace(", ", ",\n "),
    lambda value: value.replace(" ", "  "),
    lambda value: value.replace(" ", "\n "),
    lambda value: value.replace(", ", " ,\t"),
    lambda value: value.replace(", ", ","),
    lambda value: "\n " + value,
    lambda value: value + "\n ",
    lambda value: value.upper(),
    lambda value: f'"{value}"',
)


def index(pick: Pick, debs: Sequence[Built]) -> bytes:
    """An index of some packages."""
    chosen = pick.draw(st.lists(st.sampled_from(debs), max_size=4, unique_by=pick.mostly(lambda deb: deb.file, id)))
    parts = [stanza(pick, deb) for deb in chosen]
    if parts and pick.rarely():
        parts.append(parts[0])
    text = pick.mostly("\n", "\n\n", "\n\n\n", " \n", "\r\n", "\t\n", "#\n").join(parts)
    text = pick.mostly("", "\n", "\n\n", "\ufeff", "#x\n", "\0") + text + pick.mostly("", "\n", "\n\n", "\0", "\nx")
    return (text[:-1] if pick.rarely() else text).encode()


# -- its packings


@cache
def zstd(data: bytes, *options: str) -> bytes:
    return subprocess.run(["zstd", "-q", "-c", *options], input=data, capture_output=True, check=True).stdout


def halves(pack: Callable[[bytes], bytes], data: bytes) -> bytes:
    """Packed in two parts, one behind the other."""
    return pack(data[: len(data) // 2]) + pack(data[len(data) // 2 :])


gz = partial(gzip.compress, mtime=0)
PACKERS: Mapping[str, Sequence[Callable[[bytes], bytes]]] = {
    "": [bytes],
    ".gz": [gz, partial(halves, gz), lambda data: gz(data) + b"\0" * 9, lambda data: gz(data)[:-1], lzma.compress],
    ".xz": [
        lzma.compress,
        partial(lzma.compress, check=lzma.CHECK_NONE),
        partial(halves, lzma.compress),
        lambda data: lzma.compress(data) + b"\0" * 4,
        partial(lzma.compress, format=lzma.FORMAT_ALONE),
        gz,
    ],
    ".zst": [
        zstd,
        partial(halves, zstd),
        lambda data: b"\x50\x2a\x4d\x18\x04\0\0\0evil" + zstd(data),
        lambda data: zstd(data) + b"\x50\x2a\x4d\x18\x04\0\0\0evil",
        lambda data: zstd(data, "--long=28"),
        lambda data: zstd(data)[:-1],
        gz,
    ],
    ".bz2": [bz2.compress],
    ".lzma": [partial(lzma.compress, format=lzma.FORMAT_ALONE)],
}


@dataclass(frozen=True)
class Repository:
    """A repository: its files by their paths, without its packages, and what its Release says before the signature."""

    files: Mapping[str, bytes]
    release: str
    components: Sequence[str]
    architectures: Sequence[str]

    def write(self, root: Path, debs: Sequence[Built], sign_cleartext: Sign) -> None:
        """Lay it out below `root`, with those packages in its pool that an index names."""
        text = b"\n".join(self.files.values())
        named = {deb.file: deb.raw for deb in debs if deb.file.rpartition("/")[2].encode() in text}
        signed = {f"dists/{SUITE}/InRelease": sign_cleartext(self.release.encode())}
        for path, content in {**self.files, **named, **signed}.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(content)


@st.composite
def repositories(draw: st.DrawFn, debs: Sequence[Built], chosen: st.SearchStrategy[Collection[int]]) -> Repository:
    """A repository with one or two indices, each in several packings, and with these faults."""
    return repository(Pick(draw, draw(chosen)), debs)


def repository(pick: Pick, debs: Sequence[Built]) -> Repository:
    """One such."""
    components = pick.mostly(["main"], ["main", "v1.35"])
    files: dict[str, bytes] = {}
    listed: list[tuple[str, bytes]] = []
    architectures = set()
    for component in components:
        architecture = pick.mostly("amd64", "arm64", "all")
        architectures.add(architecture)
        fitting = [deb for deb in debs if deb.fields["Architecture"] in (architecture, "all")]
        text = index(pick, pick.mostly(fitting, debs))
        folder = f"{component}/binary-{architecture}"
        packings = ["", *pick.draw(st.lists(st.sampled_from([".gz", ".xz", ".zst"]), max_size=2, unique=True))]
        if pick.rarely():
            packings.append(pick.draw(st.sampled_from([".bz2", ".lzma"])))
        unlisted = pick.mostly("", *packings)
        for packing in packings:
            other = pick.mostly(text, text + b"\nPackage: evil\nVersion: 1\n", b"")
            usual, *others = PACKERS[packing]
            content = pick.mostly(usual, *others)(other)
            name = f"{folder}/Packages{packing}"
            if packing != unlisted or not packing:
                listed.append((name, content))
            place = pick.mostly("both", "name", "hash", "none")
            if place in ("both", "name"):
                files[f"dists/{SUITE}/{name}"] = content
            if place in ("both", "hash"):
                files[f"dists/{SUITE}/{folder}/by-hash/SHA256/{hashlib.sha256(content).hexdigest()}"] = content
        if pick.rarely():
            name = f"{component}/{pick.draw(st.sampled_from(['i18n/Translation-en', 'source/Sources', 'Contents-amd64', f'binary-{architecture}/Release']))}"
            files[f"dists/{SUITE}/{name}"] = b"Package: evil\nDescription-en: x\n"
            listed.append((name, files[f"dists/{SUITE}/{name}"]))
    return Repository(files, release_text(pick, listed, components, sorted(architectures)), components, sorted(architectures))


def release_text(pick: Pick, listed: Sequence[tuple[str, bytes]], components: Sequence[str], architectures: Sequence[str]) -> str:
    """The text of a Release that names these files."""
    now = datetime.now(UTC)
    fields = {
        "Origin": "CKP",
        "Label": "CKP",
        "Suite": pick.mostly(SUITE, "stable", ""),
        "Codename": pick.mostly(SUITE, "stable"),
        "Date": date(pick, now - timedelta(hours=2)),
        "Valid-Until": date(pick, now + timedelta(days=pick.mostly(3, -1))),
        "Architectures": pick.mostly(" ".join(architectures), "amd64", "arm64 amd64 i386", "", ", ".join(architectures), "\n ".join(architectures)),
        "Components": pick.mostly(" ".join(components), "main", "other", "", "main/main v1.35"),
        "Acquire-By-Hash": pick.mostly("yes", "no", "force", "x"),
        "NotAutomatic": pick.mostly("no", "yes"),
        "No-Support-for-Architecture-all": pick.mostly("Packages", "x"),
        "Description": "x",
    }
    for label in pick.draw(st.lists(st.sampled_from(["Valid-Until", "NotAutomatic", "No-Support-for-Architecture-all", "Suite", "Label", "Acquire-By-Hash"]))):
        fields.pop(label, None)
    for label in ["SHA256", *pick.draw(st.lists(st.sampled_from(["MD5Sum", "SHA1", "SHA512"]), max_size=1))]:
        lines = []
        for name, content in listed:
            digest = hashlib.new("md5" if label == "MD5Sum" else label.lower(), content).hexdigest()
            digest = pick.mostly(digest, digest.upper(), "0" * len(digest))
            size = pick.mostly(str(len(content)), f"0{len(content)}", str(len(content) + 1))
            path = pick.mostly(name, f"./{name}", name.replace("P", "%50"), f'"{name}"')
            lines.append(pick.mostly(" ", "\t", "  ") + pick.mostly(" ", "  ", "\t", "\n ").join([digest, size, path]))
        if lines and pick.rarely():
            lines.append(lines[0])
        fields[label] = "\n" + "\n".join(lines)
        if pick.rarely():
            fields[label] = fields[label].lstrip()
    order = pick.draw(st.permutations(sorted(fields))) if pick.draw(st.booleans()) else list(fields)
    shown = {label: pick.mostly(label, label.upper(), label.lower()) for label in order}
    text = "\n".join(f"{shown[label]}:{'' if fields[label].startswith(chr(10)) or not fields[label] else ' '}{fields[label]}" for label in order)
    return text + pick.mostly("", "\n", "\n\nSHA256:\n", "\nsha256: x")


def date(pick: Pick, moment: datetime) -> str:
    """A moment as Release has it."""
    form = pick.mostly("%a, %d %b %Y %H:%M:%S UTC", "%a, %d %b %Y %H:%M:%S +0000", "%a, %d %b %Y %H:%M:%S GMT", "%a, %d %b %Y %H:%M:%S Z")
    form = pick.mostly(form, "%a, %d %b %Y %H:%M:%S -0000", "Mon, %d %b %Y %H:%M:%S UTC", "%a, %d %b %Y %H:%M:%S +0100", "%a %b %d %H:%M:%S UTC %Y")
    return moment.strftime(form)
