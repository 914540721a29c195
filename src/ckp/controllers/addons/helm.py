"""What helm stores of a release, as far as an interrupted helm leaves it in a state in which no later one goes on (helm.sh/helm/v3/pkg/storage/driver)."""

from __future__ import annotations

import structlog

from ckp.api.kinds import SECRET
from ckp.clients.kube import Kube

log = structlog.get_logger()
INTERRUPTED = ("pending-install", "pending-upgrade", "pending-rollback")
"""States of a revision that a helm is working on, or was killed at; while the newest has one, helm refuses: another operation is in progress."""


async def remove_interrupted(workload: Kube, release: str, namespace: str) -> int:
    """Remove the records of a release's unfinished revisions; the caller knows that no helm is at work on it.

    What such a revision has made in the cluster stays: it carries helm's marks, and the next helm takes it over.

    Returns:
        How many were removed.

    Raises:
        KubeError: the cluster can't be reached.
    """
    removed = 0
    for state in INTERRUPTED:
        for record in await workload.list(SECRET, namespace, labels={"owner": "helm", "name": release, "status": state}):
            name = str(record["metadata"]["name"])
            removed += await workload.delete(SECRET, name, namespace)
            log.info("helm was interrupted: its unfinished revision is removed", release=release, record=name, state=state)
    return removed
