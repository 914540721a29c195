"""Clients of workload clusters, by the kubeconfigs that the control plane provider writes (contract: `<c>-kubeconfig`)."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from ckp.api.kinds import NODE, SECRET
from ckp.api.names import PROVIDER_ID_PREFIX
from ckp.clients.kube import Kube, KubeError
from ckp.kits.clock import Clock, SystemClock

SECONDS = 5.0
"""Timeout of one request to a cluster's API server: one that can't be reached must not hold up the other hosts."""
KEEP_ALIVE = 60.0
"""Seconds that a connection is kept without a request: longer than between two looks (30 s), and an API server closes it after 90 s (http.Server.IdleTimeout
in staging/src/k8s.io/apiserver/pkg/server/secure_serving.go, v1.35.1)."""
IDLE = 600.0
"""Seconds after which a client that nobody asked for is closed: its cluster is gone, or nothing is to be done there."""
MOST = 500
"""Clients that are kept; beyond them, the one that was not used for longest is closed."""

Connect = Callable[[str], Kube]


def connect(kubeconfig: str) -> Kube:
    """A client of a workload cluster."""
    return Kube.from_kubeconfig(kubeconfig, manager="ckp-controllers", timeout=SECONDS, keep_alive=KEEP_ALIVE)


@dataclass
class _Kept:
    digest: str
    client: Kube
    users: int = 0
    used: float = 0.0
    dropped: bool = False


class WorkloadClients:
    """One client for each kubeconfig, kept from pass to pass and shared by the controllers of a process: connections, and what TLS needs, are made once.

    A client is closed when its kubeconfig has changed, its cluster is forgotten or did not answer, it was not used for IDLE seconds, or too many are kept;
    if it is in use then, by its last user.

    Args:
        make: makes a client from the text of a kubeconfig.
        most: how many are kept.
    """

    def __init__(self, make: Connect = connect, clock: Clock | None = None, *, most: int = MOST) -> None:
        self._make = make
        self._clock = clock or SystemClock()
        self._most = most
        self._kept: dict[tuple[str, str], _Kept] = {}  # by namespace and Secret; the one that was used last is the last

    @asynccontextmanager
    async def lend(self, namespace: str, secret: str, kubeconfig: str) -> AsyncIterator[Kube]:
        """The client of this kubeconfig while the block runs.

        Args:
            secret: the name of the Secret that it is from.

        Raises:
            CkpError: it can't be read.
        """
        key, digest = (namespace, secret), hashlib.sha256(kubeconfig.encode()).hexdigest()
        found = self._kept.get(key)
        kept = found if found is not None and found.digest == digest else _Kept(digest, self._make(kubeconfig))
        replaced = [self._kept.pop(key)] if found is not None and found is not kept else []
        self._kept.pop(key, None)
        self._kept[key] = kept
        kept.users += 1
        try:
            await self._drop([*replaced, *self._surplus()])
            yield kept.client
        except KubeError as error:
            if error.code == 0 and self._kept.get(key) is kept:  # kept connections may lead to an API server that is gone, and each would wait in vain
                del self._kept[key]
                kept.dropped = True
            raise
        finally:
            kept.users -= 1
            kept.used = self._clock.monotonic()
            if kept.dropped and not kept.users:
                await kept.client.close()

    def _surplus(self) -> list[_Kept]:
        """Those that are kept no longer."""
        now = self._clock.monotonic()
        idle = [key for key, kept in self._kept.items() if not kept.users and now - kept.used > IDLE]
        oldest = list(self._kept)[: max(0, len(self._kept) - self._most)]
        return [self._kept.pop(key) for key in dict.fromkeys([*idle, *oldest])]

    async def _drop(self, unwanted: list[_Kept]) -> None:
        for kept in unwanted:
            kept.dropped = True
        for kept in unwanted:
            if not kept.users:
                await kept.client.close()

    async def forget(self, namespace: str, cluster: str) -> None:
        """The cluster is gone: close its clients."""
        await self._drop([self._kept.pop(key) for secret in kubeconfig_secrets(cluster) if (key := (namespace, secret)) in self._kept])

    async def close(self) -> None:
        """Close all of them."""
        unwanted, self._kept = list(self._kept.values()), {}
        await self._drop(unwanted)


def kubeconfig_secrets(cluster: str) -> tuple[str, str]:
    """The Secrets with a cluster's kubeconfigs: the administrator's, and that of a user whom RBAC does not bind."""
    return f"{cluster}-kubeconfig", f"{cluster}-super-admin-kubeconfig"


@asynccontextmanager
async def workload_cluster(kube: Kube, namespace: str, cluster: str, clients: WorkloadClients, *, bound: bool = True) -> AsyncIterator[Kube | None]:
    """A client of the cluster of this name while the block runs; None while it has no kubeconfig.

    Args:
        bound: as the administrator, whom RBAC binds; else as a user whom it does not.
    """
    name = kubeconfig_secrets(cluster)[0 if bound else 1]
    secret = await kube.get(SECRET, name, namespace)
    if secret is None:
        await clients.forget(namespace, cluster)
        yield None
        return
    async with clients.lend(namespace, name, base64.b64decode(secret["data"]["value"]).decode()) as client:
        yield client


async def remove_stale_node(client: Kube, namespace: str, host: str, identity: str) -> None:
    """Remove the Node that an earlier machine left under the host's name: a kubelet that joins again would take it over with its old providerID.

    Cluster API gives up deleting a Node after ten seconds in which the API server does not answer (Machine.spec.nodeDeletionTimeout), and lets the
    machine go all the same. Only a Node of this very host is removed, and the caller holds the host.

    Raises:
        KubeError: the cluster can't be reached.
    """
    node = await client.get(NODE, host)
    found = str(((node or {}).get("spec") or {}).get("providerID") or "")
    if node is not None and found != identity and found.startswith(f"{PROVIDER_ID_PREFIX}{namespace}/{host}/"):
        await client.delete(NODE, host)
