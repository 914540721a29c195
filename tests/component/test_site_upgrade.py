"""A site's upgrade against a real API server: kinds of objects from one version to the next, the whole layer forward and back, and killed at each change."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ckp import __version__
from ckp.api.crds import all_crds
from ckp.distribution.management import Management
from ckp.kits.errors import CkpError, Conflict
from ckp.kits.steps import Steps
from ckp.rules.schemas import HEAD
from ckp.site import version
from ckp.site.install import APPLY, CKP_GROUP, FIELD_MANAGER
from ckp.site.plan.rules import GROUPS
from ckp.site.upgrade import crds, layer
from ckp.site.upgrade import record as records
from ckp.site.upgrade.agents import Outcome
from ckp.site.upgrade.applied import applied_by
from ckp.site.upgrade.limits import Limits
from ckp.site.upgrade.run import TakenBack, Upgrade, give_up
from tests.simulators.site_host import Killed
from tests.support.control_plane import TestControlPlane, control_plane
from tests.support.plane_host import PlaneHost

pytestmark = pytest.mark.component

Obj = dict[str, Any]
BEFORE: dict[str, Obj] = json.loads((Path(__file__).parents[1] / "contract" / "crds-0.2.0.json").read_text())
SETTINGS = {
    "COMPASS_ADDRESS": "192.0.2.200",
    "HUB_ADDRESS": "192.0.2.201",
    "COMPASS_NAMES": "",
    "HUB_NAMES": "",
    "LB_FIRST": "192.0.2.200",
    "LB_LAST": "192.0.2.220",
    "RESERVED_CIDRS": "hosts=192.0.2.0/24",
    "DATABASE": "",
    "RELEASES_DIGEST": "new",
}
NEW_IMAGE, OLD_IMAGE = "r.test:5000/ckp/ckp-platform:new", "r.test:5000/ckp/ckp-platform:old"
ONLY_NEW = ("ckp-site-of-new", "byoremediations.infrastructure.cluster.x-k8s.io")
LIMITS = Limits(ready=3, job=3, apply=10, agent=3)


# -- one kind


def widget(*versions: str, storage: str) -> Obj:
    schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    listed = [{"name": name, "served": True, "storage": name == storage, "schema": schema} for name in versions]
    names = {"kind": "Widget", "plural": "widgets", "singular": "widget", "listKind": "WidgetList"}
    spec = {"group": "upgrade.test", "scope": "Namespaced", "names": names, "versions": listed}
    return {"apiVersion": "apiextensions.k8s.io/v1", "kind": crds.KIND, "metadata": {"name": "widgets.upgrade.test"}, "spec": spec}


@pytest.fixture(scope="module")
def plane() -> Iterator[TestControlPlane]:
    """Of this file alone: what other tests leave of CKP's kinds would be part of the layer, and what is done to the kinds here is not for others."""
    with control_plane() as running:
        yield running


@pytest.fixture
def host(plane: TestControlPlane) -> PlaneHost:
    return PlaneHost(plane)


@pytest.fixture
def stored(host: PlaneHost, namespace: str) -> Iterator[str]:
    """A namespace with objects that are stored as v1alpha1."""
    crds.apply(host, [widget("v1alpha1", storage="v1alpha1")])
    objects = [{"apiVersion": "upgrade.test/v1alpha1", "kind": "Widget", "metadata": {"name": f"w{number}"}, "size": number} for number in range(3)]
    host.plane.kubectl("create", f"--namespace={namespace}", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))
    yield namespace
    host.plane.kubectl("delete", "crd", "widgets.upgrade.test", "--ignore-not-found")


def sizes(host: PlaneHost, namespace: str, served: str) -> list[int]:
    items = json.loads(host.plane.kubectl("get", f"widgets.{served}.upgrade.test", f"--namespace={namespace}", "-o", "json"))["items"]
    return [item["size"] for item in items]


def stored_versions(host: PlaneHost) -> list[str]:
    found: list[str] = crds.read(host)["widgets.upgrade.test"]["status"]["storedVersions"]
    return found


