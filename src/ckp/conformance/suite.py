"""Which tests there are, and which of them a run takes: pure decisions over the suite's own list."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ckp.kits.errors import CkpError, InvalidInput

Kind = Literal["parallel", "serial"]
NOT_BESIDE_OTHERS = ("[Serial]", "[Disruptive]")
"""Marks of tests that change what others need (taints, preemption, all namespaces), so that they run alone: test/e2e/framework/ginkgowrapper.go."""
CONFORMANCE = "[Conformance]"


@dataclass(frozen=True, order=True)
class Test:
    """One test by its full name, as ginkgo prints it and as `--list-conformance-tests` has it under `codename`."""

    __test__ = False  # not one of pytest's
    name: str

    @property
    def sig(self) -> str:
        """Who owns it: `sig-network`; empty if its name does not say."""
        found = re.match(r"\[(sig-[a-z-]+)\]", self.name)
        return found.group(1) if found else ""

    @property
    def serial(self) -> bool:
        """Whether it must run alone."""
        return any(mark in self.name for mark in NOT_BESIDE_OTHERS)


def read_list(text: str) -> list[Test]:
    """The tests of `e2e.test --list-conformance-tests` (YAML: a list with `codename`), sorted by name.

    Raises:
        CkpError: it is not such a list, is empty, or names a test twice.
    """
    try:
        data = yaml.safe_load(text)
        names = [str(item["codename"]) for item in data]
    except (yaml.YAMLError, TypeError, KeyError) as error:
        raise CkpError(
            f"the list of conformance tests cannot be read ({type(error).__name__})", resolution="build the suite again: make clean-cache"
        ) from error
    if not names:
        raise CkpError("the list of conformance tests is empty", resolution="build the suite again: make clean-cache")
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise CkpError("the list of conformance tests names tests twice", details="\n".join(twice))
    return sorted(map(Test, names))


def read_all(text: str) -> list[Test]:
    """All tests of `e2e.test --list-tests` (a line each, `    <file>:<line>: <name>`), sorted by name. CkpError if there is none."""
    found = {match.group(1) for line in text.splitlines() if (match := re.match(r"\s+\S+:\d+: (.+)$", line))}
    if not found:
        raise CkpError("the list of tests is empty", resolution="build the suite again: make clean-cache")
    return sorted(map(Test, found))


class LeftOut(BaseModel):
    """Tests that a named suite does not take, and why."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    match: str
    why: Annotated[str, Field(min_length=1)]


class NamedSuite(BaseModel):
    """Tests beyond conformance, by what is found in their names (`catalog/conformance/suites.toml`)."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    title: str
    focus: Annotated[tuple[str, ...], Field(min_length=1)]
    left_out: tuple[LeftOut, ...] = ()

    def of(self, tests: Sequence[Test]) -> tuple[list[Test], list[tuple[Test, str]]]:
        """Its tests among all of a release, and those that it leaves out, each with the reason."""
        found = [test for test in tests if any(re.search(pattern, test.name) for pattern in self.focus)]
        reasons = {test: next((item.why for item in self.left_out if re.search(item.match, test.name)), "") for test in found}
        return [test for test in found if not reasons[test]], [(test, reasons[test]) for test in found if reasons[test]]


def read_suites(data: Mapping[str, Any]) -> dict[str, NamedSuite]:
    """The named suites. InvalidInput names what is malformed."""
    try:
        return {name: NamedSuite(**item) for name, item in data.items()}
    except (ValidationError, TypeError) as error:
        raise InvalidInput("the named suites are malformed", details=str(error)) from None


@dataclass(frozen=True)
class Selection:
    """What of the suite is wanted; the conditions add up. The default is all of it.

    Args:
        focus: regular expressions; a test is taken if one of them is found in its name.
        sigs: `network` or `sig-network`; a test is taken if one of them owns it.
        quick: only the sample of the release.
        serial_only: only those that must run alone.
    """

    focus: tuple[str, ...] = ()
    sigs: tuple[str, ...] = ()
    quick: bool = False
    serial_only: bool = False

    @property
    def whole(self) -> bool:
        """Whether it is the suite with nothing left out."""
        return self == Selection()

    def of(self, tests: Sequence[Test], sample: Iterable[str]) -> list[Test]:
        """The selected tests, in the order of `tests`.

        Args:
            sample: the names that `quick` takes.

        Raises:
            InvalidInput: an expression is malformed, a sig owns no test, or nothing is left.
        """
        patterns = [_compiled(text) for text in self.focus]
        wanted = {f"sig-{name.removeprefix('sig-')}" for name in self.sigs}
        known = {test.sig for test in tests if test.sig}
        if strange := sorted(wanted - known):
            raise InvalidInput(f"no test of the suite belongs to {', '.join(strange)}", resolution=f"write --sig with one of: {', '.join(sorted(known))}")
        taken = set(sample) if self.quick else None
        found = [
            test
            for test in tests
            if (not patterns or any(pattern.search(test.name) for pattern in patterns))
            and (not wanted or test.sig in wanted)
            and (taken is None or test.name in taken)
            and (not self.serial_only or test.serial)
        ]
        if not found:
            raise InvalidInput(
                "no test of the suite is selected",
                resolution="leave out one of --focus, --sig, --quick and --serial-only, or correct it (ckp conformance list)",
            )
        return found


def _compiled(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise InvalidInput(f"--focus {text!r} is not a regular expression: {error}", resolution="escape brackets: '\\[sig-network\\]'") from None


@dataclass(frozen=True)
class Phase:
    """Tests that one run of ginkgo takes.

    Args:
        kind: the name of its folder.
        processes: how many of its tests run at the same time.
    """

    kind: Kind
    tests: tuple[Test, ...]
    processes: int

    @property
    def title(self) -> str:
        """What it is called in the plan."""
        count = f"{len(self.tests)} test{'' if len(self.tests) == 1 else 's'}"
        return f"Running {count}, {self.processes} at a time" if self.processes > 1 else f"Running {count}, one after the other"


def phases(tests: Sequence[Test], processes: int) -> list[Phase]:
    """First what may run side by side, then what must run alone; all of it in one phase, one test after the other, with one process."""
    if processes == 1:
        return [Phase("serial", tuple(tests), 1)]
    beside, alone = [test for test in tests if not test.serial], [test for test in tests if test.serial]
    planned = (Phase("parallel", tuple(beside), processes), Phase("serial", tuple(alone), 1))
    return [phase for phase in planned if phase.tests]


def expected_seconds(tests: Sequence[Test], known: Mapping[str, float], processes: int) -> float | None:
    """How long tests will take by what each took last time; None where most of them are unknown.

    No phase is shorter than its longest test.
    """
    times = [known[test.name] for test in tests if test.name in known]
    if not tests or len(times) * 2 < len(tests):
        return None if tests else 0.0
    mean = sum(times) / len(times)
    return max(*times, (sum(times) + mean * (len(tests) - len(times))) / processes)


def check_sample(sample: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of a quick sample (`catalog/conformance/quick.toml`: `tests`, a list of names)."""
    names = sample.get("tests")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise InvalidInput("the quick sample needs `tests`, a list of names")
    return tuple(names)
