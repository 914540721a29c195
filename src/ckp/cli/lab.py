"""`ckp lab`: the hosts of the lab on this machine."""

from __future__ import annotations

import sys

import click

from ckp.cli.view.progress import planned
from ckp.lab.lab import Lab


@click.group()
def lab() -> None:
    """Lab hosts: systemd machines in systemd-nspawn on this one."""


@lab.command("up")
@click.option("--workers", default=2, show_default=True, type=click.IntRange(0, 50))
def lab_up(workers: int) -> None:
    """Boot one management host and some workers; those that run are left alone."""
    machines = Lab()
    specs = machines.network.hosts(workers)
    preparing, booting = "Preparing the base system", [f"Booting {spec.name} at {spec.address}" for spec in specs]
    with planned("lab up", [preparing, *booting]) as steps:
        with steps.step(preparing):
            machines.ensure_base(steps.say)
        for spec, title in zip(specs, booting, strict=True):
            with steps.step(title):
                machines.ensure_host(spec)


@lab.command("down")
def lab_down() -> None:
    """Remove all lab hosts, their disks, the nameserver and the bridge."""
    Lab().down()


@lab.command("status")
def lab_status() -> None:
    """List the lab's hosts."""
    hosts = Lab().hosts()
    if not hosts:
        click.echo("the lab has no hosts")
        return
    click.echo(f"{'NAME':<14} {'ADDRESS':<14} {'STATE':<8} MEMORY")
    for host in hosts:
        memory = f"{host.memory >> 20} MiB" if host.running else "-"
        click.echo(f"{host.name:<14} {host.address:<14} {'running' if host.running else 'off':<8} {memory}")


@lab.command("shell", context_settings={"ignore_unknown_options": True})
@click.argument("host")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def lab_shell(host: str, command: tuple[str, ...]) -> None:
    """Open a shell on HOST, or run COMMAND there."""
    machine = Lab().host(host)
    if not command:
        sys.exit(machine.shell())
    sys.exit(machine.stream(list(command), timeout=3600, on_line=click.echo))
