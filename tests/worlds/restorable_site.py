"""A site on a simulated host that is backed up, lost, and restored onto a new one: what a snapshot of etcd holds here are the objects of the simulated API."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import Result

from ckp.backups import archive
from ckp.backups.archive import Opened
from ckp.backups.members import Etcd, Kind, Member
from ckp.cli import site_restore
from ckp.clients.signing.encryption import Readers, Signer
from ckp.hostkit.locations import RESTORED, RESTORED_RECORD
from ckp.kits.files import sha256_bytes
from ckp.site.backup.manifest import FORMAT, MANAGEMENT, Hosted, Manifest, Volume
from ckp.site.backup.placing import CAS, PKI
from ckp.site.management import ADMIN, JOURNAL
from tests.simulators.management_api import SimulatedApi
from tests.simulators.management_host import STEPS, ManagementHost
from tests.simulators.site_host import Said
from tests.worlds.applied_site import RELEASE, AppliedSite

NAMESPACE, CLUSTER = "ckp-a-b", "demo"
HOSTED = f"etcd/hosted/{NAMESPACE}/{CLUSTER}"
VOLUMES = "/opt/local-path-provisioner"
KINDS = {"tar": Kind.TAR, "db": Kind.SQLITE, "copy": Kind.POSTGRESQL}
PASSPHRASE = "correct horse battery staple"
ETCDUTL = """\
#!/usr/bin/env python3
import json, pathlib, sys
options = dict(word[2:].split("=", 1) for word in sys.argv[4:] if "=" in word)
assert sys.argv[1:3] == ["snapshot", "restore"] and "--mark-compacted" in sys.argv
folder = pathlib.Path(options["data-dir"])
(folder / "member").mkdir(parents=True)
(folder / "member" / "db").write_text(json.dumps({**options, "data-dir": "", "content": pathlib.Path(sys.argv[3]).read_text()}))
"""


def volume(claim: str, **entries: str) -> Volume:
    return Volume(claim=claim, path=f"{VOLUMES}/{claim.replace('/', '_')}", entries=entries)


ETCD_VOLUME = volume(f"{NAMESPACE}/data-{CLUSTER}-etcd-0", data="65532 65533 700")
COMPASS_VOLUME = volume("ckp-system/ckp-compass", **{"compass.db": "65532 65534 640"})


class NewHost(ManagementHost):
    """A host that a backup can be restored onto: its installation begins with what it finds, as the host tool's does."""

    restores = True
    """Whether its host tool knows of backups."""
    database: dict[str, str]
    """Compass' PostgreSQL, shared by hosts of one site: `data`, and `run`, the restore that has put it there."""

    def install(self, release: str, bundle: str = "", settings: Mapping[str, str] | None = None, steps: Sequence[str] = STEPS) -> None:
        if not self.restores or not self.path(RESTORED_RECORD).exists():
            super().install(release, bundle, settings, steps)
            return
        assert json.loads(self.path(RESTORED_RECORD).read_text())["placed"], "an installation begins when all is there"
        self.record(release, bundle, settings, steps)
        data = json.loads(self.path(f"{RESTORED}/etcd/member/db").read_text())
        self.path(ADMIN).parent.mkdir(parents=True, exist_ok=True)
        self.path(ADMIN).write_text(f"kubeconfig of {self.path(f'{RESTORED}/pki/ca.crt').read_text()}")
        self.api.objects = {}
        for key, each in json.loads(data["content"]).items():
            kind, namespace, name = key.split("|")
            self.api.objects[kind, namespace, name] = each
        self.api.join(self.name, self.address)
        for name in ("ckp-compass", "ckp-controllers"):
            self.api.kubectl(["rollout", "status", f"deployment/{name}"])

    def _command(self, words: list[str], stdin: str | None = None) -> Said:
        match words:
            case ["mkdir", "-p", *mode, path]:
                self.path(path).mkdir(parents=True, exist_ok=True)
                if mode:
                    self.access.setdefault(path, f"{int(mode[1], 8):o} root root")
                return 0, "", ""
            case ["tar", "-x", "-C", target, "--no-same-owner", "-f", carried]:
                with tarfile.open(self.path(carried)) as packed:
                    packed.extractall(self.path(target))
                return 0, "", ""
            case ["sh", "-c", _, "load", carried, *argv]:
                return self._load(self.path(carried).read_text(), argv)
            case ["chown", "-R", owner, path]:
                self.access[path] = " ".join([self.accessed(path).split()[0], *owner.split(":")])
                return 0, "", ""
        return super()._command(words, stdin)

    def _load(self, copy: str, argv: list[str]) -> Said:
        """As `python3 -m ckp.compass --load` does in Compass' pod."""
        assert argv[2] == f"--server=https://{self.address}:6443" and "exec" in argv and "Deployment" in {kind for kind, _, _ in self.api.objects}
        run, found = argv[argv.index("--load") + 1], self.database
        if found.get("run") == run:
            return 0, "this restore has put the data back before\n", ""
        if found.get("data") and "--replace" not in argv:
            return 1, "", f"error: PostgreSQL has data of its own ({found['data']}), and nothing in it was changed"
        found.update(data=copy, run=run)
        return 0, "1 rows were put back\n", ""


