"""Bundles are pulled from where an earlier attempt ended, and are what their digest says: against the registry simulator over TLS.

`imgpkg` here is a script of the test that does as `imgpkg pull` does; with the real one: tests/component/test_bundle_pulls.py.
"""

from __future__ import annotations

import errno
import fcntl
import gzip
import io
import json
import os
import random
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckp.agent.fetch import pull as pulling
from ckp.agent.fetch.bundles import drop_other_bundles, pull_bundle
from ckp.agent.system import facts
from ckp.clients.oci.store import sha256
from ckp.hostkit.errors import AgentError, Cancelled, InvalidInput, ProcessFailed
from ckp.hostkit.processes import own_command, run
from tests.simulators.registry import Fault, RegistrySimulator, _Repository
from tests.support.served_registry import served

MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
IMGPKG = """#!{python}
# As `imgpkg pull --image … --output …`: the manifest, its layers, unpacked. Says where it asked.
import hashlib, io, json, re, ssl, sys, tarfile, urllib.request
given = dict(zip(sys.argv[2::1], sys.argv[3::1]))
host, repository, digest = re.fullmatch("([^/]+)/(.+)@(sha256:.+)", given["--image"]).groups()
ca = given.get("--registry-ca-cert-path")
scheme = "https" if ca else "http"
def ask(kind, name):
    context = ssl.create_default_context(cafile=ca) if ca else None
    with urllib.request.urlopen(f"{{scheme}}://{{host}}/v2/{{repository}}/{{kind}}/{{name}}", context=context) as answer:
        data = answer.read()
    assert "sha256:" + hashlib.sha256(data).hexdigest() == name
    return data
with open({log!r}, "a") as stream:
    stream.write(scheme + "\\n")
for layer in json.loads(ask("manifests", digest))["layers"]:
    tarfile.open(fileobj=io.BytesIO(ask("blobs", layer["digest"]))).extractall(given["--output"])
"""
CONTENT = random.Random(5).randbytes(3 << 20)
"""Of the bundle's one file: it does not compress, so that its layer is as long."""


class Site:
    """A registry with one bundle, and a host that pulls it."""

    def __init__(self, folder: Path, simulator: RegistrySimulator, address: str, ca: str) -> None:
        self.simulator, self.ca, self.folder = simulator, ca, folder
        self.image = f"{address}/ckp/bundle@{self._push()}"
        self.target = folder / "state/bundles" / self.image.rpartition(":")[2]
        self.imgpkg = folder / "imgpkg"
        self.imgpkg_log = folder / "imgpkg.log"
        self.imgpkg.write_text(IMGPKG.format(python="/usr/bin/python3", log=str(self.imgpkg_log)))
        self.imgpkg.chmod(0o755)

    def _push(self) -> str:
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as archive:
            entry = tarfile.TarInfo("kubelet.deb")
            entry.size = len(CONTENT)
            archive.addfile(entry, io.BytesIO(CONTENT))
        layer, config = gzip.compress(packed.getvalue(), mtime=0), b"{}"
        body = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": MANIFEST,
                "config": {"digest": sha256(config), "size": len(config)},
                "layers": [{"digest": sha256(layer), "size": len(layer)}],
            }
        ).encode()
        repository = self.simulator.repositories.setdefault("ckp/bundle", _Repository())
        for blob in (layer, config):
            self.simulator.content[sha256(blob)] = blob
            repository.blobs.add(sha256(blob))
        repository.manifests[sha256(body)] = (MANIFEST, body)
        self.layer, self.size = sha256(layer), len(layer)
        return sha256(body)

    def pull(self) -> str:
        return pull_bundle(str(self.imgpkg), self.image, str(self.target), self.ca)

    def asked(self) -> list[str]:
        """The ranges of the layer that were asked for: "" is all of it."""
        return [line.partition(self.layer)[2].strip() for line in self.simulator.requests(self.layer)]

    def kept(self) -> int:
        """Bytes of the layer that wait for the next attempt."""
        part = Path(f"{self.target}.blobs") / f"{self.layer.partition(':')[2]}.part"
        return part.stat().st_size if part.exists() else 0

    def is_whole(self) -> bool:
        return (self.target / "kubelet.deb").read_bytes() == CONTENT and not list(self.target.parent.glob("*.*"))


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    simulator = RegistrySimulator()
    with served(simulator, tmp_path) as (address, ca):
        yield Site(tmp_path, simulator, address, ca)


