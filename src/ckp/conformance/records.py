"""A run as it lies on disk: its plan, and one folder for each run of ginkgo. Whatever is killed, what had ended is known from the logs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ckp.conformance.ginkgo import LOG
from ckp.conformance.ginkgolog import Ended, read_log
from ckp.conformance.suite import Phase, Test
from ckp.kits.durations import Durations
from ckp.kits.errors import CkpError
from ckp.kits.files import atomic_write

PLAN, RESULTS = "plan.json", "results.json"
FORMAT = 1
KEPT_DURATIONS = 20_000


@dataclass(frozen=True)
class Plan:
    """What a run is to do; two runs are the same if all of this is equal but the time.

    Args:
        release: such as v1.35.1.
        cluster: uid of the cluster's kube-system.
        version: of its API server.
        started: RFC 3339.
        total: how many tests the release has, of its conformance suite or of the one that is named.
        submission: whether its files are meant for a submission: all tests, one after the other, in one run of ginkgo.
    """

    release: str
    cluster: str
    version: str
    started: str
    total: int
    submission: bool
    phases: tuple[Phase, ...]
    suite: str = ""
    """The suite's name (`catalog/conformance/suites.toml`); empty: conformance."""

    def same_work(self, other: Plan) -> bool:
        """Whether it asks for what `other` asks for, of the same cluster."""
        return {**asdict(self), "started": ""} == {**asdict(other), "started": ""}

    @property
    def tests(self) -> list[Test]:
        """All tests, in the order of the phases."""
        return [test for phase in self.phases for test in phase.tests]

    def text(self) -> str:
        """As JSON."""
        return json.dumps({"format": FORMAT, **asdict(self), "phases": [_phase_data(phase) for phase in self.phases]}, indent=1) + "\n"

    @classmethod
    def read(cls, text: str) -> Plan:
        """From JSON. Raises ValueError, KeyError or TypeError for what is none."""
        data: dict[str, Any] = json.loads(text)
        if data.pop("format") != FORMAT:
            raise ValueError("another format")
        phases = tuple(Phase(item["kind"], tuple(map(Test, item["tests"])), item["processes"]) for item in data.pop("phases"))
        return cls(**data, phases=phases)


def _phase_data(phase: Phase) -> dict[str, Any]:
    return {"kind": phase.kind, "processes": phase.processes, "tests": [test.name for test in phase.tests]}


@dataclass(frozen=True)
class Record:
    """A run's folder."""

    folder: Path
    plan: Plan

    @classmethod
    def begin(cls, root: Path, plan: Plan) -> tuple[Record, bool]:
        """The run in `root` that does the same and is not complete, or a new one; and whether it is one to go on with.

        Raises:
            CkpError: a new one of this second is there already.
        """
        for record in reversed(list(records(root))):
            if record.plan.same_work(plan):
                if (record.folder / RESULTS).exists():
                    break
                return record, True
        folder = root / plan.started.replace("-", "").replace(":", "")
        if folder.exists():
            raise CkpError(f"{folder} is there already", resolution="run the command again")
        atomic_write(folder / PLAN, plan.text())
        return cls(folder, plan), False

    def attempts(self, phase: Phase) -> list[Path]:
        """The folders of the runs of ginkgo for a phase, the first one first."""
        return sorted(self.folder.glob(f"{phase.kind}-[0-9][0-9]"))

    def new_attempt(self, phase: Phase) -> Path:
        """A folder for the next run of ginkgo."""
        folder = self.folder / f"{phase.kind}-{len(self.attempts(phase)) + 1:02}"
        folder.mkdir(parents=True)
        return folder

    def ended(self, phase: Phase) -> dict[str, Ended]:
        """How tests of a phase ended, by name, from the logs of all attempts. What ended once is not run a second time."""
        names = [test.name for test in phase.tests]
        found: dict[str, Ended] = {}
        for attempt in self.attempts(phase):
            for item in read_log(attempt / LOG, names)[0]:
                found.setdefault(item.name, item)
        return found

    def all_ended(self) -> dict[str, Ended]:
        """How tests of all phases ended."""
        return {name: item for phase in self.plan.phases for name, item in self.ended(phase).items()}

    def broken_off(self) -> None:
        """Forget what was done, for a run that has to be one piece: the folders of its attempts are removed."""
        for phase in self.plan.phases:
            for attempt in self.attempts(phase):
                shutil.rmtree(attempt)


def records(root: Path) -> Iterator[Record]:
    """The runs in a folder, the oldest first; what is none, or cannot be read, is passed over."""
    for file in sorted(root.glob(f"*/{PLAN}")):
        try:
            yield Record(file.parent, Plan.read(file.read_text()))
        except (OSError, ValueError, KeyError, TypeError):
            continue


class TestTimes:
    """How long each test took last time on this machine, by name."""

    __test__ = False

    def __init__(self, folder: Path, release: str) -> None:
        self._kept = Durations(folder / "conformance.json", limit=KEPT_DURATIONS)
        self._release = release

    def known(self) -> Mapping[str, float]:
        """Seconds by name."""
        return self._kept.last(self._release)

    def learn(self, ended: Mapping[str, Ended]) -> None:
        """Keep those of tests that passed."""
        self._kept.learn(self._release, {name: item.seconds for name, item in ended.items() if item.state == "passed"})
