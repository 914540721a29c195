"""Building from a lock: what goes wrong is said as what it is, and nothing half-made ever has a final name.

The go command is the real one; the module proxy is a small one on loopback (tests/support/module_proxy.py).
"""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckp.catalog.load import Catalog, Chosen
from ckp.distribution.builder import schedule, toolchain
from ckp.distribution.builder.component import build_component
from ckp.distribution.builder.schedule import build_all, parallel_builds
from ckp.kits import paths
from ckp.kits.errors import CkpError, InvalidInput, VerificationFailed
from ckp.kits.processes import run
from ckp.kits.steps import State, Steps
from tests.support.checkout import REPO
from tests.support.module_proxy import Module, ModuleProxy, serving

GO = "1.25.6"
STAMP = "v1.35.1-ckp"
LIBRARY = Module("example.org/greet", "v1.0.0", {"go.mod": "module example.org/greet\n\ngo 1.20\n", "greet.go": 'package greet\n\nvar Text = "hello"\n'})
MAIN = """package main

import (
	"fmt"

	"example.org/greet"
)

var version = "unstamped"

func main() { fmt.Println(greet.Text, version) }
"""

TEST = """package main

import "testing"

func TestStamp(t *testing.T) { t.Log("stamped", version) }
"""


def program(name: str) -> Module:
    text = f"module example.org/{name}\n\ngo 1.20\n\nrequire example.org/greet v1.0.0\n"
    return Module(f"example.org/{name}", "v1.0.0", {"go.mod": text, "main.go": MAIN, "main_test.go": TEST, "LICENSE": "none"})


def write_lock(catalog: Path, module: Module, sums: str) -> None:
    name = module.path.rpartition("/")[2]
    folder = catalog / "sources" / name / "v1.0.0"
    folder.mkdir(parents=True)
    (folder / "go.mod").write_text(f"module lock\n\ngo 1.20\n\nrequire (\n\t{module.path} v1.0.0\n\texample.org/greet v1.0.0 // indirect\n)\n")
    (folder / "go.sum").write_text(sums)
    (folder / "source.toml").write_text(
        f"""component = "{name}"
version = "v1.0.0"
modules = ["{module.path}@v1.0.0"]
go = "{GO}"
license = "none"
upstream = "{module.path}"
date = "2026-01-01T00:00:00Z"
ldflags = ["-X main.version={{stamp}}"]
binaries = [{{ name = "{name}", package = "{module.path}" }}]
"""
    )


@pytest.fixture
def proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleProxy]:
    """A proxy with three programs and their library, empty caches, and only the toolchain taken from this machine's."""
    goroot = toolchain.ensure_toolchain(Catalog(), GO).parent.parent
    cache = tmp_path / "cache"
    (cache / "go/mod/golang.org").mkdir(parents=True)
    (cache / "go/mod/golang.org" / goroot.name).symlink_to(goroot)
    (cache / "go" / f"toolchain-{GO}.verified").write_text(Catalog().toolchain_sum(GO))
    # The standard library compiled once for all of these tests. Where every build came from the cache of builds, Go has compiled nothing yet.
    shared = paths.cache() / "go" / "build"
    shared.mkdir(parents=True, exist_ok=True)
    (cache / "go/build").symlink_to(shared)
    monkeypatch.setenv("CKP_CACHE", str(cache))
    monkeypatch.setenv("GONOSUMDB", "*")
    with serving(ModuleProxy([LIBRARY, *(program(name) for name in ("one", "two", "three"))])) as served:
        monkeypatch.setenv("GOPROXY", served.url)
        yield served
    subprocess.run(["chmod", "-R", "u+w", cache], check=False)


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    root = tmp_path / "catalog"
    root.mkdir()
    (root / "toolchains.toml").write_text((Catalog().root / "toolchains.toml").read_text())
    for name in ("one", "two", "three"):
        write_lock(root, program(name), program(name).sums() + LIBRARY.sums())
    return Catalog(root)