class RestorableSite(AppliedSite):
    """A site that is applied, with a backup of it.

    Args:
        changes: of the site's file.
        others: further management hosts that it names: names -> addresses.
        postgresql: whether Compass' data is there.
    """

    def __init__(
        self,
        root: Path,
        monkeypatch: pytest.MonkeyPatch,
        changes: Sequence[tuple[str, str]] = (),
        others: Mapping[str, str] | None = None,
        *,
        postgresql: bool = False,
    ) -> None:
        super().__init__(root, monkeypatch)
        self.others, self.postgresql, self.database = dict(others or {}), postgresql, dict[str, str]()
        for name, address in self.others.items():
            self.add(name, address)
        self.write(*changes)
        self.monkeypatch = monkeypatch
        self.proved: list[str] = []
        etcdutl = root / "etcdutl"
        etcdutl.write_text(ETCDUTL)
        etcdutl.chmod(0o755)
        monkeypatch.setattr(site_restore, "prove", lambda backup, *_: self.proved.append(backup.manifest.site))
        self.release.built["etcd"] = SimpleNamespace(binary=lambda name: root / name)
        assert self.run("apply").exit_code == 0
        self.host.create_cluster(CLUSTER, RELEASE)
        self.host.api.add("ConfigMap", "default", "before")
        self.backup = self.back_up()
        self.host.api.add("ConfigMap", "default", "after")

    @property
    def state(self) -> Path:
        return self.root / "state" / "sites" / "berlin"

    def back_up(self, **changes: Any) -> Opened[Manifest]:
        """As `ckp site backup` takes it; the folder with its members is new."""
        folder = self.root / "cache" / f"members-{len(list((self.root / 'cache').iterdir()))}"
        objects = json.dumps({"|".join(key): each for key, each in self.host.api.objects.items()})
        files = {f"{PKI}{name}": f"{name} of the old host".encode() for name in (*CAS, "apiserver.crt")}
        members = [
            self._member(
                folder, MANAGEMENT, objects.encode(), Etcd(cluster_id="a", version="3.5.15", revision=7, members={"m1": ("https://192.0.2.10:2380",)})
            ),
            self._member(
                folder, HOSTED, b"a tenant's", Etcd(cluster_id="b", version="3.5.15", revision=7, members={f"{CLUSTER}-etcd-0": ("https://e0:2380",)})
            ),
            self._member(folder, "compass.copy" if self.postgresql else "compass.db", b"Compass'"),
            self._member(folder, "host.tar", packed({**files, JOURNAL.lstrip("/"): self.host.path(JOURNAL).read_bytes()})),
            self._member(folder, "state.tar", packed({str(path.relative_to(self.state)): path.read_bytes() for path in self._kept()})),
        ]
        cluster = Hosted(namespace=NAMESPACE, name=CLUSTER, version=RELEASE, member=HOSTED)
        uid = self.host.api.objects["Namespace", "", "kube-system"]["metadata"]["uid"]
        manifest = Manifest(
            format=FORMAT,
            site="berlin",
            made=datetime(2026, 1, 31, 4, 5, tzinfo=UTC),
            ckp="0.2.0",
            release=RELEASE,
            cluster_uid=uid,
            host="m1",
            address="192.0.2.10",
            hosts={"m1": "192.0.2.10", **self.others} if self.others else {},
            signing_keys=False,
            clusters=(cluster,),
            volumes=tuple(each.model_copy(update={"host": "m3"} if self.others else {}) for each in (ETCD_VOLUME, COMPASS_VOLUME)),
            members=tuple(members),
        )
        return Opened(manifest.model_copy(update=changes), "A" * 40, folder)

    def _kept(self) -> list[Path]:
        return [path for path in sorted(self.state.rglob("*")) if path.is_file() and path.suffix not in (".lock",)]

    @staticmethod
    def _member(folder: Path, name: str, content: bytes, etcd: Etcd | None = None) -> Member:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
        kind = Kind.ETCD if etcd else KINDS.get(name.rpartition(".")[2], Kind.FILE)
        return Member(name=name, kind=kind, size=len(content), sha256=sha256_bytes(content), etcd=etcd)

    def seal(self, signer: Signer) -> tuple[Path, Path]:
        """The backup as a file, and the file with its passphrase."""
        target, secret, scratch = self.root / "cache" / "berlin.backup", self.root / "cache" / "passphrase", self.root / "cache" / "sealing"
        secret.write_text(f"{PASSPHRASE}\n")
        secret.chmod(0o600)
        scratch.mkdir(mode=0o700)
        archive.seal(target, self.backup, signer, Readers(passphrase=secret), scratch, lambda *_: None)
        return target, secret

    def lose(self, *, state: bool = True) -> NewHost:
        """The hosts and this machine's state (or not that) are lost; new hosts have their addresses. The first one of them."""
        if state:
            shutil.rmtree(self.state)
        api, dns = SimulatedApi(), self.host.dns
        for name, address in {"m1": "192.0.2.10", **self.others}.items():
            new = NewHost(self.root / "hosts" / f"new-{len(list((self.root / 'hosts').glob('*')))}", name, address, api)
            new.dns, new.uids, new.database = dns, iter(range(900, 999)), self.database
            self.hosts[name] = new
        self.host = first = self.hosts["m1"]
        assert isinstance(first, NewHost)
        return first

    def restore(self, backup: Opened[Manifest] | None = None, *options: str) -> Result:
        """Without the work of decrypting: a backup that was opened."""

        @contextmanager
        def opened(*_: object) -> Iterator[Opened[Manifest]]:
            yield backup or self.backup

        with self.monkeypatch.context() as patched:
            patched.setattr(archive, "opened", opened)
            return self.run("restore", str(self.root / "berlin.backup"), *options)

    def names(self) -> set[str]:
        """Of the ConfigMaps in the namespace `default`."""
        return {name for kind, namespace, name in self.host.api.objects if (kind, namespace) == ("ConfigMap", "default")}


def packed(files: Mapping[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as made:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o600
            made.addfile(entry, io.BytesIO(content))
    return out.getvalue()
