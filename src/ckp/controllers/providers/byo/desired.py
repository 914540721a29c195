"""The desired state of a host, as a Secret of its own: the only Secret about a host that the hub can read."""

from __future__ import annotations

import base64
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from ckp.api.host_protocol import AgentTarget, Desired, Membership, RegistryLogin
from ckp.api.kinds import SECRET
from ckp.api.names import (
    AGENT_KEY,
    CERTIFICATES_ANNOTATION,
    CKP,
    DESIRED_KEY,
    HOST_LABEL,
    HOSTS_NAMESPACE,
    REGISTRY_KEY,
    TENANT_NAMESPACE_LABEL,
    desired_secret,
)
from ckp.clients.kube import Kube, KubeError, Obj


@dataclass(frozen=True)
class DesiredStore:
    """Reads and writes the Secrets in the hosts' namespace."""

    kube: Kube

    async def read(self, namespace: str, host: str) -> Desired:
        """The host's desired state; without a Secret it is to be free."""
        return (await self._read(namespace, host))[0]

    async def _read(self, namespace: str, host: str) -> tuple[Desired, str]:
        """With the resourceVersion of its Secret; "" if there is none."""
        secret = await self.kube.get(SECRET, desired_secret(namespace, host), HOSTS_NAMESPACE)
        if secret is None:
            return Desired(generation=0, host=host), ""
        return Desired.model_validate_json(base64.b64decode(secret["data"][DESIRED_KEY])), str(secret["metadata"]["resourceVersion"])

    async def write(self, namespace: str, host: str, membership: Membership | None, *, joined: bool = False) -> Desired:
        """Set the host's membership (None: be free); the generation grows only with new content.

        Args:
            joined: it is a node already, for which other images to fetch before the join, and the time for it, are nothing new.

        Raises:
            KubeError: among others Conflict, if the desired state was written by another process meanwhile.
        """
        now, version = await self._read(namespace, host)
        if now.membership == membership and now.generation > 0:
            return now
        before_join = {"images": membership.images, "image_fetch_seconds": membership.image_fetch_seconds} if membership else {}
        if joined and now.membership and now.membership.model_copy(update=before_join) == membership:
            return now
        desired = Desired(generation=now.generation + 1, host=host, membership=membership)
        await self._put(namespace, host, desired, version)
        return desired

    async def _put(self, namespace: str, host: str, desired: Desired, version: str) -> None:
        """Replace what was read, and nothing newer: a process that lost its lease must not overwrite its successor."""
        secret = self._secret(namespace, host, desired)
        if not version:
            await self.kube.create(secret)
            return
        patch = {"metadata": {"resourceVersion": version, "labels": secret["metadata"]["labels"]}, "data": secret["data"]}
        await self.kube.merge(SECRET, secret["metadata"]["name"], HOSTS_NAMESPACE, patch)

    async def withdraw(self, namespace: str, host: str, is_claimed: Callable[[], Awaitable[bool]]) -> None:
        """Set an unclaimed host to free, if a membership was left to it: by a machine that wrote it when the host had just been removed.

        A claim always comes before its membership. So if the host is not claimed, a membership that was read before asking, and is unchanged when it is
        replaced (by resourceVersion), belongs to no machine.
        """
        left, version = await self._read(namespace, host)
        if left.membership is not None and not await is_claimed():
            await self._put(namespace, host, Desired(generation=left.generation + 1, host=host), version)

    async def announce(self, namespace: str, host: str, certificates: str) -> None:
        """Note on the desired state which certificates the host may use; a host without one gets one that sets it free."""
        name = desired_secret(namespace, host)
        if await self.kube.get(SECRET, name, HOSTS_NAMESPACE) is None:
            try:
                # create, not apply: a membership that is being written at this very moment must not be overwritten
                await self.kube.create(self._secret(namespace, host, Desired(generation=1, host=host)))
            except KubeError as error:
                if error.reason != "AlreadyExists":
                    raise
        await self.kube.merge(SECRET, name, HOSTS_NAMESPACE, {"metadata": {"annotations": {CERTIFICATES_ANNOTATION: certificates}}})

    async def set_agent(self, namespace: str, host: str, target: AgentTarget | None) -> None:
        """Set the version of the agent that the host is to run; None: the one that it has."""
        value = base64.b64encode(target.model_dump_json().encode()).decode() if target else None
        await self.kube.merge(SECRET, desired_secret(namespace, host), HOSTS_NAMESPACE, {"data": {AGENT_KEY: value}})

    async def set_registry(self, namespace: str, host: str, login: RegistryLogin | None) -> None:
        """Set how the host logs in to the registry; None: it asks for no password."""
        value = base64.b64encode(login.model_dump_json().encode()).decode() if login else None
        await self.kube.merge(SECRET, desired_secret(namespace, host), HOSTS_NAMESPACE, {"data": {REGISTRY_KEY: value}})

    async def remove(self, namespace: str, host: str) -> None:
        """Delete the host's desired state."""
        await self.kube.delete(SECRET, desired_secret(namespace, host), HOSTS_NAMESPACE)

    def _secret(self, namespace: str, host: str, desired: Desired) -> Obj:
        body = json.dumps(desired.model_dump(mode="json"), sort_keys=True)
        return {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {
                "name": desired_secret(namespace, host),
                "namespace": HOSTS_NAMESPACE,
                "labels": {HOST_LABEL: host, TENANT_NAMESPACE_LABEL: namespace},
            },
            "type": f"{CKP}/desired-state",
            "data": {DESIRED_KEY: base64.b64encode(body.encode()).decode()},
        }
