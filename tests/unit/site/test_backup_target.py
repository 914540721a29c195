"""Where a site keeps its backups: stored whole and read back, older ones deleted, and read again by a machine that has only the site's file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ckp.backups.places import Target
from ckp.cli import site_backup
from ckp.cli.site import site as command
from ckp.hostkit.backup.collection import Sources
from ckp.hostkit.backup.names import made_at, name_of, superseded
from ckp.kits.errors import CkpError, InvalidInput, NotFound, VerificationFailed
from ckp.kits.files import atomic_write
from ckp.kits.processes import Finished
from ckp.site import described, management
from ckp.site.backup import take
from ckp.site.backup.target import target_of
from ckp.site.inventory import KnownHosts, SiteHosts
from ckp.site.spec.model import SiteSpec
from ckp.site.spec.read import parse_site
from ckp.site.status import backups
from tests.simulators.etcd_gateway import EtcdGateway
from tests.simulators.s3_store import BUCKET, S3Store
from tests.worlds.applied_site import TEXT
from tests.worlds.backup import SECRET, SITE, BackupWorld, ThisMachine, make_reader, make_signer

KEYS = "[default]\naws_access_key_id = AKIA\naws_secret_access_key = wJalrXUtnFEMI\n"


@pytest.fixture(scope="module")
def signer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_signer(tmp_path_factory.mktemp("signer") / "signer")


@pytest.fixture(scope="module")
def owner(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_reader(tmp_path_factory.mktemp("owner"), "owner")


@pytest.fixture
def store() -> Iterator[S3Store]:
    with S3Store().serving() as made:
        yield made


class Machine(ThisMachine):
    """A host that takes files, too."""

    def push(self, source: Path | bytes, target: str, *, mode: int = 0o644) -> None:
        atomic_write(Path(target), source.read_bytes() if isinstance(source, Path) else source, mode=mode)


def spec_of(folder: Path, to: str, more: str = "") -> SiteSpec:
    (folder / "s3").write_text(KEYS)
    (folder / "s3").chmod(0o600)
    text = f"{TEXT.replace('name: berlin', f'name: {SITE}')}backup: {{to: {to}, keep: 2, encryptFor: [owner.pgp]}}\n{more}"
    (folder / "site.yaml").write_text(text)
    return parse_site(text.encode(), folder / "site.yaml")


def bucket(store: S3Store, more: str = "") -> str:
    return f"{{s3: {{endpoint: 'http://127.0.0.1:{store.port}', bucket: {BUCKET}, prefix: sites, credentialsFile: s3{more}}}}}"


@contextmanager
def target(spec: SiteSpec, environment: Mapping[str, str] | None = None) -> Iterator[Target]:
    with target_of(spec, Machine(), environment or {}) as made:
        yield made


def names(count: int) -> list[str]:
    return [name_of(SITE, datetime(2026, 1, 31, 4, 5, 6, tzinfo=UTC) + timedelta(hours=hour)) for hour in range(count)]


def test_names_say_site_and_time_and_no_others_are_touched() -> None:
    name = name_of("berlin", datetime(2026, 1, 31, 6, 5, 6, tzinfo=UTC))
    assert name == "berlin-20260131T060506Z.backup" and made_at("berlin", name) == datetime(2026, 1, 31, 6, 5, 6, tzinfo=UTC)
    others = ["berlin-2-20260131T060506Z.backup", "berlin-20260131T060506Z.backup.part", "berlin-20261331T060506Z.backup", "berlin.backup", "notes"]
    assert [made_at("berlin", other) for other in others] == [None] * len(others) and made_at("berlin-2", others[0]) is not None
    ours = [name_of("berlin", datetime(2026, 1, day, tzinfo=UTC)) for day in (3, 1, 2)]
    assert superseded("berlin", [*others, *ours], 2) == [ours[1]] and superseded("berlin", ours, 3) == []


@pytest.mark.parametrize("kind", ["bucket", "folder"])
def test_a_backup_is_stored_read_back_and_fetched_and_older_ones_go(tmp_path: Path, store: S3Store, kind: str) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "notes").write_text("somebody's")
    store.objects["sites/notes"] = b"somebody's"
    spec = spec_of(tmp_path, bucket(store) if kind == "bucket" else f"{{path: {tmp_path}/kept}}")
    file, said = tmp_path / "file", list[str]()
    with target(spec) as made:
        for name in names(4):
            file.write_bytes(f"content of {name}".encode())
            made.store(file, name, tmp_path, said.append)
        assert [each.name for each in made.backups()] == names(4)[2:]
        assert made.backups()[0].size == len(f"content of {names(4)[2]}") and made.backups()[0].made == datetime(2026, 1, 31, 6, 5, 6, tzinfo=UTC)
        with made.fetched(names(4)[3], tmp_path) as local:
            assert local.read_text() == f"content of {names(4)[3]}" and local.stat().st_mode & 0o777 == 0o600
        assert not local.exists() and not (tmp_path / "read-back").exists()
        with pytest.raises(NotFound, match="has no backup") as caught, made.fetched(names(4)[0], tmp_path):
            pass
        assert caught.value.details.splitlines()[1:] == names(4)[2:]
        with pytest.raises(CkpError, match="already"):
            made.store(file, names(4)[3], tmp_path, said.append)
    kept = [path.name for path in (tmp_path / "kept").iterdir()] if kind == "folder" else [name.removeprefix("sites/") for name in store.objects]
    assert sorted(kept) == sorted(["notes", *names(4)[2:]])
    assert f"{names(4)[1]}: deleted, as 2 are kept" in said


def test_what_was_stored_wrongly_is_deleted_and_no_older_one_goes(tmp_path: Path, store: S3Store) -> None:
    with target(spec_of(tmp_path, bucket(store))) as made:
        (tmp_path / "file").write_bytes(b"content")
        for name in names(2):
            made.store(tmp_path / "file", name, tmp_path, print)
        store.spoils = True
        with pytest.raises(VerificationFailed, match="is not what was stored there, and was deleted"):
            made.store(tmp_path / "file", names(3)[2], tmp_path, print)
        assert [each.name for each in made.backups()] == names(2)


def test_a_bucket_that_deletes_nothing_takes_the_new_one_all_the_same(tmp_path: Path, store: S3Store) -> None:
    store.refuses = "DELETE"
    said: list[str] = []
    with target(spec_of(tmp_path, bucket(store))) as made:
        (tmp_path / "file").write_bytes(b"content")
        for name in names(3):
            made.store(tmp_path / "file", name, tmp_path, said.append)
        assert len(made.backups()) == 3
    assert "could not be deleted" in said[-1] and "AccessDenied" in said[-1]


def test_a_folder_that_is_not_mounted_is_refused(tmp_path: Path) -> None:
    with target(spec_of(tmp_path, f"{{path: {tmp_path}/kept}}")) as made:
        (tmp_path / "file").write_bytes(b"content")
        with pytest.raises(NotFound, match="has no folder"):
            made.store(tmp_path / "file", names(1)[0], tmp_path, print)
    assert not (tmp_path / "kept").exists()


def test_a_key_that_others_may_read_is_refused(tmp_path: Path, store: S3Store) -> None:
    spec = spec_of(tmp_path, bucket(store))
    (tmp_path / "s3").chmod(0o640)
    with pytest.raises(InvalidInput, match=r"site\.yaml:\d+: backup\.to\.s3\.credentialsFile.*others than its owner"), target(spec):
        pass
    (tmp_path / "s3").write_text("hello")
    (tmp_path / "s3").chmod(0o600)
    with pytest.raises(InvalidInput, match="not in the format"), target(spec):
        pass
    (tmp_path / "s3").unlink()
    with pytest.raises(InvalidInput, match="can't be read"), target(spec):
        pass


def test_the_sites_proxy_is_used_where_this_machine_names_none(tmp_path: Path, store: S3Store) -> None:
    proxied = "network: {proxy: {http: 'http://127.0.0.1:9', https: 'http://127.0.0.1:9'}}\n"
    spec = spec_of(tmp_path, bucket(store).replace("127.0.0.1", "s3.example"), proxied)
    with target(spec) as made:
        environment = made.place._store._environment  # type: ignore[attr-defined]
        assert environment["HTTPS_PROXY"] == "http://127.0.0.1:9" and "192.0.2.0/24" in environment["NO_PROXY"]
    with target(spec, {"https_proxy": "http://127.0.0.1:10"}) as made:
        assert made.place._store._environment == {"https_proxy": "http://127.0.0.1:10"}  # type: ignore[attr-defined]


class Host(ThisMachine):
    """A management host with a management cluster."""

    def run(self, argv, **more):  # type: ignore[no-untyped-def]
        if argv[0] == "ckp-agent":
            return Finished(tuple(argv), 0, "", "", 0.0)
        return super().run(argv, **more)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(command, ["backup", *arguments], catch_exceptions=False)


def test_the_command_makes_lists_shows_and_restores_what_lies_in_the_bucket(
    tmp_path: Path, signer: Path, owner: tuple[Path, Path], store: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CKP_STATE", str(tmp_path / "var"))
    monkeypatch.setenv("CKP_CACHE", str(tmp_path / "cache"))
    world = BackupWorld(tmp_path, signer)
    (tmp_path / "var" / "sites").mkdir(parents=True)
    (tmp_path / "var" / "sites" / SITE).symlink_to(tmp_path / "state")
    (tmp_path / "owner.pgp").write_bytes(owner[0].read_bytes())
    spec, file = spec_of(tmp_path, bucket(store)), str(tmp_path / "site.yaml")
    host = Host()

    @contextmanager
    def changing(_: Path) -> Iterator[tuple[SiteSpec, SiteHosts]]:
        yield spec, KnownHosts(host, [host])

    monkeypatch.setattr(site_backup, "changing", changing)
    monkeypatch.setattr(site_backup, "find_programs", lambda *_: None)
    monkeypatch.setattr(management, "installed_release", lambda _: "v1.35.1")
    with EtcdGateway(SECRET).serving() as gateway:
        world.set_sources(f"http://127.0.0.1:{gateway.port}")
        monkeypatch.setattr(Sources, "of", classmethod(lambda _cls, _address: world.sources))
        made = run("-f", file)
    [name] = (key.removeprefix("sites/") for key in store.objects)
    assert made.exit_code == 0 and f"{name} in http://127.0.0.1:{store.port}/{BUCKET}/sites has the whole site {SITE}" in made.stdout
    assert made_at(SITE, name) is not None and SECRET not in store.objects[f"sites/{name}"]
    assert [path.name for path in (tmp_path / "state" / "backup").iterdir() if path.is_file()] == [] and not list(
        (tmp_path / "state" / "backup" / "sealed").iterdir()
    )
    [listed] = json.loads(run("-f", file, "--list", "-o", "json").stdout)
    assert listed["name"] == name and listed["bytes"] == len(store.objects[f"sites/{name}"])
    assert name in run("-f", file, "--list").stdout
    shown = json.loads(run("-f", file, "--show", name, "--key", str(owner[1]), "-o", "json").stdout)
    assert shown["site"] == SITE and "compass.db" in [member["name"] for member in shown["members"]]
    store.objects.clear()
    assert f"has no backup of {SITE}" in run("-f", file, "--list").stdout
    with pytest.raises(NotFound, match=f"has no backup {name}"):
        run("-f", file, "--verify", name, "--key", str(owner[1]))


def test_one_is_made_only_when_it_is_due(tmp_path: Path, owner: tuple[Path, Path], store: S3Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CKP_STATE", str(tmp_path / "var"))
    (tmp_path / "owner.pgp").write_bytes(owner[0].read_bytes())
    spec, host = spec_of(tmp_path, bucket(store) + ", every: 24h"), Host()
    made: list[str] = []

    @contextmanager
    def changing(_: Path) -> Iterator[tuple[SiteSpec, SiteHosts]]:
        yield spec, KnownHosts(host, [host])

    def take_one(*_: object) -> None:
        made.append("one")
        raise CkpError("enough for this test")

    monkeypatch.setattr(site_backup, "changing", changing)
    monkeypatch.setattr(site_backup, "find_programs", lambda *_: None)
    monkeypatch.setattr(management, "installed_release", lambda _: "v1.35.1")
    monkeypatch.setattr(take, "take", take_one)
    now = datetime.now(UTC)
    for hours, due in ((23, False), (25, True), (None, True)):
        store.objects = {f"sites/{name_of(SITE, now - timedelta(hours=hours))}": b"x"} if hours else {}
        if due:
            with pytest.raises(CkpError, match="enough for this test"):
                run("-f", str(tmp_path / "site.yaml"), "--if-due")
        else:
            assert "is not older than `backup.every`, and no other was made" in run("-f", str(tmp_path / "site.yaml"), "--if-due").stdout
    assert len(made) == 2
    with pytest.raises(InvalidInput, match="exclude each other"):
        run("--if-due", "--list")


def test_a_late_backup_is_seen_in_the_status(tmp_path: Path, store: S3Store) -> None:
    now = datetime(2026, 2, 1, tzinfo=UTC)
    with target(spec_of(tmp_path, bucket(store))) as made:
        day = timedelta(hours=24)
        assert (backups(made, None, now).state, backups(made, day, now).state) == ("ok", "none")
        store.objects[f"sites/{name_of(SITE, now - timedelta(hours=35))}"] = b"x"
        found = backups(made, day, now)
        assert found.state == "ok" and found.detail.endswith("the newest of 2026-01-30 13:00 UTC, 35 h old")
        assert backups(made, day, now + timedelta(hours=2)).state == "late" and backups(made, None, now + timedelta(hours=2)).state == "ok"
        store.refuses = "GET"
        assert backups(made, day, now).state == "unknown"


def test_a_bucket_that_does_not_answer_ends_it_before_anything_is_taken(
    tmp_path: Path, owner: tuple[Path, Path], store: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CKP_STATE", str(tmp_path / "var"))
    (tmp_path / "owner.pgp").write_bytes(owner[0].read_bytes())
    spec, host = spec_of(tmp_path, bucket(store).replace(BUCKET, "another")), Host()

    @contextmanager
    def changing(_: Path) -> Iterator[tuple[SiteSpec, SiteHosts]]:
        yield spec, KnownHosts(host, [host])

    monkeypatch.setattr(site_backup, "changing", changing)
    monkeypatch.setattr(site_backup, "find_programs", lambda *_: None)
    monkeypatch.setattr(management, "installed_release", lambda _: "v1.35.1")
    with pytest.raises(CkpError, match="NoSuchBucket"):
        run("-f", str(tmp_path / "site.yaml"))
    assert host.calls == 0


def test_a_site_that_keeps_none_anywhere_says_so(tmp_path: Path) -> None:
    (tmp_path / "site.yaml").write_text(TEXT)
    with pytest.raises(InvalidInput, match="does not say where backups are kept"):
        run("-f", str(tmp_path / "site.yaml"), "--list")


def test_a_folder_of_the_host_is_listed_through_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / names(1)[0]).write_bytes(b"content")
    spec_of(tmp_path, f"{{path: {tmp_path}/kept}}")

    @contextmanager
    def reached(_: object) -> Iterator[ThisMachine]:
        yield ThisMachine()

    monkeypatch.setattr(described, "reached", reached)
    assert [each["name"] for each in json.loads(run("-f", str(tmp_path / "site.yaml"), "--list", "-o", "json").stdout)] == names(1)
