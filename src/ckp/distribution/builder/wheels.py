"""Python packages of others: those that a file of `requirements/` locks by hash, fetched as wheels by pip."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from ckp.kits.processes import run

OLDEST = 17
"""The glibc (2.17) of the oldest tag that wheels with compiled code are taken under."""


def install_locked(requirements: Path, target: Path, *, python: str, glibc: int | None) -> None:
    """Put the packages into a folder, as pip checks and lays them, without bytecode and without their programs.

    Args:
        python: the Python that they are for: `3.11`.
        glibc: minor version of the oldest glibc 2 that compiled code has to run with; None takes no compiled code.

    Raises:
        CkpError: a package cannot be fetched, has no such wheel, or another hash than is locked.
    """
    argv: list[str | Path] = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-compile"]
    argv += ["--require-hashes", "--no-deps", "--only-binary=:all:", f"--python-version={python}", "--implementation=cp"]
    if glibc is None:
        argv.append("--platform=any")
    else:
        argv += ["--platform=manylinux2014_x86_64", *(f"--platform=manylinux_2_{minor}_x86_64" for minor in range(OLDEST, glibc + 1))]
    run([*argv, f"--target={target}", "-r", requirements], timeout=600, what=f"fetching the Python packages of {requirements.name}")
    shutil.rmtree(target / "bin", ignore_errors=True)
