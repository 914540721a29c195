"""What is done with a site that a file describes: it is made so, looked at, and removed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckp.clients.compass import Session, read_config
from ckp.distribution.release import Deliverable
from ckp.kits.errors import CkpError, Conflict
from ckp.kits.steps import Steps
from ckp.site import described, releases
from ckp.site.enrol import Enrolment
from ckp.site.install import AGENT_CONFIG, Site, forget
from ckp.site.inventory import SiteHost
from ckp.site.management import ADMIN, kubectl
from ckp.site.publish import publish, publish_to
from ckp.site.registry import HostedRegistry

NAMESPACES = ("cert-manager", "capi-system", "capi-kubeadm-bootstrap-system", "ckp-system")
NO_CLUSTER = "this host is not a standalone cluster"
"""What `ckp-agent standalone status` says where there is none."""
TITLES = (
    "Filling the registry: images and the host bundle",
    "Installing a standalone CKP node on the management host",
    "Installing the management layer: Cluster API, cert-manager, CKP",
    "Opening Compass",
)
REMOVING = "Deleting releases that are no longer offered from the registry"


def apply(site: Site, steps: Steps, others: Sequence[Deliverable] = ()) -> None:
    """Make the site's host what its inventory says; what is so already is left alone, so a run that was killed goes on by running it again.

    Args:
        site: with the release that the management cluster and its layer are of (ckp.site.releases.choose).
        others: further releases that it offers; it offers no others afterwards.

    Raises:
        Conflict: a cluster was made of a release that is to go, since `choose` looked; that release stays.
        CkpError: a step failed; it is named in the lines before.
    """
    filling, standalone, layer, opening = TITLES
    with steps.step(filling):
        described.name_registry(site.management, site.inventory.registry, steps.say)
        published = publish(site.dist, site.inventory, steps.say)
        more = [publish_to(published.registry, published.registry.client(), dist, site.inventory, steps.say) for dist in others]
    with steps.step(standalone):
        site.install_standalone(published)
    with steps.step(layer):
        withdrawn = releases.withdrawing(site.management, [dist.release.name for dist in (site.dist, *others)])
        site.deploy_management(published, more, withdrawn)
    with steps.step(opening):
        site.log_in()
        session = Session(read_config())
        try:
            Enrolment(site, session).ensure_group()
        finally:
            session.close()
    if withdrawn:
        with steps.step(REMOVING):
            releases.finish_removal(site.management, published.registry.client(), site.inventory.state, steps.say)


@dataclass(frozen=True)
class Part:
    """A part of a site as it was seen.

    Args:
        state: `ok`, or in a word what is wrong.
        detail: in a sentence.
    """

    name: str
    state: str
    detail: str = ""


def status(host: SiteHost, registry: HostedRegistry) -> Iterator[Part]:
    """What of the site is as it should be: the host, its cluster, the registry, and each Deployment of the management layer. It changes nothing."""
    try:
        host.run(["true"], timeout=30)
    except CkpError as error:
        yield Part("host", "unreachable", error.brief)
        return
    yield Part("host", "ok", f"{host.name} ({host.address})")
    if not registry.ca.exists():
        yield Part("registry", "unknown", f"this machine has no CA of {registry.address}: the site was set up from another one")
    else:
        silent = registry.silent()
        yield Part("registry", "down" if silent else "ok", f"no answer at {' and '.join(silent)}" if silent else registry.address)
    found = host.run(["ckp-agent", "standalone", "status"], timeout=60, check=False)
    missing = [line for line in (found.stdout or found.stderr).splitlines() if not line.endswith(": done")]
    yield Part("cluster", "ok" if found.code == 0 else "not installed", missing[0].strip() if missing else "its steps are done")
    if found.code == 0:
        try:
            yield from _deployments(host)
        except CkpError as error:
            yield Part("management API", "not answering", error.brief)


def _deployments(host: SiteHost) -> Iterator[Part]:
    for namespace in NAMESPACES:
        asked = kubectl(host, "get", "deployments", f"--namespace={namespace}", "--output=json")
        items: list[dict[str, Any]] = json.loads(asked)["items"]
        if not items:
            yield Part(namespace, "missing", "it has no Deployment")
        for item in items:
            wanted, ready = int(item["spec"].get("replicas", 1)), int(item["status"].get("readyReplicas", 0))
            yield Part(f"{namespace}/{item['metadata']['name']}", "ok" if ready >= wanted else "not ready", f"{ready} of {wanted} ready")


def workload_clusters(host: SiteHost) -> list[str]:
    """Clusters that the site carries, as `namespace/name`; none where there is no management cluster (any more)."""
    if host.run(["test", "-e", ADMIN], timeout=30, check=False).code:
        return []
    kinds = kubectl(host, "api-resources", "--api-group=cluster.x-k8s.io", "--output=name")
    if "clusters.cluster.x-k8s.io" not in kinds.split():
        return []
    items = json.loads(kubectl(host, "get", "clusters.cluster.x-k8s.io", "--all-namespaces", "--output=json"))["items"]
    return [f"{item['metadata']['namespace']}/{item['metadata']['name']}" for item in items]


def remove(host: SiteHost, registry: HostedRegistry, state: Path, say: Callable[[str], None], *, force: bool = False, keep_images: bool = False) -> None:
    """Take from the host what `apply` brought; what is gone already is fine.

    Args:
        state: what this machine keeps of the site.
        force: also while it carries workload clusters, which are lost then.
        keep_images: leave the registry's content on the host.

    Raises:
        Conflict: it carries workload clusters, or has the registry of another site; nothing was changed.
        CkpError: something could not be removed; running it again goes on.
    """
    registry.refuse_removal()  # before the reset: a file with a wrong address names another site's host
    if not force and (clusters := workload_clusters(host)):
        raise Conflict(
            f"the site carries {len(clusters)} workload clusters, and nothing was removed",
            details="\n".join(clusters),
            resolution="delete them first (ckp cluster delete NAME --wait), or lose them: --force",
        )
    if host.run(["test", "-e", "/usr/bin/ckp-agent"], timeout=30, check=False).code == 0:
        if NO_CLUSTER not in host.run(["ckp-agent", "standalone", "status"], timeout=60, check=False).stdout:
            code = host.stream(["ckp-agent", "standalone", "reset"], timeout=900, on_line=say)
            if code:
                raise CkpError(f"{host.name} could not be reset: exit code {code}", details="its output is above", resolution="run the same command again")
        host.run(["dpkg", "--purge", "ckp-agent"], timeout=180, what="removing ckp-agent")
    host.run(["rm", "-rf", "--one-file-system", AGENT_CONFIG, "/var/cache/ckp-agent.deb"], timeout=60, what="removing the agent's settings")
    registry.remove(storage=not keep_images)
    described.forget_registry_name(host)
    forget(state)
    if not keep_images and registry.folder.exists():
        shutil.rmtree(registry.folder)
    say(f"{host.name} is as it was before{', but for ' + registry.storage + ' with the images' if keep_images else ''}")
