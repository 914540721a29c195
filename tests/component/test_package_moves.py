"""Hosts move from upstream's packages to CKP's and back, and between two versions of CKP's: done by dpkg in a Debian 12, by dnf and rpm in a root.

Stand-ins carry upstream's names, versions, places, conffiles and scripts (kubernetes/release, Debian's and Docker's containerd), with shell
scripts as programs. systemctl is a recorder: what a script asks of systemd is part of what is tested.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from ckp.agent.system.installers.rpm import RpmInstaller
from ckp.distribution.builder.component import Built
from ckp.distribution.packages.pack import Format, Package, Recipe, pack_unsigned
from ckp.hostkit.errors import AgentError
from ckp.kits.processes import Finished, run
from ckp.verify.bundle import BundleManifest
from ckp.verify.bundle import Package as Listed
from tests.support import release_packages
from tests.support.debian_root import Debian, debian_root
from tests.support.release_packages import unsigned
from tests.support.small_packages import small_package

pytestmark = [pytest.mark.component, pytest.mark.root("changes its root")]

NODE = ("containerd", "kubernetes-cni", "cri-tools", "kubelet", "kubectl", "kubeadm")
UNITS = "/usr/lib/systemd/system"
NEWER = "1.35.2-ckp"


@pytest.fixture(scope="session")
def built() -> dict[str, Built]:
    return release_packages.built_release()


@pytest.fixture(scope="session")
def newer(built: dict[str, Built], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Format], Path]:
    """The same programs as the release's next version."""
    folder = tmp_path_factory.mktemp("newer")

    def pack(name: str, format: Format) -> Path:
        target = folder / f"{name}.{format}"
        if not target.exists():
            pack_unsigned(Recipe.read(name), NEWER, built, built["nfpm"].binary("nfpm"), target, format=format)
        return target

    return pack


# -- Debian --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def debian(tmp_path: Path) -> Debian:
    return debian_root(tmp_path / "debian")


def deb(
    folder: Path, name: str, version: str, files: dict[str, str], *, fields: str = "", conffiles: Sequence[str] = (), scripts: dict[str, str] | None = None
) -> Path:
    """A package by dpkg-deb, programs being what lies in a `bin` folder."""
    tree = folder / f"{name}_{version}"
    for path, text in files.items():
        target = tree / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        target.chmod(0o755 if "bin/" in path else 0o644)
    control = tree / "DEBIAN"
    control.mkdir(parents=True)
    lines = f"Package: {name}\nVersion: {version}\nArchitecture: amd64\nMaintainer: Kubernetes Authors <dev@kubernetes.io>\nDescription: {name}\n"
    (control / "control").write_text(lines + textwrap.dedent(fields))
    if conffiles:
        (control / "conffiles").write_text("".join(f"{path}\n" for path in conffiles))
    for script, text in (scripts or {}).items():
        (control / script).write_text(f"#!/bin/sh\n{text}\n")
        (control / script).chmod(0o755)
    target = folder / f"{name}_{version}_amd64.deb"
    run(["dpkg-deb", "--root-owner-group", "-Zxz", "--build", tree, target], timeout=60)
    return target


PROGRAM = "#!/bin/sh\necho upstream\n"
DROP_IN = "[Service]\nEnvironmentFile=-/etc/default/kubelet\nExecStart=\nExecStart=/usr/bin/kubelet $KUBELET_EXTRA_ARGS\n"
UNIT = "[Unit]\nDescription=upstream's\n[Service]\nExecStart=/usr/bin/kubelet\n[Install]\nWantedBy=multi-user.target\n"


