"""What CKP relies on in etcd, asked of the real one: space and alarms over its JSON gateway, probes at the quota, and how a member without data starts."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from ckp.clients.etcd import Alarm, Credentials, EtcdError, EtcdMember, connect
from ckp.kits.processes import Daemon
from ckp.kits.retry import wait_until
from ckp.rules.etcd import MIB, is_without_data
from tests.support.control_plane import built, free_port
from tests.worlds.tls import make_authority, make_leaf, write_pair

pytestmark = pytest.mark.component

QUOTA = 16 * MIB
START = 60.0


@dataclass
class RealEtcd:
    """One member on loopback, its client port over mutual TLS."""

    folder: Path
    name: str = "m0"
    peers: dict[str, int] = field(default_factory=dict)
    client_port: int = field(default_factory=free_port)
    metrics_port: int = field(default_factory=free_port)

    def __post_init__(self) -> None:
        self.peers = self.peers or {self.name: free_port()}
        self.daemon = Daemon(f"etcd {self.name}", self.folder / f"{self.name}.pid", self.folder / f"{self.name}.log")
        authority = make_authority("etcd-ca")
        (self.folder / "ca.crt").write_text(authority.pem)
        server, key = make_leaf(authority, common_name="etcd", server=True, client=True)
        self.pair = write_pair(self.folder, "server", server, key)
        client, client_key = make_leaf(authority, common_name="kube-apiserver-etcd-client")
        pair = write_pair(self.folder, "client", client, client_key)
        self.credentials = Credentials(authority.pem.encode(), pair[0].read_bytes(), pair[1].read_bytes())

    @property
    def data(self) -> Path:
        return self.folder / f"{self.name}-data"

    def start(self, state: str = "new", *more: str) -> None:
        client, peer = f"https://127.0.0.1:{self.client_port}", f"http://127.0.0.1:{self.peers[self.name]}"
        self.daemon.start(
            [
                built("etcd").binary("etcd"),
                f"--name={self.name}",
                f"--data-dir={self.data}",
                f"--listen-client-urls={client}",
                f"--advertise-client-urls={client}",
                f"--listen-peer-urls={peer}",
                f"--initial-advertise-peer-urls={peer}",
                f"--initial-cluster={','.join(f'{name}=http://127.0.0.1:{port}' for name, port in self.peers.items())}",
                f"--listen-metrics-urls=http://127.0.0.1:{self.metrics_port}",
                f"--cert-file={self.pair[0]}",
                f"--key-file={self.pair[1]}",
                f"--trusted-ca-file={self.folder / 'ca.crt'}",
                "--client-cert-auth=true",
                f"--quota-backend-bytes={QUOTA}",
                f"--initial-cluster-state={state}",
                "--unsafe-no-fsync",
                *more,
            ]
        )

    def get(self, path: str) -> int:
        """The status of a probe; 0 if nobody answers."""
        try:
            return httpx.get(f"http://127.0.0.1:{self.metrics_port}{path}", trust_env=False, timeout=10).status_code
        except httpx.HTTPError:
            return 0

    def wait(self) -> None:
        wait_until(lambda: self.get("/readyz") == 200, what=f"{self.name} is ready", timeout=START, every=0.2, reason=self.daemon.tail)

    def connect(self) -> EtcdMember:
        return connect(f"https://127.0.0.1:{self.client_port}", self.credentials)


@contextmanager
def running(etcd: RealEtcd) -> Iterator[RealEtcd]:
    try:
        etcd.start()
        etcd.wait()
        yield etcd
    finally:
        etcd.daemon.stop()


@pytest.fixture
async def etcd(tmp_path: Path) -> AsyncIterator[RealEtcd]:
    with running(RealEtcd(tmp_path)) as made:
        yield made


async def put(member: EtcdMember, key: str, count: int) -> None:
    """Write so many bytes under a key, over the same gateway."""
    await member._post("/v3/kv/put", {"key": base64.b64encode(key.encode()).decode(), "value": base64.b64encode(b"x" * count).decode()})


async def test_the_real_etcd_is_read_filled_emptied_and_disarmed_as_the_simulated_one(etcd: RealEtcd) -> None:
    member = etcd.connect()
    first = await member.status()
    assert first.cluster_id and first.member_id == first.leader and first.version.startswith("3.")
    assert await member.alarms() == []
    with pytest.raises(EtcdError, match="space"):
        for _ in range(100):  # versions of one key: a compaction forgets all but the last
            await put(member, "a", MIB)
    assert await member.alarms() == [Alarm(first.member_id, "NOSPACE")]
    full = await member.status()
    assert full.revision > first.revision and full.size >= 0.9 * QUOTA
    # The probes' paths: only /health fails at the quota.
    assert (etcd.get("/livez"), etcd.get("/readyz"), etcd.get("/health")) == (200, 200, 503)
    await member.compact(full.revision)
    await member.compact(full.revision)  # once more is no error
    await member.defragment()
    empty = await member.status()
    assert empty.size < full.size / 2 and empty.in_use <= empty.size
    [alarm] = await member.alarms()
    await member.disarm(alarm)
    assert await member.alarms() == []
    await put(member, "a", MIB)
    await member.close()


async def test_nobody_without_a_certificate_of_the_clusters_ca_is_answered(etcd: RealEtcd, tmp_path: Path) -> None:
    stranger = make_authority("other-ca")
    pem, key = make_leaf(stranger, common_name="kube-apiserver-etcd-client")
    (tmp_path / "stranger").mkdir()
    pair = write_pair(tmp_path / "stranger", "client", pem, key)
    member = connect(f"https://127.0.0.1:{etcd.client_port}", Credentials(etcd.credentials.ca, pair[0].read_bytes(), pair[1].read_bytes()))
    with pytest.raises(EtcdError):
        await member.status()
    await member.close()


def test_a_member_with_data_does_not_ask_whether_the_cluster_is_new_and_one_without_refuses_to_make_an_empty_one(tmp_path: Path) -> None:
    """What keeps a lost volume from coming up as an empty cluster."""
    etcd = RealEtcd(tmp_path)
    with running(etcd):
        etcd.daemon.stop()
        etcd.start("existing")
        etcd.wait()
        etcd.daemon.stop()
        etcd.data.rename(tmp_path / "lost")
        etcd.start("existing")
        wait_until(lambda: etcd.daemon.pid() is None, what="etcd gives up", timeout=START, every=0.2, reason=etcd.daemon.tail)
        # What the kubelet keeps of a container's log as its last words (terminationMessagePolicy).
        assert is_without_data(etcd.daemon.log.read_bytes()[-2048:].decode())
        assert not (etcd.data / "member" / "wal").exists() or not list((etcd.data / "member" / "wal").glob("*.wal"))


async def test_three_members_survive_the_loss_of_one_and_of_its_volume_without_a_second_cluster(tmp_path: Path) -> None:
    """With 'existing' a member without data joins the cluster that there is, or ends and says why; it never makes one of its own."""
    peers = {f"m{index}": free_port() for index in range(3)}
    members = []
    for name in peers:
        (tmp_path / name).mkdir()
        members.append(RealEtcd(tmp_path / name, name, peers))
    try:
        for member in members:
            member.start("new")
        for member in members:
            member.wait()
        clients = [member.connect() for member in members]
        ids = {(await client.status()).cluster_id for client in clients}
        assert len(ids) == 1
        await put(clients[0], "a", 1000)
        lost = members[2]
        lost.daemon.stop()
        await put(clients[0], "b", 1000)  # two of three go on
        lost.data.rename(tmp_path / "lost")
        lost.start("existing")
        wait_until(lambda: lost.daemon.pid() is None or lost.get("/readyz") == 200, what="m2 decides", timeout=START, every=0.2, reason=lost.daemon.tail)
        if lost.daemon.pid() is None:
            assert is_without_data(lost.daemon.log.read_bytes()[-2048:].decode())
        else:
            assert (await clients[2].status()).cluster_id in ids
        await put(clients[1], "c", 1000)
        assert {(await client.status()).cluster_id for client in clients[:2]} == ids
        for client in clients:
            await client.close()
    finally:
        for member in members:
            member.daemon.stop()
