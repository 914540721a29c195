"""What is opened in a host's firewall is written down first, and closed again: with a simulated ufw (the real ones: tests/e2e/test_2_firewalls.py)."""

from __future__ import annotations

from pathlib import Path

import pytest

from ckp.agent.journal import Journal
from ckp.agent.system import firewall
from ckp.agent.system.firewall import PORTS, Ufw
from ckp.hostkit import processes
from ckp.hostkit.errors import AgentError

UFW = """#!/bin/sh
# ufw's `show added`, `allow` and `delete`, with the rules in a file as it shows them; refuses once there are as many as LIMIT says.
cd "{folder}"
touch rules
case "$1 $2" in
    "show added") sed 's/^/ufw /' rules; exit ;;
    "--force delete") shift 2; gone=1 ;;
esac
test "$2" = proto && rule="allow $7/$3" || rule="$1 $2 $3 $4"
test "$8" != comment -a "$5" != comment || comment=" comment 'ckp-node'"
if test -n "$gone"; then grep -v "^$rule\\( comment.*\\)\\?$" rules > new; mv new rules; exit; fi
test ! -e limit || test "$(wc -l < rules)" -lt "$(cat limit)" || {{ echo "ERROR: iptables has a problem" >&2; exit 1; }}
echo "$rule$comment" >> rules
"""


@pytest.fixture
def ufw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The simulated tool, switched on; its folder."""
    tool = tmp_path / "ufw"
    tool.write_text(UFW.format(folder=tmp_path))
    tool.chmod(0o755)
    (tmp_path / "ufw.conf").write_text("# a comment\nENABLED=yes\nLOGLEVEL=low\n")
    monkeypatch.setattr(firewall, "UFW_CONF", str(tmp_path / "ufw.conf"))
    monkeypatch.setattr(firewall, "FIREWALLD_CGROUPS", ())
    monkeypatch.setattr(processes, "PATH", f"{tmp_path}:/usr/sbin:/usr/bin:/sbin:/bin")
    return tmp_path


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(str(tmp_path / "journal.json"), str(tmp_path / "saved"))


def rules(ufw: Path) -> list[str]:
    return (ufw / "rules").read_text().splitlines()


def test_all_that_a_node_needs_is_opened_once_and_closed_again(ufw: Path, journal: Journal) -> None:
    [note] = firewall.open_ports(journal)
    assert note == "ufw: opened 10250/tcp, 4240/tcp, 8472/udp, 30000-32767/tcp, 30000-32767/udp"
    opened = rules(ufw)
    assert "allow 30000:32767/tcp comment 'ckp-node'" in opened and "allow in on lxc+ comment 'ckp-node'" in opened
    assert len(opened) == len(PORTS) + len(firewall.LINKS)
    assert firewall.open_ports(journal) == [] and rules(ufw) == opened
    firewall.close_ports(journal)
    assert rules(ufw) == [] and firewall.left(journal) == []


def test_rules_that_were_there_before_us_stay(ufw: Path, journal: Journal) -> None:
    (ufw / "rules").write_text("allow 10250/tcp comment 'mine'\nallow 22/tcp\n")
    firewall.open_ports(journal)
    firewall.close_ports(journal)
    assert rules(ufw) == ["allow 10250/tcp comment 'mine'", "allow 22/tcp"]


def test_what_was_opened_before_a_failure_is_known_to_the_journal_and_closed(ufw: Path, journal: Journal) -> None:
    (ufw / "limit").write_text("3")
    with pytest.raises(AgentError) as refused:
        firewall.open_ports(journal)
    assert refused.value.reason == "FirewallFailed" and "iptables has a problem" in refused.value.sentence()
    again = Journal(journal.path, journal.saved_dir)
    assert len(rules(ufw)) == 3 and len(firewall.left(again)) == 3
    firewall.close_ports(again)
    assert rules(ufw) == []


def test_a_retry_after_a_failure_forgets_nothing_that_the_first_attempt_opened(ufw: Path, journal: Journal) -> None:
    (ufw / "limit").write_text("3")
    with pytest.raises(AgentError):
        firewall.open_ports(journal)
    (ufw / "limit").unlink()
    firewall.open_ports(journal)
    firewall.close_ports(journal)
    assert rules(ufw) == []


def test_a_firewall_that_is_off_is_not_changed(ufw: Path, journal: Journal) -> None:
    (ufw / "ufw.conf").write_text("ENABLED=no\n")
    assert firewall.open_ports(journal) == [] and journal.notes == {}


def test_a_finding_announces_the_ports_that_will_be_opened(ufw: Path) -> None:
    [(problem, remediation)] = firewall.findings()
    assert problem == "ufw is on" and remediation.startswith("the installer will open 10250/tcp") and "close them when the host leaves" in remediation


def test_a_rule_in_ufws_words_is_found_in_what_ufw_shows() -> None:
    assert firewall._as_shown(["allow", "proto", "tcp", "to", "any", "port", "30000:32767"]) == ["allow", "30000:32767/tcp"]
    assert firewall._as_shown(["allow", "in", "on", "lxc+"]) == ["allow", "in", "on", "lxc+"]
    assert Ufw.name == "ufw"


@pytest.mark.parametrize(
    ("file", "same"),
    [
        ('<?xml version="1.0" encoding="utf-8"?>\n<zone>\n  <short>Public</short>\n  <forward/>\n  <service name="ssh"/>\n</zone>', True),
        ('<zone>\n  <service name="ssh" />\n  <forward />\n  <short>Public</short></zone>', True),
        ('<zone><short>Public</short><forward/><service name="ssh"/><port port="80" protocol="tcp"/></zone>', False),
        ("<zone><short>Public</short><forward/></zone>", False),
    ],
)
def test_zones_are_compared_by_what_they_say(file: str, same: bool) -> None:
    shipped = '<?xml version="1.0" encoding="utf-8"?>\n<!-- shipped -->\n<zone>\n  <short>Public</short>\n  <service name="ssh"/>\n  <forward/>\n</zone>\n'
    assert firewall._same_zone(file, shipped) is same
