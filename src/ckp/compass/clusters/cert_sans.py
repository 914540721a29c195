"""Further names and addresses in the certificate of a cluster's API server (subject alternative names). Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from ckp.kits.errors import InvalidInput
from ckp.rules.endpoints import is_ipv4, is_name

FIELD = "certSANs"
MOST = 100
"""So many, each up to 253 characters: the certificate stays below what a TLS handshake carries without trouble."""


def check(names: Sequence[str], *, present: Collection[str]) -> None:
    """Pass if a certificate can have them, and needs each of them.

    Args:
        present: what the certificate has without them.

    Raises:
        InvalidInput: names the first that is wrong, and what to write.
    """
    if len(names) > MOST:
        raise InvalidInput(f"{FIELD}: {len(names)} names are too many, a certificate has {MOST} at most", resolution="use a wildcard such as *.example.org")
    seen: set[str] = set()
    for name in names:
        if not is_ipv4(name) and not is_name(name):
            raise InvalidInput(f"{FIELD}: {name!r} is neither a DNS name nor an IPv4 address", resolution=_hint(name))
        if name in seen:
            raise InvalidInput(f"{FIELD}: {name} is given twice")
        if name in present:
            raise InvalidInput(f"{FIELD}: the certificate has {name} anyway", resolution="leave it out")
        seen.add(name)


def _hint(name: str) -> str:
    bare = name.lower().rstrip(".").partition("://")[2].partition("/")[0] or name.lower().rstrip(".")
    host, colon, port = bare.rpartition(":")
    bare = host if colon and port.isdigit() and ":" not in host else bare
    if bare != name and (is_ipv4(bare) or is_name(bare)):
        return f"write {bare}"
    if ":" in name:
        return "IPv6 is not supported yet; use a DNS name or an IPv4 address"
    return "write it like api.demo.example, *.demo.example or 203.0.113.7"
