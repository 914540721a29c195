"""Backups that a management host makes by itself: what is in them, who makes them, and when. The etcds are simulated; gpg and SQLite are real."""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from ckp.backups import archive
from ckp.backups.archive import Opened
from ckp.backups.members import Kind
from ckp.clients.signing.encryption import ReaderKey, Readers, encrypting
from ckp.clients.signing.openpgp import gpg_home
from ckp.hostkit.backup import location
from ckp.hostkit.backup.collection import STATE
from ckp.hostkit.backup.names import made_at, name_of
from ckp.hostkit.errors import AgentError, InvalidInput, VerificationFailed
from ckp.hosttool.backup import command, lease, making, places
from ckp.hosttool.backup.command import back_up
from ckp.hosttool.backup.lease import Lease, Lost
from ckp.hosttool.backup.places import Folder
from ckp.kits.errors import VerificationFailed as NotVerified
from ckp.site.backup.manifest import FORM, MANAGEMENT, Manifest
from ckp.site.backup.proof import prove
from ckp.site.backup.take import scratch_folder
from tests.simulators.etcd_gateway import EtcdGateway
from tests.simulators.s3_store import BUCKET, S3Store
from tests.worlds.backup import SECRET, SITE, UID, BackupWorld, make_reader, make_signer

VERSION = "0.3.0"


class HostWorld:
    """A management host that is told to make backups, in a folder; and what reads them elsewhere."""

    def __init__(self, root: Path, signer: Path, owner: tuple[Path, Path], state: bytes, port: int) -> None:
        self.site, self.owner, self.root, self.lines = BackupWorld(root, signer), owner, root, list[str]()
        self.site.set_sources(f"http://127.0.0.1:{port}")
        self.settings, self.kept = root / "etc", root / "kept"
        for folder in (self.settings, self.kept, root / "agent"):
            folder.mkdir(mode=0o700)
        (root / "admin.conf").touch()
        (root / "agent" / "standalone.json").write_text(json.dumps({"member": {"release": "v1.35.1"}}))
        (root / "objects" / "configmap").mkdir()
        self.site.write_object("configmap/ckp-system.ckp-version", {"data": {"version": VERSION}})
        for name, source in (("reader-0.pgp", owner[0]), (location.SIGNER, signer / "signer.sec"), (location.SIGNER_CERTIFICATE, signer / "signer.pgp")):
            (self.settings / name).write_bytes(source.read_bytes())
        (self.settings / location.SITE).write_text("kind: Site\n")
        (self.settings / location.STATE).write_bytes(state)
        self.write_settings(path=str(self.kept))

    def write_settings(self, **more: object) -> None:
        common = {"site": SITE, "every": 3600, "keep": 2, "host": "m1", "address": "192.0.2.10", "hosts": {}, "postgresql": False, "readers": ["reader-0.pgp"]}
        (self.settings / location.SETTINGS).write_text(json.dumps({**common, **more}))

    def run(self, *, now: bool = False) -> int:
        return back_up(
            self.lines.append,
            now=now,
            sources=self.site.sources,
            root=str(self.settings),
            work=str(self.root / "work"),
            state=str(self.root / "agent"),
            restored=str(self.root / "restored"),
            admin=str(self.root / "admin.conf"),
        )

    @property
    def backups(self) -> list[str]:
        return sorted(path.name for path in self.kept.iterdir())

    @contextmanager
    def opened(self, reader: ReaderKey | None = None) -> Iterator[Opened[Manifest]]:
        ours = archive.fingerprint_of(self.site.signer / "signer.pgp")
        with scratch_folder(self.root / "reading") as scratch:
            with archive.opened(self.kept / self.backups[-1], FORM, reader or ReaderKey(self.owner[1]), lambda _: ours, scratch) as backup:
                yield backup

    def lease(self, host: str, clock: list[float]) -> Lease:
        """As another host has it."""
        kubectl = command._Kubectl(self.site.sources)
        return Lease(kubectl, location.LEASE, host, str(self.root / f"{host}.json"), "boot", lambda: clock[0])


@pytest.fixture(scope="module")
def signer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_signer(tmp_path_factory.mktemp("signer") / "signer")


@pytest.fixture(scope="module")
def owner(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_reader(tmp_path_factory.mktemp("owner"), "owner")


def sealed_state(folder: Path, reader: Path) -> bytes:
    """As `ckp site apply` brings what the host can't read."""
    (folder / "ca.key").write_text("the registry's key")
    with tarfile.open(folder / "plain.tar", "w") as packed:
        packed.add(folder / "ca.key", arcname="registry/ca.key")
    with gpg_home(within=folder) as home, encrypting(folder / "sealed", Readers([reader]), home, timeout=60) as stream:
        stream.write((folder / "plain.tar").read_bytes())
    return (folder / "sealed").read_bytes()


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory, owner: tuple[Path, Path]) -> bytes:
    return sealed_state(tmp_path_factory.mktemp("state"), owner[0])


