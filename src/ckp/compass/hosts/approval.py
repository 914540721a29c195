"""Rules that approve machines: kept by project, applied to every request that waits."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime

import structlog

from ckp.compass.access.projects import ProjectRef, check_label
from ckp.compass.hosts.requests import HostRequests
from ckp.compass.store.database import Database
from ckp.compass.store.models import ApprovalRule
from ckp.kits.clock import Clock
from ckp.kits.errors import CkpError, Conflict, InvalidInput, NotFound
from ckp.rules.approval import Criteria, first_match

log = structlog.get_logger("compass")


@dataclass(frozen=True)
class RuleView:
    """A rule as people see it."""

    name: str
    criteria: Criteria
    groups: tuple[str, ...]
    approved: int
    created_at: datetime
    created_by: str


class ApprovalRules:
    """Use cases around rules, and the approval by them."""

    def __init__(self, database: Database, requests: HostRequests, clock: Clock) -> None:
        self._database = database
        self._requests = requests
        self._clock = clock

    async def list(self, project: ProjectRef) -> list[RuleView]:
        """A project's rules by name, the order in which they are asked."""
        async with self._database.unit() as unit:
            return [_view(row) for row in await unit.approval_rules(project.domain, project.project)]

    async def get(self, project: ProjectRef, name: str) -> RuleView:
        """One rule."""
        async with self._database.unit() as unit:
            return _view(_found(await unit.approval_rule(project.domain, project.project, name), project, name))

    async def create(self, actor: str, project: ProjectRef, name: str, criteria: Criteria, groups: Sequence[str]) -> RuleView:
        """A new rule. It also decides about machines that wait already.

        Raises:
            InvalidInput: it asks for nothing, so it would let everybody in who has the key, or a network is none.
            NotFound: a group is not there.
        """
        check_label("name", name)
        if criteria.empty:
            raise InvalidInput("the rule asks for nothing, so it would approve everybody", resolution="name hosts (* for any), networks, systems or sizes")
        for network in criteria.networks:
            try:
                ipaddress.ip_network(network)
            except ValueError as error:
                raise InvalidInput(f"networks: {error}") from None
        async with self._database.unit() as unit:
            if await unit.approval_rule(project.domain, project.project, name):
                raise Conflict(f"the approval rule {name} exists already", resolution="delete it first: ckp host rule delete")
            for group in groups:
                if await unit.host_group(project.domain, project.project, group) is None:
                    raise NotFound(f"there is no host group {group}", resolution="make it first: ckp hostgroup create")
            row = ApprovalRule(
                domain=project.domain,
                project=project.project,
                name=name,
                criteria=asdict(criteria),
                groups=list(dict.fromkeys(groups)),
                approved=0,
                created_at=self._clock.now(),
                created_by=actor,
            )
            unit.session.add(row)
            unit.audit(
                self._clock.now(), actor, project.domain, project.project, "approval-rule.create", name, {"criteria": row.criteria, "groups": row.groups}
            )
        return _view(row)

    async def delete(self, actor: str, project: ProjectRef, name: str) -> None:
        """Forget a rule. Hosts that it has let in stay."""
        async with self._database.unit() as unit:
            await unit.session.delete(_found(await unit.approval_rule(project.domain, project.project, name), project, name))
            unit.audit(self._clock.now(), actor, project.domain, project.project, "approval-rule.delete", name)

    async def consider(self, project: ProjectRef, request_id: str) -> None:
        """See requests.Approval. A machine that looks like a host that is there is always left to people."""
        async with self._database.unit() as unit:
            row = await unit.host_request(project.domain, project.project, request_id)
            if row is None or row.state != "pending" or row.duplicate_of:
                return
            rules = {rule.name: _view(rule) for rule in await unit.approval_rules(project.domain, project.project)}
            name = first_match([(rule.name, rule.criteria) for rule in rules.values()], row.facts, row.source)
        if not name:
            return
        try:
            await self._requests.approve(f"rule:{name}", project, request_id, groups=rules[name].groups)
        except CkpError as error:
            log.warning("a rule could not approve a machine; it is tried again when the machine asks", rule=name, request=request_id, error=error.brief)
            return
        async with self._database.unit() as unit:
            if rule := await unit.approval_rule(project.domain, project.project, name):
                rule.approved += 1


def _found(row: ApprovalRule | None, project: ProjectRef, name: str) -> ApprovalRule:
    if row is None:
        raise NotFound(f"there is no approval rule {name} in {project.domain}/{project.project}", resolution="list them: ckp host rule list")
    return row


def _view(row: ApprovalRule) -> RuleView:
    return RuleView(row.name, Criteria.of(row.criteria), tuple(row.groups), row.approved, row.created_at, row.created_by)
