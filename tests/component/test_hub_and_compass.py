"""Hub and Compass against a real API server, with exactly the rights that deploy/ gives them."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric import ec
from prometheus_client import CollectorRegistry
from websockets.asyncio.client import connect

from ckp.api import kinds, names
from ckp.api.host_protocol import Desired, EnrolmentRequest, EnrolmentStatus, Hello, JournalEntry, Report
from ckp.api.kinds import Kind
from ckp.clients.kube import Kube, KubeError
from ckp.compass.clusters.addresses import check_free
from ckp.compass.releases import ReleaseTable
from ckp.compass.rest.internal import make_internal_app
from ckp.compass.rest.public import make_public_app
from ckp.compass.services import UseCases
from ckp.compass.settings import Settings, parse_reserved
from ckp.compass.store.database import Database
from ckp.controllers.events import EventsReconciler
from ckp.controllers.lifecycle.deletion import DeletionReconciler
from ckp.hub import status as shape
from ckp.hub.desired import KubeDesired
from ckp.hub.enrolment import CompassClient, Enrolment
from ckp.hub.identity import HostCa, HostId, channel_context
from ckp.hub.replicas import Replicas
from ckp.hub.sessions.server import PATH, AgentServer
from ckp.kits.clock import SystemClock, rfc3339
from ckp.kits.errors import InvalidInput
from ckp.kits.retry import wait_until_async
from ckp.runtime.informer import Informer
from tests.support.checkout import REPO
from tests.support.control_plane import TestControlPlane
from tests.worlds.compass import RELEASES, cluster_body, facts, make_csr
from tests.worlds.tls import client_context, make_authority, make_leaf, write_pair

pytestmark = pytest.mark.component

ADMIN = "admin-token-of-at-least-twenty"
RIGHTS = ("ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding")


@dataclass
class Accounts:
    """Clients and tokens of the two ServiceAccounts, as their pods have them."""

    plane: TestControlPlane
    made: list[Kube] = field(default_factory=list)

    def kube(self, account: str, manager: str) -> Kube:
        config = dict(self.plane.kubeconfig())
        config["users"] = [{"name": "u", "user": {"token": self.token(account)}}]
        client = Kube.from_kubeconfig(config, manager=manager)
        self.made.append(client)
        return client

    def token(self, account: str, audience: str = "") -> str:
        more = (f"--audience={audience}",) if audience else ()
        return self.plane.kubectl("create", "token", account, "--namespace=ckp-system", *more).strip()


@pytest.fixture(scope="module")
def rights(plane: TestControlPlane) -> Iterator[TestControlPlane]:
    """ServiceAccounts, roles and bindings out of the manifests that are shipped."""
    for file in ("40-controllers.yaml", "50-compass.yaml", "60-hub.yaml"):
        objects = [obj for obj in yaml.safe_load_all((REPO / "deploy" / file).read_text()) if obj and obj["kind"] in RIGHTS]
        assert objects
        plane.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))
    yield plane


@pytest.fixture
async def accounts(rights: TestControlPlane) -> AsyncIterator[Accounts]:
    made = Accounts(rights)
    yield made
    for client in made.made:
        await client.close()


@dataclass
class Platform:
    """Both processes' insides in this one, in a project of their own."""

    project: str
    rest: httpx.AsyncClient
    agent: httpx.AsyncClient
    admin: Kube
    channel_port: int
    server: AgentServer
    root_pem: str
    directory: Path
    machine_id: str = ""
    """Of the machine that was enrolled last."""

    @property
    def namespace(self) -> str:
        return f"ckp-default-{self.project}"

    async def begin(self) -> None:
        """The domain's project is there from now on."""
        response = await self.rest.post("/api/v1/domains/default/projects", json={"name": self.project})
        assert response.status_code in (201, 409), response.text

    async def call(self, method: str, path: str, expect: int, body: Any = None) -> Any:
        response = await self.rest.request(method, f"/api/v1/domains/default/projects/{self.project}{path}", json=body)
        assert response.status_code == expect, response.text
        return response.json() if response.content else None

    async def enrol(self, hostname: str) -> tuple[EnrolmentStatus, ec.EllipticCurvePrivateKey]:
        """The whole way of a machine: key, request, approval, certificate."""
        key = ec.generate_private_key(ec.SECP256R1())
        psk = (await self.call("POST", "/host-psk/reset", 200))["key"]
        self.machine_id = secrets.token_hex(16)
        request = EnrolmentRequest(project=self.project, psk=psk, facts=facts(hostname, self.machine_id, agent_version="0.1.0"), csr=make_csr(key))
        answer = await self.agent.post("/v1/enrolments", content=request.model_dump_json())
        assert answer.status_code == 202, answer.text
        ticket = answer.json()
        await self.call("POST", f"/host-requests/{ticket['request_id']}/approve", 200)
        answer = await self.agent.get(f"/v1/enrolments/{ticket['request_id']}", headers={"Authorization": f"Bearer {ticket['token']}"})
        assert answer.status_code == 200, answer.text
        return EnrolmentStatus.model_validate(answer.json()), key

    def connect(self, status: EnrolmentStatus, key: ec.EllipticCurvePrivateKey) -> connect:
        pair = write_pair(self.directory, status.host, status.certificate, key)
        return connect(f"wss://localhost:{self.channel_port}{PATH}", ssl=client_context(status.ca, pair), compression=None, proxy=None)

    async def host(self, name: str) -> dict[str, Any]:
        found = await self.admin.get(kinds.BYO_HOST, name, self.namespace)
        assert found
        return found

    async def phase_is(self, name: str, phase: str) -> dict[str, Any]:
        async def look() -> dict[str, Any] | None:
            host = await self.host(name)
            return host if ((host.get("status") or {}).get("observed") or {}).get("phase") == phase else None

        return await wait_until_async(look, what=f"host {name} is {phase}", timeout=60, every=0.1)


