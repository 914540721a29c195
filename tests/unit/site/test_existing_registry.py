"""A registry that was there before the site: pushed to below a prefix, pulled from with a login of its own, and of its content only the site's is touched."""

from __future__ import annotations

import base64
import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from ckp.agent.messages import RegistryLogin as AgentLogin
from ckp.agent.messages import from_json
from ckp.api.host_protocol import RegistryLogin
from ckp.clients.oci.registry import LAYER_ZSTD, BlobStore, Registry, image_manifest
from ckp.clients.oci.store import sha256
from ckp.hostkit.locations import REGISTRY_LOGIN
from ckp.kits.errors import CkpError, InvalidInput
from ckp.site.check import registry as check
from ckp.site.check import rules
from ckp.site.check.model import SiteToCheck
from ckp.site.install import REGISTRY_CA
from ckp.site.inventory import OutsideRegistry
from ckp.site.management import JOURNAL
from ckp.site.registries import existing
from ckp.site.registries.existing import ExistingRegistry
from ckp.site.registries.record import PushRecord
from ckp.site.spec.read import InvalidSite, parse_site
from tests.simulators.management_host import STEPS
from tests.simulators.registry import Fault, RegistrySimulator
from tests.unit.site.test_check import GOOD, SITE, having
from tests.worlds.applied_site import TEXT, AppliedSite
from tests.worlds.tls import make_authority

HOST = "images.example.test:5443"
OWN = "own: {name: images.example.test, port: 5443, storage: /srv/images}"
WITH_LOGIN = (OWN, "existing: {address: 'images.example.test:5443', prefix: infra/k8s, pullCredentialsFile: pull.json, caFile: ca.pem}")
LOGIN = base64.b64encode(b"node:reads").decode()


def image(registry: Registry, repository: str, tag: str, content: bytes, folder: Path) -> str:
    """Push an image of one layer; its digest."""
    store = BlobStore(folder / sha256(content)[7:19])
    manifest = image_manifest(store, [(store.put(content, LAYER_ZSTD), f"sha256:{'0' * 64}")], {}, "2026-01-01T00:00:00Z")
    registry.push(store, manifest, repository, tag)
    return manifest.digest


