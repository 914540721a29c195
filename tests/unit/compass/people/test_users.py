"""Local users: passwords, sessions, throttling, the first administrator."""

from __future__ import annotations

from pathlib import Path

import pytest
from argon2 import extract_parameters
from sqlalchemy import select

from ckp.compass.access import tokens
from ckp.compass.access.passwords import SHORTEST, Passwords
from ckp.compass.store.models import SessionRow, UserRow
from ckp.compass.store.places import PostgresqlServer
from tests.simulators.kube import KubeSimulator
from tests.worlds.compass import ADMIN, World, make_world
from tests.worlds.people import PASSWORD, make_user, person

API = "/api/v1"
OTHER = "other words of the same person"


async def sign_in(world: World, name: str, password: str = PASSWORD, *, address: str = "203.0.113.7") -> int:
    async with person(world, name, "none", address=address) as somebody:
        return await somebody.status("POST", "/sessions", json={"name": name, "password": password}, headers={"Authorization": ""})


async def first(world: World, name: str = "root") -> None:
    await world.call("POST", f"{API}/first-administrator", json={"name": name, "password": PASSWORD}, expect=201)


async def test_a_user_signs_in_is_who_they_are_and_signs_out(tenants: World) -> None:
    async with person(tenants, "uma@acme") as uma:
        me = await uma.call("GET", "/me", expect=200)
        assert (me["name"], me["issuer"], me["credential"]) == ("uma@acme", "compass", "password")
        assert me["roles"] == [{"role": "user", "domain": "acme", "project": "web"}]
        await uma.call("GET", "/domains/acme/projects/web/clusters", expect=200)
        await uma.call("DELETE", "/sessions/current", expect=204)
        await uma.call("GET", "/me", expect=401)


async def test_passwords_are_kept_by_argon2id_and_sessions_as_hashes(tenants: World) -> None:
    async with person(tenants, "uma@acme") as uma, tenants.database.reading() as unit:
        row = (await unit.session.scalars(select(UserRow).where(UserRow.name == "uma"))).one()
        sessions = (await unit.session.scalars(select(SessionRow))).all()
    kept = extract_parameters(row.password_hash)
    assert (kept.type.name, kept.memory_cost, kept.time_cost, kept.parallelism) == ("ID", 19456, 2, 1)
    assert len(row.subject) == 32 and tokens.digest(uma.token) in {session.digest for session in sessions}
    assert not any(uma.token in str(vars(session)) or PASSWORD in str(vars(session)) for session in sessions)


@pytest.mark.parametrize(
    ("password", "said"),
    [("x" * (SHORTEST - 1), "15 are the least"), ("x" * 20, "guessed at once"), ("nobodynobodynobody", "guessed at once"), ("ab" * 129, "more than 256")],
)
async def test_a_password_that_is_short_or_plain_is_refused(world: World, password: str, said: str) -> None:
    answer = await world.rest.post(f"{API}/users", json={"name": "nobody", "password": password})
    assert answer.status_code == 422 and (said in answer.text or "256" in answer.text)


@pytest.mark.parametrize("password", [PASSWORD, "ключ 鍵 🔑🔑🔑🔑🔑 κλειδί", "  leading and trailing  ", "0123456789" * 20, "ab\tc\"'<>&%$;--ef"])
async def test_any_characters_make_a_password_and_long_ones_count_to_their_end(password: str) -> None:
    passwords = Passwords()
    kept = await passwords.hash(password, name="nobody")
    assert await passwords.matches(kept, password)
    assert not await passwords.matches(kept, password + "x") and not await passwords.matches(kept, password[:-1]) and not await passwords.matches("", password)


async def test_the_same_letters_typed_in_another_way_are_the_same_password() -> None:
    passwords = Passwords()
    kept = await passwords.hash("caf\u00e9 by the old harbour", name="nobody")
    assert await passwords.matches(kept, "cafe\u0301 by the old harbour")


async def test_what_is_wrong_with_a_sign_in_is_not_said(tenants: World) -> None:
    await tenants.call("PATCH", f"{API}/domains/acme/users/aud", json={"disabled": True}, expect=200)
    answers = []
    for name, password in (("uma@acme", OTHER), ("nobody@acme", PASSWORD), ("uma", PASSWORD), ("uma@other", PASSWORD), ("aud@acme", PASSWORD)):
        answer = await tenants.rest.post(f"{API}/sessions", json={"name": name, "password": password})
        answers.append((answer.status_code, answer.text))
    assert answers == [answers[0]] * 5 and answers[0][0] == 401


async def test_nobody_can_keep_somebody_else_out(tenants: World) -> None:
    for number in range(40):  # from many addresses, at one name
        assert await sign_in(tenants, "uma@acme", OTHER, address=f"198.51.100.{number}") == 401
    assert await sign_in(tenants, "uma@acme") == 201


