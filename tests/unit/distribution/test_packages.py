"""The packages of the release: what users of upstream's expect of them, versions that sort, licences, signatures, the same bytes twice."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckp.clients.signing.openpgp import SigningKey
from ckp.distribution.builder.component import Built
from ckp.distribution.packages import completions, debs, licences, rpm_payload
from ckp.distribution.packages import pack as packages
from ckp.distribution.packages.agent import agent_version, build_zipapp
from ckp.distribution.packages.completions import Shell
from ckp.distribution.packages.pack import Format, Package, Recipe, copy_packages, make_package, pack_unsigned
from ckp.kits import paths
from ckp.kits.errors import CkpError, InvalidInput
from ckp.kits.processes import run
from ckp.verify import rpmfile
from ckp.verify.packages import verify_package
from tests.support import release_packages
from tests.support.checkout import REPO
from tests.support.release_packages import FORMATS, NAMES, OWN, extras, unsigned, version_of
from tests.support.signing_keys import signing_key

OWNER = "Coredge.io CKP packages <support@coredge.io>"
PLUGINS = (
    *("bandwidth", "bridge", "dhcp", "dummy", "firewall", "host-device", "host-local", "ipvlan", "loopback"),
    *("macvlan", "portmap", "ptp", "sbr", "static", "tap", "tuning", "vlan", "vrf"),
)
UNITS = "/usr/lib/systemd/system"


@pytest.fixture(scope="session")
def built() -> dict[str, Built]:
    return release_packages.built_release()


@pytest.fixture(scope="session")
def key(tmp_path_factory: pytest.TempPathFactory) -> SigningKey:
    return signing_key(tmp_path_factory.mktemp("keys") / "keys")


@pytest.fixture
def packed(built: dict[str, Built]) -> Callable[[str, Format], Package]:
    return lambda name, format: unsigned(name, built, format)


@cache
def paths_of(package: Package) -> dict[str, str]:
    """Every path in a package with its mode as `ls -l` writes it, as dpkg-deb or rpm say."""
    if package.format == "deb":
        lines = run(["dpkg-deb", "--contents", package.path], timeout=60).stdout.splitlines()
        return {line.split(maxsplit=5)[5].split(" -> ")[0].lstrip(".").rstrip("/"): line.split()[0] for line in lines}
    lines = run(["rpm", "-qplv", "--nosignature", package.path], timeout=60).stdout.splitlines()
    return {line.split(maxsplit=8)[8].split(" -> ")[0]: line.split()[0] for line in lines}


def text_in(package: Package, path: str) -> str:
    """A text file's content out of a package."""
    if package.format == "deb":
        data = subprocess.run(["dpkg-deb", "--fsys-tarfile", package.path], capture_output=True, check=True).stdout
        names = {f".{path}"}
    else:
        data = subprocess.run(["rpm2archive", "-n", "-"], stdin=package.path.open("rb"), capture_output=True, check=True).stdout
        names = {f".{path}", path, path.lstrip("/")}
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        member = next(item for item in archive if item.name in names)
        content = archive.extractfile(member)
        assert content is not None
        return content.read().decode()


def field(package: Package, name: str) -> str:
    """A field of the deb's control file, or a tag of the rpm's header (one line each)."""
    if package.format == "deb":
        return run(["dpkg-deb", "--field", package.path, name], timeout=60).stdout.strip()
    return run(["rpm", "-qp", "--nosignature", "--qf", f"[%{{{name}}}\n]", package.path], timeout=60).stdout.strip()


# -- what is in them -----------------------------------------------------------------------------------------------------


UPSTREAM_FILES: dict[str, list[str]] = {
    "kubeadm": ["/usr/bin/kubeadm", f"{UNITS}/kubelet.service.d/10-kubeadm.conf"],
    "kubelet": ["/usr/bin/kubelet", f"{UNITS}/kubelet.service", "/var/lib/kubelet", "/etc/kubernetes/manifests"],
    "kubectl": ["/usr/bin/kubectl"],
    "cri-tools": ["/usr/bin/crictl"],
    "kubernetes-cni": ["/etc/cni/net.d", *(f"/opt/cni/bin/{name}" for name in PLUGINS)],
    "containerd": ["/usr/bin/containerd", "/usr/bin/containerd-shim-runc-v2", "/usr/bin/ctr", "/usr/bin/runc", "/etc/containerd/config.toml"],
    "helm": ["/usr/bin/helm"],
    "ckp-agent": ["/usr/bin/ckp-agent", "/usr/share/ckp-agent/trusted.gpg", f"{UNITS}/ckp-agent.service"],
}
"""Where kubernetes/release (cmd/krel/templates/latest) and containerd's packages of Debian and Docker put what their users look for."""


