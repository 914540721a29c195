"""Rules that approve machines: stored by project, applied to every pending request."""

from __future__ import annotations

import ipaddress
from dataclasses import asdict

import structlog

from ckp.api.compass.enrolment import ApproveRequest, CriteriaView, RuleRequest, RuleView
from ckp.compass.hosts.requests import HostRequests
from ckp.compass.identity import Caller, ProjectRef, check_label
from ckp.compass.store.database import Database
from ckp.compass.store.models import ApprovalRule
from ckp.kits.clock import Clock
from ckp.kits.errors import CkpError, Conflict, InvalidInput, NotFound
from ckp.rules.approval import Criteria, first_match

log = structlog.get_logger("compass")


class ApprovalRules:
    """Use cases around rules, and the approval by them."""

    def __init__(self, database: Database, requests: HostRequests, clock: Clock) -> None:
        self._database = database
        self._requests = requests
        self._clock = clock

    async def list(self, project: ProjectRef) -> list[RuleView]:
        """A project's rules by name, the order in which they are applied."""
        async with self._database.reading() as unit:
            return [_view(row) for row in await unit.approval_rules(project)]

    async def get(self, project: ProjectRef, name: str) -> RuleView:
        """One rule."""
        async with self._database.reading() as unit:
            return _view(_found(await unit.approval_rule(project, name), project, name))

    async def create(self, caller: Caller, project: ProjectRef, request: RuleRequest) -> RuleView:
        """A new rule. It also decides about requests that are pending already.

        Raises:
            InvalidInput: it has no criteria, so it would approve every machine that has the key; or a network is malformed.
            NotFound: a group does not exist.
            Conflict: there is a rule of this name.
        """
        name, criteria = check_label("name", request.name), Criteria.of(request.criteria.model_dump())
        if criteria.empty:
            raise InvalidInput("the rule asks for nothing, so it would approve every machine", resolution="name hosts (* for any), networks, systems or sizes")
        for network in criteria.networks:
            try:
                ipaddress.ip_network(network)
            except ValueError as error:
                raise InvalidInput(f"networks: {error}") from None
        async with self._database.unit() as unit:
            if await unit.approval_rule(project, name):
                raise Conflict(f"the approval rule {name} exists already", resolution="delete it first: ckp host rule delete")
            for group in request.groups:
                if await unit.host_group(project, group) is None:
                    raise NotFound(f"there is no host group {group}", resolution="create it first: ckp hostgroup create")
            row = ApprovalRule(
                domain=project.domain,
                project=project.project,
                name=name,
                criteria=asdict(criteria),
                groups=list(dict.fromkeys(request.groups)),
                approved=0,
                created_at=self._clock.now(),
                created_by=caller.name,
            )
            unit.session.add(row)
            unit.audit(caller, project, "approval-rule.create", name, {"criteria": row.criteria, "groups": row.groups})
        return _view(row)

    async def delete(self, caller: Caller, project: ProjectRef, name: str) -> None:
        """Delete a rule. Hosts that it has approved stay."""
        async with self._database.unit() as unit:
            await unit.session.delete(_found(await unit.approval_rule(project, name), project, name))
            unit.audit(caller, project, "approval-rule.delete", name)

    async def consider(self, project: ProjectRef, request_id: str) -> None:
        """See enrolments.Approval. A machine that looks like an enrolled host is always left to people."""
        async with self._database.reading() as unit:
            row = await unit.host_request(project, request_id)
            if row is None or row.state != "pending" or row.duplicate_of:
                return
            rules = {rule.name: rule for rule in await unit.approval_rules(project)}
            name = first_match([(rule.name, Criteria.of(rule.criteria)) for rule in rules.values()], row.facts, row.source)
        if not name:
            return
        try:
            caller = Caller(f"rule:{name}", "approval-rule")
            _, first = await self._requests.decide(caller, project, request_id, ApproveRequest(groups=rules[name].groups))
        except CkpError as error:
            log.warning("an approval rule failed; it is applied again when the machine asks", rule=name, request=request_id, error=error.brief)
            return
        if not first:
            return
        async with self._database.unit() as unit:
            if rule := await unit.approval_rule(project, name):
                rule.approved += 1


def _found(row: ApprovalRule | None, project: ProjectRef, name: str) -> ApprovalRule:
    if row is None:
        raise NotFound(f"there is no approval rule {name} in {project}", resolution="list them: ckp host rule list")
    return row


def _view(row: ApprovalRule) -> RuleView:
    return RuleView(
        name=row.name,
        criteria=CriteriaView.model_validate(asdict(Criteria.of(row.criteria))),
        groups=row.groups,
        approved=row.approved,
        created_at=row.created_at,
        created_by=row.created_by,
    )
