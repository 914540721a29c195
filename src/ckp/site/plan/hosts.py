"""Rules for the hosts of a site and for the cluster on them: what applying would change there. Pure, as all of `rules`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace

from ckp.distribution.bundles import PREFIX
from ckp.hostkit.locations import REGISTRY_LOGIN
from ckp.kits.errors import Conflict
from ckp.site.described import HOSTS_FILE, leads_elsewhere
from ckp.site.members import gone
from ckp.site.plan.model import Action, Change, Making, Seen, SeenCluster, SeenHost, Wanted
from ckp.site.plan.settings import settings_changes
from ckp.site.registries.unit import DRAIN_SECONDS, PULL, unit_of

SETTINGS = {
    "pod_cidr": "managementPods",
    "service_cidr": "managementServices",
    "advertise_address": "the host's address",
    "node_name": "the host's name",
    "virtual_address": "the API's virtualAddress",
    "cert_sans": "the API's names and certSANs",
}
"""What an installation was made with -> where the site's file has it."""
OPTIONAL = {"virtual_address", "cert_sans"}
"""Of these, what an installation has none of unless its record says so."""
OF_HOST = {"advertise_address", "node_name"}
"""Of these, what each host has of its own."""
WORKERS_LOG_IN = "workers get it from the hub"
RESTARTS = f"pulls under way get {DRAIN_SECONDS} s to end; others fail until then, and are tried again"
"""By kubelets and agents."""


def first(wanted: Wanted, seen: Seen) -> Iterator[Change]:
    """Of the host that is acted on. Its rows have no host's name in them: most sites have one host."""
    yield from _name(wanted, seen)
    yield from _registry(wanted, seen)
    yield from _host_tool(wanted, seen)
    yield from _settings(wanted, seen)
    yield from settings_changes(wanted, seen, enrolled=seen.layer.hosts if seen.layer is not None else 0)
    yield from _cluster(wanted, seen)


def others(wanted: Wanted, seen: Seen) -> Iterator[Change]:
    """Of the site's other management hosts, and of members of the cluster whose hosts are gone."""
    masters = wanted.inventory.hosts.masters
    hosts = {host.name: host for host in masters}
    for other in seen.others:
        at = replace(wanted, inventory=wanted.inventory.on(hosts[other.host]))
        for change in (
            *_name(at, other),
            *_registry(at, other),
            *_host_tool(at, other),
            *_settings(at, other),
            *settings_changes(at, other),
            *_joined(at, other),
        ):
            yield replace(change, part=f"{other.host}: {change.part}")
    joined = {each.host for each in (seen, *seen.others) if each.cluster is not None}
    try:
        lost = gone(seen.members, masters, joined)
    except Conflict as error:
        yield Change("members", Action.REFUSED, error.brief, remedy=error.resolution)
        return
    for member in lost:
        yield Change(f"member {member.name}", Action.CHANGE, f"{member.name} ({member.address}) is gone: it is taken out of the management cluster")


def _name(wanted: Wanted, seen: SeenHost) -> Iterator[Change]:
    if wanted.inventory.registry.outside is not None:
        return
    place, known = wanted.inventory.registry, wanted.inventory.registry_addresses
    if seen.name == {place.listen}:
        yield Change("registry name", Action.NONE, f"{place.name} leads to {place.listen} on {seen.host}")
    elif seen.name <= known or seen.own_line:  # no name, another host's, or ours of an earlier address (ckp.site.described.name_registry)
        line = f"{HOSTS_FILE} on {seen.host} names {place.name}: {place.listen}"
        yield Change("registry name", Action.CHANGE if seen.own_line else Action.CREATE, line)
    else:
        error = leads_elsewhere(seen.host, place, seen.name)
        yield Change("registry name", Action.REFUSED, error.brief, remedy=error.resolution)


