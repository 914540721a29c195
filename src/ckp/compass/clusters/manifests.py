"""The Cluster API objects of one cluster. Pure: from a checked request to the objects, in the order in which they are applied."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from ckp.api import kinds, names
from ckp.api.compass.clusters import ClusterRequest
from ckp.api.kinds import Kind
from ckp.clients.kube import Obj
from ckp.rules.remediation import max_unhealthy

REQUEST_ANNOTATION = f"{names.CKP}/request-digest"
"""On the Cluster: which request made it, so that the same request again completes an interrupted creation, and another one is refused."""
PATCHES_DIRECTORY = "/etc/kubernetes/ckp-patches"
SERVICE_DOMAIN = "cluster.local"
UNHEALTHY_AFTER = "300s"


def request_digest(request: ClusterRequest, cni_version: str) -> str:
    """A fingerprint of a request, with the version of the CNI that the catalog added to it. Compared across versions of Compass: its field names stay."""
    fields = request.model_dump(exclude={"control_plane"}) | {"control_plane_replicas": request.control_plane.replicas, "cni_version": cni_version}
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:32]


def workers_name(cluster: str) -> str:
    """The name of a cluster's MachineDeployment and of the two templates that it uses."""
    return f"{cluster}-workers"


def cluster_objects(spec: ClusterRequest, cni_version: str, *, namespace: str, labels: dict[str, str], requested_at: str, cluster_uid: str = "") -> list[Obj]:
    """All objects of a cluster: Cluster first, because it holds the name; MachineDeployment last, because it starts claiming hosts.

    Contract: controllers of Cluster API set the owner references and wait for the referenced objects, so the order is only ours. The two
    templates and the health check get theirs only when they are reconciled, so a cluster deleted early would leave them: given the Cluster's
    uid, they carry from the start the very (non-controller) reference that Cluster API would add.
    """
    workers = workers_name(spec.name)
    labels = {**labels, names.CLUSTER_NAME_LABEL: spec.name}
    selector = {names.CLUSTER_NAME_LABEL: spec.name, names.DEPLOYMENT_NAME_LABEL: workers}

    def make(kind: Kind, name: str, body: dict[str, Any], annotations: dict[str, str] | None = None) -> Obj:
        metadata: dict[str, Any] = {"name": name, "namespace": namespace, "labels": labels}
        if annotations:
            metadata["annotations"] = annotations
        if cluster_uid and kind in (kinds.BYO_MACHINE_TEMPLATE, kinds.KUBEADM_CONFIG_TEMPLATE, kinds.MACHINE_HEALTH_CHECK):
            owner = {"apiVersion": kinds.CLUSTER.api_version, "kind": "Cluster", "name": spec.name, "uid": cluster_uid}
            metadata["ownerReferences"] = [owner]
        return {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": metadata, "spec": body}

    return [
        make(
            kinds.CLUSTER,
            spec.name,
            {
                "clusterNetwork": {
                    "pods": {"cidrBlocks": [spec.pod_cidr]},
                    "services": {"cidrBlocks": [spec.service_cidr]},
                    "serviceDomain": SERVICE_DOMAIN,
                },
                "controlPlaneRef": _ref(kinds.MANAGED_CONTROL_PLANE, spec.name, namespace),
                "infrastructureRef": _ref(kinds.BYO_CLUSTER, spec.name, namespace),
            },
            {names.REQUESTED_AT_ANNOTATION: requested_at, REQUEST_ANNOTATION: request_digest(spec, cni_version)},
        ),
        make(
            kinds.MANAGED_CONTROL_PLANE,
            spec.name,
            {
                "version": spec.version,
                "replicas": spec.control_plane.replicas,
                "loadBalancer": {"address": spec.address} if spec.address else {},
                "etcd": {"replicas": 1, "size": "2Gi"},
                "addons": {"cni": spec.cni, **({"cniVersion": cni_version} if cni_version else {})},
            },
        ),
        make(kinds.BYO_CLUSTER, spec.name, {}),
        make(
            kinds.BYO_MACHINE_TEMPLATE,
            workers,
            {"template": {"spec": {"selector": {"matchLabels": {names.group_label(spec.host_group): ""}}}}},
        ),
        make(
            kinds.KUBEADM_CONFIG_TEMPLATE,
            workers,
            {
                "template": {
                    "spec": {
                        "joinConfiguration": {
                            "nodeRegistration": {"kubeletExtraArgs": {}},
                            "patches": {"directory": PATCHES_DIRECTORY},
                        }
                    }
                }
            },
        ),
        make(
            kinds.MACHINE_HEALTH_CHECK,
            workers,
            {
                "clusterName": spec.name,
                "selector": {"matchLabels": selector},
                # A node that is not Ready, or unknown, for this long is replaced by another host of the group.
                "unhealthyConditions": [{"type": "Ready", "status": status, "timeout": UNHEALTHY_AFTER} for status in ("Unknown", "False")],
                "maxUnhealthy": max_unhealthy(spec.workers),
                "nodeStartupTimeout": "30m",
            },
        ),
        make(
            kinds.MACHINE_DEPLOYMENT,
            workers,
            {
                "clusterName": spec.name,
                "replicas": spec.workers,
                "selector": {"matchLabels": selector},
                # No spare host is needed for a rollout: one worker leaves before its successor comes.
                "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}},
                "template": {
                    "metadata": {"labels": selector},
                    "spec": {
                        "clusterName": spec.name,
                        "version": spec.version,
                        "nodeDrainTimeout": "60s",
                        # An API server that is down for a moment must not leave a Node behind (Cluster API's default: 10 s).
                        "nodeDeletionTimeout": "120s",
                        "bootstrap": {"configRef": _ref(kinds.KUBEADM_CONFIG_TEMPLATE, workers, namespace)},
                        "infrastructureRef": _ref(kinds.BYO_MACHINE_TEMPLATE, workers, namespace),
                    },
                },
            },
        ),
    ]


def _ref(kind: Kind, name: str, namespace: str) -> dict[str, str]:
    return {"apiVersion": kind.api_version, "kind": kind.kind, "name": name, "namespace": namespace}