async def test_passwords_can_not_be_guessed_without_end_from_one_address(tenants: World) -> None:
    guesser = "198.51.100.1"
    assert [await sign_in(tenants, "uma@acme", OTHER, address=guesser) for _ in range(6)] == [401] * 5 + [429]
    assert await sign_in(tenants, "uma@acme", address=guesser) == 429, "the right one is not told from a wrong one any more"
    assert await sign_in(tenants, "pat@acme", address=guesser) == 201, "others at the same address go on"
    tenants.clock.advance(61)
    assert await sign_in(tenants, "uma@acme", address=guesser) == 201


async def test_who_has_signed_in_from_an_address_is_not_kept_out_by_others_who_share_it(tenants: World) -> None:
    shared = "198.51.100.2"
    assert await sign_in(tenants, "pat@acme", address=shared) == 201
    statuses = [await sign_in(tenants, f"guess{number}@acme", OTHER, address=shared) for number in range(31)]
    assert statuses == [401] * 30 + [429]
    assert await sign_in(tenants, "uma@acme", address=shared) == 429
    assert await sign_in(tenants, "pat@acme", address=shared) == 201


@pytest.mark.parametrize("what", ["own password", "password", "role", "role taken", "disabled", "deleted"])
async def test_sessions_end_at_every_replica_once_somebody_is_changed(tmp_path: Path, shared: PostgresqlServer, what: str) -> None:
    kube = KubeSimulator(manager="ckp-compass")
    async with make_world(tmp_path, kube, place=shared) as one, make_world(tmp_path, kube, place=shared, clock=one.clock) as other:
        await make_user(one, "uma", ("auditor", "default/default"))
        async with person(other, "uma") as uma:
            await uma.call("GET", "/me", expect=200)
            bindings = (await one.call("GET", "/role-bindings", expect=200))["items"]
            changes = {
                "own password": ("POST", f"{API}/me/password", {"current": PASSWORD, "password": OTHER}),
                "password": ("POST", f"{API}/users/uma/password", {"password": OTHER}),
                "role": ("POST", f"{API}/role-bindings", {"role": "auditor", "user": "uma"}),
                "role taken": ("DELETE", f"/role-bindings/{bindings[0]['id']}", None),
                "disabled": ("PATCH", f"{API}/users/uma", {"disabled": True}),
                "deleted": ("DELETE", f"{API}/users/uma", None),
            }
            method, path, body = changes[what]
            if what == "own password":
                await uma.call(method, path, json=body, expect=204)
            else:
                assert (
                    await one.rest.request(method, path if path.startswith("/api") else f"{API}/domains/default/projects/default{path}", json=body)
                ).is_success
            assert await uma.status("GET", "/me") == 401


async def test_a_session_ends_after_twelve_hours_and_not_when_it_is_not_used(tenants: World) -> None:
    async with person(tenants, "uma@acme") as uma:
        tenants.clock.advance(11.9 * 3600)
        await uma.call("GET", "/me", expect=200)
        tenants.clock.advance(0.2 * 3600)
        await uma.call("GET", "/me", expect=401)


async def test_the_current_password_is_needed_for_another_one_and_can_not_be_guessed(tenants: World) -> None:
    async with person(tenants, "uma@acme") as uma:
        for _ in range(5):
            await uma.call("POST", "/me/password", json={"current": OTHER, "password": OTHER}, expect=401)
        await uma.call("POST", "/me/password", json={"current": PASSWORD, "password": OTHER}, expect=429)
        tenants.clock.advance(61)
        await uma.call("POST", "/me/password", json={"current": PASSWORD, "password": "short"}, expect=422)
        await uma.call("POST", "/me/password", json={"current": PASSWORD, "password": OTHER}, expect=204)
    assert await sign_in(tenants, "uma@acme") == 401 and await sign_in(tenants, "uma@acme", OTHER) == 201


async def test_the_first_administrator_ends_the_bootstrap_token(world: World) -> None:
    await first(world)
    assert (await world.rest.get(f"{API}/me")).status_code == 401
    assert "there is an administrator" in (await world.rest.get(f"{API}/me")).text
    async with person(world, "root") as root:
        assert (await root.call("GET", "/me", expect=200))["roles"] == [{"role": "platform-administrator", "domain": "", "project": ""}]
        await root.call("POST", "/first-administrator", json={"name": "second", "password": PASSWORD}, expect=403)
        for path in ("/domains/default/projects/default/hosts", "/domains", "/users", "/audit"):
            await root.call("GET", path, expect=200)


async def test_an_administrator_who_is_made_in_two_steps_ends_it_too_and_service_accounts_do_not(world: World) -> None:
    await world.call("POST", "/service-accounts", json={"name": "ci"}, expect=201)
    role = {"role": "platform-administrator", "serviceAccount": "default/default/ci"}
    await world.call("POST", f"{API}/role-bindings", json=role, expect=201)
    await world.call("GET", f"{API}/me", expect=200)
    await make_user(world, "root", ("platform-administrator", ""))
    assert (await world.rest.get(f"{API}/me")).status_code == 401


