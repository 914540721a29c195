"""Repositories are filled with nothing but our own packages, and are whole at every moment."""

from __future__ import annotations

import gzip
import os
import re
import shutil
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from itertools import pairwise
from pathlib import Path

import pytest
from click.testing import CliRunner

from ckp.cli.distribution.repository import repository
from ckp.clients.signing import openpgp
from ckp.clients.signing.openpgp import SigningKey
from ckp.distribution.keys.signing import KeyRing
from ckp.distribution.packages.pack import Package
from ckp.distribution.repositories.files import GRACE, check_index
from ckp.distribution.repositories.publish import Repositories
from ckp.distribution.repositories.server import RepositoryServer
from ckp.kits.errors import Conflict, InvalidInput, NotFound, VerificationFailed
from ckp.kits.files import sha256_file
from ckp.verify.keyrings import armoured
from tests.simulators.clock import ManualClock
from tests.support.signing_keys import signing_key
from tests.support.small_packages import small_package

pytestmark = pytest.mark.release
START = datetime(2026, 3, 1, 12, tzinfo=UTC)
CODENAMES = ("bookworm", "jammy", "noble")


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> SigningKey:
    return signing_key(tmp_path_factory.mktemp("ours") / "keys")


@pytest.fixture(scope="module")
def packages(key: SigningKey, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Package]:
    """By `name-minor.format`."""
    folder = tmp_path_factory.mktemp("packages")
    made = {}
    for name in ("kubelet", "kubectl"):
        for version in ("1.35.1", "1.35.2"):
            for kind in ("deb", "rpm"):
                made[f"{name}-{version}.{kind}"] = small_package(folder, key, name, f"{version}-ckp", kind)
    return made


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(START)


@pytest.fixture
def repositories(tmp_path: Path, key: SigningKey, clock: ManualClock) -> Repositories:
    return Repositories(tmp_path / "root", key, clock=clock)


def said(_: str) -> None:
    pass


def state(root: Path) -> dict[str, tuple[bytes, int, int]]:
    """All public files with content, time and mode."""
    files = {path: path.stat() for path in sorted(root.rglob("*")) if path.is_file() and path.name != ".lock"}
    return {str(path.relative_to(root)): (path.read_bytes(), entry.st_mtime_ns, entry.st_mode) for path, entry in files.items()}


def names(repositories: Repositories) -> set[str]:
    return {str(item) for item in repositories.contents()}


def release(repositories: Repositories, codename: str = "noble") -> dict[str, str]:
    text = (repositories.root / "apt/dists" / codename / "Release").read_text()
    return dict(re.findall(r"^(\S+): (.*)$", text, re.M))


def date(repositories: Repositories) -> datetime:
    return parsedate_to_datetime(release(repositories)["Date"])


# -- what is laid out --------------------------------------------------------------------------------------------------


def test_the_layout_is_the_documented_one(repositories: Repositories, packages: dict[str, Package]) -> None:
    done = repositories.publish([packages["kubelet-1.35.1.deb"], packages["kubelet-1.35.1.rpm"]], "v1.35", said)
    assert done.switched == ("apt", "dnf")
    assert done.added == ("kubelet-1.35.1-ckp.x86_64.rpm", "kubelet_1.35.1-ckp_amd64.deb")
    found = set(state(repositories.root))
    for codename in CODENAMES:
        for name in ("InRelease", "Release", "Release.gpg", "v1.35/binary-amd64/Packages", "v1.35/binary-amd64/Packages.gz"):
            assert f"apt/dists/{codename}/{name}" in found
    assert {"apt/pool/v1.35/kubelet/kubelet_1.35.1-ckp_amd64.deb", "rpm/el9/v1.35/x86_64/Packages/kubelet-1.35.1-ckp.x86_64.rpm"} <= found
    assert {"rpm/el9/v1.35/x86_64/repodata/repomd.xml", "rpm/el9/v1.35/x86_64/repodata/repomd.xml.asc"} <= found
    assert {"keys/ckp.gpg", "keys/ckp.asc", "setup/ckp.list", "setup/ckp.sources", "setup/ckp.repo"} <= found
    assert {"setup/ckp-command.sources", "setup/ckp-command.repo"} <= found


