"""Who may do what where."""

from __future__ import annotations

import itertools

import pytest

from ckp.api.compass.roles import Least, Role
from ckp.rules.roles import CHANGING, SCOPES, Grant, allows, knows, scope_of

WHERE = {"platform": ("", ""), "domain": ("acme", ""), "project": ("acme", "web")}
GRANTS = [Grant(role, *WHERE[scope]) for role, scopes in SCOPES.items() for scope in scopes]


def enough(grant: Grant) -> set[str]:
    """In the project acme/web."""
    return {least.name for least in Least if allows([grant], least, "acme", "web")}


ALL = {"NOBODY", "SIGNED_IN", "VIEWER"}


def test_what_each_role_is_enough_for_in_a_project_that_it_covers() -> None:
    found = {(grant.role.value, scope_of(grant.domain, grant.project)): enough(grant) - ALL for grant in GRANTS}
    manages = {"AUDITOR", "USER", "PROJECT_ADMINISTRATOR"}
    assert found == {
        ("platform-administrator", "platform"): manages | {"DOMAIN_ADMINISTRATOR", "PLATFORM_ADMINISTRATOR"},
        ("domain-administrator", "domain"): manages | {"DOMAIN_ADMINISTRATOR"},
        ("project-administrator", "project"): manages,
        ("user", "project"): {"USER"},
        ("auditor", "platform"): {"AUDITOR"},
        ("auditor", "domain"): {"AUDITOR"},
        ("auditor", "project"): {"AUDITOR"},
    }


@pytest.mark.parametrize("least", sorted(CHANGING))
def test_an_auditor_changes_nothing_anywhere(least: Least) -> None:
    auditor = [Grant(Role.AUDITOR), Grant(Role.AUDITOR, "acme"), Grant(Role.AUDITOR, "acme", "web")]
    assert not any(allows(auditor, least, *where) for where in WHERE.values())


@pytest.mark.parametrize("grant", [grant for grant in GRANTS if grant.domain], ids=str)
def test_a_role_is_nothing_in_another_domain_and_nothing_above_its_own_part(grant: Grant) -> None:
    for least in set(Least) - {Least.NOBODY, Least.SIGNED_IN}:
        assert not allows([grant], least, "other", "web") and not allows([grant], least, "other") and not allows([grant], least)
        if grant.project and least is not Least.VIEWER:
            assert not allows([grant], least, "acme", "shop") and not allows([grant], least, "acme")
    assert not knows([grant], "other") and not knows([grant], "other", "web")
    assert knows([grant], "acme") and knows([grant], "acme", "web")
    assert knows([grant], "acme", "shop") is not bool(grant.project)


def test_more_roles_never_take_something_away() -> None:
    for first, second in itertools.combinations(GRANTS, 2):
        assert enough(first) <= {least.name for least in Least if allows([first, second], least, "acme", "web")}


def test_without_a_role_nothing_but_one_s_own_is_allowed() -> None:
    assert {least for least in Least if allows([], least, "acme", "web")} == {Least.NOBODY, Least.SIGNED_IN}