class Place:
    """A registry of others with something in it, and this site's way to it."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch, *, prefix: str = "infra/k8s", login: str = "") -> None:
        monkeypatch.setenv("CKP_CACHE", str(root / "cache"))
        self.root, self.simulator = root, RegistrySimulator()
        self.place = OutsideRegistry(HOST, prefix, login=login)

        def connect(place: OutsideRegistry, credentials: Path | None) -> Registry:
            transport, prefix = self.simulator.transport, place.prefix
            return Registry(place.host, credentials=credentials, transport=transport, sleep=lambda _seconds: None, prefix=prefix)

        monkeypatch.setattr(existing, "connect", connect)
        self.registry = ExistingRegistry(self.place, root / "state")
        self.lines: list[str] = []

    def push(self, release: str, **tags: str) -> dict[str, str]:
        """Push a release: repository -> tag, whose content is `repository tag`. Returns digests."""
        with closing(self.registry.client()) as client:
            with self.registry.recorded(client, release, {f"ckp/{name}": tag for name, tag in tags.items()}) as replace:
                assert replace in (True, False)
                return {name: image(client, f"ckp/{name}", tag, f"{name} {tag}".encode(), self.root) for name, tag in tags.items()}

    def remove(self, release: str) -> None:
        with closing(self.registry.client()) as client:
            self.registry.remove_content(client, release, self.lines.append)

    def tags(self) -> dict[str, list[str]]:
        """Repository -> tags, all over the registry."""
        return {name: sorted(item.tags) for name, item in self.simulator.repositories.items() if item.tags}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    return Place(tmp_path, monkeypatch)


# -- the prefix


def test_all_repositories_are_below_the_prefix_and_nothing_else_is_seen(place: Place, tmp_path: Path) -> None:
    with closing(Registry(HOST, transport=place.simulator.transport)) as others:
        image(others, "ckp/etcd", "1", b"of others", tmp_path)
        image(others, "infra/k8sx/etcd", "1", b"of others", tmp_path)
    place.push("v1.35.1", etcd="1")
    assert sorted(place.tags()) == ["ckp/etcd", "infra/k8s/ckp/etcd", "infra/k8sx/etcd"]
    with closing(place.registry.client()) as client:
        assert client.catalog() == ["ckp/etcd"] and client.tags("ckp/etcd") == ["1"]
        assert client.digest("ckp/other", "1") is None
    assert (place.registry.address, place.registry.endpoint) == (f"{HOST}/infra/k8s", f"{HOST}/infra/k8s")


def test_without_a_prefix_the_names_are_ckps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Place(tmp_path, monkeypatch, prefix="")
    plain.push("v1.35.1", etcd="1")
    assert list(plain.tags()) == ["ckp/etcd"] and plain.registry.address == HOST


# -- what is the site's, and what is not


def test_only_what_the_site_has_pushed_is_deleted_and_what_releases_share_stays(place: Place) -> None:
    with closing(place.registry.client()) as client:
        image(client, "ckp/pause", "3.10", b"pause 3.10", place.root)
    place.push("v1.34.3", etcd="1", pause="3.10", kubelet="v1.34.3")
    place.push("v1.35.1", etcd="1", pause="3.10", kubelet="v1.35.1")
    place.remove("v1.34.3")
    assert place.tags() == {"infra/k8s/ckp/etcd": ["1"], "infra/k8s/ckp/kubelet": ["v1.35.1"], "infra/k8s/ckp/pause": ["3.10"]}
    place.remove("v1.35.1")
    assert place.tags() == {"infra/k8s/ckp/pause": ["3.10"]}, "it was there before"
    assert place.registry.record.read() == {}


def test_a_tag_that_somebody_has_moved_since_is_not_the_sites_any_more(place: Place) -> None:
    place.push("v1.35.1", etcd="1")
    with closing(place.registry.client()) as client:
        image(client, "ckp/etcd", "1", b"of others", place.root)
    place.remove("v1.35.1")
    assert place.tags() == {"infra/k8s/ckp/etcd": ["1"]}


def test_tags_of_others_are_not_replaced_and_the_sites_own_are(place: Place) -> None:
    record, there = PushRecord(place.root / "pushed.json"), {("ckp/etcd", "1"): "sha256:others"}
    assert record.begin("v1.35.1", {"ckp/etcd": "1", "ckp/kubelet": "2"}, lambda name, tag: there.get((name, tag))) == ["ckp/etcd:1"]
    there["ckp/kubelet", "2"] = "sha256:ours"
    record.end("v1.35.1", lambda name, tag: there.get((name, tag)))
    assert record.begin("v1.35.1", {"ckp/kubelet": "2"}, lambda name, tag: there.get((name, tag))) == []


def test_what_a_killed_run_may_have_left_counts_as_the_sites(place: Place) -> None:
    record, there = PushRecord(place.root / "pushed.json"), dict[tuple[str, str], str]()
    record.begin("v1.35.1", {"ckp/etcd": "1"}, lambda name, tag: there.get((name, tag)))
    there["ckp/etcd", "1"] = "sha256:ours"  # and then it was killed
    assert record.begin("v1.35.1", {"ckp/etcd": "1"}, lambda name, tag: there.get((name, tag))) == []
    assert record.removable("v1.35.1", lambda name, tag: there.get((name, tag))) == [("ckp/etcd", "1")]


def test_a_lost_record_deletes_nothing_and_a_broken_one_is_named(place: Place) -> None:
    place.push("v1.35.1", etcd="1")
    file = place.registry.record.file
    assert file.stat().st_mode & 0o777 == 0o600
    file.write_text("{")
    with pytest.raises(InvalidInput, match="can't be read"):
        place.remove("v1.35.1")
    file.unlink()
    place.remove("v1.35.1")
    assert place.tags() == {"infra/k8s/ckp/etcd": ["1"]}


def test_a_registry_that_lets_nobody_delete_keeps_the_content_and_one_that_is_away_is_an_error(place: Place) -> None:
    place.push("v1.35.1", etcd="1")
    place.simulator.faults.append(Fault("DELETE /v2/infra/k8s/ckp/etcd/manifests", times=99, status=405))
    place.simulator.faults.append(Fault("GET /v2/$", times=99, status=200))
    place.remove("v1.35.1")
    assert "its content stays" in place.lines[-1] and place.registry.record.read() == {}
    place.push("v1.35.1", kubelet="2")
    place.simulator.faults[:] = [Fault(".", times=999, cut=True)]
    with pytest.raises(CkpError):
        place.remove("v1.35.1")
    assert list(place.registry.record.read()) == ["v1.35.1"], "the same again goes on"


def test_a_registry_that_takes_no_pushes_is_refused_before_anything_is_pushed(place: Place) -> None:
    place.simulator.faults.append(Fault("POST /v2/infra/k8s/ckp/none/blobs/uploads/", times=9, status=403))
    with pytest.raises(CkpError, match=r"does not let this machine push to images\.example\.test:5443/infra/k8s/ckp"):
        place.registry.ensure(print)
    assert place.tags() == {}


# -- the check


def found(place: OutsideRegistry) -> list[str]:
    return [f"{each.severity.value}: {each.what}" for each in check.check_registry(SiteToCheck([], registry=place), lambda _line: None)]


def test_the_check_tries_to_push_and_leaves_nothing(place: Place) -> None:
    assert found(place.place) == [] and place.tags() == {}
    assert place.simulator.requests("DELETE .*/blobs/uploads/"), "the upload was cancelled"
    place.simulator.faults.append(Fault("POST", times=1, status=401))
    place.simulator.faults.append(Fault("POST", times=1, status=401))
    assert found(place.place) == ["error: the registry does not let this machine push to images.example.test:5443/infra/k8s/ckp"]


def test_hosts_that_may_push_are_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Place(tmp_path, monkeypatch, login=LOGIN)
    assert found(made.place) == ["warning: the user of pullCredentialsFile, whom all hosts get, may push to images.example.test:5443/infra/k8s/ckp"]


@pytest.mark.parametrize(
    ("answer", "login", "words"),
    [
        ("Connection refused", "", "is not reached from there: Connection refused"),
        (401, "", "asks hosts for a password (401)"),
        (403, LOGIN, "does not let the user of pullCredentialsFile pull (403)"),
        (500, LOGIN, "answers a pull with 500"),
    ],
)
def test_a_host_that_can_not_pull_is_named_with_what_to_do(answer: int | str, login: str, words: str) -> None:
    site = replace(SITE, registry=OutsideRegistry(HOST, login=login))
    [one] = rules.judge(site, having("b", registry=answer))
    assert (one.host, one.check) == ("b", "registry") and words in one.what and one.remedy and LOGIN not in str(one)
    for good in (0, 200, 404):
        assert rules.judge(site, having("b", registry=good)) == []
    assert rules.judge(site, GOOD) == []


# -- the file


def files(root: Path) -> None:
    """Those that the site's file names."""
    (root / "pull.json").write_bytes(existing.docker_config(HOST, LOGIN))
    (root / "pull.json").chmod(0o600)
    (root / "ca.pem").write_text(make_authority("owner").pem)


