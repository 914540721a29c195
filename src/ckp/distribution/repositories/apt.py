"""The apt repository: one pool, one set of indices for each Debian and Ubuntu that the packages serve, all of them switched at once.

The form is Debian's (deb-packages of the Debian Wiki: DebianRepository/Format). apt-ftparchive reads the packages; Release is written here.
"""

from __future__ import annotations

import gzip
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime, parsedate_to_datetime
from pathlib import Path

from ckp.clients.signing.openpgp import SigningKey, inspect
from ckp.distribution.repositories.files import REINDEX, Entry, check_cleartext, check_index, compare_index, keep_superseded, make_folder, switch, write
from ckp.kits.errors import VerificationFailed
from ckp.kits.files import sha256_bytes
from ckp.kits.processes import run
from ckp.verify.packagefile import MAINTAINER

CODENAMES = ("bookworm", "jammy", "noble")
LABEL = "CKP"
BINARY = "binary-amd64"
SCAN_TIMEOUT = 900.0


@dataclass(frozen=True)
class State:
    """What the signed indices say now: per codename its Release, per component the text of Packages and what it names."""

    releases: dict[str, str] = field(default_factory=dict)
    texts: dict[str, bytes] = field(default_factory=dict)
    entries: dict[str, list[Entry]] = field(default_factory=dict)


