"""The lab's pure parts: its address plan, the commands it builds, and the files it writes."""

from __future__ import annotations

import ipaddress
import subprocess
from pathlib import Path

import pytest

from ckp.kits.errors import CkpError, InvalidInput, NotFound
from ckp.kits.processes import Daemon, in_cgroups
from ckp.lab import base, enter, machine
from ckp.lab.cgroups import NAMESERVER, Hierarchy, HostCgroup, known_hosts, parse_hierarchies
from ckp.lab.hosts import HostRecord, furnish, identity_files, machine_name, nspawn
from ckp.lab.lab import Lab, mounts_below
from ckp.lab.network import HOST_NAME, HostSpec, LabNetwork
from ckp.lab.ssh import SshFolder

NETWORK = LabNetwork()
RECORD = HostRecord("worker-1", "10.88.0.21", "0123456789abcdef0123456789abcdef", "/cache/base")

HYBRID = """\
27 26 0:24 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
28 26 0:25 / /sys/fs/cgroup/cpuset rw,relatime shared:4 - cgroup cgroup rw,cpuset
29 26 0:26 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
30 26 0:27 / /dev/shm rw,relatime - tmpfs tmpfs rw,size=1k
31 26 0:24 /ckp-lab/ckp0/one /mnt/part rw,relatime - cgroup cgroup rw,cpu
32 26 0:24 / /mnt/again rw,relatime - cgroup cgroup rw,cpu
"""


def test_the_plan_puts_management_and_workers_below_the_load_balancers() -> None:
    assert NETWORK.management() == HostSpec("management", "10.88.0.10")
    assert NETWORK.worker(1) == HostSpec("worker-1", "10.88.0.21")
    assert NETWORK.worker(79).address == "10.88.0.99"
    assert NETWORK.load_balancers == ("10.88.0.100", "10.88.0.199")
    assert (Lab.BRIDGE, Lab.GATEWAY) == ("ckp0", "10.88.0.1")


@pytest.mark.parametrize("number", [0, -1, 80])
def test_a_worker_beyond_the_plan_is_refused(number: int) -> None:
    with pytest.raises(InvalidInput):
        NETWORK.worker(number)


def test_every_planned_host_has_a_name_and_an_address_of_its_own_that_the_network_accepts() -> None:
    planned = NETWORK.hosts(79)
    assert len({spec.name for spec in planned}) == len({spec.address for spec in planned}) == 80
    first = ipaddress.IPv4Address(NETWORK.load_balancers[0])
    for spec in planned:
        NETWORK.check(spec)
        assert ipaddress.IPv4Address(NETWORK.gateway) < ipaddress.IPv4Address(spec.address) < first


@pytest.mark.parametrize("address", ["10.88.0.1", "10.88.0.0", "10.88.0.255", "10.88.0.100", "10.88.0.199", "10.89.0.21", "nowhere", "::1"])
def test_an_address_that_is_taken_or_elsewhere_is_refused(address: str) -> None:
    with pytest.raises(InvalidInput, match="one"):
        NETWORK.check(HostSpec("one", address))


@pytest.mark.parametrize("name", ["", "UPPER", "-a", "a-", "a.b", "a/b", "..", "x" * 41])
def test_an_invalid_host_name_is_rejected(name: str) -> None:
    with pytest.raises(InvalidInput, match="host name"):
        NETWORK.check(HostSpec(name, "10.88.0.21"))


def test_the_rules_let_hosts_reach_each_other_before_they_shut_them_in() -> None:
    forward = [rule for rule in NETWORK.rules() if rule[0] == "FORWARD"]
    assert forward[0][:5] == ["FORWARD", "-i", "ckp0", "-o", "ckp0"]
    assert [rule[-1] for rule in forward] == ["ACCEPT", "REJECT", "REJECT"]
    assert all("ckp-lab:ckp0" in rule for rule in NETWORK.rules())


