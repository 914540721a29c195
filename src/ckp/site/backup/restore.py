"""Brings what a backup holds onto a new management host, before anything is installed there. The steps of `ckp site apply` do the rest.

The host finds the data of its own etcd and Kubernetes' CAs in a folder that the installation begins with (ckp.standalone.restored), and the data of
workload clusters and Compass in the folders that the restored API names as their volumes. Revisions are raised, so that nobody sees them go back.

What is begun is recorded on the host with the backup's digest: a run that is killed is gone on with, from the same backup only.
"""

from __future__ import annotations

import json
import shutil
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ckp.hostkit.locations import RESTORED, RESTORED_RECORD
from ckp.kits.errors import CkpError, Conflict, InvalidInput, VerificationFailed
from ckp.kits.files import atomic_write, sha256_bytes
from ckp.kits.processes import run
from ckp.site import management
from ckp.site.backup.archive import Opened
from ckp.site.backup.manifest import MANAGEMENT, Etcd, Hosted, Manifest, Volume
from ckp.site.backup.proof import Programs
from ckp.site.backup.take import COMPASS, HOST, KEYS, STATE
from ckp.site.install import APPLIED
from ckp.site.inventory import SiteHost
from ckp.site.spec.model import SiteSpec

COMPASS_CLAIM = "ckp-system/ckp-compass"
BUMP = 1_000_000_000
"""What revisions are raised by: more than a cluster writes between two backups."""
ETCD_TOKEN = "etcd-cluster"
RESTORE_SECONDS = 600.0
MARKS = ("/etc/kubernetes/manifests/etcd.yaml", "/var/lib/etcd/member", management.JOURNAL)
"""Of a host that is a cluster, or has begun to become one."""
REGISTRY_CA = "registry/ca.pem"
JOURNAL_MEMBER, PKI = management.JOURNAL.lstrip("/"), "etc/kubernetes/pki/"
"""In the backup's files of the host."""
CAS = ("ca.crt", "ca.key", "front-proxy-ca.crt", "front-proxy-ca.key", "etcd/ca.crt", "etcd/ca.key", "sa.key", "sa.pub")
"""What of PKI is restored; kubeadm issues the rest from it, also when a backup is older than its certificates."""
DATA_OWNER, DATABASE_OWNER = "65532 65532 700", "65532 65532 644"
"""Owner, group and mode where the manifest does not say."""

Say = Callable[[str], None]


def identity(manifest: Manifest) -> str:
    """Tells a backup from others: the SHA-256 of its manifest, which has the digests of all that is in it."""
    return sha256_bytes(manifest.encoded())


def refuse_site(spec: SiteSpec) -> None:
    """InvalidInput if a site as described is none that this version restores."""
    name = spec.metadata.name
    if len(spec.management.hosts or ()) != 1:
        raise InvalidInput(
            f"{name} has {len(spec.management.hosts or ())} management hosts, and this version restores sites of one",
            resolution="as long as more than half of them run, none is needed: name a new host in the lost one's place, and `ckp site apply`",
        )
    if spec.addresses.api.virtual_address is not None:
        raise InvalidInput(
            f"the management API of {name} has a virtual address, and this version does not restore such sites",
            resolution="restore etcd's snapshot by hand, as Kubernetes and etcd describe it: docs/how-to/site-backup.md says how a backup is taken apart",
        )
    if spec.database.postgresql is not None:
        raise InvalidInput(
            f"Compass of {name} has its data in PostgreSQL, and this version does not restore such sites",
            resolution="restore the database by its own means, and etcd's snapshot by hand, as Kubernetes and etcd describe it",
        )


