"""What a machine is like, against what a node needs: each case works, or is a finding with its remediation."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from ckp.agent.journal import Journal
from ckp.agent.messages import Finding
from ckp.agent.node import machine_checks, preflight
from ckp.agent.node.machine_checks import FileSystem
from ckp.agent.system import facts, folders
from ckp.hostkit.files import atomic_write
from ckp.hostkit.processes import run
from ckp.standalone import checks
from ckp.standalone.options import Options

GIB = 1 << 30
ROOMY = FileSystem(size=100 * GIB, available=60 * GIB, inodes=1_000_000, device=1)
Look = Callable[[str], FileSystem | None]


def disks(**places: FileSystem) -> Look:
    """A host with a roomy root disk, and others at these places (with `_` for `/`)."""
    mounted = {path.replace("_", "/"): there for path, there in places.items()}

    def look(path: str) -> FileSystem:
        found = [place for place in mounted if path == place or path.startswith(place + "/")]
        return mounted[max(found, key=len)] if found else ROOMY

    return look


def blocking(found: list[Finding]) -> list[str]:
    assert all(item.problem and item.remediation and len(item.problem) <= 200 and len(item.remediation) <= 150 for item in found)
    return [item.problem for item in found if item.blocking]


# -- file systems --------------------------------------------------------------------------------------------------------


def test_a_roomy_disk_is_no_finding() -> None:
    assert machine_checks.space(disks()) == machine_checks.eviction({}, disks()) == machine_checks.read_only(disks()) == []
    assert machine_checks.not_executable(disks()) == []


@pytest.mark.parametrize(
    ("place", "available", "words"),
    [
        ("_usr", 400 << 20, "/usr: 400 MiB free, 500 MiB are needed"),
        ("_var_lib_containerd", 2 * GIB, "/var/lib/containerd: 2048 MiB free, 3072 MiB are needed"),
        ("_opt", 10 << 20, "/opt: 10 MiB free, 100 MiB are needed"),
    ],
)
def test_a_full_disk_beside_that_of_var_lib_is_refused(place: str, available: int, words: str) -> None:
    full = replace(ROOMY, device=2, available=available)
    assert blocking(machine_checks.space(disks(**{place: full}))) == [words]
    assert machine_checks.space(disks(**{place: replace(full, available=5 * GIB)})) == []


def test_places_on_one_disk_need_their_sum() -> None:
    small = FileSystem(10 * GIB, 550 << 20, 1_000_000, 2)
    assert blocking(machine_checks.space(disks(_usr=small, _opt=small))) == ["/usr, /opt: 550 MiB free, 600 MiB are needed"]


def test_a_disk_without_inodes_is_refused_and_one_without_their_number_is_not() -> None:
    assert blocking(machine_checks.space(lambda path: replace(ROOMY, inodes=900))) == ["the file system of /var/lib has 900 inodes free, 50000 are needed"]
    assert machine_checks.space(lambda path: replace(ROOMY, inodes=-1)) == []


def test_a_disk_on_which_the_kubelet_would_evict_everything_is_refused() -> None:
    """Its thresholds are percentages: a large disk with 100 GiB free may be too full."""
    full = replace(ROOMY, size=1000 * GIB, available=120 * GIB)
    assert blocking(machine_checks.eviction({}, lambda path: full)) == [
        "the disk of /var/lib/containerd is 88 % full: the kubelet evicts pods while less than 15% is available"
    ]
    fuller = replace(full, available=90 * GIB)
    found = machine_checks.eviction({}, lambda path: fuller)
    assert len(found) == 1 and "less than 10%" in found[0].problem and found[0].remediation.startswith(f"free {10 * 1024 + 1} MiB")
    own = {"evictionHard": {"nodefs.available": "1Gi", "imagefs.available": "500Mi"}}
    assert machine_checks.eviction(own, lambda path: fuller) == []
    assert blocking(machine_checks.eviction(own, lambda path: replace(full, available=GIB // 2 + 1))) != []
    assert machine_checks.eviction({"evictionHard": {"memory.available": "100Mi"}}, lambda path: replace(full, available=1)) == [], "it replaces all defaults"


@pytest.mark.parametrize(("text", "bytes_"), [("10%", 10), ("1Ki", 1024), ("1.5Ki", 1536), ("2k", 2000), ("7", 7), ("many", 0), ("", 0)])
def test_thresholds_are_read_as_the_kubelet_reads_them(text: str, bytes_: int) -> None:
    assert machine_checks._threshold(text, 100) == bytes_


def test_what_is_mounted_read_only_is_refused() -> None:
    found = machine_checks.read_only(disks(_usr=replace(ROOMY, flags=os.ST_RDONLY)))
    assert blocking(found) == ["/usr: mounted read-only, so nothing can be installed"] and "remount,rw" in found[0].remediation


@pytest.mark.parametrize(
    ("place", "refused"), [("_opt", True), ("_var_lib_kubelet", True), ("_tmp", False), ("_var_tmp", False), ("_var_lib_containerd", False)]
)
def test_noexec_is_refused_where_programs_run_and_only_there(place: str, refused: bool) -> None:
    assert bool(blocking(machine_checks.not_executable(disks(**{place: replace(ROOMY, flags=os.ST_NOEXEC)})))) is refused


@pytest.mark.root("mounts a file system")
def test_mounts_are_seen_as_they_are(tmp_path: Path) -> None:
    """In a mount namespace of its own: read-only, noexec and a size are what statvfs says of a real file system."""
    script = (
        f"mount -t tmpfs -o ro,noexec,size=64m,nr_inodes=100 none {tmp_path} && "
        f"python3 -c \"import os; i=os.statvfs('{tmp_path}'); print(i.f_flag & os.ST_RDONLY, i.f_flag & os.ST_NOEXEC, i.f_blocks * i.f_frsize, i.f_files)\""
    )
    made = run(["unshare", "--mount", "--propagation", "private", "sh", "-c", script], timeout=60)
    assert made.stdout.split() == [str(os.ST_RDONLY), str(os.ST_NOEXEC), str(64 << 20), "100"]
    seen = machine_checks.file_system(f"{tmp_path}/not/there/yet")
    assert seen is not None and seen.size > 0 and seen.device == tmp_path.stat().st_dev


def test_an_image_based_system_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ostree-booted").touch()
    assert "ostree" in blocking(machine_checks.image_based(str(tmp_path / "ostree-booted")))[0]
    assert machine_checks.image_based(str(tmp_path / "none")) == []


# -- clock, kernel, programs, network ------------------------------------------------------------------------------------


def test_a_clock_before_the_making_of_the_tool_is_refused(tmp_path: Path) -> None:
    tool = tmp_path / "ckp-agent"
    tool.touch()
    os.utime(tool, (1_780_000_000, 1_780_000_000))
    assert blocking(machine_checks.clock(0.0, str(tool))) == ["this host's clock says 1970-01-01, and this tool was made on 2026-05-28"]
    assert machine_checks.clock(1_780_000_000 - 3600, str(tool)) == [] == machine_checks.clock(1.9e9, str(tool))
    assert machine_checks.clock(0.0, "import sys") == [], "not packed: its age says nothing"


@pytest.mark.parametrize(
    ("release", "fits"), [("4.18.0-553.el8.x86_64", False), ("5.9.16", False), ("5.10.0-30-amd64", True), ("6.18.44-fc", True), ("odd", True)]
)
def test_a_kernel_that_the_network_plugin_cannot_use_is_refused(tmp_path: Path, release: str, fits: bool) -> None:
    (tmp_path / "filesystems").write_text("nodev\toverlay\n")
    assert (machine_checks.kernel(release, str(tmp_path / "filesystems")) == []) is fits


def test_a_kernel_without_overlay_is_refused(tmp_path: Path) -> None:
    (tmp_path / "filesystems").write_text("nodev\tproc\n\text4\n")
    found = machine_checks.kernel("6.1", str(tmp_path / "filesystems"), lambda module: False)
    assert blocking(found) == ["this kernel has no overlay file system, which containers need"]
    assert machine_checks.kernel("6.1", str(tmp_path / "filesystems"), lambda module: module == "overlay") == [], "it can be loaded"


def test_controllers_that_are_off_are_refused_on_both_cgroup_versions(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpuset cpu io pids\n")
    assert blocking(machine_checks.cgroups(str(tmp_path))) == ["the cgroup controllers memory are off, and the kubelet needs them"]
    (tmp_path / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    assert machine_checks.cgroups(str(tmp_path)) == []
    table = tmp_path / "cgroups"
    table.write_text("#subsys_name\thierarchy\tnum_cgroups\tenabled\ncpu\t2\t1\t1\nmemory\t0\t1\t0\npids\t4\t1\t1\n")
    assert blocking(machine_checks.cgroups(str(tmp_path / "none"), str(table))) == ["the cgroup controllers memory are off, and the kubelet needs them"]


def test_selinux_that_enforces_is_said_and_blocks_nothing(tmp_path: Path) -> None:
    enforce = tmp_path / "enforce"
    assert machine_checks.selinux(str(enforce)) == []
    enforce.write_text("1")
    found = machine_checks.selinux(str(enforce))
    assert blocking(found) == [] and "SELinux" in found[0].problem
    enforce.write_text("0")
    assert machine_checks.selinux(str(enforce)) == []


def test_programs_that_would_run_in_place_of_ours_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder with a short name, as /usr/local/bin is one: the limit of a finding's length is for such."""
    monkeypatch.chdir(tmp_path)
    for name, mode in (("kubeadm", 0o755), ("runc", 0o755), ("ctr", 0o644), ("kubectl", 0o755), ("helm", 0o755)):
        (tmp_path / name).touch(mode)
    found = machine_checks.in_the_way(["."], {})
    assert blocking(found) == ["./runc, ./kubeadm: would be run in place of the release's own"]


