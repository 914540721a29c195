"""`python -m tests.chaos.run [SEEDS]`: runs of the schedule of faults; 1 if any ended inconsistent.

SEEDS is a count (the seeds from 1), a range `from-to`, or seeds parted by commas.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from unittest.mock import patch

import structlog

from ckp.controllers.providers.byo import machine as machine_module
from ckp.hub.sessions import session as session_module
from ckp.rules import flapping
from ckp.runtime import informer as informer_module
from tests.chaos.checker import check
from tests.chaos.schedule import Schedule, draw
from tests.chaos.world import World, make_world

CONVERGE_SECONDS = 60.0


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    schedule: Schedule
    sentences: tuple[str, ...]
    converged: float  # seconds from the end of the faults
    log: str

    def __str__(self) -> str:
        found = "\n".join(f"  - {sentence}" for sentence in self.sentences) or f"  consistent {self.converged:.1f} s after the last fault"
        return f"{self.schedule}\n{found}"


@contextmanager
def quickened(log: Path) -> Iterator[None]:
    """Minutes are seconds, and what is logged goes into a file."""
    websockets, before = logging.getLogger("websockets.server"), structlog.get_config()
    handler = logging.FileHandler(log)
    with ExitStack() as stack, log.open("a") as stream:
        for module, name, value in (
            (machine_module, "POLL", 1.0),
            (machine_module, "NUDGE_SECONDS", 0.3),
            (session_module, "HELLO_SECONDS", 2.0),
            (session_module, "SEND_SECONDS", 3.0),
            (session_module, "RENEWAL_CHECK_SECONDS", 1.0),
            (flapping, "FIRST", timedelta(seconds=1)),
            (flapping, "LONGEST", timedelta(seconds=3)),
            (informer_module, "RELIST_SECONDS", 20.0),
        ):
            stack.enter_context(patch.object(module, name, value))
        structlog.configure(logger_factory=structlog.PrintLoggerFactory(stream), wrapper_class=structlog.make_filtering_bound_logger(logging.INFO))
        websockets.addHandler(handler)
        websockets.propagate, level = False, websockets.level
        websockets.setLevel(logging.ERROR)
        try:
            yield
        finally:
            websockets.removeHandler(handler)
            websockets.propagate = True
            websockets.setLevel(level)
            handler.close()
            structlog.configure(**before)


async def play(schedule: Schedule, folder: Path, *, within: float = CONVERGE_SECONDS) -> Outcome:
    """Run a schedule in a folder, and judge what is left of the world."""
    log = folder / "run.log"
    with quickened(log):
        async with make_world(schedule, folder) as world:
            start = time.monotonic()
            for event in schedule.events:
                await asyncio.sleep(max(0.0, start + event.at - time.monotonic()))
                structlog.get_logger().info("chaos", event_is=str(event))
                world.apply(event)
            await asyncio.sleep(max(0.0, start + schedule.seconds - time.monotonic()))
            await world.settle()
            structlog.get_logger().info("chaos", event_is="faults have ended")
            sentences, took = await _converge(world, within)
    text = log.read_text()
    sentences += [f"an error that nobody foresaw: {line}" for line in _unforeseen(text)]
    return Outcome(schedule, tuple(sentences), took, text)


def _unforeseen(log: str) -> list[str]:
    """The last lines of stack traces, apart from those of TLS handshakes that did not end."""
    found, trace, foreseen = [], False, False
    for line in log.splitlines():
        if line.startswith("opening handshake failed"):
            foreseen = True
        elif line.startswith(("Traceback", "  + Exception Group")):
            trace = True
        elif trace and line and not line.startswith((" ", "During", "The above")):
            if not foreseen:
                found.append(line)
            trace = foreseen = False
    return list(dict.fromkeys(found))


async def _converge(world: World, within: float) -> tuple[list[str], float]:
    begun, quiet = time.monotonic(), 0
    while True:
        whole = await world.whole()
        found = check(whole)
        quiet = 0 if found else quiet + 1
        if quiet == 3 or time.monotonic() - begun > within:
            return list(dict.fromkeys([*world.seen, *found])), time.monotonic() - begun
        await asyncio.sleep(0.25)


def run_seed(seed: int, folder: Path | None = None) -> Outcome:
    """One run."""
    schedule = draw(seed)
    if folder is not None:
        return asyncio.run(play(schedule, folder))
    with tempfile.TemporaryDirectory(prefix=f"ckp-chaos-{seed}-") as made:
        return asyncio.run(play(schedule, Path(made)))


def parse_seeds(text: str) -> list[int]:
    """A count, a range `from-to`, or seeds parted by commas."""
    if "-" in text:
        first, _, last = text.partition("-")
        return list(range(int(first), int(last) + 1))
    if "," in text:
        return [int(part) for part in text.split(",") if part]
    return list(range(1, int(text) + 1))


def main() -> int:
    """Run seeds one after another, and say how they ended."""
    parser = argparse.ArgumentParser(prog="chaos", description=__doc__)
    parser.add_argument("seeds", nargs="?", default="50", help="a count, a range from-to, or seeds parted by commas (default: %(default)s)")
    parser.add_argument("--keep", type=Path, help="a folder for what a failed run left: hosts, journals, logs")
    arguments = parser.parse_args()
    failed = []
    for seed in parse_seeds(arguments.seeds):
        folder = None
        if arguments.keep:
            folder = arguments.keep / str(seed)
            folder.mkdir(parents=True)
        outcome = run_seed(seed, folder)
        if outcome.sentences:
            failed.append(seed)
            print(f"FAILED {outcome}", flush=True)
        else:
            print(f"ok     seed {seed}: consistent {outcome.converged:.1f} s after the last fault", flush=True)
    print(f"failed: {', '.join(map(str, failed))}" if failed else "all consistent")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