def _registry(wanted: Wanted, seen: SeenHost) -> Iterator[Change]:
    place, there = wanted.inventory.registry, seen.registry
    moved = there.storage and there.storage != place.storage
    cluster = seen.cluster
    if cluster is not None and cluster.ours and cluster.bundle and not cluster.bundle.startswith(f"{place.address}/"):
        pulled = cluster.bundle.partition(f"/{PREFIX}/")[0] if f"/{PREFIX}/" in cluster.bundle else cluster.bundle.partition("/")[0] or cluster.bundle
        yield Change(
            "registry",
            Action.REFUSED,
            f"the cluster on {seen.host} was made from {pulled}, and all that runs in it is pulled from there: {place.address} is another one",
            remedy=f"write the registry's name and port back: {pulled}",
        )
    elif place.outside is not None:
        files = ", ".join(there.differing)
        workers = f"; {WORKERS_LOG_IN}" if REGISTRY_LOGIN in there.differing and isinstance(seen, Seen) and seen.layer is not None else ""
        if not files:
            yield Change("registry", Action.NONE, f"{place.address}, which was there already")
        else:
            yield Change("registry", Action.CHANGE if there.there else Action.CREATE, f"{place.address}; written on {seen.host}: {files}{workers}")
    elif moved and there.storage in there.content:
        yield Change(
            "registry",
            Action.REFUSED,
            f"its content is in {there.storage}, and applying moves none: in {place.storage} it would begin empty, without what hosts return to",
            remedy=f"write storage: {there.storage} back; or stop both services (systemctl stop 'ckp-registry@*'), move that folder to {place.storage}, "
            "and apply again",
        )
    elif there.refusal is not None:
        details = f" ({there.refusal.details})" if there.refusal.details else ""
        yield Change("registry", Action.REFUSED, f"{there.refusal.brief}{details}", remedy=there.refusal.resolution)
    elif not there.there:
        yield Change("registry", Action.CREATE, f"{place.address}, content in {place.storage}")
    elif there.restarted:
        now = f"its content is in {place.storage} now; " if moved else ""
        files = ", ".join(there.differing) or "what an interrupted run has written is not in use yet"
        public = unit_of(PULL) in there.restarted
        yield Change("registry", Action.RESTART, f"{now}{' and '.join(there.restarted)}: {files}", RESTARTS if public else "")
    elif there.differing or there.started:
        what = [f"{target} is written" for target in there.differing] + [f"{unit} is started" for unit in there.started]
        yield Change("registry", Action.CHANGE, "; ".join(what))
    elif not there.program_known and wanted.unlike([wanted.management]):
        yield Change(
            "registry",
            Action.UNKNOWN,
            f"its settings are as they should be; whether its program changes is known after the build ({why_unknown(wanted, [wanted.management])})",
            f"if it does, {RESTARTS}",
        )
    else:
        yield Change("registry", Action.NONE, f"{place.address} is as it should be")


def _host_tool(wanted: Wanted, seen: SeenHost) -> Iterator[Change]:
    part = "host tool"
    if not seen.agent:
        yield Change(part, Action.CREATE, f"ckp-agent {wanted.agent}" if wanted.agent else "ckp-agent; its version is known after the build")
    elif not wanted.agent:
        yield Change(part, Action.UNKNOWN, f"ckp-agent {seen.agent}; this machine has no signing key yet, so the version that comes is known after the build")
    elif wanted.agent != seen.agent:
        yield Change(part, Action.CHANGE, f"ckp-agent {seen.agent} becomes {wanted.agent}; workers keep theirs until `ckp host upgrade-agent`")
    else:
        yield Change(part, Action.NONE, f"ckp-agent {seen.agent}")


def _settings(wanted: Wanted, seen: SeenHost) -> Iterator[Change]:
    """They are read when the cluster is made (ckp.standalone.steps): a kubelet that runs does not get others."""
    part, new = "host settings", json.loads(json.dumps(dict(wanted.inventory.host_settings)))
    if seen.settings == new or (seen.settings is None and not new and seen.cluster is not None):
        yield Change(part, Action.NONE, "as they should be")
    elif seen.cluster is None or not seen.cluster.ours:
        yield Change(part, Action.CREATE if seen.settings is None else Action.CHANGE, f"{_json(new)} for the kubelet that will run")
    else:
        yield Change(
            part,
            Action.REFUSED,
            f"the cluster on {seen.host} was made with hostSettings {_json(seen.settings or {})}, and a kubelet that runs gets no others: {_json(new)}",
            remedy=f"write the former ones back: {_json(seen.settings or {})}",
        )


