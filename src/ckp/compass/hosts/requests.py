"""People's decisions about machines that ask to become hosts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from sqlalchemy.exc import IntegrityError

from ckp.api import kinds, names
from ckp.clients.kube import Kube, KubeError, Obj
from ckp.compass.access.projects import Namespaces, ProjectRef
from ckp.compass.hosts.enrolments import host_name_from
from ckp.compass.store.database import Database
from ckp.compass.store.models import HostRequest
from ckp.compass.store.unit import Unit
from ckp.kits.clock import Clock
from ckp.kits.errors import CkpError, Conflict, InvalidInput, NotFound
from ckp.rules.certificates import certificate_serial

MAX_LISTED = 500
REQUEST_ANNOTATION = f"{names.CKP}/host-request"
Duplicate = Literal["", "replace", "separate"]


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
