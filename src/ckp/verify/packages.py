"""One deb or rpm: whole, signed by a trusted key, of Coredge.io, and what it was said to be."""

from __future__ import annotations

import os

from ckp.hostkit.errors import VerificationFailed
from ckp.verify.debfile import verify_deb
from ckp.verify.packagefile import PackageInfo, check_identity
from ckp.verify.rpmfile import verify_rpm


def verify_package(path: str, keyring: str, *, name: str | None = None, version: str | None = None, architecture: str | None = None) -> PackageInfo:
    """Check one .deb or .rpm: signature, maintainer and, where given, what it must be.

    Args:
        architecture: as Debian calls it (amd64), for rpms too; packages for all architectures fit any.

    Raises:
        VerificationFailed: names the file, the check and the key.
    """
    file = os.path.basename(path)
    if not path.endswith((".deb", ".rpm")):
        raise VerificationFailed(f"{file} is neither a .deb nor an .rpm", check="package kind")
    info = verify_rpm(path, keyring) if path.endswith(".rpm") else verify_deb(path, keyring)
    check_identity(info, file, name=name, version=version, architecture=architecture)
    return info
