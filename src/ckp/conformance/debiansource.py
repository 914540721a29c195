"""Upstream's archive of a Debian source package, fetched by apt from the mirror that this machine is set up for, and checked against the catalog's hash.

apt runs with lists and sources of its own: nothing of the machine's configuration is changed.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from ckp.catalog.models import DebianSource
from ckp.distribution.images.layers import DEBIAN_SUITE
from ckp.kits import paths
from ckp.kits.errors import NotFound, VerificationFailed
from ckp.kits.files import exclusive, sha256_file
from ckp.kits.processes import run

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
LOOKUP_SECONDS = 60.0
FETCH_SECONDS = 900.0
TARGETS = "$(REPO_URI)\t$(RELEASE)\t$(CODENAME)\t$(COMPONENT)"


def fetch(source: DebianSource) -> Path:
    """The archive, fetched if it is not in the cache; it is checked at each call.

    Raises:
        NotFound: this machine has no Debian mirror, or that has not the source package, or another version of it.
        VerificationFailed: what is in the cache, or what came, is not what the catalog pins.
    """
    final = paths.cache() / "sources" / source.archive
    with exclusive(final.with_name(final.name + ".lock"), what=f"fetching {source.archive}", timeout=FETCH_SECONDS):
        if not final.exists():
            final.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=final.parent, prefix=".apt-") as work:
                found = _download(source, mirror(source.suite), Path(work))
                _check(source, found)
                found.chmod(0o644)
                found.rename(final)
        _check(source, final)
    return final


def _check(source: DebianSource, archive: Path) -> None:
    if (digest := sha256_file(archive)) != source.sha256:
        raise VerificationFailed(
            f"{source.archive} has the SHA-256 {digest}, and the catalog pins {source.sha256}",
            resolution=f"remove {archive} if it lies in the cache; if it comes from the mirror like this, do not use it",
        )


def mirror(suite: str) -> str:
    """The URI of the Debian archive that this machine's apt uses: that of the suite that its layers are made of, or of `suite` itself."""
    listed = run(["apt-get", "indextargets", "--format", TARGETS, "Created-By: Packages"], timeout=LOOKUP_SECONDS, what="reading apt's sources").stdout
    for line in listed.splitlines():
        uri, *names, component = line.split("\t")
        if component == "main" and {DEBIAN_SUITE, suite} & set(names):
            return uri
    raise NotFound(f"apt of this machine has no source of Debian's {DEBIAN_SUITE} or {suite}", resolution="add one to /etc/apt/sources.list.d")


def _download(source: DebianSource, uri: str, work: Path) -> Path:
    for folder in ("state/lists/partial", "cache/archives/partial", "source"):
        (work / folder).mkdir(parents=True)
    signed = f"[signed-by={KEYRING}] " if KEYRING.exists() else ""
    (work / "sources.list").write_text(f"deb-src {signed}{uri} {source.suite} main\n")
    settings = {
        "Dir::Etc::SourceList": str(work / "sources.list"),
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::State": str(work / "state"),
        "Dir::Cache": str(work / "cache"),
        # The user that apt downloads as may not enter our folder.
        "APT::Sandbox::User": "root",
    }
    options = [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]
    what, hint = f"fetching the source of {source.name} from Debian's {source.suite}", "check that apt-get update works on this machine"
    run(["apt-get", *options, "-q", "update"], timeout=FETCH_SECONDS, what=what, resolution=hint)
    argv = ["apt-get", *options, "-q", "source", "--download-only", "--only-source", source.name]
    run(argv, cwd=work / "source", timeout=FETCH_SECONDS, what=what, resolution=hint)
    found = work / "source" / source.archive
    if not found.exists():
        brought = ", ".join(sorted(path.name for path in (work / "source").iterdir()))
        raise NotFound(f"Debian's {source.suite} has no {source.archive} any more", details=f"it has {brought}", resolution="pin what it has in the catalog")
    return found