def refuse(manifest: Manifest, spec: SiteSpec, host: SiteHost) -> None:
    """Raise what makes a restore impossible; nothing was changed.

    Raises:
        InvalidInput: the backup is of another site, host or release.
        VerificationFailed: it does not say where data belongs.
        Conflict: the host is in use, or another backup's restore was begun on it.
    """
    site, offered = spec.metadata.name, spec.releases
    if manifest.site != site:
        raise InvalidInput(f"the backup is of the site {manifest.site}, and the file describes {site}", resolution="name the site's own file or backup")
    if (manifest.host, manifest.address) != (host.name, host.address):
        raise InvalidInput(
            f"the backup is of {manifest.host} ({manifest.address}), and the site's file names {host.name} ({host.address})",
            resolution="give the new host the name and the address of the old one: certificates, agents and nodes hold them",
        )
    needed = dict.fromkeys((manifest.release, *(cluster.version for cluster in manifest.clusters if cluster.version)))
    if missing := [name for name in needed if name not in offered]:
        raise InvalidInput(
            f"the management cluster or workload clusters of the backup are of {', '.join(missing)}, which `releases` does not name",
            resolution=f"add {', '.join(missing)} to `releases`",
        )
    if len(_own(manifest).members) != 1:
        raise InvalidInput(
            f"the management cluster of the backup has {len(_own(manifest).members)} members, and this version restores sites of one management host",
            resolution="restore etcd's snapshot by hand, as Kubernetes and etcd describe it",
        )
    volumes = [volume.path for _, volume in _placements(manifest)]
    record = _record(host)
    if record and record["backup"] != identity(manifest):
        raise Conflict(
            f"on {host.name} the restore of another backup was begun, and nothing was changed",
            details=f"{RESTORED_RECORD} names {record['backup']}, and this backup is {identity(manifest)}",
            resolution=f"go on with that one; or take a clean host; or clean it: ckp site remove --confirm {site}, then rm -rf {' '.join(volumes)} there",
        )
    if record and record["placed"]:
        return
    paths = MARKS if record else (*MARKS, *volumes)
    if used := [path for path in paths if host.run(["test", "-e", path], timeout=30, check=False).code == 0]:
        raise Conflict(
            f"{host.name} is in use, and nothing was changed: it has {', '.join(used)}",
            resolution=f"a backup is restored onto a new host only; take a clean one, or clean this one and lose its data: ckp site remove --confirm {site}",
        )


def _own(manifest: Manifest) -> Etcd:
    """What was seen of the management cluster's etcd. VerificationFailed if the backup has none."""
    found = next((member.etcd for member in manifest.members if member.name == MANAGEMENT), None)
    if found is None:
        raise VerificationFailed("the backup has no snapshot of the management cluster's etcd")
    return found


def _placements(manifest: Manifest) -> list[tuple[str, Volume]]:
    """What has its data in a volume, with that: an etcd's member, or Compass. VerificationFailed if the backup does not name the volume."""
    volumes = {volume.claim: volume for volume in manifest.volumes}
    wanted = {COMPASS_CLAIM: "Compass' database"}
    for cluster in manifest.clusters:
        for name in _members(manifest, cluster):
            wanted[_claim(cluster, name)] = f"the etcd member {name} of {cluster.title}"
    if missing := [what for claim, what in wanted.items() if claim not in volumes]:
        raise VerificationFailed(f"the backup does not say where the data of {', '.join(missing)} belongs")
    return [(claim, volumes[claim]) for claim in wanted]


def _members(manifest: Manifest, cluster: Hosted) -> Mapping[str, Sequence[str]]:
    """Of a workload cluster's etcd: names -> addresses for its peers; none if the backup does not have its data."""
    etcd = manifest.member(cluster.member).etcd if cluster.member else None
    return etcd.members if etcd else {}


def _claim(cluster: Hosted, member: str) -> str:
    return f"{cluster.namespace}/data-{member}"


def _record(host: SiteHost) -> dict[str, Any]:
    """What the host has of a restore that is not finished; nothing if there is none."""
    if host.run(["test", "-e", RESTORED_RECORD], timeout=30, check=False).code:
        return {}
    try:
        found = json.loads(host.pull(RESTORED_RECORD))
        return {"backup": str(found["backup"]), "placed": found["placed"] is True}
    except (ValueError, KeyError, TypeError) as error:
        raise CkpError(f"{host.name}:{RESTORED_RECORD} can't be read: {error!r}", resolution=f"take a clean host, or remove {RESTORED}") from None


def placed(host: SiteHost) -> bool:
    """Whether an earlier run has put everything where it belongs. What is left to do is to install the host."""
    return bool(_record(host).get("placed"))


