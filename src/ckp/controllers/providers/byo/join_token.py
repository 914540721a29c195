"""Join tokens that are gone while a host still needs them.

Cluster API's kubeadm bootstrap provider v1.7.7 prolongs the token of a machine that has not joined every five minutes, but never makes a missing one
again (refreshBootstrapTokenIfNeeded). After an outage of its lifetime, a quarter of an hour, the host has a token that nothing accepts any more.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import yaml

from ckp.api.host_protocol import Membership
from ckp.api.kinds import NODE, SECRET
from ckp.api.objects.byo_machine import ByoMachine
from ckp.clients.kube import Kube, KubeError
from ckp.controllers.providers.byo.bootstrap import JOIN_CONFIG
from ckp.kits.clock import Clock, rfc3339

NAMESPACE = "kube-system"
LIFETIME = timedelta(minutes=15)
"""Of a token, as the bootstrap provider makes it; from then on it prolongs this one as well."""
INTERVAL = timedelta(seconds=30)
"""Between two looks at the token of one waiting machine."""
GROUPS = "system:bootstrappers:kubeadm:default-node-token"
_TOKEN = re.compile(r"([a-z0-9]{6})\.([a-z0-9]{16})")


@dataclass
class JoinTokens:
    """Renews the tokens of machines that wait to join."""

    clock: Clock
    _looked: dict[str, datetime] = field(default_factory=dict)
    """By the uid of a ByoMachine that waits: when it was looked at last. The first look is one interval late: the token has just been made."""

    def is_due(self, machine: ByoMachine, membership: Membership, machine_has_node: bool) -> bool:
        """Whether the token of this machine is to be looked at now. Never that of a machine that has joined, or is going."""
        if machine.status.ready or machine.deleting or machine_has_node or not join_token(membership):
            self._looked.pop(machine.uid, None)
            return False
        now = self.clock.now()
        if now - self._looked.setdefault(machine.uid, now) < INTERVAL:
            return False
        self._looked[machine.uid] = now
        return True

    async def restore(self, workload: Kube, membership: Membership) -> bool:
        """Make the token of the host's join data again, as it was, if it is gone and the host's node is not there; returns whether that was so.

        Raises:
            KubeError: the workload cluster can't be reached.
        """
        found = _TOKEN.fullmatch(join_token(membership))
        if found is None:
            return False
        name = f"bootstrap-token-{found[1]}"
        if await workload.get(SECRET, name, NAMESPACE) is not None:
            return False
        node = await workload.get(NODE, membership.node_name)
        if node is not None and (node.get("spec") or {}).get("providerID") == membership.provider_id:
            return False  # it has joined, and only its host's report has not come
        data = {
            "token-id": found[1],
            "token-secret": found[2],
            "expiration": rfc3339(self.clock.now() + LIFETIME),
            "usage-bootstrap-signing": "true",
            "usage-bootstrap-authentication": "true",
            "auth-extra-groups": GROUPS,
            "description": "made again by CKP for a host that has not joined",
        }
        encoded = {key: base64.b64encode(value.encode()).decode() for key, value in data.items()}
        meta = {"name": name, "namespace": NAMESPACE}
        try:
            await workload.create({"apiVersion": "v1", "kind": "Secret", "metadata": meta, "type": "bootstrap.kubernetes.io/token", "data": encoded})
        except KubeError as error:
            if error.reason != "AlreadyExists":
                raise
            return False
        return True


def join_token(membership: Membership) -> str:
    """The token in a host's join configuration; "" if it joins otherwise, or has no join data yet."""
    content = next((file.content for file in membership.files if file.path == JOIN_CONFIG), "")
    try:
        documents: list[Any] = list(yaml.safe_load_all(content))
    except yaml.YAMLError:
        return ""
    for document in documents:
        if isinstance(document, dict) and document.get("kind") == "JoinConfiguration":
            discovery = document.get("discovery") or {}
            return str((discovery.get("bootstrapToken") or {}).get("token") or "")
    return ""
