"""Running commands inside a host: in its namespaces (nsenter) and its cgroups."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

from ckp.kits.processes import ProcessFailed, in_cgroups

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


def stream(
    argv: Sequence[str],
    *,
    timeout: float,
    on_line: Callable[[str], None],
    stdin: str | bytes | Path | None = None,
    what: str,
) -> int:
    """Run a program, and call `on_line` for each line of its output (both streams) as it comes; returns its exit code.

    Args:
        timeout: seconds after which it is killed with all its children.
        stdin: its standard input; a Path is a file on the machine, of any size.

    Raises:
        ProcessFailed: it could not be started, or did not end in time.
    """
    late = threading.Event()
    with _input(stdin) as source:
        try:
            child = subprocess.Popen(list(argv), stdin=source, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True, cwd="/")
        except OSError as error:
            raise ProcessFailed(f"{what}: {argv[0]} could not be started: {error.strerror}") from error

        def give_up() -> None:
            late.set()
            _kill(child)

        timer = threading.Timer(timeout, give_up)
        timer.start()
        try:
            assert child.stdout is not None
            for line in child.stdout:
                on_line(line.decode(errors="replace").rstrip("\r\n"))
            code = child.wait()
        except BaseException:
            _kill(child)
            child.wait()
            raise
        finally:
            timer.cancel()
            if child.stdout is not None:
                child.stdout.close()
    if late.is_set():
        raise ProcessFailed(f"{what} did not end within {timeout:.0f} s")
    return code


def _input(stdin: str | bytes | Path | None) -> IO[bytes]:
    if isinstance(stdin, Path):
        return stdin.open("rb")
    if stdin is None:
        return Path(os.devnull).open("rb")
    # A file instead of a pipe: no thread has to write to it while the output is read.
    source: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
    source.write(stdin.encode() if isinstance(stdin, str) else stdin)
    source.seek(0)
    return source


def _kill(child: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
