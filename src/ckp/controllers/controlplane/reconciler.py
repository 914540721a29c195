"""ManagedControlPlane: brings a hosted control plane up, one phase after the other, and keeps it up.

Contract (ControlPlane): `status.initialized`, `ready`, `version`, `replicas`, …; `externalManagedControlPlane: true`, or the core
neither drains nor deletes nodes; this provider writes the endpoint, and never waits for it.
"""

from __future__ import annotations

import base64
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace

import structlog

from ckp.api.kinds import CERTIFICATE_REQUEST, DEPLOYMENT, JOB, MANAGED_CONTROL_PLANE, POD, PVC, SECRET, SERVICE, STATEFUL_SET, Kind
from ckp.api.names import ADDRESSES_ANNOTATION, CLUSTER_NAME_LABEL, MANAGED_CONTROL_PLANE_FINALIZER
from ckp.api.objects.control_plane import ManagedControlPlane
from ckp.api.platform import Releases
from ckp.api.states import ConditionType, Reason
from ckp.clients.etcd import ConnectEtcd
from ckp.clients.etcd import connect as connect_etcd
from ckp.clients.kube import Kube, KubeError, Obj
from ckp.controllers.apply import Applier
from ckp.controllers.controlplane import apiserver, bootstrap, certificates, etcd, service_endpoints, tunnels
from ckp.controllers.controlplane.backups import Backups
from ckp.controllers.controlplane.etcd_phases import EtcdPhases
from ckp.controllers.controlplane.phases import ENDING, POLL, SIDE_BY_SIDE, SOON, STARTING, NotYet, unseen
from ckp.controllers.controlplane.plan import Plan, disruption_budget
from ckp.controllers.controlplane.restores import Restores
from ckp.controllers.controlplane.upgrades import Step, Upgrades
from ckp.controllers.jobs import JobState, run_once
from ckp.controllers.pods import replicas_of
from ckp.controllers.scope import Scope, deleting, owner, paused
from ckp.controllers.workload import WorkloadClients, workload_cluster
from ckp.kits.clock import Clock
from ckp.kits.errors import CkpError, NotFound
from ckp.rules.conditions import get_condition, make_condition
from ckp.rules.endpoints import API_PORT, Asked, settle
from ckp.runtime.controller import Result

log = structlog.get_logger()
REFUSALS = (400, 403, 422)
"""Codes of answers that the same request would get again."""


def _asked(plane: ManagedControlPlane, cluster: Obj, service: Obj | None) -> Asked:
    """What the control plane, its Cluster and the API server's Service say about the endpoint."""
    endpoint, found = plane.spec.control_plane_endpoint, service or {}
    ingress = ((found.get("status") or {}).get("loadBalancer") or {}).get("ingress") or []
    return Asked(
        host=endpoint.host,
        port=endpoint.port,
        cluster_host=str(((cluster.get("spec") or {}).get("controlPlaneEndpoint") or {}).get("host") or ""),
        load_balancer=plane.spec.load_balancer.address,
        names=plane.spec.cert_sans,
        pinned=str((found.get("metadata", {}).get("annotations") or {}).get(ADDRESSES_ANNOTATION) or ""),
        given=[str(item.get("ip") or item.get("hostname")) for item in ingress],
        made=plane.status.initialized,
    )


