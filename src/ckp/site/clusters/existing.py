"""An existing cluster, by its administrator's kubeconfig. It stands where the host with the management cluster stands; nothing is run on its hosts."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from ckp.kits.errors import CkpError, NotFound
from ckp.kits.processes import Finished, run


@dataclass(frozen=True)
class ExistingCluster:
    """A cluster of the site's owner, as a SiteHost that has no host.

    Args:
        kubeconfig: of an administrator; it stays where it is.
        program: kubectl; None for the one of this machine's PATH.
    """

    kubeconfig: Path
    program: Path | None = None

    @property
    def name(self) -> str:
        """How it is called in lines of progress."""
        return "the existing cluster"

    @property
    def address(self) -> str:
        """None of CKP's."""
        return ""

    def kubectl(self, *arguments: str, stdin: str | None = None, timeout: float = 60) -> str:
        """What kubectl prints.

        Args:
            timeout: seconds for all of it; one request has half of them.

        Raises:
            NotFound: this machine has no kubectl.
            CkpError: it fails, or the cluster does not answer.
        """
        program = self.program or shutil.which("kubectl")
        if program is None:
            raise NotFound("this machine has no kubectl, by which an existing cluster is reached", resolution="install it, of a version near the cluster's")
        argv: list[str | Path] = [program, f"--kubeconfig={self.kubeconfig}", f"--request-timeout={int(timeout) // 2}s", *arguments]
        return run(argv, stdin=stdin, timeout=timeout, what=f"kubectl {arguments[0]}").stdout

    # -- SiteHost

    def run(self, argv: Sequence[str | Path], *, timeout: float, stdin: str | bytes | None = None, check: bool = True, what: str = "") -> Finished:
        """Refused, as all that is done on a host."""
        self._refuse(str(argv[0]))

    def stream(self, argv: Sequence[str | Path], *, timeout: float, on_line: Callable[[str], None]) -> int:
        """Refused."""
        self._refuse(str(argv[0]))

    def push(self, source: Path | bytes, target: str, *, mode: int = 0o644) -> None:
        """Refused."""
        self._refuse(target)

    def pull(self, source: str) -> bytes:
        """Refused."""
        self._refuse(source)

    def _refuse(self, what: str) -> NoReturn:
        raise CkpError(
            f"the site is on an existing cluster, and this needs a management host of CKP's own ({what})",
            resolution="it is not done for sites with management.kubeconfig",
        )
