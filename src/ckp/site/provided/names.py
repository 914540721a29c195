"""The name by which clients reach the management API: it is in the kubeconfig that people get. Hosts reach it by its address, whatever DNS says."""

from __future__ import annotations

import re

_SERVER = re.compile(rb"(?m)^(\s*server: https://)([^\s:/]+)((?::\d+)?/?)[ \t]*$")


def with_server(kubeconfig: bytes, name: str) -> bytes:
    """A kubeconfig as kubeadm writes it, by which its server is reached by this name; an empty one leaves it as it is."""
    return _SERVER.sub(rb"\g<1>" + name.encode() + rb"\g<3>", kubeconfig) if name else kubeconfig


def server_of(kubeconfig: bytes) -> str:
    """The name or address of a kubeconfig's server; empty if it has none."""
    found = _SERVER.search(kubeconfig)
    return found[2].decode(errors="replace") if found else ""


def same_user(one: bytes, other: bytes) -> bool:
    """Whether two kubeconfigs are the same but for how they reach the server."""
    return with_server(one, "server") == with_server(other, "server")
