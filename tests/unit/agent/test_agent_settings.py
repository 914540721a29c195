"""What a node takes over while it is one: its host's address, its name, and what its platform says."""

from __future__ import annotations

import json
import socket
import tomllib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ckp.agent.config import Config
from ckp.agent.journal import Journal, Member
from ckp.agent.messages import BundleRef, JoinFile, Membership
from ckp.agent.node import actions, inventory, join, preflight, settings
from ckp.agent.node.settings import Settings, Settled
from ckp.agent.system import facts, folders, kubelet_flags, prepare, resolver, units
from ckp.agent.system.prepare import HostDecisions
from ckp.hostkit.errors import AgentError

HUB = "hub.example"
LAB = HostDecisions("v1", "cgroupfs", True, "native")
LONGEST = tuple(f"a-flag-of-the-owner-{number:02}" for number in range(15))
NAME = "--hostname-override=worker-1"


class Killed(BaseException):
    """As by SIGKILL: no handler of the code sees it."""


class Node:
    """A joined host: its addresses and routes, the kubelet's file, and the pods that crictl lists."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path = tmp_path
        self.addresses = ["10.0.0.9"]
        self.routes: dict[int, dict[str, str]] = {socket.AF_INET: {HUB: "10.0.0.9", "192.0.2.1": "10.0.0.9"}, socket.AF_INET6: {}}
        self.file = tmp_path / "etc/default/kubelet"
        self.now = 1000.0
        self.ran: list[str] = []
        self.killed_at = ""
        self.resolves = True
        self.pods = {"a1": ("NODE", ["127.0.0.1"]), "b2": ("POD", ["10.96.0.10"]), "c3": ("NODE", []), "d4": ("POD", ["127.0.0.1"]), "e5": ("POD", [])}
        self.healthy = True
        monkeypatch.setattr(kubelet_flags, "DEBIAN_FILE", str(self.file))
        monkeypatch.setattr(kubelet_flags, "RHEL_FILE", str(self.file))
        monkeypatch.setattr(facts, "addresses", lambda: list(self.addresses))
        monkeypatch.setattr(facts, "address_towards", self.towards)
        monkeypatch.setattr(facts, "resolves", lambda host: self.resolves)
        for name in ("OWN", "SYSTEM", "RESOLVED", "KUBELET_CONFIG", "KUBEADM_FLAGS"):
            monkeypatch.setattr(resolver, name, str(tmp_path) + getattr(resolver, name))
        monkeypatch.setattr(resolver, "BEHIND_LOCAL_SERVERS", (resolver.RESOLVED,))
        self.lay(resolver.SYSTEM, "search site.example\nnameserver 10.0.0.1\n")
        self.lay(resolver.KUBELET_CONFIG, "failSwapOn: false\nrotateCertificates: true\n")
        for name in ("CERTS_D", "CONTAINERD_CONFIG", "CRICTL_CONFIG", "PROC_SYS", "SYSCTL_FILE"):
            monkeypatch.setattr(prepare, name, str(tmp_path) + getattr(prepare, name))
        monkeypatch.setattr(units, "UMASK_DROP_INS", tuple(f"{tmp_path}{path}" for path in units.UMASK_DROP_INS))
        for name in (*prepare.SYSCTLS, *prepare.CHANGED_BY_OTHERS):
            self.lay(self.sysctl(name), "0\n")
        monkeypatch.setattr(prepare, "start_containerd", lambda: self.run(["systemctl", "restart", "containerd"]))
        monkeypatch.setattr(settings, "pull_image", self.pull)
        monkeypatch.setattr(settings, "run", self.run)
        monkeypatch.setattr(settings, "have", lambda program: True)
        monkeypatch.setattr(join, "kubelet_health", lambda: "" if self.healthy else "it does not answer")
        self.member = Membership(
            cluster="c",
            machine="m",
            node_name="worker-1",
            provider_id="byoh://h/m",
            release="v1.35.1",
            bundle=BundleRef("r/b@sha256:" + "a" * 64, "v1.35.1", "v1.35.1"),
            sandbox_image="r.example:5000/ckp/pause:3.10",
            registry="r.example:5000",
            registry_ca="OLD CA",
        )
        self.pull_fails = False
        self.start()
        prepare._sysctls(self.journal, [])
        units.write(self.journal)
        prepare.containerd(self.journal, LAB, self.member.sandbox_image, self.member.registry, self.member.registry_ca)
        self.write(f"{NAME} --provider-id=byoh://h/m --node-ip=10.0.0.9 --node-labels=rack=r7")

    def start(self) -> None:
        """The agent's process, from its journal on the disk."""
        self.journal = Journal(str(self.path / "journal.json"), str(self.path / "saved"))
        self.settings = Settings(self.journal, HUB, clock=lambda: self.now)

    def sysctl(self, name: str) -> str:
        return f"{self.path}/proc/sys/{name.replace('.', '/')}"

    def write(self, arguments: str) -> None:
        self.journal.replace_file(str(self.file), f'KUBELET_EXTRA_ARGS="{arguments}"\n')

    def towards(self, host: str, port: int = 9, family: int = socket.AF_UNSPEC) -> str:
        families = [family] if family else [socket.AF_INET6, socket.AF_INET]
        return next((self.routes[item][host] for item in families if host in self.routes[item]), "")

    def move(self, *addresses: str) -> None:
        """The host has these addresses from now on, and its routes use the first."""
        self.addresses = list(addresses)
        self.routes[socket.AF_INET] = dict.fromkeys((HUB, "192.0.2.1"), addresses[0]) if addresses else {}

    def run(self, argv: list[str], **more: Any) -> Any:
        self.ran.append(" ".join(word for word in argv if not word.startswith("--")))
        if self.killed_at and self.killed_at in self.ran[-1]:
            raise Killed
        if "pods" in argv:
            return SimpleNamespace(code=0, stdout="\n".join(self.pods))
        if "inspectp" in argv:
            network, servers = self.pods[argv[-1]]
            config = {"dns_config": {"servers": servers} if servers else {}}
            status = {"linux": {"namespaces": {"options": {"network": network}}}}
            return SimpleNamespace(code=0, stdout=json.dumps({"status": status, "info": {"config": config}}))
        return SimpleNamespace(code=0, stdout="")

    def pull(self, image: str, seconds: float) -> None:
        self.ran.append(f"pull {image}")
        if self.pull_fails:
            raise AgentError(f"pulling {image} failed", reason="ImagePullFailed")

    def later(self, seconds: float = 60.0) -> Settled:
        """The next pass."""
        self.now += seconds
        return self.settings.apply(self.member)

    def lay(self, path: str, text: str) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(text)

    def read(self, path: str) -> str:
        return Path(path).read_text()

    @property
    def arguments(self) -> str:
        return self.file.read_text()


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    return Node(tmp_path, monkeypatch)


