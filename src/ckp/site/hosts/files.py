"""Files of a site's host as they should be: what differs is found with one command, and only that is brought."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ckp.kits.files import sha256_bytes, sha256_file
from ckp.site.inventory import SiteHost

SHOWN = "--format=%n %a %U %G"
BETWEEN = "==\n"
LOOK = f'sha256sum -- "$@" 2>/dev/null; echo ==; stat "{SHOWN}" -- "$@" 2>/dev/null'


@dataclass(frozen=True)
class HostFile:
    """A file that is to be on a host, owned by root.

    Args:
        content: its bytes, or a file of this machine with them.
        group: who may read it beside root, with mode 0640; "" for everybody, with `mode`.
        readers: names of the services that read it when they start.
    """

    target: str
    content: bytes | Path
    mode: int = 0o644
    group: str = ""
    readers: tuple[str, ...] = ()

    @property
    def sha256(self) -> str:
        """Of the content, in hex."""
        return sha256_bytes(self.content) if isinstance(self.content, bytes) else sha256_file(self.content)

    @property
    def access(self) -> str:
        """Mode, owner and group as `owners` gives them."""
        return f"640 root {self.group}" if self.group else f"{self.mode:o} root root"


def differing(host: SiteHost, files: Sequence[HostFile]) -> list[HostFile]:
    """Those of `files` that are missing on the host, or have another content, mode, owner or group there; in the same order."""
    there = look(host, [file.target for file in files])
    return [file for file in files if there.get(file.target) != (file.sha256, file.access)]


def look(host: SiteHost, paths: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Those of the host's files that exist -> their SHA-256 in hex, and who may do what as `owners` has it; by one command, as each costs a round trip."""
    done = host.run(["sh", "-c", LOOK, "look", *paths], timeout=120, check=False)
    sums, _, shown = done.stdout.partition(BETWEEN)
    access = _access(shown)
    return {name: (digest, access[name]) for name, digest in _digests(sums).items() if name in access}


def bring(host: SiteHost, file: HostFile) -> None:
    """Write a file. One that not everybody may read is root's alone until its group is set."""
    if not file.group:
        host.push(file.content, file.target, mode=file.mode)
        return
    host.push(file.content, file.target, mode=0o600)
    host.run(["chgrp", file.group, file.target], timeout=30)
    host.run(["chmod", "640", file.target], timeout=30)


def digests(host: SiteHost, paths: Sequence[str]) -> dict[str, str]:
    """Those of the host's files that exist -> their SHA-256, in hex."""
    return _digests(host.run(digests_argv(paths), timeout=120, check=False).stdout)


def digests_argv(paths: Sequence[str]) -> list[str]:
    """What `digests` asks a host."""
    return ["sha256sum", "--", *paths]


def owners(host: SiteHost, paths: Sequence[str]) -> dict[str, str]:
    """Those of the host's files and folders that exist -> mode in octal, user and group, as `640 root adm`."""
    return _access(host.run(owners_argv(paths), timeout=30, check=False).stdout)


def owners_argv(paths: Sequence[str]) -> list[str]:
    """What `owners` asks a host."""
    return ["stat", SHOWN, "--", *paths]


def _digests(text: str) -> dict[str, str]:
    pairs = (line.split("  ", 1) for line in text.splitlines())
    return {name: digest for digest, name in pairs}


def _access(text: str) -> dict[str, str]:
    return dict(line.split(" ", 1) for line in text.splitlines())
