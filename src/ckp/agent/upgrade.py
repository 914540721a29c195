"""The agent's upgrade of itself. A guard process installs the new package, and the old one again if the new agent does not report in time.

    agent (old)   pull both packages ▶ verify ▶ write upgrade.json, copy the tool aside ▶ start ckp-agent-upgrade.service
    guard         install ▶ restart the agent ▶ wait for `confirmed` ▶ done, or install the old package again and record why
    agent (new)   connected, and has its desired state from the hub: write `confirmed`

The guard runs from a copy of the old tool, in a unit that also starts at boot while upgrade.json exists: after a kill of any of the three, or a
power cut, it resumes where it stopped.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from dataclasses import asdict, dataclass, replace
from typing import Any, Callable, Optional

from ckp.agent.messages import AgentTarget
from ckp.agent.system.installers.base import Installer
from ckp.agent.system.installers.detect import of_host
from ckp.hostkit.errors import AgentError, VerificationFailed
from ckp.hostkit.files import atomic_write, read_text, remove, sync_file
from ckp.hostkit.logs import log
from ckp.hostkit.processes import run
from ckp.verify.packagefile import sha256_of
from ckp.verify.packages import verify_package

NAME = "ckp-agent"
UNIT = "ckp-agent-upgrade.service"
CONFIRM_SECONDS = 180.0
POLL_SECONDS = 0.5
TOOL = "/usr/bin/ckp-agent"


@dataclass(frozen=True)
class Record:
    """The guard's work. `state` is install, watch (wait for the new agent), or back (return to the old one)."""

    old: str
    new: str
    package: str
    package_sha256: str
    fallback: str
    fallback_sha256: str
    seconds: float = CONFIRM_SECONDS
    state: str = "install"
    reason: str = ""


