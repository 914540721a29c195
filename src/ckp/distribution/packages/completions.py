"""Shell completions, as the built programs themselves write them, in the folders where distributions look for them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from ckp.kits.errors import CkpError
from ckp.kits.processes import run

Shell = Literal["bash", "zsh", "fish"]
FOLDERS: dict[str, dict[Shell, str]] = {
    "deb": {
        "bash": "/usr/share/bash-completion/completions/{}",
        "zsh": "/usr/share/zsh/vendor-completions/_{}",
        "fish": "/usr/share/fish/vendor_completions.d/{}.fish",
    },
    "rpm": {
        "bash": "/usr/share/bash-completion/completions/{}",
        "zsh": "/usr/share/zsh/site-functions/_{}",
        "fish": "/usr/share/fish/vendor_completions.d/{}.fish",
    },
}
"""Folders by format of the package and shell. Debian's zsh reads vendor-completions, Red Hat's site-functions."""


def completion(program: Path, shell: Shell) -> str:
    """The output of `program completion SHELL`. It runs with an empty environment, so that no user's settings get into a package.

    Raises:
        CkpError: it fails, or prints nothing.
    """
    argv: list[str | Path] = ["env", "-i", "HOME=/nonexistent", "PATH=/usr/bin:/bin", program, "completion", shell]
    said = run(argv, cwd=Path("/"), timeout=60, what=f"asking {program.name} for its {shell} completion").stdout
    if not said.strip():
        raise CkpError(f"{program.name} completion {shell} printed nothing", resolution="correct `completions` of its package.toml")
    return said if said.endswith("\n") else said + "\n"
