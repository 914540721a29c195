"""A standalone installation rejects invalid options before it changes anything, continues after a failure, and does nothing twice."""

from __future__ import annotations

import dataclasses
import errno
import ipaddress
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ckp.agent.fetch import copies, images
from ckp.agent.fetch.images import ImagePulls
from ckp.agent.journal import Journal
from ckp.agent.node import preflight
from ckp.agent.node.preflight import Findings
from ckp.agent.system import facts, prepare, resolver
from ckp.agent.system.prepare import HostDecisions
from ckp.hostkit.errors import AgentError, InvalidInput, VerificationFailed
from ckp.hosttool.__main__ import main as tool
from ckp.standalone import checks, config, install, steps
from ckp.standalone.install import Screen
from ckp.standalone.options import NODE_NAME, Options, check
from ckp.standalone.steps import STEPS, Step
from ckp.verify.bundle import BundleManifest

ORDINARY = HostDecisions("v2", "systemd", False, "overlayfs")
LAB = HostDecisions("v1", "cgroupfs", True, "overlayfs", {"kubelet": {"imageGCHighThresholdPercent": 100}})
DIGEST = "@sha256:" + "a" * 64
IMAGES = {
    "kube-apiserver": "v1.35.1-ckp" + DIGEST,
    "kube-controller-manager": "v1.35.1-ckp" + DIGEST,
    "kube-scheduler": "v1.35.1-ckp" + DIGEST,
    "etcd": "3.5.15-0" + DIGEST,
    "coredns": "v1.11.3" + DIGEST,
    "pause": "3.10" + DIGEST,
    "cilium": "v1.19.5" + DIGEST,
    "cilium-operator-generic": "v1.19.5" + DIGEST,
    "local-path-provisioner": "v0.0.30" + DIGEST,
}
MANIFEST = BundleManifest("/b", "v1.35.1", "1.35.1-ckp", "debian", "12", "amd64", "r.example:5000/ckp", (), {}, IMAGES, key="ABCD")


@pytest.fixture
def options(tmp_path: Path) -> Options:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "keyring").write_bytes(b"x")
    return Options(bundle_folder=str(tmp_path / "bundle"), keyring=str(tmp_path / "keyring"), state_dir=str(tmp_path / "state"), advertise_address="10.0.0.5")


def changed(options: Options, **values: Any) -> Options:
    return Options(**{**vars(options), **values})


