"""Running other programs: one way, with a timeout, a log, and errors that end with the program's last output."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ckp.kits.disks import disk_full, says_full
from ckp.kits.errors import CkpError
from ckp.kits.stopping import cancellable, raise_if_cancelled

TAIL_LINES = 25
LINGER_SECONDS = 2.0
"""How long the output of a killed program is waited for, if others hold its pipes open."""


class ProcessFailed(CkpError):
    """A program ended with an error, or did not end in time."""


@dataclass(frozen=True)
class Finished:
    """How a program ended."""

    argv: tuple[str, ...]
    code: int
    stdout: str
    stderr: str
    seconds: float


def run(
    argv: Sequence[str | Path],
    *,
    timeout: float,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: str | bytes | IO[bytes] | None = None,
    check: bool = True,
    what: str = "",
    resolution: str = "",
) -> Finished:
    """Run a program to its end and return its output. It does not outlive this process, however this one ends.

    Args:
        timeout: seconds after which it is killed with all its children. There is no run without a timeout.
        env: added to our own environment.
        stdin: its standard input; nothing by default. An open file or pipe is handed over as it is, and stays the caller's to close.
        check: raise if its exit code is not 0.
        what: the work's name in an error ("packing kubelet"), instead of the command line, which may carry secrets.

    Raises:
        ProcessFailed: it could not be started, failed (with `check`), or ran out of time.
        DiskFull: it failed, and its output says that a disk is full.
        Interrupted: this thread's pool was interrupted; the program was killed.
    """
    raise_if_cancelled()
    ready_to_reap()
    command = [str(part) for part in argv]
    name = what or command[0]
    started = time.monotonic()
    try:
        child = subprocess.Popen(
            command,
            cwd=cwd,
            env={**os.environ, **env} if env else None,
            stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE if isinstance(stdin, str | bytes) else stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as error:
        raise ProcessFailed(f"{name}: {command[0]} could not be started: {error.strerror}", resolution=resolution) from error
    data = stdin.encode() if isinstance(stdin, str) else stdin if isinstance(stdin, bytes) else None
    try:
        with reaped(child.pid), cancellable(lambda: kill_group(child.pid)):
            out, err = child.communicate(data, timeout=timeout)
    except subprocess.TimeoutExpired:
        kill_group(child.pid)
        out, err = _rest(child)
        raise ProcessFailed(f"{name} did not end within {timeout:.0f} s", details=_tail(out, err), resolution=resolution) from None
    except BaseException:
        kill_group(child.pid)
        child.wait()
        raise
    raise_if_cancelled()  # a program that was cancelled has not failed
    finished = Finished(tuple(command), child.returncode, out.decode(errors="replace"), err.decode(errors="replace"), time.monotonic() - started)
    if check and finished.code != 0:
        if says_full(details := _tail(out, err)):
            raise disk_full(f"{name} failed with exit code {finished.code}", *((cwd,) if cwd else ()), details=details)
        raise ProcessFailed(f"{name} failed with exit code {finished.code}", details=details, resolution=resolution)
    return finished


def _rest(child: subprocess.Popen[bytes]) -> tuple[bytes, bytes]:
    """All output of a program that was killed. Another process may hold its pipes open, as ssh's shared connections do: that is not waited for."""
    try:
        return child.communicate(timeout=LINGER_SECONDS)
    except subprocess.TimeoutExpired as error:
        for pipe in (child.stdout, child.stderr):
            if pipe is not None:
                pipe.close()
        return error.output or b"", error.stderr or b""


