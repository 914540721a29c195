"""What operators do with hosts of a running cluster: another agent, good and bad; a void certificate."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ckp.clients.compass import Session, read_config
from ckp.clients.signing.cosign import TAG, sign_image
from ckp.distribution.bundles import AGENT_IMAGE
from ckp.distribution.images.layers import Entry, file_layer, store
from ckp.distribution.images.make import Image
from ckp.distribution.packages.agent import build_zipapp, tag_of_version
from ckp.distribution.packages.pack import Package, Recipe, make_package
from ckp.kits.errors import CkpError
from ckp.lab.lab import LabHost
from ckp.site.enrol import Enrolment
from ckp.site.install import AGENT_CONFIG
from ckp.site.lab import REGISTRY_ADDRESS
from tests.e2e.conftest import World, ckp

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("well")]

GOOD, BROKEN = "0.1.1+1-ckp", "0.1.2+1-ckp"


def agent_package(world: World, version: str, tool: Path) -> Package:
    """The agent as a package of another version, signed as ours is."""
    dist = world.dist
    extra = {"ckp-agent": tool, "trusted.gpg": dist.key.keyring}
    return make_package(Recipe.read("ckp-agent"), version, dist.built, dist.built["nfpm"].binary("nfpm"), dist.key, extra=extra, format="deb")


def push(world: World, package: Package) -> str:
    """Into the registry, signed, as `ckp dist publish` does; the reference by digest."""
    image = Image(AGENT_IMAGE, tag_of_version(package.version), (file_layer([Entry("/ckp-agent.deb", package.path)]),))
    manifest, registry, repository = image.manifest(), world.site.registry.client(), f"ckp/{AGENT_IMAGE}"
    registry.push(store(), manifest, repository, image.tag)
    key = world.dist.key.image_key.read_bytes()
    sign_image(registry, repository, manifest.digest, key, {TAG: image.tag}, identity=f"{REGISTRY_ADDRESS}/{repository}")
    return f"{REGISTRY_ADDRESS}/ckp/{AGENT_IMAGE}@{manifest.digest}"


@pytest.fixture(scope="module")
def versions(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Two more versions of the agent in the registry, and known to the management layer: a good one, and one that ends at once."""
    broken = tmp_path_factory.mktemp("agent") / "ckp-agent"
    with broken.open("wb") as stream:
        stream.write(b"#!/usr/bin/python3 -I\n")
        with zipfile.ZipFile(stream, "w") as archive:
            archive.writestr("__main__.py", "raise SystemExit('this agent is broken')\n")
    broken.chmod(0o755)
    images = {version: push(world, agent_package(world, version, tool)) for version, tool in ((GOOD, build_zipapp()), (BROKEN, broken))}
    config = json.loads(world.management("get", "configmap", "ckp-releases", "-n", "ckp-system", "-o", "json").stdout)
    releases = json.loads(config["data"]["releases.json"])
    releases["agents"] |= images
    patch = json.dumps({"data": {"releases.json": json.dumps(releases)}})
    world.management("patch", "configmap", "ckp-releases", "-n", "ckp-system", "--type=merge", "-p", patch)
    for name in ("ckp-controllers", "ckp-compass"):
        world.management("rollout", "restart", f"deployment/{name}", "-n", "ckp-system")
    for name in ("ckp-controllers", "ckp-compass"):
        world.site.kubectl("rollout", "status", f"deployment/{name}", "-n", "ckp-system", "--timeout=180s", timeout=200)
    world.wait(lambda: BROKEN in answered(lambda: Session(read_config()).get("/api/v1/agents")["versions"]), "Compass knows the new agents")
    yield world
    registry = world.site.registry.client()
    for version in images:  # the registry's content outlives the lab, and a broken agent is for nobody else
        registry.delete(f"ckp/{AGENT_IMAGE}", tag_of_version(version))


def answered(ask: Any) -> Any:
    """What Compass says; nothing while it comes up."""
    try:
        return ask()
    except CkpError:
        return []


def host_of(world: World) -> tuple[str, LabHost]:
    """A worker as Compass calls it, and the machine."""
    machine = world.hosts.workers[0]
    found = next(item for item in Session(read_config()).get("/hosts")["items"] if item["address"] == machine.address)
    return str(found["name"]), machine


