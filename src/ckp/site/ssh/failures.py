"""What ssh says of a failure, as a sentence: what is wrong, what was seen, what to do."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from ckp.kits.errors import CkpError
from ckp.site.ssh.settings import SshSettings

TAIL_LINES = 12


class Failure(StrEnum):
    """Why a host was not reached, or a command there has no known end."""

    RESOLVE = "resolve"
    REFUSED = "refused"
    TIMED_OUT = "timed out"
    HOST_KEY = "host key"
    PERMISSION = "permission denied"
    SUDO = "sudo"
    LOST = "connection lost"
    OTHER = "other"


class SshFailed(CkpError):
    """SSH itself failed, not the command that was to run."""

    def __init__(self, failure: Failure, brief: str, *, details: str = "", resolution: str = "") -> None:
        super().__init__(brief, details=details, resolution=resolution)
        self.failure = failure


@dataclass(frozen=True)
class OfferedKey:
    """The host key that a host showed and that is not trusted.

    Args:
        line: as it stands in a file of known hosts; empty if it could not be had.
        fingerprint: `SHA256:…`
    """

    line: str
    fingerprint: str


def connecting(settings: SshSettings, name: str, said: str, offered: Callable[[], OfferedKey]) -> SshFailed:
    """The error for a connection that was not made.

    Args:
        said: ssh's own messages, at the level DEBUG1.
        offered: asks the host for its key; called if that is what is wrong.
    """
    where = f"{name} ({settings.target})"
    seen = tail(said)
    if "REMOTE HOST IDENTIFICATION HAS CHANGED" in said or "REVOKED HOST KEY" in said:
        return _host_key(settings, where, said, offered(), changed=True)
    if re.search(r"^No \S+ host key is known for ", said, re.M):
        return _host_key(settings, where, said, offered(), changed=False)
    if "Host key verification failed" in said:
        return SshFailed(
            Failure.HOST_KEY,
            f"{where} is not reached: the key of a host on the way is not trusted",
            details=seen,
            resolution=f"connect once by hand and compare the fingerprint that is shown: {settings.by_hand}",
        )
    if "UNKNOWN port" in said and "Permission denied (" not in said.partition("UNKNOWN port")[0]:
        return SshFailed(
            Failure.OTHER,
            f"{where} is not reached: there is no way through the host or the command that the SSH configuration puts before it",
            details=seen,
            resolution=f"try it by hand: {settings.by_hand} true",
        )
    if match := re.search(r"Could not resolve hostname (\S+?): ", said):
        return SshFailed(
            Failure.RESOLVE,
            f"{where} is not reached: the name {match[1]} does not resolve on this machine",
            details=seen,
            resolution="correct the name, write the host's address instead, or add it to ~/.ssh/config",
        )
    if re.search(r"Permission denied \(|Too many authentication failures|Permission denied, please try again", said):
        return _permission(settings, where, said)
    if "Connection refused" in said:
        return SshFailed(
            Failure.REFUSED,
            f"{where} refuses the connection",
            details=seen,
            resolution="start its SSH server, or correct the port; a firewall there may refuse as well",
        )
    if re.search(r"(?i)timed out|No route to host|Network is unreachable|Host is down", said) or not said.strip():
        return SshFailed(
            Failure.TIMED_OUT,
            f"{where} does not answer within {settings.connect_timeout:.0f} s",
            details=seen,
            resolution="see that it is on and that its address, routes and firewalls let this machine reach it",
        )
    return SshFailed(Failure.OTHER, f"no connection to {where}", details=seen, resolution=f"try it by hand: {settings.by_hand} true")


def never_connected(said: str) -> bool:
    """Whether ssh's messages say that there was no connection."""
    return re.search(r"^(ssh: |kex_exchange_identification|Host key verification failed|Permission denied \(|.*: Permission denied \()", said, re.M) is not None


