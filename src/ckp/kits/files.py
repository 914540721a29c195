"""Atomic writes, digests, locks, and checks of free space."""

from __future__ import annotations

import fcntl
import glob
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from ckp.kits.disks import naming_full_disk
from ckp.kits.errors import CkpError, TimedOut
from ckp.kits.stopping import pause

CHUNK = 1 << 20
_TOGETHER = ".together-"


def atomic_write(path: Path, content: bytes | str, *, mode: int = 0o644) -> None:
    """Write a file atomically: after a power cut, and for a reader at any time, it has the old content or the new one."""
    data = content.encode() if isinstance(content, str) else content
    with naming_full_disk(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with naming_full_disk(path.parent), os.fdopen(handle, "wb") as stream:
            os.fchmod(stream.fileno(), mode)
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@contextmanager
def building_directory(final: Path) -> Iterator[Path]:
    """A scratch directory beside `final`, renamed to it only if the block succeeds, so that an incomplete result never has the final name.

    The caller holds a lock on `final`: scratch directories of earlier attempts that were killed are removed.
    """
    with naming_full_disk(final.parent):
        final.parent.mkdir(parents=True, exist_ok=True)
        for leftover in final.parent.glob(f".{glob.escape(final.name)}.*"):
            shutil.rmtree(leftover, ignore_errors=True)
        scratch = Path(tempfile.mkdtemp(dir=final.parent, prefix=f".{final.name}."))
    try:
        with naming_full_disk(scratch):
            yield scratch
        if final.exists():
            shutil.rmtree(final)
        scratch.chmod(0o755)
        os.replace(scratch, final)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def write_together(folder: Path, name: str, files: Mapping[str, tuple[bytes, int]]) -> None:
    """Write files of one folder (path in it: content and mode), in this order, so that after a kill all of them are new or none is.

    The caller holds a lock on `folder`.
    """
    finish_together(folder)
    with building_directory(folder / f"{_TOGETHER}{name}") as scratch:
        for number, (path, (content, mode)) in enumerate(files.items()):
            atomic_write(scratch / f"{number:04}" / path, content, mode=mode)
    finish_together(folder)


def finish_together(folder: Path) -> set[str]:
    """Complete each `write_together` that was killed after its files were all prepared, remove the rest; returns the names of the completed ones."""
    for undecided in folder.glob(f".{_TOGETHER}*"):
        shutil.rmtree(undecided)
    finished = set()
    for decided in folder.glob(f"{_TOGETHER}*"):
        for step in sorted(decided.iterdir()):
            for file in [path for path in step.rglob("*") if path.is_file()]:
                target = folder / file.relative_to(step)
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(file, target)
        shutil.rmtree(decided)
        finished.add(decided.name.removeprefix(_TOGETHER))
    return finished


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file's content, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def sha256_bytes(data: bytes) -> str:
    """The SHA-256 of some bytes, in hex."""
    return hashlib.sha256(data).hexdigest()


@contextmanager
def exclusive(lock: Path, *, what: str, timeout: float) -> Iterator[None]:
    """Hold `lock` (an flock, which the kernel frees if this process dies) for the block; wait at most `timeout` seconds for another holder.

    Raises:
        TimedOut: another process still held it then.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a+") as stream:
        deadline = time.monotonic() + timeout
        while True:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise TimedOut(
                        f"{what}: another process is still doing it after {timeout:.0f} s",
                        resolution=f"wait for it, or see which process holds the lock (fuser -v {lock})",
                    ) from None
                pause(0.2)
        try:
            yield
        finally:
            fcntl.flock(stream, fcntl.LOCK_UN)


def require_free_space(path: Path, gib: float, *, what: str) -> None:
    """Raise CkpError if fewer than `gib` GiB are free below `path`."""
    probe = path
    while not probe.exists():
        probe = probe.parent
    free = shutil.disk_usage(probe).free / (1 << 30)
    if free < gib:
        raise CkpError(
            f"there is too little space for {what}: {gib:.1f} GiB are needed below {path}, and {free:.1f} GiB are free",
            resolution="free some space (`make clean-cache` deletes the build cache) or set CKP_CACHE to a folder on another disk",
        )


def tree_size(path: Path) -> int:
    """Bytes of all regular files below `path`."""
    return sum(entry.stat().st_size for entry in path.rglob("*") if entry.is_file() and not entry.is_symlink())
