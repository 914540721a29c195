"""The operator's side of enrolment: listing host requests and deciding about them."""

from __future__ import annotations

from collections.abc import Sequence

from ckp.api import kinds, names
from ckp.api.compass.base import readable
from ckp.api.compass.enrolment import ApproveRequest, BulkRequest, Duplicate, HostRequestView, RejectRequest
from ckp.api.compass.facts import HostFactsView
from ckp.clients.kube import Kube, KubeError, Obj
from ckp.compass.access.kube_errors import translate_kube_errors
from ckp.compass.access.projects import Namespaces
from ckp.compass.hosts.enrolments import host_name_from
from ckp.compass.identity import Caller, ProjectRef
from ckp.compass.store.database import Database
from ckp.compass.store.failures import Taken
from ckp.compass.store.models import HostRequest
from ckp.compass.store.unit import Unit
from ckp.kits.clock import Clock
from ckp.kits.errors import CkpError, Conflict, InvalidInput, NotFound
from ckp.rules.certificates import certificate_serial

MAX_LISTED = 500
REQUEST_ANNOTATION = f"{names.CKP}/host-request"


@translate_kube_errors
class HostRequests:
    """Use cases around host requests."""

    def __init__(self, database: Database, kube: Kube, namespaces: Namespaces, clock: Clock) -> None:
        self._database = database
        self._kube = kube
        self._namespaces = namespaces
        self._clock = clock

    async def list(self, project: ProjectRef, *, state: str = "", limit: int = MAX_LISTED, offset: int = 0) -> list[HostRequestView]:
        """A project's requests: pending ones first, then oldest first.

        Args:
            state: only those in this state.
            limit: at most so many, from number `offset` on.
        """
        if state not in ("", "pending", "approved", "rejected", "replaced"):
            raise InvalidInput(f"state: {state!r} is not one of pending, approved, rejected, replaced")
        async with self._database.reading() as unit:
            return [_view(row) for row in await unit.host_requests(project, state=state, limit=limit, offset=offset)]

    async def get(self, project: ProjectRef, request_id: str) -> HostRequestView:
        """One request."""
        async with self._database.reading() as unit:
            return _view(await _required(unit, project, request_id))

    async def approve(self, caller: Caller, project: ProjectRef, request_id: str, request: ApproveRequest) -> HostRequestView:
        """Make the machine a host.

        Resumable: the name is reserved, then the object is made, then the state is set. After an interruption anywhere, doing it again completes it.

        A machine that looks like an enrolled host needs a decision in `request.duplicate`: `replace` gives it that host's place (it was reinstalled; the
        old certificate is void at once), `separate` makes it a host of its own (its disk was cloned; only with a key of its own).

        Raises:
            Conflict: the machine or its key is a host already, and `duplicate` does not decide which it is.
            NotFound: a group does not exist.
        """
        found, _ = await self.decide(caller, project, request_id, request)
        return found

    async def decide(self, caller: Caller, project: ProjectRef, request_id: str, request: ApproveRequest) -> tuple[HostRequestView, bool]:
        """As `approve`; with whether it was this caller who did it: of several at a time, one."""
        first = False
        async with self._database.unit() as unit:
            row = await _required(unit, project, request_id)
            for group in request.groups:
                if await unit.host_group(project, group) is None:
                    raise NotFound(f"there is no host group {group}", resolution="create it first: ckp hostgroup create")
            taken_over = await self._decide_duplicate(unit, project, row, request.duplicate)
        await self._namespaces.ensure(project)
        if taken_over:
            await self._take_over(project, taken_over, row)
            name = taken_over
        else:
            name = await self._reserve_name(project, request_id, separate=request.duplicate == "separate")
            await self._make_host(project, name, row, request.groups)
        async with self._database.unit() as unit:
            row = await _required(unit, project, request_id)
            if row.state != "approved":
                first = True
                row.state, row.reason, row.decided_at, row.decided_by = "approved", "", self._clock.now(), caller.name
                detail = {"host": name, **({"duplicate": request.duplicate} if request.duplicate else {})}
                unit.audit(caller, project, "host-request.approve", row.id, detail)
            found = _view(row)
        return found, first

    async def _decide_duplicate(self, unit: Unit, project: ProjectRef, row: HostRequest, duplicate: Duplicate) -> str:
        """The name of the host whose place the machine takes, with the name already reserved for it; '' if it becomes a host of its own."""
        if row.state == "approved" or not row.duplicate_of:
            return ""
        if row.host == row.duplicate_of:
            return row.host  # decided before, and interrupted
        holders = [other for other in await unit.requests_of_host(project, row.duplicate_of) if other.state == "approved"]
        if not holders:
            return ""  # that host was deleted meanwhile
        if duplicate == "separate" and row.duplicate_why == "machine-id":
            return ""
        if duplicate != "replace":
            common = "the same key" if row.duplicate_why == "key" else "the same machine-id"
            choices = "approve it with duplicate=replace if it was reinstalled (the old certificate is void then)"
            if row.duplicate_why == "machine-id":
                choices += ", with duplicate=separate if its disk was cloned and it is another machine"
            elif duplicate == "separate":
                choices = "two machines must not share a key: run `ckp-agent enrol --again` on one of them, which makes a new key"
            raise Conflict(f"the machine of request {row.id} has {common} as host {row.duplicate_of}", resolution=f"{choices}; or reject it")
        for other in holders:
            other.state, other.host, other.reason = "replaced", "", f"the machine of request {row.id} took the place of host {row.duplicate_of}"
        await unit.session.flush()
        row.host = row.duplicate_of
        return row.host

    async def _take_over(self, project: ProjectRef, name: str, row: HostRequest) -> None:
        """The host is this machine from now on; the certificate of the machine before is void at once."""

        # Only on top of what was read: meanwhile the host may use a renewed certificate for the first time, and that one is to be void.
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
                raise Conflict(f"a host named {name} was created meanwhile", resolution="approve the request again") from error

    async def reject(self, caller: Caller, project: ProjectRef, request_id: str, request: RejectRequest) -> HostRequestView:
        """Reject a request; the machine's agent shows the reason.

        Raises:
            Conflict: it is approved already.
        """
        reason = request.reason
        async with self._database.unit() as unit:
            row = await _required(unit, project, request_id)
            if row.state == "approved" or row.host:
                raise Conflict(f"host request {row.id} is approved already", resolution=f"delete the host instead: ckp host delete {row.host}")
            if (row.state, row.reason) != ("rejected", reason):
                row.state, row.reason, row.decided_at, row.decided_by = "rejected", reason, self._clock.now(), caller.name
                unit.audit(caller, project, "host-request.reject", row.id, {"reason": reason})
            return _view(row)

    async def bulk(self, caller: Caller, project: ProjectRef, request: BulkRequest) -> dict[str, HostRequestView | CkpError]:
        """Decide about many requests, each on its own: the error of one is its answer."""
        results: dict[str, HostRequestView | CkpError] = {}
        for request_id in dict.fromkeys(request.ids):
            try:
                if request.action == "approve":
                    results[request_id] = await self.approve(caller, project, request_id, ApproveRequest())
                else:
                    results[request_id] = await self.reject(caller, project, request_id, RejectRequest(reason=request.reason))
            except CkpError as error:
                results[request_id] = error
        return results

    async def _reserve_name(self, project: ProjectRef, request_id: str, *, separate: bool = False) -> str:
        """The host's name: the machine's own, or with the first free number. It is stored in the row before anything is made."""
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
                                resolution="delete the old host first (ckp host delete), or reject this request",
                            )
                    if row.host and taken.get(row.host, row.id) == row.id:
                        return row.host
                    reserved = await unit.reserved_names(project)
                    base = host_name_from(str(row.facts.get("hostname", "")))
                    candidates = [base, *(f"{base}-{number}" for number in range(2, len(taken) + len(reserved) + 3))]
                    row.host = next(name for name in candidates if name not in taken and name not in reserved)
                    return row.host
            except Taken:
                continue  # another request reserved the same name at the same moment
        raise Conflict("no name could be reserved for the host", resolution="approve the request again")


async def _required(unit: Unit, project: ProjectRef, request_id: str) -> HostRequest:
    row = await unit.host_request(project, request_id)
    if row is None:
        raise NotFound(f"there is no host request {request_id} in {project}", resolution="list them: ckp host requests")
    return row


def _view(row: HostRequest) -> HostRequestView:
    return HostRequestView(
        id=row.id,
        state=row.state,
        reason=row.reason,
        host=row.host,
        machine_id=row.machine_id,
        source=row.source,
        facts=readable(HostFactsView, row.facts),
        key_digest=row.key_digest,
        duplicate_of=row.duplicate_of,
        duplicate_why=row.duplicate_why,
        created_at=row.created_at,
        decided_at=row.decided_at,
        decided_by=row.decided_by,
    )


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
