"""Takes a backup of a site from the machine with its file, and writes it once it is proved. What is in it, and when: ckp.hostkit.backup.collection."""

from __future__ import annotations

import json
import shutil
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ckp import __version__
from ckp.backups import archive
from ckp.backups.archive import Opened
from ckp.backups.scratch import Programs
from ckp.clients.signing.encryption import ReaderKey, Readers, Signer
from ckp.hostkit.backup.collection import FILE, SITE, SITE_ABOUT, STATE, STATE_ABOUT, TAR, About, Collection, Means, Sources, Unreadable
from ckp.kits.disks import naming_full_disk
from ckp.kits.errors import CkpError, InvalidInput, NotFound
from ckp.kits.files import sha256_file
from ckp.kits.steps import Steps
from ckp.site.backup.collect import collect
from ckp.site.backup.manifest import FORM, Manifest
from ckp.site.backup.proof import Seen, prove
from ckp.site.inventory import SiteHost, SiteHosts
from ckp.site.spec.model import SiteSpec

BACKUP = "backup"
"""The folder below a site's state with what belongs to its backups: the key that signs them, and what is in the making."""
SCRATCH, SIGNER, SEALED = "scratch", "signer", "sealed"
KEYS = "signing-keys.tar"
TITLES = (
    "Taking the management cluster's etcd",
    "Taking workload clusters' etcd",
    "Taking Compass' database, certificates and settings",
    "Encrypting it, and proving it by reading it back",
)
NEVER = ("lock", "sock")
"""Endings of files that are of no use in a backup."""


@dataclass(frozen=True)
class Wanted:
    """A backup that is to be made.

    Args:
        site: its name.
        file: `site.yaml`.
        state: what this machine keeps of the site.
        release: the management cluster's.
        keys: the folder of the keys that sign releases, if they are to be in it.
        without: workload clusters (`namespace/name`) whose etcd may be missing.
        postgresql: Compass has its data there, and not in SQLite.
    """

    site: str
    file: Path
    state: Path
    release: str
    readers: Readers
    keys: Path | None = None
    without: Sequence[str] = ()
    postgresql: bool = False


@dataclass(frozen=True)
class Taken:
    """A backup that was made.

    Args:
        signed_by: fingerprint of the key that signed it.
    """

    manifest: Manifest
    signed_by: str
    seen: Sequence[Seen]


@contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """A folder that only this user may enter, which ends with the block. What a killed run left there is removed. The caller holds a lock on `parent`."""
    parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder = parent / SCRATCH
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def sealing_folder(state: Path) -> Iterator[Path]:
    """A folder of this user alone for a backup that goes elsewhere, as `scratch_folder`. The caller holds the lock of the site."""
    with scratch_folder(state / BACKUP / SEALED) as folder:
        yield folder


def refuse_site(spec: SiteSpec) -> None:
    """InvalidInput for a site on an existing cluster: its etcd and its hosts are its owner's, who backs them up and restores them."""
    if spec.management.kubeconfig is not None:
        raise InvalidInput(
            f"the site {spec.metadata.name} is on an existing cluster, which CKP neither backs up nor restores; nothing was changed",
            resolution="use the means by which that cluster is backed up; its etcd holds all of the site but the volumes of workload clusters' etcd",
        )


def take(hosts: SiteHosts, wanted: Wanted, target: Path, programs: Programs | None, steps: Steps, sources: Sources | None = None) -> Taken:
    """Make a backup. The caller sees to it that nobody else changes the site or backs it up.

    Args:
        hosts: the one that is acted on has the cluster; of the others, it is only asked who owns what is in volumes.
        programs: etcd's, to prove the snapshots; None if they are not here.

    Raises:
        InvalidInput: `target` is there already.
        NotFound: a workload cluster's etcd can't be read, and it is not among `wanted.without`.
        CkpError: a part can't be read, encrypted or proved. There is no file then.
    """
    archive.refuse_target(target)
    host = hosts.management
    several = {each.name: each.address for each in hosts.masters} if len(hosts.masters) > 1 else {}
    own = wanted.state / BACKUP
    with scratch_folder(own) as scratch:
        signer = signer_of(wanted.state, wanted.site)
        members, sources = _Members(hosts, scratch / "members"), sources or Sources.of(host.address)
        collected = Collection(host.name, sources, members.means(sources), several=bool(several))
        managing, hosted, rest, sealing = TITLES
        about = About(
            wanted.site, wanted.release, host.name, host.address, several, __version__, datetime.now(UTC).isoformat(), signing_keys=wanted.keys is not None
        )
        with steps.step(managing):
            uid, planes = collected.cluster_uid(), collected.control_planes()
            seen = collected.management()
            steps.say(f"at revision {seen['revision']} or later; {len(planes)} workload clusters")
        with steps.step(hosted):
            for plane in planes:
                try:
                    collected.hosted(plane, wanted.without, steps.say)
                except Unreadable as error:
                    how = f"see ckp cluster describe {error.name}; or make a backup in which its data is missing: --without {error.title}"
                    raise NotFound(str(error), resolution=how) from None
        with steps.step(rest):
            collected.database(wanted.postgresql)
            collected.host_files()
            pack(members.place(STATE), state_files(wanted.state))
            members.include(collected, STATE, TAR, STATE_ABOUT)
            if wanted.keys is not None:
                pack(members.place(KEYS), files_below(wanted.keys))
                members.include(collected, KEYS, TAR, "the keys that sign releases")
            members.place(SITE).write_bytes(wanted.file.read_bytes())
            members.include(collected, SITE, FILE, SITE_ABOUT)
            volumes = collected.volumes()
        manifest = Manifest.model_validate(collected.manifest(about, uid, volumes))
        with steps.step(sealing):
            ours = archive.fingerprint_of(signer.folder / "signer.pgp")
            found: list[Seen] = []

            def read_back(part: Path, reader: ReaderKey) -> None:
                shutil.rmtree(members.folder)  # what is on the disk counts now
                with archive.opened(part, FORM, reader, lambda _: ours, scratch) as backup:
                    found.extend(prove(backup, programs, scratch, steps.say))

            archive.seal(target, Opened(manifest, ours, members.folder), signer, wanted.readers, scratch, read_back)
    return Taken(manifest, ours, tuple(found))


