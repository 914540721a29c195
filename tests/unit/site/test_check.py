"""Checking a site before anything is changed: broken sites, each with the finding that names what is wrong; and real hosts that are looked at."""

from __future__ import annotations

import json
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from ckp.api.host_protocol import Finding as HostFinding
from ckp.catalog.models import BundleTarget
from ckp.cli.site import site as command
from ckp.kits.errors import CkpError
from ckp.kits.processes import Finished, run
from ckp.site.check import of_spec, remote, rules
from ckp.site.check.model import Blocked, Clock, Facts, Finding, HostToCheck, Link, Role, Seen, Severity, SiteToCheck, Survey
from ckp.site.check.run import check
from ckp.site.hosts.local import LocalHost
from ckp.site.spec.read import parse_site
from ckp.site.ssh import SshHost
from ckp.standalone import checks
from tests.support.ssh_server import free_port, ssh_server

DEBIAN = BundleTarget(os="debian", os_version="12")
SITE = SiteToCheck(
    hosts=[HostToCheck(LocalHost("a", "192.0.2.11")), HostToCheck(LocalHost("b", "192.0.2.12")), HostToCheck(LocalHost("w", "192.0.2.21"), Role.WORKER)],
    network="192.0.2.0/24",
    pool=("192.0.2.200", "192.0.2.220"),
    free={"Compass": "192.0.2.200", "the management API": "192.0.2.10"},
    names=["images.example.test"],
    proxy="http://proxy.example.test:3128",
    systems=[DEBIAN, BundleTarget(os="ubuntu", os_version="24.04")],
    ports={5000: "the registry"},
)


def survey(number: int, role: Role = Role.MANAGEMENT) -> Survey:
    """A host without fault."""
    facts = Facts(
        hostname=f"host-{number}",
        machine_id=f"{number:032x}",
        os_id="debian",
        os_version="12",
        architecture="amd64",
        addresses=(f"192.0.2.{number}", "172.17.0.1"),
        links=(Link(name="eth0", mac=f"52:54:00:00:00:{number:02x}"),),
    )
    ports = checks.PORTS if role is Role.MANAGEMENT else (10250,)
    opened = ("10250/tcp", "6443/tcp")
    return Survey(facts=facts, ports=ports, ports_between=ports, listening=(22,), opened=opened, names={"images.example.test": ("192.0.2.11",)})


GOOD = Seen(
    surveys={"a": survey(11), "b": survey(12), "w": survey(21, Role.WORKER)},
    clocks={"a": Clock(0.1, 0.05), "b": Clock(-0.2, 0.05), "w": Clock(0.0, 0.05)},
)


def having(name: str, **fields: object) -> Seen:
    """GOOD, but one host's survey has other fields; those of `facts` go there."""
    old = GOOD.surveys[name]
    facts = {key: fields.pop(key) for key in list(fields) if key in Facts.model_fields}
    new = old.model_copy(update={**fields, "facts": old.facts.model_copy(update=facts)})
    return replace(GOOD, surveys={**GOOD.surveys, name: new})


def clocks(**ahead: Clock) -> Seen:
    return replace(GOOD, clocks={**GOOD.clocks, **ahead})


def blocked(*ports: int, **fields: object) -> Seen:
    return replace(having("a", **fields), blocked=[Blocked("b", "a", port, "no answer") for port in ports])


