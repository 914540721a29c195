"""ByoMachine: claims a host for a Cluster API Machine, tells it what to be, and gives it back clean.

Contract (InfraMachine): `spec.providerID`, `status.ready`, `status.addresses`, `Ready`; provisioning waits for the cluster's
infrastructure and for the bootstrap data, deletion waits for neither.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass

from ckp.api.host_protocol import Desired, Membership
from ckp.api.kinds import BYO_HOST, BYO_MACHINE, KUBEADM_CONFIG, MACHINE, SECRET
from ckp.api.names import BYOMACHINE_FINALIZER, CKP, FORCE_RELEASE_ANNOTATION, host_of, provider_id
from ckp.api.platform import InstalledRelease, Releases
from ckp.clients.kube import Kube, KubeError, Obj
from ckp.controllers.providers.byo.bootstrap import JOIN_CONFIG, BootstrapData, parse_cloud_config
from ckp.controllers.providers.byo.desired import DesiredStore
from ckp.controllers.scope import Scope, deleting, owner, paused
from ckp.controllers.workload import Connect, connect, guest, remove_stale_node
from ckp.kits.clock import Clock, rfc3339
from ckp.kits.errors import CkpError
from ckp.rules.certificates import agent_of
from ckp.rules.claims import Wanted, candidate, choose_host, user_labels
from ckp.rules.conditions import Condition, Severity, get_condition, is_true, make_condition
from ckp.runtime.controller import Result
from ckp.runtime.informer import Informer

NUDGE = f"{CKP}/looked-for-bootstrap-data"
NUDGE_SECONDS = 3.0
NODE_IMAGES = ("pause", "cilium", "konnectivity-agent", "coredns")
"""What a node of a managed cluster runs first; fetched while the control plane comes up."""
POLL = 15.0
HOST_LOST = "UpdateError"
"""Of Cluster API's MachineStatusError (errors/machines.go, v1.7.7): what infrastructure providers say of an instance that is gone."""


