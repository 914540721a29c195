"""Bringing releases to a site's registry, and the table of them that controllers and Compass read."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckp.api.host_protocol import BundleRef
from ckp.api.names import CKP
from ckp.api.platform import InstalledRelease, Options, Releases
from ckp.catalog.load import Catalog
from ckp.clients.oci.registry import Registry
from ckp.distribution.bundles import AGENT_IMAGE, PLATFORM_IMAGES, PREFIX
from ckp.distribution.packages.agent import version_of_tag
from ckp.distribution.registries.mirror import Selection, everything, mirror
from ckp.distribution.registries.server import RegistryServer
from ckp.distribution.release import Deliverable
from ckp.kits.files import sha256_bytes
from ckp.site.hosts.sidebyside import each
from ckp.site.inventory import Inventory, SiteHost, SiteRegistry, acted_on_first
from ckp.site.provided import load_balancers, storage
from ckp.site.registries.existing import ExistingRegistry
from ckp.site.registries.hosted import REGISTRY_STATE, HostedRegistry, SiteRegistryServer

ADDONS_IMAGE = "ckp-addons"
NAMESPACE, CONFIG = "ckp-system", "ckp-releases"
"""Of the ConfigMap with the table."""
OFFERED, WITHDRAWN = "releases.json", "withdrawn.json"
"""Its keys: the table; and the releases whose removal is not finished (ckp.site.releases), which nothing but this machine reads."""
DIGEST_ANNOTATION = f"{CKP}/releases"
"""Of pods that read the table: the digest of what they have read. Another one rolls them out again."""
Withdrawn = Mapping[str, InstalledRelease | None]
"""Releases that are being removed, by name; None once their content is being deleted, so that they can't be offered as they were."""


def registry_server(dist: Deliverable, inventory: Inventory) -> SiteRegistryServer:
    """The site's registry, run by the program that the release has built; where several hosts have it, that of the host that is acted on."""
    place = inventory.registry
    if place.outside is not None:
        return ExistingRegistry(place.outside, inventory.state / REGISTRY_STATE)
    program = dist.built["distribution"].binary("registry")
    if place.host is None:
        return RegistryServer(program, place.listen, place.name, place.port)
    return hosted_registry(inventory, place.host, program)


def hosted_registry(inventory: Inventory, host: SiteHost, program: Path) -> HostedRegistry:
    """The site's registry on a host, as the inventory describes it."""
    return registry_on(host, program, inventory.registry, inventory.hosts.masters, inventory.network.virtual_address, inventory.state)


def hosted_if_own(inventory: Inventory, host: SiteHost, program: Path) -> HostedRegistry | None:
    """As `hosted_registry`; None for a site that uses a registry that was there before it."""
    return hosted_registry(inventory, host, program) if inventory.registry.outside is None else None


def registry_on(host: SiteHost, program: Path, place: SiteRegistry, masters: Sequence[SiteHost], virtual: str, state: Path) -> HostedRegistry:
    """A site's registry on one of its management hosts.

    Args:
        place: its name, ports and storage.
        masters: all hosts that have it.
        virtual: the address that moves between them; "" for none.
        state: what this machine keeps of the site.
    """
    beside = tuple(other.address for other in masters if other.address != host.address)
    ports = (place.port, place.push_port)
    return HostedRegistry(host, program, place.name, host.address, *ports, place.storage, state=state / REGISTRY_STATE, beside=beside, virtual=virtual)


def registry_servers(dist: Deliverable, inventory: Inventory) -> list[SiteRegistryServer]:
    """The site's registry on each host that has it, that of the host that is acted on first."""
    if inventory.registry.host is None:
        return [registry_server(dist, inventory)]
    return [registry_server(dist, inventory.on(host)) for host in acted_on_first(inventory.hosts)]


def publish_all(dist: Deliverable, inventory: Inventory, say: Callable[[str], None], others: Sequence[Deliverable] = ()) -> list[Published]:
    """Bring up the registry on each host that has it, and push images and bundles as `publish_to` does.

    Args:
        others: further releases; the registry is run by the program of `dist`.

    Returns:
        What was published of `dist`, then of `others`: the same on all hosts.

    Raises:
        CkpError: the registry does not start, or refuses what is pushed.
    """
    servers = registry_servers(dist, inventory)
    client, *more = each(servers, lambda server: server.ensure(say))
    published = [publish_to(servers[0], client, item, inventory, say) for item in (dist, *others)]
    if more:
        selection = everything(client)
        each(more, lambda target: replicate(client, target, selection, say))
    return published


def replicate(source: Registry, target: Registry, selection: Selection, say: Callable[[str], None]) -> None:
    """Bring what one host's registry has to another's, as it is: what was pushed there was verified before.

    Args:
        selection: all that it has.

    Raises:
        CkpError: one of them does not answer, or refuses what is pushed.
    """
    if selection:
        done = mirror(source, target, selection, lambda _line: None, image_key=None, replace=True)
        say(f"{target.address} has what {source.address} has: {done}")


