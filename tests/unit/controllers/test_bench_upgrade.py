"""What the benchmark of an upgrade makes of its figures; the figures themselves are of a lab."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.bench_upgrade import INSTALL, Figures, between, render, steps_of

STEPS = dict.fromkeys(INSTALL, 4.0)
FIGURES = Figures(created=100.0, whole=150.0, control_plane=30.0, nodes=(20.0, 40.0), hosts=(STEPS, STEPS | {"check": 1.0}))


def test_each_figure_is_a_ratio_to_the_creation_and_of_several_the_slowest_counts() -> None:
    page = render(FIGURES, "at commit abc")
    ratios = [line.split(" | ")[2].removesuffix(" |") for line in page.splitlines() if line.count("|") == 4][2:]
    assert ratios == ["1.00", "1.50", "0.30", "0.40", "0.20"]
    assert "| control plane | 30s | 0.30 |" in page and "the slowest) | 40s | 0.40 |" in page and "the slowest) | 20s | 0.20 |" in page
    assert "less than 10 s: it does not." in page and "less than 25 s: it does." in page and "at commit abc" in page


@pytest.mark.parametrize("change", [{"created": 0.0}, {"nodes": (0.0,)}, {"control_plane": -1.0}])
def test_what_took_no_time_is_no_figure(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="these are no durations"):
        render(replace(FIGURES, **change), "")  # type: ignore[arg-type]


def test_a_host_s_steps_are_read_from_its_journal_with_those_that_were_repeated() -> None:
    journal = []
    for name in INSTALL:
        journal += [{"step": f"upgrade-{name}", "outcome": outcome, "seconds": seconds} for outcome, seconds in (("started", 0.0), ("done", 2.0))]
    journal.insert(2, {"step": "upgrade-install", "outcome": "failed", "seconds": 1.5})
    assert steps_of(journal) == dict.fromkeys(INSTALL, 2.0) | {"install": 3.5}
    with pytest.raises(ValueError, match="no check"):
        steps_of(journal[:-1])


def test_a_time_is_between_its_two_ends() -> None:
    assert between({"startedAt": "2026-04-01T12:00:00Z", "finishedAt": "2026-04-01T12:01:30Z"}) == 90.0