@pytest.fixture
def world(tmp_path: Path, signer: Path, owner: tuple[Path, Path], state: bytes) -> Iterator[HostWorld]:
    with EtcdGateway(SECRET * 4000).serving() as gateway:
        yield HostWorld(tmp_path, signer, owner, state, gateway.port)


def test_a_host_makes_a_backup_that_is_read_as_any_other(world: HostWorld) -> None:
    assert world.run() == 0
    [name] = world.backups
    assert made_at(SITE, name) is not None and (world.kept / name).stat().st_mode & 0o777 == 0o600
    assert not list((world.root / "work" / "making").parent.glob("making*")), "nothing that can be read is left"
    with world.opened() as backup:
        found = backup.manifest
        assert (found.site, found.cluster_uid, found.host, found.release, found.ckp, found.format) == (SITE, UID, "m1", "v1.35.1", VERSION, 3)
        assert backup.path(found.member(MANAGEMENT)).read_bytes().startswith(SECRET)
        assert backup.path(found.member("site.yaml")).read_text() == "kind: Site\n"
        assert found.member(STATE).kind is Kind.SEALED
        with tarfile.open(backup.path(found.member(STATE))) as state:
            assert state.getnames() == ["registry/ca.key"], "its readers get what the host could not read"
        said = {seen.name: seen.what for seen in prove(backup, None, world.root, lambda _: None)}
        assert said["compass.db"].startswith("SQLite finds nothing wrong")


def test_it_has_what_the_machine_with_the_sites_file_takes(world: HostWorld) -> None:
    world.run()
    theirs = world.site.take().manifest
    with world.opened() as backup:
        ours = backup.manifest
    assert [(each.name, each.about) for each in ours.members] == [(each.name, each.about) for each in theirs.members]
    assert ours.volumes == theirs.volumes and ours.clusters == theirs.clusters and ours.member(MANAGEMENT).etcd == theirs.member(MANAGEMENT).etcd


def test_what_the_host_could_not_read_is_refused_by_name_to_another_reader(world: HostWorld, tmp_path: Path) -> None:
    other = make_reader(tmp_path, "other")
    (world.settings / location.STATE).write_bytes(sealed_state(tmp_path, other[0]))
    world.run()
    with pytest.raises(NotVerified, match=r"state\.tar in the backup could not be decrypted"), world.opened():
        pass


def test_another_one_is_made_when_it_is_due_and_the_oldest_goes(world: HostWorld) -> None:
    now = datetime.now(UTC)
    old = [name_of(SITE, now - timedelta(hours=hours)) for hours in (5, 3)]
    for name in (*old, "notes.txt", "berlin-x.backup"):
        (world.kept / name).write_bytes(b"x")
    world.run()
    assert old[0] not in world.backups and old[1] in world.backups and len(world.backups) == 4
    before = world.backups
    world.run()
    assert world.backups == before and "is not older than 1.0 h" in world.lines[-1]


def test_a_host_that_is_not_told_to_or_has_no_cluster_makes_none(world: HostWorld) -> None:
    (world.root / "restored").mkdir()
    assert world.run() == 0 and world.backups == []
    (world.root / "restored").rmdir()
    (world.root / "admin.conf").unlink()
    assert world.run() == 0 and world.backups == []
    (world.settings / location.SETTINGS).unlink()
    assert world.run() == 0 and world.backups == [] and world.lines[-1] == "this host is to make no backups"


def test_none_is_made_in_the_midst_of_an_upgrade(world: HostWorld) -> None:
    world.site.write_object("configmap/ckp-system.ckp-upgrade", {"data": {"phase": "layer"}})
    assert world.run() == 0 and world.backups == [] and "upgrade of the site is not finished" in world.lines[-1]


def test_one_host_at_a_time_is_at_work(world: HostWorld) -> None:
    clock = [1000.0]
    other = world.lease("m2", clock)
    assert other.acquire() == ""
    assert world.run() == 0 and world.backups == [] and world.lines == ["m2 makes one, or did lately"]
    other.release()
    assert world.run() == 0 and len(world.backups) == 1
    assert other.acquire() == "", "it is given back"


def test_a_lease_that_nobody_renews_is_taken_over_by_ones_own_clock(world: HostWorld) -> None:
    mine, theirs = [5.0], [9999.0]
    first, second = world.lease("m1", theirs), world.lease("m2", mine)
    assert first.acquire() == "" and second.acquire() == "m1"
    mine[0] += lease.SECONDS - 1
    assert second.acquire() == "m1"
    first.renew()
    mine[0] += 2
    assert second.acquire() == "m1", "it was renewed meanwhile"
    mine[0] += lease.SECONDS + 1
    assert second.acquire() == ""
    first.renew()
    with pytest.raises(Lost, match="m2 has taken over"):
        first.require()
    assert first.acquire() == "m2"