def test_each_hierarchy_is_found_once_and_parts_of_one_are_left_out() -> None:
    found = parse_hierarchies(HYBRID)
    assert [str(hierarchy.mount) for hierarchy in found] == ["/sys/fs/cgroup/cpu", "/sys/fs/cgroup/cpuset", "/sys/fs/cgroup/unified"]
    assert [hierarchy.unified for hierarchy in found] == [False, False, True]
    assert [hierarchy.is_cpuset for hierarchy in found] == [False, True, False]


def test_hosts_of_one_name_in_two_labs_share_no_cgroup_and_no_machine_name() -> None:
    hierarchies = (Hierarchy(Path("/sys/fs/cgroup"), True, frozenset()),)
    assert HostCgroup("ckp0", "one", hierarchies).roots == [Path("/sys/fs/cgroup/ckp-lab/ckp0/one")]
    assert HostCgroup("ckp1", "one", hierarchies).roots == [Path("/sys/fs/cgroup/ckp-lab/ckp1/one")]
    assert machine_name(NETWORK, "one") != machine_name(LabNetwork(bridge="ckp1"), "one")


def test_each_lab_has_a_nameserver_of_its_own_at_its_gateway(tmp_path: Path) -> None:
    one, two = Lab(tmp_path / "one").nameserver, Lab(tmp_path / "two", LabNetwork("ckp1", "10.99.0.1")).nameserver
    assert (one.address, two.address, one.port) == ("10.88.0.1", "10.99.0.1", 53)
    assert one.directory != two.directory
    assert identity_files(NETWORK, RECORD)["etc/resolv.conf"] == f"nameserver {one.address}\n"


def test_the_nameservers_cgroup_is_not_taken_for_a_host(tmp_path: Path) -> None:
    hierarchies = (Hierarchy(tmp_path, True, frozenset()),)
    for name in ("one", NAMESERVER):
        (tmp_path / "ckp-lab" / "ckp0" / name).mkdir(parents=True)
    assert known_hosts("ckp0", hierarchies) == {"one"}
    assert not HOST_NAME.fullmatch(NAMESERVER)


def test_missing_cgroups_have_no_processes_and_are_removed_without_error(tmp_path: Path) -> None:
    group = HostCgroup("ckp0", "one", (Hierarchy(tmp_path, True, frozenset()),))
    assert group.pids() == set()
    group.kill(timeout=1)
    group.remove(timeout=1)
    assert group.memory() == 0


def test_nspawn_gets_name_identity_bridge_and_plain_directories() -> None:
    argv = nspawn(NETWORK, RECORD, Path("/state/worker-1"))
    assert argv[0] == "systemd-nspawn"
    for option in (
        "--machine=ckp0-worker-1",
        "--hostname=worker-1",
        "--uuid=0123456789abcdef0123456789abcdef",
        "--network-bridge=ckp0",
        "--bind=/state/worker-1/volumes/containerd:/var/lib/containerd",
        "--bind=/state/worker-1/volumes/etcd:/var/lib/etcd",
    ):
        assert option in argv


def test_a_command_inside_enters_the_cgroups_and_sees_a_bare_environment() -> None:
    argv = enter.inside(42, [Path("/cg/a/cgroup.procs")], ["true", Path("/x")], {"PATH": "/only"})
    assert argv[:2] == ["sh", "-c"]
    assert argv[3:6] == ["sh", "/cg/a/cgroup.procs", "--"]
    assert argv[6:9] == ["nsenter", "-t", "42"]
    assert argv[argv.index("env") + 1] == "-i"
    assert [part for part in argv if part.startswith("PATH=")] == ["PATH=/only"]
    assert argv[-2:] == ["true", "/x"]


def test_a_record_is_read_back_and_a_malformed_file_is_an_error() -> None:
    assert HostRecord.from_json(RECORD.to_json()) == RECORD
    for text in ("", "{", "[]", '{"name": "x"}'):
        with pytest.raises(CkpError, match=r"host\.json"):
            HostRecord.from_json(text)


