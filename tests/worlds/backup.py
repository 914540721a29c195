"""A site that can be backed up: this machine is its management host, with objects in a folder, and etcds that are simulated or real."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import sqlite3
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ckp.backups.scratch import Programs
from ckp.clients.signing.encryption import Readers, Signer
from ckp.clients.signing.openpgp import export, gpg, gpg_home
from ckp.hostkit.backup.collection import MANAGED, Sources
from ckp.kits.processes import Finished, run
from ckp.kits.steps import Steps
from ckp.kits.streams import stream
from ckp.site.backup import take
from ckp.site.backup.take import Taken, Wanted
from ckp.site.inventory import KnownHosts
from tests.simulators import object_store

SITE, NAMESPACE, CLUSTER = "berlin", "ckp-default-default", "demo"
UID = "8d8b6c0e-5f0e-4a55-9d5b-0d7e2f5b7a11"
PASSPHRASE = "correct horse battery staple"
SECRET = b"the management cluster's own secret"


@dataclass
class ThisMachine:
    """A SiteHost that runs commands here.

    Args:
        change_line: what becomes of each line of a stream on its way.
        kill_at: the number of the call at which this process is killed, from 0.
    """

    name: str = "m1"
    address: str = "192.0.2.10"
    change_line: Callable[[str], str] = str
    kill_at: int | None = None
    calls: int = 0

    def run(self, argv: Sequence[str | Path], *, timeout: float, stdin: str | bytes | None = None, check: bool = True, what: str = "") -> Finished:
        self._count()
        return run(argv, timeout=timeout, stdin=stdin, check=check, what=what)

    def stream(self, argv: Sequence[str | Path], *, timeout: float, on_line: Callable[[str], None]) -> int:
        self._count()
        return stream([sys.executable, *argv[1:]], timeout=timeout, on_line=lambda line: on_line(self.change_line(line)), what=str(argv[0]))

    def push(self, source: Path | bytes, target: str, *, mode: int = 0o644) -> None:
        raise AssertionError(f"a backup writes nothing to the host: {target}")

    def pull(self, source: str) -> bytes:
        raise AssertionError(f"nothing of any size is pulled: {source}")

    def _count(self) -> None:
        if self.calls == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        self.calls += 1


@dataclass
class BackupWorld:
    """The site, below a folder."""

    folder: Path
    signer: Path
    host: ThisMachine = field(default_factory=ThisMachine)
    others: list[ThisMachine] = field(default_factory=list)
    sources: Sources = field(default_factory=lambda: Sources(()))

    def __post_init__(self) -> None:
        for name in ("objects/namespace", "objects/secret", "state/registry", "state/backup", "out"):
            (self.folder / name).mkdir(parents=True)
        self.write_object("namespace/kube-system", {"metadata": {"uid": UID}})
        self.write_list(MANAGED, [])
        self.write_list("pods", [])
        volume = self.folder / "volume"
        (volume / "data").mkdir(parents=True, mode=0o700)
        self.write_list("persistentvolumes", [{"spec": {"hostPath": {"path": str(volume)}, "claimRef": {"namespace": NAMESPACE, "name": "data-demo-etcd-0"}}}])
        (self.folder / "site.yaml").write_text("kind: Site\n")
        (self.folder / "state" / "registry" / "ca.key").write_text("the registry's key")
        (self.folder / "state" / "apply.lock").touch()
        (self.folder / "pki.crt").write_text("a certificate")
        (self.folder / "state" / "backup" / "signer").symlink_to(self.signer)
        with closing(sqlite3.connect(self.database)) as database:
            database.execute("PRAGMA journal_mode=WAL")
            database.execute("CREATE TABLE domains (name TEXT)")
            database.execute("INSERT INTO domains VALUES ('before')")
            database.commit()
        (self.folder / "pass").write_text(f"{PASSPHRASE}\n")
        (self.folder / "pass").chmod(0o600)

    @property
    def database(self) -> Path:
        return self.folder / "compass.db"

    @property
    def target(self) -> Path:
        return self.folder / "out" / "berlin.backup"

    @property
    def passphrase(self) -> Path:
        return self.folder / "pass"

    @property
    def scratch(self) -> Path:
        return self.folder / "state" / "backup" / "scratch"

    def set_sources(self, etcd: str, etcd_files: Sequence[str] = (), hosted_port: int = 2379) -> None:
        kubectl = (sys.executable, str(Path(object_store.__file__)), str(self.folder / "objects"))
        files = (str(self.folder / "pki.crt"), "/nonexistent/encryption.yaml")
        self.sources = Sources(kubectl, etcd, tuple(etcd_files), hosted_port, (sys.executable,), str(self.database), files)

    def write_object(self, name: str, item: dict[str, Any]) -> None:
        (self.folder / "objects" / f"{name}.json").write_text(json.dumps(item))

    def write_list(self, kind: str, items: list[dict[str, Any]]) -> None:
        (self.folder / "objects" / f"{kind}.json").write_text(json.dumps(items))

    def write_secret(self, name: str, certificate: bytes, key: bytes) -> None:
        data = {"tls.crt": base64.b64encode(certificate).decode(), "tls.key": base64.b64encode(key).decode()}
        self.write_object(f"secret/{NAMESPACE}.{CLUSTER}-{name}", {"data": data})

    def add_cluster(self, *, initialized: bool = True, ready: bool = True) -> None:
        metadata = {"namespace": NAMESPACE, "name": CLUSTER, "labels": {"cluster.x-k8s.io/cluster-name": CLUSTER}}
        self.write_list(MANAGED, [{"metadata": metadata, "spec": {"version": "v1.35.1"}, "status": {"initialized": initialized}}])
        status = {"podIP": "127.0.0.1", "conditions": [{"type": "Ready", "status": str(ready)}]}
        self.write_list("pods", [{"metadata": {**metadata, "name": f"{CLUSTER}-etcd-0"}, "status": status}])

    def wanted(self, readers: Readers | None = None, **more: Any) -> Wanted:
        return Wanted(SITE, self.folder / "site.yaml", self.folder / "state", "v1.35.1", readers or Readers(passphrase=self.passphrase), **more)

    def take(self, readers: Readers | None = None, programs: Programs | None = None, **more: Any) -> Taken:
        return take.take(
            KnownHosts(self.host, [self.host, *self.others]), self.wanted(readers, **more), self.target, programs, Steps(out=io.StringIO()), self.sources
        )


def make_signer(folder: Path) -> Path:
    """A key that signs backups; it takes a while, so tests share one."""
    return Signer.ensure(folder, f"CKP backups of {SITE} <backups@{SITE}.invalid>").folder


def make_reader(folder: Path, name: str) -> tuple[Path, Path]:
    """Files with the certificate and the secret key of somebody who reads backups."""
    public, secret = folder / f"{name}.pgp", folder / f"{name}.sec"
    with gpg_home() as home:
        gpg(home, "--quick-generate-key", f"{name} <{name}@example.org>", "future-default", "default", "never", what="making a key")
        public.write_bytes(export(home, "--export"))
        secret.write_bytes(export(home, "--export-secret-keys"))
    return public, secret
