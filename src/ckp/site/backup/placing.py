"""Puts what a backup holds onto new management hosts, before anything is installed there. The steps of `ckp site apply` do the rest.

The host that is acted on finds the data of its own etcd and Kubernetes' CAs in a folder that the installation begins with (ckp.standalone.restored): it is the
only member then, and the others join it. The data of workload clusters and Compass goes into the folders that the restored API names as their volumes, on the
hosts that it names. Revisions are raised, so that nobody sees them go back.
"""

from __future__ import annotations

import json
import secrets
import shutil
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ckp.backups.archive import Opened
from ckp.backups.members import Etcd, Kind
from ckp.backups.scratch import Programs
from ckp.hostkit.backup.collection import COMPASS, HOST
from ckp.hostkit.locations import RESTORED, RESTORED_RECORD
from ckp.kits.errors import VerificationFailed
from ckp.kits.files import sha256_bytes
from ckp.kits.processes import run
from ckp.site.backup.manifest import MANAGEMENT, Hosted, Manifest, Volume
from ckp.site.inventory import SiteHost, SiteHosts, acted_on_first

COMPASS_CLAIM = "ckp-system/ckp-compass"
BUMP = 1_000_000_000
"""What revisions are raised by: more than a cluster writes between two backups."""
ETCD_TOKEN = "etcd-cluster"
RESTORE_SECONDS = 600.0
PEER_PORT = 2380
"""Where kubeadm has a member of etcd listen to the others."""
PKI = "etc/kubernetes/pki/"
"""In the backup's files of the host."""
CAS = ("ca.crt", "ca.key", "front-proxy-ca.crt", "front-proxy-ca.key", "etcd/ca.crt", "etcd/ca.key", "sa.key", "sa.pub")
"""What of PKI is restored; kubeadm issues the rest from it, also when a backup is older than its certificates."""
DATA_OWNER, DATABASE_OWNER = "65532 65532 700", "65532 65532 644"
"""Owner, group and mode where the manifest does not say."""

Say = Callable[[str], None]


def identity(manifest: Manifest) -> str:
    """Tells a backup from others: the SHA-256 of its manifest, which has the digests of all that is in it."""
    return sha256_bytes(manifest.encoded())


def place(backup: Opened[Manifest], hosts: SiteHosts, programs: Programs, scratch: Path, say: Say) -> None:
    """Put everything onto the hosts; running it again after a break begins again. Nothing runs there yet.

    Args:
        scratch: a folder of the caller's (0700).

    Raises:
        CkpError: a snapshot can't be restored, or a host can't be reached.
    """
    manifest, run_id = backup.manifest, secrets.token_hex(8)
    record = {"backup": identity(manifest), "site": manifest.site, "made": manifest.made.isoformat(), "run": run_id, "placed": False}
    first, *others = acted_on_first(hosts)
    for host in (*others, first):  # its record says that all have what they get
        host.run(["mkdir", "-p", "-m", "0700", RESTORED], timeout=30)
        host.push(json.dumps(record).encode(), RESTORED_RECORD, mode=0o600)
        placer = _Placer(backup, host, programs, scratch)
        _place_volumes(placer, volumes_on(manifest, host, hosts), say)
        if host is first:
            peers = {first.name: (f"https://{first.address}:{PEER_PORT}",)}
            placer.put_etcd(MANAGEMENT, first.name, peers, ETCD_TOKEN, f"{RESTORED}/etcd", "0 0 700")
            placer.put_cas()
            say(f"the management cluster's etcd: ready for {host.name}")
        host.push(json.dumps({**record, "placed": True}).encode(), RESTORED_RECORD, mode=0o600)
    for cluster in manifest.clusters:
        if not cluster.member:
            say(f"{cluster.title}: WITHOUT ITS DATA: {cluster.why}")
    names = {host.name for host in hosts.masters}
    for claim, volume in _placements(manifest).items():
        if volume.host and volume.host not in names:
            say(f"{claim}: its volume was on {volume.host}, which was no host of the site any more: what needs it begins without it")


def _place_volumes(placer: _Placer, volumes: Mapping[str, Volume], say: Say) -> None:
    manifest, host = placer.backup.manifest, placer.host
    for cluster in manifest.clusters:
        for name, volume in ((name, volumes[claim]) for name in _members(manifest, cluster) if (claim := _claim(cluster, name)) in volumes):
            placer.make_volume(volume)
            token, owner = f"{cluster.namespace}.{cluster.name}", volume.entries.get("data", DATA_OWNER)
            placer.put_etcd(cluster.member, name, _members(manifest, cluster), token, f"{volume.path}/data", owner)
            say(f"{cluster.title}: its etcd {name} is in place on {host.name}")
    if (compass := volumes.get(COMPASS_CLAIM)) is not None:
        placer.make_volume(compass)
        host.push(placer.backup.path(manifest.member(COMPASS)), f"{compass.path}/compass.db", mode=0o600)
        placer.own(f"{compass.path}/compass.db", compass.entries.get("compass.db", DATABASE_OWNER))
        say(f"Compass' database: in place on {host.name}")