async def _served(kube: Kube, kind: Kind) -> bool:
    """A young API server answers 429 for a new kind until its cache is filled."""
    try:
        await kube.list(kind)
    except KubeError as error:
        if error.code == 429:
            return False
        raise
    return True


@pytest.fixture
async def platform(accounts: Accounts, kube: Kube, tmp_path: Path) -> AsyncIterator[Platform]:
    for kind in (kinds.CLUSTER, kinds.MACHINE, kinds.MACHINE_DEPLOYMENT, kinds.BYO_MACHINE, kinds.BYO_MACHINE_TEMPLATE, kinds.MANAGED_CONTROL_PLANE):
        await wait_until_async(partial(_served, kube, kind), what=f"{kind.kind} is served", timeout=60, every=0.2)
    compass_kube, hub_kube = accounts.kube("ckp-compass", "ckp-compass"), accounts.kube("ckp-hub", "ckp-hub")
    clock = SystemClock()
    database = Database(tmp_path / "compass.db", clock)
    await database.open()
    settings = Settings(
        database=tmp_path / "compass.db",
        admin_token_file=tmp_path / "none",
        reserved=parse_reserved("hosts=10.88.0.0/24"),
        own_account="ckp-system/ckp-compass",
        tenant_role="ckp-compass-tenant",
    )
    cases = UseCases.wire(settings, database, compass_kube, ReleaseTable(RELEASES), ADMIN, clock)
    root = make_authority("root")
    host_ca = make_authority("host-ca", root)
    ca = HostCa(*host_ca.write(tmp_path, "host-ca"), clock)
    pair = write_pair(tmp_path, "server", *make_leaf(root, server=True))
    (tmp_path / "ca.crt").write_text(root.pem)
    (tmp_path / "hub-token").write_text(accounts.token("ckp-hub", "ckp-compass"))
    compass = CompassClient("https://compass", tmp_path / "hub-token", None, transport=httpx.ASGITransport(make_internal_app(cases)))
    enrolment = Enrolment(compass, hub_kube, ca, tmp_path / "ca.crt", CollectorRegistry())
    desired = KubeDesired(hub_kube)
    server = AgentServer(hub_kube, desired, clock, CollectorRegistry(), Replicas(hub_kube, "hub-1", clock, renew=10.0))
    following = asyncio.ensure_future(desired.run())
    try:
        async with (
            server.listen("127.0.0.1", 0, channel_context(*pair, ca)) as listening,
            httpx.AsyncClient(
                transport=httpx.ASGITransport(make_public_app(cases)), base_url="https://compass", headers={"Authorization": f"Bearer {ADMIN}"}
            ) as rest,
            httpx.AsyncClient(transport=httpx.ASGITransport(enrolment), base_url="https://hub") as agent,
        ):
            port = listening.sockets[0].getsockname()[1]
            made = Platform(f"t{secrets.token_hex(3)}", rest, agent, kube, port, server, root.pem, tmp_path)
            await made.begin()
            yield made
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await compass.close()
        await database.close()


