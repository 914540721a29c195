"""RHEL 9 and its kin: `rpmkeys` checks the signature with our keyring only, `dnf` installs the verified files.

Not run anywhere yet: no RHEL host exists in this project's lab. It is written after the manuals of rpm 4.16 and dnf 4 (RHEL 9), and the
parts that need no rpm (armouring the keyring, reading rpmkeys' words) have unit tests.
"""

from __future__ import annotations

import os
import re
import tempfile
from typing import Sequence

from ckp.agent.kit import AgentError, VerificationFailed, run
from ckp.agent.verify import BundleManifest, DebInfo, Package

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
_GOOD = re.compile(r"^\s+(?:Header )?V[46] \S+ Signature, key (?:ID|fingerprint:?)\s*([0-9a-f]{8,64}): OK$", re.M | re.I)
_ANY = re.compile(r"^\s+.*Signature, key .*$", re.M)


def armor(keyring: bytes) -> str:
    """A binary OpenPGP keyring in ASCII armour: rpmkeys reads no other."""
    import base64

    crc = 0xB704CE
    for byte in keyring:
        crc ^= byte << 16
        for _ in range(8):
            crc = (crc << 1) ^ (0x1864CFB if crc & 0x800000 else 0)
    body = base64.encodebytes(keyring).decode().replace("\n", "")
    lines = [body[start : start + 64] for start in range(0, len(body), 64)]
    check = base64.b64encode((crc & 0xFFFFFF).to_bytes(3, "big")).decode()
    return "\n".join(["-----BEGIN PGP PUBLIC KEY BLOCK-----", "", *lines, f"={check}", "-----END PGP PUBLIC KEY BLOCK-----", ""])


def signature_key(said: str) -> str:
    """The key that rpmkeys -Kv found a good signature by; "" if it found none, or one that is not good."""
    good = _GOOD.findall(said)
    return good[0].upper() if good and len(good) == len(_ANY.findall(said)) else ""


def verify_rpm(path: str, keyring: str) -> DebInfo:
    """Check an .rpm's signature against `keyring` alone (an empty rpm database holds only it) and read its header.

    Raises:
        VerificationFailed: no good signature, or unreadable. What the header says is compared by the caller.
    """
    file = os.path.basename(path)
    with tempfile.TemporaryDirectory(prefix="ckp-rpm-") as scratch:
        key_file = os.path.join(scratch, "trusted.asc")
        with open(keyring, "rb") as source, open(key_file, "w", encoding="ascii") as target:
            target.write(armor(source.read()))
        database = os.path.join(scratch, "db")
        os.mkdir(database)
        run(["rpmkeys", "--dbpath", database, "--import", key_file], timeout=60, what="reading the trusted keys")
        said = run(["rpmkeys", "--dbpath", database, "--define", "_pkgverify_level all", "--checksig", "--verbose", path], timeout=300, check=False)
        key = signature_key(said.stdout)
        if said.code != 0 or not key:
            raise VerificationFailed(
                f"{file} has no good signature by a trusted key",
                details=said.tail(),
                check="signature",
                resolution="pull the bundle again from a registry you trust",
            )
        query = "%{NAME}\\n%{VERSION}-%{RELEASE}\\n%{ARCH}\\n%{PACKAGER}\\n"
        lines = run(["rpm", "--dbpath", database, "-qp", "--qf", query, path], timeout=60).stdout.splitlines()
    if len(lines) != 4:
        raise VerificationFailed(f"{file}: its header can't be read", check="header")
    architecture = {"x86_64": "amd64", "aarch64": "arm64"}.get(lines[2], lines[2])
    return DebInfo(lines[0], lines[1], architecture, lines[3], key)


class RpmInstaller:
    """See base.Installer."""

    name = "rpm"

    def installed(self, names: Sequence[str]) -> dict[str, str]:
        found = {}
        for name in names:
            said = run(["rpm", "-q", "--qf", "%{VERSION}-%{RELEASE}", name], timeout=60, check=False)
            if said.code == 0:
                found[name] = said.stdout.strip()
        return found

    def install(self, manifest: BundleManifest, packages: Sequence[Package]) -> None:
        have = self.installed([package.name for package in packages])
        todo = [package for package in packages if have.get(package.name) != package.version]
        if todo:
            # our own verification is stricter than dnf's (one keyring, one maintainer), and the key is in no system database
            command = ["dnf", "-y", "--nogpgcheck", "--disablerepo=*", "--setopt=install_weak_deps=False", "install"]
            run(
                [*command, *[manifest.path(package.file) for package in todo]],
                timeout=900,
                what=f"installing {', '.join(p.name for p in todo)}",
                reason="InstallFailed",
            )
        now = self.installed([package.name for package in packages])
        wrong = [package.name for package in packages if now.get(package.name) != package.version]
        if wrong:
            raise AgentError(f"dnf ended well, but {', '.join(wrong)} is not installed in the expected version", reason="InstallFailed")

    def remove(self, names: Sequence[str]) -> None:
        present = list(self.installed(names))
        if present:
            run(["rpm", "-e", *present], timeout=600, what=f"removing {', '.join(present)}")

    def add_tools(self, tools: Sequence[str]) -> list[str]:
        packages = sorted({PACKAGE_OF.get(tool, tool) for tool in tools})
        if packages:
            run(
                ["dnf", "-y", "--setopt=install_weak_deps=False", "install", *packages],
                timeout=900,
                what=f"installing the system tools {', '.join(packages)} by dnf",
                resolution=f"make a package source reachable, or install {' '.join(packages)} by hand",
                reason="SystemToolsMissing",
            )
        return packages
