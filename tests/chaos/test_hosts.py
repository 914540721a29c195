"""Hosts under faults: whatever happens while they join, leave, are removed and get new certificates, in the end everything fits together.

CKP_CHAOS_SEEDS=50 (a count, a range `51-80`, or seeds parted by commas) runs those instead of the fixed ones; see docs/how-to/chaos.md.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from tests.chaos.run import parse_seeds, play, run_seed
from tests.chaos.schedule import FAULTS, Event, Schedule, draw

FIXED = {
    "a machine whose controller had not seen its claim took a second host": 52,
    "after a power cut the journal knew of no package that was on the host": 54,
    "a killed controller's last write left a host working for nobody": 101,
    "a machine was let go while its host was still its node": 55,
    "the agent's status was never written again after the disk had been full": 66,
}
MORE = range(201, 241)
"""Seeds that `make test-all` plays as well."""


def _seeds() -> list[object]:
    told = os.environ.get("CKP_CHAOS_SEEDS")
    if told:
        return [pytest.param(seed, id=str(seed)) for seed in parse_seeds(told)]
    fixed = [pytest.param(seed, id=f"{seed}, {name}") for name, seed in FIXED.items()]
    return [*fixed, *(pytest.param(seed, id=str(seed), marks=pytest.mark.long) for seed in MORE)]


@pytest.mark.parametrize("seed", _seeds())
def test_after_the_faults_everything_fits_together(seed: int, tmp_path: Path) -> None:
    outcome = run_seed(seed, tmp_path)
    if outcome.sentences:
        pytest.fail(f"{outcome}\nwhat is left: {tmp_path}\nagain: CKP_CHAOS_SEEDS={seed},", pytrace=False)


def test_a_seed_says_all_that_will_happen() -> None:
    assert str(draw(7)) == str(draw(7)) != str(draw(8))
    drawn = {event.kind for seed in range(1, 51) for event in draw(seed).events}
    assert drawn == {*FAULTS, "machine", "data", "leave", "remove-host", "revoke", "enrol"}, "fifty seeds leave nothing out"


def test_seeds_are_named_by_count_range_or_list() -> None:
    assert (parse_seeds("3"), parse_seeds("5-7"), parse_seeds("9,"), parse_seeds("1,4")) == ([1, 2, 3], [5, 6, 7], [9], [1, 4])


def test_a_host_that_does_not_come_back_is_said(tmp_path: Path) -> None:
    """The checker can fail: the agent's certificate is no longer the host's, and nobody enrols it again."""
    events = (Event(0.1, "machine", "m1", {"data": True}), Event(0.9, "spoil", "host-1"))
    schedule = Schedule(0, ("host-1",), frozenset(), 1, events, 1.2)
    outcome = asyncio.run(play(schedule, tmp_path, within=2.0))
    assert any("host host-1 is locked out" in sentence for sentence in outcome.sentences), outcome
    assert any("its agent says Refused" in sentence for sentence in outcome.sentences), outcome
