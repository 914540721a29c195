"""Building many components at once, within the cores and the memory of this machine, showing what is left."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import wait
from dataclasses import dataclass, field
from pathlib import Path

from ckp.catalog.load import Catalog, Chosen
from ckp.distribution.builder.component import Built, build_component, is_built
from ckp.kits import paths
from ckp.kits.clock import human_duration
from ckp.kits.errors import CkpError
from ckp.kits.steps import Group, State, Steps
from ckp.kits.stopping import pool

MEMORY_PER_BUILD = 4.0
"""GiB that one build may take: linking kube-apiserver peaks at 3."""
UNKNOWN_SECONDS = 120.0
TYPICAL_SECONDS = {
    "cilium": 1140.0,
    "kubernetes": 900.0,
    "cert-manager": 460.0,
    "cluster-api": 380.0,
    "local-path-provisioner": 320.0,
    "coredns": 320.0,
    "containerd": 280.0,
    "cosign": 270.0,
    "helm": 260.0,
    "cri-tools": 250.0,
    "distribution": 240.0,
    "konnectivity": 210.0,
    "kubernetes-e2e": 180.0,
    "imgpkg": 150.0,
}
"""What a component is taken to last that was never built here: as measured on two cores with an empty cache, two at a time; all others are short."""
AFTER = {"kubernetes-e2e": "kubernetes"}
"""A role that is begun only once another one has ended: it has mostly the same packages, which Go's build cache has then."""


def parallel_builds(cores: int, memory_gib: float) -> int:
    """How many components are built at the same time: the go command fills the cores while it compiles, and one while it links."""
    return max(1, min(cores, int(memory_gib / MEMORY_PER_BUILD)))


def available_gib() -> float:
    """Memory that can be had now (MemAvailable), in GiB."""
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    return next((int(fields[1]) / (1 << 20) for fields in lines if fields[0] == "MemAvailable:"), MEMORY_PER_BUILD)


def last_seconds(component: str) -> float | None:
    """How long the latest build of a component took on this machine, whichever version it was; None if there was none."""
    records = sorted((paths.cache() / "builds").glob(f"{component}-v*/build.json"), key=lambda path: path.stat().st_mtime)
    for record in reversed(records):
        data = json.loads(record.read_text())
        if data.get("component") == component:
            return float(data["seconds"])
    return None


@dataclass
class _Progress:
    """What is built, what is left, and how long that may take."""

    expected: dict[str, float]
    workers: int
    say: Callable[[str], None]
    group: Group | None = None
    """Shows each component, in the order of `expected`."""
    numbers: dict[str, int] = field(init=False)
    started: dict[str, float] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.numbers = {role: number for number, role in enumerate(self.expected, 1)}
        if self.group is not None:
            self.group.summary = self.left

    def begin(self, chosen: Chosen, known: float | None) -> None:
        with self.lock:
            self.started[chosen.role] = time.monotonic()
        self.show(chosen, State.RUNNING)
        last = f", last time {human_duration(known)}" if known is not None else ""
        self.say(f"building {chosen.source.component} {chosen.source.version}{last}")

    def end(self, chosen: Chosen) -> None:
        with self.lock:
            took = time.monotonic() - self.started[chosen.role]
            del self.expected[chosen.role]
            left = len(self.expected)
            rest = self.remaining()
        self.show(chosen, State.DONE)
        more = f"; {left} left, about {human_duration(rest)}" if left else ""
        self.say(f"built {chosen.source.component} {chosen.source.version} in {human_duration(took)}{more}")

    def show(self, chosen: Chosen, state: State) -> None:
        """What became of a component; not to be called with `lock` held, which `left` takes."""
        if self.group is not None:
            self.group.set(self.numbers[chosen.role], state)

    def left(self) -> str:
        """What is left now, and for how long."""
        with self.lock:
            return f"{len(self.expected)} left, about {human_duration(self.remaining())}" if self.expected else ""

    def remaining(self) -> float:
        """Seconds that the rest may take: the work that is left over the workers, but not less than the longest piece."""
        now = time.monotonic()
        rest = [max(0.0, seconds - (now - self.started[role] if role in self.started else 0.0)) for role, seconds in self.expected.items()]
        return max(sum(rest) / self.workers, max(rest, default=0.0))


