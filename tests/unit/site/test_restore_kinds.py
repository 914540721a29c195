"""Sites of other kinds come back: with three management hosts and a virtual address, and with Compass' data in PostgreSQL."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ckp.hostkit.locations import RESTORED, RESTORED_RECORD
from ckp.kits.errors import Conflict, InvalidInput, TimedOut
from ckp.site import members
from ckp.site.backup.restore import MARKS
from tests.simulators.management_api import SimulatedApi
from tests.simulators.site_host import Killed
from tests.worlds.restorable_site import COMPASS_VOLUME, ETCD_VOLUME, RestorableSite

ONE = "    - {name: m1, address: 192.0.2.10}\n"
OTHERS = {"m2": "192.0.2.11", "m3": "192.0.2.12"}
THREE = ONE + "".join(f"    - {{name: {name}, address: {address}}}\n" for name, address in OTHERS.items())
API = "  compass: {address: 192.0.2.200}\n"
VIRTUAL = f"{API}  api: {{virtualAddress: 192.0.2.50}}\n"
CHANGES = ((ONE, THREE), (API, VIRTUAL))
DATABASE = ("releases: [v1.35.1]", "releases: [v1.35.1]\ndatabase: {postgresql: {urlFile: url}}")


@pytest.fixture
def three(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RestorableSite:
    monkeypatch.setattr("ckp.kits.retry.time.sleep", lambda _: None)
    return RestorableSite(tmp_path, monkeypatch, CHANGES, OTHERS)


@pytest.fixture
def postgresql(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RestorableSite:
    (tmp_path / "url").write_text("postgresql://u:p@192.0.2.99:5432/d\n")
    (tmp_path / "url").chmod(0o600)
    return RestorableSite(tmp_path, monkeypatch, [DATABASE], postgresql=True)


def lose(site: RestorableSite) -> None:
    """All hosts. What the data says of nodes was so once: Kubernetes finds out after a while that they are away."""
    site.lose()
    api, asked = site.host.api, [0]
    original = api._get

    def get(kinds: str, named: list[str], flags: dict[str, str]) -> tuple[int, str, str]:
        if kinds == "nodes":
            asked[0] += 1
            if asked[0] == 3:
                for name in OTHERS:
                    if not site.hosts[name].complete and ("Node", "", name) in api.objects:
                        api.objects["Node", "", name]["status"]["conditions"][0]["status"] = "Unknown"
        return original(kinds, named, flags)

    api._get = get  # type: ignore[method-assign]


def is_back(site: RestorableSite) -> bool:
    """All hosts are members, the data is where the API looks for it, and nothing is left of the work."""
    assert site.names() == {"before"}
    assert sorted(name for kind, _, name in site.host.api.objects if kind == "Node") == ["m1", "m2", "m3"]
    for host in site.hosts.values():
        assert host.complete and not host.path(RESTORED).exists()
    m3 = site.hosts["m3"]
    assert json.loads(m3.path(f"{ETCD_VOLUME.path}/data/member/db").read_text())["content"] == "a tenant's"
    assert m3.path(f"{COMPASS_VOLUME.path}/compass.db").read_text() == "Compass'"
    assert not any(site.hosts[name].path(volume.path).exists() for name in ("m1", "m2") for volume in (ETCD_VOLUME, COMPASS_VOLUME))
    return site.plan()[0] == 0


def test_three_hosts_come_back_the_first_alone_and_the_others_join_it(three: RestorableSite) -> None:
    old = three.hosts["m1"].api
    lose(three)
    done = three.restore()
    assert done.exit_code == 0, done.output
    assert is_back(three) and three.host.api is not old
    assert three.host.journal["member"]["virtual_address"] == "192.0.2.50"
    assert [len(host.tokens) for host in three.hosts.values()] == [0, 1, 1]
    assert "waiting until the cluster knows that m2, m3 of before are away" in done.output
    assert "m2 (192.0.2.11) is gone" in done.output


def test_the_first_begins_as_the_only_member(three: RestorableSite) -> None:
    lose(three)
    three.hosts["m2"].kill_at = next_join(three, "m2")
    with pytest.raises(Killed):
        three.restore()
    data = json.loads(three.host.path(f"{RESTORED}/etcd/member/db").read_text())
    assert (data["name"], data["initial-cluster"], data["initial-advertise-peer-urls"]) == ("m1", "m1=https://192.0.2.10:2380", "https://192.0.2.10:2380")
    assert three.host.complete and not three.hosts["m2"].complete
    with pytest.raises(Conflict, match="a restore was begun on m1 and is not finished"):
        three.run("apply")
    three.hosts["m2"].kill_at = None
    assert three.restore().exit_code == 0 and is_back(three)


def next_join(site: RestorableSite, name: str) -> int:
    """The number of the command by which a host would join: of a first run that is thrown away."""
    site.restore()
    number = site.hosts[name].calls.index("ckp-agent standalone join")
    lose(site)
    return number


def test_a_host_that_still_runs_is_not_taken_out(three: RestorableSite) -> None:
    three.lose()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(members, "AWAY_SECONDS", 0)
        with pytest.raises(TimedOut, match="no lost host counts as Ready") as caught:
            three.restore()
    assert "Ready: m2, m3" in caught.value.render() and three.host.complete
    for name in OTHERS:
        three.host.api.objects["Node", "", name]["status"]["conditions"][0]["status"] = "Unknown"
    assert three.restore().exit_code == 0 and is_back(three)


@pytest.mark.parametrize("where", ["m1", "m2", "m3"])
@pytest.mark.parametrize("path", [MARKS[0], ETCD_VOLUME.path])
def test_each_host_has_to_be_clean(three: RestorableSite, where: str, path: str) -> None:
    lose(three)
    host = three.hosts[where]
    host.path(path).parent.mkdir(parents=True, exist_ok=True)
    host.path(path).write_text("somebody's")
    if path == ETCD_VOLUME.path and where != "m3":
        assert three.restore().exit_code == 0, "no data goes there"
        return
    before = {name: each.tree() for name, each in three.hosts.items()}
    with pytest.raises(Conflict, match=f"{where} is in use, and nothing was changed"):
        three.restore()
    assert {name: each.tree() for name, each in three.hosts.items()} == before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("192.0.2.12}", "192.0.2.13}"), r"the backup is of .*m3 \(192.0.2.12\), and the site's file names .*m3 \(192.0.2.13\)"),
        (("virtualAddress: 192.0.2.50", "virtualAddress: 192.0.2.51"), "was made with api.virtualAddress 192.0.2.50, and the file has 192.0.2.51"),
    ],
)
def test_other_hosts_and_another_virtual_address_are_refused(three: RestorableSite, change: tuple[str, str], words: str) -> None:
    lose(three)
    three.hosts["m3"].address = "192.0.2.13" if "13" in change[1] else three.hosts["m3"].address
    three.file.write_text(three.file.read_text().replace(*change))
    with pytest.raises(InvalidInput, match=words):
        three.restore()
    assert not any(host.path(RESTORED).exists() for host in three.hosts.values())


@pytest.mark.parametrize("where", ["m1", "m2", "m3"])
@pytest.mark.parametrize("number", range(3, 120, 29))
def test_a_restore_of_three_that_is_killed_once_is_gone_on_with(three: RestorableSite, where: str, number: int) -> None:
    lose(three)
    three.hosts[where].kill_at = number
    try:
        three.restore()
    except Killed:
        three.hosts[where].kill_at = None
        assert three.restore().exit_code == 0
    three.hosts[where].kill_at = None
    assert is_back(three)


# -- PostgreSQL


def test_data_comes_back_into_an_empty_postgresql(postgresql: RestorableSite) -> None:
    postgresql.lose()
    done = postgresql.restore()
    assert done.exit_code == 0 and "Compass' database: 1 rows were put back" in done.output
    assert postgresql.database["data"] == "Compass'" and not postgresql.host.path(RESTORED).exists() and postgresql.names() == {"before"}
    assert not postgresql.host.path(COMPASS_VOLUME.path).exists()


def test_data_that_postgresql_has_already_is_kept_or_replaced_only_where_that_was_said(postgresql: RestorableSite) -> None:
    postgresql.database["data"] = "written since"
    postgresql.lose()
    with pytest.raises(Conflict, match="could not be put back into its PostgreSQL") as caught:
        postgresql.restore()
    assert "has data of its own (written since)" in caught.value.details and postgresql.database == {"data": "written since"}
    assert postgresql.host.path(RESTORED_RECORD).exists(), "the restore goes on with an answer"
    done = postgresql.restore(None, "--database", "keep")
    assert done.exit_code == 0 and postgresql.database == {"data": "written since"} and not postgresql.host.path(RESTORED).exists()
    postgresql.lose()
    assert postgresql.restore(None, "--database", "replace").exit_code == 0 and postgresql.database["data"] == "Compass'"


def test_a_restore_that_is_killed_after_the_data_was_put_back_does_not_put_it_back_again(postgresql: RestorableSite) -> None:
    host = postgresql.lose()
    number = 0
    while "run" not in postgresql.database:
        number += 1
        host.calls.clear()
        host.kill_at, host.kill_after = number, True
        try:
            postgresql.restore()
        except Killed:
            continue
    postgresql.database["data"] = "written since by Compass"
    host.kill_at = None
    assert isinstance(host.api, SimulatedApi)
    if host.path(RESTORED_RECORD).exists():
        assert postgresql.restore().exit_code == 0
    assert postgresql.database["data"] == "written since by Compass"


def test_a_backup_of_sqlite_is_not_put_into_postgresql(postgresql: RestorableSite) -> None:
    postgresql.postgresql = False
    other = postgresql.back_up()
    postgresql.lose()
    with pytest.raises(InvalidInput, match="the backup has Compass' data of sqlite, and the site's file names postgresql"):
        postgresql.restore(other)
