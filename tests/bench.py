"""`make bench`: measures the main job on this machine and writes docs/benchmarks.md.

It takes the lab down first and brings up a new one. Figures are of one run on one machine; compare ratios, not machines.
"""

from __future__ import annotations

import json
import platform
import re
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ckp.catalog.load import Catalog
from ckp.distribution.release import Distribution
from ckp.kits import paths
from ckp.kits.clock import human_duration, parse_rfc3339
from ckp.kits.processes import run
from ckp.site.install import Site
from ckp.site.lab import OS, REGISTRY_ADDRESS, LabHosts, inventory
from tests.support import machine
from tests.support.checkout import REPO

NAMESPACE = "ckp-default-default"
RELEASE = "v1.35.1"
AIMS = {
    "control plane ready, one": ("under 10 s", "15.6 s"),
    "control planes ready, five at once": ("under 40 s", "64 s"),
    "memory of one hosted control plane with its etcd": ("under 360 MB", "448 MB without etcd"),
}


def ckp(*arguments: str) -> tuple[str, float]:
    """Run the command; its output and its seconds."""
    started = time.monotonic()
    done = run([REPO / "ckp", *arguments], timeout=3600)
    return done.stdout + done.stderr, time.monotonic() - started


def site() -> Site:
    """The lab as it stands."""
    catalog = Catalog()
    dist = Distribution(catalog, catalog.release(RELEASE), "lab", lambda _line: None)
    dist.build()
    dist.pack()
    dist.make_images()
    dist.make_bundles(REGISTRY_ADDRESS, [OS])
    return Site(dist, inventory(LabHosts(2)), lambda _line: None)


def control_plane(name: str) -> list[dict[str, Any]]:
    """A cluster without workers, as Compass would make it."""
    meta = {"name": name, "namespace": NAMESPACE, "labels": {"cluster.x-k8s.io/cluster-name": name}}
    control, infra = "controlplane.cluster.x-k8s.io/v1beta1", "infrastructure.cluster.x-k8s.io/v1beta1"
    spec = {
        "clusterNetwork": {"pods": {"cidrBlocks": ["10.60.0.0/16"]}, "services": {"cidrBlocks": ["10.61.0.0/16"]}},
        "controlPlaneRef": {"apiVersion": control, "kind": "ManagedControlPlane", "name": name, "namespace": NAMESPACE},
        "infrastructureRef": {"apiVersion": infra, "kind": "ByoCluster", "name": name, "namespace": NAMESPACE},
    }
    return [
        {"apiVersion": "cluster.x-k8s.io/v1beta1", "kind": "Cluster", "metadata": meta, "spec": spec},
        {"apiVersion": infra, "kind": "ByoCluster", "metadata": meta, "spec": {}},
        {"apiVersion": control, "kind": "ManagedControlPlane", "metadata": meta, "spec": {"version": RELEASE, "addons": {"cni": "none"}}},
    ]


def until_ready(lab: Site, names: list[str]) -> dict[str, float]:
    """Create control planes at once; seconds until each is ready."""
    started = time.monotonic()
    objects = [item for name in names for item in control_plane(name)]
    lab.kubectl("create", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))

    def wait(name: str) -> float:
        # One watching process each: asking again and again would cost more of these cores than what is measured.
        resource = f"managedcontrolplane/{name}"
        lab.kubectl("wait", resource, "-n", NAMESPACE, "--for=jsonpath={.status.ready}=true", "--timeout=600s", timeout=620)
        return time.monotonic() - started

    with ThreadPoolExecutor(len(names)) as pool:
        return dict(zip(names, pool.map(wait, names), strict=True))


def delete(lab: Site, names: list[str]) -> None:
    """Remove them and wait until they are gone."""
    lab.kubectl("delete", "clusters.cluster.x-k8s.io", *names, "-n", NAMESPACE, "--wait=true", "--timeout=300s", timeout=330)


def memory(lab: Site) -> dict[str, float]:
    """Working set in MB of every pod of the management host, from the kubelet."""
    summary = json.loads(lab.kubectl("get", "--raw", "/api/v1/nodes/management/proxy/stats/summary").stdout)
    return {
        f"{pod['podRef']['namespace']}/{pod['podRef']['name']}": sum(c["memory"].get("workingSetBytes", 0) for c in pod.get("containers", [])) / 1e6
        for pod in summary["pods"]
    }


def agent_memory(lab: Site) -> float:
    """Resident MB of one worker's agent."""
    script = "awk '/VmRSS/ {print $2}' /proc/$(systemctl show -p MainPID --value ckp-agent)/status"
    return int(lab.worker_hosts[0].run(["sh", "-c", script], timeout=20).stdout) / 1e3


