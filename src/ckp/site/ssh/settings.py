"""How a host is reached by SSH, and the options of OpenSSH's client that follow from it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ckp.kits.errors import InvalidInput

HOST = re.compile(r"[A-Za-z0-9_.:%\[\]][A-Za-z0-9_.:%\[\]-]*")
USER = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.@\\$-]*")
ALIVE_SECONDS, ALIVE_COUNT = 5, 6
"""A connection on which nothing comes back for 30 seconds is given up: a busy host may leave its sshd without a turn for many of them."""
PERSIST_SECONDS = 60
"""How long a connection without a command stays, if nobody closes it."""


@dataclass(frozen=True)
class SshSettings:
    """How a host is reached. What is not said here is as the user's own SSH configuration has it, with its agent and jump hosts.

    Args:
        host: a name, an address, or an alias of the SSH configuration.
        user: who logs in; another one than root needs `sudo -n`. Empty: as configured.
        port: None: as configured.
        config_file: instead of the user's and the system's configuration.
        identity_file: the only private key that is tried; without it, those of agent and configuration.
        known_hosts_file: where the host's key is looked up, instead of the user's own file (the system's is read as well).
        connect_timeout: seconds until a connection must be there.

    Raises:
        InvalidInput: a value that ssh would read as something else.
    """

    host: str
    user: str = ""
    port: int | None = None
    config_file: Path | None = None
    identity_file: Path | None = None
    known_hosts_file: Path | None = None
    connect_timeout: float = 10.0

    def __post_init__(self) -> None:
        if not HOST.fullmatch(self.host):
            raise InvalidInput(
                f"{self.host!r} is no host that SSH can reach", resolution="write a name or an address; the user and the port are fields of their own"
            )
        if self.user and not USER.fullmatch(self.user):
            raise InvalidInput(f"{self.user!r} is no user to log in as", resolution="write the name of a user of the host")
        if self.port is not None and not 1 <= self.port <= 65535:
            raise InvalidInput(f"{self.port} is no port", resolution="write a number from 1 to 65535; SSH's own is 22")
        if not 1 <= self.connect_timeout <= 600:
            raise InvalidInput(f"a connection cannot be given {self.connect_timeout} seconds", resolution="write a number from 1 to 600")
        for path in (self.config_file, self.identity_file, self.known_hosts_file):
            if path is not None:
                quoted(path)

    def options(self) -> list[str]:
        """Of every call of ssh. Those that keep a call from doing more than what it is asked for come before what the configuration says."""
        options = {
            "BatchMode": "yes",  # nothing is ever asked
            "StrictHostKeyChecking": "yes",
            "UpdateHostKeys": "no",
            "VerifyHostKeyDNS": "no",
            "ConnectTimeout": f"{self.connect_timeout:.0f}",
            "ConnectionAttempts": "1",
            "ServerAliveInterval": str(ALIVE_SECONDS),
            "ServerAliveCountMax": str(ALIVE_COUNT),
            "RequestTTY": "no",
            "EscapeChar": "none",
            "RemoteCommand": "none",
            "PermitLocalCommand": "no",
            "ForwardAgent": "no",
            "ForwardX11": "no",
            "ClearAllForwardings": "yes",
            "Tunnel": "no",
        }
        if self.identity_file is not None:
            options["IdentitiesOnly"] = "yes"
            options["IdentityFile"] = quoted(self.identity_file)
        if self.known_hosts_file is not None:
            options["UserKnownHostsFile"] = quoted(self.known_hosts_file)
        argv = ["-F", str(self.config_file)] if self.config_file is not None else []
        argv += [part for name, value in options.items() for part in ("-o", f"{name}={value}")]
        argv += ["-p", str(self.port)] if self.port is not None else []
        return argv + (["-l", self.user] if self.user else [])

    @property
    def target(self) -> str:
        """User, host and port, for people."""
        user = f"{self.user}@" if self.user else ""
        return f"{user}{self.host}" + (f" port {self.port}" if self.port is not None else "")

    @property
    def by_hand(self) -> str:
        """The command with which a person connects in the same way."""
        argv = ["ssh"]
        argv += ["-F", str(self.config_file)] if self.config_file is not None else []
        argv += ["-i", str(self.identity_file)] if self.identity_file is not None else []
        argv += ["-o", f"UserKnownHostsFile={self.known_hosts_file}"] if self.known_hosts_file is not None else []
        argv += ["-p", str(self.port)] if self.port is not None else []
        return " ".join([*argv, f"{self.user}@{self.host}" if self.user else self.host])


def quoted(path: Path | str) -> str:
    """A path as the value of an option: one word, in which ssh expands nothing.

    Raises:
        InvalidInput: it has a character that ssh offers no way to write.
    """
    text = str(path)
    if re.search(r'["\\$\x00-\x1f\x7f]', text):
        raise InvalidInput(f"the path {text!r} cannot be given to ssh", resolution="use one without quotes, backslashes, dollar signs and control characters")
    return '"' + text.replace("%", "%%") + '"'
