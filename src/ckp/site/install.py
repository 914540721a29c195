"""The lab as a site: the actions of `ckp up`, each of which looks what is there already and does the rest."""

from __future__ import annotations

import base64
import json
import secrets
import ssl
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from ckp.api.host_protocol import BundleRef
from ckp.api.platform import InstalledRelease, Releases
from ckp.catalog.models import BundleTarget
from ckp.clients.compass import Config, write_config
from ckp.distribution.bundles import AGENT_IMAGE, PLATFORM_IMAGES, PREFIX
from ckp.distribution.management import Management, as_list
from ckp.distribution.packages.agent import version_of_tag
from ckp.distribution.registries.server import RegistryServer
from ckp.distribution.release import Deliverable
from ckp.kits import paths
from ckp.kits.errors import CkpError
from ckp.kits.files import atomic_write, sha256_bytes
from ckp.kits.processes import Finished, run
from ckp.kits.retry import wait_until
from ckp.lab.lab import Lab, LabHost
from ckp.verify.packages import verify_package

REGISTRY_NAME = "registry.ckp.lab"
REGISTRY_ADDRESS = f"{REGISTRY_NAME}:{RegistryServer.port}"
LAB_OS = BundleTarget(os="debian", os_version="12")
"""What the lab's hosts run."""
COMPASS_ADDRESS = "10.88.0.100"
HUB_ADDRESS = "10.88.0.101"
POD_CIDR, SERVICE_CIDR = "10.244.0.0/16", "10.96.0.0/16"
GROUP = "lab"
AGENT_CONFIG = "/etc/ckp-agent"
REGISTRY_CA = f"{AGENT_CONFIG}/registry-ca.pem"

# A lab's hosts share one disk that is far from empty, so percentages would evict everything (facts of the lab, docs/how-to/lab.md).
HOST_JSON = {
    "kubelet": {
        "evictionHard": {"nodefs.available": "1Gi", "imagefs.available": "1Gi", "memory.available": "100Mi"},
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
    }
}
# In the sandbox nobody can grant CAP_SYS_RESOURCE, which Cilium's own list of capabilities names.
LAB_ADDON_VALUES: dict[str, dict[str, object]] = {"cilium": {"securityContext": {"privileged": True}}}


