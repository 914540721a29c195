"""Bringing a release to a site's registry, and the table of it that controllers and Compass read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ckp.api.host_protocol import BundleRef
from ckp.api.platform import InstalledRelease, Releases
from ckp.distribution.bundles import AGENT_IMAGE, PLATFORM_IMAGES, PREFIX
from ckp.distribution.packages.agent import version_of_tag
from ckp.distribution.registries.server import RegistryServer
from ckp.distribution.release import Deliverable
from ckp.kits.files import sha256_bytes
from ckp.site.inventory import Inventory
from ckp.site.registry import REGISTRY_STATE, HostedRegistry, SiteRegistryServer


def registry_server(dist: Deliverable, inventory: Inventory) -> SiteRegistryServer:
    """The site's registry, run by the program that the release has built."""
    place, program = inventory.registry, dist.built["distribution"].binary("registry")
    if place.host is None:
        return RegistryServer(program, place.listen, place.name, place.port)
    return HostedRegistry(place.host, program, place.name, place.listen, place.port, place.push_port, place.storage, inventory.state / REGISTRY_STATE)


def publish(dist: Deliverable, inventory: Inventory, say: Callable[[str], None]) -> Published:
    """Bring up the registry; push images and bundles. Tags that name an earlier build's content name this release's afterwards, and `say` gets each.

    Raises:
        CkpError: the registry does not start, or refuses what is pushed.
    """
    server = registry_server(dist, inventory)
    client = server.ensure(say)
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

    def releases(self) -> Releases:
        """What the management layer has to know about the release."""
        release = self.dist.release
        installed = InstalledRelease(
            name=release.name,
            stamp=release.stamp,
            registry=self.prefix,
            images={repository: pinned for repository, pinned in self.images.items() if repository not in PLATFORM_IMAGES},
            bundles=self.bundles,
            cni=release.built_cni,
            stand_ins=tuple(self.dist.stand_ins),
        )
        return Releases(
            releases={release.name: installed},
            agents=self.agents(),
            registry_ca=self.registry.ca.read_text(),
            addon_values=dict(self.inventory.addon_values),
        )

    def agents(self) -> dict[str, str]:
        """Every version of the agent that the registry holds -> its image, by digest; this release's last. An older one is what its hosts may return to."""
        registry, repository = self.registry.client(), f"{PREFIX}/{AGENT_IMAGE}"
        tags = sorted(tag for tag in registry.tags(repository) if not tag.startswith("sha256-"))
        current = self.dist.agent(self.inventory.os.format).version
        found = {version_of_tag(tag): registry.digest(repository, tag) for tag in tags}
        ordered = [*(version for version in found if version != current), current]
        return {version: f"{self.prefix}/{AGENT_IMAGE}@{found.get(version) or self.digests[AGENT_IMAGE]}" for version in ordered}


def releases_config(releases: Releases) -> tuple[dict[str, Any], str]:
    """The ConfigMap that the management layer's pods mount, and a digest of its content: another one rolls them out again."""
    text = releases.model_dump_json(indent=1)
    meta = {"name": "ckp-releases", "namespace": "ckp-system"}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {"releases.json": text}}, sha256_bytes(text.encode())[:16]
