"""The virtual address is held by one master at most, whatever fails; and by one again soon after."""

from __future__ import annotations

import ipaddress
import json
import socket
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckp.hostkit.errors import InvalidInput
from ckp.standalone import checks
from ckp.standalone.address import network, unit
from ckp.standalone.address.lease import RENEW, TAKE, WAIT, Election, Record, Timing
from ckp.standalone.address.network import Link
from ckp.standalone.address.service import AddressService, Conflict, Settings, Unavailable, lease_object

TIMING = Timing()


class Clock:
    """A monotonic clock that the test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Server:
    """The cluster's Lease, as the API servers have it: linearizable, and written only by who knows its version."""

    record: Record | None = None
    version: int = 0

    def put(self, me: str, before: Record | None, duration: float) -> Record:
        if self.record != before:
            raise Conflict("another host has written the lease")
        self.version += 1
        self.record = Record(me, str(self.version), duration if me else 1.0)
        return self.record


@dataclass
class Host:
    """A master: its store and its link are here, with the faults that a test gives them."""

    name: str
    server: Server
    clock: Clock
    ready: bool = True
    latency: float = 0.0
    lose_answers: bool = False
    broken_link: bool = False
    address_until: float = 0.0
    taken: str = ""
    bootstrap: bool = False
    asked: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.service = AddressService(
            Settings("10.0.0.9", "10.0.0.5", self.name), self, self, bootstrap=lambda: self.bootstrap, clock=self.clock, timing=TIMING
        )

    @property
    def has(self) -> bool:
        return self.clock.now < self.address_until

    # the store
    def check_ready(self, timeout: float) -> None:
        self.asked.append("ready")
        if not self.ready:
            self.clock.now += min(self.latency, timeout)
            raise Unavailable("not ready")

    def get(self, timeout: float) -> Record | None:
        self.clock.now += self.latency
        return self.server.record

    def put(self, me: str, before: Record | None, timeout: float) -> Record:
        self.asked.append("put")
        self.clock.now += self.latency
        record = self.server.put(me, before, TIMING.duration)
        if self.lose_answers:
            raise Unavailable("no answer in time")
        return record

    # the link
    def hold(self, seconds: int) -> None:
        if self.broken_link:
            raise OSError("no such link")
        self.address_until = self.clock.now + seconds

    def drop(self) -> None:
        self.address_until = 0.0

    def others(self) -> str:
        return self.taken


def pair() -> tuple[Clock, Server, Host, Host]:
    clock, server = Clock(), Server()
    return clock, server, Host("a", server, clock), Host("b", server, clock)


def run(clock: Clock, seconds: float, *hosts: Host) -> None:
    """Each host looks once a second."""
    end = clock.now + seconds
    while clock.now < end:
        for host in hosts:
            host.service.tick()
        clock.now += 1.0


def test_one_of_two_masters_gets_the_address_and_keeps_it() -> None:
    clock, server, one, two = pair()
    run(clock, 30, one, two)
    assert (one.has, two.has) == (True, False)
    assert server.record is not None and server.record.holder == "a"


def test_another_master_takes_the_address_when_its_holder_is_gone() -> None:
    clock, _, one, two = pair()
    run(clock, 10, one, two)
    died = clock.now
    while not two.has:
        run(clock, 1, two)
        assert clock.now < died + 8, "within eight seconds"
    assert not one.has, "the kernel has removed it where nobody renews it"


def test_a_holder_whose_api_server_is_not_ready_gives_up_in_time() -> None:
    clock, _, one, two = pair()
    run(clock, 10, one, two)
    one.ready = False
    while not two.has:
        run(clock, 1, one, two)
        assert not (one.has and two.has)
    run(clock, 5, one, two)
    assert not one.has
    one.ready = True
    run(clock, 10, one, two)
    assert two.has and not one.has, "it does not take it back"


def test_a_stop_gives_the_address_up_and_another_master_takes_it_at_its_next_look() -> None:
    clock, server, one, two = pair()
    run(clock, 10, one, two)
    one.service.stop()
    assert not one.has and server.record is not None and server.record.holder == ""
    two.service.tick()
    assert two.has


