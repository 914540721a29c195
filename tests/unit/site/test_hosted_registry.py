"""The registry of a site on one of its hosts: idempotent, restarted only when it must be, and whole again after a kill at any moment."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path

import pytest
from cryptography import x509

from ckp.kits import files
from ckp.kits.disks import DiskFull
from ckp.kits.errors import CkpError, Conflict, InvalidInput, NotFound
from ckp.site.hosts.files import LOOK
from ckp.site.registries import hosted as module
from ckp.site.registries import kept
from ckp.site.registries.hosted import HostedRegistry
from ckp.site.registries.unit import PROGRAM, unit_of
from tests.simulators.site_host import Killed, SimulatedHost

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
READS = (
    "sha256sum",
    "stat",
    "ls",
    "df",
    "ss",
    "getent",
    "journalctl",
    "systemctl show",
    "systemctl is-enabled",
    "pull",
    "write",
    "sh -c # questions",
    f"sh -c {LOOK}",
)
"""Calls that change nothing on the host."""
PULL, PUSH = unit_of("pull"), unit_of("push")


class World:
    """A host, and this machine's state."""

    def __init__(self, root: Path) -> None:
        self.root, self.now, self.lines = root, NOW, list[str]()
        self.host = SimulatedHost(root / "host")
        self.program = root / "registry"
        self.program.write_bytes(b"the program")
        self.registry = HostedRegistry(
            self.host, self.program, "images.example.test", "192.0.2.10", state=root / "state", connect=self.host.connect, now=lambda: self.now
        )

    def ensure(self) -> list[str]:
        """Bring it about; the calls that have changed something on the host."""
        before = len(self.host.calls)
        self.registry.ensure(self.lines.append).close()
        return [call for call in self.host.calls[before:] if not call.startswith(READS)]

    @property
    def starts(self) -> tuple[int, int]:
        """How often each service was started."""
        return self.host.services[PULL].starts, self.host.services[PUSH].starts

    def check(self) -> None:
        """Both processes run, with what lies on the disk now; and nothing is left to be done."""
        for unit in (PULL, PUSH):
            service = self.host.services[unit]
            assert (service.active, bool(service.pid)) == ("active", True), (unit, service.journal)
            for path, digest in service.read.items():
                if path != "unit":
                    assert digest == files.sha256_bytes(self.host.path(path).read_bytes()), f"{unit} runs with an old {path}"
            assert service.read["unit"] == files.sha256_bytes(self.host._unit_text(unit).encode()), f"{unit} runs with an old unit"
        assert self.host.path(PROGRAM).read_bytes() == self.program.read_bytes()
        starts, said = self.starts, len(self.lines)
        assert self.ensure() == [] and self.starts == starts and len(self.lines) == said
        self.host.boot()
        assert all(self.host.services[unit].pid for unit in (PULL, PUSH)), "both come back after a power cut"
        assert self.ensure() == []


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


# -- bringing it about


def test_a_host_gets_it_whole_and_once(world: World) -> None:
    changed = world.ensure()
    assert any(call.startswith("useradd --system") for call in changed) and world.starts == (1, 1)
    world.check()
    assert (world.registry.address, world.registry.endpoint) == ("images.example.test:5000", "192.0.2.10:5001")
    assert {path: world.host.accessed(f"/etc/ckp-registry/{path}") for path in ("tls.pem", "htpasswd", "ca.pem")} == {
        "tls.pem": "640 root ckp-registry",
        "htpasswd": "640 root ckp-registry",
        "ca.pem": "644 root root",
    }
    assert world.host.accessed("/var/lib/ckp-registry") == "700 ckp-registry ckp-registry" and world.host.accessed(PROGRAM) == "755 root root"
    assert world.host.services[PULL].listens == "192.0.2.10:5000" and world.host.services[PUSH].listens == "192.0.2.10:5001"