class _ProcessReaper:
    """Kills the programs that run, and all that they have started, if this process is killed (SIGKILL, a crash).

    It is a process of its own, which reads the process groups from a pipe and kills them when the pipe is closed. The kernel's parent-death
    signal (prctl(2), PR_SET_PDEATHSIG) would reach a program but not its children, such as Go's linker, and is sent when a thread ends, too.
    """

    SCRIPT = """
        while read -r op group; do
            case $op in +) all="$all $group " ;; -) all="${all%% $group *} ${all#* $group }" ;; esac
        done
        for group in $all; do kill -s KILL -- "-$group"; done
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._groups: set[int] = set()
        self._child: subprocess.Popen[bytes] | None = None

    def ready(self) -> None:
        """Start it unless it runs: what is started next is in its care at once."""
        with self._lock:
            try:
                self._ensure()
            except OSError:
                pass  # programs also run without a reaper

    @contextmanager
    def watching(self, group: int) -> Iterator[None]:
        """Watch over a process group for the block."""
        self._send("+", group)
        try:
            yield
        finally:
            self._send("-", group)

    def _send(self, sign: str, group: int) -> None:
        with self._lock:
            try:
                self._ensure()
                self._write(sign, group)
            except OSError:
                pass  # programs also run without a reaper
            (self._groups.add if sign == "+" else self._groups.discard)(group)

    def _ensure(self) -> None:
        if self._child is None or self._child.poll() is not None:
            self._start()

    def _start(self) -> None:
        self._child = subprocess.Popen(
            ["/bin/sh", "-c", self.SCRIPT],
            bufsize=0,
            cwd="/",
            env={},
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        for group in self._groups:
            self._write("+", group)

    def _write(self, sign: str, group: int) -> None:
        assert self._child is not None and self._child.stdin is not None
        self._child.stdin.write(f"{sign} {group}\n".encode())


_reaper = _ProcessReaper()


def ready_to_reap() -> None:
    """To be called before a program is started that will be `reaped`: starting the reaper takes time, and this process may be killed in it."""
    _reaper.ready()


def reaped(group: int) -> AbstractContextManager[None]:
    """A block for which a process group does not outlive this process, however this one ends."""
    return _reaper.watching(group)


_ENTER = 'while [ "$1" != -- ]; do echo $$ >"$1" || exit 125; shift; done; shift; exec "$@"'


def in_cgroups(procs: Sequence[Path], argv: Sequence[str | Path]) -> list[str]:
    """The command that enters the cgroups of these cgroup.procs files and then becomes `argv`, with the same pid.

    A shell does it: only a process that enters by itself is sure to be inside from its first instruction on.
    The exit code is 125 if it can't enter.
    """
    command = [str(part) for part in argv]
    return ["sh", "-c", _ENTER, "sh", *map(str, procs), "--", *command] if procs else command


def kill_group(pid: int) -> None:
    """Kill all processes of a group. No error if there is none."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def _tail(out: bytes, err: bytes) -> str:
    text = (out + b"\n" + err).decode(errors="replace").strip()
    return "\n".join(text.splitlines()[-TAIL_LINES:])


@dataclass(frozen=True)
class Daemon:
    """A long-running program in a session of its own, with a log and a pid file.

    The pid file also holds the start time, so that a process that got the same pid later is never signalled.
    """

    name: str
    pidfile: Path
    log: Path

    def start(self, argv: Sequence[str | Path], *, env: Mapping[str, str] | None = None, cgroups: Sequence[Path] = ()) -> int:
        """Start it unless it runs already; returns its pid. It enters the cgroups of these cgroup.procs files before its program begins."""
        if (running := self.pid()) is not None:
            return running
        self.pidfile.parent.mkdir(parents=True, exist_ok=True)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            child = subprocess.Popen(
                in_cgroups(cgroups, argv),
                env={**os.environ, **env} if env else None,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.pidfile.write_text(f"{child.pid} {_start_time(child.pid)}\n")
        return child.pid

    def pid(self) -> int | None:
        """Its pid, if it is alive and still the process that was started here."""
        try:
            pid_text, start = self.pidfile.read_text().split()
        except (FileNotFoundError, ValueError):
            return None
        pid = int(pid_text)
        return pid if _start_time(pid) == start and start else None

    def stop(self, *, grace: float = 10.0, kill_session: bool = True) -> None:
        """Send SIGTERM, wait `grace` seconds, then kill it and the processes of its session. No error if it is not running."""
        pid = self.pid()
        if pid is not None:
            os.kill(pid, signal.SIGTERM)
            deadline = time.monotonic() + grace
            while self.pid() is not None and time.monotonic() < deadline:
                time.sleep(0.05)
            if self.pid() is not None and kill_session:
                kill_group(pid)
        self.pidfile.unlink(missing_ok=True)

    def tail(self, lines: int = TAIL_LINES) -> str:
        """The last lines of its log, for the details of an error."""
        try:
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
        except FileNotFoundError:
            return ""


def _start_time(pid: int) -> str:
    """Field 22 of /proc/PID/stat (proc(5)): clock ticks since boot; empty when there is no such process or it is a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return "" if fields[0] == "Z" else fields[19]
