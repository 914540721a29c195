"""Takes a backup of a site, in an order in which its parts fit together, and writes it once it is proved.

First the management cluster's etcd, then those of workload clusters, then Compass' database. So what the management cluster knows of a cluster's etcd
is never newer than that etcd (docs/adr/0028-backup-of-a-site.md). All are taken after the beginning: what was acknowledged before it is in all of them.
"""

from __future__ import annotations

import json
import shutil
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ckp import __version__
from ckp.api.names import CLUSTER_NAME_LABEL, SYSTEM_NAMESPACE
from ckp.clients.signing.encryption import ReaderKey, Readers, Signer
from ckp.kits.disks import naming_full_disk
from ckp.kits.errors import CkpError, InvalidInput, NotFound
from ckp.kits.files import sha256_file
from ckp.kits.steps import Steps
from ckp.rules.conditions import is_true
from ckp.site import management
from ckp.site.backup import archive
from ckp.site.backup.archive import Opened
from ckp.site.backup.collect import collect
from ckp.site.backup.manifest import FIRST, FORMAT, MANAGEMENT, Etcd, Hosted, Kind, Manifest, Member, Volume
from ckp.site.backup.proof import Programs, Seen, prove
from ckp.site.install import AGENT_CONFIG
from ckp.site.inventory import SiteHost, SiteHosts
from ckp.site.spec.model import SiteSpec

BACKUP = "backup"
"""The folder below a site's state with what belongs to its backups: the key that signs them, and what is in the making."""
SCRATCH, SIGNER, SEALED = "scratch", "signer", "sealed"
COMPASS, COPY, HOST, STATE, KEYS, SITE = "compass.db", "compass.copy", "host.tar", "state.tar", "signing-keys.tar", "site.yaml"
MANAGED = "managedcontrolplanes.controlplane.cluster.x-k8s.io"
TITLES = (
    "Taking the management cluster's etcd",
    "Taking workload clusters' etcd",
    "Taking Compass' database, certificates and settings",
    "Encrypting it, and proving it by reading it back",
)
HOSTNAME = "kubernetes.io/hostname"
NEVER = ("lock", "sock")
"""Endings of files that are of no use in a backup."""


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

    kubectl: tuple[str, ...]
    etcd: str = "https://127.0.0.1:2379"
    etcd_files: tuple[str, ...] = tuple(f"/etc/kubernetes/pki/etcd/{name}" for name in ("ca.crt", "healthcheck-client.crt", "healthcheck-client.key"))
    hosted_port: int = 2379
    python: tuple[str, ...] = ()
    database: str = "/var/lib/compass/compass.db"
    files: tuple[str, ...] = ("/etc/kubernetes", AGENT_CONFIG, management.JOURNAL, "/etc/hosts")

    @classmethod
    def of(cls, host: SiteHost) -> Sources:
        """Those of a management host. Its own API server is asked: a virtual address may be on its way to another host."""
        kubectl = ("kubectl", f"--kubeconfig={management.ADMIN}", f"--server={management.server(host)}")
        return cls(kubectl, python=(*kubectl, f"--namespace={SYSTEM_NAMESPACE}", "exec", "deployment/ckp-compass", "--container=compass", "--", "python3"))


@dataclass(frozen=True)
class Wanted:
    """A backup that is to be made.

    Args:
        site: its name.
        file: `site.yaml`.
        state: what this machine keeps of the site.
        release: the management cluster's.
        keys: the folder of the keys that sign releases, if they are to be in it.
        without: workload clusters (`namespace/name`) whose etcd may be missing.
        postgresql: Compass has its data there, and not in SQLite.
    """

    site: str
    file: Path
    state: Path
    release: str
    readers: Readers
    keys: Path | None = None
    without: Sequence[str] = ()
    postgresql: bool = False


@dataclass(frozen=True)
class Taken:
    """A backup that was made.

    Args:
        signed_by: fingerprint of the key that signed it.
    """

    manifest: Manifest
    signed_by: str
    seen: Sequence[Seen]


@contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """A folder that only this user may enter, which ends with the block. What a killed run left there is removed. The caller holds a lock on `parent`."""
    parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder = parent / SCRATCH
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def sealing_folder(state: Path) -> Iterator[Path]:
    """A folder of this user alone for a backup that goes elsewhere, as `scratch_folder`. The caller holds the lock of the site."""
    with scratch_folder(state / BACKUP / SEALED) as folder:
        yield folder


def refuse_site(spec: SiteSpec) -> None:
    """InvalidInput for a site on an existing cluster: its etcd and its hosts are its owner's, who backs them up and restores them."""
    if spec.management.kubeconfig is not None:
        raise InvalidInput(
            f"the site {spec.metadata.name} is on an existing cluster, which CKP neither backs up nor restores; nothing was changed",
            resolution="use the means by which that cluster is backed up; its etcd holds all of the site but the volumes of workload clusters' etcd",
        )


def take(hosts: SiteHosts, wanted: Wanted, target: Path, programs: Programs | None, steps: Steps, sources: Sources | None = None) -> Taken:
    """Make a backup. The caller sees to it that nobody else changes the site or backs it up.

    Args:
        hosts: the one that is acted on has the cluster; of the others, it is only asked who owns what is in volumes.
        programs: etcd's, to prove the snapshots; None if they are not here.

    Raises:
        InvalidInput: `target` is there already.
        NotFound: a workload cluster's etcd can't be read, and it is not among `wanted.without`.
        CkpError: a part can't be read, encrypted or proved. There is no file then.
    """
    archive.refuse_target(target)
    host = hosts.management
    several = {each.name: each.address for each in hosts.masters} if len(hosts.masters) > 1 else {}
    own = wanted.state / BACKUP
    with scratch_folder(own) as scratch:
        signer = Signer.ensure(own / SIGNER, f"CKP backups of {wanted.site} <backups@{wanted.site}.invalid>")
        collected = _Collection(hosts, scratch / "members", sources or Sources.of(host))
        managing, hosted, rest, sealing = TITLES
        made = datetime.now(UTC)
        with steps.step(managing):
            uid, planes = collected.cluster_uid(), collected.control_planes()
            request = {"url": collected.sources.etcd, "files": list(collected.sources.etcd_files)}
            seen = collected.snapshot(MANAGEMENT, request, "the management cluster's etcd")
            steps.say(f"at revision {seen.revision} or later; {len(planes)} workload clusters")
        with steps.step(hosted):
            clusters = tuple(_hosted(collected, plane, wanted.without, steps.say) for plane in planes)
        with steps.step(rest):
            collected.database(wanted.postgresql)
            collected.add(
                HOST, Kind.TAR, {"do": "files", "paths": list(collected.sources.files)}, f"files of {host.name}: Kubernetes' CAs and certificates, settings"
            )
            collected.pack(STATE, wanted.state, "what this machine keeps of the site: the registry's CA and password", but=(own / SCRATCH, own / SEALED))
            if wanted.keys is not None:
                collected.pack(KEYS, wanted.keys, "the keys that sign releases")
            collected.copy(SITE, wanted.file, "the site's file")
            volumes = collected.volumes()
        manifest = Manifest(
            format=FORMAT if wanted.postgresql or several else FIRST,
            site=wanted.site,
            made=made,
            ckp=__version__,
            release=wanted.release,
            cluster_uid=uid,
            host=host.name,
            address=host.address,
            hosts=several,
            signing_keys=wanted.keys is not None,
            clusters=clusters,
            volumes=volumes,
            members=tuple(collected.members),
        )
        with steps.step(sealing):
            ours = archive.fingerprint_of(signer.folder / "signer.pgp")
            found: list[Seen] = []

            def read_back(part: Path, reader: ReaderKey) -> None:
                shutil.rmtree(collected.folder)  # what is on the disk counts now
                with archive.opened(part, reader, lambda _: ours, scratch) as backup:
                    found.extend(prove(backup, programs, scratch, steps.say))

            archive.seal(target, Opened(manifest, ours, collected.folder), signer, wanted.readers, scratch, read_back)
    return Taken(manifest, ours, tuple(found))


