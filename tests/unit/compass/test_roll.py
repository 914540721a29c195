"""Two processes of Compass on one PostgreSQL, one of which is replaced under clients that write and read: none of their requests fails."""

from __future__ import annotations

import asyncio
import os
import signal
import ssl
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import httpx

from ckp.compass.store.places import PostgresqlServer
from ckp.kits.retry import wait_until_async
from tests.support.checkout import REPO
from tests.support.ssh_server import free_port
from tests.worlds.compass import ADMIN, BASE
from tests.worlds.tls import Authority, make_authority, make_leaf, write_pair

DRAIN = 2.0
PROBE_SECONDS = 0.2
"""How often the balancer looks. It learns of the end of a replica as late as that, as a real one does."""
CLIENTS = 4


@dataclass
class Replica:
    port: int
    probes: int
    child: asyncio.subprocess.Process

    async def ready(self) -> bool:
        try:
            async with httpx.AsyncClient(timeout=5) as client:
                return (await client.get(f"http://127.0.0.1:{self.probes}/readyz")).status_code == 200
        except httpx.HTTPError:
            return False


@dataclass
class Balancer:
    """Who is ready, as it was seen last: a Service's endpoints."""

    replicas: list[Replica] = field(default_factory=list)
    ready: list[Replica] = field(default_factory=list)
    turn: int = 0

    async def run(self) -> None:
        while True:
            self.ready = [each for each in list(self.replicas) if await each.ready()]
            await asyncio.sleep(PROBE_SECONDS)

    async def sees(self, wanted: Replica) -> bool:
        return wanted in self.ready

    def next(self) -> Replica:
        self.turn += 1
        return self.ready[self.turn % len(self.ready)]


@asynccontextmanager
async def replica(folder: Path, root: Authority, place: PostgresqlServer) -> AsyncIterator[Replica]:
    cert, key = write_pair(folder, f"compass-{free_port()}", *make_leaf(root, server=True))
    (folder / "token").write_text(ADMIN)
    (folder / "releases.json").write_text('{"releases": {}}')
    port, probes = free_port(), free_port()
    settings = {
        "DATABASE_URL_FILE": place.url_file,
        "DATABASE_CONNECTIONS": "4",
        "DRAIN_SECONDS": str(DRAIN),
        "ADMIN_TOKEN_FILE": folder / "token",
        "RELEASES_FILE": folder / "releases.json",
        "TLS_CERT": cert,
        "TLS_KEY": key,
        "BIND": "127.0.0.1",
        "PORT": str(port),
        "INTERNAL_PORT": str(free_port()),
        "PROBE_PORT": str(probes),
    }
    environment = {**os.environ, **{f"COMPASS_{name}": str(value) for name, value in settings.items()}}
    environment["PYTHONPATH"] = os.pathsep.join([str(REPO / "src"), str(REPO), *filter(None, [os.environ.get("PYTHONPATH")])])
    with (folder / f"log-{port}").open("wb") as log:
        child = await asyncio.create_subprocess_exec(sys.executable, "-m", "tests.support.compass_process", env=environment, stdout=log, stderr=log)
    made = Replica(port, probes, child)
    try:
        await wait_until_async(made.ready, what="Compass is ready", timeout=90, every=0.1, reason=(folder / f"log-{port}").read_text)
        yield made
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()


async def test_no_request_fails_while_one_of_two_replicas_is_replaced(tmp_path: Path, shared: PostgresqlServer) -> None:
    root = make_authority("root")
    trust = ssl.create_default_context(cadata=root.pem)
    balancer = Balancer()
    failed: list[str] = []
    written: list[str] = []
    stop = asyncio.Event()

    async def use(name: str) -> None:
        """With connections that are kept, as browsers and the hub have them."""
        async with httpx.AsyncClient(verify=trust, headers={"Authorization": f"Bearer {ADMIN}"}, timeout=20) as client:
            number = 0
            while not stop.is_set():
                rule, number = f"{name}-{number}", number + 1
                for method, path, body in (
                    ("POST", "/host-approval-rules", {"name": rule, "criteria": {"hostnames": [rule]}}),
                    ("GET", f"/host-approval-rules/{rule}", None),
                ):
                    try:
                        answer = await client.request(method, f"https://localhost:{balancer.next().port}{BASE}{path}", json=body)
                        if not answer.is_success:
                            failed.append(f"{method} {path}: {answer.status_code} {answer.text}")
                    except httpx.HTTPError as error:
                        failed.append(f"{method} {path}: {error!r}")
                written.append(rule)
                await asyncio.sleep(0.01)

    async with replica(tmp_path, root, shared) as one, replica(tmp_path, root, shared) as other:
        balancer.replicas = balancer.ready = [one, other]
        following = asyncio.ensure_future(balancer.run())
        clients = [asyncio.ensure_future(use(f"c{number}")) for number in range(CLIENTS)]

        async def begun() -> bool:
            return bool(written)

        await wait_until_async(begun, what="the first write", timeout=60, every=0.05)
        before = len(written)
        async with replica(tmp_path, root, shared) as new:  # maxUnavailable: 0
            balancer.replicas = [one, other, new]
            await wait_until_async(partial(balancer.sees, new), what="the new one is used", timeout=60, every=0.05)
            one.child.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(one.child.wait(), DRAIN + 30) == 0
            balancer.replicas = [other, new]
            await asyncio.sleep(1)
            stop.set()
            await asyncio.gather(*clients)
            async with httpx.AsyncClient(verify=trust, headers={"Authorization": f"Bearer {ADMIN}"}, timeout=20) as client:
                items = (await client.get(f"https://localhost:{new.port}{BASE}/host-approval-rules")).json()["items"]
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
    assert failed == []
    assert before > 0 and len(written) > before
    assert sorted(item["name"] for item in items) == sorted(written)
