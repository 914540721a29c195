"""How far the hosts of a cluster are on their way: provisioned, connected, approved, assigned. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from ckp.api.objects.byo_host import ByoHost
from ckp.rules.claims import Candidate, Wanted, candidate


@dataclass(frozen=True)
class HostCounts:
    """How many of a cluster's hosts are that far; each is evidence of its own."""

    provisioned: int = 0
    """The machine is there and fits: it reported its system, is large enough, and its preflight found nothing against it."""
    connected: int = 0
    """Its agent holds a connection over mutual TLS."""
    approved: int = 0
    """It was approved: it was issued a certificate, which is not revoked."""
    assigned: int = 0
    """It is in the group: it carries the labels that the cluster's machines select by, or one of them holds it."""
    claimed: int = 0
    """One of the cluster's machines holds it."""


def count_hosts(hosts: Iterable[ByoHost], wanted: Sequence[Wanted], machines: Collection[str], leaving: Collection[str], workers: int) -> HostCounts:
    """Count a cluster's hosts among those of its project; hosts of other clusters and hosts that are being removed do not count.

    While the group has too few hosts, others fill the gap in every count but `assigned` and `claimed`: hosts are provisioned, connect and are
    approved before they are put into a group, and a step that is done must not wait for a later one.

    Args:
        wanted: what the cluster's machine templates ask of a host.
        machines: uids of the cluster's ByoMachines.
        leaving: uids of its ByoMachines that are being deleted; their hosts are still the cluster's.
        workers: how many hosts it needs.
    """
    group: list[ByoHost] = []
    others: list[ByoHost] = []
    claimed = 0
    for host in hosts:
        holder = host.spec.machine_ref.uid
        held = holder in machines or holder in leaving
        if host.deleting or (host.claimed and not held):
            continue
        claimed += holder in machines
        seen = candidate(host)
        (group if held or any(one.selects(seen) for one in wanted) else others).append(host)
    gap = max(0, workers - len(group))

    def fits(seen: Candidate) -> bool:
        return bool(seen.system) and not seen.unfit and any(one.is_large_enough(seen) for one in wanted)

    def filled(in_group: int, among_others: int) -> int:
        return in_group + min(gap, among_others)

    return HostCounts(
        provisioned=filled(*(sum(fits(candidate(host)) for host in some) for some in (group, others))),
        connected=filled(*(sum(host.status.agent.connected for host in some) for some in (group, others))),
        approved=filled(*(sum(_approved(host) for host in some) for some in (group, others))),
        assigned=len(group),
        claimed=claimed,
    )


def _approved(host: ByoHost) -> bool:
    """Approval issues the certificate; revocation takes it back (rules.certificates)."""
    serial = host.status.agent.certificate_serial
    return bool(serial) and serial != host.spec.revoked_serial
