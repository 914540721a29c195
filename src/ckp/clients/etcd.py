"""One member of an etcd cluster, over etcd's own JSON gateway (/v3/…): what it says of itself, and how space is freed in it.

No key and no value is read or written here.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

from ckp.kits.errors import CkpError

SECONDS = 5.0
"""Timeout of one question."""
DEFRAGMENT_SECONDS = 120.0
"""Timeout of a defragmentation: etcd copies the database meanwhile."""
NO_SPACE, CORRUPT = "NOSPACE", "CORRUPT"


class EtcdError(CkpError):
    """The member refused, or could not be reached."""


@dataclass(frozen=True)
class EtcdStatus:
    """What a member says of itself.

    Attributes:
        size: bytes that the database takes on the volume.
        in_use: bytes of it that hold something; what lies between is freed by a defragmentation.
        leader: the member id of the leader that it knows; "" if none.
    """

    cluster_id: str
    member_id: str
    leader: str
    revision: int
    size: int
    in_use: int
    version: str


@dataclass(frozen=True)
class Alarm:
    """An alarm that stands, and the member that raised it."""

    member_id: str
    kind: str


class EtcdMember:
    """A connection to one member.

    Args:
        url: such as `https://demo-etcd-0.demo-etcd-peer.tenant.svc:2379`.
        context: the CA to trust and the certificate to show (client_context).
        transport: for tests.
    """

    def __init__(self, url: str, context: ssl.SSLContext | None = None, *, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self.url = url
        verify: ssl.SSLContext | bool = context if context is not None else True
        self._client = httpx.AsyncClient(base_url=url, verify=verify, transport=transport, timeout=httpx.Timeout(SECONDS), trust_env=False)

    async def status(self) -> EtcdStatus:
        """EtcdError if it can't be asked."""
        answer = await self._post("/v3/maintenance/status", {})
        header = answer.get("header") or {}
        return EtcdStatus(
            cluster_id=_id(header.get("cluster_id")),
            member_id=_id(header.get("member_id")),
            leader=_id(answer.get("leader")),
            revision=int(header.get("revision") or 0),
            size=int(answer.get("dbSize") or 0),
            in_use=int(answer.get("dbSizeInUse") or 0),
            version=str(answer.get("version") or ""),
        )

    async def alarms(self) -> list[Alarm]:
        """The alarms of all members; EtcdError if they can't be asked for."""
        answer = await self._post("/v3/maintenance/alarm", {"action": "GET"})
        return [Alarm(_id(item.get("memberID")), str(item.get("alarm"))) for item in answer.get("alarms") or []]

    async def compact(self, revision: int) -> None:
        """Forget the versions of keys that were overwritten or deleted before `revision`, in all members; it is no error if that has happened already."""
        try:
            await self._post("/v3/kv/compaction", {"revision": str(revision), "physical": True}, seconds=DEFRAGMENT_SECONDS)
        except EtcdError as error:
            if "has been compacted" not in error.brief:
                raise

    async def defragment(self) -> None:
        """Give what this member's database does not use back to the volume; it answers nobody meanwhile."""
        await self._post("/v3/maintenance/defragment", {}, seconds=DEFRAGMENT_SECONDS)

    async def disarm(self, alarm: Alarm) -> None:
        """End an alarm: the cluster takes writes again."""
        await self._post("/v3/maintenance/alarm", {"action": "DEACTIVATE", "memberID": str(int(alarm.member_id, 16)), "alarm": alarm.kind})

    async def close(self) -> None:
        """Close its connections."""
        await self._client.aclose()

    async def _post(self, path: str, body: Mapping[str, Any], *, seconds: float = SECONDS) -> dict[str, Any]:
        try:
            answer = await self._client.post(path, json=dict(body), timeout=httpx.Timeout(seconds, connect=SECONDS))
            said = answer.json()
        except (httpx.HTTPError, ssl.SSLError, ValueError) as error:
            raise EtcdError(f"etcd at {self.url}: {str(error) or type(error).__name__}") from error
        if answer.status_code != 200 or not isinstance(said, dict):
            reason = said.get("message") or said.get("error") if isinstance(said, dict) else said
            raise EtcdError(f"etcd at {self.url}: {path} answered {answer.status_code}: {reason}")
        return said


@dataclass(frozen=True)
class Credentials:
    """The CA to trust, the certificate to show and its key, as PEM."""

    ca: bytes
    certificate: bytes
    key: bytes = field(repr=False)


ConnectEtcd = Callable[[str, Credentials], EtcdMember]


def connect(url: str, credentials: Credentials) -> EtcdMember:
    """A connection to a member; EtcdError if the credentials can't be read."""
    return EtcdMember(url, client_context(credentials))


def _id(value: object) -> str:
    """An id as etcd's own tools print it; "" for none."""
    return f"{int(str(value)):x}" if value and int(str(value)) else ""


def client_context(credentials: Credentials) -> ssl.SSLContext:
    """Trust the CA and no other, and show the certificate. The key goes through memory only, never to a file system.

    Raises:
        EtcdError: one of them can't be read.
    """
    try:
        context = ssl.create_default_context(cadata=credentials.ca.decode())
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        memory = os.memfd_create("etcd-client", os.MFD_CLOEXEC)
        try:
            with os.fdopen(os.dup(memory), "wb") as file:
                file.write(credentials.certificate.rstrip() + b"\n" + credentials.key)
            context.load_cert_chain(f"/proc/self/fd/{memory}")
        finally:
            os.close(memory)
    except (ssl.SSLError, ValueError, OSError) as error:
        raise EtcdError(f"the certificates for etcd can't be read: {error}") from error
    return context
