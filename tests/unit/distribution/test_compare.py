"""Comparison with upstream: what is the same is shown by hashes, what is not is named, and nothing differs without a word."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from ckp.catalog.models import Source
from ckp.cli.distribution import evidence as transparency
from ckp.distribution.builder.gobuildinfo import BuildInfo, Module, parse
from ckp.distribution.prove.compare import (
    Check,
    Comparison,
    check_flags,
    check_lock,
    check_modules,
    check_stamps,
    check_toolchain,
    compare,
    compare_programs,
    kubernetes_flags,
    table_rows,
)
from ckp.distribution.prove.upstream import Upstream, read_upstream, run_time_defaults, tree_differences, zip_sum
from ckp.kits.errors import InvalidInput, VerificationFailed
from tests.support.built_release import built_release

MAIN = Module("k8s.io/kubernetes", "v1.35.1", "h1:main")
SCRIPT = """
readonly KUBE_STATIC_BINARIES=(
  kube-apiserver
  kubeadm
)
      goldflags="${goldflags} -s -w"
      goflags+=("-trimpath")
      grpcnotrace=",grpcnotrace"
  gotags="selinux,notest${grpcnotrace},$(echo)"
"""
STAGING = {"k8s.io/api": ("./staging/src/k8s.io/api", "")}
SETTINGS = {"-trimpath": "true", "-tags": "selinux,notest,grpcnotrace", "CGO_ENABLED": "0", "GOOS": "linux"}


def info(*modules: Module, go: str = "1.25.6", main: Module = MAIN, settings: Mapping[str, str] = SETTINGS) -> BuildInfo:
    return BuildInfo(go, main.path, main, modules, settings)


def upstream(
    requires: Mapping[str, str] | None = None,
    replaces: Mapping[str, tuple[str, str]] | None = None,
    sums: Mapping[tuple[str, str], str] | None = None,
    *,
    go: str = "1.25.6",
    main: Module = MAIN,
) -> Upstream:
    return Upstream(main, requires or {}, replaces or {}, sums or {}, go, "1.25", {"hack/lib/golang.sh": SCRIPT})


def source(folder: Path, **fields: Any) -> Source:
    base: dict[str, Any] = {
        "component": "kubernetes",
        "version": "v1.35.1",
        "modules": ("k8s.io/kubernetes@v1.35.1",),
        "go": "1.25.6",
        "license": "Apache-2.0",
        "upstream": "github.com/kubernetes/kubernetes",
        "date": "2026-02-10T19:06:03Z",
        "tags": ("selinux",),
        "binaries": ({"name": "kubelet", "package": "k8s.io/kubernetes/cmd/kubelet"},),
        "folder": folder,
    }
    return Source(**{**base, **fields})


# -- modules -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "requires", "replaces", "sums", "verdict"),
    [
        (Module("a.b/c", "v1.0.0", "h1:x"), {"a.b/c": "v1.0.0"}, {}, {("a.b/c", "v1.0.0"): "h1:x"}, "identical"),
        (Module("a.b/c", "v1.0.1", "h1:x"), {"a.b/c": "v1.0.0"}, {}, {("a.b/c", "v1.0.1"): "h1:x"}, "differs"),
        (Module("a.b/c", "v1.0.0", "h1:y"), {"a.b/c": "v1.0.0"}, {}, {("a.b/c", "v1.0.0"): "h1:x"}, "differs"),
        (Module("a.b/c", "v1.0.0", "h1:x"), {"a.b/c": "v1.0.0"}, {}, {}, "differs"),
        (Module("evil.example/c", "v1.0.0", "h1:x", "a.b/c@v1.0.0"), {"a.b/c": "v1.0.0"}, {}, {("a.b/c", "v1.0.0"): "h1:x"}, "differs"),
        (Module("d.e/f", "v2.0.0", "h1:z", "a.b/c@v1.0.0"), {"a.b/c": "v1.0.0"}, {"a.b/c": ("d.e/f", "v2.0.0")}, {("d.e/f", "v2.0.0"): "h1:z"}, "identical"),
        (Module("a.b/c", "v1.0.0", "h1:x"), {}, {}, {("a.b/c", "v1.0.0"): "h1:x"}, "identical"),
        (Module("a.b/c", "v1.0.0", "h1:x"), {}, {}, {}, "differs"),
        (Module("k8s.io/api", "v0.35.1", "h1:x", "k8s.io/api@v0.0.0"), {"k8s.io/api": "v0.0.0"}, STAGING, {}, "staging"),
        (Module("k8s.io/api", "v0.35.2", "h1:x", "k8s.io/api@v0.0.0"), {"k8s.io/api": "v0.0.0"}, STAGING, {}, "differs"),
    ],
)  # fmt: skip
def test_a_modules_version_and_hash_are_upstreams_or_it_is_named(
    module: Module, requires: dict[str, str], replaces: dict[str, tuple[str, str]], sums: dict[tuple[str, str], str], verdict: str
) -> None:
    (check,) = check_modules(info(module), upstream(requires, replaces, sums))
    assert check.verdict == verdict
    assert str(module) in check.ours


@pytest.mark.parametrize(
    ("main", "path", "required", "published"),
    [
        (MAIN, "k8s.io/api", "v0.0.0", "v0.35.1"),
        (Module("go.etcd.io/etcd/server/v3", "v3.5.15"), "go.etcd.io/etcd/api/v3", "v3.5.15", "v3.5.15"),
        (Module("go.etcd.io/etcd/server/v3", "v3.5.15"), "go.etcd.io/etcd/client/v2", "v2.305.15", "v2.305.15"),
        (Module("sigs.k8s.io/apiserver-network-proxy", "v0.34.0"), "sigs.k8s.io/apiserver-network-proxy/konnectivity-client", "v0.31.0", "v0.34.0"),
    ],
)
def test_a_folder_of_upstreams_tree_is_published_with_the_trees_own_version(main: Module, path: str, required: str, published: str) -> None:
    assert upstream({path: required}, {path: ("./folder", "")}, main=main).expected(path) == (path, published, True)


def test_the_lock_must_have_each_module_at_its_hash(tmp_path: Path) -> None:
    (tmp_path / "go.sum").write_text("k8s.io/kubernetes v1.35.1 h1:main\na.b/c v1.0.0 h1:x\n")
    good = info(Module("a.b/c", "v1.0.0", "h1:x"))
    assert {check.verdict for check in check_lock(good, source(tmp_path))} == {"identical"}
    for module in (Module("a.b/c", "v1.0.0", "h1:y"), Module("a.b/d", "v1.0.0", "h1:x"), Module("a.b/e", "v1.0.0")):
        bad = [check for check in check_lock(info(module), source(tmp_path)) if check.verdict == "differs"]
        assert [check.name for check in bad] == [str(module)]
    other = info(main=Module("k8s.io/kubernetes", "v1.35.2", "h1:main"))
    assert [check.name for check in check_lock(other, source(tmp_path)) if check.verdict == "differs"] == ["main module", "k8s.io/kubernetes@v1.35.2"]


def test_replaced_modules_are_read_with_what_they_replace() -> None:
    found = parse(
        {
            "GoVersion": "go1.25.6",
            "Path": "p",
            "Main": {"Path": "m", "Version": "v1", "Sum": "h1:m"},
            "Deps": [{"Path": "a", "Version": "v1", "Replace": {"Path": "b", "Version": "v2", "Sum": "h1:b"}}],
            "Settings": [{"Key": "-tags", "Value": "x"}],
        }
    )
    assert found.modules == (Module("b", "v2", "h1:b", "a@v1"),)
    assert found.settings == {"-tags": "x"}
    with pytest.raises(InvalidInput, match="not build info"):
        parse({"Path": "p"})


# -- toolchain, defaults, flags, stamps --------------------------------------------------------------------------------


def test_the_toolchain_is_the_locks_and_upstreams(tmp_path: Path) -> None:
    assert check_toolchain(info(), source(tmp_path), upstream()).verdict == "identical"
    assert check_toolchain(info(), source(tmp_path), upstream(go="1.25.7")).verdict == "differs"
    assert check_toolchain(info(), source(tmp_path), upstream(go="")).verdict == "not stated"
    assert check_toolchain(info(go="1.25.5"), source(tmp_path), upstream(go="1.25.5")).verdict == "differs"


@pytest.mark.parametrize(
    ("mod", "version"),
    [
        ({"Go": "1.25.0"}, "1.25"),
        ({"Go": "1.25.0", "Godebug": [{"Key": "default", "Value": "go1.24"}]}, "1.24"),
        ({"Go": "1.25.0", "Godebug": [{"Key": "panicnil", "Value": "1"}]}, "1.25"),
        ({"Go": "1.17"}, "1.20"),
        ({}, "1.20"),
    ],
)
def test_run_time_defaults_follow_go_mod(mod: dict[str, Any], version: str) -> None:
    assert run_time_defaults(mod) == version


def flags(program: str, tmp_path: Path, **settings: str) -> dict[str, str]:
    checks = check_flags(program, info(settings={**SETTINGS, **settings}), source(tmp_path), "v1.35.1-ckp", upstream())
    return {check.name: check.verdict for check in checks}


def test_flags_are_upstreams_and_what_differs_by_intent_is_said_so(tmp_path: Path) -> None:
    same = {"-trimpath": "identical", "-tags": "identical", "CGO_ENABLED": "identical", "-ldflags": "identical"}
    assert flags("kubeadm", tmp_path) == same
    assert flags("kubelet", tmp_path) == {**same, "CGO_ENABLED": "deliberate"}
    assert flags("kubeadm", tmp_path, **{"-tags": "selinux,notest"}) == {**same, "-tags": "differs"}
    assert flags("kubeadm", tmp_path, **{"-tags": "notest,grpcnotrace,selinux"}) == same, "the order of tags means nothing"
    assert flags("kubeadm", tmp_path, CGO_ENABLED="1") == {**same, "CGO_ENABLED": "differs"}


def test_a_script_that_we_cannot_read_is_no_proof() -> None:
    assert kubernetes_flags("kubeadm", "# nothing") == {}


def test_stamps_are_listed_with_both_values(tmp_path: Path) -> None:
    stamps = ("-X p.gitVersion={stamp}", "-X p.gitMajor=1", "-X p.commit={commit}", "-X p.date={date}", "-X 'p.text=a b {date}'")
    found = {check.name: (check.ours, check.upstream, check.verdict) for check in check_stamps(source(tmp_path, ldflags=stamps), "v1.35.1-ckp")}
    assert found["p.gitVersion"] == ("v1.35.1-ckp", "v1.35.1", "stamp")
    assert found["p.gitMajor"] == ("1", "1", "identical")
    assert found["p.commit"][2] == "stamp"
    assert found["p.text"] == ("a b 2026-02-10T19:06:03Z", "", "stamp")
    assert len(found) == len(stamps)


# -- beside a program of upstream's ------------------------------------------------------------------------------------


def verdicts(checks: list[Check]) -> dict[str, str]:
    return {check.name: check.verdict for check in checks}


def test_two_programs_side_by_side() -> None:
    word = upstream({"k8s.io/api": "v0.0.0"}, {"k8s.io/api": ("./staging/src/k8s.io/api", "")})
    ours = info(Module("k8s.io/api", "v0.35.1", "h1:x", "k8s.io/api@v0.0.0"), Module("a.b/c", "v1.0.0", "h1:c"), Module("only/ours", "v1.0.0", "h1:o"))
    theirs = info(
        Module("k8s.io/api", "v0.0.0"),
        Module("a.b/c", "v1.0.0", "h1:d"),
        main=replace(MAIN, version="(devel)", sum=""),
        go="1.25.5",
        settings={**SETTINGS, "-tags": "selinux", "CGO_ENABLED": "1", "vcs.revision": "abc"},
    )
    found = verdicts(compare_programs("kubelet", ours, theirs, word))
    assert found["k8s.io/api"] == "staging"
    assert found["a.b/c"] == found["only/ours"] == found["Go"] == found["-tags"] == "differs"
    assert found["k8s.io/kubernetes"] == "identical"
    assert found["CGO_ENABLED"] == "deliberate"
    assert found["vcs.revision"] == "not stated"
    assert set(verdicts(compare_programs("kubelet", ours, ours, word)).values()) == {"identical"}


def test_a_table_counts_what_is_good() -> None:
    checks = (Check("module", "a", "", "", "identical"), Check("module", "b", "", "", "staging"), Check("module", "c", "", "", "differs"))
    (row,) = table_rows([Comparison("kubelet", "kubernetes v1", MAIN, "1.25.6", checks)])
    assert (row["modules"], row["verdict"]) == ("2/3 (1 staging)", "1 differ")


# -- upstream's files --------------------------------------------------------------------------------------------------


def module_zip(path: Path, files: Mapping[str, str]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(f"a.b/c@v1.0.0/{name}", text)
    return path


@pytest.mark.release
def test_a_zips_hash_is_the_one_that_go_recorded() -> None:
    built = built_release()
    go = built.reader.go()
    main = built.reader.program(built.program("static")).main
    cached = go.parents[3] / "cache/download" / main.path / "@v"
    archive = cached / f"{main.version}.zip"
    if not archive.exists():
        pytest.skip(f"{archive} is not in the module cache: the build was taken over from elsewhere")
    assert zip_sum(archive) == archive.with_suffix(".ziphash").read_text() == main.sum


def test_files_that_differ_from_the_tree_are_named(tmp_path: Path) -> None:
    files = {"a.go": "package a", "sub/b.go": "package b", "data.txt": "x", "go.mod": "module a.b/c", "README.md": "published"}
    archive, tree = module_zip(tmp_path / "c.zip", files), tmp_path / "tree"
    for name, text in {**files, "go.mod": "module other", "README.md": "in the tree", "nested/go.mod": "module n", "nested/x.go": "package x"}.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(text)
    assert tree_differences(archive, tree) == []
    (tree / "sub/b.go").write_text("package evil")
    (tree / "added.go").write_text("package a")
    (tree / "data.txt").unlink()
    assert tree_differences(archive, tree) == ["data.txt", "sub/b.go", "added.go"]


@pytest.mark.release
def test_a_source_with_another_hash_is_refused() -> None:
    built = built_release()
    main = built.reader.program(built.program("static")).main
    with pytest.raises(VerificationFailed, match="was linked from h1:other"):
        read_upstream(built.reader.go(), replace(main, sum="h1:other"))


# -- what is built -----------------------------------------------------------------------------------------------------


@pytest.mark.release
@pytest.mark.parametrize("name", ["kubelet", "kube-apiserver", "etcd", "coredns", "runc", "crictl", "controller", "proxy-server", "cilium-agent", "clusterctl"])
def test_a_program_of_the_release_is_upstreams(name: str) -> None:
    built = built_release()
    program, go = built.program(name), built.reader.go()
    build = built.reader.program(program)
    found = compare(name, build, program.source, built.stamp, read_upstream(go, build.main), go)
    assert found.findings("differs") == []
    assert len(found.about("module")) == len(build.modules) > 0


@pytest.mark.release
def test_kubernetes_differs_from_upstream_by_its_stamps_and_kubelets_cgo_alone() -> None:
    built = built_release()
    go = built.reader.go()
    for program in [item for item in built.programs.values() if item.source.component == "kubernetes"]:
        build = built.reader.program(program)
        found = compare(program.name, build, program.source, built.stamp, read_upstream(go, build.main), go)
        assert {check.name.rpartition(".")[2] for check in found.findings("stamp")} == {"gitVersion", "gitCommit", "buildDate"}
        assert [check.name for check in found.findings("deliberate")] == (["CGO_ENABLED"] if program.name == "kubelet" else [])
        assert {check.verdict for check in found.about("toolchain") + found.about("defaults")} == {"identical"}


def run_command(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(transparency.compare, [*arguments, "--profile", "lab", "--format", "json"])
    return getattr(result.exception, "exit_code", 0) if result.exception else 0, result.stdout


@pytest.mark.release
def test_the_command_ends_with_code_3_when_something_differs(tmp_path: Path) -> None:
    built = built_release()
    code, text = run_command("--binary", "kubelet", "--upstream", str(built.program("kubelet").path))
    assert code == 0
    (item,) = json.loads(text)["items"]
    assert item["identical"] is True
    code, text = run_command("--binary", "kubelet", "--upstream", str(built.program("kubeadm").path))
    assert code == 3
    assert json.loads(text)["items"][0]["identical"] is False
    shutil.copy(built.program("static").source.folder / "go.mod", tmp_path)
    with pytest.raises(InvalidInput, match="is not the tree of any"):
        CliRunner().invoke(transparency.compare, ["--binary", "static", "--profile", "lab", "--upstream-tree", str(tmp_path)], catch_exceptions=False)
    with pytest.raises(InvalidInput, match="compares one program"):
        CliRunner().invoke(transparency.compare, ["--upstream", str(tmp_path / "go.mod")], catch_exceptions=False)
