"""A site as its file describes it: from the file to the inventory, and what has to be so on its management host before anything is installed."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ckp.catalog.models import BundleTarget, Release
from ckp.kits import paths
from ckp.kits.errors import CkpError, Conflict, InvalidInput
from ckp.rules.claims import system_name
from ckp.site import database, management
from ckp.site.clusters.existing import ExistingCluster
from ckp.site.hosts.local import LocalHost
from ckp.site.hosts.sidebyside import each
from ckp.site.inventory import HostGroup, Inventory, KnownHosts, SiteHost, SiteHosts, SiteNetwork, SiteRegistry, SiteStorage
from ckp.site.registries import existing
from ckp.site.settings.read import settings_of
from ckp.site.spec.model import Host, SiteSpec
from ckp.site.ssh import SshHost, SshSettings

HOSTS_FILE = "/etc/hosts"
MARK = "# CKP's registry"
"""Ends the line that CKP adds to HOSTS_FILE."""
HTTPS = 443
GROUP = HostGroup("default", "Workers of this site")
"""Where the file names none."""


def state_folder(spec: SiteSpec) -> Path:
    """What this machine keeps of the site."""
    return state_of(spec.metadata.name)


def state_of(name: str) -> Path:
    """What this machine keeps of the site with this name."""
    return paths.state() / "sites" / name


def host_of(described: Host) -> SshHost | LocalHost:
    """A management host of the file, as it is reached. No connection is made.

    Raises:
        InvalidInput: ssh would read a value as something else.
    """
    address, way = str(described.address), described.connection
    if way is None:
        return LocalHost(described.name, address)
    settings = SshSettings(
        host=way.host or described.name,
        user=way.user,
        port=way.port,
        config_file=way.config_file,
        identity_file=way.identity_file,
        known_hosts_file=way.known_hosts_file,
    )
    return SshHost(described.name, address, settings)


@contextmanager
def reached(described: Host) -> Iterator[SiteHost]:
    """A management host of the file, for as long as the block lasts."""
    host = host_of(described)
    try:
        yield host
    finally:
        if isinstance(host, SshHost):
            host.close()


@contextmanager
def reached_hosts(spec: SiteSpec) -> Iterator[SiteHosts]:
    """The management hosts of the file, for as long as the block lasts. The site's workers enrol by themselves."""
    if spec.management.kubeconfig is not None:
        yield KnownHosts(ExistingCluster(spec.management.kubeconfig), ())
        return
    with ExitStack() as stack:
        masters = [stack.enter_context(reached(each)) for each in spec.management.hosts or ()]
        yield KnownHosts(acting(masters), masters)


def acting(masters: Sequence[SiteHost]) -> SiteHost:
    """The host by which the management cluster is reached: the first one that has it and answers, otherwise the first one of the file."""
    for host in masters[: len(masters) if len(masters) > 1 else 0]:
        try:
            if management.exists(host):
                return host
        except CkpError:
            continue  # it is not reached: whoever needs it will say so
    return masters[0]


def os_release(host: SiteHost) -> str:
    """What a host says of its operating system. CkpError if it is not reached."""
    return host.run(["cat", "/etc/os-release"], timeout=30, what="reading /etc/os-release").stdout


def operating_system(host: str, text: str, release: Release) -> BundleTarget:
    """What a host runs, as a release's bundles name it.

    Args:
        host: its name.
        text: as `os_release` gives it.

    Raises:
        InvalidInput: the release has no bundle for it.
    """
    # os-release(5): lines as a shell reads them.
    fields = dict(word.split("=", 1) for line in text.splitlines() if "=" in line for word in shlex.split(line, comments=True) if "=" in word)
    name, version = fields.get("ID", ""), fields.get("VERSION_ID", "")
    for target in release.bundles:
        if system_name(target.os, target.os_version) == system_name(name, version):
            return target
    known = ", ".join(f"{target.os} {target.os_version}" for target in release.bundles)
    raise InvalidInput(f"{host} runs {name or 'an unknown system'} {version}, and {release.name} has bundles for: {known}", resolution="take such a host")


