"""One object of every built-in kind that an API server stores, and all that it has stored: by its API, and as it lies in etcd."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from ckp.kits.retry import wait_until
from tests.support.control_plane import TestControlPlane

Obj = dict[str, Any]
NAMESPACE = "soak"
LABELS = {"app": "web"}
POD: Obj = {
    "metadata": {"labels": LABELS},
    "spec": {"containers": [{"name": "c", "image": "r.example/c:1", "resources": {"requests": {"cpu": "10m"}}}], "terminationGracePeriodSeconds": 5},
}
SELECTED: Obj = {"selector": {"matchLabels": LABELS}, "template": POD}
HOOK: Obj = {"name": "h.soak.example", "clientConfig": {"url": "https://127.0.0.1:1/"}, "sideEffects": "None", "admissionReviewVersions": ["v1"]}
NOTHING: Obj = {"resourceRules": [{"apiGroups": ["none.example"], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["nothings"]}]}
RULE: Obj = {"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}
SUBJECT: Obj = {"kind": "User", "name": "u", "apiGroup": "rbac.authorization.k8s.io"}
REF: Obj = {"apiVersion": "v1", "kind": "Pod", "name": "p", "namespace": NAMESPACE}
DEVICES: Obj = {"devices": {"requests": [{"name": "d", "exactly": {"deviceClassName": "c"}}]}}
CSR_USAGES = ["digital signature", "client auth"]


SPECS: dict[str, Obj] = {
    "Namespace": {},
    "ConfigMap": {"data": {"key": "value"}, "immutable": False},
    "Secret": {"stringData": {"key": "value"}, "type": "Opaque"},
    "ServiceAccount": {"automountServiceAccountToken": False},
    "Service": {"spec": {"selector": LABELS, "ports": [{"name": "http", "port": 80}], "trafficDistribution": "PreferClose"}},
    "Endpoints": {"subsets": [{"addresses": [{"ip": "192.0.2.1"}], "ports": [{"port": 80}]}]},
    "PersistentVolume": {
        "spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "csi": {"driver": "d.example", "volumeHandle": "h"}},
    },
    "PersistentVolumeClaim": {"spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}},
    "Pod": POD,
    "PodTemplate": {"template": POD},
    "ReplicationController": {"spec": {"replicas": 0, "selector": LABELS, "template": POD}},
    "ResourceQuota": {"spec": {"hard": {"pods": "1k"}}},
    "LimitRange": {"spec": {"limits": [{"type": "Container", "default": {"memory": "64Mi"}}]}},
    "Node": {"spec": {"taints": [{"key": "k", "effect": "NoSchedule"}]}},
    "Deployment": {"spec": {**SELECTED, "replicas": 1, "minReadySeconds": 3}},
    "ReplicaSet": {"spec": {**SELECTED, "replicas": 0}},
    "StatefulSet": {"spec": {**SELECTED, "replicas": 1, "serviceName": "web", "ordinals": {"start": 2}}},
    "DaemonSet": {"spec": SELECTED},
    "ControllerRevision": {"revision": 1, "data": {"a": 1}},
    "Job": {"spec": {"template": {**POD, "spec": {**POD["spec"], "restartPolicy": "Never"}}, "completions": 2, "podReplacementPolicy": "Failed"}},
    "CronJob": {
        "spec": {
            "schedule": "@daily",
            "timeZone": "Etc/UTC",
            "jobTemplate": {"spec": {"template": {**POD, "spec": {**POD["spec"], "restartPolicy": "Never"}}}},
        }
    },
    "HorizontalPodAutoscaler": {
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"},
            "maxReplicas": 3,
            "behavior": {"scaleDown": {"selectPolicy": "Min"}},
        }
    },
    "PodDisruptionBudget": {"spec": {"selector": {"matchLabels": LABELS}, "maxUnavailable": 1, "unhealthyPodEvictionPolicy": "AlwaysAllow"}},
    "Ingress": {"spec": {"defaultBackend": {"service": {"name": "web", "port": {"number": 80}}}}},
    "IngressClass": {"spec": {"controller": "soak.example/c"}},
    "NetworkPolicy": {"spec": {"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{"ports": [{"port": 80, "endPort": 90}]}]}},
    "IPAddress": {"spec": {"parentRef": {"resource": "services", "name": "web", "namespace": NAMESPACE}}},
    "ServiceCIDR": {"spec": {"cidrs": ["10.222.0.0/24"]}},
    "Role": {"rules": [RULE]},
    "RoleBinding": {"roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "r"}, "subjects": [SUBJECT]},
    "ClusterRole": {"rules": [RULE]},
    "ClusterRoleBinding": {"roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "r"}, "subjects": [SUBJECT]},
    "StorageClass": {"provisioner": "d.example", "volumeBindingMode": "WaitForFirstConsumer"},
    "CSIDriver": {"spec": {"attachRequired": False}},
    "CSINode": {"spec": {"drivers": [{"name": "d.example", "nodeID": "n"}]}},
    "CSIStorageCapacity": {"storageClassName": "s", "capacity": "1Gi"},
    "VolumeAttachment": {"spec": {"attacher": "d.example", "nodeName": "n", "source": {"persistentVolumeName": "p"}}},
    "VolumeAttributesClass": {"driverName": "d.example", "parameters": {"iops": "1"}},
    "PriorityClass": {"value": 7, "preemptionPolicy": "Never"},
    "Lease": {"spec": {"holderIdentity": "h", "leaseDurationSeconds": 5}},
    "EndpointSlice": {"addressType": "IPv4", "endpoints": [{"addresses": ["192.0.2.1"], "hints": {"forZones": [{"name": "z"}]}}], "ports": [{"port": 80}]},
    "ValidatingWebhookConfiguration": {"webhooks": [HOOK]},
    "MutatingWebhookConfiguration": {"webhooks": [HOOK]},
    "ValidatingAdmissionPolicy": {"spec": {"matchConstraints": NOTHING, "validations": [{"expression": "true"}]}},
    "ValidatingAdmissionPolicyBinding": {"spec": {"policyName": "p", "validationActions": ["Audit"]}},
    "APIService": {"spec": {"group": "none.example", "version": "v1", "groupPriorityMinimum": 10, "versionPriority": 10}},
    "CustomResourceDefinition": {},
    "CertificateSigningRequest": {"spec": {"signerName": "soak.example/s", "usages": CSR_USAGES, "request": ""}},
    "RuntimeClass": {"handler": "h"},
    "FlowSchema": {"spec": {"priorityLevelConfiguration": {"name": "catch-all"}, "matchingPrecedence": 9000, "rules": []}},
    "PriorityLevelConfiguration": {"spec": {"type": "Limited", "limited": {"limitResponse": {"type": "Reject"}}}},
    "DeviceClass": {"spec": {"selectors": [{"cel": {"expression": "true"}}]}},
    "ResourceClaim": {"spec": DEVICES},
    "ResourceClaimTemplate": {"spec": {"spec": DEVICES}},
    "ResourceSlice": {
        "spec": {"driver": "d.example", "nodeName": "n", "devices": [{"name": "d"}], "pool": {"name": "p", "generation": 1, "resourceSliceCount": 1}},
    },
}
"""By kind, without apiVersion and name. Events are written by both of their groups into one place."""
NOT_STORED = {
    *("TokenReview", "SubjectAccessReview", "LocalSubjectAccessReview", "SelfSubjectAccessReview", "SelfSubjectRulesReview", "SelfSubjectReview", "Binding"),
    *("PodStatusResult", "Eviction", "Scale", "TokenRequest"),
}


@dataclass(frozen=True)
class Resource:
    """A resource of the API server, in the version that it prefers."""

    api_version: str
    name: str
    kind: str
    namespaced: bool

    def path(self, namespace: str = "") -> str:
        """Of its list."""
        root = f"/api/{self.api_version}" if "/" not in self.api_version else f"/apis/{self.api_version}"
        return f"{root}/namespaces/{namespace}/{self.name}" if self.namespaced and namespace else f"{root}/{self.name}"


class Server:
    """An API server's REST interface, as its administrator."""

    def __init__(self, plane: TestControlPlane) -> None:
        headers = {"Authorization": f"Bearer {plane.token}"}
        self.http = httpx.Client(base_url=f"https://127.0.0.1:{plane.port}", headers=headers, verify=False, trust_env=False, timeout=60)

    def get(self, path: str) -> Obj:
        """An object or a list."""
        answer = self._taken("GET", path)
        assert answer.status_code == 200, f"{path}: {answer.text}"
        return dict(answer.json())

    def versions(self) -> Obj:
        """What it says of itself: gitVersion, emulationMinor, minCompatibilityMinor."""
        return self.get("/version")

    def resources(self) -> list[Resource]:
        """Those that can be created and listed, each once."""
        groups = ["v1"] + [group["preferredVersion"]["groupVersion"] for group in self.get("/apis")["groups"]]
        found = []
        for version in groups:
            answer = self.http.get(f"/api/{version}" if version == "v1" else f"/apis/{version}")
            for item in answer.json().get("resources", []) if answer.status_code == 200 else []:
                if {"create", "list"} <= set(item["verbs"]) and "/" not in item["name"] and item["kind"] not in NOT_STORED:
                    found.append(Resource(version, item["name"], item["kind"], item["namespaced"]))
        return found

    def create(self, resource: Resource, name: str, body: Obj) -> Obj:
        """One object; an error is the test's."""
        meta = {**body.get("metadata", {}), "name": name}
        obj = {"apiVersion": resource.api_version, "kind": resource.kind, **body, "metadata": meta}
        answer = self.http.post(resource.path(NAMESPACE), json=obj)
        assert answer.status_code == 201, f"{resource}: {answer.text}"
        return dict(answer.json())

    def write_all(self, name: str) -> list[str]:
        """An object of every kind; returns the kinds for which this module has none."""
        missing = []
        number = sum(name.encode()) % 200
        for resource in self.resources():
            if resource.kind.startswith("Soaked"):
                self.create(resource, name, {"spec": {"text": name}})
            elif resource.kind == "Event":
                event = {"involvedObject": REF, "reason": "R", "type": "Normal"} if resource.api_version == "v1" else _event()
                self.create(resource, f"{name}-{resource.api_version.replace('/', '-')}", event)
            elif resource.kind not in SPECS:
                missing.append(resource.kind)
            else:
                self.create(resource, *_body(resource.kind, name, number))
        return missing

    def begin(self) -> None:
        """What the objects of `write_all` need: a namespace with its service account, and a kind of our own."""
        kinds = {resource.kind: resource for resource in self.resources()}
        self.http.post(kinds["Namespace"].path(), json={"metadata": {"name": NAMESPACE}}).raise_for_status()
        self.create(kinds["ServiceAccount"], "default", {})
        self.create(kinds["CustomResourceDefinition"], "soakeds.soak.example", crd(0))
        wait_until(lambda: any(resource.kind == "Soaked" for resource in self.resources()), what="our own kind is served", timeout=60, every=0.2)

    def _taken(self, method: str, path: str, patch: Obj | None = None) -> httpx.Response:
        """Once the API server is done with what it says is being initialised: 429 of a kind that was just defined."""
        answers: list[httpx.Response] = []

        def answered() -> bool:
            headers = {"Content-Type": "application/merge-patch+json"} if patch is not None else {}
            answers.append(self.http.request(method, path, json=patch, headers=headers))
            return answers[-1].status_code != 429

        wait_until(answered, what=f"{path} is taken", timeout=60, every=0.2)
        return answers[-1]

    def touch_all(self, text: str) -> None:
        """Change an annotation of all that `write_all` has written, so that each is stored again."""
        for resource, obj in self.everything():
            meta = obj["metadata"]
            if resource.kind != "Event" and (meta.get("namespace") == NAMESPACE or (not resource.namespaced and "soak" in meta["name"])):
                path = f"{resource.path(meta.get('namespace', ''))}/{meta['name']}"
                patch = {"metadata": {"annotations": {"soak.example/touched": text}}}
                answer = self._taken("PATCH", path, patch)
                assert answer.status_code == 200, f"{path}: {answer.text}"

    def everything(self) -> Iterator[tuple[Resource, Obj]]:
        """All objects by the API, but leases of API servers themselves."""
        for resource in self.resources():
            for item in self.get(resource.path())["items"]:
                if not (resource.kind == "Lease" and item["metadata"]["namespace"] == "kube-system"):
                    yield resource, item

    def checksums(self) -> dict[str, str]:
        """Of each object as it is read, whole: resourceVersion, uid and managedFields among it."""
        return {
            f"{resource.api_version} {resource.kind} {item['metadata'].get('namespace', '')}/{item['metadata']['name']}": _digest(item)
            for resource, item in self.everything()
        }


