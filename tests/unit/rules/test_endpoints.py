"""By which address a control plane is reached, and what is said of one that can't be reached."""

from __future__ import annotations

import pytest

from ckp.api.states import Reason
from ckp.rules.endpoints import Asked, Settled, is_name, settle

A, B = "10.88.0.150", "10.88.0.151"


def test_the_load_balancers_address_becomes_the_endpoint_and_is_asked_for_from_then_on() -> None:
    assert settle(Asked()).reason is Reason.WAITING
    assert settle(Asked(given=[A])) == Settled(A, A, A)
    assert settle(Asked(host=A, port=6443, given=[A], made=True)) == Settled(A, A, A)


@pytest.mark.parametrize(("given", "pinned"), [([], A), ([B], A), ([], "")])
def test_a_lost_address_is_said_with_both_and_asked_for_again(given: list[str], pinned: str) -> None:
    found = settle(Asked(host=A, port=6443, cluster_host=A, pinned=pinned, given=given, made=True))
    assert (found.ask, found.host, found.address, found.reason) == (A, A, A, Reason.ADDRESS_LOST)
    assert A in found.message and (given or ["no address"])[0] in found.message and "pool" in found.message


def test_of_a_cluster_of_0_2_0_an_address_that_may_be_forwarded_is_asked_about_before_anything_is_changed() -> None:
    outside = "203.0.113.7"
    found = settle(Asked(host=outside, port=6443, cluster_host=outside, given=[A], made=True))
    assert (found.ask, found.host, found.reason) == ("", outside, Reason.ADDRESS_LOST)
    assert f"set spec.loadBalancer.address to {A}" in found.message and f"set spec.loadBalancer.address to {outside}" in found.message
    assert settle(Asked(host=outside, port=6443, load_balancer=A, given=[A], made=True)).reason is None, "it is forwarded"
    assert settle(Asked(host=outside, port=6443, load_balancer=outside, given=[A], made=True)).ask == outside, "it was lost"


def test_before_the_cluster_is_up_an_address_is_waited_for_and_not_lost() -> None:
    found = settle(Asked(load_balancer=A, given=[B]))
    assert (found.ask, found.reason) == (A, Reason.WAITING) and B in found.message
    assert settle(Asked(host=A, port=6443)).reason is Reason.WAITING


def test_one_address_of_several_is_enough() -> None:
    assert settle(Asked(host=A, port=6443, given=[B, "fd00::1", A], made=True)).reason is None


def test_a_name_leads_to_the_load_balancers_address_which_is_kept_too() -> None:
    name = "api.demo.example"
    assert settle(Asked(host=name, port=6443, given=[A])) == Settled(A, name, A)
    found = settle(Asked(host=name, port=6443, pinned=A, given=[B], made=True))
    assert (found.ask, found.host, found.address, found.reason) == (A, name, A, Reason.ADDRESS_LOST)
    assert "remove the annotation" in found.message
    assert settle(Asked(host=name, port=6443, given=[B], made=True)) == Settled(B, name, B), "the annotation was removed"


def test_an_address_that_is_forwarded_to_the_load_balancers_is_the_endpoint() -> None:
    """A cluster behind address translation: its own address is asked for from the beginning."""
    outside = "203.0.113.7"
    assert settle(Asked(host=outside, port=6443, load_balancer=A, pinned=A, given=[A], made=True)) == Settled(A, outside, outside)


def test_a_cluster_does_not_move_to_another_address_that_is_written_into_its_objects() -> None:
    moved = settle(Asked(host=A, port=6443, cluster_host=A, load_balancer=B, pinned=A, given=[A], made=True))
    assert (moved.ask, moved.reason) == (A, Reason.UNUSABLE_ENDPOINT)
    assert A in moved.message and B in moved.message and "set it back" in moved.message
    other = settle(Asked(host=B, port=6443, cluster_host=A, pinned=A, given=[A], made=True))
    assert other.reason is Reason.UNUSABLE_ENDPOINT and A in other.message and B in other.message


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (Asked(given=["lb.example"]), "lb.example"),
        (Asked(given=["fd00::5"]), "fd00::5"),
        (Asked(host="fd00::5", port=6443), "IPv6 is not supported"),
        (Asked(host="api_1.example", port=6443), "api_1.example"),
        (Asked(host="*.example", port=6443), "a DNS name"),
        (Asked(host="10.0.0.300", port=6443), "10.0.0.300"),
        (Asked(host=A, port=443, given=[A]), "set it to 6443"),
        (Asked(load_balancer="lb.example"), "spec.loadBalancer.address is lb.example: give an IPv4 address"),
        (Asked(given=[A], names=["ok.example", "https://x", "fd00::1"]), "https://x, fd00::1"),
    ],
)
def test_what_cannot_be_an_endpoint_is_refused_with_what_to_do(asked: Asked, said: str) -> None:
    found = settle(asked)
    assert found.reason is Reason.UNUSABLE_ENDPOINT and said in found.message


def test_names() -> None:
    assert all(map(is_name, ["api.demo.example", "localhost", "*.demo.example", "1.a"]))
    assert not any(map(is_name, ["", "a..b", "-a", "a-", "A.example", "10.0.0.1", "a.1", "a" * 64, "a b", "*", "x.*"]))
