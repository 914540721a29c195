"""Sequoia, which signs. It is imported when something is signed: who runs a site, or verifies, needs none of it."""

from __future__ import annotations

from typing import Any

from ckp.kits.errors import CkpError


def sequoia() -> Any:
    """The module `pysequoia`.

    Raises:
        CkpError: it is not installed. It comes with the extra `build`.
    """
    try:
        import pysequoia
    except ModuleNotFoundError as error:
        raise CkpError(
            "this makes or signs releases, and needs the Python package pysequoia, which is not installed",
            resolution="take a release from a file where there is --from; or use a checkout of CKP, or its wheel with an extra: pip install 'ckp[build]'",
        ) from error
    return pysequoia
