"""Limits on what a program may take."""

from __future__ import annotations

import resource
from typing import List, Sequence


def limited(argv: Sequence[str], *, cpu_seconds: int, memory_mib: int) -> List[str]:
    """A command line that runs `argv` in at most this much CPU time and address space, without a core file.

    The kernel ends it by a signal when its CPU time is used up; memory beyond the limit it does not get. The shell sets the limits and is
    replaced by the program, which so has them from its first instruction; Python's preexec_fn is unsafe where there are threads.
    """
    limits = []
    for kind, wanted, unit in ((resource.RLIMIT_CPU, cpu_seconds, 1), (resource.RLIMIT_AS, memory_mib << 20, 1024)):
        highest = resource.getrlimit(kind)[1]
        limits.append(str((wanted if highest == resource.RLIM_INFINITY else min(wanted, highest)) // unit))
    return ["sh", "-c", 'ulimit -c 0; ulimit -t "$0" && ulimit -v "$1" && shift && exec "$@"', *limits, *argv]