def test_identity_files_say_who_the_host_is_and_where_the_registry_is() -> None:
    files = identity_files(NETWORK, RECORD)
    assert files["etc/machine-id"] == RECORD.machine_id + "\n"
    assert "10.88.0.21 worker-1\n" in files["etc/hosts"]
    assert "10.88.0.10 registry.ckp.lab\n" in files["etc/hosts"]
    assert "Address=10.88.0.21/24\nGateway=10.88.0.1\n" in files["etc/systemd/network/10-host0.network"]


def test_a_new_disk_is_readable_for_all_in_the_host_whatever_our_umask(tmp_path: Path) -> None:
    furnish(tmp_path, NETWORK, RECORD, "ssh-ed25519 AAAA lab\n")
    assert (tmp_path / "upper/etc").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "volumes/etcd").stat().st_mode & 0o777 == 0o700
    assert HostRecord.from_json((tmp_path / "host.json").read_text()) == RECORD


def test_a_new_host_has_ssh_keys_of_its_own_and_takes_the_labs_alone(tmp_path: Path) -> None:
    lab = SshFolder(tmp_path / "ssh")
    one = furnish(tmp_path / "one", NETWORK, RECORD, lab.public_key())
    two = furnish(tmp_path / "two", NETWORK, RECORD, lab.public_key())
    assert [key.split()[0] for key in one] == ["ssh-ed25519", "ecdsa-sha2-nistp256"]
    assert not set(one) & set(two)
    keys = sorted((tmp_path / "one/upper/etc/ssh").iterdir())
    assert {(key.name, key.stat().st_mode & 0o777) for key in keys} == {
        *(("ssh_host_ed25519_key", 0o600), ("ssh_host_ed25519_key.pub", 0o644)),
        *(("ssh_host_ecdsa_key", 0o600), ("ssh_host_ecdsa_key.pub", 0o644)),
    }
    login = tmp_path / "one/upper/root/.ssh"
    assert (login / "authorized_keys").read_text() == (tmp_path / "ssh/id_ed25519.pub").read_text() == lab.public_key()
    assert [path.stat().st_mode & 0o777 for path in (login.parent, login, login / "authorized_keys", lab.folder, lab.key)] == [
        0o700,
        0o700,
        0o600,
        0o700,
        0o600,
    ]


def test_a_host_is_known_by_its_newest_keys_and_the_others_by_theirs(tmp_path: Path) -> None:
    lab = SshFolder(tmp_path / "ssh")
    lab.remember("one", "10.0.0.1", ["ssh-ed25519 A", "ecdsa B"])
    lab.remember("two", "10.0.0.2", ["ssh-ed25519 C"])
    lab.remember("one", "10.0.0.3", ["ssh-ed25519 D"])
    assert lab.known_hosts.read_text() == "two,10.0.0.2 ssh-ed25519 C\none,10.0.0.3 ssh-ed25519 D\n"
    lab.remember("new", "10.0.0.2", ["ssh-ed25519 E"])
    assert lab.known_hosts.read_text() == "one,10.0.0.3 ssh-ed25519 D\nnew,10.0.0.2 ssh-ed25519 E\n"


def test_hosts_that_are_built_from_the_base_share_no_ssh_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ssh_host_rsa_key", "ssh_host_ed25519_key", "ssh_host_ed25519_key.pub", "moduli"):
        (tmp_path / "etc/ssh").mkdir(parents=True, exist_ok=True)
        (tmp_path / "etc/ssh" / name).write_text("")
    monkeypatch.setattr(base, "run", lambda argv, **_: None)
    base.furnish(tmp_path)
    assert sorted(path.name for path in (tmp_path / "etc/ssh").iterdir()) == ["moduli", "sshd_config.d"]
    assert (tmp_path / "etc/systemd/system/multi-user.target.wants/ssh.service").readlink() == Path("/lib/systemd/system/ssh.service")


