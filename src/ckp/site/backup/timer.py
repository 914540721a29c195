"""Backups that management hosts make by themselves: what they need for it is brought to them, looked at, and taken away again (ADR 36).

A timer on each of them runs `ckp-agent backup` (ckp.hosttool.backup); which of them is at work is decided there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path, PurePosixPath

from ckp.backups.archive import fingerprint_of
from ckp.clients.signing.encryption import Readers, encrypting
from ckp.clients.signing.openpgp import gpg_home
from ckp.hostkit.backup.location import (
    COMMAND,
    CREDENTIALS,
    FOLDER,
    MORE_CAS,
    S3_CA,
    SERVICE,
    SETTINGS,
    SIGNER,
    SIGNER_CERTIFICATE,
    SITE,
    STATE,
    TIMER,
    WORK,
)
from ckp.kits.errors import InvalidInput
from ckp.kits.files import sha256_bytes, sha256_file
from ckp.site.backup.take import BACKUP, pack, scratch_folder, signer_of, state_files
from ckp.site.backup.take import SIGNER as SIGNER_FOLDER
from ckp.site.backup.target import of_bucket
from ckp.site.hosts.files import HostFile, bring, differing, owners
from ckp.site.hosts.sidebyside import each
from ckp.site.install import APPLIED
from ckp.site.inventory import SiteHost, SiteHosts
from ckp.site.spec.model import SiteSpec
from ckp.site.spec.named_files import read_bytes
from ckp.verify.keyrings import PUBLIC_BEGINNINGS

UNITS = "/etc/systemd/system"
SETTINGS_FILE, SEALED_STATE = f"{FOLDER}/{SETTINGS}", f"{FOLDER}/{STATE}"
READER = "reader-"
ARMORED = b"BEGIN PGP PUBLIC KEY BLOCK"
GPG = ("/usr/bin/gpg", "/usr/bin/gpg-agent", "/usr/bin/gpgconf")
"""What the host tool encrypts and signs with."""
OFTEN, SELDOM = (5, 1), (15, 5)
"""Minutes between runs and the most that they are late, at random: for backups that are due more often than every hour, and for others."""
RUN_HOURS = 4
GPG_SECONDS = 120.0

Say = Callable[[str], None]


@dataclass(frozen=True)
class Schedule:
    """What management hosts are to do, as the site's file has it.

    Args:
        settings: what all of them are told (ckp.hosttool.backup.settings), but for who they are.
        files: name -> content, some of them secret.
        readers: files of the certificates of those who can read backups.
        state: what this machine keeps of the site.
        folder: where backups are kept on the hosts; empty for a bucket.
    """

    site: str
    every: timedelta
    settings: Mapping[str, object]
    files: Mapping[str, bytes] = field(repr=False)
    readers: tuple[Path, ...]
    state: Path
    folder: str = ""


def of_spec(spec: SiteSpec, state: Path) -> Schedule | None:
    """What the site's file says; None if its hosts are to make no backups.

    Args:
        state: what this machine keeps of the site.

    Raises:
        InvalidInput: a file that it names can't be read, or holds something else. No secret is quoted.
    """
    backup = spec.backup
    if backup is None or backup.every is None or not backup.by_hosts or spec.management.kubeconfig is not None:
        return None
    files: dict[str, bytes] = {}
    for number, path in enumerate(backup.encrypt_for):
        files[f"{READER}{number}.pgp"] = _certificate(path)
    settings: dict[str, object] = {
        "site": spec.metadata.name,
        "every": backup.every.total_seconds(),
        "keep": backup.keep,
        "postgresql": spec.database.postgresql is not None,
        "readers": list(files),
    }
    folder = ""
    if backup.to.s3 is None:
        settings["path"] = folder = str(backup.to.path)
    else:
        bucket, _ = of_bucket(spec, backup.to.s3)
        settings["s3"] = {"endpoint": bucket.endpoint, "bucket": bucket.name, "prefix": bucket.prefix, "region": bucket.region}
        files[CREDENTIALS] = backup.to.s3.credentials_file.read_bytes()
        files |= {name: text.encode() for name, text in ((S3_CA, bucket.ca), (MORE_CAS, bucket.more_cas)) if text}
    if spec.file is not None:
        files[SITE] = spec.file.read_bytes()
    return Schedule(spec.metadata.name, backup.every, settings, files, backup.encrypt_for, state, folder)


def _certificate(path: Path) -> bytes:
    """A reader's certificate: a secret key that was named by mistake must not get to the hosts."""
    content = read_bytes(path, "backup.encryptFor")
    if ARMORED not in content and not content.startswith(tuple(bytes((first,)) for first in PUBLIC_BEGINNINGS)):
        raise InvalidInput(f"backup.encryptFor: {path} is no OpenPGP certificate (public key)", resolution="gpg --export NAME > reader.pgp")
    return content


