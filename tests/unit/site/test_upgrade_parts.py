"""Parts of a site's upgrade: what was applied is read back, kinds of objects are widened, agents come in stages, and each plan names what it interrupts."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from ckp import __version__
from ckp.kits.errors import Conflict, InvalidInput
from ckp.rules.platform_versions import NOTES
from ckp.rules.platform_versions import before as version_before
from ckp.rules.schemas import HEAD
from ckp.site.plan.model import Action
from ckp.site.status import Part
from ckp.site.upgrade import crds, database
from ckp.site.upgrade import plan as upgrade_plan
from ckp.site.upgrade.agents import Agent, stages
from ckp.site.upgrade.applied import applied_by
from ckp.site.upgrade.plan import Intent, Situation, changes
from ckp.site.upgrade.record import Phase, Record, Ref

Obj = dict[str, Any]

# -- what was applied


def managed(obj: Obj, *entries: tuple[str, Obj]) -> Obj:
    fields = [{"manager": manager, "operation": "Apply", "fieldsV1": owned} for manager, owned in entries]
    return {**obj, "metadata": {**obj["metadata"], "managedFields": fields}}


DEPLOYMENT: Obj = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {"name": "d", "namespace": "n", "uid": "1", "annotations": {"deployment.kubernetes.io/revision": "3", "ours": "yes"}},
    "spec": {
        "replicas": 2,
        "paused": False,
        "template": {
            "spec": {
                "containers": [
                    {"name": "a", "image": "i:1", "ports": [{"containerPort": 80, "protocol": "TCP", "name": "http"}], "imagePullPolicy": "Always"},
                    {"name": "sidecar", "image": "i:2"},
                ]
            }
        },
    },
    "status": {"replicas": 2},
}
OURS: Obj = {
    "f:metadata": {"f:annotations": {"f:ours": {}}},
    "f:spec": {
        "f:replicas": {},
        "f:template": {
            "f:spec": {
                "f:containers": {
                    'k:{"name":"a"}': {
                        ".": {},
                        "f:image": {},
                        "f:name": {},
                        "f:ports": {'k:{"containerPort":80,"protocol":"TCP"}': {".": {}, "f:containerPort": {}, "f:name": {}}},
                    }
                }
            }
        },
    },
}


def test_only_what_a_manager_has_set_is_read_back() -> None:
    found = applied_by(managed(DEPLOYMENT, ("ours", OURS), ("others", {"f:spec": {"f:paused": {}}})), "ours")
    container = {"name": "a", "image": "i:1", "ports": [{"containerPort": 80, "name": "http"}]}
    assert found == {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "d", "namespace": "n", "annotations": {"ours": "yes"}},
        "spec": {"replicas": 2, "template": {"spec": {"containers": [container]}}},
    }


def test_of_an_object_that_a_manager_has_set_nothing_of_only_the_name_is_its_own() -> None:
    found = applied_by(managed(DEPLOYMENT, ("others", {"f:spec": {"f:paused": {}}})), "ours")
    assert found.keys() == {"apiVersion", "kind", "metadata"} and found["metadata"].keys() <= {"name", "namespace"}


def test_what_it_has_set_by_two_ways_is_read_back_together() -> None:
    patched = {"f:metadata": {"f:annotations": {"f:deployment.kubernetes.io/revision": {}}}, "f:spec": {"f:template": {}}}
    found = applied_by(managed(DEPLOYMENT, ("ours", OURS), ("ours", patched)), "ours")
    assert found["metadata"]["annotations"] == {"ours": "yes", "deployment.kubernetes.io/revision": "3"}
    assert found["spec"]["template"] == DEPLOYMENT["spec"]["template"], "all of it"


def test_a_set_and_its_items() -> None:
    role = {"apiVersion": "v1", "kind": "X", "metadata": {"name": "r", "finalizers": ["a", "b"]}, "rules": [{"verbs": ["get"]}]}
    owned: dict[str, Any] = {"f:metadata": {"f:finalizers": {".": {}, 'v:"a"': {}}}, "f:rules": {}}
    found = applied_by(managed(role, ("ours", owned)), "ours")
    assert found == {"apiVersion": "v1", "kind": "X", "metadata": {"name": "r", "finalizers": ["a"]}, "rules": [{"verbs": ["get"]}]}


# -- kinds of objects


def definition(*versions: str, storage: str, stored: tuple[str, ...] = (), scope: str = "Namespaced") -> Obj:
    spec = {"scope": scope, "versions": [{"name": name, "served": True, "storage": name == storage, "schema": {"of": name}} for name in versions]}
    return {"kind": crds.KIND, "metadata": {"name": "things.x.test"}, "spec": spec, "status": {"storedVersions": list(stored or (storage,))}}


def shape(found: Obj) -> list[tuple[str, bool]]:
    return [(version["name"], version["storage"]) for version in found["spec"]["versions"]]


def test_a_widened_kind_has_all_versions_and_stores_as_before() -> None:
    live, new = definition("v1", storage="v1"), definition("v1", "v2", storage="v2")
    assert shape(crds.widened(new, live)) == [("v1", True), ("v2", False)]
    newest = definition("v2", "v3", storage="v3")
    live = definition("v1", "v2", storage="v2")
    assert shape(crds.widened(newest, live)) == [("v2", True), ("v3", False), ("v1", False)]
    assert crds.widened(new, None) == new and shape(new) == [("v1", False), ("v2", True)], "and the new one is left as it is"
    same = definition("v1", storage="v1")
    assert crds.widened(same, same) == same


def test_a_kind_whose_objects_could_not_be_read_is_refused() -> None:
    live = {"things.x.test": definition("v1", "v2", storage="v2", stored=("v1", "v2"))}
    with pytest.raises(Conflict) as refused:
        crds.require_possible([definition("v2", storage="v2")], live)
    assert "stored as v1, which the new definition does not know" in refused.value.details
    with pytest.raises(Conflict, match="can't be brought"):
        crds.require_possible([definition("v1", "v2", storage="v2", scope="Cluster")], live)
    crds.require_possible([definition("v1", "v2", storage="v2")], live)
    crds.require_possible([definition("v2", storage="v2")], {})


def test_what_changes_of_a_kind_is_named() -> None:
    one, two = definition("v1", storage="v1"), definition("v1", "v2", storage="v2")
    assert crds.changed(two, None) == "is new"
    assert crds.changed(two, one) == "v2 comes, objects are stored as v2 instead of v1"
    assert crds.changed(one, two) == "v2 goes, objects are stored as v1 instead of v2"
    assert crds.changed(one, one) == ""


# -- agents


@pytest.mark.parametrize(("count", "at_once", "sizes"), [(0, 3, []), (1, 3, [1]), (2, 1, [1, 1]), (8, 3, [1, 3, 3, 1])])
def test_one_agent_goes_first_and_the_rest_in_stages(count: int, at_once: int, sizes: list[int]) -> None:
    names = [f"h{number}" for number in range(count)]
    found = list(stages(names, at_once))
    assert [len(stage) for stage in found] == sizes and [name for stage in found for name in stage] == names


# -- the database


def test_the_job_has_compass_settings_and_serves_nobody() -> None:
    container = {"name": "compass", "image": "i:2", "args": ["ckp.compass"], "ports": [{"containerPort": 1}], "readinessProbe": {}, "env": [{"name": "A"}]}
    pod = {"containers": [container], "volumes": [{"name": "data"}], "serviceAccountName": "ckp-compass"}
    compass = {"spec": {"template": {"metadata": {"labels": {"app": "ckp-compass"}}, "spec": pod}}}
    made = database.job(compass, "--schema-back", "0002")
    assert made["spec"]["template"]["metadata"]["labels"] == {"app": database.JOB}, "no Service of Compass selects it"
    [ran] = made["spec"]["template"]["spec"]["containers"]
    assert ran == {"name": "compass", "image": "i:2", "args": ["ckp.compass", "--schema-back", "0002"], "env": [{"name": "A"}]}
    assert (made["spec"]["backoffLimit"], made["spec"]["template"]["spec"]["restartPolicy"]) == (0, "Never")
    assert container["args"] == ["ckp.compass"], "Compass' own is left as it is"


# -- the plan

SEEN = Situation(
    version=version_before(__version__),
    record=None,
    parts=(Part("host", "ok"),),
    schema="0002",
    definitions=(("things.x.test", "is new"),),
    offered=("v1.35.1",),
    clusters=("a/one",),
    agents=(Agent("ns", "h1", "0.2.0", True), Agent("ns", "h2", "0.2.0", False)),
)
INTENT = Intent(("v1.35.1",), ("m1",), "/backup")


def test_a_plan_names_each_part_and_what_it_interrupts() -> None:
    found = {each.part: each for each in changes(SEEN, INTENT)}
    assert not [each for each in found.values() if each.action is Action.REFUSED]
    assert found["version"].detail == f"CKP {SEEN.version} becomes {__version__}"
    assert found["backup"].detail == "of the whole site, into /backup, before anything is changed"
    assert found["Compass' database"].detail.startswith(f"schema 0002 becomes {HEAD}; going back would lose: by which credential")
    assert found["things.x.test"].action is Action.CREATE
    assert found["ckp-compass"].interrupts == "it does not answer for some seconds"
    assert found["workload clusters"].interrupts == NOTES[__version__]
    assert found["agents"].detail.startswith("of 1 hosts") and "ns/h2" in found["agents that are not connected"].detail
    several = {each.part: each for each in changes(SEEN, replace(INTENT, single_compass=False, backup=""))}
    assert several["ckp-compass"].interrupts == "" and "WITHOUT A BACKUP" in several["backup"].detail


def test_nothing_is_to_do_for_a_site_of_this_version() -> None:
    assert changes(replace(SEEN, version=__version__), INTENT) == []


@pytest.mark.parametrize(
    ("seen", "part", "says"),
    [
        (replace(SEEN, version=""), "version", "there is no management layer"),
        (replace(SEEN, version="9.0.0"), "version", "does not know"),
        (replace(SEEN, version="0.0.1"), "version", "does not know"),
        (replace(SEEN, parts=(Part("ckp-system/ckp-hub", "not ready", "1 of 2 ready"),)), "ckp-system/ckp-hub", "not ready: 1 of 2 ready"),
        (replace(SEEN, offered=("v1.34.3", "v1.35.1")), "releases", "offers v1.34.3, v1.35.1, and its file names v1.35.1"),
        (replace(SEEN, schema="", schema_problem="no pod"), "Compass' database", "can't be read: no pod"),
        (replace(SEEN, schema="0009"), "Compass' database", "no way back: the schema 0009"),
        (replace(SEEN, definitions_problem="things: stored as v0"), "kinds of objects", "stored as v0"),
    ],
)
def test_what_speaks_against_an_upgrade_is_refused_with_a_remedy(seen: Situation, part: str, says: str) -> None:
    refused = [each for each in changes(seen, INTENT) if each.action is Action.REFUSED]
    assert [each.part for each in refused] == [part]
    assert says in refused[0].detail and refused[0].remedy
    with pytest.raises(InvalidInput, match="can't be upgraded as it is, and nothing was changed"):
        upgrade_plan.require_possible(changes(seen, INTENT))


def test_an_unfinished_upgrade_goes_on_and_one_of_another_version_is_refused() -> None:
    record = Record(before="0.2.0", to=__version__, phase=Phase.LAYER, schema_before="0002")
    [goes_on] = changes(replace(SEEN, record=record), INTENT)
    assert goes_on.action is Action.CHANGE and "goes on, from its phase `layer`" in goes_on.detail
    [back] = changes(replace(SEEN, record=record.now(Phase.BACK, failure="no image")), INTENT)
    assert "is taken back, since it failed: no image" in back.detail
    [other] = changes(replace(SEEN, record=record.model_copy(update={"to": "9.0.0"})), INTENT)
    assert other.action is Action.REFUSED and other.remedy == "finish it with CKP 9.0.0"


def test_a_record_survives_being_written_as_text() -> None:
    ref = Ref.of({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d", "namespace": "n"}})
    record = Record(before="0.2.0", to="0.3.0", phase=Phase.LAYER, schema_before="0002", backup="/b", made=(ref,))
    assert Record.model_validate_json(record.model_dump_json()) == record
    assert (ref.resource, ref.key, json.loads(json.dumps(ref.minimal()))["metadata"]) == (
        "Deployment.apps",
        ("apps", "Deployment", "n", "d"),
        {"name": "d", "namespace": "n"},
    )