def test_a_lab_lists_whole_hosts_only_and_names_them_when_one_is_missing(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    (tmp_path / "hosts/.worker-9.half").mkdir(parents=True)
    (tmp_path / "hosts/.worker-9.half/host.json").write_text(RECORD.to_json())
    (tmp_path / "hosts/empty").mkdir()
    (tmp_path / "hosts/worker-1").mkdir()
    (tmp_path / "hosts/worker-1/host.json").write_text(RECORD.to_json())
    assert [host.name for host in lab.hosts()] == ["worker-1"]
    assert not lab.host("worker-1").running
    for name in ("worker-9", "empty", "../hosts/worker-1", ""):
        with pytest.raises(NotFound) as caught:
            lab.host(name)
        assert "worker-1" in caught.value.resolution


def test_a_stopped_host_says_that_it_is_not_running(tmp_path: Path) -> None:
    (tmp_path / "hosts/worker-1").mkdir(parents=True)
    (tmp_path / "hosts/worker-1/host.json").write_text(RECORD.to_json())
    with pytest.raises(CkpError, match="worker-1 is not running"):
        Lab(tmp_path).host("worker-1").run(["true"], timeout=5)


def test_a_reused_pid_is_not_taken_for_the_hosts(tmp_path: Path) -> None:
    (tmp_path / "pid").write_text("1 1\n")
    assert Daemon("x", tmp_path / "pid", tmp_path / "log").pid() is None


def test_mounts_below_a_directory_are_found_innermost_first() -> None:
    mountinfo = (
        "1 0 8:1 / / rw - ext4 a rw\n2 1 0:5 / /lab/hosts/a rw - overlay o rw\n"
        "3 2 0:6 / /lab/hosts/a/x\\040y rw - tmpfs t rw\n4 1 0:7 / /labor rw - tmpfs t rw\n"
    )
    assert mounts_below(Path("/lab"), mountinfo) == ["/lab/hosts/a/x y", "/lab/hosts/a"]


def test_a_process_enters_its_cgroups_before_its_program_begins(tmp_path: Path) -> None:
    procs = [tmp_path / "one", tmp_path / "two"]
    child = subprocess.run(in_cgroups(procs, ["sh", "-c", "echo $$"]), check=True, capture_output=True, text=True)
    assert {path.read_text() for path in procs} == {child.stdout}
    assert in_cgroups([], ["true", Path("x")]) == ["true", "x"]
    refused = subprocess.run(in_cgroups([tmp_path / "no/such"], ["true"]), check=False, capture_output=True)
    assert refused.returncode == 125


def test_the_base_is_named_by_all_that_goes_into_it(monkeypatch: pytest.MonkeyPatch) -> None:
    before = base.key()
    assert before == base.key()
    monkeypatch.setattr(base, "PACKAGES", (*base.PACKAGES, "vim"))
    assert base.key() != before


def test_the_base_command_asks_for_every_package() -> None:
    include = next(str(part) for part in base.mmdebstrap(Path("/t")) if str(part).startswith("--include="))
    assert set(base.PACKAGES) == set(include.removeprefix("--include=").split(","))


def test_the_default_subnet_is_private() -> None:
    assert NETWORK.subnet.is_private
    assert ipaddress.IPv4Address(NETWORK.gateway) in NETWORK.subnet


def test_the_machines_settings_come_back_as_they_were_before_the_first_lab(tmp_path: Path) -> None:
    names = [*machine.AT_LEAST, *machine.CHANGED_BY_KUBELETS]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("7\n")
    remembered = tmp_path / "remembered"
    machine.prepare(tmp_path, remembered)
    assert int((tmp_path / "fs/inotify/max_user_instances").read_text()) == 8192
    (tmp_path / "kernel/panic").write_text("10\n")
    machine.prepare(tmp_path, remembered)  # by a second lab: the first one's memory stays
    machine.restore(tmp_path, remembered)
    assert {(tmp_path / name).read_text().strip() for name in names} == {"7"}
    machine.restore(tmp_path, remembered)
