"""What an existing cluster has: its version, what the kubeconfig may do, and cert-manager and Cluster API of others. Nothing is changed by looking."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ckp.site.clusters.brought import SITE_LABEL

Obj = dict[str, Any]
Kubectl = Callable[..., str]
CERT_MANAGER, CLUSTER_API = "cert-manager", "cluster-api"
"""The groups of the management layer that an owner may have already."""
MARKS = {CERT_MANAGER: "certificates.cert-manager.io", CLUSTER_API: "clusters.cluster.x-k8s.io"}
"""A definition that tells that a group is there."""
KUBEADM = "kubeadmconfigtemplates.bootstrap.cluster.x-k8s.io"
DEPLOYMENTS = {CERT_MANAGER: ("cert-manager", "cert-manager"), CLUSTER_API: ("capi-system", "capi-controller-manager")}
"""Namespace and name of what runs it, as upstream's manifests have them; clouds and charts keep to them."""
OLDEST = (1, 28)
"""Kubernetes: the oldest that Cluster API v1.7 is made for as a management cluster is 1.26; CRDs of CKP have validation rules that 1.28 takes."""
CLUSTER_API_VERSION = "v1.7."
"""The contract that CKP's providers are tested with (v1beta1, docs/reference/contract.md)."""


@dataclass(frozen=True)
class SeenGroup:
    """cert-manager or Cluster API of others.

    Args:
        version: by the image that runs; empty if it does not run where upstream puts it.
    """

    name: str
    version: str
    kinds: frozenset[str] = frozenset()


@dataclass(frozen=True)
class SeenExisting:
    """An existing cluster.

    Args:
        version: of its API server, such as `v1.33.4`.
        admin: whether the kubeconfig may do everything (SelfSubjectAccessReview).
        foreign: groups that others have brought, by name.
        services: addresses that Services have or ask for -> `namespace/name`, but for CKP's own.
    """

    version: str
    admin: bool
    foreign: Mapping[str, SeenGroup] = field(default_factory=dict)
    services: Mapping[str, str] = field(default_factory=dict)


def look(kubectl: Kubectl) -> SeenExisting:
    """Ask a cluster. CkpError if it does not answer."""
    version = str(json.loads(kubectl("version", "--output=json"))["serverVersion"]["gitVersion"])
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": dict.fromkeys(("group", "resource", "verb"), "*")},
    }
    answer = json.loads(kubectl("create", "--filename=-", "--output=json", stdin=json.dumps(review)))
    return SeenExisting(version, bool((answer.get("status") or {}).get("allowed")), foreign(kubectl), dict(_services(kubectl)))


def foreign(kubectl: Kubectl) -> dict[str, SeenGroup]:
    """Those of MARKS that are in the cluster, and that no site of CKP's has brought."""
    definitions = json.loads(kubectl("get", "customresourcedefinitions", "--output=json"))["items"]
    by_name = {str(each["metadata"]["name"]): each for each in definitions}
    found = {}
    for name, mark in MARKS.items():
        if mark in by_name and SITE_LABEL not in (by_name[mark]["metadata"].get("labels") or {}):
            namespace, deployment = DEPLOYMENTS[name]
            text = kubectl("get", "deployment", deployment, f"--namespace={namespace}", "--ignore-not-found", "--output=json")
            found[name] = SeenGroup(name, _version(json.loads(text)) if text.strip() else "", frozenset(by_name))
    return found


def _version(deployment: Obj) -> str:
    for container in deployment["spec"]["template"]["spec"]["containers"]:
        if match := re.search(r":(v\d+\.\d+\.\d+[^@]*)", str(container["image"])):
            return match[1]
    return "of an unknown version"


def _services(kubectl: Kubectl) -> Iterator[tuple[str, str]]:
    for item in json.loads(kubectl("get", "services", "--all-namespaces", "--output=json"))["items"]:
        spec, status = item.get("spec") or {}, item.get("status") or {}
        if spec.get("type") != "LoadBalancer" or SITE_LABEL in (item["metadata"].get("labels") or {}):
            continue
        addresses = [str(each.get("ip", "")) for each in (status.get("loadBalancer") or {}).get("ingress") or ()]
        for address in (*addresses, str(spec.get("loadBalancerIP", ""))):
            if address:
                yield address, f"{item['metadata']['namespace']}/{item['metadata']['name']}"


@dataclass(frozen=True)
class Problem:
    """Why CKP can't be installed onto the cluster."""

    what: str
    remedy: str


def problems(seen: SeenExisting, addresses: Mapping[str, str]) -> Iterator[Problem]:
    """What must be corrected first.

    Args:
        addresses: what an address is for -> the address that a load balancer is to give.
    """
    match = re.match(r"v(\d+)\.(\d+)", seen.version)
    if match is None or (int(match[1]), int(match[2])) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        yield Problem(f"the cluster runs Kubernetes {seen.version}, and CKP needs {oldest} or newer", "upgrade it, or take another cluster")
    if not seen.admin:
        what = "the kubeconfig may not do everything in the cluster, and CKP brings definitions, roles and webhooks"
        yield Problem(what, "take that of an administrator (kubectl auth can-i '*' '*')")
    yield from _foreign(seen.foreign)
    for what_for, address in addresses.items():
        if owner := seen.services.get(address):
            yield Problem(f"the address {address} of {what_for} is that of the Service {owner}", "write an address that nothing has")


def _foreign(groups: Mapping[str, SeenGroup]) -> Iterator[Problem]:
    if (group := groups.get(CERT_MANAGER)) is not None and not group.version:
        what = "the cluster has cert-manager's definitions, and no Deployment cert-manager in the namespace cert-manager"
        yield Problem(what, "repair it; one in another namespace can't be used: CKP's Root CA is in cert-manager's own namespace")
    if (group := groups.get(CLUSTER_API)) is not None:
        if not group.version.startswith(CLUSTER_API_VERSION):
            has = f"Cluster API {group.version}" if group.version else "Cluster API's definitions, and no Deployment capi-controller-manager in capi-system"
            remedy = "take another cluster: two versions of Cluster API can't be in one, and CKP does not upgrade that of others"
            yield Problem(f"the cluster has {has}, and CKP's providers are for {CLUSTER_API_VERSION}x", remedy)
        elif KUBEADM not in group.kinds:
            yield Problem(f"the cluster has Cluster API {group.version} without kubeadm's bootstrap provider", "clusterctl init --bootstrap kubeadm")
