"""ByoMachine: claims a host for a Cluster API Machine, writes its desired state, and releases it clean.

Contract (InfraMachine): `spec.providerID`, `status.ready`, `status.addresses`, `Ready`; provisioning waits for the cluster's
infrastructure and for the bootstrap data, deletion waits for neither.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, field

from ckp.api.compass.clusters import Timeouts
from ckp.api.host_protocol import Desired, Membership
from ckp.api.kinds import BYO_CLUSTER, BYO_HOST, BYO_MACHINE, KUBEADM_CONFIG, MACHINE, SECRET
from ckp.api.names import BYOMACHINE_FINALIZER, CKP, FORCE_RELEASE_ANNOTATION, host_of, provider_id
from ckp.api.objects.byo_cluster import ByoCluster
from ckp.api.objects.byo_host import ByoHost, Observed
from ckp.api.objects.byo_machine import ByoMachine, NodeUpgradeStatus
from ckp.api.platform import InstalledRelease, Releases
from ckp.api.states import ConditionType, HostPhase, Reason
from ckp.clients.kube import Kube, KubeError, Obj
from ckp.controllers.providers.byo.bootstrap import JOIN_CONFIG, BootstrapData, parse_cloud_config
from ckp.controllers.providers.byo.desired import DesiredStore
from ckp.controllers.providers.byo.join_token import JoinTokens
from ckp.controllers.providers.byo.node_upgrade import NodeUpgrades, release_of, upgraded
from ckp.controllers.scope import Scope, deleting, owner, paused
from ckp.controllers.workload import WorkloadClients, remove_stale_node, workload_cluster
from ckp.kits.clock import Clock, exact_duration, rfc3339
from ckp.kits.errors import CkpError
from ckp.rules.claims import Candidate, Wanted, candidate, choose_host, cluster_networks, user_labels
from ckp.rules.conditions import Condition, Severity, is_true, make_condition
from ckp.rules.leaving import looked, overdue
from ckp.runtime.controller import Result
from ckp.runtime.informer import Informer

NUDGE = f"{CKP}/looked-for-bootstrap-data"
NUDGE_SECONDS = 3.0
NODE_IMAGES = ("pause", "cilium", "konnectivity-agent", "coredns", "kubeadm")
"""What a node of a workload cluster runs first; fetched while the control plane comes up. kubeadm's image has the canary's kubectl."""
POLL = 15.0
HOST_LOST = "UpdateError"
"""Of Cluster API's MachineStatusError (errors/machines.go, v1.7.7): what infrastructure providers report for an instance that is gone."""


