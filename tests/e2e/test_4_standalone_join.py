"""A cluster of several masters: joined by tokens, and one that goes on when the master with the virtual address is gone."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator

import pytest

from ckp.kits.retry import wait_until
from ckp.lab.lab import LabHost
from ckp.standalone.token import decode, encode
from tests.support.host_snapshot import changes, snapshot
from tests.support.several_masters import (
    ADMIN,
    MASTERS,
    STANDALONE,
    VIRTUAL,
    WORKER,
    Place,
    Writer,
    holders,
    kubectl,
    members,
    nodes,
    prepared,
    said,
    token_of,
)

pytestmark = [pytest.mark.e2e, pytest.mark.long, pytest.mark.lab, pytest.mark.root("boots whole hosts")]

MOST_SECONDS_AWAY = 15.0
"""Without writes when the holder's power is cut: about eight by the lease, and what a busy machine adds."""


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with prepared() as made:
        yield made


@pytest.fixture(scope="module")
def masters(place: Place) -> list[LabHost]:
    """The first three; the cluster is made of the first."""
    return [place.host(spec) for spec in MASTERS[:3]]


def test_the_first_master_holds_the_virtual_address(place: Place, masters: list[LabHost]) -> None:
    first = masters[0]
    place.install(first)
    assert holders(masters) == [first.name]
    assert f"server: https://{VIRTUAL}:6443" in first.pull(ADMIN).decode()
    shown = first.run([*STANDALONE, "status"], timeout=60).stdout
    assert f"virtual address: {VIRTUAL}, held by this host" in shown
    assert "already a standalone cluster" in place.install(first)
    other = first.run([*STANDALONE, "install", *place.source, "--virtual-address", "10.177.94.61"], timeout=120, check=False)
    assert other.code == 2 and f"virtual_address: {VIRTUAL} then, 10.177.94.61 now" in other.stderr


def test_what_can_not_join_is_refused_before_anything_is_changed(place: Place, masters: list[LabHost]) -> None:
    first, second = masters[:2]
    good = decode(token_of(first, "--control-plane"))
    before = snapshot(second)
    for token, words in (
        ("nonsense", "not a join token"),
        (encode(dataclasses.replace(good, release="v1.34.9")), "v1.34.9"),
        (encode(dataclasses.replace(good, expires="2020-01-01T00:00:00Z")), "has expired"),
        (encode(dataclasses.replace(good, endpoint="10.177.94.77:6443")), "can't be reached"),
        (encode(dataclasses.replace(good, ca_hash="sha256:" + "0" * 64)), "another cluster"),
        (token_of(first), "this token is for workers"),
    ):
        done = place.refused(second, token, "--control-plane")
        assert words in done.stderr, done.stderr
        assert good.token not in done.stdout + done.stderr
    member = place.refused(first, encode(good), "--control-plane")
    assert "other settings" in member.stderr
    assert changes(before, snapshot(second)) == []


def test_two_masters_join(place: Place, masters: list[LabHost]) -> None:
    first = masters[0]
    for host in masters[1:]:
        token = token_of(first, "--control-plane")
        place.join(host, token, "--control-plane")
        secret = decode(token)
        for word in (secret.token, secret.certificate_key):
            found = host.run(["grep", "-rlF", "--", word, "/var/lib/ckp-agent", "/var/log", "/run/ckp-standalone", "/etc"], timeout=60, check=False).stdout
            assert found == "", "the secret is nowhere on the host"
        assert "has joined the cluster" in place.join(host, token, "--control-plane")
        assert "role: master, which has joined" in host.run([*STANDALONE, "status"], timeout=60).stdout
    assert members(first) == {"m1": "voter", "m2": "voter", "m3": "voter"}
    assert nodes(first) == {"m1": True, "m2": True, "m3": True}
    assert holders(masters) == [first.name]


