"""A real object store on loopback, with TLS: versitygw over a folder, as the build makes it, for as long as the block lasts."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from ckp.hostkit.errors import AgentError
from ckp.hostkit.s3 import Bucket, Credentials, Store
from ckp.kits.processes import Daemon
from ckp.kits.retry import wait_until
from tests.support.control_plane import built_test_tool, free_port
from tests.worlds.tls import make_authority, make_leaf, write_pair

BUCKET = "backups"
REGION = "eu-central-1"


@dataclass(frozen=True)
class S3TestServer:
    """One server, whose bucket is the folder `objects/backups`.

    Args:
        ca: PEM of the CA of its certificate.
    """

    folder: Path
    port: int
    credentials: Credentials
    ca: str

    @property
    def endpoint(self) -> str:
        return f"https://localhost:{self.port}"

    @property
    def objects(self) -> Path:
        return self.folder / "objects" / BUCKET

    def store(self, **more: str) -> Store:
        """A client of the bucket."""
        return Store(Bucket(self.endpoint, BUCKET, ca=self.ca, **{"region": REGION, **more}), self.credentials, {})


@contextmanager
def s3_server(folder: Path) -> Iterator[S3TestServer]:
    """Start it, wait until it answers, and stop it in the end."""
    authority = make_authority("the store's CA")
    pair = write_pair(folder, "store", *make_leaf(authority, server=True))
    made = S3TestServer(folder, free_port(), Credentials("AKIATEST", secrets.token_hex(16)), authority.pem)
    made.objects.mkdir(parents=True)
    daemon = Daemon("versitygw", folder / "pid", folder / "log")
    environment = {"ROOT_ACCESS_KEY": made.credentials.access, "ROOT_SECRET_KEY": made.credentials.secret}
    argv: list[str | Path] = [built_test_tool("versitygw").binary("versitygw"), "--port", f"127.0.0.1:{made.port}", "--region", REGION]
    daemon.start([*argv, "--cert", pair[0], "--key", pair[1], "posix", made.objects.parent], env=environment)
    try:
        wait_until(lambda: _answers(made), what="versitygw answers", timeout=60, every=0.2, reason=daemon.tail)
        yield made
    finally:
        daemon.stop()


def _answers(server: S3TestServer) -> bool:
    try:
        with closing(server.store()) as client:
            client.objects()
    except AgentError:
        return False
    return True
