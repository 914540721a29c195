"""What the command says while it works, for tests that ask whether it did."""

from __future__ import annotations

import re

BUILDING = re.compile(r"· building (\S+) v\d")
"""A component whose build is begun. tests/unit/cli/test_interrupts.py holds it against what is printed."""
