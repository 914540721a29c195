"""`ckp site upgrade` against a simulated site of the version before: forward, back, and killed at each moment."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from ckp import __version__
from ckp.api.kinds import BYO_HOST
from ckp.kits.errors import CkpError, Conflict, InvalidInput
from ckp.rules.schemas import HEAD
from ckp.site import version
from ckp.site.backup import take as take_module
from ckp.site.upgrade import layer
from ckp.site.upgrade import record as records
from ckp.site.upgrade.database import COMPASS
from ckp.site.upgrade.run import TakenBack
from tests.simulators.site_host import Killed
from tests.simulators.upgradable_api import UpgradableApi
from tests.worlds.applied_site import AppliedSite

BEFORE = "0.2.0"
HOSTS = ("h1", "h2", "h3")
ROLLED = ["cert-manager", "capi", "ckp-controllers", "ckp-hub", "ckp-compass"]


class OldSite:
    """A site of the version before."""

    def __init__(self, site: AppliedSite, monkeypatch: pytest.MonkeyPatch) -> None:
        self.site, self.api = site, UpgradableApi()
        site.host.api = self.api
        assert site.run("apply").exit_code == 0
        site.host.packages["ckp-agent"] = BEFORE
        self.api.age()
        self.api.foreign = {"other", "of-the-owner"}
        for namespace in ("cert-manager", "capi-kubeadm-bootstrap-system"):
            self.api.add("Deployment", namespace, "other", spec={"replicas": 1})
        for name in HOSTS:
            status = {"agent": {"version": BEFORE}, "conditions": [{"type": "AgentConnected", "status": "True"}]}
            self.api.add(BYO_HOST.kind, "ckp-a-b", name, status=status, spec={})
        self.backup = site.root / "site.backup"
        self.events: list[str] = self.api.rolled

        def take(*arguments: Any) -> None:
            arguments[2].write_text("a backup")
            self.events.append("backup")

        monkeypatch.setattr(take_module, "take", take)
        (site.root / "passphrase").write_text("correct horse battery staple\n")
        (site.root / "passphrase").chmod(0o600)
        self._packages = dict(site.host.packages)
        self._objects = copy.deepcopy(self.api.objects)

    def reset(self) -> None:
        """The site as it was before any upgrade."""
        self.api.objects, self.api.schema = copy.deepcopy(self._objects), "0002"
        self.site.host.packages = dict(self._packages)
        self.site.host.kill_at = None
        self.backup.unlink(missing_ok=True)
        self.events.clear()

    def run(self, *arguments: str) -> Result:
        secret = ("--passphrase-file", str(self.site.root / "passphrase")) if "--backup" in arguments else ()
        return self.site.run("upgrade", *arguments, *secret)

    def upgrade(self) -> Result:
        return self.run("--backup", str(self.backup))

    @property
    def is_old(self) -> bool:
        return self.api.objects == self._objects and self.api.schema == "0002"

    @property
    def differs(self) -> list[str]:
        """Objects that are not as before."""
        keys = self.api.objects.keys() | self._objects.keys()
        return [" ".join(key) for key in keys if self.api.objects.get(key) != self._objects.get(key)]

    @property
    def is_new(self) -> bool:
        """Version, schema, layer, host tool and agents; and nothing is left of the upgrade."""
        agents = {self.api.objects[BYO_HOST.kind, "ckp-a-b", name]["status"]["agent"]["version"] for name in HOSTS}
        own = self.site.release.agent("deb").version
        left = [key for key in self.api.objects if key[0] == "Job" or key[2].startswith(version.UPGRADING)]
        found = version.installed(self.site.host)
        return (found, self.api.schema, agents, self.site.host.packages["ckp-agent"], left) == (__version__, HEAD, {own}, own, [])

    def image(self, name: str) -> str:
        return str(self.api.objects["Deployment", "ckp-system", name]["spec"]["template"]["spec"]["containers"][0]["image"])


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OldSite:
    return OldSite(AppliedSite(tmp_path, monkeypatch), monkeypatch)


def test_a_site_is_backed_up_and_upgraded_step_by_step(old: OldSite) -> None:
    done = old.upgrade()
    assert done.exit_code == 0, done.output
    assert old.events == ["backup", f"schema {HEAD}", *ROLLED, "agent h1", "agent h2", "agent h3"]
    assert old.is_new and f"is of CKP {__version__} (before: {BEFORE})" in done.stdout
    assert "RELEASES" not in done.stdout and old.image(COMPASS).endswith("ckp-platform:1@sha256:" + old.image(COMPASS)[-64:])
    again = old.run("-o", "json", "--without-backup")
    assert json.loads(again.stdout) == {"version": __version__, "upgraded": False} and old.events[-1] == "agent h3"
    assert old.site.run("apply").exit_code == 0, "and is applied as any other"


def test_a_plan_changes_nothing(old: OldSite) -> None:
    before = old.site.everything()
    done = old.run("--plan", "-o", "json")
    assert done.exit_code == 1 and old.site.everything() == before and old.is_old
    rows = {item["part"]: item for item in json.loads(done.stdout)["items"]}
    assert rows["version"]["detail"] == f"CKP {BEFORE} becomes {__version__}"
    assert rows["byoremediations.infrastructure.cluster.x-k8s.io"]["action"] == "create"
    assert rows["Compass' database"]["action"] == "change"
    old.upgrade()
    assert old.run("--plan").exit_code == 0


def test_without_a_word_about_the_backup_nothing_begins(old: OldSite) -> None:
    with pytest.raises(InvalidInput, match="a site is backed up before it is upgraded, and nothing was changed"):
        old.run()
    old.backup.write_text("of last year")
    with pytest.raises(InvalidInput, match="is there already"):
        old.upgrade()
    with pytest.raises(InvalidInput, match="--backup and --without-backup"):
        old.run("--backup", str(old.backup), "--without-backup")
    assert old.is_old and old.backup.read_text() == "of last year"
    assert old.run("--without-backup").exit_code == 0 and old.is_new


def test_a_backup_that_fails_ends_it_before_anything_is_changed(old: OldSite, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise CkpError("etcd can't be read")

    with monkeypatch.context() as patch:
        patch.setattr(take_module, "take", fails)
        with pytest.raises(CkpError, match="etcd can't be read"):
            old.upgrade()
    layer = {key: each for key, each in old.api.objects.items() if key[2] != version.UPGRADING}
    assert layer == old._objects and old.events == []
    assert old.run("--back").exit_code == 0 and old.is_old


def test_other_commands_wait_for_the_upgrade(old: OldSite) -> None:
    with pytest.raises(Conflict, match=f"is of CKP {BEFORE}, and this is {__version__}; nothing was changed"):
        old.site.run("apply")
    old.api.broken = {"ckp-hub"}
    old.api.migration = "failed"
    seen = old.site.run("status", "-o", "json")
    assert seen.exit_code == 1
    assert {"name": "version", "state": "other version", "detail": f"CKP {BEFORE}, and this is {__version__}"} in json.loads(seen.stdout)


def test_a_site_that_is_not_healthy_is_refused(old: OldSite) -> None:
    old.api.join("m9", "192.0.2.99", ready=False)
    old.api.objects["Deployment", "ckp-system", "ckp-hub"]["spec"]["replicas"] = 2
    old.api.objects["Deployment", "ckp-system", "ckp-hub"]["status"] = {"readyReplicas": 1}
    before = copy.deepcopy(old.api.objects)
    with pytest.raises(InvalidInput) as refused:
        old.upgrade()
    assert "ckp-system/ckp-hub: not ready: 1 of 2 ready" in refused.value.details
    assert old.api.objects == before and not old.backup.exists()


@pytest.mark.parametrize("name", ["cert-manager", "capi", "ckp-controllers", "ckp-hub", "ckp-compass"])
def test_what_does_not_become_ready_brings_everything_back(old: OldSite, name: str) -> None:
    old.api.broken = {name}
    with pytest.raises(TakenBack) as failed:
        old.upgrade()
    assert f"was not upgraded, and is of CKP {BEFORE} as before" in failed.value.brief and name in failed.value.brief
    assert "timed out waiting" in failed.value.details
    assert old.is_old, old.differs
    old.api.broken = set()
    old.backup.unlink()
    assert old.upgrade().exit_code == 0 and old.is_new


def test_a_migration_that_fails_rolls_nothing(old: OldSite) -> None:
    old.api.migration = "failed"
    with pytest.raises(TakenBack, match="the Job that changes Compass' schema"):
        old.upgrade()
    assert old.is_old and f"schema {HEAD}" not in old.events


def test_an_agent_that_goes_back_stops_the_stages_and_the_rest_goes_on_later(old: OldSite) -> None:
    old.api.stubborn = {"h2"}
    with pytest.raises(CkpError, match=r"the agent of ckp-a-b/h2 stays with 0\.2\.0, and no other was touched after it"):
        old.run("--without-backup", "--agents-at-once", "1")
    assert "agent h1" in old.events and "agent h3" not in old.events
    assert old.api.objects[BYO_HOST.kind, "ckp-a-b", "h2"]["spec"]["agentVersion"] is None, "it is no longer asked for"
    with pytest.raises(CkpError, match=r"there is no way back to 0\.2\.0"):
        old.run("--back")
    old.api.stubborn = set()
    del old.api.objects[BYO_HOST.kind, "ckp-a-b", "h2"]["status"]["observed"]
    assert old.upgrade().exit_code == 0 and old.is_new and not old.backup.exists(), "the layer was upgraded before: there is nothing to back up"


def test_a_host_that_is_not_connected_is_left_and_named(old: OldSite) -> None:
    old.api.objects[BYO_HOST.kind, "ckp-a-b", "h2"]["status"]["conditions"][0]["status"] = "False"
    done = old.run("--without-backup", "-o", "json")
    assert json.loads(done.stdout)["agents"] == {"upgraded": ["ckp-a-b/h1", "ckp-a-b/h3"], "left": ["ckp-a-b/h2"]}


CHANGING = ("apply", "patch", "delete", "scale", "create", "dpkg", "push", "settings")


def changes_of(old: OldSite, act: Callable[[], object]) -> list[int]:
    """Which of the things that a command does change the host or the cluster, by their numbers."""
    old.reset()
    begun = len(old.site.host.calls)
    with suppress(CkpError):
        act()
    return [number for number, call in enumerate(old.site.host.calls[begun:]) if any(word in call.split()[:6] for word in CHANGING)]


def kill_everywhere(old: OldSite, act: Callable[[], object], check: Callable[[str], None]) -> int:
    """Kill the command after each thing that it changes on the host or in the cluster; `check` is told which."""
    numbers = changes_of(old, act)
    for number in numbers:
        old.reset()
        old.site.host.kill_at, old.site.host.kill_after = len(old.site.host.calls) + number, True
        with pytest.raises(Killed):
            act()
        old.site.host.kill_at = None
        check(old.site.host.calls[-1])
    return len(numbers)


def test_killed_at_any_moment_the_same_command_goes_on(old: OldSite) -> None:
    def goes_on(place: str) -> None:
        for name in ("ckp-controllers", "ckp-hub", COMPASS):
            assert ("Deployment", "ckp-system", name) in old.api.objects, place
        done = old.upgrade()
        assert done.exit_code == 0 and old.is_new, (place, done.output)
        assert old.events.count("backup") <= 1, "a backup is not made twice"

    assert kill_everywhere(old, old.upgrade, goes_on) > 20


def test_killed_at_any_moment_of_the_way_back_the_same_command_goes_on_with_it(old: OldSite) -> None:
    old.api.broken = {COMPASS}

    def is_taken_back(place: str) -> None:
        old.backup.unlink(missing_ok=True)
        with pytest.raises(TakenBack):
            old.upgrade()
        assert old.is_old, (place, old.differs)

    assert kill_everywhere(old, old.upgrade, is_taken_back) > 25


def test_a_person_may_take_it_back_until_the_layer_is_new(old: OldSite) -> None:
    def given_up(place: str) -> None:
        record = records.read(old.site.host)
        if record is None:
            with pytest.raises(CkpError, match="no upgrade of the site is unfinished"):
                old.run("--back")
        elif record.phase is records.Phase.AGENTS:
            with pytest.raises(CkpError, match="there is no way back"):
                old.run("--back")
        else:
            done = old.run("--back", "-o", "json")
            assert json.loads(done.stdout) == {"version": BEFORE, "upgraded": False} and old.is_old, place

    assert kill_everywhere(old, old.upgrade, given_up) > 20


def test_the_record_of_another_version_is_left_to_it(old: OldSite) -> None:
    records.write(old.site.host, records.Record(before=BEFORE, to="9.0.0", phase=records.Phase.LAYER, schema_before="0002"))
    with pytest.raises(InvalidInput) as refused:
        old.upgrade()
    assert "finish it with CKP 9.0.0" in refused.value.details
    with pytest.raises(CkpError, match=r"was begun by CKP 9\.0\.0"):
        old.run("--back")


def with_dropped(old: OldSite) -> tuple[str, str, str]:
    """An object that the version before has applied and this one has no longer; beside it one of the owner's, and what must never go."""
    meta = {"apiVersion": "v1", "data": {"key": "value"}}
    for name in ("ckp-dropped", "of-the-owner"):
        old.api.add("ConfigMap", "ckp-system", name, **meta)
    for kind in ("Secret", "PersistentVolumeClaim", "Namespace"):
        old.api.add(kind, "" if kind == "Namespace" else "ckp-system", "ckp-kept", apiVersion="v1")
    old._objects = copy.deepcopy(old.api.objects)
    return "ConfigMap", "ckp-system", "ckp-dropped"


def test_what_the_new_version_has_no_longer_is_deleted(old: OldSite) -> None:
    dropped = with_dropped(old)
    done = old.upgrade()
    assert done.exit_code == 0 and old.is_new and dropped not in old.api.objects
    assert "ConfigMap ckp-dropped: deleted, as CKP has it no longer" in done.stderr + done.stdout
    kept = {(kind, name) for kind, _, name in old.api.objects if name in ("of-the-owner", "ckp-kept")}
    assert kept == {("ConfigMap", "of-the-owner"), ("Secret", "ckp-kept"), ("PersistentVolumeClaim", "ckp-kept"), ("Namespace", "ckp-kept")}
    assert ("Deployment", "cert-manager", "other") in old.api.objects, "others have applied it"


def test_what_was_deleted_comes_back_with_the_version_before(old: OldSite, monkeypatch: pytest.MonkeyPatch) -> None:
    dropped = with_dropped(old)
    prune = layer.prune

    def fails(*arguments: Any) -> None:
        prune(*arguments)
        assert dropped not in old.api.objects
        raise CkpError("it was lost right after")

    monkeypatch.setattr(layer, "prune", fails)
    with pytest.raises(TakenBack):
        old.upgrade()
    assert old.is_old, old.differs