def refuse_unfinished(host: SiteHost) -> None:
    """Conflict if a restore was begun on a host, and is not finished: what else is done there would begin without its data, or lose it."""
    if _record(host):
        raise Conflict(
            f"a restore was begun on {host.name} and is not finished, and nothing was changed",
            resolution=f"run the same `ckp site restore` again: it goes on. Or give it up, with the data that it has brought: rm -rf {RESTORED} on that host",
        )


# -- this machine


def refuse_content(backup: Opened, spec: SiteSpec, state: Path) -> None:
    """Raise what keeps parts of the backup from being restored; nothing was changed.

    Args:
        state: what this machine keeps of the site.

    Raises:
        InvalidInput: the file has other networks than the cluster was made with.
        Conflict: this machine has another registry's CA for this site.
        VerificationFailed: a part is not what it should be.
    """
    with tarfile.open(backup.path(backup.manifest.member(HOST))) as packed:
        have = set(packed.getnames())
        journal = packed.extractfile(JOURNAL_MEMBER) if JOURNAL_MEMBER in have else None
        made_with = _settings(journal.read()) if journal else {}
    if missing := [name for name in CAS if PKI + name not in have]:
        raise VerificationFailed(f"the backup does not have {', '.join(missing)} of the management cluster")
    networks = {"pod_cidr": ("managementPods", spec.addresses.management_pods), "service_cidr": ("managementServices", spec.addresses.management_services)}
    for key, (where, value) in networks.items():
        if (old := made_with.get(key, str(value))) != str(value):
            raise InvalidInput(f"the cluster of the backup was made with {where} {old}, and the file has {value}", resolution=f"write {old} back")
    for name, _, content in _files(backup, STATE, state):
        if name == REGISTRY_CA and (state / name).exists() and (state / name).read_bytes() != content:
            raise Conflict(f"{state / name} is of another registry than the backup's", resolution=f"move {state} away, and run the same command again")


def _settings(journal: bytes) -> Mapping[str, Any]:
    """What an installation was made with, from its record (ckp.agent.journal); nothing if that can't be read."""
    try:
        found: Mapping[str, Any] = json.loads(journal)["member"] or {}
    except (ValueError, KeyError, TypeError):
        return {}
    return found


def restore_state(backup: Opened, state: Path, say: Say) -> None:
    """What this machine kept of the site, where it is missing. `refuse_content` has passed.

    What it knows of the objects in the cluster is the backup's in any case: where it has applied others since, they have to be applied again.
    """
    shutil.rmtree(state / APPLIED, ignore_errors=True)
    for name, mode, content in _files(backup, STATE, state):
        if not (state / name).exists():
            _write(state / name, content, mode)
            say(f"{state / name}: from the backup")


def restore_keys(backup: Opened, keys: Path, say: Say) -> None:
    """The keys that sign releases, if the backup has them and this machine has none: hosts trust them, and no others."""
    if not backup.manifest.signing_keys:
        return
    if keys.exists() and any(keys.iterdir()):
        say(f"{keys}: left as it is")
        return
    made = keys.with_name(f".{keys.name}.restored")
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True, mode=0o700)
    for name, mode, content in _files(backup, KEYS, made):
        _write(made / name, content, mode)
    made.rename(keys)
    say(f"{keys}: from the backup")


def _write(path: Path, content: bytes, mode: int) -> None:
    """A file, in folders that are this user's alone where there are none yet."""
    for folder in reversed(path.parents):
        if not folder.exists():
            folder.mkdir(mode=0o700)
    atomic_write(path, content, mode=mode)


def _files(backup: Opened, member: str, below: Path) -> Iterator[tuple[str, int, bytes]]:
    """Files of a member: name, mode, content. VerificationFailed if one would lie outside of `below`."""
    with tarfile.open(backup.path(backup.manifest.member(member))) as packed:
        for entry in packed:
            if not entry.isreg() or not (below / entry.name).resolve().is_relative_to(below.resolve()):
                raise VerificationFailed(f"{member} holds {entry.name[:200]!r}, which is no file of that folder")
            content = packed.extractfile(entry)
            assert content is not None
            yield entry.name, entry.mode & 0o755 | 0o600, content.read()


