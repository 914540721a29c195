"""bundle.json has one definition: what is written is what is read."""

from __future__ import annotations

import json
import string
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckp.hostkit.errors import VerificationFailed
from ckp.verify.bundle import MANIFEST, SIGNATURE, BundleManifest, Package, parse_manifest, write_manifest
from tests.support.bundle_lists import bundle_list

HEX = st.text("0123456789abcdef", min_size=64, max_size=64)
TEXT = st.text(min_size=1, max_size=20)
WORD = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._+~:-]{0,30}", fullmatch=True)
REPOSITORY = st.from_regex(r"[a-z0-9]{1,9}([._/-][a-z0-9]{1,9}){0,3}", fullmatch=True)
REGISTRY = st.builds("{}{}/{}".format, st.sampled_from(["registry.example", "localhost", "10.0.0.1", "[fd00::1]"]), st.sampled_from(["", ":5000"]), REPOSITORY)
LINE = st.text(st.characters(categories=["L", "N", "P", "Zs"]), max_size=20)
LOWER = string.ascii_lowercase
FILE = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._+~-]{0,40}", fullmatch=True).filter(
    lambda name: name not in (MANIFEST, SIGNATURE) and not name.endswith((".deb", ".rpm"))
)
PINNED = st.builds("{}@sha256:{}".format, st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,30}", fullmatch=True), HEX)
WRITTEN = """{
 "architecture": "amd64",
 "files": [
  {
   "file": "chart-cilium.tgz",
   "sha256": "ONE"
  },
  {
   "file": "local-path.yaml",
   "sha256": "TWO"
  }
 ],
 "images": {
  "pause": "3.10@sha256:ONE"
 },
 "os": "debian",
 "os_version": "12",
 "packages": [
  {
   "file": "kubelet.deb",
   "name": "kubelet",
   "sha256": "TWO",
   "version": "1.35.1-ckp"
  }
 ],
 "registry": "r:5000/ckp",
 "release": "v1.35.1",
 "schema": 1,
 "stand_ins": [
  "a stands in for b"
 ],
 "version": "1.35.1-ckp"
}
""".replace("ONE", "1" * 64).replace("TWO", "2" * 64)
"""The file as CKP 0.2.0 wrote it."""


@st.composite
def manifests(draw: st.DrawFn) -> BundleManifest:
    """Any list that a bundle may have."""
    names = draw(st.lists(st.text(LOWER, min_size=2, max_size=12), unique=True, max_size=4))
    packages = tuple(Package(f"{name}.{draw(st.sampled_from(['deb', 'rpm']))}", name, draw(WORD), draw(HEX)) for name in names)
    return bundle_list(
        folder=draw(TEXT),
        key=draw(TEXT),
        release=draw(st.sampled_from(["v1.35.1", "v1.36.0-rc.1"])),
        version=draw(WORD),
        os=draw(WORD),
        os_version=draw(WORD),
        architecture=draw(WORD),
        registry=draw(REGISTRY),
        packages=packages,
        files=draw(st.dictionaries(FILE, HEX, max_size=4)),
        images=draw(st.dictionaries(REPOSITORY, PINNED, max_size=4)),
        stand_ins=tuple(draw(st.lists(LINE, max_size=3))),
    )


@given(manifests())
def test_what_is_written_is_read_again(manifest: BundleManifest) -> None:
    raw = write_manifest(manifest)
    found = parse_manifest(raw, manifest.folder, manifest.key)
    assert found == manifest
    assert list(found.files) == list(manifest.files), "in the same order"
    assert write_manifest(found) == raw


def test_the_file_is_written_as_before() -> None:
    manifest = bundle_list(
        packages=(Package("kubelet.deb", "kubelet", "1.35.1-ckp", "2" * 64),),
        files={"chart-cilium.tgz": "1" * 64, "local-path.yaml": "2" * 64},
        images={"pause": "3.10@sha256:" + "1" * 64},
        stand_ins=("a stands in for b",),
    )
    assert write_manifest(manifest).decode() == WRITTEN