def _hosted(collected: _Collection, plane: dict[str, Any], without: Sequence[str], say: Callable[[str], None]) -> Hosted:
    """A workload cluster, with its snapshot. One that was never there yet has none. NotFound if it can't be read."""
    namespace, version = plane["metadata"]["namespace"], str(plane["spec"].get("version", ""))
    name = (plane["metadata"].get("labels") or {}).get(CLUSTER_NAME_LABEL) or plane["metadata"]["name"]
    title, member = f"{namespace}/{name}", f"etcd/hosted/{namespace}/{name}"
    why = ""
    for pod, address in collected.etcd_pods(namespace, name):
        request = {
            "url": f"https://{address}:{collected.sources.hosted_port}",
            "name": f"{pod}.{name}-etcd-peer.{namespace}.svc",
            "kubectl": list(collected.sources.kubectl),
            "namespace": namespace,
            "secrets": [f"{name}-etcd", f"{name}-apiserver-etcd-client"],
        }
        try:
            seen = collected.snapshot(member, request, f"etcd of {title}")
        except CkpError as error:
            why = f"{error.brief}: {error.details}" if error.details else error.brief
            continue
        say(f"{title}: at revision {seen.revision} or later")
        return Hosted(namespace=namespace, name=name, version=version, member=member)
    why = why or "no member of its etcd is ready"
    initialized = (plane.get("status") or {}).get("initialized")
    if not initialized:
        why = f"its control plane is not made yet ({why})"
    elif title not in without:
        raise NotFound(
            f"the etcd of the workload cluster {title} can't be read, and no backup was made: {why}",
            resolution=f"see ckp cluster describe {name}; or make a backup in which its data is missing: --without {title}",
        )
    say(f"{title}: WITHOUT ITS DATA: {why}")
    return Hosted(namespace=namespace, name=name, version=version, why=why)


