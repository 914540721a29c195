"""Verification of a path: a package, a folder of packages, a bundle or a repository."""

from __future__ import annotations

import os
from typing import Callable

from ckp.hostkit.errors import InvalidInput, VerificationFailed
from ckp.hostkit.logs import log
from ckp.hostkit.text import printable
from ckp.verify.bundle import MANIFEST, BundleManifest, describe_bundle, verify_bundle
from ckp.verify.packagefile import PackageInfo
from ckp.verify.packages import verify_package
from ckp.verify.repositories.check import is_repository, verify_repository


def verify_path(target: str, keyring: str, release: str | None = None, further: Callable[[BundleManifest], list[str]] | None = None) -> list[str]:
    """Check `target`, which may be a package, a bundle's folder, a repository, or a folder of packages.

    Args:
        release: the release that a bundle must be of.
        further: a further check of a verified bundle; returns lines too.

    Returns:
        What was checked, in lines for people.

    Raises:
        VerificationFailed: also if it is none of these.
        InvalidInput: a release was given, but `target` is not a bundle.
    """
    if os.path.isdir(target) and os.path.lexists(os.path.join(target, MANIFEST)):
        manifest = verify_bundle(target, keyring, release)
        return [*describe_bundle(manifest), *(further(manifest) if further else [])]
    if release is not None:
        raise InvalidInput(f"{target} is not a bundle, so its release can't be checked to be {release}", resolution="leave out --release")
    if not os.path.isdir(target):
        return [_describe(target, verify_package(target, keyring))]
    if is_repository(target):
        return verify_repository(target, keyring)
    names = sorted(os.listdir(target))
    for name in names:
        if not name.endswith((".deb", ".rpm")):
            raise VerificationFailed(f"{name} in {target} is not a package, and no signature covers it", check="nothing unlisted")
    if not names:
        raise VerificationFailed(f"{target} is empty: there is nothing to verify", check="folder")
    return [_describe(path, verify_package(path, keyring)) for path in (os.path.join(target, name) for name in names)]


def _describe(path: str, info: PackageInfo) -> str:
    return f"{os.path.basename(path)}: {info.name} {info.version} {info.architecture}, {info.maintainer}: verified, signed by {info.key}"


def verify_command(target: str, keyring: str, release: str | None) -> None:
    """`ckp-agent verify`: log what was verified."""
    for line in verify_path(target, keyring, release):
        log(printable(line))
