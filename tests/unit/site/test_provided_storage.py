"""What volumes of etcd are made of: a class that the management cluster has, or a folder of its hosts; planned, checked, applied and removed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from ckp.cli.site import site as command
from ckp.kits.errors import InvalidInput
from ckp.site.inventory import SiteStorage
from ckp.site.provided import storage
from ckp.site.provided.storage import SeenClasses
from ckp.site.spec.read import InvalidSite, parse_site
from tests.worlds.applied_site import TEXT, AppliedSite

END = "addonValues: {cilium: {mtu: 9000}}\n"


def etcd(text: str) -> tuple[str, str]:
    """The change of the file that sets `storage.etcd`."""
    return END, f"{END}storage: {{etcd: {text}}}\n"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AppliedSite:
    return AppliedSite(tmp_path, monkeypatch)


@pytest.fixture
def applied(site: AppliedSite) -> AppliedSite:
    site.run("apply")
    return site


def findings(site: AppliedSite) -> list[dict[str, str]]:
    return list(json.loads(site.run("check", "-o", "json").stdout)["items"])


def changed(site: AppliedSite) -> dict[str, dict[str, str]]:
    return {part: row for part, row in site.plan()[1].items() if row["action"] != "none"}


# -- a class of the cluster


def test_a_class_is_for_new_clusters_and_those_that_are_there_keep_their_volumes(applied: AppliedSite) -> None:
    applied.host.api.add("StorageClass", "", "fast", provisioner="csi.example.test")
    applied.host.api.add("CSINode", "", "m1", spec={"drivers": [{"name": "csi.example.test"}]})
    applied.host.create_cluster("one", "v1.35.1")
    applied.write(etcd("{className: fast}"))
    assert findings(applied) == []
    rows = changed(applied)
    assert set(rows) == {"etcd volumes", "ckp"}
    assert rows["etcd volumes"]["detail"] == "the default StorageClass becomes the StorageClass fast; the cluster that is there keeps its volumes"
    assert rows["etcd volumes"]["interrupts"] == "" and rows["ckp"]["detail"] == "because of etcd volumes"
    assert "Compass does not answer" in rows["ckp"]["interrupts"] and "the hub" not in rows["ckp"]["interrupts"]
    applied.run("apply")
    assert applied.host.table.etcd_storage_class == "fast" and changed(applied) == {}
    applied.write()
    assert changed(applied)["etcd volumes"]["detail"].startswith("the StorageClass fast becomes the default StorageClass; ")


STORAGE_FAULTS: dict[str, tuple[dict[str, Any], str, bool]] = {
    "it is not there": ({}, "the management cluster has no StorageClass fast", True),
    "it goes": ({"fast": {"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}}, "is being deleted", True),
    "nothing makes volumes": ({"fast": {"metadata": {}, "provisioner": storage.STATIC}}, "has no provisioner, and there is no free PersistentVolume", True),
    "its driver does not run": ({"fast": {"metadata": {}, "provisioner": "csi.example.test"}}, "no node of the management cluster has a CSI driver", False),
}


@pytest.mark.parametrize("name", STORAGE_FAULTS)
def test_a_class_that_can_not_bind_is_named_with_what_to_do(name: str) -> None:
    classes, words, certain = STORAGE_FAULTS[name]
    [problem] = storage.problems(SiteStorage(etcd_class="fast"), SeenClasses(classes))
    assert words in problem.what and problem.certain is certain and problem.remedy


def test_a_class_that_can_bind_is_no_problem() -> None:
    wanted = SiteStorage(etcd_class="fast")
    for seen in (
        SeenClasses({"fast": {"metadata": {}, "provisioner": "csi.test"}}, drivers=frozenset({"csi.test"})),
        SeenClasses({"fast": {"metadata": {}, "provisioner": storage.STATIC}}, free=frozenset({"fast"})),
        SeenClasses({"fast": {"metadata": {}, "provisioner": storage.PROVISIONER}}),
    ):
        assert storage.problems(wanted, seen) == []
    assert storage.problems(SiteStorage(), SeenClasses()) == []
    assert storage.problems(SiteStorage(etcd_class="ckp-hostpath"), None) == [], "a new cluster has it"


def test_an_unknown_class_is_found_by_the_check_planned_as_refused_and_refused(applied: AppliedSite) -> None:
    applied.write(etcd("{className: fast}"))
    [finding] = findings(applied)
    assert (finding["check"], finding["severity"]) == ("storage", "error") and "write one that it has (ckp-hostpath)" in finding["remedy"]
    code, rows = applied.plan()
    assert code == 2 and rows["etcd volumes"]["action"] == "refused" and rows["etcd volumes"]["detail"] == finding["what"]
    before = applied.everything()
    with pytest.raises(InvalidInput, match="nothing was changed"):
        applied.run("apply")
    assert applied.everything() == before


def test_a_new_site_can_not_name_a_class_that_its_cluster_will_not_have(site: AppliedSite) -> None:
    site.write(etcd("{className: fast}"))
    assert [finding["check"] for finding in findings(site)] == ["storage"]
    assert site.plan()[1]["etcd volumes"]["action"] == "refused"
    site.write(etcd("{className: ckp-hostpath}"))
    assert findings(site) == [] and site.plan()[1]["etcd volumes"]["action"] == "create"
    site.run("apply")
    assert changed(site) == {} and site.host.table.etcd_storage_class == "ckp-hostpath"


# -- a folder


def test_a_folder_gets_a_class_of_its_own_and_is_for_root_only(site: AppliedSite) -> None:
    site.write(etcd("{path: /srv/etcd}"))
    assert findings(site) == []
    assert site.plan()[1]["etcd volumes"]["detail"] == "the folder /srv/etcd of the management hosts"
    site.run("apply")
    assert site.host.access["/srv/etcd"] == "700 root root" and site.host.table.etcd_storage_class == "ckp-etcd"
    config = json.loads(site.host.api.objects["ConfigMap", "ckp-storage", "local-path-config"]["data"]["config.json"])
    folders = {name: each["nodePathMap"][0]["paths"] for name, each in config["storageClassConfigs"].items()}
    assert folders == {"ckp-hostpath": ["/var/lib/ckp/volumes"], "ckp-etcd": ["/srv/etcd"]} and config["nodePathMap"] == []
    assert changed(site) == {} and findings(site) == []


def test_another_folder_is_for_new_clusters(site: AppliedSite) -> None:
    site.write(etcd("{path: /srv/etcd}"))
    site.run("apply")
    site.write(etcd("{path: /srv/nvme}"))
    row = changed(site)["etcd volumes"]
    assert (row["action"], row["detail"]) == ("change", "the folder /srv/etcd of the management hosts becomes the folder /srv/nvme of the management hosts")
    site.run("apply")
    assert changed(site) == {} and site.host.access["/srv/nvme"] == "700 root root"


@pytest.mark.parametrize(("access", "words"), [("755 root root", "is not root's alone (755 root root)"), ("700 alice alice", "is not root's alone")])
def test_a_folder_that_others_may_look_into_is_refused(site: AppliedSite, access: str, words: str) -> None:
    site.host.path("/srv/etcd").mkdir(parents=True)
    site.host.access["/srv/etcd"] = access
    site.write(etcd("{path: /srv/etcd}"))
    [finding] = findings(site)
    assert finding["host"] == "m1" and words in finding["what"] and "chmod 700 /srv/etcd" in finding["remedy"]
    before = site.everything()
    with pytest.raises(InvalidInput, match="nothing was changed"):
        site.run("apply")
    assert site.everything() == before


def test_a_file_in_place_of_the_folder_is_refused(site: AppliedSite) -> None:
    site.host.path("/srv").mkdir(parents=True)
    site.host.path("/srv/etcd").write_text("something")
    site.write(etcd("{path: /srv/etcd}"))
    assert [finding["what"] for finding in findings(site)] == ["/srv/etcd on m1 is not a folder"]


def test_removing_the_site_takes_the_volumes_and_nothing_else_from_the_folder(site: AppliedSite) -> None:
    site.write(etcd("{path: /srv/etcd}"))
    site.run("apply")
    volume = site.host.path("/srv/etcd/pvc-1_ckp-a-b_data-one-etcd-0")
    volume.mkdir()
    other = site.host.path("/srv/etcd/notes")
    other.write_text("the owner's")
    CliRunner().invoke(command, ["remove", "-f", str(site.file), "--confirm", "berlin"], catch_exceptions=False)
    assert not volume.exists() and other.exists()
    other.unlink()
    storage.remove_folder(site.host, "/srv/etcd")
    assert not site.host.path("/srv/etcd").exists()


# -- the file


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (etcd("{path: /srv/images/etcd}"), "/srv/images/etcd and the registry's folder /srv/images are within each other"),
        (etcd("{path: /srv/images}"), "are within each other"),
    ],
)
def test_a_folder_that_can_not_be_is_an_error_of_the_file(change: tuple[str, str], words: str) -> None:
    with pytest.raises(InvalidSite, match=r"storage\.etcd\.path") as caught:
        parse_site(TEXT.replace(*change).encode(), Path("site.yaml"))
    assert words in str(caught.value) + caught.value.details


def test_a_folder_is_for_hosts_that_ckp_installs() -> None:
    text = TEXT.replace("  hosts:\n    - {name: m1, address: 192.0.2.10}\n", "  kubeconfig: admin.conf\n").replace(*etcd("{path: /srv/etcd}"))
    with pytest.raises(InvalidSite) as caught:
        parse_site(text.encode(), Path("site.yaml"))
    assert "CKP makes no folders on the hosts of an existing cluster" in str(caught.value) + caught.value.details
