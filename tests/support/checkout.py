"""Where the tests' own checkout lies."""

from __future__ import annotations

from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
"""The root of the checkout: the `ckp` command, `docs/`, `packaging/setup`; `build/` is for what tests leave behind."""
