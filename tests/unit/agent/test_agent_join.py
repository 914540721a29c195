"""The commands around `kubeadm join`: each runs once, none is passed over, and nobody can read them in the list of processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from ckp.agent.journal import Journal
from ckp.agent.messages import BundleRef, JoinFile, Membership
from ckp.agent.node import join
from ckp.agent.system.prepare import HostDecisions
from ckp.hostkit import processes
from ckp.hostkit.errors import ProcessFailed

ORDINARY = HostDecisions("v2", "systemd", False, "overlayfs")


class Killed(BaseException):
    """As by SIGKILL: no handler of the code sees it."""


class Host:
    """kubeadm joins at once; what the commands do is written down."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.journal = Journal(str(tmp_path / "journal.json"), str(tmp_path / "saved"))
        self.joined = 0
        self.seen = tmp_path / "seen"
        self.seen.touch()
        self.argv: list[list[str]] = []
        self.killed_at = ""
        self._run = processes.run
        for name in ("KUBELET_CONF", "BOOTSTRAP_CONF", "SUCCESS", "COMMAND_FILE"):
            monkeypatch.setattr(join, name, f"{tmp_path}/{name}")
        monkeypatch.setattr(join, "run", self.run)
        monkeypatch.setattr(join, "node_of_certificate", lambda: "host-1" if self.joined else "")
        self.conf = tmp_path / "KUBELET_CONF"
        self.command_file = tmp_path / "COMMAND_FILE"
        self.member = Membership(
            cluster="c",
            machine="m",
            node_name="host-1",
            provider_id="byoh://h/m",
            release="v1.35.1",
            bundle=BundleRef("r/b@sha256:" + "a" * 64, "v1.35.1", "v1.35.1"),
            sandbox_image="r/pause:3.10",
            registry="r",
            files=(JoinFile(str(tmp_path / "run/join.yaml"), "x", "0600"),),
            join_config=str(tmp_path / "run/join.yaml"),
            pre_commands=(f"echo before >> {self.seen}",),
            post_commands=(f"echo one >> {self.seen}", f"[ -e {tmp_path}/fixed ] && echo two >> {self.seen}", f"echo three >> {self.seen}"),
        )

    def run(self, argv: list[str], **more: object) -> object:
        self.argv.append(argv)
        if argv[0] == "kubeadm":
            self.joined += argv[1] == "join"
            self.conf.touch()
            return None
        text = self.command_file.read_text()
        assert self.command_file.stat().st_mode & 0o777 == 0o600
        done = self._run(argv, **more)  # type: ignore[arg-type]
        if self.killed_at and self.killed_at in text:
            raise Killed
        return done

    def join(self) -> str:
        return join.join(self.journal, self.member, ORDINARY, lambda: False)

    @property
    def words(self) -> list[str]:
        return self.seen.read_text().split()


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(tmp_path, monkeypatch)


def test_a_command_after_the_join_that_fails_is_tried_again_and_those_behind_it_follow(host: Host, tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(ProcessFailed, match="a command of postKubeadmCommands"):
            host.join()
        assert not Path(join.SUCCESS).exists(), "the sign of success waits for all of them"
    (tmp_path / "fixed").touch()
    assert host.join() == "kubeadm join succeeded before"
    assert host.words == ["before", "one", "two", "three"] and host.joined == 1
    host.join()
    assert host.words == ["before", "one", "two", "three"] and Path(join.SUCCESS).exists()


def test_a_kill_between_two_of_them_passes_none_over(host: Host, tmp_path: Path) -> None:
    (tmp_path / "fixed").touch()
    host.killed_at = "echo two"
    with pytest.raises(Killed):
        host.join()
    host.killed_at = ""
    host.journal = Journal(host.journal.path, host.journal.saved_dir)
    host.join()
    assert host.words == ["before", "one", "two", "two", "three"], "the one that was cut off is done again, the one before is not"


def test_commands_are_not_passed_as_arguments(host: Host, tmp_path: Path) -> None:
    (tmp_path / "fixed").touch()
    host.join()
    assert all(argv == ["/bin/sh", str(host.command_file)] for argv in host.argv if argv[0] != "kubeadm")
    assert not host.command_file.exists()
