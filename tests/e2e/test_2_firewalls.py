"""Hosts with a firewall: ufw and firewalld as Debian has them, on a lab host, and the agent's own code as it ships."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from ckp.distribution.packages.agent import build_zipapp
from ckp.kits import paths
from ckp.kits.retry import wait_until
from ckp.lab.lab import HostSpec, Lab, LabHost, LabNetwork
from tests.support.host_snapshot import changes, snapshot
from tests.support.lab_packages import install

pytestmark = [pytest.mark.e2e, pytest.mark.lab, pytest.mark.root("boots whole hosts")]

NETWORK = LabNetwork(bridge="ckpfire0", gateway="10.177.98.1")
SPEC = HostSpec("walled", "10.177.98.10")
LISTENER = "import socket\ns=socket.create_server(('0.0.0.0', 10250))\nwhile True: s.accept()[0].close()"
AGENT = """
import json, sys
sys.path.insert(0, "/root/ckp-agent")
from ckp.agent.system import firewall
from ckp.agent.journal import Journal
journal = Journal("/root/journal/journal.json", "/root/journal/saved")
what = sys.argv[1]
if what == "open":
    print(json.dumps(firewall.open_ports(journal)))
elif what == "findings":
    print(json.dumps(firewall.findings()))
else:
    firewall.close_ports(journal)
    left = firewall.left(journal)
    if not left:
        journal.forget()
    print(json.dumps(left))
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    made = Lab(paths.state() / "lab-firewalls", NETWORK)
    made.down()
    try:
        yield made
    finally:
        made.down()


@pytest.fixture
def host(lab: Lab) -> Iterator[LabHost]:
    made = lab.ensure_host(SPEC)
    made.push(build_zipapp(), "/root/ckp-agent", mode=0o755)
    made.run(["systemd-run", "--unit=listener", "python3", "-c", LISTENER], timeout=30)
    yield made
    made.remove()


def agent(host: LabHost, what: str) -> list[Any]:
    said: list[Any] = json.loads(host.run(["python3", "-B", "-c", AGENT, what], timeout=120).stdout)
    return said


def reached() -> bool:
    """Whether a packet of ours comes to the host's port 10250."""
    try:
        with socket.create_connection((SPEC.address, 10250), timeout=2):
            return True
    except OSError:
        return False


def life_of_a_node(host: LabHost, name: str) -> None:
    """Closed at first, open while it is a node, also after a restart of the host, closed again, and then as it was."""
    before = snapshot(host)
    assert not reached()
    [[problem, remediation]] = agent(host, "findings")
    assert problem == f"{name} is on" and "open 10250/tcp" in remediation
    [note] = agent(host, "open")
    assert str(note).startswith(f"{name}: opened 10250/tcp, 4240/tcp, 8472/udp, 30000-32767/tcp")
    assert reached()
    assert agent(host, "open") == [], "what is open is not opened again"
    host.power_off()
    host.start()
    host.run(["systemd-run", "--unit=listener", "python3", "-c", LISTENER], timeout=30)
    wait_until(reached, what=f"{name} lets the port pass after a restart", timeout=30, every=0.5)
    assert agent(host, "close") == []
    assert not reached()
    host.run(["rm", "-r", "/root/journal"], timeout=10)
    left = changes(before, snapshot(host))
    assert not left, "all that was installed must be gone, and only that:\n" + "\n".join(left)


def test_ufw_lets_a_node_work_and_is_then_as_before(host: LabHost) -> None:
    install(host, "ufw")
    host.run(["sh", "-c", "ufw allow 22/tcp && ufw allow 4240/tcp comment mine && ufw --force enable && systemctl enable ufw"], timeout=60)
    life_of_a_node(host, "ufw")
    assert "ufw allow 4240/tcp comment 'mine'" in host.run(["ufw", "show", "added"], timeout=30).stdout, "a rule that was there before us stays"


def test_firewalld_lets_a_node_work_and_is_then_as_before(host: LabHost) -> None:
    install(host, "firewalld")
    host.run(["systemctl", "enable", "--now", "firewalld"], timeout=120)
    host.run(["firewall-cmd", "--add-port=8088/tcp"], timeout=60)  # for now only: no reload may drop it
    agent(host, "open")
    host.run(["firewall-cmd", "--query-port=8088/tcp"], timeout=60, what="the port that was opened for now only")
    agent(host, "close")
    host.run(["rm", "-r", "/root/journal"], timeout=10)
    host.run(["firewall-cmd", "--remove-port=8088/tcp"], timeout=60)
    life_of_a_node(host, "firewalld")


def test_rules_of_ones_own_are_named_and_left_alone(host: LabHost) -> None:
    rules = "table inet filter { chain incoming { type filter hook input priority 0; policy drop; ct state established accept; iif lo accept; }; }"
    host.run(["nft", "-f", "-"], timeout=20, stdin=rules)
    [[problem, remediation]] = agent(host, "findings")
    assert problem == "packets to this host are dropped (table inet filter, chain incoming)" and "allow 10250/tcp" in remediation
    before = host.run(["nft", "list", "ruleset"], timeout=20).stdout
    assert agent(host, "open") == []
    assert host.run(["nft", "list", "ruleset"], timeout=20).stdout == before