def test_a_bundle_comes_whole_and_imgpkg_unpacks_it_from_this_host(site: Site) -> None:
    assert site.pull() == f"{(site.size + 2) / 1e6:.1f} MB"
    assert site.is_whole() and site.target.stat().st_mode & 0o777 == 0o700
    assert site.imgpkg_log.read_text() == "http\n" and site.asked() == [""]
    assert site.pull() == "", "it is here already"


def test_a_connection_that_breaks_is_taken_up_where_it_ended(site: Site) -> None:
    site.simulator.faults = [Fault(site.layer, times=2, cut=True, after=1 << 20)]
    site.pull()
    assert site.is_whole()
    assert site.asked() == ["", "bytes=1048576-", "bytes=2097152-"]


def test_the_next_attempt_resumes_where_an_earlier_process_ended(site: Site) -> None:
    site.simulator.faults = [Fault(site.layer, times=1, cut=True, after=2 << 20), Fault(site.layer, times=9, status=503)]
    with pytest.raises(ProcessFailed) as failed:
        site.pull()
    assert failed.value.reason == "PullFailed" and "the next attempt resumes after 2.1 of 3.1 MB" in failed.value.details
    assert site.kept() == 2 << 20 and not site.target.exists()
    drop_other_bundles(str(site.target.parent.parent), str(site.target))
    assert site.kept() == 2 << 20, "what belongs to the wanted bundle is no other one's"
    site.simulator.faults, before = [], len(site.asked())
    assert site.pull() == f"{(site.size + 2) / 1e6:.1f} MB, 2.1 of them from an earlier attempt"
    assert site.is_whole() and site.asked()[before:] == ["bytes=2097152-"]


def test_a_process_that_is_killed_in_the_middle_loses_nothing(site: Site) -> None:
    site.simulator.faults = [Fault(site.layer, times=1, cut=True, after=2 << 20), Fault(site.layer, times=99, status=503)]
    with pytest.raises(Cancelled):
        pull_bundle(str(site.imgpkg), site.image, str(site.target), site.ca, lambda: site.kept() >= 2 << 20)  # not at its first bytes
    assert site.kept() == 2 << 20
    site.simulator.faults = []
    site.pull()
    assert site.is_whole() and site.asked()[-1] == "bytes=2097152-"


def test_a_registry_without_ranges_is_asked_for_all_of_it(site: Site) -> None:
    site.simulator.ranges = False
    site.simulator.faults = [Fault(site.layer, times=1, cut=True, after=1 << 20)]
    site.pull()
    assert site.is_whole()


def test_a_blob_that_was_corrupted_on_the_disk_is_deleted_and_fetched_again(site: Site) -> None:
    part = Path(f"{site.target}.blobs") / f"{site.layer.partition(':')[2]}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(bytes(1 << 20))  # as a power cut leaves a file whose content never reached the disk
    with pytest.raises(ProcessFailed) as failed:
        site.pull()
    assert "has another digest, and was deleted" in failed.value.details and site.kept() == 0
    site.pull()
    assert site.is_whole()


def test_a_part_that_is_longer_than_the_blob_is_fetched_again(site: Site) -> None:
    part = Path(f"{site.target}.blobs") / f"{site.layer.partition(':')[2]}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(bytes(site.size + 10))
    with pytest.raises(ProcessFailed):
        site.pull()
    site.pull()
    assert site.is_whole()


def test_a_registry_that_sends_other_bytes_is_not_believed(site: Site) -> None:
    site.simulator.faults = [Fault(site.layer, times=1, alter=True)]
    with pytest.raises(ProcessFailed) as failed:
        site.pull()
    assert "another digest" in failed.value.details and not site.target.exists() and site.kept() == 0
    digest = site.image.partition("@")[2]
    site.simulator.faults = [Fault(f"manifests/{digest}", times=1, alter=True)]
    with pytest.raises(ProcessFailed) as failed:
        site.pull()
    assert "the manifest that it sent has another digest" in failed.value.details