def test_release_names_origin_signers_and_every_index_by_its_hash(repositories: Repositories, packages: dict[str, Package]) -> None:
    repositories.publish([packages["kubelet-1.35.1.deb"]], "v1.35", said)
    fields = release(repositories, "jammy")
    assert (fields["Origin"], fields["Label"], fields["Suite"], fields["Codename"]) == ("Coredge.io", "CKP", "jammy", "jammy")
    assert (fields["Acquire-By-Hash"], fields["Signed-By"], fields["Date"]) == ("yes", repositories.key.fingerprint, "Sun, 01 Mar 2026 12:00:00 UTC")
    folder = repositories.root / "apt/dists/jammy"
    listed = re.findall(r"^ ([0-9a-f]{64}) (\d+) (\S+)$", (folder / "Release").read_text(), re.M)
    assert {path for _, _, path in listed} == {"v1.35/binary-amd64/Packages", "v1.35/binary-amd64/Packages.gz"}
    for digest, size, path in listed:
        by_hash = (folder / path).parent / "by-hash/SHA256" / digest
        assert sha256_file(folder / path) == sha256_file(by_hash) == digest
        assert by_hash.stat().st_size == int(size)
    text = (folder / "v1.35/binary-amd64/Packages").read_bytes()
    assert gzip.decompress((folder / "v1.35/binary-amd64/Packages.gz").read_bytes()) == text
    assert b"\nFilename: pool/v1.35/kubelet/kubelet_1.35.1-ckp_amd64.deb\n" in text


def test_inrelease_and_release_say_the_same_and_gpgv_accepts_both(repositories: Repositories, packages: dict[str, Package], tmp_path: Path) -> None:
    repositories.publish([packages["kubelet-1.35.1.deb"]], "v1.35", said)
    folder, ring = repositories.root / "apt/dists/noble", repositories.root / "keys/ckp.gpg"
    subprocess.run(["gpgv", "-q", "--keyring", ring, "--output", tmp_path / "text", folder / "InRelease"], check=True, capture_output=True)
    subprocess.run(["gpgv", "-q", "--keyring", ring, folder / "Release.gpg", folder / "Release"], check=True, capture_output=True)
    assert (tmp_path / "text").read_bytes() == (folder / "Release").read_bytes()


def test_hosts_own_verification_accepts_what_was_published_and_pruned(repositories: Repositories, packages: dict[str, Package]) -> None:
    repositories.publish(list(packages.values()), "v1.35", said)
    repositories.publish([packages["kubectl-1.35.1.deb"]], "agent", said)
    repositories.remove("v1.35", versions=["1.35.1-ckp"], say=said)
    lines = repositories.verify()
    assert "apt: 3 packages verified, none missing, none unlisted" in lines
    assert any(line.startswith("dnf v1.35/x86_64: 2 packages verified") for line in lines)
    spoil(next(repositories.root.rglob("*.rpm")))
    with pytest.raises(VerificationFailed):
        repositories.verify()


def test_public_files_are_readable_whatever_the_umask(tmp_path: Path, key: SigningKey, packages: dict[str, Package]) -> None:
    before = os.umask(0o077)
    try:
        repositories = Repositories(tmp_path / "root", key)
        repositories.publish(list(packages.values()), "v1.35", said)
    finally:
        os.umask(before)
    closed = [path for path in repositories.root.rglob("*") if path.name != ".lock" and path.stat().st_mode & 0o444 != 0o444]
    assert closed == []
    assert [path for path in repositories.root.rglob("*") if path.is_dir() and path.stat().st_mode & 0o555 != 0o555] == []


def test_templates_take_the_address(tmp_path: Path, key: SigningKey, packages: dict[str, Package]) -> None:
    repositories = Repositories(tmp_path / "root", key, url="https://packages.example.org/ckp/")
    repositories.publish([packages["kubelet-1.35.1.deb"]], "v1.35", said)
    assert "URIs: https://packages.example.org/ckp/apt\n" in (repositories.root / "setup/ckp.sources").read_text()
    assert "baseurl=https://packages.example.org/ckp/rpm/el9/@MINOR@/$basearch" in (repositories.root / "setup/ckp.repo").read_text()
    before = state(repositories.root)
    Repositories(tmp_path / "root", key).publish([packages["kubelet-1.35.1.deb"]], "v1.35", said)
    assert state(repositories.root) == before, "who gives no address does not take away the one that is there"
    Repositories(tmp_path / "root", key, url="https://other.example.org").publish([packages["kubelet-1.35.1.deb"]], "v1.35", said)
    assert "URIs: https://other.example.org/apt\n" in (repositories.root / "setup/ckp.sources").read_text()


# -- again, and after changes ------------------------------------------------------------------------------------------


def test_publishing_again_changes_no_byte(repositories: Repositories, packages: dict[str, Package], clock: ManualClock) -> None:
    repositories.publish(list(packages.values()), "v1.35", said)
    before = state(repositories.root)
    clock.advance(10 * 86400)
    done = repositories.publish(list(reversed(packages.values())), "v1.35", said)
    assert (done.added, done.switched, len(done.kept)) == ((), (), 8)
    assert state(repositories.root) == before