ERROR, WARNING = Severity.ERROR, Severity.WARNING
TAKEN = HostFinding(problem="port 6443 is taken by nginx (pid 7)", remediation="stop it")
NOTE = HostFinding(problem="ufw is on", remediation="the installer will open ports", blocking=False)
BROKEN: dict[str, tuple[SiteToCheck, Seen, str, Severity, str]] = {
    "a system without packages": (SITE, having("a", os_version="11"), "a/system", ERROR, "debian 11, for which the site has no packages"),
    "another distribution": (SITE, having("w", os_id="alpine", os_version="3.20"), "w/system", ERROR, "alpine 3.20"),
    "another architecture": (SITE, having("b", architecture="arm64"), "b/architecture", ERROR, "arm64"),
    "what the agent's preflight refuses": (SITE, having("a", findings=(TAKEN,)), "a/preflight", ERROR, "port 6443 is taken by nginx"),
    "what the agent's preflight says": (SITE, having("w", findings=(NOTE,)), "w/preflight", WARNING, "ufw is on"),
    "settings that a host can't take": (SITE, having("b", untaken=(("it has no trust store", "install one"),)), "b/settings", ERROR, "no trust store"),
    "a name server that does not answer": (SITE, having("b", nameservers={"192.0.2.53": "no answer"}), "b/name servers", ERROR, "192.0.2.53 does not answer"),
    "a time server that does not answer": (SITE, having("b", time_servers={"ntp.test": "no answer"}), "b/time servers", ERROR, "ntp.test does not answer"),
    "a clock behind the site's time server": (SITE, having("b", time_servers={"ntp.test": 70.0}), "b/time servers", ERROR, "70.0 s behind the time server"),
    "a clock ahead of the site's time server": (
        SITE,
        having("b", time_servers={"ntp.test": -3.0}),
        "b/time servers",
        WARNING,
        "3.0 s ahead of the",
    ),
    "swap": (SITE, having("b", swap=True), "b/swap", WARNING, "swap is on"),
    "the registry's port is taken": (
        SITE,
        having("b", listening=(22, 5000), owners={5000: "nginx (pid 7)"}),
        "b/ports",
        ERROR,
        "port 5000 is taken by nginx (pid 7), and the registry needs it",
    ),
    "the registry's port is taken by nobody knows whom": (
        SITE,
        having("b", member="standalone", listening=(22, 5000)),
        "b/ports",
        ERROR,
        "port 5000 is taken by another program, and the registry needs it",
    ),
    "an address that the host does not have": (SITE, having("b", addresses=("192.0.2.99",)), "b/address", ERROR, "does not have the address 192.0.2.12"),
    "an address outside of the network": (replace(SITE, network="192.0.2.0/28"), GOOD, "w/address", ERROR, "not in the hosts' network"),
    "a host within the load balancers' range": (
        SITE,
        having("w", addresses=("192.0.2.21", "192.0.2.205")),
        "w/address",
        ERROR,
        "it has 192.0.2.205, of the load balancers' range",
    ),
    "a clock that is wrong": (SITE, clocks(b=Clock(-75.0, 0.2)), "b/clock", ERROR, "75.0 s behind this machine's"),
    "a clock that drifts": (SITE, clocks(a=Clock(3.0, 0.5)), "a/clock", WARNING, "3.0 s ahead of this machine's"),
    "two clocks apart": (SITE, clocks(a=Clock(1.6, 0.1), b=Clock(-1.6, 0.1)), "a/clock", WARNING, "that of b are 3.2 s apart"),
    "two hosts of one name": (SITE, having("b", hostname="HOST-11"), "b/hostname", ERROR, "host-11 is also that of a"),
    "a database that is not reached": (
        replace(SITE, database=("db.example.test", 5432)),
        having("b", database="Connection refused"),
        "b/database",
        ERROR,
        "the database at db.example.test:5432 is not reached from there: Connection refused",
    ),
    "a cloned machine-id": (SITE, having("b", machine_id=f"{11:032x}"), "b/machine-id", ERROR, "is also that of a"),
    "no machine-id": (SITE, having("w", machine_id=""), "w/machine-id", ERROR, "has no machine-id"),
    "one address twice": (SITE, having("w", addresses=("192.0.2.21", "192.0.2.11")), "w/addresses", ERROR, "192.0.2.11 is also that of a"),
    "an address that must be free answers": (
        SITE,
        replace(GOOD, answers={"192.0.2.200": "00:11:22:33:44:55"}),
        "/free addresses",
        ERROR,
        "192.0.2.200 of Compass is taken: 00:11:22:33:44:55",
    ),
    "the virtual address is a host's own": (
        SITE,
        replace(GOOD, answers={"192.0.2.10": "52:54:00:00:00:15"}),
        "/free addresses",
        ERROR,
        "192.0.2.10 of the management API is taken by host-21",
    ),
    "a name that does not resolve": (SITE, having("w", names={"images.example.test": ()}), "w/names", ERROR, "images.example.test does not resolve there"),
    "a proxy that is not reached": (SITE, having("a", proxy="Connection refused"), "a/proxy", ERROR, "proxy.example.test:3128 is not reached"),
    "ports that are blocked": (SITE, blocked(2379, 2380), "b/firewall", ERROR, "does not reach a at 2379/tcp, 2380/tcp: no answer"),
    "ports that the installer does not open": (SITE, blocked(2379, 6443, firewalls=("ufw",)), "b/firewall", ERROR, "at 2379/tcp: no answer"),
}