def require_able(hosts: SiteHosts, schedule: Schedule | None) -> None:
    """Refuse hosts that can't make backups; nothing was changed.

    Raises:
        InvalidInput: one lacks gpg, or no host has the folder.
    """
    if schedule is None:
        return
    for host, there in zip(hosts.masters, each(hosts.masters, lambda item: owners(item, GPG)), strict=True):
        if missing := [program for program in GPG if program not in there]:
            raise InvalidInput(
                f"{host.name} is to make backups by itself (backup.every), and has no {', '.join(missing)}",
                resolution="install gnupg there; or write `byHosts: false` into `backup`, and run `ckp site backup --if-due` on another machine",
            )
    if schedule.folder and not any(_has_folder(host, schedule.folder) for host in hosts.masters):
        raise InvalidInput(
            f"no management host has the folder {schedule.folder}, where backups are to be kept",
            resolution="mount the file system where backups are kept, or correct `backup.to.path`",
        )


def _has_folder(host: SiteHost, folder: str) -> bool:
    return host.run(["test", "-d", folder], timeout=30, check=False).code == 0


# -- looking


@dataclass(frozen=True)
class Pending:
    """What is to be done on a host before it makes backups as the schedule says.

    Args:
        able: whether it has the folder where backups are kept, if that is one.
        there: what it has already: files for backups, the timer.
        changed: files that differ, the settings behind those that they name, units last.
        stale: files that are no longer named.
        sealed: whether it lacks what this machine keeps of the site, as it is now.
        stopped: whether its timer does not run, or not after a boot.
    """

    able: bool = True
    there: frozenset[str] = frozenset()
    changed: tuple[HostFile, ...] = ()
    stale: tuple[str, ...] = ()
    sealed: bool = False
    stopped: bool = False

    @property
    def nothing(self) -> bool:
        """Whether all is as it should be."""
        return not (self.changed or self.stale or self.sealed or self.stopped) if self.able else not self.there


def pending(host: SiteHost, hosts: SiteHosts, schedule: Schedule | None) -> Pending:
    """What is to be done on one of the site's hosts. Nothing is changed.

    Raises:
        CkpError: it is not reached.
    """
    there = _there(host)
    if schedule is None or (schedule.folder and not _has_folder(host, schedule.folder)):
        return Pending(able=False, there=there)
    files = _files(host, hosts, schedule)
    changed = tuple(differing(host, files))
    known = {file.target for file in files} | {SEALED_STATE, WORK, FOLDER}
    state = _show(host, TIMER)
    return Pending(
        there=there,
        changed=changed,
        stale=tuple(sorted(there - known)),
        sealed=SEALED_STATE not in there or SETTINGS_FILE in {file.target for file in changed},
        stopped=state.get("ActiveState") != "active" or state.get("UnitFileState") != "enabled",
    )


