"""How a registry runs on a host: two services of one systemd unit, in a sandbox."""

from __future__ import annotations

from ckp.distribution.registries.config import ENVIRONMENT

USER = "ckp-registry"
"""The account of both services, and its group."""
PROGRAM = "/usr/local/sbin/ckp-registry"
"""A folder whose files SELinux lets a service run, whoever writes them."""
CONFIG = "/etc/ckp-registry"
UNITS = "/etc/systemd/system"
TEMPLATE = f"{UNITS}/ckp-registry@.service"
PULL, PUSH = "pull", "push"
"""The instances: everybody may read from the one; who has the password may write to the other."""
DROP_IN = f"{UNITS}/ckp-registry@{PUSH}.service.d"
DRAIN_SECONDS = 30
"""How long downloads may go on when a service is stopped or restarted."""


def unit_of(instance: str) -> str:
    """The name of an instance's unit."""
    return f"ckp-registry@{instance}.service"


def unit_text() -> str:
    """The template of both services. It needs systemd 249 (Ubuntu 22.04) or later, and what it forbids also works in a container.

    The storage can be read, not written: what distribution's read-only mode does not refuse (asking for the state of an upload opens its
    file for writing) the kernel does. `drop_in_text` opens it for the one that takes pushes.
    """
    environment = "".join(f"Environment={name}={value}\n" for name, value in ENVIRONMENT.items())
    return f"""\
[Unit]
Description=CKP's registry of images and bundles (%i)
Wants=network-online.target
After=network-online.target
# Without this file, the program would make one, and write the password in it to its log.
AssertPathExists={CONFIG}/htpasswd
StartLimitIntervalSec=0

[Service]
Type=exec
User={USER}
Group={USER}
{environment}ExecStart={PROGRAM} serve {CONFIG}/%i.yml
# Also when its address is not there yet.
Restart=always
RestartSec=2
TimeoutStopSec={DRAIN_SECONDS + 10}
LimitNOFILE=65536
LimitCORE=0
UMask=0077

CapabilityBoundingSet=
AmbientCapabilities=
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=yes
PrivateTmp=yes
PrivateDevices=yes
DevicePolicy=closed
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
RemoveIPC=yes
KeyringMode=private
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @resources
SystemCallErrorNumber=EPERM

[Install]
WantedBy=multi-user.target
"""


def drop_in_text(storage: str) -> str:
    """What the service that takes pushes may do beyond the template."""
    return f"[Unit]\nRequiresMountsFor={storage}\n\n[Service]\nReadWritePaths={storage}\n"
