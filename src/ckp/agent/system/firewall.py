"""Host firewalls: opens what a node needs in ufw or firewalld, by the tool that owns the rules, and closes it at the reset.

Rules that the host's owner wrote in nftables or iptables are not changed: a finding says what must be allowed.
A rule is recorded in the journal before it is added. One that existed before is not recorded, so it stays.
"""

from __future__ import annotations

import os
import re
from typing import List, NamedTuple, Protocol, Sequence, Tuple

from ckp.agent.journal import Journal
from ckp.hostkit.errors import AgentError
from ckp.hostkit.files import read_text, remove
from ckp.hostkit.processes import have, run


class Port(NamedTuple):
    """A port, or a range of them, that a node needs open: "10250" or "30000-32767"."""

    ports: str
    protocol: str


PORTS = (
    Port("10250", "tcp"),  # the kubelet
    Port("4240", "tcp"),  # Cilium's health checks
    Port("8472", "udp"),  # pod traffic between nodes (VXLAN)
    Port("30000-32767", "tcp"),  # Services of type NodePort
    Port("30000-32767", "udp"),
)
"""Kubernetes: "Ports and Protocols", worker nodes. Cilium v1.16 and newer: "System Requirements", firewall rules."""
API_SERVER = Port("6443", "tcp")
LINKS = ("cilium_host", "cilium_net", "cilium_vxlan", "lxc+")
"""Links of pods: the host accepts all packets from its own pods."""
UFW_CONF = "/etc/ufw/ufw.conf"
ZONES, SHIPPED_ZONES = "/etc/firewalld/zones", "/usr/lib/firewalld/zones"
FIREWALLD_CGROUPS = ("/sys/fs/cgroup/system.slice/firewalld.service", "/sys/fs/cgroup/systemd/system.slice/firewalld.service")
NOTE, ZONE_FILES = "firewall", "zone files"
SECONDS = 60.0
COMMENT = "ckp-node"


class Firewall(Protocol):
    """One kind of firewall."""

    name: str

    def rules(self, ports: Sequence[Port]) -> List[List[str]]:
        """The rules for these ports and for LINKS, each as arguments of the tool. Raises AgentError."""
        ...

    def existing(self, rules: Sequence[List[str]]) -> List[List[str]]:
        """Those of them that exist. Raises AgentError."""
        ...

    def add(self, rule: Sequence[str]) -> None:
        """Add a rule, now and after a restart, unless it exists. Raises AgentError."""
        ...

    def remove(self, rule: Sequence[str]) -> None:
        """Remove a rule, if it exists."""
        ...


class Ufw:
    """ufw, Ubuntu's and Debian's front end of iptables."""

    name = "ufw"

    def rules(self, ports: Sequence[Port]) -> List[List[str]]:
        rules = [["allow", "proto", port.protocol, "to", "any", "port", port.ports.replace("-", ":")] for port in ports]
        return rules + [["allow", "in", "on", link] for link in LINKS]

    def existing(self, rules: Sequence[List[str]]) -> List[List[str]]:
        shown = run(["ufw", "show", "added"], timeout=SECONDS, what="listing ufw's rules", reason="FirewallFailed").stdout
        known = [line.split(" comment ")[0].split()[1:] for line in shown.splitlines()]
        return [rule for rule in rules if _as_shown(rule) in known]

    def add(self, rule: Sequence[str]) -> None:
        run(["ufw", *rule, "comment", COMMENT], timeout=SECONDS, what=f"ufw {' '.join(rule)}", resolution="ufw status verbose", reason="FirewallFailed")

    def remove(self, rule: Sequence[str]) -> None:
        run(["ufw", "--force", "delete", *rule], timeout=SECONDS, check=False)


def _as_shown(rule: Sequence[str]) -> List[str]:
    """A rule as `ufw show added` prints it: `proto P to any port N` becomes `N/P`."""
    return ["allow", f"{rule[6]}/{rule[2]}"] if rule[1] == "proto" else list(rule)


class Firewalld:
    """firewalld, RHEL's firewall. Each rule is added to the runtime and the permanent configuration: a reload would drop runtime rules of the owner."""

    name = "firewalld"

    def rules(self, ports: Sequence[Port]) -> List[List[str]]:
        zone = self.zone()
        rules = [[f"--zone={zone}", f"--add-port={port.ports}/{port.protocol}"] for port in ports]
        return rules + [["--zone=trusted", f"--add-interface={link}"] for link in LINKS]

    def existing(self, rules: Sequence[List[str]]) -> List[List[str]]:
        return [rule for rule in rules if self._exists(rule)]

    def _exists(self, rule: Sequence[str]) -> bool:
        query = [word.replace("--add-", "--query-") for word in rule]
        return all(run(["firewall-cmd", *when, *query], timeout=SECONDS, check=False).code == 0 for when in ([], ["--permanent"]))

    def add(self, rule: Sequence[str]) -> None:
        for when in ([], ["--permanent"]):
            self._run([*when, *rule])

    def remove(self, rule: Sequence[str]) -> None:
        gone = [word.replace("--add-", "--remove-") for word in rule]
        if run(["firewall-cmd", "--state"], timeout=SECONDS, check=False).code != 0:
            run(["firewall-offline-cmd", *gone], timeout=SECONDS, check=False)
            return
        for when in ([], ["--permanent"]):
            run(["firewall-cmd", *when, *gone], timeout=SECONDS, check=False)

    def zone(self) -> str:
        """The zone of packets from other hosts: that of the default route's link. Raises AgentError."""
        match = re.search(r"\bdev (\S+)", run(["ip", "route", "show", "default"], timeout=20, check=False).stdout)
        found = run(["firewall-cmd", f"--get-zone-of-interface={match.group(1)}"], timeout=SECONDS, check=False) if match else None
        zone = found.stdout.strip() if found and found.code == 0 else ""
        return zone if re.fullmatch(r"[\w.-]+", zone) else self._run(["--get-default-zone"]).strip()

    @staticmethod
    def _run(arguments: Sequence[str]) -> str:
        return run(
            ["firewall-cmd", *arguments],
            timeout=SECONDS,
            what=f"firewall-cmd {' '.join(arguments)}",
            resolution="firewall-cmd --state; journalctl -u firewalld",
            reason="FirewallFailed",
        ).stdout


