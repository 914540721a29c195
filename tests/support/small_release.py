"""A release of a few shell scripts: packing, signing, images and bundles are the real ones, only compiling is not.

As a program it takes the place of `python -m ckp.distribution.prove.rebuild`.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from ckp.catalog.load import Catalog
from ckp.catalog.models import Release, Source
from ckp.distribution import release
from ckp.distribution.builder import component as build
from ckp.distribution.builder.component import Built
from ckp.distribution.images.layers import Entry, file_layer
from ckp.distribution.images.make import Image
from ckp.distribution.packages import pack as packages
from ckp.distribution.prove import rebuild
from ckp.kits import paths
from ckp.kits.files import sha256_file

RELEASE = "v1.35.1"
PINS, TOOLS = ("kubernetes", "etcd", "cilium", "imgpkg"), ("nfpm",)
PACKAGES = (("kubelet", "kubernetes"), ("kubectl", "kubernetes"))
NFPM, CHANGED = "SMALL_RELEASE_NFPM", "SMALL_RELEASE_CHANGED"
"""Environment: a built nFPM, and programs (with commas) that come out otherwise."""


def trimmed(found: Release) -> Release:
    """The release with few components and two bundles."""
    pins, tools = ({role: known[role] for role in wanted} for wanted, known in ((PINS, found.pins), (TOOLS, found.tools)))
    bundles = tuple(target for target in found.bundles if target.os_version in ("12", "9"))
    return found.model_copy(update={"pins": pins, "tools": tools, "bundles": bundles, "stand_ins": {}, "cni": {}})


def build_into(catalog: Catalog, source: Source, stamp: str, target: Path, say: Callable[[str], None], environment: Mapping[str, str] | None = None) -> None:
    """Scripts in the place of programs, a line in the place of files."""
    (target / "bin").mkdir()
    for binary in source.binaries:
        path = target / "bin" / binary.name
        changed = "echo and more\n" if binary.name in os.environ.get(CHANGED, "").split(",") else ""
        path.write_text(f"#!/bin/sh\necho {binary.name} {source.version} {stamp}\n{changed}")
        if binary.name == "nfpm":
            shutil.copy(os.environ[NFPM], path)
        path.chmod(0o755)
    for wanted in source.files:
        path = target / "files" / wanted.as_ / ("Chart.yaml" if wanted.as_ == "chart" else "")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{source.component} {wanted.path}\n")
    binaries = {binary.name: {"sha256": sha256_file(target / "bin" / binary.name)} for binary in source.binaries}
    record = {"component": source.component, "version": source.version, "seconds": 0.0, "binaries": binaries}
    (target / "build.json").write_text(json.dumps(record))


class Images:
    """Three images in the place of twenty; two of them are what a bundle's manifests name."""

    def __init__(self, found: Release, built: Mapping[str, Built], say: Callable[[str], None], agents: object = (), made: object = ()) -> None:
        self.found, self.built = found, built

    def all(self) -> list[Image]:
        made = []
        for name, role, tag in (("etcd", "etcd", "3.5.15-0"), ("kube-proxy", "kubernetes", self.found.stamp), ("local-path-provisioner", "etcd", "v1")):
            program = self.built[role].binary("etcdctl" if name == "local-path-provisioner" else name)
            made.append(Image(name, tag, (file_layer([Entry(f"/usr/local/bin/{name}", program, 0o755)]),)))
        return made


def zipapp() -> Path:
    """What the agent's package brings, without what pip would fetch."""
    path = paths.cache() / "zipapp"
    path.write_text("#!/usr/bin/python3 -I\n")
    return path


def install(put: Callable[[object, str, object], None]) -> None:
    """Put the small parts in the place of the large ones; `put` is setattr, or pytest's."""
    read = Catalog.release
    put(Catalog, "release", lambda self, name: trimmed(read(self, name)))
    put(build, "build_into", build_into)
    put(packages, "_added", lambda *_: [])  # licences and completions come from real programs
    put(release, "PACKAGES", PACKAGES)
    put(release, "ImageBuilder", Images)
    put(release, "build_zipapp", zipapp)


if __name__ == "__main__":
    install(setattr)
    sys.exit(rebuild.main(sys.argv[1:]))
