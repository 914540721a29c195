"""Where Services of type LoadBalancer get their addresses from, and by which name the management API is reached: planned, checked and applied."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ckp.api.names import ON_HOSTS_CLASS
from ckp.kits.errors import InvalidInput
from ckp.site.check import remote, rules
from ckp.site.check.model import Seen
from ckp.site.provided import names
from ckp.site.spec.read import InvalidSite, parse_site
from tests.unit.site.test_check import ERROR, GOOD, SITE, having
from tests.worlds.applied_site import TEXT, AppliedSite

POOL = "ciliumPool: {first: 192.0.2.200, last: 192.0.2.220}"
CLASS = (POOL, "className: metallb.example/lb")
ON_HOSTS = (POOL, "onHosts: [192.0.2.200, 192.0.2.201, 192.0.2.60]")
NAMES = ("  managementPods:", "  api: {names: [api.example.test, k8s.example.test]}\n  managementPods:")
KUBECONFIG = b"clusters:\n- cluster:\n    certificate-authority-data: QQ==\n    server: https://192.0.2.10:6443\n  name: kubernetes\n"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AppliedSite:
    monkeypatch.setattr(remote, "resolve", lambda asked: {name: ["192.0.2.10"] for name in asked})
    return AppliedSite(tmp_path, monkeypatch)


def changed(site: AppliedSite) -> dict[str, dict[str, str]]:
    return {part: row for part, row in site.plan()[1].items() if row["action"] != "none"}


def service(site: AppliedSite, name: str) -> dict[str, Any]:
    return dict(site.host.api.objects["Service", "ckp-system", name]["spec"])


def kinds(site: AppliedSite) -> set[str]:
    return {kind for kind, _, _ in site.host.api.objects}


def findings(site: AppliedSite) -> list[str]:
    return [f"{item['check']}: {item['what']}" for item in json.loads(site.run("check", "-o", "json").stdout)["items"]]


def refused(site: AppliedSite, part: str) -> dict[str, str]:
    code, rows = site.plan()
    assert code == 2 and rows[part]["action"] == "refused", rows[part]
    before = site.everything()
    with pytest.raises(InvalidInput, match="nothing was changed"):
        site.run("apply")
    assert site.everything() == before
    return rows[part]


# -- a load balancer that is there


def test_services_are_of_the_class_and_ask_for_their_address(site: AppliedSite) -> None:
    site.write(CLASS)
    assert site.plan()[1]["load balancers"]["detail"] == "the load balancer of class metallb.example/lb"
    site.run("apply")
    for name, address in (("ckp-compass", "192.0.2.200"), ("ckp-hub", "192.0.2.201")):
        spec = service(site, name)
        assert (spec["loadBalancerClass"], spec["loadBalancerIP"], spec["type"]) == ("metallb.example/lb", address, "LoadBalancer")
    assert "loadBalancerClass" not in service(site, "ckp-compass-internal")
    assert not kinds(site) & {"CiliumLoadBalancerIPPool", "CiliumL2AnnouncementPolicy"}, "Cilium announces nothing"
    assert site.host.table.load_balancer_class == "metallb.example/lb" and changed(site) == {}


def test_its_addresses_must_be_free_before_and_are_its_own_afterwards(site: AppliedSite) -> None:
    site.write(CLASS)
    site.host.arp["192.0.2.200"] = "00:11:22:33:44:55"
    assert findings(site) == ["free addresses: the address 192.0.2.200 of Compass is taken: 00:11:22:33:44:55 answers for it"]
    site.host.arp.clear()
    site.run("apply")
    site.host.arp["192.0.2.200"] = "00:11:22:33:44:55"
    assert findings(site) == [], "the load balancer answers for it"


# -- addresses of the hosts


def test_addresses_that_no_host_has_are_found(site: AppliedSite) -> None:
    site.write(ON_HOSTS)
    assert [words.partition(" has the ")[0] for words in findings(site)] == ["address: no management host"] * 3
    seen = having("a", addresses=("192.0.2.11", "192.0.2.61"))
    wanted = replace(SITE, on_hosts=["192.0.2.61", "192.0.2.62"])
    [found] = rules.judge(wanted, seen)
    assert (found.check, found.severity) == ("address", ERROR) and found.what.startswith("no management host has the address 192.0.2.62")
    assert rules.judge(replace(SITE, on_hosts=["192.0.2.61"]), seen) == []
    assert rules.judge(wanted, replace(GOOD, surveys={"a": GOOD.surveys["a"], "w": GOOD.surveys["w"]})) == [], "b was not reached"


def test_each_service_is_of_ckps_own_class_then_and_the_table_has_the_addresses(on_hosts: AppliedSite) -> None:
    site = on_hosts
    assert service(site, "ckp-hub")["loadBalancerClass"] == ON_HOSTS_CLASS
    assert site.host.table.load_balancer_addresses == ("192.0.2.200", "192.0.2.201", "192.0.2.60")
    assert not kinds(site) & {"CiliumLoadBalancerIPPool", "CiliumL2AnnouncementPolicy"}
    assert changed(site) == {} and findings(site) == []


def test_further_addresses_may_come_and_those_in_use_stay(on_hosts: AppliedSite) -> None:
    site = on_hosts
    site.host.more_addresses.append("192.0.2.61")
    site.write((POOL, "onHosts: [192.0.2.200, 192.0.2.201, 192.0.2.60, 192.0.2.61]"))
    rows = changed(site)
    assert rows["load balancers"]["detail"].endswith("192.0.2.60 of the hosts becomes 192.0.2.200, 192.0.2.201, 192.0.2.60, 192.0.2.61 of the hosts")
    assert "Compass does not answer" in rows["ckp"]["interrupts"] and "the controllers are replaced" in rows["ckp"]["interrupts"]
    spec, status = {"type": "LoadBalancer", "loadBalancerClass": ON_HOSTS_CLASS}, {"loadBalancer": {"ingress": [{"ip": "192.0.2.60"}]}}
    site.host.api.add("Service", "ckp-a-b", "one-api", spec=spec, status=status)
    site.write((POOL, "onHosts: [192.0.2.200, 192.0.2.201]"))
    assert "`onHosts` leaves out 192.0.2.60 of ckp-a-b/one-api" in refused(site, "load balancers")["detail"]


@pytest.fixture
def on_hosts(site: AppliedSite) -> AppliedSite:
    """A site with these addresses on its host."""
    site.host.more_addresses += ["192.0.2.200", "192.0.2.201", "192.0.2.60"]
    site.write(ON_HOSTS)
    site.run("apply")
    return site


@pytest.mark.parametrize("change", [CLASS, ON_HOSTS])
def test_another_way_is_refused_as_a_service_keeps_what_it_was_made_with(site: AppliedSite, change: tuple[str, str]) -> None:
    site.run("apply")
    site.host.more_addresses += ["192.0.2.200", "192.0.2.201", "192.0.2.60"]
    site.write(change)
    row = refused(site, "load balancers")
    assert "has its address from a range of Cilium's (`ciliumPool`, 192.0.2.200 to 192.0.2.220)" in row["detail"]
    assert "remove the site and apply it again" in row["remedy"]


# -- the file


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ([(POOL, "onHosts: [192.0.2.200]")], "there are too few addresses"),
        ([(POOL, "onHosts: [192.0.2.200, 192.0.2.201, 192.0.2.10]")], "management.hosts[0] has the address 192.0.2.10, whose port 6443"),
        ([ON_HOSTS, ("  managementPods", "  api: {virtualAddress: 192.0.2.60}\n  managementPods")], "192.0.2.60 is the virtual address of the management API"),
        ([CLASS, ("compass: {address: 192.0.2.200}", "compass: {address: 192.0.2.10}")], "192.0.2.10, which a load balancer can"),
    ],
)
def test_addresses_that_can_not_be_are_errors_of_the_file(changes: list[tuple[str, str]], words: str) -> None:
    text = TEXT
    for old, new in changes:
        text = text.replace(old, new)
    with pytest.raises(InvalidSite) as caught:
        parse_site(text.encode(), Path("site.yaml"))
    assert words in str(caught.value) + caught.value.details


def test_compass_and_hub_may_have_the_hosts_own_address() -> None:
    text = TEXT.replace(POOL, "onHosts: [192.0.2.10, 192.0.2.201]").replace("compass: {address: 192.0.2.200}", "compass: {address: 192.0.2.10}")
    parse_site(text.encode(), Path("site.yaml"))


# -- names of the management API


def test_the_kubeconfig_names_the_first_name_and_the_certificate_has_all(site: AppliedSite) -> None:
    site.host.dns |= {"api.example.test": "192.0.2.10", "k8s.example.test": "192.0.2.10"}
    site.write(NAMES)
    assert findings(site) == [] and site.plan()[1]["API name"]["detail"] == "kubeconfigs name api.example.test"
    site.run("apply")
    kept = site.root / "state" / "sites" / "berlin" / "management.kubeconfig"
    assert names.server_of(kept.read_bytes()) == "api.example.test" and kept.stat().st_mode & 0o777 == 0o600
    assert site.host.journal["member"]["cert_sans"] == "api.example.test,k8s.example.test"
    assert changed(site) == {} and site.plan()[1]["management cluster"]["action"] == "none", "it is known by the kubeconfig all the same"
    site.host._command(["rm", "-rf", "/etc/ckp-registry"])
    assert site.plan()[1]["management cluster"]["action"] == "none"


def test_a_name_of_the_certificate_may_become_the_one_that_clients_use(site: AppliedSite) -> None:
    site.host.dns["api.example.test"] = "192.0.2.10"
    sans = ("  managementPods:", "  api: {certSANs: [api.example.test]}\n  managementPods:")
    site.write(sans)
    site.run("apply")
    site.write(("  managementPods:", "  api: {names: [api.example.test]}\n  managementPods:"))
    row = changed(site)["API name"]
    assert row["detail"].startswith("the kubeconfig that this machine keeps names api.example.test in place of 192.0.2.10")
    site.run("apply")
    assert changed(site) == {}
    site.write(sans)
    assert changed(site)["API name"]["detail"].startswith("the kubeconfig that this machine keeps names 192.0.2.10")


def test_a_name_that_the_certificate_does_not_have_is_refused(site: AppliedSite) -> None:
    site.run("apply")
    site.host.dns |= {"api.example.test": "192.0.2.10", "k8s.example.test": "192.0.2.10"}
    site.write(NAMES)
    assert "the API's names and certSANs" in refused(site, "management cluster")["detail"]


def test_names_that_lead_elsewhere_are_found_on_the_host_and_on_this_machine(site: AppliedSite, monkeypatch: pytest.MonkeyPatch) -> None:
    site.host.dns |= {"api.example.test": "192.0.2.99"}
    monkeypatch.setattr(remote, "resolve", lambda asked: dict(zip(asked, ([], ["198.51.100.7"]), strict=True)))
    site.write(NAMES)
    assert findings(site) == [
        "names: the name api.example.test does not resolve on this machine",
        "names: the name k8s.example.test of the management API leads to 198.51.100.7 on this machine, not to 192.0.2.10",
        "names: the name api.example.test of the management API leads to 192.0.2.99 there, not to 192.0.2.10",
        "names: the name k8s.example.test does not resolve there",
    ]


def test_a_name_leads_to_the_virtual_address_if_there_is_one() -> None:
    site = replace(SITE, names=["api.example.test"], leads={"api.example.test": "192.0.2.10"})
    seen = Seen(surveys={name: each.model_copy(update={"names": {"api.example.test": ("192.0.2.11",)}}) for name, each in GOOD.surveys.items()})
    assert {found.what for found in rules.judge(site, seen)} == {"the name api.example.test of the management API leads to 192.0.2.11 there, not to 192.0.2.10"}


def test_only_the_server_of_a_kubeconfig_is_changed() -> None:
    named = names.with_server(KUBECONFIG, "api.example.test")
    assert named == KUBECONFIG.replace(b"192.0.2.10", b"api.example.test") and names.with_server(KUBECONFIG, "") == KUBECONFIG
    assert names.same_user(named, KUBECONFIG) and not names.same_user(named, KUBECONFIG.replace(b"QQ==", b"Qg=="))
    assert names.server_of(named) == "api.example.test" and names.server_of(b"nothing") == ""
