"""The manifests of a hosted control plane: what they must say, whatever the spec."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest

from ckp.api import kinds
from ckp.api.names import CLUSTER_NAME_LABEL
from ckp.api.platform import Releases
from ckp.clients.kube import Obj
from ckp.controllers.controlplane import apiserver, bootstrap, certificates, etcd
from ckp.controllers.controlplane.plan import Plan, disruption_budget
from ckp.rules.etcd import quota_for
from tests.worlds.control_plane import TENANT, release


def plan(version: str = "v1.35.1", **spec: Any) -> Plan:
    """Of a control plane with this spec."""
    meta = {"name": "demo", "namespace": TENANT, "uid": "u-1", "labels": {CLUSTER_NAME_LABEL: "demo"}}
    plane = {"apiVersion": kinds.MANAGED_CONTROL_PLANE.api_version, "kind": "ManagedControlPlane", "metadata": meta, "spec": {"version": version, **spec}}
    cluster = {"apiVersion": kinds.CLUSTER.api_version, "kind": "Cluster", "metadata": meta, "spec": {}}
    return Plan.of(plane, cluster, Releases(releases={version: release(version)}), "10.88.0.150")


def flags(workload: Obj) -> dict[str, str]:
    """Of the first container's command."""
    command = workload["spec"]["template"]["spec"]["containers"][0]["command"]
    return dict(item[2:].split("=", 1) for item in command if item.startswith("--"))


