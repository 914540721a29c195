"""A host that is reached by SSH."""

from __future__ import annotations

import base64
import io
import os
import re
import secrets
import shlex
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Literal

from ckp.kits.errors import CkpError, InvalidInput, NotFound
from ckp.kits.processes import Finished, ProcessFailed, run
from ckp.kits.streams import stream
from ckp.site.hosts.local import ENVIRONMENT as HOST_ENVIRONMENT
from ckp.site.ssh import failures
from ckp.site.ssh.connection import ENVIRONMENT, Connection, read
from ckp.site.ssh.settings import SshSettings

How = Literal["apart", "together", "direct"]
"""What happens to a command's streams: see remote.sh."""
LONGEST_COMMAND = 100_000
"""Bytes. The remote command is one argument of ssh here and of a shell there, and Linux takes 128 KiB for one (MAX_ARG_STRLEN)."""
BACKSTOP_SECONDS = 5.0
"""How much longer a command may run there than we wait: until then its end is ours to bring about, afterwards the host's own."""
TAIL_LINES = 25
CHUNK = 1 << 16

_BECOME_ROOT = f'root=; [ "$(id -u)" -eq 0 ] || root="sudo -n --"; exec $root env -i {shlex.join(HOST_ENVIRONMENT)} sh -c "$@"'
_REMOTE = Path(__file__).with_name("remote.sh")
_PUSH = """
set -eu
mkdir -p -- "$(dirname -- "$1")"
kept=$(mktemp -- "$1.XXXXXX")
trap 'rm -f -- "$kept"' EXIT
trap 'exit 1' HUP INT TERM
trap '' PIPE
head -c "$3" >"$kept"
[ "$(wc -c <"$kept")" -eq "$3" ] || { echo "only $(wc -c <"$kept") of $3 bytes came" >&2; exit 1; }
chmod -- "$2" "$kept"
sync -- "$kept"
mv -T -- "$kept" "$1"
sync -- "$(dirname -- "$1")"
"""


@dataclass(frozen=True)
class _Ended:
    """How a command ended there. `code` is None if it did not end by itself, `begun` is whether it began at all."""

    begun: bool
    code: int | None
    killed: bool


