"""Images that are pulled before they are needed: never in the way of what the hub wants now. `crictl` here is a script whose pulls take a minute."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ckp.agent.node.actions import HostActions
from ckp.hostkit import processes
from ckp.hostkit.errors import Cancelled

CRICTL = """#!/bin/sh
[ "$2" = inspecti ] && exit 1
echo "$$" >>"{place}/pulling"
exec sleep 60
"""


@pytest.fixture
def slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host whose link is slow; in the folder, the file `pulling` has the pids of the pulls that were begun."""
    program = tmp_path / "crictl"
    program.write_text(CRICTL.format(place=tmp_path))
    program.chmod(0o755)
    monkeypatch.setattr(processes, "PATH", f"{tmp_path}:{processes.PATH}")
    return tmp_path


def pids(slow: Path) -> list[int]:
    return [int(line) for line in (slow / "pulling").read_text().split()] if (slow / "pulling").exists() else []


def test_a_host_that_is_no_longer_wanted_stops_pulling_at_once_however_slow_its_link_is(slow: Path) -> None:
    """Else `ckp host remove` of such a host would wait for up to a quarter of an hour."""
    wanted = threading.Event()
    wanted.set()
    member: Any = SimpleNamespace(images=("r/a:1", "r/b:1", "r/c:1"))
    outcome: list[BaseException | str] = []

    def fetch() -> None:
        try:
            outcome.append(HostActions._fetch(cast(HostActions, None), member, lambda: not wanted.is_set()))
        except Cancelled as error:
            outcome.append(error)

    step = threading.Thread(target=fetch)
    step.start()
    deadline = time.monotonic() + 20
    while len(pids(slow)) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(pids(slow)) == 2, "two at a time"
    wanted.clear()
    step.join(20)
    assert not step.is_alive() and isinstance(outcome[0], Cancelled)
    while any(Path(f"/proc/{pid}").exists() for pid in pids(slow)) and time.monotonic() < deadline + 20:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids(slow)) and len(pids(slow)) == 2, "and no other is begun"
