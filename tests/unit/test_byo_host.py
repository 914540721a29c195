"""ByoHost: what its controller keeps beside it, against a simulated API server."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from ckp.api import names
from ckp.clients import kinds
from ckp.clients.kube_simulator import KubeSimulator
from ckp.controllers.byo.desired import DesiredStore
from ckp.controllers.byo.host import ByoHostReconciler
from ckp.kits.clock import ManualClock, rfc3339
from ckp.rules.conditions import get_condition

TENANT = "ckp-default-default"


@pytest.fixture
async def kube() -> KubeSimulator:
    made = KubeSimulator(manager="ckp-controllers", namespaces=(TENANT, names.HOSTS_NAMESPACE))
    await made.create({"apiVersion": kinds.BYO_HOST.api_version, "kind": "ByoHost", "metadata": {"name": "one", "namespace": TENANT}, "spec": {}})
    return made


async def announced(kube: KubeSimulator) -> str:
    secret = await kube.get(kinds.SECRET, f"{TENANT}.one", names.HOSTS_NAMESPACE)
    assert secret is not None
    return str(secret["metadata"]["annotations"][names.CERTIFICATES_ANNOTATION])


async def test_it_says_beside_the_desired_state_which_certificates_hold(kube: KubeSimulator) -> None:
    reconciler = ByoHostReconciler(kube, ManualClock(datetime(2026, 4, 1, tzinfo=UTC)))
    await kube.merge(kinds.BYO_HOST, "one", TENANT, {"status": {"agent": {"certificateSerial": "a1"}}}, subresource="status")
    await reconciler.reconcile(TENANT, "one")
    assert await announced(kube) == "current=a1 next= revoked="
    await kube.merge(kinds.BYO_HOST, "one", TENANT, {"spec": {"revokedSerial": "a1"}})
    await reconciler.reconcile(TENANT, "one")
    assert await announced(kube) == "current=a1 next= revoked=a1"


async def test_a_host_of_which_nothing_was_said_is_told_to_be_free_and_a_membership_is_never_overwritten(kube: KubeSimulator) -> None:
    store = DesiredStore(kube)
    reconciler = ByoHostReconciler(kube, ManualClock(datetime(2026, 4, 1, tzinfo=UTC)))
    await reconciler.reconcile(TENANT, "one")
    assert (await store.read(TENANT, "one")).membership is None
    before = (await store.read(TENANT, "one")).generation
    await store.write(TENANT, "one", None)
    assert (await store.read(TENANT, "one")).generation == before, "nothing new was said"
    assert await announced(kube) == "current= next= revoked=", "and the announcement outlives the next desired state"


async def test_unchanged_certificates_cost_nothing(kube: KubeSimulator) -> None:
    reconciler = ByoHostReconciler(kube, ManualClock(datetime(2026, 4, 1, tzinfo=UTC)))
    await reconciler.reconcile(TENANT, "one")
    await reconciler.reconcile(TENANT, "one")
    calls = len(kube.calls)
    await reconciler.reconcile(TENANT, "one")
    assert [call[1] for call in kube.calls[calls:]] == ["ByoHost"], "the host itself is read, no Secret"


async def test_with_the_host_its_desired_state_goes(kube: KubeSimulator) -> None:
    reconciler = ByoHostReconciler(kube, ManualClock(datetime(2026, 4, 1, tzinfo=UTC)))
    await reconciler.reconcile(TENANT, "one")
    await kube.delete(kinds.BYO_HOST, "one", TENANT)
    await reconciler.reconcile(TENANT, "one")
    assert await kube.get(kinds.SECRET, f"{TENANT}.one", names.HOSTS_NAMESPACE) is None
    assert await kube.get(kinds.BYO_HOST, "one", TENANT) is None


async def test_a_host_that_comes_and_goes_is_not_stable_until_its_time_is_over(kube: KubeSimulator) -> None:
    clock = ManualClock(datetime(2026, 4, 1, tzinfo=UTC))
    reconciler = ByoHostReconciler(kube, clock)

    async def condition() -> dict[str, str]:
        host = await kube.get(kinds.BYO_HOST, "one", TENANT)
        assert host is not None
        return dict(get_condition(host, "Stable") or {})

    for _ in range(2):
        clock.advance(60)
        lost = [{"type": "AgentConnected", "status": "False", "reason": "Silent", "message": "", "lastTransitionTime": rfc3339(clock.now())}]
        hub = kube.as_manager("ckp-hub")
        body = {"apiVersion": kinds.BYO_HOST.api_version, "kind": "ByoHost", "metadata": {"name": "one", "namespace": TENANT}, "status": {"conditions": lost}}
        await hub.apply(body, subresource="status")
        result = await reconciler.reconcile(TENANT, "one")
    assert (await condition())["reason"] == "Flapping"
    assert result.after is not None and 30 <= result.after <= 32, "it is looked at again when its time is over"
    clock.advance(result.after)
    await reconciler.reconcile(TENANT, "one")
    assert (await condition())["status"] == "True"
