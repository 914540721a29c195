"""A cluster's CAs and leaves as the real cert-manager issues them from our objects, and who accepts them."""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
import shutil
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from ckp.api.kinds import CERTIFICATE, CERTIFICATE_REQUEST, CONFIG_MAP, CSR, MANAGED_CONTROL_PLANE, NAMESPACE, SECRET
from ckp.clients.kube import Kube, KubeError, Obj
from ckp.controllers.apply import Applier
from ckp.controllers.controlplane import certificates
from ckp.controllers.controlplane.phases import NotYet
from ckp.controllers.controlplane.plan import Plan
from ckp.controllers.controlplane.reconciler import ManagedControlPlaneReconciler
from ckp.controllers.scope import Scope
from ckp.distribution.management import API_RATES
from ckp.kits.clock import SystemClock
from ckp.kits.processes import Daemon, run
from ckp.rules.kubelet_certificates import Member, is_pending, objection
from tests.component.test_controllers import RELEASES, make_control_plane, plane_status
from tests.support.api_servers import api_servers
from tests.support.checkout import REPO
from tests.support.control_plane import TestControlPlane, built
from tests.support.tls_clients import CLIENTS, client, tls_server
from tests.unit.rules.test_kubelet_certificates import request

pytestmark = pytest.mark.component
PATIENCE = 120.0