@pytest.mark.release
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", NAMES)
def test_files_lie_where_users_of_upstreams_packages_look_for_them(packed: Callable[[str, Format], Package], name: str, format: Format) -> None:
    found = paths_of(packed(name, format))
    wanted = [*UPSTREAM_FILES[name], *({"deb": ["/etc/default/kubelet"], "rpm": ["/etc/sysconfig/kubelet"]}[format] if name == "kubelet" else [])]
    assert [path for path in wanted if path not in found] == []
    programs = [path for path in wanted if "/bin/" in path]
    assert all(found[path] in ("-rwxr-xr-x", "lrwxrwxrwx", "l---------") for path in programs), found
    assert not [path for path, mode in found.items() if "s" in mode or "t" in mode or (mode[8] == "w" and mode[0] != "l")], "set-id or writable by all"
    licence = f"/usr/share/doc/{name}/copyright" if format == "deb" else f"/usr/share/licenses/{name}/LICENSE"
    assert licence in found and str(Path(licence).parent / "THIRD_PARTY") in found


@pytest.mark.release
@pytest.mark.parametrize("format", FORMATS)
def test_no_two_packages_hold_the_same_file(packed: Callable[[str, Format], Package], format: Format) -> None:
    owners: dict[str, str] = {}
    for name in OWN:
        for path, mode in paths_of(packed(name, format)).items():
            if mode[0] != "d":
                assert path not in owners, f"{path} is in {owners.get(path)} and {name}"
                owners[path] = name


@pytest.mark.release
@pytest.mark.parametrize(("format", "place"), [("deb", "/etc/default/kubelet"), ("rpm", "/etc/sysconfig/kubelet")])
def test_the_drop_in_is_kubeadms_and_reads_the_file_that_the_kubelet_package_brings(
    packed: Callable[[str, Format], Package], format: Format, place: str
) -> None:
    drop_in = text_in(packed("kubeadm", format), f"{UNITS}/kubelet.service.d/10-kubeadm.conf")
    assert f"EnvironmentFile=-{place}\n" in drop_in and place in paths_of(packed("kubelet", format))
    assert "EnvironmentFile=-/var/lib/kubelet/kubeadm-flags.env\n" in drop_in
    assert "$KUBELET_KUBECONFIG_ARGS $KUBELET_CONFIG_ARGS $KUBELET_KUBEADM_ARGS $KUBELET_EXTRA_ARGS" in drop_in
    assert not [path for path in paths_of(packed("kubelet", format)) if path.endswith("10-kubeadm.conf")]


@pytest.mark.release
@pytest.mark.parametrize(
    ("name", "deb", "rpm"),
    [("kubelet", "/etc/default/kubelet", "/etc/sysconfig/kubelet"), ("containerd", "/etc/containerd/config.toml", "/etc/containerd/config.toml")],
)
def test_what_the_owner_writes_into_a_configuration_is_kept(packed: Callable[[str, Format], Package], name: str, deb: str, rpm: str) -> None:
    assert run(["dpkg-deb", "--info", packed(name, "deb").path, "conffiles"], timeout=60).stdout.split() == [deb]
    flags = run(["rpm", "-qp", "--nosignature", "--qf", "[%{FILENAMES} %{FILEFLAGS:fflags}\n]", packed(name, "rpm").path], timeout=60).stdout
    assert [line.split() for line in flags.splitlines() if "c" in line.split()[-1] and line.split()[-1] != line.split()[0]][:1] == [[rpm, "cn"]]


