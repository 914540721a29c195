"""Compass: keys, enrolment, decisions, hosts, groups; through its REST interface and the hub's."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy import text

from ckp.api import kinds, names
from ckp.api.host_protocol import MAX_FACTS_BYTES, EnrolmentRequest
from ckp.clients.kube import KubeError
from ckp.compass.hosts.enrolments import host_name_from
from ckp.compass.store.places import Place
from tests.simulators.kube import KubeSimulator
from tests.worlds.compass import ADMIN, BASE, HUB, MACHINE_A, MACHINE_B, NAMESPACE, World, facts, make_csr, make_world


@pytest.fixture
async def world(tmp_path: Path, place: Place) -> AsyncIterator[World]:
    async with make_world(tmp_path, place=place) as made:
        yield made


async def approve_one(world: World, hostname: str = "worker-1", machine_id: str = MACHINE_A) -> str:
    """Enrol and approve a machine; the request's id."""
    answer = await world.enrol(await world.psk(), hostname=hostname, machine_id=machine_id)
    assert answer.status_code == 202, answer.text
    request_id = str(answer.json()["request_id"])
    await world.call("POST", f"/host-requests/{request_id}/approve", expect=200)
    return request_id


# Tokens.


@pytest.mark.parametrize("header", [None, "Bearer wrong", "Basic " + ADMIN, "Bearer ", ADMIN])
async def test_without_the_right_token_nothing_is_answered(world: World, header: str | None) -> None:
    world.rest.headers.pop("Authorization")
    for path in (f"{BASE}/hosts", "/api/v1/releases", "/api/v1/openapi.json", "/nothing"):
        response = await world.rest.get(path, headers={"Authorization": header} if header else {})
        assert response.status_code == 401, path
        assert response.json()["error"]["code"] == "Unauthorized"


async def test_health_needs_no_token(world: World) -> None:
    world.rest.headers.pop("Authorization")
    assert (await world.rest.get("/healthz")).status_code == 200


@pytest.mark.parametrize("token", ["", "made-up", "token-of-another", ADMIN])
async def test_the_inner_port_takes_the_hubs_account_only(world: World, token: str) -> None:
    world.internal.headers["Authorization"] = f"Bearer {token}"
    answer = await world.enrol("x" * 20)
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "Unauthorized")


async def test_a_good_review_of_a_token_holds_for_a_minute(world: World) -> None:
    for _ in range(3):
        await world.internal.get("/internal/v1/enrolments/none", headers={"X-Enrolment-Token": "t"})
    assert len([call for call in world.kube.calls if call[1] == "TokenReview"]) == 1
    world.clock.advance(61)
    await world.internal.get("/internal/v1/enrolments/none", headers={"X-Enrolment-Token": "t"})
    assert len([call for call in world.kube.calls if call[1] == "TokenReview"]) == 2


async def test_a_token_for_another_audience_is_refused(world: World) -> None:
    world.kube.on_create(
        "TokenReview",
        lambda obj: obj | {"status": {"authenticated": True, "user": {"username": "system:serviceaccount:ckp-system:ckp-hub"}, "audiences": ["api"]}},
    )
    answer = await world.enrol("x" * 20)
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "Unauthorized")


# Keys.


async def test_a_key_is_shown_once_and_only_its_hash_is_kept(world: World, tmp_path: Path) -> None:
    first = await world.call("GET", "/host-psk", expect=200)
    second = await world.call("GET", "/host-psk", expect=200)
    assert first["key"].startswith("ckphk_")
    assert second["key"] is None
    assert "reset" in second["message"]
    await world.database.close()
    assert first["key"].encode() not in b"".join(file.read_bytes() for file in tmp_path.iterdir())


async def test_a_reset_voids_the_old_key_at_once(world: World) -> None:
    old = await world.psk()
    new = await world.psk()
    assert (await world.enrol(old)).status_code == 401
    assert (await world.enrol(new)).status_code == 202


async def test_uses_of_a_key_are_counted(world: World) -> None:
    psk = await world.psk()
    await world.enrol(psk)
    assert (await world.call("GET", "/host-psk"))["useCount"] == 1
    await world.enrol("wrong" * 8)
    assert (await world.call("GET", "/host-psk"))["useCount"] == 1


async def test_a_key_of_another_project_does_not_fit(world: World) -> None:
    await world.project("default", "other")
    other = (await world.call("POST", "/api/v1/domains/default/projects/other/host-psk/reset"))["key"]
    await world.psk()
    assert (await world.enrol(other)).status_code == 401


async def test_guessing_is_held_back_per_source_and_forgiven_after_a_minute(world: World) -> None:
    psk = await world.psk()
    for _ in range(5):
        assert (await world.enrol("guess" * 8, source="10.0.0.9")).status_code == 401
    held = await world.enrol(psk, source="10.0.0.9")
    assert held.status_code == 429
    assert held.json()["error"]["code"] == "TooManyTries"
    assert (await world.enrol(psk, source="10.0.0.10")).status_code == 202
    world.clock.advance(60.1)
    assert (await world.enrol(psk, source="10.0.0.9")).status_code == 202


# Enrolment.


async def test_a_machine_that_lost_our_answer_gets_the_same_request_and_a_new_token(world: World) -> None:
    psk, csr = await world.psk(), make_csr()
    first, second = (await world.enrol(psk, csr=csr)).json(), (await world.enrol(psk, csr=csr)).json()
    assert first["request_id"] == second["request_id"]
    assert len((await world.call("GET", "/host-requests"))["items"]) == 1
    path = f"/internal/v1/enrolments/{first['request_id']}"
    assert (await world.internal.get(path, headers={"X-Enrolment-Token": first["token"]})).status_code == 404
    assert (await world.internal.get(path, headers={"X-Enrolment-Token": second["token"]})).json()["state"] == "pending"


