"""RHEL 9 and its derivatives: dnf installs the files that ckp.verify.rpmfile has verified."""

from __future__ import annotations

import os
import re
from typing import Callable, Sequence

from ckp.agent.system.installers.base import remove_unneeded
from ckp.hostkit.errors import AgentError
from ckp.hostkit.files import atomic_write, read_text, remove
from ckp.hostkit.processes import run
from ckp.verify.bundle import BundleManifest, Package

PACKAGE_OF = {
    "socat": "socat",
    "conntrack": "conntrack-tools",
    "ethtool": "ethtool",
    "iptables": "iptables-nft",
    "ebtables": "iptables-nft",
    "ip": "iproute",
    "tc": "iproute-tc",
    "ipset": "ipset",
    "modprobe": "kmod",
    "mount": "util-linux",
    "losetup": "util-linux",
}


BETWEEN_VERSIONS = " and "
LEFT_BY_RPM = (".rpmsave", ".rpmnew", ".rpmorig")
"""Endings of the files that rpm leaves beside a configuration file that was changed on the host."""


DNF_CONF = "etc/dnf/dnf.conf"
OWN_FILE = "# Written by ckp-agent, since there was none.\n[main]\n"
_EXCLUDES = re.compile(r"^(excludepkgs|exclude)[ \t]*=[ \t]*(.*(?:\n[ \t]+\S.*)*)$", re.M)
"""dnf.conf(5): both names set the same list, of globs parted by commas or blanks, which may go on in indented lines."""


def excluded(text: str) -> set[str]:
    """The packages that a dnf.conf excludes."""
    return {word for match in _EXCLUDES.finditer(text) for word in re.split(r"[,\s]+", match.group(2)) if word}


def exclude(text: str, names: Sequence[str]) -> str:
    """A dnf.conf that excludes these packages too. Its own excludes, comments and order stay; an empty text becomes OWN_FILE with them."""
    new = [name for name in names if name not in excluded(text)]
    if not new:
        return text
    words = " ".join(new)
    match = _EXCLUDES.search(text)
    if match:
        return f"{text[: match.start(2)]}{words} {match.group(2)}".rstrip(" ") + text[match.end() :]
    text = text if text.strip() else OWN_FILE
    section = re.search(r"^\[main\][^\n]*(?:\n|\Z)", text, re.M)
    if section is None:
        return f"[main]\nexcludepkgs={words}\n\n{text}"
    head = text[: section.end()]
    return f"{head if head.endswith(chr(10)) else head + chr(10)}excludepkgs={words}\n{text[section.end() :]}"


def include(text: str, names: Sequence[str]) -> str:
    """A dnf.conf without excludes of these packages; an exclude that is empty then goes, and so does the whole OWN_FILE ("")."""

    def without(match: re.Match[str]) -> str:
        key, value = match.string[match.start() : match.start(2)], match.group(2)
        for name in names:
            value = re.sub(rf"(?<![^,\s]){re.escape(name)}(?![^,\s])[,\s]*", "", value)
        return match.group(0) if value == match.group(2) else f"{key}{value.rstrip(' ')}" if value.strip(", \t\n") else "\0"

    found = re.sub("\0\n?", "", _EXCLUDES.sub(without, text))
    return "" if found.strip() == OWN_FILE.strip() else found


