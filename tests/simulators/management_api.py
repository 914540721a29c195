"""A management cluster's API: the objects in it, and as much of kubectl as is used on them.

The pods of a Deployment follow its template when its rollout is waited for, not before: until then they know the releases that they have read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ckp import __version__
from ckp.api.kinds import DEPLOYMENT, MACHINE, MACHINE_DEPLOYMENT, MACHINE_SET, MANAGED_CONTROL_PLANE, Kind
from ckp.site.members import CONTROL_PLANE_LABEL
from ckp.site.publish import CONFIG, DIGEST_ANNOTATION, NAMESPACE, OFFERED
from tests.simulators.site_host import Said

Obj = dict[str, Any]
USERS: tuple[Kind, ...] = (MANAGED_CONTROL_PLANE, MACHINE_DEPLOYMENT, MACHINE_SET, MACHINE)
"""Kinds whose objects use a release."""
CLUSTER_KINDS = {f"{kind.plural}.{kind.group}": kind.kind for kind in USERS} | {
    "byohosts.infrastructure.cluster.x-k8s.io": "ByoHost",
    "certificates.cert-manager.io": "Certificate",
}
"""Their definitions come with the management layer."""
PLURALS = {
    "deployment": "Deployment",
    "deployments": "Deployment",
    "deployments.apps": "Deployment",
    "configmaps": "ConfigMap",
    "configmap": "ConfigMap",
    "services": "Service",
    "secret": "Secret",
    "namespace": "Namespace",
    "namespaces": "Namespace",
    "nodes": "Node",
    "pods": "Pod",
    "customresourcedefinitions": "CustomResourceDefinition",
    "customresourcedefinitions.apiextensions.k8s.io": "CustomResourceDefinition",
    "clusters.cluster.x-k8s.io": "Cluster",
    "storageclasses": "StorageClass",
    "csinodes": "CSINode",
    "persistentvolumes": "PersistentVolume",
    "ciliumloadbalancerippools.cilium.io": "CiliumLoadBalancerIPPool",
    **CLUSTER_KINDS,
}


@dataclass
class SimulatedApi:
    """The objects of a cluster: by kind, namespace and name."""

    objects: dict[tuple[str, str, str], Obj] = field(default_factory=dict)
    read: dict[str, str] = field(default_factory=dict)
    """What the pods of CKP's Deployments that read the table of releases have read of it, by the Deployment's name."""
    answers: bool = True
    on_rollout: Callable[[], object] = lambda: None
    """Called as soon as pods know the table that they are to know."""

    # -- for tests

    def start(self, uid: str) -> None:
        """A cluster with nothing of CKP in it."""
        self.objects = {("Namespace", "", "kube-system"): {"kind": "Namespace", "metadata": {"name": "kube-system", "uid": uid}}}
        self.read = {}

    def add(self, kind: str, namespace: str, name: str, **rest: Any) -> None:
        """An object as something else than applying makes it."""
        metadata = {"name": name, "namespace": namespace, **rest.pop("metadata", {})}
        self.objects[kind, namespace, name] = {"kind": kind, "metadata": metadata, **rest}

    def join(self, name: str, address: str, *, ready: bool = True) -> None:
        """A host with the control plane."""
        conditions = [{"type": "Ready", "status": "True" if ready else "Unknown"}]
        self.add(
            "Node",
            "",
            name,
            metadata={"labels": {CONTROL_PLANE_LABEL: ""}},
            status={"conditions": conditions, "addresses": [{"type": "InternalIP", "address": address}]},
        )

    def forget(self, *kinds: Kind) -> None:
        """All objects of these kinds are deleted."""
        gone = {kind.kind for kind in kinds}
        self.objects = {key: each for key, each in self.objects.items() if key[0] not in gone}

    @property
    def config(self) -> Obj | None:
        """The ConfigMap with the releases; None before the management layer is there."""
        return self.objects.get(("ConfigMap", NAMESPACE, CONFIG))

    # -- kubectl

    def kubectl(self, words: Sequence[str], stdin: str | None = None) -> Said:
        """What kubectl answers to these arguments."""
        if not self.answers:
            return 1, "", "the connection to the server was refused"
        operands, flags = _parsed(words)
        match operands:
            case ["apply" | "create"]:
                assert stdin is not None
                found = json.loads(stdin)
                if found["kind"] == "SelfSubjectAccessReview":
                    return 0, json.dumps({"status": {"allowed": True}}), ""
                for each in found["items"] if found["kind"] == "List" else [found]:
                    self._apply(each)
                return 0, "", ""
            case ["version"]:
                return 0, json.dumps({"serverVersion": {"gitVersion": "v1.33.4"}}), ""
            case ["delete", kind]:
                name, _, value = flags["selector"].partition("=")
                self.objects = {key: each for key, each in self.objects.items() if key[0] != kind or not _has(each, name, value)}
                return 0, "", ""
            case ["delete", "secret", name]:
                self.objects.pop(("Secret", flags["namespace"], name), None)
                return 0, "", ""
            case ["wait", *_]:
                return 0, "", ""
            case ["api-resources"] if "verbs" in flags:
                plurals = {kind: plural for plural, kind in PLURALS.items()}
                return 0, "".join(f"{plurals.get(kind, kind)}\n" for kind in dict.fromkeys(kind for kind, _, _ in self.objects)), ""
            case ["api-resources"]:
                return 0, "".join(f"{plural}\n" for plural in PLURALS if "." in plural and (self.config or plural not in CLUSTER_KINDS)), ""
            case ["get", "customresourcedefinitions", *names] if names:
                known = CLUSTER_KINDS if self.config else {}
                return 0, "".join(f"customresourcedefinition.apiextensions.k8s.io/{name}\n" for name in names if name in known), ""
            case ["get", kinds, *named]:
                return self._get(kinds, named, flags)
            case ["exec", *rest] if "ckp.__version__" in rest[-1]:
                return 0, f"{__version__}\n", ""
            case ["patch", "deployment", name]:
                annotations = json.loads(flags["patch"])["spec"]["template"]["metadata"]["annotations"]
                self.objects["Deployment", flags["namespace"], name]["spec"]["template"]["metadata"]["annotations"] |= annotations
                return 0, "", ""
            case ["rollout", "status", name]:
                self._rolled_out(name.removeprefix("deployment/"))
                self.on_rollout()
                return 0, "", ""
        raise AssertionError(f"kubectl {words} is not simulated")

    def _apply(self, each: Obj) -> None:
        kind, meta = each["kind"], each["metadata"]
        namespace, name = meta.get("namespace", ""), meta["name"]
        self.objects[kind, namespace, name] = each
        if kind == "Certificate":  # as cert-manager does
            self.add("Secret", namespace, each["spec"]["secretName"], data={"ca.crt": "Y2E="})
        if kind == DEPLOYMENT.kind and name not in self.read and _reads(each):  # its first pods
            self._rolled_out(name)

    def _rolled_out(self, name: str) -> None:
        assert self.config is not None
        self.read[name] = self.config["data"][OFFERED]

    def _get(self, kinds: str, named: list[str], flags: dict[str, str]) -> Said:
        wanted = {PLURALS.get(kind, kind) for kind in kinds.split(",")}
        namespace = flags.get("namespace")
        assert namespace is None or "all-namespaces" not in flags
        found = [each for (kind, place, _), each in self.objects.items() if kind in wanted and namespace in (None, place)]
        output = flags.get("output", "")
        if selector := flags.get("selector", "").partition("="):
            found = [each for each in found if _has(each, selector[0], selector[2])]
        if named:
            found = [each for each in found if each["metadata"]["name"] == named[0]]
            if not found:
                return (0, "", "") if "ignore-not-found" in flags else (1, "", "not found")
            if output.startswith("jsonpath={.metadata.uid}"):
                return 0, found[0]["metadata"]["uid"], ""
            if output.startswith("jsonpath={.data."):
                return 0, found[0]["data"][output.removeprefix("jsonpath={.data.").removesuffix("}").replace("\\.", ".")], ""
            return 0, json.dumps(found[0]), ""
        if output == "json":
            return 0, json.dumps({"items": found}), ""
        if output == "name":
            return 0, "".join(f"{each['kind']}/{each['metadata']['name']}\n" for each in found), ""
        columns = [column.partition(":")[2] for column in output.removeprefix("custom-columns=").split(",")]
        return 0, "".join("   ".join(_column(each, column) for column in columns) + "\n" for each in found), ""


def _parsed(words: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Operands, and options by their long names."""
    operands, flags, rest = list[str](), dict[str, str](), iter(words)
    for word in rest:
        if word == "-o":
            flags["output"] = next(rest)
        elif word == "-f":
            assert next(rest) == "-"
        elif word.startswith("--"):
            flags |= _one(word)
        else:
            operands.append(word)
    return operands, flags


def _one(word: str) -> dict[str, str]:
    name, _, value = word.removeprefix("--").partition("=")
    return {name: value}


def _has(each: Obj, label: str, value: str) -> bool:
    """Whether an object has a label, with this value if one is given."""
    labels = each["metadata"].get("labels") or {}
    return not label or (label in labels and value in ("", labels[label]))


def _reads(deployment: Obj) -> bool:
    """Whether its pods read the table of releases."""
    annotations = (deployment["spec"]["template"].get("metadata") or {}).get("annotations") or {}
    return DIGEST_ANNOTATION in annotations


def _column(found: Any, path: str) -> str:
    """As kubectl prints a field in a column; of a list, all values with commas between."""
    for step in re.split(r"(?<!\\)\.", path.removeprefix(".")):
        name = step.replace("\\.", ".")
        if name.endswith("[*]"):
            found = list((found or {}).get(name[:-3]) or [])
        elif isinstance(found, list):
            found = [each[name] for each in found if name in each]
        else:
            found = (found or {}).get(name)
    return ",".join(found) if isinstance(found, list) and found else str(found) if found else "<none>"
