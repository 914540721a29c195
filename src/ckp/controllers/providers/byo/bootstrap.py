"""Cluster API's bootstrap data (a cloud-config of the kubeadm bootstrap provider) as the files and commands an agent works with."""

from __future__ import annotations

import base64
import gzip
from dataclasses import dataclass
from typing import Any

import yaml

from ckp.api.host_protocol import JoinFile
from ckp.kits.errors import CkpError

JOIN_CONFIG = "/run/kubeadm/kubeadm-join-config.yaml"
SUCCESS_FILE = "/run/cluster-api/bootstrap-success.complete"
PATCHES = "/etc/kubernetes/ckp-patches"


@dataclass(frozen=True)
class BootstrapData:
    """The parts of the cloud-config that an agent works with."""

    files: tuple[JoinFile, ...]
    pre_commands: tuple[str, ...]
    post_commands: tuple[str, ...]


def parse_cloud_config(text: str, node_name: str) -> BootstrapData:
    """Read the cloud-config that KubeadmConfig v1.7.7 writes for a joining worker, as the host of the name `node_name` is to use it.

    The `kubeadm join` line of `runcmd` is left out: the agent runs kubeadm itself, from the configuration file, and reports how
    it went. What stands before it and after it are the user's own pre- and postKubeadmCommands.

    Raises:
        CkpError: it is not a cloud-config, or lacks the join configuration.
    """
    document = yaml.safe_load(text)
    if not isinstance(document, dict) or "write_files" not in document:
        raise CkpError("the bootstrap data is not a cloud-config with write_files")
    files = tuple(_file(entry, node_name) for entry in document["write_files"] if entry["path"] != SUCCESS_FILE)
    if not any(file.path == JOIN_CONFIG for file in files):
        raise CkpError(f"the bootstrap data has no {JOIN_CONFIG}: hosts can only join as workers")
    before: list[str] = []
    after: list[str] = []
    target = before
    for command in document.get("runcmd") or []:
        line = command if isinstance(command, str) else " ".join(command)
        if "kubeadm join" in line:
            target = after
        else:
            target.append(line)
    return BootstrapData(files, tuple(before), tuple(after))


def _file(entry: dict[str, Any], node_name: str) -> JoinFile:
    content = str(entry.get("content", ""))
    encoding = entry.get("encoding", "")
    if encoding in ("base64", "b64"):
        content = base64.b64decode(content).decode()
    elif encoding in ("gzip+base64", "gz+b64"):
        content = gzip.decompress(base64.b64decode(content)).decode()
    elif encoding:
        raise CkpError(f"{entry['path']} of the bootstrap data has the unknown encoding {encoding}")
    if entry["path"] == JOIN_CONFIG:
        content = _for_host(content, node_name)
    return JoinFile(path=entry["path"], content=content, mode=entry.get("permissions", "0600"))


def _for_host(config: str, node_name: str) -> str:
    """Name the node after its host, and point kubeadm at the folder where the agent writes settings that depend on the host (cgroup driver and the like).

    The name is set whatever the KubeadmConfigTemplate says: the host's identity, its Node and its certificates are found by it, and a name in a template
    (often `{{ ds.meta_data.local_hostname }}`, which cloud-init would fill in) can't be right for more than one host.
    """
    documents = [document for document in yaml.safe_load_all(config) if document]
    for document in documents:
        if document.get("kind") == "JoinConfiguration":
            document.setdefault("patches", {"directory": PATCHES})
            registration = document["nodeRegistration"] = {**(document.get("nodeRegistration") or {}), "name": node_name}
            _drop_argument(registration, "hostname-override")  # kubeadm lets it overrule the name
    return "---\n".join(yaml.safe_dump(document, sort_keys=True) for document in documents)


def _drop_argument(registration: dict[str, Any], name: str) -> None:
    """Remove one of the kubelet's arguments: kubeadm's v1beta3 has an object of them, v1beta4 a list."""
    arguments = registration.get("kubeletExtraArgs")
    if isinstance(arguments, dict):
        registration["kubeletExtraArgs"] = {key: value for key, value in arguments.items() if key != name}
    elif isinstance(arguments, list):
        registration["kubeletExtraArgs"] = [item for item in arguments if item.get("name") != name]
