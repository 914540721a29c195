"""`ckp release`: list, show, check and add releases of the catalog."""

from __future__ import annotations

import json
from typing import get_args

import click

from ckp.catalog import render
from ckp.catalog.load import Catalog, Profile
from ckp.distribution.builder.locks import add_release
from ckp.kits import paths
from ckp.kits.errors import InvalidInput, NotFound

DEFAULT_HELP = "the newest supported release"
"""How help texts name the release that `default_release` chooses."""


def default_release() -> str:
    """The release that commands use when none is named."""
    return Catalog().latest()


PROFILE_OPTION = click.option(
    "--profile",
    type=click.Choice(list(get_args(Profile))),
    default="release",
    show_default=True,
    help="`lab` may replace pins by the stand-ins that the release file lists.",
)


@click.group()
def release() -> None:
    """The releases that CKP can build."""


@release.command("list")
def release_list() -> None:
    """List the releases of the catalog, oldest first."""
    catalog = Catalog()
    click.echo(f"{'NAME':<10} {'PACKAGES':<14} {'ETCD':<9} {'COREDNS':<9} {'CONTAINERD':<11} STATUS")
    for name, data in zip(catalog.names(), render.matrix_data(catalog)["releases"], strict=True):
        pins = catalog.release(name).pins
        click.echo(f"{name:<10} {data['packages']:<14} {pins['etcd']:<9} {pins['coredns']:<9} {pins['containerd']:<11} {data['status']}")


@release.command("show")
@click.argument("name")
def release_show(name: str) -> None:
    """Show one release: each pin, and what stands in for it in the profile `lab`."""
    item = Catalog().release(name)
    click.echo(f"{item.name}  {item.status}\n")
    click.echo(f"{'COMPONENT':<14} {'PIN':<10} STAND-IN (profile lab)")
    for component, version in item.pins.items():
        stand_in = item.stand_ins.get(component)
        click.echo(f"{component:<14} {version:<10} {f'{stand_in.component} {stand_in.version}' if stand_in else ''}".rstrip())
    for component, version in item.cni.items():
        if component not in item.built_cni:
            click.echo(f"{component:<14} {version:<10} not built yet")


@release.command("matrix")
@click.option("--format", "form", type=click.Choice(["table", "markdown", "json"]), default="table", show_default=True, help="Output format.")
@click.option("--write", is_flag=True, help="Write docs/reference/compatibility.md instead of printing.")
def release_matrix(form: str, write: bool) -> None:
    """Print the compatibility matrix: which versions of components a release may have."""
    catalog = Catalog()
    if write:
        path = render.write_page(catalog)
        if path is None:
            raise NotFound(f"there is no folder {render.page_path(catalog).parent}", resolution="run it in a checkout")
        click.echo(f"wrote {path}")
    elif form == "json":
        click.echo(json.dumps(render.matrix_data(catalog), indent=2, ensure_ascii=False))
    else:
        click.echo(render.markdown(catalog).rstrip("\n") if form == "markdown" else render.table(catalog))


@release.command("add")
@click.argument("version")
@click.option("--from", "base", default=None, help="The release that all other components are taken from; default: the newest of the same minor version.")
def release_add(version: str, base: str | None) -> None:
    """Add a release of Kubernetes VERSION: its release file and its source lock. Nothing is written if a step fails."""
    if paths.checkout() is None:
        raise InvalidInput(
            "the catalog of an installed ckp is not changed: the next installation would replace it",
            resolution=f"run it in a checkout of CKP: ./ckp release add {version}",
        )
    added = add_release(Catalog(), version, click.echo, base=base)
    click.echo(f"wrote {added.lock}")
    click.echo(f"wrote {added.release}")
    if added.page:
        click.echo(f"wrote {added.page}")
    click.echo(f'build it: ckp dist build {version}; when it has passed the tests, set status = "Supported" in its file')


@release.command("check")
@click.argument("names", nargs=-1)
def release_check(names: tuple[str, ...]) -> None:
    """Check that release files, source locks, toolchains and the matrix are consistent, for all releases or NAMES. Exit code 2 if not."""
    catalog = Catalog()
    findings = sorted({finding for name in names or catalog.names() for finding in catalog.check(name)})
    if not findings and not names:
        findings = render.page_findings(catalog)
    if findings:
        raise InvalidInput("the catalog is inconsistent", details="\n".join(findings), resolution="correct the lines named above")
    click.echo(f"consistent: {', '.join(names or catalog.names())}")
