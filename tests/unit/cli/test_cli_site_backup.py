"""`ckp site backup`: what is asked for, what is refused before a host is reached, and what is shown of a backup's file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ckp.cli import site_backup
from ckp.cli.site import site
from ckp.kits import paths
from ckp.kits.errors import InvalidInput, NotFound, VerificationFailed
from ckp.kits.processes import Finished
from ckp.site import management
from ckp.site.inventory import KnownHosts, SiteHosts
from ckp.site.spec.model import SiteSpec
from ckp.site.spec.read import parse_site
from tests.simulators.etcd_gateway import EtcdGateway
from tests.worlds.applied_site import TEXT
from tests.worlds.backup import SECRET, SITE, BackupWorld, ThisMachine, make_signer


def run(*arguments: str) -> Result:
    """The command's own errors come out as they are."""
    return CliRunner().invoke(site, ["backup", *arguments], catch_exceptions=False)


@pytest.fixture(scope="module")
def signer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_signer(tmp_path_factory.mktemp("signer") / "signer")


@pytest.fixture
def world(tmp_path: Path, signer: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[BackupWorld]:
    """A backup that was made, on a machine that has the site's state."""
    monkeypatch.setenv("CKP_STATE", str(tmp_path / "var"))
    monkeypatch.setenv("CKP_CACHE", str(tmp_path / "cache"))
    made = BackupWorld(tmp_path, signer)
    (tmp_path / "var" / "sites").mkdir(parents=True)
    (tmp_path / "var" / "sites" / SITE).symlink_to(tmp_path / "state")
    with EtcdGateway(SECRET).serving() as gateway:
        made.set_sources(f"http://127.0.0.1:{gateway.port}")
        yield made


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--show", "a", "--verify", "b"), "--verify and --show exclude each other"),
        (("--output", "a", "--list"), "--output and --list exclude each other"),
    ],
)
def test_it_does_one_thing_at_a_time(arguments: tuple[str, ...], words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        run(*arguments)


def test_without_a_reader_nothing_is_made_and_no_host_is_reached(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="nobody is named who could read it"):
        run("-f", str(tmp_path / "none.yaml"), "--output", str(tmp_path / "backup"))


def test_what_is_no_fingerprint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="is no fingerprint of a key"):
        run("--show", str(tmp_path / "backup"), "--signed-by", "somebody")


def test_a_backup_is_shown_as_a_table_and_as_data(world: BackupWorld) -> None:
    taken = world.take()
    arguments = ("--show", str(world.target), "--passphrase-file", str(world.passphrase))
    shown = run(*arguments).output
    assert f"Site:              {SITE}" in shown and "etcd/management" in shown and taken.signed_by in shown
    data = json.loads(run(*arguments, "-o", "json").output)
    assert data["signedBy"] == taken.signed_by and data["members"][0]["name"] == "etcd/management"
    assert not (paths.cache() / "backups" / "scratch").exists()


def test_a_machine_without_the_sites_state_needs_the_fingerprint(world: BackupWorld) -> None:
    taken = world.take()
    (paths.state() / "sites" / SITE).unlink()
    arguments = ("--show", str(world.target), "--passphrase-file", str(world.passphrase))
    with pytest.raises(NotFound, match=f"this machine has not the key that signs backups of {SITE}"):
        run(*arguments)
    spaced = " ".join(taken.signed_by[start : start + 4] for start in range(0, 40, 4)).lower()
    assert run(*arguments, "--signed-by", spaced).exit_code == 0
    with pytest.raises(VerificationFailed, match="is signed by the key"):
        run(*arguments, "--signed-by", "B" * 40)


def test_proving_without_etcds_programs_is_refused_with_where_they_come_from(world: BackupWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    world.take()
    monkeypatch.setattr(site_backup, "find_programs", lambda *_: None)
    with pytest.raises(NotFound, match="are not on this machine") as caught:
        run("--verify", str(world.target), "--passphrase-file", str(world.passphrase))
    assert "--from release.ckp" in caught.value.resolution


class Host(ThisMachine):
    """A management host, or one that is not yet."""

    installed = True

    def run(self, argv, **more):  # type: ignore[no-untyped-def]
        if argv[0] == "ckp-agent":
            return Finished(tuple(argv), 0 if self.installed else 1, "", "", 0.0)
        return super().run(argv, **more)


def test_a_host_without_a_management_cluster_has_nothing_to_back_up(world: BackupWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host()
    host.installed = False

    @contextmanager
    def changing(_: Path) -> Iterator[tuple[SiteSpec, SiteHosts]]:
        yield parse_site(TEXT.encode(), Path("site.yaml")), KnownHosts(host, [host])

    monkeypatch.setattr(site_backup, "changing", changing)
    with pytest.raises(NotFound, match="m1 has no management cluster that is complete"):
        run("--output", str(world.target), "--passphrase-file", str(world.passphrase))
    assert management.exists(Host()) and not world.target.exists()
