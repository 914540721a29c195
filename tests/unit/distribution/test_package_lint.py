"""lintian and rpmlint find no error in any package of the release, but for those that are named with a reason.

lintian takes ten seconds for each large program, so its verdict is kept by the content of the package and lintian's version.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pysequoia
import pytest

from ckp.clients.signing.openpgp import SigningKey
from ckp.distribution.builder.component import Built
from ckp.distribution.packages.pack import sign_deb
from ckp.distribution.packages.rpm import sign_rpm
from ckp.kits import paths
from ckp.kits.files import atomic_write, sha256_bytes, sha256_file
from ckp.kits.processes import run
from tests.support import release_packages
from tests.support.checkout import REPO
from tests.support.release_packages import OWN, unsigned
from tests.support.signing_keys import signing_key

ALLOWED_TAGS = {
    "statically-linked-binary",
    "dir-or-file-in-opt",
    "malformed-deb-archive",
    "misplaced-extra-member-in-deb",
    "unstripped-binary-or-object",
    "embedded-library",
}
"""What the packages may override. Another tag here needs a reason in its package.toml, and a reader of this test."""


@pytest.fixture(scope="module")
def built() -> dict[str, Built]:
    return release_packages.built_release()


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> SigningKey:
    return signing_key(tmp_path_factory.mktemp("keys") / "keys")


def need(program: str) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed (make setup), and only it can judge")


@pytest.mark.release
@pytest.mark.parametrize("name", OWN)
def test_lintian_finds_no_error(built: dict[str, Built], key: SigningKey, tmp_path: Path, name: str) -> None:
    need("lintian")
    package = unsigned(name, built, "deb")
    version = run(["lintian", "--print-version"], timeout=60).stdout.strip()
    said_before = paths.cache() / "test-packages" / f"lintian-{sha256_bytes((version + sha256_file(package.path)).encode())[:20]}.txt"
    if not said_before.exists():
        signed = tmp_path / package.file_name
        signed.write_bytes(sign_deb(package.path.read_bytes(), key))
        argv: list[str | Path] = ["lintian", "--no-cfg", "--allow-root", "--tag-display-limit", "0", "--show-overrides", "--fail-on", "none", signed]
        atomic_write(said_before, run(argv, timeout=500, env={"HOME": str(tmp_path)}).stdout)
    said = said_before.read_text()
    assert re.findall(r"^E: .*", said, re.M) == []
    assert set(re.findall(rf"^O: {name}: (\S+)", said, re.M)) <= ALLOWED_TAGS
    assert re.search(r"^O: ", said, re.M), "it has looked: every package has something to override"


@pytest.mark.release
def test_rpmlint_finds_no_error(built: dict[str, Built], key: SigningKey, tmp_path: Path) -> None:
    need("rpmlint")
    files = []
    for name in OWN:
        package = unsigned(name, built, "rpm")
        files.append(tmp_path / package.file_name)
        files[-1].write_bytes(sign_rpm(package.path.read_bytes(), key))
    said = rpmlint(files, tmp_path, key)
    assert re.findall(r"^.*: E: .*", said, re.M) == []
    assert f"{len(OWN)} packages and 0 specfiles checked; 0 errors" in said


@pytest.mark.release
def test_rpmlint_looks_at_all(built: dict[str, Built], key: SigningKey, tmp_path: Path) -> None:
    """The same call finds what is wrong with an unsigned package: the filters let that through."""
    need("rpmlint")
    assert "kubectl.x86_64: E: no-signature" in rpmlint([unsigned("kubectl", built, "rpm").path], tmp_path, key)


def rpmlint(files: list[Path], home: Path, key: SigningKey) -> str:
    """What rpmlint says with our configuration and a rpm database that knows our key.

    It unpacks rpms by cpio, which follows whatever paths they hold. Ours are relative (ckp.distribution.packages.rpm_payload); should that ever break, it would
    write into this machine, so root gives it a view of the machine that can only be read, but for a folder in memory.
    """
    (home / "rpm").mkdir()
    certificate = home / "rpm" / "key.asc"
    certificate.write_text(str(pysequoia.Cert.from_bytes(key.certificate)))
    run(["rpmkeys", "--dbpath", home / "rpm" / "db", "--import", certificate], timeout=60)
    scratch = home / "scratch"
    scratch.mkdir()
    (home / "rpm" / ".rpmmacros").write_text(f"%_dbpath {scratch}/db\n")
    look = 'cp -r "$1"/rpm/. "$1/scratch"; export HOME="$1/scratch" TMPDIR="$1/scratch"; shift; exec "$@"'
    protect = 'mount --make-rprivate / && mount -o remount,bind,ro / && mount -t tmpfs tmpfs "$1/scratch" && ' + look
    command: list[str | Path] = ["unshare", "--mount", "sh", "-c", protect] if os.geteuid() == 0 else ["sh", "-c", look]
    return run([*command, "sh", home, "rpmlint", "--config", REPO / "packaging" / "rpmlint.toml", *files], timeout=300, check=False).stdout