def test_a_node_that_is_as_it_should_be_is_left_alone(node: Node) -> None:
    before = node.arguments
    assert node.later() == node.later() == Settled()
    assert node.arguments == before and node.ran == []


def test_the_nodes_address_follows_its_host(node: Node) -> None:
    node.move("10.0.0.7")
    found = node.later()
    assert found.reason == "SettingsChanging" and "--node-ip=10.0.0.7 (was 10.0.0.9)" in found.message
    assert "--node-ip=10.0.0.9" in node.arguments and node.ran == [], "what lasts for seconds restarts nothing"
    assert node.later(5.0).message, "the hub's next desired state comes at once; no minute has passed"
    found = node.later()
    assert (found.reason, found.done) == ("", "kubelet: --node-ip=10.0.0.7 (was 10.0.0.9); restarted kubelet")
    assert node.arguments == f'KUBELET_EXTRA_ARGS="{NAME} --provider-id=byoh://h/m --node-ip=10.0.0.7 --node-labels=rack=r7"\n'
    assert node.ran == ["systemctl restart kubelet"]
    assert node.later().done == "2 pods start again, which had the old --node-ip"
    assert node.ran[-1] == "crictl stopp a1 c3", "Cilium and konnectivity keep the address that they started with"
    node.ran.clear()
    assert node.later() == Settled() and node.ran == []