def test_a_renewal_whose_answer_is_lost_is_no_loss() -> None:
    clock, _, one, two = pair()
    run(clock, 10, one, two)
    one.lose_answers = True
    run(clock, 2, one, two)
    one.lose_answers = False
    run(clock, 2, one, two)
    assert one.has and not two.has


def test_a_master_that_can_not_add_the_address_leaves_it_to_another() -> None:
    clock, _, one, two = pair()
    run(clock, 10, one, two)
    one.broken_link = True
    run(clock, 4, one, two)
    assert two.has and not one.has


def test_the_service_removes_what_an_earlier_process_has_left() -> None:
    clock, server, one, two = pair()
    run(clock, 10, one, two)
    restarted = Host("b", server, clock, address_until=1e9)
    restarted.service.tick()
    assert not restarted.has


def test_a_holder_that_is_started_again_goes_on_at_once() -> None:
    clock, server, one, _ = pair()
    run(clock, 10, one)
    again = Host("a", server, clock)
    again.service.tick()
    assert again.has


def test_the_first_master_holds_the_address_without_a_lease_until_there_is_one() -> None:
    clock, server, one, _ = pair()
    one.ready, one.bootstrap = False, True
    run(clock, 60, one)
    assert one.has and one.asked == [], "nothing is asked: there is no API server"
    one.ready, one.bootstrap = True, False
    server.put("a", None, TIMING.duration)
    for _ in range(40):
        one.service.tick()
        assert one.has, "it is not given up in between"
        clock.now += 0.5
    assert server.record is not None and server.record.version != "1"


def test_an_address_that_another_host_has_is_not_taken_without_a_lease() -> None:
    clock, _, one, _ = pair()
    one.bootstrap, one.taken = True, "02:00:00:00:00:01"
    run(clock, 5, one)
    assert not one.has


def test_a_lease_that_somebody_deleted_is_made_again_after_its_time() -> None:
    clock, server, one, two = pair()
    run(clock, 10, one, two)
    server.record = None
    for _ in range(12):
        run(clock, 1, one, two)
        assert not (one.has and two.has)
    assert one.has or two.has


def test_the_rules_wait_for_the_whole_duration_and_hold_for_less() -> None:
    election = Election("b")
    election.observe(Record("a", "1", 5.0), 10.0)
    assert election.wish(14.9) == WAIT and election.wish(15.0) == TAKE
    election.observe(Record("a", "2", 5.0), 15.0)
    assert election.wish(19.0) == WAIT, "it was renewed"
    election.won(Record("b", "3", 5.0), 20.0)
    assert election.wish(20.1) == RENEW and election.holds(23.9) and not election.holds(24.0)
    assert election.lifetime(20.1) == 3 and election.lifetime(23.2) == 0
    assert TIMING.renew_deadline < TIMING.duration


@dataclass
class Machine:
    """A host with a clock of its own, that may be late with everything. `frozen`: gets no processor until then."""

    election: Election
    server: Server
    offset: float
    written: list[float]
    address_until: float = float("-inf")

    def step(self, now: float, before: float, between: float, after: float, *, reaches: bool) -> float:
        """One look, as the service does it: what it sends arrives `before` later, the answer `after` that. Returns when it is done.

        `written` has the times of all writes: looks come in the order in which the API server sees them, so none comes before a write that it sees.
        """
        if reaches:
            now = max(now, self.written[-1])
        local = now + self.offset
        if not self.election.holds(local):
            self.address_until = min(self.address_until, now)
        if not reaches:
            return now + between
        if self.election.wish(local) != RENEW:
            record = self.server.record
            now += before + after
            self.election.observe(record, now + self.offset)
        if self.election.wish(now + self.offset) == WAIT:
            return now
        sent = now + self.offset
        at = now
        try:
            written = self.server.put(self.election.me, self.election.record, TIMING.duration)
        except Conflict:
            self.election.observe(self.server.record, now + before + after + self.offset)
            written = None
        now += before + between + after
        if written:
            self.written.append(at)
            self.election.won(written, sent)
        local = now + self.offset
        if self.election.holds(local) and (seconds := self.election.lifetime(local)):
            self.address_until = now + seconds + 1.0  # the kernel may be a second late
        elif not self.election.holds(local):
            self.address_until = min(self.address_until, now)
        return now


