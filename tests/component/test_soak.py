"""What an API server of the next minor writes while it behaves as the one before is read whole by that one afterwards, on a real etcd (docs/adr/0040).

Needs the builds of two releases: `ckp dist build VERSION --profile lab`. Without them it is skipped.
"""

from __future__ import annotations

import subprocess
from collections import defaultdict
from pathlib import Path

import pytest

from ckp.api.kinds import MANAGED_CONTROL_PLANE
from ckp.clients.kube import Kube, KubeError
from ckp.distribution.builder.component import Built
from ckp.rules.upgrades import Version
from tests.support.api_servers import api_servers
from tests.support.control_plane import built_of
from tests.support.every_kind import Server, storage_version, stored

pytestmark = pytest.mark.component

PAIRS = [("v1.34.3", "v1.35.1"), ("v1.33.7", "v1.34.3")]
PROGRAMS = ("kube-apiserver", "kube-controller-manager", "kube-scheduler")


def build_of(version: str) -> Built:
    found = built_of(version, "kubernetes")
    if found is None:
        pytest.skip(f"Kubernetes {version} is not built here")
    return found


def minor(version: str) -> str:
    return Version.parse(version).line.removeprefix("v")


def versions_in(values: dict[str, bytes]) -> dict[str, set[str]]:
    """In which versions each kind lies in etcd, by the first part of its keys; services' ranges are no objects."""
    found: dict[str, set[str]] = defaultdict(set)
    for key, value in values.items():
        found[key.split("/")[2]].add(storage_version(value))
    return dict(found)


@pytest.mark.parametrize(("old", "new"), PAIRS)
def test_all_three_programs_of_a_release_behave_as_the_minor_before_where_they_are_told(old: str, new: str) -> None:
    for program in PROGRAMS:
        said = subprocess.run([build_of(new).binary(program), "--help"], capture_output=True, text=True, check=True, timeout=60).stdout
        first, last = said.partition("--emulated-version")[2].partition("Options are: kube=")[2].partition("(")[0].split("..")
        assert Version.parse(f"v{first}.0") <= Version.parse(f"v{minor(old)}.0") and last == minor(new), program


@pytest.mark.parametrize(("old", "new"), PAIRS)
def test_what_is_written_while_a_step_soaks_is_read_whole_after_it_is_rolled_back(old: str, new: str, tmp_path: Path) -> None:
    before, after = build_of(old), build_of(new)
    with api_servers(tmp_path) as servers:
        with servers.running("before", of=before) as (_, plane):
            server = Server(plane)
            server.begin()
            assert server.write_all("before") == [], "a kind that this test does not write"
            resources, lies = set(server.resources()), versions_in(stored(servers.etcd_url))
        with servers.running("soak", f"--emulated-version={minor(old)}", of=after) as (_, plane):
            server = Server(plane)
            said = server.versions()
            assert (said["gitVersion"], f"1.{said['emulationMinor']}") == (f"{new}-ckp", minor(old))
            assert set(server.resources()) == resources, "no kind, and no version of one, that the release before does not have"
            assert server.write_all("during") == []
            server.touch_all("during")
            written, raw = server.checksums(), stored(servers.etcd_url)
            assert versions_in(raw) == lies, "each kind is stored as the release before stores it"
        with servers.running("after", of=before) as (_, plane):
            server = Server(plane)
            read, lying = server.checksums(), stored(servers.etcd_url)
            assert len(read) > 2 * len(resources) and read == written
            assert lying == raw, "nothing had to be rewritten"
            server.touch_all("after")
            assert server.write_all("after") == []


@pytest.mark.parametrize("emulate", [True, False], ids=["emulated", "not emulated"])
def test_a_field_that_the_release_before_does_not_have_is_not_taken_in_a_soak_and_is_lost_on_the_way_back_without_one(emulate: bool, tmp_path: Path) -> None:
    """serviceAccountTokenInSecrets of a CSIDriver is of v1.35 (KEP-5538) and on by default: what the test above would see if emulation did nothing."""
    before, after = build_of("v1.34.3"), build_of("v1.35.1")
    asked = {"attachRequired": False, "tokenRequests": [{"audience": "a"}], "serviceAccountTokenInSecrets": True}
    path = "/apis/storage.k8s.io/v1/csidrivers/new.soak.example"
    with api_servers(tmp_path) as servers:
        with servers.running("soak", *(["--emulated-version=1.34"] if emulate else []), of=after) as (_, plane):
            server = Server(plane)
            [drivers] = [resource for resource in server.resources() if resource.kind == "CSIDriver"]
            taken = server.create(drivers, "new.soak.example", {"spec": asked})
            assert ("serviceAccountTokenInSecrets" in taken["spec"]) is not emulate
        with servers.running("after", of=before) as (_, plane):
            assert (Server(plane).get(path) == taken) is emulate


async def test_the_api_server_takes_a_version_back_before_the_commit_and_refuses_it_after(kube: Kube, namespace: str) -> None:
    meta = {"name": "one", "namespace": namespace}
    spec = {"version": "v1.34.3", "upgrade": {"soak": True, "commitAfter": "24h"}}
    await kube.create({"apiVersion": MANAGED_CONTROL_PLANE.api_version, "kind": "ManagedControlPlane", "metadata": meta, "spec": spec})

    async def status(**upgrade: str | None) -> None:
        patch = {"status": {"version": "v1.34.3", "upgrade": {"from": "v1.34.3", "version": "v1.35.1", **upgrade}}}
        await kube.merge(MANAGED_CONTROL_PLANE, "one", namespace, patch, subresource="status")

    async def ask(version: str) -> None:
        await kube.merge(MANAGED_CONTROL_PLANE, "one", namespace, {"spec": {"version": version}})

    await status(finishedAt="2026-05-01T12:00:00Z")
    await ask("v1.35.1")
    await status(emulated="v1.34", finishedAt=None)
    await ask("v1.34.3")
    await ask("v1.35.1")
    await status(emulated=None, committedAt="2026-05-01T12:00:00Z")
    with pytest.raises(KubeError, match="only before it is committed"):
        await ask("v1.34.3")
    await ask("v1.35.2")
    with pytest.raises(KubeError, match="commitAfter"):
        await kube.merge(MANAGED_CONTROL_PLANE, "one", namespace, {"spec": {"upgrade": {"commitAfter": "soon"}}})
