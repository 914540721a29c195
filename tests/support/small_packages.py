"""Signed packages of a few hundred bytes, packed by the nFPM of the build: for tests of what handles packages."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from ckp.catalog.load import Catalog
from ckp.clients.signing.openpgp import SigningKey
from ckp.distribution.builder.component import build_component
from ckp.distribution.packages.debs import SOURCE_DATE, sign_deb
from ckp.distribution.packages.pack import Format, Package
from ckp.distribution.packages.rpm import sign_rpm
from ckp.kits import paths
from ckp.kits.files import sha256_file
from ckp.kits.processes import run
from tests.support.marks import needs

OWNER = "Coredge.io CKP packages <support@coredge.io>"
MAINTAINER = "Coredge.io <support@coredge.io>"


def nfpm() -> Path:
    """A built nFPM: any serves, and it is built if there is none."""
    needs("release")
    return _nfpm()


@cache
def _nfpm() -> Path:
    found = sorted((paths.cache() / "builds").glob("nfpm-*/bin/nfpm"))
    if found:
        return found[-1]
    catalog = Catalog()
    release = catalog.release(catalog.names()[-1])
    return build_component(catalog, catalog.choose(release, "nfpm", "lab"), release.stamp, print).binary("nfpm")


def small_package(
    folder: Path,
    key: SigningKey | None,
    name: str,
    version: str,
    kind: Format,
    *,
    content: str = "",
    depends: Sequence[str] = (),
    maintainer: str = MAINTAINER,
    provides: Sequence[str] = (),
    files: Mapping[str, str] | None = None,
) -> Package:
    """A package with one program, /usr/bin/<name>, that prints `content`; unsigned without a key."""
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / f"{name}-{version}.sh"
    program.write_text(f"#!/bin/sh\necho {content or f'{name} {version}'}\n")
    contents = [{"src": str(program), "dst": f"/usr/bin/{name}", "file_info": {"mode": 0o755, "mtime": "2026-01-01T00:00:00Z"}}]
    for destination, text in (files or {}).items():
        source = folder / f"{name}-{version}-{destination.replace('/', '_')}"
        source.write_text(text)
        contents.append({"src": str(source), "dst": destination, "file_info": {"mode": 0o644, "mtime": "2026-01-01T00:00:00Z"}})
    upstream, _, release = version.partition("-")
    config = {
        "name": name,
        "arch": "amd64",
        "platform": "linux",
        "version": version if kind == "deb" else upstream,
        "version_schema": "none",
        "release": "" if kind == "deb" else release,
        "maintainer": maintainer,
        "vendor": maintainer.partition(" <")[0],
        "description": f"{name}, small\nfor a test",
        "depends": list(depends),
        "provides": list(provides),
        "mtime": "2026-01-01T00:00:00Z",
        "contents": contents,
        "deb": {"compression": "zstd"},
        "rpm": {"packager": maintainer, "compression": "zstd", "buildhost": "ckp"},
    }
    file = folder / "nfpm.json"
    file.write_text(json.dumps(config))  # JSON is YAML
    path = folder / f"{name}-{version}.{kind}"
    argv: list[str | Path] = [nfpm(), "package", "--config", file, "--packager", kind, "--target", path]
    run(argv, timeout=60, env={"SOURCE_DATE_EPOCH": SOURCE_DATE}, what=f"packing {name}")
    if key is not None:
        sign = sign_deb if kind == "deb" else sign_rpm
        path.write_bytes(sign(path.read_bytes(), key))
    return Package(name, version, path, sha256_file(path), kind)
