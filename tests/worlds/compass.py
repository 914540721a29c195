"""A whole Compass in memory for tests: its real services, REST and database over a simulated API server."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import httpx
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from ckp.api import kinds, names
from ckp.api.host_protocol import EnrolmentRequest, HostFacts
from ckp.compass.identity import ProjectRef
from ckp.compass.releases import ReleaseTable
from ckp.compass.rest.internal import make_internal_app
from ckp.compass.rest.plumbing import Gate
from ckp.compass.rest.public import make_public_app
from ckp.compass.services import UseCases
from ckp.compass.settings import Settings, parse_reserved
from ckp.compass.store.database import Database
from ckp.compass.store.places import Place
from tests.simulators.clock import ManualClock
from tests.simulators.kube import KubeSimulator

ADMIN = "admin-token-of-at-least-twenty"
HUB = "token-of-the-hub"
NAMESPACE = "ckp-default-default"
BASE = "/api/v1/domains/default/projects/default"
RELEASES = {"v1.35.1": {"cni": {"cilium": "v1.19.5"}}, "v1.33.7": {"cni": {"cilium": "v1.19.5"}}}
AGENTS = ("0.1.0+1-ckp", "0.2.0+2-ckp")
MACHINE_A = "a" * 32
MACHINE_B = "b" * 32


def make_csr(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | None = None, common_name: str = "whatever") -> str:
    key = key or ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    return x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256()).public_bytes(Encoding.PEM).decode()


def facts(hostname: str = "worker-1", machine_id: str = MACHINE_A, **more: Any) -> HostFacts:
    return HostFacts(
        hostname=hostname,
        machine_id=machine_id,
        os_id="debian",
        os_version="12",
        kernel="6.18.0",
        architecture="amd64",
        cpus=2,
        memory_bytes=4 << 30,
        disk_bytes=100 << 30,
        disk_free_bytes=50 << 30,
        addresses=("10.88.0.21",),
        default_address="10.88.0.21",
        **more,
    )


def review(obj: dict[str, Any]) -> dict[str, Any]:
    """An API server's review of tokens: the hub's is good for the requested audience, and so is another account's."""
    users = {HUB: "system:serviceaccount:ckp-system:ckp-hub", "token-of-another": "system:serviceaccount:default:default"}
    user = users.get(obj["spec"]["token"])
    return obj | {"status": {"authenticated": bool(user), "user": {"username": user or ""}, "audiences": obj["spec"]["audiences"] if user else []}}


@dataclass
class World:
    kube: KubeSimulator
    cases: UseCases
    clock: ManualClock
    rest: httpx.AsyncClient
    internal: httpx.AsyncClient
    database: Database
    public_app: Gate
    numbers: list[int] = field(default_factory=lambda: [0])

    async def call(self, method: str, path: str, *, expect: int | None = None, **arguments: Any) -> Any:
        response = await self.rest.request(method, path if path.startswith("/api") else BASE + path, **arguments)
        if expect is not None:
            assert response.status_code == expect, response.text
        return response.json() if response.content and "json" in response.headers["content-type"] else response.text

    async def project(self, domain: str, project: str) -> str:
        """A project that is there from now on, with its domain; where it is in REST."""
        for path, name in (("/api/v1/domains", domain), (f"/api/v1/domains/{domain}/projects", project)):
            answer = await self.rest.post(path, json={"name": name})
            assert answer.status_code in (201, 409), answer.text
        return f"/api/v1/domains/{domain}/projects/{project}"

    async def psk(self) -> str:
        return str((await self.call("POST", "/host-psk/reset", expect=200))["key"])

    async def enrol(self, psk: str, *, hostname: str = "worker-1", machine_id: str = MACHINE_A, csr: str = "", source: str = "10.88.0.21") -> httpx.Response:
        request = EnrolmentRequest(psk=psk, facts=facts(hostname, machine_id), csr=csr or make_csr())
        return await self.internal.post("/internal/v1/enrolments", json={"request": json.loads(request.model_dump_json()), "source": source})

    async def add_host(
        self, name: str, *, group: str = "", connected: bool = True, claimed: str = "", cordoned: bool = False, address: str = "10.88.0.21", phase: str = "Free"
    ) -> None:
        """A host as the hub and the byo controller leave it."""
        await self.cases.requests._namespaces.ensure(_default_project())
        spec: dict[str, Any] = {"cordoned": cordoned}
        if claimed:
            spec["machineRef"] = {"name": claimed, "namespace": NAMESPACE, "uid": f"uid-of-{claimed}"}
        labels = {names.group_label(group): ""} if group else {}
        await self.kube.create(
            {
                "apiVersion": kinds.BYO_HOST.api_version,
                "kind": "ByoHost",
                "metadata": {"name": name, "namespace": NAMESPACE, "labels": labels},
                "spec": spec,
            }
        )
        status = {
            "conditions": [{"type": "AgentConnected", "status": "True" if connected else "False", "reason": "Test"}],
            "network": [{"ipAddrs": [address], "isDefault": True}],
            "observed": {"phase": phase, "generation": 0},
            "agent": {"connected": connected, "lastSeen": "2026-04-01T12:00:00Z", "version": "0.1.0", "address": address},
        }
        await self.kube.merge(kinds.BYO_HOST, name, NAMESPACE, {"status": status}, subresource="status")

    async def group_with_hosts(self, group: str = "workers", count: int = 2) -> None:
        await self.call("POST", "/host-groups", json={"name": group}, expect=201)
        for number in range(1, count + 1):
            await self.add_host(f"{group}-host-{number}", group=group, address=f"10.88.0.{20 + number}")


