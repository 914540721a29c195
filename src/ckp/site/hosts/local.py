"""This machine as a host of the site."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ckp.kits.errors import CkpError, InvalidInput, NotFound
from ckp.kits.files import atomic_write
from ckp.kits.processes import Finished, run
from ckp.kits.streams import stream

ENVIRONMENT = ("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8", "USER=root", "LOGNAME=root")
"""As hosts that are reached by SSH have it: nothing of our own environment, which may hold secrets and proxies."""


@dataclass(frozen=True)
class LocalHost:
    """The machine that this runs on. Commands run as root, in `/`.

    Args:
        name: its hostname, as the site calls it.
        address: its IPv4 address in the hosts' network.
    """

    name: str
    address: str

    def run(self, argv: Sequence[str | Path], *, timeout: float, stdin: str | bytes | None = None, check: bool = True, what: str = "") -> Finished:
        """As `SiteHost` has it.

        Raises:
            CkpError: this process does not run as root.
            ProcessFailed: it failed (with `check`), or ran out of time.
        """
        started = time.monotonic()
        done = run(self._command(argv), timeout=timeout, stdin=stdin, check=check, cwd=Path("/"), what=f"{what or Path(argv[0]).name} on {self.name}")
        return Finished(tuple(map(str, argv)), done.code, done.stdout, done.stderr, time.monotonic() - started)

    def stream(self, argv: Sequence[str | Path], *, timeout: float, on_line: Callable[[str], None]) -> int:
        """As `SiteHost` has it. Raises as `run`."""
        return stream(self._command(argv), timeout=timeout, on_line=on_line, what=f"{Path(argv[0]).name} on {self.name}")

    def push(self, source: Path | bytes, target: str, *, mode: int = 0o644) -> None:
        """As `SiteHost` has it.

        Raises:
            InvalidInput: `target` is not an absolute path.
            CkpError: this process does not run as root, or the file can't be read or written.
        """
        self._require_root()
        if not target.startswith("/") or target.endswith("/"):
            raise InvalidInput(f"{target!r} is not the absolute path of a file on {self.name}")
        try:
            atomic_write(Path(target), source.read_bytes() if isinstance(source, Path) else source, mode=mode)
        except OSError as error:
            raise CkpError(f"writing {target} on {self.name}: {error.strerror}") from error

    def pull(self, source: str) -> bytes:
        """The content of a file. Raises CkpError."""
        self._require_root()
        try:
            return Path(source).read_bytes()
        except OSError as error:
            raise NotFound(f"reading {source} on {self.name}: {error.strerror}") from error

    def _command(self, argv: Sequence[str | Path]) -> list[str | Path]:
        self._require_root()
        if not argv:
            raise InvalidInput("there is no command to run")
        return ["env", "-i", *ENVIRONMENT, *argv]

    def _require_root(self) -> None:
        if os.geteuid() != 0:
            raise CkpError(f"{self.name} is this machine, and this command does not run as root", resolution="run it with sudo, or as root")
