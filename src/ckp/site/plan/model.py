"""What a site is to be, what was seen of it, and what applying would change."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from ckp.api.names import CKP, SYSTEM_NAMESPACE
from ckp.api.platform import Releases
from ckp.kits.errors import CkpError
from ckp.site.clusters.look import SeenExisting
from ckp.site.inventory import Inventory
from ckp.site.members import Member
from ckp.site.provided.storage import SeenClasses
from ckp.site.releases import Offered

COMPASS, HUB, CONTROLLERS = "ckp-compass", "ckp-hub", "ckp-controllers"
"""CKP's own Deployments, and the first two's Services, in the namespace ckp-system."""


class Action(StrEnum):
    """What applying does to a part.

    UNKNOWN: it is decided by what the release's build gives. REFUSED: applying stops before it changes anything.
    """

    NONE = "none"
    CREATE = "create"
    CHANGE = "change"
    RESTART = "restart"
    UNKNOWN = "unknown"
    REFUSED = "refused"


@dataclass(frozen=True)
class Change:
    """What applying does to one part of the site.

    Args:
        detail: what is so and what it becomes, or why it can't.
        interrupts: what users of the site notice of it; empty if nothing.
        remedy: what to do about a refused one.
    """

    part: str
    action: Action
    detail: str
    interrupts: str = ""
    remedy: str = ""


def some(names: Sequence[str], most: int = 5) -> str:
    """Names in a sentence; of many the first ones."""
    shown = ", ".join(names[:most])
    return f"{shown} and {len(names) - most} others" if len(names) > most else shown


# -- what is wanted


@dataclass(frozen=True)
class Making:
    """What is known of a release before it is built.

    Args:
        same: whether it is made of the same sources as what was applied last of it; None if that is not known.
        built: whether all of its components are in this machine's cache, or were read from a file.
    """

    same: bool | None = None
    built: bool = False


@dataclass(frozen=True)
class Wanted:
    """A site as its file describes it, with what is known of its releases before anything is built.

    Args:
        releases: those that the site offers.
        management: the one that the management cluster has, or that a new one gets. The management layer is of it.
        agent: version of the host tool's package; empty if it is not known.
        groups: the management layer's groups whose objects are known -> what is sent to the cluster, as one JSON document.
        making: what is known of each release, by name; one that is missing is not known.
    """

    inventory: Inventory
    releases: Sequence[str]
    management: str
    agent: str = ""
    groups: Mapping[str, str] = field(default_factory=dict)
    making: Mapping[str, Making] = field(default_factory=dict)

    def unlike(self, names: Iterable[str]) -> list[str]:
        """Those of these releases that are not known to be made of what was applied last."""
        return [name for name in names if not self.making.get(name, Making()).same]


# -- what was seen


@dataclass(frozen=True)
class SeenRegistry:
    """The registry on its host.

    Args:
        there: the host has one, or a part of one.
        storage: the folder of its content; empty without one.
        content: those of that folder and of the wanted one that hold content.
        differing: files of the host that would be written.
        restarted: services that would be restarted.
        started: services that would be started.
        program_known: whether the program that it would get was compared.
        refusal: why `HostedRegistry.ensure` would refuse.
    """

    there: bool
    storage: str = ""
    content: frozenset[str] = frozenset()
    differing: tuple[str, ...] = ()
    restarted: tuple[str, ...] = ()
    started: tuple[str, ...] = ()
    program_known: bool = True
    refusal: CkpError | None = None


@dataclass(frozen=True)
class SeenCluster:
    """A standalone installation on the management host, complete or not.

    Args:
        ours: this machine's state shows that this site has made it.
        done: how many of its steps are done.
        bundle: the image that it was made from, or a folder.
        settings: what it was made with, as `ckp-agent standalone install` keeps it: pod_cidr, service_cidr, advertise_address, node_name.
    """

    ours: bool
    complete: bool
    done: int
    release: str
    bundle: str
    settings: Mapping[str, str]


@dataclass(frozen=True)
class Deployment:
    """How a Deployment of CKP's replaces its pods, and what decides whether it does.

    Args:
        recreate: the old pod ends before the new one starts.
        template: what of its pods CKP's manifests change: images, literal environment, and CKP's annotations.
    """

    replicas: int
    recreate: bool
    template: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, obj: Mapping[str, Any]) -> Deployment:
        """From a manifest, or from the API's object."""
        spec = obj["spec"]
        template = spec["template"]
        annotations = (template.get("metadata") or {}).get("annotations") or {}
        found = {f"annotation {name}": str(value) for name, value in annotations.items() if name.startswith(f"{CKP}/")}
        for container in template["spec"]["containers"]:
            found[f"image {container['name']}"] = str(container["image"])
            found |= {f"env {container['name']} {each['name']}": str(each["value"]) for each in container.get("env") or () if "value" in each}
        return cls(int(spec.get("replicas", 1)), (spec.get("strategy") or {}).get("type") == "Recreate", found)


