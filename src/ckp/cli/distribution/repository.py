"""`ckp dist repository`: list, prune, reindex and serve the apt and dnf repositories that `ckp dist publish --repositories` fills."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from ckp.distribution.keys.signing import KeyRing
from ckp.distribution.repositories.publish import Repositories
from ckp.distribution.repositories.server import RepositoryServer
from ckp.kits import paths
from ckp.kits.errors import InvalidInput

F = TypeVar("F", bound=Callable[..., Any])

FOLDER = click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))


@click.group()
def repository() -> None:
    """Maintain the apt and dnf repositories in FOLDER, which `ckp dist publish --repositories FOLDER` fills."""


def repository_options(command: F) -> F:
    """Adds `--url` and `--valid-days` to a command that signs the repositories' indices."""
    days = click.IntRange(min=1)
    for option in (
        click.option("--valid-days", type=days, default=None, help="Days after which apt rejects the indices as expired; default: never."),
        click.option("--url", default="", help="The URL of the repositories, for the source lists in setup/; default: a placeholder."),
    ):
        command = option(command)
    return command


@repository.command()
@FOLDER
@click.argument("component")
@click.option("--package", "names", multiple=True, metavar="NAME", help="Only packages of this name; may be repeated.")
@click.option("--version", "versions", multiple=True, metavar="VERSION", help="Only this version, such as 1.35.1-ckp; may be repeated.")
@click.option("--all", "everything", is_flag=True, help="All packages of the component.")
@click.option("--yes", is_flag=True, help="Remove them; without it, they are only listed.")
@repository_options
def prune(
    folder: Path, component: str, names: tuple[str, ...], versions: tuple[str, ...], everything: bool, yes: bool, url: str, valid_days: int | None
) -> None:
    """Remove packages from COMPONENT (v1.35, agent, ckp) of the package repositories. No other command removes packages."""
    if everything == bool(names or versions):
        raise InvalidInput("nothing to remove is selected", resolution="give --package, --version or both, or --all alone")
    repositories = _open(folder, url, valid_days)
    if yes:
        repositories.remove(component, names=names, versions=versions, say=click.echo)
        return
    for item in repositories.select(component, names=names, versions=versions):
        click.echo(str(item))
    click.echo("nothing was removed: add --yes to remove these")


@repository.command()
@FOLDER
@repository_options
def reindex(folder: Path, url: str, valid_days: int | None) -> None:
    """Verify every package in the repositories, and make and sign all indices again, after a key rotation or damage."""
    _open(folder, url, valid_days).reindex(click.echo)


@repository.command()
@FOLDER
@click.option("--listen", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", type=click.IntRange(1, 65535), default=5080, show_default=True)
@click.option("--stop", is_flag=True, help="Stop the server.")
def serve(folder: Path, listen: str, port: int, stop: bool) -> None:
    """Serve the package repositories over plain HTTP, for a lab; clients verify signatures. A site uses its own web server."""
    server = RepositoryServer(folder.absolute(), listen, port)
    if stop:
        server.stop()
        return
    click.echo(f"{server.start()} serves {folder}; --stop ends it")


@repository.command("list")
@FOLDER
def list_packages(folder: Path) -> None:
    """List the packages that the signed indices name."""
    for item in _open(folder).contents():
        click.echo(str(item))


def _open(folder: Path, url: str = "", valid_days: int | None = None) -> Repositories:
    return Repositories(folder, KeyRing.at(paths.keys()).key, url=url, valid_days=valid_days)
