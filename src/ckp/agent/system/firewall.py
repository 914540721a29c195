"""Firewalls that a host may have: what a node needs is opened in ufw or firewalld, by the tool that owns the rules, and closed again at the end.

Others (rules of one's own in nftables or iptables) are not ours to change: what must pass is said, and the owner opens it.
A rule is noted in the journal before it is made; one that was there before us is not noted, and so stays.
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
    """Packets from outside that a node takes: `ports` as "10250" or "30000-32767"."""

    ports: str
    protocol: str


PORTS = (
    Port("10250", "tcp"),  # the kubelet
    Port("4240", "tcp"),  # Cilium's health checks
    Port("8472", "udp"),  # pods' packets between nodes (VXLAN)
    Port("30000-32767", "tcp"),  # Services of type NodePort
    Port("30000-32767", "udp"),
)
"""Kubernetes: "Ports and Protocols", worker nodes. Cilium v1.16 and newer: "System Requirements", firewall rules."""
API_SERVER = Port("6443", "tcp")
LINKS = ("cilium_host", "cilium_net", "cilium_vxlan", "lxc+")
"""What comes out of these is a pod's: a host lets its own pods in."""
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
        """The rules for these ports and for LINKS, each in the tool's own words. Raises AgentError."""
        ...

    def held(self, rules: Sequence[List[str]]) -> List[List[str]]:
        """Those of them that are there. Raises AgentError."""
        ...

    def add(self, rule: Sequence[str]) -> None:
        """Make a rule, now and after a restart. There already is fine. Raises AgentError."""
        ...

    def remove(self, rule: Sequence[str]) -> None:
        """Take it away; not there is fine."""
        ...


class Ufw:
    """Ubuntu's and Debian's front to iptables."""

    name = "ufw"

    def rules(self, ports: Sequence[Port]) -> List[List[str]]:
        rules = [["allow", "proto", port.protocol, "to", "any", "port", port.ports.replace("-", ":")] for port in ports]
        return rules + [["allow", "in", "on", link] for link in LINKS]

    def held(self, rules: Sequence[List[str]]) -> List[List[str]]:
        there = run(["ufw", "show", "added"], timeout=SECONDS, what="asking ufw for its rules", reason="FirewallFailed").stdout
        known = [line.split(" comment ")[0].split()[1:] for line in there.splitlines()]
        return [rule for rule in rules if _as_shown(rule) in known]

    def add(self, rule: Sequence[str]) -> None:
        run(["ufw", *rule, "comment", COMMENT], timeout=SECONDS, what=f"ufw {' '.join(rule)}", resolution="ufw status verbose", reason="FirewallFailed")

    def remove(self, rule: Sequence[str]) -> None:
        run(["ufw", "--force", "delete", *rule], timeout=SECONDS, check=False)


def _as_shown(rule: Sequence[str]) -> List[str]:
    """ufw shows `proto P to any port N` as `N/P`."""
    return ["allow", f"{rule[6]}/{rule[2]}"] if rule[1] == "proto" else list(rule)


class Firewalld:
    """RHEL's. Each rule is made twice, for now and for later: a reload would drop what its owner has opened for now only."""

    name = "firewalld"

    def rules(self, ports: Sequence[Port]) -> List[List[str]]:
        zone = self.zone()
        rules = [[f"--zone={zone}", f"--add-port={port.ports}/{port.protocol}"] for port in ports]
        return rules + [["--zone=trusted", f"--add-interface={link}"] for link in LINKS]

    def held(self, rules: Sequence[List[str]]) -> List[List[str]]:
        return [rule for rule in rules if self._holds(rule)]

    def _holds(self, rule: Sequence[str]) -> bool:
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
        """Where packets from other hosts arrive: the zone of the link that the default route takes."""
        match = re.search(r"\bdev (\S+)", run(["ip", "route", "show", "default"], timeout=20, check=False).stdout)
        said = run(["firewall-cmd", f"--get-zone-of-interface={match.group(1)}"], timeout=SECONDS, check=False) if match else None
        zone = said.stdout.strip() if said and said.code == 0 else ""
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
    """The firewalls that are switched on and that we can talk to. Cheap: it is asked with every report of a free host."""
    found: List[Firewall] = []
    if have("ufw") and re.search(r"^ENABLED=yes\s*$", read_text(UFW_CONF), re.M | re.I):
        found.append(Ufw())
    if have("firewall-cmd") and any(os.path.isdir(group) for group in FIREWALLD_CGROUPS):
        found.append(Firewalld())
    return found


