"""The client of S3's API: what is stored is there whole or not at all, what breaks is gone on with, and what is refused is said with its remedy."""

from __future__ import annotations

import hashlib
import io
import ssl
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from ckp.hostkit import s3
from ckp.hostkit.errors import AgentError, InvalidInput
from ckp.hostkit.s3 import ATTEMPTS, Bucket, Credentials, Store, StoreError
from tests.simulators import proxy
from tests.simulators.s3_store import BUCKET, S3Store
from tests.worlds.tls import make_authority, make_leaf, write_pair

SECRET = "wJalrXUtnFEMI"
KEY = Credentials("AKIA", SECRET, "a-token")
NOW = 1_780_000_000.0


@pytest.fixture
def server() -> Iterator[S3Store]:
    with S3Store().serving() as made:
        yield made


def store(server: S3Store, **more: str) -> Store:
    waits: list[float] = []
    made = Store(Bucket(more.pop("endpoint", f"http://127.0.0.1:{server.port}"), BUCKET, **more), KEY, {}, now=lambda: NOW, sleep=waits.append)
    made.waits = waits  # type: ignore[attr-defined]
    return made


def put(client: Store, name: str, content: bytes) -> str:
    return client.put(name, io.BytesIO(content), len(content))


def get(client: Store, name: str) -> bytes:
    out = io.BytesIO()
    digest = client.get(name, out.write)
    assert digest == hashlib.sha256(out.getvalue()).hexdigest()
    return out.getvalue()


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "PART", 1000)
    monkeypatch.setattr(s3, "PIECE", 300)


def test_a_small_object_goes_up_at_once_and_a_large_one_in_parts(server: S3Store, small_parts: None) -> None:
    with closing(store(server, prefix="a/b")) as client:
        for size in (1, 1000, 1001, 4000, 4321):
            content = bytes(range(256)) * 20
            assert put(client, f"n{size}", content[:size]) == hashlib.sha256(content[:size]).hexdigest()
            assert server.objects[f"a/b/n{size}"] == content[:size] == get(client, f"n{size}")
        assert server.largest == 1000 and server.uploads == {}
        assert [(each.name, each.size) for each in client.objects("n")] == [("n1", 1), ("n1000", 1000), ("n1001", 1001), ("n4000", 4000), ("n4321", 4321)]
        client.delete("n1")
        client.delete("n1")
        assert [each.name for each in client.objects("n1")] == ["n1000", "n1001"]


def test_no_object_has_more_parts_than_s3_takes(server: S3Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "PART", 10)
    monkeypatch.setattr(s3, "MOST_PARTS", 4)
    with closing(store(server)) as client:
        put(client, "large", b"x" * 101)
    assert [line.partition("&")[0] for line in server.asked if line.startswith("PUT")] == [f"PUT large?partNumber={number}" for number in (1, 2, 3, 4)]
    assert server.largest == 26
    assert server.objects["large"] == b"x" * 101


def test_an_object_is_never_written_over(server: S3Store) -> None:
    with closing(store(server)) as client:
        put(client, "n", b"precious")
        with pytest.raises(StoreError, match="has an object n already"):
            put(client, "n", b"other")
    assert server.objects == {"n": b"precious"}


@pytest.mark.parametrize("faults", [[503], [0, 500, 429], [0] * (ATTEMPTS - 1)])
def test_what_fails_for_a_moment_is_tried_again_with_growing_delays(server: S3Store, faults: list[int]) -> None:
    with closing(store(server)) as client:
        server.faults = list(faults)
        put(client, "n", b"content")
        assert server.objects == {"n": b"content"}
        waits = client.waits  # type: ignore[attr-defined]
        assert len(waits) == len(faults) and waits == sorted(waits)


def test_what_goes_on_failing_ends(server: S3Store) -> None:
    with closing(store(server)) as client:
        server.faults = [503] * ATTEMPTS
        with pytest.raises(StoreError, match="answered 503 SlowDown"):
            client.objects()
        server.faults = [0] * ATTEMPTS
        with pytest.raises(StoreError, match="can't be reached"):
            client.objects()


