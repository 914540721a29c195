"""The one-file tool for hosts: agent and standalone installer in a zipapp, and the package that brings it."""

from __future__ import annotations

import tempfile
import zipfile
from pathlib import Path

from ckp.distribution.builder.wheels import install_locked
from ckp.distribution.packages.licences import NAMES
from ckp.distribution.packages.versions import own_version
from ckp.kits import paths
from ckp.kits.files import building_directory, exclusive, sha256_bytes, sha256_file

SHEBANG = b"#!/usr/bin/python3 -I\n"
MAIN = """import sys

from ckp.hosttool.__main__ import main

sys.exit(main())
"""
EPOCH = (2026, 1, 1, 0, 0, 0)
RECIPE = "3"
ROOMS = ("agent", "hostkit", "hosttool", "standalone", "verify")
"""What the one-file tool is made of: all of it runs on the system's Python."""


def agent_sources() -> list[Path]:
    """The files of the one-file tool."""
    root = paths.source()
    return [root / "__init__.py", *(path for room in ROOMS for path in sorted((root / room).rglob("*.py")))]


def agent_version(keyring: Path) -> str:
    """The version of the agent's package: other code or another trusted keyring gives another one."""
    return own_version("ckp-agent", _code_digest(), sha256_file(keyring))


def tag_of_version(version: str) -> str:
    """The tag of the image with this version's packages: a tag cannot have a plus sign, and a version has no underscore."""
    return version.replace("+", "_")


def version_of_tag(tag: str) -> str:
    """The version of the package in the image with this tag."""
    return tag.replace("_", "+")


def _requirements() -> Path:
    return paths.data("requirements", "agent.txt")


def _code_digest() -> str:
    """A hash of all that decides the one-file tool's bytes."""
    sources = "".join(f"{path.relative_to(paths.source())}{sha256_file(path)}" for path in agent_sources())
    return sha256_bytes("".join([RECIPE, sources, sha256_file(_requirements())]).encode())


def build_zipapp() -> Path:
    """The executable zip: equal sources give equal bytes (fixed times, sorted members, stored order)."""
    final = paths.cache() / "agent" / _code_digest()[:20]
    with exclusive(final.with_name(final.name + ".lock"), what="making the host tool", timeout=300):
        if not final.exists():
            with building_directory(final) as scratch:
                write_zipapp(scratch / "ckp-agent", _bundled(_requirements()))
    return final / "ckp-agent"


def _bundled(requirements: Path) -> list[tuple[str, bytes]]:
    """websockets without its compiled speed-ups, since it must run on every host's own Python; and its licence, as that licence asks."""
    with tempfile.TemporaryDirectory(prefix="ckp-agent-") as site:
        root = Path(site)
        install_locked(requirements, root, python="3.9", glibc=None)
        wanted = [*root.rglob("*.py"), *(path for path in root.glob("*.dist-info/**/*") if path.is_file() and NAMES.fullmatch(path.name))]
        return [(str(path.relative_to(root)), path.read_bytes()) for path in sorted(wanted)]


def write_zipapp(target: Path, bundled: list[tuple[str, bytes]]) -> None:
    """Write the executable zip of the one-file tool's own sources.

    Args:
        bundled: what else goes in, as name and content.
    """
    root = paths.source().parent
    members = [("__main__.py", MAIN.encode()), *bundled, *((str(path.relative_to(root)), path.read_bytes()) for path in agent_sources())]
    with target.open("wb") as stream:
        stream.write(SHEBANG)
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in sorted(members):
                info = zipfile.ZipInfo(name, EPOCH)
                info.external_attr = 0o644 << 16
                info.compress_type = zipfile.ZIP_DEFLATED
                archive.writestr(info, content)
    target.chmod(0o755)