LATE = st.sampled_from([0.0, 0.0, 0.0, 0.05, 0.4, 1.5, 3.5])
LOOKS = st.tuples(st.integers(0, 2), LATE, LATE, LATE, st.sampled_from([True, True, True, False]), st.sampled_from([0.05, 0.5, 1.0, 1.0, 2.5, 4.0, 5.0, 9.0]))


@settings(max_examples=1500, deadline=None)
@given(st.lists(LOOKS, min_size=5, max_size=60), st.tuples(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6), st.floats(-1e6, 1e6)))
def test_no_two_hosts_ever_have_it_however_late_and_cut_off_they_are(looks: list[tuple[int, float, float, float, bool, float]], offsets: Any) -> None:
    """A host that does nothing for a while is one that has no processor: the kernel alone acts there."""
    server = Server()
    server.put("", None, TIMING.duration)
    written = [0.0]
    machines = [Machine(Election(name), server, offset, written) for name, offset in zip("abc", offsets, strict=True)]
    busy = [0.0, 0.0, 0.0]
    held: list[tuple[float, float, int]] = []
    now = 0.0
    for number, before, between, after, reaches, pause in looks:
        now = max(now, busy[number])
        machine = machines[number]
        was = machine.address_until
        done = machine.step(now, before, between, after, reaches=reaches)
        if machine.address_until > done or machine.address_until > was:
            held.append((done, machine.address_until, number))
        elif machine.address_until < was:
            held = [(start, min(end, machine.address_until) if owner == number else end, owner) for start, end, owner in held]
        busy[number] = done
        now += pause
    for start, end, owner in held:
        for other_start, other_end, other in held:
            assert owner == other or end <= other_start + 1e-6 or other_end <= start + 1e-6, (held, owner, other)


def test_a_lease_is_replaced_only_as_it_was_read() -> None:
    made = lease_object("a", None, TIMING, "then", "now")
    assert "resourceVersion" not in made["metadata"] and made["spec"]["holderIdentity"] == "a"
    renewed = lease_object("b", Record("a", "7", 5.0, 3), TIMING, "then", "now")
    assert renewed["metadata"]["resourceVersion"] == "7" and renewed["spec"]["leaseTransitions"] == 4
    assert "holderIdentity" not in lease_object("", Record("a", "7", 5.0), TIMING, "then", "now")["spec"], "the API server refuses an empty one"


def test_arp_packets_are_as_in_the_rfcs() -> None:
    mac = bytes.fromhex("020000000005")
    frame = network.announcement(mac, "10.0.0.9", network.REPLY)
    assert len(frame) == 42 and frame[:6] == b"\xff" * 6 and frame[6:12] == mac and frame[12:14] == b"\x08\x06"
    assert network.sender(frame) == ("10.0.0.9", mac)
    asked = network.probe(mac, "10.0.0.9")
    assert network.sender(asked)[0] == "0.0.0.0" and asked[-4:] == socket.inet_aton("10.0.0.9")
    assert network.sender(frame[:30]) == ("", b"") and network.sender(frame[:12] + b"\x08\x00" + frame[14:]) == ("", b"")


def test_the_kernel_is_told_how_long_an_address_lasts() -> None:
    message = network.address_message(network.RTM_NEWADDR, 7, "10.0.0.9", 3, 1)
    length, kind, flags = struct.unpack_from("=IHH", message)
    assert (length, kind) == (len(message), 20) and flags & network.NLM_F_REPLACE
    assert struct.unpack_from("=BBBBI", message, 16) == (socket.AF_INET, 32, 0, 0, 7)
    assert struct.unpack_from("=II", message[-16:]) == (3, 3)
    assert len(network.address_message(network.RTM_DELADDR, 7, "10.0.0.9", 0, 1)) == len(message) - 20


