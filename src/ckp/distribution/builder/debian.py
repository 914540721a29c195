"""Which Debian packages a layer was made of, with the hashes of their archives: recorded by hooks of mmdebstrap while they are at hand.

A finished layer has dpkg's database, but no trace of the archives' hashes; a layer of a single program has no database at all.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from ckp.kits import paths
from ckp.kits.errors import CkpError, NotFound
from ckp.kits.files import atomic_write
from ckp.kits.processes import run

MEMBER = "+"
"""Begins a line of a listing that names a file of the package before it."""


@dataclass(frozen=True, order=True)
class DebianPackage:
    """A binary package of Debian.

    Args:
        source: the source package, with its version where that differs: `gcc-12` or `glibc (2.36-9)`.
        sha256: of the archive (.deb), as Debian's signed index has it, or as it was fetched; empty if unknown.
    """

    name: str
    version: str
    architecture: str
    source: str = ""
    sha256: str = ""

    @property
    def key(self) -> tuple[str, str, str]:
        """What tells it from others."""
        return self.name, self.version, self.architecture


def installed_hook(listing: Path) -> list[str]:
    """Arguments for mmdebstrap that write what apt's index says of each installed package to `listing`. To stand before what drops that index."""
    query = """dpkg-query --admindir="$1/var/lib/dpkg" -W -f '${Package}:${Architecture}=${Version} '"""
    return [f'--customize-hook=APT_CONFIG="$MMDEBSTRAP_APT_CONFIG" apt-cache show $({query}) > {shlex.quote(str(listing))}']


def extracted_hook(listing: Path) -> list[str]:
    """Arguments for mmdebstrap's variant `extract` that write each fetched archive's hash, fields and files to `listing`."""
    each = 'echo; echo "SHA256: $(sha256sum <"$deb" | cut -c1-64)"; dpkg-deb -f "$deb" Package Version Architecture Source'
    members = f"dpkg-deb --fsys-tarfile \"$deb\" | tar -t | sed 's/^/{MEMBER}/'"
    return [f'--extract-hook=for deb in "$1"/var/cache/apt/archives/*.deb; do {each}; {members}; done > {shlex.quote(str(listing))}']


def parse_packages(text: str) -> list[DebianPackage]:
    """The packages of a listing or of dpkg's status: stanzas, of which the fields that identify a package are taken (deb822(5))."""
    found = {package.key: package for package, _ in _stanzas(text)}
    return sorted(found.values())


def parse_members(text: str) -> dict[str, DebianPackage]:
    """Path without a leading slash -> the package that brought it, of an `extracted_hook` listing."""
    return {member: package for package, members in _stanzas(text) for member in members}


def _stanzas(text: str) -> Iterable[tuple[DebianPackage, list[str]]]:
    for stanza in text.split("\n\n"):
        fields: dict[str, str] = {}
        members = []
        for line in stanza.splitlines():
            if line.startswith(MEMBER):
                if not line.endswith("/"):
                    members.append(line.removeprefix(MEMBER).removeprefix("./"))
            elif line[:1].strip() and ":" in line:
                name, _, value = line.partition(":")
                fields.setdefault(name, value.strip())
        if "Package" in fields and fields.get("Status", "install ok installed").endswith(" installed"):
            names = ("Package", "Version", "Architecture", "Source", "SHA256")
            yield DebianPackage(*(fields.get(name, "") for name in names)), members


def owners(listing: str, files: Iterable[str]) -> set[DebianPackage]:
    """The packages of an `extracted_hook` listing that brought these files. CkpError names one that none of them did.

    Args:
        files: paths without a leading slash; what a package lists below /lib may lie below /usr/lib.
    """
    members = parse_members(listing)
    found = set()
    for path in files:
        names = [path, path.removeprefix("usr/"), f"usr/{path}"]
        package = next((members[name] for name in names if name in members), None)
        if package is None:
            raise CkpError(f"no Debian package that was fetched brought /{path}")
        found.add(package)
    return found


