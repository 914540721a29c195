"""Repositories as CKP publishes them are good; each way of mixing, hiding or adding something is refused with its own sentence."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import lzma
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from ckp.clients.signing.openpgp import SigningKey
from ckp.distribution.repositories.publish import Repositories
from ckp.hostkit.errors import VerificationFailed
from ckp.verify.path import verify_path
from ckp.verify.repositories.check import verify_repository
from tests.support.signing_keys import signing_key
from tests.support.small_packages import small_package
from tests.support.spoilt_packages import GpgKey, snapshot

pytestmark = [
    pytest.mark.release,
    pytest.mark.skipif(
        not (shutil.which("apt-ftparchive") and shutil.which("createrepo_c")), reason="apt-utils or createrepo-c is not installed (make setup installs them)"
    ),
]
APT, DNF = "apt/dists/noble", "rpm/el9/v1.35/x86_64"
INDEX = f"{APT}/v1.35/binary-amd64/Packages"


@dataclass(frozen=True)
class World:
    """A root with both repositories, an earlier state of it, and the keys."""

    key: SigningKey
    stranger: SigningKey
    gpg: dict[str, GpgKey]
    """Keys that were trusted once: the keyring says of them that they have expired or were revoked."""
    keyring: str
    now: Path
    before: Path
    debs: dict[str, Path]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("repositories")
    key = signing_key(folder / "keys")
    root = folder / "root"
    repositories = Repositories(root, key)
    packages = {
        (name, version, kind): small_package(folder / f"{name}-{version}-{kind}", key, name, version, kind)
        for name, version in (("kubelet", "1.35.0-ckp"), ("kubelet", "1.35.1-ckp"), ("kubectl", "1.35.1-ckp"))
        for kind in ("deb", "rpm")
    }
    repositories.publish([item for (_, version, _), item in packages.items() if version == "1.35.0-ckp"], "v1.35", print)
    shutil.copytree(root, folder / "before")
    repositories.publish(list(packages.values()), "v1.35", print)
    debs = {f"{name}-{version}": item.path for (name, version, kind), item in packages.items() if kind == "deb"}
    gpg = {
        "expired": GpgKey(folder / "expired", life="1y", subkey_life="1y"),
        "expired subkey": GpgKey(folder / "expired-subkey", subkey_life="1y"),
        "revoked": GpgKey(folder / "revoked", born=""),
        "revoked subkey": GpgKey(folder / "revoked-subkey", born=""),
    }
    ring = folder / "trusted.gpg"
    certificates = [key.keyring.read_bytes(), *(gpg[name].certificate() for name in ("expired", "expired subkey"))]
    certificates += [gpg["revoked"].revoked_certificate(subkey=False), gpg["revoked subkey"].revoked_certificate(subkey=True)]
    ring.write_bytes(b"".join(certificates))
    yield World(key, signing_key(folder / "stranger", "stranger"), gpg, str(ring), root, folder / "before", debs)
    for item in gpg.values():
        item.close()


@pytest.fixture
def root(world: World, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(world.now, tmp_path / "root"))


def one(root: Path, pattern: str) -> Path:
    found = sorted(root.glob(pattern))
    assert found, pattern
    return found[0]


def beside(root: Path, name: str) -> None:
    """A good package where no repository is."""
    (root / name).parent.mkdir(exist_ok=True)
    shutil.copy(one(root, "apt/pool/**/*.deb"), root / name)


def flip(path: Path, at: float = 0.5) -> None:
    raw = bytearray(path.read_bytes())
    raw[int(len(raw) * at)] ^= 1
    write(path, bytes(raw))


def write(path: Path, content: bytes) -> None:
    """Into a file of its own: published ones share their content by hard links."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def resign_apt(world: World, root: Path, change: Callable[[str], str], key: SigningKey | None = None) -> None:
    """InRelease alone, with other words in it."""
    text = change((root / APT / "Release").read_text())
    for name in ("Release", "Release.gpg"):
        (root / APT / name).unlink(missing_ok=True)
    write(root / APT / "InRelease", (key or world.key).sign_cleartext(text.encode().removesuffix(b"\n")))