def test_another_kubernetes_that_came_without_a_package_is_refused(tmp_path: Path) -> None:
    (tmp_path / "k3s").symlink_to("/nowhere")
    found = machine_checks.in_the_way([], {"k3s": (f"{tmp_path}/k3s", "k3s-uninstall.sh"), "k0s": (f"{tmp_path}/k0s", "k0s reset")})
    assert blocking(found) == [f"k3s is installed on this host ({tmp_path}/k3s)"] and "k3s-uninstall.sh" in found[0].remediation


@pytest.mark.parametrize(("mtu", "words"), [(1500, ""), (9000, ""), (1450, "an MTU of 1450"), (1200, "an MTU of 1200, too small for IPv6")])
def test_a_small_mtu_is_said_and_blocks_nothing(tmp_path: Path, mtu: int, words: str) -> None:
    (tmp_path / "route").write_text(
        "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\nwg0\t0000000A\t0\t1\t0\t0\t0\t000000FF\neth0\t00000000\t010A\t3\t0\t0\t0\t00000000\n"
    )
    for link, text in (("eth0", str(mtu)), ("wg0", "1200")):
        (tmp_path / link).mkdir()
        (tmp_path / link / "mtu").write_text(text)
    found = machine_checks.small_mtu(str(tmp_path / "route"), str(tmp_path))
    assert blocking(found) == [] and [words in item.problem for item in found] == ([True] if words else [])


