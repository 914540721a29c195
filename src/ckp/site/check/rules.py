"""Judging what was seen of a site: pure, so that each broken site is a row of a test's table."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from ipaddress import IPv4Address, IPv4Network
from itertools import combinations
from pathlib import Path

from ckp.hostkit.errors import SET_CLOCK
from ckp.kits.errors import InvalidInput
from ckp.rules.claims import system_name
from ckp.site.check import registry
from ckp.site.check.model import Clock, Finding, Role, Seen, Severity, SiteToCheck, Survey
from ckp.site.registries.unit import PROGRAM

CLOCK_WARNING, CLOCK_ERROR = 2.0, 60.0
"""Seconds. Etcd warns from one on, certificates are refused by a clock that is behind their beginning, and logs can't be compared."""
ARCHITECTURE = "amd64"
"""What releases are built for."""
IGNORABLE = (
    "preflight",
    "ports",
    "hostname",
    "machine-id",
    "addresses",
    "clock",
    "free addresses",
    "names",
    "proxy",
    "database",
    "registry",
    "name servers",
    "time servers",
    "firewall",
)
"""Checks in spite of whose errors a site may be applied; without what the others ask for, it can't be."""
GIVEN = ("Compass", "the hub")
"""Of SiteToCheck.free: those whose addresses a load balancer gives."""
REGISTRY = f"{Path(PROGRAM).name} "
"""How the name of the site's own registry begins, where it is the one that listens."""
ERROR, WARNING = Severity.ERROR, Severity.WARNING


def judge(site: SiteToCheck, seen: Seen) -> list[Finding]:
    """All findings about a site, errors first, then by host in the site's order."""
    found = [
        *site.known,
        *_each_host(site, seen),
        *_clocks(seen),
        *_twice(site, seen),
        *_free(site, seen),
        *_on_hosts(site, seen),
        *_names_here(site, seen),
        *_blocked(site, seen),
    ]
    return sort(site, found)


def sort(site: SiteToCheck, found: Iterable[Finding]) -> list[Finding]:
    """Errors first, then by host in the site's order; findings about the whole site before those about hosts."""
    order = {"": 0, **{host.name: number for number, host in enumerate(site.hosts, 1)}}
    return sorted(found, key=lambda finding: (finding.severity is WARNING, order.get(finding.host, 0)))


def require_sound(found: Iterable[Finding], accepted: Collection[str], say: Callable[[str], None]) -> None:
    """Refuse a site with errors; `say` gets the other findings.

    Args:
        accepted: names of checks whose errors are taken for warnings.

    Raises:
        InvalidInput: there are errors; each is in the details, with its remedy.
    """
    refused = []
    for each in found:
        line = f"{each.host or 'site'}: {each.check}: {each.what} (what to do: {each.remedy})"
        if each.severity is ERROR and each.check not in accepted:
            refused.append(line)
        else:
            say(line)
    if refused:
        raise InvalidInput(
            f"the check of the site found {len(refused)} {'error' if len(refused) == 1 else 'errors'}, and nothing was changed",
            details="\n".join(refused),
            resolution="correct this, and run the same command again; --ignore-finding CHECK goes on in spite of one that you know better about",
        )


# -- each host


def _each_host(site: SiteToCheck, seen: Seen) -> Iterator[Finding]:
    for item in site.hosts:
        if (survey := seen.surveys.get(item.name)) is None:
            continue  # that it is not reached is a finding already
        yield from system(site, item.name, survey)
        yield from address(site, item.name, item.host.address, survey)
        for each in survey.findings:
            yield Finding(item.name, "preflight", ERROR if each.blocking else WARNING, each.problem, each.remediation)
        if item.role is Role.MANAGEMENT and survey.facts.swap:
            yield Finding(item.name, "swap", WARNING, "swap is on", "the installer will turn it off, and on again when CKP is removed")
        if item.role is Role.MANAGEMENT:
            for port, what in site.ports.items():
                owner = survey.owners.get(port, "")
                if port in survey.listening and not owner.startswith(REGISTRY):
                    taken = f"by {owner}" if owner else "by another program"
                    yield Finding(
                        item.name,
                        "ports",
                        ERROR,
                        f"port {port} is taken {taken}, and {what} needs it",
                        "stop what listens there, or change the port in the site's file",
                    )
        yield from _surroundings(site, item.name, survey)


def system(site: SiteToCheck, name: str, survey: Survey) -> Iterator[Finding]:
    """Operating system and architecture are those of a bundle."""
    facts = survey.facts
    if site.systems and system_name(facts.os_id, facts.os_version) not in {system_name(each.os, each.os_version) for each in site.systems}:
        known = ", ".join(f"{each.os} {each.os_version}" for each in site.systems)
        what = f"its system is {facts.os_id or 'unknown'} {facts.os_version}".rstrip()
        yield Finding(name, "system", ERROR, f"{what}, for which the site has no packages", f"use a host with one of: {known}")
    if facts.architecture != ARCHITECTURE:
        yield Finding(
            name, "architecture", ERROR, f"its architecture is {facts.architecture}, and releases are for {ARCHITECTURE}", f"use a host with {ARCHITECTURE}"
        )


