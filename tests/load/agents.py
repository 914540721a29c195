"""A process full of agents: the agent's own Channel (threads and websockets.sync as on a host), Engine, Journal and Identity.

What is not the real thing: the steps change nothing (they only take a while), and the facts are made up, one machine-id a host.
Prints what happens as JSON lines [event, host, monotonic time, number]; ends when its standard input does.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ckp.agent import channel as agent_channel
from ckp.agent import kit, messages
from ckp.agent.channel import Channel
from ckp.agent.engine import Engine
from ckp.agent.identity import Identity
from ckp.agent.journal import Journal
from ckp.agent.kit import Cancelled
from ckp.agent.status import Status

STACK_BYTES = 512 << 10  # as ckp.agent.main has it
STEP_SECONDS = (1.0, 8.0)
Event = tuple[str, str, float, int]


class Steps:
    """Steps that take their time and do nothing."""

    def step(self, name: str, member: messages.Membership, cancelled: Callable[[], bool]) -> str:
        deadline = time.monotonic() + random.uniform(*STEP_SECONDS)
        while time.monotonic() < deadline:
            if cancelled():
                raise Cancelled(f"{name} was stopped")
            time.sleep(0.5)
        return "simulated"

    def reset(self, cancelled: Callable[[], bool]) -> str:
        time.sleep(random.uniform(*STEP_SECONDS))
        return "simulated"

    def unhealthy(self) -> str:
        return ""


class ToldChannel(Channel):
    """The agent's channel, which also notes when it tries, when it hears, and why it lost the hub."""

    events: deque[Event]

    def _once(self) -> tuple[str, str]:
        host = self.identity.host
        self.events.append(("try", host, time.monotonic(), 0))
        ended = super()._once()
        self.events.append(("lost", host, time.monotonic(), 0))
        return ended

    def _take(self, desired: messages.Desired) -> None:
        self.events.append(("desired", desired.host, time.monotonic(), desired.generation))
        super()._take(desired)


def made_up(number: int, host: str) -> messages.HostFacts:
    """Facts of a machine that there is not, of the size of a real one's."""
    return messages.HostFacts(
        hostname=host,
        machine_id=f"{number:032x}",
        os_id="debian",
        os_version="12",
        kernel="6.1.0-28-amd64",
        architecture="amd64",
        cpus=16,
        memory_bytes=64 << 30,
        disk_bytes=960 << 30,
        disk_free_bytes=800 << 30,
        addresses=(f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}",),
        agent_version="0.1.0",
        disks=(messages.DiskFacts("nvme0n1", 960 << 30), messages.DiskFacts("sda", 4 << 40, True)),
        links=(messages.LinkFacts("eno1", "02:00:00:00:00:01", 1500, 10000, True),),
        clock=round(time.time(), 3),
    )


def launch(folder: Path, number: int, url: str, events: deque[Event]) -> ToldChannel:
    """Start one agent over its state folder, as ckp.agent.main does."""
    identity, status = Identity(str(folder)), Status(str(folder))
    journal = Journal(str(folder / "journal.json"), str(folder / "saved"))
    engine = Engine(journal, Steps())
    boot = f"boot-{number}"

    def hello() -> messages.Hello:
        return messages.Hello(boot_id=boot, facts=made_up(number, identity.host))

    channel = ToldChannel(url, identity, identity.ca, engine, status, hello)
    channel.events = events
    threading.Thread(target=engine.run, daemon=True).start()
    threading.Thread(target=channel.run, daemon=True).start()
    return channel


def main(url: str, top: str, first: int, last: int, seconds: float) -> None:
    """Start agents first..last over `seconds`, tell what happens until the input ends."""
    threading.stack_size(STACK_BYTES)
    silent = lambda *_: None  # noqa: E731
    agent_channel.log = kit.log = silent
    sys.modules["ckp.agent.engine"].log = silent  # type: ignore[attr-defined]
    events: deque[Event] = deque()
    over = threading.Event()

    def tell() -> None:
        while not over.wait(0.1):
            lines = []
            while events:
                lines.append(json.dumps(events.popleft()))
            if lines:
                print("\n".join(lines), flush=True)

    threading.Thread(target=tell, daemon=True).start()
    for number in range(first, last):
        launch(Path(top) / str(number), number, url, events)
        time.sleep(seconds / (last - first))
    with contextlib.suppress(OSError):
        sys.stdin.read()
    os._exit(0)  # an abrupt end: two hundred orderly ones would be another benchmark


def _arguments() -> Any:
    url, top, first, last, seconds = sys.argv[1:]
    return url, top, int(first), int(last), float(seconds)


if __name__ == "__main__":
    main(*_arguments())
