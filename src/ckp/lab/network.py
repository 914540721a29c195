"""The lab's network: its address plan, its bridge, and the firewall rules that allow traffic between hosts only."""

from __future__ import annotations

import ipaddress
import json
import re
import shlex
import shutil
from dataclasses import dataclass

from ckp.kits.errors import Conflict, InvalidInput
from ckp.kits.processes import run

COMMAND_TIMEOUT = 30.0
"""Seconds for one `ip` or `iptables` command; they take milliseconds, unless another process holds the xtables lock."""

HOST_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?")
"""A DNS label, short enough that bridge and name fit in a machine name (64 characters)."""


@dataclass(frozen=True)
class HostSpec:
    """Name and IPv4 address of a host of the lab."""

    name: str
    address: str


@dataclass(frozen=True)
class LabNetwork:
    """A bridge and its IPv4 subnet. Two labs on one machine must differ in both.

    Args:
        registry: the address that new hosts find registry.ckp.lab at; "": that of the first management host.
    """

    bridge: str = "ckp0"
    gateway: str = "10.88.0.1"
    prefix: int = 24
    registry: str = ""

    @property
    def subnet(self) -> ipaddress.IPv4Network:
        """The subnet of the bridge and all hosts."""
        return ipaddress.IPv4Interface(f"{self.gateway}/{self.prefix}").network

    @property
    def load_balancers(self) -> tuple[str, str]:
        """First and last address of the range that is reserved for Services of type LoadBalancer."""
        return str(self.subnet[100]), str(self.subnet[199])

    @property
    def virtual_address(self) -> str:
        """The address that several management hosts share."""
        return str(self.subnet[9])

    @property
    def registry_address(self) -> str:
        """The address that new hosts find registry.ckp.lab at."""
        return self.registry or self.management().address

    def management(self, number: int = 1) -> HostSpec:
        """Host `number` of the management cluster, from 1 to 9."""
        if not 1 <= number <= 9:
            raise InvalidInput(f"a lab has management hosts 1 to 9, not {number}")
        return HostSpec("management" if number == 1 else f"management-{number}", str(self.subnet[9 + number]))

    def worker(self, number: int) -> HostSpec:
        """Worker host `number`, from 1 to 79 (its last address is the one before the load balancers')."""
        if not 1 <= number <= 79:
            raise InvalidInput(f"a lab has workers 1 to 79, not {number}")
        return HostSpec(f"worker-{number}", str(self.subnet[20 + number]))

    def hosts(self, workers: int, management: int = 1) -> list[HostSpec]:
        """The management hosts, then `workers` worker hosts."""
        return [*map(self.management, range(1, management + 1)), *map(self.worker, range(1, workers + 1))]

    def check(self, spec: HostSpec) -> None:
        """Raise InvalidInput if the host's name or address is not allowed on this network."""
        if not HOST_NAME.fullmatch(spec.name):
            raise InvalidInput(f"{spec.name!r} is not a host name: lower-case letters, digits and dashes, at most 40")
        try:
            address = ipaddress.IPv4Address(spec.address)
        except ValueError as error:
            raise InvalidInput(f"host {spec.name}: {spec.address!r} is not an IPv4 address") from error
        first, last = (ipaddress.IPv4Address(text) for text in self.load_balancers)
        taken = {self.subnet.network_address, self.subnet.broadcast_address, ipaddress.IPv4Address(self.gateway)}
        if address not in self.subnet or address in taken or first <= address <= last:
            raise InvalidInput(
                f"host {spec.name} can't have {spec.address}: it must be in {self.subnet}, not the gateway {self.gateway}, "
                f"and outside {first} to {last}, which load balancers use"
            )

    # -- the bridge

    def up(self) -> None:
        """Create the bridge, its address and the firewall rules, as far as they are missing.

        Raises:
            Conflict: the machine already routes the subnet, or a part of it, elsewhere.
        """
        if not self._bridge_exists():
            self._refuse_overlap()
            _ip("link", "add", "name", self.bridge, "address", self._mac(), "type", "bridge", "forward_delay", "0", "stp_state", "0")
        _ip("addr", "replace", f"{self.gateway}/{self.prefix}", "dev", self.bridge)
        _ip("link", "set", self.bridge, "up")
        self._allow()

    def down(self) -> None:
        """Remove the rules, the bridge and every interface that is still attached to it, as far as they exist."""
        self._forget_rules()
        for port in self.ports():
            _ip("link", "del", port, check=False)
        if self._bridge_exists():
            _ip("link", "del", self.bridge)

    def ports(self) -> list[str]:
        """The machine's ends of the hosts' veth pairs."""
        listed = run(["ip", "-json", "link", "show", "master", self.bridge], timeout=COMMAND_TIMEOUT, check=False, what="listing the bridge's ports").stdout
        return sorted(str(link["ifname"]) for link in json.loads(listed or "[]") if "ifname" in link)

    def unplug(self, machine: str) -> None:
        """Remove the veth link of a killed host: the kernel removes it a moment later, but the next start needs its name now."""
        # systemd-nspawn names it vb-MACHINE; a name over 15 characters is shortened to a hash and the full one becomes an alternative.
        wanted = f"vb-{machine}"
        listing = json.loads(run(["ip", "-json", "link", "show"], timeout=COMMAND_TIMEOUT, what="listing network interfaces").stdout or "[]")
        for link in listing:
            if wanted == link.get("ifname") or wanted in link.get("altnames", []):
                _ip("link", "del", str(link["ifname"]), check=False)

    def _bridge_exists(self) -> bool:
        # By netlink: /sys/class/net shows the network namespace in which it was mounted, which may be another one.
        return run(["ip", "link", "show", "dev", self.bridge], timeout=COMMAND_TIMEOUT, check=False, what="looking for the bridge").code == 0

    def _mac(self) -> str:
        # Without a fixed one the bridge takes that of a port, and changes it when hosts are added and removed.
        octets = ipaddress.IPv4Address(self.gateway).packed
        return "02:42:" + ":".join(f"{octet:02x}" for octet in octets)

    def _refuse_overlap(self) -> None:
        # Podman's default network, for one, is 10.88.0.0/16.
        routes = json.loads(run(["ip", "-json", "-4", "route", "show"], timeout=COMMAND_TIMEOUT, what="listing routes").stdout or "[]")
        for route in routes:
            target = route.get("dst", "default")
            if target != "default" and ipaddress.IPv4Network(target, strict=False).overlaps(self.subnet):
                raise Conflict(
                    f"the lab's network {self.subnet} is in use on this machine: {target} is routed to {route.get('dev', 'another place')}",
                    resolution=f"take that network down (podman's default is 10.88.0.0/16), or remove {route.get('dev', 'it')}, and try again",
                )

    # -- the firewall

    def rules(self) -> list[list[str]]:
        """The rules, each as the `iptables` arguments after the command (-I or -D), in the order that they must have.

        Without them, hosts could not reach each other if bridged packets pass through iptables (net.bridge.bridge-nf-call-iptables) and the
        policy is DROP, as Docker and ufw set it. And if the machine forwards packets, hosts would reach networks outside of the lab. Of the
        machine itself they reach only the gateway's address.
        """
        mark = ["-m", "comment", "--comment", self._mark]
        return [
            ["INPUT", "-i", self.bridge, "-d", self.gateway, *mark, "-j", "ACCEPT"],
            ["INPUT", "-i", self.bridge, *mark, "-j", "REJECT"],
            ["FORWARD", "-i", self.bridge, "-o", self.bridge, *mark, "-j", "ACCEPT"],
            ["FORWARD", "-i", self.bridge, *mark, "-j", "REJECT"],
            ["FORWARD", "-o", self.bridge, *mark, "-j", "REJECT"],
        ]

    def _allow(self) -> None:
        if shutil.which("iptables") is None:
            return  # Then nothing filters; and without NAT, answers to packets from here do not arrive.
        if all(_iptables("-C", rule) for rule in self.rules()):
            return
        self._forget_rules()
        for rule in reversed(self.rules()):
            _iptables("-I", rule, check=True)

    def _forget_rules(self) -> None:
        if shutil.which("iptables") is None:
            return
        # By the comment, not by the present rules: another version of this code may have added them.
        listing = run(["iptables", "--wait", "10", "-S"], timeout=COMMAND_TIMEOUT, what="listing firewall rules").stdout
        for line in listing.splitlines():
            command, *rule = shlex.split(line)
            if command == "-A" and self._mark in rule:
                _iptables("-D", rule)

    @property
    def _mark(self) -> str:
        return f"ckp-lab:{self.bridge}"


def _ip(*arguments: str, check: bool = True) -> None:
    run(["ip", *arguments], timeout=COMMAND_TIMEOUT, check=check, what=f"ip {' '.join(arguments)}")


def _iptables(command: str, rule: list[str], *, check: bool = False) -> bool:
    argv = ["iptables", "--wait", "10", command, *rule]
    return run(argv, timeout=COMMAND_TIMEOUT, check=check, what=f"iptables {command} {' '.join(rule)}").code == 0
