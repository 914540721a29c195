"""Signing keys as a release has them, drawn once in a process: to draw keys for RSA takes seconds, and most tests only use them."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path

from ckp.clients.signing.openpgp import SigningKey
from ckp.distribution.keys.signing import OWNER

PLACE = tempfile.gettempdir()
"""As it is before a test sets another one."""


@cache
def _drawn(whose: str) -> Path:
    folder = Path(tempfile.mkdtemp(prefix=f"ckp-test-keys-{whose}-", dir=PLACE))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return SigningKey.ensure(folder / "keys", user_id=OWNER).folder


def signing_key(folder: Path, whose: str = "ours") -> SigningKey:
    """A copy of somebody's keys, made by `ckp keys make`, in a folder that is empty or is not there yet: the test may change them."""
    shutil.copytree(_drawn(whose), folder, dirs_exist_ok=True)
    return SigningKey(folder)
