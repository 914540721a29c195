"""`make bench-upgrade`: a cluster is upgraded in the lab by one minor; writes docs/benchmarks-upgrade.md.

One API server, one member of etcd, two workers, everything built and every bundle on its host before. Figures are also ratios to the creation of the cluster
in the same run: that is what may be compared between machines.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from ckp.kits.clock import human_duration, parse_rfc3339
from ckp.kits.processes import run
from ckp.site import lab
from tests.support.checkout import REPO

PAGE = REPO / "docs" / "benchmarks-upgrade.md"
OLD, NEW = "v1.34.3", "v1.35.1"
CLUSTER = "demo"
AIM_CONTROL_PLANE, AIM_NODE = 10.0, 25.0
"""Seconds: a control plane of one replica; a node with its bundle present, without its drain."""
INSTALL = ("save", "install", "configure", "restart", "check")
"""The steps of an agent that change a node, in their order (agent/node/upgrade_steps.py)."""


@dataclass(frozen=True)
class Figures:
    """What was measured, in seconds.

    Args:
        created: the cluster's creation, with its workers.
        whole: the whole upgrade, as the command was followed.
        control_plane: its step.
        nodes: each node from its beginning to its end, with its drain.
        hosts: each host's own steps, which have no drain: name of the step -> seconds.
    """

    created: float
    whole: float
    control_plane: float
    nodes: Sequence[float]
    hosts: Sequence[Mapping[str, float]]

    @property
    def rows(self) -> list[tuple[str, float]]:
        """What, and its seconds: of nodes and hosts the slowest."""
        return [
            ("the cluster's creation", self.created),
            ("the whole upgrade, two nodes one after the other", self.whole),
            ("control plane", self.control_plane),
            ("a node, with its drain (the slowest)", max(self.nodes)),
            ("a node's host, without the drain (the slowest)", max(sum(steps.values()) for steps in self.hosts)),
        ]


def render(figures: Figures, machine: str) -> str:
    """The page.

    Raises:
        ValueError: something took no time, so that it was not measured.
    """
    if min(seconds for _, seconds in figures.rows) <= 0:
        raise ValueError(f"these are no durations: {figures}")
    host = figures.rows[-1][1]
    slowest = max(figures.hosts, key=lambda steps: sum(steps.values()))
    lines = [
        "# Benchmarks of an upgrade",
        "",
        f"Written by `make bench-upgrade` {machine}: {OLD} to {NEW}.",
        "One API server, one member of etcd, two workers. Compare ratios, not machines: all of it shares the cores of one machine.",
        "",
        "| what | took | of the creation |",
        "| --- | --- | --- |",
        *(f"| {what} | {human_duration(seconds)} | {seconds / figures.created:.2f} |" for what, seconds in figures.rows),
        "",
        f"A control plane is to take less than {AIM_CONTROL_PLANE:.0f} s: it {_does(figures.control_plane < AIM_CONTROL_PLANE)}.",
        f"A node without its drain is to take less than {AIM_NODE:.0f} s: it {_does(host < AIM_NODE)}.",
        "",
        "## The slowest host",
        "| step | took |",
        "| --- | --- |",
        *(f"| {step} | {human_duration(seconds)} |" for step, seconds in slowest.items()),
    ]
    return "\n".join(lines) + "\n"


def _does(met: bool) -> str:
    return "does" if met else "does not"


def steps_of(journal: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The seconds of each step that changes a node, from a host's journal; of a step that was repeated, all together.

    Raises:
        ValueError: a step is missing: the host was not upgraded, or its journal is not whole.
    """
    found = {name: sum(entry["seconds"] for entry in journal if entry["step"] == f"upgrade-{name}" and entry["outcome"] != "started") for name in INSTALL}
    done = {entry["step"] for entry in journal if entry["outcome"] == "done"}
    if missing := [name for name in INSTALL if f"upgrade-{name}" not in done]:
        raise ValueError(f"the journal has no {', '.join(missing)}")
    return found


def between(row: Mapping[str, Any]) -> float:
    """Seconds from `startedAt` to `finishedAt`."""
    times: list[datetime] = [parse_rfc3339(row[key]) for key in ("startedAt", "finishedAt")]
    return (times[1] - times[0]).total_seconds()


def ckp(*arguments: str, timeout: float = 1800) -> str:
    """The command itself, as a person runs it."""
    return run([REPO / "ckp", *arguments], timeout=timeout, what=f"ckp {' '.join(arguments)}").stdout


def timed(*arguments: str, timeout: float = 1800) -> float:
    """Seconds that a command took."""
    started = time.monotonic()
    ckp(*arguments, timeout=timeout)
    return time.monotonic() - started


def measure() -> Figures:
    """In a lab that is made for it."""
    print("bench: bringing up the lab", flush=True)
    ckp("up", "--release", NEW, "--workers", "2", timeout=5400)
    ckp("site", "release", "add", OLD, "-f", str(lab.state() / lab.FILE), "--profile", "lab", timeout=3600)
    ckp("cluster", "delete", CLUSTER, "--wait", timeout=900)
    print("bench: creating a cluster", flush=True)
    created = timed("cluster", "create", CLUSTER, "--version", OLD, "--host-group", lab.GROUP, "--workers", "2", "--wait")
    print("bench: upgrading it", flush=True)
    whole = timed("cluster", "upgrade", CLUSTER, "--to", NEW)
    row = json.loads(ckp("cluster", "upgrade", CLUSTER, "-o", "json"))
    hosts = [json.loads(ckp("host", "describe", node["name"], "-o", "json")) for node in row["nodes"]]
    return Figures(created, whole, between(row["controlPlane"]), [between(node) for node in row["nodes"]], [steps_of(host["journal"]) for host in hosts])


def main() -> None:
    """Measure and write."""
    ckp("down", timeout=300)
    try:
        figures = measure()
    finally:
        ckp("down", timeout=300)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False, cwd=REPO).stdout.strip()
    PAGE.write_text(render(figures, f"at commit {commit}, on {os.cpu_count()} cores, Linux {platform.release()}"))
    print(f"bench: {Path(PAGE).relative_to(REPO)} is written")


if __name__ == "__main__":
    main()