@dataclass(frozen=True)
class AptRepository:
    """The apt repository in `folder`. The caller holds the repositories' lock.

    Args:
        valid_days: days after which apt takes the indices for outdated (Valid-Until); None writes no such field.
    """

    folder: Path
    key: SigningKey
    valid_days: int | None = None

    @property
    def dists(self) -> Path:
        """The indices of all codenames: what is switched."""
        return self.folder / "dists"

    @staticmethod
    def path_of(component: str, name: str, file_name: str) -> str:
        """Where a package lies, as Packages names it."""
        return f"pool/{component}/{name}/{file_name}"

    def read(self) -> State:
        """The content of the signed indices; empty if there are none yet.

        Raises:
            VerificationFailed: they are not what we signed.
        """
        state = State()
        for codename in CODENAMES:
            folder = self.dists / codename
            if not folder.is_dir():
                continue
            release = check_index(folder / "Release", folder / "Release.gpg", self.key)
            if check_cleartext(folder / "InRelease", self.key) != release:
                raise VerificationFailed(f"InRelease and Release in {folder} differ", resolution=REINDEX)
            state.releases[codename] = release.decode()
            for path, (digest, _) in _listed(state.releases[codename]).items():
                content = (folder / path).read_bytes() if (folder / path).is_file() else b""
                if sha256_bytes(content) != digest:
                    raise VerificationFailed(f"{folder / path} is not what Release says", resolution=REINDEX)
                if path.endswith("/Packages"):
                    # All codenames have the same packages.
                    component = path.partition("/")[0]
                    state.texts[component] = content
                    state.entries[component] = sorted(entries_of(content))
        return state

    def replace(self, wanted: Mapping[str, Sequence[Entry]], state: State, scratch: Path, now: datetime, *, renew: bool = False) -> bool:
        """Make the indices name `wanted` (component to packages, which lie in the pool); returns whether anything was switched.

        What has not changed keeps its bytes: neither the index of an untouched component nor, if all is the same, any signature.

        Args:
            state: what `read` said; empty if it cannot be relied on.
            renew: make and sign all again.
        """
        texts = {
            component: state.texts[component] if not renew and sorted(entries) == state.entries.get(component) else self._scan(component, entries, scratch)
            for component, entries in sorted(wanted.items())
        }
        signers = ", ".join(sorted({info.fingerprint for info in inspect(self.key.keyring.read_bytes()) if info.role == "primary" and info.state == "valid"}))
        if not renew and all(self._holds(state.releases.get(codename, ""), texts, signers, now) for codename in CODENAMES):
            return False
        date = max([now.replace(microsecond=0), *(before + timedelta(seconds=1) for before in self._dates())])
        new = scratch / "dists"
        new.mkdir()
        new.chmod(0o755)
        for codename in CODENAMES:
            files = dict(self._write_indices(new / codename, texts, new, date))
            body = self._body(codename, files, signers, date)
            # The line end before the signature belongs to neither (RFC 4880 §7.1).
            write(new / codename / "InRelease", self.key.sign_cleartext(body.removesuffix(b"\n")), date=date)
            write(new / codename / "Release", body, date=date)
            write(new / codename / "Release.gpg", self.key.sign(body, armor=True), date=date)
            self._keep_superseded(codename, new, sorted(texts), now)
        make_folder(self.folder, below=self.folder.parent)
        switch(new, self.dists)
        return True

    def _scan(self, component: str, entries: Sequence[Entry], scratch: Path) -> bytes:
        """Packages of a component by apt-ftparchive, which sees exactly the wanted files; sorted, whatever order it walks in."""
        if not entries:
            return b""
        tree = scratch / "apt" / component
        for entry in entries:
            target = tree / entry.path
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(self.folder / entry.path, target)
            except FileNotFoundError:
                continue  # compare_index names it
        argv = ["apt-ftparchive", "--no-md5", "--no-sha1", "--no-sha512", "packages", f"pool/{component}"]
        said = run(argv, cwd=tree, timeout=SCAN_TIMEOUT, what="apt-ftparchive", resolution="is the package apt-utils installed? `make setup` installs it")
        stanzas = [stanza.strip("\n") + "\n" for stanza in said.stdout.split("\n\n") if stanza.strip()]
        text = "\n".join(sorted(stanzas, key=lambda stanza: next(iter(entries_of(stanza.encode()))))).encode()
        compare_index(entries_of(text), entries, where=self.folder / "pool" / component)
        return text

    def _write_indices(self, target: Path, texts: Mapping[str, bytes], new: Path, date: datetime) -> Iterator[tuple[str, bytes]]:
        """Lay out the indices of one codename and yield their paths and contents. The codenames share their files."""
        for component, text in texts.items():
            folder = make_folder(target / component / BINARY / "by-hash" / "SHA256", below=new)
            for name, content in (("Packages", text), ("Packages.gz", gzip.compress(text, mtime=0))):
                relative = Path(component) / BINARY / "by-hash" / "SHA256" / sha256_bytes(content)
                shared = new / CODENAMES[0] / relative
                if not shared.exists():
                    write(shared, content, date=date)
                if target != new / CODENAMES[0]:
                    os.link(shared, target / relative)
                os.link(shared, folder.parent.parent / name)
                yield f"{component}/{BINARY}/{name}", content

    def _body(self, codename: str, files: Mapping[str, bytes], signers: str, date: datetime) -> bytes:
        lines = [
            f"Origin: {MAINTAINER}",
            f"Label: {LABEL}",
            f"Suite: {codename}",
            f"Codename: {codename}",
            f"Date: {_http_date(date)}",
        ]
        if self.valid_days is not None:
            lines.append(f"Valid-Until: {_http_date(date + timedelta(days=self.valid_days))}")
        lines += [
            "Acquire-By-Hash: yes",
            "Architectures: amd64",
            f"Components: {' '.join(sorted({path.partition('/')[0] for path in files}))}",
            "Description: Kubernetes packages of CKP",
            f"Signed-By: {signers}",
            "SHA256:",
            *(f" {sha256_bytes(content)} {len(content)} {path}" for path, content in sorted(files.items())),
        ]
        return "\n".join([*lines, ""]).encode()

    def _holds(self, release: str, texts: Mapping[str, bytes], signers: str, now: datetime) -> bool:
        """Whether the current Release of a codename has all this already, and is valid for long enough."""
        fields = _fields(release)
        listed = {path: digest for path, (digest, _) in _listed(release).items() if path.endswith("/Packages")}
        until = fields.get("Valid-Until")
        if (until is None) != (self.valid_days is None):
            return False
        if until is not None and self.valid_days is not None and parsedate_to_datetime(until) - now < timedelta(days=self.valid_days) / 2:
            return False
        # The compressed form is left out: it may come out otherwise by another zlib, which is no reason to sign again.
        return fields.get("Signed-By") == signers and listed == {f"{component}/{BINARY}/Packages": sha256_bytes(text) for component, text in texts.items()}

    def _dates(self) -> Iterator[datetime]:
        """Dates of the current indices, even if they are invalid: the next must be later, since apt ignores an older one than it has."""
        for path in self.dists.glob("*/Release"):
            try:
                yield parsedate_to_datetime(_fields(path.read_text(errors="replace"))["Date"]).astimezone(UTC)
            except (KeyError, ValueError):
                continue

    def _keep_superseded(self, codename: str, new: Path, components: Iterable[str], now: datetime) -> None:
        try:
            current = {digest for digest, _ in _listed((self.dists / codename / "Release").read_text(errors="replace")).values()}
        except FileNotFoundError:
            return
        for component in components:
            relative = Path(codename) / component / BINARY / "by-hash" / "SHA256"
            old = self.dists / relative
            if old.is_dir():
                keep_superseded(old, new / relative, current=current, now=now)


def entries_of(text: bytes) -> Iterator[Entry]:
    """The packages of a Packages file of ours."""
    for stanza in text.decode().split("\n\n"):
        if stanza.strip():
            fields = _fields(stanza)
            yield Entry(fields["Filename"], fields["Package"], fields["Version"], fields["SHA256"], int(fields["Size"]))


def _fields(text: str) -> dict[str, str]:
    return dict(re.findall(r"^([A-Za-z0-9-]+): ?(.*)$", text, re.M))


def _listed(release: str) -> dict[str, tuple[str, int]]:
    """Paths of a Release file with their SHA-256 and size."""
    return {path: (digest, int(size)) for digest, size, path in re.findall(r"^ ([0-9a-f]{64}) +(\d+) (\S+)$", release, re.M)}


def _http_date(moment: datetime) -> str:
    return format_datetime(moment.astimezone(UTC), usegmt=True).replace("GMT", "UTC")
