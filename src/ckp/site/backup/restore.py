"""Brings a site back from a backup: what is refused, what comes onto this machine, and what is left to do once the cluster runs.

What is brought onto new hosts is in ckp.site.backup.placing. It is recorded on each of them with the backup's digest: a run that is killed is gone on with,
from the same backup only.
"""

from __future__ import annotations

import json
import shutil
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

from ckp.api.names import SYSTEM_NAMESPACE
from ckp.backups.archive import Opened
from ckp.backups.members import Kind
from ckp.hostkit.backup.collection import COPY, HOST, STATE
from ckp.hostkit.locations import RESTORED, RESTORED_RECORD
from ckp.kits.errors import CkpError, Conflict, InvalidInput, VerificationFailed
from ckp.kits.files import atomic_write
from ckp.site import management
from ckp.site.backup.manifest import Manifest
from ckp.site.backup.placing import CAS, PKI, identity, own, volumes_on
from ckp.site.backup.take import KEYS
from ckp.site.install import APPLIED
from ckp.site.inventory import SiteHost, SiteHosts, acted_on_first
from ckp.site.spec.model import SiteSpec

MARKS = ("/etc/kubernetes/manifests/etcd.yaml", "/var/lib/etcd/member", management.JOURNAL)
"""Of a host that is a cluster, or has begun to become one."""
REGISTRY_CA = "registry/ca.pem"
JOURNAL_MEMBER = management.JOURNAL.lstrip("/")
"""In the backup's files of the host."""
LOAD_SECONDS = 3600

Say = Callable[[str], None]


class DatabaseChoice(StrEnum):
    """What a restore does with data that is in the site's PostgreSQL already."""

    REFUSE = "refuse"
    KEEP = "keep"
    REPLACE = "replace"


def refuse(manifest: Manifest, spec: SiteSpec, hosts: SiteHosts) -> None:
    """Raise what makes a restore impossible; nothing was changed.

    Raises:
        InvalidInput: the backup is of another site, of other hosts, or of a release that the site does not offer.
        VerificationFailed: it does not say where data belongs.
        Conflict: a host is in use, or another backup's restore was begun on it.
    """
    site, offered = spec.metadata.name, spec.releases
    if manifest.site != site:
        raise InvalidInput(f"the backup is of the site {manifest.site}, and the file describes {site}", resolution="name the site's own file or backup")
    was, now = dict(manifest.hosts) or {manifest.host: manifest.address}, {host.name: host.address for host in hosts.masters}
    if was != now:
        raise InvalidInput(
            f"the backup is of {_listed(was)}, and the site's file names {_listed(now)}",
            resolution="give the new hosts the names and the addresses of the old ones: certificates, agents, nodes and volumes hold them",
        )
    needed = dict.fromkeys((manifest.release, *(cluster.version for cluster in manifest.clusters if cluster.version)))
    if missing := [name for name in needed if name not in offered]:
        raise InvalidInput(
            f"the management cluster or workload clusters of the backup are of {', '.join(missing)}, which `releases` does not name",
            resolution=f"add {', '.join(missing)} to `releases`",
        )
    kinds = {member.kind for member in manifest.databases}
    if kinds != {wanted := Kind.POSTGRESQL if spec.database.postgresql else Kind.SQLITE}:
        raise InvalidInput(
            f"the backup has Compass' data of {' and '.join(sorted(kinds)) or 'no database'}, and the site's file names {wanted}",
            resolution="name the kind of database in `database` that the site had when the backup was made",
        )
    own(manifest)
    if _record(hosts.management).get("placed") and _record(hosts.management)["backup"] == identity(manifest):
        return  # the others have all that they get, and may have joined since
    for host in hosts.masters:
        _refuse_host(manifest, site, host, [volume.path for volume in volumes_on(manifest, host, hosts).values()])


def _listed(hosts: Mapping[str, str]) -> str:
    return ", ".join(f"{name} ({address})" for name, address in hosts.items())


def _refuse_host(manifest: Manifest, site: str, host: SiteHost, volumes: Sequence[str]) -> None:
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


def _record(host: SiteHost) -> dict[str, Any]:
    """What the host has of a restore that is not finished; nothing if there is none."""
    if host.run(["test", "-e", RESTORED_RECORD], timeout=30, check=False).code:
        return {}
    try:
        found = json.loads(host.pull(RESTORED_RECORD))
        return {"backup": str(found["backup"]), "placed": found["placed"] is True, "run": str(found.get("run", ""))}
    except (ValueError, KeyError, TypeError) as error:
        raise CkpError(f"{host.name}:{RESTORED_RECORD} can't be read: {error!r}", resolution=f"take a clean host, or remove {RESTORED}") from None


def placed(hosts: SiteHosts) -> bool:
    """Whether an earlier run has put everything where it belongs. What is left to do is to install the hosts. The one that is acted on has it last."""
    return bool(_record(hosts.management).get("placed"))