class Upgrades:
    """Upgrades of the agent's own package."""

    def __init__(self, state_dir: str) -> None:
        self.folder = os.path.join(state_dir, "agent")
        self.record_path = os.path.join(self.folder, "upgrade.json")
        self.confirmed_path = os.path.join(self.folder, "confirmed")
        self.failed_path = os.path.join(self.folder, "failed.json")
        self.guard = os.path.join(self.folder, "guard")
        self._confirmed = ""

    # -- what the agent does ----------------------------------------------------------------------------------------------

    def begin(self, target: AgentTarget, own: str, keyring: str, pull: Callable[[str, str, str], None], *, installer: Optional[Installer] = None) -> str:
        """Everything up to the hand-over to the guard. The host is not changed before both packages are on its disk and verified.

        Args:
            own: the running version.
            pull: pulls an image (by digest) into a folder, with a CA; its arguments in this order.

        Raises:
            AgentError: a package can't be pulled or verified, or this version was tried before and rolled back (permanent).
        """
        failed = self._load(self.failed_path)
        if failed.get("version") == target.version:
            raise AgentError(
                f"the agent {target.version} was installed before and rolled back: {failed.get('reason', '')}",
                resolution="fix the cause and request this version again, or roll out another one (ckp host upgrade-agent)",
                reason="AgentUpgradeReturned",
                permanent=True,
            )
        ending = ".deb" if (installer or of_host()).name == "dpkg" else ".rpm"
        package = self._fetch(target.image, target.version, ending, keyring, pull, target.registry_ca)
        fallback = self._kept(own, ending, keyring)
        if not fallback and target.fallback_image:
            fallback = self._fetch(target.fallback_image, own, ending, keyring, pull, target.registry_ca)
        if not fallback:
            raise AgentError(
                f"the agent {own} is not upgraded: there is no package of it to return to if the new version fails",
                resolution="push the running version to the registry as well (ckp dist publish), or upgrade this host by hand",
                reason="NoWayBack",
                permanent=True,
            )
        record = Record(own, target.version, package, sha256_of(package), fallback, sha256_of(fallback), target.confirm_seconds or CONFIRM_SECONDS)
        remove(self.confirmed_path)
        shutil.copyfile(TOOL, self.guard + ".new")
        os.chmod(self.guard + ".new", 0o700)
        os.replace(self.guard + ".new", self.guard)
        for path in (self.guard, package, fallback):
            sync_file(path)  # the record is synced when it is written: what it names must not be missing after a power cut
        atomic_write(self.record_path, json.dumps(asdict(record), indent=1), mode=0o600)
        run(["systemctl", "--no-block", "restart", UNIT], timeout=60, what="starting the guard of the upgrade")
        return f"{own} is being replaced by {target.version}; the guard returns to {own} if the new version does not report within {record.seconds:.0f} s"

    def forget_failure(self) -> None:
        """The request for a version that was rolled back is gone: if it is requested again, it is tried again."""
        remove(self.failed_path)

    def confirm(self, own: str) -> None:
        """This version is connected and has its desired state: the guard can finish."""
        if self._confirmed != own and os.path.exists(self.record_path):
            atomic_write(self.confirmed_path, own, mode=0o600)
        self._confirmed = own

    def _fetch(self, image: str, version: str, ending: str, keyring: str, pull: Callable[[str, str, str], None], ca: str) -> str:
        match = re.fullmatch(r"[A-Za-z0-9._:/\[\]-]+@sha256:([0-9a-f]{64})", image)
        if match is None:
            raise AgentError(f"the agent's image {image!r} is not named by digest", reason="InvalidInput", permanent=True)
        folder = os.path.join(self.folder, match.group(1)[:20])
        path = os.path.join(folder, NAME + ending)
        if not os.path.exists(path):
            pull(image, folder, ca)
        if not os.path.exists(path):
            raise AgentError(f"{image} does not hold {NAME}{ending}, which this host needs", reason="AgentPackageMissing", permanent=True)
        try:
            verify_package(path, keyring, name=NAME, version=version, architecture="amd64")
        except VerificationFailed:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return path

    def _kept(self, version: str, ending: str, keyring: str) -> str:
        """The package of this version that an earlier upgrade left here; "" if there is none that verifies."""
        for name in sorted(os.listdir(self.folder)) if os.path.isdir(self.folder) else []:
            path = os.path.join(self.folder, name, NAME + ending)
            try:
                if os.path.isfile(path) and verify_package(path, keyring, name=NAME).version == version:
                    return path
            except VerificationFailed:
                continue
        return ""

    # -- what the guard does ----------------------------------------------------------------------------------------------

    def watch(self, install: Callable[[str], None], restart: Callable[[], None], *, clock: Callable[[], float] = time.monotonic) -> str:
        """Complete an upgrade or take it back; returns the outcome. Resumable: may be killed anywhere and started again.

        Raises:
            AgentError: the old package can't be installed again; the unit retries.
        """
        data: Any = self._load(self.record_path)
        if not data:
            return "there is no upgrade to complete"
        record = Record(**data)
        if record.state == "install":
            try:
                self._install(record.package, record.package_sha256, install)
            except AgentError as error:
                record = self._save(replace(record, state="back", reason=f"it could not be installed: {error.sentence()}"))
            else:
                record = self._save(replace(record, state="watch"))
        if record.state == "watch":
            if read_text(self.confirmed_path).strip() != record.new:
                restart()  # also when the guard resumes: it may have been killed before its first restart
            log(f"waiting {record.seconds:.0f} s for the agent {record.new} to report")
            deadline = clock() + record.seconds
            while read_text(self.confirmed_path).strip() != record.new and clock() < deadline:
                time.sleep(POLL_SECONDS)
            if read_text(self.confirmed_path).strip() == record.new:
                return self._end(record, f"the agent {record.new} reports")
            record = self._save(replace(record, state="back", reason=f"it did not report to the hub within {record.seconds:.0f} s"))
        log(f"returning to {record.old}: {record.reason}")
        self._install(record.fallback, record.fallback_sha256, install)
        atomic_write(self.failed_path, json.dumps({"version": record.new, "reason": record.reason}), mode=0o600)
        restart()
        return self._end(record, f"returned to {record.old}: {record.reason}")

    def _install(self, path: str, digest: str, install: Callable[[str], None]) -> None:
        # It was verified when it was pulled, and the digest proves that it is still that file. (The keyring is part of the package that is being replaced.)
        if sha256_of(path) != digest:
            raise AgentError(f"{path} has changed since it was verified", reason="AgentPackageChanged", permanent=True)
        install(path)

    def _save(self, record: Record) -> Record:
        atomic_write(self.record_path, json.dumps(asdict(record), indent=1), mode=0o600)
        return record

    def _end(self, record: Record, how: str) -> str:
        """Keep only the running version's package, which the next upgrade can return to."""
        runs = record.package if how.endswith("reports") else record.fallback
        for name in os.listdir(self.folder):
            path = os.path.join(self.folder, name)
            if os.path.isdir(path) and not runs.startswith(path + "/"):
                shutil.rmtree(path, ignore_errors=True)
        if runs == record.package:
            remove(self.failed_path)
        remove(self.record_path)
        log(how)
        return how

    @staticmethod
    def _load(path: str) -> dict[str, object]:
        try:
            data = json.loads(read_text(path, "{}"))
        except ValueError:
            return {}
        return data if isinstance(data, dict) else {}


def own_version(default: str) -> str:
    """The installed package's version, if this process runs the installed tool; else `default`."""
    import sys

    if os.path.realpath(sys.argv[0]) != TOOL:
        return default
    try:
        return of_host().installed([NAME]).get(NAME, default)
    except AgentError:
        return default


def install_file(path: str) -> None:
    """Install this verified package over any version of it, older or newer. The host's configuration files stay. Raises AgentError."""
    of_host().install_file(path)


def restart_agent() -> None:
    """Restart the agent, so that the installed version runs. The package's own script does so too; a second restart is harmless."""
    run(["systemctl", "daemon-reload"], timeout=60, check=False)
    run(["systemctl", "--no-block", "restart", "ckp-agent.service"], timeout=60, check=False)
