"""A site on a lab host of its own network, which can lose its management host and get a new one with the same address."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ckp.kits import paths
from ckp.kits.processes import Finished, run
from ckp.kits.retry import wait_until
from ckp.lab.lab import HostSpec, Lab, LabHost, LabNetwork
from ckp.site.lab import ADDON_VALUES, HOST_SETTINGS
from ckp.site.spec.read import dump_site, parse_site
from tests.support.checkout import REPO

NETWORK = LabNetwork(bridge="ckpbak0", gateway="10.177.90.1")
SERVER, WORKER = HostSpec("mgmt-1", "10.177.90.11"), HostSpec("worker-1", "10.177.90.21")
NAME = "hamburg"


@dataclass
class BackupPlace:
    """The site's lab, and the folder that it is described in."""

    lab: Lab
    folder: Path

    @property
    def file(self) -> Path:
        return self.folder / "site.yaml"

    @property
    def state(self) -> Path:
        return paths.state() / "sites" / NAME

    @property
    def host(self) -> LabHost:
        return self.lab.host(SERVER.name)

    def ckp(self, *arguments: str, timeout: float = 300, check: bool = True) -> Finished:
        environment = {"CKP_CONFIG": str(self.folder / "config.json"), "CKP_PROGRESS": "plain"}
        return run([REPO / "ckp", *arguments], timeout=timeout, check=check, env=environment, cwd=self.folder)

    def kubectl(self, kubeconfig: Path, *arguments: str, stdin: str | None = None, check: bool = True) -> Finished:
        """kubectl of the management host, with a kubeconfig of this machine."""
        self.host.push(kubeconfig.read_bytes(), "/run/test.kubeconfig", mode=0o600)
        return self.host.run(["kubectl", "--kubeconfig=/run/test.kubeconfig", *arguments], timeout=120, stdin=stdin, check=check)

    def boot(self) -> None:
        """A new server, which is reached by SSH as root."""
        self.lab.ensure_host(SERVER)
        ssh = self.lab.ssh_settings(SERVER.name)
        assert ssh.known_hosts_file and ssh.identity_file
        (self.folder / "known_hosts").write_text(ssh.known_hosts_file.read_text())
        (self.folder / "key").write_bytes(ssh.identity_file.read_bytes())
        (self.folder / "key").chmod(0o600)

    def add_worker(self) -> LabHost:
        """A machine that joins by the line that the site gives out, and is approved into the group `default`."""
        worker = self.lab.ensure_host(WORKER)
        worker.run(["sh", "-c", f"echo '{SERVER.address} registry.{NAME}.internal' >> /etc/hosts"], timeout=30)
        worker.push(json.dumps(dict(HOST_SETTINGS)).encode(), "/etc/ckp-agent/host.json")
        line = self.ckp("host", "join-command", "--new-key").stdout
        [key], command = re.findall(r"ckphk_[\w-]+", line), line.split("sh -c ", 1)[1]
        [script] = shlex.split(command)
        worker.run(["sh", "-c", script], stdin=f"{key}\n", timeout=600)
        [request] = json.loads(self.ckp("host", "requests", "-o", "json").stdout)["items"]
        self.ckp("host", "approve", request["id"], "--group", "default")

        def free() -> bool:
            return any(host["connected"] and host["free"] for host in json.loads(self.ckp("host", "list", "-o", "json").stdout)["items"])

        wait_until(free, what="the worker is connected and free", timeout=180, every=2)
        return worker

    def write_site(self) -> None:
        options = ("--name", NAME, "--host", f"{SERVER.name}={SERVER.address}", "--user", "root")
        self.ckp("site", "init", *options, "--network", "10.177.90.0/24", "--pool", "10.177.90.100-10.177.90.120", "--force")
        spec = parse_site(self.file.read_bytes(), self.file)
        [host] = spec.management.hosts or ()
        assert host.ssh is not None
        ssh = host.ssh.model_copy(update={"host": SERVER.address, "identity_file": Path("key"), "known_hosts_file": Path("known_hosts")})
        management = spec.management.model_copy(update={"hosts": (host.model_copy(update={"ssh": ssh}),)})
        # What only hosts in containers on one machine need.
        changed = spec.model_copy(update={"management": management, "host_settings": HOST_SETTINGS, "addon_values": ADDON_VALUES})
        self.file.write_text(dump_site(changed))


@contextmanager
def prepared(folder: Path) -> Iterator[BackupPlace]:
    """The site's server, booted; all of it is gone afterwards."""
    lab = Lab(paths.state() / "lab-backup", NETWORK)
    lab.down()
    try:
        lab.ensure_base(print)
        place = BackupPlace(lab, folder)
        place.boot()
        place.write_site()
        yield place
    finally:
        if not os.environ.get("CKP_KEEP_LAB"):
            lab.down()
