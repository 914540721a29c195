"""Repositories with the agent's packages alone, as the hub serves them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ckp.clients.signing.openpgp import SigningKey
from ckp.distribution.packages.pack import Package
from ckp.distribution.repositories.publish import AGENT, Repositories
from ckp.kits import paths
from ckp.kits.files import building_directory, exclusive, sha256_bytes, sha256_file


def agent_repositories(agents: Sequence[Package], key: SigningKey) -> Path:
    """The folder of the repositories, made and signed if it is not in the cache: equal packages and keys give the same bytes on this machine.

    Raises:
        VerificationFailed: a package is not ours.
    """
    parts = [sha256_file(key.keyring), *sorted(f"{package.file_name} {package.sha256}" for package in agents)]
    final = paths.cache() / "agent-repositories" / sha256_bytes("\n".join(parts).encode())[:20]
    with exclusive(final.with_name(final.name + ".lock"), what="making the repositories of the agent's packages", timeout=300):
        if not final.exists():
            with building_directory(final) as scratch:
                Repositories(scratch, key).publish(agents, AGENT, lambda _line: None)
                (scratch / ".lock").unlink()  # of the publication, which nothing changes any more
    return final
