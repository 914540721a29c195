"""A real sshd on loopback, with keys and a configuration of its own, for the user who runs the tests."""

from __future__ import annotations

import getpass
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ckp.kits.processes import run
from ckp.kits.retry import wait_until
from ckp.site.ssh import SshSettings

SSHD = "/usr/sbin/sshd"
PRIVSEP = Path("/run/sshd")
"""sshd's own empty folder, without which it does not start; Debian's unit makes it."""


class SshServer:
    """An sshd in a folder of the test. Its user may log in with `key` alone."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.key, self.known_hosts, self.log = folder / "id", folder / "known_hosts", folder / "sshd.log"
        self.port = free_port()
        self.child: subprocess.Popen[bytes] | None = None
        make_key(self.key)
        make_key(folder / "host_key")
        (folder / "authorized_keys").write_text((folder / "id.pub").read_text())
        (folder / "ssh_config").write_text("")
        self.trust()

    def trust(self) -> None:
        """Write the host key that it has now to known_hosts."""
        kind, key = (self.folder / "host_key.pub").read_text().split()[:2]
        self.known_hosts.write_text(f"[127.0.0.1]:{self.port} {kind} {key}\n")

    @property
    def settings(self) -> SshSettings:
        """How it is reached."""
        return SshSettings(
            "127.0.0.1",
            getpass.getuser(),
            self.port,
            config_file=self.folder / "ssh_config",
            identity_file=self.key,
            known_hosts_file=self.known_hosts,
        )

    def start(self, *more: str) -> None:
        """Start it, with further lines of sshd_config, and wait until it listens."""
        if os.geteuid() == 0:
            PRIVSEP.mkdir(exist_ok=True, mode=0o755)
        lines = [
            *(f"ListenAddress 127.0.0.1:{self.port}", f"HostKey {self.folder}/host_key", f"AuthorizedKeysFile {self.folder}/authorized_keys"),
            *("PidFile none", "UsePAM no", "StrictModes no", "PasswordAuthentication no", "KbdInteractiveAuthentication no", "PermitRootLogin yes", *more),
        ]
        (self.folder / "sshd_config").write_text("\n".join(lines) + "\n")
        with self.log.open("ab") as log:
            self.child = subprocess.Popen(
                [SSHD, "-D", "-e", "-f", self.folder / "sshd_config"], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        wait_until(self._listens, what="sshd listens", timeout=30, every=0.05, reason=self.log.read_text)

    def stop(self) -> None:
        """End it and all connections to it."""
        if self.child is not None:
            for pid in (*self.connections(), self.child.pid):
                kill(pid)
            self.child.wait()
            self.child = None

    def connections(self) -> list[int]:
        """The processes that serve connections, children's children included."""
        assert self.child is not None
        return descendants(self.child.pid)

    def cut(self) -> None:
        """Break all connections, as a cable does: what they started goes on."""
        for pid in self.connections():
            try:
                if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"sshd: "):
                    kill(pid)
            except OSError:
                continue

    def _listens(self) -> bool:
        with socket.socket() as client:
            client.settimeout(1)
            return client.connect_ex(("127.0.0.1", self.port)) == 0


@contextmanager
def ssh_server(folder: Path, *more: str) -> Iterator[SshServer]:
    """A started one, stopped afterwards."""
    server = SshServer(folder)
    try:
        server.start(*more)
        yield server
    finally:
        server.stop()


def make_key(path: Path) -> None:
    """A new key pair without a passphrase, in place of an earlier one."""
    for old in (path, path.with_name(f"{path.name}.pub")):
        old.unlink(missing_ok=True)
    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", path], timeout=30)


def fingerprint(public: Path) -> str:
    """SHA256:… of a public key."""
    return run(["ssh-keygen", "-l", "-f", public], timeout=30).stdout.split()[1]


def free_port() -> int:
    """A port of loopback that nothing listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def descendants(pid: int) -> list[int]:
    """Children, and theirs: the nearest first."""
    try:
        children = [int(text) for text in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
    return children + [each for child in children for each in descendants(child)]


def kill(pid: int) -> None:
    """SIGKILL; no error if it has ended."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def processes(marker: str, program: str = "") -> list[int]:
    """Living processes with `marker` as an argument; those of one program only, if it is named."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            argv = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if marker.encode() in argv and program.encode() in (b"", argv[0]):
            found.append(int(entry.name))
    return found


def marker() -> str:
    """A number of seconds for `sleep` that no other process has as an argument."""
    return f"9{time.time_ns() % 10**7}"
