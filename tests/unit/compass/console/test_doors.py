"""The registry of features has every route, command and page, and names none that is not there."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import click
import pytest
from fastapi import FastAPI

from ckp.api.compass.features import FEATURES, PAGES, PROJECT
from ckp.cli.main import root
from ckp.compass.rest import clusters, enrolment, hosts, projects, releases
from ckp.compass.services import UseCases
from ckp.compass.web.app import routes_of
from tests.doors import PAGE, page
from tests.worlds.console import ConsoleWorld

HELPS = {
    "GET /open": "leads to a project's pages",
    "GET …": "shows counts of other features",
    "GET /sign-in": "the form",
    "GET …/new-cluster": "the form",
    "GET …/clusters/{name}/delete": "the form",
}
"""Pages that are no feature by themselves."""
INTERNAL = {
    "database", "clock", "admin", "hub", "enrolments", "requests.decide", "approval.consider", "hosts.require", "wire", "releases.get", "releases.names",
    "releases.host_addresses",
    "operations.label", "operations.taint", "operations.cordon", "operations.drain", "clusters.set_timeouts", "clusters.set_cert_sans",
    "sessions.find", "sessions.still_open", "keys.matching", "keys.spend",
}  # fmt: skip
"""Parts of other features, and what only the hub asks for."""


def routes(app: FastAPI) -> set[str]:
    return {f"{method.upper()} {path}" for path, methods in app.openapi()["paths"].items() for method in methods}


def test_the_page_is_made_from_the_registry() -> None:
    assert PAGE.read_text() == page(), "run python -m tests.doors"


def test_rest_has_these_features_and_no_others(console: ConsoleWorld) -> None:
    app = FastAPI()
    app.include_router(releases.router(console.world.cases), prefix="/api/v1")
    for subject in (projects, enrolment, hosts, clusters):
        for router in subject.routers(console.world.cases):
            app.include_router(router, prefix=PROJECT)
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
    for method in ("known_projects", "list_releases", "get_release", "audit"):
        yield method