def test_equal_packages_make_equal_indices(tmp_path: Path, key: SigningKey, packages: dict[str, Package]) -> None:
    trees = []
    for name, order in (("one", list(packages.values())), ("two", list(reversed(packages.values())))):
        repositories = Repositories(tmp_path / name, key, clock=ManualClock(START))
        for package in order[:3], order[3:]:
            repositories.publish(package, "v1.35", said)
        repositories.clock.advance(GRACE * 3)  # type: ignore[attr-defined]
        repositories.reindex(said)
        trees.append({path: content for path, (content, _, _) in state(repositories.root).items()})
    one, two = trees
    unsigned = [path for path in one if not path.endswith((".gpg", ".asc", "InRelease")) and "by-hash" not in path and "/repodata/" not in path]
    assert len(unsigned) > 10
    assert {path: one[path] for path in unsigned} == {path: two.get(path) for path in unsigned}
    assert one["rpm/el9/v1.35/x86_64/repodata/repomd.xml"] == two["rpm/el9/v1.35/x86_64/repodata/repomd.xml"]


def test_another_component_leaves_the_files_of_the_first_alone(repositories: Repositories, packages: dict[str, Package], clock: ManualClock) -> None:
    repositories.publish([packages["kubelet-1.35.1.deb"], packages["kubelet-1.35.1.rpm"]], "v1.35", said)
    before = state(repositories.root)
    clock.advance(60)
    repositories.publish([packages["kubectl-1.35.1.deb"], packages["kubectl-1.35.1.rpm"]], "agent", said)
    after = state(repositories.root)
    assert {path: after[path] for path in before if "rpm/el9/v1.35/" in path} == {path: before[path] for path in before if "rpm/el9/v1.35/" in path}
    index = "apt/dists/noble/v1.35/binary-amd64/Packages"
    assert after[index][0] == before[index][0]
    assert release(repositories)["Components"] == "agent v1.35"


def test_each_state_has_a_later_date_even_if_the_clock_goes_back(repositories: Repositories, packages: dict[str, Package], clock: ManualClock) -> None:
    dates = []
    for number, name in enumerate(packages):
        repositories.publish([packages[name]], "v1.35", said)
        if name.endswith(".deb"):
            dates.append(date(repositories))
            served = (repositories.root / "apt/dists/noble/InRelease").stat().st_mtime
            assert served == dates[-1].timestamp(), "web servers answer If-Modified-Since by the file's time"
        clock.advance(-3600 if number % 2 else 0)
    assert dates == sorted(set(dates))
    assert len(dates) == 4


def test_superseded_indices_stay_for_a_day(repositories: Repositories, packages: dict[str, Package], clock: ManualClock) -> None:
    def by_hash() -> set[str]:
        return {path.name for path in (repositories.root / "apt/dists/noble/v1.35/binary-amd64/by-hash/SHA256").iterdir()}

    def repodata() -> set[str]:
        return {path.name for path in (repositories.root / "rpm/el9/v1.35/x86_64/repodata").iterdir()}

    repositories.publish([packages["kubelet-1.35.1.deb"], packages["kubelet-1.35.1.rpm"]], "v1.35", said)
    first = by_hash(), repodata()
    clock.advance(30 * 86400)
    repositories.publish([packages["kubelet-1.35.2.deb"], packages["kubelet-1.35.2.rpm"]], "v1.35", said)
    assert first[0] < by_hash()
    assert first[1] < repodata()
    clock.advance(GRACE - 60)
    repositories.publish([packages["kubectl-1.35.1.deb"], packages["kubectl-1.35.1.rpm"]], "v1.35", said)
    assert first[0] < by_hash(), "it was superseded less than a day ago, however old it is"
    clock.advance(GRACE - 60)
    repositories.publish([packages["kubectl-1.35.2.deb"], packages["kubectl-1.35.2.rpm"]], "v1.35", said)
    assert not first[0] & by_hash()
    assert first[1] & repodata() == {"repomd.xml", "repomd.xml.asc"}


def test_valid_until_is_off_unless_asked_for_and_is_renewed_in_time(repositories: Repositories, packages: dict[str, Package], clock: ManualClock) -> None:
    one = [packages["kubelet-1.35.1.deb"]]
    repositories.publish(one, "v1.35", said)
    assert "Valid-Until" not in release(repositories)
    limited = replace(repositories, valid_days=10)
    assert limited.publish(one, "v1.35", said).switched == ("apt",)
    assert parsedate_to_datetime(release(limited)["Valid-Until"]) - date(limited) == timedelta(days=10)
    clock.advance(4 * 86400)
    assert limited.publish(one, "v1.35", said).switched == ()
    clock.advance(2 * 86400)
    assert limited.publish(one, "v1.35", said).switched == ("apt",)
    assert repositories.publish(one, "v1.35", said).switched == ("apt",)
    assert "Valid-Until" not in release(repositories)


# -- what is refused ---------------------------------------------------------------------------------------------------


