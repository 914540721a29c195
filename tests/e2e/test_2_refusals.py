"""Fail closed, with a sentence a person understands, and nothing changed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ckp.clients.compass import Session, read_config
from ckp.clients.signing.openpgp import SigningKey
from ckp.distribution.packages.pack import Recipe, ar_member, ar_members, make_package, sign_deb
from ckp.kits.files import sha256_file
from ckp.kits.processes import Finished, run
from ckp.lab.lab import HostSpec, Lab, LabHost
from ckp.site.enrol import Enrolment
from ckp.site.install import AGENT_CONFIG, REGISTRY_CA, root_ca
from ckp.site.lab import OS
from tests.e2e.conftest import World, ckp
from tests.support import odd_hosts

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("well")]

SPARE = HostSpec("spare", "10.88.0.60")


@pytest.fixture(scope="module")
def spare(world: World) -> Iterator[LabHost]:
    """A fresh host with the agent's package and nothing else."""
    host = world.hosts.lab.ensure_host(SPARE)
    try:
        world.site.install_agent(host)
        yield host
    finally:
        host.remove()


def snapshot(host: LabHost) -> str:
    """What an installation would change."""
    script = "dpkg-query -W; find /etc /usr/bin /opt -newer /etc/ckp-agent/host.json -type f ! -path '/etc/ckp-agent/*' | sort; sysctl -n net.ipv4.ip_forward"
    return host.run(["sh", "-c", script], timeout=60).stdout


def push_bundle(world: World, folder: Path, tag: str) -> str:
    """Push a bundle's folder under a tag of its own and return its reference by digest."""
    server = world.site.registry
    repository = "ckp/byoh-bundle-debian_12_x86-64_k8s"
    argv: list[str | Path] = [
        world.site.dist.built["imgpkg"].binary("imgpkg"),
        "push",
        "--image",
        f"{Lab.GATEWAY}:{server.port}/{repository}:{tag}",
        "--file",
        folder,
    ]
    run([*argv, "--registry-ca-cert-path", server.ca, "--tty=false"], timeout=120)
    digest = server.client().digest(repository, tag)
    assert digest
    return f"{server.address}/{repository}@{digest}"


@pytest.fixture
def bundle(world: World, tmp_path: Path) -> Path:
    """A copy of the release's bundle that a test may spoil."""
    world.dist.make_bundles(world.site.registry.address, [OS])
    target = tmp_path / "bundle"
    shutil.copytree(world.dist.bundles[0].folder, target)
    return target


def relist(bundle: Path, package: str, key: SigningKey) -> None:
    """List a spoilt package with its new digest and sign the list again, so that only the package's own faults are left to find."""
    manifest = json.loads((bundle / "bundle.json").read_text())
    entry = next(item for item in manifest["packages"] if item["name"] == package)
    entry["sha256"] = sha256_file(bundle / entry["file"])
    text = json.dumps(manifest)
    (bundle / "bundle.json").write_text(text)
    (bundle / "bundle.json.asc").write_bytes(key.sign(text.encode(), armor=True))


def refused(host: LabHost, reference: str, *words: str) -> None:
    before = snapshot(host)
    done: Finished = host.run(["ckp-agent", "standalone", "install", "--bundle-image", reference, "--registry-ca", REGISTRY_CA], timeout=300, check=False)
    said = done.stdout + done.stderr
    assert done.code != 0, said
    for word in words:
        assert word in said, said
    assert snapshot(host) == before


def flip(file: Path, where: float) -> None:
    data = bytearray(file.read_bytes())
    data[int(len(data) * where)] ^= 1
    file.write_bytes(bytes(data))


def test_a_host_without_room_and_with_a_runtime_of_others_is_refused_with_both_reasons(world: World, spare: LabHost) -> None:
    odd_hosts.package_of_others(spare, "docker-ce")
    odd_hosts.fill_disk_of_var_lib(spare)
    try:
        reference = f"{world.site.registry.address}/ckp/byoh-bundle-debian_12_x86-64_k8s@sha256:{'0' * 64}"
        refused(spare, reference, "for 2 reasons, nothing was changed", "10 GiB are needed", "is installed already (docker-ce 1.7.0-1)")
    finally:
        odd_hosts.empty_disk_of_var_lib(spare)
        spare.run(["dpkg", "--purge", "docker-ce"], timeout=60)


