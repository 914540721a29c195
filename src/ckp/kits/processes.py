"""Running other programs: one way, with a bound, a log, and errors that carry the program's own last words."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ckp.kits.disks import disk_full, says_full
from ckp.kits.errors import CkpError
from ckp.kits.stopping import breakable, go_on

TAIL_LINES = 25


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
    stdin: str | bytes | None = None,
    check: bool = True,
    what: str = "",
    resolution: str = "",
) -> Finished:
    """Run a program to its end and return what it said. It does not outlive us, however we end.

    Args:
        timeout: seconds after which it is killed with all its children; there is no unbounded run.
        env: added to our own environment.
        stdin: its standard input; nothing by default.
        check: raise when it ends with another code than 0.
        what: how to name the work in an error ("packing kubelet"), instead of the command line, which may carry secrets.

    Raises:
        ProcessFailed: it could not be started, failed (with `check`), or ran out of time.
        DiskFull: it failed, and says that a disk is full.
        Interrupted: this thread is of a pool that was interrupted; the program was killed.
    """
    go_on()
    command = [str(part) for part in argv]
    name = what or command[0]
    started = time.monotonic()
    try:
        child = subprocess.Popen(
            command,
            cwd=cwd,
            env={**os.environ, **env} if env else None,
            stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as error:
        raise ProcessFailed(f"{name}: {command[0]} could not be started: {error.strerror}", resolution=resolution) from error
    data = stdin.encode() if isinstance(stdin, str) else stdin
    try:
        with _guard.over(child.pid), breakable(lambda: _kill_group(child.pid)):
            out, err = child.communicate(data, timeout=timeout)
    except subprocess.TimeoutExpired:
        _kill_group(child.pid)
        out, err = child.communicate()
        raise ProcessFailed(f"{name} did not end within {timeout:.0f} s", details=_tail(out, err), resolution=resolution) from None
    except BaseException:
        _kill_group(child.pid)
        child.wait()
        raise
    go_on()  # what was broken off has not failed
    finished = Finished(tuple(command), child.returncode, out.decode(errors="replace"), err.decode(errors="replace"), time.monotonic() - started)
    if check and finished.code != 0:
        if says_full(details := _tail(out, err)):
            raise disk_full(f"{name} failed with exit code {finished.code}", *((cwd,) if cwd else ()), details=details)
        raise ProcessFailed(f"{name} failed with exit code {finished.code}", details=details, resolution=resolution)
    return finished


class _Guard:
    """Kills the programs that run, and all that they have started, if we end without a word (SIGKILL, a crash).

    A process of its own that is told the groups through a pipe, whose end is our end. The kernel's parent-death signal (prctl(2),
    PR_SET_PDEATHSIG) would reach a program but not its children, such as go's linker, and would take the end of a thread for ours.
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

    @contextmanager
    def over(self, group: int) -> Iterator[None]:
        """Guard a process group for the block."""
        self._tell("+", group)
        try:
            yield
        finally:
            self._tell("-", group)

    def _tell(self, sign: str, group: int) -> None:
        with self._lock:
            try:
                if self._child is None or self._child.poll() is not None:
                    self._start()
                self._write(sign, group)
            except OSError:
                pass  # without a guard things still run
            (self._groups.add if sign == "+" else self._groups.discard)(group)

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


_guard = _Guard()

_ENTER = 'while [ "$1" != -- ]; do echo $$ >"$1" || exit 125; shift; done; shift; exec "$@"'


def in_cgroups(procs: Sequence[Path], argv: Sequence[str | Path]) -> list[str]:
    """The command that enters the cgroups of these cgroup.procs files and then becomes `argv`, with the same pid.

    A shell does it, because a process can only be sure to be inside from its first instruction on if it entered by itself.
    It ends with code 125 if it is not let in.
    """
    command = [str(part) for part in argv]
    return ["sh", "-c", _ENTER, "sh", *map(str, procs), "--", *command] if procs else command


def _kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def _tail(out: bytes, err: bytes) -> str:
    text = (out + b"\n" + err).decode(errors="replace").strip()
    return "\n".join(text.splitlines()[-TAIL_LINES:])


@dataclass(frozen=True)
class Daemon:
    """A long-running program of ours: its own session, a log, and a pid file that also pins its start time,

    so that a pid which the kernel gave to somebody else meanwhile is never signalled.
    """

    name: str
    pidfile: Path
    log: Path

    def start(self, argv: Sequence[str | Path], *, env: Mapping[str, str] | None = None, cgroups: Sequence[Path] = ()) -> int:
        """Start it unless it runs; returns its pid. It enters the cgroups of these cgroup.procs files before its program begins."""
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
        """Its pid if it is alive and still the process that we started."""
        try:
            pid_text, start = self.pidfile.read_text().split()
        except (FileNotFoundError, ValueError):
            return None
        pid = int(pid_text)
        return pid if _start_time(pid) == start and start else None

    def stop(self, *, grace: float = 10.0, kill_session: bool = True) -> None:
        """Ask it to end, wait `grace` seconds, then kill it and its session's processes. Not running is fine."""
        pid = self.pid()
        if pid is not None:
            os.kill(pid, signal.SIGTERM)
            deadline = time.monotonic() + grace
            while self.pid() is not None and time.monotonic() < deadline:
                time.sleep(0.05)
            if self.pid() is not None and kill_session:
                _kill_group(pid)
        self.pidfile.unlink(missing_ok=True)

    def tail(self, lines: int = TAIL_LINES) -> str:
        """The last lines of its log, for an error's details."""
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
