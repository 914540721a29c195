"""Another host joins by a token: what can't be is refused beforehand, and no secret is shown or kept."""

from __future__ import annotations

import base64
import dataclasses
import email.utils
import io
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckp.agent.journal import Journal
from ckp.agent.node.preflight import Findings
from ckp.agent.system.prepare import HostDecisions
from ckp.hostkit.errors import AgentError, InvalidInput
from ckp.hosttool.__main__ import main as tool
from ckp.standalone import checks, config, install, join, members, steps, token
from ckp.standalone.api import Answer
from ckp.standalone.command import options_of, parser
from ckp.standalone.install import Screen
from ckp.standalone.members import EtcdMember, parse_members, quorum_lost
from ckp.standalone.options import CONTROL_PLANE, FIRST, WORKER, Options, check
from ckp.standalone.steps import STEPS, Step
from ckp.standalone.token import JoinToken, decode, encode, seconds_of
from ckp.verify.bundle import BundleManifest

DIGEST = "@sha256:" + "a" * 64
NAMES = (
    "pause",
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "cilium",
    "cilium-operator-generic",
    "coredns",
    "local-path-provisioner",
)
MANIFEST = BundleManifest("/b", "v1.35.1", "1.35.1-ckp", "debian", "12", "amd64", "r.example:5000/ckp", (), {}, dict.fromkeys(NAMES, f"v1{DIGEST}"), key="A")
TOKEN = JoinToken(
    endpoint="10.0.0.9:6443",
    ca_hash="sha256:" + "b" * 64,
    token="abcdef.0123456789abcdef",
    release="v1.35.1",
    pod_cidr="10.244.0.0/16",
    service_cidr="10.96.0.0/12",
    expires="2099-01-01T00:00:00Z",
    certificate_key="c" * 64,
    virtual_address="10.0.0.9",
    bundle="sha256:" + "d" * 64,
)


@pytest.fixture
def options(tmp_path: Path) -> Options:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "keyring").write_bytes(b"x")
    return Options(bundle_folder=str(tmp_path / "bundle"), keyring=str(tmp_path / "keyring"), state_dir=str(tmp_path / "state"), advertise_address="10.0.0.5")


def changed(options: Options, **values: Any) -> Options:
    return dataclasses.replace(options, **values)


def plan(options: Options) -> config.Plan:
    return config.Plan(options, MANIFEST, HostDecisions("v2", "systemd", False, "overlayfs"), "r.example:5000/ckp", "10.0.0.5", "node-2")


# -- tokens


def test_a_token_is_one_line_and_read_again_as_it_was() -> None:
    text = encode(TOKEN)
    assert text.startswith("ckp-join.") and "\n" not in text
    data = json.loads(base64.urlsafe_b64decode(text.removeprefix("ckp-join.") + "==="))
    assert (data["v"], data["endpoint"], data["caHash"], data["certificateKey"], data["podCidr"], data["virtualAddress"], data["expires"]) == (
        (1, "10.0.0.9:6443", TOKEN.ca_hash, "c" * 64, "10.244.0.0/16", "10.0.0.9", "2099-01-01T00:00:00Z")
    )
    assert decode(f"  {text}\n") == TOKEN
    worker = dataclasses.replace(TOKEN, certificate_key="", virtual_address="", bundle="")
    assert decode(encode(worker)) == worker


