"""Which of the management hosts' addresses a Service gets, where a site has no load balancer. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def choose(addresses: Sequence[str], *, asked: str, has: str, taken: Collection[str]) -> str:
    """The address that a Service gets; "" if it gets none now.

    Args:
        addresses: those that may be given.
        asked: the one that it asks for; empty: any.
        has: the one that it has; it keeps it, if it may have it.
        taken: those that other Services have, or ask for: these wait for exactly that one.
    """
    free = [address for address in addresses if address not in taken]
    if asked:
        return asked if asked in free else ""
    return has if has in free else next(iter(free), "")
