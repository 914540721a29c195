"""Entry of the one-file tool, and of `python -m ckp.agent`."""

from __future__ import annotations

import importlib
import sys

from ckp.agent.main import main as agent


def main() -> int:
    """Run a command; returns the exit code. `standalone` is a room of its own that ships in the same file: it is found by its name."""
    if sys.argv[1:2] == ["standalone"]:
        return int(importlib.import_module("ckp.standalone.tool").standalone(sys.argv[2:]))
    return agent()


if __name__ == "__main__":
    sys.exit(main())
