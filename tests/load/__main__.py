"""`make bench-hub`, or `python -m tests.load`: many agents on one hub on this machine; writes docs/benchmarks-hub.md.

Four kinds of processes over loopback: the hub as it ships; the simulated API server with this coordinator; some processes full of agents; and for
one figure a single agent as it ships. All end with the run.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from tests.load import world
from tests.load.kubeapi import KubeApi
from tests.load.page import Figures, spread, write
from tests.support.checkout import REPO

PROCESSES = 2


class Crowd:
    """Processes of agents, and what they have told so far."""

    def __init__(self) -> None:
        self.tries: list[float] = []
        self.heard: dict[str, list[tuple[float, int]]] = {}
        self._children: list[asyncio.subprocess.Process] = []
        self._readers: list[asyncio.Task[None]] = []

    async def start_all(self, url: str, top: Path, count: int, begin: float, seconds: float) -> None:
        """Agents 0..count from the monotonic time `begin` on, over so many seconds."""
        parts = PROCESSES if count >= 100 else 1
        for part in range(parts):
            first, last = count * part // parts, count * (part + 1) // parts
            await self._start(url, str(top / "hosts"), str(first), str(last), str(begin), str(seconds))

    async def _start(self, *arguments: str) -> None:
        env = {"PATH": os.environ["PATH"], "PYTHONPATH": f"{REPO / 'src'}:{REPO}"}
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.load.agents", *arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env, cwd=REPO, limit=1 << 20
        )
        self._children.append(child)
        self._readers.append(asyncio.ensure_future(self._read(child)))

    async def _read(self, child: asyncio.subprocess.Process) -> None:
        assert child.stdout is not None
        async for line in child.stdout:
            event, host, at, number = json.loads(line)
            if event == "try":
                self.tries.append(at)
            elif event == "desired":
                self.heard.setdefault(host, []).append((at, number))

    def since(self, moment: float) -> dict[str, float]:
        """Hosts that have heard the hub since, each with when it first did."""
        found = {}
        for host, heard in self.heard.items():
            first = next((at for at, _ in heard if at >= moment), None)
            if first is not None:
                found[host] = first
        return found

    def reached(self, generation: int) -> dict[str, float]:
        """Hosts that have this generation, each with when it came."""
        found = {}
        for host, heard in self.heard.items():
            first = next((at for at, number in heard if number == generation), None)
            if first is not None:
                found[host] = first
        return found

    async def end(self) -> None:
        """End all processes."""
        for child in self._children:
            if child.returncode is None:
                child.kill()
        for child in self._children:
            await child.wait()
        await asyncio.gather(*self._readers, return_exceptions=True)


async def all_of(count: int, probe: Any, within: float, what: str) -> dict[str, float]:
    """Until the probe has found that many, or the time is over: then with what there is."""
    deadline, shown = time.monotonic() + within, 0.0
    while True:
        found: dict[str, float] = probe()
        if len(found) >= count or time.monotonic() > deadline:
            say(f"{what}: {len(found)} of {count}")
            return found
        if time.monotonic() - shown > 10:
            shown = time.monotonic()
            say(f"{what}: {len(found)} of {count} so far")
        await asyncio.sleep(0.2)


def say(line: str) -> None:
    """Progress, for whoever waits."""
    print(f"load: {line} (load average {os.getloadavg()[0]:.1f})", flush=True)


def peak_rate(tries: list[float]) -> int:
    """The most connection attempts within one second of the clock."""
    return max(Counter(int(at) for at in tries).values(), default=0)


async def change(site: world.Site, hub: world.Hub, crowd: Crowd, count: int, generation: int, **kind: bool) -> dict[str, float]:
    """Want something else of all hosts, written one after the other as fast as the API server takes it; how each was reached."""
    written, began, used = {}, time.monotonic(), world.cpu(hub.pid)
    for number in range(count):
        written[world.name_of(number)] = await site.desire(number, world.desired(number, generation, **kind))
    took = time.monotonic() - began
    reached = await all_of(count, lambda: crowd.reached(generation), 90, f"generation {generation}")
    used = (world.cpu(hub.pid) - used) / count * 1e3
    own = [at - written[host] for host, at in reached.items() if host in written]
    from_begin = [at - began for at in reached.values()]
    return {"reached": len(reached), "writing": took, "cpu": used, **spread(own, ""), "last": max(from_begin, default=0.0)}


async def run(options: argparse.Namespace) -> Figures:
    """The whole measurement."""
    count = options.agents
    figures = Figures(agents=count, files=world.raise_limits(), load_before=os.getloadavg()[0])
    async with AsyncExitStack() as stack:
        top = stack.enter_context(world.scratch())
        site = world.Site(top)
        say(f"{count} hosts get certificates")
        await site.hosts(count + 1)
        api = await stack.enter_async_context(KubeApi(site.kube).listen())
        hub = world.Hub(site, api.port)
        stack.callback(hub.kill)
        hub.start()
        await hub.ready()
        await asyncio.sleep(3)
        figures.rss_empty = world.resident(hub.pid)

        used, crowd = world.cpu(hub.pid), Crowd()
        stack.push_async_callback(crowd.end)
        ramp = max(5.0, count / options.rate)
        await crowd.start_all(hub.url, top, count, time.monotonic() + 3 + count / 500, ramp)
        await all_of(count, lambda: crowd.since(0), ramp * 3 + 60, "agents connected")
        figures.cpu_connect = (world.cpu(hub.pid) - used) / count * 1e3
        await asyncio.sleep(options.settle)

        agent = await one_agent(stack, figures, site, hub, count)
        say(f"all at rest for {options.rest} s")
        figures.connected = int(await hub.metric("ckp_hub_connected_hosts"))
        figures.rss_connected = world.resident(hub.pid)
        resting = [at_rest(hub.pid, options.rest, api), *([at_rest(agent.pid, options.rest)] if agent else [])]
        (figures.cpu_rest, figures.writes_rest), *of_agent = await asyncio.gather(*resting)
        figures.rss_rest = world.resident(hub.pid)
        figures.load_rest = os.getloadavg()[0]
        if agent:
            figures.agent_cpu, figures.agent_rss = of_agent[0][0], world.resident(agent.pid)
            agent.terminate()
            await asyncio.to_thread(agent.wait)

        figures.changes["membership, no join data yet (2 KB)"] = await change(site, hub, crowd, count, 2, member=True)
        await asyncio.sleep(options.pause)
        figures.changes["the join data follows (6 KB)"] = await change(site, hub, crowd, count, 3, member=True, files=True)
        await asyncio.sleep(options.pause)
        figures.changes["be free again"] = await change(site, hub, crowd, count, 4, member=False)
        await asyncio.sleep(options.pause)
        figures.load_change = os.getloadavg()[0]
        figures.rss_after = world.resident(hub.pid)

        say("the hub is killed and started again at once")
        killed = time.monotonic()
        hub.kill()
        hub.start()
        back = await all_of(count, lambda: crowd.since(killed), 240, "agents are back")
        figures.back, figures.recovery = len(back), spread([at - killed for at in back.values()], "")
        tries = [at for at in crowd.tries if at >= killed]
        figures.tries, figures.peak_tries = len(tries), peak_rate(tries)
        figures.cpu_recovery = world.cpu(hub.pid)
        figures.load_recovery = os.getloadavg()[0]
        await asyncio.sleep(options.settle)
        figures.offline = site.offline(count)
        await crowd.end()
        hub.kill()

        if options.storm:
            await storm(stack, figures, site, hub, options.storm, options)
    return figures


async def at_rest(pid: int, seconds: float, api: KubeApi | None = None) -> tuple[float, float]:
    """CPU in percent of one core, and requests to the API server a second."""
    asked = sum(api.requests.values()) if api else 0
    before, began = world.cpu(pid), time.monotonic()
    await asyncio.sleep(seconds)
    took = time.monotonic() - began
    return (world.cpu(pid) - before) / took * 100, (sum(api.requests.values()) - asked) / took if api else 0.0


async def one_agent(stack: AsyncExitStack, figures: Figures, site: world.Site, hub: world.Hub, number: int) -> subprocess.Popen[bytes] | None:
    """One agent as it ships, on the hub beside all others; None (and why) if it can't be had."""
    program, figures.agent_missing = await asyncio.to_thread(world.zipapp)
    if program is None:
        return None
    child = world.start_agent(program, site.top / "hosts" / str(number), hub)
    stack.callback(child.wait)
    stack.callback(child.kill)
    await asyncio.sleep(15)
    if child.poll() is not None:
        figures.agent_missing = f"it ended with {child.returncode}"
        return None
    return child


