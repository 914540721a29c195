"""What operators do with a host: label, taint, cordon, drain, upgrade its agent, revoke its certificate, take it out of its cluster."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from ckp.api import kinds, names
from ckp.api.compass.hosts import AgentRequest, HostChange, HostView, LeaveRequest
from ckp.clients.kube import Kube, KubeError, Obj
from ckp.compass.access.kube_errors import translate_kube_errors
from ckp.compass.access.projects import Namespaces
from ckp.compass.hosts.hosts import Hosts, is_claimed
from ckp.compass.identity import Caller, ProjectRef
from ckp.compass.releases import Releases
from ckp.compass.store.database import Database
from ckp.kits.clock import Clock, rfc3339
from ckp.kits.errors import Conflict, InvalidInput
from ckp.rules.certificates import certificate_serial, revoked_serial
from ckp.rules.claims import of_users

DELETE_FIRST = "cluster.x-k8s.io/delete-machine"
"""Annotation of a Machine: when its MachineDeployment shrinks, this one goes first (Cluster API: MachineSet delete policy)."""
SHRUNK_FOR = f"{names.CKP}/shrunk-for"
"""Annotation of a MachineDeployment: the last Machine that it was made smaller for, so that asking twice makes it smaller once."""
_KEY = re.compile(r"((?=[^/]{1,253}/)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")


@translate_kube_errors
class HostOperations:
    """Use cases around one host at a time."""

    def __init__(self, database: Database, kube: Kube, namespaces: Namespaces, hosts: Hosts, releases: Releases, clock: Clock) -> None:
        self._database = database
        self._releases = releases
        self._kube = kube
        self._namespaces = namespaces
        self._hosts = hosts
        self._clock = clock

    async def change(self, caller: Caller, project: ProjectRef, name: str, change: HostChange) -> HostView:
        """Apply what the change sets, field by field; one that is refused leaves those before it applied."""
        if change.labels is not None:
            await self.label(caller, project, name, change.labels)
        if change.taints is not None:
            await self.taint(caller, project, name, change.taints)
        if change.cordoned is not None:
            await self.cordon(caller, project, name, cordoned=change.cordoned)
        if change.drained is not None:
            await self.drain(caller, project, name, drained=change.drained)
        return await self._hosts.get(project, name)

    async def label(self, caller: Caller, project: ProjectRef, name: str, changes: Mapping[str, str | None]) -> HostView:
        """Set labels (None removes one). Clusters can select hosts by them, and a node of the host carries them too. Groups cannot be set this way."""
        for key, value in changes.items():
            if not _KEY.fullmatch(key) or not _VALUE.fullmatch(value or ""):
                raise InvalidInput(f"labels: {key}={value} is not a label", resolution="use [prefix/]name=value as in Kubernetes, at most 63 characters each")
            if not of_users(key):
                raise InvalidInput(f"labels: {key} cannot be set by users", resolution="host groups have a command of their own: ckp hostgroup add")
        await self._hosts.require(project, name)
        await self._kube.merge(kinds.BYO_HOST, name, project.namespace, {"metadata": {"labels": dict(changes)}})
        await self._note(caller, project, "host.label", name, dict(changes))
        return await self._hosts.get(project, name)

    async def taint(self, caller: Caller, project: ProjectRef, name: str, taints: Sequence[str]) -> HostView:
        """Set the taints (key=value:effect) of the host's nodes, in place of those that were set before; taints that others put on a node stay."""
        for taint in taints:
            match = re.fullmatch(r"([^=:]+)(?:=([^=:]*))?:(NoSchedule|PreferNoSchedule|NoExecute)", taint)
            if match is None or not _KEY.fullmatch(match[1]) or not _VALUE.fullmatch(match[2] or ""):
                raise InvalidInput(f"taints: {taint!r} is not a taint", resolution="write KEY=VALUE:EFFECT with NoSchedule, PreferNoSchedule or NoExecute")
        await self._hosts.require(project, name)
        await self._kube.merge(kinds.BYO_HOST, name, project.namespace, {"spec": {"taints": list(dict.fromkeys(taints)) or None}})
        await self._note(caller, project, "host.taint", name, {"taints": list(taints)})
        return await self._hosts.get(project, name)

    async def cordon(self, caller: Caller, project: ProjectRef, name: str, *, cordoned: bool) -> HostView:
        """Set whether clusters are kept from claiming it. A cluster that has it already keeps it."""
        host = await self._hosts.require(project, name)
        if bool((host.get("spec") or {}).get("cordoned")) != cordoned:
            await self._kube.merge(kinds.BYO_HOST, name, project.namespace, {"spec": {"cordoned": cordoned}})
            await self._note(caller, project, "host.cordon" if cordoned else "host.uncordon", name)
        return await self._hosts.get(project, name)

    async def drain(self, caller: Caller, project: ProjectRef, name: str, *, drained: bool) -> HostView:
        """Evict the pods of the host's node and keep others away, or allow pods again. It stays in its cluster.

        Raises:
            Conflict: it is in no cluster.
        """
        host = await self._hosts.require(project, name)
        if drained and not is_claimed(host):
            raise Conflict(f"host {name} is in no cluster, so there is nothing to drain", resolution=f"ckp host cordon {name} keeps it from being claimed")
        if bool((host.get("spec") or {}).get("drain")) != drained:
            await self._kube.merge(kinds.BYO_HOST, name, project.namespace, {"spec": {"drain": rfc3339(self._clock.now()) if drained else None}})
            await self._note(caller, project, "host.drain" if drained else "host.undrain", name)
        return await self._hosts.get(project, name)

    async def upgrade_agent(self, caller: Caller, project: ProjectRef, name: str, request: AgentRequest) -> HostView:
        """Set the version of the agent that a host is to run; an empty one withdraws that. A host whose new agent does not report returns to the old one.

        Raises:
            InvalidInput: no registry holds this version.
        """
        version, known = request.version, self._releases.agents()
        if version and version not in known:
            raise InvalidInput(f"version: there is no agent {version!r}", resolution=f"take one of: {', '.join(known) or 'none is known'}")
        host = await self._hosts.require(project, name)
        if str((host.get("spec") or {}).get("agentVersion") or "") != version:
            await self._kube.merge(
                kinds.BYO_HOST, name, project.namespace, {"spec": {"agentVersion": version or None, "agentConfirmSeconds": request.confirm_seconds or None}}
            )
            await self._note(caller, project, "host.upgrade-agent", name, {"version": version})
        return await self._hosts.get(project, name)

    async def revoke(self, caller: Caller, project: ProjectRef, name: str) -> HostView:
        """Void the host's certificate at once. It stays a host and in its cluster; its machine comes back by enrolling again."""
        await self._hosts.require(project, name)
        serials: list[str] = []

        # Only on top of what was read: meanwhile the host may use a renewed certificate for the first time, which would then stay valid.
        def voided(host: Obj) -> Obj | None:
            serial = certificate_serial(host)
            if not serial:
                raise Conflict(f"host {name} has no certificate")
            if revoked_serial(host) == serial:
                return None
            serials.append(serial)
            return {"spec": {"revokedSerial": serial}}

        await self._kube.change(kinds.BYO_HOST, name, project.namespace, voided)
        if serials:
            await self._note(caller, project, "host.revoke", name, {"serial": serials[-1]})
        return await self._hosts.get(project, name)

    async def leave(self, caller: Caller, project: ProjectRef, name: str, request: LeaveRequest) -> HostView:
        """Take the host out of its cluster: it is drained, cleaned, and cordoned until it is uncordoned.

        Without `shrink` the cluster claims another free host instead. `force` is for a host that cannot be reached: it cleans itself when it comes back.

        Raises:
            Conflict: no cluster holds it, or the machine that does is not one of a MachineDeployment.
        """
        host = await self._hosts.require(project, name)
        if not is_claimed(host):
            raise Conflict(f"host {name} is in no cluster", resolution=f"to remove it from CKP altogether: ckp host delete {name}")
        byo = str(host["spec"]["machineRef"]["name"])
        machine = await self._machine_of(project, byo)
        if machine is None:
            raise Conflict(f"host {name} is held by {byo}, which has no Machine", resolution="it is being released already: try again in a moment")
        await self.cordon(caller, project, name, cordoned=True)
        machine_name = str(machine["metadata"]["name"])
        marks = {**({DELETE_FIRST: "true"} if request.shrink else {}), **(names.FORCED if request.force else {})}
        if marks:
            await self._kube.merge(kinds.MACHINE, machine_name, project.namespace, {"metadata": {"annotations": marks}})
        if request.force:
            await self._kube.merge(kinds.BYO_MACHINE, byo, project.namespace, {"metadata": {"annotations": {names.FORCE_RELEASE_ANNOTATION: "true"}}})
        if request.shrink:
            await self._shrink(project, machine)
        else:
            await self._kube.delete(kinds.MACHINE, machine_name, project.namespace)
        await self._note(caller, project, "host.leave", name, {"machine": machine_name, "shrink": request.shrink, "force": request.force})
        return await self._hosts.get(project, name)

    async def _shrink(self, project: ProjectRef, machine: Obj) -> None:
        name = (machine["metadata"].get("labels") or {}).get(names.DEPLOYMENT_NAME_LABEL, "")
        deployment = await self._kube.get(kinds.MACHINE_DEPLOYMENT, name, project.namespace) if name else None
        if deployment is None:
            raise Conflict(f"machine {machine['metadata']['name']} belongs to no MachineDeployment", resolution="remove it without --shrink")
        machine_name = str(machine["metadata"]["name"])
        if machine["metadata"].get("deletionTimestamp") or (deployment["metadata"].get("annotations") or {}).get(SHRUNK_FOR) == machine_name:
            return  # asked for before: it was scaled down then
        replicas = int(deployment["spec"].get("replicas") or 0)
        # On top of the version that was read: of two requests at once one is refused, so that a cluster never shrinks by two for one host.
        meta = {"resourceVersion": deployment["metadata"]["resourceVersion"], "annotations": {SHRUNK_FOR: machine_name}}
        patch = {"metadata": meta, "spec": {"replicas": max(0, replicas - 1)}}
        try:
            await self._kube.merge(kinds.MACHINE_DEPLOYMENT, name, project.namespace, patch)
        except KubeError as error:
            if error.reason == "Conflict":
                raise Conflict(f"the size of {name} was changed at the same moment", resolution="check its size, and try again") from error
            raise

    async def _machine_of(self, project: ProjectRef, byo_machine: str) -> Obj | None:
        for machine in await self._namespaces.list(kinds.MACHINE, project):
            reference = machine["spec"].get("infrastructureRef") or {}
            if reference.get("kind") == "ByoMachine" and reference.get("name") == byo_machine:
                return machine
        return None

    async def _note(self, caller: Caller, project: ProjectRef, action: str, name: str, detail: dict[str, object] | None = None) -> None:
        async with self._database.unit() as unit:
            unit.audit(caller, project, action, name, detail)
