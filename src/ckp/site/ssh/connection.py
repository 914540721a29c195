"""One connection to a host, which all commands share (ControlMaster of ssh_config(5))."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ckp.kits.errors import CkpError
from ckp.kits.processes import ProcessFailed, run
from ckp.site.ssh.failures import OfferedKey, SshFailed, connecting
from ckp.site.ssh.settings import PERSIST_SECONDS, SshSettings, quoted

ENVIRONMENT = {"LC_ALL": "C", "SSH_ASKPASS_REQUIRE": "never"}
"""What ssh says is read here, and the one that goes to a jump host must not ask anything either."""
LONGEST_SOCKET = 107 - len(".0123456789abcdef")
"""sun_path has 108 bytes with its NUL (unix(7)), and ssh binds a temporary name first, which has a suffix."""
SESSIONS = 8
"""Commands at a time on one connection: sshd's MaxSessions is 10."""
CLOSE_SECONDS = 10.0


class Connection:
    """Makes the connection when it is needed, and again when it is gone. Thread-safe."""

    def __init__(self, settings: SshSettings, name: str) -> None:
        self.settings = settings
        self.name = name
        self.sessions = threading.BoundedSemaphore(SESSIONS)
        self._lock = threading.Lock()
        self._folder: Path | None = None
        self._close: weakref.finalize[[Path, SshSettings], Connection] | None = None

    @property
    def control(self) -> Path:
        """The socket of the connection, in a folder that only this user may enter."""
        return self._private_folder() / "c"

    def open(self, timeout: float) -> None:
        """Connect, unless it is connected.

        Args:
            timeout: seconds, beside the settings' own limit for connecting.

        Raises:
            SshFailed: the host is not reached, or is not the one that is known, or does not take the login.
        """
        with self._lock:
            if self.control.exists():
                return
            with self.log() as log:
                # It goes into the background once the login is through, and ends when nothing has used it for PERSIST_SECONDS.
                argv = [*self._base(log, "DEBUG1"), "-f", "-N", "-o", "ControlMaster=yes", "-o", f"ControlPersist={PERSIST_SECONDS}"]
                argv += self._socket()
                limit = min(timeout, 3 * self.settings.connect_timeout)
                try:
                    done = run([*argv, "--", self.settings.host], timeout=limit, env=ENVIRONMENT, check=False, what=f"connecting to {self.name}")
                except ProcessFailed as error:
                    said = read(log)
                    if not shutil.which("ssh"):
                        raise CkpError("there is no ssh on this machine", resolution="install OpenSSH's client (the package openssh-client)") from error
                    raise self.error(f"{said}\ntimed out") from None
                if done.code != 0:
                    raise self.error(read(log) + done.stderr)

    def error(self, said: str) -> SshFailed:
        """The error that ssh's messages stand for, when there was no connection."""
        if "UNKNOWN port" in said and "Permission denied (" not in said:
            # The way there broke, and ssh throws away what a proxy command says (a jump host's ssh is one) where a connection is to be shared.
            said += self._without_login(StrictHostKeyChecking="yes")
        return connecting(self.settings, self.name, said, self._offered)

    def command(self, log: Path, remote: str) -> list[str]:
        """The command line that runs `remote` in the host's login shell."""
        return [*self._base(log, "INFO"), "-T", "-o", "ControlMaster=no", *self._socket(), "--", self.settings.host, remote]

    @contextmanager
    def log(self) -> Iterator[Path]:
        """A file for ssh's own messages, apart from those of what it runs."""
        handle, name = tempfile.mkstemp(dir=self._private_folder(), prefix="log-")
        os.close(handle)
        try:
            yield Path(name)
        finally:
            Path(name).unlink(missing_ok=True)

    def close(self) -> None:
        """End the connection. The next command makes another one."""
        with self._lock:
            if self._close is not None:
                self._close()
            self._folder = self._close = None

    # -- how

    def _base(self, log: Path, level: str) -> list[str]:
        return ["ssh", *self.settings.options(), "-E", str(log), "-o", f"LogLevel={level}"]

    def _socket(self) -> Sequence[str]:
        return ["-o", f"ControlPath={quoted(self.control)}"]

    def _private_folder(self) -> Path:
        if self._folder is None:
            self._folder = runtime_folder()
            self._close = weakref.finalize(self, _close, self._folder, self.settings)
        return self._folder

    def _offered(self) -> OfferedKey:
        """The key that the host offers, written to a file of our own."""
        with tempfile.TemporaryDirectory(dir=self._private_folder()) as scratch:
            file = Path(scratch) / "known_hosts"
            ours = {"UserKnownHostsFile": quoted(file), "GlobalKnownHostsFile": "/dev/null", "HashKnownHosts": "no"}
            self._without_login(StrictHostKeyChecking="accept-new", **ours)
            line = file.read_text().strip().splitlines()[:1] if file.exists() else []
            shown = run(["ssh-keygen", "-l", "-f", file], timeout=10, check=False).stdout.split() if line else []
        return OfferedKey(line[0], shown[1]) if len(shown) > 1 else OfferedKey("", "")

    def _without_login(self, **options: str) -> str:
        """Connect on its own as far as the host key, and log in by no method at all; returns what was said."""
        ours = {**options, "PreferredAuthentications": "none", "ControlMaster": "no", "ControlPath": "none"}
        words = [part for name, value in ours.items() for part in ("-o", f"{name}={value}")]  # the first value of an option counts
        argv = ["ssh", *words, *self.settings.options(), "-T", "--", self.settings.host, "true"]
        try:
            return run(argv, timeout=3 * self.settings.connect_timeout, env=ENVIRONMENT, check=False, what=f"asking {self.name} for its host key").stderr
        except ProcessFailed:
            return ""


def runtime_folder() -> Path:
    """A new folder that only this user may enter (0700), with a path that is short enough for a socket in it."""
    candidates = [os.environ.get("XDG_RUNTIME_DIR", ""), tempfile.gettempdir(), "/tmp"]
    for place in candidates:
        if place and len(f"{place}/ckp-ssh-12345678/c") <= LONGEST_SOCKET and os.access(place, os.W_OK | os.X_OK):
            try:
                quoted(place)
                return Path(tempfile.mkdtemp(prefix="ckp-ssh-", dir=place))
            except (CkpError, OSError):
                continue
    raise CkpError(
        "there is no folder for the connections to hosts",
        details=f"none of {', '.join(filter(None, candidates))} can be written to, or their paths are too long",
    )


def _close(folder: Path, settings: SshSettings) -> None:
    """End the connection that has its socket in `folder`, and remove the folder. Also run when the process ends."""
    if (folder / "c").exists():
        argv = ["ssh", *settings.options(), "-o", f"ControlPath={quoted(folder / 'c')}", "-O", "exit", "--", settings.host]
        try:  # not ckp.kits.processes: at the end of the process it may have no threads any more
            subprocess.run(argv, timeout=CLOSE_SECONDS, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
        except (OSError, subprocess.TimeoutExpired):
            pass  # it ends by itself, after PERSIST_SECONDS
    shutil.rmtree(folder, ignore_errors=True)


def read(log: Path) -> str:
    """What ssh said; nothing if the connection was closed in the meantime."""
    try:
        return log.read_text(errors="replace")
    except FileNotFoundError:
        return ""
