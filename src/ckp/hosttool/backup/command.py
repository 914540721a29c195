"""`ckp-agent backup`: what the timer of a management host runs. It makes a backup of the site if one is due, and no other host makes one."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from contextlib import closing
from datetime import datetime, timezone
from typing import Callable, List, Mapping, Optional, Sequence

from ckp.hostkit import proxies
from ckp.hostkit.backup import location
from ckp.hostkit.backup.collection import ADMIN, NAMESPACE, Sources
from ckp.hostkit.backup.names import made_at, name_of
from ckp.hostkit.errors import AgentError
from ckp.hostkit.files import read_text
from ckp.hostkit.locations import RESTORED, STANDALONE_JOURNAL, STATE_DIR
from ckp.hostkit.processes import run
from ckp.hosttool.backup.lease import Lease
from ckp.hosttool.backup.making import make
from ckp.hosttool.backup.places import Folder, Objects, Place, newest, store
from ckp.hosttool.backup.settings import Settings, read_settings

Say = Callable[[str], None]
VERSION, UPGRADE = "ckp-version", "ckp-upgrade"
"""ConfigMaps of the site: the version of CKP that it is of, and the record of an upgrade that is not finished."""
BOOT_ID = "/proc/sys/kernel/random/boot_id"


def parser() -> argparse.ArgumentParser:
    """Of what it takes."""
    made = argparse.ArgumentParser(prog="ckp-agent backup", description="Make a backup of the site if one is due and no other management host makes one.")
    made.add_argument("--now", action="store_true", help="also if none is due")
    return made


def command(arguments: Sequence[str]) -> int:
    """Run the command; its exit code."""
    chosen = parser().parse_args(list(arguments))
    environment = proxies.environment()
    for name in proxies.NAMES:  # for the bucket alone: kubectl would take it for the API server
        os.environ.pop(name, None)
        os.environ.pop(name.lower(), None)
    try:
        return back_up(say, now=chosen.now, environment=environment)
    except AgentError as error:
        print(error.render(), file=sys.stderr)
        return error.exit_code


def say(line: str) -> None:
    """A line for the journal."""
    print(line, flush=True)


def back_up(
    say: Say,
    *,
    now: bool = False,
    environment: Optional[Mapping[str, str]] = None,
    root: str = location.FOLDER,
    work: str = location.WORK,
    sources: Optional[Sources] = None,
    state: str = STATE_DIR,
    restored: str = RESTORED,
    admin: str = ADMIN,
) -> int:
    """Make a backup if one is due; the exit code.

    Args:
        now: also if none is due.
        environment: names the proxy by which a bucket is reached.

    Raises:
        AgentError: it could not be made; the next run tries again.
    """
    settings = read_settings(root)
    if settings is None:
        say("this host is to make no backups")
        return 0
    if os.path.exists(restored) or not os.path.exists(admin):
        say("this host's management cluster is not there, or is being restored: there is nothing to back up")
        return 0
    os.makedirs(work, mode=0o700, exist_ok=True)
    sources = sources or Sources.of(settings.address)
    kubectl = _Kubectl(sources)
    lease = Lease(kubectl, location.LEASE, settings.host, os.path.join(work, "lease.json"), read_text(BOOT_ID).strip())
    if other := lease.acquire():
        say(f"{other} makes one, or did lately")
        return 0
    lease.keep()
    try:
        return _under_lease(settings, sources, kubectl, lease, work, state, say, now=now, environment=environment or {})
    finally:
        lease.release()


def _under_lease(
    settings: Settings, sources: Sources, kubectl: _Kubectl, lease: Lease, work: str, state: str, say: Say, *, now: bool, environment: Mapping[str, str]
) -> int:
    if kubectl.config_map(UPGRADE) is not None:
        say("an upgrade of the site is not finished: it has made a backup before it began, and the next run looks again")
        return 0
    with closing(_Opened(settings, environment)) as opened:
        last = newest(settings.site, opened.place)
        if not now and last and (made := made_at(settings.site, last)) and (datetime.now(timezone.utc) - made).total_seconds() < settings.every:
            say(f"{last} in {settings.place.title} is not older than {settings.every / 3600:.1f} h")
            return 0
        scratch = os.path.join(work, "making")
        shutil.rmtree(scratch, ignore_errors=True)  # of a run that was killed
        os.makedirs(scratch, mode=0o700)
        try:
            file, made = make(settings, scratch, sources, _release(state), _version(kubectl), say)
            lease.require()
            store(opened.place, settings.site, settings.keep, file, name_of(settings.site, made), say)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return 0


class _Opened:
    """The place of the settings."""

    def __init__(self, settings: Settings, environment: Mapping[str, str]) -> None:
        self._store = None if settings.place.folder else settings.store(environment)
        self.place: Place = Folder(settings.place.folder) if self._store is None else Objects(self._store)

    def close(self) -> None:
        """End its connections."""
        if self._store is not None:
            self._store.close()


class _Kubectl:
    """kubectl in CKP's namespace, by this host's own API server."""

    def __init__(self, sources: Sources) -> None:
        self._argv: List[str] = [*sources.kubectl, "--request-timeout=30s", f"--namespace={NAMESPACE}"]

    def __call__(self, *arguments: str, stdin: Optional[str] = None) -> str:
        done = run([*self._argv, *arguments], timeout=60, stdin=stdin.encode() if stdin is not None else None, what=f"kubectl {' '.join(arguments[:2])}")
        return done.stdout

    def config_map(self, name: str) -> Optional[object]:
        """A ConfigMap's data; None if it is not there. Raises AgentError."""
        text = self("get", "configmap", name, "--ignore-not-found", "--output=json")
        return json.loads(text).get("data") if text.strip() else None


def _version(kubectl: _Kubectl) -> str:
    data = kubectl.config_map(VERSION)
    return str(data.get("version", "")) if isinstance(data, dict) else ""


def _release(state: str) -> str:
    """The release that the management cluster was installed from. Raises AgentError."""
    path = os.path.join(state, STANDALONE_JOURNAL)
    try:
        return str(json.loads(read_text(path))["member"]["release"])
    except (ValueError, KeyError, TypeError):
        raise AgentError(f"{path} can't be read: it records what was installed on this host", resolution="restore it from a backup") from None
