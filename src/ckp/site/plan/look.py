"""Looking at a site before it is changed: what its host, its management cluster and this machine's state hold. Nothing is changed by it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from ckp.api import names
from ckp.clients.compass import Session, read_config
from ckp.hostkit.locations import REGISTRY_LOGIN, SITE_SETTINGS
from ckp.kits.errors import CkpError, NotFound
from ckp.kits.files import sha256_file
from ckp.kits.retry import wait_until
from ckp.site import described
from ckp.site.clusters.brought import other_site
from ckp.site.clusters.existing import ExistingCluster
from ckp.site.clusters.look import look as look_at_cluster
from ckp.site.hosts.files import HostFile, differing, digests, owners
from ckp.site.hosts.sidebyside import each
from ckp.site.install import AGENT_CONFIG, APPLIED, KUBECONFIG, REGISTRY_CA, is_begun
from ckp.site.inventory import Inventory, SiteHost, acted_on_first
from ckp.site.management import ADMIN, JOURNAL, exists, kubectl
from ckp.site.members import members
from ckp.site.plan.model import (
    COMPASS,
    HUB,
    Address,
    Deployment,
    Seen,
    SeenCluster,
    SeenHost,
    SeenLayer,
    SeenOwners,
    SeenRegistry,
    SeenSession,
    WorkloadCluster,
)
from ckp.site.provided import storage
from ckp.site.provided.names import same_user, server_of
from ckp.site.publish import NAMESPACE
from ckp.site.registries.existing import login_document
from ckp.site.registries.hosted import CONTENT, HOST_CA, INSTANCES, HostedRegistry, mark_of
from ckp.site.registries.unit import CONFIG, PROGRAM, PULL, TEMPLATE, unit_of
from ckp.site.releases import clusters_by_release, read_offered

SETTINGS = f"{AGENT_CONFIG}/host.json"
BYO_HOSTS = f"byohosts.{names.INFRASTRUCTURE_GROUP}"
CONTROL_PLANES = f"managedcontrolplanes.{names.CONTROLPLANE_GROUP}"
POOLS = "ciliumloadbalancerippools.cilium.io"
CERTIFICATES = "certificates.cert-manager.io"
OUR_NAMES = re.compile(r"ckp-(hub|compass|compass-internal)(\.ckp-system\.svc)?")
"""In certificates of every site (deploy/20-certificates.yaml)."""
NONE = "<none>"
"""What kubectl writes into a column without a value."""


def look(inventory: Inventory, registry_on: Callable[[SiteHost], HostedRegistry | None], *, wait: float = 0) -> Seen:
    """The site as it is now.

    Args:
        registry_on: that of a host, as the file describes it; None if the site has none of its own.
        wait: seconds that a management cluster may take to answer, as after its host was started.

    Raises:
        CkpError: a host is not reached, or the management cluster does not answer.
        TimedOut: the management cluster does not answer within `wait` seconds.
    """
    if isinstance(inventory.hosts.management, ExistingCluster):
        return _existing(inventory, inventory.hosts.management, wait)
    host, *_ = hosts = acted_on_first(inventory.hosts)
    own, *others = each(hosts, lambda item: _host(item, inventory, registry_on(item)))
    asked = own.cluster is not None and own.cluster.ours and own.cluster.complete
    layer = _layer(host, wait) if asked else None
    return Seen(
        **{item.name: getattr(own, item.name) for item in fields(own)},
        layer=layer,
        session=_session(inventory, layer),
        applied=_applied(inventory),
        others=others,
        members=members(host) if asked else (),
        server=server_of(kept.read_bytes()) if (kept := inventory.state / KUBECONFIG).exists() else "",
    )


def _applied(inventory: Inventory) -> dict[str, str]:
    folder = inventory.state / APPLIED
    return {path.name: path.read_text() for path in folder.iterdir()} if folder.is_dir() else {}


def _existing(inventory: Inventory, cluster: ExistingCluster, wait: float) -> Seen:
    """A site on an existing cluster: it has no hosts of CKP's, and no registry."""
    asked = partial(kubectl, cluster)
    layer = _layer(cluster, wait)
    nothing = SeenRegistry(there=False)
    return Seen(
        host=cluster.name,
        agent="",
        settings=None,
        name=frozenset(),
        own_line=False,
        registry=nothing,
        cluster=None,
        site_settings={},
        layer=layer,
        session=_session(inventory, layer),
        applied=_applied(inventory),
        existing=SeenOwners(look_at_cluster(asked), other_site(asked, inventory.name)),
    )


