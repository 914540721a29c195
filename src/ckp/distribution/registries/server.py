"""The registry that holds images and bundles: distribution, built from source, over TLS with a CA of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from ckp.clients.oci.registry import Registry
from ckp.distribution.registries.authority import Authority
from ckp.distribution.registries.config import ENVIRONMENT, server_config
from ckp.kits import paths
from ckp.kits.errors import CkpError
from ckp.kits.files import atomic_write, exclusive
from ckp.kits.processes import Daemon
from ckp.kits.retry import wait_until


@dataclass(frozen=True)
class RegistryServer:
    """A registry of ours on this machine.

    Args:
        program: the built `registry`.
        listen: address it listens on.
        name: the host name that clients use; its certificate is for this name and for `listen`.
        state: where its certificates, pid file and log lie; by default the one registry of this machine's lab.
        content: where its blobs lie; by default in the cache, since they can be pushed again. Two registries may share it: it is content-addressed.
    """

    program: Path
    listen: str
    name: str
    port: int = 5000
    state: Path | None = None
    content: Path | None = None

    @property
    def folder(self) -> Path:
        """Where its state lies."""
        return self.state or paths.state() / "registry"

    @property
    def ca(self) -> Path:
        """The CA that its clients trust."""
        return self.folder / "ca.pem"

    @property
    def address(self) -> str:
        """`host:port` as images name it."""
        return f"{self.name}:{self.port}"

    @property
    def endpoint(self) -> str:
        """`address:port` that this machine reaches it by: its name need not resolve here."""
        return f"{self.listen}:{self.port}"

    @property
    def credentials(self) -> Path | None:
        """None: it takes what anybody who reaches it pushes."""
        return None

    @property
    def _daemon(self) -> Daemon:
        return Daemon("registry", self.folder / "registry.pid", self.folder / "registry.log")

    def start(self) -> Registry:
        """Start it unless it runs, wait until it answers, and return a client."""
        with exclusive(self.folder / ".lock", what="starting the registry", timeout=60):
            self._certificates()
            storage = self.content or paths.cache() / "registry"
            config = server_config(self.listen, self.port, storage, self.folder / "tls.pem", self.folder / "tls.key")
            atomic_write(self.folder / "config.yml", config)
            self._daemon.start([self.program, "serve", self.folder / "config.yml"], env=ENVIRONMENT)
        client = self.client()
        try:
            wait_until(client.alive, what=f"the registry at {self.endpoint} answers", timeout=30, every=0.2, reason=self._daemon.tail)
        except CkpError:
            self.stop()
            raise
        return client

    def ensure(self, say: Callable[[str], None]) -> Registry:
        """As `start`; there is nothing to say."""
        return self.start()

    def client(self) -> Registry:
        """A client by its endpoint."""
        return Registry(self.endpoint, self.ca)

    def running(self) -> bool:
        """Whether its process runs."""
        return self._daemon.pid() is not None

    def stop(self) -> None:
        """Stop it if it runs."""
        self._daemon.stop()

    def _certificates(self) -> None:
        if (self.folder / "tls.pem").exists():
            return
        now = datetime.now(UTC)
        authority = Authority.create("CKP lab registry CA", now=now)
        leaf = authority.issue([self.name, self.listen], now=now)
        atomic_write(self.ca, authority.pem)
        atomic_write(self.folder / "tls.key", leaf.key, mode=0o600)
        # Last: its presence says that all are there. The CA's key is dropped: it has signed all that it ever will.
        atomic_write(self.folder / "tls.pem", leaf.certificate)
