"""The upgrade of a site, as the list of its steps; and the way back.

Killed at any moment, the same command goes on: the record (ckp.site.upgrade.record) says from which phase, and each step may be done again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ckp import __version__
from ckp.distribution.management import as_list
from ckp.distribution.release import Deliverable
from ckp.kits.errors import CkpError
from ckp.kits.files import atomic_write
from ckp.kits.steps import Steps
from ckp.rules.schemas import HEAD
from ckp.site import management, members, releases
from ckp.site.install import APPLIED, Site, applied_digest, forget_applied
from ckp.site.inventory import SiteHost, acted_on_first
from ckp.site.plan.rules import GROUPS
from ckp.site.publish import publish_all
from ckp.site.upgrade import agents, layer
from ckp.site.upgrade import record as records
from ckp.site.upgrade.agents import Outcome
from ckp.site.upgrade.limits import Limits
from ckp.site.upgrade.record import Phase, Record

FILLING = "Filling the registry: images and host bundles of the new version"
KEEPING = "Keeping the management layer as it is, for the way back"
MIGRATING = "Bringing Compass' database and the kinds of objects up to date"
OTHERS = "Bringing cert-manager and Cluster API up to date"
ROLLING = "Rolling controllers, hub and Compass, one after the other"
COMMITTING = "Recording the new version"
HOST_TOOL = "Upgrading the host tool on the management hosts"
AGENTS = "Upgrading the agents of hosts, in stages"
BACK = "Putting the version before back"
LAYER_TITLES = (MIGRATING, OTHERS, ROLLING)


def titles(phase: Phase) -> tuple[str, ...]:
    """The steps of `Upgrade.run`, without those of the backup, as it begins or goes on in a phase."""
    if phase is Phase.BACK:
        return (BACK,)
    keeping = (KEEPING,) if phase in (Phase.BACKUP, Phase.FILL) else ()
    layer_titles = LAYER_TITLES if phase is not Phase.AGENTS else ()
    return (FILLING, *keeping, *layer_titles, COMMITTING, HOST_TOOL, AGENTS)


class TakenBack(CkpError):
    """The upgrade failed, and the site is as it was."""


@dataclass
class Upgrade:
    """One upgrade.

    Args:
        site: with the release that the management cluster is of, as this version makes it.
        others: further releases that it offers.
        backup: the file that the backup gets; "" if there is to be none.
        take_backup: makes it, in steps of its own; None: there is to be none.
        at_once: hosts of a stage, from the second on.
    """

    site: Site
    others: Sequence[Deliverable]
    steps: Steps
    backup: str
    take_backup: Callable[[], None] | None
    at_once: int
    limits: Limits = field(default_factory=Limits)

    def run(self, before: str, schema: str) -> Outcome:
        """Do it, or go on with it.

        Args:
            before: the version that the site is of.
            schema: of Compass' database as it is. Both are asked for only if no upgrade was begun.

        Raises:
            TakenBack: the new version did not become ready; the one before is there again, and runs.
            CkpError: something else failed. The same again goes on.
        """
        host = self.site.management
        record = records.read(host) or Record(before=before, to=__version__, phase=Phase.BACKUP, schema_before=schema)
        if record.phase is Phase.BACK:
            raise go_back(host, self.site.inventory.state, record, self.steps, self.limits)
        if record.phase is Phase.BACKUP:
            record = self._back_up(record)
        groups = self._fill()
        if record.phase is Phase.FILL:
            record = self._keep(record, groups)
        if record.phase is Phase.LAYER:
            self._bring_layer(record, groups)
        self._commit(groups)
        return self._bring_hosts()

    def _back_up(self, record: Record) -> Record:
        host = self.site.management
        record = records.write(host, record.now(Phase.BACKUP, backup=self.backup))  # first: so a run that goes on knows whose file that is
        if self.take_backup is not None:
            self.take_backup()
        return records.write(host, record.now(Phase.FILL))

    def _fill(self) -> dict[str, list[dict[str, Any]]]:
        """The new layer's groups, whose images are in the registry then. What runs goes on: its images stay there."""
        with self.steps.step(FILLING):
            published, *more = publish_all(self.site.dist, self.site.inventory, self.steps.say, self.others)
            names = [dist.release.name for dist in (self.site.dist, *self.others)]
            withdrawn = releases.withdrawing(self.site.management, names)
            return {name: render() for name, render in self.site.groups(published, more, withdrawn).items()}

    def _keep(self, record: Record, groups: layer.Groups) -> Record:
        host = self.site.management
        with self.steps.step(KEEPING):
            made = layer.keep(host, groups)
            for name in groups:
                forget_applied(self.site.inventory.state, name)
            self.steps.say(f"{sum(map(len, groups.values()))} objects, of which {len(made)} are new")
            return records.write(host, record.now(Phase.LAYER, made=made))

    def _bring_layer(self, record: Record, groups: layer.Groups) -> None:
        host, say = self.site.management, self.steps.say
        try:
            with self.steps.step(MIGRATING):
                layer.migrate(host, groups, self.limits, say)
            with self.steps.step(OTHERS):
                layer.bring_others(host, groups, self.limits, say)
            with self.steps.step(ROLLING):
                layer.roll(host, groups, self.limits, say)
        except CkpError as error:
            record = records.write(host, record.now(Phase.BACK, failure=_one_line(error)))
            raise go_back(host, self.site.inventory.state, record, self.steps, self.limits, error) from error
        records.write(host, record.now(Phase.AGENTS))  # from here on there is no way back but the backup

    def _commit(self, groups: layer.Groups) -> None:
        host, state = self.site.management, self.site.inventory.state
        with self.steps.step(COMMITTING):
            layer.commit(host, groups, self.steps.say)
            uid = management.kubectl(host, "get", "namespace", "kube-system", "-o", "jsonpath={.metadata.uid}")
            for name, objects in groups.items():
                atomic_write(state / APPLIED / name, applied_digest(uid, as_list(list(objects))))
            self.steps.say(f"the site is of CKP {__version__}; Compass' database has schema {HEAD}")

    def _bring_hosts(self) -> Outcome:
        host, say = self.site.management, self.steps.say
        with self.steps.step(HOST_TOOL):
            for each in acted_on_first(self.site.inventory.hosts):
                self.site.install_agent(each)
                require_members_ready(self.site)
                say(f"{each.name}: host tool {self._agent}")
        with self.steps.step(AGENTS):
            outcome = agents.upgrade(host, self._agent, self.at_once, self.limits, say)
            records.forget(host)
            return outcome

    @property
    def _agent(self) -> str:
        return self.site.dist.agent(self.site.inventory.os.format).version