def test_a_tokens_secrets_are_not_shown() -> None:
    assert TOKEN.token not in repr(TOKEN) and TOKEN.certificate_key not in repr(TOKEN)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "it is empty"),
        ("abcdef.0123456789abcdef", "it must be one line"),
        (encode(TOKEN)[:-9], "missing or was changed"),
        (encode(TOKEN) + "\nmore", "it must be one line"),
        ("ckp-join." + "A" * 9000, "it must be one line"),
        (encode(dataclasses.replace(TOKEN, endpoint="10.0.0.9")), "its endpoint is malformed"),
        (encode(dataclasses.replace(TOKEN, endpoint="10.0.0.9:99999")), "malformed"),
        (encode(dataclasses.replace(TOKEN, pod_cidr="10.244.0.0/99")), "malformed"),
        (encode(dataclasses.replace(TOKEN, expires="2099-13-01T00:00:00Z")), "malformed"),
        (encode(dataclasses.replace(TOKEN, token="x")), "its token is malformed"),
        (encode(dataclasses.replace(TOKEN, ca_hash="")), "its caHash is malformed"),
    ],
)
def test_what_is_no_token_is_refused_without_repeating_it(text: str, words: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        decode(text)
    assert words in caught.value.brief
    assert not text or text.strip() not in caught.value.render()


def test_a_token_of_a_later_version_says_so() -> None:
    data = base64.urlsafe_b64encode(json.dumps({"v": 2}).encode()).decode().rstrip("=")
    with pytest.raises(InvalidInput, match="has version '2', this tool reads 1"):
        decode(f"ckp-join.{data}")


@given(st.binary(max_size=300))
def test_no_bytes_make_another_error_than_a_sentence(data: bytes) -> None:
    for text in (data.decode(errors="replace"), "ckp-join." + base64.urlsafe_b64encode(data).decode().rstrip("=")):
        with pytest.raises(InvalidInput):
            decode(text)


@pytest.mark.parametrize(("text", "seconds"), [("1h", 3600), ("30m", 1800), ("900s", 900), ("24h", 86400)])
def test_a_tokens_time_is_in_plain_units(text: str, seconds: int) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "1", "0h", "30s", "25h", "-1h", "1d", "1h30m"])
def test_a_time_that_is_none_or_too_long_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="is not a time to live"):
        seconds_of(text)


def test_a_token_expires() -> None:
    assert not TOKEN.expired(time.time()) and TOKEN.expired(4070908800.0)


def test_a_bootstrap_token_is_a_secret_as_kubeadm_makes_it() -> None:
    made = token.bootstrap_secret("abcdef", "0123456789abcdef", "2099-01-01T00:00:00Z")
    assert made["metadata"]["name"] == "bootstrap-token-abcdef" and made["type"] == "bootstrap.kubernetes.io/token"
    assert made["stringData"]["auth-extra-groups"].startswith("system:bootstrappers:")