def refuse_unfinished(host: SiteHost) -> None:
    """Conflict if a restore was begun on a host, and is not finished: what else is done there would begin without its data, or lose it."""
    if _record(host):
        raise Conflict(
            f"a restore was begun on {host.name} and is not finished, and nothing was changed",
            resolution=f"run the same `ckp site restore` again: it goes on. Or give it up, with the data that it has brought: rm -rf {RESTORED} on that host",
        )


# -- this machine


def refuse_content(backup: Opened[Manifest], spec: SiteSpec, state: Path) -> None:
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
    addresses = spec.addresses
    fixed = {
        "pod_cidr": ("managementPods", str(addresses.management_pods)),
        "service_cidr": ("managementServices", str(addresses.management_services)),
        "virtual_address": ("api.virtualAddress", str(addresses.api.virtual_address or "")),
    }
    for key, (where, value) in fixed.items():
        if (old := made_with.get(key, value)) != value:
            resolution = f"write {old} back" if old else "remove it"
            raise InvalidInput(f"the cluster of the backup was made with {where} {old or '(none)'}, and the file has {value or 'none'}", resolution=resolution)
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


def restore_state(backup: Opened[Manifest], state: Path, say: Say) -> None:
    """What this machine kept of the site, where it is missing. `refuse_content` has passed.

    What it knows of the objects in the cluster is the backup's in any case: where it has applied others since, they have to be applied again.
    """
    shutil.rmtree(state / APPLIED, ignore_errors=True)
    for name, mode, content in _files(backup, STATE, state):
        if not (state / name).exists():
            _write(state / name, content, mode)
            say(f"{state / name}: from the backup")


def restore_keys(backup: Opened[Manifest], keys: Path, say: Say) -> None:
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


def _files(backup: Opened[Manifest], member: str, below: Path) -> Iterator[tuple[str, int, bytes]]:
    """Files of a member: name, mode, content. VerificationFailed if one would lie outside of `below`."""
    with tarfile.open(backup.path(backup.manifest.member(member))) as packed:
        for entry in packed:
            if not entry.isreg() or not (below / entry.name).resolve().is_relative_to(below.resolve()):
                raise VerificationFailed(f"{member} holds {entry.name[:200]!r}, which is no file of that folder")
            content = packed.extractfile(entry)
            assert content is not None
            yield entry.name, entry.mode & 0o755 | 0o600, content.read()


# -- the cluster


def load_database(backup: Opened[Manifest], host: SiteHost, how: DatabaseChoice, say: Say) -> None:
    """Put Compass' data back into its PostgreSQL, once in each restore: by Compass, which is up by now, in one transaction.

    Args:
        how: what is done with data that is there.

    Raises:
        Conflict: it has data of its own, and `how` does not say what becomes of it; nothing in it was changed.
        CkpError: the database does not answer; nothing in it was changed.
    """
    if how is DatabaseChoice.KEEP:
        say("Compass' database: left as it is, as --database keep says")
        return
    carried, run = f"{RESTORED}/{COPY}", _record(host)["run"]
    host.push(backup.path(backup.manifest.member(COPY)), carried, mode=0o600)
    argv = [*management.kubectl_argv(host, timeout=LOAD_SECONDS), f"--namespace={SYSTEM_NAMESPACE}", "exec", "--stdin", "deployment/ckp-compass"]
    argv += ["--container=compass", "--", "python3", "-m", "ckp.compass", "--load", run, *(["--replace"] if how is DatabaseChoice.REPLACE else [])]
    done = host.run(["sh", "-c", 'from="$1"; shift; exec "$@" < "$from"', "load", carried, *argv], timeout=LOAD_SECONDS, check=False)
    if done.code:
        kind = Conflict if "has data of its own" in done.stderr else CkpError
        raise kind(
            "Compass' data could not be put back into its PostgreSQL",
            details=done.stderr or done.stdout,
            resolution="correct what it names, and run the same command again: it goes on",
        )
    say(f"Compass' database: {done.stdout.strip()}")


def finish(hosts: SiteHosts, manifest: Manifest) -> None:
    """The site runs: what it was made from is no longer needed. The record of the host that is acted on goes last: a run that is killed here is gone on with.

    Raises:
        CkpError: the cluster is not the one of the backup.
    """
    host = hosts.management
    uid = management.kubectl(host, "get", "namespace", "kube-system", "-o", "jsonpath={.metadata.uid}").strip()
    if uid != manifest.cluster_uid:
        raise CkpError(
            f"{host.name} runs a management cluster without the backup's data: its id is {uid}, and not {manifest.cluster_uid}",
            resolution="the host tool of that release may be too old to restore; take a clean host, and a release that this version of CKP has built",
        )
    _, *others = acted_on_first(hosts)
    for each in (*others, host):
        each.run(["rm", "-rf", "--", f"{RESTORED}/etcd", f"{RESTORED}/pki"], timeout=600)
        each.run(["rm", "-rf", "--", RESTORED], timeout=60)
