"""What is killed at a certain moment, and at how many of them: all in `make test-all`, every few in `make test`."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable
from typing import Any, Protocol

EVERY = "CKP_TESTS_EVERY_KILL"
"""Set to 1, every moment is tried (tests/suite.py does so for `make test-all`)."""


def stride(usual: int) -> int:
    """How far apart the moments are: `usual`, or 1 if every one is to be tried."""
    return 1 if os.environ.get(EVERY) == "1" else usual


class Killed(BaseException):
    """A process ends here, in the middle of a pass: nothing further of it is written."""


def at_call(at: int) -> Callable[..., None]:
    """What a simulator calls before each of its own calls (KubeSimulator.on_fault), and what ends the caller at the `at`th."""
    count = itertools.count(1)

    def fault(*_call: object) -> None:
        if next(count) == at:
            raise Killed

    return fault


class Controllers(Protocol):
    """Controllers over a simulated API server, which a test may kill."""

    @property
    def kube(self) -> Any:
        """The KubeSimulator."""

    async def pass_once(self) -> Any:
        """One pass of theirs."""

    def restarted(self) -> None:
        """As after a restart: what they kept in memory is gone."""


async def pass_under(world: Controllers, fault: Callable[..., Any]) -> bool:
    """One pass, with `fault` asked before each call to the API server; whether it was killed by it, and the controllers were started again."""
    world.kube.on_fault(fault)
    try:
        await world.pass_once()
    except Killed:
        world.restarted()
        return True
    finally:
        world.kube.on_fault(None)
    return False


def killed(work: Callable[[], object], at: int) -> bool:
    """Run `work` in a process that is killed before its `at`th rename of a file; False if it ended before."""
    pid = os.fork()
    if pid == 0:
        count, rename = itertools.count(1), os.replace

        def replace(*names: Any) -> None:
            if next(count) == at:
                os.kill(os.getpid(), signal.SIGKILL)
            rename(*names)

        os.replace = replace  # type: ignore[assignment]
        try:
            work()
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])