def reindex_apt(world: World, root: Path, change: Callable[[str], str]) -> None:
    """Another Packages, well signed: what an indexer that errs would make."""
    text = change((root / INDEX).read_text()).encode()
    for path in (root / APT / "v1.35/binary-amd64").rglob("*"):
        if path.is_file():
            path.unlink()
    write(root / INDEX, text)
    entry = f" {hashlib.sha256(text).hexdigest()} {len(text)} v1.35/binary-amd64/Packages\n"
    resign_apt(world, root, lambda release: re.sub(r"SHA256:\n( .*\n)+", "SHA256:\n" + entry, release))


def resign_dnf(world: World, root: Path, change: Callable[[str], str], key: SigningKey | None = None) -> None:
    text = change((root / DNF / "repodata/repomd.xml").read_text()).encode()
    write(root / DNF / "repodata/repomd.xml", text)
    write(root / DNF / "repodata/repomd.xml.asc", (key or world.key).sign(text, armor=True))


def reindex_dnf(world: World, root: Path, change: Callable[[str], str], kind: str = "primary", *, opened: bool = True) -> None:
    """Another primary.xml, well signed; `opened`: with the digest that it has unpacked."""
    old = metadata(root, kind)
    packed = old.read_bytes()
    plain = gzip.decompress(packed)
    new = change(plain.decode()).encode()
    raw = gzip.compress(new, mtime=0)
    write(old.with_name(f"{hashlib.sha256(raw).hexdigest()}-{kind}.xml.gz"), raw)
    old.unlink()
    changes = {hashlib.sha256(packed).hexdigest(): hashlib.sha256(raw).hexdigest(), f"<size>{len(packed)}</size>": f"<size>{len(raw)}</size>"}
    if opened:
        changes |= {hashlib.sha256(plain).hexdigest(): hashlib.sha256(new).hexdigest(), f"<open-size>{len(plain)}<": f"<open-size>{len(new)}<"}

    def everywhere(text: str) -> str:
        for before, after in changes.items():
            text = text.replace(before, after)
        return text

    resign_dnf(world, root, everywhere)


def metadata(root: Path, kind: str) -> Path:
    """The present metadata of a kind: that of an earlier state lies beside it."""
    name = re.search(rf'href="(repodata/[0-9a-f]+-{kind}\.xml\.gz)"', (root / DNF / "repodata/repomd.xml").read_text())
    assert name
    return root / DNF / name[1]


def copy_from(source: Path, root: Path, *names: str) -> None:
    for name in names:
        write(root / name, (source / name).read_bytes())


@dataclass(frozen=True)
class Attack:
    name: str
    do: Callable[[World, Path], object]
    words: str
    check: str


def unsign(root: Path) -> None:
    for name in ("InRelease", "Release.gpg"):
        (root / APT / name).unlink()


def dnf_of_other(world: World, root: Path) -> None:
    copy_from(world.before, root, f"{DNF}/repodata/repomd.xml", f"{DNF}/repodata/repomd.xml.asc")


def stranger_package(world: World, root: Path) -> None:
    """A package by a stranger, in an index that a key of ours signed."""
    for suite in ("bookworm", "jammy"):
        shutil.rmtree(root / "apt/dists" / suite)
    made = small_package(root.parent / "made", world.stranger, "kubelet", "1.35.1-ckp", "deb")
    path = one(root, "apt/pool/v1.35/kubelet/*1.35.1*")
    old, new = hashlib.sha256(path.read_bytes()).hexdigest(), made.path.read_bytes()
    size = path.stat().st_size
    write(path, new)
    reindex_apt(world, root, lambda text: text.replace(old, made.sha256).replace(f"Size: {size}\n", f"Size: {len(new)}\n"))


def outside(world: World, root: Path) -> None:
    path = root / APT / "InRelease"
    write(path, b"Origin: Somebody\n" + path.read_bytes())


def behind(world: World, root: Path) -> None:
    path = root / APT / "InRelease"
    write(path, path.read_bytes() + b"Origin: Somebody\n")


def other_suite(world: World, root: Path) -> None:
    shutil.rmtree(root / "apt/dists/jammy")
    shutil.copytree(root / APT, root / "apt/dists/jammy")


def remove(root: Path, *names: str) -> None:
    for name in names:
        (root / name).unlink()


def drop(pattern: str) -> Callable[[World, Path], None]:
    return lambda world, root: one(root, pattern).unlink()


