"""The machine that figures were measured on, as a reader compares it with their own."""

from __future__ import annotations

import os
from pathlib import Path


def described() -> str:
    """Its cores, processor and memory, such as `2 cores (A Processor @ 2.1GHz), 23 GiB`."""
    cpu = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), "?")
    ram = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    return f"{os.cpu_count()} cores ({cpu}), {ram:.0f} GiB"
