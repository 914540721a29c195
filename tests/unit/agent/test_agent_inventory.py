"""The inventory of a host, read from a /sys that the tests write."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from ckp.agent import messages
from ckp.agent.journal import Journal, Member
from ckp.agent.node import inventory, preflight
from ckp.agent.node.preflight import Findings
from ckp.agent.system import kubelet_flags
from ckp.api.host_protocol import MAX_FACTS_BYTES, MAX_SENT_FACTS_BYTES, HostFacts

FACTS = messages.HostFacts("h", "0" * 32, "debian", "12", "6.1", "amd64", 2, 1, 1, 5 << 30)


def lay(top: Path, **files: str) -> None:
    for name, content in files.items():
        path = top / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n")


def test_disks_are_whole_disks(tmp_path: Path) -> None:
    lay(tmp_path, sda__size="2048", sda__queue__rotational="1", nvme0n1__size="4096", nvme0n1__queue__rotational="0")
    lay(tmp_path, loop0__size="99", sr0__size="8", sdb__size="0")
    (tmp_path / "dm-0").mkdir()
    lay(tmp_path / "dm-0", size="77")
    found = inventory.disks(str(tmp_path))
    assert found == (messages.DiskFacts("nvme0n1", 2 << 20, False), messages.DiskFacts("sda", 1 << 20, True))


def test_links_are_those_that_lead_out(tmp_path: Path) -> None:
    lay(tmp_path, eth0__address="02:00:00:00:00:01", eth0__mtu="1500", eth0__operstate="up", eth0__speed="10000")
    lay(tmp_path, eth1__address="02:00:00:00:00:02", eth1__mtu="9000", eth1__operstate="down", eth1__speed="-1")
    lay(tmp_path, lo__mtu="65536", cilium_host__mtu="1500", lxc0123456789ab__mtu="1500", cali0123456789a__mtu="1500")
    assert inventory.links(str(tmp_path)) == (
        messages.LinkFacts("eth0", "02:00:00:00:00:01", 1500, 10000, True),
        messages.LinkFacts("eth1", "02:00:00:00:00:02", 9000, 0, False),
    )


def test_a_place_that_cannot_be_read_is_an_empty_one(tmp_path: Path) -> None:
    assert inventory.disks(str(tmp_path / "none")) == ()
    assert inventory.links(str(tmp_path / "none")) == ()


def test_findings_are_reported_while_the_host_is_free_and_only_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Findings()
    seen.add("port 10250 is taken by nginx (pid 7)", "stop it")
    seen.add("swap is on", "the installer will turn it off", blocking=False)
    monkeypatch.setattr(preflight, "worker", lambda journal, installer: seen)
    monkeypatch.setattr(preflight, "node", Findings)
    monkeypatch.setattr(inventory, "of_host", lambda: SimpleNamespace(installed=lambda names: {}))
    journal = Journal(str(tmp_path / "journal.json"), str(tmp_path / "saved"))
    assert [(item.problem, item.blocking) for item in inventory.findings(journal)] == [("port 10250 is taken by nginx (pid 7)", True), ("swap is on", False)]
    journal.begin(Member("k", "r", "b", "c", "m"))
    assert inventory.findings(journal) == ()
    assert seen.lines == ["port 10250 is taken by nginx (pid 7): stop it"], "what does not block stops no installation"


def test_the_largest_inventory_is_one_that_the_hub_takes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for number in range(100):
        lay(tmp_path / "block", **{f"{'d' * 60}{number:03}__size": "2048"})
        lay(tmp_path / "net", **{f"{'e' * 60}{number:03}__address": "02:00:00:00:00:01"})
    many = Findings()
    for _ in range(100):
        many.add("p" * 1000, "m" * 1000)
    monkeypatch.setattr(preflight, "worker", lambda journal, installer: many)
    packages = {f"{'n' * 60}{number}": "v" * 100 for number in range(100)}
    monkeypatch.setattr(inventory, "of_host", lambda: SimpleNamespace(installed=lambda names: packages))
    (tmp_path / "kubelet").write_text(f'KUBELET_EXTRA_ARGS="{" ".join(f"--flag-{number:03}=1" for number in range(200))}"\n')
    monkeypatch.setattr(kubelet_flags, "file", lambda: str(tmp_path / "kubelet"))
    journal = Journal(str(tmp_path / "journal.json"), str(tmp_path / "saved"))
    facts = replace(
        FACTS,
        disks=inventory.disks(str(tmp_path / "block")),
        links=inventory.links(str(tmp_path / "net")),
        installed=inventory.installed(),
        findings=inventory.findings(journal),
        addresses=tuple("2001:db8:0000:0000:0000:0000:0000:0001" for _ in range(32)),
        kubelet_flags=kubelet_flags.names(),
    )
    text = messages.to_json(facts)
    assert len(text) < MAX_SENT_FACTS_BYTES
    longer = tuple({"problem": "p" * 200, "mend": "m" * 200} for _ in range(inventory.MAX_ITEMS))  # what 0.2.0 sends at most; the hub adds `remediation`
    older = HostFacts.model_validate({**json.loads(text), "findings": longer})
    assert len(older.model_dump_json()) < MAX_FACTS_BYTES


def test_a_new_clock_is_not_a_change_of_the_facts_but_less_free_space_is() -> None:
    assert inventory.same(FACTS, replace(FACTS, clock=5.0, disk_free_bytes=(5 << 30) + 1000))
    assert not inventory.same(FACTS, replace(FACTS, disk_free_bytes=1 << 30))
    assert not inventory.same(FACTS, replace(FACTS, swap=True))
