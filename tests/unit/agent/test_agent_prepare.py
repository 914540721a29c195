"""What is decided from the host, what is written for it, and that nobody can write through it what he must not."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from ckp.agent.fetch.bundles import bundle_folder
from ckp.agent.journal import Journal
from ckp.agent.messages import JoinFile, to_json
from ckp.agent.node import join, preflight
from ckp.agent.system import facts, kubelet_flags, prepare
from ckp.agent.system.prepare import HostDecisions
from ckp.hostkit.errors import InvalidInput

ORDINARY = HostDecisions("v2", "systemd", False, "overlayfs")
LAB = HostDecisions("v1", "cgroupfs", True, "overlayfs", {"kubelet": {"evictionHard": {"nodefs.available": "1Gi"}}})


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(str(tmp_path / "journal.json"), str(tmp_path / "saved"))


@pytest.fixture
def etc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The places below /etc, moved into a folder of the test."""
    root = tmp_path / "root"
    for name in ("SYSCTL_FILE", "MODULES_FILE", "CONTAINERD_CONFIG", "CERTS_D", "CRICTL_CONFIG", "PATCHES_DIR"):
        monkeypatch.setattr(prepare, name, f"{root}{getattr(prepare, name)}")
    for name in ("DEBIAN_FILE", "RHEL_FILE"):
        monkeypatch.setattr(kubelet_flags, name, f"{root}{getattr(kubelet_flags, name)}")
    return root / "etc"


def test_a_usual_host_gets_no_special_settings() -> None:
    assert ORDINARY.kubelet() == {"cgroupDriver": "systemd"}
    assert ORDINARY.ignored_preflight() == [] and ORDINARY.notes == []


def test_a_v1_host_without_capabilities_gets_what_it_needs_and_its_overrides() -> None:
    assert LAB.kubelet() == {"cgroupDriver": "cgroupfs", "failCgroupV1": False, "evictionHard": {"nodefs.available": "1Gi"}}
    assert LAB.ignored_preflight() == ["SystemVerification"]
    assert len(LAB.notes) == 3


@pytest.mark.parametrize(("decisions", "systemd", "restrict"), [(ORDINARY, True, False), (LAB, False, True)])
def test_containerds_configuration_is_toml_and_follows_the_decisions(decisions: HostDecisions, systemd: bool, restrict: bool) -> None:
    config = tomllib.loads(prepare.containerd_config(decisions, "r.example:5000/ckp/pause:3.10"))
    cri = config["plugins"]["io.containerd.grpc.v1.cri"]
    assert config["version"] == 2
    assert cri["sandbox_image"] == "r.example:5000/ckp/pause:3.10"
    assert cri["restrict_oom_score_adj"] is restrict
    assert cri["containerd"]["runtimes"]["runc"]["options"]["SystemdCgroup"] is systemd
    assert cri["registry"]["config_path"] == "/etc/containerd/certs.d"


def test_containerd_gets_the_registry_and_its_ca(journal: Journal, etc: Path) -> None:
    prepare.containerd(journal, ORDINARY, "r.example:5000/ckp/pause:3.10", "r.example:5000/ckp", "PEM")
    hosts = tomllib.loads((etc / "containerd/certs.d/r.example:5000/hosts.toml").read_text())
    assert hosts["server"] == "https://r.example:5000"
    assert hosts["host"]["https://r.example:5000"]["ca"].endswith("r.example:5000/ca.crt")
    assert (etc / "containerd/certs.d/r.example:5000/ca.crt").read_text() == "PEM"
    assert "containerd.sock" in (etc / "crictl.yaml").read_text()


def test_written_files_are_removed_and_originals_restored(journal: Journal, etc: Path) -> None:
    (etc / "containerd").mkdir(parents=True)
    (etc / "containerd/config.toml").write_text("mine")
    (etc / "default").mkdir()
    prepare.containerd(journal, ORDINARY, "r/p:1", "r", "PEM")
    prepare.kubelet(journal, LAB, prepare.kubelet_arguments("byoh://x", "10.0.0.1"))
    assert (etc / "default/kubelet").read_text() == 'KUBELET_EXTRA_ARGS="--provider-id=byoh://x --node-ip=10.0.0.1"\n'
    patch = json.loads((etc / "kubernetes/ckp-patches/kubeletconfiguration+merge.json").read_text())
    assert patch == LAB.kubelet()
    journal.restore_files()
    assert sorted(str(path.relative_to(etc)) for path in etc.rglob("*")) == ["containerd", "containerd/config.toml", "default"]
    assert (etc / "containerd/config.toml").read_text() == "mine"


@pytest.mark.parametrize("bad", ['r.example"\n[evil]', "r example", "", "-r", "r.example:port", 'x"'])
def test_a_malformed_registry_host_is_rejected(bad: str) -> None:
    with pytest.raises(InvalidInput):
        prepare.registry_host(bad)


@pytest.mark.parametrize("bad", ['p:1"\nroot = "/x', "p 1", ""])
def test_an_image_that_is_none_is_refused(bad: str) -> None:
    with pytest.raises(InvalidInput):
        prepare.check_image(bad)


@pytest.mark.parametrize("bad", ['byoh://"; rm', "byoh://$(id)", "byoh://`id`", "a\nb", "a\\b"])
def test_a_provider_id_cannot_break_out_of_the_kubelets_environment(journal: Journal, etc: Path, bad: str) -> None:
    with pytest.raises(InvalidInput):
        prepare.kubelet(journal, ORDINARY, prepare.kubelet_arguments(bad, ""))
    assert not etc.exists()