def _host_key(settings: SshSettings, where: str, said: str, offered: OfferedKey, *, changed: bool) -> SshFailed:
    logged = re.search(r"Server host key: (\S+) (SHA256:\S+)", said)
    kind, fingerprint = (logged[1], logged[2]) if logged else ("host", offered.fingerprint)
    file = str(settings.known_hosts_file or "~/.ssh/known_hosts")
    details = [f"the host offers the {kind} key {fingerprint}"]
    check = "compare it at the host itself (ssh-keygen -lf on its /etc/ssh/ssh_host_*_key.pub)"
    # Only the key that was judged is written down, not one that another answer brought.
    add = f"printf '%s\\n' {shlex.quote(offered.line)} >> {shlex.quote(file) if file[0] != '~' else file}"
    known = offered.line and offered.fingerprint == fingerprint
    trust = add if known else f"connect once by hand: {settings.by_hand}"
    if not changed:
        brief = f"{where} is not reached: its host key is not known"
        return SshFailed(Failure.HOST_KEY, brief, details="\n".join(details), resolution=f"{check}; if it is the same, trust it: {trust}")
    if match := re.search(r"^(?:Offending|debug1: Offending) (.+)$", said, re.M):
        details.append(f"another one is trusted: {match[1].strip()}")
    name = offered.line.split(" ")[0] if known else settings.host
    forget = f"ssh-keygen -f {shlex.quote(file) if file[0] != '~' else file} -R {shlex.quote(name)}"
    brief = f"{where} is not reached: its host key has changed, or another machine answers in its place"
    steps = f"if it was installed again, {check}; if it is the same: {forget} && {trust}"
    return SshFailed(Failure.HOST_KEY, brief, details="\n".join(details), resolution=steps)


def _permission(settings: SshSettings, where: str, said: str) -> SshFailed:
    tried = list(dict.fromkeys(re.findall(r"Offering public key: (.+)$", said, re.M)))
    lines = [f"tried: {key}" for key in tried] or ["no key was tried: there is none in the agent, and none where the configuration says"]
    lines += [line for line in said.splitlines() if re.match(r"(Load key|Permissions .* too open|identity_sign|sign_and_send_pubkey|no such identity)", line)]
    if match := re.search(r"Permission denied \(([^)]*)\)", said):
        lines.append(f"the host takes: {match[1]}")
    user = settings.user or "the configured user"
    return SshFailed(
        Failure.PERMISSION,
        f"{where} does not take the login of {user}",
        details="\n".join(lines),
        resolution=f"add the public key to that user's ~/.ssh/authorized_keys there, or name another key (no password is ever used): {settings.by_hand}",
    )


def not_begun(name: str, what: str, code: int, said: str, errors: str) -> SshFailed:
    """The error for a command that did not begin although the connection was there.

    Args:
        code: ssh's exit code: 255 if it is not the other side's.
        said: ssh's own messages.
        errors: what the other side said.
    """
    if re.search(
        r"sudo: .*(password|terminal|tty)|is not in the sudoers|may not run sudo|not allowed to execute|sudo: (command )?not found|sudo: .*sudoers", errors
    ):
        missing = re.search(r"sudo: (command )?not found", errors)
        brief = (
            f"{name}: there is no sudo, and the user who logs in is not root"
            if missing
            else f"{name}: sudo does not let the user who logs in become root without a password"
        )
        how = "install sudo, or log in as root" if missing else "give that user NOPASSWD: ALL in /etc/sudoers.d, or log in as root"
        return SshFailed(Failure.SUDO, brief, details=tail(errors), resolution=how)
    if code == 255:
        return SshFailed(
            Failure.LOST,
            f"the connection to {name} was lost before {what} was seen to begin",
            details=tail(said),
            resolution="see that the host is on, and run the same command again",
        )
    return SshFailed(
        Failure.OTHER,
        f"{name}: the login works, but no command runs there",
        details=tail(errors + said),
        resolution="the user who logs in needs a shell as bash or dash; and a forced command in authorized_keys or sshd_config must not take the place of ours",
    )


def lost(name: str, what: str, said: str) -> SshFailed:
    """The error for a command that began, and whose end is not known."""
    return SshFailed(
        Failure.LOST,
        f"the connection to {name} was lost while {what} ran there; how it ended is not known",
        details=tail(said),
        resolution="see that the host is on, and run the same command again",
    )


def tail(text: str) -> str:
    """The last lines of ssh's messages without those for debugging."""
    lines = [
        line.rstrip()
        for line in text.splitlines()
        if line.strip() and not re.match(r"debug\d: |OpenSSH_|Authenticated to |Transferred: |Bytes per second", line)
    ]
    return "\n".join(lines[-TAIL_LINES:])