@dataclass(frozen=True)
class Address:
    """An address that a Service of type LoadBalancer has, or asks for."""

    service: str  # namespace/name
    address: str
    of_class: str = ""  # its load balancer's class


def is_own(service: str) -> bool:
    """Whether it is CKP's own, by `namespace/name`: applying gives it another address."""
    return service in (f"{SYSTEM_NAMESPACE}/{COMPASS}", f"{SYSTEM_NAMESPACE}/{HUB}")


@dataclass(frozen=True)
class WorkloadCluster:
    """A cluster that the site carries."""

    name: str  # namespace/name
    release: str


@dataclass(frozen=True)
class SeenLayer:
    """The management layer, in a management cluster that answers. What is not there yet is empty.

    Args:
        uid: tells this cluster from one that was there before it.
        deployments: of the namespace ckp-system, by name.
        pool: first and last address for load balancers.
        offered: the releases that clusters can be made of, and those whose removal is not finished.
        names: COMPASS and HUB -> DNS names of the site in their certificates; one without a certificate is missing.
        users: release -> clusters that use it, by their control plane or a machine, as `namespace/name`.
        hosts: how many hosts are enrolled.
        classes: its StorageClasses.
    """

    uid: str
    deployments: Mapping[str, Deployment] = field(default_factory=dict)
    addresses: Sequence[Address] = ()
    pool: tuple[str, str] | None = None
    offered: Offered | None = None
    names: Mapping[str, Sequence[str]] = field(default_factory=dict)
    users: Mapping[str, Sequence[str]] = field(default_factory=dict)
    hosts: int = 0
    clusters: Sequence[WorkloadCluster] = ()
    classes: SeenClasses = field(default_factory=SeenClasses)

    @property
    def releases(self) -> Releases | None:
        """The table of releases that clusters can be made of."""
        return self.offered.releases if self.offered else None


@dataclass(frozen=True)
class SeenOwners:
    """An existing cluster, and the name of another site that is in it; empty without one."""

    cluster: SeenExisting
    other_site: str = ""


@dataclass(frozen=True)
class SeenSession:
    """This machine's `ckp`: the server that it is logged in to, empty if none; and the site's host group.

    Args:
        group: its description; None if there is no such group.
        asked: whether Compass could be asked for the group.
    """

    server: str = ""
    group: str | None = None
    asked: bool = False


@dataclass(frozen=True)
class SeenHost:
    """A management host as it was found.

    Args:
        host: its name.
        agent: version of the host tool's package there; empty without one.
        settings: the host's own settings; None if it has none from CKP.
        name: addresses that the registry's name leads to there.
        own_line: whether /etc/hosts has a line of CKP's.
        site_settings: the document that the site has given to the host (ckp.site.settings); empty if none.
    """

    host: str
    agent: str
    settings: object | None
    name: frozenset[str]
    own_line: bool
    registry: SeenRegistry
    cluster: SeenCluster | None
    site_settings: Mapping[str, object]


@dataclass(frozen=True)
class Seen(SeenHost):
    """A site as it was found: the host that is acted on, and what is there once.

    Args:
        applied: digests of what was applied last of each group, as this machine remembers it.
        others: its other management hosts.
        members: of the management cluster, if it answers.
        existing: what an existing cluster has; None where CKP installs its own.
        server: the name or address of the management API in the kubeconfig that this machine keeps; empty without one.
    """

    layer: SeenLayer | None
    session: SeenSession
    applied: Mapping[str, str] = field(default_factory=dict)
    others: Sequence[SeenHost] = ()
    members: Sequence[Member] = ()
    server: str = ""
    existing: SeenOwners | None = None
