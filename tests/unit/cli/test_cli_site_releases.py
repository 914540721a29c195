"""`ckp site release`, and `ckp site apply` with several releases: the file, the site and the registry agree afterwards, or nothing was changed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result

from ckp.catalog.load import Catalog
from ckp.catalog.models import BundleTarget, Release
from ckp.cli import deliverables, site_changes, site_releases
from ckp.cli.site import site
from ckp.clients.oci.registry import Registry
from ckp.distribution.carry import published
from ckp.kits.errors import CkpError, Conflict, InvalidInput, NotFound, TimedOut
from ckp.kits.files import exclusive
from ckp.kits.steps import Steps
from ckp.site import described
from ckp.site.install import KUBECONFIG, Site
from ckp.site.inventory import Inventory, KnownHosts, SiteHosts
from ckp.site.management import ADMIN
from ckp.site.publish import Published, Withdrawn, publish_to, releases_config
from ckp.site.registries.hosted import STORAGE, HostedRegistry
from ckp.site.registries.unit import CONFIG, PROGRAM
from ckp.site.spec.read import read_site
from tests.simulators.management_host import ManagementHost
from tests.simulators.registry import Fault, RegistrySimulator
from tests.simulators.site_host import Killed
from tests.support.kills import stride
from tests.support.published import publish as publish_release
from tests.support.signing_keys import signing_key
from tests.unit.site.test_releases import MIDDLE, NEW, OLD, World, content_of

OPTIONS = ["--name", "rack-7", "--host", "m1=192.0.2.10", "--network", "192.0.2.0/24", "--pool", "192.0.2.200-192.0.2.220"]
DEBIAN = BundleTarget(os="debian", os_version="12")


class Dist:
    """A release as it was made, or read from a file."""

    def __init__(self, world: World, release: Release, registry_name: str = "") -> None:
        self.world, self.release, self.registry_name = world, release, registry_name
        self.tags = {"kube-apiserver": f"{release.name}-ckp", "etcd": "3.5.15-0", "pause": "3.10", "ckp-addons": "v1"}
        self.targets, self.stand_ins = [DEBIAN], list[str]()
        self.built = {"distribution": SimpleNamespace(binary=lambda _name: Path("/nonexistent"))}

    def agent(self, _: str) -> SimpleNamespace:
        return SimpleNamespace(version="0.3.0+1-ckp")

    def push(self, *_: object, **__: object) -> dict[str, str]:
        self.world.publish(self.release.name)
        return {name: f"sha256:{name}" for name in (*self.tags, "ckp-agent", DEBIAN.repository)}


class Bench:
    """A site, its file, and a machine that makes releases at once."""

    def __init__(self, world: World, file: Path) -> None:
        self.world, self.file, self.made = world, file, list[str]()
        self.host = world.host

    @contextmanager
    def reached(self, _: object) -> Iterator[ManagementHost]:
        yield self.host

    def registries(self, spec: Any, hosts: SiteHosts) -> list[HostedRegistry]:
        [host] = hosts.masters
        state = described.state_folder(spec) / "registry"
        state.mkdir(parents=True, exist_ok=True)
        (state / "ca.pem").write_text("the CA of its certificate")
        (state / "ca.key").write_text("the key of that")
        own = spec.registry.own
        return [HostedRegistry(host, Path("/nonexistent"), own.name, host.address, state=state, connect=self.connect)]

    def connect(self, *_: object) -> Registry:
        return self.world.registry

    def make(self, _: Catalog, release: Release, *__: object) -> Dist:
        self.made.append(release.name)
        return Dist(self.world, release)

    def deploy(self, *names: str) -> None:
        """This machine has made the site, with these releases."""
        self.world.deploy(*names)
        state = described.state_folder(read_site(self.file))
        state.mkdir(parents=True, exist_ok=True)
        (state / KUBECONFIG).write_bytes(self.host.pull(ADMIN))

    def run(self, *arguments: str) -> Result:
        return CliRunner().invoke(site, [*arguments, "-f", str(self.file)], catch_exceptions=False)

    @property
    def named(self) -> list[str]:
        return list(read_site(self.file).releases)

    def everything(self) -> tuple[object, ...]:
        return self.file.read_text(), self.host.config, self.world.there(), self.host.known


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setenv("CKP_STATE", str(tmp_path / "ckp"))
    for name in ("cache", "keys", "config"):
        monkeypatch.setenv(f"CKP_{name.upper()}", str(tmp_path / name))
    (tmp_path / "state").mkdir()
    file = tmp_path / "site.yaml"
    CliRunner().invoke(site, ["init", str(file), *OPTIONS, "--release", NEW], catch_exceptions=False)
    made = Bench(World(ManagementHost(tmp_path / "host"), tmp_path / "state"), file)
    monkeypatch.setattr(described, "reached", made.reached)
    monkeypatch.setattr(site_releases, "registries_of", made.registries)
    monkeypatch.setattr(deliverables, "make_release", made.make)
    return made


# -- list


def test_releases_of_a_site_are_shown_for_people_and_programs(bench: Bench) -> None:
    bench.world.deploy(OLD, NEW)
    bench.host.create_cluster("one", OLD)
    rows = [line.split() for line in bench.run("release", "list").output.splitlines()]
    assert rows[1:] == [[OLD, "not", "in", "the", "file", "<none>", "1"], [NEW, "offered", "yes", "0"]]
    items = json.loads(bench.run("release", "list", "-o", "json").output)["items"]
    assert items[0] == {"name": OLD, "stamp": f"{OLD}-ckp", "state": "not in the file", "clusters": ["ckp-a-b/one"], "management": False}
    assert "management: true" in bench.run("release", "list", "-o", "yaml").output


# -- add


def test_a_release_is_added_to_the_site_and_to_its_file(bench: Bench) -> None:
    bench.world.deploy(NEW)
    before = bench.host.table.releases[NEW]
    done = bench.run("release", "add", OLD)
    assert done.exit_code == 0 and f"rack-7 offers {OLD}" in done.output
    assert bench.named == [NEW, OLD] and bench.host.offered == [OLD, NEW] and bench.world.there() == content_of(OLD, NEW)
    assert bench.host.known == {"ckp-compass": [OLD, NEW], "ckp-controllers": [OLD, NEW]}
    assert bench.host.table.releases[NEW] == before and bench.host.table.management == NEW
    added = bench.host.table.releases[OLD]
    assert added.images["etcd"] == "3.5.15-0@sha256:etcd" and added.bundles["debian-12"].release == OLD
    again = bench.everything()
    bench.run("release", "add", OLD)
    assert bench.everything() == again


@pytest.mark.parametrize("after", [False, True])
def test_an_addition_that_is_killed_at_any_command_is_gone_on_with(bench: Bench, after: bool) -> None:
    text, number = bench.file.read_text(), 0
    while True:
        bench.file.write_text(text)
        bench.world.simulator.repositories.clear()
        bench.world.deploy(NEW)
        bench.host.calls.clear()
        bench.host.kill_at, bench.host.kill_after = number, after
        try:
            bench.run("release", "add", OLD)
            break
        except Killed:
            bench.host.kill_at = None
        assert OLD not in bench.host.offered or content_of(OLD) <= bench.world.there(), "what is offered is whole"
        assert OLD not in bench.host.offered or OLD in bench.named, "what is offered is in the file"
        bench.run("release", "add", OLD)
        assert bench.named == [NEW, OLD] and bench.host.known["ckp-controllers"] == [OLD, NEW] and bench.world.there() == content_of(OLD, NEW)
        number += stride(3)
    assert number > 10


def test_an_addition_whose_push_fails_offers_nothing_and_goes_on(bench: Bench) -> None:
    bench.world.deploy(NEW)
    bench.world.simulator.faults = [Fault(r"PUT /v2/ckp/byoh-bundle.*/manifests/", times=100, status=500)]
    with pytest.raises(CkpError):
        bench.run("release", "add", OLD)
    assert bench.host.offered == [NEW] and bench.host.known["ckp-compass"] == [NEW]
    bench.world.simulator.faults = []
    bench.host.free = 2 << 30  # what it needs is there already
    bench.run("release", "add", OLD)
    assert bench.host.offered == [OLD, NEW]


def test_what_cannot_be_added_is_refused_and_nothing_is_changed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Conflict, match="rack-7 is not set up yet") as refused:
        bench.run("release", "add", OLD)
    assert "ckp site apply" in refused.value.resolution
    bench.world.deploy(NEW)
    before = bench.everything()
    unknown = CliRunner().invoke(site, ["release", "add", "v9.9.9", "-f", str(bench.file)])
    assert unknown.exit_code == 2 and "not a release of the catalog" in unknown.output
    bench.host.free = 2 << 30
    with pytest.raises(CkpError, match=f"too little space on m1 for {OLD}"):
        bench.run("release", "add", OLD)
    bench.host.free = 100 << 30
    bench.world.simulator.faults = [Fault("GET /v2/$", times=100, status=503)]
    with pytest.raises(CkpError, match=r"registry does not answer at 192\.0\.2\.10:5000"):
        bench.run("release", "add", OLD)
    bench.world.simulator.faults = []
    assert bench.made == [] and bench.everything() == before
    bench.file.write_text(bench.file.read_text().replace(f"releases:\n  - {NEW}\n", f"releases: [\n  {NEW}]\n"))
    changed = bench.everything()
    with pytest.raises(InvalidInput, match=r"`releases` of .* can't be changed") as not_changed:
        bench.run("release", "add", OLD)
    assert f"[{NEW}, {OLD}]" in not_changed.value.resolution and bench.everything() == changed


# -- add, from another registry


CHARTS = "r.test:5000/ckp/ckp-addons:v1@sha256:charts"


def own_registry(bench: Bench) -> str:
    own = read_site(bench.file).registry.own
    assert own is not None
    return f"{own.name}:{own.port}"


@pytest.fixture
def elsewhere(bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., dict[str, str]]:
    """Publishes a release to another registry, by this machine's key; the site has one with the same addons."""
    origin, key = RegistrySimulator(), signing_key(tmp_path / "keys")
    bench.world.deploy(NEW)
    assert bench.host.config is not None
    bench.host.config["data"]["releases.json"] = bench.host.table.model_copy(
        update={"releases": {NEW: bench.host.table.releases[NEW].model_copy(update={"cni": Catalog().release(OLD).built_cni, "addons": CHARTS})}}
    ).model_dump_json()

    def client(address: str, _ca: Path | None = None, **_: object) -> Registry:
        assert address == "origin.test:5000"
        return Registry(address, transport=origin.transport, sleep=lambda _: None)

    monkeypatch.setattr(published, "Registry", client)
    return lambda name=own_registry(bench): publish_release(client("origin.test:5000"), tmp_path / "made", OLD, key, name)


