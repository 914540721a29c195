"""The figures of one run, and the page that shows them beside the aims."""

from __future__ import annotations

import platform
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from tests.support import machine
from tests.support.checkout import REPO


@dataclass
class Figures:
    """What was measured. MB are 10^6 bytes, CPU is in percent of one core, times are in seconds."""

    agents: int
    files: int
    load_before: float
    load_rest: float = 0.0
    load_change: float = 0.0
    load_recovery: float = 0.0
    load_storm: float = 0.0
    connected: int = 0
    rss_empty: float = 0.0
    rss_connected: float = 0.0
    rss_rest: float = 0.0
    rss_after: float = 0.0
    cpu_rest: float = 0.0
    writes_rest: float = 0.0
    cpu_connect: float = 0.0
    cpu_recovery: float = 0.0
    storm_cpu: float = 0.0
    changes: dict[str, dict[str, float]] = field(default_factory=dict)
    back: int = 0
    recovery: dict[str, float] = field(default_factory=dict)
    tries: int = 0
    peak_tries: int = 0
    offline: int = 0
    agent_missing: str = ""
    agent_rss: float = 0.0
    agent_cpu: float = 0.0
    storm: int = 0
    storm_back: int = 0
    storm_connected: int = 0
    storm_times: dict[str, float] = field(default_factory=dict)
    storm_tries: int = 0
    storm_peak_tries: int = 0
    storm_rss: float = 0.0
    storm_rss_peak: float = 0.0
    storm_offline: int = 0


def spread(values: list[float], prefix: str) -> dict[str, float]:
    """Median, 99th percentile and the largest."""
    ordered = sorted(values)
    if not ordered:
        return {}
    at = {"p50": len(ordered) // 2, "p99": min(len(ordered) - 1, len(ordered) * 99 // 100), "max": len(ordered) - 1}
    return {prefix + name: ordered[index] for name, index in at.items()}


def write(figures: Figures, target: Path) -> None:
    """docs/benchmarks-hub.md."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False, cwd=REPO).stdout.strip()
    each = (figures.rss_connected - figures.rss_empty) * 1e3 / max(1, figures.connected)
    slowest = max((change.get("p99", 0.0) for change in figures.changes.values()), default=0.0)
    told = figures.recovery
    loads = ", ".join(
        f"{load:.1f} {when}"
        for load, when in (
            (figures.load_before, "before the run"),
            (figures.load_rest, "at rest"),
            (figures.load_change, "after the changes"),
            (figures.load_recovery, "after the recovery"),
        )
    )
    lines = [
        "# Benchmarks of the hub",
        "",
        f"Written by `make bench-hub` at commit {commit}, on {machine.described()}, Linux {platform.release()}.",
        "Hub, simulated API server and all agents share these cores and talk over loopback.",
        f"The load average counts them and whatever else ran on this machine: {loads}. Times depend on it more than CPU does.",
        "",
        "The hub is `python -m ckp.hub` in a process of its own, with mutual TLS 1.3; the API server is our simulator in another process, over HTTP.",
        f"The {figures.agents} agents are the agent's own Engine, Journal, Identity, Backoff and messages over state folders in memory, in two processes.",
        "Their socket is an asyncio one: five threads for each of so many agents do not fit two cores.",
        "Their steps only take time (3 to 9 s each), and their facts are made up; those of a process work in turn, one between two looks at their sockets.",
        "",
        "## Against the aims",
        "| what | measured | aim |",
        "| --- | --- | --- |",
        f"| a change for {figures.agents} hosts at once reaches its host, p99 of the slowest of the changes below | {slowest:.2f} s | under 2 s |",
        f"| after `kill -9` of the hub and its restart {figures.back} of {figures.agents} agents are back | {told.get('max', 0):.1f} s | 30 s |",
    ]
    if figures.agent_missing:
        lines.append(f"| one agent | not measured: {figures.agent_missing} | |")
    else:
        lines += [
            f"| one agent as it ships, resident | {figures.agent_rss:.1f} MB | under 30 MB |",
            f"| the same, CPU at rest | {figures.agent_cpu:.2f} % | under 0.1 % |",
        ]
    lines += [
        "",
        f"## The hub with {figures.connected} hosts",
        "| what | measured |",
        "| --- | --- |",
        f"| resident, no host | {figures.rss_empty:.0f} MB |",
        f"| resident, {figures.connected} hosts | {figures.rss_connected:.0f} MB |",
        f"| memory of one connection | {each:.0f} KB |",
        f"| resident after the changes below | {figures.rss_after:.0f} MB |",
        f"| CPU at rest, of one core | {figures.cpu_rest:.1f} % |",
        f"| requests to the API server at rest | {figures.writes_rest:.0f} a second |",
        f"| CPU of the hub for one host that connects, with its first reports | {figures.cpu_connect:.1f} ms |",
        "",
        f"## A change for all {figures.agents} hosts at once",
        "From when its Secret was written until the agent's engine has it. `all of it` begins with the first write of all.",
        "| change | reached | all written in | p50 | p99 | max | all of it | CPU of the hub, a host |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, change in figures.changes.items():
        columns = " | ".join(f"{change.get(which, 0):.2f} s" for which in ("p50", "p99", "max", "last"))
        lines.append(f"| {name} | {change['reached']:.0f} | {change['writing']:.1f} s | {columns} | {change.get('cpu', 0):.1f} ms |")
    lines += [
        "",
        "## Recovery after `kill -9` of the hub",
        "| what | measured |",
        "| --- | --- |",
        f"| agents that have their desired state again: p50, p99, last | {told.get('p50', 0):.1f} s, {told.get('p99', 0):.1f} s, {told.get('max', 0):.1f} s |",
        f"| connection attempts: all, and in the busiest second | {figures.tries}, {figures.peak_tries} |",
        f"| CPU of the hub until then, its start among it | {figures.cpu_recovery:.1f} s |",
        f"| hosts that were marked offline | {figures.offline} |",
    ]
    if figures.storm:
        times = figures.storm_times
        lines += [
            "",
            f"## {figures.storm} hosts at one moment",
            f"On a hub that has just started, with the agents' own time limits and delays. Load average at the end: {figures.load_storm:.1f}.",
            "",
            "| what | measured |",
            "| --- | --- |",
            f"| had their desired state, and connected at the end | {figures.storm_back}, {figures.storm_connected} |",
            f"| until a host has it: p50, p99, last | {times.get('p50', 0):.0f} s, {times.get('p99', 0):.0f} s, {times.get('max', 0):.0f} s |",
            f"| connection attempts: all, and in the busiest second | {figures.storm_tries}, {figures.storm_peak_tries} |",
            f"| CPU of the hub until then | {figures.storm_cpu:.0f} s |",
            f"| resident: at the end, and at the most | {figures.storm_rss:.0f} MB, {figures.storm_rss_peak:.0f} MB |",
            f"| hosts that were marked offline | {figures.storm_offline} |",
        ]
    notes = REPO / "docs" / "benchmarks-hub-notes.md"
    lines += ["", notes.read_text().rstrip()] if notes.exists() else []
    target.write_text("\n".join(lines) + "\n")
