"""What is in a backup of a site, and in which order it is taken (docs/adr/0028-backup-of-a-site.md). How things are read is the caller's.

First the management cluster's etcd, then those of workload clusters, then Compass' database. So what the management cluster knows of a cluster's etcd
is never newer than that etcd. All are taken after the beginning: what was acknowledged before it is in all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple, Type
from typing import Collection as AnyOf

from ckp.hostkit.locations import CONFIG_DIR, STANDALONE_JOURNAL, STATE_DIR

Obj = Dict[str, Any]
FORMAT, SEALED_FORMAT = 2, 3
"""The format of a manifest with what the first version had not; and of one with a member that is encrypted by itself."""
FIRST = 1
"""What a backup is written as that has nothing but what the first version had: older versions read it, too."""
ADMIN = "/etc/kubernetes/admin.conf"
API_PORT = 6443
NAMESPACE = "ckp-system"
CLUSTER_LABEL = "cluster.x-k8s.io/cluster-name"
HOSTNAME = "kubernetes.io/hostname"
MANAGED = "managedcontrolplanes.controlplane.cluster.x-k8s.io"
MANAGEMENT = "etcd/management"
"""The member with the management cluster's etcd."""
COMPASS, COPY, HOST, STATE, SITE = "compass.db", "compass.copy", "host.tar", "state.tar", "site.yaml"
ETCD, SQLITE, POSTGRESQL, TAR, FILE, SEALED = "etcd", "sqlite", "postgresql", "tar", "file", "sealed"
"""Kinds of members. SEALED: a tar, encrypted once more for the readers, as whoever makes the backup can't read it."""
STATE_ABOUT = "what the machine that applies keeps of the site: the registry's CA and password"
SITE_ABOUT = "the site's file"


@dataclass(frozen=True)
class Sources:
    """Where a management host has what is taken.

    Args:
        etcd: URL of its own etcd.
        etcd_files: CA, certificate and key for that; none: it is asked without TLS.
        hosted_port: of workload clusters' etcd.
        python: runs Python in Compass' pod.
        files: files and folders.
    """

    kubectl: Tuple[str, ...]
    etcd: str = "https://127.0.0.1:2379"
    etcd_files: Tuple[str, ...] = tuple(f"/etc/kubernetes/pki/etcd/{name}" for name in ("ca.crt", "healthcheck-client.crt", "healthcheck-client.key"))
    hosted_port: int = 2379
    python: Tuple[str, ...] = ()
    database: str = "/var/lib/compass/compass.db"
    files: Tuple[str, ...] = ("/etc/kubernetes", CONFIG_DIR, f"{STATE_DIR}/{STANDALONE_JOURNAL}", "/etc/hosts")

    @classmethod
    def of(cls, address: str) -> Sources:
        """Those of the management host with this address. Its own API server is asked: a virtual address may be on its way to another host."""
        kubectl = ("kubectl", f"--kubeconfig={ADMIN}", f"--server=https://{address}:{API_PORT}")
        return cls(kubectl, python=(*kubectl, f"--namespace={NAMESPACE}", "exec", "deployment/ckp-compass", "--container=compass", "--", "python3"))


@dataclass(frozen=True)
class Means:
    """How the caller reads.

    Args:
        ask: runs a kubectl that prints JSON; the arguments are those behind `Sources.kubectl`.
        read: writes what a request (ckp.hostkit.backup.reading) gives to the file of a member; its size, its SHA-256 and what was seen of it. From
            the name of the member, the request, and a sentence for people.
        entries: of a management host by its name ("" for the one that is acted on) and a folder there: what is in it -> owner, group and mode.
        failure: what `read` raises, with `brief` and `details`.
    """

    ask: Callable[[Sequence[str]], Obj]
    read: Callable[[str, Obj, str], Obj]
    entries: Callable[[str, str], Mapping[str, str]]
    failure: Type[Exception]


@dataclass(frozen=True)
class About:
    """What a manifest says of the site and of the host that was acted on.

    Args:
        hosts: of all management hosts, names -> addresses; none where there is one.
        version: of CKP, that made it.
        made: RFC 3339, when it was begun.
    """

    site: str
    release: str
    host: str
    address: str
    hosts: Mapping[str, str]
    version: str
    made: str
    signing_keys: bool = False


class Unreadable(Exception):
    """A workload cluster's data can't be read.

    Args:
        title: `namespace/name`.
    """

    def __init__(self, title: str, name: str, why: str) -> None:
        super().__init__(f"the etcd of the workload cluster {title} can't be read, and no backup was made: {why}")
        self.title, self.name = title, name


