"""Log lines."""

from __future__ import annotations

import os
import sys
import time

from ckp.hostkit.text import printable_lines


def log(text: str) -> None:
    """Write lines to standard error, with control characters escaped. systemd's journal adds the time; otherwise it is added here."""
    stamp = "" if "JOURNAL_STREAM" in os.environ else time.strftime("%H:%M:%S ")
    try:
        sys.stderr.write(f"{stamp}{printable_lines(text)}\n")
        sys.stderr.flush()
    except (OSError, ValueError):
        pass  # a closed stderr must not stop the program