def _files(host: SiteHost, hosts: SiteHosts, schedule: Schedule) -> list[HostFile]:
    """All files but the encrypted one, in the order in which they are written: the settings name what is there by then."""
    several = {each.name: each.address for each in hosts.masters} if len(hosts.masters) > 1 else {}
    state = _digest(schedule)
    settings = {**schedule.settings, "host": host.name, "address": host.address, "hosts": several, "state": state}
    signer = schedule.state / BACKUP / SIGNER_FOLDER
    content = dict(schedule.files)
    if (signer / SIGNER).exists():  # before the first applying there is none
        content |= {name: (signer / name).read_bytes() for name in (SIGNER, SIGNER_CERTIFICATE)}
    content[SETTINGS] = json.dumps(settings, indent=1, sort_keys=True).encode()
    units = {SERVICE: service_text(schedule.folder), TIMER: timer_text(schedule.every)}
    own = [HostFile(f"{FOLDER}/{name}", text, mode=0o600) for name, text in content.items()]
    return [*own, *(HostFile(f"{UNITS}/{name}", text.encode()) for name, text in units.items())]


def _digest(schedule: Schedule) -> str:
    """Of what the encrypted file holds, and of whom it is for: the file itself is another one each time that it is made."""
    lines = [f"{name} {path.stat().st_mode & 0o777:o} {sha256_file(path)}" for name, path in _state(schedule).items()]
    lines += [f"{name} {sha256_bytes(content)}" for name, content in sorted(schedule.files.items()) if name.startswith(READER)]
    return sha256_bytes("\n".join(lines).encode())


def _state(schedule: Schedule) -> dict[str, Path]:
    """What of this machine's state hosts get: not what was applied last, which a restore forgets."""
    return state_files(schedule.state, but=(schedule.state / APPLIED,))


def _there(host: SiteHost) -> frozenset[str]:
    """What a host has for backups: files, folders and units; none where it makes none."""
    found = host.run(["find", FOLDER, WORK, f"{UNITS}/{SERVICE}", f"{UNITS}/{TIMER}", "-maxdepth", "1"], timeout=30, check=False).stdout.splitlines()
    return frozenset(path for path in found if not path.startswith(f"{WORK}/"))


@dataclass(frozen=True)
class SeenTimer:
    """How the timer of a host is.

    Args:
        result: of the last run, as systemd calls it: `success`, or another word.
    """

    active: bool
    result: str


def look(host: SiteHost) -> SeenTimer:
    """The timer of a host. CkpError if the host is not reached."""
    return SeenTimer(_show(host, TIMER).get("ActiveState") == "active", _show(host, SERVICE).get("Result", ""))


def _show(host: SiteHost, unit: str) -> dict[str, str]:
    shown = host.run(["systemctl", "show", "--property=ActiveState,UnitFileState,Result", unit], timeout=30, check=False).stdout
    return dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)


# -- bringing and removing


def bring_all(hosts: SiteHosts, schedule: Schedule | None, say: Say) -> None:
    """Let the management hosts make backups as the schedule says; what is so already is left alone. The caller holds the lock of the site.

    Args:
        schedule: None: they make none, and what they had for it is taken away.

    Raises:
        CkpError: a host is not reached, or gpg fails here; running it again goes on.
    """
    if schedule is not None:
        signer_of(schedule.state, schedule.site)
    for host, found in zip(hosts.masters, each(hosts.masters, lambda item: pending(item, hosts, schedule)), strict=True):
        if found.able and schedule is not None:
            _bring(host, schedule, found, say)
        else:
            if found.there:
                remove(host, say)
            if schedule is not None:
                say(f"{host.name}: has no {schedule.folder}, and makes no backups by itself")


def _bring(host: SiteHost, schedule: Schedule, found: Pending, say: Say) -> None:
    if found.nothing:
        return
    if FOLDER not in found.there:
        host.run(["install", "-d", "-m", "0700", "-o", "root", "-g", "root", FOLDER], timeout=30)
    if found.sealed:
        _bring_state(host, schedule)
    for file in found.changed:
        bring(host, file)
    if found.stale:
        host.run(["rm", "-f", "--", *found.stale], timeout=30)
    if any(file.target.startswith(UNITS) for file in found.changed):
        host.run(["systemctl", "daemon-reload"], timeout=60)
    host.run(["systemctl", "enable", TIMER], timeout=60)
    host.run(["systemctl", "restart", TIMER], timeout=60, what=f"starting {TIMER}")
    fingerprint = fingerprint_of(schedule.state / BACKUP / SIGNER_FOLDER / SIGNER_CERTIFICATE)
    say(f"{host.name}: makes a backup when the newest one is older than {_hours(schedule.every)}, signed by {fingerprint}")


