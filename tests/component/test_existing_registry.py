"""A registry of others: the registry that CKP builds, with TLS by a CA of its own and two users of an htpasswd file, on loopback, under a prefix."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ckp.agent.fetch.pull import pull
from ckp.agent.messages import RegistryLogin
from ckp.agent.system import registry_login
from ckp.catalog.models import BundleTarget
from ckp.clients.oci.registry import LAYER_ZSTD, BlobStore, Registry, image_manifest
from ckp.distribution.bundles import Bundle, push_bundle
from ckp.distribution.registries import htpasswd
from ckp.distribution.registries.authority import Authority
from ckp.distribution.registries.config import ENVIRONMENT, server_config
from ckp.hostkit import locations
from ckp.hostkit.errors import AgentError
from ckp.kits.errors import CkpError
from ckp.kits.processes import Daemon
from ckp.kits.retry import wait_until
from ckp.site.check import registry as check
from ckp.site.check import remote
from ckp.site.check.model import SiteToCheck
from ckp.site.inventory import OutsideRegistry
from ckp.site.registries import existing
from ckp.site.registries.existing import ExistingRegistry
from tests.support.control_plane import built, free_port

pytestmark = pytest.mark.component

PUSHER, PULLER = "ci:pushes-7", "node:reads-7"
PREFIX = "infra/k8s"


def encoded(login: str) -> str:
    return base64.b64encode(login.encode()).decode()


@dataclass
class Others:
    """The registry: one process that takes pushes, and one over the same content that serves reads only. Both ask for a password."""

    root: Path
    ca: Path
    port: int
    read_port: int

    def file(self, login: str, port: int) -> Path:
        """Credentials in docker's format."""
        path = self.root / f"{login.partition(':')[0]}-{port}.json"
        path.write_bytes(existing.docker_config(f"127.0.0.1:{port}", encoded(login)))
        path.chmod(0o600)
        return path

    @property
    def place(self) -> OutsideRegistry:
        return OutsideRegistry(f"127.0.0.1:{self.port}", PREFIX, self.ca, self.file(PUSHER, self.port), encoded(PULLER))


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Others]:
    program, root = built("distribution").binary("registry"), tmp_path_factory.mktemp("others")
    now = datetime.now(UTC)
    authority = Authority.create("an owner's CA", now=now)
    leaf = authority.issue(["127.0.0.1", "localhost"], now=now)
    made = Others(root, root / "ca.pem", free_port(), free_port())
    made.ca.write_bytes(authority.pem)
    (root / "tls.pem").write_bytes(leaf.certificate + leaf.key)
    (root / "tls.pem").chmod(0o600)
    (root / "users").write_text("".join(htpasswd.entry(*login.split(":")) for login in (PUSHER, PULLER)))
    daemons = []
    for port, read_only in ((made.port, False), (made.read_port, True)):
        tls = str(root / "tls.pem")
        config = root / f"{port}.yml"
        config.write_text(server_config("127.0.0.1", port, str(root / "content"), tls, tls, htpasswd=str(root / "users"), read_only=read_only))
        daemons.append(Daemon(f"registry-{port}", root / f"{port}.pid", root / f"{port}.log"))
        daemons[-1].start([program, "serve", config], env=ENVIRONMENT)
    try:
        for port in (made.port, made.read_port):
            with closing(Registry(f"127.0.0.1:{port}", made.ca)) as client:
                wait_until(client.alive, what="the registry answers", timeout=60, every=0.2, reason=daemons[0].tail)
        yield made
    finally:
        for daemon in daemons:
            daemon.stop()


