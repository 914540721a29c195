"""A signed archive: one tar, packed by zstd, whose first members say by digest what the rest is, and are signed.

    index.json       what it is, and each further member with size, mode and SHA-256
    index.json.asc   one detached OpenPGP signature over it
    …                regular files only, each listed, in the index's order

A reader takes nothing from it before the signature is good, writes nothing outside of one scratch folder, and stops at the first byte that
is not as listed. The format is CKP's own; tar and zstd are everybody's.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ckp.clients.signing.openpgp import SigningKey
from ckp.hostkit.errors import AgentError
from ckp.hostkit.errors import VerificationFailed as Refused
from ckp.kits.disks import disk_full, naming_full_disk, says_full
from ckp.kits.errors import CkpError, InvalidInput, VerificationFailed
from ckp.kits.files import CHUNK, building_directory, exclusive, require_free_space, sha256_bytes, sha256_file
from ckp.verify import strictjson
from ckp.verify.archives import TarReader
from ckp.verify.packagefile import Entry
from ckp.verify.signatures import check_signature

INDEX = "index.json"
SIGNATURE = "index.json.asc"
SCHEMA = 1
EPOCH = 1767225600
MAX_INDEX = 4 << 20
"""Bytes; a release has some hundred files, each of about 150 bytes in it."""
MAX_SIGNATURE = 64 << 10
MAX_SIZE = (8 << 30) - 1
"""What a header of a tar can say."""
MAX_AROUND = 16 << 10
"""Bytes that a member takes in the tar beside its content: two headers, a long name and padding; and the archive's end, which tar pads to 10 KiB."""
_NAME = re.compile(r"[A-Za-z0-9_.+~@%=,-]+(/[A-Za-z0-9_.+~@%=,-]+)*\Z")
AGAIN = "fetch the file again from where it was made"


@dataclass(frozen=True)
class Member:
    """A file that goes into an archive under `name`, a relative path."""

    name: str
    source: Path
    mode: int = 0o644


