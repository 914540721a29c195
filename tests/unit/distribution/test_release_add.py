"""`ckp release add`: one command makes the release file and the lock, or leaves everything as it was.

The go command is the real one. Most tests ask a small module proxy on loopback (tests/support/module_proxy.py); the last ones ask the machine's own.
"""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckp.catalog.load import Catalog
from ckp.catalog.models import version_key
from ckp.distribution.builder import locks, toolchain
from ckp.distribution.builder.locks import add_release, nearest
from ckp.kits import paths
from ckp.kits.errors import CkpError, Conflict, InvalidInput, NotFound
from ckp.kits.files import sha256_file
from tests.support.checkout import REPO
from tests.support.module_proxy import TIME, Module, ModuleProxy, h1, serving

GO = "1.25.6"
PROGRAMS = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy", "kubelet", "kubeadm", "kubectl")
BASE = Catalog().names()[-1]
"""The newest release of the catalog, whichever it is by now: what is added here comes after it."""
_, MINOR, PATCH = version_key(BASE)


def patch(number: int) -> str:
    """The so-manieth release after BASE, which no catalog has."""
    return f"v1.{MINOR}.{PATCH + number}"


def staging(number: int) -> str:
    """The version of its staging modules."""
    return f"v0.{MINOR}.{PATCH + number}"


NEW, NEXT_MINOR = patch(1), f"v1.{MINOR + 1}.0"


def kubernetes(version: str, *, go: str = GO, without: str = "") -> Module:
    """A Kubernetes as small as the go command takes it: its programs, one staging module at v0.0.0."""
    mod = "module k8s.io/kubernetes\n\ngo 1.20\n\nrequire k8s.io/api v0.0.0\n\nreplace k8s.io/api => ./staging/src/k8s.io/api\n"
    files = {"go.mod": mod, "go.sum": "", ".go-version": f"{go}\n", "build/pause/linux/pause.c": "int main(void) { return 0; }\n"}
    files |= {f"cmd/{name}/main.go": 'package main\n\nimport _ "k8s.io/api"\n\nfunc main() {}\n' for name in PROGRAMS}
    return Module("k8s.io/kubernetes", version, {name: text for name, text in files.items() if name != without})


def api(version: str) -> Module:
    return Module("k8s.io/api", version, {"go.mod": "module k8s.io/api\n\ngo 1.20\n", "api.go": "package api\n"})


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    """A catalog that a test may add to, with docs beside it."""
    shutil.copytree(Catalog().root, tmp_path / "site" / "catalog")
    (tmp_path / "site/docs/reference").mkdir(parents=True)
    return Catalog(tmp_path / "site" / "catalog")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and only the toolchain taken from this machine's."""
    goroot = toolchain.ensure_toolchain(Catalog(), GO).parent.parent
    cache = tmp_path / "cache"
    (cache / "go/mod/golang.org").mkdir(parents=True)
    (cache / "go/mod/golang.org" / goroot.name).symlink_to(goroot)
    (cache / "go" / f"toolchain-{GO}.verified").write_text(Catalog().toolchain_sum(GO))
    monkeypatch.setenv("CKP_CACHE", str(cache))
    monkeypatch.setenv("GONOSUMDB", "*")
    return cache


@pytest.fixture
def proxy(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleProxy]:
    """A proxy that serves a further patch release, and parts of others."""
    modules = [kubernetes(NEW), api(staging(1)), kubernetes(patch(2)), kubernetes(patch(3), without="build/pause/linux/pause.c"), api(staging(3))]
    with serving(ModuleProxy(modules)) as served:
        monkeypatch.setenv("GOPROXY", served.url)
        yield served
    subprocess.run(["chmod", "-R", "u+w", str(cache)], check=True)


def digests(root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): sha256_file(path) for path in sorted(root.rglob("*")) if path.is_file()}


def quiet(_: str) -> None:
    pass


