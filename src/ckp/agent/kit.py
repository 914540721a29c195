"""The few tools that the agent needs everywhere: its error, processes with a bound, files that are whole or not there, log lines."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from typing import Callable, Mapping, Sequence

STATE_DIR = "/var/lib/ckp-agent"
CONFIG_DIR = "/etc/ckp-agent"
IMGPKG = "/usr/lib/ckp-agent/imgpkg"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
TAIL_LINES = 25
OUTPUT_LIMIT = 4 << 20
KILL_SECONDS = 10.0


class AgentError(Exception):
    """An expected failure, told in a sentence.

    Args:
        brief: what is wrong and where.
        details: what was seen; may be several lines.
        resolution: what the reader can do now.
        reason: CamelCase, for machines (the Report's `reason`).
        permanent: trying again soon cannot help.
    """

    exit_code = 1
    default_reason = "Failed"

    def __init__(self, brief: str, *, details: str = "", resolution: str = "", reason: str = "", permanent: bool = False) -> None:
        super().__init__(brief)
        self.brief = brief
        self.details = details
        self.resolution = resolution
        self.reason = reason or self.default_reason
        self.permanent = permanent

    def render(self) -> str:
        """The error as plain text for a terminal or a log."""
        lines = [f"error: {self.brief}"]
        if self.details:
            lines += [f"  | {line}" for line in self.details.rstrip().splitlines()]
        if self.resolution:
            lines.append(f"  what to do: {self.resolution}")
        return "\n".join(lines)

    def sentence(self) -> str:
        """One line for a report: what is wrong, the last thing that was seen, what to do."""
        parts = [self.brief]
        if self.details:
            parts.append(self.details.strip().splitlines()[-1].strip()[:300])
        if self.resolution:
            parts.append(self.resolution)
        return ". ".join(part.rstrip(".") for part in parts)


class InvalidInput(AgentError):
    """The caller asked for something that cannot be: nothing was changed."""

    exit_code = 2
    default_reason = "InvalidInput"


class VerificationFailed(AgentError):
    """A signature, a maintainer or a digest is not what it must be: nothing was changed. Trying the same bytes again cannot help."""

    exit_code = 3
    default_reason = "VerificationFailed"

    def __init__(self, brief: str, *, details: str = "", resolution: str = "", check: str = "", key: str = "") -> None:
        if key:
            details = f"{details}\nkey: {key}".strip()
        super().__init__(brief, details=details, resolution=resolution, permanent=True)
        self.check = check
        self.key = key


class Cancelled(AgentError):
    """A wait was given up because something newer is wanted."""

    default_reason = "Cancelled"


class ProcessFailed(AgentError):
    """A program ended with an error, or did not end in time."""

    default_reason = "CommandFailed"


def log(text: str) -> None:
    """A line for the journal. systemd adds the time; on a terminal we do."""
    stamp = "" if "JOURNAL_STREAM" in os.environ else time.strftime("%H:%M:%S ")
    try:
        sys.stderr.write(f"{stamp}{text}\n")
        sys.stderr.flush()
    except (OSError, ValueError):
        pass  # a closed stderr is no reason to stop


@dataclass(frozen=True)
class Finished:
    """How a program ended."""

    code: int
    stdout: str
    stderr: str

    def tail(self) -> str:
        """Its last words."""
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
) -> Finished:
    """Run a program to its end and return what it said (each stream cut to 4 MiB).

    Secrets belong into `stdin` or files, never into `argv` or `env`: both can be read in /proc.

    Args:
        timeout: seconds after which it is killed with all its children; there is no unbounded run.
        check: raise when it ends with another code than 0.
        what: how to name the work in an error, instead of the program's name.
        cancelled: asked every half second; when true the program is killed.

    Raises:
        ProcessFailed: it could not be started, failed (with `check`), or ran out of time.
        Cancelled: `cancelled` said so.
    """
    name = what or argv[0]
    surroundings = {key: value for key, value in os.environ.items() if key in ("HOME", "TMPDIR", "HTTPS_PROXY", "NO_PROXY", "https_proxy", "no_proxy")}
    surroundings.update({"PATH": PATH, "LC_ALL": "C.UTF-8"})
    surroundings.setdefault("HOME", "/root")
    surroundings.update(env or {})
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        try:
            child = subprocess.Popen(
                list(argv),
                env=surroundings,
                stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
                stdout=out,
                stderr=err,
                start_new_session=True,
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
        raise Cancelled(f"{name} was stopped, because something newer is wanted")
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
        log(f"the process {child.pid} does not end: it waits for a disk or a server")


def _read(stream: object) -> str:
    stream.seek(0)  # type: ignore[attr-defined]
    data: bytes = stream.read(OUTPUT_LIMIT)  # type: ignore[attr-defined]
    return data.decode(errors="replace")


def own_command() -> list[str]:
    """What starts this very tool once more: the one file that it ships as, or the folder that it is run from."""
    place = os.path.dirname(os.path.abspath(__file__))
    while not os.path.exists(place):
        place = os.path.dirname(place)
    if os.path.isfile(place):
        return [sys.executable, "-I", place]
    top = os.path.dirname(os.path.dirname(place))
    return [sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {top!r}); from ckp.agent.__main__ import main; sys.exit(main())"]


def have(program: str) -> bool:
    """Whether a program can be found in the agent's PATH."""
    return any(os.access(os.path.join(folder, program), os.X_OK) for folder in PATH.split(":"))


def atomic_write(path: str, content: bytes | str, *, mode: int = 0o644) -> None:
    """Write a file so that a reader, or a power cut, sees the old content or the new, never half of it."""
    data = content.encode() if isinstance(content, str) else content
    folder = os.path.dirname(path) or "."
    os.makedirs(folder, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=folder, prefix="." + os.path.basename(path) + ".")
    try:
        with os.fdopen(handle, "wb") as stream:
            os.fchmod(stream.fileno(), mode)
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        remove(temporary)
        raise
    sync_folder(folder)


def sync_file(path: str) -> None:
    """Make a file that another program (or a plain copy) has written survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
    sync_folder(os.path.dirname(path) or ".")


def sync_folder(folder: str) -> None:
    """Make a rename in `folder` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    except OSError:
        pass  # some file systems refuse it for folders
    finally:
        os.close(handle)


PLACES = ("/", "/etc", "/usr", "/var", "/var/lib", "/var/lib/kubelet", "/var/lib/containerd", "/opt")
"""Where what a step changes lies; on most hosts all of it is one file system."""


def sync_host() -> None:
    """Make what programs have written survive a power cut. Only our own file systems: a pod's volume on a server that is away would hold it for ever.

    Raises:
        ProcessFailed: it was not done within five minutes.
    """
    places = [place for place in PLACES if os.path.isdir(place)]
    run(["sync", "-f", *places], timeout=300, what="writing this host's changes to its disks", reason="DiskNotWritten")


def read_text(path: str, default: str = "") -> str:
    """A file's text, or `default` if it can't be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            return stream.read()
    except OSError:
        return default


def remove(path: str) -> bool:
    """Remove a file; whether it was there."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return False
    return True


def wait_for(
    probe: Callable[[], str],
    *,
    timeout: float,
    every: float,
    what: str,
    resolution: str = "",
    reason: str = "TimedOut",
    cancelled: Callable[[], bool] | None = None,
) -> None:
    """Ask `probe` until it returns "" (done); its last answer says what is still missing.

    Raises:
        AgentError: after `timeout` seconds, with the last answer.
        Cancelled: `cancelled` said so.
    """
    deadline = time.monotonic() + timeout
    while True:
        missing = probe()
        if not missing:
            return
        if cancelled is not None and cancelled():
            raise Cancelled(f"the wait for {what} was given up, because something newer is wanted")
        if time.monotonic() >= deadline:
            raise AgentError(f"{what} did not happen within {timeout:.0f} s", details=missing, resolution=resolution, reason=reason)
        time.sleep(every)
