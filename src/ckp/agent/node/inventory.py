"""Inventory of this host (disks, links, packages) and preflight findings, sent to the hub with the facts."""

from __future__ import annotations

import os
import re
import time
from typing import List, Optional, Tuple

from ckp.agent.journal import Journal
from ckp.agent.messages import DiskFacts, Finding, HostFacts, LinkFacts
from ckp.agent.node import preflight
from ckp.agent.system import facts, holds, kubelet_flags
from ckp.agent.system.installers.base import FOREIGN_RUNTIMES, NODE_PACKAGES
from ckp.agent.system.installers.detect import of_host
from ckp.hostkit.errors import AgentError
from ckp.hostkit.files import read_text

MAX_ITEMS = 16
"""Largest number of disks, of links and of findings. Their texts are cut as well: the hub rejects a host whose facts are larger than 16 KiB."""
PROBLEM_LENGTH, REMEDIATION_LENGTH = 200, 150
NOT_DISKS = re.compile(r"(loop|ram|zram|dm-|sr|fd|md|nbd)\d*")
CLUSTER_LINKS = re.compile(r"(lo|cilium_.*|lxc.*|cni.*|cali.*|vxlan\.calico|docker.*|br-.*|veth.*|kube-.*|nodelocaldns|dummy\d+|tunl0|sit0|ip6tnl0)\Z")


def disks(top: str = "/sys/block") -> Tuple[DiskFacts, ...]:
    """Whole disks by name, without loop, device mapper and RAID devices."""
    found = []
    for name in sorted(_names(top)):
        size = _number(f"{top}/{name}/size") * 512
        if size and not NOT_DISKS.match(name):
            found.append(DiskFacts(name[:64], size, read_text(f"{top}/{name}/queue/rotational").strip() == "1"))
    return tuple(found[:MAX_ITEMS])


def links(top: str = "/sys/class/net") -> Tuple[LinkFacts, ...]:
    """Links to the outside of the host, by name."""
    found = []
    for name in sorted(_names(top)):
        if CLUSTER_LINKS.match(name) or not os.path.isdir(f"{top}/{name}"):
            continue
        mac = read_text(f"{top}/{name}/address").strip()
        up = read_text(f"{top}/{name}/operstate").strip() in ("up", "unknown")
        found.append(LinkFacts(name[:64], mac[:32], _number(f"{top}/{name}/mtu"), max(0, _number(f"{top}/{name}/speed")), up))
    return tuple(found[:MAX_ITEMS])


def installed() -> Tuple[str, ...]:
    """Installed packages of a node or of another container runtime."""
    try:
        have = of_host().installed([*NODE_PACKAGES, *FOREIGN_RUNTIMES])
    except AgentError:
        return ()
    return tuple(f"{name} {version}"[:80] for name, version in sorted(have.items()))[:MAX_ITEMS]


def findings(journal: Optional[Journal]) -> Tuple[Finding, ...]:
    """What preflight finds now. Of a host that is a node, or becomes one: what matters to a node, and which of its packages are no longer CKP's."""
    if journal is None:
        return ()
    try:
        seen: List[Finding] = preflight.worker(journal, of_host()).items if journal.member is None else [*preflight.node().items, *changed_packages(journal)]
    except AgentError as error:
        seen = [Finding(error.brief, error.resolution)]
    return tuple(Finding(item.problem[:PROBLEM_LENGTH], item.remediation[:REMEDIATION_LENGTH], item.blocking) for item in seen)[:MAX_ITEMS]


def changed_packages(journal: Journal) -> List[Finding]:
    """A finding for each package of this node that is no longer what CKP installed. It blocks nothing: the node works, and its owner decides."""
    return [Finding(line, holds.REMEDY, blocking=False) for line in holds.changed(journal, of_host())]


def host_facts(hub_host: str = "", journal: Optional[Journal] = None, version: str = "") -> HostFacts:
    """All facts about this host for the hub. `version` is that of the agent's package."""
    from dataclasses import replace

    joined = journal is not None and journal.member is not None
    found = facts.host_facts(hub_host, kubelet_flags.node_ip() if joined else "")
    found = replace(found, agent_version=version or found.agent_version, kubelet_flags=kubelet_flags.names() if joined else ())
    return replace(found, disks=disks(), links=links(), installed=installed(), findings=findings(journal), clock=round(time.time(), 3))


def same(first: HostFacts, second: HostFacts) -> bool:
    """Whether two facts differ at most in the clock and in free space within the same GiB, so that the hub need not get them again."""
    from dataclasses import replace

    one, two = (replace(item, clock=0.0, disk_free_bytes=item.disk_free_bytes >> 30) for item in (first, second))
    return one == two


def _names(folder: str) -> List[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _number(path: str) -> int:
    try:
        return int(read_text(path, "0").strip() or 0)
    except ValueError:
        return 0
