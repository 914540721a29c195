"""What comes before the first test: the list of tests, the run's record, the cluster's state, and images that its nodes can pull."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from ckp.catalog.load import Catalog
from ckp.catalog.models import Release
from ckp.clients.oci.registry import Registry
from ckp.clients.signing.openpgp import SigningKey
from ckp.conformance.cluster import Cluster, Looked
from ckp.conformance.ginkgo import Target
from ckp.conformance.images import make_images, push_images, repositories
from ckp.conformance.programs import Programs
from ckp.conformance.records import Plan, Record
from ckp.conformance.submission import minor
from ckp.conformance.suite import NamedSuite, Test, check_sample, phases, read_all, read_list, read_suites
from ckp.distribution.keys.signing import OWNER
from ckp.kits import paths
from ckp.kits.errors import InvalidInput
from ckp.kits.files import atomic_write
from ckp.kits.processes import run as run_program
from ckp.kits.steps import Steps


@dataclass(frozen=True)
class Place:
    """The registry that test images are pushed to, and by which address the cluster's nodes pull from it.

    Args:
        endpoints: `address:port` of each of the processes that serve it and have content of their own.
    """

    address: str
    endpoints: tuple[str, ...]
    ca: Path | None
    credentials: Path | None

    @contextmanager
    def open(self) -> Iterator[list[Registry]]:
        """A client for pushing to each endpoint."""
        with ExitStack() as stack:
            yield [stack.enter_context(closing(Registry(each, self.ca, credentials=self.credentials))) for each in self.endpoints]


def tests_of(programs: Programs, suite: str, say: Callable[[str], None]) -> list[Test]:
    """All tests of a suite: of the named one, or the suite's own list of its conformance tests.

    Args:
        say: takes what a named suite leaves out, with the reasons.

    Raises:
        InvalidInput: there is no suite of this name.
    """
    if not suite:
        return read_list(run_program([programs.e2e_test, "--list-conformance-tests"], timeout=120, what="listing the conformance tests").stdout)
    known = named_suites()
    if suite not in known:
        raise InvalidInput(f"there is no suite {suite}", resolution=f"write one of: {', '.join(sorted(known))}; or leave it out for conformance")
    found, left_out = known[suite].of(read_all(run_program([programs.e2e_test, "--list-tests"], timeout=120, what="listing the tests").stdout))
    for reason in sorted({reason for _test, reason in left_out}):
        names = [test.name for test, why in left_out if why == reason]
        say(f"{len(names)} left out, since {reason}:\n" + "\n".join(f"  {name}" for name in names))
    return found


def named_suites() -> dict[str, NamedSuite]:
    """The suites beyond conformance, by name."""
    return read_suites(tomllib.loads(paths.data("catalog", "conformance", "suites.toml").read_text()))


def quick_sample() -> tuple[str, ...]:
    """Names of the tests of `--quick`."""
    return check_sample(tomllib.loads(paths.data("catalog", "conformance", "quick.toml").read_text()))


@dataclass(frozen=True)
class Request:
    """What a run is asked to do.

    Args:
        tests: all that the suite has.
        wanted: those of them that are to run.
        processes: how many run side by side.
        submission: whether its files are meant for a submission.
        suite: the suite's name; empty: conformance.
    """

    release: Release
    tests: Sequence[Test]
    wanted: Sequence[Test]
    processes: int
    submission: bool
    suite: str = ""

    def plan(self, cluster: Cluster) -> Plan:
        """As a plan for a cluster, from now on by the cluster's clock. Raises InvalidInput if the cluster is of another minor release."""
        version, name = cluster.version(), self.release.name
        if minor(version) != minor(name):
            raise InvalidInput(f"the cluster is {version}, and the tests are those of {name}", resolution=f"--release with one of {minor(version)}")
        phased = tuple(phases(self.wanted, 1 if self.submission else self.processes))
        return Plan(name, cluster.uid(), version, cluster.now(), len(self.tests), self.submission, phased, self.suite)


def begin(cluster: Cluster, request: Request, output: Path, say: Callable[[str], None]) -> tuple[Record, Looked]:
    """The run's record: a new one, or the one to go on with; in the cluster, what a killed run left is removed first.

    Raises:
        InvalidInput: the cluster is of another minor release.
        CkpError: it is not fit to be tested.
    """
    record, old = Record.begin(output, request.plan(cluster))
    plan = record.plan
    if old:
        say(f"going on with the run of {plan.started}")
        cluster.clean(plan.started, say)
        if plan.submission:
            record.broken_off()
    elif others := cluster.test_namespaces():
        say(f"WARNING: namespaces of other tests are in this cluster, left or at work: {', '.join(sorted(others)[:5])}")
    looked = cluster.look()
    say(f"{plan.version}, {len(looked.nodes)} nodes; results will be in {record.folder}")
    return record, looked


def provide_images(catalog: Catalog, release: Release, programs: Programs, place: Place, access: Path, looked: Looked, scratch: Path, steps: Steps) -> Target:
    """Make the test images, push them, and tell the tests where they are."""
    images = make_images(catalog.conformance(release.name), release, programs.built, steps.say, catalog)
    with place.open() as registries:
        for registry in registries:
            push_images(images, registry, steps.say, SigningKey.ensure(paths.keys(), user_id=OWNER), identity=place.address)
    file = scratch / "repositories.yaml"
    atomic_write(file, "".join(f"{key}: {value}\n" for key, value in repositories(place.address).items()))
    return Target(access, file, looked.node_os)