@pytest.fixture(scope="module")
def imgpkg() -> Path:
    return built("imgpkg").binary("imgpkg")


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Caches, and what a host keeps, lie below the test's own folder."""
    monkeypatch.setenv("CKP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(locations, "REGISTRY_LOGIN", str(tmp_path / "registry-login.json"))


def findings(place: OutsideRegistry) -> list[str]:
    return [f"{each.severity.value}: {each.what}" for each in check.check_registry(SiteToCheck([], registry=place), lambda _line: None)]


def image(registry: Registry, repository: str, tag: str, content: bytes, folder: Path) -> str:
    store = BlobStore(folder / "blobs")
    manifest = image_manifest(store, [(store.put(content, LAYER_ZSTD), f"sha256:{'0' * 64}")], {}, "2026-01-01T00:00:00Z")
    registry.push(store, manifest, repository, tag)
    return manifest.digest


def test_the_check_sees_what_each_user_may_do(others: Others, tmp_path: Path) -> None:
    reads_only = replace(others.place, host=f"127.0.0.1:{others.read_port}", credentials=others.file(PUSHER, others.read_port))
    [warning] = findings(others.place)
    assert warning.startswith("warning: the user of pullCredentialsFile, whom all hosts get, may push"), "htpasswd knows no rights"
    [error] = findings(reads_only)
    assert error == f"error: the registry does not let this machine push to 127.0.0.1:{others.read_port}/{PREFIX}/ckp"
    [error] = findings(replace(others.place, credentials=others.file("ci:wrong", others.port), login=""))
    assert "does not let this machine push" in error
    others.file(PUSHER, others.port)
    other = tmp_path / "other-ca.pem"
    other.write_bytes(Authority.create("another CA", now=datetime.now(UTC)).pem)
    [error] = findings(replace(others.place, ca=other))
    assert "is not trusted" in error and "reads-7" not in error


def test_a_host_is_told_why_it_can_not_pull(others: Others, tmp_path: Path) -> None:
    request = check.request_of(SiteToCheck([], registry=others.place))
    assert request is not None and remote.ask_registry(**request) == 404, "nothing is there, and it may be asked for"
    assert remote.ask_registry(**{**request, "basic": ""}) == 401
    assert remote.ask_registry(**{**request, "basic": encoded("node:wrong")}) == 401
    other = Authority.create("another CA", now=datetime.now(UTC)).pem.decode()
    assert "its certificate is not trusted" in remote.ask_registry(**{**request, "ca": other})
    assert "refused" in str(remote.ask_registry(**{**request, "host": f"127.0.0.1:{free_port()}"}))


def test_a_bundle_is_pushed_below_the_prefix_and_pulled_by_the_agent_with_its_own_login(others: Others, imgpkg: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "bundle.json").write_bytes(os.urandom(100_000))
    server, target = ExistingRegistry(others.place, tmp_path / "state"), BundleTarget(os="debian", os_version="12")
    release = cast(Any, SimpleNamespace(stamp="v1.35.1-ckp"))
    with closing(server.ensure(lambda _line: None)) as client:
        with server.recorded(client, "v1.35.1", {f"ckp/{target.repository}": release.stamp}) as may_replace:
            assert may_replace
            digest = push_bundle(Bundle(target, folder), release, client, server.endpoint, server.ca, imgpkg, server.credentials)
    name = f"{server.address}/ckp/{target.repository}@{digest}"
    assert name.startswith(f"127.0.0.1:{others.port}/infra/k8s/ckp/byoh-bundle-debian_12")
    blobs, ca = str(tmp_path / "pulled.blobs"), str(others.ca)
    registry_login.keep(RegistryLogin(others.place.host, encoded("node:wrong")))
    with pytest.raises(AgentError, match="does not take the password that this host has for it"):
        pull(str(imgpkg), name, ca, blobs, str(tmp_path / "pulled"))
    registry_login.keep(RegistryLogin(others.place.host, others.place.login))
    assert Path(locations.REGISTRY_LOGIN).stat().st_mode & 0o777 == 0o600
    pull(str(imgpkg), name, ca, blobs, str(tmp_path / "pulled"))
    assert (tmp_path / "pulled" / "bundle.json").read_bytes() == (folder / "bundle.json").read_bytes()
    seen = json.dumps([path.read_text() for path in (others.root).glob("*.log")])
    assert "reads-7" not in seen and "pushes-7" not in seen


def test_content_of_others_stays_in_a_registry_that_really_deletes(others: Others, tmp_path: Path) -> None:
    server, lines = ExistingRegistry(others.place, tmp_path / "state"), list[str]()
    with closing(Registry(others.place.host, others.ca, credentials=others.place.credentials)) as owner:
        theirs = image(owner, "infra/k8s/ckp/pause", "3.10", b"of others", tmp_path)
        image(owner, "team/app", "1", b"an app", tmp_path)
        with closing(server.client()) as client:
            with server.recorded(client, "v9.9.9", {"ckp/pause": "3.10", "ckp/etcd": "9"}) as may_replace:
                assert not may_replace, "a tag of others is there"
                ours = image(client, "ckp/etcd", "9", b"of the site", tmp_path)
            assert "infra/k8s/ckp/etcd" in owner.catalog() and client.digest("ckp/etcd", "9") == ours
            server.remove_content(client, "v9.9.9", lines.append)
            assert client.digest("ckp/etcd", "9") is None
        assert owner.digest("infra/k8s/ckp/pause", "3.10") == theirs and owner.tags("team/app") == ["1"]
    assert lines[-1] == f"v9.9.9: 1 removed from {server.address}"


def test_a_user_who_may_not_push_is_told_so(others: Others, tmp_path: Path) -> None:
    place = replace(others.place, credentials=others.file("ci:wrong", others.port))
    with pytest.raises(CkpError, match="does not let this machine push to"):
        ExistingRegistry(place, tmp_path / "state").ensure(print)
    others.file(PUSHER, others.port)
