"""`ckp domain` and `ckp project`."""

from __future__ import annotations

import click

from ckp.api.compass.people import DisplayNameChange, DomainRequest, DomainView, ProjectRequest, ProjectView
from ckp.cli.session import with_session
from ckp.cli.view.output import Column, age, output_option, show_list, show_one
from ckp.clients.compass import Session

DOMAINS: tuple[Column[DomainView], ...] = (
    Column("NAME", lambda row: row.name),
    Column("DISPLAY NAME", lambda row: row.display_name),
    Column("PROJECTS", lambda row: str(row.projects)),
    Column("AGE", lambda row: age(row.created_at)),
    Column("BY", lambda row: row.created_by, wide=True),
)
PROJECTS: tuple[Column[ProjectView], ...] = (
    Column("DOMAIN", lambda row: row.domain),
    Column("NAME", lambda row: row.name),
    Column("DISPLAY NAME", lambda row: row.display_name),
    Column("AGE", lambda row: age(row.created_at)),
    Column("BY", lambda row: row.created_by, wide=True),
)


@click.group()
def domain() -> None:
    """Domains: the first level of tenancy."""


@domain.command("list")
@output_option
@with_session
def list_domains(session: Session, output: str) -> None:
    """List the domains in which you have a role."""
    show_list(session.get("/api/v1/domains"), DomainView, DOMAINS, output, none="No domains found.")


@domain.command("get")
@click.argument("name")
@output_option
@with_session
def get_domain(session: Session, name: str, output: str) -> None:
    """Show one domain."""
    show_one(session.get(f"/api/v1/domains/{name}"), DomainView, DOMAINS, output)


@domain.command("create")
@click.argument("name")
@click.option("--display-name", default="", help="What people call it.")
@with_session
def create_domain(session: Session, name: str, display_name: str) -> None:
    """Create a domain."""
    session.call("POST", "/api/v1/domains", body=DomainRequest.of(name=name, display_name=display_name))
    click.echo(f"domain/{name} created")


@domain.command("rename")
@click.argument("name")
@click.argument("display_name")
@with_session
def rename_domain(session: Session, name: str, display_name: str) -> None:
    """Change what people call a domain; its name in addresses stays."""
    session.call("PATCH", f"/api/v1/domains/{name}", body=DisplayNameChange.of(display_name=display_name))
    click.echo(f"domain/{name} renamed")


@domain.command("delete")
@click.argument("name")
@with_session
def delete_domain(session: Session, name: str) -> None:
    """Delete a domain without projects and users."""
    session.call("DELETE", f"/api/v1/domains/{name}")
    click.echo(f"domain/{name} deleted")


@click.group()
def project() -> None:
    """Projects of domains: each has its own hosts, clusters and roles."""


@project.command("list")
@click.option("--of", "of_domain", metavar="DOMAIN", default="", help="Those of one domain.")
@output_option
@with_session
def list_projects(session: Session, of_domain: str, output: str) -> None:
    """List the projects that you may see."""
    path = f"/api/v1/domains/{of_domain}/projects" if of_domain else "/api/v1/projects"
    show_list(session.get(path), ProjectView, PROJECTS, output, none="No projects found.")


@project.command("get")
@click.argument("name")
@output_option
@with_session
def get_project(session: Session, name: str, output: str) -> None:
    """Show one project of the domain (--domain)."""
    show_one(session.get(f"/api/v1/domains/{session.config.domain}/projects/{name}"), ProjectView, PROJECTS, output)


@project.command("create")
@click.argument("name")
@click.option("--display-name", default="", help="What people call it.")
@with_session
def create_project(session: Session, name: str, display_name: str) -> None:
    """Create a project in the domain (--domain)."""
    body = ProjectRequest.of(name=name, display_name=display_name)
    session.call("POST", f"/api/v1/domains/{session.config.domain}/projects", body=body)
    click.echo(f"project/{name} created in {session.config.domain}")


@project.command("rename")
@click.argument("name")
@click.argument("display_name")
@with_session
def rename_project(session: Session, name: str, display_name: str) -> None:
    """Change what people call a project; its name in addresses stays."""
    session.call("PATCH", f"/api/v1/domains/{session.config.domain}/projects/{name}", body=DisplayNameChange.of(display_name=display_name))
    click.echo(f"project/{name} renamed")


@project.command("delete")
@click.argument("name")
@with_session
def delete_project(session: Session, name: str) -> None:
    """Delete a project without clusters, hosts, host groups and pending host requests."""
    session.call("DELETE", f"/api/v1/domains/{session.config.domain}/projects/{name}")
    click.echo(f"project/{name} deleted")
