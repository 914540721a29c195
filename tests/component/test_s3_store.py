"""Backups in a bucket of a real object store (versitygw), over TLS: what is stored is there whole or not at all, and comes back as it was."""

from __future__ import annotations

import hashlib
import io
import os
import tracemalloc
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from ckp.hostkit import s3
from ckp.hostkit.errors import AgentError
from ckp.hostkit.s3 import PART, Credentials, Store, StoreError
from ckp.kits.errors import CkpError
from ckp.site.backup.target import target_of
from ckp.site.spec.read import parse_site
from tests.support.s3_server import BUCKET, REGION, S3TestServer, s3_server
from tests.worlds.applied_site import TEXT

pytestmark = pytest.mark.component

NAME = "berlin-20260131T040506Z.backup"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3TestServer]:
    with s3_server(tmp_path_factory.mktemp("s3")) as made:
        yield made


@pytest.fixture
def client(server: S3TestServer, request: pytest.FixtureRequest) -> Iterator[Store]:
    with closing(server.store(prefix=f"tests/{abs(hash(request.node.name))}")) as made:
        yield made


class Endless(io.RawIOBase):
    """Bytes that nobody has to keep."""

    def __init__(self, breaks_off: int = 1 << 60) -> None:
        super().__init__()
        self.given, self.breaks_off = 0, breaks_off

    def read(self, size: int = -1) -> bytes:
        size = min(size, 1 << 16, self.breaks_off - self.given)
        self.given += size
        return hashlib.sha256(str(self.given).encode()).digest() * (size // 32) + b"x" * (size % 32)


def test_objects_of_all_sizes_come_back_as_they_were(client: Store) -> None:
    for size in (0, 1, PART - 1, PART, PART + 1, 3 * PART + 12345):
        content = os.urandom(size)
        assert client.put(f"n{size}", io.BytesIO(content), size) == hashlib.sha256(content).hexdigest()
        out = io.BytesIO()
        assert client.get(f"n{size}", out.write) == hashlib.sha256(content).hexdigest() and out.getvalue() == content
    assert {each.name: each.size for each in client.objects("n")} == {f"n{size}": size for size in (0, 1, PART - 1, PART, PART + 1, 3 * PART + 12345)}
    with pytest.raises(StoreError, match="has an object n1 already"):
        client.put("n1", io.BytesIO(b"y"), 1)
    client.delete("n1")
    client.delete("n1")
    assert "n1" not in [each.name for each in client.objects("n1")]


def test_memory_does_not_grow_with_an_object(client: Store) -> None:
    size = 12 * PART
    tracemalloc.start()
    try:
        sent = client.put("large", Endless(), size)  # type: ignore[arg-type]
        assert client.get("large", lambda _: None) == sent
        assert tracemalloc.get_traced_memory()[1] < 4 * PART
    finally:
        tracemalloc.stop()


def test_an_upload_that_broke_leaves_no_object_and_can_be_ended(client: Store, server: S3TestServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AgentError, match="ended before all of it was read"):
        client.put("broken", Endless(2 * PART), 3 * PART)  # type: ignore[arg-type]
    assert client.objects() == [] and client.abort_abandoned("") == 0
    monkeypatch.setattr(Store, "_abort", lambda *_: None)  # as where the process is killed
    with pytest.raises(AgentError):
        client.put("broken", Endless(2 * PART), 3 * PART)  # type: ignore[arg-type]
    assert client.objects() == [] and client.abort_abandoned("") == 0, "it may be somebody's who works on"
    monkeypatch.setattr(s3, "ABANDONED", -3600.0)
    assert client.abort_abandoned("other") == 0 and client.abort_abandoned("brok") == 1 and client.abort_abandoned("") == 0


def test_a_listing_of_many_pages_is_read_whole(client: Store, server: S3TestServer) -> None:
    folder = server.objects / client.bucket.prefix
    folder.mkdir(parents=True)
    for number in range(1203):
        (folder / f"n{number:04}").write_bytes(b"x")
    assert [each.name for each in client.objects("n")] == [f"n{number:04}" for number in range(1203)]


def test_what_is_wrong_is_said_with_its_remedy(server: S3TestServer) -> None:
    wrong = {
        "secret key": Store(server.store().bucket, Credentials(server.credentials.access, "x" * 32), {}),
        "access key": Store(server.store().bucket, Credentials("AKIANOBODY", "x" * 32), {}),
        f"region: {REGION}": server.store(region="us-west-2"),
        "bucket": Store(s3.Bucket(server.endpoint, "elsewhere", region=REGION, ca=server.ca), server.credentials, {}),
        "clock": Store(server.store().bucket, server.credentials, {}, now=lambda: 1_500_000_000.0),
        "CA": Store(s3.Bucket(server.endpoint, BUCKET, region=REGION), server.credentials, {}),
    }
    for words, client in wrong.items():
        with closing(client), pytest.raises(StoreError) as caught:
            client.objects()
        assert words in caught.value.resolution, (words, caught.value.render())


def test_a_site_keeps_its_backups_there(server: S3TestServer, tmp_path: Path) -> None:
    (tmp_path / "s3").write_text(f"[default]\naws_access_key_id={server.credentials.access}\naws_secret_access_key={server.credentials.secret}\n")
    (tmp_path / "s3").chmod(0o600)
    (tmp_path / "ca.pem").write_text(server.ca)
    where = f"endpoint: '{server.endpoint}', region: {REGION}, bucket: {BUCKET}, prefix: sites/a, credentialsFile: s3, caFile: ca.pem"
    spec = parse_site(f"{TEXT}backup: {{to: {{s3: {{{where}}}}}, keep: 1, encryptFor: [a]}}\n".encode(), tmp_path / "site.yaml")
    file = tmp_path / "file"
    file.write_bytes(os.urandom(PART + 100))
    with target_of(spec, None, {}) as target:
        for name in (NAME.replace("04", "03"), NAME):
            target.store(file, name, tmp_path, print)
        assert [each.name for each in target.backups()] == [NAME] and (server.objects / "sites" / "a" / NAME).read_bytes() == file.read_bytes()
        with target.fetched(NAME, tmp_path) as local:
            assert local.read_bytes() == file.read_bytes()
        (server.objects / "sites" / "a" / NAME).write_bytes(b"x" * 10)
        with pytest.raises(CkpError, match="already"):
            target.store(file, NAME, tmp_path, print)
