"""A cluster of three masters under faults: joins that are killed, a holder that is cut off, hosts that come back empty."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

import pytest

from ckp.kits.retry import wait_until
from ckp.lab.lab import LabHost
from tests.support.several_masters import (
    ADMIN,
    MASTERS,
    STANDALONE,
    VIRTUAL,
    Place,
    Watch,
    Writer,
    cut_off,
    holders,
    killed,
    members,
    nodes,
    prepared,
    said,
    token_of,
)

pytestmark = [pytest.mark.e2e, pytest.mark.long, pytest.mark.lab, pytest.mark.root("boots whole hosts")]

KILLS = 5
LONGEST_JOIN = 40.0
"""Seconds; a kill comes at any moment of them."""
MOST_SECONDS_AWAY = 15.0


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with prepared() as made:
        yield made


@pytest.fixture(scope="module")
def masters(place: Place) -> list[LabHost]:
    """Three hosts, of which the first two are masters."""
    hosts = [place.host(spec) for spec in MASTERS[:3]]
    place.install(hosts[0])
    place.join(hosts[1], token_of(hosts[0], "--control-plane"), "--control-plane")
    return hosts


VOTERS = {"m1": "voter", "m2": "voter", "m3": "voter"}


def joining(place: Place, host: LabHost) -> list[str]:
    return ["join", "--control-plane", *place.source, "--advertise-address", host.address, "--node-name", host.name]


@pytest.mark.parametrize("seed", range(KILLS))
def test_a_join_that_is_killed_at_any_moment_is_continued(place: Place, masters: list[LabHost], seed: int) -> None:
    first, _, third = masters
    token = token_of(first, "--control-plane")
    after = random.Random(seed).uniform(0.5, LONGEST_JOIN)
    alive = killed(third, joining(place, third), token, after)
    print(f"\nkilled after {after:.1f} s: {alive}; etcd has {members(first)}")
    place.join(third, token, "--control-plane")
    assert members(first) == VOTERS
    assert nodes(first) == dict.fromkeys(VOTERS, True)
    if seed < KILLS - 1:
        assert "what stays" not in said(third, ["reset"])
        assert members(first) == {"m1": "voter", "m2": "voter"} and set(nodes(first)) == {"m1", "m2"}


def test_a_join_that_loses_its_power_is_continued(place: Place, masters: list[LabHost]) -> None:
    first, _, third = masters
    said(third, ["reset"])
    token = token_of(first, "--control-plane")
    killed(third, joining(place, third), token, 24.0)
    third.power_cut()
    third.start()
    place.join(third, token, "--control-plane")
    assert members(first) == VOTERS and nodes(first) == dict.fromkeys(VOTERS, True)


def test_a_holder_that_is_cut_off_loses_the_address(place: Place, masters: list[LabHost]) -> None:
    [name] = holders(masters)
    holder = next(host for host in masters if host.name == name)
    rest = [host for host in masters if host is not holder]
    with Watch(masters) as watch, Writer(rest[0].pull(ADMIN).decode()) as writer:
        begun = time.monotonic()
        with cut_off(holder):
            wait_until(lambda: len(holders(rest)) == 1, what="another master has the address", timeout=30, every=0.2)
            assert holders([holder]) == [], "it has given up what it can't have"
            writer.writes_again(begun)
            time.sleep(10)
        wait_until(lambda: all(nodes(rest[0]).values()), what="the host is back in the cluster", timeout=300, every=2)
        time.sleep(10)
    print(f"\n{len(writer.acknowledged)} writes, {len(writer.failed)} failed, longest gap {writer.longest_gap:.1f} s; {watch.spans}, away {watch.away:.1f} s")
    assert watch.together == []
    assert writer.longest_gap < MOST_SECONDS_AWAY and writer.lost(rest[0]) == []
    assert len(holders(masters)) == 1


def test_the_service_is_started_again_when_it_is_killed(masters: list[LabHost]) -> None:
    [name] = holders(masters)
    holder = next(host for host in masters if host.name == name)
    with Watch(masters) as watch:
        holder.run(["systemctl", "kill", "--signal=KILL", "ckp-virtual-address"], timeout=20)
        time.sleep(5)
        assert holders(masters) == [name], "the same host renews its lease"
        holder.run(["systemctl", "stop", "ckp-virtual-address"], timeout=60)
        wait_until(lambda: len(holders(masters)) == 1 and holders(masters) != [name], what="another master takes it", timeout=10, every=0.2)
    print(f"\n{watch.spans}, away {watch.away:.1f} s")
    assert watch.together == []
    holder.run(["systemctl", "start", "ckp-virtual-address"], timeout=60)


def test_a_holder_that_gets_no_processor_loses_the_address(masters: list[LabHost]) -> None:
    """Its process is stopped, so only its kernel can remove the address."""
    [name] = holders(masters)
    holder = next(host for host in masters if host.name == name)
    with Watch(masters) as watch:
        holder.run(["systemctl", "kill", "--signal=STOP", "ckp-virtual-address"], timeout=20)
        time.sleep(15)
        holder.run(["systemctl", "kill", "--signal=CONT", "ckp-virtual-address"], timeout=20)
        time.sleep(5)
    print(f"\n{watch.spans}, away {watch.away:.1f} s")
    assert watch.together == []
    assert holders(masters) not in ([name], [])


def test_a_host_that_comes_back_empty_joins_under_its_name_again(place: Place, masters: list[LabHost]) -> None:
    """Nobody has removed its node or its member of etcd."""
    first, _, third = masters
    third.remove()
    wait_until(lambda: nodes(first)["m3"] is False, what="the lost node is noticed", timeout=180, every=2)
    assert members(first) == VOTERS
    new = place.host(MASTERS[2])
    shown = place.join(new, token_of(first, "--control-plane"), "--control-plane")
    assert "removed 1 member of etcd" in shown
    assert members(first) == VOTERS and nodes(first) == dict.fromkeys(VOTERS, True)


def test_all_masters_lose_their_power_and_come_back(place: Place, masters: list[LabHost]) -> None:
    hosts = [*masters[:2], place.lab.host(MASTERS[2].name)]
    for host in hosts:
        host.power_cut()
    for host in hosts:
        host.start()
    wait_until(lambda: nodes(hosts[0]) == dict.fromkeys(VOTERS, True), what="all nodes are Ready, by the virtual address", timeout=400, every=3)
    assert len(holders(hosts)) == 1 and members(hosts[0]) == VOTERS


def test_a_master_whose_cluster_is_away_is_reset_and_says_what_stays(place: Place, masters: list[LabHost]) -> None:
    first, second, _ = masters
    third = place.lab.host(MASTERS[2].name)
    first.power_cut()
    second.power_cut()
    shown = said(third, ["reset"])
    assert "what stays" in shown and "remove-node m3" in shown
    assert VIRTUAL not in third.run(["ip", "-4", "addr", "show"], timeout=20).stdout
    assert third.run([*STANDALONE, "status"], timeout=60, check=False).code == 1