@pytest.mark.release
def test_dependencies_are_those_of_upstream_and_what_kubeadm_looks_for(packed: Callable[[str, Format], Package]) -> None:
    kubelet = re.split(r",\s*", field(packed("kubelet", "deb"), "Depends"))
    assert {"iptables (>= 1.4.21)", "kubernetes-cni (>= 1.2.0)", "mount", "iproute2", "ethtool", "socat", "conntrack"} == set(kubelet)
    required = field(packed("kubelet", "rpm"), "REQUIRENEVRS").splitlines()
    assert {"iptables >= 1.4.21", "kubernetes-cni >= 1.2.0", "util-linux", "iproute", "iproute-tc", "ethtool", "socat", "conntrack-tools"} <= set(required)
    assert field(packed("kubeadm", "deb"), "Depends") == "", "kubeadm of pkgs.k8s.io has depended on nothing since v1.32"
    assert field(packed("containerd", "deb"), "Provides") == "runc (= 1.1.10)"
    assert "runc = 1.1.10" in field(packed("containerd", "rpm"), "PROVIDENEVRS").splitlines()
    assert set(field(packed("containerd", "deb"), "Conflicts").split(", ")) == {"containerd.io", "runc"}
    assert field(packed("containerd", "rpm"), "OBSOLETENEVRS") in ("", "(none)"), "a host with Docker must not lose its runtime by an upgrade"


@pytest.mark.release
@pytest.mark.parametrize("name", OWN)
def test_they_say_who_made_them_and_nothing_of_the_machine(packed: Callable[[str, Format], Package], built: dict[str, Built], name: str) -> None:
    deb, rpm, version = packed(name, "deb"), packed(name, "rpm"), version_of(name, built)
    assert (field(deb, "Maintainer"), field(deb, "Version"), field(deb, "Architecture")) == ("Coredge.io <support@coredge.io>", version, "amd64")
    assert (field(rpm, "PACKAGER"), field(rpm, "VENDOR")) == ("Coredge.io <support@coredge.io>", "Coredge.io")
    assert (field(rpm, "VERSION"), field(rpm, "RELEASE"), field(rpm, "ARCH")) == (*version.rsplit("-", 1), "x86_64")
    assert (field(rpm, "BUILDHOST"), field(rpm, "BUILDTIME")) == ("ckp.invalid", debs.SOURCE_DATE)
    assert set(field(rpm, "FILEMTIMES").split()) <= {debs.SOURCE_DATE}
    assert f"{version}\n" in field(rpm, "CHANGELOGNAME") + "\n"


@pytest.mark.release
@pytest.mark.parametrize("name", ["kubelet", "ckp-agent"])
def test_the_data_is_packed_by_zstd_and_what_the_agent_reads_by_gzip(packed: Callable[[str, Format], Package], name: str) -> None:
    members = debs.ar_members(packed(name, "deb").path.read_bytes())
    assert [member for member, _ in members] == ["debian-binary", "control.tar.gz", "data.tar.zst"]
    assert field(packed(name, "rpm"), "PAYLOADCOMPRESSOR") == "zstd"


# -- scripts and completions ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", sorted(Path(REPO / "packaging").glob("*/**/*.sh")), ids=lambda path: str(path.relative_to(path.parents[2])))
def test_maintainer_scripts_are_shell_of_any_kind(script: Path) -> None:
    run(["dash", "-n", script], timeout=20)
    run(["bash", "--posix", "-n", script], timeout=20)


def test_the_kubelet_is_never_started_or_restarted_by_its_package() -> None:
    folder = Recipe.read("kubelet").folder
    for script in [*folder.glob("deb/*.sh"), *folder.glob("rpm/*.sh")]:
        commands = "\n".join(line for line in script.read_text().splitlines() if not line.lstrip().startswith("#"))
        assert not re.search(r"\b(re|try-re)?start\b", commands.replace("deb-systemd-invoke stop", "")), script


@pytest.mark.release
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_can_read_its_completions(packed: Callable[[str, Format], Package], shell: Shell, tmp_path: Path) -> None:
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"{shell} is not installed, and only it can judge")
    seen = []
    for name, command in (("kubeadm", "kubeadm"), ("kubectl", "kubectl"), ("cri-tools", "crictl"), ("helm", "helm")):
        for format in FORMATS:
            place = completions.FOLDERS[format][shell].format(command)
            if place in paths_of(packed(name, format)):
                file = tmp_path / f"{command}.{format}"
                file.write_text(text_in(packed(name, format), place))
                assert command in file.read_text()
                run([program, "--no-execute" if shell == "fish" else "-n", file], timeout=60)
                seen.append((command, format))
    wanted = ["kubectl", "crictl", "helm", *(["kubeadm"] if shell != "fish" else [])]
    assert sorted(seen) == sorted((command, format) for command in wanted for format in FORMATS)


def test_a_program_without_completions_is_told_by_name(tmp_path: Path) -> None:
    silent = tmp_path / "silent"
    silent.write_text("#!/bin/sh\n")
    silent.chmod(0o755)
    with pytest.raises(CkpError, match="silent completion bash printed nothing"):
        completions.completion(silent, "bash")