@pytest.mark.parametrize(
    "fields",
    [
        {"release": "1.35.1"},
        {"os": ""},
        {"images": {"pause": "3.10"}},
        {"files": {"../evil": "1" * 64}},
        {"packages": (Package("kubelet.tgz", "kubelet", "1", "1" * 64),)},
    ],
)
def test_a_list_that_hosts_would_reject_is_not_written(fields: dict[str, Any]) -> None:
    with pytest.raises(VerificationFailed, match=r"bundle\.json is malformed"):
        write_manifest(replace(bundle_list(), **fields))


def test_another_schema_is_rejected() -> None:
    data = json.loads(write_manifest(bundle_list()))
    with pytest.raises(VerificationFailed, match="schema 1 is expected"):
        parse_manifest(json.dumps({**data, "schema": 2}).encode(), "", "")


def changed(old: str, new: str) -> bytes:
    raw = WRITTEN.replace(old, new, 1)
    assert raw != WRITTEN
    return raw.encode()


NUMBER = "1" + "0" * 400


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        pytest.param(changed('"schema": 1', '"schema": true'), "schema 1 is expected", id="true for 1"),
        pytest.param(changed('"schema": 1', '"schema": 1.0'), "the number 1.0", id="a fraction"),
        pytest.param(changed('"schema": 1', '"schema": 1e0'), "the number 1e0", id="an exponent"),
        pytest.param(changed('"schema": 1', f'"schema": {NUMBER}'), "a number of 401 digits", id="a number that no one has"),
        pytest.param(changed('"schema": 1', '"schema": NaN'), "the number NaN", id="not a number"),
        pytest.param(changed('"schema": 1', '"schema": 1, "schema": 1'), "it has 'schema' twice", id="a name twice"),
        pytest.param(changed('"file": "kubelet.deb"', '"file": "kubelet.deb", "file": "evil.deb"'), "it has 'file' twice", id="a name twice in a list"),
        pytest.param(changed("r:5000/ckp", "r:5000/ckp\\n  evil: x"), "registry is", id="a line break in the registry"),
        pytest.param(changed("r:5000/ckp", 'r:5000/ckp\\"'), "registry is", id="a quote in the registry"),
        pytest.param(changed("r:5000/ckp", "r:5000/../x"), "registry is", id="a path in the registry"),
        pytest.param(changed("r:5000/ckp", "user@r/ckp"), "registry is", id="a user in the registry"),
        pytest.param(changed('"version": "1.35.1-ckp"', '"version": "1.35.1 ckp"'), "version is", id="a blank in a package's version"),
        pytest.param(changed('"amd64"', '"amd64\\u001b[2J"'), "architecture is", id="an escape in the architecture"),
        pytest.param(changed('"debian"', '"\\ud800"'), "os is", id="half of a character"),
        pytest.param(changed('"pause"', '"../pause"'), "is not a name of an image", id="a path as an image"),
        pytest.param(changed("a stands in", "a\\nstands in"), "stand_ins", id="a line break in a sentence"),
        pytest.param(changed("a stands in", "a" * 600), "stand_ins", id="a long sentence"),
        pytest.param(WRITTEN.encode("utf-16"), "codec can't decode", id="another encoding"),
        pytest.param(b"\xef\xbb\xbf" + WRITTEN.encode(), "BOM", id="a byte order mark"),
        pytest.param(WRITTEN.encode() + b"{}", "Extra data", id="two documents"),
        pytest.param(b"[" * 100_000, "recursion", id="deeper than any reader goes"),
    ],
)
def test_what_readers_could_read_differently_is_rejected(raw: bytes, words: str) -> None:
    with pytest.raises(VerificationFailed) as caught:
        parse_manifest(raw, "/bundle", "KEY")
    assert words in caught.value.brief and caught.value.brief.startswith("bundle.json is malformed: ")
    assert (caught.value.check, caught.value.key) == ("manifest", "KEY")
    assert caught.value.brief.isprintable()
