"""ByoHost: keeps what a host is told in step with who claims it, and cleans up when the host is removed."""

from __future__ import annotations

from dataclasses import dataclass, field

from ckp.api.host_protocol import AgentTarget
from ckp.api.kinds import BYO_HOST, BYO_MACHINE
from ckp.api.names import BYOHOST_FINALIZER
from ckp.api.platform import Releases
from ckp.clients.kube import Kube
from ckp.controllers.providers.byo.desired import DesiredStore
from ckp.controllers.providers.byo.drain import look_after
from ckp.controllers.providers.byo.node_marks import mark_node
from ckp.controllers.scope import Scope, deleting
from ckp.controllers.workload import Connect, connect
from ckp.kits.clock import Clock, parse_rfc3339, rfc3339
from ckp.rules.certificates import agent_of, certificate_serial, next_serial, revoked_serial
from ckp.rules.conditions import Condition, get_condition, make_condition, merge_conditions
from ckp.rules.flapping import Flaps
from ckp.rules.marks import Marks
from ckp.runtime.controller import Result


@dataclass
class ByoHostReconciler:
    """Looks after one ByoHost."""

    kube: Kube
    clock: Clock
    releases: Releases
    connect: Connect = connect
    _announced: dict[tuple[str, str], str] = field(default_factory=dict)
    _agents: dict[tuple[str, str], AgentTarget | None] = field(default_factory=dict)

    async def reconcile(self, namespace: str, name: str) -> Result:
        """A claim whose machine is gone is dropped once the host is clean; a removed host's desired state goes with it."""
        obj = await self.kube.get(BYO_HOST, name, namespace)
        if obj is None or deleting(obj):
            self._announced.pop((namespace, name), None)
            self._agents.pop((namespace, name), None)
        if obj is None:
            # once more: a machine that still held the host may have written to it after its last reconcile
            await DesiredStore(self.kube).remove(namespace, name)
            return Result()
        scope = Scope(self.kube, self.clock, BYO_HOST, obj)
        if deleting(obj):
            await DesiredStore(self.kube).remove(namespace, name)
            await scope.remove_finalizer(BYOHOST_FINALIZER)
            return Result()
        await scope.add_finalizer(BYOHOST_FINALIZER)
        await self._announce_certificates(scope)
        await self._announce_agent(scope)
        reference = (scope.obj.get("spec") or {}).get("machineRef")
        if reference:
            await self._check_claim(scope, reference)
        elif ((scope.obj.get("status") or {}).get("observed") or {}).get("phase", "Free") != "Free":
            await DesiredStore(self.kube).withdraw(namespace, name, lambda: self._is_claimed(scope))
        claimed = bool((scope.obj.get("spec") or {}).get("machineRef"))
        state = make_condition("Available", not claimed, self.clock.now(), reason="Claimed", message=f"held by {reference['name']}" if reference else "")
        flaps, stable, wait = self._stability(scope)
        drained = await look_after(self.kube, self.clock, self.releases, scope.obj)
        marked = await mark_node(self.kube, self.clock, scope.obj, self.connect)
        scope.conditions = [state, stable, *(condition for condition in (drained.condition, marked.condition) if condition)]
        await self._write(scope, flaps, drained.done_for, marked.marks)
        return Result(after=min((after for after in (wait, drained.after, marked.after) if after is not None), default=None))

    async def _announce_agent(self, scope: Scope) -> None:
        """The version of the agent that is asked for, with the one that runs as its way back. Once it runs, nothing more is said."""
        wanted, running = str(scope.obj["spec"].get("agentVersion") or ""), str(agent_of(scope.obj).get("version") or "")
        target = None
        if wanted and wanted != running and wanted in self.releases.agents:
            images = self.releases.agents
            target = AgentTarget(
                version=wanted,
                image=images[wanted],
                fallback_image=images.get(running, ""),
                registry_ca=self.releases.registry_ca,
                confirm_seconds=float(scope.obj["spec"].get("agentConfirmSeconds") or 0),
            )
        key = (scope.namespace, scope.name)
        if key not in self._agents or self._agents[key] != target:
            await DesiredStore(self.kube).set_agent(scope.namespace, scope.name, target)
            self._agents[key] = target

    def _stability(self, scope: Scope) -> tuple[Flaps, Condition, float | None]:
        """Whether the host comes and goes, and the seconds after which that must be judged again."""
        flaps, now = Flaps.of(scope.obj.get("status") or {}), self.clock.now()
        connection = get_condition(scope.obj, "AgentConnected") or {}
        # A goodbye (the agent was stopped, upgraded, or its host restarted) is no loss.
        if connection.get("status") == "False" and connection.get("reason") == "Silent" and connection.get("lastTransitionTime"):
            flaps = flaps.lost(parse_rfc3339(connection["lastTransitionTime"]))
        held = flaps.held_until
        if held is None or now >= held:
            return flaps, make_condition("Stable", True, now), None
        message = f"its connection was lost {flaps.count} times within the hour; no machine claims it before {rfc3339(held)}"
        return flaps, make_condition("Stable", False, now, reason="Flapping", message=message, severity="Warning"), (held - now).total_seconds() + 1

    async def _announce_certificates(self, scope: Scope) -> None:
        """The hub follows the desired states, not the hosts (which change with every report): it learns there that a certificate is void."""
        text = f"current={certificate_serial(scope.obj)} next={next_serial(scope.obj)} revoked={revoked_serial(scope.obj)}"
        key = (scope.namespace, scope.name)
        if self._announced.get(key) != text:
            await DesiredStore(self.kube).withdraw(scope.namespace, scope.name, lambda: self._is_claimed(scope))
            await DesiredStore(self.kube).announce(scope.namespace, scope.name, text)
            self._announced[key] = text

    async def _is_claimed(self, scope: Scope) -> bool:
        host = await self.kube.get(BYO_HOST, scope.name, scope.namespace)
        return host is None or bool((host.get("spec") or {}).get("machineRef"))

    async def _write(self, scope: Scope, flaps: Flaps, drained_for: str, marks: Marks) -> None:
        """Only our own part: the hub owns the rest (server-side apply, conditions are a map by type)."""
        status = scope.obj.get("status") or {}
        before = {item["type"]: (item["status"], item.get("message", "")) for item in status.get("conditions") or []}
        same = all(before.get(item["type"]) == (item["status"], item.get("message", "")) for item in scope.conditions)
        gone = [kind for kind in ("Drained", "NodeMarked") if kind in before and kind not in [item["type"] for item in scope.conditions]]
        if same and not gone and Flaps.of(status) == flaps and str(status.get("drainedFor") or "") == drained_for and Marks.read(scope.obj) == marks:
            return
        ours = {item["type"] for item in scope.conditions}
        conditions = merge_conditions([item for item in status.get("conditions") or [] if item["type"] in ours], scope.conditions)
        body = {
            "apiVersion": BYO_HOST.api_version,
            "kind": BYO_HOST.kind,
            "metadata": {"name": scope.name, "namespace": scope.namespace},
            "status": {
                "conditions": conditions,
                "flaps": flaps.to_json(),
                **({"drainedFor": drained_for} if drained_for else {}),
                **({"nodeMarks": marks.to_json()} if marks else {}),
            },
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