def test_the_twelve_steps_have_the_documented_order() -> None:
    assert [step.name for step in STEPS] == ["verify", "system", "containerd", "runc", "kernel", "packages", "swap", "init", "kubectl", "helm", "cni", "csi"]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"pod_cidr": "10.244.0.0/33"}, "is not a CIDR"),
        ({"pod_cidr": "pods"}, "is not a CIDR"),
        ({"pod_cidr": "10.244.1.0/16"}, "host bits set"),
        ({"pod_cidr": "10.96.0.0/16"}, "overlap"),
        ({"pod_cidr": "10.0.0.0/8"}, "overlap"),
        ({"service_cidr": "fd00:96::/112"}, "the service CIDR fd00:96::/112 is an IPv6 network"),
        ({"pod_cidr": "fd00:244::/56"}, "the pod CIDR fd00:244::/56 is an IPv6 network"),
        ({"pod_cidr": "fd00:244::/56", "service_cidr": "fd00:96::/112"}, "is an IPv6 network: a standalone cluster has IPv4 networks"),
        ({"advertise_address": "fd00::5"}, "the advertise address fd00::5 is an IPv6 address"),
        ({"pod_cidr": "10.244.0.0/28"}, "too small"),
        ({"service_cidr": "10.96.0.0/30"}, "too small"),
        ({"service_cidr": "10.0.0.0/9"}, "too large"),
        ({"pod_cidr": "127.0.0.0/16"}, "can't be routed"),
        ({"pod_cidr": "224.0.0.0/16"}, "can't be routed"),
        ({"cni": "calico"}, "Calico, the release's default network, is not built"),
        ({"cni": "flannel"}, "not known"),
        ({"advertise_address": "host"}, "is not an IP address"),
        ({"virtual_address": "fd00::9"}, "is not an IPv4 address"),
        ({"virtual_address": "10.0.0.5"}, "is the advertise address as well"),
        ({"virtual_address": "10.244.0.9"}, "is in the pod CIDR"),
        ({"virtual_address": "127.0.0.9"}, "is not one of a host"),
        ({"cert_sans": ("not a name",)}, "can't be in a certificate"),
        ({"node_name": "Node_1"}, "can't be a node's name"),
        ({"node_name": "a..b"}, "can't be a node's name"),
        ({"node_name": "n" * 64}, "can't be a node's name"),
        ({"bundle_folder": ""}, "exactly one of"),
        ({"bundle_image": "r/b@sha256:0"}, "exactly one of"),
        ({"bundle_folder": "/nowhere"}, "does not exist"),
        ({"keyring": "/nowhere"}, "does not exist"),
        ({"registry_ca_file": "/nowhere"}, "does not exist"),
    ],
)
def test_invalid_options_are_rejected_with_the_reason(options: Options, values: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        check(changed(options, **values))
    assert words in caught.value.brief
    check(options)


def test_cluster_networks_that_overlap_with_the_hosts_routes_are_found() -> None:
    routes = [
        (ipaddress.ip_network("10.244.3.0/24"), "eth1"),
        (ipaddress.ip_network("10.244.0.0/24"), "cilium_host"),
        (ipaddress.ip_network("192.168.0.0/16"), "eth0"),
        (ipaddress.ip_network("fe80::/64"), "eth0"),
    ]
    assert checks.overlaps(ipaddress.ip_network("10.244.0.0/16"), "pod CIDR", routes) == [
        "the pod CIDR 10.244.0.0/16 overlaps 10.244.3.0/24, which this host reaches over eth1"
    ]
    assert checks.overlaps(ipaddress.ip_network("10.0.0.0/16"), "pod CIDR", routes) == []


def test_findings_about_memory_disk_and_ports_are_reported_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "memory_bytes", lambda: 1600 << 20)
    monkeypatch.setattr(facts, "disk", lambda path="": (100 << 30, 3 << 30))
    monkeypatch.setattr(preflight, "listeners", lambda proc="": {6443})
    monkeypatch.setattr(preflight, "owner_of", lambda port: "nginx (pid 7)")
    found = Findings()
    preflight.memory(found, checks.MEMORY_MIB)
    preflight.disk(found, checks.DISK_GIB)
    preflight.ports(found, checks.PORTS)
    with pytest.raises(AgentError) as caught:
        found.raise_if_any("this host can't become a cluster")
    text = caught.value.render()
    assert "3 reasons, nothing was changed" in text
    for words in ("1600 MiB of memory, 1700 MiB are needed", "3.0 GiB free, 10 GiB are needed", "port 6443 is taken by nginx (pid 7)"):
        assert words in text


