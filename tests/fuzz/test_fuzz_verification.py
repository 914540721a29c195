"""For any input the parsers of the verification return or raise VerificationFailed, in bounded time and memory, and raise nothing else.

Two kinds of input: random bytes, and valid inputs that were cut, flipped, doubled or spliced, which get further. What is accepted has a property
of its own: it reads back equal after it was written again, or is what a reference implementation reads, or what was signed.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import resource
import subprocess
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pysequoia import SignatureMode, Tsk
from pysequoia import sign as openpgp_sign

from ckp.hostkit.errors import VerificationFailed
from ckp.verify import archives, packagefile, rpmfile
from ckp.verify.bundle import BundleManifest, parse_manifest
from ckp.verify.deb822 import parse_deb822
from ckp.verify.debfile import read_ar, verify_deb
from ckp.verify.packagefile import Contents, Entry
from ckp.verify.repositories.apt import _listed, _verify_index
from ckp.verify.repositories.dnf import _repomd
from ckp.verify.repositories.tree import Packages, Tree, safe_path
from ckp.verify.repositories.xmlfile import read_xml
from ckp.verify.signatures import check_cleartext, check_signature
from tests.support.spoilt_packages import Deb, Rpm, header, special, tar_of, text, texts

SECONDS = 5.0
MEGABYTES = 400
FUZZ = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture])
SLOW = settings(FUZZ, max_examples=40)
"""For what starts a program each time."""


def sign(data: bytes) -> bytes:
    """Not a signature; of the size of one."""
    return hashlib.sha512(data).digest() * 8


def broken(why: str) -> VerificationFailed:
    return VerificationFailed(f"broken: {why}")


@pytest.fixture(autouse=True)
def bounded() -> Iterator[None]:
    """Limits the memory of all examples of a test to what a small host can spare."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < MEGABYTES


@contextlib.contextmanager
def only_refusals() -> Iterator[None]:
    started = time.process_time()
    with contextlib.suppress(VerificationFailed):
        yield
    assert time.process_time() - started < SECONDS