def require_members_ready(site: Site) -> None:
    """Stop where a management host is not Ready after its host tool was changed, before the next one is touched.

    Raises:
        CkpError: it is so.
    """
    if silent := [member.name for member in members.members(site.management) if not member.ready]:
        raise CkpError(
            f"{', '.join(silent)} is not Ready, and the host tool of no further host was changed",
            resolution="see `ckp site status`; then run the same command again: it goes on",
        )


def go_back(host: SiteHost, state: Path, record: Record, steps: Steps, limits: Limits, cause: CkpError | None = None) -> TakenBack:
    """Put the version before back; returns the error that says so.

    Args:
        host: by which the management cluster is reached.
        state: what this machine keeps of the site.

    Raises:
        CkpError: it could not be put back yet. The same command goes on with it.
    """
    with steps.step(BACK):
        for name in GROUPS:
            forget_applied(state, name)
        try:
            layer.go_back(host, record, GROUPS, limits, steps.say)
        except CkpError as error:
            raise CkpError(
                f"the upgrade failed, and {record.before} is not back yet: {error.brief}",
                details=f"why it failed: {record.failure}\n{error.details}",
                resolution="run `ckp site upgrade` again: it goes on with the way back"
                + (f"; or restore the site from {record.backup}" if record.backup else ""),
            ) from error
        records.forget(host)
    return TakenBack(
        f"the site was not upgraded, and is of CKP {record.before} as before: {record.failure}",
        details=cause.details if cause is not None else "",
        resolution="see what the details name; then run the same command again",
    )


def give_up(host: SiteHost, state: Path, steps: Steps, limits: Limits) -> str:
    """Take an unfinished upgrade back because a person says so; returns the version that the site is of again.

    Args: as of `go_back`.

    Raises:
        CkpError: there is none, there is no way back any more, or it could not be put back yet.
    """
    record = records.read(host)
    if record is None:
        raise CkpError("no upgrade of the site is unfinished", resolution="a finished one is not taken back; restore the site from its backup")
    if record.to != __version__:
        raise CkpError(f"the upgrade was begun by CKP {record.to}, and this is {__version__}; nothing was changed", resolution=f"use CKP {record.to}")
    if record.phase is Phase.AGENTS:
        raise CkpError(
            f"the management layer is of {record.to} already, and there is no way back to {record.before}",
            resolution="finish the upgrade: `ckp site upgrade`; or restore the site from the backup that was made first",
        )
    if record.phase in (Phase.BACKUP, Phase.FILL):
        records.forget(host)
        return record.before
    record = records.write(host, record.now(Phase.BACK, failure=record.failure or "a person asked for it (--back)"))
    go_back(host, state, record, steps, limits)
    return record.before


def _one_line(error: CkpError) -> str:
    return error.brief if not error.details else f"{error.brief}: {error.details.strip().splitlines()[-1].strip()}"[:1000]
