"""The lab with real hosts: two of them, on a bridge and below a directory that only this test uses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ckp.kits import paths
from ckp.kits.errors import CkpError, Conflict
from ckp.kits.processes import ProcessFailed, run
from ckp.kits.retry import wait_until
from ckp.lab import cgroups
from ckp.lab.lab import HostSpec, Lab, LabHost, LabNetwork
from tests.support.checkout import REPO

pytestmark = [pytest.mark.e2e, pytest.mark.lab, pytest.mark.root("boots whole hosts")]

NETWORK = LabNetwork(bridge="ckptest0", gateway="10.177.99.1")
ONE = HostSpec("one", "10.177.99.10")
TWO = HostSpec("two", "10.177.99.21")

LOOKUPS = """
import json, re, socket, struct, time
server = re.search(r"^nameserver (\\S+)$", open("/etc/resolv.conf").read(), re.M)[1]
query = struct.pack(">6H", 7, 0x0100, 1, 0, 0, 0) + b"\\7outside\\7example\\0" + struct.pack(">2H", 1, 1)
found = []
for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM) * 5:
    started = time.monotonic()
    with socket.socket(socket.AF_INET, kind) as client:
        client.settimeout(10)
        client.connect((server, 53))
        client.send(query if kind == socket.SOCK_DGRAM else len(query).to_bytes(2, "big") + query)
        answer = client.recv(4096)[0 if kind == socket.SOCK_DGRAM else 2 :]
    found.append([kind.name, answer[3] & 15, round(time.monotonic() - started, 3)])
    time.sleep(0.25)
print(json.dumps(found))
"""
"""Ten queries of an outside name to the host's own nameserver, each kind every half second: by which it was, its response code, and seconds."""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    # One fixed place, so that a run that was killed is cleaned up by the next.
    made = Lab(paths.state() / "lab-test", NETWORK)
    made.down()
    try:
        yield made
    finally:
        made.down()


@pytest.fixture(scope="module")
def booted(lab: Lab) -> dict[str, LabHost]:
    lab.ensure_base(print)
    with ThreadPoolExecutor() as pool:
        return {host.name: host for host in pool.map(lab.ensure_host, [ONE, TWO])}


@pytest.fixture
def one(lab: Lab, booted: dict[str, LabHost]) -> LabHost:
    return lab.ensure_host(ONE)


@pytest.fixture
def two(lab: Lab, booted: dict[str, LabHost]) -> LabHost:
    return lab.ensure_host(TWO)


def said(host: LabHost, script: str) -> str:
    return host.run(["sh", "-euc", script], timeout=60).stdout.strip()