def test_a_kind_moves_to_a_new_version_and_its_objects_with_it(host: PlaneHost, stored: str) -> None:
    new = widget("v1alpha1", "v1beta1", storage="v1beta1")
    crds.apply(host, [crds.widened(new, crds.read(host)["widgets.upgrade.test"])])
    assert sizes(host, stored, "v1alpha1") == sizes(host, stored, "v1beta1") == [0, 1, 2], "both versions of CKP work with it"
    made = {"apiVersion": "upgrade.test/v1beta1", "kind": "Widget", "metadata": {"name": "w3"}, "size": 3}
    host.plane.kubectl("create", f"--namespace={stored}", "-f", "-", stdin=json.dumps(made))
    assert stored_versions(host) == ["v1alpha1"]
    crds.apply(host, [widget("v1alpha1", storage="v1alpha1")])
    assert sizes(host, stored, "v1alpha1") == [0, 1, 2, 3], "it was taken back, with what was made meanwhile"

    newest = widget("v1beta1", storage="v1beta1")
    with pytest.raises(Conflict, match="can't be brought to this version"):
        crds.require_possible([newest], crds.read(host))
    for _ in range(2):  # the second time there is nothing to do
        stored_again = crds.narrow(host, [new])
        assert stored_versions(host) == ["v1beta1"] and sizes(host, stored, "v1beta1") == [0, 1, 2, 3]
    assert stored_again == []
    crds.require_possible([newest], crds.read(host))
    crds.apply(host, [newest])
    assert sizes(host, stored, "v1beta1") == [0, 1, 2, 3], "the API server reads them without the version that they were made in"


def test_narrowing_goes_on_after_a_kill_at_each_change(host: PlaneHost, stored: str) -> None:
    new = widget("v1alpha1", "v1beta1", storage="v1beta1")
    number = 0
    while True:
        host.changes.clear()
        host.kill_after = number
        try:
            crds.narrow(host, [new])
        except Killed:
            number += 1
            continue
        finally:
            host.kill_after = None
        break
    assert number == 3 and stored_versions(host) == ["v1beta1"] and sizes(host, stored, "v1beta1") == [0, 1, 2]


# -- the whole layer


def crd(group: str, kind: str, plural: str, served: str, *, namespaced: bool = False) -> Obj:
    found = widget(served, storage=served)
    found["metadata"]["name"] = f"{plural}.{group}"
    found["spec"] |= {"group": group, "scope": "Namespaced" if namespaced else "Cluster", "names": {"kind": kind, "plural": plural}}
    return found


CILIUM = [
    crd("cilium.io", "CiliumLoadBalancerIPPool", "ciliumloadbalancerippools", "v2"),
    crd("cilium.io", "CiliumL2AnnouncementPolicy", "ciliuml2announcementpolicies", "v2alpha1"),
]


def new_layer() -> dict[str, list[Obj]]:
    """Today's manifests."""
    management = Management({}, "r.test:5000/ckp", {"ckp-platform": "new", "ckp-addons": "new", "ckp-backup": "new", "ckp-packages": "new"})
    own = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": ONLY_NEW[0], "namespace": "ckp-system"}, "data": {"a": "b"}}
    return {"foundation": management.foundation(), "cert-manager": [], "cluster-api": [], CKP_GROUP: [version.config_map(), own, *management.ckp(SETTINGS)]}


def old_layer() -> dict[str, list[Obj]]:
    """What the version before could have made: other images, settings that are gone today, and fewer objects."""
    groups = copy.deepcopy(new_layer())
    groups[CKP_GROUP] = [each for each in groups[CKP_GROUP] if each["kind"] != crds.KIND and each["metadata"]["name"] not in (version.CONFIG, *ONLY_NEW)]
    for each in groups[CKP_GROUP]:
        if each["kind"] == "Deployment":
            container = each["spec"]["template"]["spec"]["containers"][0]
            container["image"] = OLD_IMAGE
            container.setdefault("env", []).append({"name": "ONLY_OLD", "value": "1"})
            each["metadata"]["annotations"] = {"only-old": "yes"}
            each["spec"]["template"]["spec"].pop("initContainers", None)
    groups[CKP_GROUP] = [*BEFORE.values(), *groups[CKP_GROUP]]
    return groups


class LayerUpgrade(Upgrade):
    """Without a registry and hosts: those have tests of their own."""

    def _fill(self) -> dict[str, list[Obj]]:
        return new_layer()

    def _bring_hosts(self) -> Outcome:
        records.forget(self.site.management)
        return Outcome()


