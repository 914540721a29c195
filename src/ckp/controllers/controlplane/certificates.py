"""The certificates of one cluster, issued by cert-manager: Root CA, three CAs of the cluster's own, and their leaves, for ten years.

Which certificates a control plane has, and their subjects, is kubeadm's rule (kubeadm's certs phase); `<c>-ca`, `-etcd`, `-proxy` and `-sa`
are the names of the Cluster API contract.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from ckp.api.kinds import CERTIFICATE, ISSUER
from ckp.api.names import CLUSTER_NAME_LABEL, CLUSTER_SECRET_TYPE
from ckp.clients.kube import Obj
from ckp.controllers.controlplane.etcd import member_host, member_names
from ckp.controllers.controlplane.plan import Plan

TEN_YEARS = "87600h"
RENEW_BEFORE = "8760h"
ROOT_ISSUER = "ckp-root"


@dataclass(frozen=True)
class Leaf:
    """A leaf certificate: `<cluster>-<name>`, issued by one of the cluster's CAs."""

    name: str
    issuer: str
    common_name: str
    usages: tuple[str, ...]
    organizations: tuple[str, ...] = ()
    dns: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()


CLIENT = ("digital signature", "client auth")
SERVER = ("digital signature", "server auth")


def authorities(plan: Plan) -> list[Obj]:
    """The cluster's CAs, each with an Issuer of its own."""
    objects: list[Obj] = []
    for part, common_name in (("ca", "kubernetes"), ("etcd", "etcd-ca"), ("proxy", "front-proxy-ca")):
        spec = {
            "isCA": True,
            "commonName": common_name,
            "usages": ["digital signature", "cert sign", "crl sign", "key encipherment"],
            "issuerRef": {"group": "cert-manager.io", "kind": "ClusterIssuer", "name": ROOT_ISSUER},
        }
        objects.append(_certificate(plan, part, spec))
        issuer = {
            "apiVersion": ISSUER.api_version,
            "kind": ISSUER.kind,
            "metadata": plan.meta(plan.name(part)),
            "spec": {"ca": {"secretName": plan.name(part)}},
        }
        objects.append(issuer)
    return objects


def leaves(plan: Plan) -> list[Leaf]:
    """The leaves that this control plane needs."""
    api, etcd = plan.name("apiserver"), plan.name("etcd")
    kubernetes = ("kubernetes", "kubernetes.default", "kubernetes.default.svc", f"kubernetes.default.svc.{plan.domain}")
    api_names = (*kubernetes, "localhost", api, f"{api}.{plan.namespace}", f"{api}.{plan.namespace}.svc")
    # A peer is asked back by its address: the name found for that ends in the management cluster's domain, which no SAN here does; so etcd looks each SAN
    # without a wildcard up, and takes the peer whose address one of them has. Members' own names do that in any domain.
    members = (member_host(plan, member) for member in member_names(plan))
    etcd_names = ("localhost", etcd, f"{etcd}.{plan.namespace}.svc", f"*.{etcd}-peer.{plan.namespace}.svc", *members)
    return [
        Leaf("apiserver", "ca", "kube-apiserver", SERVER, dns=api_names, addresses=("127.0.0.1", plan.service_ip, plan.host)),
        Leaf("apiserver-kubelet-client", "ca", "kube-apiserver-kubelet-client", CLIENT, ("kubeadm:cluster-admins",)),
        Leaf("apiserver-etcd-client", "etcd", "kube-apiserver-etcd-client", CLIENT),
        Leaf("etcd-server", "etcd", "etcd", (*SERVER, "client auth"), dns=etcd_names, addresses=("127.0.0.1",)),
        Leaf("front-proxy-client", "proxy", "front-proxy-client", CLIENT),
        Leaf("controller-manager", "ca", "system:kube-controller-manager", CLIENT),
        Leaf("scheduler", "ca", "system:kube-scheduler", CLIENT),
        Leaf("konnectivity", "ca", "system:konnectivity-server", CLIENT),
        Leaf("admin", "ca", "kubernetes-admin", CLIENT, ("kubeadm:cluster-admins",)),
        # Not bound by RBAC: only the Job that writes the first RBAC rules of the cluster mounts it.
        Leaf("super-admin", "ca", "kubernetes-super-admin", CLIENT, ("system:masters",)),
    ]


def leaf_certificates(plan: Plan) -> list[Obj]:
    """The leaves as cert-manager's objects."""
    return [_certificate(plan, leaf.name, _leaf_spec(plan, leaf)) for leaf in leaves(plan)]


def _leaf_spec(plan: Plan, leaf: Leaf) -> Obj:
    spec: Obj = {
        "commonName": leaf.common_name,
        "usages": list(leaf.usages),
        "issuerRef": {"group": "cert-manager.io", "kind": "Issuer", "name": plan.name(leaf.issuer)},
    }
    if leaf.organizations:
        spec["subject"] = {"organizations": list(leaf.organizations)}
    if leaf.dns:
        spec["dnsNames"] = list(leaf.dns)
    if leaf.addresses:
        spec["ipAddresses"] = list(leaf.addresses)
    return spec


def _certificate(plan: Plan, part: str, spec: Obj) -> Obj:
    common = {
        "secretName": plan.name(part),
        "duration": TEN_YEARS,
        "renewBefore": RENEW_BEFORE,
        "privateKey": {"algorithm": "ECDSA", "size": 256, "rotationPolicy": "Never" if spec.get("isCA") else "Always"},
        "secretTemplate": {"labels": {CLUSTER_NAME_LABEL: plan.cluster}},
    }
    return {"apiVersion": CERTIFICATE.api_version, "kind": CERTIFICATE.kind, "metadata": plan.meta(plan.name(part)), "spec": {**common, **spec}}


def secret_names(plan: Plan, parts: Sequence[str] | None = None) -> list[str]:
    """The Secrets that must exist before the control plane's pods can mount them."""
    return [plan.name(part) for part in (parts or ["ca", "etcd", "proxy", *(leaf.name for leaf in leaves(plan))])]


def service_account_key(plan: Plan) -> Obj:
    """A new pair of keys for service account tokens: `tls.key` signs, `tls.crt` holds the public key (contract: `<c>-sa`)."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption())
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": plan.meta(plan.name("sa")),
        "type": CLUSTER_SECRET_TYPE,
        "data": {"tls.key": base64.b64encode(private).decode(), "tls.crt": base64.b64encode(public).decode()},
    }
