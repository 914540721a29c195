"""The arguments that programs are built with: one list, for the build, its provenance and the comparison with upstream."""

from __future__ import annotations

from ckp.catalog.models import Source
from ckp.distribution.builder.toolchain import go_environment

PATH_VARIABLES = ("GOMODCACHE", "GOCACHE")
"""Where things lie on this machine; -trimpath keeps it out of the result."""


def linker_flags(source: Source, stamp: str) -> list[str]:
    """What goes into -ldflags: no symbol table and no DWARF, as upstream has it, and the version stamps."""
    flags = ["-s", "-w", *(source.stamped(flag, stamp) for flag in source.ldflags)]
    return [*flags, f'-extldflags "{source.extldflags}"'] if source.extldflags else flags


def build_flags(source: Source, stamp: str) -> list[str]:
    """The flags of `go build` for every program of the component, output and package aside."""
    return ["-mod=readonly", "-trimpath", "-tags", ",".join(source.tags), "-ldflags", " ".join(linker_flags(source, stamp))]


def build_environment(source: Source) -> dict[str, str]:
    """The environment of `go build`, as far as it decides the result."""
    return {name: value for name, value in go_environment(cgo=source.cgo).items() if name not in PATH_VARIABLES}


def pause_flags(tag: str) -> list[str]:
    """The flags of gcc for pause, as upstream's build/pause/Makefile has them, linked statically and without symbols."""
    return ["-Os", "-Wall", "-Werror", "-static", "-s", f"-DVERSION={tag}"]
