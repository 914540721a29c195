"""A whole site is backed up, on a lab host of its own, and comes back on a new one after its only management host was lost."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ckp.kits.retry import wait_until
from tests.support.backup_place import NAME, BackupPlace, prepared
from tests.worlds.backup import make_reader

pytestmark = [pytest.mark.e2e, pytest.mark.long, pytest.mark.root("boots whole hosts")]

MARK = "written-before-the-backup"
LATER = "written-after-the-backup"
CLUSTER = "demo"
KEPT = "/srv/ckp-backups"
SERVICE = "ckp-site-backup.service"
READY = "jsonpath={.metadata.uid} {.status.conditions[?(@.type=='Ready')].status}"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BackupPlace]:
    with prepared(tmp_path_factory.mktemp("backup")) as made:
        yield made


@pytest.fixture(scope="module")
def applied(place: BackupPlace) -> BackupPlace:
    """The site with a workload cluster of one worker, and an object in it."""
    print(place.ckp("site", "apply", "-f", str(place.file), "--profile", "lab", timeout=2400).stdout)
    place.add_worker()
    place.ckp("cluster", "create", CLUSTER, "--version", "v1.35.1", "--host-group", "default", "--workers", "1", "--wait", timeout=1500)
    place.ckp("cluster", "kubeconfig", CLUSTER, "-o", str(place.folder / "kubeconfig"))
    place.kubectl(place.folder / "kubeconfig", "create", "configmap", MARK, "--from-literal=a=b")
    return place


def backup_file(place: BackupPlace) -> Path:
    return place.folder / "site.backup"


def passphrase(place: BackupPlace) -> Path:
    file = place.folder / "passphrase"
    file.write_text("correct horse battery staple\n")
    file.chmod(0o600)
    return file


def test_a_site_is_backed_up_into_one_file_that_is_proved(applied: BackupPlace) -> None:
    place, file, secret = applied, backup_file(applied), passphrase(applied)
    before = place.host.run(["find", "/var/lib", "/tmp", "/run", "-name", "*backup*"], timeout=60).stdout
    done = place.ckp("site", "backup", "-f", str(place.file), "--output", str(file), "--passphrase-file", str(secret), "-o", "json", timeout=1200)
    print(done.stderr)
    made = json.loads(done.stdout)
    assert made["site"] == NAME and [cluster["name"] for cluster in made["clusters"]] == [CLUSTER]
    assert all(item["revision"] and item["keys"] for item in made["proof"] if item["name"].startswith("etcd/")) and len(made["proof"]) == 6
    assert file.stat().st_mode & 0o777 == 0o600
    assert place.host.run(["find", "/var/lib", "/tmp", "/run", "-name", "*backup*"], timeout=60).stdout == before, "nothing is left on the host"
    assert not (place.state / "backup" / "scratch").exists()


def test_the_management_host_makes_backups_by_itself(applied: BackupPlace) -> None:
    """By its timer's service, in its sandbox; for a reader whose secret key is elsewhere. Then the file says so no longer, and nothing of it is left."""
    place, host, before = applied, applied.host, applied.file.read_text()
    certificate, secret = make_reader(place.folder, "operator")
    host.run(["install", "-d", "-o", "nobody", "-m", "0750", KEPT], timeout=30)
    place.file.write_text(f"{before}backup: {{to: {{path: {KEPT}}}, every: 1h, keep: 2, encryptFor: [{certificate.name}]}}\n")
    print(place.ckp("site", "apply", "-f", str(place.file), "--profile", "lab", timeout=900).stdout)
    assert host.run(["systemctl", "is-enabled", "ckp-site-backup.timer"], timeout=30).stdout.strip() == "enabled"
    assert host.run(["systemctl", "is-active", "ckp-site-backup.timer"], timeout=30).stdout.strip() == "active"

    for _ in range(2):  # the timer may have been first; and one that is new is not made again
        host.run(["systemctl", "start", SERVICE], timeout=600)
    print(host.run(["journalctl", "-u", SERVICE, "--no-pager", "--output=cat"], timeout=30).stdout)
    [name] = host.run(["ls", KEPT], timeout=30).stdout.split()
    assert host.run(["stat", "-c", "%a", f"{KEPT}/{name}"], timeout=30).stdout.strip() == "600"
    assert host.run(["find", "/var/lib/ckp-backup/making", "-type", "f"], timeout=30, check=False).stdout == "", "what was in the making is gone"
    assert name in place.ckp("site", "backup", "-f", str(place.file), "--list").stdout
    verified = place.ckp("site", "backup", "-f", str(place.file), "--verify", name, "--key", str(secret), timeout=1200)
    assert "all that is in it can be restored" in verified.stdout, verified.stdout
    parts = json.loads(place.ckp("site", "status", "-f", str(place.file), "-o", "json").stdout)
    assert {part["name"]: part["state"] for part in parts if part["name"].startswith("backup")} == {"backups": "ok", "backup timer": "ok"}

    place.file.write_text(before)
    print(place.ckp("site", "apply", "-f", str(place.file), "--profile", "lab", timeout=900).stdout)
    left = host.run(["sh", "-c", "ls -d /etc/ckp-backup /var/lib/ckp-backup /etc/systemd/system/ckp-site-backup.*"], timeout=30, check=False)
    assert left.stdout == "" and host.run(["ls", KEPT], timeout=30).stdout.split() == [name], "backups stay"