def link(world: World, root: Path) -> None:
    path = one(root, "apt/pool/v1.35/kubectl/*.deb")
    path.unlink()
    path.symlink_to("/etc/passwd")


def inrelease_by(name: str) -> Callable[[World, Path], None]:
    """The same InRelease, signed by a key that was trusted once."""

    def do(world: World, root: Path) -> None:
        text = (root / APT / "Release").read_bytes()
        unsign(root)
        (root / APT / "Release").unlink()
        write(root / APT / "InRelease", world.gpg[name].sign_cleartext(text))

    return do


def release_by(name: str) -> Callable[[World, Path], None]:
    return lambda world, root: write(root / APT / "Release.gpg", world.gpg[name].sign((root / APT / "Release").read_bytes(), "--armor"))


def repomd_by(name: str) -> Callable[[World, Path], None]:
    """The same metadata, with a signature by a key that was trusted once."""
    data = f"{DNF}/repodata/repomd.xml"
    return lambda world, root: write(root / f"{data}.asc", world.gpg[name].sign((root / data).read_bytes(), "--armor"))


def put(name: str, content: bytes = b"x") -> Callable[[World, Path], None]:
    return lambda world, root: write(root / name, content)


def apt(change: Callable[[str], str]) -> Callable[[World, Path], None]:
    return lambda world, root: resign_apt(world, root, change)


def packages(change: Callable[[str], str]) -> Callable[[World, Path], None]:
    return lambda world, root: reindex_apt(world, root, change)


def repomd(change: Callable[[str], str]) -> Callable[[World, Path], None]:
    return lambda world, root: resign_dnf(world, root, change)


def primary(change: Callable[[str], str]) -> Callable[[World, Path], None]:
    return lambda world, root: reindex_dnf(world, root, change)


FOLDER = "v1.35/binary-amd64"
EVIL = b"Package: kubelet\nVersion: 9.9\nArchitecture: amd64\nFilename: pool/.evil.deb\nSize: 1\nSHA256: " + b"0" * 64 + b"\n"


def named(content: bytes, name: str, *, path: str = "", drop: str = "") -> Callable[[World, Path], None]:
    """A file that the signed Release names as well. It lies at `path` if that is given; the file `drop` goes."""

    def do(world: World, root: Path) -> None:
        write(root / APT / (path or name), content)
        if drop:
            digest = hashlib.sha256((root / APT / drop).read_bytes()).hexdigest()
            remove(root, f"{APT}/{drop}", f"{APT}/{FOLDER}/by-hash/SHA256/{digest}")
        resign_apt(world, root, lambda text: f"{text} {hashlib.sha256(content).hexdigest()} {len(content)} {name}\n")

    return do


def by_hash(content: bytes, name: str) -> Callable[[World, Path], None]:
    """A file that the signed Release names, and that lies by its hash alone, where apt looks first."""
    return named(content, name, path=f"{FOLDER}/by-hash/SHA256/{hashlib.sha256(content).hexdigest()}")


def second_kubelet(world: World, root: Path) -> None:
    """Another package of one name and version, ours as well, in another component."""
    made = small_package(root.parent / "second", world.key, "kubelet", "1.35.1-ckp", "deb", content="something else")
    write(root / "apt/pool/v1.36/kubelet.deb", made.path.read_bytes())
    index = next(text for text in (root / INDEX).read_text().split("\n\n") if "1.35.1-ckp" in text and "Package: kubelet" in text) + "\n"
    for label, value in (("Filename", "pool/v1.36/kubelet.deb"), ("Size", str(made.path.stat().st_size)), ("SHA256", made.sha256)):
        index = re.sub(rf"(?m)^{label}: .*$", f"{label}: {value}", index)
    named(index.encode(), "v1.36/binary-amd64/Packages")(world, root)
    release = re.search(rb"(?s)\n\n(.*)\n-----BEGIN PGP SIG", (root / APT / "InRelease").read_bytes())
    assert release
    write(root / APT / "InRelease", world.key.sign_cleartext(release[1].replace(b"Components: v1.35", b"Components: v1.35 v1.36")))


def of_release(path: str, label: str, length: int, add: int = 0) -> Callable[[World, Path], None]:
    """A further digest of a file in the Release, which is not that of the file."""

    def do(world: World, root: Path) -> None:
        size = (root / APT / path).stat().st_size + add if (root / APT / path).is_file() else 1
        resign_apt(world, root, lambda text: f"{text}{label}:\n {'0' * length} {size} {path}\n")

    return do


