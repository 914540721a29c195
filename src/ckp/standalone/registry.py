"""How a cluster's host reaches the registry that it was made from: its CA and its password may change while it runs; containerd reads them at each pull.

Where the registry gives tokens for the password, containerd's own configuration has it as well, and it is restarted for another one: containers go on.
"""

from __future__ import annotations

import os

from ckp.agent.journal import Journal
from ckp.agent.system import prepare
from ckp.hostkit.errors import InvalidInput
from ckp.hostkit.files import read_text
from ckp.hostkit.processes import run


def change_access(journal: Journal, ca_file: str) -> list[str]:
    """Rewrite containerd's access, with the login that the host has now (ckp.agent.system.registry_login); returns what changed, in lines.

    Raises:
        InvalidInput: this host is not a cluster, or one that was made from a folder; or the CA is not there.
    """
    member = journal.member
    if member is None:
        raise InvalidInput("this host is not a standalone cluster", resolution="install one: ckp-agent standalone install")
    if ca_file and not os.path.isfile(ca_file):
        raise InvalidInput(f"the registry's CA {ca_file} does not exist")
    source = member.settings.get("registry") or member.bundle
    if source.startswith("/"):
        raise InvalidInput(f"this cluster was made from the folder {source}, and its registry is not known", resolution="install with --bundle-image")
    host = prepare.registry_host(source)
    changed = prepare.registry_access(journal, host, read_text(ca_file) if ca_file else "")
    lines = [f"containerd: access to {host} written"] if changed else []
    config = read_text(prepare.CONTAINERD_CONFIG)
    wanted = prepare.with_registry_login(config, host) if config else config
    if wanted != config:
        journal.replace_file(prepare.CONTAINERD_CONFIG, wanted, mode=prepare.mode_of(wanted))
        run(["systemctl", "restart", "containerd"], timeout=120, what="restarting containerd with another login", resolution="journalctl -u containerd")
        lines.append(f"containerd: login of {host} written, and restarted")
    return lines
