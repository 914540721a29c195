"""Keeps swap off while the host is a node, also after a restart. A reset restores what was configured before, line by line."""

from __future__ import annotations

import os
import re

from ckp.agent.journal import Journal
from ckp.agent.system import facts
from ckp.hostkit.errors import AgentError, ProcessFailed
from ckp.hostkit.files import atomic_write, read_text
from ckp.hostkit.logs import log
from ckp.hostkit.processes import run

FSTAB = "/etc/fstab"
UNITS = "/etc/systemd/system"
MARK = "# off for Kubernetes (ckp-agent): "
_LINE = re.compile(r"^(?P<head>\s*[^#\s]\S*\s+\S+\s+swap)(?P<options>\s+\S+)?(?P<rest>.*)$")


def _without(line: str) -> str:
    """A line of fstab, with `noauto` if it is a swap line that boot would turn on.

    It is not removed: without swap in fstab, systemd turns on the swap partitions that it finds (systemd-gpt-auto-generator(8)).
    """
    match = _LINE.match(line)
    if match is None or "noauto" in (match["options"] or "").strip().split(","):
        return line
    return f"{match['head']}{match['options'] or ' defaults'},noauto{match['rest']}"


def fstab_off(text: str) -> str:
    """fstab with its swap lines turned off; above each is the original line, after MARK."""
    lines: list[str] = []
    for line in text.split("\n"):
        off = _without(line)
        lines += [line] if off == line else [MARK + line, off]
    return "\n".join(lines)


def fstab_on(text: str) -> str:
    """fstab as it was before `fstab_off`, with the changes that others made since. Also reads lines that earlier agents had only commented out."""
    lines: list[str] = []
    ours: str | None = None
    for line in text.split("\n"):
        if line.startswith(MARK):
            lines.append(line[len(MARK) :])
            ours = _without(lines[-1])
            continue
        if line != ours:
            lines.append(line)
        ours = None
    return "\n".join(lines)


def _write_fstab(text: str) -> None:
    path = os.path.realpath(FSTAB)
    atomic_write(path, text, mode=os.stat(path).st_mode & 0o7777)


def devices() -> list[str]:
    """The swap devices in use."""
    return [line.split()[0] for line in read_text("/proc/swaps").splitlines()[1:]]


def units() -> list[str]:
    """systemd's active swap units: from fstab, from discovered partitions, of zram, or written by the owner."""
    listed = run(["systemctl", "list-units", "--type=swap", "--state=active", "--no-legend", "--plain", "--full"], timeout=30, check=False)
    return [line.split()[0] for line in listed.stdout.splitlines() if line.split() and line.split()[0].endswith(".swap")]


def swap_off(journal: Journal) -> list[str]:
    """Turn swap off, now and after a restart; returns notes. Raises AgentError."""
    notes = []
    fstab = read_text(FSTAB)
    if (off := fstab_off(fstab)) != fstab:
        journal.note("fstab", True)
        _write_fstab(off)
        notes.append("swap lines in /etc/fstab are off")
    if facts.swap_on():
        before: list[str] = journal.notes.get("swap", [])
        journal.note("swap", [*before, *(device for device in devices() if device not in before)])
        for unit in units():
            if "/" not in unit:
                journal.replace_file(f"{UNITS}/{unit}", "")  # an empty unit file masks the unit: nothing turns it on
        turn_off()
        notes.append("swap was on and is off now")
    if notes:
        run(["systemctl", "daemon-reload"], timeout=60, check=False)
    return notes


def turn_off() -> None:
    """Turn all swap off.

    Raises:
        AgentError: swap could not be turned off.
    """
    try:
        run(["swapoff", "-a"], timeout=300, what="turning swap off")
    except ProcessFailed as error:
        raise AgentError(error.brief, details=error.details, resolution="turn swap off by hand: the kubelet needs it off", reason="SwapOn") from None
    if facts.swap_on():
        raise AgentError("swap is still on after swapoff -a", resolution="turn it off by hand (swapon --show lists it)", reason="SwapOn")


def keep_off(journal: Journal) -> str:
    """On a node: turn swap off again if something turned it on, or the kubelet would not start. Returns a sentence if so, "" if not."""
    if not facts.swap_on():
        return ""
    found = ", ".join(devices())
    try:
        swap_off(journal)
    except AgentError as error:
        return error.sentence()
    log(f"swap had been turned on ({found}), and is off again")
    return f"swap had been turned on ({found}), and was turned off again"


def restore_fstab(journal: Journal) -> None:
    """Restore the swap lines of fstab, and leave everything else in it. An older agent kept a copy of the whole file, which is not used."""
    if "fstab" in journal.notes or FSTAB in journal.saved:
        fstab = read_text(FSTAB)
        if (on := fstab_on(fstab)) != fstab:
            _write_fstab(on)
        journal.drop_original(FSTAB)


def restore_swap(journal: Journal) -> None:
    """Turn on the swap that was on before CKP. To be called after fstab and units are restored."""
    for device in journal.notes.get("swap", []):
        if device not in devices():
            run(["swapon", device], timeout=60, check=False)
