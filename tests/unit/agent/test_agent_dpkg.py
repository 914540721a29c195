"""The real dpkg, on a system of its own in a folder; apt-get is told by scripts what to say."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from ckp.agent.system.installers import dpkg
from ckp.agent.system.installers.dpkg import DpkgInstaller
from ckp.hostkit import processes
from ckp.hostkit.errors import AgentError
from ckp.hostkit.processes import PATH
from ckp.verify.bundle import BundleManifest, Package

pytestmark = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="this machine has no dpkg")
Script = Callable[[str, str], None]


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Script:
    """Puts a shell script in front of a program of that name."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setattr(processes, "PATH", f"{folder}:{PATH}")

    def write(name: str, text: str) -> None:
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)

    return write


@pytest.fixture
def root(tmp_path: Path, script: Script) -> Path:
    """A system with dpkg's database and nothing installed."""
    top = tmp_path / "root"
    (top / "var/lib/dpkg/updates").mkdir(parents=True)
    (top / "var/lib/dpkg/info").mkdir()
    (top / "var/lib/dpkg/status").touch()
    script("dpkg", f'exec /usr/bin/dpkg --root={top} --force-depends --force-not-root --log=/dev/null "$@"')
    script("dpkg-query", f'exec /usr/bin/dpkg-query --admindir={top}/var/lib/dpkg "$@"')
    return top


def package(tmp_path: Path, name: str, **more: str) -> Path:
    tree = tmp_path / f"tree-{name}"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "opt" / name).mkdir(parents=True)
    for number in range(8):
        (tree / "opt" / name / str(number)).write_text("x")
    fields = {"Package": name, "Version": "1.0", "Architecture": "amd64", "Maintainer": "T <t@example.org>", "Description": "a package", **more}
    (tree / "DEBIAN/control").write_text("".join(f"{key}: {value}\n" for key, value in fields.items()))
    subprocess.run(["dpkg-deb", "--root-owner-group", "--build", str(tree), str(tmp_path / f"{name}.deb")], check=True, timeout=60, capture_output=True)
    return tmp_path / f"{name}.deb"


def cut_off(root: Path, name: str) -> None:
    """As a power cut leaves a package whose files were being unpacked."""
    fields = f"Package: {name}\nStatus: install reinstreq half-installed\nMaintainer: T <t@example.org>\nArchitecture: amd64\nVersion: 1.0\nDescription: x\n"
    (root / "var/lib/dpkg/status").write_text(fields)
    (root / "opt" / name).mkdir(parents=True)
    for number in range(3):
        (root / "opt" / name / f"{number}.dpkg-new").write_text("x")


def manifest(tmp_path: Path, *packages: Package) -> BundleManifest:
    return BundleManifest(str(tmp_path), "v1.35.1", "1.35.1-ckp", "debian", "12", "amd64", "r:5000/ckp", packages, {}, {})


def files(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file() and "var/lib/dpkg" not in str(path))


def test_a_package_whose_unpacking_was_interrupted_can_be_removed(root: Path, tmp_path: Path) -> None:
    """dpkg(1) refuses to remove one that is marked reinstreq, whatever --configure -a did before."""
    cut_off(root, "kubelet")
    installer = DpkgInstaller()
    assert installer.broken(["kubelet", "kubeadm"]) == ["kubelet"]
    installer.remove(["kubelet"])
    assert installer.installed(["kubelet"]) == {} and installer.broken(["kubelet"]) == []


def test_a_broken_package_that_is_unpacked_again_leaves_no_file_when_it_is_removed(root: Path, tmp_path: Path) -> None:
    cut_off(root, "kubelet")
    file = package(tmp_path, "kubelet")
    installer = DpkgInstaller()
    listed = Package(file.name, "kubelet", "1.0", "0" * 64)
    installer.unpack(manifest(tmp_path, listed), [listed])
    assert installer.broken(["kubelet"]) == []
    installer.remove(["kubelet"])
    assert files(root) == []


def test_pending_dpkg_work_is_completed_before_apt_runs(root: Path, tmp_path: Path, script: Script) -> None:
    """apt-get refuses everything while a file lies in /var/lib/dpkg/updates, though dpkg --audit has nothing to say."""
    (root / "var/lib/dpkg/updates/0000").write_text("Package: x\nStatus: unknown ok not-installed\n\n")
    script("apt-get", f"[ -e {root}/var/lib/dpkg/updates/0000 ] && exit 100; exit 0")
    assert DpkgInstaller().add_tools(["socat"], lambda names: None) == ["socat"]


def test_dependencies_of_a_tool_are_remembered_before_they_are_installed(root: Path, script: Script, tmp_path: Path) -> None:
    script(
        "apt-get",
        f"""case "$*" in
        -s*) echo "Inst libwrap0 (7.6 Debian:12/stable [amd64])"
            echo "Inst libc6 [2.36-8] (2.36-9 Debian:12/stable [amd64])"
            echo "Inst socat (1.7.4 D [amd64])"; exit 0;;
        *) cat {tmp_path}/told >> {tmp_path}/seen; exit 0;;
        esac""",
    )
    told: list[str] = []

    def remember(names: Sequence[str]) -> None:
        told.extend(names)
        (tmp_path / "told").write_text(" ".join(told))

    DpkgInstaller().add_tools(["socat"], remember)
    assert told == ["libwrap0", "socat"], "what is only renewed is not ours to remove"
    assert (tmp_path / "seen").read_text() == "libwrap0 socat"


def test_tools_are_removed_unless_another_package_needs_them(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: Script) -> None:
    script("dpkg", f'exec /usr/bin/dpkg --root={root} --force-not-root --log=/dev/null "$@"')
    for name, needs in (("libset", ""), ("ipset", "libset"), ("socat", ""), ("theirs", "socat")):
        subprocess.run(
            [f"{tmp_path}/bin/dpkg", "-i", package(tmp_path, name, **({"Depends": needs} if needs else {}))], check=True, timeout=60, capture_output=True
        )
    installer = DpkgInstaller()
    assert installer.remove_tools(["libset", "ipset", "socat", "never-there"]) == ["socat"]
    assert sorted(installer.installed(["libset", "ipset", "socat", "theirs"])) == ["socat", "theirs"]


def test_an_installation_waits_for_dpkgs_lock(root: Path, tmp_path: Path, script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    script(
        "dpkg",
        f"""case "$*" in *configure*) exit 0;; esac
        echo x >> {tmp_path}/tries
        [ $(wc -l < {tmp_path}/tries) -ge 3 ] && exit 0
        echo "dpkg: error: dpkg frontend lock was locked by another process with pid 7" >&2; exit 2""",
    )
    DpkgInstaller().install_file("/x/ckp-agent.deb")
    assert len((tmp_path / "tries").read_text().split()) == 3 and dpkg.LOCK_SECONDS == 120


def test_a_hold_of_the_owner_that_keeps_a_tool_out_is_in_the_error(root: Path, script: Script) -> None:
    script("apt-get", 'echo "E: Unable to correct problems, you have held broken packages." >&2; exit 100')
    with pytest.raises(AgentError, match="installing the system tools socat by apt-get failed") as caught:
        DpkgInstaller().add_tools(["socat"], lambda names: None)
    assert "you have held broken packages" in caught.value.sentence() and "by hand" in caught.value.resolution
