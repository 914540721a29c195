"""The folders of a node: recording what its owner had in them before, and emptying them at the reset without touching that."""

from __future__ import annotations

import os
import shutil

from ckp.agent.journal import STANDALONE, Journal
from ckp.hostkit.errors import ProcessFailed
from ckp.hostkit.files import read_text, remove
from ckp.hostkit.logs import log
from ckp.hostkit.processes import run

CNI_CONFIGURATION = "/etc/cni/net.d"
KUBERNETES_FOLDERS = (
    "/etc/kubernetes",
    "/var/lib/kubelet",
    CNI_CONFIGURATION,
    "/var/lib/cni",
    "/run/cluster-api",
    "/run/kubeadm",
    "/run/ckp-standalone",
    "/var/log/pods",
    "/var/log/containers",
    "/var/lib/ckp/volumes",
)
ETCD_FOLDER = "/var/lib/etcd"
CILIUM_FOLDERS = ("/run/cilium", "/var/run/cilium", "/var/lib/cilium", "/run/calico", "/var/lib/calico")
CONTAINERD_FOLDERS = ("/var/lib/containerd", "/run/containerd", "/opt/containerd")
TAKEN_FOLDERS = ("/var/lib/kubelet", "/etc/kubernetes/manifests", "/var/lib/containerd")
"""Content of others in one of these means that the host is in use, whatever its package manager reports."""
PRESENT = "present"
"""The journal's note of what was in the folders before CKP: names by folder."""
BACKUP = ".cilium_bak"
"""What Cilium (cni.exclusive) appends to the file name of another network's configuration."""


def of_kubernetes(journal: Journal) -> tuple[str, ...]:
    """The folders that Kubernetes fills on this host. etcd's only for a standalone cluster: on a worker it would be a database of others."""
    worker = journal.member is not None and journal.member.key != STANDALONE
    return KUBERNETES_FOLDERS if worker else (*KUBERNETES_FOLDERS, ETCD_FOLDER)


def names(folder: str) -> list[str]:
    """The names in `folder`, without `lost+found`, which every disk has; empty if the folder does not exist."""
    try:
        return sorted(name for name in os.listdir(folder) if name != "lost+found")
    except OSError:
        return []


def remember_present(journal: Journal) -> None:
    """Record what is in the folders before CKP changes anything: it belongs to the host's owner, and stays after a reset."""
    if PRESENT in journal.notes or "sysctl" in journal.notes or journal.packages:
        return  # recorded already; or too late, if an older agent that did not record it began
    folders = (*of_kubernetes(journal), *CILIUM_FOLDERS, *CONTAINERD_FOLDERS)
    journal.note(PRESENT, {folder: found for folder in folders if (found := names(folder))})


def of_owner(journal: Journal, folder: str) -> set[str]:
    """The names in `folder` that belong to the host's owner."""
    present: dict[str, list[str]] = journal.notes.get(PRESENT, {})
    return set(present.get(folder, ()))


def left_in(journal: Journal, folder: str) -> list[str]:
    """The names in `folder` that were not there before CKP."""
    return [name for name in names(folder) if name not in of_owner(journal, folder)]


def taken() -> list[str]:
    """Those of TAKEN_FOLDERS that are not empty."""
    return [folder for folder in TAKEN_FOLDERS if names(folder)]


def give_back_configuration(journal: Journal) -> None:
    """Restore the names of other networks' configurations (podman's, say) that Cilium has renamed."""
    for name in of_owner(journal, CNI_CONFIGURATION):
        path = os.path.join(CNI_CONFIGURATION, name)
        if os.path.exists(path + BACKUP) and not os.path.exists(path):
            os.rename(path + BACKUP, path)


def mounts() -> list[str]:
    """All mount points of the host, from mountinfo. They are not accessed, since the server of one may not answer."""
    points = []
    for line in read_text("/proc/self/mountinfo").splitlines():
        parts = line.split()
        if len(parts) > 4:
            points.append(parts[4].replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\"))
    return points


def unmount_below(journal: Journal, folder: str) -> None:
    """Unmount everything below `folder`, deepest first, except what belongs to the owner. Not `folder` itself, which may be a disk of its own."""
    real = os.path.realpath(folder)
    kept = tuple(f"{real}/{name}" for name in of_owner(journal, folder))
    for _ in range(3):
        below = [point for point in mounts() if point.startswith(real + "/") and not any(_is_in(point, path) for path in kept)]
        if not below:
            return
        for point in sorted(below, key=len, reverse=True):
            if not _umount(point):
                _umount("-l", point)


def _is_in(point: str, path: str) -> bool:
    return point == path or point.startswith(path + "/")


def _umount(*arguments: str) -> bool:
    try:
        return run(["umount", *arguments], timeout=30, check=False).code == 0
    except ProcessFailed as error:  # the mount's server does not answer
        log(error.brief)
        return False


def empty(journal: Journal, folder: str) -> None:
    """Remove what is in `folder` and was not there before CKP, and then the folder, unless it is a mount or a link to another place.

    Never enters a mount that could not be unmounted.
    """
    if not os.path.isdir(folder):
        return
    real = os.path.realpath(folder)
    mounted, kept = mounts(), of_owner(journal, folder)
    for name in names(real):
        path = os.path.join(real, name)
        if name in kept or any(_is_in(point, path) for point in mounted):
            continue
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path, ignore_errors=True)
        else:
            try:
                remove(path)
            except OSError as error:
                log(f"{path} can't be removed: {error.strerror}")
    if not os.path.islink(folder):
        remove_if_empty(folder)


def remove_if_empty(folder: str) -> None:
    """Remove a folder if it is empty."""
    try:
        os.rmdir(folder)
    except OSError:
        pass


def remove_empty_tree(top: str) -> None:
    """Remove all folders below `top`, and `top`, that hold no files."""
    for folder, _, _ in os.walk(top, topdown=False):
        remove_if_empty(folder)
