"""What is done with a site that a file describes: it is made so, and removed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

from ckp.distribution.release import Deliverable
from ckp.hostkit.locations import RESTORED
from ckp.kits.errors import CkpError, Conflict
from ckp.kits.steps import Steps
from ckp.site import described, releases
from ckp.site.backup import timer
from ckp.site.clusters import brought
from ckp.site.clusters.existing import ExistingCluster
from ckp.site.enrol import Enrolment
from ckp.site.hosts import settings
from ckp.site.hosts.sidebyside import each
from ckp.site.install import AGENT_CONFIG, Site, forget
from ckp.site.inventory import SiteHost, SiteHosts, acted_on_first
from ckp.site.management import ADMIN, kubectl
from ckp.site.provided import storage
from ckp.site.publish import publish_all, registry_servers
from ckp.site.registries.existing import ExistingRegistry
from ckp.site.registries.hosted import HostedRegistry

NO_CLUSTER = "this host is not a standalone cluster"
"""What `ckp-agent standalone status` says where there is none."""
TITLES = (
    "Filling the registry: images and the host bundle",
    "Installing a standalone CKP node on the management host",
    "Installing the management layer: Cluster API, cert-manager, CKP",
    "Opening Compass",
)
REMOVING = "Deleting releases that are no longer offered from the registry"

Say = Callable[[str], None]


def titles(hosts: SiteHosts) -> list[str]:
    """The steps of `apply`, as far as they are always there: an existing cluster is not installed."""
    return [title for title in TITLES if title != TITLES[1] or not isinstance(hosts.management, ExistingCluster)]


def apply(
    site: Site, steps: Steps, others: Sequence[Deliverable] = (), data: Callable[[], None] = lambda: None, schedule: timer.Schedule | None = None
) -> None:
    """Make the site's hosts what its inventory says; what is so already is left alone, so a run that was killed goes on by running it again.

    Args:
        site: with the release that the management cluster and its layer are of (ckp.site.releases.choose).
        others: further releases that it offers; it offers no others afterwards.
        data: brings Compass its data, before anybody asks it for something.
        schedule: by which management hosts make backups; None: they make none.

    Raises:
        Conflict: a cluster was made of a release that is to go, since `choose` looked; that release stays.
        CkpError: a step failed; it is named in the lines before.
    """
    filling, standalone, layer, opening = TITLES
    inventory = site.inventory
    owners = isinstance(inventory.hosts.management, ExistingCluster)
    with steps.step(filling):
        if inventory.registry.outside is None:
            each(inventory.hosts.masters, lambda host: described.name_registry(host, inventory.on(host).registry, steps.say, inventory.registry_addresses))
        published, *more = publish_all(site.dist, inventory, steps.say, others)
    if not owners:
        with steps.step(standalone):
            each(inventory.hosts.masters, lambda host: storage.ensure_folder(host, inventory.storage.etcd_path, steps.say))
            site.install_standalone(published)
    with steps.step(layer):
        withdrawn = releases.withdrawing(site.management, [dist.release.name for dist in (site.dist, *others)])
        site.deploy_management(published, more, withdrawn)
        data()
    with steps.step(opening):
        site.log_in()
        session = site.session()
        try:
            Enrolment(site, session).ensure_group()
        finally:
            session.close()
        timer.bring_all(inventory.hosts, schedule, steps.say)
    if withdrawn:
        with steps.step(REMOVING):
            servers = registry_servers(site.dist, inventory)
            registries = [server if isinstance(server, ExistingRegistry) else server.client() for server in servers]
            releases.finish_removal(site.management, registries, inventory.state, steps.say)


def workload_clusters(host: SiteHost) -> list[str]:
    """Clusters that the site carries, as `namespace/name`; none where there is no management cluster (any more)."""
    if not isinstance(host, ExistingCluster) and host.run(["test", "-e", ADMIN], timeout=30, check=False).code:
        return []
    kinds = kubectl(host, "api-resources", "--api-group=cluster.x-k8s.io", "--output=name")
    if "clusters.cluster.x-k8s.io" not in kinds.split():
        return []
    items = json.loads(kubectl(host, "get", "clusters.cluster.x-k8s.io", "--all-namespaces", "--output=json"))["items"]
    return [f"{item['metadata']['namespace']}/{item['metadata']['name']}" for item in items]


def remove(
    hosts: SiteHosts,
    registries: Sequence[HostedRegistry | ExistingRegistry],
    state: Path,
    say: Say,
    *,
    force: bool = False,
    keep_images: bool = False,
    etcd_path: str = "",
    name: str = "",
) -> None:
    """Take from the hosts what `apply` brought; what is gone already is fine. The host that is acted on comes last: with it goes the cluster.

    Args:
        registries: of each of the management hosts, that of the host that is acted on first; or the one that was there before the site. Of that one,
            only what the site has pushed is removed.
        state: what this machine keeps of the site.
        force: also while it carries workload clusters, which are lost then.
        keep_images: leave the registry's content on the hosts.
        etcd_path: the folder of the volumes of etcd; empty for none.
        name: the site's, by which it is known what was brought to an existing cluster.

    Raises:
        Conflict: it carries workload clusters, or a host has the registry of another site; nothing was changed.
        CkpError: something could not be removed; running it again goes on.
    """
    hosted = [registry for registry in registries if isinstance(registry, HostedRegistry)]
    for own in hosted:
        own.refuse_removal()  # before the reset: a file with a wrong address names another site's host
    if not force and (clusters := workload_clusters(hosts.management)):
        raise Conflict(
            f"the site carries {len(clusters)} workload clusters, and nothing was removed",
            details="\n".join(clusters),
            resolution="delete them first (ckp cluster delete NAME --wait), or lose them: --force",
        )
    if isinstance(hosts.management, ExistingCluster):
        brought.remove(partial(kubectl, hosts.management), name, say)
    of_host = {registry.host.name: registry for registry in hosted}
    for host in reversed(acted_on_first(hosts)):
        _remove_from(host, of_host.get(host.name), say, keep_images=keep_images)
        storage.remove_folder(host, etcd_path)
    forget(state)
    for registry in registries if not keep_images else ():
        if isinstance(registry, ExistingRegistry):
            with closing(registry.client()) as client:
                for release in registry.record.read():
                    registry.remove_content(client, release, say)
        elif registry.folder.exists():
            shutil.rmtree(registry.folder)


def _remove_from(host: SiteHost, registry: HostedRegistry | None, say: Say, *, keep_images: bool) -> None:
    timer.remove(host, say)
    if host.run(["test", "-e", "/usr/bin/ckp-agent"], timeout=30, check=False).code == 0:
        if NO_CLUSTER not in host.run(["ckp-agent", "standalone", "status"], timeout=60, check=False).stdout:
            code = host.stream(["ckp-agent", "standalone", "reset"], timeout=900, on_line=say)
            if code:
                raise CkpError(f"{host.name} could not be reset: exit code {code}", details="its output is above", resolution="run the same command again")
        settings.remove(host, say)
        host.run(["dpkg", "--purge", "ckp-agent"], timeout=180, what="removing ckp-agent")
    host.run(["rm", "-rf", "--one-file-system", AGENT_CONFIG, RESTORED, "/var/cache/ckp-agent.deb"], timeout=60, what="removing the agent's settings")
    if registry is not None:
        registry.remove(storage=not keep_images)
        described.forget_registry_name(host)
    say(f"{host.name} is as it was before{', but for ' + registry.storage + ' with the images' if registry is not None and keep_images else ''}")
