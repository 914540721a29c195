"""ByoHost: keeps what a host is told in step with who claims it, and cleans up when the host is removed."""

from __future__ import annotations

from dataclasses import dataclass, field

from ckp.api.names import BYOHOST_FINALIZER
from ckp.clients.kinds import BYO_HOST, BYO_MACHINE
from ckp.clients.kube import Kube
from ckp.controllers.byo.desired import DesiredStore
from ckp.controllers.scope import Scope, deleting
from ckp.kits.clock import Clock
from ckp.rules.conditions import make_condition
from ckp.runtime.controller import Result


@dataclass
class ByoHostReconciler:
    """Looks after one ByoHost."""

    kube: Kube
    clock: Clock
    _announced: dict[tuple[str, str], str] = field(default_factory=dict)

    async def reconcile(self, namespace: str, name: str) -> Result:
        """A claim whose machine is gone is dropped once the host is clean; a removed host's desired state goes with it."""
        obj = await self.kube.get(BYO_HOST, name, namespace)
        if obj is None:
            self._announced.pop((namespace, name), None)
            return Result()
        scope = Scope(self.kube, self.clock, BYO_HOST, obj)
        if deleting(obj):
            self._announced.pop((namespace, name), None)
            await DesiredStore(self.kube).remove(namespace, name)
            await scope.remove_finalizer(BYOHOST_FINALIZER)
            return Result()
        await scope.add_finalizer(BYOHOST_FINALIZER)
        await self._announce_certificates(scope)
        reference = (scope.obj.get("spec") or {}).get("machineRef")
        if reference:
            await self._check_claim(scope, reference)
        claimed = bool((scope.obj.get("spec") or {}).get("machineRef"))
        state = make_condition("Available", not claimed, self.clock.now(), reason="Claimed", message=f"held by {reference['name']}" if reference else "")
        scope.conditions = [state]
        await self._write_available(scope)
        return Result()

    async def _announce_certificates(self, scope: Scope) -> None:
        """The hub follows the desired states, not the hosts (which change with every report): it learns there that a certificate is void."""
        agent = (scope.obj.get("status") or {}).get("agent") or {}
        revoked = (scope.obj.get("spec") or {}).get("revokedSerial", "")
        text = f"current={agent.get('certificateSerial', '')} next={agent.get('nextCertificateSerial', '')} revoked={revoked}"
        key = (scope.namespace, scope.name)
        if self._announced.get(key) != text:
            await DesiredStore(self.kube).announce(scope.namespace, scope.name, text)
            self._announced[key] = text

    async def _write_available(self, scope: Scope) -> None:
        """Only our own condition: the hub owns the others (server-side apply, conditions are a map by type)."""
        before = next((item for item in (scope.obj.get("status") or {}).get("conditions") or [] if item["type"] == "Available"), None)
        wanted = scope.conditions[0]
        if before and before["status"] == wanted["status"] and before.get("message", "") == wanted.get("message", ""):
            return
        body = {
            "apiVersion": BYO_HOST.api_version,
            "kind": BYO_HOST.kind,
            "metadata": {"name": scope.name, "namespace": scope.namespace},
            "status": {"conditions": [wanted]},
        }
        await self.kube.apply(body, subresource="status")

    async def _check_claim(self, scope: Scope, reference: dict[str, str]) -> None:
        machine = await self.kube.get(BYO_MACHINE, reference["name"], scope.namespace)
        if machine is not None and machine["metadata"]["uid"] == reference["uid"]:
            return
        desired = await DesiredStore(self.kube).write(scope.namespace, scope.name, None)
        observed = (scope.obj.get("status") or {}).get("observed") or {}
        if observed.get("generation") == desired.generation and observed.get("phase") == "Free":
            scope.obj["spec"] = {key: value for key, value in scope.obj["spec"].items() if key != "machineRef"}
            scope.obj = await self.kube.replace(scope.obj)