def test_pods_keep_running_until_the_kubelet_has_told_its_new_address(node: Node) -> None:
    node.move("10.0.0.7")
    node.later()
    node.later()
    assert node.later(5.0) == Settled(), "a pass that a new desired state caused"
    node.healthy = False
    assert node.later() == Settled()
    node.healthy = True
    assert "2 pods" in node.later().done


def test_an_address_that_is_away_for_a_moment_changes_nothing(node: Node) -> None:
    node.move()
    assert node.later() == node.later() == Settled(), "its only link is down"
    node.addresses = ["172.16.0.2"]
    assert node.later() == node.later() == Settled(), "the other link does not lead to the hub"
    node.move("10.0.0.7")
    assert node.later().message
    node.move("10.0.0.9")
    assert node.later() == Settled()
    node.move("10.0.0.7")
    assert node.later().message, "the minute begins again"
    assert node.ran == []


def test_behind_a_proxy_where_the_hubs_name_does_not_resolve_the_default_route_decides(node: Node) -> None:
    node.resolves = False
    node.addresses = ["172.16.0.2"]
    node.routes[socket.AF_INET] = {}
    assert node.later() == Settled(), "the other link leads nowhere"
    node.routes[socket.AF_INET] = {"192.0.2.1": "172.16.0.2"}
    assert "--node-ip=172.16.0.2" in node.later().message


def test_more_addresses_and_routes_do_not_move_a_node(node: Node) -> None:
    node.addresses = ["192.168.7.7", "10.0.0.9", "fd00::7"]
    node.routes = {family: dict.fromkeys((HUB, "192.0.2.1"), address) for family, address in ((socket.AF_INET, "192.168.7.7"), (socket.AF_INET6, "fd00::7"))}
    assert node.later() == node.later() == Settled()


def test_a_second_address_that_a_person_gave_the_node_stays_with_the_first(node: Node) -> None:
    node.write(f"{NAME} --v=4 --node-ip=10.0.0.9,fd00::9")
    assert node.later() == node.later() == Settled()
    node.move("10.0.0.7")
    node.later()
    node.later()
    assert node.arguments == f'KUBELET_EXTRA_ARGS="{NAME} --v=4 --node-ip=10.0.0.7"\n'


@pytest.mark.parametrize("at", ["systemctl", "stopp"])
def test_a_restart_that_is_due_is_not_forgotten(node: Node, at: str) -> None:
    node.move("10.0.0.7")
    node.later()
    node.killed_at = at
    with pytest.raises(Killed):
        for _ in range(3):
            node.later()
    node.killed_at = ""
    node.ran.clear()
    node.start()
    node.later()
    node.later()
    assert any(at in line for line in node.ran)
    node.ran.clear()
    assert node.later() == Settled() and node.ran == []


def test_a_node_of_an_earlier_agent_is_told_its_name_without_a_restart(node: Node) -> None:
    node.write("--provider-id=byoh://h/m --node-ip=10.0.0.9")
    assert node.later().done == "kubelet: --hostname-override=worker-1"
    assert node.arguments == f'KUBELET_EXTRA_ARGS="--provider-id=byoh://h/m --node-ip=10.0.0.9 {NAME}"\n'
    assert node.ran == []


