"""The registry of features has every route, command and page, and names none that is not there."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import click
import pytest
from fastapi import FastAPI

from ckp.api.compass.features import FEATURES, LEAST, PAGES, PROJECT
from ckp.api.compass.roles import Least
from ckp.cli.main import root
from ckp.compass.access.callers import BOOTSTRAP
from ckp.compass.errors import Forbidden
from ckp.compass.rest.public import PREFIX, all_routers
from ckp.compass.services import UseCases
from ckp.compass.web.app import routes_of
from tests.doors import PAGE, page
from tests.worlds.console import ConsoleWorld

HELPS = {
    "GET …": "shows counts of other features",
    "GET /sign-in": "the form",
    "GET …/new-cluster": "the form",
    "GET …/clusters/{name}/delete": "the form",
    "GET …/clusters/{name}/upgrade": "the form",
}
"""Pages that are no feature by themselves."""
INTERNAL = {
    "database", "clock", "admin", "hub", "enrolments", "requests.decide", "approval.consider", "hosts.require", "wire", "releases.get", "releases.names",
    "releases.host_addresses",
    "operations.label", "operations.taint", "operations.cordon", "operations.drain", "clusters.set_timeouts", "clusters.set_cert_sans", "backups.set",
    "sessions.find", "sessions.still_open", "keys.matching", "keys.spend", "authentication", "guard", "projects.require", "audit.note",
}  # fmt: skip
"""Parts of other features, and what only the hub asks for."""


def routes(app: FastAPI) -> set[str]:
    return {f"{method.upper()} {path}" for path, methods in app.openapi()["paths"].items() for method in methods}


def test_the_page_is_made_from_the_registry() -> None:
    assert PAGE.read_text() == page(), "run python -m tests.doors"


def test_rest_has_these_features_and_no_others() -> None:
    app = FastAPI()
    for router in all_routers():
        app.include_router(router, prefix=PREFIX)
    named = {feature.rest.replace(" /", " /api/v1/").replace("…", PROJECT) for feature in FEATURES if feature.rest}
    assert named == routes(app)


def test_the_console_has_these_features_and_no_others(console: ConsoleWorld) -> None:
    there = {
        f"{method} {route.path.replace(PAGES, '…')}"
        for route in routes_of(console.web.console)
        for method in (route.methods or set()) - {"HEAD"}
        if not route.path.startswith("/static/")
    }
    named = {feature.web for feature in FEATURES if feature.web}
    assert named <= there
    assert there - named == set(HELPS)


@pytest.mark.parametrize("command", sorted({feature.cli for feature in FEATURES if feature.cli}))
def test_the_command_line_has_the_command(command: str) -> None:
    found: click.Command | None = root
    for word in command.split()[1:]:
        assert isinstance(found, click.Group), command
        found = found.get_command(click.Context(found), word)
    assert found is not None, command


def test_every_use_case_is_a_feature(console: ConsoleWorld) -> None:
    named = {service for feature in FEATURES for service in feature.service.split()}
    there = set(use_cases(console.world.cases))
    assert named - there == set(), "a feature names a service that is not there"
    assert {name for name in there - named if name not in INTERNAL and name.partition(".")[0] not in INTERNAL} == set()


def use_cases(cases: UseCases) -> Iterator[str]:
    for name, part in vars(cases).items():
        for method, value in inspect.getmembers(type(part)):
            if not method.startswith("_") and callable(value):
                yield f"{name}.{method}"
    for method in ("list_releases", "get_release"):
        yield method


def test_no_feature_lacks_a_role_and_features_of_one_service_ask_for_the_same() -> None:
    for feature in FEATURES:
        assert feature.least in Least and LEAST[feature.service] is feature.least, feature.title


async def test_what_is_no_feature_is_for_no_door(console: ConsoleWorld) -> None:
    cases = console.world.cases.acting(BOOTSTRAP)
    for name in sorted(set(use_cases(console.world.cases)) - set(LEAST)):
        service, _, method = name.partition(".")
        with pytest.raises((AttributeError, Forbidden)):
            answer = getattr(getattr(cases, service), method)()
            await answer
    for name in ("database", "clock", "guard", "acting_for"):
        with pytest.raises(AttributeError):
            getattr(cases, name)
