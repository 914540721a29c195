"""A site's file as what is to be checked, and its hosts as they are reached."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime

from ckp.catalog.load import Catalog
from ckp.catalog.models import BundleTarget
from ckp.kits.errors import CkpError, InvalidInput
from ckp.site import database
from ckp.site.check.model import Finding, HostToCheck, Severity, SiteToCheck
from ckp.site.described import reached, storage_of
from ckp.site.inventory import OutsideRegistry, SiteHost
from ckp.site.registries import existing
from ckp.site.settings.read import lifetimes, settings_of
from ckp.site.spec.model import SiteSpec

DEPLOYED = "deb"
"""The format of packages that ckp.site.install brings to hosts."""


@contextmanager
def site_to_check(spec: SiteSpec) -> Iterator[SiteToCheck]:
    """What is to be checked of a site. Its connections end with the block."""
    with ExitStack() as stack:
        yield describe(spec, [stack.enter_context(reached(each)) for each in spec.management.hosts or ()])


def describe(spec: SiteSpec, hosts: Sequence[SiteHost]) -> SiteToCheck:
    """What is to be checked, with hosts that are reached already."""
    addresses, registry, proxy = spec.addresses, spec.registry, spec.network.proxy
    pool = addresses.load_balancers.cilium_pool
    balancers = addresses.load_balancers
    free = {"Compass": str(addresses.compass.address), "the hub": str(addresses.hub.address)} if balancers.on_hosts is None else {}
    if pool is not None:
        free |= {"the load balancers' first one": str(pool.first), "the load balancers' last one": str(pool.last)}
    if addresses.api.virtual_address is not None:
        free["the management API"] = str(addresses.api.virtual_address)
    network, (document, known) = spec.network, settings(spec)
    names = [*addresses.api.names, *addresses.hub.names]  # the registry's own name is made to resolve (ckp.site.described.name_registry)
    return SiteToCheck(
        hosts=[HostToCheck(each) for each in hosts],
        network=str(addresses.hosts),
        pods=str(addresses.management_pods),
        services=str(addresses.management_services),
        pool=(str(pool.first), str(pool.last)) if pool is not None else None,
        free=free,
        names=list(dict.fromkeys(names)),
        proxy=(proxy.https or proxy.http or "") if proxy is not None else "",
        systems=systems(spec),
        ports={registry.own.port: "the registry", registry.own.push_port: "pushes to the registry"} if registry.own is not None else {},
        settings=spec.host_settings,
        database=_database(spec),
        site_settings=document,
        nameservers=list(map(str, network.dns)),
        time_servers=list(network.time_servers),
        known=known,
        storage=storage_of(spec),
        registry=_registry(spec),
        on_hosts=list(map(str, balancers.on_hosts or ())),
        foreign_load_balancer=balancers.class_name is not None,
        leads=leads(spec, [host.address for host in hosts]),
    )


def leads(spec: SiteSpec, hosts: Sequence[str]) -> dict[str, str]:
    """Names of the management API -> the address that they must lead to.

    Args:
        hosts: addresses of the management hosts.
    """
    api = spec.addresses.api
    address = str(api.virtual_address) if api.virtual_address is not None else next(iter(hosts), "")
    return dict.fromkeys(map(str, api.names), address) if address else {}


def _registry(spec: SiteSpec) -> OutsideRegistry | None:
    try:
        return existing.of_spec(spec)
    except InvalidInput:
        return None  # `files` says so


def _database(spec: SiteSpec) -> tuple[str, int] | None:
    try:
        found = database.of_spec(spec)
    except InvalidInput:
        return None  # `files` says so
    return database.endpoint(found) if found is not None else None


def files(spec: SiteSpec) -> list[Finding]:
    """Files of this machine that the site's file names and that do not hold what they have to."""
    found: list[Finding] = []
    readers: dict[str, Callable[[SiteSpec], object]] = {"database": database.of_spec, "registry": existing.of_spec}
    for part, read in readers.items():
        try:
            read(spec)
        except InvalidInput as error:
            found.append(Finding("", part, Severity.ERROR, error.brief, error.resolution))
    return found


def settings(spec: SiteSpec) -> tuple[str, list[Finding]]:
    """The settings that hosts are to get, and what is wrong in the files that the site's file names for them."""
    try:
        document = settings_of(spec).text()
        lives = list(lifetimes(spec, datetime.now(UTC)))
    except CkpError as error:
        return "", [Finding("", "files", Severity.ERROR, error.brief, error.resolution)]
    renew = "name the CA that has come after it, or remove it from network.caFiles"
    return document, [Finding("", "files", Severity.ERROR if ended else Severity.WARNING, what, renew) for ended, what in lives]


def systems(spec: SiteSpec) -> list[BundleTarget]:
    """The operating systems that all of the site's releases have bundles for and that CKP brings packages to."""
    catalog = Catalog()
    offered = [catalog.release(name).bundles for name in spec.releases]
    return [target for target in offered[0] if target.format == DEPLOYED and all(target in others for others in offered[1:])]
