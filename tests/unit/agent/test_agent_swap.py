"""Swap is off while a host is a node, and what its owner had comes back without touching what he wrote since."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckp.agent.journal import Journal
from ckp.agent.system import facts, swap
from ckp.hostkit.errors import AgentError
from ckp.hostkit.processes import Finished

FSTAB = "# swap none swap\nUUID=1 / ext4 defaults 0 1\nUUID=2 none swap sw 0 0\n/swapfile\tnone\tswap\n"


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(str(tmp_path / "state/journal.json"), str(tmp_path / "state/saved"))


class Machine:
    """A host with swap: its fstab, its units, and what swapon and swapoff do."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fstab = tmp_path / "fstab"
        self.fstab.write_text(FSTAB)
        self.units = tmp_path / "units"
        self.units.mkdir()
        self.on = ["/dev/sda2", "/dev/zram0"]
        self.sticks = False
        monkeypatch.setattr(swap, "FSTAB", str(self.fstab))
        monkeypatch.setattr(swap, "UNITS", str(self.units))
        monkeypatch.setattr(swap, "devices", lambda: list(self.on))
        monkeypatch.setattr(facts, "swap_on", lambda: bool(self.on))
        monkeypatch.setattr(swap, "run", self.run)

    def run(self, argv: list[str], **_: object) -> Finished:
        if argv[0] == "swapoff" and not self.sticks:
            self.on.clear()
        elif argv[0] == "swapon":
            self.on.append(argv[1])
        elif argv[:2] == ["systemctl", "list-units"]:
            return Finished(0, "dev-sda2.swap loaded active active Swap\ndev-zram0.swap loaded active active /dev/zram0\n", "")
        return Finished(0, "", "")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


def test_swap_lines_stay_in_fstab_and_are_not_turned_on() -> None:
    """systemd-gpt-auto-generator(8): swap partitions are turned on by themselves where fstab has no swap."""
    off = swap.fstab_off(FSTAB)
    assert off.splitlines() == [
        "# swap none swap",
        "UUID=1 / ext4 defaults 0 1",
        "# off for Kubernetes (ckp-agent): UUID=2 none swap sw 0 0",
        "UUID=2 none swap sw,noauto 0 0",
        "# off for Kubernetes (ckp-agent): /swapfile\tnone\tswap",
        "/swapfile\tnone\tswap defaults,noauto",
    ]
    assert swap.fstab_off(off) == off and swap.fstab_on(off) == FSTAB


LINES = st.sampled_from(
    [*FSTAB.splitlines(), "/t\tnone\tswap\tnoauto 0 0", "", "  /u none swap pri=5", "LABEL=d /srv xfs nofail 0 2"],
)


@given(st.lists(LINES).map("\n".join))
def test_any_fstab_is_restored(text: str) -> None:
    off = swap.fstab_off(text)
    assert swap.fstab_on(off) == text
    assert swap.fstab_off(off) == off, "twice is once"


def test_what_was_written_to_fstab_since_stays(machine: Machine, journal: Journal) -> None:
    swap.swap_off(journal)
    with machine.fstab.open("a") as stream:
        stream.write("UUID=9 /srv/data xfs defaults 0 2\n")
    swap.restore_fstab(journal)
    journal.restore_files()
    assert machine.fstab.read_text() == FSTAB + "UUID=9 /srv/data xfs defaults 0 2\n"


def test_a_host_that_an_earlier_agent_prepared_loses_nothing_either(machine: Machine, journal: Journal) -> None:
    journal.replace_file(str(machine.fstab), "# off for Kubernetes (ckp-agent): UUID=2 none swap sw 0 0\n")
    with machine.fstab.open("a") as stream:
        stream.write("UUID=9 /srv/data xfs defaults 0 2\n")
    swap.restore_fstab(journal)
    journal.restore_files()
    assert machine.fstab.read_text() == "UUID=2 none swap sw 0 0\nUUID=9 /srv/data xfs defaults 0 2\n"
    assert list(Path(journal.saved_dir).iterdir()) == []


def test_swap_units_are_masked_and_restored(machine: Machine, journal: Journal) -> None:
    (machine.units / "dev-sda2.swap").write_text("[Swap]\nWhat=/dev/sda2\n")
    assert swap.swap_off(journal) == ["swap lines in /etc/fstab are off", "swap was on and is off now"]
    assert machine.on == [] and {path.name: path.read_text() for path in machine.units.iterdir()} == {"dev-sda2.swap": "", "dev-zram0.swap": ""}
    swap.restore_fstab(journal)
    journal.restore_files()
    swap.restore_swap(journal)
    assert [path.name for path in machine.units.iterdir()] == ["dev-sda2.swap"] and "What" in (machine.units / "dev-sda2.swap").read_text()
    assert machine.on == ["/dev/sda2", "/dev/zram0"] and machine.fstab.read_text() == FSTAB


def test_an_interrupted_swapoff_forgets_no_device(machine: Machine, journal: Journal) -> None:
    machine.sticks = True
    with pytest.raises(AgentError, match="swap is still on"):
        swap.swap_off(journal)
    machine.on, machine.sticks = ["/dev/zram0"], False
    swap.swap_off(journal)
    assert journal.notes["swap"] == ["/dev/sda2", "/dev/zram0"]


def test_swap_that_is_turned_on_on_a_node_is_turned_off_and_reported(machine: Machine, journal: Journal) -> None:
    swap.swap_off(journal)
    assert swap.keep_off(journal) == ""
    machine.on = ["/dev/sdb1"]
    assert swap.keep_off(journal) == "swap had been turned on (/dev/sdb1), and was turned off again"
    assert machine.on == [] and "/dev/sdb1" in journal.notes["swap"]
    machine.on, machine.sticks = ["/dev/sdb1"], True
    assert "turn it off by hand" in swap.keep_off(journal)
