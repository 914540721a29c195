"""The container runtime's proxy: drop-ins by which containerd has the agent's own, and the kubelet none (see ckp.hostkit.proxies).

The values lie in a file that only root reads, since a proxy's URL may hold a password and systemd shows a unit's Environment= to every user.
"""

from __future__ import annotations

import hashlib
from typing import Sequence

from ckp.agent.journal import Journal
from ckp.hostkit import proxies
from ckp.hostkit.errors import AgentError
from ckp.hostkit.logs import log
from ckp.hostkit.processes import run

VALUES = "/etc/containerd/ckp-proxy.env"
CONTAINERD_DROP_IN = "/etc/systemd/system/containerd.service.d/50-ckp-proxy.conf"
KUBELET_DROP_IN = "/etc/systemd/system/kubelet.service.d/50-ckp-no-proxy.conf"
NOTE = "runtime_proxy"
"""The journal's note of the values that containerd was started with, as a digest; absent or "" for none."""
_UNSET = " ".join([*proxies.NAMES, *(name.lower() for name in proxies.NAMES)])


def values(direct: Sequence[str] = ()) -> str:
    """The content of VALUES; "" if this host has no proxy.

    Args:
        direct: networks and hosts that are reached directly in addition to NO_PROXY.
    """
    found = proxies.environment()
    if not found:
        return ""
    found["NO_PROXY"] = found["no_proxy"] = ",".join([found["NO_PROXY"], *direct])
    return "".join(f'{name}="{_quoted(value)}"\n' for name, value in sorted(found.items()))


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("$", "\\$").replace("`", "\\`")


def write(journal: Journal, direct: Sequence[str] = ()) -> str:
    """Write the drop-ins before containerd is started, or none if this host has no proxy; returns a note. A reset removes them. InvalidInput as proxy()."""
    found = proxies.proxy()
    text = values(direct)
    if not text and VALUES not in journal.saved:
        return ""
    # Without a proxy any longer the files stay, without a value, until the reset restores what was there before them.
    journal.replace_file(VALUES, text, mode=0o600)
    journal.replace_file(CONTAINERD_DROP_IN, f"# Written by ckp-agent. Removed when the host leaves its cluster.\n[Service]\nEnvironmentFile=-{VALUES}\n")
    journal.replace_file(KUBELET_DROP_IN, f"# Written by ckp-agent: the kubelet reaches its API server directly.\n[Service]\nUnsetEnvironment={_UNSET}\n")
    journal.note(NOTE, _digest(text))
    return f"containerd uses the proxy {found}" if found else ""


def follow(journal: Journal, direct: Sequence[str] = ()) -> str:
    """On a node: take over a proxy that has changed since containerd was started, as after an edit of ckp-agent.service; returns why not, or "".

    containerd is restarted for it, its containers keep running. The note is written last, so that this is repeated after an interruption.

    Args:
        direct: as of `values`.
    """
    text = values(direct)
    if journal.notes.get(NOTE, "") == _digest(text):
        return ""
    try:
        write(journal, direct)
        journal.note(NOTE, "changing")
        run(["systemctl", "daemon-reload"], timeout=60)
        run(["systemctl", "restart", "containerd"], timeout=120, what="restarting containerd with another proxy", resolution="journalctl -u containerd")
    except AgentError as error:
        return error.sentence()
    journal.note(NOTE, _digest(text))
    log(f"containerd now uses {proxies.proxy() or 'no proxy'}")
    return ""


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16] if text else ""
