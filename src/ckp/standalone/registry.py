"""How a cluster's host reaches the registry that it was made from: its CA and its password may change while it runs; containerd reads them at each pull."""

from __future__ import annotations

import os

from ckp.agent.journal import Journal
from ckp.agent.system import prepare
from ckp.hostkit.errors import InvalidInput
from ckp.hostkit.files import read_text


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
    return [f"containerd: access to {host} written"] if changed else []