def test_a_site_without_fault_has_no_finding() -> None:
    assert rules.judge(SITE, GOOD) == []


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_site_gets_the_one_finding_that_names_what_is_wrong(name: str) -> None:
    site, seen, where, severity, words = BROKEN[name]
    found = rules.judge(site, seen)
    assert [(f"{each.host}/{each.check}", each.severity) for each in found] == [(where, severity)], found
    assert words in found[0].what
    assert found[0].remedy and not found[0].what.endswith(".") and not found[0].remedy.endswith(".")


@pytest.mark.parametrize(
    "seen",
    [
        clocks(b=Clock(30.0, 29.0)),  # the answer took a minute: nothing is known
        replace(having("a", member="standalone"), answers={"192.0.2.10": "52:54:00:00:00:0b"}),  # it is set up, and the address its own
        having("a", member="standalone", listening=(22, 5000, 6443), owners={5000: "ckp-registry (pid 7)"}, addresses=("192.0.2.11", "192.0.2.205")),
        having("a", listening=(22, 5000), owners={5000: "ckp-registry (pid 7)"}),  # a first apply was killed after the registry
        blocked(6443, 10250, firewalls=("ufw",)),  # the installer will open them
        replace(GOOD, surveys={}),  # nothing was seen: that is a finding of the look itself
    ],
)
def test_what_is_not_certain_or_will_be_so_is_no_finding(seen: Seen) -> None:
    assert [each for each in rules.judge(SITE, seen) if each.severity is Severity.ERROR or each.check != "preflight"] == []


def test_errors_come_first_and_hosts_in_the_sites_order() -> None:
    seen = replace(having("w", architecture="arm64"), clocks={"w": Clock(3, 0), "a": Clock(90, 0)}, answers={"192.0.2.200": "00:11:22:33:44:55"})
    found = [(each.severity, each.host) for each in rules.judge(SITE, seen)]
    assert found == [(ERROR, ""), (ERROR, "a"), (ERROR, "w"), (WARNING, "w")]


# -- looking at hosts


@dataclass
class Broken:
    """A host that answers each command as it is told to."""

    name: str
    answer: Callable[[Sequence[str]], Finished]
    address: str = "192.0.2.11"

    def run(self, argv: Sequence[str | Path], *, timeout: float, stdin: str | bytes | None = None, check: bool = True, what: str = "") -> Finished:
        return self.answer([str(part) for part in argv])

    def stream(self, argv: Sequence[str | Path], *, timeout: float, on_line: Callable[[str], None]) -> int:
        return self.run(argv, timeout=timeout).code

    def push(self, source: Path | bytes, target: str, *, mode: int = 0o644) -> None:
        raise AssertionError("a check writes nothing")

    def pull(self, source: str) -> bytes:
        raise AssertionError("a check reads no file")


def look(**answers: tuple[int, str] | CkpError) -> list[Finding]:
    """The findings about one host with these answers, by the first word of the command."""

    def answer(argv: Sequence[str]) -> Finished:
        found = answers.get(argv[0], (0, ""))
        if isinstance(found, CkpError):
            raise found
        return Finished(tuple(argv), *found, "", 0.0)

    return check(SiteToCheck([HostToCheck(Broken("a", answer))]))