def test_no_token_is_made_on_a_host_that_is_no_master(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no master"):
        token.create(Journal(str(tmp_path / "j"), str(tmp_path / "s")), control_plane=False, ttl="1h")


# -- what is refused


class Bench:
    """A join with steps that do nothing, to a cluster that answers."""

    def __init__(self, options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
        self.options = options
        self.did: list[str] = []
        self.fail: dict[str, AgentError] = {}
        self.shown = ""
        self.node: dict[str, Any] = {}
        self.findings = Findings()
        monkeypatch.setattr(join, "of_host", lambda: SimpleNamespace(installed=lambda names: {}))
        monkeypatch.setattr(checks, "preflight_findings", lambda *_: self.findings)
        monkeypatch.setattr(steps, "start_pulls", lambda context: None)
        monkeypatch.setattr(steps, "_verify", lambda context: MANIFEST)
        monkeypatch.setattr(join, "reach", lambda token, wait: self.did.append("reach"))
        monkeypatch.setattr(join, "node_of", lambda token, name: self.node)

    def step(self, name: str) -> Callable[[Any], str]:
        def do(context: Any) -> str:
            self.did.append(name)
            if name in self.fail:
                raise self.fail.pop(name)
            return ""

        return do

    def run(self, text: str = encode(TOKEN), *, control_plane: bool = True) -> None:
        role = CONTROL_PLANE if control_plane else WORKER
        wanted = [Step(step.name, step.title, self.step(step.name)) for step in join.plan_of(role)]
        join.join(self.options, text, control_plane=control_plane, screen=Screen(len(wanted), self.write), plan=wanted)

    def write(self, text: str) -> None:
        self.shown += text


@pytest.fixture
def bench(options: Options, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(options, monkeypatch)


HOST_STEPS = ["verify", "system", "containerd", "runc", "kernel", "packages", "swap"]


def test_masters_and_workers_take_the_installations_steps_up_to_the_packages() -> None:
    assert [step.name for step in join.plan_of(CONTROL_PLANE)] == [*HOST_STEPS, "join", "kubectl", "address", "node"]
    assert [step.name for step in join.plan_of(WORKER)] == [*HOST_STEPS, "join", "node"]
    assert join.plan_of(FIRST) is STEPS
    own = {step.name: step.do for step in STEPS}
    assert all(step.do is own[step.name] for step in join.plan_of(WORKER) if step.name in HOST_STEPS), "the same code"


def test_a_join_goes_through_its_steps_once_and_says_so_afterwards(bench: Bench) -> None:
    bench.run()
    assert bench.did == ["reach", *HOST_STEPS, "join", "kubectl", "address", "node"]
    assert "This host is the master" in bench.shown
    bench.did.clear()
    bench.run()
    bench.run("")
    assert bench.did == []
    assert bench.shown.count("has joined the cluster at 10.0.0.9:6443 already") == 2


@pytest.mark.parametrize("failing", ["verify", "packages", "join", "node"])
def test_a_second_run_continues_with_what_failed(bench: Bench, failing: str) -> None:
    bench.fail[failing] = AgentError("no", reason="X")
    with pytest.raises(AgentError):
        bench.run()
    bench.did.clear()
    bench.run(encode(dataclasses.replace(TOKEN, token="zzzzzz.0123456789abcdef", expires="2098-01-01T00:00:00Z")))
    names = [step.name for step in join.plan_of(CONTROL_PLANE)]
    done = names[1 : names.index(failing)]
    assert [name for name in bench.did if name != "reach"] == [name for name in names if name not in done], "with a new token of the same cluster"
    assert ("reach" in bench.did) is (failing != "node"), "the cluster is not asked for what is done"


def test_another_clusters_token_does_not_continue_a_join(bench: Bench) -> None:
    bench.fail["join"] = AgentError("no")
    with pytest.raises(AgentError):
        bench.run()
    with pytest.raises(InvalidInput) as caught:
        bench.run(encode(dataclasses.replace(TOKEN, ca_hash="sha256:" + "e" * 64)))
    assert "ca_hash" in caught.value.details
    with pytest.raises(InvalidInput) as caught:
        bench.run(control_plane=False)
    assert "role: control-plane then, worker now" in caught.value.details


def test_no_secret_of_a_token_is_in_the_journal(bench: Bench) -> None:
    bench.run()
    kept = "".join(path.read_text() for path in Path(bench.options.state_dir).rglob("*") if path.is_file())
    assert "10.0.0.9:6443" in kept
    assert TOKEN.token not in kept and TOKEN.token.split(".")[1] not in kept and TOKEN.certificate_key not in kept


def test_what_can_not_be_is_refused_before_the_first_step(bench: Bench) -> None:
    for text, values, words in (
        (encode(dataclasses.replace(TOKEN, certificate_key="")), {}, "this token is for workers"),
        (encode(TOKEN), {"release": "v1.34.3"}, "the cluster is of release v1.35.1, and --release asks for v1.34.3"),
        ("", {}, "it is empty"),
        (encode(TOKEN), {"bundle_folder": ""}, "exactly one of"),
    ):
        bench.options, kept = changed(bench.options, **values), bench.options
        with pytest.raises(InvalidInput, match=words):
            bench.run(text)
        bench.options = kept
    bench.findings.add("this host is already a node", "reset it")
    with pytest.raises(AgentError, match="already a node"):
        bench.run()
    bench.findings.items.clear()
    bench.node = {"status": {"conditions": [{"type": "Ready", "status": "True"}]}}
    with pytest.raises(InvalidInput, match=r"has a node .* already, and it is Ready"):
        bench.run()
    assert [name for name in bench.did if name != "reach"] == []
    assert not Path(bench.options.state_dir).exists()


def test_a_host_of_another_workload_cluster_is_refused(bench: Bench) -> None:
    Path(bench.options.state_dir).mkdir()
    (Path(bench.options.state_dir) / "journal.json").write_text('{"member": {"cluster": "default/demo"}}')
    with pytest.raises(InvalidInput, match="default/demo"):
        bench.run()


@pytest.mark.parametrize(("seconds", "words"), [(0, ""), (59, ""), (-59, ""), (75, "75 s ahead of"), (-3600, "3600 s behind")])
def test_clocks_that_are_far_off_are_refused(seconds: float, words: str) -> None:
    date = email.utils.formatdate(1_700_000_000, usegmt=True)
    if not words:
        join.check_clock(date, 1_700_000_000 + seconds)
        join.check_clock("", 0)
        return
    with pytest.raises(InvalidInput, match=words):
        join.check_clock(date, 1_700_000_000 + seconds)


def test_an_endpoint_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)
    with pytest.raises(InvalidInput) as caught:
        join.reach(dataclasses.replace(TOKEN, endpoint="127.0.0.1:1"), wait=0.0)
    assert "https://127.0.0.1:1 can't be reached from this host: Connection refused" in caught.value.brief and "firewall" in caught.value.resolution


def test_the_clusters_ca_is_read_from_its_public_information() -> None:
    kubeconfig = f"clusters:\n- cluster:\n    certificate-authority-data: {base64.b64encode(b'PEM').decode()}\n    server: https://x\n"
    assert join.ca_of(Answer(200, json.dumps({"data": {"kubeconfig": kubeconfig}}).encode())) == "PEM"
    assert join.ca_of(Answer(200, b"[]")) == join.ca_of(Answer(200, b"x")) == ""


# -- what kubeadm gets


def test_kubeadm_joins_a_master_with_the_certificates_key_and_a_worker_without(options: Options) -> None:
    master = json.loads(config.join_config(plan(changed(options, role=CONTROL_PLANE)), TOKEN))
    assert master["discovery"]["bootstrapToken"] == {"token": TOKEN.token, "apiServerEndpoint": "10.0.0.9:6443", "caCertHashes": [TOKEN.ca_hash]}
    assert master["controlPlane"] == {"localAPIEndpoint": {"advertiseAddress": "10.0.0.5", "bindPort": 6443}, "certificateKey": TOKEN.certificate_key}
    assert master["nodeRegistration"]["taints"] == [] and master["nodeRegistration"]["name"] == "node-2"
    assert master["patches"]["directory"] == "/etc/kubernetes/ckp-patches"
    assert "controlPlane" not in json.loads(config.join_config(plan(changed(options, role=WORKER)), TOKEN))


def test_workers_pull_nothing_of_the_control_plane(options: Options) -> None:
    def names(role: str) -> set[str]:
        return {image.rpartition("/")[2].partition(":")[0] for image in plan(changed(options, role=role)).images()}

    assert names(WORKER) == {"pause", "cilium"}
    assert names(CONTROL_PLANE) == {"pause", "etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "cilium"}
    assert names(FIRST) == set(NAMES)


def test_the_virtual_address_is_the_clusters_endpoint_and_in_its_certificates(options: Options) -> None:
    found = plan(changed(options, virtual_address="10.0.0.9", cert_sans=("api.example.org",)))
    documents = {item["kind"]: item for item in map(json.loads, config.kubeadm_config(found).split("\n---\n"))}
    cluster = documents["ClusterConfiguration"]
    assert cluster["controlPlaneEndpoint"] == "10.0.0.9:6443"
    assert {"10.0.0.9", "10.0.0.5", "api.example.org"} <= set(cluster["apiServer"]["certSANs"])
    assert documents["InitConfiguration"]["localAPIEndpoint"]["advertiseAddress"] == "10.0.0.5"
    assert config.cilium_values(found)["k8sServiceHost"] == "10.0.0.9"
    assert config.cilium_values(plan(options))["k8sServiceHost"] == "10.0.0.5"


def test_etcds_ports_are_opened_between_masters_only() -> None:
    def ports(role: str, several: bool) -> set[str]:
        return {port.ports for port in steps.ports_of(role, several)}

    assert "2379-2380" in ports(FIRST, True) and "2379-2380" in ports(CONTROL_PLANE, True)
    assert "2379-2380" not in ports(FIRST, False) | ports(WORKER, True) and "6443" not in ports(WORKER, True) and "6443" in ports(FIRST, False)


def test_the_command_lines_name_what_they_take(options: Options) -> None:
    given = parser().parse_args(["install", "--bundle", "b", "--virtual-address", "10.0.0.9", "--cert-san", "a.example", "--cert-san", "10.0.0.8"])
    assert (options_of(given).virtual_address, options_of(given).cert_sans, options_of(given).role) == ("10.0.0.9", ("a.example", "10.0.0.8"), FIRST)
    joining = parser().parse_args(["join", "--bundle", "b", "--control-plane"])
    assert joining.token_file == "-" and options_of(joining).bundle_folder == "b"
    check(changed(options, virtual_address="10.0.0.9", cert_sans=("*.example.org", "10.0.0.8", "fd00::8")))


def test_a_token_is_read_from_a_file_or_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "token").write_text("one\n")
    monkeypatch.setattr("sys.stdin", io.StringIO("two\n"))
    assert join.read_token(str(tmp_path / "token")) == "one\n" and join.read_token("-") == "two\n"
    with pytest.raises(InvalidInput, match="can't be read"):
        join.read_token(str(tmp_path / "none"))


def test_a_kubeadm_that_a_killed_run_has_left_is_ended_and_others_are_not(tmp_path: Path) -> None:
    (tmp_path / "join").write_text("import time; time.sleep(60)")
    (tmp_path / "version").write_text("import time; time.sleep(60)")
    left, other = (subprocess.Popen(["kubeadm", name, "--config"], executable=sys.executable, cwd=tmp_path) for name in ("join", "version"))
    try:
        time.sleep(0.3)
        steps.end_kubeadm()
        assert left.wait(timeout=10) == -9 and other.poll() is None
    finally:
        for process in (left, other):
            process.kill()
            process.wait(timeout=10)


def test_status_says_what_a_host_is(options: Options, bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    bench.run(control_plane=False)
    assert tool(["standalone", "status", "--state-dir", options.state_dir]) == 0
    shown = capsys.readouterr().out
    assert "[9/9]" in shown.replace(" ", "") and "role: worker" in shown and "virtual address: 10.0.0.9, not held by this host" in shown


# -- members of etcd


def member(name: str, number: int, *, learner: bool = False) -> EtcdMember:
    return EtcdMember(str(number), name, (f"https://10.0.0.{number}:2380",), (f"https://10.0.0.{number}:2379",) if name else (), learner)


ONE, TWO, THREE = member("one", 1), member("two", 2), member("three", 3)


def test_members_are_read_as_etcd_writes_them() -> None:
    listed = {
        "header": {"member_id": "1"},
        "members": [
            {"ID": "10501334649042878790", "name": "one", "peerURLs": ["https://10.0.0.1:2380"], "clientURLs": ["https://10.0.0.1:2379"]},
            {"ID": "2", "peerURLs": ["https://10.0.0.2:2380"], "isLearner": True},
        ],
    }
    one, two = parse_members(listed)
    assert one == dataclasses.replace(ONE, id="10501334649042878790")
    assert two.learner and two.label == "https://10.0.0.2:2380"
    assert two.is_of("two", "10.0.0.2") and not two.is_of("two", "10.0.0.20") and not two.is_of("", "")


@pytest.mark.parametrize(
    ("all_members", "gone", "running", "lost"),
    [
        ([ONE, TWO, THREE], [THREE], {"one", "two"}, False),
        ([ONE, TWO, THREE], [THREE], {"one"}, True),
        ([ONE, TWO], [TWO], {"one"}, False),
        ([ONE, TWO], [TWO], set(), True),
        ([ONE, TWO, member("", 3, learner=True)], [member("", 3, learner=True)], {"one"}, True),
        ([ONE, member("", 3, learner=True)], [ONE], set(), True),
    ],
)
def test_a_removal_must_leave_more_than_half_of_the_voters_running(
    all_members: list[EtcdMember], gone: list[EtcdMember], running: set[str], lost: bool
) -> None:
    assert bool(quorum_lost(all_members, gone, lambda one: one.name in running)) is lost


def test_a_removal_waits_until_etcds_members_are_connected_again(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [Answer(503, b'{"code": 14, "message": "etcdserver: unhealthy cluster"}')] * 3 + [Answer(200, b"{}")]
    asked: list[tuple[str, Any]] = []

    class Gateway:
        def __init__(self, *_: Any) -> None: ...

        def request(self, method: str, path: str, body: Any = None, *, timeout: float) -> Answer:
            asked.append((path, body))
            return answers.pop(0)

    monkeypatch.setattr(members, "Server", Gateway)
    monkeypatch.setattr(members, "trust", lambda *_, **__: None)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    members.Etcd("10.0.0.1").remove(THREE)
    assert asked == [("/v3/cluster/member/remove", {"ID": "3"})] * 4
    answers.append(Answer(500, b'{"message": "etcdserver: member not found"}'))
    with pytest.raises(AgentError, match="member not found"):
        members.Etcd("10.0.0.1").remove(THREE)


@dataclasses.dataclass
class Cluster:
    """A cluster as `remove-node` sees it from its master "one"."""

    members: list[EtcdMember]
    nodes: dict[str, bool]
    running: set[str]
    said: list[str] = dataclasses.field(default_factory=list)

    def kubectl(self, *arguments: str, **_: Any) -> str:
        name = arguments[2]
        if arguments[0] == "delete":
            self.nodes.pop(name)
            return ""
        if name not in self.nodes:
            return ""
        ready = {"type": "Ready", "status": "True" if self.nodes[name] else "Unknown"}
        address = {one.name: one.peers[0][8:-5] for one in (ONE, TWO, THREE)}.get(name, "10.0.0.77")
        return json.dumps({"status": {"conditions": [ready], "addresses": [{"type": "InternalIP", "address": address}]}})


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cluster:
    made = Cluster([ONE, TWO, THREE], {"one": True, "two": True, "three": False}, {"one", "two"})

    class Etcd:
        def members(self) -> list[EtcdMember]:
            return list(made.members)

        def remove(self, gone: EtcdMember) -> None:
            made.members.remove(gone)

        @staticmethod
        def runs(one: EtcdMember) -> bool:
            return one.name in made.running

    (tmp_path / "admin.conf").touch()
    monkeypatch.setattr(members, "Etcd", Etcd)
    monkeypatch.setattr(members, "kubectl", made.kubectl)
    monkeypatch.setattr(members, "ADMIN", str(tmp_path / "admin.conf"))
    return made


def remove(cluster: Cluster, options: Options, name: str, *, force: bool = False) -> None:
    journal = install.journal_of(options.state_dir)
    if journal.member is None:
        journal.begin(options.member("v1.35.1"))
        journal.note("node_name", "one")
    members.remove_node(journal, name, force=force, say=cluster.said.append)


def test_a_lost_master_is_removed_from_etcd_and_from_the_cluster(cluster: Cluster, options: Options) -> None:
    remove(cluster, options, "three")
    assert cluster.members == [ONE, TWO] and set(cluster.nodes) == {"one", "two"}
    remove(cluster, options, "three")
    assert cluster.said == ["removed the member three of etcd", "deleted the node three", "nothing of three is in this cluster"]


def test_a_member_that_never_came_up_is_removed_by_its_address(cluster: Cluster, options: Options) -> None:
    cluster.members.append(member("", 4, learner=True))
    remove(cluster, options, "10.0.0.4")
    assert cluster.members == [ONE, TWO, THREE]


@pytest.mark.parametrize(
    ("name", "force", "running", "words"),
    [
        ("one", True, {"one", "two"}, "is this host"),
        ("two", False, {"one", "two"}, "is Ready"),
        ("two", True, {"one", "two"}, "no quorum"),
        ("three", False, {"one"}, "no quorum"),
    ],
)
def test_what_would_harm_the_cluster_is_refused(cluster: Cluster, options: Options, name: str, force: bool, running: set[str], words: str) -> None:
    cluster.running = running
    with pytest.raises(InvalidInput, match=words):
        remove(cluster, options, name, force=force)
    assert cluster.members == [ONE, TWO, THREE] and len(cluster.nodes) == 3


def test_a_ready_node_is_removed_with_force(cluster: Cluster, options: Options) -> None:
    cluster.running = {"one", "two", "three"}
    remove(cluster, options, "two", force=True)
    assert cluster.members == [ONE, THREE]


def test_a_worker_removes_nobody(cluster: Cluster, options: Options) -> None:
    with pytest.raises(InvalidInput, match="no master"):
        remove(cluster, changed(options, role=WORKER), "three")
