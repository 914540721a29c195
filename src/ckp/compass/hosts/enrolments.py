"""The machine's side of enrolment: requests that come in through the hub, and their outcomes."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
from typing import Protocol

from ckp.api import names
from ckp.api.host_protocol import MAX_FACTS_BYTES, EnrolmentRequest, EnrolmentTicket
from ckp.api.internal import Outcome
from ckp.compass.access.rate import FailureLimit
from ckp.compass.errors import TooManyTries, WrongKey
from ckp.compass.hosts.keys import HostKeys
from ckp.compass.identity import Caller, ProjectRef
from ckp.compass.store.database import Database
from ckp.compass.store.models import HostKey, HostRequest
from ckp.compass.store.unit import Unit
from ckp.kits.clock import Clock
from ckp.kits.errors import Conflict, InvalidInput, NotFound
from ckp.rules import keys

MAX_PENDING = 10_000
"""Pending requests of one project; a leaked key must not fill the disk."""

NO_NAMES = ("", "localhost", "none")
"""What machines call themselves (`(none)`: the kernel) before anybody has given them a name."""


def host_name_from(hostname: str) -> str:
    """The name of a host and of its node, from what its operating system calls it: the first label in lower case, with hyphens for other characters.

    An address is kept whole, and a machine without a name of its own is `host`.
    """
    if re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,3}){3}", hostname):
        return f"host-{hostname.replace('.', '-')}"
    short = re.sub(r"[^a-z0-9-]+", "-", hostname.split(".", maxsplit=1)[0].lower()).strip("-")[:50].strip("-")
    return "host" if short in NO_NAMES else short


class Enrolments:
    """Use cases of machines that enrol."""

    def __init__(self, database: Database, keys: HostKeys, approval: Approval, clock: Clock, limit: FailureLimit | None = None) -> None:
        self._database = database
        self._keys = keys
        self._approval = approval
        self._clock = clock
        self._limit = limit or FailureLimit(clock)

    async def submit(self, request: EnrolmentRequest, source: str) -> EnrolmentTicket:
        """Store a request. The same machine with the same key sending again gets its old request with a new token: it lost the answer.

        A machine that looks like a host of this project (same machine-id, or same key) was reinstalled or is a clone: a person decides (HostRequests.approve).

        Raises:
            WrongKey: the pre-shared key is not the project's (or the project has none), or has ended.
            TooManyTries: too many wrong keys from `source`, or too many requests are pending.
            InvalidInput: the signing request is not valid, or the facts are too large.
            Conflict: this machine, or this key, is a host of another project.
        """
        project = _project_or_wrong_key(request)
        ticket: EnrolmentTicket | None = None
        async with self._database.reading() as unit:  # whoever must wait does not keep others from writing
            await self._limit.check(unit, source)
        async with self._database.unit() as unit:
            await self._limit.check(unit, source)
            key = await self._keys.matching(unit, project, request.psk) if project else None
            if project is None or key is None:
                await self._limit.failed(unit, source)
            else:
                ticket = await self._stored(unit, project, key, request, source)
        if project is None or ticket is None:  # only now: the failure is counted if the transaction ends well
            raise WrongKey(
                f"the pre-shared key is not the one of project {request.domain}/{request.project}",
                resolution="put the current key into /etc/ckp-agent/psk: `ckp host psk` shows when it was made, `ckp host psk --reset` makes a new one",
            )
        await self._approval.consider(project, ticket.request_id)
        return ticket

    async def _stored(self, unit: Unit, project: ProjectRef, key: HostKey, request: EnrolmentRequest, source: str) -> EnrolmentTicket:
        """The request as a row, with a new token."""
        token = secrets.token_urlsafe(32)
        facts = request.facts.model_dump(mode="json")
        if len(json.dumps(facts)) > MAX_FACTS_BYTES:
            raise InvalidInput(f"facts: they are larger than {MAX_FACTS_BYTES} bytes", resolution="fix the agent that sends them")
        digest = keys.digest(keys.requested_key(request.csr))
        row, like = await self._same_or_like(unit, project, request, digest)
        if row is None:
            self._keys.spend(key)
            if await unit.pending_count(project) >= MAX_PENDING:
                raise TooManyTries("too many host requests are pending", resolution="approve or reject some: ckp host requests")
            row = HostRequest(
                id=secrets.token_hex(16),
                domain=project.domain,
                project=project.project,
                machine_id=request.facts.machine_id,
                key_digest=digest,
                csr=request.csr,
                state="pending",
                reason="",
                host="",
                certificate="",
                decided_by="",
                created_at=self._clock.now(),
            )
            unit.session.add(row)
        if row.state == "pending":
            row.duplicate_of, row.duplicate_why = like
        row.facts = facts
        row.source = source[:64]
        row.token_digest = hashlib.sha256(token.encode()).hexdigest()
        return EnrolmentTicket(request_id=row.id, token=token)

    async def outcome(self, request_id: str, token: str) -> Outcome:
        """What became of a request, for the holder of its token. NotFound does not show whether the id or the token was wrong."""
        async with self._database.reading() as unit:
            row = await self._held(unit, request_id, token)
        if row.state == "pending":
            # Also here, not only at submission: a rule may be newer than the request, or Compass was killed before it applied one.
            await self._approval.consider(ProjectRef.of(row.domain, row.project), row.id)
        async with self._database.reading() as unit:
            row = await self._held(unit, request_id, token)
            if row.state != "approved":
                return Outcome(state=row.state, reason=row.reason, certificate=row.certificate)
            namespace = names.tenant_namespace(row.domain, row.project)
            return Outcome(state=row.state, reason=row.reason, namespace=namespace, host=row.host, csr=row.csr, certificate=row.certificate)

    async def keep_certificate(self, caller: Caller, request_id: str, token: str, certificate: str) -> str:
        """Store the certificate that the hub signed. The first one stays and is the answer, so that asking twice never changes a host's serial."""
        async with self._database.unit() as unit:
            row = await self._held(unit, request_id, token)
            if row.state != "approved":
                raise Conflict(f"host request {request_id} is {row.state}, so it has no certificate")
            if not row.certificate:
                row.certificate = certificate
                unit.audit(caller, ProjectRef(row.domain, row.project), "host.certificate", row.host, {"request": row.id})
            return row.certificate

    async def _held(self, unit: Unit, request_id: str, token: str) -> HostRequest:
        row = await unit.host_request_by_id(request_id)
        given = hashlib.sha256(token.encode()).hexdigest()
        if not hmac.compare_digest(given, row.token_digest if row else "0" * 64) or row is None:
            raise NotFound("there is no such host request", resolution="send the enrolment again")
        return row

    async def _same_or_like(self, unit: Unit, project: ProjectRef, request: EnrolmentRequest, digest: str) -> tuple[HostRequest | None, tuple[str, str]]:
        """The request of this same machine with this same key; and the host that it looks like, with what they have in common."""
        same: HostRequest | None = None
        like = ("", "")
        for row in await unit.requests_like(request.facts.machine_id, digest):
            ours = ProjectRef(row.domain, row.project) == project
            if ours and row.machine_id == request.facts.machine_id and row.key_digest == digest:
                same = row
            elif row.state == "approved" and not ours:
                raise Conflict(
                    "this machine, or its key, belongs to a host that is enrolled already in another project",
                    details=f"machine-id {request.facts.machine_id}",
                    resolution="a machine that moves: delete its host there first (ckp host delete); "
                    "a cloned one: give it its own /etc/machine-id and remove /var/lib/ckp-agent/key.pem",
                )
            elif row.state == "approved":
                like = (row.host, "key" if row.key_digest == digest else "machine-id")
        return same, like


def _project_or_wrong_key(request: EnrolmentRequest) -> ProjectRef | None:
    """A malformed project has no key, so its answer is the same as for a wrong key."""
    try:
        return ProjectRef.of(request.domain, request.project)
    except InvalidInput:
        return None


class Approval(Protocol):
    """Decides instead of people, where a project has rules for it."""

    async def consider(self, project: ProjectRef, request_id: str) -> None:
        """Approve a pending request if a rule matches. Never raises for what can be done again later."""
        ...