@st.composite
def spoilt(draw: st.DrawFn, *goods: bytes) -> bytes:
    """A valid input with a few faults, or random bytes."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=4096))
    raw = bytearray(draw(st.sampled_from(goods)))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, max(0, len(raw) - 1)))
        match draw(st.sampled_from(["flip", "number", "cut", "insert", "double", "swap"])):
            case "flip" if raw:
                raw[at] ^= draw(st.integers(1, 255))
            case "number":
                raw[at : at + 4] = draw(st.sampled_from([b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\0", b"\x80\0\0\0", b"9999"]))
            case "cut":
                del raw[at : at + draw(st.integers(1, 600))]
            case "insert":
                raw[at:at] = draw(st.binary(max_size=64))
            case "double":
                raw[at:at] = raw[max(0, at - 60) : at]
            case _:
                raw = raw[at:] + raw[:at]
    return bytes(raw)


DEB = Deb().build(sign)
RPM = Rpm().build(sign)
TAR = tar_of(special("./", b"5", mode=0o755), ("./control", b"Package: x\n"), ("./" + "n" * 150, b"x" * 700), special("./l", b"2", target="control"))
MAIN = Rpm(files=(("/usr/bin/", "a", 0o100755, ""), ("/usr/lib/", "b", 0o120777, "../bin/a"))).main_header()
PACKAGES = b"Package: kubelet\nVersion: 1-1\nArchitecture: amd64\nFilename: pool/a.deb\nSize: 4\nSHA256: " + b"0" * 64 + b"\nDescription: a\n b\n .\n\n"
REPOMD = (
    b'<?xml version="1.0" encoding="UTF-8"?>'
    b'<repomd xmlns="http://linux.duke.edu/metadata/repo" xmlns:rpm="http://linux.duke.edu/metadata/rpm"><revision>1</revision>'
    + b"".join(
        b'<data type="%s"><checksum type="sha256">%s</checksum><location href="repodata/%s.xml.gz"/><size>3</size></data>' % (kind, b"0" * 64, kind)
        for kind in (b"primary", b"filelists", b"other")
    )
    + b"</repomd>"
)
PRIMARY = (
    b'<?xml version="1.0" encoding="UTF-8"?>\n<metadata xmlns="http://linux.duke.edu/metadata/common" xmlns:rpm="http://linux.duke.edu/metadata/rpm"'
    b' packages="1">'
    b'<package type="rpm"><name>kubelet</name><arch>x86_64</arch><version epoch="0" ver="1.35.1" rel="ckp"/><checksum type="sha256" pkgid="YES">'
    + b"0" * 64
    + b'</checksum><packager>Coredge.io &lt;a@b.c&gt; &amp; &#xe9;</packager><size package="4"/><format><rpm:vendor/></format>\n</package></metadata>'
)
KEY = Tsk.generate("CKP fuzz <fuzz@example.org>")
FINGERPRINT = str(KEY.extract_certificate().fingerprint).upper()
SIGNED = b"Origin: CKP\nSuite: noble\n"
DETACHED = bytes(openpgp_sign(KEY.signer(), SIGNED, mode=SignatureMode.DETACHED, armor=False))
CLEARTEXT = bytes(openpgp_sign(KEY.signer(), SIGNED, mode=SignatureMode.CLEAR, armor=True))
MANIFEST = json.dumps(
    {
        "schema": 1,
        "release": "v1.35.1",
        "version": "1.35.1-ckp",
        "os": "debian",
        "os_version": "12",
        "architecture": "amd64",
        "registry": "r:5000/ckp",
        "packages": [{"file": "kubelet.deb", "name": "kubelet", "version": "1.35.1-ckp", "sha256": hashlib.sha256(b"kubelet").hexdigest()}],
        "files": [{"file": "chart.tgz", "sha256": hashlib.sha256(b"chart").hexdigest()}],
        "images": {"pause": "3.10@sha256:" + "a" * 64},
        "stand_ins": ["a"],
    }
).encode()


@FUZZ
@given(raw=spoilt(DEB))
def test_ar(raw: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.deb"
    path.write_bytes(raw)
    with path.open("rb") as stream, only_refusals():
        members = read_ar(stream, "fuzz.deb")
        assert all(member.end <= len(raw) for member in members)


@FUZZ
@given(raw=spoilt(TAR))
def test_tar(raw: bytes) -> None:
    contents = Contents("fuzz.deb", "")
    with only_refusals():
        for entry, content in archives.tar_entries(iter([raw]), 1 << 20, broken, wanted="control", wanted_limit=1000):
            assert content is None or len(content) <= 1000
            contents.add(entry)
    assert not any(".." in name.split("/") or name.startswith("/") for name in contents.kinds)


@FUZZ
@given(path=st.text(max_size=60), target=st.text(max_size=60), kind=st.sampled_from(["file", "folder", "link", "hardlink"]), mode=st.integers(0, 0o7777))
@example(path="/", target="0", kind="link", mode=0)
@example(path="./", target="", kind="file", mode=0)
def test_no_entry_leaves_the_root(path: str, target: str, kind: str, mode: int) -> None:
    import posixpath

    contents = Contents("fuzz.deb", "")
    with only_refusals():
        contents.add(Entry(path, kind, mode, 1, target))
        place = posixpath.normpath("/root/" + path.lstrip("/"))
        assert place == "/root" or place.startswith("/root/")
        assert "\0" not in path and "\n" not in path
        if kind == "link" and not target.startswith("/"):
            end = posixpath.normpath(posixpath.join(posixpath.dirname(place), target))
            assert end == "/root" or end.startswith("/root/")


@pytest.mark.parametrize("packing", ["gz", "xz"])
@FUZZ
@given(data=st.data())
def test_packed_data(packing: str, data: st.DataObject) -> None:
    import lzma

    good = gzip.compress(b"abc" * 1000, mtime=0) if packing == "gz" else lzma.compress(b"abc" * 1000)
    raw = data.draw(spoilt(good))
    with only_refusals(), archives.unpacked(io.BytesIO(raw), 0, len(raw), packing, broken) as pieces:
        for piece in pieces:
            assert len(piece) <= packagefile.CHUNK


@SLOW
@given(raw=spoilt(subprocess.run(["zstd", "-q", "-c"], input=TAR * 3, capture_output=True, check=True).stdout))
def test_zstd(raw: bytes) -> None:
    with only_refusals(), archives.unpacked(io.BytesIO(raw), 0, len(raw), "zst", broken) as pieces:
        for _ in pieces:
            pass


@FUZZ
@given(raw=spoilt(RPM))
def test_rpm(raw: bytes) -> None:
    def read() -> None:
        rpm = rpmfile.parse(io.BytesIO(raw), len(raw))
        rpmfile._only_signature(rpm, "fuzz.rpm")
        rpmfile._check_form(rpm)
        rpmfile.build_lead(rpm)
        rpmfile.build_signature_header(rpm, b"x")
        rpmfile._check_payload(io.BytesIO(raw), rpm, "fuzz.rpm", "")
        rpmfile._check_files(rpm, "fuzz.rpm", "")

    with only_refusals(), contextlib.suppress(rpmfile.Malformed):
        read()


@FUZZ
@given(raw=spoilt(MAIN, header({1: text("x"), 2: texts("a", "b")})))
def test_rpm_header(raw: bytes) -> None:
    """A header whose start says how long it is, as the reader of files makes sure."""
    whole = raw[:16].ljust(16, b"\0")
    tags, size = int.from_bytes(whole[8:12], "big") % 40, min(int.from_bytes(whole[12:16], "big"), len(raw))
    whole = whole[:8] + tags.to_bytes(4, "big") + size.to_bytes(4, "big")
    body = raw[16 : 16 + 16 * tags + size].ljust(16 * tags + size, b"\0")
    with only_refusals(), contextlib.suppress(rpmfile.Malformed):
        found = rpmfile.parse_header(whole + body, rpmfile.REGION, "header")
        assert sum(sum(len(part) if isinstance(part, str) else 1 for part in value) for value in found.values() if isinstance(value, tuple)) <= size


def squeezed(text: str) -> list[str]:
    """The lines of a text that are not blank, without white space."""
    return ["".join(line.split()) for line in text.split("\n") if line.strip()]


@FUZZ
@given(raw=spoilt(PACKAGES, MANIFEST))
def test_deb822(raw: bytes) -> None:
    with only_refusals():
        paragraphs = list(parse_deb822(raw, broken))
        assert all("\n" not in label and ":" not in label for fields in paragraphs for label in fields)
        written = "\n".join("".join(f"{label}: {value}\n".replace("\n", "\n ").rstrip(" ") for label, value in fields.items()) for fields in paragraphs)
        assert squeezed(written) == squeezed(raw.decode())
        assert list(parse_deb822(written.encode(), broken)) == paragraphs


@FUZZ
@given(raw=spoilt(PACKAGES))
def test_packages(raw: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    root = tmp_path_factory.getbasetemp() / "apt"
    (root / "pool").mkdir(parents=True, exist_ok=True)
    (root / "Packages").write_bytes(raw)
    tree = Tree(str(root))
    with only_refusals():
        assert _verify_index(tree, "Packages", "", Packages(tree, "nowhere")) == 0


@FUZZ
@given(text=st.text(max_size=400))
def test_release(text: str) -> None:
    with only_refusals():
        for path in _listed({"SHA256": text}, "dists/x/", ""):
            assert not path.startswith("/") and ".." not in path.split("/")


@FUZZ
@given(name=st.text(max_size=80))
def test_no_path_of_metadata_leaves_the_repository(name: str) -> None:
    with only_refusals():
        assert not safe_path(name, "index").startswith(("/", ".")) and "/." not in name and "\0" not in name


@FUZZ
@given(raw=spoilt(REPOMD))
def test_repomd(raw: bytes) -> None:
    with only_refusals():
        assert set(_repomd(raw, "")) >= {"primary", "filelists", "other"}


def flat(element: ET.Element) -> list[tuple[str, dict[str, str], str | None, str | None, int]]:
    """All of a document, in the order of its elements."""
    return [(item.tag, dict(item.attrib), item.text, item.tail, len(item)) for item in element.iter()]


SPACES = {"common": "metadata", "repo": "repomd"}
RPM_SPACE = "{http://linux.duke.edu/metadata/rpm}"


def parse_xml(raw: bytes) -> list[ET.Element]:
    """The elements below the root of primary.xml or repomd.xml."""
    kind = "repo" if b"<repomd" in raw else "common"
    found: list[ET.Element] = []
    spaces = {"xmlns": f"http://linux.duke.edu/metadata/{kind}", "xmlns:rpm": RPM_SPACE[1:-1]}
    read_xml(raw, broken, SPACES[kind], spaces, found.append)
    return found


def written_names(element: ET.Element) -> ET.Element:
    """The element with the names that are written in place of those with namespaces."""
    for item in element.iter():
        item.tag = item.tag.replace(RPM_SPACE, "rpm:").rpartition("}")[2]
        for name in [name for name in item.attrib if name.startswith("{")]:
            item.attrib["xml:" + name.rpartition("}")[2]] = item.attrib.pop(name)
    return element


@FUZZ
@given(raw=spoilt(REPOMD, PRIMARY) | st.binary(max_size=300).map(lambda tail: PRIMARY[: PRIMARY.index(b"<package")] + b"<a>" + tail + b"</a></metadata>"))
def test_xml(raw: bytes) -> None:
    """What is accepted is what the standard library reads, by the names that are written."""
    with only_refusals():
        found = parse_xml(raw)
        theirs = list(ET.fromstring(raw, parser=ET.XMLParser(encoding="utf-8")))
        assert [flat(item)[1:] for item in found] == [flat(written_names(item))[1:] for item in theirs]
        assert [(item.tag, item.attrib, item.text) for item in found] == [(item.tag, item.attrib, item.text) for item in theirs]


def test_xml_that_unfolds_is_refused_at_once() -> None:
    entities = "".join(f'<!ENTITY e{number} "{f"&e{number - 1};" * 10}">' for number in range(1, 20))
    lol = f'<!DOCTYPE a [<!ENTITY e0 "lol">{entities}]><a>&e19;</a>'.encode()
    for raw in (lol, lol.decode().encode("utf-16"), b"<a>" * 100_000, b'<!DOCTYPE a SYSTEM "file:///etc/passwd"><a/>'):
        with pytest.raises(VerificationFailed), only_refusals_time():
            parse_xml(raw)


@contextlib.contextmanager
def only_refusals_time() -> Iterator[None]:
    started = time.process_time()
    yield
    assert time.process_time() - started < SECONDS


def written(manifest: BundleManifest) -> bytes:
    """The bundle.json of a parsed manifest."""
    same = ("release", "version", "os", "os_version", "architecture", "registry", "images", "stand_ins")
    return json.dumps(
        {
            "schema": 1,
            **{name: getattr(manifest, name) for name in same},
            "packages": [vars(package) for package in manifest.packages],
            "files": [{"file": name, "sha256": digest} for name, digest in manifest.files.items()],
        }
    ).encode()


@FUZZ
@given(raw=spoilt(MANIFEST))
def test_manifest(raw: bytes) -> None:
    with only_refusals():
        manifest = parse_manifest(raw, "/bundle", "")
        assert all("/" not in package.file and not package.file.startswith(".") for package in manifest.packages)
        assert parse_manifest(written(manifest), "/bundle", "") == manifest


@SLOW
@given(
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=9), lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=9), inner)
    )
)
def test_any_json_in_any_place_of_a_manifest(value: object) -> None:
    good = json.loads(MANIFEST)
    for place in good:
        with only_refusals():
            manifest = parse_manifest(json.dumps({**good, place: value}).encode(), "/bundle", "")
            assert parse_manifest(written(manifest), "/bundle", "") == manifest
    for place in ("packages", "files"):
        with only_refusals():
            parse_manifest(json.dumps({**good, place: [value]}).encode(), "/bundle", "")
    with pytest.raises(VerificationFailed), only_refusals_time():
        parse_manifest(b"[" * 100_000, "/bundle", "")


@pytest.fixture(scope="session")
def ring(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A keyring with KEY alone."""
    path = tmp_path_factory.mktemp("keys") / "ring"
    path.write_bytes(bytes(KEY.extract_certificate()))
    return str(path)


