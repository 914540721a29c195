"""Debian and Ubuntu: `dpkg -i` installs verified files; apt installs the distribution's own tools and checks their signatures."""

from __future__ import annotations

import os
import re
from typing import Callable, Sequence

from ckp.agent.system.installers.base import remove_unneeded
from ckp.hostkit.errors import AgentError
from ckp.hostkit.processes import run
from ckp.verify.bundle import BundleManifest, Package

QUIET = {"DEBIAN_FRONTEND": "noninteractive", "DEBCONF_NONINTERACTIVE_SEEN": "true", "NEEDRESTART_MODE": "l", "NEEDRESTART_SUSPEND": "1"}
DPKG = ("dpkg", "--force-confdef", "--force-confold")
LOCK_SECONDS = 120
PACKAGE_OF = {"ip": "iproute2", "tc": "iproute2", "modprobe": "kmod", "losetup": "mount", "mount": "mount"}


class DpkgInstaller:
    """See base.Installer."""

    name = "dpkg"

    def _known(self, names: Sequence[str]) -> dict[str, tuple[str, str, str]]:
        """dpkg's records of these packages: version, state, and error flag."""
        if not names:
            return {}
        result = run(["dpkg-query", "-W", "-f", "${Package}\t${Version}\t${db:Status-Status}\t${db:Status-Eflag}\n", *names], timeout=60, check=False)
        rows = [(line.split("\t") + ["", "", ""])[:4] for line in result.stdout.splitlines()]
        return {name: (version, state, flag) for name, version, state, flag in rows}

    def installed(self, names: Sequence[str]) -> dict[str, str]:
        return {name: version for name, (version, state, _) in self._known(names).items() if state not in ("", "not-installed", "config-files")}

    def _removable(self, names: Sequence[str]) -> list[str]:
        """Those that dpkg has a record of, in any state, leftover configuration included."""
        return [name for name, (_, state, _) in self._known(names).items() if state != "not-installed"]

    def install(self, manifest: BundleManifest, packages: Sequence[Package]) -> None:
        have = self.installed([package.name for package in packages])
        self._configure_pending()
        states = self._known([package.name for package in packages])
        todo = [package for package in packages if have.get(package.name) != package.version or states.get(package.name, ())[1:] != ("installed", "ok")]
        if todo:
            self._dpkg(["-i", *[manifest.path(package.file) for package in todo]], what=f"installing {', '.join(package.name for package in todo)}")
        now = self.installed([package.name for package in packages])
        wrong = [
            f"{package.name} is {now.get(package.name, 'missing')}, expected {package.version}"
            for package in packages
            if now.get(package.name) != package.version
        ]
        if wrong:
            raise AgentError("dpkg succeeded, but not everything is installed", details="\n".join(wrong), reason="InstallFailed")

    def _configure_pending(self) -> None:
        """Complete what an interrupted dpkg left: unpacked packages, or only its own journal. Until then apt refuses everything else."""
        self._dpkg(["--configure", "-a"], what="completing an interrupted dpkg", check=False)

    def broken(self, names: Sequence[str]) -> list[str]:
        return [name for name, (_, state, flag) in self._known(names).items() if state == "half-installed" or flag == "reinstreq"]

    def unpack(self, manifest: BundleManifest, packages: Sequence[Package]) -> None:
        if packages:
            what = f"unpacking {', '.join(package.name for package in packages)} again"
            self._dpkg(["--unpack", *[manifest.path(package.file) for package in packages]], what=what)

    def install_file(self, file: str) -> None:
        self._configure_pending()
        self._dpkg(["-i", file], what=f"installing {os.path.basename(file)}")

    def remove(self, names: Sequence[str]) -> None:
        if not names:
            return
        present = self._removable(names)
        if present:
            self._configure_pending()
            # without this option dpkg never removes a package whose unpacking was interrupted
            self._dpkg(["--force-remove-reinstreq", "--purge", *present], what=f"removing {', '.join(present)}")

    def add_tools(self, tools: Sequence[str], remember: Callable[[Sequence[str]], None]) -> list[str]:
        packages = sorted({PACKAGE_OF.get(tool, tool) for tool in tools})
        if not packages:
            return []
        self._configure_pending()
        install = ["-o", f"DPkg::Lock::Timeout={LOCK_SECONDS}", "-q", "-y", "--no-install-recommends", "install", *packages]
        for is_last in (False, True):
            planned = run(["apt-get", "-s", *install], timeout=120, env=QUIET, check=False)
            remember(re.findall(r"^Inst (\S+) \(", planned.stdout, re.M))  # a line with [version] after the name is an upgrade of an installed package
            result = run(
                ["apt-get", *install],
                timeout=900,
                env=QUIET,
                check=is_last,
                what=f"installing the system tools {', '.join(packages)} by apt-get",
                resolution=f"make a Debian or Ubuntu package source reachable, or install {' '.join(packages)} by hand",
                reason="SystemToolsMissing",
            )
            if result.code == 0:
                break
            run(["apt-get", "-q", "update"], timeout=600, env=QUIET, check=False)
        return packages

    def remove_tools(self, names: Sequence[str]) -> list[str]:
        return remove_unneeded(self, names, lambda name: self._dpkg(["--purge", name], what=f"removing {name}", check=False))

    def _dpkg(self, arguments: Sequence[str], *, what: str, check: bool = True) -> None:
        """Run dpkg; wait while another program (unattended upgrades) holds its lock. Raises AgentError."""
        import time

        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            result = run([*DPKG, *arguments], timeout=900, env=QUIET, check=False)
            if result.code == 0 or not check:
                return
            if "lock" in result.stderr and time.monotonic() < deadline:
                time.sleep(3)
                continue
            hint = "the host's package manager is busy: wait until apt or unattended-upgrades has finished, and try again" if "lock" in result.stderr else ""
            raise AgentError(f"{what} failed", details=result.tail(), resolution=hint or "see dpkg's output", reason="InstallFailed")
