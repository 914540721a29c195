"""From the main job's registry to a host, by the tools that people have: crictl, and `ckp dist verify|sbom|provenance`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ckp.distribution.registries.server import RegistryServer
from ckp.site.lab import REGISTRY_ADDRESS
from tests.e2e.conftest import STAMP, World, ckp

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("well")]


def reference(world: World, repository: str, tag: str) -> str:
    return f"{world.pulls}/ckp/{repository}:{tag}"


def test_images_and_bundles_in_the_registry_verify(world: World) -> None:
    ca = ["--registry-ca", str(world.site.registry.ca)]
    bundle = reference(world, "byoh-bundle-debian_12_x86-64_k8s", STAMP)
    done = ckp("dist", "verify", reference(world, "kube-apiserver", STAMP), reference(world, "etcd", "3.5.15-0"), bundle, *ca, timeout=300)
    assert done.code == 0


def containers(pods: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Pod and image of every container."""
    for pod in pods["items"]:
        if pod["metadata"]["namespace"] == "e2e":
            continue  # the tests' own workload
        for container in (*pod["spec"].get("initContainers", ()), *pod["spec"]["containers"]):
            yield f"{pod['metadata']['namespace']}/{pod['metadata']['name']}", container["image"]


def test_everything_that_runs_is_named_by_digest(world: World) -> None:
    """The bundle's signature covers the digests, so what runs is what was signed, whatever a registry says of a tag."""
    management = json.loads(world.management("get", "pods", "-A", "-o", "json").stdout)
    found = [*containers(management), *containers(world.get("pods", "-A"))]
    assert len(found) > 20
    assert [pair for pair in found if "@sha256:" not in pair[1]] == []


def test_a_tag_that_was_moved_gives_a_host_nothing_else(world: World) -> None:
    """The attack that a signature of the bundle alone would not see: whoever may write to the registry lets a tag mean another image."""
    registry, worker = world.site.registry.client(), world.hosts.workers[0]
    good, other = registry.get_manifest("ckp/etcd", "3.5.15-0"), registry.get_manifest("ckp/pause", "3.10")
    for layer in other.blobs:
        registry.push_blob("ckp/etcd", layer, registry.get_blob("ckp/pause", layer))
    registry.put_manifest("ckp/etcd", other, "3.5.15-0")
    name = f"{REGISTRY_ADDRESS}/ckp/etcd"
    crictl = ["crictl", "--image-endpoint=unix:///run/containerd/containerd.sock"]
    try:
        worker.run([*crictl, "pull", f"{name}:3.5.15-0"], timeout=120)
        moved = json.loads(worker.run([*crictl, "inspecti", f"{name}:3.5.15-0"], timeout=60).stdout)["status"]
        assert f"{name}@{other.digest}" in moved["repoDigests"], "by its tag a host would get whatever the registry says"
        worker.run([*crictl, "pull", f"{name}:3.5.15-0@{good.digest}"], timeout=120, what="pulling as the agent does")
        pinned = json.loads(worker.run([*crictl, "inspecti", f"{name}@{good.digest}"], timeout=60).stdout)["status"]
        assert f"{name}@{good.digest}" in pinned["repoDigests"]
    finally:
        registry.put_manifest("ckp/etcd", good, "3.5.15-0")
        worker.run([*crictl, "rmi", f"{name}:3.5.15-0", f"{name}@{good.digest}"], timeout=60, check=False)


def test_an_image_by_a_key_that_is_not_ours_does_not_verify(world: World, tmp_path: Path) -> None:
    from ckp.clients.signing.openpgp import SigningKey

    stranger = SigningKey.ensure(tmp_path / "keys", user_id="Coredge.io CKP packages <support@coredge.io>")
    arguments = ["--registry-ca", str(world.site.registry.ca), "--image-key", str(stranger.image_public)]
    done = ckp("dist", "verify", reference(world, "kube-apiserver", STAMP), *arguments, check=False)
    assert done.code == 3
    assert "sign" in done.stderr


def test_sbom_and_provenance_are_read_from_the_registry(world: World) -> None:
    ca = ["--registry-ca", str(world.site.registry.ca)]
    image = reference(world, "kube-apiserver", STAMP)
    sbom = json.loads(ckp("dist", "sbom", image, "--format", "json", *ca).stdout)
    assert sbom["bomFormat"] == "CycloneDX"
    assert any(item.get("purl", "").startswith("pkg:golang/k8s.io/apiserver") for item in json_items(sbom))
    statement = json.loads(ckp("dist", "provenance", image, "--format", "json", *ca).stdout)
    assert statement["predicateType"] == "https://slsa.dev/provenance/v1"
    names = json.dumps(statement["predicate"]["buildDefinition"]["resolvedDependencies"])
    assert "k8s.io/kubernetes" in names
    assert "h1:" in names or "dirHash" in names


def test_a_mirror_holds_the_same_and_is_pruned_on_request(world: World, tmp_path: Path) -> None:
    server = RegistryServer(world.dist.built["distribution"].binary("registry"), "127.0.0.1", "localhost", 5443, tmp_path / "state", tmp_path / "content")
    client = server.start()
    address, source = f"127.0.0.1:{server.port}", world.site.registry
    try:
        cas = ["--source-ca", str(source.ca), "--target-ca", str(server.ca)]
        ckp("dist", "mirror", world.pulls, address, "--release", "v1.35.1", *cas, timeout=300)
        for repository, tag in world.dist.tags.items():
            assert client.digest(f"ckp/{repository}", tag) == source.client().digest(f"ckp/{repository}", tag), repository
        bundle = f"{address}/ckp/byoh-bundle-debian_12_x86-64_k8s:{STAMP}"
        ckp("dist", "verify", bundle, f"{address}/ckp/etcd:3.5.15-0", "--registry-ca", str(server.ca), timeout=300)
        shown = ckp("dist", "prune", address, "--release", "v1.35.1", "--ca", str(server.ca)).stdout
        assert "Add --yes to remove them" in shown
        assert client.digest("ckp/byoh-bundle-debian_12_x86-64_k8s", STAMP)
        ckp("dist", "prune", address, "--release", "v1.35.1", "--ca", str(server.ca), "--yes")
        assert client.digest("ckp/byoh-bundle-debian_12_x86-64_k8s", STAMP) is None
        assert client.tags("ckp/ckp-platform"), "what belongs to no release stays"
    finally:
        server.stop()


def json_items(node: object) -> Iterator[dict[str, str]]:
    """All objects of a document, at any depth."""
    if isinstance(node, dict):
        yield node
        for value in node.values():
            yield from json_items(value)
    elif isinstance(node, list):
        for value in node:
            yield from json_items(value)
