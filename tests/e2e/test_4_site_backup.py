"""A whole site is backed up, on a lab host of its own: what its file holds, and that it can be restored from it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.backup_place import NAME, BackupPlace, prepared

pytestmark = [pytest.mark.e2e, pytest.mark.long, pytest.mark.root("boots whole hosts")]

MARK = "written-before-the-backup"
CLUSTER = "demo"


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
