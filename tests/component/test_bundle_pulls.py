"""Bundles are pulled by the real imgpkg from the real registry, over a network that breaks, by the agent as it ships: from one file."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckp.agent.fetch import bundles
from ckp.agent.fetch.bundles import pull_bundle
from ckp.distribution.packages.agent import build_zipapp
from ckp.hostkit import processes as host_processes
from ckp.hostkit.errors import ProcessFailed
from ckp.kits.processes import run
from tests.component.test_registry import Served, serving
from tests.support.control_plane import built
from tests.support.served_registry import CuttingRelay

pytestmark = pytest.mark.component
MB = 1 << 20


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(built("distribution").binary("registry"), tmp_path_factory.mktemp("registry")) as made:
        yield made


@pytest.fixture(scope="module")
def imgpkg() -> Path:
    return built("imgpkg").binary("imgpkg")


@pytest.fixture(scope="module")
def bundle(registry: Served, imgpkg: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A bundle of 24 MB that does not compress, pushed; its folder and digest."""
    folder = tmp_path_factory.mktemp("content")
    for number, name in enumerate(("kubelet.deb", "kubeadm.deb", "bundle.json")):
        (folder / name).write_bytes(random.Random(number).randbytes(8 * MB))
    reference = f"{registry.client.address}/ckp/bundle"
    run([imgpkg, "push", "--image", f"{reference}:v1", "--file", folder, "--registry-ca-cert-path", registry.ca, "--tty=false"], timeout=60)
    digest = registry.client.digest("ckp/bundle", "v1")
    assert digest is not None
    return folder, digest


@pytest.fixture
def relay(registry: Served) -> Iterator[CuttingRelay]:
    made = CuttingRelay(int(registry.client.address.rpartition(":")[2]))
    yield made
    made.close()


def sums(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_over_a_network_that_breaks_every_five_megabytes_nothing_is_fetched_twice(
    registry: Served, imgpkg: Path, bundle: tuple[Path, str], relay: CuttingRelay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = build_zipapp()
    monkeypatch.setattr(bundles, "own_command", lambda: ["/usr/bin/python3", "-I", str(tool)])
    relay.limit = 5 * MB
    folder, digest = bundle
    target = tmp_path / "bundles" / digest.partition(":")[2]
    assert pull_bundle(str(imgpkg), f"127.0.0.1:{relay.port}/ckp/bundle@{digest}", str(target), registry.ca.read_text()) == "25.2 MB"
    assert sums(target) == sums(folder)
    assert relay.passed < 27 * MB, "24 MB, and what TLS and HTTP add: with each break at most a block was lost"


def test_imgpkg_alone_restarts_from_zero_and_never_ends(registry: Served, imgpkg: Path, bundle: tuple[Path, str], relay: CuttingRelay, tmp_path: Path) -> None:
    """The rule that the agent's own fetching rests on: if imgpkg learns to resume, it is not needed any more."""
    relay.limit = 5 * MB
    reference = f"127.0.0.1:{relay.port}/ckp/bundle@{bundle[1]}"
    argv = [str(imgpkg), "pull", "--tty=false", "--image", reference, "--output", str(tmp_path / "out"), "--registry-ca-cert-path", str(registry.ca)]
    with pytest.raises(ProcessFailed):
        host_processes.run(argv, timeout=120)


def test_a_registry_that_went_away_is_told_and_the_next_attempt_goes_on(
    registry: Served, imgpkg: Path, bundle: tuple[Path, str], relay: CuttingRelay, tmp_path: Path
) -> None:
    folder, digest = bundle
    target = tmp_path / "bundles" / digest.partition(":")[2]
    image, ca = f"127.0.0.1:{relay.port}/ckp/bundle@{digest}", registry.ca.read_text()
    relay.limit = 500  # too little for a TLS handshake
    with pytest.raises(ProcessFailed) as failed:
        pull_bundle(str(imgpkg), image, str(target), ca)
    assert "can't be pulled from 127.0.0.1" in failed.value.details and not target.exists()
    relay.limit = None
    pull_bundle(str(imgpkg), image, str(target), ca)
    assert sums(target) == sums(folder)