def test_what_is_kept_on_this_machine_is_its_owners_only(world: World) -> None:
    world.ensure()
    modes = {path.name: path.stat().st_mode & 0o777 for path in world.registry.folder.iterdir() if not path.name.endswith(".lock")}
    assert modes == {"ca.key": 0o600, "ca.pem": 0o644, "credentials.json": 0o600, "htpasswd": 0o600, "tls.pem": 0o600}
    assert world.registry.folder.stat().st_mode & 0o777 == 0o700
    found = x509.load_pem_x509_certificate((world.registry.folder / "tls.pem").read_bytes())
    names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["images.example.test"] and [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == [
        "192.0.2.10"
    ]


def test_neither_the_password_nor_the_cas_key_leaves_this_machine(world: World) -> None:
    world.ensure()
    [entry] = json.loads((world.registry.folder / "credentials.json").read_bytes())["auths"].values()
    password = base64.b64decode(entry["auth"]).decode().partition(":")[2]
    assert len(base64.urlsafe_b64decode(password + "=")) == 32
    secrets = [password.encode(), entry["auth"].encode(), (world.registry.folder / "ca.key").read_bytes().splitlines()[1]]
    shown = ["\n".join(world.host.calls), "\n".join(world.lines), *("\n".join(service.journal) for service in world.host.services.values())]
    content = [path.read_bytes() for path in world.host.root.rglob("*") if path.is_file()]
    assert not any(secret in text for secret in secrets for text in [*(text.encode() for text in shown), *content])


def test_clients_push_with_the_password_and_are_refused_without(world: World) -> None:
    world.ensure()
    assert world.registry.credentials is not None
    assert world.registry.client().digest("ckp/etcd", "v1") is None
    assert world.host.connect("192.0.2.10:5000", world.registry.ca, None).digest("ckp/etcd", "v1") is None, "everybody may pull"
    with pytest.raises(CkpError, match="refuses"):
        world.host.connect("192.0.2.10:5001", world.registry.ca, None).digest("ckp/etcd", "v1")
    world.registry.credentials.write_text(json.dumps({"auths": {"192.0.2.10:5001": {"auth": base64.b64encode(b"ckp:wrong").decode()}}}))
    with pytest.raises(CkpError, match="refuses") as caught:
        world.registry.client().digest("ckp/etcd", "v1")
    assert "wrong" not in caught.value.render()


# -- what is restarted


def test_another_program_is_brought_and_both_services_restart(world: World) -> None:
    world.ensure()
    world.program.write_bytes(b"a newer program")
    assert f"push {PROGRAM}" in world.ensure() and world.starts == (2, 2)
    world.check()


def test_another_port_restarts_only_its_service_and_keeps_the_password(world: World) -> None:
    world.ensure()
    before = json.loads((world.registry.folder / "credentials.json").read_bytes())["auths"]["192.0.2.10:5001"]
    world.registry = replace(world.registry, push_port=5443)
    world.ensure()
    assert world.starts == (1, 2)
    assert json.loads((world.registry.folder / "credentials.json").read_bytes())["auths"] == {"192.0.2.10:5443": before}
    world.check()


def test_another_name_or_address_and_the_end_of_the_certificate_get_another_one_of_the_same_ca(world: World) -> None:
    world.ensure()
    ca = world.registry.ca.read_bytes()
    world.now = NOW + 0.89 * kept.LEAF_LIFETIME
    assert world.ensure() == []
    world.now = NOW + 0.91 * kept.LEAF_LIFETIME
    assert [call for call in world.ensure() if call.startswith("push")] == [
        "push /etc/ckp-registry/pull.restart",
        "push /etc/ckp-registry/push.restart",
        "push /etc/ckp-registry/tls.pem",
    ]
    assert world.starts == (2, 2) and world.registry.ca.read_bytes() == ca and "registry: certificate issued (it ends on" in "\n".join(world.lines)
    world.registry = replace(world.registry, name="other.example.test")
    world.ensure()
    assert world.starts == (3, 3) and world.registry.ca.read_bytes() == ca
    world.check()


def test_a_new_password_restarts_nothing(world: World) -> None:
    world.ensure()
    (world.registry.folder / "credentials.json").unlink()
    assert [call for call in world.ensure() if call.startswith("push")] == ["push /etc/ckp-registry/htpasswd"] and world.starts == (1, 1)
    assert world.registry.client().digest("ckp/etcd", "v1") is None
    world.check()


@pytest.mark.parametrize(
    ("harm", "starts"),
    [
        (lambda host: host.path("/etc/ckp-registry/pull.yml").write_text("{}"), (2, 1)),
        (lambda host: host.path("/etc/ckp-registry/push.yml").unlink(), (1, 2)),
        (lambda host: host.path("/etc/systemd/system/ckp-registry@.service").unlink(), (2, 2)),
        (lambda host: host.access.update({"/etc/ckp-registry/tls.pem": "600 root root"}), (2, 2)),
        (lambda host: host.run(["systemctl", "stop", PUSH], timeout=1), (1, 2)),
        (lambda host: host.run(["systemctl", "disable", PULL], timeout=1), (1, 1)),
        (lambda host: host.path("/etc/ckp-registry/htpasswd").unlink(), (1, 1)),
        (lambda host: host.access.update({"/var/lib/ckp-registry": "700 1001 1001"}), (1, 1)),
    ],
)
def test_what_somebody_has_changed_on_the_host_is_put_right(world: World, harm: Callable[[SimulatedHost], object], starts: tuple[int, int]) -> None:
    world.ensure()
    harm(world.host)
    assert world.ensure() != []
    assert world.starts == starts
    world.check()


# -- killed at any moment


def killed_at_each_step(world_of: Callable[[Path], World], work: Callable[[World], object], root: Path) -> list[World]:
    """Worlds in which `work` was killed at each of its steps in turn, on the host or in the files of this machine; before that step and after it."""
    worlds = []
    for after in (False, True):
        for number in count():
            world = world_of(root / f"{number}-{after}")
            world.host.kill_at, world.host.kill_after = len(world.host.calls) + number, after
            try:
                with counted_writes(world.host):
                    work(world)
            except Killed:
                world.host.kill_at = None
                worlds.append(world)
                continue
            assert number > 5
            break
    return worlds


@contextmanager
def counted_writes(host: SimulatedHost) -> Iterator[None]:
    """Files that are written on this machine are steps as well."""

    def write(path: Path, content: bytes | str, *, mode: int = 0o644) -> None:
        host.step(f"write {path.name}", lambda: files.atomic_write(path, content, mode=mode))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kept, "atomic_write", write)
        yield


