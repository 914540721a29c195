"""The folders of a node: which there are, what its owner had in them before, and how they are emptied again without touching that."""

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
"""With content of somebody else's in one of these a host is no free host, whatever its package manager knows."""
PRESENT = "present"
"""The journal's note of what was in the folders before us: folder, names."""
BACKUP = ".cilium_bak"
"""What Cilium (cni.exclusive) appends to the name of another network's configuration."""


def of_kubernetes(journal: Journal) -> tuple[str, ...]:
    """The folders that Kubernetes fills on this host. etcd's only where we ran one: on a worker it is somebody else's database."""
    worker = journal.member is not None and journal.member.key != STANDALONE
    return KUBERNETES_FOLDERS if worker else (*KUBERNETES_FOLDERS, ETCD_FOLDER)


def names(folder: str) -> list[str]:
    """What is in `folder`; nothing if there is none. Not the file system's own `lost+found` of a folder that is a disk."""
    try:
        return sorted(name for name in os.listdir(folder) if name != "lost+found")
    except OSError:
        return []


def remember_present(journal: Journal) -> None:
    """Note what is in the folders, before anything of ours comes into them: it is its owner's, and stays when the host leaves."""
    if PRESENT in journal.notes or "sysctl" in journal.notes or journal.packages:
        return  # noted already, or (by an agent that did not note it) too late
    folders = (*of_kubernetes(journal), *CILIUM_FOLDERS, *CONTAINERD_FOLDERS)
    journal.note(PRESENT, {folder: found for folder in folders if (found := names(folder))})


def of_owner(journal: Journal, folder: str) -> set[str]:
    """The names in `folder` that are not ours."""
    present: dict[str, list[str]] = journal.notes.get(PRESENT, {})
    return set(present.get(folder, ()))


def left_in(journal: Journal, folder: str) -> list[str]:
    """The names in `folder` that were not there before us."""
    return [name for name in names(folder) if name not in of_owner(journal, folder)]


def taken() -> list[str]:
    """Those of TAKEN_FOLDERS that hold something."""
    return [folder for folder in TAKEN_FOLDERS if names(folder)]


def give_back_configuration(journal: Journal) -> None:
    """Give the configurations of other networks (podman's) the names back that Cilium has taken from them."""
    for name in of_owner(journal, CNI_CONFIGURATION):
        path = os.path.join(CNI_CONFIGURATION, name)
        if os.path.exists(path + BACKUP) and not os.path.exists(path):
            os.rename(path + BACKUP, path)


def mounts() -> list[str]:
    """Every mount point of the host, as the kernel writes them: whole paths without links. None of them is looked at: a server may be away."""
    points = []
    for line in read_text("/proc/self/mountinfo").splitlines():
        parts = line.split()
        if len(parts) > 4:
            points.append(parts[4].replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\"))
    return points


def unmount_below(journal: Journal, folder: str) -> None:
    """Unmount everything below `folder` (not `folder` itself, which may be a disk of its own), deepest first; not what was its owner's."""
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
    except ProcessFailed as error:  # its server does not answer
        log(error.brief)
        return False


def empty(journal: Journal, folder: str) -> None:
    """Remove what is in `folder` and was not there before us, and it too unless it is a mount, or a link to where its owner wants it.

    Never crosses into a mount that could not be taken away.
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
    """Remove a folder that holds nothing."""
    try:
        os.rmdir(folder)
    except OSError:
        pass


def remove_empty_tree(top: str) -> None:
    """Remove folders that hold nothing but folders."""
    for folder, _, _ in os.walk(top, topdown=False):
        remove_if_empty(folder)