def publish_to(server: SiteRegistryServer, client: Registry, dist: Deliverable, inventory: Inventory, say: Callable[[str], None]) -> Published:
    """Push images and bundles. Tags that name an earlier build's content name this release's afterwards, and `say` gets each.

    Args:
        server: it runs already; it may be another release's program.
        client: of it, which may push.

    Raises:
        CkpError: the registry refuses what is pushed.
    """
    if isinstance(server, ExistingRegistry):
        repositories = {**dist.tags, **{target.repository: dist.release.stamp for target in dist.targets}}
        with server.recorded(client, dist.release.name, {f"{PREFIX}/{name}": tag for name, tag in repositories.items()}) as replace:
            digests = dist.push(client, server.endpoint, server.ca, server.credentials, replace=replace)
    else:
        digests = dist.push(client, server.endpoint, server.ca, server.credentials, replace=True)
    say(f"{len(dist.tags)} images and {len(dist.targets)} bundle at {inventory.registry.address}/{PREFIX}")
    return Published(dist, inventory, server, digests)


@dataclass(frozen=True)
class Published:
    """A release as it lies in the site's registry.

    Args:
        digests: repository -> digest of what was pushed.
    """

    dist: Deliverable
    inventory: Inventory
    registry: SiteRegistryServer
    digests: Mapping[str, str]

    @property
    def prefix(self) -> str:
        """`host:port/prefix` that all repositories are below."""
        return f"{self.inventory.registry.address}/{PREFIX}"

    @property
    def images(self) -> dict[str, str]:
        """The images that were pushed, as `tag@sha256:…`: what runs is what was made and signed, whatever becomes of the registry's tags."""
        return {repository: f"{tag}@{self.digests[repository]}" for repository, tag in self.dist.tags.items()}

    @property
    def bundles(self) -> dict[str, BundleRef]:
        """Operating system (`debian-12`) -> bundle, by digest."""
        release = self.dist.release
        return {
            target.system: BundleRef(image=f"{self.prefix}/{target.repository}@{self.digests[target.repository]}", tag=release.stamp, release=release.name)
            for target in self.dist.targets
        }

    @property
    def host_bundle(self) -> BundleRef:
        """The bundle for the site's own hosts."""
        return self.bundles[self.inventory.os.system]

    @property
    def installed(self) -> InstalledRelease:
        """What the management layer has to know about the release."""
        release = self.dist.release
        return InstalledRelease(
            name=release.name,
            stamp=release.stamp,
            registry=self.prefix,
            images={repository: pinned for repository, pinned in self.images.items() if repository not in PLATFORM_IMAGES},
            bundles=self.bundles,
            cni=release.built_cni,
            addons=f"{self.prefix}/{ADDONS_IMAGE}:{self.images[ADDONS_IMAGE]}" if ADDONS_IMAGE in self.images else "",
            stand_ins=tuple(self.dist.stand_ins),
            options=options_of(Catalog(), release.name),
        )

    def releases(self, *others: Published) -> Releases:
        """The table of this release, which the management layer is of, and of others."""
        table = Releases(
            releases={},
            management=self.dist.release.name,
            agents=self.agents(),
            registry_ca=self.registry.ca.read_text() if self.registry.ca is not None else "",
            addon_values=dict(self.inventory.addon_values),
            etcd_storage_class=storage.class_of(self.inventory.storage),
            load_balancer_class=load_balancers.class_of(self.inventory.network),
            load_balancer_addresses=self.inventory.network.on_hosts,
        )
        own = self.installed
        # Charts of addons are CKP's own image, which a release from another registry does not bring: it gets those of the management cluster's release.
        rest = (item if item.addons else item.model_copy(update={"addons": own.addons}) for item in (published.installed for published in others))
        return table.with_releases((own, *rest))

    def agents(self) -> dict[str, str]:
        """Every version of the agent that the registry holds -> its image, by digest; this release's last. An older one is what its hosts may return to."""
        registry, repository = self.registry.client(), f"{PREFIX}/{AGENT_IMAGE}"
        tags = sorted(tag for tag in registry.tags(repository) if not tag.startswith("sha256-"))
        current = self.dist.agent(self.inventory.os.format).version
        found = {version_of_tag(tag): registry.digest(repository, tag) for tag in tags}
        ordered = [*(version for version in found if version != current), current]
        return {version: f"{self.prefix}/{AGENT_IMAGE}@{found.get(version) or self.digests[AGENT_IMAGE]}" for version in ordered}


def options_of(catalog: Catalog, release: str) -> Options:
    """What the programs of a release take; nothing is known of a minor that the catalog has no list of."""
    minor = ".".join(release.removeprefix("v").split(".")[:2])
    if minor not in catalog.option_minors():
        return Options()
    found = catalog.options(minor)
    return Options(free_gates=found.gates.free, locked_gates=found.gates.locked, removed_flags=found.removed_flags)


def releases_config(releases: Releases, withdrawn: Withdrawn | None = None) -> tuple[dict[str, Any], str]:
    """The ConfigMap that the management layer's pods mount, and a digest of the table in it.

    Args:
        withdrawn: releases whose removal is not finished. The digest does not cover them: no pod needs to know.
    """
    text = releases.model_dump_json(indent=1)
    data = {OFFERED: text}
    if withdrawn:
        data[WITHDRAWN] = json.dumps({name: release and release.model_dump(mode="json") for name, release in sorted(withdrawn.items())}, indent=1)
    meta = {"name": CONFIG, "namespace": NAMESPACE}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": data}, sha256_bytes(text.encode())[:16]