def test_labels_and_taints_are_arguments_of_the_kubelet_and_nothing_else() -> None:
    text = prepare.kubelet_arguments("byoh://x", "10.0.0.1", ["example.org/disk=ssd", "rack=r7"], ["dedicated=db:NoSchedule", "gpu:NoExecute"])
    assert text.endswith("--node-labels=example.org/disk=ssd,rack=r7 --register-with-taints=dedicated=db:NoSchedule,gpu:NoExecute")
    for bad in ("rack=r7 --anonymous-auth=true", 'a="b', "a=b,c=d", "a=b\n"):
        with pytest.raises(InvalidInput):
            prepare.kubelet_arguments("", "", [bad])


def test_the_kubelet_is_always_told_its_nodes_name() -> None:
    assert prepare.kubelet_arguments("byoh://x", "10.0.0.1", node_name="worker-1-2").startswith("--hostname-override=worker-1-2 ")
    for bad in ("Worker_1", "worker-1 --anonymous-auth=true", "-v", "a\n", "x" * 254):
        with pytest.raises(InvalidInput):
            prepare.kubelet_arguments("", "", node_name=bad)


@pytest.mark.parametrize(
    "name", ["worker-1", "Worker_1", "worker-3.site.example", "x" * 64, "localhost", "(none)", "", b"caf\xe9".decode("utf-8", "surrogateescape")]
)
def test_a_host_may_be_called_anything_by_its_owner(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: name)
    assert to_json(facts.host_facts()).encode(), "it is only shown"
    assert facts.host_facts().hostname == name.replace("\udce9", "\ufffd")


def test_overrides_that_can_not_be_read_stop_and_change_nothing(tmp_path: Path) -> None:
    path = tmp_path / "host.json"
    for text in ("{", "[]", '{"kubelet": []}'):
        path.write_text(text)
        with pytest.raises(InvalidInput):
            prepare.decide(str(path))
    path.write_text('{"kubelet": {"maxPods": 10}}')
    assert prepare.decide(str(path)).kubelet()["maxPods"] == 10


@pytest.mark.parametrize(("controllers", "wanted"), [("cpu memory pids\n", "v2"), ("", "v1"), (None, "v1")])
def test_the_cgroup_version_is_read_from_the_controllers(monkeypatch: pytest.MonkeyPatch, controllers: str | None, wanted: str) -> None:
    monkeypatch.setattr(facts, "read_text", lambda path, default="": controllers or default)
    assert facts.cgroup_version() == wanted


def test_the_file_system_of_a_path_is_that_of_the_longest_mount(monkeypatch: pytest.MonkeyPatch) -> None:
    table = (
        "1 0 8:1 / / rw - overlay overlay rw\n"
        "2 1 8:2 / /var/lib rw shared:1 - ext4 /dev/sda2 rw\n"
        "3 2 8:3 / /var/lib/containerd rw - xfs /dev/sdb rw\n"
        "4 1 8:4 / /var/lib/contain rw - tmpfs none rw\n"
    )
    monkeypatch.setattr(facts, "read_text", lambda path, default="": table)
    assert facts.file_system_of("/var/lib/containerd") == "xfs"
    assert facts.file_system_of("/var/lib/containers") == "ext4"
    assert facts.file_system_of("/usr") == "overlay"


@pytest.mark.parametrize(
    "path", ["relative", "/etc/../etc/shadow", "/a//b", "//a", "/etc/ckp-agent/config.json", "/var/lib/ckp-agent/journal.json", "/proc/sys/x", "/a/"]
)
def test_bootstrap_files_have_plain_paths_and_not_ours(path: str) -> None:
    with pytest.raises(InvalidInput):
        join.check_path(path)


@pytest.mark.parametrize("mode", ["4755", "rwx", "", "06000", "888"])
def test_bootstrap_files_have_plain_modes(mode: str) -> None:
    with pytest.raises(InvalidInput):
        join.check_mode(mode)


def test_no_bootstrap_file_is_written_if_one_is_refused(journal: Journal, tmp_path: Path) -> None:
    good = str(tmp_path / "good")
    with pytest.raises(InvalidInput):
        join.write_files(journal, (JoinFile(good, "x"), JoinFile("/proc/x", "x")))
    assert not Path(good).exists()
    join.write_files(journal, (JoinFile(good, "x", "0640"),))
    assert Path(good).read_text() == "x" and Path(good).stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("image", ["r:5000/ckp/b:v1", "r/b@sha256:abc", "r/b@sha256:" + "A" * 64, "", "--output=/x@sha256:" + "0" * 64 + "\n"])
def test_a_bundle_is_taken_by_digest_only(image: str) -> None:
    with pytest.raises(InvalidInput):
        bundle_folder("/s", image)


def test_a_bundle_lies_under_its_digest() -> None:
    assert bundle_folder("/s", "r:5000/ckp/b@sha256:" + "0" * 64) == "/s/bundles/" + "0" * 64


def test_listening_ports_are_read_from_the_kernels_table(tmp_path: Path) -> None:
    (tmp_path / "tcp").write_text(
        "  sl  local_address rem_address st\n   0: 0100007F:192B 00000000:0000 0A 0 0 0 0 0 1\n   1: 0100007F:0050 0100007F:1234 01 0 0 0 0 0 2\n"
    )
    (tmp_path / "tcp6").write_text("  sl\n   0: 00000000000000000000000000000000:280A 0:0000 0A 0 0 0 0 0 3\n")
    assert preflight.listeners(str(tmp_path)) == {6443, 10250}
