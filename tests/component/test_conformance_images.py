"""The conformance suite's images, really made, in the registry that CKP builds: signed, pulled as they were pushed, and fit for what the tests run in them."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from ckp.catalog.load import SUITE_COMPONENT, Catalog
from ckp.catalog.models import Suite
from ckp.clients.oci.registry import BlobStore, Registry
from ckp.clients.oci.store import Manifest
from ckp.clients.signing.cosign import verify_image
from ckp.clients.signing.openpgp import SigningKey
from ckp.conformance import busybox
from ckp.conformance.images import PREFIX, make_images, push_images
from ckp.conformance.programs import OF_THE_RELEASE
from ckp.distribution.images.make import Image
from ckp.distribution.registries.server import RegistryServer
from ckp.kits.errors import VerificationFailed
from ckp.kits.processes import run
from tests.support.built_release import RELEASE
from tests.support.control_plane import built, built_test_tool, free_port

CATALOG = Catalog()
NAME = "registry.test:5000"


@dataclass
class Made:
    """The images, and a registry that they were pushed to."""

    suite: Suite
    images: list[Image]
    registry: Registry
    key: SigningKey
    digests: dict[str, str]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    folder = tmp_path_factory.mktemp("conformance")
    components = {role: built(role) for role in OF_THE_RELEASE} | {SUITE_COMPONENT: built_test_tool(SUITE_COMPONENT)}
    suite = CATALOG.conformance(RELEASE)
    images = make_images(suite, CATALOG.release(RELEASE), components, print)
    program = built("distribution").binary("registry")
    server = RegistryServer(program, "127.0.0.1", "registry.test", free_port(), state=folder / "state", content=folder / "content")
    registry = server.start()
    try:
        key = SigningKey.ensure(folder / "keys", user_id="Conformance <test@example.org>")
        yield Made(suite, images, registry, key, push_images(images, registry, print, key, NAME))
    finally:
        server.stop()


def unpacked(made: Made, reference: str, folder: Path) -> Path:
    """The file system of an image as a container would have it, from what the registry holds."""
    name, _, tag = reference.partition(":")
    blobs = BlobStore(folder / "blobs")
    manifest = made.registry.pull(f"{PREFIX}/{name}", tag, blobs)
    root = folder / "root"
    root.mkdir()
    for layer in Manifest(manifest.media_type, blobs.path(manifest.digest).read_bytes()).layers:
        run(["tar", "--zstd", "--same-owner", "--same-permissions", "-C", root, "-xf", blobs.path(layer.digest)], timeout=120)
    return root


def test_what_is_pulled_is_what_was_made_and_is_signed_for_its_tag(made: Made, tmp_path: Path) -> None:
    assert set(made.digests) == {f"{name}:{tag}" for name, tags in made.suite.images.items() for tag in tags}
    public = made.key.image_public.read_bytes()
    blobs = BlobStore(tmp_path)
    for image in made.images:
        repository, digest = f"{PREFIX}/{image.repository}", made.digests[f"{image.repository}:{image.tag}"]
        assert made.registry.pull(repository, image.tag, blobs).digest == digest == image.manifest().digest
        verify_image(made.registry, repository, digest, public, tag=image.tag)
    with pytest.raises(VerificationFailed):
        verify_image(made.registry, f"{PREFIX}/nginx", made.digests["nginx:1.14-4"], public, tag="1.15-4")


def test_pushing_again_sends_nothing(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Registry, "push_blob", lambda *_: pytest.fail("a blob was sent"))
    monkeypatch.setattr(Registry, "put_manifest", lambda *_: pytest.fail("a manifest was sent"))
    assert push_images(made.images, made.registry, print, made.key, NAME) == made.digests


def test_variables_with_a_hyphen_reach_what_busybox_shell_starts() -> None:
    """Debian's busybox drops them, and four conformance tests read such from ConfigMaps and Secrets."""
    program = busybox.build(CATALOG.debian_source("busybox")) / "busybox"
    said = subprocess.run([program, "sh", "-c", "env"], env={"data-1": "value-1", "p-data.2": "value-2"}, capture_output=True, text=True, check=True).stdout
    assert {"data-1=value-1", "p-data.2=value-2"} <= set(said.splitlines())


@pytest.mark.root("enters an image's file system")
def test_busybox_has_the_commands_that_tests_use_without_any_library(made: Made, tmp_path: Path) -> None:
    root = unpacked(made, "busybox:1.37.0-1", tmp_path)
    tools = "sh cat ls stat wget nslookup mount sleep id hostname head md5sum nc"
    script = f"set -e; for tool in {tools}; do test -x /bin/$tool; done; id -un; stat -c %a /tmp; /usr/bin/env true"
    assert run(["chroot", root, "/bin/sh", "-c", script], timeout=60).stdout.split() == ["root", "1777"]


@pytest.mark.root("enters an image's file system")
def test_agnhost_has_its_user_and_the_tools_that_tests_run_in_it(made: Made, tmp_path: Path) -> None:
    root = unpacked(made, f"agnhost:{made.suite.images['agnhost'][-1]}", tmp_path)
    script = "set -e; for tool in bash curl dig nc getent hostname ping ip wget netstat ps; do command -v $tool; done >/dev/null; id -G user-defined-in-image"
    assert run(["chroot", root, "/bin/sh", "-c", script], timeout=60).stdout.split() == ["1000", "50000"]
    assert "netexec" in run(["chroot", root, "/agnhost-2", "help"], timeout=60).stdout
    assert (root / "uploads").is_dir() and (root / "coredns").exists() and (root / "localhost.key").exists()


@pytest.mark.root("enters an image's file system, in a network namespace")
def test_the_web_server_serves_its_page_in_the_foreground(made: Made, tmp_path: Path) -> None:
    root = unpacked(made, "nginx:1.15-4", tmp_path)
    inside = "nginx -g 'daemon off;' & for _ in {1..50}; do curl -sf http://127.0.0.1/ && break; sleep 0.1; done; kill %1; wait"
    script = f'ip link set lo up; mount -t tmpfs none "{root}/dev"; ln -s /proc/self/fd/1 "{root}/dev/stdout"; ln -s /proc/self/fd/2 "{root}/dev/stderr"; '
    script += f'mknod -m 666 "{root}/dev/null" c 1 3; mount -t proc none "{root}/proc"; exec chroot "{root}" bash -c "{inside}"'
    ended = run(["unshare", "--net", "--mount", "--pid", "--fork", "bash", "-c", script], timeout=120)
    assert "Welcome to nginx!" in ended.stdout
    assert '"GET / HTTP/1.1" 200' in ended.stdout, "its log is the container's"


@pytest.mark.root("enters an image's file system")
def test_the_program_that_gains_privileges_does_unless_it_may_not(made: Made, tmp_path: Path) -> None:
    root = unpacked(made, "nonewprivs:1.3", tmp_path)
    argv: list[str | Path] = ["chroot", "--userspec=1234:1234", root, "/usr/local/bin/nnp"]
    assert run(argv, timeout=60).stdout == "Effective uid: 0\n"
    assert run(["setpriv", "--no-new-privs", *argv], timeout=60).stdout == "Effective uid: 1234\n"
