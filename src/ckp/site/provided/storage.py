"""What volumes of the workload clusters' etcd are made of: a StorageClass that the management cluster has, or a folder of its hosts.

A volume keeps the class and the folder that it was made with, so a change is for clusters that are made afterwards.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ckp.api.names import CKP
from ckp.kits.errors import Conflict
from ckp.site.hosts.files import owners
from ckp.site.inventory import SiteHost, SiteStorage

Obj = dict[str, Any]
Kubectl = Callable[..., str]
"""Takes kubectl's arguments and gives what it prints. Raises CkpError."""

HOSTPATH, HOSTPATH_FOLDER = "ckp-hostpath", "/var/lib/ckp/volumes"
"""The default class of a cluster that CKP has installed, and its folder (packaging/bundle/local-path.yaml)."""
OWN = "ckp-etcd"
"""The class that CKP makes for a folder."""
NAMESPACE, CONFIG = "ckp-storage", "local-path-config"
PROVISIONER = "rancher.io/local-path"
STATIC = "kubernetes.io/no-provisioner"
FOLDER = f"{CKP}/folder"
"""Annotation of OWN: its folder."""
DEFAULT = "storageclass.kubernetes.io/is-default-class"
PRIVATE = "700 root root"
VOLUME = "pvc-*_*"
"""How the provisioner calls the folders of volumes (v0.0.30, provisioner.go: `name_namespace_claim`)."""


def class_of(storage: SiteStorage) -> str:
    """The class that new clusters' etcd gets; empty for the cluster's default one."""
    return OWN if storage.etcd_path else storage.etcd_class


def named(name: str, folder: str = "") -> str:
    """A class for people."""
    return f"the folder {folder} of the management hosts" if folder else f"the StorageClass {name}" if name else "the default StorageClass"


def manifests(storage: SiteStorage) -> list[Obj]:
    """The class for a folder, and the provisioner's configuration with it; none without one.

    The folder is in the configuration and not in the class, whose parameters can't be changed. The provisioner reads it again every half minute
    (v0.0.30: `storageClassConfigs` names all classes, and `nodePathMap` has to be empty then).
    """
    if not storage.etcd_path:
        return []
    folders = {HOSTPATH: HOSTPATH_FOLDER, OWN: storage.etcd_path}
    maps = {name: {"nodePathMap": [{"node": "DEFAULT_PATH_FOR_NON_LISTED_NODES", "paths": [folder]}]} for name, folder in folders.items()}
    config = json.dumps({"nodePathMap": [], "storageClassConfigs": maps})
    return [
        {
            "apiVersion": "storage.k8s.io/v1",
            "kind": "StorageClass",
            "metadata": {"name": OWN, "annotations": {FOLDER: storage.etcd_path}},
            "provisioner": PROVISIONER,
            "volumeBindingMode": "WaitForFirstConsumer",
            "reclaimPolicy": "Delete",
        },
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": CONFIG, "namespace": NAMESPACE}, "data": {"config.json": config}},
    ]


# -- on hosts


def ensure_folder(host: SiteHost, folder: str, say: Callable[[str], None]) -> None:
    """Make the folder, for root only: the folders of volumes in it can be written by whatever user a pod has. An empty name is none.

    Raises:
        Conflict: `refuse_folder`.
    """
    if not folder or not refuse_folder(host, folder):
        return
    host.run(["install", "-d", "-m", "0700", "-o", "root", "-g", "root", folder], timeout=30, what=f"creating {folder}")
    say(f"{host.name}: {folder} created, for volumes of etcd")


def refuse_folder(host: SiteHost, folder: str) -> bool:
    """Whether the folder has yet to be made.

    Raises:
        Conflict: something else is there, or users of the host may look into it.
    """
    access = owners(host, [folder]).get(folder)
    if access is None:
        return True
    if host.run(["test", "-d", folder], timeout=30, check=False).code:
        raise Conflict(f"{folder} on {host.name} is not a folder", resolution="write another path for storage.etcd, or remove what is there")
    if access != PRIVATE:
        raise Conflict(
            f"{folder} on {host.name} is not root's alone ({access}), and users of that host could read and change the clusters' etcd there",
            resolution=f"chown root:root {folder} && chmod 700 {folder}; or write a path that does not exist yet",
        )
    return False