@dataclass
class ManagedControlPlaneReconciler:
    """The phases below, in their order; each is finished, and may say when to look again (seconds), or raises NotYet with what it waits for."""

    kube: Kube
    clock: Clock
    releases: Releases
    applier: Applier
    clients: WorkloadClients = field(default_factory=WorkloadClients)
    connect_to_etcd: ConnectEtcd = connect_etcd
    backup_image: str = ""

    def __post_init__(self) -> None:
        self.etcd = EtcdPhases(self.kube, self.clock, self.connect_to_etcd)
        self.backups = Backups(self.kube, self.clock, self.backup_image)
        self.upgrades = Upgrades(self.kube, self.clock, self.releases)
        self.restores = Restores(self.kube, self.clock, self.applier, self.etcd, self.backup_image)

    async def reconcile(self, namespace: str, name: str) -> Result:
        """One pass."""
        obj = await self.kube.get(MANAGED_CONTROL_PLANE, name, namespace)
        if obj is None:
            return Result()
        scope = Scope(self.kube, self.clock, MANAGED_CONTROL_PLANE, obj)
        cluster = await scope.cluster()
        if paused(cluster, obj):
            return Result()
        async with scope:
            if deleting(obj):
                return await self._delete(scope)
            if cluster is None or owner(obj, "Cluster") is None:
                return Result(after=POLL)
            step = await self.upgrades.decide(scope)
            result = await self._up(scope, cluster, step)
            return await self._backed_up(scope, cluster, step, result)

    async def _backed_up(self, scope: Scope, cluster: Obj, step: Step, result: Result) -> Result:
        """Backups go by the clock, also of a control plane that is not ready."""
        try:
            host = ManagedControlPlane.of(scope.obj).spec.control_plane_endpoint.host
            again = await self.backups.look(scope, Plan.of(scope.obj, cluster, self.releases, host, version=step.data))
        except NotFound:  # an unknown version, which is told by a condition
            return result
        return result if again is None else Result(after=min(again, 60.0 if result.after is None else result.after))

    async def _up(self, scope: Scope, cluster: Obj, step: Step) -> Result:
        try:
            result = await self._phases(scope, cluster, step)
        except CkpError:
            self.upgrades.tell_unseen(scope, step)
            raise
        if scope.conditions:
            try:
                await self.upgrades.tell(scope, cluster, step)
            except NotFound:  # an unknown version, which is told by a condition
                self.upgrades.tell_unseen(scope, step)
        return result

    async def _phases(self, scope: Scope, cluster: Obj, step: Step) -> Result:
        await scope.add_finalizer(MANAGED_CONTROL_PLANE_FINALIZER)
        plane = ManagedControlPlane.of(scope.obj)
        scope.status |= {"externalManagedControlPlane": True, "replicas": plane.spec.replicas}
        scope.status |= {"initialized": plane.status.initialized, "ready": plane.status.ready}
        condition = ConditionType.ENDPOINT_AVAILABLE
        phases: list[tuple[ConditionType, Callable[[Scope, Plan], Awaitable[float | None]]]] = [
            (ConditionType.CERTIFICATES_AVAILABLE, self._certificates),
            (ConditionType.ETCD_READY, self.etcd.ready),
            (ConditionType.ETCD_SPACE_AVAILABLE, self.etcd.space),
            (ConditionType.COMPONENTS_READY, self._components),
            (ConditionType.KUBECONFIG_AVAILABLE, self._kubeconfig),
            (ConditionType.KUBERNETES_SERVICE_READY, self._kubernetes_service),
            (ConditionType.BOOTSTRAPPED, self._bootstrap),
            (ConditionType.COMPONENTS_READY, self._managers),
        ]
        try:
            plan, lost = await self._endpoint(scope, cluster, step)
            done = [lost.as_condition(lost.condition, self.clock.now()) if lost else make_condition(ConditionType.ENDPOINT_AVAILABLE, True, self.clock.now())]
            scope.conditions = done
            plans = await self.upgrades.plans(plan, step)
            if (restoring := await self.restores.advance(scope, plans.etcd)) is not None:
                done.append(restoring.as_condition(restoring.condition, self.clock.now()))
                done += unseen(scope.obj, done, restoring, self.clock.now())
                scope.status["ready"] = False
                return Result(after=restoring.after)
            waiting = [lost] if lost else []
            again = lost.after if lost else 60.0
            for condition, phase in phases:
                try:
                    again = min(again, await phase(scope, plans.of(condition)) or again)
                    done.append(make_condition(condition, True, self.clock.now()))
                except NotYet as wait:
                    done.append(wait.as_condition(wait.condition, self.clock.now()))
                    again = min(again, wait.after)
                    if wait.needed:
                        waiting.append(wait)
                    if wait.hold:
                        await self.applier.apply(apiserver.held(apiserver.api_server(plans.servers)))
                        break
                    # etcd's and the components' pods start side by side; what needs a running API server must wait.
                    if condition not in SIDE_BY_SIDE:
                        break
            if waiting:
                done += unseen(scope.obj, done, waiting[-1], self.clock.now())
                # Once it was initialized it is ready with its API server and etcd, also while a Job runs again or a certificate is renewed.
                held = any(wait.hold for wait in waiting)
                scope.status["ready"] = plane.status.initialized and not held and lost is None and await self._serves(cluster)
                return Result(after=again)
            await self._ready(scope, plan)
            await self.upgrades.conclude(scope, plan, step)
            await self.restores.finish(scope)
        except NotYet as wait:
            scope.conditions.append(wait.as_condition(wait.condition, self.clock.now()))
            scope.conditions += unseen(scope.obj, scope.conditions, wait, self.clock.now())
            reached = wait.condition is not ConditionType.ENDPOINT_AVAILABLE
            scope.status["ready"] = plane.status.initialized and reached and await self._serves(cluster)
            return Result(after=wait.after)
        except NotFound as error:
            scope.conditions.append(
                make_condition(ConditionType.ENDPOINT_AVAILABLE, False, self.clock.now(), reason=Reason.UNKNOWN_VERSION, message=error.brief, severity="Error")
            )
            scope.status["ready"] = plane.status.initialized and await self._serves(cluster)
            return Result(after=60)
        except CkpError as error:
            self._failed(scope, condition, error)
            raise
        return Result(after=again)

    def _failed(self, scope: Scope, condition: ConditionType, error: CkpError) -> None:
        """What is refused would be refused again: say so. After any other failure nothing is known, so nothing is said: least of all that all is well."""
        if isinstance(error, KubeError) and error.code not in REFUSALS:
            scope.conditions.clear()
            return
        message = f"{error.brief}: {error.resolution}" if error.resolution else error.brief
        scope.conditions.append(make_condition(condition, False, self.clock.now(), reason=Reason.REFUSED, message=message, severity="Error"))

    async def _endpoint(self, scope: Scope, cluster: Obj, step: Step) -> tuple[Plan, NotYet | None]:
        """The load balancer first: the API server's certificate needs its address.

        Returns:
            The plan, and what is wrong with the endpoint of a control plane that was up already and goes on.

        Raises:
            NotYet: it cannot come up with the endpoint as it is.
        """
        plan = Plan.of(scope.obj, cluster, self.releases, version=step.version)
        plane = ManagedControlPlane.of(scope.obj)
        service = await self.kube.get(SERVICE, plan.name("apiserver"), plan.namespace)
        routed = plan.replicas > 1 or tunnels.is_routed(service)  # and then for good: the way back would cut agents off for a moment
        # A Service keeps the class that it was made with; the API server refuses another one.
        of = str((service.get("spec") or {}).get("loadBalancerClass") or "") if service else plan.load_balancer_class
        plan = replace(plan, routed=routed, load_balancer_class=of)
        settled = settle(_asked(plane, cluster, service))
        if settled.reason is not Reason.UNUSABLE_ENDPOINT:
            if service is None:  # deleted by somebody: applied at once, not only when drift is due to be corrected
                self.applier.forget(plan.namespace, plan.name("apiserver"))
            await self.applier.apply(apiserver.service(replace(plan, wanted_address=settled.ask)))
            if not ((service or {}).get("status") or {}).get("loadBalancer"):
                service = await self.kube.get(SERVICE, plan.name("apiserver"), plan.namespace)
                settled = settle(_asked(plane, cluster, service))
        if settled.reason is None and not (plane.spec.control_plane_endpoint.host and plane.spec.control_plane_endpoint.port):
            patch = {"spec": {"controlPlaneEndpoint": {"host": settled.host, "port": API_PORT}}}
            scope.obj = await self.kube.merge(MANAGED_CONTROL_PLANE, scope.name, scope.namespace, patch)
        plan = replace(Plan.of(scope.obj, cluster, self.releases, settled.host, settled.address, version=step.version), routed=routed)
        if settled.reason is None:
            return plan, None
        trouble = NotYet(
            ConditionType.ENDPOINT_AVAILABLE,
            settled.message,
            after=SOON if settled.reason is Reason.WAITING else POLL,
            reason=settled.reason,
            severity="Info" if settled.reason is Reason.WAITING else "Error",
        )
        if plane.status.initialized and settled.host and settled.address:
            return plan, trouble
        scope.status["ready"] = False
        raise trouble

    async def _certificates(self, scope: Scope, plan: Plan) -> None:
        """CAs, leaves, the pair of keys for tokens; then wait until cert-manager has written all their Secrets.

        etcd's pods are made at once: they wait for their certificates, and their volumes are provisioned meanwhile.
        """
        await self.applier.apply(*certificates.authorities(plan), *certificates.leaf_certificates(plan))
        await self.applier.apply(await self.etcd.config_map(scope, plan), *etcd.etcd_objects(plan, await self.etcd.sizing(scope, plan)))
        if await self.kube.get(SECRET, plan.name("sa"), plan.namespace) is None:
            try:
                await self.kube.create(certificates.service_account_key(plan))
            except KubeError as error:
                if error.reason != "AlreadyExists":
                    raise
        secrets = {name: await self.kube.get(SECRET, name, plan.namespace) for name in certificates.secret_names(plan)}
        issued = {name: secret for name, secret in secrets.items() if secret and (secret.get("data") or {}).get("tls.crt")}
        if missing := [name for name in secrets if name not in issued]:
            raise NotYet(ConditionType.CERTIFICATES_AVAILABLE, f"cert-manager has not issued {', '.join(missing)} yet", after=SOON)
        authorities = {part: issued[plan.name(part)] for part in certificates.AUTHORITIES}
        if intermediate := [plan.name(part) for part, secret in authorities.items() if not certificates.is_anchor(secret)]:
            message = f"{', '.join(intermediate)} of CKP 0.2.0 can't be verified by every program; cert-manager has not issued it again, self-signed, yet"
            raise NotYet(ConditionType.CERTIFICATES_AVAILABLE, message, after=SOON)
        if lacking := certificates.lacking(plan, issued[plan.name("apiserver")]):
            message = f"cert-manager has not issued {plan.name('apiserver')} with {', '.join(lacking)} yet"
            raise NotYet(ConditionType.CERTIFICATES_AVAILABLE, message, after=SOON)
        await self._cross_sign(plan, authorities)

    async def _cross_sign(self, plan: Plan, authorities: Mapping[str, Obj]) -> None:
        """Keep the chain from the cluster's CAs to the Root CA. No component of the cluster needs it, so nothing waits for it."""
        cross_signed: dict[str, str] = {}
        for part, secret in authorities.items():
            name = certificates.cross_signing_name(plan, part, secret)
            request = await self.kube.get(CERTIFICATE_REQUEST, name, plan.namespace)
            if request is None:
                request = await self.kube.create(certificates.cross_signing_request(plan, part, secret))
            if pem := (request.get("status") or {}).get("certificate"):
                cross_signed[part] = base64.b64decode(pem).decode()
            elif (ready := get_condition(request, ConditionType.READY)) and ready.get("reason") in ("Failed", "Denied"):
                log.warning("the Root CA did not sign a cluster's CA", request=f"{plan.namespace}/{name}", message=ready.get("message"))
        if len(cross_signed) == len(authorities):
            await self.applier.apply(certificates.chain(plan, cross_signed))

    async def _components(self, scope: Scope, plan: Plan) -> float | None:
        """The API server, and once it answers the others: started earlier they would exit, and their restart would be delayed by ten seconds."""
        if ManagedControlPlane.of(scope.obj).status.upgrade.goes_back:  # what speaks to the API server goes first: it must never be newer
            await self._apply_managers(plan)
            if others := await self.upgrades.with_other_managers(plan):
                raise NotYet(ConditionType.COMPONENTS_READY, f"{others} of the version that is left are still ending", after=ENDING)
        await self.applier.apply(apiserver.config_map(plan), apiserver.api_server(plan), disruption_budget(plan, "apiserver"))
        pods = await self.kube.list(POD, plan.namespace, labels=plan.selector("apiserver"))
        again = STARTING if plan.routed and await tunnels.route(self.kube, self.applier, plan, pods) else None
        if not await self._available(plan, "apiserver"):
            raise NotYet(ConditionType.COMPONENTS_READY, "the API server is starting", after=again or POLL)
        if not apiserver.serves_only(plan, pods):
            raise NotYet(ConditionType.COMPONENTS_READY, "API servers of the version before are still ending", after=ENDING)
        await self._apply_managers(plan)
        return again

    async def _apply_managers(self, plan: Plan) -> None:
        authority = certificates.fingerprint(await self._authority(plan))
        await self.applier.apply(apiserver.controller_manager(plan, authority), apiserver.scheduler(plan))

    async def _managers(self, scope: Scope, plan: Plan) -> None:
        """Controller-manager and scheduler: nodes join and nothing is scheduled without them, but the control plane is ready with its API server."""
        missing = [part for part in ("controller-manager", "scheduler") if not await self._available(plan, part)]
        if missing:
            raise NotYet(ConditionType.COMPONENTS_READY, f"not available: {' and '.join(missing)}", needed=False)

    async def _serves(self, cluster: Obj) -> bool:
        """Whether an API server and a quorum of etcd are ready now."""
        namespace, name = cluster["metadata"]["namespace"], cluster["metadata"]["name"]
        etcd_set = await self.kube.get(STATEFUL_SET, f"{name}-etcd", namespace) or {}
        api = await self.kube.get(DEPLOYMENT, f"{name}-apiserver", namespace)
        quorum = int((etcd_set.get("spec") or {}).get("replicas") or 1) // 2 + 1
        return replicas_of(etcd_set, "readyReplicas") >= quorum and replicas_of(api, "availableReplicas") >= 1

    async def _available(self, plan: Plan, part: str) -> bool:
        return replicas_of(await self.kube.get(DEPLOYMENT, plan.name(part), plan.namespace), "availableReplicas") >= 1

    async def _kubeconfig(self, scope: Scope, plan: Plan) -> None:
        """`<c>-kubeconfig` for Cluster API, users and addons; one for the bootstrap Job, whose user RBAC does not bind."""
        for role, secret in (("admin", "kubeconfig"), ("super-admin", "super-admin-kubeconfig")):
            files = await self._client_files(plan, role)
            text = bootstrap.kubeconfig(plan, f"https://{plan.endpoint}", role, files)
            await self.applier.apply(bootstrap.kubeconfig_secret(plan, plan.name(secret), text))

    async def _client_files(self, plan: Plan, leaf: str) -> bootstrap.ClientFiles:
        ca = await self._authority(plan)
        client = await self.kube.get(SECRET, plan.name(leaf), plan.namespace)
        if client is None:
            raise NotYet(ConditionType.KUBECONFIG_AVAILABLE, f"the certificate {plan.name(leaf)} does not exist yet")
        decode = base64.b64decode
        return bootstrap.ClientFiles(decode(ca["data"]["tls.crt"]), decode(client["data"]["tls.crt"]), decode(client["data"]["tls.key"]))

    async def _authority(self, plan: Plan) -> Obj:
        """The Secret of the CA that clients of the cluster trust."""
        found = await self.kube.get(SECRET, plan.name("ca"), plan.namespace)
        if found is None:
            raise NotYet(ConditionType.CERTIFICATES_AVAILABLE, f"the Secret {plan.name('ca')} is gone")
        return found

    async def _kubernetes_service(self, scope: Scope, plan: Plan) -> float | None:
        """Pods reach the API server by the Service `kubernetes` before anything in the cluster needs it, and whatever becomes of an API server's pod.

        As the user whom RBAC does not bind: this must work before there are rules, and with whatever rules the cluster's owner writes.
        """
        try:
            async with workload_cluster(self.kube, plan.namespace, plan.cluster, self.clients, bound=False) as client:
                if client is None:
                    raise NotYet(ConditionType.KUBERNETES_SERVICE_READY, "the kubeconfig does not exist yet", after=SOON)
                await service_endpoints.publish(client, await service_endpoints.addresses_of(plan.address), API_PORT)
        except OSError as error:
            message = f"the name of the endpoint {plan.endpoint} can't be resolved: {error}"
            raise NotYet(ConditionType.KUBERNETES_SERVICE_READY, message, reason=Reason.API_SERVER_NOT_REACHED, seen=False) from error
        except KubeError as error:
            message = f"the API server does not answer at {plan.endpoint}: {error.brief}"
            raise NotYet(ConditionType.KUBERNETES_SERVICE_READY, message, after=SOON * 4, reason=Reason.API_SERVER_NOT_REACHED, seen=False) from error
        if apiserver.clears_endpoints(await self.kube.list(POD, plan.namespace, labels=plan.selector("apiserver"))):
            return SOON
        return None

    async def _bootstrap(self, scope: Scope, plan: Plan) -> None:
        """The Job with kubeadm's phases. A Job can't be changed; changed content has another name.

        Those of another version run once controller-manager and scheduler are of it, as kubeadm has it.
        """
        step = ManagedControlPlane.of(scope.obj).status.upgrade
        if step.under_way and step.version == plan.release.name and (waiting := await self.upgrades.without_managers(plan)):
            raise NotYet(ConditionType.BOOTSTRAPPED, f"kubeadm's phases wait for {waiting}", after=ENDING)
        objects = bootstrap.bootstrap_objects(plan, certificates.fingerprint(await self._authority(plan)))
        name = str(objects[-1]["metadata"]["name"])

        async def manifests() -> list[Obj]:
            return objects

        state = await run_once(self.kube, plan.namespace, name, manifests)
        if state is JobState.FAILED:
            raise NotYet(ConditionType.BOOTSTRAPPED, f"the Job {name} failed and is started again")
        if state is not JobState.SUCCEEDED:
            raise NotYet(ConditionType.BOOTSTRAPPED, f"kubeadm's phases are {'running' if state is JobState.RUNNING else 'starting'}")

    async def _ready(self, scope: Scope, plan: Plan) -> None:
        found = await self.kube.get(DEPLOYMENT, plan.name("apiserver"), plan.namespace)
        ready = replicas_of(found, "readyReplicas")
        scope.status |= {
            "initialized": True,
            "ready": ready >= 1,
            "replicas": replicas_of(found, "replicas"),
            "readyReplicas": ready,
            "updatedReplicas": replicas_of(found, "updatedReplicas"),
            "unavailableReplicas": max(0, plan.replicas - ready),
            "selector": ",".join(f"{key}={value}" for key, value in sorted(plan.selector("apiserver").items())),
        }

    async def _delete(self, scope: Scope) -> Result:
        """Pods and volumes are deleted before the control plane, so that a deleted cluster leaves nothing running and nothing stored."""
        if MANAGED_CONTROL_PLANE_FINALIZER not in (scope.obj["metadata"].get("finalizers") or []):
            return Result()
        cluster = str((owner(scope.obj, "Cluster") or {}).get("name") or scope.name)
        labels = {CLUSTER_NAME_LABEL: cluster, "app.kubernetes.io/component": None}
        owned: list[Kind] = [DEPLOYMENT, STATEFUL_SET, JOB]
        for kind in owned:
            for item in await self.kube.list(kind, scope.namespace, labels={CLUSTER_NAME_LABEL: cluster}):
                if owner(item, "ManagedControlPlane") and not deleting(item):
                    await self.kube.delete(kind, item["metadata"]["name"], scope.namespace)
        left = [*await self.kube.list(POD, scope.namespace, labels=labels), *await self.kube.list(PVC, scope.namespace, labels=labels)]
        if left:
            names = ", ".join(f"{item['metadata']['name']}" for item in left)
            scope.conditions = [make_condition(ConditionType.DELETED, False, self.clock.now(), reason=Reason.DELETING, message=f"waiting for {names} to go")]
            return Result(after=1)
        self.applier.forget(scope.namespace, f"{cluster}-")
        self.etcd.forget(scope.namespace, cluster)
        await self.clients.forget(scope.namespace, cluster)
        await scope.remove_finalizer(MANAGED_CONTROL_PLANE_FINALIZER)
        return Result()
