"""The CustomResourceDefinitions of CKP's kinds, generated: `python -m ckp.api.crds` prints them.

Contract (every CRD): namespaced, named by its lower-case plural and group, labelled with the contract's version.
"""

from __future__ import annotations

import json
from typing import Any

from ckp.api.names import CONTRACT_LABEL, CONTROLPLANE_GROUP, INFRASTRUCTURE_GROUP, V1BETA1

Schema = dict[str, Any]


def _string(description: str = "", **more: Any) -> Schema:
    return {"type": "string", **({"description": description} if description else {}), **more}


def _integer(description: str = "", **more: Any) -> Schema:
    return {"type": "integer", **({"description": description} if description else {}), **more}


def _boolean(description: str = "") -> Schema:
    return {"type": "boolean", **({"description": description} if description else {})}


def _object(properties: dict[str, Schema], *, required: tuple[str, ...] = (), description: str = "", loose: bool = False) -> Schema:
    schema: Schema = {"type": "object", "properties": properties}
    if required:
        schema["required"] = list(required)
    if description:
        schema["description"] = description
    if loose:
        schema["x-kubernetes-preserve-unknown-fields"] = True
    return schema


def _list(items: Schema, **more: Any) -> Schema:
    return {"type": "array", "items": items, **more}


def _strings(description: str = "") -> Schema:
    return {"type": "object", "additionalProperties": {"type": "string"}, **({"description": description} if description else {})}


