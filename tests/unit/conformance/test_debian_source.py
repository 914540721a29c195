"""Sources from Debian's archive: only what the catalog pins is taken, and the machine's own apt stays as it is. apt-get is a small one of the test's."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from ckp.catalog.models import DebianSource
from ckp.conformance.debiansource import fetch, mirror
from ckp.kits import paths
from ckp.kits.errors import NotFound, VerificationFailed

CONTENT = b"upstream's archive"
SOURCE = DebianSource(
    name="busybox",
    suite="trixie",
    archive="busybox_1.37.0.orig.tar.bz2",
    sha256=hashlib.sha256(CONTENT).hexdigest(),
    version="1.37.0",
    license="GPL-2.0-only",
    upstream="busybox.net",
)
APT = r"""#!/bin/sh
echo "$*" >> "$APT_LOG"
case "$*" in
*indextargets*) printf '%b' "$APT_TARGETS" ;;
*update*)
    for word; do case "$word" in Dir::Etc::SourceList=*) cat "${word#*=}" >> "$APT_LOG" ;; esac; done ;;
*source*) printf '%s' "$APT_CONTENT" > "$APT_ARCHIVE"; : > busybox_1.37.0-6.dsc ;;
esac
"""
BOOKWORM = "http://mirror.test/debian/\\tbookworm\\tbookworm\\tmain\\n"


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What apt-get was asked, and the sources that it was given."""
    program = tmp_path / "bin" / "apt-get"
    program.parent.mkdir()
    program.write_text(APT)
    program.chmod(0o755)
    values = {
        "PATH": f"{program.parent}:{os.environ['PATH']}",
        "APT_LOG": str(tmp_path / "log"),
        "APT_CONTENT": CONTENT.decode(),
        "CKP_CACHE": str(tmp_path / "c"),
    }
    values |= {"APT_ARCHIVE": SOURCE.archive, "APT_TARGETS": f"http://mirror.test/security/\\tbookworm-security\\tbookworm\\tcontrib\\n{BOOKWORM}"}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    return tmp_path / "log"


def test_it_comes_from_the_machines_mirror_with_sources_and_state_of_its_own(log: Path) -> None:
    archive = fetch(SOURCE)
    assert archive.read_bytes() == CONTENT
    assert {path.name for path in archive.parent.iterdir()} == {archive.name, f"{archive.name}.lock"}, "nothing else is left"
    lines = log.read_text().splitlines()
    (sources,) = [line for line in lines if line.startswith("deb-src")]
    assert sources.endswith("http://mirror.test/debian/ trixie main")
    for line in lines[1:]:
        if not line.startswith("deb-src"):
            assert "Dir::Etc::SourceParts=/dev/null" in line
            assert f"Dir::State={paths.cache()}" in line
            assert f"Dir::Cache={paths.cache()}" in line


def test_it_is_fetched_once_and_checked_each_time(log: Path) -> None:
    archive = fetch(SOURCE)
    asked = log.read_text()
    assert fetch(SOURCE) == archive
    assert log.read_text() == asked
    archive.write_bytes(b"changed")
    with pytest.raises(VerificationFailed, match="the catalog pins"):
        fetch(SOURCE)


def test_another_content_is_not_kept(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APT_CONTENT", "something else")
    with pytest.raises(VerificationFailed, match=rf"{SOURCE.archive} has the SHA-256 [0-9a-f]{{64}}, and the catalog pins {SOURCE.sha256}"):
        fetch(SOURCE)
    assert not (paths.cache() / "sources" / SOURCE.archive).exists()


def test_another_version_is_said_with_what_there_is(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APT_ARCHIVE", "busybox_1.38.0.orig.tar.bz2")
    with pytest.raises(NotFound, match=r"Debian's trixie has no busybox_1\.37\.0\.orig\.tar\.bz2 any more") as caught:
        fetch(SOURCE)
    assert "busybox_1.38.0.orig.tar.bz2" in caught.value.render()


@pytest.mark.parametrize(
    ("targets", "found"),
    [
        (BOOKWORM, "http://mirror.test/debian/"),
        ("http://m.test/debian/\\ttrixie\\t$(CODENAME)\\tmain\\n", "http://m.test/debian/"),
        ("http://m.test/debian/\\tstable\\tbookworm\\tmain\\n", "http://m.test/debian/"),
    ],
)
def test_the_mirror_is_that_of_a_suite_under_either_of_its_names(log: Path, monkeypatch: pytest.MonkeyPatch, targets: str, found: str) -> None:
    monkeypatch.setenv("APT_TARGETS", targets)
    assert mirror("trixie") == found


@pytest.mark.parametrize("targets", ["", "http://u.test/ubuntu/\\tjammy\\tjammy\\tmain\\n", BOOKWORM.replace("main", "contrib")])
def test_a_machine_without_debians_archive_is_told(log: Path, monkeypatch: pytest.MonkeyPatch, targets: str) -> None:
    monkeypatch.setenv("APT_TARGETS", targets)
    with pytest.raises(NotFound, match="has no source of Debian's bookworm or trixie"):
        fetch(SOURCE)
