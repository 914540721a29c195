"""Binaries to signed deb packages: nFPM packs, our key signs.

A package's name, files, dependencies and scripts are data below `packaging/<name>/package.toml`; what they share is here.
The signature is a `_gpgorigin` member over the members before it, as debsigs and dpkg-sig know it.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckp.api.names import MAINTAINER
from ckp.clients.openpgp import SigningKey
from ckp.dist.build import Built
from ckp.kits import paths
from ckp.kits.errors import CkpError, InvalidInput
from ckp.kits.files import building_directory, exclusive, sha256_bytes, sha256_file
from ckp.kits.processes import run

RECIPE = "1"
SOURCE_DATE = "1767225600"
"""2026-01-01: the time of every file in a package, so that the same content gives the same bytes."""
AR_MAGIC = b"!<arch>\n"


@dataclass(frozen=True)
class Package:
    """A signed package on disk."""

    name: str
    version: str
    path: Path
    sha256: str


@dataclass(frozen=True)
class Recipe:
    """`packaging/<name>/package.toml`: what goes in, and where it comes from.

    Contents' sources are `<component>/bin/<program>`, `<component>/files/<path>`, `self/<file>` (beside the recipe) or
    `extra/<name>` (handed in by the caller).
    """

    name: str
    folder: Path
    data: Mapping[str, Any]

    @classmethod
    def read(cls, name: str) -> Recipe:
        """The recipe of the package `name`."""
        folder = paths.REPO / "packaging" / name
        try:
            return cls(name, folder, tomllib.loads((folder / "package.toml").read_text()))
        except (FileNotFoundError, tomllib.TOMLDecodeError) as error:
            raise InvalidInput(f"{folder}/package.toml cannot be read: {error}") from error

    def source(self, reference: str, built: Mapping[str, Built], extra: Mapping[str, Path]) -> Path:
        """The file that a content's `src` names."""
        origin, _, rest = reference.partition("/")
        if origin == "self":
            return self.folder / rest
        if origin == "extra":
            return extra[rest]
        return built[origin].folder / rest


def make_package(recipe: Recipe, version: str, built: Mapping[str, Built], nfpm: Path, key: SigningKey, *, extra: Mapping[str, Path] | None = None) -> Package:
    """Pack and sign, or find it done: the key of the result covers the content, the recipe and the signing key's fingerprint."""
    inputs = extra or {}
    contents = []
    fingerprints = [RECIPE, version, key.fingerprint, json.dumps(recipe.data, sort_keys=True)]
    for item in recipe.data["contents"]:
        entry = {"dst": item["dst"], "type": item.get("type", "file")}
        if "src" in item:
            source = recipe.source(item["src"], built, inputs)
            fingerprints.append(sha256_file(source))
            entry["src"] = str(source)
        mode = item.get("mode", "0644")
        entry["file_info"] = {"mode": int(mode, 8), "owner": "root", "group": "root", "mtime": "2026-01-01T00:00:00Z"}
        contents.append(entry)
    scripts = {when: recipe.folder / file for when, file in recipe.data.get("scripts", {}).items()}
    fingerprints += [sha256_file(script) for script in scripts.values()]
    digest = sha256_bytes("\n".join(fingerprints).encode())[:20]
    name = recipe.name
    final = paths.cache() / "packages" / f"{name}-{version}-{digest}"
    deb = final / f"{name}.deb"
    with exclusive(final.with_name(final.name + ".lock"), what=f"packing {name}", timeout=600):
        if not deb.exists():
            with building_directory(final) as scratch:
                unsigned = scratch / "unsigned.deb"
                _pack(recipe, version, contents, scripts, nfpm, unsigned)
                (scratch / f"{name}.deb").write_bytes(sign_deb(unsigned.read_bytes(), key))
                unsigned.unlink()
    return Package(name, version, deb, sha256_file(deb))


def _pack(recipe: Recipe, version: str, contents: list[dict[str, Any]], scripts: Mapping[str, Path], nfpm: Path, target: Path) -> None:
    data = recipe.data
    config = {
        "name": recipe.name,
        "arch": "amd64",
        "platform": "linux",
        "version": version,
        "version_schema": "none",
        "section": data.get("section", "admin"),
        "priority": "optional",
        "maintainer": f"{MAINTAINER} <support@coredge.io>",
        "vendor": MAINTAINER,
        "homepage": "https://coredge.io",
        "description": data["description"],
        "license": data.get("license", "Apache-2.0"),
        "depends": data.get("depends", []),
        "recommends": data.get("recommends", []),
        "conflicts": data.get("conflicts", []),
        "replaces": data.get("replaces", []),
        "provides": data.get("provides", []),
        "mtime": "2026-01-01T00:00:00Z",
        "contents": contents,
        "scripts": {when: str(path) for when, path in scripts.items()},
        "deb": {"compression": "zstd" if data.get("zstd", False) else "gzip"},
    }
    with tempfile.TemporaryDirectory(prefix="ckp-nfpm-") as work:
        file = Path(work) / "nfpm.yaml"
        file.write_text(json.dumps(config))  # JSON is YAML
        run(
            [nfpm, "package", "--config", file, "--packager", "deb", "--target", target],
            timeout=300,
            env={"SOURCE_DATE_EPOCH": SOURCE_DATE},
            what=f"packing {recipe.name}",
        )


def sign_deb(unsigned: bytes, key: SigningKey) -> bytes:
    """The package with a `_gpgorigin` member: a detached signature over the concatenated content of all members before it (debsigs(1))."""
    signature = key.sign(b"".join(content for _, content in ar_members(unsigned)))
    return unsigned + ar_member("_gpgorigin", signature)


def ar_members(archive: bytes) -> list[tuple[str, bytes]]:
    """Names and contents of an ar archive that we made ourselves. Untrusted ones are read by ckp.agent.verify."""
    if not archive.startswith(AR_MAGIC):
        raise CkpError("not an ar archive")
    members, position = [], len(AR_MAGIC)
    while position < len(archive):
        header = archive[position : position + 60]
        size = int(header[48:58])
        members.append((header[:16].decode().strip().rstrip("/"), archive[position + 60 : position + 60 + size]))
        position += 60 + size + size % 2
    return members


def ar_member(name: str, content: bytes) -> bytes:
    """One member with its header (deb(5)): fixed time and owner, padded to an even length."""
    header = f"{name:<16}{SOURCE_DATE:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n".encode()
    return header + content + (b"\n" if len(content) % 2 else b"")


def copy_packages(packages: list[Package], folder: Path) -> None:
    """Lay packages into a folder under the names that bundles use; hard links where the file system allows."""
    folder.mkdir(parents=True, exist_ok=True)
    for package in packages:
        target = folder / f"{package.name}.deb"
        target.unlink(missing_ok=True)
        try:
            os.link(package.path, target)
        except OSError:
            shutil.copy(package.path, target)