@dataclass
class Site:
    """One lab with what runs on it."""

    dist: Deliverable
    workers: int
    say: Callable[[str], None]
    lab: Lab = field(default_factory=Lab)
    digests: dict[str, str] = field(default_factory=dict)

    # -- hosts and registry

    def boot(self) -> None:
        """Boot the management host and the workers, side by side."""
        self.lab.ensure_base(self.say)
        specs = self.lab.network.hosts(self.workers)
        with ThreadPoolExecutor(len(specs)) as pool:
            for host in pool.map(self.lab.ensure_host, specs):
                self.say(f"{host.name} runs at {host.address}")

    @property
    def management(self) -> LabHost:
        """The host with the management cluster."""
        return self.lab.host(self.lab.network.management().name)

    @property
    def worker_hosts(self) -> list[LabHost]:
        """The hosts for work."""
        return [self.lab.host(spec.name) for spec in self.lab.network.hosts(self.workers)[1:]]

    @property
    def registry(self) -> RegistryServer:
        """The registry on the lab's bridge."""
        return RegistryServer(self.dist.built["distribution"].binary("registry"), Lab.GATEWAY, REGISTRY_NAME)

    def publish(self) -> None:
        """Start the registry; push images and bundles. Where an earlier build left others, this one's take their tags, and it is said."""
        server = self.registry
        client = server.start()
        self.digests = self.dist.push(client, f"{Lab.GATEWAY}:{server.port}", server.ca, replace=True)
        self.say(f"{len(self.dist.tags)} images and {len(self.dist.targets)} bundle at {server.address}/{PREFIX}")

    @property
    def pinned(self) -> dict[str, str]:
        """The images that were pushed, as `tag@sha256:…`: what runs is what was made and signed, whatever becomes of the registry's tags."""
        return {repository: f"{tag}@{self.digests[repository]}" for repository, tag in self.dist.tags.items()}

    def releases(self) -> Releases:
        """What the management layer is told about the release that was pushed."""
        release, address = self.dist.release, self.registry.address
        bundles = {
            f"{target.os}-{target.os_version}": BundleRef(
                image=f"{address}/{PREFIX}/{target.repository}@{self.digests[target.repository]}", tag=release.stamp, release=release.name
            )
            for target in self.dist.targets
        }
        installed = InstalledRelease(
            name=release.name,
            stamp=release.stamp,
            registry=f"{address}/{PREFIX}",
            images={repository: pinned for repository, pinned in self.pinned.items() if repository not in PLATFORM_IMAGES},
            bundles=bundles,
            cni=release.built_cni,
            stand_ins=tuple(self.dist.stand_ins),
        )
        return Releases(releases={release.name: installed}, agents=self._agents(), registry_ca=self.registry.ca.read_text(), addon_values=LAB_ADDON_VALUES)

    def _agents(self) -> dict[str, str]:
        """Every version of the agent that the registry holds, this one last: an older one is what its hosts may return to."""
        registry, repository = self.registry.client(), f"{PREFIX}/{AGENT_IMAGE}"
        tags = sorted(tag for tag in registry.tags(repository) if not tag.startswith("sha256-"))
        current = self.dist.agent(LAB_OS.format).version
        found = {version_of_tag(tag): registry.digest(repository, tag) for tag in tags}
        ordered = [*(version for version in found if version != current), current]
        return {version: f"{self.registry.address}/{repository}@{found.get(version) or self.digests[AGENT_IMAGE]}" for version in ordered}

    # -- the host tool

    def install_agent(self, host: LabHost) -> None:
        """Bring the agent's package to a host, verified here before it goes there; the same version again changes nothing."""
        package = self.dist.agent("deb")
        verify_package(str(package.path), str(self.dist.keyring), name="ckp-agent", version=package.version)
        have = host.run(["dpkg-query", "-W", "-f", "${Version}", "ckp-agent"], timeout=30, check=False).stdout
        host.push(json.dumps(HOST_JSON).encode(), f"{AGENT_CONFIG}/host.json")
        host.push(self.registry.ca, REGISTRY_CA)
        if have != package.version:
            host.push(package.path, "/var/cache/ckp-agent.deb")
            host.run(["dpkg", "-i", "/var/cache/ckp-agent.deb"], timeout=120, what="installing ckp-agent")
            host.run(["rm", "/var/cache/ckp-agent.deb"], timeout=10)

    # -- the management cluster

    def install_standalone(self) -> None:
        """The twelve steps on the management host; a finished installation says so and changes nothing."""
        host = self.management
        self.install_agent(host)
        if host.run(["ckp-agent", "standalone", "status"], timeout=30, check=False).code == 0:
            self.say(f"{host.name} is a cluster already")
        else:
            self._twelve_steps(host)
        atomic_write(self.kubeconfig, host.pull("/etc/kubernetes/admin.conf"), mode=0o600)

    def _twelve_steps(self, host: LabHost) -> None:
        bundle = self.releases().releases[self.dist.release.name].bundles[f"{LAB_OS.os}-{LAB_OS.os_version}"]
        argv = ["ckp-agent", "standalone", "install", "--bundle-image", bundle.image, "--registry-ca", REGISTRY_CA]
        argv += ["--pod-cidr", POD_CIDR, "--service-cidr", SERVICE_CIDR, "--advertise-address", host.address, "--release", bundle.release]
        code = host.stream(argv, timeout=1800, on_line=self.say)
        if code != 0:
            raise CkpError(
                f"the standalone installation on {host.name} ended with code {code}",
                details="its own words are above",
                resolution="mend what it names and run `make up` again: it goes on with that step",
            )

    @property
    def kubeconfig(self) -> Path:
        """The management cluster's administrator's kubeconfig (0600)."""
        return paths.state() / "management.kubeconfig"

    def kubectl(self, *arguments: str, stdin: str | None = None, timeout: float = 120, check: bool = True) -> Finished:
        """Our own kubectl against the management cluster."""
        program = self.dist.built["kubernetes"].binary("kubectl")
        return run([program, f"--kubeconfig={self.kubeconfig}", *arguments], stdin=stdin, timeout=timeout, check=check, what=f"kubectl {arguments[0]}")

    def deploy_management(self) -> None:
        """cert-manager, Cluster API, then ours: each group waits for what the one before it brings."""
        management = Management(self.dist.built, f"{self.registry.address}/{PREFIX}", self.pinned)
        kubectl = self.dist.built["kubernetes"].binary("kubectl")
        self._apply("foundation", management.foundation())
        self._apply("cert-manager", management.cert_manager())
        self._wait_available("cert-manager")
        self._apply("cluster-api", management.cluster_api(kubectl))
        text = self.releases().model_dump_json(indent=1)
        first, last = self.lab.network.load_balancers
        settings = {
            "COMPASS_ADDRESS": COMPASS_ADDRESS,
            "HUB_ADDRESS": HUB_ADDRESS,
            "LB_FIRST": first,
            "LB_LAST": last,
            "RESERVED_CIDRS": f"hosts={self.lab.network.subnet},management pods={POD_CIDR},management services={SERVICE_CIDR}",
            "RELEASES_DIGEST": sha256_bytes(text.encode())[:16],
        }
        config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "ckp-releases", "namespace": "ckp-system"}, "data": {"releases.json": text}}
        self._admin_token()
        self._apply("ckp", [*management.ckp(settings), config])
        self._wait_available("capi-system", "capi-kubeadm-bootstrap-system", "ckp-system")

    def _apply(self, group: str, objects: list[dict[str, Any]]) -> None:
        """Apply a group, several times while its webhooks and CRDs come up; what was applied unchanged before is left alone."""
        text = as_list(objects)
        digest = sha256_bytes(f"{self._cluster_uid()}\n{text}".encode())
        marker = paths.state() / "applied" / group
        if marker.exists() and marker.read_text() == digest:
            self.say(f"{group}: unchanged")
            return
        said: list[str] = []

        def applied() -> bool:
            done = self.kubectl("apply", "--server-side", "--force-conflicts", "--field-manager=ckp-up", "-f", "-", stdin=text, timeout=300, check=False)
            said[:] = (done.stderr or done.stdout).splitlines()[-6:]
            return done.code == 0

        wait_until(applied, what=f"applying {group}", timeout=300, every=3, reason=lambda: "\n".join(said))
        atomic_write(marker, digest)
        self.say(f"{group}: {len(objects)} objects")

    def _cluster_uid(self) -> str:
        """Tells this management cluster from one that was there before it."""
        return self.kubectl("get", "namespace", "kube-system", "-o", "jsonpath={.metadata.uid}").stdout

    def _wait_available(self, *namespaces: str) -> None:
        for namespace in namespaces:
            done = self.kubectl(
                "wait", "deployment", "--all", "--for=condition=Available", f"--namespace={namespace}", "--timeout=300s", timeout=330, check=False
            )
            if done.code != 0:
                pods = self.kubectl("get", "pods,events", f"--namespace={namespace}", check=False).stdout
                raise CkpError(
                    f"not everything in {namespace} came up", details=f"{done.stderr}\n{pods}", resolution="run `make up` again, or look with kubectl"
                )
            self.say(f"{namespace}: available")

    def _admin_token(self) -> None:
        """Made once in the cluster; this machine's command line gets it with the session below."""
        if self.kubectl("get", "secret", "ckp-compass-admin", "--namespace=ckp-system", check=False).code == 0:
            return
        token = base64.b64encode(secrets.token_urlsafe(32).encode()).decode()
        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "ckp-compass-admin", "namespace": "ckp-system"}, "data": {"token": token}}
        self.kubectl("create", "-f", "-", stdin=json.dumps(secret))

    def log_in(self) -> None:
        """Give this machine's `ckp` command its session with Compass, and wait until Compass answers."""
        secret = json.loads(self.kubectl("get", "secret", "ckp-compass-admin", "--namespace=ckp-system", "-o", "json").stdout)
        root = json.loads(self.kubectl("get", "secret", "ckp-compass-tls", "--namespace=ckp-system", "-o", "json").stdout)
        ca = paths.state() / "root-ca.pem"
        atomic_write(ca, base64.b64decode(root["data"]["ca.crt"]))
        token = base64.b64decode(secret["data"]["token"]).decode()
        write_config(Config(server=f"https://{COMPASS_ADDRESS}", token=token, ca=str(ca)))
        wait_until(self._compass_answers, what="Compass answers", timeout=120, every=1)

    def _compass_answers(self) -> bool:
        try:
            return (
                httpx.get(
                    f"https://{COMPASS_ADDRESS}/healthz",
                    verify=ssl.create_default_context(cafile=str(paths.state() / "root-ca.pem")),
                    timeout=3,
                    trust_env=False,
                ).status_code
                == 200
            )
        except httpx.HTTPError:
            return False

    # -- tests and people look at things this way

    def guest_kubectl(self, kubeconfig: Path, *arguments: str, timeout: float = 60, check: bool = True, stdin: str | None = None) -> Finished:
        """kubectl against a managed cluster."""
        program = self.dist.built["kubernetes"].binary("kubectl")
        return run([program, f"--kubeconfig={kubeconfig}", *arguments], stdin=stdin, timeout=timeout, check=check, what=f"kubectl {arguments[0]}")
