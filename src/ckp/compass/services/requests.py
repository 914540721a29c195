"""Machines that ask to become hosts: taking requests in, and people's decisions about them."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from sqlalchemy.exc import IntegrityError

from ckp.api import kinds, names
from ckp.api.host_protocol import MAX_FACTS_BYTES, EnrolmentRequest, EnrolmentTicket
from ckp.clients.kube import Kube, KubeError, Obj
from ckp.compass.services.errors import TooManyTries, WrongKey
from ckp.compass.services.host_keys import HostKeys
from ckp.compass.services.projects import Namespaces, ProjectRef
from ckp.compass.services.rate import FailureLimit
from ckp.compass.store.database import Database
from ckp.compass.store.models import HostRequest
from ckp.compass.store.repositories import Unit
from ckp.kits.clock import Clock
from ckp.kits.errors import CkpError, Conflict, InvalidInput, NotFound
from ckp.rules.certificates import certificate_serial

MAX_PENDING = 10_000
"""Requests of one project that may wait; a leaked key must not fill the disk."""
MAX_LISTED = 500
REQUEST_ANNOTATION = f"{names.CKP}/host-request"
Duplicate = Literal["", "replace", "separate"]


@dataclass(frozen=True)
class Outcome:
    """What the hub needs to answer a waiting agent."""

    state: str
    reason: str
    namespace: str
    host: str
    csr: str
    certificate: str


def key_digest(csr_pem: str) -> str:
    """SHA-256 over the public key of a signing request, once its own signature shows that the sender holds the private one.

    Raises:
        InvalidInput: it is not a signing request, is not signed by its own key, or the key is of a kind that is not taken.
    """
    try:
        csr = x509.load_pem_x509_csr(csr_pem.encode())
        key = csr.public_key()
        good = csr.is_signature_valid
    except (ValueError, UnsupportedAlgorithm, InvalidSignature) as error:
        raise InvalidInput(f"csr: it is not a certificate signing request in PEM: {error}") from None
    if not good:
        raise InvalidInput("csr: its signature is not by its own key")
    strong = (
        (isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in ("secp256r1", "secp384r1"))
        or isinstance(key, ed25519.Ed25519PublicKey)
        or (isinstance(key, rsa.RSAPublicKey) and 2048 <= key.key_size <= 4096)
    )
    if not strong:
        raise InvalidInput("csr: the key must be ECDSA P-256 or P-384, Ed25519, or RSA of 2048 to 4096 bits")
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def host_name_from(hostname: str) -> str:
    """A valid object name out of whatever a machine calls itself: its first label, made lower-case, with hyphens for the rest."""
    short = re.sub(r"[^a-z0-9-]+", "-", hostname.split(".", maxsplit=1)[0].lower()).strip("-")[:50].strip("-")
    return short or "host"


class Enrolments:
    """The machine's side: requests that come in through the hub."""

    def __init__(self, database: Database, keys: HostKeys, approval: Approval, clock: Clock, limit: FailureLimit | None = None) -> None:
        self._database = database
        self._keys = keys
        self._approval = approval
        self._clock = clock
        self._limit = limit or FailureLimit(clock)

    async def take(self, request: EnrolmentRequest, source: str) -> EnrolmentTicket:
        """Take a request in. The same machine with the same key sending again gets its old request with a new token: it lost our answer.

        A machine that looks like a host of this project (same machine-id, or same key) was reinstalled or is a clone: a person decides (HostRequests.approve).

        Raises:
            WrongKey: the pre-shared key is not the project's (or the project has none), or has ended.
            TooManyTries: too many wrong keys from `source`, or too many requests wait.
            InvalidInput: the signing request is no good.
            Conflict: this machine, or this key, is a host of another project.
        """
        self._limit.check(source)
        token = secrets.token_urlsafe(32)
        async with self._database.unit() as unit:
            project = _project_or_wrong_key(request)
            key = await self._keys.matching(unit, project, request.psk) if project else None
            if project is None or key is None:
                self._limit.failed(source)
                raise WrongKey(
                    f"the pre-shared key is not the one of project {request.domain}/{request.project}",
                    resolution="put the current key into /etc/ckp-agent/psk: `ckp host psk` tells when it was made, `ckp host psk --reset` makes a new one",
                )
            facts = request.facts.model_dump(mode="json")
            if len(json.dumps(facts)) > MAX_FACTS_BYTES:
                raise InvalidInput(f"facts: they are larger than {MAX_FACTS_BYTES} bytes", resolution="mend the agent that sends them")
            digest = key_digest(request.csr)
            row, like = await self._same_or_like(unit, project, request, digest)
            if row is None:
                self._keys.spend(key)
                if await unit.pending_count(project.domain, project.project) >= MAX_PENDING:
                    raise TooManyTries("too many host requests wait for a decision", resolution="approve or reject some: ckp host requests")
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
            ticket = EnrolmentTicket(request_id=row.id, token=token)
        await self._approval.consider(project, ticket.request_id)
        return ticket

    async def outcome(self, request_id: str, token: str) -> Outcome:
        """What became of a request, for whoever holds its token; NotFound without saying whether the id or the token was wrong."""
        async with self._database.unit() as unit:
            row = await self._held(unit, request_id, token)
        if row.state == "pending":
            # Also here, not only when it came: a rule may be newer than the request, or we died before we could follow one.
            await self._approval.consider(ProjectRef.of(row.domain, row.project), row.id)
        async with self._database.unit() as unit:
            row = await self._held(unit, request_id, token)
            namespace = names.tenant_namespace(row.domain, row.project) if row.state == "approved" else ""
            return Outcome(row.state, row.reason, namespace, row.host if namespace else "", row.csr if namespace else "", row.certificate)

    async def keep_certificate(self, request_id: str, token: str, certificate: str) -> str:
        """Keep the certificate that the hub signed; the first one stays, and is the answer, so that asking twice never changes a host's serial."""
        async with self._database.unit() as unit:
            row = await self._held(unit, request_id, token)
            if row.state != "approved":
                raise Conflict(f"host request {request_id} is {row.state}, so it has no certificate")
            if not row.certificate:
                row.certificate = certificate
                unit.audit(self._clock.now(), "hub", row.domain, row.project, "host.certificate", row.host, {"request": row.id})
            return row.certificate

    async def _held(self, unit: Unit, request_id: str, token: str) -> HostRequest:
        row = await unit.host_request_by_id(request_id)
        given = hashlib.sha256(token.encode()).hexdigest()
        if not hmac.compare_digest(given, row.token_digest if row else "0" * 64) or row is None:
            raise NotFound("there is no such host request", resolution="send the enrolment again")
        return row

    async def _same_or_like(self, unit: Unit, project: ProjectRef, request: EnrolmentRequest, digest: str) -> tuple[HostRequest | None, tuple[str, str]]:
        """The request that is this very machine's with this very key; and the host that it looks like, with what they have in common."""
        same: HostRequest | None = None
        like = ("", "")
        for row in await unit.requests_like(request.facts.machine_id, digest):
            ours = (row.domain, row.project) == (project.domain, project.project)
            if ours and row.machine_id == request.facts.machine_id and row.key_digest == digest:
                same = row
            elif row.state == "approved" and not ours:
                raise Conflict(
                    "this machine, or its key, belongs to a host that is enrolled already in another project",
                    details=f"machine-id {request.facts.machine_id}",
                    resolution="a machine that moves: remove its host there first (ckp host delete); "
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
    """Decides for people, where they have made rules for it."""

    async def consider(self, project: ProjectRef, request_id: str) -> None:
        """Approve a waiting request if a rule says so. Never raises for what can be done again later."""
        ...


class HostRequests:
    """The operator's side: looking and deciding."""

    def __init__(self, database: Database, kube: Kube, namespaces: Namespaces, clock: Clock) -> None:
        self._database = database
        self._kube = kube
        self._namespaces = namespaces
        self._clock = clock

    async def list(self, project: ProjectRef, *, state: str = "", limit: int = MAX_LISTED, offset: int = 0) -> Sequence[HostRequest]:
        """A project's requests, those that wait for a decision first, then oldest first; of one state if asked. `limit` at once, from number `offset` on."""
        if state not in ("", "pending", "approved", "rejected", "replaced"):
            raise InvalidInput(f"state: {state!r} is none of pending, approved, rejected, replaced")
        async with self._database.unit() as unit:
            return await unit.host_requests(project.domain, project.project, state=state, limit=limit, offset=offset)

    async def get(self, project: ProjectRef, request_id: str) -> HostRequest:
        """One request."""
        async with self._database.unit() as unit:
            return await _required(unit, project, request_id)

    async def approve(self, actor: str, project: ProjectRef, request_id: str, *, duplicate: Duplicate = "", groups: Sequence[str] = ()) -> HostRequest:
        """Make the machine a host. Broken off anywhere, doing it again finishes it: a name is reserved, then the object made, then the state set.

        Args:
            duplicate: what to do with a machine that looks like a host that is there: `replace` gives it that host's place (it was reinstalled; the old
                certificate is void at once), `separate` makes it a host of its own (its disk was cloned; only with a key of its own).
            groups: host groups that the new host is in from the start.

        Raises:
            Conflict: the machine or its key is a host already, and `duplicate` does not say what it is.
        """
        async with self._database.unit() as unit:
            row = await _required(unit, project, request_id)
            for group in groups:
                if await unit.host_group(project.domain, project.project, group) is None:
                    raise NotFound(f"there is no host group {group}", resolution="make it first: ckp hostgroup create")
            taken_over = await self._decide_duplicate(unit, project, row, duplicate)
        await self._namespaces.ensure(project)
        if taken_over:
            await self._take_over(project, taken_over, row)
            name = taken_over
        else:
            name = await self._reserve_name(project, request_id, separate=duplicate == "separate")
            await self._make_host(project, name, row, groups)
        async with self._database.unit() as unit:
            row = await _required(unit, project, request_id)
            if row.state != "approved":
                row.state, row.reason, row.decided_at, row.decided_by = "approved", "", self._clock.now(), actor
                detail = {"host": name, **({"duplicate": duplicate} if duplicate else {})}
                unit.audit(self._clock.now(), actor, project.domain, project.project, "host-request.approve", row.id, detail)
            return row

    async def _decide_duplicate(self, unit: Unit, project: ProjectRef, row: HostRequest, duplicate: Duplicate) -> str:
        """The name of the host whose place the machine takes, with the place already reserved for it; '' if it gets one of its own."""
        if row.state == "approved" or not row.duplicate_of:
            return ""
        if row.host == row.duplicate_of:
            return row.host  # decided before, and broken off
        holders = [other for other in await unit.requests_of_host(project.domain, project.project, row.duplicate_of) if other.state == "approved"]
        if not holders:
            return ""  # that host is gone by now
        if duplicate == "separate" and row.duplicate_why == "machine-id":
            return ""
        if duplicate != "replace":
            same = "the same key" if row.duplicate_why == "key" else "the same machine-id"
            choices = "approve it with duplicate=replace if it was reinstalled (the old certificate is void then)"
            if row.duplicate_why == "machine-id":
                choices += ", with duplicate=separate if its disk was cloned and it is another machine"
            elif duplicate == "separate":
                choices = "two machines must not share a key: on one of them run `ckp-agent enrol --again`, which makes it a key of its own"
            raise Conflict(f"the machine of request {row.id} has {same} as host {row.duplicate_of}", resolution=f"{choices}; or reject it")
        for other in holders:
            other.state, other.host, other.reason = "replaced", "", f"the machine of request {row.id} took the place of host {row.duplicate_of}"
        await unit.session.flush()
        row.host = row.duplicate_of
        return row.host

    async def _take_over(self, project: ProjectRef, name: str, row: HostRequest) -> None:
        """The host belongs to this machine now; the certificate of the one before is void at once."""

        # Only on top of what was read: in between the host may use a renewed certificate for the first time, and that is the one to be void.
        def taken_over(host: Obj) -> Obj | None:
            if (host["metadata"].get("annotations") or {}).get(REQUEST_ANNOTATION) == row.id:
                return None
            annotations = {REQUEST_ANNOTATION: row.id, names.MACHINE_ID_ANNOTATION: row.machine_id}
            return {"metadata": {"annotations": annotations}, "spec": {"revokedSerial": certificate_serial(host)}}

        if await self._kube.change(kinds.BYO_HOST, name, project.namespace, taken_over) is None:
            await self._make_host(project, name, row, ())

    async def _make_host(self, project: ProjectRef, name: str, row: HostRequest, groups: Sequence[str]) -> None:
        try:
            await self._kube.create(_byo_host(project, name, row, groups))
        except KubeError as error:
            if error.reason != "AlreadyExists":
                raise
            existing = await self._kube.get(kinds.BYO_HOST, name, project.namespace)
            if existing is None or (existing["metadata"].get("annotations") or {}).get(REQUEST_ANNOTATION) != row.id:
                raise Conflict(f"a host named {name} appeared meanwhile", resolution="approve the request again") from error

    async def reject(self, actor: str, project: ProjectRef, request_id: str, reason: str) -> HostRequest:
        """Turn the machine away; it is told why. A request that became a host cannot be rejected any more."""
        async with self._database.unit() as unit:
            row = await _required(unit, project, request_id)
            if row.state == "approved" or row.host:
                raise Conflict(f"host request {row.id} is approved already", resolution=f"remove the host instead: ckp host delete {row.host}")
            if (row.state, row.reason) != ("rejected", reason):
                row.state, row.reason, row.decided_at, row.decided_by = "rejected", reason, self._clock.now(), actor
                unit.audit(self._clock.now(), actor, project.domain, project.project, "host-request.reject", row.id, {"reason": reason})
            return row

    async def bulk(self, actor: str, project: ProjectRef, ids: Sequence[str], action: str, reason: str = "") -> dict[str, HostRequest | CkpError]:
        """Decide many at once; each is decided by itself, and a failure of one is its answer."""
        results: dict[str, HostRequest | CkpError] = {}
        for request_id in dict.fromkeys(ids):
            try:
                if action == "approve":
                    results[request_id] = await self.approve(actor, project, request_id)
                else:
                    results[request_id] = await self.reject(actor, project, request_id, reason)
            except CkpError as error:
                results[request_id] = error
        return results

    async def _reserve_name(self, project: ProjectRef, request_id: str, *, separate: bool = False) -> str:
        """The host's name: the machine's own, or with the first free number; kept in the row before anything is made."""
        taken: dict[str, str] = {
            str(obj["metadata"]["name"]): str((obj["metadata"].get("annotations") or {}).get(REQUEST_ANNOTATION, ""))
            for obj in await self._kube.list(kinds.BYO_HOST, project.namespace)
        }
        for _ in range(5):
            try:
                async with self._database.unit() as unit:
                    row = await _required(unit, project, request_id)
                    for other in await unit.requests_like(row.machine_id, row.key_digest):
                        if other.id != row.id and not separate and (other.state == "approved" or other.host):
                            raise Conflict(
                                f"the machine of request {row.id} is a host already, enrolled with another key or machine-id",
                                resolution="remove the old host first (ckp host delete), or reject this request",
                            )
                    if row.host and taken.get(row.host, row.id) == row.id:
                        return row.host
                    reserved = await unit.reserved_names(project.domain, project.project)
                    base = host_name_from(str(row.facts.get("hostname", "")))
                    candidates = [base, *(f"{base}-{number}" for number in range(2, len(taken) + len(reserved) + 3))]
                    row.host = next(name for name in candidates if name not in taken and name not in reserved)
                    return row.host
            except IntegrityError:
                continue  # somebody else reserved the same name in the same moment
        raise Conflict("no name could be reserved for the host", resolution="approve the request again")


async def _required(unit: Unit, project: ProjectRef, request_id: str) -> HostRequest:
    row = await unit.host_request(project.domain, project.project, request_id)
    if row is None:
        raise NotFound(f"there is no host request {request_id} in {project.domain}/{project.project}", resolution="list them: ckp host requests")
    return row


def _byo_host(project: ProjectRef, name: str, row: HostRequest, groups: Sequence[str]) -> Obj:
    return {
        "apiVersion": kinds.BYO_HOST.api_version,
        "kind": "ByoHost",
        "metadata": {
            "name": name,
            "namespace": project.namespace,
            "labels": {**project.labels, "kubernetes.io/hostname": name, **{names.group_label(group): "" for group in groups}},
            "annotations": {REQUEST_ANNOTATION: row.id, names.MACHINE_ID_ANNOTATION: row.machine_id},
        },
        "spec": {"cordoned": False},
    }
