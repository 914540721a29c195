"""The one program in C: upstream's pause.c, linked statically as in its Makefile, cached by a hash of all that decides it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ckp.distribution.builder.debian import c_record, toolchain_here
from ckp.distribution.builder.goflags import pause_flags
from ckp.kits import paths
from ckp.kits.files import building_directory, exclusive, sha256_bytes, sha256_file
from ckp.kits.processes import run

C_PACKAGES = ("gcc", "libc6-dev")
SOURCE = "pause.c"
"""Among the files of the component kubernetes."""


def _place(source: Path, tag: str) -> Path:
    parts = [sha256_file(source), *pause_flags(tag), *(f"{item.name} {item.version}" for item in toolchain_here(C_PACKAGES))]
    return paths.cache() / "builds" / f"pause-{tag}-{sha256_bytes(chr(10).join(parts).encode())[:20]}"


def build(source: Path, tag: str) -> Path:
    """The program, compiled if it is not in the cache.

    Raises:
        NotFound: the compiler or the C library is not installed.
    """
    final = _place(source, tag)
    with exclusive(final.with_name(final.name + ".lock"), what="building pause", timeout=120):
        if not (final / "build.json").exists():
            with building_directory(final) as scratch:
                run(["gcc", *pause_flags(tag), "-o", scratch / "pause", source], timeout=60, what="building pause")
                (scratch / "build.json").write_text(json.dumps(c_record(C_PACKAGES), indent=1, sort_keys=True) + "\n")
    return final / "pause"


def recorded(source: Path, tag: str) -> dict[str, Any]:
    """The record of the build, with the C packages that it used; empty if it was not built with those that are installed now."""
    path = _place(source, tag) / "build.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found