@pytest.mark.parametrize("text", ["KUBELET_EXTRA_ARGS=\"--v=4 --x='a b'\"\n", "KUBELET_EXTRA_ARGS=$(id)\n", 'KUBELET_EXTRA_ARGS="--v=4\n'])
def test_arguments_that_only_a_shell_can_read_are_left_alone_and_reported(node: Node, text: str) -> None:
    node.file.write_text(text)
    problem = node.later()
    assert problem.failed and problem.reason == "KubeletArgumentsUnreadable" and str(node.file) in problem.message
    assert node.arguments == text


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ('KUBELET_EXTRA_ARGS="--node-ip=10.0.0.9 --cloud-config=/secret -v=4"', ("cloud-config", "node-ip")),
        ("KUBELET_EXTRA_ARGS=", ()),
        ("", ()),
        ('KUBELET_EXTRA_ARGS="--a=$(hostname)"', ()),
        (f'KUBELET_EXTRA_ARGS="{" ".join(f"--a-flag-of-the-owner-{number:02}=1" for number in range(40))}"', LONGEST),
        (f'KUBELET_EXTRA_ARGS="--{"f" * 65}=1 --Odd=1 --node-ip=10.0.0.9"', ("node-ip",)),
    ],
)
def test_the_hub_is_told_the_names_of_the_kubelets_arguments_and_no_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, names: tuple[str, ...]
) -> None:
    (tmp_path / "kubelet").write_text(text + "\n")
    monkeypatch.setattr(kubelet_flags, "file", lambda: str(tmp_path / "kubelet"))
    assert kubelet_flags.names() == names


@pytest.mark.parametrize("text", ["", "# mine\nKUBELET_EXTRA_ARGS=\n# end\n", "KUBELET_EXTRA_ARGS='--v=4'\n"])
def test_what_the_owner_wrote_stays_around_the_flags(text: str) -> None:
    new = kubelet_flags.changed(text, {"--node-ip": "10.0.0.7", "--none": ""})
    assert kubelet_flags.flags(new)["--node-ip"] == "10.0.0.7"
    assert kubelet_flags.flags(kubelet_flags.changed(new, {"--node-ip": ""})) == kubelet_flags.flags(text)
    assert [line for line in text.splitlines() if line.startswith("#")] == [line for line in new.splitlines() if line.startswith("#")]


def test_the_original_file_comes_back_when_the_host_leaves(node: Node) -> None:
    node.move("10.0.0.7")
    node.later()
    node.later()
    node.journal.restore_files()
    assert not node.file.exists()


# The operating system.


def test_forwarding_that_a_later_file_of_its_owner_turned_off_is_on_again(node: Node) -> None:
    node.lay(node.sysctl("net.ipv4.ip_forward"), "0\n")
    node.lay(node.sysctl("net.ipv6.conf.all.forwarding"), "0\n")
    assert node.later() == Settled("sysctl: net.ipv4.ip_forward"), "pods are not reached without it; IPv6 they do not have"
    assert node.read(node.sysctl("net.ipv4.ip_forward")) == "1"
    assert node.later() == Settled()
    prepare.restore_sysctls(node.journal)
    assert node.read(node.sysctl("net.ipv4.ip_forward")) == "0", "as it was before"


def test_containers_are_kept_from_the_umask_of_the_hosts_services_also_on_nodes_of_an_earlier_agent(node: Node) -> None:
    for path in units.UMASK_DROP_INS:
        Path(path).unlink()
    assert node.later() == Settled("systemd: drop-ins for this node's services")
    assert all("UMask=0022" in node.read(path) for path in units.UMASK_DROP_INS)
    assert node.later() == Settled()
    node.journal.restore_files()
    assert not any(Path(path).exists() for path in units.UMASK_DROP_INS)


# Images.


def test_a_registrys_new_ca_reaches_a_node(node: Node) -> None:
    node.member = replace(node.member, registry_ca="NEW CA")
    assert node.later() == Settled("containerd: address and CA of the registry r.example:5000")
    assert node.read(f"{prepare.CERTS_D}/r.example:5000/ca.crt") == "NEW CA"
    assert node.later() == Settled() and node.ran == [], "containerd reads it at each pull"


def test_a_registry_that_needs_no_ca_any_longer_is_reached_by_the_systems(node: Node) -> None:
    node.member = replace(node.member, registry_ca="")
    node.later()
    assert "ca.crt" not in node.read(f"{prepare.CERTS_D}/r.example:5000/hosts.toml")


