"""Installing CKP at a site: the host tool, a standalone management cluster, and the management layer in it.

Each action looks at what is there already and does the rest, so that running it again is harmless.
"""

from __future__ import annotations

import base64
import json
import secrets
import shutil
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from ckp.api.names import COMPASS_AUDIENCE, SITE_ACCOUNT
from ckp.clients.compass import Config, Session, Unauthorized, read_config, write_config
from ckp.distribution.management import Management, as_list
from ckp.distribution.packages.pack import Package
from ckp.distribution.release import Deliverable
from ckp.hostkit.locations import SITE_KEYRING
from ckp.kits.errors import CkpError, NotFound
from ckp.kits.files import atomic_write, sha256_bytes
from ckp.kits.processes import Finished, run
from ckp.kits.retry import wait_until
from ckp.site import database, members, version
from ckp.site.clusters.brought import labelled
from ckp.site.clusters.existing import ExistingCluster
from ckp.site.clusters.look import foreign
from ckp.site.hosts import files as hostfiles
from ckp.site.hosts.files import HostFile, differing
from ckp.site.hosts.settings import bring
from ckp.site.hosts.sidebyside import each
from ckp.site.inventory import Inventory, SiteHost, SiteNetwork, acted_on_first
from ckp.site.management import ADMIN, API_PORT, exists, installed_release
from ckp.site.provided import load_balancers, names, storage
from ckp.site.publish import Published, Withdrawn, registry_server, releases_config
from ckp.site.registries import existing
from ckp.site.registries.hosted import SiteRegistryServer
from ckp.site.spread import spread
from ckp.verify.packages import verify_package

FIELD_MANAGER = "--field-manager=ckp-up"
APPLY = ("apply", "--server-side", "--force-conflicts", FIELD_MANAGER, "-f", "-")
"""kubectl's arguments: how anything gets into the management cluster, from standard input."""
APPLY_SECONDS = 300
AGENT_CONFIG = "/etc/ckp-agent"
REGISTRY_CA = f"{AGENT_CONFIG}/registry-ca.pem"
CKP_GROUP = "ckp"
"""The last group of what is applied: CKP's own."""
KUBECONFIG, ROOT_CA, APPLIED, BEGUN = "management.kubeconfig", "root-ca.pem", "applied", "begun"
"""What this machine keeps of an installation, below its inventory's `state`."""


