"""What applying would change: planned, refused, done; and planned again, when nothing is left."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ckp.api.kinds import MACHINE
from ckp.catalog.models import Source
from ckp.kits.errors import CkpError, InvalidInput, NotFound
from ckp.site import management
from ckp.site.plan import wanted
from tests.simulators.management_host import STEPS
from tests.simulators.site_host import Killed
from tests.support.kills import stride
from tests.worlds.applied_site import RELEASE, AppliedSite


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AppliedSite:
    return AppliedSite(tmp_path, monkeypatch)


@pytest.fixture
def applied(site: AppliedSite) -> AppliedSite:
    site.run("apply")
    return site


def unchanged(site: AppliedSite, *archives: str) -> tuple[int, dict[str, dict[str, str]]]:
    """A plan, which changes nothing; with releases from files."""
    before = site.everything()
    found = site.plan(*archives)
    assert site.everything() == before
    return found


def test_before_a_site_is_there_all_of_it_is_created_and_planning_changes_nothing(site: AppliedSite) -> None:
    code, rows = unchanged(site)
    assert code == 1 and {row["action"] for row in rows.values()} == {"create"}
    assert list(rows) == [
        "registry name",
        "registry",
        "host tool",
        "host settings",
        "management cluster",
        f"release {RELEASE}",
        "load balancers",
        "Compass address",
        "hub address",
        "addon values",
        "database",
        "foundation",
        "cert-manager",
        "cluster-api",
        "ckp",
        "host group",
        "command line",
    ]
    assert rows["management cluster"]["detail"] == f"{RELEASE} on m1, pods 10.1.0.0/16, Services 10.96.0.0/16"
    assert not (site.root / "state" / "sites").exists(), "not even a folder"


def test_once_applied_nothing_is_left_to_do_and_nothing_is_found(applied: AppliedSite) -> None:
    code, rows = unchanged(applied)
    assert {part: row["action"] for part, row in rows.items() if row["action"] != "none"} == {} and code == 0
    assert applied.run("check").stderr.endswith("nothing is wrong\n")
    before = applied.everything()
    done = applied.run("apply")
    assert applied.everything() == before and "is a cluster already" in done.output


def test_a_first_apply_that_was_killed_goes_on_whenever_that_was(site: AppliedSite) -> None:
    """The check takes what the killed run has left for the site's own, and so do the rules."""
    number, killed = 12, list[str]()
    while True:
        site.host.kill_at = len(site.host.calls) + number
        try:
            site.run("apply")
        except Killed:
            killed.append(site.host.calls[-1].split(" ")[0])
            number += stride(2)
            continue
        break
    site.host.kill_at = None
    assert {"push", "kubectl"} <= set(killed) and len(killed) > 8, killed
    assert site.plan()[0] == 0


def test_an_installation_that_was_begun_goes_on_only_with_what_it_was_begun_with(site: AppliedSite) -> None:
    site.run("apply")
    journal = json.loads(site.host.path(management.JOURNAL).read_text())
    site.host.path(management.JOURNAL).write_text(json.dumps({**journal, "done": list(STEPS[:5])}))
    code, rows = unchanged(site)
    assert code == 1 and (rows["management cluster"]["action"], rows["management cluster"]["detail"]) == (
        "create",
        "its installation goes on: 5 of its steps are done",
    )
    site.write(("managementPods: 10.1.0.0/16", "managementPods: 10.3.0.0/16"))
    code, rows = unchanged(site)
    assert code == 2 and "or give up what was begun (`ckp-agent standalone reset` on m1)" in rows["management cluster"]["remedy"]


