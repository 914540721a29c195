"""Running commands inside a host: in its namespaces (nsenter) and its cgroups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ckp.kits.processes import in_cgroups

ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "USER": "root",
}
"""The environment of a command inside: without the machine's own, which may hold secrets and proxies."""


def inside(leader: int, session: Sequence[Path], argv: Sequence[str | Path], env: Mapping[str, str] | None = None) -> list[str]:
    """The command that runs `argv` as root in the host whose first process is `leader` (its pid on the machine).

    The host's cgroups are entered first: nsenter alone only changes a process's view of the cgroups.
    """
    variables = [f"{name}={value}" for name, value in {**ENVIRONMENT, **(env or {})}.items()]
    namespaces = ["-m", "-u", "-i", "-n", "-p", "-C"]
    return in_cgroups(session, ["nsenter", "-t", str(leader), *namespaces, "--", "env", "-i", *variables, *argv])
