"""A site of three management hosts: installed, joined, planned; a host that is lost and replaced; and what is refused."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from ckp.kits.errors import CkpError, InvalidInput
from ckp.site.management import JOURNAL
from ckp.site.members import TOKEN_FILE
from ckp.site.spread import AWAY_SECONDS, spread
from tests.simulators.management_host import ManagementHost
from tests.simulators.site_host import Killed
from tests.support.kills import stride
from tests.worlds.applied_site import AppliedSite

ONE = "    - {name: m1, address: 192.0.2.10}\n"
THREE = ONE + "    - {name: m2, address: 192.0.2.11}\n    - {name: m3, address: 192.0.2.12}\n"
API = "  compass: {address: 192.0.2.200}\n"
MOST_OF_FIRST, MOST_OF_OTHERS = 80, 38
"""Commands of an applying with nothing to do: each costs a round trip."""
CHANGING = ("push", "systemctl restart", "systemctl start", "systemctl enable", "dpkg -i", "chmod", "install")
VIRTUAL = f"{API}  api: {{virtualAddress: 192.0.2.50, certSANs: [kube.example.test]}}\n"


def write(site: AppliedSite, hosts: str = THREE) -> None:
    site.write((ONE, hosts), (API, VIRTUAL))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AppliedSite:
    made = AppliedSite(tmp_path, monkeypatch)
    made.add("m2", "192.0.2.11")
    made.add("m3", "192.0.2.12")
    write(made)
    return made


@pytest.fixture
def applied(site: AppliedSite) -> AppliedSite:
    site.run("apply")
    return site


def nodes(site: AppliedSite) -> list[str]:
    return sorted(name for kind, _, name in site.host.api.objects if kind == "Node")


def ready(site: AppliedSite, name: str, value: bool) -> None:
    site.host.api.objects["Node", "", name]["status"]["conditions"][0]["status"] = "True" if value else "Unknown"


def complete(host: ManagementHost) -> bool:
    return host.complete and all(host.services[f"ckp-registry@{name}.service"].active == "active" for name in ("pull", "push"))


def test_the_first_host_is_installed_and_the_others_join_with_a_token_that_is_not_kept(site: AppliedSite) -> None:
    code, rows = site.plan()
    assert code == 1 and {row["action"] for row in rows.values()} == {"create"}
    assert rows["m2: member"]["detail"] == "m2 joins the management cluster" and rows["m3: registry"]["action"] == "create"
    done = site.run("apply")
    assert done.exit_code == 0, done.output
    assert nodes(site) == ["m1", "m2", "m3"] and all(complete(host) for host in site.hosts.values())
    assert site.host.journal["member"]["virtual_address"] == "192.0.2.50" and site.host.journal["member"]["cert_sans"] == "kube.example.test"
    for name in ("m2", "m3"):
        host = site.hosts[name]
        assert host.tokens and not host.path(TOKEN_FILE).exists() and "secret" not in "".join(host.calls)
    assert "secret" not in done.output


def test_each_host_finds_the_registry_on_itself_and_all_have_the_same_certificate_and_password(applied: AppliedSite) -> None:
    for host in applied.hosts.values():
        assert f"{host.address} images.example.test" in host.path("/etc/hosts").read_text()
        pull, push = (host.services[f"ckp-registry@{name}.service"] for name in ("pull", "push"))
        assert (pull.listens, push.listens) == ("0.0.0.0:5443", f"{host.address}:5444")
    for file in ("/etc/ckp-registry/tls.pem", "/etc/ckp-registry/htpasswd", "/etc/ckp-registry/ca.pem"):
        assert len({host.path(file).read_bytes() for host in applied.hosts.values()}) == 1


def test_a_name_server_that_leads_to_the_virtual_address_is_passed_over_on_the_hosts_themselves(site: AppliedSite) -> None:
    site.host.dns["images.example.test"] = "192.0.2.50"  # which nobody answers to yet
    assert site.run("apply").exit_code == 0
    assert all(f"{host.address} images.example.test" in host.path("/etc/hosts").read_text() for host in site.hosts.values())


def test_once_applied_nothing_is_left_to_do(applied: AppliedSite) -> None:
    code, rows = applied.plan()
    assert {part: row["action"] for part, row in rows.items() if row["action"] != "none"} == {} and code == 0
    starts = {host.name: [item.starts for item in host.services.values()] for host in applied.hosts.values()}
    done = applied.run("apply")
    assert done.exit_code == 0 and "m2 is a member of the management cluster already" in done.output
    assert {host.name: [item.starts for item in host.services.values()] for host in applied.hosts.values()} == starts
    assert [len(host.tokens) for host in applied.hosts.values()] == [0, 1, 1]


@pytest.mark.parametrize("lost", ["m1", "m2", "m3"])
def test_a_lost_host_is_replaced_by_the_one_that_the_file_names_in_its_place(applied: AppliedSite, lost: str) -> None:
    old = applied.hosts.pop(lost)
    ready(applied, lost, value=False)
    applied.add("m4", "192.0.2.13")
    write(applied, THREE.replace(f"name: {lost}, address: {old.address}", "name: m4, address: 192.0.2.13"))
    code, rows = applied.plan()
    assert code == 1 and rows[f"member {lost}"]["action"] == "change" and rows["m4: member"]["action"] == "create"
    assert applied.run("apply").exit_code == 0
    assert nodes(applied) == sorted({"m1", "m2", "m3", "m4"} - {lost}) and complete(applied.hosts["m4"])
    assert applied.plan()[0] == 0


def test_a_host_that_was_made_anew_under_its_name_joins_again(applied: AppliedSite) -> None:
    applied.add("m2", "192.0.2.11")
    ready(applied, "m2", value=False)
    code, rows = applied.plan()
    assert code == 1 and rows["member m2"]["action"] == "change" and rows["m2: member"]["action"] == "create"
    assert applied.run("apply").exit_code == 0 and nodes(applied) == ["m1", "m2", "m3"] and complete(applied.hosts["m2"])


def test_a_member_that_runs_is_not_taken_out(applied: AppliedSite) -> None:
    applied.add("m4", "192.0.2.13")
    write(applied, THREE.replace("name: m3, address: 192.0.2.12", "name: m4, address: 192.0.2.13"))
    code, rows = applied.plan()
    assert code == 2 and rows["members"]["action"] == "refused" and "m3" in rows["members"]["detail"]
    before = applied.everything()
    with pytest.raises(InvalidInput, match="nothing was changed"):
        applied.run("apply")
    assert applied.everything() == before and nodes(applied) == ["m1", "m2", "m3"]
    write(applied, ONE)
    assert applied.plan()[1]["members"]["action"] == "refused", "as little as two at once"


def test_a_site_of_one_host_without_a_virtual_address_does_not_grow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = AppliedSite(tmp_path, monkeypatch)
    site.run("apply")
    site.add("m2", "192.0.2.11")
    site.add("m3", "192.0.2.12")
    write(site)
    done = site.run("plan")
    assert done.exit_code == 2 and "virtualAddress (none)" in done.output


def test_a_host_with_another_cluster_is_refused(applied: AppliedSite) -> None:
    applied.hosts.pop("m2")
    ready(applied, "m2", value=False)
    other = applied.add("m4", "192.0.2.13")
    other.record("v1.35.1", "elsewhere.example.test/bundle")
    write(applied, THREE.replace("name: m2, address: 192.0.2.11", "name: m4, address: 192.0.2.13"))
    assert applied.plan()[1]["m4: member"]["action"] == "refused"


def test_an_apply_that_is_killed_at_any_command_of_a_joining_host_is_gone_on_with(site: AppliedSite) -> None:
    number, killed = 0, 0
    while True:
        site.hosts["m2"].calls.clear()
        site.hosts["m2"].kill_at = number
        try:
            done = site.run("apply")
        except Killed:
            killed += 1
            number += stride(7)
            continue
        break
    assert killed > 5 and done.exit_code == 0 and nodes(site) == ["m1", "m2", "m3"]
    assert not any(host.path(TOKEN_FILE).exists() for host in site.hosts.values())


def test_a_host_that_is_away_is_named_and_nothing_is_changed(applied: AppliedSite, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: object, **__: object) -> None:
        raise CkpError("m2 is not reached")

    monkeypatch.setattr(applied.hosts["m2"], "step", away)
    shown = applied.run("status", "-o", "json")
    assert shown.exit_code == 1 and '"unreachable"' in shown.output
    before = applied.everything()
    with pytest.raises(CkpError, match="check of the site found"):
        applied.run("apply")
    assert applied.everything() == before


def test_a_site_is_removed_from_all_hosts_the_cluster_last(applied: AppliedSite) -> None:
    done = applied.run("remove", "--confirm", "berlin")
    assert done.exit_code == 0, done.output
    for host in applied.hosts.values():
        assert not host.path(JOURNAL).exists() and not any(item.pid for item in host.services.values()) and "ckp-agent" not in host.packages
    assert done.output.index("m2 is as it was before") < done.output.index("m1 is as it was before")


# -- the management layer on several hosts


def test_each_deployment_has_a_standby_on_another_host_but_for_one_that_must_be_alone() -> None:
    def deployment(name: str, **spec: object) -> dict[str, Any]:
        labels = {"matchLabels": {"app": name}}
        return {"kind": "Deployment", "metadata": {"name": name}, "spec": {"selector": labels, "template": {"spec": {"containers": []}}, **spec}}

    objects: list[dict[str, Any]] = [
        deployment("a"),
        deployment("b", strategy={"type": "Recreate"}, replicas=1),
        deployment("c", replicas=3),
        {"kind": "Service"},
    ]
    one, alone, three, service = spread(objects)
    assert (one["spec"]["replicas"], alone["spec"]["replicas"], three["spec"]["replicas"], service) == (2, 1, 3, {"kind": "Service"})
    for each in (one, alone, three):
        found = {item["key"]: item["tolerationSeconds"] for item in each["spec"]["template"]["spec"]["tolerations"]}
        assert found == {"node.kubernetes.io/not-ready": AWAY_SECONDS, "node.kubernetes.io/unreachable": AWAY_SECONDS}
    assert one["spec"]["template"]["spec"]["topologySpreadConstraints"][0]["labelSelector"] == {"matchLabels": {"app": "a"}}
    assert "replicas" not in objects[0]["spec"], "what was given stays"


def commands(site: AppliedSite) -> dict[str, int]:
    """How many commands each host is asked to run by an applying that has nothing to do."""
    before = {host.name: len(host.calls) for host in site.hosts.values()}
    assert site.run("apply").exit_code == 0
    return {host.name: len(host.calls) - before[host.name] for host in site.hosts.values()}


def test_an_applying_with_nothing_to_do_asks_each_host_little(applied: AppliedSite) -> None:
    applied.run("apply")
    found = commands(applied)
    asked = "\n".join(applied.hosts["m2"].calls[-found["m2"] :])
    assert found["m1"] <= MOST_OF_FIRST and found["m2"] == found["m3"] <= MOST_OF_OTHERS, f"{found}\n{asked}"
    written = [call for host in applied.hosts.values() for call in host.calls[-found[host.name] :] if call.startswith(CHANGING)]
    assert written == [], "what is so already is not written again"


@pytest.mark.parametrize("what", ["cat /etc/os-release", "dpkg-query", "sh -c # questions", "ip ", "getent ahostsv4"])
def test_hosts_are_asked_side_by_side(applied: AppliedSite, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """Each question waits on each host until all three have been asked it: one after the other, that would never be."""
    together = threading.Barrier(3)

    def meeting(host: ManagementHost) -> Any:
        step = host.step

        def waits(words: str, effect: Any) -> Any:
            if words.startswith(what):
                together.wait(timeout=120)
            return step(words, effect)

        return waits

    for host in applied.hosts.values():
        monkeypatch.setattr(host, "step", meeting(host))
    assert applied.run("apply").exit_code == 0