@pytest.fixture(scope="module")
def issuing(plane: TestControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestControlPlane]:
    """cert-manager's controller with the issuers of deploy/."""
    folder = tmp_path_factory.mktemp("cert-manager")
    plane.kubectl("apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "cert-manager"}}))
    manifests = [obj for obj in yaml.safe_load_all((REPO / "deploy" / "20-certificates.yaml").read_text()) if "root" in obj["metadata"]["name"]]
    manifests += [obj for obj in yaml.safe_load_all((REPO / "deploy" / "20-certificates.yaml").read_text()) if obj["metadata"]["name"] == "ckp-self-signed"]
    plane.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": manifests}))
    config = folder / "kubeconfig"
    config.write_text(json.dumps(plane.kubeconfig()))
    controller = Daemon("cert-manager", folder / "pid", folder / "log")
    try:
        controller.start(
            [
                built("cert-manager").binary("controller"),
                f"--kubeconfig={config}",
                "--cluster-resource-namespace=cert-manager",
                "--leader-elect=false",
                "--metrics-listen-address=127.0.0.1:0",
                *API_RATES,
            ]
        )
        yield plane
    finally:
        controller.stop()


class Bench:
    """The reconciler's phase of certificates, repeated until cert-manager has done its part."""

    def __init__(self, kube: Kube, namespace: str, obj: Obj) -> None:
        self.kube, self.namespace = kube, namespace
        clock = SystemClock()
        self.reconciler = ManagedControlPlaneReconciler(kube, clock, RELEASES, Applier(kube, clock))
        self.look_again(obj)

    def look_again(self, obj: Obj) -> None:
        """The control plane's object is this one now."""
        self.scope = Scope(self.kube, SystemClock(), MANAGED_CONTROL_PLANE, obj)
        self.plan = Plan.of(obj, {"metadata": {"name": "demo"}, "spec": {}}, RELEASES, "127.0.0.1")

    async def until(self, what: str, done: Callable[[], object]) -> None:
        for _ in range(int(PATIENCE / 0.5)):
            if await done():  # type: ignore[misc]
                return
            await asyncio.sleep(0.5)
        raise AssertionError(f"{what}: not within {PATIENCE} s")

    async def finish(self) -> None:
        """Until the phase is finished and the chain is written."""

        async def phase() -> bool:
            try:
                await self.reconciler._certificates(self.scope, self.plan)
            except NotYet:
                return False
            return await self.kube.get(CONFIG_MAP, "demo-ca-chain", self.namespace) is not None

        await self.until("the phase of certificates", phase)

    async def certificate(self, name: str) -> x509.Certificate:
        return x509.load_pem_x509_certificate(base64.b64decode((await self.data(name))["tls.crt"]))

    async def data(self, name: str) -> dict[str, str]:
        secret = await self.kube.get(SECRET, name, self.namespace)
        assert secret
        return dict(secret["data"])

    async def write(self, folder: Path, name: str) -> tuple[Path, Path]:
        data, files = await self.data(name), (folder / f"{name}.crt", folder / f"{name}.key")
        for file, key in zip(files, ("tls.crt", "tls.key"), strict=True):
            file.write_bytes(base64.b64decode(data[key]))
        return files


@pytest.fixture
async def bench(issuing: TestControlPlane, kube: Kube, namespace: str) -> AsyncIterator[Bench]:
    assert await kube.get(NAMESPACE, "cert-manager")
    await make_control_plane(kube, namespace)
    yield Bench(kube, namespace, await plane_status(kube, namespace))


async def test_every_program_verifies_the_api_server_by_the_clusters_ca(bench: Bench, tmp_path: Path) -> None:
    await bench.finish()
    ca, _ = await bench.write(tmp_path, "demo-ca")
    refused, tried = {}, []
    with tls_server(*(await bench.write(tmp_path, "demo-apiserver"))) as port:
        for name in CLIENTS:
            if verify := client(name, tmp_path):
                tried.append(name)
                if said := verify(ca, port):
                    refused[name] = said
    assert refused == {}
    assert {"openssl", "go"} < set(tried), "what CI's machine has"


async def test_the_chain_leads_to_the_root_ca_and_the_anchors_do_not(bench: Bench) -> None:
    await bench.finish()
    root = x509.load_pem_x509_certificate(base64.b64decode((await bench.kube.get(SECRET, "ckp-root-ca", "cert-manager") or {})["data"]["tls.crt"]))
    chain = await bench.kube.get(CONFIG_MAP, "demo-ca-chain", bench.namespace)
    assert chain
    for part in certificates.AUTHORITIES:
        anchor, cross_signed = await bench.certificate(f"demo-{part}"), x509.load_pem_x509_certificate(chain["data"][f"{part}.crt"].encode())
        anchor.verify_directly_issued_by(anchor)
        cross_signed.verify_directly_issued_by(root)
        assert cross_signed.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        assert (cross_signed.subject, cross_signed.public_key()) == (anchor.subject, anchor.public_key())
    for name, part in {"apiserver": "ca", "etcd-server": "etcd", "front-proxy-client": "proxy"}.items():
        leaf = await bench.certificate(f"demo-{name}")
        leaf.verify_directly_issued_by(await bench.certificate(f"demo-{part}"))
        leaf.verify_directly_issued_by(x509.load_pem_x509_certificate(chain["data"][f"{part}.crt"].encode()))


async def test_agents_verify_hub_and_compass_by_the_root_ca(bench: Bench, tmp_path: Path) -> None:
    """Agents run on the system's Python, 3.9 and newer."""
    deployed = yaml.safe_load_all((REPO / "deploy" / "20-certificates.yaml").read_text())
    made = next(obj for obj in deployed if obj["metadata"]["name"] == "ckp-hub-tls")
    made["metadata"]["namespace"] = bench.namespace
    made["spec"] |= {"dnsNames": ["localhost"], "ipAddresses": ["127.0.0.1"]}
    await bench.kube.apply(made)

    async def issued() -> bool:
        found = await bench.kube.get(SECRET, "ckp-hub-tls", bench.namespace)
        return bool((found or {}).get("data", {}).get("ca.crt"))

    await bench.until("the hub's certificate", issued)
    root = tmp_path / "ca.pem"
    root.write_bytes(base64.b64decode((await bench.data("ckp-hub-tls"))["ca.crt"]))
    with tls_server(*(await bench.write(tmp_path, "ckp-hub-tls"))) as port:
        assert {name: verify(root, port) for name in CLIENTS if (verify := client(name, tmp_path))}.items() <= dict.fromkeys(CLIENTS, "").items()


@pytest.mark.parametrize("name", CLIENTS)
def test_every_program_verifies_a_standalone_clusters_api_server(name: str, standalone: Path, tmp_path: Path) -> None:
    """Its CA is kubeadm's own."""
    verify = client(name, tmp_path)
    if verify is None:
        pytest.skip(f"there is no {name} on this machine")
    with tls_server(standalone / "apiserver.crt", standalone / "apiserver.key") as port:
        assert verify(standalone / "ca.crt", port) == ""


@pytest.fixture(scope="module")
def standalone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `kubeadm init` makes of certificates."""
    folder = tmp_path_factory.mktemp("kubeadm") / "pki"
    command: list[str | Path] = [built("kubernetes").binary("kubeadm"), "init", "phase", "certs", "all", f"--cert-dir={folder}"]
    run([*command, "--apiserver-advertise-address=192.0.2.1", "--apiserver-cert-extra-sans=localhost", "--kubernetes-version=v1.35.1"], timeout=120)
    return folder


async def test_a_name_that_is_added_later_is_in_the_certificate_that_a_running_api_server_serves(bench: Bench, tmp_path: Path) -> None:
    """From the spec through the real cert-manager to a real API server, which is not started again. The kubelet's part is played: files change in one go."""
    await bench.finish()
    volume = tmp_path / "pki"
    mount(volume, await bench.data("demo-apiserver"))
    ca, _ = await bench.write(tmp_path, "demo-ca")
    context = ssl.create_default_context(cafile=str(ca))

    def names(port: int) -> set[str]:
        with socket.create_connection(("127.0.0.1", port), timeout=20) as tcp, context.wrap_socket(tcp, server_hostname="localhost") as tls:
            found = x509.load_der_x509_certificate(tls.getpeercert(binary_form=True) or b"").extensions
        has = found.get_extension_for_class(x509.SubjectAlternativeName).value
        return {*has.get_values_for_type(x509.DNSName), *map(str, has.get_values_for_type(x509.IPAddress))}

    with api_servers(tmp_path) as servers:
        with servers.running("one", f"--tls-cert-file={volume}/tls.crt", f"--tls-private-key-file={volume}/tls.key") as (daemon, plane):
            pid, before = daemon.pid(), names(plane.port)
            assert "late.demo.example" not in before
            await bench.kube.merge(MANAGED_CONTROL_PLANE, "demo", bench.namespace, {"spec": {"certSANs": ["late.demo.example", "203.0.113.7"]}})
            bench.look_again(await plane_status(bench.kube, bench.namespace))
            await bench.finish()
            mount(volume, await bench.data("demo-apiserver"))

            async def served() -> bool:
                return "late.demo.example" in await asyncio.to_thread(names, plane.port)

            await bench.until("the API server serves the new certificate", served)
            assert names(plane.port) == before | {"late.demo.example", "203.0.113.7"}
            assert daemon.pid() == pid


def mount(volume: Path, data: dict[str, str]) -> None:
    """A Secret's files as the kubelet mounts them, or changes them (pkg/volume/util/atomic_writer.go): by one link, and then the old files go.

    The API server watches the files behind the links, and hears only of that they are gone (dynamiccertificates, handleWatchEvent).
    """
    before = (volume / "..data").resolve()
    content = volume / f"..{secrets.token_hex(4)}"
    content.mkdir(parents=True)
    for key in ("tls.crt", "tls.key"):
        (content / key).write_bytes(base64.b64decode(data[key]))
    (volume / "..data_tmp").symlink_to(content.name)
    (volume / "..data_tmp").rename(volume / "..data")
    for key in ("tls.crt", "tls.key"):
        if not (volume / key).is_symlink():
            (volume / key).symlink_to(f"..data/{key}")
    if before.name != "..data":
        shutil.rmtree(before)


async def test_the_api_server_takes_the_approval_of_a_kubelets_request(plane: TestControlPlane, kube: Kube, namespace: str) -> None:
    """By the client that the controllers have of a workload cluster; the node itself makes the request."""
    asked = request(f"n-{namespace}", (f"n-{namespace}", "10.0.0.1"))
    name = f"csr-{namespace}"
    body = json.dumps({**asked, "metadata": {"name": name}, "spec": {key: value for key, value in asked["spec"].items() if key not in ("username", "groups")}})
    plane.kubectl("create", "clusterrolebinding", namespace, "--clusterrole=system:node", "--group=system:nodes")  # a cluster has the Node authorizer for this
    plane.kubectl("create", f"--as=system:node:n-{namespace}", "--as-group=system:nodes", "-f", "-", stdin=body)
    found = await kube.get(CSR, name)
    assert found and is_pending(found)
    assert objection(found, {f"n-{namespace}": Member(f"n-{namespace}", frozenset({"10.0.0.1"}))}) == ""
    await kube.approve(found, reason="Test", message="why")
    after = await kube.get(CSR, name)
    assert after and [item["type"] for item in after["status"]["conditions"]] == ["Approved"] and not is_pending(after)
    with pytest.raises(KubeError) as stale:
        await kube.approve(found, reason="Test", message="once more, as it was read")
    assert stale.value.reason == "Conflict"


async def test_a_cluster_of_0_2_0_gets_an_anchor_with_the_same_key(bench: Bench, tmp_path: Path) -> None:
    """What the old CA has signed is verified by the new one, and what the new one signs by a kubeconfig with the old one."""
    kube = bench.kube
    made = [*certificates.authorities(bench.plan), *certificates.leaf_certificates(bench.plan)]
    for obj in made:
        if obj["kind"] == "Certificate" and obj["spec"].get("isCA"):
            obj["spec"]["issuerRef"]["name"] = certificates.ROOT_ISSUER
        await kube.apply(obj)

    async def issued() -> bool:
        found = await kube.list(CERTIFICATE, bench.namespace)
        return all(any(item["type"] == "Ready" and item["status"] == "True" for item in (obj.get("status") or {}).get("conditions", [])) for obj in found)

    await bench.until("cert-manager issues as for CKP 0.2.0", issued)
    before, old_leaf = await bench.certificate("demo-ca"), await bench.certificate("demo-apiserver")
    assert before.issuer != before.subject
    old_key = (await bench.data("demo-ca"))["tls.key"]
    await bench.finish()
    after = await bench.certificate("demo-ca")
    assert after.issuer == after.subject == before.subject
    assert (await bench.data("demo-ca"))["tls.key"] == old_key
    identifiers = [cert.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest for cert in (before, after)]
    assert identifiers[0] == identifiers[1], "OpenSSL compares it with that in the leaves"
    assert await bench.certificate("demo-apiserver") == old_leaf, "no leaf is issued again"
    ca, _ = await bench.write(tmp_path, "demo-ca")
    with tls_server(*(await bench.write(tmp_path, "demo-apiserver"))) as port:
        for name in CLIENTS:
            if verify := client(name, tmp_path):
                assert verify(ca, port) == "", name
    requests = await kube.list(CERTIFICATE_REQUEST, bench.namespace)
    pins = {cert.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo) for cert in (before, after)}
    assert len(pins) == 1, "kubeadm's discovery pins this hash"
    assert len([item for item in requests if item["spec"]["issuerRef"]["name"] == certificates.ROOT_ISSUER]) == 6, "three of 0.2.0, three for the chain"
