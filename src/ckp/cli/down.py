"""`ckp down`: the end of what `ckp up` began; nothing but caches is left."""

from __future__ import annotations

import click

from ckp.kits import paths
from ckp.kits.files import exclusive
from ckp.lab.lab import require_root
from ckp.site.lab import remove


@click.command()
def down() -> None:
    """Remove hosts, bridge, registry, mounts and processes of the lab; keep the caches and the signing key."""
    require_root("`ckp down`")
    with exclusive(paths.state() / "up.lock", what="another `ckp up` or `ckp down`", timeout=5):
        remove()
    click.echo("the lab is down; caches and the signing key are kept")
