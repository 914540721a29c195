"""A cache of documents that are derived from artifacts (SBOMs, provenance), addressed by all that decides them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

from ckp.kits import paths
from ckp.kits.files import atomic_write, sha256_bytes, sha256_file


def cached_document(kind: str, parts: Iterable[str], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The document that these parts decide, from the cache; made if it is not there.

    Args:
        kind: the folder of the cache for documents of this kind.
        parts: all that changes the document, the code that makes it (`code_of`) included.
        make: makes the document, which must be JSON.
    """
    record = paths.cache() / "sbom" / kind / f"{sha256_bytes(chr(10).join(parts).encode())[:40]}.json"
    if record.exists():
        found: dict[str, Any] = json.loads(record.read_text())
        return found
    document = make()
    atomic_write(record, json.dumps(document, sort_keys=True))
    return document


@cache
def code_of(*modules: str) -> str:
    """A key part that changes with the code of these modules of `ckp.distribution` (`attest.sbom`): changed code makes new documents."""
    room = Path(__file__).parents[1]
    return "".join(sha256_file(room.joinpath(*name.split(".")).with_suffix(".py")) for name in modules)