Rows = dict[str, tuple[str, str, str]]
CHANGES: dict[str, tuple[tuple[str, str], Rows]] = {
    "Compass' address": (
        ("compass: {address: 192.0.2.200}", "compass: {address: 192.0.2.205}"),
        {
            "Compass address": ("change", "192.0.2.200 becomes 192.0.2.205", "not found at the old address"),
            "ckp": ("change", "because of Compass address", ""),
            "command line": ("change", "in place of https://192.0.2.200", "do not go to https://192.0.2.200"),
            "host group": ("unknown", "can't be asked", ""),
        },
    ),
    "the hub's address, without hosts": (
        ("hub: {address: 192.0.2.201}", "hub: {address: 192.0.2.206}"),
        {
            "hub address": ("change", "becomes 192.0.2.206; no host is enrolled", ""),
            "ckp": ("change", "because of hub address", "Compass does not answer for some seconds"),
        },
    ),
    "the names of Compass": (
        ("compass: {address: 192.0.2.200}", "compass: {address: 192.0.2.200, names: [compass.example.test]}"),
        {
            "Compass names": ("change", "none becomes compass.example.test: its certificate is issued again", ""),
            "ckp": ("change", "because of Compass names", ""),
        },
    ),
    "the names of the hub": (
        ("hub: {address: 192.0.2.201}", "hub: {address: 192.0.2.201, names: [hub.example.test, ckp-hub.example.test]}"),
        {"hub names": ("change", "becomes hub.example.test, ckp-hub.example.test:", ""), "ckp": ("change", "because of hub names", "")},
    ),
    "the range of load balancers": (
        ("last: 192.0.2.220", "last: 192.0.2.230"),
        {"load balancers": ("change", "192.0.2.200 to 192.0.2.220 becomes 192.0.2.200 to 192.0.2.230", ""), "ckp": ("change", "load balancers", "")},
    ),
    "the hosts' network": (
        ("hosts: 192.0.2.0/24", "hosts: 192.0.0.0/16"),
        {
            "reserved networks": ("change", "becomes hosts=192.0.0.0/16,", "Compass does not answer for some seconds"),
            "ckp": ("change", "because of reserved networks", "Compass does not answer for some seconds"),
        },
    ),
    "addon values": (
        ("mtu: 9000", "mtu: 1500"),
        {
            "addon values": ("change", "of cilium", ""),
            "ckp": (
                "change",
                "because of addon values",
                "Compass does not answer for some seconds: its pod ends before the next one starts; the controllers are replaced",
            ),
        },
    ),
    "the workers' systems": (
        ("workers: {group", "workers: {systems: [ubuntu-24.04], group"),
        {
            f"release {RELEASE}": ("change", "is offered; host bundles: ubuntu-24.04 comes", ""),
            "ckp": (
                "change",
                f"because of release {RELEASE}",
                "Compass does not answer for some seconds: its pod ends before the next one starts; the controllers",
            ),
        },
    ),
    "the host group": (("name: racks", "name: rows"), {"host group": ("create", "rows; hosts stay in the groups that they are in", "")}),
    "the group's description": (("All racks", "Other racks"), {}),
}


WORDS = {"ckp-compass": "Compass does not answer", "ckp-hub": "the hub's replicas", "ckp-controllers": "the controllers are replaced"}
"""Deployment -> what is said if its pods are replaced."""


def templates(site: AppliedSite) -> dict[str, object]:
    """What CKP's own pods are made of."""
    return {name: site.host.api.objects["Deployment", "ckp-system", name]["spec"]["template"] for name in WORDS}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_of_the_file_is_planned_with_what_it_interrupts_and_then_done(applied: AppliedSite, name: str) -> None:
    change, expected = CHANGES[name]
    applied.write(change)
    code, rows = unchanged(applied)
    changed = {part: row for part, row in rows.items() if row["action"] != "none"}
    assert set(changed) == set(expected) and code == (1 if expected else 0), changed
    for part, (action, detail, interrupts) in expected.items():
        row = changed[part]
        assert row["action"] == action and detail in row["detail"] and interrupts in row["interrupts"], row
        assert bool(interrupts) == bool(row["interrupts"])
    said = {name for name, word in WORDS.items() if any(word in row["interrupts"] for row in rows.values())}
    before = templates(applied)
    starts = [service.starts for service in applied.host.services.values()]
    applied.run("apply")
    assert said == {name for name, template in templates(applied).items() if template != before[name]}, "these pods are replaced, and no others"
    assert starts == [service.starts for service in applied.host.services.values()], "the registry was not restarted"
    assert unchanged(applied)[0] == 0


