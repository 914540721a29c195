"""docs/reference/doors.md, made from the registry of features: `python -m tests.doors` writes it, a test holds the page against it."""

from __future__ import annotations

import sys
from pathlib import Path

from ckp.api.compass.features import FEATURES

PAGE = Path(__file__).resolve().parents[1] / "docs" / "reference" / "doors.md"


def page() -> str:
    """The whole page."""
    lines = [
        "# Doors: which feature is reached how",
        "",
        "Each feature of Compass is one function; REST, the command line and the console are doors to it. "
        "The least role is that in the project, the domain or the platform that the feature is about ([people and rights](../how-to/people.md)). "
        "`…` stands for a project's part of the address: `/domains/{domain}/projects/{project}`; REST lies below `/api/v1`. "
        "This page is made by `python -m tests.doors` from `src/ckp/api/compass/features.py`; a test holds it against the routes and commands that there are.",
        "",
        "| feature | least role | REST | command line | console |",
        "| --- | --- | --- | --- | --- |",
    ]
    for feature in FEATURES:
        rest, cli, web = (f"`{door}`" if door else "–" for door in (feature.rest, feature.cli, feature.web))
        lines.append(f"| {feature.title} | {feature.least.value} | {rest} | {cli} | {web} |")
    counts = [sum(bool(getattr(feature, door)) for feature in FEATURES) for door in ("rest", "cli", "web")]
    lines += ["", f"Of {len(FEATURES)} features, REST has {counts[0]}, the command line {counts[1]} and the console {counts[2]}.", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(page())
    print(f"{PAGE} is written", file=sys.stderr)