# -- the host


def place(backup: Opened, host: SiteHost, programs: Programs, scratch: Path, say: Say) -> None:
    """Put everything onto the host; running it again after a break begins again. Nothing runs there yet.

    Args:
        scratch: a folder of the caller's (0700).

    Raises:
        CkpError: a snapshot can't be restored, or the host can't be reached.
    """
    manifest = backup.manifest
    placer = _Placer(backup, host, programs, scratch)
    host.run(["mkdir", "-p", "-m", "0700", RESTORED], timeout=30)
    record = {"backup": identity(manifest), "site": manifest.site, "made": manifest.made.isoformat(), "placed": False}
    host.push(json.dumps(record).encode(), RESTORED_RECORD, mode=0o600)
    volumes = dict(_placements(manifest))
    for name in _own(manifest).members:
        placer.put_etcd(MANAGEMENT, name, ETCD_TOKEN, f"{RESTORED}/etcd", "0 0 700")
    say(f"the management cluster's etcd: ready for {host.name}")
    for cluster in manifest.clusters:
        for name in _members(manifest, cluster):
            volume = volumes[_claim(cluster, name)]
            placer.make_volume(volume)
            placer.put_etcd(cluster.member, name, f"{cluster.namespace}.{cluster.name}", f"{volume.path}/data", volume.entries.get("data", DATA_OWNER))
        say(f"{cluster.title}: its etcd is in place" if cluster.member else f"{cluster.title}: WITHOUT ITS DATA: {cluster.why}")
    compass = volumes[COMPASS_CLAIM]
    placer.make_volume(compass)
    host.push(backup.path(manifest.member(COMPASS)), f"{compass.path}/compass.db", mode=0o600)
    placer.own(f"{compass.path}/compass.db", compass.entries.get("compass.db", DATABASE_OWNER))
    say("Compass' database: in place")
    placer.put_cas()
    host.push(json.dumps({**record, "placed": True}).encode(), RESTORED_RECORD, mode=0o600)


def finish(host: SiteHost, manifest: Manifest) -> None:
    """The site runs: what it was made from is no longer needed. The record goes last, so that a run that is killed here is gone on with.

    Raises:
        CkpError: the cluster is not the one of the backup.
    """
    uid = management.kubectl(host, "get", "namespace", "kube-system", "-o", "jsonpath={.metadata.uid}").strip()
    if uid != manifest.cluster_uid:
        raise CkpError(
            f"{host.name} runs a management cluster without the backup's data: its id is {uid}, and not {manifest.cluster_uid}",
            resolution="the host tool of that release may be too old to restore; take a clean host, and a release that this version of CKP has built",
        )
    host.run(["rm", "-rf", "--", f"{RESTORED}/etcd", f"{RESTORED}/pki"], timeout=600)
    host.run(["rm", "-rf", "--", RESTORED], timeout=60)


class _Placer:
    """Brings parts of a backup to a host."""

    def __init__(self, backup: Opened, host: SiteHost, programs: Programs, scratch: Path) -> None:
        self.backup, self.host, self.programs, self.scratch = backup, host, programs, scratch

    def put_etcd(self, member: str, name: str, token: str, target: str, owner: str) -> None:
        """One member's data folder, as `etcdutl` makes it from a snapshot here, on the host."""
        seen = self.backup.manifest.member(member).etcd
        assert seen is not None
        data, packed = self.scratch / "data", self.scratch / "data.tar"
        self._clear(data, packed)
        initial = ",".join(f"{other}={url}" for other, urls in seen.members.items() for url in urls)
        argv: list[str | Path] = [self.programs.etcdutl, "snapshot", "restore", self.backup.path(self.backup.manifest.member(member)), f"--data-dir={data}"]
        argv += [f"--name={name}", f"--initial-cluster={initial}", f"--initial-cluster-token={token}", f"--bump-revision={BUMP}", "--mark-compacted"]
        argv += [f"--initial-advertise-peer-urls={','.join(seen.members[name])}"]
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