def test_one_command_adds_the_next_patch_release(catalog: Catalog, proxy: ModuleProxy) -> None:
    before = digests(catalog.root.parent)
    added = add_release(catalog, NEW, quiet)
    assert added.base == BASE
    assert catalog.check(NEW) == []
    release, base = catalog.release(NEW), catalog.release(BASE)
    assert (release.stamp, release.status, release.pins["kubernetes"]) == (f"{NEW}-ckp", "Candidate", NEW)
    assert {**release.pins, "kubernetes": ""} == {**base.pins, "kubernetes": ""}
    lock = catalog.source("kubernetes", NEW)
    assert (lock.modules, lock.go, lock.date) == ((f"k8s.io/kubernetes@{NEW}",), GO, TIME)
    assert [flag for flag in lock.ldflags if "gitMinor" in flag] == [flag for flag in catalog.source("kubernetes", BASE).ldflags if "gitMinor" in flag]
    assert f"\tk8s.io/api v0.0.0 => k8s.io/api {staging(1)}\n" in (lock.folder / "go.mod").read_text()
    # The hashes are worked out here a second time, by the simulator's own code.
    assert (lock.folder / "go.sum").read_text() == api(staging(1)).sums() + kubernetes(NEW).sums()
    after = digests(catalog.root.parent)
    written = {name for name in after if after[name] != before.get(name)}
    assert written == {f"catalog/sources/kubernetes/{NEW}/{name}" for name in ("go.mod", "go.sum", "source.toml")} | {
        f"catalog/releases/{NEW}.toml",
        "docs/reference/compatibility.md",
    }
    assert f"| {NEW} | Candidate |" in (catalog.root.parent / "docs/reference/compatibility.md").read_text()


@pytest.mark.parametrize(
    ("version", "kind", "says"),
    [
        (NEW[1:], InvalidInput, f"'{NEW[1:]}' is not a version of Kubernetes"),
        (f"{NEW}/../x", InvalidInput, "is not a version of Kubernetes"),
        (f"v1.{MINOR}.02", InvalidInput, "is not a version of Kubernetes"),
        (BASE, Conflict, f"{BASE} is in the catalog already"),
        (NEXT_MINOR, InvalidInput, rf"{NEXT_MINOR} is outside the compatibility matrix, which has 1\.33, .*1\.{MINOR}"),
        (patch(99), NotFound, rf"Kubernetes {patch(99)} is not served by GOPROXY=http://127\.0\.0\.1:\d+"),
        (patch(2), NotFound, f"{patch(2)} can't be locked: 1 of its modules cannot be fetched"),
        (patch(3), CkpError, f"{patch(3)} has no build/pause/linux/pause.c, which the lock names"),
    ],
)
def test_what_cannot_be_added_leaves_the_catalog_as_it_was(catalog: Catalog, proxy: ModuleProxy, version: str, kind: type[CkpError], says: str) -> None:
    before = digests(catalog.root.parent)
    with pytest.raises(kind, match=says) as caught:
        add_release(catalog, version, quiet)
    assert caught.value.resolution
    assert digests(catalog.root.parent) == before


def test_a_refused_module_is_named_with_the_answer(catalog: Catalog, proxy: ModuleProxy) -> None:
    proxy.refused.add("k8s.io/api")
    with pytest.raises(NotFound) as caught:
        add_release(catalog, NEW, quiet)
    assert caught.value.details == f"k8s.io/api {staging(1)}: 403 Forbidden"
    assert "nothing was changed" in caught.value.resolution


def test_how_to_take_a_further_minor_is_said_and_works(catalog: Catalog, proxy: ModuleProxy) -> None:
    proxy.modules += [kubernetes(NEXT_MINOR), api(f"v0.{MINOR + 1}.0")]
    with pytest.raises(InvalidInput) as caught:
        add_release(catalog, NEXT_MINOR, quiet)
    assert f'add "1.{MINOR + 1}" to `minors`' in caught.value.resolution
    matrix = catalog.root / "matrix.toml"
    matrix.write_text(matrix.read_text().replace(f'"1.{MINOR}"]', f'"1.{MINOR}", "1.{MINOR + 1}"]'))
    assert add_release(catalog, NEXT_MINOR, quiet).base == BASE
    assert f"-X k8s.io/component-base/version.gitMinor={MINOR + 1}" in catalog.source("kubernetes", NEXT_MINOR).ldflags


