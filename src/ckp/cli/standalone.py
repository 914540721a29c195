"""`ckp standalone`: one host as a cluster, made by the host tool: on this machine, or on a lab host."""

from __future__ import annotations

import sys

import click

from ckp.lab.lab import Lab
from ckp.standalone import command

TOOL = "/usr/bin/ckp-agent"
INSTALL_TIMEOUT = 1800.0


@click.command(
    "standalone",
    context_settings={"ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
)
@click.option("--lab-host", default="", help="On this lab host instead of this machine.")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def standalone(lab_host: str, arguments: tuple[str, ...]) -> None:
    """Make one host a cluster, or undo it: `install`, `reset`, `status` (see `ckp standalone install --help`)."""
    if not lab_host:
        sys.exit(command.standalone(list(arguments) or ["--help"]))
    code = Lab().host(lab_host).stream([TOOL, "standalone", *arguments], timeout=INSTALL_TIMEOUT, on_line=click.echo)
    sys.exit(code)
