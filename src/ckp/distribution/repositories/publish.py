"""The apt and dnf repositories of CKP: filled from packages that pass verification, signed, changed in one step, pruned only on request.

    apt/dists/<codename>/          InRelease, Release, Release.gpg, <component>/binary-amd64/Packages, .gz, by-hash
    apt/pool/<component>/<name>/   debs; one pool for all codenames
    rpm/el9/<component>/x86_64/    Packages/ with rpms, repodata/ with the metadata and repomd.xml.asc
    keys/ckp.gpg, keys/ckp.asc     what clients trust: a keyring for apt, armoured certificates for rpm
    setup/                         source lists to fill in

A component is a minor version of Kubernetes (`v1.35`), so that a host follows one, `agent`, or `ckp` with the command line. What the repositories
hold is what their signed indices say. Packages are laid into the pool first, then the indices are switched, then what no index names any more is removed: a
process may be killed anywhere, and the next one finishes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ckp.clients.signing.openpgp import SigningKey
from ckp.distribution.packages.pack import Format, Package
from ckp.distribution.repositories.apt import AptRepository, State
from ckp.distribution.repositories.dnf import DnfRepository
from ckp.distribution.repositories.files import Entry, bring, check, make_folder, require_exchange, same_but_signature, scratch_folder
from ckp.hostkit.errors import AgentError
from ckp.kits.clock import Clock, SystemClock
from ckp.kits.disks import naming_full_disk
from ckp.kits.errors import Conflict, InvalidInput, NotFound, VerificationFailed
from ckp.kits.files import atomic_write, exclusive, sha256_file
from ckp.verify.keyrings import armoured
from ckp.verify.repositories.check import verify_repository

AGENT = "agent"
COMMAND = "ckp"
LOCK_TIMEOUT = 1800.0


@dataclass(frozen=True)
class Listed:
    """A package that the repositories hold."""

    format: Format
    component: str
    entry: Entry

    def __str__(self) -> str:
        return f"{self.component} {self.entry.name} {self.entry.version} ({self.format})"


@dataclass(frozen=True)
class Published:
    """What a publication did.

    Args:
        added: files that were not there before.
        kept: files that were there already, the published bytes unchanged.
        switched: which indices were made again: `apt`, `dnf`; none if all was there.
    """

    component: str
    added: tuple[str, ...]
    kept: tuple[str, ...]
    switched: tuple[str, ...]


@dataclass
class _Contents:
    """All that the signed indices say, to be changed and written back."""

    apt: State
    debs: dict[str, list[Entry]]
    rpms: dict[str, list[Entry]]
    present: dict[str, list[Entry]] = field(default_factory=dict)
    """The rpms as they were."""

    def all(self) -> Iterator[Listed]:
        for component, entries in sorted(self.debs.items()):
            yield from (Listed("deb", component, entry) for entry in entries)
        for component, entries in sorted(self.rpms.items()):
            yield from (Listed("rpm", component, entry) for entry in entries)

    def of(self, kind: Format) -> dict[str, list[Entry]]:
        return self.debs if kind == "deb" else self.rpms


@dataclass(frozen=True)
class Repositories:
    """The repositories below `root`, signed by `key`. Any number of processes may change them: they wait for each other.

    Args:
        url: where clients reach `root`, for the templates in `setup/`; left to be filled in if empty.
        valid_days: days after which apt takes the indices for outdated, against an attacker who withholds new ones. Off by default: a
            site without a network would stop installing. With it, `publish` or `reindex` must run within half that time.
    """

    root: Path
    key: SigningKey
    url: str = ""
    valid_days: int | None = None
    clock: Clock = field(default_factory=SystemClock)

    @property
    def apt(self) -> AptRepository:
        """The apt repository."""
        return AptRepository(self.root / "apt", self.key, self.valid_days)

    def dnf(self, component: str) -> DnfRepository:
        """The dnf repository of a component."""
        return DnfRepository(self.root / "rpm" / "el9" / component / "x86_64", self.key)

    def contents(self) -> list[Listed]:
        """All packages that the signed indices name.

        Raises:
            VerificationFailed: the indices are not what we signed.
        """
        with self._locked():
            return list(self._read().all())

    def publish(self, packages: Sequence[Package], component: str, say: Callable[[str], None]) -> Published:
        """Add packages to a component. Doing it again changes no byte; after a kill, it finishes.

        The content of a name and version never changes, since clients that have it would not see the change. A package that differs from
        the published one in its signature alone (made again after a rotation of the key) is passed over, and the published one stays.

        Raises:
            InvalidInput: no such component can be.
            VerificationFailed: a package is not ours, or not what it says; or the present indices are not ours. Nothing was changed.
            Conflict: the name and version is published with other content. Nothing was changed.
        """
        _check_component(component)
        with self._changing() as scratch:
            contents = self._read()
            incoming = scratch / "incoming"
            incoming.mkdir()
            # A package of another component counts as well, this component's own before it.
            known = sorted(contents.all(), key=lambda item: item.component == component)
            published = {(item.format, item.entry.name, item.entry.version): item for item in known}
            added: dict[str, tuple[Format, Path, Entry]] = {}
            kept: list[str] = []
            for package in packages:
                there = published.get((package.format, package.name, package.version))
                if there is not None and there.component == component and there.entry.sha256 == package.sha256 and self._whole(there):
                    kept.append(package.file_name)
                    continue  # these very bytes are verified and published
                source = bring(package, self.key, incoming)
                if there is not None and there.entry.sha256 != package.sha256:
                    say(self._pass_over(source, there))
                    source = self._file(there)
                if there is not None and there.component == component:
                    kept.append(source.name)
                    if self._whole(there):
                        continue
                entry = Entry(_place(package, component), package.name, package.version, sha256_file(source), source.stat().st_size)
                if added.setdefault(source.name, (package.format, source, entry))[2] != entry:
                    raise InvalidInput(f"{source.name} is given twice, with different content")
            self._announce()
            for kind, source, entry in added.values():
                target = self._base(kind, component) / entry.path
                make_folder(target.parent, below=self.root)
                if source.is_relative_to(incoming):
                    os.replace(source, target)
                else:
                    _link_again(source, target)
                chosen = contents.of(kind).setdefault(component, [])
                if entry not in chosen:
                    chosen.append(entry)
            for kind in {package.format for package in packages}:
                contents.of(kind).setdefault(component, [])
            switched = self._write(contents, scratch)
            self._sweep(contents)
        new = tuple(sorted(name for name in added if name not in kept))
        say(f"{component}: {len(new)} packages published, {len(kept)} there already" + ("" if switched else ", nothing changed"))
        return Published(component, new, tuple(sorted(kept)), switched)

    def select(self, component: str, *, names: Iterable[str] = (), versions: Iterable[str] = ()) -> list[Listed]:
        """What `remove` with the same arguments would remove: the packages of a component with one of these names and versions.

        No names means all names, no versions all versions.

        Raises:
            NotFound: a component, name or version that is not there.
        """
        with self._locked():
            return self._select(self._read(), component, tuple(names), tuple(versions))

    def remove(self, component: str, *, names: Iterable[str] = (), versions: Iterable[str] = (), say: Callable[[str], None]) -> list[Listed]:
        """Take packages out of a component, from the indices first and then from the disk. An emptied component stays, so that hosts
        which name it can still update.

        Raises:
            NotFound: a component, name or version that is not there. Nothing was changed.
        """
        with self._changing() as scratch:
            contents = self._read()
            gone = self._select(contents, component, tuple(names), tuple(versions))
            for item in gone:
                contents.of(item.format)[component].remove(item.entry)
            self._write(contents, scratch)
            self._sweep(contents)
        for item in gone:
            say(f"removed {item}")
        return gone

    def reindex(self, say: Callable[[str], None]) -> int:
        """Verify every package, and make and sign all indices again, from the packages alone; returns the number of packages.

        For a new signing key, a Valid-Until that runs out, and indices that were damaged.

        Raises:
            VerificationFailed: names each package that is not good. Nothing was changed.
        """
        with self._changing() as scratch:
            contents = _Contents(State(), {}, {})
            wrong: list[str] = []
            for kind, component, path in self._packages():
                try:
                    info = check(path, self.key)
                    relative = str(path.relative_to(self._base(kind, component)))
                    expected = _place(Package(info.name, info.version, path, "", kind), component)
                    if relative != expected:
                        raise VerificationFailed(f"this is {info.name} {info.version}, which belongs to {expected}")
                except VerificationFailed as error:
                    wrong.append(f"{path.relative_to(self.root)}: {error.brief}")
                    continue
                entry = Entry(relative, info.name, info.version, sha256_file(path), path.stat().st_size)
                contents.of(kind).setdefault(component, []).append(entry)
            if wrong:
                raise VerificationFailed(
                    f"{len(wrong)} packages below {self.root} failed verification; nothing was changed",
                    details="\n".join(wrong),
                    resolution="find out where they come from, delete them, run this again, and publish their releases again",
                )
            # What holds no package any more was emptied by `remove`, and stays.
            for folder in self.root.glob("rpm/el9/*/x86_64"):
                contents.rpms.setdefault(folder.parent.name, [])
            for folder in self.root.glob("apt/dists/*/*/binary-amd64"):
                contents.debs.setdefault(folder.parent.name, [])
            self._announce()
            self._write(contents, scratch, renew=True)
        count = len(list(contents.all()))
        say(f"{count} packages verified, all indices made again and signed by {self.key.fingerprint}")
        return count

    def verify(self) -> list[str]:
        """Verify everything as `ckp dist verify` and the agent do, with one of our keys; returns what was verified, as lines of text.

        Raises:
            VerificationFailed: the first thing that is wrong.
        """
        with self._locked():
            try:
                return verify_repository(str(self.root), str(self.key.keyring))
            except AgentError as error:
                raise VerificationFailed(error.brief, details=error.details, resolution=error.resolution) from error

    # -- parts ---------------------------------------------------------------------------------------------------------

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """The lock under which the repositories are changed."""
        with exclusive(self.root / ".lock", what=f"a change of the repositories in {self.root}", timeout=LOCK_TIMEOUT):
            yield

    @contextmanager
    def _changing(self) -> Iterator[Path]:
        """The same, with a folder for what is not public yet."""
        with naming_full_disk(self.root), self._locked(), scratch_folder(self.root) as scratch:
            require_exchange(scratch)
            yield scratch

    def _read(self) -> _Contents:
        apt = self.apt.read()
        rpms = {}
        for folder in sorted(self.root.glob("rpm/el9/*/x86_64")):
            listed = self.dnf(folder.parent.name).read()
            if listed is not None:
                rpms[folder.parent.name] = listed
        debs = {component: list(entries) for component, entries in apt.entries.items()}
        return _Contents(apt, debs, rpms, {component: list(entries) for component, entries in rpms.items()})

    def _write(self, contents: _Contents, scratch: Path, *, renew: bool = False) -> tuple[str, ...]:
        now, switched = self.clock.now(), []
        if contents.debs and self.apt.replace(contents.debs, contents.apt, scratch, now, renew=renew):
            switched.append("apt")
        results = [
            self.dnf(component).replace(entries, contents.present.get(component), scratch, now, renew=renew)
            for component, entries in sorted(contents.rpms.items())
        ]
        return (*switched, "dnf") if any(results) else tuple(switched)

    def _pass_over(self, source: Path, there: Listed) -> str:
        """Why the published package stays, as a sentence; raises if it is not the same package."""
        known = self._file(there)
        what = f"{there.entry.name} {there.entry.version} ({there.format})"
        if not self._whole(there):
            raise VerificationFailed(
                f"{known} is not what the signed index says; nothing was published",
                resolution=f"find out who can write there, delete the file, and remove the package from the indices: {self._prune(there)}",
            )
        if not same_but_signature(source, known):
            raise Conflict(
                f"{what} is published in {there.component} with other content; nothing was published",
                resolution=f"publish it under a new version: hosts that have this one would never see the change. Or remove it first: {self._prune(there)}",
            )
        try:
            check(known, self.key)
        except VerificationFailed as error:
            raise Conflict(
                f"{what} is published in {there.component} with a signature that no longer holds; nothing was published",
                details=error.brief,
                resolution=f"remove it first: {self._prune(there)}",
            ) from error
        return f"{what} differs from the published one in its signature only: the published one stays"

    def _prune(self, item: Listed) -> str:
        return f"ckp dist repository prune {self.root} {item.component} --package {item.entry.name} --version {item.entry.version} --yes"

    def _select(self, contents: _Contents, component: str, names: tuple[str, ...], versions: tuple[str, ...]) -> list[Listed]:
        there = [item for item in contents.all() if item.component == component]
        known = {item.component for item in contents.all()}
        if not there:
            raise NotFound(f"{self.root} has no packages in the component {component}", resolution=f"it has {', '.join(sorted(known)) or 'none at all'}")
        for kind, wanted, have in (("package", names, {item.entry.name for item in there}), ("version", versions, {item.entry.version for item in there})):
            if missing := sorted(set(wanted) - have):
                raise NotFound(f"{component} has no {kind} {', '.join(missing)}", resolution=f"it has {', '.join(sorted(have))}")
        chosen = [item for item in there if (not names or item.entry.name in names) and (not versions or item.entry.version in versions)]
        if not chosen:
            raise NotFound(f"{component} has {', '.join(names)}, and none of version {', '.join(versions)}")
        return chosen

    def _base(self, kind: Format, component: str) -> Path:
        return self.apt.folder if kind == "deb" else self.dnf(component).folder

    def _file(self, item: Listed) -> Path:
        return self._base(item.format, item.component) / item.entry.path

    def _whole(self, item: Listed) -> bool:
        """Whether a published package still has the hash that its index names."""
        path = self._file(item)
        return path.is_file() and sha256_file(path) == item.entry.sha256

    def _packages(self) -> Iterator[tuple[Format, str, Path]]:
        """All files in the pools, whatever they are."""
        for path in sorted(self.root.glob("apt/pool/*/*/*")):
            yield "deb", path.parts[-3], path
        for path in sorted(self.root.glob("rpm/el9/*/x86_64/Packages/*")):
            yield "rpm", path.parts[-4], path

    def _sweep(self, contents: _Contents) -> None:
        """Delete what lies in the pools and no index names: what `remove` took out, or a killed publication left."""
        named = {self._file(item) for item in contents.all()}
        for _, _, path in list(self._packages()):
            if path not in named:
                path.unlink()
        for folder in self.root.glob("apt/pool/*/*"):
            if not any(folder.iterdir()):
                folder.rmdir()

    def _announce(self) -> None:
        """The trusted keys and the templates, before anything is signed by a key that clients could not find.

        Templates into which an address was filled stay as they are, unless another address is given.
        """
        keyring = self.key.keyring.read_bytes()
        address = self.url.rstrip("/") or URL
        files = {"keys/ckp.gpg": keyring, "keys/ckp.asc": armoured(keyring)}
        files |= {f"setup/{name}": text.replace(URL, address).encode() for name, text in TEMPLATES.items()}
        for name, content in files.items():
            path = make_folder(self.root / name.partition("/")[0], below=self.root) / Path(name).name
            there = path.read_bytes() if path.exists() else b""
            filled = name.startswith("setup/") and there and URL.encode() not in there
            if there != content and not (filled and address == URL):
                atomic_write(path, content)


URL = "@URL@"
TEMPLATES = {
    "ckp.sources": """\