def test_what_an_installation_has_taken_is_not_asked_for_again(options: Options, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As by `ckp site check` of a host that is a cluster already."""
    monkeypatch.setattr(facts, "disk", lambda path="": (100 << 30, 3 << 30))
    monkeypatch.setattr(preflight, "listeners", lambda proc="": set(checks.PORTS))
    journal = Journal(str(tmp_path / "journal.json"), str(tmp_path / "saved"))
    installer = cast(Any, SimpleNamespace(installed=lambda _names: {"kubelet": "1.35.1-ckp"}))

    def taken() -> list[str]:
        words = ("10 GiB are needed", "is taken by", "Kubernetes is installed already")
        return [word for word in words for line in checks.preflight_findings(options, journal, installer).lines if word in line]

    assert taken() == ["10 GiB are needed", *["is taken by"] * len(checks.PORTS), "Kubernetes is installed already"]
    journal.add_packages(["kubelet"])
    assert taken() == []


def names(options: Options) -> list[str]:
    """The findings about the node's name."""
    found = Findings()
    checks.node_name(found, options)
    return found.lines


@pytest.mark.parametrize("name", ["Worker1", "worker-1.site.example"])
def test_a_node_is_called_as_its_os_in_lower_case(options: Options, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: name)
    monkeypatch.setattr(steps, "_verify", lambda context: MANIFEST)
    assert names(options) == []
    journal = Journal(str(tmp_path / "journal.json"), str(tmp_path / "saved"))
    context = steps.Context(options, journal, Any, lambda text: None)  # type: ignore[arg-type]
    assert context.plan().node_name == name.lower()
    journal.note(NODE_NAME, name.lower())
    monkeypatch.setattr(socket, "gethostname", lambda: "renamed")
    assert context.plan().node_name == name.lower(), "an interrupted installation goes on with its name"


@pytest.mark.parametrize("name", ["Worker_1", "n" * 64, "", "-x"])
def test_an_os_name_that_no_node_can_have_needs_node_name(options: Options, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: name)
    assert names(options) == [f"the host name {name!r} can't be a node's name: choose one with --node-name"]
    assert names(changed(options, node_name="worker-1")) == []


def test_kubeadm_and_the_kubelet_have_the_same_name(options: Options) -> None:
    assert documents(config.kubeadm_config(plan(options)))["InitConfiguration"]["nodeRegistration"]["name"] == "node-1"
    assert config.kubelet_arguments(plan(options)) == "--hostname-override=node-1 --node-ip=10.0.0.5"


@pytest.mark.parametrize(("servers", "own"), [("nameserver 127.0.0.1\n", True), ("", True), ("nameserver 10.0.0.53\n", False)])
def test_pods_get_name_servers_that_they_reach(options: Options, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, servers: str, own: bool) -> None:
    monkeypatch.setattr(resolver, "OWN", str(tmp_path / "own"))
    monkeypatch.setattr(resolver, "kubelets_file", lambda: str(tmp_path / "resolv.conf"))
    monkeypatch.setattr(resolver, "SYSTEM", str(tmp_path / "resolv.conf"))
    monkeypatch.setattr(resolver, "BEHIND_LOCAL_SERVERS", ())
    (tmp_path / "resolv.conf").write_text(servers)
    given: list[str] = []
    monkeypatch.setattr(prepare, "kubelet", lambda journal, decisions, arguments: given.append(arguments))
    journal = Journal(str(tmp_path / "journal.json"), str(tmp_path / "saved"))
    context = steps.Context(options, journal, Any, lambda text: None)  # type: ignore[arg-type]
    steps.write_kubelet(context, plan(options))
    assert (f"--resolv-conf={tmp_path}/own" in given[0]) is own
    assert ((tmp_path / "own").exists() and "nameserver 10.0.0.5" in (tmp_path / "own").read_text()) is own
    steps.write_kubelet(context, plan(options, dataclasses.replace(ORDINARY, overrides={"kubelet": {"resolvConf": "/mine"}})))
    assert "--resolv-conf" not in given[1], "host.json decides otherwise"


def test_a_host_with_only_ipv6_is_refused_before_anything_is_changed(options: Options, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(facts, "default_address", lambda hub="": "2001:db8::5")
    monkeypatch.setattr(preflight, "common", lambda *_: None)
    monkeypatch.setattr(checks, "host_routes", lambda: [])
    journal = Journal(str(tmp_path / "journal.json"), str(tmp_path / "saved"))
    found = checks.preflight_findings(changed(options, advertise_address=""), journal, SimpleNamespace())
    assert any("2001:db8::5 is an IPv6 address" in line and "--advertise-address" in line for line in found.lines)


def documents(text: str) -> dict[str, Any]:
    return {item["kind"]: item for item in map(json.loads, text.split("\n---\n"))}


def plan(options: Options, decisions: HostDecisions = ORDINARY) -> config.Plan:
    return config.Plan(options, MANIFEST, decisions, "r.example:5000/ckp", "10.0.0.5", "node-1")


def test_kubeadm_gets_the_releases_images_ten_year_certificates_and_the_networks(options: Options) -> None:
    found = documents(config.kubeadm_config(plan(options)))
    cluster, init = found["ClusterConfiguration"], found["InitConfiguration"]
    assert cluster["kubernetesVersion"] == "v1.35.1-ckp" and cluster["imageRepository"] == "r.example:5000/ckp"
    assert cluster["dns"] == {"imageRepository": "r.example:5000/ckp", "imageTag": "v1.11.3" + DIGEST}
    assert cluster["etcd"]["local"]["imageTag"] == "3.5.15-0" + DIGEST
    assert cluster["caCertificateValidityPeriod"] == cluster["certificateValidityPeriod"] == "87600h0m0s"
    assert (cluster["networking"]["podSubnet"], cluster["networking"]["serviceSubnet"]) == (options.pod_cidr, options.service_cidr)
    assert "certificatesDir" not in cluster, "it would leak into the kubelets' configuration"
    assert init["nodeRegistration"]["taints"] == [] and init["nodeRegistration"]["name"] == "node-1"
    assert found["KubeletConfiguration"]["cgroupDriver"] == "systemd" and "failCgroupV1" not in found["KubeletConfiguration"]


def test_the_hosts_decisions_reach_kubelet_and_cilium(options: Options) -> None:
    kubelet = documents(config.kubeadm_config(plan(options, LAB)))["KubeletConfiguration"]
    assert (kubelet["cgroupDriver"], kubelet["failCgroupV1"], kubelet["imageGCHighThresholdPercent"]) == ("cgroupfs", False, 100)
    assert config.cilium_values(plan(options, LAB))["securityContext"] == {"privileged": True}
    assert "securityContext" not in config.cilium_values(plan(options))


@pytest.mark.parametrize(("release", "longest"), [("v1.33.7", None), ("v1.34.3", None), ("v1.35.1", {"maxContainerRestartPeriod": "30s"})])
def test_the_kubelet_restarts_a_crashed_control_plane_within_half_a_minute(options: Options, release: str, longest: dict[str, str] | None) -> None:
    """KEP-5593: the field is behind a feature gate that is off before v1.35, and a kubelet with it would not start."""
    older = dataclasses.replace(plan(options), manifest=dataclasses.replace(MANIFEST, release=release))
    assert documents(config.kubeadm_config(older))["KubeletConfiguration"].get("crashLoopBackOff") == longest


def test_every_image_comes_from_the_registry(options: Options) -> None:
    values = config.cilium_values(plan(options))
    assert values["image"]["override"] == "r.example:5000/ckp/cilium:v1.19.5" + DIGEST
    assert values["operator"]["image"]["override"] == "r.example:5000/ckp/cilium-operator-generic:v1.19.5" + DIGEST
    assert (values["k8sServiceHost"], values["kubeProxyReplacement"]) == ("10.0.0.5", True)
    images = plan(options).images()
    assert images[0].endswith("/pause:3.10" + DIGEST) and len(images) == len(IMAGES)
    assert all(image.startswith("r.example:5000/ckp/") for image in images)


def test_the_control_planes_own_pods_are_pinned_by_kubeadms_patches(options: Options) -> None:
    patches = config.static_pod_patches(plan(options))
    assert sorted(patches) == [f"{name}+strategic.json" for name in ("kube-apiserver", "kube-controller-manager", "kube-scheduler")]
    for name, text in patches.items():
        (container,) = json.loads(text)["spec"]["containers"]
        assert container == {"name": name.partition("+")[0], "image": f"r.example:5000/ckp/{name.partition('+')[0]}:v1.35.1-ckp{DIGEST}"}


class Bench:
    """An installation with steps that do nothing, on a host that nothing stands against."""

    def __init__(self, options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
        self.options = options
        self.did: list[str] = []
        self.fail: dict[str, AgentError] = {}
        self.shown = ""
        monkeypatch.setattr(install, "of_host", lambda: SimpleNamespace(installed=lambda names: {}))
        monkeypatch.setattr(checks, "preflight_findings", self.preflight)
        monkeypatch.setattr(steps, "start_pulls", lambda context: self.did.append("pulls"))
        monkeypatch.setattr(steps, "verify_bundle", lambda *_: MANIFEST)
        monkeypatch.setattr(steps, "_verify", lambda context: MANIFEST)
        self.findings = Findings()

    def preflight(self, *_: Any) -> Findings:
        self.did.append("preflight")
        return self.findings

    def step(self, name: str) -> Callable[[Any], str]:
        def do(context: Any) -> str:
            self.did.append(name)
            if name in self.fail:
                raise self.fail.pop(name)
            return ""

        return do

    def run(self) -> None:
        screen = Screen(len(STEPS), self.write)
        install.install(self.options, screen=screen, plan=[Step(step.name, step.title, self.step(step.name)) for step in STEPS])

    def write(self, text: str) -> None:
        self.shown += text


@pytest.fixture
def bench(options: Options, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(options, monkeypatch)


NAMES = [step.name for step in STEPS]


def test_all_steps_are_done_in_order_and_shown_with_their_times(bench: Bench) -> None:
    bench.run()
    assert [name for name in bench.did if name not in ("preflight", "pulls")] == NAMES
    assert "[ 3/12] containerd … done 0.0s" in bench.shown and "[12/12] Storage … done" in bench.shown
    assert "/etc/kubernetes/admin.conf" in bench.shown
    assert bench.did.index("pulls") == bench.did.index("runc") + 1, "images are pulled as soon as a runtime runs"


def test_blocking_findings_end_the_installation_before_its_first_step(bench: Bench) -> None:
    bench.findings.add("port 6443 is taken", "stop it")
    with pytest.raises(AgentError, match="port 6443 is taken"):
        bench.run()
    assert bench.did == ["preflight"]
    assert not Path(bench.options.state_dir).exists()


def test_findings_that_block_nothing_are_said_before_the_first_step(bench: Bench) -> None:
    bench.findings.add("swap is on", "the installer will turn it off", blocking=False)
    bench.run()
    assert bench.shown.startswith("note: swap is on: the installer will turn it off\n")


def test_a_failed_verification_changes_nothing(bench: Bench) -> None:
    bench.fail["verify"] = VerificationFailed("kubelet.deb was changed after it was signed")
    with pytest.raises(VerificationFailed):
        bench.run()
    assert bench.did == ["preflight", "verify"]
    assert not Path(bench.options.state_dir).exists()
    assert "[ 1/12] Verify packages … FAILED" in bench.shown


@pytest.mark.parametrize("failing", NAMES[1:])
def test_a_second_run_continues_with_the_step_that_failed(bench: Bench, failing: str) -> None:
    bench.fail[failing] = AgentError("no", reason="X")
    with pytest.raises(AgentError) as caught:
        bench.run()
    assert f"step {NAMES.index(failing) + 1} of 12" in caught.value.brief
    bench.did.clear()
    bench.run()
    assert [name for name in bench.did if name != "pulls"] == ["verify", *NAMES[NAMES.index(failing) :]], "verification is repeated, nothing else"


def test_a_completed_installation_is_reported_and_not_repeated(bench: Bench) -> None:
    bench.run()
    bench.did.clear()
    bench.run()
    assert bench.did == []
    assert "is already a standalone cluster (v1.35.1); nothing was changed" in bench.shown


def test_an_installation_is_not_continued_with_other_settings(bench: Bench) -> None:
    bench.fail["init"] = AgentError("no")
    with pytest.raises(AgentError):
        bench.run()
    bench.options = changed(bench.options, pod_cidr="10.245.0.0/16")
    with pytest.raises(InvalidInput) as caught:
        bench.run()
    assert "pod_cidr: 10.244.0.0/16 then, 10.245.0.0/16 now" in caught.value.details


def test_an_installation_with_a_virtual_address_is_not_continued_without_it(bench: Bench) -> None:
    bench.fail["init"] = AgentError("no")
    bench.options = changed(bench.options, virtual_address="10.0.0.9", cert_sans=("b.example", "a.example"))
    with pytest.raises(AgentError):
        bench.run()
    bench.options = changed(bench.options, cert_sans=("a.example", "b.example"))
    bench.fail["init"] = AgentError("again")
    with pytest.raises(AgentError, match="again"):
        bench.run()
    bench.options = changed(bench.options, virtual_address="", cert_sans=())
    with pytest.raises(InvalidInput) as caught:
        bench.run()
    assert "virtual_address: 10.0.0.9 then, (default) now" in caught.value.details and "cert_sans: a.example,b.example then" in caught.value.details


def test_a_node_of_a_managed_cluster_is_rejected(bench: Bench) -> None:
    Path(bench.options.state_dir).mkdir()
    (Path(bench.options.state_dir) / "journal.json").write_text('{"member": {"cluster": "default/demo"}}')
    with pytest.raises(InvalidInput, match="default/demo"):
        bench.run()
    with pytest.raises(InvalidInput, match="default/demo"):
        install.reset(bench.options.state_dir)
    assert bench.did == []


def test_there_is_nothing_to_reset_on_a_free_host(options: Options) -> None:
    with pytest.raises(InvalidInput, match="nothing to undo"):
        install.reset(options.state_dir, screen=Screen(1, lambda text: None))


def test_a_failed_pull_is_an_error_only_for_the_step_that_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def pull(image: str, seconds: float, cancelled: Callable[[], bool]) -> None:
        assert seconds == 900.0 and not cancelled()
        if image == "bad":
            raise AgentError("no route")

    monkeypatch.setattr(images, "pull_image", pull)
    pulls = ImagePulls(["a", "bad", "b"], parallel=2)
    pulls.wait(["a", "b"])
    with pytest.raises(AgentError, match="image bad can't be pulled"):
        pulls.wait(["a", "bad"])


def test_errors_are_sentences_with_exit_codes(capsys: pytest.CaptureFixture[str], options: Options) -> None:
    code = tool(["standalone", "install", "--bundle", options.bundle_folder, "--keyring", options.keyring, "--cni", "calico", "--state-dir", options.state_dir])
    assert code == 2
    assert "error: Calico" in capsys.readouterr().err
    assert tool(["standalone", "status", "--state-dir", options.state_dir]) == 1


# -- a bundle's folder


@pytest.fixture
def folder(options: Options) -> Path:
    """A bundle's folder, whose files name themselves."""
    for name in ("bundle.json", "bundle.json.asc", "kubelet.deb"):
        (Path(options.bundle_folder) / name).write_text(name)
    return Path(options.bundle_folder)


def verified(options: Options, monkeypatch: pytest.MonkeyPatch, seen: Callable[[str], None] = lambda _: None) -> str:
    """The folder that the installation uses after the verification; `seen` is called with it in place of that."""
    used = ""

    def verify(path: str, *_: Any) -> BundleManifest:
        nonlocal used
        used = path
        seen(path)
        return dataclasses.replace(MANIFEST, folder=path)

    monkeypatch.setattr(steps, "verify_bundle", verify)
    monkeypatch.setattr(steps, "check_fits", lambda _: None)
    monkeypatch.setattr(steps, "select", lambda *_: None)
    with pytest.raises(AgentError, match="lacks helm"):
        steps._verify(steps.Context(options, install.journal_of(options.state_dir), cast(Any, None), lambda _: None))
    return used


def test_a_file_exchanged_after_the_verification_is_not_installed(options: Options, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever can write to the folder can do so at any moment; what is verified is a copy that only root reaches."""

    def exchange(_: str) -> None:
        (folder / "kubelet.deb").write_text("evil")
        folder.rename(folder.with_name("moved"))
        folder.mkdir()

    used = Path(verified(options, monkeypatch, exchange))
    assert used.is_relative_to(options.state_dir)
    assert sorted((path.name, path.read_text()) for path in used.iterdir()) == [(name, name) for name in ("bundle.json", "bundle.json.asc", "kubelet.deb")]
    assert used.stat().st_mode & 0o777 == 0o700 and all(path.stat().st_mode & 0o777 == 0o600 for path in used.iterdir())


def test_a_copy_is_made_anew_by_each_run_and_removed_with_a_bad_one(options: Options, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used = Path(verified(options, monkeypatch))
    (used / "left.deb").write_text("of an earlier run")
    (folder / "kubelet.deb").write_text("newer")
    assert Path(verified(options, monkeypatch)) == used
    assert not (used / "left.deb").exists() and (used / "kubelet.deb").read_text() == "newer"
    monkeypatch.undo()
    with pytest.raises(VerificationFailed):
        steps._verify(steps.Context(options, install.journal_of(options.state_dir), cast(Any, None), lambda _: None))
    assert not used.exists() and folder.exists()


@pytest.mark.parametrize("spoil", ["link", "folder", "fifo", "many", "large"])
def test_what_is_no_flat_folder_of_files_is_refused_and_leaves_no_copy(options: Options, folder: Path, monkeypatch: pytest.MonkeyPatch, spoil: str) -> None:
    if spoil == "link":
        (folder / "x").symlink_to("/etc/shadow")
    elif spoil == "folder":
        (folder / "x").mkdir()
    elif spoil == "fifo":
        os.mkfifo(folder / "x")
    elif spoil == "many":
        for number in range(300):
            (folder / str(number)).touch()
    else:
        monkeypatch.setattr(copies, "MAX_BUNDLE", 20)
    with pytest.raises(VerificationFailed) as caught:
        copies.copy_bundle(str(folder), options.state_dir)
    assert caught.value.check in ("regular files only", "folder", "size")
    assert list((Path(options.state_dir) / "bundles").iterdir()) == []


def test_a_full_disk_is_said_and_leaves_no_copy(options: Options, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(copies, "_copy", full)
    with pytest.raises(AgentError, match="No space left on device") as caught:
        copies.copy_bundle(str(folder), options.state_dir)
    assert caught.value.reason == "DiskFull"
    assert list((Path(options.state_dir) / "bundles").iterdir()) == []


@pytest.mark.parametrize("spoil", ["a writable folder", "a writable parent", "another owner"])
def test_a_state_folder_that_others_can_write_to_is_refused(options: Options, folder: Path, spoil: str) -> None:
    state = Path(options.state_dir)
    state.mkdir(0o755)
    if spoil == "a writable folder":
        (state / "bundles").mkdir()
        (state / "bundles").chmod(0o777)
    elif spoil == "a writable parent":
        state.chmod(0o775)
    else:
        os.chown(state, 12345, 12345)
    with pytest.raises(InvalidInput, match="can be changed by others than root"):
        copies.copy_bundle(str(folder), options.state_dir)
    state.chmod(0o755)


def test_the_copy_is_removed_when_the_cluster_is_ready(bench: Bench) -> None:
    copy = Path(bench.options.state_dir) / "bundles" / copies.COPY
    copy.mkdir(parents=True)
    bench.run()
    assert not copy.exists()