async def test_a_project_without_a_namespace_is_empty_and_looking_makes_none(platform: Platform) -> None:
    assert await platform.call("GET", "/hosts", 200) == {"items": []}
    assert await platform.call("GET", "/clusters", 200) == {"items": []}
    await platform.call("GET", "/hosts/one", 404)
    assert await platform.admin.get(kinds.NAMESPACE, platform.namespace) is None


async def test_the_token_of_the_site_s_account_administers_the_platform_and_no_other_account_s_does(platform: Platform, accounts: Accounts) -> None:
    for account, audience, expected in (("ckp-site", "ckp-compass", 200), ("ckp-site", "", 401), ("ckp-hub", "ckp-compass", 401)):
        answer = await platform.rest.get("/api/v1/me", headers={"Authorization": f"Bearer {accounts.token(account, audience)}"})
        assert answer.status_code == expected, answer.text
        if expected == 200:
            assert (answer.json()["name"], answer.json()["roles"][0]["role"]) == ("site", "platform-administrator")


async def test_a_machine_becomes_a_host_and_its_reports_stand_beside_the_controllers_words(platform: Platform) -> None:
    status, key = await platform.enrol("worker-1")
    assert status.host == "worker-1"
    controller = platform.admin
    now = rfc3339(datetime.now(UTC))
    available = {"type": "Available", "status": "True", "reason": "Test", "lastTransitionTime": now}
    await controller.apply(shape.apply_body(HostId(platform.namespace, "worker-1"), {"conditions": [available]}), subresource="status")
    async with platform.connect(status, key) as websocket:
        await websocket.send(Hello(boot_id="b", facts=facts(machine_id=platform.machine_id, agent_version="0.1.0")).model_dump_json())
        assert Desired.model_validate_json(await asyncio.wait_for(websocket.recv(), 10)).membership is None
        journal = tuple(JournalEntry(at=now, step="preflight", outcome="done", seconds=seconds) for seconds in (0.5, 0.0, 2.0))
        await websocket.send(Report(generation=0, phase="Free", journal=journal).model_dump_json())
        host = await platform.phase_is("worker-1", "Free")
        (live,) = platform.server._sessions.values()
        await wait_until_async(lambda: _same(live._written, host), what="the hub's own part comes back as it was written: nothing to set right", timeout=60)
        assert {item["type"]: item["status"] for item in host["status"]["conditions"]} == {
            "Available": "True",
            "AgentConnected": "True",
            "IdentityUnique": "True",
        }
        assert host["status"]["agent"]["certificateSerial"]
        assert host["status"]["facts"]["os_id"] == "debian"
        assert host["status"]["journal"][0]["step"] == "preflight"
        shown = (await platform.call("GET", "/hosts", 200))["items"]
        assert [(item["name"], item["state"], item["free"]) for item in shown] == [("worker-1", "Free", True)]

    async def offline() -> bool:
        return shape.condition_of(await platform.host("worker-1")).get("status") == "False"

    await wait_until_async(offline, what="the host that said goodbye is offline", timeout=60, every=0.1)
    host = await platform.host("worker-1")
    assert host["status"]["agent"]["certificateSerial"], "our apply does not take away what it does not name"
    assert len(host["status"]["conditions"]) == 3