def test_a_lock_without_its_release_is_kept_and_the_rest_done_again(catalog: Catalog, proxy: ModuleProxy) -> None:
    """As after a kill between the two."""
    added = add_release(catalog, NEW, quiet)
    first, inode = digests(catalog.root.parent), (added.lock / "go.mod").stat().st_ino
    added.release.unlink()
    add_release(catalog, NEW, quiet)
    assert digests(catalog.root.parent) == first
    assert (added.lock / "go.mod").stat().st_ino == inode


def test_a_lock_that_a_build_could_not_use_stops_the_release(catalog: Catalog, proxy: ModuleProxy) -> None:
    added = add_release(catalog, NEW, quiet)
    added.release.unlink()
    sums = added.lock / "go.sum"
    sums.write_text(kubernetes(NEW).sums())  # without the staging module's
    with pytest.raises(InvalidInput, match=rf"the lock of kubernetes {NEW} in {added.lock} is not complete: missing go\.sum entry.*k8s\.io/api"):
        add_release(catalog, NEW, quiet)
    assert not added.release.exists()


def test_a_kill_in_the_middle_changes_nothing_and_the_next_run_goes_through(catalog: Catalog, proxy: ModuleProxy) -> None:
    before = digests(catalog.root.parent)
    proxy.delay = 0.5
    code = "import sys; from pathlib import Path; from ckp.catalog.load import Catalog; from ckp.distribution.builder.locks import add_release\n"
    code += "add_release(Catalog(Path(sys.argv[1])), sys.argv[2], print)"
    environment = {**os.environ, "PYTHONPATH": str(REPO / "src")}
    child = subprocess.Popen([sys.executable, "-c", code, str(catalog.root), NEW], env=environment, stdout=subprocess.PIPE, start_new_session=True)
    deadline = time.monotonic() + 30
    while not any("/k8s.io/api/" in path for path in proxy.asked):
        assert time.monotonic() < deadline, proxy.asked
        time.sleep(0.02)
    os.killpg(child.pid, signal.SIGKILL)
    child.communicate()
    assert digests(catalog.root.parent) == before
    proxy.delay = 0.0
    assert add_release(catalog, NEW, quiet).release.exists()
    assert not (paths.cache() / "release-add").exists(), "what the killed run had made apart is cleared away"


def test_two_at_once_make_one(catalog: Catalog, proxy: ModuleProxy) -> None:
    def attempt(_: int) -> str:
        try:
            return add_release(catalog, NEW, quiet).release.name
        except Conflict:
            return "in the catalog already"

    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(attempt, range(2))) == ["in the catalog already", f"{NEW}.toml"]
    assert catalog.check(NEW) == []