def worker_systems(spec: SiteSpec, release: Release) -> tuple[BundleTarget, ...]:
    """What the site's workers run beside the management host's system.

    Raises:
        InvalidInput: the release has no bundle for one of them.
    """
    wanted = spec.workers.systems if spec.workers else ()
    known = {target.system: target for target in release.bundles}
    if missing := [name for name in wanted if name not in known]:
        raise InvalidInput(
            f"{spec.file or 'site'}:{spec.line('workers', 'systems')}: workers.systems: {release.name} has no bundle for {', '.join(missing)}",
            resolution=f"write one of {', '.join(known)}",
        )
    return tuple(known[name] for name in wanted)


def inventory_for(spec: SiteSpec, hosts: SiteHosts, releases: Sequence[Release], keyring: Path | None = None) -> Inventory:
    """The site's inventory for releases, each of which has bundles for what its hosts run.

    Args:
        keyring: as of `settings_of`.

    Raises:
        InvalidInput: one has none for a management host, or for one of `workers.systems`; or management hosts run different systems; or as of `settings_of`.
    """
    if isinstance(hosts.management, ExistingCluster):
        [known, *_] = [worker_systems(spec, release) for release in releases]
        # Of the agents' packages CKP brings debs to hosts by itself; workers take theirs from the hub.
        ordered = sorted(known, key=lambda target: target.format != "deb")
        return inventory(spec, hosts, ordered[0], ordered[1:], keyring)
    texts = each(hosts.masters, os_release)
    systems = {host.name: operating_system(host.name, text, release) for host, text in zip(hosts.masters, texts, strict=True) for release in releases}
    if len(set(systems.values())) > 1:
        raise InvalidInput(
            f"the management hosts run different systems: {', '.join(f'{name} {each.system}' for name, each in systems.items())}",
            resolution="take hosts with the same one",
        )
    [others, *_] = [worker_systems(spec, release) for release in releases]
    return inventory(spec, hosts, systems[hosts.management.name], others, keyring)


def inventory(spec: SiteSpec, hosts: SiteHosts, system: BundleTarget, others: Sequence[BundleTarget] = (), keyring: Path | None = None) -> Inventory:
    """The site's inventory.

    Args:
        system: what its management hosts run.
        others: what workers run beside that.
        keyring: as of `settings_of`.

    Raises:
        InvalidInput: the file with the database's URL can't be read, or holds something else; or as of `settings_of`.
    """
    host = hosts.management
    addresses = spec.addresses
    balancers = addresses.load_balancers
    pool = balancers.cilium_pool
    network = SiteNetwork(
        hosts=str(addresses.hosts),
        load_balancers=(str(pool.first), str(pool.last)) if pool is not None else None,
        compass=str(addresses.compass.address),
        hub=str(addresses.hub.address),
        management_pods=str(addresses.management_pods),
        management_services=str(addresses.management_services),
        compass_names=tuple(map(str, addresses.compass.names)),
        hub_names=tuple(map(str, addresses.hub.names)),
        virtual_address=str(addresses.api.virtual_address or ""),
        api_names=tuple(dict.fromkeys(map(str, (*addresses.api.names, *addresses.api.cert_sans)))),
        api_name=next(iter(map(str, addresses.api.names)), ""),
        load_balancer_class=balancers.class_name or "",
        on_hosts=tuple(map(str, balancers.on_hosts or ())),
    )
    registry = registry_place(spec, host)
    group = HostGroup(spec.workers.group.name, spec.workers.group.description) if spec.workers and spec.workers.group else GROUP
    values = {chart: dict(value) for chart, value in spec.addon_values.items()}
    return Inventory(
        system,
        hosts,
        registry,
        network,
        group,
        "ssh {host}",
        dict(spec.host_settings),
        values,
        state_folder(spec),
        others,
        database=database.of_spec(spec),
        settings=settings_of(spec, keyring),
        storage=storage_of(spec),
        name=spec.metadata.name,
    )


