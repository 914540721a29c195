"""Backups of a site: read from a host, sealed, proved, opened; and what is refused. The etcds are simulated, gpg and SQLite are real."""

from __future__ import annotations

import base64
import io
import os
import ssl
import stat
import sys
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckp.backups import archive
from ckp.backups.archive import Opened
from ckp.backups.members import Etcd, Kind, Member
from ckp.clients.signing.encryption import ReaderKey, Readers, Signer, encrypting, read_back_home
from ckp.hostkit.backup import reading
from ckp.kits.errors import CkpError, InvalidInput, NotFound, VerificationFailed
from ckp.kits.files import sha256_bytes
from ckp.rules.database_copy import footer, header
from ckp.site.backup.collect import collect
from ckp.site.backup.manifest import FORM, FORMAT, MANAGEMENT, Hosted, Manifest, Volume, parse
from ckp.site.backup.take import scratch_folder
from tests.simulators.etcd_gateway import EtcdGateway
from tests.worlds.backup import CLUSTER, NAMESPACE, SECRET, SITE, UID, BackupWorld, ThisMachine, make_reader, make_signer
from tests.worlds.tls import make_authority, make_leaf, write_pair

HOSTED = f"etcd/hosted/{NAMESPACE}/{CLUSTER}"
TITLE = f"{NAMESPACE}/{CLUSTER}"


@pytest.fixture(scope="module")
def signer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_signer(tmp_path_factory.mktemp("signer") / "signer")