def others() -> List[str]:
    """Chains that refuse packets to this host and belong to no firewall that we know, as "table inet filter, chain input"."""
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
    """What the host's owner should know before it becomes a node: (what is, what happens or must be done)."""
    ours, needed = active(), _said(ports)
    if ours:
        return [(f"{firewall.name} is on", f"the installer will open {needed}, and close them when the host leaves") for firewall in ours]
    return [(f"packets to this host are dropped ({chain})", f"let {needed} pass, and what comes from {', '.join(LINKS)}") for chain in others()]


def open_ports(journal: Journal, ports: Sequence[Port] = PORTS) -> List[str]:
    """Open what a node needs; returns notes. Idempotent. Raises AgentError if a firewall does not take a rule."""
    notes = []
    for firewall in active():
        rules = firewall.rules(ports)
        there = firewall.held(rules)
        missing = [rule for rule in rules if rule not in there]
        if not missing:
            continue
        known = dict(journal.notes.get(NOTE, {}))
        if isinstance(firewall, Firewalld):
            known.setdefault(ZONE_FILES, [file for file in _zone_files(firewall.zone()) if not os.path.exists(file)])
        known[firewall.name] = [*known.get(firewall.name, []), *(rule for rule in missing if rule not in known.get(firewall.name, []))]
        journal.note(NOTE, known)
        for rule in missing:
            firewall.add(rule)
        notes.append(f"{firewall.name}: opened {_said(ports)}")
    return notes


def close_ports(journal: Journal) -> None:
    """Take away the rules that the journal names."""
    known = journal.notes.get(NOTE, {})
    for firewall, program in ((Ufw(), "ufw"), (Firewalld(), "firewall-cmd")):
        for rule in known.get(firewall.name, []) if have(program) else []:
            firewall.remove(rule)
    for file in known.get(ZONE_FILES, []):
        _restore_zone(file)


def left(journal: Journal) -> List[str]:
    """Rules of ours that are still there, in sentences."""
    known, found = journal.notes.get(NOTE, {}), []
    for firewall in active() if known else ():
        try:
            found += [f"the rule {' '.join(rule)} of {firewall.name}" for rule in firewall.held(known.get(firewall.name, []))]
        except AgentError as error:
            found.append(error.brief)
    return found


def _said(ports: Sequence[Port]) -> str:
    return ", ".join(f"{port.ports}/{port.protocol}" for port in ports)


def _zone_files(zone: str) -> List[str]:
    """Where firewalld writes down what was changed of its zones, and the copies that it keeps of what was before."""
    return [f"{ZONES}/{name}.xml{more}" for name in sorted({"trusted", zone}) for more in ("", ".old")]


def _restore_zone(file: str) -> None:
    """A zone that was as the distribution brings it, and is so again, needs no file of its own."""
    name = os.path.basename(file).split(".xml")[0]
    if file.endswith(".old"):
        if not os.path.exists(file[: -len(".old")]):
            remove(file)
    elif os.path.exists(file) and _same_zone(read_text(file), read_text(f"{SHIPPED_ZONES}/{name}.xml")):
        run(["firewall-cmd", "--permanent", f"--load-zone-defaults={name}"], timeout=SECONDS, check=False)


def _same_zone(one: str, other: str) -> bool:
    """Whether two zone files say the same, order and layout aside."""
    first, second = (sorted(tag.replace(" ", "") for tag in re.findall(r"<[^!?][^>]*>", text)) for text in (one, other))
    return first == second
