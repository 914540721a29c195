"""What an addon is: a name, a version that the release decides, and the manifests of the Job that installs it.

An addon that is a helm chart is data (HelmAddon). A new one is a file beside this one and an entry in the registry.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ckp.api.platform import InstalledRelease, Releases
from ckp.clients.kube import Kube, Obj
from ckp.controllers.addons.helm import remove_interrupted
from ckp.controllers.controlplane.plan import Plan
from ckp.controllers.jobs import job
from ckp.controllers.pods import config_volume, empty_volume, hardened, mount, secret_volume


class Addon(Protocol):
    """What the reconciler asks of an addon."""

    @property
    def name(self) -> str:
        """As in the control plane's spec and status."""

    def version(self, release: InstalledRelease) -> str:
        """The version that this release installs.

        Raises:
            NotFound: the release does not have the addon.
        """

    def manifests(self, plan: Plan, releases: Releases, image: str) -> Sequence[Obj]:
        """What the installation needs in the management cluster; the last one is the Job. Its name covers the content: changed content is another Job.

        Args:
            image: helm with the charts, as CKP builds it.
        """

    async def prepare(self, workload: Kube) -> None:
        """Before its Job is started, and while no other Job of it runs: undo in the workload cluster what would make the installation fail.

        Raises:
            KubeError: the workload cluster can't be reached.
        """


@dataclass(frozen=True)
class HelmAddon:
    """An addon that `helm upgrade --install` installs from the chart of its name in the addons image.

    Args:
        values: the release's own values for a cluster; those of the site (Releases.addon_values) go over them.
        namespace: in the workload cluster.
    """

    name: str
    values: Callable[[Plan], Mapping[str, Any]]
    namespace: str = "kube-system"

    def version(self, release: InstalledRelease) -> str:
        """The chart's version."""
        return release.chart_version(self.name)

    def manifests(self, plan: Plan, releases: Releases, image: str) -> Sequence[Obj]:
        """A ConfigMap with the values, and the Job; other values or another version make another Job, and helm upgrades."""
        body = json.dumps(merged(self.values(plan), releases.addon_values.get(self.name, {})), sort_keys=True)
        digest = hashlib.sha256((body + self.version(plan.release)).encode()).hexdigest()[:8]
        name = plan.name(f"{self.name}-{digest}")
        config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": plan.meta(name), "data": {"values.json": body}}
        command = ["/usr/local/bin/helm", "upgrade", "--install", self.name, f"/charts/{self.name}", f"--namespace={self.namespace}"]
        container = {
            "name": "helm",
            "image": image,
            "command": [*command, "--values=/values/values.json", "--kubeconfig=/kube/value", "--timeout=5m"],
            "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"memory": "512Mi"}},
            "securityContext": hardened(),
            "terminationMessagePolicy": "FallbackToLogsOnError",
            "volumeMounts": [mount("values", "/values"), mount("kube", "/kube"), mount("tmp", "/tmp", writable=True)],
        }
        volumes = [config_volume("values", name), secret_volume("kube", plan.name("kubeconfig")), empty_volume("tmp")]
        # No retry within the Job: before each further attempt, what the last one left in the cluster must be looked at (`prepare`).
        made = job(plan.meta(name), plan.selector(f"addon-{self.name}"), [container], volumes, retries=0, deadline=900, restart="Never")
        return [config, made]

    async def prepare(self, workload: Kube) -> None:
        """Remove what a helm that was killed has left."""
        await remove_interrupted(workload, self.name, self.namespace)


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Helm values with others over them, table by table."""
    result = dict(base)
    for key, value in over.items():
        before = result.get(key)
        result[key] = merged(before, value) if isinstance(value, dict) and isinstance(before, dict) else value
    return result
