"""A site on a simulated management host: the commands plan, check and apply run whole against it, with a release that is not built."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result

from ckp.catalog.models import BundleTarget
from ckp.cli import deliverables
from ckp.cli.site import site as command
from ckp.distribution.management import Management
from ckp.distribution.packages.agent import agent_version
from ckp.kits.errors import Conflict, NotFound
from ckp.kits.files import sha256_bytes
from ckp.kits.processes import Finished, ProcessFailed
from ckp.site import described, install, publish
from ckp.site.check import of_spec
from ckp.site.install import Site
from ckp.site.inventory import SiteHost
from ckp.site.plan import look, wanted
from ckp.site.registries.hosted import HostedRegistry
from ckp.site.spec.model import Host
from tests.simulators.management_host import ManagementHost

TEXT = """\
apiVersion: ckp.coredge.io/v1alpha1
kind: Site
metadata: {name: berlin}
management:
  hosts:
    - {name: m1, address: 192.0.2.10}
addresses:
  hosts: 192.0.2.0/24
  loadBalancers: {ciliumPool: {first: 192.0.2.200, last: 192.0.2.220}}
  compass: {address: 192.0.2.200}
  hub: {address: 192.0.2.201}
  managementPods: 10.1.0.0/16
registry:
  own: {name: images.example.test, port: 5443, storage: /srv/images}
releases: [v1.35.1]
workers: {group: {name: racks, description: All racks}}
hostSettings: {kubelet: {maxPods: 50}}
addonValues: {cilium: {mtu: 9000}}
"""
RELEASE = "v1.35.1"
DIGEST = sha256_bytes(b"image")


IMAGES = ("etcd", "kube-apiserver", "cilium", "ckp-platform", "ckp-addons", "ckp-backup", "ckp-agent", "ckp-packages", "cert-manager-controller")


class Release:
    """A release that is not built: what of it is pushed and installed. `images`: repository -> digest, as pushing gives it."""

    def __init__(self, root: Path, name: str) -> None:
        self.release = SimpleNamespace(name=name, stamp=f"{name}-ckp", built_cni={"cilium": "v1.19.5"})
        self.built = {role: SimpleNamespace(binary=lambda _name: root / "registry") for role in ("distribution", "kubernetes")}
        self.keyring = root / "keys" / "trusted.gpg"
        self.tags = dict.fromkeys(IMAGES, "1")
        self.targets = [BundleTarget(os="debian", os_version="12")]
        self.stand_ins: list[str] = []
        self.base = None
        self.images = dict.fromkeys((*self.tags, *(target.repository for target in self.targets)), f"sha256:{DIGEST}")
        self.root = root

    @property
    def about(self) -> dict[str, Any]:
        """As a release from a file has it."""
        return {"digests": self.images}

    def agent(self, _format: str) -> Any:
        """The package, whose content is its version here."""
        version = agent_version(self.keyring)
        (self.root / "ckp-agent.deb").write_text(version)
        return SimpleNamespace(version=version, path=self.root / "ckp-agent.deb")

    def push(self, *_: object, **__: object) -> dict[str, str]:
        """Nothing is sent."""
        return dict(self.images)


class FakeSession:
    """As much of Compass as the site's host group needs."""

    def __init__(self, groups: dict[str, str]) -> None:
        self.groups = groups

    def get(self, path: str) -> dict[str, str]:
        name = path.rpartition("/")[2]
        if path == "/api/v1/me":
            return {"name": "admin"}
        if name not in self.groups:
            raise NotFound(f"there is no host group {name}")
        return {"name": name, "description": self.groups[name]}

    def call(self, method: str, path: str, body: Mapping[str, str]) -> None:
        assert (method, path) == ("POST", "/host-groups")
        if body["name"] in self.groups:
            raise Conflict("there is one")
        self.groups[body["name"]] = body["description"]

    def close(self) -> None:
        """Nothing is open."""


