"""Two releases at one site, with a cluster of each: a newer one is added to a site that runs, hosts join by the line, and nothing in use is removed."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from ckp.kits.processes import run
from ckp.kits.retry import wait_until
from ckp.lab.lab import HostSpec
from ckp.site.lab import HOST_SETTINGS
from ckp.site.spec.read import dump_site, parse_site
from tests.support.site_place import REGISTRY, SERVER, Place, prepared, write_site

pytestmark = [pytest.mark.e2e, pytest.mark.long, pytest.mark.root("boots whole hosts")]

OLD, NEW = "v1.34.3", "v1.35.1"
HOSTS = (HostSpec("rack-1", "10.177.96.21"), HostSpec("rack-2", "10.177.96.22"))
CLUSTERS = {"old": (OLD, "10.42.0.0/16", "10.43.0.0/16"), "new": (NEW, "10.52.0.0/16", "10.53.0.0/16")}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with prepared(tmp_path_factory.mktemp("releases")) as made:
        write_site(made)
        spec = parse_site(made.file.read_bytes(), made.file)
        made.file.write_text(dump_site(spec.model_copy(update={"releases": (OLD,)})))
        yield made


def release(place: Place, command: str, *arguments: str, check: bool = True) -> tuple[int, str, str]:
    done = place.ckp("site", "release", command, *arguments, "-f", str(place.file), timeout=1800, check=check)
    return done.code, done.stdout, done.stderr


def offered(place: Place) -> dict[str, tuple[bool, list[str]]]:
    items = json.loads(release(place, "list", "-o", "json")[1])["items"]
    return {item["name"]: (item["management"], item["clusters"]) for item in items if item["state"] == "offered"}


def tags(place: Place, repository: str) -> list[str]:
    ca = str(place.state / "registry" / "ca.pem")
    asked = ["curl", "-sS", "--cacert", ca, "--max-time", "20", f"https://{SERVER.address}:5000/v2/ckp/{repository}/tags/list"]
    found = json.loads(run(asked, timeout=40).stdout).get("tags") or []
    return sorted(tag for tag in found if not tag.startswith("sha256-"))  # signatures and what else refers to an image


def kubelets(place: Place, cluster: str) -> list[str]:
    config = place.folder / f"{cluster}.kubeconfig"
    config.write_text(place.ckp("cluster", "kubeconfig", cluster).stdout)
    place.host.push(config.read_bytes(), f"/root/{cluster}.kubeconfig", mode=0o600)
    jsonpath = "jsonpath={.items[*].status.nodeInfo.kubeletVersion}"
    return place.host.run(["kubectl", f"--kubeconfig=/root/{cluster}.kubeconfig", "get", "nodes", "-o", jsonpath], timeout=60).stdout.split()


def test_a_site_of_the_older_release_gets_the_newer_one_beside_it(place: Place) -> None:
    print(place.ckp("site", "apply", "-f", str(place.file), "--profile", "lab", timeout=1800).stdout)
    assert offered(place) == {OLD: (True, [])}
    uid = ["kubectl", "--kubeconfig=/etc/kubernetes/admin.conf", "get", "pods", "-A", "-o", "jsonpath={.items[*].metadata.uid}"]
    system = place.host.run([*uid, "-l", "tier=control-plane"], timeout=60).stdout
    print(release(place, "add", NEW, "--profile", "lab")[1])
    assert offered(place) == {OLD: (True, []), NEW: (False, [])}
    assert f"releases:\n- {OLD}\n- {NEW}" in place.file.read_text() or f"[{OLD}, {NEW}]" in place.file.read_text()
    assert place.host.run([*uid, "-l", "tier=control-plane"], timeout=60).stdout == system, "the management cluster stays what it was"
    assert {f"{OLD}-ckp", f"{NEW}-ckp"} <= set(tags(place, "kube-apiserver"))


def test_hosts_join_by_the_line_that_the_site_gives(place: Place) -> None:
    line = place.ckp("host", "join-command", "--new-key", "--uses", str(len(HOSTS))).stdout
    for spec in HOSTS:
        machine = place.lab.ensure_host(spec)
        names = machine.pull("/etc/hosts").decode()
        machine.push(f"{names}{SERVER.address} {REGISTRY}\n".encode(), "/etc/hosts")
        machine.push(json.dumps(HOST_SETTINGS).encode(), "/etc/ckp-agent/host.json")
        done = machine.run(["sh", "-c", line], timeout=420)
        print(done.stdout)
        assert "The request has arrived" in done.stdout
        again = machine.run(["sh", "-c", line], timeout=420)
        assert "The request has arrived" in again.stdout, "the same line again goes on"
    place.ckp("host", "approve", "--all", "--group", "default")

    def free() -> bool:
        hosts = json.loads(place.ckp("host", "list", "-o", "json").stdout)["items"]
        return len(hosts) == len(HOSTS) and all(host["free"] and host["connected"] for host in hosts)

    wait_until(free, what="the hosts are free", timeout=120, every=2)
    enrolled = place.lab.host(HOSTS[0].name).run(["sh", "-c", line], timeout=60)
    assert "enrolled already" in enrolled.stdout


def test_a_cluster_of_each_release_runs_beside_the_other(place: Place) -> None:
    for name, (version, pods, services) in CLUSTERS.items():
        networks = ("--pod-cidr", pods, "--service-cidr", services)
        print(place.ckp("cluster", "create", name, "--version", version, "--host-group", "default", *networks, "--wait", timeout=1300).stdout)
    assert {name: kubelets(place, name) for name in CLUSTERS} == {"old": [f"{OLD}-ckp"], "new": [f"{NEW}-ckp"]}
    found = offered(place)
    assert [len(clusters) for _, clusters in found.values()] == [1, 1]


def test_a_release_in_use_stays_and_one_that_nothing_uses_goes(place: Place) -> None:
    before = place.file.read_text()
    code, _, said = release(place, "remove", NEW, check=False)
    assert code == 1 and "new" in said and "nothing was changed" in said and place.file.read_text() == before
    code, _, said = release(place, "remove", OLD, check=False)
    assert code == 1 and f"the management cluster runs {OLD}" in said
    place.ckp("cluster", "delete", "new", "--wait", timeout=600)
    removed = release(place, "remove", NEW)[1]
    print(removed)
    assert int(removed.partition(" MB freed")[0].split()[-1]) > 100, "its space is free again"
    assert list(offered(place)) == [OLD] and NEW not in place.file.read_text()
    assert tags(place, "kube-apiserver") == [f"{OLD}-ckp"], "what no other release needs has gone"
    assert kubelets(place, "old") == [f"{OLD}-ckp"], "the other cluster has not noticed"
