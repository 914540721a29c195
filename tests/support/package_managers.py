"""apt and dnf with roots of their own: nothing of the machine's own package managers is read or written."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

SEARCHED = "/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass
class AptRoot:
    """An apt of its own below `root`. Its configuration names every folder, so that the machine's own is not read."""

    root: Path
    architectures: Sequence[str] = ("amd64",)
    """The native one first."""

    def __post_init__(self) -> None:
        for name in ("etc/apt/apt.conf.d", "etc/apt/preferences.d", "etc/apt/sources.list.d", "usr/share/keyrings"):
            (self.root / name).mkdir(parents=True)
        for name in ("var/lib/apt/lists/partial", "var/cache/apt/archives/partial", "var/log/apt", "var/lib/dpkg/info", "var/lib/dpkg/updates"):
            (self.root / name).mkdir(parents=True)
        (self.root / "var/lib/dpkg/status").touch()
        (self.root / "apt.conf").write_text(
            f'Dir "{self.root}";\n'
            f'Dir::State::status "{self.root}/var/lib/dpkg/status";\n'
            'Dir::Bin::methods "/usr/lib/apt/methods";\n'
            f'DPkg::Options:: "--root={self.root}";\n'
            f'DPkg::Path "{SEARCHED}";\n'
            f'APT::Architecture "{self.architectures[0]}";\n'
            f"APT::Architectures {{{' '.join(f'{name};' for name in self.architectures)}}};\n"
            'APT::Sandbox::User "root";\n'  # _apt cannot enter pytest's folders
            'Acquire::http::Proxy "DIRECT";\n'
            'Acquire::Languages "none";\n'
            'Acquire::Retries "0";\n'
        )

    @property
    def sources(self) -> Path:
        """The folder of its lists of sources."""
        return self.root / "etc/apt/sources.list.d"

    @property
    def archives(self) -> Path:
        """The folder for what is downloaded."""
        return self.root / "var/cache/apt/archives"

    @property
    def environment(self) -> Mapping[str, str]:
        """Of every program of apt."""
        return {"APT_CONFIG": str(self.root / "apt.conf"), "PATH": SEARCHED, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}

    def run(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """apt-get or apt-cache, in the folder for what is downloaded."""
        return subprocess.run([program, *arguments], cwd=self.archives, env=self.environment, capture_output=True, text=True, timeout=120, check=False)

    def get(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """apt-get, which asks nothing."""
        return self.run("apt-get", "-y", *arguments)

    def update(self) -> str:
        """apt-get update without a warning or an error; what it said."""
        done = self.get("update", "--error-on=any")
        assert done.returncode == 0, done.stdout + done.stderr
        assert "W:" not in done.stderr, done.stderr
        return done.stdout

    def refuses(self, words: str) -> None:
        """apt-get update fails with these words, and nothing of the repository can be installed."""
        done = self.get("update", "--error-on=any")
        assert done.returncode != 0, done.stdout
        assert re.search(words, done.stdout + done.stderr), done.stdout + done.stderr