def test_credentials_are_read_from_files_that_only_their_owner_reads(tmp_path: Path) -> None:
    files(tmp_path)
    spec = parse_site(TEXT.replace(*WITH_LOGIN).encode(), tmp_path / "site.yaml")
    read = existing.of_spec(spec)
    assert read is not None and (read.login, read.prefix, read.credentials) == (LOGIN, "infra/k8s", None) and LOGIN not in repr(read)
    (tmp_path / "pull.json").chmod(0o644)
    with pytest.raises(InvalidInput, match=r"site.yaml:\d+: registry.existing.pullCredentialsFile: .* is readable by others") as caught:
        existing.of_spec(spec)
    assert LOGIN not in str(caught.value)
    (tmp_path / "pull.json").write_bytes(existing.docker_config("other.example.test", LOGIN))
    (tmp_path / "pull.json").chmod(0o600)
    with pytest.raises(InvalidInput, match=r"has no entry for images\.example\.test:5443"):
        existing.of_spec(spec)
    files(tmp_path)
    (tmp_path / "ca.pem").write_text("no certificate")
    with pytest.raises(InvalidInput, match=r"ca\.pem holds no certificate"):
        existing.of_spec(spec)


def test_a_name_that_images_would_not_take_for_a_registry_is_an_error() -> None:
    with pytest.raises(InvalidSite) as caught:
        parse_site(TEXT.replace(OWN, "existing: {address: registry}").encode(), Path("site.yaml"))
    assert "is not taken for a registry in images' names" in str(caught.value) + caught.value.details


def test_hosts_and_controllers_read_the_login_that_the_site_writes() -> None:
    text = existing.login_document(OutsideRegistry(HOST, login=LOGIN))
    assert RegistryLogin.model_validate_json(text) == RegistryLogin(registry=HOST, basic=LOGIN)
    assert from_json(AgentLogin, text) == AgentLogin(HOST, LOGIN)
    assert existing.login_document(OutsideRegistry(HOST)) == ""


# -- a site that uses it


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AppliedSite:
    """A site whose file names a registry, with a login for its hosts."""
    made = AppliedSite(tmp_path, monkeypatch)
    made.outside = Place(tmp_path, monkeypatch, login=LOGIN)  # type: ignore[attr-defined]
    files(tmp_path)
    made.write(WITH_LOGIN)
    made.host.dns["images.example.test"] = "192.0.2.99"
    return made