def builds() -> list[tuple[str, float, float]]:
    """Component, seconds when it was built in this cache, MB of its programs."""
    rows = []
    for record in sorted((paths.cache() / "builds").glob("*/build.json")):
        data = json.loads(record.read_text())
        if "component" not in data:
            continue  # pause: one small C program
        size = sum(item["bytes"] for item in data["binaries"].values()) / 1e6
        rows.append((f"{data['component']} {data['version']}", float(data["seconds"]), size))
    return rows


def main() -> None:
    """Measure and write."""
    print("bench: `ckp up` with everything built", flush=True)
    ckp("down")
    output, warm = ckp("up")
    steps = re.findall(r"^\[ ?\d+/\d+\] (.*): done, (\S+)", output, flags=re.M)
    lab = site()
    ckp("cluster", "delete", "demo", "--wait")
    print("bench: one control plane", flush=True)
    one = until_ready(lab, ["bench-0"])["bench-0"]
    time.sleep(20)
    used = memory(lab)
    delete(lab, ["bench-0"])
    print("bench: five control planes", flush=True)
    names = [f"bench-{number}" for number in range(1, 6)]
    five = until_ready(lab, names)
    delete(lab, names)
    print("bench: a workload cluster of two nodes", flush=True)
    _, create = ckp("cluster", "create", "demo", "--version", RELEASE, "--host-group", "lab", "--workers", "2", "--wait")
    described, _ = ckp("cluster", "describe", "demo", "-o", "json")
    plane = sum(value for name, value in used.items() if name.startswith(f"{NAMESPACE}/bench-0-"))
    platform_memory = {part: sum(v for n, v in used.items() if n.startswith(f"ckp-system/ckp-{part}-")) for part in ("controllers", "hub", "compass")}
    rows = {
        "control plane ready, one": f"{one:.1f} s",
        "control planes ready, five at once": f"{max(five.values()):.1f} s",
        "memory of one hosted control plane with its etcd": f"{plane:.0f} MB",
    }
    write(rows, steps, warm, create, json.loads(described), platform_memory, agent_memory(lab))


def write(rows: dict[str, str], steps: list[tuple[str, str]], warm: float, create: float, demo: dict[str, Any], parts: dict[str, float], agent: float) -> None:
    """docs/benchmarks.md."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False, cwd=REPO).stdout.strip()
    lines = [
        "# Benchmarks",
        "",
        f"Written by `make bench` at commit {commit}, on {machine.described()}, Linux {platform.release()}.",
        "All hosts of the lab share these cores, so times are those of the slowest data centre that one may have.",
        "The peer is a leading hosted-control-plane operator, measured earlier on a machine of the same size.",
        "",
        "## Against the aims",
        "| what | CKP | aim | peer |",
        "| --- | --- | --- | --- |",
        *(f"| {name} | {value} | {AIMS[name][0]} | {AIMS[name][1]} |" for name, value in rows.items()),
        f"| from `cluster create` to both nodes Ready (hosts clean: packages and images come from the registry) | {create:.0f} s | under 60 s | |",
        *(f"| memory of {name} | {value:.0f} MB | {'under 100 MB' if name == 'controllers' else 'under 30 MB'} | |" for name, value in parts.items()),
        f"| memory of one agent, resident | {agent:.0f} MB | under 30 MB | |",
        "",
        "## The fourteen steps of that cluster",
        "| step | seconds since it began |",
        "| --- | --- |",
    ]
    for step in demo.get("steps", []):
        took = ""
        if step.get("startedAt") and step.get("finishedAt"):
            took = human_duration((parse_rfc3339(step["finishedAt"]) - parse_rfc3339(step["startedAt"])).total_seconds())
        lines.append(f"| {step['title']} | {took or step['state']} |")
    lines += ["", f"## `make up` with everything built: {human_duration(warm)}", "| step | took |", "| --- | --- |"]
    lines += [f"| {title} | {took} |" for title, took in steps]
    lines += ["", "## Building from source, each component as it was built into this cache", "| component | seconds | programs, MB |"]
    lines += ["| --- | --- | --- |", *(f"| {name} | {seconds:.0f} | {size:.0f} |" for name, seconds, size in builds())]
    notes = REPO / "docs" / "benchmarks-notes.md"
    lines += ["", notes.read_text().rstrip()] if notes.exists() else []
    (REPO / "docs" / "benchmarks.md").write_text("\n".join(lines) + "\n")
    print("bench: docs/benchmarks.md is written")


if __name__ == "__main__":
    main()
