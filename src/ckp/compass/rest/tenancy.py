"""REST: domains and projects."""

from __future__ import annotations

from fastapi import APIRouter

from ckp.api.compass.base import Items
from ckp.api.compass.people import DisplayNameChange, DomainRequest, DomainView, ProjectRequest, ProjectView
from ckp.compass.rest.plumbing import By, Cases, Domain, Project


def routers() -> tuple[APIRouter, ...]:
    """Of the platform."""
    return _domains(), _projects()


def _domains() -> APIRouter:
    router = APIRouter(prefix="/domains", tags=["domains"])

    @router.get("")
    async def list_domains(cases: Cases, by: By) -> Items[DomainView]:
        """List the domains in which the caller has a role, by name."""
        return Items(items=await cases.domains.list(by))

    @router.post("", status_code=201)
    async def create_domain(cases: Cases, by: By, body: DomainRequest) -> DomainView:
        """Create a domain."""
        return await cases.domains.create(by, body)

    @router.get("/{domain}")
    async def get_domain(cases: Cases, by: By, domain: Domain) -> DomainView:
        """Show a domain."""
        return await cases.domains.get(by, domain)

    @router.patch("/{domain}")
    async def rename_domain(cases: Cases, by: By, domain: Domain, body: DisplayNameChange) -> DomainView:
        """Change what people call a domain."""
        return await cases.domains.rename(by, domain, body)

    @router.delete("/{domain}", status_code=204)
    async def delete_domain(cases: Cases, by: By, domain: Domain) -> None:
        """Delete a domain without projects and users."""
        await cases.domains.delete(by, domain)

    return router


def _projects() -> APIRouter:
    router = APIRouter(tags=["projects"])

    @router.get("/projects")
    async def list_projects(cases: Cases, by: By) -> Items[ProjectView]:
        """List the projects that the caller may see, by domain and name."""
        return Items(items=await cases.projects.list(by))

    @router.get("/domains/{domain}/projects")
    async def list_projects_of_domain(cases: Cases, by: By, domain: Domain) -> Items[ProjectView]:
        """List the projects of a domain that the caller may see, by name."""
        return Items(items=await cases.projects.of_domain(by, domain))

    @router.post("/domains/{domain}/projects", status_code=201)
    async def create_project(cases: Cases, by: By, domain: Domain, body: ProjectRequest) -> ProjectView:
        """Create a project."""
        return await cases.projects.create(by, domain, body)

    @router.get("/domains/{domain}/projects/{project}")
    async def get_project(cases: Cases, project: Project) -> ProjectView:
        """Show a project."""
        return await cases.projects.get(project)

    @router.patch("/domains/{domain}/projects/{project}")
    async def rename_project(cases: Cases, by: By, project: Project, body: DisplayNameChange) -> ProjectView:
        """Change what people call a project."""
        return await cases.projects.rename(by, project, body)

    @router.delete("/domains/{domain}/projects/{project}", status_code=204)
    async def delete_project(cases: Cases, by: By, project: Project) -> None:
        """Delete a project without clusters, hosts, host groups and pending host requests."""
        await cases.projects.delete(by, project)

    return router
