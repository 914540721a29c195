"""The one-file tool for hosts: agent and standalone installer in a zipapp, and the package that brings it."""

from __future__ import annotations

import shutil
import sys
import tempfile
import zipfile
from pathlib import Path

from ckp import __version__
from ckp.kits import paths
from ckp.kits.files import building_directory, exclusive, sha256_bytes, sha256_file
from ckp.kits.processes import run

SHEBANG = b"#!/usr/bin/python3 -I\n"
MAIN = """import sys

from ckp.agent.__main__ import main

sys.exit(main())
"""
EPOCH = (2026, 1, 1, 0, 0, 0)


def agent_sources() -> list[Path]:
    """The files of the agent and of the standalone installer."""
    root = paths.REPO / "src" / "ckp"
    return [root / "__init__.py", *(path for room in ("agent", "standalone") for path in sorted((root / room).rglob("*.py")))]


def agent_version() -> str:
    """The agent's version: the project's, with what its code is, so that another code is another version."""
    digest = sha256_bytes("".join(f"{path.name}{sha256_file(path)}" for path in agent_sources()).encode())
    return f"{__version__}+{digest[:8]}"


def build_zipapp() -> Path:
    """The executable zip: equal sources give equal bytes (fixed times, sorted members, stored order)."""
    requirements = paths.REPO / "requirements" / "agent.txt"
    key = sha256_bytes("".join([agent_version(), sha256_file(requirements)]).encode())[:20]
    final = paths.cache() / "agent" / key
    with exclusive(final.with_name(final.name + ".lock"), what="making the host tool", timeout=300):
        if not final.exists():
            with building_directory(final) as scratch:
                _zip(scratch / "ckp-agent", _bundled(requirements))
    return final / "ckp-agent"


def _bundled(requirements: Path) -> list[tuple[str, bytes]]:
    """websockets without its compiled speed-ups: it must run on every host's own Python."""
    with tempfile.TemporaryDirectory(prefix="ckp-agent-") as site:
        argv = [sys.executable, "-m", "pip", "install", "-q", "--no-compile", "--require-hashes", "--no-deps", "--only-binary=:all:"]
        run([*argv, "--platform=any", "--python-version=3.9", f"--target={site}", "-r", requirements], timeout=300, what="fetching websockets")
        root = Path(site)
        shutil.rmtree(root / "bin", ignore_errors=True)
        return [(str(path.relative_to(root)), path.read_bytes()) for path in sorted(root.rglob("*.py"))]


def _zip(target: Path, bundled: list[tuple[str, bytes]]) -> None:
    root = paths.REPO / "src"
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
