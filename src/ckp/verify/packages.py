"""Verification of one deb or rpm: complete, signed by a trusted key, maintained by Coredge.io, and the expected package."""

from __future__ import annotations

import os

from ckp.hostkit.errors import VerificationFailed
from ckp.verify.debfile import verify_deb
from ckp.verify.packagefile import PackageInfo, check_identity
from ckp.verify.rpmfile import verify_rpm


def verify_package(path: str, keyring: str, *, name: str | None = None, version: str | None = None, architecture: str | None = None) -> PackageInfo:
    """Check one .deb or .rpm: signature, maintainer and, where given, name, version and architecture.

    Args:
        architecture: Debian's name (amd64), for rpms too; packages for all architectures are accepted for any.

    Raises:
        VerificationFailed: with the file, the check and the key.
    """
    file = os.path.basename(path)
    if not path.endswith((".deb", ".rpm")):
        raise VerificationFailed(f"{file} is neither a .deb nor an .rpm", check="package kind")
    info = verify_rpm(path, keyring) if path.endswith(".rpm") else verify_deb(path, keyring)
    check_identity(info, file, name=name, version=version, architecture=architecture)
    return info