def test_the_backup_is_shown_and_verified_from_the_file_alone(applied: BackupPlace) -> None:
    file, secret = backup_file(applied), str(passphrase(applied))
    shown = json.loads(applied.ckp("site", "backup", "--show", str(file), "--passphrase-file", secret, "-o", "json").stdout)
    assert {"etcd/management", f"etcd/hosted/ckp-default-default/{CLUSTER}", "compass.db", "host.tar", "state.tar", "site.yaml"} == {
        member["name"] for member in shown["members"]
    }
    done = applied.ckp("site", "backup", "--verify", str(file), "--passphrase-file", secret, timeout=1200)
    print(done.stderr, done.stdout)
    assert "all that is in it can be restored" in done.stdout
    refused = applied.ckp("site", "backup", "--verify", str(file), "--passphrase-file", secret, "--signed-by", "A" * 40, check=False)
    assert refused.code == 3 and "is signed by the key" in refused.stderr


def worker(place: BackupPlace) -> dict[str, Any]:
    """The site's only host, as Compass has it."""
    [host] = json.loads(place.ckp("host", "list", "-o", "json").stdout)["items"]
    found: dict[str, Any] = host
    return found


def test_a_site_whose_management_host_is_lost_comes_back_on_a_new_one(applied: BackupPlace) -> None:
    """The machine that applied it has lost its state, too: file, passphrase and fingerprint are all that people have kept."""
    place, secret = applied, str(passphrase(applied))
    shown = place.ckp("site", "backup", "--show", str(backup_file(place)), "--passphrase-file", secret, "-o", "json").stdout
    signed_by, kubeconfig = json.loads(shown)["signedBy"], place.folder / "kubeconfig"
    place.kubectl(kubeconfig, "create", "configmap", LATER, "--from-literal=a=b")
    was, node = worker(place), place.kubectl(kubeconfig, "get", "node", "worker-1", "-o", "jsonpath={.metadata.uid}").stdout
    arguments = ("-f", str(place.file), str(backup_file(place)), "--passphrase-file", secret, "--signed-by", signed_by, "--profile", "lab")
    refused = place.ckp("site", "restore", *arguments, check=False)
    assert refused.code == 1 and "is in use, and nothing was changed" in refused.stderr, "the site runs still"

    place.host.remove()
    shutil.rmtree(place.state)
    place.boot()
    print(place.ckp("site", "restore", *arguments, timeout=1800).stdout)

    def node_is_back() -> bool:
        asked = place.kubectl(kubeconfig, "--request-timeout=10s", "get", "node", "worker-1", "-o", READY, check=False)
        return asked.stdout == f"{node} True"

    def agent_is_back() -> bool:
        if place.ckp("host", "list", check=False).code:
            return False  # Compass may be starting
        host = worker(place)
        return bool(host["connected"]) and [host[key] for key in ("name", "cluster", "machine")] == [was[key] for key in ("name", "cluster", "machine")]

    def site_is_whole() -> bool:
        parts = json.loads(place.ckp("site", "status", "-f", str(place.file), "-o", "json", check=False).stdout)
        return {part["state"] for part in parts} == {"ok"}

    wait_until(node_is_back, what="the node is Ready, and the one that it was", timeout=400, every=5)
    wait_until(agent_is_back, what="the agent is connected without a new join", timeout=300, every=5)
    wait_until(site_is_whole, what="all parts of the site are ok", timeout=180, every=5)
    names = place.kubectl(kubeconfig, "get", "configmaps", "-o", "name").stdout.split()
    assert f"configmap/{MARK}" in names and f"configmap/{LATER}" not in names
    place.kubectl(kubeconfig, "create", "configmap", "written-after-the-restore", "--from-literal=a=b")
    assert place.host.run(["test", "-e", "/var/lib/ckp-restored"], timeout=30, check=False).code == 1, "no key is left where it is not needed"
    again = place.ckp("site", "restore", *arguments, check=False)
    assert again.code == 1 and "is in use, and nothing was changed" in again.stderr
