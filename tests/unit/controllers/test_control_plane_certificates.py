"""The CAs of a workload cluster: which TLS libraries take them as an anchor, and how the chain to the Root CA is kept."""

from __future__ import annotations

import base64
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from ckp.api import kinds
from ckp.api.platform import InstalledRelease, Releases
from ckp.clients.kube import Obj
from ckp.controllers.apply import Applier
from ckp.controllers.controlplane import apiserver, bootstrap, certificates
from ckp.controllers.controlplane.phases import NotYet
from ckp.controllers.controlplane.plan import Plan
from ckp.controllers.controlplane.reconciler import ManagedControlPlaneReconciler
from ckp.controllers.scope import Scope
from ckp.kits.clock import SystemClock
from ckp.kits.errors import CkpError
from tests.simulators.etcd import EtcdSimulator
from tests.simulators.kube import KubeSimulator
from tests.support.checkout import REPO
from tests.support.tls_clients import client, tls_server
from tests.worlds.tls import Authority, key_pem, make_authority, make_leaf, write_pair

TENANT = "ckp-default-default"
IMAGES = dict.fromkeys(("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubeadm", "coredns", "konnectivity-agent"), "v1")
RELEASE = InstalledRelease(name="v1.35.1", stamp="v1.35.1-ckp", registry="r:5000/ckp", images=IMAGES, bundles={}, cni={})
RELEASES = Releases(releases={"v1.35.1": RELEASE})
META = {"name": "demo", "namespace": TENANT, "uid": "1", "labels": {"cluster.x-k8s.io/cluster-name": "demo"}}
PLANE: Obj = {"apiVersion": "controlplane.cluster.x-k8s.io/v1beta1", "kind": "ManagedControlPlane", "metadata": META, "spec": {"version": "v1.35.1"}}
PLAN = Plan.of(PLANE, {"metadata": META, "spec": {}}, RELEASES, "10.0.0.1")
ROOT = make_authority("CKP Root CA")


def secret(name: str, authority: Authority) -> Obj:
    """As cert-manager writes it."""
    data = {"tls.crt": authority.pem, "tls.key": key_pem(authority.key)}
    encoded = {key: base64.b64encode(value.encode()).decode() for key, value in data.items()}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": TENANT}, "data": encoded}


def with_names(authority: Authority, leaf: certificates.Leaf) -> Authority:
    """A leaf's certificate, as far as it is read here."""
    now = authority.certificate
    names: list[x509.GeneralName] = [*map(x509.DNSName, leaf.dns), *(x509.IPAddress(ip_address(item)) for item in leaf.addresses)]
    builder = x509.CertificateBuilder(now.subject, now.subject, authority.key.public_key(), 5, now.not_valid_before_utc, now.not_valid_after_utc)
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return Authority(builder.sign(authority.key, hashes.SHA256()), authority.key)


def sign(request: Obj) -> str:
    """What cert-manager does with the request, by the Root CA's key."""
    csr = x509.load_pem_x509_csr(base64.b64decode(request["spec"]["request"]))
    assert csr.is_signature_valid
    now = ROOT.certificate
    builder = x509.CertificateBuilder(issuer_name=ROOT.certificate.subject, subject_name=csr.subject, public_key=csr.public_key(), serial_number=7)
    builder = builder.not_valid_before(now.not_valid_before_utc).not_valid_after(now.not_valid_after_utc)
    made = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True).sign(ROOT.key, hashes.SHA256())
    return made.public_bytes(serialization.Encoding.PEM).decode()


class Bench:
    """The reconciler's phase of certificates; cert-manager is played by hand."""

    def __init__(self) -> None:
        self.kube = KubeSimulator(manager="ckp-controllers", namespaces=(TENANT,))
        clock = SystemClock()
        self.reconciler = ManagedControlPlaneReconciler(self.kube, clock, RELEASES, Applier(self.kube, clock), connect_to_etcd=EtcdSimulator().connect)
        self.scope = Scope(self.kube, clock, kinds.MANAGED_CONTROL_PLANE, PLANE)

    async def issue(self, authorities: dict[str, Authority]) -> None:
        for part, authority in authorities.items():
            await self.kube.apply(secret(f"demo-{part}", authority))
        for leaf in certificates.leaves(PLAN):
            await self.kube.apply(secret(f"demo-{leaf.name}", with_names(ROOT, leaf)))

    async def phase(self) -> None:
        await self.reconciler._certificates(self.scope, PLAN)

    async def requests(self) -> list[Obj]:
        return await self.kube.list(kinds.CERTIFICATE_REQUEST, TENANT)


def authorities(parent: Authority | None = None, like: dict[str, Authority] | None = None) -> dict[str, Authority]:
    return {part: make_authority(common_name, parent, key=like[part].key if like else None) for part, common_name in certificates.AUTHORITIES.items()}