@pytest.fixture(scope="session")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Like the debs of pkgs.k8s.io for v1.35.1, which debbuild makes: empty folders hold a keep file, units are preset and not started."""
    folder = tmp_path_factory.mktemp("upstream")
    units = {
        "postinst": 'if [ "$1" = configure ]; then systemctl preset kubelet.service >/dev/null 2>&1 || :; fi',
        "prerm": 'if [ "$1" = remove ]; then systemctl --no-reload disable kubelet.service >/dev/null 2>&1 || :; systemctl stop kubelet.service || :; fi',
        "postrm": "systemctl daemon-reload >/dev/null 2>&1 || :",
    }
    kubelet = {
        "/usr/bin/kubelet": PROGRAM,
        f"{UNITS}/kubelet.service": UNIT,
        "/etc/default/kubelet": "KUBELET_EXTRA_ARGS=\n",
        "/var/lib/kubelet/.kubelet-keep": "",
        "/etc/kubernetes/manifests/.kubelet-keep": "",
    }
    return {
        "kubelet": deb(
            folder,
            "kubelet",
            "1.35.1-1.1",
            kubelet,
            fields="Depends: iptables (>= 1.4.21), kubernetes-cni (>= 1.2.0), mount, util-linux\n",
            conffiles=["/etc/default/kubelet"],
            scripts=units,
        ),
        "kubeadm": deb(folder, "kubeadm", "1.35.1-1.1", {"/usr/bin/kubeadm": PROGRAM, f"{UNITS}/kubelet.service.d/10-kubeadm.conf": DROP_IN}),
        "kubectl": deb(folder, "kubectl", "1.35.1-1.1", {"/usr/bin/kubectl": PROGRAM}),
        "cri-tools": deb(folder, "cri-tools", "1.35.0-1.1", {"/usr/bin/crictl": PROGRAM}),
        "kubernetes-cni": deb(
            folder, "kubernetes-cni", "1.8.0-1.1", {"/opt/cni/bin/loopback": PROGRAM, "/opt/cni/bin/LICENSE": "x", "/etc/cni/net.d/.kubernetes-cni-keep": ""}
        ),
    }


@pytest.fixture(scope="session")
def ours(built: dict[str, Built]) -> Callable[[str], Path]:
    return lambda name: unsigned(name, built, "deb").path


def test_all_of_a_node_is_installed_on_a_fresh_host_and_purged_without_a_trace(debian: Debian, ours: Callable[[str], Path]) -> None:
    before = debian.sh("find / -xdev -path /proc -prune -o -path /packages -prune -o -print | sort").stdout
    debian.install(*(ours(name) for name in NODE))
    assert set(debian.versions(*NODE)) == set(NODE)
    assert debian.faults(*NODE) == ""
    asked = debian.asked()
    assert "start containerd.service" in asked and not [line for line in asked if "kubelet" in line], asked
    assert debian.sh("/bin/systemctl is-enabled kubelet containerd", check=False).stdout.split() == ["enabled", "enabled"]
    assert "v1.35.1-ckp" in debian.sh("kubelet --version; kubectl version --client; kubeadm version").stdout
    assert "1.1.10" in debian.sh("runc --version; /usr/sbin/runc --version; crictl --version").stdout
    debian.sh(f"dpkg --purge {' '.join(reversed(NODE))}")
    after = debian.sh("find / -xdev -path /proc -prune -o -path /packages -prune -o -print | sort").stdout
    kept = ("/var/lib/dpkg", "/var/log", "/var/cache", "/var/lib/systemd/deb-systemd-helper-")
    assert [line for line in sorted(set(after.splitlines()) - set(before.splitlines())) if not line.startswith(kept)] == []
    # dpkg takes away folders that are empty and in no package: Debian's /opt is in none, the other is the lab's.
    assert [line for line in sorted(set(before.splitlines()) - set(after.splitlines())) if not line.startswith(kept)] == ["/opt", "/var/lib/kubelet"]


@pytest.mark.parametrize("edited", [False, True], ids=["untouched", "edited"])
def test_from_upstreams_packages_to_ours_and_back(debian: Debian, ours: Callable[[str], Path], upstream: dict[str, Path], edited: bool) -> None:
    names = list(upstream)
    debian.install(*upstream.values())
    wanted = "KUBELET_EXTRA_ARGS=\n"
    if edited:
        wanted = "KUBELET_EXTRA_ARGS=--v=4\n"
        debian.write("/etc/default/kubelet", wanted)
    debian.sh("systemctl enable kubelet; mkdir -p /var/lib/kubelet/pki; echo key >/var/lib/kubelet/pki/key")
    debian.asked()

    debian.install(*(ours(name) for name in names))
    assert all(version.endswith("-ckp") for version in debian.versions(*names).values()) and len(debian.versions(*names)) == len(names)
    assert debian.text("/etc/default/kubelet") == wanted, "what the owner wrote is kept"
    assert debian.faults(*names) == ""
    assert debian.sh(f"dpkg -S {UNITS}/kubelet.service.d/10-kubeadm.conf").stdout.startswith("kubeadm:")
    assert not debian.exists("/opt/cni/bin/LICENSE") and debian.exists("/opt/cni/bin/bridge") and debian.exists("/etc/cni/net.d")
    assert debian.text("/var/lib/kubelet/pki/key") == "key\n"
    assert not [line for line in debian.asked() if "start" in line], "the running kubelet is not touched"
    assert debian.sh("/bin/systemctl is-enabled kubelet").stdout.strip() == "enabled"

    debian.install(*upstream.values())
    assert debian.versions(*names) == {"kubelet": "1.35.1-1.1", "kubeadm": "1.35.1-1.1", "kubectl": "1.35.1-1.1"} | {
        "cri-tools": "1.35.0-1.1",
        "kubernetes-cni": "1.8.0-1.1",
    }
    assert debian.sh("kubelet; kubeadm; kubectl; crictl").stdout == "upstream\n" * 4
    assert debian.text("/etc/default/kubelet") == wanted
    assert debian.text(f"{UNITS}/kubelet.service.d/10-kubeadm.conf") == DROP_IN
    assert not debian.exists("/usr/share/bash-completion/completions/kubectl") and not debian.exists("/opt/cni/bin/bridge")
    assert debian.sh("/bin/systemctl is-enabled kubelet").stdout.strip() == "enabled"
    assert not [line for line in debian.asked() if "start" in line]


def test_a_kubelet_that_its_administrator_disabled_stays_disabled(debian: Debian, ours: Callable[[str], Path], upstream: dict[str, Path]) -> None:
    debian.install(upstream["kubernetes-cni"], upstream["kubelet"])
    debian.sh("/bin/systemctl disable kubelet 2>/dev/null")
    debian.install(ours("kubernetes-cni"), ours("kubelet"))
    assert debian.sh("/bin/systemctl is-enabled kubelet", check=False).stdout.strip() == "disabled"


def test_up_and_down_between_two_versions_of_ours(debian: Debian, ours: Callable[[str], Path], newer: Callable[[str, Format], Path]) -> None:
    names = ("containerd", "kubernetes-cni", "kubelet", "kubeadm")
    debian.install(*(ours(name) for name in names))
    debian.write("/etc/containerd/config.toml", "version = 2\n# mine\n")
    debian.asked()
    debian.install(*(newer(name, "deb") for name in names))
    assert set(debian.versions(*names).values()) == {NEWER}
    assert debian.asked().count("restart containerd.service") == 1
    debian.install(*(ours(name) for name in names))
    assert debian.versions("kubelet") == {"kubelet": "1.35.1-ckp"}
    assert debian.text("/etc/containerd/config.toml") == "version = 2\n# mine\n"
    asked = debian.asked()
    assert asked.count("restart containerd.service") == 1 and not [line for line in asked if "kubelet" in line], asked


DEBIAN_CONFIG = 'version = 2\n[plugins."io.containerd.grpc.v1.cri".cni]\n  bin_dir = "/usr/lib/cni"\n'


@pytest.mark.parametrize("edited", [False, True], ids=["untouched", "edited"])
def test_from_debians_containerd_and_runc_to_ours_and_back(debian: Debian, ours: Callable[[str], Path], tmp_path: Path, edited: bool) -> None:
    config = "/etc/containerd/config.toml"
    theirs = [
        deb(tmp_path, "runc", "1.1.5+ds1-1+deb12u1", {"/usr/sbin/runc": PROGRAM}),
        deb(
            tmp_path,
            "containerd",
            "1.6.20~ds1-1+deb12u3",
            {"/usr/bin/containerd": PROGRAM, "/usr/bin/ctr": PROGRAM, config: DEBIAN_CONFIG, "/lib/systemd/system/containerd.service": UNIT},
            fields="Depends: runc (>= 0.1.0~)\nSuggests: containernetworking-plugins\n",
            conffiles=[config],
        ),
        deb(tmp_path, "docker.io", "20.10.24+dfsg1-1+deb12u1", {"/usr/sbin/dockerd": PROGRAM}, fields="Depends: containerd (>= 1.4~), runc (>= 1.0.0~rc8~)\n"),
    ]
    debian.install(*theirs)
    if edited:
        debian.write(config, DEBIAN_CONFIG + "# mine\n")
    debian.install(ours("containerd"), options="--force-confdef --force-confold")
    assert debian.versions("containerd", "runc", "docker.io") == {"containerd": "1.7.28-ckp", "docker.io": "20.10.24+dfsg1-1+deb12u1"}
    assert debian.faults("containerd", "docker.io") == "", "Docker runs on with our containerd and runc"
    assert debian.text(config) == DEBIAN_CONFIG + "# mine\n" if edited else "SystemdCgroup = true" in debian.text(config)
    debian.install(theirs[1], theirs[0], options="--force-confdef --force-confold")
    assert debian.versions("containerd", "runc") == {"containerd": "1.6.20~ds1-1+deb12u3", "runc": "1.1.5+ds1-1+deb12u1"}
    assert debian.text(config) == (DEBIAN_CONFIG + "# mine\n" if edited else DEBIAN_CONFIG)
    assert debian.faults("containerd", "runc", "docker.io") == "" and debian.exists("/usr/sbin/runc")


def test_from_dockers_containerd_to_ours(debian: Debian, ours: Callable[[str], Path], tmp_path: Path) -> None:
    config = "/etc/containerd/config.toml"
    docker = deb(
        tmp_path,
        "containerd.io",
        "1.7.27-1",
        {"/usr/bin/containerd": PROGRAM, "/usr/bin/runc": PROGRAM, config: 'disabled_plugins = ["cri"]\n'},
        fields="Provides: containerd, runc\nConflicts: containerd, runc\nReplaces: containerd, runc\n",
        conffiles=[config],
    )
    debian.install(docker)
    debian.sh("dpkg --remove containerd.io")  # as apt does first; dpkg alone refuses, since containerd.io conflicts with the runc in ours
    debian.install(ours("containerd"))
    assert debian.versions("containerd", "containerd.io") == {"containerd": "1.7.28-ckp"}
    assert "SystemdCgroup = true" in debian.text(config), "the configuration that turns CRI off was nobody's choice"
    debian.sh("dpkg --purge containerd.io")
    assert debian.exists(config), "purging what was replaced does not take what is ours now"
    engine = deb(tmp_path, "docker-ce", "5:28.0-1", {"/usr/bin/dockerd": PROGRAM}, fields="Depends: containerd.io (>= 1.6.24)\n")
    debian.sh("dpkg --purge containerd")
    debian.install(docker, engine)
    with pytest.raises(Exception, match="failed"):
        debian.install(ours("containerd"))
    assert set(debian.versions("containerd", "containerd.io", "docker-ce")) == {"containerd.io", "docker-ce"}, "Docker's engine does not lose its runtime"


# -- Red Hat -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RedHat:
    """A root that rpm and dnf install into: a shell, a recorder of systemctl, and a package that stands for what RHEL 9 has."""

    root: Path
    folder: Path

    def rpm(self, *arguments: str | Path, check: bool = True) -> str:
        return run(["rpm", "--root", self.root, *arguments], timeout=120, check=check).stdout

    def dnf(self, *arguments: str | Path) -> Finished:
        argv: list[str | Path] = ["dnf", "-y", f"--installroot={self.root}", "--releasever=9", "--disablerepo=*", "--nogpgcheck"]
        return run([*argv, *arguments], timeout=300)

    def installed(self, *names: str) -> dict[str, str]:
        return RpmInstaller(str(self.root)).installed(names)

    def asked(self) -> list[str]:
        log = self.root / "var/log/systemctl.log"
        lines = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return lines

    def text(self, path: str) -> str:
        return (self.root / path.lstrip("/")).read_text()

    def install(self, packages: Sequence[Package]) -> None:
        """As the agent does."""
        folder = self.folder / "bundle"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        listed = []
        for package in packages:
            os.link(package.path, folder / f"{package.name}.rpm")
            listed.append(Listed(f"{package.name}.rpm", package.name, package.version, ""))
        manifest = BundleManifest(str(folder), "v1.35.1", "1.35.1-ckp", "rhel", "9", "amd64", "r", tuple(listed), {}, {})
        RpmInstaller(str(self.root)).install(manifest, listed)


@pytest.fixture
def redhat(tmp_path: Path) -> RedHat:
    for program in ("rpm", "dnf"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed (make setup)")
    host = RedHat(tmp_path / "root", tmp_path)
    for folder in ("usr/bin", "usr/sbin", "var/log", "etc"):
        (host.root / folder).mkdir(parents=True)
    for link, target in (("bin", "usr/bin"), ("sbin", "usr/sbin"), ("lib", "usr/lib"), ("lib64", "usr/lib64")):
        (host.root / link).symlink_to(target)
    (host.root / "usr/lib64").mkdir()
    (host.root / "dev").mkdir()
    os.mknod(host.root / "dev/null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    (host.root / "usr/lib/x86_64-linux-gnu").mkdir(parents=True)
    shutil.copy("/lib64/ld-linux-x86-64.so.2", host.root / "usr/lib64")
    shutil.copy("/lib/x86_64-linux-gnu/libc.so.6", host.root / "usr/lib/x86_64-linux-gnu")
    shutil.copy("/bin/dash", host.root / "usr/bin/sh")
    run(["chroot", host.root, "/bin/sh", "-c", ":"], timeout=20, what="the shell of the test's root")
    recorder = host.root / "usr/bin/systemctl"
    recorder.write_text('#!/bin/sh\necho "$*" >>/var/log/systemctl.log\n')
    recorder.chmod(0o755)
    provides = ["iptables = 1.8.10", "util-linux", "iproute", "iproute-tc", "ethtool", "socat", "conntrack-tools", "systemd"]
    stub = small_package(tmp_path / "stub", None, "rhel-base", "9.4-1", "rpm", provides=[*provides, "python3 = 3.9.18", "openssl", "gnupg2", "kmod"])
    host.rpm("-i", "--nosignature", stub.path)
    return host


@pytest.fixture(scope="session")
def rpms(built: dict[str, Built]) -> Callable[[str], Package]:
    return lambda name: unsigned(name, built, "rpm")


@pytest.fixture(scope="session")
def upstream_rpms(built: dict[str, Built], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Like the rpms of pkgs.k8s.io for v1.35.1."""
    folder = tmp_path_factory.mktemp("upstream-rpms")
    units = {"postinstall": "systemctl preset kubelet.service >/dev/null 2>&1 || :", "postremove": "systemctl daemon-reload >/dev/null 2>&1 || :"}
    contents: dict[str, tuple[str, dict[str, str]]] = {
        "kubelet": ("1.35.1-150500.1.1", {"/usr/bin/kubelet": PROGRAM, f"{UNITS}/kubelet.service": UNIT, "/etc/sysconfig/kubelet": "KUBELET_EXTRA_ARGS=\n"}),
        "kubeadm": ("1.35.1-150500.1.1", {"/usr/bin/kubeadm": PROGRAM, f"{UNITS}/kubelet.service.d/10-kubeadm.conf": DROP_IN}),
        "kubectl": ("1.35.1-150500.1.1", {"/usr/bin/kubectl": PROGRAM}),
        "cri-tools": ("1.35.0-150500.1.1", {"/usr/bin/crictl": PROGRAM}),
        "kubernetes-cni": ("1.8.0-150500.1.1", {"/opt/cni/bin/loopback": PROGRAM, "/opt/cni/bin/LICENSE": "x"}),
    }
    made = {}
    for name, (version, files) in contents.items():
        entries = []
        for number, (path, text) in enumerate(files.items()):
            source = folder / f"{name}-{number}"
            source.write_text(text)
            kind = "config|noreplace" if path.startswith("/etc") else "file"
            entries.append({"src": str(source), "dst": path, "type": kind, "file_info": {"mode": 0o755 if "bin/" in path else 0o644}})
        scripts = {}
        if name == "kubelet":
            for when, text in units.items():
                scripts[when] = str(folder / when)
                (folder / when).write_text(text)
        upstream, _, release = version.partition("-")
        config: dict[str, object] = {
            "name": name,
            "version": upstream,
            "release": release,
            "version_schema": "none",
            "arch": "amd64",
            "maintainer": "Kubernetes Authors",
            "vendor": "x",
        }
        config |= {"description": name, "contents": entries, "scripts": scripts, "depends": ["kubernetes-cni >= 1.2.0"] if name == "kubelet" else []}
        (folder / f"{name}.json").write_text(json.dumps(config))
        made[name] = folder / f"{name}-{version}.x86_64.rpm"
        run([built["nfpm"].binary("nfpm"), "package", "-f", folder / f"{name}.json", "-p", "rpm", "-t", made[name]], timeout=60)
    return made