async def host_with_certificate(world: World, serial: str = "a1", **how: Any) -> None:
    """worker-1, enrolled, with its certificate."""
    answer = await world.enrol(await world.psk(), **how)
    await world.call("POST", f"/host-requests/{answer.json()['request_id']}/approve", expect=200)
    await world.kube.merge(kinds.BYO_HOST, "worker-1", NAMESPACE, {"status": {"agent": {"certificateSerial": serial}}}, subresource="status")


async def asked_again(world: World, **how: Any) -> dict[str, Any]:
    """A request of a machine that looks like a host, as people see it."""
    answer = await world.enrol(await world.psk(), **how)
    assert answer.status_code == 202, answer.text
    return dict(await world.call("GET", f"/host-requests/{answer.json()['request_id']}", expect=200))


async def decide(world: World, request: dict[str, Any], duplicate: str, expect: int) -> Any:
    return await world.call("POST", f"/host-requests/{request['id']}/approve", json={"duplicate": duplicate}, expect=expect)


async def test_a_reinstalled_machine_waits_for_a_decision_and_takes_its_hosts_place(world: World) -> None:
    await host_with_certificate(world)
    request = await asked_again(world)  # the same machine-id, another key
    assert (request["state"], request["duplicateOf"], request["duplicateWhy"]) == ("pending", "worker-1", "machine-id")
    refused = await decide(world, request, "", 409)
    assert "same machine-id as host worker-1" in refused["error"]["message"]
    assert all(word in refused["error"]["resolution"] for word in ("replace", "separate", "reject"))
    before = (await world.kube.get(kinds.BYO_HOST, "worker-1", NAMESPACE) or {})["metadata"]["uid"]
    assert (await decide(world, request, "replace", 200))["host"] == "worker-1"
    host = await world.kube.get(kinds.BYO_HOST, "worker-1", NAMESPACE)
    assert host is not None and host["metadata"]["uid"] == before, "groups, cluster and name stay"
    assert host["spec"]["revokedSerial"] == "a1", "the old certificate is void at once"
    assert host["metadata"]["annotations"]["ckp.coredge.io/host-request"] == request["id"]
    states = {item["id"]: item["state"] for item in (await world.call("GET", "/host-requests"))["items"]}
    assert sorted(states.values()) == ["approved", "replaced"] and states[request["id"]] == "approved"
    assert (await decide(world, request, "replace", 200))["host"] == "worker-1", "and doing it again changes nothing"
    assert ((await world.kube.get(kinds.BYO_HOST, "worker-1", NAMESPACE)) or {})["spec"]["revokedSerial"] == "a1"


async def test_a_cloned_disk_becomes_a_host_of_its_own_if_people_say_so(world: World) -> None:
    await host_with_certificate(world)
    request = await asked_again(world)
    assert (await decide(world, request, "separate", 200))["host"] == "worker-1-2"
    assert "revokedSerial" not in ((await world.kube.get(kinds.BYO_HOST, "worker-1", NAMESPACE)) or {})["spec"]


async def test_two_machines_never_share_a_key(world: World) -> None:
    csr = make_csr()
    await host_with_certificate(world, csr=csr)
    request = await asked_again(world, csr=csr, machine_id=MACHINE_B)
    assert request["duplicateWhy"] == "key"
    assert "enrol --again" in (await decide(world, request, "separate", 409))["error"]["resolution"]
    assert (await decide(world, request, "replace", 200))["host"] == "worker-1", "the same machine with a new machine-id may have it"


async def test_a_machine_of_another_project_is_refused(world: World) -> None:
    await approve_one(world)
    other = await world.project("default", "other")
    psk = (await world.call("POST", f"{other}/host-psk/reset"))["key"]
    request = EnrolmentRequest(psk=psk, facts=facts(), csr=make_csr(), project="other")
    answer = await world.internal.post("/internal/v1/enrolments", json={"request": json.loads(request.model_dump_json()), "source": "10.88.0.21"})
    assert answer.status_code == 409
    assert "another project" in answer.json()["error"]["message"]


@pytest.mark.parametrize("broken", [("get", "ByoHost"), ("merge", "ByoHost")])
async def test_a_replacement_that_broke_off_is_finished_by_the_next(world: World, broken: tuple[str, str]) -> None:
    await host_with_certificate(world)
    request = await asked_again(world)
    world.kube.on_fault(lambda verb, kind, _: KubeError("away", code=0) if (verb, kind.kind) == broken else None)
    await decide(world, request, "replace", 503)
    world.kube.on_fault(None)
    assert (await decide(world, request, "", 200))["host"] == "worker-1", "it was decided already"
    assert ((await world.kube.get(kinds.BYO_HOST, "worker-1", NAMESPACE)) or {})["spec"]["revokedSerial"] == "a1"


# Keys that end, and rules.


async def test_an_expired_key_is_refused_and_only_its_holder_learns_why(world: World) -> None:
    made = await world.call("POST", "/host-psk/reset", json={"lifetimeSeconds": 3600}, expect=200)
    assert made["expiresAt"] == "2026-04-01T13:00:00Z"
    world.clock.advance(3599)
    assert (await world.enrol(made["key"])).status_code == 202
    world.clock.advance(1)
    late = await world.enrol(made["key"], machine_id=MACHINE_B)
    assert (late.status_code, "expired" in late.json()["error"]["message"]) == (401, True)
    assert "expired" not in (await world.enrol("x" * 20)).json()["error"]["message"]


async def test_a_key_is_for_so_many_machines_and_one_that_lost_our_answer_counts_once(world: World) -> None:
    made = await world.call("POST", "/host-psk/reset", json={"maxUses": 1}, expect=200)
    csr = make_csr()
    assert [(await world.enrol(made["key"], csr=csr)).status_code for _ in range(3)] == [202, 202, 202]
    second = await world.enrol(made["key"], machine_id=MACHINE_B)
    assert (second.status_code, "1 machines" in second.json()["error"]["message"]) == (401, True)
    assert (await world.call("GET", "/host-psk"))["useCount"] == 1


