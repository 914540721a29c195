"""Packages of the distribution on a lab host, which has no way out: fetched by this machine's own apt, for what the hosts' base has already."""

from __future__ import annotations

from pathlib import Path

from ckp.kits import paths
from ckp.kits.processes import run
from ckp.lab import base
from ckp.lab.lab import LabHost


def packages(*names: str) -> list[Path]:
    """The debs of these packages, and of all that they need beside the base."""
    made = base.ensure(print)
    folder = paths.cache() / "test-packages" / f"{made.name}-{'-'.join(names)}"
    folder.mkdir(parents=True, exist_ok=True)
    options = [f"Dir::State::status={made}/var/lib/dpkg/status", f"Dir::Cache::archives={folder}/", "Debug::NoLocking=1"]
    argv = ["apt-get", "-q", *(f"-o{option}" for option in options), "--download-only", "-y", "--no-install-recommends", "install", *names]
    run(argv, timeout=300, what=f"fetching {', '.join(names)}")
    return sorted(folder.glob("*.deb"))


def install(host: LabHost, *names: str) -> None:
    """Install them. No service is started by its package: the tests switch them on."""
    for deb in packages(*names):
        host.push(deb, f"/tmp/debs/{deb.name}")
    held = "printf '#!/bin/sh\\nexit 101\\n' > /usr/sbin/policy-rc.d; chmod +x /usr/sbin/policy-rc.d"
    script = f"{held}; dpkg -i --force-depends /tmp/debs/*.deb && rm -r /tmp/debs /usr/sbin/policy-rc.d"
    host.run(["sh", "-c", script], timeout=300, what=f"installing {', '.join(names)}")
