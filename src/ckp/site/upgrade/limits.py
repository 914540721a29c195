"""How long an upgrade waits."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Seconds.

    Args:
        ready: for the pods of one Deployment to be of the new version and ready, the pull of their image included.
        job: for the Job that changes the database, the pull of its image included.
        apply: for the API server to take a group of objects, while webhooks that look at them come up.
        agent: for one host's new agent to report, or to give up (its own guard goes back after three minutes).
    """

    ready: float = 420.0
    job: float = 420.0
    apply: float = 300.0
    agent: float = 900.0