def _host(host: SiteHost, inventory: Inventory, registry: HostedRegistry | None) -> SeenHost:
    there = digests(host, [JOURNAL, SETTINGS, SITE_SETTINGS, ADMIN, HOST_CA])
    package = host.run(["dpkg-query", "-W", "-f", "${Version}", "ckp-agent"], timeout=30, check=False)
    hosts_file = host.pull(described.HOSTS_FILE).decode(errors="surrogateescape")
    given = _json(host, SITE_SETTINGS) if SITE_SETTINGS in there else None
    return SeenHost(
        host=host.name,
        agent=package.stdout.strip() if package.code == 0 else "",
        settings=_json(host, SETTINGS) if SETTINGS in there else None,
        name=frozenset(described.resolved(host, registry.name)) if registry is not None else frozenset(),
        own_line=described.without_ours(hosts_file) != hosts_file,
        registry=_registry(host, registry) if registry is not None else _outside(host, inventory),
        cluster=_cluster(host, inventory.state, registry, there),
        site_settings=given if isinstance(given, dict) else {},
    )


def _json(host: SiteHost, path: str) -> Any:
    """None if it is not JSON, as nothing of CKP's."""
    try:
        return json.loads(host.pull(path))
    except ValueError:
        return None


# -- the host


def _cluster(host: SiteHost, state: Path, registry: HostedRegistry | None, there: Mapping[str, str]) -> SeenCluster | None:
    """The standalone installation, if one was begun.

    It is this site's if the registry there is, which apply brings before it begins a cluster; or if this machine has its administrator's kubeconfig.
    """
    if JOURNAL not in there:
        return None
    journal = _json(host, JOURNAL)
    member = journal.get("member") if isinstance(journal, dict) else None
    if not member:
        return None
    kept = state / KUBECONFIG
    ours = registry is not None and registry.ca.exists() and there.get(HOST_CA) == sha256_file(registry.ca)
    ours = ours or (registry is None and is_begun(state, host))
    ours = ours or (ADMIN in there and kept.exists() and same_user(host.pull(ADMIN), kept.read_bytes()))
    known = ("key", "release", "bundle", "cluster", "machine")
    settings = {name: str(value) for name, value in member.items() if name not in known}
    return SeenCluster(ours, exists(host), len(journal.get("done") or ()), str(member.get("release", "")), str(member.get("bundle", "")), settings)


def _outside(host: SiteHost, inventory: Inventory) -> SeenRegistry:
    """What a host has of an existing registry: its CA, and how to log in there."""
    place = inventory.registry.outside
    login = login_document(place) if place is not None else ""
    wanted = [HostFile(REGISTRY_CA, place.ca)] if place is not None and place.ca is not None else []
    wanted += [HostFile(REGISTRY_LOGIN, login.encode(), mode=0o600)] if login else []
    there = digests(host, [REGISTRY_CA, REGISTRY_LOGIN])
    extra = sorted(there.keys() - {file.target for file in wanted})
    return SeenRegistry(there=bool(there), differing=tuple(file.target for file in differing(host, wanted)) + tuple(extra))


def _registry(host: SiteHost, registry: HostedRegistry) -> SeenRegistry:
    refusal: CkpError | None = None
    try:
        registry.refuse()
    except CkpError as error:
        refusal = error
    configuration = f"{CONFIG}/{PULL}.yml"
    there = digests(host, [HOST_CA, TEMPLATE, configuration, *map(mark_of, INSTANCES)])
    storage = _storage(host, configuration) if configuration in there else ""
    contents = {folder: f"{folder}/{CONTENT}" for folder in (storage, registry.storage) if folder}
    held = owners(host, list(contents.values()))
    wanted = [file for file in registry.files() if file.target != PROGRAM or registry.program.exists()]
    changed = _differing(host, wanted, _reissued(registry))
    restarted = [each for each in INSTANCES if mark_of(each) in there or any(each in file.readers for file in changed)]
    states = registry.states()
    started = [each for each in INSTANCES if each not in restarted and states[each].get("ActiveState") != "active"]
    return SeenRegistry(
        there=bool(there),
        storage=storage,
        content=frozenset(folder for folder, path in contents.items() if path in held),
        differing=tuple(file.target for file in changed),
        restarted=tuple(map(unit_of, restarted)),
        started=tuple(map(unit_of, started)),
        program_known=registry.program.exists(),
        refusal=refusal,
    )


def _storage(host: SiteHost, configuration: str) -> str:
    """The folder that a service's configuration names; empty if it is not as CKP writes it."""
    try:
        return str(_json(host, configuration)["storage"]["filesystem"]["rootdirectory"])
    except (KeyError, TypeError):
        return ""


def _reissued(registry: HostedRegistry) -> bool:
    """Whether the server's certificate is issued again."""
    return not registry.ca.exists() or bool(registry.why_issue())


def _differing(host: SiteHost, files: Iterable[HostFile], reissued: bool) -> list[HostFile]:
    """Those that would be written: what this machine is still to make is among them."""
    made = [file for file in files if not isinstance(file.content, Path) or file.content.exists()]
    found = {file.target for file in differing(host, made)}
    tls = f"{CONFIG}/tls.pem"
    return [file for file in files if file not in made or file.target in found or (reissued and file.target == tls)]


# -- the management cluster


