"""`ckp up`: the main job, from upstream source to a running workload cluster."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from ckp.catalog.load import Catalog, Profile
from ckp.catalog.models import Release
from ckp.cli.cluster import took, wait_until_ready
from ckp.cli.distribution.release import DEFAULT_HELP, default_release
from ckp.cli.trust import trusted_keys
from ckp.cli.view.progress import planned
from ckp.clients.compass import Session, config_path, read_config
from ckp.distribution.carry.airgap import ImportedRelease
from ckp.distribution.release import Distribution
from ckp.kits import paths
from ckp.kits.clock import human_duration
from ckp.kits.errors import CkpError, InvalidInput, NotFound
from ckp.kits.files import atomic_write, exclusive, require_free_space
from ckp.kits.steps import Steps
from ckp.kits.text import printable
from ckp.lab import base
from ckp.lab.lab import require_root
from ckp.site.enrol import Enrolment
from ckp.site.install import Site
from ckp.site.inventory import Inventory
from ckp.site.lab import LabHosts
from ckp.site.lab import inventory as lab_inventory
from ckp.site.publish import publish

CLUSTER = "demo"
READY_TIMEOUT = 1200.0
MIN_MEMORY_GIB = 6
MIN_DISK_GIB = 12


@click.command()
@click.option("--release", "release_name", default=default_release, show_default=DEFAULT_HELP, help="The release to build and install.")
@click.option("--workers", default=2, show_default=True, type=click.IntRange(1, 20), help="How many hosts for workload clusters.")
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
def up(release_name: str, workers: int, name: str, archive: Path | None, keyring: Path | None) -> None:
    """From upstream source to a running workload cluster, on this one machine. Running it again continues where it stopped."""
    require_root("`ckp up`")
    catalog = Catalog()
    release = catalog.release(release_name)
    steps = planned("up", titles(release, archive, workers, name))
    with exclusive(paths.state() / "up.lock", what="another `ckp up` or `ckp down`", timeout=5), steps:
        with steps.step("Checking this machine"):
            check_machine()
        hosts = LabHosts(workers)
        inventory = lab_inventory(hosts)
        dist = read_release(archive, keyring, inventory, steps) if archive else make_release(catalog, release, inventory, steps)
        site = Site(dist, inventory, steps.say)
        with steps.step(f"Booting {workers + 1} lab hosts"):
            hosts.boot(steps.say)
        with steps.step("Filling the registry: images and the host bundle"):
            published = publish(dist, inventory, steps.say)
        with steps.step("Installing a standalone CKP node on the management host"):
            site.install_standalone(published)
        with steps.step("Installing the management layer: Cluster API, cert-manager, CKP"):
            site.deploy_management(published)
        with steps.step("Opening Compass"):
            site.log_in()
        session = Session(read_config())
        with steps.step("Enrolling the workers"):
            Enrolment(site, session).run()
        with steps.step(f"Creating the cluster {name} through Compass"):
            row = create_cluster(session, inventory, dist.release.name, name, workers, steps)
            kubeconfig = save_kubeconfig(session, name)
    show_summary(row, kubeconfig, steps, name, inventory.network.compass)


def titles(release: Release, archive: Path | None, workers: int, name: str) -> list[str]:
    """The steps of `ckp up` in their order, as they are called when they run."""
    return [
        "Checking this machine",
        *([reading(archive)] if archive else made_titles(release)),
        f"Booting {workers + 1} lab hosts",
        "Filling the registry: images and the host bundle",
        "Installing a standalone CKP node on the management host",
        "Installing the management layer: Cluster API, cert-manager, CKP",
        "Opening Compass",
        "Enrolling the workers",
        f"Creating the cluster {name} through Compass",
    ]


def reading(archive: Path) -> str:
    """The step that reads a release from a file."""
    return f"Reading and verifying {archive.name}"


def made_titles(release: Release) -> list[str]:
    """The steps of `make_release`."""
    return [f"Building {release.stamp} from source", "Packing and signing packages", "Making images"]


def make_release(catalog: Catalog, release: Release, inventory: Inventory, steps: Steps, profile: Profile = "lab") -> Distribution:
    """Source to signed packages, images and the bundle for the site's hosts."""
    dist = Distribution(catalog, release, profile, steps.say)
    building, packing, imaging = made_titles(release)
    with steps.step(building):
        dist.build(steps)
    with steps.step(packing):
        dist.pack(sorted({system.format for system in inventory.systems}))
    with steps.step(imaging):
        dist.make_images()
        dist.make_bundles(inventory.registry.address, inventory.systems)
    return dist


def read_release(archive: Path, keyring: Path | None, inventory: Inventory, steps: Steps) -> ImportedRelease:
    """A release from a file, with the lab hosts' root file system if the file has it."""
    with steps.step(reading(archive)):
        found = verified_release(archive, keyring, inventory, "the lab", steps)
        if found.base is not None:
            base.adopt(found.base, steps.say)
    return found


def verified_release(archive: Path, keyring: Path | None, inventory: Inventory, place: str, steps: Steps) -> ImportedRelease:
    """A release from a file, made for the registry of `place`, which has this inventory. Stand-ins in it are said.

    Raises:
        InvalidInput: it was made for another registry.
        VerificationFailed: see ImportedRelease.read.
    """
    registry = inventory.registry.address
    found = ImportedRelease.read(archive, trusted_keys(keyring), steps.say)
    if found.registry_name != registry:
        raise InvalidInput(
            f"the bundles in {archive} name the registry {found.registry_name}, and {place}'s is {registry}",
            resolution=f"export it for {place}: ckp dist export --registry-name {registry}",
        )
    if missing := [system.system for system in inventory.systems if system not in found.targets]:
        raise InvalidInput(
            f"{archive} has no host bundle for {', '.join(missing)}, which {place} needs", resolution="export the release again, or correct `workers.systems`"
        )
    for pin in found.stand_ins:
        steps.say(f"STAND-IN: something else takes the place of {pin}")
    return found


def check_machine() -> None:
    """Memory and disk, before anything is started."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    if memory < MIN_MEMORY_GIB:
        raise CkpError(f"this machine has {memory:.1f} GiB of memory, and the lab needs {MIN_MEMORY_GIB}", resolution="take a larger one, or fewer workers")
    for place in (paths.cache(), paths.state()):
        require_free_space(place, MIN_DISK_GIB, what="the lab with a release")


def create_cluster(session: Session, inventory: Inventory, release: str, name: str, workers: int, steps: Steps | None = None) -> dict[str, Any]:
    """Ask for it unless it is there, and show its fourteen steps until it is ready."""
    try:
        session.get(f"/clusters/{name}")
    except NotFound:
        body = {
            "name": name,
            "version": release,
            "cni": "cilium",
            "hostGroup": inventory.group.name,
            "workers": workers,
            "podCIDR": inventory.network.workload_pods,
            "serviceCIDR": inventory.network.workload_services,
        }
        session.call("POST", "/clusters", body=body)
    return wait_until_ready(session, name, READY_TIMEOUT, steps)


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

Try next:
  export KUBECONFIG={kubeconfig}
  kubectl get nodes -o wide
  ./ckp cluster describe {name}
  ./ckp host list -o wide
  ./ckp cluster delete {name} --wait
  make down"""
    )