def test_a_registrys_new_address_reaches_a_node_and_nothing_of_it_stays_after_the_reset(node: Node) -> None:
    node.member = replace(node.member, registry="new.example", registry_ca="NEW CA", sandbox_image="new.example/ckp/pause:3.10")
    assert "restarted containerd" in node.later().done
    assert tomllib.loads(node.read(f"{prepare.CERTS_D}/new.example/hosts.toml"))["server"] == "https://new.example"
    assert node.read(f"{prepare.CERTS_D}/r.example:5000/ca.crt") == "OLD CA", "images of running pods come from there"
    assert node.ran == ["pull new.example/ckp/pause:3.10", "systemctl restart containerd"]
    wanted = tomllib.loads(prepare.containerd_config(LAB, "new.example/ckp/pause:3.10"))
    assert tomllib.loads(node.read(prepare.CONTAINERD_CONFIG)) == wanted, "what was decided when the host joined stays"
    node.journal.restore_files()
    assert not (node.path / "etc/containerd").exists()


def test_a_pause_image_that_can_not_be_pulled_is_not_used(node: Node) -> None:
    before = node.read(prepare.CONTAINERD_CONFIG)
    node.member = replace(node.member, sandbox_image="new.example/ckp/pause:3.10")
    node.pull_fails = True
    node.move("10.0.0.7")
    problem = node.later()
    assert problem.failed and problem.reason == "ImagePullFailed"
    node.later()
    assert "--node-ip=10.0.0.7" in node.arguments, "what fails holds up nothing else"
    assert node.read(prepare.CONTAINERD_CONFIG) == before and "systemctl restart containerd" not in node.ran
    node.pull_fails = False
    assert "pause image" in node.later().done


def test_a_restart_of_containerd_is_not_forgotten_either(node: Node) -> None:
    node.member = replace(node.member, sandbox_image="new.example/ckp/pause:3.10")
    node.killed_at = "containerd"
    with pytest.raises(Killed):
        node.later()
    node.killed_at = ""
    node.start()
    assert node.later() == Settled("restarted containerd")
    assert node.later() == Settled()


def test_a_malformed_image_or_registry_changes_nothing(node: Node) -> None:
    for bad in (replace(node.member, registry='r"\n[x]'), replace(node.member, sandbox_image='p"\nroot = "/x')):
        before = node.read(prepare.CONTAINERD_CONFIG)
        node.member = bad
        assert node.later().failed
        assert node.read(prepare.CONTAINERD_CONFIG) == before


# Name servers for pods.


@pytest.mark.parametrize(
    ("text", "servers"),
    [
        ("search site.example\nnameserver 127.0.0.1\noptions rotate\n", "search site.example\noptions rotate\nnameserver 10.0.0.9\n"),
        ("", "nameserver 10.0.0.9\n"),
        ("nameserver\n", "nameserver 10.0.0.9\n"),
        ("nameserver 127.0.0.1\nnameserver 10.0.0.1\n", "nameserver 10.0.0.1\n"),
        ("nameserver ::1\nnameserver 0.0.0.0\nnameserver fe80::1%eth0\n", "nameserver 10.0.0.9\n"),
    ],
)
def test_pods_of_a_node_get_name_servers_that_they_reach(node: Node, text: str, servers: str) -> None:
    node.lay(resolver.SYSTEM, text)
    assert "--resolv-conf" in node.later().message and not Path(resolver.OWN).exists(), "the list of servers is empty for a moment at each boot"
    assert "restarted kubelet" in node.later().done
    assert kubelet_flags.flags(node.arguments)["--resolv-conf"] == resolver.OWN
    assert node.read(resolver.OWN) == resolver.HEADER + servers
    assert node.later().done == "2 pods start again, which had the old --resolv-conf"
    assert node.ran[-1] == "crictl stopp d4 e5", "not those that ask the cluster's DNS, and not those in the host's network"
    assert node.later() == Settled()


def test_the_name_servers_follow_the_hosts_without_another_restart(node: Node) -> None:
    node.lay(resolver.SYSTEM, "")
    for _ in range(3):
        node.later()
    node.ran.clear()
    node.lay(resolver.SYSTEM, "nameserver 10.0.0.1\n")
    assert node.later().done == f"{resolver.OWN}: name servers for pods"
    assert node.read(resolver.OWN).endswith("\nnameserver 10.0.0.1\n") and node.ran == []
    assert node.later() == Settled()