def test_an_upload_that_breaks_leaves_neither_an_object_nor_parts(server: S3Store, small_parts: None) -> None:
    with closing(store(server)) as client:
        with pytest.raises(AgentError, match="ended before all of it was read"):
            client.put("n", io.BytesIO(b"x" * 2500), 4000)
        server.refuses = "PUT"
        with pytest.raises(StoreError, match="answered 403 AccessDenied"):
            put(client, "m", b"x" * 4000)
    assert server.objects == {} and server.uploads == {}


def test_a_completion_whose_answer_was_lost_counts(server: S3Store, small_parts: None) -> None:
    with closing(store(server)) as client:
        original = S3Store._xml

        def lost(self: S3Store, request, name: str, inner: str) -> None:  # type: ignore[no-untyped-def]
            if name == "CompleteMultipartUploadResult":
                request.close_connection = True
            else:
                original(self, request, name, inner)

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(S3Store, "_xml", lost)
            put(client, "n", b"x" * 2500)
        assert get(client, "n") == b"x" * 2500


def test_reading_goes_on_where_it_broke(server: S3Store, small_parts: None) -> None:
    content = bytes(range(250)) * 20
    server.objects["n"] = content
    server.breaks_off = 2100
    with closing(store(server)) as client:
        assert get(client, "n") == content
    assert [line for line in server.asked if line.startswith("GET")] == ["GET n"] * 3


def test_reading_that_gets_nowhere_ends(server: S3Store) -> None:
    server.objects["n"], server.breaks_off = b"content", 0
    with closing(store(server)) as client, pytest.raises(StoreError, match="reading n"):
        client.get("n", lambda _: None)
    assert len([line for line in server.asked if line.startswith("GET")]) == ATTEMPTS


def test_what_the_reader_raises_is_no_fault_of_the_store(server: S3Store) -> None:
    def full(_: bytes) -> None:
        raise OSError(28, "No space left on device")

    server.objects["n"] = b"content"
    with closing(store(server)) as client, pytest.raises(OSError, match="No space left"):
        client.get("n", full)
    assert len([line for line in server.asked if line.startswith("GET")]) == 1


def test_uploads_that_killed_runs_have_left_are_ended_a_day_later(server: S3Store) -> None:
    server.uploads = {"u1": ("p/berlin-1", {}), "u2": ("p/hamburg-1", {})}
    with closing(store(server, prefix="p")) as client:
        assert client.abort_abandoned("berlin-") == 1 and list(server.uploads) == ["u2"]
        server.uploads, server.began = {"u3": ("p/berlin-1", {})}, "2026-05-28T20:00:00.000Z"
        assert client.abort_abandoned("berlin-") == 0 and list(server.uploads) == ["u3"]


def test_another_region_is_named(server: S3Store) -> None:
    server.region = "eu-central-1"
    with closing(store(server)) as client, pytest.raises(StoreError) as caught:
        client.objects()
    assert caught.value.resolution == "write `region: eu-central-1`"
    with closing(store(server, region="eu-central-1")) as client:
        assert client.objects() == []


def test_a_bucket_that_is_not_there_and_an_object_that_is_not_there_are_named(server: S3Store) -> None:
    with closing(store(server)) as client:
        with pytest.raises(StoreError, match="has no object n") as caught:
            client.get("n", lambda _: None)
        assert caught.value.code == "NoSuchKey"
    with closing(Store(Bucket(f"http://127.0.0.1:{server.port}", "other"), KEY, {})) as client:
        with pytest.raises(StoreError, match="answered 404 NoSuchBucket"):
            client.objects()


@pytest.mark.parametrize("answer", [b"<html><body>Sign in</html>", b"<!DOCTYPE x [<!ENTITY e 'x'>]><ListBucketResult>&e;</ListBucketResult>", b"hello"])
def test_an_answer_that_is_not_s3s_is_refused(server: S3Store, monkeypatch: pytest.MonkeyPatch, answer: bytes) -> None:
    monkeypatch.setattr(S3Store, "_xml", lambda self, request, *_: self._send(request, 200, answer, {}))
    with closing(store(server)) as client, pytest.raises(StoreError, match="the store's answer is not") as caught:
        client.objects()
    assert "endpoint" in caught.value.resolution


