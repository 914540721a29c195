"""Where CKP finds its own files, and where it keeps things on the machine that it runs on."""

from __future__ import annotations

import os
from pathlib import Path

from ckp.kits.errors import NotFound

_PACKAGE = Path(__file__).resolve().parents[1]


def source() -> Path:
    """The folder of the package `ckp` whose code runs. Its parent belongs on the PYTHONPATH of a process that is to run the same code."""
    return _PACKAGE


def checkout() -> Path | None:
    """The root of the checkout that the running code belongs to; None if it is installed from a wheel or copied into an image."""
    root = _PACKAGE.parents[1]
    return root if _PACKAGE.parent.name == "src" and (root / "pyproject.toml").is_file() else None


def data(*parts: str) -> Path:
    """A file or folder that the code reads and that is not code: of `catalog/`, `deploy/`, `packaging/`, `requirements/`, or LICENSE.

    In a checkout they lie at its root; a wheel carries them inside the package (setup.py).

    Args:
        parts: the path below that place; none gives the place itself.

    Raises:
        NotFound: it is not there.
    """
    path = (checkout() or _PACKAGE / "_data").joinpath(*parts)
    if not path.exists():
        raise NotFound(f"{path} is missing from this installation of CKP", resolution="install ckp again, from its wheel or in a complete checkout")
    return path


def cache() -> Path:
    """Content-addressed results, which may be deleted at any time: builds, images, base file systems. `CKP_CACHE` moves it."""
    return Path(os.environ.get("CKP_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ckp")


def state() -> Path:
    """State of what runs on this machine: lab hosts, registry, pid files. One folder per machine, shared by all checkouts. `CKP_STATE` moves it."""
    return Path(os.environ.get("CKP_STATE") or "/var/lib/ckp")


def keys() -> Path:
    """Signing keys: never in the cache, never in the checkout, mode 0700. `CKP_KEYS` moves it."""
    return Path(os.environ.get("CKP_KEYS") or Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share") / "ckp" / "keys")