class SshHost:
    """A host of a site, reached by OpenSSH's client. Commands run there as root, in `/`, with a minimal environment. Thread-safe.

    One connection is made with the first command and shared by all; `close` ends it (so does the end of the process), and a context does.

    A command ends there when nobody waits for it here any more: when its time is over, when it is interrupted, or when this process is killed.
    If the connection breaks without the host's noticing, the command ends BACKSTOP_SECONDS after its time. Nothing is run twice.

    Args:
        name: its hostname, as the site calls it.
        address: its IPv4 address in the hosts' network.
    """

    def __init__(self, name: str, address: str, settings: SshSettings) -> None:
        self._name = name
        self._address = address
        self.settings = settings
        self._connection = Connection(settings, name)

    @property
    def name(self) -> str:
        """Its hostname."""
        return self._name

    @property
    def address(self) -> str:
        """Its IPv4 address in the site's host network."""
        return self._address

    def __enter__(self) -> SshHost:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the connection. The next command makes another one."""
        self._connection.close()

    def run(self, argv: Sequence[str | Path], *, timeout: float, stdin: str | bytes | None = None, check: bool = True, what: str = "") -> Finished:
        """Run a command there to its end, and return its output.

        Args:
            argv: arrives there byte for byte; no shell interprets it.
            timeout: seconds, with those for connecting, after which it is killed.
            stdin: its standard input. Secrets go this way: arguments can be read by every user there.
            check: raise when it ends with another code than 0.
            what: how to name the work in an error.

        Raises:
            InvalidInput: the command is empty, too long, or has a NUL.
            SshFailed: the host is not reached, or the connection was lost.
            ProcessFailed: it failed (with `check`), or ran out of time.
        """
        return self._run(argv, timeout, stdin.encode() if isinstance(stdin, str) else stdin or b"", "apart", check, what)

    def stream(self, argv: Sequence[str | Path], *, timeout: float, on_line: Callable[[str], None]) -> int:
        """Run a command there and hand over each line of its output (both streams) as it comes; returns its exit code. Raises as `run`."""
        name, token = self._named(argv, ""), _token()
        seen = _Lines(token, on_line)
        started = time.monotonic()
        self._connection.open(timeout)
        left = max(0.1, timeout - (time.monotonic() - started))
        # ssh's standard error has nothing of the command, whose streams are one there, but what a login shell says: that may come late.
        with self._connection.sessions, self._connection.log() as log, _kept_open(b"") as source, tempfile.TemporaryFile() as noise:
            command = self._connection.command(log, remote_command(token, left, 0, "together", argv))
            try:
                code = stream(command, timeout=left, on_line=seen.take, stdin=source, env=ENVIRONMENT, errors=noise, what=name)
            except ProcessFailed:
                raise _late(name, timeout, "") from None
            noise.seek(0)
            others = "\n".join([*seen.others, noise.read(CHUNK).decode(errors="replace")])
            return self._judge(seen.ended(), code, name, timeout, time.monotonic() - started, read(log), others)

    def push(self, source: Path | bytes, target: str, *, mode: int = 0o644) -> None:
        """Write a file of this machine, or some bytes, to `target` there: whole or not at all; missing folders are created.

        The content goes through standard input into a new file beside the target, which takes its name when all of it is on the disk. After a
        power cut there that file may be left (`target.` and six letters).

        Raises:
            InvalidInput: `target` is not an absolute path.
            CkpError: it can't be read here or written there, or as `run` raises.
        """
        if not target.startswith("/") or target.endswith("/"):
            raise InvalidInput(f"{target!r} is not the absolute path of a file on {self.name}")
        try:
            size = source.stat().st_size if isinstance(source, Path) else len(source)
        except OSError as error:
            raise NotFound(f"{source!s} cannot be read: {error.strerror}") from None
        argv = ["sh", "-c", _PUSH, "push", target, f"{mode:o}", str(size)]
        self._run(argv, 60 + size / 5e5, source, "direct", True, f"writing {target}", size)  # a slow line

    def pull(self, source: str) -> bytes:
        """The content of a file there. Raises as `run`."""
        encoded = self.run(["base64", "-w", "0", "--", source], timeout=300, what=f"reading {source}").stdout
        return base64.b64decode(encoded)

    # -- how

    def _run(self, argv: Sequence[str | Path], timeout: float, stdin: bytes | Path, how: How, check: bool, what: str, size: int | None = None) -> Finished:
        name, token = self._named(argv, what), _token()
        started = time.monotonic()
        self._connection.open(timeout)
        left = max(0.1, timeout - (time.monotonic() - started))
        length = len(stdin) if isinstance(stdin, bytes) else size or 0
        with self._connection.sessions, self._connection.log() as log, _kept_open(stdin) as source:
            command = self._connection.command(log, remote_command(token, left, length, how, argv))
            try:
                done = run(command, timeout=left, env=ENVIRONMENT, stdin=source, check=False, what=name)
            except ProcessFailed as error:
                raise _late(name, timeout, re.sub(rf".*{token}.*\n?", "", error.details)) from None
            said = read(log)
        seconds = time.monotonic() - started
        stdout = _after_begin(done.stdout, token)
        stderr, ended = parse(done.stderr, token)
        code = self._judge(ended, done.code, name, timeout, seconds, said, stderr if ended.begun else f"{done.stdout}\n{stderr}")
        finished = Finished(tuple(map(str, argv)), code, stdout, stderr, seconds)
        if check and code != 0:
            raise ProcessFailed(f"{name} failed with exit code {code}", details=_tail(f"{stdout}\n{stderr}"))
        return finished

    def _judge(self, ended: _Ended, code: int, name: str, timeout: float, seconds: float, said: str, errors: str) -> int:
        """The command's own exit code, which that of ssh (`code`) is never taken for."""
        if ended.code is not None:
            return ended.code
        if not ended.begun:
            if failures.never_connected(said):  # the shared connection was gone, and ssh tried another one
                raise self._connection.error(said)
            raise failures.not_begun(self.name, name, code, said, errors)
        if not ended.killed:
            raise failures.lost(self.name, name, said)
        if seconds >= timeout:
            raise _late(name, timeout, errors)
        raise ProcessFailed(f"{name} was killed there", details=_tail(errors), resolution="see the host's journal: it may have run out of memory")

    def _named(self, argv: Sequence[str | Path], what: str) -> str:
        if not argv:
            raise InvalidInput("there is no command to run")
        return f"{what or Path(argv[0]).name} on {self.name}"