def remove_folder(host: SiteHost, folder: str) -> None:
    """Remove the volumes in the folder, and the folder if nothing else is in it. A file system that is mounted there stays."""
    if not folder or owners(host, [folder]).get(folder) is None:
        return
    host.run(["find", folder, "-xdev", "-mindepth", "1", "-maxdepth", "1", "-name", VOLUME, "-exec", "rm", "-rf", "--one-file-system", "{}", "+"], timeout=600)
    host.run(["rmdir", "--", folder], timeout=30, check=False)


# -- what the management cluster has


@dataclass(frozen=True)
class SeenClasses:
    """The StorageClasses of a cluster, and what makes volumes of them.

    Args:
        classes: by name.
        drivers: CSI drivers that nodes have.
        free: classes of which a volume is there that nobody has claimed.
    """

    classes: Mapping[str, Obj] = field(default_factory=dict)
    drivers: frozenset[str] = frozenset()
    free: frozenset[str] = frozenset()

    @property
    def default(self) -> str:
        """The name of the default class; empty if there is none."""
        return next((name for name, each in self.classes.items() if (each["metadata"].get("annotations") or {}).get(DEFAULT) == "true"), "")

    def folder(self, name: str) -> str:
        """The folder of a class that CKP has made; empty for another one."""
        return str((self.classes.get(name, {}).get("metadata", {}).get("annotations") or {}).get(FOLDER, ""))


def look(kubectl: Kubectl) -> SeenClasses:
    """Ask a cluster. CkpError if it does not answer."""
    classes, nodes, volumes = (json.loads(kubectl("get", kind, "--output=json"))["items"] for kind in ("storageclasses", "csinodes", "persistentvolumes"))
    return SeenClasses(
        {str(each["metadata"]["name"]): each for each in classes},
        frozenset(str(driver["name"]) for node in nodes for driver in (node.get("spec") or {}).get("drivers") or ()),
        frozenset(str(each["spec"].get("storageClassName", "")) for each in volumes if (each.get("status") or {}).get("phase") == "Available"),
    )


@dataclass(frozen=True)
class Problem:
    """Why a class can't be used.

    Args:
        certain: otherwise it may work all the same.
    """

    what: str
    remedy: str
    certain: bool = True


def problems(storage: SiteStorage, seen: SeenClasses | None) -> Sequence[Problem]:
    """What is wrong with the class that the site names.

    Args:
        seen: None: the management cluster is not there yet, and will have HOSTPATH only.
    """
    name = storage.etcd_class
    if not name or (seen is None and name == HOSTPATH):
        return []
    if seen is None:
        remedy = f"leave storage.etcd out, or write {HOSTPATH}; install what brings {name} once the site is up, and name it then"
        return [Problem(f"a management cluster that CKP installs has no StorageClass {name} in the beginning", remedy)]
    found = seen.classes.get(name)
    if found is None:
        known = ", ".join(sorted(seen.classes)) or "it has none"
        return [Problem(f"the management cluster has no StorageClass {name}", f"write one that it has ({known}), or make that class first")]
    if found["metadata"].get("deletionTimestamp"):
        return [Problem(f"the StorageClass {name} is being deleted", "write another one")]
    provisioner = str(found.get("provisioner", ""))
    if provisioner == STATIC and name not in seen.free:
        what = f"the StorageClass {name} has no provisioner, and there is no free PersistentVolume of it, so no volume would be bound"
        return [Problem(what, "make PersistentVolumes of that class, one for each member of etcd, or write a class with a provisioner")]
    if provisioner not in seen.drivers and provisioner not in (STATIC, PROVISIONER) and not provisioner.startswith("kubernetes.io/"):
        what = f"no node of the management cluster has a CSI driver {provisioner}, the provisioner of the StorageClass {name}"
        return [Problem(what, "see that its driver runs (kubectl get csinodes); a provisioner that is no CSI driver needs none", certain=False)]
    return []
