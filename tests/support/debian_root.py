"""A Debian 12 to change: the lab's base below an overlay, entered by chroot. systemd does not run in it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ckp.kits.processes import Finished, run
from ckp.lab import base

RECORDER = """\
#!/bin/sh
# systemd does not run here: what changes a running service is written down, what only touches files is done.
for word in "$@"; do
    case "$word" in
    start | stop | restart | try-restart | reload-or-restart | daemon-reload) echo "$*" >>/var/log/systemctl.log; exit 0 ;;
    is-active) exit 0 ;;
    -*) ;;
    *) break ;;
    esac
done
case "$*" in *--now*) echo "$*" >>/var/log/systemctl.log; exit 0 ;; esac
exec /bin/systemctl "$@"
"""


@dataclass(frozen=True)
class Debian:
    """A Debian 12 over the lab's base. It is mounted only while a command runs in it, in a mount namespace that ends with the command.

    Args:
        lower: the folders below it, the uppermost first, as overlayfs takes them.
        folder: what is its own.
    """

    lower: str
    folder: Path

    def sh(self, script: str, *, check: bool = True) -> Finished:
        """Run a shell script in it, with the packages at /packages."""
        return self.outside(["chroot", self.root, "/bin/sh", "-ec", script], check=check, what=script)

    @property
    def root(self) -> Path:
        """Where it is mounted."""
        return self.folder / "root"

    def outside(self, argv: Sequence[str | Path], *, check: bool = True, what: str = "") -> Finished:
        """Run a program of this machine while it is mounted."""
        upper, work = (self.folder / name for name in ("upper", "work"))
        for path in (upper, work, self.root):
            path.mkdir(exist_ok=True)
        enter = (
            f"mount -t overlay overlay -o lowerdir={self.lower},upperdir={upper},workdir={work} {self.root} && mount -t proc proc {self.root}/proc && "
            'exec env -i PATH=/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive SYSTEMD_OFFLINE=1 "$@"'
        )
        return run(["unshare", "--mount", "--propagation", "private", "sh", "-c", enter, "sh", *argv], timeout=300, check=check, what=what or str(argv[0]))

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        """Put a file into it."""
        target = self.folder / "upper" / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        target.chmod(mode)

    def install(self, *packages: Path, options: str = "") -> Finished:
        """`dpkg -i`, with nobody to ask."""
        shutil.rmtree(self.folder / "upper/packages", ignore_errors=True)
        (self.folder / "upper/packages").mkdir()
        for package in packages:
            os.link(package, self.folder / "upper/packages" / package.name)
        return self.sh(f"dpkg {options} -i {' '.join(f'/packages/{package.name}' for package in packages)} </dev/null; rm -r /packages")

    def versions(self, *names: str) -> dict[str, str]:
        """Those that are installed, with their versions."""
        said = self.sh(f"dpkg-query -W -f '${{Package}} ${{Version}} ${{db:Status-Status}}\\n' {' '.join(names)}", check=False).stdout
        return {line.split()[0]: line.split()[1] for line in said.splitlines() if line.endswith(" installed")}

    def faults(self, *names: str) -> str:
        """What dpkg finds wrong: half-done packages, and files that are not as packed, but for configuration and what the base leaves out."""
        return self.sh(f"dpkg --audit; dpkg --verify {' '.join(names)} | grep -v -e ' c /etc/' -e /usr/share/doc/ || true").stdout

    def asked(self) -> list[str]:
        """What scripts asked of systemd since the last time."""
        lines = self.sh("cat /var/log/systemctl.log 2>/dev/null || true; rm -f /var/log/systemctl.log").stdout.splitlines()
        return [" ".join(word for word in line.split() if not word.startswith("-")) for line in lines]

    def text(self, path: str) -> str:
        return self.sh(f"cat {path}").stdout

    def exists(self, path: str) -> bool:
        return self.sh(f"test -e {path} || test -L {path}", check=False).code == 0


def debian_root(folder: Path, *, above: Path | None = None) -> Debian:
    """One in `folder`, which is made. Scripts take it for a system that runs; what they ask of systemd is recorded.

    Args:
        above: a folder that lies over the base.
    """
    below = base.ensure(print)
    host = Debian(f"{above}:{below}" if above else str(below), folder)
    host.folder.mkdir()
    host.write("/usr/local/sbin/systemctl", RECORDER, 0o755)
    host.sh("mkdir -p /run/systemd/system")
    return host