SHOWN = [
    {"ifname": "lo", "ifindex": 1, "addr_info": [{"local": "127.0.0.1", "prefixlen": 8}]},
    {"ifname": "eth0", "ifindex": 2, "addr_info": [{"local": "10.0.0.5", "prefixlen": 24}, {"local": "10.0.0.9", "prefixlen": 32}]},
]


def test_the_link_is_that_of_the_hosts_own_address() -> None:
    assert network.find_link(SHOWN, "10.0.0.5") == Link("eth0", 2, ipaddress.IPv4Network("10.0.0.0/24"))
    assert network.find_link(SHOWN, "10.0.0.7") is None


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("10.0.0.9", ""),
        ("10.0.0.5", "is this host's own"),
        ("10.0.1.9", "is not in 10.0.0.0/24"),
        ("10.0.0.255", "broadcast"),
        ("10.0.0.0", "broadcast"),
    ],
)
def test_a_virtual_address_is_of_the_hosts_network(address: str, words: str) -> None:
    found = checks.unfit_address(Link("eth0", 2, ipaddress.IPv4Network("10.0.0.0/24")), address, "10.0.0.5")
    assert [words in problem for problem, _ in found] == ([True] if words else [])


def test_the_service_may_use_one_lease_and_nothing_else() -> None:
    role = unit.access()["items"][0]
    (rule,) = role["rules"]
    assert (rule["resources"], rule["resourceNames"]) == (["leases"], ["ckp-virtual-address"])
    assert role["metadata"]["namespace"] == "kube-system"
    text = unit.unit_text(["/usr/bin/python3", "-I", "/usr/bin/ckp-agent"])
    assert "CapabilityBoundingSet=CAP_NET_ADMIN CAP_NET_RAW\n" in text and "Restart=always" in text
    assert "ExecStart=/usr/bin/python3 -I /usr/bin/ckp-agent standalone address --settings " in text


@pytest.mark.parametrize(
    ("was", "restored", "holds", "verb"),
    [
        ({}, False, True, "create"),
        ({"holderIdentity": "m2"}, True, True, "replace"),
        ({"holderIdentity": "m2"}, True, False, ""),
        ({"holderIdentity": "m1"}, True, True, ""),
        ({"holderIdentity": "m2"}, False, True, ""),
    ],
)
def test_the_first_master_becomes_the_leases_holder_where_nobody_else_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, was: dict[str, str], restored: bool, holds: bool, verb: str
) -> None:
    """There is no Lease yet, or it is of a backup, from before all hosts were lost; and this host still holds the address without one."""
    spec, done = dict(was), list[str]()

    def kubectl(*words: str, stdin: str = "", **_: object) -> str:
        if words[0] in ("create", "replace"):
            done.append(words[0])
            spec.update(json.loads(stdin)["spec"])
        return json.dumps({"spec": spec}) if "lease" in words and spec else ""

    def wait_for(missing: Any, **_: object) -> None:
        spec.update(renewTime="later")  # as the service renews it
        assert not missing()

    (tmp_path / "bootstrap").touch()
    monkeypatch.setattr(unit, "BOOTSTRAP", str(tmp_path / "bootstrap" if holds else tmp_path / "none"))
    monkeypatch.setattr(unit, "issue_certificate", lambda: None)
    monkeypatch.setattr(unit, "kubectl", kubectl)
    monkeypatch.setattr(unit, "wait_for", wait_for)
    monkeypatch.setattr(unit, "_wait_held", lambda _: None)
    unit.elect(Settings("192.0.2.50", "192.0.2.10", "m1"), restored=restored)
    assert done == ([verb] if verb else []) and spec.get("holderIdentity") == ("m1" if verb else was["holderIdentity"])
    assert not holds or not (tmp_path / "bootstrap").exists()


def test_settings_that_are_no_settings_are_refused(tmp_path: Path) -> None:
    good = Settings("10.0.0.9", "10.0.0.5", "one")
    (tmp_path / "good").write_text(good.to_json())
    assert Settings.read(str(tmp_path / "good")) == good
    (tmp_path / "bad").write_text('{"address": 1')
    for name in ("bad", "none"):
        with pytest.raises(InvalidInput, match="is not there or malformed"):
            Settings.read(str(tmp_path / name))
