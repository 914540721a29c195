"""Backups of real etcds: an API server's own, and a workload cluster's behind mutual TLS. They are restored into scratch members by the release's programs."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckp.backups import archive
from ckp.backups.scratch import Programs, scratch_etcd
from ckp.clients.etcd import Credentials
from ckp.clients.signing.encryption import ReaderKey
from ckp.kits.errors import VerificationFailed
from ckp.site.backup.manifest import FORM, MANAGEMENT
from ckp.site.backup.proof import prove
from ckp.site.backup.take import scratch_folder
from tests.component.test_etcd import RealEtcd, running
from tests.support.control_plane import built
from tests.worlds.backup import CLUSTER, NAMESPACE, UID, BackupWorld, make_signer
from tests.worlds.tls import make_authority, make_leaf, write_pair

pytestmark = pytest.mark.component

CLUSTER_KEY = f"/registry/cluster.x-k8s.io/clusters/{NAMESPACE}/{CLUSTER}"
KUBE_SYSTEM = "/registry/namespaces/kube-system"
HOSTED = f"etcd/hosted/{NAMESPACE}/{CLUSTER}"


@pytest.fixture(scope="module")
def signer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_signer(tmp_path_factory.mktemp("signer") / "signer")


@pytest.fixture(scope="module")
def programs() -> Programs:
    etcd = built("etcd")
    return Programs(etcd.binary("etcd"), etcd.binary("etcdutl"))


def named(etcd: RealEtcd) -> RealEtcd:
    """With a certificate for the name that a workload cluster's member has."""
    authority = make_authority("etcd-ca")
    (etcd.folder / "ca.crt").write_text(authority.pem)
    name = f"{CLUSTER}-etcd-0.{CLUSTER}-etcd-peer.{NAMESPACE}.svc"
    # etcd's own gateway shows the server's certificate to its own member.
    write_pair(etcd.folder, "server", *make_leaf(authority, common_name="etcd", dns=(name, "localhost"), server=True, client=True))
    client = write_pair(etcd.folder, "client", *make_leaf(authority, common_name="kube-apiserver-etcd-client", client=True))
    etcd.credentials = Credentials(authority.pem.encode(), client[0].read_bytes(), client[1].read_bytes())
    return etcd


async def fill(etcd: RealEtcd, *objects: tuple[str, str]) -> int:
    """Write objects as an API server keeps them, and some more; the revision then."""
    member = etcd.connect()
    try:
        for key, value in [*objects, *((f"/registry/configmaps/default/c{number}", "x" * 9000) for number in range(60))]:
            await member._post("/v3/kv/put", {"key": base64.b64encode(key.encode()).decode(), "value": base64.b64encode(value.encode()).decode()})
        return (await member.status()).revision
    finally:
        await member.close()


@pytest.fixture
def world(tmp_path: Path, signer: Path) -> Iterator[tuple[BackupWorld, RealEtcd, RealEtcd]]:
    """A site with a workload cluster: two etcds with what a Kubernetes keeps in them."""
    made = BackupWorld(tmp_path, signer)
    for name in ("management", "hosted"):
        (tmp_path / name).mkdir()
    with running(RealEtcd(tmp_path / "management")) as management, running(named(RealEtcd(tmp_path / "hosted"))) as hosted:
        made.add_cluster()
        made.write_secret("etcd", hosted.credentials.ca, b"")
        made.write_secret("apiserver-etcd-client", hosted.credentials.certificate, hosted.credentials.key)
        files = [str(management.folder / name) for name in ("ca.crt", "client.crt", "client.key")]
        made.set_sources(f"https://127.0.0.1:{management.client_port}", files, hosted.client_port)
        yield made, management, hosted


def management_objects() -> list[tuple[str, str]]:
    return [(KUBE_SYSTEM, f"k8s kube-system {UID}"), (CLUSTER_KEY, "{}")]


async def test_a_backup_of_real_etcds_is_proved_by_restoring_it(world: tuple[BackupWorld, RealEtcd, RealEtcd], programs: Programs) -> None:
    made, management, hosted = world
    revisions = {MANAGEMENT: await fill(management, *management_objects()), HOSTED: await fill(hosted, (KUBE_SYSTEM, "k8s"), ("/registry/mark", "before"))}
    taken = made.take(programs=programs)
    await fill(hosted, ("/registry/mark", "after"))
    seen = {item.name: (item.revision, item.keys) for item in taken.seen if item.revision}
    assert seen == {MANAGEMENT: (revisions[MANAGEMENT], 62), HOSTED: (revisions[HOSTED], 62)}
    with scratch_folder(made.folder / "reading") as scratch:
        with archive.opened(made.target, FORM, ReaderKey(passphrase=made.passphrase), lambda _: taken.signed_by, scratch) as backup:
            assert [item.name for item in prove(backup, programs, scratch, print) if item.revision] == [MANAGEMENT, HOSTED]
            with scratch_etcd(backup.path(backup.manifest.member(HOSTED)), programs, scratch) as restored:
                assert restored.value("/registry/mark") == b"before"
            assert [path.name for path in scratch.iterdir() if path.name == "etcd"] == []


async def test_a_management_etcd_without_a_listed_cluster_or_of_another_one_is_no_backup(
    world: tuple[BackupWorld, RealEtcd, RealEtcd], programs: Programs
) -> None:
    made, management, hosted = world
    await fill(management, (KUBE_SYSTEM, f"k8s kube-system {UID}"))
    await fill(hosted, (KUBE_SYSTEM, "k8s"))
    with pytest.raises(VerificationFailed, match=f"does not have clusters that the backup lists: {NAMESPACE}/{CLUSTER}"):
        made.take(programs=programs)
    await fill(management, (KUBE_SYSTEM, "k8s of somebody else"), (CLUSTER_KEY, "{}"))
    with pytest.raises(VerificationFailed, match="is of another management cluster"):
        made.take(programs=programs)
    assert list((made.folder / "out").iterdir()) == []