def changed(site: AppliedSite) -> dict[str, dict[str, str]]:
    return {part: row for part, row in site.plan()[1].items() if row["action"] != "none"}


def test_hosts_get_ca_and_login_for_root_only_and_no_registry_of_ckps(site: AppliedSite) -> None:
    code, rows = site.plan()
    assert code == 1 and "registry name" not in rows
    assert rows["registry"]["detail"] == f"{HOST}/infra/k8s; written on m1: {REGISTRY_CA}, {REGISTRY_LOGIN}"
    done = site.run("apply")
    assert json.loads(site.host.path(REGISTRY_LOGIN).read_text()) == {"registry": HOST, "basic": LOGIN}
    assert site.host.access[REGISTRY_LOGIN].split()[0] == "600"
    assert site.host.path(REGISTRY_CA).read_text() == (site.root / "ca.pem").read_text()
    assert not site.host.services and "ckp-registry" not in " ".join(site.host.accounts)
    assert "images.example.test" not in site.host.path("/etc/hosts").read_text(), "its owner names it"
    assert site.host.journal["member"]["bundle"].startswith(f"{HOST}/infra/k8s/ckp/byoh-bundle-debian_12")
    release = site.host.table.releases["v1.35.1"]
    assert release.registry == f"{HOST}/infra/k8s/ckp" and release.image("etcd").startswith(f"{HOST}/infra/k8s/ckp/etcd:1@sha256:")
    assert site.host.table.registry_ca == (site.root / "ca.pem").read_text()
    secret = site.host.api.objects["Secret", "ckp-system", existing.SECRET]
    assert json.loads(base64.b64decode(secret["data"]["login.json"])) == {"registry": HOST, "basic": LOGIN}
    assert changed(site) == {}
    password = "reads"
    assert not any(word in text for text in (done.output, *site.host.calls) for word in (LOGIN, password)), "in no argument and no output"
    assert LOGIN not in site.host.api.objects["ConfigMap", "ckp-system", "ckp-releases"]["data"]["releases.json"]


def test_another_password_reaches_hosts_and_the_hub_without_a_restart(site: AppliedSite) -> None:
    site.run("apply")
    other = base64.b64encode(b"node:reads-too").decode()
    (site.root / "pull.json").write_bytes(existing.docker_config(HOST, other))
    row = changed(site)
    assert set(row) == {"registry"} and row["registry"]["detail"].endswith(f"written on m1: {REGISTRY_LOGIN}; workers get it from the hub")
    assert row["registry"]["interrupts"] == ""
    site.run("apply")
    assert json.loads(site.host.path(REGISTRY_LOGIN).read_text())["basic"] == other and changed(site) == {}
    assert any(call.startswith("ckp-agent standalone registry") for call in site.host.calls)


def test_a_site_keeps_its_registry(site: AppliedSite) -> None:
    site.run("apply")
    site.write((OWN, "existing: {address: 'others.example.test:5443'}"))
    code, rows = site.plan()
    assert code == 2 and "was made from images.example.test:5443" in rows["registry"]["detail"]


def test_removing_the_site_leaves_the_registry_of_others_and_takes_what_the_site_has_pushed(site: AppliedSite) -> None:
    site.run("apply")
    outside: Place = site.outside  # type: ignore[attr-defined]
    outside.registry = ExistingRegistry(outside.place, site.root / "state" / "sites" / "berlin" / "registry")
    with closing(outside.registry.client()) as client:
        image(client, "team/app", "1", b"of others", site.root)
    outside.push("v1.35.1", etcd="1")
    site.run("remove", "--confirm", "berlin")
    assert outside.tags() == {"infra/k8s/team/app": ["1"]} and not site.host.path(REGISTRY_LOGIN).exists()


def test_a_first_apply_that_was_killed_goes_on_although_there_is_no_registry_to_know_the_host_by(site: AppliedSite) -> None:
    site.run("apply")
    journal = json.loads(site.host.path(JOURNAL).read_text())
    site.host.path(JOURNAL).write_text(json.dumps({**journal, "done": list(STEPS[:5])}))
    (site.root / "state" / "sites" / "berlin" / "management.kubeconfig").unlink()
    code, rows = site.plan()
    assert code == 1 and rows["management cluster"]["detail"] == "its installation goes on: 5 of its steps are done"
    site.host.path("/etc/machine-id").write_text("of another machine\n")
    assert site.plan()[1]["management cluster"]["action"] == "refused", "it was reinstalled, or is another one of that name"