def _digest(obj: Obj) -> str:
    return hashlib.sha256(json.dumps(obj, sort_keys=True).encode()).hexdigest()


def _event() -> Obj:
    return {
        "eventTime": "2026-05-01T12:00:00.000000Z",
        "regarding": REF,
        "reason": "R",
        "action": "A",
        "type": "Normal",
        "reportingController": "soak.example/c",
        "reportingInstance": "c-1",
    }


def _body(kind: str, name: str, number: int) -> tuple[str, Obj]:
    """A name that its kind accepts, and the object."""
    body, called = SPECS[kind], f"soak-{name}"
    if kind == "IPAddress":
        return f"10.96.7.{number}", body
    if kind == "ServiceCIDR":
        return called, {"spec": {"cidrs": [f"10.{200 + number % 50}.{number}.0/24"]}}
    if kind == "APIService":
        return f"v1.{called}.example", {"spec": {**body["spec"], "group": f"{called}.example", "service": {"namespace": NAMESPACE, "name": "none"}}}
    if kind == "CustomResourceDefinition":
        return f"soaked{number}s.soak.example", crd(number)
    if kind == "CertificateSigningRequest":
        return called, {"spec": {**body["spec"], "request": base64.b64encode(_csr()).decode()}}
    if kind == "CSIDriver":
        return f"{called}.example", body
    return called, body


