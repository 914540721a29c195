"""Where CKP keeps its files on the machine that it runs on."""

from __future__ import annotations

import os
from pathlib import Path

REPO = Path(__file__).resolve().parents[3]
"""The checkout that the running code belongs to; it holds `catalog/`, `deploy/` and `packaging/`."""


def cache() -> Path:
    """Content-addressed results, which may be deleted at any time: builds, images, base file systems. `CKP_CACHE` moves it."""
    return Path(os.environ.get("CKP_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ckp")


def state() -> Path:
    """State of what runs on this machine: lab hosts, registry, pid files. One folder per machine, shared by all checkouts. `CKP_STATE` moves it."""
    return Path(os.environ.get("CKP_STATE") or "/var/lib/ckp")


def keys() -> Path:
    """Signing keys: never in the cache, never in the checkout, mode 0700. `CKP_KEYS` moves it."""
    return Path(os.environ.get("CKP_KEYS") or Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share") / "ckp" / "keys")