def build_all(catalog: Catalog, components: Sequence[Chosen], stamp: str, say: Callable[[str], None], steps: Steps | None = None) -> dict[str, Built]:
    """Build every component that is not built; returns them by role.

    The longest go first, so that the last one to end is a short one. After a failure nothing new is begun, and what is under way ends;
    an interrupt ends that as well.

    Raises:
        CkpError: of the first component that failed, naming the others that failed beside it.
    """
    missing = [chosen for chosen in components if not is_built(catalog, chosen, stamp)]
    if missing:
        known = {chosen.role: last_seconds(chosen.source.component) for chosen in missing}
        expected = {
            chosen.role: TYPICAL_SECONDS.get(chosen.source.component, UNKNOWN_SECONDS) if (seconds := known[chosen.role]) is None else seconds
            for chosen in missing
        }
        missing.sort(key=lambda chosen: -expected[chosen.role])
        expected = {chosen.role: expected[chosen.role] for chosen in missing}
        workers = parallel_builds(os.cpu_count() or 1, available_gib())
        group = steps.group([("", f"{chosen.source.component} {chosen.source.version}") for chosen in missing], announced=False) if steps else None
        for item, chosen in zip(group.items if group else [], missing, strict=False):
            item.typical = known[chosen.role]
        progress = _Progress(expected, workers, say, group)
        here = "" if any(seconds is not None for seconds in known.values()) else " where there are two cores"
        estimate = f"about {human_duration(progress.remaining())}{here}"
        say(f"{len(components) - len(missing)} components unchanged, {len(missing)} to build, {workers} at a time: {estimate}")
        _run(catalog, missing, stamp, known, progress, workers)
    return {chosen.role: build_component(catalog, chosen, stamp, say) for chosen in components}


@dataclass
class _Queue:
    """What is not begun yet; safe to use from many threads."""

    waiting: list[Chosen]
    under_way: set[str] = field(default_factory=set)
    """Their roles."""
    stopped: bool = False
    changed: threading.Condition = field(default_factory=threading.Condition)

    def take(self) -> Chosen | None:
        """The first one that may begin; waits for what it comes after. None if nothing more is to begin."""
        with self.changed:
            while self.waiting and not self.stopped:
                left = self.under_way | {chosen.role for chosen in self.waiting}
                ready = next((chosen for chosen in self.waiting if AFTER.get(chosen.role) not in left), None)
                if ready is not None:
                    self.waiting.remove(ready)
                    self.under_way.add(ready.role)
                    return ready
                self.changed.wait()
            return None

    def ended(self, chosen: Chosen, *, failed: bool = False) -> None:
        """One has ended; after a failure nothing more begins."""
        with self.changed:
            self.under_way.remove(chosen.role)
            self.stopped = self.stopped or failed
            self.changed.notify_all()


def _run(catalog: Catalog, ordered: list[Chosen], stamp: str, known: dict[str, float | None], progress: _Progress, workers: int) -> None:
    queue = _Queue(list(ordered))
    failed: list[tuple[Chosen, BaseException]] = []

    def work() -> None:
        while (chosen := queue.take()) is not None:
            try:
                progress.begin(chosen, known[chosen.role])
                build_component(catalog, chosen, stamp, progress.say)
                progress.end(chosen)
            except BaseException as error:
                failed.append((chosen, error))
                progress.show(chosen, State.FAILED if isinstance(error, Exception) else State.INTERRUPTED)
                queue.ended(chosen, failed=True)
            else:
                queue.ended(chosen)

    with pool(workers, "build") as threads:
        wait([threads.submit(work) for _ in range(workers)])
    if not failed:
        return
    failed.sort(key=lambda item: ordered.index(item[0]))
    error = failed[0][1]
    if len(failed) > 1 and isinstance(error, CkpError):
        others = "\n".join(f"{chosen.source.component} {chosen.source.version}: {str(problem).splitlines()[0]}" for chosen, problem in failed[1:])
        error.details = f"{error.details}\nalso failed:\n{others}".strip()
    raise error
