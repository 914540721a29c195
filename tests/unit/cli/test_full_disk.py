"""A full disk is said as such wherever it shows: by its folder, its free space and what to do; and nothing half-written has a final name."""

from __future__ import annotations

import errno
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckp.catalog.load import Catalog
from ckp.cli import main
from ckp.clients.signing.openpgp import SigningKey
from ckp.distribution.bundles import unpack_bundle
from ckp.distribution.carry import archive
from ckp.distribution.carry.airgap import ImportedRelease
from ckp.distribution.carry.archive import Member, read_archive, write_archive
from ckp.distribution.carry.repositories import take_repositories
from ckp.distribution.images.layers import Entry, file_layer
from ckp.distribution.packages.pack import Data, Package, Recipe, make_package
from ckp.distribution.repositories.publish import Repositories
from ckp.kits.disks import DiskFull, is_full, naming_full_disk
from ckp.kits.errors import CkpError
from ckp.kits.files import atomic_write, sha256_file
from ckp.kits.processes import ProcessFailed, run
from tests.support.checkout import REPO
from tests.support.signing_keys import signing_key

pytestmark = pytest.mark.root("mounts a small disk")
OWNER = "Coredge.io CKP packages <support@coredge.io>"
DATA = random.Random(1).randbytes(3 << 20)
"""More than fits, packed or not."""


def quiet(_line: str) -> None:
    pass


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> SigningKey:
    return signing_key(tmp_path_factory.mktemp("keys") / "k")


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A disk of one MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.fixture(autouse=True)
def room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody else fills the disk after it was looked at."""
    monkeypatch.setattr(archive, "require_free_space", lambda *_args, **_more: None)


def left(folder: Path) -> list[str]:
    """All files but locks."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and not path.name.endswith(".lock"))


def told(small: Path, error: DiskFull) -> None:
    assert error.brief.startswith("the disk is full: ")
    assert f"{small}" in error.brief
    assert "MiB free" in error.brief
    assert "free some space" in error.resolution


# -- packing, publishing, carrying


