"""The entry point of `ckp-agent …` and of `python -m ckp.hosttool`."""

from __future__ import annotations

import io
import sys
from typing import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code. `standalone` is the installer's, `preflight` of both, `backup` the site's, every other command the agent's."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # in a locale that lacks a character of ours, a "?" is better than an end in the middle of a step
            stream.reconfigure(errors="replace")
    if arguments[:1] != ["settings"]:
        from ckp.hostkit import proxies

        proxies.adopt()
    # Imported on demand: the agent runs for months, and needs nothing of the installer.
    if arguments[:1] == ["standalone"]:
        from ckp.standalone.command import standalone

        return standalone(arguments[1:])
    if arguments[:1] == ["preflight"]:
        from ckp.hosttool.preflight import command

        return command(arguments[1:])
    if arguments[:1] == ["backup"]:
        from ckp.hosttool.backup.command import command as backup

        return backup(arguments[1:])
    from ckp.agent.main import main as agent

    return agent(arguments)


if __name__ == "__main__":
    sys.exit(main())
