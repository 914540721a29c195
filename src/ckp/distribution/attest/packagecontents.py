"""The contents of a deb or rpm, read by its own tools: dpkg-deb and rpm."""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from ckp.distribution.attest.layercontents import File
from ckp.distribution.packages.pack import Package
from ckp.kits import paths
from ckp.kits.errors import InvalidInput
from ckp.kits.files import atomic_write, sha256_file
from ckp.kits.processes import ProcessFailed, run

TIMEOUT = 300.0
RECIPE = "1"


@dataclass(frozen=True)
class PackageContents:
    """Files by path (links and folders left out), the version as its package manager writes it, and what it depends on."""

    version: str
    depends: tuple[str, ...]
    files: tuple[File, ...]


def read_package(package: Package) -> PackageContents:
    """The contents of a package; read once, and cached by its hash. Raises InvalidInput if it cannot be read."""
    record = paths.cache() / "sbom" / "packages" / f"{RECIPE}-{package.sha256}.json"
    if record.exists():
        data = json.loads(record.read_text())
        return PackageContents(data["version"], tuple(data["depends"]), tuple(File(**item) for item in data["files"]))
    try:
        found = _read_deb(package.path) if package.format == "deb" else _read_rpm(package.path)
    except ProcessFailed as error:
        raise InvalidInput(f"{package.path} cannot be read as a {package.format}", details=str(error)) from error
    atomic_write(record, json.dumps(asdict(found), sort_keys=True))
    return found


def _read_deb(path: Path) -> PackageContents:
    listed = run(["dpkg-deb", "--show", "--showformat=${Version}\n${Depends}\n", path], timeout=TIMEOUT, what=f"reading {path.name}").stdout
    version, depends = listed.split("\n")[:2]
    with tempfile.TemporaryDirectory(prefix="ckp-deb-") as work:
        run(["dpkg-deb", "--extract", path, work], timeout=TIMEOUT, what=f"unpacking {path.name}")
        root = Path(work)
        found = [item for item in sorted(root.rglob("*")) if item.is_file() and not item.is_symlink()]
        files = [File(str(item.relative_to(root)), sha256_file(item), item.stat().st_size) for item in found]
    return PackageContents(version, tuple(item.strip() for item in depends.split(",") if item.strip()), tuple(files))


def _read_rpm(path: Path) -> PackageContents:
    # Signatures are another's matter (`ckp dist verify`): without --nosignature rpm would look for keys in this machine's database.
    query: list[str | Path] = ["rpm", "--query", "--nosignature", "--package"]
    version = run([*query, "--queryformat", "%{VERSION}-%{RELEASE}", path], timeout=TIMEOUT, what=f"reading {path.name}").stdout
    depends = run([*query, "--requires", path], timeout=TIMEOUT, what=f"reading {path.name}").stdout.splitlines()
    files = []
    for line in run([*query, "--dump", path], timeout=TIMEOUT, what=f"reading {path.name}").stdout.splitlines():
        # path size mtime digest mode owner group isconfig isdoc rdev symlink (rpm(8)); a path may have spaces, the rest not.
        name, size, _, digest, mode = line.rsplit(" ", 10)[:5]
        if mode.startswith("0100"):
            files.append(File(name.lstrip("/"), digest, int(size)))
    wanted = {item.strip() for item in depends if not item.startswith("rpmlib(")}
    return PackageContents(version, tuple(sorted(wanted)), tuple(sorted(files, key=lambda item: item.path)))