class _Placer:
    """Brings parts of a backup to a host."""

    def __init__(self, backup: Opened[Manifest], host: SiteHost, programs: Programs, scratch: Path) -> None:
        self.backup, self.host, self.programs, self.scratch = backup, host, programs, scratch

    def put_etcd(self, member: str, name: str, peers: Mapping[str, Sequence[str]], token: str, target: str, owner: str) -> None:
        """One member's data folder, as `etcdutl` makes it from a snapshot here, on the host.

        Args:
            peers: the members that the cluster begins with: names -> addresses for their peers.
        """
        data, packed = self.scratch / "data", self.scratch / "data.tar"
        self._clear(data, packed)
        initial = ",".join(f"{other}={url}" for other, urls in peers.items() for url in urls)
        argv: list[str | Path] = [self.programs.etcdutl, "snapshot", "restore", self.backup.path(self.backup.manifest.member(member)), f"--data-dir={data}"]
        argv += [f"--name={name}", f"--initial-cluster={initial}", f"--initial-cluster-token={token}", f"--bump-revision={BUMP}", "--mark-compacted"]
        argv += [f"--initial-advertise-peer-urls={','.join(peers[name])}"]
        try:
            run(argv, timeout=RESTORE_SECONDS, what=f"restoring {member}")
            with tarfile.open(packed, "x") as archive:
                archive.add(data, arcname=".")
            self._unpack(packed, target, owner)
        finally:
            self._clear(data, packed)

    def put_cas(self) -> None:
        """Kubernetes' CAs, and the key of its service accounts."""
        packed = self.scratch / "pki.tar"
        self._clear(packed)
        try:
            with tarfile.open(self.backup.path(self.backup.manifest.member(HOST))) as source, tarfile.open(packed, "x") as archive:
                for entry in source:
                    name = entry.name.removeprefix(PKI)
                    if entry.isreg() and name != entry.name and name in CAS:
                        content = source.extractfile(entry)
                        entry.name = name
                        archive.addfile(entry, content)
            self._unpack(packed, f"{RESTORED}/pki", "0 0 755")
        finally:
            self._clear(packed)

    def make_volume(self, volume: Volume) -> None:
        """Its folder, as the provisioner makes it: whoever runs in the pod may write there."""
        self.host.run(["mkdir", "-p", volume.path], timeout=30)
        self.host.run(["chmod", "0777", volume.path], timeout=30)

    def own(self, path: str, owner: str) -> None:
        """Give it an owner, a group and a mode."""
        user, group, mode = owner.split()
        self.host.run(["chown", "-R", f"{user}:{group}", path], timeout=600)
        self.host.run(["chmod", f"0{mode}", path], timeout=30)

    def _unpack(self, packed: Path, target: str, owner: str) -> None:
        """A tar of ours as a folder of the host, all of it owned alike."""
        carried = f"{RESTORED}/carried.tar"
        self.host.push(packed, carried, mode=0o600)
        self.host.run(["rm", "-rf", "--", target], timeout=600)
        self.host.run(["mkdir", "-p", "-m", "0700", target], timeout=30)
        self.host.run(["tar", "-x", "-C", target, "--no-same-owner", "-f", carried], timeout=1800, what=f"unpacking {target}")
        self.own(target, owner)
        self.host.run(["rm", "-rf", "--", carried], timeout=60)

    @staticmethod
    def _clear(*paths: Path) -> None:
        for path in paths:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def own(manifest: Manifest) -> Etcd:
    """What was seen of the management cluster's etcd. VerificationFailed if the backup has none."""
    found = next((member.etcd for member in manifest.members if member.name == MANAGEMENT), None)
    if found is None:
        raise VerificationFailed("the backup has no snapshot of the management cluster's etcd")
    return found


def volumes_on(manifest: Manifest, host: SiteHost, hosts: SiteHosts) -> dict[str, Volume]:
    """The volumes that get data on a host, by their claims. VerificationFailed if the backup does not name the volume of an etcd's member, or of Compass."""
    found = _placements(manifest)
    return {claim: volume for claim, volume in found.items() if (volume.host or hosts.management.name) == host.name}


def _placements(manifest: Manifest) -> dict[str, Volume]:
    volumes = {volume.claim: volume for volume in manifest.volumes}
    wanted = {COMPASS_CLAIM: "Compass' database"} if any(member.kind is Kind.SQLITE for member in manifest.databases) else {}
    for cluster in manifest.clusters:
        for name in _members(manifest, cluster):
            wanted[_claim(cluster, name)] = f"the etcd member {name} of {cluster.title}"
    if missing := [what for claim, what in wanted.items() if claim not in volumes]:
        raise VerificationFailed(f"the backup does not say where the data of {', '.join(missing)} belongs")
    return {claim: volumes[claim] for claim in wanted}


def _members(manifest: Manifest, cluster: Hosted) -> Mapping[str, Sequence[str]]:
    """Of a workload cluster's etcd: names -> addresses for its peers; none if the backup does not have its data."""
    etcd = manifest.member(cluster.member).etcd if cluster.member else None
    return etcd.members if etcd else {}


def _claim(cluster: Hosted, member: str) -> str:
    return f"{cluster.namespace}/data-{member}"