def test_the_agent_installs_a_node_by_dnf_and_removes_it_without_a_trace(redhat: RedHat, rpms: Callable[[str], Package]) -> None:
    config = redhat.root / "etc/sysconfig/kubelet"
    config.parent.mkdir()
    config.write_text("KUBELET_EXTRA_ARGS=--node-ip=10.0.0.1\n")  # written before the package comes, as the agent does
    redhat.install([rpms(name) for name in NODE])
    assert redhat.installed(*NODE) == {name: rpms(name).version for name in NODE}
    assert config.read_text() == "KUBELET_EXTRA_ARGS=--node-ip=10.0.0.1\n"
    assert redhat.rpm("-V", *NODE, check=False).splitlines() in ([], ["S.5....T.  c /etc/sysconfig/kubelet"])
    asked = redhat.asked()
    assert "--no-reload preset kubelet.service" in asked and "--no-reload preset containerd.service" in asked
    assert not [line for line in asked if "start" in line], asked
    before = [path.stat().st_ino for path in (redhat.root / "usr/bin").glob("kube*")]
    redhat.install([rpms(name) for name in NODE])
    assert [path.stat().st_ino for path in (redhat.root / "usr/bin").glob("kube*")] == before, "the same again changes nothing"
    RpmInstaller(str(redhat.root)).remove([*NODE, "never-there"])
    assert redhat.installed(*NODE) == {}
    assert "--no-reload disable --now kubelet.service" in redhat.asked()
    left = [
        str(path.relative_to(redhat.root))
        for path in redhat.root.rglob("*kube*")
        if "var/" not in str(path) and str(path.relative_to(redhat.root)) != "etc/sysconfig/kubelet"
    ]
    assert left == [] and not list((redhat.root / "etc/sysconfig").glob("*.rpm*")) and not (redhat.root / "opt/cni").exists()


