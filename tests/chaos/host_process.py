"""`python -m tests.chaos.host_process FOLDER CHANNEL CA`: the agent of a simulated host, to be killed. Its delays are about fifteen times as short."""

from __future__ import annotations

import dataclasses
import os
import sys
import threading
import time
from pathlib import Path

from ckp.agent import journal as journal_module
from ckp.agent import messages
from ckp.agent.hub import channel as channel_module
from ckp.agent.hub import enrol as enrol_module
from ckp.agent.hub import identity as identity_module
from ckp.agent.hub import status as status_module
from ckp.agent.hub.channel import Channel
from ckp.agent.hub.identity import Identity
from ckp.agent.hub.status import Status
from ckp.agent.journal import Journal
from ckp.agent.node import engine as engine_module
from ckp.agent.node.engine import Engine
from ckp.hostkit.files import atomic_write
from tests.chaos.simhost import Disk, SimulatedActions

REPORT_SECONDS = 1.0
PACE = 0.02


class FasterChannel(Channel):
    """The channel, with reports as often as the harness' hub expects them."""

    def _apply(self, desired: messages.Desired) -> None:
        super()._apply(dataclasses.replace(desired, report_seconds=REPORT_SECONDS))


def quicken() -> None:
    """Shorten what takes minutes."""
    engine_module.FIRST_DELAY, engine_module.LONGEST_DELAY, engine_module.PERMANENT_DELAY = 0.15, 2.0, 3.0
    engine_module.HEALTH_SECONDS, engine_module.JOURNAL_SECONDS = 1.0, 0.7
    channel_module.OPEN_SECONDS, channel_module.PING_SECONDS, channel_module.LONGEST_DELAY = 5.0, 2.5, 1.0


def watch_writes(disk: Disk) -> None:
    """Each write of the agent's own files may be the last, or fail on a full disk."""

    def written(path: str, content: bytes | str, *, mode: int = 0o644) -> None:
        disk.tick()
        disk.check_space()
        atomic_write(path, content, mode=mode)
        disk.tick()

    for module in (journal_module, identity_module, enrol_module, status_module):
        module.atomic_write = written  # type: ignore[attr-defined]


def skew_clock(disk: Disk) -> None:
    """The host's wall clock goes where the harness wants it; its monotonic clock does not."""
    real, gmtime = time.time, time.gmtime

    def skewed() -> float:
        return real() + float(disk.flag("skew") or 0)

    def now() -> str:
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", gmtime(skewed()))

    time.time = skewed
    for module in (journal_module, status_module):
        module.now = now  # type: ignore[attr-defined]


def end_with_parent() -> None:
    """An agent whose harness is gone ends."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main() -> None:
    """Run until killed."""
    folder, url, ca = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    end_with_parent()
    disk = Disk(folder)
    quicken()
    watch_writes(disk)
    skew_clock(disk)
    state = str(folder / "state")
    identity, status = Identity(state), Status(state)
    journal = Journal(f"{state}/journal.json", f"{state}/saved")
    engine = Engine(journal, SimulatedActions(disk, journal, PACE), sync=disk.sync)

    def hello() -> messages.Hello:
        facts = messages.HostFacts(
            hostname=folder.name,
            machine_id=disk.flag("machine-id"),
            os_id="debian",
            os_version="12",
            kernel="6.1",
            architecture="amd64",
            cpus=2,
            memory_bytes=4 << 30,
            disk_bytes=100 << 30,
            disk_free_bytes=0 if (folder / "full").exists() else 50 << 30,
            default_address="10.0.0.9",
            clock=time.time(),
        )
        return messages.Hello(boot_id=disk.flag("boot-id"), facts=facts)

    channel = FasterChannel(url, identity, ca, engine, status, hello, first_delay=0.1, facts_seconds=2.0)
    threading.Thread(target=engine.run, daemon=True).start()
    channel.run()


if __name__ == "__main__":
    main()
