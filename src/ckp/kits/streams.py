"""Running a program whose output is followed line by line while it runs."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import IO

from ckp.kits.processes import LINGER_SECONDS, TAIL_LINES, ProcessFailed, kill_group, ready_to_reap, reaped


def stream(
    argv: Sequence[str | Path],
    *,
    timeout: float,
    on_line: Callable[[str], None],
    stdin: str | bytes | Path | IO[bytes] | None = None,
    env: Mapping[str, str] | None = None,
    log: Path | None = None,
    errors: IO[bytes] | None = None,
    interrupt: signal.Signals | None = None,
    grace: float = 0.0,
    what: str,
) -> int:
    """Run a program, and call `on_line` for each line of its output (both streams) as it comes; returns its exit code.

    It does not outlive this process, however this one ends.

    Args:
        timeout: seconds after which it is killed with all its children.
        stdin: its standard input; a Path is a file on the machine, of any size. An open file or pipe stays the caller's to close.
        env: added to our own environment.
        log: a new file that gets all of the output, each line before `on_line` does.
        errors: a file that its standard error goes into, instead of among the lines.
        interrupt: what its process group is sent when this process is interrupted; it is killed at once by default.
        grace: seconds that it has for ending after that. Its output is followed until then.

    Raises:
        ProcessFailed: it could not be started, or did not end in time.
        KeyboardInterrupt: when it has ended.
    """
    late = threading.Event()
    ready_to_reap()
    with ExitStack() as stack:
        source = stack.enter_context(_input(stdin))
        kept = stack.enter_context(log.open("xb")) if log else None
        try:
            child = subprocess.Popen(
                [str(part) for part in argv],
                stdin=source,
                stdout=subprocess.PIPE,
                stderr=errors or subprocess.STDOUT,
                start_new_session=True,
                cwd="/",
                env={**os.environ, **env} if env else None,
            )
        except OSError as error:
            raise ProcessFailed(f"{what}: {argv[0]} could not be started: {error.strerror}") from error
        assert child.stdout is not None
        output = _Output(stack.enter_context(child.stdout), late)
        stack.enter_context(reaped(child.pid))

        def give_up() -> None:
            late.set()
            kill_group(child.pid)

        def follow() -> None:
            for line in output:
                if kept is not None:
                    kept.write(line)
                    kept.flush()
                on_line(line.decode(errors="replace").rstrip("\r\n"))

        timer = threading.Timer(timeout, give_up)
        timer.start()
        try:
            try:
                follow()
            except KeyboardInterrupt:
                if interrupt is None:
                    raise
                _end(child, interrupt, grace, follow)
                raise
            code = child.wait()
        except BaseException:
            kill_group(child.pid)
            child.wait()
            raise
        finally:
            timer.cancel()
    if late.is_set():
        raise ProcessFailed(f"{what} did not end within {timeout:.0f} s")
    return code


class _Output:
    """The lines of a pipe as they come, to its end; or until LINGER_SECONDS after `late`, since another process may hold it open."""

    def __init__(self, pipe: IO[bytes], late: threading.Event) -> None:
        self._pipe, self._late = pipe, late
        self._begun = b""

    def __iter__(self) -> Iterator[bytes]:
        with selectors.DefaultSelector() as selector:
            selector.register(self._pipe, selectors.EVENT_READ)
            while True:
                if not selector.select(LINGER_SECONDS):
                    if self._late.is_set():
                        break
                    continue
                chunk = os.read(self._pipe.fileno(), 1 << 16)
                if not chunk:
                    break
                *lines, self._begun = (self._begun + chunk).split(b"\n")
                yield from (line + b"\n" for line in lines)
        if rest := self._begun:
            self._begun = b""
            yield rest


def _end(child: subprocess.Popen[bytes], number: signal.Signals, grace: float, follow: Callable[[], None]) -> None:
    """Ask a process group to end, and follow its output for at most `grace` seconds."""
    timer = threading.Timer(grace, kill_group, [child.pid])
    timer.start()
    try:
        os.killpg(child.pid, number)
        follow()
        child.wait()
    except ProcessLookupError:
        pass
    finally:
        timer.cancel()


def _input(stdin: str | bytes | Path | IO[bytes] | None) -> AbstractContextManager[IO[bytes]]:
    if isinstance(stdin, Path):
        return stdin.open("rb")
    if stdin is None:
        return Path(os.devnull).open("rb")
    if not isinstance(stdin, str | bytes):
        return nullcontext(stdin)
    # A file instead of a pipe: no thread has to write to it while the output is read.
    source: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
    source.write(stdin.encode() if isinstance(stdin, str) else stdin)
    source.seek(0)
    return source


@contextmanager
def piped(argv: Sequence[str | Path], *, timeout: float, write: bool, what: str) -> Iterator[IO[bytes]]:
    """A program whose standard input (`write`) or standard output is here as a stream of bytes, of any size.

    The block ends the stream; then the program's end is waited for. It does not outlive this process, however this one ends.

    Args:
        timeout: seconds from its start after which it is killed with all its children.

    Raises:
        ProcessFailed: it could not be started, failed, or did not end in time. An error of the block comes first, but for that of a closed pipe.
    """
    late = threading.Event()
    ready_to_reap()
    with tempfile.TemporaryFile() as said:
        try:
            child = subprocess.Popen(
                [str(part) for part in argv],
                stdin=subprocess.PIPE if write else subprocess.DEVNULL,
                stdout=subprocess.DEVNULL if write else subprocess.PIPE,
                stderr=said,
                start_new_session=True,
            )
        except OSError as error:
            raise ProcessFailed(f"{what}: {argv[0]} could not be started: {error.strerror}") from error
        pipe = child.stdin if write else child.stdout
        assert pipe is not None

        def give_up() -> None:
            late.set()
            kill_group(child.pid)

        timer = threading.Timer(timeout, give_up)
        timer.start()
        try:
            with reaped(child.pid):
                with suppress(BrokenPipeError):  # why it has ended is said by itself
                    yield pipe
                with suppress(BrokenPipeError):
                    pipe.close()
                code = child.wait()
        except BaseException:
            kill_group(child.pid)
            child.wait()
            with suppress(BrokenPipeError):
                pipe.close()
            raise
        finally:
            timer.cancel()
        said.seek(0)
        tail = "\n".join(said.read().decode(errors="replace").strip().splitlines()[-TAIL_LINES:])
    if late.is_set():
        raise ProcessFailed(f"{what} did not end within {timeout:.0f} s", details=tail)
    if code != 0:
        raise ProcessFailed(f"{what} failed with exit code {code}", details=tail)
