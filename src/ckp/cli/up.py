"""`ckp up`: the main job, from upstream source to a running workload cluster."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from ckp.catalog.load import Catalog
from ckp.catalog.models import Release
from ckp.cli.cluster import took, wait_until_ready
from ckp.cli.deliverables import Origins, reading, verified_release
from ckp.cli.distribution.release import DEFAULT_HELP, default_release
from ckp.cli.site_apply import bring_about
from ckp.cli.site_apply import titles as site_titles
from ckp.cli.site_changes import changing
from ckp.cli.view.progress import planned
from ckp.clients.compass import Session, config_path, read_config
from ckp.clients.signing.sequoia import sequoia
from ckp.distribution.carry.airgap import ImportedRelease
from ckp.kits import paths
from ckp.kits.clock import human_duration
from ckp.kits.errors import CkpError, Conflict, NotFound
from ckp.kits.files import atomic_write, exclusive, require_free_space
from ckp.kits.steps import Steps
from ckp.kits.text import printable
from ckp.lab import base
from ckp.lab.lab import require_root
from ckp.site import lab
from ckp.site.enrol import Enrolment
from ckp.site.install import Site
from ckp.site.inventory import KnownHosts
from ckp.site.lab import LabHosts
from ckp.site.spec.model import HOST_COUNTS
from ckp.site.spec.read import read_site

CLUSTER = "demo"
READY_TIMEOUT = 1200.0
MIN_MEMORY_GIB = 6
MIN_DISK_GIB = 12
CHECKING, ENROLLING = "Checking this machine", "Enrolling the workers"


@click.command()
@click.option("--release", "release_name", default=default_release, show_default=DEFAULT_HELP, help="The release to build and install.")
@click.option("--workers", default=2, show_default=True, type=click.IntRange(1, 20), help="How many hosts for workload clusters.")
@click.option(
    "--management", default="1", show_default=True, type=click.Choice([str(count) for count in HOST_COUNTS]), help="How many hosts for the management cluster."
)
@click.option("--name", default=CLUSTER, show_default=True, help="The cluster's name.")
@click.option(
    "--from",
    "archive",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    default=None,
    help="Take the release from a file of `ckp dist export` instead of building it.",
)
@click.option(
    "--keyring", type=click.Path(exists=True, dir_okay=False, path_type=Path), default=None, help="Trusted keys for --from; default: this machine's own."
)
def up(release_name: str, workers: int, management: str, name: str, archive: Path | None, keyring: Path | None) -> None:
    """From upstream source to a running workload cluster, on this one machine. Running it again continues where it stopped.

    It boots the lab's hosts, makes a site of them as `ckp site apply` does, enrols the workers, and creates a cluster.
    """
    require_root("`ckp up`")
    catalog = Catalog()
    release = catalog.release(release_name)
    hosts = LabHosts(workers, lab.lab_of(int(management)), int(management))
    with exclusive(paths.state() / "up.lock", what="another `ckp up` or `ckp down`", timeout=5):
        offered = offered_with(release.name)
        steps = planned("up", titles(catalog, release, offered, archive, hosts, name))
        with steps:
            with steps.step(CHECKING):
                check_machine()
                if not archive or len(offered) > 1:
                    sequoia()  # something is built: what is missing for that is said before hosts are booted
            read = [read_release(archive, keyring, steps)] if archive else []
            with steps.step(booting(hosts)):
                hosts.boot(steps.say)
                refuse_other_cluster(hosts, name, release.name)
            with applied(catalog, hosts, offered, Origins("lab", keyring=keyring, read=read), steps) as site:
                session = site.session()
                with steps.step(ENROLLING):
                    Enrolment(site, session).run()
                with steps.step(creating(name)):
                    row = create_cluster(session, site.inventory.group.name, release.name, name, workers, steps)
                    kubeconfig = save_kubeconfig(session, name)
    show_summary(row, kubeconfig, steps, name, site.inventory.network.compass)


@contextmanager
def applied(catalog: Catalog, hosts: LabHosts, offered: Sequence[str], origins: Origins, steps: Steps) -> Iterator[Site]:
    """The lab's site as its file describes it, with its workers, for as long as the block lasts."""
    file = lab.write(hosts, offered)
    with changing(file) as (spec, reached), lab.reached_workers(hosts) as workers:
        site = bring_about(catalog, spec, reached, origins, (), steps)
        everyone = KnownHosts(reached.management, reached.masters, workers)
        yield replace(site, inventory=replace(site.inventory, hosts=everyone, shell=lab.SHELL))


def offered_with(release: str) -> list[str]:
    """The releases that the lab's site offers already, and this one."""
    file = lab.state() / lab.FILE
    there = read_site(file).releases if file.exists() else ()
    return list(dict.fromkeys((*there, release)))


