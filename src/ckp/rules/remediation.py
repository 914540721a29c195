"""When unhealthy machines are replaced. Pure."""

from __future__ import annotations


def max_unhealthy(workers: int) -> str:
    """How many workers may be unhealthy for them to be replaced. If more than half are so at once it is the network or the control plane,
    and replacing hosts would make it worse. Cluster API rounds down, and half of one would be none.
    """
    return "50%" if workers > 1 else "100%"
