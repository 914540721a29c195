"""A control plane goes to another version: etcd, then the API servers, then controller-manager and scheduler, then kubeadm's phases.

A step is put down in `status.upgrade` before anything is changed, and goes on from what is there: whoever is killed in between continues. `status.version`
is the new one once the last part is. Until etcd is of the new release, everything else stays of the one before, which is the order that Kubernetes asks for.

A step that soaks has another beginning: API servers, then controller-manager and scheduler of the new release behave as the minor before, on the etcd of
before, until the step is committed. Then come the parts above. Until then it can be rolled back: controller-manager and scheduler first, API servers last.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from ckp.api.kinds import DEPLOYMENT, MANAGED_CONTROL_PLANE, POD, STATEFUL_SET
from ckp.api.names import RESTORE_ANNOTATION
from ckp.api.objects.base import time_of
from ckp.api.objects.control_plane import ManagedControlPlane
from ckp.api.platform import Releases
from ckp.api.states import ConditionType, Reason
from ckp.clients.kube import Kube, Obj
from ckp.controllers.controlplane import apiserver
from ckp.controllers.controlplane.phases import BEFORE_API_SERVERS
from ckp.controllers.controlplane.plan import Plan
from ckp.controllers.pods import image_of, replicas_of, rolled_out
from ckp.controllers.scope import Scope
from ckp.kits.clock import Clock, parse_duration, rfc3339
from ckp.kits.errors import InvalidInput
from ckp.rules.cluster_backups import RestorePhase
from ckp.rules.conditions import Condition, get_condition, make_condition
from ckp.rules.upgrades import Part, Version, soak_refusal, target

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
        emulated: the minor that the new programs behave as, since the step is not committed (`v1.34`); "" if it is.
        back: whether it undoes a step that was not committed.
    """

    reached: str
    version: str
    under_way: bool = False
    refusal: str = ""
    emulated: str = ""
    back: bool = False

    @property
    def data(self) -> str:
        """The version as which the cluster's data is written."""
        return self.reached if self.emulated else self.version


@dataclass(frozen=True)
class Plans:
    """Of which release each part is in one pass.

    Attributes:
        etcd: and the certificates.
        servers: API servers, controller-manager, scheduler, and what follows them.
        phases: what kubeadm writes.
    """

    etcd: Plan
    servers: Plan
    phases: Plan

    def of(self, condition: ConditionType) -> Plan:
        """The plan of the phase that this condition tells of."""
        return self.etcd if condition in BEFORE_API_SERVERS else self.phases if condition is ConditionType.BOOTSTRAPPED else self.servers