class AppliedSite:
    """A site, its file, its host and this machine; `write` changes the file."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch, name: str = "m1", address: str = "192.0.2.10") -> None:
        self.root, self.file = root, root / "site.yaml"
        self.host = ManagementHost(root / "host", name, address)
        self.hosts = {self.host.name: self.host}
        self.host.dns = {"hub.example.test": "192.0.2.201", "ckp-hub.example.test": "192.0.2.201"}
        self.groups: dict[str, str] = {}
        for name in ("state", "cache", "keys"):
            (root / name).mkdir()
            monkeypatch.setenv(f"CKP_{name.upper()}", str(root / name))
        monkeypatch.setenv("CKP_CONFIG", str(root / "config.json"))
        (root / "keys" / "trusted.gpg").write_bytes(b"keys")
        self.releases: dict[str, Release] = {}
        (root / "registry").write_bytes(b"the program")
        self.write()

        @contextmanager
        def reached(host: Host) -> Iterator[SiteHost]:
            yield self.hosts.get(host.name, self.host)

        def hosted(host: ManagementHost, *arguments: Any, **more: Any) -> HostedRegistry:
            more["connect"] = host.connect
            return HostedRegistry(host, *arguments, **more)

        def kubectl(_site: Site, *words: str, stdin: str | None = None, timeout: float = 0, check: bool = True) -> Finished:
            code, out, err = self.host.step(f"kubectl {words[0]}", lambda: self.host.api.kubectl(words, stdin))
            if check and code:
                raise ProcessFailed(f"kubectl {words[0]} failed", details=err)
            return Finished(words, code, out, err, 0.0)

        for user in (described, of_spec):
            monkeypatch.setattr(user, "reached", reached)
        monkeypatch.setattr(publish, "HostedRegistry", hosted)
        monkeypatch.setattr(deliverables, "make_release", lambda _catalog, release, inventory, *_: self.made(release.name, inventory.systems))
        monkeypatch.setattr(deliverables, "verified_release", lambda archive, _keyring, _registry, systems, *_: self.made(archive.stem, systems))
        monkeypatch.setattr(install, "verify_package", lambda *_, **__: None)
        monkeypatch.setattr(Management, "cert_manager", lambda each: [_pod("cert-manager", each.image("cert-manager-controller"))])
        monkeypatch.setattr(Management, "cluster_api", lambda each, _kubectl: [_pod("capi", "capi")])
        monkeypatch.setattr(Site, "kubectl", kubectl)
        monkeypatch.setattr(Site, "_compass_answers", lambda _site: True)
        for caller in (install, look):
            monkeypatch.setattr(caller, "Session", lambda _config: FakeSession(self.groups))
        monkeypatch.setattr(wanted, "build_key", lambda _catalog, source, _stamp: f"{source.component} {source.version}")

    def add(self, name: str, address: str) -> ManagementHost:
        """Another machine, which the file may name; its cluster, once it is in one, is that of the others."""
        self.hosts[name] = ManagementHost(self.root / "hosts" / f"{name}-{len(self.hosts)}", name, address, self.host.api)
        self.hosts[name].dns = self.host.dns
        return self.hosts[name]

    def made(self, name: str, systems: Sequence[BundleTarget] = ()) -> Release:
        """A release for a site, whether it was built or read from a file."""
        found = self.releases.get(name) or self.releases.setdefault(name, Release(self.root, name))
        for target in systems:
            if target not in found.targets:
                found.targets.append(target)
                found.images[target.repository] = f"sha256:{DIGEST}"
        return found

    @property
    def release(self) -> Release:
        """The one that the site begins with."""
        return self.made(RELEASE)

    def write(self, *changes: tuple[str, str]) -> None:
        """The site's file, with these texts in place of others."""
        text = TEXT
        for old, new in changes:
            assert old in text, old
            text = text.replace(old, new)
        self.file.write_text(text)

    def run(self, *arguments: str) -> Result:
        """A command about the site; its own errors come out as they are."""
        return CliRunner().invoke(command, [arguments[0], "-f", str(self.file), *arguments[1:]], catch_exceptions=False)

    def taking(self, names: Sequence[str]) -> list[str]:
        """Options by which these releases come from files."""
        files = [self.root / "cache" / f"{name}.ckp" for name in names]
        for file in files:
            file.write_bytes(b"")
        return [word for file in files for word in ("--from", str(file))]

    def plan(self, *archives: str) -> tuple[int, dict[str, dict[str, str]]]:
        """Exit code, and the rows by their parts; one part has one row.

        Args:
            archives: names of releases that come from files.
        """
        done = self.run("plan", "-o", "json", *self.taking(archives))
        items = json.loads(done.stdout)["items"]
        rows = {item["part"]: item for item in items}
        assert len(rows) == len(items), [item["part"] for item in items]
        return done.exit_code, rows

    def everything(self) -> dict[str, str]:
        """The host, its cluster, and all that this machine keeps but for caches and the lock of applying: path -> content."""
        other = ("cache", "host", "hosts", "ckp-agent.deb")
        own = [path for path in sorted(self.root.rglob("*")) if path.is_file() and path.relative_to(self.root).parts[0] not in other]
        here = {str(path.relative_to(self.root)): f"{sha256_bytes(path.read_bytes())} {path.stat().st_mode:o}" for path in own if path.name != "apply.lock"}
        services = {unit: f"{item.starts} {item.active}" for unit, item in self.host.services.items()}
        cluster = {str(key): json.dumps(value, sort_keys=True) for key, value in self.host.api.objects.items()}
        return {**self.host.tree(), **here, **services, **cluster, **self.host.packages}


def _pod(name: str, image: str) -> dict[str, Any]:
    spec = {"selector": {"matchLabels": {"app": name}}, "template": {"spec": {"containers": [{"name": name, "image": image}]}}}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "namespace": f"{name}-system"}, "spec": spec}
