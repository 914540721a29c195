"""An address that moves between hosts, on this host's link: by netlink (rtnetlink(7)) and ARP (RFC 826, RFC 5227)."""

from __future__ import annotations

import errno
import ipaddress
import json
import os
import select
import socket
import struct
import time
from dataclasses import dataclass
from typing import Any, Optional

from ckp.hostkit.errors import AgentError
from ckp.hostkit.processes import run

ETHERTYPE_ARP = 0x0806
BROADCAST = b"\xff" * 6
REQUEST, REPLY = 1, 2
ETHERNET = 1
PROBES, PROBE_SECONDS = 3, 0.5
RTM_NEWADDR, RTM_DELADDR = 20, 21
NLM_F_REQUEST, NLM_F_ACK, NLM_F_REPLACE, NLM_F_CREATE = 0x1, 0x4, 0x100, 0x400
NLMSG_ERROR = 2
IFA_ADDRESS, IFA_LOCAL, IFA_CACHEINFO = 1, 2, 6
FOREVER = 0xFFFFFFFF
ANSWER_SECONDS = 2.0


@dataclass(frozen=True)
class Link:
    """The link that has an address of this host.

    Args:
        network: of that address, as the host has it.
    """

    name: str
    index: int
    network: ipaddress.IPv4Network


def link_of(address: str) -> Optional[Link]:
    """The link with this address; None if no link has it. Raises ProcessFailed."""
    shown = run(["ip", "-j", "-4", "addr", "show"], timeout=20, what="listing this host's addresses").stdout
    return find_link(json.loads(shown or "[]"), address)


def find_link(links: list[dict[str, Any]], address: str) -> Optional[Link]:
    """The same, of what `ip -j addr show` prints."""
    for link in links:
        for item in link.get("addr_info", []):
            if item.get("local") == address:
                network = ipaddress.IPv4Network(f"{address}/{item.get('prefixlen', 32)}", strict=False)
                return Link(str(link["ifname"]), int(link["ifindex"]), network)
    return None


def announcement(mac: bytes, address: str, operation: int) -> bytes:
    """A gratuitous ARP packet, as an Ethernet frame: `address` is at `mac`. Some systems take the request, some the reply."""
    packed = socket.inet_aton(address)
    target = b"\0" * 6 if operation == REQUEST else BROADCAST
    return _frame(mac, operation, mac, packed, target, packed)


def probe(mac: bytes, address: str) -> bytes:
    """An ARP probe (RFC 5227, section 2.1.1): who has `address`? Its sender has none, so that nobody's cache changes."""
    return _frame(mac, REQUEST, mac, b"\0" * 4, b"\0" * 6, socket.inet_aton(address))


def _frame(source: bytes, operation: int, sender: bytes, sender_address: bytes, target: bytes, target_address: bytes) -> bytes:
    ethernet = struct.pack("!6s6sH", BROADCAST, source, ETHERTYPE_ARP)
    return ethernet + struct.pack("!HHBBH6s4s6s4s", ETHERNET, 0x0800, 6, 4, operation, sender, sender_address, target, target_address)


def sender(frame: bytes) -> tuple[str, bytes]:
    """(address, MAC) of the sender of an ARP packet; ("", b"") if the frame is none."""
    if len(frame) < 42 or struct.unpack_from("!H", frame, 12)[0] != ETHERTYPE_ARP or struct.unpack_from("!HHBB", frame, 14) != (ETHERNET, 0x0800, 6, 4):
        return "", b""
    mac, address = struct.unpack_from("!6s4s", frame, 22)
    return socket.inet_ntoa(address), mac


class Arp:
    """ARP on a link. Raises OSError: no permission, or no such link."""

    def __init__(self, link: str) -> None:
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETHERTYPE_ARP))
        try:
            self._socket.bind((link, ETHERTYPE_ARP))
            name = self._socket.getsockname()
            self.mac: bytes = name[4][:6]
            if name[3] != ETHERNET or len(self.mac) != 6:
                raise OSError(errno.EPROTONOSUPPORT, f"{link} is no Ethernet link")
        except OSError:
            self._socket.close()
            raise

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def announce(self, address: str) -> None:
        """Tell the link's hosts that `address` is here. Raises OSError."""
        for operation in (REQUEST, REPLY):
            self._socket.send(announcement(self.mac, address, operation))

    def owner(self, address: str) -> str:
        """The MAC of another host that has `address`, "" if none answers within PROBES times PROBE_SECONDS. Raises OSError."""
        for _ in range(PROBES):
            self._socket.send(probe(self.mac, address))
            deadline = time.monotonic() + PROBE_SECONDS
            while (left := deadline - time.monotonic()) > 0:
                if not select.select([self._socket], [], [], left)[0]:
                    break
                found, mac = sender(self._socket.recv(2048))
                if found == address and mac != self.mac:
                    return mac.hex(":")
        return ""


def address_message(kind: int, index: int, address: str, seconds: int, sequence: int) -> bytes:
    """The netlink message that adds (or replaces) or deletes ADDRESS/32 on a link; the kernel deletes it after `seconds`, 0 for never."""
    packed = socket.inet_aton(address)
    flags = NLM_F_REQUEST | NLM_F_ACK | (NLM_F_CREATE | NLM_F_REPLACE if kind == RTM_NEWADDR else 0)
    body = struct.pack("=BBBBI", socket.AF_INET, 32, 0, 0, index)
    body += b"".join(struct.pack("=HH4s", 8, name, packed) for name in (IFA_LOCAL, IFA_ADDRESS))
    if kind == RTM_NEWADDR:
        body += struct.pack("=HHIIII", 20, IFA_CACHEINFO, seconds or FOREVER, seconds or FOREVER, 0, 0)
    return struct.pack("=IHHII", 16 + len(body), kind, flags, sequence, 0) + body


class Addresses:
    """Adds an address to a link, and removes it. Without a program to start: that must also work on a host that is overloaded."""

    def __init__(self) -> None:
        self._sequence = 0

    def hold(self, link: Link, address: str, seconds: int) -> None:
        """Add the address, or make it last for `seconds` from now. Raises OSError."""
        self._send(RTM_NEWADDR, link, address, seconds)

    def drop(self, link: Link, address: str) -> bool:
        """Remove the address; returns whether it was there. Raises OSError."""
        try:
            self._send(RTM_DELADDR, link, address, 0)
        except OSError as error:
            if error.errno in (errno.EADDRNOTAVAIL, errno.ENODEV):
                return False
            raise
        return True

    def _send(self, kind: int, link: Link, address: str, seconds: int) -> None:
        self._sequence += 1
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as link_socket:
            link_socket.settimeout(ANSWER_SECONDS)
            link_socket.bind((0, 0))
            link_socket.send(address_message(kind, link.index, address, seconds, self._sequence))
            answer = link_socket.recv(4096)
        _, found, _, _, _ = struct.unpack_from("=IHHII", answer)
        code = -struct.unpack_from("=i", answer, 16)[0] if found == NLMSG_ERROR else errno.EPROTO
        if code:
            raise OSError(code, os.strerror(code))


def taken_by(link: Link, address: str) -> str:
    """The MAC of another host on the link that has `address`, "" if none answers. Raises AgentError if it can't be asked."""
    try:
        arp = Arp(link.name)
    except OSError as error:
        raise AgentError(f"no ARP on the link {link.name}: {error.strerror}", resolution="run this as root, on a host with an Ethernet link") from None
    try:
        return arp.owner(address)
    finally:
        arp.close()