class Collection:
    """The members of a backup as they are collected.

    Args:
        host: the name of the host that is acted on.
        several: whether the site has several management hosts.
    """

    def __init__(self, host: str, sources: Sources, means: Means, *, several: bool) -> None:
        self.host, self.sources, self._means, self._several = host, sources, means, several
        self.members: List[Obj] = []
        self.clusters: List[Obj] = []
        self.postgresql = False

    # -- the management cluster's API

    def cluster_uid(self) -> str:
        """Of the management cluster."""
        return str(self._means.ask(["get", "namespace", "kube-system"])["metadata"]["uid"])

    def control_planes(self) -> List[Obj]:
        """All hosted control planes."""
        return list(self._means.ask(["get", MANAGED, "--all-namespaces"])["items"])

    def volumes(self) -> List[Obj]:
        """Those that lie in a folder of a host, with who owns what is in them: none where that host can't be asked."""
        found = []
        for item in self._means.ask(["get", "persistentvolumes"])["items"]:
            spec = item["spec"]
            path, claim = str((spec.get("hostPath") or spec.get("local") or {}).get("path", "")), spec.get("claimRef")
            if path and claim:
                where = node_of(spec) if self._several else ""
                entries = self._means.entries("" if where == self.host else where, path)
                found.append({"claim": f"{claim['namespace']}/{claim['name']}", "path": path, "entries": dict(entries), "host": where})
        return found

    # -- members, in their order

    def management(self) -> Obj:
        """The management cluster's etcd; what was seen of it."""
        request = {"url": self.sources.etcd, "files": list(self.sources.etcd_files)}
        return self._snapshot(MANAGEMENT, request, "the management cluster's etcd")

    def hosted(self, plane: Mapping[str, Any], without: AnyOf[str], say: Callable[[str], None]) -> None:
        """A workload cluster's etcd, by one of its members that are ready. One that was never there yet has none.

        Args:
            without: clusters (`namespace/name`) whose data may be missing.

        Raises:
            Unreadable: it can't be read, and it is not one of these.
        """
        namespace, version = str(plane["metadata"]["namespace"]), str(plane["spec"].get("version", ""))
        name = str((plane["metadata"].get("labels") or {}).get(CLUSTER_LABEL) or plane["metadata"]["name"])
        title, member = f"{namespace}/{name}", f"etcd/hosted/{namespace}/{name}"
        cluster = {"namespace": namespace, "name": name, "version": version, "member": "", "why": ""}
        why = ""
        for pod, address in self._etcd_pods(namespace, name):
            request = {
                "url": f"https://{address}:{self.sources.hosted_port}",
                "name": f"{pod}.{name}-etcd-peer.{namespace}.svc",
                "kubectl": list(self.sources.kubectl),
                "namespace": namespace,
                "secrets": [f"{name}-etcd", f"{name}-apiserver-etcd-client"],
            }
            try:
                seen = self._snapshot(member, request, f"etcd of {title}")
            except self._means.failure as error:
                brief, details = getattr(error, "brief", str(error)), getattr(error, "details", "")
                why = f"{brief}: {details}" if details else brief
                continue
            say(f"{title}: at revision {seen['revision']} or later")
            self.clusters.append({**cluster, "member": member})
            return
        why = why or "no member of its etcd is ready"
        if not (plane.get("status") or {}).get("initialized"):
            why = f"its control plane is not made yet ({why})"
        elif title not in without:
            raise Unreadable(title, name, why)
        say(f"{title}: WITHOUT ITS DATA: {why}")
        self.clusters.append({**cluster, "why": why})

    def database(self, postgresql: bool) -> None:
        """Compass' database."""
        python, self.postgresql = list(self.sources.python), postgresql
        if postgresql:
            self._read(COPY, POSTGRESQL, {"do": "postgresql", "python": python}, "Compass' data in PostgreSQL")
        else:
            self._read(COMPASS, SQLITE, {"do": "sqlite", "python": python, "path": self.sources.database}, "Compass' database")

    def host_files(self) -> None:
        """Files of the host."""
        about = f"files of {self.host}: Kubernetes' CAs and certificates, settings"
        self._read(HOST, TAR, {"do": "files", "paths": list(self.sources.files)}, about)

    def include(self, name: str, kind: str, size: int, sha256: str, about: str, etcd: Optional[Obj] = None) -> None:
        """A member that the caller has put where `read` puts them."""
        self.members.append({"name": name, "kind": kind, "size": size, "sha256": sha256, "about": about, "etcd": etcd})

    def manifest(self, about: About, uid: str, volumes: Sequence[Obj]) -> Obj:
        """The manifest, as JSON has it (ckp.site.backup.manifest)."""
        sealed = any(member["kind"] == SEALED for member in self.members)
        return {
            "format": SEALED_FORMAT if sealed else FORMAT if self.postgresql or about.hosts else FIRST,
            "site": about.site,
            "made": about.made,
            "ckp": about.version,
            "release": about.release,
            "clusterUid": uid,
            "host": about.host,
            "address": about.address,
            "hosts": dict(about.hosts),
            "signingKeys": about.signing_keys,
            "clusters": self.clusters,
            "volumes": list(volumes),
            "members": self.members,
        }

    # -- how

    def _etcd_pods(self, namespace: str, cluster: str) -> List[Tuple[str, str]]:
        """Names and addresses of its etcd's members that are ready."""
        labels = f"{CLUSTER_LABEL}={cluster},app.kubernetes.io/component=etcd"
        items = self._means.ask(["get", "pods", f"--namespace={namespace}", f"--selector={labels}"])["items"]
        return [(item["metadata"]["name"], item["status"]["podIP"]) for item in items if _ready(item)]

    def _snapshot(self, name: str, request: Obj, about: str) -> Obj:
        said = self._means.read(name, {**request, "do": "etcd"}, about)
        seen = {key: said[key] for key in ("clusterId", "version", "revision", "members")}
        self.include(name, ETCD, said["size"], said["sha256"], about, seen)
        return seen

    def _read(self, name: str, kind: str, request: Obj, about: str) -> None:
        said = self._means.read(name, request, about)
        self.include(name, kind, said["size"], said["sha256"], about)


def _ready(pod: Mapping[str, Any]) -> bool:
    status = pod.get("status") or {}
    conditions = {each["type"]: each["status"] for each in status.get("conditions") or ()}
    return conditions.get("Ready") == "True" and bool(status.get("podIP"))


def node_of(volume: Mapping[str, Any]) -> str:
    """The node that a volume's spec binds it to; "" if it binds it to none, or to several."""
    terms = ((volume.get("nodeAffinity") or {}).get("required") or {}).get("nodeSelectorTerms") or ()
    names = [str(value) for term in terms for each in term.get("matchExpressions") or () if each["key"] == HOSTNAME for value in each.get("values") or ()]
    return names[0] if len(names) == 1 else ""
