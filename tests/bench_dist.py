"""`make bench-dist`: what making a release costs on this machine; writes docs/benchmarks-distribution.md. `make bench` runs it as well.

Of a component, with its sources at hand (what fetching them costs depends on the proxy, not on us):

    cold       with an empty build cache
    warm       the same again, with the build cache that cold left
    source     one line changed in the first program's main package, with a build cache that knows the rest
    lock       one line of the lock changed, a linker flag, with the build cache as it is
    unchanged  found built

Ratios are to cold, within this run. All components cold take an hour on two cores, so some are taken unless `all` is asked for:
`make bench-dist COMPONENTS=all`, or COMPONENTS="etcd helm".
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ckp.catalog.load import Catalog, Chosen
from ckp.catalog.models import Source
from ckp.distribution.builder.component import build_component, build_into
from ckp.distribution.builder.schedule import build_all
from ckp.distribution.builder.toolchain import ensure_toolchain, go_environment
from ckp.kits import paths
from ckp.kits.clock import human_duration
from ckp.kits.processes import run
from tests.support.checkout import REPO

RELEASE = "v1.35.1"
SOME = ("runc", "imgpkg", "cni-plugins", "coredns")


@dataclass(frozen=True)
class Row:
    """Seconds of one component."""

    name: str
    cold: float
    warm: float
    source: float
    lock: float
    unchanged: float

    def line(self) -> str:
        """Of the table."""
        times = " | ".join(f"{seconds:.1f} s | {seconds / self.cold:.2f}" for seconds in (self.warm, self.source, self.lock))
        return f"| {self.name} | {self.cold:.1f} s | {times} | {self.unchanged * 1000:.0f} ms | {self.unchanged / self.cold:.4f} |"


def timed(action: Callable[[], object]) -> float:
    """Seconds that it takes."""
    started = time.monotonic()
    action()
    return time.monotonic() - started


def quiet(_line: str) -> None:
    """Says nothing."""


def component(catalog: Catalog, chosen: Chosen, stamp: str) -> Row:
    """All times of a component."""
    source = chosen.source
    with tempfile.TemporaryDirectory(dir=paths.cache(), prefix=".bench-") as name:
        folder = Path(name)
        cache = {"GOCACHE": str(folder / "gocache")}

        def build(of: Source, target: str) -> float:
            return timed(lambda: build_into(catalog, of, stamp, folder / target, quiet, cache))

        cold, warm = build(source, "cold"), build(source, "warm")
        # Every stamped program is relinked; one without a stamp gets another flag of the same effect.
        lock = build(source.model_copy(update={"ldflags": (*source.ldflags, "-X main.benchmark=changed")}), "lock")
        copy, file = editable(catalog, source, folder)
        build(copy, "copy")
        with file.open("a") as stream:
            stream.write('\nfunc benchmarkChanged() string { return "changed" }\n')
        changed = build(copy, "source")
    unchanged = timed(lambda: build_component(catalog, chosen, stamp, quiet))
    return Row(f"{source.component} {source.version}", cold, warm, changed, lock, unchanged)


def editable(catalog: Catalog, source: Source, folder: Path) -> tuple[Source, Path]:
    """The component with a copy of its module that can be changed (go lets nobody change the module cache), and a file of its first program."""
    package = source.binaries[0].package
    module = max((item.partition("@")[0] for item in source.modules if f"{package}/".startswith(f"{item.partition('@')[0]}/")), key=len)
    go, environment = ensure_toolchain(catalog, source.go), go_environment(cgo=source.cgo)
    lock, copy = folder / "copied-lock", folder / "copied-module"
    shutil.copytree(source.folder, lock)
    where = run([go, "list", "-mod=readonly", "-m", "-f", "{{.Dir}}", module], cwd=lock, env=environment, timeout=300).stdout.strip()
    shutil.copytree(where, copy)
    run(["chmod", "-R", "u+w", copy], timeout=60)
    with (lock / "go.mod").open("a") as stream:
        stream.write(f"\nreplace {module} => {copy}\n")
    argv: list[str | Path] = [go, "list", "-mod=readonly", "-tags", ",".join(source.tags), "-f", "{{.Dir}}/{{index .GoFiles 0}}", package]
    file = Path(run(argv, cwd=lock, env=environment, timeout=300).stdout.strip())
    assert file.is_relative_to(copy), file
    return source.model_copy(update={"folder": lock}), file


def ckp(*arguments: str) -> float:
    """Seconds of a command."""
    return timed(lambda: run([REPO / "ckp", *arguments], timeout=3600))


def whole() -> list[tuple[str, float]]:
    """A release that is built: making it again, publishing it twice, carrying it."""
    rows = [("`ckp dist build`, everything unchanged", min(ckp("dist", "build", RELEASE, "--profile", "lab") for _ in range(2)))]
    with tempfile.TemporaryDirectory(dir=paths.cache(), prefix=".bench-") as name:
        folder = Path(name)
        publish = ("dist", "publish", RELEASE, "--profile", "lab", "--repositories", str(folder / "repositories"))
        rows.append(("`ckp dist publish` into empty package repositories", ckp(*publish)))
        rows.append(("the same again", ckp(*publish)))
        file = folder / "release.ckp"
        rows.append(("`ckp dist export`, with the lab's root file system", ckp("dist", "export", RELEASE, str(file), "--profile", "lab")))
        rows.append((f"`ckp dist import` of that file ({file.stat().st_size >> 20} MiB)", ckp("dist", "import", str(file))))
        rows.append(("`ckp dist verify` of the package repositories", ckp("dist", "verify", str(folder / "repositories"))))
    shutil.rmtree(paths.cache() / "imported", ignore_errors=True)
    return rows


def shared(catalog: Catalog) -> list[tuple[str, int, int]]:
    """For each release how many components it has, and how many of them are the newest release's own builds."""
    newest = {catalog.choose(catalog.release(RELEASE), role, "lab").source.folder for role in catalog.release(RELEASE).pins}
    rows = []
    for name in catalog.names():
        release = catalog.release(name)
        folders = [catalog.choose(release, role, "lab").source.folder for role in release.pins]
        rows.append((name, len(folders), sum(folder in newest for folder in folders)))
    return rows


