"""The registry that CKP builds, as a site's host runs it: two processes over one folder, by the configuration that is generated for them.

What their sandbox adds is not here: below systemd, the process for pulls cannot write to the folder at all.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import ssl
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import pytest

from ckp.catalog.load import Catalog
from ckp.clients.oci.registry import LAYER_ZSTD, BlobStore, Descriptor, Registry, image_manifest
from ckp.distribution.builder.component import Built, build_component, is_built
from ckp.distribution.registries.config import ENVIRONMENT
from ckp.kits.errors import CkpError
from ckp.kits.files import sha256_file
from ckp.kits.processes import Daemon, run
from ckp.kits.retry import wait_until
from ckp.site.registries.gc import collect
from ckp.site.registries.hosted import HostedRegistry, configurations
from ckp.site.registries.unit import CONFIG, PROGRAM, PULL, PUSH, unit_of
from tests.simulators.site_host import SimulatedHost
from tests.support.control_plane import RELEASE, free_port
from tests.support.marks import not_built

pytestmark = pytest.mark.component

ADDRESS = "127.0.0.1"
WRONG = base64.b64encode(b"ckp:wrong").decode()


def component(role: str) -> Built:
    """A component of the release; skips the test if it is not built."""
    catalog = Catalog()
    release = catalog.release(RELEASE)
    chosen = catalog.choose(release, role, "lab")
    if not is_built(catalog, chosen, release.stamp):
        not_built(role)
    return build_component(catalog, chosen, release.stamp, print)


@dataclass
class Site:
    """Both processes run."""

    registry: HostedRegistry
    storage: Path
    daemons: dict[str, Daemon]
    configs: dict[str, Path]

    def start(self, instance: str) -> None:
        """Start a process, and wait until it answers."""
        self.daemons[instance].start([self.registry.program, "serve", self.configs[instance]], env=ENVIRONMENT)
        port = self.registry.push_port if instance == PUSH else self.registry.port
        with closing(Registry(f"{ADDRESS}:{port}", self.registry.ca)) as client:
            wait_until(client.alive, what=f"the process for {instance}", timeout=30, every=0.1, reason=self.daemons[instance].tail)

    @property
    def password(self) -> str:
        """User and password, as HTTP has them."""
        assert self.registry.credentials is not None
        [entry] = json.loads(self.registry.credentials.read_bytes())["auths"].values()
        return str(entry["auth"])

    def url(self, instance: str) -> str:
        """Where it answers."""
        return f"https://{ADDRESS}:{self.registry.push_port if instance == PUSH else self.registry.port}"

    def http(self, login: str = "") -> httpx.Client:
        """Plain HTTPS, with or without a password."""
        trust = ssl.create_default_context(cafile=str(self.registry.ca))
        return httpx.Client(verify=trust, trust_env=False, timeout=20, headers={"Authorization": f"Basic {login}"} if login else {})

    def tree(self) -> dict[str, str]:
        """All files of the storage."""
        return {str(path.relative_to(self.storage)): sha256_file(path) for path in sorted(self.storage.rglob("*")) if path.is_file()}

    def puller(self) -> Registry:
        """A client without a password, at the port for pulls."""
        return Registry(f"{ADDRESS}:{self.registry.port}", self.registry.ca)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Locks and blobs on their way go below the test's own folder."""
    monkeypatch.setenv("CKP_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    program = component("distribution").binary("registry")
    root = tmp_path_factory.mktemp("site")
    storage = root / "storage"
    storage.mkdir()
    registry = HostedRegistry(SimulatedHost(root / "host"), program, "localhost", ADDRESS, free_port(), free_port(), storage=str(storage), state=root / "state")
    registry.folder.mkdir()
    registry.prepare(print)
    ports = (ADDRESS, registry.port, ADDRESS, registry.push_port)
    texts = configurations(*ports, str(storage), str(registry.folder / "tls.pem"), str(registry.folder / "htpasswd"))
    configs = {instance: root / f"{instance}.yml" for instance in texts}
    for instance, text in texts.items():
        configs[instance].write_text(text)
    site = Site(registry, storage, {name: Daemon(name, root / f"{name}.pid", root / f"{name}.log") for name in (PULL, PUSH)}, configs)
    try:
        for instance in site.daemons:
            site.start(instance)
        yield site
    finally:
        for daemon in site.daemons.values():
            daemon.stop()


@pytest.fixture(scope="module")
def imgpkg() -> Path:
    return component("imgpkg").binary("imgpkg")


@dataclass
class Image:
    """What a test has pushed."""

    store: BlobStore
    manifest: Descriptor
    blob: Descriptor


def pushed(site: Site, folder: Path, repository: str, tag: str, content: bytes) -> Image:
    """Push an image with the password."""
    store = BlobStore(folder / "blobs")
    blob = store.put(content, LAYER_ZSTD)
    manifest = image_manifest(store, [(blob, f"sha256:{'0' * 64}")], {}, "2026-01-01T00:00:00Z")
    with closing(site.registry.client()) as client:
        client.push(store, manifest, repository, tag)
    return Image(store, manifest, blob)


@dataclass
class Change:
    """A request that would change something: each method and route of the distribution specification 1.1 that does."""

    method: str
    path: str
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()

    def send(self, http: httpx.Client, base: str) -> httpx.Response:
        return http.request(self.method, f"{base}{self.path}", content=self.body, headers=dict(self.headers))


def changes(image: Image, upload: str) -> list[Change]:
    """Args:
    upload: path and query of an upload that was begun, as its `Location` had them.
    """
    name, manifest = "/v2/ckp/kept", image.store.path(image.manifest.digest).read_bytes()
    typed, more = (("Content-Type", image.manifest.media_type),), "&" if "?" in upload else "?"
    stream = (("Content-Type", "application/octet-stream"),)
    return [
        Change("POST", f"{name}/blobs/uploads/"),
        Change("POST", f"{name}/blobs/uploads/?digest={image.blob.digest}", b"kept", stream),
        Change("POST", f"/v2/ckp/fresh/blobs/uploads/?mount={image.blob.digest}&from=ckp/kept"),
        Change("PATCH", upload, b"more", stream),
        Change("PUT", f"{upload}{more}digest={image.blob.digest}", b"kept", stream),
        Change("DELETE", upload),
        Change("PUT", f"{name}/manifests/other", manifest, typed),
        Change("PUT", f"{name}/manifests/{image.manifest.digest}", manifest, typed),
        Change("DELETE", f"{name}/manifests/v1"),
        Change("DELETE", f"{name}/manifests/{image.manifest.digest}"),
        Change("DELETE", f"{name}/blobs/{image.blob.digest}"),
    ]


def begun_upload(site: Site) -> str:
    """Path and query of an upload that somebody with the password has begun."""
    with site.http(site.password) as http:
        answer = http.post(f"{site.url(PUSH)}/v2/ckp/kept/blobs/uploads/")
    assert answer.status_code == 202
    return httpx.URL(answer.headers["Location"]).raw_path.decode()


# -- who may change what


def test_the_requests_that_are_refused_here_are_those_that_change_something_with_the_password(site: Site, tmp_path: Path) -> None:
    """So that no refusal below is for another reason."""
    image = pushed(site, tmp_path, "ckp/kept", "v1", b"kept")
    with site.http(site.password) as http:
        for number in range(len(changes(image, ""))):
            pushed(site, tmp_path, "ckp/kept", "v1", b"kept")
            change, before = changes(image, begun_upload(site))[number], site.tree()
            answer = change.send(http, site.url(PUSH))
            assert answer.is_success, (change, answer.text)
            same = change.method == "PUT" and image.manifest.digest in change.path  # it is there under its digest
            assert same or site.tree() != before, change


@pytest.mark.parametrize("login", ["nobody", "wrong password", "the password"])
def test_the_port_for_pulls_refuses_every_change_whoever_asks(site: Site, tmp_path: Path, login: str) -> None:
    image = pushed(site, tmp_path, "ckp/kept", "v1", b"kept")
    given = {"nobody": "", "wrong password": WRONG, "the password": site.password}[login]
    upload = begun_upload(site)
    before = site.tree()
    with site.http(given) as http:
        for change in changes(image, upload):
            answer = change.send(http, site.url(PULL))
            # An upload's token is of the process that began it: that is refused before its method is.
            expected = (404, "BLOB_UPLOAD_INVALID") if "_state=" in change.path else (405, "")
            assert (answer.status_code, answer.json()["errors"][0]["code"] if answer.status_code == 404 else "") == expected, change
    assert site.tree() == before


@pytest.mark.parametrize("login", ["", WRONG, base64.b64encode(b"ckp:").decode(), base64.b64encode(b"other:x").decode()])
def test_the_port_for_pushes_answers_nothing_without_the_password(site: Site, tmp_path: Path, login: str) -> None:
    image = pushed(site, tmp_path, "ckp/kept", "v1", b"kept")
    upload = begun_upload(site)
    before = site.tree()
    reads = [Change("GET", path) for path in ("/v2/", "/v2/_catalog", "/v2/ckp/kept/tags/list", "/v2/ckp/kept/manifests/v1", upload)]
    with site.http(login) as http:
        for change in [*changes(image, upload), *reads]:
            answer = change.send(http, site.url(PUSH))
            assert answer.status_code == 401 and answer.headers["WWW-Authenticate"].startswith("Basic "), change
    assert site.tree() == before


def test_an_upload_that_somebody_knows_of_cannot_be_changed_by_a_token_of_the_port_for_pulls(site: Site, tmp_path: Path) -> None:
    """distribution's read-only mode tells the state of an upload, and gives a token for it."""
    pushed(site, tmp_path, "ckp/kept", "v1", b"kept")
    path = begun_upload(site)
    before = site.tree()
    with site.http() as http:
        told = http.get(f"{site.url(PULL)}{path.partition('?')[0]}")
        token = httpx.URL(told.headers["Location"]).raw_path.decode()
        for method in ("PATCH", "PUT", "DELETE"):
            assert http.request(method, f"{site.url(PULL)}{token}", content=b"x").status_code == 405
            assert http.request(method, f"{site.url(PUSH)}{token}", content=b"x").status_code == 401
    assert site.tree() == before


def test_a_client_with_a_wrong_password_is_told_and_nothing_is_shown(site: Site, tmp_path: Path) -> None:
    file = tmp_path / "credentials.json"
    file.write_text(json.dumps({"auths": {site.registry.endpoint: {"auth": WRONG}}}))
    file.chmod(0o600)
    with closing(Registry(site.registry.endpoint, site.registry.ca, credentials=file)) as client:
        with pytest.raises(CkpError, match="refuses") as caught:
            client.push_blob("ckp/kept", Descriptor("x", "sha256:" + "a" * 64, 1), b"x")
    assert "password and rights" in caught.value.resolution and "wrong" not in caught.value.render() and WRONG not in caught.value.render()


def test_the_password_is_in_no_log(site: Site) -> None:
    logs = "".join(daemon.log.read_text() for daemon in site.daemons.values())
    assert logs and site.password not in logs and base64.b64decode(site.password).decode().partition(":")[2] not in logs


# -- two processes over one folder


def test_what_is_pushed_is_there_for_everybody_at_once(site: Site, tmp_path: Path) -> None:
    with closing(site.puller()) as puller, closing(site.registry.client()) as pusher:
        for number in range(5):  # asked for before: a process that cached that it is not there, or what a tag named, would be found out
            assert puller.digest("ckp/seen", f"v{number}") is None
            image = pushed(site, tmp_path, "ckp/seen", f"v{number}", os.urandom(1000))
            assert puller.digest("ckp/seen", f"v{number}") == image.manifest.digest
            assert f"v{number}" in puller.tags("ckp/seen") and "ckp/seen" in puller.catalog()
            assert puller.get_blob("ckp/seen", image.blob) == image.store.path(image.blob.digest).read_bytes()
            moved = pushed(site, tmp_path, "ckp/seen", f"v{number}", os.urandom(1000))
            assert puller.digest("ckp/seen", f"v{number}") == moved.manifest.digest
            assert pusher.delete("ckp/seen", moved.manifest.digest)
            assert puller.digest("ckp/seen", f"v{number}") is None and puller.find_manifest("ckp/seen", moved.manifest.digest) is None


def test_a_blob_of_another_repository_is_mounted_with_the_password(site: Site, tmp_path: Path) -> None:
    image = pushed(site, tmp_path, "ckp/home", "v1", os.urandom(1000))
    with closing(site.registry.client()) as client, closing(site.puller()) as puller:
        assert not client.push_blob("ckp/home", image.blob, b"")
        assert not client.push_blob("ckp/second-home", image.blob, lambda: pytest.fail("it is mounted, not sent"))
        assert puller.has_blob("ckp/second-home", image.blob.digest)


def test_a_download_goes_on_while_its_process_is_told_to_stop(site: Site, tmp_path: Path) -> None:
    content = os.urandom(30 << 20)
    image = pushed(site, tmp_path, "ckp/large", "v1", content)
    with site.http() as http, http.stream("GET", f"{site.url(PULL)}/v2/ckp/large/blobs/{image.blob.digest}") as answer:
        parts = answer.iter_raw(65536)
        received = [next(parts)]
        pid = site.daemons[PULL].pid()
        assert pid is not None
        os.kill(pid, signal.SIGTERM)
        time.sleep(0.3)
        received += parts
    assert b"".join(received) == content
    wait_until(lambda: site.daemons[PULL].pid() is None, what="it ends", timeout=60)
    site.start(PULL)


# -- garbage collection


class Collecting(SimulatedHost):
    """The host for `collect`: its transient unit is the real program, between the end and the start of the process for pushes."""

    def __init__(self, site: Site, root: Path) -> None:
        super().__init__(root)
        self.site, self.during = site, list[str]()
        self.kill_after_seconds = 0.0

    def _command(self, words: list[str], stdin: str | None = None) -> tuple[int, str, str]:
        if words[0] == "systemctl" and words[1] == "show":
            return 0, f"ActiveState={'active' if words[-1] == unit_of(PUSH) and self.site.daemons[PUSH].pid() else 'inactive'}\n", ""
        if words[0] == "systemctl" and words[1:] == ["start", unit_of(PUSH)]:
            self.site.start(PUSH)
            return 0, "", ""
        if words[0] == "du":
            done = run(words, timeout=60, check=False)
            return done.code, done.stdout, done.stderr
        if words[0] != "systemd-run":
            return super()._command(words, stdin)
        assert f"--property=Conflicts={unit_of(PUSH)}" in words
        self.site.daemons[PUSH].stop()
        program, verb, config = words[words.index("--") + 1 :]
        assert (program, config) == (PROGRAM, f"{CONFIG}/{PUSH}.yml")
        argv: list[str | Path] = [self.site.registry.program, verb, self.site.configs[PUSH]]
        if self.kill_after_seconds:
            argv = ["timeout", "--signal=KILL", str(self.kill_after_seconds), *argv]
        done = run(argv, timeout=60, env=ENVIRONMENT, check=False)
        with closing(self.site.puller()) as puller:
            self.during += puller.tags("ckp/collected")
        self.site.start(PUSH)
        return done.code, done.stdout, done.stderr


@pytest.fixture
def collecting(site: Site, tmp_path: Path) -> tuple[HostedRegistry, Collecting]:
    host = Collecting(site, tmp_path / "collecting")
    return replace(site.registry, host=host), host


def test_what_nothing_names_is_deleted_and_all_else_stays(site: Site, tmp_path: Path, collecting: tuple[HostedRegistry, Collecting]) -> None:
    shared = os.urandom(100_000)
    kept = pushed(site, tmp_path, "ckp/collected", "kept", shared)
    attached = pushed(site, tmp_path, "ckp/collected", f"sha256-{kept.manifest.digest[7:]}.sig", b"a signature")
    gone = pushed(site, tmp_path, "ckp/collected", "gone", os.urandom(3_000_000))
    elsewhere = pushed(site, tmp_path, "ckp/elsewhere", "v1", shared)
    with closing(site.registry.client()) as client:
        assert client.delete("ckp/collected", gone.manifest.digest)
        client.push_blob("ckp/collected", gone.blob, gone.store.path(gone.blob.digest))  # as a push that was killed leaves it: no manifest names it
    registry, host = collecting
    freed = collect(registry, print)
    assert freed >= 3_000_000 and "kept" in host.during, "pulls went on"
    with closing(site.puller()) as puller:
        assert not puller.has_blob("ckp/collected", gone.blob.digest)
        for image, repository in ((kept, "ckp/collected"), (attached, "ckp/collected"), (elsewhere, "ckp/elsewhere")):
            assert puller.get_blob(repository, image.blob) == image.store.path(image.blob.digest).read_bytes()
    again = pushed(site, tmp_path, "ckp/collected", "gone", gone.store.path(gone.blob.digest).read_bytes())
    with closing(site.puller()) as puller:
        assert puller.get_blob("ckp/collected", again.blob), "what was deleted can be pushed again"


def test_a_collection_that_is_killed_leaves_what_is_named_and_the_next_one_finishes(
    site: Site, tmp_path: Path, collecting: tuple[HostedRegistry, Collecting]
) -> None:
    registry, host = collecting
    kept = pushed(site, tmp_path, "ckp/collected", "kept", os.urandom(100_000))
    images = [pushed(site, tmp_path, "ckp/collected", f"n{number}", os.urandom(10_000)) for number in range(40)]
    with closing(site.registry.client()) as client:
        for image in images:
            client.delete("ckp/collected", image.manifest.digest)
    for seconds in (0.02, 0.05, 0.1, 0.2):
        host.kill_after_seconds = seconds
        with suppress(CkpError):
            collect(registry, print)
        with closing(site.puller()) as puller:
            assert puller.get_blob("ckp/collected", kept.blob)
    host.kill_after_seconds = 0.0
    collect(registry, print)
    with closing(site.puller()) as puller:
        assert not any(puller.has_blob("ckp/collected", image.blob.digest) for image in images)
        assert puller.get_blob("ckp/collected", kept.blob)


# -- TLS


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
@pytest.mark.parametrize("instance", [PULL, PUSH])
def test_nothing_is_served_without_tls_nor_by_an_old_one(site: Site, instance: str) -> None:
    plain = httpx.get(site.url(instance).replace("https", "http") + "/v2/", trust_env=False)
    assert (plain.status_code, plain.text.strip()) == (400, "Client sent an HTTP request to an HTTPS server.")
    trust = ssl.create_default_context(cafile=str(site.registry.ca))
    trust.set_ciphers("ALL:@SECLEVEL=0")
    trust.minimum_version, trust.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    with pytest.raises(httpx.ConnectError, match="protocol version"):
        httpx.get(f"{site.url(instance)}/v2/", verify=trust, trust_env=False)


@pytest.mark.parametrize("name", ["localhost", ADDRESS])
def test_it_is_trusted_by_its_name_and_by_its_address(site: Site, name: str) -> None:
    with site.http() as http:
        assert http.get(f"https://{name}:{site.registry.port}/v2/").status_code == 200


# -- programs


def test_imgpkg_pushes_with_the_file_of_the_password_and_pulls_without(site: Site, imgpkg: Path, tmp_path: Path) -> None:
    (tmp_path / "content").mkdir()
    (tmp_path / "content/file").write_text("content")
    (tmp_path / "with").mkdir()
    (tmp_path / "without").mkdir()
    assert site.registry.credentials is not None
    (tmp_path / "with/config.json").symlink_to(site.registry.credentials)

    def call(home: str, *arguments: str | Path) -> int:
        argv = [imgpkg, *arguments, "--tty=false", "--registry-ca-cert-path", site.registry.ca]
        return run(argv, timeout=60, env={"DOCKER_CONFIG": str(tmp_path / home)}, check=False, what="imgpkg").code

    def push(home: str, address: str) -> int:
        return call(home, "push", "--image", f"{address}/ckp/bundle:v1", "--file", tmp_path / "content")

    assert push("without", site.registry.endpoint) != 0 and push("with", f"{ADDRESS}:{site.registry.port}") != 0
    assert push("with", site.registry.endpoint) == 0
    assert call("without", "pull", "--image", f"{ADDRESS}:{site.registry.port}/ckp/bundle:v1", "--output", tmp_path / "pulled") == 0
    assert (tmp_path / "pulled/file").read_text() == "content"