def test_a_small_mtu_is_said_of_a_host_without_a_default_route_too_and_never_of_a_plugins_link(tmp_path: Path) -> None:
    head, row = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\n", "{}\t0000580A\t0\t1\t0\t0\t0\t00FFFFFF\n"
    (tmp_path / "route").write_text(head + row.format("cilium_host") + row.format("eth0"))
    for link, mtu in (("eth0", "1400"), ("cilium_host", "1350")):
        (tmp_path / link).mkdir()
        (tmp_path / link / "mtu").write_text(mtu)
    assert [item.problem for item in machine_checks.small_mtu(str(tmp_path / "route"), str(tmp_path))] == ["the link eth0 has an MTU of 1400"]


class Packages:
    """A host that has these packages."""

    def __init__(self, **versions: str) -> None:
        self.versions = {name.replace("_", "-"): version for name, version in versions.items()}

    def installed(self, names: list[str]) -> dict[str, str]:
        return {name: self.versions[name] for name in names if name in self.versions}


@pytest.mark.parametrize("name", ["containerd", "docker-ce", "kubelet", "cri-o", "moby-engine"])
def test_a_runtime_or_kubernetes_of_others_is_refused_and_our_own_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(folders, "taken", lambda: [])
    journal = Journal(str(tmp_path / "journal.json"), str(tmp_path / "saved"))
    there = Packages(**{name.replace("-", "_"): "1.0-1"})
    found = preflight.Findings()
    preflight.common(found, journal, there)  # type: ignore[arg-type]
    assert f"a container runtime or Kubernetes is installed already ({name} 1.0-1): remove it, or use another host" in found.lines
    journal.add_packages([name])
    found = preflight.Findings()
    preflight.common(found, journal, there)  # type: ignore[arg-type]
    assert not any("installed already" in line for line in found.lines)


def test_a_kubelet_of_others_and_a_runtime_without_a_package_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "taken", lambda: ["/var/lib/containerd"])
    (tmp_path / "kubelet.conf").touch()
    monkeypatch.setattr(preflight, "KUBELET_CONF", f"{tmp_path}/kubelet.conf")
    found = preflight.Findings()
    preflight.common(found, Journal(str(tmp_path / "journal.json"), str(tmp_path / "saved")), Packages())  # type: ignore[arg-type]
    assert any("this host is already a node" in line and "kubeadm reset" in line for line in found.lines)
    assert any(line.startswith("/var/lib/containerd is not empty: software that was not installed from a package uses it") for line in found.lines)