async def _same(written: shape.Status, host: dict[str, Any]) -> bool:
    return bool(written) and shape.without_time(written) == shape.without_time(shape.written_of(host))


async def test_a_secret_that_changes_reaches_its_host(platform: Platform) -> None:
    status, key = await platform.enrol("worker-1")
    async with platform.connect(status, key) as websocket:
        await websocket.send(Hello(boot_id="b", facts=facts(machine_id=platform.machine_id)).model_dump_json())
        await asyncio.wait_for(websocket.recv(), 10)
        secret = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": f"{platform.namespace}.worker-1", "namespace": names.HOSTS_NAMESPACE, "labels": {"ckp.coredge.io/host": "worker-1"}},
            "stringData": {"desired.json": Desired(generation=3, host="worker-1").model_dump_json()},
        }
        await platform.admin.create(secret)
        assert Desired.model_validate_json(await asyncio.wait_for(websocket.recv(), 10)).generation == 3
        await platform.admin.delete(kinds.SECRET, f"{platform.namespace}.worker-1", names.HOSTS_NAMESPACE)
        assert Desired.model_validate_json(await asyncio.wait_for(websocket.recv(), 10)).generation == 0


async def test_a_cluster_becomes_objects_that_the_api_server_takes_and_goes_again(platform: Platform) -> None:
    status, key = await platform.enrol("worker-1")
    async with platform.connect(status, key) as websocket:
        await websocket.send(Hello(boot_id="b", facts=facts(machine_id=platform.machine_id)).model_dump_json())
        await websocket.send(Report(generation=0, phase="Free").model_dump_json())
        await platform.phase_is("worker-1", "Free")
        await platform.call("POST", "/host-groups", 201, {"name": "workers"})
        await platform.call("PUT", "/host-groups/workers/members/worker-1", 200)
        await platform.call("POST", "/clusters", 422, cluster_body())
        made = await platform.call("POST", "/clusters", 201, cluster_body(workers=1))
        assert (made["phase"], made["hostGroup"]) == ("Pending", "workers")
        for kind, name in (
            (kinds.CLUSTER, "demo"),
            (kinds.MANAGED_CONTROL_PLANE, "demo"),
            (kinds.BYO_CLUSTER, "demo"),
            (kinds.BYO_MACHINE_TEMPLATE, "demo-workers"),
            (kinds.KUBEADM_CONFIG_TEMPLATE, "demo-workers"),
            (kinds.MACHINE_DEPLOYMENT, "demo-workers"),
        ):
            assert await platform.admin.get(kind, name, platform.namespace), kind.kind
        await platform.call("POST", "/clusters", 409, cluster_body(workers=1))
        # Broken off before the last object: the same request completes it.
        await platform.admin.delete(kinds.MACHINE_DEPLOYMENT, "demo-workers", platform.namespace)
        await platform.call("POST", "/clusters", 201, cluster_body(workers=1))
        assert await platform.admin.get(kinds.MACHINE_DEPLOYMENT, "demo-workers", platform.namespace)
        secret = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "demo-kubeconfig", "namespace": platform.namespace},
            "stringData": {"value": "kind: Config\n"},
        }
        await platform.admin.create(secret)
        response = await platform.rest.get(f"/api/v1/domains/default/projects/{platform.project}/clusters/demo/kubeconfig")
        assert response.text == "kind: Config\n"
        await platform.call("DELETE", "/clusters/demo", 202)
        assert (await platform.call("GET", "/clusters/demo", 200))["phase"] == "Deleting"
        for _ in range(2):  # the workers first, then the cluster: the controllers' part
            await DeletionReconciler(platform.admin).reconcile(platform.namespace, "demo")
        await platform.call("GET", "/clusters/demo", 404)