def test_the_certificate_has_to_chain_to_the_ca_that_is_named(tmp_path: Path) -> None:
    authority, other = make_authority("the store's"), make_authority("another")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*write_pair(tmp_path, "server", *make_leaf(authority, server=True)))
    with S3Store().serving(context) as server:
        endpoint = f"https://localhost:{server.port}"
        for more in ({"ca": authority.pem}, {"more_cas": f"{other.pem}\n{authority.pem}"}):
            with closing(store(server, endpoint=endpoint, **more)) as client:
                put(client, f"n{len(server.objects)}", b"content")
        assert server.objects == {"n0": b"content", "n1": b"content"}
        before = len(server.asked)
        for more in ({}, {"ca": other.pem}, {"more_cas": other.pem}, {"ca": other.pem, "more_cas": authority.pem}):
            with closing(store(server, endpoint=endpoint, **more)) as client, pytest.raises(StoreError, match="can't be reached") as caught:
                client.objects()
            assert "certificate is not trusted" in caught.value.details
        assert len(server.asked) == before
        with pytest.raises(InvalidInput, match="is no certificate"):
            store(server, endpoint=endpoint, ca="hello")


def test_the_proxy_is_used_unless_the_store_is_excepted(server: S3Store) -> None:
    simulator = proxy.ProxySimulator(routes={f"s3.example:{server.port}": f"127.0.0.1:{server.port}"})
    with proxy.running(simulator) as url:
        bucket = Bucket(f"http://s3.example:{server.port}", BUCKET)
        with closing(Store(bucket, KEY, {"HTTPS_PROXY": url})) as client:
            put(client, "n", b"content")
        assert set(simulator.asked) == {f"s3.example:{server.port}"} and server.objects == {"n": b"content"}
        direct = Bucket(f"http://127.0.0.1:{server.port}", BUCKET)
        asked = len(simulator.asked)
        with closing(Store(direct, KEY, {"HTTPS_PROXY": url, "NO_PROXY": "127.0.0.1"})) as client:
            assert get(client, "n") == b"content"
        assert len(simulator.asked) == asked


def test_a_connection_that_the_store_has_ended_is_made_again_and_never_without_tls(tmp_path: Path) -> None:
    authority = make_authority("the store's")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*write_pair(tmp_path, "server", *make_leaf(authority, server=True)))
    with S3Store().serving(context) as server:
        with closing(store(server, endpoint=f"https://localhost:{server.port}", ca=authority.pem)) as client:
            put(client, "n", b"content")
            assert client._connection is not None
            client._connection.close()  # as http.client does when an answer says that the connection ends
            assert get(client, "n") == b"content" and client.waits == []  # type: ignore[attr-defined]


FILE = """\
# of the backups
[default]
aws_access_key_id = AKIA
aws_secret_access_key=wJalrXUtnFEMI

[other]
aws_access_key_id = B
"""


def test_credentials_are_read_as_amazons_own_tools_read_them() -> None:
    found = s3.read_credentials(FILE, "file")
    assert (found.access, found.secret, found.token) == ("AKIA", SECRET, "")
    assert s3.read_credentials("[berlin]\naws_access_key_id=A\naws_secret_access_key=B%C\naws_session_token=T\n", "file") == Credentials("A", "B%C", "T")
    assert SECRET not in repr(found) and SECRET not in str(found)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hello",
        f"aws_secret_access_key={SECRET}",
        f"[a]\naws_secret_access_key={SECRET}\n[b]\n",
        f"[default]\naws_secret_access_key={SECRET}\n",
        FILE.replace("AKIA", "Ä"),
    ],
)
def test_a_file_without_an_access_key_is_refused_and_no_secret_is_quoted(text: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        s3.read_credentials(text, "the-file")
    assert "the-file" in caught.value.brief and SECRET not in str(caught.value.render())