# /etc/apt/sources.list.d/ckp.sources: write the system's codename for @CODENAME@ and Kubernetes' minor version (v1.35) for @MINOR@.
Types: deb
URIs: @URL@/apt
Suites: @CODENAME@
Components: @MINOR@ agent
Architectures: amd64
Signed-By: /usr/share/keyrings/ckp.gpg
""",
    "ckp-command.sources": """\
# /etc/apt/sources.list.d/ckp-command.sources, for the command line alone: write the system's codename for @CODENAME@.
Types: deb
URIs: @URL@/apt
Suites: @CODENAME@
Components: ckp
Architectures: amd64
Signed-By: /usr/share/keyrings/ckp.gpg
""",
    "ckp-command.repo": """\
# /etc/yum.repos.d/ckp-command.repo, for the command line alone.
[ckp-command]
name=CKP command line
baseurl=@URL@/rpm/el9/ckp/$basearch
enabled=1
gpgcheck=1
repo_gpgcheck=1
gpgkey=file:///etc/pki/rpm-gpg/RPM-GPG-KEY-ckp
""",
    "ckp.list": """\
# /etc/apt/sources.list.d/ckp.list: write the system's codename for @CODENAME@ and Kubernetes' minor version (v1.35) for @MINOR@.
deb [arch=amd64 signed-by=/usr/share/keyrings/ckp.gpg] @URL@/apt @CODENAME@ @MINOR@ agent
""",
    "ckp.repo": """\