def spoil(path: Path, at: int = -20) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("kind", ["deb", "rpm"])
@pytest.mark.parametrize("fault", ["unsigned", "stranger", "maintainer", "flipped", "other name", "other version", "other digest"])
def test_a_package_that_is_not_ours_is_refused_and_nothing_changes(
    repositories: Repositories, packages: dict[str, Package], key: SigningKey, stranger: SigningKey, tmp_path: Path, kind: str, fault: str
) -> None:
    repositories.publish([packages["kubelet-1.35.1.deb"]], "v1.35", said)
    good = packages[f"kubectl-1.35.1.{kind}"]
    bad = replace(good, path=tmp_path / f"bad.{kind}")
    if fault == "unsigned":
        bad = small_package(tmp_path, None, "kubectl", "1.35.1-ckp", kind)  # type: ignore[arg-type]
    elif fault == "stranger":
        bad = small_package(tmp_path, stranger, "kubectl", "1.35.1-ckp", kind)  # type: ignore[arg-type]
    elif fault == "maintainer":
        bad = small_package(tmp_path, key, "kubectl", "1.35.1-ckp", kind, maintainer="Somebody <else@example.org>")  # type: ignore[arg-type]
    else:
        shutil.copy(good.path, bad.path)
        if fault == "flipped":
            spoil(bad.path, 700)
            bad = replace(bad, sha256=sha256_file(bad.path))
        elif fault == "other name":
            bad = replace(bad, name="kubeadm")
        elif fault == "other version":
            bad = replace(bad, version="1.35.9-ckp")
        else:
            bad = replace(bad, sha256="0" * 64)
    before = state(repositories.root)
    with pytest.raises(VerificationFailed):
        repositories.publish([packages["kubelet-1.35.2.deb"], bad], "v1.35", said)
    assert state(repositories.root) == before


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> SigningKey:
    return signing_key(tmp_path_factory.mktemp("stranger") / "keys", "stranger")


def test_a_component_is_a_minor_version_the_agent_or_the_command(repositories: Repositories, packages: dict[str, Package]) -> None:
    for name in ("1.35", "v1.35.1", "../x", "main", ""):
        with pytest.raises(InvalidInput, match="is not a component"):
            repositories.publish(list(packages.values()), name, said)
    assert not repositories.root.exists()
    for name in ("v1.35", "agent", "ckp"):
        assert repositories.publish([packages["kubelet-1.35.1.deb"]], name, said).component == name


@pytest.mark.parametrize("kind", ["deb", "rpm"])
def test_a_version_stands_for_one_content(repositories: Repositories, packages: dict[str, Package], key: SigningKey, tmp_path: Path, kind: str) -> None:
    repositories.publish([packages[f"kubelet-1.35.1.{kind}"]], "v1.35", said)
    other = small_package(tmp_path, key, "kubelet", "1.35.1-ckp", kind, content="something else")  # type: ignore[arg-type]
    before = state(repositories.root)
    for component in ("v1.35", "v1.34"):
        with pytest.raises(Conflict, match=r"published in v1\.35 with other content"):
            repositories.publish([packages[f"kubelet-1.35.2.{kind}"], other], component, said)
    assert state(repositories.root) == before
    repositories.remove("v1.35", names=["kubelet"], versions=["1.35.1-ckp"], say=said)
    assert repositories.publish([other], "v1.35", said).added == (other.file_name,)


@pytest.fixture
def rotated(tmp_path: Path) -> tuple[SigningKey, list[Package], list[Package]]:
    """A key, packages signed by its first signing key, and the same signed by its second, which is in use."""
    key = signing_key(tmp_path / "rotated")
    old = [small_package(tmp_path / "old", key, "containerd", "1.7.28-ckp", kind) for kind in ("deb", "rpm")]
    openpgp.add_signing_subkey(key, (key.folder / openpgp.PRIMARY).read_bytes())
    new = [small_package(tmp_path / "new", key, "containerd", "1.7.28-ckp", kind) for kind in ("deb", "rpm")]
    assert {package.sha256 for package in old}.isdisjoint({package.sha256 for package in new})
    return key, old, new


def test_a_package_that_was_only_signed_again_does_not_replace_the_published_one(
    tmp_path: Path, rotated: tuple[SigningKey, list[Package], list[Package]]
) -> None:
    key, old, new = rotated
    repositories = Repositories(tmp_path / "root", key)
    repositories.publish(old, "v1.34", said)
    words: list[str] = []
    assert repositories.publish(new, "v1.34", words.append).switched == ()
    assert sum("differs from the published one in its signature only" in line for line in words) == 2
    repositories.publish(new, "v1.35", said)
    digests = {(item.component, item.format): item.entry.sha256 for item in repositories.contents()}
    assert digests["v1.34", "deb"] == digests["v1.35", "deb"] == old[0].sha256
    assert digests["v1.34", "rpm"] == digests["v1.35", "rpm"] == old[1].sha256