def test_swap_and_cgroup_v1_are_said_and_block_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "swap_on", lambda: True)
    monkeypatch.setattr(facts, "cgroup_version", lambda: "v1")
    found = preflight.worker(Journal(str(tmp_path / "journal.json"), str(tmp_path / "saved")), Packages())  # type: ignore[arg-type]
    said = {item.problem: item.blocking for item in found.items}
    assert said["swap is on"] is False and said["this host has cgroup v1"] is False


# -- as a whole ----------------------------------------------------------------------------------------------------------


def test_preflight_of_workers_and_of_standalone_clusters_asks_all_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_checks, "findings", lambda host_json="": [Finding(f"odd, says {host_json or 'the default'}", "x")])

    journal = Journal(str(tmp_path / "journal.json"), str(tmp_path / "saved"))
    assert "odd, says the default: x" in preflight.worker(journal, Packages()).lines  # type: ignore[arg-type]
    found = checks.preflight_findings(Options(host_json="/mine.json", advertise_address="10.0.0.5"), journal, Packages())  # type: ignore[arg-type]
    assert "odd, says /mine.json: x" in found.lines


def test_overrides_that_cannot_be_read_are_a_finding(tmp_path: Path) -> None:
    (tmp_path / "host.json").write_text("{")
    found = machine_checks.findings(str(tmp_path / "host.json"))
    assert len(blocking(found)) == 1 and "host.json" in found[0].problem


# -- umask ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def strict_umask() -> object:
    before = os.umask(0o077)
    yield
    os.umask(before)


@pytest.mark.usefixtures("strict_umask")
def test_with_umask_077_what_others_must_read_they_can(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path / "state/journal.json"), str(tmp_path / "state/saved"))
    top = tmp_path / "etc/containerd/certs.d/r"
    journal.replace_file(str(top / "hosts.toml"), "x")
    atomic_write(str(tmp_path / "plain"), "x")
    assert (top / "hosts.toml").stat().st_mode & 0o777 == (tmp_path / "plain").stat().st_mode & 0o777 == 0o644
    assert {folder.stat().st_mode & 0o777 for folder in (top, top.parent, tmp_path / "etc")} == {0o755}
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700, "the agent's own stays its own"
    run(["sh", "-c", f"mkdir {tmp_path}/made && echo x >{tmp_path}/made/by-a-program"], timeout=20)
    assert (tmp_path / "made").stat().st_mode & 0o777 == 0o755 and (tmp_path / "made/by-a-program").stat().st_mode & 0o777 == 0o644


def test_programs_answer_in_english_and_are_found_whatever_the_hosts_environment_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """What they say is read: that dpkg is locked, what apt would install. A language, a short PATH, a proxy for pulls and the user's shell are not theirs."""
    odd = {"LANG": "tr_TR.UTF-8", "LANGUAGE": "tr:de", "LC_MESSAGES": "de_DE", "PATH": "/usr/bin:/bin", "HTTPS_PROXY": "http://p:3128", "SHELL": "/bin/false"}
    for name, value in {**odd, "IFS": "x", "LD_PRELOAD": "", "TZ": "<+14>-14"}.items():
        monkeypatch.setenv(name, value)
    told = dict(line.split("=", 1) for line in run(["env"], timeout=20).stdout.splitlines())
    assert told["LC_ALL"] == "C.UTF-8" and {"/usr/sbin", "/sbin", "/usr/local/sbin"} <= set(told["PATH"].split(":"))
    assert not {"LANG", "LANGUAGE", "LC_MESSAGES", "HTTPS_PROXY", "SHELL", "IFS", "LD_PRELOAD", "TZ"} & set(told)


@pytest.mark.parametrize(("addresses", "refused"), [(("2001:db8::7/64",), True), (("2001:db8::7/64", "10.0.0.7/24"), False), ((), False)])
def test_a_host_without_an_address_of_ipv4_is_refused(monkeypatch: pytest.MonkeyPatch, addresses: tuple[str, ...], refused: bool) -> None:
    """None at all is what a host has for a moment at its start, and no finding."""
    monkeypatch.setattr(facts, "addresses", lambda: addresses)
    found = preflight.Findings()
    preflight.address(found)
    assert [(item.problem, item.blocking) for item in found.items] == ([("this host has no IPv4 address", True)] if refused else [])