async def test_a_removed_host_is_cut_off_and_not_made_again(platform: Platform) -> None:
    status, key = await platform.enrol("worker-1")
    async with platform.connect(status, key) as websocket:
        await websocket.send(Hello(boot_id="b", facts=facts(machine_id=platform.machine_id)).model_dump_json())
        await websocket.send(Report(generation=0, phase="Free").model_dump_json())
        await platform.phase_is("worker-1", "Free")
        await platform.call("DELETE", "/hosts/worker-1", 204)
        await websocket.send(Report(generation=0, phase="Failed").model_dump_json())
        await asyncio.wait_for(websocket.wait_closed(), 10)
        assert websocket.close_code == 1008
    assert await platform.admin.get(kinds.BYO_HOST, "worker-1", platform.namespace) is None


async def test_what_becomes_of_a_host_is_written_by_the_controllers_and_shown_by_compass(platform: Platform, accounts: Accounts) -> None:
    status, key = await platform.enrol("worker-1")
    async with platform.connect(status, key) as websocket:
        await websocket.send(Hello(boot_id="b", facts=facts(machine_id=platform.machine_id)).model_dump_json())
        await websocket.send(Report(generation=0, phase="Free").model_dump_json())
        await platform.phase_is("worker-1", "Free")
        controllers = accounts.kube("ckp-controllers", "ckp-controllers")
        informer = Informer(controllers, kinds.BYO_HOST, platform.namespace)
        await informer._list()
        await EventsReconciler(controllers, SystemClock(), informer).reconcile(platform.namespace, "worker-1")
    found = (await platform.call("GET", "/hosts/worker-1/events", 200))["items"]
    assert ("Normal", "AgentConnected") in [(item["type"], item["reason"]) for item in found]
    with pytest.raises(KubeError) as told:
        await controllers.list(kinds.EVENT, platform.namespace)
    assert told.value.code == 403, "they write events and read none"


async def test_only_the_hubs_token_for_our_audience_may_enrol(platform: Platform, accounts: Accounts) -> None:
    for token in (accounts.token("ckp-hub"), accounts.token("ckp-compass", "ckp-compass"), "made-up"):
        (platform.directory / "hub-token").write_text(token)
        answer = await platform.agent.get("/v1/enrolments/abc", headers={"Authorization": "Bearer t"})
        assert answer.status_code == 503
    (platform.directory / "hub-token").write_text(accounts.token("ckp-hub", "ckp-compass"))
    answer = await platform.agent.get("/v1/enrolments/abc", headers={"Authorization": "Bearer t"})
    assert answer.status_code == 404


async def test_neither_may_read_secrets_of_the_platform(accounts: Accounts, platform: Platform) -> None:
    await platform.enrol("worker-1")  # Compass has been let into a tenant's namespace
    for account in ("ckp-compass", "ckp-hub"):
        client = accounts.kube(account, account)
        for namespace in ("ckp-system", "kube-system", platform.namespace if account == "ckp-hub" else "default"):
            with pytest.raises(KubeError) as told:
                await client.get(kinds.SECRET, "ckp-host-ca", namespace)
            assert told.value.code == 403
    with pytest.raises(KubeError) as told:
        await accounts.kube("ckp-hub", "ckp-hub").merge(kinds.BYO_HOST, "worker-1", platform.namespace, {"spec": {"machineRef": {"name": "x"}}})
    assert told.value.code == 403


async def test_compass_may_see_who_has_an_address_and_change_nothing_of_it(accounts: Accounts, kube: Kube, namespace: str) -> None:
    """Also in a management cluster without Cilium, which does not know its kind of pool at all."""
    compass = accounts.kube("ckp-compass", "ckp-compass")
    await check_free(compass, "10.88.0.101", namespace=namespace, cluster="demo")
    service: dict[str, Any] = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": namespace}}
    service["spec"] = {"ports": [{"port": 80}], "externalIPs": ["10.88.0.101"]}
    with pytest.raises(KubeError) as told:
        await compass.create(service)
    assert told.value.code == 403
    await kube.create(service)
    with pytest.raises(InvalidInput, match=f"10.88.0.101 is taken by Service {namespace}/web"):
        await check_free(compass, "10.88.0.101", namespace=namespace, cluster="demo")
