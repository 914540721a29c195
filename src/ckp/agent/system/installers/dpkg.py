"""Debian and Ubuntu: `dpkg -i` installs verified files; apt installs the distribution's own tools and checks their signatures."""

from __future__ import annotations

import hashlib
import os
import re
from typing import Callable, Sequence

from ckp.agent.system.installers.base import remove_unneeded
from ckp.hostkit.errors import AgentError
from ckp.hostkit.files import read_text
from ckp.hostkit.logs import log
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

    def replace(self, manifest: BundleManifest, packages: Sequence[Package]) -> None:
        self.install(manifest, packages)  # `dpkg -i` installs an older version as well: --force-downgrade is its default

    def changed_configuration(self, names: Sequence[str]) -> list[str]:
        if not names:
            return []
        shown = run(["dpkg-query", "-W", "-f", "${Conffiles}\n", *names], timeout=60, check=False).stdout
        changed = []
        for path, digest in re.findall(r"^ (/.*) ([0-9a-f]{32})$", shown, re.M):  # one that is obsolete has a further word, and is no file of the package
            try:
                with open(path, "rb") as stream:
                    # dpkg's own record of what it installed: nothing is trusted because of it
                    if hashlib.md5(stream.read()).hexdigest() != digest:  # noqa: S324
                        changed.append(path)
            except OSError:
                changed.append(path)
        return sorted(changed)

    def sources(self, names: Sequence[str]) -> dict[str, tuple[str, str]]:
        there = self.installed(names)
        if not there:
            return {}
        found = run(["dpkg-query", "-W", "-f", "${Package}\t${Maintainer}\n", *there], timeout=60, check=False).stdout.splitlines()
        return {name: (there[name], maintainer) for name, _, maintainer in (line.partition("\t") for line in found) if name in there}

    def held(self, names: Sequence[str]) -> list[str]:
        if not names:
            return []
        shown = run(["dpkg-query", "-W", "-f", "${Package}\t${db:Status-Want}\n", *names], timeout=60, check=False).stdout
        return [name for name, _, want in (line.partition("\t") for line in shown.splitlines()) if want == "hold"]

    def hold(self, names: Sequence[str]) -> None:
        """See base.Installer. A selection, as `apt-mark hold` makes it. `dpkg -i` sets it back to `install`, so that it is made again after each."""
        self._select(names, "hold")
        absent = [name for name in names if name not in self._known(names)]
        if absent:  # dpkg knows a package that was never installed only from apt
            run(["apt-mark", "hold", *absent], timeout=60, env=QUIET, check=False)

    def release(self, names: Sequence[str]) -> None:
        self._select(self.held(names), "install")

    def _select(self, names: Sequence[str], state: str) -> None:
        if names:
            lines = "".join(f"{name} {state}\n" for name in names)
            self._dpkg(["--set-selections"], what=f"marking {', '.join(names)} as {state}", stdin=lines.encode())

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
                proxied=True,
                check=is_last,
                what=f"installing the system tools {', '.join(packages)} by apt-get",
                resolution=f"make a Debian or Ubuntu package source reachable, or install {' '.join(packages)} by hand",
                reason="SystemToolsMissing",
            )
            if result.code == 0:
                break
            run(["apt-get", "-q", "update"], timeout=600, env=QUIET, proxied=True, check=False)
        return packages

    def remove_tools(self, names: Sequence[str]) -> list[str]:
        return remove_unneeded(self, names, lambda name: self._dpkg(["--purge", name], what=f"removing {name}", check=False))

    def _dpkg(self, arguments: Sequence[str], *, what: str, check: bool = True, stdin: bytes | None = None) -> None:
        """Run dpkg; wait while another program (unattended upgrades) holds its lock. Raises AgentError."""
        import time

        deadline = time.monotonic() + LOCK_SECONDS
        told = False
        while True:
            result = run([*DPKG, *arguments], timeout=900, env=QUIET, check=False, stdin=stdin)
            if result.code == 0 or not check:
                return
            busy = "lock" in result.stderr
            if busy and time.monotonic() < deadline:
                if not told:
                    told = True
                    log(f"{what}: waiting up to {LOCK_SECONDS} s for {lock_holder(result.stderr)}, which has locked dpkg")
                time.sleep(3)
                continue
            if busy:
                raise AgentError(
                    f"{what} failed: {lock_holder(result.stderr)} has had dpkg locked for {LOCK_SECONDS} s",
                    details=result.tail(),
                    resolution="let it finish (apt or unattended-upgrades), or end it; this is tried again",
                    reason="PackageManagerBusy",
                )
            raise AgentError(f"{what} failed", details=result.tail(), resolution="see dpkg's output", reason="InstallFailed")


def lock_holder(message: str) -> str:
    """Who has the lock, from what dpkg or apt says about it: "unattended-upgr (pid 812)"; "another program" if it is not said."""
    match = re.search(r"(?:by another process with pid|held by process) (\d+)(?: \(([^)]+)\))?", message)
    if match is None:
        return "another program"
    name = match.group(2) or read_text(f"/proc/{match.group(1)}/comm").strip()
    return f"{name or 'a program'} (pid {match.group(1)})"