def test_a_worker_joins(place: Place, masters: list[LabHost]) -> None:
    worker = place.host(WORKER)
    place.join(worker, token_of(masters[1]))
    assert nodes(masters[0]).get(WORKER.name) is True
    assert worker.run(["test", "-e", "/etc/kubernetes/manifests/etcd.yaml"], timeout=20, check=False).code != 0
    images = worker.run(["crictl", "images"], timeout=60).stdout
    assert "kube-apiserver" not in images and "etcd" not in images
    assert "role: worker" in worker.run([*STANDALONE, "status"], timeout=60).stdout


def test_the_cluster_goes_on_when_the_holders_power_is_cut(place: Place, masters: list[LabHost]) -> None:
    [name] = holders(masters)
    holder = next(host for host in masters if host.name == name)
    rest = [host for host in masters if host is not holder]
    with Writer(rest[0].pull(ADMIN).decode()) as writer:
        cut = time.monotonic()
        holder.power_cut()
        writer.writes_again(cut)
        time.sleep(10)
    print(
        f"\n{len(writer.acknowledged)} writes, {len(writer.failed)} failed, longest gap {writer.longest_gap:.1f} s; {sorted({why for _, why in writer.failed})}"
    )
    assert writer.longest_gap < MOST_SECONDS_AWAY
    assert writer.lost(rest[0]) == []
    assert len(holders(rest)) == 1


def test_a_lost_master_is_removed_and_a_new_host_takes_its_place(place: Place, masters: list[LabHost]) -> None:
    lost = next(host for host in masters if not host.running)
    rest = [host for host in masters if host is not lost]
    own = rest[0].run([*STANDALONE, "remove-node", rest[0].name], timeout=60, check=False)
    assert own.code == 2 and "is this host" in own.stderr
    wait_until(lambda: nodes(rest[0])[lost.name] is False, what="the lost node is noticed", timeout=180, every=2)
    ready = rest[0].run([*STANDALONE, "remove-node", rest[1].name], timeout=60, check=False)
    assert ready.code == 2 and "is Ready" in ready.stderr
    forced = rest[0].run([*STANDALONE, "remove-node", "--force", rest[1].name], timeout=60, check=False)
    assert forced.code == 2 and "no quorum" in forced.stderr
    shown = rest[0].run([*STANDALONE, "remove-node", lost.name], timeout=180).stdout
    assert f"removed the member {lost.name} of etcd" in shown and f"deleted the node {lost.name}" in shown
    assert "nothing of" in rest[0].run([*STANDALONE, "remove-node", lost.name], timeout=180).stdout
    new = place.host(MASTERS[3])
    place.join(new, token_of(rest[1], "--control-plane"), "--control-plane")
    assert members(new) == {rest[0].name: "voter", rest[1].name: "voter", new.name: "voter"}
    wait_until(lambda: all(nodes(new).values()), what="all nodes are Ready", timeout=300, every=2)


def test_a_master_that_is_reset_leaves_the_cluster(place: Place, masters: list[LabHost]) -> None:
    rest = [host for host in masters if host.running]
    new = place.lab.host(MASTERS[3].name)
    [name] = holders([*rest, new])
    leaving = next(host for host in (*rest, new) if host.name == name)
    staying = next(host for host in (*rest, new) if host.name != name)
    with Writer(staying.pull(ADMIN).decode()) as writer:
        begun = time.monotonic()
        shown = said(leaving, ["reset"])
        writer.writes_again(begun)
    print(
        f"\n{len(writer.acknowledged)} writes, {len(writer.failed)} failed, longest gap {writer.longest_gap:.1f} s; {sorted({why for _, why in writer.failed})}"
    )
    assert "left etcd" in shown and "what stays" not in shown
    assert leaving.name not in members(staying) and leaving.name not in nodes(staying)
    assert leaving.run(["systemctl", "is-active", "ckp-virtual-address"], timeout=20, check=False).stdout.strip() == "inactive"
    assert writer.longest_gap < MOST_SECONDS_AWAY
    assert writer.lost(staying) == []
    assert kubectl(staying, "get", "--raw", "/readyz") == "ok"