def test_a_host_that_is_not_reached_is_a_finding_with_what_was_said() -> None:
    (found,) = look(id=CkpError("a does not answer", details="first\nlast words", resolution="switch it on"))
    assert found == Finding("a", "reachable", Severity.ERROR, "a does not answer: last words", "switch it on")


def test_a_host_without_root_or_python_is_a_finding() -> None:
    (found,) = look(id=(0, "1000\n"))
    assert (found.check, "as user 1000, not as root" in found.what) == ("root", True)
    (found,) = look(id=(0, "0\n"), date=(0, "strange\n"), python3=(127, ""))
    assert (found.check, "has no python3" in found.what) == ("python", True)
    (found,) = look(id=(0, "0\n"), date=(0, "strange\n"), python3=(0, "False\n"))
    assert (found.check, "older than 3.9" in found.what) == ("python", True)


def test_a_host_whose_answer_makes_no_sense_is_a_finding() -> None:
    (found,) = [each for each in look(id=(0, "0\n"), date=(0, "strange\n"), python3=(0, "True\n")) if each.check == "preflight"]
    assert "what it says of itself is not understood" in found.what


@pytest.mark.root("an sshd runs commands as root")
def test_real_hosts_are_looked_at_and_connected_and_nothing_stays_there(tmp_path: Path) -> None:
    """This machine twice, as itself and by SSH: two hosts that have everything in common."""
    port = free_port()
    with ssh_server(tmp_path) as server, SshHost("b", "127.0.0.1", server.settings) as far:
        names = ["localhost", "no-such-name.invalid"]
        site = SiteToCheck(
            [HostToCheck(LocalHost("a", "127.0.0.1")), HostToCheck(far)], names=names, proxy=f"http://127.0.0.1:{free_port()}", ports={port: "a test"}
        )
        found = check(site)
    about = {(each.host, each.check) for each in found}
    assert not {each for each in about if each[1] in {"reachable", "root", "python", "clock", "firewall", "ports"}}, found
    for host in "ab":
        assert {(host, "names"), (host, "proxy")} <= about
        (name,) = [each for each in found if (each.host, each.check) == (host, "names")]
        assert "no-such-name.invalid" in name.what
    assert ("b", "machine-id") in about and ("b", "hostname") in about
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0, "the listener has ended"


@pytest.mark.root("this machine is a host as root only")
def test_a_port_that_is_taken_is_one_finding_on_each_host_and_not_a_firewalls() -> None:
    """It is bound to one address, so that the listener there gets nothing and a connection to the other address is refused."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        hosts = [HostToCheck(LocalHost("a", "127.0.0.1")), HostToCheck(LocalHost("b", "127.0.0.2"))]
        found = check(SiteToCheck(hosts, ports={port: "a test"}))
    taken_on = [(each.host, each.what) for each in found if each.check in {"ports", "firewall"}]
    owner = Path("/proc/self/comm").read_text().strip()
    assert taken_on == [(name, f"port {port} is taken by {owner} (pid {os.getpid()}), and a test needs it") for name in "ab"]


@pytest.mark.root("this machine is a host as root only")
def test_a_host_is_checked_with_the_settings_that_it_is_to_get() -> None:
    """A disk that the kubelet would empty by its defaults may be full enough for the site's own thresholds, and the other way round."""
    host = HostToCheck(LocalHost("a", "127.0.0.1"))

    def evicted(settings: dict[str, object]) -> bool:
        return any("the kubelet evicts pods while less than 100% is available" in each.what for each in check(SiteToCheck([host], settings=settings)))

    assert evicted({"kubelet": {"evictionHard": {"nodefs.available": "100%"}}})
    assert not evicted({"kubelet": {"evictionHard": {"nodefs.available": "1Ki"}}}) and not evicted({})
    wrong = check(SiteToCheck([host], settings={"kubelet": 7}))
    assert any(each.what.startswith("hostSettings can't be used: it must be a JSON object") for each in wrong), wrong