def address(site: SiteToCheck, name: str, configured: str, survey: Survey) -> Iterator[Finding]:
    """The site's address of a host is on the host, in the hosts' network, and not in what CKP gives to others."""
    mine = survey.facts.addresses
    reported = any(configured in each.problem for each in survey.findings)  # preflight says so of a management host
    if configured not in mine and not reported:
        yield Finding(name, "address", ERROR, f"it does not have the address {configured}", f"write one that it has: {', '.join(mine) or 'it has none yet'}")
    if site.network and IPv4Address(configured) not in IPv4Network(site.network):
        yield Finding(
            name,
            "address",
            ERROR,
            f"its address {configured} is not in the hosts' network {site.network}",
            "write another address, or the network that it is in",
        )
    if site.pool is not None:
        first, last = map(IPv4Address, site.pool)
        inside = [each for each in mine if ":" not in each and first <= IPv4Address(each) <= last]
        if inside and not survey.member:
            yield Finding(
                name,
                "address",
                ERROR,
                f"it has {', '.join(inside)}, of the load balancers' range {first} to {last}",
                "shorten the range so that it has free addresses only",
            )


def _surroundings(site: SiteToCheck, name: str, survey: Survey) -> Iterator[Finding]:
    for each in site.names:
        if not survey.names.get(each):
            yield Finding(name, "names", ERROR, f"the name {each} does not resolve there", "add it to the nameservers that the host asks, or to its /etc/hosts")
        elif (to := site.leads.get(each, "")) and to not in survey.names[each]:
            yield _leads_elsewhere(name, each, "there", survey.names[each], to)
    if survey.proxy:
        yield Finding(
            name, "proxy", ERROR, f"the proxy {site.proxy} is not reached from there: {survey.proxy}", "correct its URL, or let the host through to it"
        )
    if survey.database and site.database:
        host, port = site.database
        what = f"the database at {host}:{port} is not reached from there: {survey.database}"
        yield Finding(name, "database", ERROR, what, "correct host and port in its URL, or let the host through to it")
    if site.registry is not None and survey.registry not in (0, 200, 404):
        yield registry.not_pulled(site.registry, name, survey.registry)
    for what, remedy in survey.untaken:
        yield Finding(name, "settings", ERROR, what, remedy)
    for server, why in survey.nameservers.items():
        if why:
            yield Finding(name, "name servers", ERROR, f"the name server {server} does not answer it: {why}", "correct network.dns, or let the host through")
    for server, ahead in survey.time_servers.items():
        if isinstance(ahead, str):
            yield Finding(
                name, "time servers", ERROR, f"the time server {server} does not answer it: {ahead}", "correct network.timeServers, or let the host through"
            )
        elif severity := _severity(Clock(ahead, 0.0)):
            way = "behind" if ahead > 0 else "ahead of"
            yield Finding(name, "time servers", severity, f"its clock is {abs(ahead):.1f} s {way} the time server {server}", SET_CLOCK)


# -- hosts among each other


def _clocks(seen: Seen) -> Iterator[Finding]:
    """Only what is certain counts: a slow answer does not make a clock wrong. Hosts are compared where each alone is not wrong already."""
    wrong = set()
    for name, clock in seen.clocks.items():
        if severity := _severity(clock):
            wrong.add(name)
            way = "ahead of" if clock.ahead > 0 else "behind"
            yield Finding(name, "clock", severity, f"its clock is {abs(clock.ahead):.1f} s {way} this machine's", SET_CLOCK)
    for (one, first), (other, second) in combinations(seen.clocks.items(), 2):
        apart = Clock(first.ahead - second.ahead, first.uncertain + second.uncertain)
        if not {one, other} & wrong and (severity := _severity(apart)):
            yield Finding(one, "clock", severity, f"its clock and that of {other} are {abs(apart.ahead):.1f} s apart", SET_CLOCK)


def _severity(clock: Clock) -> Severity | None:
    certain = abs(clock.ahead) - clock.uncertain
    return ERROR if certain > CLOCK_ERROR else WARNING if certain > CLOCK_WARNING else None


