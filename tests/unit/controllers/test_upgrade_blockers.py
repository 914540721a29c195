"""Every blocker that can be seeded into a cluster is named by the checks, alone and with its place, before anything is changed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest

from ckp.api import kinds
from ckp.api.kinds import BYO_HOST, BYO_MACHINE, CERTIFICATE, MACHINE, MANAGED_CONTROL_PLANE, PDB, VALIDATING_WEBHOOK
from ckp.api.names import CLUSTER_NAME_LABEL
from ckp.clients.kube import Obj
from ckp.kits.clock import rfc3339
from ckp.rules.upgrade_checks import ACCEPTABLE, Check
from tests.worlds.upgrades import NEW, NEXT, OLD, TENANT, UpgradeWorld, condition, release

Seed = Callable[[UpgradeWorld], Awaitable[None]]
SEEDS: dict[Check, tuple[Seed, str]] = {}
SPEC: dict[Check, dict[str, Any]] = {Check.UNKNOWN: {"nodes": ["n1", "n9"]}, Check.NO_WAY: {"version": "v1.32.9"}}


def seed(check: Check, where: str) -> Callable[[Seed], Seed]:
    def put(function: Seed) -> Seed:
        SEEDS[check] = (function, where)
        return function

    return put


async def status(world: UpgradeWorld, kind: kinds.Kind, name: str, status_: Obj) -> None:
    await world.kube.merge(kind, name, TENANT, {"status": status_}, subresource="status")


async def conditions(world: UpgradeWorld, **states: str) -> None:
    found = [condition(kind, state, message=f"{kind} is seeded") for kind, state in {"Ready": "True", "EtcdReady": "True", **states}.items()]
    await status(world, MANAGED_CONTROL_PLANE, "demo", {"conditions": found})


async def facts(world: UpgradeWorld, **more: Any) -> None:
    await status(world, BYO_HOST, "n2", {"facts": {"os_id": "debian", "os_version": "12", **more}})


async def node(world: UpgradeWorld, spec: Obj) -> None:
    await world.workload.create({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n2"}, "spec": spec})


@seed(Check.NO_WAY, "v1.32.9")
@seed(Check.UNKNOWN, "n9")
async def by_what_is_asked_for(world: UpgradeWorld) -> None:
    """See SPEC."""


@seed(Check.RELEASE_MISSING, "v1.34")
async def without_the_minor_between(world: UpgradeWorld) -> None:
    world.releases = world.releases.without([NEW])
    world.restarted()


@seed(Check.BUNDLE_MISSING, "n2")
async def with_a_system_that_has_no_bundle(world: UpgradeWorld) -> None:
    await facts(world, os_id="rhel", os_version="9.4")


@seed(Check.OTHER_UPGRADE, "another")
async def with_another_upgrade(world: UpgradeWorld) -> None:
    await world.ask(NEW, "another")


@seed(Check.NOT_REACHED, "API server")
async def without_an_answer(world: UpgradeWorld) -> None:
    world.cut_off()


@seed(Check.CONTROL_PLANE, "control plane")
async def with_a_control_plane_that_is_not_ready(world: UpgradeWorld) -> None:
    await conditions(world, Ready="False")


@seed(Check.ETCD, "etcd")
async def with_a_member_away(world: UpgradeWorld) -> None:
    await conditions(world, EtcdReady="False")


@seed(Check.ETCD_SPACE, "etcd")
async def with_a_full_etcd(world: UpgradeWorld) -> None:
    await conditions(world, EtcdSpaceAvailable="False")


@seed(Check.SKEW, "n2")
async def with_a_kubelet_that_is_too_old(world: UpgradeWorld) -> None:
    await status(world, MACHINE, "n2", {"nodeInfo": {"kubeletVersion": "v1.29.9-ckp"}})


@seed(Check.NODE, "n2")
async def with_a_node_that_is_not_ready(world: UpgradeWorld) -> None:
    await status(world, MACHINE, "n2", {"conditions": [condition("NodeHealthy", "False")]})


@seed(Check.HOST, "n2")
async def with_a_host_that_is_offline(world: UpgradeWorld) -> None:
    await world.connected("n2", False)


@seed(Check.AGENT, "n2")
async def with_an_agent_that_does_not_know_upgrades(world: UpgradeWorld) -> None:
    await facts(world, features=[])


@seed(Check.SPACE, "n2")
async def with_a_full_disk(world: UpgradeWorld) -> None:
    await facts(world, disk_bytes=16 << 30, disk_free_bytes=300 << 20)


@seed(Check.CORDON, "n2")
async def with_a_cordon(world: UpgradeWorld) -> None:
    await node(world, {"unschedulable": True})


@seed(Check.TAINT, "n2")
async def with_a_taint(world: UpgradeWorld) -> None:
    await node(world, {"taints": [{"key": "node.kubernetes.io/memory-pressure", "effect": "NoSchedule"}]})


@seed(Check.ADDON, "cilium")
async def with_an_addon_outside_the_matrix(world: UpgradeWorld) -> None:
    world.releases = world.releases.with_releases([release(NEXT).model_copy(update={"cni": {}})])
    world.restarted()


@seed(Check.BUDGET, "default/web")
async def with_a_budget_that_can_not_be_met(world: UpgradeWorld) -> None:
    await world.workload.create({"apiVersion": PDB.api_version, "kind": PDB.kind, "metadata": {"name": "web", "namespace": "default"}, "spec": {}})
    counts = {"expectedPods": 2, "currentHealthy": 2, "desiredHealthy": 2, "disruptionsAllowed": 0}
    await world.workload.merge(PDB, "web", "default", {"status": counts}, subresource="status")


@seed(Check.WEBHOOK, "ValidatingWebhookConfiguration/policy")
async def with_a_webhook_without_a_backend(world: UpgradeWorld) -> None:
    hook = {"name": "w", "clientConfig": {"service": {"namespace": "default", "name": "gone"}}}
    kind = VALIDATING_WEBHOOK
    await world.workload.create({"apiVersion": kind.api_version, "kind": kind.kind, "metadata": {"name": "policy"}, "webhooks": [hook]})


@seed(Check.REMOVED_API, "r.v1beta1.g")
async def with_an_api_that_goes_away(world: UpgradeWorld) -> None:
    labels = 'group="g",removed_release="1.35",resource="r",subresource="",version="v1beta1"'
    world.workload.on_text("/metrics", f"apiserver_requested_deprecated_apis{{{labels}}} 1\n")


@seed(Check.GATE, "n2")
async def with_a_gate_that_is_gone(world: UpgradeWorld) -> None:
    world.kubelet_has("n2", ComponentSLIs=True)


@seed(Check.FLAG, "n2")
async def with_a_flag_that_is_gone(world: UpgradeWorld) -> None:
    await facts(world, kubelet_flags=["cloud-config"])


@seed(Check.OPTIONS, "n2")
async def with_a_kubelet_that_does_not_answer(world: UpgradeWorld) -> None:
    world.workload.on_text("/api/v1/nodes/n2/proxy/configz", "")


@seed(Check.BACKUP, "backup")
async def with_a_bucket_that_is_full(world: UpgradeWorld) -> None:
    await world.backs_up()
    world.backups = "failed"


@seed(Check.CERTIFICATE, "demo-apiserver")
async def with_a_certificate_that_ends(world: UpgradeWorld) -> None:
    meta = {"name": "demo-apiserver", "namespace": TENANT, "labels": {CLUSTER_NAME_LABEL: "demo"}}
    await world.kube.create({"apiVersion": CERTIFICATE.api_version, "kind": CERTIFICATE.kind, "metadata": meta, "spec": {}})
    await status(world, CERTIFICATE, "demo-apiserver", {"notAfter": rfc3339(world.clock.now() + timedelta(days=3))})


def test_there_is_a_seed_for_every_check_and_there_are_fifteen_at_least() -> None:
    assert SEEDS.keys() == set(Check) and len(SEEDS) >= 15


@pytest.mark.parametrize("name", list(Check))
async def test_a_seeded_blocker_is_named_alone_and_nothing_is_changed(name: Check) -> None:
    world = UpgradeWorld()
    await world.made()
    function, where = SEEDS[name]
    await function(world)
    spec = {"version": NEXT, **SPEC.get(name, {})}
    await world.ask(spec.pop("version"), accept=[] if name in ACCEPTABLE else [str(name)], **spec)
    found = await world.until("Blocked", passes=6)
    [finding] = found["findings"]
    assert (finding["name"], finding["where"]) == (name, where) and finding["message"] and finding["remedy"]
    assert finding["acceptable"] == (name in ACCEPTABLE) and "nothing was changed" in found["message"] and name in found["message"]
    assert world.spec_of(MANAGED_CONTROL_PLANE, "demo")["version"] == OLD
    assert not [item for item in world.kube.all_stored(BYO_MACHINE) if item["spec"].get("prepareVersion") or item["spec"].get("kubernetesVersion")]
