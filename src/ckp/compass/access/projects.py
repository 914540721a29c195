"""The namespace that belongs to a project."""

from __future__ import annotations

import re
from collections.abc import Mapping

from ckp.api import kinds
from ckp.api.kinds import Kind
from ckp.clients.kube import Kube, KubeError, Obj, Objs
from ckp.compass.identity import ProjectRef
from ckp.kits.errors import Conflict
from ckp.kits.retry import wait_until_async

RIGHTS_TIMEOUT = 10.0

_NAME = re.compile(r"(?=.{1,253}\Z)[a-z0-9]([-a-z0-9.]*[a-z0-9])?")


class Namespaces:
    """Tenant namespaces: made when they are first needed, read as empty while they are not there.

    Args:
        own_account: `namespace/name` of Compass' ServiceAccount, with `tenant_role` for a RoleBinding in each tenant namespace: Compass may read
            and write there, and nowhere else. Both empty: the installation grants it.
        tenant_role: name of the ClusterRole that the RoleBinding gives.
    """

    def __init__(self, kube: Kube, own_account: str = "", tenant_role: str = "") -> None:
        self._kube = kube
        self._own_account = own_account
        self._tenant_role = tenant_role
        self._known: set[str] = set()

    async def list(self, kind: Kind, project: ProjectRef, *, labels: Mapping[str, str | None] | None = None) -> Objs:
        """A project's objects; none while it has no namespace."""
        return await self._kube.list(kind, project.namespace, labels=labels) if await self._present(project) else []

    async def get(self, kind: Kind, name: str, project: ProjectRef) -> Obj | None:
        """One of a project's objects; None also while it has no namespace, and for what is not a valid name (it would be another path of the API)."""
        if not _NAME.fullmatch(name):
            return None
        return await self._kube.get(kind, name, project.namespace) if await self._present(project) else None

    async def exists(self, project: ProjectRef) -> bool:
        """Whether the project has a namespace; our rights in it are there then."""
        return await self._present(project)

    async def ensure(self, project: ProjectRef) -> None:
        """The project's namespace is there, with its labels and our rights in it; doing it again changes nothing.

        Raises:
            Conflict: a namespace of that name is labelled as another project's.
        """
        self._check_ours(await self._kube.get(kinds.NAMESPACE, project.namespace), project)
        await self._kube.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": project.namespace, "labels": project.labels}})
        if self._own_account and self._tenant_role:
            namespace, _, name = self._own_account.partition("/")
            await self._kube.apply(
                {
                    "apiVersion": kinds.ROLE_BINDING.api_version,
                    "kind": "RoleBinding",
                    "metadata": {"name": "ckp-compass", "namespace": project.namespace, "labels": project.labels},
                    "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": self._tenant_role},
                    "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": namespace}],
                }
            )
            if project.namespace not in self._known:
                await self._wait_for_rights(project)
        self._known.add(project.namespace)

    async def _present(self, project: ProjectRef) -> bool:
        if project.namespace in self._known:
            return True
        found = await self._kube.get(kinds.NAMESPACE, project.namespace)
        if found is None:
            return False
        await self.ensure(project)  # made by another version of Compass, perhaps without the rights that this one needs
        return True

    def _check_ours(self, found: Obj | None, project: ProjectRef) -> None:
        labels = ((found or {}).get("metadata") or {}).get("labels") or {}
        if any(labels.get(name, value) != value for name, value in project.labels.items()):
            raise Conflict(f"namespace {project.namespace} belongs to another project", details=str(labels))

    async def _wait_for_rights(self, project: ProjectRef) -> None:
        """API servers take a moment to see a new RoleBinding."""

        async def allowed() -> bool:
            try:
                await self._kube.list(kinds.BYO_HOST, project.namespace)
            except KubeError as error:
                if error.code == 403:
                    return False
                raise
            return True

        await wait_until_async(allowed, what=f"rights in namespace {project.namespace}", timeout=RIGHTS_TIMEOUT, every=0.1)
