"""Running other programs, with limits on time and output."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from typing import Callable, Mapping, Sequence

from ckp.hostkit import proxies
from ckp.hostkit.errors import Cancelled, ProcessFailed
from ckp.hostkit.logs import log

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
TAIL_LINES = 25
OUTPUT_LIMIT = 4 << 20
KILL_SECONDS = 10.0


@dataclass(frozen=True)
class Finished:
    """How a program ended."""

    code: int
    stdout: str
    stderr: str

    def tail(self) -> str:
        """The last lines of its output."""
        return "\n".join((self.stdout + "\n" + self.stderr).strip().splitlines()[-TAIL_LINES:])


def run(
    argv: Sequence[str],
    *,
    timeout: float,
    env: Mapping[str, str] | None = None,
    stdin: bytes | None = None,
    check: bool = True,
    what: str = "",
    resolution: str = "",
    reason: str = "",
    cancelled: Callable[[], bool] | None = None,
    proxied: bool = False,
) -> Finished:
    """Run a program to its end and return its output (each stream cut to 4 MiB).

    Pass secrets in `stdin` or files, never in `argv` or `env`: both can be read in /proc.

    Args:
        timeout: seconds after which it is killed with all its children. There is no run without a timeout.
        check: raise if its exit code is not 0.
        what: the work's name in an error, instead of the program's name.
        cancelled: called every half second; when it returns True the program is killed.
        proxied: the program may use this host's proxy (ckp.hostkit.proxies); others get no such variables.

    Raises:
        ProcessFailed: it could not be started, failed (with `check`), or ran out of time.
        Cancelled: `cancelled` returned True.
    """
    name = what or argv[0]
    environment = {key: value for key, value in os.environ.items() if key in ("HOME", "TMPDIR")}
    environment.update({"PATH": PATH, "LC_ALL": "C.UTF-8"})
    environment.setdefault("HOME", "/root")
    environment.update(proxies.environment() if proxied else {})
    environment.update(env or {})
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        try:
            child = subprocess.Popen(
                list(argv),
                env=environment,
                stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
                stdout=out,
                stderr=err,
                start_new_session=True,
                umask=0o022,  # the agent's own is 077: what package managers and kubeadm make is to be as on any host
            )
        except OSError as error:
            raise ProcessFailed(
                f"{name}: {argv[0]} could not be started: {error.strerror}", resolution=resolution, reason=reason or "CommandMissing"
            ) from error
        try:
            if stdin is not None and child.stdin is not None:
                try:
                    child.stdin.write(stdin)
                    child.stdin.close()
                except BrokenPipeError:
                    pass
            verdict = _wait(child, timeout, cancelled)
        except BaseException:
            _kill(child)
            raise
        finished = Finished(child.returncode, _read(out), _read(err))
    if verdict == "cancelled":
        raise Cancelled(f"{name} was cancelled: the desired state has changed, or the agent stops")
    if verdict == "timeout":
        raise ProcessFailed(f"{name} did not end within {timeout:.0f} s", details=finished.tail(), resolution=resolution, reason=reason or "TimedOut")
    if check and finished.code != 0:
        raise ProcessFailed(f"{name} failed with exit code {finished.code}", details=finished.tail(), resolution=resolution, reason=reason)
    return finished


def _wait(child: subprocess.Popen[bytes], timeout: float, cancelled: Callable[[], bool] | None) -> str:
    deadline = time.monotonic() + timeout
    while True:
        left = deadline - time.monotonic()
        try:
            child.wait(timeout=max(0.01, min(left, 0.5 if cancelled else left)))
            return "ended"
        except subprocess.TimeoutExpired:
            pass
        if cancelled is not None and cancelled():
            _kill(child)
            return "cancelled"
        if time.monotonic() >= deadline:
            _kill(child)
            return "timeout"


def _kill(child: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    try:
        child.wait(timeout=KILL_SECONDS)
    except subprocess.TimeoutExpired:
        log(f"the process {child.pid} can't be killed: it waits for a disk or a server")


def _read(stream: object) -> str:
    stream.seek(0)  # type: ignore[attr-defined]
    data: bytes = stream.read(OUTPUT_LIMIT)  # type: ignore[attr-defined]
    return data.decode(errors="replace")


def own_command() -> list[str]:
    """The command that starts this tool again: the zip file that this code was loaded from, or else Python with the source folder in its path."""
    place = os.path.dirname(os.path.abspath(__file__))
    while not os.path.exists(place):
        place = os.path.dirname(place)
    if os.path.isfile(place):
        return [sys.executable, "-I", place]
    top = os.path.dirname(os.path.dirname(place))
    return [sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {top!r}); from ckp.hosttool.__main__ import main; sys.exit(main())"]


def have(program: str) -> bool:
    """Whether a program is in PATH (the agent's own, not the environment's)."""
    return any(os.access(os.path.join(folder, program), os.X_OK) for folder in PATH.split(":"))
