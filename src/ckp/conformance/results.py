"""What came out of a run: counts, failures with their reasons, how to run these again, and files for people and programs."""

from __future__ import annotations

import json
import shlex
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ckp.conformance.ginkgo import LOG, focus_of
from ckp.conformance.ginkgolog import Ended, State
from ckp.conformance.records import RESULTS, Plan, Record
from ckp.kits.files import atomic_write, sha256_file

JUNIT_ALL = "junit.xml"
IMAGES = "with test images rebuilt from source"
"""What has to be said beside the counts: upstream's own images are what a certification asks for."""


@dataclass(frozen=True)
class Results:
    """How a complete run ended.

    Args:
        ended: all tests of the plan, in its order.
    """

    plan: Plan
    ended: tuple[Ended, ...]

    @classmethod
    def of(cls, record: Record) -> Results:
        """From the run's logs."""
        ended = record.all_ended()
        return cls(record.plan, tuple(ended[test.name] for test in record.plan.tests if test.name in ended))

    @property
    def failed(self) -> list[Ended]:
        """The tests that failed."""
        return [item for item in self.ended if item.state is State.FAILED]

    @property
    def missing(self) -> list[str]:
        """Tests of the plan that have not ended."""
        names = {item.name for item in self.ended}
        return [test.name for test in self.plan.tests if test.name not in names]

    @property
    def passed(self) -> int:
        """How many passed."""
        return len(self.ended) - len(self.failed)

    def sentence(self) -> str:
        """The outcome in a sentence. It never says certified: that is the CNCF's to say."""
        count = f"{self.passed} of {len(self.plan.tests)} passed, {IMAGES}"
        count = f"suite {self.plan.suite}: {count}" if self.plan.suite else count
        return count if len(self.plan.tests) == self.plan.total else f"{count} ({self.plan.total} in all)"

    def failures(self) -> str:
        """Each failure with its reason and the command that runs it again."""
        return "\n\n".join(f"{item.name}\n{item.reason}\nagain: {rerun([item.name], self.plan.suite)}".replace("\n\n", "\n") for item in self.failed)

    def data(self, record: Record, ended: str) -> dict[str, Any]:
        """For programs. `ended` is when the run did, RFC 3339, by the cluster's clock as its beginning is."""
        logs = [attempt / LOG for phase in self.plan.phases for attempt in record.attempts(phase)]
        return {
            "version": 1,
            "release": self.plan.release,
            "cluster": {"uid": self.plan.cluster, "version": self.plan.version},
            "started": self.plan.started,
            "ended": ended,
            "submission": self.plan.submission,
            "suite": self.plan.suite or "conformance",
            "images": IMAGES,
            "total": self.plan.total,
            "selected": len(self.plan.tests),
            "passed": self.passed,
            "failed": len(self.failed),
            "logs": [{"file": str(log.relative_to(record.folder)), "sha256": sha256_file(log)} for log in logs],
            "tests": [
                {"name": item.name, "state": str(item.state), "seconds": item.seconds, **({"reason": item.reason} if item.reason else {})}
                for item in self.ended
            ],
        }

    def write(self, record: Record, ended: str) -> None:
        """results.json and junit.xml in the run's folder; with the former the run is complete."""
        atomic_write(record.folder / JUNIT_ALL, junit(self.plan.release, self.ended))
        atomic_write(record.folder / RESULTS, json.dumps(self.data(record, ended), indent=1) + "\n")


def rerun(names: Sequence[str], suite: str = "") -> str:
    """The command that runs just these tests."""
    return f"ckp conformance run {f'--suite {suite} ' if suite else ''}--focus {shlex.quote(focus_of(names))}"


def junit(release: str, ended: Sequence[Ended]) -> bytes:
    """JUnit XML of all tests of a run, however many runs of ginkgo it took."""
    failed = sum(item.state is State.FAILED for item in ended)
    seconds = sum(item.seconds for item in ended)
    attributes = {"name": f"conformance {release}", "tests": str(len(ended)), "failures": str(failed), "errors": "0", "time": f"{seconds:.3f}"}
    root = ET.Element("testsuites")
    suite = ET.SubElement(root, "testsuite", attributes)
    for item in ended:
        case = ET.SubElement(suite, "testcase", {"name": item.name, "classname": "conformance", "time": f"{item.seconds:.3f}"})
        if item.state is State.FAILED:
            ET.SubElement(case, "failure", {"message": item.reason.partition("\n")[0]}).text = item.reason
    ET.indent(root)
    return bytes(ET.tostring(root, encoding="utf-8", xml_declaration=True)) + b"\n"