def signer_of(state: Path, site: str) -> Signer:
    """The key that signs the site's backups, made if there is none. The caller holds the lock of the site."""
    return Signer.ensure(state / BACKUP / SIGNER, f"CKP backups of {site} <backups@{site}.invalid>")


# -- files of this machine


def state_files(state: Path, *, but: Sequence[Path] = ()) -> dict[str, Path]:
    """What of a site's state is in its backups, but for `but`: all except locks and backups in the making. Name in the archive -> file."""
    own = state / BACKUP
    return files_below(state, but=(own / SCRATCH, own / SEALED, *but))


def files_below(folder: Path, *, but: Sequence[Path] = ()) -> dict[str, Path]:
    """Files of a folder, by their names in it, without those that are of no use in a backup."""
    found = {}
    for path in sorted(folder.rglob("*")):
        unwanted = path.name.rpartition(".")[2] in NEVER or any(path.is_relative_to(each) for each in but)
        if not unwanted and path.is_file() and not path.is_symlink():
            found[str(path.relative_to(folder))] = path
    return found


def pack(target: Path, files: Mapping[str, Path]) -> None:
    """Write files into a new tar."""
    with naming_full_disk(target.parent), tarfile.open(target, "x", format=tarfile.PAX_FORMAT) as packed:
        for name, path in files.items():
            packed.add(path, arcname=name, recursive=False)


class _Members:
    """The members as they are collected, in a folder."""

    def __init__(self, hosts: SiteHosts, folder: Path) -> None:
        self.host, self.folder = hosts.management, folder
        self._others = {each.name: each for each in hosts.masters}

    def means(self, sources: Sources) -> Means:
        """How they are read: from the host, over the way by which it is reached."""

        def ask(words: Sequence[str]) -> dict[str, Any]:
            argv = [*sources.kubectl, "--request-timeout=60s", *words, "--output=json"]
            found: dict[str, Any] = json.loads(self.host.run(argv, timeout=120, what=f"kubectl {' '.join(words[:2])}").stdout)
            return found

        return Means(ask, self._read, self._entries, CkpError)

    def place(self, name: str) -> Path:
        """The file of a member, in a folder of this user alone."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        return path

    def include(self, collected: Collection, name: str, kind: str, about: str) -> None:
        """A member of this machine, which is at its place."""
        collected.include(name, kind, self.place(name).stat().st_size, sha256_file(self.place(name)), about)

    def _read(self, name: str, request: dict[str, Any], about: str) -> dict[str, Any]:
        path = self.place(name)
        path.unlink(missing_ok=True)  # of another member of the same etcd, which broke off
        try:
            return collect(self.host, request, path, f"reading {about} on {self.host.name}")
        except BaseException:
            path.unlink(missing_ok=True)
            raise

    def _entries(self, where: str, path: str) -> Mapping[str, str]:
        host: SiteHost | None = self._others.get(where) if where else self.host
        if host is None:
            return {}
        argv = ["find", path, "-mindepth", "1", "-maxdepth", "1", "-printf", "%f/%U %G %m\\n"]
        try:
            seen = host.run(argv, timeout=60, what=f"looking into {path}")
        except CkpError:
            if host.name == self.host.name:
                raise
            return {}  # it is away: the owners are known without it, where nobody has changed them
        return dict(line.split("/", 1) for line in seen.stdout.splitlines())
