"""Kernel settings that all hosts share with the machine, because they are not namespaced.

Kubelets set some of them; and the defaults for inotify are too low for systemd, containerd and kubelet of many hosts, which all count
as one user. The values from before the first lab are restored when the last lab goes down.
"""

from __future__ import annotations

import json
from pathlib import Path

from ckp.kits.files import atomic_write

SYSCTLS = Path("/proc/sys")

REMEMBERED = Path("/run/ckp-lab-sysctls.json")
"""The original values: one file for all labs of the machine, lost with a reboot like the settings themselves."""

AT_LEAST = {"fs/inotify/max_user_instances": 8192, "fs/inotify/max_user_watches": 1048576}

CHANGED_BY_KUBELETS = ("vm/overcommit_memory", "kernel/panic", "kernel/panic_on_oops", "kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes")


def prepare(sysctls: Path = SYSCTLS, remembered: Path = REMEMBERED) -> None:
    """Record the settings, unless another lab has done so since the machine started, and raise those that are too low."""
    if not remembered.exists():
        before = {name: (sysctls / name).read_text().strip() for name in (*AT_LEAST, *CHANGED_BY_KUBELETS) if (sysctls / name).exists()}
        atomic_write(remembered, json.dumps(before, indent=2) + "\n")
    for name, least in AT_LEAST.items():
        if int((sysctls / name).read_text()) < least:
            (sysctls / name).write_text(str(least))


def restore(sysctls: Path = SYSCTLS, remembered: Path = REMEMBERED) -> None:
    """Restore the recorded settings, if there are any."""
    try:
        before = json.loads(remembered.read_text())
    except FileNotFoundError:
        return
    for name, value in before.items():
        if (sysctls / name).read_text().strip() != value:
            (sysctls / name).write_text(value)
    remembered.unlink(missing_ok=True)