def filelists(change: Callable[[str], str]) -> Callable[[World, Path], None]:
    return lambda world, root: reindex_dnf(world, root, change, "filelists")


EVIL_ENTRY = '<rpm:entry name="evil"/>'
OLD_DATE = "Valid-Until: Thu, 01 Jan 2026 00:00:00 UTC\nSHA256:"
BOMB = '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]>'
ATTACKS = [
    Attack("unsigned suite", lambda world, root: unsign(root), "the suite is not signed", "signature present"),
    Attack("flipped byte in InRelease", lambda world, root: flip(root / APT / "InRelease", 0.1), "was changed after it was signed", "signature"),
    Attack("flipped byte in Release", lambda world, root: flip(root / APT / "Release", 0.1), "was changed after it was signed", "signature"),
    Attack("text before the signed text", outside, "text outside of its one signed part", "cleartext frame"),
    Attack("text behind the signature", behind, "text outside of its one signed part", "cleartext frame"),
    Attack("InRelease by a stranger", lambda world, root: resign_apt(world, root, str, world.stranger), "a key that is not trusted here", "trusted key"),
    Attack("InRelease by an expired key", inrelease_by("expired"), "InRelease is signed by an expired key", "expired key"),
    Attack("InRelease by a subkey that has expired", inrelease_by("expired subkey"), "InRelease is signed by an expired key", "expired key"),
    Attack("InRelease by a revoked key", inrelease_by("revoked"), "InRelease is signed by a revoked key", "revoked key"),
    Attack("InRelease by a revoked subkey", inrelease_by("revoked subkey"), "InRelease is signed by a revoked key", "revoked key"),
    Attack("Release.gpg by an expired key", release_by("expired"), "/Release is signed by an expired key", "expired key"),
    Attack("Release.gpg by a revoked key", release_by("revoked"), "/Release is signed by a revoked key", "revoked key"),
    Attack("Release without its signature", drop(f"{APT}/Release.gpg"), "has Release, but not Release.gpg", "release pair"),
    Attack(
        "Release of another time",
        lambda world, root: copy_from(world.before, root, f"{APT}/Release", f"{APT}/Release.gpg"),
        "InRelease differ",
        "release pair",
    ),
    Attack("Packages of another time", lambda world, root: copy_from(world.before, root, INDEX), "metadata of two versions is mixed", "mixed metadata"),
    Attack(
        "Packages.gz of another time", lambda world, root: copy_from(world.before, root, INDEX + ".gz"), "metadata of two versions is mixed", "mixed metadata"
    ),
    Attack(
        "an older state's metadata",
        lambda world, root: copy_from(world.before, root, *(str(p.relative_to(world.before)) for p in (world.before / "apt/dists").rglob("*") if p.is_file())),
        "is not named by any index",
        "unlisted package",
    ),
    Attack("another suite's metadata", other_suite, "is of another suite: 'noble'", "suite"),
    Attack("an index that was valid long ago", apt(lambda text: text.replace("SHA256:", OLD_DATE)), "it is out of date", "valid until"),
    Attack("an index without SHA-256", apt(lambda text: text.replace("SHA256:", "MD5Sum:")), "names no index", "release file"),
    Attack(
        "a missing index",
        lambda world, root: remove(root, INDEX, f"{INDEX}.gz"),
        "Packages is named in InRelease, but is missing",
        "missing metadata",
    ),
    Attack("an unlisted index", put(f"{APT}/v1.35/binary-amd64/Packages.xz"), "is not named by dists/noble/InRelease", "unlisted metadata"),
    Attack("a file beside the suites", put("apt/dists/README"), "is not named by any suite", "unlisted metadata"),
    Attack("another content by its hash", put(f"{APT}/v1.35/binary-amd64/by-hash/SHA256/{'0' * 64}"), "does not have the SHA-256 that is its name", "by hash"),
    Attack("flipped byte in a package", lambda world, root: flip(one(root, "apt/pool/v1.35/kubelet/*1.35.1*")), "is not the package that", "package digest"),
    Attack("a missing package", drop("apt/pool/v1.35/kubectl/*.deb"), "missing from the repository", "missing package"),
    Attack("an additional package", put("apt/pool/v1.35/kubectl/kubectl_9_amd64.deb"), "is in the repository", "unlisted package"),
    Attack("a link in the pool", link, "is not a regular file", "regular files only"),
    Attack("a stranger's package in our index", stranger_package, "a key that is not trusted here", "trusted key"),
    Attack(
        "an index with another version",
        packages(lambda text: text.replace("Version: 1.35.1-ckp", "Version: 1.36.0-ckp")),
        "in the package",
        "metadata and package",
    ),
    Attack(
        "an index with another name",
        packages(lambda text: text.replace("Package: kubectl", "Package: kubeadm")),
        "in the package",
        "metadata and package",
    ),
    Attack(
        "an index with other dependencies",
        packages(lambda text: text.replace("Filename:", "Depends: evil\nFilename:", 1)),
        "differ in Depends",
        "metadata and package",
    ),
    Attack("an index with a path to the top", packages(lambda text: text.replace("Filename: pool", "Filename: ../pool")), "not a plain path", "metadata path"),
    Attack("an index with an absolute path", packages(lambda text: text.replace("Filename: pool", "Filename: /pool")), "not a plain path", "metadata path"),
    Attack("an index without digests", packages(lambda text: text.replace("SHA256:", "SHA255:")), "has no SHA256", "packages index"),
    Attack(
        "an index with a field twice", packages(lambda text: text.replace("Filename:", "package: x\nFilename:", 1)), "it has package twice", "packages index"
    ),
    Attack("another content in a further packing", named(lzma.compress(EVIL), f"{FOLDER}/Packages.xz"), "Packages.xz, decompressed, is not", "index content"),
    Attack(
        "another content beside an absent plain index",
        named(lzma.compress(EVIL), f"{FOLDER}/Packages.xz", drop=f"{FOLDER}/Packages"),
        "Packages.xz, decompressed, is not",
        "index content",
    ),
    Attack(
        "another content that only the hash leads to",
        by_hash(lzma.compress(EVIL), f"{FOLDER}/Packages.xz"),
        "Packages.xz, decompressed, is not",
        "index content",
    ),
    Attack("a packing that only apt reads", by_hash(bz2.compress(EVIL), f"{FOLDER}/Packages.bz2"), "packed in a way that CKP does not read", "index packing"),
    Attack("an index in the root of a suite", named(EVIL, "Packages"), "InRelease names 'Packages', which CKP does not read", "index place"),
    Attack(
        "an index with a hidden package",
        packages(lambda text: re.sub("Filename: pool/.*", "Filename: pool/.evil.deb", text)),
        "names 'pool/.evil.deb', which is not a plain path",
        "metadata path",
    ),
    Attack("a hidden package", put("apt/pool/v1.35/.evil.deb"), "pool/v1.35/.evil.deb lies hidden in", "hidden file"),
    Attack("a hidden file by its hash", put(f"{APT}/{FOLDER}/by-hash/SHA256/.evil"), "by-hash/SHA256/.evil lies hidden in", "hidden file"),
    Attack("a lock with content", put("apt/.lock", b"x"), ".lock lies hidden in", "hidden file"),
    Attack("a hidden rpm", put(f"{DNF}/Packages/.evil.rpm"), "Packages/.evil.rpm lies hidden in", "hidden file"),
    Attack("a file that only SHA-512 names", of_release(f"{FOLDER}/Packages.xz", "SHA512", 128), "Packages.xz' by SHA512 otherwise than", "second digest"),
    Attack("another SHA-512", of_release(f"{FOLDER}/Packages", "SHA512", 128), "does not have the SHA512 that dists/noble/InRelease", "second digest"),
    Attack("another size by SHA-1", of_release(f"{FOLDER}/Packages", "SHA1", 40, add=1), "Packages' by SHA1 otherwise than", "second digest"),
    Attack("a suite without a date", apt(lambda text: re.sub(r"Date: .*\n", "", text)), "InRelease has no Date", "release file"),
    Attack("a suite of tomorrow", apt(lambda text: re.sub(r"Date: .*", "Date: Mon, 01 Jan 2125 00:00:00 UTC", text)), "which is not yet", "date"),
    Attack("a date that apt can't read", apt(lambda text: re.sub(r"Date: .*", "Date: 1 Jan 2025", text)), "has a Date that is not a date", "release file"),
    Attack(
        "an end that is no day",
        apt(lambda text: text.replace("SHA256:", "Valid-Until: Mon, 31 Feb 2125 00:00:00 UTC\nSHA256:")),
        "has a Valid-Until that is not a date",
        "release file",
    ),
    Attack(
        "an index with other dependencies in capitals",
        packages(lambda text: text.replace("Filename:", "DEPENDS: evil\nFilename:", 1)),
        "differ in DEPENDS",
        "metadata and package",
    ),
    Attack(
        "an index with other recommendations",
        packages(lambda text: text.replace("Filename:", "Recommends: evil\nFilename:", 1)),
        "differ in Recommends",
        "metadata and package",
    ),
    Attack(
        "an index that calls a package important",
        packages(lambda text: text.replace("Filename:", "Important: yes\nFilename:", 1)),
        "differ in Important",
        "metadata and package",
    ),
    Attack("an index without a package's priority", packages(lambda text: re.sub(r"Priority: .*\n", "", text)), "differ in Priority", "metadata and package"),
    Attack("an index with a package twice", packages(lambda text: f"{text}\n{text}"), "it names kubectl 1.35.1-ckp amd64 twice", "packages index"),
    Attack("two packages of one name and version", second_kubelet, "and another package is called so as well", "package twice"),
    Attack(
        "an index with another SHA-512",
        packages(lambda text: text.replace("Filename:", f"SHA512: {'0' * 128}\nFilename:", 1)),
        "does not have the SHA512 that dists/noble/v1.35",
        "second digest",
    ),
    Attack("unsigned repomd", drop(f"{DNF}/repodata/repomd.xml.asc"), "the repository is not signed", "signature present"),
    Attack("flipped byte in repomd", lambda world, root: flip(root / DNF / "repodata/repomd.xml"), "was changed after it was signed", "signature"),
    Attack("repomd by a stranger", lambda world, root: resign_dnf(world, root, str, world.stranger), "a key that is not trusted here", "trusted key"),
    Attack("repomd by an expired key", repomd_by("expired"), "repomd.xml is signed by an expired key", "expired key"),
    Attack("repomd by a subkey that has expired", repomd_by("expired subkey"), "repomd.xml is signed by an expired key", "expired key"),
    Attack("repomd by a revoked key", repomd_by("revoked"), "repomd.xml is signed by a revoked key", "revoked key"),
    Attack("repomd by a revoked subkey", repomd_by("revoked subkey"), "repomd.xml is signed by a revoked key", "revoked key"),
    Attack("repomd of another time", dnf_of_other, "is not named by repodata/", "unlisted package"),
    Attack("flipped byte in primary", lambda world, root: flip(metadata(root, "primary")), "metadata of two versions is mixed", "mixed metadata"),
    Attack(
        "flipped byte in filelists",
        lambda world, root: flip(metadata(root, "filelists")),
        "metadata of two versions is mixed",
        "mixed metadata",
    ),
    Attack("a document type", repomd(lambda text: text.replace("?>", f"?>{BOMB}", 1)), "it has a document type", "repomd"),
    Attack(
        "repomd without filelists", repomd(lambda text: text.replace('type="filelists"', 'type="others"')), "does not name the metadata 'filelists'", "repomd"
    ),
    Attack("repomd with SHA-1", repomd(lambda text: text.replace('type="sha256"', 'type="sha"')), "has no SHA-256", "repomd"),
    Attack("repomd with a path to the top", repomd(lambda text: text.replace('href="repodata', 'href="../repodata')), "not a plain path", "metadata path"),
    Attack("repomd with another server", repomd(lambda text: text.replace("<location ", '<location xml:base="http://evil" ')), "on another server", "repomd"),
    Attack("an unlisted metadata file", put(f"{DNF}/repodata/comps.xml"), "is not named by repodata/repomd.xml", "unlisted metadata"),
    Attack(
        "another content by its digest", put(f"{DNF}/repodata/{'0' * 64}-primary.xml.gz"), "does not have the SHA-256 with which its name begins", "by hash"
    ),
    Attack("flipped byte in an rpm", lambda world, root: flip(one(root, f"{DNF}/Packages/kubelet-1.35.1*")), "is not the package that", "package digest"),
    Attack("a missing rpm", drop(f"{DNF}/Packages/kubectl*"), "missing from the repository", "missing package"),
    Attack("an additional rpm", put(f"{DNF}/Packages/evil.rpm"), "is in the repository", "unlisted package"),
    Attack("an rpm beside the repositories", put("rpm/el9/evil.rpm"), "is in no repository", "unlisted package"),
    Attack("primary with another version", primary(lambda text: text.replace('ver="1.35.1"', 'ver="1.36.0"')), "in the package", "metadata and package"),
    Attack(
        "primary with another packager", primary(lambda text: text.replace("<packager>", "<packager>x", 1)), "differ in their packager", "metadata and package"
    ),
    Attack("primary with fewer packages", primary(lambda text: text.replace('packages="3"', 'packages="2"')), "number of packages is wrong", "packages index"),
    Attack("primary with a path to the top", primary(lambda text: text.replace('href="Packages', 'href="../x/Packages')), "not a plain path", "metadata path"),
    Attack("a package beside the repositories", lambda world, root: beside(root, "kubelet.deb"), "kubelet.deb in ", "unlisted package"),
    Attack("a package in a folder beside them", lambda world, root: beside(root, "keys/new/kubelet.RPM"), "keys/new/kubelet.RPM in ", "unlisted package"),
    Attack("a hidden package beside them", lambda world, root: beside(root, ".kubelet.deb"), ".kubelet.deb in ", "unlisted package"),
    Attack(
        "primary with another requirement",
        primary(lambda text: text.replace("</format>", f"<rpm:requires>{EVIL_ENTRY}</rpm:requires></format>", 1)),
        "differ in their requires",
        "metadata and package",
    ),
    Attack(
        "primary with another provision",
        primary(lambda text: text.replace("<rpm:provides>", f"<rpm:provides>{EVIL_ENTRY}", 1)),
        "differ in their provides",
        "metadata and package",
    ),
    Attack(
        "primary that obsoletes",
        primary(lambda text: text.replace("</format>", f"<rpm:obsoletes>{EVIL_ENTRY}</rpm:obsoletes></format>", 1)),
        "differ in their obsoletes",
        "metadata and package",
    ),
    Attack(
        "primary with a weak dependency",
        primary(lambda text: text.replace("</format>", f"<rpm:recommends>{EVIL_ENTRY}</rpm:recommends></format>", 1)),
        "differ in their recommends",
        "metadata and package",
    ),
    Attack(
        "primary without a provision",
        primary(lambda text: re.sub(r"(?s)<rpm:provides>.*?</rpm:provides>", "", text, count=1)),
        "differ in their provides",
        "metadata and package",
    ),
    Attack(
        "primary with another vendor",
        primary(lambda text: text.replace("<rpm:vendor>Coredge.io", "<rpm:vendor>Evil", 1)),
        "differ in their vendor",
        "metadata and package",
    ),
    Attack(
        "primary with a file of another",
        primary(lambda text: text.replace("</format>", "<file>/usr/bin/evil</file></format>", 1)),
        "differ in their files",
        "metadata and package",
    ),
    Attack(
        "filelists with a file of another",
        filelists(lambda text: text.replace("<file>", "<file>/etc/evil</file><file>", 1)),
        "differ in their files",
        "metadata and package",
    ),
    Attack("filelists without a file", filelists(lambda text: re.sub("<file>.*</file>", "", text, count=1)), "differ in their files", "metadata and package"),
    Attack(
        "filelists without a package",
        filelists(lambda text: re.sub("(?s)<package .*?</package>", "", text, count=1)),
        "number of packages is wrong",
        "packages index",
    ),
    Attack(
        "filelists of another version",
        filelists(lambda text: text.replace('ver="1.35.1"', 'ver="9"', 1)),
        "differ in their names and versions",
        "metadata and package",
    ),
    Attack(
        "filelists with another package",
        filelists(lambda text: re.sub('pkgid="[0-9a-f]*"', 'pkgid="x"', text, count=1)),
        "'x', which is not a package",
        "packages index",
    ),
    Attack(
        "primary with two versions of a package",
        primary(lambda text: text.replace("<version ", '<version epoch="0" ver="9" rel="9"/><version ', 1)),
        "has 'version' twice",
        "packages index",
    ),
    Attack(
        "primary with two lists of requirements",
        primary(lambda text: text.replace("</format>", "<rpm:requires/><rpm:requires/></format>", 1)),
        "has 'rpm:requires' twice",
        "packages index",
    ),
    Attack(
        "primary with a version of another namespace",
        primary(lambda text: text.replace("<version ", '<version xmlns="urn:x" epoch="0" ver="9" rel="9"/><version ', 1)),
        "the element 'version' is of another namespace",
        "packages index",
    ),
    Attack(
        "primary with another prefix",
        primary(lambda text: text.replace("<version ", '<x:version ver="9"/><version ', 1)),
        "the element 'x:version' is of another namespace",
        "packages index",
    ),
    Attack("primary with other namespaces", primary(lambda text: text.replace("xmlns:rpm=", "xmlns:r=")), "has other namespaces", "packages index"),
    Attack(
        "primary in another encoding", primary(lambda text: text.replace('"UTF-8"', '"ISO-8859-1"')), "it is in the encoding 'ISO-8859-1'", "packages index"
    ),
    Attack(
        "primary with an element that dnf may know",
        primary(lambda text: text.replace("<location ", "<modules/><location ", 1)),
        "has the unknown element 'modules'",
        "packages index",
    ),
    Attack(
        "primary with a package twice",
        primary(lambda text: re.sub(r"(?s)(<package .*?</package>)", r"\1\1", text, count=1).replace('packages="3"', 'packages="4"')),
        "it names the package",
        "packages index",
    ),
    Attack(
        "primary with Debian's name of the architecture",
        primary(lambda text: text.replace("<arch>x86_64", "<arch>amd64", 1)),
        "in the package",
        "metadata and package",
    ),
    Attack(
        "primary of another content than it has unpacked",
        lambda world, root: reindex_dnf(world, root, lambda text: text.replace("small", "large"), opened=False),
        "primary.xml.gz, decompressed, is not what repodata/repomd.xml names",
        "index content",
    ),
    Attack(
        "repomd with metadata that only dnf reads",
        repomd(lambda text: text.replace("</repomd>", re.sub('type="other"', 'type="primary_zck"', text[text.index('<data type="other"') :]), 1)),
        "names the metadata 'primary_zck', which CKP does not read",
        "repomd",
    ),
    Attack(
        "repomd with two checksums",
        repomd(lambda text: text.replace("<open-checksum", '<checksum type="sha256">0</checksum><open-checksum', 1)),
        "has 'checksum' twice",
        "repomd",
    ),
    Attack("primary that is no XML", primary(lambda text: text[:-20]), "is malformed", "packages index"),
]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_attack_on_a_repository(world: World, root: Path, attack: Attack) -> None:
    attack.do(world, root)
    before = snapshot(root)
    with pytest.raises(VerificationFailed) as caught:
        verify_repository(str(root), world.keyring)
    assert attack.words in caught.value.brief, caught.value.render()
    assert caught.value.check == attack.check
    assert snapshot(root) == before