@pytest.mark.parametrize("edited", [False, True], ids=["untouched", "edited"])
def test_from_upstreams_rpms_to_ours_and_back(redhat: RedHat, rpms: Callable[[str], Package], upstream_rpms: dict[str, Path], edited: bool) -> None:
    names = list(upstream_rpms)
    redhat.dnf("install", *upstream_rpms.values())
    wanted = "KUBELET_EXTRA_ARGS=\n"
    if edited:
        wanted = "KUBELET_EXTRA_ARGS=--v=4\n"
        (redhat.root / "etc/sysconfig/kubelet").write_text(wanted)
    redhat.asked()
    redhat.install([rpms(name) for name in names])
    assert redhat.installed(*names) == {name: rpms(name).version for name in names}
    assert redhat.text("/etc/sysconfig/kubelet") == wanted
    assert redhat.rpm("-qf", "--qf", "%{NAME}", f"{UNITS}/kubelet.service.d/10-kubeadm.conf") == "kubeadm"
    assert not (redhat.root / "opt/cni/bin/LICENSE").exists() and (redhat.root / "opt/cni/bin/bridge").exists()
    assert not [line for line in redhat.asked() if "start" in line or "preset" in line or "disable" in line], "the running kubelet is not touched"
    redhat.dnf("install", *upstream_rpms.values())
    assert set(redhat.installed(*names).values()) == {"1.35.1-150500.1.1", "1.35.0-150500.1.1", "1.8.0-150500.1.1"}
    assert redhat.text("/etc/sysconfig/kubelet") == wanted and redhat.text("/usr/bin/kubelet") == PROGRAM
    assert redhat.text(f"{UNITS}/kubelet.service.d/10-kubeadm.conf") == DROP_IN
    assert not [line for line in redhat.asked() if "start" in line]


