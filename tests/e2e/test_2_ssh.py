"""Hosts as a site reaches people's own servers: lab hosts over SSH, from their first boot to the end of their power; and what a check finds there."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import pytest

from ckp.catalog.models import BundleTarget
from ckp.kits import paths
from ckp.kits.errors import CkpError
from ckp.kits.processes import run
from ckp.kits.retry import wait_until
from ckp.lab.lab import HostSpec, Lab, LabHost, LabNetwork
from ckp.site.check.model import Finding, HostToCheck, SiteToCheck
from ckp.site.check.run import check
from ckp.site.ssh import Failure, SshFailed, SshHost, SshSettings

pytestmark = [pytest.mark.e2e, pytest.mark.lab, pytest.mark.root("boots whole hosts")]

NETWORK = LabNetwork(bridge="ckpssh0", gateway="10.177.95.1")
ONE, TWO = HostSpec("one", "10.177.95.10"), HostSpec("two", "10.177.95.11")


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    made = Lab(paths.state() / "lab-ssh", NETWORK)
    made.down()
    try:
        made.ensure_base(print)
        with ThreadPoolExecutor() as pool:
            list(pool.map(made.ensure_host, [ONE, TWO]))
        yield made
    finally:
        made.down()
        shutil.rmtree(made.root, ignore_errors=True)


def settings(lab: Lab, name: str, user: str = "root") -> SshSettings:
    way = lab.ssh_settings(name)
    return SshSettings(way.host, user, way.port, config_file=Path(os.devnull), identity_file=way.identity_file, known_hosts_file=way.known_hosts_file)


@pytest.fixture
def one(lab: Lab) -> Iterator[SshHost]:
    lab.ensure_host(ONE)
    with SshHost(ONE.name, ONE.address, settings(lab, ONE.name)) as host:
        yield host


def test_a_host_takes_commands_and_files_by_the_labs_key(one: SshHost, tmp_path: Path) -> None:
    assert one.run(["sh", "-c", "hostname; id -u; cat"], timeout=60, stdin="in\n").stdout.split() == ["one", "0", "in"]
    lines: list[str] = []
    assert one.stream(["sh", "-c", "echo a; echo b >&2; exit 3"], timeout=60, on_line=lines.append) == 3
    assert lines == ["a", "b"]
    data = os.urandom(3 << 20)
    (tmp_path / "data").write_bytes(data)
    one.push(tmp_path / "data", "/opt/new dir/data", mode=0o640)
    assert one.pull("/opt/new dir/data") == data
    assert one.run(["stat", "-c", "%a %U", "/opt/new dir/data"], timeout=60).stdout == "640 root\n"


def test_each_host_has_keys_of_its_own_which_stay_over_a_restart(lab: Lab, one: SshHost) -> None:
    known = lab.ssh_settings("one").known_hosts_file.read_text()
    keys = [line.split(" ")[1:] for line in known.splitlines()]
    assert [kind for kind, _ in keys] == ["ssh-ed25519", "ecdsa-sha2-nistp256"] * 2
    assert len({key for _, key in keys}) == 4
    lab.host("one").power_off()
    lab.ensure_host(ONE)
    with SshHost(ONE.name, ONE.address, settings(lab, "one")) as again:
        script = "ls /etc/ssh/ssh_host_*_key; sshd -T | grep -E '^(passwordauthentication|permitrootlogin|authenticationmethods)'"
        listed = again.run(["sh", "-c", script], timeout=60)
    assert listed.stdout.split() == [
        *("/etc/ssh/ssh_host_ecdsa_key", "/etc/ssh/ssh_host_ed25519_key"),
        *("permitrootlogin", "without-password", "passwordauthentication", "no", "authenticationmethods", "publickey"),
    ]


def test_another_user_becomes_root_by_sudo_without_a_password_or_is_told(lab: Lab, one: SshHost) -> None:
    machine = lab.host("one")
    script = "useradd -m -s /bin/bash ada && install -d -o ada -m 700 /home/ada/.ssh && install -o ada /root/.ssh/authorized_keys /home/ada/.ssh/"
    machine.run(["sh", "-euc", script], timeout=60)

    def failed() -> SshFailed:
        with SshHost("one", ONE.address, settings(lab, "one", "ada")) as host, pytest.raises(SshFailed) as caught:
            host.run(["id", "-u"], timeout=60)
        assert caught.value.failure is Failure.SUDO
        return caught.value

    machine.run(["mv", "/usr/bin/sudo", "/usr/bin/sudo.away"], timeout=20)
    assert "there is no sudo" in failed().brief
    machine.run(["mv", "/usr/bin/sudo.away", "/usr/bin/sudo"], timeout=20)
    assert "without a password" in failed().brief
    machine.push(b"ada ALL=(ALL) NOPASSWD: ALL\n", "/etc/sudoers.d/ada", mode=0o440)
    with SshHost("one", ONE.address, settings(lab, "one", "ada")) as host:
        assert host.run(["sh", "-c", "id -u; cat"], timeout=60, stdin="in").stdout == "0\nin"
        host.push(b"x", "/root/pushed by ada", mode=0o600)
        assert host.pull("/root/pushed by ada") == b"x"
        with pytest.raises(CkpError, match="did not end within"):
            host.run(["sleep", "987651"], timeout=3)
        wait_until(lambda: machine.run(["pgrep", "-f", "sleep 98765[1]"], timeout=30, check=False).code == 1, what="it has ended there", timeout=60)


def findings(lab: Lab, one: SshHost) -> list[Finding]:
    """Of a check, but for the agent's own preflight: lab hosts are as full as the machine's disk."""
    lab.ensure_host(TWO)
    with SshHost(TWO.name, TWO.address, settings(lab, "two")) as two:
        site = SiteToCheck(
            hosts=[HostToCheck(one), HostToCheck(two)],
            network=str(NETWORK.subnet),
            pods="10.244.0.0/16",
            services="10.96.0.0/16",
            pool=NETWORK.load_balancers,
            free={"Compass": "10.177.95.100", "the hub": "10.177.95.101"},
            names=["registry.ckp.lab"],
            systems=[BundleTarget(os="debian", os_version="12")],
            ports={5000: "the registry"},
        )
        return [each for each in check(site) if each.check != "preflight"]


def test_a_check_of_good_hosts_finds_nothing_and_leaves_them_as_they_were(lab: Lab, one: SshHost) -> None:
    listing = ["sh", "-c", "find / -xdev -newer /tmp/before -type f ! -path '/var/log/*' ! -path '/run/*' ! -path '/proc/*' ! -path '/sys/*'; ss -Hltn | wc -l"]
    machine = lab.host("one")
    machine.run(["touch", "/tmp/before"], timeout=30)
    time.sleep(1.1)
    before = machine.run(listing, timeout=60).stdout
    assert findings(lab, one) == []
    assert machine.run(listing, timeout=60).stdout == before


def test_a_check_finds_taken_addresses_and_blocked_ports(lab: Lab, one: SshHost) -> None:
    two = lab.ensure_host(TWO)
    block = "nft add table inet t; nft 'add chain inet t in { type filter hook input priority 0; }'; nft add rule inet t in tcp dport { 2379, 5000 } drop"
    two.run(["sh", "-euc", f"ip addr add 10.177.95.100/32 dev host0; {block}"], timeout=30)
    try:
        found = {(each.host, each.check): each.what for each in findings(lab, one)}
    finally:
        two.run(["sh", "-c", "nft delete table inet t; ip addr del 10.177.95.100/32 dev host0"], timeout=30)
    assert set(found) == {("", "free addresses"), ("two", "address"), ("one", "firewall")}
    assert found["", "free addresses"] == "the address 10.177.95.100 of Compass is taken by two"
    assert found["one", "firewall"] == "it does not reach two at 2379/tcp, 5000/tcp: no answer"


def test_a_power_cut_in_the_middle_of_a_command_ends_it_within_its_time(lab: Lab, one: SshHost) -> None:
    one.run(["true"], timeout=60)
    runs = Event()
    with ThreadPoolExecutor(1) as pool:
        started = time.monotonic()
        ran = pool.submit(one.stream, ["sh", "-c", "echo runs; exec sleep 987652"], timeout=20, on_line=lambda line: runs.set())
        assert runs.wait(15), "its first line has come back: that it began is known here as well"
        lab.host("one").power_cut()
        with pytest.raises(CkpError, match=r"the connection to one was lost while sh on one ran there|sh on one did not end within 20 s"):
            ran.result(timeout=40)
    assert time.monotonic() - started < 25
    lab.ensure_host(ONE)
    wait_until(lambda: _answers(one), what="the host is reached again", timeout=90, every=1)


def _answers(host: SshHost) -> bool:
    try:
        return host.run(["true"], timeout=20).code == 0
    except CkpError:
        return False


def test_a_host_that_was_made_again_is_not_taken_for_the_one_that_was_known(lab: Lab, one: SshHost, tmp_path: Path) -> None:
    old = settings(lab, "one")
    known = tmp_path / "known_hosts"
    assert old.known_hosts_file is not None
    known.write_text(old.known_hosts_file.read_text())
    lab.host("one").remove()
    lab.ensure_host(ONE)
    with SshHost("one", ONE.address, SshSettings(old.host, old.user, old.port, old.config_file, old.identity_file, known)) as host:
        with pytest.raises(SshFailed, match="its host key has changed") as caught:
            host.run(["true"], timeout=60)
        assert caught.value.failure is Failure.HOST_KEY
        public = lab.host("one").run(["ssh-keygen", "-lf", "/etc/ssh/ssh_host_ed25519_key.pub"], timeout=30).stdout.split()[1]
        assert public in caught.value.details
    with SshHost("one", ONE.address, settings(lab, "one")) as host:
        assert host.run(["hostname"], timeout=60).stdout == "one\n", "the lab itself knows it"


def test_the_ssh_server_is_ready_within_two_seconds_of_its_start(lab: Lab, one: SshHost) -> None:
    """A host counts as booted when all its services are ready: this is that one's part."""
    machine: LabHost = lab.host("one")
    shown = machine.run(["systemctl", "show", "ssh", "-p", "ExecMainStartTimestampMonotonic", "-p", "ActiveEnterTimestampMonotonic", "--value"], timeout=30)
    begun, ready = sorted(int(value) for value in shown.stdout.split())
    assert ready - begun < 2_000_000, "microseconds"


def test_nothing_of_the_keys_is_left_when_the_lab_goes(lab: Lab, one: SshHost) -> None:
    folder = lab.ssh_settings("one").identity_file.parent
    assert run(["stat", "-c", "%a", folder, folder / "id_ed25519"], timeout=20).stdout.split() == ["700", "600"]
    one.close()
    lab.down()
    assert not folder.exists()
