"""Backups that management hosts make by themselves: what applying brings to them for it, and that all of it goes away again."""

from __future__ import annotations

import configparser
import json
import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ckp.clients.signing.encryption import ReaderKey, decrypting
from ckp.clients.signing.openpgp import gpg, gpg_home
from ckp.hostkit.backup.location import CREDENTIALS, FOLDER, SERVICE, SETTINGS, SIGNER, STATE, TIMER
from ckp.hostkit.backup.names import name_of
from ckp.hosttool.backup.settings import read_settings
from ckp.kits.errors import InvalidInput
from ckp.site.backup.target import target_of
from ckp.site.backup.timer import GPG, UNITS, bring_all, of_spec, pending, require_able, service_text, timer_text
from ckp.site.inventory import KnownHosts
from ckp.site.plan.backups import changes
from ckp.site.plan.model import Action
from ckp.site.spec.model import SiteSpec
from ckp.site.spec.read import read_site
from ckp.site.status import backups, timers
from tests.simulators.management_host import ManagementHost
from tests.simulators.site_host import Service
from tests.worlds.applied_site import TEXT
from tests.worlds.backup import make_reader, make_signer

PLACE = "backup: {to: {path: /mnt/backup}, every: 24h, keep: 7, encryptFor: [owner.pgp]}\n"
BUCKET = "backup: {to: {s3: {endpoint: 'https://s3.example', bucket: backups, credentialsFile: s3}}, every: 24h, encryptFor: [owner.pgp]}\n"


@pytest.fixture(scope="module")
def signer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_signer(tmp_path_factory.mktemp("signer") / "signer")


