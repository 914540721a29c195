"""Layers of images: deterministic tar archives of files, and Debian file systems, cached by a hash of what goes into them."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ckp.clients.oci.registry import LAYER_ZSTD, BlobStore, Descriptor
from ckp.distribution.builder import debian
from ckp.kits import paths
from ckp.kits.disks import naming_full_disk
from ckp.kits.files import CHUNK, atomic_write, exclusive, sha256_bytes, sha256_file
from ckp.kits.processes import run

EPOCH = 1767225600
"""2026-01-01: the time of every file in our layers, in seconds since 1970."""
CREATED = "2026-01-01T00:00:00Z"
DEBIAN_SUITE = "bookworm"
RECIPE = "3"
Layer = tuple[Descriptor, str]


@dataclass(frozen=True)
class Entry:
    """A file, folder or link of a layer. A folder as `source` is copied with everything below it."""

    target: str
    source: Path | None = None
    mode: int = 0o644
    link: str = ""
    content: bytes | None = None
    uid: int = 0


def store() -> BlobStore:
    """The blobs of all images that were built on this machine."""
    return BlobStore(paths.cache() / "blobs")


def _remembered(key: str) -> Layer | None:
    record = paths.cache() / "layers" / f"{key}.json"
    if not record.exists():
        return None
    data = json.loads(record.read_text())
    descriptor = Descriptor(LAYER_ZSTD, data["digest"], data["size"])
    return (descriptor, data["diff_id"]) if store().path(descriptor.digest).exists() else None


def _remember(key: str, layer: Layer) -> None:
    atomic_write(paths.cache() / "layers" / f"{key}.json", json.dumps({"digest": layer[0].digest, "size": layer[0].size, "diff_id": layer[1]}))


def _compress(tar: Path) -> Layer:
    """zstd at a level whose output does not depend on the number of threads; containerd has read zstd layers since 1.5."""
    digest = hashlib.sha256()
    with tar.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
    packed = store().scratch()
    try:
        run(["zstd", "-q", "-f", "-T0", "-9", tar, "-o", packed], timeout=900, what="compressing a layer")
        packed.chmod(0o644)
        return store().adopt(packed, LAYER_ZSTD), f"sha256:{digest.hexdigest()}"
    finally:
        packed.unlink(missing_ok=True)


def file_layer(entries: Sequence[Entry]) -> Layer:
    """A layer with these entries, parents included; equal entries give equal bytes."""
    expanded = sorted(_expand(entries), key=lambda entry: entry.target)
    fingerprint = [RECIPE, *(f"{entry.target} {entry.mode:o} {entry.uid} {entry.link} {_content_digest(entry)}" for entry in expanded)]
    key = sha256_bytes("\n".join(fingerprint).encode())
    with exclusive(paths.cache() / "layers" / f"{key}.lock", what="packing a layer", timeout=900):
        if known := _remembered(key):
            return known
        tar = store().scratch()
        try:
            with naming_full_disk(tar.parent):
                _write_tar(tar, expanded)
            layer = _compress(tar)
        finally:
            tar.unlink(missing_ok=True)
        _remember(key, layer)
        return layer


def _content_digest(entry: Entry) -> str:
    if entry.content is not None:
        return sha256_bytes(entry.content)
    return sha256_file(entry.source) if entry.source else "-"


def _expand(entries: Sequence[Entry]) -> list[Entry]:
    """Folders become their files; files keep whether they are executable."""
    flat: list[Entry] = []
    for entry in entries:
        if entry.source is None or not entry.source.is_dir():
            flat.append(entry)
            continue
        for path in sorted(entry.source.rglob("*")):
            target = f"{entry.target.rstrip('/')}/{path.relative_to(entry.source)}"
            if path.is_symlink():
                flat.append(Entry(target, link=str(path.readlink()), uid=entry.uid))
            elif path.is_file():
                flat.append(Entry(target, path, 0o755 if os.access(path, os.X_OK) and path.stat().st_mode & 0o100 else 0o644, uid=entry.uid))
    return flat


def _write_tar(tar: Path, entries: Sequence[Entry]) -> None:
    folders: set[str] = set()
    with tarfile.open(tar, "w", format=tarfile.PAX_FORMAT) as archive:
        for entry in entries:
            name = entry.target.strip("/")
            parts = name.split("/")
            for depth in range(1, len(parts)):
                folder = "/".join(parts[:depth])
                if folder not in folders:
                    folders.add(folder)
                    info = _info(folder, 0o755, 0)
                    info.type = tarfile.DIRTYPE
                    archive.addfile(info)
            info = _info(name, entry.mode, entry.uid)
            if entry.link:
                info.type, info.linkname, info.mode = tarfile.SYMTYPE, entry.link, 0o777
                archive.addfile(info)
            elif entry.target.endswith("/"):
                folders.add(name)
                info.type = tarfile.DIRTYPE
                archive.addfile(info)
            elif entry.content is not None:
                info.size = len(entry.content)
                archive.addfile(info, io.BytesIO(entry.content))
            elif entry.source is not None:
                info.size = entry.source.stat().st_size
                with entry.source.open("rb") as stream:
                    archive.addfile(info, stream)


def _info(name: str, mode: int, uid: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.mode, info.mtime, info.uid, info.gid = mode, EPOCH, uid, uid
    return info


def debian_layer(packages: Sequence[str]) -> Layer:
    """A minimal Debian file system with `packages`, without documentation, caches and package lists.

    Cached by the list of packages: a newer point release is taken when RECIPE is raised or the cache is removed.
    """
    key = sha256_bytes(json.dumps(["debian", RECIPE, DEBIAN_SUITE, sorted(packages), DROPPED]).encode())
    with exclusive(paths.cache() / "layers" / f"{key}.lock", what="making a Debian file system", timeout=3600):
        if (known := _remembered(key)) and debian.remembered(known[0].digest):
            return known
        tar = store().scratch()
        listing = tar.with_name(f"{tar.name}.packages")
        try:
            # Removed at the end and not by dpkg's path-exclude, for which mmdebstrap pipes every package through a slow filter.
            dropped = " ".join(f"$1/{path}" for path in DROPPED)
            hook = f"--customize-hook=rm -rf {dropped} && mkdir -p $1/var/log $1/var/cache/apt"
            _mmdebstrap(["--variant=minbase", f"--include={','.join(packages)}", *debian.installed_hook(listing), hook, "--format=tar"], tar)
            layer = _compress(tar)
            debian.remember(layer[0].digest, debian.parse_packages(listing.read_text()))
        finally:
            tar.unlink(missing_ok=True)
            listing.unlink(missing_ok=True)
        _remember(key, layer)
        return layer


DROPPED = ("usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/info", "var/lib/apt/lists", "var/cache/apt", "var/log")


def _mmdebstrap(arguments: Sequence[str | Path], target: Path) -> None:
    run(
        ["mmdebstrap", "--quiet", "--mode=root", *arguments, DEBIAN_SUITE, target],
        timeout=1800,
        env={"SOURCE_DATE_EPOCH": str(EPOCH)},
        what="making a Debian file system",
        resolution="check that apt-get update works on this machine",
    )


def program_layer(package: str, program: str, link: str, *, extra: Sequence[str] = ()) -> Layer:
    """One program of a Debian package with the shared libraries that it needs and nothing else, as a layer above a `debian_layer`.

    Args:
        program: its path.
        link: a further name for it.
        extra: patterns of further files, relative to the root.
    """
    key = sha256_bytes(json.dumps(["program", RECIPE, "usr-merged", DEBIAN_SUITE, package, program, link, list(extra)]).encode())
    with exclusive(paths.cache() / "layers" / f"{key}.lock", what=f"taking {program} from Debian", timeout=3600):
        if (known := _remembered(key)) and debian.remembered(known[0].digest):
            return known
        with tempfile.TemporaryDirectory(prefix="ckp-program-") as work:
            root = Path(work) / "root"
            listing = Path(work) / "packages"
            _mmdebstrap(["--variant=extract", f"--include={package}", *debian.extracted_hook(listing)], root)
            entries = [Entry(program, _inside(root, program), 0o755), Entry(link, link=program)]
            # /lib is a link to /usr/lib in every Debian of today; a layer that brings a folder of that name would take the link's place.
            entries += [Entry(re.sub(r"^/lib/", "/usr/lib/", library), _inside(root, library), 0o755) for library in _libraries(root, program)]
            for pattern in extra:
                entries += [Entry(f"/{path.relative_to(root)}", path) for path in sorted(root.glob(pattern)) if path.is_file()]
            origins = [str(entry.source.relative_to(root)) for entry in entries if entry.source]
            layer = file_layer(entries)
            debian.remember(layer[0].digest, debian.owners(listing.read_text(), origins))
        _remember(key, layer)
        return layer


def _libraries(root: Path, program: str) -> list[str]:
    """Paths of the shared libraries, as the dynamic loader inside `root` finds them; what every Debian has is left out."""
    listed = run(["chroot", root, "/lib64/ld-linux-x86-64.so.2", "--list", program], timeout=60, what=f"listing libraries of {program}").stdout
    found = [os.path.normpath(path) for path in re.findall(r"=> (/\S+)", listed)]
    return [path for path in found if not re.search(r"/(libc|libm|libgcc_s|ld-linux[^/]*)\.so", path)]


def _inside(root: Path, path: str) -> Path:
    """The regular file behind a path, with links followed inside `root`."""
    current = root / path.lstrip("/")
    while current.is_symlink():
        target = str(current.readlink())
        current = root / target.lstrip("/") if target.startswith("/") else Path(os.path.normpath(current.parent / target))
    return current