def fresh(root: Path) -> World:
    root.mkdir()
    return World(root)


def old(root: Path) -> World:
    """An older one runs: another program, certificate, port and unit."""
    world = fresh(root)
    world.ensure()
    world.program.write_bytes(b"a newer program")
    world.now = NOW + 0.95 * kept.LEAF_LIFETIME
    world.registry = replace(world.registry, port=5500, storage="/srv/images")
    return world


@pytest.mark.parametrize("world_of", [fresh, old])
def test_a_kill_at_any_moment_is_made_good_by_the_next_run(world_of: Callable[[Path], World], tmp_path: Path) -> None:
    worlds = killed_at_each_step(world_of, World.ensure, tmp_path)
    assert len(worlds) > 40
    for number, world in enumerate(worlds):
        if number % 2:
            world.host.boot()  # the host's power was cut at that moment, too
        world.ensure()
        world.check()


def test_a_removal_that_was_killed_is_completed_or_undone_by_the_next_run(tmp_path: Path) -> None:
    def installed(root: Path) -> World:
        world = fresh(root)
        world.ensure()
        return world

    bare = SimulatedHost(tmp_path / "bare").tree()
    worlds = killed_at_each_step(installed, lambda world: world.registry.remove(storage=True), tmp_path)
    assert len(worlds) > 20
    for number, world in enumerate(worlds):
        if number % 3 == 0:
            world.ensure()
            world.check()
        else:
            world.registry.remove(storage=True)
            assert world.host.tree() == bare


# -- removing


def test_a_host_is_left_as_it_was_and_its_content_only_goes_when_asked(world: World, tmp_path: Path) -> None:
    bare = SimulatedHost(tmp_path / "bare").tree()
    world.ensure()
    world.host.path("/var/lib/ckp-registry/docker").mkdir()
    world.registry.remove()
    assert world.host.tree() == {**bare, "/var/lib/ckp-registry": "folder 700 root root", "/var/lib/ckp-registry/docker": "folder 755 root root"}
    world.ensure()
    assert world.host.accessed("/var/lib/ckp-registry") == "700 ckp-registry ckp-registry"
    world.check()
    world.registry.remove(storage=True)
    assert world.host.tree() == bare
    world.registry.remove(storage=True)
    assert world.host.tree() == bare


# -- what is refused


def test_another_programs_port_is_named_before_anything_is_changed(world: World) -> None:
    bare = world.host.tree()
    for place in ("0.0.0.0:5001", "*:5001", "192.0.2.10:5001"):
        world.host.sockets = [place]
        with pytest.raises(Conflict, match="port 5001 of m1 is taken by another program") as caught:
            world.ensure()
        assert "nginx" in caught.value.details and world.host.tree() == bare
    world.host.sockets = ["127.0.0.1:5001", "192.0.2.10:443", "[::]:5000"]
    world.ensure()
    world.check()


def test_without_a_program_that_lists_sockets_the_services_journal_tells(world: World) -> None:
    world.host.sockets, world.host.shows_sockets = ["0.0.0.0:5000"], False
    with pytest.raises(Conflict, match="port 5000 of m1 is taken") as caught:
        world.ensure()
    assert "address already in use" in caught.value.details
    world.host.sockets = []
    world.ensure()
    world.check()


def test_a_disk_without_room_for_a_release_is_refused_before_anything_is_changed(world: World) -> None:
    bare = world.host.tree()
    world.host.free = 2 << 30
    with pytest.raises(DiskFull, match=r"too little space on m1 for the site's registry: 4.0 GiB are needed below /var/lib/ckp-registry, and 2.0 GiB"):
        world.ensure()
    assert world.host.tree() == bare
    world.host.free = 100 << 30
    world.ensure()
    world.host.path("/var/lib/ckp-registry/docker").mkdir()
    world.host.free = 2 << 30
    world.check()  # its release is there already
    with pytest.raises(DiskFull, match=r"for v1.35.1: 3.0 GiB"):
        world.registry.require_space(3, what="v1.35.1")


