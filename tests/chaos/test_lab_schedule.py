"""The schedule of real faults that tests/e2e/test_3_lab_chaos.py plays, without a lab."""

from __future__ import annotations

from tests.chaos.lab import draw


def test_a_seed_says_all_that_will_happen() -> None:
    assert draw(3, ("a", "b")) == draw(3, ("a", "b")) != draw(4, ("a", "b"))
    kinds = {event.kind for seed in range(1, 21) for event in draw(seed, ("a", "b"))}
    assert {"leave", "return", "upgrade-agent", "power-cut", "registry", "cut", "loss", "slow", "kill-etcd", "kill-kubelet", "kill-containerd"} <= kinds