def lines(text: bytes) -> list[bytes]:
    """A text as a cleartext signature covers it: without the blanks at the ends of lines (RFC 9580, 7.2)."""
    return [line.rstrip(b" \t\r") for line in text.split(b"\n")]


@SLOW
@given(raw=spoilt(DETACHED, sign(b"")), data=st.sampled_from([SIGNED, SIGNED]) | spoilt(SIGNED))
def test_detached_signatures(raw: bytes, data: bytes, ring: str) -> None:
    """What is accepted is signed by KEY, and is what was signed."""
    with only_refusals():
        assert check_signature(iter([data]), raw, ring, "file") == FINGERPRINT
        assert data == SIGNED


@SLOW
@given(raw=spoilt(CLEARTEXT, b"-----BEGIN PGP SIGNED MESSAGE-----\n" + sign(b"")))
def test_cleartext_signatures(raw: bytes, ring: str) -> None:
    with only_refusals():
        text, key = check_cleartext(raw, ring, "file")
        assert key == FINGERPRINT
        assert lines(text.rstrip(b"\n")) == lines(SIGNED.rstrip(b"\n"))


def test_the_valid_inputs_are_accepted(ring: str) -> None:
    """If they were refused, the faults in them would test nothing."""
    assert len(parse_xml(REPOMD)) == 4 and len(parse_xml(PRIMARY)) == 1
    assert set(_repomd(REPOMD, "")) == {"primary", "filelists", "other"}
    assert parse_manifest(MANIFEST, "/bundle", "").release == "v1.35.1"
    assert [fields["Package"] for fields in parse_deb822(PACKAGES, broken)] == ["kubelet"]
    assert [entry.path for entry, _ in archives.tar_entries(iter([TAR]), 1 << 20, broken)][1] == "./control"
    assert check_signature(iter([SIGNED]), DETACHED, ring, "file") == FINGERPRINT
    text, key = check_cleartext(CLEARTEXT, ring, "file")
    assert key == FINGERPRINT and lines(text.rstrip(b"\n")) == lines(SIGNED.rstrip(b"\n"))


@SLOW
@given(raw=spoilt(b"\x99\x00\x01x", DEB))
def test_keyrings(raw: bytes, tmp_path: Path) -> None:
    (tmp_path / "ring").write_bytes(raw)
    (tmp_path / "x.deb").write_bytes(DEB)
    with pytest.raises(VerificationFailed):
        verify_deb(str(tmp_path / "x.deb"), str(tmp_path / "ring"))


def test_a_bomb_of_any_packing_stops_at_its_bound() -> None:
    """A gigabyte of zeros in a megabyte: pieces stay small, and the reader of the tar stops at its own limit."""
    import lzma

    zeros = bytes(1 << 26)
    for packing, raw in (
        ("gz", gzip.compress(zeros, compresslevel=1)),
        ("xz", lzma.compress(zeros, preset=0)),
        ("zst", subprocess.run(["zstd", "-q", "-c"], input=zeros, capture_output=True, check=True).stdout),
    ):
        with archives.unpacked(io.BytesIO(raw), 0, len(raw), packing, broken) as pieces, pytest.raises(VerificationFailed, match="longer than 1 MiB"):
            list(archives.tar_entries(pieces, 1 << 20, broken))
