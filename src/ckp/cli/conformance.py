"""`ckp conformance`: upstream's conformance suite against a cluster, and the files of a submission."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import click

from ckp.api.compass.clusters import ClusterView
from ckp.catalog.load import Catalog, Profile
from ckp.cli.distribution.release import default_release
from ckp.cli.session import open_session
from ckp.cli.view.output import echo
from ckp.cli.view.progress import folder as progress_folder
from ckp.cli.view.progress import planned
from ckp.clients.compass import Session, read
from ckp.conformance.cluster import Cluster
from ckp.conformance.prepare import Place, Request, begin, provide_images, quick_sample, tests_of
from ckp.conformance.programs import build_programs
from ckp.conformance.records import TestTimes, records
from ckp.conformance.results import Results
from ckp.conformance.run import Run
from ckp.conformance.submission import Product, write_submission
from ckp.conformance.suite import Selection
from ckp.kits import paths
from ckp.kits.errors import CkpError, InvalidInput, NotFound
from ckp.kits.files import atomic_write, exclusive
from ckp.site import lab

OUTPUT = Path("conformance")
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_FOLDER = click.Path(file_okay=False, path_type=Path)
output_folder = click.option("--output", type=_FOLDER, default=OUTPUT, show_default=True, help="Folder of the runs, one below for each.")


@click.group()
def conformance() -> None:
    """Upstream's conformance tests against a cluster, and the files that a submission needs."""


def place_of(registry: str, ca: Path | None, credentials: Path | None) -> Place:
    """The registry that was named, or the lab's. NotFound if none was, and there is no lab."""
    if registry:
        return Place(registry, (registry,), ca, credentials)
    ca, password = (lab.registry_files() / name for name in ("ca.pem", "credentials.json"))
    if not ca.exists():
        raise NotFound("there is no lab on this machine whose registry could hold the test images", resolution="name the site's registry: --registry HOST:PORT")
    return Place(lab.REGISTRY_ADDRESS, lab.push_endpoints(), ca, password)


def processes_here() -> int:
    """How many tests run side by side by default: tests mostly wait for the cluster, so one more than there are cores."""
    return max(2, min(8, (os.cpu_count() or 1) + 1))


@conformance.command("run")
@click.option("--cluster", "name", default="", metavar="NAME", help="Workload cluster of the project; default: the only one.")
@click.option("--kubeconfig", type=_FILE, default=None, help="Any other cluster, as its administrator, instead.")
@click.option("--release", "release_name", default="", metavar="RELEASE", help="Release whose tests are run; default: the cluster's.")
@click.option("--suite", default="", metavar="NAME", help="A suite beyond conformance: network-policy, services or dns.")
@click.option("--focus", multiple=True, metavar="REGEX", help="Only tests whose name it is found in; may be repeated.")
@click.option("--sig", "sigs", multiple=True, metavar="NAME", help="Only tests of this group, such as network; may be repeated.")
@click.option("--quick", is_flag=True, help="Only a sample of a few minutes that touches each group.")
@click.option("--serial-only", is_flag=True, help="Only tests that must run alone.")
@click.option("--submission", is_flag=True, help="The whole suite, one test after the other, in one piece: what `ckp conformance submission` takes.")
@click.option("--processes", type=click.IntRange(1, 32), default=processes_here, show_default="cores + 1", help="How many tests run side by side.")
@click.option("--registry", default="", metavar="HOST:PORT", help="Registry for the test images, which the nodes pull from; default: the lab's.")
@click.option("--registry-ca", type=_FILE, default=None, help="The CA of its certificate; default: those that this system trusts.")
@click.option("--registry-credentials", type=_FILE, default=None, help="Users and passwords, in the format of docker's config.json.")
@click.option("--domain", metavar="NAME", help="Domain, instead of the configured one.")
@click.option("--project", "-p", metavar="NAME", help="Project, instead of the configured one.")
@output_folder
@click.pass_context
def run(
    context: click.Context,
    name: str,
    kubeconfig: Path | None,
    release_name: str,
    suite: str,
    focus: tuple[str, ...],
    sigs: tuple[str, ...],
    quick: bool,
    serial_only: bool,
    submission: bool,
    processes: int,
    registry: str,
    registry_ca: Path | None,
    registry_credentials: Path | None,
    domain: str | None,
    project: str | None,
    output: Path,
) -> None:
    """Run conformance tests. The same command again goes on where it was broken off.

    Tests create and delete namespaces of their own; those that run alone also taint nodes and evict pods: do not run them where that would hurt.
    """
    selection = Selection(focus, sigs, quick, serial_only)
    check(selection, suite, submission)
    place = place_of(registry, registry_ca, registry_credentials)
    catalog = Catalog()
    with tempfile.TemporaryDirectory(prefix="ckp-conformance-") as scratch:
        access, found = reach(lambda: open_session(context, domain, project), name, kubeconfig, Path(scratch))
        release = catalog.release(release_name or found or default_release())
        titles = [f"Building the tests of {release.name}", "Looking at the cluster", "Making and pushing test images"]
        with planned("conformance run", titles) as steps:
            with steps.step(titles[0]):
                programs = build_programs(catalog, release, "lab", steps.say, steps)
                tests = tests_of(programs, suite, steps.say)
                wanted = selection.of(tests, quick_sample())
            cluster = Cluster(programs.kubectl, access)
            uid = cluster.uid()
            with exclusive(paths.state() / f"conformance-{uid}.lock", what="another conformance run on this cluster", timeout=1):
                with steps.step(titles[1]):
                    record, looked = begin(cluster, Request(release, tests, wanted, processes, submission, suite), output, steps.say)
                with steps.step(titles[2]):
                    target = provide_images(catalog, release, programs, place, access, looked, Path(scratch), steps)
                Run(record, programs, target, steps, TestTimes(progress_folder(), release.name)).go()
                with steps.step("Writing the results, and waiting for what the tests delete"):
                    results = Results.of(record)
                    results.write(record, cluster.now())
                    cluster.settle(record.plan.started, steps.say)
    echo(f"\n{release.name}: {results.sentence()}\nresults: {record.folder}")
    if results.failed:
        raise CkpError(f"{len(results.failed)} of {len(results.ended)} tests failed", details=results.failures(), resolution=f"logs: {record.folder}")