def write_archive(target: Path, about: Mapping[str, Any], members: Sequence[Member], key: SigningKey, say: Callable[[str], None]) -> None:
    """Write an archive; `target` appears only when it is complete. The same content and signature give the same bytes.

    Args:
        about: what the index says beside the list of files.
    """
    files: dict[str, dict[str, Any]] = {}
    # What `read_archive` would refuse is not written.
    for member in sorted(members, key=lambda item: item.name):
        if not allowed(member.name) or member.name in files:
            raise InvalidInput(f"{member.name!r} can't be a member of an archive: no plain relative path, or there twice")
        files[member.name] = {"sha256": sha256_file(member.source), "size": member.source.stat().st_size, "mode": member.mode}
    total = sum(entry["size"] for entry in files.values())
    require_free_space(target.absolute().parent, total / (1 << 30) + 0.5, what=f"the archive {target.name}")
    sources = {member.name: member.source for member in members}
    index = (json.dumps({"schema": SCHEMA, **about, "files": files}, indent=1, sort_keys=True) + "\n").encode()
    if len(index) > MAX_INDEX or any(entry["size"] > MAX_SIZE for entry in files.values()):
        raise InvalidInput(f"{target.name} would have an index of more than {MAX_INDEX >> 20} MiB, or a file of 8 GiB or more")
    say(f"{len(files)} files, {total >> 20} MiB before packing")
    folder = target.absolute().parent
    with naming_full_disk(folder):
        folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=folder, prefix=f".{target.name}.")
    part = Path(name)
    try:
        with naming_full_disk(folder), os.fdopen(handle, "wb") as out, _zstd(["-T0", "-3", "-c"], stdout=out, where=folder) as packer:
            assert packer.stdin is not None
            with tarfile.open(fileobj=packer.stdin, mode="w|", format=tarfile.GNU_FORMAT) as tar:
                _add(tar, INDEX, io.BytesIO(index), len(index), 0o644)
                signature = key.sign(index, armor=True)
                _add(tar, SIGNATURE, io.BytesIO(signature), len(signature), 0o644)
                for name, entry in files.items():
                    with sources[name].open("rb") as stream:
                        _add(tar, name, stream, entry["size"], entry["mode"])
        part.chmod(0o644)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def read_archive(file: Path, keyring: Path, root: Path, say: Callable[[str], None]) -> tuple[Path, dict[str, Any]]:
    """Unpack an archive into a folder of its own below `root`, named by its index; found there already, it is not unpacked again.

    Returns:
        The folder and the index.

    Raises:
        VerificationFailed: not signed by a key of `keyring`, or a member is not as the index says. Nothing is left of it then.
        InvalidInput: it is not an archive of CKP.
        DiskFull: there is no room below `root`. Nothing is left of it then either.
    """
    with _zstd(["-dc", "--", file]) as unpacker:
        assert unpacker.stdout is not None
        stdout = unpacker.stdout
        # As much as index and signature can take; more once they are trusted.
        tar = TarReader(iter(lambda: stdout.read(CHUNK), b""), MAX_INDEX + MAX_SIGNATURE + MAX_AROUND, _broken)
        try:
            with naming_full_disk(root):
                entries = tar.entries()
                index, data = _signed_index(tar, entries, file, keyring)
                total = sum(entry["size"] for entry in data["files"].values())
                final = root / sha256_bytes(index)[:20]
                with exclusive(final.with_name(final.name + ".lock"), what=f"reading {file.name}", timeout=1800):
                    if final.exists():
                        say(f"{file.name} was imported before")
                        return final, data
                    require_free_space(root, total / (1 << 30) + 0.5, what=f"unpacking {file.name}")
                    tar.limit += total + MAX_AROUND * (len(data["files"]) + 1)
                    with building_directory(final) as scratch:
                        _unpack(tar, entries, data["files"], scratch, file)
                        (scratch / INDEX).write_bytes(index)
        except Refused as error:
            raise InvalidInput(f"{file} can't be read as an archive of CKP: {error.brief}", resolution=AGAIN) from error
        except (OSError, ValueError) as error:
            raise InvalidInput(f"{file} can't be read as an archive of CKP: {error}", resolution=AGAIN) from error
    say(f"{len(data['files'])} files of {file.name} are as they were signed")
    return final, data


def _broken(why: str) -> Refused:
    return Refused(why, check="archive")


def allowed(name: str) -> bool:
    """Whether a name may stand in an archive: relative, normal, and not one of the archive's own."""
    parts = name.split("/")
    return len(name) <= 250 and _NAME.match(name) is not None and not any(part in (".", "..") for part in parts) and name not in (INDEX, SIGNATURE)


def _signed_index(tar: TarReader, entries: Iterator[Entry], file: Path, keyring: Path) -> tuple[bytes, dict[str, Any]]:
    index = _first(tar, entries, INDEX, MAX_INDEX, file)
    signature = _first(tar, entries, SIGNATURE, MAX_SIGNATURE, file)
    try:
        key = check_signature(iter([index]), signature, str(keyring), f"{file.name} ({INDEX})")
    except AgentError as error:
        raise VerificationFailed(error.brief, details=error.details, resolution=error.resolution) from error

    def malformed(why: str) -> VerificationFailed:
        return VerificationFailed(f"the index of {file} is malformed: {why}", details=f"key: {key}", resolution=AGAIN)

    data = strictjson.parse(index, malformed)
    if not isinstance(data, dict) or not strictjson.is_integer(data.get("schema"), 0, 1 << 30) or not isinstance(data.get("files"), dict):
        raise malformed("it has no schema or no files")
    if data["schema"] != SCHEMA:
        raise InvalidInput(f"{file} is of schema {data['schema']}, and this CKP reads {SCHEMA}", resolution="use the CKP that it was made for")
    for name, entry in data["files"].items():
        if not allowed(name):
            raise malformed(f"{name[:200]!r} is not a plain relative path")
        digest = entry.get("sha256") if isinstance(entry, dict) else None
        if not isinstance(digest, str) or not re.fullmatch(r"[0-9a-f]{64}", digest):
            raise malformed(f"the entry {name} has no SHA-256")
        if not strictjson.is_integer(entry.get("size"), 0, MAX_SIZE):
            raise malformed(f"the entry {name} has no size, a whole number of less than 8 GiB")
        if not strictjson.is_integer(entry.get("mode"), 0o644, 0o755) or entry["mode"] not in (0o644, 0o755):
            raise malformed(f"the entry {name} has another mode than 0644 and 0755")
    return index, data