def storage_of(spec: SiteSpec) -> SiteStorage:
    """What volumes of etcd are made of."""
    etcd = spec.storage.etcd
    return SiteStorage(etcd.class_name or "", str(etcd.path or "")) if etcd is not None else SiteStorage()


def registry_place(spec: SiteSpec, host: SiteHost) -> SiteRegistry:
    """The site's registry on one of its hosts, or the one that was there before it.

    Raises:
        InvalidInput: as of ckp.site.registries.existing.of_spec.
    """
    own = spec.registry.own
    if own is None:
        outside = existing.of_spec(spec)
        assert outside is not None
        name, _, port = outside.host.partition(":")
        return SiteRegistry(name, "", int(port or HTTPS), outside=outside)
    return SiteRegistry(own.name, host.address, own.port, host, own.push_port, str(own.storage))


def require_address(host: SiteHost) -> None:
    """InvalidInput if the host does not have its address: certificates and other hosts would name a machine that is not there."""
    listing = json.loads(host.run(["ip", "-json", "-4", "addr", "show"], timeout=30, what="listing addresses").stdout)
    has = [str(item["local"]) for link in listing for item in link["addr_info"]]
    if host.address not in has:
        raise InvalidInput(
            f"{host.name} has the addresses {', '.join(address for address in has if not address.startswith('127.')) or 'none'}, not {host.address}",
            resolution="correct `address` in the site's file, or the host's network",
        )


def name_registry(host: SiteHost, registry: SiteRegistry, say: Callable[[str], None], also: Collection[str] = ()) -> None:
    """Let a host find the registry by its name: as its resolver does, otherwise by a line in /etc/hosts.

    Args:
        registry: the host's own.
        also: addresses of the site's other registries with the same content. A resolver may name them, and the host gets its own all the same:
            it has to pull when the others are away, or not there yet.

    Raises:
        Conflict: the name leads somewhere else.
    """
    found = resolved(host, registry.name)
    if found == {registry.listen}:
        return
    text = host.pull(HOSTS_FILE).decode(errors="surrogateescape")
    rest = without_ours(text)
    if rest != text or found <= {registry.listen, *also}:  # ours of an earlier address, no name, or another host of the site
        whole = rest if not rest or rest.endswith("\n") else f"{rest}\n"
        host.push(f"{whole}{registry.listen} {registry.name} {MARK}\n".encode(errors="surrogateescape"), HOSTS_FILE)
        say(f"{HOSTS_FILE} on {host.name} names {registry.name} now")
        found = resolved(host, registry.name)
    if found != {registry.listen}:
        raise leads_elsewhere(host.name, registry, found)


def leads_elsewhere(host: str, registry: SiteRegistry, found: Collection[str]) -> Conflict:
    """The registry's name leads to `found` on that host, and not to the registry."""
    return Conflict(
        f"on {host} the registry's name {registry.name} leads to {', '.join(sorted(found)) or 'nothing'}, not to {registry.listen}",
        resolution="correct the name server's answer or /etc/hosts there, or give the registry another name",
    )


def forget_registry_name(host: SiteHost) -> None:
    """Take our line out of a host's /etc/hosts; none there is fine."""
    text = host.pull(HOSTS_FILE).decode(errors="surrogateescape")
    if (rest := without_ours(text)) != text:
        host.push(rest.encode(errors="surrogateescape"), HOSTS_FILE)


def without_ours(text: str) -> str:
    """What of HOSTS_FILE is not CKP's."""
    return re.sub(rf"^.*{re.escape(MARK)}\n", "", text, flags=re.MULTILINE)


def resolved(host: SiteHost, name: str) -> set[str]:
    """IPv4 addresses that a name leads to there."""
    done = host.run(["getent", "ahostsv4", name], timeout=60, check=False, what=f"resolving {name}")
    if done.code not in (0, 2):  # getent(1): 2 is "not found"
        raise CkpError(f"{name} could not be looked up on {host.name}", details=done.stderr)
    return {line.split()[0] for line in done.stdout.splitlines() if line.strip()}
