"""Name servers for the pods of a node: what the kubelet gives to pods that use their host's, CoreDNS among them.

The kubelet reads the host's resolv.conf. A server on the loopback (dnsmasq, unbound, a stub) is another one in a pod: CoreDNS would ask itself, notices,
and ends (plugin loop); without a server it does not start (plugin forward: "no nameservers found"). Then not even names of the cluster resolve. kubeadm
knows only systemd-resolved. On such a host the kubelet gets a file of CKP's instead, with the servers that pods can reach. If there are none, it names
the host at its own address: what listens there answers, and otherwise the host refuses at once, so that only names outside of the cluster fail.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Iterator, Sequence

from ckp.agent.journal import Journal
from ckp.hostkit.files import read_text
from ckp.hostkit.processes import run

OWN = "/etc/kubernetes/ckp-resolv.conf"
SYSTEM = "/etc/resolv.conf"
RESOLVED = "/run/systemd/resolve/resolv.conf"
BEHIND_LOCAL_SERVERS = (RESOLVED, "/run/NetworkManager/no-stub-resolv.conf", "/run/dnsmasq/resolv.conf")
"""Where those that run a server on the loopback write the servers that it asks."""
KUBELET_CONFIG = "/var/lib/kubelet/config.yaml"
KUBEADM_FLAGS = "/var/lib/kubelet/kubeadm-flags.env"
NO_SERVER = "192.0.2.1"
"""Of no network (for documentation): a host without any address has no better one."""
HEADER = "# Written by ckp-agent for the pods of this node, since not all name servers of the host can be reached from pods.\n"


def servers(text: str) -> tuple[list[str], list[str]]:
    """(the name servers that pods can reach, the others as they are written) in the text of a resolv.conf."""
    good: list[str] = []
    bad: list[str] = []
    for line in text.splitlines():
        words = line.split()
        if not words or words[0] != "nameserver":
            continue
        address = words[1] if len(words) > 1 else ""
        if not _reachable(address):
            bad.append(address or "nothing")
        elif address not in good:
            good.append(address)
    return good, bad


def _reachable(text: str) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return not (address.is_loopback or address.is_unspecified or address.is_link_local or address.is_multicast)


def unreachable(addresses: Sequence[str]) -> bool:
    """Whether a pod with these name servers has one that it can't reach, or none."""
    return not addresses or not all(map(_reachable, addresses))


def kubelets_file() -> str:
    """The file that the kubelet reads if it is not told another one: by its configuration on a node, and by what kubeadm will decide before the join."""
    config = read_text(KUBELET_CONFIG)
    if config:
        match = re.search(r"^resolvConf:\s*[\"']?([^\"'\s]*)", config, re.M)
        return (match.group(1) if match else "") or SYSTEM
    active = run(["systemctl", "is-active", "systemd-resolved"], timeout=20, check=False).stdout.strip() == "active"
    return RESOLVED if active else SYSTEM


def _candidates() -> Iterator[str]:
    yield kubelets_file()
    system = read_text(SYSTEM)
    yield SYSTEM
    if any(address.startswith("127.") for address in servers(system)[1]):
        yield from BEHIND_LOCAL_SERVERS


def problem() -> str:
    """Why pods on this host can't resolve names outside of the cluster, as far as resolv.conf shows; "" if they can."""
    if any(servers(read_text(path))[0] for path in _candidates()):
        return ""
    path = kubelets_file()
    bad = servers(read_text(path))[1]
    return f"{path} names only {', '.join(bad[:3])}, which pods can't reach" if bad else f"{path} names no name server"


def content(node_ip: str) -> str:
    """OWN's content for the servers of now."""
    chosen, found = read_text(kubelets_file()), [node_ip or NO_SERVER]
    for path in _candidates():
        text = read_text(path)
        if good := servers(text)[0]:
            chosen, found = text, good
            break
    kept = [line.strip() for line in chosen.splitlines() if line.split()[:1] and line.split()[0] in ("search", "options")]
    return HEADER + "".join(f"{line}\n" for line in [*kept, *(f"nameserver {address}" for address in found)])


def wanted(present: str, given: bool = False) -> str:
    """The file for the kubelet's flag --resolv-conf; "" if it needs none.

    Args:
        present: the flag's value now. CKP's own file stays in use, and another one is somebody's decision.
        given: whether somebody has decided otherwise (KubeadmConfig, host.json).
    """
    if present and present != OWN:
        return present
    if given or re.search(r"--resolv-conf\b", read_text(KUBEADM_FLAGS)):
        return ""
    if present:
        return OWN
    good, bad = servers(read_text(kubelets_file()))
    return "" if good and not bad else OWN


def write(journal: Journal, node_ip: str) -> bool:
    """Write OWN; returns whether it changed. The kubelet reads it for each pod that it starts."""
    return journal.replace_file(OWN, content(node_ip))