async def storm(stack: AsyncExitStack, figures: Figures, site: world.Site, hub: world.Hub, count: int, options: argparse.Namespace) -> None:
    """That many hosts at one moment, on a hub that has just started."""
    say(f"{count} hosts get certificates")
    await site.hosts(count)
    hub.start()
    await hub.ready()
    crowd = Crowd()
    stack.push_async_callback(crowd.end)
    begin = time.monotonic() + 10 + count / 500
    await crowd.start_all(hub.url, site.top, count, begin, 0.0)
    await asyncio.sleep(begin - time.monotonic())
    say(f"{count} hosts connect at once")
    back = await all_of(count, lambda: crowd.since(begin), options.within, "hosts are connected")
    figures.storm_cpu = world.cpu(hub.pid)
    figures.storm, figures.storm_back = count, len(back)
    figures.storm_times = spread([at - begin for at in back.values()], "")
    figures.storm_tries, figures.storm_peak_tries = len(crowd.tries), peak_rate(crowd.tries)
    figures.storm_rss, figures.storm_rss_peak = world.resident(hub.pid), world.peak(hub.pid)
    await asyncio.sleep(10)
    figures.storm_connected = int(await hub.metric("ckp_hub_connected_hosts"))
    figures.storm_offline = site.offline(count)
    figures.load_storm = os.getloadavg()[0]
    await crowd.end()
    hub.kill()


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(prog="python -m tests.load", description=__doc__)
    parser.add_argument("--agents", type=int, default=2000)
    parser.add_argument("--storm", type=int, default=10_000, help="hosts that connect at once after a restart; 0: none")
    parser.add_argument("--rate", type=float, default=25.0, help="agents that are started a second")
    parser.add_argument("--rest", type=float, default=60.0, help="seconds over which CPU at rest is measured")
    parser.add_argument("--settle", type=float, default=25.0)
    parser.add_argument("--pause", type=float, default=60.0, help="seconds between two changes, while the agents work on the last one")
    parser.add_argument("--within", type=float, default=300.0, help="seconds after which nobody waits any longer for those of --storm")
    parser.add_argument("--output", type=Path, default=REPO / "docs" / "benchmarks-hub.md")
    parser.add_argument("--json", type=Path, help="the figures as JSON as well")
    options = parser.parse_args()
    figures = asyncio.run(run(options))
    if options.json:
        options.json.write_text(json.dumps(vars(figures), indent=1))
    write(figures, options.output)
    print(f"load: {options.output} is written")


if __name__ == "__main__":
    main()
