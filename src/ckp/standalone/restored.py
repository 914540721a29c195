"""What a standalone cluster begins with instead of nothing: the data of its etcd and Kubernetes' CAs, as `ckp site restore` has brought them to the host.

kubeadm uses CAs that it finds and issues the certificates (certs phase, "using existing ... certificate authority"), and its etcd the data.
"""

from __future__ import annotations

import json
import os
import shutil

from ckp.hostkit.errors import AgentError
from ckp.hostkit.files import read_text
from ckp.hostkit.locations import RESTORED, RESTORED_RECORD

FOLDERS = {"etcd": "/var/lib/etcd", "pki": "/etc/kubernetes/pki"}
"""In RESTORED -> where kubeadm looks for it."""
PREFLIGHT = "DirAvailable--var-lib-etcd"
"""kubeadm's check that there is no data."""
KUBELET_CONFIG = "/etc/kubernetes/kubelet.conf"
ROTATED = "kubelet-client-current.pem"
"""What KUBELET_CONFIG names once kubeadm's phase kubelet-finalize is done, one of its last."""


def is_there() -> bool:
    """Whether there is something to begin with.

    Raises:
        AgentError: not all of it is there. A cluster without data, or with half of it, is not what anybody wants then.
    """
    if not os.path.exists(RESTORED_RECORD):
        return False
    try:
        placed = json.loads(read_text(RESTORED_RECORD))["placed"] is True
    except (ValueError, KeyError, TypeError):
        placed = False
    if not placed or not all(os.path.isdir(os.path.join(RESTORED, name)) for name in FOLDERS):
        raise AgentError(
            f"{RESTORED} does not hold all that a cluster needs from a backup",
            resolution=f"run `ckp site restore` again, which goes on; or remove {RESTORED}, and the cluster begins without data",
            reason="RestoreIncomplete",
            permanent=True,
        )
    return True


def put() -> None:
    """Put it where kubeadm and etcd look, each time from the beginning. Nothing of the cluster runs."""
    for name, target in FOLDERS.items():
        shutil.rmtree(target, ignore_errors=True)  # the folder itself stays where it is a file system of its own
        shutil.copytree(os.path.join(RESTORED, name), target, dirs_exist_ok=True)


def interrupted() -> bool:
    """Whether kubeadm init did not come to its end. The cluster's objects, which tell that otherwise, were there before it in the data."""
    return ROTATED not in read_text(KUBELET_CONFIG)