# /etc/yum.repos.d/ckp.repo: write Kubernetes' minor version (v1.35) for @MINOR@.
[ckp]
name=CKP @MINOR@
baseurl=@URL@/rpm/el9/@MINOR@/$basearch
enabled=1
gpgcheck=1
repo_gpgcheck=1
gpgkey=file:///etc/pki/rpm-gpg/RPM-GPG-KEY-ckp
exclude=kubelet kubeadm kubectl cri-tools kubernetes-cni

[ckp-agent]
name=CKP agent
baseurl=@URL@/rpm/el9/agent/$basearch
enabled=1
gpgcheck=1
repo_gpgcheck=1
gpgkey=file:///etc/pki/rpm-gpg/RPM-GPG-KEY-ckp
""",
}
"""Source lists: @URL@ is where clients reach the repositories. A general upgrade by dnf leaves Kubernetes alone, as with upstream's own."""


def _place(package: Package, component: str) -> str:
    """Where a package lies in its repository, as the index names it."""
    return AptRepository.path_of(component, package.name, package.file_name) if package.format == "deb" else DnfRepository.path_of(package.file_name)


def _check_component(component: str) -> None:
    if component not in (AGENT, COMMAND) and not re.fullmatch(r"v\d+\.\d+", component):
        raise InvalidInput(f"{component!r} is not a component", resolution=f"write a minor version of Kubernetes (v1.35), {AGENT} or {COMMAND}")


def _link_again(source: Path, target: Path) -> None:
    """The same file in another component."""
    target.unlink(missing_ok=True)
    os.link(source, target)
