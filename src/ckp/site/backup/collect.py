"""Runs `ckp.hostkit.backup.reading` on a management host, and writes what it reads to a file of this machine."""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from pathlib import Path
from typing import Any

from ckp.hostkit.backup import reading
from ckp.kits.disks import naming_full_disk
from ckp.kits.errors import CkpError
from ckp.site.inventory import SiteHost

COLLECT_SECONDS = 3600.0


def collect(host: SiteHost, request: dict[str, Any], target: Path, what: str) -> dict[str, Any]:
    """Run `ckp.hostkit.backup.reading` on a host, and write what it reads to a new file (0600). Returns what it saw, with `size` and `sha256`.

    Raises:
        CkpError: it failed, or not all of it came.
    """
    digest, size, seen, said = hashlib.sha256(), 0, list[dict[str, Any]](), list[str]()
    target.touch(mode=0o600)
    with naming_full_disk(target.parent), target.open("wb") as out:

        def take_line(line: str) -> None:
            nonlocal size
            if line.startswith("D "):
                piece = _inflated(line[2:], what)
                digest.update(piece)
                size += len(piece)
                out.write(piece)
            elif line.startswith("E "):
                seen.append(json.loads(line[2:]))
            else:
                said.append(line)

        text = Path(reading.__file__).read_text()
        code = host.stream(["python3", "-I", "-c", text, json.dumps(request)], timeout=COLLECT_SECONDS, on_line=take_line)
    if code or len(seen) != 1:
        raise CkpError(
            f"{what} failed", details="\n".join(said[-20:]) or f"exit code {code}", resolution="correct what it names, and run the same command again"
        )
    if (seen[0]["size"], seen[0]["sha256"]) != (size, digest.hexdigest()):
        raise CkpError(f"{what}: not all of it arrived", resolution="run the same command again")
    return seen[0]


def _inflated(text: str, what: str) -> bytes:
    inflater = zlib.decompressobj()
    try:
        piece = inflater.decompress(base64.b64decode(text, validate=True), reading.PIECE)
    except ValueError as error:
        raise CkpError(f"{what}: what arrived can't be read: {error}", resolution="run the same command again") from None
    except zlib.error as error:
        raise CkpError(f"{what}: what arrived can't be read: {error}", resolution="run the same command again") from None
    if not inflater.eof:
        raise CkpError(f"{what}: what arrived can't be read: a piece is larger than pieces are")
    return piece