def test_a_release_is_added_from_another_registry(bench: Bench, elsewhere: Callable[..., dict[str, str]]) -> None:
    digests = elsewhere()
    done = bench.run("release", "add", OLD, "--from-registry", "origin.test:5000")
    assert done.exit_code == 0 and f"rack-7 offers {OLD}" in done.output and bench.made == []
    added = bench.host.table.releases[OLD]
    assert added.images["etcd"] == f"3.5.24-0@{digests['etcd']}" and added.addons == CHARTS
    assert added.bundles["debian-12"].image.endswith(f"/ckp/{DEBIAN.repository}@{digests[DEBIAN.repository]}")
    assert bench.named == [NEW, OLD] and content_of(NEW) | {f"kube-apiserver:{OLD}-ckp", "etcd:3.5.24-0"} <= bench.world.there()
    before = bench.everything()
    bench.run("release", "add", OLD, "--from-registry", "origin.test:5000")
    assert bench.everything() == before


def test_a_release_that_was_published_for_another_sites_registry_is_refused(bench: Bench, elsewhere: Callable[..., dict[str, str]]) -> None:
    elsewhere("registry.other.test:5000")
    before = bench.everything()
    with pytest.raises(InvalidInput, match=r"at origin\.test:5000 name the registry registry\.other\.test:5000, and the site's is") as refused:
        bench.run("release", "add", OLD, "--from-registry", "origin.test:5000")
    assert f"ckp dist publish {OLD} --registry origin.test:5000 --registry-name {own_registry(bench)}" in refused.value.resolution
    assert bench.everything() == before


