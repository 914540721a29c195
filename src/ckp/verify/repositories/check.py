"""Verification of a repository of apt or dnf, or of CKP's root folder with both."""

from __future__ import annotations

import os
from typing import Iterator, NoReturn

from ckp.hostkit.errors import VerificationFailed
from ckp.verify.repositories.apt import verify_apt
from ckp.verify.repositories.dnf import verify_dnf
from ckp.verify.repositories.tree import APT, DNF, Tree
from ckp.verify.signatures import AGAIN

REPOSITORIES = ("apt", "rpm")


def is_repository(root: str) -> bool:
    """Whether a folder looks like a repository of apt or dnf, or like CKP's root folder with both."""
    return any(os.path.isdir(os.path.join(root, name)) for name in (APT, DNF, *REPOSITORIES))


def verify_repository(root: str, keyring: str) -> list[str]:
    """Check a repository, or CKP's root folder with `apt/` and `rpm/`, and each package in it.

    Returns:
        What was checked, and what no signature covers, in lines for people.

    Raises:
        VerificationFailed: for the first failure.
    """
    root = os.path.abspath(root)
    if os.path.isdir(os.path.join(root, APT)):
        return verify_apt(root, keyring)
    if os.path.isdir(os.path.join(root, DNF)):
        return verify_dnf(root, keyring)
    lines: list[str] = []
    if os.path.isdir(os.path.join(root, "apt")):
        lines += verify_apt(os.path.join(root, "apt"), keyring)
    if os.path.isdir(os.path.join(root, "rpm")):
        lines += _verify_dnf_tree(os.path.join(root, "rpm"), keyring)
    for name in _packages_beside(root):
        raise VerificationFailed(f"{name} in {root} is in no repository, and no signature covers it", check="unlisted package", resolution=AGAIN)
    covered = [name for name in REPOSITORIES if os.path.isdir(os.path.join(root, name))]
    others = sorted(name for name in os.listdir(root) if name not in covered and not name.startswith("."))
    if others:
        lines.append(f"not covered by any signature, and not checked: {', '.join(others)}")
    return lines


def _packages_beside(root: str) -> Iterator[str]:
    """Paths of packages below `root` that are in neither repository: someone may install them, for they lie beside what was verified.

    Hidden folders of the root are left out: what a killed `publish` left in one is not public.

    Raises:
        VerificationFailed: a folder can't be read, or there is a link, which a server may follow to any package.
    """

    def unreadable(error: OSError) -> NoReturn:
        raise VerificationFailed(f"{error.filename} can't be read: {error.strerror}", check="folder")

    for folder, folders, names in os.walk(root, onerror=unreadable):
        if folder == root:
            folders[:] = [name for name in folders if name not in REPOSITORIES and not name.startswith(".")]
        for path in sorted(os.path.relpath(os.path.join(folder, name), root) for name in [*folders, *names]):
            if os.path.islink(os.path.join(root, path)):
                raise VerificationFailed(f"{path} in {root} is a link, and what it leads to is not checked", check="regular files only", resolution=AGAIN)
            if path.lower().endswith((".deb", ".rpm")):
                yield path


def _verify_dnf_tree(root: str, keyring: str) -> list[str]:
    lines: list[str] = []
    found = [folder for folder, folders, _ in os.walk(root) if DNF in folders]
    for name in sorted(Tree(root).names):
        if not any(os.path.join(root, name).startswith(folder + os.sep) for folder in found):
            raise VerificationFailed(f"{name} in {root} is in no repository, and no signature covers it", check="unlisted package", resolution=AGAIN)
    for folder in sorted(found):
        lines += verify_dnf(folder, keyring)
    if not found:
        raise VerificationFailed(f"there is no repository in {root}", check="repository", resolution=AGAIN)
    return lines