def test_a_registry_that_wants_credentials_is_left_to_imgpkg(site: Site) -> None:
    site.simulator.faults = [Fault("manifests", times=1, status=401)]
    assert site.pull() == "pulled by imgpkg"
    assert site.is_whole() and site.imgpkg_log.read_text() == "https\n"


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (Fault("manifests", times=9, status=500), "it answered 500 Internal Server Error"),
        (Fault("manifests", times=9, status=404), "it does not have this image"),
    ],
)
def test_the_registrys_error_is_reported(site: Site, fault: Fault, words: str) -> None:
    site.simulator.faults = [fault]
    with pytest.raises(ProcessFailed) as failed:
        site.pull()
    assert f"ckp/bundle can't be pulled from {site.image.partition('/')[0]}" in failed.value.details and words in failed.value.details


def test_a_registry_whose_ca_is_not_ours_is_not_asked_further(site: Site, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    with served(RegistrySimulator(), other) as (_, foreign), pytest.raises(ProcessFailed) as failed:
        pull_bundle(str(site.imgpkg), site.image, str(site.target), foreign)
    assert "CERTIFICATE_VERIFY_FAILED" in failed.value.details and site.simulator.log == []


def test_two_pulls_of_one_bundle_do_not_meet(site: Site, tmp_path: Path) -> None:
    folder = Path(f"{site.target}.blobs")
    folder.mkdir(parents=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(AgentError, match="is being pulled by another process"):
            pulling.pull(str(site.imgpkg), site.image, "", str(folder), str(site.target))


def test_a_full_disk_is_reported_as_one(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.simulator.faults = [Fault("manifests", times=9, status=404)]
    monkeypatch.setattr(facts, "disk", lambda _path: (1 << 30, 3 << 20))
    with pytest.raises(AgentError) as failed:
        site.pull()
    assert failed.value.reason == "DiskFull" and "the next attempt resumes the pull" in failed.value.resolution


@pytest.mark.parametrize("words", ["No space left on device", "write /x: no space left on device", "Disk quota exceeded"])
def test_a_disk_that_was_full_for_a_moment_is_not_taken_for_a_registry_that_is_away(site: Site, words: str) -> None:
    site.imgpkg.write_text(f"#!/bin/sh\necho '{words}' >&2\nexit 1\n")
    with pytest.raises(AgentError) as failed:
        site.pull()
    assert failed.value.reason == "DiskFull" and failed.value.brief.startswith("the disk was full during the pull: ")
    assert "the next attempt resumes the pull" in failed.value.resolution


def test_a_blob_for_which_there_is_no_room_is_an_error_without_a_traceback(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(pulling.Puller, "_append", full)
    (tmp_path / "ca.pem").write_text(site.ca)
    with pytest.raises(AgentError, match="blobs can't be written: No space left on device") as failed:
        pulling.pull(str(site.imgpkg), site.image, str(tmp_path / "ca.pem"), str(tmp_path / "blobs"), str(site.target))
    assert failed.value.reason == "DiskFull"


@pytest.mark.parametrize("image", ["r.example/ckp/b:tag", "r.example@sha256:" + "0" * 64, "/b@sha256:" + "0" * 64, "r.example/../b c@sha256:" + "0" * 64])
def test_only_an_image_by_digest_is_pulled(image: str) -> None:
    with pytest.raises(InvalidInput):
        pulling.Reference.parse(image)


@pytest.mark.parametrize("image", ["r.example:5000/ckp/b:v1@sha256:", "[::1]:5000/b@sha256:", "10.0.0.1/a/b/c@sha256:"])
def test_references_as_registries_have_them(image: str) -> None:
    found = pulling.Reference.parse(image + "0" * 64)
    assert found.url("blobs", "sha256:1").startswith(f"https://{image.partition('/')[0]}/v2/") and ":v1" not in found.repository


@pytest.mark.parametrize(
    "manifest",
    [
        b"garbage",
        b"{}",
        b'{"config": {"digest": "sha256:1", "size": 1}, "layers": []}',
        b'{"config": {"digest": "sha256:' + b"0" * 64 + b'", "size": -1}, "layers": []}',
        b'{"config": {"digest": "../../etc/passwd", "size": 1}, "layers": []}',
        b'{"manifests": []}',
    ],
)
def test_a_manifest_that_is_not_an_images_is_left_to_imgpkg(manifest: bytes) -> None:
    with pytest.raises(pulling.NeedsImgpkg):
        list(pulling._blobs(manifest))


def test_the_tool_finds_itself() -> None:
    said = run([*own_command(), "--version"], timeout=30)
    assert said.code == 0 and said.stdout.strip()