def test_a_release_whose_addons_the_site_does_not_have_is_refused(bench: Bench, elsewhere: Callable[..., dict[str, str]]) -> None:
    elsewhere()
    bench.world.deploy(NEW)
    before = bench.everything()
    with pytest.raises(Conflict, match=rf"no release of this site has the same addons as {OLD} \(cilium v"):
        bench.run("release", "add", OLD, "--from-registry", "origin.test:5000")
    assert bench.everything() == before


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--registry-ca", "FILE"], "are for --from-registry"),
        (["--from-registry", "origin.test:5000", "--from", "FILE"], "name two places"),
        (["--from-registry", "https://origin.test"], "is not the address of a registry"),
    ],
)
def test_options_that_do_not_fit_together_are_refused(bench: Bench, options: list[str], said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        bench.run("release", "add", OLD, *(str(bench.file) if option == "FILE" else option for option in options))


def test_two_changes_of_a_site_exclude_each_other(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.world.deploy(OLD, NEW)
    monkeypatch.setattr(site_changes, "LOCK_SECONDS", 0.0)
    spec = read_site(bench.file)
    with exclusive(described.state_folder(spec) / "apply.lock", what="a test", timeout=1):
        for command in (["apply"], ["release", "add", MIDDLE], ["release", "remove", OLD]):
            with pytest.raises(TimedOut, match="another change of rack-7"):
                bench.run(*command)


# -- remove


def test_a_release_is_removed_from_the_site_its_file_and_its_registry(bench: Bench) -> None:
    bench.world.deploy(NEW)
    bench.run("release", "add", OLD)
    bench.run("release", "add", MIDDLE)
    bench.host.create_cluster("one", MIDDLE)
    done = bench.run("release", "remove", OLD)
    assert done.exit_code == 0 and f"rack-7 does not offer {OLD} any longer" in done.output
    assert bench.named == [NEW, MIDDLE] and bench.host.offered == [MIDDLE, NEW] and bench.host.withdrawn == []
    assert bench.world.there() == content_of(MIDDLE, NEW)
    with pytest.raises(NotFound, match=f"rack-7 does not offer {OLD}, and .* does not name it") as refused:
        bench.run("release", "remove", OLD)
    assert refused.value.resolution == f"name one of: {MIDDLE}, {NEW}"


@pytest.mark.parametrize("command", [["release", "remove", OLD], ["registry", "gc"]])
def test_the_space_of_what_nothing_names_is_freed_and_said(bench: Bench, command: list[str]) -> None:
    bench.world.deploy(NEW)
    bench.run("release", "add", OLD)
    bench.host.push(b"the program", PROGRAM)
    bench.host.push(json.dumps({"storage": {"filesystem": {"rootdirectory": STORAGE}}}).encode(), f"{CONFIG}/push.yml")
    for name in ("docker/named", "docker/unnamed"):
        bench.host.push(b"x" * 3_000_000, f"{STORAGE}/{name}")
    bench.host.unnamed = ["docker/unnamed"]
    done = bench.run(*command)
    assert f"m1: 3 MB freed in {STORAGE}" in done.output
    assert bench.host.path(f"{STORAGE}/docker/named").exists() and not bench.host.path(f"{STORAGE}/docker/unnamed").exists()


def test_what_an_addition_left_that_failed_is_removed(bench: Bench) -> None:
    bench.world.deploy(NEW)
    bench.world.simulator.faults = [Fault(r"PUT /v2/ckp/byoh-bundle.*/manifests/", times=100, status=500)]
    with pytest.raises(CkpError):
        bench.run("release", "add", OLD)
    bench.world.simulator.faults = []
    assert bench.named == [NEW, OLD] and f"kube-apiserver:{OLD}-ckp" in bench.world.there()
    bench.run("release", "remove", OLD)
    assert (bench.named, bench.host.offered, bench.host.withdrawn, bench.world.there()) == ([NEW], [NEW], [], content_of(NEW))


def test_a_release_that_is_used_is_not_removed_and_nothing_is_changed(bench: Bench) -> None:
    bench.world.deploy(NEW)
    bench.run("release", "add", OLD)
    bench.host.create_cluster("one", OLD)
    before = bench.everything()
    with pytest.raises(Conflict, match=f"{OLD} is used by 1 cluster, and nothing was changed") as used:
        bench.run("release", "remove", OLD)
    assert used.value.details == "ckp-a-b/one"
    with pytest.raises(Conflict, match=f"the management cluster runs {NEW}"):
        bench.run("release", "remove", NEW)
    assert bench.everything() == before


def test_the_last_release_is_not_removed(bench: Bench) -> None:
    bench.world.deploy(NEW)
    bench.host.record(OLD)
    bench.host.config = json.loads(json.dumps(bench.host.config).replace(f'management\\": \\"{NEW}', 'management\\": \\"'))
    before = bench.everything()
    with pytest.raises(Conflict, match=f"{NEW} is the last release of rack-7, and nothing was changed"):
        bench.run("release", "remove", NEW)
    assert bench.everything() == before


def test_a_release_that_a_cluster_was_made_of_during_its_removal_is_back_in_site_and_file(bench: Bench) -> None:
    bench.world.deploy(NEW)
    bench.run("release", "add", OLD)
    bench.host.api.on_rollout = lambda: bench.host.create_cluster("late", OLD)
    with pytest.raises(Conflict, match=f"{OLD} is used by 1 cluster and was not removed"):
        bench.run("release", "remove", OLD)
    assert bench.named == [NEW, OLD] and bench.host.offered == [OLD, NEW] and bench.world.there() == content_of(OLD, NEW)


@pytest.mark.parametrize("after", [False, True])
def test_a_removal_that_is_killed_at_any_command_is_gone_on_with(bench: Bench, after: bool) -> None:
    number = 0
    while True:
        bench.world.simulator.repositories.clear()
        bench.world.deploy(OLD, NEW)
        bench.file.write_text(bench.file.read_text().split("releases:")[0] + f"releases: [{NEW}, {OLD}]\n")
        bench.host.calls.clear()
        bench.host.kill_at, bench.host.kill_after = number, after
        try:
            bench.run("release", "remove", OLD)
            break
        except Killed:
            bench.host.kill_at = None
        if bench.named == [NEW] and bench.host.offered == [NEW] and not bench.host.withdrawn:
            assert bench.world.there() == content_of(NEW), "all of it was done"
        else:
            bench.run("release", "remove", OLD)
        assert (bench.named, bench.host.offered, bench.host.withdrawn) == ([NEW], [NEW], [])
        assert bench.world.there() == content_of(NEW) and bench.host.known["ckp-compass"] == [NEW]
        number += stride(3)
    assert number > 20


# -- apply


class Applied(Exception):
    """What `ckp site apply` was about to do."""

    def __init__(self, management: str, others: list[str]) -> None:
        super().__init__(management, others)
        self.management, self.others = management, others


@pytest.fixture
def applying(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Bench:
    def apply(site: Site, _steps: Steps, others: list[Any], **_: object) -> None:
        raise Applied(site.dist.release.name, [dist.release.name for dist in others])

    monkeypatch.setattr("ckp.site.apply.apply", apply)
    return bench


def name_releases(bench: Bench, *names: str) -> None:
    bench.file.write_text(bench.file.read_text().split("releases:")[0] + f"releases: [{', '.join(names)}]\n")


def test_all_releases_of_the_file_are_made_and_the_newest_carries_a_new_management_cluster(applying: Bench) -> None:
    name_releases(applying, MIDDLE, NEW, OLD)
    with pytest.raises(Applied) as applied:
        applying.run("apply")
    assert (applied.value.management, applied.value.others) == (NEW, [OLD, MIDDLE]) and sorted(applying.made) == [OLD, MIDDLE, NEW]


def test_a_newer_release_does_not_change_the_management_cluster(applying: Bench) -> None:
    applying.deploy(MIDDLE)
    name_releases(applying, MIDDLE, NEW)
    with pytest.raises(Applied) as applied:
        applying.run("apply")
    assert (applied.value.management, applied.value.others) == (MIDDLE, [NEW])


def test_a_release_in_use_that_the_file_leaves_out_is_refused_before_anything_is_made(applying: Bench) -> None:
    applying.deploy(OLD, NEW)
    applying.host.create_cluster("one", OLD)
    before = applying.everything()
    with pytest.raises(InvalidInput, match="the site can't be changed to what its file says, and nothing was changed") as refused:
        applying.run("apply")
    assert f"release {OLD}: ckp-a-b/one runs it" in refused.value.details
    assert applying.made == [] and applying.everything() == before


def test_releases_come_from_files_and_the_others_are_built(applying: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    held = {"old.ckp": OLD, "new.ckp": NEW, "copy.ckp": NEW}

    def verified(archive: Path, *_: object) -> SimpleNamespace:
        return SimpleNamespace(release=Catalog().release(held[archive.name]))

    monkeypatch.setattr(deliverables, "verified_release", verified)
    for name in held:
        (tmp_path / name).write_bytes(b"a release")

    def apply(*files: str) -> None:
        applying.run("apply", *(word for file in files for word in ("--from", str(tmp_path / file))))

    name_releases(applying, NEW, OLD, MIDDLE)
    with pytest.raises(Applied) as applied:
        apply("old.ckp", "new.ckp")
    assert (applied.value.management, applied.value.others, applying.made) == (NEW, [OLD, MIDDLE], [MIDDLE])
    with pytest.raises(InvalidInput, match=f"copy.ckp holds {NEW}, and so does a file before it"):
        apply("new.ckp", "copy.ckp")
    name_releases(applying, NEW)
    with pytest.raises(InvalidInput, match=f"old.ckp holds {OLD}, and the site offers {NEW}"):
        apply("old.ckp")


@pytest.fixture
def whole(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """All of `ckp site apply`, but for what it brings to a host beside releases."""

    def registries() -> list[HostedRegistry]:
        return bench.registries(read_site(bench.file), KnownHosts(bench.host, [bench.host]))

    def publish(dist: Any, inventory: Inventory, say: Callable[[str], None], others: Sequence[Any]) -> list[Published]:
        [registry] = registries()
        return [publish_to(registry, registry.client(), each, inventory, say) for each in (dist, *others)]

    def deploy(_: Site, published: Published, others: Sequence[Published], withdrawn: Withdrawn) -> None:
        table = published.releases(*others)
        assert content_of(*table.releases) <= bench.world.there(), "what is offered is whole"
        bench.host.deploy(*releases_config(table, withdrawn))

    monkeypatch.setattr("ckp.site.apply.publish_all", publish)
    monkeypatch.setattr("ckp.site.apply.registry_servers", lambda *_: registries())
    monkeypatch.setattr(described, "name_registry", lambda *_: None)
    monkeypatch.setattr(Site, "_verified_agent", lambda _: None)
    monkeypatch.setattr(Site, "_install_agent", lambda *_: None)
    monkeypatch.setattr(Site, "deploy_management", deploy)
    monkeypatch.setattr(Site, "log_in", lambda _: None)
    monkeypatch.setattr(Site, "session", lambda _: SimpleNamespace(close=lambda: None))
    monkeypatch.setattr("ckp.site.apply.Enrolment", lambda *_: SimpleNamespace(ensure_group=lambda: None))
    return bench


def test_a_site_is_applied_with_three_releases_and_then_with_two(whole: Bench) -> None:
    name_releases(whole, OLD, MIDDLE, NEW)
    assert whole.run("apply").exit_code == 0
    assert (whole.host.offered, whole.host.table.management, whole.world.there()) == ([OLD, MIDDLE, NEW], NEW, content_of(OLD, MIDDLE, NEW))
    name_releases(whole, NEW, MIDDLE)
    done = whole.run("apply")
    assert f"{OLD} will no longer be offered" in done.output
    assert (whole.host.offered, whole.host.withdrawn, whole.world.there()) == ([MIDDLE, NEW], [], content_of(MIDDLE, NEW))
    assert whole.host.known["ckp-compass"] == [MIDDLE, NEW]


def test_the_management_cluster_and_its_layer_keep_their_release(whole: Bench) -> None:
    name_releases(whole, MIDDLE)
    whole.run("apply")
    before = whole.host.table.releases[MIDDLE]
    name_releases(whole, MIDDLE, NEW)
    whole.run("apply")
    assert (whole.host.offered, whole.host.table.management, whole.host.table.releases[MIDDLE]) == ([MIDDLE, NEW], MIDDLE, before)
    name_releases(whole, NEW)
    with pytest.raises(InvalidInput, match="nothing was changed") as refused:
        whole.run("apply")
    assert f"management cluster: it runs {MIDDLE}, which `releases` does not name" in refused.value.details


@pytest.mark.parametrize("after", [False, True])
def test_an_apply_with_one_release_less_that_is_killed_at_any_command_is_gone_on_with(whole: Bench, after: bool) -> None:
    number = 0
    while True:
        whole.world.simulator.repositories.clear()
        name_releases(whole, OLD, NEW)
        whole.run("apply")
        name_releases(whole, NEW)
        whole.host.calls.clear()
        whole.host.kill_at, whole.host.kill_after = number, after
        try:
            whole.run("apply")
            break
        except Killed:
            whole.host.kill_at = None
        whole.run("apply")
        assert (whole.host.offered, whole.host.withdrawn, whole.world.there()) == ([NEW], [], content_of(NEW))
        assert whole.host.known["ckp-controllers"] == [NEW]
        number += stride(3)
    assert number > 20


def test_a_cluster_that_is_made_while_its_release_is_being_applied_away_stops_that(whole: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    name_releases(whole, OLD, NEW)
    whole.run("apply")
    name_releases(whole, NEW)

    def make(*arguments: Any) -> Dist:
        whole.host.create_cluster("late", OLD)  # builds take their time
        return whole.make(*arguments)

    monkeypatch.setattr(deliverables, "make_release", make)
    with pytest.raises(Conflict, match=f"{OLD} is used by 1 cluster, and nothing was changed"):
        whole.run("apply")
    assert whole.host.offered == [OLD, NEW] and content_of(OLD, NEW) <= whole.world.there()
