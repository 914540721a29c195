"""The members of the cluster's etcd, and leaving it: `remove-node` for a lost host, and a master's part of `reset`.

etcd is asked by its JSON gateway (POST /v3/…, part of every server), with the client certificate that kubeadm makes for its health checks.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from typing import Any, Callable, Sequence
from urllib.parse import urlsplit

from ckp.agent.journal import Journal
from ckp.agent.node.join import is_node
from ckp.hostkit.errors import AgentError, InvalidInput
from ckp.hostkit.processes import run
from ckp.standalone.api import Server, Unreachable, trust
from ckp.standalone.cluster import ADMIN, PKI, kubectl
from ckp.standalone.options import NODE_NAME, WORKER

ETCD_PORT = 2379
ETCD_MANIFEST = "/etc/kubernetes/manifests/etcd.yaml"
CLIENT_KEY = f"{PKI}/etcd/healthcheck-client.key"
ETCD_SECONDS = 10.0
SETTLE_SECONDS = 45.0
UNSETTLED = "unhealthy cluster"
CONTROL_PLANE_LABEL = "node-role.kubernetes.io/control-plane"


@dataclass(frozen=True)
class EtcdMember:
    """A member of etcd.

    Args:
        name: that of its node; "" until it has started for the first time.
        learner: it has no vote yet.
    """

    id: str
    name: str
    peers: tuple[str, ...]
    clients: tuple[str, ...]
    learner: bool = False

    def is_of(self, node: str, address: str) -> bool:
        """Whether it is the member of this node, or of this address."""
        return (bool(node) and self.name == node) or (bool(address) and any(urlsplit(url).hostname == address for url in self.peers))

    @property
    def label(self) -> str:
        """For people."""
        return self.name or ", ".join(self.peers)


class NoAnswer(AgentError):
    """etcd does not answer, or has no quorum."""

    default_reason = "EtcdUnavailable"


class Etcd:
    """etcd, by the member at one address."""

    def __init__(self, address: str = "127.0.0.1", port: int = ETCD_PORT) -> None:
        try:
            own = f"{PKI}/etcd/healthcheck-client"
            self._server = Server(address, port, trust(f"{PKI}/etcd/ca.crt", certificate=f"{own}.crt", key=f"{own}.key"))
        except OSError as error:
            raise NoAnswer(f"this host has no client certificate for etcd: {error}") from None
        self.address = address

    def _call(self, path: str, body: dict[str, Any], timeout: float) -> dict[str, Any]:
        try:
            answer = self._server.request("POST", path, body, timeout=timeout)
        except Unreachable as error:
            raise NoAnswer(
                f"etcd at {self.address} can't be used: {error}",
                details="it answers only while more than half of its members run",
                resolution="bring the other masters back, then try again",
            ) from None
        data = answer.json()
        if answer.status != 200 or not isinstance(data, dict):
            raise NoAnswer(f"etcd at {self.address} refuses {path}: {answer.message()}", resolution="bring the other masters back, then try again")
        return data

    def members(self) -> list[EtcdMember]:
        """All members, as the quorum knows them. Raises NoAnswer."""
        return parse_members(self._call("/v3/cluster/member/list", {"linearizable": True}, ETCD_SECONDS))

    def remove(self, member: EtcdMember) -> None:
        """Remove a member. Raises NoAnswer.

        etcd refuses while its members have been connected for less than five seconds (etcd, server/etcdserver/server.go, mayRemoveMember), so it is
        asked for longer than that.
        """
        deadline = time.monotonic() + SETTLE_SECONDS
        while True:
            try:
                self._call("/v3/cluster/member/remove", {"ID": member.id}, ETCD_SECONDS)
                return
            except NoAnswer as error:
                if UNSETTLED not in error.brief or time.monotonic() > deadline:
                    raise
            time.sleep(1)

    @staticmethod
    def runs(member: EtcdMember) -> bool:
        """Whether a member's server answers, with a quorum or without."""
        for url in member.clients:
            place = urlsplit(url)
            try:
                Etcd(place.hostname or "", place.port or ETCD_PORT)._server.request("GET", "/version", timeout=3.0)
            except (Unreachable, NoAnswer):
                continue
            return True
        return False


def parse_members(data: dict[str, Any]) -> list[EtcdMember]:
    """The answer of /v3/cluster/member/list, in which a uint64 is a string and what is empty is left out."""
    return [
        EtcdMember(str(item["ID"]), str(item.get("name", "")), tuple(item.get("peerURLs", ())), tuple(item.get("clientURLs", ())), bool(item.get("isLearner")))
        for item in data.get("members", [])
    ]


def quorum_lost(members: Sequence[EtcdMember], gone: Sequence[EtcdMember], running: Callable[[EtcdMember], bool]) -> str:
    """Why etcd could not write any more without the members `gone`; "" if it could."""
    voters = [member for member in members if not member.learner and member not in gone]
    alive = [member for member in voters if running(member)]
    if len(alive) > len(voters) // 2:
        return ""
    away = ", ".join(member.label for member in voters if member not in alive)
    return f"{len(alive)} of the {len(voters)} members that would be left run ({away or 'none'} can't be reached), and more than half of them must"


# -- a lost host -----------------------------------------------------------------------------------------------------------


