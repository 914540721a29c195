"""A dnf repository: packages, and the metadata that createrepo_c makes of them, signed and switched at once."""

from __future__ import annotations

import gzip
import os
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from ckp.clients.signing.openpgp import SigningKey
from ckp.distribution.repositories.files import REINDEX, Entry, check_index, compare_index, keep_superseded, make_folder, switch, write
from ckp.kits.errors import VerificationFailed
from ckp.kits.files import sha256_file
from ckp.kits.processes import run

REPO = "{http://linux.duke.edu/metadata/repo}"
COMMON = "{http://linux.duke.edu/metadata/common}"
SCAN_TIMEOUT = 900.0


@dataclass(frozen=True)
class DnfRepository:
    """The dnf repository in `folder` (`…/<component>/x86_64`). The caller holds the repositories' lock."""

    folder: Path
    key: SigningKey

    @property
    def repodata(self) -> Path:
        """The metadata: what is switched."""
        return self.folder / "repodata"

    @staticmethod
    def path_of(file_name: str) -> str:
        """Where a package lies, as the metadata names it."""
        return f"Packages/{file_name}"

    def read(self) -> list[Entry] | None:
        """The content of the signed metadata; None if there is none yet.

        Raises:
            VerificationFailed: it is not what we signed.
        """
        if not self.repodata.is_dir():
            return None
        check_index(self.repodata / "repomd.xml", self.repodata / "repomd.xml.asc", self.key)
        for name, (_, digest) in _files(self.repodata).items():
            if not (self.repodata / name).is_file() or sha256_file(self.repodata / name) != digest:
                raise VerificationFailed(f"{self.repodata / name} is not what repomd.xml says", resolution=REINDEX)
        return _entries(self.repodata)

    def replace(self, wanted: Sequence[Entry], present: Sequence[Entry] | None, scratch: Path, now: datetime, *, renew: bool = False) -> bool:
        """Make the metadata name `wanted`, whose files lie in Packages; returns whether anything was switched.

        Args:
            present: what `read` said; None if it cannot be relied on.
            renew: make and sign it again even if it names all this already.
        """
        if not renew and present is not None and sorted(wanted) == sorted(present):
            return False
        work = scratch / f"dnf-{self.folder.parent.name}"
        tree, out = work / "tree", work / "out"
        (tree / "Packages").mkdir(parents=True)
        out.mkdir()
        for entry in wanted:
            try:
                os.link(self.folder / entry.path, tree / entry.path)
            except FileNotFoundError:
                continue  # compare_index names it
        revision = max(int(now.timestamp()), self._revision() + 1)
        argv: list[str | Path] = ["createrepo_c", "--quiet", "--no-database", "--checksum", "sha256", "--general-compress-type", "gz"]
        argv += ["--revision", str(revision), "--set-timestamp-to-revision", "--outputdir", out, tree]
        run(argv, timeout=SCAN_TIMEOUT, what="createrepo_c", resolution="is the package createrepo-c installed? `make setup` installs it")
        new = out / "repodata"
        new.chmod(0o755)
        for path in new.iterdir():
            path.chmod(0o644)
        compare_index(_entries(new), wanted, where=self.folder)
        write(new / "repomd.xml.asc", self.key.sign((new / "repomd.xml").read_bytes(), armor=True))
        if self.repodata.is_dir():
            keep_superseded(self.repodata, new, current=_files(self.repodata), now=now)
        make_folder(self.folder, below=self.folder.parents[3])
        switch(new, self.repodata)
        return True

    def _revision(self) -> int:
        """The current revision, even if it is invalid: the next is higher, so that each state can be told from those before it."""
        try:
            return int(ET.parse(self.repodata / "repomd.xml").findtext(f"{REPO}revision", "0"))  # noqa: S314
        except (FileNotFoundError, ET.ParseError, ValueError):
            return 0


def _files(repodata: Path) -> dict[str, tuple[str, str]]:
    """Names of the files that repomd.xml names, each with its type and SHA-256."""
    try:
        root = ET.parse(repodata / "repomd.xml").getroot()  # noqa: S314
        return {
            Path(data.find(f"{REPO}location").attrib["href"]).name: (data.attrib["type"], data.findtext(f"{REPO}checksum", ""))  # type: ignore[union-attr]
            for data in root.iter(f"{REPO}data")
        }
    except (FileNotFoundError, ET.ParseError, AttributeError, KeyError):
        return {}


def _entries(repodata: Path) -> list[Entry]:
    """The packages that the primary metadata names."""
    name = next((name for name, (kind, _) in _files(repodata).items() if kind == "primary"), "")
    if not name:
        raise VerificationFailed(f"{repodata}/repomd.xml names no primary metadata", resolution=REINDEX)
    found = []
    for item in ET.fromstring(gzip.decompress((repodata / name).read_bytes())).iter(f"{COMMON}package"):  # noqa: S314
        version, location, size = item.find(f"{COMMON}version"), item.find(f"{COMMON}location"), item.find(f"{COMMON}size")
        assert version is not None and location is not None and size is not None
        label = f"{version.attrib['ver']}-{version.attrib['rel']}"
        checksum, package = item.findtext(f"{COMMON}checksum", ""), item.findtext(f"{COMMON}name", "")
        found.append(Entry(location.attrib["href"], package, label, checksum, int(size.attrib["package"])))
    return found