def active() -> List[Firewall]:
    """The supported firewalls that are on. Cheap, since a free host checks it with every report."""
    found: List[Firewall] = []
    if have("ufw") and re.search(r"^ENABLED=yes\s*$", read_text(UFW_CONF), re.M | re.I):
        found.append(Ufw())
    if have("firewall-cmd") and any(os.path.isdir(group) for group in FIREWALLD_CGROUPS):
        found.append(Firewalld())
    return found


def others() -> List[str]:
    """nftables chains that drop packets to this host and belong to no supported firewall, as "table inet filter, chain input"."""
    if not have("nft"):
        return []
    found, table = [], ""
    for line in run(["nft", "list", "chains"], timeout=20, check=False).stdout.splitlines():
        if heading := re.match(r"table (.+) \{", line):
            table = heading.group(1)
        elif chain := re.match(r"\s+chain (\S+) \{", line):
            name = chain.group(1)
        elif "hook input" in line and "policy drop" in line:
            found.append(f"table {table}, chain {name}")
    return found


def findings(ports: Sequence[Port] = PORTS) -> List[Tuple[str, str]]:
    """(problem, remediation) for the host's owner, before the host becomes a node."""
    ours, needed = active(), _as_text(ports)
    if ours:
        return [(f"{firewall.name} is on", f"the installer will open {needed}, and close them when the host leaves") for firewall in ours]
    return [(f"packets to this host are dropped ({chain})", f"allow {needed}, and everything from the links {', '.join(LINKS)}") for chain in others()]


def open_ports(journal: Journal, ports: Sequence[Port] = PORTS) -> List[str]:
    """Open what a node needs; returns notes. Idempotent. AgentError if a firewall rejects a rule."""
    notes = []
    for firewall in active():
        rules = firewall.rules(ports)
        present = firewall.existing(rules)
        missing = [rule for rule in rules if rule not in present]
        if not missing:
            continue
        known = dict(journal.notes.get(NOTE, {}))
        if isinstance(firewall, Firewalld):
            known.setdefault(ZONE_FILES, [file for file in _zone_files(firewall.zone()) if not os.path.exists(file)])
        known[firewall.name] = [*known.get(firewall.name, []), *(rule for rule in missing if rule not in known.get(firewall.name, []))]
        journal.note(NOTE, known)
        for rule in missing:
            firewall.add(rule)
        notes.append(f"{firewall.name}: opened {_as_text(ports)}")
    return notes


def close_ports(journal: Journal) -> None:
    """Remove the rules that the journal records."""
    known = journal.notes.get(NOTE, {})
    for firewall, program in ((Ufw(), "ufw"), (Firewalld(), "firewall-cmd")):
        for rule in known.get(firewall.name, []) if have(program) else []:
            firewall.remove(rule)
    for file in known.get(ZONE_FILES, []):
        _restore_zone(file)


def left(journal: Journal) -> List[str]:
    """Rules from the journal that still exist, in sentences."""
    known, found = journal.notes.get(NOTE, {}), []
    for firewall in active() if known else ():
        try:
            found += [f"the rule {' '.join(rule)} of {firewall.name}" for rule in firewall.existing(known.get(firewall.name, []))]
        except AgentError as error:
            found.append(error.brief)
    return found


def _as_text(ports: Sequence[Port]) -> str:
    return ", ".join(f"{port.ports}/{port.protocol}" for port in ports)


def _zone_files(zone: str) -> List[str]:
    """The files in which firewalld stores changed zones, and its backups of them."""
    return [f"{ZONES}/{name}.xml{more}" for name in sorted({"trusted", zone}) for more in ("", ".old")]


def _restore_zone(file: str) -> None:
    """Delete the file of a zone that was, and is again, as the distribution ships it."""
    name = os.path.basename(file).split(".xml")[0]
    if file.endswith(".old"):
        if not os.path.exists(file[: -len(".old")]):
            remove(file)
    elif os.path.exists(file) and _same_zone(read_text(file), read_text(f"{SHIPPED_ZONES}/{name}.xml")):
        run(["firewall-cmd", "--permanent", f"--load-zone-defaults={name}"], timeout=SECONDS, check=False)


def _same_zone(one: str, other: str) -> bool:
    """Whether two zone files are equal, apart from order and layout."""
    first, second = (sorted(tag.replace(" ", "") for tag in re.findall(r"<[^!?][^>]*>", text)) for text in (one, other))
    return first == second