def test_up_and_down_between_two_versions_of_our_rpms(redhat: RedHat, rpms: Callable[[str], Package], newer: Callable[[str, Format], Path]) -> None:
    names = ("containerd", "kubernetes-cni", "kubelet", "kubeadm")
    redhat.install([rpms(name) for name in names])
    (redhat.root / "etc/containerd/config.toml").write_text("# mine\n")
    redhat.asked()
    redhat.install([Package(name, NEWER, newer(name, "rpm"), "", "rpm") for name in names])
    assert set(redhat.installed(*names).values()) == {NEWER}
    asked = redhat.asked()
    assert asked.count("try-restart containerd.service") == 1 and not [line for line in asked if "kubelet" in line], asked
    redhat.install([rpms(name) for name in names])
    assert redhat.installed("kubelet") == {"kubelet": "1.35.1-ckp"} and redhat.text("/etc/containerd/config.toml") == "# mine\n"


def test_a_duplicate_of_an_interrupted_transaction_is_repaired(redhat: RedHat, rpms: Callable[[str], Package], newer: Callable[[str, Format], Path]) -> None:
    redhat.install([rpms("kubectl")])
    redhat.rpm("-i", "--force", "--nosignature", newer("kubectl", "rpm"))  # new files written, the old version not yet erased
    assert redhat.installed("kubectl") == {"kubectl": "1.35.1-ckp and 1.35.2-ckp"}
    redhat.install([Package("kubectl", NEWER, newer("kubectl", "rpm"), "", "rpm")])
    assert redhat.installed("kubectl") == {"kubectl": NEWER}
    assert redhat.rpm("-V", "kubectl") == ""


