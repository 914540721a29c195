"""Where a site keeps its backups: a bucket, or a folder of its management hosts. Each is there under its name whole, or not at all.

What was stored is read back from there and compared before it counts. Then older ones are deleted, as many as the site's file says.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path

from ckp.backups.places import Objects, Target, as_ckp_error
from ckp.hostkit import s3
from ckp.kits.errors import InvalidInput, NotFound
from ckp.site.backup.collect import collect
from ckp.site.inventory import SiteHost
from ckp.site.settings.read import proxy_environment
from ckp.site.spec.model import S3, SiteSpec
from ckp.site.spec.named_files import read_text

PROXIES = ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "NO_PROXY", "no_proxy")


@contextmanager
def target_of(spec: SiteSpec, host: SiteHost | None, environment: Mapping[str, str] = os.environ) -> Iterator[Target]:
    """Where the site's file keeps backups, for as long as the block lasts. Nothing is asked yet.

    Args:
        host: that has the folder, where it is one; None: it can't be reached, as at a restore.
        environment: names a proxy; otherwise the site's is taken.

    Raises:
        InvalidInput: the file names none, or a file that it names can't be read or does not hold what it has to; or it is a folder, and no host is there.
    """
    backup = spec.backup
    if backup is None:
        raise InvalidInput(f"{spec.file or 'the site'} does not say where backups are kept", resolution="write `backup`, or name a file (--output)")
    if backup.to.s3 is None:
        folder = str(backup.to.path)
        if host is None:
            raise InvalidInput(f"backups are kept in {folder} of the management hosts", resolution="copy the backup's file here, and name that")
        yield Target(spec.metadata.name, f"{host.name}:{folder}", Folder(host, folder), backup.keep)
        return
    bucket, credentials = of_bucket(spec, backup.to.s3)
    with as_ckp_error():
        store = s3.Store(bucket, credentials, environment if any(environment.get(name) for name in PROXIES) else proxy_environment(spec))
    with closing(store):
        yield Target(spec.metadata.name, str(bucket), Objects(store), backup.keep)


def of_bucket(spec: SiteSpec, described: S3) -> tuple[s3.Bucket, s3.Credentials]:
    """The bucket of the file, and the key to it.

    Raises:
        InvalidInput: a file can't be read, is open to others, or does not hold what it has to. No secret is quoted.
    """
    path = described.credentials_file
    where = f"{spec.file or 'site'}:{spec.line('backup', 'to', 's3', 'credentialsFile')}: backup.to.s3.credentialsFile"
    text = read_text(path, where, secret=True)
    with as_ckp_error():
        credentials = s3.read_credentials(text, f"{where}: {path}")
    own = read_text(described.ca_file, "backup.to.s3.caFile") if described.ca_file else ""
    more = "" if own else "\n".join(read_text(file, f"network.caFiles[{number}]") for number, file in enumerate(spec.network.ca_files))
    return s3.Bucket(described.endpoint, described.bucket, described.prefix or "", described.region, own, more), credentials


class Folder:
    """A folder of a host, as `Place` has it. It is there already: one that is made here would be no file system that survives the host."""

    def __init__(self, host: SiteHost, path: str) -> None:
        self._host, self._path = host, path

    def names(self, beginning: str) -> list[tuple[str, int]]:
        """As `Place` has it."""
        self._require()
        argv = ["find", self._path, "-mindepth", "1", "-maxdepth", "1", "-type", "f", "-name", f"{beginning}*", "-printf", "%s %f\\n"]
        lines = self._host.run(argv, timeout=120, what=f"looking into {self._path}").stdout.splitlines()
        return [(name, int(size)) for size, name in (line.split(" ", 1) for line in lines)]

    def put(self, source: Path, name: str) -> None:
        """As `Place` has it."""
        self._require()
        if self._host.run(["test", "-e", f"{self._path}/{name}"], timeout=30, check=False).code == 0:
            raise InvalidInput(f"{self._host.name}:{self._path}/{name} is there already", resolution="backups are never written over")
        self._host.push(source, f"{self._path}/{name}", mode=0o600)

    def fetch(self, name: str, into: Path) -> str:
        """As `Place` has it."""
        request = {"do": "file", "path": f"{self._path}/{name}"}
        return str(collect(self._host, request, into, f"reading {name} on {self._host.name}")["sha256"])

    def delete(self, name: str) -> None:
        """As `Place` has it."""
        self._host.run(["rm", "-f", "--", f"{self._path}/{name}"], timeout=120, what=f"deleting {name}")

    def _require(self) -> None:
        if self._host.run(["test", "-d", self._path], timeout=30, check=False).code:
            raise NotFound(
                f"{self._host.name} has no folder {self._path}", resolution="mount the file system where backups are kept, or correct `backup.to.path`"
            )