def test_a_toolchain_that_is_new_is_added_with_its_hash(catalog: Catalog, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The go command takes a toolchain without the checksum database from a proxy that is a folder, and from no other."""
    real = (cache / "go/mod/golang.org" / f"toolchain@v0.0.1-go{GO}.linux-amd64").resolve()
    made = Module("golang.org/toolchain", "v0.0.1-go1.25.99.linux-amd64", {"bin/go": f'#!/bin/sh\nGOROOT={real} exec {real}/bin/go "$@"\n'})
    for module in (kubernetes(NEW, go="1.25.99"), api(staging(1)), made):
        folder = tmp_path / "proxy" / module.path / "@v"
        folder.mkdir(parents=True)
        (folder / f"{module.version}.zip").write_bytes(module.zip())
        (folder / f"{module.version}.info").write_text(f'{{"Version":"{module.version}","Time":"{TIME}"}}')
        (folder / f"{module.version}.mod").write_text(module.files.get("go.mod", f"module {module.path}\n"))
    monkeypatch.setenv("GOPROXY", (tmp_path / "proxy").as_uri())
    added = add_release(catalog, NEW, quiet)
    assert added.toolchain == "1.25.99"
    with zipfile.ZipFile(io.BytesIO(made.zip())) as archive:
        assert catalog.toolchain_sum("1.25.99") == h1({name: archive.read(name) for name in archive.namelist()})
    listed = [line.split('"')[1] for line in (catalog.root / "toolchains.toml").read_text().splitlines() if line.startswith("[")]
    assert listed == sorted(listed, key=version_key)
    assert catalog.check(NEW) == []
    subprocess.run(["chmod", "-R", "u+w", str(cache)], check=True)


def test_a_stand_in_for_kubernetes_is_not_carried_over() -> None:
    """It belongs to one version; the new lock was verified and needs none."""
    text = locks.release_text(Catalog().release_path("v1.33.7").read_text(), "v1.33.8")
    assert 'kubernetes = "v1.33.8"' in text
    assert "kubernetes-mixed" not in text
    assert "v1.33.7" not in text


@given(st.lists(st.tuples(st.integers(33, 37), st.integers(0, 30)), min_size=1, max_size=6), st.tuples(st.integers(33, 37), st.integers(0, 30)))
def test_the_base_is_of_the_same_minor_if_there_is_one_and_then_the_newest(known: list[tuple[int, int]], wanted: tuple[int, int]) -> None:
    names = [f"v1.{minor}.{patch}" for minor, patch in known]
    minor, patch = version_key(nearest(names, "v1.{}.{}".format(*wanted)))[1:]
    assert patch == max(number for other, number in known if other == minor)
    assert all(abs(minor - wanted[0]) <= abs(other - wanted[0]) for other, _ in known)


# -- the machine's own module proxy ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def served() -> None:
    """Nothing to do for these without a proxy that serves the versions that they ask for."""
    for version in ("v1.35.1", "v1.34.2"):
        answer = locks._download(f"k8s.io/kubernetes@{version}")
        if "Dir" not in answer:
            pytest.skip(f"the module proxy at hand does not serve Kubernetes {version}: {answer['Error']}")


@pytest.mark.usefixtures("served")
def test_a_real_patch_release_is_added(catalog: Catalog) -> None:
    said: list[str] = []
    added = add_release(catalog, "v1.34.2", said.append)
    assert (added.base, added.toolchain) == ("v1.34.3", "")
    assert catalog.check("v1.34.2") == []
    lock = catalog.source("kubernetes", "v1.34.2")
    # Upstream's own .go-version and tag of that release.
    assert lock.go == "1.24.9"
    # The tag's own time; a proxy that does not get it from the repository says when it took the module in, a few hours later.
    assert lock.date.startswith(("2025-11-11T19:00:37", "2025-11-12T"))
    assert "k8s.io/kubernetes v1.34.2 h1:WQdDvYJazkmkwSncgNwGvVtaCt4TYXIU3wSMRgvp3MI=\n" in (lock.folder / "go.sum").read_text()
    assert said[-1].startswith("verified: every package of kube-apiserver")


@pytest.mark.usefixtures("served")
def test_what_is_made_for_a_release_of_the_catalog_is_its_lock_to_the_byte(catalog: Catalog) -> None:
    """The lock of v1.35.1 has been built and run; made again from v1.34.3, it must be the same."""
    kept = digests(catalog.source_path("kubernetes", "v1.35.1"))
    for name in [name for name in catalog.names() if version_key(name) >= version_key("v1.35.1")]:
        catalog.release_path(name).unlink()
        shutil.rmtree(catalog.source_path("kubernetes", name))
    newest = catalog.names()[-1]
    assert add_release(catalog, "v1.35.1", quiet).base == newest
    assert digests(catalog.source_path("kubernetes", "v1.35.1")) == kept