def test_a_service_that_does_not_stay_up_is_told_with_its_journal(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "server_config", lambda *_, **__: json.dumps({"http": {"tls": {"certificate": "/gone"}}}))
    with pytest.raises(CkpError, match=r"ckp-registry@pull.service on m1 does not stay up") as caught:
        world.ensure()
    assert "open /gone" in caught.value.details and "journalctl -u ckp-registry@pull.service" in caught.value.resolution
    monkeypatch.undo()
    world.ensure()
    world.check()


def test_the_registry_of_another_site_is_left_alone(world: World, tmp_path: Path) -> None:
    world.ensure()
    tree = world.host.tree()
    lost = replace(world.registry, state=tmp_path / "another")
    for _ in range(2):
        with pytest.raises(Conflict, match="the registry of another site") as caught:
            lost.ensure(world.lines.append)
    assert "restore the site's state" in caught.value.resolution
    other = fresh(tmp_path / "other-site")
    other.ensure()
    with pytest.raises(Conflict, match="the registry of another site"):
        replace(other.registry, host=world.host).remove()
    assert world.host.tree() == tree
    lost.remove()  # as the error says: without any state, it may be removed
    lost.ensure(world.lines.append)


def test_a_folder_with_something_else_in_it_is_neither_taken_over_nor_emptied(world: World) -> None:
    for name in ("docker", "letters"):
        world.host.path(f"/srv/data/{name}").mkdir(parents=True)
    world.host.access["/srv/data"] = "755 postgres postgres"
    tree = world.host.tree()
    world.registry = replace(world.registry, storage="/srv/data")
    for work in (world.ensure, lambda: world.registry.remove(storage=True)):
        with pytest.raises(Conflict, match="/srv/data on m1 is not the folder of a registry's content") as caught:
            work()
        assert caught.value.details == "it has letters" and world.host.tree() == tree
    world.registry.remove()
    assert world.host.tree() == tree
    world.host.path("/srv/data/letters").rmdir()
    world.host.path("/srv/data/lost+found").mkdir()  # a disk of its own, mounted there
    world.ensure()
    world.check()


def test_an_account_of_somebody_else_is_left_alone(world: World) -> None:
    world.host.accounts["ckp-registry"] = "ckp-registry:x:1000:1000:A person:/home/x:/bin/sh"
    with pytest.raises(Conflict, match="account ckp-registry that CKP has not made"):
        world.ensure()
    world.registry.remove()
    assert "ckp-registry" in world.host.accounts


def test_a_lost_key_of_the_ca_matters_only_when_a_certificate_is_due(world: World) -> None:
    world.ensure()
    (world.registry.folder / "ca.key").unlink()
    world.check()
    world.now = NOW + 0.95 * kept.LEAF_LIFETIME
    with pytest.raises(NotFound, match="with the key of its CA is missing"):
        world.ensure()


@pytest.mark.parametrize("content", ["", "[]", '{"auths": {}}', '{"auths": {"a": {"auth": "Y2twOg=="}}}', '{"auths": {"a": {"auth": "c2VjcmV0OnNlY3JldA=="}}}'])
def test_a_spoilt_file_of_the_password_is_named_and_not_shown(world: World, content: str) -> None:
    world.ensure()
    (world.registry.folder / "credentials.json").write_text(content)
    with pytest.raises(InvalidInput, match="is not the file of the registry's password") as caught:
        world.ensure()
    assert "c2VjcmV0" not in caught.value.render() and "secret" not in caught.value.render()


@pytest.mark.parametrize(
    "change",
    [
        {"name": "images/../x"},
        {"name": "-x"},
        {"name": ""},
        {"listen": "images.example.test"},
        {"push_port": 5000},
        {"port": 0},
        {"storage": "srv/images"},
        {"storage": "/srv"},
        {"storage": "/srv/../etc"},
        {"storage": "/srv/a b"},
        {"storage": "/srv/%i"},
    ],
)
def test_what_cannot_be_is_refused_at_once(world: World, change: dict[str, object]) -> None:
    with pytest.raises(InvalidInput):
        replace(world.registry, **change)  # type: ignore[arg-type]


def test_certificates_last_long_enough_to_be_renewed_in_time() -> None:
    assert timedelta(days=180) < kept.LEAF_LIFETIME * 0.1 and kept.CA_LIFETIME > 3 * kept.LEAF_LIFETIME
