"""Service accounts and their tokens; domains and projects; the audit log."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from sqlalchemy import text

from ckp.api import kinds
from ckp.api.compass.features import FEATURES, action_of
from ckp.compass.identity import ProjectRef
from ckp.rules.roles import CHANGING
from tests.worlds.compass import World
from tests.worlds.people import PASSWORD, Person, bindings, make_user, person

WEB = "/domains/acme/projects/web"


async def issue(by: Person, name: str = "ci", **body: Any) -> dict[str, Any]:
    made: dict[str, Any] = await by.call("POST", f"{WEB}/service-accounts/{name}/tokens", json=body, expect=201)
    return made


async def test_a_token_is_shown_once_acts_with_its_account_s_roles_and_is_void_at_once_when_it_is_revoked(tenants: World) -> None:
    async with person(tenants, "pat@acme") as pat:
        await pat.call("POST", f"{WEB}/service-accounts", json={"name": "ci", "description": "builds"}, expect=201)
        made = await issue(pat, description="for the pipeline")
        raw = made["token"]
        assert raw.startswith("ckpsa_") and made["token"] not in str(await pat.call("GET", f"{WEB}/service-accounts/ci/tokens", expect=200))
        async with tenants.database.reading() as unit:
            [row] = (await unit.session.execute(text("select * from api_tokens"))).mappings().all()
        assert row["digest"] == hashlib.sha256(raw.encode()).hexdigest() and raw not in str(dict(row))
        async with person(tenants, "acme/web/ci", raw) as ci:
            await ci.call("GET", f"{WEB}/clusters", expect=404)
            await pat.call("POST", f"{WEB}/role-bindings", json={"role": "user", "serviceAccount": "acme/web/ci"}, expect=201)
            await ci.call("GET", f"{WEB}/clusters", expect=200)
            assert (await ci.call("GET", "/me", expect=200))["name"] == "acme/web/ci"
            await ci.call("POST", f"{WEB}/host-groups", json={"name": "g"}, expect=403)
            await ci.call("POST", "/me/password", json={"current": PASSWORD, "password": PASSWORD}, expect=409)
            await pat.call("DELETE", f"{WEB}/service-accounts/ci/tokens/{made['id']}", expect=204)
            await ci.call("GET", "/me", expect=401)


async def test_a_token_ends_by_itself_and_with_its_account(tenants: World) -> None:
    async with person(tenants, "pat@acme") as pat:
        await pat.call("POST", f"{WEB}/service-accounts", json={"name": "ci"}, expect=201)
        short, long = (await issue(pat, lifetimeSeconds=60))["token"], (await issue(pat))["token"]
        async with person(tenants, "ci", short) as first, person(tenants, "ci", long) as second:
            await first.call("GET", "/me", expect=200)
            tenants.clock.advance(61)
            await first.call("GET", "/me", expect=401)
            await second.call("GET", "/me", expect=200)
            assert (await pat.call("GET", f"{WEB}/service-accounts", expect=200))["items"][0]["tokens"] == 1
            await pat.call("DELETE", f"{WEB}/service-accounts/ci", expect=204)
            await second.call("GET", "/me", expect=401)
        await pat.call("POST", f"{WEB}/service-accounts/ci/tokens", json={"lifetimeSeconds": 400 * 86400}, expect=422)


async def test_who_administers_a_project_makes_no_token_of_an_account_that_is_more(tenants: World) -> None:
    async with person(tenants, "pat@acme") as pat, person(tenants, "ann@acme") as ann:
        await pat.call("POST", f"{WEB}/service-accounts", json={"name": "ci"}, expect=201)
        await ann.call("POST", "/domains/acme/role-bindings", json={"role": "auditor", "serviceAccount": "acme/web/ci"}, expect=201)
        await pat.call("POST", f"{WEB}/service-accounts/ci/tokens", expect=403)
        await issue(ann)


async def test_lists_have_what_the_caller_may_see_and_nothing_else(tenants: World) -> None:
    expected = {
        "ann@acme": (["acme"], ["acme/shop", "acme/web"]),
        "pat@acme": (["acme"], ["acme/web"]),
        "uma@acme": (["acme"], ["acme/web"]),
        "olga@other": (["other"], ["other/web"]),
    }
    for name, (domains, projects) in expected.items():
        async with person(tenants, name) as somebody:
            assert [one["name"] for one in (await somebody.call("GET", "/domains", expect=200))["items"]] == domains
            assert [f"{one['domain']}/{one['name']}" for one in (await somebody.call("GET", "/projects", expect=200))["items"]] == projects
    async with person(tenants, "pat@acme") as pat:
        assert [one["name"] for one in (await pat.call("GET", "/domains/acme/projects", expect=200))["items"]] == ["web"]
        assert (await pat.call("GET", "/domains/acme", expect=200))["projects"] == 1
    async with person(tenants, "ann@acme") as ann:
        assert {one["name"] for one in (await ann.call("GET", "/domains/acme/users", expect=200))["items"]} == {"ann@acme", "pat@acme", "uma@acme", "aud@acme"}
        assert {one["user"] for one in (await ann.call("GET", "/domains/acme/role-bindings", expect=200))["items"]} == {
            "ann@acme",
            "pat@acme",
            "uma@acme",
            "aud@acme",
        }


async def test_what_is_not_there_is_told_as_what_belongs_to_others(tenants: World) -> None:
    async with person(tenants, "olga@other") as olga:
        for there, absent in (("/domains/acme/projects/web/hosts", "/domains/acme/projects/none/hosts"), ("/domains/acme", "/domains/none")):
            answers = [await olga.http.get(f"/api/v1{path}") for path in (there, absent)]
            assert [answer.status_code for answer in answers] == [404, 404]
            assert answers[0].text.replace("web", "X").replace("acme", "X") == answers[1].text.replace("none", "X").replace("acme", "X")


async def test_projects_and_domains_are_made_renamed_and_deleted_when_they_are_empty(tenants: World) -> None:
    async with person(tenants, "ann@acme") as ann:
        await ann.call("POST", "/domains", json={"name": "mine"}, expect=403)
        await ann.call("POST", "/domains/acme/projects", json={"name": "new", "displayName": "The new one"}, expect=201)
        await ann.call("POST", "/domains/acme/projects", json={"name": "new"}, expect=409)
        await ann.call("POST", "/domains/acme/projects", json={"name": "UPPER"}, expect=422)
        renamed = await ann.call("PATCH", "/domains/acme/projects/new", json={"displayName": "Another"}, expect=200)
        assert renamed["displayName"] == "Another" and renamed["createdBy"] == "ann@acme"
        new = "/domains/acme/projects/new"
        await ann.call("POST", f"{new}/host-psk/reset", expect=200)
        await ann.call("POST", f"{new}/service-accounts", json={"name": "ci"}, expect=201)
        await ann.call("POST", f"{new}/host-groups", json={"name": "g"}, expect=201)
        assert "host group g" in (await ann.call("DELETE", new, expect=409))["error"]["message"]
        await ann.call("DELETE", f"{new}/host-groups/g", expect=204)
        await ann.call("DELETE", new, expect=204)
        await ann.call("GET", new, expect=404)
        await ann.call("GET", f"{new}/hosts", expect=404)
        await ann.call("POST", "/domains/acme/projects", json={"name": "new"}, expect=201)
        assert (await ann.call("GET", f"{new}/service-accounts", expect=200))["items"] == []
        await ann.call("PATCH", "/domains/acme", json={"displayName": "Acme Ltd"}, expect=200)
        await ann.call("DELETE", "/domains/acme", expect=403)
    answer = await tenants.call("DELETE", "/api/v1/domains/acme", expect=409)
    assert "project new, project shop, project web, user ann@acme" in answer["error"]["message"]
    await tenants.call("POST", "/api/v1/domains", json={"name": "brief"}, expect=201)
    await tenants.call("DELETE", "/api/v1/domains/brief", expect=204)
    for path in ("/api/v1/domains/default", "/api/v1/domains/default/projects/default"):
        await tenants.call("PATCH", path, json={"displayName": "Ours"}, expect=200)
        await tenants.call("DELETE", path, expect=409)


async def test_a_project_with_hosts_or_clusters_is_not_deleted(tenants: World) -> None:
    project = ProjectRef.of("acme", "shop")
    await tenants.cases.requests._namespaces.ensure(project)
    for kind, name in ((kinds.BYO_HOST, "worker-1"), (kinds.CLUSTER, "demo")):
        await tenants.kube.create({"apiVersion": kind.api_version, "kind": kind.kind, "metadata": {"name": name, "namespace": project.namespace}, "spec": {}})
    async with person(tenants, "ann@acme") as ann:
        answer = await ann.call("DELETE", "/domains/acme/projects/shop", expect=409)
        assert "is not empty: cluster demo, host worker-1" in answer["error"]["message"]
        await ann.call("GET", "/domains/acme/projects/shop", expect=200)


async def entries(world: World, path: str = "/api/v1/audit", **more: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await world.call("GET", path, params=more, expect=200))["items"]
    return found


async def test_sign_ins_changes_and_refusals_are_written_down_with_who_where_and_how(tenants: World) -> None:
    async with person(tenants, "uma@acme", address="198.51.100.9", agent="ckp") as uma:
        await uma.call("POST", f"{WEB}/host-groups", json={"name": "g"}, expect=403)
        await uma.call("DELETE", "/sessions/current", expect=204)
    await tenants.rest.post("/api/v1/sessions", json={"name": "uma@acme", "password": "wrong words, all of them"})
    await tenants.rest.post("/api/v1/sessions", json={"name": "my password, typed as a name", "password": "x"})
    newest = [(one["actor"], one["action"], one["target"], one["result"], one["door"], one["source"]) for one in await entries(tenants, limit="5")]
    assert newest == [
        ("", "session.open", "", "Unauthorized", "rest", "127.0.0.1"),
        ("uma@acme", "session.open", "uma@acme", "Unauthorized", "rest", "127.0.0.1"),
        ("uma@acme", "session.close", "uma@acme", "Done", "cli", "198.51.100.9"),
        ("uma@acme", "host-group.create", "g", "Forbidden", "cli", "198.51.100.9"),
        ("uma@acme", "session.open", "uma@acme", "Done", "cli", "198.51.100.9"),
    ]
    everything = str(await entries(tenants, limit="1000"))
    assert PASSWORD not in everything and "typed as a name" not in everything


async def test_the_log_is_read_page_by_page_by_auditors_and_administrators_alone(tenants: World) -> None:
    for number in range(7):
        await tenants.call("POST", f"/api/v1{WEB}/host-groups", json={"name": f"g{number}"}, expect=201)
    async with person(tenants, "aud@acme") as aud, person(tenants, "uma@acme") as uma, person(tenants, "ann@acme") as ann:
        seen: list[str] = []
        following = ""
        while True:
            page = await aud.call("GET", f"{WEB}/audit", params={"limit": 3} | ({"pageToken": following} if following else {}), expect=200)
            seen += [one["target"] for one in page["items"] if one["action"] == "host-group.create"]
            if not (following := page["nextPageToken"]):
                break
        assert seen == [f"g{number}" for number in reversed(range(7))]
        await aud.call("GET", f"{WEB}/audit", params={"pageToken": "made-up"}, expect=422)
        for path in ("/audit", "/domains/acme/audit"):
            await aud.call("GET", path, expect=403)
        await uma.call("GET", f"{WEB}/audit", expect=403)
        found = (await ann.call("GET", "/domains/acme/audit", params={"limit": 1000}, expect=200))["items"]
        assert {one["domain"] for one in found} == {"acme"} and {"web", ""} <= {one["project"] for one in found}


async def test_a_stranger_s_attempts_are_not_written_into_the_log_of_those_who_were_meant(tenants: World) -> None:
    async with person(tenants, "olga@other") as olga:
        await olga.call("DELETE", f"{WEB}/clusters/demo", expect=404)
    assert "olga" not in str(await entries(tenants, f"/api/v1{WEB}/audit"))
    newest = (await entries(tenants, limit="1"))[0]
    assert (newest["actor"], newest["action"], newest["target"], newest["result"], newest["domain"]) == (
        "olga@other",
        "cluster.delete",
        "acme/web demo",
        "NotFound",
        "",
    )


@pytest.mark.parametrize("feature", [one for one in FEATURES if one.least in CHANGING and one.rest], ids=lambda one: one.title)
def test_each_change_has_a_name_in_the_log(feature: Any) -> None:
    subject, _, verb = action_of(feature.service).partition(".")
    assert subject and verb and "_" not in subject + verb


async def test_bindings_stand_where_they_hold(tenants: World) -> None:
    await make_user(tenants, "zoe@acme", ("auditor", "acme"))
    async with person(tenants, "zoe@acme") as zoe:
        await zoe.call("GET", f"{WEB}/hosts", expect=200)
        await zoe.call("GET", bindings("acme"), expect=200)
        await zoe.call("GET", bindings("other"), expect=404)