def test_published_repositories_are_good(world: World, root: Path) -> None:
    for state, count in ((world.now, 3), (world.before, 1)):
        lines = verify_path(str(state), str(world.key.keyring))
        assert any(line.startswith(f"apt noble: {count} packages") for line in lines)
        assert any(f"apt: {count} packages verified" in line for line in lines)
        assert any(line.startswith(f"dnf v1.35/x86_64: {count} packages verified") for line in lines)
    assert any("not covered by any signature" in line and "keys" in line for line in lines)
    (root / "apt/.lock").write_bytes(b"")
    assert verify_path(str(root / "apt"), str(world.key.keyring))
    assert verify_path(str(root / DNF), str(world.key.keyring))


def test_a_folder_of_packages_holds_nothing_else(world: World, tmp_path: Path) -> None:
    folder = tmp_path / "packages"
    folder.mkdir()
    with pytest.raises(VerificationFailed, match="nothing to verify"):
        verify_path(str(folder), str(world.key.keyring))
    for path in world.debs.values():
        shutil.copy(path, folder)
    assert len(verify_path(str(folder), str(world.key.keyring))) == 3
    (folder / "install.sh").write_text("echo")
    with pytest.raises(VerificationFailed, match=r"install\.sh in .* is not a package"):
        verify_path(str(folder), str(world.key.keyring))
