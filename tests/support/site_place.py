"""Servers of somebody's on a bridge of the lab, and the file that describes a site on them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ckp.kits import paths
from ckp.kits.processes import Finished, run
from ckp.lab.lab import HostSpec, Lab, LabHost, LabNetwork
from ckp.site.lab import ADDON_VALUES, HOST_SETTINGS
from ckp.site.spec.read import dump_site, parse_site
from tests.support.checkout import REPO

NETWORK = LabNetwork(bridge="ckpsite0", gateway="10.177.96.1")
SERVER = HostSpec("server-1", "10.177.96.11")
USER = "ops"
NAME = "berlin"
REGISTRY = f"registry.{NAME}.internal"


@dataclass
class Place:
    """Servers of somebody's, and the folder that their site is described in."""

    lab: Lab
    hosts: dict[str, LabHost]
    folder: Path

    @property
    def host(self) -> LabHost:
        """The first one."""
        return self.hosts[SERVER.name]

    @property
    def file(self) -> Path:
        return self.folder / "site.yaml"

    @property
    def state(self) -> Path:
        return paths.state() / "sites" / NAME

    def ckp(self, *arguments: str, timeout: float = 300, check: bool = True) -> Finished:
        environment = {"CKP_CONFIG": str(self.folder / "config.json"), "CKP_PROGRESS": "plain"}
        return run([REPO / "ckp", *arguments], timeout=timeout, check=check, env=environment, cwd=self.folder)

    def add(self, server: HostSpec) -> LabHost:
        """A server with OpenSSH, a user with a key who may use sudo, and nobody's name server that knows a name."""
        host = self.hosts[server.name] = self.lab.ensure_host(server)
        key = host.pull("/root/.ssh/authorized_keys")
        host.run(["useradd", "--create-home", "--shell", "/bin/bash", USER], timeout=30)
        host.push(key, f"/home/{USER}/.ssh/authorized_keys")
        host.run(["chown", "-R", f"{USER}:{USER}", f"/home/{USER}/.ssh"], timeout=30)
        host.push(f"{USER} ALL=(ALL) NOPASSWD: ALL\n".encode(), "/etc/sudoers.d/ops", mode=0o440)
        host.run(["rm", "/root/.ssh/authorized_keys"], timeout=30)
        ssh = self.lab.ssh_settings(server.name)
        (self.folder / "known_hosts").write_text(ssh.known_hosts_file.read_text())
        (self.folder / "key").write_bytes(ssh.identity_file.read_bytes())
        (self.folder / "key").chmod(0o600)
        return host


@contextmanager
def prepared(folder: Path, servers: Sequence[HostSpec] = (SERVER,)) -> Iterator[Place]:
    """The servers, side by side on a bridge of their own."""
    lab = Lab(paths.state() / "lab-site", NETWORK)
    lab.down()
    try:
        lab.ensure_base(print)
        place = Place(lab, {}, folder)
        for server in servers:
            place.add(server)
        yield place
    finally:
        if not os.environ.get("CKP_KEEP_LAB"):
            lab.down()


def write_site(place: Place, servers: Sequence[HostSpec] = (SERVER,), *more: str) -> None:
    """The site's file, with these management hosts.

    Args:
        more: further options of `ckp site init`.
    """
    options = ["--name", NAME, "--user", USER, *more]
    for server in servers:
        options += ["--host", f"{server.name}={server.address}"]
    place.ckp("site", "init", "--force", *options, "--network", "10.177.96.0/24", "--pool", "10.177.96.100-10.177.96.120")
    spec = parse_site(place.file.read_bytes(), place.file)
    hosts = []
    for host in spec.management.hosts or ():
        assert host.ssh is not None
        ssh = host.ssh.model_copy(update={"host": str(host.address), "identity_file": Path("key"), "known_hosts_file": Path("known_hosts")})
        hosts.append(host.model_copy(update={"ssh": ssh}))
    management = spec.management.model_copy(update={"hosts": tuple(hosts)})
    # What only hosts in containers on one machine need.
    changed = spec.model_copy(update={"management": management, "host_settings": HOST_SETTINGS, "addon_values": ADDON_VALUES})
    place.file.write_text(dump_site(changed))