def chosen(catalog: Catalog, name: str = "one") -> Chosen:
    return Chosen(name, catalog.source(name, "v1.0.0"))


def said_nothing(_line: str) -> None:
    pass


def finals() -> list[str]:
    return sorted(path.name for path in (paths.cache() / "builds").glob("*") if path.is_dir())


def test_a_lock_becomes_a_stamped_program_once(proxy: ModuleProxy, catalog: Catalog) -> None:
    built = build_component(catalog, chosen(catalog), STAMP, said_nothing)
    assert built.fresh
    assert subprocess.run([built.binary("one")], capture_output=True, text=True, check=True).stdout == f"hello {STAMP}\n"
    asked = len(proxy.asked)
    again = build_component(catalog, chosen(catalog), STAMP, said_nothing)
    assert not again.fresh
    assert len(proxy.asked) == asked


def test_a_source_with_another_hash_is_refused(proxy: ModuleProxy, catalog: Catalog) -> None:
    proxy.forged.add("example.org/greet")
    with pytest.raises(VerificationFailed, match=r"one v1\.0\.0 is not what its lock says: example\.org/greet@v1\.0\.0"):
        build_component(catalog, chosen(catalog), STAMP, said_nothing)
    assert finals() == []


def test_a_refused_module_is_named_with_who_refused_it(proxy: ModuleProxy, catalog: Catalog) -> None:
    proxy.refused.add("example.org/one")
    with pytest.raises(CkpError, match=r"one v1\.0\.0 can't be had: .*403.* by 127\.0\.0\.1") as caught:
        build_component(catalog, chosen(catalog), STAMP, said_nothing)
    assert "GOPROXY" in caught.value.resolution
    assert finals() == []


