"""Host groups: named sets of hosts that clusters take their workers from. The group is a row; membership is a label on the host."""

from __future__ import annotations

from collections.abc import Sequence

from ckp.api import kinds, names
from ckp.api.compass.hosts import GroupChange, GroupRequest, GroupView
from ckp.clients.kube import Kube, KubeError, Obj
from ckp.compass.access.kube_errors import translate_kube_errors
from ckp.compass.access.projects import Namespaces
from ckp.compass.hosts.hosts import Hosts, groups_of, is_free
from ckp.compass.identity import Caller, ProjectRef, check_label
from ckp.compass.store.database import Database
from ckp.compass.store.models import HostGroup
from ckp.compass.store.unit import Unit
from ckp.kits.clock import Clock
from ckp.kits.errors import Conflict, NotFound


@translate_kube_errors
class HostGroups:
    """Use cases around host groups."""

    def __init__(self, database: Database, kube: Kube, namespaces: Namespaces, hosts: Hosts, clock: Clock) -> None:
        self._database = database
        self._kube = kube
        self._namespaces = namespaces
        self._hosts = hosts
        self._clock = clock

    async def list(self, project: ProjectRef) -> list[GroupView]:
        """All groups with their members, by name."""
        async with self._database.reading() as unit:
            rows = await unit.host_groups(project)
        hosts = await self._namespaces.list(kinds.BYO_HOST, project)
        templates = await self._namespaces.list(kinds.BYO_MACHINE_TEMPLATE, project)
        return [_view(row, hosts, templates) for row in rows]

    async def get(self, project: ProjectRef, name: str) -> GroupView:
        """One group with its members."""
        async with self._database.reading() as unit:
            row = await _required(unit, project, name)
        hosts = await self._namespaces.list(kinds.BYO_HOST, project)
        return _view(row, hosts, await self._namespaces.list(kinds.BYO_MACHINE_TEMPLATE, project))

    async def create(self, caller: Caller, project: ProjectRef, request: GroupRequest) -> GroupView:
        """A new, empty group."""
        name = check_label("name", request.name)
        async with self._database.unit() as unit:
            if await unit.host_group(project, name):
                raise Conflict(f"host group {name} exists already")
            row = HostGroup(domain=project.domain, project=project.project, name=name, description=request.description, created_at=self._clock.now())
            unit.session.add(row)
            unit.audit(caller, project, "host-group.create", name)
        return await self.get(project, name)

    async def update(self, caller: Caller, project: ProjectRef, name: str, change: GroupChange) -> GroupView:
        """Change a group's description (its name is its identity)."""
        async with self._database.unit() as unit:
            row = await _required(unit, project, name)
            row.description = change.description
            unit.audit(caller, project, "host-group.update", name)
        return await self.get(project, name)

    async def delete(self, caller: Caller, project: ProjectRef, name: str) -> None:
        """Delete a group; its hosts stay. Refused while a cluster takes its workers from it."""
        group = await self.get(project, name)
        if group.clusters:
            raise Conflict(
                f"host group {name} is in use by cluster{'s' if len(group.clusters) > 1 else ''} {', '.join(group.clusters)}",
                resolution="delete the cluster first, or keep the group",
            )
        await self._check_rules(project, name)
        for host in group.hosts:
            await self._label(project, host, name, member=False)
        async with self._database.unit() as unit:
            await unit.session.delete(await _required(unit, project, name))
            unit.audit(caller, project, "host-group.delete", name)

    async def _check_rules(self, project: ProjectRef, name: str) -> None:
        async with self._database.reading() as unit:
            using = [rule.name for rule in await unit.approval_rules(project) if name in rule.groups]
        if using:
            raise Conflict(
                f"approval rule{'s' if len(using) > 1 else ''} {', '.join(using)} put{'' if len(using) > 1 else 's'} hosts into group {name}",
                resolution="delete the rule first (ckp host rule delete), or keep the group",
            )

    async def add(self, caller: Caller, project: ProjectRef, name: str, hosts: Sequence[str]) -> GroupView:
        """Put hosts into a group: all or, if one of them does not exist, none."""
        return await self._change(caller, project, name, hosts, member=True)

    async def remove(self, caller: Caller, project: ProjectRef, name: str, hosts: Sequence[str]) -> GroupView:
        """Take hosts out of a group. One that a cluster claimed already stays in that cluster."""
        return await self._change(caller, project, name, hosts, member=False)

    async def _change(self, caller: Caller, project: ProjectRef, name: str, hosts: Sequence[str], *, member: bool) -> GroupView:
        async with self._database.reading() as unit:
            await _required(unit, project, name)
        wanted = list(dict.fromkeys(hosts))
        objects = [await self._hosts.require(project, host) for host in wanted]
        if not member and (outsiders := [obj["metadata"]["name"] for obj in objects if name not in groups_of(obj)]):
            raise NotFound(f"{', '.join(outsiders)}: not in host group {name}")
        for host in wanted:
            await self._label(project, host, name, member=member)
        async with self._database.unit() as unit:
            action = "host-group.add" if member else "host-group.remove"
            unit.audit(caller, project, action, name, {"hosts": wanted})
        return await self.get(project, name)

    async def _label(self, project: ProjectRef, host: str, group: str, *, member: bool) -> None:
        patch = {"metadata": {"labels": {names.group_label(group): "" if member else None}}}
        try:
            await self._kube.merge(kinds.BYO_HOST, host, project.namespace, patch)
        except KubeError as error:
            if error.code != 404:
                raise
            if member:
                raise NotFound(f"host {host} was removed meanwhile") from error


async def _required(unit: Unit, project: ProjectRef, name: str) -> HostGroup:
    row = await unit.host_group(project, name)
    if row is None:
        raise NotFound(f"there is no host group {name} in {project}", resolution="list them: ckp hostgroup list")
    return row


def group_of_template(template: Obj) -> str:
    """The group that a ByoMachineTemplate takes its hosts from; '' if it selects in another way."""
    selector = template["spec"]["template"]["spec"].get("selector") or {}
    prefix = f"{names.HOST_GROUP_LABEL}/"
    return next((label.removeprefix(prefix) for label in selector.get("matchLabels") or {} if label.startswith(prefix)), "")


def _view(row: HostGroup, hosts: Sequence[Obj], templates: Sequence[Obj]) -> GroupView:
    members = [host for host in hosts if row.name in groups_of(host)]
    return GroupView(
        name=row.name,
        description=row.description,
        created_at=row.created_at,
        hosts=sorted(host["metadata"]["name"] for host in members),
        free=sum(1 for host in members if is_free(host)),
        clusters=sorted(
            (template["metadata"].get("labels") or {}).get(names.CLUSTER_NAME_LABEL, template["metadata"]["name"])
            for template in templates
            if group_of_template(template) == row.name
        ),
    )