def test_a_package_with_one_flipped_byte(world: World, spare: LabHost, bundle: Path) -> None:
    flip(bundle / "kubelet.deb", 0.5)
    refused(spare, push_bundle(world, bundle, "flipped"), "kubelet.deb")


def test_a_flipped_byte_whose_digest_was_listed_anew_still_fails_by_its_signature(world: World, spare: LabHost, bundle: Path) -> None:
    flip(bundle / "kubelet.deb", 0.5)
    relist(bundle, "kubelet", world.dist.key)
    refused(spare, push_bundle(world, bundle, "flipped-listed"), "kubelet.deb", "signature")


def test_a_package_signed_by_another_key(world: World, spare: LabHost, bundle: Path, tmp_path: Path) -> None:
    stranger = SigningKey.ensure(tmp_path / "keys", user_id="Coredge.io <support@coredge.io>")
    deb = bundle / "kubectl.deb"
    members = [(name, content) for name, content in ar_members(deb.read_bytes()) if name != "_gpgorigin"]
    deb.write_bytes(sign_deb(b"!<arch>\n" + b"".join(ar_member(name, content) for name, content in members), stranger))
    relist(bundle, "kubectl", world.dist.key)
    refused(spare, push_bundle(world, bundle, "stranger"), "kubectl.deb")


def test_a_package_of_another_maintainer(world: World, spare: LabHost, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ckp.distribution.packages import pack as packages

    monkeypatch.setattr(packages, "MAINTAINER", "Somebody Else")
    monkeypatch.setattr(packages, "RECIPE", "other-maintainer")
    dist = world.dist
    made = make_package(Recipe.read("helm"), "3.19.2-ckp", dist.built, dist.built["nfpm"].binary("nfpm"), dist.key)
    shutil.copy(made.path, bundle / "helm.deb")
    relist(bundle, "helm", dist.key)
    refused(spare, push_bundle(world, bundle, "maintainer"), "helm.deb", "Maintainer is")


def test_a_bundle_whose_digest_differs(world: World, spare: LabHost, bundle: Path) -> None:
    reference = push_bundle(world, bundle, "digest")
    wrong = reference[:-4] + ("0000" if reference[-4:] != "0000" else "1111")
    refused(spare, wrong)


def test_overlapping_and_malformed_networks_of_a_standalone_node(world: World, spare: LabHost) -> None:
    folder = "/var/cache/nothing"
    spare.run(["mkdir", "-p", folder], timeout=10)
    for arguments, words in (
        (["--pod-cidr", "10.96.0.0/16", "--service-cidr", "10.96.0.0/16"], "overlap"),
        (["--pod-cidr", "10.244.0.1/16"], "host bits"),
        (["--pod-cidr", "banana"], "not a CIDR"),
    ):
        done = spare.run(["ckp-agent", "standalone", "install", "--bundle", folder, *arguments], timeout=60, check=False)
        assert done.code == 2 and words in done.stdout + done.stderr


def test_a_busy_port(world: World, spare: LabHost, bundle: Path) -> None:
    spare.run(["systemd-run", "--unit=squatter", "--service-type=exec", "socat", "TCP-LISTEN:6443,fork", "EXEC:/bin/true"], timeout=20)
    try:
        world.wait(lambda: spare.run(["sh", "-c", "ss -Hltn sport = :6443 | grep -q ."], timeout=10, check=False).code == 0, "the port is taken")
        refused(spare, push_bundle(world, bundle, "good"), "6443")
    finally:
        spare.run(["systemctl", "stop", "squatter"], timeout=20)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--version", "v1.99.0"], "v1.35.1"),
        (["--pod-cidr", "10.88.0.0/16"], "overlap"),
        (["--pod-cidr", "10.42.0.0/16", "--service-cidr", "10.42.0.0/16"], "overlap"),
        (["--pod-cidr", "10.42.0.7/16"], "10.42.0.0/16"),
        (["--pod-cidr", "apple"], "apple"),
        (["--workers", "5"], "free"),
        (["--host-group", "nowhere"], "nowhere"),
    ],
)
def test_a_cluster_that_cannot_be(world: World, arguments: list[str], words: str) -> None:
    defaults = {"--version": "v1.35.1", "--host-group": "lab", "--workers": "1"}
    rest = [item for key, value in defaults.items() if key not in arguments for item in (key, value)]
    done = ckp("cluster", "create", "bad", *rest, *arguments, check=False)
    assert done.code != 0
    assert words in done.stderr
    assert "bad" not in ckp("cluster", "list").stdout