@pytest.mark.root("this machine is a host as root only")
def test_this_machine_is_a_host_of_a_site_as_any_other(tmp_path: Path) -> None:
    host = LocalHost("a", "192.0.2.11")
    assert host.run(["sh", "-c", "cat; id -u; pwd"], timeout=20, stdin="in\n").stdout == "in\n0\n/\n"
    assert host.run(["env"], timeout=20).stdout.split("\n")[0].startswith("PATH=")
    lines: list[str] = []
    assert host.stream(["sh", "-c", "echo a; echo b >&2; exit 3"], timeout=20, on_line=lines.append) == 3
    assert lines == ["a", "b"]
    host.push(b"content", str(tmp_path / "new" / "file"), mode=0o600)
    assert host.pull(str(tmp_path / "new" / "file")) == b"content"
    with pytest.raises(CkpError, match="no-such"):
        host.pull(str(tmp_path / "no-such"))


# -- what runs on a host


def test_only_replies_tell_who_has_an_address() -> None:
    def frame(kind: int, operation: int) -> bytes:
        body = struct.pack("!HHBBH6s4s6s4s", 1, 0x0800, 6, 4, operation, b"\x02" * 6, socket.inet_aton("192.0.2.7"), bytes(6), bytes(4))
        return b"\xff" * 6 + b"\x02" * 6 + struct.pack("!H", kind) + body

    assert remote.reply(frame(0x0806, 2)) == ("192.0.2.7", b"\x02" * 6)
    assert remote.reply(frame(0x0806, 1)) is None
    assert remote.reply(frame(0x0800, 2)) is None
    assert remote.reply(b"short") is None