async def make_rule(world: World, expect: int = 201, **criteria: Any) -> Any:
    return await world.call("POST", "/host-approval-rules", json={"name": "lab", "criteria": criteria, "groups": ["workers"]}, expect=expect)


async def test_a_rule_approves_a_machine_at_once_and_puts_it_into_its_groups(world: World) -> None:
    await world.call("POST", "/host-groups", json={"name": "workers"}, expect=201)
    await make_rule(world, networks=["10.88.0.0/24"], systems=["debian-12"], minCpus=2)
    ticket = (await world.enrol(await world.psk())).json()
    outcome = await world.internal.get(f"/internal/v1/enrolments/{ticket['request_id']}", headers={"X-Enrolment-Token": ticket["token"]})
    assert outcome.json()["state"] == "approved"
    assert (await world.call("GET", "/host-groups/workers"))["hosts"] == ["worker-1"]
    assert (await world.call("GET", "/host-approval-rules"))["items"][0]["approved"] == 1
    assert ("host-request.approve", "rule:lab") in [(entry["action"], entry["actor"]) for entry in (await world.call("GET", "/audit"))["items"]]


async def test_a_machine_that_fits_no_rule_waits_and_a_newer_rule_finds_it_when_it_asks(world: World) -> None:
    await world.call("POST", "/host-groups", json={"name": "workers"}, expect=201)
    await make_rule(world, hostnames=["db-*"])
    ticket = (await world.enrol(await world.psk())).json()
    path, token = f"/internal/v1/enrolments/{ticket['request_id']}", {"X-Enrolment-Token": ticket["token"]}
    assert (await world.internal.get(path, headers=token)).json()["state"] == "pending"
    await world.call("DELETE", "/host-approval-rules/lab", expect=204)
    await make_rule(world, hostnames=["worker-?"])
    assert (await world.internal.get(path, headers=token)).json()["state"] == "approved"


async def test_no_rule_decides_about_a_machine_that_looks_like_a_host(world: World) -> None:
    await host_with_certificate(world)
    await world.call("POST", "/host-groups", json={"name": "workers"}, expect=201)
    await make_rule(world, hostnames=["*"])
    assert (await asked_again(world))["state"] == "pending"


async def test_a_rule_that_could_not_approve_is_followed_when_the_machine_asks(world: World) -> None:
    await world.call("POST", "/host-groups", json={"name": "workers"}, expect=201)
    await make_rule(world, hostnames=["*"])
    world.kube.on_fault(lambda verb, kind, _: KubeError("away", code=0) if (verb, kind.kind) == ("create", "ByoHost") else None)
    ticket = (await world.enrol(await world.psk())).json()
    world.kube.on_fault(None)
    outcome = await world.internal.get(f"/internal/v1/enrolments/{ticket['request_id']}", headers={"X-Enrolment-Token": ticket["token"]})
    assert outcome.json()["state"] == "approved"


@pytest.mark.parametrize(("criteria", "words"), [({}, "asks for nothing"), ({"networks": ["10.88.0.1/24"]}, "networks"), ({"hostname": ["x"]}, "hostname")])
async def test_a_rule_that_makes_no_sense_is_refused(world: World, criteria: dict[str, Any], words: str) -> None:
    await world.call("POST", "/host-groups", json={"name": "workers"}, expect=201)
    assert words in (await make_rule(world, 422, **criteria))["error"]["message"]
    assert (await world.call("GET", "/host-approval-rules"))["items"] == []


# Operations on hosts.


async def test_a_host_is_labelled_and_not_with_others_labels(world: World) -> None:
    await world.add_host("one", group="workers")
    changed = await world.call("PATCH", "/hosts/one", json={"labels": {"rack": "r7", "example.org/disk": "ssd"}}, expect=200)
    assert changed["labels"]["rack"] == "r7" and changed["groups"] == ["workers"]
    assert "rack" not in (await world.call("PATCH", "/hosts/one", json={"labels": {"rack": None}}, expect=200))["labels"]
    for label in (names.group_label("other"), "cluster.x-k8s.io/cluster-name", "kubernetes.io/hostname", "ckp.coredge.io/domain", "no good", "a=b"):
        await world.call("PATCH", "/hosts/one", json={"labels": {label: "x"}}, expect=422)


async def test_taints_are_set_as_a_whole_and_checked(world: World) -> None:
    await world.add_host("one")
    assert (await world.call("PATCH", "/hosts/one", json={"taints": ["dedicated=db:NoSchedule", "gpu:NoExecute"]}, expect=200))["taints"] == [
        "dedicated=db:NoSchedule",
        "gpu:NoExecute",
    ]
    for bad in ("dedicated=db", "dedicated=db:Sometimes", "a=b:c:NoSchedule", "=x:NoSchedule", "a=b c:NoSchedule"):
        await world.call("PATCH", "/hosts/one", json={"taints": [bad]}, expect=422)
    assert (await world.call("PATCH", "/hosts/one", json={"taints": []}, expect=200))["taints"] == []


async def test_a_cordoned_host_is_not_free_and_an_uncordoned_one_is(world: World) -> None:
    await world.add_host("one")
    assert (await world.call("PATCH", "/hosts/one", json={"cordoned": True}, expect=200))["free"] is False
    assert (await world.call("PATCH", "/hosts/one", json={"cordoned": False}, expect=200))["free"] is True


async def test_a_certificate_is_revoked_and_the_host_stays(world: World) -> None:
    await host_with_certificate(world)
    await world.call("POST", "/hosts/worker-1/revoke", expect=200)
    host = await world.kube.get(kinds.BYO_HOST, "worker-1", NAMESPACE)
    assert host is not None and host["spec"]["revokedSerial"] == "a1"
    await world.add_host("bare")
    await world.call("POST", "/hosts/bare/revoke", expect=409)


