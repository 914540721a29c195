"""The upgrade of one node in place, as its ByoMachine asks for it; ckp.agent.node.upgrade is the host's part.

    prepareVersion        Preparing ▶ Prepared
    kubernetesVersion     Preparing ▶ Prepared ▶ Draining ▶ Installing ▶ Verifying ▶ Done

Only `spec.kubernetesVersion` starts it, never Machine.spec.version: Cluster API's MachineSet controller copies its template's version to all its Machines
at once (machineset_controller.go, syncMachines, v1.7.7), and all nodes would be drained together.

The node is cordoned with an annotation in the same patch, so that one that was cordoned before stays so. From Installing on the host goes on to an end of
its own, whatever is asked for by then: Done, or Failed with its old packages. Where it has those again the node takes pods again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from ckp.api.host_protocol import UPGRADE_NODE, Membership, NodeUpgrade
from ckp.api.kinds import NODE, PDB, POD
from ckp.api.names import RETRY_UPGRADE_ANNOTATION, UPGRADE_CORDON_ANNOTATION
from ckp.api.objects.base import time_of
from ckp.api.objects.byo_host import ByoHost, ObservedUpgrade
from ckp.api.objects.byo_machine import ByoMachine, NodeUpgradeStatus
from ckp.api.platform import Releases, release_order
from ckp.api.states import ConditionType, HostPhase, NodeUpgradeState, Reason
from ckp.clients.kube import Kube, KubeError, Obj
from ckp.controllers.jobs import JobState
from ckp.controllers.providers.byo.drain import run_kubectl
from ckp.controllers.workload import WorkloadClients, workload_cluster
from ckp.kits.clock import Clock, exact_duration, rfc3339
from ckp.kits.errors import CkpError
from ckp.rules.claims import candidate
from ckp.rules.conditions import Condition, is_true, make_condition
from ckp.rules.drains import blockers, summary

POLL = 5.0
VERIFY = timedelta(minutes=15)
"""How long the node has, after the host is done, until it is Ready at its new version: the network plugin's pod may have to start again."""
EXEMPT = timedelta(hours=1)
"""How long a node may be not Ready in each state from Draining on before it is judged as any other: an upgrade that hangs must not hide a dead host."""
BUSY = (NodeUpgradeState.DRAINING, NodeUpgradeState.INSTALLING, NodeUpgradeState.VERIFYING)
FINAL = (NodeUpgradeState.DONE, NodeUpgradeState.FAILED)
S = NodeUpgradeState


@dataclass(frozen=True)
class Step:
    """What one pass decides: what the host is asked for (None: nothing), the status to write (None: as it was), and the seconds until the next pass."""

    asked: NodeUpgrade | None = None
    status: Obj | None = None
    after: float | None = None


@dataclass(frozen=True)
class _Pass:
    """What one pass sees."""

    machine: ByoMachine
    obj: Obj
    host: ByoHost
    cluster: str
    current: str
    """The release that the node is of."""
    target: str
    """The release to prepare or install."""
    install: bool
    status: NodeUpgradeStatus

    @property
    def report(self) -> ObservedUpgrade:
        """What the host says of this very attempt; nothing if it speaks of another."""
        found = self.host.status.observed.upgrade
        return found if found.request == self.status.request else ObservedUpgrade()


def exempt_until(upgrade: NodeUpgradeStatus) -> datetime | None:
    """Until when a node that is not Ready is not unhealthy, because it is being upgraded; None: it is not."""
    try:
        since = time_of(upgrade.state_since)
    except ValueError:
        return None
    return since + EXEMPT if upgrade.state in BUSY and since else None


def release_of(machine: ByoMachine, core: Obj, host: ByoHost, stored: Membership | None) -> str:
    """The release that a machine's host is to be of now: of a node, the one that it is of.

    Args:
        core: the Machine.
        stored: the membership that the host was given last.
    """
    wanted = str(core["spec"]["version"])
    if not machine.spec.provider_id:
        return machine.spec.kubernetes_version or wanted
    observed = host.status.observed
    of_this = observed.phase == HostPhase.JOINED and observed.machine == core["metadata"]["name"]
    of_stored = stored is not None and stored.provider_id == machine.spec.provider_id
    return (observed.release if of_this else "") or (stored.release if stored and of_stored else "") or wanted