async def test_the_last_administrator_stays(world: World) -> None:
    await first(world)
    async with person(world, "root") as root:
        [binding] = (await root.call("GET", "/role-bindings", expect=200))["items"]
        for method, path, body in (
            ("DELETE", "/users/root", None),
            ("PATCH", "/users/root", {"disabled": True}),
            ("DELETE", f"/role-bindings/{binding['id']}", None),
        ):
            answer = await root.call(method, path, json=body, expect=409)
            assert "last platform administrator" in answer["error"]["message"]
        await root.call("POST", "/users", json={"name": "second", "password": PASSWORD}, expect=201)
        await root.call("POST", "/role-bindings", json={"role": "platform-administrator", "user": "second"}, expect=201)
        await root.call("DELETE", "/users/root", expect=204)
    async with person(world, "second") as second:
        await second.call("GET", "/users", expect=200)


async def test_a_name_that_is_given_again_is_somebody_else(tenants: World) -> None:
    await tenants.call("DELETE", f"{API}/domains/acme/users/uma", expect=204)
    await make_user(tenants, "uma@acme")
    async with person(tenants, "uma@acme") as uma:
        assert (await uma.call("GET", "/me", expect=200))["roles"] == []
        await uma.call("GET", "/domains/acme/projects/web/clusters", expect=404)


async def test_who_administers_a_domain_does_not_become_more_by_its_people(tenants: World) -> None:
    """Ann could otherwise give herself the password of somebody of her domain who administers the platform."""
    await make_user(tenants, "zoe@acme")
    await make_user(tenants, "keep", ("platform-administrator", ""))
    async with person(tenants, "keep") as keep, person(tenants, "ann@acme") as ann:
        await keep.call("POST", "/role-bindings", json={"role": "auditor", "user": "zoe@acme"}, expect=201)
        for method, path, body in (
            ("POST", "/domains/acme/users/zoe/password", {"password": OTHER}),
            ("PATCH", "/domains/acme/users/zoe", {"disabled": True}),
            ("DELETE", "/domains/acme/users/zoe", None),
        ):
            await ann.call(method, path, json=body, expect=403)
        await ann.call("POST", "/domains/acme/users/uma/password", json={"password": OTHER}, expect=204)
        await ann.call("POST", "/role-bindings", json={"role": "platform-administrator", "user": "ann@acme"}, expect=403)
        await ann.call("POST", "/domains/acme/role-bindings", json={"role": "auditor", "user": "olga@other"}, expect=404)
        await ann.call("POST", "/domains/acme/role-bindings", json={"role": "auditor", "user": "keep"}, expect=404)


async def test_a_role_is_bound_to_what_it_is_for(tenants: World) -> None:
    for path, role in (
        ("/role-bindings", "user"),
        ("/domains/acme/role-bindings", "platform-administrator"),
        ("/domains/acme/projects/web/role-bindings", "domain-administrator"),
    ):
        answer = await tenants.call("POST", API + path, json={"role": role, "user": "uma@acme"}, expect=422)
        assert f"{role} is bound to" in answer["error"]["message"]
    twice = [
        await tenants.call("POST", f"{API}/domains/acme/projects/web/role-bindings", json={"role": "auditor", "user": "uma@acme"}, expect=201) for _ in range(2)
    ]
    assert twice[0] == twice[1]


async def test_the_bootstrap_token_is_no_better_in_the_console_than_elsewhere(world: World) -> None:
    raw, _ = await world.cases.sessions.open(ADMIN, "192.0.2.1")
    assert await world.cases.sessions.find(raw) is not None
    await first(world)
    assert await world.cases.sessions.find(raw) is None


async def test_a_session_of_the_console_is_no_token_and_a_token_no_session_of_the_console(tenants: World) -> None:
    raw, _ = await tenants.cases.sessions.sign_in("uma@acme", PASSWORD, "192.0.2.1", "console")
    async with person(tenants, "uma@acme", raw) as by_cookie, person(tenants, "uma@acme") as by_token:
        await by_cookie.call("GET", "/me", expect=401)
        assert await tenants.cases.sessions.find(by_token.token) is None


def test_a_token_that_was_cut_or_mistyped_is_told_without_looking_it_up() -> None:
    token = tokens.make(tokens.ACCOUNT)
    assert tokens.is_whole(token) and len(token) == 55
    assert not any(tokens.is_whole(one) for one in (token[:-1], token + "a", token.replace(token[20], "_"), token.upper(), "", "ckpsa_", ADMIN))
    assert not tokens.is_whole(token[:20] + ("a" if token[20] != "a" else "b") + token[21:])