def configure(world: World, host: LabHost, psk: str) -> None:
    hub = world.site.inventory.network.hub
    config = {"hub": f"https://{hub}:8443", "channel": f"wss://{hub}:9443/v1/agent", "ca": f"{AGENT_CONFIG}/ca.pem"}
    host.push(root_ca().read_bytes(), f"{AGENT_CONFIG}/ca.pem")
    host.push(psk.encode(), f"{AGENT_CONFIG}/psk", mode=0o600)
    host.push(json.dumps(config).encode(), f"{AGENT_CONFIG}/config.json")


def said(host: LabHost) -> str:
    return host.run(["journalctl", "-u", "ckp-agent", "--no-pager", "-o", "cat"], timeout=20).stdout


def test_a_wrong_key_an_unapproved_host_and_a_stolen_identity(world: World, spare: LabHost) -> None:
    session = Session(read_config())
    configure(world, spare, "wrong-" * 6)
    spare.run(["systemctl", "restart", "ckp-agent"], timeout=60)
    world.wait(lambda: "key" in said(spare), "the agent says that its key is wrong", timeout=90)
    assert not [item for item in session.get("/host-requests")["items"] if item["source"] == SPARE.address]

    key = Enrolment(world.site, session).key()
    mine = spare.run(["cat", "/etc/machine-id"], timeout=10).stdout
    theirs = world.hosts.workers[0].run(["cat", "/etc/machine-id"], timeout=10).stdout
    spare.run(["systemctl", "stop", "ckp-agent"], timeout=60)
    spare.run(["tee", "/etc/machine-id"], timeout=10, stdin=theirs)
    configure(world, spare, key)
    spare.run(["systemctl", "start", "ckp-agent"], timeout=60)

    def waiting() -> list[dict[str, Any]]:
        return [item for item in session.get("/host-requests", state="pending")["items"] if item["machineId"] == theirs.strip()]

    world.wait(waiting, "the request is there, for a person to decide", timeout=90)
    assert waiting()[0]["duplicateOf"] == world.hosts.workers[0].name
    refused = ckp("host", "approve", waiting()[0]["id"], check=False)
    assert refused.code != 0 and "same machine-id" in refused.stderr, "a stolen identity is never approved by a slip"
    ckp("host", "reject", waiting()[0]["id"], "--reason", "not that machine")
    world.wait(lambda: "not that machine" in said(spare), "the agent says that it was rejected, and why", timeout=90)

    spare.run(["systemctl", "stop", "ckp-agent"], timeout=60)
    spare.run(["tee", "/etc/machine-id"], timeout=10, stdin=mine)
    configure(world, spare, key)
    spare.run(["systemctl", "start", "ckp-agent"], timeout=60)
    world.wait(
        lambda: [i for i in session.get("/host-requests", state="pending")["items"] if i["machineId"] == mine.strip()], "the request is there", timeout=90
    )
    assert SPARE.name not in [item["name"] for item in session.get("/hosts")["items"]]
    assert spare.run(["test", "-e", "/var/lib/ckp-agent/cert.pem"], timeout=10, check=False).code != 0
    request = next(i for i in session.get("/host-requests", state="pending")["items"] if i["machineId"] == mine.strip())
    ckp("host", "reject", request["id"], "--reason", "only a test")
    spare.run(["systemctl", "stop", "ckp-agent"], timeout=60)
