"""The releases that the management layer can install: one JSON file, mounted into its pods.

ckp.site.publish makes it when releases have been pushed; the controllers and Compass read it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict

from ckp.api.host_protocol import BundleRef
from ckp.kits.errors import InvalidInput, NotFound

DEFAULT_PATH = Path("/etc/ckp/releases.json")


def release_order(name: str) -> list[int]:
    """Sorts names of releases, the oldest first: `v1.9.0` before `v1.35.1`."""
    return [int(part) if part.isdigit() else 0 for part in name.removeprefix("v").split(".")]


class _Data(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class Options(_Data):
    """What the programs of a release take, as far as it differs between minors (catalog/options)."""

    free_gates: tuple[str, ...] = ()  # feature gates that may be on or off; empty: it is not known which gates there are
    locked_gates: dict[str, bool] = {}  # those that can only be what they are
    removed_flags: dict[str, tuple[str, ...]] = {}  # program -> flags that the minor before still had


class InstalledRelease(_Data):
    """One release as the registry holds it."""

    name: str  # v1.35.1
    stamp: str  # v1.35.1-ckp
    registry: str  # host:port/prefix that images are pulled from
    images: dict[str, str]  # repository below the prefix -> tag@sha256:…
    bundles: dict[str, BundleRef]  # "debian-12" -> the bundle, by digest
    cni: dict[str, str] = {}  # name -> version
    addons: str = ""  # the image with helm and the charts of `cni`, by digest; empty: that of the management layer
    stand_ins: tuple[str, ...] = ()
    options: Options = Options()

    def image(self, repository: str) -> str:
        """The full reference of an image."""
        return f"{self.registry}/{repository}:{self.images[repository]}"

    def chart_version(self, name: str) -> str:
        """The version of an addon's chart; NotFound if the release does not have it."""
        if name not in self.cni:
            raise NotFound(f"release {self.name} has no chart {name}", resolution=f"it has: {', '.join(sorted(self.cni)) or 'none'}")
        return self.cni[name]


class Releases(_Data):
    """All releases that the site offers, the oldest first."""

    releases: dict[str, InstalledRelease]
    management: str = ""  # the release that the management layer's images are of
    registry_ca: str = ""
    agents: dict[str, str] = {}  # version of the package ckp-agent -> the image that holds it, by digest
    addon_values: dict[str, dict[str, object]] = {}  # chart -> helm values of this site, over the release's own
    etcd_storage_class: str = ""  # of volumes of etcd where a cluster names none; empty: the management cluster's default class
    load_balancer_class: str = ""  # spec.loadBalancerClass of Services of type LoadBalancer; empty: none
    load_balancer_addresses: tuple[str, ...] = ()  # addresses of management hosts that such Services get; empty: a load balancer gives them

    @classmethod
    def load(cls, path: Path = DEFAULT_PATH) -> Releases:
        """Read the file.

        Raises:
            InvalidInput: it is missing, or not as `ckp.site.publish` writes it.
        """
        try:
            return cls.model_validate(json.loads(path.read_text()))
        except (OSError, ValueError) as error:  # pydantic's errors are ValueErrors
            raise InvalidInput(
                f"the releases file {path} cannot be read: {error}", resolution="`ckp up` and `ckp site apply` write it, into the ConfigMap ckp-releases"
            ) from None

    def with_releases(self, more: Iterable[InstalledRelease]) -> Self:
        """The table with these as well; one of the same name is replaced."""
        return self._of({**self.releases, **{release.name: release for release in more}})

    def without(self, names: Iterable[str]) -> Self:
        """The table without these."""
        gone = set(names)
        return self._of({name: release for name, release in self.releases.items() if name not in gone})

    def _of(self, found: dict[str, InstalledRelease]) -> Self:
        return self.model_copy(update={"releases": {name: found[name] for name in sorted(found, key=release_order)}})

    def get(self, name: str) -> InstalledRelease:
        """The release of this name; NotFound lists what there is."""
        if name not in self.releases:
            raise NotFound(
                f"version {name} is not among the installed releases", resolution=f"take one of: {', '.join(sorted(self.releases, key=release_order))}"
            )
        return self.releases[name]
