"""Kernel settings that all hosts share with the machine, because the kernel has only one of each.

A kubelet sets some of them; and a machine's defaults for inotify are too few for many hosts' worth of systemd, containerd and kubelets,
which all count as one user. The values from before the first lab come back when the last one goes.
"""

from __future__ import annotations

import json
from pathlib import Path

from ckp.kits.files import atomic_write

SYSCTLS = Path("/proc/sys")

REMEMBERED = Path("/run/ckp-lab-sysctls.json")
"""What was set before: of the machine, not of one lab, and gone with a reboot as the settings are."""

AT_LEAST = {"fs/inotify/max_user_instances": 8192, "fs/inotify/max_user_watches": 1048576}

CHANGED_BY_KUBELETS = ("vm/overcommit_memory", "kernel/panic", "kernel/panic_on_oops", "kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes")


def prepare(sysctls: Path = SYSCTLS, remembered: Path = REMEMBERED) -> None:
    """Remember the settings, unless another lab has done it since the machine started, and raise what is too low for hosts."""
    if not remembered.exists():
        before = {name: (sysctls / name).read_text().strip() for name in (*AT_LEAST, *CHANGED_BY_KUBELETS) if (sysctls / name).exists()}
        atomic_write(remembered, json.dumps(before, indent=2) + "\n")
    for name, least in AT_LEAST.items():
        if int((sysctls / name).read_text()) < least:
            (sysctls / name).write_text(str(least))


def restore(sysctls: Path = SYSCTLS, remembered: Path = REMEMBERED) -> None:
    """Set everything back to what was remembered; nothing remembered is fine."""
    try:
        before = json.loads(remembered.read_text())
    except FileNotFoundError:
        return
    for name, value in before.items():
        if (sysctls / name).read_text().strip() != value:
            (sysctls / name).write_text(value)
    remembered.unlink(missing_ok=True)
