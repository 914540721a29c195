"""The backup that an upgrade makes before it changes anything, where its cluster has a place for backups: Kubernetes does not go back, a backup is the way.

It is asked for as a person does it, by an annotation of the control plane, and made by that one's controller. What was asked for is written into the
upgrade's status first, so that a pass that is cut off does not ask twice.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from ckp.api.kinds import MANAGED_CONTROL_PLANE
from ckp.api.names import BACKUP_ANNOTATION
from ckp.api.objects.base import time_of
from ckp.api.objects.cluster_upgrade import ClusterUpgrade
from ckp.api.objects.control_plane import ManagedControlPlane
from ckp.clients.kube import Kube
from ckp.kits.clock import human_duration, rfc3339
from ckp.rules.cluster_backups import begun_at

NEW_ENOUGH = timedelta(hours=1)
"""A backup that was begun longer ago is not the way back that one wants: another is made."""
AT_MOST = timedelta(hours=1)
"""How long one is waited for; then it is a finding, and a person decides."""


def is_fresh(plane: ManagedControlPlane, now: datetime) -> bool:
    """Whether nothing has to be made: there is a new one, or the cluster has no place for backups."""
    begun = [moment for entry in plane.status.backup.kept if (moment := begun_at(entry.id)) is not None]
    return not plane.spec.backup.asked or (bool(begun) and now - max(begun) <= NEW_ENOUGH)


def missing(upgrade: ClusterUpgrade, plane: ManagedControlPlane, now: datetime) -> str:
    """Why there is no new backup although one was asked for; "" while it is being made, was not asked for yet, or is there."""
    asked, status = upgrade.status.backup_requested_at, plane.status.backup
    begun = time_of(asked)
    if is_fresh(plane, now):
        return ""
    if upgrade.spec.dry_run or begun is None:
        return f"the last backup failed: {status.message}" if upgrade.spec.dry_run and status.failures else ""
    if status.handled == asked and not status.running:
        return f"the backup that this upgrade asked for failed: {status.message or 'it left none'}"
    if now - begun > AT_MOST:
        return f"the backup that this upgrade asked for at {asked} was not made within {human_duration(AT_MOST.total_seconds())}"
    return ""


async def request(kube: Kube, plane: ManagedControlPlane, asked: str) -> None:
    """Ask for the one that is noted. Repeating it is harmless; a request of a person that came later is left.

    Raises:
        KubeError: the management cluster refuses, or can't be reached.
    """
    before = plane.metadata.annotations.get(BACKUP_ANNOTATION, "")
    if plane.status.backup.handled != asked and before < asked:
        await kube.merge(MANAGED_CONTROL_PLANE, plane.name, plane.namespace, {"metadata": {"annotations": {BACKUP_ANNOTATION: asked}}})


def waiting(asked: str) -> str:
    """What is waited for, for people."""
    begun = time_of(asked)
    until = rfc3339(begun + AT_MOST) if begun else "soon"
    return f"a backup is made before anything is changed; it is waited for until {until}"
