"""ByoHost: keeps a host's desired state in step with its claim, and cleans up when the host is removed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from ckp.api.host_protocol import AgentTarget, RegistryLogin
from ckp.api.kinds import BYO_HOST, BYO_MACHINE
from ckp.api.names import BYOHOST_FINALIZER
from ckp.api.objects.base import ObjectReference
from ckp.api.objects.byo_host import ByoHost
from ckp.api.platform import Releases
from ckp.api.states import ConditionType, HostPhase, Reason
from ckp.clients.kube import Kube
from ckp.controllers.providers.byo.desired import DesiredStore
from ckp.controllers.providers.byo.drain import reconcile_drain
from ckp.controllers.providers.byo.node_metadata import reconcile_node_metadata
from ckp.controllers.scope import Scope, deleting
from ckp.controllers.workload import WorkloadClients
from ckp.kits.clock import Clock, parse_rfc3339, rfc3339
from ckp.rules.certificates import certificate_serial, next_serial, revoked_serial
from ckp.rules.conditions import Condition, make_condition, merge_conditions
from ckp.rules.flapping import Flaps
from ckp.rules.labels_and_taints import LabelsAndTaints
from ckp.runtime.controller import Result


@dataclass
class ByoHostReconciler:
    """Brings one ByoHost's claim, desired state and conditions up to date."""

    kube: Kube
    clock: Clock
    releases: Releases
    clients: WorkloadClients = field(default_factory=WorkloadClients)
    registry_login: Callable[[], RegistryLogin | None] = lambda: None
    """How hosts log in to the registry now; None: it asks for no password."""
    _announced: dict[tuple[str, str], str] = field(default_factory=dict)
    _agents: dict[tuple[str, str], AgentTarget | None] = field(default_factory=dict)
    _logins: dict[tuple[str, str], RegistryLogin | None] = field(default_factory=dict)

    async def reconcile(self, namespace: str, name: str) -> Result:
        """A claim whose machine is gone is dropped once the host is clean; a removed host's desired state goes with it."""
        obj = await self.kube.get(BYO_HOST, name, namespace)
        if obj is None or deleting(obj):
            self._announced.pop((namespace, name), None)
            self._agents.pop((namespace, name), None)
            self._logins.pop((namespace, name), None)
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
        await self._announce_login(scope)
        host = ByoHost.of(scope.obj)
        if reference := host.spec.machine_ref:
            await self._check_claim(scope, reference)
            host = ByoHost.of(scope.obj)
        elif host.status.observed.phase not in ("", HostPhase.FREE):
            await DesiredStore(self.kube).withdraw(namespace, name, lambda: self._is_claimed(scope))
        held = f"held by {reference.name}" if reference else ""
        state = make_condition(ConditionType.AVAILABLE, not host.claimed, self.clock.now(), reason=Reason.CLAIMED, message=held)
        flaps, stable, wait = self._stability(host)
        drained = await reconcile_drain(self.kube, self.clock, self.releases, host)
        metadata = await reconcile_node_metadata(self.kube, self.clock, host, self.clients)
        scope.conditions = [state, stable, *(condition for condition in (drained.condition, metadata.condition) if condition)]
        await self._write(scope, host, flaps, drained.done_for, metadata.carried)
        return Result(after=min((after for after in (wait, drained.after, metadata.after) if after is not None), default=None))

    async def _announce_agent(self, scope: Scope) -> None:
        """The version of the agent that is asked for, with the one that runs as its fallback; none once the wanted one runs."""
        host = ByoHost.of(scope.obj)
        wanted, running = host.spec.agent_version, host.status.agent.version
        target = None
        if wanted and wanted != running and wanted in self.releases.agents:
            images = self.releases.agents
            target = AgentTarget(
                version=wanted,
                image=images[wanted],
                fallback_image=images.get(running, ""),
                registry_ca=self.releases.registry_ca,
                confirm_seconds=float(host.spec.agent_confirm_seconds),
            )
        key = (scope.namespace, scope.name)
        if key not in self._agents or self._agents[key] != target:
            await DesiredStore(self.kube).set_agent(scope.namespace, scope.name, target)
            self._agents[key] = target

    async def _announce_login(self, scope: Scope) -> None:
        """How the host logs in to the registry; a changed password reaches all hosts with the next look at each."""
        key, login = (scope.namespace, scope.name), self.registry_login()
        if key not in self._logins or self._logins[key] != login:
            await DesiredStore(self.kube).set_registry(scope.namespace, scope.name, login)
            self._logins[key] = login

    def _stability(self, host: ByoHost) -> tuple[Flaps, Condition, float | None]:
        """Whether the host's connection flaps, and the seconds after which that must be evaluated again."""
        flaps, now = Flaps.of(host.status), self.clock.now()
        connection = host.condition(ConditionType.AGENT_CONNECTED)
        # A connection that was closed in order (the agent was stopped or upgraded, or its host restarted) was not lost.
        if connection.is_false and connection.reason == Reason.SILENT and connection.last_transition_time:
            flaps = flaps.lost(parse_rfc3339(connection.last_transition_time))
        held = flaps.held_until
        if held is None or now >= held:
            return flaps, make_condition(ConditionType.STABLE, True, now), None
        message = f"its connection was lost {flaps.count} times within the hour; no machine claims it before {rfc3339(held)}"
        condition = make_condition(ConditionType.STABLE, False, now, reason=Reason.FLAPPING, message=message, severity="Warning")
        return flaps, condition, (held - now).total_seconds() + 1

    async def _announce_certificates(self, scope: Scope) -> None:
        """The hub follows the desired states, not the hosts (which change with every report): it learns there that a certificate was revoked."""
        text = f"current={certificate_serial(scope.obj)} next={next_serial(scope.obj)} revoked={revoked_serial(scope.obj)}"
        key = (scope.namespace, scope.name)
        if self._announced.get(key) != text:
            await DesiredStore(self.kube).withdraw(scope.namespace, scope.name, lambda: self._is_claimed(scope))
            await DesiredStore(self.kube).announce(scope.namespace, scope.name, text)
            self._announced[key] = text

    async def _is_claimed(self, scope: Scope) -> bool:
        host = await self.kube.get(BYO_HOST, scope.name, scope.namespace)
        return host is None or ByoHost.of(host).claimed

    async def _write(self, scope: Scope, host: ByoHost, flaps: Flaps, drained_for: str, carried: LabelsAndTaints) -> None:
        """Only our own part: the hub owns the rest (server-side apply, conditions are a map by type)."""
        ours = {item["type"] for item in scope.conditions}
        before = {item.type: (item.status, item.message) for item in host.status.conditions}
        same = all(before.get(item["type"]) == (item["status"], item.get("message", "")) for item in scope.conditions)
        gone = [kind for kind in (ConditionType.DRAINED, ConditionType.NODE_MARKED) if kind in before and kind not in ours]
        unchanged = Flaps.of(host.status) == flaps and host.status.drained_for == drained_for and LabelsAndTaints.recorded(host) == carried
        if same and not gone and unchanged:
            return
        stored = (scope.obj.get("status") or {}).get("conditions") or []
        conditions = merge_conditions([item for item in stored if item["type"] in ours], scope.conditions)
        body = {
            "apiVersion": BYO_HOST.api_version,
            "kind": BYO_HOST.kind,
            "metadata": {"name": scope.name, "namespace": scope.namespace},
            "status": {
                "conditions": conditions,
                "flaps": flaps.to_json(),
                **({"drainedFor": drained_for} if drained_for else {}),
                **({"nodeMarks": carried.to_json()} if carried else {}),
            },
        }
        await self.kube.apply(body, subresource="status")

    async def _check_claim(self, scope: Scope, reference: ObjectReference) -> None:
        """Drop the claim of a machine that is gone, once the host reports that it is clean."""
        machine = await self.kube.get(BYO_MACHINE, reference.name, scope.namespace)
        if machine is not None and machine["metadata"]["uid"] == reference.uid:
            return
        desired = await DesiredStore(self.kube).write(scope.namespace, scope.name, None)
        observed = ByoHost.of(scope.obj).status.observed
        if observed.generation == desired.generation and observed.phase == HostPhase.FREE:
            scope.obj["spec"] = {key: value for key, value in scope.obj["spec"].items() if key != "machineRef"}
            scope.obj = await self.kube.replace(scope.obj)