@dataclass
class Upgrades:
    """For all clusters."""

    kube: Kube
    clock: Clock
    releases: Releases

    async def decide(self, scope: Scope) -> Step:
        """What this pass makes of the control plane; a step that begins, goes back or is committed is put down first.

        Raises:
            InvalidInput: the spec's version is none.
        """
        plane = ManagedControlPlane.of(scope.obj)
        reached, record = plane.status.version, plane.status.upgrade
        begun = record.version if record.under_way else ""
        if not reached:
            begun = await self._made(scope)
        decided = target(reached, begun, plane.spec.version, self.releases.releases.keys(), _wait(plane), uncommitted=record.uncommitted)
        emulated, back = record.emulated if record.uncommitted else "", record.goes_back
        if decided.begin:
            # What goes on and was committed stays so; what soaks goes on to soak with the next patch version.
            soak = not decided.back and (record.uncommitted if begun else plane.spec.upgrade.soak)
            if soak and not begun and (refusal := soak_refusal(reached, decided.version)):
                return Step(reached, reached, refusal=refusal)
            emulated, back = Version.parse(reached).line if soak else "", decided.back
            started = record.started_at if begun and not back else self._now()
            upgrade = {"from": reached, "version": decided.version, "startedAt": started, "finishedAt": None}
            upgrade |= {"emulated": emulated or None, "soakingSince": None, "committedAt": None, "rolledBack": begun if back else None}
            await self._put_down(scope, upgrade)
        elif emulated and not plane.spec.upgrade.soak and not decided.refusal:
            emulated = ""
            await self._put_down(scope, {"emulated": None, "committedAt": self._now()})
        under_way = bool(reached) and (decided.begin or bool(begun))
        return Step(reached, decided.version, under_way, decided.refusal, emulated, back)

    async def _put_down(self, scope: Scope, upgrade: Obj) -> None:
        scope.obj = await self.kube.merge(MANAGED_CONTROL_PLANE, scope.name, scope.namespace, {"status": {"upgrade": upgrade}}, subresource="status")

    def _now(self) -> str:
        return rfc3339(self.clock.now())

    async def _made(self, scope: Scope) -> str:
        """The version of the API servers that were made, also where the status is lost; "" if there are none."""
        cluster = (await scope.cluster() or {"metadata": {"name": scope.name}})["metadata"]["name"]
        image = image_of(await self.kube.get(DEPLOYMENT, f"{cluster}-apiserver", scope.namespace), API_SERVER)
        try:
            return str(Version.parse(image.partition("@")[0].rpartition(":")[2]))
        except InvalidInput:
            return ""

    async def plans(self, plan: Plan, step: Step) -> Plans:
        """Of which release each part is to be now.

        Args:
            plan: of the release that the step leads to.

        Raises:
            NotFound: the release before is needed, and not installed any longer.
        """
        if step.emulated:
            before = plan.of_release(self.releases.get(step.reached))
            return Plans(before, plan.emulating(step.emulated), before)
        waits = step.under_way and not step.back and not await self._has_etcd(plan)
        return Plans(plan, await self._serving(plan, step, waits=waits), plan.of_release(self.releases.get(step.reached)) if waits else plan)

    async def _serving(self, plan: Plan, step: Step, *, waits: bool) -> Plan:
        """API servers of the release before, or that behave as if they were, until etcd's members are of the new one.

        Once an API server may be of the new one, it stays so, whatever becomes of etcd: it does not go back.
        """
        if not waits:
            return plan
        made = await self._deployment(plan, "apiserver")
        if image_of(made, API_SERVER) != plan.release.image(API_SERVER):
            return plan.of_release(self.releases.get(step.reached))
        return plan.emulating(Version.parse(step.reached).line) if _emulates(made, API_SERVER) else plan

    async def left(self, plan: Plan, step: Step, phases: Condition | None) -> tuple[Part, str] | None:
        """The first part that is not as the step wants it yet, with how far it is, for people; None if all are: those of a soak, or of the whole step.

        Args:
            plan: of the release that the step leads to.
            phases: the condition of kubeadm's phases, as this pass has seen it; None if it has not.
        """
        if step.emulated:
            soaking = plan.emulating(step.emulated)
            return await self._servers_left(soaking) or await self._managers_left(soaking)
        if step.back:
            return await self._managers_left(plan) or await self._servers_left(plan) or self._phases_left(phases)
        if not await self._has_etcd(plan):
            found = await self.kube.get(STATEFUL_SET, plan.name("etcd"), plan.namespace)
            of = replicas_of(found, "updatedReplicas") if image_of(found, "etcd") == plan.release.image("etcd") else 0
            ready = replicas_of(found, "readyReplicas")
            return Part.ETCD, f"{of} of {plan.etcd_replicas} members are of {plan.release.name}, {ready} are ready; one at a time is restarted"
        return await self._servers_left(plan) or await self._managers_left(plan) or self._phases_left(phases)

    async def _servers_left(self, plan: Plan) -> tuple[Part, str] | None:
        api = await self._deployment(plan, "apiserver")
        if _is_of(plan, api, API_SERVER) and apiserver.serves_only(plan, await self.pods(plan, "apiserver")):
            return None
        of = replicas_of(api, "updatedReplicas") if _is_asked(plan, api, API_SERVER) else 0
        return Part.API_SERVERS, f"{of} of {plan.replicas} are of {_named(plan)}, {replicas_of(api, 'readyReplicas')} are ready"

    async def _managers_left(self, plan: Plan) -> tuple[Part, str] | None:
        waiting = await self.without_managers(plan)
        return (Part.MANAGERS, f"not of {_named(plan)} and ready yet: {waiting}") if waiting else None

    @staticmethod
    def _phases_left(phases: Condition | None) -> tuple[Part, str] | None:
        if phases is None or phases["status"] != "True":
            return Part.PHASES, str((phases or {}).get("message") or "they are not run yet")
        return None

    async def without_managers(self, plan: Plan) -> str:
        """Which of controller-manager and scheduler are not of the plan's release, or not ready; "" if both are."""
        return " and ".join([part for part, program in MANAGERS.items() if not _is_of(plan, await self._deployment(plan, part), program)])

    async def with_other_managers(self, plan: Plan) -> str:
        """Of which of the two a pod of another release, or one that behaves otherwise, is left, ready or not; "" if of none."""
        left = [part for part, program in MANAGERS.items() if not apiserver.runs_only(plan, program, await self.pods(plan, part))]
        return " and ".join(left)

    async def pods(self, plan: Plan, part: str) -> list[Obj]:
        """Of a component, those that are ending among them."""
        return await self.kube.list(POD, plan.namespace, labels=plan.selector(part))

    async def conclude(self, scope: Scope, plan: Plan, step: Step) -> None:
        """The end of a pass in which everything was looked at: put down what was reached.

        Raises:
            KubeError: what runs can't be seen.
        """
        if not step.under_way:
            scope.status["version"] = step.reached or plan.release.name
            return
        if await self.left(plan, step, get_condition({"status": {"conditions": scope.conditions}}, ConditionType.BOOTSTRAPPED)) is not None:
            return
        plane = ManagedControlPlane.of(scope.obj)
        record = plane.status.upgrade
        if step.emulated:
            if not record.soaking_since:
                scope.status["upgrade"] = {"soakingSince": self._now()}
            elif _is_over(plane, self.clock) and not step.refusal:
                scope.status["upgrade"] = {"emulated": None, "committedAt": self._now()}
            return
        done = {"from": record.from_version, "version": record.version, "startedAt": record.started_at, "finishedAt": self._now()}
        scope.status |= {"version": plan.release.name, "upgrade": done}

    async def tell(self, scope: Scope, cluster: Obj, step: Step) -> None:
        """The condition Upgraded, beside what a pass has said.

        Raises:
            KubeError: what runs can't be seen.
        """
        kind, now = ConditionType.UPGRADED, self.clock.now()
        seen = get_condition({"status": {"conditions": scope.conditions}}, ConditionType.BOOTSTRAPPED)
        if step.under_way and "finishedAt" not in scope.status.get("upgrade", {}):
            left = await self.left(Plan.of(scope.obj, cluster, self.releases, version=step.version), step, seen)
            if left is None and step.emulated and all(condition["status"] == "True" for condition in scope.conditions):
                scope.notes.append(make_condition(kind, False, now, reason=Reason.SOAKING, message=self._soaks(scope, step), severity="Info"))
                return
            part, message = left or (Part.PHASES, "all is of it; whether it works is looked at")
            self._tell_under_way(scope, step, Reason.ROLLING_BACK if step.back else REASONS[part], f"{part}: {message}")
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

    def _soaks(self, scope: Scope, step: Step) -> str:
        record = ManagedControlPlane.of(scope.obj).status.upgrade
        since = record.soaking_since or str(scope.status.get("upgrade", {}).get("soakingSince") or "now")
        ways = f"spec.upgrade.soak: false commits it, spec.version: {step.reached} rolls it back"
        message = f"{step.reached} to {step.version}: the programs of {step.version} run as {step.emulated} since {since}; {ways}"
        return f"{message}. {step.refusal}" if step.refusal else message

    def _tell_under_way(self, scope: Scope, step: Step, reason: Reason, what: str) -> None:
        """Part of Ready; where nothing is known of all the rest, nothing is said at all."""
        if scope.conditions:
            way = f"back to {step.version}" if step.back else f"{step.reached} to {step.version}"
            message = f"{way}: {what}" + (f". {step.refusal}" if step.refusal else "")
            scope.conditions.append(make_condition(ConditionType.UPGRADED, False, self.clock.now(), reason=reason, message=message))

    async def _has_etcd(self, plan: Plan) -> bool:
        found = await self.kube.get(STATEFUL_SET, plan.name("etcd"), plan.namespace)
        return image_of(found, "etcd") == plan.release.image("etcd") and rolled_out(found, plan.etcd_replicas)

    async def _deployment(self, plan: Plan, part: str) -> Obj | None:
        return await self.kube.get(DEPLOYMENT, plan.name(part), plan.namespace)