class RpmInstaller:
    """See base.Installer.

    Args:
        root: the root folder of the system that packages are installed into.
    """

    name = "rpm"

    def __init__(self, root: str = "/") -> None:
        self.root = root
        self._rpm = ["rpm"] if root == "/" else ["rpm", "--root", root]
        self._dnf = ["dnf", "-y", "--setopt=install_weak_deps=False", *([] if root == "/" else [f"--installroot={root}", "--releasever=9"])]

    def installed(self, names: Sequence[str]) -> dict[str, str]:
        """See base.Installer. A package that an interrupted transaction left in two versions has both in its text, which equals no wanted version."""
        found = {}
        for name in names:
            result = run([*self._rpm, "-q", "--qf", "%{VERSION}-%{RELEASE}\n", name], timeout=60, check=False)
            if result.code == 0:
                found[name] = BETWEEN_VERSIONS.join(result.stdout.split())
        return found

    def install(self, manifest: BundleManifest, packages: Sequence[Package]) -> None:
        have = self.installed([package.name for package in packages])
        for package in packages:
            if BETWEEN_VERSIONS in have.get(package.name, ""):
                self._repair_duplicate(package, manifest.path(package.file))
                have[package.name] = package.version
        todo = [package for package in packages if have.get(package.name) != package.version]
        if todo:
            what = f"installing {', '.join(package.name for package in todo)}"
            # our own verification is stricter than dnf's (one keyring, one maintainer), and rpm's key database does not have the key
            # (with no repository, lifted excludes concern only these files: those of a node are excluded from everything else, see `hold`)
            flags = ["--nogpgcheck", "--disablerepo=*", "--disableexcludes=all"]
            files = [manifest.path(package.file) for package in todo]
            run([*self._dnf, *flags, "install", *files], timeout=900, what=what, reason="InstallFailed")
        self._check("dnf", packages)

    def _check(self, program: str, packages: Sequence[Package]) -> None:
        now = self.installed([package.name for package in packages])
        wrong = [
            f"{package.name} is {now.get(package.name, 'missing')}, expected {package.version}"
            for package in packages
            if now.get(package.name) != package.version
        ]
        if wrong:
            raise AgentError(f"{program} succeeded, but not everything is installed", details="\n".join(wrong), reason="InstallFailed")

    def replace(self, manifest: BundleManifest, packages: Sequence[Package]) -> None:
        """See base.Installer. By rpm itself: dnf takes no older version while a newer one is installed."""
        have = self.installed([package.name for package in packages])
        todo = [package for package in packages if have.get(package.name) != package.version]
        if todo:
            self._force([manifest.path(package.file) for package in todo], f"installing {', '.join(package.name for package in todo)}")
        self._check("rpm", packages)

    def changed_configuration(self, names: Sequence[str]) -> list[str]:
        changed = []
        for name in names:
            # rpm(8), --verify: a mark of nine columns, `c` for a configuration file, its path; 5 in the third column: another digest
            shown = run([*self._rpm, "-V", "--nodeps", "--noscripts", name], timeout=120, check=False).stdout
            changed += re.findall(r"^(?:..5\S*|missing) +c (/.*)$", shown, re.M)
        return sorted(changed)

    def sources(self, names: Sequence[str]) -> dict[str, tuple[str, str]]:
        there = self.installed(names)
        shown = {name: run([*self._rpm, "-q", "--qf", "%{PACKAGER}\n", name], timeout=60, check=False).stdout for name in there}
        return {name: (version, next(iter(shown[name].splitlines()), "")) for name, version in there.items()}

    def _dnf_conf(self) -> str:
        return os.path.realpath(os.path.join(self.root, DNF_CONF))

    def held(self, names: Sequence[str]) -> list[str]:
        there = excluded(read_text(self._dnf_conf()))
        return [name for name in names if name in there]

    def hold(self, names: Sequence[str]) -> None:
        """See base.Installer. dnf.conf's excludepkgs, which dnf, dnf-automatic and PackageKit heed; the versionlock plugin is not on every host."""
        self._exclude(lambda text: exclude(text, names))

    def release(self, names: Sequence[str]) -> None:
        self._exclude(lambda text: include(text, names))

    def _exclude(self, edit: Callable[[str], str]) -> None:
        path = self._dnf_conf()
        before = read_text(path)
        after = edit(before)
        if after == before:
            return
        if not after:
            remove(path)
            return
        try:
            mode = os.stat(path).st_mode & 0o777
        except OSError:
            mode = 0o644
        try:
            atomic_write(path, after, mode=mode)
        except OSError as error:
            what = f"{path} can't be written: {error.strerror}"
            raise AgentError(what, resolution="make it writable for root: the node's packages are held in it", reason="InstallFailed") from None

    def _repair_duplicate(self, package: Package, file: str) -> None:
        """Leave one version of a package whose old version an interrupted transaction did not erase. dnf would do nothing: it counts the newer one."""
        self._force([file], f"completing an interrupted installation of {package.name}")

    def _force(self, files: Sequence[str], what: str) -> None:
        """Install these versions, whichever are installed now, in one transaction."""
        argv = [*self._rpm, "-U", "--oldpackage", "--replacepkgs", "--nosignature", *files]
        run(argv, timeout=600, what=what, reason="InstallFailed")

    def remove(self, names: Sequence[str]) -> None:
        present = list(self.installed(names))
        if not present:
            return
        configuration = run([*self._rpm, "-qc", *present], timeout=60, check=False).stdout.splitlines()
        run([*self._rpm, "-e", "--allmatches", *present], timeout=600, what=f"removing {', '.join(present)}")
        for path in configuration:
            if path.startswith("/"):
                for ending in LEFT_BY_RPM:
                    remove(os.path.join(self.root, path.lstrip("/")) + ending)

    def broken(self, names: Sequence[str]) -> list[str]:
        return []  # rpm can remove what an interrupted transaction left

    def unpack(self, manifest: BundleManifest, packages: Sequence[Package]) -> None:
        for package in packages:
            self._repair_duplicate(package, manifest.path(package.file))

    def install_file(self, file: str) -> None:
        self._force([file], f"installing {os.path.basename(file)}")

    def _all(self) -> dict[str, str]:
        """Every installed package, with the number of the transaction that installed it."""
        result = run([*self._rpm, "-qa", "--qf", "%{NAME}\t%{INSTALLTID}\n"], timeout=120, check=False)
        return {name: number for name, _, number in (line.partition("\t") for line in result.stdout.splitlines())}

    def add_tools(self, tools: Sequence[str], remember: Callable[[Sequence[str]], None]) -> list[str]:
        packages = sorted({PACKAGE_OF.get(tool, tool) for tool in tools})
        if packages:
            before = self._all()
            remember([name for name in packages if name not in before])
            run(
                [*self._dnf, "install", *packages],
                timeout=900,
                proxied=True,
                what=f"installing the system tools {', '.join(packages)} by dnf",
                resolution=f"make a package source reachable, or install {' '.join(packages)} by hand",
                reason="SystemToolsMissing",
            )
            now = self._all()
            ours = {now[name] for name in packages if name in now and name not in before}
            remember([name for name, number in now.items() if name not in before and number in ours])
        return packages

    def remove_tools(self, names: Sequence[str]) -> list[str]:
        return remove_unneeded(self, names, lambda name: run([*self._rpm, "-e", name], timeout=300, check=False))
