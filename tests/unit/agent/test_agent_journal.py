"""The journal is written before each change of the host, and restores every file that was replaced."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from ckp.agent.journal import KEPT_ENTRIES, Journal, Member
from ckp.hostkit.errors import AgentError
from ckp.standalone.options import Options


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(str(tmp_path / "state/journal.json"), str(tmp_path / "state/saved"))


def again(journal: Journal) -> Journal:
    return Journal(journal.path, journal.saved_dir)


def test_everything_is_loaded_after_a_restart(journal: Journal) -> None:
    journal.begin(Member("k", cluster="c"))
    journal.add_packages(["kubelet"])
    journal.add_packages(["kubelet", "kubeadm"])
    journal.note("swap", ["/dev/sda2"])
    journal.finish_step("preflight", 1.25, "fine")
    other = again(journal)
    assert (other.member, other.packages, other.done) == (Member("k", cluster="c"), ["kubelet", "kubeadm"], ["preflight"])
    assert other.notes == {"swap": ["/dev/sda2"]}
    entry = other.last(1)[0]
    assert (entry.step, entry.outcome, entry.seconds, entry.message) == ("preflight", "done", 1.25, "fine")


KEPT = json.loads(Path(__file__).with_name("journals-0.2.0.json").read_text())
"""The journals of an agent and of a standalone installation as 0.2.0 wrote them."""
MEMBERS = {
    "agent": Member("ns/demo|demo-1|byoh://ns/worker-1/abc", "v1.35.1", "r:5000/ckp/b@sha256:" + "0" * 64, "ns/demo", "demo-1"),
    "standalone": Options(bundle_folder="/srv/bundle", node_name="one").member("v1.35.1"),
}


@pytest.mark.parametrize("kind", ["agent", "standalone"])
def test_a_journal_of_an_older_version_is_read_and_stays_readable_for_it(journal: Journal, kind: str) -> None:
    Path(journal.path).parent.mkdir()
    Path(journal.path).write_text(json.dumps(KEPT[kind]))
    loaded = again(journal)
    assert loaded.member == MEMBERS[kind]
    assert (loaded.done, len(loaded.entries)) == (KEPT[kind]["done"], len(KEPT[kind]["entries"]))
    loaded.save()
    written = json.loads(Path(journal.path).read_text())
    assert written["schema"] == KEPT[kind]["schema"] and KEPT[kind]["member"].items() <= written["member"].items()
    assert again(journal).member == MEMBERS[kind]


def test_only_root_reads_it(journal: Journal) -> None:
    journal.save()
    assert stat.S_IMODE(Path(journal.path).stat().st_mode) == 0o600


def test_the_newest_entries_are_kept_and_long_messages_cut(journal: Journal) -> None:
    for number in range(KEPT_ENTRIES + 20):
        journal.record("step", "done", 0, f"{number} " + "x" * 5000)
    kept = again(journal).entries
    assert len(kept) == KEPT_ENTRIES
    assert kept[-1].message.startswith(f"{KEPT_ENTRIES + 19} ") and len(kept[-1].message) <= 1000


def test_a_replaced_file_is_restored_with_content_and_mode(journal: Journal, tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text("mine")
    path.chmod(0o640)
    assert journal.replace_file(str(path), "ours")
    assert journal.replace_file(str(path), "ours again")
    assert not journal.replace_file(str(path), "ours again")
    again(journal).restore_files()
    assert path.read_text() == "mine"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert list(Path(journal.saved_dir).iterdir()) == []


def test_a_new_file_is_removed_with_the_folders_that_were_created_for_it(journal: Journal, tmp_path: Path) -> None:
    path = tmp_path / "etc/containerd/certs.d/r:5000/hosts.toml"
    journal.replace_file(str(path), "x")
    (tmp_path / "etc/kept").write_text("somebody's")
    journal.restore_files()
    assert not path.exists() and not (tmp_path / "etc/containerd").exists()
    assert (tmp_path / "etc/kept").exists()


def test_restoring_twice_is_harmless(journal: Journal, tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("mine")
    journal.replace_file(str(path), "ours")
    journal.restore_files()
    journal.restore_files()
    assert path.read_text() == "mine"


def test_the_original_is_saved_before_the_file_is_touched(journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    path.write_text("mine")
    real = journal.keep_original

    def cut(target: str) -> None:
        real(target)
        raise KeyboardInterrupt

    monkeypatch.setattr(journal, "keep_original", cut)
    with pytest.raises(KeyboardInterrupt):
        journal.replace_file(str(path), "ours")
    assert path.read_text() == "mine"
    path.write_text("ours")
    again(journal).restore_files()
    assert path.read_text() == "mine"


@pytest.mark.parametrize("text", ["", "{", "[]x", '{"schema": 9}', '{"schema": 1, "member": {"cluster": "no key"}}', '{"schema": 1, "member": [1]}'])
def test_a_broken_journal_is_not_taken_for_an_empty_one(journal: Journal, text: str) -> None:
    journal.save()
    Path(journal.path).write_text(text)
    with pytest.raises(AgentError) as caught:
        again(journal)
    assert caught.value.reason == "JournalBroken" and caught.value.resolution


def test_forgetting_leaves_the_history(journal: Journal) -> None:
    journal.begin(Member("k"))
    journal.record("reset", "done")
    journal.forget()
    other = again(journal)
    assert other.member is None and other.packages == [] and len(other.entries) == 1
    assert json.loads(Path(journal.path).read_text())["saved"] == {}