def installed(machine: LabHost) -> str:
    return machine.run(["dpkg-query", "-W", "-f", "${Version}", "ckp-agent"], timeout=30).stdout


def nodes_ready(world: World) -> int:
    nodes = json.loads(world.kubectl("get", "nodes", "-o", "json", check=False).stdout or '{"items": []}')["items"]
    return sum(any(item["type"] == "Ready" and item["status"] == "True" for item in node["status"]["conditions"]) for node in nodes)


def test_an_agent_is_upgraded_in_place_and_its_node_goes_on(versions: World) -> None:
    name, machine = host_of(versions)
    before = machine.run(["systemctl", "show", "-p", "ActiveEnterTimestampMonotonic", "kubelet"], timeout=30).stdout
    done = ckp("host", "upgrade-agent", name, "--version", GOOD, "--timeout", "300", timeout=330)
    assert f"host/{name} runs ckp-agent {GOOD}" in done.stdout
    assert installed(machine) == GOOD
    assert machine.run(["systemctl", "show", "-p", "ActiveEnterTimestampMonotonic", "kubelet"], timeout=30).stdout == before, "the kubelet was not touched"
    versions.wait(
        lambda: machine.run(["systemctl", "is-active", "ckp-agent-upgrade"], timeout=30, check=False).stdout.strip() == "inactive", "the guard has ended"
    )
    assert machine.run(["ls", "/var/lib/ckp-agent/agent"], timeout=30).stdout.split().count("upgrade.json") == 0
    assert nodes_ready(versions) == 2
    again = ckp("host", "upgrade-agent", name, "--version", GOOD, timeout=60)
    assert "1 of 1 hosts run" in again.stderr, "and asking again changes nothing"


def test_an_agent_that_does_not_report_is_taken_back_by_the_host(versions: World) -> None:
    name, machine = host_of(versions)
    was = installed(machine)
    done = ckp("host", "upgrade-agent", name, "--version", BROKEN, "--confirm", "10", "--timeout", "300", timeout=330, check=False)
    assert done.code != 0
    assert "stays with" in done.stderr and "did not report to the hub within 10 s" in done.stderr, done.stderr
    assert installed(machine) == was
    row = Session(read_config()).get(f"/hosts/{name}")
    assert row["connected"] and row["agentVersion"] == was and row["agentWanted"] == ""
    assert nodes_ready(versions) == 2


def test_every_host_names_a_replica_of_the_hub_that_says_that_it_lives(world: World) -> None:
    def renewed() -> dict[str, str]:
        items = json.loads(world.management("get", "leases", "-n", "ckp-hosts", "-o", "json").stdout)["items"]
        return {item["spec"]["holderIdentity"]: item["spec"]["renewTime"] for item in items}

    pods = json.loads(world.management("get", "pods", "-n", "ckp-system", "-l", "app=ckp-hub", "-o", "json").stdout)["items"]
    replicas = {pod["metadata"]["name"] for pod in pods if pod["status"]["phase"] == "Running"}
    before = renewed()
    assert replicas <= set(before), "each by the name of its pod"
    hosts = json.loads(world.management("get", "byohosts", "-A", "-o", "json").stdout)["items"]
    connected = [host for host in hosts if host["status"]["agent"]["connected"]]
    assert connected
    assert {host["status"]["agent"]["hub"] for host in connected} <= replicas
    world.wait(lambda: all(renewed()[name] > before[name] for name in replicas), "all of them renew", timeout=60)


def test_labels_and_taints_of_a_host_come_to_its_node_and_go_again(world: World) -> None:
    name, _ = host_of(world)

    def marks() -> tuple[str | None, list[str]]:
        node = world.get("node", name)
        return node["metadata"]["labels"].get("rack"), [item["key"] for item in node["spec"].get("taints") or []]

    before = marks()[1]
    ckp("host", "label", name, "rack=r7")
    ckp("host", "taint", name, "dedicated=db:PreferNoSchedule")
    world.wait(lambda: marks() == ("r7", [*before, "dedicated"]), "the node says what the host says", timeout=60)
    ckp("host", "label", name, "rack-")
    ckp("host", "taint", name)
    world.wait(lambda: marks() == (None, before), "and no longer", timeout=60)
    machine = next(item for item in Session(read_config()).get("/clusters/demo")["machines"] if item["host"] == name)
    assert machine["ready"], machine