# -- licences ------------------------------------------------------------------------------------------------------------


@pytest.mark.release
@pytest.mark.parametrize(
    ("name", "role", "program"), [("kubelet", "kubernetes", "kubelet"), ("containerd", "runc", "runc"), ("cri-tools", "cri-tools", "crictl")]
)
def test_every_linked_module_is_listed_with_its_text(
    packed: Callable[[str, Format], Package], built: dict[str, Built], name: str, role: str, program: str
) -> None:
    listed = text_in(packed(name, "deb"), f"/usr/share/doc/{name}/THIRD_PARTY")
    assert listed == text_in(packed(name, "rpm"), f"/usr/share/licenses/{name}/THIRD_PARTY")
    raw = built[role].binary(program).read_bytes()
    linked = {match[1].decode() for match in re.finditer(rb"\n(?:dep|mod)\t([^\t\n]+)\t", raw)}
    assert len(linked) > 10
    modules = re.findall(r"^Module: (\S+)\nVersion: \S+\n(?:Sum: h1:\S+\n)?Licence-Files:\n((?: \S.* = text \w+\n)+)", listed, re.M)
    assert linked <= {module for module, _ in modules}
    texts = set(re.findall(r"^Text (\w+), of \d+ files?:$", listed, re.M))
    assert {text for _, files in modules for text in re.findall(r"= text (\w+)", files)} == texts
    assert ("Module: std\nVersion: go" in listed) and "Redistribution and use in source and binary forms" in listed


@pytest.mark.release
def test_libraries_in_c_and_bundled_python_are_listed_too(packed: Callable[[str, Format], Package]) -> None:
    assert "Library: libseccomp" in (text := text_in(packed("containerd", "deb"), "/usr/share/doc/containerd/THIRD_PARTY"))
    assert "GNU LESSER GENERAL PUBLIC LICENSE" in text
    assert "Module: pypi:websockets" in text_in(packed("ckp-agent", "deb"), "/usr/share/doc/ckp-agent/THIRD_PARTY")


def test_a_replaced_module_is_named_by_what_replaces_it() -> None:
    said = (
        "crictl: go1.22.1\n\tpath\ta/b\n\tmod\ta/b\tv1.0.0\n\t=>\tc/d\tv1.2.0\th1:x=\n\tdep\te/f\tv0.1.0\th1:y=\n"
        "\tdep\tg/h\tv9\n\t=>\t./here\t(devel)\n\tbuild\tCGO_ENABLED=0\n"
    )
    assert licences.linked_modules(said) == {"a/b": ("v1.2.0", "h1:x="), "e/f": ("v0.1.0", "h1:y="), "g/h": ("(devel)", "")}


def test_a_source_without_a_licence_is_not_packaged(tmp_path: Path) -> None:
    (tmp_path / "testdata").mkdir()
    (tmp_path / "testdata" / "LICENSE").write_text("of something else")
    (tmp_path / "licenses.go").write_text("package licenses")
    with pytest.raises(CkpError, match="the source of a/b v1 has no licence file"):
        licences._texts(tmp_path, "a/b v1")
    (tmp_path / "LICENSE.md").write_bytes(b"do\r\nas you like\xff")
    assert licences._texts(tmp_path, "a/b v1") == (("LICENSE.md", "do\nas you like\ufffd"),)


def test_a_licence_that_debian_does_not_keep_is_written_out() -> None:
    origin = {"name": "x", "version": "v1", "source": "https://example.org", "holder": "2026 X", "licence": "MIT", "text": "Permission\n\nis granted\n"}
    text = debs.copyright_file("x", [origin])
    assert "License: MIT\n Permission\n .\n is granted\n" in text and "common-licenses" not in text


# -- versions ------------------------------------------------------------------------------------------------------------


def dpkg_says(first: str, relation: str, second: str) -> bool:
    return run(["dpkg", "--compare-versions", first, relation, second], timeout=20, check=False).code == 0


def rpm_compares(pairs: list[tuple[str, str]]) -> list[int]:
    """What rpm says of each pair: -1, 0 or 1. The program `rpm` itself, many pairs at a time."""
    lua = " ".join(f'print(rpm.vercmp("{first}", "{second}") .. " ")' for first, second in pairs)
    return [int(word) for word in run(["rpm", "--eval", f"%{{lua: {lua}}}"], timeout=20).stdout.split()]


