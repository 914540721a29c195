"""What the hub hands to a host: its desired state with what others write beside it, against a simulated API server."""

from __future__ import annotations

import asyncio
import base64
import contextlib

from ckp.api import names
from ckp.api.host_protocol import AgentTarget, Desired, RegistryLogin
from ckp.controllers.providers.byo.desired import DesiredStore
from ckp.hub.desired import KubeDesired
from ckp.hub.identity import HostId
from tests.simulators.kube import KubeSimulator
from tests.worlds.hub import eventually

TENANT = "ckp-a-b"
LOGIN = RegistryLogin(registry="images.example.test:5443", basic=base64.b64encode(b"node:reads").decode())


async def test_a_host_gets_its_own_login_and_the_wanted_agent_with_its_desired_state() -> None:
    kube = KubeSimulator(namespaces=(TENANT, names.HOSTS_NAMESPACE))
    store, desired, host = DesiredStore(kube), KubeDesired(kube), HostId(TENANT, "one")
    following = asyncio.ensure_future(desired.run())

    async def said() -> Desired:
        frame = desired.frame(host)
        assert frame is not None
        return Desired.model_validate_json(frame)

    async def logged_in() -> bool:
        return (await said()).registry_login == LOGIN

    async def logged_out() -> bool:
        return (await said()).registry_login is None

    try:
        await desired.wait_synced()
        await store.announce(TENANT, "one", "current=1")
        await store.announce(TENANT, "two", "current=2")
        await store.set_registry(TENANT, "one", LOGIN)
        target = AgentTarget(version="0.2.0+2-ckp", image="r/ckp/ckp-agent@sha256:" + "2" * 64)
        await store.set_agent(TENANT, "one", target)
        assert await eventually(logged_in)
        assert (await said()).agent == target
        other = desired.frame(HostId(TENANT, "two"))
        assert other is not None and LOGIN.basic not in other, "each host has a Secret of its own"
        await store.set_registry(TENANT, "one", None)
        assert await eventually(logged_out)
    finally:
        following.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await following