@contextmanager
def answering(port: str, answer: Callable[[bytes], bytes], monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server of datagrams in place of that of a port; its address."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(10)
        exchange = remote.exchange
        monkeypatch.setattr(remote, "exchange", lambda address, _port, message: exchange(address, server.getsockname()[1], message))

        def once() -> None:
            message, peer = server.recvfrom(4096)
            server.sendto(answer(message), peer)

        thread = threading.Thread(target=once, daemon=True)
        thread.start()
        yield "127.0.0.1"
        thread.join(10)


@pytest.mark.parametrize(
    ("answer", "seen"),
    [(lambda asked: asked[:2] + b"\x81\x05" + bytes(8), ""), (lambda _asked: b"hello", "what answers is not a name server")],
)
def test_a_name_server_is_what_answers_a_question(answer: Callable[[bytes], bytes], seen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with answering("53", answer, monkeypatch) as address:
        assert remote.at_once(remote.ask_nameserver, [address]) == {address: seen}


def test_a_time_server_says_how_far_the_clock_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    def later(_asked: bytes) -> bytes:
        stamp = struct.pack("!II", int(time.time()) + 100 + remote.NTP_EPOCH, 1 << 31)
        return b"\x24\x02" + bytes(30) + stamp + stamp

    with answering("123", later, monkeypatch) as address:
        ahead = remote.at_once(remote.ask_time, [address])[address]
    assert 98 < ahead < 102


@pytest.mark.parametrize("answer", [b"", b"\x24", b"\x24\x10" + bytes(46)], ids=["empty", "short", "not synchronised"])
def test_what_does_not_know_the_time_is_said(answer: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    with answering("123", lambda _asked: answer, monkeypatch) as address:
        assert isinstance(remote.at_once(remote.ask_time, [address])[address], str)


def test_the_link_of_an_address_is_that_of_the_narrowest_network_without_a_router(tmp_path: Path) -> None:
    table = "Iface Destination Gateway Flags RefCnt Use Metric Mask\neth0 00000000 010200C0 3 0 0 0 00000000\n"
    table += "eth0 000200C0 00000000 1 0 0 0 00FFFFFF\neth1 800200C0 00000000 1 0 0 0 80FFFFFF\n"
    (tmp_path / "route").write_text(table)
    assert [remote.link_of(address, str(tmp_path / "route")) for address in ("192.0.2.7", "192.0.2.200", "198.51.100.1")] == ["eth0", "eth1", ""]


def test_a_listener_takes_connections_until_the_token_comes(capsys: pytest.CaptureFixture[str]) -> None:
    ports = [free_port(), free_port()]
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        thread = threading.Thread(target=remote.listen, args=([*ports, taken], "token", 30.0))
        thread.start()
        while not (line := capsys.readouterr().out):
            thread.join(0.05)
        assert json.loads(line) == {"listening": ports}
        assert [why for _, _, why in remote.connect_all([["127.0.0.1", port] for port in ports], b"")] == ["", ""]
        remote.connect("127.0.0.1", ports[0], b"wrong")
        assert thread.is_alive()
        assert remote.connect("127.0.0.1", ports[0], b"token") == ""
        thread.join(10)
        assert not thread.is_alive()
    assert [why for _, _, why in remote.connect_all([["127.0.0.1", ports[0]]], b"")] == ["Connection refused"]


def test_what_runs_on_hosts_is_python_3_9() -> None:
    """As the rooms that ship to hosts are checked, tests/lint.sh."""
    run([Path(sys.executable).with_name("vermin"), "-q", "-t=3.9-", "--no-tips", remote.__file__], timeout=60)


# -- the command

FILE = """
apiVersion: ckp.coredge.io/v1alpha1
kind: Site
metadata: {name: rack-7}
management:
  hosts:
    - {name: one, address: 192.0.2.11, ssh: {host: no-such-host.invalid, user: ada, port: 2222}}
    - {name: two, address: 192.0.2.12, local: true}
    - {name: three, address: 192.0.2.13}
addresses:
  hosts: 192.0.2.0/24
  loadBalancers: {ciliumPool: {first: 192.0.2.200, last: 192.0.2.220}}
  api: {virtualAddress: 192.0.2.10}
  compass: {address: 192.0.2.201}
  hub: {address: 192.0.2.202}
registry:
  own: {name: images.example.test, port: 5001}
network:
  proxy: {https: "http://proxy.example.test:3128"}
releases: [v1.35.1, v1.34.3]
"""


def test_a_sites_file_says_what_is_to_be_checked() -> None:
    spec = parse_site(FILE.encode(), Path("/site.yaml"))
    with of_spec.site_to_check(spec) as site:
        one, two, three = (item.host for item in site.hosts)
        assert isinstance(one, SshHost) and isinstance(two, LocalHost) and isinstance(three, SshHost)
        assert (one.name, one.address, one.settings.host, one.settings.user, one.settings.port) == ("one", "192.0.2.11", "no-such-host.invalid", "ada", 2222)
        assert (three.settings.host, three.settings.user, three.settings.port) == ("three", "root", None)
        assert site.free == {
            "Compass": "192.0.2.201",
            "the hub": "192.0.2.202",
            "the load balancers' first one": "192.0.2.200",
            "the load balancers' last one": "192.0.2.220",
            "the management API": "192.0.2.10",
        }
        assert (site.network, site.names, site.ports, site.proxy) == (
            "192.0.2.0/24",
            [],
            {5001: "the registry", 5002: "pushes to the registry"},
            "http://proxy.example.test:3128",
        )
        assert DEBIAN in site.systems and {target.format for target in site.systems} == {"deb"}


def test_the_command_prints_findings_with_remedies_and_fails_with_an_error(tmp_path: Path) -> None:
    lines = [line for line in FILE.splitlines() if not any(word in line for word in ("two", "three", "api:", "network:", "proxy", "releases"))]
    (tmp_path / "site.yaml").write_text("\n".join(lines) + "\n")
    answer = CliRunner().invoke(command, ["check", "-f", str(tmp_path / "site.yaml")])
    assert answer.exit_code == 1
    head, *rows = answer.stdout.splitlines()
    assert head.split() == ["HOST", "CHECK", "SEVERITY", "FINDING", "REMEDY"]
    assert len(rows) == 1 and "the name no-such-host.invalid does not resolve on this machine" in rows[0] and "~/.ssh/config" in rows[0]
    data = CliRunner().invoke(command, ["check", "-f", str(tmp_path / "site.yaml"), "-o", "json"])
    assert data.exit_code == 1
    (item,) = json.loads(data.stdout)["items"]
    assert (item["host"], item["check"], item["severity"]) == ("one", "reachable", "error")