@pytest.mark.parametrize("replicas", [1, 3])
@pytest.mark.parametrize("component", [apiserver.controller_manager, apiserver.scheduler])
def test_one_controller_manager_and_one_scheduler_work_at_a_time(component: Any, replicas: int) -> None:
    """A lease decides; and a rollout never starts a second pod beside a single one."""
    made = component(plan(replicas=replicas))
    assert flags(made)["leader-elect"] == "true"
    strategy = made["spec"]["strategy"]
    assert strategy == {"type": "Recreate", "rollingUpdate": None} if replicas == 1 else strategy["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}


def api_pod(version: str, **status: str) -> Obj:
    template = apiserver.api_server(plan(version))["spec"]["template"]
    return {"metadata": {"name": f"demo-apiserver-{version}"}, "spec": template["spec"], "status": status}


def test_an_api_server_of_another_version_counts_until_its_pod_is_gone() -> None:
    """Also one that is ending and in no count of the Deployment's; a finished pod serves nothing."""
    wanted = plan("v1.35.1")
    new, old = api_pod("v1.35.1", phase="Running"), api_pod("v1.34.3", phase="Running")
    old["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert apiserver.serves_only(wanted, [new])
    assert not apiserver.serves_only(wanted, [new, old])
    assert apiserver.serves_only(wanted, [new, {**old, "status": {"phase": "Failed"}}])


def test_a_full_etcd_is_neither_killed_nor_taken_out_of_service() -> None:
    """/health fails at the quota; /livez and /readyz do not, and only /readyz asks for a quorum."""
    container = etcd.etcd_objects(plan())[-1]["spec"]["template"]["spec"]["containers"][0]
    paths = {probe: container[probe]["httpGet"]["path"] for probe in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert paths == {"startupProbe": "/livez", "livenessProbe": "/livez", "readinessProbe": "/readyz"}


def stateful_set(quota: int, size: str) -> Obj:
    made = etcd.etcd_objects(plan(etcd={"size": size}))[-1]
    container = made["spec"]["template"]["spec"]["containers"][0]
    container["command"] = [f"--quota-backend-bytes={quota}" if "quota" in item else item for item in container["command"]]
    return made


def claim(size: str) -> Obj:
    return {"metadata": {"name": "data-demo-etcd-0"}, "status": {"capacity": {"storage": size}}}


def test_the_quota_follows_the_volumes_as_they_are_and_their_template_is_kept() -> None:
    """A StatefulSet's template of volumes can't be changed: another size in the spec must not make every apply fail."""
    before = stateful_set(1 << 30, "2Gi")
    sized = etcd.sizing(plan(etcd={"size": "20Gi"}), before, [claim("8Gi"), claim("4Gi")], 0)
    assert sized.claim["resources"]["requests"]["storage"] == "2Gi"
    assert sized.quota == quota_for(4 << 30), "the smallest volume counts"
    assert etcd.sizing(plan(etcd={"size": "8Gi"}), None, [], 0).quota == quota_for(8 << 30)


def test_the_quota_of_0_2_0_stays_until_the_database_is_seen_to_fit() -> None:
    before = stateful_set(2 << 30, "2Gi")
    assert etcd.sizing(plan(), before, [claim("2Gi")], 0).quota == 2 << 30
    assert etcd.sizing(plan(), before, [claim("2Gi")], 50 << 20).quota == quota_for(2 << 30)


def test_only_the_clusters_own_and_the_controllers_reach_etcd() -> None:
    policy = next(item for item in etcd.etcd_objects(plan()) if item["kind"] == "NetworkPolicy")
    allowed = [
        (source["podSelector"]["matchLabels"], [port["port"] for port in rule["ports"]]) for rule in policy["spec"]["ingress"] for source in rule["from"]
    ]
    assert allowed == [
        (plan().selector("apiserver"), [2379]),
        (plan().selector("etcd"), [2379, 2380]),
        ({"app": "ckp-controllers"}, [2379]),
        (plan().selector("backup"), [2379]),
    ]
    controllers = policy["spec"]["ingress"][2]["from"][0]
    assert controllers["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "ckp-system"}, "pods of that label elsewhere do not"


def accepted(names: tuple[str, ...], reverse: str, forward: dict[str, str], address: str) -> bool:
    """Whether etcd takes a peer (client/pkg/transport/listener_tls.go at v3.5.15): by the name found for its address, or by looking up plain names.

    Args:
        names: the certificate's DNS names.
        reverse: what a look-up of the address gives.
        forward: what look-ups of names give.
    """
    plain = [name for name in names if not name.startswith("*.")]
    suffixes = [name[1:] for name in names if name.startswith("*.")]
    return reverse in plain or any(reverse.endswith(suffix) for suffix in suffixes) or address in (forward.get(name) for name in plain)


@pytest.mark.parametrize("replicas", [1, 3, 5])
@pytest.mark.parametrize("domain", ["cluster.local", "k8s.site.example"])
def test_members_of_etcd_take_each_other_in_any_domain_of_the_management_cluster(replicas: int, domain: str) -> None:
    made = plan(etcd={"replicas": replicas})
    names = next(leaf.dns for leaf in certificates.leaves(made) if leaf.name == "etcd-server")
    peers = [f"demo-etcd-{index}.demo-etcd-peer.{TENANT}.svc" for index in range(replicas)]
    forward = {peer: f"10.42.0.{index}" for index, peer in enumerate(peers)}
    for peer, address in forward.items():
        assert accepted(names, f"{peer}.{domain}", forward, address), "its name has the domain, the SAN has not"
        assert accepted(names, "", forward, address)
    stranger = "10.42.0.99"
    assert not accepted(names, f"evil.other.svc.{domain}", forward, stranger)
    urls = flags(etcd.etcd_objects(made)[-1])["initial-cluster"]
    assert urls == ",".join(f"demo-etcd-{index}=https://{peer}:2380" for index, peer in enumerate(peers))


def test_what_an_api_server_says_of_itself_leads_to_an_address_that_pods_reach() -> None:
    """OpenID Connect discovery names it, with the port (conformance: OIDC discovery). Of an endpoint with a name it is the load balancer's address."""
    assert flags(apiserver.api_server(plan()))["external-hostname"] == "10.88.0.150"
    assert flags(apiserver.api_server(replace(plan(), host="api.demo.example")))["external-hostname"] == "10.88.0.150"


def test_an_api_server_knows_each_of_several_members() -> None:
    """So that one that hangs costs it nothing: their Service leads there until a probe has failed three times."""
    servers = flags(apiserver.api_server(plan(etcd={"replicas": 3})))["etcd-servers"]
    assert servers == ",".join(f"https://demo-etcd-{index}.demo-etcd-peer.{TENANT}.svc:2379" for index in range(3))
    assert flags(apiserver.api_server(plan()))["etcd-servers"] == f"https://demo-etcd.{TENANT}.svc:2379"


@pytest.mark.parametrize("replicas", [1, 3])
def test_replicas_are_spread_over_nodes_and_drained_one_at_a_time(replicas: int) -> None:
    made = plan(replicas=replicas, etcd={"replicas": replicas})
    hosted = [etcd.etcd_objects(made)[-1], apiserver.api_server(made), apiserver.controller_manager(made), apiserver.scheduler(made)]
    for workload in hosted:
        template = workload["spec"]["template"]
        constraints = template["spec"].get("topologySpreadConstraints", [])
        assert [(item["topologyKey"], item["whenUnsatisfiable"]) for item in constraints] == [("kubernetes.io/hostname", "ScheduleAnyway")] * (replicas > 1)
        assert all(item["labelSelector"]["matchLabels"].items() <= template["metadata"]["labels"].items() for item in constraints)
    budgets = [item for item in etcd.etcd_objects(made) if item["kind"] == "PodDisruptionBudget"] + [disruption_budget(made, "apiserver")]
    for budget, workload in zip(budgets, hosted, strict=False):
        assert budget["spec"]["maxUnavailable"] == 1, "a single replica blocks no drain"
        assert budget["spec"]["selector"] == workload["spec"]["selector"]


def konnectivity_agents() -> list[Obj]:
    """The containers of the agents' DaemonSet."""
    items = json.loads(bootstrap.bootstrap_objects(plan())[0]["data"]["manifests.json"])["items"]
    [agents] = [item["spec"]["template"]["spec"] for item in items if item["kind"] == "DaemonSet"]
    assert agents["hostNetwork"]
    return list(agents["containers"])


def test_a_node_is_reached_through_its_own_agent_first() -> None:
    """The agents name their address (bootstrap's manifests), which is what the API server dials a kubelet by."""
    server = apiserver.api_server(plan())["spec"]["template"]["spec"]["initContainers"][0]["command"]
    assert "--proxy-strategies=destHost,defaultRoute,default" in server
    assert "--agent-identifiers=ipv4=$(HOST_IP)" in konnectivity_agents()[0]["command"]


def test_what_people_read_slowly_holds_up_no_webhook() -> None:
    """Streams of kubelets go through a node's own agent, all else through a second one; both are in the host's network, and so share no port."""
    own, services = konnectivity_agents()
    assert "--agent-identifiers=default-route=true" in services["command"]
    assert not any("ipv4=" in item for item in services["command"])
    ports = [item for agent in (own, services) for item in agent["command"] if re.match(r"--(admin|health)-server-port=", item)]
    numbers = [item.partition("=")[2] for item in ports]
    assert len(set(numbers)) == len(numbers) == 4
    assert "--health-server-host=127.0.0.1" in services["command"], "it is open to nobody outside of the host"
    for agent in (own, services):
        assert f"--health-server-port={agent['livenessProbe']['httpGet']['port']}" in agent["command"]