CONDITIONS = _list(
    _object(
        {
            "type": _string(),
            "status": _string(enum=["True", "False", "Unknown"]),
            "severity": _string(),
            "reason": _string(),
            "message": _string(),
            "lastTransitionTime": _string(format="date-time"),
        },
        required=("type", "status", "lastTransitionTime"),
    ),
    **{"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
)
REFERENCE = _object({key: _string() for key in ("apiVersion", "kind", "namespace", "name", "uid", "fieldPath", "resourceVersion")})
ENDPOINT = _object({"host": _string(), "port": _integer(format="int32")}, description="Where the API server is reached.")
SELECTOR = _object(
    {
        "matchLabels": _strings("Labels that a host must carry, all of them."),
        "matchExpressions": _list(
            _object({"key": _string(), "operator": _string(), "values": _list(_string())}, required=("key", "operator")),
        ),
    },
    description="Which hosts may be claimed.",
)
MACHINE_SPEC = _object(
    {
        "providerID": _string("byoh://<namespace>/<host>/<machine>, once the host has joined."),
        "selector": SELECTOR,
        "minimum": _object(
            {"cpus": _integer("Processors.", minimum=0), "memoryBytes": _integer(format="int64", minimum=0)}, description="The least that a host must have."
        ),
        "installerRef": REFERENCE,
    }
)
TEMPLATE_META = _object({"labels": _strings(), "annotations": _strings()})

BYO_HOST_SPEC = _object(
    {
        "machineRef": {**REFERENCE, "description": "The ByoMachine that holds this host; absent: it is free."},
        "cordoned": _boolean("Not to be claimed."),
        "taints": _list(_string(), description="key=value:effect, for nodes of this host."),
        "drain": _string("When a person asked for its node to be drained; empty: it is to take pods."),
        "agentVersion": _string("The version of the package ckp-agent that is to run on it; empty: whichever it has."),
        "agentConfirmSeconds": _integer("How long that version has to report before the host returns to the old one; 0: three minutes.", minimum=0),
        "revokedSerial": _string("The certificate with this serial may not be used any more, even while it is the host's newest."),
        "bootstrapSecret": REFERENCE,
        "installationSecret": REFERENCE,
        "uninstallationScript": _string(),
    }
)
BYO_HOST_STATUS = _object(
    {
        "agent": _object(
            {
                "connected": _boolean(),
                "hub": _string("The replica of the hub that holds its connection, by its Lease in ckp-hosts; absent: none does."),
                "lastSeen": _string("When it was last heard of; while it is connected, up to five minutes old.", format="date-time"),
                "version": _string(),
                "address": _string(),
                "certificateSerial": _string("Of the client certificate that is valid now, in hex."),
                "enrolledSerial": _string("Of the certificate that its last enrolment brought: an enrolment's ticket makes it valid once."),
                "nextCertificateSerial": _string("Of a renewed one that the host was given and has not used yet."),
                "bootIDs": _list(_string(), description="The last boots that connected with the certificate bootIDsOf, oldest first."),
                "bootIDsOf": _string(),
            },
            loose=True,
        ),
        "facts": _object({}, description="What the host says about itself.", loose=True),
        "hostinfo": _object({"osname": _string(), "osimage": _string(), "architecture": _string()}),
        "network": _list(
            _object(
                {
                    "connected": _boolean(),
                    "ipAddrs": _list(_string()),
                    "isDefault": _boolean(),
                    "macAddr": _string(),
                    "networkInterfaceName": _string(),
                }
            )
        ),
        "machineRef": REFERENCE,
        "drainedFor": _string("The request (spec.drain) that its node was, or is being, drained for."),
        "nodeMarks": _object(
            {"machine": _string(), "labels": _strings(), "taints": _list(_string()), "settled": _boolean()},
            description="The labels and taints that its node got from it; not settled: may have got.",
        ),
        "flaps": _object({"count": _integer(), "last": _string(format="date-time")}, description="How often the connection was lost lately, and when last."),
        "observed": _object({}, description="What the agent reports: generation, phase, reason, message.", loose=True),
        "journal": _list(_object({}, loose=True)),
        "conditions": CONDITIONS,
    },
    loose=True,
)
CONTROL_PLANE_SPEC = _object(
    {
        "version": _string("A release of the catalog, such as v1.35.1.", pattern=r"^v\d+\.\d+\.\d+$"),
        "replicas": _integer("Of the API server, controller-manager and scheduler.", format="int32", minimum=1, default=1),
        "controlPlaneEndpoint": ENDPOINT,
        "loadBalancer": _object({"address": _string("The address to ask the load balancer for; empty: any.")}),
        "etcd": _object(
            {
                "replicas": _integer(enum=[1, 3, 5], default=1),
                "size": _string("Of each member's volume.", default="2Gi"),
                "storageClass": _string("Empty: the default class."),
            }
        ),
        "addons": _object({"cni": _string(enum=["cilium", "none"], default="cilium"), "cniVersion": _string()}),
    },
    required=("version",),
)
STEP = _object(
    {
        "number": _integer(),
        "phase": _string(),
        "name": _string(),
        "title": _string(),
        "state": _string(enum=["Pending", "Running", "Done", "Skipped", "Failed"]),
        "startedAt": _string(format="date-time"),
        "finishedAt": _string(format="date-time"),
        "message": _string(),
    },
    required=("number", "phase", "name", "title", "state"),
)
CONTROL_PLANE_STATUS = _object(
    {
        "initialized": _boolean("The API server has answered once (contract)."),
        "ready": _boolean("The API server answers (contract)."),
        "externalManagedControlPlane": _boolean("There are no control plane Machines (contract)."),
        "version": _string(),
        "replicas": _integer(format="int32"),
        "readyReplicas": _integer(format="int32"),
        "updatedReplicas": _integer(format="int32"),
        "unavailableReplicas": _integer(format="int32"),
        "selector": _string(),
        "failureReason": _string(),
        "failureMessage": _string(),
        "addons": _list(_object({"name": _string(), "version": _string(), "state": _string(), "message": _string()})),
        "steps": _list(STEP),
        "conditions": CONDITIONS,
    }
)


def _crd(
    group: str, kind: str, plural: str, spec: Schema, status: Schema | None, *, columns: list[tuple[str, str, str]], scale: bool = False
) -> dict[str, Any]:
    schema = _object(
        {"apiVersion": _string(), "kind": _string(), "metadata": {"type": "object"}, "spec": spec, **({"status": status} if status else {})},
    )
    subresources: dict[str, Any] = {"status": {}} if status else {}
    if scale:
        subresources["scale"] = {"specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas", "labelSelectorPath": ".status.selector"}
    printed = [{"name": name, "type": type_, "jsonPath": path} for name, type_, path in columns]
    printed.append({"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"})
    version = {
        "name": V1BETA1,
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": schema},
        "subresources": subresources,
        "additionalPrinterColumns": printed,
    }
    labels = {**CONTRACT_LABEL, "cluster.x-k8s.io/provider": "infrastructure-byoh" if group == INFRASTRUCTURE_GROUP else "control-plane-ckp"}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{group}", "labels": labels},
        "spec": {
            "group": group,
            "scope": "Namespaced",
            "names": {"kind": kind, "listKind": f"{kind}List", "plural": plural, "singular": kind.lower(), "categories": ["cluster-api"]},
            "versions": [version],
        },
    }


