"""The certificates of one cluster, issued by cert-manager: three CAs of the cluster's own, each an anchor by itself, and their leaves, for ten years.

The CAs are self-signed (docs/adr/0011): not every TLS library takes an intermediate CA as an anchor. The chain to the Root CA is kept beside them, by
certificates of the same subjects and keys that the Root CA signed (`cross_signing_request`).

Which certificates a control plane has, and their subjects, is kubeadm's rule (kubeadm's certs phase); `<c>-ca`, `-etcd`, `-proxy` and `-sa`
are the names of the Cluster API contract.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from ckp.api.kinds import CERTIFICATE, CERTIFICATE_REQUEST, ISSUER
from ckp.api.names import CLUSTER_NAME_LABEL, CLUSTER_SECRET_TYPE
from ckp.clients.kube import Obj
from ckp.controllers.controlplane.etcd import member_host, member_names
from ckp.controllers.controlplane.plan import Plan
from ckp.kits.errors import CkpError
from ckp.rules.endpoints import is_ipv4, server_addresses, server_names

TEN_YEARS = "87600h"
RENEW_BEFORE = "8760h"
ROOT_ISSUER = "ckp-root"
SELF_SIGNED_ISSUER = "ckp-self-signed"
AUTHORITIES = {"ca": "kubernetes", "etcd": "etcd-ca", "proxy": "front-proxy-ca"}
"""The cluster's CAs: the part of their objects' names, and their common names."""
CA_USAGES = ("digital signature", "cert sign", "crl sign", "key encipherment")
CHAIN = "ca-chain"
"""The part of the name of the ConfigMap with the CAs' certificates that the Root CA signed."""


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
    """The cluster's CAs, each with an Issuer of its own.

    Where CKP 0.2.0 had one signed by the Root CA, cert-manager issues it again with the same key: what it has signed, and whoever trusts it, stays.
    """
    objects: list[Obj] = []
    for part, common_name in AUTHORITIES.items():
        spec = {
            "isCA": True,
            "commonName": common_name,
            "usages": list(CA_USAGES),
            "issuerRef": _cluster_issuer(SELF_SIGNED_ISSUER),
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


def _cluster_issuer(name: str) -> Obj:
    return {"group": "cert-manager.io", "kind": "ClusterIssuer", "name": name}


def certificate_of(secret: Obj) -> x509.Certificate:
    """The certificate in a Secret of cert-manager's; CkpError if there is none that can be read."""
    try:
        return x509.load_pem_x509_certificate(base64.b64decode(secret["data"]["tls.crt"]))
    except (KeyError, ValueError) as error:
        resolution = "put the CA's certificate back, or remove tls.crt alone: cert-manager issues it again by the key beside it, which hosts depend on"
        raise CkpError(f"Secret {secret['metadata']['name']}: tls.crt is no certificate", details=str(error), resolution=resolution) from error


def is_anchor(secret: Obj) -> bool:
    """Whether any TLS library takes the CA in this Secret for an anchor: whether it is self-signed."""
    certificate = certificate_of(secret)
    return certificate.issuer == certificate.subject


def fingerprint(secret: Obj) -> str:
    """Tells a CA's certificate from the one before it: eight characters."""
    return certificate_of(secret).fingerprint(hashes.SHA256()).hex()[:8]


def identity(secret: Obj) -> str:
    """Tells a cluster by its CA, whatever becomes of its objects: sixteen characters of the digest of the CA's public key, which stays when it is renewed."""
    key = certificate_of(secret).public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(key).hexdigest()[:16]


def cross_signing_name(plan: Plan, part: str, secret: Obj) -> str:
    """The name of the request for a CA's cross-signed certificate: a renewed CA has another one."""
    return plan.name(f"{part}-{fingerprint(secret)}")


def cross_signing_request(plan: Plan, part: str, secret: Obj) -> Obj:
    """Asks the Root CA for a certificate of the same subject and key as the CA in the Secret has. The key itself stays in that Secret."""
    key = serialization.load_pem_private_key(base64.b64decode(secret["data"]["tls.key"]), None)
    if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        raise CkpError(f"the key in Secret {secret['metadata']['name']} can't sign a request", resolution="keep an ECDSA or RSA key in it")
    request = x509.CertificateSigningRequestBuilder().subject_name(certificate_of(secret).subject).sign(key, hashes.SHA256())
    return {
        "apiVersion": CERTIFICATE_REQUEST.api_version,
        "kind": CERTIFICATE_REQUEST.kind,
        "metadata": plan.meta(cross_signing_name(plan, part, secret)),
        "spec": {
            "isCA": True,
            "duration": TEN_YEARS,
            "usages": list(CA_USAGES),
            "request": base64.b64encode(request.public_bytes(serialization.Encoding.PEM)).decode(),
            "issuerRef": _cluster_issuer(ROOT_ISSUER),
        },
    }


def lacking(plan: Plan, secret: Obj) -> list[str]:
    """Names and addresses that the API server's certificate must have and does not have yet."""
    leaf = next(leaf for leaf in leaves(plan) if leaf.name == "apiserver")
    try:
        found = certificate_of(secret).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return [*leaf.dns, *leaf.addresses]
    has = {*found.get_values_for_type(x509.DNSName), *map(str, found.get_values_for_type(x509.IPAddress))}
    return [item for item in (*leaf.dns, *leaf.addresses) if item not in has]


def chain(plan: Plan, cross_signed: Mapping[str, str]) -> Obj:
    """The ConfigMap with the CAs' certificates that the Root CA signed, as PEM by part: for who must follow a cluster's certificates to the Root CA."""
    data = {f"{part}.crt": pem for part, pem in cross_signed.items()}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": plan.meta(plan.name(CHAIN)), "data": data}


def leaves(plan: Plan) -> list[Leaf]:
    """The leaves that this control plane needs."""
    etcd = plan.name("etcd")
    own_names, own_addresses = server_names(plan.cluster, plan.namespace, plan.domain), server_addresses(plan.service_cidr)
    # A peer is asked back by its address: the name found for that ends in the management cluster's domain, which no SAN here does; so etcd looks each SAN
    # without a wildcard up, and takes the peer whose address one of them has. Members' own names do that in any domain.
    members = (member_host(plan, member) for member in member_names(plan))
    etcd_names = ("localhost", etcd, f"{etcd}.{plan.namespace}.svc", f"*.{etcd}-peer.{plan.namespace}.svc", *members)
    reached = dict.fromkeys([plan.host, plan.address, *plan.cert_sans])
    names, addresses = [item for item in reached if not is_ipv4(item)], [item for item in reached if is_ipv4(item)]
    return [
        Leaf("apiserver", "ca", "kube-apiserver", SERVER, dns=(*own_names, *names), addresses=(*own_addresses, *addresses)),
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
    return [plan.name(part) for part in (parts or [*AUTHORITIES, *(leaf.name for leaf in leaves(plan))])]


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
