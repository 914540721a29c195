"""Which kubelets get a serving certificate, and for which names and addresses."""

from __future__ import annotations

import base64
from ipaddress import ip_address
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from ckp.clients.kube import Obj
from ckp.rules.kubelet_certificates import Member, is_pending, objection

ONE, TWO = Member("one", frozenset({"10.0.0.1", "fd00::1"})), Member("two", frozenset({"10.0.0.2"}))
MEMBERS = {"one": ONE, "two": TWO}
KEY = ec.generate_private_key(ec.SECP256R1())


Subject = tuple[tuple[x509.ObjectIdentifier, str], ...]


def request(node: str = "one", names: tuple[str, ...] = ("one", "10.0.0.1"), subject: Subject | None = None, **spec: Any) -> Obj:
    """As a kubelet makes it."""
    if subject is None:
        subject = ((NameOID.ORGANIZATION_NAME, "system:nodes"), (NameOID.COMMON_NAME, f"system:node:{node}"))
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([x509.NameAttribute(*part) for part in subject]))
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName([general(name) for name in names]), critical=False)
    pem = builder.sign(KEY, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    asked = {
        "signerName": "kubernetes.io/kubelet-serving",
        "username": f"system:node:{node}",
        "groups": ["system:nodes", "system:authenticated"],
        "usages": ["digital signature", "server auth"],
        "request": base64.b64encode(pem).decode(),
    }
    meta = {"name": f"csr-{node}", "uid": f"uid-{node}"}
    return {"apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest", "metadata": meta, "spec": {**asked, **spec}}


def general(name: str) -> x509.GeneralName:
    if "@" in name:
        return x509.RFC822Name(name)
    if "://" in name:
        return x509.UniformResourceIdentifier(name)
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


@pytest.mark.parametrize(
    "asked",
    [
        request(),
        request(usages=["server auth", "key encipherment", "digital signature"]),
        request(names=("fd00::1",)),
        request(names=("10.0.0.1", "fd00::1", "one")),
        request("two", ("two", "10.0.0.2")),
    ],
)
def test_a_hosts_own_names_and_addresses_are_approved(asked: Obj) -> None:
    assert is_pending(asked) and objection(asked, MEMBERS) == ""


NODE_SUBJECT = ((NameOID.ORGANIZATION_NAME, "system:nodes"), (NameOID.COMMON_NAME, "system:node:one"))


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (request(username="kubernetes-admin"), "kubernetes-admin is no node"),
        (request(groups=["system:authenticated"]), "is no node"),
        (request("three", ("three",)), "no host of this cluster is called three"),
        (request(username="system:node:two"), "its subject is"),
        (request("two", ("one",)), "host two does not have one"),
        (request(names=("one", "10.0.0.2")), "host one does not have 10.0.0.2"),
        (request(names=("one", "127.0.0.1")), "host one does not have 127.0.0.1"),
        (request(names=("one.example", "kubernetes.default")), "one.example, kubernetes.default"),
        (request(names=()), "no name and no address"),
        (request(names=("one", "a@b.example")), "neither"),
        (request(names=("one", "spiffe://x")), "neither"),
        (request(usages=["digital signature", "client auth"]), "usages"),
        (request(usages=["digital signature", "server auth", "client auth"]), "usages"),
        (request(usages=["server auth"]), "usages"),
        (request(subject=NODE_SUBJECT[1:]), "its subject is"),
        (request(subject=(*NODE_SUBJECT, (NameOID.ORGANIZATION_NAME, "system:masters"))), "its subject is"),
        (request(subject=(*NODE_SUBJECT, (NameOID.COUNTRY_NAME, "DE"))), "its subject is"),
        (request(request=base64.b64encode(b"none").decode()), "it cannot be read"),
    ],
)
def test_nothing_else_is(asked: Obj, said: str) -> None:
    assert said in objection(asked, MEMBERS)


def test_of_two_hosts_with_one_address_none_is_believed_but_one_that_is_offline_counts_for_nothing() -> None:
    thief = Member("two", frozenset({"10.0.0.1"}))
    for asked in (request(), request("two", ("two", "10.0.0.1"))):
        assert "none is believed" in objection(asked, {"one": ONE, "two": thief})
    gone = Member("two", thief.addresses, online=False)
    assert objection(request(), {"one": ONE, "two": gone}) == ""
    assert "offline" in objection(request("two", ("two",)), {"one": ONE, "two": gone})


def test_a_request_that_was_changed_after_it_was_signed_is_not_approved() -> None:
    asked = request()
    pem = base64.b64decode(asked["spec"]["request"])
    der = bytearray(x509.load_pem_x509_csr(pem).public_bytes(serialization.Encoding.DER))
    der[-1] ^= 1
    body = base64.encodebytes(bytes(der)).decode()
    asked["spec"]["request"] = base64.b64encode(f"-----BEGIN CERTIFICATE REQUEST-----\n{body}-----END CERTIFICATE REQUEST-----\n".encode()).decode()
    assert objection(asked, MEMBERS) in ("it is not signed by its own key", "it cannot be read")


@pytest.mark.parametrize(
    "other",
    [
        {"spec": {**request()["spec"], "signerName": "kubernetes.io/kube-apiserver-client-kubelet"}},
        {"status": {"conditions": [{"type": "Denied", "status": "True"}]}},
        {"status": {"certificate": "x"}},
    ],
)
def test_what_others_decide_or_have_decided_is_left_alone(other: dict[str, Any]) -> None:
    assert not is_pending({**request(), **other})
