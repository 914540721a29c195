"""The hosts of a management cluster: those that carry it, those that are to join, and those that are gone.

The host that is acted on has the cluster already. The others join it one after the other, since etcd takes one new member at a time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ckp.kits.errors import CkpError, Conflict
from ckp.kits.retry import wait_until
from ckp.rules.conditions import is_true
from ckp.site.inventory import SiteHost
from ckp.site.management import kubectl

CONTROL_PLANE_LABEL = "node-role.kubernetes.io/control-plane"
TOKEN_FILE = "/run/ckp-join-token"
"""In memory only, and removed once the host has joined."""
TOKEN_LIFETIME = "1h"
JOIN_SECONDS = 1800
AWAY_SECONDS = 300
"""How long a node may count as Ready whose kubelet is gone: Kubernetes' own controller takes some fifty seconds, once it leads."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Member:
    """A host of the management cluster, as its API has it.

    Args:
        ready: its kubelet says so now.
    """

    name: str
    address: str
    ready: bool


def members(host: SiteHost) -> list[Member]:
    """The nodes that carry the control plane, by name.

    Raises:
        CkpError: the management cluster does not answer.
    """
    items = json.loads(kubectl(host, "get", "nodes", f"--selector={CONTROL_PLANE_LABEL}", "--output=json"))["items"]
    return sorted((_member(item) for item in items), key=lambda each: each.name)


def _member(node: Mapping[str, Any]) -> Member:
    addresses = (node.get("status") or {}).get("addresses") or ()
    address = next((str(each["address"]) for each in addresses if each["type"] == "InternalIP"), "")
    return Member(str(node["metadata"]["name"]), address, is_true(node, "Ready"))


def wait_until_away(host: SiteHost, names: Collection[str], say: Say) -> None:
    """Wait until the cluster knows that these members are away: restored data says of them what was so once.

    Raises:
        TimedOut: one is still Ready: its kubelet runs somewhere.
        CkpError: the management cluster does not answer.
    """
    if not names:
        return
    say(f"waiting until the cluster knows that {', '.join(sorted(names))} of before are away")

    def ready() -> list[str]:
        return [member.name for member in members(host) if member.ready and member.name in names]

    what = "no lost host counts as Ready"
    wait_until(lambda: not ready(), what=what, timeout=AWAY_SECONDS, every=5, reason=lambda: f"Ready: {', '.join(ready())}: does the old machine still run?")


def gone(found: Sequence[Member], masters: Sequence[SiteHost], joined: Collection[str]) -> list[Member]:
    """Members whose host is no longer one of the site's, or has been reinstalled since it joined.

    Args:
        masters: the site's hosts.
        joined: names of those that have the cluster, or have begun to join it.

    Raises:
        Conflict: one of them is Ready: its host runs, and its part in the cluster is not taken from it.
    """
    names = {host.name for host in masters}
    lost = [member for member in found if member.name not in names or member.name not in joined]
    if running := [member for member in lost if member.ready]:
        raise Conflict(
            f"the management cluster has {', '.join(member.name for member in running)}, which the site's file does not name, and which runs",
            resolution="name it in `management.hosts`; or take it out first: `ckp-agent standalone reset` on that host, or power it off",
        )
    return lost


def remove_gone(host: SiteHost, lost: Sequence[Member], say: Say) -> None:
    """Take members out of the cluster whose hosts are gone: out of etcd first, so that the others don't wait for them.

    Raises:
        CkpError: etcd would lose its quorum, or does not answer.
    """
    for member in lost:
        host.run(["ckp-agent", "standalone", "remove-node", member.name], timeout=300, what=f"removing {member.name} from the management cluster")
        say(f"{member.name} ({member.address or 'no address'}) is gone, and no longer a member of the management cluster")


def join(member: SiteHost, host: SiteHost, bundle: Sequence[str], say: Say) -> None:
    """Let a host join the management cluster, or go on with it.

    Args:
        member: the host that has the cluster, and makes the token.
        bundle: options that name the bundle and how it is reached.

    Raises:
        CkpError: a step failed; it is named in the lines before.
    """
    made = member.run(["ckp-agent", "standalone", "token", "create", "--control-plane", "--ttl", TOKEN_LIFETIME], timeout=180, what="making a join token")
    host.push(made.stdout.strip().encode(), TOKEN_FILE, mode=0o600)
    try:
        argv = ["ckp-agent", "standalone", "join", "--control-plane", "--token-file", TOKEN_FILE, *bundle]
        argv += ["--advertise-address", host.address, "--node-name", host.name]
        code = host.stream(argv, timeout=JOIN_SECONDS, on_line=say)
    finally:
        host.run(["rm", "-f", TOKEN_FILE], timeout=30, check=False)
    if code != 0:
        raise CkpError(
            f"{host.name} did not join the management cluster: exit code {code}",
            details="its output is above",
            resolution="fix what it names and run the same command again: it continues with that step",
        )