def _layer(host: SiteHost, wait: float) -> SeenLayer:
    uid = _uid(host, wait)
    kinds = kubectl(host, "api-resources", "--output=name").split()
    questions: dict[str, Callable[[], Any]] = {
        "deployments": lambda: _deployments(host),
        "addresses": lambda: _addresses(host),
        "pool": lambda: _pool(host) if POOLS in kinds else None,
        "offered": lambda: read_offered(host),
        "names": lambda: _names(host) if CERTIFICATES in kinds else {},
        "users": lambda: clusters_by_release(host),
        "hosts": lambda: len(kubectl(host, "get", BYO_HOSTS, "--all-namespaces", "--output=name").split()) if BYO_HOSTS in kinds else 0,
        "clusters": lambda: _clusters(host) if CONTROL_PLANES in kinds else (),
        "classes": lambda: storage.look(partial(kubectl, host)),
    }
    answers = each(list(questions.values()), lambda ask: ask())
    return SeenLayer(uid=uid, **dict(zip(questions, answers, strict=True)))


def _deployments(host: SiteHost) -> dict[str, Deployment]:
    found = json.loads(kubectl(host, "get", "deployments.apps", f"--namespace={NAMESPACE}", "--output=json"))["items"]
    return {item["metadata"]["name"]: Deployment.of(item) for item in found}


def _uid(host: SiteHost, wait: float) -> str:
    last: list[CkpError] = []

    def answered() -> str | None:
        try:
            return kubectl(host, "get", "namespace", "kube-system", "--output=jsonpath={.metadata.uid}")
        except CkpError as error:
            last[:] = [error]
            if wait:
                return None
            raise CkpError(
                f"the management cluster on {host.name} does not answer, and what would change in it can't be told",
                details=str(error),
                resolution=f"see what is wrong there (journalctl -u kubelet), and run the same command again: {host.name} may have been started just now",
            ) from None

    return wait_until(answered, what=f"the management cluster on {host.name} answers", timeout=wait, every=2, reason=lambda: str(last[0]) if last else "")


def _table(host: SiteHost, kind: str, *paths: str) -> list[list[str]]:
    """Values of all objects of a kind, one list for each; none of them may hold a space."""
    columns = ",".join(f"C{number}:{path}" for number, path in enumerate(paths))
    lines = kubectl(host, "get", kind, "--all-namespaces", "--no-headers", f"--output=custom-columns={columns}").splitlines()
    return [line.split() for line in lines if len(line.split()) == len(paths)]


def _addresses(host: SiteHost) -> list[Address]:
    asks = ".metadata.annotations." + names.ADDRESSES_ANNOTATION.replace(".", r"\.")
    rows = _table(
        host, "services", ".metadata.namespace", ".metadata.name", ".spec.type", ".status.loadBalancer.ingress[*].ip", asks, ".spec.loadBalancerClass"
    )
    found = []
    for namespace, name, kind, has, asked, of_class in rows:
        if kind == "LoadBalancer":
            wanted = asked if asked != NONE else has
            found += [Address(f"{namespace}/{name}", address, of_class if of_class != NONE else "") for address in wanted.split(",") if address != NONE]
    return found


def _names(host: SiteHost) -> dict[str, list[str]]:
    found = json.loads(kubectl(host, "get", CERTIFICATES, f"--namespace={NAMESPACE}", "--output=json"))["items"]
    names = {str(each["metadata"]["name"]): each["spec"].get("dnsNames") or [] for each in found}
    return {part: [name for name in names[f"{part}-tls"] if not OUR_NAMES.fullmatch(name)] for part in (COMPASS, HUB) if f"{part}-tls" in names}


def _pool(host: SiteHost) -> tuple[str, str] | None:
    text = kubectl(host, "get", POOLS, "ckp", "--ignore-not-found", "--output=json")
    blocks = json.loads(text)["spec"].get("blocks") or [] if text.strip() else []
    return (str(blocks[0].get("start", "")), str(blocks[0].get("stop", ""))) if blocks else None


def _clusters(host: SiteHost) -> list[WorkloadCluster]:
    label = ".metadata.labels." + names.CLUSTER_NAME_LABEL.replace(".", r"\.")
    rows = _table(host, CONTROL_PLANES, ".metadata.namespace", label, ".metadata.name", ".spec.version")
    return [WorkloadCluster(f"{namespace}/{cluster if cluster != NONE else name}", release) for namespace, cluster, name, release in rows]


# -- this machine


def _session(inventory: Inventory, layer: SeenLayer | None) -> SeenSession:
    """Compass is asked only if it is there and this machine is logged in to it, with the session that it has."""
    try:
        config = read_config()
    except CkpError:
        return SeenSession()
    if config.server != f"https://{inventory.network.compass}" or layer is None or COMPASS not in layer.deployments:
        return SeenSession(config.server)
    try:
        session = Session(config)
    except CkpError:  # its CA is lost
        return SeenSession(config.server)
    try:
        return SeenSession(config.server, str(session.get(f"/host-groups/{inventory.group.name}").get("description", "")), asked=True)
    except NotFound:
        return SeenSession(config.server, asked=True)
    except CkpError:
        return SeenSession(config.server)
    finally:
        session.close()
