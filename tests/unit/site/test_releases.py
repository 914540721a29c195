"""Several releases at one site: what is offered, what uses it, and how one comes and goes, killed at any moment."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ckp.api.kinds import MACHINE, MACHINE_DEPLOYMENT, MACHINE_SET, MANAGED_CONTROL_PLANE
from ckp.api.platform import InstalledRelease, Releases
from ckp.clients.oci.registry import LAYER_ZSTD, BlobStore, Registry, image_manifest
from ckp.kits.errors import CkpError, Conflict
from ckp.site import releases
from ckp.site.publish import releases_config
from ckp.site.releases import Choice, Offered, State
from tests.simulators.management_host import STEPS, ManagementHost
from tests.simulators.registry import Fault, RegistrySimulator
from tests.simulators.site_host import Killed
from tests.support.spoilt_packages import tar_of

OLD, MIDDLE, NEW = "v1.33.7", "v1.34.3", "v1.35.1"
BUNDLE = "ckp/byoh-bundle-debian_12_x86-64_k8s"
SHARED = {"etcd": "3.5.15-0", "pause": "3.10"}


def entry(name: str) -> InstalledRelease:
    images = {image: f"{tag}@sha256:{tag}" for image, tag in {"kube-apiserver": f"{name}-ckp", **SHARED}.items()}
    return InstalledRelease(name=name, stamp=f"{name}-ckp", registry="r.test:5000/ckp", images=images, bundles={})


@dataclass
class World:
    """A site that offers releases, and whose registry has their content."""

    host: ManagementHost
    state: Path
    simulator: RegistrySimulator = field(default_factory=RegistrySimulator)
    lines: list[str] = field(default_factory=list)

    @property
    def registry(self) -> Registry:
        return Registry("r.test:5001", transport=self.simulator.transport, sleep=lambda _: None)

    def publish(self, *names: str) -> None:
        store = BlobStore(self.state / "blobs")
        for name in names:
            images = {"kube-apiserver": f"{name}-ckp", **SHARED}
            listed = gzip.compress(tar_of(("bundle.json", json.dumps({"release": name, "images": images}).encode())), mtime=0)
            for repository, tag, content in [
                *((f"ckp/{image}", tag, f"{image} {tag}".encode()) for image, tag in images.items()),
                (BUNDLE, f"{name}-ckp", listed),
            ]:
                layer = store.put(content, LAYER_ZSTD)
                self.registry.push(store, image_manifest(store, [(layer, layer.digest)], {}, "2026-01-01T00:00:00Z"), repository, tag)

    def deploy(self, *names: str, management: str = "") -> None:
        self.publish(*names)
        table = Releases(releases={}, management=management or names[-1], registry_ca="CA").with_releases(map(entry, names))
        self.host.install(management or names[-1])
        self.host.deploy(*releases_config(table))

    def there(self) -> set[str]:
        return {f"{name.removeprefix('ckp/')}:{tag}" for name in self.simulator.repositories for tag in self.simulator.tags(name)}

    def withdraw(self, *names: str) -> None:
        offered = releases.read_offered(self.host)
        assert offered is not None
        releases.write(self.host, offered.without([name for name in names if name in offered.releases.releases]), self.state)

    def finish(self) -> list[str]:
        return releases.finish_removal(self.host, [self.registry], self.state, self.lines.append)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setenv("CKP_CACHE", str(tmp_path / "cache"))
    (tmp_path / "state").mkdir()
    return World(ManagementHost(tmp_path / "host"), tmp_path / "state")


def content_of(*names: str) -> set[str]:
    shared = {f"{image}:{tag}" for image, tag in SHARED.items()}
    return {item for name in names for item in (f"kube-apiserver:{name}-ckp", f"byoh-bundle-debian_12_x86-64_k8s:{name}-ckp")} | shared


# -- which release the management cluster gets


def test_a_new_management_cluster_gets_the_newest_release(world: World) -> None:
    assert releases.choose(world.host, [NEW, OLD, MIDDLE]) == Choice(NEW, (OLD, MIDDLE, NEW))
    assert releases.choose(world.host, ["v1.35.1", "v1.9.12"]).management == "v1.35.1", "by number, not by letter"


def test_an_existing_management_cluster_keeps_its_release_when_a_newer_one_is_offered(world: World) -> None:
    world.deploy(MIDDLE)
    assert releases.choose(world.host, [MIDDLE, NEW]) == Choice(MIDDLE, (MIDDLE, NEW))


def test_an_installation_that_was_killed_goes_on_with_its_release_though_nothing_answers_yet(world: World) -> None:
    world.host.install(MIDDLE, steps=STEPS[:5])
    assert releases.choose(world.host, [MIDDLE, NEW]) == Choice(MIDDLE, (MIDDLE, NEW))


@pytest.mark.parametrize("complete", [True, False])
def test_a_file_that_leaves_out_the_management_clusters_release_is_refused(world: World, complete: bool) -> None:
    world.host.install(MIDDLE, steps=STEPS if complete else STEPS[:5])
    with pytest.raises(Conflict, match=f"the management cluster runs {MIDDLE}, so the site has to offer it, and nothing was changed") as refused:
        releases.choose(world.host, [NEW])
    assert f"[{MIDDLE}, {NEW}]" in refused.value.resolution


def test_a_management_cluster_that_does_not_answer_is_not_taken_for_one_without_clusters(world: World) -> None:
    world.deploy(OLD, NEW)
    world.host.api.answers = False
    for look in (lambda: releases.choose(world.host, [NEW]), lambda: releases.clusters_by_release(world.host), lambda: releases.listed(world.host, [NEW])):
        with pytest.raises(CkpError, match="kubectl get on m1 failed"):
            look()


# -- what uses a release


def test_clusters_use_the_release_of_their_control_plane_and_of_each_machine(world: World) -> None:
    world.deploy(OLD, MIDDLE, NEW)
    assert releases.clusters_by_release(world.host) == {}
    world.host.create(MANAGED_CONTROL_PLANE, "one", {"version": NEW}, status={"version": MIDDLE})
    world.host.create(MACHINE, "two-1", {"version": OLD, "clusterName": "two"}, cluster="two")
    world.host.create(MACHINE_SET, "three-x", {"template": {"spec": {"version": OLD}}}, cluster="three")
    world.host.create(MACHINE_DEPLOYMENT, "four-workers", {"template": {"spec": {"version": OLD}}}, namespace="other", cluster="four")
    world.host.create(MACHINE, "two-2", {"version": NEW}, cluster="two")
    assert releases.clusters_by_release(world.host) == {
        OLD: ["ckp-a-b/three", "ckp-a-b/two", "other/four"],
        MIDDLE: ["ckp-a-b/one"],
        NEW: ["ckp-a-b/one", "ckp-a-b/two"],
    }


def test_a_release_that_a_file_leaves_out_is_refused_while_a_cluster_uses_it(world: World) -> None:
    world.deploy(OLD, NEW)
    world.host.create_cluster("one", OLD)
    world.host.create_cluster("two", OLD)
    before = (world.host.config, world.there())
    for look in (releases.choose, releases.withdrawing):
        with pytest.raises(Conflict, match=f"{OLD} is used by 2 clusters, and nothing was changed") as refused:
            look(world.host, [NEW])
        assert refused.value.details.splitlines() == ["ckp-a-b/one", "ckp-a-b/two"]
    assert (world.host.config, world.there()) == before
    world.host.delete_clusters()
    assert releases.choose(world.host, [NEW]) == Choice(NEW, (NEW,), leaving=(OLD,))
    assert list(releases.withdrawing(world.host, [NEW])) == [OLD]


def test_releases_are_listed_with_what_uses_them_and_what_the_file_says(world: World) -> None:
    assert [item.state for item in releases.listed(world.host, [NEW])] == [State.NOT_APPLIED]
    world.deploy(OLD, NEW, management=NEW)
    world.host.create_cluster("one", OLD)
    found = {item.name: item for item in releases.listed(world.host, [MIDDLE, NEW])}
    assert {name: item.state for name, item in found.items()} == {OLD: State.NOT_IN_FILE, MIDDLE: State.NOT_APPLIED, NEW: State.OFFERED}
    assert list(found) == [OLD, MIDDLE, NEW]
    assert (found[OLD].clusters, found[OLD].management, found[OLD].stamp) == (("ckp-a-b/one",), False, f"{OLD}-ckp")
    assert (found[NEW].clusters, found[NEW].management) == ((), True)
    world.host.delete_clusters()
    world.withdraw(OLD)
    assert {item.name: item.state for item in releases.listed(world.host, [NEW])} == {OLD: State.BEING_REMOVED, NEW: State.OFFERED}


def test_the_table_of_an_earlier_version_is_read(world: World) -> None:
    world.deploy(NEW)
    assert world.host.config is not None
    old = json.loads(world.host.config["data"]["releases.json"])
    del old["management"], old["releases"][NEW]["addons"]
    world.host.config["data"]["releases.json"] = json.dumps(old)
    offered = releases.read_offered(world.host)
    assert offered is not None and (list(offered.releases.releases), offered.releases.management, offered.withdrawn) == ([NEW], "", {})
    world.host.config["data"]["releases.json"] = "{"
    with pytest.raises(CkpError, match="ConfigMap ckp-releases of the management cluster can't be read"):
        releases.read_offered(world.host)


# -- how one comes and goes


def test_a_release_is_added_and_the_pods_follow(world: World) -> None:
    world.deploy(NEW)
    (world.state / "applied").mkdir()
    (world.state / "applied" / "ckp").write_text("what was applied last")
    offered = releases.read_offered(world.host)
    assert offered is not None
    releases.write(world.host, offered.with_releases(entry(OLD)), world.state)
    assert world.host.offered == [OLD, NEW] and world.host.known["ckp-compass"] == [NEW]
    assert not (world.state / "applied" / "ckp").exists(), "the next `ckp site apply` compares with what is there"
    releases.settle(world.host, world.lines.append)
    assert world.host.known == {"ckp-compass": [OLD, NEW], "ckp-controllers": [OLD, NEW]}
    assert world.host.table.management == NEW and world.host.table.releases[NEW] == entry(NEW)


def test_a_removed_release_takes_along_what_no_other_one_shares(world: World) -> None:
    world.deploy(OLD, MIDDLE, NEW)
    world.host.create_cluster("one", MIDDLE)
    assert world.there() == content_of(OLD, MIDDLE, NEW)
    world.withdraw(OLD)
    assert (world.host.offered, world.host.withdrawn, world.there()) == ([MIDDLE, NEW], [OLD], content_of(OLD, MIDDLE, NEW))
    assert world.finish() == [OLD]
    assert (world.host.offered, world.host.withdrawn, world.there()) == ([MIDDLE, NEW], [], content_of(MIDDLE, NEW))
    assert world.finish() == [] and world.host.known["ckp-compass"] == [MIDDLE, NEW]


def test_content_goes_only_after_the_pods_do_not_know_the_release_any_longer(world: World) -> None:
    world.deploy(OLD, NEW)
    known: list[dict[str, list[str]]] = []
    world.simulator.faults = [Fault("DELETE ", times=100, hook=lambda: known.append(world.host.known))]
    world.withdraw(OLD)
    world.finish()
    assert known and all(names == {"ckp-compass": [NEW], "ckp-controllers": [NEW]} for names in known)


def test_a_release_that_a_cluster_was_made_of_meanwhile_is_offered_again(world: World) -> None:
    world.deploy(OLD, MIDDLE, NEW)
    world.withdraw(OLD, MIDDLE)
    world.host.api.on_rollout = lambda: world.host.create_cluster("late", OLD)
    with pytest.raises(Conflict, match=f"{OLD} is used by 1 cluster and was not removed") as refused:
        world.finish()
    assert refused.value.details == "ckp-a-b/late" and f"[{OLD}, {NEW}]" in refused.value.resolution
    assert (world.host.offered, world.host.withdrawn, world.there()) == ([OLD, NEW], [], content_of(OLD, NEW)), "the other one is removed"
    assert world.host.known["ckp-compass"] == [OLD, NEW]


def test_a_release_whose_content_was_being_deleted_has_to_be_published_again(world: World) -> None:
    world.deploy(OLD, NEW)
    world.withdraw(OLD)

    def kill() -> None:
        raise Killed

    world.simulator.faults = [Fault("DELETE ", hook=kill)]
    with pytest.raises(Killed):
        world.finish()
    world.host.create_cluster("late", OLD)
    with pytest.raises(Conflict, match="was not removed") as refused:
        world.finish()
    assert refused.value.resolution == f"publish it again: ckp site release add {OLD}"
    assert world.host.offered == [NEW], "it is not offered without all of its content"


def remove_until_killed(world: World, arm: Callable[[], None]) -> bool:
    """A site with three releases, of which the oldest is removed; whether that was killed."""
    world.simulator = RegistrySimulator()
    world.deploy(OLD, MIDDLE, NEW)
    world.host.calls.clear()
    arm()
    try:
        world.withdraw(OLD)
        world.finish()
    except Killed:
        return True
    finally:
        world.host.kill_at, world.simulator.faults = None, []
    return False


def require_gone_on_with(world: World) -> None:
    """What is there after a kill is whole, and the same again completes the removal."""
    assert world.host.offered[-2:] == [MIDDLE, NEW]
    assert OLD not in world.host.offered or content_of(OLD) <= world.there(), "what is offered is whole"
    world.withdraw(OLD)
    world.finish()
    assert (world.host.offered, world.host.withdrawn, world.there()) == ([MIDDLE, NEW], [], content_of(MIDDLE, NEW))
    assert set(world.host.known["ckp-compass"]) == {MIDDLE, NEW}


@pytest.mark.parametrize("after", [False, True])
def test_a_removal_that_is_killed_at_any_command_is_gone_on_with(world: World, after: bool) -> None:
    def arm() -> None:
        world.host.kill_at, world.host.kill_after = number, after

    number = 0
    while remove_until_killed(world, arm):
        require_gone_on_with(world)
        number += 1
    assert number > 20


def test_a_removal_that_is_killed_at_any_request_to_the_registry_is_gone_on_with(world: World) -> None:
    number = left = 0

    def kill() -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise Killed

    def arm() -> None:
        world.simulator.faults = [Fault(".", times=10**6, hook=kill)]

    while remove_until_killed(world, arm):
        require_gone_on_with(world)
        number += 1
        left = number
    assert number > 20


def test_a_withdrawn_release_that_is_named_again_is_offered(world: World) -> None:
    offered = Offered(Releases(releases={NEW: entry(NEW)}), {OLD: None, MIDDLE: entry(MIDDLE)})
    again = offered.with_releases(entry(OLD))
    assert (list(again.releases.releases), list(again.withdrawn)) == ([OLD, NEW], [MIDDLE])
    world.deploy(OLD, NEW)
    world.withdraw(OLD)
    assert releases.withdrawing(world.host, [OLD, NEW]) == {}
    assert releases.choose(world.host, [NEW]).leaving == (OLD,), "an unfinished removal is finished"
