"""`ckp`: the root of all commands, and the one place where an error becomes text and an exit code."""

from __future__ import annotations

import errno
import signal
import sys
from pathlib import Path
from types import FrameType

import click

from ckp import __version__
from ckp.cli.lazy import Lazy, LazyGroup
from ckp.hostkit.errors import AgentError
from ckp.kits.disks import disk_full, is_full
from ckp.kits.errors import CkpError

COMMANDS = {
    "audit": Lazy("ckp.cli.people.audit:audit", "The audit log: every change and every sign-in."),
    "cluster": Lazy("ckp.cli.cluster:cluster", "Kubernetes clusters."),
    "conformance": Lazy("ckp.cli.conformance:conformance", "Upstream's conformance tests against a cluster, and the files that a submission needs."),
    "dist": Lazy("ckp.cli.distribution.group:dist", "Build, sign, publish, carry and verify the distribution."),
    "domain": Lazy("ckp.cli.people.tenancy:domain", "Domains: the first level of tenancy."),
    "down": Lazy("ckp.cli.down:down", "Remove hosts, bridge, registry, mounts and processes of the lab; keep the caches and the signing key."),
    "host": Lazy("ckp.cli.hosts.host:host", "Hosts: the pre-shared key to enrol them, their requests, and what is done with them."),
    "hostgroup": Lazy("ckp.cli.hosts.groups:hostgroup", "Named sets of hosts that clusters take their workers from."),
    "keys": Lazy("ckp.cli.distribution.keys:keys", "Make, rotate, revoke and export signing keys."),
    "lab": Lazy("ckp.cli.lab:lab", "Lab hosts: systemd machines in systemd-nspawn on this one."),
    "login": Lazy("ckp.cli.people.login:login", "Sign in to Compass, for twelve hours."),
    "logout": Lazy("ckp.cli.people.login:logout", "End the session; its token is void at once."),
    "project": Lazy("ckp.cli.people.tenancy:project", "Projects of domains: each has its own hosts, clusters and roles."),
    "release": Lazy("ckp.cli.distribution.release:release", "The releases that CKP can build."),
    "role": Lazy("ckp.cli.people.role:role", "Roles of people and service accounts: in the platform, a domain or a project."),
    "serviceaccount": Lazy("ckp.cli.people.serviceaccount:serviceaccount", "Service accounts of a project: what programs act as, by tokens that expire."),
    "site": Lazy("ckp.cli.site:site", "The file that describes a site, and what is done with it."),
    "standalone": Lazy(
        "ckp.cli.standalone:standalone", "Make one host a cluster, or undo it: `install`, `reset`, `status` (see `ckp standalone install --help`)."
    ),
    "up": Lazy("ckp.cli.up:up", "From upstream source to a running workload cluster, on this one machine."),
    "user": Lazy("ckp.cli.people.user:user", "People: local users, of the platform (NAME) or of a domain (NAME@DOMAIN)."),
    "whoami": Lazy("ckp.cli.people.login:whoami", "Show who this machine's `ckp` command acts for, and which roles they have."),
}


@click.group("ckp", cls=LazyGroup, lazy=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
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


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    """SIGTERM ends a command as Ctrl-C does."""
    raise KeyboardInterrupt


def main() -> None:
    """Run a command. Exit codes: 0 done, 1 failed, 2 bad input, 3 verification failed, 4 timed out, 130 interrupted."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        root(prog_name="ckp", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted; run the same command again to continue", err=True)
        sys.exit(130)
    except Exception as error:
        shown = _as_user_error(error)
        if shown is None:
            raise
        click.echo(shown.render(), err=True)
        sys.exit(shown.exit_code)


def _as_user_error(error: Exception) -> CkpError | AgentError | None:
    """What the user is shown of an error; None if it is a fault of the program, which ends with a traceback."""
    if isinstance(error, CkpError | AgentError):
        return error
    if isinstance(error, OSError) and is_full(error):
        return disk_full("", Path(), details=str(error))
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        place = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        return CkpError(place, resolution="run it as a user who may write there (for the lab: root), or choose other places: CKP_CACHE, CKP_STATE, CKP_KEYS")
    if isinstance(error, ExceptionGroup):
        return next((found for item in error.exceptions if (found := _as_user_error(item))), None)
    return None


if __name__ == "__main__":
    main()
