"""What the pods that CKP runs have in common: unprivileged, without a token, with read-only files."""

from __future__ import annotations

from typing import Literal

from ckp.clients.kube import Obj

NONROOT = 65532
READABLE_BY_GROUP = 0o440


def hardened(user: int = NONROOT) -> Obj:
    """A container's security context: nothing that these programs do not need."""
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
        "runAsUser": user,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def pod_security() -> Obj:
    """A pod's security context; the group lets it read its mounted secrets."""
    return {"fsGroup": NONROOT, "runAsGroup": NONROOT, "runAsUser": NONROOT, "runAsNonRoot": True}


def pod_spec(containers: list[Obj], volumes: list[Obj], **more: object) -> Obj:
    """A pod that gets no token for the management cluster's API, and no environment from its Services."""
    return {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": pod_security(),
        "containers": containers,
        "volumes": volumes,
        **more,
    }


def spread(selector: dict[str, str], replicas: int, *, each_version: str = "") -> Obj:
    """Pods of one component on as many nodes as there are, but all of them somewhere; nothing for a single one.

    Args:
        each_version: a label; pods that differ in it are counted apart, as those of two versions are during a rollout.
    """
    if replicas == 1:
        return {}
    constraint: Obj = {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": selector},
    }
    if each_version:
        constraint["matchLabelKeys"] = [each_version]
    return {"topologySpreadConstraints": [constraint]}


def mount(name: str, path: str, *, writable: bool = False) -> Obj:
    """A container's mount of a volume."""
    return {"name": name, "mountPath": path, **({} if writable else {"readOnly": True})}


def empty_volume(name: str) -> Obj:
    """A writable folder that goes with the pod."""
    return {"name": name, "emptyDir": {}}


def config_volume(name: str, config_map: str) -> Obj:
    """The keys of a ConfigMap as files."""
    return {"name": name, "configMap": {"name": config_map}}


def secret_volume(name: str, secret: str) -> Obj:
    """The keys of a Secret as files, readable by the pod's group only."""
    return {"name": name, "secret": {"secretName": secret, "defaultMode": READABLE_BY_GROUP}}


def pki_volume(name: str, *files: tuple[str, str, str]) -> Obj:
    """A volume of certificate files from several Secrets, readable by the pod's group only.

    Args:
        files: (Secret, its key, file name). A CA is always taken from its own Secret: what cert-manager puts into a leaf's `ca.crt` may be
            the root, and a program that trusts the root trusts every cluster's certificates.
    """
    secrets: dict[str, list[Obj]] = {}
    for secret, key, file in files:
        secrets.setdefault(secret, []).append({"key": key, "path": file})
    sources = [{"secret": {"name": secret, "items": items}} for secret, items in secrets.items()]
    return {"name": name, "projected": {"defaultMode": READABLE_BY_GROUP, "sources": sources}}


def rolled_out(workload: Obj | None, replicas: int) -> bool:
    """Whether all replicas of a Deployment or StatefulSet, and no others, are of what its manifest says now, and ready (as `kubectl rollout status` judges).

    Args:
        replicas: how many there should be; a workload that was stopped is not rolled out.
    """
    if workload is None or int((workload.get("spec") or {}).get("replicas") or 0) != replicas:
        return False
    if int((workload.get("status") or {}).get("observedGeneration") or 0) < int(workload["metadata"].get("generation") or 0):
        return False
    return all(replicas_of(workload, state) == replicas for state in ("replicas", "updatedReplicas", "readyReplicas"))


def image_of(workload: Obj | None, container: str) -> str:
    """The image of one of its containers; "" if there is none."""
    containers = workload["spec"]["template"]["spec"]["containers"] if workload else []
    return next((str(item["image"]) for item in containers if item["name"] == container), "")


def replicas_of(workload: Obj | None, state: Literal["replicas", "readyReplicas", "availableReplicas", "updatedReplicas"]) -> int:
    """How many replicas of a Deployment or StatefulSet are in this state, by its status; 0 where there is none, or 0 is left out (omitempty)."""
    return int(((workload or {}).get("status") or {}).get(state) or 0)