@dataclass
class NodeUpgrades:
    """The part of a ByoMachine's reconcile that upgrades its node."""

    kube: Kube
    clock: Clock
    releases: Releases
    clients: WorkloadClients

    async def reconcile(self, obj: Obj, host: ByoHost, cluster: str, current: str) -> Step:
        """One pass for a machine that is a node.

        Raises:
            KubeError: the management cluster refuses, or can't be reached. (A workload cluster that can't is shown, and asked again.)
        """
        machine = ByoMachine.of(obj)
        before = machine.status.upgrade
        wanted, prepare = machine.spec.kubernetes_version, machine.spec.prepare_version
        if before.state == S.FAILED and before.reason == Reason.NODE_NOT_READY and before.version == current and wanted in ("", current):
            return await self._late(_Pass(machine, obj, host, cluster, current, current, True, before))
        if before.state in (S.INSTALLING, S.VERIFYING):
            target, install = before.version, True
        elif wanted and wanted != current:
            target, install = wanted, True
        elif prepare and prepare != current:
            target, install = prepare, False
        else:
            return await self._nothing(_Pass(machine, obj, host, cluster, current, "", False, before))
        seen = self._attempt(_Pass(machine, obj, host, cluster, current, target, install, before))
        if seen.status.state in FINAL:
            return Step(self._asked(seen, "prepare"), self._changed(seen, before))  # a host does nothing more for a request that has failed
        try:
            step = await self._work(seen)
        except KubeError as error:
            if error.code != 0:
                raise
            step = self._stay(seen, Reason.CLUSTER_NOT_REACHED, error.brief)
        return step

    async def _nothing(self, seen: _Pass) -> Step:
        """No upgrade is asked for (any longer). How the last one ended stays to be seen; one that has changed nothing yet is forgotten."""
        if seen.status.state == S.DRAINING:
            try:
                if problem := await self._uncordon(seen):
                    return self._stay(seen, Reason.CLUSTER_NOT_REACHED, problem)
            except KubeError as error:
                return self._stay(seen, Reason.CLUSTER_NOT_REACHED, error.brief)
        if not seen.status.version or seen.status.state == S.DONE:
            return Step()
        if seen.status.state != S.FAILED:
            return Step(None, {"upgrade": None})
        # Without its request the same version may be asked for again, and is tried again then.
        return Step(None, {"upgrade": {"request": None}} if seen.status.request else None)

    def _attempt(self, seen: _Pass) -> _Pass:
        """With the status of the attempt that is to be made: the one in progress, or a new one."""
        before, retry = seen.status, seen.machine.metadata.annotations.get(RETRY_UPGRADE_ANNOTATION, "")
        same = before.version == seen.target and before.request and before.retry == retry
        if before.state in (S.INSTALLING, S.VERIFYING) or (same and before.state != S.DONE):
            return seen
        now = rfc3339(self.clock.now())
        prepared = before.prepared_version if before.prepared_version == seen.target else ""
        first = {"version": seen.target, "state": str(S.PREPARING), "started_at": now, "state_since": now, "prepared_version": prepared}
        fresh = NodeUpgradeStatus().model_copy(update={**first, "request": f"{seen.target} {now}", "retry": retry})
        return replace(seen, status=fresh)

    async def _work(self, seen: _Pass) -> Step:
        match seen.status.state:
            case S.PREPARING | S.PREPARED:
                return await self._prepare(seen)
            case S.DRAINING:
                return await self._drain(seen)
            case S.INSTALLING:
                return await self._install(seen)
        return await self._verify(seen)

    # -- the states ------------------------------------------------------------------------------------------------------

    async def _prepare(self, seen: _Pass) -> Step:
        host = seen.host
        if release_order(seen.target) < release_order(seen.current):
            message = f"the node is of {seen.current}, and {seen.target} is older: a node is upgraded only; take back spec.kubernetesVersion"
            return self._to(seen, S.FAILED, Reason.OLDER_VERSION, message, asked=None)
        if UPGRADE_NODE not in host.status.facts.features:
            version = host.status.agent.version or "of an unknown version"
            message = f"the agent {version} of host {host.name} is too old to upgrade a node: ckp host upgrade-agent {host.name}"
            return replace(self._stay(seen, Reason.AGENT_TOO_OLD, message), asked=None)
        if problem := self._missing(seen):
            return replace(self._stay(seen, Reason.NO_BUNDLE, problem), asked=None)
        report = seen.report
        if report.state == S.FAILED:
            return self._to(seen, S.FAILED, report.reason, report.message, asked="prepare")
        if report.state != S.PREPARED:
            message = report.message or self._offline(host) or f"host {host.name} pulls and verifies the bundle of {seen.target}"
            return self._stay(seen, report.reason, message, state=S.PREPARING)
        seen = replace(seen, status=seen.status.model_copy(update={"prepared_version": seen.target}))
        if seen.install and (offline := self._offline(host)):
            return self._stay(seen, Reason.HOST_OFFLINE, offline, state=S.PREPARED)  # a node is not drained while nothing can be installed on it
        if seen.install:
            return self._to(seen, S.DRAINING, "", f"node {host.name} is being drained", asked="prepare")
        if seen.status.state == S.PREPARED:
            return Step(self._asked(seen, "prepare"), self._changed(seen, seen.machine.status.upgrade))
        return self._to(seen, S.PREPARED, "", report.message, asked="prepare")

    def _missing(self, seen: _Pass) -> str:
        """Why the site has no bundle for this upgrade; "" if it has one."""
        try:
            release = self.releases.get(seen.target)
        except CkpError as error:
            return error.brief
        system = candidate(seen.host).system
        return "" if system in release.bundles else f"there is no bundle of {seen.target} for {system or 'an unknown system'}, which host {seen.host.name} runs"

    async def _drain(self, seen: _Pass) -> Step:
        host = seen.host
        async with workload_cluster(self.kube, host.namespace, seen.cluster, self.clients) as client:
            if client is None:
                return self._stay(seen, Reason.CLUSTER_NOT_REACHED, f"cluster {seen.cluster} has no kubeconfig")
            node = await self._node(client, seen)
            if node is None:
                return self._to(seen, S.FAILED, Reason.NODE_GONE, f"the cluster no longer has the node {host.name}", asked="prepare")
            if not (node.get("spec") or {}).get("unschedulable"):
                cordon = {"metadata": {"annotations": {UPGRADE_CORDON_ANNOTATION: seen.status.request}}, "spec": {"unschedulable": True}}
                await client.merge(NODE, host.name, None, cordon)
            waits = await self._blockers(client, host.name)
        state, seconds = await run_kubectl(self.kube, self.releases, host, seen.obj, "drain", seen.status.request)
        if state is JobState.SUCCEEDED:
            return self._to(seen, S.INSTALLING, "", f"host {host.name} installs {seen.target}", asked="install")
        limit = exact_duration(seconds)
        if state is not JobState.FAILED:
            message = f"node {host.name} is being drained, for at most {limit}" + (f": {summary(waits)}" if waits else "")
            return self._stay(seen, Reason.DRAINING, message)
        if problem := await self._uncordon(seen):
            return self._stay(seen, Reason.CLUSTER_NOT_REACHED, problem)
        message = f"the node was not drained within {limit}, and takes pods again: {summary(waits) or 'see its events'}"
        return self._to(seen, S.FAILED, Reason.DRAIN_FAILED, message, asked="prepare")

    async def _blockers(self, client: Kube, node: str) -> list[str]:
        pods = await client.list(POD, fields={"spec.nodeName": node})
        return blockers(pods, await client.list(PDB))

    async def _install(self, seen: _Pass) -> Step:
        report, host = seen.report, seen.host
        if report.state == S.DONE:
            return self._to(seen, S.VERIFYING, "", report.message, asked="install")
        if report.state == S.FAILED:
            if not report.restored:
                message = f"{report.message}. The node stays cordoned: see `ckp host describe {host.name}`"
                return self._to(seen, S.FAILED, report.reason, message, asked="prepare")
            if problem := await self._uncordon(seen):
                return self._stay(seen, Reason.CLUSTER_NOT_REACHED, problem)
            return self._to(seen, S.FAILED, report.reason, report.message, asked="prepare")
        if report.state == "RollingBack":
            return self._stay(seen, report.reason, f"host {host.name} goes back to its old packages: {report.message}")
        return self._stay(seen, report.reason, self._offline(host) or report.message or f"host {host.name} installs {seen.target}")

    async def _verify(self, seen: _Pass) -> Step:
        """The node is Ready, and its kubelet says the new version; then it takes pods again."""
        host = seen.host
        async with workload_cluster(self.kube, host.namespace, seen.cluster, self.clients) as client:
            if client is None:
                return self._stay(seen, Reason.CLUSTER_NOT_REACHED, f"cluster {seen.cluster} has no kubeconfig")
            node = await self._node(client, seen)
        if node is None:
            return self._to(seen, S.FAILED, Reason.NODE_GONE, f"the cluster no longer has the node {host.name}", asked="prepare")
        missing = self._unverified(node, seen)
        if not missing:
            if problem := await self._uncordon(seen):
                return self._stay(seen, Reason.CLUSTER_NOT_REACHED, problem)
            return self._to(seen, S.DONE, "", seen.report.message or f"the node is of {seen.target}", asked=None)
        since = time_of(seen.status.state_since)
        if since is not None and self.clock.now() - since > VERIFY:
            message = f"{missing} {exact_duration(int(VERIFY.total_seconds()))} after the host was done; it stays cordoned: see `ckp host describe {host.name}`"
            return self._to(seen, S.FAILED, Reason.NODE_NOT_READY, message, asked="prepare")
        return self._stay(seen, Reason.NODE_NOT_READY, missing)

    async def _late(self, seen: _Pass) -> Step:
        """The node was not Ready in time. It may be so later, and takes pods again then."""
        try:
            step = await self._verify(seen)
        except KubeError as error:
            if error.code != 0:
                raise
            return Step(after=POLL)
        done = step.status is not None and step.status["upgrade"]["state"] == S.DONE
        return step if done else Step(after=POLL)

    def _unverified(self, node: Obj, seen: _Pass) -> str:
        version = str(((node.get("status") or {}).get("nodeInfo") or {}).get("kubeletVersion") or "none")
        stamp = self.releases.get(seen.target).stamp
        if version != stamp:
            return f"the kubelet of node {seen.host.name} says {version}, and {stamp} is expected"
        return "" if is_true(node, ConditionType.READY) else f"node {seen.host.name} is not Ready"

    # -- what they share -------------------------------------------------------------------------------------------------

    async def _node(self, client: Kube, seen: _Pass) -> Obj | None:
        """The node of this very machine."""
        node = await client.get(NODE, seen.host.name)
        return node if node is not None and (node.get("spec") or {}).get("providerID") == seen.machine.spec.provider_id else None

    async def _uncordon(self, seen: _Pass) -> str:
        """Let the node take pods again if it was cordoned for the upgrade, unless a person has asked for a drain meanwhile. Returns why it is not possible."""
        async with workload_cluster(self.kube, seen.host.namespace, seen.cluster, self.clients) as client:
            if client is None:
                return f"cluster {seen.cluster} has no kubeconfig"
            node = await self._node(client, seen)
            if node is None or UPGRADE_CORDON_ANNOTATION not in (node["metadata"].get("annotations") or {}):
                return ""
            patch: Obj = {"metadata": {"annotations": {UPGRADE_CORDON_ANNOTATION: None}}}
            if not seen.host.spec.drain:
                patch["spec"] = {"unschedulable": None}
            await client.merge(NODE, seen.host.name, None, patch)
        return ""

    @staticmethod
    def _offline(host: ByoHost) -> str:
        connection = host.condition(ConditionType.AGENT_CONNECTED)
        return f"host {host.name} is offline since {connection.last_transition_time or 'an unknown time'}" if connection.is_false else ""

    def _asked(self, seen: _Pass, phase: str | None) -> NodeUpgrade | None:
        """What the host is asked for; None while that can't be: an agent that does not know it, no bundle."""
        if phase is None or not seen.status.request or UPGRADE_NODE not in seen.host.status.facts.features or self._missing(seen):
            return None
        bundle = self.releases.get(seen.target).bundles[candidate(seen.host).system].model_copy(update={"registry_ca": self.releases.registry_ca})
        return NodeUpgrade.model_validate({"request": seen.status.request, "release": seen.target, "bundle": bundle, "phase": phase})

    def _stay(self, seen: _Pass, reason: str, message: str, *, state: str = "") -> Step:
        """In this state, with what it waits for."""
        status = seen.status.model_copy(update={"state": state or seen.status.state, "reason": str(reason), "message": message})
        phase = "install" if status.state in (S.INSTALLING, S.VERIFYING) else "prepare"
        return Step(self._asked(seen, phase), self._changed(replace(seen, status=status), seen.machine.status.upgrade), POLL)

    def _to(self, seen: _Pass, state: NodeUpgradeState, reason: str, message: str, *, asked: str | None) -> Step:
        """Into another state."""
        now = rfc3339(self.clock.now())
        more = {"finished_at": now} if state in FINAL else {}
        status = seen.status.model_copy(update={"state": str(state), "reason": str(reason), "message": message, "state_since": now, **more})
        return Step(self._asked(seen, asked), self._changed(replace(seen, status=status), seen.machine.status.upgrade), None if state in FINAL else 1.0)

    @staticmethod
    def _changed(seen: _Pass, before: NodeUpgradeStatus) -> Obj | None:
        """The status to write if it differs. What is empty is taken away: an empty text is no time."""
        if seen.status == before:
            return None
        names = ((str(info.alias), name) for name, info in NodeUpgradeStatus.model_fields.items())
        return {"upgrade": {alias: str(getattr(seen.status, name)) or None for alias, name in names}}


def upgraded(machine: ByoMachine, current: str, now: datetime) -> Condition | None:
    """The condition NodeUpgraded: whether the node is of the release that it is asked to be of. None where nobody has asked for any.

    Args:
        machine: with the status of this pass.
        current: the release that the node is of.
    """
    kind, status, wanted = ConditionType.NODE_UPGRADED, machine.status.upgrade, machine.spec.kubernetes_version
    if not wanted and not machine.condition(kind).type:
        return None
    busy = status.state in BUSY or (status.state == S.FAILED and status.version == current)
    if wanted in ("", current) and not busy:
        return make_condition(kind, True, now)
    failed = status.state == S.FAILED
    reason = status.reason or status.state or Reason.WAITING
    message = status.message or f"the node is of {current}, and is to be of {wanted or status.version}"
    return make_condition(kind, False, now, reason=reason, message=message, severity="Error" if failed else "Info")