NUMBERS = st.tuples(st.integers(0, 3), st.integers(0, 40), st.integers(0, 40))


@settings(max_examples=25, deadline=None)
@given(st.lists(NUMBERS, min_size=2, max_size=12, unique=True))
def test_versions_sort_alike_under_dpkg_rpm_and_semver(numbers: list[tuple[int, int, int]]) -> None:
    ordered = [f"{'.'.join(map(str, item))}-ckp" for item in sorted(numbers)]
    neighbours = list(pairwise(ordered))
    assert all(dpkg_says(low, "lt", high) for low, high in neighbours)
    assert rpm_compares(neighbours) == [-1] * len(neighbours)


@pytest.mark.parametrize(("low", "high"), [("1.9.0-ckp", "1.10.0-ckp"), ("1.35.1-ckp", "1.35.2-ckp"), ("0.9.0+4294967295-ckp", "0.10.0+1-ckp")])
def test_versions_that_sort_wrong_as_text_sort_right(low: str, high: str) -> None:
    assert dpkg_says(low, "lt", high) and rpm_compares([(low, high)]) == [-1]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_two_agents_of_one_version_are_ordered_alike_by_both(first: int, second: int) -> None:
    one, other = f"0.1.0+{first}-ckp", f"0.1.0+{second}-ckp"
    assert [dpkg_says(one, "gt", other) - dpkg_says(one, "lt", other)] == rpm_compares([(one, other)])


def test_against_upstreams_the_same_version_is_newer_for_dpkg_and_older_for_rpm() -> None:
    assert dpkg_says("1.35.1-ckp", "gt", "1.35.1-1.1") and dpkg_says("1.35.2-1.1", "gt", "1.35.1-ckp")
    assert dpkg_says("1.7.28-ckp", "gt", "1.7.28-0ubuntu1~24.04.1") and dpkg_says("1.3.0-ckp", "lt", "1.8.0-1.1")
    assert rpm_compares([("1.35.1-ckp", "1.35.1-150500.1.1"), ("1.35.1-ckp", "1.35.2-150500.1.1")]) == [-1, -1]
    assert rpm_compares([("1.35.2-ckp", "1.35.1-150500.1.1")]) == [1]


@pytest.mark.release
@pytest.mark.parametrize(
    "version", ["", "1.35.1", "v1.35.1-ckp", "1.35.1-", "1.35.1-ckp-2", "1:1.35.1-ckp", "1.35.1_ckp", "1.35.1-CKP", "1.35.1-rc.1-ckp", "1.35.1-ckp\n"]
)
def test_a_version_that_would_not_sort_is_refused(built: dict[str, Built], key: SigningKey, version: str) -> None:
    with pytest.raises(InvalidInput, match="is not a version of a package"):
        make_package(Recipe.read("helm"), version, built, built["nfpm"].binary("nfpm"), key)


