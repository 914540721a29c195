"""`ckp down`: the end of what `ckp up` began; nothing but caches is left."""

from __future__ import annotations

import shutil
from pathlib import Path

import click

from ckp.distribution.registries.server import RegistryServer
from ckp.kits import paths
from ckp.kits.files import exclusive
from ckp.lab.lab import Lab


@click.command()
def down() -> None:
    """Remove hosts, bridge, registry, mounts and processes of the lab; keep the caches and the signing key."""
    with exclusive(paths.state() / "up.lock", what="another `ckp up` or `ckp down`", timeout=5):
        RegistryServer(Path("/nonexistent"), Lab.GATEWAY, "").stop()
        Lab().down()
        for leftover in ("registry", "applied", "management.kubeconfig", "root-ca.pem"):
            path = paths.state() / leftover
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    click.echo("the lab is down; caches and the signing key are kept")