def test_a_host_is_drained_for_maintenance_and_takes_pods_again(world: World) -> None:
    name, _ = host_of(world)
    try:
        ckp("host", "drain", name, "--timeout", "240", timeout=260)
        node = world.get("node", name)
        assert node["spec"]["unschedulable"] is True
        pods = world.get("pods", "-A", "--field-selector", f"spec.nodeName={name}")["items"]
        left = [pod["metadata"]["name"] for pod in pods if not any(owner["kind"] == "DaemonSet" for owner in pod["metadata"].get("ownerReferences", []))]
        assert left == []
    finally:
        ckp("host", "uncordon", name)
    world.wait(lambda: not world.get("node", name)["spec"].get("unschedulable"), "the node takes pods again", timeout=90)


def test_a_revoked_host_is_cut_off_at_once_and_comes_back_by_a_decision(world: World) -> None:
    name, machine = host_of(world)
    session = Session(read_config())
    ckp("host", "revoke", name)
    world.wait(lambda: not session.get(f"/hosts/{name}")["connected"], "the host is cut off", timeout=30)
    assert ckp("host", "approve", "--all").code == 0, "nothing waits yet"
    machine.push(Enrolment(world.site, session).key().encode(), f"{AGENT_CONFIG}/psk", mode=0o600)
    machine.run(["systemctl", "stop", "ckp-agent"], timeout=60)
    for file in ("key.pem", "cert.pem", "identity.json"):
        machine.run(["rm", f"/var/lib/ckp-agent/{file}"], timeout=10)
    machine.run(["systemctl", "start", "ckp-agent"], timeout=60)

    def waiting() -> list[dict[str, Any]]:
        return [item for item in session.get("/host-requests", state="pending")["items"] if item["duplicateOf"] == name]

    world.wait(waiting, "its request waits, beside the host that it looks like", timeout=60)
    ckp("host", "approve", waiting()[0]["id"], "--replace")
    world.wait(lambda: session.get(f"/hosts/{name}")["connected"], "it is the same host again", timeout=60)
    assert session.get(f"/hosts/{name}")["cluster"] == "demo"
    assert nodes_ready(world) == 2, "and its node was never away"


@pytest.mark.long
def test_a_host_that_is_taken_away_by_force_is_replaced_and_may_come_back_anew(world: World) -> None:
    """Its machine fails for good, the health check deletes it, and another one waits for a host; the old one cleans itself before it is one again."""
    name, machine = host_of(world)
    session = Session(read_config())
    lost = next(item["name"] for item in session.get("/clusters/demo")["machines"] if item["host"] == name)
    ckp("host", "delete", name, "--force")
    world.wait(lambda: lost not in [item["name"] for item in session.get("/clusters/demo")["machines"]], "its machine is deleted", timeout=240)
    world.wait(lambda: nodes_ready(world) == 1 and len(world.get("nodes")["items"]) == 1, "and its node", timeout=120)
    world.wait(lambda: any("free" in item["message"] for item in session.get("/clusters/demo")["machines"]), "a new one waits for a host", timeout=120)
    machine.push(Enrolment(world.site, session).key().encode(), f"{AGENT_CONFIG}/psk", mode=0o600)
    machine.run(["systemctl", "stop", "ckp-agent"], timeout=60)
    machine.run(["rm", *(f"/var/lib/ckp-agent/{file}" for file in ("key.pem", "cert.pem", "identity.json"))], timeout=10)
    machine.run(["systemctl", "start", "ckp-agent"], timeout=60)

    def waiting() -> list[dict[str, Any]]:
        return [item for item in session.get("/host-requests", state="pending")["items"] if item["source"] == machine.address]

    world.wait(waiting, "its request waits", timeout=60)
    ckp("host", "approve", waiting()[0]["id"])
    back = world.wait(lambda: [item["name"] for item in session.get("/hosts")["items"] if item["address"] == machine.address], "it is a host", timeout=60)
    ckp("hostgroup", "add", "lab", back[0])
    world.wait(lambda: nodes_ready(world) == 2, "and a node again", timeout=300)
    assert lost not in [item["name"] for item in session.get("/clusters/demo")["machines"]]
