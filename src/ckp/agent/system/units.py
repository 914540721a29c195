"""Settings of systemd on this host that a node's services need otherwise: drop-ins, which a reset removes.

A host's owner may have set the umask of all services (service.d/, as hardening guides have it). containerd would give the root folder of each container a
mode with which only root can enter it, and the kubelet would write /etc/hosts for root alone. So both get systemd's own default, in files whose names
come last: systemd reads the drop-ins of all folders in the order of their names.

systemd-networkd removes, whenever it starts again (an upgrade of systemd is enough), routes and rules that it does not know: a network plugin's are among
them, and a node loses its pods (Cilium: "System Requirements", systemd-based distributions).
"""

from __future__ import annotations

import os

from ckp.agent.journal import Journal

UMASK_DROP_INS = ("/etc/systemd/system/containerd.service.d/zz-ckp-umask.conf", "/etc/systemd/system/kubelet.service.d/zz-ckp-umask.conf")
UMASK = "# Written by ckp-agent: containers of other users than root must get into their file systems.\n[Service]\nUMask=0022\n"
NETWORKD_DROP_IN = "/etc/systemd/networkd.conf.d/zz-ckp.conf"
NETWORKD = (
    "# Written by ckp-agent: routes and rules of the network plugin stay when networkd starts again.\n"
    "[Network]\nManageForeignRoutes=no\nManageForeignRoutingPolicyRules=no\n"
)
NETWORKD_RUNS = "/run/systemd/netif"
"""networkd's runtime directory (RuntimeDirectory= of its unit, kept while it restarts)."""


def write(journal: Journal) -> bool:
    """Write the drop-ins; returns whether something changed. The services read theirs after a daemon-reload when they start, networkd at its next start."""
    changed = [journal.replace_file(path, UMASK) for path in UMASK_DROP_INS]
    if os.path.isdir(NETWORKD_RUNS):
        changed.append(journal.replace_file(NETWORKD_DROP_IN, NETWORKD))
    return any(changed)