def crd(number: int) -> Obj:
    """A definition; that of number 0 is `Soaked`."""
    kind = f"Soaked{number or ''}"
    schema = {"type": "object", "properties": {"spec": {"type": "object", "properties": {"text": {"type": "string"}}}}}
    version = {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}
    names = {"kind": kind, "plural": f"{kind.lower()}s", "singular": kind.lower()}
    return {"spec": {"group": "soak.example", "scope": "Namespaced", "names": names, "versions": [version]}}


def _csr() -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "soak")])
    return x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


# -- as it lies in etcd


def stored(etcd_url: str) -> dict[str, bytes]:
    """Every value below /registry by its key, but leases of API servers themselves and what masters say of themselves."""
    body = {"key": base64.b64encode(b"/registry/").decode(), "range_end": base64.b64encode(b"/registry0").decode()}
    answer = httpx.post(f"{etcd_url}/v3/kv/range", json=body, trust_env=False, timeout=60).json()
    found = {base64.b64decode(item["key"]).decode(): base64.b64decode(item["value"]) for item in answer["kvs"]}
    own = ("/registry/leases/kube-system/", "/registry/masterleases/", "/registry/peerserverleases/")
    return {key: value for key, value in found.items() if not key.startswith(own)}


def storage_version(value: bytes) -> str:
    """The apiVersion in which a value is stored: protobuf's envelope (k8s.io/apimachinery runtime.Unknown), or JSON."""
    if not value.startswith(b"k8s\x00"):
        return str(json.loads(value)["apiVersion"])
    # Unknown.typeMeta is field 1, its apiVersion field 1 of that; both are shorter than 128 bytes.
    assert value[4] == 0x0A and value[6] == 0x0A
    return value[8 : 8 + value[7]].decode()
