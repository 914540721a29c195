"""A control plane goes to another version: etcd, then the API servers, then controller-manager and scheduler, then kubeadm's phases.

A step is put down in `status.upgrade` before anything is changed, and goes on from what is there: whoever is killed in between continues. `status.version`
is the new one once the last part is. Until etcd is of the new release, everything else stays of the one before, which is the order that Kubernetes asks for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ckp.api.kinds import DEPLOYMENT, MANAGED_CONTROL_PLANE, POD, STATEFUL_SET
from ckp.api.names import RESTORE_ANNOTATION
from ckp.api.objects.control_plane import ManagedControlPlane
from ckp.api.platform import Releases
from ckp.api.states import ConditionType, Reason
from ckp.clients.kube import Kube, Obj
from ckp.controllers.controlplane import apiserver
from ckp.controllers.controlplane.plan import Plan
from ckp.controllers.pods import image_of, replicas_of, rolled_out
from ckp.controllers.scope import Scope
from ckp.kits.clock import Clock, rfc3339
from ckp.kits.errors import InvalidInput
from ckp.rules.cluster_backups import RestorePhase
from ckp.rules.conditions import Condition, get_condition, make_condition
from ckp.rules.upgrades import Part, Version, target

API_SERVER = "kube-apiserver"
MANAGERS = {"controller-manager": "kube-controller-manager", "scheduler": "kube-scheduler"}
"""What is brought to a release after the API servers: the part of its Deployment's name, and its program."""
REASONS: Mapping[Part, Reason] = {
    Part.ETCD: Reason.UPGRADING_ETCD,
    Part.API_SERVERS: Reason.UPGRADING_API_SERVERS,
    Part.MANAGERS: Reason.UPGRADING_MANAGERS,
    Part.PHASES: Reason.RUNNING_KUBEADM_PHASES,
}


@dataclass(frozen=True)
class Step:
    """What one pass makes of a control plane.

    Attributes:
        reached: the version that all of it was of last; "" before it was ready once.
        version: the release that it is brought to.
        under_way: whether that is a step that was begun and is not finished.
        refusal: why what is asked for is not done, or not yet.
    """

    reached: str
    version: str
    under_way: bool = False
    refusal: str = ""