def test_dockers_runtime_is_not_replaced_by_ours_unasked(redhat: RedHat, rpms: Callable[[str], Package], tmp_path: Path) -> None:
    docker = small_package(tmp_path / "docker", None, "containerd.io", "1.7.27-3.1", "rpm", provides=["containerd"])
    redhat.dnf("install", docker.path)
    with pytest.raises(AgentError, match="installing containerd"):
        redhat.install([rpms("containerd")])
    assert redhat.installed("containerd", "containerd.io") == {"containerd.io": "1.7.27-3.1"}
    redhat.dnf("--allowerasing", "install", rpms("containerd").path)
    assert redhat.installed("containerd", "containerd.io") == {"containerd": "1.7.28-ckp"}


def test_the_systems_own_tools_come_and_go_with_what_they_need(redhat: RedHat, tmp_path: Path) -> None:
    """Of one transaction all that is new; dnf is a script here, since this root knows no repositories."""
    library = small_package(tmp_path / "p", None, "libset", "1.0-1", "rpm")
    tools = [small_package(tmp_path / "p", None, "ipset", "1.0-1", "rpm", depends=["libset"]), small_package(tmp_path / "p", None, "ethtool", "6.0-1", "rpm")]
    theirs = small_package(tmp_path / "p", None, "theirs", "1.0-1", "rpm", depends=["libset"])
    script = tmp_path / "dnf"
    script.write_text(f"#!/bin/sh\nexec rpm --root {redhat.root} -i --nosignature {library.path} {tools[0].path} {tools[1].path}\n")
    script.chmod(0o755)
    installer, told = RpmInstaller(str(redhat.root)), list[list[str]]()
    installer._dnf = [str(script)]
    installer.add_tools(["ipset", "ethtool", "socat"], lambda names: told.append(sorted(names)))
    assert told == [["ethtool", "ipset", "socat"], ["ethtool", "ipset", "libset"]]
    redhat.rpm("-i", "--nosignature", theirs.path)
    assert installer.remove_tools(["ethtool", "ipset", "libset", "socat"]) == ["libset"], "somebody needs it now"
    assert sorted(installer.installed(["ethtool", "ipset", "libset", "theirs", "rhel-base"])) == ["libset", "rhel-base", "theirs"]
