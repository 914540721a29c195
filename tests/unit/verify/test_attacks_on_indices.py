"""Attacks by the indices of a repository, all of them well signed: each is a place where apt or dnf reads something else than CKP did, or refuses what it took.

tests/unit/verify/test_apt_judges.py and test_dnf_judges.py let apt and dnf judge generated ones; here is what they found, by kind. Packages that nFPM
and createrepo_c make are attacked in test_verify_repositories.py.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ckp.clients.signing.openpgp import SigningKey
from ckp.hostkit.errors import VerificationFailed
from ckp.verify import rpmfile
from ckp.verify.repositories.check import verify_repository
from tests.support.signing_keys import signing_key
from tests.support.spoilt_packages import Deb, Rpm, text

MAIN = "main/binary-amd64/Packages"
Change = Callable[[str], str]


def same(text: str) -> str:
    return text


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> SigningKey:
    return signing_key(tmp_path_factory.mktemp("world") / "keys")


# -- apt


@dataclass
class Apt:
    """A small apt repository, in which parts are spoilt before they are signed."""

    debs: tuple[Deb, ...] = (Deb(),)
    index: Change = same
    release: Change = same
    packings: Mapping[str, Callable[[bytes], bytes]] = field(default_factory=lambda: {"": bytes})
    more: Mapping[str, bytes] = field(default_factory=dict)
    """Further files that the Release names."""
    absent: tuple[str, ...] = ()
    """Files that it names, and that are not there but by their hash."""

    def write(self, root: Path, key: SigningKey) -> None:
        stanzas = []
        for number, deb in enumerate(self.debs):
            raw, path = deb.build(key.sign), f"pool/{number}.deb"
            put(root / path, raw)
            stanzas.append(
                f"Package: {deb.name}\nVersion: {deb.version}\nArchitecture: {deb.architecture}\nMaintainer: {deb.maintainer}\n{deb.fields}"
                f"Filename: {path}\nSize: {len(raw)}\nSHA256: {sha256(raw)}\nMD5sum: {hashlib.md5(raw).hexdigest()}\n{deb.end}"
            )
        index = self.index("\n".join(stanzas)).encode()
        files = {f"{MAIN}{packing}": pack(index) for packing, pack in self.packings.items()} | dict(self.more)
        for name, content in files.items():
            if name not in self.absent:
                put(root / "dists/noble" / name, content)
            put(root / "dists/noble" / name.rpartition("/")[0] / "by-hash/SHA256" / sha256(content), content)
        release = "Suite: noble\nCodename: noble\nDate: Thu, 01 Jan 2026 00:00:00 UTC\nAcquire-By-Hash: yes\nArchitectures: amd64\nComponents: main\n"
        for label in ("SHA256", "MD5Sum"):
            digests = [
                f" {hashlib.new(label[:3].lower() if label == 'MD5Sum' else 'sha256', raw).hexdigest()} {len(raw)} {name}" for name, raw in files.items()
            ]
            release += f"{label}:\n" + "".join(f"{line}\n" for line in digests)
        put(root / "dists/noble/InRelease", key.sign_cleartext(self.release(release).encode()))


def put(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def instead(old: str, new: str) -> Change:
    """Changes the first of these words, which must be there."""

    def change(text: str) -> str:
        assert old in text
        return text.replace(old, new, 1)

    return change


def digit(label: str) -> Change:
    """Changes a digit of the first digest behind a label."""

    def change(text: str) -> str:
        at = text.index(label) + len(label)
        return text[:at] + ("0" if text[at] != "0" else "1") + text[at + 1 :]

    return change


def zstd_frames(data: bytes) -> bytes:
    """In two frames, of which dpkg reads the first."""
    return b"".join(subprocess.run(["zstd", "-q", "-c"], input=part, capture_output=True, check=True).stdout for part in (data[:100], data[100:]))


def zstd_window(data: bytes) -> bytes:
    """With a window that libzstd takes only if it is told to."""
    # Of data from a pipe zstd knows no size, and writes the window that it was told.
    return subprocess.run(["zstd", "-q", "-c", "--long=28"], input=data, capture_output=True, check=True).stdout


ON_APT: list[tuple[str, Apt, str, str]] = [
    ("another MD5 in Release", Apt(release=digit("MD5Sum:\n ")), "Packages does not have the MD5Sum that dists/noble/InRelease", "second digest"),
    ("another MD5 in an index", Apt(index=digit("MD5sum: ")), "0.deb does not have the MD5Sum that dists/noble/main", "second digest"),
    ("a MD5 in capitals", Apt(index=lambda text: text.replace("MD5sum: ", "MD5sum: A", 1)), "0.deb does not have the MD5Sum", "second digest"),
    ("a component that apt does not know", Apt(release=instead("Components: main", "Components: other")), "'main' is not among its Components", "index place"),
    ("no components", Apt(release=instead("Components: main\n", "")), "'main' is not among its Components", "index place"),
    ("an architecture that apt does not know", Apt(release=instead("amd64", "arm64")), "'amd64' is not among its Architectures", "index place"),
    (
        "an index that apt is told not to read",
        Apt(
            more={"main/binary-all/Packages": b""},
            release=lambda text: text.replace("amd64\n", "amd64 all\nNo-Support-for-Architecture-all: Packages\n", 1),
        ),
        "says that there is no such index",
        "index place",
    ),
    ("an index of sources", Apt(more={"main/source/Sources": b"x"}), "'main/source/Sources', which CKP does not read, and apt may", "index place"),
    ("a translation", Apt(more={"main/i18n/Translation-en": b"x"}), "which CKP does not read, and apt may", "index place"),
    ("differences between indices", Apt(more={f"{MAIN}.diff/Index": b"x"}), "which CKP does not read, and apt may", "index place"),
    (
        "a packing that lies by its hash alone",
        Apt(packings={"": bytes, ".gz": gzip.compress}, absent=(f"{MAIN}.gz",)),
        "Packages.gz is named in InRelease, but is missing",
        "missing metadata",
    ),
    ("an index of an empty line", Apt(index=lambda _: "\n"), "an empty line that ends no paragraph", "packages index"),
    ("an index that begins with an empty line", Apt(index=lambda text: "\n" + text), "an empty line that ends no paragraph", "packages index"),
    ("two versions that are equal", Apt((Deb(version="1.0-1"), Deb(version="0:1.00-1"))), "another package is called so as well", "package twice"),
    ("a version with a revision of 0", Apt((Deb(version="1.0"), Deb(version="1.0-0"))), "another package is called so as well", "package twice"),
    ("one version for all and for one architecture", Apt((Deb(), Deb(architecture="all"))), "another package is called so as well", "package twice"),
    ("an index in two frames of zstd", Apt(packings={"": bytes, ".zst": zstd_frames}), "data follows the end of the compressed data", "packages index"),
    ("gzip that is called zstd", Apt(packings={"": bytes, ".zst": gzip.compress}), "does not begin like a frame of zstd", "packages index"),
    ("an index with a large window", Apt(packings={"": bytes, ".zst": zstd_window}), "needs a window of more than 128 MiB", "packages index"),
]


@pytest.mark.parametrize(("name", "repository", "words", "check"), ON_APT, ids=[row[0] for row in ON_APT])
def test_attack_by_an_index_of_apt(key: SigningKey, tmp_path: Path, name: str, repository: Apt, words: str, check: str) -> None:
    repository.write(tmp_path, key)
    with pytest.raises(VerificationFailed) as caught:
        verify_repository(str(tmp_path), str(key.keyring))
    assert words in caught.value.brief, caught.value.render()
    assert caught.value.check == check


@pytest.mark.parametrize(
    "repository",
    [
        Apt(),
        Apt((Deb(), Deb(version="1.35.2-ckp"), Deb(name="kubectl", fields="Depends: kubelet (>= 1)\n"))),
        Apt(packings={"": bytes, ".gz": gzip.compress}),
        Apt((), more={"v1.35/binary-all/Packages": b""}, release=lambda text: text.replace("amd64\n", "all\n amd64\n").replace("s: main", "s: v1.35 main")),
    ],
)
def test_the_small_apt_repository_is_good(key: SigningKey, tmp_path: Path, repository: Apt) -> None:
    repository.write(tmp_path, key)
    lines = verify_repository(str(tmp_path), str(key.keyring))
    assert lines[-1].startswith(f"apt: {len(repository.debs)} packages verified")


# -- beside both


def link(root: Path) -> None:
    put(root.parent / "elsewhere/evil.deb", b"x")
    (root / "keys").symlink_to(root.parent / "elsewhere")


@pytest.mark.parametrize(("make", "words"), [(link, "keys in "), (lambda root: (root / "evil").symlink_to("/nowhere"), "evil in ")])
def test_a_link_beside_a_repository_is_refused(key: SigningKey, tmp_path: Path, make: Callable[[Path], None], words: str) -> None:
    """A server may follow it, to packages that nothing covers."""
    Apt().write(tmp_path / "root/apt", key)
    make(tmp_path / "root")
    with pytest.raises(VerificationFailed, match=f"{words}.* is a link, and what it leads to is not checked"):
        verify_repository(str(tmp_path / "root"), str(key.keyring))


def test_a_folder_that_cannot_be_read_is_an_error(key: SigningKey, tmp_path: Path) -> None:
    """Here because its path is longer than the kernel takes; by parts, a server may well reach what is in it."""
    Apt().write(tmp_path / "apt", key)
    folder = os.open(tmp_path, os.O_RDONLY)
    for _ in range(20):
        os.mkdir("d" * 250, dir_fd=folder)
        outer, folder = folder, os.open("d" * 250, os.O_RDONLY, dir_fd=folder)
        os.close(outer)
    os.close(folder)
    with pytest.raises(VerificationFailed, match="can't be read: File name too long"):
        verify_repository(str(tmp_path), str(key.keyring))


def test_what_is_called_like_a_repository_and_is_none_is_named(key: SigningKey, tmp_path: Path) -> None:
    Apt().write(tmp_path / "apt", key)
    put(tmp_path / "rpm", b"x")
    assert "not checked: rpm" in verify_repository(str(tmp_path), str(key.keyring))[-1]


# -- dnf

HEAD = '<?xml version="1.0" encoding="UTF-8"?>\n'
DUKE = "http://linux.duke.edu/metadata"


@dataclass
class Dnf:
    """A small dnf repository of one package, in which parts are spoilt before they are signed."""

    primary: Change = same
    filelists: Change = same
    repomd: Change = same
    coded: str = "utf-8"
    """The encoding of primary.xml."""

    def write(self, root: Path, key: SigningKey) -> None:
        raw = Rpm(tags={rpmfile.SOURCE_RPM: text("kubelet-1-ckp.src.rpm")}).build(key.sign)
        put(root / "Packages/kubelet.rpm", raw)
        version = '<version epoch="0" ver="1.35.1" rel="ckp"/>'
        texts = {
            "primary": f'{HEAD}<metadata xmlns="{DUKE}/common" xmlns:rpm="{DUKE}/rpm" packages="1"><package type="rpm"><name>kubelet</name><arch>x86_64</arch>'
            f'{version}<checksum type="sha256" pkgid="YES">{sha256(raw)}</checksum><packager>{Rpm().packager.replace("<", "&lt;")}</packager>'
            f'<size package="{len(raw)}" installed="0" archive="0"/><location href="Packages/kubelet.rpm"/><format><rpm:vendor>{Rpm().vendor}</rpm:vendor>'
            "<rpm:sourcerpm>kubelet-1-ckp.src.rpm</rpm:sourcerpm><file>/usr/bin/kubelet</file></format></package></metadata>",
            "filelists": f'{HEAD}<filelists xmlns="{DUKE}/filelists" packages="1"><package pkgid="{sha256(raw)}" name="kubelet" arch="x86_64">{version}'
            "<file>/usr/bin/kubelet</file></package></filelists>",
            "other": "<otherdata/>",
        }
        entries = ""
        for kind, plain in texts.items():
            content = {"primary": self.primary, "filelists": self.filelists}.get(kind, same)(plain).encode(self.coded if kind == "primary" else "utf-8")
            put(root / f"repodata/{sha256(content)}-{kind}.xml", content)
            entries += f'<data type="{kind}"><checksum type="sha256">{sha256(content)}</checksum>'
            entries += f'<location href="repodata/{sha256(content)}-{kind}.xml"/><size>{len(content)}</size></data>'
        repomd = self.repomd(f'{HEAD}<repomd xmlns="{DUKE}/repo" xmlns:rpm="{DUKE}/rpm"><revision>1</revision>{entries}</repomd>').encode()
        put(root / "repodata/repomd.xml", repomd)
        put(root / "repodata/repomd.xml.asc", key.sign(repomd, armor=True))


WITHIN, TWICE = "it has an element within a text", "is there twice"
ON_DNF: list[tuple[str, Dnf, str, str]] = [
    ("a name with an element and more text", Dnf(primary=instead("kubelet</name>", "kubelet<x/>evil</name>")), WITHIN, "packages index"),
    ("a name with an element", Dnf(primary=instead("kubelet</name>", "kubelet<x/></name>")), WITHIN, "packages index"),
    ("an architecture with an element", Dnf(primary=instead("x86_64</arch>", "x86_64<x/></arch>")), WITHIN, "packages index"),
    ("a vendor with an element and more text", Dnf(primary=instead("Coredge.io</rpm:v", "Coredge.io<x/>Evil</rpm:v")), WITHIN, "packages index"),
    ("a packager with an element and more text", Dnf(primary=instead("</packager>", "<x/>Evil</packager>")), WITHIN, "packages index"),
    ("a file with an element and more text", Dnf(filelists=instead("kubelet</file>", "kubelet<x/>/etc/evil</file>")), WITHIN, "packages index"),
    ("a checksum with an element and more text", Dnf(repomd=instead("</checksum>", "<x/>evil</checksum>")), WITHIN, "repomd"),
    ("text after an element", Dnf(primary=instead("<name>", "<x/>text<name>")), "it has text between its elements", "packages index"),
    ("a checksum with blanks", Dnf(primary=instead('"YES">', '"YES"> ')), "no valid size or SHA-256", "packages index"),
    ("a checksum with a line end in repomd", Dnf(repomd=instead("</checksum>", "\n</checksum>")), "has no SHA-256", "repomd"),
    ("a file that is called like a folder", Dnf(filelists=instead("kubelet</file>", "kubelet/</file>")), "differ in their files", "metadata and package"),
    ("a file twice", Dnf(filelists=lambda text: text.replace("<file>", "<file>/usr/bin/kubelet</file><file>")), TWICE, "packages index"),
    ("a file twice in primary", Dnf(primary=lambda text: text.replace("<file>", "<file>/usr/bin/kubelet</file><file>")), TWICE, "packages index"),
    ("UTF-16 that says it is UTF-8", Dnf(coded="utf-16"), "it does not begin with an element in UTF-8", "packages index"),
    ("a byte order mark", Dnf(primary=lambda text: "\ufeff" + text), "it does not begin with an element in UTF-8", "packages index"),
]


@pytest.mark.parametrize(("name", "repository", "words", "check"), ON_DNF, ids=[row[0] for row in ON_DNF])
def test_attack_by_an_index_of_dnf(key: SigningKey, tmp_path: Path, name: str, repository: Dnf, words: str, check: str) -> None:
    repository.write(tmp_path, key)
    with pytest.raises(VerificationFailed) as caught:
        verify_repository(str(tmp_path), str(key.keyring))
    assert words in caught.value.brief, caught.value.render()
    assert caught.value.check == check


def test_the_small_dnf_repository_is_good(key: SigningKey, tmp_path: Path) -> None:
    Dnf().write(tmp_path, key)
    assert "1 packages verified" in verify_repository(str(tmp_path), str(key.keyring))[0]
