"""The maker's repositories at a site that has no signing key: each release in a folder of its own, as it was signed, and again changes nothing."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ckp import __version__
from ckp.catalog.load import Catalog
from ckp.cli.distribution.dist import dist_publish
from ckp.clients.signing.openpgp import SigningKey
from ckp.distribution.carry import repositories as module
from ckp.distribution.carry.airgap import tree
from ckp.distribution.carry.archive import write_archive
from ckp.kits.errors import Conflict, TimedOut, VerificationFailed
from ckp.kits.files import exclusive
from tests.support.signing_keys import signing_key
from tests.support.spoilt_packages import snapshot


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> SigningKey:
    return signing_key(tmp_path_factory.mktemp("keys"))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CKP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CKP_KEYS", str(tmp_path / "no-keys-here"))
    return tmp_path / "site"


def export(folder: Path, key: SigningKey, release: str, word: str = "first") -> Path:
    """A release's file that has nothing but its repositories."""
    root = folder / f"{release}-{word}"
    for name, text in (("apt/dists/bookworm/InRelease", word), (f"rpm/el9/{release[:5]}/x86_64/repodata/repomd.xml", word), ("setup/ckp.repo", "x")):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{release} {text}")
    about = {"kind": "ckp-release", "ckp": __version__, "release": Catalog().release(release).model_dump(mode="json")}
    file = folder / f"{release}-{word}.ckp"
    write_archive(file, about, tree("repositories", root), key, lambda _: None)
    return file


def publish(file: Path, key: SigningKey, site: Path, *more: str) -> Result:
    return CliRunner().invoke(dist_publish, ["--from", str(file), "--keyring", str(key.keyring), "--repositories", str(site), *more])


def there(site: Path) -> list[str]:
    return sorted(path.name for path in site.iterdir() if not path.name.startswith("."))


def test_two_releases_lie_beside_each_other_as_they_were_signed(tmp_path: Path, key: SigningKey, site: Path) -> None:
    for release in ("v1.34.3", "v1.35.1"):
        done = publish(export(tmp_path, key, release), key, site)
        assert done.exit_code == 0, done.output
        assert f"package repositories in {site / release}" in done.output
    assert there(site) == ["v1.34.3", "v1.35.1"]
    for release in there(site):
        assert (site / release / "apt/dists/bookworm/InRelease").read_text() == f"{release} first"


def test_the_same_again_changes_nothing_and_says_so(tmp_path: Path, key: SigningKey, site: Path) -> None:
    file = export(tmp_path, key, "v1.35.1")
    publish(file, key, site)
    before = snapshot(site)
    done = publish(file, key, site)
    assert done.exit_code == 0, done.output
    assert "are there already: nothing was changed" in done.output
    assert snapshot(site) == before


def test_other_repositories_of_the_same_release_are_a_conflict_unless_they_are_to_be_replaced(tmp_path: Path, key: SigningKey, site: Path) -> None:
    publish(export(tmp_path, key, "v1.35.1"), key, site)
    before, other = snapshot(site), export(tmp_path, key, "v1.35.1", "second")
    done = publish(other, key, site)
    assert isinstance(done.exception, Conflict)
    text = done.exception.render()
    assert str(site / "v1.35.1") in text and "apt/dists/bookworm/InRelease" in text and "--replace" in text
    assert snapshot(site) == before
    done = publish(other, key, site, "--replace")
    assert done.exit_code == 0 and "replaced" in done.output
    assert (site / "v1.35.1/apt/dists/bookworm/InRelease").read_text() == "v1.35.1 second"
    assert [path.name for path in site.iterdir() if path.name != ".lock"] == ["v1.35.1"], "the old ones are gone"


def test_a_file_that_was_added_or_lost_is_seen(tmp_path: Path, key: SigningKey, site: Path) -> None:
    file = export(tmp_path, key, "v1.35.1")
    publish(file, key, site)
    (site / "v1.35.1/apt/evil").write_text("x")
    assert isinstance(publish(file, key, site).exception, Conflict)
    (site / "v1.35.1/apt/evil").unlink()
    (site / "v1.35.1/setup/ckp.repo").unlink()
    assert isinstance(publish(file, key, site).exception, Conflict)
    assert publish(file, key, site, "--replace").exit_code == 0
    assert (site / "v1.35.1/setup/ckp.repo").exists()


def test_repositories_that_the_site_signs_itself_are_left_alone(tmp_path: Path, key: SigningKey, site: Path) -> None:
    (site / "apt/dists").mkdir(parents=True)
    (site / "apt/dists/own").write_text("x")
    assert publish(export(tmp_path, key, "v1.35.1"), key, site).exit_code == 0
    assert there(site) == ["apt", "v1.35.1"] and (site / "apt/dists/own").read_text() == "x"


def test_a_strangers_file_is_refused_before_anything_is_there(tmp_path: Path, key: SigningKey, site: Path) -> None:
    done = publish(export(tmp_path, signing_key(tmp_path / "stranger", "stranger"), "v1.35.1"), key, site)
    assert isinstance(done.exception, VerificationFailed) and not site.exists()


def test_who_comes_second_waits_and_finds_it_done(tmp_path: Path, key: SigningKey, site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ckp.distribution.carry.airgap import ImportedRelease

    said: list[str] = []
    release = ImportedRelease.read(export(tmp_path, key, "v1.35.1"), key.keyring, said.append)
    with ThreadPoolExecutor(3) as pool:
        assert set(pool.map(lambda _: module.take_repositories(release, site), range(3))) == {site / "v1.35.1"}
    assert sum("there already" in line for line in said) == 2
    monkeypatch.setattr(module, "LOCK_TIMEOUT", 0.1)
    with exclusive(site / ".lock", what="a change of the repositories", timeout=1), pytest.raises(TimedOut):
        module.take_repositories(release, site)


def test_readers_can_read_whatever_the_umask_is(tmp_path: Path, key: SigningKey, site: Path) -> None:
    site.mkdir(mode=0o755)
    file = export(tmp_path, key, "v1.35.1")
    before = os.umask(0o077)
    try:
        assert publish(file, key, site).exit_code == 0
    finally:
        os.umask(before)
    for path in (site / "v1.35.1", *(site / "v1.35.1").rglob("*")):
        assert path.stat().st_mode & 0o777 == (0o755 if path.is_dir() else 0o644), path


def test_what_a_killed_run_left_is_removed(tmp_path: Path, key: SigningKey, site: Path) -> None:
    (site / ".work-left/new/apt").mkdir(parents=True)
    assert publish(export(tmp_path, key, "v1.35.1"), key, site).exit_code == 0
    assert sorted(path.name for path in site.iterdir()) == [".lock", "v1.35.1"]