REFUSED: dict[str, tuple[tuple[str, str], str, str, str]] = {
    "pods": (
        ("managementPods: 10.1.0.0/16", "managementPods: 10.3.0.0/16"),
        "management cluster",
        "it was made with managementPods 10.1.0.0/16, which stays as long as it exists: 10.3.0.0/16 is another one",
        "write 10.1.0.0/16 back",
    ),
    "services": (
        ("managementPods: 10.1.0.0/16", "managementPods: 10.1.0.0/16\n  managementServices: 10.4.0.0/16"),
        "management cluster",
        "managementServices 10.96.0.0/16",
        "write 10.96.0.0/16 back",
    ),
    "the host's name": (("name: m1", "name: m2"), "management cluster", "it was made with the host's name m1", "write m1 back"),
    "the host's address": (
        ("address: 192.0.2.10}", "address: 192.0.2.11}"),
        "management cluster",
        "it was made with the host's address 192.0.2.10",
        "write 192.0.2.10 back",
    ),
    "the release": (
        ("releases: [v1.35.1]", "releases: [v1.34.3]"),
        "management cluster",
        "it runs v1.35.1, which `releases` does not name, and a management cluster is not upgraded yet",
        "name v1.35.1 in `releases`",
    ),
    "the registry's name": (
        ("images.example.test", "others.example.test"),
        "registry",
        "the cluster on m1 was made from images.example.test:5443, and all that runs in it is pulled from there",
        "write the registry's name and port back: images.example.test:5443",
    ),
    "the registry's port": (("port: 5443", "port: 5543"), "registry", "images.example.test:5543 is another one", "images.example.test:5443"),
    "the registry's folder": (
        ("/srv/images", "/srv/others"),
        "registry",
        "its content is in /srv/images, and applying moves none: in /srv/others it would begin empty",
        "write storage: /srv/images back",
    ),
    "host settings": (
        ("maxPods: 50", "maxPods: 60"),
        "host settings",
        'a kubelet that runs gets no others: {"kubelet": {"maxPods": 60}}',
        'write the former ones back: {"kubelet": {"maxPods": 50}}',
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_applying_would_do_by_half_is_planned_as_refused_and_refused_with_the_same_sentence(applied: AppliedSite, name: str) -> None:
    change, part, sentence, remedy = REFUSED[name]
    applied.host.path("/srv/images/docker").mkdir()  # as the first push does
    applied.write(change)
    applied.host.name = "m2" if name == "the host's name" else "m1"
    applied.host.address = "192.0.2.11" if name == "the host's address" else "192.0.2.10"
    code, rows = unchanged(applied)
    assert code == 2 and rows[part]["action"] == "refused", rows[part]
    assert sentence in rows[part]["detail"] and remedy in rows[part]["remedy"], rows[part]
    before = applied.everything()
    with pytest.raises(InvalidInput, match="nothing was changed") as caught:
        applied.run("apply")
    assert f"{part}: {rows[part]['detail']} (what to do: {rows[part]['remedy']})" in caught.value.details
    assert applied.everything() == before


# -- what is not this site's


def refused(site: AppliedSite, part: str) -> dict[str, str]:
    """The row that is refused; applying is, too, and neither changes anything."""
    code, rows = unchanged(site)
    assert code == 2 and rows[part]["action"] == "refused", rows[part]
    before = site.everything()
    with pytest.raises(InvalidInput, match="nothing was changed") as caught:
        site.run("apply")
    assert rows[part]["detail"] in caught.value.details and site.everything() == before
    return rows[part]


def test_a_cluster_that_the_site_has_not_made_is_not_taken_over(site: AppliedSite) -> None:
    settings = {"pod_cidr": "10.1.0.0/16", "service_cidr": "10.96.0.0/16", "advertise_address": "192.0.2.10", "node_name": "m1"}
    site.host.install(RELEASE, "/root/bundle", settings)
    row = refused(site, "management cluster")
    assert row["detail"] == f"m1 is a cluster that this site has not made: {RELEASE} from /root/bundle"
    assert "`ckp-agent standalone reset` on m1" in row["remedy"]


@pytest.mark.parametrize("kept", [[], ["registry"]], ids=["from another machine", "by another site"])
def test_a_host_of_which_this_machine_knows_nothing_or_something_else_is_refused(applied: AppliedSite, kept: list[str]) -> None:
    state = applied.root / "state" / "sites" / "berlin"
    state.rename(applied.root / "elsewhere")
    if kept:
        (state / "registry").mkdir(parents=True)
        (state / "registry" / "ca.pem").write_bytes((applied.root / "elsewhere" / "registry" / "ca.pem").read_bytes() + b"\n")
    assert "has the registry of another site" in refused(applied, "registry")["detail"]
    assert "bring that machine's state of the site here" in refused(applied, "management cluster")["remedy"]


def test_a_site_whose_registry_was_lost_on_its_host_is_still_its_own(applied: AppliedSite) -> None:
    """This machine has its administrator's kubeconfig."""
    applied.host._command(["systemctl", "stop", "ckp-registry@pull.service", "ckp-registry@push.service"])
    applied.host._command(["rm", "-rf", "/etc/ckp-registry"])
    code, rows = unchanged(applied)
    assert code == 1 and (rows["management cluster"]["action"], rows["registry"]["action"]) == ("none", "restart")
    applied.run("apply")
    assert unchanged(applied)[0] == 0


# -- what users have of the site


def test_the_hubs_address_stays_once_hosts_know_it(applied: AppliedSite) -> None:
    for name in ("w1", "w2"):
        applied.host.api.add("ByoHost", "ckp-a-b", name)
    applied.write(("hub: {address: 192.0.2.201}", "hub: {address: 192.0.2.206}"))
    assert refused(applied, "hub address")["detail"] == (
        "2 enrolled hosts have the hub's address 192.0.2.201 in the agent's configuration, and would not find it at 192.0.2.206"
    )


def cluster(site: AppliedSite, address: str) -> None:
    """A workload cluster whose API has this address."""
    site.host.api.add("Service", "ckp-a-b", "one-api", spec={"type": "LoadBalancer"}, status={"loadBalancer": {"ingress": [{"ip": address}]}})
    site.host.api.add("Service", "ckp-a-b", "inner", spec={"type": "ClusterIP"})
    site.host.api.add("ManagedControlPlane", "ckp-a-b", "one", metadata={"labels": {"cluster.x-k8s.io/cluster-name": "one"}}, spec={"version": RELEASE})


def test_addresses_that_are_in_use_stay_in_the_range(applied: AppliedSite) -> None:
    cluster(applied, "192.0.2.215")
    applied.write(("last: 192.0.2.220", "last: 192.0.2.214"))
    assert "leaves out 192.0.2.215 of ckp-a-b/one-api" in refused(applied, "load balancers")["detail"]
    applied.write(("last: 192.0.2.220", "last: 192.0.2.215"))
    assert unchanged(applied)[1]["load balancers"]["action"] == "change"
    applied.write(("compass: {address: 192.0.2.200}", "compass: {address: 192.0.2.215}"))
    assert refused(applied, "Compass address")["detail"] == "ckp-a-b/one-api has the address 192.0.2.215"


def test_changed_addon_values_upgrade_the_chart_where_it_is(applied: AppliedSite) -> None:
    cluster(applied, "192.0.2.215")
    applied.write(("mtu: 9000", "mtu: 1500"))
    code, rows = unchanged(applied)
    assert code == 1 and rows["addon values"]["interrupts"] == "helm upgrades cilium in the workload cluster, where it is installed"


def test_a_release_that_clusters_run_stays_among_those_offered(applied: AppliedSite) -> None:
    table = json.loads(applied.host.api.objects["ConfigMap", "ckp-system", "ckp-releases"]["data"]["releases.json"])
    table["releases"]["v1.34.3"] = {**table["releases"][RELEASE], "name": "v1.34.3"}
    applied.host.api.add("ConfigMap", "ckp-system", "ckp-releases", data={"releases.json": json.dumps(table)})
    assert unchanged(applied)[1]["release v1.34.3"]["action"] == "change", "nobody runs it"
    applied.host.api.add("ManagedControlPlane", "ckp-a-b", "one", spec={"version": "v1.34.3"})
    assert "ckp-a-b/one runs it" in refused(applied, "release v1.34.3")["detail"]


def test_what_somebody_else_has_changed_in_the_cluster_is_changed_back(applied: AppliedSite) -> None:
    service = applied.host.api.objects["Service", "ckp-system", "ckp-compass"]
    service["metadata"]["annotations"]["lbipam.cilium.io/ips"] = "192.0.2.219"
    code, rows = unchanged(applied)
    assert code == 1 and rows["Compass address"]["detail"] == "192.0.2.219 becomes 192.0.2.200"
    applied.run("apply")
    assert unchanged(applied)[0] == 0


# -- what is known without a build


def no_compiler(*_: object) -> str:
    raise NotFound("the package gcc is not installed")


def test_what_only_the_build_can_tell_is_said_to_be_unknown(applied: AppliedSite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wanted, "build_key", lambda *_: "another source")
    code, rows = unchanged(applied)
    unknown = {part: row["detail"] for part, row in rows.items() if row["action"] != "none"}
    assert code == 1 and {rows[part]["action"] for part in unknown} == {"unknown"}
    assert set(unknown) == {"registry", "cert-manager", "cluster-api", "ckp"}
    assert unknown["ckp"] == "the release is not built on this machine: whether images change is known after the build"
    assert rows["ckp"]["interrupts"].startswith("if they do, Compass does not answer for some seconds"), rows["ckp"]
    monkeypatch.setattr(wanted, "build_key", no_compiler)
    assert unchanged(applied)[1]["ckp"]["action"] == "unknown"
    monkeypatch.setattr(wanted, "build_key", lambda *_: "another source")
    monkeypatch.setattr(wanted, "is_built", lambda *_: True)
    monkeypatch.setattr(wanted, "registry_program", lambda *_: applied.root / "registry")
    code, rows = unchanged(applied)
    assert rows["registry"]["action"] == "none", "its program is in the cache, and was compared"
    assert rows["ckp"]["detail"].startswith("the release is made of other sources than what was applied last")


def test_a_changed_keyring_gives_another_host_tool(applied: AppliedSite) -> None:
    there = applied.host.packages["ckp-agent"]
    (applied.root / "keys" / "trusted.gpg").write_bytes(b"other keys")
    row = unchanged(applied)[1]["host tool"]
    assert row["action"] == "change" and row["detail"].startswith(f"ckp-agent {there} becomes ")
    (applied.root / "keys" / "trusted.gpg").unlink()
    row = unchanged(applied)[1]["host tool"]
    assert row["action"] == "unknown" and "no signing key yet" in row["detail"]
    assert not (applied.root / "keys" / "trusted.gpg").exists(), "none is made"


def test_what_was_applied_and_is_not_remembered_is_applied_again(applied: AppliedSite) -> None:
    (applied.root / "state" / "sites" / "berlin" / "applied" / "ckp").unlink()
    code, rows = unchanged(applied)
    assert code == 1 and rows["ckp"]["detail"] == "is applied: this machine has no record that it was before"


def test_a_release_from_a_file_is_compared_to_the_last_byte(applied: AppliedSite) -> None:
    code, rows = unchanged(applied, RELEASE)
    assert code == 0, [row for row in rows.values() if row["action"] != "none"]
    cluster(applied, "192.0.2.215")
    applied.release.images["kube-apiserver"] = "sha256:" + "b" * 64
    code, rows = unchanged(applied, RELEASE)
    assert code == 1 and [part for part, row in rows.items() if row["action"] != "none"] == ["ckp"]
    assert rows["ckp"]["interrupts"].split("; ") == [
        "Compass does not answer for some seconds: its pod ends before the next one starts",
        "the controllers are replaced: changes to clusters wait for some seconds",
        "the control planes of ckp-a-b/one get other images: their pods are replaced, and an API with one etcd member is away meanwhile",
    ]
    applied.release.images["cilium"] = "sha256:" + "c" * 64
    assert unchanged(applied, RELEASE)[1]["ckp"]["interrupts"].endswith("; helm upgrades cilium in ckp-a-b/one")
    applied.release.images["ckp-platform"] = "sha256:" + "c" * 64
    assert "the hub's replicas are replaced one after the other" in unchanged(applied, RELEASE)[1]["ckp"]["interrupts"]
    applied.release.images["cert-manager-controller"] = "sha256:" + "d" * 64
    assert unchanged(applied, RELEASE)[1]["cert-manager"]["interrupts"] == "if its pods are replaced, certificates are issued some seconds later"
    (applied.root / "registry").write_bytes(b"another program")
    row = unchanged(applied, RELEASE)[1]["registry"]
    assert row["action"] == "restart" and "/usr/local/sbin/ckp-registry" in row["detail"] and "pulls under way get 30 s" in row["interrupts"]


# -- several releases

OLD = "v1.34.3"
BOTH = ("releases: [v1.35.1]", f"releases: [{OLD}, {RELEASE}]")


@pytest.fixture
def older(site: AppliedSite) -> AppliedSite:
    """A site that was applied with one release, and whose file names a newer one beside it now."""
    site.write(("releases: [v1.35.1]", f"releases: [{OLD}]"))
    site.run("apply")
    site.write(BOTH)
    return site


def table(site: AppliedSite) -> tuple[str, list[str]]:
    """The management layer's release, and all that clusters can be made of."""
    return site.host.table.management, site.host.offered


@pytest.mark.parametrize("files", [(), (RELEASE, OLD)], ids=["built here", "from two files"])
def test_a_newer_release_is_planned_beside_that_of_the_management_cluster_which_stays(older: AppliedSite, files: tuple[str, ...]) -> None:
    code, rows = unchanged(older, *files)
    changed = {part: (row["action"], row["detail"]) for part, row in rows.items() if row["action"] != "none"}
    why = "its objects are others than those applied last" if files else f"because of release {RELEASE}"
    comes = "its images and host bundles come into the registry, and clusters may ask for it"
    assert code == 1 and changed == {f"release {RELEASE}": ("create", comes), "ckp": ("change", why)}
    assert rows["management cluster"]["detail"] == f"{OLD} on m1" and rows[f"release {OLD}"]["detail"] == "is offered"
    assert rows["ckp"]["interrupts"].startswith("Compass does not answer") and "the hub" not in rows["ckp"]["interrupts"]
    before, journal = templates(older), older.host.journal
    older.run("apply", *older.taking(files))
    assert table(older) == (OLD, [OLD, RELEASE]) and older.host.journal == journal
    assert {name for name, template in templates(older).items() if template != before[name]} == {"ckp-compass", "ckp-controllers"}
    assert unchanged(older, *files)[0] == 0


def test_a_new_management_cluster_is_planned_with_the_newest_release_of_the_file(site: AppliedSite) -> None:
    site.write(("releases: [v1.35.1]", f"releases: [{RELEASE}, {OLD}]"))
    for files in ((), (OLD, RELEASE)):
        code, rows = unchanged(site, *files)
        assert code == 1 and rows["management cluster"]["detail"].startswith(f"{RELEASE} on m1, ")
        assert [part for part in rows if part.startswith("release ")] == [f"release {OLD}", f"release {RELEASE}"]
    site.run("apply")
    assert table(site) == (RELEASE, [OLD, RELEASE]) and site.host.journal["member"]["release"] == RELEASE
    assert unchanged(site)[0] == 0


def test_images_of_every_offered_release_count(older: AppliedSite, monkeypatch: pytest.MonkeyPatch) -> None:
    older.run("apply")
    older.host.create_cluster("new", RELEASE)
    older.host.create_cluster("old", OLD)
    older.made(RELEASE).images["kube-apiserver"] = "sha256:" + "b" * 64
    rows = unchanged(older, OLD, RELEASE)[1]
    assert [part for part, row in rows.items() if row["action"] != "none"] == ["ckp"]
    assert "the control planes of ckp-a-b/new get other images" in rows["ckp"]["interrupts"], rows["ckp"]
    rows = unchanged(older, RELEASE)[1]
    assert {part: row["detail"] for part, row in rows.items() if row["action"] != "none"} == {
        "ckp": f"this machine has no record of what {RELEASE} was made of that was applied last: whether images change is known after the build"
    }, "the other one is the management layer's, and is made of what it was made of"

    def key(_catalog: object, source: Source, stamp: str) -> str:
        return f"{source.component} {source.version}{'' if stamp.startswith(OLD) else ' changed'}"

    monkeypatch.setattr(wanted, "is_built", lambda *_: True)
    monkeypatch.setattr(wanted, "registry_program", lambda *_: older.root / "registry")
    monkeypatch.setattr(wanted, "build_key", key)
    rows = unchanged(older)[1]
    assert {part: row["detail"] for part, row in rows.items() if row["action"] != "none"} == {
        "ckp": f"{RELEASE} is made of other sources than what was applied last: whether images change is known after the build"
    }


def test_a_release_that_the_file_leaves_out_is_planned_and_goes_or_is_refused_if_one_machine_uses_it(older: AppliedSite) -> None:
    older.run("apply")
    older.write(("releases: [v1.35.1]", f"releases: [{OLD}]"))
    older.host.create(MACHINE, "one-1", {"version": RELEASE}, cluster="one")
    assert refused(older, f"release {RELEASE}")["detail"].startswith("ckp-a-b/one runs it: ")
    older.host.delete_clusters()
    rows = unchanged(older)[1]
    assert {part: row["action"] for part, row in rows.items() if row["action"] != "none"} == {f"release {RELEASE}": "change", "ckp": "change"}
    assert rows["management cluster"]["detail"] == f"{OLD} on m1"


# -- the registry's name, and its folder


def test_a_registrys_name_that_leads_elsewhere_is_refused_and_an_earlier_line_is_changed(site: AppliedSite) -> None:
    site.host.dns["images.example.test"] = "192.0.2.77"
    assert "leads to 192.0.2.77, not to 192.0.2.10" in refused(site, "registry name")["detail"]
    site.host.path("/etc/hosts").write_text("192.0.2.9 images.example.test # CKP's registry\n")
    assert unchanged(site)[1]["registry name"]["action"] == "change"


def test_a_registry_whose_content_was_moved_by_hand_is_started_there(applied: AppliedSite) -> None:
    applied.host.path("/srv/images/docker").mkdir()
    applied.host.path("/srv/images").rename(applied.host.path("/srv/others"))
    applied.write(("/srv/images", "/srv/others"))
    row = unchanged(applied)[1]["registry"]
    assert row["action"] == "restart" and row["detail"].startswith("its content is in /srv/others now; "), row
    applied.run("apply")
    assert unchanged(applied)[0] == 0


def test_a_registry_that_only_stands_still_is_started(applied: AppliedSite) -> None:
    applied.host._command(["systemctl", "stop", "ckp-registry@push.service"])
    row = unchanged(applied)[1]["registry"]
    assert (row["action"], row["detail"], row["interrupts"]) == ("change", "ckp-registry@push.service is started", "")


# -- the check before applying


def test_errors_of_the_check_end_applying_before_anything_is_changed(site: AppliedSite) -> None:
    site.host.findings = [
        {"problem": "a disk is full", "remediation": "free some space", "blocking": True},
        {"problem": "ufw is on", "remediation": "nothing", "blocking": False},
    ]
    site.host.sockets.append("0.0.0.0:5443")
    before = site.everything()
    with pytest.raises(InvalidInput, match="the check of the site found 2 errors, and nothing was changed") as caught:
        site.run("apply", "--ignore-finding", "names")
    assert caught.value.details.splitlines() == [
        "m1: preflight: a disk is full (what to do: free some space)",
        "m1: ports: port 5443 is taken by nginx (pid 77), and the registry needs it "
        "(what to do: stop what listens there, or change the port in the site's file)",
    ]
    assert site.everything() == before
    site.host.sockets.clear()
    done = site.run("apply", "--ignore-finding", "preflight")
    assert "a disk is full" in done.output and "ufw is on" in done.output and site.plan()[0] == 0


# -- how it ends


def test_a_host_that_is_not_reached_ends_planning_with_another_code_than_a_change(site: AppliedSite, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(*_: object, **__: object) -> None:
        raise CkpError("m1 does not answer", resolution="switch it on")

    monkeypatch.setattr(site.host, "run", lost)
    with pytest.raises(CkpError, match="m1 does not answer") as caught:
        site.run("plan")
    assert (caught.value.exit_code, caught.value.resolution) == (5, "switch it on")


def test_a_management_cluster_that_does_not_answer_is_an_error_and_no_empty_one(applied: AppliedSite) -> None:
    applied.host.api.answers = False
    with pytest.raises(CkpError, match="the management cluster on m1 does not answer, and what would change in it can't be told") as caught:
        applied.run("plan")
    assert caught.value.exit_code == 5


def test_people_get_a_table_and_the_remedy_of_what_is_refused(applied: AppliedSite) -> None:
    applied.write(("name: m1", "name: m2"))
    applied.host.name = "m2"
    done = applied.run("plan")
    head, *lines = done.stdout.splitlines()
    assert head.split() == ["PART", "ACTION", "DETAIL", "INTERRUPTS"]
    assert [line.split()[2] for line in lines if line.startswith("management cluster")] == ["refused"]
    assert "management cluster is refused; what to do: write m1 back" in done.stderr
