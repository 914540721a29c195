"""Garbage collection of the site's registry: blobs that no manifest names any more are deleted on a host, and their space is free again.

distribution's own `garbage-collect` marks what manifests name and deletes the rest. What is pushed meanwhile could be deleted before a manifest
names it, so the service that takes pushes is stopped for as long as it lasts; pulls go on. systemd does it, as one transient unit that excludes
that service and starts it again however it ends. So whoever asked for it may be killed: the host goes on. After a power cut that unit is gone,
and that service starts as at any boot. A deletion that is cut off leaves a blob or leaves none, and the next run deletes the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing

from ckp.distribution.registries.config import ENVIRONMENT
from ckp.kits.errors import CkpError
from ckp.kits.retry import wait_until
from ckp.site.registries.hosted import CONTENT, START_TIMEOUT, HostedRegistry
from ckp.site.registries.unit import CONFIG, DRAIN_SECONDS, PROGRAM, PUSH, USER, unit_of

UNIT = "ckp-registry-gc.service"
LONGEST = 3600
"""Seconds that it may take: some 10 GiB take a few. Then it is ended, and the next run goes on."""

Say = Callable[[str], None]


def collect(registry: HostedRegistry, say: Say) -> int:
    """Delete on a registry's host what nothing names; returns the bytes that this has freed.

    Raises:
        CkpError: the collection failed, and the next one goes on; or the host cannot be reached, or takes no pushes afterwards.
    """
    finish(registry, say)
    before = _size(registry)
    if before == 0:
        return 0  # nothing was ever pushed
    done = registry.host.run(_command(registry.storage), timeout=LONGEST + DRAIN_SECONDS + 120, check=False)
    _wait(registry, say)
    _take_pushes(registry)
    if done.code != 0:
        raise CkpError(
            f"{UNIT} on {registry.host.name} failed: what nothing names is still in the registry, or a part of it",
            details=f"{done.stderr}\n{_journal(registry)}".strip(),
            resolution="correct what the details name, and run `ckp site registry gc`",
        )
    if silent := registry.silent():
        raise CkpError(
            f"the registry on {registry.host.name} does not answer at {' and '.join(silent)} after the collection", resolution="run `ckp site apply`"
        )
    freed = max(0, before - _size(registry))
    say(f"{registry.host.name}: {freed / 1e6:.0f} MB freed in {registry.storage}")
    return freed


def finish(registry: HostedRegistry, say: Say) -> None:
    """Wait for a collection that is under way on the host, and let pushes be taken again. Where there is no such service, nothing is done.

    Raises:
        CkpError: the collection does not end, or the service was started and does not answer.
    """
    if _wait(registry, say) or _state(registry, unit_of(PUSH)) != "active":
        _take_pushes(registry)


def _wait(registry: HostedRegistry, say: Say) -> bool:
    """Wait for a collection that is under way; whether there was one."""
    if not _running(registry):
        return False
    say(f"{registry.host.name}: a collection in the registry is under way; waiting for its end")
    wait_until(
        lambda: not _running(registry),
        what=f"{UNIT} on {registry.host.name} ends",
        timeout=LONGEST + DRAIN_SECONDS + 60,
        every=1.0,
        resolution=f"see there: journalctl -u {UNIT}",
    )
    return True


def _take_pushes(registry: HostedRegistry) -> None:
    """Start the service, if there is one, and wait until it answers: it is active before it listens."""
    if registry.host.run(["systemctl", "start", unit_of(PUSH)], timeout=DRAIN_SECONDS + 60, check=False).code == 0:
        with closing(registry.connect(registry.endpoint, registry.ca, None)) as client:
            wait_until(client.alive, what=f"the registry on {registry.host.name} takes pushes at {registry.endpoint}", timeout=START_TIMEOUT, every=0.3)


def _running(registry: HostedRegistry) -> bool:
    return _state(registry, UNIT) in ("active", "activating", "deactivating")


def _command(storage: str) -> list[str]:
    """The transient unit, waited for. It may write to the storage alone, and reach no network."""
    push = unit_of(PUSH)
    properties = [
        *(f"Conflicts={push}", f"After={push}", f"ExecStopPost=+/usr/bin/systemctl --no-block start {push}", f"RuntimeMaxSec={LONGEST}"),
        *(f"User={USER}", f"Group={USER}", "UMask=0077", "NoNewPrivileges=yes", "CapabilityBoundingSet=", "ProtectSystem=strict", "ProtectHome=yes"),
        *(
            "PrivateTmp=yes",
            "PrivateDevices=yes",
            "RestrictAddressFamilies=AF_UNIX",
            "LimitCORE=0",
            f"ReadWritePaths={storage}",
            f"RequiresMountsFor={storage}",
        ),
        *(f"Environment={name}={value}" for name, value in ENVIRONMENT.items()),
    ]
    options = ["--quiet", "--collect", "--wait", f"--unit={UNIT}", "--description=CKP's registry: deleting what nothing names"]
    return ["systemd-run", *options, *(f"--property={value}" for value in properties), "--", PROGRAM, "garbage-collect", f"{CONFIG}/{PUSH}.yml"]


def _size(registry: HostedRegistry) -> int:
    """Bytes on the disk of the registry's content; 0 if nothing was ever pushed."""
    done = registry.host.run(["du", "--summarize", "--block-size=1", "--", f"{registry.storage}/{CONTENT}"], timeout=600, check=False)
    return int(done.stdout.split()[0]) if done.stdout.strip() else 0


def _state(registry: HostedRegistry, unit: str) -> str:
    """ActiveState of a unit, as systemd has it."""
    return registry.host.run(["systemctl", "show", "--property=ActiveState", unit], timeout=30, check=False).stdout.strip().partition("=")[2]


def _journal(registry: HostedRegistry) -> str:
    return registry.host.run(["journalctl", "-u", UNIT, "-n", "15", "--no-pager", "-o", "cat"], timeout=30, check=False).stdout