def _template(spec: Schema) -> Schema:
    return _object({"template": _object({"metadata": TEMPLATE_META, "spec": spec}, required=("spec",))}, required=("template",))


def all_crds() -> list[dict[str, Any]]:
    """Every CRD, in a fixed order."""
    infra, control = INFRASTRUCTURE_GROUP, CONTROLPLANE_GROUP
    ready = [("Ready", "boolean", ".status.ready")]
    simple_status = _object({"ready": _boolean(), "failureDomains": _object({}, loose=True), "conditions": CONDITIONS})
    cluster_spec = _object({"controlPlaneEndpoint": ENDPOINT, "bundleLookupBaseRegistry": _string(), "bundleLookupTag": _string()})
    machine_status = _object(
        {
            "ready": _boolean(),
            "hostRef": _object({"name": _string()}),
            "hostinfo": _object({"osname": _string(), "osimage": _string(), "architecture": _string()}),
            "addresses": _list(_object({"type": _string(), "address": _string()})),
            "failureReason": _string("Set when it can't become good again and must be replaced (contract: terminal)."),
            "failureMessage": _string("What happened, for people."),
            "conditions": CONDITIONS,
        }
    )
    installer_spec = _object({"bundleRepo": _string(), "bundleType": _string()})
    installer_status = _object({"ready": _boolean(), "installationSecret": REFERENCE, "conditions": CONDITIONS})
    host_columns = [
        ("Connected", "boolean", ".status.agent.connected"),
        ("Phase", "string", ".status.observed.phase"),
        ("Machine", "string", ".spec.machineRef.name"),
        ("OS", "string", ".status.hostinfo.osimage"),
    ]
    machine_columns = [*ready, ("Host", "string", ".status.hostRef.name"), ("ProviderID", "string", ".spec.providerID")]
    plane_columns = [
        ("Version", "string", ".spec.version"),
        ("Initialized", "boolean", ".status.initialized"),
        *ready,
        ("Endpoint", "string", ".spec.controlPlaneEndpoint.host"),
    ]
    return [
        _crd(infra, "ByoHost", "byohosts", BYO_HOST_SPEC, BYO_HOST_STATUS, columns=host_columns),
        _crd(infra, "ByoCluster", "byoclusters", cluster_spec, simple_status, columns=ready),
        _crd(infra, "ByoClusterTemplate", "byoclustertemplates", _template(cluster_spec), None, columns=[]),
        _crd(infra, "ByoMachine", "byomachines", MACHINE_SPEC, machine_status, columns=machine_columns),
        _crd(infra, "ByoMachineTemplate", "byomachinetemplates", _template(MACHINE_SPEC), None, columns=[]),
        _crd(infra, "K8sInstallerConfig", "k8sinstallerconfigs", installer_spec, installer_status, columns=ready),
        _crd(infra, "K8sInstallerConfigTemplate", "k8sinstallerconfigtemplates", _template(installer_spec), None, columns=[]),
        _crd(control, "ManagedControlPlane", "managedcontrolplanes", CONTROL_PLANE_SPEC, CONTROL_PLANE_STATUS, columns=plane_columns, scale=True),
        _crd(control, "ManagedControlPlaneTemplate", "managedcontrolplanetemplates", _template(CONTROL_PLANE_SPEC), None, columns=[]),
    ]


if __name__ == "__main__":
    print(json.dumps({"apiVersion": "v1", "kind": "List", "items": all_crds()}, indent=1))