# -- a repository that somebody else changed ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "file",
    [
        "apt/dists/bookworm/Release",
        "apt/dists/bookworm/v1.35/binary-amd64/Packages",
        "apt/dists/noble/Release",
        "apt/dists/noble/InRelease",
        "apt/dists/noble/Release.gpg",
        "apt/dists/jammy/v1.35/binary-amd64/Packages.gz",
        "rpm/el9/v1.35/x86_64/repodata/repomd.xml",
        "rpm/el9/v1.35/x86_64/repodata/repomd.xml.asc",
        "rpm/el9/v1.35/x86_64/repodata/*-primary.xml.gz",
        "rpm/el9/v1.35/x86_64/repodata/*-filelists.xml.gz",
    ],
)
def test_changed_indices_are_never_built_upon_and_reindex_makes_them_anew(repositories: Repositories, packages: dict[str, Package], file: str) -> None:
    repositories.publish([packages["kubelet-1.35.1.deb"], packages["kubelet-1.35.1.rpm"]], "v1.35", said)
    before = names(repositories)
    (path,) = repositories.root.glob(file)
    spoil(path, path.stat().st_size // 2)
    changed = state(repositories.root)
    with pytest.raises(VerificationFailed) as caught:
        repositories.publish([packages["kubelet-1.35.2.deb"], packages["kubelet-1.35.2.rpm"]], "v1.35", said)
    assert "ckp dist repository reindex" in caught.value.resolution
    assert state(repositories.root) == changed
    assert repositories.reindex(said) == 2
    assert names(repositories) == before


@pytest.mark.parametrize("kind", ["deb", "rpm"])
def test_a_package_that_was_changed_in_the_pool_gets_no_signature_and_publishing_it_again_heals_it(
    repositories: Repositories, packages: dict[str, Package], kind: str
) -> None:
    repositories.publish([packages[f"kubelet-1.35.1.{kind}"]], "v1.35", said)
    (pooled,) = repositories.root.rglob(f"*.{kind}")
    spoil(pooled)
    before = state(repositories.root)
    with pytest.raises(VerificationFailed) as caught:
        repositories.publish([packages[f"kubectl-1.35.1.{kind}"]], "v1.35", said)
    assert pooled.name in caught.value.details
    published = {path: entry for path, entry in state(repositories.root).items() if "kubectl" not in path}
    assert published == before
    assert repositories.publish([packages[f"kubelet-1.35.1.{kind}"]], "v1.35", said).kept == (pooled.name,)
    assert sha256_file(pooled) == packages[f"kubelet-1.35.1.{kind}"].sha256
    repositories.publish([packages[f"kubectl-1.35.1.{kind}"]], "v1.35", said)


def test_reindex_refuses_what_is_not_ours_or_lies_in_the_wrong_place(
    repositories: Repositories, packages: dict[str, Package], stranger: SigningKey, tmp_path: Path
) -> None:
    repositories.publish([packages["kubelet-1.35.1.deb"]], "v1.35", said)
    pool = repositories.root / "apt/pool/v1.35/kubelet"
    shutil.copy(small_package(tmp_path, stranger, "kubelet", "1.35.9-ckp", "deb").path, pool / "kubelet_1.35.9-ckp_amd64.deb")
    shutil.copy(packages["kubelet-1.35.2.deb"].path, pool / "kubelet_1.35.3-ckp_amd64.deb")
    (pool / "notes.txt").write_text("hello")
    before = state(repositories.root)
    with pytest.raises(VerificationFailed, match="3 packages below") as caught:
        repositories.reindex(said)
    assert "belongs to pool/v1.35/kubelet/kubelet_1.35.2-ckp_amd64.deb" in caught.value.details
    assert state(repositories.root) == before


def test_after_a_revocation_nothing_of_that_key_is_signed_for(tmp_path: Path, rotated: tuple[SigningKey, list[Package], list[Package]]) -> None:
    key, old, new = rotated
    first = next(info.fingerprint for info in openpgp.inspect(key.certificate) if info.role == "signing" and info.fingerprint != key.subkey)
    repositories = Repositories(tmp_path / "root", key)
    repositories.publish(old, "v1.35", said)
    KeyRing(key).revoke(first, reason="compromised")
    with pytest.raises(Conflict, match="a signature that no longer holds"):
        repositories.publish(new, "v1.35", said)
    with pytest.raises(VerificationFailed, match="2 packages below"):
        repositories.reindex(said)
    repositories.remove("v1.35", names=["containerd"], say=said)
    assert len(repositories.publish(new, "v1.35", said).added) == 2
    exported = (repositories.root / "keys/ckp.asc").read_bytes()
    database = tmp_path / "rpmdb"
    (tmp_path / "ckp.asc").write_bytes(exported)
    subprocess.run(["rpmkeys", "--dbpath", database, "--import", tmp_path / "ckp.asc"], check=True)
    good, bad = (subprocess.run(["rpmkeys", "--dbpath", database, "-K", made[1].path], capture_output=True, check=False).returncode for made in (new, old))
    assert (good, bad != 0) == (0, True), "rpm heeds no revocation, so it must not be given the key"


def test_indices_and_packages_of_a_revoked_key_are_replaced_step_by_step(tmp_path: Path) -> None:
    key = signing_key(tmp_path / "keys")
    repositories = Repositories(tmp_path / "root", key)
    repositories.publish([small_package(tmp_path / "old", key, "kubelet", "1.35.1-ckp", "deb")], "v1.35", said)
    first = key.subkey
    KeyRing(key).rotate()
    KeyRing(key).revoke(first, reason="compromised")
    new = small_package(tmp_path / "new", key, "kubelet", "1.35.1-ckp", "deb")
    with pytest.raises(VerificationFailed, match="revoked"):
        repositories.publish([new], "v1.35", said)
    with pytest.raises(VerificationFailed) as caught:
        repositories.reindex(said)
    (repositories.root / caught.value.details.partition(":")[0]).unlink()
    assert repositories.reindex(said) == 0
    assert repositories.publish([new], "v1.35", said).added == (new.file_name,)
    repositories.verify()


def test_armour_has_one_block_for_each_certificate(tmp_path: Path, key: SigningKey, stranger: SigningKey) -> None:
    text = armoured(key.keyring.read_bytes() + stranger.keyring.read_bytes())
    assert text.count(b"-----BEGIN PGP PUBLIC KEY BLOCK-----") == 2
    shown = subprocess.run(["gpg", "--homedir", tmp_path, "--show-keys", "--with-colons"], input=text, capture_output=True, check=True).stdout.decode()
    assert key.fingerprint in shown
    assert stranger.fingerprint in shown


# -- pruning -----------------------------------------------------------------------------------------------------------


def test_only_what_is_named_is_removed_and_select_says_it_before(repositories: Repositories, packages: dict[str, Package]) -> None:
    repositories.publish(list(packages.values()), "v1.35", said)
    before = state(repositories.root)
    wanted = repositories.select("v1.35", versions=["1.35.1-ckp"])
    assert state(repositories.root) == before
    assert {str(item) for item in wanted} == {f"v1.35 {name} 1.35.1-ckp ({kind})" for name in ("kubelet", "kubectl") for kind in ("deb", "rpm")}
    assert repositories.remove("v1.35", versions=["1.35.1-ckp"], say=said) == wanted
    assert names(repositories) == {f"v1.35 {name} 1.35.2-ckp ({kind})" for name in ("kubelet", "kubectl") for kind in ("deb", "rpm")}
    assert not list(repositories.root.rglob("*1.35.1-ckp*"))


def test_what_is_not_there_cannot_be_removed(repositories: Repositories, packages: dict[str, Package]) -> None:
    repositories.publish([packages["kubelet-1.35.1.deb"]], "v1.35", said)
    before = state(repositories.root)
    for component, arguments, words in (
        ("v1.34", {}, "no packages in the component v1.34"),
        ("v1.35", {"names": ["kubeadm"]}, "no package kubeadm"),
        ("v1.35", {"versions": ["1.35.1"]}, "no version 1.35.1"),
    ):
        with pytest.raises(NotFound, match=words):
            repositories.remove(component, say=said, **arguments)
    assert state(repositories.root) == before


def test_an_emptied_component_stays_so_that_its_hosts_can_update(repositories: Repositories, packages: dict[str, Package]) -> None:
    repositories.publish(list(packages.values()), "v1.35", said)
    repositories.remove("v1.35", say=said)
    assert repositories.contents() == []
    assert release(repositories)["Components"] == "v1.35"
    assert (repositories.root / "rpm/el9/v1.35/x86_64/repodata/repomd.xml").exists()
    repositories.reindex(said)
    assert release(repositories)["Components"] == "v1.35"


# -- killed, and two at once -------------------------------------------------------------------------------------------


def in_a_process(work: Callable[[], object]) -> int:
    """Run `work` in a process of its own; returns its pid."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return pid


def watch(root: Path, act: Callable[[int, str], object]) -> None:
    """Call `act` with number and name of every operation of this process on files below `root`, before it is done; a switch is `ctypes.dlsym`."""
    count = 0

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal count
        named = (os.fsdecode(item) for item in arguments if isinstance(item, (str, bytes, os.PathLike)))
        if event == "ctypes.dlsym" or ((event == "open" or event.startswith(("os.", "shutil."))) and any(str(root) in name for name in named)):
            count += 1
            act(count, event)

    sys.addaudithook(hook)


def operations(root: Path, work: Callable[[], object]) -> list[str]:
    """The names of all operations of `work` on files below `root`."""
    reader, writer = os.pipe()

    def child() -> None:
        watch(root, lambda _, event: os.write(writer, f"{event}\n".encode()))
        work()

    pid = in_a_process(child)
    os.close(writer)
    with os.fdopen(reader) as stream:
        events = stream.read().split()
    assert os.waitpid(pid, 0)[1] == 0
    return events


def killed_at(root: Path, step: int, work: Callable[[], object]) -> None:
    """Run `work` in a process that is killed before its `step`th operation on files below `root`."""

    def child() -> None:
        watch(root, lambda number, _: os.kill(os.getpid(), signal.SIGKILL) if number == step else None)
        work()

    _, status = os.waitpid(in_a_process(child), 0)
    assert os.WIFSIGNALED(status)


def what_clients_see(repositories: Repositories) -> dict[str, set[tuple[str, str]]]:
    """Names and digests of the packages that each signed index leads to, each file on the way checked: as clients do it, without our reader."""
    seen: dict[str, set[tuple[str, str]]] = {}
    for codename in CODENAMES:
        folder = repositories.root / "apt/dists" / codename
        if not folder.exists():
            continue
        text = check_index(folder / "Release", folder / "Release.gpg", repositories.key).decode()
        found = set()
        for digest, path in re.findall(r"^ ([0-9a-f]{64}) \d+ (\S+)$", text, re.M):
            assert sha256_file(folder / path) == sha256_file((folder / path).parent / "by-hash/SHA256" / digest) == digest
            if path.endswith("Packages"):
                index = (folder / path).read_text()
                found |= set(zip(re.findall(r"^Filename: (.*)$", index, re.M), re.findall(r"^SHA256: (.*)$", index, re.M), strict=True))
        assert all(sha256_file(repositories.root / "apt" / path) == digest for path, digest in found)
        seen[codename] = found
    for folder in repositories.root.glob("rpm/el9/*/x86_64"):
        if not (folder / "repodata").exists():
            continue
        text = check_index(folder / "repodata/repomd.xml", folder / "repodata/repomd.xml.asc", repositories.key).decode()
        for digest, path in re.findall(r'<data .*?<checksum type="sha256">([0-9a-f]+)</checksum>.*?<location href="([^"]+)"', text, re.S):
            assert sha256_file(folder / path) == digest
            if path.endswith("-primary.xml.gz"):
                primary = gzip.decompress((folder / path).read_bytes()).decode()
                pairs = re.findall(r'<checksum type="sha256" pkgid="YES">([0-9a-f]+)</checksum>.*?<location href="([^"]+)"', primary, re.S)
                assert all(sha256_file(folder / location) == wanted for wanted, location in pairs)
                seen[folder.parent.name] = {(location, wanted) for wanted, location in pairs}
    return seen


def pooled(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for kind in ("deb", "rpm") for path in root.rglob(f"*.{kind}"))


@pytest.mark.parametrize("change", ["publish", "remove", "reindex"])
def test_killed_at_any_moment_it_leaves_the_old_state_or_the_new_one_and_the_next_run_finishes(
    tmp_path: Path, key: SigningKey, packages: dict[str, Package], change: str
) -> None:
    first = [package for name, package in packages.items() if "1.35.1" in name]
    work: dict[str, Callable[[Repositories], object]] = {
        "publish": lambda repositories: repositories.publish(list(packages.values()), "v1.35", said),
        "remove": lambda repositories: repositories.remove("v1.35", names=["kubelet"], say=said),
        "reindex": lambda repositories: repositories.reindex(said),
    }
    template = Repositories(tmp_path / "template", key)
    template.publish(first, "v1.35", said)
    old = what_clients_see(template)
    whole = Repositories(tmp_path / "whole", key)
    shutil.copytree(template.root, whole.root)
    events = operations(whole.root, lambda: work[change](whole))
    new = what_clients_see(whole)
    switches = [number for number, event in enumerate(events, start=1) if event == "ctypes.dlsym"]
    assert len(switches) == 3, "a trial of the file system, apt, dnf"
    # Around each switch, and once before, between and after them.
    between = ((first + second) // 2 for first, second in pairwise([*switches, len(events)]))
    steps = sorted({1, *switches[1:], *(number + 1 for number in switches[1:]), *between, len(events)})
    for step in steps:
        repositories = Repositories(tmp_path / "killed", key)
        shutil.copytree(template.root, repositories.root)
        killed_at(repositories.root, step, lambda repositories=repositories: work[change](repositories))  # type: ignore[misc]
        seen = what_clients_see(repositories)
        assert all(seen[codename] == (old if step <= switches[1] else new)[codename] for codename in CODENAMES), (step, events[step - 1])
        assert seen["v1.35"] == (old if step <= switches[2] else new)["v1.35"], (step, events[step - 1])
        if change == "remove" and seen == new:
            repositories.publish([packages["kubectl-1.35.1.deb"]], "v1.35", said)
        else:
            work[change](repositories)
        assert what_clients_see(repositories) == new
        assert sorted(path.name for path in repositories.root.rglob("*ckp*.[dr][ep][bm]")) == sorted(
            path.name for path in whole.root.rglob("*ckp*.[dr][ep][bm]")
        )
        assert not list(repositories.root.glob(".work-*"))
        shutil.rmtree(repositories.root)


def test_two_publishers_at_once_wait_for_each_other(tmp_path: Path, key: SigningKey, packages: dict[str, Package]) -> None:
    repositories = Repositories(tmp_path / "root", key)
    parts = {"v1.35": list(packages.values())[:4], "agent": list(packages.values())[4:]}
    children = [in_a_process(lambda part=part: repositories.publish(parts[part], part, said)) for part in (*parts, *parts)]  # type: ignore[misc]
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0, 0, 0, 0]
    assert len(repositories.contents()) == 8
    assert what_clients_see(repositories).keys() == {*CODENAMES, "v1.35", "agent"}


def test_readers_never_see_a_state_in_between(tmp_path: Path, key: SigningKey, packages: dict[str, Package]) -> None:
    repositories = Repositories(tmp_path / "root", key)
    repositories.publish([packages["kubelet-1.35.1.deb"]], "v1.35", said)

    def change() -> None:
        for name in ("kubelet-1.35.2.deb", "kubectl-1.35.1.deb", "kubectl-1.35.2.deb"):
            repositories.publish([packages[name]], "v1.35", said)

    pid = in_a_process(change)
    folder, reads = repositories.root / "apt/dists/noble", 0
    while os.waitpid(pid, os.WNOHANG) == (0, 0):
        text = (folder / "InRelease").read_text()
        for digest in re.findall(r"^ ([0-9a-f]{64}) \d+ \S+Packages$", text, re.M):
            assert sha256_file(folder / "v1.35/binary-amd64/by-hash/SHA256" / digest) == digest
        reads += 1
    assert reads > 10


# -- served ------------------------------------------------------------------------------------------------------------


def test_the_server_serves_the_root_and_nothing_after_it_is_stopped(repositories: Repositories, packages: dict[str, Package], tmp_path: Path) -> None:
    import socket
    import urllib.request

    repositories.publish([packages["kubelet-1.35.1.deb"]], "v1.35", said)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = RepositoryServer(repositories.root, "127.0.0.1", port, state=tmp_path / "server")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        assert server.start() == server.start()
        with opener.open(f"{server.url}/apt/dists/noble/InRelease", timeout=10) as answer:
            assert answer.read() == (repositories.root / "apt/dists/noble/InRelease").read_bytes()
    finally:
        server.stop()
    assert not server.running()
    with pytest.raises(OSError):
        opener.open(server.url, timeout=2)


# -- the commands ------------------------------------------------------------------------------------------------------


def test_prune_says_first_and_removes_only_when_told_so(tmp_path: Path, key: SigningKey, packages: dict[str, Package], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CKP_KEYS", str(key.folder))
    repositories = Repositories(tmp_path / "root", key)
    repositories.publish(list(packages.values()), "v1.35", said)
    where = str(repositories.root)
    runner = CliRunner()
    asked = runner.invoke(repository, ["prune", where, "v1.35", "--version", "1.35.1-ckp"])
    assert asked.exit_code == 0, asked.output
    assert "v1.35 kubelet 1.35.1-ckp (rpm)" in asked.output
    assert "nothing was removed" in asked.output
    assert len(repositories.contents()) == 8
    with pytest.raises(InvalidInput, match="nothing to remove is selected"):
        runner.invoke(repository, ["prune", where, "v1.35", "--yes"], catch_exceptions=False, standalone_mode=False)
    assert runner.invoke(repository, ["prune", where, "v1.35", "--version", "1.35.1-ckp", "--yes"]).exit_code == 0
    assert len(repositories.contents()) == 4
    assert runner.invoke(repository, ["list", where]).output.splitlines() == [str(item) for item in repositories.contents()]
    again = runner.invoke(repository, ["reindex", where, "--valid-days", "30"])
    assert again.exit_code == 0, again.output
    assert "Valid-Until" in release(repositories)
    assert runner.invoke(repository, ["prune", where, "v1.35", "--all", "--yes"]).exit_code == 0
    assert repositories.contents() == []
