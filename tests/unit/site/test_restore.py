"""A site comes back from a backup on a new management host; what is refused before anything is changed; and a restore that is killed at any command."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ckp.backups.archive import fingerprint_of
from ckp.cli import site_restore
from ckp.clients.signing.encryption import Signer
from ckp.hostkit.locations import RESTORED, RESTORED_RECORD
from ckp.kits.errors import CkpError, Conflict, InvalidInput, VerificationFailed
from ckp.site.backup.manifest import Manifest
from ckp.site.backup.placing import BUMP
from ckp.site.backup.restore import MARKS, restore_keys
from tests.simulators.site_host import Killed
from tests.support.kills import stride
from tests.worlds.backup import make_signer
from tests.worlds.restorable_site import COMPASS_VOLUME, ETCD_VOLUME, NewHost, RestorableSite


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RestorableSite:
    return RestorableSite(tmp_path, monkeypatch)


def is_back(site: RestorableSite) -> bool:
    """The site as the backup has it, and nothing left of the work."""
    assert site.names() == {"before"}
    assert site.host.complete and not site.host.path(RESTORED).exists()
    for volume, name, owner in ((ETCD_VOLUME, "data", "700 65532 65533"), (COMPASS_VOLUME, "compass.db", "640 65532 65534")):
        assert site.host.access[volume.path].startswith("777") and site.host.access[f"{volume.path}/{name}"] == owner
    data = json.loads(site.host.path(f"{ETCD_VOLUME.path}/data/member/db").read_text())
    assert data["content"] == "a tenant's" and data["bump-revision"] == str(BUMP) and data["initial-cluster"] == "demo-etcd-0=https://e0:2380"
    assert site.host.path(f"{COMPASS_VOLUME.path}/compass.db").read_text() == "Compass'"
    return site.plan()[0] == 0


def unchanged(site: RestorableSite) -> dict[str, str]:
    """The host, and what this machine keeps."""
    kept = {str(path): path.read_text() for path in site.state.rglob("*") if path.is_file() and path.name != "apply.lock"} if site.state.exists() else {}
    return {**site.host.tree(), **kept}


def test_a_site_comes_back_on_a_new_host_from_the_file_and_the_fingerprint(site: RestorableSite, tmp_path: Path) -> None:
    made = Signer(make_signer(tmp_path / "cache" / "signer"))
    target, secret = site.seal(made)
    ca = (site.state / "registry" / "ca.pem").read_bytes()
    site.lose()
    fingerprint = fingerprint_of(made.folder / "signer.pgp")
    arguments = ("restore", str(target), "--passphrase-file", str(secret), "--signed-by", fingerprint)
    with pytest.raises(VerificationFailed, match="is signed by the key"):
        site.run(*arguments[:-1], "A" * 40)
    done = site.run(*arguments)
    assert done.exit_code == 0, done.output
    assert is_back(site) and site.proved == ["berlin"]
    assert "The site berlin is back, as it was on 2026-01-31 04:05 UTC" in done.output
    assert (site.state / "registry" / "ca.pem").read_bytes() == ca, "hosts trust the registry as before"
    assert site.host.path("/etc/ckp-agent/registry-ca.pem").read_bytes() == ca
    assert {stat.S_IMODE(path.stat().st_mode) & 0o077 for path in site.state.rglob("*") if path.is_dir()} == {0}


def test_a_machine_that_has_kept_its_state_applies_again_what_the_backup_does_not_have(site: RestorableSite) -> None:
    marker = site.state / "applied" / "ckp"
    was = marker.read_text()
    marker.write_text("of objects that were applied after the backup")
    ca = (site.state / "registry" / "ca.pem").read_bytes()
    site.lose(state=False)
    assert site.restore().exit_code == 0 and is_back(site)
    assert marker.read_text() == was and (site.state / "registry" / "ca.pem").read_bytes() == ca


def test_the_host_gets_cas_and_no_certificates_that_may_have_expired(site: RestorableSite) -> None:
    seen: list[list[str]] = []

    class Looking(NewHost):
        def install(self, *arguments: Any, **more: Any) -> None:
            seen.append(sorted(path.name for path in self.path(f"{RESTORED}/pki").iterdir()))
            super().install(*arguments, **more)

    site.lose().__class__ = Looking
    assert site.restore().exit_code == 0
    assert seen == [["ca.crt", "ca.key", "etcd", "front-proxy-ca.crt", "front-proxy-ca.key", "sa.key", "sa.pub"]]
    assert site.host.access.get(f"{RESTORED}/pki/ca.key") is None


def test_a_second_restore_is_refused_since_the_site_is_in_use(site: RestorableSite) -> None:
    site.lose()
    assert site.restore().exit_code == 0
    site.host.api.add("ConfigMap", "default", "written since")
    before = unchanged(site)
    with pytest.raises(Conflict, match="m1 is in use, and nothing was changed"):
        site.restore()
    assert unchanged(site) == before and site.names() == {"before", "written since"}


@pytest.mark.parametrize("path", [*MARKS, ETCD_VOLUME.path, COMPASS_VOLUME.path])
def test_a_host_that_is_not_clean_is_refused(site: RestorableSite, path: str) -> None:
    host = site.lose()
    host.path(path).parent.mkdir(parents=True, exist_ok=True)
    host.path(path).write_text("somebody's")
    before = unchanged(site)
    with pytest.raises(Conflict, match="m1 is in use, and nothing was changed") as caught:
        site.restore()
    assert path in caught.value.brief and unchanged(site) == before and not site.state.joinpath("registry").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda _: {"site": "hamburg"}, "the backup is of the site hamburg, and the file describes berlin"),
        (lambda _: {"host": "m7"}, "the backup is of m7"),
        (lambda _: {"hosts": {"m1": "192.0.2.10", "m2": "192.0.2.11", "m3": "192.0.2.12"}}, r"the backup is of m1 \(192.0.2.10\), m2"),
        (lambda _: {"address": "192.0.2.11"}, r"the site's file names m1 \(192.0.2.10\)"),
        (lambda _: {"release": "v1.34.1"}, "are of v1.34.1, which `releases` does not name"),
        (lambda found: {"clusters": (found.clusters[0].model_copy(update={"version": "v1.33.1"}),)}, "are of v1.33.1, which"),
        (lambda _: {"volumes": (COMPASS_VOLUME,)}, "does not say where the data of the etcd member demo-etcd-0"),
        (lambda _: {"volumes": (ETCD_VOLUME,)}, "does not say where the data of Compass' database"),
    ],
)
def test_a_backup_of_something_else_is_refused(site: RestorableSite, change: Callable[[Manifest], dict[str, Any]], words: str) -> None:
    other = site.back_up(**change(site.backup.manifest))
    site.lose()
    before = unchanged(site)
    with pytest.raises(CkpError, match=words):
        site.restore(other)
    assert unchanged(site) == before


def test_a_file_with_another_kind_of_database_is_refused(site: RestorableSite) -> None:
    (site.root / "url").write_text("postgresql://u:p@192.0.2.99:5432/d\n")
    (site.root / "url").chmod(0o600)
    site.lose()
    site.write(("releases: [v1.35.1]", "releases: [v1.35.1]\ndatabase: {postgresql: {urlFile: url}}"))
    before = unchanged(site)
    with pytest.raises(InvalidInput, match="the backup has Compass' data of sqlite, and the site's file names postgresql"):
        site.restore()
    assert unchanged(site) == before


def test_a_file_with_another_network_than_the_cluster_has_is_refused(site: RestorableSite) -> None:
    site.lose()
    site.write(("managementPods: 10.1.0.0/16", "managementPods: 10.2.0.0/16"))
    before = unchanged(site)
    with pytest.raises(InvalidInput, match=r"was made with managementPods 10[.]1[.]0[.]0/16, and the file has 10[.]2[.]0[.]0/16"):
        site.restore()
    assert unchanged(site) == before


def test_a_machine_with_another_registry_is_refused(site: RestorableSite) -> None:
    site.lose()
    (site.state / "registry").mkdir(parents=True)
    (site.state / "registry" / "ca.pem").write_text("another")
    before = unchanged(site)
    with pytest.raises(Conflict, match="is of another registry than the backup's"):
        site.restore()
    assert unchanged(site) == before


def test_a_backup_that_can_not_be_proved_does_not_reach_the_host(site: RestorableSite, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise VerificationFailed("can't be restored into etcd")

    site.lose()
    before = site.host.tree()
    monkeypatch.setattr(site_restore, "prove", broken)
    with pytest.raises(VerificationFailed):
        site.restore()
    assert site.host.tree() == before


def killed_before_the_installation(site: RestorableSite) -> NewHost:
    """A host with a restore that was begun."""
    host = site.lose()
    host.kill_at = 0
    while not host.path(RESTORED_RECORD).exists():
        host.kill_at += 4
        host.calls.clear()
        with pytest.raises(Killed):
            site.restore()
    host.kill_at = None
    return host


def test_an_unfinished_restore_goes_on_with_its_own_backup_only_and_nothing_else_is_done_meanwhile(site: RestorableSite) -> None:
    site.host.api.add("ConfigMap", "default", "of the other")
    other = site.back_up()
    host = killed_before_the_installation(site)
    before = unchanged(site)
    with pytest.raises(Conflict, match="on m1 the restore of another backup was begun, and nothing was changed"):
        site.restore(other)
    with pytest.raises(Conflict, match="a restore was begun on m1 and is not finished, and nothing was changed"):
        site.run("apply")
    assert unchanged(site) == before and not host.journal
    assert site.restore().exit_code == 0 and is_back(site)


def test_removing_the_site_gives_an_unfinished_restore_up(site: RestorableSite) -> None:
    host = killed_before_the_installation(site)
    assert site.run("remove", "--confirm", "berlin").exit_code == 0
    assert not host.path(RESTORED).exists()


@pytest.mark.parametrize("after", [False, True])
def test_a_restore_that_is_killed_at_any_command_is_gone_on_with(site: RestorableSite, after: bool) -> None:
    host, step = site.lose(), stride(4 if after else 5)
    host.kill_after = after
    number, killed = 0, 0
    while True:
        host.calls.clear()
        host.kill_at = number
        try:
            done = site.restore()
        except Killed:
            killed += 1
            number += step
            continue
        except Conflict as error:  # the last command was the end of it, and its answer was lost
            assert "is in use" in error.brief
            break
        assert done.exit_code == 0, done.output
        break
    host.kill_at = None
    assert killed * step > 40 and is_back(site)


@pytest.mark.parametrize("number", range(0, 200, 13))
def test_a_restore_that_is_killed_once_is_gone_on_with(site: RestorableSite, number: int) -> None:
    host = site.lose()
    host.kill_at = number
    try:
        site.restore()
    except Killed:
        host.kill_at = None
        assert site.restore().exit_code == 0
    host.kill_at = None
    assert is_back(site)


def test_a_host_tool_that_does_not_know_of_backups_is_found_out(site: RestorableSite) -> None:
    site.lose().restores = False
    with pytest.raises(CkpError, match="runs a management cluster without the backup's data"):
        site.restore()


def test_keys_that_sign_releases_come_back_where_there_are_none(site: RestorableSite, tmp_path: Path) -> None:
    content = site.back_up(signing_keys=True)
    member = site._member(content.folder or tmp_path, "signing-keys.tar", (content.path(content.manifest.member("state.tar"))).read_bytes())
    manifest = content.manifest.model_copy(update={"members": (*content.manifest.members, member)})
    backup = type(content)(manifest, content.signed_by, content.folder)
    said: list[str] = []
    restore_keys(backup, tmp_path / "new", said.append)
    assert (tmp_path / "new" / "registry" / "ca.pem").exists() and stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700
    (tmp_path / "new" / "registry" / "ca.pem").write_text("mine")
    restore_keys(backup, tmp_path / "new", said.append)
    assert (tmp_path / "new" / "registry" / "ca.pem").read_text() == "mine" and said[-1].endswith("left as it is")