def remove_node(journal: Journal, name: str, *, force: bool, say: Callable[[str], None]) -> None:
    """Remove a node, and its member of etcd, from the cluster of this master. What is gone already is left out.

    Raises:
        InvalidInput: this host is no master, or is that node itself; or the node is Ready (without `force`), or etcd could not write without it.
        AgentError: etcd or the API server does not answer.
    """
    require_master(journal)
    own = str(journal.notes.get(NODE_NAME, ""))
    if name == own:
        raise InvalidInput(f"{name} is this host", resolution="run `ckp-agent standalone reset` here, or `remove-node` on another master")
    etcd = Etcd()
    members = etcd.members()
    text = kubectl("get", "node", name, "-o", "json", "--ignore-not-found", "--request-timeout=20s")
    node: dict[str, Any] = json.loads(text) if text.strip() else {}
    gone = [member for member in members if member.name != own and member.is_of(name, address_of(node) or name)]
    if not node and not gone:
        say(f"nothing of {name} is in this cluster")
        return
    if is_ready(node) and not force:
        raise InvalidInput(
            f"the node {name} is Ready", resolution="run `ckp-agent standalone reset` on it; use --force if it is to go all the same, and reset it afterwards"
        )
    if gone:
        if why := quorum_lost(members, gone, etcd.runs):
            raise InvalidInput(f"etcd would have no quorum without {name}: {why}", resolution="bring the others back first")
        for member in gone:
            etcd.remove(member)
            say(f"removed the member {member.label} of etcd")
    if node:
        kubectl("delete", "node", name, "--ignore-not-found", "--timeout=60s", timeout=90, what=f"deleting the node {name}")
        say(f"deleted the node {name}")


def require_master(journal: Journal) -> None:
    """InvalidInput if this host is no master of a cluster of CKP's."""
    if journal.member is None or journal.member.settings.get("role") == WORKER or not os.path.exists(ADMIN):
        raise InvalidInput("this host is no master of a standalone cluster", resolution="run this on one that is (ckp-agent standalone status)")


def address_of(node: dict[str, Any]) -> str:
    """The InternalIP of a Node; "" if it has none."""
    addresses = node.get("status", {}).get("addresses", [])
    return next((str(item["address"]) for item in addresses if item["type"] == "InternalIP"), "")


def is_ready(node: dict[str, Any]) -> bool:
    """Whether a Node's condition Ready is True."""
    return any(item["type"] == "Ready" and item["status"] == "True" for item in node.get("status", {}).get("conditions", []))


# -- this host -------------------------------------------------------------------------------------------------------------


def other_masters(own_address: str) -> list[str]:
    """The addresses of the cluster's other masters. Raises ProcessFailed."""
    listed = json.loads(kubectl("get", "nodes", "-l", CONTROL_PLANE_LABEL, "-o", "json", "--request-timeout=20s"))
    return [address for item in listed["items"] if (address := address_of(item)) not in ("", own_address)]


def drop_stale(node: str, address: str) -> str:
    """Before this host joins: remove the member that an earlier join of it has left in etcd; returns a note. Raises AgentError."""
    failure: AgentError | None = None
    masters = other_masters(address)
    for master in masters:
        try:
            etcd = Etcd(master)
            stale = [member for member in etcd.members() if member.is_of(node, address)]
            for member in stale:
                etcd.remove(member)
        except AgentError as error:
            failure = error
            continue
        return f"removed {len(stale)} member of etcd that an earlier join had left" if stale else ""
    raise failure or AgentError("no other master is known to the API server", resolution="kubectl get nodes, on a master")


def leave(journal: Journal, own_address: str, say: Callable[[str], None]) -> list[str]:
    """Take this master out of a cluster that goes on without it; nothing to do if it is the only one. Never fails: returns what stays, in sentences."""
    node = str(journal.notes.get(NODE_NAME, ""))
    if journal.member is not None and journal.member.settings.get("role") == WORKER and is_node():
        return [f"the node {node} of its cluster: on a master, run `ckp-agent standalone remove-node {node}`"]  # a kubelet may not delete its own
    if journal.member is None or not os.path.exists(CLIENT_KEY):
        return []  # before kubeadm has made that key, nothing of this host is in etcd
    stays = [
        f"if its cluster has other masters, {node} is still a node and a member of etcd there: on one of them, run `ckp-agent standalone remove-node {node}`"
    ]
    try:
        members = _members_known(own_address)
    except AgentError as error:
        if not journal.member.settings.get("virtual_address"):
            return []
        say(error.sentence())
        return stays
    own = [member for member in members if member.is_of(node, own_address)]
    others = [member for member in members if member not in own]
    if not others:
        return []
    run(["systemctl", "stop", "kubelet"], timeout=120, check=False)  # it would write its Node again; the control plane's containers go on
    left = _delete_own_node(node, own_address)
    if why := quorum_lost(members, own, Etcd.runs):
        say(f"the cluster that stays can't write until its members are back: {why}")
    for address in [*(url for member in others for url in _hosts(member)), "127.0.0.1"]:
        try:
            etcd = Etcd(address)
            for member in own:
                etcd.remove(member)
            say("left etcd")
            return left
        except AgentError:
            continue
    return stays


def _delete_own_node(node: str, own_address: str) -> list[str]:
    """Delete this host's Node, by its own API server, or else by another's; returns what stays."""
    why = ""
    for server in ([f"--server=https://{own_address}:6443"], []):
        try:
            kubectl("delete", "node", node, *server, "--ignore-not-found", "--timeout=30s", "--request-timeout=30s", timeout=60)
            return []
        except AgentError as error:
            why = error.brief
    return [f"the node {node} of its cluster: on another master, run `ckp-agent standalone remove-node {node}` ({why})"]


def _members_known(own_address: str) -> list[EtcdMember]:
    """The members of etcd, by that on this host, or else by another one. Raises AgentError."""
    try:
        return Etcd().members()
    except NoAnswer as error:
        own = error
    try:
        masters = other_masters(own_address)
    except AgentError:
        raise own from None
    for master in masters:
        try:
            return Etcd(master).members()
        except NoAnswer:
            continue
    raise own


def _hosts(member: EtcdMember) -> list[str]:
    return [str(urlsplit(url).hostname) for url in member.clients if not member.learner]