def test_the_name_servers_of_a_node_with_systemd_resolved_are_its(node: Node) -> None:
    node.lay(resolver.KUBELET_CONFIG, f"resolvConf: {resolver.RESOLVED}\n")
    node.lay(resolver.SYSTEM, "nameserver 127.0.0.53\n")
    node.lay(resolver.RESOLVED, "nameserver 10.0.0.1\n")
    assert node.later() == node.later() == Settled() and node.ran == []


def test_a_local_server_that_came_later_is_passed_over_for_those_that_it_asks(node: Node) -> None:
    node.lay(resolver.SYSTEM, "nameserver 127.0.0.53\n")
    node.lay(resolver.RESOLVED, "search site.example\nnameserver 10.0.0.1\n")
    node.later()
    node.later()
    assert node.read(resolver.OWN) == resolver.HEADER + "search site.example\nnameserver 10.0.0.1\n"
    assert preflight.node().items == [], "outside names resolve"


def test_a_person_who_gave_the_kubelet_name_servers_is_not_overruled(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    node.lay(resolver.SYSTEM, "nameserver 127.0.0.1\n")
    node.lay(resolver.KUBEADM_FLAGS, 'KUBELET_KUBEADM_ARGS="--resolv-conf=/etc/mine --v=4"\n')
    assert node.later() == node.later() == Settled()
    Path(resolver.KUBEADM_FLAGS).unlink()
    monkeypatch.setattr(prepare, "overrides", lambda: {"kubelet": {"resolvConf": "/etc/mine"}})
    assert node.later() == node.later() == Settled()
    monkeypatch.undo()
    assert resolver.wanted("/etc/mine") == "/etc/mine"


def test_it_is_said_that_outside_names_do_not_resolve(node: Node) -> None:
    node.journal.begin(Member("k"))
    assert inventory.findings(node.journal) == ()
    node.lay(resolver.SYSTEM, "nameserver 127.0.0.1\n")
    (found,) = inventory.findings(node.journal)
    assert found.problem == f"{resolver.SYSTEM} names only 127.0.0.1, which pods can't reach"[:200] and not found.blocking
    node.lay(resolver.SYSTEM, "search x\n")
    (found,) = inventory.findings(node.journal)
    assert found.problem == f"{resolver.SYSTEM} names no name server"[:200] and found.remediation.endswith("answer on the host's address")


@pytest.mark.parametrize(("active", "servers"), [("active", "nameserver 10.0.0.1\n"), ("inactive", "nameserver 10.0.0.9\n")])
def test_before_the_join_the_file_is_the_one_that_kubeadm_will_choose(node: Node, monkeypatch: pytest.MonkeyPatch, active: str, servers: str) -> None:
    monkeypatch.setattr(resolver, "run", lambda argv, **_more: SimpleNamespace(code=0, stdout=active + "\n"))
    Path(resolver.KUBELET_CONFIG).unlink()
    node.lay(resolver.SYSTEM, "")
    node.lay(resolver.RESOLVED, "nameserver 10.0.0.1\n")
    assert resolver.wanted("") == ("" if active == "active" else resolver.OWN)
    assert resolver.content("10.0.0.9") == resolver.HEADER + servers


@pytest.mark.parametrize(("text", "file", "given"), [("nameserver 127.0.0.1\n", True, False), ("nameserver 10.0.0.1\n", False, False), ("", False, True)])
def test_a_host_gets_its_nodes_name_address_and_name_servers_before_it_joins(
    node: Node, monkeypatch: pytest.MonkeyPatch, text: str, file: bool, given: bool
) -> None:
    asked: dict[str, str] = {}
    monkeypatch.setattr(prepare, "prepare", lambda *_arguments, **more: asked.update(more) or "")
    monkeypatch.setattr(actions, "of_host", SimpleNamespace)
    monkeypatch.setattr(actions, "add_tools", lambda *_arguments: "")
    monkeypatch.setattr(folders, "remember_present", lambda _journal: None)
    Path(resolver.KUBELET_CONFIG).unlink()
    monkeypatch.setattr(resolver, "run", lambda argv, **_more: SimpleNamespace(code=3, stdout="inactive\n"))
    node.lay(resolver.SYSTEM, text)
    join_file = JoinFile("/run/kubeadm/join.yaml", "nodeRegistration: {kubeletExtraArgs: {resolv-conf: /etc/mine}}")
    member = replace(node.member, files=(join_file,), join_config=join_file.path) if given else node.member
    actions.HostActions(Config(hub=f"https://{HUB}:8443", channel="", ca="", state_dir=str(node.path)), node.journal).step("prepare", member, lambda: False)
    wanted = f"{NAME} --provider-id=byoh://h/m --node-ip=10.0.0.9" + (f" --resolv-conf={resolver.OWN}" if file else "")
    assert asked["kubelet_args"] == wanted
    assert Path(resolver.OWN).exists() == file
    if file:
        assert node.read(resolver.OWN) == resolver.HEADER + "nameserver 10.0.0.9\n"
        node.journal.restore_files()
        assert not Path(resolver.OWN).exists()


# The choice of an address.


def test_an_address_of_ipv4_comes_before_one_of_ipv6(node: Node) -> None:
    node.addresses = ["fd00::7", "10.0.0.9"]
    node.routes = {socket.AF_INET6: {HUB: "fd00::7"}, socket.AF_INET: {"192.0.2.1": "10.0.0.9"}}
    assert facts.default_address(HUB) == "10.0.0.9", "workload clusters have IPv4 networks"
    assert facts.default_address(HUB, "10.0.0.8") == "10.0.0.9", "also when it follows another one"
    node.routes[socket.AF_INET] = {}
    assert facts.default_address(HUB) == "fd00::7"


def test_the_address_is_the_one_towards_the_hub_or_else_of_the_default_route_or_else_the_first(node: Node) -> None:
    node.addresses = ["10.0.0.9", "172.16.0.2"]
    node.routes[socket.AF_INET] = {HUB: "172.16.0.2", "192.0.2.1": "10.0.0.9"}
    assert facts.default_address(HUB) == "172.16.0.2"
    assert facts.default_address("unknown.example") == "10.0.0.9"
    node.routes[socket.AF_INET] = {HUB: "127.0.0.1"}
    assert facts.default_address(HUB) == "10.0.0.9", "a hub on this very host, and no default route"
    node.routes[socket.AF_INET] = {HUB: "169.254.7.7", "192.0.2.1": "172.16.0.2"}
    assert facts.default_address(HUB) == "172.16.0.2", "a host without DHCP gave itself the other one"
    node.addresses, node.routes[socket.AF_INET] = [], {}
    assert facts.default_address(HUB) == ""


def test_the_address_that_is_reported_of_a_node_is_its_own(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inventory, "installed", lambda: ())
    monkeypatch.setattr(inventory, "findings", lambda journal: ())
    node.addresses = ["192.168.7.7", "10.0.0.9"]
    node.routes[socket.AF_INET] = {HUB: "192.168.7.7"}
    assert inventory.host_facts(HUB, node.journal).default_address == "192.168.7.7", "of a free host"
    node.journal.begin(Member("k"))
    assert inventory.host_facts(HUB, node.journal).default_address == "10.0.0.9"


def test_a_route_to_any_of_the_hubs_addresses_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [(family, socket.SOCK_DGRAM, 0, "", (address, 9)) for family, address in ((socket.AF_INET6, "::ffff"), (socket.AF_INET, "127.0.0.1"))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_arguments, **_more: found)
    real = socket.socket

    def without_ipv6(family: int, kind: int) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError("Network is unreachable")
        return real(family, kind)

    monkeypatch.setattr(socket, "socket", without_ipv6)
    assert facts.address_towards(HUB) == "127.0.0.1"