@dataclass
class ByoMachineReconciler:
    """Brings one ByoMachine towards a joined node, or releases its host."""

    kube: Kube
    clock: Clock
    hosts: Informer
    releases: Releases
    clients: WorkloadClients = field(default_factory=WorkloadClients)
    tokens: JoinTokens = field(init=False)
    upgrades: NodeUpgrades = field(init=False)

    def __post_init__(self) -> None:
        self.tokens = JoinTokens(self.clock)
        self.upgrades = NodeUpgrades(self.kube, self.clock, self.releases, self.clients)

    async def reconcile(self, namespace: str, name: str) -> Result:
        """One pass."""
        obj = await self.kube.get(BYO_MACHINE, name, namespace)
        if obj is None:
            return Result()
        scope = Scope(self.kube, self.clock, BYO_MACHINE, obj)
        if paused(await scope.cluster(), obj):
            return Result()
        async with scope:
            try:
                return await (self._release(scope) if deleting(obj) else self._provision(scope))
            except CkpError as error:
                if not isinstance(error, KubeError) and not deleting(obj):  # it does not pass without a person, who must see it
                    scope.conditions = [
                        make_condition(
                            ConditionType.BYO_HOST_READY, False, self.clock.now(), reason=Reason.CANNOT_PROVISION, message=error.brief, severity="Error"
                        ),
                    ]
                raise

    async def _provision(self, scope: Scope) -> Result:
        """Owner, finalizer, cluster, bootstrap data, host, desired state, observed state: in this order."""
        reference = owner(scope.obj, "Machine")
        machine = await self.kube.get(MACHINE, str(reference["name"]), scope.namespace) if reference else None
        if machine is None:
            return self._wait(scope, Reason.WAITING_FOR_MACHINE_OWNER, "Cluster API has not yet linked it to a Machine")
        if deleting(machine):
            await self._bound(machine)
        if is_true(machine, ConditionType.NODE_HEALTHY) and not ByoMachine.of(scope.obj).status.node_ready_at:
            scope.status["nodeReadyAt"] = rfc3339(self.clock.now())
        await scope.add_finalizer(BYOMACHINE_FINALIZER)
        cluster = await scope.cluster()
        if not cluster or not (cluster.get("status") or {}).get("infrastructureReady"):
            return self._wait(scope, Reason.WAITING_FOR_CLUSTER_INFRASTRUCTURE, "the cluster's infrastructure is not ready")
        # What it holds it keeps, whatever became of the labels: a second host would be one too many.
        was_node = bool(ByoMachine.of(scope.obj).spec.provider_id)
        host = await self._held(scope, certain=was_node)
        if host is None and was_node:
            return self._fail(scope)
        stored = (await DesiredStore(self.kube).read(scope.namespace, host["metadata"]["name"])).membership if host is not None and was_node else None
        release = self.releases.get(release_of(ByoMachine.of(scope.obj), machine, ByoHost.of(host or {}), stored))
        host = host or await self._claim(scope, release, cluster)
        if host is None:
            return Result(after=POLL)
        # Without join data the host prepares itself meanwhile; with it, the same membership goes on to the join.
        secret_name = (machine["spec"].get("bootstrap") or {}).get("dataSecretName")
        membership = await self._membership(scope, cluster, machine, host, release, str(secret_name or ""))
        after = POLL
        if was_node and deleting(machine):  # what was begun ends with the reset; nothing new begins
            membership = membership.model_copy(update={"upgrade": stored.upgrade if stored else None})
        elif was_node:
            step = await self.upgrades.reconcile(scope.obj, ByoHost.of(host), str(cluster["metadata"]["name"]), release.name)
            membership, after = membership.model_copy(update={"upgrade": step.asked}), min(POLL, step.after or POLL)
            scope.status |= step.status or {}
        if membership.files and not ByoMachine.of(scope.obj).status.ready and (problem := await self._clear_node(scope, cluster, membership)):
            return self._wait(scope, Reason.CLUSTER_NOT_REACHED, problem)
        joined = ByoMachine.of(scope.obj).status.ready
        desired = await DesiredStore(self.kube).write(scope.namespace, host["metadata"]["name"], membership, joined=joined)
        if not await self._is_there(scope, host, desired):
            return self._wait(scope, Reason.HOST_GONE, f"host {host['metadata']['name']} was removed")
        await self._observe(scope, ByoHost.of(host), desired, membership, str(machine["spec"]["version"]))
        await self._keep_token(scope, cluster, machine, membership)
        return Result(after=after) if secret_name else await self._wait_for_bootstrap(scope, cluster, machine)

    async def _bound(self, machine: Obj) -> None:
        """A Machine that is being deleted waits for no volume without a limit (those of 0.2.0 have none), and Cluster API sees the end of a timeout in time."""
        patch: Obj = {}
        if "nodeVolumeDetachTimeout" not in machine["spec"]:
            patch["spec"] = {"nodeVolumeDetachTimeout": exact_duration(Timeouts().volume_detach)}
        if overdue(machine, self.clock.now()):
            patch |= looked(self.clock.now())
        if patch:
            await self.kube.merge(MACHINE, machine["metadata"]["name"], machine["metadata"]["namespace"], patch)

    async def _clear_node(self, scope: Scope, cluster: Obj, membership: Membership) -> str:
        """Before a host is given join data: no Node of an earlier machine may exist under its name. Returns why that can't be ensured now; "" if it was."""
        stored = (await DesiredStore(self.kube).read(scope.namespace, membership.node_name)).membership
        if stored is not None and stored.files and stored.provider_id == membership.provider_id:
            return ""  # it is joining already
        try:
            async with workload_cluster(self.kube, scope.namespace, str(cluster["metadata"]["name"]), self.clients) as client:
                if client is not None:
                    await remove_stale_node(client, scope.namespace, membership.node_name, membership.provider_id)
        except KubeError as error:
            return error.brief
        return ""

    async def _keep_token(self, scope: Scope, cluster: Obj, machine: Obj, membership: Membership) -> None:
        """For a host that has not joined yet: its token is there, or is made again, and that is said."""
        has_node = bool((machine.get("status") or {}).get("nodeRef"))
        if scope.status.get("ready") or not self.tokens.is_due(ByoMachine.of(scope.obj), membership, has_node):
            return
        try:
            async with workload_cluster(self.kube, scope.namespace, str(cluster["metadata"]["name"]), self.clients) as client:
                renewed = client is not None and await self.tokens.restore(client, membership)
        except KubeError:
            return  # looked at again soon; what the host reports meanwhile is the better message
        if renewed:
            message = f"the join token of host {membership.node_name} had expired, and was made again: the host goes on with its next try"
            scope.conditions = [make_condition(ConditionType.BYO_HOST_READY, False, self.clock.now(), reason=Reason.JOIN_TOKEN_RENEWED, message=message)]

    async def _is_there(self, scope: Scope, host: Obj, desired: Desired) -> bool:
        """Whether the host is still the one that we wrote to. What was written to one that was removed meanwhile is withdrawn."""
        if ByoHost.of(host).status.observed.generation == desired.generation:
            return True  # nothing new was written
        name = host["metadata"]["name"]
        now = await self.kube.get(BYO_HOST, name, scope.namespace)
        if now is not None and now["metadata"]["uid"] == host["metadata"]["uid"] and not deleting(now):
            return True
        if now is None or deleting(now):
            await DesiredStore(self.kube).remove(scope.namespace, name)
        return False

    def _fail(self, scope: Scope) -> Result:
        """It was the node of a host that it no longer holds. It does not claim a second one: that would be another node under this one's name.

        It fails for good instead (contract: failureReason and failureMessage are terminal, and are copied to the Machine), and the owner of the
        Machine replaces it: a MachineHealthCheck does so at once.
        """
        message = f"host {host_of(ByoMachine.of(scope.obj).spec.provider_id)}, whose node it was, was removed or taken from it"
        scope.conditions = [make_condition(ConditionType.BYO_HOST_READY, False, self.clock.now(), reason=Reason.HOST_LOST, message=message, severity="Error")]
        scope.status |= {"ready": False, "failureReason": HOST_LOST, "failureMessage": message}
        return Result()

    def _wait(self, scope: Scope, reason: str, message: str) -> Result:
        scope.conditions = [make_condition(ConditionType.BYO_HOST_READY, False, self.clock.now(), reason=reason, message=message)]
        scope.status["ready"] = False
        return Result(after=POLL)

    async def _wait_for_bootstrap(self, scope: Scope, cluster: Obj, machine: Obj) -> Result:
        """Before the control plane is up there is nothing to do; afterwards the data must come within seconds.

        kubeadm's bootstrap controller v1.7.7 retries only after a minute when two of its workers open the connection to a new
        cluster at the same time (remote.ErrClusterLocked); any change of its object makes it reconcile at once.
        """
        if not is_true(cluster, ConditionType.CONTROL_PLANE_INITIALIZED):
            return Result(after=POLL)
        reference = (machine["spec"].get("bootstrap") or {}).get("configRef") or {}
        if reference.get("kind") == KUBEADM_CONFIG.kind:
            patch = {"metadata": {"annotations": {NUDGE: rfc3339(self.clock.now())}}}
            await self.kube.merge(KUBEADM_CONFIG, str(reference["name"]), scope.namespace, patch)
        return Result(after=NUDGE_SECONDS)

    async def _claim(self, scope: Scope, release: InstalledRelease, cluster: Obj) -> Obj | None:
        """A free host made ours, with optimistic locking: of two machines that want it, one gets a conflict and chooses again."""
        uid = scope.obj["metadata"]["uid"]
        wanted = Wanted.of(ByoMachine.of(scope.obj).spec, release.name, release.bundles, cluster_networks(cluster))
        choice = choose_host(map(_candidate, self.hosts.all(scope.namespace)), wanted, uid)
        if choice.host:
            # Our copy may be older than our own last claim. Before a host is taken, the API server itself is asked.
            choice = choose_host(map(_candidate, await self.kube.list(BYO_HOST, scope.namespace)), wanted, uid)
        if not choice.host:
            self._wait(scope, Reason.NO_FREE_HOST, choice.reason)
            return None
        host = await self.kube.get(BYO_HOST, choice.host, scope.namespace)
        if host is None:
            self._wait(scope, Reason.HOST_GONE, f"host {choice.host} no longer exists")
            return None
        now = _candidate(host)
        if now.claimed_by == uid:
            return host
        if why := wanted.unavailable(now):
            self._wait(scope, Reason.NO_FREE_HOST, f"host {choice.host} is no longer free: {why}")
            return None
        reference = {"apiVersion": BYO_MACHINE.api_version, "kind": BYO_MACHINE.kind, "namespace": scope.namespace, "name": scope.name, "uid": uid}
        host["spec"] = {**(host.get("spec") or {}), "machineRef": reference}
        return await self.kube.replace(host)

    async def _held(self, scope: Scope, *, certain: bool = False) -> Obj | None:
        """The host that this machine holds, as it is now. With `certain` the API server is asked if our copy has none."""
        uid = scope.obj["metadata"]["uid"]
        names = [item["metadata"]["name"] for item in self.hosts.all(scope.namespace) if _holder(item) == uid]
        for name in names:
            host = await self.kube.get(BYO_HOST, name, scope.namespace)
            if host is not None and _holder(host) == uid:  # our copy may be old: it may be another machine's by now
                return host
        if certain:
            found = (item["metadata"]["name"] for item in await self.kube.list(BYO_HOST, scope.namespace) if _holder(item) == uid)
            if name := next(found, ""):
                return await self.kube.get(BYO_HOST, name, scope.namespace)
        return None

    async def _membership(self, scope: Scope, cluster: Obj, machine: Obj, host: Obj, release: InstalledRelease, secret_name: str) -> Membership:
        data = await self._bootstrap_data(scope.namespace, secret_name, str(host["metadata"]["name"])) if secret_name else None
        found = ByoHost.of(host)
        host_name, target = found.name, candidate(found).system
        if target not in release.bundles:
            raise CkpError(f"there is no bundle of {release.name} for {target or 'an unknown system'}, which host {host_name} runs")
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
            node_labels=tuple(f"{key}={value}" for key, value in sorted(user_labels(found.metadata.labels).items())),
            node_taints=found.spec.taints,
            image_fetch_seconds=await self._image_fetch_seconds(scope, cluster),
        )

    async def _image_fetch_seconds(self, scope: Scope, cluster: Obj) -> int:
        """As the ByoCluster says now. 0, the agent's default, where it says nothing, and for a host that has fetched its images long ago."""
        name = ((cluster.get("spec") or {}).get("infrastructureRef") or {}).get("name")
        if not name or ByoMachine.of(scope.obj).status.ready:
            return 0
        found = await self.kube.get(BYO_CLUSTER, str(name), scope.namespace)
        return ByoCluster.of(found).spec.image_fetch_seconds if found else 0

    async def _bootstrap_data(self, namespace: str, name: str, node_name: str) -> BootstrapData:
        secret = await self.kube.get(SECRET, name, namespace)
        if secret is None:
            raise CkpError(f"the bootstrap data {name} does not exist")
        return parse_cloud_config(base64.b64decode(secret["data"]["value"]).decode(), node_name)

    async def _observe(self, scope: Scope, host: ByoHost, desired: Desired, membership: Membership, version: str) -> None:
        """What the host reports of this very desired state, as the machine's status."""
        observed, machine = host.status.observed, ByoMachine.of(scope.obj)
        about = (observed.generation, observed.cluster, observed.machine)
        phase = observed.phase if about == (desired.generation, membership.cluster, membership.machine) else ""
        scope.status["hostRef"] = {"name": host.name}
        if machine.spec.provider_id and (condition := upgraded(_with_status(scope), membership.release, self.clock.now())):
            scope.notes = [condition]
        if phase != HostPhase.JOINED:
            failed = phase == HostPhase.FAILED
            waiting = {
                "": f"waiting for host {host.name} to start on it",
                HostPhase.PREPARED: f"host {host.name} is prepared, and waits for the control plane's join data",
            }
            message = observed.message or waiting.get(phase, f"host {host.name}: {phase}")
            reason = observed.reason or (Reason.INSTALLATION_FAILED if failed else phase or Reason.WAITING_FOR_HOST)
            severity: Severity = "Error" if failed else "Info"
            scope.conditions = [make_condition(ConditionType.BYO_HOST_READY, False, self.clock.now(), reason=reason, message=message, severity=severity)]
            scope.status["ready"] = machine.status.ready
            return
        if machine.spec.provider_id != membership.provider_id:
            scope.obj = await self.kube.merge(BYO_MACHINE, scope.name, scope.namespace, {"spec": {"providerID": membership.provider_id}})
        address = host.status.facts.default_address or host.status.agent.address
        scope.status |= {"ready": True, "addresses": [{"type": "InternalIP", "address": address}, {"type": "Hostname", "address": host.name}]}
        scope.conditions = [self._joined(host, observed, membership, "" if machine.spec.kubernetes_version else version)]

    def _joined(self, host: ByoHost, observed: Observed, membership: Membership, version: str) -> Condition:
        """A node that has joined is ready infrastructure; problems since then are reported here, and Cluster API shows them at the Machine.

        Whether it is replaced is for the MachineHealthCheck to decide, by the node's own condition: an agent that is offline harms no pod.
        """
        now, kind = self.clock.now(), ConditionType.BYO_HOST_READY
        connection = host.condition(ConditionType.AGENT_CONNECTED)
        if connection.is_false:
            message = f"host {host.name} is offline since {connection.last_transition_time or 'an unknown time'}"
            return make_condition(kind, False, now, reason=Reason.HOST_OFFLINE, message=message, severity="Warning")
        if observed.reason:
            return make_condition(kind, False, now, reason=observed.reason, message=observed.message, severity="Warning")
        if version not in ("", membership.release):
            message = (
                f"the Machine is of {version}, and its node of {membership.release}: to upgrade it in place, set spec.kubernetesVersion of this ByoMachine"
            )
            return make_condition(kind, False, now, reason=Reason.UPGRADE_NOT_REQUESTED, message=message, severity="Warning")
        return make_condition(kind, True, now)

    async def _release(self, scope: Scope) -> Result:
        """Set the host's desired state to free, wait until it reports that it is, then release it and remove the finalizer."""
        if BYOMACHINE_FINALIZER not in (scope.obj["metadata"].get("finalizers") or []):
            return Result()
        host = await self._held(scope, certain=True)
        if host is None:
            await scope.remove_finalizer(BYOMACHINE_FINALIZER)
            return Result()
        name = host["metadata"]["name"]
        desired = await DesiredStore(self.kube).write(scope.namespace, name, None)
        observed = ByoHost.of(host).status.observed
        clean = observed.generation == desired.generation and observed.phase == HostPhase.FREE
        if not clean and FORCE_RELEASE_ANNOTATION not in ByoMachine.of(scope.obj).metadata.annotations:
            message = observed.message or f"host {name} is being reset ({observed.phase or 'no report yet'})"
            scope.conditions = [make_condition(ConditionType.BYO_HOST_READY, False, self.clock.now(), reason=Reason.RESETTING, message=message)]
            return Result(after=POLL)
        host["spec"] = {key: value for key, value in (host.get("spec") or {}).items() if key != "machineRef"}
        await self.kube.replace(host)
        await scope.remove_finalizer(BYOMACHINE_FINALIZER)
        return Result()


def _with_status(scope: Scope) -> ByoMachine:
    """The machine with what this pass has decided of its upgrade."""
    found = ByoMachine.of(scope.obj)
    if "upgrade" not in scope.status:
        return found
    before, new = (scope.obj.get("status") or {}).get("upgrade") or {}, scope.status["upgrade"]
    changed = {key: value for key, value in {**before, **new}.items() if value is not None} if new is not None else {}
    return found.model_copy(update={"status": found.status.model_copy(update={"upgrade": NodeUpgradeStatus.model_validate(changed)})})


def _candidate(host: Obj) -> Candidate:
    return candidate(ByoHost.of(host))


def _holder(host: Obj) -> str:
    """The uid of the machine that holds a host; all hosts are searched for it, so nothing else of them is read."""
    return str(((host.get("spec") or {}).get("machineRef") or {}).get("uid") or "")
