"""Every tracked Python file is read by ruff and by mypy: what a tool's default exclusions leave out is named here instead of passing unread.

ruff leaves out folders called `dist`, `build`, `venv` and others; a package of ours was once among them.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent


def tracked(*patterns: str) -> list[str]:
    """Paths of tracked files that match, below the repository's root; files that were removed and not yet staged are left out."""
    listing = subprocess.run(["git", "ls-files", "-z", "--", *patterns], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [name for name in listing.split("\0") if name and (ROOT / name).is_file()]


def unread_by_ruff(files: list[str]) -> list[str]:
    """Those of `files` that `ruff check .` and `ruff format .` do not read."""
    listing = subprocess.run([BIN / "ruff", "check", "--show-files", "."], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    shown = {str(Path(line).relative_to(ROOT)) for line in listing.splitlines()}
    return [name for name in files if name not in shown]


def untyped(files: list[str]) -> str:
    """What mypy --strict finds in `files`, each of which it is given by name; "" if nothing."""
    done = subprocess.run([BIN / "mypy", "--strict", "--no-error-summary", "--", *files], cwd=ROOT, check=False, capture_output=True, text=True)
    return (done.stdout + done.stderr).strip() or ("" if done.returncode == 0 else f"mypy ended with {done.returncode}")


def main() -> int:
    """Print each finding; 1 if there is one."""
    files = tracked("*.py")
    findings = [f"{name}:1: ruff does not read this file; see `exclude` in pyproject.toml and ruff's defaults" for name in unread_by_ruff(files)]
    findings += untyped(files).splitlines()
    print("\n".join(findings) or f"lint: {len(files)} tracked Python files are linted, formatted and typed", file=sys.stderr if findings else sys.stdout)
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
