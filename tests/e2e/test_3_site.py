"""A site that its file describes, on a server that is reached by SSH only: applied, applied again, looked at, and removed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from ckp.kits import paths
from ckp.kits.processes import Finished, run
from ckp.lab.lab import HostSpec, Lab, LabHost, LabNetwork
from ckp.site.lab import ADDON_VALUES, HOST_SETTINGS
from ckp.site.spec.read import dump_site, parse_site
from tests.support.checkout import REPO

pytestmark = [pytest.mark.e2e, pytest.mark.long, pytest.mark.root("boots whole hosts")]

NETWORK = LabNetwork(bridge="ckpsite0", gateway="10.177.96.1")
SERVER = HostSpec("server-1", "10.177.96.11")
USER = "ops"
NAME = "berlin"
REGISTRY = f"registry.{NAME}.internal"
SNAPSHOT = """
import hashlib, os, stat
for top in ("/etc", "/usr", "/opt", "/root", "/home", "/var/lib", "/var/spool"):
    for folder, names, files in os.walk(top):
        for name in sorted(names + files):
            path = os.path.join(folder, name)
            seen = os.lstat(path)
            if not stat.S_ISSOCK(seen.st_mode):
                content = hashlib.sha256(open(path, "rb").read()).hexdigest() if stat.S_ISREG(seen.st_mode) else ""
                print(path, oct(seen.st_mode), seen.st_uid, seen.st_gid, content)
"""
MAY_DIFFER = ("/var/lib/dpkg/status-old", "/etc/.pwd.lock", "/etc/passwd-", "/etc/group-", "/etc/shadow-", "/etc/gshadow-", "/etc/subuid-", "/etc/subgid-")
"""What programs of the system keep for themselves, such as the copies that useradd makes."""


@dataclass
class Place:
    """A server of somebody's, and the folder that its site is described in."""

    host: LabHost
    folder: Path

    @property
    def file(self) -> Path:
        return self.folder / "site.yaml"

    @property
    def state(self) -> Path:
        return paths.state() / "sites" / NAME

    def ckp(self, *arguments: str, timeout: float = 300, check: bool = True) -> Finished:
        environment = {"CKP_CONFIG": str(self.folder / "config.json"), "CKP_PROGRESS": "plain"}
        return run([REPO / "ckp", *arguments], timeout=timeout, check=check, env=environment, cwd=self.folder)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """The server: OpenSSH, a user with a key who may use sudo, and nobody's name server that knows a name."""
    lab = Lab(paths.state() / "lab-site", NETWORK)
    lab.down()
    folder = tmp_path_factory.mktemp("site")
    try:
        lab.ensure_base(print)
        host = lab.ensure_host(SERVER)
        key = host.pull("/root/.ssh/authorized_keys")
        host.run(["useradd", "--create-home", "--shell", "/bin/bash", USER], timeout=30)
        host.push(key, f"/home/{USER}/.ssh/authorized_keys")
        host.run(["chown", "-R", f"{USER}:{USER}", f"/home/{USER}/.ssh"], timeout=30)
        host.push(f"{USER} ALL=(ALL) NOPASSWD: ALL\n".encode(), "/etc/sudoers.d/ops", mode=0o440)
        host.run(["rm", "/root/.ssh/authorized_keys"], timeout=30)
        ssh = lab.ssh_settings(SERVER.name)
        (folder / "known_hosts").write_text(ssh.known_hosts_file.read_text())
        (folder / "key").write_bytes(ssh.identity_file.read_bytes())
        (folder / "key").chmod(0o600)
        yield Place(host, folder)
    finally:
        if not os.environ.get("CKP_KEEP_LAB"):
            lab.down()


def snapshot(host: LabHost) -> dict[str, str]:
    listing = host.run(["python3", "-c", SNAPSHOT], timeout=120).stdout
    return {line.split(" ", 1)[0]: line for line in listing.splitlines() if not line.startswith(MAY_DIFFER)}


@pytest.fixture(scope="module")
def before(place: Place) -> dict[str, str]:
    return snapshot(place.host)


def write_site(place: Place) -> None:
    options = ("--name", NAME, "--host", f"{SERVER.name}={SERVER.address}", "--user", USER)
    place.ckp("site", "init", *options, "--network", "10.177.96.0/24", "--pool", "10.177.96.100-10.177.96.120")
    spec = parse_site(place.file.read_bytes(), place.file)
    [host] = spec.management.hosts or ()
    assert host.ssh is not None
    ssh = host.ssh.model_copy(update={"host": SERVER.address, "identity_file": Path("key"), "known_hosts_file": Path("known_hosts")})
    management = spec.management.model_copy(update={"hosts": (host.model_copy(update={"ssh": ssh}),)})
    # What only hosts in containers on one machine need.
    changed = spec.model_copy(update={"management": management, "host_settings": HOST_SETTINGS, "addon_values": ADDON_VALUES})
    place.file.write_text(dump_site(changed))


