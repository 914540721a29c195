"""A site on a cluster that somebody has: one host, a load balancer by its class, and a registry. Only CKP's layer comes, and only that goes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ckp.kits.processes import Finished, run
from ckp.lab.lab import LabHost
from ckp.site.clusters.brought import SITE_LABEL
from ckp.site.lab import ADDON_VALUES, OS
from tests.support import several_masters
from tests.support.checkout import REPO
from tests.support.several_masters import ADMIN, MASTERS, NETWORK, RELEASE

pytestmark = [pytest.mark.e2e, pytest.mark.long, pytest.mark.lab, pytest.mark.root("boots whole hosts")]

NAME, PREFIX = "leihgabe", "infra/k8s"
COMPASS, HUB = "10.177.94.200", "10.177.94.201"
REGISTRY = f"{NETWORK.gateway}:5000"
OWNERS = f"""
apiVersion: cilium.io/v2
kind: CiliumLoadBalancerIPPool
metadata: {{name: owners}}
spec: {{blocks: [{{start: {COMPASS}, stop: 10.177.94.220}}]}}
---
apiVersion: cilium.io/v2alpha1
kind: CiliumL2AnnouncementPolicy
metadata: {{name: owners}}
spec: {{loadBalancerIPs: true, interfaces: ["^host0$", "^eth[0-9]+"]}}
---
apiVersion: v1
kind: Namespace
metadata: {{name: owners-app}}
---
apiVersion: v1
kind: ConfigMap
metadata: {{name: kept, namespace: owners-app}}
data: {{a: b}}
"""
LISTED = (
    "namespaces",
    "customresourcedefinitions",
    "clusterroles",
    "clusterrolebindings",
    "validatingwebhookconfigurations",
    "storageclasses",
    "priorityclasses",
)


@dataclass
class Owner:
    """Whose cluster it is."""

    host: LabHost
    folder: Path
    programs: Path
    """The folder with kubectl."""

    @property
    def file(self) -> Path:
        return self.folder / "site.yaml"

    def ckp(self, *arguments: str, timeout: float = 300, check: bool = True) -> Finished:
        path = f"{self.programs}:{os.environ['PATH']}"
        environment = {"CKP_CONFIG": str(self.folder / "config.json"), "CKP_PROGRESS": "plain", "PATH": path}
        return run([REPO / "ckp", *arguments], timeout=timeout, check=check, env=environment, cwd=self.folder)

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        return run([self.programs / "kubectl", f"--kubeconfig={self.folder / 'admin.conf'}", *arguments], timeout=120, stdin=stdin).stdout

    def listed(self) -> set[str]:
        """What is in the cluster beyond namespaces."""
        return {name for kind in LISTED for name in self.kubectl("get", kind, "--output=name").split()}


@pytest.fixture(scope="module")
def owner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Owner]:
    folder = tmp_path_factory.mktemp("owner")
    with several_masters.prepared() as place:
        host = place.host(MASTERS[0])
        place.install(host)
        made = Owner(host, folder, Path(place.dist.built["kubernetes"].binary("kubectl")).parent)
        (folder / "admin.conf").write_bytes(host.pull(ADMIN))
        (folder / "admin.conf").chmod(0o600)
        (folder / "ca.pem").write_bytes(place.registry.ca.read_bytes())
        # What its owner does: nodes trust the registry, and something gives addresses to Services of a class.
        certs = f"/etc/containerd/certs.d/{REGISTRY}"
        host.push(place.registry.ca, f"{certs}/ca.crt")
        host.push(f'server = "https://{REGISTRY}"\n[host."https://{REGISTRY}"]\n  ca = "{certs}/ca.crt"\n'.encode(), f"{certs}/hosts.toml")
        made.kubectl("apply", "-f", "-", stdin=OWNERS)
        write_site(made)
        yield made


def write_site(owner: Owner) -> None:
    data: dict[str, Any] = {
        "apiVersion": "ckp.coredge.io/v1alpha1",
        "kind": "Site",
        "metadata": {"name": NAME},
        "management": {"kubeconfig": "admin.conf"},
        "addresses": {
            "hosts": "10.177.94.0/24",
            "loadBalancers": {"className": "io.cilium/l2-announcer"},
            "compass": {"address": COMPASS},
            "hub": {"address": HUB},
        },
        "registry": {"existing": {"address": REGISTRY, "prefix": PREFIX, "caFile": "ca.pem"}},
        "releases": [RELEASE],
        "workers": {"systems": [OS.system]},
        "addonValues": ADDON_VALUES,
    }
    owner.file.write_text(json.dumps(data))


def planned(owner: Owner) -> dict[str, str]:
    done = owner.ckp("site", "plan", "-f", str(owner.file), "--profile", "lab", "-o", "json", check=False)
    return {item["part"]: item["action"] for item in json.loads(done.stdout)["items"]}


@pytest.fixture(scope="module")
def before(owner: Owner) -> set[str]:
    return owner.listed()


def test_the_cluster_is_judged_before_anything_is_changed(owner: Owner, before: set[str]) -> None:
    checked = owner.ckp("site", "check", "-f", str(owner.file), check=False)
    assert checked.code == 0, checked.stdout
    assert set(planned(owner).values()) == {"create", "none"} and owner.listed() == before


def test_only_the_layer_is_installed_and_compass_answers(owner: Owner, before: set[str]) -> None:
    done = owner.ckp("site", "apply", "-f", str(owner.file), "--profile", "lab", timeout=1800)
    print(done.stdout)
    assert f"The site {NAME} is up." in done.stdout and "Installing a standalone CKP node" not in done.stdout
    parts = json.loads(owner.ckp("site", "status", "-f", str(owner.file), "-o", "json").stdout)
    assert {part["state"] for part in parts} == {"ok"}
    assert json.loads(owner.ckp("hostgroup", "list", "-o", "json").stdout)["items"][0]["name"] == "default"
    assert set(planned(owner).values()) == {"none"}
    images = owner.kubectl("get", "pods", "--namespace=ckp-system", "--output=jsonpath={.items[*].spec.containers[*].image}").split()
    assert images and all(image.startswith(f"{REGISTRY}/{PREFIX}/ckp/") for image in images)


def test_removing_takes_the_layer_and_leaves_the_owners(owner: Owner, before: set[str]) -> None:
    done = owner.ckp("site", "remove", "-f", str(owner.file), "--confirm", NAME, timeout=1200)
    print(done.stdout)
    assert owner.listed() == before
    assert owner.kubectl("get", "configmap", "kept", "--namespace=owners-app", "--output=jsonpath={.data.a}") == "b"
    kinds = owner.kubectl("api-resources", "--verbs=list", "--output=name").split()
    left = owner.kubectl("get", ",".join(kinds), "--all-namespaces", f"--selector={SITE_LABEL}", "--ignore-not-found", "--output=name")
    assert left == ""