@pytest.mark.parametrize("name", ["python3.11", "python3.13", "openssl", "node"])
def test_every_tls_library_takes_a_clusters_ca_for_an_anchor(name: str, tmp_path: Path) -> None:
    """Also while the server still sends the intermediate of CKP 0.2.0 behind its certificate; the intermediate alone was not enough (the control).

    tests/component/test_cluster_certificates.py does the same with more programs, by what cert-manager issues.
    """
    verify = client(name, tmp_path)
    if verify is None:
        pytest.skip(f"there is no {name} on this machine")
    intermediate = make_authority("kubernetes", ROOT)
    anchor = make_authority("kubernetes", key=intermediate.key)
    for authority, file in ((intermediate, "old.crt"), (anchor, "ca.crt"), (make_authority("kubernetes"), "other.crt")):
        (tmp_path / file).write_text(authority.pem)
    leaf, key = make_leaf(intermediate, server=True)
    for chain in (leaf, leaf + intermediate.pem):
        with tls_server(*write_pair(tmp_path, "server", chain, key)) as port:
            assert verify(tmp_path / "ca.crt", port) == ""
            assert verify(tmp_path / "other.crt", port), "another cluster's CA of the same name"
            assert verify(tmp_path / "old.crt", port)


def test_no_clusters_ca_is_asked_of_the_root_ca() -> None:
    """The issuer must be in deploy/ as well."""
    made = [obj for obj in certificates.authorities(PLAN) if obj["kind"] == "Certificate"]
    assert [obj["metadata"]["name"] for obj in made] == ["demo-ca", "demo-etcd", "demo-proxy"]
    issuers = {
        obj["metadata"]["name"]: obj for obj in yaml.safe_load_all((REPO / "deploy" / "20-certificates.yaml").read_text()) if obj["kind"] == "ClusterIssuer"
    }
    for obj in made:
        assert issuers[obj["spec"]["issuerRef"]["name"]]["spec"] == {"selfSigned": {}}
        assert obj["spec"]["privateKey"]["rotationPolicy"] == "Never", "what it has signed stays valid when it is issued again"


async def test_the_chain_to_the_root_ca_is_kept_beside_the_anchors() -> None:
    bench, made = Bench(), authorities()
    await bench.issue(made)
    await bench.phase()
    requests = await bench.requests()
    assert len(requests) == 3
    for request in requests:
        assert request["spec"]["issuerRef"] == {"group": "cert-manager.io", "kind": "ClusterIssuer", "name": "ckp-root"} and request["spec"]["isCA"]
        assert "PRIVATE" not in str(request)
        pem = sign(request)
        await bench.kube.merge(
            kinds.CERTIFICATE_REQUEST,
            request["metadata"]["name"],
            TENANT,
            {"status": {"certificate": base64.b64encode(pem.encode()).decode()}},
            subresource="status",
        )
    await bench.phase()
    assert len(await bench.requests()) == 3, "asked for once"
    data = bench.kube.stored(kinds.CONFIG_MAP, "demo-ca-chain", TENANT)["data"]
    for part, authority in made.items():
        cross_signed = x509.load_pem_x509_certificate(data[f"{part}.crt"].encode())
        cross_signed.verify_directly_issued_by(ROOT.certificate)
        assert (cross_signed.subject, cross_signed.public_key()) == (authority.certificate.subject, authority.certificate.public_key())


async def test_the_intermediates_of_0_2_0_are_waited_out_and_their_keys_stay() -> None:
    bench, old = Bench(), authorities(ROOT)
    await bench.issue(old)
    with pytest.raises(NotYet, match=r"demo-ca, demo-etcd, demo-proxy of CKP 0\.2\.0"):
        await bench.phase()
    await bench.issue(authorities(like=old))
    await bench.phase()


def test_who_copies_the_ca_when_it_starts_starts_again_when_it_changes() -> None:
    """kube-controller-manager publishes kube-root-ca.crt, and kubeadm cluster-info, from what they read once."""
    old = make_authority("kubernetes", ROOT)
    marks = [certificates.fingerprint(secret("demo-ca", authority)) for authority in (old, make_authority("kubernetes", key=old.key))]
    managers = [apiserver.controller_manager(PLAN, mark)["spec"]["template"] for mark in marks]
    jobs = [bootstrap.bootstrap_objects(PLAN, mark)[-1]["metadata"]["name"] for mark in marks]
    assert managers[0] != managers[1] and jobs[0] != jobs[1]


def test_a_ca_that_cannot_be_read_is_said() -> None:
    broken: dict[str, Any] = {"metadata": {"name": "demo-ca"}, "data": {"tls.crt": base64.b64encode(b"none").decode()}}
    with pytest.raises(CkpError, match=r"demo-ca: tls\.crt is no certificate"):
        certificates.is_anchor(broken)
