"""How a site is: its hosts, its registry, its cluster, and each Deployment of the management layer. Looking changes nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from ckp import __version__
from ckp.backups.places import Target
from ckp.hostkit.backup.location import SERVICE
from ckp.kits.errors import CkpError
from ckp.site import members, version
from ckp.site.backup import timer
from ckp.site.backup.timer import Schedule
from ckp.site.clusters.existing import ExistingCluster
from ckp.site.inventory import SiteHost, SiteHosts
from ckp.site.management import exists, kubectl
from ckp.site.registries.existing import ExistingRegistry
from ckp.site.registries.hosted import HostedRegistry

BACKUPS = "backups"
LATE = 1.5
"""Times the interval that the site's file names: making one takes a while, and may fail once."""
NAMESPACES = ("cert-manager", "capi-system", "capi-kubeadm-bootstrap-system", "ckp-system")


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


def status(hosts: SiteHosts, registries: Sequence[HostedRegistry | ExistingRegistry]) -> Iterator[Part]:
    """What of the site is as it should be.

    Args:
        registries: of each of the management hosts, or the one that was there before the site.
    """
    several = len(hosts.masters) > 1
    there: list[SiteHost] = []
    registry_of = {registry.host.name: registry for registry in registries if isinstance(registry, HostedRegistry)}
    for outside in registries:
        if isinstance(outside, ExistingRegistry):
            silent = outside.silent()
            yield Part("registry", "not answering" if silent else "ok", outside.address)
    for host in hosts.masters:
        where = f" on {host.name}" if several else ""
        try:
            host.run(["true"], timeout=30)
        except CkpError as error:
            yield Part(f"host {host.name}" if several else "host", "unreachable", error.brief)
            continue
        there.append(host)
        yield Part(f"host {host.name}" if several else "host", "ok", f"{host.name} ({host.address})")
        if host.name in registry_of:
            yield _registry(f"registry{where}", registry_of[host.name])
        yield _cluster(f"cluster{where}", host)
    owners = isinstance(hosts.management, ExistingCluster)
    if not owners and (hosts.management not in there or not exists(hosts.management)):
        return
    try:
        if several:
            yield from _members(hosts)
        yield from _deployments(hosts.management)
    except CkpError as error:
        yield Part("management API", "not answering", error.brief)


def backups(target: Target, every: timedelta | None, now: datetime) -> Part:
    """Whether the site's newest backup is as new as it should be.

    Args:
        every: how old it may become; None: no time is due.
    """
    try:
        found = target.backups()
    except CkpError as error:
        return Part(BACKUPS, "unknown", error.brief)
    if not found:
        return Part(BACKUPS, "none" if every else "ok", f"{target.title} has none")
    age = now - found[-1].made
    detail = f"{len(found)} in {target.title}, the newest of {found[-1].made:%Y-%m-%d %H:%M} UTC, {_age(age)} old"
    if every is None or age <= every * LATE:
        return Part(BACKUPS, "ok", detail)
    return Part(BACKUPS, "late", f"{detail}: overdue for {_age(age - every)}")


def _age(age: timedelta) -> str:
    minutes = max(0, int(age.total_seconds() // 60))
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h" if minutes < 48 * 60 else f"{minutes // 1440} days"


def timers(hosts: SiteHosts, schedule: Schedule | None) -> Iterator[Part]:
    """Whether the hosts that are to make backups do."""
    for host in hosts.masters if schedule is not None else ():
        name = f"backup timer on {host.name}" if len(hosts.masters) > 1 else "backup timer"
        try:
            seen = timer.look(host)
        except CkpError as error:
            yield Part(name, "unknown", error.brief)
            continue
        if not seen.active:
            yield Part(name, "off", "`ckp site apply` turns it on")
        elif seen.result not in ("", "success"):
            yield Part(name, "failed", f"the last run ended with {seen.result}: journalctl -u {SERVICE} on {host.name}")
        else:
            yield Part(name, "ok", "")


def version_of(host: SiteHost) -> Part:
    """The version of CKP that a site is of; not ok if it is not this one's, or an upgrade is not finished."""
    name = "version"
    try:
        if not exists(host):
            return Part(name, "not installed", "")
        found = version.installed(host)
        if version.is_upgrading(host):
            return Part(name, "upgrade not finished", "`ckp site upgrade` goes on, `ckp site upgrade --back` takes it back")
    except CkpError as error:
        return Part(name, "unknown", error.brief)
    if found == __version__:
        return Part(name, "ok", f"CKP {found}")
    return Part(name, "other version" if found else "not installed", f"CKP {found}, and this is {__version__}" if found else "")


def _registry(name: str, registry: HostedRegistry) -> Part:
    if not registry.ca.exists():
        return Part(name, "unknown", f"this machine has no CA of {registry.address}: the site was set up from another one")
    silent = registry.silent()
    return Part(name, "down" if silent else "ok", f"no answer at {' and '.join(silent)}" if silent else registry.address)


def _cluster(name: str, host: SiteHost) -> Part:
    found = host.run(["ckp-agent", "standalone", "status"], timeout=60, check=False)
    missing = [line for line in (found.stdout or found.stderr).splitlines() if not line.endswith(": done")]
    return Part(name, "not installed", missing[0].strip() if missing else "") if found.code else Part(name, "ok", "its steps are done")


def _members(hosts: SiteHosts) -> Iterator[Part]:
    """Nodes of the management cluster, also those that the file does not name."""
    found = {member.name: member for member in members.members(hosts.management)}
    names = [host.name for host in hosts.masters]
    for name in [*names, *(name for name in found if name not in names)]:
        member = found.get(name)
        if member is None:
            yield Part(f"member {name}", "missing", "it has not joined the management cluster")
        elif name not in names:
            yield Part(f"member {name}", "not in the file", "Ready" if member.ready else "not Ready: `ckp site apply` removes it")
        else:
            yield Part(f"member {name}", "ok" if member.ready else "not ready", member.address)


def _deployments(host: SiteHost) -> Iterator[Part]:
    for namespace in NAMESPACES:
        asked = kubectl(host, "get", "deployments", f"--namespace={namespace}", "--output=json")
        items: list[dict[str, Any]] = json.loads(asked)["items"]
        if not items:
            yield Part(namespace, "missing", "it has no Deployment")
        for item in items:
            wanted, ready = int(item["spec"].get("replicas", 1)), int((item.get("status") or {}).get("readyReplicas", 0))
            yield Part(f"{namespace}/{item['metadata']['name']}", "ok" if ready >= wanted else "not ready", f"{ready} of {wanted} ready")