@dataclass
class Upgrades:
    """For all clusters."""

    kube: Kube
    clock: Clock
    releases: Releases

    async def decide(self, scope: Scope) -> Step:
        """What this pass makes of the control plane; a step that begins is put down first.

        Raises:
            InvalidInput: the spec's version is none.
        """
        plane = ManagedControlPlane.of(scope.obj)
        reached, record = plane.status.version, plane.status.upgrade
        begun = record.version if record.under_way else ""
        if not reached:
            begun = await self._made(scope)
        decided = target(reached, begun, plane.spec.version, self.releases.releases.keys(), _wait(plane))
        if decided.begin:
            upgrade = {"from": reached, "version": decided.version, "startedAt": record.started_at if begun else rfc3339(self.clock.now()), "finishedAt": None}
            scope.obj = await self.kube.merge(MANAGED_CONTROL_PLANE, scope.name, scope.namespace, {"status": {"upgrade": upgrade}}, subresource="status")
        return Step(reached, decided.version, bool(reached) and (decided.begin or bool(begun)), decided.refusal)

    async def _made(self, scope: Scope) -> str:
        """The version of the API servers that were made, also where the status is lost; "" if there are none."""
        cluster = (await scope.cluster() or {"metadata": {"name": scope.name}})["metadata"]["name"]
        image = image_of(await self.kube.get(DEPLOYMENT, f"{cluster}-apiserver", scope.namespace), API_SERVER)
        try:
            return str(Version.parse(image.partition("@")[0].rpartition(":")[2]))
        except InvalidInput:
            return ""

    async def serving(self, plan: Plan, step: Step) -> Plan:
        """The plan of all but etcd: that of the release before until etcd's members are of the new one.

        Once an API server may be of the new one, it stays so, whatever becomes of etcd: it does not go back.

        Raises:
            NotFound: the release before is not installed any longer.
        """
        if not step.under_way or image_of(await self._deployment(plan, "apiserver"), API_SERVER) == plan.release.image(API_SERVER):
            return plan
        return plan if await self._has_etcd(plan) else plan.of_release(self.releases.get(step.reached))

    async def left(self, plan: Plan, phases: Condition | None) -> tuple[Part, str] | None:
        """The first part that is not of the plan's release yet, with how far it is, for people; None if all are.

        Args:
            phases: the condition of kubeadm's phases, as this pass has seen it; None if it has not.
        """
        name = plan.release.name
        if not await self._has_etcd(plan):
            found = await self.kube.get(STATEFUL_SET, plan.name("etcd"), plan.namespace)
            of = replicas_of(found, "updatedReplicas") if image_of(found, "etcd") == plan.release.image("etcd") else 0
            return Part.ETCD, f"{of} of {plan.etcd_replicas} members are of {name}, {replicas_of(found, 'readyReplicas')} are ready; one at a time is restarted"
        pods = await self.kube.list(POD, plan.namespace, labels=plan.selector("apiserver"))
        api = await self._deployment(plan, "apiserver")
        if not _is_of(plan, api, API_SERVER) or not apiserver.serves_only(plan, pods):
            of = replicas_of(api, "updatedReplicas") if image_of(api, API_SERVER) == plan.release.image(API_SERVER) else 0
            return Part.API_SERVERS, f"{of} of {plan.replicas} are of {name}, {replicas_of(api, 'readyReplicas')} are ready"
        if waiting := await self.without_managers(plan):
            return Part.MANAGERS, f"not of {name} and ready yet: {waiting}"
        if phases is None or phases["status"] != "True":
            return Part.PHASES, str((phases or {}).get("message") or "they are not run yet")
        return None

    async def without_managers(self, plan: Plan) -> str:
        """Which of controller-manager and scheduler are not of the plan's release, or not ready; "" if both are."""
        return " and ".join([part for part, program in MANAGERS.items() if not _is_of(plan, await self._deployment(plan, part), program)])

    async def conclude(self, scope: Scope, plan: Plan, step: Step) -> None:
        """The end of a pass in which everything was looked at: put down what was reached.

        Raises:
            KubeError: what runs can't be seen.
        """
        if not step.under_way:
            scope.status["version"] = step.reached or plan.release.name
            return
        if await self.left(plan, get_condition({"status": {"conditions": scope.conditions}}, ConditionType.BOOTSTRAPPED)) is not None:
            return
        record = ManagedControlPlane.of(scope.obj).status.upgrade
        done = {"from": record.from_version, "version": record.version, "startedAt": record.started_at, "finishedAt": rfc3339(self.clock.now())}
        scope.status |= {"version": plan.release.name, "upgrade": done}

    async def tell(self, scope: Scope, cluster: Obj, step: Step) -> None:
        """The condition Upgraded, beside what a pass has said.

        Raises:
            KubeError: what runs can't be seen.
        """
        kind, now = ConditionType.UPGRADED, self.clock.now()
        seen = get_condition({"status": {"conditions": scope.conditions}}, ConditionType.BOOTSTRAPPED)
        if step.under_way and "upgrade" not in scope.status:
            left = await self.left(Plan.of(scope.obj, cluster, self.releases, version=step.version), seen)
            part, message = left or (Part.PHASES, "all is of it; whether it works is looked at")
            self._tell_under_way(scope, step, REASONS[part], f"{part}: {message}")
        elif step.refusal:
            scope.notes.append(make_condition(kind, False, now, reason=Reason.UPGRADE_REFUSED, message=step.refusal, severity="Warning"))
        elif scope.status.get("version") or step.reached:
            # What kubeadm's phases wrote is in etcd: where that is not known to be there, it is not known here.
            unseen = seen if seen and seen["status"] == "Unknown" else None
            scope.notes.append({**unseen, "type": str(kind)} if unseen else make_condition(kind, True, now))

    def tell_unseen(self, scope: Scope, step: Step) -> None:
        """The same after a pass that failed: it does not go on saying that all is of what is asked for."""
        if step.under_way:
            self._tell_under_way(scope, step, Reason.WAITING, "how far it is was not looked at")

    def _tell_under_way(self, scope: Scope, step: Step, reason: Reason, what: str) -> None:
        """Part of Ready; where nothing is known of all the rest, nothing is said at all."""
        if scope.conditions:
            message = f"{step.reached} to {step.version}: {what}" + (f". {step.refusal}" if step.refusal else "")
            scope.conditions.append(make_condition(ConditionType.UPGRADED, False, self.clock.now(), reason=reason, message=message))

    async def _has_etcd(self, plan: Plan) -> bool:
        found = await self.kube.get(STATEFUL_SET, plan.name("etcd"), plan.namespace)
        return image_of(found, "etcd") == plan.release.image("etcd") and rolled_out(found, plan.etcd_replicas)

    async def _deployment(self, plan: Plan, part: str) -> Obj | None:
        return await self.kube.get(DEPLOYMENT, plan.name(part), plan.namespace)


def _is_of(plan: Plan, found: Obj | None, program: str) -> bool:
    return image_of(found, program) == plan.release.image(program) and rolled_out(found, plan.replicas)


def _wait(plane: ManagedControlPlane) -> str:
    """Why no step may begin now."""
    restore = plane.status.restore
    going = restore.held or restore.phase not in ("", RestorePhase.DONE, RestorePhase.FAILED)
    if going or RESTORE_ANNOTATION in plane.metadata.annotations:
        return "a backup is being restored; the upgrade begins when that is over"
    return ""