def test_a_site_is_applied_by_ssh_to_a_server(place: Place, before: dict[str, str]) -> None:
    write_site(place)
    assert before
    done = place.ckp("site", "apply", "-f", str(place.file), "--profile", "lab", timeout=1500)
    print(done.stdout)
    assert f"The site {NAME} is up." in done.stdout
    parts = json.loads(place.ckp("site", "status", "-f", str(place.file), "-o", "json").stdout)
    assert {part["state"] for part in parts} == {"ok"} and len(parts) > 8
    groups = json.loads(place.ckp("hostgroup", "list", "-o", "json").stdout)["items"]
    assert [group["name"] for group in groups] == ["default"]


def test_applying_again_changes_nothing(place: Place) -> None:
    nodes = place.host.run(["systemctl", "show", "-p", "ActiveEnterTimestamp", "kubelet", "ckp-registry@pull", "ckp-registry@push"], timeout=30).stdout
    done = place.ckp("site", "apply", "-f", str(place.file), "--profile", "lab", timeout=600)
    print(done.stdout)
    assert "is a cluster already" in done.stdout and "ckp: unchanged" in done.stdout
    again = place.host.run(["systemctl", "show", "-p", "ActiveEnterTimestamp", "kubelet", "ckp-registry@pull", "ckp-registry@push"], timeout=30).stdout
    assert again == nodes, "nothing was started again"


def test_its_only_release_is_listed_and_not_removed(place: Place) -> None:
    listed = json.loads(place.ckp("site", "release", "list", "-f", str(place.file), "-o", "json").stdout)["items"]
    assert [(item["state"], item["management"], item["clusters"]) for item in listed] == [("offered", True, [])]
    text = place.file.read_text()
    refused = place.ckp("site", "release", "remove", listed[0]["name"], "-f", str(place.file), check=False)
    assert refused.code == 1 and f"the management cluster runs {listed[0]['name']}" in refused.stderr and "nothing was changed" in refused.stderr
    assert place.file.read_text() == text


def test_its_registry_lets_everybody_read_and_nobody_write_without_the_password(place: Place) -> None:
    ca = str(place.state / "registry" / "ca.pem")
    asked = ["curl", "-sS", "--cacert", ca, "-o", "/dev/null", "-w", "%{http_code}", "--max-time", "20"]
    read = run([*asked, f"https://{SERVER.address}:5000/v2/ckp/etcd/tags/list"], timeout=40).stdout
    pushes = {port: run([*asked, "-X", "POST", f"https://{SERVER.address}:{port}/v2/ckp/etcd/blobs/uploads/"], timeout=40).stdout for port in (5000, 5001)}
    assert (read, pushes) == ("200", {5000: "405", 5001: "401"})
    for secret in ("ca.key", "credentials.json", "htpasswd", "tls.pem"):
        assert (place.state / "registry" / secret).stat().st_mode & 0o777 == 0o600


def test_a_site_that_this_version_cannot_apply_is_refused(place: Place) -> None:
    other = place.folder / "other.yaml"
    other.write_text(f"{place.file.read_text()}\nbackup:\n  to: {{path: /mnt}}\n  encryptFor: [a.pgp]\n")
    done = place.ckp("site", "apply", "-f", str(other), check=False)
    assert done.code == 2 and "backups are not made yet" in done.stderr and "nothing was changed" in done.stderr


def test_removing_a_site_leaves_its_server_as_it_was(place: Place, before: dict[str, str]) -> None:
    refused = place.ckp("site", "remove", "-f", str(place.file), check=False)
    assert refused.code == 2 and f"--confirm {NAME}" in refused.stderr
    done = place.ckp("site", "remove", "-f", str(place.file), "--confirm", NAME, timeout=900)
    print(done.stdout)
    after = snapshot(place.host)
    differ = sorted(path for path in {*before, *after} if before.get(path) != after.get(path))
    assert differ == [], [(before.get(path), after.get(path)) for path in differ[:40]]
    units = place.host.run(
        ["systemctl", "list-units", "--all", "--plain", "--no-legend", "ckp-agent*", "ckp-registry*", "kubelet*", "containerd*"], timeout=30
    ).stdout
    assert units.strip() == ""
    assert not (place.state / "registry").exists()
    place.ckp("site", "remove", "-f", str(place.file), "--confirm", NAME, timeout=300)