@pytest.fixture(scope="module")
def owner(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_reader(tmp_path_factory.mktemp("owner"), "owner")


class World:
    """A site with three hosts, and what this machine keeps of it."""

    def __init__(self, root: Path, signer: Path, owner: tuple[Path, Path]) -> None:
        self.root, self.state, self.owner, self.lines = root, root / "state", owner, list[str]()
        (self.state / "registry").mkdir(parents=True)
        (self.state / "applied").mkdir()
        (self.state / "registry" / "ca.key").write_text("the registry's key")
        (self.state / "backup").mkdir()
        shutil.copytree(signer, self.state / "backup" / "signer")
        (root / "owner.pgp").write_bytes(owner[0].read_bytes())
        (root / "s3").write_text("[default]\naws_access_key_id = AKIA\naws_secret_access_key = s3cret\n")
        (root / "s3").chmod(0o600)
        self.masters = [ManagementHost(root / name, name, f"192.0.2.1{number}") for number, name in enumerate(("m1", "m2", "m3"))]
        for host in self.masters:
            host.path("/mnt/backup").mkdir(parents=True)
            for program in GPG:
                host.path(program).parent.mkdir(parents=True, exist_ok=True)
                host.path(program).write_text("gpg")
        self.hosts = KnownHosts(self.masters[0], self.masters)

    def spec(self, text: str = PLACE) -> SiteSpec:
        (self.root / "site.yaml").write_text(TEXT + text)
        return read_site(self.root / "site.yaml")

    def apply(self, text: str = PLACE) -> list[str]:
        """What is done on the first host."""
        schedule = of_spec(self.spec(text), self.state)
        require_able(self.hosts, schedule)
        for host in self.masters:
            host.calls.clear()
        bring_all(self.hosts, schedule, self.lines.append)
        return self.masters[0].calls

    def settings(self, name: str = "m1") -> dict[str, object]:
        [host] = [each for each in self.masters if each.name == name]
        found: dict[str, object] = json.loads(host.path(f"{FOLDER}/{SETTINGS}").read_text())
        return found


@pytest.fixture
def world(tmp_path: Path, signer: Path, owner: tuple[Path, Path]) -> World:
    return World(tmp_path, signer, owner)


def test_each_host_gets_a_timer_and_what_only_root_may_read(world: World) -> None:
    before = [host.tree() for host in world.masters]
    world.apply()
    for host in world.masters:
        new = [path for path in host.tree() if path not in before[0] and path.startswith(FOLDER)]
        assert f"{FOLDER}/{SIGNER}" in new and all(host.accessed(path) in ("600 root root", "700 root root") for path in new)
        assert host.services[TIMER].active == "active" and world.settings(host.name)["address"] == host.address
    assert world.settings()["hosts"] == {host.name: host.address for host in world.masters}
    bring_all(world.hosts, None, world.lines.append)
    assert [host.tree() for host in world.masters] == before and all(host.services[TIMER].active == "inactive" for host in world.masters)


def test_what_the_host_tool_reads_is_what_was_brought(world: World) -> None:
    world.apply(BUCKET)
    host = world.masters[1]
    found = read_settings(str(host.path(FOLDER)))
    assert found is not None and (found.host, found.every, found.keep, found.place.bucket) == ("m2", 86400.0, 7, "backups")
    assert [host.path(f"{FOLDER}/{name}").read_bytes() for name in found.readers] == [world.owner[0].read_bytes()]
    found.store({}).close()


def test_the_state_of_this_machine_is_there_for_its_readers_only(world: World) -> None:
    world.apply()
    sealed = world.masters[2].path(f"{FOLDER}/{STATE}")
    assert b"the registry's key" not in sealed.read_bytes()
    with decrypting(sealed, ReaderKey(world.owner[1]), timeout=60, within=world.root) as stream:
        assert b"the registry's key" in stream.read()


def test_applied_again_nothing_is_written(world: World) -> None:
    world.apply()
    calls = world.apply()
    assert calls and not [call for call in calls if call.startswith(("push", "rm", "install", "chmod", "systemctl restart", "systemctl enable"))], calls
    assert all(pending(host, world.hosts, of_spec(world.spec(), world.state)).nothing for host in world.masters)


@pytest.mark.parametrize("change", ["every", "state", "reader", "place"])
def test_what_changes_is_brought(world: World, owner: tuple[Path, Path], tmp_path: Path, change: str) -> None:
    world.apply(BUCKET)
    sealed, text = world.masters[0].path(f"{FOLDER}/{STATE}").read_bytes(), BUCKET
    if change == "every":
        text = BUCKET.replace("24h", "30m")
    elif change == "state":
        (world.state / "registry" / "ca.key").write_text("another key")
    elif change == "reader":
        (world.root / "owner.pgp").write_bytes(make_reader(tmp_path, "second")[0].read_bytes())
    else:
        text = PLACE
    calls = world.apply(text)
    host = world.masters[0]
    assert f"push {FOLDER}/{SETTINGS}" in calls and f"systemctl restart {TIMER}" in calls
    assert host.path(f"{FOLDER}/{STATE}").read_bytes() != sealed
    assert host.path(f"{FOLDER}/{CREDENTIALS}").exists() is (change != "place"), "a key that is no longer needed does not stay"
    assert ("OnCalendar=*:0/5" in host.path(f"{UNITS}/{TIMER}").read_text()) is (change == "every")
    assert not [call for call in world.apply(text) if call.startswith("push")]


def test_a_run_that_was_killed_anywhere_is_gone_on_with(world: World) -> None:
    world.apply()
    wanted = {path: text for path, text in world.masters[0].tree().items() if not path.endswith(STATE)}
    count = len(World.apply(world, PLACE.replace("24h", "12h")))
    world.apply()
    for number in range(count):
        host = world.masters[0]
        bring_all(world.hosts, None, world.lines.append)
        host.calls.clear()
        host.kill_at = number
        try:
            bring_all(world.hosts, of_spec(world.spec(), world.state), world.lines.append)
        except BaseException as error:
            assert type(error).__name__ == "Killed"
        host.kill_at = None
        world.apply()
        assert {path: text for path, text in host.tree().items() if not path.endswith(STATE)} == wanted, number
        assert host.services[TIMER].active == "active"


def test_no_host_is_to_make_any_where_the_file_says_so_or_no_time_is_due(world: World) -> None:
    for text in (PLACE.replace("every: 24h, ", ""), PLACE.replace("keep: 7", "byHosts: false"), ""):
        assert of_spec(world.spec(text), world.state) is None
    world.apply()
    world.apply("")
    assert not world.masters[0].path(FOLDER).exists()


def test_a_host_without_gpg_is_refused_before_anything_is_changed(world: World) -> None:
    world.masters[1].path("/usr/bin/gpg-agent").unlink()
    with pytest.raises(InvalidInput, match=r"m2 is to make backups by itself .* and has no /usr/bin/gpg-agent"):
        world.apply()
    assert not world.masters[0].path(FOLDER).exists()


def test_only_hosts_that_have_the_folder_make_backups_there(world: World) -> None:
    world.masters[1].path("/mnt/backup").rmdir()
    world.apply()
    assert not world.masters[1].path(FOLDER).exists() and world.masters[2].path(FOLDER).exists()
    assert "m2: has no /mnt/backup, and makes no backups by itself" in world.lines
    for host in (world.masters[0], world.masters[2]):
        host.path("/mnt/backup").rmdir()
    with pytest.raises(InvalidInput, match="no management host has the folder /mnt/backup"):
        world.apply()


def test_a_secret_key_is_not_brought_to_the_hosts(world: World) -> None:
    with gpg_home(world.owner[1].read_bytes()) as home:
        armored = gpg(home, "--armor", "--export-secret-keys", what="exporting").stdout
    (world.root / "owner.pgp").write_text(armored)
    with pytest.raises(InvalidInput, match="no OpenPGP certificate"):
        of_spec(world.spec(), world.state)
    (world.root / "owner.pgp").write_bytes(world.owner[1].read_bytes())
    with pytest.raises(InvalidInput, match="no OpenPGP certificate"):
        of_spec(world.spec(), world.state)


def test_the_service_can_do_only_what_it_is_for() -> None:
    for folder, more in (("", ""), ("/mnt/backup", " CAP_DAC_OVERRIDE")):
        unit = configparser.RawConfigParser(strict=False)
        unit.optionxform = str  # type: ignore[assignment,method-assign]
        unit.read_string(service_text(folder))
        assert unit["Service"]["CapabilityBoundingSet"] == f"CAP_DAC_READ_SEARCH{more}" and unit["Service"]["ProtectSystem"] == "strict"
        assert unit["Service"].get("ReadWritePaths", "").removeprefix("-") == folder and unit["Unit"].get("RequiresMountsFor", "") == folder
        assert unit["Service"]["ExecStart"] == "/usr/bin/ckp-agent backup"
    assert "OnCalendar=*:0/15" in timer_text(timedelta(hours=1)) and "OnCalendar=*:0/5" in timer_text(timedelta(minutes=30))


def test_the_status_names_a_timer_that_is_off_and_a_run_that_failed(world: World) -> None:
    world.apply()
    schedule = of_spec(world.spec(), world.state)
    assert {part.state for part in timers(world.hosts, schedule)} == {"ok"} and list(timers(world.hosts, None)) == []
    world.masters[0]._systemctl("stop", [TIMER])
    world.masters[1]._systemctl("start", [TIMER])
    world.masters[1].services[SERVICE] = Service(result="exit-code")
    found = {part.name: part for part in timers(world.hosts, schedule)}
    assert (found["backup timer on m1"].state, found["backup timer on m2"].state) == ("off", "failed")
    assert "journalctl -u ckp-site-backup.service on m2" in found["backup timer on m2"].detail


def test_the_status_says_how_old_the_newest_one_is_and_since_when_it_is_overdue(world: World) -> None:
    now, day = datetime(2026, 2, 1, tzinfo=UTC), timedelta(hours=24)

    class Kept:
        def names(self, _beginning: str) -> list[tuple[str, int]]:
            return [(name_of("berlin", now - timedelta(hours=50)), 1)]

    with target_of(world.spec(), world.masters[0]) as target:
        found = backups(replace(target, place=Kept()), day, now)  # type: ignore[arg-type]
    assert found.state == "late" and found.detail.endswith("2 days old: overdue for 26 h")


def test_the_plan_shows_what_comes_and_goes(world: World) -> None:
    def actions(text: str) -> list[Action]:
        schedule = of_spec(world.spec(text), world.state)
        return [each.action for each in changes(schedule, {host.name: pending(host, world.hosts, schedule) for host in world.masters})]

    assert actions("") == [] and actions(PLACE) == [Action.CREATE] * 3
    world.apply()
    assert actions(PLACE) == [Action.NONE] * 3
    assert actions(PLACE.replace("24h", "12h")) == actions("") == [Action.CHANGE] * 3
