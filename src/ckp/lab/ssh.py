"""SSH to lab hosts: the lab's own key pair, which root of every host takes, and the host keys by which hosts are known.

A host's keys are made with its disk, on this machine: they are known before it boots for the first time, stay the same as long as it exists, and are
those of no other host. In a folder of the lab:

    id_ed25519 id_ed25519.pub   the lab's key pair
    known_hosts                 name, address and public keys of each host
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ckp.kits.files import atomic_write
from ckp.kits.processes import run

KINDS = ("ed25519", "ecdsa")
"""Of host keys. Making one of RSA would take a second."""
KEYGEN_TIMEOUT = 60.0


@dataclass(frozen=True)
class LabSsh:
    """How a host is reached by SSH."""

    host: str
    user: str
    port: int
    identity_file: Path
    known_hosts_file: Path


class SshFolder:
    """The lab's files for SSH. Who calls it holds the lab's lock."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.key = folder / "id_ed25519"
        self.known_hosts = folder / "known_hosts"

    def public_key(self) -> str:
        """The line of the lab's public key; the pair is made with the first call."""
        public = self.key.with_name(f"{self.key.name}.pub")
        if not (self.key.exists() and public.exists()):
            self.folder.mkdir(parents=True, exist_ok=True)
            self.folder.chmod(0o700)
            for part in (self.key, public):  # of an attempt that was killed
                part.unlink(missing_ok=True)
            _make_key(self.key, "ed25519", "ckp-lab")
        return public.read_text()

    def remember(self, name: str, address: str, keys: list[str]) -> None:
        """Write a host's public keys to the known hosts, in place of those that its name or address had."""
        lines = self.known_hosts.read_text().splitlines() if self.known_hosts.exists() else []
        others = [line for line in lines if not {name, address} & set(line.split(" ")[0].split(","))]
        atomic_write(self.known_hosts, "".join(f"{line}\n" for line in [*others, *(f"{name},{address} {key}" for key in keys)]), mode=0o600)


def furnish(disk: Path, name: str, authorized: str) -> list[str]:
    """Write a new host's keys, and who may log in as root, to its disk; returns its public keys, as kind and key."""
    folder, login = disk / "etc/ssh", disk / "root/.ssh"
    folder.mkdir(parents=True, exist_ok=True)
    login.mkdir(parents=True)
    for private in (login.parent, login):  # sshd takes no file of authorized keys that others could write
        private.chmod(0o700)
    atomic_write(login / "authorized_keys", authorized, mode=0o600)
    public = []
    for kind in KINDS:
        key = folder / f"ssh_host_{kind}_key"
        _make_key(key, kind, f"root@{name}")
        public.append(" ".join(key.with_name(f"{key.name}.pub").read_text().split()[:2]))
    return public


def _make_key(path: Path, kind: str, comment: str) -> None:
    run(["ssh-keygen", "-q", "-t", kind, "-N", "", "-C", comment, "-f", path], timeout=KEYGEN_TIMEOUT, what=f"making an SSH key of {comment}")
    path.with_name(f"{path.name}.pub").chmod(0o644)
