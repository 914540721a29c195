"""From a source lock to binaries: one component at a time, into a content-addressed place.

The key covers all that decides the result: the lock's three files, the toolchain's hash, with cgo the packages of the C toolchain, the version
stamp and this recipe.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ckp.catalog.load import Catalog, Chosen
from ckp.catalog.models import Source
from ckp.distribution.builder.debian import c_record, toolchain_here
from ckp.distribution.builder.gofailures import explain
from ckp.distribution.builder.goflags import build_flags
from ckp.distribution.builder.toolchain import ensure_toolchain, go_environment
from ckp.kits import paths
from ckp.kits.clock import human_duration
from ckp.kits.errors import CkpError, NotFound
from ckp.kits.files import building_directory, exclusive, require_free_space, sha256_bytes, sha256_file
from ckp.kits.processes import ProcessFailed, run

RECIPE = "1"
BUILD_TIMEOUT = 3000.0
"""Seconds for one binary: kube-apiserver takes 7 minutes cold on two cores; a slow machine may take much longer."""


@dataclass(frozen=True)
class Built:
    """A component that is built: `folder/bin` has its programs, `folder/files` what else of its source is needed."""

    chosen: Chosen
    folder: Path
    key: str
    fresh: bool

    def binary(self, name: str) -> Path:
        """The path of one of its programs."""
        return self.folder / "bin" / name

    def file(self, name: str) -> Path:
        """The path of one of its further files or folders."""
        return self.folder / "files" / name


def _memory_for_time() -> dict[str, str]:
    """Go's tools spend a quarter of their time on collecting garbage of processes that soon end; what they make is the same. The user's own settings win."""
    return {name: os.environ.get(name, value) for name, value in (("GOGC", "400"), ("GOMEMLIMIT", "1500MiB"))}


def build_key(catalog: Catalog, source: Source, stamp: str) -> str:
    """The content address of a build's result. NotFound if a package is missing that it needs for C."""
    parts = [RECIPE, stamp if "{stamp}" in "".join(source.ldflags) else "", catalog.toolchain_sum(source.go)]
    parts += [f"{item.name} {item.version}" for item in toolchain_here(source.c_packages)] if source.cgo else []
    parts += [sha256_file(source.folder / name) for name in ("source.toml", "go.mod", "go.sum")]
    return sha256_bytes("\n".join(parts).encode())[:20]


def is_built(catalog: Catalog, chosen: Chosen, stamp: str) -> bool:
    """Whether this very component is in the cache, made with what is installed here."""
    try:
        return (_place(chosen.source, build_key(catalog, chosen.source, stamp)) / "build.json").exists()
    except NotFound:
        return False


def _place(source: Source, key: str) -> Path:
    return paths.cache() / "builds" / f"{source.component}-{source.version}-{key}"


def build_component(catalog: Catalog, chosen: Chosen, stamp: str, say: Callable[[str], None]) -> Built:
    """Build a component, or find it built.

    Raises:
        VerificationFailed: a source is not what the lock says.
        DiskFull: where there is no room.
        CkpError: which module the proxy refuses and what then, or the compiler's last words.
    """
    source = chosen.source
    key = build_key(catalog, source, stamp)
    final = _place(source, key)
    with exclusive(final.with_name(final.name + ".lock"), what=f"building {source.component} {source.version}", timeout=2 * BUILD_TIMEOUT):
        if (final / "build.json").exists():
            return Built(chosen, final, key, fresh=False)
        require_free_space(paths.cache(), 4, what=f"building {source.component}")
        with building_directory(final) as scratch:
            build_into(catalog, source, stamp, scratch, say)
    return Built(chosen, final, key, fresh=True)


def build_into(catalog: Catalog, source: Source, stamp: str, target: Path, say: Callable[[str], None], environment: Mapping[str, str] | None = None) -> None:
    """Build a component into a folder of the caller's; `build_component` keeps the result, `ckp dist reproduce` compares it.

    Args:
        environment: added to that of every go command of ours, such as another build cache.
    """
    go = ensure_toolchain(catalog, source.go)
    started = time.monotonic()
    sizes: dict[str, dict[str, object]] = {}
    target.mkdir(parents=True, exist_ok=True)
    # Inside of the caller's scratch, go's and gcc's temporary files as well: what we can't remove, being killed, the next build of it does.
    with tempfile.TemporaryDirectory(dir=target, prefix=".work-") as work:
        temporary = Path(work) / "tmp"
        temporary.mkdir()
        environment = {**go_environment(cgo=source.cgo), **_memory_for_time(), "TMPDIR": str(temporary), **(environment or {})}
        for name in ("go.mod", "go.sum"):
            shutil.copy(source.folder / name, work)
        for binary in source.binaries:
            begun = time.monotonic()
            out = target / "bin" / binary.name
            verb = ("test", "-c", "-vet=off") if binary.test else ("build",)  # its source was vetted upstream, and that changes no program
            argv: list[str | Path] = [go, *verb, *build_flags(source, stamp), "-o", out, binary.package]
            try:
                run(argv, cwd=Path(work), env=environment, timeout=BUILD_TIMEOUT, what=f"building {binary.name} of {source.component} {source.version}")
            except ProcessFailed as error:
                raise explain(error, source) from error
            seconds = time.monotonic() - begun
            sizes[binary.name] = {"sha256": sha256_file(out), "bytes": out.stat().st_size, "seconds": round(seconds, 1)}
            say(f"{source.component} {source.version}: {binary.name}, {out.stat().st_size >> 20} MiB, {human_duration(seconds)}")
        for wanted in source.files:
            _copy_source(go, environment, Path(work), wanted.module, wanted.path, target / "files" / wanted.as_)
    record: dict[str, object] = {
        "component": source.component,
        "version": source.version,
        "stamp": stamp,
        "go": source.go,
        "modules": list(source.modules),
        "seconds": round(time.monotonic() - started, 1),
        "binaries": sizes,
    }
    if source.cgo:
        record |= c_record(source.c_packages)
    (target / "build.json").write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")


def _copy_source(go: Path, environment: Mapping[str, str], work: Path, module: str, path: str, target: Path) -> None:
    """Copy from the module cache, whose content go has checked against go.sum."""
    listed = run([go, "list", "-mod=readonly", "-m", "-f", "{{.Dir}}", module], cwd=work, env=environment, timeout=300, what=f"finding {module}")
    origin = Path(listed.stdout.strip()) / path
    if not origin.exists():
        raise CkpError(f"the source of {module} has no {path}", resolution="correct [[files]] of its source.toml")
    target.parent.mkdir(parents=True, exist_ok=True)
    if origin.is_dir():
        shutil.copytree(origin, target, symlinks=True)
        for entry in target.rglob("*"):
            entry.chmod(0o755 if entry.is_dir() else 0o644)  # the module cache is read-only
        target.chmod(0o755)
    else:
        shutil.copy(origin, target)
        target.chmod(0o644)
