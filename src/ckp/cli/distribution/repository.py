"""`ckp dist repository`: maintaining the apt and dnf repositories that `ckp dist publish --repositories` fills."""

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
    """Give a command that signs the repositories' indices `--url` and `--valid-days`."""
    days = click.IntRange(min=1)
    for option in (
        click.option("--valid-days", type=days, default=None, help="Days after which apt refuses the indices as outdated; default: never."),
        click.option("--url", default="", help="Where clients reach the repositories, for the source lists in setup/; default: left to be filled in."),
    ):
        command = option(command)
    return command


@repository.command()
@FOLDER
@click.argument("component")
@click.option("--package", "names", multiple=True, metavar="NAME", help="Only packages of this name; may be given several times.")
@click.option("--version", "versions", multiple=True, metavar="VERSION", help="Only this version, as 1.35.1-ckp; may be given several times.")
@click.option("--all", "everything", is_flag=True, help="All packages of the component.")
@click.option("--yes", is_flag=True, help="Remove them. Without it they are only listed.")
@repository_options
def prune(
    folder: Path, component: str, names: tuple[str, ...], versions: tuple[str, ...], everything: bool, yes: bool, url: str, valid_days: int | None
) -> None:
    """Remove packages from COMPONENT (v1.35, agent) of the package repositories. Nothing else ever removes one."""
    if everything == bool(names or versions):
        raise InvalidInput("say what to remove", resolution="name --package, --version or both, or else --all")
    repositories = _open(folder, url, valid_days)
    if yes:
        repositories.remove(component, names=names, versions=versions, say=click.echo)
        return
    for item in repositories.select(component, names=names, versions=versions):
        click.echo(str(item))
    click.echo("nothing was removed: the same command with --yes removes these")


@repository.command()
@FOLDER
@repository_options
def reindex(folder: Path, url: str, valid_days: int | None) -> None:
    """Verify every package in the repositories, and make and sign all indices anew: after a rotation of the key, or damage."""
    _open(folder, url, valid_days).reindex(click.echo)


@repository.command()
@FOLDER
@click.option("--listen", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", type=click.IntRange(1, 65535), default=5080, show_default=True)
@click.option("--stop", is_flag=True, help="Stop it.")
def serve(folder: Path, listen: str, port: int, stop: bool) -> None:
    """Serve the package repositories over plain HTTP, for a lab: clients check signatures. A site puts them on its own web server."""
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
