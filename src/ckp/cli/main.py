"""`ckp`: the root of all commands, and the one place where an error becomes text and an exit code."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from types import FrameType

import click

from ckp import __version__
from ckp.cli.cluster import cluster
from ckp.cli.distribution.dist import dist
from ckp.cli.distribution.evidence import COMMANDS as TRANSPARENCY
from ckp.cli.distribution.keys import keys
from ckp.cli.distribution.registry import mirror, prune, sign
from ckp.cli.distribution.release import release
from ckp.cli.distribution.repository import repository
from ckp.cli.distribution.verify import verify
from ckp.cli.host import host
from ckp.cli.hostgroup import hostgroup
from ckp.cli.lab import lab
from ckp.cli.standalone import standalone
from ckp.cli.up import down, up
from ckp.hostkit.errors import AgentError
from ckp.kits.disks import disk_full, is_full
from ckp.kits.errors import CkpError

COMMANDS = (release, dist, keys, lab, standalone, host, hostgroup, cluster, up, down)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="ckp")
def root() -> None:
    """CKP, the Coredge Kubernetes Platform."""


@root.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print completion code: `source <(ckp completion bash)`."""
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    assert found is not None
    click.echo(found(root, {}, "ckp", "_CKP_COMPLETE").source())


for command in COMMANDS:
    root.add_command(command)
for part in (verify, *TRANSPARENCY, sign, mirror, prune, repository):
    dist.add_command(part)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    """SIGTERM ends a command as Ctrl-C does."""
    raise KeyboardInterrupt


def main() -> None:
    """Run a command. Exit codes: 0 done, 1 failed, 2 bad input, 3 verification failed, 4 timed out, 130 interrupted."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        root(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted; run the same command again to go on", err=True)
        sys.exit(130)
    except Exception as error:
        told = _told(error)
        if told is None:
            raise
        click.echo(told.render(), err=True)
        sys.exit(told.exit_code)


def _told(error: Exception) -> CkpError | AgentError | None:
    """What people are shown of an error; None if it is one of ours to mend."""
    if isinstance(error, CkpError | AgentError):
        return error
    if isinstance(error, OSError) and is_full(error):
        return disk_full("", Path(), details=str(error))
    if isinstance(error, ExceptionGroup):
        return next((told for item in error.exceptions if (told := _told(item))), None)
    return None


if __name__ == "__main__":
    main()
