"""The REST interface, below /api/v1."""

from __future__ import annotations

from fastapi import APIRouter, FastAPI

from ckp import __version__
from ckp.api.errors import ErrorBody
from ckp.compass.access.authentication import Presented
from ckp.compass.identity import Caller
from ckp.compass.rest import accounts, clusters, enrolment, hosts, people, projects, releases, tenancy
from ckp.compass.rest.plumbing import Gate, install_handlers
from ckp.compass.services import UseCases

MAX_BODY_BYTES = 1 << 20
PREFIX = "/api/v1"
OPEN_CALLS = (("POST", f"{PREFIX}/sessions"),)
"""Without a token: what gives one."""


def make_public_app(cases: UseCases) -> Gate:
    """The application of Compass' outer port."""
    app = FastAPI(
        title="CKP Compass",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        openapi_url=f"{PREFIX}/openapi.json",
        responses={"default": {"model": ErrorBody, "description": "The request was refused, or failed."}},
        # An address has one form: a client that resolves dots (RFC 3986, 5.2.4) makes …/projects/web/ of …/web/hosts/.., which must not be the project.
        redirect_slashes=False,
    )
    app.state.cases = cases
    install_handlers(app)
    for router in all_routers():
        app.include_router(router, prefix=PREFIX)

    @app.get("/healthz", include_in_schema=False)
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    async def authenticate(presented: Presented) -> Caller:
        return await cases.authentication.caller(presented)

    return Gate(app, authenticate=authenticate, max_bytes=MAX_BODY_BYTES, open_calls=OPEN_CALLS)


def all_routers() -> list[APIRouter]:
    """All routes, below PREFIX."""
    found = [releases.router(), *people.routers(), *tenancy.routers()]
    for subject in (projects, enrolment, hosts, clusters, accounts):
        for router in subject.routers():
            below = APIRouter(prefix="/domains/{domain}/projects/{project}")
            below.include_router(router)
            found.append(below)
    return found
