"""Settings of systemd on this host that a node's services need otherwise: drop-ins, which a reset removes.

A host's owner may have set the umask of all services (service.d/, as hardening guides have it). containerd would give the root folder of each container a
mode with which only root can enter it, and the kubelet would write /etc/hosts for root alone. So both get systemd's own default, in files whose names
come last: systemd reads the drop-ins of all folders in the order of their names.

(systemd-networkd needs nothing: it removes routes and rules that it does not know when it starts, but Cilium's look like the kernel's own, RTPROT_KERNEL in
pkg/datapath/linux/linux_defaults of v1.19.5.)
"""

from __future__ import annotations

from ckp.agent.journal import Journal

UMASK_DROP_INS = ("/etc/systemd/system/containerd.service.d/zz-ckp-umask.conf", "/etc/systemd/system/kubelet.service.d/zz-ckp-umask.conf")
UMASK = "# Written by ckp-agent: containers of other users than root must get into their file systems.\n[Service]\nUMask=0022\n"


def write(journal: Journal) -> bool:
    """Write the drop-ins; returns whether something changed. The services take them over when they start, after a daemon-reload."""
    changed = [journal.replace_file(path, UMASK) for path in UMASK_DROP_INS]
    return any(changed)