def remote_command(token: str, seconds: float, size: int, how: How, argv: Sequence[str | Path]) -> str:
    """What the host's login shell gets to interpret: one command, each of its arguments quoted.

    Raises:
        InvalidInput: it can't be written so.
    """
    words = [os.fsdecode(part) for part in argv]
    if any("\0" in word for word in words):
        raise InvalidInput("an argument of the command has a NUL, which no command line can have")
    limit = f"{seconds + BACKSTOP_SECONDS:.1f}"
    text = "exec " + shlex.join(["sh", "-c", _BECOME_ROOT, "ckp", _REMOTE.read_text(), "ckp", token, limit, str(size), how, *words])
    if len(os.fsencode(text)) > LONGEST_COMMAND:
        raise InvalidInput("the command is too long for SSH", resolution="send what is long by standard input")
    return text


def parse(errors: str, token: str) -> tuple[str, _Ended]:
    """Standard error of the command alone, and how it ended, from all that came."""
    begin = errors.find(f"{token} begin\n")
    if begin < 0:
        return errors, _Ended(False, None, False)
    own = errors[begin + len(f"{token} begin\n") :]
    code, ended = re.search(rf"{token} code (\d+)\n", own), re.search(rf"{token} ended \d+\n", own)
    return re.sub(rf"{token} (?:code|ended) \d+\n", "", own), _Ended(True, int(code[1]) if code else None, ended is not None)


class _Lines:
    """Tells the lines of the command from those before it begins and from those that say how it ended."""

    def __init__(self, token: str, on_line: Callable[[str], None]) -> None:
        self.token, self._on_line = token, on_line
        self.others: list[str] = []
        self._begun = self._killed = False
        self._code: int | None = None

    def take(self, line: str) -> None:
        """A line as it came."""
        text, mark, said = line.partition(f"{self.token} ")
        if not self._begun:
            self._begun = said == "begin"
            if not self._begun:
                self.others = [*self.others, line][-TAIL_LINES:]
            return
        if not mark or text:
            self._on_line(text)
        if said.startswith("code "):
            self._code = int(said.removeprefix("code "))
        self._killed = self._killed or said.startswith("ended ")

    def ended(self) -> _Ended:
        """How the command ended, once all lines are in."""
        return _Ended(self._begun, self._code, self._killed)


@contextmanager
def _kept_open(content: bytes | Path) -> Iterator[IO[bytes]]:
    """A pipe that has `content` and then stays open until the block ends, however it does: the host takes its end for ours."""
    far, near = os.pipe()
    over = threading.Event()

    def feed() -> None:
        with os.fdopen(near, "wb", buffering=0) as sink:
            try:
                with io.BytesIO(content) if isinstance(content, bytes) else content.open("rb") as file:
                    shutil.copyfileobj(file, sink, CHUNK)
            except OSError:  # the reader has ended, or the file can't be read: too little comes, and the host takes none of it
                return
            over.wait()

    feeder = threading.Thread(target=feed, daemon=True)
    feeder.start()
    try:
        with os.fdopen(far, "rb", buffering=0) as source:
            yield source
    finally:
        over.set()
        feeder.join()


def _after_begin(output: str, token: str) -> str:
    """Without what the login shell has said before."""
    return output.partition(f"{token} begin\n")[2]


def _token() -> str:
    return f"ckp-{secrets.token_hex(8)}"


def _late(name: str, timeout: float, details: str) -> CkpError:
    return ProcessFailed(f"{name} did not end within {timeout:.0f} s", details=_tail(details))


def _tail(text: str) -> str:
    return "\n".join(text.strip().splitlines()[-TAIL_LINES:])