def test_of_two_who_try_at_once_one_gets_it(world: HostWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = world.lease("m1", [1.0]), world.lease("m2", [1.0])
    seen = second._read()
    assert first.acquire() == ""
    answers = iter([seen, second._read()])
    monkeypatch.setattr(second, "_read", lambda: next(answers))
    assert second.acquire() == "m1", "what it has read is outdated"


def test_who_has_lost_it_stores_nothing(world: HostWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[Lease] = []

    def slow(*arguments: Any) -> tuple[str, datetime]:
        done = making.make(*arguments)
        file = world.root / "objects" / "lease" / f"ckp-system.{location.LEASE}.json"
        held = json.loads(file.read_text())
        held["spec"]["holderIdentity"] = "m2"
        file.write_text(json.dumps(held))
        taken[0].renew()
        return done

    def keep(held: Lease) -> None:
        taken.append(held)

    monkeypatch.setattr(Lease, "keep", keep)
    monkeypatch.setattr(command, "make", slow)
    with pytest.raises(Lost):
        world.run()
    assert world.backups == []


def test_a_part_that_cannot_be_read_ends_it_and_nothing_older_goes(world: HostWorld) -> None:
    old = name_of(SITE, datetime.now(UTC) - timedelta(days=9))
    (world.kept / old).write_bytes(b"x")
    world.site.add_cluster(ready=False)
    with pytest.raises(AgentError, match="can't be read, and no backup was made") as caught:
        world.run()
    assert "--without ckp-default-default/demo" in caught.value.resolution and world.backups == [old]
    assert world.lease("m2", [1.0]).acquire() == "", "the lease is given back"


def test_what_is_read_back_otherwise_is_no_backup(world: HostWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(making, "_digests", lambda _stream: iter([("manifest.json", "0" * 64)]))
    with pytest.raises(VerificationFailed, match="not read back as it was written"):
        world.run()
    assert world.backups == []


def test_a_stored_backup_that_has_changed_is_deleted(tmp_path: Path) -> None:
    place, source = Folder(str(tmp_path)), tmp_path / "source"
    source.write_bytes(b"a backup")

    class Spoils(Folder):
        def put(self, source: str, name: str) -> None:
            super().put(source, name)
            (tmp_path / name).write_bytes(b"another")

    name = name_of(SITE, datetime.now(UTC))
    with pytest.raises(VerificationFailed, match="not what was stored"):
        places.store(Spoils(str(tmp_path)), SITE, 2, str(source), name, lambda _: None)
    assert place.names(SITE) == []
    place.put(str(source), name)
    with pytest.raises(AgentError, match="could not be written"):
        place.put(str(source), name)


def test_a_folder_that_is_not_mounted_is_not_made(world: HostWorld) -> None:
    world.write_settings(path=str(world.root / "nowhere"))
    with pytest.raises(InvalidInput, match="has no folder"):
        world.run()
    assert not (world.root / "nowhere").exists()


def test_a_bucket_takes_it_by_the_key_of_a_file(world: HostWorld) -> None:
    with S3Store().serving() as store:
        world.write_settings(s3={"endpoint": f"http://127.0.0.1:{store.port}", "bucket": BUCKET, "prefix": "sites", "region": "us-east-1"})
        (world.settings / location.CREDENTIALS).write_text("[default]\naws_access_key_id = AKIA\naws_secret_access_key = secret\n")
        assert world.run() == 0
        [name] = store.objects
        assert name.startswith(f"sites/{SITE}-") and SECRET not in store.objects[name]
        world.run()
        assert len(store.objects) == 1


def test_settings_that_cannot_be_read_are_named(world: HostWorld, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    (world.settings / location.SETTINGS).write_text("{}")
    with pytest.raises(AgentError, match=r"backup\.json can't be read"):
        world.run()
    monkeypatch.setattr(command, "back_up", lambda *_, **__: world.run())
    assert command.command([]) == 1 and "run `ckp site apply`" in capsys.readouterr().err


def test_the_proxy_is_for_the_bucket_and_not_for_kubectl(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Mapping[str, str]] = []
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.test:3128")
    monkeypatch.setenv("no_proxy", ".example")

    def noted(*_: object, environment: Mapping[str, str], **__: object) -> int:
        seen.append(environment)
        return 0

    monkeypatch.setattr(command, "back_up", noted)
    assert command.command([]) == 0 and seen[0]["HTTPS_PROXY"] == "http://proxy.test:3128" and ".example" in seen[0]["NO_PROXY"]
    assert not {"HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy"} & set(os.environ)