def main(wanted: list[str]) -> None:
    """Measure and write."""
    catalog = Catalog()
    release = catalog.release(RELEASE)
    roles = [*release.tools, *release.pins]
    chosen = {role: catalog.choose(release, role, "lab") for role in roles}
    build_all(catalog, list(chosen.values()), release.stamp, print)
    names = roles if wanted == ["all"] else wanted or list(SOME)
    rows = []
    for name in names:
        print(f"bench: {name}, cold", flush=True)
        rows.append(component(catalog, chosen[name], release.stamp))
        print(f"bench: {rows[-1]}", flush=True)
    times = whole()
    built = [json.loads(path.read_text()) for path in sorted((paths.cache() / "builds").glob("*/build.json"))]
    built = [item for item in built if "component" in item]  # pause has a record of another kind
    lines = [
        "# Benchmarks of the distribution",
        "",
        f"Written by `make bench-dist` on {os.cpu_count()} cores. Compare the ratios of one run, not seconds of two machines.",
        "",
        "## Components",
        "Cold: an empty build cache. Warm: the same again with what that left. A changed line of source is one in a program's main package.",
        "",
        "| component | cold | warm | of cold | one line of source changed | of cold | one line of its lock changed | of cold | unchanged | of cold |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        *(row.line() for row in rows),
        "",
        f"## The release {RELEASE} as a whole",
        "| what | took |",
        "| --- | --- |",
        *(f"| {name} | {human_duration(seconds)} |" for name, seconds in times),
        "",
        "## What the releases share",
        "| release | components | shared with the newest |",
        "| --- | --- | --- |",
        *(f"| {name} | {count} | {same} |" for name, count, same in shared(catalog)),
        "",
        "## As they were last built into this cache (some beside others, some from a warm build cache)",
        "| component | seconds |",
        "| --- | --- |",
        *(f"| {item['component']} {item['version']} | {item['seconds']:.0f} |" for item in built),
    ]
    (REPO / "docs" / "benchmarks-distribution.md").write_text("\n".join(lines) + "\n")
    print("bench: docs/benchmarks-distribution.md is written")


if __name__ == "__main__":
    main(sys.argv[1:])
