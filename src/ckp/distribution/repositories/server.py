"""The repositories over HTTP, for the lab and for tests. Clients verify signatures, so it needs no TLS; a site uses its own web server."""

from __future__ import annotations

import socket
import sys
from dataclasses import dataclass
from pathlib import Path

from ckp.kits import paths
from ckp.kits.errors import CkpError
from ckp.kits.files import exclusive
from ckp.kits.processes import Daemon
from ckp.kits.retry import wait_until


@dataclass(frozen=True)
class RepositoryServer:
    """Serves the folder `root`, read-only, on one address of this machine.

    Args:
        state: where its pid file and log lie.
    """

    root: Path
    listen: str
    port: int = 5080
    state: Path | None = None

    @property
    def url(self) -> str:
        """The URL of the root, above `/apt` and `/rpm`."""
        return f"http://{self.listen}:{self.port}"

    @property
    def _folder(self) -> Path:
        return self.state or paths.state() / "repository-server"

    @property
    def _daemon(self) -> Daemon:
        return Daemon("repositories", self._folder / "server.pid", self._folder / "server.log")

    def start(self) -> str:
        """Start it unless it runs, wait until it answers, and return its URL."""
        if not self.root.is_dir():
            raise CkpError(f"there are no repositories in {self.root}", resolution="`ckp dist publish` makes them")
        with exclusive(self._folder / ".lock", what="starting the repository server", timeout=60):
            self._daemon.start([sys.executable, "-I", "-m", "http.server", "--bind", self.listen, "--directory", self.root, str(self.port)])
        try:
            wait_until(self._answers, what=f"the repository server at {self.url} answers", timeout=30, every=0.1, reason=self._daemon.tail)
        except CkpError:
            self.stop()
            raise
        return self.url

    def running(self) -> bool:
        """Whether its process runs."""
        return self._daemon.pid() is not None

    def stop(self) -> None:
        """Stop it if it runs."""
        self._daemon.stop()

    def _answers(self) -> bool:
        if not self.running():
            return False
        try:
            with socket.create_connection((self.listen, self.port), timeout=1):
                return True
        except OSError:
            return False
