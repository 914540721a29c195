"""Several releases: Compass offers those of the table as it is now, and a cluster of any of them."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ckp.api import kinds
from ckp.api.host_protocol import BundleRef
from ckp.api.platform import InstalledRelease, Releases
from ckp.compass.releases import ReleaseFile
from ckp.compass.store.places import Place
from ckp.kits.errors import NotFound
from tests.worlds.compass import NAMESPACE, World, cluster_body, make_world


@pytest.fixture
async def world(tmp_path: Path, place: Place) -> AsyncIterator[World]:
    async with make_world(tmp_path, place=place) as made:
        yield made


def entry(name: str, cilium: str) -> InstalledRelease:
    bundles = {"debian-12": BundleRef(image=f"r.test:5000/ckp/bundle@sha256:{name}", tag=f"{name}-ckp", release=name)}
    return InstalledRelease(name=name, stamp=f"{name}-ckp", registry="r.test:5000/ckp", images={}, bundles=bundles, cni={"cilium": cilium})


def replace_file(path: Path, table: Releases, number: int) -> None:
    """As a kubelet does it: another file takes its place."""
    scratch = path.with_name("scratch")
    scratch.write_text(table.model_dump_json())
    os.utime(scratch, ns=(number, number))
    scratch.rename(path)


def test_releases_are_those_of_the_file_as_it_is_now(tmp_path: Path) -> None:
    path = tmp_path / "releases.json"
    table = Releases(releases={}).with_releases([entry("v1.35.1", "v1.19.5"), entry("v1.9.12", "v1.2.3")])
    replace_file(path, table, 1)
    offered = ReleaseFile(path)
    assert offered.names() == ["v1.9.12", "v1.35.1"] and offered.get("v1.9.12")["cni"] == {"cilium": "v1.2.3"}
    replace_file(path, table.with_releases([entry("v1.36.0", "v1.20.0")]).without(["v1.9.12"]), 2)
    assert offered.names() == ["v1.35.1", "v1.36.0"] and offered.get("v1.36.0")["os"] == ["debian-12"]
    with pytest.raises(NotFound) as gone:
        offered.get("v1.9.12")
    assert gone.value.resolution == "take one of: v1.35.1, v1.36.0"


async def test_clusters_of_several_releases_live_side_by_side(world: World) -> None:
    await world.group_with_hosts(count=4)
    for name, version, network in (("old", "v1.33.7", 42), ("new", "v1.35.1", 44)):
        networks = {"podCIDR": f"10.{network}.0.0/16", "serviceCIDR": f"10.{network + 1}.0.0/16"}
        answer = await world.call("POST", "/clusters", json=cluster_body(name=name, version=version, **networks), expect=201)
        assert answer["version"] == version
        plane = await world.kube.get(kinds.MANAGED_CONTROL_PLANE, name, NAMESPACE)
        deployment = await world.kube.get(kinds.MACHINE_DEPLOYMENT, f"{name}-workers", NAMESPACE)
        assert plane is not None and plane["spec"]["version"] == version
        assert deployment is not None and deployment["spec"]["template"]["spec"]["version"] == version