def machine_pids(marker: str) -> list[int]:
    """Living processes that have `marker` in their command line, or are in the cgroup of the lab of that name."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            # A killed process whose new parent (the machine's first process, perhaps not a quick one) has yet to collect it is gone for us.
            dead = (entry / "stat").read_text().rpartition(")")[2].split()[0] in "ZX"
            if not dead and (marker in (entry / "cmdline").read_text() or f"/{cgroups.TOP}/{marker}/" in (entry / "cgroup").read_text()):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def test_both_hosts_are_up_with_names_addresses_and_ids_of_their_own(one: LabHost, two: LabHost) -> None:
    assert said(one, "hostname; systemctl is-system-running").split() == ["one", "running"]
    assert said(two, "hostname; systemctl is-system-running").split() == ["two", "running"]
    assert "10.177.99.10/24" in said(one, "ip -brief address show host0")
    for file in ("/etc/machine-id", "/proc/sys/kernel/random/boot_id"):
        assert said(one, f"cat {file}") != said(two, f"cat {file}")


def test_hosts_reach_each_other_and_the_bridge(one: LabHost, two: LabHost) -> None:
    said(one, f"ping -c 1 -W 2 {two.address}; ping -c 1 -W 2 {NETWORK.gateway}")
    said(two, f"ping -c 1 -W 2 {one.address}")


def lookups(host: LabHost) -> list[tuple[str, int, float]]:
    found: list[tuple[str, int, float]] = json.loads(host.run(["python3", "-c", LOOKUPS], timeout=120).stdout)
    return found


def test_every_lookup_of_an_outside_name_is_refused_at_once(one: LabHost) -> None:
    """Not only the first: without a nameserver the kernel sends a host six "port unreachable", then one a second, and other lookups time out."""
    found = lookups(one)
    assert [kind for kind, _, _ in found] == ["SOCK_DGRAM", "SOCK_STREAM"] * 5
    assert [code for _, code, _ in found] == [5] * 10
    assert max(seconds for _, _, seconds in found) < 4, "an answer that does not come is waited for 5 s"
    started = time.monotonic()
    assert one.run(["getent", "ahosts", "outside.example"], timeout=60, check=False).code == 2, "as programs see it: no such name"
    assert time.monotonic() - started < 4


def test_a_nameserver_that_has_died_is_started_with_the_next_host(lab: Lab, one: LabHost) -> None:
    pid = lab.nameserver.pid()
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    lab.ensure_host(ONE)
    again = lab.nameserver.pid()
    assert again not in (None, pid)
    (lab.nameserver.directory / "pid").unlink()  # as if the process that started it had been killed before it wrote the file
    lab.ensure_host(ONE)
    assert machine_pids(NETWORK.gateway) == [lab.nameserver.pid()] != [again]
    assert [code for _, code, _ in lookups(one)] == [5] * 10


def test_hosts_reach_nothing_else_of_the_machine(one: LabHost) -> None:
    listing = run(["ip", "-4", "-oneline", "address", "show", "scope", "global"], timeout=10).stdout
    for address in (line.split()[3].split("/")[0] for line in listing.splitlines() if NETWORK.bridge not in line):
        assert one.run(["ping", "-c", "1", "-W", "1", address], timeout=10, check=False).code != 0


def test_a_command_brings_its_input_in_and_its_code_and_words_out(one: LabHost) -> None:
    done = one.run(["sh", "-c", "cat; echo $GREETING >&2; exit 7"], timeout=10, stdin="in", env={"GREETING": "hello"}, check=False)
    assert (done.code, done.stdout, done.stderr) == (7, "in", "hello\n")
    with pytest.raises(ProcessFailed, match="greeting on one failed with exit code 7"):
        one.run(["sh", "-c", "exit 7"], timeout=10, what="greeting")
    with pytest.raises(ProcessFailed, match="did not end within"):
        one.run(["sleep", "60"], timeout=0.5)


def test_a_command_is_part_of_the_host_and_sees_nothing_of_our_environment(one: LabHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CKP_TEST_SECRET", "x")
    assert "CKP_TEST_SECRET" not in said(one, "env")
    assert ".." not in said(one, "cat /proc/self/cgroup")


def test_output_is_streamed_while_the_command_still_runs(one: LabHost) -> None:
    arrivals: list[tuple[str, float]] = []
    script = "echo first; sleep 1; echo second >&2; exit 4"
    code = one.stream(["sh", "-c", script], timeout=20, on_line=lambda line: arrivals.append((line, time.monotonic())))
    assert code == 4
    assert [line for line, _ in arrivals] == ["first", "second"]
    assert arrivals[1][1] - arrivals[0][1] > 0.5


def test_files_go_in_and_out_unchanged(one: LabHost, tmp_path: Path) -> None:
    data = os.urandom(3 << 20)
    (tmp_path / "data").write_bytes(data)
    one.push(tmp_path / "data", "/opt/new dir/data", mode=0o750)
    assert one.pull("/opt/new dir/data") == data
    assert said(one, "stat -c %a '/opt/new dir/data'; ls -A '/opt/new dir'") == "750\ndata"
    one.push(b"", "/opt/empty")
    assert one.pull("/opt/empty") == b""
    with pytest.raises(CkpError, match="/proc/no/such"):
        one.push(b"x", "/proc/no/such")
    with pytest.raises(ProcessFailed, match="/no/such"):
        one.pull("/no/such")


def test_a_container_runtime_finds_what_it_needs(one: LabHost) -> None:
    said(
        one,
        """
        cd /var/lib/containerd && mkdir -p l u w m && mount -t overlay o -o lowerdir=l,upperdir=u,workdir=w m && touch m/x && test -e u/x && umount m
        test "$(findmnt -no PROPAGATION /)" = shared
        test "$(findmnt -no FSTYPE /sys/fs/bpf)" = bpf
        test -r /dev/kmsg
        test -w /proc/sys/kernel/panic && test -w /proc/sys/vm/overcommit_memory
        for group in $(awk '$3 == "cgroup" || $3 == "cgroup2" { print $2 }' /proc/mounts); do mkdir $group/probe; rmdir $group/probe; done
        test "$(wc -l </proc/swaps)" = 1
        ip link add br-probe type bridge && ip link add vx-probe type vxlan id 7 dstport 4789 dev host0 && ip link del vx-probe && ip link del br-probe
        iptables -t nat -N PROBE && iptables -t nat -X PROBE
        nft list tables >/dev/null
        """,
    )


def test_two_hosts_have_two_cgroup2_roots(one: LabHost, two: LabHost) -> None:
    mount = "mkdir -p /tmp/cg && { mountpoint -q /tmp/cg || mount -t cgroup2 none /tmp/cg; }; "
    assert said(one, mount + "stat -c %i /tmp/cg") != said(two, mount + "stat -c %i /tmp/cg")
    said(one, "mkdir /tmp/cg/only-in-one")
    assert "only-in-one" not in said(two, "ls /tmp/cg")
    said(one, "rmdir /tmp/cg/only-in-one")


def test_packages_install_without_a_network(one: LabHost) -> None:
    said(
        one,
        """
        mkdir -p /tmp/p/DEBIAN
        printf '%s\\n' 'Package: probe' 'Version: 1' 'Architecture: all' 'Maintainer: x <x@x>' 'Depends: iptables' 'Description: x' >/tmp/p/DEBIAN/control
        dpkg-deb --build /tmp/p /tmp/p.deb && dpkg --install /tmp/p.deb && dpkg --purge probe && apt-get install --yes /tmp/p.deb && dpkg --status probe
        """,
    )


def test_a_power_cut_kills_everything_and_the_disk_and_identity_stay(one: LabHost) -> None:
    identity, boot = said(one, "cat /etc/machine-id"), said(one, "cat /proc/sys/kernel/random/boot_id")
    said(one, "for d in containerd kubelet etcd ckp; do echo kept >/var/lib/$d/file; done; echo kept >/root/file")
    said(one, "systemd-run --service-type=exec --unit=sleeper sleep 987654")
    assert machine_pids("987654")
    started = time.monotonic()
    one.power_cut()
    assert time.monotonic() - started < 15
    assert not one.running
    assert not machine_pids("987654")
    assert not [pid for pid in machine_pids(NETWORK.bridge) if "/one/" in Path(f"/proc/{pid}/cgroup").read_text()]
    one.power_cut()  # is fine twice
    one.start()
    assert said(one, "cat /etc/machine-id") == identity
    assert said(one, "cat /proc/sys/kernel/random/boot_id") != boot
    assert said(one, "cat /root/file /var/lib/containerd/file /var/lib/kubelet/file /var/lib/etcd/file /var/lib/ckp/file").split() == ["kept"] * 5


def test_a_shutdown_lets_services_end_in_order(one: LabHost) -> None:
    unit = b"[Service]\nExecStart=sleep infinity\nExecStop=touch /root/stopped\n"
    one.push(unit, "/etc/systemd/system/orderly.service")
    said(one, "systemctl daemon-reload && systemctl start orderly")
    one.power_off()
    assert not one.running
    one.start()
    said(one, "test -e /root/stopped")


def test_a_reboot_from_inside_brings_the_host_back_by_itself(one: LabHost) -> None:
    identity, boot = said(one, "cat /etc/machine-id"), said(one, "cat /proc/sys/kernel/random/boot_id")
    one.run(["systemctl", "reboot"], timeout=30, check=False)

    def back() -> bool:
        try:
            return said(one, "cat /proc/sys/kernel/random/boot_id") != boot
        except (CkpError, OSError):
            return False

    wait_until(back, what="the host is back", timeout=60)
    assert said(one, "cat /etc/machine-id") == identity


def test_a_host_whose_supervisor_was_killed_is_booted_anew(lab: Lab, one: LabHost) -> None:
    boot = said(one, "cat /proc/sys/kernel/random/boot_id")
    os.kill(int((one.directory / "pid").read_text().split()[0]), signal.SIGKILL)
    again = lab.ensure_host(ONE)
    assert said(again, "cat /proc/sys/kernel/random/boot_id") != boot
    assert len([pid for pid in machine_pids(NETWORK.bridge) if Path(f"/proc/{pid}/comm").read_text().strip() == "systemd-nspawn"]) == 2


def test_a_second_host_with_a_taken_address_is_refused(lab: Lab, one: LabHost) -> None:
    with pytest.raises(Conflict, match="taken by host one"):
        lab.ensure_host(HostSpec("three", ONE.address))
    with pytest.raises(Conflict, match="exists with the address"):
        lab.ensure_host(HostSpec("one", "10.177.99.33"))


@pytest.mark.parametrize("moment", [pytest.param(moment, marks=[] if moment == 0.75 else [pytest.mark.long]) for moment in (0.25, 0.5, 0.75, 1.0, 1.5)])
def test_a_killed_start_is_made_good_by_the_next(lab: Lab, booted: dict[str, LabHost], moment: float) -> None:
    spec = HostSpec("three", "10.177.99.33")
    script = (
        "from pathlib import Path; from ckp.lab.lab import *; "
        f"Lab(Path({str(lab.root)!r}), LabNetwork({NETWORK.bridge!r}, {NETWORK.gateway!r})).ensure_host(HostSpec({spec.name!r}, {spec.address!r}))"
    )
    victim = subprocess.Popen([sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": str(REPO / "src")})
    time.sleep(moment)
    victim.kill()
    victim.wait()
    host = lab.ensure_host(spec)
    said(host, "systemctl is-system-running")
    host.remove()
    assert spec.name not in [known.name for known in lab.hosts()]


def test_down_leaves_no_host_mount_cgroup_process_bridge_or_rule(lab: Lab, one: LabHost, two: LabHost) -> None:
    lab.ensure_host(ONE)
    assert lab.nameserver.pid() in machine_pids(NETWORK.gateway)
    said(two, "mount -t tmpfs none /mnt && ip link add vx-left type vxlan id 9 dstport 4789 dev host0")
    started = time.monotonic()
    lab.down()
    assert time.monotonic() - started < 60
    assert lab.hosts() == []
    assert not (lab.root / "hosts").exists()
    assert str(lab.root) not in Path("/proc/self/mountinfo").read_text()
    assert [path for hierarchy in cgroups.machine_hierarchies() for path in hierarchy.mount.glob(f"{cgroups.TOP}/{NETWORK.bridge}")] == []
    assert machine_pids(NETWORK.bridge) == []
    assert machine_pids(NETWORK.gateway) == [], "the nameserver"
    assert not lab.nameserver.directory.exists()
    links = run(["ip", "-brief", "link", "show"], timeout=10).stdout
    assert NETWORK.bridge not in links
    assert NETWORK.bridge not in run(["iptables", "-S"], timeout=10).stdout
    lab.down()
