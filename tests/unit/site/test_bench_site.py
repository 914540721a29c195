"""What the benchmark of a site makes of its figures; the figures themselves are of a lab."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.bench_site import AIM_NOTHING, Figures, render, steps_of

FIGURES = Figures(first=200.0, nothing=(9.0, 30.0, 8.0), backup=20.0, restore=300.0, size=2_500_000, steps={"Opening Compass": "1.3s"})


def test_each_figure_is_a_ratio_to_the_first_applying() -> None:
    page = render(FIGURES, "at commit abc")
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| ")]
    ratios = {row[0].removeprefix("| "): row[2].removesuffix(" |") for row in rows if len(row) == 3}
    assert [ratios[what] for what, _ in FIGURES.rows] == ["1.00", "0.04", "0.10", "1.50"], "of several the median counts"
    assert "at commit abc" in page and "2.5 MB" in page and "| Opening Compass | 1.3s |" in page


@pytest.mark.parametrize(("seconds", "words"), [(AIM_NOTHING, "or less: it does."), (AIM_NOTHING + 1, "or less: it does not.")])
def test_the_page_says_whether_the_aim_is_met(seconds: float, words: str) -> None:
    assert words in render(replace(FIGURES, nothing=(seconds,)), "")


@pytest.mark.parametrize("change", [{"first": 0.0}, {"nothing": (3.0, 0.0)}, {"restore": -1.0}])
def test_what_took_no_time_is_no_figure(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="these are no durations"):
        render(replace(FIGURES, **change), "")  # type: ignore[arg-type]


def test_steps_are_read_from_what_the_command_prints() -> None:
    printed = (
        "[ 1/12] Checking the management hosts and their network: done, 5.1s\n  a line\n[12/12] Opening Compass: done, 1m07s\n[ 2/12] Failing: FAILED, 2s\n"
    )
    assert steps_of(printed) == {"Checking the management hosts and their network": "5.1s", "Opening Compass": "1m07s"}