@dataclass
class ByoMachineReconciler:
    """Brings one ByoMachine towards a joined node, or its host back to freedom."""

    kube: Kube
    clock: Clock
    hosts: Informer
    releases: Releases
    connect: Connect = connect

    async def reconcile(self, namespace: str, name: str) -> Result:
        """One pass."""
        obj = await self.kube.get(BYO_MACHINE, name, namespace)
        if obj is None:
            return Result()
        scope = Scope(self.kube, self.clock, BYO_MACHINE, obj)
        if paused(await scope.cluster(), obj):
            return Result()
        try:
            return await (self._release(scope) if deleting(obj) else self._provision(scope))
        except CkpError as error:
            if not isinstance(error, KubeError) and not deleting(obj):  # nothing that passes by itself: people must see it
                scope.conditions = [
                    make_condition("BYOHostReady", False, self.clock.now(), reason="CannotProvision", message=error.brief, severity="Error"),
                ]
            raise
        finally:
            await scope.close()

    async def _provision(self, scope: Scope) -> Result:
        """Owner, finalizer, cluster, bootstrap data, host, desired state, observed state: in this order."""
        reference = owner(scope.obj, "Machine")
        machine = await self.kube.get(MACHINE, str(reference["name"]), scope.namespace) if reference else None
        if machine is None:
            return self._wait(scope, "WaitingForMachineOwner", "Cluster API has not yet linked it to a Machine")
        await scope.add_finalizer(BYOMACHINE_FINALIZER)
        cluster = await scope.cluster()
        if not cluster or not (cluster.get("status") or {}).get("infrastructureReady"):
            return self._wait(scope, "WaitingForClusterInfrastructure", "the cluster's infrastructure is not ready")
        # What it holds it keeps, whatever became of the labels: a second host would be one too many.
        host = await self._held(scope, certain=bool(scope.obj["spec"].get("providerID")))
        if host is None and scope.obj["spec"].get("providerID"):
            return self._fail(scope)
        release = self.releases.get(machine["spec"]["version"])
        host = host or await self._claim(scope, release)
        if host is None:
            return Result(after=POLL)
        # Without join data the host prepares itself meanwhile; with it, the same membership goes on to the join.
        secret_name = (machine["spec"].get("bootstrap") or {}).get("dataSecretName")
        membership = await self._membership(scope, cluster, machine, host, release, str(secret_name or ""))
        if membership.files and not (scope.obj.get("status") or {}).get("ready") and (problem := await self._clear_node(scope, cluster, membership)):
            return self._wait(scope, "ClusterNotReached", problem)
        desired = await DesiredStore(self.kube).write(scope.namespace, host["metadata"]["name"], membership)
        if not await self._is_there(scope, host, desired):
            return self._wait(scope, "HostGone", f"host {host['metadata']['name']} was removed")
        await self._observe(scope, host, desired, membership)
        return Result(after=POLL) if secret_name else await self._wait_for_bootstrap(scope, cluster, machine)

    async def _clear_node(self, scope: Scope, cluster: Obj, membership: Membership) -> str:
        """Before a host is given join data: no Node of an earlier machine may stand under its name. Returns why that can't be seen to now; "" if it was."""
        told = (await DesiredStore(self.kube).read(scope.namespace, membership.node_name)).membership
        if told is not None and told.files and told.provider_id == membership.provider_id:
            return ""  # it is joining already
        try:
            async with guest(self.kube, scope.namespace, str(cluster["metadata"]["name"]), self.connect) as client:
                if client is not None:
                    await remove_stale_node(client, scope.namespace, membership.node_name, membership.provider_id)
        except KubeError as error:
            return error.brief
        return ""

    async def _is_there(self, scope: Scope, host: Obj, desired: Desired) -> bool:
        """Whether the host is still the one that we wrote to. What was written to one that was removed meanwhile is taken back."""
        told = (host.get("status") or {}).get("observed") or {}
        if told.get("generation") == desired.generation:
            return True  # nothing new was written
        name = host["metadata"]["name"]
        now = await self.kube.get(BYO_HOST, name, scope.namespace)
        if now is not None and now["metadata"]["uid"] == host["metadata"]["uid"] and not deleting(now):
            return True
        if now is None or deleting(now):
            await DesiredStore(self.kube).remove(scope.namespace, name)
        return False

    def _fail(self, scope: Scope) -> Result:
        """It was the node of a host that it holds no longer. It takes no second one: that would be another node under this one's name.

        It fails for good instead (contract: failureReason and failureMessage are terminal, and go up to the Machine), and whoever owns the
        Machine replaces it: a MachineHealthCheck does so at once.
        """
        message = f"host {host_of(scope.obj['spec']['providerID'])}, whose node it was, was removed or taken from it"
        scope.conditions = [make_condition("BYOHostReady", False, self.clock.now(), reason="HostLost", message=message, severity="Error")]
        scope.status |= {"ready": False, "failureReason": HOST_LOST, "failureMessage": message}
        return Result()

    def _wait(self, scope: Scope, reason: str, message: str) -> Result:
        scope.conditions = [make_condition("BYOHostReady", False, self.clock.now(), reason=reason, message=message)]
        scope.status["ready"] = False
        return Result(after=POLL)

    async def _wait_for_bootstrap(self, scope: Scope, cluster: Obj, machine: Obj) -> Result:
        """Before the control plane is up there is nothing to do; afterwards the data must come within seconds.

        kubeadm's bootstrap controller v1.7.7 looks again only after a minute when two of its workers open the connection to a new
        cluster at the same time (remote.ErrClusterLocked); any change of its object makes it look at once.
        """
        if not is_true(cluster, "ControlPlaneInitialized"):
            return Result(after=POLL)
        reference = (machine["spec"].get("bootstrap") or {}).get("configRef") or {}
        if reference.get("kind") == KUBEADM_CONFIG.kind:
            patch = {"metadata": {"annotations": {NUDGE: rfc3339(self.clock.now())}}}
            await self.kube.merge(KUBEADM_CONFIG, str(reference["name"]), scope.namespace, patch)
        return Result(after=NUDGE_SECONDS)

    async def _claim(self, scope: Scope, release: InstalledRelease) -> Obj | None:
        """A free host made ours, with optimistic locking: of two machines that want it, one gets a conflict and chooses again."""
        uid = scope.obj["metadata"]["uid"]
        wanted = Wanted.of(scope.obj["spec"], release.name, release.bundles)
        choice = choose_host(map(candidate, self.hosts.all(scope.namespace)), wanted, uid)
        if choice.host:
            # Our copy may be older than our own last claim. Before a host is taken, the API server itself is asked.
            choice = choose_host(map(candidate, await self.kube.list(BYO_HOST, scope.namespace)), wanted, uid)
        if not choice.host:
            self._wait(scope, "NoFreeHost", choice.reason)
            return None
        host = await self.kube.get(BYO_HOST, choice.host, scope.namespace)
        if host is None:
            self._wait(scope, "HostGone", f"host {choice.host} is no more")
            return None
        now = candidate(host)
        if now.claimed_by == uid:
            return host
        if why := wanted.unavailable(now):
            self._wait(scope, "NoFreeHost", f"host {choice.host} is no longer free: {why}")
            return None
        reference = {"apiVersion": BYO_MACHINE.api_version, "kind": BYO_MACHINE.kind, "namespace": scope.namespace, "name": scope.name, "uid": uid}
        host["spec"] = {**(host.get("spec") or {}), "machineRef": reference}
        return await self.kube.replace(host)

    async def _held(self, scope: Scope, *, certain: bool = False) -> Obj | None:
        """The host that this machine holds, as it is now. With `certain` the API server is asked where our copy knows of none."""
        uid = scope.obj["metadata"]["uid"]
        names = [item["metadata"]["name"] for item in self.hosts.all(scope.namespace) if candidate(item).claimed_by == uid]
        for name in names:
            host = await self.kube.get(BYO_HOST, name, scope.namespace)
            if host is not None and candidate(host).claimed_by == uid:  # our copy may be old: it may be another machine's by now
                return host
        if certain:
            found = (item["metadata"]["name"] for item in await self.kube.list(BYO_HOST, scope.namespace) if candidate(item).claimed_by == uid)
            if name := next(found, ""):
                return await self.kube.get(BYO_HOST, name, scope.namespace)
        return None

    async def _membership(self, scope: Scope, cluster: Obj, machine: Obj, host: Obj, release: InstalledRelease, secret_name: str) -> Membership:
        data = await self._bootstrap_data(scope.namespace, secret_name) if secret_name else None
        target = candidate(host).system
        if target not in release.bundles:
            raise CkpError(f"there is no bundle of {release.name} for {target or 'an unknown system'}, which host {host['metadata']['name']} runs")
        host_name = host["metadata"]["name"]
        return Membership(
            cluster=f"{scope.namespace}/{cluster['metadata']['name']}",
            machine=machine["metadata"]["name"],
            node_name=host_name,
            provider_id=provider_id(scope.namespace, host_name, scope.obj["metadata"]["uid"]),
            release=release.name,
            bundle=release.bundles[target].model_copy(update={"registry_ca": self.releases.registry_ca}),
            files=data.files if data else (),
            join_config=JOIN_CONFIG if data else "",
            pre_commands=data.pre_commands if data else (),
            post_commands=data.post_commands if data else (),
            images=tuple(release.image(name) for name in NODE_IMAGES if name in release.images),
            sandbox_image=release.image("pause"),
            registry=release.registry.partition("/")[0],
            registry_ca=self.releases.registry_ca,
            node_labels=tuple(f"{key}={value}" for key, value in sorted(user_labels(host["metadata"].get("labels") or {}).items())),
            node_taints=tuple(str(taint) for taint in host["spec"].get("taints") or ()),
        )

    async def _bootstrap_data(self, namespace: str, name: str) -> BootstrapData:
        secret = await self.kube.get(SECRET, name, namespace)
        if secret is None:
            raise CkpError(f"the bootstrap data {name} is not there")
        return parse_cloud_config(base64.b64decode(secret["data"]["value"]).decode())

    async def _observe(self, scope: Scope, host: Obj, desired: Desired, membership: Membership) -> None:
        """What the host says about this very desired state, as the machine's status."""
        observed = (host.get("status") or {}).get("observed") or {}
        about = (observed.get("generation"), observed.get("cluster"), observed.get("machine"))
        current = about == (desired.generation, membership.cluster, membership.machine)
        phase = observed.get("phase", "") if current else ""
        name = host["metadata"]["name"]
        scope.status["hostRef"] = {"name": name}
        if phase != "Joined":
            failed = phase == "Failed"
            waiting = {"": f"waiting for host {name} to take it up", "Prepared": f"host {name} is prepared, and waits for the control plane's join data"}
            message = observed.get("message") or waiting.get(phase, f"host {name}: {phase}")
            reason = observed.get("reason") or ("InstallationFailed" if failed else phase or "WaitingForHost")
            severity: Severity = "Error" if failed else "Info"
            scope.conditions = [make_condition("BYOHostReady", False, self.clock.now(), reason=reason, message=message, severity=severity)]
            scope.status["ready"] = bool((scope.obj.get("status") or {}).get("ready"))
            return
        if scope.obj["spec"].get("providerID") != membership.provider_id:
            scope.obj = await self.kube.merge(BYO_MACHINE, scope.name, scope.namespace, {"spec": {"providerID": membership.provider_id}})
        address = ((host["status"].get("facts") or {}).get("default_address")) or agent_of(host).get("address", "")
        scope.status |= {"ready": True, "addresses": [{"type": "InternalIP", "address": address}, {"type": "Hostname", "address": name}]}
        scope.conditions = [self._joined(host, observed)]

    def _joined(self, host: Obj, observed: Obj) -> Condition:
        """A node that has joined is ready infrastructure; what is wrong with it since is said here, and Cluster API shows it at the Machine.

        Whether it is replaced is the MachineHealthCheck's to say, by the node's own condition: an agent that is away harms no pod.
        """
        name, now = host["metadata"]["name"], self.clock.now()
        connection = get_condition(host, "AgentConnected") or {}
        if connection.get("status") == "False":
            message = f"host {name} is offline since {connection.get('lastTransitionTime', 'a while')}"
            return make_condition("BYOHostReady", False, now, reason="HostOffline", message=message, severity="Warning")
        if observed.get("reason"):
            return make_condition("BYOHostReady", False, now, reason=str(observed["reason"]), message=str(observed.get("message", "")), severity="Warning")
        return make_condition("BYOHostReady", True, now)

    async def _release(self, scope: Scope) -> Result:
        """Tell the host to be free, wait until it says that it is, then let it and the machine go."""
        if BYOMACHINE_FINALIZER not in (scope.obj["metadata"].get("finalizers") or []):
            return Result()
        host = await self._held(scope, certain=True)
        if host is None:
            await scope.remove_finalizer(BYOMACHINE_FINALIZER)
            return Result()
        name = host["metadata"]["name"]
        desired = await DesiredStore(self.kube).write(scope.namespace, name, None)
        observed = (host.get("status") or {}).get("observed") or {}
        clean = observed.get("generation") == desired.generation and observed.get("phase") == "Free"
        if not clean and FORCE_RELEASE_ANNOTATION not in (scope.obj["metadata"].get("annotations") or {}):
            message = observed.get("message") or f"host {name} is being reset ({observed.get('phase', 'no report yet')})"
            scope.conditions = [make_condition("BYOHostReady", False, self.clock.now(), reason="Resetting", message=message)]
            return Result(after=POLL)
        host["spec"] = {key: value for key, value in (host.get("spec") or {}).items() if key != "machineRef"}
        await self.kube.replace(host)
        await scope.remove_finalizer(BYOMACHINE_FINALIZER)
        return Result()
