"""The `ckp` command as a wheel, and as a deb and an rpm with a Python environment of their own. They are CKP's, and part of no release.

The environment is one folder for all Pythons of PYTHONS, with what the wheel has and what requirements/site.txt locks: their own code is the
same for each Python, and compiled modules have the ABI in their names, so that those of several Pythons lie beside each other. Bytecode is
made on the host (packaging/ckp/compile.sh): it differs from one Python to the next, and a builder has not all of them.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from ckp.clients.signing.openpgp import SigningKey
from ckp.distribution.builder.wheels import install_locked
from ckp.distribution.packages.debs import SOURCE_DATE
from ckp.distribution.packages.pack import Format, Package, Recipe, make_package, tree_digest
from ckp.distribution.packages.versions import own_version
from ckp.kits import paths
from ckp.kits.errors import CkpError, InvalidInput
from ckp.kits.files import atomic_write, building_directory, exclusive, sha256_bytes, sha256_file
from ckp.kits.processes import run

NAME = "ckp"
PYTHONS = ("3.11", "3.12")
"""Of Debian 12, Ubuntu 22.04 and RHEL 9, and of Ubuntu 24.04. packaging/ckp names them, too."""
GLIBC = 34
"""The oldest among these systems is RHEL 9's glibc 2.34."""
RECIPE = "1"
PROJECT = ("pyproject.toml", "setup.py", "README.md", "LICENSE", "catalog", "deploy", "packaging", "requirements", "src/ckp")
"""What the wheel is made of."""
ABOUT_WHEELS = ("RECORD", "WHEEL", "INSTALLER", "REQUESTED", "direct_url.json")
"""What dist-info says of one wheel and its installation. It holds for no folder that several wheels were laid into."""
LAUNCHER = """#!/bin/sh
exec {python} -ISB -c 'import sys; sys.path.insert(0, "{environment}"); from ckp.cli.main import main; main()' "$@"
"""


def build_wheel() -> Path:
    """The wheel of this checkout, which is the same for the same files.

    Raises:
        InvalidInput: this is no checkout.
    """
    root = paths.checkout()
    if root is None:
        raise InvalidInput("the packages of ckp are made from its source, and this ckp is installed", resolution="run `./ckp dist package` in a checkout")
    files = sorted(path for part in PROJECT for path in _files(root / part))
    key = sha256_bytes("".join([RECIPE, *(f"{path.relative_to(root)} {sha256_file(path)}\n" for path in files)]).encode())[:20]
    final = paths.cache() / "wheel" / key
    with exclusive(final.with_name(final.name + ".lock"), what="making the wheel", timeout=300):
        if not final.exists():
            with building_directory(final) as scratch, tempfile.TemporaryDirectory(prefix="ckp-wheel-") as name:
                project = Path(name)  # pip leaves its own files beside the source
                for path in files:
                    target = project / path.relative_to(root)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(path, target)
                    target.chmod(0o644)
                argv: list[str | Path] = [sys.executable, "-m", "pip", "wheel", "-q", "--disable-pip-version-check", "--no-build-isolation"]
                argv += ["--no-deps", "--no-index", "-w", scratch, project]
                run(argv, timeout=300, env={"SOURCE_DATE_EPOCH": SOURCE_DATE}, what="making the wheel")
    (wheel,) = final.glob(f"{NAME}-*.whl")
    return wheel


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else [item for item in path.rglob("*") if item.is_file() and "__pycache__" not in item.parts]


def environment(wheel: Path) -> Path:
    """The folder that becomes /usr/lib/ckp: the wheel's content and the packages that it needs to run a site."""
    dependencies = _dependencies()
    final = paths.cache() / "command" / sha256_bytes(f"{RECIPE} {dependencies.name} {sha256_file(wheel)}".encode())[:20]
    with exclusive(final.with_name(final.name + ".lock"), what="making the Python environment of ckp", timeout=300):
        if not final.exists():
            with building_directory(final) as scratch, tempfile.TemporaryDirectory(prefix="ckp-wheel-") as name:
                with zipfile.ZipFile(wheel) as archive:
                    archive.extractall(name)
                _merge(dependencies, scratch)
                _merge(Path(name), scratch)
    return final


def _dependencies() -> Path:
    """The packages of requirements/site.txt for all of PYTHONS, in one folder."""
    requirements = paths.data("requirements", "site.txt")
    final = paths.cache() / "python" / f"site-{sha256_bytes(f'{RECIPE} {PYTHONS} {GLIBC} {sha256_file(requirements)}'.encode())[:20]}"
    with exclusive(final.with_name(final.name + ".lock"), what="fetching Python packages", timeout=900):
        if not final.exists():
            with building_directory(final) as scratch:
                for python in PYTHONS:
                    with tempfile.TemporaryDirectory(prefix="ckp-python-") as name:
                        install_locked(requirements, Path(name), python=python, glibc=GLIBC)
                        _merge(Path(name), scratch)
    return final


def _merge(source: Path, target: Path) -> None:
    """Lay what is below one folder into another.

    Raises:
        CkpError: both have a file of the same name that is not the same.
    """
    for path in sorted(source.rglob("*")):
        relative = path.relative_to(source)
        about = relative.parts[0].endswith(".dist-info")
        if path.is_dir() or (about and path.name in ABOUT_WHEELS):
            continue
        there = target / relative
        if not there.exists():
            there.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(path, there)  # each change of ckp makes an environment, and its dependencies are the same
            except OSError:
                shutil.copyfile(path, there)
        elif not about and there.read_bytes() != path.read_bytes():  # an SBOM says when its wheel was made
            raise CkpError(
                f"{relative} differs between wheels that are to share a folder",
                resolution="give each Python of the packages of ckp a folder of its own (docs/adr/0024-packages-of-the-command.md)",
            )


def pack_command(place: Path, nfpm: Path, key: SigningKey, formats: Sequence[Format]) -> list[Package]:
    """Make and sign the packages, or find them in the cache.

    Args:
        place: what `environment` made.
    """
    with tempfile.TemporaryDirectory(prefix="ckp-command-") as work:
        extra = {"environment": place, NAME: write_launcher(place, Path(work))}
        return [make_package(Recipe.read(NAME), command_version(place), {}, nfpm, key, extra=extra, format=kind) for kind in formats]


def command_version(place: Path) -> str:
    """The version of the packages of an environment: another one has another."""
    return own_version(NAME, tree_digest(place))


def write_launcher(place: Path, folder: Path) -> Path:
    """A program `ckp` in `folder` that runs an environment where it lies: it writes the shell completions."""
    launcher = folder / NAME
    atomic_write(launcher, LAUNCHER.format(python=sys.executable, environment=place), mode=0o755)
    return launcher
