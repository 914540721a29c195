"""Log lines."""

from __future__ import annotations

import os
import sys
import time


def log(text: str) -> None:
    """A line for the journal. systemd adds the time; on a terminal we do."""
    stamp = "" if "JOURNAL_STREAM" in os.environ else time.strftime("%H:%M:%S ")
    try:
        sys.stderr.write(f"{stamp}{text}\n")
        sys.stderr.flush()
    except (OSError, ValueError):
        pass  # a closed stderr is no reason to stop