class World:
    """A layer of the version before on the API server."""

    def __init__(self, plane: TestControlPlane, state: Path) -> None:
        self.plane, self.state, self.host = plane, state, PlaneHost(plane)
        self.refs = [records.Ref.of(each) for groups in (new_layer(), old_layer()) for objects in groups.values() for each in objects]
        self.become_old()
        self.before = self.look()

    def become_old(self) -> None:
        """Whatever is there: as the version before left it."""
        self.host = PlaneHost(self.plane)
        records.forget(self.host)
        old = {records.Ref.of(each).key for objects in old_layer().values() for each in objects}
        layer._remove(self.host, [ref for ref in self.refs if ref.key not in old], lambda _: None)
        for objects in old_layer().values():
            layer.apply(self.host, objects, LIMITS)
        for each in layer.deployments(old_layer()[CKP_GROUP]):
            layer.wait_ready(self.host, each, LIMITS, lambda _: None)
        self.host.changes.clear()

    def look(self) -> dict[str, Obj]:
        """What there is of the layer, as its manager has set it; without what an upgrade keeps."""
        live = crds.read(self.host)
        found = {" ".join(records.Ref.of(each).key): applied_by(each, layer.MANAGER) for each in layer._live(self.host, self.refs, live)}
        names = self.plane.kubectl("get", "configmaps,jobs", "--namespace=ckp-system", "-o", "name").split()
        return {**found, "left": {"names": [name for name in names if version.UPGRADING in name or name.startswith("job")]}}

    def upgrade(self) -> None:
        steps = Steps(out=(self.state / "output").open("w"))
        site: Any = SimpleNamespace(management=self.host, inventory=SimpleNamespace(state=self.state))
        with steps:
            LayerUpgrade(site, (), steps, "", None, 10, LIMITS).run("0.2.0", "0002")

    def back(self) -> None:
        with Steps(out=(self.state / "output").open("w")) as steps:
            give_up(self.host, self.state, steps, LIMITS)

    def image(self, name: str) -> str:
        return self.plane.kubectl("get", "deployment", name, "--namespace=ckp-system", "-o", "jsonpath={.spec.template.spec.containers[0].image}")


@pytest.fixture(scope="module")
def ground(plane: TestControlPlane, tmp_path_factory: pytest.TempPathFactory) -> World:
    plane.kubectl(*APPLY, stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": CILIUM}))
    plane.kubectl("wait", "--for=condition=Established", *(f"crd/{each['metadata']['name']}" for each in CILIUM))
    plane.kubectl("create", "namespace", "cert-manager")
    return World(plane, tmp_path_factory.mktemp("state"))


@pytest.fixture
def world(ground: World) -> World:
    ground.become_old()
    return ground


def expected_new(world: World) -> dict[str, Obj]:
    """The layer as applying today's manifests to the version before leaves it."""
    world.become_old()
    for objects in new_layer().values():
        layer.apply(world.host, objects, LIMITS)
    return world.look()


def test_a_layer_is_upgraded_as_if_today_s_manifests_had_been_applied(world: World) -> None:
    expected = expected_new(world)
    world.become_old()
    world.upgrade()
    assert world.look() == expected and world.host.schema == HEAD
    assert version.installed(world.host) == __version__
    assert {world.image(name) for name in layer.ORDER} == {NEW_IMAGE}
    deployment = json.loads(world.plane.kubectl("get", "deployment", "ckp-hub", "--namespace=ckp-system", "-o", "json"))
    assert "ONLY_OLD" not in json.dumps(deployment) and "only-old" not in json.dumps(deployment)


# The first and the last of them; the one between is as the first.
@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.long if name == layer.ORDER[1] else ()) for name in layer.ORDER])
def test_a_deployment_that_does_not_become_ready_brings_the_layer_back_as_it_was(world: World, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rolls = PlaneHost._roll

    def roll(host: PlaneHost, deployment: str, namespace: str) -> None:
        host.broken = {NEW_IMAGE} if deployment.endswith(name) else set()
        rolls(host, deployment, namespace)

    monkeypatch.setattr(PlaneHost, "_roll", roll)
    with pytest.raises(TakenBack, match=f"{name} did not become ready"):
        world.upgrade()
    assert world.look() == world.before and world.host.schema == "0002"
    assert {world.image(each) for each in layer.ORDER} == {OLD_IMAGE}
    monkeypatch.undo()
    world.host.broken = set()
    world.upgrade()
    assert version.installed(world.host) == __version__, "and it may be tried again"


def test_an_object_of_a_new_kind_that_was_made_meanwhile_is_not_deleted_with_its_kind(world: World, namespace: str) -> None:
    world.host.broken = {NEW_IMAGE}
    remediation = {
        "apiVersion": "infrastructure.cluster.x-k8s.io/v1beta1",
        "kind": "ByoRemediation",
        "metadata": {"name": "r", "namespace": namespace},
        "spec": {},
    }
    made: list[str] = []
    rolls = world.host._roll

    def roll(name: str, namespace: str) -> None:
        if name.endswith("ckp-controllers") and not made:
            world.plane.kubectl("create", "-f", "-", stdin=json.dumps(remediation))
            made.append(name)
        rolls(name, namespace)

    world.host._roll = roll  # type: ignore[method-assign]
    with pytest.raises(TakenBack):
        world.upgrade()
    assert "r" in world.plane.kubectl("get", "byoremediations", f"--namespace={namespace}", "-o", "name")
    world.plane.kubectl("delete", "byoremediations", "r", f"--namespace={namespace}")


def test_what_somebody_else_has_made_under_a_name_of_the_new_layer_is_as_it_was_after_the_way_back(world: World) -> None:
    """As on an existing cluster: objects there that the version before has applied nothing of, among them a kind."""
    [kind] = [each for each in all_crds() if each["metadata"]["name"] == ONLY_NEW[1]]
    theirs = copy.deepcopy(kind)
    theirs["spec"]["names"]["shortNames"] = ["theirs"]
    config = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": ONLY_NEW[0], "namespace": "ckp-system", "labels": {"of": "them"}},
        "data": {"a": "theirs"},
    }
    for each in (theirs, config):
        world.plane.kubectl("create", "-f", "-", stdin=json.dumps(each))
    world.host.broken = {NEW_IMAGE}
    with pytest.raises(TakenBack):
        world.upgrade()
    found = json.loads(world.plane.kubectl("get", "configmap", ONLY_NEW[0], "--namespace=ckp-system", "-o", "json"))
    assert (found["data"], found["metadata"]["labels"]) == ({"a": "theirs"}, {"of": "them"})
    found = json.loads(world.plane.kubectl("get", "crd", ONLY_NEW[1], "-o", "json"))
    assert found["spec"]["names"]["shortNames"] == ["theirs"]


