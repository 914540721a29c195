"""Clusters beside the main job's: made by manifests, seen from inside and as the management cluster has them."""

from __future__ import annotations

import base64
import contextlib
import json
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx

from ckp.api.compass.clusters import ClusterRequest
from ckp.cli.up import save_kubeconfig
from ckp.clients.compass import Session, read_config
from ckp.compass.clusters.manifests import cluster_objects
from ckp.kits.errors import CkpError
from ckp.site.enrol import Enrolment
from ckp.site.install import Site
from ckp.site.lab import LabHosts, inventory
from tests.e2e.conftest import RELEASE, WORKERS, World, ckp

TENANT = "ckp-default-default"


@dataclass(frozen=True)
class Hosted:
    """One of the clusters, from inside (`world`) and as the management cluster sees it."""

    world: World
    api: httpx.Client
    context: ssl.SSLContext
    server: str

    @property
    def name(self) -> str:
        return self.world.cluster

    def managed(self, *arguments: str) -> Any:
        """`kubectl get … -o json` in its namespace of the management cluster."""
        return json.loads(self.world.management("get", *arguments, "-n", TENANT, "-o", "json").stdout)

    @property
    def status(self) -> dict[str, Any]:
        return dict(self.managed("managedcontrolplane", self.name)["status"])

    @property
    def conditions(self) -> dict[str, dict[str, str]]:
        return {item["type"]: item for item in self.status["conditions"]}

    def stands(self, kind: str, status: str, reason: str = "") -> bool:
        seen = self.conditions.get(kind, {})
        return seen.get("status") == status and (not reason or seen.get("reason") == reason)

    def pods(self, component: str) -> list[dict[str, Any]]:
        labels = f"cluster.x-k8s.io/cluster-name={self.name},app.kubernetes.io/component={component}"
        return list(self.managed("pods", "-l", labels)["items"])

    def members_ready(self) -> int:
        return sum(all(item["ready"] for item in pod["status"].get("containerStatuses") or [{"ready": False}]) for pod in self.pods("etcd"))

    def put(self, name: str, size: int = 1) -> int:
        """Write a ConfigMap of so many bytes: the status of the answer, 0 if there is none."""
        body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"kept": "x" * size}}
        with contextlib.suppress(httpx.HTTPError):
            return self.api.post("/api/v1/namespaces/default/configmaps", json=body).status_code
        return 0

    def kept(self, name: str) -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return self.api.get(f"/api/v1/namespaces/default/configmaps/{name}").status_code == 200
        return False

    def lose_volume(self, member: str) -> None:
        self.world.management("delete", "pvc", f"data-{member}", "-n", TENANT, "--wait=false")
        self.world.management("delete", "pod", member, "-n", TENANT, "--grace-period=1", "--wait=false")


def client(kubeconfig: Path) -> tuple[httpx.Client, ssl.SSLContext, str]:
    """A client with a cluster administrator's certificate."""
    config = json.loads(kubeconfig.read_text())
    cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
    pair = kubeconfig.with_suffix(".pem")
    pair.write_bytes(b"".join(base64.b64decode(user[f"client-{part}-data"]) for part in ("certificate", "key")))
    context = ssl.create_default_context(cadata=base64.b64decode(cluster["certificate-authority-data"]).decode())
    context.load_cert_chain(pair)
    pair.unlink()
    return httpx.Client(base_url=cluster["server"], verify=context, trust_env=False, timeout=30), context, cluster["server"]


@contextmanager
def more_hosts(world: World, session: Session, count: int) -> Iterator[None]:
    """So many hosts more than the main job's, enrolled and in its group; gone in the end."""
    hosts = LabHosts(WORKERS + count)
    machines = [hosts.lab.ensure_host(spec) for spec in hosts.specs[-count:]]
    try:
        Enrolment(Site(world.dist, inventory(hosts), lambda _line: None), session).run()
        yield
    finally:
        addresses = {machine.address for machine in machines}
        for row in session.get("/hosts")["items"]:
            if row["address"] in addresses:
                ckp("host", "delete", row["name"], "--force", check=False)
        for machine in machines:
            machine.remove()


def create(world: World, name: str, number: int, members: int, *, version: str = RELEASE, workers: int = 1, size: str = "160Mi") -> None:
    """By manifests, as Compass makes them but with as many members of everything as wanted.

    Args:
        number: the second number of its pods' network; its Services have the next one.
        size: of etcd's volumes; its quota follows it, and the lab's disk holds any.
    """
    plane = json.loads(world.management("get", "managedcontrolplane", "demo", "-n", TENANT, "-o", "json").stdout)
    labels = {key: value for key, value in plane["metadata"]["labels"].items() if not key.startswith("cluster.x-k8s.io")}
    request = ClusterRequest.model_validate(
        {
            "name": name,
            "version": version,
            "hostGroup": "lab",
            "workers": workers,
            "podCIDR": f"10.{number}.0.0/16",
            "serviceCIDR": f"10.{number + 1}.0.0/16",
        }
    )
    made = cluster_objects(request, plane["spec"]["addons"]["cniVersion"], namespace=TENANT, labels=labels, requested_at="2026-01-01T00:00:00Z")
    made[1]["spec"] |= {"replicas": members, "etcd": {"replicas": members, "size": size}}
    world.site.kubectl("apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": made}))


def ready(world: World, name: str) -> bool:
    with contextlib.suppress(CkpError):
        return bool(Session(read_config()).get(f"/clusters/{name}")["ready"])
    return False


def hosted(world: World, session: Session, name: str, timeout: float) -> Hosted:
    """The cluster, once it is ready."""
    world.wait(lambda: ready(world, name), f"cluster {name} is ready", timeout=timeout)
    return Hosted(replace(world, cluster=name), *client(save_kubeconfig(session, name)))