def test_another_keyring_is_another_version_of_the_agent(tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(b"one")
    (tmp_path / "other").write_bytes(b"other")
    first, second = agent_version(tmp_path / "one"), agent_version(tmp_path / "other")
    assert first != second == agent_version(tmp_path / "other")
    assert packages.VERSION.fullmatch(first) and packages.VERSION.fullmatch(second)


# -- packing and signing -------------------------------------------------------------------------------------------------


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Another time zone, umask, language, user's settings and number of threads; the cache stays where it is."""
    monkeypatch.setenv("CKP_CACHE", str(paths.cache()))
    for name, value in (("TZ", "Pacific/Kiritimati"), ("LC_ALL", "C"), ("GOMAXPROCS", "7"), ("HOME", str(tmp_path)), ("KUBECONFIG", "/x"), ("HELM_BIN", "x")):
        monkeypatch.setenv(name, value)
    before = os.umask(0o077)
    yield
    os.umask(before)


@pytest.mark.release
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", ["ckp-agent", "kubeadm"])
def test_the_same_input_gives_the_same_bytes(
    packed: Callable[[str, Format], Package],
    built: dict[str, Built],
    name: str,
    format: Format,
    tmp_path: Path,
    elsewhere: None,
) -> None:
    again = tmp_path / "again"
    pack_unsigned(Recipe.read(name), version_of(name, built), built, built["nfpm"].binary("nfpm"), again, extra=extras(name), format=format)
    assert again.read_bytes() == packed(name, format).path.read_bytes()


@pytest.mark.release
@pytest.mark.parametrize("format", FORMATS)
def test_a_signed_package_is_verified_and_found_again(built: dict[str, Built], key: SigningKey, format: Format) -> None:
    nfpm = built["nfpm"].binary("nfpm")
    extra = {"ckp-agent": build_zipapp(), "trusted.gpg": key.keyring}
    made = make_package(Recipe.read("ckp-agent"), agent_version(key.keyring), built, nfpm, key, extra=extra, format=format)
    try:
        info = verify_package(str(made.path), str(key.keyring), name="ckp-agent", version=made.version, architecture="amd64")
        assert info.maintainer in ("Coredge.io <support@coredge.io>", "Coredge.io")
        before = made.path.stat()
        assert make_package(Recipe.read("ckp-agent"), agent_version(key.keyring), built, nfpm, key, extra=extra, format=format) == made
        assert made.path.stat().st_mtime_ns == before.st_mtime_ns, "it was packed again"
        assert [path.name for path in made.path.parent.iterdir()] == [f"ckp-agent.{format}"]
    finally:
        shutil.rmtree(made.path.parent)
        made.path.parent.with_name(made.path.parent.name + ".lock").unlink()


def test_packages_have_canonical_names_and_plain_ones_in_a_bundle(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"x")
    pair = [Package("kubelet", "1.35.1-ckp", tmp_path / "x", "", "deb"), Package("kubelet", "1.35.1-ckp", tmp_path / "x", "", "rpm")]
    assert [package.file_name for package in pair] == ["kubelet_1.35.1-ckp_amd64.deb", "kubelet-1.35.1-ckp.x86_64.rpm"]
    copy_packages(pair, tmp_path / "bundle")
    copy_packages(pair, tmp_path / "bundle")
    assert sorted(path.name for path in (tmp_path / "bundle").iterdir()) == ["kubelet.deb", "kubelet.rpm"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('summary = "x"\n', "description: Field required"),
        ('summary = "x"\ndescription = "x"\ncopyright = {}\ndepend = ["y"]\n', "depend: unknown key; write one of: completions, contents, copyright"),
        ('summary = "x"\ndescription = "x"\ncopyright = {}\n[deb]\nscripts = { postinst = "x" }\n', "deb.scripts.postinst"),
        ("summary = \n", "cannot be read"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused_by_file_and_field(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, said: str) -> None:
    (tmp_path / "packaging" / "x").mkdir(parents=True)
    (tmp_path / "packaging" / "x" / "package.toml").write_text(text)
    monkeypatch.setattr(paths, "data", tmp_path.joinpath)
    with pytest.raises(InvalidInput) as caught:
        Recipe.read("x")
    assert "packaging/x/package.toml" in caught.value.brief and said in f"{caught.value}"


@pytest.mark.release
def test_an_rpm_s_payload_unpacks_below_where_one_stands(packed: Callable[[str, Format], Package], tmp_path: Path) -> None:
    """`rpm2cpio X | cpio -id` is how people look into an rpm; with absolute paths it would write into their own machine."""
    package = packed("kubelet", "rpm")
    with package.path.open("rb") as stream:
        start = rpmfile.parse(stream, package.path.stat().st_size).payload_start
    (tmp_path / "payload.zst").write_bytes(package.path.read_bytes()[start:])
    run(["zstd", "-dq", tmp_path / "payload.zst"], timeout=60)
    names = cpio_names((tmp_path / "payload").read_bytes())
    assert names[-1] == "TRAILER!!!"
    assert "./usr/bin/kubelet" in names
    assert all(name.startswith("./") for name in names[:-1])
    assert rpm_payload.relative((tmp_path / "payload").read_bytes()) == (tmp_path / "payload").read_bytes(), "once more changes nothing"


def cpio_names(archive: bytes) -> list[str]:
    """Names in a cpio archive, read independently of how it is written: by their headers' magic."""
    names, position = [], 0
    while position < len(archive):
        head = archive[position : position + 110].decode()
        assert head.startswith("070701")
        size, name_size = int(head[54:62], 16), int(head[94:102], 16)
        names.append(archive[position + 110 : position + 110 + name_size - 1].decode())
        if names[-1] == "TRAILER!!!":
            break
        data = (position + 110 + name_size + 3) // 4 * 4
        position = (data + size + 3) // 4 * 4
    return names
