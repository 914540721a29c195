"""The REST interface, below /api/v1."""

from __future__ import annotations

from fastapi import FastAPI

from ckp import __version__
from ckp.api.errors import ErrorBody
from ckp.compass.identity import Caller
from ckp.compass.rest import clusters, enrolment, hosts, projects, releases
from ckp.compass.rest.plumbing import Gate, install_handlers
from ckp.compass.services import UseCases

MAX_BODY_BYTES = 1 << 20
PREFIX = "/api/v1"


def make_public_app(cases: UseCases) -> Gate:
    """The application of Compass' outer port."""
    app = FastAPI(
        title="CKP Compass",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        openapi_url=f"{PREFIX}/openapi.json",
        responses={"default": {"model": ErrorBody, "description": "The request was refused, or failed."}},
    )
    install_handlers(app)
    app.include_router(releases.router(cases), prefix=PREFIX)
    for subject in (projects, enrolment, hosts, clusters):
        for router in subject.routers(cases):
            app.include_router(router, prefix=f"{PREFIX}/domains/{{domain}}/projects/{{project}}")

    @app.get("/healthz", include_in_schema=False)
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    async def authenticate(token: str) -> Caller:
        return cases.admin.caller(token)

    return Gate(app, authenticate=authenticate, max_bytes=MAX_BODY_BYTES)
