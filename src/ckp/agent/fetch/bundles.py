"""Bundles on a host: pulled by digest into folders that are named by the digest, completely or not at all."""

from __future__ import annotations

import os
import re
import shutil
from typing import Callable

from ckp.agent.system import facts
from ckp.hostkit.errors import AgentError, InvalidInput, ProcessFailed
from ckp.hostkit.processes import Finished, own_command, run

PULL_SECONDS = 1800.0
FULL_BYTES = 16 << 20
"""If at most these bytes are free, a failed pull has failed because the disk is full."""
FULL = re.compile("no space left on device|disk quota exceeded", re.IGNORECASE)
"""What a program says that could not write for want of space (errno(3): ENOSPC, EDQUOT), in C's words and in Go's."""


def bundle_folder(state_dir: str, image: str) -> str:
    """The folder of a bundle, named by its digest. InvalidInput if the reference has none (a tag can move, so it is never trusted)."""
    match = re.fullmatch(r"[A-Za-z0-9._:/\[\]-]+@sha256:([0-9a-f]{64})", image)
    if match is None:
        raise InvalidInput(f"the bundle {image!r} is not named by digest (…@sha256:…)", permanent=True)
    return os.path.join(state_dir, "bundles", match.group(1))


def pull_bundle(imgpkg: str, image: str, folder: str, registry_ca: str, cancelled: Callable[[], bool] | None = None) -> str:
    """Pull a bundle into `folder`, which gets its name only when it is complete. Returns how much was fetched; "" if it was there already.

    A separate process does the work (ckp.agent.fetch.pull), so that its memory is freed. However it ends, the next attempt resumes.

    Raises:
        ProcessFailed: it can't be pulled from the registry.
        AgentError: the disk is full, or was so during the pull.
        Cancelled: `cancelled` returned True.
    """
    if os.path.isdir(folder):
        return ""
    os.makedirs(os.path.dirname(folder), mode=0o700, exist_ok=True)
    scratch, blobs, ca_file = folder + ".partial", folder + ".blobs", folder + ".ca"
    shutil.rmtree(scratch, ignore_errors=True)
    argv = [*own_command(), "pull", image, "--imgpkg", imgpkg, "--blobs", blobs, "--output", scratch]
    try:
        if registry_ca:
            with open(ca_file, "w", encoding="ascii") as stream:
                stream.write(registry_ca)
            argv += ["--ca", ca_file]
        finished = _run(argv, image, os.path.dirname(folder), cancelled)
        os.chmod(scratch, 0o700)
        os.replace(scratch, folder)
        shutil.rmtree(blobs, ignore_errors=True)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        if os.path.exists(ca_file):
            os.unlink(ca_file)
    return finished.stdout.strip()


def _run(argv: list[str], image: str, place: str, cancelled: Callable[[], bool] | None) -> Finished:
    try:
        return run(
            argv,
            timeout=PULL_SECONDS,
            what=f"pulling the bundle {image}",
            resolution="check that the registry is reachable from this host and holds the bundle",
            reason="PullFailed",
            cancelled=cancelled,
            proxied=True,
        )
    except ProcessFailed as error:
        free = facts.disk(place)[1]
        brief = f"the disk is full: {free >> 20} MiB are left"
        if free > FULL_BYTES:  # now: whatever else filled the disk may have given it back
            if not FULL.search(error.details):
                raise
            brief = f"the disk was full during the pull: {free >> 20} MiB are free now"
        remediation = f"free some space below {place}; the next attempt resumes the pull"
        raise AgentError(brief, details=error.details, resolution=remediation, reason="DiskFull") from None


def drop_other_bundles(state_dir: str, *keep: str) -> None:
    """Delete all bundles (a few hundred MiB each) but those in the folders `keep`, and their blobs where a pull is not complete."""
    parent = os.path.join(state_dir, "bundles")
    kept = {*keep, *(folder + ".blobs" for folder in keep)}
    for name in os.listdir(parent) if os.path.isdir(parent) else []:
        path = os.path.join(parent, name)
        if path not in kept:
            shutil.rmtree(path, ignore_errors=True)
