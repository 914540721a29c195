"""`make bench-site`: what is done to a whole site, measured on a lab host of its own in one run; writes docs/benchmarks-site.md.

One host over real SSH, with everything built before. Each figure is also a ratio to the first applying of the same run: that is what may be compared
between machines.
"""

from __future__ import annotations

import os
import platform
import re
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ckp.kits.clock import human_duration
from tests.support.backup_place import NAME, BackupPlace, prepared
from tests.support.checkout import REPO

PAGE = REPO / "docs" / "benchmarks-site.md"
REPEATS = 3
APPLY_SECONDS, SHORT_SECONDS = 2400, 1800
AIM_NOTHING = 10.0
"""Seconds that an applying with nothing to do may take."""
STEP = re.compile(r"^\[ ?\d+/\d+\] (.*): done, (\S+)", re.M)


@dataclass(frozen=True)
class Figures:
    """What was measured.

    Args:
        first: seconds of the first applying, onto a host that has nothing, with everything built.
        nothing: seconds of each further applying, with nothing to do.
        backup: seconds of a backup, with its proof.
        restore: seconds of the restore onto a new host.
        size: bytes of the backup.
        steps: step of the first applying -> how long it took, as it was printed.
    """

    first: float
    nothing: Sequence[float]
    backup: float
    restore: float
    size: int
    steps: Mapping[str, str]

    @property
    def rows(self) -> list[tuple[str, float]]:
        """What, and its seconds: of several the median."""
        return [
            ("first `ckp site apply`, everything built", self.first),
            (f"`ckp site apply` with nothing to do (median of {len(self.nothing)})", statistics.median(self.nothing)),
            ("`ckp site backup`, with its proof", self.backup),
            ("`ckp site restore` onto a new host", self.restore),
        ]


def steps_of(output: str) -> dict[str, str]:
    """Steps of a command and how long each took, from what it printed."""
    return dict(STEP.findall(output))


def render(figures: Figures, machine: str) -> str:
    """The page.

    Raises:
        ValueError: something took no time, so that nothing can be compared with it.
    """
    if min(figures.first, *figures.nothing, figures.backup, figures.restore) <= 0:
        raise ValueError(f"these are no durations: {figures}")
    does = "does" if statistics.median(figures.nothing) <= AIM_NOTHING else "does not"
    lines = [
        "# Benchmarks of a site",
        "",
        f"Written by `make bench-site` {machine}.",
        "One management host of the lab, over SSH, without workload clusters. Compare ratios, not machines: all of it shares the cores of one machine.",
        "",
        "| what | took | of the first applying |",
        "| --- | --- | --- |",
        *(f"| {what} | {human_duration(seconds)} | {seconds / figures.first:.2f} |" for what, seconds in figures.rows),
        "",
        f"An applying with nothing to do is to take {AIM_NOTHING:.0f} s or less: it {does}.",
        f"The backup has {figures.size / 1e6:.1f} MB.",
        "",
        "## The first applying",
        "| step | took |",
        "| --- | --- |",
        *(f"| {title} | {took} |" for title, took in figures.steps.items()),
    ]
    return "\n".join(lines) + "\n"


def timed(work: Callable[[], str]) -> tuple[str, float]:
    """What some work gives, and its seconds."""
    started = time.monotonic()
    return work(), time.monotonic() - started


def measure(place: BackupPlace) -> Figures:
    """On a host that has nothing yet."""
    secret, file = place.folder / "passphrase", place.folder / "bench.backup"
    secret.write_text("a passphrase of this run alone\n")
    secret.chmod(0o600)

    def ckp(*arguments: str, timeout: float) -> str:
        return place.ckp("site", arguments[0], "-f", str(place.file), *arguments[1:], timeout=timeout).stdout

    def apply() -> tuple[str, float]:
        return timed(lambda: ckp("apply", "--profile", "lab", timeout=APPLY_SECONDS))

    print("bench: building, and applying for the first time", flush=True)
    apply()
    ckp("remove", "--confirm", NAME, timeout=SHORT_SECONDS)
    output, first = apply()
    print("bench: applying with nothing to do", flush=True)
    nothing = [apply()[1] for _ in range(REPEATS)]
    print("bench: backup", flush=True)
    _, backup = timed(lambda: ckp("backup", "--output", str(file), "--passphrase-file", str(secret), timeout=SHORT_SECONDS))
    print("bench: restore onto a new host", flush=True)
    place.host.remove()
    place.boot()
    _, restore = timed(lambda: ckp("restore", str(file), "--passphrase-file", str(secret), "--profile", "lab", timeout=APPLY_SECONDS))
    return Figures(first, nothing, backup, restore, file.stat().st_size, steps_of(output))


def main() -> None:
    """Measure and write."""
    with tempfile.TemporaryDirectory() as folder, prepared(Path(folder)) as place:
        figures = measure(place)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False, cwd=REPO).stdout.strip()
    PAGE.write_text(render(figures, f"at commit {commit}, on {os.cpu_count()} cores, Linux {platform.release()}"))
    print(f"bench: {PAGE.relative_to(REPO)} is written")


if __name__ == "__main__":
    main()
