"""The Cluster API objects of one cluster. Pure: from a checked request to the objects, in the order in which they are applied."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from typing import Any

from ckp.api import kinds, names
from ckp.api.compass.clusters import ClusterRequest, Timeouts
from ckp.api.kinds import Kind
from ckp.api.names import workers_name
from ckp.clients.kube import Obj
from ckp.kits.clock import exact_duration

REQUEST_ANNOTATION = f"{names.CKP}/request-digest"
"""On the Cluster: which request made it, so that the same request again completes an interrupted creation, and another one is refused."""
PATCHES_DIRECTORY = "/etc/kubernetes/ckp-patches"
SERVICE_DOMAIN = "cluster.local"
UNHEALTHY_STATUSES = ("Unknown", "False")
_OWNED = (kinds.BYO_MACHINE_TEMPLATE, kinds.KUBEADM_CONFIG_TEMPLATE, kinds.MACHINE_HEALTH_CHECK, kinds.BYO_REMEDIATION_TEMPLATE)
MACHINE_TIMEOUTS = {"drain": "nodeDrainTimeout", "volume_detach": "nodeVolumeDetachTimeout", "node_deletion": "nodeDeletionTimeout"}
"""Fields of a Machine's spec. Cluster API v1.7.7 brings a change of them to the Machines that are there, without a rollout."""


def request_digest(request: ClusterRequest, cni_version: str) -> str:
    """A fingerprint of a request, with the version of the CNI that the catalog added to it. Compared across versions of Compass: its field names stay."""
    fields = request.model_dump(exclude={"control_plane", "timeouts", "cert_sans"})
    fields |= {"control_plane_replicas": request.control_plane.replicas, "cni_version": cni_version}
    # Only those that differ from their defaults: a request without them is the same one as before there were any.
    if timeouts := request.timeouts.model_dump(exclude_defaults=True):
        fields["timeouts"] = timeouts
    if request.cert_sans:
        fields["cert_sans"] = request.cert_sans
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:32]


def machine_timeouts(timeouts: Timeouts, fields: Collection[str]) -> dict[str, Any]:
    """Those of these fields that belong into a Machine's spec."""
    return {target: exact_duration(getattr(timeouts, field)) for field, target in MACHINE_TIMEOUTS.items() if field in fields}


def health_check_timeouts(timeouts: Timeouts, fields: Collection[str]) -> dict[str, Any]:
    """Those of these fields that belong into a MachineHealthCheck's spec."""
    spec: dict[str, Any] = {}
    if "node_unhealthy" in fields:
        timeout = exact_duration(timeouts.node_unhealthy)
        spec["unhealthyConditions"] = [{"type": "Ready", "status": status, "timeout": timeout} for status in UNHEALTHY_STATUSES]
    if "node_startup" in fields:
        spec["nodeStartupTimeout"] = exact_duration(timeouts.node_startup)
    return spec


def infrastructure_timeouts(timeouts: Timeouts, fields: Collection[str]) -> dict[str, Any]:
    """Those of these fields that belong into a ByoCluster's spec."""
    return {"imageFetchTimeout": exact_duration(timeouts.image_fetch)} if "image_fetch" in fields else {}


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
        if cluster_uid and kind in _OWNED:
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
                **({"certSANs": spec.cert_sans} if spec.cert_sans else {}),
                "addons": {"cni": spec.cni, **({"cniVersion": cni_version} if cni_version else {})},
            },
        ),
        make(kinds.BYO_CLUSTER, spec.name, infrastructure_timeouts(spec.timeouts, Timeouts.model_fields)),
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
        make(kinds.BYO_REMEDIATION_TEMPLATE, workers, {"template": {"spec": {}}}),
        make(
            kinds.MACHINE_HEALTH_CHECK,
            workers,
            {
                "clusterName": spec.name,
                "selector": {"matchLabels": selector},
                **health_check_timeouts(spec.timeouts, Timeouts.model_fields),
                # It only reports: how many are replaced, and when, is for the controllers to decide (rules/remediation.py).
                "maxUnhealthy": "100%",
                "remediationTemplate": _ref(kinds.BYO_REMEDIATION_TEMPLATE, workers, namespace),
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
                        **machine_timeouts(spec.timeouts, Timeouts.model_fields),
                        "bootstrap": {"configRef": _ref(kinds.KUBEADM_CONFIG_TEMPLATE, workers, namespace)},
                        "infrastructureRef": _ref(kinds.BYO_MACHINE_TEMPLATE, workers, namespace),
                    },
                },
            },
        ),
    ]


def _ref(kind: Kind, name: str, namespace: str) -> dict[str, str]:
    return {"apiVersion": kind.api_version, "kind": kind.kind, "name": name, "namespace": namespace}