@pytest.mark.parametrize("where", ["the cache", "temporary files"])
def test_packing(small: Path, tmp_path: Path, key: SigningKey, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """nFPM writes into the cache; completions, licences and the like lie in temporary files."""
    cache = small if where == "the cache" else tmp_path / "cache"
    monkeypatch.setenv("CKP_CACHE", str(cache))
    monkeypatch.setattr(tempfile, "tempdir", str(small if where == "temporary files" else tmp_path))
    if where == "temporary files":
        monkeypatch.setattr("ckp.distribution.packages.pack._added", lambda *_: [(Recipe.read("helm").contents("deb")[0], "x" * (3 << 20))])
    else:
        monkeypatch.setattr("ckp.distribution.packages.pack._added", lambda *_: [])
    nfpm = tmp_path / "nfpm"
    nfpm.write_text('#!/bin/sh\nfor target; do :; done\nexec head -c 3000000 /dev/zero > "$target"\n')
    nfpm.chmod(0o755)
    recipe = Recipe("small", tmp_path, Data(summary="x", description="x", copyright={"self": "x"}))
    with pytest.raises(DiskFull) as caught:
        make_package(recipe, "1.0.0-ckp", {}, nfpm, key)
    told(small, caught.value)
    assert left(cache) == []


def test_signing_a_package(small: Path, tmp_path: Path, key: SigningKey, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CKP_CACHE", str(small))
    monkeypatch.setattr("ckp.distribution.packages.pack._added", lambda *_: [])
    monkeypatch.setattr("ckp.distribution.packages.pack._sign", lambda *_: DATA)
    nfpm = tmp_path / "nfpm"
    nfpm.write_text('#!/bin/sh\nfor target; do :; done\necho small > "$target"\n')
    nfpm.chmod(0o755)
    with pytest.raises(DiskFull) as caught:
        make_package(Recipe("small", tmp_path, Data(summary="x", description="x", copyright={"self": "x"})), "1.0.0-ckp", {}, nfpm, key)
    told(small, caught.value)
    assert left(small) == []


def test_making_a_layer(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CKP_CACHE", str(small))
    (tmp_path / "data").write_bytes(DATA[: 700 << 10])  # the tar fits, and its packed form not as well
    with pytest.raises(DiskFull) as caught:
        file_layer([Entry("/data", tmp_path / "data")])
    told(small, caught.value)
    assert left(small) == []


def test_publishing_into_package_repositories(small: Path, tmp_path: Path, key: SigningKey) -> None:
    (tmp_path / "big.deb").write_bytes(DATA)
    package = Package("kubelet", "1.35.1-ckp", tmp_path / "big.deb", sha256_file(tmp_path / "big.deb"), "deb")
    with pytest.raises(DiskFull) as caught:
        Repositories(small / "root", key).publish([package], "v1.35", quiet)
    told(small, caught.value)
    assert left(small) == []


def test_publishing_what_somebody_else_signed(small: Path, tmp_path: Path) -> None:
    (tmp_path / "release/repositories").mkdir(parents=True)
    (tmp_path / "release/repositories/big").write_bytes(DATA)
    with pytest.raises(CkpError) as caught:  # said beforehand, since its size is known
        take_repositories(ImportedRelease(tmp_path / "release", {"release": Catalog().release("v1.35.1").model_dump(mode="json")}, quiet), small / "root")
    assert f"are needed below {small}" in caught.value.brief and "free some space" in caught.value.resolution
    assert left(small) == []


@pytest.fixture
def members(tmp_path: Path) -> list[Member]:
    (tmp_path / "a").write_bytes(DATA)
    return [Member("x/a", tmp_path / "a")]


def test_exporting(small: Path, members: list[Member], key: SigningKey) -> None:
    with pytest.raises(DiskFull) as caught:
        write_archive(small / "release.ckp", {}, members, key, quiet)
    told(small, caught.value)
    assert left(small) == []


@pytest.mark.parametrize("when", ["at once", "at the end"])
def test_exporting_where_zstd_fails_otherwise_says_what_it_said(
    tmp_path: Path, members: list[Member], key: SigningKey, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "zstd").write_text(f"#!/bin/sh\n{'cat >/dev/null' if when == 'at the end' else ''}\necho 'zstd: out of memory' >&2; exit 70\n")
    (programs / "zstd").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    with pytest.raises(CkpError, match="packing by zstd failed") as caught:
        write_archive(tmp_path / "out" / "release.ckp", {}, members, key, quiet)
    assert "out of memory" in caught.value.details
    assert left(tmp_path / "out") == []


def test_importing(small: Path, tmp_path: Path, members: list[Member], key: SigningKey) -> None:
    write_archive(tmp_path / "release.ckp", {}, members, key, quiet)
    with pytest.raises(DiskFull) as caught:
        read_archive(tmp_path / "release.ckp", key.keyring, small / "imported", quiet)
    told(small, caught.value)
    assert left(small) == []


def test_the_command_says_it_and_ends_with_1(small: Path, tmp_path: Path, members: list[Member], key: SigningKey) -> None:
    """As people run it: the look at the free space comes first, and tells a disk that is too small before anything is written."""
    write_archive(tmp_path / "release.ckp", {}, members, key, quiet)
    argv: list[str | Path] = [sys.executable, "-m", "ckp.cli.main", "dist", "import", tmp_path / "release.ckp", "--keyring", key.keyring]
    done = subprocess.run(argv, env={**os.environ, "CKP_CACHE": str(small), "PYTHONPATH": str(REPO / "src")}, capture_output=True, text=True, check=False)
    assert (done.returncode, "are needed below" in done.stderr, "Traceback" in done.stderr) == (1, True, False)
    assert left(small) == []


def test_verifying_a_bundle(small: Path, tmp_path: Path) -> None:
    (tmp_path / "kubelet.deb").write_bytes(DATA)
    subprocess.run(["tar", "-C", tmp_path, "-cf", tmp_path / "layer.tar", "kubelet.deb"], check=True)
    with pytest.raises(DiskFull) as caught:
        unpack_bundle(tmp_path / "layer.tar", small, "registry.test/bundle")
    told(small, caught.value)


# -- the parts


def test_a_program_that_found_the_disk_full(small: Path) -> None:
    with pytest.raises(DiskFull, match="the disk is full: writing failed with exit code 1; ") as caught:
        run(["dd", "if=/dev/zero", "bs=1M", "count=3", f"of={small}/x"], timeout=10, what="writing")
    told(small, caught.value)
    with pytest.raises(ProcessFailed):
        run(["ls", "/none"], timeout=10)


def test_a_file_is_written_whole_or_not_at_all(small: Path) -> None:
    with pytest.raises(DiskFull) as caught:
        atomic_write(small / "file", DATA)
    told(small, caught.value)
    assert left(small) == []


def test_a_disk_without_room_for_one_more_file_is_said_so(small: Path) -> None:
    subprocess.run(["mount", "-o", "remount,nr_inodes=2", small], check=True)
    (small / "one").touch()
    with pytest.raises(DiskFull, match="no free inodes"):
        atomic_write(small / "two", b"x")


def test_no_place_for_temporary_files_is_a_full_disk_as_well(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (small / "full").write_bytes(b"x" * (1 << 20))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(small)])
    monkeypatch.setenv("TMPDIR", str(small))
    with pytest.raises(DiskFull) as caught, naming_full_disk():
        tempfile.mkdtemp()
    told(small, caught.value)


def test_a_quota_counts_and_other_errors_are_left_alone() -> None:
    assert is_full(OSError(errno.EDQUOT, "Disk quota exceeded"))
    assert not is_full(OSError(errno.EACCES, "Permission denied"))
    assert not is_full(FileNotFoundError(errno.ENOENT, "No such file"))
    with pytest.raises(PermissionError), naming_full_disk():
        raise PermissionError(errno.EACCES, "no")


@pytest.mark.parametrize("kind", ["alone", "in a group"])
def test_whatever_nobody_handled_is_told_by_the_command(small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    def command(**_more: object) -> None:
        try:
            (small / "x").write_bytes(DATA)
        except OSError as error:
            raise (error if kind == "alone" else ExceptionGroup("many", [error])) from None

    monkeypatch.setenv("CKP_CACHE", str(small))
    monkeypatch.setattr(main, "root", command)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert ended.value.code == 1
    assert f"error: the disk is full: {small} has " in capsys.readouterr().err
