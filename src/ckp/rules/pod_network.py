"""How many nodes a cluster's pod network has room for. Pure."""

from __future__ import annotations

from ipaddress import IPv4Network

NODE_MASK = 24
"""kube-controller-manager gives each node a /24 of the pod network (--node-cidr-mask-size)."""


def room(pods: IPv4Network) -> int:
    """How many nodes a pod network has room for."""
    return 2 ** (NODE_MASK - pods.prefixlen) if pods.prefixlen <= NODE_MASK else 0
