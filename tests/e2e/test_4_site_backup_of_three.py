"""A site of three servers is backed up, loses all of them, and comes back on three new ones: the first alone, which the others join."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator

import pytest

from ckp.kits.retry import wait_until
from ckp.lab.lab import HostSpec, LabHost
from tests.support.several_masters import Writer, members, nodes
from tests.support.site_place import NAME, SERVER, Place, prepared, write_site

pytestmark = [pytest.mark.e2e, pytest.mark.long, pytest.mark.root("boots whole hosts")]

SERVERS = (SERVER, HostSpec("server-2", "10.177.96.12"), HostSpec("server-3", "10.177.96.13"))
NAMES = [server.name for server in SERVERS]
VIRTUAL = "10.177.96.60"
ADMIN = "/etc/kubernetes/admin.conf"
MARK, LATER = "written-before-the-backup", "written-after-the-backup"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with prepared(tmp_path_factory.mktemp("three"), SERVERS) as made:
        write_site(made, SERVERS, "--virtual-address", VIRTUAL)
        print(made.ckp("site", "apply", "-f", str(made.file), "--profile", "lab", timeout=2400).stdout)
        yield made


def kubectl(host: LabHost, *arguments: str) -> str:
    return host.run(["kubectl", f"--kubeconfig={ADMIN}", f"--server=https://{host.address}:6443", *arguments], timeout=120).stdout


def all_ok(place: Place) -> bool:
    done = place.ckp("site", "status", "-f", str(place.file), "-o", "json", check=False)
    return {part["state"] for part in json.loads(done.stdout)} == {"ok"}


def test_three_servers_are_lost_and_three_new_ones_are_the_site(place: Place) -> None:
    secret, file = place.folder / "passphrase", place.folder / "site.backup"
    secret.write_text("correct horse battery staple\n")
    secret.chmod(0o600)
    kubectl(place.host, "create", "configmap", MARK, "--namespace=default", "--from-literal=a=b")
    done = place.ckp("site", "backup", "-f", str(place.file), "--output", str(file), "--passphrase-file", str(secret), "-o", "json", timeout=1200)
    made = json.loads(done.stdout)
    print(done.stderr)
    assert list(made["hosts"]) == NAMES and {volume["host"] for volume in made["volumes"]} <= set(NAMES)
    uid = kubectl(place.host, "get", "namespace", "kube-system", "-o", "jsonpath={.metadata.uid}")
    kubectl(place.host, "create", "configmap", LATER, "--namespace=default", "--from-literal=a=b")

    for host in list(place.hosts.values()):
        host.remove()
    shutil.rmtree(place.state)
    for server in SERVERS:
        place.add(server)
    arguments = ("-f", str(place.file), str(file), "--passphrase-file", str(secret), "--signed-by", made["signedBy"], "--profile", "lab")
    print(place.ckp("site", "restore", *arguments, timeout=3000).stdout)

    assert nodes(place.host) == dict.fromkeys(NAMES, True) and members(place.host) == dict.fromkeys(NAMES, "voter")
    assert kubectl(place.host, "get", "namespace", "kube-system", "-o", "jsonpath={.metadata.uid}") == uid
    names = kubectl(place.host, "get", "configmaps", "--namespace=default", "-o", "name").split()
    assert f"configmap/{MARK}" in names and f"configmap/{LATER}" not in names
    wait_until(lambda: all_ok(place), what=f"all parts of {NAME} are ok", timeout=300, every=5)
    with Writer(place.host.pull(ADMIN).decode(), VIRTUAL) as writer:
        assert len(writer.acknowledged) > 20, "writes go through the virtual address"
    for host in place.hosts.values():
        assert host.run(["test", "-e", "/var/lib/ckp-restored"], timeout=30, check=False).code == 1, "no key is left where it is not needed"
    again = place.ckp("site", "restore", *arguments, check=False)
    assert again.code == 1 and "is in use, and nothing was changed" in again.stderr