def test_no_proxy_at_all_is_told_from_a_refusal(proxy: ModuleProxy, catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOPROXY", "off")
    with pytest.raises(CkpError, match="no module proxy answers"):
        build_component(catalog, chosen(catalog), STAMP, said_nothing)


def test_a_lock_without_a_sum_is_not_complete(proxy: ModuleProxy, catalog: Catalog) -> None:
    sums = catalog.root / "sources/one/v1.0.0/go.sum"
    sums.write_text("\n".join(line for line in sums.read_text().splitlines() if "greet" not in line) + "\n")
    with pytest.raises(InvalidInput, match=r"lock of one v1\.0\.0 in .* is not complete"):
        build_component(catalog, chosen(catalog), STAMP, said_nothing)
    assert finals() == []


def test_a_changed_lock_is_another_build(proxy: ModuleProxy, catalog: Catalog) -> None:
    first = build_component(catalog, chosen(catalog), STAMP, said_nothing)
    (catalog.root / "sources/one/v1.0.0/go.mod").write_text((catalog.root / "sources/one/v1.0.0/go.mod").read_text() + "\n// changed\n")
    assert build_component(catalog, chosen(catalog), STAMP, said_nothing).key != first.key


def test_too_little_disk_is_said_before_anything_is_fetched(proxy: ModuleProxy, catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _path: type("Usage", (), {"free": 3 << 30})())
    with pytest.raises(CkpError, match=r"4\.0 GiB are needed"):
        build_component(catalog, chosen(catalog), STAMP, said_nothing)
    assert proxy.asked == []


CHILD = """
import sys
from pathlib import Path
from ckp.catalog.load import Catalog, Chosen
from ckp.distribution.builder.component import build_component
from ckp.kits.errors import CkpError
catalog = Catalog(Path(sys.argv[1]))
try:
    built = build_component(catalog, Chosen("one", catalog.source("one", "v1.0.0")), "v1.35.1-ckp", lambda line: None)
except CkpError as error:
    sys.exit(error.render())
print("fresh" if built.fresh else "found", flush=True)
"""


def child(catalog: Catalog, *prefix: str, **environment: str) -> subprocess.Popen[str]:
    env = {**os.environ, "PYTHONPATH": str(REPO / "src"), **environment}
    return subprocess.Popen(
        [*prefix, sys.executable, "-c", CHILD, catalog.root], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def test_a_test_binary_is_built_with_the_same_stamps(proxy: ModuleProxy, catalog: Catalog) -> None:
    lock = catalog.source_path("one", "v1.0.0") / "source.toml"
    text = lock.read_text()
    text = text.replace("binaries = [", 'binaries = [{ name = "one.test", package = "example.org/one", test = true }, ')
    lock.write_text(text.replace("ldflags = [", 'ldflags = ["-X example.org/one.version={stamp}", '))
    built = build_component(catalog, chosen(catalog), STAMP, said_nothing)
    said = run([built.binary("one.test"), "-test.v"], timeout=60).stdout
    assert f"stamped {STAMP}" in said and "PASS" in said
    assert run([built.binary("one")], timeout=60).stdout == f"hello {STAMP}\n"


def test_a_killed_build_leaves_no_result_and_the_next_one_clears_up(proxy: ModuleProxy, catalog: Catalog) -> None:
    proxy.delay = 1.0
    first = child(catalog)
    deadline = time.monotonic() + 60
    while not proxy.asked and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    assert finals() != []
    assert all(name.startswith(".one-v1.0.0-") for name in finals()), "only scratch"
    proxy.delay = 0.0
    built = build_component(catalog, chosen(catalog), STAMP, said_nothing)
    assert built.fresh
    assert finals() == [built.folder.name]


def test_two_builds_at_once_make_it_once(proxy: ModuleProxy, catalog: Catalog) -> None:
    proxy.delay = 0.2
    pair = [child(catalog), child(catalog)]
    said = sorted(process.communicate(timeout=120)[0].strip() for process in pair)
    assert said == ["found", "fresh"]


@pytest.mark.root("mounts a small disk")
@pytest.mark.parametrize("size", ["4k", "100k"])
def test_a_full_disk_is_said_as_such(proxy: ModuleProxy, catalog: Catalog, tmp_path: Path, size: str) -> None:
    """Full for our own files already, or for those of the go command."""
    small = paths.cache() / "builds"
    small.mkdir()
    # The mount lives in a namespace of its own and ends with it.
    script = f'mount -t tmpfs -o size={size} none {small} && exec "$@"'
    process = child(catalog, "unshare", "--mount", "sh", "-c", script, "sh")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert re.match(rf"error: the disk is full: (.+; )?{small}(/\S+)? has [\d.]+ MiB free\n", err), err
    assert "what to do: free some space there or use a larger disk (CKP_CACHE moves" in err
    assert all(name.startswith(".") for name in finals())


def test_many_are_built_side_by_side_with_what_is_left(proxy: ModuleProxy, catalog: Catalog) -> None:
    lines: list[str] = []
    built = build_all(catalog, [chosen(catalog, name) for name in ("one", "two", "three")], STAMP, lines.append)
    assert sorted(built) == ["one", "three", "two"]
    text = "\n".join(lines)
    assert "3 to build" in text
    assert "2 left, about" in text
    again: list[str] = []
    build_all(catalog, [chosen(catalog, name) for name in ("one", "two", "three")], STAMP, again.append)
    assert again == [], "nothing to do, nothing to say"


def test_a_failure_stops_what_is_not_begun_and_is_told_first(proxy: ModuleProxy, catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "parallel_builds", lambda _cores, _memory: 1)
    proxy.refused.add("example.org/one")
    with pytest.raises(CkpError, match=r"one v1\.0\.0 can't be had"):
        build_all(catalog, [chosen(catalog, name) for name in ("one", "two", "three")], STAMP, said_nothing)
    assert finals() == []


def test_the_longest_go_first_by_their_typical_times_where_none_are_known(proxy: ModuleProxy, catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "parallel_builds", lambda _cores, _memory: 1)
    monkeypatch.setitem(schedule.TYPICAL_SECONDS, "three", 1000.0)
    monkeypatch.setitem(schedule.TYPICAL_SECONDS, "one", 10.0)
    lines: list[str] = []
    build_all(catalog, [chosen(catalog, name) for name in ("one", "two", "three")], STAMP, lines.append)
    assert [line.split()[1] for line in lines if line.startswith("building ")] == ["three", "two", "one"]


@pytest.mark.parametrize("workers", [1, 2])
def test_one_that_uses_what_another_compiled_begins_when_that_has_ended(
    proxy: ModuleProxy, catalog: Catalog, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    """Though it is expected to take longest, and though a worker is free."""
    monkeypatch.setattr(schedule, "parallel_builds", lambda _cores, _memory: workers)
    monkeypatch.setitem(schedule.AFTER, "three", "one")
    monkeypatch.setitem(schedule.TYPICAL_SECONDS, "three", 1000.0)
    monkeypatch.setitem(schedule.TYPICAL_SECONDS, "two", 10.0)
    lines: list[str] = []
    build_all(catalog, [chosen(catalog, name) for name in ("three", "two", "one")], STAMP, lines.append)
    order = [" ".join(line.split()[:2]) for line in lines if line.startswith(("building ", "built "))]
    assert order.index("built one") < order.index("building three")
    assert order[0] == "building one"
    lines.clear()
    build_all(catalog, [chosen(catalog, "three")], "v2-ckp", lines.append)
    assert "building three v1.0.0" in "\n".join(lines), "what is built already is not waited for"


def test_nothing_waits_for_one_that_failed(proxy: ModuleProxy, catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "parallel_builds", lambda _cores, _memory: 2)
    monkeypatch.setitem(schedule.AFTER, "three", "one")
    proxy.refused.add("example.org/one")
    lines: list[str] = []
    with pytest.raises(CkpError, match=r"one v1\.0\.0 can't be had"):
        build_all(catalog, [chosen(catalog, name) for name in ("three", "one")], STAMP, lines.append)
    assert "building three" not in "\n".join(lines)


def test_each_component_is_a_step_inside_the_current_one(proxy: ModuleProxy, catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "parallel_builds", lambda _cores, _memory: 1)
    monkeypatch.setitem(schedule.TYPICAL_SECONDS, "three", 1000.0)
    proxy.refused.add("example.org/one")
    steps = Steps(1, io.StringIO())
    seen: list[str] = []

    def say(line: str) -> None:
        group = steps.items[0].group
        if line.startswith("building ") and group is not None:
            seen.append(group.summary())

    with pytest.raises(CkpError), steps.step("building") as step:
        build_all(catalog, [chosen(catalog, name) for name in ("one", "two", "three")], STAMP, say, steps)
    assert step.group is not None
    assert [(item.title, item.state) for item in step.group.items] == [
        ("three v1.0.0", State.DONE),
        ("one v1.0.0", State.FAILED),
        ("two v1.0.0", State.WAITING),
    ]
    assert [line.split(",")[0] for line in seen] == ["3 left", "2 left"]
    assert all(item.typical is None for item in step.group.items), "there was no last time"


def test_the_last_time_is_remembered(proxy: ModuleProxy, catalog: Catalog) -> None:
    assert schedule.last_seconds("one") is None
    build_component(catalog, chosen(catalog), STAMP, said_nothing)
    assert schedule.last_seconds("one") is not None


@pytest.mark.parametrize(("cores", "memory", "expected"), [(1, 64, 1), (2, 24, 2), (8, 9, 2), (4, 1, 1), (16, 64, 16)])
def test_builds_stay_within_cores_and_memory(cores: int, memory: float, expected: int) -> None:
    assert parallel_builds(cores, memory) == expected