def _bring_state(host: SiteHost, schedule: Schedule) -> None:
    """What this machine keeps of the site, encrypted for the readers: the host can't read it."""
    with scratch_folder(schedule.state / BACKUP) as scratch, gpg_home(within=scratch) as home:
        plain, sealed = scratch / "state.tar", scratch / STATE
        pack(plain, _state(schedule))
        with encrypting(sealed, Readers(schedule.readers), home, timeout=GPG_SECONDS) as stream:
            stream.write(plain.read_bytes())
        host.push(sealed, SEALED_STATE, mode=0o600)


def remove(host: SiteHost, say: Say) -> None:
    """Let a host make no backups any longer, and leave nothing of it there; what is gone already is fine. Backups stay where they are.

    Raises:
        CkpError: something could not be removed; the same again goes on.
    """
    found = _there(host)
    if not found:
        return
    if f"{UNITS}/{TIMER}" in found:
        host.run(["systemctl", "disable", TIMER], timeout=60, check=False)
        host.run(["systemctl", "stop", TIMER, SERVICE], timeout=120, check=False)
    host.run(["rm", "-f", "--", f"{UNITS}/{SERVICE}", f"{UNITS}/{TIMER}"], timeout=30)
    host.run(["systemctl", "daemon-reload"], timeout=60)
    host.run(["systemctl", "reset-failed", SERVICE, TIMER], timeout=30, check=False)
    host.run(["rm", "-rf", "--", WORK, FOLDER], timeout=120, what="removing what backups were made with")
    say(f"{host.name}: makes no backups by itself any longer")


# -- units


def timer_text(every: timedelta) -> str:
    """The timer: it asks far more often than a backup is due, so that a failed one is made up for soon."""
    minutes, late = OFTEN if every < timedelta(hours=1) else SELDOM
    return f"""\
[Unit]
Description=When CKP looks whether a backup of the site is due

[Timer]
OnCalendar=*:0/{minutes}
RandomizedDelaySec={late}min
Persistent=true

[Install]
WantedBy=timers.target
"""


def service_text(folder: str) -> str:
    """The service. It runs as root, whose files it reads, in a sandbox: it writes to its own folder, and to that of backups if there is one.

    Args:
        folder: where backups are kept on this host; empty for a bucket.
    """
    # To read who owns what is in volumes; and to write into a folder that may be another user's.
    capabilities = "CAP_DAC_READ_SEARCH CAP_DAC_OVERRIDE" if folder else "CAP_DAC_READ_SEARCH"
    writable = f"RequiresMountsFor={folder}\n" if folder else ""
    paths = f"ReadWritePaths=-{PurePosixPath(folder)}\n" if folder else ""  # without it, the host tool says what is missing
    return f"""\
[Unit]
Description=Backup of CKP's site
Wants=network-online.target
After=network-online.target
{writable}
[Service]
Type=oneshot
ExecStart=/usr/bin/{" ".join(COMMAND)}
TimeoutStartSec={RUN_HOURS}h
StateDirectory={PurePosixPath(WORK).name}
StateDirectoryMode=0700
Environment=HOME={WORK}
{paths}UMask=0077
LimitCORE=0
Nice=10
IOSchedulingClass=idle
CapabilityBoundingSet={capabilities}
AmbientCapabilities=
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=read-only
PrivateTmp=yes
PrivateDevices=yes
DevicePolicy=closed
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
KeyringMode=private
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM
"""


def _hours(every: timedelta) -> str:
    seconds = int(every.total_seconds())
    return f"{seconds // 3600} h" if seconds % 3600 == 0 else f"{seconds // 60} min"
