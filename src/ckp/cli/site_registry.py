"""`ckp site registry`: the site's own registry."""

from __future__ import annotations

from pathlib import Path

import click

from ckp.cli.site import site_file
from ckp.cli.site_changes import changing
from ckp.cli.site_releases import FREEING, LOOKING, serving_registries
from ckp.cli.view.progress import planned
from ckp.kits.errors import Conflict
from ckp.site.registries.gc import collect
from ckp.site.registries.hosted import HostedRegistry


@click.group()
def registry() -> None:
    """The site's own registry."""


@registry.command("gc")
@site_file
def collect_garbage(file: Path) -> None:
    """Delete what no image names from the registry of each management host, and say how much space that has freed.

    Pulls go on; pushes are refused meanwhile, on one host after the other. After a break, a host finishes what it has begun, and takes pushes again.
    """
    with changing(file) as (spec, hosts), planned("site registry gc", [LOOKING, FREEING]) as steps:
        with steps.step(LOOKING):
            registries = [each for each in serving_registries(spec, hosts, steps.say) if isinstance(each, HostedRegistry)]
            if not registries:
                raise Conflict(f"{spec.metadata.name} has a registry of others, and CKP frees nothing there", resolution="use the means of that registry")
        with steps.step(FREEING):
            freed = sum(collect(each, steps.say) for each in registries)
    click.echo(f"\n{freed / 1e6:.0f} MB freed on {len(registries)} host{'' if len(registries) == 1 else 's'}.")