# -- of this machine ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Installed:
    packages: dict[str, DebianPackage]
    depends: dict[str, tuple[str, ...]]
    """What each depends on; of alternatives, all of them."""
    provided: dict[str, list[str]]


@cache
def _installed(_database: str, _changed: int) -> _Installed:
    pattern = "\t".join(("${Package}", "${Status}", "${Version}", "${Architecture}", "${source:Package} (${source:Version})"))
    pattern += "\t${Pre-Depends}, ${Depends}\t${Provides}\n"
    found = _Installed({}, {}, {})
    for line in run(["dpkg-query", "-W", "-f", pattern], timeout=30, what="reading dpkg's database").stdout.splitlines():
        name, status, version, architecture, source, depends, provides = line.split("\t")
        if not status.endswith(" installed") or (name in found.packages and architecture not in ("amd64", "all")):
            continue
        found.packages[name] = DebianPackage(name, version, architecture, source)
        found.depends[name] = _names(depends)
        for virtual in _names(provides):
            found.provided.setdefault(virtual, []).append(name)
    return found


def _names(relation: str) -> tuple[str, ...]:
    """The packages that a relation names (deb-control(5)): without versions, architectures and the structure of alternatives."""
    return tuple(match[1] for part in re.split(r"[,|]", relation) if (match := re.match(r"\s*([a-z0-9][a-z0-9+.-]+)", part)))


def _here() -> _Installed:
    status = Path(os.environ.get("DPKG_ADMINDIR") or "/var/lib/dpkg") / "status"
    return _installed(str(status), status.stat().st_mtime_ns if status.exists() else 0)


def installed_here(names: Sequence[str]) -> list[DebianPackage]:
    """These packages of this machine. NotFound names one that is missing."""
    packages = _here().packages
    if missing := set(names) - packages.keys():
        raise NotFound(f"these packages are not installed: {', '.join(sorted(missing))}", resolution="`make setup` installs what a build needs")
    return sorted(packages[name] for name in set(names))


def toolchain_here(names: Sequence[str]) -> list[DebianPackage]:
    """These packages and all that they depend on: `gcc` is a name for the compiler's package, and stays when that changes. NotFound as above."""
    here, found = _here(), {item.name for item in installed_here(names)}
    todo = list(found)
    while todo:
        wanted = [real for name in here.depends[todo.pop()] for real in (name, *here.provided.get(name, ())) if real in here.packages]
        todo += set(wanted) - found
        found |= set(wanted)
    return sorted(here.packages[name] for name in found)


def c_record(names: Sequence[str]) -> dict[str, Any]:
    """What a build in C writes down: the packages that are named for it (`c_packages`), and its whole toolchain (`c_toolchain`)."""
    return {"c_packages": [asdict(item) for item in installed_here(names)], "c_toolchain": [asdict(item) for item in toolchain_here(names)]}


# -- beside a layer ----------------------------------------------------------------------------------------------------


def _record(digest: str) -> Path:
    return paths.cache() / "layers" / f"{digest.removeprefix('sha256:')}.debian.json"


def remember(digest: str, packages: Iterable[DebianPackage]) -> None:
    """Keep which packages the layer with this digest was made of."""
    atomic_write(_record(digest), json.dumps([asdict(item) for item in sorted(set(packages))], indent=1) + "\n")


def remembered(digest: str) -> list[DebianPackage] | None:
    """The packages of a layer; None if nothing was kept."""
    record = _record(digest)
    return [DebianPackage(**item) for item in json.loads(record.read_text())] if record.exists() else None


def with_hashes(packages: Iterable[DebianPackage], known: Iterable[DebianPackage]) -> list[DebianPackage]:
    """`packages` (as dpkg's database has them), each with the archive's hash of its like among `known`."""
    hashes = {item.key: item.sha256 for item in known}
    return [replace(item, sha256=hashes.get(item.key, item.sha256)) for item in packages]