def _twice(site: SiteToCheck, seen: Seen) -> Iterator[Finding]:
    """What each host must have for itself."""
    kinds = (
        ("hostname", "the hostname", lambda survey: [survey.facts.hostname.lower()], "give each host a name of its own (hostnamectl set-hostname)"),
        (
            "machine-id",
            "the machine-id",
            lambda survey: [survey.facts.machine_id],
            "make a new one (rm /etc/machine-id && systemd-machine-id-setup) and restart the host",
        ),
        (
            "addresses",
            "the address",
            lambda survey: _in_network(site, survey),
            "give each host addresses of its own; a cloned machine may have kept those of the other",
        ),
    )
    for check, what, of, remedy in kinds:
        owners: dict[str, list[str]] = defaultdict(list)
        for item in site.hosts:
            if (survey := seen.surveys.get(item.name)) is not None:
                for value in of(survey):
                    owners[value].append(item.name)
        for value, names in owners.items():
            if value and len(names) > 1:
                yield Finding(names[1], check, ERROR, f"{what} {value} is also that of {names[0]}", remedy)
    for name, survey in seen.surveys.items():
        if not survey.facts.machine_id:
            yield Finding(name, "machine-id", ERROR, "it has no machine-id", "make one: systemd-machine-id-setup")


def _in_network(site: SiteToCheck, survey: Survey) -> list[str]:
    """Others may be the same everywhere, as those of bridges for virtual machines."""
    return [each for each in survey.facts.addresses if site.network and ":" not in each and IPv4Address(each) in IPv4Network(site.network)]


def _leads_elsewhere(host: str, name: str, where: str, found: Collection[str], to: str) -> Finding:
    what = f"the name {name} of the management API leads to {', '.join(found)} {where}, not to {to}"
    return Finding(host, "names", ERROR, what, f"let it lead to {to} (an A record, or /etc/hosts), or remove it from addresses.api.names")


def _names_here(site: SiteToCheck, seen: Seen) -> Iterator[Finding]:
    """The kubeconfig that this machine gets has the first one."""
    for name, to in site.leads.items() if seen.here is not None else ():
        found = (seen.here or {}).get(name, ())
        if not found:
            yield Finding("", "names", ERROR, f"the name {name} does not resolve on this machine", f"let it lead to {to} (an A record, or /etc/hosts)")
        elif to not in found:
            yield _leads_elsewhere("", name, "on this machine", found, to)


def _on_hosts(site: SiteToCheck, seen: Seen) -> Iterator[Finding]:
    """Each address for Services is one of a management host; that no two have it is judged for all addresses."""
    hosts = [item.name for item in site.hosts if item.role is Role.MANAGEMENT]
    if not all(name in seen.surveys for name in hosts):
        return  # it may be that of a host that is not reached
    for each in site.on_hosts:
        if not any(each in seen.surveys[name].facts.addresses for name in hosts):
            remedy = "add it to a link of one of them, also for the next boot, or remove it from addresses.loadBalancers.onHosts"
            yield Finding("", "address", ERROR, f"no management host has the address {each} for load balancers", remedy)


def _free(site: SiteToCheck, seen: Seen) -> Iterator[Finding]:
    """An address that a host of this very site answers for, and that is set up, may be the site's own already."""
    ours = {link.mac: survey for survey in seen.surveys.values() for link in survey.facts.links if link.mac}
    for what, free in site.free.items():
        if (mac := seen.answers.get(free)) is None:
            continue
        owner = ours.get(mac)
        if owner is None and site.foreign_load_balancer and what in GIVEN and any(survey.member for survey in seen.surveys.values()):
            continue  # its load balancer answers
        if owner is None:
            yield Finding(
                "",
                "free addresses",
                ERROR,
                f"the address {free} of {what} is taken: {mac} answers for it",
                "write an address that nothing has, or remove it from what has it",
            )
        elif not owner.member:
            yield Finding(
                "",
                "free addresses",
                ERROR,
                f"the address {free} of {what} is taken by {owner.facts.hostname}",
                "write an address that nothing has, or remove it there",
            )


def _blocked(site: SiteToCheck, seen: Seen) -> Iterator[Finding]:
    """Connections that the installer itself will let through are no finding. Of a port that something else has, nothing can be said: that is one already."""
    reached: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for each in seen.blocked:
        survey = seen.surveys.get(each.target)
        if survey is not None and not survey.member and each.port in survey.listening:
            continue
        if survey is not None and survey.firewalls and f"{each.port}/tcp" in survey.opened:
            continue
        reached[each.source, each.target, each.why].append(each.port)
    for (source, target, why), ports in reached.items():
        firewalls = seen.surveys[target].firewalls if target in seen.surveys else ()
        where = f"in {' and '.join(firewalls)} on {target}" if firewalls else f"in the firewalls of {target} and between the two"
        numbers = ", ".join(f"{port}/tcp" for port in sorted(ports))
        yield Finding(source, "firewall", ERROR, f"it does not reach {target} at {numbers}: {why}", f"open {numbers} {where}")