async def member(world: World) -> None:
    """A host that a cluster's machine holds, with its objects."""
    await world.add_host("one", claimed="byo-1", phase="Joined")
    labels = {"cluster.x-k8s.io/deployment-name": "demo-workers"}
    for kind, name, spec in (
        (kinds.BYO_MACHINE, "byo-1", {}),
        (kinds.MACHINE_DEPLOYMENT, "demo-workers", {"replicas": 3}),
        (kinds.MACHINE, "demo-1", {"infrastructureRef": {"kind": "ByoMachine", "name": "byo-1"}}),
    ):
        body = {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": {"name": name, "namespace": NAMESPACE, "labels": labels}, "spec": spec}
        await world.kube.create(body)


async def test_a_host_leaves_its_cluster_which_stays_at_its_size(world: World) -> None:
    await member(world)
    left = await world.call("POST", "/hosts/one/leave", expect=202)
    assert left["cordoned"] is True, "else it would be claimed again at once"
    assert await world.kube.get(kinds.MACHINE, "demo-1", NAMESPACE) is None
    deployment = await world.kube.get(kinds.MACHINE_DEPLOYMENT, "demo-workers", NAMESPACE)
    assert deployment is not None and deployment["spec"]["replicas"] == 3


async def test_a_cluster_shrinks_by_this_host_and_once_however_often_it_is_asked(world: World) -> None:
    await member(world)
    for _ in range(2):
        await world.call("POST", "/hosts/one/leave", json={"shrink": True}, expect=202)
    deployment, machine = [await world.kube.get(*what, NAMESPACE) for what in ((kinds.MACHINE_DEPLOYMENT, "demo-workers"), (kinds.MACHINE, "demo-1"))]
    assert deployment is not None and deployment["spec"]["replicas"] == 2
    assert machine is not None and machine["metadata"]["annotations"]["cluster.x-k8s.io/delete-machine"] == "true", "Cluster API takes this one first"


async def test_an_unreachable_host_is_forced_away(world: World) -> None:
    await member(world)
    await world.kube.merge(kinds.MACHINE, "demo-1", NAMESPACE, {"metadata": {"finalizers": ["machine.cluster.x-k8s.io"]}})
    await world.call("POST", "/hosts/one/leave", json={"force": True}, expect=202)
    machine = await world.kube.get(kinds.MACHINE, "demo-1", NAMESPACE)
    assert machine is not None and names.FORCED.items() <= machine["metadata"]["annotations"].items(), "neither its pods nor its volumes are waited for"
    byo = await world.kube.get(kinds.BYO_MACHINE, "byo-1", NAMESPACE)
    assert byo is not None and byo["metadata"]["annotations"][names.FORCE_RELEASE_ANNOTATION] == "true"


async def test_a_member_is_drained_and_a_free_host_is_not(world: World) -> None:
    await member(world)
    await world.call("PATCH", "/hosts/one", json={"drained": True}, expect=200)
    host = await world.kube.get(kinds.BYO_HOST, "one", NAMESPACE)
    assert host is not None and host["spec"]["drain"] == "2026-04-01T12:00:00Z"
    await world.call("PATCH", "/hosts/one", json={"drained": False}, expect=200)
    host = await world.kube.get(kinds.BYO_HOST, "one", NAMESPACE)
    assert host is not None and "drain" not in host["spec"]
    await world.add_host("two")
    await world.call("PATCH", "/hosts/two", json={"drained": True}, expect=409)


async def test_a_free_host_has_no_cluster_to_leave(world: World) -> None:
    await world.add_host("one")
    assert "in no cluster" in (await world.call("POST", "/hosts/one/leave", expect=409))["error"]["message"]


async def test_of_two_waiting_requests_for_one_machine_only_one_is_approved(world: World) -> None:
    psk = await world.psk()
    first, second = [(await world.enrol(psk)).json()["request_id"] for _ in range(2)]
    await world.call("POST", f"/host-requests/{first}/approve", expect=200)
    refused = await world.call("POST", f"/host-requests/{second}/approve", expect=409)
    assert "host already" in refused["error"]["message"]
    assert len(await world.kube.list(kinds.BYO_HOST, NAMESPACE)) == 1


@pytest.mark.parametrize("csr", ["nonsense", "", "weak", "forged"])
async def test_a_signing_request_that_is_no_good_is_refused(world: World, csr: str) -> None:
    if csr == "weak":
        csr = make_csr(ec.generate_private_key(ec.SECP192R1()))
    elif csr == "forged":
        good, other = make_csr().splitlines(), make_csr().splitlines()
        csr = "\n".join([*good[:-2], other[-2], good[-1]])
    answer = await world.enrol(await world.psk(), csr=csr or "-----BEGIN CERTIFICATE REQUEST-----\n-----END CERTIFICATE REQUEST-----\n")
    assert answer.status_code == 422
    assert "csr" in answer.json()["error"]["message"]
    assert (await world.call("GET", "/host-requests"))["items"] == []


async def test_an_outcome_needs_the_token_of_the_request(world: World) -> None:
    psk = await world.psk()
    ticket = (await world.enrol(psk)).json()
    other = (await world.enrol(psk, machine_id=MACHINE_B)).json()
    path = f"/internal/v1/enrolments/{ticket['request_id']}"
    assert (await world.internal.get(path, headers={"X-Enrolment-Token": other["token"]})).status_code == 404
    assert (await world.internal.get(path)).status_code == 422
    good = await world.internal.get(path, headers={"X-Enrolment-Token": ticket["token"]})
    assert good.json() == {"state": "pending", "reason": "", "namespace": "", "host": "", "csr": "", "certificate": ""}


async def test_the_first_certificate_stays(world: World) -> None:
    ticket = (await world.enrol(await world.psk())).json()
    path, token = f"/internal/v1/enrolments/{ticket['request_id']}/certificate", {"X-Enrolment-Token": ticket["token"]}
    assert (await world.internal.put(path, headers=token, json={"certificate": "early"})).status_code == 409
    await world.call("POST", f"/host-requests/{ticket['request_id']}/approve", expect=200)
    assert (await world.internal.put(path, headers=token, json={"certificate": "first"})).json() == {"certificate": "first"}
    assert (await world.internal.put(path, headers=token, json={"certificate": "second"})).json() == {"certificate": "first"}


async def test_a_body_that_is_too_large_is_refused_before_it_is_read(world: World) -> None:
    answer = await world.internal.post("/internal/v1/enrolments", content=b"x" * 70_000)
    assert answer.status_code == 413

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(70):
            yield b"x" * 1000

    assert (await world.internal.post("/internal/v1/enrolments", content=chunks())).status_code == 413


# Decisions.


async def test_approval_makes_the_host_with_its_labels_in_the_projects_namespace(world: World) -> None:
    await approve_one(world, hostname="Node_7.example.org")
    host = await world.kube.get(kinds.BYO_HOST, "node-7", NAMESPACE)
    assert host is not None
    assert host["metadata"]["labels"][names.PROJECT_LABEL] == "default"
    namespace = await world.kube.get(kinds.NAMESPACE, NAMESPACE)
    assert namespace is not None
    assert namespace["metadata"]["labels"] == {names.DOMAIN_LABEL: "default", names.PROJECT_LABEL: "default"}


async def test_machines_of_one_name_become_hosts_of_different_names(world: World) -> None:
    psk = await world.psk()
    ids = [(await world.enrol(psk, machine_id=f"{number:032x}")).json()["request_id"] for number in range(4)]
    await asyncio.gather(*(world.call("POST", f"/host-requests/{request_id}/approve", expect=200) for request_id in ids))
    hosts = [host["metadata"]["name"] for host in await world.kube.list(kinds.BYO_HOST, NAMESPACE)]
    assert sorted(hosts) == ["worker-1", "worker-1-2", "worker-1-3", "worker-1-4"]


@pytest.mark.parametrize("broken", [("create", "ByoHost"), ("apply", "Namespace"), ("list", "ByoHost")])
async def test_an_approval_that_broke_off_is_finished_by_the_next(world: World, broken: tuple[str, str]) -> None:
    request_id = (await world.enrol(await world.psk())).json()["request_id"]
    world.kube.on_fault(lambda verb, kind, _: KubeError("down", code=0) if (verb, kind.kind) == broken else None)
    refused = await world.call("POST", f"/host-requests/{request_id}/approve", expect=503)
    assert refused["error"]["code"] == "Unavailable"
    assert (await world.call("GET", f"/host-requests/{request_id}"))["state"] == "pending"
    world.kube.on_fault(None)
    for _ in range(2):  # and once more changes nothing
        assert (await world.call("POST", f"/host-requests/{request_id}/approve", expect=200))["host"] == "worker-1"
    assert len(await world.kube.list(kinds.BYO_HOST, NAMESPACE)) == 1


async def test_an_approval_that_died_after_making_the_host_is_finished_by_the_next(world: World) -> None:
    request_id = await approve_one(world)
    async with world.database.unit() as unit:  # as if the last transaction had never been
        await unit.session.execute(text("update host_requests set state = 'pending', decided_at = null"))
    assert (await world.call("POST", f"/host-requests/{request_id}/approve", expect=200))["state"] == "approved"
    assert len(await world.kube.list(kinds.BYO_HOST, NAMESPACE)) == 1


async def test_a_rejected_machine_is_told_why_and_an_approved_one_cannot_be_rejected(world: World) -> None:
    psk = await world.psk()
    ticket = (await world.enrol(psk)).json()
    await world.call("POST", f"/host-requests/{ticket['request_id']}/reject", json={"reason": "not ours"}, expect=200)
    outcome = await world.internal.get(f"/internal/v1/enrolments/{ticket['request_id']}", headers={"X-Enrolment-Token": ticket["token"]})
    assert (outcome.json()["state"], outcome.json()["reason"], outcome.json()["csr"]) == ("rejected", "not ours", "")
    await world.call("POST", f"/host-requests/{ticket['request_id']}/approve", expect=200)
    await world.call("POST", f"/host-requests/{ticket['request_id']}/reject", json={"reason": "no"}, expect=409)


async def test_bulk_decides_each_by_itself(world: World) -> None:
    psk = await world.psk()
    ids = [(await world.enrol(psk, machine_id=f"{number:032x}")).json()["request_id"] for number in range(2)]
    answer = await world.call("POST", "/host-requests/bulk", json={"ids": [*ids, "unknown"], "action": "approve"}, expect=200)
    assert answer["ok"] is False
    assert [answer["results"][request_id]["state"] for request_id in ids] == ["approved", "approved"]
    assert answer["results"]["unknown"]["error"]["code"] == "NotFound"


async def test_a_project_sees_only_its_own_requests(world: World) -> None:
    request_id = (await world.enrol(await world.psk())).json()["request_id"]
    other = await world.project("default", "other") + "/host-requests"
    assert (await world.call("GET", other, expect=200))["items"] == []
    await world.call("GET", f"{other}/{request_id}", expect=404)
    await world.call("POST", f"{other}/{request_id}/approve", expect=404)


async def test_two_projects_never_share_a_namespace(world: World) -> None:
    refused = await world.call("GET", "/api/v1/domains/a-b/projects/c/hosts", expect=422)
    assert refused["error"]["message"].startswith("domain:")


# Hosts.


async def test_a_claimed_host_is_deleted_only_by_force(world: World) -> None:
    await world.add_host("busy", claimed="demo-workers-x")
    refused = await world.call("DELETE", "/hosts/busy", expect=409)
    assert "demo-workers-x" in refused["error"]["message"]
    assert await world.kube.get(kinds.BYO_HOST, "busy", NAMESPACE)
    await world.call("DELETE", "/hosts/busy?force=true", expect=204)
    assert await world.kube.get(kinds.BYO_HOST, "busy", NAMESPACE) is None


async def test_a_machine_whose_host_was_deleted_may_enrol_again(world: World) -> None:
    await approve_one(world)
    await world.call("DELETE", "/hosts/worker-1", expect=204)
    assert (await world.enrol(await world.psk())).status_code == 202
    assert [row["state"] for row in (await world.call("GET", "/host-requests"))["items"]] == ["pending"]


async def test_hosts_are_shown_with_what_the_agent_reported(world: World) -> None:
    await world.add_host("one", group="workers")
    await world.add_host("two", connected=False)
    await world.add_host("three", cordoned=True)
    items = (await world.call("GET", "/hosts"))["items"]
    assert [(host["name"], host["state"], host["free"]) for host in items] == [("one", "Free", True), ("three", "Cordoned", False), ("two", "Offline", False)]
    assert items[0]["groups"] == ["workers"]
    assert items[0]["lastSeen"] == "2026-04-01T12:00:00Z"
    assert [host["name"] for host in (await world.call("GET", "/hosts?group=workers"))["items"]] == ["one"]
    await world.call("GET", "/hosts/none", expect=404)


@pytest.mark.parametrize("reported", [{"mend": "swapoff -a"}, {"remediation": "swapoff -a"}, {"mend": "swapoff -a", "remediation": "swapoff -a"}])
async def test_a_preflight_finding_shows_its_remediation_under_both_names(world: World, reported: dict[str, str]) -> None:
    """Agents before the rename report `mend`; readers before it look for `mend`."""
    await world.add_host("one")
    seen = json.loads(facts().model_dump_json()) | {"findings": [{"problem": "swap is on", "blocking": True, **reported}]}
    await world.kube.merge(kinds.BYO_HOST, "one", NAMESPACE, {"status": {"facts": seen}}, subresource="status")
    shown = await world.call("GET", "/hosts/one", expect=200)
    assert shown["facts"]["findings"] == [{"problem": "swap is on", "blocking": True, "mend": "swapoff -a", "remediation": "swapoff -a"}]
    assert shown["facts"]["machine_id"] == MACHINE_A


async def test_what_one_host_reports_oddly_does_not_hide_the_others(world: World) -> None:
    await world.add_host("one")
    await world.add_host("two")
    status = {"facts": {"cpus": 2, "hostname": 7}, "journal": [{"at": 5}, {"at": "t", "step": "pull", "outcome": "done"}]}
    await world.kube.merge(kinds.BYO_HOST, "one", NAMESPACE, {"status": status}, subresource="status")
    one, two = (await world.call("GET", "/hosts", expect=200))["items"]
    assert (one["facts"], two["facts"]) == ({}, {})
    assert [entry["step"] for entry in one["journal"]] == ["pull"]


# Groups.


@pytest.mark.parametrize(
    ("claimed", "phase", "expected"),
    [
        ("", "Free", ""),
        ("m", "Free", "Create Pending"),
        ("m", "Installing", "Create Pending"),
        ("m", "Joined", "Create Completed"),
        ("m", "Failed", "Create Failed"),
    ],
)
async def test_a_hosts_creation_has_one_of_three_states(world: World, claimed: str, phase: str, expected: str) -> None:
    await world.add_host("one", claimed=claimed, phase=phase)
    assert (await world.call("GET", "/hosts/one", expect=200))["creation"] == expected


async def test_membership_is_a_label_of_the_host(world: World) -> None:
    await world.call("POST", "/host-groups", json={"name": "workers"}, expect=201)
    await world.add_host("one")
    await world.add_host("two")
    group = await world.call("POST", "/host-groups/workers/members", json={"hosts": ["one", "two"]}, expect=200)
    assert group["hosts"] == ["one", "two"]
    assert group["free"] == 2
    host = await world.kube.get(kinds.BYO_HOST, "one", NAMESPACE)
    assert host is not None
    assert host["metadata"]["labels"][names.group_label("workers")] == ""
    await world.call("DELETE", "/host-groups/workers/members/one", expect=200)
    assert (await world.call("GET", "/host-groups/workers"))["hosts"] == ["two"]
    await world.call("PUT", "/host-groups/workers/members/one", expect=200)
    await world.call("POST", "/host-groups/workers/members/remove", json={"hosts": ["one", "two"]}, expect=200)
    assert (await world.call("GET", "/host-groups/workers"))["hosts"] == []


async def test_a_bulk_change_with_an_unknown_host_changes_nothing(world: World) -> None:
    await world.call("POST", "/host-groups", json={"name": "workers"}, expect=201)
    await world.add_host("one")
    refused = await world.call("POST", "/host-groups/workers/members", json={"hosts": ["one", "ghost"]}, expect=404)
    assert "ghost" in refused["error"]["message"]
    assert (await world.call("GET", "/host-groups/workers"))["hosts"] == []


async def test_a_group_in_use_by_a_cluster_is_not_deleted(world: World) -> None:
    from tests.worlds.compass import cluster_body

    await world.group_with_hosts()
    await world.call("POST", "/clusters", json=cluster_body(), expect=201)
    refused = await world.call("DELETE", "/host-groups/workers", expect=409)
    assert "demo" in refused["error"]["message"]


async def test_deleting_a_group_takes_its_label_off_the_hosts(world: World) -> None:
    await world.group_with_hosts()
    await world.call("DELETE", "/host-groups/workers", expect=204)
    for host in await world.kube.list(kinds.BYO_HOST, NAMESPACE):
        assert names.group_label("workers") not in (host["metadata"].get("labels") or {})
    await world.call("GET", "/host-groups/workers", expect=404)


@pytest.mark.parametrize("name", ["", "Upper", "a" * 64, "-x", "a/b", "a.b"])
async def test_a_bad_group_name_names_the_field(world: World, name: str) -> None:
    refused = await world.call("POST", "/host-groups", json={"name": name}, expect=422)
    assert refused["error"]["message"].startswith("name:")


# Errors and the audit log.


@pytest.mark.parametrize(
    ("content", "status", "message"),
    [
        (b"{", 400, "the body is not valid JSON"),
        (b"{}", 422, "name: is missing"),
        (b'{"name": "a", "colour": "red"}', 422, "colour: is not a known field"),
        (b'{"name": 5}', 422, "name: input should be a valid string"),
    ],
)
async def test_a_bad_body_gets_a_sentence_that_names_the_field(world: World, content: bytes, status: int, message: str) -> None:
    answer = await world.call("POST", "/host-groups", content=content, headers={"content-type": "application/json"}, expect=status)
    assert answer["error"]["message"] == message


async def test_unknown_paths_and_methods_get_the_same_error_shape(world: World) -> None:
    assert (await world.call("GET", "/nothing", expect=404))["error"]["code"] == "NotFound"
    assert (await world.call("PUT", "/hosts", expect=405))["error"]["code"] == "MethodNotAllowed"


async def test_every_change_is_in_the_audit_log_and_no_secret_is(world: World, tmp_path: Path) -> None:
    psk = await world.psk()
    request_id = (await world.enrol(psk)).json()["request_id"]
    await world.call("POST", f"/host-requests/{request_id}/approve")
    await world.call("POST", "/host-groups", json={"name": "workers"})
    await world.call("POST", "/host-groups/workers/members", json={"hosts": ["worker-1"]})
    await world.call("DELETE", "/hosts/worker-1", expect=204)
    entries = (await world.call("GET", "/audit"))["items"]
    assert [(entry["action"], entry["actor"]) for entry in reversed(entries)] == [
        ("host-psk.reset", "admin"),
        ("host-request.approve", "admin"),
        ("host-group.create", "admin"),
        ("host-group.add", "admin"),
        ("host.delete", "admin"),
    ]
    assert psk not in json.dumps(entries)
    assert HUB not in json.dumps(entries)


async def test_the_audit_log_names_the_credential_of_each_actor(world: World) -> None:
    await world.call("POST", "/host-groups", json={"name": "workers"}, expect=201)
    await make_rule(world, hostnames=["*"])
    ticket = (await world.enrol(await world.psk())).json()
    path, token = f"/internal/v1/enrolments/{ticket['request_id']}/certificate", {"X-Enrolment-Token": ticket["token"]}
    await world.internal.put(path, headers=token, json={"certificate": "first"})
    found = {(entry["action"], entry["actor"], entry["credential"]) for entry in (await world.call("GET", "/audit"))["items"]}
    assert found == {
        ("host-group.create", "admin", "admin-token"),
        ("approval-rule.create", "admin", "admin-token"),
        ("host-psk.reset", "admin", "admin-token"),
        ("host-request.approve", "rule:lab", "approval-rule"),
        ("host.certificate", "hub", "service-account"),
    }


async def test_every_operation_is_described_and_tells_the_shape_of_its_errors(world: World) -> None:
    document = await world.call("GET", "/api/v1/openapi.json", expect=200)
    operations = [(path, method, item) for path, methods in document["paths"].items() for method, item in methods.items()]
    assert len(operations) > 30
    for path, method, item in operations:
        assert item.get("description"), f"{method} {path}"
        assert item["responses"]["default"]["content"]["application/json"]["schema"]["$ref"].endswith("/ErrorBody"), f"{method} {path}"
    assert all(schema.get("description") for name, schema in document["components"]["schemas"].items() if not name.startswith("Items"))


async def test_a_management_cluster_that_is_away_is_an_answer_of_each_of_many_decisions(world: World) -> None:
    request_id = (await world.enrol(await world.psk())).json()["request_id"]
    world.kube.on_fault(lambda verb, kind, _: KubeError("away", code=0) if kind.kind == "ByoHost" else None)
    answer = await world.call("POST", "/host-requests/bulk", json={"ids": [request_id], "action": "approve"}, expect=200)
    error = answer["results"][request_id]["error"]
    assert (answer["ok"], error["code"]) == (False, "Unavailable")
    assert "try again" in error["resolution"]


async def test_what_compass_knows_survives_its_death(tmp_path: Path, place: Place) -> None:
    kube = KubeSimulator(manager="ckp-compass")
    async with make_world(tmp_path, kube, place=place) as world:
        psk = await world.psk()
        ticket = (await world.enrol(psk)).json()
        await world.call("POST", "/host-groups", json={"name": "workers"})
    async with make_world(tmp_path, kube, place=place) as world:
        assert (await world.enrol(psk, machine_id=MACHINE_B)).status_code == 202
        assert (await world.call("GET", f"/host-requests/{ticket['request_id']}"))["state"] == "pending"
        assert [group["name"] for group in (await world.call("GET", "/host-groups"))["items"]] == ["workers"]


async def test_many_writers_at_once_all_get_through(world: World) -> None:
    psk = await world.psk()
    answers = await asyncio.gather(*(world.enrol(psk, machine_id=f"{number:032x}") for number in range(40)))
    assert {answer.status_code for answer in answers} == {202}
    assert (await world.call("GET", "/host-psk"))["useCount"] == 40


# Hostile and mistaken input.


async def test_facts_that_are_too_large_are_refused(world: World) -> None:
    request = EnrolmentRequest(psk=await world.psk(), facts=facts(links=[{"name": "x" * 10}] * 500), csr=make_csr())
    answer = await world.internal.post("/internal/v1/enrolments", json={"request": json.loads(request.model_dump_json()), "source": "10.88.0.21"})
    assert answer.status_code == 422 and f"larger than {MAX_FACTS_BYTES} bytes" in answer.json()["error"]["message"]
    assert (await world.call("GET", "/host-requests"))["items"] == []


async def test_requests_are_listed_in_parts_and_those_that_wait_come_first(world: World) -> None:
    psk = await world.psk()
    for number in range(4):
        answer = await world.enrol(psk, hostname=f"m{number}", machine_id=f"{number}" * 32)
        if number < 2:
            await world.call("POST", f"/host-requests/{answer.json()['request_id']}/reject", json={"reason": "no"}, expect=200)
    first = (await world.call("GET", "/host-requests?limit=3"))["items"]
    assert [item["state"] for item in first] == ["pending", "pending", "rejected"]
    assert [item["state"] for item in (await world.call("GET", "/host-requests?limit=3&offset=3"))["items"]] == ["rejected"]
    await world.call("GET", "/host-requests?limit=501", expect=422)


async def test_a_revocation_is_of_the_certificate_that_is_in_use_when_it_is_written(world: World) -> None:
    await host_with_certificate(world)
    once: list[str] = []

    def renewed(verb: str, kind: kinds.Kind, name: str) -> None:
        if (verb, kind) == ("merge", kinds.BYO_HOST) and not once:
            once.append(name)
            host = world.kube.stored(kinds.BYO_HOST, name, NAMESPACE)
            host["metadata"]["resourceVersion"] += "1"
            host["status"]["agent"]["certificateSerial"] = "b2"

    world.kube.on_fault(renewed)
    await world.call("POST", "/hosts/worker-1/revoke", expect=200)
    host = await world.kube.get(kinds.BYO_HOST, "worker-1", NAMESPACE)
    assert once and host is not None and host["spec"]["revokedSerial"] == "b2"


async def test_a_group_that_a_rule_puts_hosts_into_is_not_deleted(world: World) -> None:
    await world.group_with_hosts()
    await make_rule(world, hostnames=["*"])
    refused = await world.call("DELETE", "/host-groups/workers", expect=409)
    assert "rule" in refused["error"]["message"]
    assert len((await world.call("GET", "/host-groups/workers"))["hosts"]) == 2, "and nothing was changed"


@pytest.mark.parametrize("key", ["a..b/x", ".a/x", "a./x", "-a/x", "a/" + "x" * 64, "x" * 254 + "/a"])
async def test_invalid_label_keys_are_rejected(world: World, key: str) -> None:
    await world.add_host("one")
    await world.call("PATCH", "/hosts/one", json={"labels": {key: "1"}}, expect=422)
    await world.call("PATCH", "/hosts/one", json={"taints": [f"{key}=:NoSchedule"]}, expect=422)


@pytest.mark.parametrize("name", ["%3F", "h%3FdryRun=All", "%2e%2e", "a%2Fb", "A", "x" * 300])  # `..` is for the client: it asks for the project then
async def test_a_name_in_the_path_never_becomes_another_path_of_the_api_server(world: World, name: str) -> None:
    await world.add_host("one")
    for method in ("GET", "DELETE"):
        answer = await world.rest.request(method, f"{BASE}/hosts/{name}")
        assert answer.status_code in (404, 405, 307), answer.text
    assert len(await world.kube.list(kinds.BYO_HOST, NAMESPACE)) == 1


@pytest.mark.parametrize("group", ["a%20b", "-x", "a,b", "A"])
async def test_an_invalid_group_name_is_never_a_selector(world: World, group: str) -> None:
    await world.add_host("one")
    assert (await world.call("GET", f"/hosts?group={group}", expect=422))["error"]["message"].startswith("group:")


@pytest.mark.parametrize(("code", "status"), [(404, 404), (422, 422), (400, 422), (409, 409), (0, 503)])
async def test_a_refusal_of_the_api_server_gets_the_fitting_status(world: World, code: int, status: int) -> None:
    await world.add_host("one")
    world.kube.on_fault(lambda verb, *_: KubeError("no", code=code) if verb == "merge" else None)
    await world.call("PATCH", "/hosts/one", json={"labels": {"rack": "r7"}}, expect=status)


async def test_a_deletion_that_broke_off_is_finished_by_the_next(world: World) -> None:
    """Also where the object was deleted by kubectl: the request that is left would keep the machine from enrolling again."""
    await approve_one(world)
    await world.kube.delete(kinds.BYO_HOST, "worker-1", NAMESPACE)
    await world.call("DELETE", "/hosts/worker-1", expect=204)
    assert (await world.call("GET", "/host-requests"))["items"] == []
    await world.call("DELETE", "/hosts/worker-1", expect=404)


@pytest.mark.parametrize(
    "status", [{"facts": {"cpus": "many"}}, {"facts": "x"}, {"facts": {"findings": {"a": 1}}}, {"journal": ["abc"]}, {"journal": "abc"}], ids=str
)
async def test_a_host_with_unreadable_facts_or_journal_does_not_hide_the_others(world: World, status: dict[str, Any]) -> None:
    for name in ("worker-1", "worker-2"):
        await world.add_host(name)
    await world.kube.merge(kinds.BYO_HOST, "worker-1", NAMESPACE, {"status": status}, subresource="status")
    assert [item["name"] for item in (await world.call("GET", "/hosts", expect=200))["items"]] == ["worker-1", "worker-2"]


@pytest.mark.parametrize(
    ("hostname", "name"),
    [
        ("worker-1", "worker-1"),
        ("worker-3.site.example", "worker-3"),
        ("WORKER_1", "worker-1"),
        ("Büro-1", "b-ro-1"),
        ("x" * 64, "x" * 50),
        ("a" * 49 + "-bc", "a" * 49),
        ("007", "007"),
        ("10.1.2.3", "host-10-1-2-3"),
        ("localhost", "host"),
        ("localhost.localdomain", "host"),
        ("(none)", "host"),
        ("-", "host"),
        ("", "host"),
    ],
)
def test_a_host_gets_a_name_that_a_node_may_have(hostname: str, name: str) -> None:
    assert host_name_from(hostname) == name
    assert re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", f"{name}-10000"), "with the number that a namesake gets as well"