def _spread(render: Callable[[], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    return spread(render())


def _labelled(render: Callable[[], list[dict[str, Any]]], site: str) -> list[dict[str, Any]]:
    return labelled(render(), site)


def is_accepted(config: Config) -> bool:
    """Whether Compass takes the token.

    Raises:
        CkpError: it does not answer.
    """
    session = Session(config)
    try:
        session.get("/api/v1/me")
    except Unauthorized:
        return False
    except NotFound:  # a Compass of before there were people: it has taken the token
        pass
    finally:
        session.close()
    return True


def logged_in(server: str) -> Config:
    """This machine's configuration if it is for this Compass, else one in which nobody is logged in."""
    try:
        found = read_config()
    except CkpError:
        return Config(server=server, token="")
    return found if found.server == server else Config(server=server, token="")


def forget_applied(state: Path, group: str) -> None:
    """Let a group be applied again, whatever it was applied with last."""
    (state / APPLIED / group).unlink(missing_ok=True)


def forget(state: Path) -> None:
    """Remove what this machine keeps of an installation that is gone; nothing there is fine."""
    for name in (KUBECONFIG, ROOT_CA):
        (state / name).unlink(missing_ok=True)
    for name in (APPLIED, BEGUN):
        if (state / name).exists():
            shutil.rmtree(state / name)


def machine_id(host: SiteHost) -> str:
    """What tells a host from another one of its name."""
    return host.run(["cat", "/etc/machine-id"], timeout=30, what="reading /etc/machine-id").stdout.strip()


def is_begun(state: Path, host: SiteHost) -> bool:
    """Whether this machine has begun to make this very host a part of the site's cluster. With a registry of CKP's own, that tells it as well."""
    mark = state / BEGUN / host.name
    return mark.exists() and mark.read_text() == machine_id(host)


def reserved_cidrs(network: SiteNetwork) -> str:
    """The networks that no workload cluster may use, as Compass reads them."""
    return ",".join(f"{what}={cidr}" for what, cidr in network.reserved.items())


def apply_until_taken(apply: Callable[[Sequence[str]], object], what: str, timeout: float) -> None:
    """Apply objects, several times while webhooks that look at them come up.

    Args:
        apply: does it once, by kubectl's arguments; raises CkpError if they are not taken.

    Raises:
        TimedOut: they are not taken.
    """
    last: list[str] = []

    def applied() -> bool:
        try:
            apply(APPLY)
        except CkpError as error:
            last[:] = (error.details or error.brief).splitlines()[-6:]
            return False
        return True

    wait_until(applied, what=what, timeout=timeout, every=3, reason=lambda: "\n".join(last))


def applied_digest(cluster: str, text: str) -> str:
    """Of a group's objects as they were applied to a cluster, by the uid of that.

    Args:
        text: the objects, as one JSON document.
    """
    return sha256_bytes(f"{cluster}\n{text}".encode())


@dataclass
class Site:
    """One site with the release that it gets.

    Args:
        say: takes lines of progress.
        absent: management hosts that the cluster's data tells of, from before a restore, and that are new machines: they are no members until they have joined.
    """

    dist: Deliverable
    inventory: Inventory
    say: Callable[[str], None]
    absent: Sequence[str] = field(default=(), kw_only=True)

    @property
    def management(self) -> SiteHost:
        """The host with the management cluster."""
        return self.inventory.hosts.management

    @property
    def worker_hosts(self) -> Sequence[SiteHost]:
        """The hosts for workload clusters."""
        return self.inventory.hosts.workers

    @property
    def registry(self) -> SiteRegistryServer:
        """The registry that hosts pull from."""
        return registry_server(self.dist, self.inventory)

    # -- the host tool

    def install_agent(self, host: SiteHost) -> None:
        """Bring the agent's package to a host, verified here before it goes there; the same version again changes nothing.

        Raises:
            VerificationFailed: the package is not what the release's keys have signed.
            CkpError: the host cannot be reached, or dpkg refuses the package.
        """
        self._install_agent(host, self._verified_agent())

    def _verified_agent(self) -> Package:
        """The agent's package. Raises VerificationFailed."""
        package = self.dist.agent(self.inventory.os.format)
        with self.inventory.settings.trusted(self.dist.keyring) as keyring:
            verify_package(str(package.path), str(keyring), name="ckp-agent", version=package.version)
        return package

    def _install_agent(self, host: SiteHost, package: Package) -> None:
        have = host.run(["dpkg-query", "-W", "-f", "${Version} ${db:Status-Status}", "ckp-agent"], timeout=30, check=False).stdout
        self.configure_host(host)
        if have != f"{package.version} installed":  # or dpkg was killed in the middle of it
            host.push(package.path, "/var/cache/ckp-agent.deb")
            host.run(["dpkg", "-i", "/var/cache/ckp-agent.deb"], timeout=120, what="installing ckp-agent")
            host.run(["rm", "/var/cache/ckp-agent.deb"], timeout=10)
        bring(host, self.inventory.settings, self.say)

    def configure_host(self, host: SiteHost) -> None:
        """Bring a host the site's settings for it, the registry's CA, and how it logs in there; what is so already is left alone."""
        files = [HostFile(f"{AGENT_CONFIG}/host.json", json.dumps(dict(self.inventory.host_settings)).encode())]
        if (ca := self.registry.ca) is not None:
            files.append(HostFile(REGISTRY_CA, ca))
        else:
            host.run(["rm", "-f", "--", REGISTRY_CA], timeout=30)
        for file in differing(host, files):
            hostfiles.bring(host, file)
        existing.bring_login(host, self.inventory.registry.outside)

    # -- the management cluster

    def install_standalone(self, published: Published) -> None:
        """The twelve steps on the management host, which the others join; what is finished is left as it is.

        Raises:
            CkpError: one of the steps failed; it is named in the lines before.
        """
        host, package = self.management, self._verified_agent()
        each(self.inventory.hosts.masters, lambda item: self._install_agent(item, package))
        if exists(host):
            self.say(f"{host.name} is a cluster already")
            self._log_in_to_registry(host)
        else:
            self._twelve_steps(host, published)
        atomic_write(self.kubeconfig, names.with_server(host.pull(ADMIN), self.inventory.network.api_name), mode=0o600)
        self._join_others(published)

    def _join_others(self, published: Published) -> None:
        _, *others = acted_on_first(self.inventory.hosts)
        if not others:
            return
        releases = each(others, installed_release)
        joined = {self.management.name, *(host.name for host, release in zip(others, releases, strict=True) if release)}
        members.wait_until_away(self.management, set(self.absent) - joined, self.say)
        members.remove_gone(self.management, members.gone(members.members(self.management), self.inventory.hosts.masters, joined), self.say)
        for host, complete in zip(others, each(others, exists), strict=True):  # one after the other: etcd takes one new member at a time
            self._begin(host)
            if complete:
                self.say(f"{host.name} is a member of the management cluster already")
            else:
                members.join(self.management, host, self._bundle(published), self.say)
            self._log_in_to_registry(host)

    def _log_in_to_registry(self, host: SiteHost) -> None:
        """Let the containerd of a host that is a cluster already have another CA or password of a registry that is not CKP's own."""
        if self.inventory.registry.outside is None:
            return
        done = host.run(["ckp-agent", "standalone", "registry", *self._registry_ca()], timeout=60, what="setting up containerd's access to the registry")
        for line in done.stdout.splitlines():
            self.say(f"{host.name}: {line}")

    def _registry_ca(self) -> list[str]:
        return ["--registry-ca", REGISTRY_CA] if self.registry.ca is not None else []

    def _bundle(self, published: Published) -> list[str]:
        """Options of the host tool: where its bundle is, and whose keys it must be signed by."""
        keys = ["--keyring", SITE_KEYRING] if self.inventory.settings.keyring else []
        return ["--bundle-image", published.host_bundle.image, *self._registry_ca(), *keys]

    def _begin(self, host: SiteHost) -> None:
        if self.inventory.registry.outside is not None:
            atomic_write(self.inventory.state / BEGUN / host.name, machine_id(host))

    def _twelve_steps(self, host: SiteHost, published: Published) -> None:
        self._begin(host)
        bundle, network = published.host_bundle, self.inventory.network
        argv = ["ckp-agent", "standalone", "install", *self._bundle(published)]
        argv += ["--pod-cidr", network.management_pods, "--service-cidr", network.management_services]
        argv += ["--advertise-address", host.address, "--node-name", host.name, "--release", bundle.release]
        if network.virtual_address:
            argv += ["--virtual-address", network.virtual_address]
        for name in network.api_names:
            argv += ["--cert-san", name]
        code = host.stream(argv, timeout=1800, on_line=self.say)
        if code != 0:
            raise CkpError(
                f"the standalone installation on {host.name} ended with code {code}",
                details="its output is above",
                resolution="fix what it names and run the same command again: it continues with that step",
            )

    @property
    def kubeconfig(self) -> Path:
        """The management cluster's administrator's kubeconfig (0600); of an existing one, its owner's file."""
        host = self.management
        return host.kubeconfig if isinstance(host, ExistingCluster) else self.inventory.state / KUBECONFIG

    @property
    def root_ca(self) -> Path:
        """The CA of Compass and the hub, as `log_in` keeps it on this machine."""
        return self.inventory.state / ROOT_CA

    def kubectl(self, *arguments: str, stdin: str | None = None, timeout: float = 120, check: bool = True) -> Finished:
        """Our own kubectl against the management cluster."""
        program = self.dist.built["kubernetes"].binary("kubectl")
        host = self.management
        if isinstance(host, ExistingCluster):
            return run([program, f"--kubeconfig={self.kubeconfig}", *arguments], stdin=stdin, timeout=timeout, check=check, what=f"kubectl {arguments[0]}")
        server = f"--server=https://{host.address}:{API_PORT}"  # not a virtual address, which may be on its way to another host
        argv: list[str | Path] = [program, f"--kubeconfig={self.kubeconfig}", server, *arguments]
        return run(argv, stdin=stdin, timeout=timeout, check=check, what=f"kubectl {arguments[0]}")

    def deploy_management(self, published: Published, others: Sequence[Published] = (), withdrawn: Withdrawn | None = None) -> None:
        """cert-manager, Cluster API, then CKP's own: each group waits for what the one before it brings.

        Args:
            published: the release that the layer is of; clusters can be made of it, too.
            others: further releases that clusters can be made of.
            withdrawn: releases that are no longer offered, and whose removal is not finished.

        Raises:
            CkpError: something does not become available; its pods and events are in the details.
        """
        groups = self.groups(published, others, withdrawn)
        for name in self._of_others():
            self.say(f"{name}: that of the cluster's owner is used")
            groups[name] = lambda: []
        self._apply("foundation", groups["foundation"]())
        self._apply("cert-manager", groups["cert-manager"]())
        self._wait_available("cert-manager")
        self._apply("cluster-api", groups["cluster-api"]())
        ckp = groups[CKP_GROUP]()
        self._admin_token()
        self._database_secret()
        self._registry_secret()
        self._apply(CKP_GROUP, ckp)
        self._wait_available("capi-system", "capi-kubeadm-bootstrap-system", "ckp-system")

    def _of_others(self) -> list[str]:
        """Groups that an existing cluster has from others."""
        return list(foreign(lambda *words: self.kubectl(*words).stdout)) if isinstance(self.management, ExistingCluster) else []

    def groups(
        self, published: Published, others: Sequence[Published] = (), withdrawn: Withdrawn | None = None
    ) -> dict[str, Callable[[], list[dict[str, Any]]]]:
        """The management layer's groups in their order; each is rendered when it is called for. No cluster is needed for that.

        Args: as of `deploy_management`.
        """
        management = Management(self.dist.built, published.prefix, published.images)
        kubectl = self.dist.built["kubernetes"].binary("kubectl")

        def ckp() -> list[dict[str, Any]]:
            config, digest = releases_config(published.releases(*others), withdrawn)
            # The table comes first: pods that its digest rolls out again must not start with the one before it.
            kind = "postgresql" if self.inventory.database else "sqlite"
            own = [config, version.config_map(), self.inventory.settings.config_map(), *storage.manifests(self.inventory.storage)]
            found = management.ckp({**self.settings(), "RELEASES_DIGEST": digest}, kind)
            return [*own, *load_balancers.of_site(found, self.inventory.network)]

        found: dict[str, Callable[[], list[dict[str, Any]]]] = {
            "foundation": management.foundation,
            "cert-manager": management.cert_manager,
            "cluster-api": lambda: management.cluster_api(kubectl),
            CKP_GROUP: ckp,
        }
        if isinstance(self.management, ExistingCluster):
            return {name: partial(_labelled, render, self.inventory.name) for name, render in found.items()}
        if len(self.inventory.hosts.masters) > 1:
            return {name: partial(_spread, render) for name, render in found.items()}
        return found

    def settings(self) -> dict[str, str]:
        """The `@NAME@` places of deploy/ that are this site's."""
        network = self.inventory.network
        first, last = network.load_balancers or ("", "")  # without a range, its manifests are left out (ckp.site.provided.load_balancers)
        return {
            "COMPASS_ADDRESS": network.compass,
            "HUB_ADDRESS": network.hub,
            "COMPASS_NAMES": "".join(f', "{name}"' for name in network.compass_names),
            "HUB_NAMES": "".join(f', "{name}"' for name in network.hub_names),
            "LB_FIRST": first,
            "LB_LAST": last,
            "RESERVED_CIDRS": reserved_cidrs(network),
            "DATABASE": self.inventory.database.place if self.inventory.database else "",
        }

    def _apply(self, group: str, objects: list[dict[str, Any]]) -> None:
        """Apply a group, several times while its webhooks and CRDs come up; what was applied unchanged before is left alone, and so is an empty one."""
        if not objects:
            return
        text = as_list(objects)
        digest = applied_digest(self._cluster_uid(), text)
        marker = self.inventory.state / APPLIED / group
        if marker.exists() and marker.read_text() == digest:
            self.say(f"{group}: unchanged")
            return
        marker.unlink(missing_ok=True)  # a run that is killed from here on leaves neither the old objects for certain nor the new ones
        apply_until_taken(lambda words: self.kubectl(*words, stdin=text, timeout=APPLY_SECONDS), f"applying {group}", APPLY_SECONDS)
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
                    f"not everything in {namespace} became available",
                    details=f"{done.stderr}\n{pods}",
                    resolution=f"run the same command again, or see what is wrong: kubectl --kubeconfig={self.kubeconfig} get pods -A",
                )
            self.say(f"{namespace}: available")

    def _admin_token(self) -> None:
        """Made once in the cluster; this machine's command line gets it in `log_in`."""
        if self.kubectl("get", "secret", "ckp-compass-admin", "--namespace=ckp-system", check=False).code == 0:
            return
        token = base64.b64encode(secrets.token_urlsafe(32).encode()).decode()
        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "ckp-compass-admin", "namespace": "ckp-system"}, "data": {"token": token}}
        self.kubectl("create", "-f", "-", stdin=json.dumps(secret))

    def _database_secret(self) -> None:
        """The URL of Compass' PostgreSQL, as it is in its file now. Compass reads it again for each connection: a new password restarts nothing."""
        if self.inventory.database is not None:
            self.kubectl(*APPLY, stdin=database.secret(self.inventory.database))

    def _registry_secret(self) -> None:
        """How workers log in to the registry, as it is in its file now; the controllers read it again and again."""
        place = self.inventory.registry.outside
        if place is not None and place.login:
            self.kubectl(*APPLY, stdin=existing.login_secret(place))
        else:
            self.kubectl("delete", "secret", existing.SECRET, "--namespace=ckp-system", "--ignore-not-found")

    def log_in(self) -> None:
        """Wait until Compass answers, and give this machine's `ckp` command its session with it.

        Until there is a first administrator, that is the bootstrap token. From then on people log in by themselves (`ckp login`), and whoever is
        logged in here stays so.

        Raises:
            TimedOut: Compass does not answer.
        """
        root = json.loads(self.kubectl("get", "secret", "ckp-compass-tls", "--namespace=ckp-system", "-o", "json").stdout)
        atomic_write(self.root_ca, base64.b64decode(root["data"]["ca.crt"]))
        wait_until(
            self._compass_answers,
            what="Compass answers",
            timeout=120,
            every=1,
            reason=lambda: self.kubectl("get", "service", "ckp-compass", "--namespace=ckp-system", "--output=wide", check=False).stdout,
            resolution=load_balancers.no_address(self.inventory.network),
        )
        bootstrap = self._config(self._bootstrap_token())
        if is_accepted(bootstrap):
            write_config(bootstrap)
        else:
            write_config(replace(logged_in(bootstrap.server), server=bootstrap.server, ca=bootstrap.ca))
            self.say("Compass has an administrator: people log in with `ckp login`")

    def session(self) -> Session:
        """A session for what the site itself asks Compass for, whoever is logged in on this machine.

        By the bootstrap token while it is good, then by a token of the ServiceAccount `ckp-site`, which is good for an hour: whoever administers the
        management cluster can make one, and nothing of it is kept.
        """
        bootstrap = self._config(self._bootstrap_token())
        if is_accepted(bootstrap):
            return Session(bootstrap)
        made = self.kubectl("create", "token", SITE_ACCOUNT, "--namespace=ckp-system", f"--audience={COMPASS_AUDIENCE}", "--duration=1h").stdout.strip()
        return Session(self._config(made))

    def _config(self, token: str) -> Config:
        return Config(server=f"https://{self.inventory.network.compass}", token=token, ca=str(self.root_ca))

    def _bootstrap_token(self) -> str:
        secret = json.loads(self.kubectl("get", "secret", "ckp-compass-admin", "--namespace=ckp-system", "-o", "json").stdout)
        return base64.b64decode(secret["data"]["token"]).decode()

    def _compass_answers(self) -> bool:
        trust = ssl.create_default_context(cafile=str(self.root_ca))
        try:
            return httpx.get(f"https://{self.inventory.network.compass}/healthz", verify=trust, timeout=3, trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False

    # -- inspection

    def workload_kubectl(self, kubeconfig: Path, *arguments: str, timeout: float = 60, check: bool = True, stdin: str | None = None) -> Finished:
        """kubectl against a workload cluster."""
        program = self.dist.built["kubernetes"].binary("kubectl")
        return run([program, f"--kubeconfig={kubeconfig}", *arguments], stdin=stdin, timeout=timeout, check=check, what=f"kubectl {arguments[0]}")
