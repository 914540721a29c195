"""The registry's client against a registry that breaks on demand."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckp.clients.oci.http import LONGEST_PAUSE, TRIES
from ckp.clients.oci.registry import LAYER_ZSTD, MANIFEST, BlobStore, Descriptor, Manifest, Registry, fallback_tag, image_manifest
from ckp.clients.oci.store import INDEX, MANIFEST_LIMIT, canonical, sha256
from ckp.kits.errors import CkpError, InvalidInput, NotFound, VerificationFailed
from tests.simulators.registry import Fault, RegistrySimulator, as_stream

SBOM = "application/vnd.cyclonedx+json"
ADDRESS = "registry.test:5000"


class World:
    """A simulator, a client of it that does not really pause, and an image in a local store."""

    def __init__(self, folder: Path, **options: object) -> None:
        self.simulator = RegistrySimulator(**options)  # type: ignore[arg-type]
        self.pauses: list[float] = []
        self.client = self.another()
        self.store = BlobStore(folder / "blobs")
        self.layer = self.store.put(b"layer" * 100_000, LAYER_ZSTD)
        self.image = image_manifest(self.store, [(self.layer, self.layer.digest)], {"User": "1"}, "2026-01-01T00:00:00Z")
        self.fresh = BlobStore(folder / "fresh")

    def another(self, credentials: Path | None = None) -> Registry:
        return Registry(ADDRESS, transport=self.simulator.transport, sleep=self.pauses.append, credentials=credentials)

    def push(self, tag: str = "v1") -> None:
        self.client.push(self.store, self.image, "ckp/etcd", tag)

    def fail(self, pattern: str, times: int = 1, **how: object) -> None:
        self.simulator.faults.append(Fault(pattern, times, **how))  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CKP_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def redirecting(answer: Callable[[httpx.Request], httpx.Response]) -> Registry:
    return Registry(ADDRESS, transport=httpx.MockTransport(lambda request: as_stream(answer(request))), sleep=lambda _: None)


# -- pushing and pulling


def test_what_was_pushed_is_pulled_and_pushing_it_again_sends_nothing(world: World) -> None:
    world.push()
    assert world.client.pull("ckp/etcd", "v1", world.fresh) == world.image
    assert world.fresh.path(world.layer.digest).read_bytes() == b"layer" * 100_000
    before = len(world.simulator.log)
    world.push()
    assert [line.split()[0] for line in world.simulator.log[before:]] == ["HEAD"]


def test_a_new_tag_for_the_same_content_sends_no_blob(world: World) -> None:
    world.push("v1")
    world.push("v2")
    assert len(world.simulator.requests("POST")) == 2  # config and layer, once
    assert world.simulator.tags("ckp/etcd") == {"v1": world.image.digest, "v2": world.image.digest}


def test_a_blob_that_another_repository_has_is_mounted(world: World) -> None:
    world.push()
    world.client.push(world.store, world.image, "ckp/copy", "v1")
    assert len(world.simulator.requests("PUT .*uploads")) == 2
    assert world.client.pull("ckp/copy", "v1", world.fresh) == world.image


def test_a_push_that_was_cut_goes_on_where_blobs_are_missing(world: World) -> None:
    world.fail("PUT .*uploads/2", TRIES, cut=True)
    world.fail("PUT .*uploads/[3-9]", TRIES, cut=True)
    with pytest.raises(CkpError, match="failed 6 times"):
        world.push()
    assert world.simulator.tags("ckp/etcd") == {}
    world.simulator.faults.clear()
    sent = len(world.simulator.requests("PUT .*uploads"))
    world.push()
    assert len(world.simulator.requests("PUT .*uploads")) == sent + 1


def test_an_upload_that_breaks_is_begun_again(world: World) -> None:
    world.fail("PUT .*uploads", 2, cut=True)
    world.fail("POST", status=503)
    world.push()
    assert world.client.pull("ckp/etcd", "v1", world.fresh) == world.image


def test_a_local_blob_that_has_rotted_is_not_taken_by_the_registry(world: World) -> None:
    world.store.path(world.layer.digest).write_bytes(b"l" * world.layer.size)
    with pytest.raises(CkpError) as caught:
        world.push()
    assert "DIGEST_INVALID" in caught.value.details
    assert world.simulator.tags("ckp/etcd") == {}


def test_two_who_push_at_once_leave_one_whole_image(world: World) -> None:
    failures: list[BaseException] = []

    def push() -> None:
        try:
            world.another().push(world.store, world.image, "ckp/etcd", "v1")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=push) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert world.client.pull("ckp/etcd", "v1", world.fresh) == world.image


def test_an_index_brings_its_images(world: World) -> None:
    world.push()
    index = Manifest(INDEX, canonical({"schemaVersion": 2, "mediaType": INDEX, "manifests": [world.image.to_json()]}))
    world.client.put_manifest("ckp/etcd", index, "all")
    world.client.pull("ckp/etcd", "all", world.fresh)
    assert world.fresh.path(world.layer.digest).exists()
    assert world.fresh.path(world.image.digest).exists()


# -- what breaks, and is tried again


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_errors_that_pass_are_waited_out(world: World, status: int) -> None:
    world.push()
    world.fail("HEAD", 3, status=status)
    assert world.client.digest("ckp/etcd", "v1") == world.image.digest
    assert world.pauses == [0.5, 1.0, 2.0]


def test_a_cut_connection_is_tried_again(world: World) -> None:
    world.push()
    world.fail("GET .*manifests", 2, cut=True)
    assert world.client.get_manifest("ckp/etcd", "v1").digest == world.image.digest


def test_the_wait_that_the_registry_asks_for_is_kept_within_bounds(world: World) -> None:
    world.push()
    world.fail("HEAD", status=429, headers={"Retry-After": "7"})
    world.fail("HEAD", status=429, headers={"Retry-After": "86400"})
    world.client.digest("ckp/etcd", "v1")
    assert world.pauses == [7.0, LONGEST_PAUSE]


def test_in_the_end_the_error_says_what_the_registry_said(world: World) -> None:
    world.fail("HEAD", 100, status=503)
    with pytest.raises(CkpError, match=rf"asking for ckp/etcd:v1: the registry {ADDRESS} failed 6 times") as caught:
        world.client.digest("ckp/etcd", "v1")
    assert "503" in caught.value.details
    assert len(world.simulator.log) == TRIES


def test_an_error_that_will_not_pass_is_not_tried_again(world: World) -> None:
    world.fail("PUT .*manifests", status=400)
    with pytest.raises(CkpError, match="refuses") as caught:
        world.push()
    assert "UNAVAILABLE: as it was told to" in caught.value.details
    assert world.pauses == []


# -- bytes that are checked


def test_a_blob_that_is_cut_goes_on_from_there(world: World) -> None:
    world.push()
    world.fail("GET .*blobs", after=200_000, cut=True)
    world.fail("GET .*blobs", after=100_000, cut=True)
    path = world.client.pull_blob("ckp/etcd", world.layer, world.fresh)
    assert path.read_bytes() == b"layer" * 100_000
    assert [line.partition("bytes=")[2] for line in world.simulator.requests("GET .*blobs")] == ["", "200000-", "300000-"]


def test_a_registry_without_ranges_is_asked_for_the_whole(tmp_path: Path) -> None:
    world = World(tmp_path, ranges=False)
    world.push()
    world.fail("GET .*blobs", after=200_000, cut=True)
    assert world.client.pull_blob("ckp/etcd", world.layer, world.fresh).read_bytes() == b"layer" * 100_000


@pytest.mark.parametrize("left", [b"layer" * 1000, b"other" * 1000, b"layer" * 100_000, b"x" * 500_000, b"x" * 600_000, b""])
def test_what_a_killed_download_left_is_used_only_if_it_is_right(world: World, left: bytes) -> None:
    world.push()
    partial = world.fresh.partial(world.layer.digest)
    partial.parent.mkdir(parents=True)
    partial.write_bytes(left)
    assert world.client.pull_blob("ckp/etcd", world.layer, world.fresh).read_bytes() == b"layer" * 100_000
    assert not partial.exists()


def test_a_download_that_gives_a_byte_at_a_time_comes_to_an_end(world: World) -> None:
    world.push()
    world.fail("GET .*blobs", 1000, after=1, cut=True)
    with pytest.raises(CkpError, match="failed 6 times"):
        world.client.pull_blob("ckp/etcd", world.layer, world.fresh)


def test_wrong_bytes_of_a_blob_are_refused_and_not_kept(world: World) -> None:
    world.push()
    world.fail("GET .*blobs", 10, alter=True)
    with pytest.raises(VerificationFailed, match="sends other bytes for sha256:"):
        world.client.pull_blob("ckp/etcd", world.layer, world.fresh)
    assert not world.fresh.path(world.layer.digest).exists()
    with pytest.raises(VerificationFailed, match="sends other bytes"):
        world.client.get_blob("ckp/etcd", world.layer)
    world.simulator.faults.clear()
    assert world.client.pull_blob("ckp/etcd", world.layer, world.fresh).exists()


def test_more_bytes_than_the_descriptor_says_are_not_read(world: World) -> None:
    world.push()
    short = Descriptor(LAYER_ZSTD, world.layer.digest, 1000)
    with pytest.raises(VerificationFailed, match="sends other bytes"):
        world.client.pull_blob("ckp/etcd", short, world.fresh)
    with pytest.raises(VerificationFailed, match="more than 1000 bytes"):
        world.client.get_blob("ckp/etcd", short)
    with pytest.raises(VerificationFailed, match="has 500000 bytes, and the limit is 10"):
        world.client.get_blob("ckp/etcd", world.layer, limit=10)


@pytest.mark.parametrize("by_tag", [True, False])
def test_wrong_bytes_of_a_manifest_are_refused(world: World, by_tag: bool) -> None:
    world.push()
    world.fail("GET .*manifests", alter=True)
    with pytest.raises(VerificationFailed, match="the bytes received have the digest"):
        world.client.get_manifest("ckp/etcd", "v1" if by_tag else world.image.digest)


def test_a_manifest_without_end_is_not_read(world: World) -> None:
    world.push()
    repository = world.simulator.repositories["ckp/etcd"]
    repository.manifests[world.image.digest] = (MANIFEST, b" " * (MANIFEST_LIMIT + 1))
    with pytest.raises(VerificationFailed, match="more than 4194304 bytes"):
        world.client.get_manifest("ckp/etcd", "v1")


@pytest.mark.parametrize(
    "content",
    [
        {"schemaVersion": 2, "layers": [], "manifests": []},
        {"schemaVersion": 2, "mediaType": INDEX},
        {"schemaVersion": 2, "manifests": [], "config": {}},
    ],
)
def test_a_manifest_that_could_be_read_as_two_kinds_is_refused(world: World, content: dict[str, object]) -> None:
    body = canonical(content)
    world.push()
    world.simulator.repositories["ckp/etcd"].manifests[sha256(body)] = (MANIFEST, body)
    with pytest.raises(VerificationFailed, match="declares another media type"):
        world.client.get_manifest("ckp/etcd", sha256(body))


def test_a_manifest_of_an_unknown_kind_is_refused(world: World) -> None:
    world.push()
    repository = world.simulator.repositories["ckp/etcd"]
    repository.manifests[world.image.digest] = ("text/html", repository.manifests[world.image.digest][1])
    with pytest.raises(VerificationFailed, match="of the type 'text/html'"):
        world.client.get_manifest("ckp/etcd", "v1")


FIELDS = st.sampled_from(["mediaType", "digest", "size", "layers", "config", "subject", "manifests", "annotations", "x"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(FIELDS, inner, max_size=5),
    max_leaves=20,
)


@given(JSON)
@settings(max_examples=300, deadline=None)
def test_whatever_a_manifest_says_it_is_read_or_refused(content: object) -> None:
    manifest = Manifest(MANIFEST, json.dumps(content).encode())
    for look in (lambda: manifest.blobs, lambda: manifest.layers, lambda: manifest.children, lambda: manifest.subject, lambda: manifest.referrer):
        try:
            look()
        except VerificationFailed:
            pass


# -- names


@pytest.mark.parametrize("name", ["", "Ckp/etcd", "ckp//etcd", "/ckp", "ckp/../etcd", "ckp/etcd:v1", "a" * 256, "ckp/etcd?x", "ckp etcd"])
def test_a_name_that_is_no_repositorys_goes_nowhere(world: World, name: str) -> None:
    for ask in (lambda: world.client.digest(name, "v1"), lambda: world.client.tags(name), lambda: world.client.has_blob(name, world.layer.digest)):
        with pytest.raises(InvalidInput, match="not the name of a repository"):
            ask()
    assert world.simulator.log == []


@pytest.mark.parametrize("reference", ["", "-x", "a/b", "v" * 129, "sha256:12", "sha512:" + "0" * 128, "v1?x"])
def test_a_reference_that_is_no_tag_and_no_digest_goes_nowhere(world: World, reference: str) -> None:
    with pytest.raises(InvalidInput, match="neither a tag nor a SHA-256 digest"):
        world.client.get_manifest("ckp/etcd", reference)
    assert world.simulator.log == []


@pytest.mark.parametrize("address", ["https://registry", "registry/ckp", "user@registry", "registry:port", "", "a b"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(InvalidInput, match="not the address of a registry"):
        Registry(address)


def test_a_digest_never_leads_out_of_the_store(tmp_path: Path) -> None:
    for digest in ("sha256:../../etc/passwd", "sha256:" + "A" * 64, "x", "sha256:"):
        with pytest.raises(InvalidInput, match="is not a SHA-256 digest"):
            BlobStore(tmp_path).path(digest)


def test_what_is_not_there_is_said_to_be_not_there(world: World) -> None:
    assert world.client.digest("ckp/etcd", "v1") is None
    assert world.client.tags("ckp/etcd") == []
    with pytest.raises(NotFound, match=rf"{ADDRESS}/ckp/etcd:v1 is not there"):
        world.client.get_manifest("ckp/etcd", "v1")
    with pytest.raises(NotFound, match="does not have the blob"):
        world.client.pull_blob("ckp/etcd", world.layer, world.fresh)


# -- listings and deleting


def test_long_listings_are_read_page_by_page(tmp_path: Path) -> None:
    world = World(tmp_path, page=3)
    names = sorted(f"v{number}" for number in range(10))
    for name in names:
        world.push(name)
    assert world.client.tags("ckp/etcd") == names
    assert len(world.simulator.requests("tags/list")) == 4
    for number in range(7):
        world.client.push(world.store, world.image, f"ckp/r{number}", "v1")
    assert world.client.catalog() == ["ckp/etcd", *(f"ckp/r{number}" for number in range(7))]


def test_a_listing_that_never_ends_is_left() -> None:
    client = redirecting(lambda request: httpx.Response(200, json={"tags": ["a"]}, headers={"Link": f'<{request.url.path}?last=a>; rel="next"'}))
    assert client.tags("x") == ["a"]


def test_deleting_a_tag_leaves_the_image(world: World) -> None:
    world.push("v1")
    world.push("v2")
    assert world.client.delete("ckp/etcd", "v1")
    assert not world.client.delete("ckp/etcd", "v1")
    assert world.client.digest("ckp/etcd", "v2") == world.image.digest
    assert world.client.delete("ckp/etcd", world.image.digest)
    assert world.client.tags("ckp/etcd") == []


def test_a_registry_that_deletes_nothing_is_said_to_need_another_setting(tmp_path: Path) -> None:
    world = World(tmp_path, delete_tags=False)
    world.push()
    with pytest.raises(CkpError, match="does not support that") as caught:
        world.client.delete("ckp/etcd", "v1")
    assert "storage.delete.enabled" in caught.value.resolution


# -- referrers


@pytest.mark.parametrize("referrers_api", [True, False])
def test_a_document_is_attached_once_and_found_by_its_type(tmp_path: Path, referrers_api: bool) -> None:
    world = World(tmp_path, referrers_api=referrers_api)
    world.push()
    assert world.client.referrers("ckp/etcd", world.image.digest) == []
    first = world.client.attach("ckp/etcd", world.image, SBOM, b"{}", SBOM, {"a": "b"})
    second = world.client.attach("ckp/etcd", world.image, "application/vnd.in-toto+json", b"{}", "application/vnd.in-toto+json")
    writes = len(world.simulator.requests("PUT|POST"))
    assert world.client.attach("ckp/etcd", world.image, SBOM, b"{}", SBOM, {"a": "b"}) == first
    assert len(world.simulator.requests("PUT|POST")) == writes
    assert world.client.referrers("ckp/etcd", world.image.digest) == sorted([first, second], key=lambda item: item.digest)
    assert world.client.referrers("ckp/etcd", world.image.digest, SBOM) == [first]
    assert (fallback_tag(world.image.digest) in world.simulator.tags("ckp/etcd")) is not referrers_api


def test_who_was_killed_between_attaching_and_listing_lists_it_the_next_time(world: World) -> None:
    world.push()
    first = world.client.attach("ckp/etcd", world.image, SBOM, b"{}", SBOM)
    world.client.delete("ckp/etcd", fallback_tag(world.image.digest))
    assert world.client.referrers("ckp/etcd", world.image.digest) == []
    world.client.attach("ckp/etcd", world.image, SBOM, b"{}", SBOM)
    assert world.client.referrers("ckp/etcd", world.image.digest) == [first]


def overwrite_list(world: World, items: list[Descriptor]) -> None:
    """What somebody does who had read an older list."""
    body = canonical({"schemaVersion": 2, "mediaType": INDEX, "manifests": [item.to_json() for item in items]})
    repository = world.simulator.repositories["ckp/etcd"]
    repository.manifests[sha256(body)] = (INDEX, body)
    repository.tags[fallback_tag(world.image.digest)] = sha256(body)


@pytest.mark.parametrize("moment", ["HEAD .*manifests/sha256-", "PUT .*manifests/sha256-", "GET .*manifests/sha256-"])
def test_a_list_that_somebody_else_writes_at_that_moment_ends_with_both(world: World, moment: str) -> None:
    world.push()
    theirs = world.client.attach("ckp/etcd", world.image, SBOM, b"theirs", SBOM)
    world.client.delete("ckp/etcd", fallback_tag(world.image.digest))
    world.fail(moment, hook=lambda: overwrite_list(world, [theirs]))
    # After our first write comes a reader that sees theirs only.
    ours = world.client.attach("ckp/etcd", world.image, SBOM, b"ours", SBOM)
    if moment.startswith("PUT"):  # theirs was overwritten in the one moment that no check can see; their own check finds it
        world.client.attach("ckp/etcd", world.image, SBOM, b"theirs", SBOM)
    assert {item.digest for item in world.client.referrers("ckp/etcd", world.image.digest)} == {ours.digest, theirs.digest}


def test_a_list_that_others_change_without_end_is_an_error(world: World) -> None:
    world.push()
    theirs = world.client.attach("ckp/etcd", world.image, SBOM, b"theirs", SBOM)
    counter = iter(range(1000))
    world.fail("HEAD .*manifests/sha256-", 1000, hook=lambda: overwrite_list(world, [theirs] * (2 - next(counter) % 2)))
    with pytest.raises(CkpError, match="failed 12 times") as caught:
        world.client.attach("ckp/etcd", world.image, SBOM, b"ours", SBOM)
    assert "others change it" in caught.value.details


# -- credentials


def credentials(folder: Path, text: str, mode: int = 0o600) -> Path:
    file = folder / "config.json"
    file.write_text(text)
    file.chmod(mode)
    return file


def test_a_token_is_had_for_the_password_and_used_again(tmp_path: Path) -> None:
    encoded = base64.b64encode(b"me:secret").decode()
    world = World(tmp_path, password=encoded)
    world.client = world.another(credentials(tmp_path, json.dumps({"auths": {ADDRESS: {"auth": encoded}}})))
    world.push()
    assert world.client.pull("ckp/etcd", "v1", world.fresh) == world.image
    assert len(world.simulator.requests("GET /token")) == 2  # to read and to write
    assert world.client.catalog() == ["ckp/etcd"]


def test_without_credentials_the_error_says_to_name_some(tmp_path: Path) -> None:
    world = World(tmp_path, password="eA==")
    with pytest.raises(CkpError) as caught:
        world.push()
    assert "name a file with the credentials" in caught.value.resolution
    wrong = world.another(credentials(tmp_path, json.dumps({"auths": {ADDRESS: {"auth": base64.b64encode(b"me:wrong").decode()}}})))
    with pytest.raises(CkpError) as caught:
        wrong.digest("ckp/etcd", "v1")
    assert "password" in caught.value.resolution
    assert "wrong" not in str(caught.value)


def test_a_request_that_is_refused_while_another_one_logs_in_is_tried_again(tmp_path: Path) -> None:
    file = credentials(tmp_path, json.dumps({"auths": {ADDRESS: {"auth": base64.b64encode(b"me:secret").decode()}}}))
    nested: list[str | None] = []

    def answer(request: httpx.Request) -> httpx.Response:
        if "Authorization" in request.headers:
            return httpx.Response(404)
        if not nested:
            nested.append(None)
            nested[0] = client.digest("ckp/etcd", "v2")  # of another thread, between this request and its answer
        return httpx.Response(401, headers={"WWW-Authenticate": 'Basic realm="x"'})

    client = Registry(ADDRESS, transport=httpx.MockTransport(lambda request: as_stream(answer(request))), sleep=lambda _: None, credentials=file)
    assert client.digest("ckp/etcd", "v1") is None and nested == [None]


def test_basic_credentials_are_sent_when_asked_for_and_not_to_others(tmp_path: Path) -> None:
    seen: list[tuple[str, str | None]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append((request.url.host, request.headers.get("Authorization")))
        if request.url.host == "store.test":
            return httpx.Response(200, content=b"blob")
        if "Authorization" not in request.headers:
            return httpx.Response(401, headers={"WWW-Authenticate": 'Basic realm="x"'})
        return httpx.Response(307, headers={"Location": "https://store.test/x"})

    encoded = base64.b64encode(b"me:secret").decode()
    file = credentials(tmp_path, json.dumps({"auths": {ADDRESS: {"username": "me", "password": "secret"}}}))
    client = Registry(ADDRESS, transport=httpx.MockTransport(lambda request: as_stream(answer(request))), credentials=file)
    assert client.get_blob("ckp/etcd", Descriptor("x", sha256(b"blob"), 4)) == b"blob"
    assert seen == [("registry.test", None), ("registry.test", f"Basic {encoded}"), ("store.test", None)]


@pytest.mark.parametrize("password", ["", "wrong"])
def test_what_a_registry_with_basic_credentials_refuses_is_told_each_time(tmp_path: Path, password: str) -> None:
    answer = httpx.Response(401, headers={"WWW-Authenticate": "Basic realm=x"}, json={"errors": [{"code": "UNAUTHORIZED", "message": "needed"}]})
    file = credentials(tmp_path, json.dumps({"auths": {ADDRESS: {"username": "me", "password": password}} if password else {}}))
    client = Registry(ADDRESS, transport=httpx.MockTransport(lambda _: as_stream(answer)), credentials=file)
    for _ in range(2):
        with pytest.raises(CkpError, match="refuses") as caught:
            client.digest("ckp/etcd", "v1")
        assert "401 Unauthorized UNAUTHORIZED: needed" in caught.value.details


@pytest.mark.parametrize("challenge", ['Bearer realm="https://store.test/token",service="y"', "Basic realm=x"])
def test_credentials_are_not_sent_to_where_another_server_asks_for_them(tmp_path: Path, challenge: str) -> None:
    """The registry sends its client to another server, for a blob or an upload, and that one asks for a password."""
    seen: list[tuple[str, str | None]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append((request.url.host, request.headers.get("Authorization")))
        if request.url.host != "registry.test":
            return httpx.Response(401, headers={"WWW-Authenticate": challenge})
        if request.method == "HEAD":
            return httpx.Response(404)
        return httpx.Response(307 if request.method == "GET" else 202, headers={"Location": "https://store.test/x"})

    file = credentials(tmp_path, json.dumps({"auths": {ADDRESS: {"username": "me", "password": "secret"}}}))
    client = Registry(ADDRESS, transport=httpx.MockTransport(lambda request: as_stream(answer(request))), credentials=file)
    for request in (
        lambda: client.get_blob("ckp/etcd", Descriptor("x", sha256(b"blob"), 4)),
        lambda: client.push_blob("ckp/etcd", Descriptor("x", sha256(b"blob"), 4), b"blob"),
    ):
        with pytest.raises(CkpError, match="refuses") as caught:
            request()
        assert "secret" not in caught.value.render() and base64.b64encode(b"me:secret").decode() not in caught.value.render()
    assert "store.test" in [host for host, _ in seen] and {given for _, given in seen} == {None}


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(307, headers={"Location": "http://store.test/x"}),
        httpx.Response(401, headers={"WWW-Authenticate": 'Bearer realm="http://tokens.test/x",service="y"'}),
    ],
)
def test_nothing_is_sent_without_tls(answer: httpx.Response) -> None:
    client = redirecting(lambda _: answer)
    with pytest.raises(CkpError, match="which is not TLS"):
        client.get_blob("ckp/etcd", Descriptor("x", sha256(b""), 0))


def test_an_upload_is_not_sent_to_an_address_without_tls(world: World) -> None:
    client = redirecting(
        lambda request: httpx.Response(404) if request.method == "HEAD" else httpx.Response(202, headers={"Location": "http://registry.test:5000/x"})
    )
    with pytest.raises(CkpError, match="which is not TLS"):
        client.push_blob("ckp/etcd", world.layer, world.store.path(world.layer.digest))


def test_redirects_without_end_are_left() -> None:
    client = redirecting(lambda request: httpx.Response(307, headers={"Location": str(request.url)}))
    with pytest.raises(CkpError, match="refuses"):
        client.get_blob("ckp/etcd", Descriptor("x", sha256(b"a"), 1))


@pytest.mark.parametrize(
    ("text", "mode", "sentence"),
    [
        ('{"auths": {}}', 0o644, "readable by others"),
        ('{"auths": {"registry.test:5000": {"auth": "secret!"}}}', 0o600, "not in the format"),
        ('{"auths": {"registry.test:5000": {"auth": "c2VjcmV0"}}}', 0o600, "not in the format"),
        ('{"auths": {"registry.test:5000": "secret"}}', 0o600, "not in the format"),
        ("secret", 0o600, "not in the format"),
        ("[]", 0o600, "not in the format"),
    ],
)
def test_a_bad_file_of_credentials_is_refused_without_showing_it(world: World, tmp_path: Path, text: str, mode: int, sentence: str) -> None:
    with pytest.raises(InvalidInput, match=sentence) as caught:
        world.another(credentials(tmp_path, text, mode))
    assert "secret" not in caught.value.render()


def test_a_file_that_is_no_ca_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("x")
    with pytest.raises(InvalidInput, match=r"ca\.pem is not a file of CA certificates"):
        Registry(ADDRESS, tmp_path / "ca.pem")
    with pytest.raises(InvalidInput, match=r"none\.pem"):
        Registry(ADDRESS, tmp_path / "none.pem")