@pytest.mark.long
def test_killed_after_each_change_the_same_upgrade_goes_on(world: World) -> None:
    expected = expected_new(world)
    number = 0
    while True:
        world.become_old()
        world.host.kill_after = number
        try:
            world.upgrade()
        except Killed:
            world.host.kill_after = None
            world.upgrade()
            assert world.look() == expected, f"killed after {world.host.changes[number]}"
            number += 1
            continue
        break
    assert number > 15


@pytest.mark.long
def test_killed_after_each_change_it_can_be_taken_back_until_the_layer_is_new(world: World) -> None:
    number, backs = 0, 0
    while True:
        world.become_old()
        world.host.kill_after = number
        try:
            world.upgrade()
        except Killed:
            world.host.kill_after = None
            try:
                world.back()
            except CkpError as error:
                assert "there is no way back" in error.brief or "no upgrade of the site is unfinished" in error.brief
            else:
                backs += 1
                assert world.look() == world.before and world.host.schema == "0002", f"killed after {world.host.changes[number]}"
            number += 1
            continue
        break
    assert backs > 8


@pytest.mark.long
def test_killed_after_each_change_on_the_way_back_the_same_command_goes_on(world: World) -> None:
    number = 0
    while True:
        world.become_old()
        world.host.broken, world.host.kill_after = {NEW_IMAGE}, number
        try:
            world.upgrade()
        except Killed:
            world.host.kill_after = None
            with pytest.raises(TakenBack):
                world.upgrade()
            assert world.look() == world.before and world.host.schema == "0002", f"killed after {world.host.changes[number]}"
            number += 1
            continue
        except TakenBack:
            break
    assert number > 20


def test_only_the_manager_of_the_layer_is_put_back(world: World) -> None:
    """What somebody else has set on an object of the layer stays, forward and back."""
    world.plane.kubectl("annotate", "deployment", "ckp-hub", "--namespace=ckp-system", "somebody=else")
    world.host.broken = {NEW_IMAGE}
    with pytest.raises(TakenBack):
        world.upgrade()
    deployment = json.loads(world.plane.kubectl("get", "deployment", "ckp-hub", "--namespace=ckp-system", "-o", "json"))
    assert deployment["metadata"]["annotations"]["somebody"] == "else"
    assert tuple(GROUPS) == tuple(new_layer()), "the way back knows all groups"
    assert FIELD_MANAGER.endswith(layer.MANAGER)