def titles(catalog: Catalog, release: Release, offered: Sequence[str], archive: Path | None, hosts: LabHosts, name: str) -> list[str]:
    """The steps of `ckp up` in their order, as they are called when they run."""
    built = [catalog.release(each) for each in offered if not archive or each != release.name]
    return [
        CHECKING,
        *([reading(archive)] if archive else []),
        booting(hosts),
        *site_titles(Origins("lab"), built),
        ENROLLING,
        creating(name),
    ]


def booting(hosts: LabHosts) -> str:
    """The step that boots the lab's hosts."""
    return f"Booting {len(hosts.specs)} lab hosts"


def creating(name: str) -> str:
    """The step that creates the workload cluster."""
    return f"Creating the cluster {name} through Compass"


def read_release(archive: Path, keyring: Path | None, steps: Steps) -> ImportedRelease:
    """A release from a file, with the lab hosts' root file system if the file has it."""
    with steps.step(reading(archive)):
        found = verified_release(archive, keyring, lab.REGISTRY_ADDRESS, (lab.OS,), "the lab", steps)
        if found.base is not None:
            base.adopt(found.base, steps.say)
    return found


def check_machine() -> None:
    """Memory and disk, before anything is started."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    if memory < MIN_MEMORY_GIB:
        raise CkpError(f"this machine has {memory:.1f} GiB of memory, and the lab needs {MIN_MEMORY_GIB}", resolution="take a larger one, or fewer workers")
    for place in (paths.cache(), paths.state()):
        require_free_space(place, MIN_DISK_GIB, what="the lab with a release")


def create_cluster(session: Session, group: str, release: str, name: str, workers: int, steps: Steps | None = None) -> dict[str, Any]:
    """Ask for it unless it is there, and show its fourteen steps until it is ready.

    Raises:
        Conflict: there is one with this name, of another release.
    """
    if not is_there(session, name, release):
        body = {
            "name": name,
            "version": release,
            "cni": "cilium",
            "hostGroup": group,
            "workers": workers,
            "podCIDR": lab.PODS,
            "serviceCIDR": lab.SERVICES,
        }
        session.call("POST", "/clusters", body=body)
    return wait_until_ready(session, name, READY_TIMEOUT, steps)


def is_there(session: Session, name: str, release: str) -> bool:
    """Whether there is a cluster with this name. Raises Conflict if it is of another release."""
    try:
        there = session.get(f"/clusters/{name}")
    except NotFound:
        return False
    if there["version"] != release:
        raise Conflict(
            f"there is a cluster {name} of {there['version']}, and {release} was asked for",
            resolution=f"give the other one its own name (--name), or delete this one: ckp cluster delete {name} --wait",
        )
    return True


def refuse_other_cluster(hosts: LabHosts, name: str, release: str) -> None:
    """Refuse a cluster of another release before anything is built for it, if the lab's Compass is there to be asked.

    Raises:
        Conflict: there is one with this name, of another release.
    """
    try:
        config = read_config()
        if config.server != f"https://{lab.describe(hosts).addresses.compass.address}":
            return
        session = Session(config)
    except CkpError:
        return  # this machine was never logged in, or the CA is gone
    try:
        is_there(session, name, release)
    except Conflict:
        raise
    except CkpError:
        return  # it does not answer; the cluster is asked for later in any case
    finally:
        session.close()


def kubeconfig_path(name: str) -> Path:
    """Where a workload cluster's kubeconfig is kept on this machine."""
    return config_path().parent / f"{name}.kubeconfig"


def save_kubeconfig(session: Session, name: str) -> Path:
    """Fetch the kubeconfig, readable for its owner only."""
    path = kubeconfig_path(name)
    atomic_write(path, str(session.get(f"/clusters/{name}/kubeconfig")), mode=0o600)
    return path


def show_summary(row: dict[str, Any], kubeconfig: Path, steps: Steps, name: str, compass: str) -> None:
    """Where everything is, and what to try next."""
    total = sum(step.seconds for step in steps.done)
    click.echo()
    phase = ""
    for step in row.get("steps", []) if not steps.drawn else []:  # where they are drawn, they stand above
        if step["phase"] != phase:
            phase = step["phase"]
            click.echo(phase)
        state = took(step) if step["state"] == "Done" else f"{step['state'].lower()} ({step.get('message', '')})"
        click.echo(printable(f"  {step['number']:>2}. {step['title']:<42} {state}"))
    click.echo(
        f"""
{name} is ready: {row.get("version")}, {len(row.get("machines", []))} nodes, {human_duration(total)} in all

  kubeconfig   {kubeconfig}
  Compass      https://{compass}  (REST below /api/v1; this machine's ckp is logged in)
  site         {lab.state() / lab.FILE}

Try next:
  export KUBECONFIG={kubeconfig}
  kubectl get nodes -o wide
  ./ckp cluster describe {name}
  ./ckp host list -o wide
  ./ckp site status -f {lab.state() / lab.FILE}
  ./ckp cluster delete {name} --wait
  make down"""
    )