def cluster_body(**changes: Any) -> dict[str, Any]:
    body = {
        "name": "demo",
        "version": "v1.35.1",
        "cni": "cilium",
        "hostGroup": "workers",
        "workers": 2,
        "podCIDR": "10.42.0.0/16",
        "serviceCIDR": "10.43.0.0/16",
    }
    return body | changes


def _default_project() -> ProjectRef:
    return ProjectRef.of("default", "default")


class CurrentCases:
    """The use cases of the world that an application serves now."""

    def __init__(self) -> None:
        self.current: UseCases | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.current, name)


_FREE: list[tuple[CurrentCases, Gate]] = []
"""Applications that no world has. To make one's forty routes takes longer than most tests, and it keeps nothing between requests."""


@contextmanager
def public_application(cases: UseCases) -> Iterator[Gate]:
    """The application of the outer port, with these use cases behind it; of worlds that exist at the same time, each has its own."""
    served, app = _FREE.pop() if _FREE else ((made := CurrentCases()), make_public_app(cast(UseCases, made)))
    served.current = cases
    try:
        yield app
    finally:
        served.current = None
        _FREE.append((served, app))


@asynccontextmanager
async def make_world(
    directory: Path, kube: KubeSimulator | None = None, *, place: Place | None = None, clock: ManualClock | None = None
) -> AsyncIterator[World]:
    """One replica of Compass; several share `kube`, `place` and `clock`."""
    kube = kube or KubeSimulator(manager="ckp-compass")
    kube.on_create("TokenReview", review)
    clock = clock or ManualClock(datetime(2026, 4, 1, 12, tzinfo=UTC))
    database = Database(place or directory / "compass.db", clock)
    await database.open()
    settings = Settings(
        database=directory / "compass.db",
        admin_token_file=directory / "token",
        reserved=parse_reserved("hosts=10.88.0.0/24, management pods=10.244.0.0/16, management services=10.96.0.0/16"),
    )
    cases = UseCases.wire(settings, database, kube, ReleaseTable(RELEASES, AGENTS), ADMIN, clock)
    try:
        with public_application(cases) as public:
            async with (
                httpx.AsyncClient(transport=httpx.ASGITransport(public), base_url="https://compass", headers={"Authorization": f"Bearer {ADMIN}"}) as rest,
                httpx.AsyncClient(
                    transport=httpx.ASGITransport(make_internal_app(cases)), base_url="https://compass", headers={"Authorization": f"Bearer {HUB}"}
                ) as inner,
            ):
                yield World(kube, cases, clock, rest, inner, database, public)
    finally:
        await database.close()