def _is_asked(plan: Plan, found: Obj | None, program: str) -> bool:
    return image_of(found, program) == plan.release.image(program) and _emulates(found, program) == plan.emulated


def _is_of(plan: Plan, found: Obj | None, program: str) -> bool:
    return _is_asked(plan, found, program) and rolled_out(found, plan.replicas)


def _emulates(found: Obj | None, program: str) -> str:
    return apiserver.emulation_of(found["spec"]["template"]["spec"] if found else None, program)


def _named(plan: Plan) -> str:
    return f"{plan.release.name} as v{plan.emulated}" if plan.emulated else plan.release.name


def _is_over(plane: ManagedControlPlane, clock: Clock) -> bool:
    """Whether a soak ends by its time."""
    asked, since = plane.spec.upgrade.commit_after, time_of(plane.status.upgrade.soaking_since)
    return bool(asked) and since is not None and clock.now() >= since + timedelta(seconds=parse_duration(asked))


def _wait(plane: ManagedControlPlane) -> str:
    """Why no step may begin now."""
    restore = plane.status.restore
    going = restore.held or restore.phase not in ("", RestorePhase.DONE, RestorePhase.FAILED)
    if going or RESTORE_ANNOTATION in plane.metadata.annotations:
        return "a backup is being restored; the upgrade begins when that is over"
    return ""