def _first(tar: TarReader, entries: Iterator[Entry], name: str, limit: int, file: Path) -> bytes:
    entry = next(entries, None)
    if entry is None or entry.path != name or entry.kind != "file" or entry.size > limit:
        raise InvalidInput(
            f"{file} is not an archive of CKP: it does not begin with {INDEX} and {SIGNATURE}", resolution="name a file that `ckp dist export` wrote"
        )
    return b"".join(tar.content())


def _unpack(tar: TarReader, entries: Iterator[Entry], files: Mapping[str, Mapping[str, Any]], scratch: Path, file: Path) -> None:
    expected = iter(files.items())
    for found in entries:
        name, entry = next(expected, ("", {}))
        if found.path != name or found.kind != "file" or found.size != entry["size"]:
            raise VerificationFailed(
                f"{file} holds {found.path!r} where its signed index has {name or 'its end'}", details="another name, kind or size", resolution=AGAIN
            )
        target = scratch / name
        target.parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        with target.open("xb") as out:
            for chunk in tar.content():
                digest.update(chunk)
                out.write(chunk)
        if digest.hexdigest() != entry["sha256"]:
            raise VerificationFailed(f"{name} in {file} was changed: its SHA-256 is not what the signed index says", resolution=AGAIN)
        target.chmod(entry["mode"])
    if (left := next(expected, None)) is not None:
        raise VerificationFailed(f"{file} ends before {left[0]}, which its signed index lists", resolution=AGAIN)


def _add(tar: tarfile.TarFile, name: str, stream: IO[bytes], size: int, mode: int) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode = size, EPOCH, mode
    tar.addfile(info, stream)


@contextmanager
def _zstd(arguments: Sequence[str | Path], stdout: IO[bytes] | int = subprocess.PIPE, where: Path | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """zstd as a pipe: too much data for ckp.kits.processes.run, which keeps a program's output in memory. Killed if the block fails; its failure is an error.

    Args:
        where: the folder that it writes to, for the error.
    """
    packing = "-c" in arguments
    source = subprocess.PIPE if packing else subprocess.DEVNULL
    try:
        child = subprocess.Popen(["zstd", "-q", *map(str, arguments)], stdin=source, stdout=stdout, stderr=subprocess.PIPE)
    except OSError as error:
        raise CkpError(f"zstd could not be started: {error.strerror}", resolution="run `make setup`, which installs it") from error
    broken = False
    try:
        yield child
    except BaseException as error:
        broken = packing and isinstance(error, BrokenPipeError)  # it ended before we did, and says why
        if not broken:
            child.kill()
            child.communicate()
            raise
    if packing and child.stdin is not None:
        with suppress(BrokenPipeError):
            child.stdin.close()
        child.stdin = None
    elif child.stdout is not None:
        child.stdout.close()  # a reader that found its answer early need not read on
        child.stdout = None
    _, said = child.communicate(timeout=600)
    if packing and (broken or child.returncode != 0):
        details = (said or b"").decode(errors="replace").strip()
        if says_full(details):
            raise disk_full("packing by zstd failed", *((where,) if where else ()), details=details)
        raise CkpError("packing by zstd failed", details=details)
