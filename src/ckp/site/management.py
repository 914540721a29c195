"""The management cluster of a site. One that CKP has installed is seen by programs on its host: they are there whatever this machine has built.

An existing one (ckp.site.clusters) is seen by its kubeconfig.
"""

from __future__ import annotations

import json

from ckp.hostkit.locations import STANDALONE_JOURNAL, STATE_DIR
from ckp.kits.errors import CkpError
from ckp.site.clusters.existing import ExistingCluster
from ckp.site.inventory import SiteHost

ADMIN = "/etc/kubernetes/admin.conf"
API_PORT = 6443
JOURNAL = f"{STATE_DIR}/{STANDALONE_JOURNAL}"
"""What `ckp-agent standalone install` keeps of an installation."""


def exists(host: SiteHost) -> bool:
    """Whether the host has a management cluster. One whose installation is not complete carries nothing yet, and need not answer."""
    if isinstance(host, ExistingCluster):
        return True
    return host.run(["ckp-agent", "standalone", "status"], timeout=60, check=False).code == 0


def kubectl(host: SiteHost, *arguments: str, stdin: str | None = None, timeout: int = 60) -> str:
    """What kubectl prints. It asks the host's own API server: a virtual address may be on its way to another host.

    Args:
        timeout: seconds for all of it; one request has half of them.

    Raises:
        CkpError: it fails, or the host can't be reached.
    """
    if isinstance(host, ExistingCluster):
        return host.kubectl(*arguments, stdin=stdin, timeout=timeout)
    argv = [*kubectl_argv(host, timeout=timeout), *arguments]
    return host.run(argv, timeout=timeout, stdin=stdin, what=f"kubectl {arguments[0]}").stdout


def kubectl_argv(host: SiteHost, *, timeout: int) -> list[str]:
    """kubectl of a management host, as it asks that host's own API server.

    Args:
        timeout: seconds for all of it; one request has half of them.
    """
    return ["kubectl", f"--kubeconfig={ADMIN}", f"--server={server(host)}", f"--request-timeout={timeout // 2}s"]


def server(host: SiteHost) -> str:
    """The URL of a management host's own API server."""
    return f"https://{host.address}:{API_PORT}"


def installed_release(host: SiteHost) -> str:
    """The release that the management cluster was installed from, or is being installed from; "" if there is none. Of an existing one: that of its layer.

    Raises:
        CkpError: the host's record of the installation can't be read.
    """
    if isinstance(host, ExistingCluster):
        return _release_of_layer(host)
    if host.run(["test", "-e", JOURNAL], timeout=30, check=False).code:
        return ""
    try:
        member = json.loads(host.pull(JOURNAL))["member"]
        return str(member["release"]) if member else ""
    except (ValueError, KeyError, TypeError) as error:
        raise CkpError(
            f"{host.name}:{JOURNAL} can't be read: {error!r}", resolution="restore it from a backup: it records what was installed on that host"
        ) from None


def _release_of_layer(cluster: ExistingCluster) -> str:
    """The release that the management layer's images are of, by the ConfigMap with the releases (ckp.site.publish); "" if there is none."""
    path = "--output=jsonpath={.data.releases\\.json}"
    text = cluster.kubectl("get", "configmap", "ckp-releases", "--namespace=ckp-system", "--ignore-not-found", path)
    try:
        return str(json.loads(text)["management"]) if text.strip() else ""
    except (ValueError, KeyError, TypeError):
        raise CkpError("the ConfigMap ckp-releases of the management cluster can't be read", resolution="run `ckp site apply`: it writes it again") from None