def _json(value: object) -> str:
    return json.dumps(value, sort_keys=True)


def _cluster(wanted: Wanted, seen: Seen) -> Iterator[Change]:
    part, network, cluster = "management cluster", wanted.inventory.network, seen.cluster
    if cluster is None:
        yield Change(part, Action.CREATE, f"{wanted.management} on {seen.host}, pods {network.management_pods}, Services {network.management_services}")
        return
    if not cluster.ours:
        yield Change(
            part,
            Action.REFUSED,
            f"{seen.host} is a cluster that this site has not made: {cluster.release or 'of an unknown release'} from {cluster.bundle or 'an unknown bundle'}",
            remedy=f"take another host; or, if it may be lost, `ckp-agent standalone reset` on {seen.host}; if this site has made it from another machine, "
            "bring that machine's state of the site here",
        )
        return
    refused = list(_kept(wanted, seen, cluster))
    yield from refused
    if not refused and cluster.complete:
        yield Change(part, Action.NONE, f"{cluster.release} on {seen.host}")
    elif not refused:
        yield Change(part, Action.CREATE, f"its installation goes on: {cluster.done} of its steps are done")


def _kept(wanted: Wanted, seen: SeenHost, cluster: SeenCluster, part: str = "management cluster") -> Iterator[Change]:
    """What an installation keeps, complete or not, and the file has otherwise."""
    network, first = wanted.inventory.network, isinstance(seen, Seen)
    if cluster.release not in wanted.releases:
        yield Change(
            part,
            Action.REFUSED,
            f"it runs {cluster.release}, which `releases` does not name, and a management cluster is not upgraded yet",
            remedy=f"name {cluster.release} in `releases`",
        )
    new = {
        "pod_cidr": network.management_pods,
        "service_cidr": network.management_services,
        "advertise_address": wanted.inventory.hosts.management.address,
        "node_name": wanted.inventory.hosts.management.name,
        "virtual_address": network.virtual_address,
        "cert_sans": ",".join(sorted(network.api_names)),
    }
    if cluster.settings.get("role"):
        del new["cert_sans"]  # one that has joined has it from those before it, and no record of it
    how = "" if cluster.complete else f", or give up what was begun (`ckp-agent standalone reset` on {seen.host})"
    for key, value in new.items():
        old = cluster.settings.get(key, "" if key in OPTIONAL else value)
        if old != value and (first or key in OF_HOST):
            back = f"write {old} back" if old else f"leave {SETTINGS[key]} out"
            yield Change(
                part,
                Action.REFUSED,
                f"it was made with {SETTINGS[key]} {old or '(none)'}, which stays as long as it exists: {value or '(none)'} is another one",
                remedy=f"{back}{how}; for another one, remove the site and apply it again",
            )


def _joined(wanted: Wanted, seen: SeenHost) -> Iterator[Change]:
    part, cluster = "member", seen.cluster
    if cluster is None:
        yield Change(part, Action.CREATE, f"{seen.host} joins the management cluster")
    elif not cluster.ours:
        yield Change(
            part,
            Action.REFUSED,
            f"{seen.host} belongs to a cluster that this site has not made",
            remedy=f"take another host; or, if that may be lost, `ckp-agent standalone reset` on {seen.host}",
        )
    elif refused := list(_kept(wanted, seen, cluster, part)):
        yield from refused
    elif cluster.complete:
        yield Change(part, Action.NONE, f"{seen.host} is a member of the management cluster")
    else:
        yield Change(part, Action.CREATE, f"its joining goes on: {cluster.done} of its steps are done")


def why_unknown(wanted: Wanted, names: Sequence[str]) -> str:
    """Why it is not known what these releases hold; "" if it is as what was applied last."""
    for name in wanted.unlike(names):
        what, making = name if len(wanted.releases) > 1 else "the release", wanted.making.get(name, Making())
        if not making.built:
            return f"{what} is not built on this machine"
        if making.same is None:
            return f"this machine has no record of what {what} was made of that was applied last"
        return f"{what} is made of other sources than what was applied last"
    return ""