class _Collection:
    """The members as they are collected, in a folder."""

    def __init__(self, hosts: SiteHosts, folder: Path, sources: Sources) -> None:
        self.host, self.folder, self.sources = hosts.management, folder, sources
        self.others = {each.name: each for each in hosts.masters} if len(hosts.masters) > 1 else {}
        self.members: list[Member] = []

    # -- the management cluster's API

    def cluster_uid(self) -> str:
        """Of the management cluster."""
        return str(self._kubectl("get", "namespace", "kube-system")["metadata"]["uid"])

    def control_planes(self) -> list[dict[str, Any]]:
        """All hosted control planes."""
        found: list[dict[str, Any]] = self._kubectl("get", MANAGED, "--all-namespaces")["items"]
        return found

    def etcd_pods(self, namespace: str, cluster: str) -> list[tuple[str, str]]:
        """Names and addresses of its etcd's members that are ready."""
        labels = f"{CLUSTER_NAME_LABEL}={cluster},app.kubernetes.io/component=etcd"
        items = self._kubectl("get", "pods", f"--namespace={namespace}", f"--selector={labels}")["items"]
        return [(item["metadata"]["name"], item["status"]["podIP"]) for item in items if _ready(item)]

    def volumes(self) -> tuple[Volume, ...]:
        """Those that lie in a folder of a host, with who owns what is in them: none where that host can't be asked."""
        found = []
        for item in self._kubectl("get", "persistentvolumes")["items"]:
            spec = item["spec"]
            path, claim = str((spec.get("hostPath") or spec.get("local") or {}).get("path", "")), spec.get("claimRef")
            if path and claim:
                where = _node_of(spec) if self.others else ""
                entries = self._entries(self.others.get(where) if where else self.host, path)
                found.append(Volume(claim=f"{claim['namespace']}/{claim['name']}", path=path, entries=entries, host=where))
        return tuple(found)

    def _entries(self, host: SiteHost | None, path: str) -> dict[str, str]:
        if host is None:
            return {}
        argv = ["find", path, "-mindepth", "1", "-maxdepth", "1", "-printf", "%f/%U %G %m\\n"]
        try:
            seen = host.run(argv, timeout=60, what=f"looking into {path}")
        except CkpError:
            if host.name == self.host.name:
                raise
            return {}  # it is away: the owners are known without it, where nobody has changed them
        return dict(line.split("/", 1) for line in seen.stdout.splitlines())

    def _kubectl(self, *arguments: str) -> dict[str, Any]:
        argv = [*self.sources.kubectl, "--request-timeout=60s", *arguments, "--output=json"]
        found: dict[str, Any] = json.loads(self.host.run(argv, timeout=120, what=f"kubectl {' '.join(arguments[:2])}").stdout)
        return found

    # -- members

    def snapshot(self, name: str, request: dict[str, Any], about: str) -> Etcd:
        """A snapshot of etcd, and what was seen of it. Raises CkpError."""
        said = self._collect(name, {**request, "do": "etcd"}, about)
        seen = Etcd(cluster_id=said["clusterId"], version=said["version"], revision=said["revision"], members=said["members"])
        self._append(name, Kind.ETCD, about, said["sha256"], seen)
        return seen

    def add(self, name: str, kind: Kind, request: dict[str, Any], about: str) -> None:
        """Something else of the host. Raises CkpError."""
        self._append(name, kind, about, self._collect(name, request, about)["sha256"])

    def database(self, postgresql: bool) -> None:
        """Compass' database. Raises CkpError."""
        python = list(self.sources.python)
        if postgresql:
            self.add(COPY, Kind.POSTGRESQL, {"do": "postgresql", "python": python}, "Compass' data in PostgreSQL")
        else:
            self.add(COMPASS, Kind.SQLITE, {"do": "sqlite", "python": python, "path": self.sources.database}, "Compass' database")

    def copy(self, name: str, source: Path, about: str) -> None:
        """A file of this machine."""
        self._place(name).write_bytes(source.read_bytes())
        self._append(name, Kind.FILE, about)

    def pack(self, name: str, source: Path, about: str, *, but: Sequence[Path] = ()) -> None:
        """A folder of this machine, without locks and what is in the making."""
        with naming_full_disk(self.folder), tarfile.open(self._place(name), "x", format=tarfile.PAX_FORMAT) as packed:
            for path in sorted(source.rglob("*")):
                inside = path.relative_to(source)
                unwanted = path.name.rpartition(".")[2] in NEVER or any(path.is_relative_to(each) for each in but)
                if not unwanted and path.is_file() and not path.is_symlink():
                    packed.add(path, arcname=str(inside), recursive=False)
        self._append(name, Kind.TAR, about)

    def _collect(self, name: str, request: dict[str, Any], about: str) -> dict[str, Any]:
        path = self._place(name)
        path.unlink(missing_ok=True)  # of another member of the same etcd, which broke off
        try:
            return collect(self.host, request, path, f"reading {about} on {self.host.name}")
        except BaseException:
            path.unlink(missing_ok=True)
            raise

    def _append(self, name: str, kind: Kind, about: str, sha256: str = "", seen: Etcd | None = None) -> None:
        path = self.folder / name
        self.members.append(Member(name=name, kind=kind, size=path.stat().st_size, sha256=sha256 or sha256_file(path), about=about, etcd=seen))

    def _place(self, name: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        return path


def _node_of(volume: dict[str, Any]) -> str:
    """The node that a local volume is bound to, from its spec; "" if it is bound to none."""
    terms = ((volume.get("nodeAffinity") or {}).get("required") or {}).get("nodeSelectorTerms") or ()
    names = [str(value) for term in terms for each in term.get("matchExpressions") or () if each["key"] == HOSTNAME for value in each.get("values") or ()]
    return names[0] if len(names) == 1 else ""


def _ready(pod: dict[str, Any]) -> bool:
    return bool(pod["status"].get("podIP")) and is_true(pod, "Ready")
