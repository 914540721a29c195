"""A standalone cluster begins with the data and the CAs of a backup where they are on its host, and as before where nothing is."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ckp.agent.journal import Journal
from ckp.hostkit.errors import AgentError
from ckp.standalone import restored, steps
from ckp.standalone.config import Plan
from ckp.standalone.options import Options
from tests.unit.standalone.test_standalone_install import ORDINARY, plan


class Host:
    """A host whose kubeadm is simulated: what it is called with, and what it finds then."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.calls = root, list[tuple[str, ...]]()
        self.found: dict[str, str] = {}
        """What is in etcd's folder and in that of the CAs as kubeadm init begins."""
        self.answers = self.killed = False
        self.said: list[str] = []
        self.etcd, self.pki, self.kubelet, self.admin = root / "etcd", root / "pki", root / "kubelet.conf", root / "admin.conf"
        self.given = root / "restored"
        monkeypatch.setattr(restored, "RESTORED", str(self.given))
        monkeypatch.setattr(restored, "RESTORED_RECORD", str(self.given / "record.json"))
        monkeypatch.setattr(restored, "FOLDERS", {"etcd": str(self.etcd), "pki": str(self.pki)})
        monkeypatch.setattr(restored, "KUBELET_CONFIG", str(self.kubelet))
        monkeypatch.setattr(steps, "ADMIN", str(self.admin))
        monkeypatch.setattr(steps, "RUN_DIR", str(root / "run"))
        monkeypatch.setattr(steps, "run", self.run)
        for name, value in {
            "end_kubeadm": lambda: None,
            "pulls_of": lambda *_: SimpleNamespace(wait=lambda _images: None),
            "write_kubelet": lambda *_: None,
            "write_patches": lambda *_: (root / "run").mkdir(exist_ok=True),
            "api_ready": lambda: "" if self.answers else "refused",
            "wait_for": lambda *_, **__: None,
            "kubernetes": lambda _plan: "v1.35.1",
            "kubectl": lambda *_, **__: "deployment/coredns\nconfigmap/kubeadm-config\n",  # which a backup's data has from the beginning
        }.items():
            monkeypatch.setattr(steps, name, value)

    def give(self, *, placed: bool = True) -> None:
        """As `ckp site restore` leaves it, or a run of it that was killed."""
        (self.given / "etcd" / "member").mkdir(parents=True)
        (self.given / "etcd" / "member" / "db").write_text("the backup's data")
        (self.given / "etcd").chmod(0o700)
        if placed:
            (self.given / "pki" / "etcd").mkdir(parents=True)
            (self.given / "pki" / "ca.crt").write_text("the backup's CA")
            (self.given / "pki" / "etcd" / "ca.crt").write_text("the backup's CA of etcd")
        (self.given / "record.json").write_text(json.dumps({"backup": "a", "placed": placed}))

    def run(self, argv: list[str], **_: Any) -> None:
        self.calls.append(tuple(argv[:2]))
        if argv[:2] != ["kubeadm", "init"]:
            return
        self.found = {str(path.relative_to(self.root)): path.read_text() for top in (self.etcd, self.pki) for path in top.rglob("*") if path.is_file()}
        self.ignored = next((word for word in argv if word.startswith("--ignore-preflight-errors=")), "")
        self.admin.write_text("admin")
        self.answers = True
        self.kubelet.write_text("as it is made" if self.killed else f"/var/lib/kubelet/pki/{restored.ROTATED}")
        (self.etcd / "member").mkdir(parents=True, exist_ok=True)
        (self.etcd / "member" / "db").write_text("written since")
        if self.killed:
            self.killed = False
            raise KeyboardInterrupt

    def init(self, options: Options) -> str:
        journal = Journal(str(self.root / "journal.json"), str(self.root / "saved"))
        context = steps.Context(options, journal, Any, self.said.append)  # type: ignore[arg-type]
        made: Plan = plan(options, ORDINARY)
        context.plan = lambda: made  # type: ignore[method-assign]
        return steps.kubeadm_init(context)


WHOLE = {"etcd/member/db": "the backup's data", "pki/ca.crt": "the backup's CA", "pki/etcd/ca.crt": "the backup's CA of etcd"}


@pytest.fixture
def options(tmp_path: Path) -> Options:
    return Options(bundle_folder=str(tmp_path), keyring=str(tmp_path), state_dir=str(tmp_path / "state"), advertise_address="10.0.0.5")


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(tmp_path, monkeypatch)


def test_kubeadm_finds_the_data_and_the_cas_of_a_backup(host: Host, options: Options) -> None:
    host.give()
    assert host.init(options) == "v1.35.1"
    assert host.found == WHOLE and restored.PREFLIGHT in host.ignored and host.etcd.stat().st_mode & 0o777 == 0o700
    assert "the cluster begins with the data and the CAs of a backup" in host.said
    assert (host.given / "record.json").exists(), "it is the restore's own to end"


def test_where_nothing_is_restored_kubeadm_begins_as_before(host: Host, options: Options) -> None:
    assert host.init(options) == "v1.35.1"
    assert host.found == {} and restored.PREFLIGHT not in host.ignored and host.calls == [("kubeadm", "init")]


def test_what_an_interrupted_init_has_written_gives_way_to_the_backup(host: Host, options: Options) -> None:
    """The objects that tell of a finished init are in the backup's data: here the kubelet's settings tell."""
    host.give()
    host.killed = True
    with pytest.raises(KeyboardInterrupt):
        host.init(options)
    assert host.init(options) == "v1.35.1"
    assert host.calls == [("kubeadm", "init"), ("kubeadm", "reset"), ("kubeadm", "init")] and host.found == WHOLE


def test_a_finished_init_is_not_begun_again(host: Host, options: Options) -> None:
    host.give()
    host.init(options)
    assert host.init(options) == "initialised before"
    assert host.calls == [("kubeadm", "init")] and (host.etcd / "member" / "db").read_text() == "written since"


def test_a_restore_that_is_not_whole_is_never_begun_with(host: Host, options: Options) -> None:
    host.give(placed=False)
    with pytest.raises(AgentError, match="does not hold all that a cluster needs from a backup") as caught:
        host.init(options)
    assert host.calls == [] and "run `ckp site restore` again" in caught.value.resolution
    (host.given / "record.json").write_text("{")
    with pytest.raises(AgentError):
        host.init(options)