@pytest.fixture(scope="module")
def owner(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_reader(tmp_path_factory.mktemp("owner"), "owner")


@pytest.fixture
def management() -> Iterator[EtcdGateway]:
    with EtcdGateway(SECRET * 4000).serving() as gateway:
        yield gateway


@pytest.fixture
def world(tmp_path: Path, signer: Path, management: EtcdGateway) -> BackupWorld:
    made = BackupWorld(tmp_path, signer)
    made.set_sources(f"http://127.0.0.1:{management.port}")
    return made


@contextmanager
def hosted(world: BackupWorld, management: EtcdGateway, breaks_off: int | None = None) -> Iterator[EtcdGateway]:
    """A workload cluster's etcd, which shows a certificate for its name and asks for one."""
    authority = make_authority("etcd-ca")
    certificate, key = make_leaf(authority, common_name="etcd", dns=(f"{CLUSTER}-etcd-0.{CLUSTER}-etcd-peer.{NAMESPACE}.svc",), server=True)
    pair = write_pair(world.folder, "server", certificate, key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*pair)
    context.load_verify_locations(cadata=authority.pem)
    context.verify_mode = ssl.CERT_REQUIRED
    client = write_pair(world.folder, "client", *make_leaf(authority, common_name="kube-apiserver-etcd-client", client=True))
    world.write_secret("etcd", authority.pem.encode(), b"")
    world.write_secret("apiserver-etcd-client", client[0].read_bytes(), client[1].read_bytes())
    with EtcdGateway(b"a tenant's objects" * 9000, revision=42, breaks_off=breaks_off).serving(context) as gateway:
        world.set_sources(f"http://127.0.0.1:{management.port}", hosted_port=gateway.port)
        world.add_cluster()
        yield gateway


def ours(world: BackupWorld) -> str:
    return archive.fingerprint_of(world.signer / "signer.pgp")


@contextmanager
def opened(world: BackupWorld, reader: ReaderKey | None = None, signed_by: str = "", file: Path | None = None) -> Iterator[Opened[Manifest]]:
    with scratch_folder(world.folder / "reading") as scratch:
        reader = reader or ReaderKey(passphrase=world.passphrase)
        with archive.opened(file or world.target, FORM, reader, lambda _: signed_by or ours(world), scratch) as backup:
            yield backup


def left(world: BackupWorld) -> list[str]:
    """What a run left in the places where it works."""
    return sorted(
        str(path.relative_to(world.folder)) for place in ("out", "state/backup") for path in (world.folder / place).iterdir() if path.name != "signer"
    )


def test_a_backup_has_what_the_host_had(world: BackupWorld, management: EtcdGateway) -> None:
    with hosted(world, management) as tenant:
        taken = world.take()
        wanted = {MANAGEMENT: management.snapshot, HOSTED: tenant.snapshot, "site.yaml": b"kind: Site\n"}
    assert left(world) == ["out/berlin.backup"]
    assert stat.S_IMODE(world.target.stat().st_mode) == 0o600
    with opened(world) as backup:
        assert backup.manifest == taken.manifest and backup.signed_by == taken.signed_by == ours(world)
        assert {name: backup.path(backup.manifest.member(name)).read_bytes() for name in wanted} == wanted
        with tarfile.open(backup.path(backup.manifest.member("state.tar"))) as state:
            assert state.getnames() == ["registry/ca.key"], "neither locks nor what is in the making"
        with tarfile.open(backup.path(backup.manifest.member("host.tar"))) as host:
            assert host.getnames() == [str(world.folder / "pki.crt").lstrip("/")]
    assert not (world.folder / "reading" / "scratch").exists()
    found = taken.manifest
    assert (found.site, found.cluster_uid, found.host, found.address) == (SITE, UID, "m1", "192.0.2.10")
    assert found.clusters == (Hosted(namespace=NAMESPACE, name=CLUSTER, version="v1.35.1", member=HOSTED),)
    owner = f"{os.getuid()} {os.getgid()} 700"
    assert found.volumes == (Volume(claim=f"{NAMESPACE}/data-demo-etcd-0", path=str(world.folder / "volume"), entries={"data": owner}),)
    assert found.member(HOSTED).etcd == Etcd(cluster_id="abc", version="3.5.15", revision=42, members={"m0": ("https://m0:2380",)})
    assert [item.what for item in taken.seen if item.name == "compass.db"] == ["SQLite finds nothing wrong with it; 1 tables"]


def local_volume(path: Path, claim: str, node: str) -> dict[str, object]:
    """A PersistentVolume as the provisioner makes it."""
    expression = {"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}
    affinity = {"required": {"nodeSelectorTerms": [{"matchExpressions": [expression]}]}}
    return {"spec": {"hostPath": {"path": str(path)}, "claimRef": {"namespace": NAMESPACE, "name": claim}, "nodeAffinity": affinity}}


def test_a_backup_of_several_hosts_says_which_has_which_volume(world: BackupWorld) -> None:
    class Away(ThisMachine):
        def run(self, *_: object, **__: object) -> NoReturn:
            raise CkpError(f"{self.name} can't be reached")

    world.others = [ThisMachine("m2", "192.0.2.11"), Away("m3", "192.0.2.12")]
    folder = world.folder / "volume"
    world.write_list("persistentvolumes", [local_volume(folder, f"data-{node}", node) for node in ("m1", "m2", "m3", "m9")])
    manifest = world.take().manifest
    owner = {"data": f"{os.getuid()} {os.getgid()} 700"}
    assert {volume.host: volume.entries for volume in manifest.volumes} == {"m1": owner, "m2": owner, "m3": {}, "m9": {}}
    assert manifest.hosts == {"m1": "192.0.2.10", "m2": "192.0.2.11", "m3": "192.0.2.12"} and manifest.format == 2
    assert parse(manifest.encoded(), "file") == manifest


def test_a_backup_of_one_host_is_read_by_the_version_before(world: BackupWorld) -> None:
    assert world.take().manifest.format == 1


def copying(world: BackupWorld, copy: bytes, *, whole: bool = True) -> None:
    """Compass' pod has PostgreSQL, and its program writes this copy."""
    digest = sha256_bytes(copy if whole else b"")
    script = world.folder / "compass.py"
    asked = "sys.argv[1:] == ['-m', 'ckp.compass', '--dump']"
    script.write_text(f"import sys\nassert {asked}\nsys.stdout.buffer.write({copy!r} + bytes.fromhex({digest!r}))\n")
    world.sources = replace(world.sources, python=(sys.executable, str(script)))


def test_compass_data_in_postgresql_is_copied_by_compass_and_checked(world: BackupWorld) -> None:
    copy = header("0004", {"host_groups": ["id", "name"]}) + b"1\tracks\n2\tmore\n\\.\n" + footer({"host_groups": 2})
    copying(world, copy)
    taken = world.take(postgresql=True)
    assert [item.what for item in taken.seen if item.name == "compass.copy"] == ["all rows of schema 0004 are there: 2 in 1 tables"]
    assert taken.manifest.format == 2 and "compass.db" not in [member.name for member in taken.manifest.members]
    with opened(world) as backup:
        assert backup.path(backup.manifest.member("compass.copy")).read_bytes() == copy


@pytest.mark.parametrize(("copy", "whole", "words"), [(b"hello", True, "is not whole"), (b"hello", False, "ended before all of it came")])
def test_a_copy_that_is_not_whole_ends_it(world: BackupWorld, copy: bytes, whole: bool, words: str) -> None:
    copying(world, copy, whole=whole)
    with pytest.raises(CkpError) as caught:
        world.take(postgresql=True)
    assert words in caught.value.render() and left(world) == []


def test_a_read_with_a_quorum_comes_before_each_snapshot(world: BackupWorld, management: EtcdGateway) -> None:
    world.take()
    assert management.asked.index("/v3/kv/range") < management.asked.index("/v3/maintenance/snapshot")


def test_nothing_can_be_read_without_a_key(world: BackupWorld) -> None:
    world.take()
    content = world.target.read_bytes()
    assert SECRET not in content and SITE.encode() not in content and b"registry" not in content


def test_nobody_makes_a_backup_that_nobody_or_everybody_can_read(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="nobody is named who could read it"):
        Readers()
    short, readable = tmp_path / "short", tmp_path / "readable"
    short.write_text("short\n")
    short.chmod(0o600)
    readable.write_text("long enough to be one\n")
    readable.chmod(0o644)
    for path, words in ((short, "shorter than 12"), (readable, "readable by others"), (tmp_path / "none", "can't be read")):
        with pytest.raises(InvalidInput, match=words):
            Readers(passphrase=path)
    with pytest.raises(InvalidInput, match="there is no OpenPGP certificate"):
        Readers([tmp_path / "none"])


def test_the_owner_of_a_certificate_reads_it_with_the_secret_key_and_others_do_not(world: BackupWorld, owner: tuple[Path, Path], tmp_path: Path) -> None:
    public, secret = owner
    world.take(Readers([public]))
    with opened(world, ReaderKey(key=secret)) as backup:
        assert backup.manifest.site == SITE
    stranger = make_reader(tmp_path, "stranger")[1]
    for reader in (ReaderKey(key=stranger), ReaderKey(passphrase=world.passphrase)):
        with pytest.raises(VerificationFailed, match="could not be decrypted, or is not whole"), opened(world, reader):
            pass
    assert list((world.folder / "reading").iterdir()) == []


def test_another_passphrase_reads_nothing(world: BackupWorld, tmp_path: Path) -> None:
    world.take()
    other = tmp_path / "other"
    other.write_text("another one of that length\n")
    with pytest.raises(VerificationFailed, match="could not be decrypted"), opened(world, ReaderKey(passphrase=other)):
        pass


def test_a_file_that_is_not_a_certificate_ends_it_and_leaves_nothing(world: BackupWorld, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.pgp"
    wrong.write_text("hello\n")
    with pytest.raises(CkpError, match="could not be encrypted"):
        world.take(Readers([wrong]))
    assert left(world) == []


@pytest.mark.parametrize("place", [0.02, 0.3, 0.6, 0.999])
def test_a_file_that_was_changed_or_cut_is_refused(world: BackupWorld, place: float) -> None:
    world.take()
    content = bytearray(world.target.read_bytes())
    at = int(len(content) * place)
    for name, changed in (("cut", content[:at]), ("changed", content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])):
        file = world.folder / name
        file.write_bytes(changed)
        with pytest.raises(VerificationFailed), opened(world, file=file):
            pass
    assert list((world.folder / "reading").iterdir()) == []


def test_a_backup_that_another_key_has_signed_is_refused_with_both_keys(world: BackupWorld) -> None:
    world.take()
    other = "A" * 40
    with pytest.raises(VerificationFailed) as caught, opened(world, signed_by=other):
        pass
    assert ours(world) in caught.value.brief and other in caught.value.brief and f"--signed-by {ours(world)}" in caught.value.resolution


def manifest_of(*members: Member, **more: object) -> Manifest:
    made = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    return Manifest.model_validate(
        {
            "format": FORMAT,
            "site": SITE,
            "made": made,
            "ckp": "0.2.0",
            "release": "v1.35.1",
            "clusterUid": UID,
            "host": "m1",
            "address": "192.0.2.10",
            "signingKeys": False,
            "clusters": (),
            "members": members,
            **more,
        }
    )


def seal_entries(world: BackupWorld, entries: list[tuple[str, bytes]]) -> None:
    """An archive of any entries, as somebody would make it who has the key or the passphrase."""
    with read_back_home(world.folder) as (home, _), encrypting(world.target, Readers(passphrase=world.passphrase), home, timeout=120) as stream:
        with tarfile.open(fileobj=stream, mode="w|") as packed:
            for name, content in entries:
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                packed.addfile(entry, io.BytesIO(content))


@pytest.mark.parametrize("how", ["other content", "longer", "another name", "missing", "one more", "not signed", "a link out", "no backup"])
def test_what_was_not_signed_so_is_refused(world: BackupWorld, signer: Path, how: str) -> None:
    content = b"precious"
    member = Member(name="site.yaml", kind=Kind.FILE, size=len(content), sha256=sha256_bytes(content))
    text = manifest_of(member).encoded()
    signature, certificate = Signer(signer).sign(text), (signer / "signer.pgp").read_bytes()
    head = [("manifest.json", text), ("manifest.sig", signature), ("signer.pgp", certificate)]
    entries = {
        "other content": [*head, ("members/site.yaml", b"malicious"[:8])],
        "longer": [*head, ("members/site.yaml", content + b"!")],
        "another name": [*head, ("members/../../site.yaml", content)],
        "missing": head,
        "one more": [*head, ("members/site.yaml", content), ("members/more", b"")],
        "not signed": [("manifest.json", text.replace(b"m1", b"m2")), *head[1:], ("members/site.yaml", content)],
        "a link out": [*head, ("members/site.yaml/", b"")],
        "no backup": [("hello", b"world")],
    }[how]
    seal_entries(world, entries)
    with pytest.raises(VerificationFailed), opened(world):
        pass
    world.target.unlink()
    seal_entries(world, [*head, ("members/site.yaml", content)])
    with opened(world) as backup:
        assert backup.path(member).read_bytes() == content


def test_a_later_format_is_refused_with_the_version_that_reads_it(world: BackupWorld, signer: Path) -> None:
    text = manifest_of(format=FORMAT + 1, ckp="9.1.0").encoded()
    seal_entries(world, [("manifest.json", text), ("manifest.sig", b""), ("signer.pgp", b"")])
    with pytest.raises(InvalidInput, match=f"has the format {FORMAT + 1}, and this version of CKP reads backups up to {FORMAT}") as caught, opened(world):
        pass
    assert "9.1.0" in caught.value.resolution


def test_a_name_that_leaves_the_folder_is_no_member() -> None:
    for name in ("../site.yaml", "/etc/passwd", "a//b", "a/../b", ""):
        with pytest.raises(ValueError, match="should match pattern"):
            Member(name=name, kind=Kind.FILE, size=0, sha256="0" * 64)


names = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,9}(/[a-z0-9][a-z0-9._-]{0,9}){0,2}", fullmatch=True)
members = st.builds(Member, name=names, kind=st.just(Kind.TAR), size=st.integers(0, 1 << 60), sha256=st.just("0" * 64), about=st.text(max_size=20))


@given(st.lists(members, unique_by=lambda member: member.name, max_size=5))
@settings(deadline=None)
def test_a_manifest_is_read_as_it_was_written(found: list[Member]) -> None:
    made = manifest_of(*found)
    assert parse(made.encoded(), "file") == made


def test_a_file_that_is_there_is_never_written_over(world: BackupWorld) -> None:
    world.target.write_text("precious")
    with pytest.raises(InvalidInput, match="is there already"):
        world.take()
    assert world.target.read_text() == "precious" and world.host.calls == 0


def test_an_etcd_that_breaks_off_ends_it_and_nothing_is_left(world: BackupWorld, management: EtcdGateway) -> None:
    management.breaks_off = 3
    with pytest.raises(CkpError, match="reading the management cluster's etcd on m1 failed") as caught:
        world.take()
    assert "ended before all of it came" in caught.value.details and left(world) == []


def test_a_cluster_that_cannot_be_read_ends_it_unless_it_is_named(world: BackupWorld, management: EtcdGateway) -> None:
    with hosted(world, management, breaks_off=2):
        with pytest.raises(NotFound, match=f"the etcd of the workload cluster {TITLE} can't be read, and no backup was made") as caught:
            world.take()
        assert left(world) == [] and caught.value.resolution.endswith(f"--without {TITLE}")
        [cluster] = world.take(without=[TITLE]).manifest.clusters
    assert not cluster.member and "ended before all of it came" in cluster.why


def test_a_cluster_that_is_still_being_made_has_no_data_yet(world: BackupWorld) -> None:
    world.add_cluster(initialized=False, ready=False)
    [cluster] = world.take().manifest.clusters
    assert not cluster.member and cluster.why.startswith("its control plane is not made yet")


def test_an_etcd_whose_certificate_is_of_another_cluster_is_not_asked(world: BackupWorld, management: EtcdGateway) -> None:
    with hosted(world, management) as tenant:
        world.write_secret("etcd", make_authority("another").pem.encode(), b"")
        with pytest.raises(NotFound, match="certificate verify failed"):
            world.take()
        assert tenant.asked == []


def test_a_database_that_is_not_whole_is_found_before_the_file_has_its_name(world: BackupWorld) -> None:
    content = bytearray(world.database.read_bytes())
    content[100:140] = b"\xff" * 40
    world.database.write_bytes(content)
    with pytest.raises(CkpError):
        world.take()
    assert left(world) == []


def test_signing_keys_are_in_it_only_if_they_are_asked_for(world: BackupWorld) -> None:
    keys = world.folder / "keys"
    keys.mkdir()
    (keys / "signing.pgp").write_text("secret")
    assert not [member for member in world.take().manifest.members if "keys" in member.name]
    world.target.unlink()
    taken = world.take(keys=keys)
    assert taken.manifest.signing_keys and taken.manifest.member("signing-keys.tar").kind is Kind.TAR


@pytest.mark.parametrize("call", [0, 2, 4])
def test_a_run_that_is_killed_leaves_no_backup_and_the_next_one_clears_what_it_had(world: BackupWorld, call: int) -> None:
    child = os.fork()
    if child == 0:
        world.host.kill_at = call
        world.take()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -9
    assert not world.target.exists() and world.scratch.exists() and stat.S_IMODE(world.scratch.stat().st_mode) == 0o700
    world.take()
    assert left(world) == ["out/berlin.backup"]


def spoil(line: str) -> str:
    """Another piece in the place of the one that was sent."""
    return f"D {base64.b64encode(zlib.compress(b'else')).decode()}" if line.startswith("D ") else line


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda line: line if not line.startswith("D ") else "", "not all of it arrived"),
        (spoil, "not all of it arrived"),
        (lambda line: line if not line.startswith("E ") else "", "failed"),
        (lambda line: f"{line[:9]}?{line[10:]}", "can't be read"),
    ],
)
def test_what_is_changed_on_its_way_is_noticed(world: BackupWorld, change: object, words: str) -> None:
    world.host.change_line = change  # type: ignore[assignment]
    with pytest.raises(CkpError, match=words):
        collect(world.host, {"do": "files", "paths": [str(world.folder / "pki.crt")]}, world.folder / "got", "reading")


@given(st.lists(st.binary(max_size=700_000), max_size=4))
@settings(deadline=None, max_examples=15)
def test_pieces_give_what_went_in(parts: list[bytes]) -> None:
    out = io.StringIO()
    sink = reading.Sink(out)
    for part in parts:
        sink.write(part)
    sink.finish({})
    *pieces, last = out.getvalue().splitlines()
    whole = b"".join(zlib.decompress(base64.b64decode(piece[2:])) for piece in pieces)
    assert whole == b"".join(parts) and all(piece.startswith("D ") for piece in pieces) and f'"sha256": "{sha256_bytes(whole)}"' in last