def check(selection: Selection, suite: str, submission: bool) -> None:
    """InvalidInput for options that exclude each other."""
    if submission and not (selection.whole and not suite):
        raise InvalidInput("--submission is the whole suite", resolution="leave out --suite, --focus, --sig, --quick and --serial-only")
    if suite and selection.quick:
        raise InvalidInput("--quick is a sample of the conformance tests", resolution="leave out --quick or --suite")


def reach(connect: Callable[[], Session], name: str, kubeconfig: Path | None, scratch: Path) -> tuple[Path, str]:
    """A kubeconfig for the cluster, and its release as far as Compass knows it. With `kubeconfig`, Compass is not asked: there may be none.

    Raises:
        InvalidInput: both kinds of cluster are named, or none of several.
        NotFound: the project has no such cluster.
    """
    if kubeconfig is not None:
        if name:
            raise InvalidInput("both --cluster and --kubeconfig are given", resolution="name one cluster")
        return kubeconfig.absolute(), ""
    session = connect()
    rows = [read(ClusterView, row) for row in session.get("/clusters")["items"]]
    chosen = [row for row in rows if not name or row.name == name]
    if not chosen:
        raise NotFound(f"there is no cluster {name} in {session.where}" if name else f"there is no cluster in {session.where}", resolution="ckp cluster list")
    if len(chosen) > 1:
        raise InvalidInput(f"{session.where} has {len(chosen)} clusters", resolution=f"name one: --cluster {' | '.join(sorted(row.name for row in chosen))}")
    path = scratch / "kubeconfig"
    atomic_write(path, str(session.get(f"/clusters/{chosen[0].name}/kubeconfig")), mode=0o600)
    return path, chosen[0].version


@conformance.command("list")
@click.option("--release", "release_name", default=default_release, show_default="the newest supported release", help="The release.")
@click.option("--suite", default="", metavar="NAME", help="A suite beyond conformance: network-policy, services or dns.")
@click.option("--focus", multiple=True, metavar="REGEX", help="Only tests whose name it is found in; may be repeated.")
@click.option("--sig", "sigs", multiple=True, metavar="NAME", help="Only tests of this group, such as network; may be repeated.")
@click.option("--quick", is_flag=True, help="Only the sample.")
@click.option("--serial-only", is_flag=True, help="Only tests that must run alone.")
def list_tests(release_name: str, suite: str, focus: tuple[str, ...], sigs: tuple[str, ...], quick: bool, serial_only: bool) -> None:
    """List the conformance tests of a release, or those of another suite, by name; to standard error, what a suite leaves out, and why."""
    selection = Selection(focus, sigs, quick, serial_only)
    check(selection, suite, submission=False)
    catalog = Catalog()
    release = catalog.release(release_name)
    profile: Profile = "lab"
    programs = build_programs(catalog, release, profile, lambda line: click.echo(line, err=True))
    for test in selection.of(tests_of(programs, suite, lambda line: click.echo(line, err=True)), quick_sample()):
        echo(test.name)


@conformance.command("submission")
@click.option("--run", "run_name", default="", metavar="NAME", help="The run (a folder's name below --output); default: the latest with --submission.")
@click.option("--documentation-url", required=True, metavar="URL", help="Where the product's documentation is.")
@click.option("--logo-url", required=True, metavar="URL", help="Where its logo is, an SVG file.")
@click.option("--contact", default="support@coredge.io", show_default=True, metavar="MAIL", help="Whom the programme writes to.")
@click.option("--to", "target", type=_FOLDER, default=None, help="Folder for the files; default: `submission` in the run's.")
@output_folder
def submission(run_name: str, documentation_url: str, logo_url: str, contact: str, target: Path | None, output: Path) -> None:
    """Write e2e.log, junit_01.xml, PRODUCT.yaml and README.md of a run that qualifies, as the CNCF's programme wants them."""
    found = [record for record in records(output) if (record.folder.name == run_name if run_name else record.plan.submission)]
    if not found:
        named = f"the run {run_name}" if run_name else "a run with --submission"
        raise NotFound(f"{output} does not have {named}", resolution="ckp conformance run --submission")
    product = Product(documentation_url=documentation_url, product_logo_url=logo_url, contact_email_address=contact)
    written = write_submission(found[-1], product, target or found[-1].folder / "submission")
    echo(f"{written}: e2e.log, junit_01.xml, PRODUCT.yaml, README.md\n{Results.of(found[-1]).sentence()}; a certification wants upstream's own images")
